//! Files: their bytes on the way to and from DataServers.
//!
//! MetaServers say which blocks a file has and where they are; [`Files`] moves the blocks, several at
//! once, and is what `minfs put`, `get`, `cat` and `cp` are made of. The invariants: a file becomes visible,
//! here or there, only when it is complete; and no more than `jobs` blocks are in memory at a time.
//!
//! - `layout`: how a file is cut into blocks
//! - `data_servers`: one connection per DataServer, and one attempt to write or read one block
//! - `put`, `get`: whole files, with other replicas where one fails
//! - `copy`: from one remote file to another
//! - `temporary`: a local file that is there when it is complete, and not before
//! - `error`: what can go wrong

mod copy;
mod data_servers;
mod error;
mod get;
mod layout;
mod put;
mod temporary;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::data_servers::DataServers;
pub use self::error::TransferError;
pub use self::get::Fetched;
use self::layout::Layout;
pub use self::put::{Content, Stored};
use super::Client;

/// A block of this size or less takes one place among those under way; a larger one takes more.
const PLACE: u64 = 64 << 20;

/// How blocks are moved.
#[derive(Debug, Clone)]
pub struct TransferOptions {
    /// How many blocks are under way at once, those of all files together; fewer when blocks are larger
    /// than 64 MiB. Default: 4.
    pub jobs: usize,
    /// A DataServer that takes or gives nothing for so long has failed. Default: 20 s.
    pub stall: Duration,
    /// How long to wait before a block is tried once more on all its DataServers; twice as long before
    /// the last time. Default: 500 ms.
    pub pause: Duration,
}

impl Default for TransferOptions {
    fn default() -> Self {
        Self {
            jobs: 4,
            stall: Duration::from_secs(20),
            pause: Duration::from_millis(500),
        }
    }
}

/// Is told how many bytes were moved; fewer than none when a file is begun again.
pub type Progress<'a> = &'a (dyn Fn(i64) + Sync);

/// Moves whole files. What one transfer learnt about broken DataServers, the next ones know.
#[derive(Debug)]
pub struct Files {
    client: Client,
    data_servers: Arc<DataServers>,
    options: TransferOptions,
    places: Arc<Semaphore>,
}

impl Files {
    /// Moves files of the cluster that `client` talks to. Nothing is sent yet.
    pub fn new(client: Client, options: TransferOptions) -> Self {
        let jobs = options.jobs.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            client,
            data_servers: Arc::new(DataServers::new(options.stall)),
            places: Arc::new(Semaphore::new(jobs)),
            options: TransferOptions { jobs, ..options },
        }
    }

    /// The same client and DataServers, counting blocks apart.
    fn with_own_places(&self) -> Self {
        Self {
            client: self.client.clone(),
            data_servers: self.data_servers.clone(),
            options: self.options.clone(),
            places: Arc::new(Semaphore::new(self.options.jobs)),
        }
    }

    /// Waits until one more block of `layout` may be held in memory. Places are given in the order in which
    /// they were asked for, so that the earliest block of a file is never the one that waits for the others.
    async fn place(&self, layout: &Layout) -> Result<OwnedSemaphorePermit, TransferError> {
        let most = u64::try_from(self.options.jobs).unwrap_or(u64::MAX);
        let wanted = layout.block.div_ceil(PLACE).clamp(1, most);
        let places = self.places.clone();
        let place = places.acquire_many_owned(u32::try_from(wanted).unwrap_or(u32::MAX));
        place
            .await
            .map_err(|closed| TransferError::DataServers(closed.to_string()))
    }
}

/// Hex digits of a digest, as `md5` fields have them.
fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a blocking task came to; one that died is an error like any other.
fn joined<T>(done: Result<io::Result<T>, tokio::task::JoinError>) -> io::Result<T> {
    done.unwrap_or_else(|died| Err(io::Error::other(died)))
}
