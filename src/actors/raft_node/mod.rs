//! The Raft node: proposes, answers "may I read?", forwards to the leader, tells who leads.
//!
//! Proposals wait in one queue (`proposals`). While this node leads, those that wait together
//! share a log entry, and a few entries may be under way at once; while it follows, they are sent to
//! the leader in the same portions, under request ids, so that they can be repeated at the next
//! leader. Reads wait for rounds (`reads`). Where disk space is short, [`space`] decides. [`consensus`] and [`peers`] are what it needs of
//! openraft and of other nodes; [`membership`] forms the cluster and keeps it complete.
//!
//! It is told who leads by the task in [`watch_raft`] and tells its subscribers. What it believes of
//! leadership is only ever a hint for routing: openraft decides, and a proposal sent to the wrong
//! place comes back and is sent again.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use openraft::async_runtime::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::watch;

use crate::actors::data_servers::messages::PlanAllocation;
use crate::actors::store::AppliedIndex;
use crate::actors::unix_ms;
use crate::config::ReadMode;
use crate::domain::command::{AllocationPlan, Op, Refusal};
use crate::proto::convert::encode_batch;
use crate::raft::server::Raft;
use crate::raft::types::Batch;
use crate::space::Space;

pub mod consensus;
pub mod membership;
pub mod messages;
pub mod peer_service;
pub mod peers;
#[cfg(feature = "planted-bugs")]
mod planted;
mod proposals;
mod reads;
pub mod repeats;
pub mod space;
#[cfg(test)]
mod tests;

use consensus::{Consensus, ReadIndexError, WriteError};
use messages::*;
use peers::{PeerError, Peers, ProposalResult};
use proposals::{Proposal, Queue, Route};
use reads::{Rounds, WaitingRead};
use repeats::Memory;
use space::SpaceBook;

/// Log entries of commands that may be under way at once: the next one fills while these are written.
const ENTRIES_IN_FLIGHT: usize = 4;

/// Portions that may be under way to the leader at once.
const FORWARDS_IN_FLIGHT: usize = 8;

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
        }
    }

    fn route(&self) -> Route {
        match &self.leadership.leader {
            _ if self.leadership.is_leader() => Route::Local,
            Some(leader) => Route::Leader(leader.clone()),
            None => Route::Nowhere,
        }
    }

    /// Sends on whatever can be sent now.
    fn pump(&mut self, ctx: &mut Context<Self>) {
        let route = self.route();
        if route != Route::Local {
            for proposal in self.queue.take_forwarded() {
                proposal.answer(Err(ProposeError::NotLeader(self.leadership.leader.clone())));
            }
            for read in self.rounds.take_forwarded() {
                read.answer(Err(ReadError::NoLeader(self.leadership.leader.clone())));
            }
        }
        if self.held {
            return;
        }
        match route {
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

    // --- proposals, as leader ---

    fn write(&mut self, ctx: &mut Context<Self>) {
        while self.in_flight < ENTRIES_IN_FLIGHT {
            let mut unplanned = Vec::new();
            let mut batch = self.queue.take(Instant::now(), Some(&mut unplanned));
            for proposal in unplanned {
                self.ask_for_plan(proposal, ctx);
            }
            if batch.is_empty() {
                break;
            }
            let time_ms = unix_ms();
            for proposal in &mut batch {
                proposal.date(time_ms);
                proposal.sent();
            }
            let entry = Batch(encode_batch(batch.iter().map(|proposal| &proposal.command)));
            let written = self.consensus.write(entry);
            self.in_flight += 1;
            ctx.spawn(written.into_actor(self).map(move |result, actor, ctx| {
                actor.in_flight -= 1;
                actor.written(batch, result, ctx);
                actor.pump(ctx);
            }));
        }
    }

    fn written(
        &mut self,
        mut batch: Vec<Proposal>,
        result: Result<crate::raft::types::BatchOutcome, WriteError>,
        ctx: &mut Context<Self>,
    ) {
        match result {
            Ok(outcomes) => {
                debug_assert_eq!(outcomes.0.len(), batch.len());
                for (proposal, applied) in batch.into_iter().zip(outcomes.0) {
                    match applied {
                        Err(refusal) if repeats::may_be_one(&proposal.command, &refusal) => {
                            self.look_for_a_first(proposal, refusal, ctx);
                        }
                        applied => proposal.answer(Ok(applied)),
                    }
                }
            }
            Err(WriteError::NotLeader) => {
                batch.iter().for_each(Proposal::had_no_effect);
                self.queue.put_back(batch, "leadership was lost");
                self.hold(ctx);
            }
            Err(WriteError::Unknown(why)) => {
                batch.iter_mut().for_each(Proposal::may_have_had_effect);
                self.queue.put_back(batch, &why);
                self.hold(ctx);
            }
        }
    }

    /// A refused command may be the repeat of one that succeeded and whose answer was lost.
    fn look_for_a_first(&self, proposal: Proposal, refusal: Refusal, ctx: &mut Context<Self>) {
        let members = self.consensus.status().members;
        let found = repeats::first_answer(
            self.memory.clone(),
            self.peers.clone(),
            members,
            &proposal.command,
            proposal.deadline,
        );
        ctx.spawn(
            found
                .into_actor(self)
                .map(move |first, _, _| proposal.answer(Ok(first.ok_or(refusal)))),
        );
    }

    fn ask_for_plan(&mut self, proposal: Proposal, ctx: &mut Context<Self>) {
        let Op::Allocate { size, .. } = proposal.command.op else {
            return self.queue.push(proposal);
        };
        let planned = self.plan.send(PlanAllocation { size });
        ctx.spawn(
            planned
                .into_actor(self)
                .map(move |planned, actor, ctx| actor.planned(proposal, planned, ctx)),
        );
    }

    fn planned(
        &mut self,
        mut proposal: Proposal,
        planned: Result<Result<AllocationPlan, Refusal>, MailboxError>,
        ctx: &mut Context<Self>,
    ) {
        match planned {
            Ok(Ok(made)) => {
                if let Op::Allocate { plan, .. } = &mut proposal.command.op {
                    *plan = Some(made);
                }
                self.queue.push(proposal);
                self.pump(ctx);
            }
            Ok(Err(refusal)) => proposal.answer(Err(ProposeError::Refused(refusal))),
            Err(error) => proposal.answer(Err(ProposeError::Unavailable(format!(
                "no plan for the blocks: {error}"
            )))),
        }
    }

    // --- proposals, as follower ---

    fn forward(&mut self, leader: &Leader, ctx: &mut Context<Self>) {
        while self.in_flight < FORWARDS_IN_FLIGHT {
            let mut batch = self.queue.take(Instant::now(), None);
            let Some(deadline) = batch.iter().map(|proposal| proposal.deadline).max() else {
                break;
            };
            for proposal in &mut batch {
                // The plan is the leader's; one made while this node led is out of date.
                if let Op::Allocate { plan, .. } = &mut proposal.command.op {
                    *plan = None;
                }
                proposal.make_repeatable();
                proposal.sent();
            }
            let commands = batch.iter().map(|proposal| proposal.command.clone()).collect();
            let answered = self.peers.propose(leader, commands, deadline);
            let mut epoch = self.epoch.subscribe();
            let sent = async move {
                tokio::select! {
                    answered = answered => answered,
                    _ = epoch.changed() => Err(PeerError("another node leads now".to_owned())),
                }
            };
            self.in_flight += 1;
            ctx.spawn(sent.into_actor(self).map(move |answered, actor, ctx| {
                actor.in_flight -= 1;
                actor.forwarded(batch, answered, ctx);
                actor.pump(ctx);
            }));
        }
    }

    fn forwarded(
        &mut self,
        mut batch: Vec<Proposal>,
        answered: Result<Vec<ProposalResult>, PeerError>,
        ctx: &mut Context<Self>,
    ) {
        let results = match answered {
            Ok(results) if results.len() == batch.len() => results,
            Ok(results) => {
                log::error!(
                    "the leader gave {} answers to {} proposals",
                    results.len(),
                    batch.len()
                );
                vec![
                    Err(ProposeError::Unknown(
                        "the leader's answer makes no sense".to_owned()
                    ));
                    batch.len()
                ]
            }
            Err(PeerError(why)) => vec![Err(ProposeError::Unknown(why)); batch.len()],
        };
        let mut again = Vec::new();
        for (mut proposal, result) in batch.drain(..).zip(results) {
            match result {
                Ok(applied) => proposal.answer(Ok(applied)),
                Err(ProposeError::Refused(refusal)) => proposal.answer(Err(ProposeError::Refused(refusal))),
                Err(error @ (ProposeError::Overloaded | ProposeError::NoSpace(_))) => {
                    proposal.had_no_effect();
                    proposal.not_done(error);
                }
                Err(ProposeError::NotLeader(_) | ProposeError::Unavailable(_)) => {
                    proposal.had_no_effect();
                    again.push(proposal);
                }
                Err(ProposeError::Unknown(_)) => {
                    proposal.may_have_had_effect();
                    again.push(proposal);
                }
            }
        }
        if !again.is_empty() {
            self.queue.put_back(again, "the leader was lost");
            self.hold(ctx);
        }
    }

    // --- reads ---

    fn confirm_reads(&mut self, ctx: &mut Context<Self>) {
        if let Some(round) = self.rounds.begin(Instant::now()) {
            let lease = self.settings.reads == ReadMode::Lease;
            let confirmed = self.consensus.read_index(lease, READ_ROUND);
            ctx.spawn(confirmed.into_actor(self).map(move |confirmed, actor, ctx| {
                let confirmed = confirmed.map_err(|error| match error {
                    ReadIndexError::NotLeader => "leadership was lost".to_owned(),
                    ReadIndexError::NoQuorum(why) => why,
                });
                actor.confirmed(round, confirmed, ctx);
            }));
        }
    }

    fn forward_reads(&mut self, leader: &Leader, ctx: &mut Context<Self>) {
        if let Some(round) = self.rounds.begin(Instant::now()) {
            let answered = self.peers.read_index(leader, Instant::now() + READ_ROUND);
            let mut epoch = self.epoch.subscribe();
            let asked = async move {
                tokio::select! {
                    answered = answered => answered.map_err(|PeerError(why)| why),
                    _ = epoch.changed() => Err("another node leads now".to_owned()),
                }
            };
            ctx.spawn(
                asked
                    .into_actor(self)
                    .map(move |answered, actor, ctx| actor.confirmed(round, answered, ctx)),
            );
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

/// Tells `node` who leads whenever that changes, until Raft stops; then returns why.
///
/// openraft keeps the name of a leader until there is another one. But a leader that a follower has not
/// heard for `silence` is no leader that a client should be sent to, and one that no majority has
/// answered for so long cannot answer anything: neither counts as known here.
pub async fn watch_raft(raft: Raft, node: Addr<RaftNodeActor>, silence: Duration) -> String {
    let mut metrics = raft.metrics();
    let mut told = None;
    let mut looked: Option<(_, tokio::time::Instant)> = None;
    // openraft counts the vote that it finds on the disk as one that was just given.
    let mut found = None;
    loop {
        let key = {
            let now = metrics.borrow_watched();
            if let Err(fatal) = &now.running_state {
                return fatal.to_string();
            }
            (
                now.current_term,
                now.state,
                now.current_leader,
                *now.membership_config.log_id(),
            )
        };
        // The metrics change with every entry, and even with the question below: so only what matters here
        // is looked at, and the question is asked now and then.
        let look = looked.is_none_or(|(last, at)| last != key || at.elapsed() >= silence / 4);
        if look {
            let now = metrics.borrow_watched().clone();
            let answered = match now.state {
                openraft::ServerState::Leader => now.last_quorum_acked.map(|at| *at),
                _ => None,
            };
            let heard = match answered {
                Some(at) => Some(at),
                // A follower's vote is renewed by every word of the leader; a new leader's is of its election.
                None => match raft.with_raft_state(|state| state.vote_last_modified()).await {
                    Ok(heard) => heard.filter(|heard| heard != found.get_or_insert(*heard)),
                    Err(fatal) => return fatal.to_string(),
                },
            };
            looked = Some((key, tokio::time::Instant::now()));
            let heard = heard.is_some_and(|heard| heard.elapsed() < silence);
            #[cfg(feature = "planted-bugs")]
            let heard = heard || planted::believes_in_itself(&now);
            let news = consensus::leadership(&now, heard);
            if told.as_ref() != Some(&news) {
                // Past the mailbox's bound: a full mailbox must not make the node follow a leader that is
                // gone.
                node.do_send(news.clone());
                told = Some(news);
            }
        }
        // Silence is no change of the metrics: look again in any case.
        if let Ok(Err(_)) = tokio::time::timeout(silence / 4, metrics.changed()).await {
            return "Raft has stopped".to_owned();
        }
    }
}
