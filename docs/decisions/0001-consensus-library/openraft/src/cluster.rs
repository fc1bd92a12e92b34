//! A cluster of openraft nodes in one process: an in-memory store each (the library's own `openraft-memstore`),
//! and a network that can cut nodes off and remembers what it delivered, so that it can be delivered again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use openraft::alias::{EntryOf, LogIdOf, SnapshotOf, VoteOf};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::leader_id_adv::LeaderId;
use openraft::network::v2::RaftNetworkV2;
use openraft::network::{RPCOption, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::storage::RaftLogReader;
use openraft::vote::RaftLeaderId;
use openraft::{Config, Entry, EntryPayload, LogId, OptionalSend, Raft, RaftMetrics, ServerState};
use openraft_memstore::{ClientRequest, MemLogStore, MemStateMachine, TypeConfig};

pub type NodeId = u64;
pub type Node = Raft<TypeConfig, Arc<MemStateMachine>>;
pub type Append = AppendEntriesRequest<TypeConfig>;
pub type LogEntry = EntryOf<TypeConfig>;
type Metrics = RaftMetrics<TypeConfig>;

/// The disk of one node.
#[derive(Clone)]
pub struct Store {
    pub log: Arc<MemLogStore>,
    pub machine: Arc<MemStateMachine>,
}

impl Default for Store {
    fn default() -> Store {
        let (log, machine) = openraft_memstore::new_mem_store();
        Store { log, machine }
    }
}

impl Store {
    pub async fn entries(&self) -> Result<Vec<LogEntry>> {
        Ok(self.log.clone().try_get_log_entries(..).await?)
    }

    /// `(index, term)` of each entry in the log.
    pub async fn log(&self) -> Result<Vec<(u64, u64)>> {
        let entries = self.entries().await?;
        Ok(entries
            .iter()
            .map(|entry| (entry.log_id.index, entry.log_id.leader_id.term))
            .collect())
    }

    /// The index of the last applied entry.
    pub async fn applied(&self) -> Option<u64> {
        self.machine
            .get_state_machine()
            .await
            .last_applied_log
            .map(|log_id| log_id.index)
    }

    /// The applied value of a key.
    pub async fn value(&self, key: &str) -> Option<String> {
        self.machine
            .get_state_machine()
            .await
            .client_status
            .get(key)
            .cloned()
    }

    /// Every applied key.
    pub async fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> = self
            .machine
            .get_state_machine()
            .await
            .client_status
            .keys()
            .cloned()
            .collect();
        keys.sort();
        keys
    }
}

/// What all nodes and experiments share.
#[derive(Default)]
pub struct Network {
    nodes: Mutex<HashMap<NodeId, Node>>,
    /// Unreachable, in both directions.
    cut: Mutex<HashSet<NodeId>>,
    /// Every AppendEntries with entries in it, and whom it reached.
    delivered: Mutex<Vec<(NodeId, Append)>>,
}

/// One node's end of the network, towards one other.
pub struct Link {
    from: NodeId,
    to: NodeId,
    network: Arc<Network>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unreachable(why: impl std::fmt::Display) -> Unreachable<TypeConfig> {
    Unreachable::new(&std::io::Error::other(why.to_string()))
}

impl Link {
    async fn reach(&self) -> Result<Node, Unreachable<TypeConfig>> {
        let is_cut = {
            let cut = lock(&self.network.cut);
            cut.contains(&self.to) || cut.contains(&self.from)
        };
        if is_cut {
            pause(30).await;
            return Err(unreachable("cut off"));
        }
        lock(&self.network.nodes)
            .get(&self.to)
            .cloned()
            .ok_or_else(|| unreachable("not running"))
    }
}

impl RaftNetworkFactory<TypeConfig> for Link {
    type Network = Link;

    async fn new_client(&mut self, to: NodeId, _: &()) -> Link {
        Link {
            from: self.from,
            to,
            network: self.network.clone(),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = Cursor<Vec<u8>>;

    async fn append_entries(
        &mut self,
        message: Append,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let node = self.reach().await?;
        if !message.entries.is_empty() {
            lock(&self.network.delivered).push((self.to, message.clone()));
        }
        Ok(node.append_entries(message).await.map_err(unreachable)?)
    }

    async fn vote(
        &mut self,
        message: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Ok(self.reach().await?.vote(message).await.map_err(unreachable)?)
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotOf<TypeConfig, Self::SnapshotData>,
        _: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Ok(self
            .reach()
            .await?
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(unreachable)?)
    }
}

/// The write of key `k<i>`.
pub fn request(i: u64) -> ClientRequest {
    ClientRequest {
        client: format!("k{i}"),
        serial: i,
        status: format!("v{i}"),
    }
}

/// Where an entry lies, and the term and node of the leader that put it there.
pub fn at(term: u64, leader: NodeId, index: u64) -> LogIdOf<TypeConfig> {
    LogId::new(LeaderId::new(term, leader), index)
}

/// The log entry that writes key `k<index>`.
pub fn entry(term: u64, leader: NodeId, index: u64) -> LogEntry {
    Entry {
        log_id: at(term, leader, index),
        payload: EntryPayload::Normal(request(index)),
    }
}

pub async fn pause(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

/// Three nodes, or as many as are asked for.
pub struct Cluster {
    network: Arc<Network>,
    pub stores: HashMap<NodeId, Store>,
}

impl Cluster {
    /// Nodes that run and belong to nothing yet, on these stores.
    pub async fn on(stores: HashMap<NodeId, Store>) -> Result<Cluster> {
        let cluster = Cluster {
            network: Arc::default(),
            stores,
        };
        cluster.start().await?;
        Ok(cluster)
    }

    /// Nodes with empty stores.
    pub async fn new(ids: &[NodeId]) -> Result<Cluster> {
        Cluster::on(ids.iter().map(|&id| (id, Store::default())).collect()).await
    }

    /// Nodes 1, 2 and 3, which have formed a cluster; and their leader.
    pub async fn formed() -> Result<(Cluster, NodeId)> {
        let cluster = Cluster::new(&[1, 2, 3]).await?;
        cluster
            .node(1)?
            .initialize(BTreeMap::from([(1, ()), (2, ()), (3, ())]))
            .await?;
        let mut leader = cluster.leader(&[1, 2, 3]).await?;
        pause(500).await;
        cluster
            .until("agreement on a leader", |nodes| {
                let agreed = nodes[0].current_leader?;
                leader = agreed;
                nodes
                    .iter()
                    .all(|node| node.current_leader == Some(agreed))
                    .then_some(())
            })
            .await?;
        Ok((cluster, leader))
    }

    /// Starts (again) a node on each store.
    pub async fn start(&self) -> Result<()> {
        for (&id, store) in &self.stores {
            let config = Config {
                heartbeat_interval: 50,
                election_timeout_min: 200,
                election_timeout_max: 400,
                ..Default::default()
            };
            let link = Link {
                from: id,
                to: id,
                network: self.network.clone(),
            };
            let config = Arc::new(config.validate()?);
            let node = Raft::new(id, config, link, store.log.clone(), store.machine.clone()).await?;
            lock(&self.network.nodes).insert(id, node);
        }
        Ok(())
    }

    pub async fn stop(&self) {
        let nodes: Vec<Node> = lock(&self.network.nodes).drain().map(|(_, node)| node).collect();
        for node in nodes {
            let _ = node.shutdown().await;
        }
    }

    pub fn node(&self, id: NodeId) -> Result<Node> {
        lock(&self.network.nodes)
            .get(&id)
            .cloned()
            .ok_or_else(|| anyhow!("node {id} is not running"))
    }

    pub fn metrics(&self, id: NodeId) -> Result<Metrics> {
        Ok(self.node(id)?.metrics().borrow_watched().clone())
    }

    pub fn cut(&self, id: NodeId) {
        lock(&self.network.cut).insert(id);
    }

    pub fn heal(&self, id: NodeId) {
        lock(&self.network.cut).remove(&id);
    }

    /// How many messages with entries were delivered so far.
    pub fn delivered(&self) -> usize {
        lock(&self.network.delivered).len()
    }

    /// A copy of the first message with entries that reached `to` after the first `since` messages.
    pub fn duplicate(&self, since: usize, to: NodeId) -> Result<Append> {
        let delivered = lock(&self.network.delivered);
        let found = delivered.iter().skip(since).find(|(reached, _)| *reached == to);
        found
            .map(|(_, message)| message.clone())
            .ok_or_else(|| anyhow!("nothing reached node {to}"))
    }

    /// Writes through a node; the log index it was acknowledged at.
    pub async fn write(&self, id: NodeId, request: ClientRequest) -> Result<u64> {
        Ok(self.node(id)?.client_write(request).await?.log_id.index)
    }

    /// Waits until one of these nodes leads.
    pub async fn leader(&self, among: &[NodeId]) -> Result<NodeId> {
        self.until("a leader", |nodes| {
            let leads = |node: &&Metrics| among.contains(&node.id) && node.state == ServerState::Leader;
            nodes.iter().find(leads).map(|node| node.id)
        })
        .await
    }

    /// Waits, at most a minute, for a fact about the nodes.
    pub async fn until<T>(&self, what: &str, mut fact: impl FnMut(&[Metrics]) -> Option<T>) -> Result<T> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(60) {
            let mut ids: Vec<NodeId> = self.stores.keys().copied().collect();
            ids.sort_unstable();
            let metrics = ids
                .into_iter()
                .map(|id| self.metrics(id))
                .collect::<Result<Vec<_>>>()?;
            if let Some(found) = fact(&metrics) {
                return Ok(found);
            }
            pause(10).await;
        }
        bail!("waited a minute for {what}")
    }
}
