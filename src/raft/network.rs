//! Raft's calls to other nodes, over tonic.
//!
//! openraft owns the [`Network`] and makes a [`PeerClient`] of it for every target and purpose.
//!
//! Invariant: every call says for which cluster and which incarnation it is meant; nothing that went
//! wrong on the way is ever taken for an answer, least of all for a vote.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::TypeConfigExt;
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2, StorageError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::call_metadata;
use super::channels::{Channels, Lane, MAX_MESSAGE_BYTES};
use super::conversation::{Conversation, ask_again};
use super::convert::{DecodeError, Span, append_result};
use super::identity::Identity;
use super::pipeline::{self, Pipeline, PipelineError};
use super::ports::{Snapshot, SnapshotData};
use super::snapshot_transfer;
use super::state_machine::OpenraftSnapshot;
use super::types::{Node, NodeId, TypeConfig, Vote};
use crate::proto::raft as pb;
use pb::raft_service_client::RaftServiceClient;

/// How long a follower may take for its next answer on the replication stream, at least: its disk may
/// be busy, and to start over means to send everything again.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between two attempts to give entries or a snapshot to a peer whose disk is full.
const FULL_DISK_PAUSE: Duration = Duration::from_secs(1);

/// Between two warnings about one peer that refuses us.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Snapshot chunks read ahead of the connection.
const CHUNKS_AHEAD: usize = 2;

type RpcResult<T> = Result<T, RPCError<TypeConfig>>;

/// Makes clients for openraft.
#[derive(Clone)]
pub struct Network {
    identity: Identity,
    channels: Channels,
    warned: Warned,
}

/// When we last warned of a peer.
type Warned = Arc<Mutex<HashMap<NodeId, Instant>>>;

impl Network {
    /// For the node of this identity, over these connections.
    pub fn new(identity: Identity, channels: Channels) -> Self {
        Network {
            identity,
            channels,
            warned: Warned::default(),
        }
    }

    fn client(&self, target: NodeId, node: &Node, heartbeats: bool) -> PeerClient {
        PeerClient {
            network: self.clone(),
            target,
            node: node.clone(),
            heartbeats,
            beats: None,
            lacks_space: AtomicBool::new(false),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerClient;

    async fn new_client(&mut self, target: NodeId, node: &Node) -> PeerClient {
        self.client(target, node, false)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Node) -> PeerClient {
        self.client(target, node, true)
    }
}

/// Heartbeats, and their answers.
type Heartbeats = Conversation<pb::AppendRequest, pb::AppendResponse>;

/// One peer, as openraft calls it. Connects when it is first used.
pub struct PeerClient {
    network: Network,
    target: NodeId,
    node: Node,
    /// Only used for heartbeats.
    heartbeats: bool,
    /// What these are sent in, unless one is under way or there was none yet.
    beats: Option<Heartbeats>,
    /// Its last refusal was for a full disk.
    lacks_space: AtomicBool,
}

impl PeerClient {
    fn service(&self, lane: Lane) -> RpcResult<RaftServiceClient<Channel>> {
        let channel = self
            .network
            .channels
            .get(&self.node.raft_addr, lane)
            .map_err(|e| self.away(e))?;
        Ok(RaftServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    fn request<T>(&self, message: T) -> RpcResult<Request<T>> {
        let mut request = Request::new(message);
        call_metadata::stamp(&self.network.identity, self.target, request.metadata_mut())
            .map_err(|e| self.away(e))?;
        Ok(request)
    }

    /// Waits for the answer to a call, for `limit` at most.
    async fn answer<T>(
        &self,
        action: RPCTypes,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> RpcResult<T> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.refused(&status)),
            Err(_) => Err(self.timeout(action, limit)),
        }
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> RPCError<TypeConfig> {
        let id = self.network.identity.incarnation();
        Timeout {
            action,
            id,
            target: self.target,
            timeout,
        }
        .into()
    }

    /// Not now; openraft waits a little before it tries again.
    fn away(&self, why: impl std::fmt::Display) -> RPCError<TypeConfig> {
        Unreachable::from_string(format!("{}: {why}", self.node)).into()
    }

    fn malformed(&self, e: &DecodeError) -> RPCError<TypeConfig> {
        self.warn(&format!("answer makes no sense: {e}"));
        self.away(e)
    }

    fn refused(&self, status: &Status) -> RPCError<TypeConfig> {
        self.lacks_space
            .store(status.code() == Code::ResourceExhausted, Ordering::Relaxed);
        match status.code() {
            // Not a matter of time: an operator should know.
            Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::Unimplemented
            | Code::ResourceExhausted => {
                self.warn(status.message());
            }
            _ => (),
        }
        self.away(format_args!("{:?}: {}", status.code(), status.message()))
    }

    fn warn(&self, message: &str) {
        let now = Instant::now();
        let mut warned = self.network.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let last = warned.get(&self.target);
        if last.is_none_or(|last| now.duration_since(*last) >= WARN_EVERY) {
            warned.insert(self.target, now);
            log::warn!(
                "raft peer {} of incarnation {} refuses: {message}",
                self.node,
                self.target
            );
        }
    }

    /// Replicates on one stream; see [`pipeline`].
    async fn pipelined<S>(
        &self,
        input: S,
        option: RPCOption,
    ) -> RpcResult<impl Stream<Item = RpcResult<StreamAppendResult<TypeConfig>>> + Send + use<'_, S>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let (requests, outgoing) = mpsc::channel(pipeline::MAX_REQUESTS);
        let request = self.request(ReceiverStream::new(outgoing))?;
        let mut service = self.service(Lane::Replication)?;
        let answers = self
            .answer(
                RPCTypes::AppendEntries,
                option.soft_ttl(),
                service.append_stream(request),
            )
            .await?;
        let patience = option.soft_ttl().max(PATIENCE);
        let results = Pipeline::new(input, requests, answers, patience).results();
        Ok(results.map(|result| {
            result.map_err(|e| match e {
                PipelineError::Refused(status) => self.refused(&status),
                PipelineError::Silent(patience) => self.timeout(RPCTypes::AppendEntries, patience),
                PipelineError::Malformed(e) => self.malformed(&e),
                e @ (PipelineError::Closed | PipelineError::Unasked) => self.away(e),
            })
        }))
    }

    async fn begin_heartbeats(&self) -> Result<Heartbeats, Status> {
        let not_now = |e: RPCError<TypeConfig>| Status::unavailable(e.to_string());
        let mut service = self.service(Lane::Control).map_err(not_now)?;
        Conversation::begin(async |requests| {
            let request = self.request(requests).map_err(not_now)?;
            service.append_stream(request).await
        })
        .await
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: &Snapshot,
        limit: Duration,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let path = &snapshot.data.path;
        let file = match snapshot_transfer::open(&snapshot.data).await {
            Ok(file) => file,
            Err(e) => return Err(unreadable(snapshot, &e)),
        };
        let (chunks, outgoing) = mpsc::channel(CHUNKS_AHEAD);
        let request = self.request(ReceiverStream::new(outgoing)).map_err(streaming)?;
        let mut service = self.service(Lane::Snapshot).map_err(streaming)?;
        let header = snapshot_transfer::header(vote, snapshot);
        let call = service.install_snapshot(request);
        // Each ends when the other does: a call that is over takes no more chunks.
        let (read, answer) = tokio::join!(
            snapshot_transfer::send_chunks(header, file, path, chunks),
            self.answer(RPCTypes::InstallSnapshot, limit, call),
        );
        if let Err(e) = read {
            return Err(unreadable(snapshot, &e));
        }
        let answer = answer.map_err(streaming)?;
        let vote = answer
            .vote
            .ok_or(DecodeError::Missing {
                message: "SnapshotResponse",
                field: "vote",
            })
            .and_then(Vote::try_from)
            .map_err(|e| streaming(self.malformed(&e)))?;
        Ok(SnapshotResponse::new(vote))
    }
}

fn streaming(e: RPCError<TypeConfig>) -> StreamingError<TypeConfig> {
    match e {
        RPCError::Timeout(e) => e.into(),
        RPCError::Unreachable(e) => e.into(),
        RPCError::Network(e) => e.into(),
        RPCError::RemoteError(e) => NetworkError::from_string(e).into(),
    }
}

/// Our own disk failed us, unless a newer snapshot has just taken the place of this one.
fn unreadable(snapshot: &Snapshot, e: &io::Error) -> StreamingError<TypeConfig> {
    if e.kind() == io::ErrorKind::NotFound {
        return Unreachable::from_string(e).into();
    }
    StorageError::read_snapshot(Some(snapshot.meta.signature()), TypeConfig::err_from_error(e)).into()
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotData;

    // Heartbeats; log entries are replicated by `stream_append`.
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<TypeConfig>> {
        let span = Span::of(&request);
        let limit = option.soft_ttl();
        let (last, request) = (self.beats.take(), request.into());
        let asked = ask_again(last, self.begin_heartbeats(), request);
        let answer = match tokio::time::timeout(limit, asked).await {
            Ok(Ok((answer, beats))) => {
                self.beats = Some(beats);
                answer
            }
            Ok(Err(status)) => return Err(self.refused(&status)),
            Err(_) => return Err(self.timeout(RPCTypes::AppendEntries, limit)),
        };
        let result = append_result(answer, span).map_err(|e| self.malformed(&e))?;
        Ok(match result {
            Ok(matching) if matching == span.last => AppendEntriesResponse::Success,
            Ok(matching) => AppendEntriesResponse::PartialSuccess(matching),
            Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
            Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> futures::future::BoxFuture<
        's,
        RpcResult<futures::stream::BoxStream<'s, RpcResult<StreamAppendResult<TypeConfig>>>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.heartbeats {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move { Ok(self.pipelined(input, option).await?.boxed()) })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<TypeConfig>> {
        let request = self.request(request.into())?;
        let mut service = self.service(Lane::Control)?;
        let answer = self
            .answer(RPCTypes::Vote, option.soft_ttl(), service.vote(request))
            .await?;
        answer.try_into().map_err(|e| self.malformed(&e))
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<TypeConfig>> {
        let request = self.request(request.into())?;
        let mut service = self.service(Lane::Control)?;
        let answer = self
            .answer(RPCTypes::Vote, option.soft_ttl(), service.pre_vote(request))
            .await?;
        answer.try_into().map_err(|e| self.malformed(&e))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: OpenraftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let snapshot = Snapshot {
            meta: snapshot.meta,
            data: snapshot.snapshot,
        };
        let cancel = pin!(cancel);
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, &snapshot, option.soft_ttl()) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<TransferLeaderResponse<TypeConfig>> {
        let request = self.request(request.into())?;
        let mut service = self.service(Lane::Control)?;
        let call = service.transfer_leader(request);
        let answer = self
            .answer(RPCTypes::TransferLeader, option.soft_ttl(), call)
            .await?;
        if answer.accepted {
            return Ok(Ok(()));
        }
        // openraft only logs it.
        Err(NetworkError::from_string(format!("{} refuses to lead: {}", self.node, answer.reason)).into())
    }

    // A peer that was restarted is found soon, one that is away for good costs a little. To one whose disk
    // is full each attempt sends entries that it throws away.
    fn backoff(&self) -> Option<Backoff> {
        if self.lacks_space.load(Ordering::Relaxed) {
            return Some(Backoff::new(std::iter::repeat(FULL_DISK_PAUSE)));
        }
        let first = [50, 100].map(Duration::from_millis);
        Some(Backoff::new(
            first
                .into_iter()
                .chain(std::iter::repeat(Duration::from_millis(150))),
        ))
    }
}
