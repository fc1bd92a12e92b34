//! Tests of the state on disk and, through it, of the rules of the domain.
//!
//! [`namespace`] holds random histories against the [`model`], a second opinion on the rules that
//! shares no code with them; [`rules`] the corners that random histories do not reach;
//! [`directories`] what crashes, restarts and snapshots may and may not do; [`golden`] the bytes of
//! our own formats.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::domain::command::{AllocationPlan, Command, Op, Outcome, RequestId};
use crate::domain::ids::{BlockId, InodeId, ServerId};
use crate::domain::namespace as namespace_rules;
use crate::domain::path::CleanPath;

mod directories;
mod golden;
mod model;
mod namespace;
mod rules;

/// Every table's keys and values.
type Dump = BTreeMap<&'static str, Vec<(Vec<u8>, Vec<u8>)>>;

fn options(dir: &Path) -> StorageOptions {
    StorageOptions {
        dir: dir.to_owned(),
        map_size: 64 << 20,
    }
}

fn open(dir: &Path) -> Storage {
    Storage::open(&options(dir)).unwrap()
}

fn dump(storage: &Storage) -> Dump {
    let tables = storage.reader().read(|view| view.dump()).unwrap();
    tables.into_iter().collect()
}

fn log_id(index: u64) -> pb::LogId {
    pb::LogId {
        leader: Some(pb::LeaderId { term: 3, node: 7 }),
        index,
    }
}

fn entry(index: u64, commands: &[Command]) -> LogRecord {
    LogRecord {
        log_id: log_id(index),
        content: RecordContent::Batch(convert::encode_batch(commands)),
    }
}

fn membership(index: u64, voter: u64) -> LogRecord {
    let node = pb::Node {
        name: format!("meta-{voter}"),
        raft_addr: format!("localhost:1{voter}"),
        grpc_addr: format!("localhost:{voter}"),
    };
    LogRecord {
        log_id: log_id(index),
        content: RecordContent::Membership(pb::Membership {
            configs: vec![pb::membership::Config { voters: vec![voter] }],
            nodes: [(voter, node)].into(),
        }),
    }
}

fn path(raw: &str) -> CleanPath {
    CleanPath::parse(raw).unwrap()
}

fn id(text: &str) -> RequestId {
    RequestId::new(text.as_bytes()).unwrap()
}

/// A command at a time that is its own, without a request id.
fn at(time_ms: i64, op: Op) -> Command {
    Command {
        time_ms,
        request_id: None,
        op,
    }
}

fn mkdir(raw: &str) -> Op {
    Op::Create {
        path: path(raw),
        directory: true,
    }
}

fn touch(raw: &str) -> Op {
    Op::Create {
        path: path(raw),
        directory: false,
    }
}

fn remove(raw: &str, recursive: bool) -> Op {
    Op::Delete {
        path: path(raw),
        recursive,
    }
}

fn allocate(raw: &str, size: u64, block_size: u64, servers: &[u32]) -> Op {
    Op::Allocate {
        path: path(raw),
        size,
        plan: Some(AllocationPlan {
            block_size,
            replication: servers.len().min(2) as u32,
            servers: servers.iter().copied().map(ServerId).collect(),
        }),
    }
}

fn finalize(raw: &str, inode: u64, size: u64) -> Op {
    Op::Finalize {
        path: path(raw),
        inode: InodeId(inode),
        size,
        md5: "d41d8cd9".to_owned(),
    }
}

/// Applies commands as the next log entry, and answers what each was answered.
fn apply(storage: &mut Storage, commands: &[Command]) -> Vec<Applied> {
    let index = storage
        .progress()
        .unwrap()
        .applied
        .map_or(1, |last| last.index + 1);
    storage.apply(&[entry(index, commands)]).unwrap().remove(0)
}

/// Applies one operation without a request id, at a time of its own.
fn apply_op(storage: &mut Storage, op: Op) -> Applied {
    let last = storage.progress().unwrap().applied.map_or(0, |last| last.index);
    apply(storage, &[at(1_000 + last as i64, op)]).remove(0)
}

/// The paths of every entry below the root, in order of depth and name.
fn paths(storage: &Storage) -> Vec<String> {
    storage.reader().read(|view| Ok(paths_in(view))).unwrap()
}

fn paths_in(view: &StateView<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let mut level = vec![(InodeId::ROOT, CleanPath::root())];
    while !level.is_empty() {
        let mut next = Vec::new();
        for (inode, path) in level {
            for (name, entry) in namespace_rules::list(view, inode).unwrap() {
                let child = path.child(&name);
                found.push(child.to_string());
                if entry.is_directory() {
                    next.push((entry.inode, child));
                }
            }
        }
        level = next;
    }
    found
}
