//! The rules of MinFS, pure: no actor, database, wire, clock or randomness.
//!
//! [`path`] says what a path is, [`command`] what can be done to the state, [`namespace`] what each
//! command does to it, and [`placement`] where the replicas of a file's blocks go. Everything here
//! is deterministic: the same commands in the same order give the same state on every node.

pub mod command;
pub mod ids;
pub mod namespace;
pub mod path;
pub mod placement;
mod servers;
pub mod state;
