//! What a leader knows of the DataServers beyond the replicated state: their beats and reports.
//!
//! The actor makes one when this node becomes leader and drops it when it no longer leads.
//!
//! Invariant: everything in it was told to this node in this term.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::health::{LastSign, Space};
use super::messages::HeartbeatReceived;
use super::report::{Report, ReportChange};
use crate::domain::ids::ServerId;

/// The beats and reports since this node became leader.
pub struct LeaderView {
    term: u64,
    since: Instant,
    seen: BTreeMap<ServerId, Seen>,
}

struct Seen {
    at: Instant,
    /// `None`: it was registered but has not beaten yet.
    reported: Option<Reported>,
}

#[derive(Default)]
struct Reported {
    report: Report,
    space: Space,
}

/// What one beat says.
pub struct Beat {
    /// When it came.
    pub at: Instant,
    /// The full report, as it was sent.
    pub blocks: Vec<u64>,
    /// The disk's space.
    pub space: Space,
}

impl Beat {
    /// Takes out of a heartbeat what is to be kept.
    pub fn take(heartbeat: &mut HeartbeatReceived, at: Instant) -> Self {
        Beat {
            at,
            blocks: std::mem::take(&mut heartbeat.blocks),
            space: Space {
                free: heartbeat.free_space,
                total: heartbeat.total_capacity,
            },
        }
    }
}

impl LeaderView {
    /// Of a leader that has heard nothing yet.
    pub fn new(term: u64, since: Instant) -> Self {
        LeaderView {
            term,
            since,
            seen: BTreeMap::new(),
        }
    }

    /// The term that this node leads.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// A DataServer was registered: from now on its first beat is waited for.
    pub fn expect(&mut self, server: ServerId, now: Instant) {
        self.seen.entry(server).or_insert(Seen {
            at: now,
            reported: None,
        });
    }

    /// A DataServer beat. Tells what changed since its last report to this leader.
    pub fn beat(&mut self, server: ServerId, beat: Beat) -> ReportChange {
        let seen = self.seen.entry(server).or_insert(Seen {
            at: beat.at,
            reported: None,
        });
        seen.at = seen.at.max(beat.at);
        let reported = seen.reported.get_or_insert_default();
        reported.space = beat.space;
        reported.report.replace(beat.blocks)
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
        self.reported(server).map(|reported| reported.space)
    }

    /// The blocks that a DataServer reported, sorted; empty if it has not beaten.
    pub fn blocks(&self, server: ServerId) -> Arc<[u64]> {
        self.reported(server)
            .map_or_else(Arc::default, |reported| reported.report.blocks())
    }

    fn reported(&self, server: ServerId) -> Option<&Reported> {
        self.seen.get(&server)?.reported.as_ref()
    }
}
