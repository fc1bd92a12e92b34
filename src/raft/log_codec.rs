//! What a record of the Raft log looks like on the disk.
//!
//! Called by the log store, through raft-log, which puts a type in front of a record and a checksum
//! behind it. Big-endian throughout. Golden bytes in the tests hold it still: a change here needs a
//! new [`FORMAT`] and a reader for the old one.

use std::io::{self, Read};

use bytes::Bytes;
use raft_log::codeq::{Decode, Encode};

use super::types::{Batch, EntryPayload, LeaderId, LogId, Membership, Vote};
use crate::proto::raft as pb;

/// The version of these encodings, kept in every chunk of the log.
pub(super) const FORMAT: u32 = 1;

/// Term, node and index, 8 bytes each, big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DiskLogId {
    term: u64,
    node: u64,
    pub(super) index: u64,
}

impl From<LogId> for DiskLogId {
    fn from(id: LogId) -> Self {
        DiskLogId {
            term: id.leader_id.term,
            node: id.leader_id.node_id,
            index: id.index,
        }
    }
}

impl From<DiskLogId> for LogId {
    fn from(id: DiskLogId) -> Self {
        LogId {
            leader_id: LeaderId {
                term: id.term,
                node_id: id.node,
            },
            index: id.index,
        }
    }
}

impl Encode for DiskLogId {
    fn encode<W: io::Write>(&self, mut w: W) -> io::Result<usize> {
        Ok(self.term.encode(&mut w)? + self.node.encode(&mut w)? + self.index.encode(&mut w)?)
    }
}

impl Decode for DiskLogId {
    fn decode<R: Read>(mut r: R) -> io::Result<Self> {
        let term = u64::decode(&mut r)?;
        let node = u64::decode(&mut r)?;
        let index = u64::decode(&mut r)?;
        Ok(DiskLogId { term, node, index })
    }
}

/// Term and node, 8 bytes each, big-endian, and one byte that is 1 when a majority gave the vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) struct DiskVote {
    term: u64,
    node: u64,
    committed: bool,
}

impl From<Vote> for DiskVote {
    fn from(vote: Vote) -> Self {
        DiskVote {
            term: vote.leader_id.term,
            node: vote.leader_id.node_id,
            committed: vote.committed,
        }
    }
}

impl From<DiskVote> for Vote {
    fn from(vote: DiskVote) -> Self {
        let leader_id = LeaderId {
            term: vote.term,
            node_id: vote.node,
        };
        Vote {
            leader_id,
            committed: vote.committed,
        }
    }
}

impl Encode for DiskVote {
    fn encode<W: io::Write>(&self, mut w: W) -> io::Result<usize> {
        Ok(
            self.term.encode(&mut w)?
                + self.node.encode(&mut w)?
                + u8::from(self.committed).encode(&mut w)?,
        )
    }
}

impl Decode for DiskVote {
    fn decode<R: Read>(mut r: R) -> io::Result<Self> {
        let term = u64::decode(&mut r)?;
        let node = u64::decode(&mut r)?;
        let committed = match u8::decode(&mut r)? {
            0 => false,
            1 => true,
            other => return Err(invalid(format!("vote marked {other}, not 0 or 1"))),
        };
        Ok(DiskVote {
            term,
            node,
            committed,
        })
    }
}

/// One byte that says what it is, the length in 4 bytes, big-endian, and as many bytes: an encoded
/// `CommandBatch` or `Membership` of `raft.proto`. A batch is shared with openraft and the wire.
#[derive(Clone, Debug)]
pub(super) enum DiskPayload {
    Blank,
    Batch(Bytes),
    Membership(Bytes),
}

impl DiskPayload {
    const BLANK: u8 = 0;
    const BATCH: u8 = 1;
    const MEMBERSHIP: u8 = 2;

    fn kind(&self) -> u8 {
        match self {
            DiskPayload::Blank => Self::BLANK,
            DiskPayload::Batch(_) => Self::BATCH,
            DiskPayload::Membership(_) => Self::MEMBERSHIP,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            DiskPayload::Blank => &[],
            DiskPayload::Batch(bytes) | DiskPayload::Membership(bytes) => bytes,
        }
    }

    pub(super) fn into_openraft(self) -> io::Result<EntryPayload> {
        Ok(match self {
            DiskPayload::Blank => EntryPayload::Blank,
            DiskPayload::Batch(bytes) => EntryPayload::Normal(Batch(bytes)),
            DiskPayload::Membership(bytes) => {
                let message =
                    <pb::Membership as prost::Message>::decode(bytes).map_err(|e| invalid(e.to_string()))?;
                let membership = Membership::try_from(message).map_err(|e| invalid(e.to_string()))?;
                EntryPayload::Membership(membership)
            }
        })
    }
}

impl From<EntryPayload> for DiskPayload {
    fn from(payload: EntryPayload) -> Self {
        match payload {
            EntryPayload::Blank => DiskPayload::Blank,
            EntryPayload::Normal(Batch(bytes)) => DiskPayload::Batch(bytes),
            EntryPayload::Membership(membership) => DiskPayload::Membership(
                prost::Message::encode_to_vec(&pb::Membership::from(&membership)).into(),
            ),
        }
    }
}

impl Encode for DiskPayload {
    fn encode<W: io::Write>(&self, mut w: W) -> io::Result<usize> {
        let bytes = self.bytes();
        let length = u32::try_from(bytes.len())
            .map_err(|_| invalid(format!("an entry of {} bytes is too long", bytes.len())))?;
        let head = self.kind().encode(&mut w)? + length.encode(&mut w)?;
        w.write_all(bytes)?;
        Ok(head + bytes.len())
    }
}

impl Decode for DiskPayload {
    fn decode<R: Read>(mut r: R) -> io::Result<Self> {
        let kind = u8::decode(&mut r)?;
        let length = u32::decode(&mut r)?;
        // The checksum comes after: a damaged length must not make us reserve 4 GiB.
        let mut bytes = Vec::with_capacity(length.min(1 << 20) as usize);
        r.by_ref().take(u64::from(length)).read_to_end(&mut bytes)?;
        if bytes.len() < length as usize {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "entry cut short"));
        }
        match kind {
            Self::BLANK if length == 0 => Ok(DiskPayload::Blank),
            Self::BATCH => Ok(DiskPayload::Batch(bytes.into())),
            Self::MEMBERSHIP => Ok(DiskPayload::Membership(bytes.into())),
            other => Err(invalid(format!("entry of unknown kind {other}, {length} bytes"))),
        }
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
