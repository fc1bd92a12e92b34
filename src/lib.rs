//! MinFS: the metadata server of a distributed file system, replicated through Raft.

pub mod proto;
