//! Replication on one stream, against a follower that does as it is told.

use std::sync::Mutex;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use openraft::RaftNetworkFactory;
use openraft::errors::RPCError;
use openraft::network::{RPCOption, RaftNetworkV2};
use openraft::raft::AppendEntriesRequest;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::{batch, log_id};
use crate::connections::{Bounds, Threads, serve};
use crate::proto::raft as pb;
use crate::proto::raft::raft_service_server::{RaftService, RaftServiceServer};
use crate::raft::channels::{Channels, MAX_MESSAGE_BYTES, server_bounds};
use crate::raft::identity::{ClusterId, Identity};
use crate::raft::network::{Network, PeerClient};
use crate::raft::pipeline::MAX_REQUESTS;
use crate::raft::types::{LeaderId, Node, TypeConfig, Vote};

type Answers = mpsc::Sender<Result<pb::AppendResponse, Status>>;

/// Serves one stream: shows what arrives on it, and answers what it is told to.
struct Follower {
    saw: Mutex<Option<mpsc::UnboundedSender<pb::AppendRequest>>>,
    answers: Mutex<Option<mpsc::Receiver<Result<pb::AppendResponse, Status>>>>,
}

#[tonic::async_trait]
impl RaftService for Follower {
    type AppendStreamStream = BoxStream<'static, Result<pb::AppendResponse, Status>>;

    async fn append_stream(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        let mut requests = request.into_inner();
        let saw = self.saw.lock().unwrap().take().unwrap();
        let answers = self.answers.lock().unwrap().take().unwrap();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                saw.send(request).ok();
            }
        });
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
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

struct Scene {
    _dir: TempDir,
    peer: PeerClient,
    seen: mpsc::UnboundedReceiver<pb::AppendRequest>,
    answers: Answers,
}

async fn scene() -> Scene {
    let dir = TempDir::new().unwrap();
    let identity = Identity::open(dir.path(), "meta-1").unwrap();
    identity.claim(ClusterId::random()).unwrap();
    let (saw, seen) = mpsc::unbounded_channel();
    let (answers, to_leader) = mpsc::channel(1000);
    let follower = Follower {
        saw: Mutex::new(Some(saw)),
        answers: Mutex::new(Some(to_leader)),
    };

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let raft_addr = listener.local_addr().unwrap().to_string();
    let service = RaftServiceServer::new(follower).max_decoding_message_size(MAX_MESSAGE_BYTES);
    // Nobody stands before this follower who would vouch for its leader.
    let bounds = Bounds {
        strangers: None,
        ..server_bounds(100)
    };
    tokio::spawn(serve(
        listener,
        Routes::new(service),
        bounds,
        Threads::none(),
        std::future::pending(),
    ));
    let node = Node {
        name: "follower".into(),
        raft_addr,
        grpc_addr: String::new(),
    };
    let peer = Network::new(identity, Channels::default())
        .new_client(2, &node)
        .await;
    Scene {
        _dir: dir,
        peer,
        seen,
        answers,
    }
}

fn request(index: u64, bytes: usize) -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest {
        vote: Vote {
            leader_id: LeaderId { term: 1, node_id: 1 },
            committed: true,
        },
        prev_log_id: index.checked_sub(1).map(|index| log_id(1, 1, index)),
        entries: vec![batch(index, vec![0; bytes])],
        leader_commit: None,
    }
}

fn matching(index: u64) -> Result<pb::AppendResponse, Status> {
    let outcome = pb::append_response::Outcome::PartialSuccess(log_id(1, 1, index).into());
    Ok(pb::AppendResponse {
        outcome: Some(outcome),
    })
}

fn option() -> RPCOption {
    RPCOption::new(Duration::from_secs(20))
}

#[actix_rt::test]
async fn requests_do_not_wait_for_answers_but_for_room() {
    let mut scene = scene().await;
    let input = futures::stream::iter((0..200).map(|index| request(index, 10)));
    let mut results = RaftNetworkV2::stream_append(&mut scene.peer, input, option())
        .await
        .unwrap();

    // All that may be under way arrives before anything is answered, and not one more.
    let mut arrived = 0;
    let more = loop {
        tokio::select! {
            biased;
            request = scene.seen.recv() => {
                request.unwrap();
                arrived += 1;
                if arrived == MAX_REQUESTS as u64 {
                    // An answer comes back in order, and makes room for exactly one more.
                    assert!(scene.seen.try_recv().is_err());
                    scene.answers.send(matching(0)).await.unwrap();
                }
            }
            result = results.next() => break result,
        }
    };
    assert_eq!(more.unwrap().unwrap().unwrap(), Some(log_id(1, 1, 0)));
    assert_eq!(arrived, MAX_REQUESTS as u64);
    for index in 1..MAX_REQUESTS as u64 {
        scene.answers.send(matching(index)).await.unwrap();
    }
    let mut expected = 1;
    while expected < 200 {
        tokio::select! {
            Some(_) = scene.seen.recv() => {
                scene.answers.send(matching(arrived)).await.unwrap();
                arrived += 1;
            }
            result = results.next() => {
                assert_eq!(result.unwrap().unwrap().unwrap(), Some(log_id(1, 1, expected)));
                expected += 1;
            }
        }
    }
    drop(scene.answers);
    assert!(results.next().await.is_none());
}

#[actix_rt::test]
async fn what_is_under_way_is_bounded_in_bytes() {
    let mut scene = scene().await;
    let (sender, input) = mpsc::unbounded_channel();
    for index in 0..10 {
        sender.send(request(index, 5 << 20)).unwrap();
    }
    let input = Box::pin(UnboundedReceiverStream::new(input));
    let mut results = RaftNetworkV2::stream_append(&mut scene.peer, input, option())
        .await
        .unwrap();
    let mut arrived = 0;
    while arrived < 2 {
        tokio::select! {
            request = scene.seen.recv() => { request.unwrap(); arrived += 1; }
            result = results.next() => panic!("{result:?}"),
        }
    }
    scene.answers.send(matching(0)).await.unwrap();
    results.next().await.unwrap().unwrap().unwrap();
    assert!(
        scene.seen.try_recv().is_err(),
        "a third request is under way with 10 MiB"
    );
}

/// The commit index alone, behind the entry at `index`.
fn news(index: u64) -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest {
        prev_log_id: Some(log_id(1, 1, index)),
        entries: Vec::new(),
        leader_commit: Some(log_id(1, 1, index)),
        ..request(index + 1, 0)
    }
}

#[actix_rt::test]
async fn news_of_a_commit_travel_with_the_next_entries_and_have_results_of_their_own() {
    let mut scene = scene().await;
    let input = [request(0, 1), news(0), news(0), request(1, 1), news(1)];
    let input = Box::pin(futures::stream::iter(input).chain(futures::stream::pending()));
    let mut results = RaftNetworkV2::stream_append(&mut scene.peer, input, option())
        .await
        .unwrap();
    let mut seen = Vec::new();
    // The last ones have no company, and are sent all the same.
    while seen.len() < 3 {
        tokio::select! {
            request = scene.seen.recv() => seen.push(request.unwrap().entries.len()),
            result = results.next() => panic!("{result:?}"),
        }
    }
    assert_eq!(seen, [1, 1, 0]);
    for index in [0, 1, 1] {
        scene.answers.send(matching(index)).await.unwrap();
    }
    for index in [0, 0, 0, 1, 1] {
        let result = results.next().await.unwrap().unwrap();
        assert_eq!(result.unwrap(), Some(log_id(1, 1, index)));
    }
}

#[actix_rt::test]
async fn news_of_a_commit_are_sent_before_the_requests_end() {
    let mut scene = scene().await;
    let input = futures::stream::iter([request(0, 1), news(0)]);
    let mut results = RaftNetworkV2::stream_append(&mut scene.peer, input, option())
        .await
        .unwrap();
    for index in [0, 0] {
        tokio::select! {
            request = scene.seen.recv() => drop(request.unwrap()),
            result = results.next() => panic!("{result:?}"),
        }
        scene.answers.send(matching(index)).await.unwrap();
    }
    drop(scene.answers);
    for _ in 0..2 {
        let result = results.next().await.unwrap().unwrap();
        assert_eq!(result.unwrap(), Some(log_id(1, 1, 0)));
    }
    assert!(results.next().await.is_none());
}

#[actix_rt::test]
async fn a_follower_that_stops_answering_is_noticed() {
    let mut scene = scene().await;
    let input = futures::stream::iter([request(0, 1)]).chain(futures::stream::pending());
    let option = RPCOption::new(Duration::from_millis(400));
    let mut results = RaftNetworkV2::stream_append(&mut scene.peer, input, option)
        .await
        .unwrap();
    let result = results.next().await.unwrap();
    assert!(matches!(result, Err(RPCError::Timeout(_))), "{result:?}");
    assert!(results.next().await.is_none());
}

#[actix_rt::test]
async fn answers_nobody_asked_for_end_the_stream() {
    let mut scene = scene().await;
    scene.answers.send(matching(0)).await.unwrap();
    let input = Box::pin(futures::stream::pending());
    let mut results = RaftNetworkV2::stream_append(&mut scene.peer, input, option())
        .await
        .unwrap();
    let result = results.next().await.unwrap();
    assert!(matches!(result, Err(RPCError::Unreachable(_))), "{result:?}");
}

#[actix_rt::test]
async fn dropping_the_results_lets_go_of_the_requests() {
    let mut scene = scene().await;
    let (sender, input) = mpsc::unbounded_channel();
    sender.send(request(0, 1)).unwrap();
    let input = Box::pin(UnboundedReceiverStream::new(input));
    let mut results = RaftNetworkV2::stream_append(&mut scene.peer, input, option())
        .await
        .unwrap();
    tokio::select! {
        request = scene.seen.recv() => drop(request.unwrap()),
        result = results.next() => panic!("{result:?}"),
    }
    drop(results);
    assert!(
        sender.is_closed(),
        "the transport still holds openraft's requests"
    );
    assert!(
        scene.seen.recv().await.is_none(),
        "the follower still waits for requests"
    );
}
