//! What goes out of the DataServers' actor for what comes in. The Raft node is a probe that applies
//! what is proposed to a real state.

use std::rc::Rc;

use actix::Addr;
use tokio::sync::Semaphore;

use super::super::raft_node::messages::Role;
use super::super::testing::{Probe, TestState, role, wait_until};
use super::*;
use crate::domain::command::RefusalKind;
use crate::domain::ids::BlockId;
use crate::domain::state::BlockRun;

const MS: Duration = Duration::from_millis(1);
const TIMEOUT: Duration = Duration::from_secs(15);
const THRESHOLD: Duration = Duration::from_secs(60);
const BLOCK: u64 = 4 << 20;

fn settings() -> DataServersSettings {
    DataServersSettings {
        heartbeat_timeout: TIMEOUT,
        permanent_down_threshold: THRESHOLD,
        block_size: BLOCK,
        replication: 3,
    }
}

/// An actor among its neighbours.
struct House {
    state: TestState,
    raft: Probe<Propose>,
    actor: Addr<DataServersActor>,
}

impl House {
    /// The Raft node commits at once.
    fn new() -> Self {
        Self::with(settings(), None)
    }

    /// The Raft node commits one proposal for each permit.
    fn gated() -> (Self, Rc<Semaphore>) {
        let gate = Rc::new(Semaphore::new(0));
        (Self::with(settings(), Some(gate.clone())), gate)
    }

    fn with(settings: DataServersSettings, gate: Option<Rc<Semaphore>>) -> Self {
        let state = TestState::empty();
        let log = state.clone();
        let raft = Probe::slow(move |proposal: &Propose| {
            let (log, gate, op) = (log.clone(), gate.clone(), proposal.op.clone());
            async move {
                if let Some(gate) = gate {
                    gate.acquire().await.unwrap().forget();
                }
                Ok(log.apply(op))
            }
        });
        let actor = DataServersActor::new(settings, state.reader(), raft.recipient()).start();
        House { state, raft, actor }
    }

    /// Three healthy DataServers are in the replicated state: `ds-1` at `host-1:8001` and so on.
    fn with_three(self) -> Self {
        for n in 1..=3 {
            self.state.apply(registration_of(n)).unwrap();
        }
        self
    }

    async fn becomes(&self, term: u64, now: Role) {
        self.actor.send(role(term, now)).await.unwrap();
    }

    async fn beat(&self, heartbeat: HeartbeatReceived) -> HeartbeatAnswer {
        self.actor.send(heartbeat).await.unwrap()
    }

    async fn plan(&self, size: u64) -> Result<AllocationPlan, Refusal> {
        self.actor.send(PlanAllocation { size }).await.unwrap()
    }

    async fn reports(&self) -> Vec<ServerReport> {
        self.actor.send(GetReports).await.unwrap()
    }

    async fn check(&self, at: Instant) {
        self.actor.send(CheckHealth { at }).await.unwrap();
    }

    /// What was proposed since the last call.
    async fn proposed(&mut self) -> Vec<Op> {
        let proposals = self.raft.so_far().await;
        proposals.into_iter().map(|proposal| proposal.op).collect()
    }

    /// Waits until the replicated status of a DataServer is `status`.
    async fn reaches(&self, server: u32, status: ServerStatus) {
        wait_until("the status is replicated", || {
            let servers = self.state.servers();
            servers
                .iter()
                .any(|known| known.server == ServerId(server) && known.status == status)
        })
        .await;
        // The Raft node's answer is with the actor by now; it is taken before the second of these.
        self.reports().await;
        self.reports().await;
    }
}

fn registration_of(n: u32) -> Op {
    let HeartbeatReceived { id, addr, .. } = heartbeat(n, vec![]);
    Op::RegisterDataServer { id, addr }
}

fn heartbeat(n: u32, blocks: Vec<u64>) -> HeartbeatReceived {
    HeartbeatReceived {
        id: format!("ds-{n}"),
        addr: format!("host-{n}:800{n}"),
        block_count: blocks.len() as u64,
        blocks,
        free_space: 1 << 40,
        total_capacity: 1 << 41,
        deadline: Instant::now() + Duration::from_secs(60),
    }
}

fn set_status(n: u32, status: ServerStatus) -> Op {
    Op::SetDataServerStatus {
        server: ServerId(n),
        status,
    }
}

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
    let mut house = House::new();
    house.becomes(1, Role::Leader).await;
    assert_eq!(house.beat(heartbeat(1, vec![9, 7, 8])).await, Ok(vec![]));
    let proposal = house.raft.next().await;
    assert_eq!(proposal.op, registration_of(1));
    assert!(proposal.forwarded, "a deposed leader's word is not passed on");
    for _ in 0..3 {
        assert_eq!(house.beat(heartbeat(1, vec![9, 7, 8])).await, Ok(vec![]));
    }
    assert_eq!(house.proposed().await, [], "nothing changed");
    let expected = ServerReport {
        server: ServerId(1),
        addr: "host-1:8001".to_owned(),
        blocks: [7, 8, 9].into(),
        free_space: 1 << 40,
        total_capacity: 1 << 41,
        alive: true,
    };
    assert_eq!(house.reports().await, [expected]);
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
