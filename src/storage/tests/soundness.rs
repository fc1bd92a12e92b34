//! The tables, decoded: what must hold of them whatever the history was, and whether they say the same
//! as the [`model`](super::model).

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Answer, Block, Directory, File, Model, Node, Write};
use super::*;
use crate::domain::state::{
    BlockRun, Counters, DataServer, Entry, EntryKind, Garbage, GarbageReason, OpenWrite, OwnedRun,
    Remembered, WriteState,
};
use crate::storage::codec;

/// The tables, decoded but not interpreted.
pub struct Decoded {
    entries: Vec<(u64, String, Entry)>,
    runs: Vec<OwnedRun>,
    moved: BTreeMap<u64, Vec<u32>>,
    servers: Vec<DataServer>,
    garbage: Vec<Garbage>,
    detached: Vec<u64>,
    requests: BTreeMap<Vec<u8>, Remembered>,
    order: Vec<(u64, i64, Vec<u8>)>,
    counters: Counters,
}

fn be(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().unwrap())
}

pub fn decoded(dump: &Dump) -> Decoded {
    let numbers = |servers: Vec<ServerId>| servers.into_iter().map(|server| server.0).collect();
    let table = |name: &str| dump[name].iter();
    Decoded {
        entries: table("entries")
            .map(|(key, value)| {
                let name = String::from_utf8(key[8..].to_vec()).unwrap();
                (be(&key[..8]), name, codec::decode_entry(value).unwrap())
            })
            .collect(),
        runs: table("runs")
            .map(|(key, value)| {
                let owned = codec::decode_run(value).unwrap();
                assert_eq!(be(key), owned.run.first.0, "a run lies under its first block");
                owned
            })
            .collect(),
        moved: table("moved")
            .map(|(key, value)| (be(key), numbers(codec::decode_servers(value).unwrap())))
            .collect(),
        servers: table("servers")
            .map(|(key, value)| {
                let number = u32::from_be_bytes(key.as_slice().try_into().unwrap());
                codec::decode_data_server(ServerId(number), value).unwrap()
            })
            .collect(),
        garbage: table("garbage")
            .map(|(key, value)| {
                let garbage = codec::decode_garbage(value).unwrap();
                assert_eq!(be(key), garbage.run.first.0, "garbage lies under its first block");
                garbage
            })
            .collect(),
        detached: table("detached").map(|(key, _)| be(key)).collect(),
        requests: table("requests")
            .map(|(key, value)| (key.clone(), codec::decode_remembered(value).unwrap()))
            .collect(),
        order: table("request_order")
            .map(|(key, value)| (be(key), be(&value[..8]) as i64, value[8..].to_vec()))
            .collect(),
        counters: table("meta")
            .find(|(key, _)| key == b"counters")
            .map_or_else(Counters::default, |(_, value)| {
                codec::decode_counters(value).unwrap()
            }),
    }
}

impl Decoded {
    /// The blocks of a run, each with its replicas.
    fn blocks(&self, run: &BlockRun) -> Vec<(u64, Vec<u32>)> {
        (0..run.count)
            .map(|i| {
                let block = run.first.0 + i;
                let placed = || {
                    let at = |j| run.servers[(i + j) as usize % run.servers.len()].0;
                    (0..u64::from(run.replication)).map(at).collect()
                };
                (block, self.moved.get(&block).cloned().unwrap_or_else(placed))
            })
            .collect()
    }

    /// Checks everything that must hold whatever the history was.
    pub fn assert_sound(&self) {
        let Counters {
            next_inode,
            next_block,
            next_server,
            inodes,
            first_request,
            next_request,
        } = self.counters;
        let directories: BTreeMap<u64, u64> = self
            .entries
            .iter()
            .filter(|(_, _, entry)| entry.is_directory())
            .map(|(parent, _, entry)| (entry.inode.0, *parent))
            .collect();
        let mut seen: BTreeSet<u64> = self.detached.iter().copied().collect();
        assert!(!seen.contains(&1), "the root is never detached");
        for (parent, name, entry) in &self.entries {
            let inode = entry.inode.0;
            assert!(seen.insert(inode), "inode {inode} has two parents");
            assert!((1..next_inode).contains(&inode));
            assert_eq!(name.is_empty(), inode == 1, "only the root has no name");
            // Up to the root's own parent, or to a deleted directory that is yet to be reclaimed.
            let mut above = *parent;
            for step in 0.. {
                assert!(step <= directories.len(), "{name} lies in a circle");
                if above == 0 || self.detached.contains(&above) {
                    break;
                }
                assert!(directories.contains_key(&above), "{name} is an orphan");
                above = directories[&above];
            }
        }
        assert_eq!(inodes as usize, self.entries.len() + self.detached.len());

        for (_, name, entry) in self.entries.iter().filter(|(_, _, entry)| entry.is_directory()) {
            let below = self
                .entries
                .iter()
                .filter(|(parent, _, _)| *parent == entry.inode.0);
            let sum: u64 = below.map(|(_, _, child)| child.size).sum();
            assert_eq!(entry.size, sum, "size of directory {name:?}");
        }

        let mut owners: BTreeMap<u64, u64> = BTreeMap::new();
        for (_, name, entry) in &self.entries {
            if let EntryKind::File {
                blocks: Some(first), ..
            } = entry.kind
            {
                assert_eq!(
                    owners.insert(first.0, entry.inode.0),
                    None,
                    "{name} shares its run"
                );
            }
        }
        let mut runs: BTreeMap<u64, u64> = BTreeMap::new();
        for owned in &self.runs {
            let (first, inode) = (owned.run.first.0, owned.inode.0);
            if let WriteState::Open(OpenWrite { staged: true, .. }) = owned.write {
                assert!(
                    seen.insert(inode),
                    "staged inode {inode} is in the tree, or staged twice"
                );
                assert!((2..next_inode).contains(&inode));
                continue;
            }
            runs.insert(first, inode);
            if let WriteState::Open(OpenWrite { parent, name, .. }) = &owned.write {
                let at = |(above, called, _): &&(u64, String, Entry)| *above == parent.0 && called == name;
                let entry = self.entries.iter().find(at).map(|(_, _, entry)| entry);
                let waits = entry.is_some_and(|entry| {
                    let EntryKind::File { md5, blocks } = &entry.kind else {
                        return false;
                    };
                    *blocks == Some(owned.run.first) && entry.size == 0 && md5.is_empty()
                });
                assert!(waits, "no empty file {name:?} waits for block {first}: {entry:?}");
            }
        }
        assert_eq!(
            runs, owners,
            "every file's run exists and is its own, every run is some file's or staged"
        );

        let mut all: Vec<_> = self.runs.iter().map(|owned| &owned.run).collect();
        all.extend(self.garbage.iter().map(|garbage| &garbage.run));
        all.sort_by_key(|run| run.first);
        let mut free = 1;
        let mut blocks = BTreeSet::new();
        for run in all {
            assert!(run.first.0 >= free, "block {} lies in two runs", run.first);
            assert!(run.count > 0);
            free = run.first.0 + run.count;
            for (block, replicas) in self.blocks(run) {
                blocks.insert(block);
                let distinct: BTreeSet<_> = replicas.iter().collect();
                assert_eq!(
                    distinct.len(),
                    replicas.len(),
                    "replicas of block {block}: {replicas:?}"
                );
                assert_eq!(
                    replicas.len(),
                    run.replication as usize,
                    "replicas of block {block}"
                );
            }
        }
        assert!(free <= next_block, "a block was never drawn");
        for block in self.moved.keys() {
            assert!(
                blocks.contains(block),
                "block {block} was moved and exists no more"
            );
        }

        let numbers: Vec<_> = self.servers.iter().map(|known| known.server.0).collect();
        assert_eq!(numbers, (1..next_server).collect::<Vec<_>>());

        let sequences: Vec<_> = self.order.iter().map(|(sequence, _, _)| *sequence).collect();
        assert_eq!(sequences, (first_request..next_request).collect::<Vec<_>>());
        assert_eq!(self.order.len(), self.requests.len());
        for (sequence, time_ms, id) in &self.order {
            let remembered = &self.requests[id];
            assert_eq!((remembered.sequence, remembered.time_ms), (*sequence, *time_ms));
        }
    }

    fn content(&self, owned: &OwnedRun) -> Content {
        let write = match &owned.write {
            WriteState::Open(open) => Write::Open(open.since_ms),
            WriteState::Written { at_ms } => Write::Done(*at_ms),
        };
        (owned.run.block_size, write, self.blocks(&owned.run))
    }

    /// Everything below a directory, by path.
    fn tree(&self, directory: u64, at: &str, into: &mut BTreeMap<String, Shown>) {
        for (_, name, entry) in self.entries.iter().filter(|(parent, _, _)| *parent == directory) {
            let (path, file) = match &entry.kind {
                EntryKind::Directory => (format!("{at}{name}/"), None),
                EntryKind::File { md5, blocks } => {
                    let run = blocks.map(|first| self.runs.iter().find(|owned| owned.run.first == first));
                    let content = run.flatten().map(|owned| self.content(owned));
                    (format!("{at}{name}"), Some((md5.clone(), content)))
                }
            };
            let shown = Shown {
                inode: entry.inode.0,
                mtime: entry.mtime_ms,
                size: entry.size,
                file,
            };
            into.insert(path.clone(), shown);
            if entry.is_directory() {
                self.tree(entry.inode.0, &path, into);
            }
        }
    }
}

/// The blocks of a file, in order, each with its replicas.
type Blocks = Vec<(u64, Vec<u32>)>;

/// Bytes a block, how far the write has come, and the blocks.
type Content = (u64, Write, Blocks);

/// An entry, as both sides can say it.
#[derive(Debug, PartialEq)]
struct Shown {
    inode: u64,
    mtime: i64,
    size: u64,
    file: Option<(String, Option<Content>)>,
}

fn shown(blocks: &[Block]) -> Blocks {
    blocks
        .iter()
        .map(|block| (block.id, block.replicas.clone()))
        .collect()
}

fn content(file: &File) -> Option<Content> {
    let written = !file.blocks.is_empty();
    written.then(|| (file.block_size, file.write, shown(&file.blocks)))
}

fn model_tree(directory: &Directory, at: &str, into: &mut BTreeMap<String, Shown>) {
    for (name, node) in &directory.children {
        match node {
            Node::Directory(below) => {
                let path = format!("{at}{name}/");
                let shown = Shown {
                    inode: below.inode,
                    mtime: below.mtime,
                    size: node.size(),
                    file: None,
                };
                into.insert(path.clone(), shown);
                model_tree(below, &path, into);
            }
            Node::File(file) => {
                let shown = Shown {
                    inode: file.inode,
                    mtime: file.mtime,
                    size: file.size,
                    file: Some((file.md5.clone(), content(file))),
                };
                into.insert(format!("{at}{name}"), shown);
            }
        }
    }
}

pub fn answer_of(applied: &Applied) -> Answer {
    applied.clone().map_err(|refusal| refusal.kind)
}

pub fn assert_same(tables: &Decoded, model: &Model) {
    let (mut found, mut expected) = (BTreeMap::new(), BTreeMap::new());
    tables.tree(1, "/", &mut found);
    model_tree(&model.root, "/", &mut expected);
    for &inode in &tables.detached {
        tables.tree(inode, &format!("deleted {inode}/"), &mut found);
    }
    for (inode, directory) in &model.detached {
        model_tree(directory, &format!("deleted {inode}/"), &mut expected);
    }
    assert_eq!(found, expected);
    let (_, _, root) = &tables.entries[0];
    assert_eq!((root.mtime_ms, root.size), (model.root.mtime, model.root.size()));
    assert_eq!(
        tables.detached,
        model.detached.keys().copied().collect::<Vec<_>>()
    );

    let mut found = Vec::new();
    for owned in &tables.runs {
        if let WriteState::Open(open) = &owned.write
            && open.staged
        {
            let place = (open.parent.0, open.name.as_str());
            found.push((owned.inode.0, place, Some(tables.content(owned))));
        }
    }
    let expected: Vec<_> = model
        .staged
        .values()
        .map(|staged| {
            let place = (staged.parent, staged.name.as_str());
            (staged.file.inode, place, content(&staged.file))
        })
        .collect();
    assert_eq!(found, expected);

    let garbage = tables.garbage.iter();
    let found: Vec<(Blocks, GarbageReason, i64)> = garbage
        .map(|garbage| (tables.blocks(&garbage.run), garbage.reason, garbage.since_ms))
        .collect();
    let expected: Vec<_> = model
        .garbage
        .values()
        .map(|waste| (shown(&waste.blocks), waste.reason, waste.since))
        .collect();
    assert_eq!(found, expected);

    let found: Vec<_> = tables
        .servers
        .iter()
        .map(|known| (&known.id, &known.addr, known.status))
        .collect();
    let expected: Vec<_> = model
        .servers
        .iter()
        .map(|known| (&known.id, &known.addr, known.status))
        .collect();
    assert_eq!(found, expected);

    let found: Vec<_> = tables
        .order
        .iter()
        .map(|(_, time_ms, id)| (id.as_slice(), *time_ms, answer_of(&tables.requests[id].applied)))
        .collect();
    let expected: Vec<_> = model
        .requests
        .iter()
        .map(|(id, time_ms, _, answer)| (id.as_bytes(), *time_ms, answer.clone()))
        .collect();
    assert_eq!(found, expected);

    let Counters {
        next_inode,
        next_block,
        inodes,
        ..
    } = tables.counters;
    assert_eq!(
        (next_inode, next_block, inodes),
        (model.next_inode, model.next_block, model.count())
    );
}
