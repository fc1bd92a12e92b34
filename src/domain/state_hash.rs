//! The state hash: one number for everything that a node has applied, and the rule by which nodes that
//! compare theirs find the odd one out.
//!
//! `storage` computes and records it, the auditor asks peers for theirs and obeys [`judge`]. Invariant:
//! a node is called odd only where a majority of the voters agrees with each other and not with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The sum, modulo 2^128, of the hashes of all records of a state. Printed as 32 hexadecimal digits.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StateHash(pub u128);

impl StateHash {
    /// Its 16 bytes, big-endian.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// From 16 bytes; `None` from any other number of them.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes
            .try_into()
            .ok()
            .map(|bytes| StateHash(u128::from_be_bytes(bytes)))
    }
}

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What one node had after each log index.
pub type Hashes = BTreeMap<u64, StateHash>;

/// A Raft node id.
type NodeId = u64;

/// Who compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Court {
    /// This node.
    pub own: NodeId,
    /// Who votes, this node or not. Of a membership that is changing: the voters of both sides.
    pub voters: BTreeSet<NodeId>,
}

/// What a comparison says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing differs.
    Agreed {
        /// The last index that was compared with anybody's; `None`: there was none in common.
        up_to: Option<u64>,
    },
    /// A majority agrees with each other, and not with this node: it must stop.
    Odd(Difference),
    /// A majority agrees with this node, and not with these: they must stop, and will find out themselves.
    OthersOdd(Difference),
    /// Somebody differs, and there is no majority on any side.
    Undecided(Difference),
}

/// Where nodes differ from this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The first index where they are known to differ.
    pub first: u64,
    /// They are known to have agreed at the index before. Otherwise they may have differed earlier.
    pub exact: bool,
    /// This node's hash there.
    pub ours: StateHash,
    /// The others' there, as far as they told; at least one.
    pub theirs: BTreeMap<NodeId, StateHash>,
}

impl fmt::Display for Difference {
    /// `at index 7` or `at or before index 7`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = if self.exact { "at" } else { "at or before" };
        write!(f, "{at} index {}", self.first)
    }
}

/// Compares this node's hashes with those that peers told. Indexes that only one side knows are passed over.
pub fn judge(court: &Court, ours: &Hashes, peers: &BTreeMap<NodeId, Hashes>) -> Verdict {
    let mut up_to = None;
    let mut differing = BTreeSet::new();
    let mut others_odd = None;
    for (index, own) in ours {
        let mut camps: BTreeMap<StateHash, BTreeSet<NodeId>> = BTreeMap::new();
        for (peer, theirs) in peers {
            if let Some(hash) = theirs.get(index) {
                camps.entry(*hash).or_default().insert(*peer);
            }
        }
        if camps.is_empty() {
            continue;
        }
        if camps.keys().all(|hash| hash == own) && differing.is_empty() {
            up_to = Some(*index);
            continue;
        }
        camps.entry(*own).or_default().insert(court.own);
        let majority = camps.iter().find(|(_, camp)| court.is_majority(camp));
        let against: BTreeSet<_> = match majority {
            Some((hash, _)) if hash == own => {
                let others = camps.iter().filter(|(hash, _)| *hash != own);
                others.flat_map(|(_, camp)| camp.iter().copied()).collect()
            }
            Some((_, camp)) => camp.clone(),
            None => {
                differing.extend(
                    camps
                        .iter()
                        .filter(|(hash, _)| *hash != own)
                        .flat_map(|(_, camp)| camp),
                );
                continue;
            }
        };
        let odd = majority.is_some_and(|(hash, _)| hash != own);
        // With the majority on this node's side, and nobody against it any more, those who differed before do.
        let against = if against.is_empty() { &differing } else { &against };
        if let Some(difference) = first_difference(ours, peers, against) {
            if odd {
                return Verdict::Odd(difference);
            }
            // That another is odd first does not mean that this node is not, later.
            others_odd.get_or_insert(difference);
        }
    }
    if let Some(difference) = others_odd {
        return Verdict::OthersOdd(difference);
    }
    match first_difference(ours, peers, &differing) {
        Some(difference) => Verdict::Undecided(difference),
        None => Verdict::Agreed { up_to },
    }
}

impl Court {
    fn is_majority(&self, nodes: &BTreeSet<NodeId>) -> bool {
        nodes.intersection(&self.voters).count() > self.voters.len() / 2
    }
}

/// The first index where one of `against` differs from this node.
fn first_difference(
    ours: &Hashes,
    peers: &BTreeMap<NodeId, Hashes>,
    against: &BTreeSet<NodeId>,
) -> Option<Difference> {
    let told = |index: u64| -> BTreeMap<NodeId, StateHash> {
        let peers = peers.iter().filter(|(peer, _)| against.contains(peer));
        peers
            .filter_map(|(peer, hashes)| Some((*peer, *hashes.get(&index)?)))
            .collect()
    };
    ours.iter().find_map(|(&first, &own)| {
        let mut theirs = told(first);
        theirs.retain(|_, hash| *hash != own);
        if theirs.is_empty() {
            return None;
        }
        // Nobody differs at an earlier index: whoever told of the one before agreed there.
        let before = first.checked_sub(1);
        let told_before = before.is_some_and(|before| {
            let told = told(before);
            ours.contains_key(&before) && theirs.keys().all(|peer| told.contains_key(peer))
        });
        Some(Difference {
            first,
            exact: told_before,
            ours: own,
            theirs,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(from: u64, values: &[u128]) -> Hashes {
        (from..).zip(values.iter().copied().map(StateHash)).collect()
    }

    fn court(voters: &[NodeId]) -> Court {
        Court {
            own: 1,
            voters: voters.iter().copied().collect(),
        }
    }

    fn difference(first: u64, exact: bool, ours: u128, theirs: &[(NodeId, u128)]) -> Difference {
        Difference {
            first,
            exact,
            ours: StateHash(ours),
            theirs: theirs
                .iter()
                .map(|(node, hash)| (*node, StateHash(*hash)))
                .collect(),
        }
    }

    #[test]
    fn printed_and_read_back() {
        let hash = StateHash(0xab);
        assert_eq!(hash.to_string(), "000000000000000000000000000000ab");
        assert_eq!(StateHash::from_bytes(&hash.to_bytes()), Some(hash));
        assert_eq!(StateHash::from_bytes(b"short"), None);
    }

    #[test]
    fn agreement_reaches_as_far_as_anybody_was_asked() {
        let ours = hashes(5, &[50, 60, 70, 80]);
        let peers = [(2, hashes(4, &[40, 50, 60])), (3, hashes(6, &[60, 70]))].into();
        assert_eq!(
            judge(&court(&[1, 2, 3]), &ours, &peers),
            Verdict::Agreed { up_to: Some(7) }
        );
        let nobody = BTreeMap::new();
        assert_eq!(
            judge(&court(&[1, 2, 3]), &ours, &nobody),
            Verdict::Agreed { up_to: None }
        );
        let elsewhere = [(2, hashes(100, &[1]))].into();
        assert_eq!(
            judge(&court(&[1, 2, 3]), &ours, &elsewhere),
            Verdict::Agreed { up_to: None }
        );
    }

    #[test]
    fn a_node_alone_against_the_majority_is_odd_and_the_first_index_is_named() {
        let ours = hashes(5, &[50, 61, 71]);
        let peers = [(2, hashes(5, &[50, 60, 70])), (3, hashes(5, &[50, 60, 70]))].into();
        let expected = difference(6, true, 61, &[(2, 60), (3, 60)]);
        assert_eq!(judge(&court(&[1, 2, 3]), &ours, &peers), Verdict::Odd(expected));

        // Also when it is a learner.
        let verdict = judge(&court(&[2, 3, 4]), &ours, &peers);
        assert!(
            matches!(verdict, Verdict::Odd(Difference { first: 6, .. })),
            "{verdict:?}"
        );
    }

    #[test]
    fn without_a_majority_nobody_is_odd() {
        let ours = hashes(5, &[50, 61]);
        let peers = BTreeMap::from([(2, hashes(5, &[50, 60]))]);
        let first = difference(6, true, 61, &[(2, 60)]);
        assert_eq!(
            judge(&court(&[1, 2, 3]), &ours, &peers),
            Verdict::Undecided(first)
        );

        // Three opinions.
        let peers = [(2, hashes(6, &[60])), (3, hashes(6, &[62]))].into();
        let first = difference(6, false, 61, &[(2, 60), (3, 62)]);
        assert_eq!(
            judge(&court(&[1, 2, 3]), &ours, &peers),
            Verdict::Undecided(first)
        );

        // Two learners do not outvote a voter.
        let peers = [(2, hashes(6, &[60])), (3, hashes(6, &[60]))].into();
        let verdict = judge(&court(&[1, 4, 5]), &ours, &peers);
        assert!(matches!(verdict, Verdict::Undecided(_)), "{verdict:?}");
    }

    #[test]
    fn the_third_decides_and_the_first_index_stays() {
        let ours = hashes(5, &[50, 61, 71]);
        // The third can only be asked about 7.
        let peers = [(2, hashes(5, &[50, 60, 70])), (3, hashes(7, &[70]))].into();
        let expected = difference(6, true, 61, &[(2, 60)]);
        assert_eq!(judge(&court(&[1, 2, 3]), &ours, &peers), Verdict::Odd(expected));

        let peers = [(2, hashes(5, &[50, 60, 70])), (3, hashes(7, &[71]))].into();
        let expected = difference(6, true, 61, &[(2, 60)]);
        assert_eq!(
            judge(&court(&[1, 2, 3]), &ours, &peers),
            Verdict::OthersOdd(expected)
        );
    }

    #[test]
    fn a_node_that_is_odd_later_than_another_is_odd() {
        let ours = hashes(5, &[50, 60, 71]);
        let one = hashes(5, &[50, 61, 70]);
        let peers = [(2, one), (3, hashes(5, &[50, 60, 70]))].into();
        let expected = difference(6, true, 60, &[(2, 61)]);
        assert_eq!(judge(&court(&[1, 2, 3]), &ours, &peers), Verdict::Odd(expected));
        let peers = [2, 4, 5].map(|id| (id, hashes(5, &[50, 60, 70])));
        let peers = peers.into_iter().chain([(3, hashes(5, &[50, 61, 72]))]).collect();
        let expected = difference(7, true, 71, &[(2, 70), (4, 70), (5, 70)]);
        assert_eq!(
            judge(&court(&[1, 2, 3, 4, 5]), &ours, &peers),
            Verdict::Odd(expected)
        );
    }

    #[test]
    fn an_index_whose_past_is_forgotten_is_named_as_the_first_known() {
        let ours = hashes(5, &[51]);
        let peers = [(2, hashes(5, &[50])), (3, hashes(4, &[40, 50]))].into();
        let Verdict::Odd(found) = judge(&court(&[1, 2, 3]), &ours, &peers) else {
            panic!("not odd");
        };
        assert_eq!(found.to_string(), "at or before index 5");
    }
}
