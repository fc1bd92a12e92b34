//! MinFS: the metadata server of a distributed file system, replicated through Raft.

pub mod actors;
pub mod cli;
pub mod client;
pub mod config;
pub mod domain;
mod durable;
pub mod logging;
pub mod proto;
pub mod raft;
pub mod storage;
