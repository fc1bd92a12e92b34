//! Snapshots, in `<data dir>/raft/snapshots/`: compact copies of the database that a new or lagging
//! node is filled from, and that the log may be purged behind.
//!
//! A snapshot is two files: `<name>.mdb`, the data, and `<name>.meta`, which says what it covers,
//! its length and its checksum. Both are written aside and flushed; the rename of the `.meta` is the
//! moment at which the snapshot exists. Older ones are then removed.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prost::Message;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::env::{DATA, Generation, NextGeneration, remove_if_there};
use super::tables::view::Scan;
use super::verify::{Expected, REFILL, described};
use super::{Progress, StorageError};
use crate::background::Steps;
use crate::domain::state_hash::StateHash;
use crate::durable;
use crate::proto::raft as pb;

/// The version of the state's encoding that snapshots carry: it rises with that of the records, so that
/// a node that could not read them refuses the snapshot instead of installing it. Older ones are read.
/// Version 3 added the state hash, and left the records as they were.
pub const STATE_VERSION: u32 = 3;

/// The first version whose states have a hash.
pub(super) const HASHED_SINCE: u32 = 3;

/// A snapshot on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotFile {
    /// What it covers, its length, checksum and version.
    pub meta: pb::SnapshotMeta,
    /// The data.
    pub path: PathBuf,
}

impl SnapshotFile {
    /// Whether the data are as long as the description says, and have its checksum.
    fn check(&self) -> Result<(), StorageError> {
        let SnapshotFile { meta, path } = self;
        let (bytes, checksum) = measure(path)?;
        if (bytes, checksum) == (meta.bytes, meta.checksum) {
            return Ok(());
        }
        Err(StorageError::Damaged {
            path: path.clone(),
            what: format!(
                "it has {bytes} bytes and checksum {checksum:016x}, expected {} and {:016x}; {REFILL}",
                meta.bytes, meta.checksum
            ),
        })
    }

    /// Whether the records, of which `copy` was made, have the state hash of the description.
    fn check_hash(&self, copy: &Generation) -> Result<(), StorageError> {
        let damaged = |what| StorageError::Damaged {
            path: self.path.clone(),
            what: format!("{what}; {REFILL}"),
        };
        let (expected, described) = match described(&self.meta)? {
            Some(hash) => (Expected::Scanned, Some(hash)),
            None => (Expected::MayLack, None),
        };
        let found = copy.verify(expected).map_err(|error| match error {
            StorageError::Damaged { what, .. } => damaged(what),
            other => other,
        })?;
        match described {
            Some(described) if found != Some(described) => {
                let found = found.unwrap_or_default();
                Err(damaged(format!(
                    "its state hash is {found} instead of {described}"
                )))
            }
            _ => Ok(()),
        }
    }
}

/// The folder of snapshots.
#[derive(Clone)]
pub struct SnapshotStore {
    dir: PathBuf,
    /// Tells files apart: those that are being made at once, and snapshots of one index, a later one
    /// having the larger number.
    next: Arc<AtomicU64>,
}

impl SnapshotStore {
    /// Opens the folder and removes what a crash left half made.
    pub(super) fn open(dir: &Path) -> Result<Self, StorageError> {
        durable::create_dir_all(dir)?;
        let store = SnapshotStore {
            dir: dir.to_owned(),
            next: Arc::default(),
        };
        let keep = store.newest_name()?;
        store.remove_all_but(keep.as_deref())?;
        let taken = keep
            .as_deref()
            .and_then(|name| name.rsplit('-').next()?.parse::<u64>().ok());
        store
            .next
            .store(taken.map_or(0, |taken| taken + 1), Ordering::Relaxed);
        Ok(store)
    }

    /// The newest snapshot.
    pub(super) fn current(&self) -> Result<Option<SnapshotFile>, StorageError> {
        loop {
            let Some(name) = self.newest_name()? else {
                return Ok(None);
            };
            let path = self.dir.join(format!("{name}.meta"));
            let bytes = match fs::read(&path) {
                // A newer one took its place since the folder was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                read => read.map_err(StorageError::io(&path))?,
            };
            let meta = decode_meta(&path, &bytes)?;
            return Ok(Some(SnapshotFile {
                meta,
                path: self.dir.join(format!("{name}.mdb")),
            }));
        }
    }

    /// Reads the newest snapshot through.
    ///
    /// # Errors
    /// `Damaged` when it is not what its description says.
    pub(super) fn verify_current(&self) -> Result<(), StorageError> {
        loop {
            let Some(current) = self.current()? else {
                return Ok(());
            };
            match current.check() {
                // A newer one took its place meanwhile.
                Err(StorageError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound
                        && self.current()?.is_some_and(|newest| newest != current) => {}
                checked => return checked,
            }
        }
    }

    fn file_names(&self) -> Result<Vec<String>, StorageError> {
        let names = fs::read_dir(&self.dir)
            .and_then(|entries| {
                entries
                    .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                    .collect::<io::Result<_>>()
            })
            .map_err(StorageError::io(&self.dir))?;
        Ok(names)
    }

    fn newest_name(&self) -> Result<Option<String>, StorageError> {
        let names = self.file_names()?;
        Ok(names
            .iter()
            .filter_map(|name| name.strip_suffix(".meta"))
            .max()
            .map(str::to_owned))
    }

    fn remove_all_but(&self, keep: Option<&str>) -> Result<(), StorageError> {
        for name in self.file_names()? {
            if keep.is_some_and(|keep| name == format!("{keep}.meta") || name == format!("{keep}.mdb")) {
                continue;
            }
            let path = self.dir.join(name);
            match path.is_dir() {
                true => remove_if_there(&path)?,
                false => fs::remove_file(&path).map_err(StorageError::io(&path))?,
            }
        }
        Ok(())
    }

    /// Files a complete and flushed data file as the snapshot of `meta`; removes older ones.
    fn keep(&self, data: &Path, meta: pb::SnapshotMeta) -> Result<SnapshotFile, StorageError> {
        let last = meta.last_log_id.unwrap_or_default();
        let leader = last.leader.unwrap_or_default();
        // Sorted by age as text; the count keeps two snapshots of one index apart.
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("snapshot-{:020}-{:020}-{count:020}", last.index, leader.term);
        let (path, meta_path) = (
            self.dir.join(format!("{name}.mdb")),
            self.dir.join(format!("{name}.meta")),
        );
        fs::rename(data, &path).map_err(StorageError::io(&path))?;
        durable::sync_dir(&self.dir)?;
        if let Err(error) = durable::replace_file(&meta_path, &encode_meta(&meta)) {
            // The caller still has it, then, to remove or to try again.
            let _ = fs::rename(&path, data);
            return Err(error.into());
        }
        for old in self.file_names()? {
            let stem = old
                .strip_suffix(".mdb")
                .or(old.strip_suffix(".meta"))
                .unwrap_or_default();
            if stem.starts_with("snapshot-") && stem < name.as_str() {
                let path = self.dir.join(&old);
                match fs::remove_file(&path) {
                    // Another snapshot that was kept meanwhile removed it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => removed.map_err(StorageError::io(&path))?,
                }
            }
        }
        Ok(SnapshotFile { meta, path })
    }

    pub(super) fn build(&self, generation: Arc<Generation>) -> Build {
        Build {
            store: self.clone(),
            generation,
        }
    }

    pub(super) fn prepare(&self, received: SnapshotFile, next: NextGeneration) -> Prepare {
        Prepare {
            store: self.clone(),
            received,
            next,
        }
    }

    fn aside(&self, what: &str) -> PathBuf {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        self.dir
            .join(format!("{what}-{}-{count}.tmp", std::process::id()))
    }
}

/// A snapshot to be built, off the hot path.
pub struct Build {
    store: SnapshotStore,
    generation: Arc<Generation>,
}

impl Build {
    /// Copies, checksums and flushes the state. Takes as long as the disk needs for the state's size.
    ///
    /// # Errors
    /// When the disk says no; nothing is left behind.
    pub fn run(self) -> Result<SnapshotFile, StorageError> {
        let data = self.store.aside("building");
        let built = self.copy(&data).and_then(|meta| self.store.keep(&data, meta));
        if built.is_err() {
            let _ = fs::remove_file(&data);
        }
        built
    }

    fn copy(&self, data: &Path) -> Result<pb::SnapshotMeta, StorageError> {
        // The log is purged behind it: so it must be what was applied.
        let (Progress { applied, membership }, recorded) = match self.sound_copy(data) {
            Err(error) if error.is_damage() => {
                self.generation.distrust()?;
                return Err(error);
            }
            copied => copied?,
        };
        let (bytes, checksum) = measure(data)?;
        Ok(pb::SnapshotMeta {
            last_log_id: applied,
            last_membership: membership,
            bytes,
            checksum,
            version: STATE_VERSION,
            state_hash: recorded.to_bytes().to_vec(),
        })
    }

    /// Copies the state, and reads from the copy what it covers, since LMDB chose the moment, and its hash.
    fn sound_copy(&self, data: &Path) -> Result<(Progress, StateHash), StorageError> {
        self.generation.copy_to(data)?;
        let (progress, scan) = examine(data)?;
        let recorded = scan.recorded.unwrap_or_default();
        match scan.computed == recorded {
            true => Ok((progress, recorded)),
            false => Err(StorageError::mismatch(
                &self.generation.data_file(),
                recorded,
                scan.computed,
            )),
        }
    }
}

/// A received snapshot to be made a database, off the hot path.
pub struct Prepare {
    store: SnapshotStore,
    received: SnapshotFile,
    next: NextGeneration,
}

/// A database made of a snapshot, ready to take the state's place.
pub struct Prepared {
    pub(super) number: u64,
    pub(super) generation: Generation,
}

impl Prepare {
    /// Verifies the snapshot, makes a database of a copy of it, and files it as the current one.
    ///
    /// # Errors
    /// `Damaged` when the data do not match their checksum or the records their hash, `Corrupt` when they
    /// cover something else than they say. Nothing was filed then.
    pub fn run(self) -> Result<Prepared, StorageError> {
        let version = self.received.meta.version;
        if version > STATE_VERSION {
            return Err(StorageError::Corrupt(format!(
                "snapshot {} has version {version}, this server knows {STATE_VERSION}: upgrade it",
                self.received.path.display()
            )));
        }
        self.received.check()?;
        let prepared = self.make();
        if prepared.is_err() {
            let _ = fs::remove_dir_all(&self.next.dir);
        }
        prepared
    }

    fn make(&self) -> Result<Prepared, StorageError> {
        let Prepare {
            store,
            received: received @ SnapshotFile { meta, path },
            next,
        } = self;
        // The copy is what may not fit, so it comes first: it can be tried again.
        let generation = next.fill(path)?;
        let Progress { applied, membership } = generation.view()?.progress()?;
        let set_at = |membership: Option<&pb::StoredMembership>| membership.and_then(|set| set.log_id);
        if applied != meta.last_log_id || set_at(membership.as_ref()) != set_at(meta.last_membership.as_ref())
        {
            return Err(StorageError::Corrupt(format!(
                "snapshot {} covers {applied:?}, not what it says: {:?}",
                path.display(),
                meta.last_log_id
            )));
        }
        received.check_hash(&generation)?;
        let is_kept = store.current()?.is_some_and(|current| current.path == *path);
        if !is_kept {
            fs::File::open(path)
                .and_then(|file| file.sync_all())
                .map_err(StorageError::io(path))?;
            store.keep(path, meta.clone())?;
        }
        Ok(Prepared {
            number: next.number,
            generation,
        })
    }
}

impl NextGeneration {
    /// Makes a database of a copy of `data`.
    fn fill(&self, data: &Path) -> Result<Generation, StorageError> {
        // What a crash left of an earlier attempt.
        remove_if_there(&self.dir)?;
        fs::create_dir_all(&self.dir).map_err(StorageError::io(&self.dir))?;
        let copy = || {
            let mut steps = Steps::new(fs::File::create(self.dir.join(DATA))?);
            steps.take_all(&mut fs::File::open(data)?)?;
            steps.finish()
        };
        copy().map_err(StorageError::io(&self.dir))?;
        Generation::open(&self.dir, self.map_size)
    }
}

/// What a compact copy covers, and what a scan of it finds.
fn examine(data: &Path) -> Result<(Progress, Scan), StorageError> {
    // A folder of its own, where LMDB finds the copy under the name it expects.
    let dir = data.with_extension("open");
    let linked = dir.join(DATA);
    let read = || {
        fs::create_dir_all(&dir)
            .and_then(|()| fs::hard_link(data, &linked))
            .map_err(StorageError::io(&dir))?;
        Generation::examine(&dir)
    };
    let found = read();
    let _ = fs::remove_dir_all(&dir);
    found
}

/// A file's length and XXH3-64 checksum.
fn measure(path: &Path) -> Result<(u64, u64), StorageError> {
    let mut file = fs::File::open(path).map_err(StorageError::io(path))?;
    let mut hasher = Xxh3::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut buffer).map_err(StorageError::io(path))?;
        if read == 0 {
            return Ok((bytes, hasher.digest()));
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
}

pub(super) fn encode_meta(meta: &pb::SnapshotMeta) -> Vec<u8> {
    let body = meta.encode_to_vec();
    let mut bytes = xxh3_64(&body).to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

pub(super) fn decode_meta(path: &Path, bytes: &[u8]) -> Result<pb::SnapshotMeta, StorageError> {
    let body = bytes
        .split_first_chunk::<8>()
        .and_then(|(checksum, body)| (u64::from_be_bytes(*checksum) == xxh3_64(body)).then_some(body));
    let Some(body) = body else {
        return Err(StorageError::Damaged {
            path: path.to_owned(),
            what: format!("its checksum is wrong; {REFILL}"),
        });
    };
    pb::SnapshotMeta::decode(body).map_err(|error| StorageError::Decode {
        what: path.display().to_string(),
        source: error.into(),
    })
}
