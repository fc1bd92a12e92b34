//! What the DataServers' actor understands.

use actix::Message;

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
