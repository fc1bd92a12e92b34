//! The rules of a DataServer's health: who is alive, whose status must change, who takes new blocks.
//!
//! Pure: the caller says what time it is. The actor asks; nothing here remembers anything.
//!
//! Invariant: a leader never holds a silence against a DataServer that began before it led. Other
//! leaders took the beats then.

use std::time::{Duration, Instant};

use crate::domain::state::ServerStatus;

/// How long a DataServer may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// `cluster.heartbeat_timeout`.
    pub heartbeat_timeout: Duration,
    /// `cluster.permanent_down_threshold`.
    pub permanent_down_threshold: Duration,
}

/// The last that a leader heard of a DataServer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastSign {
    /// It beat, or was first registered, then.
    At(Instant),
    /// Nothing yet; this node has led since then.
    NoneSince(Instant),
}

/// Space on a DataServer's disk, as it reported it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes.
    pub free: u64,
    /// Bytes.
    pub total: u64,
}

impl LastSign {
    /// How long the DataServer has been silent, as far as this leader can tell.
    pub fn silence(self, now: Instant) -> Duration {
        match self {
            LastSign::At(at) | LastSign::NoneSince(at) => now.saturating_duration_since(at),
        }
    }
}

impl Patience {
    /// Whether the DataServer counts as alive. One that has not beaten to this leader yet is what the
    /// replicated state says of it until it has had the time to beat: so a new leader can allocate at
    /// once. One that is down lives again when its beat has registered it: until then another may
    /// have its address.
    pub fn alive(&self, status: ServerStatus, sign: LastSign, now: Instant) -> bool {
        let in_time = sign.silence(now) < self.heartbeat_timeout;
        match sign {
            LastSign::At(_) => in_time && status != ServerStatus::Down,
            LastSign::NoneSince(_) => in_time && status == ServerStatus::Healthy,
        }
    }

    /// The status that must replace the replicated `status`, if any. Health is lost here and regained
    /// by a beat, which registers the DataServer again.
    pub fn verdict(&self, status: ServerStatus, sign: LastSign, now: Instant) -> Option<ServerStatus> {
        let silence = sign.silence(now);
        let down = silence >= self.permanent_down_threshold;
        match status {
            ServerStatus::Healthy | ServerStatus::Unhealthy if down => Some(ServerStatus::Down),
            ServerStatus::Healthy if silence >= self.heartbeat_timeout => Some(ServerStatus::Unhealthy),
            ServerStatus::Healthy | ServerStatus::Unhealthy | ServerStatus::Down => None,
        }
    }

    /// Whether new blocks of `block_size` bytes may be placed on the DataServer.
    pub fn takes_blocks(
        &self,
        status: ServerStatus,
        sign: LastSign,
        space: Option<Space>,
        block_size: u64,
        now: Instant,
    ) -> bool {
        // A DataServer that tells no capacity tells nothing of its space.
        let full = space.is_some_and(|space| space.total > 0 && space.free < block_size);
        status == ServerStatus::Healthy && self.alive(status, sign, now) && !full
    }
}

#[cfg(test)]
mod tests {
    use super::LastSign::{At, NoneSince};
    use super::ServerStatus::{Down, Healthy, Unhealthy};
    use super::*;

    const PATIENCE: Patience = Patience {
        heartbeat_timeout: Duration::from_secs(15),
        permanent_down_threshold: Duration::from_secs(60),
    };
    const MS: Duration = Duration::from_millis(1);

    /// Now, and the instant `silence` before it.
    fn after(silence: Duration) -> (Instant, Instant) {
        let then = Instant::now();
        (then + silence, then)
    }

    #[test]
    fn alive_means_a_beat_in_time_or_a_leader_that_could_not_have_heard_one() {
        let timeout = PATIENCE.heartbeat_timeout;
        for (status, silence, beaten, never_beaten) in [
            (Healthy, Duration::ZERO, true, true),
            (Healthy, timeout - MS, true, true),
            (Healthy, timeout, false, false),
            (Unhealthy, timeout - MS, true, false),
            (Down, Duration::ZERO, false, false),
        ] {
            let (now, then) = after(silence);
            assert_eq!(PATIENCE.alive(status, At(then), now), beaten, "{status:?}");
            assert_eq!(
                PATIENCE.alive(status, NoneSince(then), now),
                never_beaten,
                "{status:?}"
            );
        }
    }

    #[test]
    fn health_is_lost_in_two_steps_and_never_regained_by_a_verdict() {
        let (timeout, threshold) = (PATIENCE.heartbeat_timeout, PATIENCE.permanent_down_threshold);
        for (silence, healthy, unhealthy) in [
            (Duration::ZERO, None, None),
            (timeout - MS, None, None),
            (timeout, Some(Unhealthy), None),
            (threshold - MS, Some(Unhealthy), None),
            (threshold, Some(Down), Some(Down)),
            (threshold * 100, Some(Down), Some(Down)),
        ] {
            let (now, then) = after(silence);
            for sign in [At(then), NoneSince(then)] {
                assert_eq!(PATIENCE.verdict(Healthy, sign, now), healthy, "{silence:?}");
                assert_eq!(PATIENCE.verdict(Unhealthy, sign, now), unhealthy, "{silence:?}");
                assert_eq!(PATIENCE.verdict(Down, sign, now), None, "{silence:?}");
            }
        }
    }

    #[test]
    fn equal_limits_go_straight_down() {
        let strict = Patience {
            permanent_down_threshold: PATIENCE.heartbeat_timeout,
            ..PATIENCE
        };
        let (now, then) = after(strict.heartbeat_timeout);
        assert_eq!(strict.verdict(Healthy, At(then), now), Some(Down));
    }

    #[test]
    fn a_clock_reading_from_before_the_sign_is_no_silence() {
        let (later, earlier) = after(PATIENCE.permanent_down_threshold);
        assert!(PATIENCE.alive(Healthy, At(later), earlier));
        assert_eq!(PATIENCE.verdict(Healthy, At(later), earlier), None);
    }

    #[test]
    fn blocks_go_to_the_healthy_and_alive_with_room() {
        let block_size = 4 << 20;
        let space = |free| Some(Space { free, total: 1 << 40 });
        let untold = Some(Space::default());
        for (status, silence, space, takes) in [
            (Healthy, Duration::ZERO, None, true),
            (Healthy, Duration::ZERO, untold, true),
            (Healthy, Duration::ZERO, space(block_size), true),
            (Healthy, Duration::ZERO, space(block_size - 1), false),
            (Healthy, Duration::ZERO, space(0), false),
            (Healthy, PATIENCE.heartbeat_timeout, space(block_size), false),
            (Unhealthy, Duration::ZERO, space(block_size), false),
            (Down, Duration::ZERO, space(block_size), false),
        ] {
            let (now, then) = after(silence);
            assert_eq!(
                PATIENCE.takes_blocks(status, At(then), space, block_size, now),
                takes,
                "{status:?} {silence:?} {space:?}"
            );
        }
    }
}
