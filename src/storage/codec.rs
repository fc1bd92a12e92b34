//! The encodings of records: a version byte, then protobuf. Compact, free of the machine's byte
//! order, and open to new fields. Keys are in [`super::tables`].

use prost::Message;

use super::StorageError;
use crate::domain::ids::{BlockId, InodeId, ServerId};
use crate::domain::state::{
    Counters, DataServer, Entry, EntryKind, Garbage, GarbageReason, OpenWrite, OwnedRun, Remembered,
    WriteState,
};
use crate::proto::convert::{self, DecodeError};
use crate::proto::raft as pb;

/// The version byte that records begin with. Older ones are read: 2 added how far a run's write has
/// come; a run of version 1 counts as written long ago.
pub const RECORD_VERSION: u8 = 2;

#[derive(Clone, PartialEq, Message)]
struct EntryRecord {
    #[prost(uint64, tag = "1")]
    inode: u64,
    #[prost(int64, tag = "2")]
    mtime_ms: i64,
    #[prost(uint64, tag = "3")]
    size: u64,
    #[prost(bool, tag = "4")]
    directory: bool,
    #[prost(string, tag = "5")]
    md5: String,
    /// 0: no blocks.
    #[prost(uint64, tag = "6")]
    blocks: u64,
}

#[derive(Clone, PartialEq, Message)]
struct RunRecord {
    #[prost(uint64, tag = "1")]
    inode: u64,
    #[prost(message, optional, tag = "2")]
    run: Option<pb::BlockRun>,
    /// Absent: it is written.
    #[prost(message, optional, tag = "3")]
    open: Option<OpenRecord>,
    #[prost(int64, tag = "4")]
    written_ms: i64,
}

#[derive(Clone, PartialEq, Message)]
struct OpenRecord {
    #[prost(int64, tag = "1")]
    since_ms: i64,
    #[prost(uint64, tag = "2")]
    parent: u64,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(bool, tag = "4")]
    staged: bool,
}

#[derive(Clone, PartialEq, Message)]
struct GarbageRecord {
    #[prost(message, optional, tag = "1")]
    run: Option<pb::BlockRun>,
    #[prost(uint32, tag = "2")]
    reason: u32,
    #[prost(int64, tag = "3")]
    since_ms: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ServersRecord {
    #[prost(uint32, repeated, tag = "1")]
    servers: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct DataServerRecord {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    addr: String,
    #[prost(enumeration = "pb::DataServerStatus", tag = "3")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct CountersRecord {
    #[prost(uint64, tag = "1")]
    next_inode: u64,
    #[prost(uint64, tag = "2")]
    next_block: u64,
    #[prost(uint32, tag = "3")]
    next_server: u32,
    #[prost(uint64, tag = "4")]
    inodes: u64,
    #[prost(uint64, tag = "5")]
    first_request: u64,
    #[prost(uint64, tag = "6")]
    next_request: u64,
}

#[derive(Clone, PartialEq, Message)]
struct RememberedRecord {
    #[prost(uint64, tag = "1")]
    sequence: u64,
    #[prost(int64, tag = "2")]
    time_ms: i64,
    #[prost(message, optional, tag = "3")]
    outcome: Option<pb::Outcome>,
    // Only log entries of version 3 bring one, which no server that does not know it applies: so no
    // version of the record tells of it, and the same entry writes the same bytes everywhere.
    #[prost(fixed64, tag = "4")]
    digest: u64,
}

/// Encodes a message behind the version byte.
pub fn encode(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + message.encoded_len());
    bytes.push(RECORD_VERSION);
    // Writing to a vector cannot run out of room.
    let _ = message.encode(&mut bytes);
    bytes
}

/// Decodes a message behind the version byte. `what` names the record in errors.
pub fn decode<M: Message + Default>(what: &str, bytes: &[u8]) -> Result<M, StorageError> {
    let failed = |source| StorageError::Decode {
        what: what.to_owned(),
        source,
    };
    match bytes.split_first() {
        Some((1..=RECORD_VERSION, body)) => M::decode(body).map_err(|error| failed(error.into())),
        Some((0, _)) => Err(failed(DecodeError::Invalid("encoding version 0".to_owned()))),
        Some((&found, _)) => Err(failed(DecodeError::NewerVersion {
            found: found.into(),
            known: RECORD_VERSION.into(),
        })),
        None => Err(failed(DecodeError::Invalid("empty record".to_owned()))),
    }
}

fn need<T>(what: &str, part: Option<T>) -> Result<T, StorageError> {
    part.ok_or_else(|| StorageError::Corrupt(format!("{what}: record without its content")))
}

fn run(what: &str, run: Option<pb::BlockRun>) -> Result<crate::domain::state::BlockRun, StorageError> {
    convert::run_from_proto(need(what, run)?).map_err(|source| StorageError::Decode {
        what: what.to_owned(),
        source,
    })
}

pub fn encode_entry(entry: &Entry) -> Vec<u8> {
    let (directory, md5, blocks) = match &entry.kind {
        EntryKind::Directory => (true, String::new(), 0),
        EntryKind::File { md5, blocks } => (false, md5.clone(), blocks.map_or(0, |block| block.0)),
    };
    let Entry {
        inode,
        mtime_ms,
        size,
        ..
    } = *entry;
    encode(&EntryRecord {
        inode: inode.0,
        mtime_ms,
        size,
        directory,
        md5,
        blocks,
    })
}

pub fn decode_entry(bytes: &[u8]) -> Result<Entry, StorageError> {
    let record: EntryRecord = decode("directory entry", bytes)?;
    let kind = match record.directory {
        true => EntryKind::Directory,
        false => EntryKind::File {
            md5: record.md5,
            blocks: (record.blocks != 0).then_some(BlockId(record.blocks)),
        },
    };
    Ok(Entry {
        inode: InodeId(record.inode),
        mtime_ms: record.mtime_ms,
        size: record.size,
        kind,
    })
}

pub fn encode_run(owned: &OwnedRun) -> Vec<u8> {
    let (open, written_ms) = match &owned.write {
        WriteState::Written { at_ms } => (None, *at_ms),
        WriteState::Open(OpenWrite {
            since_ms,
            parent,
            name,
            staged,
        }) => {
            let open = OpenRecord {
                since_ms: *since_ms,
                parent: parent.0,
                name: name.clone(),
                staged: *staged,
            };
            (Some(open), 0)
        }
    };
    encode(&RunRecord {
        inode: owned.inode.0,
        run: Some(convert::run_to_proto(&owned.run)),
        open,
        written_ms,
    })
}

pub fn decode_run(bytes: &[u8]) -> Result<OwnedRun, StorageError> {
    let record: RunRecord = decode("block run", bytes)?;
    Ok(OwnedRun {
        inode: InodeId(record.inode),
        run: run("block run", record.run)?,
        write: match record.open {
            None => WriteState::Written {
                at_ms: record.written_ms,
            },
            Some(open) => WriteState::Open(OpenWrite {
                since_ms: open.since_ms,
                parent: InodeId(open.parent),
                name: open.name,
                staged: open.staged,
            }),
        },
    })
}

pub fn encode_garbage(garbage: &Garbage) -> Vec<u8> {
    let reason = match garbage.reason {
        GarbageReason::Deleted => 1,
        GarbageReason::Overwritten => 2,
        GarbageReason::Truncated => 3,
        GarbageReason::Abandoned => 4,
        GarbageReason::Orphaned => 5,
    };
    let run = Some(convert::run_to_proto(&garbage.run));
    encode(&GarbageRecord {
        run,
        reason,
        since_ms: garbage.since_ms,
    })
}

pub fn decode_garbage(bytes: &[u8]) -> Result<Garbage, StorageError> {
    let record: GarbageRecord = decode("garbage", bytes)?;
    let reason = match record.reason {
        1 => GarbageReason::Deleted,
        2 => GarbageReason::Overwritten,
        3 => GarbageReason::Truncated,
        4 => GarbageReason::Abandoned,
        5 => GarbageReason::Orphaned,
        other => return Err(StorageError::Corrupt(format!("garbage: unknown reason {other}"))),
    };
    Ok(Garbage {
        run: run("garbage", record.run)?,
        reason,
        since_ms: record.since_ms,
    })
}

pub fn encode_servers(servers: &[ServerId]) -> Vec<u8> {
    encode(&ServersRecord {
        servers: servers.iter().map(|server| server.0).collect(),
    })
}

pub fn decode_servers(bytes: &[u8]) -> Result<Vec<ServerId>, StorageError> {
    let record: ServersRecord = decode("moved block", bytes)?;
    Ok(record.servers.into_iter().map(ServerId).collect())
}

pub fn encode_data_server(server: &DataServer) -> Vec<u8> {
    let status = convert::status_to_proto(server.status).into();
    encode(&DataServerRecord {
        id: server.id.clone(),
        addr: server.addr.clone(),
        status,
    })
}

pub fn decode_data_server(server: ServerId, bytes: &[u8]) -> Result<DataServer, StorageError> {
    let record: DataServerRecord = decode("DataServer", bytes)?;
    let status = convert::status_from_proto(record.status).map_err(|source| StorageError::Decode {
        what: format!("DataServer {server}"),
        source,
    })?;
    Ok(DataServer {
        server,
        id: record.id,
        addr: record.addr,
        status,
    })
}

pub fn encode_counters(counters: Counters) -> Vec<u8> {
    let Counters {
        next_inode,
        next_block,
        next_server,
        inodes,
        first_request,
        next_request,
    } = counters;
    encode(&CountersRecord {
        next_inode,
        next_block,
        next_server,
        inodes,
        first_request,
        next_request,
    })
}

pub fn decode_counters(bytes: &[u8]) -> Result<Counters, StorageError> {
    let CountersRecord {
        next_inode,
        next_block,
        next_server,
        inodes,
        first_request,
        next_request,
    } = decode("counters", bytes)?;
    Ok(Counters {
        next_inode,
        next_block,
        next_server,
        inodes,
        first_request,
        next_request,
    })
}

pub fn encode_remembered(request: &Remembered) -> Vec<u8> {
    encode(&RememberedRecord {
        sequence: request.sequence,
        time_ms: request.time_ms,
        outcome: Some(convert::applied_to_proto(&request.applied)),
        digest: request.digest,
    })
}

pub fn decode_remembered(bytes: &[u8]) -> Result<Remembered, StorageError> {
    let record: RememberedRecord = decode("remembered request", bytes)?;
    let outcome = need("remembered request", record.outcome)?;
    let applied = convert::applied_from_proto(outcome).map_err(|source| StorageError::Decode {
        what: "remembered request".to_owned(),
        source,
    })?;
    Ok(Remembered {
        sequence: record.sequence,
        time_ms: record.time_ms,
        digest: record.digest,
        applied,
    })
}
