//! Reading records, which both transactions can.

use std::ops::Bound;

use heed::RoTxn;

use super::{COUNTERS, StateTxn, StateView, be_u64, codec, decode_counters, entry_key, entry_name};
use crate::domain::command::RequestId;
use crate::domain::ids::{BlockId, InodeId, ServerId};
use crate::domain::state::{Counters, DataServer, Entry, Garbage, OwnedRun, ReadTables, Remembered};
use crate::storage::StorageError;

impl StateView<'_> {
    fn txn(&self) -> &RoTxn<'_> {
        &self.txn
    }

    fn read_counters(&self) -> Result<Counters, StorageError> {
        decode_counters(self.layout.meta.get(self.txn(), COUNTERS)?)
    }
}

/// Reading is the same in both transactions, but for the counters.
macro_rules! read_tables {
    ($type:ident, $self:ident => $counters:expr) => {
        impl ReadTables for $type<'_> {
            type Error = StorageError;

            fn entry(&self, parent: InodeId, name: &str) -> Result<Option<Entry>, StorageError> {
                let found = self.layout.entries.get(self.txn(), &entry_key(parent, name))?;
                found.map(codec::decode_entry).transpose()
            }

            fn children(&self, parent: InodeId, limit: usize) -> Result<Vec<(String, Entry)>, StorageError> {
                let mut children = Vec::new();
                for item in self.layout.entries.prefix_iter(self.txn(), &parent.0.to_be_bytes())?.take(limit) {
                    let (key, value) = item?;
                    children.push((entry_name(key)?.to_owned(), codec::decode_entry(value)?));
                }
                Ok(children)
            }

            fn run(&self, first: BlockId) -> Result<Option<OwnedRun>, StorageError> {
                let found = self.layout.runs.get(self.txn(), &first.0.to_be_bytes())?;
                found.map(codec::decode_run).transpose()
            }

            fn run_of(&self, block: BlockId) -> Result<Option<OwnedRun>, StorageError> {
                let key = block.0.to_be_bytes();
                let found = self.layout.runs.get_lower_than_or_equal_to(self.txn(), &key)?;
                let owned = found.map(|(_, value)| codec::decode_run(value)).transpose()?;
                Ok(owned.filter(|owned| owned.run.contains(block)))
            }

            fn moved(&self, block: BlockId) -> Result<Option<Vec<ServerId>>, StorageError> {
                let found = self.layout.moved.get(self.txn(), &block.0.to_be_bytes())?;
                found.map(codec::decode_servers).transpose()
            }

            fn server(&self, server: ServerId) -> Result<Option<DataServer>, StorageError> {
                let found = self.layout.servers.get(self.txn(), &server.0.to_be_bytes())?;
                found.map(|bytes| codec::decode_data_server(server, bytes)).transpose()
            }

            fn servers(&self) -> Result<Vec<DataServer>, StorageError> {
                let mut servers = Vec::new();
                for item in self.layout.servers.iter(self.txn())? {
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
                let found = self.layout.runs.range(self.txn(), &range)?.take(limit);
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
                for item in self.layout.moved.range(self.txn(), &range)? {
                    let (key, value) = item?;
                    moved.push((BlockId(be_u64("moved block", key)?), codec::decode_servers(value)?));
                }
                Ok(moved)
            }

            fn garbage(&self, first: BlockId) -> Result<Option<Garbage>, StorageError> {
                let found = self.layout.garbage.get(self.txn(), &first.0.to_be_bytes())?;
                found.map(codec::decode_garbage).transpose()
            }

            fn garbage_of(&self, block: BlockId) -> Result<Option<Garbage>, StorageError> {
                let key = block.0.to_be_bytes();
                let found = self.layout.garbage.get_lower_than_or_equal_to(self.txn(), &key)?;
                let garbage = found.map(|(_, value)| codec::decode_garbage(value)).transpose()?;
                Ok(garbage.filter(|garbage| garbage.run.contains(block)))
            }

            fn garbage_from(&self, from: BlockId, limit: usize) -> Result<Vec<Garbage>, StorageError> {
                let start = from.0.to_be_bytes();
                let range = (Bound::Included(&start[..]), Bound::Unbounded);
                let found = self.layout.garbage.range(self.txn(), &range)?.take(limit);
                found.map(|item| codec::decode_garbage(item?.1)).collect()
            }

            fn first_detached(&self) -> Result<Option<InodeId>, StorageError> {
                let first = self.layout.detached.first(self.txn())?;
                first.map(|(key, _)| be_u64("detached directory", key).map(InodeId)).transpose()
            }

            fn remembered(&self, id: &RequestId) -> Result<Option<Remembered>, StorageError> {
                let found = self.layout.requests.get(self.txn(), id.as_bytes())?;
                found.map(codec::decode_remembered).transpose()
            }

            fn remembered_at(&self, sequence: u64) -> Result<Option<(RequestId, i64)>, StorageError> {
                let Some(value) = self.layout.request_order.get(self.txn(), &sequence.to_be_bytes())? else {
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

read_tables!(StateView, self => self.read_counters());
read_tables!(StateTxn, self => Ok(self.counters));
