//! What garbage collection plans, case by case, and held against a second opinion on random clusters.

use proptest::prelude::*;

use super::super::census::Reported;
use super::super::census::testing::{down, holds, ids, run, silent};
use super::super::state::{BlockRun, Garbage, GarbageReason};
use super::*;

const SETTINGS: GcSettings = GcSettings {
    heard_margin: Duration::from_secs(15),
    orphan_grace: Duration::from_secs(7200),
    mass_delete_share: 0.2,
    max_removals: 10_000,
    max_releases: 10_000,
    max_condemned: 10_000,
};

/// Older than every report of the tests by more than the margin.
const LONG_AGO: i64 = 0;

/// When the tests' reports came.
const REPORTED: i64 = 1_000_000;

fn now() -> Now {
    Now {
        instant: Instant::now(),
        unix_ms: REPORTED + 1_000,
    }
}

fn later(now: Now, by: Duration) -> Now {
    Now {
        instant: now.instant + by,
        unix_ms: now.unix_ms + ms(by),
    }
}

fn owned(run: &BlockRun) -> Named {
    Named {
        blocks: run.first.0..run.first.0 + run.count,
        garbage: None,
    }
}

fn garbage(run: BlockRun, since_ms: i64, moved: &[(u64, &[u32])]) -> Named {
    let blocks = run.first.0..run.first.0 + run.count;
    let garbage = Garbage {
        run,
        reason: GarbageReason::Deleted,
        since_ms,
    };
    let moved = moved
        .iter()
        .map(|(block, servers)| (BlockId(*block), ids(servers)));
    Named {
        blocks,
        garbage: Some(GarbagePart {
            garbage,
            moved: moved.collect(),
        }),
    }
}

/// One leader's passes over a cluster whose next block is 1,000.
struct Leader {
    settings: GcSettings,
    unknown: UnknownBlocks,
    allowed: BTreeSet<BlockId>,
}

impl Leader {
    fn new() -> Self {
        Leader {
            settings: SETTINGS,
            unknown: UnknownBlocks::default(),
            allowed: BTreeSet::new(),
        }
    }

    fn pass(&mut self, now: Now, servers: &[Reported], named: Vec<Named>) -> GcPlan {
        let census = Census::new(servers.to_vec());
        let mut gc = Gc::new(&census, self.settings, now, &mut self.unknown, &self.allowed);
        gc.judge(&NamedSlice {
            named,
            next_block: 1_000,
            next: None,
        });
        gc.finish()
    }
}

fn replica(server: u32, block: u64) -> Replica {
    Replica {
        server: ServerId(server),
        block: BlockId(block),
    }
}

fn orphan(block: u64, holders: &[u32]) -> Orphan {
    Orphan {
        block: BlockId(block),
        holders: ids(holders),
    }
}

#[test]
fn garbage_is_deleted_where_it_is_reported_wherever_that_is() {
    let servers = [
        holds(1, &[4, 5], &[]),
        holds(2, &[], &[6]),
        silent(3, &[5]),
        holds(9, &[7, 8], &[]),
    ];
    let named = vec![
        garbage(run(5, 3, 2, &[1, 2, 3]), LONG_AGO, &[]),
        owned(&run(8, 2, 1, &[9])),
    ];
    let plan = Leader::new().pass(now(), &servers, named);
    assert_eq!(plan.removals, [replica(1, 5), replica(2, 6), replica(9, 7)]);
    assert_eq!(plan.releases, []);
    let counts = GcCounts {
        garbage_runs: 1,
        garbage_blocks: 3,
        garbage_replicas: 3,
        held_back: 0,
    };
    assert_eq!(plan.counts, counts);
    let unknown = Strangers {
        unknown: 1,
        ..Strangers::default()
    };
    assert_eq!(plan.strangers, [(ServerId(1), unknown)].into(), "block 4");
}

#[test]
fn an_entry_is_released_when_all_who_may_hold_it_have_been_heard() {
    let unheard = |server| Reported {
        reported_ms: None,
        ..holds(server, &[], &[])
    };
    let none = |server| holds(server, &[], &[]);
    let week = ms(GIVE_UP);
    let entry = || run(5, 2, 2, &[1, 2, 3, 4]);
    for (what, servers, since_ms, released) in [
        ("heard", vec![none(1), none(2), none(3), down(4)], LONG_AGO, true),
        (
            "reported",
            vec![none(1), none(2), holds(3, &[6], &[]), none(4)],
            LONG_AGO,
            false,
        ),
        (
            "damaged",
            vec![none(1), none(2), holds(3, &[], &[6]), none(4)],
            LONG_AGO,
            false,
        ),
        (
            "elsewhere",
            vec![none(1), none(2), none(3), holds(4, &[5], &[])],
            LONG_AGO,
            false,
        ),
        (
            "too fresh",
            vec![none(1), none(2), none(3)],
            REPORTED - 15_000,
            false,
        ),
        (
            "just not",
            vec![none(1), none(2), none(3)],
            REPORTED - 15_001,
            true,
        ),
        ("in the future", vec![none(1), none(2), none(3)], i64::MAX, false),
        ("never heard", vec![none(1), unheard(2), none(3)], LONG_AGO, false),
        ("silent", vec![none(1), none(2), silent(3, &[])], LONG_AGO, false),
        ("down", vec![none(1), none(2), down(3)], LONG_AGO, false),
        (
            "down for a week",
            vec![none(1), none(2), down(3)],
            REPORTED + 1_000 - week - 1,
            true,
        ),
        (
            "a week, nearly",
            vec![none(1), none(2), down(3)],
            REPORTED + 1_000 - week,
            false,
        ),
        ("not registered", vec![none(1), none(2)], LONG_AGO, false),
    ] {
        let plan = Leader::new().pass(now(), &servers, vec![garbage(entry(), since_ms, &[])]);
        let expected: &[BlockId] = if released { &[BlockId(5)] } else { &[] };
        assert_eq!(plan.releases, expected, "{what}");
    }
    // Who has a replica that was moved there is waited for, too.
    let servers = [none(1), none(2), none(3), down(4)];
    let moved: &[(u64, &[u32])] = &[(6, &[2, 4])];
    let plan = Leader::new().pass(now(), &servers, vec![garbage(entry(), LONG_AGO, moved)]);
    assert_eq!(plan.releases, []);
}

#[test]
fn a_long_entry_is_judged_as_a_whole() {
    let census = |blocks: &[u64]| Census::new(vec![holds(1, blocks, &[]), down(2), holds(3, &[], &[])]);
    let entry = |range: std::ops::Range<u64>, moved: &[(u64, &[u32])]| Named {
        blocks: range,
        ..garbage(run(5, 6, 1, &[1]), LONG_AGO, moved)
    };
    type Case<'c> = (&'c [u64], &'c [(u64, &'c [u32])], bool);
    let parts: [Case<'_>; 4] = [
        (&[], &[], true),
        (&[5], &[], false),
        (&[10], &[], false),
        (&[], &[(6, &[2])], false),
    ];
    for (reported, moved, released) in parts {
        let (census, mut leader) = (census(reported), Leader::new());
        let mut gc = Gc::new(&census, SETTINGS, now(), &mut leader.unknown, &leader.allowed);
        for (blocks, next) in [
            (5..7, Some(BlockId(7))),
            (7..10, Some(BlockId(10))),
            (10..11, None),
        ] {
            let moved = if blocks.contains(&6) { moved } else { &[] };
            gc.judge(&NamedSlice {
                named: vec![entry(blocks, moved)],
                next_block: 1_000,
                next,
            });
        }
        let plan = gc.finish();
        assert_eq!(
            plan.releases.len(),
            usize::from(released),
            "{reported:?} {moved:?}"
        );
        assert_eq!((plan.counts.garbage_runs, plan.counts.garbage_blocks), (1, 6));
    }
    // An entry that this pass did not see from its beginning.
    let (census, mut leader) = (census(&[]), Leader::new());
    let mut gc = Gc::new(&census, SETTINGS, now(), &mut leader.unknown, &leader.allowed);
    gc.judge(&NamedSlice {
        named: vec![entry(8..11, &[])],
        next_block: 1_000,
        next: None,
    });
    assert_eq!(gc.finish().releases, []);
}

#[test]
fn unknown_blocks_are_condemned_after_the_grace() {
    let mut leader = Leader::new();
    let servers = [holds(1, &[5, 6], &[]), holds(2, &[], &[5])];
    let named = || vec![owned(&run(6, 1, 1, &[1]))];
    let start = now();
    let grace = SETTINGS.orphan_grace;
    let almost = later(start, grace - Duration::from_millis(1));
    assert_eq!(leader.pass(start, &servers, named()).condemned, []);
    assert_eq!(leader.pass(almost, &servers, named()).condemned, []);
    let plan = leader.pass(later(start, grace), &servers, named());
    assert_eq!(plan.condemned, [orphan(5, &[1, 2])]);
    assert_eq!(plan.removals, [], "the record comes first");
    assert!(leader.unknown.contains(BlockId(5)) && !leader.unknown.contains(BlockId(6)));

    // Known, or not reported, in between: the grace begins anew.
    for (seen, known) in [
        (&servers[..], vec![owned(&run(5, 2, 1, &[1]))]),
        (&[silent(1, &[5, 6])], named()),
    ] {
        let mut leader = Leader::new();
        leader.pass(start, &servers, named());
        leader.pass(later(start, grace / 2), seen, known);
        assert_eq!(leader.pass(later(start, grace), &servers, named()).condemned, []);
        let plan = leader.pass(later(start, grace * 2), &servers, named());
        assert_eq!(plan.condemned.len(), 1);
    }
}

#[test]
fn foreign_blocks_are_counted_and_left_alone() {
    let mut leader = Leader::new();
    let servers = [holds(1, &[0, 999, 1_000], &[u64::MAX]), silent(2, &[5_000])];
    let start = now();
    leader.pass(start, &servers, vec![]);
    let plan = leader.pass(later(start, SETTINGS.orphan_grace), &servers, vec![]);
    assert_eq!(plan.condemned, [orphan(999, &[1])]);
    let strangers = Strangers {
        unknown: 1,
        held_back: 0,
        foreign: 3,
    };
    assert_eq!(plan.strangers, [(ServerId(1), strangers)].into());
}

/// A leader that has waited out the grace, with `unknown` unknown blocks among `all` on DataServer 1.
fn after_the_grace(unknown: u64, all: u64) -> (Leader, Now, [Reported; 2], Vec<Named>) {
    let mut leader = Leader::new();
    let blocks: Vec<u64> = (1..=all).collect();
    // DataServer 2 holds unknown block 1, too, and has plenty of known ones.
    let other: Vec<u64> = [1].into_iter().chain(unknown + 1..=999).collect();
    let servers = [holds(1, &blocks, &[]), holds(2, &other, &[])];
    let named = vec![owned(&run(unknown + 1, 999 - unknown, 1, &[1]))];
    let start = now();
    leader.pass(start, &servers, named.clone());
    (leader, later(start, SETTINGS.orphan_grace), servers, named)
}

#[test]
fn more_than_a_share_is_held_back() {
    for (unknown, all, held_back) in [
        (64, 64, false),
        (65, 65, true),
        (80, 400, false),
        (81, 400, true),
        (0, 400, false),
    ] {
        let (mut leader, now, servers, named) = after_the_grace(unknown, all);
        let plan = leader.pass(now, &servers, named);
        let counted = plan.held_back.len() as u64;
        assert_eq!(plan.counts.held_back, counted);
        match held_back {
            true => {
                assert_eq!(
                    (plan.condemned.len(), counted),
                    (0, unknown),
                    "{unknown} of {all}"
                );
                assert_eq!(plan.strangers[&ServerId(1)].held_back, unknown);
                assert_eq!(
                    plan.strangers[&ServerId(2)].held_back,
                    1,
                    "block 1 waits everywhere"
                );
            }
            false => assert_eq!(
                (plan.condemned.len() as u64, counted),
                (unknown, 0),
                "{unknown} of {all}"
            ),
        }
    }
}

#[test]
fn what_is_lost_at_once_does_not_go_in_portions() {
    // 90 of 400 are unknown, but only the first 10 for long enough.
    let mut leader = Leader::new();
    let start = now();
    let known = |from: u64| vec![owned(&run(from, 1_000 - from, 1, &[1]))];
    let servers = [holds(1, &(1..=400).collect::<Vec<_>>(), &[])];
    leader.pass(start, &servers, known(11));
    let due = later(start, SETTINGS.orphan_grace);
    let plan = leader.pass(due, &servers, known(91));
    assert_eq!((plan.condemned.len(), plan.held_back.len()), (0, 10));
    assert_eq!(plan.strangers[&ServerId(1)].unknown, 90);
}

#[test]
fn an_operators_word_counts_for_the_blocks_it_was_given_for() {
    let (mut leader, due, servers, mut named) = after_the_grace(90, 400);
    let plan = leader.pass(due, &servers, named.clone());
    leader.allowed = plan.held_back.iter().copied().take(50).collect();
    let plan = leader.pass(due, &servers, named.clone());
    assert_eq!(
        (plan.condemned.len(), plan.held_back.len()),
        (90, 0),
        "the other 40 are few enough by themselves"
    );
    leader.allowed = [BlockId(1)].into();
    let plan = leader.pass(due, &servers, named.clone());
    assert_eq!(plan.condemned, [orphan(1, &[1, 2])]);
    assert_eq!(plan.held_back.len(), 89);

    // A word is no reason to delete what became known.
    named.insert(0, owned(&run(1, 1, 1, &[1])));
    let plan = leader.pass(due, &servers, named);
    assert!(plan.condemned.is_empty() && !leader.unknown.contains(BlockId(1)));
}

#[test]
fn plans_are_bounded() {
    let (mut leader, due, servers, mut named) = after_the_grace(60, 400);
    leader.settings.max_condemned = 7;
    leader.settings.max_removals = 5;
    leader.settings.max_releases = 2;
    let reported = |range: std::ops::Range<u64>| {
        let blocks: Vec<u64> = range.collect();
        garbage(run(blocks[0], blocks.len() as u64, 1, &[1]), LONG_AGO, &[])
    };
    named[0].blocks.start = 101;
    named.insert(0, reported(61..101));
    let plan = leader.pass(due, &servers, named);
    assert_eq!((plan.condemned.len(), plan.removals.len()), (7, 5));
    assert_eq!(plan.counts.garbage_replicas, 80, "all are counted");
    let entries = (1..=5).map(|first| garbage(run(first, 1, 1, &[1]), LONG_AGO, &[]));
    let plan = leader.pass(due, &[holds(1, &[], &[])], entries.collect());
    assert_eq!(plan.releases, [BlockId(1), BlockId(2)]);
}

proptest! {
    /// Named blocks in random order of kinds, random reports, slices cut at random: what is planned is
    /// what looking at each block by itself says.
    #[test]
    fn each_block_is_judged_once(
        shapes in prop::collection::vec((1..5u64, 0..3u64, any::<bool>(), any::<bool>()), 0..12),
        held in prop::collection::vec(prop::collection::btree_map(0..70u64, any::<bool>(), 0..40), 1..5),
        alive in prop::collection::vec(prop::bool::weighted(0.8), 4),
        cuts in prop::collection::btree_set(1..60u64, 0..4),
    ) {
        let mut named = Vec::new();
        let mut next = 1;
        for (count, gap, is_garbage, fresh) in shapes {
            let run = run(next + gap, count, 1, &[1, 2]);
            next = run.first.0 + count;
            let since_ms = if fresh { REPORTED } else { LONG_AGO };
            named.push(if is_garbage { garbage(run, since_ms, &[]) } else { owned(&run) });
        }
        let next_block = next + 1;
        let servers: Vec<Reported> = held.iter().zip(&alive).zip(1..).map(|((held, alive), server)| {
            let of = |whole| held.iter().filter(move |(_, good)| **good == whole).map(|(block, _)| *block);
            Reported {
                alive: *alive,
                ..holds(server, &of(true).collect::<Vec<_>>(), &of(false).collect::<Vec<_>>())
            }
        }).collect();
        let holders = |block: u64| -> Vec<ServerId> {
            let alive = servers.iter().filter(|reported| reported.alive);
            let mut holders: Vec<_> = alive.clone().filter(|r| r.blocks.contains(&block)).map(|r| r.server).collect();
            holders.extend(alive.filter(|r| r.corrupt.contains(&block)).map(|r| r.server));
            holders
        };

        let settings = GcSettings { orphan_grace: Duration::ZERO, mass_delete_share: 1.0, ..SETTINGS };
        let census = Census::new(servers.clone());
        let (mut unknown, allowed) = (UnknownBlocks::default(), BTreeSet::new());
        let mut plan = GcPlan::default();
        // The second pass finds the grace of the first over.
        for _ in 0..2 {
            let mut gc = Gc::new(&census, settings, now(), &mut unknown, &allowed);
            // A cut that falls between records lies, as in the real thing, at the end of one.
            let mut ends: Vec<u64> = cuts.iter().copied().filter(|cut| named.iter().any(|part| {
                part.blocks.start < *cut && *cut <= part.blocks.end
            })).collect();
            ends.push(u64::MAX);
            let mut start = 0;
            for end in ends {
                let parts = named.iter().filter_map(|part| {
                    let blocks = part.blocks.start.max(start)..part.blocks.end.min(end);
                    (!blocks.is_empty()).then(|| Named { blocks, ..part.clone() })
                });
                let last = end == u64::MAX;
                gc.judge(&NamedSlice {
                    named: parts.collect(),
                    next_block,
                    next: (!last).then_some(BlockId(end)),
                });
                start = end;
            }
            plan = gc.finish();
        }

        let mut expected = GcPlan::default();
        for part in &named {
            let Some(garbage) = &part.garbage else { continue };
            expected.counts.garbage_runs += 1;
            let mut reported = false;
            for block in part.blocks.clone() {
                expected.counts.garbage_blocks += 1;
                for server in holders(block) {
                    reported = true;
                    expected.counts.garbage_replicas += 1;
                    expected.removals.push(Replica { server, block: BlockId(block) });
                }
            }
            // One block reaches one DataServer, several reach both.
            let reached = if garbage.garbage.run.count == 1 { 1 } else { 2 };
            let heard = (0..reached).all(|at| servers.get(at).is_some_and(|server| server.alive));
            if !reported && heard && garbage.garbage.since_ms == LONG_AGO {
                expected.releases.push(garbage.garbage.run.first);
            }
        }
        for block in (1..next_block).filter(|block| !named.iter().any(|part| part.blocks.contains(block))) {
            let holders = holders(block);
            if !holders.is_empty() {
                expected.condemned.push(Orphan { block: BlockId(block), holders: holders.clone() });
            }
            for server in holders {
                expected.strangers.entry(server).or_default().unknown += 1;
            }
        }
        for reported in servers.iter().filter(|reported| reported.alive) {
            let lists = reported.blocks.iter().chain(reported.corrupt.iter());
            let foreign = lists.filter(|block| **block == 0 || **block >= next_block).count() as u64;
            if foreign > 0 {
                expected.strangers.entry(reported.server).or_default().foreign = foreign;
            }
        }
        prop_assert_eq!(plan, expected);
    }
}
