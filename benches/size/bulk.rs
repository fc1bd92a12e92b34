//! Makes the tree of `workload` without the API, some ten times as fast: by what the API's requests become.
//!
//! Called by `main`. A node's state is what its log makes of it. So the same commands that the leader would have
//! logged, in entries as many clients at once would have filled them, are applied by the node's own storage, and a
//! snapshot is made as the node would make it. The result is what a node has that was refilled from that
//! snapshot: the log behind it is empty. All nodes get the same files, as they would have the same records.
//! Invariant: the records are those that [`loader`](crate::loader) makes, but for their times.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use minfs::domain::command::{Command, Op};
use minfs::domain::path::CleanPath;
use minfs::proto::convert::encode_batch;
use minfs::proto::raft::LogId;
use minfs::storage::{LogRecord, RecordContent, Storage, StorageError, StorageOptions};

use crate::nodes::Site;
use crate::workload::{IN_A_DIRECTORY, directory, path};

/// Directories that are filled at once, as by as many clients.
const AT_ONCE: u64 = 256;

/// Entries in one transaction.
const ENTRIES: usize = 16;

/// Makes so many files in a new site, whose nodes do not run afterwards.
pub async fn load(site: &mut Site, dir: &Path, files: u64) -> Result<(), String> {
    // They agree on a cluster and on its log so far, and have no time to add to it.
    site.start_all().await?;
    let dirs: Vec<PathBuf> = (0..site.len()).map(|n| site.data_dir(n)).collect();
    (0..site.len()).for_each(|n| site.kill(n));
    let begun = Instant::now();
    let made = tokio::task::spawn_blocking(move || make(&dirs, files));
    made.await.map_err(|error| error.to_string())??;
    let seconds = begun.elapsed().as_secs_f64();
    println!("load: {files} files in bulk in {seconds:.0} s");
    fs::write(dir.join("loaded"), files.to_string()).map_err(|error| format!("loaded: {error}"))
}

fn make(dirs: &[PathBuf], files: u64) -> Result<(), String> {
    let (first, others) = dirs.split_first().ok_or("a site has nodes")?;
    fill(first, files).map_err(|error| format!("{}: {error}", first.display()))?;
    for other in others {
        for part in ["lmdb", "raft/snapshots"] {
            let to = other.join(part);
            let copied = fs::remove_dir_all(&to).and_then(|()| copy(&first.join(part), &to));
            copied.map_err(|error| format!("{}: {error}", to.display()))?;
        }
    }
    Ok(())
}

fn fill(data: &Path, files: u64) -> Result<(), StorageError> {
    let mut storage = Storage::open(&StorageOptions {
        dir: data.to_owned(),
        map_size: 1 << 40,
        verify: true,
    })?;
    let mut last = storage.progress()?.applied.unwrap_or_default();
    let mut records = Vec::new();
    for first in (0..files).step_by((AT_ONCE * IN_A_DIRECTORY) as usize) {
        let directories: Vec<u64> = (0..AT_ONCE)
            .map(|n| first + n * IN_A_DIRECTORY)
            .filter(|first| *first < files)
            .collect();
        let made = directories
            .iter()
            .map(|first| create(&directory(*first), true))
            .collect();
        records.push(record(&mut last, made));
        for n in 0..IN_A_DIRECTORY {
            let numbers = directories
                .iter()
                .map(|first| first + n)
                .filter(|number| *number < files);
            let commands: Vec<Command> = numbers.map(|number| create(&path(number), false)).collect();
            if !commands.is_empty() {
                records.push(record(&mut last, commands));
            }
            if records.len() >= ENTRIES {
                storage.apply(&records)?;
                records.clear();
            }
        }
    }
    storage.apply(&records)?;
    storage.build_snapshot().run()?;
    storage.close()
}

fn record(last: &mut LogId, commands: Vec<Command>) -> LogRecord {
    last.index += 1;
    LogRecord {
        log_id: *last,
        content: RecordContent::Batch(encode_batch(&commands)),
    }
}

fn create(path: &str, directory: bool) -> Command {
    Command {
        time_ms: chrono::Utc::now().timestamp_millis(),
        request_id: None,
        digest: 0,
        // It is for the answer, not for the records.
        origin: None,
        op: Op::Create {
            path: CleanPath::parse(path).expect("the paths of the tree are clean"),
            directory,
        },
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}
