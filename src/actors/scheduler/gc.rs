//! Passes of garbage collection: what is reported is held beside everything that names blocks, and
//! what the plan says is carried out.
//!
//! A pass is due every `scheduler.gc_interval`; early when this node begins to lead, when the last
//! one condemned blocks, and when an operator allowed to delete what was held back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use actix::fut::{ActorFutureExt, WrapFuture};
use actix::{AsyncContext, Context, Handler};

use super::SchedulerActor;
use super::messages::{AllowMassDelete, GcDue, GcSummary};
use super::passes::{Cancel, Entry, NoPass, Running, SLICE, for_each_slice};
use super::proposals::{condemn, release_garbage};
use crate::actors::data_servers::messages::{Removal, RemoveGarbage, Reports};
use crate::actors::unix_ms;
use crate::domain::census::Census;
use crate::domain::gc::{Gc, GcPlan, GcSettings, Now, Strangers, UnknownBlocks};
use crate::domain::ids::{BlockId, ServerId};
use crate::domain::slices::read_named;
use crate::storage::StateReader;

/// The bounds of one plan. What is left out is found again.
const MAX_REMOVALS: usize = 500_000;
const MAX_RELEASES: usize = 16_384;
const MAX_CONDEMNED: usize = 16_384;

/// What the actor keeps about garbage collection.
#[derive(Default)]
pub(super) struct GcState {
    running: Option<Running>,
    unknown: UnknownBlocks,
    /// Unknown blocks that wait for an operator's word.
    held_back: BTreeSet<BlockId>,
    /// Unknown blocks that have it.
    allowed: BTreeSet<BlockId>,
    /// Of the last complete pass.
    pub summary: Option<GcSummary>,
    /// A pass should begin before its time.
    wanted: bool,
    /// When the last pass had its result, and how long it took.
    ended: Option<(Instant, Duration)>,
    /// The DataServers of which the log says that deletes are held back.
    said: BTreeSet<ServerId>,
}

impl GcState {
    /// Another term: nothing of this one counts, and the graces begin anew. A pass under way ends by
    /// itself, without a result.
    pub fn forget(&mut self) {
        if let Some(running) = &self.running {
            running.cancel();
        }
        *self = GcState {
            running: self.running.take(),
            wanted: true,
            ..GcState::default()
        };
    }

    /// Whether a pass should begin before its time, and may: passes take a twentieth of the time.
    pub fn should_begin_early(&self, pause: Duration) -> bool {
        let rested = |(at, took): (Instant, Duration)| at.elapsed() >= pause.max(took * 20);
        self.wanted && !self.is_running() && self.ended.is_none_or(rested)
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }
}

/// What a pass found.
struct Found {
    reports: Reports,
    summary: GcSummary,
    plan: GcPlan,
}

/// The whole pass, up to its plan; gives the memory of unknown blocks back.
async fn judge_everything(
    entry: Entry,
    unknown: UnknownBlocks,
    allowed: BTreeSet<BlockId>,
    settings: GcSettings,
    cancel: Cancel,
) -> (UnknownBlocks, Result<Found, NoPass>) {
    let reports = match entry.enter().await {
        Ok(reports) => reports,
        Err(why) => return (unknown, Err(why)),
    };
    let census = Census::from(&reports);
    let state = entry.state;
    let pass = tokio::task::spawn_blocking(move || {
        let mut unknown = unknown;
        let found = judge_on_this_thread(&state, &census, &mut unknown, &allowed, settings, &cancel);
        (unknown, found)
    });
    match pass.await {
        Ok((unknown, found)) => (
            unknown,
            found.map(|(summary, plan)| Found {
                reports,
                summary,
                plan,
            }),
        ),
        Err(error) => (UnknownBlocks::default(), Err(error.into())),
    }
}

fn judge_on_this_thread(
    state: &StateReader,
    census: &Census,
    unknown: &mut UnknownBlocks,
    allowed: &BTreeSet<BlockId>,
    settings: GcSettings,
    cancel: &Cancel,
) -> Result<(GcSummary, GcPlan), NoPass> {
    let now = Now {
        instant: Instant::now(),
        unix_ms: unix_ms(),
    };
    let mut gc = Gc::new(census, settings, now, unknown, allowed);
    for_each_slice(cancel, |from| {
        let slice = state.read(|view| read_named(view, from, SLICE))?;
        gc.judge(&slice);
        Ok(slice.next)
    })?;
    let mut plan = gc.finish();
    let finished = Instant::now();
    let summary = GcSummary {
        finished,
        took: finished - now.instant,
        counts: plan.counts,
        strangers: std::mem::take(&mut plan.strangers),
    };
    Ok((summary, plan))
}

impl SchedulerActor {
    /// Begins a pass, if this node leads and none is under way.
    pub(super) fn begin_gc(&mut self, ctx: &mut Context<Self>) {
        if !self.leadership.is_leader() || self.gc.is_running() {
            return;
        }
        let (running, cancel) = Running::new(self.leadership.term);
        self.gc.running = Some(running);
        let was_wanted = std::mem::take(&mut self.gc.wanted);
        let settings = GcSettings {
            heard_margin: self.settings.heartbeat_timeout,
            orphan_grace: self.settings.orphan_grace,
            mass_delete_share: self.settings.mass_delete_share,
            max_removals: MAX_REMOVALS,
            max_releases: MAX_RELEASES,
            max_condemned: MAX_CONDEMNED,
        };
        let unknown = std::mem::take(&mut self.gc.unknown);
        let allowed = self.gc.allowed.clone();
        let pass = judge_everything(self.entry(), unknown, allowed, settings, cancel.clone());
        ctx.spawn(pass.into_actor(self).map(move |(unknown, found), actor, ctx| {
            if let Some(found) = actor.gc_judged(unknown, found, was_wanted, &cancel) {
                actor.carry_out_gc(found, cancel, ctx);
            }
        }));
    }

    /// A pass has its result, or none.
    fn gc_judged(
        &mut self,
        unknown: UnknownBlocks,
        found: Result<Found, NoPass>,
        was_wanted: bool,
        cancel: &Cancel,
    ) -> Option<Found> {
        let current = self.gc.running.as_ref().map(|running| running.term) == Some(self.leadership.term);
        if !self.leadership.is_leader() || !current || cancel.is_cancelled() {
            self.gc.running = None;
            return None;
        }
        self.gc.unknown = unknown;
        match found {
            Err(why) => {
                why.log("garbage collection");
                self.gc.wanted |= was_wanted;
                self.gc.running = None;
                None
            }
            Ok(found) => {
                let gc = &mut self.gc;
                let held_back = found.plan.held_back.difference(&gc.allowed);
                gc.held_back = held_back.copied().collect();
                // A word for blocks that are known by now, or gone, is used up.
                gc.allowed.retain(|block| gc.unknown.contains(*block));
                gc.ended = Some((found.summary.finished, found.summary.took));
                gc.summary = Some(found.summary.clone());
                self.say_gc(&found);
                Some(found)
            }
        }
    }

    fn carry_out_gc(&mut self, found: Found, cancel: Cancel, ctx: &mut Context<Self>) {
        let term = self.leadership.term;
        let (remove, proposer) = (self.neighbours.remove.clone(), self.proposer.clone());
        let carried_out = async move {
            let GcPlan {
                removals,
                releases,
                condemned,
                ..
            } = found.plan;
            let replicas = removals.into_iter().map(|replica| Removal {
                server: replica.server,
                block: replica.block,
            });
            let orders = RemoveGarbage {
                term,
                replicas: replicas.collect(),
            };
            super::order(remove, orders).await;
            release_garbage(&proposer, &cancel, &releases).await;
            condemn(&proposer, &cancel, &condemned).await
        };
        ctx.spawn(carried_out.into_actor(self).map(|condemned, actor, _| {
            if condemned > 0 {
                log::info!("{condemned} blocks that no record named for long are garbage now");
                actor.gc.wanted = true;
            }
            actor.gc.running = None;
        }));
    }

    /// Says at debug what was found, and warns once of every DataServer whose deletes are held back.
    fn say_gc(&mut self, found: &Found) {
        let counts = &found.summary.counts;
        log::debug!(
            "garbage: {} entries of {} blocks, {} replicas of them are reported; {} can be forgotten, {} unknown \
             blocks become garbage, {} are held back; {} ms",
            counts.garbage_runs,
            counts.garbage_blocks,
            counts.garbage_replicas,
            found.plan.releases.len(),
            found.plan.condemned.len(),
            counts.held_back,
            found.summary.took.as_millis(),
        );
        if self.gc.held_back.is_empty() {
            self.gc.said.clear();
            return;
        }
        for report in &found.reports.servers {
            let Some(Strangers {
                unknown, held_back, ..
            }) = found.summary.strangers.get(&report.server).copied()
            else {
                continue;
            };
            if held_back > 0 && self.gc.said.insert(report.server) {
                log::warn!(
                    "DataServer {} at {}: {unknown} of its {} blocks are in nobody's records, which is too many to \
                     delete without being told to: {held_back} deletes are held back until an operator types \
                     `minfs fsck --allow-mass-delete`",
                    report.id,
                    report.addr,
                    report.blocks.len() + report.corrupt.len(),
                );
            }
        }
    }
}

impl Handler<GcDue> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, _: GcDue, ctx: &mut Context<Self>) {
        self.begin_gc(ctx);
    }
}

impl Handler<AllowMassDelete> for SchedulerActor {
    type Result = u64;

    fn handle(&mut self, _: AllowMassDelete, ctx: &mut Context<Self>) -> u64 {
        let mut held_back = std::mem::take(&mut self.gc.held_back);
        let blocks = held_back.len() as u64;
        if blocks > 0 {
            log::warn!("an operator allows to delete {blocks} blocks that no record names");
            self.gc.allowed.append(&mut held_back);
            self.gc.wanted = true;
            self.begin_gc(ctx);
        }
        blocks
    }
}
