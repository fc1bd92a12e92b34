//! The reclaiming of deleted directories.

use super::*;

use super::super::reclaim::RECLAIM_LIMIT;

const RECLAIM: Op = Op::Reclaim { limit: RECLAIM_LIMIT };

/// A tree that takes four commands.
const FILES: u64 = 3 * RECLAIM_LIMIT as u64 + 100;

#[actix::test]
async fn followers_reclaim_nothing() {
    let mut house = House::new(settings());
    house.delete_a_tree(1);
    house.becomes(1, Role::Follower).await;
    house.actor.send(ReclaimDue).await.unwrap();
    assert!(house.raft.so_far().await.is_empty());
}

#[actix::test]
async fn a_deleted_tree_is_reclaimed_to_the_end_one_command_at_a_time() {
    let mut house = House::new(settings());
    house.becomes(1, Role::Leader).await;
    house.actor.send(ReclaimDue).await.unwrap();
    assert!(house.raft.so_far().await.is_empty(), "nothing to do");

    house.delete_a_tree(FILES as usize);
    house.gate.add_permits(3);
    house.actor.send(ReclaimDue).await.unwrap();
    for _ in 0..4 {
        assert_eq!(house.next_proposal().await, RECLAIM);
        house.actor.send(ReclaimDue).await.unwrap();
    }
    assert!(
        house.raft.so_far().await.is_empty(),
        "the fourth is still on its way"
    );
    assert_eq!(house.inodes(), 1 + 1 + FILES - 3 * u64::from(RECLAIM_LIMIT));
    house.gate.add_permits(1);
    wait_until("all records are freed", || house.inodes() == 1).await;
    house.actor.send(ReclaimDue).await.unwrap();
    assert!(house.raft.so_far().await.is_empty(), "nothing is left");
}

#[actix::test]
async fn reclaiming_stops_with_the_leadership_and_goes_on_with_the_next() {
    let mut house = House::new(settings());
    house.delete_a_tree(FILES as usize);
    house.becomes(1, Role::Leader).await;
    assert_eq!(
        house.next_proposal().await,
        RECLAIM,
        "a new leader begins at once"
    );
    house.becomes(2, Role::Follower).await;
    house.gate.add_permits(100);
    while house.actor.send(Busy).await.unwrap().reclaiming {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        house.inodes(),
        1 + 1 + FILES - u64::from(RECLAIM_LIMIT),
        "what was on its way, and no more"
    );
    assert!(house.raft.so_far().await.is_empty());

    house.becomes(3, Role::Leader).await;
    wait_until("all records are freed", || house.inodes() == 1).await;
}

#[actix::test]
async fn a_failed_reclaim_is_tried_again_at_the_next_tick() {
    let mut house = House::new(SchedulerSettings {
        look_interval: Duration::from_millis(1),
        ..settings()
    });
    house.delete_a_tree(1);
    house
        .answers
        .borrow_mut()
        .extend([ProposeError::Overloaded, ProposeError::Unknown("lost".to_owned())]);
    house.gate.add_permits(100);
    house.becomes(1, Role::Leader).await;
    for _ in 0..3 {
        assert_eq!(house.next_proposal().await, RECLAIM);
    }
    wait_until("all records are freed", || house.inodes() == 1).await;
}

#[actix::test]
async fn a_deleted_tree_is_found_within_a_look_whatever_gc_waits_for() {
    let mut house = House::new(SchedulerSettings {
        look_interval: Duration::from_millis(1),
        ..settings()
    });
    house.becomes(1, Role::Leader).await;
    house.gate.add_permits(100);
    house.delete_a_tree(3);
    assert_eq!(house.next_proposal().await, RECLAIM);
    wait_until("all records are freed", || house.inodes() == 1).await;
}
