//! `mirror`: the names of a local tree, made in the cluster with many requests in flight.
//!
//! The order is only partial: an entry is asked for after its directory was acknowledged. The work
//! list is a stack, so that it holds little more than the siblings of the current path.

use std::path::{Path, PathBuf};
use std::time::Instant;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::local::{self, Kind, Listing, Skipped};
use super::output::{Output, join, kind_name, printable};
use super::{Exit, Failure, exit_of};
use crate::client::{Client, Error};
use crate::proto::dfs::FileType;

/// What a mirror did; the JSON document.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Directories and files of the tree that are there now, the root not counted.
    entries: u64,
    directories: u64,
    files: u64,
    created: u64,
    existing: u64,
    seconds: f64,
    entries_per_second: f64,
    skipped: Skipped,
    conflicts: Vec<Conflict>,
    /// Entries that the cluster would not take.
    refused: Vec<Problem>,
    /// Local directories that could not be read.
    unreadable: Vec<Problem>,
    #[serde(skip)]
    refusal: Option<Exit>,
}

/// The name is there, as something else; nothing below it was tried.
#[derive(Debug, Serialize)]
struct Conflict {
    path: String,
    local: &'static str,
    remote: &'static str,
}

#[derive(Debug, Serialize)]
struct Problem {
    path: String,
    message: String,
}

/// An entry to be made: its place below both roots.
#[derive(Debug)]
struct Task {
    local: PathBuf,
    remote: String,
    kind: Kind,
}

/// What became of one.
struct Done {
    task: Task,
    outcome: Result<Made, Error>,
    /// For a directory that is there now.
    below: Option<std::io::Result<Listing>>,
}

enum Made {
    Created,
    Existing,
    Conflict(FileType),
}

pub(super) async fn mirror(
    client: &Client,
    out: &mut Output,
    local: &Path,
    remote: &str,
    jobs: usize,
) -> Result<Exit, Failure> {
    local::require_directory(local).await?;
    client.prefer_leader().await;
    let started = Instant::now();
    client.create_with_parents(remote).await?;
    let top = local::read_directory(local.to_path_buf()).await;
    let top = top.map_err(|source| Failure::Local {
        path: local.to_path_buf(),
        source,
    })?;

    let bar = progress_bar();
    let mut report = Report::default();
    let mut waiting = Vec::new();
    report.take(top, local, remote, &mut waiting);
    bar.set_length(waiting.len() as u64);
    let mut failed: Option<Error> = None;
    let mut running = FuturesUnordered::new();
    loop {
        while failed.is_none() && running.len() < jobs {
            match waiting.pop() {
                Some(task) => running.push(make(client, task)),
                None => break,
            }
        }
        // After a failure, what is under way is waited for: an unknown outcome must not go unsaid.
        let Some(done) = running.next().await else { break };
        bar.inc(1);
        let before = waiting.len();
        if let Err(error) = report.add(done, &mut waiting)
            && !matches!(failed, Some(Error::OutcomeUnknown(_)))
        {
            failed = Some(error);
        }
        bar.inc_length((waiting.len() - before) as u64);
    }
    bar.finish_and_clear();

    report.seconds = started.elapsed().as_secs_f64();
    report.entries = report.directories + report.files;
    report.entries_per_second = report.entries as f64 / report.seconds.max(1e-9);
    if let Some(error) = failed {
        out.remark(format!("stopped after {} entries", report.entries));
        return Err(error.into());
    }
    report.print(out);
    Ok(report.exit())
}

/// Hidden by itself when stderr is no terminal.
fn progress_bar() -> ProgressBar {
    let style = "{bar:30} {pos}/{len} entries, {per_sec}, {elapsed}";
    let bar = ProgressBar::new(0);
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

async fn make(client: &Client, task: Task) -> Done {
    let kind = match task.kind {
        Kind::Directory => FileType::Directory,
        Kind::File | Kind::Symlink | Kind::Special => FileType::File,
    };
    let outcome = create(client, &task.remote, kind).await;
    let below = match (&outcome, kind) {
        (Ok(Made::Created | Made::Existing), FileType::Directory) => {
            Some(local::read_directory(task.local.clone()).await)
        }
        _ => None,
    };
    Done { task, outcome, below }
}

async fn create(client: &Client, path: &str, kind: FileType) -> Result<Made, Error> {
    match client.create(path, kind).await {
        Ok(()) => Ok(Made::Created),
        Err(Error::AlreadyExists(_)) => {
            let there = client.stat(path).await?.r#type();
            Ok(if there == kind {
                Made::Existing
            } else {
                Made::Conflict(there)
            })
        }
        Err(error) => Err(error),
    }
}

impl Report {
    /// Counts a finished entry and puts what is below it on the work list.
    ///
    /// # Errors
    /// What ends the mirror: anything but a refusal of this very entry.
    fn add(&mut self, done: Done, waiting: &mut Vec<Task>) -> Result<(), Error> {
        let Done { task, outcome, below } = done;
        match outcome {
            Ok(Made::Created) => self.created += 1,
            Ok(Made::Existing) => self.existing += 1,
            Ok(Made::Conflict(there)) => {
                let conflict = Conflict {
                    path: task.remote,
                    local: task.kind.name(),
                    remote: kind_name(there),
                };
                self.conflicts.push(conflict);
                return Ok(());
            }
            Err(error) if error.is_user_mistake() => {
                self.refusal.get_or_insert(exit_of(&error));
                self.refused.push(Problem {
                    path: task.remote,
                    message: error.to_string(),
                });
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        match task.kind {
            Kind::Directory => self.directories += 1,
            Kind::File | Kind::Symlink | Kind::Special => self.files += 1,
        }
        match below {
            Some(Ok(listing)) => self.take(listing, &task.local, &task.remote, waiting),
            Some(Err(error)) => {
                let path = task.local.to_string_lossy().into_owned();
                self.unreadable.push(Problem {
                    path,
                    message: error.to_string(),
                });
            }
            None => (),
        }
        Ok(())
    }

    /// Puts a directory's entries on the work list, but for those that MinFS cannot hold.
    fn take(&mut self, listing: Listing, local: &Path, remote: &str, waiting: &mut Vec<Task>) {
        self.skipped.non_utf8_names.extend(listing.non_utf8);
        for (name, kind) in listing.entries {
            match kind {
                Kind::Directory | Kind::File => {
                    waiting.push(Task {
                        local: local.join(&name),
                        remote: join(remote, &name),
                        kind,
                    });
                }
                Kind::Symlink | Kind::Special => self.skipped.count(kind),
            }
        }
    }

    fn exit(&self) -> Exit {
        match self.refusal {
            _ if !self.conflicts.is_empty() => Exit::AlreadyExists,
            Some(exit) => exit,
            None if !self.unreadable.is_empty() => Exit::LocalIo,
            None => Exit::Ok,
        }
    }

    fn print(&self, out: &mut Output) {
        if out.json() {
            out.document(self);
            return;
        }
        for name in &self.skipped.non_utf8_names {
            out.remark(format!("skipped: {}: the name is not UTF-8", printable(name)));
        }
        for Conflict { path, local, remote } in &self.conflicts {
            out.remark(format!(
                "conflict: {}: {local} here, {remote} there",
                printable(path)
            ));
        }
        for Problem { path, message } in self.refused.iter().chain(&self.unreadable) {
            out.remark(printable(&format!("{path}: {message}")));
        }
        let Report {
            entries,
            directories,
            files,
            created,
            existing,
            seconds,
            ..
        } = self;
        out.line(format!(
            "{entries} entries ({directories} directories, {files} files; {created} created, {existing} existed) \
             in {seconds:.2} s, {:.0} entries/s",
            self.entries_per_second
        ));
        if let Some(skipped) = self.skipped.sentence() {
            out.line(skipped);
        }
        for (count, what) in [
            (self.conflicts.len(), "entries exist as another kind"),
            (self.refused.len(), "entries refused"),
            (self.unreadable.len(), "local directories not readable"),
        ] {
            if count > 0 {
                out.line(format!("{count} {what}"));
            }
        }
    }
}
