//! What the Raft node understands, and the news it sends.

use std::time::Instant;

use actix::Message;

use crate::domain::command::{Applied, Op, Refusal, RequestId};
use crate::raft::types::{Node, NodeId};

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
