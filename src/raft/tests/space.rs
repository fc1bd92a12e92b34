//! Nodes whose disks are full: what they refuse, what they do not, and that nobody stops.

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{RaftMetrics, ServerState};

use super::cluster::{Cluster, TestNode, until};
use crate::raft::testing::DiskIsFull;
use crate::raft::types::TypeConfig;
use crate::space::Space;

impl TestNode {
    fn now(&self) -> RaftMetrics<TypeConfig> {
        self.raft.metrics().borrow_watched().clone()
    }

    fn has_space(&self, yes: bool) {
        self.space
            .send_replace(Space::with(if yes { 100 } else { 1 }, 100));
    }

    /// Answers how often its state has refused something for that.
    async fn disk_is_full(&self, yes: bool) -> usize {
        self.store.send(DiskIsFull(yes)).await.unwrap()
    }
}

#[actix_rt::test]
async fn a_full_follower_takes_no_writes_and_comes_back_when_there_is_space() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let first = leader.write("before").await;
    let follower = cluster.nodes.iter().find(|n| n.id() != leader.id()).unwrap();
    follower.applied(first).await;
    let (term, had) = (leader.now().current_term, follower.now().last_log_index);

    follower.has_space(false);
    let mut last = 0;
    for i in 0..20 {
        last = leader.write(format!("without it {i}")).await;
    }
    // Many heartbeats have gone by when the others have all of it, and it still follows.
    for node in cluster.nodes.iter().filter(|n| n.id() != follower.id()) {
        node.applied(last).await;
    }
    assert_eq!(follower.now().last_log_index, had, "it took none of it");
    assert_eq!(follower.now().state, ServerState::Follower);

    follower.has_space(true);
    follower.applied(last).await;
    assert_eq!(follower.batches().await, leader.batches().await);
    assert_eq!(
        (leader.now().current_term, leader.now().state),
        (term, ServerState::Leader),
        "nobody stood for election meanwhile"
    );
}

#[actix_rt::test]
async fn where_all_are_full_a_leader_can_still_be_elected_and_read_from() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (old, index) = (leader.id(), leader.write("before").await);
    for node in &cluster.nodes {
        node.applied(index).await;
        node.has_space(false);
    }
    let position = cluster.nodes.iter().position(|n| n.id() == old).unwrap();
    cluster.nodes.remove(position).raft.shutdown().await.unwrap();
    for node in &cluster.nodes {
        node.metrics("another leader", |m| m.current_leader.is_some_and(|id| id != old))
            .await;
    }
    // Answers only when a majority has the new leader's first entry.
    let leader = cluster.leader().await;
    assert_eq!(leader.batches().await, ["before"]);
}

#[actix_rt::test]
async fn a_full_disk_makes_the_state_wait_and_never_stops_the_node() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    leader.write("before").await;
    let follower = cluster.nodes.iter().find(|n| n.id() != leader.id()).unwrap();
    follower.disk_is_full(true).await;
    let index = leader.write("after").await;
    // It tries more than once, and does not stop.
    until(|| async { (follower.disk_is_full(true).await > 1).then_some(()) }).await;
    assert!(follower.now().last_applied.is_some_and(|id| id.index < index));
    follower.disk_is_full(false).await;
    follower.applied(index).await;
    assert_eq!(follower.batches().await, ["before", "after"]);
}

#[actix_rt::test]
async fn a_snapshot_that_does_not_fit_is_not_made_and_tried_again() {
    let cluster = Cluster::start(1).await;
    let node = cluster.leader().await;
    let index = node.write("all there is").await;
    node.disk_is_full(true).await;
    node.raft.trigger().snapshot().await.unwrap();
    until(|| async { (node.disk_is_full(true).await > 0).then_some(()) }).await;
    assert_eq!(node.now().snapshot, None);
    // A trigger is dropped while openraft believes that it still makes one.
    let covered = until(|| async {
        node.disk_is_full(false).await;
        node.raft.trigger().snapshot().await.unwrap();
        node.now().snapshot
    })
    .await;
    assert_eq!(covered.index, index);
    assert!(node.now().running_state.is_ok());
    node.write("and more").await;
}
