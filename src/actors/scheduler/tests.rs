//! What goes out of the scheduler for what comes in.

use std::rc::Rc;

use actix::Addr;
use tokio::sync::Semaphore;

use super::super::raft_node::messages::Role;
use super::super::testing::{Probe, TestState, role, wait_until};
use super::*;
use crate::domain::path::CleanPath;

/// The clocks are slow: tests send the ticks.
fn settings() -> SchedulerSettings {
    SchedulerSettings {
        heartbeat_timeout: Duration::from_secs(3600),
        gc_interval: Duration::from_secs(3600),
    }
}

/// An actor among its neighbours; the Raft node commits one proposal for each permit.
struct House {
    state: TestState,
    raft: Probe<Propose>,
    gate: Rc<Semaphore>,
    data_servers: Probe<CheckHealth>,
    actor: Addr<SchedulerActor>,
}

impl House {
    fn new(settings: SchedulerSettings) -> Self {
        let (state, gate) = (TestState::empty(), Rc::new(Semaphore::new(0)));
        let (log, permits) = (state.clone(), gate.clone());
        let raft = Probe::slow(move |proposal: &Propose| {
            let (log, permits, op) = (log.clone(), permits.clone(), proposal.op.clone());
            async move {
                permits.acquire().await.unwrap().forget();
                Ok(log.apply(op))
            }
        });
        let data_servers = Probe::new(|_: &CheckHealth| ());
        let actor = SchedulerActor::new(
            settings,
            state.reader(),
            raft.recipient(),
            data_servers.recipient(),
        );
        House {
            state,
            raft,
            gate,
            data_servers,
            actor: actor.start(),
        }
    }

    async fn becomes(&self, term: u64, now: Role) {
        self.actor.send(role(term, now)).await.unwrap();
    }

    /// Deletes a directory of `files` files; their records stay.
    fn delete_a_tree(&self, files: usize) {
        let path = |path: &str| CleanPath::parse(path).unwrap();
        let create = |name: &str, directory| Op::Create {
            path: path(name),
            directory,
        };
        self.state.apply(create("/tree", true)).unwrap();
        for n in 0..files {
            self.state.apply(create(&format!("/tree/{n}"), false)).unwrap();
        }
        let delete = Op::Delete {
            path: path("/tree"),
            recursive: true,
        };
        self.state.apply(delete).unwrap();
    }

    /// Files and directories, the root and those not yet reclaimed included.
    fn inodes(&self) -> u64 {
        let counters = self.state.reader().read(|view| view.counters());
        counters.unwrap().inodes
    }
}

const RECLAIM: Op = Op::Reclaim { limit: RECLAIM_LIMIT };

#[actix::test]
async fn health_is_checked_only_while_this_node_leads() {
    let mut house = House::new(settings());
    house.actor.send(HealthCheckDue).await.unwrap();
    house.becomes(2, Role::Follower).await;
    house.actor.send(HealthCheckDue).await.unwrap();
    house.becomes(1, Role::Leader).await;
    house.actor.send(HealthCheckDue).await.unwrap();
    assert_eq!(house.data_servers.so_far().await, [], "news of an older term");
    house.becomes(3, Role::Leader).await;
    house.actor.send(HealthCheckDue).await.unwrap();
    assert_eq!(house.data_servers.so_far().await.len(), 1);
    house.becomes(3, Role::Follower).await;
    house.actor.send(HealthCheckDue).await.unwrap();
    assert_eq!(house.data_servers.so_far().await, []);
}

#[actix::test]
async fn the_clocks_tick_by_themselves() {
    let mut house = House::new(SchedulerSettings {
        heartbeat_timeout: Duration::from_millis(1),
        gc_interval: Duration::from_millis(1),
    });
    house.becomes(1, Role::Leader).await;
    house.data_servers.next().await;
    house.data_servers.next().await;
    house.delete_a_tree(1);
    assert_eq!(house.raft.next().await.op, RECLAIM);
}

#[actix::test]
async fn the_clocks_stop_with_the_actor() {
    let house = House::new(SchedulerSettings {
        heartbeat_timeout: Duration::from_millis(1),
        gc_interval: Duration::from_millis(1),
    });
    let House { actor, .. } = house;
    let gone = actor.downgrade();
    drop(actor);
    // It stops when only its clocks know it, and they with it.
    wait_until("the actor is gone", || {
        !gone.upgrade().is_some_and(|actor| actor.connected())
    })
    .await;
}

#[actix::test]
async fn neighbours_that_are_gone_are_survived() {
    let house = House::new(settings());
    house.delete_a_tree(1);
    house.data_servers.stop().await;
    house.raft.stop().await;
    house.becomes(1, Role::Leader).await;
    for _ in 0..2 {
        house.actor.send(HealthCheckDue).await.unwrap();
        house.actor.send(ReclaimDue).await.unwrap();
    }
    assert!(house.actor.connected());
}

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

    house.delete_a_tree(2000);
    house.gate.add_permits(3);
    house.actor.send(ReclaimDue).await.unwrap();
    for _ in 0..4 {
        assert_eq!(house.raft.next().await.op, RECLAIM);
        house.actor.send(ReclaimDue).await.unwrap();
    }
    assert!(
        house.raft.so_far().await.is_empty(),
        "the fourth is still on its way"
    );
    assert_eq!(house.inodes(), 1 + 1 + 2000 - 3 * 512);
    house.gate.add_permits(1);
    wait_until("all records are freed", || house.inodes() == 1).await;
    house.actor.send(ReclaimDue).await.unwrap();
    assert!(house.raft.so_far().await.is_empty(), "nothing is left");
}

#[actix::test]
async fn reclaiming_stops_with_the_leadership_and_goes_on_with_the_next() {
    let mut house = House::new(settings());
    house.delete_a_tree(2000);
    house.becomes(1, Role::Leader).await;
    assert_eq!(house.raft.next().await.op, RECLAIM, "a new leader begins at once");
    house.becomes(2, Role::Follower).await;
    house.gate.add_permits(100);
    while house.actor.send(IsReclaiming).await.unwrap() {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        house.inodes(),
        1 + 1 + 2000 - 512,
        "what was on its way, and no more"
    );
    assert!(house.raft.so_far().await.is_empty());

    house.becomes(3, Role::Leader).await;
    wait_until("all records are freed", || house.inodes() == 1).await;
}

/// Whether the loop runs.
#[derive(actix::Message)]
#[rtype(result = "bool")]
struct IsReclaiming;

impl Handler<IsReclaiming> for SchedulerActor {
    type Result = bool;

    fn handle(&mut self, _: IsReclaiming, _: &mut Context<Self>) -> bool {
        self.reclaiming.is_some()
    }
}

#[actix::test]
async fn a_failed_reclaim_is_tried_again_at_the_next_tick() {
    let state = TestState::empty();
    let mut answers = [
        Err(ProposeError::Overloaded),
        Err(ProposeError::Unknown("lost".to_owned())),
        Ok(Ok(Outcome::Reclaimed {
            records: 0,
            more: false,
        })),
    ]
    .into_iter();
    let mut raft = Probe::new(move |_: &Propose| answers.next().unwrap());
    let data_servers = Probe::new(|_: &CheckHealth| ());
    let actor = SchedulerActor::new(
        SchedulerSettings {
            gc_interval: Duration::from_millis(1),
            ..settings()
        },
        state.reader(),
        raft.recipient(),
        data_servers.recipient(),
    )
    .start();
    let house = House {
        state,
        raft: Probe::new(|_: &Propose| unreachable!("not its Raft node")),
        gate: Rc::new(Semaphore::new(0)),
        data_servers,
        actor,
    };
    house.delete_a_tree(1);
    house.becomes(1, Role::Leader).await;
    for _ in 0..3 {
        assert_eq!(raft.next().await.op, RECLAIM);
    }
}
