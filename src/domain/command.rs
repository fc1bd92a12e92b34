//! Everything that changes the replicated state: the commands, and what applying one answers.
//!
//! A command is complete: the leader's time, the placement and the limits travel inside it, so that
//! applying it needs nothing but the state. The encodings are in `proto::convert`.

use std::fmt;
use std::net::IpAddr;

use xxhash_rust::xxh3::Xxh3;

use super::ids::{BlockId, InodeId, ServerId};
use super::path::CleanPath;
use super::state::{BlockRun, ServerStatus};

/// A change to the state, as the leader put it into the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// The leader's clock when it proposed the command, Unix milliseconds.
    pub time_ms: i64,
    /// A repeat of a remembered id changes nothing and gets the first answer.
    pub request_id: Option<RequestId>,
    /// What the request id stands for: [`Op::digest`]. 0 says nothing, as in entries of older servers.
    pub digest: u64,
    /// Where it came from, if its client gave no id. Changes nothing in the state.
    pub origin: Option<Origin>,
    /// What to do.
    pub op: Op,
}

/// Where a request without an id came from, so that a repeat of it can be told from a second request
/// (`actors::raft_node::repeats`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The client's address; its port is another one after it has connected again.
    pub peer: IpAddr,
    /// The Raft node id of the MetaServer that took the request.
    pub gateway: u64,
    /// That MetaServer's number for it.
    pub number: u64,
}

/// What a command does.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Creates an empty file or a directory; its parent must exist.
    Create {
        /// Where.
        path: CleanPath,
        /// A directory, or else a file.
        directory: bool,
    },
    /// Deletes a file, an empty directory or, with `recursive`, a whole subtree.
    Delete {
        /// What.
        path: CleanPath,
        /// Whether a directory may have children.
        recursive: bool,
    },
    /// Gives a file new blocks in place of its old ones, and creates it if it is missing.
    Allocate {
        /// Which file.
        path: CleanPath,
        /// Bytes to make room for; more than 0.
        size: u64,
        /// Filled in by the leader; a command without one never enters the log.
        plan: Option<AllocationPlan>,
        /// Keep the blocks, and the inode, apart from the tree until they are finalized.
        staged: bool,
    },
    /// Ends a write: sets size and MD5, frees blocks beyond the size.
    Finalize {
        /// Which file.
        path: CleanPath,
        /// The inode that was written; another one at `path` is refused.
        inode: InodeId,
        /// Bytes written.
        size: u64,
        /// As the client computed it; stored and given back as it is.
        md5: String,
        /// The first block of a staged allocation, whose inode takes the place of what is at `path`.
        staged: Option<BlockId>,
    },
    /// Frees the blocks of writes that were never finalized.
    AbandonWrites {
        /// The first block of each.
        runs: Vec<BlockId>,
    },
    /// Replaces one replica of one block.
    MoveReplica {
        /// Which block.
        block: BlockId,
        /// The DataServer that loses it.
        from: ServerId,
        /// The DataServer that has it now.
        to: ServerId,
    },
    /// Makes a DataServer known, or its new address; it counts as healthy from then on.
    RegisterDataServer {
        /// Its own name for itself.
        id: String,
        /// `host:port`.
        addr: String,
    },
    /// Records what the leader thinks of a DataServer's health.
    SetDataServerStatus {
        /// Which one.
        server: ServerId,
        /// The new status.
        status: ServerStatus,
    },
    /// Forgets garbage that no DataServer holds any more.
    ReleaseGarbage {
        /// The first block of each garbage entry.
        runs: Vec<BlockId>,
    },
    /// Makes garbage of blocks that DataServers hold and no record names.
    Condemn {
        /// Which, and who holds them.
        orphans: Vec<Orphan>,
    },
    /// Frees records of deleted subtrees, at most `limit` of them.
    Reclaim {
        /// Records.
        limit: u32,
    },
}

impl Op {
    /// A number for what a client asked for: the same on every repeat of the request, and another one,
    /// but for one chance in 2^64, for every other request. 0 for the server's own upkeep, which has no
    /// request id.
    ///
    /// It is XXH3-64 of the kind and the parameters, but not of the leader's plan, which is another one
    /// at every try. The replicated state keeps it, so it must not change.
    pub fn digest(&self) -> u64 {
        let mut hash = Xxh3::new();
        let path = match self {
            Op::Create { path, directory } => {
                hash.update(&[1, (*directory).into()]);
                path
            }
            Op::Delete { path, recursive } => {
                hash.update(&[2, (*recursive).into()]);
                path
            }
            Op::Allocate {
                path,
                size,
                plan: _,
                staged,
            } => {
                hash.update(&[3, (*staged).into()]);
                hash.update(&size.to_be_bytes());
                path
            }
            Op::Finalize {
                path,
                inode,
                size,
                md5,
                staged,
            } => {
                hash.update(&[4]);
                // The MD5 is the client's text, of any length: its length keeps it apart from the path.
                let staged = staged.map_or(0, |block| block.0);
                for number in [inode.0, *size, staged, md5.len() as u64] {
                    hash.update(&number.to_be_bytes());
                }
                hash.update(md5.as_bytes());
                path
            }
            Op::AbandonWrites { .. }
            | Op::MoveReplica { .. }
            | Op::RegisterDataServer { .. }
            | Op::SetDataServerStatus { .. }
            | Op::ReleaseGarbage { .. }
            | Op::Condemn { .. }
            | Op::Reclaim { .. } => return 0,
        };
        hash.update(path.as_str().as_bytes());
        hash.digest().max(1)
    }
}

/// A block that DataServers hold and no record names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Its number.
    pub block: BlockId,
    /// The DataServers that reported it; at least one.
    pub holders: Vec<ServerId>,
}

/// Where an allocation's blocks go: the leader's part of [`Op::Allocate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationPlan {
    /// Bytes a block.
    pub block_size: u64,
    /// Replicas a block.
    pub replication: u32,
    /// See [`super::placement`].
    pub servers: Vec<ServerId>,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The new file or directory.
    Created {
        /// Its number.
        inode: InodeId,
    },
    /// It is gone.
    Deleted,
    /// The file's new blocks.
    Allocated {
        /// The file's number.
        inode: InodeId,
        /// Its blocks.
        blocks: BlockRun,
    },
    /// Size and MD5 are set.
    Finalized,
    /// The blocks of abandoned writes are free.
    WritesAbandoned {
        /// How many writes; others were finalized or gone by then.
        writes: u32,
    },
    /// The block's record names the new DataServer.
    ReplicaMoved,
    /// The DataServer is known.
    DataServerRegistered {
        /// By this number.
        server: ServerId,
    },
    /// The status is recorded.
    StatusSet,
    /// The garbage entries are forgotten.
    GarbageReleased,
    /// Blocks without an owner became garbage.
    Condemned {
        /// How many; a record names the others by now, or they were never given out.
        blocks: u32,
    },
    /// Records were freed.
    Reclaimed {
        /// How many.
        records: u32,
        /// Whether deleted subtrees are left.
        more: bool,
    },
}

/// The answer to a command: committed either way.
pub type Applied = Result<Outcome, Refusal>;

/// The rules forbid it; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Which kind of mistake; decides the gRPC status.
    pub kind: RefusalKind,
    /// Lower case, naming the thing: `directory not empty: /a/b`.
    pub message: String,
}

/// The kinds of mistakes that a caller can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The request makes no sense whatever the state.
    InvalidArgument,
    /// What it names is not there.
    NotFound,
    /// What it would make is there.
    AlreadyExists,
    /// The state does not allow it.
    FailedPrecondition,
}

impl Refusal {
    /// The request makes no sense whatever the state.
    pub fn invalid_argument(message: impl Into<String>) -> Self {
        Refusal {
            kind: RefusalKind::InvalidArgument,
            message: message.into(),
        }
    }

    /// What the request names is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Refusal {
            kind: RefusalKind::NotFound,
            message: message.into(),
        }
    }

    /// What the request would make is there.
    pub fn already_exists(message: impl Into<String>) -> Self {
        Refusal {
            kind: RefusalKind::AlreadyExists,
            message: message.into(),
        }
    }

    /// The state does not allow it.
    pub fn failed_precondition(message: impl Into<String>) -> Self {
        Refusal {
            kind: RefusalKind::FailedPrecondition,
            message: message.into(),
        }
    }
}

/// A caller's name for one logical request, the same on every repeat: 1 to 64 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(Box<[u8]>);

impl RequestId {
    /// The longest id, in bytes.
    pub const MAX_BYTES: usize = 64;

    /// Takes an id as the caller sent it.
    ///
    /// # Errors
    /// `InvalidArgument` when it is empty or longer than [`RequestId::MAX_BYTES`].
    pub fn new(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.is_empty() || bytes.len() > Self::MAX_BYTES {
            return Err(Refusal::invalid_argument(format!(
                "request id must have 1 to {} bytes, has {}",
                Self::MAX_BYTES,
                bytes.len()
            )));
        }
        Ok(RequestId(bytes.into()))
    }

    /// The id's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({})", self.0.escape_ascii())
    }
}
