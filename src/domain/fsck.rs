//! FSCK: what should be, compared with what is reported, and what to do about it.
//!
//! The scheduler makes one [`Fsck`] a pass, shows it every run, slice by slice, and carries out the
//! [`FsckPlan`]. A block is judged by itself:
//!
//! | an expected DataServer | counts as | the plan |
//! |---|---|---|
//! | reports the block | fine | |
//! | reports it damaged, or not at all | a gap | copy it there again; if its disk is full, elsewhere |
//! | is permanently down | a gap | copy it elsewhere |
//! | is silent, but not yet down | lacking | wait |
//! | has not reported since the block was written | not known | judge the block in a later pass |
//!
//! A gap is filled by a good replica that lies on another DataServer than the record says, if there is
//! one: then the record is corrected and nothing is copied. That is also how a copy to a new place ends:
//! it is ordered, one day reported, and the next pass moves the record.
//!
//! Invariants: a replica is removed only while every expected DataServer reports a good one, so the
//! good ones never become fewer than the replication by the plan's own doing. A damaged replica in a wrong
//! place waits for that, too: it may be the last that is left to rescue. The plan depends on nothing but
//! the census and the records.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::census::{BlockView, Census, Health, Reported, Sweep, Views};
use super::ids::{BlockId, ServerId};
use super::open_writes::OpenWrites;
use super::slices::RunSlice;
use super::state::{ServerStatus, WriteState};

#[cfg(test)]
mod tests;

/// The bounds of a plan.
#[derive(Clone, Copy, Debug)]
pub struct FsckSettings {
    /// How much younger than a write a report must be for its silence to count: reports are on their way
    /// for a while.
    pub settle: Duration,
    /// Copies in one plan: the most urgent ones.
    pub max_copies: usize,
    /// Corrections of records in one plan.
    pub max_moves: usize,
    /// Removals in one plan.
    pub max_surplus: usize,
}

/// A replica to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Of which block.
    pub block: BlockId,
    /// Who shall have it.
    pub to: ServerId,
    /// Who has it, best source first; at least one.
    pub from: Vec<ServerId>,
}

/// A record to correct: the replica that should be on one DataServer is on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Of which block.
    pub block: BlockId,
    /// Where the record says that it is.
    pub from: ServerId,
    /// Where a good replica is.
    pub to: ServerId,
}

/// A replica to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Replica {
    /// Who holds it.
    pub server: ServerId,
    /// Of which block.
    pub block: BlockId,
}

/// What a pass counted. Blocks of finalized files only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsckCounts {
    /// All of them.
    pub blocks: u64,
    /// With fewer good replicas than there should be, but one at least.
    pub under_replicated: u64,
    /// With more.
    pub over_replicated: u64,
    /// Without any on a DataServer that is alive: nothing to copy from.
    pub unrepairable: u64,
    /// Not judged: a DataServer that should hold them has not reported since they were written.
    pub unsettled: u64,
    /// Gaps that no DataServer can take: too few are healthy, or their disks are full.
    pub homeless: u64,
    /// Runs that are allocated and not finalized.
    pub open_writes: u64,
}

/// What a pass wants done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsckPlan {
    /// Blocks with the fewest good replicas first.
    pub copies: Vec<Copy>,
    /// Records to correct.
    pub moves: Vec<Move>,
    /// Replicas too many, of blocks whose every expected DataServer reports a good one.
    pub surplus: Vec<Replica>,
    /// What was counted.
    pub counts: FsckCounts,
}

/// One pass.
pub struct Fsck<'c> {
    census: &'c Census,
    settings: FsckSettings,
    sweep: Sweep<'c>,
    /// By urgency: good replicas left, then block.
    needs: BTreeMap<(usize, BlockId), Need>,
    plan: FsckPlan,
    /// Where in the census the DataServers stand that take new replicas.
    takers: Vec<usize>,
}

/// A block that needs copies.
struct Need {
    good: Vec<ServerId>,
    corrupt: Vec<ServerId>,
    expected: Vec<ServerId>,
    /// Expected DataServers that shall have it (again).
    in_place: Vec<ServerId>,
    /// How many others shall have it.
    elsewhere: usize,
}

impl Need {
    fn could_go_to(&self, server: ServerId) -> bool {
        !self.expected.contains(&server) && !self.good.contains(&server)
    }
}

/// How an expected DataServer without a good replica stands.
enum Gap {
    Down,
    Damaged,
    Lacking,
    Silent,
    NotKnown,
}

impl<'c> Fsck<'c> {
    /// A pass that has seen nothing yet.
    pub fn new(census: &'c Census, settings: FsckSettings) -> Self {
        let servers = census.servers().iter().enumerate();
        let takers = servers.filter(|(_, reported)| reported.alive && reported.takes_blocks);
        Fsck {
            census,
            settings,
            sweep: census.sweep(0..u64::MAX),
            needs: BTreeMap::new(),
            plan: FsckPlan::default(),
            takers: takers.map(|(at, _)| at).collect(),
        }
    }

    /// Judges the next slice. Runs that are open are not judged but shown to `open`.
    pub fn judge(&mut self, slice: &RunSlice, open: &mut OpenWrites, now: Instant) {
        for part in &slice.parts {
            let (run, blocks) = (&part.owned.run, part.blocks.clone());
            match part.owned.write {
                WriteState::Open(_) => {
                    if blocks.start == run.first.0 {
                        self.plan.counts.open_writes += 1;
                    }
                    self.sweep.pass_over(BlockId(blocks.start));
                    let mut replicas = 0;
                    while let Some(held) = self.sweep.next_below(BlockId(blocks.end)) {
                        replicas += (held.good.len() + held.corrupt.len()) as u64;
                    }
                    open.see(run.first, replicas, now);
                }
                WriteState::Written { at_ms } => {
                    let settled_ms = at_ms.saturating_add(ms(self.settings.settle));
                    let Fsck { census, sweep, .. } = self;
                    let mut judge = Judge {
                        census,
                        settings: self.settings,
                        needs: &mut self.needs,
                        plan: &mut self.plan,
                        takers: &self.takers,
                        settled_ms,
                    };
                    let moved = slice.moved_from(blocks.start);
                    let mut views = Views::new(sweep, run, blocks, moved);
                    while let Some(view) = views.next() {
                        judge.block(view);
                    }
                }
            }
        }
    }

    /// Everything was judged: the plan.
    pub fn finish(self) -> FsckPlan {
        let Fsck {
            census,
            settings,
            needs,
            mut plan,
            takers,
            ..
        } = self;
        let mut places = Places {
            census,
            takers,
            load: vec![(0, 0); census.servers().len()],
        };
        for ((_, block), need) in needs {
            let mut targets = need.in_place.clone();
            for &server in &need.in_place {
                places.assign(server);
            }
            for _ in 0..need.elsewhere {
                match places.choose(&need, &targets) {
                    Some(server) => targets.push(server),
                    None => plan.counts.homeless += 1,
                }
            }
            for to in targets {
                if plan.copies.len() >= settings.max_copies {
                    return plan;
                }
                let from = places.sources(&need.good);
                plan.copies.push(Copy { block, to, from });
            }
        }
        plan
    }
}

/// What judges the blocks of one run.
struct Judge<'j> {
    census: &'j Census,
    settings: FsckSettings,
    needs: &'j mut BTreeMap<(usize, BlockId), Need>,
    plan: &'j mut FsckPlan,
    takers: &'j [usize],
    settled_ms: i64,
}

impl Judge<'_> {
    fn block(&mut self, view: BlockView<'_>) {
        self.plan.counts.blocks += 1;
        let BlockView {
            block,
            expected,
            good,
            corrupt,
        } = view;
        let mut silent = false;
        let mut gaps: [Vec<ServerId>; 3] = Default::default();
        for server in view.missing() {
            match self.gap(server, corrupt) {
                // A replacement matters most where nothing can come back.
                Gap::Down => gaps[0].push(server),
                Gap::Damaged => gaps[1].push(server),
                Gap::Lacking => gaps[2].push(server),
                Gap::Silent => silent = true,
                Gap::NotKnown => {
                    self.plan.counts.unsettled += 1;
                    return;
                }
            }
        }
        match view.health() {
            Health::Healthy => {}
            Health::OverReplicated => self.plan.counts.over_replicated += 1,
            Health::UnderReplicated => self.plan.counts.under_replicated += 1,
            Health::Missing => {
                self.plan.counts.unrepairable += 1;
                return;
            }
        }
        let mut gaps = gaps.into_iter().flatten().peekable();
        if gaps.peek().is_none() {
            if !silent {
                self.remove_surplus(view);
            }
            return;
        }
        let mut spare = good.iter().filter(|server| !expected.contains(server));
        let mut need = Need {
            good: good.to_vec(),
            corrupt: corrupt.to_vec(),
            expected: expected.to_vec(),
            in_place: Vec::new(),
            elsewhere: 0,
        };
        for server in gaps {
            if let Some(&to) = spare.next() {
                if self.plan.moves.len() < self.settings.max_moves {
                    let from = server;
                    self.plan.moves.push(Move { block, from, to });
                }
                continue;
            }
            match self.census.server(server) {
                Some(reported) if reported.alive && reported.takes_blocks => need.in_place.push(server),
                // It has just come back: its beat is about to make it healthy.
                Some(reported) if reported.alive && reported.status != ServerStatus::Healthy => {}
                Some(_) | None => need.elsewhere += 1,
            }
        }
        self.need(block, need);
    }

    /// Why `server`, which should have a good replica, has none.
    fn gap(&self, server: ServerId, corrupt: &[ServerId]) -> Gap {
        match self.census.server(server) {
            // Registered since the reports were taken.
            None => Gap::NotKnown,
            Some(reported) if !reported.alive => match reported.status {
                ServerStatus::Down => Gap::Down,
                ServerStatus::Healthy | ServerStatus::Unhealthy => Gap::Silent,
            },
            Some(_) if corrupt.contains(&server) => Gap::Damaged,
            Some(reported) if reported.heard_after(self.settled_ms) => Gap::Lacking,
            Some(_) => Gap::NotKnown,
        }
    }

    fn remove_surplus(&mut self, view: BlockView<'_>) {
        let block = view.block;
        let room = self.settings.max_surplus - self.plan.surplus.len();
        let surplus = view.surplus().take(room);
        self.plan
            .surplus
            .extend(surplus.map(|server| Replica { server, block }));
    }

    /// Remembers a need if it is among the most urgent and anything can be done about it.
    fn need(&mut self, block: BlockId, mut need: Need) {
        if need.elsewhere > 0 {
            let servers = self.census.servers();
            let free = |at: &&usize| need.could_go_to(servers[**at].server);
            let places = self.takers.iter().filter(free).take(need.elsewhere).count();
            // What nobody can take must not keep others out.
            self.plan.counts.homeless += (need.elsewhere - places) as u64;
            need.elsewhere = places;
        }
        if need.in_place.is_empty() && need.elsewhere == 0 {
            return;
        }
        let urgency = (need.good.len(), block);
        if self.needs.len() >= self.settings.max_copies {
            match self.needs.last_entry() {
                Some(last) if *last.key() > urgency => drop(last.remove()),
                Some(_) | None => return,
            }
        }
        self.needs.insert(urgency, need);
    }
}

/// Spreads copies over the DataServers.
struct Places<'c> {
    census: &'c Census,
    takers: Vec<usize>,
    /// Copies planned so far, by place in the census: to it, from it.
    load: Vec<(u32, u32)>,
}

impl Places<'_> {
    fn assign(&mut self, server: ServerId) {
        if let Some(at) = self.census.position(server) {
            self.load[at].0 += 1;
        }
    }

    /// Where one more replica goes: to whom the fewest copies go so far, then where the most space is
    /// free. A DataServer that holds a damaged replica in a wrong place comes last: the copy replaces it.
    fn choose(&mut self, need: &Need, taken: &[ServerId]) -> Option<ServerId> {
        let servers = self.census.servers();
        let free = self.takers.iter().filter(|at| {
            let server = servers[**at].server;
            need.could_go_to(server) && !taken.contains(&server)
        });
        let at = free.min_by_key(|at| {
            let Reported {
                server, free_space, ..
            } = servers[**at];
            let damaged = need.corrupt.contains(&server);
            (damaged, self.load[**at].0, Reverse(free_space), server)
        });
        let at = *at?;
        self.load[at].0 += 1;
        Some(servers[at].server)
    }

    /// The holders of a good replica, those first from whom the fewest copies come so far.
    fn sources(&mut self, good: &[ServerId]) -> Vec<ServerId> {
        let load_of = |server: &ServerId| {
            let at = self.census.position(*server);
            at.map_or(u32::MAX, |at| self.load[at].1)
        };
        let mut sources = good.to_vec();
        sources.sort_by_key(|server| (load_of(server), *server));
        if let Some(at) = sources.first().and_then(|first| self.census.position(*first)) {
            self.load[at].1 += 1;
        }
        sources
    }
}

/// Whole milliseconds, to be added to a time of day.
pub(super) fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
