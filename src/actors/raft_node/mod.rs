//! The Raft node: proposes, answers "may I read?", forwards to the leader, tells who leads.
//!
//! Proposals wait in one queue (`proposals`). While this node leads, those that wait together
//! share a log entry (`leading`); while it follows, they are sent to the leader in the same portions
//! (`following`). Reads wait for rounds (`reads`). Before anything is sent, whatever is ready to run gets a
//! turn, so that it can come along. Where disk space is short, [`space`] decides.
//! [`consensus`] and [`peers`] are what it needs of openraft and of other nodes; [`membership`] forms the
//! cluster and keeps it complete.
//!
//! It is told who leads by the task in [`watch_raft`] and tells its subscribers. What it believes of
//! leadership is only ever a hint for routing: openraft decides, and a proposal sent to the wrong
//! place comes back and is sent again.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::sync::watch;

use crate::actors::data_servers::messages::PlanAllocation;
use crate::actors::store::AppliedIndex;
use crate::config::ReadMode;
use crate::space::Space;

pub mod consensus;
mod following;
mod leadership;
mod leading;
pub mod membership;
pub mod messages;
pub mod peer_service;
pub mod peers;
#[cfg(feature = "planted-bugs")]
mod planted;
mod proposals;
mod reads;
pub mod repeats;
pub mod snapshots;
pub mod space;
#[cfg(test)]
mod tests;

use consensus::Consensus;
pub use leadership::watch_raft;
use messages::*;
use peers::Peers;
use proposals::{Proposal, Queue, Route};
use reads::{Rounds, WaitingRead};
use repeats::Memory;
use space::SpaceBook;

/// How long to wait for news of a leader after something came back from where no leader was.
const HOLD: Duration = Duration::from_millis(25);

/// The longest that one attempt to confirm leadership may take; a read with time left tries again.
const READ_ROUND: Duration = Duration::from_secs(1);

/// What the Raft node is told at its making.
#[derive(Clone, Debug)]
pub struct RaftNodeSettings {
    /// This node's name.
    pub name: String,
    /// What a read waits for.
    pub reads: ReadMode,
    /// Proposals, and reads, that may wait at once.
    pub max_waiting: usize,
}

/// The Raft node. See the module's documentation.
pub struct RaftNodeActor {
    settings: RaftNodeSettings,
    consensus: Rc<dyn Consensus>,
    peers: Rc<dyn Peers>,
    plan: Recipient<PlanAllocation>,
    memory: Memory,
    applied: AppliedIndex,
    subscribers: Vec<Recipient<LeadershipChanged>>,
    leadership: LeadershipChanged,
    /// Moves when leadership does: whatever is under way to the old leader is given up.
    epoch: watch::Sender<u64>,
    queue: Queue,
    in_flight: usize,
    rounds: Rounds,
    space: SpaceBook,
    /// Something came back: wait for news, or a moment, before it is sent again.
    held: bool,
    /// Others have their turn, before what waits is sent.
    gathering: bool,
}

impl RaftNodeActor {
    /// A node that knows no leader yet, and how much disk space it has.
    pub fn new(
        settings: RaftNodeSettings,
        consensus: Rc<dyn Consensus>,
        peers: Rc<dyn Peers>,
        plan: Recipient<PlanAllocation>,
        memory: Memory,
        applied: AppliedIndex,
        space: Space,
    ) -> Self {
        RaftNodeActor {
            settings,
            consensus,
            peers,
            plan,
            memory,
            applied,
            subscribers: Vec::new(),
            leadership: LeadershipChanged::UNKNOWN,
            epoch: watch::Sender::new(0),
            queue: Queue::default(),
            in_flight: 0,
            rounds: Rounds::default(),
            space: SpaceBook::new(space),
            held: false,
            gathering: false,
        }
    }

    fn route(&self) -> Route {
        match &self.leadership.leader {
            _ if self.leadership.is_leader() => Route::Local,
            Some(leader) => Route::Leader(leader.clone()),
            None => Route::Nowhere,
        }
    }

    /// Sends on whatever can be sent, after what else is ready has had its turn: requests that came in
    /// together share a log entry, or a round. No timer is involved: with nobody else
    /// there they go at once.
    fn pump(&mut self, ctx: &mut Context<Self>) {
        if self.route() != Route::Local {
            for proposal in self.queue.take_forwarded() {
                proposal.answer(Err(ProposeError::NotLeader(self.leadership.leader.clone())));
            }
            for read in self.rounds.take_forwarded() {
                read.answer(Err(ReadError::NoLeader(self.leadership.leader.clone())));
            }
        }
        if !self.held && !self.gathering {
            self.gathering = true;
            ctx.spawn(tokio::task::yield_now().into_actor(self).map(|(), actor, ctx| {
                actor.gathering = false;
                actor.send(ctx);
            }));
        }
    }

    fn send(&mut self, ctx: &mut Context<Self>) {
        if self.held {
            return;
        }
        match self.route() {
            Route::Local => {
                if self.mind_space(ctx) {
                    self.write(ctx);
                }
                self.confirm_reads(ctx);
            }
            Route::Leader(leader) => {
                self.forward(&leader, ctx);
                self.forward_reads(&leader, ctx);
            }
            Route::Nowhere => {}
        }
    }

    /// Something came back from where no leader was: nothing is sent before there is news of one or a
    /// moment has passed.
    fn hold(&mut self, ctx: &mut Context<Self>) {
        if !self.held {
            self.held = true;
            ctx.run_later(HOLD, |actor, ctx| {
                actor.held = false;
                actor.pump(ctx);
            });
        }
    }

    fn confirmed(&mut self, round: Vec<WaitingRead>, index: Result<u64, String>, ctx: &mut Context<Self>) {
        match index {
            Ok(index) => {
                round.into_iter().for_each(|read| read.answer(Ok(index)));
                self.rounds.end(Vec::new());
            }
            Err(why) => {
                log::debug!("a round of {} reads was not confirmed: {why}", round.len());
                self.rounds.end(round);
                self.hold(ctx);
            }
        }
        self.pump(ctx);
    }

    fn tell_subscribers(&self) {
        for subscriber in &self.subscribers {
            // Deliberately past the mailbox's bound: this news is rare and must not be dropped. A
            // subscriber that has stopped does not need it.
            subscriber.do_send(self.leadership.clone());
        }
    }
}

impl Actor for RaftNodeActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.settings.max_waiting);
    }
}

impl Handler<Propose> for RaftNodeActor {
    type Result = ResponseFuture<Result<crate::domain::command::Applied, ProposeError>>;

    fn handle(&mut self, message: Propose, ctx: &mut Self::Context) -> Self::Result {
        if self.queue.len() >= self.settings.max_waiting {
            return Box::pin(std::future::ready(Err(ProposeError::Overloaded)));
        }
        let (proposal, waiter) = Proposal::new(message);
        self.queue.push(proposal);
        self.pump(ctx);
        Box::pin(waiter.wait())
    }
}

impl Handler<AwaitRead> for RaftNodeActor {
    type Result = ResponseFuture<Result<(), ReadError>>;

    fn handle(&mut self, AwaitRead { deadline }: AwaitRead, ctx: &mut Self::Context) -> Self::Result {
        if self.settings.reads == ReadMode::Local {
            return Box::pin(std::future::ready(Ok(())));
        }
        let index = self.enter_round(deadline, false, ctx);
        let mut applied = self.applied.clone();
        Box::pin(async move {
            let index = index.await?;
            let seen = applied.wait_for(|applied| *applied >= Some(index));
            match tokio::time::timeout_at(deadline.into(), seen).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(_)) => Err(ReadError::Unavailable("the store has stopped".to_owned())),
                Err(_) => Err(ReadError::Unavailable(format!(
                    "this node has not applied log entry {index} yet"
                ))),
            }
        })
    }
}

impl Handler<GetReadIndex> for RaftNodeActor {
    type Result = ResponseFuture<Result<u64, ReadError>>;

    fn handle(&mut self, GetReadIndex { deadline }: GetReadIndex, ctx: &mut Self::Context) -> Self::Result {
        self.enter_round(deadline, true, ctx)
    }
}

impl RaftNodeActor {
    fn enter_round(
        &mut self,
        deadline: Instant,
        forwarded: bool,
        ctx: &mut Context<Self>,
    ) -> futures::future::LocalBoxFuture<'static, Result<u64, ReadError>> {
        if self.rounds.len() >= self.settings.max_waiting {
            return Box::pin(std::future::ready(Err(ReadError::Overloaded)));
        }
        let (read, answer) = WaitingRead::new(deadline, forwarded);
        self.rounds.push(read);
        self.pump(ctx);
        let hint = self.leadership.leader.clone();
        Box::pin(async move {
            match tokio::time::timeout_at(deadline.into(), answer).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) | Err(_) => Err(ReadError::NoLeader(hint)),
            }
        })
    }
}

impl Handler<LeadershipChanged> for RaftNodeActor {
    type Result = ();

    fn handle(&mut self, news: LeadershipChanged, ctx: &mut Self::Context) {
        if self.leadership == news {
            return;
        }
        let (led, leads) = (self.leadership.is_leader(), news.is_leader());
        let leader = news
            .leader
            .as_ref()
            .map_or("nobody", |leader| leader.node.name.as_str());
        log::info!(
            "term {}: this node is {:?}, the leader is {leader}",
            news.term,
            news.role
        );
        if leads && !led {
            log::info!("✓ This node is LEADER");
            log::info!(">>> This node became LEADER <<<");
        } else if news.role == Role::Follower && self.leadership.role != Role::Follower {
            log::info!(">>> This node became FOLLOWER <<<");
        }
        if leads != led {
            self.space.leads(leads, Instant::now());
        }
        self.leadership = news;
        self.held = false;
        self.epoch.send_modify(|epoch| *epoch += 1);
        self.tell_subscribers();
        self.pump(ctx);
    }
}

impl Handler<Subscribe> for RaftNodeActor {
    type Result = ();

    fn handle(&mut self, Subscribe(subscriber): Subscribe, _: &mut Self::Context) {
        subscriber.do_send(self.leadership.clone());
        self.subscribers.push(subscriber);
    }
}

impl Handler<GetStatus> for RaftNodeActor {
    type Result = MessageResult<GetStatus>;

    fn handle(&mut self, _: GetStatus, _: &mut Self::Context) -> Self::Result {
        let role = self.leadership.role;
        let leader = self
            .leadership
            .leader
            .as_ref()
            .map(|leader| leader.node.name.clone());
        let raft = RaftStatus {
            role,
            leader,
            ..self.consensus.status()
        };
        MessageResult(NodeStatus {
            name: self.settings.name.clone(),
            cluster_id: self.peers.cluster_id(),
            raft,
            space: self.space.own().clone(),
            writes_refused: self.writes_refused(),
        })
    }
}

impl Handler<HandOver> for RaftNodeActor {
    type Result = ResponseFuture<bool>;

    fn handle(&mut self, HandOver { within }: HandOver, _: &mut Self::Context) -> Self::Result {
        match self.leadership.is_leader() {
            true => self.consensus.hand_over(within, BTreeSet::new()),
            false => Box::pin(std::future::ready(true)),
        }
    }
}
