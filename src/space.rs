//! How much disk space a node has left, and what it may still do with it.
//!
//! A [`Gauge`] looks at the file systems of a data directory and at the state's size; [`Space::judge`]
//! makes a verdict of what it saw. The wiring has it looked at again and again (see
//! `actors::raft_node::space`) and gives whoever writes a [`SpaceWatch`].
//!
//! Two marks lie above the end of the disk. Below the upper one the node is *low*: as leader it takes no
//! more writes. Below the lower one it is *full*: it also takes no more of other leaders' writes. What is
//! left then belongs to Raft itself (votes, elections, memberships), to what is under way, and to the next
//! snapshot, without which the log could never be purged. See decision 0008.
//!
//! Invariant: the verdict is a function of the last one and of one measurement; between a mark and the
//! release from it lies a quarter of `database.min_free_space`, so that it does not flicker.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use crate::durable;
use crate::storage::StateReader;

/// The newest verdict, for whoever must decide at once.
pub type SpaceWatch = watch::Receiver<Space>;

/// What a node writes while it starts, with something left for its votes: with less it waits.
const TO_START: u64 = 4 << 20;

/// How often a node that waits for its start looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// After how many looks it says again what it waits for.
const SAY_AGAIN: u32 = 60;

/// What was seen at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Where the least is free.
    pub dir: PathBuf,
    /// Bytes that are free there.
    pub free: u64,
    /// Bytes that the state takes, and so a snapshot of it at most.
    pub state: u64,
    /// Bytes that the state may take.
    pub state_limit: u64,
}

/// What a node may do with its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything.
    Enough,
    /// It takes no writes as leader.
    Low,
    /// It takes no writes at all, from no leader.
    Full,
}

/// A verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// What it is about.
    pub measured: Measured,
    /// Below so many free bytes the node is low.
    pub wanted: u64,
    /// What the disk allows.
    pub level: Level,
    /// The state may not grow any more.
    pub state_is_full: bool,
    min_free: u64,
}

impl Space {
    /// The verdict after `before`, if there was one. With a `min_free` of 0 no disk is ever low.
    pub fn judge(before: Option<&Space>, measured: Measured, min_free: u64) -> Space {
        let Measured {
            free,
            state,
            state_limit,
            ..
        } = measured;
        // The next snapshot lies beside the current one before it takes its place.
        let wanted = match min_free {
            0 => 0,
            _ => min_free.saturating_add(state),
        };
        let level_before = before.map_or(Level::Enough, |before| before.level);
        let below = |mark: u64, level| {
            let release = mark.saturating_add(min_free / 4);
            free < mark || (level_before >= level && free < release)
        };
        let level = if below(wanted - min_free / 2, Level::Full) {
            Level::Full
        } else if below(wanted, Level::Low) {
            Level::Low
        } else {
            Level::Enough
        };
        let was_full = before.is_some_and(|before| before.state_is_full);
        let state_is_full = state >= state_limit || (was_full && state >= state_limit / 16 * 15);
        Space {
            measured,
            wanted,
            level,
            state_is_full,
            min_free,
        }
    }

    /// A verdict on so much free space, for tests of those who obey it.
    #[cfg(test)]
    pub(crate) fn with(free: u64, min_free: u64) -> Space {
        let measured = Measured {
            dir: "/data".into(),
            free,
            state: 0,
            state_limit: u64::MAX,
        };
        Space::judge(None, measured, min_free)
    }

    /// Whether so many bytes can be written at once without touching the last of the reserve.
    pub fn fits(&self, bytes: u64) -> bool {
        self.measured.free >= bytes.saturating_add(self.min_free / 4)
    }

    /// Whether a write that failed has found no place.
    pub fn is_used_up(&self) -> bool {
        self.level == Level::Full || self.measured.free < TO_START
    }

    /// What is wrong with the disk, if anything is.
    pub fn shortage(&self) -> Option<String> {
        (self.level > Level::Enough).then(|| {
            format!(
                "{} free in {}, {} wanted (database.min_free_space)",
                mebibytes(self.measured.free),
                self.measured.dir.display(),
                mebibytes(self.wanted)
            )
        })
    }

    /// Why the state may not grow, if it may not.
    pub fn state_shortage(&self) -> Option<String> {
        self.state_is_full.then(|| {
            format!(
                "the state takes {} of the {} that it may take (database.map_size)",
                mebibytes(self.measured.state),
                mebibytes(self.measured.state_limit)
            )
        })
    }
}

/// Bytes, as an operator reads them.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Looks at the disk and the state of one node.
#[derive(Clone)]
pub struct Gauge {
    dirs: Vec<PathBuf>,
    min_free: u64,
    state: StateReader,
}

impl Gauge {
    /// For the file systems of these directories, of which each may have its own, and this state.
    pub fn new(dirs: Vec<PathBuf>, min_free: u64, state: StateReader) -> Self {
        Gauge {
            dirs,
            min_free,
            state,
        }
    }

    /// Looks, and judges. Short, but it asks the system.
    ///
    /// # Errors
    /// Any of the system's, naming the directory, or those of the state.
    pub fn look(&self, before: Option<&Space>) -> io::Result<Space> {
        let mut least: Option<(u64, &Path)> = None;
        for dir in &self.dirs {
            let free = free_in(dir)?;
            if least.is_none_or(|(least, _)| free < least) {
                least = Some((free, dir));
            }
        }
        let (free, dir) = least.unwrap_or((u64::MAX, Path::new("")));
        let size = self.state.size()?;
        let measured = Measured {
            dir: dir.to_owned(),
            free,
            state: size.bytes,
            state_limit: size.limit,
        };
        Ok(Space::judge(before, measured, self.min_free))
    }
}

/// Bytes that are free for this process on the file system of `dir`.
fn free_in(dir: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(dir).map_err(|e| durable::naming(dir, &e.into()))?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Waits until there is so much space that a node can start in `dir`, which need not exist yet; the log
/// says what is waited for. Nothing is written before.
pub async fn until_enough_to_start(dir: &Path) {
    for look in 0.. {
        let existing = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("."));
        // What cannot be measured is found out by whoever uses it.
        let free = free_in(existing).unwrap_or(u64::MAX);
        if free >= TO_START {
            if look > 0 {
                log::info!("there is space again in {}: starting", dir.display());
            }
            return;
        }
        if look % SAY_AGAIN == 0 {
            log::error!(
                "the disk is full: {} free in {}, {} needed to start; waiting until there is space",
                mebibytes(free),
                dir.display(),
                mebibytes(TO_START)
            );
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: u64 = 1000;

    fn measured(free: u64, state: u64) -> Measured {
        Measured {
            dir: "/data".into(),
            free,
            state,
            state_limit: 16_000,
        }
    }

    /// The levels that follow from these amounts of free space, one after the other.
    fn levels(state: u64, free: &[u64]) -> Vec<Level> {
        let mut last = None;
        free.iter()
            .map(|free| {
                let next = Space::judge(last.as_ref(), measured(*free, state), MIN);
                last.insert(next).level
            })
            .collect()
    }

    #[test]
    fn each_mark_is_left_a_quarter_above_where_it_was_met() {
        use Level::*;
        assert_eq!(
            levels(0, &[1000, 999, 1249, 1250, 1249]),
            [Enough, Low, Low, Enough, Enough]
        );
        assert_eq!(
            levels(0, &[500, 499, 749, 750, 499, 1250]),
            [Low, Full, Full, Low, Full, Enough]
        );
        assert_eq!(levels(0, &[2000, 0]), [Enough, Full], "it may fall through both");
    }

    #[test]
    fn what_a_snapshot_would_take_is_wanted_beside_the_minimum() {
        use Level::*;
        assert_eq!(levels(5000, &[6000, 5999, 5500, 5499]), [Enough, Low, Low, Full]);
        let full = Space::judge(None, measured(5499, 5000), MIN);
        assert!(full.fits(5000), "a full node can still make a snapshot");
        assert!(!full.fits(5250));
        assert_eq!(full.wanted, 6000);
    }

    #[test]
    fn without_a_minimum_nothing_is_low() {
        let none = Space::judge(None, measured(0, 5000), 0);
        assert_eq!((none.level, none.shortage()), (Level::Enough, None));
    }

    #[test]
    fn a_state_that_has_reached_its_limit_must_shrink_by_a_sixteenth() {
        let mut last = None;
        let full: Vec<_> = [15_999, 16_000, 15_000, 14_999, 15_999]
            .into_iter()
            .map(|state| {
                let next = Space::judge(last.as_ref(), measured(1 << 40, state), MIN);
                last.insert(next).state_is_full
            })
            .collect();
        assert_eq!(full, [false, true, true, false, false]);
    }

    #[test]
    fn the_words_name_the_place_the_amounts_and_the_setting() {
        let space = Space::judge(None, measured(3 << 20, 1 << 20), 8 << 20);
        assert_eq!(
            space.shortage().as_deref(),
            Some("3.0 MiB free in /data, 9.0 MiB wanted (database.min_free_space)")
        );
        assert_eq!(
            space.state_shortage().as_deref(),
            Some("the state takes 1.0 MiB of the 0.0 MiB that it may take (database.map_size)")
        );
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_yet_is_measured_where_it_will_be() {
        let dir = tempfile::tempdir().unwrap();
        let there = free_in(dir.path()).unwrap();
        assert!(there > 0);
        assert!(free_in(&dir.path().join("none")).is_err());
        // Returns at once: there is room.
        until_enough_to_start(&dir.path().join("a/b")).await;
    }
}
