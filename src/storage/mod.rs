//! The replicated state on disk: the only room that knows LMDB.
//!
//! [`Storage`] is the one writer; the store actor owns it. [`StateReader`] is for everybody who was
//! told that it may read: it opens a read transaction where it stands. [`tables`] lays the records
//! out and `codec` encodes them, [`mod@env`] opens, replaces and closes the database, and [`snapshot`]
//! keeps the files that a new or lagging node is filled from.
//!
//! LMDB is written without flushing: it is a cache of the newest snapshot and the Raft log, which
//! are flushed. After a crash of the process the system still has its pages; after a crash of the
//! machine the database is thrown away and rebuilt (see [`mod@env`]). So the log must never be purged
//! beyond a flushed snapshot.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::domain::command::{Applied, Command};
use crate::domain::namespace;
use crate::proto::convert::{self, DecodeError};
use crate::proto::raft as pb;

mod codec;
pub mod env;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod snapshot;
pub mod tables;
#[cfg(test)]
mod tests;
mod verify;

use env::Generation;
use tables::view::{Scan, StateView};
use verify::Reading;
pub use verify::{REFILL, Unread};

/// What can go wrong with the state on disk. Every kind is fatal to the node, whose state no longer
/// follows the log.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// LMDB said no.
    #[error("state database: {0}")]
    Database(#[from] heed::Error),
    /// A file said no.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file said no, and the error names it.
    #[error("{0}")]
    File(#[from] io::Error),
    /// A record that this server cannot read.
    #[error("{what}: {source}")]
    Decode {
        /// Which record.
        what: String,
        /// Why.
        source: DecodeError,
    },
    /// Something that must be there is not, or is impossible.
    #[error("{0}")]
    Corrupt(String),
    /// Bytes on disk that are not what was written.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
}

impl StorageError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> StorageError + '_ {
        move |source| StorageError::Io {
            path: path.to_owned(),
            source,
        }
    }
}

impl From<StorageError> for io::Error {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Io { ref source, .. } => io::Error::new(source.kind(), error.to_string()),
            StorageError::File(error) => error,
            StorageError::Decode { .. } | StorageError::Corrupt(_) | StorageError::Damaged { .. } => {
                io::Error::new(io::ErrorKind::InvalidData, error.to_string())
            }
            // Above all a full disk must be known for one.
            StorageError::Database(heed::Error::Io(ref source)) => {
                io::Error::new(source.kind(), error.to_string())
            }
            StorageError::Database(_) => io::Error::other(error.to_string()),
        }
    }
}

/// One committed log entry, as the storage needs it.
#[derive(Clone, Debug)]
pub struct LogRecord {
    /// Where it stands in the log.
    pub log_id: pb::LogId,
    /// What it holds.
    pub content: RecordContent,
}

/// What a [`LogRecord`] holds.
#[derive(Clone, Debug)]
pub enum RecordContent {
    /// Nothing: a new leader's first entry.
    Blank,
    /// An encoded `CommandBatch`.
    Batch(bytes::Bytes),
    /// A new membership.
    Membership(pb::Membership),
}

/// How far the state has come.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// The last applied entry.
    pub applied: Option<pb::LogId>,
    /// The last membership among the applied entries.
    pub membership: Option<pb::StoredMembership>,
}

/// The writer of the state.
pub struct Storage {
    dir: env::StateDir,
    current: Arc<ArcSwap<Generation>>,
    snapshots: snapshot::SnapshotStore,
}

/// How large the state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSize {
    /// Bytes that its records take; the file may be larger, a snapshot is not.
    pub bytes: u64,
    /// Bytes that they may take.
    pub limit: u64,
}

/// Where to find the state, and how large it may grow.
#[derive(Clone, Debug)]
pub struct StorageOptions {
    /// The data directory: the state lies in `lmdb/`, snapshots in `raft/snapshots/`.
    pub dir: PathBuf,
    /// What the state may take, in bytes. LMDB's map, which is address space and neither memory nor disk, is
    /// made so much larger that whoever minds this limit never meets the map's end.
    pub map_size: u64,
    /// Whether the state and the newest snapshot are read through before they are used.
    pub verify: bool,
}

impl Storage {
    /// Opens the state, or makes a new one that holds nothing but the root directory. A state that is
    /// damaged is replaced by a new one, which openraft fills from the newest snapshot and the log.
    ///
    /// # Errors
    /// When the directory cannot be used, was written by a newer server, or its snapshot is damaged.
    pub fn open(options: &StorageOptions) -> Result<Self, StorageError> {
        let (storage, _) = Self::open_as(options, Reading::First)?;
        Ok(storage)
    }

    /// The same for whoever cannot wait: a state of more than `small` bytes that was closed cleanly is not
    /// verified yet. Then the caller has to [read it through](Unread::read_through) while it is used, and stop
    /// using it if it is damaged.
    ///
    /// # Errors
    /// Those of [`Storage::open`].
    pub fn open_soon(options: &StorageOptions, small: u64) -> Result<(Self, Option<Unread>), StorageError> {
        Self::open_as(options, Reading::LaterBeyond(small))
    }

    fn open_as(options: &StorageOptions, wanted: Reading) -> Result<(Self, Option<Unread>), StorageError> {
        let snapshots = snapshot::SnapshotStore::open(&options.dir.join("raft").join("snapshots"))?;
        let reading = if options.verify { wanted } else { Reading::Never };
        let sources = || match options.verify {
            true => snapshots.verify_current(),
            false => Ok(()),
        };
        let env::Opened {
            dir,
            generation,
            unread,
        } = env::StateDir::open(&options.dir.join("lmdb"), options.map_size, reading, &sources)?;
        let generation = Arc::new(generation);
        let unread = unread.then(|| Unread::new(generation.clone(), snapshots.clone()));
        let storage = Storage {
            dir,
            current: Arc::new(ArcSwap::new(generation)),
            snapshots,
        };
        Ok((storage, unread))
    }

    /// A handle for readers.
    pub fn reader(&self) -> StateReader {
        StateReader {
            current: self.current.clone(),
        }
    }

    /// How far the state has come.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn progress(&self) -> Result<Progress, StorageError> {
        self.reader().read(|view| view.progress())
    }

    /// Applies committed entries in one transaction: their effects, the counters, the applied index, the
    /// membership and the state's hash after each become visible together or not at all. Answers each
    /// entry's commands.
    ///
    /// # Errors
    /// Nothing was applied then; the node must stop.
    pub fn apply(&mut self, records: &[LogRecord]) -> Result<Vec<Vec<Applied>>, StorageError> {
        self.apply_and_tell(records, &mut |_, _| ())
    }

    /// The same, and tells of each command what came of it, before any of it is visible.
    ///
    /// # Errors
    /// Those of [`Storage::apply`].
    pub fn apply_and_tell(
        &mut self,
        records: &[LogRecord],
        tell: &mut dyn FnMut(Command, &Applied),
    ) -> Result<Vec<Vec<Applied>>, StorageError> {
        let generation = self.current.load();
        let mut txn = generation.write()?;
        let mut answers = Vec::with_capacity(records.len());
        for record in records {
            answers.push(match &record.content {
                RecordContent::Blank => Vec::new(),
                RecordContent::Batch(bytes) => {
                    let commands = convert::decode_batch(bytes).map_err(|source| StorageError::Decode {
                        what: format!("log entry {}", record.log_id.index),
                        source,
                    })?;
                    commands
                        .into_iter()
                        .map(|command| {
                            let applied = namespace::apply(&mut txn, &command)?;
                            tell(command, &applied);
                            Ok(applied)
                        })
                        .collect::<Result<Vec<_>, StorageError>>()?
                }
                RecordContent::Membership(membership) => {
                    txn.put_membership(&pb::StoredMembership {
                        log_id: Some(record.log_id),
                        membership: Some(membership.clone()),
                    })?;
                    Vec::new()
                }
            });
            txn.end_entry(&record.log_id)?;
        }
        txn.commit()?;
        Ok(answers)
    }

    /// What is needed to build a snapshot of the state as it is now or a little later; the work is
    /// for another thread (see [`snapshot::Build::run`]).
    pub fn build_snapshot(&self) -> snapshot::Build {
        self.snapshots.build(self.current.load_full())
    }

    /// Verifies a received snapshot, keeps it as the current one and makes a database of it; the work
    /// is for another thread (see [`snapshot::Prepare::run`]). The state is not replaced before
    /// [`Storage::install`].
    pub fn prepare_install(&self, received: snapshot::SnapshotFile) -> snapshot::Prepare {
        self.snapshots.prepare(received, self.dir.next())
    }

    /// Replaces the state with a prepared one. Readers that are under way keep the old one until they
    /// are done.
    ///
    /// # Errors
    /// When the change of state cannot be recorded; the old state stays.
    pub fn install(&mut self, prepared: snapshot::Prepared) -> Result<(), StorageError> {
        let generation = self.dir.switch_to(prepared)?;
        let old = self.current.swap(Arc::new(generation));
        old.remove_when_unused();
        Ok(())
    }

    /// The newest snapshot on disk.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn current_snapshot(&self) -> Result<Option<snapshot::SnapshotFile>, StorageError> {
        self.snapshots.current()
    }

    /// Flushes the state and records that it is complete, so that the next start may trust it even
    /// after a restart of the machine.
    ///
    /// # Errors
    /// When it cannot be flushed; the next start then judges by the boot id, which is safe.
    pub fn close(self) -> Result<(), StorageError> {
        self.dir.close_cleanly(&self.current.load())
    }
}

/// A reader of the state: cheap to clone, opens a read transaction where it stands.
#[derive(Clone)]
pub struct StateReader {
    current: Arc<ArcSwap<Generation>>,
}

impl StateReader {
    /// Reads from one immutable view of the state: the newest that was committed before the call.
    /// Hold it across nothing that waits.
    ///
    /// # Errors
    /// Those of `read`, or when no transaction can be opened.
    pub fn read<R>(
        &self,
        read: impl FnOnce(&StateView<'_>) -> Result<R, StorageError>,
    ) -> Result<R, StorageError> {
        let generation = self.current.load_full();
        let view = generation.view()?;
        read(&view)
    }

    /// How large the state is, and may be.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn size(&self) -> Result<StateSize, StorageError> {
        self.current.load_full().size()
    }

    /// Bytes that the state takes on disk.
    pub fn bytes_on_disk(&self) -> u64 {
        self.current.load().bytes_on_disk()
    }

    /// Reads every record and computes the state's hash anew, on a thread that may take its time: see
    /// [`StateView::scan`]. With it, how far the state had come.
    ///
    /// # Errors
    /// When the state is so damaged that it cannot be read through.
    pub fn scan(&self, progress: impl FnMut(u64)) -> Result<(Progress, Scan), StorageError> {
        self.read(|view| Ok((view.progress()?, view.scan(progress)?)))
    }

    /// The file that holds the state.
    pub fn file(&self) -> PathBuf {
        self.current.load().data_file()
    }

    /// The next start is to throw this state away and rebuild it: it was found damaged.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn distrust(&self) -> Result<(), StorageError> {
        self.current.load().distrust()
    }

    /// No start is to use this state again, nor one rebuilt from this node's snapshot and log, and is to say
    /// `why`: it differs from that of its peers.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn refuse(&self, why: &str) -> Result<(), StorageError> {
        self.current.load().refuse(why)
    }
}
