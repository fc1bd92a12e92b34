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

use super::env::{Generation, NextGeneration, remove_if_there};
use super::{Progress, StorageError};
use crate::durable;
use crate::proto::raft as pb;

/// The version of the state's encoding that snapshots carry: it rises with that of the records, so that
/// a node that could not read them refuses the snapshot instead of installing it. Older ones are read.
pub const STATE_VERSION: u32 = 2;

/// A snapshot on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotFile {
    /// What it covers, its length, checksum and version.
    pub meta: pb::SnapshotMeta,
    /// The data.
    pub path: PathBuf,
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
        self.generation.copy_to(data)?;
        fs::File::open(data)
            .and_then(|file| file.sync_all())
            .map_err(StorageError::io(data))?;
        // LMDB chose the moment of the copy, so what it covers is read from the copy itself.
        let Progress { applied, membership } = progress_of(data)?;
        let (bytes, checksum) = measure(data)?;
        Ok(pb::SnapshotMeta {
            last_log_id: applied,
            last_membership: membership,
            bytes,
            checksum,
            version: STATE_VERSION,
        })
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
    /// Verifies the snapshot, files it as the current one, and makes a database of a copy of it.
    ///
    /// # Errors
    /// `Corrupt` when the data do not match their checksum or cover something else than they say.
    pub fn run(self) -> Result<Prepared, StorageError> {
        let Prepare {
            store,
            received: SnapshotFile { meta, path },
            next,
        } = self;
        if meta.version > STATE_VERSION {
            return Err(StorageError::Corrupt(format!(
                "snapshot {} has version {}, this server knows {STATE_VERSION}: upgrade it",
                path.display(),
                meta.version
            )));
        }
        let (bytes, checksum) = measure(&path)?;
        if (bytes, checksum) != (meta.bytes, meta.checksum) {
            return Err(StorageError::Corrupt(format!(
                "snapshot {} has {bytes} bytes and checksum {checksum:016x}, expected {} and {:016x}; to refill this \
                 node from its peers, stop it, delete its data directory and start it",
                path.display(),
                meta.bytes,
                meta.checksum
            )));
        }
        let Progress { applied, membership } = progress_of(&path)?;
        let set_at = |membership: Option<&pb::StoredMembership>| membership.and_then(|set| set.log_id);
        if applied != meta.last_log_id || set_at(membership.as_ref()) != set_at(meta.last_membership.as_ref())
        {
            return Err(StorageError::Corrupt(format!(
                "snapshot {} covers {applied:?}, not what it says: {:?}",
                path.display(),
                meta.last_log_id
            )));
        }
        // The copy is what may not fit, so it comes first: it can be tried again.
        let generation = next.fill(&path)?;
        if store.current()?.is_none_or(|current| current.path != path) {
            fs::File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(StorageError::io(&path))?;
            store.keep(&path, meta)?;
        }
        Ok(Prepared {
            number: next.number,
            generation,
        })
    }
}

impl NextGeneration {
    /// Makes a database of a copy of `data`; nothing is left of one that failed.
    fn fill(&self, data: &Path) -> Result<Generation, StorageError> {
        let filled = || {
            // What a crash left of an earlier attempt.
            remove_if_there(&self.dir)?;
            fs::create_dir_all(&self.dir).map_err(StorageError::io(&self.dir))?;
            fs::copy(data, self.dir.join("data.mdb")).map_err(StorageError::io(&self.dir))?;
            Generation::open(&self.dir, self.map_size)
        };
        filled().inspect_err(|_| {
            let _ = remove_if_there(&self.dir);
        })
    }
}

/// What a compact copy covers.
fn progress_of(data: &Path) -> Result<Progress, StorageError> {
    // A folder of its own, where LMDB finds the copy under the name it expects.
    let dir = data.with_extension("open");
    let linked = dir.join("data.mdb");
    let read = || {
        fs::create_dir_all(&dir)
            .and_then(|()| fs::hard_link(data, &linked))
            .map_err(StorageError::io(&dir))?;
        Generation::peek(&dir)
    };
    let progress = read();
    let _ = fs::remove_dir_all(&dir);
    progress
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

fn encode_meta(meta: &pb::SnapshotMeta) -> Vec<u8> {
    let body = meta.encode_to_vec();
    let mut bytes = xxh3_64(&body).to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

fn decode_meta(path: &Path, bytes: &[u8]) -> Result<pb::SnapshotMeta, StorageError> {
    let body = bytes
        .split_first_chunk::<8>()
        .and_then(|(checksum, body)| (u64::from_be_bytes(*checksum) == xxh3_64(body)).then_some(body));
    let Some(body) = body else {
        return Err(StorageError::Corrupt(format!(
            "{} is damaged; to refill this node from its peers, stop it, delete its data directory and start it",
            path.display()
        )));
    };
    pb::SnapshotMeta::decode(body).map_err(|error| StorageError::Decode {
        what: path.display().to_string(),
        source: error.into(),
    })
}
