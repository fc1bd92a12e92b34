//! Tests of the Raft glue: what lies on the disk, who we are, and small clusters over real connections.

mod cluster;
mod convert;
mod guard;
mod heartbeats;
mod identity;
mod log_store;
mod log_tail;
mod pipeline;
mod space;

use bytes::Bytes;

use super::types::{Batch, Entry, EntryPayload, LeaderId, LogId};

fn log_id(term: u64, node: u64, index: u64) -> LogId {
    LogId {
        leader_id: LeaderId { term, node_id: node },
        index,
    }
}

fn batch(index: u64, bytes: impl Into<Bytes>) -> Entry {
    Entry {
        log_id: log_id(1, 1, index),
        payload: EntryPayload::Normal(Batch(bytes.into())),
    }
}
