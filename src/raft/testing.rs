//! For tests, here and of whoever owns the state: openraft's storage suite, and a state in memory that
//! keeps the promises of [`ports`](super::ports) with real snapshot files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use actix::{Actor, Addr, Context, Handler};
use bytes::Bytes;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use prost::Message;
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

use super::log_store::{LogLimits, LogStore};
use super::ports::{
    AppliedState, ApplyEntries, BuildSnapshot, GetAppliedState, GetCurrentSnapshot, InstallSnapshot,
    Snapshot, SnapshotData,
};
use super::state_machine::{StateMachine, StateMachinePort};
use super::types::{BatchOutcome, EntryPayload, SnapshotMeta, StoredMembership, TypeConfig};

/// Runs openraft's storage suite on our log store with the state machine that `start` starts in an
/// empty data directory. Needs a running actix system.
pub(crate) async fn storage_suite<F>(start: F)
where
    F: Fn(&Path) -> StateMachinePort + Send + Sync,
{
    Suite::test_all(Stores(start)).await.unwrap();
}

struct Stores<F>(F);

impl<F> StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Stores<F>
where
    F: Fn(&Path) -> StateMachinePort + Send + Sync,
{
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = TempDir::new().unwrap();
        let log = LogStore::open(&dir.path().join("raft/log"), LogLimits::default()).unwrap();
        let state = StateMachine::new((self.0)(dir.path()), log.clone());
        Ok((dir, log, state))
    }
}

/// A state in memory: the batches applied, in order. Its snapshots are the state's only copy on disk.
pub(crate) struct MemStore {
    snapshots: PathBuf,
    applied: AppliedState,
    batches: Vec<Bytes>,
    current: Option<Snapshot>,
    disk_is_full: bool,
    refused: usize,
}

impl MemStore {
    /// Starts one with an empty state.
    pub(crate) fn start_in(data_dir: &Path) -> Addr<MemStore> {
        let snapshots = data_dir.join("raft/snapshots");
        fs::create_dir_all(&snapshots).unwrap();
        let empty = AppliedState::default();
        MemStore {
            snapshots,
            applied: empty,
            batches: Vec::new(),
            current: None,
            disk_is_full: false,
            refused: 0,
        }
        .start()
    }

    /// What openraft needs to reach it.
    pub(crate) fn port(addr: &Addr<MemStore>) -> StateMachinePort {
        StateMachinePort {
            applied: addr.clone().recipient(),
            apply: addr.clone().recipient(),
            build_snapshot: addr.clone().recipient(),
            install_snapshot: addr.clone().recipient(),
            current_snapshot: addr.clone().recipient(),
        }
    }
}

impl Actor for MemStore {
    type Context = Context<Self>;
}

/// Asks a [`MemStore`] for the batches in its state.
#[derive(actix::Message)]
#[rtype(result = "Vec<Bytes>")]
pub(crate) struct Batches;

impl Handler<Batches> for MemStore {
    type Result = Vec<Bytes>;

    fn handle(&mut self, _: Batches, _: &mut Context<Self>) -> Vec<Bytes> {
        self.batches.clone()
    }
}

/// Tells a [`MemStore`] that its disk is full, or is so no more; answers how often it has refused
/// something for that.
#[derive(actix::Message)]
#[rtype(result = "usize")]
pub(crate) struct DiskIsFull(pub(crate) bool);

impl Handler<DiskIsFull> for MemStore {
    type Result = usize;

    fn handle(&mut self, DiskIsFull(full): DiskIsFull, _: &mut Context<Self>) -> usize {
        self.disk_is_full = full;
        self.refused
    }
}

impl MemStore {
    fn room(&mut self) -> io::Result<()> {
        if !self.disk_is_full {
            return Ok(());
        }
        self.refused += 1;
        Err(io::ErrorKind::StorageFull.into())
    }
}

impl Handler<GetAppliedState> for MemStore {
    type Result = io::Result<AppliedState>;

    fn handle(&mut self, _: GetAppliedState, _: &mut Context<Self>) -> Self::Result {
        Ok(self.applied.clone())
    }
}

impl Handler<ApplyEntries> for MemStore {
    type Result = io::Result<Vec<BatchOutcome>>;

    fn handle(&mut self, ApplyEntries(entries): ApplyEntries, _: &mut Context<Self>) -> Self::Result {
        self.room()?;
        let outcomes = vec![BatchOutcome::default(); entries.len()];
        for entry in entries {
            match entry.payload {
                EntryPayload::Blank => (),
                EntryPayload::Normal(batch) => self.batches.push(batch.0),
                EntryPayload::Membership(membership) => {
                    self.applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            }
            self.applied.last_applied = Some(entry.log_id);
        }
        Ok(outcomes)
    }
}

/// The file of a snapshot: the batches, each with its length in front.
fn encode(batches: &[Bytes]) -> Vec<u8> {
    batches
        .iter()
        .flat_map(|batch| batch.to_vec().encode_length_delimited_to_vec())
        .collect()
}

fn decode(mut file: Bytes) -> Vec<Bytes> {
    let mut batches = Vec::new();
    while !file.is_empty() {
        batches.push(Bytes::decode_length_delimited(&mut file).unwrap());
    }
    batches
}

impl Handler<BuildSnapshot> for MemStore {
    type Result = io::Result<Snapshot>;

    fn handle(&mut self, _: BuildSnapshot, _: &mut Context<Self>) -> Self::Result {
        self.room()?;
        let bytes = encode(&self.batches);
        let index = self.applied.last_applied.map_or(0, |id| id.index);
        let path = self.snapshots.join(format!("{index}.snapshot"));
        fs::write(&path, &bytes)?;
        let (length, checksum) = (bytes.len() as u64, xxh3_64(&bytes));
        let snapshot = Snapshot {
            meta: SnapshotMeta {
                last_log_id: self.applied.last_applied,
                last_membership: self.applied.membership.clone(),
            },
            data: SnapshotData {
                path,
                bytes: length,
                checksum,
                version: 1,
                state_hash: Vec::new(),
            },
        };
        self.current = Some(snapshot.clone());
        Ok(snapshot)
    }
}

impl Handler<InstallSnapshot> for MemStore {
    type Result = io::Result<()>;

    fn handle(
        &mut self,
        InstallSnapshot(mut snapshot): InstallSnapshot,
        _: &mut Context<Self>,
    ) -> Self::Result {
        self.room()?;
        let bytes = fs::read(&snapshot.data.path)?;
        if xxh3_64(&bytes) != snapshot.data.checksum {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "snapshot does not match its checksum",
            ));
        }
        let path = self.snapshots.join("installed.snapshot");
        fs::rename(&snapshot.data.path, &path)?;
        snapshot.data.path = path;
        self.batches = decode(bytes.into());
        self.applied = AppliedState {
            last_applied: snapshot.meta.last_log_id,
            membership: snapshot.meta.last_membership.clone(),
        };
        self.current = Some(snapshot);
        Ok(())
    }
}

impl Handler<GetCurrentSnapshot> for MemStore {
    type Result = io::Result<Option<Snapshot>>;

    fn handle(&mut self, _: GetCurrentSnapshot, _: &mut Context<Self>) -> Self::Result {
        Ok(self.current.clone())
    }
}
