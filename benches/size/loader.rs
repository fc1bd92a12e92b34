//! Makes the tree of `workload` through the API: many clients, each of which fills one directory after the other.
//!
//! Called by `main`. A request that found no leader or no room is asked again; that it was carried out the
//! first time is no error then. The invariant of a loaded site: the file `loaded` in its directory holds how many
//! files are there, and it is written when all were acknowledged.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use minfs::proto::dfs::FileType;
use tokio::task::JoinSet;
use tonic::Code;

use crate::system::Connection;
use crate::workload::{IN_A_DIRECTORY, directory, path};

const CLIENTS: usize = 256;

/// How long one request is asked again and again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// How many files a site was loaded with.
pub fn loaded(dir: &Path) -> Option<u64> {
    fs::read_to_string(dir.join("loaded")).ok()?.trim().parse().ok()
}

/// Makes so many files; tells how it goes.
pub async fn load(dir: &Path, connections: &[Connection], files: u64) -> Result<(), String> {
    let begun = Instant::now();
    let (next, done) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        let connection = connections[n % connections.len()].clone();
        clients.spawn(fill(connection, next.clone(), done.clone(), files));
    }
    let mut tick = tokio::time::interval(Duration::from_secs(15));
    let mut before = (Instant::now(), 0);
    loop {
        tokio::select! {
            ended = clients.join_next() => match ended {
                None => break,
                Some(ended) => ended.map_err(|error| format!("a client failed: {error}"))??,
            },
            now = tick.tick() => {
                let (now, count) = (now.into_std(), done.load(Ordering::Relaxed));
                let seconds = now.saturating_duration_since(before.0).as_secs_f64();
                let rate = (count - before.1) as f64 / seconds.max(0.001);
                eprintln!("{count} of {files} files, {rate:.0} a second");
                before = (now, count);
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "load: {files} files in {seconds:.0} s, {:.0} a second",
        files as f64 / seconds
    );
    fs::write(dir.join("loaded"), files.to_string()).map_err(|error| format!("loaded: {error}"))
}

async fn fill(
    mut connection: Connection,
    next: Arc<AtomicU64>,
    done: Arc<AtomicU64>,
    files: u64,
) -> Result<(), String> {
    loop {
        let first = next.fetch_add(IN_A_DIRECTORY, Ordering::Relaxed);
        if first >= files {
            return Ok(());
        }
        create(&mut connection, &directory(first), FileType::Directory).await?;
        for number in first..(first + IN_A_DIRECTORY).min(files) {
            create(&mut connection, &path(number), FileType::File).await?;
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn create(connection: &mut Connection, path: &str, r#type: FileType) -> Result<(), String> {
    let begun = Instant::now();
    let mut again = false;
    loop {
        let status = match connection.create(path, r#type).await {
            Ok(()) => return Ok(()),
            Err(status) => status,
        };
        match status.code() {
            Code::AlreadyExists if again => return Ok(()),
            Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted
                if begun.elapsed() < PATIENCE =>
            {
                again = true;
                tokio::time::sleep(PAUSE).await;
            }
            _ => return Err(format!("CreateNode of {path}: {status}")),
        }
    }
}
