//! Connections to other MetaServers, and how both ends of them are tuned.
//!
//! The clients of both peer services take their channels here; the wiring takes the server's bounds.
//!
//! Invariant: what must be quick never queues behind what is large: each [`Lane`] is a connection of
//! its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::connections::{AnswerBounds, Bounds};

/// The largest message that peers send each other: an append request is far smaller, but a single
/// entry must fit whatever a client sent.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// How long to wait for a connection before the peer counts as away.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// A connection that answers no ping for this long, sent as often, is closed.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Bytes that may be under way to a peer on one stream, and on one connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Heartbeats, votes, leadership transfer.
    Control,
    /// Log entries.
    Replication,
    /// Snapshots.
    Snapshot,
    /// The peer service: forwarded requests and reads.
    Peer,
}

/// An address that no connection can be made to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an address: {0}")]
pub struct InvalidAddress(String);

/// Connections, one for each address and lane, made when they are first used and made again whenever
/// they broke. Clones share them.
#[derive(Clone, Default)]
pub struct Channels {
    open: Arc<Mutex<HashMap<(String, Lane), Channel>>>,
}

impl Channels {
    /// The connection to `addr` (`host:port`) for `lane`. Does not wait: a call on it connects first
    /// if it must. Must be called on the runtime that will use it.
    ///
    /// # Errors
    /// `addr` is no address.
    pub fn get(&self, addr: &str, lane: Lane) -> Result<Channel, InvalidAddress> {
        // A map of handles is never half changed.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = open.get(&(addr.to_owned(), lane)) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{addr}"))
            .map_err(|_| InvalidAddress(addr.to_owned()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let channel = endpoint.connect_lazy();
        open.insert((addr.to_owned(), lane), channel.clone());
        Ok(channel)
    }
}

/// Connections to `raft_addr`: each peer has one a [`Lane`]; the rest is for those that are being restarted,
/// and for strangers until they are found out.
const CONNECTIONS: usize = 256;

/// How long a connection may take to say that it speaks HTTP/2, and until one of its calls was meant for this
/// node: peers call at once.
const GREETING: Duration = Duration::from_secs(5);
const STRANGERS: Duration = Duration::from_secs(10);

/// How long an answer may wait to be taken: a peer that does not read is not there.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// What the server on `raft_addr` lets its connections take; `calls` are let in at once (see
/// [`super::guard`]).
pub fn server_bounds(calls: usize) -> Bounds {
    Bounds {
        connections: CONNECTIONS,
        // Peers try again by themselves; nobody else needs to be told why.
        excess: 0,
        excess_time: Duration::ZERO,
        streams: u32::try_from(calls).unwrap_or(u32::MAX).saturating_add(1024),
        stream_window: STREAM_WINDOW,
        connection_window: CONNECTION_WINDOW,
        keepalive: (KEEP_ALIVE, KEEP_ALIVE),
        greeting: GREETING,
        strangers: Some(STRANGERS),
        answer_time: ANSWER_TIME,
        answers: AnswerBounds {
            each: MAX_MESSAGE_BYTES,
            total: 4 * MAX_MESSAGE_BYTES,
        },
    }
}
