//! What of a plan enters the log: records are moved, garbage is released, abandoned writes are freed
//! and unknown blocks condemned.
//!
//! Small commands, few at a time, so that those of clients find their way between them. The first one
//! that has no answer ends the rest: what is left is found again by the next pass.

use futures::StreamExt;

use super::passes::Cancel;
use crate::actors::proposer::Proposer;
use crate::domain::command::{Op, Orphan, Outcome};
use crate::domain::fsck::Move;
use crate::domain::ids::BlockId;

/// Moves under way at a time. They share log entries.
const MOVES_AT_ONCE: usize = 64;

/// Writes that one command frees.
const WRITES_AT_ONCE: usize = 256;

/// Garbage entries that one command releases, and unknown blocks that one condemns.
const ENTRIES_AT_ONCE: usize = 512;

/// Corrects the records of moved replicas; returns how many.
pub(super) async fn move_replicas(proposer: &Proposer, cancel: &Cancel, moves: Vec<Move>) -> u64 {
    let proposals = moves.into_iter().map(|Move { block, from, to }| {
        let proposal = proposer.propose(Op::MoveReplica { block, from, to });
        async move {
            match proposal.await {
                Ok(Ok(_)) => Some(1),
                // The file was deleted or the replica moved meanwhile.
                Ok(Err(refusal)) => {
                    log::debug!("a replica of block {block} was not moved: {refusal}");
                    Some(0)
                }
                Err(error) => {
                    log::warn!("moving replicas stops for now: {error}");
                    None
                }
            }
        }
    });
    let mut answers = futures::stream::iter(proposals).buffer_unordered(MOVES_AT_ONCE);
    let mut moved = 0;
    while let Some(Some(one)) = answers.next().await {
        moved += one;
        if cancel.is_cancelled() {
            break;
        }
    }
    moved
}

/// Frees the blocks of abandoned writes; returns how many writes.
pub(super) async fn abandon_writes(proposer: &Proposer, cancel: &Cancel, writes: &[BlockId]) -> u64 {
    let op = |runs: &[BlockId]| Op::AbandonWrites { runs: runs.to_vec() };
    let mut abandoned = 0;
    in_batches(
        proposer,
        cancel,
        writes.chunks(WRITES_AT_ONCE).map(op),
        |outcome| {
            if let Outcome::WritesAbandoned { writes } = outcome {
                abandoned += u64::from(writes);
            }
        },
    )
    .await;
    abandoned
}

/// Forgets garbage that nobody holds; returns how many of the commands were answered.
pub(super) async fn release_garbage(proposer: &Proposer, cancel: &Cancel, entries: &[BlockId]) -> u64 {
    let op = |runs: &[BlockId]| Op::ReleaseGarbage { runs: runs.to_vec() };
    let mut answered = 0;
    in_batches(proposer, cancel, entries.chunks(ENTRIES_AT_ONCE).map(op), |_| {
        answered += 1;
    })
    .await;
    answered
}

/// Makes garbage of unknown blocks; returns how many blocks.
pub(super) async fn condemn(proposer: &Proposer, cancel: &Cancel, orphans: &[Orphan]) -> u64 {
    let op = |orphans: &[Orphan]| Op::Condemn {
        orphans: orphans.to_vec(),
    };
    let mut condemned = 0;
    in_batches(
        proposer,
        cancel,
        orphans.chunks(ENTRIES_AT_ONCE).map(op),
        |outcome| {
            if let Outcome::Condemned { blocks } = outcome {
                condemned += u64::from(blocks);
            }
        },
    )
    .await;
    condemned
}

/// Proposes one command after the other.
async fn in_batches(
    proposer: &Proposer,
    cancel: &Cancel,
    commands: impl Iterator<Item = Op>,
    mut done: impl FnMut(Outcome),
) {
    for op in commands {
        if cancel.is_cancelled() {
            return;
        }
        match proposer.propose(op).await {
            Ok(Ok(outcome)) => done(outcome),
            Ok(Err(refusal)) => log::warn!("a command of upkeep was refused: {refusal}"),
            Err(error) => return log::warn!("upkeep stops for now: {error}"),
        }
    }
}
