//! openraft's glue: our types for it, and the storage and network that it drives.
//!
//! Nothing here knows an actor: the state machine is reached through the messages in [`ports`],
//! whose handler is the store actor. The encodings on the wire and on the disk are ours
//! (`raft.proto`), so that a new release of openraft changes neither.
//!
//! In reading order: [`types`] and [`ports`]; [`identity`], who this node is; [`log_store`] and
//! [`state_machine`], what openraft keeps, and [`recovery`], where the two do not fit; [`network`] and [`server`],
//! how it speaks to its peers.
//!
//! In a data directory `<dir>`: `<dir>/lock`, `<dir>/raft/identity`, [`log_dir`] and [`snapshot_dir`].

use std::path::{Path, PathBuf};

pub mod call_metadata;
pub mod channels;
pub mod config;
pub mod conversation;
pub mod convert;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod guard;
pub mod identity;
mod log_codec;
pub mod log_store;
mod log_tail;
pub mod network;
mod pipeline;
pub mod ports;
pub mod recovery;
pub mod server;
mod snapshot_transfer;
pub mod state_machine;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod types;

/// Where the log of a data directory lies.
pub fn log_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("raft/log")
}

/// Where the snapshots of a data directory lie, the received ones too.
pub fn snapshot_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("raft/snapshots")
}
