//! The Raft log: entries, vote and commit index, over the crate `raft-log`, in `<dir>/raft/log/`.
//!
//! openraft owns one [`LogStore`] and hands clones of it to its replication tasks as readers. Writing
//! and flushing happen on raft-log's own thread; what runs here copies into its buffer and returns.
//! Two exceptions are short: a new chunk file every 64 MiB, and reading entries that have left the
//! cache.
//!
//! Invariant: nothing is reported as stored before its bytes are flushed, and what was read back when
//! the log was opened has been flushed too. When the flush thread fails, every write that waits for
//! it and every later one fails, openraft stops with a storage error, and the node with it.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{LogIdOptionExt, OptionalSend};
use raft_log::api::raft_log_writer::RaftLogWriter;
use raft_log::chunked_wal::ChunkedWal;
use raft_log::{RaftLog, RaftWalTypes};
use tokio::sync::{oneshot, watch};

use super::log_codec::{DiskLogId, DiskPayload, DiskVote, FORMAT};
use super::log_tail;
use super::types::{Entry, LogId, TypeConfig, Vote};
use crate::durable;

/// Payload bytes that one limited read returns at most, if more than one entry. It is what an append
/// request carries: requests are pipelined, and the age of an answer is what the leader's lease is
/// counted from, so they are better small.
const READ_LIMIT: u64 = 1 << 20;

/// How much of the log raft-log keeps where.
#[derive(Clone, Debug)]
pub struct LogLimits {
    /// Bytes in one chunk file. Only whole chunks are deleted, and what the newest one holds stays in
    /// memory too.
    pub chunk_bytes: usize,
    /// Records in one chunk file.
    pub chunk_records: usize,
    /// Payload bytes kept in memory, beside those of the newest chunk.
    pub cache_bytes: usize,
}

impl LogLimits {
    /// For a log of which about this many entries are kept behind a snapshot: its files hold not many
    /// times as many, since only a whole file can be deleted.
    pub fn keeping(entries: u64) -> Self {
        let most = LogLimits::default();
        let records = usize::try_from(entries.saturating_mul(4)).unwrap_or(usize::MAX);
        LogLimits {
            chunk_records: records.clamp(16, most.chunk_records),
            ..most
        }
    }
}

impl Default for LogLimits {
    fn default() -> Self {
        LogLimits {
            chunk_bytes: 64 << 20,
            chunk_records: 100_000,
            cache_bytes: 256 << 20,
        }
    }
}

/// The log of one node. Clones share it.
#[derive(Clone)]
pub struct LogStore {
    inner: Arc<Inner>,
}

struct Inner {
    dir: Arc<Path>,
    log: Mutex<Log>,
    /// How many requests to store entries have come to their end.
    ended: watch::Sender<u64>,
}

struct Log {
    raft_log: RaftLog<DiskTypes>,
    /// The commit index that goes to the disk with the next entries.
    committed: Option<DiskLogId>,
    /// How many requests to store entries there have been.
    begun: u64,
}

impl Log {
    /// Writes the commit index down, unless what is there says more, or a snapshot does.
    fn write_committed(&mut self) -> io::Result<()> {
        let Some(committed) = self.committed.take() else {
            return Ok(());
        };
        let state = self.raft_log.log_state();
        if state.committed() < Some(&committed) && state.last() >= Some(&committed) {
            self.raft_log.commit(committed)?;
        }
        Ok(())
    }
}

impl LogStore {
    /// Opens the log in `dir`, or makes an empty one. Reads the whole log; a write that a crash left
    /// unfinished at its end is cut off.
    ///
    /// # Errors
    /// The directory cannot be used, another process uses it, the log is damaged
    /// ([`io::ErrorKind::InvalidData`]), or a newer version of this program wrote it.
    pub fn open(dir: &Path, limits: LogLimits) -> io::Result<Self> {
        let with_path = |e: io::Error| in_dir(dir, &e);
        durable::create_dir_all(dir)?;
        let mut log = open_whole(dir, &limits).map_err(with_path)?;
        match log.log_state().user_data {
            None => {
                log.save_user_data(Some(FORMAT)).map_err(with_path)?;
            }
            Some(FORMAT) => (),
            Some(other) => {
                let message = format!("written in format {other}, this program reads format {FORMAT}");
                return Err(with_path(io::Error::new(io::ErrorKind::InvalidData, message)));
            }
        }
        // A process that was killed may have left records that the system had not flushed yet; from
        // here on they count as stored.
        let (sender, flushed) = std::sync::mpsc::sync_channel(1);
        let dir: Arc<Path> = dir.into();
        log.flush(flushes(), Some(Done::new(&dir, Waiter::Thread(sender))))
            .map_err(with_path)?;
        flushed.recv().map_err(|_| with_path(stopped()))??;
        Ok(LogStore {
            inner: Arc::new(Inner {
                dir: dir.clone(),
                log: Mutex::new(Log {
                    raft_log: log,
                    committed: None,
                    begun: 0,
                }),
                ended: watch::Sender::new(0),
            }),
        })
    }

    fn lock(&self) -> io::Result<MutexGuard<'_, Log>> {
        // A panic halfway through a write leaves a log that nothing is known about.
        self.inner
            .log
            .lock()
            .map_err(|_| self.error(io::Error::other("an earlier write panicked")))
    }

    fn done(&self, waiter: Waiter) -> Done {
        Done::new(&self.inner.dir, waiter)
    }

    fn error(&self, e: io::Error) -> io::Error {
        in_dir(&self.inner.dir, &e)
    }

    /// Waits until the entries that are on their way to the disk now are there, or failed to get there.
    pub(super) async fn no_flush_under_way(&self) {
        let Ok(begun) = self.lock().map(|log| log.begun) else {
            return;
        };
        // The sender lives as long as `self`.
        let _ = self
            .inner
            .ended
            .subscribe()
            .wait_for(|ended| *ended >= begun)
            .await;
    }

    /// Writes, and waits until it is on the disk.
    async fn write_flushed(
        &self,
        write: impl FnOnce(&mut RaftLog<DiskTypes>) -> io::Result<()>,
    ) -> io::Result<()> {
        let (sender, flushed) = oneshot::channel();
        {
            let log = &mut self.lock()?.raft_log;
            write(log)
                .and_then(|()| log.flush(flushes(), Some(self.done(Waiter::Task(sender)))))
                .map_err(|e| self.error(e))?;
        }
        flushed.await.map_err(|_| self.error(stopped()))?
    }

    /// Reads entries from `start` on, before `end`, until their payloads come to `limit` bytes, but
    /// at least one.
    fn read(&self, start: u64, end: u64, limit: u64) -> io::Result<Vec<Entry>> {
        if start >= end {
            return Ok(Vec::new());
        }
        let log = self.lock()?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        for record in log.raft_log.read(start, end) {
            let (log_id, payload) = record.map_err(|e| self.error(e))?;
            bytes += payload.bytes().len() as u64;
            if bytes > limit && !entries.is_empty() {
                break;
            }
            let payload = payload.into_openraft().map_err(|e| self.error(e))?;
            entries.push(Entry {
                log_id: log_id.into(),
                payload,
            });
        }
        Ok(entries)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = half_open(&range);
        self.read(start, end, u64::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ_LIMIT)
    }

    // The state machine is fed through this: a long range must not come into memory as a whole.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = half_open(&range);
        let pieces = futures::stream::unfold(Some((self.clone(), start)), move |state| async move {
            let (log, start) = state?;
            match log.read(start, end, READ_LIMIT) {
                Ok(entries) => {
                    let next = entries.last()?.log_id.index + 1;
                    Some((Ok(entries), Some((log, next))))
                }
                Err(e) => Some((Err(e), None)),
            }
        });
        pieces
            .map_ok(|entries| futures::stream::iter(entries.into_iter().map(Ok)))
            .try_flatten()
            .boxed()
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.lock()?.raft_log.log_state().vote().copied().map(Into::into))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let log = self.lock()?;
        let state = log.raft_log.log_state();
        Ok(LogState {
            last_purged_log_id: state.purged().copied().map(Into::into),
            last_log_id: state.last().copied().map(Into::into),
        })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = DiskVote::from(*vote);
        self.write_flushed(|log| log.save_vote(vote).map(drop)).await
    }

    // It waits for the next entries and travels to the disk with them: to wake the thread that writes takes
    // longer than all else that is done here. A node that lost it learns it from the leader. It never goes
    // backwards, nor beyond the log, where a snapshot tells.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let mut log = self.lock()?;
        log.committed = log.committed.max(committed.map(DiskLogId::from));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let log = self.lock()?;
        Ok(log.raft_log.log_state().committed().copied().map(Into::into))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let done = self.done(Waiter::Openraft(callback, self.inner.ended.clone()));
        let records = entries.into_iter().map(|entry| {
            let Entry { log_id, payload } = entry;
            (DiskLogId::from(log_id), DiskPayload::from(payload))
        });
        let mut log = self.lock()?;
        log.begun += 1;
        log.write_committed()
            .and_then(|()| log.raft_log.append(records))
            .and_then(|_| log.raft_log.flush(flushes(), Some(done)))
            .map_err(|e| self.error(e))
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        if last_log_id.map(DiskLogId::from).as_ref() >= self.lock()?.raft_log.log_state().last() {
            return Ok(());
        }
        let first_gone = last_log_id.next_index();
        self.write_flushed(|log| log.truncate(first_gone).map(drop)).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.write_flushed(|log| log.purge(log_id.into()).map(drop)).await
    }
}

/// Opens the log, if nothing is missing that was ever flushed.
fn open_whole(dir: &Path, limits: &LogLimits) -> io::Result<RaftLog<DiskTypes>> {
    let name = dir.to_str().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("not UTF-8: {}", dir.display()),
        )
    })?;
    let config = raft_log::Config {
        wal: raft_log::chunked_wal::Config {
            dir: name.to_owned(),
            read_buffer_size: Some(4 << 20),
            chunk_max_records: Some(limits.chunk_records),
            chunk_max_size: Some(limits.chunk_bytes),
            // `log_tail` has done so, and knows better.
            truncate_incomplete_record: Some(false),
            // Waiting for company costs one client more than half of its rate; commands are
            // batched before they get here.
            flush_batch_wait: Some(Duration::ZERO),
            flush_batch_max_items: None,
            flush_queue_max_bytes: None,
        },
        // The bytes bound the cache; this only has to be out of their way.
        log_cache_max_items: Some(400_000),
        log_cache_capacity: Some(limits.cache_bytes),
    };
    {
        let _lock = ChunkedWal::<RaftWalTypes<DiskTypes>>::acquire_lock(&config.wal)?;
        log_tail::cut_unfinished_write(dir).map_err(|e| damaged(&e))?;
    }
    let log = RaftLog::<DiskTypes>::open(Arc::new(config)).map_err(|e| match e.kind() {
        // Its own words name no file.
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other => {
            damaged(&log_tail::first_damage(dir).ok().flatten().unwrap_or(e))
        }
        _ => e,
    })?;
    let state = log.log_state();
    let first = state.purged().map_or(0, |purged| purged.index + 1);
    if state.last() > state.purged() && log.read(first, first + 1).next().is_none() {
        let missing = format!("entry {first} is missing, and the file with it");
        return Err(damaged(&io::Error::new(io::ErrorKind::InvalidData, missing)));
    }
    Ok(log)
}

/// What to do about it, if the log is damaged.
fn damaged(e: &io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other => {
            durable::damaged(e)
        }
        kind => io::Error::new(kind, e.to_string()),
    }
}

/// Whether what is said to be flushed is flushed. Always, but for a bug that is planted on purpose.
fn flushes() -> bool {
    #[cfg(feature = "planted-bugs")]
    if crate::planted::is_planted("skip-fsync") {
        return false;
    }
    true
}

fn half_open(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

fn in_dir(dir: &Path, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("raft log {}: {e}", dir.display()))
}

fn stopped() -> io::Error {
    io::Error::other("its flush thread has stopped after an error, logged before")
}

// --- when a flush is done ---

/// Tells one waiter how its flush went. raft-log drops what is queued behind a failed flush without a
/// word; whoever waits for it must hear of the failure all the same.
pub(super) struct Done {
    dir: Arc<Path>,
    waiter: Option<Waiter>,
}

enum Waiter {
    Openraft(IOFlushed<TypeConfig>, watch::Sender<u64>),
    Task(oneshot::Sender<io::Result<()>>),
    Thread(std::sync::mpsc::SyncSender<io::Result<()>>),
}

impl Done {
    fn new(dir: &Arc<Path>, waiter: Waiter) -> Self {
        Done {
            dir: dir.clone(),
            waiter: Some(waiter),
        }
    }

    fn tell(&mut self, result: io::Result<()>) {
        let result = result.map_err(|e| in_dir(&self.dir, &e));
        match self.waiter.take() {
            Some(Waiter::Openraft(callback, ended)) => {
                callback.io_completed(result);
                ended.send_modify(|ended| *ended += 1);
            }
            // Who no longer waits need not be told.
            Some(Waiter::Task(sender)) => drop(sender.send(result)),
            Some(Waiter::Thread(sender)) => drop(sender.send(result)),
            None => (),
        }
    }
}

impl raft_log::Callback for Done {
    fn send(mut self, result: io::Result<()>) {
        self.tell(result);
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        self.tell(Err(stopped()));
    }
}

/// raft-log's type parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DiskTypes;

impl raft_log::Types for DiskTypes {
    type LogId = DiskLogId;
    type LogPayload = DiskPayload;
    type Vote = DiskVote;
    type Callback = Done;
    type UserData = u32;

    fn log_index(log_id: &DiskLogId) -> u64 {
        log_id.index
    }

    fn payload_size(payload: &DiskPayload) -> u64 {
        // What a cached entry takes beside its bytes, about.
        payload.bytes().len() as u64 + 128
    }
}
