//! Random histories of commands, few names and few numbers, so that conflicts are common: answered
//! as the [`model`](super::model) answers them, ending in its tree, and leaving tables that hold
//! together. However the log is cut into batches, and across a snapshot, the same records come out
//! as the same bytes.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::Index;

use super::model::{Answer, Block, Directory, File, Model, Node};
use super::*;
use crate::domain::state::{
    Counters, DataServer, Entry, EntryKind, Garbage, GarbageReason, OwnedRun, Remembered, ServerStatus,
};
use crate::storage::codec;

/// One name is the beginning of another, one is not ASCII.
const NAMES: [&str; 4] = ["a", "b", "ab", "ü"];

/// A command before the numbers that it names are known.
#[derive(Clone, Debug)]
enum Draft {
    Create {
        path: Vec<&'static str>,
        directory: bool,
    },
    Delete {
        path: Vec<&'static str>,
        recursive: bool,
    },
    Allocate {
        path: Vec<&'static str>,
        size: u64,
        plan: Option<AllocationPlan>,
    },
    Finalize {
        file: FileDraft,
        inode: InodeDraft,
        size: u64,
        md5: u8,
    },
    MoveReplica {
        block: Pick,
        from: Pick,
        to: u32,
    },
    Register {
        id: u8,
        addr: u8,
    },
    SetStatus {
        server: u32,
        status: ServerStatus,
    },
    ReleaseGarbage {
        runs: Vec<Pick>,
    },
    Reclaim {
        limit: u32,
    },
}

#[derive(Clone, Debug)]
enum FileDraft {
    Existing(Index),
    At(Vec<&'static str>),
}

#[derive(Clone, Debug)]
enum InodeDraft {
    AtPath,
    Number(u64),
}

/// A number: one that fits, or any.
#[derive(Clone, Debug)]
enum Pick {
    Fitting(Index),
    Number(u32),
}

impl Pick {
    fn of(&self, fitting: &[u64]) -> u64 {
        match self {
            Pick::Fitting(index) if !fitting.is_empty() => *index.get(fitting),
            Pick::Fitting(_) => 1,
            Pick::Number(number) => u64::from(*number),
        }
    }
}

#[derive(Clone, Debug)]
enum Item {
    Blank,
    Membership(u64),
    Commands(Vec<Step>),
}

#[derive(Clone, Debug)]
struct Step {
    /// Milliseconds since the step before; a new leader's clock may be behind.
    after: i64,
    request: Option<u8>,
    draft: Draft,
}

fn a_path() -> impl Strategy<Value = Vec<&'static str>> {
    let names = |count| prop::collection::vec(prop::sample::select(&NAMES[..]), count);
    prop_oneof![1 => names(0), 12 => names(1), 12 => names(2), 4 => names(3)]
}

fn a_pick() -> impl Strategy<Value = Pick> {
    prop_oneof![
        4 => any::<Index>().prop_map(Pick::Fitting),
        1 => (0u32..30).prop_map(Pick::Number),
    ]
}

fn a_plan() -> impl Strategy<Value = Option<AllocationPlan>> {
    let servers = prop_oneof![
        8 => prop::sample::subsequence(vec![1u32, 2, 3, 4, 5], 2..=5).prop_shuffle(),
        1 => prop::collection::vec(1u32..4, 0..4), // may repeat itself
    ];
    let block_size = prop_oneof![20 => 1u64..9, 1 => Just(0)];
    let replication = prop_oneof![20 => 1u32..4, 1 => Just(0)];
    let plan =
        (block_size, replication, servers).prop_map(|(block_size, replication, servers)| AllocationPlan {
            block_size,
            replication,
            servers: servers.into_iter().map(ServerId).collect(),
        });
    prop_oneof![20 => plan.prop_map(Some), 1 => Just(None)]
}

fn a_draft() -> impl Strategy<Value = Draft> {
    let status = prop::sample::select(vec![
        ServerStatus::Healthy,
        ServerStatus::Unhealthy,
        ServerStatus::Down,
    ]);
    let file = prop_oneof![
        4 => any::<Index>().prop_map(FileDraft::Existing),
        1 => a_path().prop_map(FileDraft::At),
    ];
    let inode = prop_oneof![
        6 => Just(InodeDraft::AtPath),
        1 => (0u64..12).prop_map(InodeDraft::Number),
    ];
    prop_oneof![
        14 => (a_path(), prop::bool::weighted(0.7))
            .prop_map(|(path, directory)| Draft::Create { path, directory }),
        6 => (a_path(), prop::bool::weighted(0.7)).prop_map(|(path, recursive)| Draft::Delete { path, recursive }),
        10 => (a_path(), prop_oneof![20 => 1u64..41, 1 => Just(0)], a_plan())
            .prop_map(|(path, size, plan)| Draft::Allocate { path, size, plan }),
        8 => (file, inode, 0u64..30, any::<u8>())
            .prop_map(|(file, inode, size, md5)| Draft::Finalize { file, inode, size, md5 }),
        6 => (a_pick(), a_pick(), 0u32..6)
            .prop_map(|(block, from, to)| Draft::MoveReplica { block, from, to }),
        4 => (0u8..5, 0u8..5).prop_map(|(id, addr)| Draft::Register { id, addr }),
        2 => (0u32..6, status).prop_map(|(server, status)| Draft::SetStatus { server, status }),
        2 => prop::collection::vec(a_pick(), 0..4).prop_map(|runs| Draft::ReleaseGarbage { runs }),
        3 => (0u32..5).prop_map(|limit| Draft::Reclaim { limit }),
    ]
}

fn a_step() -> impl Strategy<Value = Step> {
    let after = prop_oneof![
        20 => 0i64..2_000,
        1 => -5_000i64..0,
        2 => 100_000i64..700_000,
    ];
    (after, prop::option::weighted(0.35, 0u8..32), a_draft()).prop_map(|(after, request, draft)| Step {
        after,
        request,
        draft,
    })
}

fn a_history() -> impl Strategy<Value = Vec<Item>> {
    let item = prop_oneof![
        20 => prop::collection::vec(a_step(), 1..8).prop_map(Item::Commands),
        1 => Just(Item::Blank),
        1 => (1u64..4).prop_map(Item::Membership),
    ];
    prop::collection::vec(item, 1..40)
}

/// How many records go into each transaction, in turn.
fn a_split() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1usize..9, 1..8)
}

fn resolve(draft: &Draft, model: &mut Model) -> Op {
    let at = |names: &[&str]| path(&format!("/{}", names.join("/")));
    match draft {
        Draft::Create { path, directory } => Op::Create {
            path: at(path),
            directory: *directory,
        },
        Draft::Delete { path, recursive } => Op::Delete {
            path: at(path),
            recursive: *recursive,
        },
        Draft::Allocate { path, size, plan } => Op::Allocate {
            path: at(path),
            size: *size,
            plan: plan.clone(),
        },
        Draft::Finalize {
            file,
            inode,
            size,
            md5,
        } => {
            let files = model.files();
            let (file, found) = match file {
                FileDraft::Existing(index) if !files.is_empty() => index.get(&files).clone(),
                FileDraft::Existing(_) => ("/a".to_owned(), 1),
                FileDraft::At(names) => {
                    let raw = at(names).to_string();
                    let found = files.iter().find(|(path, _)| *path == raw);
                    (raw.clone(), found.map_or(1, |(_, inode)| *inode))
                }
            };
            let inode = match inode {
                InodeDraft::AtPath => found,
                InodeDraft::Number(number) => *number,
            };
            Op::Finalize {
                path: path(&file),
                inode: InodeId(inode),
                size: *size,
                md5: format!("{md5:032x}"),
            }
        }
        Draft::MoveReplica { block, from, to } => {
            let owned: BTreeMap<u64, Vec<u64>> = model
                .owned_blocks()
                .into_iter()
                .map(|block| (block.id, block.replicas.iter().copied().map(u64::from).collect()))
                .collect();
            let block = block.of(&owned.keys().copied().collect::<Vec<_>>());
            let from = from.of(owned.get(&block).map_or(&[], Vec::as_slice));
            Op::MoveReplica {
                block: BlockId(block),
                from: ServerId(from as u32),
                to: ServerId(*to),
            }
        }
        Draft::Register { id, addr } => {
            let text = |what: &str, number: u8| match number {
                0 => String::new(),
                _ => format!("{what}{number}"),
            };
            Op::RegisterDataServer {
                id: text("ds-", *id),
                addr: text("localhost:800", *addr),
            }
        }
        Draft::SetStatus { server, status } => Op::SetDataServerStatus {
            server: ServerId(*server),
            status: *status,
        },
        Draft::ReleaseGarbage { runs } => {
            let known: Vec<u64> = model.garbage.keys().copied().collect();
            Op::ReleaseGarbage {
                runs: runs.iter().map(|pick| BlockId(pick.of(&known))).collect(),
            }
        }
        Draft::Reclaim { limit } => Op::Reclaim { limit: *limit },
    }
}

/// What a history came to in the model.
struct Played {
    records: Vec<LogRecord>,
    /// For each record, for each command: whether it was a repeat, and the answer.
    answers: Vec<Vec<(bool, Answer)>>,
    model: Model,
}

fn play(history: &[Item]) -> Played {
    let mut model = Model::new();
    let (mut records, mut answers) = (Vec::new(), Vec::new());
    let mut now = 1_700_000_000_000;
    for (item, index) in history.iter().zip(1..) {
        let (record, answered) = match item {
            Item::Blank => {
                let blank = LogRecord {
                    log_id: log_id(index),
                    content: RecordContent::Blank,
                };
                (blank, Vec::new())
            }
            Item::Membership(voter) => (membership(index, *voter), Vec::new()),
            Item::Commands(steps) => {
                let (mut commands, mut answered) = (Vec::new(), Vec::new());
                for step in steps {
                    now += step.after;
                    let command = Command {
                        time_ms: now,
                        request_id: step.request.map(|number| id(&format!("request {number}"))),
                        op: resolve(&step.draft, &mut model),
                    };
                    answered.push(model.apply(&command));
                    commands.push(command);
                }
                (entry(index, &commands), answered)
            }
        };
        records.push(record);
        answers.push(answered);
    }
    Played {
        records,
        answers,
        model,
    }
}

/// Applies records, `split` of them at a time.
fn apply_split(storage: &mut Storage, records: &[LogRecord], split: &[usize]) -> Vec<Vec<Applied>> {
    let (mut answers, mut rest) = (Vec::new(), records);
    for wanted in split.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (batch, after) = rest.split_at((*wanted).min(rest.len()));
        answers.extend(storage.apply(batch).unwrap());
        rest = after;
    }
    answers
}

/// The tables, decoded but not interpreted.
struct Decoded {
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

fn decoded(dump: &Dump) -> Decoded {
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
    fn blocks(&self, run: &crate::domain::state::BlockRun) -> Vec<(u64, Vec<u32>)> {
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
    fn assert_sound(&self) {
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
        let runs: BTreeMap<u64, u64> = self
            .runs
            .iter()
            .map(|owned| (owned.run.first.0, owned.inode.0))
            .collect();
        assert_eq!(
            runs, owners,
            "every file's run exists and is its own, every run is some file's"
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

    /// Everything below a directory, by path.
    fn tree(&self, directory: u64, at: &str, into: &mut BTreeMap<String, Shown>) {
        for (_, name, entry) in self.entries.iter().filter(|(parent, _, _)| *parent == directory) {
            let (path, file) = match &entry.kind {
                EntryKind::Directory => (format!("{at}{name}/"), None),
                EntryKind::File { md5, blocks } => {
                    let run = blocks.map(|first| self.runs.iter().find(|owned| owned.run.first == first));
                    let blocks = run
                        .flatten()
                        .map_or_else(Vec::new, |owned| self.blocks(&owned.run));
                    (format!("{at}{name}"), Some((md5.clone(), blocks)))
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

/// An entry, as both sides can say it.
#[derive(Debug, PartialEq)]
struct Shown {
    inode: u64,
    mtime: i64,
    size: u64,
    file: Option<(String, Blocks)>,
}

fn shown(blocks: &[Block]) -> Blocks {
    blocks
        .iter()
        .map(|block| (block.id, block.replicas.clone()))
        .collect()
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
            Node::File(File {
                inode,
                mtime,
                size,
                md5,
                blocks,
                ..
            }) => {
                let shown = Shown {
                    inode: *inode,
                    mtime: *mtime,
                    size: *size,
                    file: Some((md5.clone(), shown(blocks))),
                };
                into.insert(format!("{at}{name}"), shown);
            }
        }
    }
}

fn answer_of(applied: &Applied) -> Answer {
    applied.clone().map_err(|refusal| refusal.kind)
}

fn assert_same(tables: &Decoded, model: &Model) {
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
        .map(|(id, time_ms, answer)| (id.as_bytes(), *time_ms, answer.clone()))
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

/// Numbers only rise: none is ever given twice.
fn assert_numbers_are_new(answers: &[Vec<(bool, Answer)>]) {
    let (mut last_inode, mut last_block) = (1, 0);
    for (repeat, answer) in answers.iter().flatten() {
        match answer {
            Ok(Outcome::Created { inode }) if !repeat => {
                assert!(inode.0 > last_inode);
                last_inode = inode.0;
            }
            Ok(Outcome::Allocated { inode, blocks }) if !repeat => {
                assert!(blocks.first.0 > last_block);
                last_block = blocks.first.0 + blocks.count - 1;
                last_inode = last_inode.max(inode.0);
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_history_is_answered_and_ends_as_the_model_says(history in a_history(), split in a_split()) {
        let Played { records, answers: expected, model } = play(&history);
        let dir = tempfile::tempdir().unwrap();
        let mut storage = open(dir.path());
        let answers = apply_split(&mut storage, &records, &split);
        assert_eq!(answers.len(), expected.len());
        for (record, (answers, expected)) in answers.iter().zip(&expected).enumerate() {
            assert_eq!(answers.len(), expected.len());
            for (command, (answer, (_, expected))) in answers.iter().zip(expected).enumerate() {
                assert_eq!(&answer_of(answer), expected, "record {}, command {command}", record + 1);
            }
        }
        assert_numbers_are_new(&expected);
        let tables = decoded(&dump(&storage));
        tables.assert_sound();
        assert_same(&tables, &model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_same_records_give_the_same_bytes_however_batched_and_across_a_snapshot(
        history in a_history(),
        other in a_history(),
        splits in (a_split(), a_split(), a_split()),
        cut in any::<Index>(),
    ) {
        let records = play(&history).records;
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let [mut one, mut two, mut three] = [0, 1, 2].map(|i| open(dirs[i].path()));

        let (before, after) = records.split_at(cut.index(records.len() + 1));
        let answers = apply_split(&mut one, &records, &splits.0);
        let mut again = apply_split(&mut two, before, &splits.1);
        // The third has another past, of which nothing may be left.
        apply_split(&mut three, &play(&other).records, &splits.2);
        let snapshot = two.build_snapshot().run().unwrap();
        prop_assert_eq!(snapshot.meta.last_log_id, before.last().map(|record| record.log_id));
        let prepared = three.prepare_install(snapshot).run().unwrap();
        three.install(prepared).unwrap();
        prop_assert_eq!(dump(&three), dump(&two));

        let on_third = apply_split(&mut three, after, &splits.2);
        prop_assert_eq!(&on_third, &apply_split(&mut two, after, &splits.1));
        again.extend(on_third);
        prop_assert_eq!(again, answers);
        prop_assert_eq!(dump(&two), dump(&one));
        prop_assert_eq!(dump(&three), dump(&one));
    }
}

/// The histories above are worth something only if they reach what they are about.
#[test]
fn histories_reach_every_outcome_and_refusal_and_repeat() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..100 {
        let history = a_history().new_tree(&mut runner).unwrap().current();
        let played = play(&history);
        for (repeat, answer) in played.answers.iter().flatten() {
            let what = match answer {
                Ok(outcome) => format!("{outcome:?}"),
                Err(kind) => format!("{kind:?}"),
            };
            let name = what.split([' ', '{']).next().unwrap_or_default().to_owned();
            *seen.entry(name).or_default() += 1;
            if *repeat {
                *seen.entry("repeat".to_owned()).or_default() += 1;
            }
            if matches!(answer, Ok(Outcome::Reclaimed { more: true, records }) if *records > 0) {
                *seen.entry("reclaimed in part".to_owned()).or_default() += 1;
            }
        }
        for waste in played.model.garbage.values() {
            *seen.entry(format!("garbage: {:?}", waste.reason)).or_default() += 1;
        }
    }
    for (what, least) in [
        ("Created", 150),
        ("Deleted", 60),
        ("Allocated", 150),
        ("Finalized", 100),
        ("ReplicaMoved", 30),
        ("DataServerRegistered", 50),
        ("StatusSet", 30),
        ("GarbageReleased", 50),
        ("Reclaimed", 50),
        ("reclaimed in part", 4),
        ("InvalidArgument", 50),
        ("NotFound", 50),
        ("AlreadyExists", 50),
        ("FailedPrecondition", 50),
        ("repeat", 100),
        ("garbage: Deleted", 20),
        ("garbage: Overwritten", 20),
        ("garbage: Truncated", 20),
    ] {
        let times = seen.get(what).copied().unwrap_or(0);
        assert!(times >= least, "{what}: {times} times in {seen:?}");
    }
}
