//! What the auditor understands.

use std::time::Duration;

use actix::Message;

use crate::domain::state_hash::{Hashes, StateHash};

/// Time to compare this node's hashes with its peers'.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct CompareDue;

/// Tells how the verification of this node's state stands.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "VerifyStatus")]
pub struct VerifyState {
    /// Begin one, unless one is under way.
    pub begin: bool,
}

/// How verifications stand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VerifyStatus {
    /// The number of the last one that was begun; 0 before the first.
    pub begun: u64,
    /// How many records the one that is under way has read.
    pub records_so_far: Option<u64>,
    /// The last one that ended.
    pub last: Option<Verification>,
    /// The hashes after the last log entries.
    pub recent: Hashes,
}

/// What came of reading the whole state.
#[derive(Clone, Debug, PartialEq)]
pub struct Verification {
    /// Counted from 1 since the start of the node.
    pub number: u64,
    /// The last log entry that the state had applied.
    pub applied: Option<u64>,
    /// What was found, or why it could not be.
    pub found: Result<Found, String>,
    /// How long it took.
    pub took: Duration,
}

/// Two hashes that must be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The one that was kept up to date.
    pub recorded: StateHash,
    /// The one of the records that are there.
    pub computed: StateHash,
    /// How many there are.
    pub records: u64,
}
