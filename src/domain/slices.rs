//! Reading the records of all blocks a slice at a time, for passes that must not keep a read
//! transaction, or a core, for long.
//!
//! A slice begins at a block, ends after some records or blocks, whichever comes first, and says
//! where the next one begins; a long run is cut. Read each from a transaction of its own: what lies
//! behind a slice's beginning may have changed since the last one, and then counts as it is now.
//!
//! Invariant: the slices of a pass cover every block exactly once, in order.

use std::ops::Range;

use super::ids::{BlockId, ServerId};
use super::state::{BlockRun, Garbage, OwnedRun, ReadTables};

/// How much one slice may hold; both more than 0.
#[derive(Clone, Copy, Debug)]
pub struct SliceBounds {
    /// Records.
    pub records: usize,
    /// Blocks in them.
    pub blocks: u64,
}

/// Moved blocks, in order, and where their replicas are.
type Moved = Vec<(BlockId, Vec<ServerId>)>;

/// Some blocks of a file's run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPart {
    /// The whole run.
    pub owned: OwnedRun,
    /// Those of its blocks that are in the slice.
    pub blocks: Range<u64>,
}

/// A slice of the files' runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunSlice {
    /// In the order of their blocks.
    pub parts: Vec<RunPart>,
    /// The moved blocks among them, in order.
    pub moved: Moved,
    /// Where the next slice begins; `None`: this is the last one.
    pub next: Option<BlockId>,
}

impl RunSlice {
    /// The moved blocks from `first` on.
    pub fn moved_from(&self, first: u64) -> &[(BlockId, Vec<ServerId>)] {
        let start = self.moved.partition_point(|(block, _)| block.0 < first);
        &self.moved[start..]
    }
}

/// Blocks that a record names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Which.
    pub blocks: Range<u64>,
    /// `None`: a file owns them.
    pub garbage: Option<GarbagePart>,
}

/// Some blocks of a garbage entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GarbagePart {
    /// The whole entry.
    pub garbage: Garbage,
    /// The moved blocks of the part, in order.
    pub moved: Moved,
}

/// A slice of everything that a record names, files' runs and garbage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSlice {
    /// In the order of their blocks. What lies between two of them is in nobody's records.
    pub named: Vec<Named>,
    /// The block number to be given out next.
    pub next_block: u64,
    /// Where the next slice begins; `None`: this is the last one, and nothing behind its last part is in
    /// anybody's records.
    pub next: Option<BlockId>,
}

/// Reads the runs from block `from` on.
///
/// # Errors
/// Those of the tables.
pub fn read_runs<T: ReadTables>(
    tables: &T,
    from: BlockId,
    bounds: SliceBounds,
) -> Result<RunSlice, T::Error> {
    let mut runs = Vec::new();
    runs.extend(tables.run_of(from)?.filter(|owned| owned.run.first < from));
    let found = tables.runs_from(from, bounds.records)?;
    let mut more = found.len() >= bounds.records;
    runs.extend(found);

    let mut slice = RunSlice::default();
    let mut room = bounds.blocks;
    for owned in runs {
        let Some((blocks, whole)) = take(&owned.run, from, &mut room) else {
            more = true;
            break;
        };
        slice.parts.push(RunPart { owned, blocks });
        if !whole {
            more = true;
            break;
        }
    }
    let covered = |part: &RunPart| part.blocks.clone();
    if let (Some(first), Some(last)) = (slice.parts.first().map(covered), slice.parts.last().map(covered)) {
        slice.next = more.then_some(BlockId(last.end));
        let span = last.end - first.start;
        if span <= bounds.blocks.saturating_mul(4) {
            slice.moved = tables.moved_in(BlockId(first.start), span)?;
        } else {
            // Between the parts lies more than in them: garbage may have moved blocks without end.
            for part in &slice.parts {
                let count = part.blocks.end - part.blocks.start;
                slice
                    .moved
                    .extend(tables.moved_in(BlockId(part.blocks.start), count)?);
            }
        }
    }
    Ok(slice)
}

/// Reads everything that names blocks from block `from` on.
///
/// # Errors
/// Those of the tables.
pub fn read_named<T: ReadTables>(
    tables: &T,
    from: BlockId,
    bounds: SliceBounds,
) -> Result<NamedSlice, T::Error> {
    let next_block = tables.counters()?.next_block;
    let runs = tables.runs_from(from, bounds.records)?;
    let garbage = tables.garbage_from(from, bounds.records)?;
    // Of a list that is full, what lies behind its end is not known.
    let full = |len| len >= bounds.records;
    let known_to = [
        runs.last()
            .map(|owned| owned.run.first)
            .filter(|_| full(runs.len())),
        garbage
            .last()
            .map(|entry| entry.run.first)
            .filter(|_| full(garbage.len())),
    ];
    let known_to = known_to.into_iter().flatten().min();
    let mut more = known_to.is_some();

    let mut all: Vec<(BlockRun, Option<Garbage>)> = Vec::new();
    let begun = tables.run_of(from)?.filter(|owned| owned.run.first < from);
    all.extend(begun.into_iter().chain(runs).map(|owned| (owned.run, None)));
    let begun = tables.garbage_of(from)?.filter(|entry| entry.run.first < from);
    let entries = begun.into_iter().chain(garbage);
    all.extend(entries.map(|entry| (entry.run.clone(), Some(entry))));
    all.retain(|(run, _)| known_to.is_none_or(|known_to| run.first <= known_to));
    all.sort_by_key(|(run, _)| run.first);

    let mut named = Vec::with_capacity(all.len());
    let mut room = bounds.blocks;
    for (run, entry) in all {
        let Some((blocks, whole)) = take(&run, from, &mut room) else {
            more = true;
            break;
        };
        let garbage = match entry {
            None => None,
            Some(garbage) => Some(GarbagePart {
                garbage,
                moved: tables.moved_in(BlockId(blocks.start), blocks.end - blocks.start)?,
            }),
        };
        named.push(Named { blocks, garbage });
        if !whole {
            more = true;
            break;
        }
    }
    let end = named.last().map(|last| BlockId(last.blocks.end));
    Ok(NamedSlice {
        named,
        next_block,
        next: end.filter(|_| more),
    })
}

/// The blocks of `run` from `from` on for which there is room, and whether that is the rest of it.
fn take(run: &BlockRun, from: BlockId, room: &mut u64) -> Option<(Range<u64>, bool)> {
    if *room == 0 {
        return None;
    }
    let start = run.first.0.max(from.0);
    let rest = run.first.0 + run.count - start;
    let taken = rest.min(*room);
    *room -= taken;
    Some((start..start + taken, taken == rest))
}
