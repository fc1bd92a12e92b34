//! Passes of garbage collection: what is deleted, released, condemned and held back.

use super::super::messages::{AllowMassDelete, GcSummary};
use super::*;
use crate::actors::data_servers::messages::Removal;
use crate::domain::command::Orphan;
use crate::domain::gc::Strangers;
use crate::domain::state::GarbageReason;

fn removals(replicas: &[(u32, u64)]) -> RemoveGarbage {
    let removal = |&(server, block): &(u32, u64)| Removal {
        server: ServerId(server),
        block: BlockId(block),
    };
    RemoveGarbage {
        term: 1,
        replicas: replicas.iter().map(removal).collect(),
    }
}

async fn summary(house: &House) -> GcSummary {
    let status = house.actor.send(GetUpkeepStatus).await.unwrap();
    status.gc.expect("a pass is complete")
}

/// Reports count from one second after what they must have seen.
fn soon() -> SchedulerSettings {
    SchedulerSettings {
        heartbeat_timeout: Duration::from_secs(1),
        ..settings()
    }
}

#[actix::test]
async fn garbage_is_deleted_until_nobody_reports_it_and_then_forgotten() {
    let mut house = House::leading(soon(), 3).await;
    house.write("/f", 2, &[1, 2]);
    house.reports(1, &[1, 2]);
    house.reports(2, &[1, 2]);
    house.gc().await;
    assert_eq!(house.remove.so_far().await, [removals(&[])], "a file owns them");

    house.delete("/f");
    house.gc().await;
    let all = removals(&[(1, 1), (2, 1), (1, 2), (2, 2)]);
    assert_eq!(house.remove.so_far().await, [all]);
    let counts = summary(&house).await.counts;
    let counted = (
        counts.garbage_runs,
        counts.garbage_blocks,
        counts.garbage_replicas,
    );
    assert_eq!(counted, (1, 2, 4));

    house.reports(1, &[]);
    house.reports(2, &[2]);
    house.gc().await;
    assert_eq!(house.remove.so_far().await, [removals(&[(2, 2)])]);
    // Nobody reports it, but one has not been heard since.
    house.reports(2, &[]);
    house.change(2, |report| report.reported_ms = Some(1_700_000_000_000));
    house.gc().await;
    house.change(2, |report| report.reported_ms = None);
    house.gc().await;
    assert_eq!(house.proposed().await, []);

    house.change(2, |report| report.reported_ms = Some(1_700_000_100_000));
    house.gc().await;
    let release = Op::ReleaseGarbage {
        runs: vec![BlockId(1)],
    };
    assert_eq!(house.proposed().await, [release]);
    house.gc().await;
    assert_eq!(house.proposed().await, []);
    assert_eq!(summary(&house).await.counts.garbage_runs, 0);
}

#[actix::test]
async fn releases_go_out_in_batches() {
    let mut house = House::leading(soon(), 2).await;
    for n in 0..600 {
        house.allocate(&format!("/{n}"), 1, &[1, 2]);
        house.delete(&format!("/{n}"));
    }
    house.gc().await;
    let sizes = house.proposed().await.into_iter().map(|op| match op {
        Op::ReleaseGarbage { runs } => runs.len(),
        other => panic!("{other:?}"),
    });
    assert_eq!(sizes.collect::<Vec<_>>(), [512, 88]);
}

fn no_grace() -> SchedulerSettings {
    SchedulerSettings {
        orphan_grace: Duration::ZERO,
        ..soon()
    }
}

/// A leader whose DataServer 1 holds `unknown` blocks that were forgotten, and 100 that a file owns; the
/// grace is over for all of them.
async fn with_unknown_blocks(unknown: u64) -> House {
    let mut house = House::leading(no_grace(), 2).await;
    house.allocate("/gone", unknown, &[1, 2]);
    house.delete("/gone");
    let release = Op::ReleaseGarbage {
        runs: vec![BlockId(1)],
    };
    house.state.apply(release).unwrap();
    house.write("/f", 100, &[1, 2]);
    let all: Vec<u64> = (1..=unknown + 100).collect();
    house.reports(1, &all);
    house.reports(2, &all[unknown as usize..]);
    // Seen for the first time, which is when the grace begins.
    house.gc().await;
    assert_eq!(house.proposed().await, []);
    assert_eq!(house.remove.so_far().await, [removals(&[])]);
    house
}

#[actix::test]
async fn unknown_blocks_get_a_record_and_are_deleted_because_of_it() {
    let mut house = with_unknown_blocks(2).await;
    house.gc().await;
    let orphan = |block| Orphan {
        block: BlockId(block),
        holders: ids(&[1]),
    };
    let condemn = Op::Condemn {
        orphans: vec![orphan(1), orphan(2)],
    };
    assert_eq!(house.proposed().await, [condemn]);
    assert_eq!(
        house.remove.so_far().await,
        [removals(&[])],
        "nothing is deleted without it"
    );
    let garbage = house
        .state
        .reader()
        .read(|view| view.garbage(BlockId(1)))
        .unwrap();
    assert_eq!(garbage.unwrap().reason, GarbageReason::Orphaned);
    house.gc().await;
    assert_eq!(house.remove.so_far().await, [removals(&[(1, 1), (1, 2)])]);
}

#[actix::test]
async fn another_term_waits_for_the_grace_anew() {
    let mut house = with_unknown_blocks(2).await;
    house.becomes(2, Role::Leader).await;
    house.gc().await;
    assert_eq!(house.proposed().await, []);
}

#[actix::test]
async fn a_mass_delete_waits_for_an_operators_word() {
    let mut house = with_unknown_blocks(90).await;
    for _ in 0..2 {
        house.gc().await;
        assert_eq!(house.proposed().await, []);
    }
    let found = summary(&house).await;
    assert_eq!(found.counts.held_back, 90);
    let strangers = Strangers {
        unknown: 90,
        held_back: 90,
        foreign: 0,
    };
    assert_eq!(found.strangers, [(ServerId(1), strangers)].into());

    house.remove.so_far().await;
    assert_eq!(house.actor.send(AllowMassDelete).await.unwrap(), 90);
    assert_eq!(
        house.actor.send(AllowMassDelete).await.unwrap(),
        0,
        "nothing else is held back"
    );
    match house.next_proposal().await {
        Op::Condemn { orphans } => assert_eq!(orphans.len(), 90, "at once"),
        other => panic!("{other:?}"),
    }
    house.idle().await;
    house.remove.so_far().await;
    // What was condemned is deleted without waiting for the clock.
    house.actor.send(NewsDue).await.unwrap();
    house.idle().await;
    assert_eq!(
        house.remove.so_far().await,
        [],
        "not within a look of the last pass"
    );
    house.gc().await;
    assert_eq!(house.remove.so_far().await[0].replicas.len(), 90);
    assert_eq!(summary(&house).await.counts.held_back, 0);
}

#[actix::test]
async fn a_word_that_comes_during_a_pass_counts_for_the_next() {
    let mut house = with_unknown_blocks(90).await;
    house.gc().await;
    house.confirms.forget_permits(Semaphore::MAX_PERMITS);
    house.read_index.so_far().await;
    house.actor.send(GcDue).await.unwrap();
    house.read_index.next().await;
    assert_eq!(house.actor.send(AllowMassDelete).await.unwrap(), 90);
    house.confirms.add_permits(100);
    house.idle().await;
    assert_eq!(house.proposed().await, [], "this one began without it");
    assert_eq!(house.actor.send(AllowMassDelete).await.unwrap(), 0);
    house.gc().await;
    assert!(matches!(&house.proposed().await[..], [Op::Condemn { orphans }] if orphans.len() == 90));
}

#[actix::test]
async fn a_word_without_anything_held_back_or_without_the_lead_allows_nothing() {
    let house = with_unknown_blocks(2).await;
    assert_eq!(house.actor.send(AllowMassDelete).await.unwrap(), 0);
    let mut house = with_unknown_blocks(90).await;
    house.gc().await;
    house.becomes(2, Role::Follower).await;
    assert_eq!(house.actor.send(AllowMassDelete).await.unwrap(), 0);
    house.becomes(3, Role::Leader).await;
    house.gc().await;
    house.gc().await;
    assert_eq!(house.proposed().await, [], "an old word counts for nothing");
}

#[actix::test]
async fn a_new_leader_and_condemned_blocks_bring_a_pass_before_its_time() {
    let mut house = House::leading(
        SchedulerSettings {
            look_interval: Duration::from_millis(1),
            ..no_grace()
        },
        2,
    )
    .await;
    let run = house.allocate("/gone", 1, &[1, 2]);
    assert_eq!(run.first, BlockId(1));
    house.delete("/gone");
    let release = Op::ReleaseGarbage {
        runs: vec![BlockId(1)],
    };
    house.state.apply(release).unwrap();
    house.reports(1, &[1]);
    assert_eq!(house.remove.next().await, removals(&[]));
    house.idle().await;
    house.reports.so_far().await;
    for _ in 0..20 {
        house.reports.next().await;
    }
    assert_eq!(house.remove.so_far().await, [], "one pass is enough");

    house.actor.send(GcDue).await.unwrap();
    assert_eq!(house.remove.next().await, removals(&[]), "the record comes first");
    assert_eq!(
        house.remove.next().await,
        removals(&[(1, 1)]),
        "and is acted on at once"
    );
}
