//! How the server's own upkeep gets into the log: the handle to the Raft node for actors that act as
//! the leader, and not for a client.
//!
//! Invariants: a proposal made in the belief that this node leads is never forwarded to another
//! leader, which judges for itself; and every proposal ends within [`PROPOSAL_TIMEOUT`].

use std::time::{Duration, Instant};

use actix::Recipient;

use super::raft_node::messages::{Propose, ProposeError};
use crate::domain::command::{Applied, Op};

/// The longest that a proposal of the server's own may take.
pub const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Proposes commands that this node decided on as the leader.
#[derive(Clone)]
pub struct Proposer(Recipient<Propose>);

impl Proposer {
    /// Proposes through this Raft node.
    pub fn new(raft_node: Recipient<Propose>) -> Self {
        Proposer(raft_node)
    }

    /// Proposes `op` and answers what applying it said. The proposal is in the Raft node's mailbox
    /// when the future was polled once, so proposals of one actor keep their order.
    ///
    /// # Errors
    /// Those of [`Propose`]; `Unavailable` when the Raft node is gone.
    pub fn propose(&self, op: Op) -> impl Future<Output = Result<Applied, ProposeError>> + use<> {
        // A clone a proposal: actix never wakes a sender that met a full mailbox twice.
        let raft_node = self.0.clone();
        async move {
            let deadline = Instant::now() + PROPOSAL_TIMEOUT;
            let proposal = raft_node.send(Propose {
                op,
                request_id: None,
                origin: None,
                deadline,
                // What a deposed leader thinks of the world must not enter the log through its
                // successor: a forwarded proposal is not forwarded again.
                forwarded: true,
            });
            match tokio::time::timeout_at(deadline.into(), proposal).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(ProposeError::Unavailable("the raft node has stopped".to_owned())),
                Err(_) => Err(ProposeError::Unknown("no answer in time".to_owned())),
            }
        }
    }
}
