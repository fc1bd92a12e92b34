//! Garbage collection: which replicas to delete, which entries to forget, and which blocks nobody knows.
//!
//! The scheduler makes one [`Gc`] a pass, shows it everything that names blocks, slice by slice, and
//! carries out the [`GcPlan`]. Why each rule is as it is: `docs/decisions/0005-deleting-blocks.md`.
//!
//! - *Garbage* that a DataServer reports is deleted there. An entry is released when nobody reports
//!   any of it and everybody who may hold it has reported since it became garbage.
//! - A block that is reported and *unknown*, that is in nobody's records, becomes garbage by a replicated
//!   command after it has stayed unknown to this leader for a grace time. Numbers that were never given
//!   out are *foreign*: another cluster's, perhaps, and never deleted.
//! - Where more than a share of a DataServer's blocks is unknown, they are *held back* until an
//!   operator allows it: that is what a lost state looks like.
//!
//! Invariant: nothing is deleted without a replicated record that says so.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::census::{Census, Held, Sweep};
use super::command::Orphan;
use super::fsck::{Replica, ms};
use super::ids::{BlockId, ServerId};
use super::slices::{GarbagePart, Named, NamedSlice};

#[cfg(test)]
mod tests;

/// So few unknown blocks are never held back, however few blocks a DataServer has.
pub const MASS_DELETE_MIN: u64 = 64;

/// How long a garbage entry waits for a DataServer that is gone. What it still holds when it comes
/// back later is unknown then.
const GIVE_UP: Duration = Duration::from_secs(7 * 24 * 3600);

/// Unknown blocks remembered at a time; the others wait until these are gone.
const REMEMBERED_MAX: usize = 1_000_000;

/// The rules of a pass and the bounds of its plan.
#[derive(Clone, Copy, Debug)]
pub struct GcSettings {
    /// How much younger than an entry a report must be for its silence to release it: what was being
    /// written when the entry was made has arrived by then.
    pub heard_margin: Duration,
    /// How long a block stays unknown before it is condemned.
    pub orphan_grace: Duration,
    /// The share of a DataServer's blocks beyond which its unknown ones are held back.
    pub mass_delete_share: f64,
    /// Removals in one plan.
    pub max_removals: usize,
    /// Entries that one plan releases.
    pub max_releases: usize,
    /// Blocks that one plan condemns.
    pub max_condemned: usize,
}

/// What time it is.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// By a clock that only goes forward.
    pub instant: Instant,
    /// Unix milliseconds.
    pub unix_ms: i64,
}

/// What a pass counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcCounts {
    /// Entries of garbage.
    pub garbage_runs: u64,
    /// Blocks in them.
    pub garbage_blocks: u64,
    /// Replicas of these that are still reported.
    pub garbage_replicas: u64,
    /// Blocks in nobody's records that wait for an operator's word.
    pub held_back: u64,
}

/// Blocks of one DataServer that are in nobody's records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strangers {
    /// Given out once by this cluster, by their numbers.
    pub unknown: u64,
    /// Of these, those that wait for an operator's word.
    pub held_back: u64,
    /// Never given out by this cluster.
    pub foreign: u64,
}

/// What a pass wants done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcPlan {
    /// Replicas of garbage that are reported.
    pub removals: Vec<Replica>,
    /// The first blocks of entries that can be forgotten.
    pub releases: Vec<BlockId>,
    /// Unknown blocks to be made garbage.
    pub condemned: Vec<Orphan>,
    /// Unknown blocks that wait for an operator's word.
    pub held_back: BTreeSet<BlockId>,
    /// What was counted.
    pub counts: GcCounts,
    /// The DataServers with blocks that are in nobody's records.
    pub strangers: BTreeMap<ServerId, Strangers>,
}

/// The blocks that one leader found unknown, and since when.
#[derive(Debug, Default)]
pub struct UnknownBlocks {
    since: BTreeMap<BlockId, Sighting>,
    pass: u64,
}

#[derive(Debug)]
struct Sighting {
    since: Instant,
    /// The last pass that saw it.
    pass: u64,
}

impl UnknownBlocks {
    /// Whether the last pass found `block` unknown.
    pub fn contains(&self, block: BlockId) -> bool {
        self.since.contains_key(&block)
    }

    /// Notes that `block` is unknown now; tells whether it has been so for `grace`.
    fn see(&mut self, block: BlockId, grace: Duration, now: Instant) -> bool {
        let pass = self.pass;
        match self.since.get_mut(&block) {
            Some(sighting) => {
                sighting.pass = pass;
                now.saturating_duration_since(sighting.since) >= grace
            }
            None => {
                if self.since.len() < REMEMBERED_MAX {
                    self.since.insert(block, Sighting { since: now, pass });
                }
                false
            }
        }
    }
}

/// One pass.
pub struct Gc<'c> {
    census: &'c Census,
    settings: GcSettings,
    now: Now,
    unknown: &'c mut UnknownBlocks,
    /// Unknown blocks that an operator allowed to delete.
    allowed: &'c BTreeSet<BlockId>,
    sweep: Sweep<'c>,
    /// What is below is judged, though the sweep may not have passed over it yet: runs follow one another, and
    /// to pass over many of them at once is much less work.
    judged: BlockId,
    plan: GcPlan,
    /// The entry whose last part has not come yet.
    entry: Option<Entry>,
    /// Replicas of blocks that were unknown for long enough, by block.
    expired: Vec<Replica>,
    /// By place in the census.
    tallies: Vec<Tally>,
}

/// A garbage entry, as far as its parts have been seen.
struct Entry {
    first: BlockId,
    /// Somebody reports some of it, or may hold some and was not heard.
    waits: bool,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    strangers: Strangers,
    /// Of the unknown ones, those that an operator allowed to delete.
    allowed: u64,
}

impl<'c> Gc<'c> {
    /// A pass that has seen nothing yet.
    pub fn new(
        census: &'c Census,
        settings: GcSettings,
        now: Now,
        unknown: &'c mut UnknownBlocks,
        allowed: &'c BTreeSet<BlockId>,
    ) -> Self {
        unknown.pass += 1;
        Gc {
            census,
            settings,
            now,
            unknown,
            allowed,
            // No number 0 is ever given out: it is foreign.
            sweep: census.sweep(1..u64::MAX),
            judged: BlockId(1),
            plan: GcPlan::default(),
            entry: None,
            expired: Vec::new(),
            tallies: vec![Tally::default(); census.servers().len()],
        }
    }

    /// Judges the next slice.
    pub fn judge(&mut self, slice: &NamedSlice) {
        for Named { blocks, garbage } in &slice.named {
            if blocks.start > self.judged.0 || garbage.is_some() {
                self.judge_unknown(BlockId(blocks.start));
            }
            if let Some(part) = garbage {
                self.judge_garbage(part, blocks.start, blocks.end);
            }
            self.judged = BlockId(blocks.end);
        }
        if slice.next.is_none() {
            self.judge_unknown(BlockId(slice.next_block));
            self.count_foreign(slice.next_block);
        }
    }

    /// What is reported below `end` and was not judged yet is in nobody's records.
    fn judge_unknown(&mut self, end: BlockId) {
        self.sweep.pass_over(self.judged);
        while let Some(Held { block, good, corrupt }) = self.sweep.next_below(end) {
            let allowed = self.allowed.contains(&block);
            let expired = self
                .unknown
                .see(block, self.settings.orphan_grace, self.now.instant);
            for &server in good.iter().chain(corrupt) {
                let Some(at) = self.census.position(server) else {
                    continue;
                };
                self.tallies[at].strangers.unknown += 1;
                self.tallies[at].allowed += u64::from(allowed);
                if expired {
                    self.expired.push(Replica { server, block });
                }
            }
        }
    }

    fn judge_garbage(&mut self, part: &GarbagePart, start: u64, end: u64) {
        let run = &part.garbage.run;
        self.plan.counts.garbage_blocks += end - start;
        let since_ms = part.garbage.since_ms;
        if start == run.first.0 {
            self.plan.counts.garbage_runs += 1;
            // The replicas of the first blocks reach no further into the list of DataServers.
            let reached = run.count.saturating_add(u64::from(run.replication)) - 1;
            let reached = usize::try_from(reached).map_or(run.servers.len(), |n| n.min(run.servers.len()));
            let placed = &run.servers[..reached];
            self.entry = Some(Entry {
                first: run.first,
                waits: !placed.iter().all(|server| self.was_heard(*server, since_ms)),
            });
        }
        let moved = part.moved.iter().flat_map(|(_, servers)| servers);
        let mut waits = !moved.copied().all(|server| self.was_heard(server, since_ms));
        while let Some(Held { block, good, corrupt }) = self.sweep.next_below(BlockId(end)) {
            waits = true;
            let holders = good.iter().chain(corrupt);
            self.plan.counts.garbage_replicas += (good.len() + corrupt.len()) as u64;
            let room = self.settings.max_removals - self.plan.removals.len();
            let removals = holders.take(room);
            self.plan
                .removals
                .extend(removals.map(|&server| Replica { server, block }));
        }
        // An entry whose beginning this pass did not see is not released by it.
        let Some(entry) = self.entry.as_mut().filter(|entry| entry.first == run.first) else {
            return;
        };
        entry.waits |= waits;
        if end == run.first.0 + run.count
            && !entry.waits
            && self.plan.releases.len() < self.settings.max_releases
        {
            self.plan.releases.push(run.first);
        }
    }

    /// Whether a DataServer that may hold garbage has told what it holds since it became garbage.
    fn was_heard(&self, server: ServerId, since_ms: i64) -> bool {
        let given_up = self.now.unix_ms.saturating_sub(since_ms) > ms(GIVE_UP);
        match self.census.server(server) {
            Some(reported) if reported.alive => {
                reported.heard_after(since_ms.saturating_add(ms(self.settings.heard_margin)))
            }
            Some(_) | None => given_up,
        }
    }

    fn count_foreign(&mut self, next_block: u64) {
        for (reported, tally) in self.census.servers().iter().zip(&mut self.tallies) {
            if !reported.alive {
                continue;
            }
            let lists = [&reported.blocks, &reported.corrupt];
            let foreign = lists.map(|list| {
                let known = list.partition_point(|&block| block < next_block);
                list.len() - known + usize::from(known > 0 && list[0] == 0)
            });
            tally.strangers.foreign = (foreign[0] + foreign[1]) as u64;
        }
    }

    /// Everything was judged, the last slice included: the plan.
    pub fn finish(self) -> GcPlan {
        let Gc {
            census,
            settings,
            unknown,
            allowed,
            mut plan,
            expired,
            mut tallies,
            ..
        } = self;
        let pass = unknown.pass;
        unknown.since.retain(|_, sighting| sighting.pass == pass);

        let servers = census.servers();
        let too_many = |at: usize, tally: &Tally| {
            let reported = servers[at].blocks.len() + servers[at].corrupt.len();
            let share = reported as f64 * settings.mass_delete_share;
            // Those that are not due yet count, too: what was lost at once must not go in portions.
            let unknown = tally.strangers.unknown - tally.allowed;
            unknown > MASS_DELETE_MIN && unknown as f64 > share
        };
        let holds_back: Vec<bool> = tallies
            .iter()
            .enumerate()
            .map(|(at, tally)| too_many(at, tally))
            .collect();
        for replicas in expired.chunk_by(|a, b| a.block == b.block) {
            let block = replicas[0].block;
            let at = |replica: &Replica| census.position(replica.server);
            let held_back =
                !allowed.contains(&block) && replicas.iter().filter_map(at).any(|at| holds_back[at]);
            if held_back {
                plan.held_back.insert(block);
                for at in replicas.iter().filter_map(at) {
                    tallies[at].strangers.held_back += 1;
                }
            } else if plan.condemned.len() < settings.max_condemned {
                plan.condemned.push(Orphan {
                    block,
                    holders: replicas.iter().map(|replica| replica.server).collect(),
                });
            }
        }
        plan.counts.held_back = plan.held_back.len() as u64;
        let strangers = servers
            .iter()
            .zip(tallies)
            .map(|(reported, tally)| (reported.server, tally.strangers));
        plan.strangers = strangers
            .filter(|(_, strangers)| *strangers != Strangers::default())
            .collect();
        plan
    }
}
