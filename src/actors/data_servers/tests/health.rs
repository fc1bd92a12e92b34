//! Who is alive, and who takes new blocks.

use super::*;

#[actix::test]
async fn a_new_leader_allocates_at_once_among_the_replicated_servers() {
    let house = House::new().with_three();
    // Even before it hears that it leads: the Raft node knows, or it would not ask.
    assert!(house.plan(1).await.is_ok());
    house.becomes(1, Role::Leader).await;
    assert!(house.plan(1).await.is_ok());
    assert!(house.reports().await.iter().all(|report| report.alive));
    house.state.apply(set_status(2, ServerStatus::Unhealthy)).unwrap();
    let refusal = house.plan(1).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::FailedPrecondition);
    assert_eq!(refusal.message, "need 3 healthy DataServers, have 2");
    let alive: Vec<bool> = house.reports().await.iter().map(|report| report.alive).collect();
    assert_eq!(alive, [true, false, true]);
}

#[actix::test]
async fn servers_that_are_silent_or_full_get_no_blocks() {
    let strict = DataServersSettings {
        heartbeat_timeout: Duration::ZERO,
        ..settings()
    };
    let house = House::with(strict, None).with_three();
    house.becomes(1, Role::Leader).await;
    assert_eq!(
        house.plan(1).await.unwrap_err().message,
        "need 3 healthy DataServers, have 0"
    );
    assert!(house.reports().await.iter().all(|report| !report.alive));

    let house = House::new().with_three();
    house.becomes(1, Role::Leader).await;
    let full = HeartbeatReceived {
        free_space: BLOCK - 1,
        ..heartbeat(1, vec![])
    };
    house.beat(full).await.unwrap();
    assert_eq!(
        house.plan(1).await.unwrap_err().message,
        "need 3 healthy DataServers, have 2"
    );
    house.beat(heartbeat(1, vec![])).await.unwrap();
    assert!(house.plan(1).await.is_ok());
}

#[actix::test]
async fn successive_allocations_start_at_successive_servers() {
    let house = House::new().with_three();
    house.state.apply(registration_of(4)).unwrap();
    house.becomes(1, Role::Leader).await;
    let mut placed = Vec::new();
    for _ in 0..4 {
        let plan = house.plan(1).await.unwrap();
        let run = BlockRun {
            first: BlockId(1),
            count: 1,
            block_size: plan.block_size,
            replication: plan.replication,
            servers: plan.servers,
        };
        placed.extend(run.placed(BlockId(1)));
    }
    placed.sort();
    let even: Vec<ServerId> = (1..=4).flat_map(|n| [ServerId(n); 3]).collect();
    assert_eq!(placed, even);
}

#[actix::test]
async fn health_is_lost_step_by_step_and_regained_by_a_beat() {
    let mut house = House::new().with_three();
    let before = Instant::now();
    house.becomes(1, Role::Leader).await;
    house.beat(heartbeat(1, vec![])).await.unwrap();
    let after = Instant::now();
    house.check(before + TIMEOUT - MS).await;
    assert_eq!(
        house.proposed().await,
        [],
        "not before the time, beaten or never beaten"
    );

    house.check(after + TIMEOUT).await;
    let unhealthy = (1..=3).map(|n| set_status(n, ServerStatus::Unhealthy));
    assert_eq!(house.proposed().await, unhealthy.collect::<Vec<_>>());
    house.reaches(3, ServerStatus::Unhealthy).await;
    house.check(before + THRESHOLD - MS).await;
    assert_eq!(house.proposed().await, [], "the status is what it should be");

    house.beat(heartbeat(2, vec![])).await.unwrap();
    assert_eq!(house.proposed().await, [registration_of(2)]);
    house.beat(heartbeat(2, vec![])).await.unwrap();
    house.check(after + TIMEOUT - MS).await;
    assert_eq!(house.proposed().await, []);

    house.check(after + THRESHOLD).await;
    let down = |n| set_status(n, ServerStatus::Down);
    let proposed = house.proposed().await;
    assert_eq!(proposed[0], down(1));
    assert_eq!(proposed[2], down(3));
    house.reaches(3, ServerStatus::Down).await;
    house.check(after + THRESHOLD * 2).await;
    assert!(
        house
            .proposed()
            .await
            .iter()
            .all(|op| *op != down(1) && *op != down(3))
    );
}

#[actix::test]
async fn every_beat_starts_the_clock_anew() {
    let mut house = House::new();
    house.state.apply(registration_of(1)).unwrap();
    house.becomes(1, Role::Leader).await;
    house.beat(heartbeat(1, vec![])).await.unwrap();
    let between = Instant::now();
    house.beat(heartbeat(1, vec![])).await.unwrap();
    house.check(between + TIMEOUT).await;
    assert_eq!(house.proposed().await, []);
    house.check(Instant::now() + TIMEOUT).await;
    assert_eq!(house.proposed().await, [set_status(1, ServerStatus::Unhealthy)]);
}

#[actix::test]
async fn a_new_leader_starts_the_clock_anew() {
    let mut house = House::new().with_three();
    house.state.apply(set_status(1, ServerStatus::Unhealthy)).unwrap();
    let before = Instant::now();
    house.becomes(7, Role::Leader).await;
    let after = Instant::now();
    house.check(before + TIMEOUT - MS).await;
    assert_eq!(house.proposed().await, []);
    house.check(before + THRESHOLD - MS).await;
    let unhealthy = |n| set_status(n, ServerStatus::Unhealthy);
    assert_eq!(house.proposed().await, [unhealthy(2), unhealthy(3)]);
    house.reaches(3, ServerStatus::Unhealthy).await;
    house.check(after + THRESHOLD).await;
    assert_eq!(house.proposed().await.len(), 3, "all down");
}

#[actix::test]
async fn followers_judge_nobody() {
    let mut house = House::new().with_three();
    house.becomes(1, Role::Leader).await;
    house.becomes(2, Role::Follower).await;
    house.check(Instant::now() + THRESHOLD).await;
    assert_eq!(house.proposed().await, []);
}

#[actix::test]
async fn one_change_of_status_at_a_time_and_a_beat_overrules_it() {
    let (mut house, gate) = House::gated();
    house.state.apply(registration_of(1)).unwrap();
    house.becomes(1, Role::Leader).await;
    let late = Instant::now() + TIMEOUT;
    house.check(late).await;
    house.check(late).await;
    assert_eq!(house.proposed().await, [set_status(1, ServerStatus::Unhealthy)]);
    // The state still says healthy, but it will not when this is applied.
    let beat = actix::spawn(house.actor.send(heartbeat(1, vec![])));
    assert_eq!(house.raft.next().await.op, registration_of(1));
    gate.add_permits(2);
    assert_eq!(beat.await.unwrap().unwrap(), Ok(vec![]));
    assert_eq!(house.state.servers()[0].status, ServerStatus::Healthy);
}

#[actix::test]
async fn an_announced_server_has_time_for_its_first_beat_from_its_registration_on() {
    let (mut house, gate) = House::gated();
    house.becomes(1, Role::Leader).await;
    house
        .actor
        .send(DataServerAnnounced {
            id: "new".to_owned(),
            addr: "localhost:8001".to_owned(),
        })
        .await
        .unwrap();
    house.raft.next().await;
    let registered_after = Instant::now();
    gate.add_permits(1);
    house.reaches(1, ServerStatus::Healthy).await;
    // It led before that: its own beginning is not what counts.
    house
        .check(registered_after + TIMEOUT - Duration::from_nanos(1))
        .await;
    assert_eq!(house.proposed().await, []);
    house.check(Instant::now() + TIMEOUT).await;
    assert_eq!(house.proposed().await, [set_status(1, ServerStatus::Unhealthy)]);
}
