//! The rules of MinFS, pure: no actor, database, wire, clock or randomness.
//!
//! [`path`] says what a path is, [`command`] what can be done to the state, [`namespace`] what each
//! command does to it, [`replicas`] what becomes of blocks, and [`placement`] where the replicas of a
//! file's blocks go. Applying is deterministic: the same commands in the same order give the same state
//! on every node.
//!
//! [`census`] holds the records beside what DataServers report; [`fsck`], [`open_writes`] and [`gc`]
//! plan from it what the leader's upkeep does. They read the records in [`slices`].
//!
//! [`state_hash`] says which node is the odd one out when states that must be alike differ.

pub mod census;
pub mod command;
pub mod fsck;
pub mod gc;
pub mod ids;
pub mod namespace;
pub mod open_writes;
pub mod path;
pub mod placement;
pub mod replicas;
mod servers;
pub mod slices;
pub mod state;
pub mod state_hash;
mod writes;
