//! openraft's types to and from the messages of `raft.proto`.
//!
//! Called by the network and its server for the wire, and by the log store and the snapshots for the
//! disk. What comes from a peer is checked here: decoding answers an error that names what is wrong,
//! and what it lets through cannot make openraft overflow or trip over a hole in the log.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use openraft::EntryPayload as OpenraftPayload;
use openraft::LogIdOptionExt;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use super::ports::{Snapshot, SnapshotData};
use super::types::{
    Batch, Entry, EntryPayload, LeaderId, LogId, Membership, Node, SnapshotMeta, StoredMembership,
    TypeConfig, Vote,
};
use crate::proto::raft as pb;

/// One past the largest term or log index that is accepted: far from what a cluster can reach, and
/// far enough from overflow that openraft may count on.
const COUNTER_LIMIT: u64 = 1 << 63;

/// Why a message of a peer, or a record on the disk, makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A field without which the message means nothing.
    #[error("{message} lacks its {field}")]
    Missing {
        /// The message's name in `raft.proto`.
        message: &'static str,
        /// The field's name there.
        field: &'static str,
    },
    /// A term or index from 2^63 on.
    #[error("{what} {value} is out of range")]
    OutOfRange {
        /// `term` or `index`.
        what: &'static str,
        /// What was sent.
        value: u64,
    },
    /// A membership that openraft would not accept.
    #[error("membership makes no sense: {0}")]
    Membership(String),
    /// Entries that do not follow `prev_log_id` one by one, in order.
    #[error("entry {found} does not follow {previous}")]
    Gap {
        /// The log id before it, or `none`.
        previous: String,
        /// The entry's log id.
        found: String,
    },
    /// An append request whose vote is not that of an elected leader, or older than its entries.
    #[error("append request from no leader: vote {0}")]
    NotALeader(String),
    /// An answer that cannot be one to the request.
    #[error("answer does not fit the request: {0}")]
    Unfitting(&'static str),
}

fn require<T>(value: Option<T>, message: &'static str, field: &'static str) -> Result<T, DecodeError> {
    value.ok_or(DecodeError::Missing { message, field })
}

fn in_range(what: &'static str, value: u64) -> Result<u64, DecodeError> {
    if value < COUNTER_LIMIT {
        Ok(value)
    } else {
        Err(DecodeError::OutOfRange { what, value })
    }
}

// --- ids and votes ---

impl From<LeaderId> for pb::LeaderId {
    fn from(id: LeaderId) -> Self {
        pb::LeaderId {
            term: id.term,
            node: id.node_id,
        }
    }
}

impl TryFrom<pb::LeaderId> for LeaderId {
    type Error = DecodeError;

    fn try_from(id: pb::LeaderId) -> Result<Self, DecodeError> {
        Ok(LeaderId {
            term: in_range("term", id.term)?,
            node_id: id.node,
        })
    }
}

impl From<LogId> for pb::LogId {
    fn from(id: LogId) -> Self {
        pb::LogId {
            leader: Some(id.leader_id.into()),
            index: id.index,
        }
    }
}

impl TryFrom<pb::LogId> for LogId {
    type Error = DecodeError;

    fn try_from(id: pb::LogId) -> Result<Self, DecodeError> {
        let leader = require(id.leader, "LogId", "leader")?;
        Ok(LogId {
            leader_id: leader.try_into()?,
            index: in_range("index", id.index)?,
        })
    }
}

fn optional_log_id(id: Option<pb::LogId>) -> Result<Option<LogId>, DecodeError> {
    id.map(LogId::try_from).transpose()
}

impl From<Vote> for pb::Vote {
    fn from(vote: Vote) -> Self {
        pb::Vote {
            leader: Some(vote.leader_id.into()),
            committed: vote.committed,
        }
    }
}

impl TryFrom<pb::Vote> for Vote {
    type Error = DecodeError;

    fn try_from(vote: pb::Vote) -> Result<Self, DecodeError> {
        let leader = require(vote.leader, "Vote", "leader")?;
        Ok(Vote {
            leader_id: leader.try_into()?,
            committed: vote.committed,
        })
    }
}

// --- membership ---

impl From<&Node> for pb::Node {
    fn from(node: &Node) -> Self {
        pb::Node {
            name: node.name.clone(),
            raft_addr: node.raft_addr.clone(),
            grpc_addr: node.grpc_addr.clone(),
        }
    }
}

impl From<pb::Node> for Node {
    fn from(node: pb::Node) -> Self {
        Node {
            name: node.name,
            raft_addr: node.raft_addr,
            grpc_addr: node.grpc_addr,
        }
    }
}

impl From<&Membership> for pb::Membership {
    fn from(membership: &Membership) -> Self {
        let configs = membership
            .get_joint_config()
            .iter()
            .map(|voters| pb::membership::Config {
                voters: voters.iter().copied().collect(),
            })
            .collect();
        let nodes = membership.nodes().map(|(id, node)| (*id, node.into())).collect();
        pb::Membership { configs, nodes }
    }
}

impl TryFrom<pb::Membership> for Membership {
    type Error = DecodeError;

    fn try_from(membership: pb::Membership) -> Result<Self, DecodeError> {
        if membership.configs.is_empty() && membership.nodes.is_empty() {
            return Ok(Membership::default()); // before the cluster was formed
        }
        let configs: Vec<BTreeSet<u64>> = membership
            .configs
            .into_iter()
            .map(|config| config.voters.into_iter().collect())
            .collect();
        let nodes: BTreeMap<u64, Node> = membership
            .nodes
            .into_iter()
            .map(|(id, node)| (id, node.into()))
            .collect();
        Membership::new(configs, nodes).map_err(|e| DecodeError::Membership(e.to_string()))
    }
}

impl From<&StoredMembership> for pb::StoredMembership {
    fn from(stored: &StoredMembership) -> Self {
        pb::StoredMembership {
            log_id: stored.log_id().map(Into::into),
            membership: Some(stored.membership().into()),
        }
    }
}

impl TryFrom<pb::StoredMembership> for StoredMembership {
    type Error = DecodeError;

    fn try_from(stored: pb::StoredMembership) -> Result<Self, DecodeError> {
        let membership = require(stored.membership, "StoredMembership", "membership")?;
        Ok(StoredMembership::new(
            optional_log_id(stored.log_id)?,
            membership.try_into()?,
        ))
    }
}

// --- entries ---

impl From<Entry> for pb::Entry {
    fn from(entry: Entry) -> Self {
        let payload = match entry.payload {
            OpenraftPayload::Blank => None,
            OpenraftPayload::Normal(Batch(bytes)) => Some(pb::entry::Payload::Batch(bytes)),
            OpenraftPayload::Membership(membership) => {
                Some(pb::entry::Payload::Membership((&membership).into()))
            }
        };
        pb::Entry {
            log_id: Some(entry.log_id.into()),
            payload,
        }
    }
}

// A function: openraft converts into its own entries from too much for a `TryFrom` beside it.
fn entry(entry: pb::Entry) -> Result<Entry, DecodeError> {
    let log_id = require(entry.log_id, "Entry", "log_id")?;
    let payload = match entry.payload {
        None => EntryPayload::Blank,
        Some(pb::entry::Payload::Batch(bytes)) => EntryPayload::Normal(Batch(bytes)),
        Some(pb::entry::Payload::Membership(membership)) => EntryPayload::Membership(membership.try_into()?),
    };
    Ok(Entry {
        log_id: log_id.try_into()?,
        payload,
    })
}

// --- append ---

/// The log ids that an append request spans: the one before its entries, and its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub prev: Option<LogId>,
    pub last: Option<LogId>,
}

impl Span {
    pub(super) fn of(request: &AppendEntriesRequest<TypeConfig>) -> Self {
        let last = request
            .entries
            .last()
            .map(|entry| entry.log_id)
            .or(request.prev_log_id);
        Span {
            prev: request.prev_log_id,
            last,
        }
    }
}

impl From<AppendEntriesRequest<TypeConfig>> for pb::AppendRequest {
    fn from(request: AppendEntriesRequest<TypeConfig>) -> Self {
        pb::AppendRequest {
            vote: Some(request.vote.into()),
            prev_log_id: request.prev_log_id.map(Into::into),
            entries: request.entries.into_iter().map(Into::into).collect(),
            leader_commit: request.leader_commit.map(Into::into),
        }
    }
}

impl TryFrom<pb::AppendRequest> for AppendEntriesRequest<TypeConfig> {
    type Error = DecodeError;

    fn try_from(request: pb::AppendRequest) -> Result<Self, DecodeError> {
        let vote: Vote = require(request.vote, "AppendRequest", "vote")?.try_into()?;
        let prev_log_id = optional_log_id(request.prev_log_id)?;
        let mut entries = Vec::with_capacity(request.entries.len());
        let mut previous = prev_log_id;
        for message in request.entries {
            let entry = entry(message)?;
            let follows = entry.log_id.index == previous.next_index()
                && previous.is_none_or(|previous| previous.leader_id <= entry.log_id.leader_id);
            if !follows {
                return Err(DecodeError::Gap {
                    previous: previous.map_or_else(|| "none".to_owned(), |id| id.to_string()),
                    found: entry.log_id.to_string(),
                });
            }
            previous = Some(entry.log_id);
            entries.push(entry);
        }
        let older = |id: LogId| id.leader_id > vote.leader_id;
        if !vote.committed || previous.is_some_and(older) {
            return Err(DecodeError::NotALeader(vote.to_string()));
        }
        let leader_commit = optional_log_id(request.leader_commit)?;
        Ok(AppendEntriesRequest {
            vote,
            prev_log_id,
            entries,
            leader_commit,
        })
    }
}

impl From<StreamAppendResult<TypeConfig>> for AppendOutcome {
    fn from(result: StreamAppendResult<TypeConfig>) -> Self {
        let outcome = match result {
            Ok(Some(matching)) => pb::append_response::Outcome::PartialSuccess(matching.into()),
            Ok(None) => pb::append_response::Outcome::Success(true),
            Err(StreamAppendError::Conflict(prev)) => pb::append_response::Outcome::Conflict(prev.into()),
            Err(StreamAppendError::HigherVote(vote)) => pb::append_response::Outcome::HigherVote(vote.into()),
        };
        AppendOutcome(pb::AppendResponse {
            outcome: Some(outcome),
        })
    }
}

/// An answer to an append request, on its way to the leader.
pub(super) struct AppendOutcome(pub pb::AppendResponse);

/// What the follower said about the request that spans `span`.
pub(super) fn append_result(
    response: pb::AppendResponse,
    span: Span,
) -> Result<StreamAppendResult<TypeConfig>, DecodeError> {
    use pb::append_response::Outcome;
    match require(response.outcome, "AppendResponse", "outcome")? {
        Outcome::Success(true) => Ok(Ok(span.last)),
        Outcome::Success(false) => Err(DecodeError::Unfitting("neither success nor a reason against it")),
        Outcome::PartialSuccess(matching) => {
            let matching = LogId::try_from(matching)?;
            if Some(matching) < span.prev || Some(matching) > span.last {
                return Err(DecodeError::Unfitting("success beyond what was sent"));
            }
            Ok(Ok(Some(matching)))
        }
        // A request without a predecessor fits every log; openraft relies on it.
        Outcome::Conflict(_) => match span.prev {
            Some(prev) => Ok(Err(StreamAppendError::Conflict(prev))),
            None => Err(DecodeError::Unfitting("conflict with no predecessor")),
        },
        Outcome::HigherVote(vote) => Ok(Err(StreamAppendError::HigherVote(vote.try_into()?))),
    }
}

// --- votes ---

impl From<VoteRequest<TypeConfig>> for pb::VoteRequest {
    fn from(request: VoteRequest<TypeConfig>) -> Self {
        pb::VoteRequest {
            vote: Some(request.vote.into()),
            last_log_id: request.last_log_id.map(Into::into),
            leadership_transfer: request.leadership_transfer,
        }
    }
}

impl TryFrom<pb::VoteRequest> for VoteRequest<TypeConfig> {
    type Error = DecodeError;

    fn try_from(request: pb::VoteRequest) -> Result<Self, DecodeError> {
        let vote = require(request.vote, "VoteRequest", "vote")?.try_into()?;
        let mut decoded = VoteRequest::new(vote, optional_log_id(request.last_log_id)?);
        decoded.leadership_transfer = request.leadership_transfer;
        Ok(decoded)
    }
}

impl From<VoteResponse<TypeConfig>> for pb::VoteResponse {
    fn from(response: VoteResponse<TypeConfig>) -> Self {
        pb::VoteResponse {
            vote: Some(response.vote.into()),
            granted: response.vote_granted,
            last_log_id: response.last_log_id.map(Into::into),
        }
    }
}

impl TryFrom<pb::VoteResponse> for VoteResponse<TypeConfig> {
    type Error = DecodeError;

    fn try_from(response: pb::VoteResponse) -> Result<Self, DecodeError> {
        let vote: Vote = require(response.vote, "VoteResponse", "vote")?.try_into()?;
        Ok(VoteResponse::new(
            vote,
            optional_log_id(response.last_log_id)?,
            response.granted,
        ))
    }
}

// --- leadership transfer ---

impl From<TransferLeaderRequest<TypeConfig>> for pb::TransferLeaderRequest {
    fn from(request: TransferLeaderRequest<TypeConfig>) -> Self {
        pb::TransferLeaderRequest {
            from_leader: Some((*request.from_leader()).into()),
            to: *request.to_node_id(),
            last_log_id: request.last_log_id().copied().map(Into::into),
        }
    }
}

impl TryFrom<pb::TransferLeaderRequest> for TransferLeaderRequest<TypeConfig> {
    type Error = DecodeError;

    fn try_from(request: pb::TransferLeaderRequest) -> Result<Self, DecodeError> {
        let from = require(request.from_leader, "TransferLeaderRequest", "from_leader")?.try_into()?;
        Ok(TransferLeaderRequest::new(
            from,
            request.to,
            optional_log_id(request.last_log_id)?,
        ))
    }
}

impl From<TransferLeaderResponse<TypeConfig>> for TransferOutcome {
    fn from(response: TransferLeaderResponse<TypeConfig>) -> Self {
        TransferOutcome(match response {
            Ok(()) => pb::TransferLeaderResponse {
                accepted: true,
                reason: String::new(),
            },
            Err(e) => pb::TransferLeaderResponse {
                accepted: false,
                reason: e.to_string(),
            },
        })
    }
}

/// An answer to a leadership transfer, on its way to the leader.
pub(super) struct TransferOutcome(pub pb::TransferLeaderResponse);

// --- snapshots ---

impl From<&Snapshot> for pb::SnapshotMeta {
    fn from(snapshot: &Snapshot) -> Self {
        pb::SnapshotMeta {
            last_log_id: snapshot.meta.last_log_id.map(Into::into),
            last_membership: Some((&snapshot.meta.last_membership).into()),
            bytes: snapshot.data.bytes,
            checksum: snapshot.data.checksum,
            version: snapshot.data.version,
            state_hash: snapshot.data.state_hash.clone(),
        }
    }
}

/// What a snapshot covers and what its data must be; `path` is where the data lies or will lie.
///
/// # Errors
/// When the description lacks a part or makes no sense; the data is not looked at.
pub fn snapshot_from_meta(meta: pb::SnapshotMeta, path: std::path::PathBuf) -> Result<Snapshot, DecodeError> {
    let last_membership = require(meta.last_membership, "SnapshotMeta", "last_membership")?.try_into()?;
    Ok(Snapshot {
        meta: SnapshotMeta {
            last_log_id: optional_log_id(meta.last_log_id)?,
            last_membership,
        },
        data: SnapshotData {
            path,
            bytes: meta.bytes,
            checksum: meta.checksum,
            version: meta.version,
            state_hash: meta.state_hash,
        },
    })
}
