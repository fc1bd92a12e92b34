//! The other DataServers: connections to them, and which address is this one's own.
//!
//! Used by the pipeline, which passes blocks on, and by whatever copies a block from another DataServer.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use super::settings::addresses;
use crate::proto::dfs::data_server_service_client::DataServerServiceClient;

/// The client of another DataServer.
pub(super) type Peer = DataServerServiceClient<Channel>;

/// A DataServer that is there accepts a connection within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that answers no ping for this long, sent as often, is closed.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Bytes that may be under way to this server on one stream and on one connection: many blocks share a
/// connection, and one that stands still must not hold up the others.
pub(super) const STREAM_WINDOW: u32 = 512 << 10;
pub(super) const CONNECTION_WINDOW: u32 = 16 << 20;
/// More connections than a cluster needs; beyond it they are made anew.
const MAX_CHANNELS: usize = 1024;

/// Where this DataServer is.
#[derive(Debug, Clone)]
pub(super) struct Myself {
    /// `host:port`, as others know it.
    pub advertised: String,
    pub listening: SocketAddr,
}

impl Myself {
    /// Whether a connection to `addr` would end here. Careful rather than clever: another DataServer on
    /// the same port of another host is not this one, and names are not resolved.
    pub fn is_at(&self, addr: &str) -> bool {
        if addr.eq_ignore_ascii_case(&self.advertised) {
            return true;
        }
        let Some((host, port)) = addr.rsplit_once(':') else {
            return false;
        };
        if port.parse() != Ok(self.listening.port()) {
            return false;
        }
        let mine = self.listening.ip();
        if host.eq_ignore_ascii_case("localhost") {
            return mine.is_loopback() || mine.is_unspecified();
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<IpAddr>() {
            Ok(ip) if mine.is_unspecified() => ip.is_loopback() || ip.is_unspecified(),
            // A connection to the unspecified address goes to the loopback.
            Ok(ip) => ip == mine || (ip.is_unspecified() && mine.is_loopback()),
            Err(_) => false,
        }
    }
}

/// Connections, one for each address, made when they are first used and made again whenever they broke.
/// Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Peers {
    me: Arc<Myself>,
    open: Arc<Mutex<HashMap<String, Channel>>>,
}

impl Peers {
    pub fn new(me: Myself) -> Peers {
        Peers {
            me: Arc::new(me),
            open: Arc::default(),
        }
    }

    pub fn me(&self) -> &Myself {
        &self.me
    }

    /// Those of `replicas` that are not this server, each once and in their order.
    ///
    /// # Errors
    /// Names the first that is no address.
    pub fn others(&self, replicas: &[String]) -> Result<Vec<String>, String> {
        let mut others: Vec<String> = Vec::new();
        for addr in replicas {
            match addresses(addr)?.as_slice() {
                [one] if one == addr => (),
                _ => return Err(format!("not an address of the form host:port: {addr:?}")),
            }
            if !self.me.is_at(addr) && !others.contains(addr) {
                others.push(addr.clone());
            }
        }
        Ok(others)
    }

    /// The client of the DataServer at `addr`. Does not wait: a call connects first if it must.
    ///
    /// # Errors
    /// `addr` is no address.
    pub fn get(&self, addr: &str) -> Result<Peer, String> {
        // A map of handles is never half changed.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = open.get(addr) {
            return Ok(Peer::new(channel.clone()));
        }
        addresses(addr)?;
        let channel = Endpoint::from_shared(format!("http://{addr}"))
            .map_err(|_| format!("not an address: {addr:?}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_lazy();
        if open.len() >= MAX_CHANNELS {
            open.clear();
        }
        open.insert(addr.to_owned(), channel.clone());
        Ok(Peer::new(channel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(advertised: &str, listening: &str) -> Myself {
        Myself {
            advertised: advertised.to_owned(),
            listening: listening.parse().unwrap(),
        }
    }

    #[test]
    fn an_address_is_mine_only_when_a_connection_would_end_here() {
        let everywhere = at("ds-1.local:8001", "0.0.0.0:8001");
        for addr in [
            "ds-1.local:8001",
            "DS-1.local:8001",
            "localhost:8001",
            "127.0.0.1:8001",
            "127.0.0.2:8001",
            "0.0.0.0:8001",
            "[::1]:8001",
        ] {
            assert!(everywhere.is_at(addr), "{addr}");
        }
        for addr in [
            "ds-2.local:8001",
            "10.0.0.2:8001",
            "localhost:8002",
            "ds-1.local:8002",
            "ds-1.local",
            "",
        ] {
            assert!(!everywhere.is_at(addr), "{addr}");
        }
        let mapped = at("10.0.0.1:9001", "10.0.0.9:8001");
        assert!(mapped.is_at("10.0.0.1:9001") && mapped.is_at("10.0.0.9:8001"));
        for addr in [
            "10.0.0.1:8001",
            "localhost:8001",
            "127.0.0.1:8001",
            "0.0.0.0:8001",
        ] {
            assert!(!mapped.is_at(addr), "{addr}");
        }
        let local = at("localhost:8001", "127.0.0.1:8001");
        assert!(local.is_at("127.0.0.1:8001") && local.is_at("0.0.0.0:8001"));
        assert!(!local.is_at("127.0.0.2:8001") && !local.is_at("[::1]:8001"));
    }

    #[test]
    fn the_others_are_without_me_and_without_repeats() {
        let peers = Peers::new(at("localhost:1", "127.0.0.1:1"));
        let list = ["a:1", "127.0.0.1:1", "b:1", "a:1", "localhost:1"].map(str::to_owned);
        assert_eq!(peers.others(&list).unwrap(), ["a:1", "b:1"]);
        assert_eq!(peers.others(&[]).unwrap(), [""; 0]);
        for wrong in ["a", "a:1,b:1", "", " a:1"] {
            let error = peers.others(&[wrong.to_owned()]).unwrap_err();
            assert!(error.contains("not an address"), "{wrong}: {error}");
        }
    }
}
