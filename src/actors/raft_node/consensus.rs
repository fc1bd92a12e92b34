//! What the Raft node needs of consensus, and openraft as the one that gives it.
//!
//! The port is small so that the node's own rules (batching, forwarding, outcomes) can be tested
//! without a cluster.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::raft::linearizable_read::LinearizerOption;
use openraft::{RaftMetrics, ServerState};

use super::messages::{Leader, LeadershipChanged, MemberStatus, RaftStatus, Role};
use crate::raft::server::Raft;
use crate::raft::types::{Batch, BatchOutcome, NodeId, TypeConfig};

/// What the Raft node asks of consensus.
pub trait Consensus {
    /// Puts a batch into the log, as leader, and answers when it has been applied here.
    fn write(&self, batch: Batch) -> LocalBoxFuture<'static, Result<BatchOutcome, WriteError>>;

    /// Confirms that this node leads, and answers the log index that a linearizable read must have
    /// seen applied. With `lease`, a recent confirmation by a majority will do.
    fn read_index(
        &self,
        lease: bool,
        timeout: Duration,
    ) -> LocalBoxFuture<'static, Result<u64, ReadIndexError>>;

    /// Hands leadership to the follower that is furthest and not `unfit`, and waits until somebody else
    /// leads. Answers whether that is so in the end, or nobody else could.
    fn hand_over(&self, timeout: Duration, unfit: BTreeSet<NodeId>) -> LocalBoxFuture<'static, bool>;

    /// Where this node stands; the node's own name is for the caller to fill in.
    fn status(&self) -> RaftStatus;
}

/// Why a batch has no outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// It did not enter the log: this node does not lead.
    NotLeader,
    /// It entered this node's log, and may be committed or not.
    Unknown(String),
}

/// Why a read is not allowed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadIndexError {
    /// This node does not lead.
    NotLeader,
    /// No majority confirmed it in time.
    NoQuorum(String),
}

/// The port over openraft.
pub struct Openraft {
    raft: Raft,
}

impl Openraft {
    /// A port over a running Raft.
    pub fn new(raft: Raft) -> Rc<Self> {
        Rc::new(Openraft { raft })
    }
}

impl Consensus for Openraft {
    fn write(&self, batch: Batch) -> LocalBoxFuture<'static, Result<BatchOutcome, WriteError>> {
        let raft = self.raft.clone();
        async move {
            #[cfg(feature = "planted-bugs")]
            if let Some(answer) = super::planted::write(&raft, &batch).await {
                return answer;
            }
            match raft.client_write(batch).await {
                Ok(response) => Ok(response.data),
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(WriteError::NotLeader),
                Err(error) => Err(WriteError::Unknown(error.to_string())),
            }
        }
        .boxed_local()
    }

    fn read_index(
        &self,
        lease: bool,
        timeout: Duration,
    ) -> LocalBoxFuture<'static, Result<u64, ReadIndexError>> {
        let raft = self.raft.clone();
        async move {
            #[cfg(feature = "planted-bugs")]
            if let Some(index) = super::planted::read_index(&raft) {
                return Ok(index);
            }
            if lease {
                let recent = LinearizerOption::new(None, false).with_wait_timeout(Duration::ZERO);
                if let Ok(linearizer) = raft.get_read_linearizer(recent).await {
                    return Ok(linearizer.read_log_id().index());
                }
            }
            let confirm = LinearizerOption::new(Some(Duration::ZERO), true).with_wait_timeout(timeout);
            match raft.get_read_linearizer(confirm).await {
                Ok(linearizer) => Ok(linearizer.read_log_id().index()),
                Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => {
                    Err(ReadIndexError::NotLeader)
                }
                Err(error) => Err(ReadIndexError::NoQuorum(error.to_string())),
            }
        }
        .boxed_local()
    }

    fn hand_over(&self, timeout: Duration, unfit: BTreeSet<NodeId>) -> LocalBoxFuture<'static, bool> {
        let raft = self.raft.clone();
        async move {
            let deadline = tokio::time::Instant::now() + timeout;
            let me = *raft.node_id();
            // Not in the head of the loop, where it would hold the lock on the metrics through all of it.
            let mut successors = successors(&raft.metrics().borrow_watched());
            successors.retain(|successor| !unfit.contains(successor));
            if successors.is_empty() {
                log::info!("there is no other voter to hand leadership to");
                return true;
            }
            for successor in successors {
                log::info!("handing leadership over to node {successor}");
                if raft.trigger().transfer_leader(successor).await.is_err() {
                    return true;
                }
                // A successor that lags or is gone does not take it: ask the next one.
                let wait = deadline
                    .saturating_duration_since(tokio::time::Instant::now())
                    .min(timeout / 2);
                let another_leads = |metrics: &RaftMetrics<TypeConfig>| {
                    metrics.current_leader.is_some_and(|leader| leader != me)
                };
                if raft
                    .wait(Some(wait))
                    .metrics(another_leads, "leadership handed over")
                    .await
                    .is_ok()
                {
                    return true;
                }
            }
            !raft.is_leader()
        }
        .boxed_local()
    }

    fn status(&self) -> RaftStatus {
        status(&self.raft.metrics().borrow_watched())
    }
}

/// The other voters, the furthest one first.
fn successors(metrics: &RaftMetrics<TypeConfig>) -> Vec<NodeId> {
    let Some(replication) = &metrics.replication else {
        return Vec::new();
    };
    let mut voters: Vec<_> = metrics
        .membership_config
        .voter_ids()
        .filter(|voter| *voter != metrics.id)
        .map(|voter| {
            (
                replication
                    .get(&voter)
                    .copied()
                    .flatten()
                    .map(|matched| matched.index),
                voter,
            )
        })
        .collect();
    voters.sort_unstable_by(|a, b| b.cmp(a));
    voters.into_iter().map(|(_, voter)| voter).collect()
}

/// What the metrics say of leadership. `fresh`: the leader was heard, or as leader this node was
/// answered by a majority, a short while ago. A single voter needs nobody's answer.
pub fn leadership(metrics: &RaftMetrics<TypeConfig>, fresh: bool) -> LeadershipChanged {
    let term = metrics.current_term;
    let alone = metrics.membership_config.voter_ids().eq([metrics.id]);
    if !fresh && !alone {
        let role = match role(metrics.state) {
            Role::Leader => Role::Follower,
            other => other,
        };
        return LeadershipChanged {
            term,
            role,
            leader: None,
        };
    }
    let node = |id: NodeId| metrics.membership_config.membership().get_node(&id).cloned();
    let leader = metrics
        .current_leader
        .and_then(|id| node(id).map(|node| Leader { id, node }));
    LeadershipChanged {
        term,
        role: role(metrics.state),
        leader,
    }
}

fn role(state: ServerState) -> Role {
    match state {
        ServerState::Learner | ServerState::Shutdown => Role::Learner,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Leader => Role::Leader,
    }
}

fn status(metrics: &RaftMetrics<TypeConfig>) -> RaftStatus {
    let leader = metrics
        .current_leader
        .and_then(|id| metrics.membership_config.membership().get_node(&id));
    let matched = |id: &NodeId| {
        metrics
            .replication
            .as_ref()
            .and_then(|all| all.get(id)?.map(|matched| matched.index))
    };
    let voters: BTreeSet<_> = metrics.membership_config.voter_ids().collect();
    let members = metrics
        .membership_config
        .nodes()
        .map(|(id, node)| MemberStatus {
            name: node.name.clone(),
            incarnation: *id,
            raft_addr: node.raft_addr.clone(),
            grpc_addr: node.grpc_addr.clone(),
            voter: voters.contains(id),
            matched: if *id == metrics.id {
                metrics.last_log_index
            } else {
                matched(id)
            },
        })
        .collect();
    RaftStatus {
        incarnation: metrics.id,
        role: role(metrics.state),
        term: metrics.current_term,
        leader: leader.map(|node| node.name.clone()),
        last_log: metrics.last_log_index,
        committed: metrics.local_committed.map(|id| id.index),
        applied: metrics.last_applied.map(|id| id.index),
        snapshot: metrics.snapshot.map(|id| id.index),
        purged: metrics.purged.map(|id| id.index),
        members,
    }
}
