//! The state machine as openraft sees it: messages to whoever owns the state, through recipients.
//!
//! openraft owns the [`StateMachine`], the node's wiring gives it its [`StateMachinePort`].
//!
//! A follower owes its leader an answer for the entries that are being flushed, and nobody an answer for those
//! that it applies. So it applies what was committed once that answer is out.
//!
//! Invariant: an entry's proposer is answered only after the transaction that holds its effects. A
//! closed mailbox is an error, and so stops openraft: a node whose state is gone must not go on.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use actix::{Message, Recipient};
use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};

use super::log_store::LogStore;
use super::ports::{
    ApplyEntries, BuildSnapshot, GetAppliedState, GetCurrentSnapshot, InstallSnapshot, Snapshot, SnapshotData,
};
use super::types::{BatchOutcome, Entry, EntryPayload, LogId, SnapshotMeta, StoredMembership, TypeConfig};

/// Payload bytes that go into one transaction at most, if more than one entry. Only a node that
/// catches up has so much at once; it must not hold the whole of its log in memory.
const APPLY_BYTES: usize = 4 << 20;

/// Entries that go into one transaction at most, for the same reason.
const APPLY_ENTRIES: usize = 1024;

/// Between two attempts to write the state to a full disk.
const FULL_DISK_PAUSE: Duration = Duration::from_secs(1);

/// How long a follower's state waits for a flush at most: where the disk is slow, its readers do not.
const GIVE_WAY: Duration = Duration::from_millis(2);

/// Whoever owns the state, as openraft needs it.
#[derive(Clone)]
pub struct StateMachinePort {
    /// Says what has been applied.
    pub applied: Recipient<GetAppliedState>,
    /// Applies committed entries.
    pub apply: Recipient<ApplyEntries>,
    /// Makes a snapshot.
    pub build_snapshot: Recipient<BuildSnapshot>,
    /// Replaces the state with a snapshot.
    pub install_snapshot: Recipient<InstallSnapshot>,
    /// Finds the newest snapshot.
    pub current_snapshot: Recipient<GetCurrentSnapshot>,
}

/// What openraft drives.
#[derive(Clone)]
pub struct StateMachine {
    port: StateMachinePort,
    log: LogStore,
}

impl StateMachine {
    /// For the owner of the state behind `port`, which is fed from `log`.
    pub fn new(port: StateMachinePort, log: LogStore) -> Self {
        StateMachine { port, log }
    }

    async fn apply_pending(&self, pending: &mut Pending) -> io::Result<()> {
        if pending.entries.is_empty() {
            return Ok(());
        }
        let Pending {
            entries, responders, ..
        } = std::mem::take(pending);
        if responders.iter().all(Option::is_none) {
            self.give_way().await;
        }
        let expected = entries.len();
        let outcomes = once_it_fits(&self.port.apply, ApplyEntries(entries)).await?;
        if outcomes.len() != expected {
            let message = format!("{} outcomes for {expected} entries", outcomes.len());
            return Err(io::Error::other(message));
        }
        answer(responders, outcomes);
        Ok(())
    }

    /// Lets the answer go first that waits for the flush under way.
    async fn give_way(&self) {
        let flushed = self.log.no_flush_under_way();
        if tokio::time::timeout(GIVE_WAY, flushed).await.is_ok() {
            // Behind everything that the end of the flush has made ready.
            tokio::task::yield_now().await;
        }
    }
}

/// Entries on their way into one transaction, and who waits for them.
#[derive(Default)]
struct Pending {
    entries: Vec<Entry>,
    responders: Vec<Option<ApplyResponder<TypeConfig>>>,
    bytes: usize,
}

impl Pending {
    fn add(&mut self, (entry, responder): EntryResponder<TypeConfig>) {
        if let EntryPayload::Normal(batch) = &entry.payload {
            self.bytes += batch.0.len();
        }
        self.entries.push(entry);
        self.responders.push(responder);
    }

    fn is_full(&self) -> bool {
        self.bytes >= APPLY_BYTES || self.entries.len() >= APPLY_ENTRIES
    }
}

fn answer(responders: Vec<Option<ApplyResponder<TypeConfig>>>, outcomes: Vec<BatchOutcome>) {
    for (responder, outcome) in responders.into_iter().zip(outcomes) {
        if let Some(responder) = responder {
            responder.send(outcome);
        }
    }
}

/// Asks the owner of the state; a closed mailbox is an error like any other of its errors.
pub(super) async fn ask<M, T>(recipient: &Recipient<M>, message: M) -> io::Result<T>
where
    M: Message<Result = io::Result<T>> + Send + 'static,
    T: Send + 'static,
{
    recipient.send(message).await.map_err(|e| {
        let name = std::any::type_name::<M>().rsplit("::").next().unwrap_or_default();
        io::Error::other(format!("the state machine is gone, {name} was not answered: {e}"))
    })?
}

/// Asks again and again while the disk is full: nothing was changed, so that nothing is lost by waiting but
/// time. Any other error is final.
pub(super) async fn once_it_fits<M, T>(recipient: &Recipient<M>, message: M) -> io::Result<T>
where
    M: Message<Result = io::Result<T>> + Clone + Send + 'static,
    T: Send + 'static,
{
    let mut said = false;
    loop {
        match ask(recipient, message.clone()).await {
            Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                if !said {
                    log::error!("the state stands still until there is disk space again: {e}");
                    said = true;
                }
                tokio::time::sleep(FULL_DISK_PAUSE).await;
            }
            Ok(answer) => {
                if said {
                    log::info!("there was disk space again: the state goes on");
                }
                return Ok(answer);
            }
            failed => return failed,
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = StateMachine;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = ask(&self.port.applied, GetAppliedState).await?;
        Ok((state.last_applied, state.membership))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut pending = Pending::default();
        while let Some(item) = entries.next().await {
            pending.add(item?);
            if pending.is_full() {
                self.apply_pending(&mut pending).await?;
            }
        }
        self.apply_pending(&mut pending).await
    }

    async fn get_snapshot_builder(&mut self) -> StateMachine {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: SnapshotData) -> io::Result<()> {
        once_it_fits(
            &self.port.install_snapshot,
            InstallSnapshot(Snapshot {
                meta: meta.clone(),
                data,
            }),
        )
        .await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<OpenraftSnapshot>> {
        Ok(ask(&self.port.current_snapshot, GetCurrentSnapshot)
            .await?
            .map(into_openraft))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<OpenraftSnapshot> {
        match ask(&self.port.build_snapshot, BuildSnapshot).await {
            // To openraft every error is the end of the node; one that covers nothing changes nothing.
            Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                log::error!("no snapshot was made, the disk is full: {e}");
                Ok(covers_nothing())
            }
            built => Ok(into_openraft(built?)),
        }
    }
}

/// A snapshot in openraft's own words.
pub(super) type OpenraftSnapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

fn into_openraft(snapshot: Snapshot) -> OpenraftSnapshot {
    OpenraftSnapshot {
        meta: snapshot.meta,
        snapshot: snapshot.data,
    }
}

/// What stands for a snapshot that was not made: openraft takes note of what is newer than what it has, and
/// of nothing else.
fn covers_nothing() -> OpenraftSnapshot {
    OpenraftSnapshot {
        meta: SnapshotMeta::default(),
        snapshot: SnapshotData {
            path: PathBuf::new(),
            bytes: 0,
            checksum: 0,
            version: 0,
            state_hash: Vec::new(),
        },
    }
}
