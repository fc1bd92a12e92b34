//! A second opinion on the rules: the whole state as one tree in memory, written from the contract
//! and the documentation of the commands, for clarity alone. It shares types with the domain, but no
//! code: sizes are summed anew each time, every block is an object of its own with its replicas
//! beside it, a subtree is a value.

use std::collections::{BTreeMap, HashSet, VecDeque};

use crate::domain::command::{AllocationPlan, Command, Op, Outcome, RefusalKind, RequestId};
use crate::domain::ids::{BlockId, InodeId, ServerId};
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
    pub garbage: BTreeMap<u64, Waste>,
    /// Server `n` is at `n - 1`.
    pub servers: Vec<Server>,
    pub requests: VecDeque<(RequestId, i64, Answer)>,
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

    /// Every block that a file at a path owns or, detached, still owns.
    pub fn owned_blocks(&mut self) -> Vec<&mut Block> {
        fn collect<'a>(directory: &'a mut Directory, into: &mut Vec<&'a mut Block>) {
            for child in directory.children.values_mut() {
                match child {
                    Node::File(file) => into.extend(&mut file.blocks),
                    Node::Directory(below) => collect(below, into),
                }
            }
        }
        let mut blocks = Vec::new();
        collect(&mut self.root, &mut blocks);
        for directory in self.detached.values_mut() {
            collect(directory, &mut blocks);
        }
        blocks
    }

    /// Applies a command; says whether it was a repeat, and the answer.
    pub fn apply(&mut self, command: &Command) -> (bool, Answer) {
        let Some(id) = &command.request_id else {
            return (false, self.perform(command.time_ms, &command.op));
        };
        if let Some((_, _, first)) = self.requests.iter().find(|(known, _, _)| known == id) {
            return (true, first.clone());
        }
        let answer = self.perform(command.time_ms, &command.op);
        self.requests
            .push_back((id.clone(), command.time_ms, answer.clone()));
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
            Op::Allocate { path, size, plan } => self.allocate(now, path.names().collect(), *size, plan),
            Op::Finalize {
                path,
                inode,
                size,
                md5,
            } => {
                if inode.0 == 0 {
                    return Err(RefusalKind::InvalidArgument);
                }
                let names: Vec<_> = path.names().collect();
                let Some((name, above)) = names.split_last() else {
                    return Err(RefusalKind::FailedPrecondition);
                };
                let parent = descend(&mut self.root, above).map_err(|_| RefusalKind::NotFound)?;
                let file = match parent.children.get_mut(*name) {
                    None => return Err(RefusalKind::NotFound),
                    Some(Node::Directory(_)) => return Err(RefusalKind::FailedPrecondition),
                    Some(Node::File(file)) => file,
                };
                if file.inode != inode.0 || *size > file.blocks.len() as u64 * file.block_size {
                    return Err(RefusalKind::FailedPrecondition);
                }
                let mut kept = 0;
                while (kept as u64) * file.block_size < *size {
                    kept += 1;
                }
                let rest = file.blocks.split_off(kept);
                file.size = *size;
                file.md5 = md5.clone();
                file.mtime = now;
                parent.mtime = now;
                self.waste(rest, GarbageReason::Truncated, now);
                Ok(Outcome::Finalized)
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

    fn allocate(&mut self, now: i64, names: Vec<&str>, size: u64, plan: &Option<AllocationPlan>) -> Answer {
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
        let Some((name, above)) = names.split_last() else {
            return Err(RefusalKind::FailedPrecondition);
        };
        let parent = descend(&mut self.root, above)?;
        let file = match parent.children.get_mut(*name) {
            Some(Node::Directory(_)) => return Err(RefusalKind::FailedPrecondition),
            Some(Node::File(file)) => file,
            None => {
                let inode = self.next_inode;
                self.next_inode += 1;
                let new = Node::File(empty_file(inode, now));
                match parent.children.entry((*name).to_owned()).or_insert(new) {
                    Node::File(file) => file,
                    Node::Directory(_) => return Err(RefusalKind::FailedPrecondition),
                }
            }
        };
        let first = self.next_block;
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
        let outcome = Outcome::Allocated {
            inode: InodeId(file.inode),
            blocks: BlockRun {
                first: BlockId(first),
                count: blocks.len() as u64,
                block_size: plan.block_size,
                replication: plan.replication,
                servers: plan.servers.clone(),
            },
        };
        let old = std::mem::replace(&mut file.blocks, blocks);
        file.block_size = plan.block_size;
        file.size = 0;
        file.md5 = String::new();
        file.mtime = now;
        parent.mtime = now;
        self.waste(old, GarbageReason::Overwritten, now);
        Ok(outcome)
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
    }
}
