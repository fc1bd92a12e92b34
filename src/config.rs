//! `config.yaml` → validated, typed settings.
//!
//! [`Config::load`] reads the file, refuses every key it does not know and every value that cannot work
//! (each named with its full dotted name, all of them at once), and fills in what was left out.
//! [`Config::for_node`] then adds the command line and says what *this* node is called, where it listens
//! and where its data lies. Called by `metaserver` at start, before anything else exists. The invariant:
//! whoever holds a [`Config`] from here need not check any of its values again.
//!
//! Durations are written `500ms`, `1s`, `2m`. Byte counts are whole numbers, or numbers with the unit
//! `KiB`, `MiB`, `GiB` or `TiB`. Relative paths start at the working directory.

mod read;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Every setting of a MetaServer, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `server`: the clients' side.
    pub server: Server,
    /// `database`: where the state lies.
    pub database: Database,
    /// `cluster`: replication of blocks and the health of DataServers.
    pub cluster: Cluster,
    /// `etcd`: discovery.
    pub etcd: Etcd,
    /// `raft`: the MetaServers among themselves.
    pub raft: Raft,
    /// `scheduler`: upkeep.
    pub scheduler: Scheduler,
    /// `logging`: what is logged, and where.
    pub logging: Logging,
    /// `reads`: how fresh a read has to be.
    pub reads: ReadMode,
}

/// `server`: the clients' side.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// `grpc_port`: the port that clients and DataServers call, unless `--port` or `--node-id` is given.
    pub grpc_port: u16,
    /// `request_timeout`: every request is answered within this time, whatever happens.
    pub request_timeout: Duration,
    /// `max_in_flight`: requests worked on at once; one more is refused with `RESOURCE_EXHAUSTED`.
    pub max_in_flight: usize,
    /// `max_connections`: connections of clients served at once; requests on one more are refused with
    /// `RESOURCE_EXHAUSTED`. Fewer where the system does not allow as many open files.
    pub max_connections: usize,
    /// `grpc_threads`: threads that serve clients' connections beside the one of the actors; `None`, written
    /// `auto`: as many as fit the processors.
    pub grpc_threads: Option<usize>,
}

/// `database`: where the state lies.
#[derive(Clone, Debug, PartialEq)]
pub struct Database {
    /// `dir` (old name `badger_dir`): the data directory. [`NodeSettings::data_dir`] is the one to use.
    pub dir: PathBuf,
    /// `map_size`, bytes: what the state may grow to. Costs nothing until used.
    pub map_size: u64,
    /// `min_free_space`, bytes: with less than this, and room for a snapshot, the node takes no more writes.
    /// 0: it never looks.
    pub min_free_space: u64,
    /// `verify_at_start`: the state and the newest snapshot are read through before the node serves.
    pub verify_at_start: bool,
    /// `verify_first_up_to`, bytes: a larger state that was closed cleanly is read through while the node serves.
    pub verify_first_up_to: u64,
    /// `compare_interval`: between two comparisons of this node's state hash with its peers'.
    pub compare_interval: Duration,
}

/// `cluster`: replication of blocks and the health of DataServers.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// `default_replication`: replicas of each block.
    pub default_replication: u32,
    /// `heartbeat_timeout`: a DataServer silent for this long gets no new blocks.
    pub heartbeat_timeout: Duration,
    /// `permanent_down_threshold`: a DataServer silent for this long has lost its blocks. Never shorter
    /// than `heartbeat_timeout`.
    pub permanent_down_threshold: Duration,
    /// `max_file_size`, bytes: the largest file that gets blocks.
    pub max_file_size: u64,
}

/// `etcd`: discovery.
#[derive(Clone, Debug, PartialEq)]
pub struct Etcd {
    /// `endpoints`, each `host:port` (or `http://host:port`); an empty list turns discovery off.
    pub endpoints: Vec<String>,
    /// `timeout`: of one request to etcd.
    pub timeout: Duration,
    /// `dataServer_key_prefix`: what DataServers' keys begin with.
    pub data_server_key_prefix: String,
}

/// `raft`: the MetaServers among themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct Raft {
    /// `peers`: every MetaServer of the cluster, this one included. The one key that must be there.
    pub peers: Vec<Peer>,
    /// `heartbeat_timeout`, in the words of the first server; see [`Raft::timing`].
    pub heartbeat_timeout: Duration,
    /// `election_timeout`, in the words of the first server; see [`Raft::timing`].
    pub election_timeout: Duration,
    /// `snapshot_interval`: a process takes no more than one snapshot in this time. Its first comes as soon as
    /// enough entries have come since the newest one.
    pub snapshot_interval: Duration,
    /// `snapshot_threshold`: it is due after this many log entries since the last one; about as many are
    /// kept behind it for followers that lag.
    pub snapshot_threshold: u64,
}

/// One entry of `raft.peers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// `id`: its name, such as `meta-9090`.
    pub id: String,
    /// `raft_addr`: `host:port` where the other MetaServers reach it.
    pub raft_addr: String,
    /// `grpc_addr`: `host:port` where clients and DataServers reach it.
    pub grpc_addr: String,
}

/// `scheduler`: upkeep.
#[derive(Clone, Debug, PartialEq)]
pub struct Scheduler {
    /// `fsck_interval`: between two looks at all replicas. What DataServers report in between is seen to
    /// earlier.
    pub fsck_interval: Duration,
    /// `gc_interval`: between two rounds of deleting garbage blocks.
    pub gc_interval: Duration,
    /// `block_size`, bytes. The SDK cuts files into 4 MiB blocks whatever is said here.
    pub block_size: u64,
    /// `max_concurrent_repairs`: blocks being copied at once.
    pub max_concurrent_repairs: usize,
    /// `write_lease`: a write that is neither finalized nor goes on for so long is abandoned.
    pub write_lease: Duration,
    /// `orphan_grace`: a block that DataServers hold and no record names is left alone for so long.
    /// Longer than `write_lease`.
    pub orphan_grace: Duration,
    /// `mass_delete_share`: where more than this share of a DataServer's blocks is in nobody's records,
    /// they are not deleted before an operator allows it. More than 0, at most 1.
    pub mass_delete_share: f64,
}

/// `logging`: what is logged, and where. `crate::logging` obeys it.
#[derive(Clone, Debug, PartialEq)]
pub struct Logging {
    /// `level`: a level, or directives as in `RUST_LOG`, which wins over it.
    pub level: String,
    /// `file`: appended to, beside stderr. Empty or null: stderr alone.
    pub file: Option<PathBuf>,
}

/// `reads`: how fresh a read has to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadMode {
    /// `linearizable`: the leader asks a majority whether it still leads, before each (shared) read.
    #[default]
    Linearizable,
    /// `lease`: the leader answers while its lease lasts; assumes that clocks drift apart within bounds.
    Lease,
    /// `local`: every node answers with what it has; an answer may be old.
    Local,
}

/// The timing that openraft gets, in its own words. See [`Raft::timing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftTiming {
    /// The leader speaks this often. Whole milliseconds.
    pub heartbeat_interval: Duration,
    /// A follower waits at least this long beyond the lease before it stands for election. Whole milliseconds.
    pub election_timeout_min: Duration,
    /// And at most this long; it is the length of the leader's lease, too. Whole milliseconds.
    pub election_timeout_max: Duration,
}

/// What the command line says about this node; `None` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// `--port`: gRPC for clients and DataServers.
    pub port: Option<u16>,
    /// `--raft-port`.
    pub raft_port: Option<u16>,
    /// `--node-id`; otherwise the name is `meta-<port>`.
    pub node_id: Option<String>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
}

/// A configuration file that was accepted.
#[derive(Debug, PartialEq)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// What the operator should know and need not act on; one line each.
    pub warnings: Vec<String>,
}

/// Who this node is. From [`Config::for_node`].
#[derive(Clone, Debug, PartialEq)]
pub struct NodeSettings {
    /// Its name, the `id` of [`NodeSettings::peer`].
    pub name: String,
    /// Its own entry in `raft.peers`: the addresses that others use.
    pub peer: Peer,
    /// `address:port` to listen on for clients and DataServers.
    pub grpc_listen: String,
    /// `address:port` to listen on for the other MetaServers.
    pub raft_listen: String,
    /// Where its data lies.
    pub data_dir: PathBuf,
    /// Everything else; `logging.file` is this node's own.
    pub config: Config,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not YAML.
    #[error("{} is not valid YAML: {message}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// What the parser said, with the line.
        message: String,
    },
    /// Keys or values that are refused; all of them, in the order of their names.
    #[error("the configuration {} is refused: {}", path.display(), Problems(problems))]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problems: Vec<Problem>,
    },
    /// This node is not one of `raft.peers`.
    #[error("raft.peers: no peer has the id `{id}` (the ids are {}); give --port or --node-id to name one of them", known.join(", "))]
    UnknownNode {
        /// The name that was looked for.
        id: String,
        /// The names that are there.
        known: Vec<String>,
    },
}

/// One thing that is wrong with a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The full dotted name, such as `raft.peers[1].grpc_addr`.
    pub key: String,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.what)
    }
}

/// One problem on the same line, several on a line each.
struct Problems<'a>(&'a [Problem]);

impl fmt::Display for Problems<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [only] => write!(f, "{only}"),
            many => many.iter().try_for_each(|problem| write!(f, "\n  {problem}")),
        }
    }
}

impl Default for Server {
    fn default() -> Server {
        Server {
            grpc_port: 9090,
            request_timeout: Duration::from_secs(5),
            max_in_flight: 4096,
            max_connections: 16_384,
            grpc_threads: None,
        }
    }
}

impl Default for Database {
    fn default() -> Database {
        Database {
            dir: "./metadb".into(),
            map_size: TIB,
            min_free_space: 512 * MIB,
            verify_at_start: true,
            verify_first_up_to: 256 * MIB,
            compare_interval: Duration::from_secs(10),
        }
    }
}

impl Default for Cluster {
    fn default() -> Cluster {
        Cluster {
            default_replication: 3,
            heartbeat_timeout: Duration::from_secs(15),
            permanent_down_threshold: Duration::from_secs(60),
            max_file_size: 16 * TIB,
        }
    }
}

impl Default for Etcd {
    fn default() -> Etcd {
        Etcd {
            endpoints: vec!["localhost:2379".into()],
            timeout: Duration::from_secs(5),
            data_server_key_prefix: "/dfs/dataServers/".into(),
        }
    }
}

/// Without peers: add them.
impl Default for Raft {
    fn default() -> Raft {
        Raft {
            peers: vec![],
            heartbeat_timeout: Duration::from_secs(1),
            election_timeout: Duration::from_secs(1),
            snapshot_interval: Duration::from_secs(120),
            snapshot_threshold: 8192,
        }
    }
}

impl Default for Scheduler {
    fn default() -> Scheduler {
        Scheduler {
            fsck_interval: Duration::from_secs(30),
            gc_interval: Duration::from_secs(60),
            block_size: 4 * MIB,
            max_concurrent_repairs: 100,
            write_lease: Duration::from_secs(3600),
            orphan_grace: Duration::from_secs(2 * 3600),
            mass_delete_share: 0.2,
        }
    }
}

impl Default for Logging {
    fn default() -> Logging {
        Logging {
            level: "info".into(),
            file: Some("./logs/metaServer.log".into()),
        }
    }
}

impl Raft {
    /// Translates the first server's two timeouts into openraft's three.
    ///
    /// There, a follower that heard nothing for `heartbeat_timeout` stood for election, and waited
    /// `election_timeout` for its result; at 1 s and 1 s a new leader is promised within 1 to 2 s. Here a
    /// follower refuses votes while the old leader's lease of `election_timeout_max` lasts, so that a dead
    /// leader is replaced after about `election_timeout_max + random(election_timeout_min..max)`. So:
    ///
    /// | openraft | of `election_timeout` | at 1 s |
    /// |---|---|---|
    /// | `election_timeout_max` | 40 % | 400 ms |
    /// | `election_timeout_min` | 25 % | 250 ms |
    /// | `heartbeat_interval` | 10 %, and not over 10 % of `heartbeat_timeout` | 100 ms |
    ///
    /// which replaces a leader in 0.65 to 0.8 s, a margin for the vote itself and for a second round.
    /// An `election_timeout` below 200 ms counts as 200 ms, and heartbeats are never less than 20 ms apart:
    /// below that, the flush of a busy disk looks like a dead leader.
    pub fn timing(&self) -> RaftTiming {
        const SHORTEST_ELECTION: u64 = 200;
        const SHORTEST_HEARTBEAT: u64 = 20;
        let election = millis(self.election_timeout).max(SHORTEST_ELECTION);
        let heartbeat = (election / 10)
            .min(millis(self.heartbeat_timeout) / 10)
            .max(SHORTEST_HEARTBEAT);
        RaftTiming {
            heartbeat_interval: Duration::from_millis(heartbeat),
            election_timeout_min: Duration::from_millis(election / 4),
            election_timeout_max: Duration::from_millis(election * 2 / 5),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
}

impl Config {
    /// The defaults, for these peers: what a file with nothing but `raft.peers` says. Does not check them.
    pub fn with_peers(peers: Vec<Peer>) -> Config {
        Config {
            server: Server::default(),
            database: Database::default(),
            cluster: Cluster::default(),
            etcd: Etcd::default(),
            raft: Raft {
                peers,
                ..Raft::default()
            },
            scheduler: Scheduler::default(),
            logging: Logging::default(),
            reads: ReadMode::default(),
        }
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, is not YAML, or holds keys or values that are refused.
    pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Config::parse(&text, path)
    }

    /// Checks the text of a file; `path` is for the messages.
    pub(crate) fn parse(text: &str, path: &Path) -> Result<Loaded, ConfigError> {
        read::config(text).map_err(|refusal| match refusal {
            read::Refusal::Yaml(message) => ConfigError::Yaml {
                path: path.to_owned(),
                message,
            },
            read::Refusal::Problems(problems) => ConfigError::Refused {
                path: path.to_owned(),
                problems,
            },
        })
    }

    /// Says who this node is: the settings of the file, with the command line on top.
    ///
    /// - **Name**: `--node-id`, else `meta-<port>` with `--port` or `server.grpc_port`. It must be in
    ///   `raft.peers`.
    /// - **Ports**: `--port` and `--raft-port`, else those of the peer's own entry (with neither `--port` nor
    ///   `--node-id`, gRPC listens on `server.grpc_port`, which made the name).
    /// - **Listening**: on all interfaces, for the others are remote; but on the loopback interface alone
    ///   where the peer's own entry advertises `localhost`, `127.…` or `[::1]`.
    /// - **Data**: `--data-dir`, else `database.dir`. But when other peers have the same host as this one,
    ///   they share the machine, the file and so `database.dir`: each then takes `<database.dir>/<name>`.
    /// - **Log file**: `logging.file`; when peers share the machine, with `-<name>` before its extension
    ///   (`logs/metaServer-meta-9090.log`).
    ///
    /// # Errors
    /// [`ConfigError::UnknownNode`] when `raft.peers` has no such name.
    pub fn for_node(self, overrides: Overrides) -> Result<NodeSettings, ConfigError> {
        let Overrides {
            port,
            raft_port,
            node_id,
            data_dir,
        } = overrides;
        let named = node_id.is_some();
        let name = node_id.unwrap_or_else(|| format!("meta-{}", port.unwrap_or(self.server.grpc_port)));
        let Some(peer) = self.raft.peers.iter().find(|peer| peer.id == name).cloned() else {
            let known = self.raft.peers.iter().map(|peer| peer.id.clone()).collect();
            return Err(ConfigError::UnknownNode { id: name, known });
        };
        let fallback_port = (!named).then_some(self.server.grpc_port);
        let shared = self
            .raft
            .peers
            .iter()
            .any(|other| other.id != name && share_a_machine(other, &peer));
        let mut config = self;
        if shared {
            config.logging.file = config.logging.file.map(|file| with_name(&file, &name));
        }
        let data_dir = data_dir.unwrap_or_else(|| match shared {
            true => config.database.dir.join(&name),
            false => config.database.dir.clone(),
        });
        Ok(NodeSettings {
            grpc_listen: listen_on(&peer.grpc_addr, port.or(fallback_port)),
            raft_listen: listen_on(&peer.raft_addr, raft_port),
            name,
            peer,
            data_dir,
            config,
        })
    }
}

impl NodeSettings {
    /// Ports that this node listens on and its entry in `raft.peers` does not advertise: right behind a port
    /// mapping, otherwise a slip of the command line that leaves the node unreachable. One line each.
    pub fn warnings(&self) -> Vec<String> {
        let pairs = [
            ("grpc_addr", "--port", &self.peer.grpc_addr, &self.grpc_listen),
            (
                "raft_addr",
                "--raft-port",
                &self.peer.raft_addr,
                &self.raft_listen,
            ),
        ];
        let differ = pairs
            .into_iter()
            .filter(|(_, _, advertised, listen)| port_of(advertised) != port_of(listen));
        differ
            .map(|(key, option, advertised, listen)| {
                let name = &self.name;
                format!("{name} listens on {listen}, but raft.peers says {key} {advertised}: check {option}")
            })
            .collect()
    }
}

/// The host of a checked `host:port`, without the brackets of an IPv6 address.
fn host_of(addr: &str) -> &str {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

fn port_of(addr: &str) -> &str {
    addr.rsplit_once(':').map_or("", |(_, port)| port)
}

/// Whether a host is this machine, whoever says it.
fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Peers with one configuration file and the same host run side by side.
fn share_a_machine(a: &Peer, b: &Peer) -> bool {
    let (a, b) = (host_of(&a.raft_addr), host_of(&b.raft_addr));
    a.eq_ignore_ascii_case(b) || (is_loopback(a) && is_loopback(b))
}

/// Where to listen so that `advertised` reaches us: see [`Config::for_node`].
fn listen_on(advertised: &str, port: Option<u16>) -> String {
    let host = host_of(advertised);
    let address = match host.parse::<IpAddr>() {
        Ok(ip) if ip.is_loopback() => host,
        Ok(IpAddr::V6(_)) => "::",
        Ok(IpAddr::V4(_)) => "0.0.0.0",
        Err(_) if is_loopback(host) => "127.0.0.1",
        Err(_) => "0.0.0.0",
    };
    let port = port.map_or_else(|| port_of(advertised).to_owned(), |port| port.to_string());
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

/// `logs/metaServer.log` → `logs/metaServer-meta-9090.log`.
fn with_name(file: &Path, name: &str) -> PathBuf {
    let mut own = file.file_stem().unwrap_or_default().to_owned();
    own.push(format!("-{name}"));
    if let Some(extension) = file.extension() {
        own.push(".");
        own.push(extension);
    }
    file.with_file_name(own)
}
