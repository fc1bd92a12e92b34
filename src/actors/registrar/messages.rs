//! What the registrar understands besides `raft_node`'s `LeadershipChanged`, and what its own tasks
//! report to it.

use actix::Message;

use super::data_server_keys::DataServerKey;

/// Asks the registrar to take this node out of etcd: its key is deleted and its lease revoked.
/// Answered when that is done, or after [`super::FAREWELL`] when etcd does not answer; then the key
/// goes when its lease runs out. Nothing is registered again afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Unregister;

/// The two things that are done with etcd, each by a task with a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// This node's key, its lease, and the other nodes' stale claims.
    Registration,
    /// Watching the DataServers' keys.
    DataServers,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 2] = [Part::Registration, Part::DataServers];
}

/// A task does its part: what had to be written is written, what had to be read is read.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub(super) struct EtcdReached {
    pub part: Part,
}

/// A task could not do its part, or not go on with it, and tries again.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub(super) struct EtcdLost {
    pub part: Part,
    pub reason: String,
}

/// All keys of DataServers that there are. Answered when the neighbours have taken the news.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub(super) struct DataServersListed(pub Vec<DataServerKey>);

/// A DataServer's key was written. Answered when the neighbour has taken the news.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub(super) struct DataServerKeyPut(pub DataServerKey);

/// A DataServer's key was deleted or has expired. Answered when the neighbour has taken the news.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub(super) struct DataServerKeyGone {
    pub id: String,
}
