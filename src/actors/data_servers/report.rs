//! A DataServer's last full report of its blocks, and what changed since the one before.
//!
//! A report may name 100,000 blocks and comes every few seconds, nearly always the same as before
//! and in the same order. So it is compared with the last one as it was sent, which costs one pass
//! over memory; only a report that differs is sorted.
//!
//! Invariant: the kept list is sorted and names each block once, whatever was sent.

use std::sync::Arc;

/// The blocks that a DataServer last reported.
#[derive(Debug, Default)]
pub struct Report {
    sorted: Arc<[u64]>,
    /// As they were sent, when that was not sorted already.
    as_sent: Option<Box<[u64]>>,
}

/// How a report differs from the one before. The next issue's FSCK starts here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReportChange {
    /// Blocks that the one before did not name.
    pub added: usize,
    /// Blocks that only the one before named.
    pub removed: usize,
}

impl ReportChange {
    /// Whether both reports name the same blocks.
    pub fn is_none(self) -> bool {
        self == ReportChange::default()
    }
}

impl Report {
    /// The blocks, sorted, each once.
    pub fn blocks(&self) -> Arc<[u64]> {
        self.sorted.clone()
    }

    /// Takes a new report in place of the last one.
    pub fn replace(&mut self, sent: Vec<u64>) -> ReportChange {
        if *sent == *self.as_sent.as_deref().unwrap_or(&self.sorted) {
            return ReportChange::default();
        }
        let sorted: Vec<u64>;
        (sorted, self.as_sent) = if sent.is_sorted_by(|a, b| a < b) {
            (sent, None)
        } else {
            let mut sorted = sent.clone();
            sorted.sort_unstable();
            sorted.dedup();
            (sorted, Some(sent.into()))
        };
        let change = compare(&self.sorted, &sorted);
        if !change.is_none() {
            self.sorted = sorted.into();
        }
        change
    }
}

/// Compares two sorted lists without repetitions.
fn compare(before: &[u64], after: &[u64]) -> ReportChange {
    let (mut b, mut a, mut common) = (0, 0, 0);
    while b < before.len() && a < after.len() {
        let (left, right) = (before[b], after[a]);
        common += usize::from(left == right);
        b += usize::from(left <= right);
        a += usize::from(right <= left);
    }
    ReportChange {
        added: after.len() - common,
        removed: before.len() - common,
    }
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
            (vec![], 0, 0, vec![]),
            (vec![3, 1, 2], 3, 0, vec![1, 2, 3]),
            (vec![3, 1, 2], 0, 0, vec![1, 2, 3]),
            (vec![1, 2, 3], 0, 0, vec![1, 2, 3]),
            (vec![1, 1, 2, 3, 3], 0, 0, vec![1, 2, 3]),
            (vec![4, 2, 4], 1, 2, vec![2, 4]),
            (vec![2, 4], 0, 0, vec![2, 4]),
            (vec![], 0, 2, vec![]),
            (vec![u64::MAX, 0], 2, 0, vec![0, u64::MAX]),
        ] {
            let change = report.replace(sent.clone());
            assert_eq!(change, ReportChange { added, removed }, "{sent:?}");
            assert_eq!(*report.blocks(), blocks, "{sent:?}");
        }
    }

    #[test]
    fn what_did_not_change_is_shared_with_those_who_have_it() {
        let mut report = Report::default();
        report.replace(vec![1, 2, 3]);
        let before = report.blocks();
        report.replace(vec![3, 2, 1]);
        assert!(Arc::ptr_eq(&before, &report.blocks()));
    }

    proptest! {
        #[test]
        fn agrees_with_sets(reports in prop::collection::vec(prop::collection::vec(0..40u64, 0..40), 1..8)) {
            let mut report = Report::default();
            let mut before = BTreeSet::new();
            for sent in reports {
                let after: BTreeSet<u64> = sent.iter().copied().collect();
                let change = report.replace(sent);
                prop_assert_eq!(change.added, after.difference(&before).count());
                prop_assert_eq!(change.removed, before.difference(&after).count());
                prop_assert!(report.blocks().iter().eq(&after));
                before = after;
            }
        }
    }
}
