//! Forming the cluster, and keeping its membership what the configuration says.
//!
//! A Raft node id is the incarnation of a data directory, so a node that lost its disk comes back
//! under its old name with a new id: it is no voter, its peers' calls to the old id do not reach it,
//! and it can neither vote nor count towards a majority (design rule 9). The leader finds it here by
//! asking every configured peer who it is, fills it as a learner, and when it has caught up puts it in
//! the place of the voter of the same name.
//!
//! Invariant: a voter is replaced only by a learner of the same name that has, on its disk, everything
//! that was committed when the leader last looked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use actix::Recipient;
use futures::future::join_all;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{ChangeMembers, RaftMetrics, ServerState};

use super::messages::{PeerSpace, PeersSpace};
use super::peers::GrpcPeers;
use crate::config::Peer;
use crate::raft::identity::{ClaimOutcome, ClusterId, Identity};
use crate::raft::server::Raft;
use crate::raft::types::{Node, NodeId, TypeConfig};

/// How often the leader looks whether the membership is what it should be.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long a peer may take to say who it is.
const IDENTIFY_WITHIN: Duration = Duration::from_millis(500);

/// How long forming waits for the rest once a majority is there.
const GRACE: Duration = Duration::from_secs(3);

/// How often the same thing is logged.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// A configured peer, and who answered at its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// As configured.
    pub peer: Peer,
    /// Its Raft node id.
    pub incarnation: NodeId,
    /// The cluster that it belongs to, if any.
    pub cluster: Option<ClusterId>,
    /// It would form a cluster too.
    pub bootstrap: bool,
    /// What it says of its disk.
    pub space: PeerSpace,
}

impl Found {
    fn node(&self) -> Node {
        node_of(&self.peer)
    }
}

fn node_of(peer: &Peer) -> Node {
    Node {
        name: peer.id.clone(),
        raft_addr: peer.raft_addr.clone(),
        grpc_addr: peer.grpc_addr.clone(),
    }
}

/// Looks after the membership of one node's cluster.
pub struct Membership {
    raft: Raft,
    identity: Identity,
    peers: GrpcPeers,
    /// Is told, while this node leads, what peers say of their disks.
    space: Recipient<PeersSpace>,
    /// As configured, this node included.
    configured: Vec<Peer>,
    /// What a learner must have before it may vote: the commit index when the leader last looked.
    goals: BTreeMap<NodeId, u64>,
    said: BTreeMap<String, Instant>,
}

impl Membership {
    /// For the cluster of `configured`, this node included.
    pub fn new(
        raft: Raft,
        identity: Identity,
        peers: GrpcPeers,
        space: Recipient<PeersSpace>,
        configured: Vec<Peer>,
    ) -> Self {
        let (goals, said) = Default::default();
        Membership {
            raft,
            identity,
            peers,
            space,
            configured,
            goals,
            said,
        }
    }

    /// Forms the cluster if `bootstrap` says so, then keeps its membership complete while this node
    /// leads. Runs until Raft stops.
    pub async fn run(mut self, bootstrap: bool) {
        if bootstrap {
            self.form().await;
        }
        while self.raft.metrics().borrow_watched().running_state.is_ok() {
            self.tend().await;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn complain(&mut self, what: String) {
        self.say_again(log::Level::Error, what);
    }

    /// Logs what goes on for a while, once in [`SAY_EVERY`].
    fn say_again(&mut self, level: log::Level, what: String) {
        let now = Instant::now();
        let last = self.said.get(&what);
        if last.is_none_or(|last| now.duration_since(*last) >= SAY_EVERY) {
            log::log!(level, "{what}");
            self.said.insert(what, now);
        }
    }

    /// Asks every other configured peer who it is; those that do not answer are left out.
    async fn find_peers(&mut self) -> Vec<Found> {
        let others: Vec<_> = self
            .configured
            .iter()
            .filter(|peer| peer.id != self.identity.name())
            .cloned()
            .collect();
        let answers = others
            .iter()
            .map(|peer| self.peers.identify(&peer.raft_addr, IDENTIFY_WITHIN));
        let answers = join_all(answers).await;
        let mut found = Vec::new();
        for (peer, answer) in others.into_iter().zip(answers) {
            let Ok(answer) = answer else { continue };
            let cluster = match answer.cluster_id.as_str() {
                "" => None,
                text => match text.parse() {
                    Ok(cluster) => Some(cluster),
                    Err(_) => {
                        self.complain(format!("{} has an impossible cluster id: {text:?}", peer.id));
                        continue;
                    }
                },
            };
            if answer.name != peer.id {
                self.complain(format!(
                    "{} is configured at {}, but {} answers there",
                    peer.id, peer.raft_addr, answer.name
                ));
                continue;
            }
            found.push(Found {
                peer,
                incarnation: answer.incarnation,
                cluster,
                bootstrap: answer.bootstrap,
                space: PeerSpace {
                    low: Some(answer.low_on_space).filter(|low| !low.is_empty()),
                },
            });
        }
        found
    }

    // --- forming ---

    /// Forms a cluster of this node and a majority of the others, unless there is one. The rest is
    /// added by the leader.
    async fn form(&mut self) {
        if self.raft.is_initialized().await.unwrap_or(true) {
            log::info!("--bootstrap: this node belongs to a cluster already; nothing to do");
            return;
        }
        let began = Instant::now();
        let mut majority_since = None;
        loop {
            let found = self.find_peers().await;
            if self.raft.is_initialized().await.unwrap_or(true) {
                return;
            }
            match ripe_to_form(&self.identity, &self.configured, &found) {
                Forming::Formed(cluster) => {
                    majority_since = None;
                    self.say_again(
                        log::Level::Info,
                        format!("--bootstrap: cluster {cluster} exists already; waiting for its leader to add this node"),
                    );
                }
                Forming::Wait => majority_since = None,
                Forming::Majority if majority_since.get_or_insert_with(Instant::now).elapsed() < GRACE => {}
                Forming::Majority | Forming::All => {
                    if self.try_to_form(&found).await {
                        return;
                    }
                }
            }
            if began.elapsed() > SAY_EVERY {
                let reached = found.len() + 1;
                self.complain(format!(
                    "--bootstrap: {reached} of {} configured nodes answer; a cluster needs a majority of them",
                    self.configured.len()
                ));
            }
            tokio::time::sleep(LOOK_EVERY / 2).await;
        }
    }

    async fn try_to_form(&mut self, found: &[Found]) -> bool {
        let cluster = self.identity.cluster().unwrap_or_else(ClusterId::random);
        // This node first: if it stops half way, it goes on with the same id.
        match self.identity.claim(cluster) {
            Ok(ClaimOutcome::Claimed | ClaimOutcome::AlreadyOurs) => {}
            Ok(ClaimOutcome::Refused(other)) => {
                log::info!("--bootstrap: cluster {other} was formed meanwhile");
                return true;
            }
            Err(error) => {
                self.complain(format!("--bootstrap: cannot record the cluster id: {error}"));
                return false;
            }
        }
        let mut members = BTreeMap::new();
        for peer in found {
            if self.claim(peer, cluster).await {
                members.insert(peer.incarnation, peer.node());
            }
        }
        let Some(me) = self
            .configured
            .iter()
            .find(|peer| peer.id == self.identity.name())
        else {
            return true;
        };
        members.insert(self.identity.incarnation(), node_of(me));
        if members.len() * 2 <= self.configured.len() {
            return false;
        }
        let names: Vec<_> = members.values().map(|node| node.name.as_str()).collect();
        log::info!("--bootstrap: forming cluster {cluster} of {}", names.join(", "));
        match self.raft.initialize(members).await {
            Ok(()) => true,
            Err(error) => {
                self.complain(format!("--bootstrap: {error}"));
                self.raft.is_initialized().await.unwrap_or(true)
            }
        }
    }

    /// Makes a peer a member-to-be; answers whether it is one.
    async fn claim(&mut self, found: &Found, cluster: ClusterId) -> bool {
        if let Some(other) = found.cluster.filter(|other| *other != cluster) {
            self.complain(format!(
                "{} belongs to cluster {other}, this node to cluster {cluster}: one of them must be emptied (its data \
                 directory deleted) to join the other",
                found.peer.id
            ));
            return false;
        }
        if found.cluster == Some(cluster) {
            return true;
        }
        let claimed = self
            .peers
            .claim(&found.peer.raft_addr, found.incarnation, cluster, IDENTIFY_WITHIN)
            .await;
        match claimed {
            Ok(now) => now == cluster.to_string(),
            Err(error) => {
                log::debug!("{} was not claimed: {}", found.peer.id, error.0);
                false
            }
        }
    }

    // --- tending ---

    /// One look at the membership, and at most one change of it.
    async fn tend(&mut self) {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let Some(cluster) = self.identity.cluster() else {
            return;
        };
        if metrics.state != ServerState::Leader {
            self.goals.clear();
            return;
        }
        let found = self.find_peers().await;
        let spaces = found.iter().map(|peer| (peer.incarnation, peer.space.clone()));
        // Past the mailbox's bound: rare, and wanted most when the Raft node has much to do.
        self.space.do_send(PeersSpace(spaces.collect()));
        if metrics.membership_config != metrics.committed_membership_config {
            return;
        }
        let mut members = Vec::new();
        for peer in found {
            if metrics
                .membership_config
                .membership()
                .get_node(&peer.incarnation)
                .is_some()
                || self.claim(&peer, cluster).await
            {
                members.push(peer);
            }
        }
        if let Some(me) = self
            .configured
            .iter()
            .find(|peer| peer.id == self.identity.name())
            .cloned()
        {
            let incarnation = self.identity.incarnation();
            members.push(Found {
                peer: me,
                incarnation,
                cluster: Some(cluster),
                bootstrap: false,
                space: PeerSpace { low: None },
            });
        }
        match next_change(&metrics, &members, &mut self.goals) {
            None => {}
            Some(Change::AddLearner(id, node)) => {
                log::info!("filling {node} (incarnation {id}) as a learner");
                let added = self.raft.add_learner(id, node, false).await;
                self.log_failure(added.map(drop));
            }
            Some(Change::Promote { id, name, voters }) => {
                log::info!("{name} (incarnation {id}) has caught up and votes from now on");
                let changed = self.raft.change_membership(voters, false).await;
                self.log_failure(changed.map(drop));
            }
            Some(Change::Finish(voters)) => {
                log::info!("finishing a change of the membership that an earlier leader began");
                let changed = self.raft.change_membership(voters, false).await;
                self.log_failure(changed.map(drop));
            }
            Some(Change::Forget(ids)) => {
                log::info!("forgetting learners that are gone: {ids:?}");
                let changed = self
                    .raft
                    .change_membership(ChangeMembers::RemoveNodes(ids), false)
                    .await;
                self.log_failure(changed.map(drop));
            }
            Some(Change::Address(id, node)) => {
                log::info!(
                    "{} is at {} and {} now",
                    node.name,
                    node.raft_addr,
                    node.grpc_addr
                );
                let nodes = BTreeMap::from([(id, node)]);
                let changed = self
                    .raft
                    .change_membership(ChangeMembers::SetNodes(nodes), true)
                    .await;
                self.log_failure(changed.map(drop));
            }
        }
    }

    fn log_failure(&self, result: Result<(), impl std::fmt::Display>) {
        if let Err(error) = result {
            log::warn!("the membership was not changed, and will be looked at again: {error}");
        }
    }
}

/// Whether a cluster can be formed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forming {
    /// There is one already: this one.
    Formed(ClusterId),
    /// Too few answer, or another node does it.
    Wait,
    /// A majority is here.
    Majority,
    /// Everybody is here.
    All,
}

/// Whether `me` should form a cluster with those that were found. Of several nodes that were told
/// to, the first in the configuration does.
fn ripe_to_form(me: &Identity, configured: &[Peer], found: &[Found]) -> Forming {
    let rank = |name: &str| configured.iter().position(|peer| peer.id == name);
    for peer in found {
        match peer.cluster {
            // Claimed by this node in an attempt that was cut short.
            Some(cluster) if me.cluster() == Some(cluster) => {}
            Some(cluster) => return Forming::Formed(cluster),
            None if peer.bootstrap && rank(&peer.peer.id) < rank(me.name()) => return Forming::Wait,
            None => {}
        }
    }
    match found.len() + 1 {
        all if all == configured.len() => Forming::All,
        some if some * 2 > configured.len() => Forming::Majority,
        _ => Forming::Wait,
    }
}

/// A change of the membership.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// Fill this node.
    AddLearner(NodeId, Node),
    /// It has caught up: these are the voters from now on.
    Promote {
        id: NodeId,
        name: String,
        voters: BTreeSet<NodeId>,
    },
    /// An earlier leader went in the middle of a change: both majorities are asked until it is done.
    Finish(BTreeSet<NodeId>),
    /// Learners that will not come back.
    Forget(BTreeSet<NodeId>),
    /// A member has moved.
    Address(NodeId, Node),
}

/// The one change that brings the membership nearer to those that were found, the first that is due.
fn next_change(
    metrics: &RaftMetrics<TypeConfig>,
    found: &[Found],
    goals: &mut BTreeMap<NodeId, u64>,
) -> Option<Change> {
    let membership = metrics.membership_config.membership();
    if let [_, .., target] = membership.get_joint_config().as_slice() {
        return Some(Change::Finish(target.clone()));
    }
    let voters: BTreeSet<_> = membership.voter_ids().collect();
    let committed = metrics.local_committed.map_or(0, |id| id.index);
    let matched = |id| {
        metrics
            .replication
            .as_ref()
            .and_then(|all| all.get(&id).copied().flatten())
    };
    for peer in found {
        let id = peer.incarnation;
        match membership.get_node(&id) {
            None => return Some(Change::AddLearner(id, peer.node())),
            Some(node) if *node != peer.node() => return Some(Change::Address(id, peer.node())),
            Some(_) if voters.contains(&id) => {}
            Some(node) => {
                let goal = goals.insert(id, committed);
                if goal.is_some_and(|goal| matched(id).is_some_and(|matched| matched.index >= goal)) {
                    let namesakes = namesakes(metrics, &node.name);
                    let mut voters: BTreeSet<_> = voters.difference(&namesakes).copied().collect();
                    voters.insert(id);
                    return Some(Change::Promote {
                        id,
                        name: node.name.clone(),
                        voters,
                    });
                }
            }
        }
    }
    let gone: BTreeSet<_> = found
        .iter()
        .flat_map(|peer| {
            namesakes(metrics, &peer.peer.id)
                .into_iter()
                .filter(|id| *id != peer.incarnation)
        })
        .filter(|id| !voters.contains(id))
        .collect();
    (!gone.is_empty()).then_some(Change::Forget(gone))
}

/// The members of one name: incarnations of the same node.
fn namesakes(metrics: &RaftMetrics<TypeConfig>, name: &str) -> BTreeSet<NodeId> {
    let nodes = metrics.membership_config.membership().nodes();
    nodes
        .filter(|(_, node)| node.name == name)
        .map(|(id, _)| *id)
        .collect()
}

#[cfg(test)]
mod tests;
