//! What FSCK plans, case by case; [`random`] holds it against a second opinion on random clusters.

use super::super::census::testing::{down, holds, ids, run, silent};
use super::super::ids::InodeId;
use super::super::slices::RunPart;
use super::super::state::{BlockRun, OpenWrite, OwnedRun};
use super::*;

mod random;

const SETTINGS: FsckSettings = FsckSettings {
    settle: Duration::from_secs(5),
    max_copies: 10_000,
    max_moves: 10_000,
    max_surplus: 10_000,
};

/// Before every report of the tests, with a margin.
const LONG_AGO: i64 = 0;

fn written(run: BlockRun, at_ms: i64) -> OwnedRun {
    OwnedRun {
        inode: InodeId(7),
        run,
        write: WriteState::Written { at_ms },
    }
}

fn open(run: BlockRun) -> OwnedRun {
    let write = OpenWrite {
        since_ms: LONG_AGO,
        parent: InodeId::ROOT,
        name: "f".to_owned(),
        staged: false,
    };
    OwnedRun {
        write: WriteState::Open(write),
        ..written(run, LONG_AGO)
    }
}

fn whole(owned: OwnedRun) -> RunPart {
    let blocks = owned.run.first.0..owned.run.first.0 + owned.run.count;
    RunPart { owned, blocks }
}

fn plan_with(
    settings: FsckSettings,
    servers: Vec<Reported>,
    runs: Vec<OwnedRun>,
    moved: &[(u64, &[u32])],
) -> FsckPlan {
    let census = Census::new(servers);
    let mut fsck = Fsck::new(&census, settings);
    let slice = RunSlice {
        parts: runs.into_iter().map(whole).collect(),
        moved: moved
            .iter()
            .map(|(block, servers)| (BlockId(*block), ids(servers)))
            .collect(),
        next: None,
    };
    let mut open = OpenWrites::default();
    open.begin_pass();
    fsck.judge(&slice, &mut open, Instant::now());
    fsck.finish()
}

/// The plan for one block, 5, on the DataServers 1 to 3.
fn plan(servers: Vec<Reported>) -> FsckPlan {
    plan_with(
        SETTINGS,
        servers,
        vec![written(run(5, 1, 3, &[1, 2, 3]), LONG_AGO)],
        &[],
    )
}

fn copy(to: u32, from: &[u32]) -> Copy {
    Copy {
        block: BlockId(5),
        to: ServerId(to),
        from: ids(from),
    }
}

fn moving(from: u32, to: u32) -> Move {
    Move {
        block: BlockId(5),
        from: ServerId(from),
        to: ServerId(to),
    }
}

fn removing(server: u32) -> Replica {
    Replica {
        server: ServerId(server),
        block: BlockId(5),
    }
}

/// With the block, healthy.
fn has(server: u32) -> Reported {
    holds(server, &[5], &[])
}

/// Without it.
fn lacks(server: u32) -> Reported {
    holds(server, &[], &[])
}

/// With a damaged one.
fn damaged(server: u32) -> Reported {
    holds(server, &[], &[5])
}

#[test]
fn one_block_case_by_case() {
    let full = |server| Reported {
        takes_blocks: false,
        ..lacks(server)
    };
    let returning = |server| Reported {
        status: ServerStatus::Unhealthy,
        takes_blocks: false,
        ..lacks(server)
    };
    type Case = (&'static str, Vec<Reported>, Vec<Copy>, Vec<Move>, Vec<Replica>);
    let cases: Vec<Case> = vec![
        (
            "all there",
            vec![has(1), has(2), has(3), lacks(4)],
            vec![],
            vec![],
            vec![],
        ),
        (
            "lost",
            vec![has(1), has(2), lacks(3), lacks(4)],
            vec![copy(3, &[1, 2])],
            vec![],
            vec![],
        ),
        (
            "damaged",
            vec![has(1), damaged(2), has(3)],
            vec![copy(2, &[1, 3])],
            vec![],
            vec![],
        ),
        (
            "lost twice",
            vec![lacks(1), has(2), lacks(3)],
            vec![copy(1, &[2]), copy(3, &[2])],
            vec![],
            vec![],
        ),
        (
            "all lost",
            vec![lacks(1), lacks(2), lacks(3), lacks(4)],
            vec![],
            vec![],
            vec![],
        ),
        (
            "only damaged ones",
            vec![damaged(1), lacks(2), down(3), damaged(4)],
            vec![],
            vec![],
            vec![],
        ),
        (
            "silent",
            vec![has(1), has(2), silent(3, &[5]), lacks(4)],
            vec![],
            vec![],
            vec![],
        ),
        (
            "down",
            vec![has(1), has(2), down(3), lacks(4)],
            vec![copy(4, &[1, 2])],
            vec![],
            vec![],
        ),
        (
            "down, nowhere to go",
            vec![has(1), has(2), down(3)],
            vec![],
            vec![],
            vec![],
        ),
        (
            "down, nowhere with room",
            vec![has(1), has(2), down(3), full(4)],
            vec![],
            vec![],
            vec![],
        ),
        (
            "down, and the copy has come",
            vec![has(1), has(2), down(3), has(4), lacks(5)],
            vec![],
            vec![moving(3, 4)],
            vec![],
        ),
        (
            "back after the copy came, before the record moved",
            vec![has(1), has(2), has(3), has(4)],
            vec![],
            vec![],
            vec![removing(4)],
        ),
        (
            "a good one elsewhere serves as well as a copy",
            vec![has(1), lacks(2), has(3), has(4)],
            vec![],
            vec![moving(2, 4)],
            vec![],
        ),
        (
            "what is down is replaced first",
            vec![lacks(1), damaged(2), down(3), has(4)],
            vec![copy(2, &[4]), copy(1, &[4])],
            vec![moving(3, 4)],
            vec![],
        ),
        (
            "surplus, the damaged one first",
            vec![has(1), has(2), has(3), has(4), damaged(5)],
            vec![],
            vec![],
            vec![removing(5), removing(4)],
        ),
        (
            "no surplus goes while one is silent",
            vec![has(1), has(2), silent(3, &[5]), has(4), has(5)],
            vec![],
            vec![],
            vec![],
        ),
        (
            "nor while one is missing: damaged ones may be the last to rescue",
            vec![has(1), has(2), lacks(3), damaged(4)],
            vec![copy(3, &[1, 2])],
            vec![],
            vec![],
        ),
        (
            "a full disk sends the copy elsewhere",
            vec![has(1), has(2), full(3), lacks(4)],
            vec![copy(4, &[1, 2])],
            vec![],
            vec![],
        ),
        (
            "one that has just come back is waited for",
            vec![has(1), has(2), returning(3), lacks(4)],
            vec![],
            vec![],
            vec![],
        ),
        (
            "a damaged replica in a wrong place is written over if nobody else can",
            vec![has(1), has(2), down(3), damaged(4)],
            vec![copy(4, &[1, 2])],
            vec![],
            vec![],
        ),
        (
            "but others come first",
            vec![has(1), has(2), down(3), damaged(4), lacks(5)],
            vec![copy(5, &[1, 2])],
            vec![],
            vec![],
        ),
    ];
    for (what, servers, copies, moves, surplus) in cases {
        let plan = plan(servers);
        assert_eq!(plan.copies, copies, "{what}");
        assert_eq!(plan.moves, moves, "{what}");
        assert_eq!(plan.surplus, surplus, "{what}");
    }
}

#[test]
fn silence_counts_only_from_reports_that_are_younger_than_the_write() {
    let reported = 1_000_000;
    for (at_ms, judged) in [
        (LONG_AGO, true),
        (reported - 5_001, true),
        (reported - 5_000, false),
        (reported, false),
        (reported + 1_000, false),
        (i64::MAX, false),
    ] {
        let owned = written(run(5, 1, 3, &[1, 2, 3]), at_ms);
        let servers = vec![has(1), has(2), lacks(3)];
        let plan = plan_with(SETTINGS, servers, vec![owned.clone()], &[]);
        assert_eq!(plan.copies.len(), usize::from(judged), "written at {at_ms}");
        assert_eq!(plan.counts.unsettled, u64::from(!judged));
        assert_eq!(plan.counts.under_replicated, u64::from(judged));

        // What is there needs no such proof.
        let plan = plan_with(SETTINGS, vec![has(1), has(2), has(3), has(4)], vec![owned], &[]);
        assert_eq!(plan.surplus, [removing(4)]);
    }
    let unheard = Reported {
        reported_ms: None,
        ..lacks(3)
    };
    for servers in [vec![has(1), has(2), unheard], vec![has(1), has(2)]] {
        let plan = plan(servers);
        assert_eq!((plan.copies.len(), plan.counts.unsettled), (0, 1));
    }
}

#[test]
fn the_fewest_survivors_come_first_and_a_bound_keeps_them() {
    let runs: Vec<_> = (1..=30)
        .map(|first| written(run(first, 1, 3, &[1, 2, 3]), LONG_AGO))
        .collect();
    // Blocks 10, 20 and 30 have one replica left, the others two.
    let all: Vec<u64> = (1..=30).collect();
    let most: Vec<u64> = (1..=30).filter(|block| block % 10 != 0).collect();
    let servers = || vec![holds(1, &all, &[]), holds(2, &most, &[]), lacks(3)];
    let blocks = |plan: &FsckPlan| {
        let blocks = plan.copies.iter().map(|copy| copy.block.0);
        blocks.collect::<Vec<_>>()
    };
    let plan = plan_with(SETTINGS, servers(), runs.clone(), &[]);
    let mut expected = vec![10, 10, 20, 20, 30, 30];
    expected.extend(&most);
    assert_eq!(blocks(&plan), expected);
    let bounded = FsckSettings {
        max_copies: 7,
        ..SETTINGS
    };
    let plan = plan_with(bounded, servers(), runs, &[]);
    assert_eq!(blocks(&plan), expected[..7]);
}

#[test]
fn what_cannot_be_done_keeps_no_place_from_what_can() {
    // Block 1 has one replica and nowhere to go; block 2 has two and lost one in place.
    let servers = vec![holds(1, &[1, 2], &[]), holds(2, &[1, 2], &[]), down(3), lacks(4)];
    let bounded = FsckSettings {
        max_copies: 1,
        ..SETTINGS
    };
    let runs = vec![
        written(run(1, 1, 4, &[1, 2, 3, 4]), LONG_AGO),
        written(run(2, 1, 3, &[1, 2, 4]), LONG_AGO),
    ];
    let servers: Vec<_> = servers
        .into_iter()
        .map(|mut reported| {
            if reported.server == ServerId(4) {
                reported.blocks = [1].as_slice().into();
            }
            reported
        })
        .collect();
    let plan = plan_with(bounded, servers, runs, &[]);
    let expected = Copy {
        block: BlockId(2),
        to: ServerId(4),
        from: ids(&[1, 2]),
    };
    assert_eq!(plan.copies, [expected]);
    assert_eq!(plan.counts.homeless, 1);
}

#[test]
fn moves_and_removals_are_bounded() {
    let all: Vec<u64> = (1..=10).collect();
    let bounded = FsckSettings {
        max_moves: 3,
        max_surplus: 4,
        ..SETTINGS
    };
    let runs = |servers: &[u32]| {
        let run = |first| written(run(first, 1, 2, servers), LONG_AGO);
        (1..=10).map(run).collect::<Vec<_>>()
    };
    let servers = || {
        vec![
            holds(1, &all, &[]),
            holds(2, &all, &[]),
            holds(3, &all, &[]),
            down(4),
        ]
    };
    let plan = plan_with(bounded, servers(), runs(&[1, 2]), &[]);
    assert_eq!((plan.moves.len(), plan.surplus.len()), (0, 4));
    let plan = plan_with(bounded, servers(), runs(&[1, 4]), &[]);
    assert_eq!((plan.moves.len(), plan.surplus.len()), (3, 0));
    assert_eq!(
        plan.copies,
        [],
        "a record that is not corrected yet needs no copy"
    );
}

#[test]
fn copies_spread_over_targets_and_sources() {
    let all: Vec<u64> = (1..=90).collect();
    let with_space = |server, free_space| Reported {
        free_space,
        ..lacks(server)
    };
    let servers = vec![
        holds(1, &all, &[]),
        holds(2, &all, &[]),
        down(3),
        with_space(4, 10),
        with_space(5, 30),
        with_space(6, 20),
    ];
    let runs = (1..=90).map(|first| written(run(first, 1, 3, &[1, 2, 3]), LONG_AGO));
    let plan = plan_with(SETTINGS, servers, runs.collect(), &[]);
    let mut targets: BTreeMap<u32, usize> = BTreeMap::new();
    let mut sources: BTreeMap<u32, usize> = BTreeMap::new();
    for copy in &plan.copies {
        *targets.entry(copy.to.0).or_default() += 1;
        *sources.entry(copy.from[0].0).or_default() += 1;
    }
    assert_eq!(targets, [(4, 30), (5, 30), (6, 30)].into());
    assert_eq!(sources, [(1, 45), (2, 45)].into());
    assert_eq!(plan.copies[0].to, ServerId(5), "the most space first");
}

#[test]
fn open_runs_are_watched_and_not_judged() {
    let census = Census::new(vec![holds(1, &[4, 5, 6], &[7]), lacks(2), lacks(3)]);
    let mut fsck = Fsck::new(&census, SETTINGS);
    let owned = open(run(5, 4, 3, &[1, 2, 3]));
    let mut writes = OpenWrites::default();
    let start = Instant::now();
    let lease = Duration::from_secs(10);
    writes.begin_pass();
    for blocks in [5..7, 7..9] {
        let slice = RunSlice {
            parts: vec![RunPart {
                owned: owned.clone(),
                blocks,
            }],
            ..RunSlice::default()
        };
        fsck.judge(&slice, &mut writes, start);
    }
    assert_eq!(writes.end_pass(lease, start), []);
    let counts = FsckCounts {
        open_writes: 1,
        ..FsckCounts::default()
    };
    let expected = FsckPlan {
        counts,
        ..FsckPlan::default()
    };
    assert_eq!(fsck.finish(), expected);
    // Three replicas were seen: a fourth is progress, and none is not.
    for (replicas, abandoned) in [(3, vec![BlockId(5)]), (4, vec![])] {
        writes.begin_pass();
        writes.see(BlockId(5), replicas, start + lease);
        assert_eq!(writes.end_pass(lease, start + lease), abandoned);
    }
}

/// How long a pass over a large cluster takes: 1,000 DataServers of 10,000 blocks, each a file of its own.
/// Run with `cargo test --release --lib a_large_cluster -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn a_large_cluster_takes_seconds() {
    use super::super::gc::{Gc, GcSettings, Now, UnknownBlocks};
    use super::super::slices::{Named, NamedSlice};

    const SERVERS: u32 = 1_000;
    const BLOCKS: u64 = 10_000 * SERVERS as u64 / 3;
    let mut lists = vec![Vec::new(); SERVERS as usize];
    let servers_of = |block: u64| {
        let first = (block * 7 % u64::from(SERVERS)) as u32;
        [0, 1, 2].map(|j| (first + j) % SERVERS + 1)
    };
    for block in 1..=BLOCKS {
        for server in servers_of(block) {
            lists[server as usize - 1].push(block);
        }
    }
    let servers = lists.into_iter().zip(1..).map(|(blocks, server)| match server {
        17 => down(server),
        _ => holds(server, &blocks, &[]),
    });
    let census = Census::new(servers.collect());
    let slices: Vec<RunSlice> = (1..=BLOCKS)
        .collect::<Vec<_>>()
        .chunks(2_000)
        .map(|chunk| RunSlice {
            parts: chunk
                .iter()
                .map(|block| whole(written(run(*block, 1, 3, &servers_of(*block)), LONG_AGO)))
                .collect(),
            ..RunSlice::default()
        })
        .collect();

    let begun = Instant::now();
    let mut fsck = Fsck::new(&census, SETTINGS);
    let mut open = OpenWrites::default();
    for slice in &slices {
        fsck.judge(slice, &mut open, begun);
    }
    let plan = fsck.finish();
    println!("fsck: {:?} for {:?}", begun.elapsed(), plan.counts);
    assert_eq!(plan.counts.blocks, BLOCKS);
    assert_eq!(
        plan.copies.len(),
        plan.counts.under_replicated.min(10_000) as usize
    );

    let begun = Instant::now();
    let (mut unknown, allowed) = (UnknownBlocks::default(), std::collections::BTreeSet::new());
    let settings = GcSettings {
        heard_margin: Duration::from_secs(15),
        orphan_grace: Duration::from_secs(7200),
        mass_delete_share: 0.2,
        max_removals: 1,
        max_releases: 1,
        max_condemned: 1,
    };
    let now = Now {
        instant: begun,
        unix_ms: 1_000_000,
    };
    let mut gc = Gc::new(&census, settings, now, &mut unknown, &allowed);
    for slice in &slices {
        let named = slice.parts.iter().map(|part| Named {
            blocks: part.blocks.clone(),
            garbage: None,
        });
        gc.judge(&NamedSlice {
            named: named.collect(),
            next_block: BLOCKS + 1,
            next: Some(BlockId(1)),
        });
    }
    println!("gc: {:?} for {:?}", begun.elapsed(), gc.finish().counts);
}
