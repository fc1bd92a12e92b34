//! Heartbeats in one conversation, against a follower that counts its streams and does as it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use openraft::RaftNetworkFactory;
use openraft::network::{RPCOption, RaftNetworkV2};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::log_id;
use crate::connections::{Bounds, Threads, serve};
use crate::proto::raft as pb;
use crate::proto::raft::raft_service_server::{RaftService, RaftServiceServer};
use crate::raft::channels::{Channels, server_bounds};
use crate::raft::identity::{ClusterId, Identity};
use crate::raft::network::{Network, PeerClient};
use crate::raft::types::{LeaderId, Node, TypeConfig, Vote};

/// The leader's commit index tells the follower what to do.
const ANSWER: u64 = 0;
const ANSWER_AND_CLOSE: u64 = 1;
const BE_SILENT: u64 = 2;

#[derive(Clone, Default)]
struct Follower {
    streams: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl RaftService for Follower {
    type AppendStreamStream = BoxStream<'static, Result<pb::AppendResponse, Status>>;

    async fn append_stream(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        self.streams.fetch_add(1, Ordering::Relaxed);
        let answers = futures::stream::unfold(Some(request.into_inner()), |requests| async move {
            let mut requests = requests?;
            let request = requests.message().await.ok()??;
            let answer = Ok(pb::AppendResponse {
                outcome: Some(pb::append_response::Outcome::Success(true)),
            });
            match request.leader_commit.unwrap().index {
                ANSWER => Some((answer, Some(requests))),
                ANSWER_AND_CLOSE => Some((answer, None)),
                _ => std::future::pending().await,
            }
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn vote(&self, _: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        Err(Status::unimplemented("vote"))
    }

    async fn pre_vote(&self, _: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        Err(Status::unimplemented("pre_vote"))
    }

    async fn install_snapshot(
        &self,
        _: Request<Streaming<pb::SnapshotChunk>>,
    ) -> Result<Response<pb::SnapshotResponse>, Status> {
        Err(Status::unimplemented("install_snapshot"))
    }

    async fn transfer_leader(
        &self,
        _: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        Err(Status::unimplemented("transfer_leader"))
    }
}

async fn beat(peer: &mut PeerClient, what: u64, patience: Duration) -> bool {
    let request: AppendEntriesRequest<TypeConfig> = AppendEntriesRequest {
        vote: Vote {
            leader_id: LeaderId { term: 1, node_id: 1 },
            committed: true,
        },
        prev_log_id: Some(log_id(1, 1, 5)),
        entries: Vec::new(),
        leader_commit: Some(log_id(1, 1, what)),
    };
    let answer = RaftNetworkV2::append_entries(peer, request, RPCOption::new(patience)).await;
    matches!(answer, Ok(AppendEntriesResponse::Success))
}

#[actix_rt::test]
async fn heartbeats_share_a_stream_until_one_is_not_answered_or_it_is_closed() {
    let dir = TempDir::new().unwrap();
    let identity = Identity::open(dir.path(), "meta-1").unwrap();
    identity.claim(ClusterId::random()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let raft_addr = listener.local_addr().unwrap().to_string();
    let follower = Follower::default();
    let streams = || follower.streams.load(Ordering::Relaxed);
    tokio::spawn(serve(
        listener,
        Routes::new(RaftServiceServer::new(follower.clone())),
        Bounds {
            strangers: None,
            ..server_bounds(100)
        },
        Threads::none(),
        std::future::pending(),
    ));
    let node = Node {
        name: "follower".into(),
        raft_addr,
        grpc_addr: String::new(),
    };
    let mut network = Network::new(identity, Channels::default());
    let mut peer = network.new_heartbeat_client(2, &node).await;
    let (ample, short) = (Duration::from_secs(20), Duration::from_millis(50));

    for _ in 0..3 {
        assert!(beat(&mut peer, ANSWER, ample).await);
    }
    assert_eq!(streams(), 1);

    // A closed stream costs no heartbeat.
    assert!(beat(&mut peer, ANSWER_AND_CLOSE, ample).await);
    assert!(beat(&mut peer, ANSWER, ample).await);
    assert_eq!(streams(), 2);

    // The answer to one that was given up is never taken for that of the next.
    assert!(!beat(&mut peer, BE_SILENT, short).await);
    assert!(beat(&mut peer, ANSWER, ample).await);
    assert_eq!(streams(), 3);
}
