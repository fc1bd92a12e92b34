//! The tree that is measured: directories of a thousand files, known by their numbers alone.
//!
//! Filled by `loader`; what clients of a closed loop do in it is here. Nobody holds ten million names: a file's
//! path follows from its number.

use std::sync::atomic::{AtomicU64, Ordering};

use minfs::proto::dfs::FileType;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::operation::Operation;
use crate::system::Connection;

/// Files in a directory.
pub const IN_A_DIRECTORY: u64 = 1000;

/// The directory of a file that was loaded.
pub fn directory(number: u64) -> String {
    format!("/directory-{:06}", number / IN_A_DIRECTORY)
}

/// The path of a file that was loaded.
pub fn path(number: u64) -> String {
    format!("{}/file-{number:010}", directory(number))
}

/// The files of one system.
pub struct Stock {
    /// Files that were loaded.
    pub files: u64,
    /// Where new files go to; it is there.
    pub made: String,
    next: AtomicU64,
}

impl Stock {
    /// Of a tree of so many files; new ones go to a directory that is made here, of a name of its own.
    pub async fn new(connection: &mut Connection, files: u64) -> Result<Stock, String> {
        let made = format!("/made-{:016x}", rand::random::<u64>());
        let answer = connection.create(&made, FileType::Directory).await;
        answer.map_err(|status| format!("CreateNode of {made}: {status}"))?;
        Ok(Stock {
            files,
            made,
            next: AtomicU64::new(0),
        })
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

    /// Does it once. It never runs out of files, so this is always `true`.
    pub async fn act(&mut self, operation: Operation, stock: &Stock) -> Result<bool, String> {
        match operation {
            Operation::Stat | Operation::StatFollower => {
                let number = self.random.random_range(0..stock.files);
                self.connection.stat(&path(number)).await?;
            }
            Operation::List => {
                let number = self.random.random_range(0..stock.files);
                let found = self.connection.list(&directory(number)).await?;
                if found as u64 != IN_A_DIRECTORY {
                    return Err(format!("{}: {found} files", directory(number)));
                }
            }
            Operation::Create => {
                let number = stock.next.fetch_add(1, Ordering::Relaxed);
                let path = format!("{}/file-{number:010}", stock.made);
                let answer = self.connection.create(&path, FileType::File).await;
                answer.map_err(|status| format!("CreateNode of {path}: {status}"))?;
            }
            Operation::Mixed | Operation::Delete | Operation::Allocate | Operation::Finalize => {
                return Err(format!("{} is not measured here", operation.label()));
            }
        }
        Ok(true)
    }
}
