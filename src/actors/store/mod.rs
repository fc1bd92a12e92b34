//! The store: owns the state on disk and is its only writer.
//!
//! Raft's state machine asks it through the messages of `raft::ports`. Entries are applied in the
//! order in which they come, each message in one transaction. Copying and verifying snapshots is
//! long work and runs on threads of its own; the mailbox goes on meanwhile.
//!
//! Invariant: what [`AppliedIndex`] says has been applied is visible to every read transaction
//! opened after it was seen.

use std::io;
use std::time::Instant;

use actix::prelude::*;
use tokio::sync::watch;

use crate::actors::unix_ms;
use crate::background;
use crate::domain::command::{Op, Outcome};
use crate::domain::namespace::find;
use crate::raft::ports::{
    AppliedState, ApplyEntries, BuildSnapshot, GetAppliedState, GetCurrentSnapshot, InstallSnapshot, Snapshot,
};
use crate::raft::types::{BatchOutcome, Entry, EntryPayload, LogId, StoredMembership};
use crate::storage::snapshot::SnapshotFile;
use crate::storage::{LogRecord, Progress, RecordContent, Storage, StorageError};

pub mod effects;
#[cfg(test)]
mod tests;

use effects::{Effect, FindEffect, GiveEffect, RecentEffects};

/// The index of the last applied entry, as it moves; `None` before the first.
pub type AppliedIndex = watch::Receiver<Option<u64>>;

/// Writes the state to disk and closes it; nothing can be applied afterwards. Sent once, when the
/// server stops.
#[derive(Debug, Message)]
#[rtype(result = "io::Result<()>")]
pub struct CloseStore;

/// The store. See the module's documentation.
pub struct StoreActor {
    /// `None` once closed.
    storage: Option<Storage>,
    applied: watch::Sender<Option<u64>>,
    effects: RecentEffects,
}

impl StoreActor {
    /// An actor around an open storage, and the index that it has applied.
    ///
    /// # Errors
    /// When the storage cannot say how far it has come.
    pub fn new(storage: Storage) -> io::Result<(Self, AppliedIndex)> {
        let applied = storage.progress()?.applied.map(|id| id.index);
        let (applied, index) = watch::channel(applied);
        Ok((
            StoreActor {
                storage: Some(storage),
                applied,
                effects: RecentEffects::default(),
            },
            index,
        ))
    }

    fn open(&self) -> io::Result<&Storage> {
        self.storage.as_ref().ok_or_else(closed)
    }

    fn open_mut(&mut self) -> io::Result<&mut Storage> {
        self.storage.as_mut().ok_or_else(closed)
    }

    fn announce_progress(&self) -> io::Result<()> {
        let applied = self.open()?.progress()?.applied.map(|id| id.index);
        self.applied.send_replace(applied);
        Ok(())
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the store is closed")
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

impl Actor for StoreActor {
    type Context = Context<Self>;
}

impl Handler<GetAppliedState> for StoreActor {
    type Result = io::Result<AppliedState>;

    fn handle(&mut self, _: GetAppliedState, _: &mut Self::Context) -> Self::Result {
        let Progress { applied, membership } = self.open()?.progress()?;
        Ok(AppliedState {
            last_applied: applied.map(LogId::try_from).transpose().map_err(invalid)?,
            membership: membership
                .map(StoredMembership::try_from)
                .transpose()
                .map_err(invalid)?
                .unwrap_or_default(),
        })
    }
}

impl Handler<ApplyEntries> for StoreActor {
    type Result = io::Result<Vec<BatchOutcome>>;

    fn handle(&mut self, ApplyEntries(entries): ApplyEntries, _: &mut Self::Context) -> Self::Result {
        let records: Vec<_> = entries.into_iter().map(record).collect();
        let last = records.last().map(|record| record.log_id.index);
        let (now, now_ms) = (Instant::now(), unix_ms());
        let storage = self.storage.as_mut().ok_or_else(closed)?;
        let effects = &mut self.effects;
        let outcomes = storage.apply_and_tell(&records, &mut |command, applied| {
            effects.applied(command, applied, now, now_ms);
        })?;
        if last.is_some() {
            self.applied.send_replace(last);
        }
        Ok(outcomes.into_iter().map(BatchOutcome).collect())
    }
}

fn record(entry: Entry) -> LogRecord {
    let content = match entry.payload {
        EntryPayload::Blank => RecordContent::Blank,
        EntryPayload::Normal(batch) => RecordContent::Batch(batch.0),
        EntryPayload::Membership(membership) => RecordContent::Membership((&membership).into()),
    };
    LogRecord {
        log_id: entry.log_id.into(),
        content,
    }
}

impl Handler<BuildSnapshot> for StoreActor {
    type Result = ResponseFuture<io::Result<Snapshot>>;

    fn handle(&mut self, _: BuildSnapshot, _: &mut Self::Context) -> Self::Result {
        let build = self.open().map(Storage::build_snapshot);
        Box::pin(async move {
            let build = build?;
            snapshot(on_a_thread(move || build.run()).await?)
        })
    }
}

impl Handler<InstallSnapshot> for StoreActor {
    type Result = ResponseActFuture<Self, io::Result<()>>;

    fn handle(&mut self, InstallSnapshot(snapshot): InstallSnapshot, _: &mut Self::Context) -> Self::Result {
        let meta = (&snapshot).into();
        let received = SnapshotFile {
            meta,
            path: snapshot.data.path,
        };
        let prepare = self.open().map(|storage| storage.prepare_install(received));
        let prepared = async move {
            let prepare = prepare?;
            on_a_thread(move || prepare.run()).await
        };
        Box::pin(prepared.into_actor(self).map(|prepared, actor, _| {
            actor.open_mut()?.install(prepared?)?;
            actor.announce_progress()
        }))
    }
}

impl Handler<GetCurrentSnapshot> for StoreActor {
    type Result = io::Result<Option<Snapshot>>;

    fn handle(&mut self, _: GetCurrentSnapshot, _: &mut Self::Context) -> Self::Result {
        self.open()?.current_snapshot()?.map(snapshot).transpose()
    }
}

impl Handler<FindEffect> for StoreActor {
    type Result = Option<Effect>;

    fn handle(&mut self, FindEffect { op, peer }: FindEffect, _: &mut Self::Context) -> Self::Result {
        let effect = self.effects.find(&op, peer, Instant::now())?;
        if let (Op::Create { path, .. }, Outcome::Created { inode }) = (&op, &effect.outcome) {
            // What is there now may be somebody else's.
            let reader = self.storage.as_ref()?.reader();
            let there = reader.read(|view| find(view, path)).ok()??;
            if there.inode != *inode {
                return None;
            }
        }
        Some(effect)
    }
}

impl Handler<GiveEffect> for StoreActor {
    type Result = bool;

    fn handle(&mut self, GiveEffect { first, by }: GiveEffect, _: &mut Self::Context) -> Self::Result {
        self.effects.give(first, by)
    }
}

impl Handler<CloseStore> for StoreActor {
    type Result = io::Result<()>;

    fn handle(&mut self, _: CloseStore, _: &mut Self::Context) -> Self::Result {
        match self.storage.take() {
            Some(storage) => Ok(storage.close()?),
            None => Ok(()),
        }
    }
}

/// Runs long disk work where it holds up nobody.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> io::Result<T> {
    Ok(background::run("snapshot", work).await??)
}

fn snapshot(SnapshotFile { mut meta, path }: SnapshotFile) -> io::Result<Snapshot> {
    meta.last_membership
        .get_or_insert_with(|| (&StoredMembership::default()).into());
    crate::raft::convert::snapshot_from_meta(meta, path).map_err(invalid)
}
