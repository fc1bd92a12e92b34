//! Disks that a test can fill: each is a tmpfs of its own.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a tmpfs of a test is called in the list of mounts, before the test's process id.
const SOURCE: &str = "minfs-test-";

/// A small disk, on which a node has its data. Needs to be root.
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many MiB. `None` when that is not permitted; never so in CI.
    pub fn mount(at: &Path, size: u64) -> Option<SmallDisk> {
        remove_leftovers();
        fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}m")])
            .arg(format!("{SOURCE}{:x}", std::process::id()))
            .arg(at)
            .output();
        let error = match mounted {
            Ok(output) if output.status.success() => return Some(SmallDisk { at: at.to_owned() }),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(std::env::var_os("CI").is_none(), "cannot mount a tmpfs: {error}");
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED the full disk: cannot mount a tmpfs (root is needed): {error}"
        );
        None
    }

    /// Fills it up, but for so many MiB; with 0, not a byte is left on it.
    pub fn fill(&self, leave: u64) {
        let mut filler = File::options()
            .create(true)
            .append(true)
            .open(self.filler())
            .unwrap();
        for size in [1 << 20, 4096, 1] {
            let zeros = vec![0; size];
            while (leave == 0 || self.free_bytes() > leave << 20) && filler.write_all(&zeros).is_ok() {}
        }
    }

    /// What is free on it.
    pub fn free_bytes(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.at).unwrap();
        disk.f_bavail * disk.f_frsize
    }

    /// There is room again.
    pub fn free(&self) {
        let _ = fs::remove_file(self.filler());
    }

    /// Beside the node's own files, which a wipe removes with them.
    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.at);
    }
}

fn unmount(at: &Path) {
    // Lazily: a process that is being killed may have it open still.
    let _ = Command::new("umount").arg("-l").arg(at).status();
}

/// Of tests whose process is gone.
fn remove_leftovers() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(source), Some(at)) = (words.next(), words.next()) else {
            continue;
        };
        let process = source
            .strip_prefix(SOURCE)
            .and_then(|tag| u32::from_str_radix(tag, 16).ok());
        if let Some(process) = process
            && !Path::new(&format!("/proc/{process}")).exists()
        {
            unmount(Path::new(at));
        }
    }
}
