//! One block on its way to several disks at once: this server's, and those of other DataServers.
//!
//! The service feeds a [`Pipeline`] with the data as they arrive. Each place (a [`Sink`]) has a task and a
//! short queue of its own; the bytes are shared between them. The slowest one sets the pace, but one that
//! makes no progress for `stall_timeout` is given up, so that it cannot hold up the others for ever.
//!
//! Memory: a sink holds [`QUEUE`] pieces in its queue (all sinks the same ones) and, on the way to the disk,
//! [`BATCH`] bytes more, or on the way to another server what hyper takes in advance (1 MiB at most). So a
//! block of any size takes about 1 MiB for each place when the pieces have 64 KiB, as in the contract; the
//! largest piece that tonic accepts has 4 MiB.
//!
//! The invariant: a place takes the block as whole only after [`Pipeline::finish`]. If the pipeline is
//! dropped before, the local file is removed, and calls to others are cancelled, not ended: to those an
//! end would mean that the block is complete.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::block_store::BlockWriter;
use super::peers::Peer;
use crate::proto::dfs::write_block_request::Content;
use crate::proto::dfs::{WriteBlockMetadata, WriteBlockRequest};

/// Pieces that wait for one sink.
const QUEUE: usize = 8;

/// Bytes that are collected for one write to the disk.
pub(super) const BATCH: usize = 256 << 10;

/// For how many stall timeouts a sink may take to say that it has everything on its disk.
const PATIENCE_AT_THE_END: u32 = 3;

/// Why a place does not have the block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    DiskFull(String),
    #[error("{0}")]
    Disk(String),
    #[error("{0}")]
    Replica(String),
    #[error("no progress for {0:?}")]
    Stalled(Duration),
    #[error("given up")]
    GivenUp,
}

/// What of the local disk's troubles is told to whom.
pub(super) fn disk_failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Failure::DiskFull(error.to_string()),
        _ => {
            log::warn!("the disk fails: {error}");
            Failure::Disk(error.to_string())
        }
    }
}

enum Part {
    Data(Bytes),
    /// That was all, and it is as it should be.
    End,
}

/// One place that the block goes to.
struct Sink {
    addr: String,
    /// None: takes nothing more.
    feed: Option<mpsc::Sender<Part>>,
    task: Task,
    stalled: bool,
}

/// A task that ends with its handle.
struct Task(JoinHandle<Result<(), Failure>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where one block goes.
pub(super) struct Pipeline {
    sinks: Vec<Sink>,
    stall_timeout: Duration,
}

/// What became of it at one place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub addr: String,
    pub result: Result<(), Failure>,
}

impl Pipeline {
    pub fn new(stall_timeout: Duration) -> Pipeline {
        Pipeline {
            sinks: Vec::new(),
            stall_timeout,
        }
    }

    /// Adds this server's disk, under its own address.
    pub fn add_local(&mut self, addr: &str, writer: BlockWriter) {
        self.add(addr, |feed| store(writer, feed));
    }

    /// Adds another server, which is to store the block and not to pass it on.
    pub fn add_replica(&mut self, addr: &str, peer: Peer, metadata: &WriteBlockMetadata) {
        let metadata = WriteBlockMetadata {
            replica_locations: Vec::new(),
            ..metadata.clone()
        };
        self.add(addr, |feed| pass_on(peer, metadata, feed));
    }

    /// Adds a place that failed before it began.
    pub fn add_failed(&mut self, addr: &str, failure: Failure) {
        self.add(addr, |_| async { Err(failure) });
    }

    fn add<T>(&mut self, addr: &str, task: impl FnOnce(mpsc::Receiver<Part>) -> T)
    where
        T: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let (feed, fed) = mpsc::channel(QUEUE);
        self.sinks.push(Sink {
            addr: addr.to_owned(),
            feed: Some(feed),
            task: Task(tokio::spawn(task(fed))),
            stalled: false,
        });
    }

    /// Hands data to every place that still takes some. Gives whether there is any.
    pub async fn feed(&mut self, data: &Bytes) -> bool {
        let stall_timeout = self.stall_timeout;
        join_all(
            self.sinks
                .iter_mut()
                .map(|sink| sink.feed(Part::Data(data.clone()), stall_timeout)),
        )
        .await;
        self.sinks.iter().any(|sink| sink.feed.is_some())
    }

    /// Says that the block is complete, and waits for what becomes of it everywhere.
    pub async fn finish(mut self) -> Vec<Outcome> {
        let stall_timeout = self.stall_timeout;
        join_all(
            self.sinks
                .iter_mut()
                .map(|sink| sink.feed(Part::End, stall_timeout)),
        )
        .await;
        self.outcomes().await
    }

    /// What became of it where it ended already, and [`Failure::GivenUp`] or worse everywhere else.
    pub async fn give_up(mut self) -> Vec<Outcome> {
        for sink in &mut self.sinks {
            sink.feed = None;
        }
        self.outcomes().await
    }

    async fn outcomes(self) -> Vec<Outcome> {
        let patience = self.stall_timeout * PATIENCE_AT_THE_END;
        let outcomes = self
            .sinks
            .into_iter()
            .map(|sink| sink.outcome(patience, self.stall_timeout));
        join_all(outcomes).await
    }
}

impl Sink {
    async fn feed(&mut self, part: Part, stall_timeout: Duration) {
        let Some(feed) = &self.feed else { return };
        match timeout(stall_timeout, feed.send(part)).await {
            Ok(Ok(())) => (),
            // Its task has ended, and says why.
            Ok(Err(_)) => self.feed = None,
            Err(_) => {
                self.stalled = true;
                self.feed = None;
                self.task.0.abort();
            }
        }
    }

    async fn outcome(mut self, patience: Duration, stall_timeout: Duration) -> Outcome {
        let result = match timeout(patience, &mut self.task.0).await {
            _ if self.stalled => Err(Failure::Stalled(stall_timeout)),
            Ok(Ok(result)) => result,
            Ok(Err(ended)) => Err(Failure::Disk(ended.to_string())),
            Err(_) => Err(Failure::Stalled(patience)),
        };
        Outcome {
            addr: self.addr.clone(),
            result,
        }
    }
}

/// Writes to the local disk, [`BATCH`] bytes at a time: each batch is a job for a blocking thread, so that
/// a sender that is slow holds none.
async fn store(mut writer: BlockWriter, mut feed: mpsc::Receiver<Part>) -> Result<(), Failure> {
    loop {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut ended = false;
        while !ended && bytes < BATCH {
            match feed.recv().await {
                Some(Part::Data(data)) => {
                    bytes += data.len();
                    batch.push(data);
                }
                Some(Part::End) => ended = true,
                None => return Err(Failure::GivenUp),
            }
        }
        let written = tokio::task::spawn_blocking(move || {
            writer.append(&batch)?;
            if ended {
                return writer.finish().map(|()| None);
            }
            Ok(Some(writer))
        });
        match written.await {
            Ok(Ok(Some(same))) => writer = same,
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(e)) => return Err(disk_failure(&e)),
            Err(ended) => return Err(Failure::Disk(ended.to_string())),
        }
    }
}

/// Sends to another server.
async fn pass_on(
    mut peer: Peer,
    metadata: WriteBlockMetadata,
    feed: mpsc::Receiver<Part>,
) -> Result<(), Failure> {
    let ended = Arc::new(AtomicBool::new(false));
    let (abandon, abandoned) = oneshot::channel();
    let call = peer.write_block(body(metadata, feed, ended.clone(), abandon));
    let answer = tokio::select! {
        answer = call => answer.map_err(|status| Failure::Replica(describe(&status)))?.into_inner(),
        // Dropping the call resets its stream.
        Ok(()) = abandoned => return Err(Failure::GivenUp),
    };
    match (answer.success, ended.load(Ordering::SeqCst)) {
        (true, true) => Ok(()),
        (true, false) => Err(Failure::Replica(
            "it answered before it had everything".to_owned(),
        )),
        (false, _) => Err(Failure::Replica("it says that it does not have it".to_owned())),
    }
}

/// The messages of one call. Ends only when the block is complete; otherwise it goes on for ever, and
/// tells the caller to cancel the call.
fn body(
    metadata: WriteBlockMetadata,
    feed: mpsc::Receiver<Part>,
    ended: Arc<AtomicBool>,
    abandon: oneshot::Sender<()>,
) -> impl Stream<Item = WriteBlockRequest> + Send + 'static {
    let message = |content| WriteBlockRequest {
        content: Some(content),
    };
    let start = (Some(metadata), feed, ended, abandon);
    futures::stream::unfold(start, move |(metadata, mut feed, ended, abandon)| async move {
        if let Some(metadata) = metadata {
            return Some((message(Content::Metadata(metadata)), (None, feed, ended, abandon)));
        }
        match feed.recv().await {
            Some(Part::Data(data)) => Some((message(Content::ChunkData(data)), (None, feed, ended, abandon))),
            Some(Part::End) => {
                ended.store(true, Ordering::SeqCst);
                None
            }
            None => {
                let _ = abandon.send(());
                futures::future::pending().await
            }
        }
    })
}

/// What a status says, in one line.
pub(super) fn describe(status: &tonic::Status) -> String {
    use std::error::Error as _;
    let mut root = status.source();
    while let Some(deeper) = root.and_then(|error| error.source()) {
        root = Some(deeper);
    }
    match root.map(ToString::to_string) {
        Some(root) if !status.message().contains(&root) => format!("{}: {root}", status.message()),
        _ => status.message().to_owned(),
    }
}
