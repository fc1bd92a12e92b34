//! What the DataServers' actor understands.

use std::sync::Arc;
use std::time::Instant;

use actix::Message;

use crate::domain::command::{AllocationPlan, Refusal};
use crate::domain::ids::{BlockId, ServerId};

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
    /// Every block that it holds, in the order that it sent them.
    pub blocks: Vec<u64>,
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
#[rtype(result = "Vec<ServerReport>")]
pub struct GetReports;

/// What one DataServer reported last, in the order of their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerReport {
    /// Its number.
    pub server: ServerId,
    /// `host:port`.
    pub addr: String,
    /// The blocks that it holds, sorted, each once; empty until it beats to this leader.
    pub blocks: Arc<[u64]>,
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
