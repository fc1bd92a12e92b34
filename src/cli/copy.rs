//! `cp`: files and whole trees to, from and inside the cluster, several files at once.
//!
//! As in `mirror`, the order is only partial: an entry is copied after its directory was made, and the
//! work list is a stack. A file that cannot be copied does not keep the others; but when MetaServers are not
//! there, nothing more is begun.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::Serialize;

use super::arguments::REMOTE;
use super::local::{self, Kind, Skipped};
use super::output::{Output, join, name_of, printable};
use super::progress::{Progress, Rate};
use super::transfer::{self, UNVERIFIED, local_failure, look, refuse_if};
use super::{Exit, Failure};
use crate::client::files::{Content, Files};
use crate::client::{Client, Error};
use crate::domain::path::CleanPath;
use crate::proto::dfs::FileType;

/// A path, here or in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Local(PathBuf),
    /// Clean.
    Remote(String),
}

impl Place {
    fn parse(typed: &OsString) -> Result<Self, Failure> {
        match typed.to_str().and_then(|typed| typed.strip_prefix(REMOTE)) {
            None => Ok(Place::Local(PathBuf::from(typed))),
            Some(path) => match CleanPath::parse(path) {
                Ok(path) => Ok(Place::Remote(path.as_str().to_string())),
                Err(refusal) => Err(Error::InvalidArgument(refusal.to_string()).into()),
            },
        }
    }

    fn shown(&self) -> String {
        match self {
            Place::Local(path) => path.to_string_lossy().into_owned(),
            Place::Remote(path) => format!("{REMOTE}{path}"),
        }
    }

    fn is_local(&self) -> bool {
        matches!(self, Place::Local(_))
    }

    fn child(&self, name: &str) -> Self {
        match self {
            Place::Local(path) => Place::Local(path.join(name)),
            Place::Remote(path) => Place::Remote(join(path, name)),
        }
    }

    /// The last part. Without one (`/`, `.`), what the place holds is meant and not the place.
    fn name(&self) -> Result<Option<String>, Failure> {
        match self {
            Place::Remote(path) => Ok(Some(name_of(path).to_string()).filter(|name| !name.is_empty())),
            Place::Local(path) => match path.file_name().map(|name| name.to_str()) {
                None => Ok(None),
                Some(Some(name)) => Ok(Some(name.to_string())),
                Some(None) => {
                    let error = io::Error::new(io::ErrorKind::InvalidInput, "the name is not UTF-8");
                    Err(local_failure(path, error))
                }
            },
        }
    }

    /// What is there; a local link is followed.
    async fn kind(&self, client: &Client) -> Result<Option<Kind>, Failure> {
        match self {
            Place::Remote(path) => Ok(look(client, path).await?.map(|stat| kind_of(stat.r#type()))),
            Place::Local(path) => match tokio::fs::metadata(path).await {
                Ok(there) => Ok(Some(Kind::of(there.file_type()))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(local_failure(path, error)),
            },
        }
    }

    fn missing(&self) -> Failure {
        match self {
            Place::Remote(path) => Error::NotFound(format!("not found: {path}")).into(),
            Place::Local(path) => local_failure(path, io::ErrorKind::NotFound.into()),
        }
    }
}

fn kind_of(kind: FileType) -> Kind {
    match kind {
        FileType::Directory => Kind::Directory,
        FileType::File => Kind::File,
        FileType::Volume | FileType::Unknown => Kind::Special,
    }
}

/// Something to be copied: a file, or a directory with what is below it.
#[derive(Debug)]
struct Task {
    from: Place,
    to: Place,
    directory: bool,
}

/// What became of one.
#[derive(Debug, Default)]
struct Done {
    bytes: u64,
    under_replicated_blocks: u64,
    unverified: bool,
    directory: bool,
    below: Vec<Task>,
    skipped: Skipped,
}

#[derive(Debug, Serialize)]
struct Problem {
    path: String,
    kind: &'static str,
    message: String,
}

/// What a copy did; the JSON document.
#[derive(Debug, Default, Serialize)]
struct Report {
    files: u64,
    directories: u64,
    bytes: u64,
    seconds: f64,
    bytes_per_second: f64,
    under_replicated_blocks: u64,
    /// Files without a digest, of which only the length was verified.
    unverified_files: u64,
    skipped: Skipped,
    failed: Vec<Problem>,
    /// Whether it ended before everything was tried.
    stopped: bool,
    #[serde(skip)]
    exit: Option<Exit>,
}

/// One run of `cp`.
struct Copying<'a> {
    client: &'a Client,
    files: Files,
    no_clobber: bool,
    progress: Progress,
}

pub(super) async fn copy(
    client: &Client,
    out: &mut Output,
    places: &[OsString],
    (recursive, no_clobber): (bool, bool),
    jobs: usize,
) -> Result<Exit, Failure> {
    let places = places.iter().map(Place::parse).collect::<Result<Vec<_>, _>>()?;
    let Some((to, sources)) = places.split_last() else {
        return Err(Failure::Usage("nothing to copy".to_string()));
    };
    if to.is_local() && sources.iter().any(Place::is_local) {
        let message = format!("cp is for the cluster: write {REMOTE}/path for its side");
        return Err(Failure::Usage(message));
    }
    let there = to.kind(client).await?;
    if there != Some(Kind::Directory) && sources.len() > 1 {
        let message = format!("{} is no directory, and there are several sources", to.shown());
        return Err(Failure::Usage(message));
    }
    let mut report = Report::default();
    let mut waiting = Vec::new();
    for from in sources {
        match begin(client, from, to, there, recursive).await {
            Ok(task) => waiting.push(task),
            Err(failure) => report.fail(from, &failure),
        }
    }
    // The stack gives back the last one first.
    waiting.reverse();
    let copying = Copying {
        client,
        files: transfer::files(client, jobs),
        no_clobber,
        progress: Progress::new(out),
    };
    let mut running = FuturesUnordered::new();
    loop {
        while !report.stopped && running.len() < jobs {
            match waiting.pop() {
                Some(task) => running.push(copying.perform(task)),
                None => break,
            }
        }
        // What is under way is waited for: an unknown outcome must not go unsaid.
        let Some((task, done)) = running.next().await else {
            break;
        };
        match done {
            Ok(done) => report.add(done, &mut waiting),
            Err(failure) => report.fail(&task.from, &failure),
        }
    }
    drop(running);
    let rate = copying.progress.finish(report.bytes);
    report.print(out, rate);
    Ok(report.exit.unwrap_or(Exit::Ok))
}

/// Where one source goes.
async fn begin(
    client: &Client,
    from: &Place,
    to: &Place,
    there: Option<Kind>,
    recursive: bool,
) -> Result<Task, Failure> {
    let kind = from.kind(client).await?.ok_or_else(|| from.missing())?;
    let directory = kind == Kind::Directory;
    if directory && !recursive {
        let message = format!("a directory, copied with -r only: {}", from.shown());
        return Err(Error::FailedPrecondition(message).into());
    }
    if directory && matches!(there, Some(Kind::File | Kind::Special | Kind::Symlink)) {
        return Err(Error::FailedPrecondition(format!("not a directory: {}", to.shown())).into());
    }
    let to = match (there, from.name()?) {
        (Some(Kind::Directory), Some(name)) => to.child(&name),
        _ => to.clone(),
    };
    if let (Place::Remote(from), Place::Remote(to)) = (from, &to)
        && (to == from || directory && to.starts_with(&format!("{}/", from.trim_end_matches('/'))))
    {
        return Err(Failure::Usage(format!(
            "{from} cannot be copied into itself: {to}"
        )));
    }
    Ok(Task {
        from: from.clone(),
        to,
        directory,
    })
}

impl Copying<'_> {
    async fn perform(&self, task: Task) -> (Task, Result<Done, Failure>) {
        let done = match task.directory {
            true => self.directory(&task).await,
            false => self.file(&task).await,
        };
        (task, done)
    }

    async fn file(&self, task: &Task) -> Result<Done, Failure> {
        if self.no_clobber && task.to.kind(self.client).await?.is_some() {
            refuse_if(true, &task.to.shown())?;
        }
        let moved = |bytes| self.progress.moved(bytes);
        let name = printable(name_of(&task.from.shown()));
        let expect = |size| self.progress.expect(size, &name);
        let size = |size| u64::try_from(size).unwrap_or(0);
        let done = match (&task.from, &task.to) {
            (Place::Local(from), Place::Remote(to)) => {
                let content = Content::open(from).await?;
                expect(content.size);
                let stored = self.files.put(content, to, &moved).await?;
                Done {
                    bytes: stored.size,
                    under_replicated_blocks: stored.under_replicated_blocks,
                    ..Done::default()
                }
            }
            (Place::Remote(from), Place::Local(to)) => {
                expect(size(self.files.stat_file(from).await?.size));
                let fetched = self.files.get(from, to, &moved).await?;
                Done {
                    bytes: fetched.size,
                    unverified: !fetched.verified,
                    ..Done::default()
                }
            }
            (Place::Remote(from), Place::Remote(to)) => {
                expect(size(self.files.stat_file(from).await?.size));
                let stored = self.files.copy(from, to, &moved).await?;
                Done {
                    bytes: stored.size,
                    under_replicated_blocks: stored.under_replicated_blocks,
                    ..Done::default()
                }
            }
            (Place::Local(from), Place::Local(_)) => {
                return Err(Failure::Usage(format!(
                    "{} is not in the cluster",
                    from.display()
                )));
            }
        };
        Ok(done)
    }

    /// Makes the directory, and finds what is to be copied into it.
    async fn directory(&self, task: &Task) -> Result<Done, Failure> {
        self.make(&task.to).await?;
        let mut done = Done {
            directory: true,
            ..Done::default()
        };
        let mut take = |name: &str, kind| match kind {
            Kind::Directory | Kind::File => done.below.push(Task {
                from: task.from.child(name),
                to: task.to.child(name),
                directory: kind == Kind::Directory,
            }),
            Kind::Symlink | Kind::Special => done.skipped.count(kind),
        };
        match &task.from {
            Place::Local(path) => {
                let listing = local::read_directory(path.clone()).await;
                let listing = listing.map_err(|error| local_failure(path, error))?;
                for (name, kind) in listing.entries {
                    take(&name, kind);
                }
                done.skipped.non_utf8_names = listing.non_utf8;
            }
            Place::Remote(path) => {
                for node in self.client.list(path).await? {
                    let name = name_of(&node.path);
                    // Nothing may be written outside of the directory, whatever a server says.
                    if name.is_empty() || name == "." || name == ".." {
                        let message = format!("{path} lists a name that cannot be: {name:?}");
                        return Err(Error::FailedPrecondition(message).into());
                    }
                    take(name, kind_of(node.r#type()));
                }
            }
        }
        // The stack gives back the last one first.
        done.below.reverse();
        Ok(done)
    }

    /// A directory that is there is fine.
    async fn make(&self, place: &Place) -> Result<(), Failure> {
        let taken = match place {
            Place::Local(path) => match tokio::fs::create_dir(path).await {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => local_failure(path, error),
                Err(error) => return Err(local_failure(path, error)),
            },
            Place::Remote(path) => match self.client.create(path, FileType::Directory).await {
                Ok(()) => return Ok(()),
                Err(taken @ Error::AlreadyExists(_)) => taken.into(),
                Err(error) => return Err(error.into()),
            },
        };
        match place.kind(self.client).await? {
            Some(Kind::Directory) => Ok(()),
            _ => Err(taken),
        }
    }
}

impl Report {
    fn add(&mut self, done: Done, waiting: &mut Vec<Task>) {
        match done.directory {
            true => self.directories += 1,
            false => self.files += 1,
        }
        self.bytes += done.bytes;
        self.under_replicated_blocks += done.under_replicated_blocks;
        self.unverified_files += u64::from(done.unverified);
        self.skipped.add(done.skipped);
        waiting.extend(done.below);
    }

    fn fail(&mut self, from: &Place, failure: &Failure) {
        self.exit.get_or_insert(failure.exit());
        self.failed.push(Problem {
            path: from.shown(),
            kind: failure.kind(),
            message: failure.to_string(),
        });
        self.stopped |= failure.is_of_the_cluster();
    }

    fn print(&mut self, out: &mut Output, rate: Rate) {
        (self.seconds, self.bytes_per_second) = (rate.seconds, rate.bytes_per_second);
        if out.json() {
            out.document(self);
            return;
        }
        for name in &self.skipped.non_utf8_names {
            out.remark(format!("skipped: {}: the name is not UTF-8", printable(name)));
        }
        for Problem { path, message, .. } in &self.failed {
            out.remark(printable(&format!("{path}: {message}")));
        }
        if self.stopped {
            out.remark("stopped: the MetaServers do not answer as they should");
        }
        transfer::remark_on_replicas(out, self.under_replicated_blocks);
        if self.unverified_files > 0 {
            out.remark(format!("{} files: {UNVERIFIED}", self.unverified_files));
        }
        let Report {
            files,
            directories,
            bytes,
            ..
        } = self;
        out.line(format!(
            "{files} files, {directories} directories, {bytes} bytes {rate}"
        ));
        if let Some(skipped) = self.skipped.sentence() {
            out.line(skipped);
        }
        if !self.failed.is_empty() {
            out.line(format!("{} not copied", self.failed.len()));
        }
    }
}
