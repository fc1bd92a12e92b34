//! `diff`: names and kinds of a local tree against a remote one, every entry below both roots.
//!
//! A tree that is missing on one side is walked on the other, so that every missing name is printed.
//! What `mirror` skips is not compared: a mirror is followed by a clean diff.

use std::cmp::Ordering;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use super::local::{self, Kind, Listing, Skipped};
use super::output::{Output, kind_name, name_of, printable};
use super::walk;
use super::{Exit, Failure};
use crate::client::{Client, Error};
use crate::proto::dfs::FileType;

/// One name that is not the same on both sides; the path is relative to both roots.
#[derive(Debug, Serialize)]
struct Difference {
    path: String,
    kind: Side,
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Side {
    OnlyLocal,
    OnlyRemote,
    KindDiffers,
}

impl Side {
    fn mark(self) -> char {
        match self {
            Side::OnlyLocal => '<',
            Side::OnlyRemote => '>',
            Side::KindDiffers => '!',
        }
    }
}

/// A directory to be compared: its path below the roots, and where it is.
#[derive(Debug)]
struct Place {
    path: String,
    here: bool,
    there: bool,
}

/// What one directory showed.
#[derive(Default)]
struct Compared {
    names: u64,
    differences: Vec<Difference>,
    skipped: Skipped,
}

pub(super) async fn diff(
    client: &Client,
    out: &mut Output,
    local: &Path,
    remote: &str,
    jobs: usize,
) -> Result<Exit, Failure> {
    local::require_directory(local).await?;
    let visit = |place| compare_directory(client, local, remote, place);
    let root = Place {
        path: String::new(),
        here: true,
        there: true,
    };
    let mut found = 0;
    let mut names = 0;
    let mut all = Vec::new();
    let mut skipped = Skipped::default();
    walk::in_order(root, jobs, visit, |compared: Compared| {
        names += compared.names;
        found += compared.differences.len();
        skipped.symlinks += compared.skipped.symlinks;
        skipped.special_files += compared.skipped.special_files;
        skipped.non_utf8_names.extend(compared.skipped.non_utf8_names);
        if out.json() {
            all.extend(compared.differences);
        } else {
            for Difference { path, kind, .. } in compared.differences {
                out.line(format!("{} {}", kind.mark(), printable(&path)));
            }
        }
        if out.closed() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
    .await?;
    if out.json() {
        out.document(&json!({"differences": all, "compared": names, "skipped": skipped}));
    } else if let Some(skipped) = skipped.sentence() {
        out.remark(skipped);
    }
    Ok(if found == 0 { Exit::Ok } else { Exit::Differences })
}

async fn compare_directory(
    client: &Client,
    local: &Path,
    remote: &str,
    place: Place,
) -> Result<(Compared, Vec<Place>), Failure> {
    let Place { path, here, there } = place;
    let (here, there) = tokio::join!(
        async {
            if here {
                list_local(local, &path).await
            } else {
                Ok(Listing::default())
            }
        },
        async {
            if there {
                list_remote(client, remote, &path).await
            } else {
                Ok(Vec::new())
            }
        },
    );
    Ok(compare(&path, here?, there?))
}

async fn list_local(root: &Path, path: &str) -> Result<Listing, Failure> {
    let directory: PathBuf = if path.is_empty() {
        root.to_path_buf()
    } else {
        root.join(path)
    };
    let listing = local::read_directory(directory.clone()).await;
    listing.map_err(|source| Failure::Local {
        path: directory,
        source,
    })
}

async fn list_remote(client: &Client, root: &str, path: &str) -> Result<Vec<(String, FileType)>, Failure> {
    let directory = if path.is_empty() {
        root.to_string()
    } else {
        super::output::join(root, path)
    };
    let nodes = match client.list(&directory).await {
        // It was there when its parent was listed, and is not any more: so it is missing.
        Err(Error::NotFound(_) | Error::FailedPrecondition(_)) if !path.is_empty() => Vec::new(),
        nodes => nodes?,
    };
    let mut nodes: Vec<_> = nodes
        .into_iter()
        .map(|node| (name_of(&node.path).to_string(), node.r#type()))
        .collect();
    // Servers list in this order; the comparison must not depend on it.
    nodes.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(nodes)
}

/// Merges the two sorted sides of the directory at `path`.
fn compare(path: &str, here: Listing, there: Vec<(String, FileType)>) -> (Compared, Vec<Place>) {
    let mut compared = Compared::default();
    compared.skipped.non_utf8_names = here.non_utf8;
    let mut below = Vec::new();
    let mut here = here.entries.into_iter().peekable();
    let mut there = there.into_iter().peekable();
    loop {
        let order = match (here.peek(), there.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((local, _)), Some((remote, _))) => local.cmp(remote),
        };
        let local = if order.is_le() { here.next() } else { None };
        let remote = if order.is_ge() { there.next() } else { None };
        compared.names += 1;
        let name = match (&local, &remote) {
            (Some((name, _)), _) | (None, Some((name, _))) => name,
            (None, None) => break,
        };
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}/{name}")
        };
        let (local, remote) = (local.map(|(_, kind)| kind), remote.map(|(_, kind)| kind));
        let place = Place {
            path: path.clone(),
            here: local == Some(Kind::Directory),
            there: remote == Some(FileType::Directory),
        };
        if place.here || place.there {
            below.push(place);
        }
        let side = match (local, remote) {
            (Some(kind @ (Kind::Symlink | Kind::Special)), None) => {
                compared.skipped.count(kind);
                compared.names -= 1;
                continue;
            }
            (Some(Kind::Directory), Some(FileType::Directory)) | (Some(Kind::File), Some(FileType::File)) => {
                continue;
            }
            (Some(_), Some(_)) => Side::KindDiffers,
            (Some(_), None) => Side::OnlyLocal,
            (None, _) => Side::OnlyRemote,
        };
        let (local, remote) = (local.map(Kind::name), remote.map(kind_name));
        compared.differences.push(Difference {
            path,
            kind: side,
            local,
            remote,
        });
    }
    (compared, below)
}
