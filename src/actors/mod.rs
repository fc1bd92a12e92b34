//! The actors: every piece of mutable state of a MetaServer belongs to one of them and changes only
//! by a typed message in its mailbox.
//!
//! Each room has `messages.rs` (what it understands, and what it sends when that is its own), a
//! state with its handlers, and `tests.rs`, where probes stand in for its neighbours.

use std::time::{SystemTime, UNIX_EPOCH};

pub mod auditor;
pub mod data_servers;
pub mod gateway;
mod proposer;
pub mod raft_node;
pub mod registrar;
pub mod scheduler;
pub mod store;
#[cfg(test)]
pub(crate) mod testing;
mod ticks;

/// This machine's clock, Unix milliseconds.
fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
