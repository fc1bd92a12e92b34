//! What is done to the machine under a node: its clock, its flushes, and the size of its disk.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::cluster::Cluster;

/// A library between each node and the C library, and the files that it reads its orders from.
pub struct Preload {
    orders: Vec<File>,
}

impl Preload {
    /// Compiles it, and gives it to every node that is started from now on.
    pub fn install(cluster: &mut Cluster) -> Preload {
        let library = cluster.dir().join("preload.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/preload.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .status()
            .unwrap();
        assert!(compiled.success(), "cc: {compiled}");
        let orders = cluster.all().into_iter().map(|n| {
            let path = cluster.dir().join(format!("orders-{n}"));
            fs::write(&path, [0; 16]).unwrap();
            cluster.environment(n, "LD_PRELOAD", &library);
            cluster.environment(n, "MINFS_FAULTS_PRELOAD", &path);
            File::options().write(true).open(path).unwrap()
        });
        let orders = orders.collect();
        Preload { orders }
    }

    /// A node's clock is ahead by this many milliseconds.
    pub fn shift_clock(&self, n: usize, milliseconds: i64) {
        self.order(n, 0, milliseconds);
    }

    /// Each of a node's flushes takes this much longer.
    pub fn slow_flushes(&self, n: usize, by: Duration) {
        self.order(n, 8, by.as_millis() as i64);
    }

    fn order(&self, n: usize, at: u64, amount: i64) {
        self.orders[n].write_all_at(&amount.to_ne_bytes(), at).unwrap();
    }
}

/// What a tmpfs of a test is called in the list of mounts, before the test's process id.
const SOURCE: &str = "minfs-test-";

/// A small disk, on which a node has its data. Needs to be root.
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Its size: enough for the state and the log of a long run.
    const SIZE: &str = "128m";

    /// Mounts one. `None` when that is not permitted; never so in CI.
    pub fn mount(at: &Path) -> Option<SmallDisk> {
        remove_leftovers();
        fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={}", SmallDisk::SIZE)])
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

    /// Not a byte is left on it.
    pub fn fill(&self) {
        let mut filler = File::create(self.filler()).unwrap();
        for size in [1 << 20, 4096, 1] {
            let zeros = vec![0; size];
            while filler.write_all(&zeros).is_ok() {}
        }
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
