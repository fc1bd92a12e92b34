//! openraft's glue: our types for it, and the storage and network that it drives.
//!
//! Nothing here knows an actor: the state machine is reached through the messages in [`ports`],
//! whose handler is the store actor. The encodings on the wire and on the disk are ours
//! (`raft.proto`), so that a new release of openraft changes neither.

pub mod ports;
pub mod types;
