//! The slices of a state on disk, whatever its history and however they are cut, hold everything once.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::domain::slices::{SliceBounds, read_named, read_runs};

#[derive(Clone, Debug)]
enum Step {
    Write {
        name: u8,
        blocks: u64,
        finalized: Option<u64>,
    },
    Delete {
        name: u8,
    },
    Move {
        block: u64,
    },
    Release {
        first: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let finalized = prop::option::weighted(0.7, 1..9u64);
    prop_oneof![
        4 => (0..8u8, 1..9u64, finalized)
            .prop_map(|(name, blocks, finalized)| Step::Write { name, blocks, finalized }),
        2 => (0..8u8).prop_map(|name| Step::Delete { name }),
        3 => (1..60u64).prop_map(|block| Step::Move { block }),
        2 => (1..60u64).prop_map(|first| Step::Release { first }),
    ]
}

fn build(steps: &[Step]) -> TestState {
    let state = TestState::empty();
    for server in 1..=3 {
        let register = Op::RegisterDataServer {
            id: format!("{server}"),
            addr: format!("host:{server}"),
        };
        state.apply(register).unwrap();
    }
    let path = |name: &u8| CleanPath::parse(&format!("/{name}")).unwrap();
    for step in steps {
        // A step that makes no sense is refused, which is fine.
        let _ = match step {
            Step::Write {
                name,
                blocks,
                finalized,
            } => {
                let plan = AllocationPlan {
                    block_size: 4,
                    replication: 1,
                    servers: ids(&[1, 2]),
                };
                let allocated = state.apply(Op::Allocate {
                    path: path(name),
                    size: blocks * 4,
                    plan: Some(plan),
                    staged: false,
                });
                match (&allocated, finalized) {
                    (Ok(Outcome::Allocated { inode, .. }), Some(finalized)) => state.apply(Op::Finalize {
                        path: path(name),
                        inode: *inode,
                        size: finalized.min(blocks) * 4,
                        md5: String::new(),
                        staged: None,
                    }),
                    _ => allocated,
                }
            }
            Step::Delete { name } => state.apply(Op::Delete {
                path: path(name),
                recursive: false,
            }),
            Step::Move { block } => state.apply(Op::MoveReplica {
                block: BlockId(*block),
                from: ServerId(1),
                to: ServerId(3),
            }),
            Step::Release { first } => state.apply(Op::ReleaseGarbage {
                runs: vec![BlockId(*first)],
            }),
        };
    }
    state
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn slices_hold_everything_once(
        steps in prop::collection::vec(step(), 0..40),
        records in 1..5usize,
        blocks in 1..12u64,
    ) {
        let state = build(&steps);
        let reader = state.reader();
        let bounds = SliceBounds { records, blocks };
        let from = BlockId(1);
        let runs = reader.read(|view| view.runs_from(from, usize::MAX)).unwrap();
        let garbage = reader.read(|view| view.garbage_from(from, usize::MAX)).unwrap();
        let counters = reader.read(|view| view.counters()).unwrap();
        let moved: BTreeMap<_, _> =
            reader.read(|view| view.moved_in(from, 1_000)).unwrap().into_iter().collect();

        let mut seen = BTreeSet::new();
        let mut next = Some(from);
        while let Some(from) = next {
            let slice = reader.read(|view| read_runs(view, from, bounds)).unwrap();
            let mut size = 0;
            prop_assert!(slice.parts.len() <= records + 1);
            for part in &slice.parts {
                prop_assert!(runs.contains(&part.owned));
                size += part.blocks.end - part.blocks.start;
                for block in part.blocks.clone() {
                    prop_assert!(block >= from.0 && part.owned.run.contains(BlockId(block)));
                    prop_assert!(seen.insert(block), "once");
                    let found = slice.moved_from(block).first().filter(|(moved, _)| moved.0 == block);
                    prop_assert_eq!(found.map(|(_, servers)| servers), moved.get(&BlockId(block)));
                }
            }
            prop_assert!(size <= blocks);
            prop_assert!(slice.next.is_none_or(|next| next > from));
            next = slice.next;
        }
        let all: BTreeSet<u64> = runs.iter().flat_map(|owned| owned.run.blocks()).map(|block| block.0).collect();
        prop_assert_eq!(&seen, &all);

        let (mut owned, mut unowned) = (BTreeSet::new(), BTreeSet::new());
        let mut next = Some(from);
        while let Some(from) = next {
            let slice = reader.read(|view| read_named(view, from, bounds)).unwrap();
            prop_assert_eq!(slice.next_block, counters.next_block);
            prop_assert!(slice.named.is_sorted_by_key(|named| named.blocks.start));
            let mut size = 0;
            for named in &slice.named {
                size += named.blocks.end - named.blocks.start;
                let seen = match &named.garbage {
                    None => &mut owned,
                    Some(part) => {
                        prop_assert!(garbage.contains(&part.garbage));
                        let range = BlockId(named.blocks.start)..BlockId(named.blocks.end);
                        let moved = moved.range(range).map(|(block, servers)| (*block, servers.clone()));
                        prop_assert_eq!(&part.moved, &moved.collect::<Vec<_>>());
                        &mut unowned
                    }
                };
                for block in named.blocks.clone() {
                    prop_assert!(block >= from.0 && seen.insert(block), "once");
                }
            }
            prop_assert!(size <= blocks);
            prop_assert!(slice.next.is_none_or(|next| next > from));
            next = slice.next;
        }
        prop_assert_eq!(owned, all);
        let all = garbage.iter().flat_map(|entry| entry.run.blocks()).map(|block| block.0);
        prop_assert_eq!(unowned, all.collect::<BTreeSet<u64>>());
    }
}

/// How long the records of 200,000 files take to read.
/// Run with `cargo test --release --lib records_are_read -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn records_are_read_fast() {
    let state = TestState::empty();
    for n in 0..200_000 {
        let plan = AllocationPlan {
            block_size: 4,
            replication: 3,
            servers: ids(&[n % 7 + 1, n % 7 + 2, n % 7 + 3]),
        };
        let op = Op::Allocate {
            path: CleanPath::parse(&format!("/{n}")).unwrap(),
            size: 4,
            plan: Some(plan),
            staged: false,
        };
        state.apply(op).unwrap();
    }
    let reader = state.reader();
    for what in ["runs", "named"] {
        let (begun, mut read, mut next) = (Instant::now(), 0, Some(BlockId(1)));
        while let Some(from) = next {
            let slice = reader.read(|view| match what {
                "runs" => read_runs(view, from, passes::SLICE).map(|slice| (slice.parts.len(), slice.next)),
                _ => read_named(view, from, passes::SLICE).map(|slice| (slice.named.len(), slice.next)),
            });
            let (parts, then) = slice.unwrap();
            (read, next) = (read + parts, then);
        }
        println!("{what}: {read} records in {:?}", begun.elapsed());
        assert_eq!(read, 200_000);
    }
}
