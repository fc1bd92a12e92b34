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

use std::ops::Bound;

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, RoRange, RoTxn, RwTxn, WithoutTls};

use super::codec;
use super::{Progress, StorageError};
use crate::domain::command::RequestId;
use crate::domain::ids::{BlockId, InodeId, ServerId};
use crate::domain::path::CleanPath;
use crate::domain::state::{
    Counters, DataServer, Entry, EntryKind, Garbage, OwnedRun, ReadTables, Remembered, Tables,
};
use crate::proto::raft as pb;

type Table = Database<'static, Bytes, Bytes>;

const COUNTERS: &[u8] = b"counters";
const APPLIED: &[u8] = b"applied";
const MEMBERSHIP: &[u8] = b"membership";

/// How many named databases [`Layout`] opens.
pub const TABLES: u32 = 9;

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
}

impl Layout {
    /// Opens the tables of an environment, creating those that are missing, and files the root in a
    /// new one.
    ///
    /// # Errors
    /// Those of LMDB.
    pub fn create(env: &Env<WithoutTls>) -> Result<Self, StorageError> {
        let txn = env.write_txn()?;
        let tables = env.create_databases_and_commit(txn, |opener, txn| -> Result<_, heed::Error> {
            let mut table = |name| opener.create_database::<Bytes, Bytes>(txn, Some(name));
            Ok(CommitOrAbort::<_, ()>::Commit((
                (table("entries")?, table("runs")?, table("moved")?),
                (table("servers")?, table("garbage")?, table("detached")?),
                (table("requests")?, table("request_order")?, table("meta")?),
            )))
        })?;
        let ((entries, runs, moved), (servers, garbage, detached), (requests, request_order, meta)) =
            tables.unwrap_commit();
        let layout = Layout {
            entries,
            runs,
            moved,
            servers,
            garbage,
            detached,
            requests,
            request_order,
            meta,
        };
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

    fn all(&self) -> [Table; TABLES as usize] {
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

/// One immutable view of the state.
pub struct StateView<'e> {
    layout: Layout,
    txn: RoTxn<'e, WithoutTls>,
}

impl<'e> StateView<'e> {
    pub(super) fn open(env: &'e Env<WithoutTls>, layout: Layout) -> Result<Self, StorageError> {
        Ok(StateView {
            layout,
            txn: env.read_txn()?,
        })
    }

    /// Bytes of the pages that records lie in.
    pub(super) fn bytes(&self) -> Result<u64, StorageError> {
        let mut bytes = 0;
        for table in self.layout.all() {
            let stat = table.stat(&self.txn)?;
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
}

/// The records of one table: its name, its keys and their values, in LMDB's order.
#[cfg(test)]
pub(super) type TableDump = (&'static str, Vec<(Vec<u8>, Vec<u8>)>);

#[cfg(test)]
impl Layout {
    /// Every table by its name.
    fn named(&self) -> [(&'static str, Table); TABLES as usize] {
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
        } = *self;
        [
            ("entries", entries),
            ("runs", runs),
            ("moved", moved),
            ("servers", servers),
            ("garbage", garbage),
            ("detached", detached),
            ("requests", requests),
            ("request_order", request_order),
            ("meta", meta),
        ]
    }
}

#[cfg(test)]
impl StateView<'_> {
    /// Every byte that the tables hold, for tests that compare or check whole states.
    pub(super) fn dump(&self) -> Result<Vec<TableDump>, StorageError> {
        self.layout
            .named()
            .into_iter()
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

#[cfg(test)]
impl StateTxn<'_> {
    /// Writes bytes as they are, for tests of what older servers left.
    pub(super) fn put_raw(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        let named = self.layout.named().into_iter().find(|(name, _)| *name == table);
        let (_, table) = named.ok_or_else(|| StorageError::Corrupt(format!("no table {table}")))?;
        Ok(table.put(&mut self.txn, key, value)?)
    }

    /// Commits what [`StateTxn::put_raw`] wrote, the counters too.
    pub(super) fn commit_raw(self) -> Result<(), StorageError> {
        Ok(self.txn.commit()?)
    }
}

/// How far the state in an environment has come that is only read.
pub(super) fn peek_progress(env: &Env<WithoutTls>) -> Result<Progress, StorageError> {
    let txn = env.read_txn()?;
    let meta = env.open_databases_and_commit(txn, |opener, txn| -> Result<_, heed::Error> {
        let meta = opener.open_database::<Bytes, Bytes>(txn, Some("meta"))?;
        Ok(meta.map_or(CommitOrAbort::Abort(()), CommitOrAbort::Commit))
    })?;
    let Some(meta) = meta.commit() else {
        return Err(StorageError::Corrupt(format!(
            "{}: no state in it",
            env.path().display()
        )));
    };
    let txn = env.read_txn()?;
    progress(meta, &txn)
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

/// The write transaction: one a batch.
pub struct StateTxn<'e> {
    layout: Layout,
    txn: RwTxn<'e>,
    /// Read once and written once a batch: nearly every command changes them.
    counters: Counters,
}

impl<'e> StateTxn<'e> {
    pub(super) fn begin(env: &'e Env<WithoutTls>, layout: Layout) -> Result<Self, StorageError> {
        let txn = env.write_txn()?;
        let counters = read_counters(&layout, &txn)?;
        Ok(StateTxn {
            layout,
            txn,
            counters,
        })
    }

    /// Records the last applied entry.
    pub(super) fn put_applied(&mut self, log_id: &pb::LogId) -> Result<(), StorageError> {
        Ok(self
            .layout
            .meta
            .put(&mut self.txn, APPLIED, &codec::encode(log_id))?)
    }

    /// Records the last membership.
    pub(super) fn put_membership(&mut self, membership: &pb::StoredMembership) -> Result<(), StorageError> {
        Ok(self
            .layout
            .meta
            .put(&mut self.txn, MEMBERSHIP, &codec::encode(membership))?)
    }

    /// Makes everything visible.
    pub(super) fn commit(mut self) -> Result<(), StorageError> {
        let counters = codec::encode_counters(self.counters);
        self.layout.meta.put(&mut self.txn, COUNTERS, &counters)?;
        Ok(self.txn.commit()?)
    }
}

fn read_counters(layout: &Layout, txn: &RoTxn<'_>) -> Result<Counters, StorageError> {
    layout
        .meta
        .get(txn, COUNTERS)?
        .map_or(Ok(Counters::default()), codec::decode_counters)
}

/// Reading is the same in both transactions, but for the counters.
macro_rules! read_tables {
    ($type:ident, $self:ident => $counters:expr) => {
        impl ReadTables for $type<'_> {
            type Error = StorageError;

            fn entry(&self, parent: InodeId, name: &str) -> Result<Option<Entry>, StorageError> {
                let found = self.layout.entries.get(&self.txn, &entry_key(parent, name))?;
                found.map(codec::decode_entry).transpose()
            }

            fn children(&self, parent: InodeId, limit: usize) -> Result<Vec<(String, Entry)>, StorageError> {
                let mut children = Vec::new();
                for item in self.layout.entries.prefix_iter(&self.txn, &parent.0.to_be_bytes())?.take(limit) {
                    let (key, value) = item?;
                    children.push((entry_name(key)?.to_owned(), codec::decode_entry(value)?));
                }
                Ok(children)
            }

            fn run(&self, first: BlockId) -> Result<Option<OwnedRun>, StorageError> {
                let found = self.layout.runs.get(&self.txn, &first.0.to_be_bytes())?;
                found.map(codec::decode_run).transpose()
            }

            fn run_of(&self, block: BlockId) -> Result<Option<OwnedRun>, StorageError> {
                let key = block.0.to_be_bytes();
                let found = self.layout.runs.get_lower_than_or_equal_to(&self.txn, &key)?;
                let owned = found.map(|(_, value)| codec::decode_run(value)).transpose()?;
                Ok(owned.filter(|owned| owned.run.contains(block)))
            }

            fn moved(&self, block: BlockId) -> Result<Option<Vec<ServerId>>, StorageError> {
                let found = self.layout.moved.get(&self.txn, &block.0.to_be_bytes())?;
                found.map(codec::decode_servers).transpose()
            }

            fn server(&self, server: ServerId) -> Result<Option<DataServer>, StorageError> {
                let found = self.layout.servers.get(&self.txn, &server.0.to_be_bytes())?;
                found.map(|bytes| codec::decode_data_server(server, bytes)).transpose()
            }

            fn servers(&self) -> Result<Vec<DataServer>, StorageError> {
                let mut servers = Vec::new();
                for item in self.layout.servers.iter(&self.txn)? {
                    let (key, value) = item?;
                    let number = key.try_into().map(u32::from_be_bytes).map_err(|_| {
                        StorageError::Corrupt(format!("DataServer: key of {} bytes", key.len()))
                    })?;
                    servers.push(codec::decode_data_server(ServerId(number), value)?);
                }
                Ok(servers)
            }

            fn counters(&$self) -> Result<Counters, StorageError> {
                $counters
            }

            fn runs_from(&self, from: BlockId, limit: usize) -> Result<Vec<OwnedRun>, StorageError> {
                let start = from.0.to_be_bytes();
                let range = (Bound::Included(&start[..]), Bound::Unbounded);
                let found = self.layout.runs.range(&self.txn, &range)?.take(limit);
                found.map(|item| codec::decode_run(item?.1)).collect()
            }

            fn moved_in(
                &self,
                first: BlockId,
                count: u64,
            ) -> Result<Vec<(BlockId, Vec<ServerId>)>, StorageError> {
                let (start, end) = (first.0.to_be_bytes(), first.0.saturating_add(count).to_be_bytes());
                let range = (Bound::Included(&start[..]), Bound::Excluded(&end[..]));
                let mut moved = Vec::new();
                for item in self.layout.moved.range(&self.txn, &range)? {
                    let (key, value) = item?;
                    moved.push((BlockId(be_u64("moved block", key)?), codec::decode_servers(value)?));
                }
                Ok(moved)
            }

            fn garbage(&self, first: BlockId) -> Result<Option<Garbage>, StorageError> {
                let found = self.layout.garbage.get(&self.txn, &first.0.to_be_bytes())?;
                found.map(codec::decode_garbage).transpose()
            }

            fn garbage_of(&self, block: BlockId) -> Result<Option<Garbage>, StorageError> {
                let key = block.0.to_be_bytes();
                let found = self.layout.garbage.get_lower_than_or_equal_to(&self.txn, &key)?;
                let garbage = found.map(|(_, value)| codec::decode_garbage(value)).transpose()?;
                Ok(garbage.filter(|garbage| garbage.run.contains(block)))
            }

            fn garbage_from(&self, from: BlockId, limit: usize) -> Result<Vec<Garbage>, StorageError> {
                let start = from.0.to_be_bytes();
                let range = (Bound::Included(&start[..]), Bound::Unbounded);
                let found = self.layout.garbage.range(&self.txn, &range)?.take(limit);
                found.map(|item| codec::decode_garbage(item?.1)).collect()
            }

            fn first_detached(&self) -> Result<Option<InodeId>, StorageError> {
                let first = self.layout.detached.first(&self.txn)?;
                first.map(|(key, _)| be_u64("detached directory", key).map(InodeId)).transpose()
            }

            fn remembered(&self, id: &RequestId) -> Result<Option<Remembered>, StorageError> {
                let found = self.layout.requests.get(&self.txn, id.as_bytes())?;
                found.map(codec::decode_remembered).transpose()
            }

            fn remembered_at(&self, sequence: u64) -> Result<Option<(RequestId, i64)>, StorageError> {
                let Some(value) = self.layout.request_order.get(&self.txn, &sequence.to_be_bytes())? else {
                    return Ok(None);
                };
                let corrupt = || StorageError::Corrupt(format!("remembered request {sequence}: impossible record"));
                let (time, id) = value.split_first_chunk::<8>().ok_or_else(corrupt)?;
                let id = RequestId::new(id).map_err(|_| corrupt())?;
                Ok(Some((id, i64::from_be_bytes(*time))))
            }
        }
    };
}

read_tables!(StateView, self => read_counters(&self.layout, &self.txn));
read_tables!(StateTxn, self => Ok(self.counters));

impl Tables for StateTxn<'_> {
    fn put_entry(&mut self, parent: InodeId, name: &str, entry: &Entry) -> Result<(), StorageError> {
        Ok(self.layout.entries.put(
            &mut self.txn,
            &entry_key(parent, name),
            &codec::encode_entry(entry),
        )?)
    }

    fn remove_entry(&mut self, parent: InodeId, name: &str) -> Result<(), StorageError> {
        self.layout
            .entries
            .delete(&mut self.txn, &entry_key(parent, name))?;
        Ok(())
    }

    fn put_run(&mut self, run: &OwnedRun) -> Result<(), StorageError> {
        let key = run.run.first.0.to_be_bytes();
        Ok(self
            .layout
            .runs
            .put(&mut self.txn, &key, &codec::encode_run(run))?)
    }

    fn remove_run(&mut self, first: BlockId) -> Result<(), StorageError> {
        self.layout.runs.delete(&mut self.txn, &first.0.to_be_bytes())?;
        Ok(())
    }

    fn put_moved(&mut self, block: BlockId, servers: &[ServerId]) -> Result<(), StorageError> {
        let value = codec::encode_servers(servers);
        Ok(self
            .layout
            .moved
            .put(&mut self.txn, &block.0.to_be_bytes(), &value)?)
    }

    fn remove_moved(&mut self, first: BlockId, count: u64) -> Result<(), StorageError> {
        let (start, end) = (first.0.to_be_bytes(), first.0.saturating_add(count).to_be_bytes());
        let range = (Bound::Included(&start[..]), Bound::Excluded(&end[..]));
        self.layout.moved.delete_range(&mut self.txn, &range)?;
        Ok(())
    }

    fn put_server(&mut self, server: &DataServer) -> Result<(), StorageError> {
        let key = server.server.0.to_be_bytes();
        Ok(self
            .layout
            .servers
            .put(&mut self.txn, &key, &codec::encode_data_server(server))?)
    }

    fn put_counters(&mut self, counters: Counters) -> Result<(), StorageError> {
        self.counters = counters;
        Ok(())
    }

    fn put_garbage(&mut self, garbage: &Garbage) -> Result<(), StorageError> {
        let key = garbage.run.first.0.to_be_bytes();
        Ok(self
            .layout
            .garbage
            .put(&mut self.txn, &key, &codec::encode_garbage(garbage))?)
    }

    fn remove_garbage(&mut self, first: BlockId) -> Result<(), StorageError> {
        self.layout
            .garbage
            .delete(&mut self.txn, &first.0.to_be_bytes())?;
        Ok(())
    }

    fn put_detached(&mut self, directory: InodeId) -> Result<(), StorageError> {
        Ok(self
            .layout
            .detached
            .put(&mut self.txn, &directory.0.to_be_bytes(), &[])?)
    }

    fn remove_detached(&mut self, directory: InodeId) -> Result<(), StorageError> {
        self.layout
            .detached
            .delete(&mut self.txn, &directory.0.to_be_bytes())?;
        Ok(())
    }

    fn put_remembered(&mut self, id: &RequestId, request: &Remembered) -> Result<(), StorageError> {
        self.layout
            .requests
            .put(&mut self.txn, id.as_bytes(), &codec::encode_remembered(request))?;
        let mut value = request.time_ms.to_be_bytes().to_vec();
        value.extend_from_slice(id.as_bytes());
        Ok(self
            .layout
            .request_order
            .put(&mut self.txn, &request.sequence.to_be_bytes(), &value)?)
    }

    fn remove_remembered(&mut self, id: &RequestId, sequence: u64) -> Result<(), StorageError> {
        self.layout.requests.delete(&mut self.txn, id.as_bytes())?;
        self.layout
            .request_order
            .delete(&mut self.txn, &sequence.to_be_bytes())?;
        Ok(())
    }
}
