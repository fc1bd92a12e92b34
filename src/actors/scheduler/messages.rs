//! What the scheduler understands: its ticks, and what operators ask. Its other news is the Raft node's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use actix::Message;

use crate::domain::fsck::FsckCounts;
use crate::domain::gc::{GcCounts, Strangers};
use crate::domain::ids::ServerId;

/// It is time to judge the DataServers' health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct HealthCheckDue;

/// It is time to look for deleted directories whose records are still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct ReclaimDue;

/// It is time to compare all replicas with the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct FsckDue;

/// It is time to look whether something happened that FSCK should see to before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct NewsDue;

/// It is time to collect garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct GcDue;

/// What upkeep found, for operators. Everything is empty on nodes that do not lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "UpkeepStatus")]
pub struct GetUpkeepStatus;

/// See [`GetUpkeepStatus`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpkeepStatus {
    /// The last complete pass of FSCK since this node leads.
    pub fsck: Option<FsckSummary>,
    /// The last complete pass of garbage collection since this node leads.
    pub gc: Option<GcSummary>,
    /// Records of deleted directories are being freed.
    pub reclaiming: bool,
}

/// What a pass of FSCK found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsckSummary {
    /// When it had seen everything.
    pub finished: Instant,
    /// How long that took.
    pub took: Duration,
    /// What it counted.
    pub counts: FsckCounts,
}

/// What a pass of garbage collection found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcSummary {
    /// When it had seen everything.
    pub finished: Instant,
    /// How long that took.
    pub took: Duration,
    /// What it counted.
    pub counts: GcCounts,
    /// The DataServers that hold blocks in nobody's records.
    pub strangers: BTreeMap<ServerId, Strangers>,
}

/// The operator's word that the deletes which are held back now may go on. Answers how many blocks it
/// allows: 0 when none are held back, or this node does not lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "u64")]
pub struct AllowMassDelete;
