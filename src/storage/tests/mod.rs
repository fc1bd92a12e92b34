//! Tests of the state on disk and, through it, of the rules of the domain.
//!
//! [`namespace`] holds random histories, which [`drafts`] makes, against the [`model`], a second opinion
//! on the rules that shares no code with them, and against what [`soundness`] asks of any state;
//! [`rules`] has the corners that random histories do not reach, [`writes`] those of content,
//! [`upkeep`] those of blocks that nobody owns; [`scans`] the walks over the tables; [`directories`] what crashes, restarts and snapshots may
//! and may not do; [`hashes`] the state hash, and [`damage`] what flipped and missing bytes do; [`golden`] the bytes of our own formats, and
//! [`upgrades`] those of older servers.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::domain::command::{AllocationPlan, Command, Op, Outcome, RefusalKind, RequestId};
use crate::domain::ids::{BlockId, InodeId, ServerId};
use crate::domain::namespace as namespace_rules;
use crate::domain::path::CleanPath;
use crate::domain::state::{Counters, Entry, Garbage, GarbageReason, OwnedRun, ReadTables};
use crate::domain::state_hash::{Hashes, StateHash};

mod damage;
mod directories;
mod drafts;
mod golden;
mod golden_commands;
mod hashes;
mod model;
mod namespace;
mod rules;
mod scans;
mod soundness;
mod upgrades;
mod upkeep;
mod walk;
mod writes;

/// Every table's keys and values.
type Dump = BTreeMap<&'static str, Vec<(Vec<u8>, Vec<u8>)>>;

fn options(dir: &Path) -> StorageOptions {
    StorageOptions {
        dir: dir.to_owned(),
        map_size: 64 << 20,
        verify: true,
    }
}

fn open(dir: &Path) -> Storage {
    Storage::open(&options(dir)).unwrap()
}

fn dump(storage: &Storage) -> Dump {
    let tables = storage.reader().read(|view| view.dump()).unwrap();
    tables.into_iter().collect()
}

/// The state's hash, after comparing it with what a scan finds and with what is kept for the last entry.
#[track_caller]
fn assert_adds_up(storage: &Storage) -> StateHash {
    let (progress, scan) = storage.reader().scan(|_| ()).unwrap();
    assert_eq!(scan.recorded, Some(scan.computed), "{progress:?}");
    scan.computed
}

/// The same, and it is the hash that is kept of the last entry.
#[track_caller]
fn assert_hashed(storage: &Storage) -> StateHash {
    let progress = storage.progress().unwrap();
    let computed = assert_adds_up(storage);
    if let Some(applied) = progress.applied {
        let kept = storage
            .reader()
            .read(|view| view.hashes(applied.index, 1))
            .unwrap();
        assert_eq!(kept, [(applied.index, computed)].into());
    }
    computed
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
        digest: 0,
        origin: None,
        op,
    }
}

fn with_id(name: &str, time_ms: i64, op: Op) -> Command {
    Command {
        time_ms,
        request_id: Some(id(name)),
        digest: op.digest(),
        origin: None,
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
        staged: false,
    }
}

fn finalize(raw: &str, inode: u64, size: u64) -> Op {
    Op::Finalize {
        path: path(raw),
        inode: InodeId(inode),
        size,
        md5: "d41d8cd9".to_owned(),
        staged: None,
    }
}

fn with_md5(mut op: Op, text: &str) -> Op {
    if let Op::Finalize { md5, .. } = &mut op {
        text.clone_into(md5);
    }
    op
}

/// An allocation that stays apart from the tree.
fn stage(raw: &str, size: u64, block_size: u64, servers: &[u32]) -> Op {
    match allocate(raw, size, block_size, servers) {
        Op::Allocate { path, size, plan, .. } => Op::Allocate {
            path,
            size,
            plan,
            staged: true,
        },
        other => other,
    }
}

fn finalize_staged(raw: &str, inode: u64, size: u64, first: u64) -> Op {
    Op::Finalize {
        path: path(raw),
        inode: InodeId(inode),
        size,
        md5: "5ca1ab1e".to_owned(),
        staged: Some(BlockId(first)),
    }
}

fn move_replica(block: u64, from: u32, to: u32) -> Op {
    Op::MoveReplica {
        block: BlockId(block),
        from: ServerId(from),
        to: ServerId(to),
    }
}

fn abandon(runs: &[u64]) -> Op {
    Op::AbandonWrites {
        runs: runs.iter().copied().map(BlockId).collect(),
    }
}

fn release(runs: &[u64]) -> Op {
    Op::ReleaseGarbage {
        runs: runs.iter().copied().map(BlockId).collect(),
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

fn counters(storage: &Storage) -> Counters {
    storage.reader().read(|view| view.counters()).unwrap()
}

/// Changes the tables behind the rules' back.
fn meddle(storage: &Storage, change: impl FnOnce(&mut tables::StateTxn<'_>) -> Result<(), StorageError>) {
    let generation = storage.current.load();
    let mut txn = generation.write().unwrap();
    change(&mut txn).unwrap();
    txn.commit().unwrap();
}

/// The tables in which two states differ, and in how many records.
fn differences(before: &Dump, after: &Dump) -> BTreeMap<&'static str, usize> {
    let mut differences = BTreeMap::new();
    for (name, table) in before {
        let (old, new): (BTreeMap<_, _>, BTreeMap<_, _>) = (
            table.iter().cloned().collect(),
            after[name].iter().cloned().collect(),
        );
        let gone = old.keys().filter(|key| !new.contains_key(*key)).count();
        let changed = new
            .iter()
            .filter(|(key, value)| old.get(*key) != Some(value))
            .count();
        if gone + changed > 0 {
            differences.insert(*name, gone + changed);
        }
    }
    differences
}

/// A storage in which DataServers 1 to 3 are registered.
fn with_servers(dir: &Path) -> Storage {
    let mut storage = open(dir);
    for n in 1..=3 {
        let register = Op::RegisterDataServer {
            id: format!("ds-{n}"),
            addr: format!("localhost:800{n}"),
        };
        apply_op(&mut storage, register).unwrap();
    }
    storage
}

fn find(storage: &Storage, raw: &str) -> Option<Entry> {
    let found = storage
        .reader()
        .read(|view| namespace_rules::find(view, &path(raw)));
    found.unwrap()
}

fn run_at(storage: &Storage, first: u64) -> Option<OwnedRun> {
    storage.reader().read(|view| view.run(BlockId(first))).unwrap()
}

/// First block, how many, why and since when.
fn garbage(storage: &Storage) -> Vec<(u64, u64, GarbageReason, i64)> {
    let all = storage
        .reader()
        .read(|view| view.garbage_from(BlockId(0), usize::MAX));
    let plain = |garbage: Garbage| {
        let Garbage {
            run,
            reason,
            since_ms,
        } = garbage;
        (run.first.0, run.count, reason, since_ms)
    };
    all.unwrap().into_iter().map(plain).collect()
}

/// Inode and first block of an allocation.
fn allocated(applied: Applied) -> (u64, u64) {
    match applied {
        Ok(Outcome::Allocated { inode, blocks }) => (inode.0, blocks.first.0),
        other => panic!("{other:?}"),
    }
}

/// Each is refused in these words, and changes nothing but the applied index.
#[track_caller]
fn assert_refused(storage: &mut Storage, cases: Vec<(Op, RefusalKind, &str)>) {
    for (op, kind, message) in cases {
        let before = dump(storage);
        let refusal = apply_op(storage, op.clone()).unwrap_err();
        assert_eq!(
            (refusal.kind, refusal.message.as_str()),
            (kind, message),
            "{op:?}"
        );
        assert_eq!(
            differences(&before, &dump(storage)),
            [("meta", 1)].into(),
            "{message}"
        );
    }
}
