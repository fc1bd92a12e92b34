//! What Raft asks of the state machine, as messages. The store actor answers them.

use std::io;
use std::path::PathBuf;

use actix::Message;

use super::types::{BatchOutcome, Entry, LogId, SnapshotMeta, StoredMembership};

/// Which entries have been applied, and the last membership among them.
#[derive(Debug, Message)]
#[rtype(result = "io::Result<AppliedState>")]
pub struct GetAppliedState;

/// The answer to [`GetAppliedState`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AppliedState {
    /// The last applied entry.
    pub last_applied: Option<LogId>,
    /// The membership as of that entry.
    pub membership: StoredMembership,
}

/// Applies committed entries, in order, in one transaction: effects, applied index and membership
/// become durable together or not at all. Answers one outcome an entry.
///
/// # Errors
/// `StorageFull`: nothing was applied, and it may be asked again. Any other error is fatal: the node must
/// stop, since its state no longer follows the log.
#[derive(Clone, Debug, Message)]
#[rtype(result = "io::Result<Vec<BatchOutcome>>")]
pub struct ApplyEntries(pub Vec<Entry>);

/// Makes a snapshot of the state as it is when the message is handled, off the hot path. It is on
/// disk, checksummed and the current one when the answer comes.
///
/// # Errors
/// Nothing is left of it then. `StorageFull` when there is no room for it.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "io::Result<Snapshot>")]
pub struct BuildSnapshot;

/// Replaces the state with a received snapshot, and makes it the current one. Its file is moved away
/// before the answer: what is left under the temporary name afterwards is removed.
///
/// # Errors
/// `InvalidData` when the file does not match its checksum; the old state stays. `StorageFull`: so it does,
/// the file is where it was, and it may be asked again.
#[derive(Clone, Debug, Message)]
#[rtype(result = "io::Result<()>")]
pub struct InstallSnapshot(pub Snapshot);

/// The newest snapshot on disk, if there is one.
#[derive(Debug, Message)]
#[rtype(result = "io::Result<Option<Snapshot>>")]
pub struct GetCurrentSnapshot;

/// A snapshot: what it covers, and its data.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The last entry and membership that it covers.
    pub meta: SnapshotMeta,
    /// Its data.
    pub data: SnapshotData,
}

/// The data of a snapshot: a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotData {
    /// Where it lies. A received one lies in the snapshot folder under a temporary name.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// XXH3-64 of its bytes.
    pub checksum: u64,
    /// The version of the state's encoding.
    pub version: u32,
    /// The state's hash, 16 bytes; empty before version 3.
    pub state_hash: Vec<u8>,
}
