//! Which writes were abandoned: allocated, never finalized, and without progress for a lease.
//!
//! Progress is a replica of one of its blocks that was not reported before: the clients' protocol has
//! no other sign of life. FSCK shows every open run in each of its passes.
//!
//! Invariant: the lease of a write begins when this leader first sees it, and is counted on a clock that
//! only goes forward. So neither a change of leader nor a wall clock that jumps ends one early.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::ids::BlockId;

/// Writes watched at a time. More would have to be open at once; the later ones wait their turn.
const WATCHED_MAX: usize = 1_000_000;

/// The writes that are open, as one leader saw them.
#[derive(Debug, Default)]
pub struct OpenWrites {
    watched: BTreeMap<BlockId, Watched>,
    pass: u64,
}

#[derive(Debug)]
struct Watched {
    /// The most replicas of its blocks that were reported at a time.
    replicas: u64,
    /// When that was first so.
    since: Instant,
    /// The last pass that saw it.
    pass: u64,
    /// Replicas seen in that pass.
    seen: u64,
}

impl OpenWrites {
    /// A pass begins.
    pub fn begin_pass(&mut self) {
        self.pass += 1;
    }

    /// The run that begins with `first` is open, and `replicas` of some of its blocks are reported. A
    /// long run is shown in several parts.
    pub fn see(&mut self, first: BlockId, replicas: u64, now: Instant) {
        let (pass, room) = (self.pass, self.watched.len() < WATCHED_MAX);
        match self.watched.get_mut(&first) {
            Some(watched) if watched.pass == pass => watched.seen += replicas,
            Some(watched) => (watched.pass, watched.seen) = (pass, replicas),
            None if !room => {}
            None => {
                let watched = Watched {
                    replicas: 0,
                    since: now,
                    pass,
                    seen: replicas,
                };
                self.watched.insert(first, watched);
            }
        }
    }

    /// A pass has seen everything: forgets the writes that are not open any more, and tells which
    /// of the others made no progress for `lease`, in the order of their blocks.
    pub fn end_pass(&mut self, lease: Duration, now: Instant) -> Vec<BlockId> {
        let pass = self.pass;
        self.watched.retain(|_, watched| watched.pass == pass);
        let mut abandoned = Vec::new();
        for (&first, watched) in &mut self.watched {
            // Fewer than before means that a DataServer is silent, and nothing about the writer.
            if watched.seen > watched.replicas {
                (watched.replicas, watched.since) = (watched.seen, now);
            } else if now.saturating_duration_since(watched.since) >= lease {
                abandoned.push(first);
            }
        }
        abandoned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(3600);
    const NONE: [u64; 0] = [];

    /// One pass that sees these `(first block, replicas)`.
    fn pass(writes: &mut OpenWrites, now: Instant, seen: &[(u64, u64)]) -> Vec<u64> {
        writes.begin_pass();
        for &(first, replicas) in seen {
            writes.see(BlockId(first), replicas, now);
        }
        let abandoned = writes.end_pass(LEASE, now);
        abandoned.into_iter().map(|first| first.0).collect()
    }

    #[test]
    fn a_lease_runs_from_the_last_progress() {
        let (mut writes, start) = (OpenWrites::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(pass(&mut writes, at(0), &[(1, 0), (9, 4)]), NONE);
        assert_eq!(
            pass(&mut writes, at(1800), &[(1, 1), (9, 4)]),
            NONE,
            "1 progresses"
        );
        assert_eq!(pass(&mut writes, at(3599), &[(1, 1), (9, 3)]), NONE);
        assert_eq!(
            pass(&mut writes, at(3600), &[(1, 1), (9, 2)]),
            [9],
            "a replica that is not reported any more is no progress"
        );
        assert_eq!(
            pass(&mut writes, at(3700), &[(1, 1), (9, 4)]),
            [9],
            "nor is one that comes back"
        );
        assert_eq!(pass(&mut writes, at(5400), &[(1, 1), (9, 4)]), [1, 9]);
        assert_eq!(pass(&mut writes, at(5400), &[(1, 2), (9, 4)]), [9]);
    }

    #[test]
    fn a_write_that_was_not_open_in_between_begins_anew() {
        let (mut writes, start) = (OpenWrites::default(), Instant::now());
        assert_eq!(pass(&mut writes, start, &[(1, 0)]), NONE);
        assert_eq!(pass(&mut writes, start + LEASE, &[]), NONE);
        assert_eq!(pass(&mut writes, start + LEASE, &[(1, 0)]), NONE);
        assert_eq!(pass(&mut writes, start + LEASE * 2, &[(1, 0)]), [1]);
    }

    #[test]
    fn the_parts_of_a_long_run_are_added_up() {
        let (mut writes, start) = (OpenWrites::default(), Instant::now());
        assert_eq!(pass(&mut writes, start, &[(1, 2), (1, 2)]), NONE);
        let half = start + LEASE / 2;
        assert_eq!(pass(&mut writes, half, &[(1, 2), (1, 3)]), NONE, "5 instead of 4");
        assert_eq!(pass(&mut writes, start + LEASE, &[(1, 3), (1, 2)]), NONE);
        assert_eq!(pass(&mut writes, half + LEASE, &[(1, 4), (1, 1)]), [1]);
    }

    #[test]
    fn a_clock_reading_from_before_ends_nothing() {
        let (mut writes, start) = (OpenWrites::default(), Instant::now());
        assert_eq!(pass(&mut writes, start + LEASE * 2, &[(1, 0)]), NONE);
        assert_eq!(pass(&mut writes, start, &[(1, 0)]), NONE);
    }
}
