//! Telling a client's repeat from a second request, for clients that name no request ids.
//!
//! The leader asks here when a create found its name taken, or a delete nothing to delete. It may be that
//! the same client made the same request a moment ago, that it was committed, and that the answer was lost
//! with the node that was to give it; then the repeat gets that answer. The rule, and why it is safe, is
//! `docs/decisions/0009-retries.md`.
//!
//! Invariant: a success is given to a client at most once, except when the node that gave it died or fell
//! silent right afterwards.

use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix::Recipient;

use super::messages::MemberStatus;
use super::peers::Peers;
use crate::actors::store::effects::{FindEffect, GiveEffect};
use crate::domain::command::{Command, Op, Outcome, Refusal, RefusalKind};

/// How long the node that took the first request may take to say what became of its answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whoever remembers what was done lately: the store of this node.
#[derive(Clone)]
pub struct Memory {
    /// Finds it.
    pub find: Recipient<FindEffect>,
    /// Gives its answer away.
    pub give: Recipient<GiveEffect>,
}

/// Whether a refused command looks like the repeat of one that succeeded.
pub fn may_be_one(command: &Command, refusal: &Refusal) -> bool {
    command.origin.is_some()
        && match command.op {
            Op::Create { .. } => refusal.kind == RefusalKind::AlreadyExists,
            Op::Delete { .. } => refusal.kind == RefusalKind::NotFound,
            // A repeat of these succeeds by itself.
            Op::Allocate { .. } | Op::Finalize { .. } => false,
            // These are the server's own.
            Op::AbandonWrites { .. }
            | Op::MoveReplica { .. }
            | Op::RegisterDataServer { .. }
            | Op::SetDataServerStatus { .. }
            | Op::ReleaseGarbage { .. }
            | Op::Condemn { .. }
            | Op::Reclaim { .. } => false,
        }
}

/// The answer to the first request that `command` repeats, if it repeats one and nobody has got it.
pub fn first_answer(
    memory: Memory,
    peers: Rc<dyn Peers>,
    members: Vec<MemberStatus>,
    command: &Command,
    deadline: Instant,
) -> impl Future<Output = Option<Outcome>> + 'static {
    let (op, by) = (command.op.clone(), command.origin);
    async move {
        let by = by?;
        // A store that has stopped remembers nothing.
        let find = FindEffect { op, peer: by.peer };
        let first = memory.find.send(find).await.ok()??;
        let gateway = members
            .iter()
            .find(|member| member.incarnation == first.origin.gateway);
        if let Some(gateway) = gateway {
            let within = PATIENCE.min(deadline.saturating_duration_since(Instant::now()));
            let claimed = peers
                .claim_answer(first.origin, &gateway.raft_addr, by, within)
                .await;
            // One that does not answer has died, and its answer with it.
            if claimed == Ok(false) {
                return None;
            }
        }
        let give = GiveEffect {
            first: first.origin,
            by,
        };
        let given = memory.give.send(give).await.unwrap_or(false);
        given.then_some(first.outcome)
    }
}
