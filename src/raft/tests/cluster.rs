//! Small clusters in one process, over real connections and with real directories.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use actix::{Actor, Addr, Context, Handler};
use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardReason, RPCError, RaftError};
use openraft::network::{RPCOption, RaftNetworkV2};
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use openraft::{RaftMetrics, RaftNetworkFactory, ReadPolicy};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Code, Request, Status};
use xxhash_rust::xxh3::xxh3_64;

use super::log_id;
use crate::connections::{Threads, serve};
use crate::proto::raft as pb;
use crate::proto::raft::raft_service_client::RaftServiceClient;
use crate::raft::channels::{Channels, Lane, server_bounds};
use crate::raft::config::{RaftSettings, openraft_config};
use crate::raft::guard::Guard;
use crate::raft::identity::{ClusterId, Identity};
use crate::raft::log_store::{LogLimits, LogStore};
use crate::raft::network::Network;
use crate::raft::ports::ApplyEntries;
use crate::raft::server::{Raft, RaftServer};
use crate::raft::state_machine::StateMachine;
use crate::raft::testing::{Batches, MemStore};
use crate::raft::types::{Batch, LeaderId, LogId, Node, NodeId, TypeConfig, Vote};
use crate::raft::{log_dir, snapshot_dir};
use crate::space::Space;

/// Longer than anything here takes on a busy machine; a test that waits so long has failed.
const LONG: Duration = Duration::from_secs(30);

pub(super) struct TestNode {
    dir: TempDir,
    identity: Identity,
    node: Node,
    pub(super) raft: Raft,
    pub(super) store: Addr<MemStore>,
    pub(super) space: watch::Sender<Space>,
    stop: oneshot::Sender<()>,
}

impl TestNode {
    async fn start(name: &str, cluster: Option<ClusterId>) -> TestNode {
        TestNode::start_in(TempDir::new().unwrap(), name, "127.0.0.1:0", cluster).await
    }

    async fn start_in(dir: TempDir, name: &str, addr: &str, cluster: Option<ClusterId>) -> TestNode {
        // An earlier node in this directory may still be closing its files.
        let identity = until(|| async { Identity::open(dir.path(), name).ok() }).await;
        if let Some(cluster) = cluster {
            identity.claim(cluster).unwrap();
        }
        let limits = LogLimits {
            chunk_records: 50,
            ..LogLimits::default()
        };
        let log = until(|| async { LogStore::open(&log_dir(dir.path()), limits.clone()).ok() }).await;
        let store = MemStore::start_in(dir.path());
        let state = StateMachine::new(MemStore::port(&store), log.clone());
        let settings = RaftSettings {
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(1000),
            entries_kept: 0,
            ..RaftSettings::default()
        };
        let config = openraft_config(&settings).unwrap();
        let network = Network::new(identity.clone(), Channels::default());
        let raft = Raft::build(identity.incarnation(), config, network, log, state)
            .await
            .unwrap();

        let listener = TcpListener::bind(addr).await.unwrap();
        let raft_addr = listener.local_addr().unwrap().to_string();
        let node = Node {
            name: name.to_owned(),
            raft_addr,
            grpc_addr: String::new(),
        };
        let (space, watched) = watch::channel(Space::with(u64::MAX, 0));
        let snapshots = snapshot_dir(dir.path());
        let server = RaftServer::new(raft.clone(), identity.clone(), &snapshots, watched).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let service = Guard::new(identity.clone(), 100).guard(server.into_service());
        let stopped = async {
            stopped.await.ok();
        };
        let service = Routes::new(service);
        tokio::spawn(serve(
            listener,
            service,
            server_bounds(100),
            Threads::none(),
            stopped,
        ));
        raft.run();
        TestNode {
            dir,
            identity,
            node,
            raft,
            store,
            space,
            stop,
        }
    }

    pub(super) fn id(&self) -> NodeId {
        self.identity.incarnation()
    }

    async fn stop(self) -> (TempDir, Node) {
        self.raft.shutdown().await.unwrap();
        self.stop.send(()).unwrap();
        (self.dir, self.node)
    }

    /// Proposes until the leader takes it: while a majority's answers are older than its lease, as
    /// they are on a busy disk, it refuses, and nothing has happened.
    pub(super) async fn write(&self, batch: impl Into<Bytes>) -> u64 {
        let batch = Batch(batch.into());
        let attempt = || async {
            match self.raft.client_write(batch.clone()).await {
                Ok(written) => Some(written.log_id.index),
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(refused)))
                    if refused.reason == ForwardReason::LeaseExpired =>
                {
                    None
                }
                Err(e) => panic!("{e}"),
            }
        };
        until(attempt).await
    }

    pub(super) async fn applied(&self, index: u64) {
        self.raft
            .wait(Some(LONG))
            .applied_index_at_least(Some(index), "applied")
            .await
            .unwrap();
    }

    pub(super) async fn metrics(&self, what: &str, fact: impl Fn(&RaftMetrics<TypeConfig>) -> bool + Send) {
        self.raft.wait(Some(LONG)).metrics(fact, what).await.unwrap();
    }

    pub(super) async fn batches(&self) -> Vec<Bytes> {
        self.store.send(Batches).await.unwrap()
    }

    async fn client(&self) -> RaftServiceClient<tonic::transport::Channel> {
        RaftServiceClient::new(
            Channels::default()
                .get(&self.node.raft_addr, Lane::Control)
                .unwrap(),
        )
    }
}

/// Waits for a fact that nothing announces.
pub(super) async fn until<T, F: Future<Output = Option<T>>>(mut fact: impl FnMut() -> F) -> T {
    let wait = async {
        loop {
            if let Some(fact) = fact().await {
                return fact;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.expect("waited in vain")
}

pub(super) struct Cluster {
    id: ClusterId,
    pub(super) nodes: Vec<TestNode>,
}

impl Cluster {
    pub(super) async fn start(count: usize) -> Cluster {
        let id = ClusterId::random();
        let mut nodes = Vec::new();
        for number in 0..count {
            nodes.push(TestNode::start(&format!("meta-{number}"), Some(id)).await);
        }
        let members: BTreeMap<_, _> = nodes.iter().map(|node| (node.id(), node.node.clone())).collect();
        nodes[0].raft.initialize(members).await.unwrap();
        Cluster { id, nodes }
    }

    /// The leader that all nodes know and that can commit.
    pub(super) async fn leader(&self) -> &TestNode {
        let find = || async {
            let leaders: Vec<_> = self
                .nodes
                .iter()
                .map(|node| node.raft.metrics().borrow_watched().current_leader)
                .collect();
            let leader = leaders[0]?;
            leaders
                .iter()
                .all(|known| *known == Some(leader))
                .then_some(leader)
        };
        loop {
            let leader = until(find).await;
            let node = self
                .nodes
                .iter()
                .find(|node| node.id() == leader)
                .expect("one of us leads");
            if node.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.is_ok() {
                return node;
            }
        }
    }
}

#[actix_rt::test]
async fn three_nodes_elect_a_leader_and_agree() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let mut last = 0;
    for i in 0..50 {
        last = leader.write(format!("batch {i}")).await;
    }
    let big = leader.write(vec![1; 9 << 20]).await; // more than one read, window or frame
    assert!(big > last);
    for node in &cluster.nodes {
        node.applied(big).await;
        let batches = node.batches().await;
        assert_eq!(batches.len(), 51);
        assert_eq!(batches[49], "batch 49");
        assert_eq!(batches[50].len(), 9 << 20);
    }
}

#[actix_rt::test]
async fn a_restarted_node_catches_up_and_many_writes_travel_together() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await.id();
    let victim = cluster.nodes.iter().position(|node| node.id() != leader).unwrap();
    let (dir, node) = cluster.nodes.remove(victim).stop().await;

    let leader = cluster.leader().await;
    let writes = (0..300).map(|i| leader.write(vec![i as u8; 100_000]));
    let last = *futures::future::join_all(writes).await.iter().max().unwrap();

    let back = TestNode::start_in(dir, &node.name, &node.raft_addr, None).await;
    back.applied(last).await;
    assert_eq!(back.batches().await, leader.batches().await);
    assert_eq!(back.batches().await.len(), 300);
}

#[actix_rt::test]
async fn the_leader_is_replaced_when_it_dies() {
    let mut cluster = Cluster::start(3).await;
    let old = cluster.leader().await.id();
    cluster
        .nodes
        .iter()
        .find(|node| node.id() == old)
        .unwrap()
        .write("before")
        .await;
    let position = cluster.nodes.iter().position(|node| node.id() == old).unwrap();
    let (_dir, _node) = cluster.nodes.remove(position).stop().await;
    for node in &cluster.nodes {
        node.metrics("another leader", |m| {
            m.current_leader.is_some_and(|leader| leader != old)
        })
        .await;
    }
    let leader = cluster.leader().await;
    let index = leader.write("after").await;
    for node in &cluster.nodes {
        node.applied(index).await;
        assert_eq!(node.batches().await, ["before", "after"]);
    }
}

#[actix_rt::test]
async fn leadership_is_transferred() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    leader.write("before").await;
    let heir = cluster
        .nodes
        .iter()
        .find(|node| node.id() != leader.id())
        .unwrap();
    leader.raft.trigger().transfer_leader(heir.id()).await.unwrap();
    for node in &cluster.nodes {
        node.metrics("the heir leads", |m| m.current_leader == Some(heir.id()))
            .await;
    }
    assert_eq!(cluster.leader().await.id(), heir.id());
    heir.write("after").await;
    assert_eq!(heir.batches().await, ["before", "after"]);
}

#[actix_rt::test]
async fn a_late_learner_gets_a_snapshot() {
    let cluster = Cluster::start(1).await;
    let leader = &cluster.nodes[0];
    leader
        .metrics("leads", |m| m.current_leader == Some(leader.id()))
        .await;
    for i in 0..5 {
        leader.write(vec![i; 1 << 20]).await;
    }
    let covered = leader.write("the last in the snapshot").await;
    leader.raft.trigger().snapshot().await.unwrap();
    leader
        .metrics("snapshot", |m| m.snapshot.is_some_and(|id| id.index >= covered))
        .await;
    leader.raft.trigger().purge_log(covered).await.unwrap();
    leader
        .metrics("purged", |m| m.purged.is_some_and(|id| id.index >= covered))
        .await;
    leader.write("after the snapshot").await;

    let late = TestNode::start("meta-late", Some(cluster.id)).await;
    leader
        .raft
        .add_learner(late.id(), late.node.clone(), true)
        .await
        .unwrap();
    let index = leader.write("to all").await;
    late.applied(index).await;
    assert_eq!(late.batches().await, leader.batches().await);
    late.metrics("installed a snapshot", |m| {
        m.snapshot.is_some_and(|id| id.index >= covered)
    })
    .await;
    assert_eq!(leftovers(late.dir.path()), Vec::<String>::new());
}

/// The files of snapshots that are being received.
fn leftovers(data_dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(snapshot_dir(data_dir)).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("incoming-")).collect()
}

// --- who may call ---

fn stamped<T>(message: T, cluster: &str, from: &str, target: &str) -> Request<T> {
    let mut request = Request::new(message);
    let metadata: &mut MetadataMap = request.metadata_mut();
    metadata.insert("minfs-cluster", cluster.parse().unwrap());
    metadata.insert("minfs-from", from.parse().unwrap());
    metadata.insert("minfs-target", target.parse().unwrap());
    request
}

fn vote_request(term: u64) -> pb::VoteRequest {
    let vote = Vote {
        leader_id: LeaderId { term, node_id: 1 },
        committed: false,
    };
    VoteRequest::<TypeConfig>::new(vote, None).into()
}

#[actix_rt::test]
async fn calls_for_another_cluster_or_incarnation_are_refused() {
    let ours = ClusterId::random();
    let node = TestNode::start("meta-1", Some(ours)).await;
    let (cluster, target) = (ours.to_string(), node.id().to_string());
    let mut client = node.client().await;

    let other = ClusterId::random().to_string();
    let refused = client
        .vote(stamped(vote_request(5), &other, "1", &target))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        refused.message().contains(&other) && refused.message().contains(&cluster),
        "{refused}"
    );

    let refused = client
        .pre_vote(stamped(vote_request(5), &cluster, "1", "77"))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        refused.message().contains("incarnation 77") && refused.message().contains(&target),
        "{refused}"
    );

    // Every kind of call is checked.
    let appends = futures::stream::iter(Vec::<pb::AppendRequest>::new());
    let chunks = futures::stream::iter(Vec::<pb::SnapshotChunk>::new());
    let transfer = pb::TransferLeaderRequest::default();
    let codes = [
        client
            .append_stream(stamped(appends, &other, "1", &target))
            .await
            .err(),
        client
            .install_snapshot(stamped(chunks, &other, "1", &target))
            .await
            .err(),
        client
            .transfer_leader(stamped(transfer, &other, "1", &target))
            .await
            .err(),
    ];
    for status in codes {
        assert_eq!(status.unwrap().code(), Code::FailedPrecondition);
    }

    let unsigned = client.vote(Request::new(vote_request(5))).await.unwrap_err();
    assert_eq!(unsigned.code(), Code::InvalidArgument);
    assert!(unsigned.message().contains("minfs-cluster"), "{unsigned}");
    let vote = node.raft.metrics().borrow_watched().vote;
    assert_eq!(vote.leader_id.term, 0, "a refused call changed the vote");

    client
        .vote(stamped(vote_request(5), &cluster, "1", &target))
        .await
        .unwrap();
    node.metrics("voted", |m| m.vote.leader_id.term == 5).await;
}

#[actix_rt::test]
async fn a_fresh_node_refuses_every_cluster() {
    let node = TestNode::start("meta-1", None).await;
    let cluster = ClusterId::random().to_string();
    let request = stamped(vote_request(5), &cluster, "1", &node.id().to_string());
    let refused = node.client().await.vote(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("in no cluster"), "{refused}");
}

#[actix_rt::test]
async fn a_peer_that_refuses_is_away_and_never_grants() {
    let mine = TestNode::start("meta-1", Some(ClusterId::random())).await;
    let other = TestNode::start("meta-2", Some(ClusterId::random())).await;
    let mut network = Network::new(mine.identity.clone(), Channels::default());
    let mut peer = network.new_client(other.id(), &other.node).await;
    let vote = Vote {
        leader_id: LeaderId {
            term: 9,
            node_id: mine.id(),
        },
        committed: false,
    };
    for error in [
        peer.pre_vote(VoteRequest::new(vote, None), RPCOption::new(LONG))
            .await
            .unwrap_err(),
        peer.vote(VoteRequest::new(vote, None), RPCOption::new(LONG))
            .await
            .unwrap_err(),
    ] {
        assert!(matches!(error, RPCError::Unreachable(_)), "{error}");
        assert!(error.to_string().contains("is in cluster"), "{error}");
    }
}

#[actix_rt::test]
async fn silence_is_no_answer() {
    let mine = TestNode::start("meta-1", Some(ClusterId::random())).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap(); // connects, never speaks
    let raft_addr = silent.local_addr().unwrap().to_string();
    let node = Node {
        name: "silent".into(),
        raft_addr,
        grpc_addr: String::new(),
    };
    let mut network = Network::new(mine.identity.clone(), Channels::default());
    let mut peer = network.new_heartbeat_client(77, &node).await;
    let option = RPCOption::new(Duration::from_millis(100));
    let vote = Vote {
        leader_id: LeaderId {
            term: 9,
            node_id: mine.id(),
        },
        committed: true,
    };
    peer.pre_vote(VoteRequest::new(vote, None), option.clone())
        .await
        .unwrap_err();
    let heartbeat = AppendEntriesRequest {
        vote,
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    };
    RaftNetworkV2::append_entries(&mut peer, heartbeat.clone(), option.clone())
        .await
        .unwrap_err();
    let mut peer = network.new_client(77, &node).await;
    let input = futures::stream::iter([heartbeat]);
    assert!(
        RaftNetworkV2::stream_append(&mut peer, input, option)
            .await
            .is_err()
    );

    drop(silent); // and nobody there
    peer.vote(VoteRequest::new(vote, None), RPCOption::new(LONG))
        .await
        .unwrap_err();
}

// --- what a peer may say ---

struct Caller {
    client: RaftServiceClient<tonic::transport::Channel>,
    cluster: String,
    target: String,
}

impl Caller {
    async fn of(node: &TestNode, cluster: ClusterId) -> Caller {
        let (cluster, target) = (cluster.to_string(), node.id().to_string());
        Caller {
            client: node.client().await,
            cluster,
            target,
        }
    }

    fn stamped<T>(&self, message: T) -> Request<T> {
        stamped(message, &self.cluster, "1", &self.target)
    }

    /// Sends one append request, and takes its answer.
    async fn append(&mut self, append: pb::AppendRequest) -> Result<pb::AppendResponse, Status> {
        let request = self.stamped(futures::stream::iter([append]));
        let mut answers = self.client.append_stream(request).await?.into_inner();
        Ok(answers.message().await?.expect("each request has an answer"))
    }

    async fn snapshot(&mut self, chunks: Vec<pb::SnapshotChunk>) -> Result<pb::SnapshotResponse, Status> {
        let request = self.stamped(futures::stream::iter(chunks));
        Ok(self.client.install_snapshot(request).await?.into_inner())
    }
}

fn leader_vote(term: u64) -> Option<pb::Vote> {
    Some(
        Vote {
            leader_id: LeaderId { term, node_id: 1 },
            committed: true,
        }
        .into(),
    )
}

fn entry(term: u64, index: u64) -> pb::Entry {
    pb::Entry {
        log_id: Some(log_id(term, 1, index).into()),
        payload: None,
    }
}

#[actix_rt::test]
async fn requests_that_make_no_sense_are_refused() {
    let cluster = ClusterId::random();
    let node = TestNode::start("meta-1", Some(cluster)).await;
    let mut caller = Caller::of(&node, cluster).await;

    let good = pb::AppendRequest {
        vote: leader_vote(2),
        entries: vec![entry(1, 0)],
        ..Default::default()
    };
    let bad = [
        pb::AppendRequest {
            vote: None,
            ..good.clone()
        },
        pb::AppendRequest {
            entries: vec![entry(1, 1)],
            ..good.clone()
        },
        pb::AppendRequest {
            entries: vec![entry(1, 0), entry(1, 2)],
            ..good.clone()
        },
        pb::AppendRequest {
            entries: vec![entry(2, 0), entry(1, 1)],
            ..good.clone()
        },
        pb::AppendRequest {
            entries: vec![entry(3, 0)],
            ..good.clone()
        },
        pb::AppendRequest {
            entries: vec![pb::Entry::default()],
            ..good.clone()
        },
        pb::AppendRequest {
            vote: leader_vote(u64::MAX),
            ..good.clone()
        },
        pb::AppendRequest {
            prev_log_id: Some(pb::LogId {
                leader: None,
                index: 1,
            }),
            ..good.clone()
        },
    ];
    for bad in bad {
        let refused = caller.append(bad.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{bad:?}");

        // What was before it is answered.
        let request = caller.stamped(futures::stream::iter([good.clone(), bad.clone()]));
        let mut answers = caller.client.append_stream(request).await.unwrap().into_inner();
        let first = answers.message().await.unwrap().unwrap();
        assert!(
            matches!(
                first.outcome,
                Some(pb::append_response::Outcome::PartialSuccess(_))
            ),
            "{first:?}"
        );
        assert_eq!(
            answers.message().await.unwrap_err().code(),
            Code::InvalidArgument,
            "{bad:?}"
        );
    }
    let request = caller.stamped(pb::VoteRequest::default());
    assert_eq!(
        caller.client.vote(request).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert!(node.raft.metrics().borrow_watched().running_state.is_ok());
}

#[actix_rt::test]
async fn terms_that_leap_and_logs_that_contradict_are_refused() {
    let cluster = ClusterId::random();
    let node = TestNode::start("meta-1", Some(cluster)).await;
    let mut caller = Caller::of(&node, cluster).await;
    let append = |term, prev: Option<LogId>, entries| pb::AppendRequest {
        vote: leader_vote(term),
        prev_log_id: prev.map(Into::into),
        entries,
        leader_commit: Some(log_id(1, 1, 1).into()),
    };
    let good = append(2, None, vec![entry(1, 0), entry(1, 1), entry(1, 2)]);
    caller.append(good.clone()).await.unwrap();
    node.metrics("committed", |m| m.local_committed == Some(log_id(1, 1, 1)))
        .await;
    for bad in [
        append(1 << 33, None, vec![]),
        append((1 << 63) - 1, None, vec![entry(1, 0)]),
        append(3, None, vec![entry(2, 0)]),
        append(3, Some(log_id(1, 1, 0)), vec![entry(3, 1)]),
        append(3, Some(log_id(2, 1, 1)), vec![entry(3, 2)]),
        append(3, Some(log_id(2, 1, 0)), vec![]),
    ] {
        let refused = caller.append(bad.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{bad:?}");
    }
    for term in [1 << 33, (1 << 63) - 1] {
        let request = || caller.stamped(vote_request(term));
        let votes = [
            caller.client.clone().vote(request()).await,
            caller.client.clone().pre_vote(request()).await,
        ];
        for refused in votes {
            assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
        }
        let leap = caller
            .snapshot(vec![header(term, Some(log_id(1, 1, 9).into()), b"")])
            .await;
        assert_eq!(leap.unwrap_err().code(), Code::InvalidArgument);
    }
    // What a new leader may well say: the same again, and another entry where none is committed.
    for fine in [good, append(3, Some(log_id(1, 1, 1)), vec![entry(3, 2)])] {
        caller.append(fine).await.unwrap();
    }
    assert_eq!(node.raft.metrics().borrow_watched().current_term, 3);
}

fn header(term: u64, last: Option<pb::LogId>, data: &[u8]) -> pb::SnapshotChunk {
    let meta = pb::SnapshotMeta {
        last_log_id: last,
        last_membership: Some(pb::StoredMembership {
            log_id: None,
            membership: Some(Default::default()),
        }),
        bytes: data.len() as u64,
        checksum: xxh3_64(data),
        version: 1,
        state_hash: Vec::new(),
    };
    let header = pb::SnapshotHeader {
        vote: leader_vote(term),
        meta: Some(meta),
    };
    pb::SnapshotChunk {
        content: Some(pb::snapshot_chunk::Content::Header(header)),
    }
}

/// The state of one batch, `a`.
const ONE: &[u8] = b"\x03\x0a\x01a";

fn chunk(data: &'static [u8]) -> pb::SnapshotChunk {
    pb::SnapshotChunk {
        content: Some(pb::snapshot_chunk::Content::Data(Bytes::from_static(data))),
    }
}

#[actix_rt::test]
async fn broken_snapshots_are_refused_and_leave_nothing_behind() {
    let cluster = ClusterId::random();
    let node = TestNode::start("meta-1", Some(cluster)).await;
    let mut caller = Caller::of(&node, cluster).await;
    let append = pb::AppendRequest {
        vote: leader_vote(2),
        entries: vec![entry(1, 0), entry(1, 1), entry(1, 2)],
        leader_commit: Some(log_id(1, 1, 1).into()),
        ..Default::default()
    };
    caller.append(append).await.unwrap();
    node.metrics("committed", |m| m.local_committed == Some(log_id(1, 1, 1)))
        .await;

    let at = |term, index| Some(log_id(term, 1, index).into());
    let bad = [
        vec![],
        vec![chunk(ONE)],
        vec![header(2, at(1, 9), ONE), chunk(&ONE[..1])],
        vec![header(2, at(1, 9), ONE), chunk(&ONE[..1]), chunk(b"aaaa")],
        vec![header(2, at(1, 9), ONE), chunk(b"\x03\x0a\x01b")],
        vec![header(2, at(1, 9), ONE), header(2, at(1, 9), ONE)],
        vec![header(2, None, b"")],
        vec![header(2, at(3, 9), b"")], // from a later leader
        vec![header(2, at(2, 1), b"")], // another entry where one is committed
        vec![pb::SnapshotChunk { content: None }],
    ];
    for bad in bad {
        let refused = caller.snapshot(bad.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{bad:?}");
        assert_eq!(leftovers(node.dir.path()), Vec::<String>::new(), "{bad:?}");
    }

    // From a leader that is none any more: it is told.
    let answer = caller.snapshot(vec![header(1, at(1, 9), ONE)]).await.unwrap();
    assert_eq!(answer.vote, leader_vote(2));

    // One that is not needed is not kept; a good one is.
    caller
        .snapshot(vec![header(2, at(1, 0), ONE), chunk(ONE)])
        .await
        .unwrap();
    assert_eq!(node.batches().await, Vec::<Bytes>::new());
    caller
        .snapshot(vec![header(2, at(1, 9), ONE), chunk(&ONE[..1]), chunk(&ONE[1..])])
        .await
        .unwrap();
    assert_eq!(node.batches().await, ["a"]);
    assert_eq!(leftovers(node.dir.path()), Vec::<String>::new());
}

// --- when something breaks, the node stops ---

#[actix_rt::test]
async fn a_log_that_cannot_be_written_stops_the_node() {
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    node.metrics("leads", |m| m.current_leader == Some(node.id()))
        .await;
    let mut last = 0;
    for i in 0..120 {
        last = node.write(format!("batch {i}")).await;
    }
    let mut chunks: Vec<_> = std::fs::read_dir(log_dir(node.dir.path()))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    chunks.retain(|path| path.extension().is_some_and(|ext| ext == "wal"));
    chunks.sort();
    std::fs::remove_file(&chunks[0]).unwrap();
    node.raft.trigger().snapshot().await.unwrap();
    node.metrics("snapshot", |m| m.snapshot.is_some_and(|id| id.index >= last))
        .await;
    node.raft.trigger().purge_log(last).await.unwrap();
    // The purge itself is on the disk; deleting the chunk is what fails.
    while node.raft.client_write(Batch("more".into())).await.is_ok() {}
    node.metrics("stopped", |m| m.running_state.is_err()).await;
    let stopped = node
        .raft
        .metrics()
        .borrow_watched()
        .running_state
        .clone()
        .unwrap_err()
        .to_string();
    assert!(stopped.contains("raft log"), "{stopped}");
}

#[actix_rt::test]
async fn a_state_machine_that_is_gone_stops_the_node() {
    struct Gone;
    impl Actor for Gone {
        type Context = Context<Self>;
        fn started(&mut self, context: &mut Context<Self>) {
            actix::ActorContext::stop(context);
        }
    }
    impl Handler<ApplyEntries> for Gone {
        type Result = <ApplyEntries as actix::Message>::Result;
        fn handle(&mut self, _: ApplyEntries, _: &mut Context<Self>) -> Self::Result {
            Ok(Vec::new())
        }
    }
    let dir = TempDir::new().unwrap();
    let mut port = MemStore::port(&MemStore::start_in(dir.path()));
    port.apply = Gone.start().recipient();
    let identity = Identity::open(dir.path(), "meta-1").unwrap();
    let log = LogStore::open(&log_dir(dir.path()), LogLimits::default()).unwrap();
    let network = Network::new(identity.clone(), Channels::default());
    let config = openraft_config(&RaftSettings::default()).unwrap();
    let id = identity.incarnation();
    let state = StateMachine::new(port, log.clone());
    let raft = Raft::new(id, config, network, log, state).await.unwrap();
    raft.initialize(BTreeMap::from([(id, Node::default())]))
        .await
        .unwrap();
    raft.wait(Some(LONG))
        .metrics(|m| m.running_state.is_err(), "stopped")
        .await
        .unwrap();
    let stopped = raft
        .metrics()
        .borrow_watched()
        .running_state
        .clone()
        .unwrap_err()
        .to_string();
    assert!(stopped.contains("ApplyEntries was not answered"), "{stopped}");
}
