//! What the gateway understands, beside the news of [`LeadershipChanged`].

use actix::Message;

use crate::actors::raft_node::messages::LeadershipChanged;

/// Who leads, by the newest news? Asked by the gateway's own gRPC services; answered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "LeadershipChanged")]
pub struct WhoLeads;

/// Stop serving: health says so, no new connection or request is taken, those under way are
/// answered. The answer comes when all are, or after the time that a request may take at most; the
/// actor is stopped then. Sent again meanwhile, it is answered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Stop;
