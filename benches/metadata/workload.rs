//! What a client does: one operation after the other, on files that are there for it.
//!
//! A [`Stock`] belongs to one system for one round, and is shared by all its clients. No name is used twice, a
//! file is taken out of the stock before it is deleted, allocated or finalized, and put back where it belongs
//! when that was acknowledged. Locks are held for a push or a pop, never across a request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::operation::{Operation, Supply};
use crate::system::Connection;

/// How many files are in the directory that is listed.
pub const LISTED: usize = 1000;

/// Two blocks of the default size.
pub const SIZE: i64 = 2 * (4 << 20);

/// The MD5 that finalized files are said to have.
pub const MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";

/// Where creates go to.
const MADE: &str = "/made";
/// What stats choose from.
const SEEN: &str = "/seen";
/// What is listed.
const LIST: &str = "/listed";

/// A file, as its client knows it.
#[derive(Clone, Debug)]
pub struct File {
    /// Its path.
    pub path: String,
    /// Its directory's path.
    pub parent: &'static str,
    /// Its number: in etcd chosen by the client, in MinFS by the server, and known after the allocation.
    pub inode: u64,
}

/// The files of one system.
pub struct Stock {
    seen: Vec<File>,
    next: AtomicU64,
    empty: Mutex<Vec<File>>,
    allocated: Mutex<Vec<File>>,
}

impl Stock {
    /// Directories, the files that stats choose from, and the directory that is listed.
    pub async fn prepare(connections: &[Connection], files: usize) -> Result<Stock, String> {
        let mut first = connections[0].clone();
        for directory in [MADE, SEEN, LIST] {
            first.make_directory(directory).await?;
        }
        let stock = Stock {
            seen: (0..files).map(|n| File::new(SEEN, n as u64)).collect(),
            next: AtomicU64::new((files + LISTED) as u64),
            empty: Mutex::default(),
            allocated: Mutex::default(),
        };
        let listed: Vec<_> = (files..files + LISTED)
            .map(|n| File::new(LIST, n as u64))
            .collect();
        let all: Vec<&File> = stock.seen.iter().chain(&listed).collect();
        let share = all.len().div_ceil(64);
        let clients = all.chunks(share).enumerate().map(|(n, files)| {
            let mut connection = connections[n % connections.len()].clone();
            async move {
                for file in files {
                    connection.create(file).await?;
                }
                Ok::<(), String>(())
            }
        });
        futures::future::try_join_all(clients).await?;
        Ok(stock)
    }

    /// How many files there are of a kind.
    pub fn count(&self, supply: Supply) -> usize {
        self.of(supply).len()
    }

    fn of(&self, supply: Supply) -> MutexGuard<'_, Vec<File>> {
        let files = match supply {
            Supply::Empty => &self.empty,
            Supply::Allocated => &self.allocated,
        };
        files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, supply: Supply) -> Option<File> {
        self.of(supply).pop()
    }
}

impl File {
    fn new(parent: &'static str, number: u64) -> File {
        // Names of one length, so that no round has longer records than another.
        File {
            path: format!("{parent}/file-{number:010}"),
            parent,
            inode: number + 1,
        }
    }
}

/// A client: its connection, and its own sequence of random choices.
pub struct Worker {
    connection: Connection,
    random: SmallRng,
}

impl Worker {
    /// The `number` makes its choices its own.
    pub fn new(connection: Connection, number: usize) -> Worker {
        Worker {
            connection,
            random: SmallRng::seed_from_u64(number as u64),
        }
    }

    /// Does it once. `false`: there is no file left to do it with.
    pub async fn act(&mut self, operation: Operation, stock: &Stock) -> Result<bool, String> {
        match operation {
            Operation::Stat | Operation::StatFollower => self.stat(stock).await?,
            Operation::List => {
                let found = self.connection.list(LIST).await?;
                if found != LISTED {
                    return Err(format!("{LIST}: {found} files instead of {LISTED}"));
                }
            }
            Operation::Mixed if self.creates_next() => self.create(stock).await?,
            Operation::Mixed => self.stat(stock).await?,
            Operation::Create => self.create(stock).await?,
            Operation::Delete => {
                let Some(file) = stock.take(Supply::Empty) else {
                    return Ok(false);
                };
                self.connection.delete(&file).await?;
            }
            Operation::Allocate => {
                let Some(mut file) = stock.take(Supply::Empty) else {
                    return Ok(false);
                };
                self.connection.allocate(&mut file).await?;
                stock.of(Supply::Allocated).push(file);
            }
            Operation::Finalize => {
                let Some(file) = stock.take(Supply::Allocated) else {
                    return Ok(false);
                };
                self.connection.finalize(&file).await?;
            }
        }
        Ok(true)
    }

    /// What a client of the mixed load does next: one create for four stats.
    pub fn creates_next(&mut self) -> bool {
        self.random.random_range(0..5) == 0
    }

    async fn stat(&mut self, stock: &Stock) -> Result<(), String> {
        let chosen = self.random.random_range(0..stock.seen.len());
        self.connection.stat(&stock.seen[chosen]).await
    }

    async fn create(&mut self, stock: &Stock) -> Result<(), String> {
        let file = File::new(MADE, stock.next.fetch_add(1, Ordering::Relaxed));
        self.connection.create(&file).await?;
        stock.of(Supply::Empty).push(file);
        Ok(())
    }
}
