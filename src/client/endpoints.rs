//! Where the MetaServers are: a list that the caller gives, or the nodes registered in etcd.
//!
//! The keys and values in etcd are part of the contract with other clients: one key a node below
//! [`NODES`], whose JSON value holds at least `addr` (`host:port`) and `is_leader`.

use std::time::Duration;

use etcd_client::{ConnectOptions, GetOptions};
use serde::Deserialize;

use super::error::Error;

/// The prefix of the MetaServers' keys in etcd.
pub const NODES: &str = "/minfs/metaServer/nodes/";

/// How long one look into etcd may take.
const ETCD_TIMEOUT: Duration = Duration::from_secs(3);

/// Where the addresses of the MetaServers come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// These servers, in the order of preference.
    Servers(Vec<String>),
    /// Whatever is registered in the etcd cluster with these endpoints.
    Etcd(Vec<String>),
}

impl Source {
    /// Reads `host:port[,host:port…]` as a list of MetaServers.
    ///
    /// # Errors
    /// [`Error::Address`] names the first part that is not an address.
    pub fn servers(list: &str) -> Result<Self, Error> {
        Ok(Source::Servers(addresses(list)?))
    }

    /// Reads `host:port[,host:port…]` as the endpoints of an etcd cluster.
    ///
    /// # Errors
    /// [`Error::Address`] names the first part that is not an address.
    pub fn etcd(list: &str) -> Result<Self, Error> {
        Ok(Source::Etcd(addresses(list)?))
    }
}

fn addresses(list: &str) -> Result<Vec<String>, Error> {
    let mut found: Vec<String> = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let address = address(part)?;
        if !found.contains(&address) {
            found.push(address);
        }
    }
    if found.is_empty() {
        return Err(Error::Address(list.to_string()));
    }
    Ok(found)
}

/// Checks one `host:port`. An IPv6 host stands in brackets.
pub(super) fn address(text: &str) -> Result<String, Error> {
    let wrong = || Error::Address(text.to_string());
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_fits = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
        }
    };
    match port.parse::<u16>() {
        Ok(1..) if host_fits => Ok(text.to_string()),
        _ => Err(wrong()),
    }
}

/// What a node says of itself in etcd; other fields are for other readers.
#[derive(Deserialize)]
struct Registration {
    addr: String,
    #[serde(default)]
    is_leader: bool,
}

/// The registered MetaServers, the leader first.
///
/// # Errors
/// [`Error::Unavailable`] when etcd does not answer or knows no MetaServer.
pub(super) async fn discover(etcd: &[String]) -> Result<Vec<String>, Error> {
    let asked = tokio::time::timeout(ETCD_TIMEOUT, read_nodes(etcd)).await;
    let values = match asked {
        Ok(Ok(values)) => values,
        Ok(Err(error)) => {
            return Err(Error::Unavailable(format!("etcd at {}: {error}", etcd.join(","))));
        }
        Err(_) => {
            return Err(Error::Unavailable(format!(
                "etcd at {} does not answer",
                etcd.join(",")
            )));
        }
    };
    let found = leader_first(&values);
    if found.is_empty() {
        return Err(Error::Unavailable(format!(
            "no MetaServer is registered in etcd at {} below {NODES}",
            etcd.join(",")
        )));
    }
    Ok(found)
}

async fn read_nodes(etcd: &[String]) -> Result<Vec<Vec<u8>>, etcd_client::Error> {
    let options = ConnectOptions::new()
        .with_connect_timeout(ETCD_TIMEOUT)
        .with_timeout(ETCD_TIMEOUT);
    let mut client = etcd_client::Client::connect(etcd, Some(options)).await?;
    let answer = client.get(NODES, Some(GetOptions::new().with_prefix())).await?;
    Ok(answer.kvs().iter().map(|pair| pair.value().to_vec()).collect())
}

/// The addresses in `values` (in key order), those that claim to lead before the others. A value
/// that cannot be read is left out: one broken key must not hide the other nodes.
pub(super) fn leader_first(values: &[Vec<u8>]) -> Vec<String> {
    let mut leaders = Vec::new();
    let mut others = Vec::new();
    for value in values {
        let node = match serde_json::from_slice::<Registration>(value) {
            Ok(node) => node,
            Err(error) => {
                log::warn!("a MetaServer's key in etcd cannot be read: {error}");
                continue;
            }
        };
        match address(&node.addr) {
            Ok(address) if node.is_leader => leaders.push(address),
            Ok(address) => others.push(address),
            Err(error) => log::warn!("a MetaServer's key in etcd is left out: {error}"),
        }
    }
    leaders.append(&mut others);
    leaders
}
