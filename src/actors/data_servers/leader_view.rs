//! What a leader knows of the DataServers beyond the replicated state: their beats and reports, and
//! the orders that wait for them.
//!
//! The actor makes one when this node becomes leader and drops it when it no longer leads.
//!
//! Invariant: everything in it was told to this node, or planned by it, in this term.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::health::{LastSign, Space};
use super::messages::HeartbeatReceived;
use super::orders::Orders;
use super::report::Report;
use crate::actors::unix_ms;
use crate::domain::ids::{BlockId, ServerId};
use crate::proto::heartbeat::BlockIds;

/// The beats and reports since this node became leader.
pub struct LeaderView {
    term: u64,
    since: Instant,
    seen: BTreeMap<ServerId, Seen>,
    /// What the DataServers are to do.
    pub orders: Orders,
}

struct Seen {
    at: Instant,
    /// `None`: it was registered but has not beaten yet.
    reported: Option<Reported>,
}

/// A DataServer's last report.
#[derive(Default)]
pub struct Reported {
    report: Report,
    space: Space,
    at_ms: i64,
}

/// What one beat says.
pub struct Beat {
    /// When it came.
    pub at: Instant,
    /// The same by the clock on the wall, Unix milliseconds.
    pub at_ms: i64,
    /// The full report, as it was sent.
    pub blocks: BlockIds,
    /// The damaged blocks, as they were sent.
    pub corrupt: Vec<u64>,
    /// The disk's space.
    pub space: Space,
}

impl Beat {
    /// Takes out of a heartbeat what is to be kept.
    pub fn take(heartbeat: &mut HeartbeatReceived, at: Instant) -> Self {
        Beat {
            at,
            at_ms: unix_ms(),
            blocks: std::mem::take(&mut heartbeat.blocks),
            corrupt: std::mem::take(&mut heartbeat.corrupt),
            space: Space {
                free: heartbeat.free_space,
                total: heartbeat.total_capacity,
            },
        }
    }
}

impl Reported {
    /// The blocks, sorted, each once.
    pub fn blocks(&self) -> Arc<[u64]> {
        self.report.blocks()
    }

    /// The damaged blocks, sorted, each once; none of [`Reported::blocks`].
    pub fn corrupt(&self) -> Arc<[u64]> {
        self.report.corrupt()
    }

    /// When it came, Unix milliseconds.
    pub fn at_ms(&self) -> i64 {
        self.at_ms
    }

    /// The disk's space.
    pub fn space(&self) -> Space {
        self.space
    }
}

impl LeaderView {
    /// Of a leader that has heard nothing yet, and has at most `max_repairs` blocks copied at once.
    pub fn new(term: u64, since: Instant, max_repairs: usize) -> Self {
        LeaderView {
            term,
            since,
            seen: BTreeMap::new(),
            orders: Orders::new(max_repairs),
        }
    }

    /// The term that this node leads.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Since when it has led.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// A DataServer was registered: from now on its first beat is waited for.
    pub fn expect(&mut self, server: ServerId, now: Instant) {
        self.seen.entry(server).or_insert(Seen {
            at: now,
            reported: None,
        });
    }

    /// A DataServer beat. Returns whether what it reports may call for upkeep: a replica is gone that
    /// nobody told it to remove, or is damaged, or came where it was to be copied to, or its blocks are
    /// known for the first time. Blocks that clients have written are no reason.
    pub fn beat(&mut self, server: ServerId, beat: Beat) -> bool {
        let seen = self.seen.entry(server).or_insert(Seen {
            at: beat.at,
            reported: None,
        });
        seen.at = seen.at.max(beat.at);
        let first = seen.reported.is_none();
        let reported = seen.reported.get_or_insert_default();
        reported.space = beat.space;
        reported.at_ms = beat.at_ms;
        let change = reported.report.replace(&beat.blocks, beat.corrupt);
        if !first && change.is_none() {
            return false;
        }
        log::debug!(
            "DataServer number {server}: {} blocks appeared in its report, {} went, {} are newly damaged",
            change.added,
            change.removed.len(),
            change.corrupted
        );
        let mut removed = change.removed.iter();
        let lost = removed.any(|&block| !self.orders.told_to_remove(server, BlockId(block)));
        let worse = lost || change.corrupted > 0;
        if worse {
            self.orders.doubt_surplus();
        }
        let arrived = self.orders.reported(server, &reported.blocks());
        worse || arrived > 0 || (first && change.added > 0)
    }

    /// The last that was heard of a DataServer.
    pub fn sign(&self, server: ServerId) -> LastSign {
        match self.seen.get(&server) {
            Some(seen) => LastSign::At(seen.at),
            None => LastSign::NoneSince(self.since),
        }
    }

    /// The space that a DataServer reported, if it has beaten.
    pub fn space(&self, server: ServerId) -> Option<Space> {
        self.reported(server).map(Reported::space)
    }

    /// What a DataServer reported last, if it has beaten.
    pub fn reported(&self, server: ServerId) -> Option<&Reported> {
        self.seen.get(&server)?.reported.as_ref()
    }
}
