//! MinFS: the metadata server of a distributed file system, replicated through Raft.

pub mod actors;
pub mod domain;
pub mod proto;
pub mod raft;
pub mod storage;
