//! Passes of FSCK: when they begin, and what leaves.

use super::super::messages::FsckSummary;
use super::super::passes::{Cancel, NoPass, Running, for_each_slice};
use super::*;
use crate::actors::data_servers::messages::{Removal, Repair};

/// A file of one block on DataServers 1 and 2, of which 2 has lost it; 3 is empty.
async fn one_replica_lost() -> House {
    let house = House::leading(settings(), 3).await;
    let run = house.write("/f", 1, &[1, 2]);
    assert_eq!(run.first, BlockId(1));
    house.reports(1, &[1]);
    house
}

fn repair(to: u32) -> RepairReplicas {
    RepairReplicas {
        term: 1,
        generation: 0,
        repairs: vec![Repair {
            block: BlockId(1),
            to: ServerId(to),
            from: ids(&[1]),
        }],
        surplus: vec![],
    }
}

async fn summary(house: &House) -> Option<FsckSummary> {
    house.actor.send(GetUpkeepStatus).await.unwrap().fsck
}

#[actix::test]
async fn a_lost_replica_is_ordered_again() {
    let mut house = one_replica_lost().await;
    house.fsck().await;
    assert_eq!(house.repairs().await, [repair(2)]);
    house.nothing_left("and nothing else").await;
    let counts = summary(&house).await.unwrap().counts;
    assert_eq!((counts.blocks, counts.under_replicated), (1, 1));
}

#[actix::test]
async fn nothing_leaves_before_the_reports_are_complete() {
    let mut house = one_replica_lost().await;
    house.told.borrow_mut().complete = false;
    house.fsck().await;
    house.gc().await;
    house.nothing_left("reports are missing").await;
    assert_eq!(summary(&house).await, None);
    house.told.borrow_mut().complete = true;
    house.fsck().await;
    assert_eq!(house.repairs().await, [repair(2)]);
}

#[actix::test]
async fn nothing_leaves_before_everything_committed_is_applied_and_a_majority_says_so() {
    let mut house = one_replica_lost().await;
    let applied = house
        .state
        .reader()
        .read(|view| view.progress())
        .unwrap()
        .applied
        .unwrap()
        .index;
    for answer in [
        Ok(applied + 1),
        Err(ReadError::NoLeader(None)),
        Err(ReadError::Unavailable("stopping".to_owned())),
    ] {
        *house.index.borrow_mut() = answer;
        house.fsck().await;
        house.gc().await;
        house.nothing_left("not confirmed").await;
    }
    *house.index.borrow_mut() = Ok(applied);
    house.fsck().await;
    assert_eq!(house.repairs().await, [repair(2)]);
}

#[actix::test]
async fn followers_do_nothing() {
    let mut house = one_replica_lost().await;
    house.becomes(2, Role::Follower).await;
    house.fsck().await;
    house.gc().await;
    house.actor.send(NewsDue).await.unwrap();
    house.nothing_left("this node follows").await;
    assert!(house.reports.so_far().await.is_empty());
    assert_eq!(
        house.actor.send(GetUpkeepStatus).await.unwrap(),
        UpkeepStatus::default()
    );
}

#[actix::test]
async fn what_was_found_in_one_term_is_not_acted_on_in_another() {
    for next in [Role::Follower, Role::Leader] {
        let mut house = one_replica_lost().await;
        house.confirms.forget_permits(Semaphore::MAX_PERMITS);
        house.actor.send(FsckDue).await.unwrap();
        house.actor.send(GcDue).await.unwrap();
        house.read_index.next().await;
        house.read_index.next().await;
        house.becomes(2, next).await;
        house.confirms.add_permits(2);
        house.idle().await;
        house.nothing_left("the term is over").await;
        assert_eq!(
            house.actor.send(GetUpkeepStatus).await.unwrap(),
            UpkeepStatus::default()
        );
    }
}

#[actix::test]
async fn one_pass_at_a_time() {
    let mut house = one_replica_lost().await;
    house.confirms.forget_permits(Semaphore::MAX_PERMITS);
    for _ in 0..3 {
        house.actor.send(FsckDue).await.unwrap();
    }
    house.read_index.next().await;
    house.actor.send(NewsDue).await.unwrap();
    house.confirms.add_permits(100);
    house.idle().await;
    assert_eq!(house.repair.so_far().await.len(), 1);
}

#[actix::test]
async fn the_record_moves_once_the_copy_is_reported() {
    let mut house = one_replica_lost().await;
    house.loses(2);
    house.fsck().await;
    assert_eq!(house.repairs().await, [repair(3)]);
    assert_eq!(house.proposed().await, [], "not before");
    let moved = |house: &House| house.state.reader().read(|view| view.moved(BlockId(1))).unwrap();
    assert_eq!(moved(&house), None);

    house.reports(3, &[1]);
    house.fsck().await;
    let op = Op::MoveReplica {
        block: BlockId(1),
        from: ServerId(2),
        to: ServerId(3),
    };
    assert_eq!(house.proposed().await, [op]);
    assert_eq!(moved(&house), Some(ids(&[1, 3])));
    let nothing = RepairReplicas {
        term: 1,
        ..RepairReplicas::default()
    };
    assert_eq!(house.repairs().await, std::slice::from_ref(&nothing));

    // The lost one comes back with its block: it is one too many by now.
    house.change(2, |report| {
        (report.status, report.alive) = (ServerStatus::Healthy, true)
    });
    house.reports(2, &[1]);
    house.fsck().await;
    let surplus = vec![Removal {
        server: ServerId(2),
        block: BlockId(1),
    }];
    assert_eq!(house.repairs().await, [RepairReplicas { surplus, ..nothing }]);
}

#[actix::test]
async fn a_plan_names_the_reports_that_it_was_made_from() {
    let mut house = one_replica_lost().await;
    for server in 1..=3 {
        house.reports(server, &[1]);
    }
    let planned_from = house.told.borrow().generation;
    house.confirms.forget_permits(Semaphore::MAX_PERMITS);
    house.actor.send(FsckDue).await.unwrap();
    house.read_index.next().await;
    // The pass has its reports by now.
    house.reports(2, &[]);
    house.confirms.add_permits(1);
    house.idle().await;
    let orders = house.repair.so_far().await;
    assert_eq!(orders.len(), 1);
    assert_eq!(orders[0].generation, planned_from);
    assert_ne!(house.told.borrow().generation, planned_from);
}

#[actix::test]
async fn proposals_stop_with_the_leadership_and_with_the_first_that_has_no_answer() {
    for fails in [false, true] {
        let mut house = one_replica_lost().await;
        house.gate.forget_permits(1 << 20);
        house.write("/many", 199, &[1, 2]);
        let all: Vec<u64> = (1..=200).collect();
        house.reports(1, &all);
        house.reports(3, &all);
        house.loses(2);
        house.actor.send(FsckDue).await.unwrap();
        for _ in 0..64 {
            house.next_proposal().await;
        }
        assert_eq!(house.proposed().await, [], "so many at a time");
        if fails {
            house
                .answers
                .borrow_mut()
                .push_back(ProposeError::Unknown("lost".to_owned()));
        } else {
            house.becomes(2, Role::Follower).await;
        }
        house.gate.add_permits(1);
        house.idle().await;
        house.gate.add_permits(1000);
        assert!(house.proposed().await.len() <= 1, "the rest is for another pass");
    }
}

#[actix::test]
async fn abandoned_writes_are_freed() {
    let mut house = House::leading(
        SchedulerSettings {
            write_lease: Duration::ZERO,
            ..settings()
        },
        2,
    )
    .await;
    let written = house.write("/written", 1, &[1, 2]);
    let open: Vec<BlockId> = (0..300)
        .map(|n| house.allocate(&format!("/{n}"), 1, &[1, 2]).first)
        .collect();
    house.reports(1, &[written.first.0]);
    house.reports(2, &[written.first.0]);
    house.fsck().await;
    assert_eq!(summary(&house).await.unwrap().counts.open_writes, 300);
    let abandon = |runs: &[BlockId]| Op::AbandonWrites { runs: runs.to_vec() };
    assert_eq!(
        house.proposed().await,
        [abandon(&open[..256]), abandon(&open[256..])]
    );
    house.fsck().await;
    assert_eq!(house.proposed().await, [], "they are garbage by now");
    assert_eq!(summary(&house).await.unwrap().counts.open_writes, 0);
}

#[actix::test]
async fn news_bring_a_pass_before_its_time() {
    let mut house = House::leading(
        SchedulerSettings {
            look_interval: Duration::from_millis(1),
            ..settings()
        },
        3,
    )
    .await;
    house.write("/f", 1, &[1, 2]);
    // The first pass of a leader comes when its reports are complete.
    house.told.borrow_mut().complete = false;
    for _ in 0..10 {
        house.reports.next().await;
    }
    house.idle().await;
    house.repair.so_far().await;
    let was_ordered = |orders: &RepairReplicas| !orders.repairs.is_empty();
    {
        let mut told = house.told.borrow_mut();
        told.complete = true;
        told.servers[0].blocks = [1].into();
        told.servers[1].blocks = [1].into();
    }
    assert!(!was_ordered(&house.repair.next().await));
    house.idle().await;
    // Without news there is no other.
    house.reports.so_far().await;
    for _ in 0..20 {
        house.reports.next().await;
    }
    assert_eq!(house.repair.so_far().await, []);
    house.reports(2, &[]);
    assert!(was_ordered(&house.repair.next().await));
}

#[test]
fn a_cancelled_pass_ends_after_its_slice() {
    let mut seen = Vec::new();
    for_each_slice(&Cancel::default(), |from| {
        seen.push(from.0);
        Ok((from.0 < 4).then_some(BlockId(from.0 + 1)))
    })
    .unwrap();
    assert_eq!(seen, [1, 2, 3, 4]);

    let (running, cancel) = Running::new(1);
    let mut running = Some(running);
    let mut slices = 0;
    let end = for_each_slice(&cancel, |from| {
        slices += 1;
        // As when the actor is dropped while its pass is under way.
        drop(running.take());
        Ok(Some(from))
    });
    assert!(matches!(end, Err(NoPass::Cancelled)));
    assert_eq!(slices, 1);
}
