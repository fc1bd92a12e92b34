//! The server side of [`super::peers`]: what other nodes ask of this one, on `raft_addr`.

use std::time::{Duration, Instant};

use actix::{MailboxError, Recipient};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::messages::{ClaimAnswer, GetReadIndex, Leader, Propose, ProposeError, ReadError};
use crate::domain::command::Applied;
use crate::domain::state_hash::StateHash;
use crate::logging::Seldom;
use crate::proto::convert::{applied_to_proto, command_from_proto, origin_from_proto, refusal_to_proto};
use crate::proto::grpc_timeout;
use crate::proto::raft as pb;
use crate::proto::raft::peer_service_server::{PeerService, PeerServiceServer};
use crate::raft::call_metadata::check;
use crate::raft::channels::MAX_MESSAGE_BYTES;
use crate::raft::identity::{ClaimOutcome, ClusterId, Identity};
use crate::space::SpaceWatch;
use crate::storage::StateReader;

/// Answers other nodes. Knows the Raft node as recipients.
pub struct PeerServer {
    identity: Identity,
    /// This node was started with `--bootstrap`.
    bootstrap: bool,
    propose: Recipient<Propose>,
    read_index: Recipient<GetReadIndex>,
    claim_answer: Recipient<ClaimAnswer>,
    space: SpaceWatch,
    state: StateReader,
    /// Of claims; whoever makes them may make many.
    refusals: Seldom,
}

/// How many state hashes one answer holds at most: a millisecond's reading, 100 KiB.
pub const MOST_HASHES: u32 = 4096;

/// How long a forwarded request may take when it does not say.
const DEFAULT_TIME: Duration = Duration::from_secs(5);

/// How long it may take whatever it says.
const LONGEST_TIME: Duration = Duration::from_secs(60);

impl PeerServer {
    /// The service, ready to be added to the server on `raft_addr`.
    pub fn service(
        identity: Identity,
        bootstrap: bool,
        propose: Recipient<Propose>,
        read_index: Recipient<GetReadIndex>,
        claim_answer: Recipient<ClaimAnswer>,
        space: SpaceWatch,
        state: StateReader,
    ) -> PeerServiceServer<Self> {
        let server = PeerServer {
            identity,
            bootstrap,
            propose,
            read_index,
            claim_answer,
            space,
            state,
            refusals: Seldom::default(),
        };
        PeerServiceServer::new(server)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

#[tonic::async_trait]
impl PeerService for PeerServer {
    async fn identify(
        &self,
        _: Request<pb::IdentifyRequest>,
    ) -> Result<Response<pb::IdentifyResponse>, Status> {
        Ok(Response::new(pb::IdentifyResponse {
            name: self.identity.name().to_owned(),
            incarnation: self.identity.incarnation(),
            cluster_id: self
                .identity
                .cluster()
                .map(|cluster| cluster.to_string())
                .unwrap_or_default(),
            bootstrap: self.bootstrap,
            low_on_space: self.space.borrow().shortage().unwrap_or_default(),
        }))
    }

    async fn claim(&self, request: Request<pb::ClaimRequest>) -> Result<Response<pb::ClaimResponse>, Status> {
        let pb::ClaimRequest {
            cluster_id,
            incarnation,
        } = request.into_inner();
        if incarnation != self.identity.incarnation() {
            let ours = self.identity.incarnation();
            return Err(Status::failed_precondition(format!(
                "{} is incarnation {ours}, the claim is for {incarnation}",
                self.identity.name()
            )));
        }
        let wanted: ClusterId = cluster_id
            .parse()
            .map_err(|error| Status::invalid_argument(format!("{error}")))?;
        let cluster = match self.identity.claim(wanted) {
            Ok(ClaimOutcome::Claimed | ClaimOutcome::AlreadyOurs) => wanted,
            Ok(ClaimOutcome::Refused(ours)) => {
                if self.refusals.may_speak() {
                    log::error!("refused to join cluster {wanted}: this node belongs to cluster {ours}");
                }
                ours
            }
            Err(error) => return Err(Status::unavailable(format!("cannot record the claim: {error}"))),
        };
        Ok(Response::new(pb::ClaimResponse {
            cluster_id: cluster.to_string(),
        }))
    }

    async fn propose(
        &self,
        request: Request<pb::ProposeRequest>,
    ) -> Result<Response<pb::ProposeResponse>, Status> {
        check(&self.identity, request.metadata().as_ref())?;
        let deadline = deadline(&request);
        let commands = request.into_inner().commands.into_iter().map(command_from_proto);
        let commands: Vec<_> = commands
            .collect::<Result<_, _>>()
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let proposals = commands.into_iter().map(|command| {
            let (op, request_id, origin) = (command.op, command.request_id, command.origin);
            // A clone a message: actix wakes a sender only once that met a full mailbox.
            self.propose.clone().send(Propose {
                op,
                request_id,
                origin,
                deadline,
                forwarded: true,
            })
        });
        let results = join_all(proposals)
            .await
            .into_iter()
            .map(result_to_proto)
            .collect();
        Ok(Response::new(pb::ProposeResponse { results }))
    }

    type ReadIndexStream = BoxStream<'static, Result<pb::ReadIndexResponse, Status>>;

    async fn read_index(
        &self,
        request: Request<Streaming<pb::ReadIndexRequest>>,
    ) -> Result<Response<Self::ReadIndexStream>, Status> {
        check(&self.identity, request.metadata().as_ref())?;
        let questions = request.into_inner();
        let of = self.read_index.clone();
        let answers = futures::stream::try_unfold((questions, of), |(mut questions, of)| async move {
            let Some(question) = questions.message().await? else {
                return Ok(None);
            };
            let within = Duration::from_millis(question.within_ms.into());
            let answer = read_index(&of, Instant::now() + within.min(LONGEST_TIME)).await;
            Ok(Some((answer, (questions, of))))
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn claim_answer(
        &self,
        request: Request<pb::ClaimAnswerRequest>,
    ) -> Result<Response<pb::ClaimAnswerResponse>, Status> {
        check(&self.identity, request.metadata().as_ref())?;
        let pb::ClaimAnswerRequest { number, by } = request.into_inner();
        let by = by.ok_or_else(|| Status::invalid_argument("claimed by nobody"))?;
        let by = origin_from_proto(&by).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let claimed = self.claim_answer.send(ClaimAnswer { number, by }).await;
        // A gateway that has stopped delivers nothing any more, but what it did deliver it cannot say.
        let lost = claimed.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(pb::ClaimAnswerResponse { lost }))
    }

    async fn get_state_hashes(
        &self,
        request: Request<pb::GetStateHashesRequest>,
    ) -> Result<Response<pb::GetStateHashesResponse>, Status> {
        check(&self.identity, request.metadata().as_ref())?;
        let pb::GetStateHashesRequest { from_index, limit } = request.into_inner();
        let read = self.state.read(|view| {
            let applied = view.progress()?.applied;
            Ok((applied, view.hashes(from_index, limit.min(MOST_HASHES).into())?))
        });
        let (applied, hashes) = read.map_err(|error| Status::internal(error.to_string()))?;
        let hash = |(index, hash): (u64, StateHash)| pb::StateHash {
            index,
            hash: hash.to_bytes().to_vec(),
        };
        Ok(Response::new(pb::GetStateHashesResponse {
            applied_index: applied.map(|id| id.index),
            hashes: hashes.into_iter().map(hash).collect(),
        }))
    }
}

async fn read_index(of: &Recipient<GetReadIndex>, deadline: Instant) -> pb::ReadIndexResponse {
    use pb::read_index_response::Result as P;
    // A clone a message: actix wakes a sender only once that met a full mailbox.
    let result = match of.clone().send(GetReadIndex { deadline }).await {
        Ok(Ok(index)) => P::Index(index),
        Ok(Err(ReadError::NoLeader(leader))) => P::NotLeader(not_leader(leader)),
        Ok(Err(error @ (ReadError::Unavailable(_) | ReadError::Overloaded))) => {
            P::Unavailable(error.to_string())
        }
        Err(error) => P::Unavailable(error.to_string()),
    };
    pb::ReadIndexResponse { result: Some(result) }
}

/// When the caller stops waiting, as its `grpc-timeout` says.
fn deadline<T>(request: &Request<T>) -> Instant {
    let asked = grpc_timeout(request.metadata().as_ref());
    Instant::now() + asked.unwrap_or(DEFAULT_TIME).min(LONGEST_TIME)
}

fn not_leader(leader: Option<Leader>) -> pb::NotLeader {
    pb::NotLeader {
        leader: leader.map(|leader| (&leader.node).into()),
    }
}

fn result_to_proto(result: Result<Result<Applied, ProposeError>, MailboxError>) -> pb::ProposeResult {
    use pb::propose_result::Result as P;
    let result = match result {
        Ok(Ok(applied)) => P::Outcome(applied_to_proto(&applied)),
        Ok(Err(ProposeError::NotLeader(leader))) => P::NotLeader(not_leader(leader)),
        Ok(Err(ProposeError::Unavailable(why))) => P::Unavailable(why),
        Ok(Err(ProposeError::Unknown(why))) => P::Unknown(why),
        Ok(Err(ProposeError::Refused(refusal))) => P::Refused(refusal_to_proto(&refusal)),
        Ok(Err(ProposeError::Overloaded)) => P::Overloaded(pb::Done {}),
        Ok(Err(ProposeError::NoSpace(why))) => P::NoSpace(why),
        // A mailbox that closed under a message may have taken it.
        Err(error) => P::Unknown(error.to_string()),
    };
    pb::ProposeResult { result: Some(result) }
}
