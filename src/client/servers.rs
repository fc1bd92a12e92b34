//! The servers that a client knows: one connection each, and which of them answered last.
//!
//! The list only grows. Servers that went away cost a refused connection now and then; in return an
//! index, once handed out, names the same server for the client's whole life.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use super::endpoints;
use super::error::Error;
use crate::proto::admin::admin_service_client::AdminServiceClient;
use crate::proto::dfs::meta_server_service_client::MetaServerServiceClient;

/// The largest answer that is read: a listing of about two million names.
const MAX_ANSWER: usize = 256 << 20;
/// A server that is there accepts a connection within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection with requests waiting is probed this often, and given up when the probe is not
/// answered within as long again: a host that vanished sends no reset.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Room for large listings on the wire.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// How many servers may be learnt from hints, so that a broken server cannot fill the list.
const MAX_SERVERS: usize = 64;

/// One server, connected when it is first asked and again whenever the connection was lost.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) addr: String,
    channel: Channel,
}

impl Server {
    pub(super) fn new(addr: &str) -> Result<Self, Error> {
        let addr = endpoints::address(addr)?;
        let channel = Endpoint::from_shared(format!("http://{addr}"))
            .map_err(|_| Error::Address(addr.clone()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_lazy();
        Ok(Self { addr, channel })
    }

    pub(super) fn meta(&self) -> MetaServerServiceClient<Channel> {
        MetaServerServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    pub(super) fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }
}

/// Every known server, and the one to begin with.
#[derive(Debug)]
pub(super) struct Servers {
    known: Mutex<Vec<Server>>,
    preferred: AtomicUsize,
}

impl Servers {
    pub(super) fn new(addresses: &[String]) -> Result<Self, Error> {
        let known = addresses
            .iter()
            .map(|addr| Server::new(addr))
            .collect::<Result<Vec<_>, _>>()?;
        if known.is_empty() {
            return Err(Error::Address(String::new()));
        }
        Ok(Self {
            known: Mutex::new(known),
            preferred: AtomicUsize::new(0),
        })
    }

    fn known(&self) -> MutexGuard<'_, Vec<Server>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self) -> usize {
        self.known().len()
    }

    /// The server with this index; indices come from this list and stay valid.
    pub(super) fn get(&self, index: usize) -> Server {
        let known = self.known();
        known[index % known.len()].clone()
    }

    pub(super) fn addresses(&self) -> Vec<String> {
        self.known().iter().map(|server| server.addr.clone()).collect()
    }

    pub(super) fn find(&self, addr: &str) -> Option<usize> {
        self.known().iter().position(|server| server.addr == addr)
    }

    /// The index of `addr`, added to the list when it is new. None when it is not an address.
    pub(super) fn learn(&self, addr: &str) -> Option<usize> {
        let mut known = self.known();
        if let Some(index) = known.iter().position(|server| server.addr == addr) {
            return Some(index);
        }
        if known.len() >= MAX_SERVERS {
            return None;
        }
        known.push(Server::new(addr).ok()?);
        Some(known.len() - 1)
    }

    /// The server that answered last, or that is known to lead.
    pub(super) fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    pub(super) fn prefer(&self, index: usize) {
        self.preferred.store(index, Ordering::Relaxed);
    }
}
