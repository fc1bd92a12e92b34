//! The values that MinFS keeps in etcd: a MetaServer's record, which we write and clients read, and
//! a DataServer's address, which it writes and we read. Pure text in, text out.
//!
//! Clients find the address by scanning for `"addr":"`, so a record is compact JSON with its keys in
//! a fixed order, and taking a claim back changes no byte but those of `is_leader`.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The role that every MetaServer states.
pub const ROLE: &str = "metaServer";

/// A MetaServer's record under [`super::NODES_PREFIX`]. The order of the fields is the order on the
/// wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node's name: `meta-9090`.
    pub id: String,
    /// Where clients reach it, `host:port`.
    pub addr: String,
    /// When it registered, RFC 3339.
    pub register_at: String,
    /// Always [`ROLE`].
    pub role: String,
    /// Whether it leads, as far as it knows.
    pub is_leader: bool,
    /// The newest Raft term of which the node knew the leader. Records of the first server have
    /// none: term 0.
    #[serde(default)]
    pub term: u64,
}

impl NodeRecord {
    /// The value to put into etcd.
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("a struct of strings and numbers is JSON")
    }

    /// Reads a value from etcd.
    ///
    /// # Errors
    /// It is not JSON, or lacks a field.
    pub fn decode(value: &[u8]) -> Result<NodeRecord, serde_json::Error> {
        serde_json::from_slice(value)
    }
}

/// The part of a node's record that leadership is decided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Claim {
    pub is_leader: bool,
    pub term: u64,
}

impl Claim {
    /// Reads it out of a record; of anything else: no claim, in term 0, and so nothing that could
    /// be cleared or obeyed.
    pub fn read(value: &[u8]) -> Claim {
        serde_json::from_slice(value).unwrap_or_default()
    }
}

/// The same record with `is_leader` false and every other byte as it was, whatever version of the
/// server wrote it. `None` when `value` is no record.
pub(super) fn without_claim(value: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Borrowed<'a> {
        #[serde(borrow)]
        is_leader: &'a RawValue,
    }
    let text = std::str::from_utf8(value).ok()?;
    let claim = serde_json::from_str::<Borrowed>(text).ok()?.is_leader.get();
    // The raw value is borrowed from `text`: its address tells where it stands there.
    let from = claim.as_ptr() as usize - text.as_ptr() as usize;
    Some([&text[..from], "false", &text[from + claim.len()..]].concat())
}

/// Why a DataServer's value is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAddress {
    /// Neither text nor a JSON object with an `addr`.
    #[error("neither host:port nor JSON with an addr")]
    Unreadable,
    /// The address is not `host:port`.
    #[error("not host:port: {0:?}")]
    NotHostPort(String),
}

/// Reads a DataServer's value: a bare `host:port`, or JSON with an `addr`. Gives `host:port`.
///
/// # Errors
/// The value is neither, or the address has no host or no port.
pub fn data_server_addr(value: &[u8]) -> Result<String, BadAddress> {
    #[derive(Deserialize)]
    struct Record {
        addr: String,
    }
    let text = std::str::from_utf8(value)
        .map_err(|_| BadAddress::Unreadable)?
        .trim();
    let addr = match text.starts_with('{') {
        true => {
            serde_json::from_str::<Record>(text)
                .map_err(|_| BadAddress::Unreadable)?
                .addr
        }
        false => text.to_owned(),
    };
    if is_host_port(&addr) {
        Ok(addr)
    } else {
        Err(BadAddress::NotHostPort(addr))
    }
}

/// Whether `addr` is a host (a name, an IPv4 address or an IPv6 address in brackets) and a port.
fn is_host_port(addr: &str) -> bool {
    let Some((host, port)) = addr.rsplit_once(':') else {
        return false;
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let strange = |c: char| c.is_whitespace() || c.is_control() || "/\"{},@".contains(c);
    !host.is_empty()
        && !host.contains(strange)
        && (bracketed || !host.contains(':'))
        && port.bytes().all(|b| b.is_ascii_digit())
        && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> NodeRecord {
        NodeRecord {
            id: "meta-9090".into(),
            addr: "localhost:9090".into(),
            register_at: "2026-01-02T03:04:05Z".into(),
            role: ROLE.into(),
            is_leader: true,
            term: 7,
        }
    }

    const GOLDEN: &str = r#"{"id":"meta-9090","addr":"localhost:9090","register_at":"2026-01-02T03:04:05Z","role":"metaServer","is_leader":true,"term":7}"#;

    #[test]
    fn a_record_is_written_as_the_clients_read_it() {
        assert_eq!(record().encode(), GOLDEN);
        // What the Java SDK does.
        let from = GOLDEN.find(r#""addr":""#).unwrap() + r#""addr":""#.len();
        let addr = &GOLDEN[from..from + GOLDEN[from..].find('"').unwrap()];
        assert_eq!(addr, "localhost:9090");
        assert!(chrono::DateTime::parse_from_rfc3339(&record().register_at).is_ok());
    }

    #[test]
    fn a_record_is_read_back() {
        assert_eq!(NodeRecord::decode(GOLDEN.as_bytes()).unwrap(), record());
        assert!(NodeRecord::decode(b"localhost:9090").is_err());
    }

    #[test]
    fn a_record_of_the_first_server_is_of_term_0() {
        let old = GOLDEN.replace(r#","term":7"#, "");
        assert_eq!(
            NodeRecord::decode(old.as_bytes()).unwrap(),
            NodeRecord { term: 0, ..record() }
        );
        assert_eq!(
            Claim::read(old.as_bytes()),
            Claim {
                is_leader: true,
                term: 0
            }
        );
    }

    #[test]
    fn what_is_no_record_claims_nothing() {
        for value in [
            "",
            "[]",
            "true",
            "localhost:9090",
            r#"{"is_leader":"yes"}"#,
            r#"{"term":-1}"#,
            "{",
        ] {
            assert_eq!(Claim::read(value.as_bytes()), Claim::default(), "{value}");
        }
        assert_eq!(Claim::read(&[0xff]), Claim::default());
    }

    #[test]
    fn clearing_a_claim_changes_nothing_else() {
        assert_eq!(
            without_claim(GOLDEN.as_bytes()).unwrap(),
            GOLDEN.replace(r#""is_leader":true"#, r#""is_leader":false"#)
        );
        // Another order, spaces, unknown fields, the words inside another string.
        let foreign = r#"{ "note":"\"is_leader\":true", "is_leader" : true , "weight": 1.50, "addr":"h:1" }"#;
        assert_eq!(
            without_claim(foreign.as_bytes()).unwrap(),
            r#"{ "note":"\"is_leader\":true", "is_leader" : false , "weight": 1.50, "addr":"h:1" }"#
        );
        assert_eq!(without_claim(b"localhost:9090"), None);
        assert_eq!(without_claim(b"{}"), None);
    }

    #[test]
    fn a_data_server_states_its_address_bare_or_in_json() {
        for (value, addr) in [
            ("10.0.0.1:8001", "10.0.0.1:8001"),
            ("  ds-1.local:8001\n", "ds-1.local:8001"),
            ("[::1]:8001", "[::1]:8001"),
            (
                r#"{"id":"ds-1","addr":"0.0.0.0:8001","register_at":"2026-01-02T03:04:05Z"}"#,
                "0.0.0.0:8001",
            ),
            (r#"{ "addr" : "h:1" }"#, "h:1"),
        ] {
            assert_eq!(data_server_addr(value.as_bytes()).as_deref(), Ok(addr));
        }
    }

    #[test]
    fn a_malformed_data_server_is_refused() {
        for value in [
            "",
            "host",
            "host:",
            ":80",
            "host:0",
            "host:65536",
            "host:+1",
            "a b:1",
            "::1:80",
            "http://h:1",
        ] {
            assert_eq!(
                data_server_addr(value.as_bytes()),
                Err(BadAddress::NotHostPort(value.into()))
            );
        }
        for value in [&b"{"[..], b"{}", br#"{"addr":1}"#, &[0xff, 0xfe]] {
            assert_eq!(data_server_addr(value), Err(BadAddress::Unreadable));
        }
    }
}
