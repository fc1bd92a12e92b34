//! A DataServer's last full report of its blocks, and what changed since the one before.
//!
//! A report may name 100,000 blocks and comes every few seconds, nearly always the same as before
//! and in the same order. So the last one is known again by the digest of the bytes in which it was sent, and
//! only a report that differs is decoded and sorted. A DataServer that made another report with the same digest
//! would deceive us about its own blocks only, which it can do with less effort.
//!
//! Invariant: each of the kept lists is sorted and names each block once, whatever was sent, and no
//! block is in both.

use std::sync::Arc;

use crate::proto::heartbeat::BlockIds;

/// The blocks that a DataServer last reported.
#[derive(Debug, Default)]
pub struct Report {
    sorted: Arc<[u64]>,
    /// The digest of the last report, as it was sent.
    as_sent: Option<u128>,
    corrupt: Arc<[u64]>,
}

/// How a report differs from the one before: what may call for upkeep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReportChange {
    /// How many blocks the one before did not name.
    pub added: usize,
    /// The blocks that only the one before named, sorted.
    pub removed: Vec<u64>,
    /// How many blocks are damaged that were not in the one before.
    pub corrupted: usize,
}

impl ReportChange {
    /// Whether both reports say the same.
    pub fn is_none(&self) -> bool {
        *self == ReportChange::default()
    }
}

impl Report {
    /// The blocks, sorted, each once.
    pub fn blocks(&self) -> Arc<[u64]> {
        self.sorted.clone()
    }

    /// The damaged blocks, sorted, each once; none of [`Report::blocks`].
    pub fn corrupt(&self) -> Arc<[u64]> {
        self.corrupt.clone()
    }

    /// Takes a new report in place of the last one.
    pub fn replace(&mut self, blocks: &BlockIds, corrupt: Vec<u64>) -> ReportChange {
        let (added, removed) = self.replace_blocks(blocks);
        ReportChange {
            added,
            removed,
            corrupted: self.replace_corrupt(corrupt),
        }
    }

    fn replace_blocks(&mut self, sent: &BlockIds) -> (usize, Vec<u64>) {
        let digest = Some(sent.digest());
        if digest == self.as_sent {
            return (0, Vec::new());
        }
        self.as_sent = digest;
        let mut sorted = sent.numbers();
        if !sorted.is_sorted_by(|a, b| a < b) {
            sorted.sort_unstable();
            sorted.dedup();
        }
        let (added, removed) = (
            missing_from(&self.sorted, &sorted),
            missing_from(&sorted, &self.sorted),
        );
        if !(added.is_empty() && removed.is_empty()) {
            self.sorted = sorted.into();
        }
        (added.len(), removed)
    }

    fn replace_corrupt(&mut self, mut sent: Vec<u64>) -> usize {
        sent.sort_unstable();
        sent.dedup();
        // One that it can read after all counts as good.
        let corrupt = missing_from(&self.sorted, &sent);
        let corrupted = missing_from(&self.corrupt, &corrupt).len();
        if *corrupt != *self.corrupt {
            self.corrupt = corrupt.into();
        }
        corrupted
    }
}

/// What of `list` is not in `from`; both are sorted without repetitions, and so is the answer.
fn missing_from(from: &[u64], list: &[u64]) -> Vec<u64> {
    let mut rest = from;
    let mut missing = Vec::new();
    for &block in list {
        let below = rest.iter().take_while(|&&other| other < block).count();
        rest = &rest[below..];
        if rest.first() != Some(&block) {
            missing.push(block);
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn orders_and_repetitions_do_not_matter() {
        let mut report = Report::default();
        for (sent, added, removed, blocks) in [
            (vec![], 0, vec![], vec![]),
            (vec![3, 1, 2], 3, vec![], vec![1, 2, 3]),
            (vec![3, 1, 2], 0, vec![], vec![1, 2, 3]),
            (vec![1, 2, 3], 0, vec![], vec![1, 2, 3]),
            (vec![1, 1, 2, 3, 3], 0, vec![], vec![1, 2, 3]),
            (vec![4, 2, 4], 1, vec![1, 3], vec![2, 4]),
            (vec![2, 4], 0, vec![], vec![2, 4]),
            (vec![], 0, vec![2, 4], vec![]),
            (vec![u64::MAX, 0], 2, vec![], vec![0, u64::MAX]),
        ] {
            let change = report.replace(&sent.clone().into(), vec![]);
            let expected = ReportChange {
                added,
                removed,
                corrupted: 0,
            };
            assert_eq!(change, expected, "{sent:?}");
            assert_eq!(*report.blocks(), blocks, "{sent:?}");
        }
    }

    #[test]
    fn a_block_is_good_or_damaged_and_never_both() {
        let mut report = Report::default();
        for (blocks, sent, corrupt, removed, corrupted) in [
            (vec![1, 2], vec![9, 4, 9], vec![4, 9], vec![], 2),
            (vec![1, 2], vec![9, 4], vec![4, 9], vec![], 0),
            (vec![1, 2], vec![2, 9], vec![9], vec![], 0),
            (vec![2, 1], vec![1, 2], vec![], vec![], 0),
            (vec![1], vec![2], vec![2], vec![2], 1),
            (vec![1, 2], vec![2], vec![], vec![], 0),
        ] {
            let change = report.replace(&blocks.clone().into(), sent.clone());
            assert_eq!(*report.corrupt(), corrupt, "{blocks:?} {sent:?}");
            assert_eq!(change.removed, removed, "{blocks:?} {sent:?}");
            assert_eq!(change.corrupted, corrupted, "{blocks:?} {sent:?}");
        }
    }

    #[test]
    fn what_did_not_change_is_shared_with_those_who_have_it() {
        let mut report = Report::default();
        report.replace(&vec![1, 2, 3].into(), vec![5, 4]);
        let before = (report.blocks(), report.corrupt());
        report.replace(&vec![3, 2, 1].into(), vec![4, 5]);
        assert!(Arc::ptr_eq(&before.0, &report.blocks()));
        assert!(Arc::ptr_eq(&before.1, &report.corrupt()));
    }

    proptest! {
        #[test]
        fn agrees_with_sets(reports in prop::collection::vec(prop::collection::vec(0..40u64, 0..40), 1..8)) {
            let mut report = Report::default();
            let mut before = BTreeSet::new();
            for sent in reports {
                let after: BTreeSet<u64> = sent.iter().copied().collect();
                let change = report.replace(&sent.into(), vec![]);
                prop_assert_eq!(change.added, after.difference(&before).count());
                prop_assert!(change.removed.iter().eq(before.difference(&after)));
                prop_assert!(report.blocks().iter().eq(&after));
                before = after;
            }
        }
    }
}
