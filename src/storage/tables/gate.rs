//! The one way into the tables: every record that is written or removed passes here, and the state hash
//! with it.
//!
//! [`Gate`] owns the write transaction and gives it to nobody, so a table cannot be changed past the
//! hash. The hash is the sum modulo 2^128 of the records' own hashes (XXH3-128 of table number, key
//! length, key and value), as in Bellare and Micciancio's AdHash: it does not depend on the order of
//! writing, so a scan finds the same number, and a record is exchanged by subtracting and adding. It finds
//! accidents; it is no defence against somebody who chooses records to make two sums alike.
//!
//! Counters and applied index change with every log entry: they are [`Late`], held in memory and written when
//! the transaction commits, but part of the hash at once.
//!
//! The hash after each of the last [`HASHES_KEPT`] entries is kept in `hashes`, a ring: the entry at
//! `index` has the slot `index % HASHES_KEPT`. That table is not part of the hash.

use std::ops::{Bound, Deref};

use heed::types::Bytes;
use heed::{Database, Env, RoTxn, RwTxn, WithoutTls};
use xxhash_rust::xxh3::xxh3_128;

use super::super::StorageError;
use crate::domain::state_hash::StateHash;

/// How many log indexes have their hash kept: minutes of full load, 2.7 MB.
pub const HASHES_KEPT: u64 = 1 << 16;

/// Where the hash of the whole state lies, beside the slots of the ring.
const NEWEST: &[u8] = b"newest";

pub(super) type Db = Database<'static, Bytes, Bytes>;

/// A table that the state hash covers. Reading goes through [`Deref`]; writing takes a transaction that
/// only the [`Gate`] has.
#[derive(Clone, Copy)]
pub(super) struct Table {
    /// Part of what is hashed: it stays.
    pub(super) number: u8,
    db: Db,
}

impl Table {
    pub(super) fn new(number: u8, db: Db) -> Self {
        Table { number, db }
    }
}

impl Deref for Table {
    type Target = Db;

    fn deref(&self) -> &Db {
        &self.db
    }
}

/// The hash of one record. `scratch` saves an allocation.
pub(super) fn record_hash(table: u8, key: &[u8], value: &[u8], scratch: &mut Vec<u8>) -> u128 {
    scratch.clear();
    scratch.push(table);
    scratch.extend_from_slice(&(key.len() as u32).to_be_bytes());
    scratch.extend_from_slice(key);
    scratch.extend_from_slice(value);
    xxh3_128(scratch)
}

/// A record that is written when the transaction commits.
struct Late {
    key: &'static [u8],
    value: Option<Vec<u8>>,
    /// What it adds to the hash.
    part: u128,
    changed: bool,
}

/// The hashes by index, and the newest.
#[derive(Clone, Copy)]
pub(super) struct HashTable(Db);

impl HashTable {
    pub(super) fn new(db: Db) -> Self {
        HashTable(db)
    }

    /// The hash of the whole state; `None` in one that an older server left.
    pub(super) fn newest(&self, txn: &RoTxn<'_>) -> Result<Option<StateHash>, StorageError> {
        let found = self.0.get(txn, NEWEST)?;
        let impossible = || StorageError::Corrupt("state hash: impossible record".to_owned());
        found
            .map(|bytes| StateHash::from_bytes(bytes).ok_or_else(impossible))
            .transpose()
    }

    /// The hash after the entry at `index`, while it is kept.
    pub(super) fn at(&self, txn: &RoTxn<'_>, index: u64) -> Result<Option<StateHash>, StorageError> {
        let found = self
            .0
            .get(txn, &slot(index))?
            .and_then(<[u8]>::split_first_chunk::<8>);
        let hash = found.filter(|(of, _)| u64::from_be_bytes(**of) == index);
        Ok(hash.and_then(|(_, hash)| StateHash::from_bytes(hash)))
    }

    pub(super) fn stat(&self, txn: &RoTxn<'_>) -> Result<heed::DatabaseStat, heed::Error> {
        self.0.stat(txn)
    }

    #[cfg(test)]
    pub(super) fn raw(&self) -> Db {
        self.0
    }
}

fn slot(index: u64) -> [u8; 4] {
    ((index % HASHES_KEPT) as u32).to_be_bytes()
}

/// The write transaction, and the hash of what it will leave.
pub(super) struct Gate<'e> {
    txn: RwTxn<'e>,
    hashes: HashTable,
    hash: u128,
    late_table: Table,
    late: Vec<Late>,
    scratch: Vec<u8>,
    /// Writes as if there were no hash, to measure what it costs.
    #[cfg(test)]
    off: bool,
}

#[cfg(test)]
thread_local! {
    /// Gates that are opened on this thread keep no hash.
    pub static HASHING_IS_OFF: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

impl<'e> Gate<'e> {
    /// Opens the transaction; the records `late` of the table are written last.
    pub(super) fn open(
        env: &'e Env<WithoutTls>,
        hashes: HashTable,
        late_table: Table,
        late: &[&'static [u8]],
    ) -> Result<Self, StorageError> {
        let txn = env.write_txn()?;
        let mut scratch = Vec::new();
        let mut read = |key: &'static [u8]| -> Result<Late, StorageError> {
            let value = late_table.get(&txn, key)?.map(<[u8]>::to_vec);
            let part = value.as_ref().map_or(0, |value| {
                record_hash(late_table.number, key, value, &mut scratch)
            });
            Ok(Late {
                key,
                value,
                part,
                changed: false,
            })
        };
        let late = late.iter().map(|key| read(key)).collect::<Result<_, _>>()?;
        let hash = hashes.newest(&txn)?.unwrap_or_default().0;
        Ok(Gate {
            txn,
            hashes,
            hash,
            late_table,
            late,
            scratch,
            #[cfg(test)]
            off: HASHING_IS_OFF.get(),
        })
    }

    /// For reading. Late records are as they were when the transaction was opened.
    pub(super) fn txn(&self) -> &RoTxn<'_> {
        &self.txn
    }

    /// A late record as it is now.
    pub(super) fn late(&self, which: usize) -> Option<&[u8]> {
        self.late[which].value.as_deref()
    }

    pub(super) fn put_late(&mut self, which: usize, value: Vec<u8>) {
        let late = &mut self.late[which];
        if late.value.as_ref() == Some(&value) {
            return;
        }
        #[cfg(test)]
        if self.off {
            (late.value, late.changed) = (Some(value), true);
            return;
        }
        let part = record_hash(self.late_table.number, late.key, &value, &mut self.scratch);
        self.hash = self.hash.wrapping_sub(late.part).wrapping_add(part);
        *late = Late {
            key: late.key,
            value: Some(value),
            part,
            changed: true,
        };
    }

    pub(super) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        #[cfg(test)]
        if self.off {
            return Ok(table.db.put(&mut self.txn, key, value)?);
        }
        // Most records are new: then this is the only way down the tree.
        if let Some(old) = table.db.get_or_put(&mut self.txn, key, value)? {
            if old == value {
                return Ok(());
            }
            let old = record_hash(table.number, key, old, &mut self.scratch);
            self.hash = self.hash.wrapping_sub(old);
            table.db.put(&mut self.txn, key, value)?;
        }
        let new = record_hash(table.number, key, value, &mut self.scratch);
        self.hash = self.hash.wrapping_add(new);
        Ok(())
    }

    pub(super) fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StorageError> {
        #[cfg(test)]
        if self.off {
            table.db.delete(&mut self.txn, key)?;
            return Ok(());
        }
        if let Some(old) = table.db.get(&self.txn, key)? {
            let old = record_hash(table.number, key, old, &mut self.scratch);
            self.hash = self.hash.wrapping_sub(old);
            table.db.delete(&mut self.txn, key)?;
        }
        Ok(())
    }

    /// Removes every record from `start` up to, and without, `end`.
    pub(super) fn delete_range(
        &mut self,
        table: Table,
        start: &[u8],
        end: &[u8],
    ) -> Result<(), StorageError> {
        let range = (Bound::Included(start), Bound::Excluded(end));
        let mut found = false;
        for item in table.db.range(&self.txn, &range)? {
            let (key, value) = item?;
            let old = record_hash(table.number, key, value, &mut self.scratch);
            self.hash = self.hash.wrapping_sub(old);
            found = true;
        }
        if found {
            table.db.delete_range(&mut self.txn, &range)?;
        }
        Ok(())
    }

    /// Keeps the hash as that after the entry at `index`.
    pub(super) fn keep_hash(&mut self, index: u64) -> Result<(), StorageError> {
        #[cfg(test)]
        if self.off {
            return Ok(());
        }
        let mut value = [0; 24];
        value[..8].copy_from_slice(&index.to_be_bytes());
        value[8..].copy_from_slice(&self.hash.to_be_bytes());
        Ok(self.hashes.0.put(&mut self.txn, &slot(index), &value)?)
    }

    /// Replaces the hash, of a state that has none.
    pub(super) fn adopt(&mut self, hash: StateHash) {
        self.hash = hash.0;
    }

    /// Makes everything visible, the late records too.
    pub(super) fn commit(mut self) -> Result<(), StorageError> {
        for late in self.late.iter().filter(|late| late.changed) {
            let value = late.value.as_deref().unwrap_or_default();
            self.late_table.db.put(&mut self.txn, late.key, value)?;
        }
        #[cfg(test)]
        if self.off {
            return Ok(self.txn.commit()?);
        }
        self.hashes
            .0
            .put(&mut self.txn, NEWEST, &self.hash.to_be_bytes())?;
        Ok(self.txn.commit()?)
    }

    /// Past the hash, for tests of what older servers left.
    #[cfg(test)]
    pub(super) fn raw(
        mut self,
        change: impl FnOnce(&mut RwTxn<'e>) -> Result<(), heed::Error>,
    ) -> Result<(), StorageError> {
        change(&mut self.txn)?;
        Ok(self.txn.commit()?)
    }
}
