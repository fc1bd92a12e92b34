//! What the Raft node understands, and the news it sends.

use std::time::Instant;

use actix::Message;

use crate::domain::command::{Applied, Op, Origin, Refusal, RequestId};
use crate::raft::types::{Node, NodeId};
use crate::space::Space;

/// News: who leads, as this node sees it. Sent to every subscriber at start and on every change.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct LeadershipChanged {
    /// The term of this node.
    pub term: u64,
    /// What this node is in that term.
    pub role: Role,
    /// The leader of that term, when this node knows one.
    pub leader: Option<Leader>,
}

impl LeadershipChanged {
    /// Before any news: a learner that knows no leader, in term 0.
    pub const UNKNOWN: LeadershipChanged = LeadershipChanged {
        term: 0,
        role: Role::Learner,
        leader: None,
    };

    /// Whether this node leads.
    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }

    /// Takes `news` in place of `self` unless it is from an older term; tells whether it did.
    /// Design rule 5: a receiver ignores news from a term older than its own.
    pub fn accept(&mut self, news: LeadershipChanged) -> bool {
        let newer = news.term >= self.term;
        if newer {
            *self = news;
        }
        newer
    }
}

/// What a node is in a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Not a voter: new, wiped, or in no cluster.
    Learner,
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// The leader of a term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its Raft node id.
    pub id: NodeId,
    /// Its name and addresses.
    pub node: Node,
}

/// Puts a command into the log and answers what applying it said. On a follower the leader is asked
/// instead, once, within the same time.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Applied, ProposeError>")]
pub struct Propose {
    /// What to do. The leader adds its clock and, to an allocation, a plan.
    pub op: Op,
    /// The caller's name for the request, if it gave one.
    pub request_id: Option<RequestId>,
    /// Where it came from, if the caller gave none and its answer may get lost.
    pub origin: Option<Origin>,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// It came from a peer, and is not forwarded again.
    pub forwarded: bool,
}

/// Why a proposal has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It did not happen and can be tried again at the leader, when one is known.
    #[error("not the leader")]
    NotLeader(Option<Leader>),
    /// It did not happen and may be tried again later.
    #[error("{0}")]
    Unavailable(String),
    /// It may have happened, or may yet happen.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// The leader refused it before the log; nothing was changed.
    #[error("{0}")]
    Refused(Refusal),
    /// Too many proposals wait.
    #[error("too many proposals in flight")]
    Overloaded,
    /// It did not happen: there is no disk space for it.
    #[error("{0}")]
    NoSpace(String),
}

/// Asks leave for a read. When the answer is `Ok`, an LMDB read transaction opened on this node sees
/// everything that was acknowledged before the question was asked (unless `reads: local`).
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<(), ReadError>")]
pub struct AwaitRead {
    /// When the caller stops waiting.
    pub deadline: Instant,
}

/// Why a read is not allowed now; it can always be tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader confirmed itself; another node may know one.
    #[error("no leader can be reached")]
    NoLeader(Option<Leader>),
    /// The node is stopping, or too far behind to catch up in time.
    #[error("{0}")]
    Unavailable(String),
    /// Too many reads wait.
    #[error("too many reads in flight")]
    Overloaded,
}

/// Asks a leader, on behalf of a follower's readers, which log index a linearizable read must have
/// seen applied.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<u64, ReadError>")]
pub struct GetReadIndex {
    /// When the asker stops waiting.
    pub deadline: Instant,
}

/// Asks the gateway that took a request what became of the answer. `true`: no client has it, and it
/// goes to the repeat `by` and to no other one; asked again for the same repeat, it is `true` again.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "bool")]
pub struct ClaimAnswer {
    /// The gateway's number for the request.
    pub number: u64,
    /// The repeat.
    pub by: Origin,
}

/// Hands leadership over before a clean stop. Answers whether another leads in the end, or none could.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "bool")]
pub struct HandOver {
    /// How long it may take.
    pub within: std::time::Duration,
}

/// News: how much disk space this node has. Sent several times a second.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct SpaceMeasured(pub Space);

/// News for a leader: what those peers that could be asked say of their disks.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct PeersSpace(pub Vec<(NodeId, PeerSpace)>);

/// What a peer says of its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSpace {
    /// How little space it has, if it has too little.
    pub low: Option<String>,
}

/// From now on, tell this one who leads: at once, and on every change.
#[derive(Clone, Message)]
#[rtype(result = "()")]
pub struct Subscribe(pub actix::Recipient<LeadershipChanged>);

/// Where this node stands, for operators.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "NodeStatus")]
pub struct GetStatus;

/// The answer to [`GetStatus`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// This node's name.
    pub name: String,
    /// The cluster that it belongs to, if any yet.
    pub cluster_id: Option<String>,
    /// What Raft says.
    pub raft: RaftStatus,
    /// What its disk allows.
    pub space: Space,
    /// Why it takes no writes now, if it takes none.
    pub writes_refused: Option<String>,
}

/// Where Raft stands on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// This node's Raft node id.
    pub incarnation: NodeId,
    /// What it is.
    pub role: Role,
    /// In which term.
    pub term: u64,
    /// The leader's name, when one is known.
    pub leader: Option<String>,
    /// Index of the last log entry.
    pub last_log: Option<u64>,
    /// Index of the last entry known to be committed.
    pub committed: Option<u64>,
    /// Index of the last applied entry.
    pub applied: Option<u64>,
    /// Index of the last entry that the newest snapshot covers.
    pub snapshot: Option<u64>,
    /// Index of the last entry purged from the log.
    pub purged: Option<u64>,
    /// Voters and learners.
    pub members: Vec<MemberStatus>,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its name.
    pub name: String,
    /// Its Raft node id.
    pub incarnation: NodeId,
    /// Where its peers reach it.
    pub raft_addr: String,
    /// Where clients reach it.
    pub grpc_addr: String,
    /// Whether it votes.
    pub voter: bool,
    /// Index of the last entry known to be on its disk; only the leader knows.
    pub matched: Option<u64>,
}
