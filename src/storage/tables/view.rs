//! Reading the state: one immutable view of it, walks over it, and the scan that computes its hash anew.

use std::ops::Bound;

use heed::types::Bytes;
use heed::{Env, RoRange, RoTxn, WithoutTls};

use super::gate::{HASHES_KEPT, record_hash};
use super::{Layout, codec, entry_key, entry_name, progress};
use crate::domain::ids::InodeId;
use crate::domain::path::CleanPath;
use crate::domain::state::{Entry, EntryKind};
use crate::domain::state_hash::{Hashes, StateHash};
use crate::storage::{Progress, StorageError};

/// One immutable view of the state.
pub struct StateView<'e> {
    pub(super) layout: Layout,
    pub(super) txn: RoTxn<'e, WithoutTls>,
}

impl<'e> StateView<'e> {
    pub(in crate::storage) fn open(env: &'e Env<WithoutTls>, layout: Layout) -> Result<Self, StorageError> {
        Ok(StateView {
            layout,
            txn: env.read_txn()?,
        })
    }

    /// Bytes of the pages that records lie in.
    pub(in crate::storage) fn bytes(&self) -> Result<u64, StorageError> {
        let mut bytes = 0;
        let hashes = self.layout.hashes.stat(&self.txn);
        let covered = self.layout.covered();
        for stat in covered.iter().map(|table| table.stat(&self.txn)).chain([hashes]) {
            let stat = stat?;
            let pages = stat.branch_pages + stat.leaf_pages + stat.overflow_pages;
            bytes += pages as u64 * u64::from(stat.page_size);
        }
        Ok(bytes)
    }

    /// How far the state has come.
    ///
    /// # Errors
    /// When a record does not decode.
    pub fn progress(&self) -> Result<Progress, StorageError> {
        progress(self.layout.meta, &self.txn)
    }

    /// Calls `visit` for every file below `directory`, which lies at `path`, until it returns `false`.
    /// Returns whether it never did.
    ///
    /// The order is by the parts of the paths, each in byte order: `/a`, `/a/b`, `/a-b`.
    ///
    /// # Errors
    /// When a record does not decode, and those of `visit`.
    pub fn for_each_file(
        &self,
        directory: InodeId,
        path: &CleanPath,
        visit: &mut dyn FnMut(&CleanPath, &Entry) -> Result<bool, StorageError>,
    ) -> Result<bool, StorageError> {
        self.for_each_file_after(directory, path, &[], visit)
    }

    /// The same, but only for the files that come after the one at `after`, the parts of a path below
    /// `directory`. So a walk can go on where another one, of an older state, has stopped: nothing
    /// needs to be at `after` any more.
    ///
    /// # Errors
    /// Those of [`StateView::for_each_file`].
    pub fn for_each_file_after(
        &self,
        directory: InodeId,
        path: &CleanPath,
        after: &[&str],
        visit: &mut dyn FnMut(&CleanPath, &Entry) -> Result<bool, StorageError>,
    ) -> Result<bool, StorageError> {
        // Not by recursion: a tree may be as deep as a path is long.
        let mut open = vec![(path.clone(), after, self.entries_from(directory, after.first())?)];
        while let Some((path, after, entries)) = open.last_mut() {
            let Some(item) = entries.next() else {
                open.pop();
                continue;
            };
            let (key, value) = item?;
            let (name, entry) = (entry_name(key)?, codec::decode_entry(value)?);
            // Every other name comes after it, and all that is below that.
            let below = after.split_first().filter(|(first, _)| **first == name);
            let child = path.child(name);
            match (&entry.kind, below) {
                (EntryKind::Directory, below) => {
                    let after = below.map_or(&[][..], |(_, below)| below);
                    let entries = self.entries_from(entry.inode, after.first())?;
                    open.push((child, after, entries));
                }
                // Visited already, or gone and replaced by what would have been.
                (EntryKind::File { .. }, Some(_)) => {}
                (EntryKind::File { .. }, None) => {
                    if !visit(&child, &entry)? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// What lies in a directory, from the name `from` on.
    fn entries_from(
        &self,
        directory: InodeId,
        from: Option<&&str>,
    ) -> Result<RoRange<'_, Bytes, Bytes>, StorageError> {
        let start = entry_key(directory, from.map_or("", |name| name));
        let end = (directory.0 + 1).to_be_bytes(); // numbers stay below 2^63
        let range = (Bound::Included(&start[..]), Bound::Excluded(&end[..]));
        Ok(self.layout.entries.range(&self.txn, &range)?)
    }

    /// How many entries of garbage there are.
    ///
    /// # Errors
    /// Those of LMDB.
    pub fn garbage_len(&self) -> Result<u64, StorageError> {
        Ok(self.layout.garbage.len(&self.txn)?)
    }

    /// The hash of the whole state as it was kept up to date; `None` in a state that an older server left.
    ///
    /// # Errors
    /// Those of LMDB.
    pub fn state_hash(&self) -> Result<Option<StateHash>, StorageError> {
        self.layout.hashes.newest(&self.txn)
    }

    /// The hashes after the log entries `from .. from + limit`, as far as they are applied and kept.
    ///
    /// # Errors
    /// When a record does not decode.
    pub fn hashes(&self, from: u64, limit: u64) -> Result<Hashes, StorageError> {
        let limit = limit.min(HASHES_KEPT);
        let mut found = Hashes::new();
        for index in from..from.saturating_add(limit) {
            if let Some(hash) = self.layout.hashes.at(&self.txn, index)? {
                found.insert(index, hash);
            }
        }
        Ok(found)
    }

    /// Reads every record and computes the state's hash anew. `progress` is told now and then how many have
    /// been read.
    ///
    /// # Errors
    /// Those of LMDB. A damaged database may also crash the process.
    pub fn scan(&self, progress: impl FnMut(u64)) -> Result<Scan, StorageError> {
        self.scan_part(0, 1, progress)
    }

    /// The same for part `n` of `parts`, which together are the whole state: [`Scan::plus`] adds them up.
    pub(in crate::storage) fn scan_part(
        &self,
        n: u64,
        parts: u64,
        mut progress: impl FnMut(u64),
    ) -> Result<Scan, StorageError> {
        let (mut sum, mut records, mut scratch) = (0_u128, 0, Vec::new());
        for table in self.layout.covered() {
            let first = table.first(&self.txn)?.map_or(0, |(key, _)| leading(key));
            let last = table.last(&self.txn)?.map_or(0, |(key, _)| leading(key));
            let step = last.saturating_sub(first) / parts + 1;
            let bound = |n: u64| first.saturating_add(step.saturating_mul(n)).to_be_bytes();
            let (from, to) = (bound(n), bound(n + 1));
            let start = if n == 0 {
                Bound::Unbounded
            } else {
                Bound::Included(&from[..])
            };
            let end = if n + 1 == parts {
                Bound::Unbounded
            } else {
                Bound::Excluded(&to[..])
            };
            for item in table.range(&self.txn, &(start, end))? {
                let (key, value) = item?;
                sum = sum.wrapping_add(record_hash(table.number, key, value, &mut scratch));
                records += 1;
                if records % 4096 == 0 {
                    progress(records);
                }
            }
        }
        Ok(Scan {
            recorded: self.state_hash()?,
            computed: StateHash(sum),
            records,
        })
    }
}

/// The first eight bytes of a key, as a number: keys are ordered by it, and within it.
fn leading(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    for (byte, of) in bytes.iter_mut().zip(key) {
        *byte = *of;
    }
    u64::from_be_bytes(bytes)
}

/// What a scan of a state found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The hash that was kept up to date; `None` in a state that an older server left.
    pub recorded: Option<StateHash>,
    /// The hash of the records that are there.
    pub computed: StateHash,
    /// How many they are.
    pub records: u64,
}

impl Scan {
    /// Of two parts of one state.
    pub(in crate::storage) fn plus(self, other: Scan) -> Scan {
        Scan {
            recorded: self.recorded,
            computed: StateHash(self.computed.0.wrapping_add(other.computed.0)),
            records: self.records + other.records,
        }
    }
}

/// The records of one table: its name, its keys and their values, in LMDB's order.
#[cfg(test)]
pub type TableDump = (&'static str, Vec<(Vec<u8>, Vec<u8>)>);

#[cfg(test)]
impl StateView<'_> {
    /// Every byte that the state hash covers, for tests that compare or check whole states.
    pub fn dump(&self) -> Result<Vec<TableDump>, StorageError> {
        let tables = super::COVERED.into_iter().zip(self.layout.covered());
        tables
            .map(|(name, table)| {
                let records = table
                    .iter(&self.txn)?
                    .map(|item| item.map(|(key, value)| (key.to_vec(), value.to_vec())))
                    .collect::<Result<_, _>>()?;
                Ok((name, records))
            })
            .collect()
    }
}
