//! Who may call itself leader in etcd: what this node writes, given what etcd holds. Pure.
//!
//! Every key carries the newest term of which its node knew the leader. A leader was elected in that
//! term, so no leader of an older term can commit anything any more; hence the rule, *order by
//! term*: a claim yields to any key of a newer term, and a claim clears those of older terms.
//!
//! Every [`Write`] of a [`Plan`] is committed together, and only if nothing under the prefix changed
//! since the listing that the plan was made from ([`super::link::Link::commit`]). So each committed
//! plan saw exactly what it replaced, and etcd never holds two claims that this code wrote.

use std::collections::BTreeMap;

use super::discovery_json::{Claim, NodeRecord, without_claim};
use super::link::{Key, KeyEvent};
use crate::actors::raft_node::messages::LeadershipChanged;

/// What this node is, as far as etcd is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// The newest term of which this node knew the leader.
    pub term: u64,
    /// Whether that leader is this node, now.
    pub leads: bool,
}

impl Standing {
    /// The standing after `news`. A term without a known leader (an election goes on, and may fail)
    /// proves nothing, and does not count.
    pub fn after(self, news: &LeadershipChanged) -> Standing {
        let led = news.is_leader() || news.leader.is_some();
        Standing {
            term: if led { news.term } else { self.term },
            leads: news.is_leader(),
        }
    }
}

/// The nodes' keys as this node has seen them last.
#[derive(Clone, Debug, Default)]
pub(super) struct Nodes {
    keys: BTreeMap<Vec<u8>, Key>,
    /// No key under the prefix has a modification that is newer than this and not in `keys`.
    revision: i64,
}

impl Nodes {
    /// From a listing made at `revision`.
    pub fn new(keys: Vec<Key>, revision: i64) -> Nodes {
        Nodes {
            keys: keys.into_iter().map(|key| (key.name.clone(), key)).collect(),
            revision,
        }
    }

    /// The etcd revision of this view.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The key `name`, if it is there.
    pub fn get(&self, name: &[u8]) -> Option<&Key> {
        self.keys.get(name)
    }

    /// Takes what a watch reported; what is older than what is known changes nothing.
    pub fn observe(&mut self, event: KeyEvent) {
        let (name, at) = match &event {
            KeyEvent::Put(key) => (key.name.clone(), key.mod_revision),
            KeyEvent::Deleted { name, mod_revision } => (name.clone(), *mod_revision),
        };
        if self.keys.get(&name).is_some_and(|known| known.mod_revision >= at) {
            return;
        }
        self.revision = self.revision.max(at);
        match event {
            KeyEvent::Put(key) => self.keys.insert(name, key),
            KeyEvent::Deleted { .. } => self.keys.remove(&name),
        };
    }

    /// Takes what this node has written at `revision`.
    pub fn wrote(&mut self, writes: Vec<Write>, revision: i64) {
        for write in writes {
            let lease = write
                .lease
                .or(self.keys.get(&write.key).map(|key| key.lease))
                .unwrap_or(0);
            let value = write.value.into_bytes();
            self.observe(KeyEvent::Put(Key {
                name: write.key,
                value,
                lease,
                mod_revision: revision,
            }));
        }
        self.revision = self.revision.max(revision);
    }
}

/// One key to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub key: Vec<u8>,
    pub value: String,
    /// Only if this is still the key's modification revision (0: absent).
    pub seen: i64,
    /// The lease to write it under; `None` keeps the one that it has.
    pub lease: Option<i64>,
}

/// What to write now, and why this node's claim has to wait, if it has to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// To be committed together; empty when etcd is as it should be.
    pub writes: Vec<Write>,
    /// The key that knows a leader of a newer term than the one in which this node leads, and that
    /// term.
    pub outranked_by: Option<(Vec<u8>, u64)>,
}

/// This node's own key.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub key: Vec<u8>,
    pub lease: i64,
    /// What to write; its `is_leader` and `term` are set by [`plan`].
    pub record: NodeRecord,
}

/// What `own` has to write to make `nodes` right.
pub(super) fn plan(own: &Own, standing: Standing, nodes: &Nodes) -> Plan {
    let rivals = || {
        let others = nodes.keys.values().filter(|key| key.name != own.key);
        others.map(|key| (key, Claim::read(&key.value)))
    };
    let newest = rivals().max_by_key(|(_, claim)| claim.term);
    let outranked_by = newest
        .filter(|(_, claim)| standing.leads && claim.term > standing.term)
        .map(|(key, claim)| (key.name.clone(), claim.term));
    let claims = standing.leads && outranked_by.is_none();

    let record = NodeRecord {
        is_leader: claims,
        term: standing.term,
        ..own.record.clone()
    };
    let mut writes = Vec::from_iter(own_write(own, record.encode(), nodes));
    if claims {
        let stale = rivals().filter(|(_, claim)| claim.is_leader && claim.term < standing.term);
        writes.extend(stale.filter_map(|(key, _)| clearing(key)));
    }
    Plan { writes, outranked_by }
}

/// The write of this node's own key, unless it is there already.
fn own_write(own: &Own, value: String, nodes: &Nodes) -> Option<Write> {
    let there = nodes.get(&own.key);
    let right = there.is_some_and(|key| key.lease == own.lease && key.value == value.as_bytes());
    let seen = there.map_or(0, |key| key.mod_revision);
    (!right).then(|| Write {
        key: own.key.clone(),
        value,
        seen,
        lease: Some(own.lease),
    })
}

/// The write that takes back the claim of `key`.
fn clearing(key: &Key) -> Option<Write> {
    let value = without_claim(&key.value)?;
    Some(Write {
        key: key.name.clone(),
        value,
        seen: key.mod_revision,
        lease: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::raft_node::messages::{Leader, Role};
    use crate::raft::types::Node;
    use proptest::prelude::*;

    const LEASE: i64 = 100;

    fn name(node: usize) -> Vec<u8> {
        format!("/nodes/meta-{node}").into_bytes()
    }

    fn record(node: usize, is_leader: bool, term: u64) -> NodeRecord {
        NodeRecord {
            id: format!("meta-{node}"),
            addr: format!("localhost:{node}"),
            register_at: "2026-01-02T03:04:05Z".into(),
            role: "metaServer".into(),
            is_leader,
            term,
        }
    }

    fn own(node: usize) -> Own {
        Own {
            key: name(node),
            lease: LEASE + node as i64,
            record: record(node, false, 0),
        }
    }

    /// The key of `node` as it stands in etcd.
    fn key(node: usize, is_leader: bool, term: u64, mod_revision: i64) -> Key {
        let value = record(node, is_leader, term).encode().into_bytes();
        Key {
            name: name(node),
            value,
            mod_revision,
            lease: LEASE + node as i64,
        }
    }

    fn write(node: usize, is_leader: bool, term: u64, seen: i64, lease: Option<i64>) -> Write {
        Write {
            key: name(node),
            value: record(node, is_leader, term).encode(),
            seen,
            lease,
        }
    }

    const fn leading(term: u64) -> Standing {
        Standing { term, leads: true }
    }

    const fn following(term: u64) -> Standing {
        Standing { term, leads: false }
    }

    #[test]
    fn only_a_term_with_a_known_leader_counts() {
        let leader = Some(Leader {
            id: 2,
            node: Node::default(),
        });
        let news = |term, role, leader: &Option<Leader>| LeadershipChanged {
            term,
            role,
            leader: leader.clone(),
        };
        let standing = Standing::default();
        let standing = standing.after(&news(3, Role::Follower, &leader));
        assert_eq!(standing, following(3));
        let standing = standing.after(&news(4, Role::Candidate, &None));
        assert_eq!(standing, following(3));
        let standing = standing.after(&news(4, Role::Leader, &None));
        assert_eq!(standing, leading(4));
        assert_eq!(standing.after(&news(5, Role::Follower, &None)), following(4));
    }

    #[test]
    fn an_absent_key_is_written_and_a_right_one_is_not() {
        let plan_with = |keys, standing| plan(&own(1), standing, &Nodes::new(keys, 9));
        let first = plan_with(vec![], following(3));
        assert_eq!(first.writes, [write(1, false, 3, 0, Some(LEASE + 1))]);
        assert_eq!(
            plan_with(vec![key(1, false, 3, 5)], following(3)),
            Plan::default()
        );
        // Under another lease, or with another text, it is written again.
        let elsewhere = Key {
            lease: 1,
            ..key(1, false, 3, 5)
        };
        assert_eq!(
            plan_with(vec![elsewhere], following(3)).writes,
            [write(1, false, 3, 5, Some(LEASE + 1))]
        );
        let changed = plan_with(vec![key(1, false, 3, 5)], leading(4));
        assert_eq!(changed.writes, [write(1, true, 4, 5, Some(LEASE + 1))]);
    }

    #[test]
    fn a_leader_clears_older_claims_with_its_own_write_and_keeps_their_leases() {
        let keys = vec![key(1, false, 7, 3), key(2, true, 7, 4), key(3, false, 6, 5)];
        assert_eq!(
            plan(&own(1), leading(8), &Nodes::new(keys.clone(), 9)).writes,
            [write(1, true, 8, 3, Some(LEASE + 1)), write(2, false, 7, 4, None)]
        );
        assert_eq!(
            plan(&own(1), following(8), &Nodes::new(keys, 9)).writes,
            [write(1, false, 8, 3, Some(LEASE + 1))],
            "a follower clears nothing"
        );
    }

    #[test]
    fn a_claim_yields_to_knowledge_of_a_newer_term_and_touches_no_equal_one() {
        for newer in [key(2, true, 9, 4), key(2, false, 9, 4)] {
            let keys = vec![key(1, true, 8, 3), newer, key(3, true, 7, 5)];
            let plan = plan(&own(1), leading(8), &Nodes::new(keys, 9));
            assert_eq!(plan.writes, [write(1, false, 8, 3, Some(LEASE + 1))]);
            assert_eq!(plan.outranked_by, Some((name(2), 9)));
        }
        let keys = vec![key(1, true, 8, 3), key(2, true, 8, 4)];
        assert_eq!(plan(&own(1), leading(8), &Nodes::new(keys, 9)), Plan::default());
    }

    #[test]
    fn old_news_of_a_watch_change_nothing() {
        let mut nodes = Nodes::new(vec![key(1, false, 3, 5)], 9);
        nodes.wrote(vec![write(1, true, 4, 5, Some(LEASE + 1))], 12);
        nodes.observe(KeyEvent::Put(key(1, false, 3, 12)));
        nodes.observe(KeyEvent::Deleted {
            name: name(1),
            mod_revision: 11,
        });
        assert_eq!(nodes.get(&name(1)), Some(&key(1, true, 4, 12)));
        assert_eq!(nodes.revision(), 12);
        nodes.observe(KeyEvent::Deleted {
            name: name(1),
            mod_revision: 13,
        });
        assert_eq!(nodes.get(&name(1)), None);
    }

    /// etcd, as far as it matters here, and three nodes with views of it that may be old.
    struct World {
        etcd: BTreeMap<Vec<u8>, Key>,
        revision: i64,
        /// By term: who was elected.
        elected: Vec<usize>,
        standings: [Standing; 3],
        views: [Nodes; 3],
        /// What a node has planned from a view, and is about to commit.
        pending: [Option<(Nodes, Vec<Write>)>; 3],
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// Raft elects the node.
        Elect(usize),
        /// The node learns who leads; which may be a term that is over, but none before its own.
        Learn(usize, usize),
        /// The node sees etcd as it is now.
        Look(usize),
        /// The node plans from what it has seen last.
        Plan(usize),
        /// What the node has planned reaches etcd.
        Commit(usize),
        /// The node's key expires.
        Expire(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let node = 0..3usize;
        prop_oneof![
            node.clone().prop_map(Step::Elect),
            (node.clone(), 0..4usize).prop_map(|(node, back)| Step::Learn(node, back)),
            node.clone().prop_map(Step::Look),
            node.clone().prop_map(Step::Plan),
            node.clone().prop_map(Step::Commit),
            node.prop_map(Step::Expire),
        ]
    }

    impl World {
        fn new() -> World {
            let (etcd, standings, views) = Default::default();
            World {
                etcd,
                revision: 1,
                elected: vec![0],
                standings,
                views,
                pending: Default::default(),
            }
        }

        fn take(&mut self, step: Step) {
            match step {
                Step::Elect(node) => self.elected.push(node),
                Step::Learn(node, back) => {
                    let term = (self.elected.len() - 1).saturating_sub(back);
                    if term as u64 >= self.standings[node].term && term > 0 {
                        let leads = self.elected[term] == node;
                        self.standings[node] = Standing {
                            term: term as u64,
                            leads,
                        };
                    }
                }
                Step::Look(node) => {
                    self.views[node] = Nodes::new(self.etcd.values().cloned().collect(), self.revision)
                }
                Step::Plan(node) => {
                    let view = self.views[node].clone();
                    let writes = plan(&own(node), self.standings[node], &view).writes;
                    self.pending[node] = Some((view, writes));
                }
                Step::Commit(node) => self.commit(node),
                Step::Expire(node) => {
                    if self.etcd.remove(&name(node)).is_some() {
                        self.revision += 1;
                    }
                }
            }
        }

        /// As `Link::commit` has it done by etcd.
        fn commit(&mut self, node: usize) {
            let Some((view, writes)) = self.pending[node].take() else {
                return;
            };
            let unchanged = self.etcd.values().all(|key| key.mod_revision <= view.revision());
            let at = |key: &Vec<u8>| self.etcd.get(key).map_or(0, |key| key.mod_revision);
            if !unchanged || writes.is_empty() || writes.iter().any(|write| at(&write.key) != write.seen) {
                return;
            }
            self.revision += 1;
            for Write {
                key, value, lease, ..
            } in writes.clone()
            {
                let lease = lease.unwrap_or_else(|| self.etcd[&key].lease);
                let (value, mod_revision) = (value.into_bytes(), self.revision);
                self.etcd.insert(
                    key.clone(),
                    Key {
                        name: key,
                        value,
                        mod_revision,
                        lease,
                    },
                );
            }
            self.views[node].wrote(writes, self.revision);
        }

        fn claims(&self) -> Vec<(&Vec<u8>, u64)> {
            let claims = self
                .etcd
                .iter()
                .map(|(name, key)| (name, Claim::read(&key.value)));
            claims
                .filter(|(_, claim)| claim.is_leader)
                .map(|(name, claim)| (name, claim.term))
                .collect()
        }
    }

    proptest! {
        /// Whatever is late, stale or lost: etcd never holds two claims; and when the nodes have
        /// learned of the last election and seen etcd, the one claim is that of the leader.
        #[test]
        fn there_is_never_a_second_claim(steps in prop::collection::vec(step(), 0..120)) {
            let mut world = World::new();
            for step in steps {
                world.take(step);
                prop_assert!(world.claims().len() <= 1, "{:?} after {step:?}", world.claims());
            }
            world.take(Step::Elect(1));
            for node in [0, 1, 2, 0, 1, 2] {
                for step in [Step::Learn(node, 0), Step::Look(node), Step::Plan(node), Step::Commit(node)] {
                    world.take(step);
                }
            }
            let term = world.elected.len() as u64 - 1;
            prop_assert_eq!(world.claims(), [(&name(1), term)]);
        }
    }
}
