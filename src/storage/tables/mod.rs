//! The tables: how records are keyed in LMDB, and the read and write transactions over them.
//!
//! Every key is big-endian, so that the common question is one lookup or one scan:
//!
//! | table | key | value |
//! |---|---|---|
//! | `entries` | parent inode, name | a file or directory; the root under (0, "") |
//! | `runs` | first block | a file's blocks |
//! | `moved` | block | where its replicas are, if not where they were placed |
//! | `servers` | DataServer number | a DataServer |
//! | `garbage` | first block | blocks that no file owns |
//! | `detached` | inode | a deleted directory whose children are to be reclaimed |
//! | `requests` | request id | its answer |
//! | `request_order` | sequence number | time, request id |
//! | `meta` | name | counters, applied index, membership |
//! | `hashes` | `newest`, or a slot of a ring | the state hash, now or after a log entry (see `gate`) |
//!
//! The state hash covers every table but `hashes`. [`view`] reads, `write` writes, `read` has what both
//! can; all writing goes through `gate`, which keeps the hash.

use heed::types::Bytes;
use heed::{CommitOrAbort, Env, RoTxn, WithoutTls};

use super::codec;
use super::{Progress, StorageError};
use crate::domain::ids::InodeId;
use crate::domain::state::{Counters, Entry, EntryKind, ReadTables, Tables};

mod gate;
mod read;
pub mod view;
mod write;

pub use gate::HASHES_KEPT;
#[cfg(test)]
pub use gate::HASHING_IS_OFF;
use gate::{HashTable, Table};
pub use view::StateView;
pub use write::StateTxn;

const COUNTERS: &[u8] = b"counters";
const APPLIED: &[u8] = b"applied";
const MEMBERSHIP: &[u8] = b"membership";

/// The tables that the state hash covers. Their numbers, from 1 on in this order, are part of it: they stay.
const COVERED: [&str; 9] = [
    "entries",
    "runs",
    "moved",
    "servers",
    "garbage",
    "detached",
    "requests",
    "request_order",
    "meta",
];

/// The table of the state hash itself.
const HASHES: &str = "hashes";

/// How many named databases [`Layout`] opens.
pub const TABLES: u32 = COVERED.len() as u32 + 1;

/// The open tables of one environment.
#[derive(Clone, Copy)]
pub struct Layout {
    entries: Table,
    runs: Table,
    moved: Table,
    servers: Table,
    garbage: Table,
    detached: Table,
    requests: Table,
    request_order: Table,
    meta: Table,
    hashes: HashTable,
}

impl Layout {
    /// Opens the tables of an environment, creating those that are missing, and files the root in a
    /// new one.
    ///
    /// # Errors
    /// Those of LMDB.
    pub fn create(env: &Env<WithoutTls>) -> Result<Self, StorageError> {
        let txn = env.write_txn()?;
        let tables = env
            .create_databases_and_commit(txn, |opener, txn| -> Result<_, heed::Error> {
                let create = |name| opener.create_database::<Bytes, Bytes>(txn, Some(name)).map(Some);
                Ok(CommitOrAbort::<_, ()>::Commit(each(create)?))
            })?
            .unwrap_commit();
        let layout = Layout::of(env, tables)?;
        let mut txn = StateTxn::begin(env, layout)?;
        if txn.entry(InodeId::NONE, "")?.is_none() {
            let root = Entry {
                inode: InodeId::ROOT,
                mtime_ms: 0,
                size: 0,
                kind: EntryKind::Directory,
            };
            txn.put_entry(InodeId::NONE, "", &root)?;
            txn.commit()?;
        }
        Ok(layout)
    }

    /// Opens the tables of an environment that is only read.
    ///
    /// # Errors
    /// `Corrupt` when one is missing, and those of LMDB.
    pub fn open(env: &Env<WithoutTls>) -> Result<Self, StorageError> {
        let txn = env.read_txn()?;
        let tables = env
            .open_databases_and_commit(txn, |opener, txn| -> Result<_, heed::Error> {
                let open = |name| opener.open_database::<Bytes, Bytes>(txn, Some(name));
                Ok(CommitOrAbort::<_, ()>::Commit(each(open)?))
            })?
            .unwrap_commit();
        Layout::of(env, tables)
    }

    fn of(env: &Env<WithoutTls>, (covered, hashes): Found<gate::Db>) -> Result<Self, StorageError> {
        let missing = || StorageError::Damaged {
            path: env.path().to_owned(),
            what: "a table is missing".to_owned(),
        };
        let mut numbered = (1..).zip(covered);
        let mut next = || {
            let (number, db) = numbered.next().ok_or_else(missing)?;
            Ok::<_, StorageError>(Table::new(number, db.ok_or_else(missing)?))
        };
        Ok(Layout {
            entries: next()?,
            runs: next()?,
            moved: next()?,
            servers: next()?,
            garbage: next()?,
            detached: next()?,
            requests: next()?,
            request_order: next()?,
            meta: next()?,
            hashes: HashTable::new(hashes.ok_or_else(missing)?),
        })
    }

    /// Every table that the state hash covers.
    fn covered(&self) -> [Table; COVERED.len()] {
        let Layout {
            entries,
            runs,
            moved,
            servers,
            garbage,
            detached,
            requests,
            request_order,
            meta,
            hashes: _,
        } = *self;
        [
            entries,
            runs,
            moved,
            servers,
            garbage,
            detached,
            requests,
            request_order,
            meta,
        ]
    }
}

/// The databases of [`COVERED`], and of [`HASHES`], where they are there.
type Found<T> = ([Option<T>; COVERED.len()], Option<T>);

fn each<T>(
    mut table: impl FnMut(&'static str) -> Result<Option<T>, heed::Error>,
) -> Result<Found<T>, heed::Error> {
    let mut found = COVERED.map(|_| None);
    for (found, name) in found.iter_mut().zip(COVERED) {
        *found = table(name)?;
    }
    Ok((found, table(HASHES)?))
}

fn entry_key(parent: InodeId, name: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(8 + name.len());
    key.extend_from_slice(&parent.0.to_be_bytes());
    key.extend_from_slice(name.as_bytes());
    key
}

fn be_u64(what: &str, bytes: &[u8]) -> Result<u64, StorageError> {
    let bytes = bytes
        .try_into()
        .map_err(|_| StorageError::Corrupt(format!("{what}: key of {} bytes", bytes.len())))?;
    Ok(u64::from_be_bytes(bytes))
}

fn entry_name(key: &[u8]) -> Result<&str, StorageError> {
    std::str::from_utf8(&key[8..])
        .map_err(|_| StorageError::Corrupt("directory entry: name not UTF-8".to_owned()))
}

fn progress(meta: Table, txn: &RoTxn<'_>) -> Result<Progress, StorageError> {
    let applied = meta
        .get(txn, APPLIED)?
        .map(|bytes| codec::decode("applied index", bytes))
        .transpose()?;
    let membership = meta
        .get(txn, MEMBERSHIP)?
        .map(|bytes| codec::decode("membership", bytes))
        .transpose()?;
    Ok(Progress { applied, membership })
}

fn decode_counters(found: Option<&[u8]>) -> Result<Counters, StorageError> {
    found.map_or(Ok(Counters::default()), codec::decode_counters)
}
