//! A second opinion on the rules: the whole state as one tree in memory, written from the contract
//! and the documentation of the commands, for clarity alone. It shares types with the domain, but no
//! code: sizes are summed anew each time, every block is an object of its own with its replicas
//! beside it, a subtree is a value.

use std::collections::{BTreeMap, HashSet, VecDeque};

use crate::domain::command::{AllocationPlan, Command, Op, Orphan, Outcome, RefusalKind, RequestId};
use crate::domain::ids::{BlockId, InodeId, ServerId};
use crate::domain::path::CleanPath;
use crate::domain::state::{BlockRun, GarbageReason, ServerStatus};

/// What a command is answered; of a refusal only the kind.
pub type Answer = Result<Outcome, RefusalKind>;

const MEMORY_MS: i64 = 600_000;

#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    pub id: u64,
    pub replicas: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct File {
    pub inode: u64,
    pub mtime: i64,
    pub size: u64,
    pub md5: String,
    pub block_size: u64,
    pub blocks: Vec<Block>,
    /// Of the blocks; of a file without any it means nothing.
    pub write: Write,
}

/// How far the write of a file's blocks has come, and since when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Write {
    Open(i64),
    Done(i64),
}

/// A file that is not in the tree yet, and its place there.
#[derive(Clone, Debug, PartialEq)]
pub struct Staged {
    pub file: File,
    pub parent: u64,
    pub name: String,
    /// As it was asked for: by now it may lead elsewhere.
    pub path: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Directory {
    pub inode: u64,
    pub mtime: i64,
    pub children: BTreeMap<String, Node>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    File(File),
    Directory(Directory),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Waste {
    pub blocks: Vec<Block>,
    pub reason: GarbageReason,
    pub since: i64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    pub id: String,
    pub addr: String,
    pub status: ServerStatus,
}

pub struct Model {
    pub root: Directory,
    /// Deleted, not yet reclaimed.
    pub detached: BTreeMap<u64, Directory>,
    /// By their first block.
    pub staged: BTreeMap<u64, Staged>,
    pub garbage: BTreeMap<u64, Waste>,
    /// Server `n` is at `n - 1`.
    pub servers: Vec<Server>,
    pub requests: VecDeque<(RequestId, i64, Option<Op>, Answer)>,
    pub next_inode: u64,
    pub next_block: u64,
}

impl Node {
    pub fn size(&self) -> u64 {
        match self {
            Node::File(file) => file.size,
            Node::Directory(directory) => directory.size(),
        }
    }

    pub fn count(&self) -> u64 {
        match self {
            Node::File(_) => 1,
            Node::Directory(directory) => directory.count(),
        }
    }
}

impl Directory {
    pub fn size(&self) -> u64 {
        self.children.values().map(Node::size).sum()
    }

    /// Inodes at and below it.
    pub fn count(&self) -> u64 {
        1 + self.children.values().map(Node::count).sum::<u64>()
    }
}

/// Goes down to a directory.
fn descend<'a>(from: &'a mut Directory, names: &[&str]) -> Result<&'a mut Directory, RefusalKind> {
    match names {
        [] => Ok(from),
        [name, rest @ ..] => match from.children.get_mut(*name) {
            None => Err(RefusalKind::NotFound),
            Some(Node::File(_)) => Err(RefusalKind::FailedPrecondition),
            Some(Node::Directory(below)) => descend(below, rest),
        },
    }
}

impl Model {
    pub fn new() -> Self {
        Model {
            root: Directory {
                inode: 1,
                mtime: 0,
                children: BTreeMap::new(),
            },
            detached: BTreeMap::new(),
            staged: BTreeMap::new(),
            garbage: BTreeMap::new(),
            servers: Vec::new(),
            requests: VecDeque::new(),
            next_inode: 2,
            next_block: 1,
        }
    }

    /// Inodes in use, those still to be reclaimed included.
    pub fn count(&self) -> u64 {
        self.root.count() + self.detached.values().map(Directory::count).sum::<u64>()
    }

    /// Every file's path and inode.
    pub fn files(&self) -> Vec<(String, u64)> {
        fn collect(directory: &Directory, at: &str, into: &mut Vec<(String, u64)>) {
            for (name, child) in &directory.children {
                match child {
                    Node::File(file) => into.push((format!("{at}/{name}"), file.inode)),
                    Node::Directory(below) => collect(below, &format!("{at}/{name}"), into),
                }
            }
        }
        let mut files = Vec::new();
        collect(&self.root, "", &mut files);
        files
    }

    /// Every file there is: at a path, below a deleted directory, or staged.
    fn every_file(&mut self) -> Vec<&mut File> {
        fn collect<'a>(directory: &'a mut Directory, into: &mut Vec<&'a mut File>) {
            for child in directory.children.values_mut() {
                match child {
                    Node::File(file) => into.push(file),
                    Node::Directory(below) => collect(below, into),
                }
            }
        }
        let mut files = Vec::new();
        collect(&mut self.root, &mut files);
        for directory in self.detached.values_mut() {
            collect(directory, &mut files);
        }
        files.extend(self.staged.values_mut().map(|staged| &mut staged.file));
        files
    }

    /// Every block that a file owns.
    pub fn owned_blocks(&mut self) -> Vec<&mut Block> {
        let files = self.every_file().into_iter();
        files.flat_map(|file| &mut file.blocks).collect()
    }

    /// The first block of every write that is not finalized.
    pub fn open_writes(&mut self) -> Vec<u64> {
        let open = |file: &&mut File| !file.blocks.is_empty() && matches!(file.write, Write::Open(_));
        let files = self.every_file().into_iter().filter(open);
        files.map(|file| file.blocks[0].id).collect()
    }

    /// Every block that was given out once and that no record names.
    pub fn lost_blocks(&mut self) -> Vec<u64> {
        let mut named: HashSet<u64> = self.owned_blocks().iter().map(|block| block.id).collect();
        named.extend(
            self.garbage
                .values()
                .flat_map(|waste| &waste.blocks)
                .map(|block| block.id),
        );
        (1..self.next_block)
            .filter(|block| !named.contains(block))
            .collect()
    }

    /// Applies a command; says whether it was a repeat, and the answer.
    pub fn apply(&mut self, command: &Command) -> (bool, Answer) {
        let Some(id) = &command.request_id else {
            return (false, self.perform(command.time_ms, &command.op));
        };
        let asked = asked(&command.op);
        if let Some((_, _, known, first)) = self.requests.iter().find(|(known, ..)| known == id) {
            let other = known.is_some() && asked.is_some() && *known != asked;
            let answer = match other {
                true => Err(RefusalKind::InvalidArgument),
                false => first.clone(),
            };
            return (true, answer);
        }
        let answer = self.perform(command.time_ms, &command.op);
        self.requests
            .push_back((id.clone(), command.time_ms, asked, answer.clone()));
        // Two at most each time, and never the one that just came.
        for _ in 0..2 {
            if self.requests.len() > 1 && command.time_ms - self.requests[0].1 >= MEMORY_MS {
                self.requests.pop_front();
            } else {
                break;
            }
        }
        (false, answer)
    }

    /// What a client asked for under an id that is remembered.
    pub fn asked_under(&self, id: &RequestId) -> Option<Op> {
        let known = self.requests.iter().find(|(known, ..)| known == id);
        known.and_then(|(_, _, asked, _)| asked.clone())
    }

    fn perform(&mut self, now: i64, op: &Op) -> Answer {
        match op {
            Op::Create { path, directory } => {
                let names: Vec<_> = path.names().collect();
                let Some((name, above)) = names.split_last() else {
                    return Err(RefusalKind::AlreadyExists);
                };
                let parent = descend(&mut self.root, above)?;
                if parent.children.contains_key(*name) {
                    return Err(RefusalKind::AlreadyExists);
                }
                let inode = self.next_inode;
                self.next_inode += 1;
                let node = match directory {
                    true => Node::Directory(Directory {
                        inode,
                        mtime: now,
                        children: BTreeMap::new(),
                    }),
                    false => Node::File(empty_file(inode, now)),
                };
                parent.children.insert((*name).to_owned(), node);
                parent.mtime = now;
                Ok(Outcome::Created {
                    inode: InodeId(inode),
                })
            }
            Op::Delete { path, recursive } => {
                let names: Vec<_> = path.names().collect();
                let Some((name, above)) = names.split_last() else {
                    return Err(RefusalKind::InvalidArgument);
                };
                let parent = descend(&mut self.root, above).map_err(|_| RefusalKind::NotFound)?;
                match parent.children.get(*name) {
                    None => return Err(RefusalKind::NotFound),
                    Some(Node::Directory(full)) if !full.children.is_empty() && !recursive => {
                        return Err(RefusalKind::FailedPrecondition);
                    }
                    Some(_) => {}
                }
                parent.mtime = now;
                match parent.children.remove(*name) {
                    Some(Node::File(file)) => self.waste(file.blocks, GarbageReason::Deleted, now),
                    Some(Node::Directory(full)) if !full.children.is_empty() => {
                        self.detached.insert(full.inode, full);
                    }
                    _ => {}
                }
                Ok(Outcome::Deleted)
            }
            Op::Allocate {
                path,
                size,
                plan,
                staged,
            } => self.allocate(now, path, *size, plan, *staged),
            Op::Finalize {
                path,
                inode,
                size,
                md5,
                staged,
            } => self.finalize(now, path, inode.0, *size, md5, *staged),
            Op::AbandonWrites { runs } => {
                let mut writes = 0;
                for first in runs {
                    if !self.open_writes().contains(&first.0) {
                        continue;
                    }
                    let begins =
                        |file: &&mut File| file.blocks.first().is_some_and(|block| block.id == first.0);
                    let found = self.every_file().into_iter().find(begins);
                    let blocks = found.map_or_else(Vec::new, |file| std::mem::take(&mut file.blocks));
                    self.staged.remove(&first.0);
                    self.waste(blocks, GarbageReason::Abandoned, now);
                    writes += 1;
                }
                Ok(Outcome::WritesAbandoned { writes })
            }
            Op::Condemn { orphans } => {
                let mut blocks = 0;
                for Orphan { block, holders } in orphans {
                    if holders.is_empty() || !self.lost_blocks().contains(&block.0) {
                        continue;
                    }
                    let mut replicas: Vec<u32> = holders.iter().map(|holder| holder.0).collect();
                    replicas.sort_unstable();
                    replicas.dedup();
                    let lost = Block {
                        id: block.0,
                        replicas,
                    };
                    self.waste(vec![lost], GarbageReason::Orphaned, now);
                    blocks += 1;
                }
                Ok(Outcome::Condemned { blocks })
            }
            Op::MoveReplica { block, from, to } => {
                let known = to.0 >= 1 && to.0 as usize <= self.servers.len();
                let mut blocks = self.owned_blocks();
                let Some(found) = blocks.iter_mut().find(|found| found.id == block.0) else {
                    return Err(RefusalKind::NotFound);
                };
                if !known {
                    return Err(RefusalKind::NotFound);
                }
                if found.replicas.contains(&to.0) {
                    return Err(RefusalKind::AlreadyExists);
                }
                match found.replicas.iter_mut().find(|replica| **replica == from.0) {
                    None => Err(RefusalKind::FailedPrecondition),
                    Some(replica) => {
                        *replica = to.0;
                        Ok(Outcome::ReplicaMoved)
                    }
                }
            }
            Op::RegisterDataServer { id, addr } => {
                if id.is_empty() || addr.is_empty() {
                    return Err(RefusalKind::InvalidArgument);
                }
                for other in &mut self.servers {
                    if other.id != *id && other.addr == *addr {
                        other.status = ServerStatus::Down;
                    }
                }
                let server = Server {
                    id: id.clone(),
                    addr: addr.clone(),
                    status: ServerStatus::Healthy,
                };
                let place = match self.servers.iter().position(|known| known.id == *id) {
                    Some(place) => {
                        self.servers[place] = server;
                        place
                    }
                    None => {
                        self.servers.push(server);
                        self.servers.len() - 1
                    }
                };
                Ok(Outcome::DataServerRegistered {
                    server: ServerId(place as u32 + 1),
                })
            }
            Op::SetDataServerStatus { server, status } => {
                let place = (server.0 as usize).checked_sub(1);
                match place.and_then(|place| self.servers.get_mut(place)) {
                    None => Err(RefusalKind::NotFound),
                    Some(known) => {
                        known.status = *status;
                        Ok(Outcome::StatusSet)
                    }
                }
            }
            Op::ReleaseGarbage { runs } => {
                for first in runs {
                    self.garbage.remove(&first.0);
                }
                Ok(Outcome::GarbageReleased)
            }
            Op::Reclaim { limit } => {
                let mut records = 0;
                // One record at a time, from the oldest deleted directory.
                while records < *limit
                    && let Some(mut oldest) = self.detached.first_entry()
                {
                    match oldest.get_mut().children.pop_first() {
                        Some((_, Node::File(file))) => self.waste(file.blocks, GarbageReason::Deleted, now),
                        Some((_, Node::Directory(below))) => {
                            self.detached.insert(below.inode, below);
                        }
                        None => {
                            oldest.remove();
                        }
                    }
                    records += 1;
                }
                Ok(Outcome::Reclaimed {
                    records,
                    more: !self.detached.is_empty(),
                })
            }
        }
    }

    fn allocate(
        &mut self,
        now: i64,
        path: &CleanPath,
        size: u64,
        plan: &Option<AllocationPlan>,
        staged: bool,
    ) -> Answer {
        let Some(plan) = plan else {
            return Err(RefusalKind::InvalidArgument);
        };
        let distinct: HashSet<_> = plan.servers.iter().collect();
        if size == 0
            || plan.block_size == 0
            || plan.replication == 0
            || distinct.len() != plan.servers.len()
            || (plan.replication as usize) > plan.servers.len()
        {
            return Err(RefusalKind::InvalidArgument);
        }
        let names: Vec<_> = path.names().collect();
        let Some((name, above)) = names.split_last() else {
            return Err(RefusalKind::FailedPrecondition);
        };
        let parent = descend(&mut self.root, above)?;
        let there = match parent.children.get(*name) {
            Some(Node::Directory(_)) => return Err(RefusalKind::FailedPrecondition),
            Some(Node::File(file)) => Some(file.inode),
            None => None,
        };
        let inode = match there {
            Some(inode) if !staged => inode,
            Some(_) | None => {
                self.next_inode += 1;
                self.next_inode - 1
            }
        };
        let mut blocks = Vec::new();
        while (blocks.len() as u64) * plan.block_size < size {
            let i = blocks.len();
            let replicas =
                (0..plan.replication as usize).map(|j| plan.servers[(i + j) % plan.servers.len()].0);
            blocks.push(Block {
                id: self.next_block,
                replicas: replicas.collect(),
            });
            self.next_block += 1;
        }
        let first = blocks[0].id;
        let outcome = Outcome::Allocated {
            inode: InodeId(inode),
            blocks: BlockRun {
                first: BlockId(first),
                count: blocks.len() as u64,
                block_size: plan.block_size,
                replication: plan.replication,
                servers: plan.servers.clone(),
            },
        };
        let file = File {
            block_size: plan.block_size,
            blocks,
            write: Write::Open(now),
            ..empty_file(inode, now)
        };
        if staged {
            let staged = Staged {
                file,
                parent: parent.inode,
                name: (*name).to_owned(),
                path: path.to_string(),
            };
            self.staged.insert(first, staged);
        } else {
            parent.mtime = now;
            if let Some(Node::File(old)) = parent.children.insert((*name).to_owned(), Node::File(file)) {
                self.waste(old.blocks, GarbageReason::Overwritten, now);
            }
        }
        Ok(outcome)
    }

    fn finalize(
        &mut self,
        now: i64,
        path: &CleanPath,
        inode: u64,
        size: u64,
        md5: &str,
        staged: Option<BlockId>,
    ) -> Answer {
        if inode == 0 {
            return Err(RefusalKind::InvalidArgument);
        }
        let names: Vec<_> = path.names().collect();
        let Some((name, above)) = names.split_last() else {
            return Err(RefusalKind::FailedPrecondition);
        };
        let parent = descend(&mut self.root, above).map_err(|_| RefusalKind::NotFound)?;
        let there = match parent.children.get(*name) {
            Some(Node::Directory(_)) => return Err(RefusalKind::FailedPrecondition),
            Some(Node::File(file)) => Some(file),
            None => None,
        };
        let mut file = match staged {
            None => match there {
                None => return Err(RefusalKind::NotFound),
                Some(file) if file.inode != inode => return Err(RefusalKind::FailedPrecondition),
                Some(file) => file.clone(),
            },
            Some(first) => match self.staged.get(&first.0) {
                Some(staged) if staged.file.inode != inode => return Err(RefusalKind::NotFound),
                None => return Err(RefusalKind::NotFound),
                Some(staged) if staged.parent != parent.inode || staged.name != *name => {
                    return Err(RefusalKind::FailedPrecondition);
                }
                Some(staged) => staged.file.clone(),
            },
        };
        if size > file.blocks.len() as u64 * file.block_size {
            return Err(RefusalKind::FailedPrecondition);
        }
        let mut kept = 0;
        while (kept as u64) * file.block_size < size {
            kept += 1;
        }
        let rest = file.blocks.split_off(kept);
        file.size = size;
        file.md5 = md5.to_owned();
        file.mtime = now;
        file.write = Write::Done(now);
        parent.mtime = now;
        let old = parent.children.insert((*name).to_owned(), Node::File(file));
        if let Some(first) = staged {
            self.staged.remove(&first.0);
            if let Some(Node::File(old)) = old {
                self.waste(old.blocks, GarbageReason::Overwritten, now);
            }
        }
        self.waste(rest, GarbageReason::Truncated, now);
        Ok(Outcome::Finalized)
    }

    fn waste(&mut self, blocks: Vec<Block>, reason: GarbageReason, since: i64) {
        if let Some(first) = blocks.first() {
            self.garbage.insert(
                first.id,
                Waste {
                    blocks,
                    reason,
                    since,
                },
            );
        }
    }
}

fn empty_file(inode: u64, mtime: i64) -> File {
    File {
        inode,
        mtime,
        size: 0,
        md5: String::new(),
        block_size: 0,
        blocks: Vec::new(),
        write: Write::Done(mtime),
    }
}

/// What a client asked for, without the leader's plan; `None`: it was no client.
fn asked(op: &Op) -> Option<Op> {
    match op {
        Op::Create { .. } | Op::Delete { .. } | Op::Finalize { .. } => Some(op.clone()),
        Op::Allocate {
            path, size, staged, ..
        } => Some(Op::Allocate {
            path: path.clone(),
            size: *size,
            plan: None,
            staged: *staged,
        }),
        _ => None,
    }
}
