//! MinFS: the metadata server of a distributed file system, replicated through Raft.
//!
//! A tour, in reading order. Imports point the same way: from the bottom of this list to its top.
//!
//! 1. [`domain`]: what a path is, what can be done to the state and what that does, where blocks go.
//!    Pure: no actor, database, wire, clock or randomness. Everything else serves these rules.
//! 2. [`proto`]: the wire, and what the log holds. `metaserver.proto` and `dataserver.proto` are a contract
//!    with clients in the field; `raft.proto` and `admin.proto` are ours.
//! 3. [`storage`]: the replicated state in LMDB, and snapshots of it. The only room that knows LMDB.
//! 4. [`raft`]: openraft's glue: log, state machine port, network between the MetaServers, identity of a node.
//! 5. [`actors`]: who owns what while the server runs. `raft_node` proposes, grants reads and forwards;
//!    `store` applies; `data_servers` knows who is alive; `registrar` keeps this node in etcd; `scheduler`
//!    ticks; `auditor` compares states; `gateway` speaks gRPC to clients.
//! 6. [`connections`]: how both gRPC servers accept and serve, within bounds.
//! 7. [`config`], [`logging`] and [`space`]: `config.yaml`, the log, and what a full disk forbids. `background`: long
//!    work, in which nobody's patience is tried.
//! 8. [`node`]: the only wiring: builds, starts and stops the actors. `src/bin/metaserver.rs` runs it.
//! 9. [`client`] and [`cli`]: the other side of the wire, and the command `minfs`.
//! 10. [`dataserver`]: the server that keeps the blocks; shares nothing but the wire with the MetaServer.

pub mod actors;
mod background;
pub mod cli;
pub mod client;
pub mod config;
pub mod connections;
pub mod dataserver;
pub mod domain;
mod durable;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod logging;
pub mod node;
#[cfg(feature = "planted-bugs")]
mod planted;
pub mod proto;
pub mod raft;
pub mod space;
pub mod storage;
