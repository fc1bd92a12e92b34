//! How a pass over all blocks runs: when it may begin, and on which thread, how fast.
//!
//! A pass must know enough: the reports are complete, and this node's state holds everything that was
//! committed when they were taken, which a majority has confirmed ([`Entry::enter`]). It then reads
//! the state in slices, each from a read transaction of its own, on a thread of its own, and rests after
//! each for as long as it took: at most half of a core is taken from the clients.
//!
//! Invariant: a pass that is cancelled ends within a slice and a rest, and has no result.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use actix::Recipient;

use crate::actors::data_servers::messages::{GetReports, Reports};
use crate::actors::raft_node::messages::{GetReadIndex, ReadError};
use crate::domain::ids::BlockId;
use crate::domain::slices::SliceBounds;
use crate::storage::{StateReader, StorageError};

/// What is read and judged before clients get their turn: some milliseconds of work.
pub(super) const SLICE: SliceBounds = SliceBounds {
    records: 2_000,
    blocks: 200_000,
};

/// The longest rest after a slice, and so the longest that a stopping server waits for a resting pass.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// How long a neighbour may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The first number that a block can have.
pub(super) const FIRST_BLOCK: BlockId = BlockId(1);

/// Whether a pass shall stop; the pass itself holds one. See [`Running`].
#[derive(Clone, Debug, Default)]
pub(super) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A pass under way, from its first question to its last proposal. Dropping it cancels the pass.
#[derive(Debug)]
pub(super) struct Running {
    /// The term that it is for.
    pub term: u64,
    cancel: Cancel,
}

impl Running {
    pub fn new(term: u64) -> (Self, Cancel) {
        let cancel = Cancel::default();
        let running = Running {
            term,
            cancel: cancel.clone(),
        };
        (running, cancel)
    }

    pub fn cancel(&self) {
        self.cancel.cancel();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Why a pass does not begin, or has no result. It is tried again at the next tick.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoPass {
    /// A leader that is new has not heard all DataServers yet.
    #[error("not all DataServers have reported to this leader yet")]
    WaitsForReports,
    /// Something that was committed may not be in the state yet.
    #[error("log entry {index} is not applied yet")]
    Behind { index: u64 },
    /// No majority confirmed that this node leads.
    #[error("{0}")]
    NotConfirmed(#[from] ReadError),
    /// A neighbour has stopped, or is too busy to answer.
    #[error("no answer from {0}")]
    NoAnswer(&'static str),
    /// The node stops leading, or stops.
    #[error("cancelled")]
    Cancelled,
    /// The state cannot be read.
    #[error("{0}")]
    Storage(#[from] StorageError),
    /// The thread of the pass is gone.
    #[error("the pass broke off: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

impl NoPass {
    /// Says why there is none: aloud only what does not pass by itself.
    pub fn log(&self, what: &str) {
        match self {
            NoPass::WaitsForReports
            | NoPass::Behind { .. }
            | NoPass::NotConfirmed(_)
            | NoPass::NoAnswer(_)
            | NoPass::Cancelled => log::debug!("{what} waits: {self}"),
            NoPass::Storage(_) | NoPass::Thread(_) => log::error!("{what} failed: {self}"),
        }
    }
}

/// What a pass asks before it begins.
#[derive(Clone)]
pub(super) struct Entry {
    pub reports: Recipient<GetReports>,
    pub read_index: Recipient<GetReadIndex>,
    pub state: StateReader,
}

impl Entry {
    /// The reports, once the state is known to hold everything that was committed when they were taken:
    /// the records of every block that they name, so that one without a record has none.
    pub async fn enter(&self) -> Result<Reports, NoPass> {
        // Clones: actix never wakes a sender that met a full mailbox twice.
        let reports = reports(self.reports.clone()).await?;
        if !reports.complete {
            return Err(NoPass::WaitsForReports);
        }
        let deadline = Instant::now() + PATIENCE;
        let read_index = self.read_index.clone();
        let asked = tokio::time::timeout_at(deadline.into(), read_index.send(GetReadIndex { deadline }));
        let Ok(Ok(index)) = asked.await else {
            return Err(NoPass::NoAnswer("the raft node"));
        };
        let index = index?;
        let applied = self.state.read(|view| view.progress())?.applied;
        if applied.map_or(0, |applied| applied.index) < index {
            return Err(NoPass::Behind { index });
        }
        Ok(reports)
    }
}

/// What every DataServer reported last, complete or not.
pub(super) async fn reports(data_servers: Recipient<GetReports>) -> Result<Reports, NoPass> {
    match tokio::time::timeout(PATIENCE, data_servers.send(GetReports)).await {
        Ok(Ok(reports)) => Ok(reports),
        Ok(Err(_)) | Err(_) => Err(NoPass::NoAnswer("data_servers")),
    }
}

/// Runs `step` from block to block until it says that there is no next one, resting in between.
pub(super) fn for_each_slice(
    cancel: &Cancel,
    mut step: impl FnMut(BlockId) -> Result<Option<BlockId>, StorageError>,
) -> Result<(), NoPass> {
    let mut from = FIRST_BLOCK;
    loop {
        if cancel.is_cancelled() {
            return Err(NoPass::Cancelled);
        }
        let begun = Instant::now();
        match step(from)? {
            None => return Ok(()),
            Some(next) => from = next,
        }
        std::thread::sleep(begun.elapsed().min(LONGEST_REST));
    }
}
