//! Long work of a node that nobody waits for: on threads that give way to those that answer, in steps that the disk
//! hardly notices.
//!
//! `actors::store`, `actors::auditor` and `node` run their long work with [`run`]; `storage` writes and reads large files in
//! it with [`Steps`] and paces itself with [`Pace`]; `raft` receives snapshots at the same pace.
//!
//! Two things of a snapshot hurt those who write a log entry meanwhile. It wants the processor, for the better part
//! of a second for each million files: so it has a lower priority. And it fills the cache of the system with as many
//! bytes as the state has, which then all go to the disk at once: whoever flushes a log entry then (on ext4 every
//! flush writes the journal, and the journal waits for new data of other files) waits for all of them. So what is
//! written is flushed in small steps, and between two of them the disk is free for as long as the step took.
//!
//! Invariant: nothing here runs on a thread that answers.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// What these threads are to the system's scheduler, where 0 is usual and 19 the least: about a tenth of the
/// processor against a thread that is always busy, so that the work comes to its end on a busy machine, too.
const NICE: i32 = 10;

/// Bytes that are flushed at once: what a disk takes in the time of a few flushes of the log.
pub(crate) const STEP_BYTES: usize = 1 << 20;

/// Bytes that are copied at once.
const COPY_BYTES: usize = 128 << 10;

/// The longest rest after one step: a disk that stood still is no reason to stand still for long.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// Does `work` on a thread of its own, which gives way to others.
///
/// # Errors
/// When the system has no thread left, or the work panicked.
pub(crate) async fn run<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    // Not one of the runtime's: a thread that has given way may not get its priority back.
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        give_way();
        // Whoever waited may be gone.
        let _ = done.send(work());
    })?;
    result
        .await
        .map_err(|_| io::Error::other(format!("the thread {name} failed")))
}

/// To Linux a priority is that of a thread; those that it starts inherit it.
fn give_way() {
    let lower = rustix::process::getpriority_process(None)
        // The whole process may have been told to give way still more.
        .and_then(|own| rustix::process::setpriority_process(None, own.max(NICE)));
    if let Err(error) = lower {
        log::warn!("background work keeps the priority of everything else: {error}");
    }
}

/// Leaves as much time free as it takes.
pub(crate) struct Pace {
    began: Instant,
}

impl Pace {
    /// The first step begins.
    pub(crate) fn begin() -> Self {
        Pace {
            began: Instant::now(),
        }
    }

    /// A step is done: rests, and begins the next.
    pub(crate) fn rest(&mut self) {
        thread::sleep(rest_after(self.began.elapsed()));
        self.began = Instant::now();
    }
}

/// How long to rest after a step that took so long.
pub(crate) fn rest_after(step: Duration) -> Duration {
    step.min(LONGEST_REST)
}

/// Writes a file in steps, each of which is flushed before the next begins.
pub(crate) struct Steps {
    file: File,
    unflushed: usize,
    pace: Pace,
}

impl Steps {
    /// For a file that is empty so far.
    pub(crate) fn new(file: File) -> Self {
        Steps {
            file,
            unflushed: 0,
            pace: Pace::begin(),
        }
    }

    /// Writes all that can be read.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn take_all(&mut self, from: &mut impl Read) -> io::Result<()> {
        io::copy(&mut BufReader::with_capacity(COPY_BYTES, from), self).map(drop)
    }

    /// Flushes what is left: the file is on the disk, its name not yet.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.file.sync_all()
    }
}

impl Write for Steps {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = STEP_BYTES - self.unflushed;
        let written = self.file.write(&bytes[..bytes.len().min(room)])?;
        self.unflushed += written;
        if self.unflushed == STEP_BYTES {
            self.flush()?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.unflushed = 0;
        self.pace.rest();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_steps_is_what_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..STEP_BYTES * 2 + 12_345).map(|n| (n / 7) as u8).collect();
        let mut steps = Steps::new(File::create(&path).unwrap());
        for piece in bytes.chunks(300_007) {
            steps.write_all(piece).unwrap();
            assert!(steps.unflushed < STEP_BYTES);
        }
        steps.take_all(&mut &bytes[..]).unwrap();
        steps.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes.repeat(2));
    }

    #[tokio::test]
    async fn work_gives_way_and_whoever_waits_does_not() {
        let own = || rustix::process::getpriority_process(None).unwrap();
        let before = own();
        let there = run("test", own).await.unwrap();
        assert_eq!(there, before.max(NICE));
        assert_eq!(own(), before);
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error() {
        let failed = run("test", || panic!("as it should")).await;
        assert!(failed.unwrap_err().to_string().contains("the thread test failed"));
    }

    #[test]
    fn a_rest_is_as_long_as_the_step_and_never_long() {
        let mut pace = Pace::begin();
        pace.began -= Duration::from_secs(5);
        let begun = Instant::now();
        pace.rest();
        assert!(begun.elapsed() >= LONGEST_REST);
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
