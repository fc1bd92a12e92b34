//! What a leader tells the DataServers to do, and when it knows enough to.

use super::super::messages::{Removal, Repair};
use super::*;

impl House {
    async fn all_reports(&self) -> Reports {
        self.actor.send(GetReports).await.unwrap()
    }

    async fn generation(&self) -> u64 {
        self.all_reports().await.generation
    }

    async fn counts(&self) -> (usize, usize, usize) {
        let counts = self.actor.send(GetOrders).await.unwrap();
        (
            counts.repairs_running,
            counts.repairs_waiting,
            counts.removals_waiting,
        )
    }

    /// FSCK wants blocks copied from server 1 to server 2, and replicas removed.
    async fn fsck(&self, term: u64, blocks: &[u64], surplus: Vec<Removal>) {
        let repair = |&block| Repair {
            block: BlockId(block),
            to: ServerId(2),
            from: vec![ServerId(1)],
        };
        let plan = RepairReplicas {
            term,
            generation: self.actor.send(GetReports).await.unwrap().generation,
            repairs: blocks.iter().map(repair).collect(),
            surplus,
        };
        self.actor.send(plan).await.unwrap();
    }

    async fn gc(&self, term: u64, replicas: Vec<Removal>) {
        self.actor.send(RemoveGarbage { term, replicas }).await.unwrap();
    }

    /// A beat of a DataServer and the answer to it.
    async fn told(&self, n: u32, blocks: &[u64]) -> Vec<DataServerCommand> {
        self.beat(heartbeat(n, blocks.to_vec())).await.unwrap()
    }
}

fn removal(n: u32, block: u64) -> Removal {
    Removal {
        server: ServerId(n),
        block: BlockId(block),
    }
}

fn delete(block: u64) -> DataServerCommand {
    DataServerCommand::Delete(BlockId(block))
}

fn copy(block: u64) -> DataServerCommand {
    DataServerCommand::Copy {
        block: BlockId(block),
        from: "host-1:8001".to_owned(),
    }
}

/// Leads in term 1; server 1 holds blocks 7 and 8, servers 2 and 3 nothing.
async fn led() -> House {
    let house = House::new().with_three();
    house.becomes(1, Role::Leader).await;
    for (n, blocks) in [(1, vec![7, 8]), (2, vec![]), (3, vec![])] {
        assert_eq!(house.told(n, &blocks).await, []);
    }
    house
}

#[actix::test]
async fn orders_go_out_in_the_answers_to_beats() {
    let house = led().await;
    house.fsck(1, &[7], vec![removal(1, 8)]).await;
    house.gc(1, vec![removal(3, 9)]).await;
    assert_eq!(house.counts().await, (0, 1, 2));
    assert_eq!(house.told(3, &[9]).await, [delete(9)]);
    assert_eq!(house.told(1, &[7, 8]).await, [delete(8)]);
    assert_eq!(house.told(2, &[]).await, [copy(7)]);
    assert_eq!(house.counts().await, (1, 0, 0));
    assert_eq!(house.told(2, &[7]).await, []);
    assert_eq!(house.counts().await, (0, 0, 0));
}

#[actix::test]
async fn a_damaged_replica_can_be_removed_and_is_no_source() {
    let house = led().await;
    house.fsck(1, &[7], vec![removal(1, 8)]).await;
    let damaged = HeartbeatReceived {
        corrupt: vec![8, 7, 8],
        ..heartbeat(1, vec![])
    };
    // It got worse since the plan: what was too many may be needed.
    assert_eq!(house.beat(damaged.clone()).await, Ok(vec![]));
    let report = house.reports().await.remove(0);
    assert_eq!((&*report.blocks, &*report.corrupt), (&[][..], &[7, 8][..]));
    assert_eq!(house.told(2, &[]).await, []);
    house.gc(1, vec![removal(1, 8)]).await;
    assert_eq!(house.beat(damaged).await, Ok(vec![delete(8)]));
}

#[actix::test]
async fn nothing_is_trimmed_by_a_plan_from_before_a_loss() {
    let house = led().await;
    let generation = house.actor.send(GetReports).await.unwrap().generation;
    // A replica is lost between the plan and its arrival.
    assert_eq!(house.told(1, &[8]).await, []);
    let plan = RepairReplicas {
        term: 1,
        generation,
        surplus: vec![removal(1, 8)],
        ..RepairReplicas::default()
    };
    house.actor.send(plan).await.unwrap();
    assert_eq!(house.told(1, &[8]).await, []);
    house.fsck(1, &[], vec![removal(1, 8)]).await;
    assert_eq!(house.told(1, &[8]).await, [delete(8)]);
}

#[actix::test]
async fn a_registration_comes_before_the_orders() {
    let house = led().await;
    house.state.apply(set_status(2, ServerStatus::Down)).unwrap();
    house.fsck(1, &[7], vec![]).await;
    assert_eq!(house.told(2, &[]).await, [copy(7)]);
    assert_eq!(house.state.servers()[1].status, ServerStatus::Healthy);
}

#[actix::test]
async fn orders_of_another_term_are_dropped_and_all_end_with_the_leadership() {
    let house = led().await;
    for term in [0, 2] {
        house.fsck(term, &[7], vec![removal(1, 7)]).await;
        house.gc(term, vec![removal(1, 8)]).await;
        assert_eq!(house.counts().await, (0, 0, 0));
    }
    house.fsck(1, &[7], vec![removal(1, 7)]).await;
    house.gc(1, vec![removal(1, 8)]).await;
    assert_eq!(house.counts().await, (0, 1, 2));
    house.becomes(2, Role::Follower).await;
    assert_eq!(house.counts().await, (0, 0, 0));
    house.becomes(3, Role::Leader).await;
    assert_eq!(house.told(1, &[7, 8]).await, []);
    assert_eq!(house.told(2, &[]).await, []);
    house.fsck(3, &[7], vec![]).await;
    assert_eq!(house.told(2, &[]).await, [copy(7)]);
    house.becomes(4, Role::Leader).await;
    assert_eq!(
        house.counts().await,
        (0, 0, 0),
        "another leader may have been between"
    );
}

#[actix::test]
async fn as_many_copies_at_once_as_the_settings_say() {
    let few = DataServersSettings {
        max_concurrent_repairs: 1,
        ..settings()
    };
    let house = House::with(few, None).with_three();
    house.becomes(1, Role::Leader).await;
    house.told(1, &[7, 8]).await;
    house.told(2, &[]).await;
    house.fsck(1, &[8, 7], vec![]).await;
    assert_eq!(house.told(2, &[]).await, [copy(8)]);
    assert_eq!(house.told(2, &[]).await, []);
    assert_eq!(house.told(2, &[8]).await, [copy(7)]);
}

#[actix::test]
async fn reports_are_complete_when_all_but_the_down_have_reported_or_had_the_time_to() {
    let house = House::new().with_three();
    assert!(!house.all_reports().await.complete, "a follower knows nothing");
    house.becomes(1, Role::Leader).await;
    assert!(!house.all_reports().await.complete);
    house.told(1, &[]).await;
    house.told(2, &[]).await;
    assert!(!house.all_reports().await.complete);
    house.state.apply(set_status(3, ServerStatus::Unhealthy)).unwrap();
    assert!(!house.all_reports().await.complete, "it may still come");
    house.state.apply(set_status(3, ServerStatus::Down)).unwrap();
    assert!(house.all_reports().await.complete);
    house.becomes(2, Role::Leader).await;
    assert!(
        !house.all_reports().await.complete,
        "they reported in another term"
    );

    let hasty = DataServersSettings {
        heartbeat_timeout: Duration::ZERO,
        ..settings()
    };
    let house = House::with(hasty, None).with_three();
    house.becomes(1, Role::Leader).await;
    assert!(house.all_reports().await.complete);
}

#[actix::test]
async fn the_generation_changes_with_what_calls_for_upkeep() {
    let house = led().await;
    let mut last = house.generation().await;
    let mut changed = async |house: &House| {
        let now = house.generation().await;
        std::mem::replace(&mut last, now) != now
    };
    assert!(!changed(&house).await);
    house.told(1, &[8, 7]).await;
    assert!(!changed(&house).await, "the same again");
    house.told(1, &[7, 8, 9, 10]).await;
    assert!(!changed(&house).await, "clients wrote blocks");
    house.told(1, &[7, 8, 9]).await;
    assert!(changed(&house).await, "block 10 is lost");
    let damaged = HeartbeatReceived {
        corrupt: vec![50],
        ..heartbeat(1, vec![7, 8, 9])
    };
    house.beat(damaged.clone()).await.unwrap();
    assert!(changed(&house).await, "block 50 is damaged");
    house.beat(damaged).await.unwrap();
    assert!(!changed(&house).await, "known");

    house.fsck(1, &[7], vec![]).await;
    house.told(2, &[]).await;
    assert!(!changed(&house).await, "ordered");
    house.told(2, &[7]).await;
    assert!(changed(&house).await, "copied");

    house.gc(1, vec![removal(1, 9), removal(2, 7)]).await;
    assert_eq!(house.told(1, &[7, 8, 9]).await, [delete(9)]);
    house.told(1, &[7, 8]).await;
    assert!(!changed(&house).await, "removed as ordered");
    house.told(2, &[]).await;
    assert!(changed(&house).await, "gone before it was told to");

    house.check(Instant::now() + TIMEOUT).await;
    house.reaches(3, ServerStatus::Unhealthy).await;
    assert!(changed(&house).await, "statuses");
    house.told(3, &[]).await;
    assert!(changed(&house).await, "it is back");
    house.becomes(2, Role::Leader).await;
    assert!(changed(&house).await, "nothing is known any more");
    house.told(1, &[]).await; // registered again: it was unhealthy
    house.told(2, &[]).await;
    changed(&house).await;
    house.told(3, &[8]).await;
    assert!(changed(&house).await, "its blocks are known");
}

#[actix::test]
async fn a_change_of_status_casts_doubt_on_what_is_too_many() {
    let house = led().await;
    house.fsck(1, &[], vec![removal(1, 7)]).await;
    house.gc(1, vec![removal(1, 8)]).await;
    house.check(Instant::now() + TIMEOUT).await;
    house.reaches(3, ServerStatus::Unhealthy).await;
    assert_eq!(house.told(1, &[7, 8]).await, [delete(8)], "garbage stays garbage");
}
