//! Raft's calls from other nodes: the tonic `RaftService` on `raft_addr`.
//!
//! The wiring makes it once openraft is built, and before openraft runs.
//!
//! Invariant: nothing reaches openraft that is not meant for this node (see [`call_metadata`]) or that
//! does not decode to something a peer may send, nor what a full disk could not take.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::call_metadata;
use super::channels::MAX_MESSAGE_BYTES;
use super::convert::{AppendOutcome, DecodeError, TransferOutcome, snapshot_from_meta};
use super::identity::Identity;
use super::ports::{Snapshot, SnapshotData};
use super::snapshot_transfer::{self, CHUNK_WITHIN, Incoming, ReceiveError};
use super::state_machine::{OpenraftSnapshot, StateMachine};
use super::types::{Entry, EntryPayload, LogId, TypeConfig, Vote};
use crate::durable;
use crate::proto::raft as pb;
use crate::space::{Level, SpaceWatch, mebibytes};
use pb::raft_service_server::{RaftService, RaftServiceServer};

/// How many terms a vote may be ahead of this node's: more elections than a cluster ever holds.
const TERM_LEAP: u64 = 1 << 32;

/// openraft, with our types.
pub type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// The Raft service of this node.
#[derive(Clone)]
pub struct RaftServer {
    raft: Raft,
    identity: Identity,
    snapshots: PathBuf,
    room: Room,
}

impl RaftServer {
    /// Serves `raft`, as long as there is `space`; received snapshots go into the folder `snapshots`, which
    /// is made if it is missing and cleared of what was left of transfers that a crash cut off.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub fn new(raft: Raft, identity: Identity, snapshots: &Path, space: SpaceWatch) -> io::Result<Self> {
        durable::create_dir_all(snapshots)?;
        snapshot_transfer::remove_leftovers(snapshots)?;
        let room = Room {
            raft: raft.clone(),
            space,
        };
        Ok(RaftServer {
            raft,
            identity,
            snapshots: snapshots.to_owned(),
            room,
        })
    }

    /// The service, to be added to the server on `raft_addr`.
    pub fn into_service(self) -> RaftServiceServer<Self> {
        RaftServiceServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The message of a call that is meant for this node.
    fn admit<T>(&self, request: Request<T>) -> Result<T, Status> {
        call_metadata::check(&self.identity, request.metadata().as_ref())?;
        Ok(request.into_inner())
    }

    /// Whether this may be a peer's vote. Terms are used up one an election and end at 2^63: one that leaps
    /// ahead was damaged on its way or made up, and following it would leave none for the next election.
    fn plausible(&self, vote: Vote) -> Result<(), Status> {
        let ours = self.raft.metrics().borrow_watched().current_term;
        match vote.leader_id.term.saturating_sub(ours) {
            ..TERM_LEAP => Ok(()),
            _ => Err(Status::invalid_argument(format!(
                "vote {vote} is implausible: the term here is {ours}"
            ))),
        }
    }

    /// Whether openraft can take these entries. It would cut off its log to follow a leader that contradicts
    /// what is committed here; no peer that follows the protocol does. Log ids grow with their indexes, so that
    /// nothing at or before the committed one can be of a later leader.
    fn agreeing(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
        self.plausible(request.vote)?;
        let Some(committed) = self.raft.metrics().borrow_watched().local_committed else {
            return Ok(request);
        };
        let entries = request.entries.iter().map(|entry| entry.log_id);
        let contradicts = |id: &LogId| id.index <= committed.index && *id > committed;
        match request.prev_log_id.into_iter().chain(entries).find(contradicts) {
            None => Ok(request),
            Some(id) => Err(Status::invalid_argument(format!(
                "append request refused: {id} contradicts {committed}, which is committed here"
            ))),
        }
    }

    /// Whether openraft can take this snapshot. It panics on one that contradicts its leader's vote
    /// or what is committed here; no peer that follows the protocol has such a one.
    fn consistent(&self, vote: Vote, snapshot: &Snapshot) -> Result<(), Status> {
        let refuse = |why: String| Err(Status::invalid_argument(format!("snapshot refused: {why}")));
        let Some(last) = snapshot.meta.last_log_id else {
            return refuse("it covers nothing".to_owned());
        };
        if !vote.committed || last.leader_id > vote.leader_id {
            return refuse(format!("its last log id {last} is not within vote {vote}"));
        }
        if snapshot
            .meta
            .last_membership
            .log_id()
            .is_some_and(|id: LogId| id > last)
        {
            return refuse(format!("its membership is newer than its last log id {last}"));
        }
        let committed = self.raft.metrics().borrow_watched().local_committed;
        match committed {
            Some(committed) if last > committed && last.index <= committed.index => refuse(format!(
                "its last log id {last} contradicts {committed}, which is committed here"
            )),
            _ => Ok(()),
        }
    }
}

/// Who says whether there is room for a request.
#[derive(Clone)]
struct Room {
    raft: Raft,
    space: SpaceWatch,
}

impl Room {
    /// Refuses clients' writes when the disk is full: it must not come to a write that fails, which would
    /// stop the node. The small entries of Raft's own (a new leader's first, memberships) are taken all the
    /// same, without them there would be no leader to read from; so are heartbeats, which carry none, and
    /// entries that are here already: with them a new leader finds out what we have.
    fn check(&self, request: &AppendEntriesRequest<TypeConfig>) -> Result<(), Status> {
        let space = self.space.borrow();
        let shortage = match space.shortage() {
            Some(shortage) if space.level == Level::Full => shortage,
            _ => return Ok(()),
        };
        let last = self.raft.metrics().borrow_watched().last_log_index;
        let new_write = |entry: &Entry| {
            matches!(entry.payload, EntryPayload::Normal(_)) && Some(entry.log_id.index) > last
        };
        match request.entries.iter().any(new_write) {
            true => Err(Status::resource_exhausted(format!(
                "its disk is nearly full: {shortage}"
            ))),
            false => Ok(()),
        }
    }

    /// Whether there is room for a snapshot: it is received beside what there is, and then copied to become
    /// the state.
    fn check_snapshot(&self, data: &SnapshotData) -> Result<(), Status> {
        let space = self.space.borrow();
        if space.fits(data.bytes.saturating_mul(2)) {
            return Ok(());
        }
        Err(Status::resource_exhausted(format!(
            "no room for a snapshot of {}, which takes twice that: {} free in {}",
            mebibytes(data.bytes),
            mebibytes(space.measured.free),
            space.measured.dir.display()
        )))
    }
}

fn malformed(e: DecodeError) -> Status {
    Status::invalid_argument(e.to_string())
}

fn stopped(e: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("raft has stopped: {e}"))
}

#[tonic::async_trait]
impl RaftService for RaftServer {
    type AppendStreamStream = BoxStream<'static, Result<pb::AppendResponse, Status>>;

    async fn append_stream(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        let messages = self.admit(request)?;
        // openraft's stream of requests knows no errors: one ends it, and is told after the answers.
        let failure = Failure::default();
        let answers = self
            .raft
            .stream_append(requests(self.clone(), messages, failure.clone()))
            .map(|answer| {
                let result = answer.map_err(stopped)?;
                Ok(AppendOutcome::from(result).0)
            });
        let told = futures::stream::iter(std::iter::once_with(move || failure.take()).flatten().map(Err));
        Ok(Response::new(answers.chain(told).boxed()))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        let request: VoteRequest<TypeConfig> = self.admit(request)?.try_into().map_err(malformed)?;
        self.plausible(request.vote)?;
        let answer = self.raft.vote(request).await.map_err(stopped)?;
        Ok(Response::new(answer.into()))
    }

    async fn pre_vote(
        &self,
        request: Request<pb::VoteRequest>,
    ) -> Result<Response<pb::VoteResponse>, Status> {
        let request: VoteRequest<TypeConfig> = self.admit(request)?.try_into().map_err(malformed)?;
        self.plausible(request.vote)?;
        let answer = self.raft.pre_vote(request).await.map_err(stopped)?;
        Ok(Response::new(answer.into()))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotChunk>>,
    ) -> Result<Response<pb::SnapshotResponse>, Status> {
        let mut chunks = self.admit(request)?;
        let first = timeout(CHUNK_WITHIN, chunks.message()).await;
        let late = |_| Status::deadline_exceeded("the snapshot's header does not come");
        let first = first.map_err(late)??.and_then(|chunk| chunk.content);
        let Some(pb::snapshot_chunk::Content::Header(header)) = first else {
            return Err(Status::invalid_argument("a snapshot without its header"));
        };
        let incoming = Incoming::new(&self.snapshots);
        let (vote, snapshot) = decode_header(header, incoming.path()).map_err(malformed)?;
        self.plausible(vote)?;

        // A leader that is none any more learns it before it has sent everything.
        let ours = self.raft.metrics().borrow_watched().vote;
        if ours > vote {
            return Ok(Response::new(pb::SnapshotResponse {
                vote: Some(ours.into()),
            }));
        }
        self.consistent(vote, &snapshot)?;
        self.room.check_snapshot(&snapshot.data)?;
        snapshot_transfer::receive(&snapshot.data, &incoming, chunks)
            .await
            .map_err(|e| match e {
                ReceiveError::Malformed(why) => Status::invalid_argument(format!("snapshot refused: {why}")),
                ReceiveError::Broken(status) => status,
                ReceiveError::Io(e) => {
                    log::error!("cannot receive a snapshot: {e}");
                    let message = format!("cannot receive a snapshot: {e}");
                    match e.kind() {
                        io::ErrorKind::StorageFull => Status::resource_exhausted(message),
                        _ => Status::unavailable(message),
                    }
                }
            })?;
        self.consistent(vote, &snapshot)?; // time has passed

        // Once openraft has the snapshot, it needs the file whether or not the leader waits.
        let raft = self.raft.clone();
        let install = tokio::spawn(async move {
            let snapshot = OpenraftSnapshot {
                meta: snapshot.meta,
                snapshot: snapshot.data,
            };
            let answer = raft.install_full_snapshot(vote, snapshot).await;
            drop(incoming); // removes it, if it was not needed
            answer
        });
        let answer = install.await.map_err(stopped)?.map_err(stopped)?;
        Ok(Response::new(pb::SnapshotResponse {
            vote: Some(answer.vote.into()),
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        let request: TransferLeaderRequest<TypeConfig> =
            self.admit(request)?.try_into().map_err(malformed)?;
        self.plausible(*request.from_leader())?;
        let answer = self.raft.handle_transfer_leader(request).await.map_err(stopped)?;
        Ok(Response::new(TransferOutcome::from(answer).0))
    }
}

fn decode_header(header: pb::SnapshotHeader, path: &Path) -> Result<(Vote, Snapshot), DecodeError> {
    let missing = |field| DecodeError::Missing {
        message: "SnapshotHeader",
        field,
    };
    let vote = header.vote.ok_or(missing("vote"))?.try_into()?;
    let meta = header.meta.ok_or(missing("meta"))?;
    Ok((vote, snapshot_from_meta(meta, path.to_owned())?))
}

/// Why a stream of requests ended early.
#[derive(Clone, Default)]
struct Failure(Arc<Mutex<Option<Status>>>);

impl Failure {
    fn set(&self, status: Status) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    fn take(&self) -> Option<Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The requests of a stream, up to the first that is broken, makes no sense, or finds no room.
fn requests(
    server: RaftServer,
    messages: Streaming<pb::AppendRequest>,
    failure: Failure,
) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static {
    futures::stream::unfold(
        (server, messages, failure),
        |(server, mut messages, failure)| async move {
            let request = match messages.message().await {
                Ok(message) => AppendEntriesRequest::try_from(message?)
                    .map_err(malformed)
                    .and_then(|request| server.agreeing(request))
                    .and_then(|request| server.room.check(&request).map(|()| request)),
                Err(status) => Err(status),
            };
            match request {
                Ok(request) => Some((request, (server, messages, failure))),
                Err(status) => {
                    failure.set(status);
                    None
                }
            }
        },
    )
}
