//! The blocks on this DataServer's disk.
//!
//! - `layout`: which file holds which block
//! - `footer`: what a file looks like inside, and how its bytes are verified
//! - `write`: a new block, aside first, in its place when it is complete and durable
//! - `read`: a block's bytes, verified before they are handed on
//! - `rescan`: what hands other than ours did to the files
//! - `index`: which blocks there are, in memory
//! - `space`: how much room is left
//!
//! Everything here blocks: callers on a runtime go through `spawn_blocking`. Used by the service, the
//! orders, the scrubber and the heartbeats.
//!
//! The invariants: a file below `blocks/` is complete and durable before anyone is told so; bytes that do
//! not match their checksum leave this room only as an error; and while nobody holds the lock of a block
//! (`Inner::lock`), the index says of it what its folder says, unless somebody else changed the folder.

mod footer;
mod index;
mod layout;
mod read;
mod rescan;
mod space;
#[cfg(test)]
mod tests;
mod write;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

pub use self::footer::{CHUNK, Damage, MAX_BLOCK};
pub use self::index::Inventory;
use self::index::{Index, Stamp, State};
use self::layout::{Kind, Layout};
pub use self::read::{BlockReader, ReadError};
pub use self::rescan::Rescanned;
pub use self::space::{Space, space};
pub use self::write::BlockWriter;
use crate::domain::ids::BlockId;
use crate::durable;

/// How many locks the blocks share.
const STRIPES: usize = 64;

/// A handle on the blocks of one data directory. Clones share it.
#[derive(Debug, Clone)]
pub struct BlockStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    layout: Layout,
    /// Bytes of the disk that blocks do not take; `None`: the default.
    reserve: Option<u64>,
    index: Mutex<Index>,
    /// See [`Inner::lock`].
    stripes: [Mutex<()>; STRIPES],
    /// Counts the changes of what a report says.
    changes: watch::Sender<u64>,
    /// The next name in the folder for unfinished blocks.
    next_aside: AtomicU64,
    closed: AtomicBool,
    /// Locked as long as the store is open.
    process_lock: Mutex<Option<File>>,
}

impl BlockStore {
    /// Takes a data directory: makes it if it is missing, removes what a crash left half written, and lists
    /// the blocks. Their bytes are not read.
    ///
    /// # Errors
    /// Another process uses the directory, or any of the system's, naming the file.
    pub fn open(dir: &Path, reserve: Option<u64>) -> io::Result<BlockStore> {
        let layout = Layout::new(dir);
        durable::create_dir_all(dir)?;
        let process_lock = durable::lock_directory(dir)?;
        durable::create_dir_all(&layout.blocks)?;
        durable::create_dir_all(&layout.aside)?;
        clear(&layout.aside)?;
        let store = BlockStore {
            inner: Arc::new(Inner {
                dir: dir.to_owned(),
                layout,
                reserve,
                index: Mutex::default(),
                stripes: [(); STRIPES].map(Mutex::new),
                changes: watch::Sender::new(0),
                next_aside: AtomicU64::new(0),
                closed: AtomicBool::new(false),
                process_lock: Mutex::new(Some(process_lock)),
            }),
        };
        store.inner.list()?;
        Ok(store)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Every block that is there, as of now.
    pub fn inventory(&self) -> Inventory {
        self.inner.index().inventory()
    }

    /// How many blocks can be served, and how many are known to be damaged.
    pub fn counts(&self) -> (usize, usize) {
        self.inner.index().counts()
    }

    /// Whether the block is there and not known to be damaged.
    pub fn has(&self, block: BlockId) -> bool {
        matches!(self.inner.index().get(block), Some(State::Good(_)))
    }

    /// The next block that can be served, in the order of ids. For the scrubber.
    pub fn next_after(&self, block: BlockId) -> Option<BlockId> {
        self.inner.index().next_good(block)
    }

    /// Tells of every change of the [`Inventory`], as a number that grows.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// The room on the disk.
    ///
    /// # Errors
    /// Any of the system's.
    pub fn space(&self) -> io::Result<Space> {
        space(&self.inner.dir, self.inner.reserve)
    }

    /// Begins to write a block of `expected` bytes, to be checked against the room on the disk. A block
    /// of this id that is there stays until the new one is complete.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] when the disk is nearly full, and any of the system's.
    pub fn write(&self, block: BlockId, expected: u64) -> io::Result<BlockWriter> {
        BlockWriter::begin(self.inner.clone(), block, expected)
    }

    /// Opens a block for reading. One that turns out to be damaged is set aside and counted.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&self, block: BlockId) -> Result<BlockReader, ReadError> {
        BlockReader::open(self.inner.clone(), block)
    }

    /// Removes a block, damaged or not. Gives whether there was one. Not flushed: after a power cut it may be
    /// there again, and whoever wants it gone will say so again.
    ///
    /// # Errors
    /// Any of the system's, naming the file.
    pub fn delete(&self, block: BlockId) -> io::Result<bool> {
        self.inner.delete(block)
    }

    /// Compares the folders with what is known: see [`Rescanned`].
    ///
    /// # Errors
    /// Any of the system's, naming the folder.
    pub fn rescan(&self) -> io::Result<Rescanned> {
        self.inner.rescan()
    }

    /// Gives the directory back: nothing is put in its place from now on, and another process may open it.
    pub fn close(&self) {
        self.inner.closed.store(true, Ordering::SeqCst);
        // Whoever is about to put a block in its place has done so when its lock is free.
        for stripe in &self.inner.stripes {
            drop(stripe.lock().unwrap_or_else(PoisonError::into_inner));
        }
        let mut lock = self
            .inner
            .process_lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *lock = None;
    }
}

impl Inner {
    fn index(&self) -> MutexGuard<'_, Index> {
        // No change of the index can end half way.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while a block's file and its entry in the index change together.
    fn lock(&self, block: BlockId) -> MutexGuard<'_, ()> {
        let stripe = &self.stripes[(block.0 % STRIPES as u64) as usize];
        stripe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Fills the index at start.
    fn list(self: &Arc<Self>) -> io::Result<()> {
        let mut twice = Vec::new();
        let mut short = Vec::new();
        let mut index = self.index();
        self.layout.walk(
            |block, kind, entry| {
                let known = index.get(block);
                if known.is_some() {
                    twice.push(block);
                }
                match kind {
                    Kind::Good => {
                        index.set(block, State::Good(None));
                        if entry.metadata()?.len() < footer::SMALLEST_FILE {
                            short.push(block);
                        }
                    }
                    Kind::Corrupt if known.is_none() => {
                        index.set(block, State::Corrupt);
                    }
                    Kind::Corrupt => (),
                }
                Ok(())
            },
            strange,
        )?;
        drop(index);
        // A whole block came in the place of a damaged one, and a crash before that was removed.
        for block in twice {
            remove(&self.layout.file(block, Kind::Corrupt))?;
        }
        // Cut off, by a hand or by a file system; the reader says it better.
        for block in short {
            let _ = self.examine(block);
        }
        Ok(())
    }

    /// Puts a complete and flushed file in its place.
    fn publish(&self, block: BlockId, aside: &Path, file: &File) -> io::Result<()> {
        let target = self.layout.file(block, Kind::Good);
        let folder = self.layout.folder(block);
        durable::create_dir_all(&folder)?;
        let stamp = Stamp::of(&file.metadata()?);
        let changed = {
            let _lock = self.lock(block);
            if self.is_closed() {
                return Err(io::Error::other("the DataServer is stopping"));
            }
            fs::rename(aside, &target).map_err(|e| durable::naming(&target, &e))?;
            remove(&self.layout.file(block, Kind::Corrupt))?;
            self.index().set(block, State::Good(Some(stamp)))
        };
        durable::sync_dir(&folder)?;
        if changed {
            self.changed();
        }
        Ok(())
    }

    fn delete(&self, block: BlockId) -> io::Result<bool> {
        let _lock = self.lock(block);
        let good = remove(&self.layout.file(block, Kind::Good))?;
        let corrupt = remove(&self.layout.file(block, Kind::Corrupt))?;
        if self.index().remove(block) {
            self.changed();
        }
        Ok(good || corrupt)
    }

    /// Notes that the file of a block is gone, if it is.
    fn vanished(&self, block: BlockId) {
        let _lock = self.lock(block);
        let there = |kind| self.layout.file(block, kind).exists();
        let state = match (there(Kind::Good), there(Kind::Corrupt)) {
            (true, _) => return,
            (false, true) => Some(State::Corrupt),
            (false, false) => None,
        };
        let mut index = self.index();
        let changed = match state {
            Some(state) => index.set(block, state),
            None => index.remove(block),
        };
        drop(index);
        if changed {
            self.changed();
        }
    }

    /// Sets a damaged block aside, if `file` still is the block's file.
    fn set_aside(&self, block: BlockId, file: &File, damage: &Damage) {
        let from = self.layout.file(block, Kind::Good);
        let _lock = self.lock(block);
        if self.is_closed() || !is_at(file, &from) {
            return;
        }
        log::warn!("block {block} is damaged and will not be served: {damage}");
        // Where that fails (a disk that takes no writes any more), it is known until the next start, and
        // found again after it.
        if let Err(e) = fs::rename(&from, self.layout.file(block, Kind::Corrupt)) {
            log::error!("{}", durable::naming(&from, &e));
        }
        if self.index().set(block, State::Corrupt) {
            self.changed();
        }
    }

    /// Notes that a block's footer is right, if `file` still is the block's file.
    fn approve(&self, block: BlockId, file: &File, stamp: Stamp) {
        let _lock = self.lock(block);
        let path = self.layout.file(block, Kind::Good);
        if self.is_closed() || !is_at(file, &path) {
            return;
        }
        let known = self.index().get(block);
        if !matches!(known, Some(State::Good(_)))
            && let Err(e) = remove(&self.layout.file(block, Kind::Corrupt))
        {
            log::warn!("{e}");
        }
        if self.index().set(block, State::Good(Some(stamp))) {
            self.changed();
        }
    }
}

/// Whether the open file is the one at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Removes a file. Gives whether it was there.
fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(durable::naming(path, &e)),
    }
}

/// Removes the files in a folder.
fn clear(folder: &Path) -> io::Result<()> {
    let mut cleared = 0;
    for entry in fs::read_dir(folder).map_err(|e| durable::naming(folder, &e))? {
        cleared += usize::from(remove(&entry?.path())?);
    }
    if cleared > 0 {
        log::info!("removed {cleared} half-written blocks of the last run");
    }
    Ok(())
}

fn strange(path: &Path) {
    log::debug!("{} is no block file", path.display());
}
