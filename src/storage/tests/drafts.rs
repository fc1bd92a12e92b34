//! Random histories, drafted: strategies for commands over few names and few numbers, so that conflicts
//! are common, and for how the log is cut. A draft says "the second of the files there are"; what that
//! is by then, the [`model`](super::model) knows.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::model::Model;
use super::*;
use crate::domain::command::Orphan;
use crate::domain::state::ServerStatus;

/// One name is the beginning of another, one is not ASCII.
const NAMES: [&str; 4] = ["a", "b", "ab", "ü"];

/// A command before the numbers that it names are known.
#[derive(Clone, Debug)]
pub enum Draft {
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
        staged: bool,
    },
    Finalize {
        file: FileDraft,
        inode: InodeDraft,
        size: u64,
        md5: u8,
    },
    FinalizeStaged {
        first: Pick,
        inode: InodeDraft,
        /// Of the place that it was staged for, or else another.
        elsewhere: Option<Vec<&'static str>>,
        size: u64,
        md5: u8,
    },
    AbandonWrites {
        runs: Vec<Pick>,
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
    Condemn {
        orphans: Vec<(Pick, Vec<u32>)>,
    },
    Reclaim {
        limit: u32,
    },
}

#[derive(Clone, Debug)]
pub enum FileDraft {
    Existing(Index),
    At(Vec<&'static str>),
}

#[derive(Clone, Debug)]
pub enum InodeDraft {
    /// The one that is written.
    Fitting,
    Number(u64),
}

/// A number: one that fits, or any.
#[derive(Clone, Debug)]
pub enum Pick {
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

impl InodeDraft {
    fn or(&self, fitting: u64) -> InodeId {
        InodeId(match self {
            InodeDraft::Fitting => fitting,
            InodeDraft::Number(number) => *number,
        })
    }
}

/// What becomes one log entry.
#[derive(Clone, Debug)]
pub enum Item {
    Blank,
    Membership(u64),
    Commands(Vec<Step>),
}

#[derive(Clone, Debug)]
pub struct Step {
    /// Milliseconds since the step before; a new leader's clock may be behind.
    pub after: i64,
    pub request: Option<u8>,
    /// Ask for what was first asked under this request id, if it is remembered.
    pub again: bool,
    pub draft: Draft,
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
        6 => Just(InodeDraft::Fitting),
        1 => (0u64..12).prop_map(InodeDraft::Number),
    ];
    let elsewhere = prop_oneof![6 => Just(None), 1 => a_path().prop_map(Some)];
    let orphan = (a_pick(), prop::collection::vec(0u32..6, 0..4));
    prop_oneof![
        14 => (a_path(), prop::bool::weighted(0.7))
            .prop_map(|(path, directory)| Draft::Create { path, directory }),
        6 => (a_path(), prop::bool::weighted(0.7)).prop_map(|(path, recursive)| Draft::Delete { path, recursive }),
        14 => (a_path(), prop_oneof![20 => 1u64..41, 1 => Just(0)], a_plan(), prop::bool::weighted(0.4))
            .prop_map(|(path, size, plan, staged)| Draft::Allocate { path, size, plan, staged }),
        8 => (file, inode.clone(), 0u64..30, any::<u8>())
            .prop_map(|(file, inode, size, md5)| Draft::Finalize { file, inode, size, md5 }),
        7 => (a_pick(), inode, elsewhere, 0u64..30, any::<u8>())
            .prop_map(|(first, inode, elsewhere, size, md5)| {
                Draft::FinalizeStaged { first, inode, elsewhere, size, md5 }
            }),
        3 => prop::collection::vec(a_pick(), 0..3).prop_map(|runs| Draft::AbandonWrites { runs }),
        6 => (a_pick(), a_pick(), 0u32..6)
            .prop_map(|(block, from, to)| Draft::MoveReplica { block, from, to }),
        4 => (0u8..5, 0u8..5).prop_map(|(id, addr)| Draft::Register { id, addr }),
        2 => (0u32..6, status).prop_map(|(server, status)| Draft::SetStatus { server, status }),
        4 => prop::collection::vec(a_pick(), 0..4).prop_map(|runs| Draft::ReleaseGarbage { runs }),
        3 => prop::collection::vec(orphan, 0..4).prop_map(|orphans| Draft::Condemn { orphans }),
        3 => (0u32..5).prop_map(|limit| Draft::Reclaim { limit }),
    ]
}

fn a_step() -> impl Strategy<Value = Step> {
    let after = prop_oneof![
        20 => 0i64..2_000,
        1 => -5_000i64..0,
        2 => 100_000i64..700_000,
    ];
    let request = prop::option::weighted(0.35, 0u8..32);
    (after, request, any::<bool>(), a_draft()).prop_map(|(after, request, again, draft)| Step {
        after,
        request,
        again,
        draft,
    })
}

pub fn a_history() -> impl Strategy<Value = Vec<Item>> {
    let item = prop_oneof![
        20 => prop::collection::vec(a_step(), 1..8).prop_map(Item::Commands),
        1 => Just(Item::Blank),
        1 => (1u64..4).prop_map(Item::Membership),
    ];
    prop::collection::vec(item, 1..40)
}

/// How many records go into each transaction, in turn.
pub fn a_split() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1usize..9, 1..8)
}

/// What a draft comes to in the state that the model is in.
pub fn resolve(draft: &Draft, model: &mut Model) -> Op {
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
        Draft::Allocate {
            path,
            size,
            plan,
            staged,
        } => Op::Allocate {
            path: at(path),
            size: *size,
            plan: plan.clone(),
            staged: *staged,
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
            Op::Finalize {
                path: path(&file),
                inode: inode.or(found),
                size: *size,
                md5: format!("{md5:032x}"),
                staged: None,
            }
        }
        Draft::FinalizeStaged {
            first,
            inode,
            elsewhere,
            size,
            md5,
        } => {
            let known: Vec<u64> = model.staged.keys().copied().collect();
            // In the log, 0 is a plain write.
            let first = first.of(&known).max(1);
            let (place, written) = match model.staged.get(&first) {
                Some(staged) => (staged.path.clone(), staged.file.inode),
                None => ("/a".to_owned(), 2),
            };
            Op::Finalize {
                path: elsewhere.as_ref().map_or_else(|| path(&place), |names| at(names)),
                inode: inode.or(written),
                size: *size,
                md5: format!("{md5:032x}"),
                staged: Some(BlockId(first)),
            }
        }
        Draft::AbandonWrites { runs } => {
            let open = model.open_writes();
            Op::AbandonWrites {
                runs: runs.iter().map(|pick| BlockId(pick.of(&open))).collect(),
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
        Draft::Condemn { orphans } => {
            let lost = model.lost_blocks();
            let orphan = |(block, holders): &(Pick, Vec<u32>)| Orphan {
                block: BlockId(block.of(&lost)),
                holders: holders.iter().copied().map(ServerId).collect(),
            };
            Op::Condemn {
                orphans: orphans.iter().map(orphan).collect(),
            }
        }
        Draft::Reclaim { limit } => Op::Reclaim { limit: *limit },
    }
}
