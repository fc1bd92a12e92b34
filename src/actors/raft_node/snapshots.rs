//! When a node takes a snapshot of its state: behind it, the log can be shortened.
//!
//! [`take_snapshots`] runs as a task beside the Raft node. Invariant: however often the process is started
//! anew, the log behind the newest snapshot grows by no more than the threshold and what one interval brings.

use std::time::{Duration, Instant};

use openraft::async_runtime::watch::WatchReceiver;

use crate::logging::Seldom;
use crate::raft::server::Raft;
use crate::space::{Level, Space, SpaceWatch, mebibytes};

/// How often to look whether a snapshot is due.
const LOOK: Duration = Duration::from_secs(1);

/// How often snapshots are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotPolicy {
    /// Between two of one process.
    pub interval: Duration,
    /// Log entries that are worth one.
    pub threshold: u64,
}

impl SnapshotPolicy {
    /// Whether one is due, with so many entries applied since the newest, and so much time passed since this
    /// process took one, if it did. The first of a process does not wait: it may not live for an interval, and
    /// its predecessors may not have, either.
    fn is_due(&self, entries: u64, since: Option<Duration>, space: Room) -> bool {
        let (enough, at_once) = match space {
            Room::Enough => (self.threshold, false),
            Room::BecameLow => (1, true),
            Room::Low => (1, false),
        };
        entries >= enough && (at_once || since.is_none_or(|since| since >= self.interval))
    }
}

/// How much disk space there is: where it is low, any entry is worth a snapshot, behind which the log can be
/// shortened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Enough,
    BecameLow,
    Low,
}

/// Takes snapshots until Raft stops.
pub async fn take_snapshots(raft: Raft, policy: SnapshotPolicy, mut space: SpaceWatch) {
    let is_low = |space: &Space| space.level > Level::Enough;
    let (mut low, mut last) = (false, None::<Instant>);
    let no_room = Seldom::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK.min(policy.interval)) => {}
            // No more news: the node is stopping.
            Ok(_) = space.wait_for(is_low), if !low => {}
        }
        let was_low = std::mem::replace(&mut low, is_low(&space.borrow()));
        let room = match (was_low, low) {
            (_, false) => Room::Enough,
            (false, true) => Room::BecameLow,
            (true, true) => Room::Low,
        };
        let (running, applied, covered) = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            let index = |id: Option<_>| id.map_or(0, |id: crate::raft::types::LogId| id.index);
            (
                metrics.running_state.is_ok(),
                index(metrics.last_applied),
                index(metrics.snapshot),
            )
        };
        if !running {
            return;
        }
        let since = last.map(|last| last.elapsed());
        if !policy.is_due(applied.saturating_sub(covered), since, room) {
            continue;
        }
        let size = space.borrow().measured.state;
        if !space.borrow().fits(size) {
            if no_room.may_speak() {
                log::warn!(
                    "no snapshot for now: there is no room for its {}; the log is not shortened meanwhile",
                    mebibytes(size)
                );
            }
            continue;
        }
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
        last = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enough_entries_are_due_at_once_after_a_start_and_then_at_intervals() {
        let interval = Duration::from_secs(120);
        let policy = SnapshotPolicy {
            interval,
            threshold: 100,
        };
        let short = interval - Duration::from_millis(1);
        for (entries, since, room, due) in [
            (99, None, Room::Enough, false),
            (100, None, Room::Enough, true),
            (1_000_000, Some(short), Room::Enough, false),
            (99, Some(interval), Room::Enough, false),
            (100, Some(interval), Room::Enough, true),
            (0, None, Room::BecameLow, false),
            (1, Some(Duration::ZERO), Room::BecameLow, true),
            (1, Some(short), Room::Low, false),
            (1, Some(interval), Room::Low, true),
        ] {
            assert_eq!(
                policy.is_due(entries, since, room),
                due,
                "{entries} {since:?} {room:?}"
            );
        }
    }
}
