//! The orders of a leader's upkeep: which copies and removals wait, which are under way, and which go
//! out in the answer to a beat.
//!
//! Pure: the caller says what time it is and who is alive with what. The actor asks; plans come from
//! the scheduler, and take the place of what the ones before them left.
//!
//! Invariants:
//! - No more copies are under way than the bounds say, in all, to one DataServer and from one. The
//!   most urgent get the free places: one that could go out at its target's next beat keeps its place
//!   from those behind it.
//! - A copy is under way until its target reports the block, or it expires. It is not ordered again
//!   meanwhile, and a plan that would rather have it elsewhere waits for it.
//! - A replica is told to be removed only if the plan's newest word on it is to remove it, and the
//!   DataServer's newest report shows it. Of an order to copy a block to a DataServer and one to
//!   remove it there, the later plan's stands and the other is dropped; within one plan the copy
//!   stands.
//! - Surplus replicas are removed only while nothing has got worse since they were found too many.

mod removals;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::removals::Removals;
use super::messages::{DataServerCommand, OrderCounts, Removal, Repair};
use crate::domain::ids::{BlockId, ServerId};

/// Copies under way to one DataServer at most, and as many from one. It hears of new ones only in the
/// answers to its beats, seconds apart, so it is given more than it can do at a time.
pub const COPIES_PER_SERVER: usize = 16;

/// How long a copy may take until it counts as failed.
pub const COPY_PATIENCE: Duration = Duration::from_secs(60);

/// Copies that wait at most. Those beyond are found again by the next plan.
pub const MAX_WAITING: usize = 10_000;

/// What must be known of a DataServer that is alive and has reported.
#[derive(Clone, Debug)]
pub struct Live {
    /// `host:port`.
    pub addr: String,
    /// The blocks that it reported, sorted.
    pub blocks: Arc<[u64]>,
    /// Those that it reported as damaged, sorted.
    pub corrupt: Arc<[u64]>,
}

impl Live {
    fn has(&self, block: BlockId) -> bool {
        self.blocks.binary_search(&block.0).is_ok()
    }

    fn shows(&self, block: BlockId) -> bool {
        self.has(block) || self.corrupt.binary_search(&block.0).is_ok()
    }
}

/// The DataServers that are alive and have reported.
pub type Alive = BTreeMap<ServerId, Live>;

/// A copy that was handed out.
#[derive(Clone, Copy, Debug)]
struct Running {
    from: ServerId,
    expires: Instant,
}

/// What the DataServers are to do.
#[derive(Debug)]
pub struct Orders {
    max_running: usize,
    /// The most urgent first; none of them in `running`, none of the pairs twice.
    waiting: Vec<Repair>,
    /// By target and block.
    running: BTreeMap<(ServerId, BlockId), Running>,
    surplus: Removals,
    garbage: Removals,
}

impl Orders {
    /// Nothing to do yet, and at most `max_running` copies at once.
    pub fn new(max_running: usize) -> Self {
        Orders {
            max_running,
            waiting: Vec::new(),
            running: BTreeMap::new(),
            surplus: Removals::default(),
            garbage: Removals::default(),
        }
    }

    /// Takes what FSCK wants done in place of what it wanted before.
    pub fn repair(&mut self, repairs: Vec<Repair>, surplus: Vec<Removal>, alive: &Alive, now: Instant) {
        self.expire(now);
        let mut astray = self.astray(&repairs, alive);
        let mut wanted = HashSet::new();
        self.waiting.clear();
        for repair in repairs {
            let key = (repair.to, repair.block);
            self.garbage.drop_one(repair.to, repair.block);
            if !wanted.insert(key) || self.running.contains_key(&key) {
                continue;
            }
            if let Some(copies) = astray.get_mut(&repair.block).filter(|copies| **copies > 0) {
                *copies -= 1;
            } else if self.waiting.len() < MAX_WAITING {
                self.waiting.push(repair);
            }
        }
        let surplus: Vec<Removal> = surplus
            .into_iter()
            .filter(|removal| !wanted.contains(&(removal.server, removal.block)))
            .collect();
        self.call_off(&surplus);
        self.surplus.replace(surplus);
    }

    /// Takes what garbage collection wants done in place of what it wanted before.
    pub fn remove_garbage(&mut self, replicas: Vec<Removal>) {
        self.call_off(&replicas);
        self.garbage.replace(replicas);
    }

    /// How many copies of each block are under way to DataServers that are alive and that the plan
    /// does not name for it any more. They will be there soon: then the next plan sees them.
    fn astray(&self, plan: &[Repair], alive: &Alive) -> HashMap<BlockId, usize> {
        if self.running.is_empty() {
            return HashMap::new();
        }
        let wanted: HashSet<_> = plan.iter().map(|repair| (repair.to, repair.block)).collect();
        let mut astray = HashMap::new();
        for key @ (to, block) in self.running.keys() {
            if alive.contains_key(to) && !wanted.contains(key) {
                *astray.entry(*block).or_default() += 1;
            }
        }
        astray
    }

    /// A later plan wants these removed: they are not to be copied there.
    fn call_off(&mut self, removals: &[Removal]) {
        if self.waiting.is_empty() && self.running.is_empty() {
            return;
        }
        let unwanted: HashSet<_> = removals.iter().map(|gone| (gone.server, gone.block)).collect();
        self.waiting
            .retain(|repair| !unwanted.contains(&(repair.to, repair.block)));
        self.running.retain(|key, _| !unwanted.contains(key));
    }

    /// A DataServer reported these blocks, sorted. Returns how many copies came to their end by it.
    pub fn reported(&mut self, server: ServerId, blocks: &[u64]) -> usize {
        let before = self.running.len();
        self.running
            .retain(|(to, block), _| *to != server || blocks.binary_search(&block.0).is_err());
        before - self.running.len()
    }

    /// Whether a DataServer was told to remove a block.
    pub fn told_to_remove(&self, server: ServerId, block: BlockId) -> bool {
        self.surplus.handed_out(server, block) || self.garbage.handed_out(server, block)
    }

    /// Something got worse: what was a replica too many may be needed now. The next plan will say.
    pub fn doubt_surplus(&mut self) {
        self.surplus = Removals::default();
    }

    /// Whether there may be anything for a DataServer to do.
    pub fn any_for(&self, server: ServerId) -> bool {
        self.waiting.iter().any(|repair| repair.to == server)
            || self.surplus.any_for(server)
            || self.garbage.any_for(server)
    }

    /// What a DataServer that has just beaten is to do now.
    pub fn hand_out(&mut self, server: ServerId, alive: &Alive, now: Instant) -> Vec<DataServerCommand> {
        let Some(live) = alive.get(&server) else {
            return Vec::new();
        };
        self.expire(now);
        let mut removals = self.surplus.hand_out(server, live, removals::MAX_PER_ANSWER, now);
        let room = removals::MAX_PER_ANSWER - removals.len();
        removals.extend(self.garbage.hand_out(server, live, room, now));
        let once: BTreeSet<BlockId> = removals.into_iter().collect();
        let mut commands: Vec<_> = once.into_iter().map(DataServerCommand::Delete).collect();
        commands.extend(self.copies_to(server, alive, now));
        commands
    }

    fn copies_to(&mut self, server: ServerId, alive: &Alive, now: Instant) -> Vec<DataServerCommand> {
        let (mut to, mut from) = (Load::default(), Load::default());
        for ((target, _), running) in &self.running {
            to.add(*target);
            from.add(running.from);
        }
        let mut places = self.max_running.saturating_sub(self.running.len());
        let mut copies = Vec::new();
        let running = &mut self.running;
        self.waiting.retain(|repair| {
            let Repair {
                block, to: target, ..
            } = *repair;
            let Some(receiver) = alive.get(&target) else {
                return true;
            };
            if receiver.has(block) {
                return false;
            }
            if places == 0 || to.is_full(target) {
                return true;
            }
            let sources = repair.from.iter().filter(|source| !from.is_full(**source));
            let mut holders = sources.filter_map(|source| Some((*source, alive.get(source)?)));
            let Some((source, holder)) = holders.find(|(_, holder)| holder.has(block)) else {
                return true;
            };
            // Also if it goes out at another one's beat: then this place waits for that.
            places -= 1;
            to.add(target);
            from.add(source);
            if target != server {
                return true;
            }
            let expires = now + COPY_PATIENCE;
            running.insert(
                (target, block),
                Running {
                    from: source,
                    expires,
                },
            );
            copies.push(DataServerCommand::Copy {
                block,
                from: holder.addr.clone(),
            });
            false
        });
        copies
    }

    fn expire(&mut self, now: Instant) {
        self.running.retain(|(to, block), running| {
            let lasts = now < running.expires;
            if !lasts {
                log::debug!("block {block} was not copied to DataServer number {to} in time");
            }
            lasts
        });
    }

    /// How much is to be done.
    pub fn counts(&self, now: Instant) -> OrderCounts {
        let running = self.running.values().filter(|running| now < running.expires);
        OrderCounts {
            repairs_running: running.count(),
            repairs_waiting: self.waiting.len(),
            removals_waiting: self.surplus.waiting() + self.garbage.waiting(),
        }
    }
}

/// How many copies each DataServer takes part in, on one side.
#[derive(Default)]
struct Load(BTreeMap<ServerId, usize>);

impl Load {
    fn add(&mut self, server: ServerId) {
        *self.0.entry(server).or_default() += 1;
    }

    fn is_full(&self, server: ServerId) -> bool {
        self.0
            .get(&server)
            .is_some_and(|copies| *copies >= COPIES_PER_SERVER)
    }
}
