//! Passes of FSCK: every run is held beside what is reported, and what the plan says is carried out.
//!
//! A pass is due every `scheduler.fsck_interval`, and early when `data_servers` has news: a replica was
//! lost, or came where one was copied to. Its plan replaces the last one's orders.

use std::time::{Duration, Instant};

use actix::fut::{ActorFutureExt, WrapFuture};
use actix::{AsyncContext, Context, Handler};

use super::SchedulerActor;
use super::messages::{FsckDue, FsckSummary};
use super::passes::{Cancel, Entry, NoPass, Running, SLICE, for_each_slice};
use super::proposals::{abandon_writes, move_replicas};
use crate::actors::data_servers::messages::{Removal, Repair, RepairReplicas};
use crate::domain::census::Census;
use crate::domain::fsck::{Fsck, FsckCounts, FsckPlan, FsckSettings};
use crate::domain::ids::BlockId;
use crate::domain::open_writes::OpenWrites;
use crate::domain::slices::read_runs;
use crate::storage::StateReader;

/// A report is on its way for less than this, and for less than the time between two of them.
const SETTLE: Duration = Duration::from_secs(5);

/// The bounds of one plan. `data_servers` hands out some hundred copies at a time; what is left out
/// is found again.
const MAX_COPIES: usize = 10_000;
const MAX_MOVES: usize = 4_096;
const MAX_SURPLUS: usize = 100_000;

/// Writes that one pass frees.
const MAX_ABANDONED: usize = 4_096;

/// What the actor keeps about FSCK.
#[derive(Default)]
pub(super) struct FsckState {
    running: Option<Running>,
    open: OpenWrites,
    /// Of the last complete pass.
    pub summary: Option<FsckSummary>,
    /// [`crate::actors::data_servers::messages::Reports::generation`] of the last complete pass.
    seen: Option<u64>,
    /// When the last pass had its result, and how long it took.
    ended: Option<(Instant, Duration)>,
    /// What the log says, and since when.
    said: Option<(FsckCounts, Instant)>,
}

impl FsckState {
    /// Another term: nothing of this one counts. A pass under way ends by itself, without a result.
    pub fn forget(&mut self) {
        if let Some(running) = &self.running {
            running.cancel();
        }
        *self = FsckState {
            running: self.running.take(),
            ..FsckState::default()
        };
    }

    /// Whether another pass may begin before its time: passes take a twentieth of the time.
    pub fn may_begin_early(&self, pause: Duration) -> bool {
        let rested = |(at, took): (Instant, Duration)| at.elapsed() >= pause.max(took * 20);
        !self.is_running() && self.ended.is_none_or(rested)
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub fn has_seen(&self, generation: u64) -> bool {
        self.seen == Some(generation)
    }
}

/// What a pass found.
struct Found {
    generation: u64,
    summary: FsckSummary,
    plan: FsckPlan,
    abandoned: Vec<BlockId>,
}

/// The whole pass, up to its plan; gives the watch over open writes back.
async fn judge_everything(
    entry: Entry,
    open: OpenWrites,
    settings: FsckSettings,
    write_lease: Duration,
    cancel: Cancel,
) -> (OpenWrites, Result<Found, NoPass>) {
    let reports = match entry.enter().await {
        Ok(reports) => reports,
        Err(why) => return (open, Err(why)),
    };
    let generation = reports.generation;
    let census = Census::from(&reports);
    let state = entry.state;
    let pass = tokio::task::spawn_blocking(move || {
        let mut open = open;
        let found = judge_on_this_thread(&state, &census, &mut open, settings, write_lease, &cancel);
        (open, found)
    });
    match pass.await {
        Ok((open, found)) => (
            open,
            found.map(|(summary, plan, abandoned)| Found {
                generation,
                summary,
                plan,
                abandoned,
            }),
        ),
        Err(error) => (OpenWrites::default(), Err(error.into())),
    }
}

fn judge_on_this_thread(
    state: &StateReader,
    census: &Census,
    open: &mut OpenWrites,
    settings: FsckSettings,
    write_lease: Duration,
    cancel: &Cancel,
) -> Result<(FsckSummary, FsckPlan, Vec<BlockId>), NoPass> {
    let begun = Instant::now();
    let mut fsck = Fsck::new(census, settings);
    open.begin_pass();
    for_each_slice(cancel, |from| {
        let slice = state.read(|view| read_runs(view, from, SLICE))?;
        fsck.judge(&slice, open, begun);
        Ok(slice.next)
    })?;
    let mut abandoned = open.end_pass(write_lease, begun);
    abandoned.truncate(MAX_ABANDONED);
    let plan = fsck.finish();
    let finished = Instant::now();
    let summary = FsckSummary {
        finished,
        took: finished - begun,
        counts: plan.counts,
    };
    Ok((summary, plan, abandoned))
}

impl SchedulerActor {
    /// Begins a pass, if this node leads and none is under way.
    pub(super) fn begin_fsck(&mut self, ctx: &mut Context<Self>) {
        if !self.leadership.is_leader() || self.fsck.is_running() {
            return;
        }
        let (running, cancel) = Running::new(self.leadership.term);
        self.fsck.running = Some(running);
        let settings = FsckSettings {
            settle: SETTLE.min(self.settings.heartbeat_timeout),
            max_copies: MAX_COPIES,
            max_moves: MAX_MOVES,
            max_surplus: MAX_SURPLUS,
        };
        let open = std::mem::take(&mut self.fsck.open);
        let lease = self.settings.write_lease;
        let pass = judge_everything(self.entry(), open, settings, lease, cancel.clone());
        ctx.spawn(
            pass.into_actor(self)
                .map(|(open, found), actor, ctx| actor.fsck_judged(open, found, cancel, ctx)),
        );
    }

    /// A pass has its result, or none.
    fn fsck_judged(
        &mut self,
        open: OpenWrites,
        found: Result<Found, NoPass>,
        cancel: Cancel,
        ctx: &mut Context<Self>,
    ) {
        let term = self.leadership.term;
        let still_leads = self.leadership.is_leader();
        let current = self.fsck.running.as_ref().map(|running| running.term) == Some(term);
        if !still_leads || !current || cancel.is_cancelled() {
            self.fsck.running = None;
            return;
        }
        self.fsck.open = open;
        let found = match found {
            Ok(found) => found,
            Err(why) => {
                why.log("fsck");
                self.fsck.running = None;
                return;
            }
        };
        self.fsck.seen = Some(found.generation);
        self.fsck.summary = Some(found.summary);
        self.fsck.ended = Some((found.summary.finished, found.summary.took));
        self.say_fsck(&found);
        let (repair, proposer) = (self.neighbours.repair.clone(), self.proposer.clone());
        let carried_out = async move {
            let FsckPlan {
                copies,
                moves,
                surplus,
                counts: _,
            } = found.plan;
            let repairs = copies.into_iter().map(|copy| Repair {
                block: copy.block,
                to: copy.to,
                from: copy.from,
            });
            let surplus = surplus.into_iter().map(|replica| Removal {
                server: replica.server,
                block: replica.block,
            });
            let orders = RepairReplicas {
                term,
                generation: found.generation,
                repairs: repairs.collect(),
                surplus: surplus.collect(),
            };
            super::order(repair, orders).await;
            let moved = move_replicas(&proposer, &cancel, moves).await;
            let abandoned = abandon_writes(&proposer, &cancel, &found.abandoned).await;
            (moved, abandoned)
        };
        ctx.spawn(carried_out.into_actor(self).map(|(moved, abandoned), actor, _| {
            log::debug!("fsck: the records of {moved} replicas name their new places");
            if abandoned > 0 {
                log::info!("{abandoned} writes were abandoned: their blocks are garbage");
            }
            actor.fsck.running = None;
        }));
    }

    /// One line when something changed in kind, and now and then when it did in number.
    fn say_fsck(&mut self, found: &Found) {
        let FsckCounts {
            blocks,
            under_replicated,
            over_replicated,
            unrepairable,
            unsettled,
            homeless,
            open_writes,
        } = found.plan.counts;
        let (copies, moves) = (found.plan.copies.len(), found.plan.moves.len());
        let surplus = found.plan.surplus.len();
        log::debug!(
            "fsck: {blocks} blocks in {} ms; {under_replicated} have too few replicas, {unrepairable} have none, \
             {over_replicated} too many; {unsettled} not judged; {copies} copies, {moves} moves, {surplus} removals; \
             {open_writes} writes are open, {} abandoned",
            found.summary.took.as_millis(),
            found.abandoned.len(),
        );
        let kinds = |counts: &FsckCounts| {
            [
                counts.under_replicated,
                counts.over_replicated,
                counts.unrepairable,
                counts.homeless,
            ]
        };
        let now = Instant::now();
        let new = match &self.fsck.said {
            None => kinds(&found.plan.counts).iter().any(|&count| count > 0),
            Some((said, at)) => {
                let (said, found) = (kinds(said), kinds(&found.plan.counts));
                let other_kind = said.iter().zip(&found).any(|(a, b)| (*a > 0) != (*b > 0));
                other_kind || (said != found && at.elapsed() >= self.settings.fsck_interval)
            }
        };
        if !new {
            return;
        }
        self.fsck.said = Some((found.plan.counts, now));
        if kinds(&found.plan.counts) == [0; 4] {
            log::info!("fsck: all {blocks} blocks have their replicas");
        } else {
            log::info!(
                "fsck: of {blocks} blocks, {under_replicated} have too few replicas, {unrepairable} have none that \
                 can be read, {over_replicated} have too many; {copies} copies are ordered, {homeless} have no \
                 DataServer to go to"
            );
        }
    }
}

impl Handler<FsckDue> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, _: FsckDue, ctx: &mut Context<Self>) {
        self.begin_fsck(ctx);
    }
}
