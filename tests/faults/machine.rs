//! What is done to the machine under a node: its clock, its flushes, and its power.

use std::fs::{self, File};
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
