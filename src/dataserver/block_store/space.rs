//! How much room the disk of a data directory has.

use std::io;
use std::path::Path;

use crate::durable;

/// The reserve when none is set: this much, or [`DEFAULT_SHARE`] of a small disk.
const DEFAULT_RESERVE: u64 = 1 << 30;
/// One part in so many.
const DEFAULT_SHARE: u64 = 20;

/// The room on a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// The whole disk.
    pub total: u64,
    /// What blocks may still take: what is free, without the reserve.
    pub free: u64,
}

/// Asks the disk on which `dir` lies. `reserve` bytes are kept free; `None`: 1 GiB, or a twentieth of a
/// disk of less than 20 GiB.
///
/// # Errors
/// Any of the system's, naming the directory.
pub fn space(dir: &Path, reserve: Option<u64>) -> io::Result<Space> {
    let disk = rustix::fs::statvfs(dir).map_err(|e| durable::naming(dir, &e.into()))?;
    let total = disk.f_blocks.saturating_mul(disk.f_frsize);
    let available = disk.f_bavail.saturating_mul(disk.f_frsize);
    Ok(Space {
        total,
        free: available.saturating_sub(reserve.unwrap_or_else(|| default_reserve(total))),
    })
}

fn default_reserve(total: u64) -> u64 {
    DEFAULT_RESERVE.min(total / DEFAULT_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_disk_keeps_a_twentieth_free() {
        assert_eq!(default_reserve(100 << 30), 1 << 30);
        assert_eq!(default_reserve(20 << 30), 1 << 30);
        assert_eq!(default_reserve(2000), 100);
        assert_eq!(default_reserve(0), 0);
    }

    #[test]
    fn the_reserve_is_not_free() {
        let dir = tempfile::tempdir().unwrap();
        let all = space(dir.path(), Some(0)).unwrap();
        assert!(all.free > 0 && all.free <= all.total);
        let less = space(dir.path(), Some(u64::MAX)).unwrap();
        assert_eq!((less.free, less.total), (0, all.total));
        assert!(space(&dir.path().join("none"), None).is_err());
    }
}
