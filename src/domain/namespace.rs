//! What each command does to the state: the rules of the namespace. Those of a file's content are in
//! `writes`, those of replicas and garbage in [`super::replicas`], those of DataServers in `servers`.
//!
//! [`apply`] is called for every committed command, in the order of the log, on every node. It
//! decides from the state and the command alone, so every node comes to the same state and the same
//! answer. A refusal changes nothing (but is remembered under its request id, if it has one).
//! [`find`] and the other functions below it read; gateways use them too.

use super::command::{Applied, Command, Op, Outcome, Refusal, RequestId};
use super::ids::{ID_LIMIT, InodeId};
use super::path::CleanPath;
use super::replicas::{self, discard_run};
use super::state::{Entry, EntryKind, GarbageReason, ReadTables, Remembered, Tables};
use super::{servers, writes};

/// How long a request id is remembered, in milliseconds of the leaders' clocks.
pub const REMEMBER_MS: i64 = 10 * 60 * 1000;

/// How many request ids are remembered at most.
pub const REMEMBER_MAX: u64 = 200_000;

/// Applies one committed command.
///
/// # Errors
/// Only those of the tables underneath: the batch must then be abandoned as a whole.
pub fn apply<T: Tables>(tables: &mut T, command: &Command) -> Result<Applied, T::Error> {
    let Some(id) = &command.request_id else {
        return perform(tables, command);
    };
    if let Some(first) = tables.remembered(id)? {
        return Ok(first.answer(command.digest));
    }
    let applied = perform(tables, command)?;
    remember(tables, id, command, &applied)?;
    Ok(applied)
}

fn perform<T: Tables>(tables: &mut T, command: &Command) -> Result<Applied, T::Error> {
    let now = command.time_ms;
    match &command.op {
        Op::Create { path, directory } => create(tables, now, path, *directory),
        Op::Delete { path, recursive } => delete(tables, now, path, *recursive),
        Op::Allocate {
            path,
            size,
            plan,
            staged,
        } => writes::allocate(tables, now, path, *size, plan.as_ref(), *staged),
        Op::Finalize {
            path,
            inode,
            size,
            md5,
            staged,
        } => {
            let content = writes::Content {
                inode: *inode,
                size: *size,
                md5,
            };
            match staged {
                None => writes::finalize(tables, now, path, content),
                Some(first) => writes::finalize_staged(tables, now, path, content, *first),
            }
        }
        Op::AbandonWrites { runs } => writes::abandon(tables, now, runs),
        Op::MoveReplica { block, from, to } => replicas::move_replica(tables, *block, *from, *to),
        Op::RegisterDataServer { id, addr } => servers::register(tables, id, addr),
        Op::SetDataServerStatus { server, status } => servers::set_status(tables, *server, *status),
        Op::ReleaseGarbage { runs } => replicas::release_garbage(tables, runs),
        Op::Condemn { orphans } => replicas::condemn(tables, now, orphans),
        Op::Reclaim { limit } => reclaim(tables, now, *limit),
    }
}

/// Remembers an answer, and forgets the oldest ones past the bounds: at most two a call, so that the
/// store of answers shrinks as steadily as it grew.
fn remember<T: Tables>(
    tables: &mut T,
    id: &RequestId,
    command: &Command,
    applied: &Applied,
) -> Result<(), T::Error> {
    let time_ms = command.time_ms;
    let mut counters = tables.counters()?;
    let sequence = counters.next_request;
    tables.put_remembered(
        id,
        &Remembered {
            sequence,
            time_ms,
            digest: command.digest,
            applied: applied.clone(),
        },
    )?;
    counters.next_request += 1;
    for _ in 0..2 {
        if counters.first_request + 1 >= counters.next_request {
            break;
        }
        let Some((oldest, remembered_ms)) = tables.remembered_at(counters.first_request)? else {
            break;
        };
        let too_many = counters.next_request - counters.first_request > REMEMBER_MAX;
        if !too_many && time_ms.saturating_sub(remembered_ms) < REMEMBER_MS {
            break;
        }
        tables.remove_remembered(&oldest, counters.first_request)?;
        counters.first_request += 1;
    }
    tables.put_counters(counters)
}

/// A directory on the way to something, as it was filed.
pub(super) struct Step {
    pub(super) parent: InodeId,
    pub(super) name: String,
    pub(super) entry: Entry,
}

/// Why the way to something ends early.
pub(super) enum Missing {
    NoSuchEntry(CleanPath),
    NotADirectory(CleanPath),
}

impl Missing {
    pub(super) fn refusal(self) -> Refusal {
        match self {
            Missing::NoSuchEntry(path) => Refusal::not_found(format!("parent directory not found: {path}")),
            Missing::NotADirectory(path) => Refusal::failed_precondition(format!("not a directory: {path}")),
        }
    }
}

/// Walks from the root to the directory `path`, itself included.
pub(super) fn walk<T: ReadTables>(
    tables: &T,
    path: &CleanPath,
) -> Result<Result<Vec<Step>, Missing>, T::Error> {
    let mut at = CleanPath::root();
    let Some(root) = tables.entry(InodeId::NONE, "")? else {
        return Ok(Err(Missing::NoSuchEntry(at)));
    };
    let mut steps = vec![Step {
        parent: InodeId::NONE,
        name: String::new(),
        entry: root,
    }];
    for name in path.names() {
        let parent = steps[steps.len() - 1].entry.inode;
        at = at.child(name);
        match tables.entry(parent, name)? {
            None => return Ok(Err(Missing::NoSuchEntry(at))),
            Some(entry) if !entry.is_directory() => return Ok(Err(Missing::NotADirectory(at))),
            Some(entry) => steps.push(Step {
                parent,
                name: name.to_owned(),
                entry,
            }),
        }
    }
    Ok(Ok(steps))
}

/// The parent directory of a new or changed entry was changed: sets its time, and adds `delta` bytes
/// to it and everything above it.
pub(super) fn touch_parents<T: Tables>(
    tables: &mut T,
    now: i64,
    steps: Vec<Step>,
    delta: i64,
) -> Result<(), T::Error> {
    let deepest = steps.len() - 1;
    for (depth, mut step) in steps.into_iter().enumerate().rev() {
        if depth == deepest {
            step.entry.mtime_ms = now;
        } else if delta == 0 {
            break;
        }
        step.entry.size = step.entry.size.saturating_add_signed(delta);
        tables.put_entry(step.parent, &step.name, &step.entry)?;
    }
    Ok(())
}

/// The number of a file or directory that is not counted yet.
pub(super) fn draw_inode<T: Tables>(tables: &mut T) -> Result<Result<InodeId, Refusal>, T::Error> {
    let mut counters = tables.counters()?;
    let inode = counters.next_inode;
    if inode >= ID_LIMIT {
        return Ok(Err(Refusal::failed_precondition("inode numbers are used up")));
    }
    counters.next_inode += 1;
    tables.put_counters(counters)?;
    Ok(Ok(InodeId(inode)))
}

/// One more file or directory is there.
pub(super) fn count_inode<T: Tables>(tables: &mut T) -> Result<(), T::Error> {
    let mut counters = tables.counters()?;
    counters.inodes += 1;
    tables.put_counters(counters)
}

pub(super) fn new_entry<T: Tables>(
    tables: &mut T,
    now: i64,
    steps: Vec<Step>,
    name: &str,
    kind: EntryKind,
) -> Result<Result<Entry, Refusal>, T::Error> {
    let inode = match draw_inode(tables)? {
        Ok(inode) => inode,
        Err(refusal) => return Ok(Err(refusal)),
    };
    count_inode(tables)?;
    let parent = steps[steps.len() - 1].entry.inode;
    let entry = Entry {
        inode,
        mtime_ms: now,
        size: 0,
        kind,
    };
    tables.put_entry(parent, name, &entry)?;
    touch_parents(tables, now, steps, 0)?;
    Ok(Ok(entry))
}

fn create<T: Tables>(
    tables: &mut T,
    now: i64,
    path: &CleanPath,
    directory: bool,
) -> Result<Applied, T::Error> {
    let taken = || Refusal::already_exists(format!("already exists: {path}"));
    let Some((parent_path, name)) = path.split_last() else {
        return Ok(Err(taken()));
    };
    let steps = match walk(tables, &parent_path)? {
        Ok(steps) => steps,
        Err(missing) => return Ok(Err(missing.refusal())),
    };
    if tables.entry(steps[steps.len() - 1].entry.inode, name)?.is_some() {
        return Ok(Err(taken()));
    }
    let kind = match directory {
        true => EntryKind::Directory,
        false => EntryKind::File {
            md5: String::new(),
            blocks: None,
        },
    };
    let entry = new_entry(tables, now, steps, name, kind)?;
    Ok(entry.map(|entry| Outcome::Created { inode: entry.inode }))
}

fn delete<T: Tables>(
    tables: &mut T,
    now: i64,
    path: &CleanPath,
    recursive: bool,
) -> Result<Applied, T::Error> {
    let Some((parent_path, name)) = path.split_last() else {
        return Ok(Err(Refusal::invalid_argument("the root cannot be deleted: /")));
    };
    let not_found = || Ok(Err(Refusal::not_found(format!("not found: {path}"))));
    let Ok(steps) = walk(tables, &parent_path)? else {
        return not_found();
    };
    let parent = steps[steps.len() - 1].entry.inode;
    let Some(entry) = tables.entry(parent, name)? else {
        return not_found();
    };
    match &entry.kind {
        EntryKind::File { blocks, .. } => {
            discard_run(tables, now, *blocks, GarbageReason::Deleted)?;
            forget_inodes(tables, 1)?;
        }
        EntryKind::Directory if tables.children(entry.inode, 1)?.is_empty() => forget_inodes(tables, 1)?,
        EntryKind::Directory if recursive => tables.put_detached(entry.inode)?,
        EntryKind::Directory => {
            return Ok(Err(Refusal::failed_precondition(format!(
                "directory not empty: {path}"
            ))));
        }
    }
    tables.remove_entry(parent, name)?;
    touch_parents(tables, now, steps, -(entry.size as i64))?;
    Ok(Ok(Outcome::Deleted))
}

fn forget_inodes<T: Tables>(tables: &mut T, count: u64) -> Result<(), T::Error> {
    let mut counters = tables.counters()?;
    counters.inodes -= count;
    tables.put_counters(counters)
}

/// Frees up to `limit` records below deleted directories. A file's blocks become garbage; a
/// directory's own children are freed later, in their turn.
fn reclaim<T: Tables>(tables: &mut T, now: i64, limit: u32) -> Result<Applied, T::Error> {
    let mut records = 0;
    while records < limit {
        let Some(directory) = tables.first_detached()? else {
            break;
        };
        let wanted = (limit - records) as usize;
        let children = tables.children(directory, wanted)?;
        let all = children.len() < wanted;
        for (name, entry) in children {
            match entry.kind {
                EntryKind::File { blocks, .. } => {
                    discard_run(tables, now, blocks, GarbageReason::Deleted)?;
                    forget_inodes(tables, 1)?;
                }
                EntryKind::Directory => tables.put_detached(entry.inode)?,
            }
            tables.remove_entry(directory, &name)?;
            records += 1;
        }
        if all {
            tables.remove_detached(directory)?;
            forget_inodes(tables, 1)?;
            records += 1;
        }
    }
    let more = tables.first_detached()?.is_some();
    Ok(Ok(Outcome::Reclaimed { records, more }))
}

/// The entry at `path`, or `None`.
pub fn find<T: ReadTables>(tables: &T, path: &CleanPath) -> Result<Option<Entry>, T::Error> {
    let mut found = tables.entry(InodeId::NONE, "")?;
    for name in path.names() {
        match found {
            Some(directory) if directory.is_directory() => found = tables.entry(directory.inode, name)?,
            _ => return Ok(None),
        }
    }
    Ok(found)
}

/// The children of a directory, in byte order of their names.
pub fn list<T: ReadTables>(tables: &T, directory: InodeId) -> Result<Vec<(String, Entry)>, T::Error> {
    tables.children(directory, usize::MAX)
}
