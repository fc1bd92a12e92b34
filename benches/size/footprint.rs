//! What a tree takes: bytes on the disk, resident memory, and what a snapshot adds to both for a while.
//!
//! Called by `main`. Memory comes from `/proc/PID/smaps_rollup`: what is anonymous is the program's own; what is
//! backed by files is above all LMDB's map, whose pages the system may take back at any time.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use minfs::proto::dfs::FileType;
use minfs::storage::{Storage, StorageError, StorageOptions};

use crate::nodes::{DEFAULT, PATIENCE, Site, Variant, bytes_in};
use crate::support::memory::{Memory, memory};
use crate::system::Connection;

/// Between two looks at a folder that changes.
const LOOK: Duration = Duration::from_millis(2);

/// Prints what each node has on the disk. The nodes do not run.
pub fn disk(site: &Site, files: u64) -> Result<(), String> {
    for n in 0..site.len() {
        let data = site.data_dir(n);
        let used = used(&data)?;
        println!(
            "disk: node {n}, pages of records: {} MB, {:.1} bytes a file",
            used / 1_000_000,
            used as f64 / files as f64
        );
        let parts = [
            ("LMDB", data.join("lmdb")),
            ("log", data.join("raft/log")),
            ("snapshot", data.join("raft/snapshots")),
        ];
        for (name, dir) in parts {
            let (length, taken) = bytes_in(&dir);
            println!(
                "disk: node {n}, {name}: {} MB, {} MB on the disk, {:.1} bytes a file",
                length / 1_000_000,
                taken / 1_000_000,
                length as f64 / files as f64
            );
        }
    }
    Ok(())
}

/// Bytes of the pages that a node's records take, whatever else its file holds. The node does not run.
pub fn used(data: &Path) -> Result<u64, String> {
    let options = StorageOptions {
        dir: data.to_owned(),
        map_size: 1 << 40,
        verify: false,
    };
    let failed = |error: StorageError| format!("{}: {error}", data.display());
    let storage = Storage::open(&options).map_err(failed)?;
    let size = storage.reader().size().map_err(failed)?;
    storage.close().map_err(failed)?;
    Ok(size.bytes)
}

/// Prints the resident memory of all nodes, which run.
pub fn resident(site: &Site, when: &str) -> Result<(), String> {
    for n in 0..site.len() {
        let process = site.process(n);
        let path = format!("/proc/{process}/smaps_rollup");
        let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        let mib = |name: &str| {
            let line = text
                .lines()
                .find(|line| line.starts_with(name))
                .unwrap_or_default();
            let kib = line
                .split_whitespace()
                .nth(1)
                .and_then(|kib| kib.parse::<u64>().ok());
            kib.unwrap_or_default() >> 10
        };
        let (all, anonymous) = (mib("Rss:"), mib("Anonymous:"));
        println!(
            "memory: node {n}, {when}: resident {all} MiB: anonymous {anonymous} MiB, of files {} MiB; at its highest \
             {} MiB",
            all - anonymous,
            memory(process, Memory::Peak) >> 20
        );
    }
    Ok(())
}

/// Has a follower take a snapshot, and prints how long that took and what it is like. All nodes run.
pub async fn snapshot(site: &mut Site, round: usize) -> Result<(), String> {
    let leader = site.complete().await?;
    let n = site.others(leader)[round % 2];
    // Due with the first entry after a start.
    let eager = Variant {
        snapshot_threshold: 1,
        ..DEFAULT
    };
    site.terminate(n).await?;
    let folder = site.data_dir(n).join("raft/snapshots");
    let before = names(&folder);
    site.start(n, eager, None)?;
    let path = format!("/snapshot-{:016x}", rand::random::<u64>());
    let created = Connection::new(site.connect(leader))
        .create(&path, FileType::Directory)
        .await;
    created.map_err(|status| format!("CreateNode of {path}: {status}"))?;
    let process = site.process(n);
    let seen = |ending: &str| {
        names(&folder)
            .difference(&before)
            .any(|name| name.ends_with(ending))
    };
    let waited = Instant::now();
    let (mut begun, mut highest) = (None, (0, 0));
    let took = loop {
        if waited.elapsed() > PATIENCE {
            return Err("no snapshot was taken".to_owned());
        }
        if begun.is_none() && seen(".tmp") {
            begun = Some(Instant::now());
        }
        if let Some(begun) = begun {
            let now = anonymous(process);
            highest = (highest.0.max(now), highest.1.max(memory(process, Memory::Now)));
            if seen(".meta") {
                break begun.elapsed();
            }
        }
        tokio::time::sleep(LOOK).await;
    };
    // Beside it, the older one may still be there.
    let new = names(&folder)
        .difference(&before)
        .map(|name| folder.join(name))
        .collect::<Vec<_>>();
    let bytes: u64 = new
        .iter()
        .filter_map(|path| Some(fs::metadata(path).ok()?.len()))
        .sum();
    println!(
        "snapshot: {:.2} s, {} MB; meanwhile anonymous memory {} MiB, resident {} MiB at most",
        took.as_secs_f64(),
        bytes / 1_000_000,
        highest.0 >> 20,
        highest.1 >> 20
    );
    site.terminate(n).await?;
    site.start(n, DEFAULT, None)?;
    site.complete().await?;
    Ok(())
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn anonymous(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}
