//! `mkdir`, `touch`, `ls`, `stat`, `rm`: single paths and listings.

use std::ops::ControlFlow;

use serde_json::json;

use super::output::{Entry, Output, printable};
use super::walk;
use super::{Exit, Failure};
use crate::client::{Client, Error};
use crate::proto::dfs::FileType;

pub(super) async fn mkdir(
    client: &Client,
    out: &mut Output,
    paths: &[String],
    parents: bool,
) -> Result<Exit, Failure> {
    let mut created = Vec::new();
    for path in paths {
        if parents {
            created.extend(client.create_with_parents(path).await?);
        } else {
            client.create(path, FileType::Directory).await?;
            created.push(path.clone());
        }
    }
    report(out, "created", &created)
}

pub(super) async fn touch(client: &Client, out: &mut Output, paths: &[String]) -> Result<Exit, Failure> {
    for path in paths {
        client.create(path, FileType::File).await?;
    }
    report(out, "created", paths)
}

pub(super) async fn remove(
    client: &Client,
    out: &mut Output,
    paths: &[String],
    recursive: bool,
) -> Result<Exit, Failure> {
    for path in paths {
        client.delete(path, recursive).await?;
    }
    report(out, "removed", paths)
}

/// What went well is silent, but for scripts that read JSON.
fn report(out: &mut Output, what: &str, paths: &[String]) -> Result<Exit, Failure> {
    if out.json() {
        out.document(&json!({ what: paths }));
    }
    Ok(Exit::Ok)
}

pub(super) async fn stat(client: &Client, out: &mut Output, path: &str) -> Result<Exit, Failure> {
    let stat = client.stat(path).await?;
    let replicas = stat.replica_data.clone();
    let shown = if stat.path.is_empty() {
        path.to_string()
    } else {
        stat.path.clone()
    };
    let entry = Entry::new(shown, stat);
    if out.json() {
        let replicas: Vec<_> = replicas
            .iter()
            .map(|replica| json!({"block": replica.id, "server": replica.ds_node, "path": replica.path}))
            .collect();
        let mut document = json!(entry);
        document["replicas"] = json!(replicas);
        out.document(&document);
        return Ok(Exit::Ok);
    }
    out.line(format!("path:     {}", printable(&entry.path)));
    out.line(format!("type:     {}", super::output::kind_name(entry.file_type)));
    out.line(format!("size:     {}", entry.size));
    out.line(format!("modified: {}", entry.mtime));
    if !entry.md5.is_empty() {
        out.line(format!("md5:      {}", printable(&entry.md5)));
    }
    for replica in replicas {
        out.line(printable(&format!(
            "replica:  block {} on {}",
            replica.id, replica.ds_node
        )));
    }
    Ok(Exit::Ok)
}

pub(super) async fn list(client: &Client, out: &mut Output, path: &str, long: bool) -> Result<Exit, Failure> {
    let entries = list_or_stat(client, path).await?;
    if out.json() {
        out.document(&json!({"path": path, "entries": entries}));
    } else {
        print(out, &entries, long, |entry| &entry.name);
    }
    Ok(Exit::Ok)
}

/// A file is listed as itself, as in other shells.
async fn list_or_stat(client: &Client, path: &str) -> Result<Vec<Entry>, Error> {
    match client.list(path).await {
        Ok(nodes) => Ok(nodes.into_iter().map(|node| Entry::child(path, node)).collect()),
        Err(not_a_directory @ Error::FailedPrecondition(_)) => {
            let stat = client.stat(path).await?;
            match stat.r#type() {
                FileType::File => Ok(vec![Entry::new(path.to_string(), stat)]),
                FileType::Directory | FileType::Volume | FileType::Unknown => Err(not_a_directory),
            }
        }
        Err(error) => Err(error),
    }
}

/// A directory's entries together, then those of its subdirectories. A tree that changes meanwhile is
/// shown as each listing found it.
pub(super) async fn list_tree(
    client: &Client,
    out: &mut Output,
    path: &str,
    long: bool,
    jobs: usize,
) -> Result<Exit, Failure> {
    let visit = async |directory: String| {
        let entries = match list_or_stat(client, &directory).await {
            Err(Error::NotFound(_)) if directory != path => Vec::new(),
            entries => entries?,
        };
        let below = entries
            .iter()
            .filter(|entry| entry.file_type == FileType::Directory);
        let below = below.map(|entry| entry.path.clone()).collect();
        Ok::<_, Error>((entries, below))
    };
    let mut all = Vec::new();
    walk::in_order(path.to_string(), jobs, visit, |entries| {
        if out.json() {
            all.extend(entries);
        } else {
            print(out, &entries, long, |entry| &entry.path);
        }
        if out.closed() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
    .await?;
    if out.json() {
        out.document(&json!({"path": path, "entries": all}));
    }
    Ok(Exit::Ok)
}

fn print(out: &mut Output, entries: &[Entry], long: bool, label: impl Fn(&Entry) -> &String) {
    let digits = |entry: &Entry| entry.size.to_string().len();
    let width = entries.iter().map(digits).max().unwrap_or(0);
    for entry in entries {
        let label = printable(label(entry));
        out.line(if long { entry.long(&label, width) } else { label });
    }
}
