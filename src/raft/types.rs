//! openraft's type parameters, and names for its types with them filled in.

use std::fmt;

use bytes::Bytes;

use crate::domain::command::Applied;

/// A Raft node id: the incarnation of a data directory, drawn at random at its first start, so that
/// a node that lost its disk is a new node (design rule 9).
pub type NodeId = u64;

/// What the membership says of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The operator's name for it, as in `raft.peers`: `meta-9090`. Survives a lost disk.
    pub name: String,
    /// Where its peers reach it, `host:port`.
    pub raft_addr: String,
    /// Where clients reach it, `host:port`.
    pub grpc_addr: String,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.raft_addr)
    }
}

/// What one log entry holds: an encoded `CommandBatch` of `raft.proto`. It is encoded once, by the
/// leader, and travels as bytes until it is applied.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Batch(pub Bytes);

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} bytes)", self.0.len())
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The answers to the commands of one [`Batch`], in order; empty for entries without commands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BatchOutcome(pub Vec<Applied>);

impl fmt::Display for BatchOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} outcomes", self.0.len())
    }
}

openraft::declare_raft_types!(
    /// MinFS's types for openraft. Everything not named is openraft's default: u64 terms, leader
    /// ids of (term, node), tokio.
    pub TypeConfig:
        D = Batch,
        R = BatchOutcome,
        NodeId = NodeId,
        Node = Node,
);

/// A log index with the leader that wrote it.
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// A vote: for whom, in which term, and whether a majority gave it.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
/// A leader: (term, node).
pub type LeaderId = openraft::alias::LeaderIdOf<TypeConfig>;
/// A log entry.
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
/// What a log entry holds.
pub type EntryPayload = openraft::EntryPayload<Batch, NodeId, Node>;
/// Voters and learners.
pub type Membership = openraft::Membership<NodeId, Node>;
/// The membership, and the log id that set it.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
