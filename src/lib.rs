//! MinFS: the metadata server of a distributed file system, replicated through Raft.

pub mod domain;
mod durable;
pub mod proto;
pub mod storage;
