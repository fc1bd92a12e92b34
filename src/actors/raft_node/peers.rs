//! What the Raft node asks of other nodes, and gRPC as the way to ask.

use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::messages::{Leader, MemberStatus, ProposeError};
use crate::actors::auditor::PeerHashes;
use crate::domain::command::{Applied, Command, Origin};
use crate::domain::state_hash::{Hashes, StateHash};
use crate::proto::convert::{applied_from_proto, command_to_proto, origin_to_proto, refusal_from_proto};
use crate::proto::raft as pb;
use crate::proto::raft::peer_service_client::PeerServiceClient;
use crate::raft::call_metadata::stamp;
use crate::raft::channels::{Channels, Lane, MAX_MESSAGE_BYTES};
use crate::raft::conversation::{Conversation, ask_again};
use crate::raft::identity::{ClusterId, Identity};
use crate::raft::types::NodeId;

/// The answer to one forwarded proposal.
pub type ProposalResult = Result<Applied, ProposeError>;

/// A peer did not answer, or not with sense: whatever was asked may have happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerError(pub String);

/// What the Raft node asks of other nodes.
pub trait Peers {
    /// Sends commands to the leader; one answer each.
    fn propose(
        &self,
        leader: &Leader,
        commands: Vec<Command>,
        deadline: Instant,
    ) -> LocalBoxFuture<'static, Result<Vec<ProposalResult>, PeerError>>;

    /// Asks the leader which log index a linearizable read must have seen applied.
    fn read_index(
        &self,
        leader: &Leader,
        deadline: Instant,
    ) -> LocalBoxFuture<'static, Result<u64, PeerError>>;

    /// Asks the node that took a request, at `raft_addr`, whether the answer was lost and goes to `by`
    /// (see [`super::messages::ClaimAnswer`]).
    fn claim_answer(
        &self,
        first: Origin,
        raft_addr: &str,
        by: Origin,
        within: Duration,
    ) -> LocalBoxFuture<'static, Result<bool, PeerError>>;

    /// The cluster that this node belongs to.
    fn cluster_id(&self) -> Option<String>;
}

/// Other nodes, over gRPC.
#[derive(Clone)]
pub struct GrpcPeers {
    identity: Identity,
    channels: Channels,
    reads: Reads,
}

/// The conversation about read indexes with the node that led last, unless a question is under way.
type Reads = Arc<Mutex<Option<(NodeId, ReadIndexes)>>>;

type ReadIndexes = Conversation<pb::ReadIndexRequest, pb::ReadIndexResponse>;

impl GrpcPeers {
    /// Asks in the name of `identity`.
    pub fn new(identity: Identity, channels: Channels) -> Self {
        GrpcPeers {
            identity,
            channels,
            reads: Reads::default(),
        }
    }

    /// A conversation about read indexes is never half changed.
    fn reads(&self) -> MutexGuard<'_, Option<(NodeId, ReadIndexes)>> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn begin_reads(&self, leader: &Leader) -> Result<ReadIndexes, tonic::Status> {
        let not_now = |PeerError(why): PeerError| tonic::Status::unavailable(why);
        let mut client = self.client(&leader.node.raft_addr).map_err(not_now)?;
        Conversation::begin(async |questions| {
            let request = self.stamped(leader.id, questions).map_err(not_now)?;
            client.read_index(request).await
        })
        .await
    }

    /// The port for the Raft node.
    pub fn port(self) -> Rc<dyn Peers> {
        Rc::new(self)
    }

    fn client(&self, raft_addr: &str) -> Result<PeerServiceClient<tonic::transport::Channel>, PeerError> {
        let channel = self
            .channels
            .get(raft_addr, Lane::Peer)
            .map_err(|error| PeerError(error.to_string()))?;
        Ok(PeerServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    fn request<T>(
        &self,
        target: NodeId,
        message: T,
        within: Duration,
    ) -> Result<tonic::Request<T>, PeerError> {
        let mut request = self.stamped(target, message)?;
        request.set_timeout(within);
        Ok(request)
    }

    fn stamped<T>(&self, target: NodeId, message: T) -> Result<tonic::Request<T>, PeerError> {
        let mut request = tonic::Request::new(message);
        stamp(&self.identity, target, request.metadata_mut())
            .map_err(|error| PeerError(error.to_string()))?;
        Ok(request)
    }

    /// Asks the node at an address who it is.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn identify(
        &self,
        raft_addr: &str,
        within: Duration,
    ) -> Result<pb::IdentifyResponse, PeerError> {
        let mut client = self.client(raft_addr)?;
        let mut request = tonic::Request::new(pb::IdentifyRequest {});
        request.set_timeout(within);
        answered(within, client.identify(request)).await
    }

    /// Asks a node for its state's hashes after the log entries `from .. from + limit`; those that it does not
    /// know are left out, as are those beyond [`MOST_HASHES`](super::peer_service::MOST_HASHES).
    ///
    /// # Errors
    /// When it does not answer in time, or is too old to know the question.
    async fn state_hashes(
        &self,
        raft_addr: &str,
        target: NodeId,
        (from_index, limit): (u64, u32),
        within: Duration,
    ) -> Result<Hashes, PeerError> {
        let mut client = self.client(raft_addr)?;
        let request = self.request(target, pb::GetStateHashesRequest { from_index, limit }, within)?;
        let answer = answered(within, client.get_state_hashes(request)).await?;
        let hashes = answer.hashes.into_iter();
        let hash = |found: pb::StateHash| Some((found.index, StateHash::from_bytes(&found.hash)?));
        hashes
            .map(|found| hash(found).ok_or_else(|| PeerError("a state hash not of 16 bytes".to_owned())))
            .collect()
    }

    /// Makes a fresh node a member-to-be of `cluster`; answers the cluster that it is in now.
    ///
    /// # Errors
    /// When it does not answer in time: it may have been claimed.
    pub async fn claim(
        &self,
        raft_addr: &str,
        target: NodeId,
        cluster: ClusterId,
        within: Duration,
    ) -> Result<String, PeerError> {
        let mut client = self.client(raft_addr)?;
        let message = pb::ClaimRequest {
            cluster_id: cluster.to_string(),
            incarnation: target,
        };
        let mut request = tonic::Request::new(message);
        request.set_timeout(within);
        Ok(answered(within, client.claim(request)).await?.cluster_id)
    }
}

async fn answered<T>(
    within: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, PeerError> {
    Ok(in_time(within, call).await?.into_inner())
}

/// The transport's own timeout is only as good as the connection: this one holds in any case.
async fn in_time<T>(
    within: Duration,
    call: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, PeerError> {
    match tokio::time::timeout(within, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(status)) => Err(PeerError(format!("{}: {}", status.code(), status.message()))),
        Err(_) => Err(PeerError(format!("no answer within {within:?}"))),
    }
}

impl PeerHashes for GrpcPeers {
    fn state_hashes(
        &self,
        member: &MemberStatus,
        from: u64,
        limit: u32,
        within: Duration,
    ) -> LocalBoxFuture<'static, Result<Hashes, String>> {
        let peers = self.clone();
        let (raft_addr, target) = (member.raft_addr.clone(), member.incarnation);
        async move {
            let told = peers
                .state_hashes(&raft_addr, target, (from, limit), within)
                .await;
            told.map_err(|PeerError(why)| why)
        }
        .boxed_local()
    }
}

impl Peers for GrpcPeers {
    fn propose(
        &self,
        leader: &Leader,
        commands: Vec<Command>,
        deadline: Instant,
    ) -> LocalBoxFuture<'static, Result<Vec<ProposalResult>, PeerError>> {
        let client = self.client(&leader.node.raft_addr);
        let within = deadline.saturating_duration_since(Instant::now());
        let message = pb::ProposeRequest {
            commands: commands.iter().map(command_to_proto).collect(),
        };
        let request = self.request(leader.id, message, within);
        async move {
            let (mut client, request) = (client?, request?);
            let response = answered(within, client.propose(request)).await?;
            response.results.into_iter().map(result_from_proto).collect()
        }
        .boxed_local()
    }

    fn read_index(
        &self,
        leader: &Leader,
        deadline: Instant,
    ) -> LocalBoxFuture<'static, Result<u64, PeerError>> {
        use pb::read_index_response::Result as P;
        let (peers, leader) = (self.clone(), leader.clone());
        async move {
            let within = deadline.saturating_duration_since(Instant::now());
            let last = peers.reads().take();
            let last = last.and_then(|(with, reads)| (with == leader.id).then_some(reads));
            let question = pb::ReadIndexRequest {
                within_ms: within.as_millis().try_into().unwrap_or(u32::MAX),
            };
            let asked = ask_again(last, peers.begin_reads(&leader), question);
            let (answer, reads) = in_time(within, asked).await?;
            *peers.reads() = Some((leader.id, reads));
            match answer.result {
                Some(P::Index(index)) => Ok(index),
                Some(P::NotLeader(_)) => Err(PeerError("it does not lead".to_owned())),
                Some(P::Unavailable(why)) => Err(PeerError(why)),
                None => Err(PeerError("empty answer".to_owned())),
            }
        }
        .boxed_local()
    }

    fn claim_answer(
        &self,
        first: Origin,
        raft_addr: &str,
        by: Origin,
        within: Duration,
    ) -> LocalBoxFuture<'static, Result<bool, PeerError>> {
        let client = self.client(raft_addr);
        let message = pb::ClaimAnswerRequest {
            number: first.number,
            by: Some(origin_to_proto(&by)),
        };
        let request = self.request(first.gateway, message, within);
        async move {
            let (mut client, request) = (client?, request?);
            Ok(answered(within, client.claim_answer(request)).await?.lost)
        }
        .boxed_local()
    }

    fn cluster_id(&self) -> Option<String> {
        self.identity.cluster().map(|cluster| cluster.to_string())
    }
}

fn result_from_proto(result: pb::ProposeResult) -> Result<ProposalResult, PeerError> {
    use pb::propose_result::Result as P;
    let senseless = |error: crate::proto::convert::DecodeError| PeerError(error.to_string());
    Ok(
        match result
            .result
            .ok_or_else(|| PeerError("empty answer".to_owned()))?
        {
            P::Outcome(outcome) => Ok(applied_from_proto(outcome).map_err(senseless)?),
            // Who leads is not taken from here: openraft says so soon enough, and knows better.
            P::NotLeader(_) => Err(ProposeError::NotLeader(None)),
            P::Unknown(why) => Err(ProposeError::Unknown(why)),
            P::Unavailable(why) => Err(ProposeError::Unavailable(why)),
            P::Overloaded(_) => Err(ProposeError::Overloaded),
            P::NoSpace(why) => Err(ProposeError::NoSpace(why)),
            P::Refused(refusal) => Err(ProposeError::Refused(
                refusal_from_proto(refusal).map_err(senseless)?,
            )),
        },
    )
}
