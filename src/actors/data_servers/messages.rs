//! What the DataServers' actor understands.

use std::sync::Arc;
use std::time::Instant;

use actix::Message;

use crate::domain::census::{Census, Reported};
use crate::domain::command::{AllocationPlan, Refusal};
use crate::domain::ids::{BlockId, ServerId};
use crate::domain::state::ServerStatus;
use crate::proto::heartbeat::BlockIds;

/// A DataServer's key appeared or changed in etcd.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct DataServerAnnounced {
    /// The last part of its key.
    pub id: String,
    /// `host:port`, as it advertises itself.
    pub addr: String,
}

/// A DataServer's key is gone from etcd: it left, or its lease ran out.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct DataServerWithdrawn {
    /// The last part of its key.
    pub id: String,
}

/// A DataServer beats. Only the leader takes beats; the gateways of followers pass them on to it.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<Vec<DataServerCommand>, HeartbeatError>")]
pub struct HeartbeatReceived {
    /// Its own name for itself.
    pub id: String,
    /// `host:port` at which it can be reached: never an unspecified address such as `0.0.0.0`.
    pub addr: String,
    /// Every block that it holds, as it sent them.
    pub blocks: BlockIds,
    /// Those that it holds damaged.
    pub corrupt: Vec<u64>,
    /// How many blocks it says that it holds.
    pub block_count: u64,
    /// Bytes.
    pub free_space: u64,
    /// Bytes.
    pub total_capacity: u64,
    /// When the DataServer stops waiting for the answer.
    pub deadline: Instant,
}

/// What a DataServer is told to do, in the answer to its beat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataServerCommand {
    /// Remove the block: a replicated record says that it is garbage.
    Delete(BlockId),
    /// Fetch the block.
    Copy {
        /// Which one.
        block: BlockId,
        /// `host:port` of a DataServer that holds it.
        from: String,
    },
}

/// Why a beat was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeartbeatError {
    /// This node does not lead (any more): beat at the leader.
    #[error("not the leader")]
    NotLeader,
    /// The DataServer could not be registered now; it will beat again.
    #[error("{0}")]
    Unavailable(String),
    /// The beat makes no sense.
    #[error("{0}")]
    Refused(Refusal),
}

/// Plans an allocation among the DataServers that are healthy now. Asked on the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<AllocationPlan, Refusal>")]
pub struct PlanAllocation {
    /// Bytes; more than 0.
    pub size: u64,
}

/// What every DataServer reported last. Known to the leader only: empty on other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Reports")]
pub struct GetReports;

/// What a leader was told by the DataServers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reports {
    /// Whether enough is known to copy and to delete: every DataServer that is not down has reported to
    /// this leader, or has had the time to.
    pub complete: bool,
    /// Changes whenever a report or a status did in a way that may call for upkeep: a replica is gone,
    /// damaged, or came where one was to be copied to. 0 exactly when nothing is known: this
    /// node does not lead, or cannot read its state.
    pub generation: u64,
    /// Every DataServer that has registered, in the order of their numbers.
    pub servers: Vec<ServerReport>,
}

impl From<&Reports> for Census {
    fn from(reports: &Reports) -> Self {
        let servers = reports.servers.iter().map(|report| Reported {
            server: report.server,
            status: report.status,
            alive: report.alive,
            reported_ms: report.reported_ms,
            takes_blocks: report.takes_blocks,
            free_space: report.free_space,
            blocks: report.blocks.clone(),
            corrupt: report.corrupt.clone(),
        });
        Census::new(servers.collect())
    }
}

/// What one DataServer reported last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerReport {
    /// Its number.
    pub server: ServerId,
    /// Its own name for itself.
    pub id: String,
    /// `host:port`.
    pub addr: String,
    /// Its replicated status.
    pub status: ServerStatus,
    /// When its last report came, Unix milliseconds by this leader's clock; `None` until it beats to
    /// this leader.
    pub reported_ms: Option<i64>,
    /// The blocks that it holds, sorted, each once; empty until it beats to this leader.
    pub blocks: Arc<[u64]>,
    /// The blocks that it holds damaged, sorted, each once; none of [`ServerReport::blocks`].
    pub corrupt: Arc<[u64]>,
    /// Whether new replicas may be placed there.
    pub takes_blocks: bool,
    /// Bytes.
    pub free_space: u64,
    /// Bytes.
    pub total_capacity: u64,
    /// Whether it beat within `cluster.heartbeat_timeout`. Until it beats to a new leader: what the
    /// replicated status says, for as long.
    pub alive: bool,
}

/// Judge the DataServers' health now. Sent by the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct CheckHealth {
    /// Now.
    pub at: Instant,
}

/// A replica to make: what FSCK found missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Which block.
    pub block: BlockId,
    /// Who shall have it.
    pub to: ServerId,
    /// Who has it, best source first; at least one.
    pub from: Vec<ServerId>,
}

/// A replica to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Removal {
    /// Who holds it.
    pub server: ServerId,
    /// Which block.
    pub block: BlockId,
}

/// What FSCK wants done. Takes the place of what it wanted before and was not handed out yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct RepairReplicas {
    /// The leader's term that it was planned in; orders of another one are dropped.
    pub term: u64,
    /// [`Reports::generation`] of the reports that it was planned from. When it is another one by now,
    /// `surplus` is dropped: what was one too many may be the last.
    pub generation: u64,
    /// The most urgent first.
    pub repairs: Vec<Repair>,
    /// Replicas too many.
    pub surplus: Vec<Removal>,
}

/// What garbage collection wants done. Takes the place of what it wanted before and was not handed out
/// yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct RemoveGarbage {
    /// The leader's term that it was planned in; orders of another one are dropped.
    pub term: u64,
    /// Replicas of garbage that are still reported.
    pub replicas: Vec<Removal>,
}

/// How many orders are under way and waiting. All 0 on nodes that do not lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "OrderCounts")]
pub struct GetOrders;

/// See [`GetOrders`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OrderCounts {
    /// Copies that were handed out, and neither reported nor expired.
    pub repairs_running: usize,
    /// Copies to be handed out.
    pub repairs_waiting: usize,
    /// Removals to be handed out.
    pub removals_waiting: usize,
}
