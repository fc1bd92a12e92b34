//! What goes out of the scheduler for what comes in.
//!
//! This file has the house around the actor, and its clocks; [`reclaim`], [`fsck`] and [`gc`] have the
//! stories, [`slices`] the reading of the state.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use actix::Addr;
use tokio::sync::Semaphore;

use super::super::data_servers::messages::{Reports, ServerReport};
use super::super::raft_node::messages::{ProposeError, ReadError, Role};
use super::super::testing::{Probe, TestState, role, wait_until};
use super::*;
use crate::domain::command::{AllocationPlan, Op, Outcome};
use crate::domain::ids::{BlockId, ServerId};
use crate::domain::path::CleanPath;
use crate::domain::state::{BlockRun, ReadTables, ServerStatus};

mod fsck;
mod gc;
mod reclaim;
mod slices;

/// The clocks are slow: tests send the ticks.
fn settings() -> SchedulerSettings {
    let slow = Duration::from_secs(3600);
    SchedulerSettings {
        heartbeat_timeout: slow,
        look_interval: slow,
        fsck_interval: slow,
        gc_interval: slow,
        write_lease: slow,
        orphan_grace: slow * 2,
        mass_delete_share: 0.2,
    }
}

/// An actor among its neighbours; the Raft node commits one proposal for each permit.
struct House {
    state: TestState,
    raft: Probe<Propose>,
    gate: Rc<Semaphore>,
    /// What the next proposals are answered instead of being committed.
    answers: Rc<RefCell<VecDeque<ProposeError>>>,
    /// What the Raft node says of the log; an answer needs a permit of `confirms`.
    index: Rc<RefCell<Result<u64, ReadError>>>,
    confirms: Rc<Semaphore>,
    read_index: Probe<GetReadIndex>,
    check_health: Probe<CheckHealth>,
    /// What `data_servers` says.
    told: Rc<RefCell<Reports>>,
    reports: Probe<GetReports>,
    repair: Probe<RepairReplicas>,
    remove: Probe<RemoveGarbage>,
    actor: Addr<SchedulerActor>,
}

impl House {
    fn new(settings: SchedulerSettings) -> Self {
        let (state, gate) = (TestState::empty(), Rc::new(Semaphore::new(0)));
        let answers = Rc::new(RefCell::new(VecDeque::new()));
        let (log, permits, failures) = (state.clone(), gate.clone(), answers.clone());
        let raft = Probe::slow(move |proposal: &Propose| {
            let (log, permits, op) = (log.clone(), permits.clone(), proposal.op.clone());
            let failures = failures.clone();
            async move {
                permits.acquire().await.unwrap().forget();
                let failure: Option<ProposeError> = failures.borrow_mut().pop_front();
                failure.map_or_else(|| Ok(log.apply(op)), Err)
            }
        });
        let index = Rc::new(RefCell::new(Ok(0)));
        let confirms = Rc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let (committed, permits) = (index.clone(), confirms.clone());
        let read_index = Probe::slow(move |_: &GetReadIndex| {
            let (committed, permits) = (committed.clone(), permits.clone());
            async move {
                permits.acquire().await.unwrap().forget();
                committed.borrow().clone()
            }
        });
        let check_health = Probe::new(|_: &CheckHealth| ());
        let told = Rc::new(RefCell::new(Reports::default()));
        let tells = told.clone();
        let reports = Probe::new(move |_: &GetReports| tells.borrow().clone());
        let (repair, remove) = (
            Probe::new(|_: &RepairReplicas| ()),
            Probe::new(|_: &RemoveGarbage| ()),
        );
        let neighbours = SchedulerNeighbours {
            propose: raft.recipient(),
            read_index: read_index.recipient(),
            check_health: check_health.recipient(),
            reports: reports.recipient(),
            repair: repair.recipient(),
            remove: remove.recipient(),
        };
        let actor = SchedulerActor::new(settings, state.reader(), neighbours);
        House {
            state,
            raft,
            gate,
            answers,
            index,
            confirms,
            read_index,
            check_health,
            told,
            reports,
            repair,
            remove,
            actor: actor.start(),
        }
    }

    /// This node leads, `servers` DataServers are registered, all have reported that they are empty, and
    /// the Raft node commits what it is given.
    async fn leading(settings: SchedulerSettings, servers: u32) -> Self {
        let house = House::new(settings);
        house.gate.add_permits(1 << 20);
        house.becomes(1, Role::Leader).await;
        for server in 1..=servers {
            let register = Op::RegisterDataServer {
                id: format!("ds-{server}"),
                addr: format!("host-{server}:8000"),
            };
            house.state.apply(register).unwrap();
            house.told.borrow_mut().servers.push(ServerReport {
                server: ServerId(server),
                id: format!("ds-{server}"),
                addr: format!("host-{server}:8000"),
                status: ServerStatus::Healthy,
                // Long after every command of the test state.
                reported_ms: Some(1_800_000_000_000),
                blocks: Arc::default(),
                corrupt: Arc::default(),
                takes_blocks: true,
                free_space: 1 << 40,
                total_capacity: 1 << 40,
                alive: true,
            });
        }
        house.told.borrow_mut().complete = true;
        house
    }

    async fn becomes(&self, term: u64, now: Role) {
        self.actor.send(role(term, now)).await.unwrap();
    }

    /// From now on `data_servers` says that a DataServer holds these blocks.
    fn reports(&self, server: u32, blocks: &[u64]) {
        self.change(server, |report| report.blocks = blocks.into());
    }

    /// A DataServer is permanently down.
    fn loses(&self, server: u32) {
        let status = ServerStatus::Down;
        let server_id = ServerId(server);
        self.state
            .apply(Op::SetDataServerStatus {
                server: server_id,
                status,
            })
            .unwrap();
        self.change(server, |report| {
            (report.status, report.alive, report.takes_blocks) = (status, false, false);
        });
    }

    /// The orders of FSCK so far, whatever reports they were planned from.
    async fn repairs(&mut self) -> Vec<RepairReplicas> {
        let mut orders = self.repair.so_far().await;
        for order in &mut orders {
            order.generation = 0;
        }
        orders
    }

    fn change(&self, server: u32, change: impl FnOnce(&mut ServerReport)) {
        let mut told = self.told.borrow_mut();
        change(&mut told.servers[server as usize - 1]);
        told.generation += 1;
    }

    /// Gives a file new blocks of 4 bytes, two replicas each, and does not finalize it.
    fn allocate(&self, path: &str, blocks: u64, servers: &[u32]) -> BlockRun {
        let op = Op::Allocate {
            path: CleanPath::parse(path).unwrap(),
            size: blocks * 4,
            plan: Some(AllocationPlan {
                block_size: 4,
                replication: 2,
                servers: servers.iter().copied().map(ServerId).collect(),
            }),
            staged: false,
        };
        match self.state.apply(op).unwrap() {
            Outcome::Allocated { blocks, .. } => blocks,
            other => panic!("{other:?}"),
        }
    }

    /// The same, finalized.
    fn write(&self, path: &str, blocks: u64, servers: &[u32]) -> BlockRun {
        let run = self.allocate(path, blocks, servers);
        let owned = self.state.reader().read(|view| view.run(run.first)).unwrap();
        let op = Op::Finalize {
            path: CleanPath::parse(path).unwrap(),
            inode: owned.unwrap().inode,
            size: blocks * 4,
            md5: String::new(),
            staged: None,
        };
        self.state.apply(op).unwrap();
        run
    }

    fn delete(&self, path: &str) {
        let op = Op::Delete {
            path: CleanPath::parse(path).unwrap(),
            recursive: true,
        };
        self.state.apply(op).unwrap();
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
        self.delete("/tree");
    }

    /// Files and directories, the root and those not yet reclaimed included.
    fn inodes(&self) -> u64 {
        let counters = self.state.reader().read(|view| view.counters());
        counters.unwrap().inodes
    }

    async fn next_proposal(&mut self) -> Op {
        self.raft.next().await.op
    }

    /// Waits until no pass is under way.
    async fn idle(&self) {
        let wait = async {
            loop {
                let busy = self.actor.send(Busy).await.unwrap();
                if !busy.fsck && !busy.gc {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let idle = tokio::time::timeout(Duration::from_secs(30), wait).await;
        idle.expect("the pass is over within 30 s");
    }

    /// Runs one pass of FSCK to its end.
    async fn fsck(&self) {
        self.actor.send(FsckDue).await.unwrap();
        self.idle().await;
    }

    /// Runs one pass of garbage collection to its end.
    async fn gc(&self) {
        self.actor.send(GcDue).await.unwrap();
        self.idle().await;
    }

    /// What was proposed and not looked at yet.
    async fn proposed(&mut self) -> Vec<Op> {
        let proposals = self.raft.so_far().await;
        proposals.into_iter().map(|proposal| proposal.op).collect()
    }

    /// Nothing that changes anything has left the actor.
    async fn nothing_left(&mut self, what: &str) {
        assert_eq!(self.proposed().await, [], "{what}");
        assert_eq!(self.repair.so_far().await, [], "{what}");
        assert_eq!(self.remove.so_far().await, [], "{what}");
    }
}

/// What is under way.
#[derive(actix::Message)]
#[rtype(result = "Activity")]
struct Busy;

struct Activity {
    reclaiming: bool,
    fsck: bool,
    gc: bool,
}

impl Handler<Busy> for SchedulerActor {
    type Result = MessageResult<Busy>;

    fn handle(&mut self, _: Busy, _: &mut Context<Self>) -> Self::Result {
        MessageResult(Activity {
            reclaiming: self.reclaiming.is_some(),
            fsck: self.fsck.is_running(),
            gc: self.gc.is_running(),
        })
    }
}

fn ids(servers: &[u32]) -> Vec<ServerId> {
    servers.iter().copied().map(ServerId).collect()
}

#[actix::test]
async fn health_is_checked_only_while_this_node_leads() {
    let mut house = House::new(settings());
    house.actor.send(HealthCheckDue).await.unwrap();
    house.becomes(2, Role::Follower).await;
    house.actor.send(HealthCheckDue).await.unwrap();
    house.becomes(1, Role::Leader).await;
    house.actor.send(HealthCheckDue).await.unwrap();
    assert_eq!(house.check_health.so_far().await, [], "news of an older term");
    house.becomes(3, Role::Leader).await;
    house.actor.send(HealthCheckDue).await.unwrap();
    assert_eq!(house.check_health.so_far().await.len(), 1);
    house.becomes(3, Role::Follower).await;
    house.actor.send(HealthCheckDue).await.unwrap();
    assert_eq!(house.check_health.so_far().await, []);
}

fn fast() -> SchedulerSettings {
    let fast = Duration::from_millis(1);
    SchedulerSettings {
        heartbeat_timeout: fast,
        look_interval: fast,
        fsck_interval: fast,
        gc_interval: fast,
        ..settings()
    }
}

#[actix::test]
async fn the_clocks_tick_by_themselves() {
    let mut house = House::leading(fast(), 1).await;
    house.check_health.next().await;
    house.check_health.next().await;
    house.repair.next().await;
    house.repair.next().await;
    house.remove.next().await;
    house.remove.next().await;
    house.delete_a_tree(1);
    assert!(matches!(house.next_proposal().await, Op::Reclaim { .. }));
}

#[actix::test]
async fn the_clocks_stop_with_the_actor() {
    let house = House::new(fast());
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
    let house = House::leading(settings(), 1).await;
    house.delete_a_tree(1);
    house.check_health.stop().await;
    house.raft.stop().await;
    house.repair.stop().await;
    house.remove.stop().await;
    for _ in 0..2 {
        house.actor.send(HealthCheckDue).await.unwrap();
        house.actor.send(ReclaimDue).await.unwrap();
        house.fsck().await;
        house.gc().await;
    }
    house.read_index.stop().await;
    house.fsck().await;
    house.reports.stop().await;
    house.gc().await;
    house.actor.send(NewsDue).await.unwrap();
    assert!(house.actor.connected());
}
