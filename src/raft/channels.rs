//! Connections to other MetaServers, and how both ends of them are tuned.
//!
//! The clients of both peer services take their channels here; the wiring takes the server's settings.
//!
//! Invariant: what must be quick never queues behind what is large: each [`Lane`] is a connection of
//! its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Server};

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

/// The settings of the server on `raft_addr`. Give it its listener through
/// `TcpIncoming::from(listener).with_nodelay(Some(true))`: a server that does not bind by itself does
/// not set that.
pub fn server_builder() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}
