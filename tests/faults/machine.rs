//! What is done to the machine under a node: its clock, its flushes, its power, and the size of its disk.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rand::rngs::StdRng;

use crate::bytes::Unflushed;
use crate::disk::Disk;
use crate::support::cluster::Cluster;

/// A library between each node and the C library, and the files that it reads its orders from.
pub struct Preload {
    machines: Vec<Machine>,
}

/// What is under one node.
struct Machine {
    orders: File,
    boot_id: PathBuf,
    disk: Disk,
}

impl Preload {
    /// How long a flush takes when nobody orders anything else. It is not really done: the machine under
    /// the test keeps its power.
    const FLUSH: Duration = Duration::from_millis(1);

    /// Compiles it, and gives it to every node that is started from now on. Data directories on disks of
    /// their own are mounted by then.
    pub fn install(cluster: &mut Cluster) -> Preload {
        let library = cluster.dir().join("preload.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/preload.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .args([&library, &source])
            .args(["-ldl", "-lpthread"])
            .status()
            .unwrap();
        assert!(compiled.success(), "cc: {compiled}");
        let machines = cluster.all().into_iter().map(|n| {
            let path = cluster.dir().join(format!("orders-{n}"));
            let with = |suffix: &str| PathBuf::from(format!("{}.{suffix}", path.display()));
            fs::write(&path, [0; 24]).unwrap();
            let disk = Disk::new(cluster.data_dir(n), &with("journal"));
            // As the kernel calls it.
            let data_dir = fs::canonicalize(cluster.data_dir(n)).unwrap();
            cluster.environment(n, "LD_PRELOAD", &library);
            cluster.environment(n, "MINFS_FAULTS_PRELOAD", &path);
            cluster.environment(n, "MINFS_FAULTS_DATA", &data_dir);
            let machine = Machine {
                orders: File::options().read(true).write(true).open(&path).unwrap(),
                boot_id: with("boot"),
                disk,
            };
            machine.boots();
            machine
        });
        let preload = Preload {
            machines: machines.collect(),
        };
        for n in cluster.all() {
            preload.flushes_as_usual(n);
        }
        preload
    }

    /// A node's clock is ahead by this many milliseconds.
    pub fn shift_clock(&self, n: usize, milliseconds: i64) {
        self.machines[n].order(0, milliseconds);
    }

    /// Each of a node's flushes takes this long.
    pub fn slow_flushes(&self, n: usize, time: Duration) {
        self.machines[n].order(1, time.as_millis() as i64);
    }

    /// A node's flushes take as long as usual.
    pub fn flushes_as_usual(&self, n: usize) {
        self.slow_flushes(n, Preload::FLUSH);
    }

    /// A node's process is killed before this many more calls have changed its data directory, between one
    /// and the next; 0: it is not.
    pub fn kill_before_call(&self, n: usize, calls: i64) {
        self.machines[n].order(2, calls);
    }

    /// Reads what the nodes wrote down, so that it does not pile up.
    pub fn follow(&mut self) {
        for machine in &mut self.machines {
            machine.disk.follow();
        }
    }

    /// To be called whenever a node's process has ended, before it is started again; gives what it did and
    /// did not write down: nothing, when it was killed by order.
    pub fn process_ended(&mut self, n: usize) -> Vec<String> {
        self.kill_before_call(n, 0);
        self.machines[n].disk.process_ended()
    }

    /// The power goes out under a node, and comes back. Its process has ended by then.
    pub fn lose_power(&mut self, n: usize, unflushed: Unflushed, random: &mut StdRng) {
        self.process_ended(n);
        self.machines[n].disk.lose_power(unflushed, random);
        self.machines[n].boots();
    }

    /// A node, which does not run, has another disk.
    pub fn wiped(&mut self, n: usize) {
        self.machines[n].disk.reload();
    }
}

impl Machine {
    fn order(&self, which: u64, amount: i64) {
        self.orders
            .write_all_at(&amount.to_ne_bytes(), 8 * which)
            .unwrap();
    }

    fn boots(&self) {
        fs::write(&self.boot_id, format!("{:032x}\n", rand::random::<u128>())).unwrap();
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
