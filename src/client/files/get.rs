//! Reading a file: its blocks come from DataServers, several at once, and go on in order.
//!
//! A block is read from another replica when one fails. What is handed on is digested on the way, and the end is
//! only reached when length and digest are those of the file.

use std::io::Write;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use md5::{Digest, Md5};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};

use super::data_servers::{DataServers, ReadFailure};
use super::layout::Layout;
use super::temporary::Temporary;
use super::{Files, Progress, TransferError, hex, joined};
use crate::client::Error;
use crate::proto::dfs::{BlockLocations, FileType, StatInfo};

/// How often every replica of a block is tried.
const ROUNDS: u32 = 3;

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// In bytes.
    pub size: u64,
    /// The digest of what was read, in hex.
    pub md5: String,
    /// Whether the cluster knows a digest and it is this one; false when it knows none.
    pub verified: bool,
}

/// One block in memory, in the pieces in which it came, and its place there.
struct Block {
    chunks: Vec<Bytes>,
    length: u64,
    place: OwnedSemaphorePermit,
}

impl Files {
    /// Fetches the file at `path` to `local`, which appears, or is replaced, when everything is there. A file that
    /// is overwritten meanwhile is fetched once more.
    ///
    /// # Errors
    /// `local` is as it was. [`TransferError::Local`], [`TransferError::DataServers`] (no replica of a block can be
    /// read), [`TransferError::Changed`], [`TransferError::Damaged`], [`Error::NotFound`],
    /// [`Error::FailedPrecondition`] (it is a directory).
    pub async fn get(
        &self,
        path: &str,
        local: &Path,
        progress: Progress<'_>,
    ) -> Result<Fetched, TransferError> {
        let mut stat = self.stat_file(path).await?;
        let mut begun_again = false;
        loop {
            let place = local.to_path_buf();
            let made = spawn_blocking(move || Temporary::beside(&place)).await;
            let (temporary, file) = joined(made).map_err(TransferError::local(local))?;
            let moved = AtomicI64::new(0);
            let counted = |bytes| {
                moved.fetch_add(bytes, Ordering::Relaxed);
                progress(bytes);
            };
            let fetched = self.read(path, &stat, file, local, &counted).await;
            let error = match fetched {
                Ok(fetched) => {
                    let persisted = spawn_blocking(|| temporary.persist()).await;
                    joined(persisted).map_err(TransferError::local(local))?;
                    return Ok(fetched);
                }
                Err(error @ (TransferError::Local { .. } | TransferError::Meta(_))) => return Err(error),
                Err(error) => error,
            };
            drop(temporary);
            let now = self.stat_file(path).await?;
            if now == stat {
                return Err(error);
            }
            if begun_again {
                return Err(changed(path));
            }
            progress(-moved.into_inner());
            (stat, begun_again) = (now, true);
        }
    }

    /// Writes the content of the file at `path` to `sink` as it comes, in order. `name` is what errors call
    /// `sink`.
    ///
    /// # Errors
    /// A part, or (when [`TransferError::Damaged`]) everything, may have been written; otherwise those of [`Self::get`].
    pub async fn read_to(
        &self,
        path: &str,
        sink: impl Write + Send + 'static,
        name: &Path,
        progress: Progress<'_>,
    ) -> Result<Fetched, TransferError> {
        let stat = self.stat_file(path).await?;
        let fetched = self.read(path, &stat, sink, name, progress).await;
        match fetched {
            Err(TransferError::DataServers(_) | TransferError::Damaged(_))
                if self.stat_file(path).await? != stat =>
            {
                Err(changed(path))
            }
            fetched => fetched,
        }
    }

    /// What is known about a file.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::FailedPrecondition`] when it is no file.
    pub async fn stat_file(&self, path: &str) -> Result<StatInfo, TransferError> {
        let mut stat = self.client.stat(path).await?;
        if stat.r#type() != FileType::File {
            return Err(Error::FailedPrecondition(format!("not a file: {path}")).into());
        }
        // Replicas come and go; the content is the same.
        stat.replica_data.clear();
        Ok(stat)
    }

    pub(super) async fn read(
        &self,
        path: &str,
        stat: &StatInfo,
        sink: impl Write + Send + 'static,
        name: &Path,
        progress: Progress<'_>,
    ) -> Result<Fetched, TransferError> {
        // Sizes below 0 are none; a file that is not finalized has size 0, whatever blocks it has.
        let size = u64::try_from(stat.size).unwrap_or(0);
        let (sender, receiver) = mpsc::channel(1);
        let writing = spawn_blocking(move || write_all(sink, receiver));
        let sent = match size {
            0 => {
                drop(sender);
                Ok(())
            }
            size => self.send_blocks(path, size, sender, progress).await,
        };
        let written = joined(writing.await);
        // The sink's error is why blocks could not be sent on, not the other way round.
        let (length, md5) = written.map_err(TransferError::local(name))?;
        sent?;
        let expected = Some(&stat.md5).filter(|md5| !md5.is_empty());
        if length != size {
            return Err(TransferError::Damaged(format!(
                "{path}: damaged: {length} bytes instead of {size}"
            )));
        }
        if let Some(expected) = expected.filter(|expected| !expected.eq_ignore_ascii_case(&md5)) {
            return Err(TransferError::Damaged(format!(
                "{path}: damaged: MD5 {md5} instead of {expected}"
            )));
        }
        Ok(Fetched {
            size,
            md5,
            verified: expected.is_some(),
        })
    }

    async fn send_blocks(
        &self,
        path: &str,
        size: u64,
        sender: mpsc::Sender<Block>,
        progress: Progress<'_>,
    ) -> Result<(), TransferError> {
        let blocks = self.client.block_locations(path).await?.block_locations;
        let layout = Layout::of(size, blocks.len())
            .map_err(|message| TransferError::Damaged(format!("{path}: {message}")))?;
        // Each block is read by a task of its own, which goes on while the sink is waited for: a DataServer
        // hangs up on readers that stand still.
        let reads = stream::iter((0..).zip(blocks)).then(async |(index, block)| {
            let place = self.place(&layout).await?;
            let (servers, pause) = (self.data_servers.clone(), self.options.pause);
            let length = layout.length(index);
            Ok(Task(tokio::spawn(async move {
                let chunks = read_block(&servers, &block, index, length, pause).await?;
                Ok(Block {
                    chunks,
                    length,
                    place,
                })
            })))
        });
        let blocks = reads
            .map(async |task: Result<Task<_>, TransferError>| task?.await)
            .buffered(self.options.jobs);
        let mut blocks = std::pin::pin!(blocks);
        while let Some(block) = blocks.next().await {
            let block = block.map_err(|error| match error {
                TransferError::DataServers(message) => {
                    TransferError::DataServers(format!("{path}: {message}"))
                }
                other => other,
            })?;
            let length = block.length;
            if sender.send(block).await.is_err() {
                break;
            }
            progress(i64::try_from(length).unwrap_or(i64::MAX));
        }
        Ok(())
    }
}

fn changed(path: &str) -> TransferError {
    TransferError::Changed(format!("{path} was changed while it was read"))
}

/// Writes and digests blocks until there are no more. Returns their length together, and the digest.
fn write_all(mut sink: impl Write, mut blocks: mpsc::Receiver<Block>) -> std::io::Result<(u64, String)> {
    let (mut length, mut md5) = (0, Md5::new());
    while let Some(block) = blocks.blocking_recv() {
        for chunk in &block.chunks {
            md5.update(chunk);
            sink.write_all(chunk)?;
        }
        length += block.length;
        drop(block.place);
    }
    sink.flush()?;
    Ok((length, hex(&md5.finalize())))
}

/// Reads one block from whichever replica has it. The blocks of a file begin with different replicas, so that
/// all DataServers work.
async fn read_block(
    servers: &DataServers,
    block: &BlockLocations,
    index: u64,
    length: u64,
    pause: Duration,
) -> Result<Vec<Bytes>, TransferError> {
    let mut order = block.locations.clone();
    if let Some(first) = index.checked_rem(order.len() as u64) {
        order.rotate_left(usize::try_from(first).unwrap_or(0));
    }
    let mut troubles = Vec::new();
    for round in 0..ROUNDS {
        if round > 0 {
            tokio::time::sleep(pause * round).await;
        }
        servers.good_first(&mut order);
        troubles.clear();
        let mut worth_another = false;
        for addr in &order {
            let trouble = match servers.read(addr, block.block_id, length).await {
                Ok(chunks) => return Ok(chunks),
                Err(ReadFailure::NotThere) => "it does not have it".to_string(),
                Err(ReadFailure::Damaged(message)) => message,
                Err(ReadFailure::Broken(message)) => {
                    servers.failed(addr);
                    worth_another = true;
                    message
                }
            };
            log::debug!("block {} from {addr}: {trouble}", block.block_id);
            troubles.push(format!("{addr}: {trouble}"));
        }
        if !worth_another {
            break;
        }
    }
    let troubles = match troubles.is_empty() {
        true => "no DataServer has it".to_string(),
        false => troubles.join("; "),
    };
    let id = block.block_id;
    Err(TransferError::DataServers(format!(
        "block {id} cannot be read: {troubles}"
    )))
}

/// A task that ends when nobody waits for it any more.
struct Task<T>(JoinHandle<Result<T, TransferError>>);

impl<T> Future for Task<T> {
    type Output = Result<T, TransferError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let done = std::task::ready!(Pin::new(&mut self.0).poll(context));
        Poll::Ready(done.unwrap_or_else(|died| Err(TransferError::DataServers(died.to_string()))))
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
