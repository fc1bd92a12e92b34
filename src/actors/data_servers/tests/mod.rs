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

mod beats;
mod health;
mod orders;

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
        max_concurrent_repairs: 100,
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
        self.actor.send(GetReports).await.unwrap().servers
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
        corrupt: vec![],
        block_count: blocks.len() as u64,
        blocks: blocks.into(),
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
