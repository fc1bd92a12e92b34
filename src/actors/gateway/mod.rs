//! The gateway: what clients and DataServers talk to, over gRPC.
//!
//! [`GatewayActor`] owns this node's view of who leads, and the life of the gRPC server: what health
//! says, and a stop that drops nobody. The services themselves (`service`, `admin`) run as tasks
//! beside the actors, so that requests do not queue behind each other; they own nothing, and ask
//! their neighbours by typed messages. Errors become statuses in `status`, bounds are kept in
//! `limits`.
//!
//! Invariant: health says SERVING exactly while a leader is known and the gateway is not stopping.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use actix::prelude::*;
use futures::FutureExt;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::actors::auditor::messages::VerifyState;
use crate::actors::data_servers::messages::{GetOrders, GetReports, HeartbeatReceived};
use crate::actors::raft_node::messages::{AwaitRead, ClaimAnswer, GetStatus, LeadershipChanged, Propose};
use crate::actors::scheduler::messages::{AllowMassDelete, GetUpkeepStatus};
use crate::connections::{Fit, Threads};
use crate::storage::StateReader;

mod admin;
mod check_files;
mod cluster;
mod forward;
mod limits;
pub mod messages;
mod reads;
mod receipts;
mod replication_info;
mod server;
mod service;
mod status;
#[cfg(test)]
mod tests;
mod upkeep;
mod writes;

use forward::PeerChannels;
pub use forward::{FORWARDED_KEY, PEER_KEY};
use messages::{Stop, WhoLeads};
use receipts::Receipts;
pub use service::REQUEST_ID_KEY;
use service::Shared;
pub use status::LEADER_KEY;

/// Looks at some of the state between two turns of everything else: a few milliseconds each.
const LOOKS: usize = 4;

/// Looks at much of the state that go on at once. Each may hold an answer of many MiB that the bounds on answers
/// do not know yet.
const LARGE_LOOKS: usize = 4;

/// How the gateway behaves.
#[derive(Clone, Debug)]
pub struct GatewaySettings {
    /// This node's name, as in `raft.peers`.
    pub node_name: String,
    /// Its Raft node id.
    pub incarnation: u64,
    /// Where clients reach this node, `host:port`.
    pub grpc_addr: String,
    /// Name and gRPC address of every MetaServer of the cluster, this one included or not.
    pub peers: Vec<(String, String)>,
    /// How long a request may take; a caller may ask for less.
    pub request_timeout: Duration,
    /// How many requests may be under way, and as many heartbeats beside them.
    pub max_in_flight: usize,
    /// How many connections are served, and how many more are refused with a status.
    pub connections: Fit,
    /// Bytes; a larger file is refused.
    pub max_file_size: u64,
}

impl GatewaySettings {
    /// Name and gRPC address of every MetaServer, this one included.
    fn members(&self) -> impl Iterator<Item = (&str, &str)> {
        let listed = self.peers.iter().any(|(name, _)| *name == self.node_name);
        let myself = (!listed).then_some((self.node_name.as_str(), self.grpc_addr.as_str()));
        let peers = self
            .peers
            .iter()
            .map(|(name, addr)| (name.as_str(), addr.as_str()));
        myself.into_iter().chain(peers)
    }
}

/// Whom the gateway asks.
#[derive(Clone)]
pub struct GatewayNeighbours {
    /// The Raft node, for changes.
    pub propose: Recipient<Propose>,
    /// The Raft node, for leave to read.
    pub await_read: Recipient<AwaitRead>,
    /// The Raft node, for operators.
    pub get_status: Recipient<GetStatus>,
    /// The DataServers' keeper, for beats.
    pub heartbeat: Recipient<HeartbeatReceived>,
    /// The DataServers' keeper, for what they reported.
    pub get_reports: Recipient<GetReports>,
    /// The DataServers' keeper, for what they are to do.
    pub get_orders: Recipient<GetOrders>,
    /// The scheduler, for what its upkeep found.
    pub get_upkeep: Recipient<GetUpkeepStatus>,
    /// The scheduler, for an operator's word.
    pub allow_mass_delete: Recipient<AllowMassDelete>,
    /// The auditor, for operators.
    pub verify_state: Recipient<VerifyState>,
}

/// The gateway.
pub struct GatewayActor {
    settings: GatewaySettings,
    neighbours: GatewayNeighbours,
    state: StateReader,
    leadership: LeadershipChanged,
    health: HealthReporter,
    receipts: Arc<Receipts>,
    /// Taken when the actor starts.
    listener: Option<(TcpListener, Threads)>,
    /// Taken when it stops.
    server: Option<RunningServer>,
}

/// The gRPC server's task.
struct RunningServer {
    /// Makes it stop taking requests.
    stop: oneshot::Sender<()>,
    /// Ends when every request is answered.
    done: JoinHandle<()>,
}

/// Starts the gateway: it serves on `listener`, on `threads`, until it gets [`Stop`]. To be called within an actix
/// system. It wants to be told of every [`LeadershipChanged`].
pub fn start(
    settings: GatewaySettings,
    neighbours: GatewayNeighbours,
    state: StateReader,
    listener: TcpListener,
    threads: Threads,
) -> Addr<GatewayActor> {
    GatewayActor {
        receipts: Receipts::new(settings.incarnation),
        settings,
        neighbours,
        state,
        leadership: LeadershipChanged::UNKNOWN,
        health: HealthReporter::new(),
        listener: Some((listener, threads)),
        server: None,
    }
    .start()
}

impl GatewayActor {
    fn serve(&mut self, ctx: &Context<Self>) {
        let Some((listener, threads)) = self.listener.take() else {
            return;
        };
        let shared = Arc::new(Shared {
            peers: PeerChannels::to(self.settings.members().map(|(_, address)| address)),
            settings: self.settings.clone(),
            neighbours: self.neighbours.clone(),
            who_leads: ctx.address().recipient(),
            state: self.state.clone(),
            started: Instant::now(),
            looks: Semaphore::new(LOOKS),
            large_looks: Arc::new(Semaphore::new(LARGE_LOOKS)),
            cluster_id: OnceLock::new(),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = stopped.map(|_| ()); // dropped means stop, too
        match server::serve(
            shared,
            self.receipts.clone(),
            self.health.clone(),
            listener,
            threads,
            stopped,
        ) {
            Ok(serve) => {
                let done = tokio::spawn(serve);
                self.server = Some(RunningServer { stop, done });
            }
            Err(error) => log::error!("the gRPC server failed: {error}"),
        }
    }

    /// What health is to say now.
    fn serving(&self) -> ServingStatus {
        match self.server.is_some() && self.leadership.leader.is_some() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        }
    }
}

/// The services whose health is told: all of them, and the contract's.
const HEALTH_OF: [&str; 2] = ["", server::ContractService::NAME];

async fn tell(health: HealthReporter, status: ServingStatus) {
    for service in HEALTH_OF {
        health.set_service_status(service, status).await;
    }
}

impl Actor for GatewayActor {
    type Context = Context<Self>;

    /// Before the first request or message, health must not say what it says by default.
    fn started(&mut self, ctx: &mut Self::Context) {
        let told = tell(self.health.clone(), ServingStatus::NotServing);
        ctx.wait(told.into_actor(self).map(|(), gateway, ctx| gateway.serve(ctx)));
    }
}

impl Handler<LeadershipChanged> for GatewayActor {
    /// Nothing else is handled before health has said the news.
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, news: LeadershipChanged, _: &mut Self::Context) -> Self::Result {
        self.leadership.accept(news);
        let told = tell(self.health.clone(), self.serving());
        AtomicResponse::new(Box::pin(told.into_actor(self)))
    }
}

impl Handler<WhoLeads> for GatewayActor {
    type Result = MessageResult<WhoLeads>;

    fn handle(&mut self, _: WhoLeads, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.leadership.clone())
    }
}

impl Handler<ClaimAnswer> for GatewayActor {
    type Result = bool;

    fn handle(&mut self, claim: ClaimAnswer, _: &mut Self::Context) -> Self::Result {
        self.receipts.claim(claim)
    }
}

impl Handler<Stop> for GatewayActor {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Stop, _: &mut Self::Context) -> Self::Result {
        // Taken first: from here on health cannot say SERVING again.
        let Some(server) = self.server.take() else {
            return Box::pin(fut::ready(())); // somebody stops it already
        };
        let drained = drain(server, self.health.clone(), self.settings.request_timeout);
        Box::pin(drained.into_actor(self).map(|(), _, ctx| ctx.stop()))
    }
}

/// Ends a server when every request under way is answered, or after `within`.
async fn drain(server: RunningServer, mut health: HealthReporter, within: Duration) {
    tell(health.clone(), ServingStatus::NotServing).await;
    // Its receiver is gone when the server failed; then there is nothing to wait for either.
    let _ = server.stop.send(());
    // Those who watch health have been told; their streams would keep the server open.
    for service in HEALTH_OF {
        health.clear_service_status(service).await;
    }
    if tokio::time::timeout(within, server.done).await.is_err() {
        log::warn!("gateway stopped with requests under way after {within:?}");
    }
}
