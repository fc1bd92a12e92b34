//! Beats, registrations, reports, and what etcd says.

use super::*;
use crate::actors::unix_ms;

#[actix::test]
async fn beats_are_the_leaders_business() {
    let mut house = House::new();
    assert_eq!(
        house.beat(heartbeat(1, vec![1])).await,
        Err(HeartbeatError::NotLeader)
    );
    for now in [Role::Learner, Role::Follower, Role::Candidate] {
        house.becomes(1, now).await;
        assert_eq!(
            house.beat(heartbeat(1, vec![1])).await,
            Err(HeartbeatError::NotLeader)
        );
    }
    assert_eq!(house.proposed().await, []);
    assert_eq!(house.reports().await, []);
}

#[actix::test]
async fn an_unknown_dataserver_is_registered_once_and_reported() {
    let (mut house, before) = (House::new(), unix_ms());
    house.becomes(1, Role::Leader).await;
    assert_eq!(house.beat(heartbeat(1, vec![9, 7, 8])).await, Ok(vec![]));
    let proposal = house.raft.next().await;
    assert_eq!(proposal.op, registration_of(1));
    assert!(proposal.forwarded, "a deposed leader's word is not passed on");
    for _ in 0..3 {
        assert_eq!(house.beat(heartbeat(1, vec![9, 7, 8])).await, Ok(vec![]));
    }
    assert_eq!(house.proposed().await, [], "nothing changed");
    let reports = house.reports().await;
    let reported_ms = reports[0].reported_ms.unwrap();
    assert!((before..=unix_ms()).contains(&reported_ms), "{reported_ms}");
    let expected = ServerReport {
        server: ServerId(1),
        id: "ds-1".to_owned(),
        addr: "host-1:8001".to_owned(),
        status: ServerStatus::Healthy,
        reported_ms: Some(reported_ms),
        corrupt: [].into(),
        takes_blocks: true,
        blocks: [7, 8, 9].into(),
        free_space: 1 << 40,
        total_capacity: 1 << 41,
        alive: true,
    };
    assert_eq!(reports, [expected]);
}

#[actix::test]
async fn a_new_address_or_a_lost_status_is_registered_again() {
    let mut house = House::new().with_three();
    house.becomes(1, Role::Leader).await;
    let moved = HeartbeatReceived {
        addr: "elsewhere:9000".to_owned(),
        ..heartbeat(1, vec![])
    };
    assert_eq!(house.beat(moved).await, Ok(vec![]));
    assert_eq!(house.proposed().await.len(), 1);
    assert_eq!(house.state.servers()[0].addr, "elsewhere:9000");
    for lost in [ServerStatus::Unhealthy, ServerStatus::Down] {
        house.state.apply(set_status(2, lost)).unwrap();
        assert_eq!(house.beat(heartbeat(2, vec![])).await, Ok(vec![]));
        assert_eq!(house.proposed().await, [registration_of(2)]);
        assert_eq!(house.state.servers()[1].status, ServerStatus::Healthy);
    }
}

#[actix::test]
async fn two_beats_at_once_share_one_registration_and_hold_up_nobody() {
    let (mut house, gate) = House::gated();
    house.becomes(1, Role::Leader).await;
    let first = actix::spawn(house.actor.send(heartbeat(1, vec![1])));
    let second = actix::spawn(house.actor.send(heartbeat(1, vec![1, 2])));
    assert_eq!(house.raft.next().await.op, registration_of(1));
    // The mailbox is free meanwhile: a question is answered, another DataServer's beat goes its way.
    assert_eq!(house.reports().await, []);
    let other = actix::spawn(house.actor.send(heartbeat(2, vec![])));
    assert_eq!(house.raft.next().await.op, registration_of(2));
    let elsewhere = HeartbeatReceived {
        addr: "elsewhere:9000".to_owned(),
        ..heartbeat(1, vec![])
    };
    assert!(matches!(
        house.beat(elsewhere).await,
        Err(HeartbeatError::Unavailable(_))
    ));
    gate.add_permits(2);
    for answer in [first, second, other] {
        assert_eq!(answer.await.unwrap().unwrap(), Ok(vec![]));
    }
    assert_eq!(house.proposed().await, [], "one registration each");
    assert_eq!(
        *house.reports().await[0].blocks,
        [1, 2],
        "the later beat's report"
    );
}

#[actix::test]
async fn a_beat_is_answered_by_its_deadline() {
    let (house, _gate) = House::gated();
    house.becomes(1, Role::Leader).await;
    let hasty = HeartbeatReceived {
        deadline: Instant::now(),
        ..heartbeat(1, vec![])
    };
    let late = HeartbeatError::Unavailable("registering takes too long".to_owned());
    assert_eq!(house.beat(hasty).await, Err(late));
}

#[actix::test]
async fn a_raft_node_that_is_gone_makes_registering_unavailable() {
    let house = House::new();
    house.becomes(1, Role::Leader).await;
    house.raft.stop().await;
    for _ in 0..2 {
        let gone = HeartbeatError::Unavailable("the raft node has stopped".to_owned());
        assert_eq!(house.beat(heartbeat(1, vec![])).await, Err(gone));
    }
    house.state.apply(registration_of(1)).unwrap();
    assert_eq!(
        house.beat(heartbeat(1, vec![])).await,
        Ok(vec![]),
        "needs no Raft node"
    );
    house.check(Instant::now() + THRESHOLD).await;
    house.check(Instant::now() + THRESHOLD).await;
    assert_eq!(house.reports().await.len(), 1, "still there");
}

#[actix::test]
async fn what_becomes_of_a_proposal_reaches_the_beat() {
    let refusal = Refusal::invalid_argument("no");
    let unavailable = |why: &str| HeartbeatError::Unavailable(why.to_owned());
    for (answer, expected) in [
        (Err(ProposeError::NotLeader(None)), HeartbeatError::NotLeader),
        (
            Err(ProposeError::Unavailable("later".to_owned())),
            unavailable("later"),
        ),
        (
            Err(ProposeError::Unknown("who knows".to_owned())),
            unavailable("outcome unknown: who knows"),
        ),
        (
            Err(ProposeError::Overloaded),
            unavailable("too many proposals in flight"),
        ),
        (
            Err(ProposeError::Refused(refusal.clone())),
            HeartbeatError::Refused(refusal.clone()),
        ),
        (Ok(Err(refusal.clone())), HeartbeatError::Refused(refusal.clone())),
    ] {
        let raft = Probe::new(move |_: &Propose| answer.clone());
        let state = TestState::empty();
        let actor = DataServersActor::new(settings(), state.reader(), raft.recipient()).start();
        actor.send(role(1, Role::Leader)).await.unwrap();
        assert_eq!(
            actor.send(heartbeat(1, vec![])).await.unwrap(),
            Err(expected.clone())
        );
    }
}

#[actix::test]
async fn a_registration_that_outlives_the_leadership_takes_no_beat() {
    let (mut house, gate) = House::gated();
    house.becomes(1, Role::Leader).await;
    let answer = actix::spawn(house.actor.send(heartbeat(1, vec![1])));
    house.raft.next().await;
    house.becomes(2, Role::Follower).await;
    gate.add_permits(1);
    assert_eq!(answer.await.unwrap().unwrap(), Err(HeartbeatError::NotLeader));
}

#[actix::test]
async fn an_unchanged_report_of_100_000_blocks_proposes_nothing_and_copies_nothing() {
    let mut house = House::new().with_three();
    house.becomes(1, Role::Leader).await;
    let sent: Vec<u64> = (1..=100_000).rev().collect();
    house.beat(heartbeat(1, sent.clone())).await.unwrap();
    let before = house.reports().await[0].blocks.clone();
    assert!(before.iter().copied().eq(1..=100_000));
    house.beat(heartbeat(1, sent)).await.unwrap();
    assert!(std::sync::Arc::ptr_eq(&before, &house.reports().await[0].blocks));
    assert_eq!(house.proposed().await, []);
}

#[actix::test]
async fn news_of_an_older_term_is_ignored() {
    let house = House::new().with_three();
    house.becomes(3, Role::Leader).await;
    house.becomes(2, Role::Follower).await;
    assert_eq!(house.beat(heartbeat(1, vec![1])).await, Ok(vec![]));
    house.becomes(4, Role::Follower).await;
    house.becomes(3, Role::Leader).await;
    assert_eq!(
        house.beat(heartbeat(1, vec![1])).await,
        Err(HeartbeatError::NotLeader)
    );
}

#[actix::test]
async fn beats_and_reports_end_with_the_leadership() {
    let house = House::new().with_three();
    house.becomes(1, Role::Leader).await;
    house.beat(heartbeat(1, vec![1])).await.unwrap();
    house.becomes(1, Role::Leader).await;
    assert_eq!(*house.reports().await[0].blocks, [1], "the same leadership");
    house.becomes(2, Role::Follower).await;
    assert_eq!(house.reports().await, []);
    house.becomes(3, Role::Leader).await;
    let blocks: usize = house
        .reports()
        .await
        .iter()
        .map(|report| report.blocks.len())
        .sum();
    assert_eq!(blocks, 0);
    house.beat(heartbeat(1, vec![1])).await.unwrap();
    house.becomes(5, Role::Leader).await;
    assert!(
        house.reports().await[0].blocks.is_empty(),
        "another leader may have been in between"
    );
}

#[actix::test]
async fn announced_servers_are_registered_if_nobody_knew_them() {
    let mut house = House::new().with_three();
    let announce = |id: &str, addr: &str| DataServerAnnounced {
        id: id.to_owned(),
        addr: addr.to_owned(),
    };
    house.actor.send(announce("new", "host:1")).await.unwrap();
    assert_eq!(house.proposed().await, [], "not by a follower");

    house.becomes(1, Role::Leader).await;
    for (id, addr) in [
        ("new", "0.0.0.0:8001"),
        ("new", "[::]:8001"),
        ("new", "host:0"),
        ("new", ":8001"),
        ("new", "host"),
        ("new", ""),
        ("ds-1", "elsewhere:8001"),
        ("new", "host-2:8002"),
    ] {
        house.actor.send(announce(id, addr)).await.unwrap();
        assert_eq!(house.proposed().await, [], "{id} at {addr}");
    }
    house.actor.send(announce("new", "localhost:8001")).await.unwrap();
    house.reaches(4, ServerStatus::Healthy).await;
    assert_eq!(house.proposed().await.len(), 1);
    house
        .actor
        .send(DataServerWithdrawn { id: "new".to_owned() })
        .await
        .unwrap();
    assert_eq!(house.proposed().await, []);
    let report = house.reports().await.pop().unwrap();
    assert_eq!((report.addr.as_str(), report.alive), ("localhost:8001", true));
}
