//! Who a data directory belongs to: `<dir>/raft/identity`, and the lock on the directory.
//!
//! Opened first of all, by the wiring; the Raft server checks every call against it, and the peer
//! service claims it for a cluster.
//!
//! Invariant: the incarnation is drawn once in a directory's life and the cluster is written once;
//! both are on the disk before anyone hears of them. One process at a time has the directory.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use xxhash_rust::xxh3::xxh3_64;

use super::log_tail;
use super::types::NodeId;
use crate::durable;

/// The version of the file's format.
const VERSION: &str = "2";

/// The version before it, which had no checksum.
const UNCHECKED: &str = "1";

/// One past the largest incarnation: it stays positive in signed 64-bit integers.
const INCARNATION_LIMIT: NodeId = 1 << 63;

/// The name of a cluster, drawn when it is formed: 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(u128);

impl ClusterId {
    /// A new one.
    pub fn random() -> Self {
        ClusterId(rand::random())
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

/// It has not 32 lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cluster id: {0:?}")]
pub struct InvalidClusterId(String);

impl FromStr for ClusterId {
    type Err = InvalidClusterId;

    fn from_str(text: &str) -> Result<Self, InvalidClusterId> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 32 || !text.bytes().all(hex) {
            return Err(InvalidClusterId(text.chars().take(64).collect()));
        }
        let id = u128::from_str_radix(text, 16).map_err(|_| InvalidClusterId(text.to_owned()))?;
        Ok(ClusterId(id))
    }
}

/// What came of claiming a directory for a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// It was fresh, and belongs to the cluster from now on.
    Claimed,
    /// It belonged to the cluster already.
    AlreadyOurs,
    /// It belongs to this other cluster, and goes on doing so.
    Refused(ClusterId),
}

/// The identity of a data directory. Clones share it; the directory's lock lives as long as the last.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    name: String,
    incarnation: NodeId,
    cluster: Mutex<Option<ClusterId>>,
    _lock: File,
}

impl Identity {
    /// Takes `dir` for the node called `name`, and gives the directory an incarnation if it is new.
    ///
    /// # Errors
    /// Another process uses the directory, it belongs to a node of another name, or its files make no
    /// sense ([`io::ErrorKind::InvalidData`]).
    pub fn open(dir: &Path, name: &str) -> io::Result<Self> {
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("bad node name: {name:?}"),
            ));
        }
        let raft = dir.join("raft");
        durable::create_dir_all(&raft)?;
        let lock = durable::lock_directory(dir)?;
        let path = raft.join("identity");
        let content = match fs::read_to_string(&path) {
            Ok(text) => {
                let content = Content::parse(&text).map_err(|why| invalid(&path, &why))?;
                if content.name != name {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!(
                            "data directory {} belongs to node {}, this is node {name}",
                            dir.display(),
                            content.name
                        ),
                    ));
                }
                // The log was begun before the directory was claimed. A node whose log is gone has forgotten
                // what it voted for.
                if content.cluster.is_some() && !has_log(&raft)? {
                    return Err(invalid(&raft.join("log"), "the log is missing"));
                }
                content
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // A log without an identity would come back under a new one, and vote twice.
                if raft.join("log").exists() {
                    return Err(invalid(&path, "it is missing, but there is a log beside it"));
                }
                let incarnation = rand::random_range(1..INCARNATION_LIMIT);
                let content = Content {
                    name: name.to_owned(),
                    incarnation,
                    cluster: None,
                };
                durable::replace_file(&path, content.to_string().as_bytes())?;
                content
            }
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(invalid(&path, "it is no text")),
            Err(e) => return Err(durable::naming(&path, &e)),
        };
        let Content {
            name,
            incarnation,
            cluster,
        } = content;
        let cluster = Mutex::new(cluster);
        Ok(Identity {
            inner: Arc::new(Inner {
                path,
                name,
                incarnation,
                cluster,
                _lock: lock,
            }),
        })
    }

    /// The operator's name for the node.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The number that tells this directory from an earlier one under the same name: the Raft node id.
    pub fn incarnation(&self) -> NodeId {
        self.inner.incarnation
    }

    /// The cluster it belongs to; none while it is fresh.
    pub fn cluster(&self) -> Option<ClusterId> {
        // The value is replaced whole: a poisoned lock holds a good one.
        *self.inner.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a fresh directory part of `cluster`; it is on the disk before this returns.
    ///
    /// # Errors
    /// It could not be written; the directory is as it was.
    pub fn claim(&self, cluster: ClusterId) -> io::Result<ClaimOutcome> {
        let mut current = self.inner.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        match *current {
            Some(ours) if ours == cluster => Ok(ClaimOutcome::AlreadyOurs),
            Some(ours) => Ok(ClaimOutcome::Refused(ours)),
            None => {
                let content = Content {
                    name: self.inner.name.clone(),
                    incarnation: self.inner.incarnation,
                    cluster: Some(cluster),
                };
                durable::replace_file(&self.inner.path, content.to_string().as_bytes())?;
                *current = Some(cluster);
                Ok(ClaimOutcome::Claimed)
            }
        }
    }
}

fn has_log(raft: &Path) -> io::Result<bool> {
    let dir = raft.join("log");
    Ok(dir.is_dir() && !log_tail::chunks(&dir)?.is_empty())
}

fn invalid(path: &Path, why: &str) -> io::Error {
    durable::damaged(&io::Error::other(format!("{}: {why}", path.display())))
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cluster = self.cluster();
        write!(
            f,
            "Identity({} {} cluster {cluster:?})",
            self.inner.name, self.inner.incarnation
        )
    }
}

/// The file: five lines, `version`, `name`, `incarnation`, `cluster`, which is empty while fresh, and
/// `checksum`, the XXH3-64 of the lines before it.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    name: String,
    incarnation: NodeId,
    cluster: Option<ClusterId>,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Content {
            name, incarnation, ..
        } = self;
        let cluster = self.cluster.map(|id| id.to_string()).unwrap_or_default();
        let lines = format!("version={VERSION}\nname={name}\nincarnation={incarnation}\ncluster={cluster}\n");
        writeln!(f, "{lines}checksum={:016x}", xxh3_64(lines.as_bytes()))
    }
}

impl Content {
    fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        let mut field = |key: &str| {
            let line = lines.next().unwrap_or_default();
            line.strip_prefix(key)
                .and_then(|rest| rest.strip_prefix('='))
                .ok_or_else(|| format!("expected {key}=, found {line:?}"))
        };
        let version = field("version")?;
        if ![VERSION, UNCHECKED].contains(&version) {
            return Err(format!(
                "written by a newer server, or damaged: version {version:?}, this one reads {UNCHECKED} and {VERSION}"
            ));
        }
        let name = field("name")?.to_owned();
        let incarnation = field("incarnation")?;
        let incarnation = match incarnation.parse() {
            Ok(number) if (1..INCARNATION_LIMIT).contains(&number) => number,
            _ => return Err(format!("bad incarnation {incarnation:?}")),
        };
        let cluster = match field("cluster")? {
            "" => None,
            id => Some(id.parse().map_err(|e: InvalidClusterId| e.to_string())?),
        };
        let content = Content {
            name,
            incarnation,
            cluster,
        };
        if version == VERSION && text != content.to_string() {
            return Err("it does not match its checksum".to_owned());
        }
        Ok(content)
    }
}
