//! What the scheduler understands: its ticks. Its other news is the Raft node's.

use actix::Message;

/// It is time to judge the DataServers' health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct HealthCheckDue;

/// It is time to look for deleted directories whose records are still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct ReclaimDue;
