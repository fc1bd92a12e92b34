//! A cluster of async-raft nodes in one process: an in-memory store each (the library's own `memstore`), and a
//! network that can cut nodes off and remembers what it delivered, so that it can be delivered again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use async_raft::async_trait::async_trait;
use async_raft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, ClientWriteRequest, Entry, EntryNormal, EntryPayload,
    InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest, VoteResponse,
};
use async_raft::{Config, NodeId, Raft, RaftMetrics, RaftNetwork, State};
use memstore::{ClientRequest, ClientResponse, MemStore};

pub type Node = Raft<ClientRequest, ClientResponse, Link, MemStore>;
pub type Append = AppendEntriesRequest<ClientRequest>;

/// What all nodes and experiments share.
#[derive(Default)]
pub struct Network {
    nodes: Mutex<HashMap<NodeId, Node>>,
    /// Unreachable, in both directions.
    cut: Mutex<HashSet<NodeId>>,
    /// Every AppendEntries with entries in it, and whom it reached.
    delivered: Mutex<Vec<(NodeId, Append)>>,
}

/// One node's end of the network.
pub struct Link {
    from: NodeId,
    network: Arc<Network>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    async fn reach(&self, to: NodeId) -> Result<Node> {
        let is_cut = {
            let cut = lock(&self.network.cut);
            cut.contains(&to) || cut.contains(&self.from)
        };
        if is_cut {
            pause(30).await;
            bail!("cut off");
        }
        lock(&self.network.nodes)
            .get(&to)
            .cloned()
            .ok_or_else(|| anyhow!("not running"))
    }
}

#[async_trait]
impl RaftNetwork<ClientRequest> for Link {
    async fn append_entries(&self, to: NodeId, message: Append) -> Result<AppendEntriesResponse> {
        let node = self.reach(to).await?;
        if !message.entries.is_empty() {
            lock(&self.network.delivered).push((to, copy(&message)));
        }
        Ok(node.append_entries(message).await?)
    }

    async fn install_snapshot(
        &self,
        to: NodeId,
        message: InstallSnapshotRequest,
    ) -> Result<InstallSnapshotResponse> {
        Ok(self.reach(to).await?.install_snapshot(message).await?)
    }

    async fn vote(&self, to: NodeId, message: VoteRequest) -> Result<VoteResponse> {
        Ok(self.reach(to).await?.vote(message).await?)
    }
}

/// The message type has no `Clone`.
pub fn copy(message: &Append) -> Append {
    AppendEntriesRequest {
        term: message.term,
        leader_id: message.leader_id,
        prev_log_index: message.prev_log_index,
        prev_log_term: message.prev_log_term,
        entries: message.entries.clone(),
        leader_commit: message.leader_commit,
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

/// The log entry that writes key `k<index>`.
pub fn entry(term: u64, index: u64) -> Entry<ClientRequest> {
    Entry {
        term,
        index,
        payload: EntryPayload::Normal(EntryNormal { data: request(index) }),
    }
}

/// `(index, term)` of each entry in a log.
pub async fn log_of(store: &MemStore) -> Vec<(u64, u64)> {
    store
        .get_log()
        .await
        .values()
        .map(|entry| (entry.index, entry.term))
        .collect()
}

pub async fn pause(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

/// Three nodes, or as many as are asked for.
pub struct Cluster {
    network: Arc<Network>,
    pub stores: HashMap<NodeId, Arc<MemStore>>,
}

impl Cluster {
    /// Nodes that run and belong to nothing yet, on these stores.
    pub fn on(stores: HashMap<NodeId, Arc<MemStore>>) -> Result<Cluster> {
        let cluster = Cluster {
            network: Arc::default(),
            stores,
        };
        cluster.start()?;
        Ok(cluster)
    }

    /// Nodes with empty stores.
    pub fn new(ids: &[NodeId]) -> Result<Cluster> {
        Cluster::on(ids.iter().map(|&id| (id, Arc::new(MemStore::new(id)))).collect())
    }

    /// Nodes 1, 2 and 3, which have formed a cluster; and their leader.
    pub async fn formed() -> Result<(Cluster, NodeId)> {
        let cluster = Cluster::new(&[1, 2, 3])?;
        for id in 1..=3 {
            let node = cluster.node(id)?;
            tokio::spawn(async move {
                let _ = node.initialize(HashSet::from([1, 2, 3])).await;
            });
        }
        // Each of the three may stand for election at first: wait until they agree and it has settled.
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
    pub fn start(&self) -> Result<()> {
        for (&id, store) in &self.stores {
            let config = Config::build("lab".into())
                .heartbeat_interval(50)
                .election_timeout_min(200)
                .election_timeout_max(400)
                .validate()?;
            let link = Link {
                from: id,
                network: self.network.clone(),
            };
            let node = Raft::new(id, Arc::new(config), Arc::new(link), store.clone());
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

    pub fn metrics(&self, id: NodeId) -> Result<RaftMetrics> {
        Ok(self.node(id)?.metrics().borrow().clone())
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
            .map(|(_, message)| copy(message))
            .ok_or_else(|| anyhow!("nothing reached node {to}"))
    }

    /// Writes through a node; the log index it was acknowledged at.
    pub async fn write(&self, id: NodeId, request: ClientRequest) -> Result<u64> {
        let written = self
            .node(id)?
            .client_write(ClientWriteRequest::new(request))
            .await;
        written
            .map(|response| response.index)
            .map_err(|error| anyhow!("{error}"))
    }

    /// Waits until one of these nodes leads.
    pub async fn leader(&self, among: &[NodeId]) -> Result<NodeId> {
        self.until("a leader", |nodes| {
            nodes
                .iter()
                .find(|node| among.contains(&node.id) && node.state == State::Leader)
                .map(|node| node.id)
        })
        .await
    }

    /// Waits, at most a minute, for a fact about the nodes.
    pub async fn until<T>(&self, what: &str, mut fact: impl FnMut(&[RaftMetrics]) -> Option<T>) -> Result<T> {
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
