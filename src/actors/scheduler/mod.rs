//! The scheduler: when the leader's upkeep is due, and what is done with its plans.
//!
//! The actor owns its clocks and knows who leads. It tells `data_servers` to judge health,
//! frees the records of deleted directories (`reclaim`), and runs the passes of FSCK and of garbage
//! collection (`fsck`, `gc`): pure plans in `domain`, made on a thread of their own (`passes`) from the
//! replicated state and the reports. What a plan says goes to `data_servers` as orders and through the
//! proposer into the log (`proposals`). Nobody waits for any of it.
//!
//! Invariants: it acts only while this node leads, and what was found in one term is never acted on in
//! another. Passes of one kind follow each other, the carrying out included, so that each sees what
//! the last one did. Nothing is copied or deleted before the reports are complete and everything that
//! was committed by then is applied here.

mod fsck;
mod gc;
pub mod messages;
mod passes;
mod proposals;
mod reclaim;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use actix::fut::{ActorFutureExt, WrapFuture};
use actix::prelude::SendError;
use actix::{Actor, AsyncContext, Context, Handler, Message, MessageResult, Recipient};

use self::fsck::FsckState;
use self::gc::GcState;
use self::messages::{FsckDue, GcDue, GetUpkeepStatus, HealthCheckDue, NewsDue, ReclaimDue, UpkeepStatus};
use self::passes::Entry;
use super::data_servers::messages::{CheckHealth, GetReports, RemoveGarbage, RepairReplicas};
use super::proposer::Proposer;
use super::raft_node::messages::{GetReadIndex, LeadershipChanged, Propose};
use super::ticks::Ticks;
use crate::storage::StateReader;

/// The bounds of the time between two checks of the DataServers' health.
const HEALTH_CHECK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// How long `data_servers` may take to take orders.
const ORDER_PATIENCE: Duration = Duration::from_secs(5);

/// When what is due.
#[derive(Clone, Debug)]
pub struct SchedulerSettings {
    /// `cluster.heartbeat_timeout`: health is judged five times within it.
    pub heartbeat_timeout: Duration,
    /// How often to look for what cannot wait for a pass: deleted directories, and news of DataServers.
    pub look_interval: Duration,
    /// `scheduler.fsck_interval`: how often to compare all replicas with the records.
    pub fsck_interval: Duration,
    /// `scheduler.gc_interval`: how often to collect garbage.
    pub gc_interval: Duration,
    /// `scheduler.write_lease`: how long a write may stay open without progress.
    pub write_lease: Duration,
    /// `scheduler.orphan_grace`: how long a block may be reported and unknown.
    pub orphan_grace: Duration,
    /// `scheduler.mass_delete_share`: see [`crate::domain::gc`].
    pub mass_delete_share: f64,
}

/// Whom the scheduler tells and asks.
#[derive(Clone)]
pub struct SchedulerNeighbours {
    /// The Raft node: what enters the log.
    pub propose: Recipient<Propose>,
    /// The Raft node: how far the log is committed.
    pub read_index: Recipient<GetReadIndex>,
    /// `data_servers`: time to judge health.
    pub check_health: Recipient<CheckHealth>,
    /// `data_servers`: what is reported.
    pub reports: Recipient<GetReports>,
    /// `data_servers`: what FSCK wants done.
    pub repair: Recipient<RepairReplicas>,
    /// `data_servers`: what garbage collection wants done.
    pub remove: Recipient<RemoveGarbage>,
}

/// The actor.
pub struct SchedulerActor {
    settings: SchedulerSettings,
    state: StateReader,
    proposer: Proposer,
    neighbours: SchedulerNeighbours,
    leadership: LeadershipChanged,
    /// The records freed so far by the reclaiming that is under way.
    reclaiming: Option<u64>,
    fsck: FsckState,
    gc: GcState,
    /// `data_servers` is being asked for news.
    asking: bool,
    /// Dropped, and so stopped, with the actor.
    ticks: Vec<Ticks>,
}

impl SchedulerActor {
    /// A scheduler whose clocks run when it is started.
    pub fn new(settings: SchedulerSettings, state: StateReader, neighbours: SchedulerNeighbours) -> Self {
        SchedulerActor {
            settings,
            state,
            proposer: Proposer::new(neighbours.propose.clone()),
            neighbours,
            leadership: LeadershipChanged::UNKNOWN,
            reclaiming: None,
            fsck: FsckState::default(),
            gc: GcState::default(),
            asking: false,
            ticks: Vec::new(),
        }
    }

    fn entry(&self) -> Entry {
        Entry {
            reports: self.neighbours.reports.clone(),
            read_index: self.neighbours.read_index.clone(),
            state: self.state.clone(),
        }
    }

    /// Begins a pass of FSCK before its time if `data_servers` knows something that the last one did not.
    fn ask_for_news(&mut self, ctx: &mut Context<Self>) {
        if self.asking || !self.fsck.may_begin_early(self.settings.look_interval) {
            return;
        }
        self.asking = true;
        let reports = passes::reports(self.neighbours.reports.clone());
        ctx.spawn(reports.into_actor(self).map(|reports, actor, ctx| {
            actor.asking = false;
            match reports {
                Ok(reports) if reports.complete && !actor.fsck.has_seen(reports.generation) => {
                    actor.begin_fsck(ctx);
                }
                Ok(_) => {}
                Err(why) => why.log("looking for news"),
            }
        }));
    }
}

/// Gives `data_servers` its orders. If it is too busy, the next pass has newer ones.
async fn order<M>(data_servers: Recipient<M>, orders: M)
where
    M: Message<Result = ()> + Send + 'static,
{
    match tokio::time::timeout(ORDER_PATIENCE, data_servers.send(orders)).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => log::warn!("data_servers has stopped: orders for DataServers are lost"),
        Err(_) => log::warn!("data_servers is busy: orders for DataServers wait for the next pass"),
    }
}

impl Actor for SchedulerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let health_check = (self.settings.heartbeat_timeout / 5).clamp(HEALTH_CHECK.0, HEALTH_CHECK.1);
        let me = ctx.address();
        self.ticks = vec![
            Ticks::start(&me, health_check, HealthCheckDue),
            Ticks::start(&me, self.settings.look_interval, ReclaimDue),
            Ticks::start(&me, self.settings.look_interval, NewsDue),
            Ticks::start(&me, self.settings.fsck_interval, FsckDue),
            Ticks::start(&me, self.settings.gc_interval, GcDue),
        ];
    }
}

impl Handler<LeadershipChanged> for SchedulerActor {
    type Result = ();

    /// A new leader goes on at once with the reclaiming that the last one left.
    fn handle(&mut self, news: LeadershipChanged, ctx: &mut Context<Self>) {
        let (led, term) = (self.leadership.is_leader(), self.leadership.term);
        if !self.leadership.accept(news) {
            return;
        }
        if self.leadership.term != term || self.leadership.is_leader() != led {
            self.fsck.forget();
            self.gc.forget();
        }
        if !led {
            self.begin_reclaiming(ctx);
        }
    }
}

impl Handler<HealthCheckDue> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, _: HealthCheckDue, _: &mut Context<Self>) {
        if !self.leadership.is_leader() {
            return;
        }
        match self
            .neighbours
            .check_health
            .try_send(CheckHealth { at: Instant::now() })
        {
            Ok(()) => {}
            Err(SendError::Full(_)) => log::debug!("data_servers is busy: a health check is left out"),
            Err(SendError::Closed(_)) => log::warn!("data_servers has stopped: nobody checks health"),
        }
    }
}

impl Handler<NewsDue> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, _: NewsDue, ctx: &mut Context<Self>) {
        if !self.leadership.is_leader() {
            return;
        }
        if self.gc.should_begin_early(self.settings.look_interval) {
            self.begin_gc(ctx);
        }
        self.ask_for_news(ctx);
    }
}

impl Handler<GetUpkeepStatus> for SchedulerActor {
    type Result = MessageResult<GetUpkeepStatus>;

    fn handle(&mut self, _: GetUpkeepStatus, _: &mut Context<Self>) -> Self::Result {
        MessageResult(UpkeepStatus {
            fsck: self.fsck.summary,
            gc: self.gc.summary.clone(),
            reclaiming: self.leadership.is_leader() && self.reclaiming.is_some(),
        })
    }
}
