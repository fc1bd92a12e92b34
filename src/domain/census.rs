//! What DataServers hold, beside what the records say they should: the census of one moment.
//!
//! [`Census::views`] looks at the blocks of one run, for gateways that explain a file;
//! [`Census::sweep`] goes once over everything that is reported, in the order of blocks, for
//! [`super::fsck`] and [`super::gc`]. Both merge the sorted reports with a heap of cursors, so that
//! a sweep costs O(reported blocks · log DataServers) however many runs there are.
//!
//! Invariants: a report counts only while its DataServer is alive. Blocks come in ascending order,
//! each once, and their holders in the order of the DataServers' numbers.

use std::borrow::BorrowMut;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::ops::Range;
use std::sync::Arc;

use super::ids::{BlockId, ServerId};
use super::state::{BlockRun, ServerStatus};

/// What the leader knows of one registered DataServer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// Its number.
    pub server: ServerId,
    /// Its replicated status.
    pub status: ServerStatus,
    /// Whether it beats.
    pub alive: bool,
    /// When its last report came, Unix milliseconds by this leader's clock; `None`: not yet.
    pub reported_ms: Option<i64>,
    /// Whether new replicas may be placed there.
    pub takes_blocks: bool,
    /// Bytes.
    pub free_space: u64,
    /// The blocks that it holds, sorted, each once.
    pub blocks: Arc<[u64]>,
    /// The blocks that it holds damaged, sorted, each once; none of `blocks`.
    pub corrupt: Arc<[u64]>,
}

impl Reported {
    /// Whether its last report came after `ms` (Unix milliseconds), so that it knows what was done by then.
    pub fn heard_after(&self, ms: i64) -> bool {
        self.reported_ms.is_some_and(|reported| reported > ms)
    }
}

/// Every registered DataServer and what it reported.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// In the order of their numbers.
    servers: Vec<Reported>,
}

impl Census {
    /// Of these DataServers, each there once.
    pub fn new(mut servers: Vec<Reported>) -> Self {
        servers.sort_unstable_by_key(|reported| reported.server);
        Census { servers }
    }

    /// The DataServers, in the order of their numbers.
    pub fn servers(&self) -> &[Reported] {
        &self.servers
    }

    /// Where a DataServer stands in [`Census::servers`].
    pub fn position(&self, server: ServerId) -> Option<usize> {
        // Numbers are given out one after the other and never taken back, so this nearly always hits.
        let guess = (server.0 as usize).wrapping_sub(1);
        if self
            .servers
            .get(guess)
            .is_some_and(|found| found.server == server)
        {
            return Some(guess);
        }
        self.servers
            .binary_search_by_key(&server, |reported| reported.server)
            .ok()
    }

    /// What is known of one DataServer.
    pub fn server(&self, server: ServerId) -> Option<&Reported> {
        self.position(server).map(|at| &self.servers[at])
    }

    /// Everything that is reported with a number in `blocks`.
    pub fn sweep(&self, blocks: Range<u64>) -> Sweep<'_> {
        Sweep::new(self, blocks)
    }

    /// The blocks of `run` with their replicas. `moved` are those that do not lie where they were
    /// placed, in order, as [`super::state::ReadTables::moved_in`] gives them.
    ///
    /// Costs a search in each report, and then O(log holders) a replica.
    pub fn views<'c>(
        &'c self,
        run: &'c BlockRun,
        moved: &'c [(BlockId, Vec<ServerId>)],
    ) -> Views<'c, 'c, Sweep<'c>> {
        let blocks = run.first.0..run.first.0 + run.count;
        Views::new(self.sweep(blocks.clone()), run, blocks, moved)
    }
}

/// One DataServer's report, from where the sweep stands.
struct Cursor<'c> {
    rest: std::slice::Iter<'c, u64>,
    server: ServerId,
    corrupt: bool,
}

/// A block that is reported, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held<'s> {
    /// Its number.
    pub block: BlockId,
    /// The DataServers that hold it whole.
    pub good: &'s [ServerId],
    /// The DataServers that hold it damaged.
    pub corrupt: &'s [ServerId],
}

/// Goes over everything that is reported, block by block.
pub struct Sweep<'c> {
    cursors: Vec<Cursor<'c>>,
    /// The next block of each cursor that has one. Those of one block come in the order of `cursors`,
    /// which is that of the DataServers' numbers.
    next: BinaryHeap<Reverse<(u64, u32)>>,
    good: Vec<ServerId>,
    corrupt: Vec<ServerId>,
}

impl<'c> Sweep<'c> {
    fn new(census: &'c Census, blocks: Range<u64>) -> Self {
        let part = |reported: &'c [u64]| {
            let rest = &reported[position(reported, blocks.start)..];
            // Runs are short beside reports: the end is near.
            match rest.first() {
                Some(&first) if first < blocks.end => {
                    rest[..rest.partition_point(|&block| block < blocks.end)].iter()
                }
                Some(_) | None => [].iter(),
            }
        };
        let mut cursors = Vec::new();
        let mut next = Vec::new();
        for reported in census.servers.iter().filter(|reported| reported.alive) {
            for (list, corrupt) in [(&reported.blocks, false), (&reported.corrupt, true)] {
                let mut rest = part(list);
                if let Some(&block) = rest.next() {
                    next.push(Reverse((block, cursors.len() as u32)));
                    cursors.push(Cursor {
                        rest,
                        server: reported.server,
                        corrupt,
                    });
                }
            }
        }
        Sweep {
            cursors,
            next: next.into(),
            good: Vec::new(),
            corrupt: Vec::new(),
        }
    }

    /// The number of the block that comes next.
    pub fn peek(&self) -> Option<BlockId> {
        self.next.peek().map(|Reverse((block, _))| BlockId(*block))
    }

    /// The next block that is reported, if its number is below `end`.
    pub fn next_below(&mut self, end: BlockId) -> Option<Held<'_>> {
        let block = self.peek().filter(|block| *block < end)?;
        self.gather(block);
        Some(Held {
            block,
            good: &self.good,
            corrupt: &self.corrupt,
        })
    }

    /// Passes over what is below `end`: a search in each report that has any of it, however much that is.
    pub fn pass_over(&mut self, end: BlockId) {
        while let Some(top) = self.next.peek_mut().filter(|top| top.0.0 < end.0) {
            let cursor = &mut self.cursors[top.0.1 as usize];
            let rest = cursor.rest.as_slice();
            cursor.rest = rest[position(rest, end.0)..].iter();
            advance(cursor, top);
        }
    }

    /// Passes over what is below `block`, and gathers who holds `block`.
    fn seek(&mut self, block: BlockId) {
        self.pass_over(block);
        self.gather(block);
    }

    /// Gathers who holds `block`, which nothing that is left precedes.
    fn gather(&mut self, block: BlockId) {
        self.good.clear();
        self.corrupt.clear();
        while self.peek() == Some(block) {
            if let Some((server, corrupt)) = self.pop() {
                let holders = if corrupt {
                    &mut self.corrupt
                } else {
                    &mut self.good
                };
                holders.push(server);
            }
        }
    }

    fn pop(&mut self) -> Option<(ServerId, bool)> {
        let top = self.next.peek_mut()?;
        let cursor = &mut self.cursors[top.0.1 as usize];
        let holder = (cursor.server, cursor.corrupt);
        advance(cursor, top);
        Some(holder)
    }
}

/// Takes the next block of `cursor`, which is at the top.
fn advance(cursor: &mut Cursor<'_>, mut top: PeekMut<'_, Reverse<(u64, u32)>>) {
    match cursor.rest.next() {
        // In place, so that the heap is put in order once instead of twice.
        Some(&block) => top.0.0 = block,
        None => drop(PeekMut::pop(top)),
    }
}

/// Where in a sorted report the first block stands that is not below `block`.
///
/// A look at one file searches every report, and each step of a search waits for memory. Numbers are spread
/// over a report rather evenly, so the search begins where `block` should be and widens its steps from
/// there (Bentley and Yao, "An almost optimal algorithm for unbounded searching"): a few steps, and where the
/// guess is as wrong as can be, twice those of a binary search.
fn position(reported: &[u64], block: u64) -> usize {
    let (Some(&first), Some(&last)) = (reported.first(), reported.last()) else {
        return 0;
    };
    if block <= first {
        return 0;
    }
    if block > last {
        return reported.len();
    }
    // In 128 bits nothing overflows; `last` is more than `first`, since `block` lies between them.
    let share = u128::from(block - first) * (reported.len() as u128 - 1);
    let guess = (share / u128::from(last - first)) as usize;
    let below = |at: usize| reported[at] < block;
    let mut step = 1;
    // What is sought lies in `low..=high`: everything before `low` is below `block`, `high` is not.
    let (low, high) = if below(guess) {
        let (mut low, end) = (guess + 1, reported.len() - 1);
        while low + step < end && below(low + step) {
            low += step + 1;
            step *= 2;
        }
        (low, end.min(low + step))
    } else {
        let mut high = guess;
        while high > step && !below(high - step) {
            high -= step;
            step *= 2;
        }
        (high.saturating_sub(step), high)
    };
    low + reported[low..high].partition_point(|&other| other < block)
}

/// A block of a run: where its replicas should be and where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockView<'v> {
    /// Its number.
    pub block: BlockId,
    /// Where the records say that its replicas are.
    pub expected: &'v [ServerId],
    /// The DataServers, alive, that hold it whole.
    pub good: &'v [ServerId],
    /// The DataServers, alive, that hold it damaged.
    pub corrupt: &'v [ServerId],
}

/// How a block fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// As many good replicas as there should be. Where they lie does not matter: a good replica in
    /// another place than the record says keeps the data as safe, and FSCK corrects the record.
    Healthy,
    /// More of them.
    OverReplicated,
    /// Fewer, but one at least.
    UnderReplicated,
    /// None on a DataServer that is alive: it cannot be read.
    Missing,
}

impl<'v> BlockView<'v> {
    /// How the block fares, by its good replicas.
    pub fn health(&self) -> Health {
        match (self.good.len(), self.expected.len()) {
            (0, 1..) => Health::Missing,
            (good, expected) if good < expected => Health::UnderReplicated,
            (good, expected) if good > expected => Health::OverReplicated,
            (_, _) => Health::Healthy,
        }
    }

    /// The DataServers that should have a good replica and do not report one.
    pub fn missing(&self) -> impl Iterator<Item = ServerId> + use<'v> {
        let good = self.good;
        let expected = self.expected.iter().copied();
        expected.filter(move |server| !good.contains(server))
    }

    /// The DataServers that hold a replica, damaged or not, and should not.
    pub fn surplus(&self) -> impl Iterator<Item = ServerId> + use<'v> {
        let expected = self.expected;
        let holders = self.corrupt.iter().chain(self.good).copied();
        holders.filter(move |server| !expected.contains(server))
    }
}

/// Walks over blocks of a run. `S` is a [`Sweep`] of its own, or one that goes on to other runs.
pub struct Views<'r, 'c, S: BorrowMut<Sweep<'c>>> {
    sweep: S,
    run: &'r BlockRun,
    blocks: Range<u64>,
    moved: std::iter::Peekable<std::slice::Iter<'r, (BlockId, Vec<ServerId>)>>,
    expected: Vec<ServerId>,
    census: std::marker::PhantomData<&'c Census>,
}

impl<'r, 'c, S: BorrowMut<Sweep<'c>>> Views<'r, 'c, S> {
    /// The blocks of `run` that are in `blocks`. The sweep must not have gone beyond the first of them.
    pub fn new(
        sweep: S,
        run: &'r BlockRun,
        blocks: Range<u64>,
        moved: &'r [(BlockId, Vec<ServerId>)],
    ) -> Self {
        Views {
            sweep,
            run,
            blocks: blocks.start.max(run.first.0)..blocks.end.min(run.first.0 + run.count),
            moved: moved.iter().peekable(),
            expected: Vec::new(),
            census: std::marker::PhantomData,
        }
    }

    /// The next block. Not an [`Iterator`]: what it lends is overwritten by the next call.
    #[expect(clippy::should_implement_trait, reason = "it lends")]
    pub fn next(&mut self) -> Option<BlockView<'_>> {
        let block = BlockId(self.blocks.next()?);
        while self.moved.next_if(|(moved, _)| *moved < block).is_some() {}
        self.expected.clear();
        match self.moved.next_if(|(moved, _)| *moved == block) {
            Some((_, servers)) => self.expected.extend(servers),
            None => self.expected.extend(self.run.placed(block)),
        }
        let sweep: &mut Sweep<'c> = self.sweep.borrow_mut();
        sweep.seek(block);
        Some(BlockView {
            block,
            expected: &self.expected,
            good: &sweep.good,
            corrupt: &sweep.corrupt,
        })
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A healthy DataServer that beats, reported at 1,000,000 ms and has room.
    pub fn holds(server: u32, good: &[u64], corrupt: &[u64]) -> Reported {
        Reported {
            server: ServerId(server),
            status: ServerStatus::Healthy,
            alive: true,
            reported_ms: Some(1_000_000),
            takes_blocks: true,
            free_space: 1 << 30,
            blocks: good.into(),
            corrupt: corrupt.into(),
        }
    }

    /// The same, but permanently down.
    pub fn down(server: u32) -> Reported {
        Reported {
            status: ServerStatus::Down,
            alive: false,
            reported_ms: None,
            takes_blocks: false,
            ..holds(server, &[], &[])
        }
    }

    /// The same, but silent for a while.
    pub fn silent(server: u32, good: &[u64]) -> Reported {
        Reported {
            status: ServerStatus::Unhealthy,
            alive: false,
            takes_blocks: false,
            ..holds(server, good, &[])
        }
    }

    pub fn ids(servers: &[u32]) -> Vec<ServerId> {
        servers.iter().copied().map(ServerId).collect()
    }

    pub fn run(first: u64, count: u64, replication: u32, servers: &[u32]) -> BlockRun {
        BlockRun {
            first: BlockId(first),
            count,
            block_size: 4,
            replication,
            servers: ids(servers),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::testing::{down, holds, ids, run, silent};
    use super::*;

    fn view<'v>(expected: &'v [ServerId], good: &'v [ServerId], corrupt: &'v [ServerId]) -> BlockView<'v> {
        BlockView {
            block: BlockId(1),
            expected,
            good,
            corrupt,
        }
    }

    #[test]
    fn health_counts_good_replicas_wherever_they_are() {
        for (good, corrupt, health, missing, surplus) in [
            (&[1, 2, 3][..], &[][..], Health::Healthy, &[][..], &[][..]),
            (&[1, 2, 4], &[], Health::Healthy, &[3], &[4]),
            (&[1, 2, 3], &[4], Health::Healthy, &[], &[4]),
            (&[1, 2, 3, 4], &[5], Health::OverReplicated, &[], &[5, 4]),
            (&[1, 2], &[3], Health::UnderReplicated, &[3], &[]),
            (&[4], &[], Health::UnderReplicated, &[1, 2, 3], &[4]),
            (&[], &[1, 2, 3], Health::Missing, &[1, 2, 3], &[]),
            (&[], &[], Health::Missing, &[1, 2, 3], &[]),
        ] {
            let (expected, good, corrupt) = (ids(&[1, 2, 3]), ids(good), ids(corrupt));
            let view = view(&expected, &good, &corrupt);
            assert_eq!(view.health(), health, "{view:?}");
            assert_eq!(view.missing().collect::<Vec<_>>(), ids(missing), "{view:?}");
            assert_eq!(view.surplus().collect::<Vec<_>>(), ids(surplus), "{view:?}");
        }
    }

    #[test]
    fn only_those_alive_are_counted() {
        let census = Census::new(vec![
            holds(3, &[7], &[8]),
            silent(2, &[7, 8]),
            down(1),
            holds(9, &[8], &[7]),
        ]);
        let run = run(7, 2, 2, &[1, 2]);
        let moved = [(BlockId(8), ids(&[3, 9]))];
        let mut views = census.views(&run, &moved);
        let (expected, good, corrupt) = (ids(&[1, 2]), ids(&[3]), ids(&[9]));
        let first = BlockView {
            block: BlockId(7),
            ..view(&expected, &good, &corrupt)
        };
        assert_eq!(views.next(), Some(first));
        let (expected, good, corrupt) = (ids(&[3, 9]), ids(&[9]), ids(&[3]));
        let second = BlockView {
            block: BlockId(8),
            ..view(&expected, &good, &corrupt)
        };
        assert_eq!(views.next(), Some(second));
        assert_eq!(views.next(), None);
        assert_eq!(census.server(ServerId(9)).unwrap().server, ServerId(9));
        assert_eq!(census.server(ServerId(4)), None);
        assert_eq!(census.server(ServerId(0)), None);
    }

    #[test]
    fn a_position_is_found_wherever_the_guess_leads() {
        let squares: Vec<u64> = (0..64).map(|n| n * n * n * n).collect();
        let late: Vec<u64> = (u64::MAX - 40..=u64::MAX).collect();
        let lists: [&[u64]; 7] = [
            &[],
            &[0],
            &[u64::MAX],
            &[0, u64::MAX],
            &[0, 1, 2, 3, u64::MAX - 1, u64::MAX],
            &squares,
            &late,
        ];
        for list in lists {
            let near = |block: u64| [block.saturating_sub(1), block, block.saturating_add(1)];
            for block in list.iter().copied().flat_map(near).chain([0, 7, u64::MAX]) {
                let expected = list.partition_point(|&other| other < block);
                assert_eq!(position(list, block), expected, "{block} in {list:?}");
            }
        }
    }

    /// Reports, as `(alive, good, corrupt)`; no block is in both lists.
    fn reports() -> impl Strategy<Value = Vec<Reported>> {
        let blocks = prop::collection::btree_map(0..60u64, prop::bool::weighted(0.8), 0..30);
        let server = (prop::bool::weighted(0.8), blocks);
        prop::collection::vec(server, 0..8).prop_map(|servers| {
            let servers = servers.into_iter().zip(1..);
            servers
                .map(|((alive, blocks), number)| {
                    let of = |whole| blocks.iter().filter(move |(_, good)| **good == whole);
                    let list = |whole| of(whole).map(|(block, _)| *block).collect::<Vec<_>>();
                    Reported {
                        alive,
                        ..holds(number, &list(true), &list(false))
                    }
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn a_position_is_that_of_a_binary_search(
            blocks in prop::collection::btree_set(prop_oneof![0..200u64, any::<u64>()], 0..80),
            sought in prop_oneof![0..200u64, any::<u64>()],
        ) {
            let list: Vec<u64> = blocks.into_iter().collect();
            prop_assert_eq!(position(&list, sought), list.partition_point(|&other| other < sought));
        }

        #[test]
        fn a_sweep_finds_what_brute_force_finds(servers in reports(), from in 0..30u64, len in 0..40u64) {
            let mut found: BTreeMap<u64, (Vec<ServerId>, Vec<ServerId>)> = BTreeMap::new();
            for reported in servers.iter().filter(|reported| reported.alive) {
                for block in reported.blocks.iter().filter(|block| (from..from + len).contains(block)) {
                    found.entry(*block).or_default().0.push(reported.server);
                }
                for block in reported.corrupt.iter().filter(|block| (from..from + len).contains(block)) {
                    found.entry(*block).or_default().1.push(reported.server);
                }
            }
            let census = Census::new(servers);
            let mut sweep = census.sweep(from..from + len);
            for (block, (good, corrupt)) in &found {
                prop_assert_eq!(sweep.peek(), Some(BlockId(*block)));
                let held = Held { block: BlockId(*block), good, corrupt };
                prop_assert_eq!(sweep.next_below(BlockId(u64::MAX)), Some(held));
            }
            prop_assert_eq!(sweep.next_below(BlockId(u64::MAX)), None);

            // What is passed over is not seen, and nothing else is missing.
            let mut sweep = census.sweep(from..from + len);
            for end in [0, from, from + len / 2, from + 1, from + len / 2 + 3] {
                sweep.pass_over(BlockId(end));
            }
            let passed = from + len / 2 + 3;
            for (block, (good, corrupt)) in found.range(passed..) {
                let held = Held { block: BlockId(*block), good, corrupt };
                prop_assert_eq!(sweep.next_below(BlockId(u64::MAX)), Some(held));
            }
            prop_assert_eq!(sweep.next_below(BlockId(u64::MAX)), None);

            // One sweep over several runs sees each block as a look at its own run does.
            let mut sweep = census.sweep(0..u64::MAX);
            for first in [5, 20, 21, 40] {
                let run = run(first, if first == 20 { 1 } else { 11 }, 1, &[1, 2]);
                let blocks = first..first + run.count;
                let mut alone = census.views(&run, &[]);
                let mut views = Views::new(&mut sweep, &run, blocks, &[]);
                while let Some(view) = alone.next() {
                    prop_assert_eq!(views.next(), Some(view));
                }
                prop_assert_eq!(views.next(), None);
            }
        }
    }
}
