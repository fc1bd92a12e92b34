//! What a server has written: its log and state, and what it gave to the disk.
//!
//! Three witnesses of one fact, since each alone can miss something: the last index of the log, the files of log
//! and state (their bytes and when they last changed), and the kernel's count of the bytes that the process had written.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use crate::support::cluster::Cluster;

/// As of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The last entry of the log.
    pub index: u64,
    /// Bytes of all files of log, snapshots and state.
    pub files: u64,
    /// When the youngest of them changed.
    pub changed: SystemTime,
    /// Bytes that the process sent to the disk, as `/proc/PID/io` says.
    pub bytes: u64,
}

impl Written {
    /// By node `n` so far.
    pub async fn so_far(cluster: &mut Cluster, n: usize) -> Written {
        let index = cluster.answers(n).await.last_log_index.unwrap_or(0);
        let (mut files, mut changed) = (0, SystemTime::UNIX_EPOCH);
        look(cluster.data_dir(n), &mut |length, at| {
            files += length;
            changed = changed.max(at);
        });
        let io = fs::read_to_string(format!("/proc/{}/io", cluster.process(n))).unwrap();
        let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        Written {
            index,
            files,
            changed,
            bytes: line.unwrap().parse().unwrap(),
        }
    }
}

fn look(directory: &Path, see: &mut impl FnMut(u64, SystemTime)) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let found = entry.metadata().unwrap();
        match found.is_dir() {
            true => look(&entry.path(), see),
            // Readers note there that they read: memory shared between processes, which holds nothing.
            false if entry.file_name() == "lock.mdb" => {}
            false => see(found.len(), found.modified().unwrap()),
        }
    }
}
