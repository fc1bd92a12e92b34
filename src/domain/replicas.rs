//! The rules of replicas and garbage: where the replicas of a block are, and which blocks nobody owns.
//!
//! The commands are called by [`super::namespace::apply`]. The invariant: a block that a file was given
//! lies in a run of that file or in the garbage until no DataServer holds it, and never in both. So
//! "delete this block" always has a record behind it.

use std::collections::BTreeSet;

use super::command::{Applied, Orphan, Outcome, Refusal};
use super::ids::{BlockId, ServerId};
use super::state::{BlockRun, Entry, EntryKind, Garbage, GarbageReason, ReadTables, Tables};

/// The run that holds a file's content, if it has any.
pub fn run_of_file<T: ReadTables>(tables: &T, entry: &Entry) -> Result<Option<BlockRun>, T::Error> {
    match entry.kind {
        EntryKind::File {
            blocks: Some(first), ..
        } => Ok(tables.run(first)?.map(|owned| owned.run)),
        EntryKind::File { blocks: None, .. } | EntryKind::Directory => Ok(None),
    }
}

/// Where the replicas of a block of `run` are by now.
pub fn replicas_of<T: ReadTables>(
    tables: &T,
    run: &BlockRun,
    block: BlockId,
) -> Result<Vec<ServerId>, T::Error> {
    Ok(match tables.moved(block)? {
        Some(moved) => moved,
        None => run.placed(block).collect(),
    })
}

/// Replaces one replica of one block.
pub(super) fn move_replica<T: Tables>(
    tables: &mut T,
    block: BlockId,
    from: ServerId,
    to: ServerId,
) -> Result<Applied, T::Error> {
    let Some(owned) = tables.run_of(block)? else {
        return Ok(Err(Refusal::not_found(format!("no file owns block {block}"))));
    };
    if tables.server(to)?.is_none() {
        return Ok(Err(Refusal::not_found(format!("no DataServer has number {to}"))));
    }
    let mut replicas = replicas_of(tables, &owned.run, block)?;
    if replicas.contains(&to) {
        return Ok(Err(Refusal::already_exists(format!(
            "block {block} has a replica on DataServer {to}"
        ))));
    }
    let Some(replica) = replicas.iter_mut().find(|replica| **replica == from) else {
        return Ok(Err(Refusal::failed_precondition(format!(
            "block {block} has no replica on DataServer {from}"
        ))));
    };
    *replica = to;
    tables.put_moved(block, &replicas)?;
    Ok(Ok(Outcome::ReplicaMoved))
}

/// Turns a file's run, if it has one, into garbage.
pub(super) fn discard_run<T: Tables>(
    tables: &mut T,
    now: i64,
    first: Option<BlockId>,
    reason: GarbageReason,
) -> Result<(), T::Error> {
    let Some(first) = first else { return Ok(()) };
    if let Some(owned) = tables.run(first)? {
        tables.remove_run(first)?;
        tables.put_garbage(&Garbage {
            run: owned.run,
            reason,
            since_ms: now,
        })?;
    }
    Ok(())
}

/// Forgets garbage that no DataServer holds any more.
pub(super) fn release_garbage<T: Tables>(tables: &mut T, runs: &[BlockId]) -> Result<Applied, T::Error> {
    for &first in runs {
        if let Some(garbage) = tables.garbage(first)? {
            tables.remove_moved(first, garbage.run.count)?;
            tables.remove_garbage(first)?;
        }
    }
    Ok(Ok(Outcome::GarbageReleased))
}

/// Makes garbage of blocks that DataServers hold and no record names.
///
/// The leader has found them so, but what it saw may be old: each is checked again here, where
/// nothing can come between. A number that was never given out is left alone, since a file may get it
/// next; so is whatever a record names by now.
pub(super) fn condemn<T: Tables>(tables: &mut T, now: i64, orphans: &[Orphan]) -> Result<Applied, T::Error> {
    let next_block = tables.counters()?.next_block;
    let mut condemned = 0;
    for Orphan { block, holders } in orphans {
        let known = block.0 == 0
            || block.0 >= next_block
            || holders.is_empty()
            || tables.run_of(*block)?.is_some()
            || tables.garbage_of(*block)?.is_some();
        if known {
            continue;
        }
        // Replicas of a block are on different DataServers: a holder that is named twice is one.
        let holders: BTreeSet<ServerId> = holders.iter().copied().collect();
        tables.put_garbage(&Garbage {
            run: BlockRun {
                first: *block,
                count: 1,
                block_size: 1,
                replication: u32::try_from(holders.len()).unwrap_or(u32::MAX),
                servers: holders.into_iter().collect(),
            },
            reason: GarbageReason::Orphaned,
            since_ms: now,
        })?;
        condemned += 1;
    }
    Ok(Ok(Outcome::Condemned { blocks: condemned }))
}
