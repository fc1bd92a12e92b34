//! What the tests with real processes share. Each test file uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

pub mod blocks;
pub mod cluster;
pub mod data_servers;
pub mod etcd;
pub mod http2;
pub mod load;
pub mod memory;
pub mod minfs;
pub mod network;
pub mod small_disk;
pub mod wait;
