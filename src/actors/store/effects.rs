//! What was done lately for clients that name no request ids: in memory, on every node that applies.
//!
//! The store fills it with what it applies; a leader's Raft node asks it about refusals
//! (`raft_node::repeats`). It is no part of the state: a node that was started a moment ago knows less, and
//! then a refusal simply stands.
//!
//! Invariant: no more than [`MOST`] effects, and none of a command that is older than [`WINDOW`] by the
//! clock of either the leader that proposed it or the node that applied it.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use actix::Message;

use crate::domain::command::{Applied, Command, Op, Origin, Outcome};

/// How long after its commit a request may be repeated: clients set no deadlines, and may have waited for an
/// answer as long as a request takes (5 s) before they asked again.
pub const WINDOW: Duration = Duration::from_secs(10);

/// How many effects are remembered.
pub const MOST: usize = 65_536;

/// Asks for the effect of the same operation, done for the same client lately; it must still stand.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Option<Effect>")]
pub struct FindEffect {
    /// What is asked for again.
    pub op: Op,
    /// By which client.
    pub peer: IpAddr,
}

/// Gives the answer of an effect to a repeat. `true`: no other one has got it here.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "bool")]
pub struct GiveEffect {
    /// The request that had the effect.
    pub first: Origin,
    /// The repeat.
    pub by: Origin,
}

/// Something that was done for a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    /// Whose request did it.
    pub origin: Origin,
    /// What it did.
    pub outcome: Outcome,
}

struct Remembered {
    at: Instant,
    op: Op,
    effect: Effect,
    given: Option<Origin>,
}

/// The effects, oldest first.
#[derive(Default)]
pub(super) struct RecentEffects {
    effects: VecDeque<Remembered>,
    /// How many were forgotten: the number of the oldest one.
    forgotten: u64,
    /// The newest effect of an operation, by the hash of it and its client.
    newest: HashMap<u64, u64>,
}

impl RecentEffects {
    /// Remembers a command that succeeded, if it may be repeated. `now_ms` is this node's wall clock: what a
    /// restarted node applies again is old, though it happens now.
    pub(super) fn applied(&mut self, command: Command, applied: &Applied, now: Instant, now_ms: i64) {
        let (Some(origin), Ok(outcome)) = (command.origin, applied) else {
            return;
        };
        let Some(key) = key(&command.op, origin.peer) else {
            return;
        };
        let age = now_ms.saturating_sub(command.time_ms);
        if i128::from(age).unsigned_abs() > WINDOW.as_millis() {
            return;
        }
        self.forget(now, MOST - 1);
        self.newest
            .insert(key, self.forgotten + self.effects.len() as u64);
        self.effects.push_back(Remembered {
            at: now,
            op: command.op,
            effect: Effect {
                origin,
                outcome: outcome.clone(),
            },
            given: None,
        });
    }

    /// The newest effect of the same operation, done for the same client.
    pub(super) fn find(&mut self, op: &Op, peer: IpAddr, now: Instant) -> Option<Effect> {
        self.forget(now, MOST);
        let number = self.newest.get(&key(op, peer)?)?;
        let found = self.effects.get(usize::try_from(number - self.forgotten).ok()?)?;
        let same = found.op == *op && found.effect.origin.peer == peer;
        same.then(|| found.effect.clone())
    }

    /// Whether `by` may have the answer of `first`: nobody else has got it.
    pub(super) fn give(&mut self, first: Origin, by: Origin) -> bool {
        let found = self
            .effects
            .iter_mut()
            .rev()
            .find(|remembered| remembered.effect.origin == first);
        found.is_some_and(|remembered| *remembered.given.get_or_insert(by) == by)
    }

    /// Forgets what is too old, and the oldest if there are more than `most`.
    fn forget(&mut self, now: Instant, most: usize) {
        while let Some(oldest) = self.effects.front()
            && (self.effects.len() > most || now.saturating_duration_since(oldest.at) > WINDOW)
        {
            if let Some(key) = key(&oldest.op, oldest.effect.origin.peer)
                && self.newest.get(&key) == Some(&self.forgotten)
            {
                self.newest.remove(&key);
            }
            self.effects.pop_front();
            self.forgotten += 1;
        }
    }
}

/// The key of an operation whose repeat is refused; of no other one.
fn key(op: &Op, peer: IpAddr) -> Option<u64> {
    let (deletes, path, flag) = match op {
        Op::Create { path, directory } => (false, path, directory),
        Op::Delete { path, recursive } => (true, path, recursive),
        Op::Allocate { .. }
        | Op::Finalize { .. }
        | Op::AbandonWrites { .. }
        | Op::MoveReplica { .. }
        | Op::RegisterDataServer { .. }
        | Op::SetDataServerStatus { .. }
        | Op::ReleaseGarbage { .. }
        | Op::Condemn { .. }
        | Op::Reclaim { .. } => return None,
    };
    let mut hasher = DefaultHasher::new();
    (deletes, path.as_str(), flag, peer).hash(&mut hasher);
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::domain::command::Refusal;
    use crate::domain::ids::InodeId;
    use crate::domain::path::CleanPath;

    const NOW_MS: i64 = 1_000_000;

    fn peer(last: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, last).into()
    }

    fn origin(number: u64) -> Origin {
        Origin {
            peer: peer(1),
            gateway: 7,
            number,
        }
    }

    fn create(path: &str) -> Op {
        Op::Create {
            path: CleanPath::parse(path).unwrap(),
            directory: false,
        }
    }

    fn command(op: Op, number: u64) -> Command {
        Command {
            time_ms: NOW_MS,
            request_id: None,
            digest: 0,
            origin: Some(origin(number)),
            op,
        }
    }

    fn created(inode: u64) -> Applied {
        Ok(Outcome::Created {
            inode: InodeId(inode),
        })
    }

    #[test]
    fn the_newest_effect_of_the_same_operation_for_the_same_client_is_found() {
        let now = Instant::now();
        let mut effects = RecentEffects::default();
        effects.applied(command(create("/a"), 1), &created(10), now, NOW_MS);
        effects.applied(command(create("/a"), 2), &created(11), now, NOW_MS);
        let found = effects.find(&create("/a"), peer(1), now).unwrap();
        assert_eq!((found.origin, Ok(found.outcome)), (origin(2), created(11)));
        assert_eq!(effects.find(&create("/b"), peer(1), now), None);
        assert_eq!(effects.find(&create("/a"), peer(2), now), None, "another client");
        let path = CleanPath::parse("/a").unwrap();
        let directory = Op::Create {
            path: path.clone(),
            directory: true,
        };
        assert_eq!(effects.find(&directory, peer(1), now), None, "another type");
        let deleted = Op::Delete {
            path,
            recursive: false,
        };
        assert_eq!(effects.find(&deleted, peer(1), now), None, "another operation");
    }

    #[test]
    fn refusals_named_requests_and_old_commands_are_not_remembered() {
        let now = Instant::now();
        let mut effects = RecentEffects::default();
        let refused = Err(Refusal::not_found("no"));
        effects.applied(command(create("/refused"), 1), &refused, now, NOW_MS);
        let named = Command {
            origin: None,
            ..command(create("/named"), 2)
        };
        effects.applied(named, &created(3), now, NOW_MS);
        for (path, age_ms) in [("/replayed", 11_000), ("/of-the-future", -11_000)] {
            effects.applied(command(create(path), 3), &created(4), now, NOW_MS + age_ms);
        }
        for path in ["/refused", "/named", "/replayed", "/of-the-future"] {
            assert_eq!(effects.find(&create(path), peer(1), now), None, "{path}");
        }
        assert!(effects.effects.is_empty());
    }

    #[test]
    fn effects_are_forgotten_after_the_window_and_past_the_bound() {
        let now = Instant::now();
        let mut effects = RecentEffects::default();
        effects.applied(command(create("/old"), 1), &created(1), now, NOW_MS);
        assert!(effects.find(&create("/old"), peer(1), now + WINDOW).is_some());
        let later = now + WINDOW + Duration::from_millis(1);
        assert_eq!(effects.find(&create("/old"), peer(1), later), None);
        assert!(effects.newest.is_empty());
        for n in 0..MOST as u64 + 10 {
            effects.applied(command(create(&format!("/{n}")), n), &created(n), later, NOW_MS);
        }
        assert_eq!((effects.effects.len(), effects.newest.len()), (MOST, MOST));
        assert_eq!(effects.find(&create("/9"), peer(1), later), None);
        assert!(effects.find(&create("/10"), peer(1), later).is_some());
    }

    #[test]
    fn an_answer_is_given_to_one_repeat_and_to_it_as_often_as_it_asks() {
        let now = Instant::now();
        let mut effects = RecentEffects::default();
        effects.applied(command(create("/a"), 1), &created(10), now, NOW_MS);
        assert!(effects.give(origin(1), origin(2)));
        assert!(effects.give(origin(1), origin(2)));
        assert!(!effects.give(origin(1), origin(3)));
        assert!(!effects.give(origin(9), origin(3)), "nothing is known of it");
    }
}
