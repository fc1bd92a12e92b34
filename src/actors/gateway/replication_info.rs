//! How many replicas every block should have, and how many DataServers reported it.
//!
//! The record says where replicas should be; the reports, which only the leader knows, where they
//! are. A report counts while its DataServer is alive; a damaged replica never does. Good replicas
//! count wherever they are.
//!
//! A file that is being written, allocated but not finalized, shows the blocks that it is to have and
//! who has them so far. None is due yet: 0 replicas are expected, and it is healthy.

use std::time::Instant;

use super::forward;
use super::reads::{Locator, LookError, look_up};
use super::service::{Call, Shared};
use super::status::Failure;
use crate::domain::census::{Census, Health};
use crate::domain::path::CleanPath;
use crate::domain::state::{BlockRun, Entry, EntryKind, OwnedRun, ReadTables, WriteState};
use crate::proto::dfs::{
    BlockReplicationInfo, GetReplicationInfoRequest, GetReplicationInfoResponse, ReplicationStatus,
};
use crate::storage::StorageError;
use crate::storage::tables::StateView;

const HEALTHY: &str = "healthy";
const UNDER: &str = "under_replicated";
const OVER: &str = "over_replicated";

impl Shared {
    pub(super) async fn get_replication_info(
        &self,
        call: &Call,
        request: GetReplicationInfoRequest,
    ) -> Result<GetReplicationInfoResponse, Failure> {
        let path = match request.path.as_str() {
            "" => CleanPath::root(),
            given => CleanPath::parse(given)?,
        };
        if let Some(leader) = self.elsewhere(call).await? {
            let (mut client, request) = self.forward(call, &leader, request)?;
            return forward::outcome(call, leader, client.get_replication_info(request)).await;
        }
        self.await_read(call).await?;
        let census = Census::from(&self.reports(call).await?);
        let until = call.deadline.for_handler();
        let files = self
            .look_aside(call, move |view| inspect(view, &path, &census, until))
            .await?;
        Ok(counted(files))
    }
}

/// The file at `path`, or every file below the directory at `path`.
fn inspect(
    view: &StateView<'_>,
    path: &CleanPath,
    census: &Census,
    until: Instant,
) -> Result<Vec<ReplicationStatus>, LookError> {
    let entry = look_up(view, path)?;
    let mut inspector = Inspector {
        view,
        locator: Locator::new(view),
        census,
    };
    if !entry.is_directory() {
        return Ok(vec![inspector.file(path, &entry)?]);
    }
    let mut files = Vec::new();
    let all = view.for_each_file(entry.inode, path, &mut |path, file| {
        files.push(inspector.file(path, file)?);
        // Nobody waits for the answer any more.
        Ok(Instant::now() < until)
    })?;
    if all { Ok(files) } else { Err(LookError::TooMany) }
}

/// The run that holds a file's content or shall hold it, if it has any, and how far its write is.
pub(super) fn owned_run(view: &StateView<'_>, entry: &Entry) -> Result<Option<OwnedRun>, StorageError> {
    match entry.kind {
        EntryKind::File {
            blocks: Some(first), ..
        } => view.run(first),
        EntryKind::File { blocks: None, .. } | EntryKind::Directory => Ok(None),
    }
}

struct Inspector<'v, 'e> {
    view: &'v StateView<'e>,
    locator: Locator<'v, 'e>,
    census: &'v Census,
}

impl Inspector<'_, '_> {
    fn file(&mut self, path: &CleanPath, entry: &Entry) -> Result<ReplicationStatus, StorageError> {
        let owned = owned_run(self.view, entry)?;
        // As long as a file is being written nothing is due yet.
        let expected_replicas = match &owned {
            Some(OwnedRun {
                run,
                write: WriteState::Written { .. },
                ..
            }) => Some(run.replication),
            Some(OwnedRun {
                write: WriteState::Open(_),
                ..
            })
            | None => None,
        };
        let (blocks, worst) = match &owned {
            Some(owned) => self.blocks(&owned.run)?,
            None => (Vec::new(), Health::Healthy),
        };
        let status = match expected_replicas.map_or(Health::Healthy, |_| worst) {
            Health::Healthy => HEALTHY,
            Health::OverReplicated => OVER,
            Health::UnderReplicated | Health::Missing => UNDER,
        };
        let least = blocks.iter().map(|block| block.replica_count).min();
        Ok(ReplicationStatus {
            path: path.to_string(),
            inode: entry.inode.0,
            size: i64::try_from(entry.size).unwrap_or(i64::MAX),
            expected_replicas: expected_replicas.unwrap_or(0),
            actual_replicas: least.unwrap_or(0),
            blocks,
            status: status.to_owned(),
        })
    }

    /// The blocks of a run, and how the worst of them fares.
    fn blocks(&mut self, run: &BlockRun) -> Result<(Vec<BlockReplicationInfo>, Health), StorageError> {
        let moved = self.view.moved_in(run.first, run.count)?;
        let mut views = self.census.views(run, &moved);
        let (mut blocks, mut worst) = (Vec::new(), Health::Healthy);
        while let Some(view) = views.next() {
            worst = worst.max(view.health());
            blocks.push(BlockReplicationInfo {
                block_id: view.block.0,
                replica_count: view.good.len() as u32,
                locations: self.locator.addresses(view.good)?,
                expected_locations: self.locator.addresses(view.expected)?,
            });
        }
        Ok((blocks, worst))
    }
}

fn counted(files: Vec<ReplicationStatus>) -> GetReplicationInfoResponse {
    let count = |status| files.iter().filter(|file| file.status == status).count() as u32;
    GetReplicationInfoResponse {
        total_files: files.len() as u32,
        healthy_files: count(HEALTHY),
        under_replicated_files: count(UNDER),
        over_replicated_files: count(OVER),
        files,
    }
}
