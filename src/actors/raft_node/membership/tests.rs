//! The rules of forming a cluster and of keeping its membership: no cluster, only what a leader sees.

use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::raft::types::{LeaderId, LogId, Membership as RaftMembership, StoredMembership};

fn peer(name: &str) -> Peer {
    Peer {
        id: name.into(),
        raft_addr: format!("{name}:1"),
        grpc_addr: format!("{name}:2"),
    }
}

fn found(name: &str, incarnation: NodeId) -> Found {
    Found {
        peer: peer(name),
        incarnation,
        cluster: None,
        bootstrap: false,
        space: PeerSpace { low: None },
    }
}

fn log_id(index: u64) -> LogId {
    LogId {
        leader_id: LeaderId { term: 1, node_id: 1 },
        index,
    }
}

/// What a leader sees: members as (incarnation, name, voter), and how far the others have come.
fn metrics(
    members: &[(NodeId, &str, bool)],
    committed: u64,
    matched: &[(NodeId, u64)],
) -> RaftMetrics<TypeConfig> {
    let voters: BTreeSet<_> = members
        .iter()
        .filter(|member| member.2)
        .map(|member| member.0)
        .collect();
    let nodes: BTreeMap<_, _> = members
        .iter()
        .map(|(id, name, _)| (*id, node_of(&peer(name))))
        .collect();
    let membership = RaftMembership::new(vec![voters], nodes).unwrap();
    let mut metrics = RaftMetrics::new_initial(members[0].0);
    metrics.membership_config = Arc::new(StoredMembership::new(Some(log_id(1)), membership));
    metrics.local_committed = Some(log_id(committed));
    metrics.replication = Some(
        matched
            .iter()
            .map(|(id, index)| (*id, Some(log_id(*index))))
            .collect(),
    );
    metrics
}

#[test]
fn a_complete_membership_is_left_alone() {
    let metrics = metrics(&[(1, "a", true), (2, "b", true)], 9, &[(2, 9)]);
    assert_eq!(
        next_change(&metrics, &[found("b", 2), found("a", 1)], &mut BTreeMap::new()),
        None
    );
}

#[test]
fn a_wiped_node_is_filled_then_takes_the_place_of_its_old_self() {
    let mut goals = BTreeMap::new();
    let found = [found("b", 20), found("a", 1), found("c", 3)];
    let before = [(1, "a", true), (2, "b", true), (3, "c", true)];
    let change = next_change(&metrics(&before, 9, &[]), &found, &mut goals);
    assert_eq!(change, Some(Change::AddLearner(20, node_of(&peer("b")))));

    let filling = [(1, "a", true), (2, "b", true), (3, "c", true), (20, "b", false)];
    assert_eq!(
        next_change(&metrics(&filling, 9, &[(20, 3)]), &found, &mut goals),
        None,
        "first look: a goal"
    );
    assert_eq!(
        next_change(&metrics(&filling, 12, &[(20, 8)]), &found, &mut goals),
        None,
        "behind its goal of 9"
    );
    let change = next_change(&metrics(&filling, 15, &[(20, 12)]), &found, &mut goals);
    let voters = BTreeSet::from([1, 3, 20]);
    assert_eq!(
        change,
        Some(Change::Promote {
            id: 20,
            name: "b".into(),
            voters
        })
    );
}

#[test]
fn a_learner_that_was_wiped_again_is_forgotten() {
    let members = [(1, "a", true), (2, "b", true), (20, "b", false), (21, "b", false)];
    let mut goals = BTreeMap::from([(21, 0)]);
    let change = next_change(&metrics(&members, 9, &[(21, 0)]), &[found("b", 2)], &mut goals);
    assert_eq!(change, Some(Change::Forget(BTreeSet::from([20, 21]))));
}

#[test]
fn nobody_is_touched_for_being_away() {
    let members = [(1, "a", true), (2, "b", true), (3, "c", true)];
    assert_eq!(
        next_change(&metrics(&members, 9, &[]), &[found("a", 1)], &mut BTreeMap::new()),
        None
    );
}

#[test]
fn a_change_that_was_left_half_done_is_finished_first() {
    let mut metrics = metrics(&[(1, "a", true), (2, "b", true), (20, "b", true)], 9, &[]);
    let (old, new) = (BTreeSet::from([1, 2]), BTreeSet::from([1, 20]));
    let nodes: BTreeMap<_, _> = metrics
        .membership_config
        .membership()
        .nodes()
        .map(|(id, node)| (*id, node.clone()))
        .collect();
    let joint = RaftMembership::new(vec![old, new.clone()], nodes).unwrap();
    metrics.membership_config = Arc::new(StoredMembership::new(Some(log_id(2)), joint));
    let change = next_change(&metrics, &[found("c", 3)], &mut BTreeMap::new());
    assert_eq!(change, Some(Change::Finish(new)));
}

#[test]
fn a_member_that_moved_is_recorded() {
    let mut moved = found("b", 2);
    moved.peer.raft_addr = "elsewhere:1".into();
    let change = next_change(
        &metrics(&[(1, "a", true), (2, "b", true)], 9, &[]),
        &[moved.clone()],
        &mut BTreeMap::new(),
    );
    assert_eq!(change, Some(Change::Address(2, moved.node())));
}

#[test]
fn who_forms_the_cluster_and_when() {
    let dir = TempDir::new().unwrap();
    let me = Identity::open(dir.path(), "b").unwrap();
    let configured = ["a", "b", "c"].map(peer);
    assert_eq!(
        ripe_to_form(&me, &configured, &[]),
        Forming::Wait,
        "1 of 3 is no majority"
    );
    assert_eq!(
        ripe_to_form(&me, &configured, &[found("c", 3)]),
        Forming::Majority
    );
    assert_eq!(
        ripe_to_form(&me, &configured, &[found("a", 1), found("c", 3)]),
        Forming::All
    );
    assert_eq!(
        ripe_to_form(&me, &configured[1..2], &[]),
        Forming::All,
        "a cluster of one"
    );

    let told = |name, id| Found {
        bootstrap: true,
        ..found(name, id)
    };
    assert_eq!(
        ripe_to_form(&me, &configured, &[told("a", 1)]),
        Forming::Wait,
        "the first one does it"
    );
    assert_eq!(ripe_to_form(&me, &configured, &[told("c", 3)]), Forming::Majority);

    let cluster = ClusterId::random();
    let member = Found {
        cluster: Some(cluster),
        ..found("c", 3)
    };
    assert_eq!(
        ripe_to_form(&me, &configured, std::slice::from_ref(&member)),
        Forming::Formed(cluster)
    );
    me.claim(cluster).unwrap();
    assert_eq!(
        ripe_to_form(&me, &configured, &[member]),
        Forming::Majority,
        "our own attempt, cut short"
    );
}
