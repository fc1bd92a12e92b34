//! Changing the state: the write transaction, and the tables as the domain changes them.

use heed::{Env, RoTxn, WithoutTls};

use super::gate::Gate;
use super::{APPLIED, COUNTERS, Layout, MEMBERSHIP, codec, decode_counters, entry_key};
use crate::domain::command::RequestId;
use crate::domain::ids::{BlockId, InodeId, ServerId};
use crate::domain::state::{Counters, DataServer, Entry, Garbage, OwnedRun, Remembered, Tables};
use crate::domain::state_hash::StateHash;
use crate::proto::raft as pb;
use crate::storage::StorageError;

/// Records of `meta` that change with every log entry, and so are written once a transaction.
const LATE: [&[u8]; 2] = [COUNTERS, APPLIED];
const LATE_COUNTERS: usize = 0;
const LATE_APPLIED: usize = 1;

/// The write transaction: one a batch.
pub struct StateTxn<'e> {
    pub(super) layout: Layout,
    gate: Gate<'e>,
    /// Decoded once and encoded once an entry: nearly every command changes them.
    pub(super) counters: Counters,
}

impl<'e> StateTxn<'e> {
    pub(in crate::storage) fn begin(env: &'e Env<WithoutTls>, layout: Layout) -> Result<Self, StorageError> {
        let gate = Gate::open(env, layout.hashes, layout.meta, &LATE)?;
        let counters = decode_counters(gate.late(LATE_COUNTERS))?;
        Ok(StateTxn {
            layout,
            gate,
            counters,
        })
    }

    pub(super) fn txn(&self) -> &RoTxn<'_> {
        self.gate.txn()
    }

    /// Ends a log entry: records it as the last applied one, and the state's hash as that after it.
    pub(in crate::storage) fn end_entry(&mut self, log_id: &pb::LogId) -> Result<(), StorageError> {
        self.put_late_counters();
        self.gate.put_late(LATE_APPLIED, codec::encode(log_id));
        self.gate.keep_hash(log_id.index)
    }

    /// Records the last membership.
    pub(in crate::storage) fn put_membership(
        &mut self,
        membership: &pb::StoredMembership,
    ) -> Result<(), StorageError> {
        let value = codec::encode(membership);
        self.gate.put(self.layout.meta, MEMBERSHIP, &value)
    }

    fn put_late_counters(&mut self) {
        let counters = codec::encode_counters(self.counters);
        self.gate.put_late(LATE_COUNTERS, counters);
    }

    /// Makes everything visible.
    pub(in crate::storage) fn commit(mut self) -> Result<(), StorageError> {
        self.put_late_counters();
        self.gate.commit()
    }

    /// Gives a state that an older server left its hash, as a scan found it, and changes nothing else.
    pub(in crate::storage) fn adopt_hash(
        mut self,
        hash: StateHash,
        applied: Option<&pb::LogId>,
    ) -> Result<(), StorageError> {
        self.gate.adopt(hash);
        if let Some(applied) = applied {
            self.gate.keep_hash(applied.index)?;
        }
        self.gate.commit()
    }
}

#[cfg(test)]
impl StateTxn<'_> {
    /// Puts these records in place of what is there, as they are, and leaves no state hash: for tests of
    /// what older servers left.
    pub(in crate::storage) fn commit_raw(
        self,
        records: &[(&str, Vec<u8>, Vec<u8>)],
    ) -> Result<(), StorageError> {
        let tables: Vec<_> = super::COVERED.into_iter().zip(self.layout.covered()).collect();
        let hashes = self.layout.hashes.raw();
        self.gate.raw(|txn| {
            for (name, key, value) in records {
                let (_, table) = tables.iter().find(|(table, _)| table == name).unwrap();
                table.put(txn, key, value)?;
            }
            hashes.clear(txn)
        })
    }
}

impl Tables for StateTxn<'_> {
    fn put_entry(&mut self, parent: InodeId, name: &str, entry: &Entry) -> Result<(), StorageError> {
        let (key, value) = (entry_key(parent, name), codec::encode_entry(entry));
        self.gate.put(self.layout.entries, &key, &value)
    }

    fn remove_entry(&mut self, parent: InodeId, name: &str) -> Result<(), StorageError> {
        self.gate.delete(self.layout.entries, &entry_key(parent, name))
    }

    fn put_run(&mut self, run: &OwnedRun) -> Result<(), StorageError> {
        let key = run.run.first.0.to_be_bytes();
        self.gate.put(self.layout.runs, &key, &codec::encode_run(run))
    }

    fn remove_run(&mut self, first: BlockId) -> Result<(), StorageError> {
        self.gate.delete(self.layout.runs, &first.0.to_be_bytes())
    }

    fn put_moved(&mut self, block: BlockId, servers: &[ServerId]) -> Result<(), StorageError> {
        let value = codec::encode_servers(servers);
        self.gate.put(self.layout.moved, &block.0.to_be_bytes(), &value)
    }

    fn remove_moved(&mut self, first: BlockId, count: u64) -> Result<(), StorageError> {
        let (start, end) = (first.0.to_be_bytes(), first.0.saturating_add(count).to_be_bytes());
        self.gate.delete_range(self.layout.moved, &start, &end)
    }

    fn put_server(&mut self, server: &DataServer) -> Result<(), StorageError> {
        let key = server.server.0.to_be_bytes();
        let value = codec::encode_data_server(server);
        self.gate.put(self.layout.servers, &key, &value)
    }

    fn put_counters(&mut self, counters: Counters) -> Result<(), StorageError> {
        self.counters = counters;
        Ok(())
    }

    fn put_garbage(&mut self, garbage: &Garbage) -> Result<(), StorageError> {
        let key = garbage.run.first.0.to_be_bytes();
        let value = codec::encode_garbage(garbage);
        self.gate.put(self.layout.garbage, &key, &value)
    }

    fn remove_garbage(&mut self, first: BlockId) -> Result<(), StorageError> {
        self.gate.delete(self.layout.garbage, &first.0.to_be_bytes())
    }

    fn put_detached(&mut self, directory: InodeId) -> Result<(), StorageError> {
        let key = directory.0.to_be_bytes();
        self.gate.put(self.layout.detached, &key, &[])
    }

    fn remove_detached(&mut self, directory: InodeId) -> Result<(), StorageError> {
        self.gate.delete(self.layout.detached, &directory.0.to_be_bytes())
    }

    fn put_remembered(&mut self, id: &RequestId, request: &Remembered) -> Result<(), StorageError> {
        let value = codec::encode_remembered(request);
        self.gate.put(self.layout.requests, id.as_bytes(), &value)?;
        let mut value = request.time_ms.to_be_bytes().to_vec();
        value.extend_from_slice(id.as_bytes());
        let key = request.sequence.to_be_bytes();
        self.gate.put(self.layout.request_order, &key, &value)
    }

    fn remove_remembered(&mut self, id: &RequestId, sequence: u64) -> Result<(), StorageError> {
        self.gate.delete(self.layout.requests, id.as_bytes())?;
        self.gate
            .delete(self.layout.request_order, &sequence.to_be_bytes())
    }
}
