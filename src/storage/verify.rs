//! Whether a state is what its hash says, and what is done when it is not.
//!
//! LMDB has no checksums of pages, so damage shows in three ways: LMDB refuses a page, the records do not
//! add up to the state hash, or the process crashes over a senseless one. For the third, the file
//! `VERIFYING` beside the state names the generation while it is verified (see
//! [`StateDir`](super::env::StateDir)): if it is found at the next start, the verification never came to a
//! good end.
//!
//! A state is read through before it is used, or, where that takes long and nothing speaks against the state,
//! while it is used already ([`Reading`], [`Unread`]).
//!
//! Invariant: a state that was found damaged is never served, and never made a snapshot that the log is
//! purged behind.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use heed::{Env, MdbError, WithoutTls};

use super::env::Generation;
use super::snapshot::SnapshotStore;
use super::tables::view::Scan;
use super::{StorageError, snapshot};
use crate::domain::state_hash::StateHash;
use crate::proto::convert::DecodeError;

/// What an operator does about a file that cannot be made anew from this node's own.
pub const REFILL: &str =
    "to refill this node from its peers, stop it, move its data directory away and start it";

impl StorageError {
    /// Whether it says that bytes on disk are not what was written, rather than that the system or the
    /// operator is in the way.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            StorageError::Damaged { .. } => true,
            StorageError::Decode { source, .. } => !matches!(source, DecodeError::NewerVersion { .. }),
            StorageError::Database(heed::Error::Mdb(error)) => !matches!(
                error,
                MdbError::MapFull | MdbError::DbsFull | MdbError::ReadersFull | MdbError::TlsFull
            ),
            StorageError::Database(_)
            | StorageError::Io { .. }
            | StorageError::File(_)
            | StorageError::Corrupt(_) => false,
        }
    }

    /// What was found, without the file, which the caller names.
    pub(super) fn damage(self) -> String {
        match self {
            StorageError::Damaged { what, .. } => what,
            other => other.to_string(),
        }
    }

    /// A file whose records do not add up.
    pub(super) fn mismatch(path: &Path, expected: StateHash, found: StateHash) -> StorageError {
        StorageError::Damaged {
            path: path.to_owned(),
            what: format!("its records have the hash {found} instead of {expected}"),
        }
    }
}

/// When a state that is opened is read through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Not at all.
    Never,
    /// Before it is used.
    First,
    /// While it is used already, if it is in order and larger than this, in bytes; else before.
    LaterBeyond(u64),
}

impl Reading {
    /// What that means for a state of so many bytes; in order is one that was closed cleanly.
    pub(super) fn of(self, bytes: u64, in_order: bool) -> Reading {
        match self {
            Reading::LaterBeyond(small) if !in_order || bytes <= small => Reading::First,
            reading => reading,
        }
    }
}

/// A state that is used, and the newest snapshot, of which nobody knows yet whether they are what was written.
pub struct Unread {
    generation: Arc<Generation>,
    snapshots: SnapshotStore,
}

impl Unread {
    pub(super) fn new(generation: Arc<Generation>, snapshots: SnapshotStore) -> Self {
        Unread {
            generation,
            snapshots,
        }
    }

    /// Reads them through, on a thread that may take its time. A damaged state is marked, so that the next start
    /// makes it anew.
    ///
    /// # Errors
    /// `Damaged` when one of them is: the state must not be used any more. And those of LMDB and the system.
    pub fn read_through(&self) -> Result<(), StorageError> {
        let state = self
            .generation
            .verify(Expected::Scanned)
            .and_then(|_| self.generation.walk_pages());
        match state {
            Err(error) if error.is_damage() => {
                self.generation.distrust()?;
                Err(StorageError::Damaged {
                    path: self.generation.data_file(),
                    what: format!(
                        "{}; the next start makes it anew from the newest snapshot and the log",
                        error.damage()
                    ),
                })
            }
            Err(error) => Err(error),
            Ok(()) => self.snapshots.verify_current(),
        }
    }
}

/// What is known of a state's hash before the state is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// It has one; compare it with the records.
    Scanned,
    /// It has one; take its word.
    Trusted,
    /// An older server may have left it without one: then it gets one now.
    MayLack,
}

impl Generation {
    /// Sees to it that the state has a hash, and that it is that of its records.
    ///
    /// # Errors
    /// `Damaged` when it is not, and those of LMDB.
    pub(super) fn verify(&self, expected: Expected) -> Result<Option<StateHash>, StorageError> {
        self.verify_on(1, expected)
    }

    /// The same on so many threads, while nobody writes.
    pub(super) fn verify_on(
        &self,
        threads: u64,
        expected: Expected,
    ) -> Result<Option<StateHash>, StorageError> {
        let begun = Instant::now();
        let view = self.view()?;
        let recorded = view.state_hash()?;
        match (recorded, expected) {
            (Some(hash), Expected::Trusted) => Ok(Some(hash)),
            (None, Expected::Scanned | Expected::Trusted) => Err(StorageError::Damaged {
                path: self.data_file(),
                what: "it has no state hash".to_owned(),
            }),
            (Some(recorded), Expected::Scanned | Expected::MayLack) => {
                let Scan {
                    computed, records, ..
                } = match threads {
                    // In the view that the hash is of: somebody may write.
                    0 | 1 => view.scan(|_| ())?,
                    parts => self.scan_on(parts)?,
                };
                if computed != recorded {
                    return Err(StorageError::mismatch(&self.data_file(), recorded, computed));
                }
                let took = begun.elapsed();
                log::info!("verified the state: {records} records in {took:.1?}, hash {recorded}");
                Ok(Some(recorded))
            }
            (None, Expected::MayLack) => {
                let Scan {
                    computed, records, ..
                } = view.scan(|_| ())?;
                let applied = view.progress()?.applied;
                drop(view);
                self.write()?.adopt_hash(computed, applied.as_ref())?;
                let took = begun.elapsed();
                log::info!(
                    "the state of an older server has a hash now: {records} records in {took:.1?}, {computed}"
                );
                Ok(Some(computed))
            }
        }
    }
}

impl Generation {
    /// Scans the state on so many threads, each of which has its part of the keys.
    fn scan_on(&self, parts: u64) -> Result<Scan, StorageError> {
        let part = move |n| self.view()?.scan_part(n, parts, |_| ());
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..parts).map(|n| scope.spawn(move || part(n))).collect();
            let mut whole = part(0);
            for other in others {
                let other = other
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                whole = whole.and_then(|whole| Ok(whole.plus(other?)));
            }
            whole
        })
    }
}

/// Makes the file as long as the database believes it is: to read what a truncated file lacks would kill
/// the process, whereas pages of zeros are refused. A whole file may be shorter, too, by pages that were
/// given up before they were written.
pub(super) fn reach_last_page(env: &Env<WithoutTls>, data: &Path) -> Result<(), StorageError> {
    let info = env.info();
    let page = u64::from(env.unnamed_database_stat().page_size);
    let length = (info.last_page_number as u64 + 1).saturating_mul(page);
    if length > info.map_size as u64 {
        return Err(StorageError::Damaged {
            path: data.to_owned(),
            what: format!(
                "it says that it has {length} bytes, the map has {}",
                info.map_size
            ),
        });
    }
    let file = std::fs::File::options()
        .write(true)
        .open(data)
        .map_err(StorageError::io(data))?;
    if file.metadata().map_err(StorageError::io(data))?.len() < length {
        file.set_len(length).map_err(StorageError::io(data))?;
    }
    Ok(())
}

/// The state hash that a snapshot's description must carry; `None` in those of older servers.
pub(super) fn described(meta: &crate::proto::raft::SnapshotMeta) -> Result<Option<StateHash>, StorageError> {
    if meta.version < snapshot::HASHED_SINCE {
        return Ok(None);
    }
    let hash = StateHash::from_bytes(&meta.state_hash);
    hash.map(Some)
        .ok_or_else(|| StorageError::Corrupt("a snapshot's description without its state hash".to_owned()))
}
