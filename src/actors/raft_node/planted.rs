//! The bugs on purpose that a leader may have; see [`crate::planted`].

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{RaftMetrics, ServerState};

use super::consensus::WriteError;
use crate::domain::command::{Command, Op, Outcome};
use crate::domain::ids::InodeId;
use crate::planted::is_planted;
use crate::proto::convert::decode_batch;
use crate::raft::server::Raft;
use crate::raft::types::{Batch, BatchOutcome, TypeConfig};

/// How long a leader has patience with its followers.
const PATIENCE: Duration = Duration::from_millis(300);

/// `acknowledge-before-commit`: what is in the leader's log for a while is said to have been done.
pub async fn write(raft: &Raft, batch: &Batch) -> Option<Result<BatchOutcome, WriteError>> {
    if !is_planted("acknowledge-before-commit") {
        return None;
    }
    let hoped_for: Option<Vec<_>> = decode_batch(&batch.0).ok()?.iter().map(hope).collect();
    let hoped_for = hoped_for?;
    let (raft, batch) = (raft.clone(), batch.clone());
    let written = tokio::spawn(async move { raft.client_write(batch).await });
    match tokio::time::timeout(PATIENCE, written).await {
        Ok(Ok(Ok(response))) => Some(Ok(response.data)),
        Ok(Ok(Err(_))) => Some(Err(WriteError::NotLeader)),
        Ok(Err(error)) => Some(Err(WriteError::Unknown(error.to_string()))),
        Err(_) => Some(Ok(BatchOutcome(hoped_for.into_iter().map(Ok).collect()))),
    }
}

fn hope(command: &Command) -> Option<Outcome> {
    match command.op {
        Op::Create { .. } => Some(Outcome::Created { inode: InodeId(0) }),
        Op::Delete { .. } => Some(Outcome::Deleted),
        Op::Finalize { .. } => Some(Outcome::Finalized),
        Op::Allocate { .. }
        | Op::AbandonWrites { .. }
        | Op::Condemn { .. }
        | Op::MoveReplica { .. }
        | Op::RegisterDataServer { .. }
        | Op::SetDataServerStatus { .. }
        | Op::ReleaseGarbage { .. }
        | Op::Reclaim { .. } => None,
    }
}

/// `read-without-leadership`: a leader that hears from nobody goes on all the same...
pub fn believes_in_itself(metrics: &RaftMetrics<TypeConfig>) -> bool {
    is_planted("read-without-leadership") && metrics.state == ServerState::Leader
}

/// ...and reads what it has, without asking whether it still leads.
pub fn read_index(raft: &Raft) -> Option<u64> {
    if !is_planted("read-without-leadership") {
        return None;
    }
    let metrics = raft.metrics().borrow_watched().clone();
    let leads = metrics.state == ServerState::Leader;
    metrics
        .last_applied
        .filter(|_| leads)
        .map(|log_id| log_id.index())
}
