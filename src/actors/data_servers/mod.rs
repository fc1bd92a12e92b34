//! The DataServers: who is alive, what each reported, and what each must do.
//!
//! The actor owns what the leader was told by heartbeats (`leader_view`), and decides what of it
//! enters the log: that a DataServer is known by an address, and its health. Gateways send it beats
//! and ask for reports, the Raft node asks where to allocate, the scheduler asks it to judge health,
//! and the registrar passes on what etcd says. It proposes through the Raft node and reads the
//! replicated state in place. The rules are in [`health`] and [`report`].
//!
//! The scheduler also sends what its plans want done. [`orders`] keeps that, and picks from it what goes
//! out in the answer to a beat: DataServers are never called. There is no acknowledgement either; a
//! later report shows whether an order worked.
//!
//! Invariants: a beat or report that changes nothing enters no log. Per DataServer at most one
//! registration and one change of status are on their way. Beats, reports and orders live as long as
//! this node leads in one term and are forgotten then: another leader takes the beats, and what is left
//! here would pass for fresh when this node leads again. Health that a new leader cannot know yet is
//! what the replicated state says, for one `heartbeat_timeout`. What is told to be removed comes from a
//! plan, never from here.

pub mod health;
mod leader_view;
pub mod messages;
mod numbers;
pub mod orders;
pub mod report;
#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use actix::fut::{self, ActorFutureExt, WrapFuture};
use actix::{Actor, AsyncContext, Context, Handler, MessageResult, Recipient, ResponseActFuture};
use tokio::sync::oneshot;

use self::health::Patience;
use self::leader_view::{Beat, LeaderView, Reported};
use self::messages::{
    CheckHealth, DataServerAnnounced, DataServerCommand, DataServerWithdrawn, GetOrders, GetReports,
    HeartbeatError, HeartbeatReceived, PlanAllocation, RemoveGarbage, RepairReplicas, Reports, ServerReport,
};
use self::numbers::Numbers;
use self::orders::{Alive, Live};
use super::proposer::Proposer;
use super::raft_node::messages::{LeadershipChanged, Propose, ProposeError};
use crate::domain::command::{AllocationPlan, Applied, Op, Outcome, Refusal};
use crate::domain::ids::ServerId;
use crate::domain::placement;
use crate::domain::state::{DataServer, ReadTables, ServerStatus};
use crate::storage::{StateReader, StorageError};

/// Beats and questions that may wait; the gateway bounds them, too.
const MAILBOX: usize = 1024;

/// What the cluster expects of DataServers.
#[derive(Clone, Debug)]
pub struct DataServersSettings {
    /// A DataServer that is silent for so long is unhealthy.
    pub heartbeat_timeout: Duration,
    /// A DataServer that is silent for so long is down, and its replicas are lost.
    pub permanent_down_threshold: Duration,
    /// Bytes a block, for new allocations.
    pub block_size: u64,
    /// Replicas a block, for new allocations.
    pub replication: u32,
    /// Blocks being copied at once, in the whole cluster.
    pub max_concurrent_repairs: usize,
}

/// The actor.
pub struct DataServersActor {
    settings: DataServersSettings,
    state: StateReader,
    proposer: Proposer,
    leadership: LeadershipChanged,
    /// `Some` exactly while this node leads.
    view: Option<LeaderView>,
    /// See [`Reports::generation`]. It outlives leaderships, so that no two of them show the same.
    generation: u64,
    /// Where the next allocation begins its walk over the DataServers.
    next_start: u64,
    /// By the DataServers' ids.
    registering: BTreeMap<String, Registering>,
    /// Those whose change of status is on its way.
    judging: BTreeSet<ServerId>,
    /// Where the records of those that beat are.
    numbers: Numbers,
}

/// The answer to a beat.
type HeartbeatAnswer = Result<Vec<DataServerCommand>, HeartbeatError>;

/// The end of a registration.
type Registered = Result<ServerId, HeartbeatError>;

/// A registration on its way, and the beats that wait for it.
struct Registering {
    addr: String,
    waiting: Vec<oneshot::Sender<Registered>>,
}

/// How a DataServer that speaks stands in the replicated state.
enum Standing {
    /// As it says, and healthy.
    Registered(ServerId),
    /// Known, but at another address or not healthy.
    Outdated(ServerId),
    /// Never registered.
    Unknown,
}

impl DataServersActor {
    /// An actor that knows of no leader yet.
    pub fn new(settings: DataServersSettings, state: StateReader, raft_node: Recipient<Propose>) -> Self {
        DataServersActor {
            settings,
            state,
            proposer: Proposer::new(raft_node),
            leadership: LeadershipChanged::UNKNOWN,
            view: None,
            generation: 0,
            next_start: 0,
            registering: BTreeMap::new(),
            judging: BTreeSet::new(),
            numbers: Numbers::default(),
        }
    }

    fn patience(&self) -> Patience {
        Patience {
            heartbeat_timeout: self.settings.heartbeat_timeout,
            permanent_down_threshold: self.settings.permanent_down_threshold,
        }
    }

    /// The replicated DataServers, in the order of their numbers.
    fn servers(&self) -> Result<Vec<DataServer>, StorageError> {
        let servers = self.state.read(|view| view.servers());
        servers.inspect_err(|error| log::error!("cannot read the DataServers: {error}"))
    }

    fn standing(&mut self, id: &str, addr: &str) -> Result<Standing, StorageError> {
        let found = self.numbers.find(id, &self.state);
        let found =
            found.inspect_err(|error| log::error!("cannot read the record of DataServer {id}: {error}"))?;
        Ok(match found {
            None => Standing::Unknown,
            Some(known)
                if known.addr == addr
                    && known.status == ServerStatus::Healthy
                    && !self.judging.contains(&known.server) =>
            {
                Standing::Registered(known.server)
            }
            Some(known) => Standing::Outdated(known.server),
        })
    }

    /// Keeps what a beat says, in memory.
    fn keep(&mut self, server: ServerId, beat: Beat) {
        let Some(view) = &mut self.view else { return };
        self.generation += u64::from(view.beat(server, beat));
    }

    /// Somebody's replicated status was changed.
    fn status_changed(&mut self) {
        self.generation += 1;
        if let Some(view) = &mut self.view {
            view.orders.doubt_surplus();
        }
    }

    /// The DataServers that are alive and have reported.
    fn alive(&self, view: &LeaderView, now: Instant) -> Result<Alive, StorageError> {
        let patience = self.patience();
        let live = |known: DataServer| {
            let reported = view.reported(known.server)?;
            let alive = patience.alive(known.status, view.sign(known.server), now);
            let live = || Live {
                addr: known.addr,
                blocks: reported.blocks(),
                corrupt: reported.corrupt(),
            };
            alive.then(|| (known.server, live()))
        };
        Ok(self.servers()?.into_iter().filter_map(live).collect())
    }

    /// Takes in orders that were planned in `term`: `give` is told who is alive.
    fn order(&mut self, term: u64, give: impl FnOnce(&mut orders::Orders, &Alive, Instant)) {
        let now = Instant::now();
        let Some(view) = self.view.as_ref().filter(|view| view.term() == term) else {
            log::debug!("orders of term {term} are dropped");
            return;
        };
        let Ok(alive) = self.alive(view, now) else { return };
        if let Some(view) = &mut self.view {
            give(&mut view.orders, &alive, now);
        }
    }

    /// What a DataServer that has just beaten is to do.
    fn orders_for(&mut self, server: ServerId) -> Vec<DataServerCommand> {
        let now = Instant::now();
        let Some(view) = self.view.as_ref().filter(|view| view.orders.any_for(server)) else {
            return Vec::new();
        };
        let Ok(alive) = self.alive(view, now) else {
            return Vec::new();
        };
        match &mut self.view {
            Some(view) => view.orders.hand_out(server, &alive, now),
            None => Vec::new(),
        }
    }

    /// A beat was taken: the answer to it.
    fn taken(&mut self, server: ServerId, unkept: Option<Beat>) -> HeartbeatAnswer {
        if self.view.is_none() {
            return Err(HeartbeatError::NotLeader);
        }
        if let Some(beat) = unkept {
            self.keep(server, beat);
        }
        Ok(self.orders_for(server))
    }

    /// The answer to a beat that first has to register its DataServer. Other beats go on meanwhile.
    fn taken_once_registered(
        &mut self,
        heartbeat: HeartbeatReceived,
        unkept: Option<Beat>,
        ctx: &mut Context<Self>,
    ) -> ResponseActFuture<Self, HeartbeatAnswer> {
        let told = self.register(heartbeat.id, heartbeat.addr, ctx);
        let registered = registration(told, heartbeat.deadline).into_actor(self);
        Box::pin(registered.map(move |registered, actor, _| actor.taken(registered?, unkept)))
    }

    /// The DataServers that may take new blocks, in the order of their numbers.
    fn eligible(&self, now: Instant) -> Result<Vec<ServerId>, StorageError> {
        // The Raft node asks because it leads, though the news of it may still be on its way here.
        // If it does not lead any more, the plan never enters the log.
        let unheard = LeaderView::new(self.leadership.term, now, 0);
        let view = self.view.as_ref().unwrap_or(&unheard);
        let servers = self.servers()?.into_iter();
        let eligible = servers.filter(|known| self.takes_blocks(known, view, now));
        Ok(eligible.map(|known| known.server).collect())
    }

    fn takes_blocks(&self, known: &DataServer, view: &LeaderView, now: Instant) -> bool {
        let (sign, space) = (view.sign(known.server), view.space(known.server));
        self.patience()
            .takes_blocks(known.status, sign, space, self.settings.block_size, now)
    }

    fn report_of(&self, known: DataServer, view: &LeaderView, now: Instant) -> ServerReport {
        let space = view.space(known.server).unwrap_or_default();
        let reported = view.reported(known.server);
        ServerReport {
            server: known.server,
            reported_ms: reported.map(Reported::at_ms),
            blocks: reported.map_or_else(Default::default, Reported::blocks),
            corrupt: reported.map_or_else(Default::default, Reported::corrupt),
            takes_blocks: self.takes_blocks(&known, view, now),
            free_space: space.free,
            total_capacity: space.total,
            alive: self.patience().alive(known.status, view.sign(known.server), now),
            status: known.status,
            id: known.id,
            addr: known.addr,
        }
    }

    /// Whether the reports say enough to act on: every DataServer that is not down has reported to this
    /// leader, or has had the time to.
    fn is_complete(&self, servers: &[DataServer], view: &LeaderView, now: Instant) -> bool {
        let mut expected = servers.iter().filter(|known| known.status != ServerStatus::Down);
        now.saturating_duration_since(view.since()) >= self.settings.heartbeat_timeout
            || expected.all(|known| view.reported(known.server).is_some())
    }

    /// Registers a DataServer, or joins its registration that is on its way.
    fn register(
        &mut self,
        id: String,
        addr: String,
        ctx: &mut Context<Self>,
    ) -> oneshot::Receiver<Registered> {
        let (tell, told) = oneshot::channel();
        match self.registering.entry(id.clone()) {
            Entry::Occupied(mut same) if same.get().addr == addr => same.get_mut().waiting.push(tell),
            // Dropping `tell` turns the beat away; the next one finds the way free.
            Entry::Occupied(_) => log::debug!("DataServer {id} moves to {addr} while it is being registered"),
            Entry::Vacant(free) => {
                free.insert(Registering {
                    addr: addr.clone(),
                    waiting: vec![tell],
                });
                let op = Op::RegisterDataServer { id: id.clone(), addr };
                let proposal = self.proposer.propose(op).into_actor(self);
                ctx.spawn(proposal.map(move |answer, actor, _| actor.registered(&id, answer)));
            }
        }
        told
    }

    /// A registration has come to its end: tells those who wait for it.
    fn registered(&mut self, id: &str, answer: Result<Applied, ProposeError>) {
        let Some(Registering { addr, waiting }) = self.registering.remove(id) else {
            return;
        };
        let registered = registration_outcome(answer);
        match &registered {
            Ok(server) => {
                log::info!("DataServer {id} at {addr} is registered as number {server}");
                if let Some(view) = &mut self.view {
                    view.expect(*server, Instant::now());
                }
                self.status_changed();
            }
            Err(error) => log::warn!("DataServer {id} at {addr} could not be registered: {error}"),
        }
        for tell in waiting {
            // One that no longer waits was told that it takes too long.
            let _ = tell.send(registered.clone());
        }
    }

    /// Records the judgement of a DataServer's health.
    fn set_status(
        &mut self,
        known: DataServer,
        status: ServerStatus,
        silence: Duration,
        ctx: &mut Context<Self>,
    ) {
        let DataServer { server, id, addr, .. } = known;
        self.judging.insert(server);
        let proposal = self
            .proposer
            .propose(Op::SetDataServerStatus { server, status })
            .into_actor(self);
        ctx.spawn(proposal.map(move |answer, actor, _| {
            actor.judging.remove(&server);
            let silent = silence.as_secs();
            let who = format!("DataServer {id} (number {server}) at {addr}");
            match answer {
                Ok(Ok(_)) => {
                    log::warn!("{who} is {}: silent for {silent} s", name(status));
                    actor.status_changed();
                }
                Ok(Err(refusal)) => log::warn!("{who} cannot be {}: {refusal}", name(status)),
                Err(error) => log::warn!("{who} cannot be recorded as {}: {error}", name(status)),
            }
        }));
    }
}

/// What the end of its proposal means for those who wait for a registration.
fn registration_outcome(answer: Result<Applied, ProposeError>) -> Registered {
    match answer {
        Ok(Ok(Outcome::DataServerRegistered { server })) => Ok(server),
        Ok(Ok(other)) => Err(HeartbeatError::Unavailable(format!(
            "registering was answered with {other:?}"
        ))),
        Ok(Err(refusal)) | Err(ProposeError::Refused(refusal)) => Err(HeartbeatError::Refused(refusal)),
        Err(ProposeError::NotLeader(_)) => Err(HeartbeatError::NotLeader),
        Err(
            error @ (ProposeError::Unavailable(_)
            | ProposeError::Unknown(_)
            | ProposeError::Overloaded
            | ProposeError::NoSpace(_)),
        ) => Err(HeartbeatError::Unavailable(error.to_string())),
    }
}

/// Waits for a registration until the DataServer stops waiting for its answer.
async fn registration(told: oneshot::Receiver<Registered>, deadline: Instant) -> Registered {
    let unavailable = |why: &str| Err(HeartbeatError::Unavailable(why.to_owned()));
    match tokio::time::timeout_at(deadline.into(), told).await {
        Ok(Ok(registered)) => registered,
        Ok(Err(_)) => unavailable("another address of this DataServer is being registered"),
        Err(_) => unavailable("registering takes too long"),
    }
}

fn name(status: ServerStatus) -> &'static str {
    match status {
        ServerStatus::Healthy => "healthy",
        ServerStatus::Unhealthy => "unhealthy",
        ServerStatus::Down => "permanently down",
    }
}

/// Whether `addr` is the `host:port` of somebody else's machine, and not a listen address.
fn can_be_reached(addr: &str) -> bool {
    if let Ok(addr) = addr.parse::<SocketAddr>() {
        return !addr.ip().is_unspecified() && addr.port() != 0;
    }
    match addr.rsplit_once(':') {
        Some((host, port)) => {
            !host.is_empty() && !host.contains(':') && port.parse::<u16>().is_ok_and(|port| port != 0)
        }
        None => false,
    }
}

impl Actor for DataServersActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<LeadershipChanged> for DataServersActor {
    type Result = ();

    fn handle(&mut self, news: LeadershipChanged, _: &mut Context<Self>) {
        let term = news.term;
        if !self.leadership.accept(news) {
            return;
        }
        if !self.leadership.is_leader() {
            self.view = None;
        } else if self.view.as_ref().is_none_or(|view| view.term() != term) {
            let max_repairs = self.settings.max_concurrent_repairs;
            self.view = Some(LeaderView::new(term, Instant::now(), max_repairs));
            self.generation += 1;
        }
    }
}

impl Handler<HeartbeatReceived> for DataServersActor {
    type Result = ResponseActFuture<Self, HeartbeatAnswer>;

    fn handle(&mut self, mut heartbeat: HeartbeatReceived, ctx: &mut Context<Self>) -> Self::Result {
        if self.view.is_none() {
            return Box::pin(fut::err(HeartbeatError::NotLeader));
        }
        let beat = Beat::take(&mut heartbeat, Instant::now());
        match self.standing(&heartbeat.id, &heartbeat.addr) {
            Ok(Standing::Registered(server)) => Box::pin(fut::ready(self.taken(server, Some(beat)))),
            Ok(Standing::Outdated(server)) => {
                self.keep(server, beat);
                self.taken_once_registered(heartbeat, None, ctx)
            }
            Ok(Standing::Unknown) => self.taken_once_registered(heartbeat, Some(beat), ctx),
            Err(error) => Box::pin(fut::err(HeartbeatError::Unavailable(error.to_string()))),
        }
    }
}

impl Handler<PlanAllocation> for DataServersActor {
    type Result = Result<AllocationPlan, Refusal>;

    fn handle(&mut self, request: PlanAllocation, _: &mut Context<Self>) -> Self::Result {
        let eligible = self.eligible(Instant::now()).map_err(|error| {
            Refusal::failed_precondition(format!("the DataServers cannot be read: {error}"))
        })?;
        let start = self.next_start;
        self.next_start = start.wrapping_add(1);
        let DataServersSettings {
            block_size,
            replication,
            ..
        } = self.settings;
        placement::plan(&eligible, request.size, block_size, replication, start)
    }
}

impl Handler<GetReports> for DataServersActor {
    type Result = MessageResult<GetReports>;

    fn handle(&mut self, _: GetReports, _: &mut Context<Self>) -> Self::Result {
        let now = Instant::now();
        // A state that cannot be read is no reason to think that nobody is missing.
        let (Some(view), Ok(servers)) = (&self.view, self.servers()) else {
            return MessageResult(Reports::default());
        };
        MessageResult(Reports {
            complete: self.is_complete(&servers, view, now),
            generation: self.generation,
            servers: servers
                .into_iter()
                .map(|known| self.report_of(known, view, now))
                .collect(),
        })
    }
}

impl Handler<RepairReplicas> for DataServersActor {
    type Result = ();

    fn handle(&mut self, plan: RepairReplicas, _: &mut Context<Self>) {
        let RepairReplicas {
            term,
            generation,
            repairs,
            mut surplus,
        } = plan;
        if generation != self.generation && !surplus.is_empty() {
            log::debug!("fsck: {} removals are left to the next pass", surplus.len());
            surplus.clear();
        }
        self.order(term, |orders, alive, now| {
            orders.repair(repairs, surplus, alive, now)
        });
    }
}

impl Handler<RemoveGarbage> for DataServersActor {
    type Result = ();

    fn handle(&mut self, plan: RemoveGarbage, _: &mut Context<Self>) {
        self.order(plan.term, |orders, _, _| orders.remove_garbage(plan.replicas));
    }
}

impl Handler<GetOrders> for DataServersActor {
    type Result = MessageResult<GetOrders>;

    fn handle(&mut self, _: GetOrders, _: &mut Context<Self>) -> Self::Result {
        let counts = self.view.as_ref().map(|view| view.orders.counts(Instant::now()));
        MessageResult(counts.unwrap_or_default())
    }
}

impl Handler<CheckHealth> for DataServersActor {
    type Result = ();

    fn handle(&mut self, check: CheckHealth, ctx: &mut Context<Self>) {
        let patience = self.patience();
        for known in self.servers().unwrap_or_default() {
            let Some(view) = &self.view else { return };
            if self.judging.contains(&known.server) || self.registering.contains_key(&known.id) {
                continue;
            }
            let sign = view.sign(known.server);
            if let Some(status) = patience.verdict(known.status, sign, check.at) {
                self.set_status(known, status, sign.silence(check.at), ctx);
            }
        }
    }
}

impl Handler<DataServerAnnounced> for DataServersActor {
    type Result = ();

    /// Registers a DataServer that was never heard of, so that blocks can go to it before its first
    /// beat. Whatever a key says of one that is known, or of a place that is taken, a beat says better.
    fn handle(&mut self, news: DataServerAnnounced, ctx: &mut Context<Self>) {
        let DataServerAnnounced { id, addr } = news;
        if self.view.is_none() || !can_be_reached(&addr) {
            log::debug!("DataServer {id} is announced at {addr}: left to its beats");
            return;
        }
        let Ok(servers) = self.servers() else { return };
        let taken =
            |known: &DataServer| known.id == id || (known.addr == addr && known.status != ServerStatus::Down);
        if !servers.iter().any(taken) {
            self.register(id, addr, ctx);
        }
    }
}

impl Handler<DataServerWithdrawn> for DataServersActor {
    type Result = ();

    /// A hint only: etcd may be down while the DataServer beats.
    fn handle(&mut self, news: DataServerWithdrawn, _: &mut Context<Self>) {
        log::debug!("DataServer {} has left etcd: its beats decide", news.id);
    }
}
