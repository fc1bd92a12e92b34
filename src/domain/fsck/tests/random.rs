//! Plans for random clusters, held against a second opinion that looks at each block by itself.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// How one DataServer of a random cluster stands.
#[derive(Clone, Copy, Debug)]
enum Stand {
    Healthy,
    Full,
    Silent,
    Down,
}

#[derive(Clone, Debug)]
struct Cluster {
    servers: Vec<Reported>,
    runs: Vec<OwnedRun>,
    moved: BTreeMap<u64, Vec<u32>>,
    cuts: Vec<u64>,
}

/// Up to seven DataServers, up to 40 blocks in runs of one replication, some replicas lost, damaged or in
/// wrong places.
fn cluster() -> impl Strategy<Value = Cluster> {
    let stand = prop_oneof![
        5 => Just(Stand::Healthy),
        1 => Just(Stand::Full),
        1 => Just(Stand::Silent),
        1 => Just(Stand::Down),
    ];
    let stands = prop::collection::vec(stand, 3..8);
    (
        stands,
        1..4u32,
        prop::collection::vec((1..6u64, 0..3u64, 0..8usize, 0..4u8), 1..9),
    )
        .prop_flat_map(|(stands, replication, shapes)| {
            let n = stands.len();
            // By server and block: 0 nothing, 1 good, 2 damaged; expected replicas are mostly good.
            let fate =
                prop_oneof![12 => Just(None), 3 => Just(Some(0)), 1 => Just(Some(1)), 1 => Just(Some(2))];
            let fates = prop::collection::vec(fate, n * 80);
            let moves = prop::collection::btree_map(0..60u64, (0..n, 0..n), 0..6);
            let cuts = prop::collection::vec(1..80u64, 0..4);
            (Just((stands, replication, shapes)), fates, moves, cuts)
        })
        .prop_map(|((stands, replication, shapes), fates, moves, cuts)| {
            let n = stands.len();
            let mut runs = Vec::new();
            let mut next = 1;
            for (count, gap, start, kind) in shapes {
                let first = next + gap;
                next = first + count;
                let servers: Vec<u32> = (0..n).map(|i| ((start + i) % n) as u32 + 1).collect();
                let run = run(first, count, replication, &servers);
                runs.push(match kind {
                    0 => open(run),
                    1 => written(run, 999_000),
                    _ => written(run, LONG_AGO),
                });
            }
            let expected_of = |block: u64, moved: &BTreeMap<u64, Vec<u32>>| -> Vec<u32> {
                let owned = runs.iter().find(|owned| owned.run.contains(BlockId(block)));
                match (moved.get(&block), owned) {
                    (Some(servers), _) => servers.clone(),
                    (None, Some(owned)) => owned.run.placed(BlockId(block)).map(|server| server.0).collect(),
                    (None, None) => Vec::new(),
                }
            };
            let mut moved = BTreeMap::new();
            for (block, (from, to)) in moves {
                let mut servers = expected_of(block, &BTreeMap::new());
                let (from, to) = (from as u32 + 1, to as u32 + 1);
                if servers.contains(&from) && !servers.contains(&to) {
                    servers
                        .iter_mut()
                        .filter(|server| **server == from)
                        .for_each(|server| *server = to);
                    moved.insert(block, servers);
                }
            }
            let servers = stands.iter().enumerate().map(|(at, stand)| {
                let server = at as u32 + 1;
                let (mut good, mut corrupt) = (Vec::new(), Vec::new());
                for block in 1..80u64 {
                    let expected = expected_of(block, &moved).contains(&server);
                    match fates[at * 80 + block as usize].unwrap_or(u8::from(expected)) {
                        1 => good.push(block),
                        2 => corrupt.push(block),
                        _ => {}
                    }
                }
                let reported = holds(server, &good, &corrupt);
                match stand {
                    Stand::Healthy => reported,
                    Stand::Full => Reported {
                        takes_blocks: false,
                        ..reported
                    },
                    Stand::Silent => silent(server, &good),
                    Stand::Down => down(server),
                }
            });
            Cluster {
                servers: servers.collect(),
                moved,
                cuts,
                runs: runs.clone(),
            }
        })
}

impl Cluster {
    /// The plan, made in slices that are cut wherever `cuts` says.
    fn plan(&self, cuts: &[u64]) -> FsckPlan {
        let census = Census::new(self.servers.clone());
        let mut fsck = Fsck::new(&census, SETTINGS);
        let mut open = OpenWrites::default();
        open.begin_pass();
        let cuts: BTreeSet<u64> = cuts.iter().copied().chain([1_000]).collect();
        let mut start = 0;
        for end in cuts {
            let cut = |owned: &OwnedRun| {
                let part = whole(owned.clone());
                let blocks = part.blocks.start.max(start)..part.blocks.end.min(end);
                (!blocks.is_empty()).then_some(RunPart { blocks, ..part })
            };
            let moved = self.moved.range(start..end);
            let slice = RunSlice {
                parts: self.runs.iter().filter_map(cut).collect(),
                moved: moved
                    .map(|(block, servers)| (BlockId(*block), ids(servers)))
                    .collect(),
                next: Some(BlockId(end)),
            };
            fsck.judge(&slice, &mut open, Instant::now());
            start = end;
        }
        fsck.finish()
    }

    fn expected(&self, block: BlockId) -> BTreeSet<ServerId> {
        let placed = || {
            let owned = self.runs.iter().find(|owned| owned.run.contains(block)).unwrap();
            owned.run.placed(block).collect()
        };
        let moved = self.moved.get(&block.0);
        moved.map_or_else(placed, |servers| ids(servers).into_iter().collect())
    }

    fn reported(&self, server: ServerId) -> &Reported {
        &self.servers[server.0 as usize - 1]
    }

    fn holders(&self, block: BlockId, good: bool) -> BTreeSet<ServerId> {
        let alive = self.servers.iter().filter(|reported| reported.alive);
        let list = |reported: &&Reported| match good {
            true => reported.blocks.contains(&block.0),
            false => reported.corrupt.contains(&block.0),
        };
        alive.filter(list).map(|reported| reported.server).collect()
    }

    /// Blocks of finalized runs, and when these were finalized.
    fn judged(&self) -> impl Iterator<Item = (BlockId, i64)> {
        self.runs.iter().flat_map(|owned| {
            let at = match owned.write {
                WriteState::Written { at_ms } => Some(at_ms),
                WriteState::Open(_) => None,
            };
            at.into_iter()
                .flat_map(|at_ms| owned.run.blocks().map(move |block| (block, at_ms)))
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn plans_keep_their_promises(cluster in cluster()) {
        let plan = cluster.plan(&cluster.cuts);
        prop_assert_eq!(&plan, &cluster.plan(&[]), "how the slices are cut does not matter");

        let mut removed: BTreeMap<BlockId, BTreeSet<ServerId>> = BTreeMap::new();
        for replica in &plan.surplus {
            prop_assert!(removed.entry(replica.block).or_default().insert(replica.server));
        }
        let mut moved: BTreeMap<BlockId, BTreeMap<ServerId, ServerId>> = BTreeMap::new();
        for moving in &plan.moves {
            moved.entry(moving.block).or_default().insert(moving.from, moving.to);
        }
        let mut copied: BTreeMap<BlockId, BTreeSet<ServerId>> = BTreeMap::new();
        let mut survivors = 0;
        for copy in &plan.copies {
            let good = cluster.holders(copy.block, true);
            prop_assert!(good.len() >= survivors, "the fewest survivors first");
            survivors = good.len();
            prop_assert!(copied.entry(copy.block).or_default().insert(copy.to));
            prop_assert!(!good.contains(&copy.to), "no copy to a holder");
            prop_assert!(cluster.reported(copy.to).alive && cluster.reported(copy.to).takes_blocks);
            prop_assert_eq!(copy.from.iter().copied().collect::<BTreeSet<_>>(), good);
        }

        let mut counts = FsckCounts {
            open_writes: cluster.runs.len() as u64,
            homeless: plan.counts.homeless,
            ..FsckCounts::default()
        };
        let mut lacking = 0;
        for owned in &cluster.runs {
            counts.open_writes -= u64::from(matches!(owned.write, WriteState::Written { .. }));
        }
        for (block, at_ms) in cluster.judged() {
            counts.blocks += 1;
            let (expected, good) = (cluster.expected(block), cluster.holders(block, true));
            let corrupt = cluster.holders(block, false);
            let removed = removed.remove(&block).unwrap_or_default();
            let moved = moved.remove(&block).unwrap_or_default();
            let copied = copied.remove(&block).unwrap_or_default();
            let unsettled = expected.iter().any(|server| {
                let reported = cluster.reported(*server);
                reported.alive && !good.contains(server) && !corrupt.contains(server) && at_ms > 995_000 - 1
            });
            if unsettled {
                counts.unsettled += 1;
                prop_assert!(removed.is_empty() && moved.is_empty() && copied.is_empty());
                continue;
            }
            match good.len() {
                0 => counts.unrepairable += 1,
                good if good < expected.len() => counts.under_replicated += 1,
                good if good > expected.len() => counts.over_replicated += 1,
                _ => {}
            }
            // Everything that is too many goes once all that is expected is there, and nothing before.
            let all: BTreeSet<_> = good.union(&corrupt).copied().collect();
            let surplus: BTreeSet<_> = match expected.is_subset(&good) {
                true => all.difference(&expected).copied().collect(),
                false => BTreeSet::new(),
            };
            prop_assert_eq!(&removed, &surplus);
            let left = good.difference(&removed).count();
            prop_assert!(left >= expected.len().min(good.len()));

            // Each gap is filled once: by a record that is moved, or by a copy.
            let gaps: BTreeSet<_> = expected.difference(&good).copied().filter(|server| {
                let reported = cluster.reported(*server);
                reported.alive || reported.status == ServerStatus::Down
            }).collect();
            if good.is_empty() {
                prop_assert!(moved.is_empty() && copied.is_empty());
                continue;
            }
            let spare: BTreeSet<_> = good.difference(&expected).copied().collect();
            prop_assert_eq!(moved.len(), gaps.len().min(spare.len()));
            prop_assert!(moved.keys().all(|from| gaps.contains(from)));
            let to: BTreeSet<_> = moved.values().copied().collect();
            prop_assert_eq!(to.len(), moved.len());
            prop_assert!(to.is_subset(&spare));
            let unfilled: BTreeSet<_> = gaps.iter().filter(|gap| !moved.contains_key(gap)).copied().collect();
            prop_assert!(copied.len() <= unfilled.len());
            lacking += unfilled.len() - copied.len();
            for to in &copied {
                prop_assert!(unfilled.contains(to) || !expected.contains(to));
            }
        }
        prop_assert!(removed.is_empty() && moved.is_empty() && copied.is_empty(), "nothing for other blocks");
        prop_assert_eq!(lacking as u64, plan.counts.homeless);
        prop_assert_eq!(plan.counts, counts);
    }
}
