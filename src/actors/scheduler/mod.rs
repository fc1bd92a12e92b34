//! The scheduler: when the leader's upkeep is due, and the reclaiming of deleted directories.
//!
//! The actor owns the clocks (`ticks`) and knows who leads. It tells `data_servers` to judge health,
//! and proposes [`Op::Reclaim`] through the Raft node as long as there are records to free. Nobody
//! waits for it.
//!
//! Invariants: it acts only while this node leads. At most one `Reclaim` is on its way, and between
//! two of them the log is free for clients at least as long as the first took.
//!
//! Work that comes later has its place here: FSCK and garbage collection each get a tick in
//! `messages`, a clock in `started`, and a handler that hands the replicated state and the reports to
//! a pure plan in `domain`. What the plan says goes to `data_servers` and, through the proposer, into
//! the log. After a change of leader they have to wait for reports, which health need not.

pub mod messages;
#[cfg(test)]
mod tests;
mod ticks;

use std::time::{Duration, Instant};

use actix::fut::{ActorFutureExt, WrapFuture};
use actix::prelude::SendError;
use actix::{Actor, AsyncContext, Context, Handler, Recipient};

use self::messages::{HealthCheckDue, ReclaimDue};
use self::ticks::Ticks;
use super::data_servers::messages::CheckHealth;
use super::proposer::Proposer;
use super::raft_node::messages::{LeadershipChanged, Propose, ProposeError};
use crate::domain::command::{Applied, Op, Outcome};
use crate::domain::state::ReadTables;
use crate::storage::StateReader;

/// Records that one command frees at most: about as much work as the clients' commands that share a
/// log entry.
const RECLAIM_LIMIT: u32 = 512;

/// The bounds of the pause between two `Reclaim`s.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(250));

/// The bounds of the time between two checks of the DataServers' health.
const HEALTH_CHECK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// When what is due.
#[derive(Clone, Debug)]
pub struct SchedulerSettings {
    /// `cluster.heartbeat_timeout`: health is judged five times within it.
    pub heartbeat_timeout: Duration,
    /// `scheduler.gc_interval`: how often to look for what deletes left.
    pub gc_interval: Duration,
}

/// The actor.
pub struct SchedulerActor {
    settings: SchedulerSettings,
    state: StateReader,
    proposer: Proposer,
    data_servers: Recipient<CheckHealth>,
    leadership: LeadershipChanged,
    /// The records freed so far by the reclaiming that is under way.
    reclaiming: Option<u64>,
    /// Dropped, and so stopped, with the actor.
    ticks: Vec<Ticks>,
}

impl SchedulerActor {
    /// A scheduler whose clocks run when it is started.
    pub fn new(
        settings: SchedulerSettings,
        state: StateReader,
        raft_node: Recipient<Propose>,
        data_servers: Recipient<CheckHealth>,
    ) -> Self {
        SchedulerActor {
            settings,
            state,
            proposer: Proposer::new(raft_node),
            data_servers,
            leadership: LeadershipChanged::UNKNOWN,
            reclaiming: None,
            ticks: Vec::new(),
        }
    }

    /// Begins to reclaim, if this node leads, there is something to reclaim and it has not begun.
    fn begin_reclaiming(&mut self, ctx: &mut Context<Self>) {
        if !self.leadership.is_leader() || self.reclaiming.is_some() {
            return;
        }
        match self.state.read(|view| view.first_detached()) {
            Ok(None) => {}
            Ok(Some(_)) => {
                self.reclaiming = Some(0);
                self.reclaim(ctx);
            }
            Err(error) => log::error!("cannot look for deleted directories: {error}"),
        }
    }

    /// Proposes one `Reclaim`; what becomes of it goes to [`SchedulerActor::reclaimed`].
    fn reclaim(&mut self, ctx: &mut Context<Self>) {
        let op = Op::Reclaim { limit: RECLAIM_LIMIT };
        let proposal = self.proposer.propose(op);
        let proposal_and_pause = async move {
            let begun = Instant::now();
            let answer = proposal.await;
            // Commands of clients are applied behind this one. Waiting as long as it took leaves them
            // at least half of the time, however slow the disk is.
            tokio::time::sleep(begun.elapsed().clamp(PAUSE.0, PAUSE.1)).await;
            answer
        };
        ctx.spawn(
            proposal_and_pause
                .into_actor(self)
                .map(|answer, actor, ctx| actor.reclaimed(answer, ctx)),
        );
    }

    /// One `Reclaim` has come to its end: goes on, or stops until the next tick.
    fn reclaimed(&mut self, answer: Result<Applied, ProposeError>, ctx: &mut Context<Self>) {
        let freed_before = self.reclaiming.take().unwrap_or_default();
        match answer {
            Ok(Ok(Outcome::Reclaimed { records, more })) => {
                let freed = freed_before + u64::from(records);
                if more && self.leadership.is_leader() {
                    self.reclaiming = Some(freed);
                    self.reclaim(ctx);
                } else {
                    let rest = if more {
                        "the rest is the next leader's"
                    } else {
                        "nothing is left"
                    };
                    log::info!("{freed} records of deleted directories are freed; {rest}");
                }
            }
            Ok(Ok(other)) => log::error!("reclaiming was answered with {other:?}"),
            Ok(Err(refusal)) => log::warn!("reclaiming was refused: {refusal}"),
            Err(error) => log::warn!("reclaiming stops after {freed_before} records for now: {error}"),
        }
    }
}

impl Actor for SchedulerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let health_check = (self.settings.heartbeat_timeout / 5).clamp(HEALTH_CHECK.0, HEALTH_CHECK.1);
        self.ticks = vec![
            Ticks::start(&ctx.address(), health_check, HealthCheckDue),
            Ticks::start(&ctx.address(), self.settings.gc_interval, ReclaimDue),
        ];
    }
}

impl Handler<LeadershipChanged> for SchedulerActor {
    type Result = ();

    /// A new leader goes on at once with what the last one left.
    fn handle(&mut self, news: LeadershipChanged, ctx: &mut Context<Self>) {
        let led = self.leadership.is_leader();
        if self.leadership.accept(news) && !led {
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
        match self.data_servers.try_send(CheckHealth { at: Instant::now() }) {
            Ok(()) => {}
            Err(SendError::Full(_)) => log::debug!("data_servers is busy: a health check is left out"),
            Err(SendError::Closed(_)) => log::warn!("data_servers has stopped: nobody checks health"),
        }
    }
}

impl Handler<ReclaimDue> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, _: ReclaimDue, ctx: &mut Context<Self>) {
        self.begin_reclaiming(ctx);
    }
}
