//! How many replicas every block should have, and how many DataServers reported it.
//!
//! The record says where replicas should be; the reports, which only the leader knows, where they
//! are. A report counts while its DataServer is alive.

use std::collections::HashMap;
use std::time::Instant;

use super::forward;
use super::reads::{Locator, LookError, look_up};
use super::service::{Call, Shared};
use super::status::Failure;
use crate::actors::data_servers::messages::ServerReport;
use crate::domain::ids::InodeId;
use crate::domain::namespace::run_of_file;
use crate::domain::path::CleanPath;
use crate::domain::state::{BlockRun, Entry};
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
        let reports = self.reports(call).await?;
        let until = call.deadline.for_handler();
        let files = self
            .look_aside(call, move |view| inspect(view, &path, &reports, until))
            .await?;
        Ok(counted(files))
    }
}

/// The file at `path`, or every file below the directory at `path`.
fn inspect(
    view: &StateView<'_>,
    path: &CleanPath,
    reports: &[ServerReport],
    until: Instant,
) -> Result<Vec<ReplicationStatus>, LookError> {
    let entry = look_up(view, path)?;
    let mut inspector = Inspector {
        view,
        locator: Locator::new(view),
        reports: reports.iter().filter(|report| report.alive).collect(),
    };
    if !entry.is_directory() {
        return Ok(vec![inspector.file(path, &entry)?]);
    }
    let directory: InodeId = entry.inode;
    let mut files = Vec::new();
    let all = view.for_each_file(directory, path, &mut |path, file| {
        files.push(inspector.file(path, file)?);
        // Nobody waits for the answer any more.
        Ok(Instant::now() < until)
    })?;
    if all { Ok(files) } else { Err(LookError::TooMany) }
}

struct Inspector<'v, 'e> {
    view: &'v StateView<'e>,
    locator: Locator<'v, 'e>,
    reports: Vec<&'v ServerReport>,
}

impl Inspector<'_, '_> {
    fn file(&mut self, path: &CleanPath, entry: &Entry) -> Result<ReplicationStatus, StorageError> {
        let run = run_of_file(self.view, entry)?;
        let expected = run.as_ref().map_or(0, |run| run.replication);
        let blocks = match run {
            Some(run) => self.blocks(&run)?,
            None => Vec::new(),
        };
        let counts = || blocks.iter().map(|block| block.replica_count);
        // No block lacks a replica in a file that has none.
        let least = counts().min().unwrap_or(expected);
        let status = match () {
            () if least < expected => UNDER,
            () if counts().any(|count| count > expected) => OVER,
            () => HEALTHY,
        };
        Ok(ReplicationStatus {
            path: path.to_string(),
            inode: entry.inode.0,
            size: i64::try_from(entry.size).unwrap_or(i64::MAX),
            expected_replicas: expected,
            actual_replicas: least,
            blocks,
            status: status.to_owned(),
        })
    }

    fn blocks(&mut self, run: &BlockRun) -> Result<Vec<BlockReplicationInfo>, StorageError> {
        let mut reported = self.reported(run);
        let blocks = run.blocks().map(|block| {
            let locations = reported.remove(&block.0).unwrap_or_default();
            Ok(BlockReplicationInfo {
                block_id: block.0,
                replica_count: locations.len() as u32,
                locations,
                expected_locations: self.locator.locations(run, block)?,
            })
        });
        blocks.collect()
    }

    /// Who reported which block of a run. The ids of a run follow each other, and reports are sorted.
    fn reported(&self, run: &BlockRun) -> HashMap<u64, Vec<String>> {
        let mut reported: HashMap<u64, Vec<String>> = HashMap::new();
        for report in &self.reports {
            let start = report.blocks.partition_point(|&block| block < run.first.0);
            let ours = report.blocks[start..].iter();
            for &block in ours.take_while(|&&block| block - run.first.0 < run.count) {
                let locations = reported.entry(block).or_default();
                // Sorted is not promised to mean distinct.
                if locations.last() != Some(&report.addr) {
                    locations.push(report.addr.clone());
                }
            }
        }
        reported
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
