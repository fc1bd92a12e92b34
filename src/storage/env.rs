//! The state's directory, `<data dir>/lmdb/`: which database in it is the current one, and whether
//! it can be trusted.
//!
//! Each database is a *generation* in a folder of its own. The file `STATE` names the current one,
//! the boot id of the machine that writes it, and whether it was closed cleanly. Installing a
//! snapshot makes a new generation beside the old one and then rewrites `STATE`, which is the one
//! moment of change.
//!
//! LMDB is written without flushing. That is safe across the death of the process, because the pages
//! are the kernel's by then, but not across the death of the machine. So at start: closed cleanly, or
//! written under the boot id that is running now, means the generation is whole; anything else means
//! that it is thrown away, and openraft fills an empty one from the newest snapshot and the log.
//!
//! What is trusted so far is then verified against its state hash (see `verify`), and thrown
//! away in the same manner when it is damaged. While that is being done, the file `VERIFYING` names it.
//! A large state that was closed cleanly is used at once instead, and its owner verifies it meanwhile: `STATE`
//! says "not closed cleanly" then, so if that kills the process, the next start verifies it first.
//! `REFUSED` holds why a node must not use its state any more: it differs from that of its peers.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use heed::{Env, EnvFlags, EnvOpenOptions, WithoutTls};

use super::snapshot::Prepared;
use super::tables::view::Scan;
use super::tables::{Layout, StateTxn, StateView, TABLES};
use super::verify::{Expected, REFILL, Reading, reach_last_page};
use super::{Progress, StateSize, StorageError};
use crate::background::{Pace, Steps};
use crate::durable;

/// How the first line of `STATE` begins.
const TITLE: &str = "minfs-state ";

/// The version of the directory's layout, behind [`TITLE`]. Version 1, which had no state hash, is read.
const VERSION: u32 = 2;

/// Names the generation that is being verified.
const VERIFYING: &str = "VERIFYING";

/// Says why this state is not to be used.
const REFUSED: &str = "REFUSED";

/// What LMDB calls its file.
pub(super) const DATA: &str = "data.mdb";

/// Readers that may be open at once; each takes a slot of LMDB's reader table.
const MAX_READERS: u32 = 4096;

/// What LMDB's reader table takes: a cache line each, and what it keeps of itself.
const READER_TABLE_BYTES: u64 = 64 * MAX_READERS as u64 + 4096;

/// The most threads that read a state through: then memory is what is waited for.
const MOST_READING: usize = 8;

/// The least address space that is asked for; what a state takes in the end is never near it.
const ADDRESS_SPACE: u64 = 1 << 40;

/// The least that is worth having where address space is limited.
const LEAST_ADDRESS_SPACE: u64 = 1 << 30;

/// What `STATE` says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct StateFile {
    version: u32,
    generation: u64,
    boot_id: String,
    clean: bool,
}

impl StateFile {
    fn parse(path: &Path, text: &str) -> Result<Self, StorageError> {
        let corrupt =
            |why: &str| StorageError::Corrupt(format!("{} is damaged: {why}; {REFILL}", path.display()));
        let mut lines = text.lines();
        let title = lines.next().unwrap_or_default();
        let version = match title.strip_prefix(TITLE).map(str::parse) {
            Some(Ok(version @ 1..=VERSION)) => version,
            Some(_) => {
                return Err(StorageError::Corrupt(format!(
                    "{}: written by a newer server ({title}, this one knows {TITLE}{VERSION}): upgrade it",
                    path.display()
                )));
            }
            None => return Err(corrupt("not a state file")),
        };
        let mut field = |name: &str| {
            lines
                .next()
                .and_then(|line| line.strip_prefix(name)?.strip_prefix(' '))
                .ok_or_else(|| corrupt(&format!("no line `{name}`")))
        };
        let generation = field("generation")?
            .parse()
            .map_err(|_| corrupt("generation is no number"))?;
        let boot_id = field("boot")?.to_owned();
        let clean = field("clean")? == "yes";
        Ok(StateFile {
            version,
            generation,
            boot_id,
            clean,
        })
    }

    fn text(&self) -> String {
        let clean = if self.clean { "yes" } else { "no" };
        format!(
            "{TITLE}{}\ngeneration {}\nboot {}\nclean {clean}\n",
            self.version, self.generation, self.boot_id
        )
    }
}

/// The directory of the state.
pub struct StateDir {
    dir: PathBuf,
    map_size: u64,
    state: StateFile,
}

/// The state's directory with its current generation.
pub(super) struct Opened {
    pub(super) dir: StateDir,
    pub(super) generation: Generation,
    /// It was not read through, and its owner is to see to that.
    pub(super) unread: bool,
}

/// Sees to it that what a state is rebuilt from is sound.
pub(super) type Sources<'a> = &'a (dyn Fn() -> Result<(), StorageError> + Sync);

/// Where the next generation may be made.
#[derive(Clone, Debug)]
pub struct NextGeneration {
    pub(super) number: u64,
    pub(super) dir: PathBuf,
    pub(super) map_size: u64,
}

impl StateDir {
    /// Opens the current generation, or an empty one where there is none or none to be trusted. No
    /// generation is thrown away before `sources` has said that it can be made anew.
    pub(super) fn open(
        dir: &Path,
        map_size: u64,
        reading: Reading,
        sources: Sources<'_>,
    ) -> Result<Opened, StorageError> {
        Self::open_at(dir, map_size, reading, sources, &boot_id())
    }

    /// The same at a boot, read through first if it is to be read at all.
    #[cfg(test)]
    pub(super) fn open_at_boot(
        dir: &Path,
        map_size: u64,
        scan: bool,
        boot_id: &str,
    ) -> Result<(Self, Generation), StorageError> {
        let reading = if scan { Reading::First } else { Reading::Never };
        let opened = Self::open_at(dir, map_size, reading, &|| Ok(()), boot_id)?;
        Ok((opened.dir, opened.generation))
    }

    fn open_at(
        dir: &Path,
        map_size: u64,
        reading: Reading,
        sources: Sources<'_>,
        boot_id: &str,
    ) -> Result<Opened, StorageError> {
        durable::create_dir_all(dir)?;
        let refused = dir.join(REFUSED);
        if let Some(why) = read_if_there(&refused)? {
            let why = why.trim_end();
            return Err(StorageError::Corrupt(format!("{}: {why}", refused.display())));
        }
        let path = dir.join("STATE");
        let found = read_if_there(&path)?.map(|text| StateFile::parse(&path, &text));
        let mut state_dir = StateDir {
            dir: dir.to_owned(),
            map_size,
            state: StateFile {
                version: VERSION,
                generation: 1,
                boot_id: boot_id.to_owned(),
                clean: false,
            },
        };
        let kept = match found.transpose()? {
            None => {
                sources()?;
                None
            }
            Some(found) => {
                state_dir.state.generation = found.generation;
                let kept = state_dir.open_if_trusted(&found, reading, sources)?;
                if kept.is_none() {
                    state_dir.state.generation += 1;
                }
                kept
            }
        };
        let (generation, unread) = match kept {
            Some(kept) => kept,
            None => {
                let next = state_dir.generation_dir(state_dir.state.generation);
                // What lies there was never made current, and may be torn.
                remove_if_there(&next)?;
                (Generation::open(&next, map_size)?, false)
            }
        };
        state_dir.record(state_dir.state.clone())?;
        let verifying = state_dir.dir.join(VERIFYING);
        match fs::remove_file(&verifying) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StorageError::io(&verifying)(error));
            }
            _ => {}
        }
        state_dir.remove_others();
        Ok(Opened {
            dir: state_dir,
            generation,
            unread,
        })
    }

    /// The generation that `STATE` names, unless it cannot be trusted, and whether it is still to be read
    /// through.
    fn open_if_trusted(
        &self,
        found: &StateFile,
        reading: Reading,
        sources: Sources<'_>,
    ) -> Result<Option<(Generation, bool)>, StorageError> {
        if !found.clean && found.boot_id != self.state.boot_id {
            sources()?;
            log::warn!(
                "the machine went down while {} was in use: rebuilding the state from the newest snapshot and \
                 the log",
                self.dir.display()
            );
            return Ok(None);
        }
        let dir = self.generation_dir(found.generation);
        let verifying = self.dir.join(VERIFYING);
        let name = format!("generation-{}", found.generation);
        if read_if_there(&verifying)?.is_some_and(|marked| marked.trim_end() == name) {
            sources()?;
            log::error!(
                "{}: verifying {} did not come to a good end: rebuilding the state from the newest snapshot and \
                 the log",
                verifying.display(),
                dir.join(DATA).display()
            );
            return Ok(None);
        }
        fs::write(&verifying, format!("{name}\n")).map_err(StorageError::io(&verifying))?;
        // What killed the last process may have been a damaged state, and one of an older server lacks a hash.
        let in_order = found.clean && found.version > 1;
        let reading = reading.of(
            fs::metadata(dir.join(DATA)).map_or(0, |data| data.len()),
            in_order,
        );
        let expected = match (found.version, reading) {
            (1, _) => Expected::MayLack,
            (_, Reading::First) => Expected::Scanned,
            (_, Reading::Never | Reading::LaterBeyond(_)) => Expected::Trusted,
        };
        let open = || {
            let generation = Generation::open(&dir, self.map_size)?;
            generation.verify_on(processors(), expected)?;
            if reading == Reading::First {
                generation.walk_pages()?;
            }
            Ok(generation)
        };
        let (opened, sound) = match reading {
            // Two files, and mostly more than one processor.
            Reading::First => thread::scope(|scope| {
                let sound = scope.spawn(sources);
                let opened = open();
                let sound = sound
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                (opened, sound)
            }),
            Reading::Never | Reading::LaterBeyond(_) => match open() {
                Err(error) if StorageError::is_damage(&error) => (Err(error), sources()),
                opened => (opened, Ok(())),
            },
        };
        match (opened, sound) {
            (Ok(generation), Ok(())) => {
                let unread = matches!(reading, Reading::LaterBeyond(_));
                Ok(Some((generation, unread)))
            }
            (Err(error), Ok(())) if error.is_damage() => {
                log::error!(
                    "the state in {} is damaged: {}; rebuilding it from the newest snapshot and the log",
                    dir.join(DATA).display(),
                    error.damage()
                );
                Ok(None)
            }
            // The mark stays: whoever mends the snapshot is told of the state next.
            (Err(error), Err(unsound)) if error.is_damage() => Err(unsound),
            (Err(error), _) | (Ok(_), Err(error)) => {
                // It came to an end, which says nothing against the state.
                let _ = fs::remove_file(&verifying);
                Err(error)
            }
        }
    }

    fn generation_dir(&self, number: u64) -> PathBuf {
        self.dir.join(format!("generation-{number}"))
    }

    /// Where the next generation may be made.
    pub(super) fn next(&self) -> NextGeneration {
        let number = self.state.generation + 1;
        NextGeneration {
            number,
            dir: self.generation_dir(number),
            map_size: self.map_size,
        }
    }

    /// Makes a prepared generation the current one.
    pub(super) fn switch_to(&mut self, prepared: Prepared) -> Result<Generation, StorageError> {
        self.record(StateFile {
            generation: prepared.number,
            ..self.state.clone()
        })?;
        Ok(prepared.generation)
    }

    /// Flushes the database, then records that it is whole.
    pub(super) fn close_cleanly(mut self, generation: &Generation) -> Result<(), StorageError> {
        generation.env.force_sync()?;
        // The names of its files.
        durable::sync_dir(&generation.dir)?;
        self.record(StateFile {
            clean: true,
            ..self.state.clone()
        })
    }

    fn record(&mut self, state: StateFile) -> Result<(), StorageError> {
        durable::replace_file(&self.dir.join("STATE"), state.text().as_bytes())?;
        self.state = state;
        Ok(())
    }

    /// Generations that a crash left behind.
    fn remove_others(&self) {
        let current = self.generation_dir(self.state.generation);
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_generation = entry.file_name().to_string_lossy().starts_with("generation-");
            if is_generation && path != current {
                remove_dir(&path);
            }
        }
    }
}

/// One database.
pub struct Generation {
    env: Env<WithoutTls>,
    layout: Layout,
    /// Bytes that the records may take.
    limit: u64,
    dir: PathBuf,
    remove: AtomicBool,
}

impl Generation {
    /// Opens or creates the database in `dir`, for a state that is to take `map_size` bytes at most.
    pub(super) fn open(dir: &Path, map_size: u64) -> Result<Self, StorageError> {
        fs::create_dir_all(dir).map_err(StorageError::io(dir))?;
        // Whoever reads writes into its slot of the reader table, through a map: where a page of the file
        // had no place on the disk and the disk were full, the process would be killed. (Not later: to
        // close a file takes LMDB's lock of it away.)
        let lock = dir.join("lock.mdb");
        allocate(&lock, READER_TABLE_BYTES).map_err(StorageError::io(&lock))?;
        let (env, address_space) = map(dir, map_size)?;
        reach_last_page(&env, &dir.join(DATA))?;
        let layout = Layout::create(&env)?;
        Ok(Generation {
            env,
            layout,
            // A transaction copies what it changes: there must be room for that, too.
            limit: map_size.min(address_space / 4 * 3),
            dir: dir.to_owned(),
            remove: AtomicBool::new(false),
        })
    }

    /// How far the database in `dir`, which nobody writes, has come, and what a scan of it finds. Takes its time.
    pub(super) fn examine(dir: &Path) -> Result<(Progress, Scan), StorageError> {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.max_dbs(TABLES);
        // SAFETY: the caller made the file and has not told anybody of it, so nobody changes it.
        let env = unsafe { options.flags(EnvFlags::READ_ONLY | EnvFlags::NO_LOCK).open(dir)? };
        let view = StateView::open(&env, Layout::open(&env)?)?;
        let mut pace = Pace::begin();
        Ok((view.progress()?, view.scan(|_| pace.rest())?))
    }

    /// Has LMDB walk all pages, also those of its list of free ones, which no record leads to but every write.
    pub(super) fn walk_pages(&self) -> Result<(), StorageError> {
        let nowhere = Path::new("/dev/null");
        let mut file = File::options()
            .write(true)
            .open(nowhere)
            .map_err(StorageError::io(nowhere))?;
        Ok(self
            .env
            .copy_to_file(&mut file, heed::CompactionOption::Enabled)?)
    }

    /// The file that holds the database.
    pub(super) fn data_file(&self) -> PathBuf {
        self.dir.join(DATA)
    }

    /// The next start is to rebuild the state: this one was found damaged.
    pub(super) fn distrust(&self) -> Result<(), StorageError> {
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy();
        Ok(durable::replace_file(
            &self.dir.with_file_name(VERIFYING),
            format!("{name}\n").as_bytes(),
        )?)
    }

    /// No start is to use this state, nor another that is made of this node's files.
    pub(super) fn refuse(&self, why: &str) -> Result<(), StorageError> {
        let path = self.dir.with_file_name(REFUSED);
        Ok(durable::replace_file(&path, format!("{why}\n").as_bytes())?)
    }

    pub(super) fn view(&self) -> Result<StateView<'_>, StorageError> {
        StateView::open(&self.env, self.layout)
    }

    pub(super) fn write(&self) -> Result<StateTxn<'_>, StorageError> {
        StateTxn::begin(&self.env, self.layout)
    }

    /// Writes a compact copy of the newest committed state, in steps that the disk hardly notices, and flushes
    /// it.
    pub(super) fn copy_to(&self, path: &Path) -> Result<(), StorageError> {
        let at = || StorageError::io(path);
        // LMDB writes as fast as it is read.
        let (mut copy, into) = io::pipe().map_err(at())?;
        let mut into = File::from(OwnedFd::from(into));
        let mut steps = Steps::new(File::create(path).map_err(at())?);
        thread::scope(|scope| {
            let copying =
                scope.spawn(move || self.env.copy_to_file(&mut into, heed::CompactionOption::Enabled));
            let written = steps.take_all(&mut copy);
            // Where the disk is full, LMDB finds that nobody takes the rest.
            drop(copy);
            let copied = copying.join();
            written.map_err(at())?;
            copied.map_err(|_| at()(io::Error::other("the thread that copies failed")))??;
            steps.finish().map_err(at())
        })
    }

    pub(super) fn size(&self) -> Result<StateSize, StorageError> {
        Ok(StateSize {
            bytes: self.view()?.bytes()?,
            limit: self.limit,
        })
    }

    pub(super) fn bytes_on_disk(&self) -> u64 {
        self.env.real_disk_size().unwrap_or(0)
    }

    /// It was replaced: its files go when its last reader does.
    pub(super) fn remove_when_unused(&self) {
        self.remove.store(true, Ordering::Relaxed);
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.remove.load(Ordering::Relaxed) {
            remove_dir(&self.dir);
        }
    }
}

/// How many threads read a state that nobody uses yet.
fn processors() -> u64 {
    thread::available_parallelism().map_or(1, |processors| processors.get().min(MOST_READING) as u64)
}

/// Opens LMDB in `dir` with an address space of twice `map_size` or more, or with what there is of it; says
/// how much that is.
fn map(dir: &Path, map_size: u64) -> Result<(Env<WithoutTls>, u64), StorageError> {
    let wanted = map_size.saturating_mul(2).max(ADDRESS_SPACE);
    // A limit is for the whole process; and while a snapshot is installed, there are two maps.
    let limit = rustix::process::getrlimit(rustix::process::Resource::As).current;
    let mut bytes = wanted.min(limit.map_or(u64::MAX, |limit| (limit / 8).max(LEAST_ADDRESS_SPACE)));
    loop {
        bytes -= bytes % (64 << 10);
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options
            .map_size(usize::try_from(bytes).unwrap_or(usize::MAX))
            .max_dbs(TABLES)
            .max_readers(MAX_READERS);
        // SAFETY: the data directory is locked by this process, so nobody else changes the file under
        // the map, and NO_SYNC is what the module's rule is for.
        let opened = unsafe {
            options
                .flags(EnvFlags::NO_SYNC | EnvFlags::NO_READ_AHEAD)
                .open(dir)
        };
        match opened {
            Ok(env) => {
                if bytes < map_size.saturating_mul(2) {
                    log::warn!(
                        "address space is limited: the state has {} MiB of it, and may take three quarters of \
                         that (ulimit -v)",
                        bytes >> 20
                    );
                }
                return Ok((env, bytes));
            }
            Err(heed::Error::Io(error))
                if error.kind() == io::ErrorKind::OutOfMemory && bytes / 2 >= LEAST_ADDRESS_SPACE =>
            {
                bytes /= 2;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Gives the first `bytes` of a file their place on the disk, where the file system can.
fn allocate(path: &Path, bytes: u64) -> io::Result<()> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn remove_dir(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir) {
        log::warn!("cannot remove the replaced state {}: {error}", dir.display());
    }
}

/// Removes a directory that may not be there.
pub(super) fn remove_if_there(dir: &Path) -> Result<(), StorageError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StorageError::io(dir)(error)),
        _ => Ok(()),
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>, StorageError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StorageError::io(path)(error)),
    }
}

/// The kernel's id of this boot. Where there is none, no boot is like another: then only a clean
/// close is trusted.
fn boot_id() -> String {
    match fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(id) => id.trim().to_owned(),
        Err(_) => format!("unknown-{:016x}", rand::random::<u64>()),
    }
}
