//! The replicated state: its records, and the tables that hold them.
//!
//! [`super::namespace`] reads and changes them through [`ReadTables`] and [`Tables`]; `storage`
//! implements both over LMDB.

use super::command::{Applied, Refusal, RequestId};
use super::ids::{BlockId, InodeId, ServerId};

/// A file or directory, filed under `(parent inode, name)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub inode: InodeId,
    /// Last change, Unix milliseconds by the leader's clock.
    pub mtime_ms: i64,
    /// Bytes. Of a directory: the sum of all files below it.
    pub size: u64,
    /// What it is.
    pub kind: EntryKind,
}

/// What an [`Entry`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// It has children, filed under its inode.
    Directory,
    /// It has content.
    File {
        /// As the client computed it; empty until the first write is finalized.
        md5: String,
        /// The first block of its run, if it has blocks.
        blocks: Option<BlockId>,
    },
}

impl Entry {
    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        matches!(self.kind, EntryKind::Directory)
    }
}

/// The blocks of one file: consecutive ids and the rule that places their replicas.
///
/// Storing the rule instead of each block keeps an allocation to one small record however large the
/// file. Replicas that were moved since have records of their own (see [`ReadTables::moved`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// Block `i` of the file is `first + i`.
    pub first: BlockId,
    /// How many blocks; more than 0.
    pub count: u64,
    /// Bytes a block (the last one may be shorter).
    pub block_size: u64,
    /// Replicas a block; at most `servers.len()`.
    pub replication: u32,
    /// Replica `j` of block `i` was placed on `servers[(i + j) % servers.len()]`.
    pub servers: Vec<ServerId>,
}

/// A [`BlockRun`] and the file that owns it, filed under the run's first block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedRun {
    /// The file.
    pub inode: InodeId,
    /// Its blocks.
    pub run: BlockRun,
    /// Whether they are written.
    pub write: WriteState,
}

/// How far the write of a run has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteState {
    /// Allocated, not finalized: DataServers need not have the blocks.
    Open(OpenWrite),
    /// Finalized: from then on every replica should be there.
    Written {
        /// When, Unix milliseconds by the leader's clock.
        at_ms: i64,
    },
}

/// A write that is not finalized, and the name that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenWrite {
    /// When the blocks were allocated, Unix milliseconds by the leader's clock.
    pub since_ms: i64,
    /// The directory.
    pub parent: InodeId,
    /// The file's name in it.
    pub name: String,
    /// The inode is not in the tree before the write is finalized.
    pub staged: bool,
}

/// Blocks that no file owns any more, filed under the first one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Garbage {
    /// The blocks, and where they were placed.
    pub run: BlockRun,
    /// Why they are garbage: the replicated reason without which no block is deleted.
    pub reason: GarbageReason,
    /// Since when, Unix milliseconds by the leader's clock.
    pub since_ms: i64,
}

/// Why blocks became garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GarbageReason {
    /// The file was deleted.
    Deleted,
    /// The file was given new blocks.
    Overwritten,
    /// The file was finalized shorter than it was allocated.
    Truncated,
    /// The write was not finalized for `scheduler.write_lease`.
    Abandoned,
    /// A DataServer held the block for `scheduler.orphan_grace` and no record named it.
    Orphaned,
}

/// A DataServer that has registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataServer {
    /// Its number.
    pub server: ServerId,
    /// Its own name for itself.
    pub id: String,
    /// `host:port`.
    pub addr: String,
    /// What the leader thinks of it.
    pub status: ServerStatus,
}

/// A DataServer's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerStatus {
    /// Beats; takes new blocks.
    Healthy,
    /// Missed its beats for `cluster.heartbeat_timeout`.
    Unhealthy,
    /// Missed them for `cluster.permanent_down_threshold`: its replicas count as lost.
    Down,
}

/// The numbers to draw next, and sizes that would be expensive to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// The next [`InodeId`].
    pub next_inode: u64,
    /// The next [`BlockId`].
    pub next_block: u64,
    /// The next [`ServerId`].
    pub next_server: u32,
    /// Files and directories, the root included; those of a deleted subtree until reclaimed.
    pub inodes: u64,
    /// Sequence number of the oldest remembered request.
    pub first_request: u64,
    /// Sequence number for the next remembered request.
    pub next_request: u64,
}

impl Default for Counters {
    /// Of a state that holds nothing but the root.
    fn default() -> Self {
        Counters {
            next_inode: 2,
            next_block: 1,
            next_server: 1,
            inodes: 1,
            first_request: 0,
            next_request: 0,
        }
    }
}

/// A request whose answer is remembered.
#[derive(Clone, Debug, PartialEq)]
pub struct Remembered {
    /// Where it stands in the order of remembering.
    pub sequence: u64,
    /// The command's time, Unix milliseconds.
    pub time_ms: i64,
    /// What was asked: [`Op::digest`](super::command::Op::digest). 0: not known.
    pub digest: u64,
    /// The first answer.
    pub applied: Applied,
}

impl Remembered {
    /// The answer to a request of this id that asks for what has the digest `digest`: the first answer,
    /// or that the id stands for something else. Where one of the two digests is not known, the id alone
    /// decides.
    pub fn answer(self, digest: u64) -> Applied {
        if digest != 0 && self.digest != 0 && digest != self.digest {
            let why = "the request id was used for another request: an id is for one request and its repeats";
            return Err(Refusal::invalid_argument(why));
        }
        self.applied
    }
}

/// Reading the state.
pub trait ReadTables {
    /// What can go wrong underneath: I/O, a record that does not decode.
    type Error;

    /// The entry called `name` in the directory `parent`.
    fn entry(&self, parent: InodeId, name: &str) -> Result<Option<Entry>, Self::Error>;
    /// Up to `limit` children of `parent` in byte order of their names.
    fn children(&self, parent: InodeId, limit: usize) -> Result<Vec<(String, Entry)>, Self::Error>;
    /// The run that starts at `first`.
    fn run(&self, first: BlockId) -> Result<Option<OwnedRun>, Self::Error>;
    /// The run that `block` lies in.
    fn run_of(&self, block: BlockId) -> Result<Option<OwnedRun>, Self::Error>;
    /// Where the replicas of `block` are, if any was moved since it was placed.
    fn moved(&self, block: BlockId) -> Result<Option<Vec<ServerId>>, Self::Error>;
    /// The DataServer with this number.
    fn server(&self, server: ServerId) -> Result<Option<DataServer>, Self::Error>;
    /// Every DataServer, in the order of their numbers.
    fn servers(&self) -> Result<Vec<DataServer>, Self::Error>;
    /// The counters.
    fn counters(&self) -> Result<Counters, Self::Error>;
    /// Up to `limit` runs in the order of their blocks, from the first that starts at or after `from`.
    fn runs_from(&self, from: BlockId, limit: usize) -> Result<Vec<OwnedRun>, Self::Error>;
    /// The moved ones among `count` blocks from `first` on, in order.
    fn moved_in(&self, first: BlockId, count: u64) -> Result<Vec<(BlockId, Vec<ServerId>)>, Self::Error>;
    /// The garbage that starts at `first`.
    fn garbage(&self, first: BlockId) -> Result<Option<Garbage>, Self::Error>;
    /// The garbage that `block` lies in.
    fn garbage_of(&self, block: BlockId) -> Result<Option<Garbage>, Self::Error>;
    /// Up to `limit` entries of garbage in the order of their blocks, from the first that starts at or
    /// after `from`.
    fn garbage_from(&self, from: BlockId, limit: usize) -> Result<Vec<Garbage>, Self::Error>;
    /// A directory that was deleted but not yet reclaimed.
    fn first_detached(&self) -> Result<Option<InodeId>, Self::Error>;
    /// The answer that was given to a request.
    fn remembered(&self, id: &RequestId) -> Result<Option<Remembered>, Self::Error>;
    /// The request with this sequence number, and the time of its command.
    fn remembered_at(&self, sequence: u64) -> Result<Option<(RequestId, i64)>, Self::Error>;
}

/// Changing the state. Nothing is visible to others before the batch commits as a whole.
pub trait Tables: ReadTables {
    /// Files an entry, replacing one of the same name.
    fn put_entry(&mut self, parent: InodeId, name: &str, entry: &Entry) -> Result<(), Self::Error>;
    /// Removes an entry.
    fn remove_entry(&mut self, parent: InodeId, name: &str) -> Result<(), Self::Error>;
    /// Files a run.
    fn put_run(&mut self, run: &OwnedRun) -> Result<(), Self::Error>;
    /// Removes a run.
    fn remove_run(&mut self, first: BlockId) -> Result<(), Self::Error>;
    /// Records where the replicas of a block are now.
    fn put_moved(&mut self, block: BlockId, servers: &[ServerId]) -> Result<(), Self::Error>;
    /// Forgets the moves of `count` blocks from `first` on.
    fn remove_moved(&mut self, first: BlockId, count: u64) -> Result<(), Self::Error>;
    /// Files a DataServer under its number.
    fn put_server(&mut self, server: &DataServer) -> Result<(), Self::Error>;
    /// Replaces the counters.
    fn put_counters(&mut self, counters: Counters) -> Result<(), Self::Error>;
    /// Files garbage.
    fn put_garbage(&mut self, garbage: &Garbage) -> Result<(), Self::Error>;
    /// Forgets garbage.
    fn remove_garbage(&mut self, first: BlockId) -> Result<(), Self::Error>;
    /// Marks the children of a deleted directory for reclaiming.
    fn put_detached(&mut self, directory: InodeId) -> Result<(), Self::Error>;
    /// A deleted directory has no children left.
    fn remove_detached(&mut self, directory: InodeId) -> Result<(), Self::Error>;
    /// Remembers the answer to a request.
    fn put_remembered(&mut self, id: &RequestId, request: &Remembered) -> Result<(), Self::Error>;
    /// Forgets a request.
    fn remove_remembered(&mut self, id: &RequestId, sequence: u64) -> Result<(), Self::Error>;
}
