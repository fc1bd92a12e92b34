//! The rules of a file's content: blocks are allocated, written by the client, and finalized.
//!
//! Called by [`super::namespace::apply`]. There are two ways to write. A *plain* write gives the file
//! at the path new blocks at once: the file is empty until it is finalized. A *staged* write keeps its
//! blocks apart, under an inode that is not in the tree yet, and finalizing it puts that inode at the
//! path, in one step.
//!
//! Invariant: a run is [`WriteState::Open`] from its allocation to its finalizing, and an open run
//! says where it belongs, so that an abandoned write can be freed without searching the tree.

use super::command::{AllocationPlan, Applied, Outcome, Refusal};
use super::ids::{BlockId, ID_LIMIT, InodeId};
use super::namespace::{Step, count_inode, draw_inode, new_entry, touch_parents, walk};
use super::path::CleanPath;
use super::placement::blocks_in;
use super::replicas::discard_run;
use super::state::{
    BlockRun, Entry, EntryKind, Garbage, GarbageReason, OpenWrite, OwnedRun, Tables, WriteState,
};

/// What a client says that it has written.
pub(super) struct Content<'a> {
    pub(super) inode: InodeId,
    pub(super) size: u64,
    pub(super) md5: &'a str,
}

fn is_directory(path: &CleanPath) -> Applied {
    Err(Refusal::failed_precondition(format!("is a directory: {path}")))
}

/// Gives a file new blocks: at once, or with `staged` when they are finalized.
pub(super) fn allocate<T: Tables>(
    tables: &mut T,
    now: i64,
    path: &CleanPath,
    size: u64,
    plan: Option<&AllocationPlan>,
    staged: bool,
) -> Result<Applied, T::Error> {
    let Some(plan) = plan.filter(|plan| plan.is_sound() && size > 0) else {
        return Ok(Err(Refusal::invalid_argument(format!(
            "allocation of {size} bytes without a sound plan: {path}"
        ))));
    };
    let Some((parent_path, name)) = path.split_last() else {
        return Ok(is_directory(path));
    };
    let steps = match walk(tables, &parent_path)? {
        Ok(steps) => steps,
        Err(missing) => return Ok(Err(missing.refusal())),
    };
    let parent = steps[steps.len() - 1].entry.inode;
    let found = tables.entry(parent, name)?;
    if found.as_ref().is_some_and(Entry::is_directory) {
        return Ok(is_directory(path));
    }
    let count = blocks_in(size, plan.block_size);
    let first = tables.counters()?.next_block;
    if count >= ID_LIMIT - first {
        return Ok(Err(Refusal::failed_precondition("block numbers are used up")));
    }
    let run = BlockRun {
        first: BlockId(first),
        count,
        block_size: plan.block_size,
        replication: plan.replication,
        servers: plan.servers.clone(),
    };
    let inode = if staged {
        draw_inode(tables)?
    } else {
        empty_file(tables, now, steps, name, found, run.first)?
    };
    let inode = match inode {
        Ok(inode) => inode,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let mut counters = tables.counters()?;
    counters.next_block = first + count;
    tables.put_counters(counters)?;
    tables.put_run(&OwnedRun {
        inode,
        run: run.clone(),
        write: WriteState::Open(OpenWrite {
            since_ms: now,
            parent,
            name: name.to_owned(),
            staged,
        }),
    })?;
    Ok(Ok(Outcome::Allocated { inode, blocks: run }))
}

/// Makes the file at `name`, there or not, one that waits for its blocks. Until it is finalized it is
/// empty: a reader never takes unwritten blocks for content.
fn empty_file<T: Tables>(
    tables: &mut T,
    now: i64,
    steps: Vec<Step>,
    name: &str,
    found: Option<Entry>,
    blocks: BlockId,
) -> Result<Result<InodeId, Refusal>, T::Error> {
    let parent = steps[steps.len() - 1].entry.inode;
    let mut entry = match found {
        Some(entry) => {
            touch_parents(tables, now, steps, -(entry.size as i64))?;
            entry
        }
        None => {
            let kind = EntryKind::File {
                md5: String::new(),
                blocks: None,
            };
            match new_entry(tables, now, steps, name, kind)? {
                Ok(entry) => entry,
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
    };
    if let EntryKind::File { blocks, .. } = entry.kind {
        discard_run(tables, now, blocks, GarbageReason::Overwritten)?;
    }
    entry.size = 0;
    entry.mtime_ms = now;
    entry.kind = EntryKind::File {
        md5: String::new(),
        blocks: Some(blocks),
    };
    tables.put_entry(parent, name, &entry)?;
    Ok(Ok(entry.inode))
}

/// Ends a plain write: the file at `path` has this content.
pub(super) fn finalize<T: Tables>(
    tables: &mut T,
    now: i64,
    path: &CleanPath,
    content: Content<'_>,
) -> Result<Applied, T::Error> {
    let place = match find_place(tables, path, &content)? {
        Ok(place) => place,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let Some((entry, blocks)) = place.file else {
        return Ok(Err(Refusal::not_found(format!("not found: {path}"))));
    };
    if entry.inode != content.inode {
        return Ok(Err(Refusal::failed_precondition(format!(
            "{path} is inode {} now, not {}",
            entry.inode, content.inode
        ))));
    }
    let owned = match blocks {
        Some(first) => tables.run(first)?,
        None => None,
    };
    if let Err(refusal) = fits(path, &content, owned.as_ref(), &place.steps, entry.size) {
        return Ok(Err(refusal));
    }
    put_content(tables, now, place.steps, place.name, content, owned, entry.size)
}

/// Ends a staged write: its inode takes the place of whatever file is at `path`.
pub(super) fn finalize_staged<T: Tables>(
    tables: &mut T,
    now: i64,
    path: &CleanPath,
    content: Content<'_>,
    first: BlockId,
) -> Result<Applied, T::Error> {
    let place = match find_place(tables, path, &content)? {
        Ok(place) => place,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let parent = place.steps[place.steps.len() - 1].entry.inode;
    let owned = tables.run(first)?;
    let open = match &owned {
        Some(OwnedRun {
            inode,
            write: WriteState::Open(open),
            ..
        }) if *inode == content.inode && open.staged => open,
        Some(_) | None => {
            return Ok(Err(Refusal::not_found(format!(
                "no staged write of inode {} begins with block {first}: {path}",
                content.inode
            ))));
        }
    };
    if open.parent != parent || open.name != place.name {
        return Ok(Err(Refusal::failed_precondition(format!(
            "block {first} was staged for {} in directory {}, not for {path} in directory {parent}",
            open.name, open.parent
        ))));
    }
    let old_size = place.file.as_ref().map_or(0, |(entry, _)| entry.size);
    if let Err(refusal) = fits(path, &content, owned.as_ref(), &place.steps, old_size) {
        return Ok(Err(refusal));
    }
    match place.file {
        Some((_, blocks)) => discard_run(tables, now, blocks, GarbageReason::Overwritten)?,
        None => count_inode(tables)?,
    }
    put_content(tables, now, place.steps, place.name, content, owned, old_size)
}

/// Where content is to go.
struct Place<'p> {
    steps: Vec<Step>,
    name: &'p str,
    /// The file that is there, and the first of its blocks.
    file: Option<(Entry, Option<BlockId>)>,
}

fn find_place<'p, T: Tables>(
    tables: &T,
    path: &'p CleanPath,
    content: &Content<'_>,
) -> Result<Result<Place<'p>, Refusal>, T::Error> {
    let refused = |refusal| Ok(Err(refusal));
    if content.inode.0 == 0 {
        return refused(Refusal::invalid_argument(format!("inode must not be 0: {path}")));
    }
    let directory = || Refusal::failed_precondition(format!("is a directory: {path}"));
    let Some((parent_path, name)) = path.split_last() else {
        return refused(directory());
    };
    let Ok(steps) = walk(tables, &parent_path)? else {
        return refused(Refusal::not_found(format!("not found: {path}")));
    };
    let parent = steps[steps.len() - 1].entry.inode;
    let file = match tables.entry(parent, name)? {
        None => None,
        Some(entry) => match entry.kind {
            EntryKind::Directory => return refused(directory()),
            EntryKind::File { blocks, .. } => Some((entry, blocks)),
        },
    };
    Ok(Ok(Place { steps, name, file }))
}

/// Whether `content` fits into the blocks that were allocated, and under the root. `old_size` is the
/// size of what it replaces.
fn fits(
    path: &CleanPath,
    content: &Content<'_>,
    owned: Option<&OwnedRun>,
    steps: &[Step],
    old_size: u64,
) -> Result<(), Refusal> {
    let size = content.size;
    let room = owned.map_or(0, |owned| owned.run.count.saturating_mul(owned.run.block_size));
    if size > room {
        return Err(Refusal::failed_precondition(format!(
            "size {size} is beyond the {room} bytes allocated: {path}"
        )));
    }
    // The root's size, which is the sum of all, must stay one that clients can hold.
    let others = steps[0].entry.size.saturating_sub(old_size);
    if size > (i64::MAX as u64).saturating_sub(others) {
        return Err(Refusal::failed_precondition(format!(
            "all files together would pass 2^63 bytes: {path}"
        )));
    }
    Ok(())
}

/// Files an entry with its content, and closes the run that holds it.
fn put_content<T: Tables>(
    tables: &mut T,
    now: i64,
    steps: Vec<Step>,
    name: &str,
    content: Content<'_>,
    owned: Option<OwnedRun>,
    old_size: u64,
) -> Result<Applied, T::Error> {
    let Content { inode, size, md5 } = content;
    let parent = steps[steps.len() - 1].entry.inode;
    let blocks = match owned {
        Some(owned) => close_run(tables, now, owned, size)?,
        None => None,
    };
    touch_parents(tables, now, steps, size as i64 - old_size as i64)?;
    let kind = EntryKind::File {
        md5: md5.to_owned(),
        blocks,
    };
    let entry = Entry {
        inode,
        mtime_ms: now,
        size,
        kind,
    };
    tables.put_entry(parent, name, &entry)?;
    Ok(Ok(Outcome::Finalized))
}

/// Frees the blocks of a run beyond `size` bytes, and records that the rest is written; returns the
/// first block of the rest.
fn close_run<T: Tables>(
    tables: &mut T,
    now: i64,
    mut owned: OwnedRun,
    size: u64,
) -> Result<Option<BlockId>, T::Error> {
    let first = owned.run.first;
    let needed = blocks_in(size, owned.run.block_size);
    if needed == 0 {
        discard_run(tables, now, Some(first), GarbageReason::Truncated)?;
        return Ok(None);
    }
    if needed < owned.run.count {
        let rest = owned.run.split_off(needed);
        tables.put_garbage(&Garbage {
            run: rest,
            reason: GarbageReason::Truncated,
            since_ms: now,
        })?;
    }
    owned.write = WriteState::Written { at_ms: now };
    tables.put_run(&owned)?;
    Ok(Some(first))
}

/// Frees the blocks of writes that were never finalized. A file that waits for them stays, empty as it
/// is. Runs that are finalized or gone by now are left alone.
pub(super) fn abandon<T: Tables>(tables: &mut T, now: i64, runs: &[BlockId]) -> Result<Applied, T::Error> {
    let mut abandoned = 0;
    for &first in runs {
        let Some(OwnedRun {
            write: WriteState::Open(open),
            ..
        }) = tables.run(first)?
        else {
            continue;
        };
        discard_run(tables, now, Some(first), GarbageReason::Abandoned)?;
        abandoned += 1;
        if open.staged {
            continue;
        }
        let Some(mut entry) = tables.entry(open.parent, &open.name)? else {
            continue; // a deleted directory's, reclaimed meanwhile
        };
        if let EntryKind::File { blocks, .. } = &mut entry.kind
            && *blocks == Some(first)
        {
            *blocks = None;
            tables.put_entry(open.parent, &open.name, &entry)?;
        }
    }
    Ok(Ok(Outcome::WritesAbandoned { writes: abandoned }))
}
