//! The gateway's tests: what it asks its neighbours and what it makes of their answers, seen by a real
//! gRPC client. The neighbours are one scripted actor over a real state in a temporary directory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use super::{GatewayActor, GatewayNeighbours, GatewaySettings, LEADER_KEY, start};
use crate::actors::auditor::messages::{VerifyState, VerifyStatus};
use crate::actors::data_servers::messages::{
    DataServerCommand, GetOrders, GetReports, HeartbeatError, HeartbeatReceived, OrderCounts, Reports,
    ServerReport,
};
use crate::actors::raft_node::messages::{
    AwaitRead, GetStatus, Leader, LeadershipChanged, MemberStatus, NodeStatus, Propose, ProposeError,
    RaftStatus, ReadError, Role,
};
use crate::actors::scheduler::messages::{AllowMassDelete, GetUpkeepStatus, UpkeepStatus};
use crate::connections::{Fit, Threads};
use crate::domain::command::{Applied, Command, Op};
use crate::domain::ids::ServerId;
use crate::domain::path::CleanPath;
use crate::domain::placement;
use crate::domain::state::{ReadTables, ServerStatus};
use crate::proto::admin::admin_service_client::AdminServiceClient;
use crate::proto::convert::encode_batch;
use crate::proto::dfs::meta_server_service_client::MetaServerServiceClient;
use crate::proto::dfs::*;
use crate::proto::raft as pb;
use crate::raft::types::Node;
use crate::space::Space;
use crate::storage::{LogRecord, RecordContent, StateReader, Storage, StorageOptions};

mod bounds;
mod checks;
mod cluster;
mod lifecycle;
mod mistakes;
mod namespace;
mod replication;
mod staged;
mod upkeep;

/// Bytes a block, replicas a block, and the largest file, in these tests.
const BLOCK: u64 = 4;
const REPLICAS: u32 = 3;
const LARGEST: u64 = 1 << 20;

/// What the scripted neighbour does with a question.
#[derive(Clone)]
enum Script<T> {
    /// Its work.
    Work,
    /// Gives this answer.
    Answer(T),
    /// Its work, but only with a permit.
    Hold(Arc<Semaphore>),
}

/// Stands in for the Raft node, the DataServers' keeper and the scheduler.
struct Neighbour {
    storage: Storage,
    applied: u64,
    on_propose: Script<Result<Applied, ProposeError>>,
    on_read: Script<Result<(), ReadError>>,
    on_beat: Script<Result<Vec<DataServerCommand>, HeartbeatError>>,
    proposals: Vec<Propose>,
    reads: Vec<AwaitRead>,
    beats: Vec<HeartbeatReceived>,
    reports: Vec<ServerReport>,
    /// Of the reports; 0 when the keeper does not lead any more.
    generation: u64,
    complete: bool,
    orders: OrderCounts,
    upkeep: UpkeepStatus,
    /// Deletes that an operator's word lets go.
    held_back: u64,
    verification: VerifyStatus,
    cluster_id: Option<String>,
    statuses_asked: usize,
    /// Committed elsewhere, and applied here when the read of this number is allowed.
    catch_up: Option<(usize, Vec<Op>)>,
    _dir: tempfile::TempDir,
}

impl Actor for Neighbour {
    type Context = Context<Self>;
}

impl Neighbour {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = StorageOptions {
            dir: dir.path().to_owned(),
            map_size: 64 << 20,
            verify: true,
        };
        Neighbour {
            storage: Storage::open(&options).unwrap(),
            applied: 0,
            on_propose: Script::Work,
            on_read: Script::Work,
            on_beat: Script::Work,
            proposals: Vec::new(),
            reads: Vec::new(),
            beats: Vec::new(),
            reports: Vec::new(),
            generation: 1,
            complete: true,
            orders: OrderCounts::default(),
            upkeep: UpkeepStatus::default(),
            held_back: 0,
            verification: VerifyStatus::default(),
            cluster_id: Some("c".into()),
            statuses_asked: 0,
            catch_up: None,
            _dir: dir,
        }
    }

    fn reader(&self) -> StateReader {
        self.storage.reader()
    }

    fn apply(&mut self, commands: Vec<Command>) -> Vec<Applied> {
        self.applied += 1;
        let record = LogRecord {
            log_id: pb::LogId {
                leader: Some(pb::LeaderId { term: 1, node: 1 }),
                index: self.applied,
            },
            content: RecordContent::Batch(encode_batch(&commands)),
        };
        self.storage.apply(&[record]).unwrap().remove(0)
    }

    fn apply_ops(&mut self, ops: Vec<Op>) -> Vec<Applied> {
        let time_ms = 1000 + self.applied as i64;
        let command = |op| Command {
            time_ms,
            request_id: None,
            digest: 0,
            origin: None,
            op,
        };
        self.apply(ops.into_iter().map(command).collect())
    }

    /// As the leader does it.
    fn commit(&mut self, mut proposal: Propose) -> Result<Applied, ProposeError> {
        if let Op::Allocate { size, plan, .. } = &mut proposal.op {
            let servers = self.reader().read(|view| view.servers()).unwrap();
            let healthy: Vec<_> = servers
                .iter()
                .filter(|server| server.status == ServerStatus::Healthy)
                .map(|server| server.server)
                .collect();
            let planned = placement::plan(&healthy, *size, BLOCK, REPLICAS, 0);
            *plan = Some(planned.map_err(ProposeError::Refused)?);
        }
        let command = Command {
            time_ms: 1000 + self.applied as i64,
            digest: proposal.op.digest(),
            request_id: proposal.request_id,
            origin: None,
            op: proposal.op,
        };
        Ok(self.apply(vec![command]).remove(0))
    }
}

/// Looks at the neighbour, or changes it.
#[derive(Message)]
#[rtype(result = "()")]
struct With(Box<Look>);

type Look = dyn FnOnce(&mut Neighbour, &mut Context<Neighbour>) + Send;

impl Handler<With> for Neighbour {
    type Result = ();

    fn handle(&mut self, With(look): With, ctx: &mut Self::Context) {
        look(self, ctx);
    }
}

/// Waits for a permit and then does the work.
fn held<T: 'static>(
    gate: Arc<Semaphore>,
    work: impl FnOnce(&mut Neighbour) -> T + 'static,
) -> ResponseActFuture<Neighbour, T> {
    let passed = async move { gate.acquire().await.unwrap().forget() };
    Box::pin(fut::wrap_future(passed).map(move |(), neighbour, _| work(neighbour)))
}

fn answered<T: 'static>(answer: T) -> ResponseActFuture<Neighbour, T> {
    Box::pin(fut::ready(answer))
}

impl Handler<Propose> for Neighbour {
    type Result = ResponseActFuture<Self, Result<Applied, ProposeError>>;

    fn handle(&mut self, proposal: Propose, _: &mut Self::Context) -> Self::Result {
        self.proposals.push(proposal.clone());
        match self.on_propose.clone() {
            Script::Work => answered(self.commit(proposal)),
            Script::Answer(answer) => answered(answer),
            Script::Hold(gate) => held(gate, move |neighbour| neighbour.commit(proposal)),
        }
    }
}

impl Handler<AwaitRead> for Neighbour {
    type Result = ResponseActFuture<Self, Result<(), ReadError>>;

    fn handle(&mut self, question: AwaitRead, _: &mut Self::Context) -> Self::Result {
        self.reads.push(question);
        let due = |(at, _): &mut (usize, Vec<Op>)| *at == self.reads.len();
        if let Some((_, ops)) = self.catch_up.take_if(due) {
            self.apply_ops(ops);
        }
        match self.on_read.clone() {
            Script::Work => answered(Ok(())),
            Script::Answer(answer) => answered(answer),
            Script::Hold(gate) => held(gate, |_| Ok(())),
        }
    }
}

impl Handler<HeartbeatReceived> for Neighbour {
    type Result = ResponseActFuture<Self, Result<Vec<DataServerCommand>, HeartbeatError>>;

    fn handle(&mut self, beat: HeartbeatReceived, _: &mut Self::Context) -> Self::Result {
        self.beats.push(beat);
        match self.on_beat.clone() {
            Script::Work => answered(Ok(Vec::new())),
            Script::Answer(answer) => answered(answer),
            Script::Hold(gate) => held(gate, |_| Ok(Vec::new())),
        }
    }
}

impl Handler<GetReports> for Neighbour {
    type Result = MessageResult<GetReports>;

    fn handle(&mut self, _: GetReports, _: &mut Self::Context) -> Self::Result {
        MessageResult(Reports {
            complete: self.complete,
            generation: self.generation,
            servers: self.reports.clone(),
        })
    }
}

impl Handler<GetOrders> for Neighbour {
    type Result = MessageResult<GetOrders>;

    fn handle(&mut self, _: GetOrders, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.orders)
    }
}

impl Handler<GetUpkeepStatus> for Neighbour {
    type Result = MessageResult<GetUpkeepStatus>;

    fn handle(&mut self, _: GetUpkeepStatus, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.upkeep.clone())
    }
}

impl Handler<AllowMassDelete> for Neighbour {
    type Result = u64;

    fn handle(&mut self, _: AllowMassDelete, _: &mut Self::Context) -> u64 {
        std::mem::take(&mut self.held_back)
    }
}

impl Handler<VerifyState> for Neighbour {
    type Result = MessageResult<VerifyState>;

    fn handle(&mut self, VerifyState { begin }: VerifyState, _: &mut Self::Context) -> Self::Result {
        self.verification.begun += u64::from(begin);
        MessageResult(self.verification.clone())
    }
}

impl Handler<GetStatus> for Neighbour {
    type Result = MessageResult<GetStatus>;

    fn handle(&mut self, _: GetStatus, _: &mut Self::Context) -> Self::Result {
        self.statuses_asked += 1;
        MessageResult(NodeStatus {
            name: "meta-1".into(),
            cluster_id: self.cluster_id.clone(),
            raft: RaftStatus {
                incarnation: 71,
                role: Role::Leader,
                term: 4,
                leader: Some("meta-1".into()),
                last_log: Some(9),
                committed: Some(8),
                applied: Some(7),
                snapshot: None,
                purged: Some(0),
                members: vec![MemberStatus {
                    name: "meta-1".into(),
                    incarnation: 71,
                    raft_addr: "h:1".into(),
                    grpc_addr: "h:2".into(),
                    voter: true,
                    matched: Some(9),
                }],
            },
            space: Space::with(20, 30),
            writes_refused: Some("too little space".into()),
        })
    }
}

/// A gateway that serves, with its neighbour and a client.
struct Rig {
    addr: SocketAddr,
    gateway: Addr<GatewayActor>,
    neighbour: Addr<Neighbour>,
    client: MetaServerServiceClient<Channel>,
    channel: Channel,
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

fn leader(name: &str, grpc_addr: &str) -> Leader {
    Leader {
        id: 71,
        node: Node {
            name: name.into(),
            raft_addr: "localhost:1".into(),
            grpc_addr: grpc_addr.into(),
        },
    }
}

fn news(term: u64, role: Role, leader: Option<Leader>) -> LeadershipChanged {
    LeadershipChanged { term, role, leader }
}

/// Of a gateway with two peers that nobody has ever seen.
fn settings(name: &str, addr: SocketAddr) -> GatewaySettings {
    GatewaySettings {
        incarnation: 1,
        node_name: name.into(),
        grpc_addr: addr.to_string(),
        peers: vec![
            (name.into(), addr.to_string()),
            ("meta-8".into(), "localhost:9098".into()),
            ("meta-9".into(), "localhost:9099".into()),
        ],
        request_timeout: Duration::from_secs(30),
        max_in_flight: 64,
        connections: Fit {
            served: 64,
            excess: 8,
        },
        max_file_size: LARGEST,
    }
}

fn neighbours(neighbour: &Addr<Neighbour>) -> GatewayNeighbours {
    GatewayNeighbours {
        propose: neighbour.clone().recipient(),
        await_read: neighbour.clone().recipient(),
        get_status: neighbour.clone().recipient(),
        heartbeat: neighbour.clone().recipient(),
        get_reports: neighbour.clone().recipient(),
        get_orders: neighbour.clone().recipient(),
        get_upkeep: neighbour.clone().recipient(),
        allow_mass_delete: neighbour.clone().recipient(),
        verify_state: neighbour.clone().recipient(),
    }
}

impl Rig {
    /// `meta-1`, which leads two others that nobody has ever seen.
    async fn leading() -> Rig {
        let rig = Rig::start("meta-1", |_| {}).await;
        let myself = leader("meta-1", &rig.addr.to_string());
        rig.tell(news(1, Role::Leader, Some(myself))).await;
        rig
    }

    /// A gateway that knows no leader yet.
    async fn start(name: &str, change: impl FnOnce(&mut GatewaySettings)) -> Rig {
        let (listener, addr) = listener().await;
        let mut settings = settings(name, addr);
        change(&mut settings);
        let neighbour = Neighbour::new();
        let reader = neighbour.reader();
        let neighbour = neighbour.start();
        let gateway = start(
            settings,
            neighbours(&neighbour),
            reader,
            listener,
            Threads::none(),
        );
        let endpoint = Endpoint::from_shared(format!("http://{addr}")).unwrap();
        let channel = endpoint.connect().await.unwrap();
        Rig {
            addr,
            gateway,
            neighbour,
            client: MetaServerServiceClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            channel,
        }
    }

    async fn tell(&self, news: LeadershipChanged) {
        self.gateway.send(news).await.unwrap();
    }

    /// Looks at the neighbour, or changes it.
    async fn with<R: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Neighbour, &mut Context<Neighbour>) -> R + Send + 'static,
    ) -> R {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let look = With(Box::new(move |neighbour, ctx| {
            let _ = tx.send(look(neighbour, ctx));
        }));
        self.neighbour.send(look).await.unwrap();
        rx.await.unwrap()
    }

    /// Registers DataServers `ds-1` to `ds-n` at `ds-1:8000` and so on.
    async fn data_servers(&self, n: u32) {
        self.with(move |neighbour, _| neighbour.apply_ops(registrations(1..=n)))
            .await;
    }

    async fn mkdir(&self, path: &str) {
        self.create(path, FileType::Directory as i32).await.unwrap();
    }

    async fn create(&self, path: &str, kind: i32) -> Result<Response<SimpleResponse>, Status> {
        let request = CreateNodeRequest {
            path: path.into(),
            r#type: kind,
        };
        self.client.clone().create_node(request).await
    }

    async fn stat(&self, path: &str) -> Result<StatInfo, Status> {
        let request = GetNodeInfoRequest { path: path.into() };
        let answer = self.client.clone().get_node_info(request).await?;
        Ok(answer.into_inner().stat_info.unwrap())
    }

    async fn list(&self, path: &str) -> Result<Vec<StatInfo>, Status> {
        let request = ListDirectoryRequest { path: path.into() };
        Ok(self
            .client
            .clone()
            .list_directory(request)
            .await?
            .into_inner()
            .nodes)
    }

    async fn delete(&self, path: &str, recursive: bool) -> Result<(), Status> {
        let request = DeleteNodeRequest {
            path: path.into(),
            recursive,
        };
        self.client.clone().delete_node(request).await.map(|_| ())
    }

    async fn blocks(&self, path: &str, size: i64) -> Result<GetBlockLocationsResponse, Status> {
        let request = GetBlockLocationsRequest {
            path: path.into(),
            size,
            ..Default::default()
        };
        Ok(self
            .client
            .clone()
            .get_block_locations(request)
            .await?
            .into_inner())
    }

    async fn finalize(&self, path: &str, inode: u64, size: i64) -> Result<(), Status> {
        let request = FinalizeWriteRequest {
            path: path.into(),
            inode,
            size,
            md5: "d41d8".into(),
            ..Default::default()
        };
        self.client.clone().finalize_write(request).await.map(|_| ())
    }

    /// Writes a file as the SDK does.
    async fn write(&self, path: &str, size: i64) -> GetBlockLocationsResponse {
        let blocks = self.blocks(path, size).await.unwrap();
        self.finalize(path, blocks.inode, size).await.unwrap();
        blocks
    }

    async fn replication(&self, path: &str) -> Result<GetReplicationInfoResponse, Status> {
        let request = GetReplicationInfoRequest { path: path.into() };
        Ok(self
            .client
            .clone()
            .get_replication_info(request)
            .await?
            .into_inner())
    }

    async fn beat(&self, id: &str, addr: &str) -> Result<Vec<crate::proto::dfs::Command>, Status> {
        let request = HeartbeatRequest {
            data_server_id: id.into(),
            data_server_addr: addr.into(),
            block_count: 2,
            free_space: 3,
            block_ids_report: vec![1, 5].into(),
            total_capacity: 4,
            ..Default::default()
        };
        Ok(self
            .client
            .clone()
            .heartbeat(request)
            .await?
            .into_inner()
            .commands)
    }

    fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    async fn get_leader(&self) -> GetLeaderResponse {
        let answer = self.client.clone().get_leader(GetLeaderRequest {}).await;
        answer.unwrap().into_inner()
    }

    async fn cluster_info(&self) -> Result<ClusterInfo, Status> {
        let answer = self
            .client
            .clone()
            .get_cluster_info(GetClusterInfoRequest {})
            .await?;
        Ok(answer.into_inner().cluster_info.unwrap())
    }
}

fn registrations(numbers: impl Iterator<Item = u32>) -> Vec<Op> {
    let registration = |n| Op::RegisterDataServer {
        id: format!("ds-{n}"),
        addr: format!("ds-{n}:8000"),
    };
    numbers.map(registration).collect()
}

fn path(raw: &str) -> CleanPath {
    CleanPath::parse(raw).unwrap()
}

fn report(server: u32, blocks: &[u64]) -> ServerReport {
    ServerReport {
        server: ServerId(server),
        id: format!("ds-{server}"),
        addr: format!("ds-{server}:8000"),
        status: ServerStatus::Healthy,
        reported_ms: Some(1),
        blocks: blocks.into(),
        corrupt: [].into(),
        takes_blocks: true,
        free_space: 1 << 20,
        total_capacity: 3 << 20,
        alive: true,
    }
}

/// Code, message and leader of a refusal.
#[track_caller]
fn refusal<T: std::fmt::Debug>(outcome: Result<T, Status>) -> (Code, String, Option<String>) {
    let status = outcome.unwrap_err();
    let leader = status.metadata().get(LEADER_KEY);
    let leader = leader.map(|leader| leader.to_str().unwrap().to_owned());
    (status.code(), status.message().to_owned(), leader)
}

/// Code and message of a refusal.
#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>) -> (Code, String) {
    let (code, message, _) = refusal(outcome);
    (code, message)
}

/// Waits for a fact.
async fn until(what: &str, mut fact: impl AsyncFnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !fact().await {
        assert!(Instant::now() < patience, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
