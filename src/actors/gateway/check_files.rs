//! CheckFiles: an operator's look at every file, a page at a time, against what DataServers report.
//!
//! Each page is one read transaction on a thread of its own, with the reports of that moment, and ends
//! early enough that its answer comes in time and has a moderate size. The walk goes by the parts of
//! the paths in byte order (`/a`, `/a/b`, `/a-b`), so the last path of a page is all that the next one
//! needs to go on: no file that was there all the time is left out or comes twice.

use std::collections::HashMap;
use std::time::Instant;

use prost::Message;

use super::reads::{LookError, look_up};
use super::replication_info::owned_run;
use super::service::{Call, Shared};
use super::status::Failure;
use crate::actors::data_servers::messages::Reports;
use crate::domain::census::{BlockView, Census, Health};
use crate::domain::command::Refusal;
use crate::domain::ids::ServerId;
use crate::domain::path::CleanPath;
use crate::domain::state::{BlockRun, Entry, ReadTables, WriteState};
use crate::proto::admin::{
    BlockProblem, CheckFilesRequest, CheckFilesResponse, FileCounts, FileProblem, FileState,
};
use crate::storage::StorageError;
use crate::storage::tables::StateView;

/// Files in a page at most.
const PAGE_FILES: u64 = 5_000;

/// Blocks in a page, but for those of its last file.
const PAGE_BLOCKS: u64 = 200_000;

/// Bytes of described problems in a page, but for those of its last file. Clients take 4 MiB.
const PAGE_BYTES: usize = 1 << 20;

/// Blocks of a file that are described.
const BLOCKS_DESCRIBED: usize = 16;

impl Shared {
    pub(super) async fn check_files(
        &self,
        call: &Call,
        request: CheckFilesRequest,
    ) -> Result<CheckFilesResponse, Failure> {
        let path = match request.path.as_str() {
            "" => CleanPath::root(),
            given => CleanPath::parse(given)?,
        };
        let after = match request.after.as_str() {
            "" => None,
            given => Some(below(&path, CleanPath::parse(given)?)?),
        };
        self.lead_for_sure(call).await?;
        let reports = self.reports(call).await?;
        if !reports.complete {
            // A new leader would call missing what it has only not heard of.
            return Err(Failure::NotReady(
                "the leader is new and waits for the reports of the DataServers",
            ));
        }
        let now = Instant::now();
        let time = call.deadline.for_handler().saturating_duration_since(now);
        let page = Page::new(&reports, request.max_problems, now + time / 2);
        self.look_aside(call, move |view| page.fill(view, &path, after.as_ref()))
            .await
    }
}

/// Checks that a page of `path` can begin after `after`.
fn below(path: &CleanPath, after: CleanPath) -> Result<CleanPath, Refusal> {
    let inside = {
        let mut names = after.names();
        path.names().all(|name| names.next() == Some(name))
    };
    match inside {
        true => Ok(after),
        false => Err(Refusal::invalid_argument(format!("not below {path}: {after}"))),
    }
}

/// A page on its way to be filled.
struct Page {
    census: Census,
    addresses: HashMap<ServerId, String>,
    max_problems: usize,
    /// When it must come to its end, full or not.
    until: Instant,
    problem_bytes: usize,
    answer: CheckFilesResponse,
    counts: FileCounts,
}

impl Page {
    fn new(reports: &Reports, max_problems: u32, until: Instant) -> Self {
        let servers = reports.servers.iter();
        Page {
            census: Census::from(reports),
            addresses: servers
                .map(|report| (report.server, report.addr.clone()))
                .collect(),
            max_problems: max_problems as usize,
            until,
            problem_bytes: 0,
            answer: CheckFilesResponse::default(),
            counts: FileCounts::default(),
        }
    }

    /// With the file at `path`, or with files below the directory at `path`, which come after `after`.
    fn fill(
        mut self,
        view: &StateView<'_>,
        path: &CleanPath,
        after: Option<&CleanPath>,
    ) -> Result<CheckFilesResponse, LookError> {
        let entry = look_up(view, path)?;
        if entry.is_directory() {
            let after: Vec<&str> = after.map_or_else(Vec::new, |after| {
                after.names().skip(path.names().count()).collect()
            });
            let mut last = CleanPath::root();
            let all = view.for_each_file_after(entry.inode, path, &after, &mut |path, file| {
                self.add(view, path, file)?;
                last = path.clone();
                Ok(!self.is_full())
            })?;
            if !all {
                self.answer.next = last.to_string();
            }
        } else if after.is_none() {
            self.add(view, path, &entry)?;
        }
        self.answer.counts = Some(self.counts);
        Ok(self.answer)
    }

    fn is_full(&self) -> bool {
        self.counts.files >= PAGE_FILES
            || self.counts.blocks >= PAGE_BLOCKS
            || self.problem_bytes >= PAGE_BYTES
            || Instant::now() >= self.until
    }

    fn add(&mut self, view: &StateView<'_>, path: &CleanPath, file: &Entry) -> Result<(), StorageError> {
        self.counts.files += 1;
        let Some(owned) = owned_run(view, file)? else {
            self.counts.healthy += 1;
            return Ok(());
        };
        match owned.write {
            WriteState::Open(_) => {
                self.counts.being_written += 1;
                return Ok(());
            }
            WriteState::Written { .. } => {}
        }
        let seen = self.examine(view, &owned.run)?;
        self.counts.blocks += owned.run.count;
        self.counts.bytes += file.size;
        let (count, state) = match seen.worst {
            Health::Healthy => (&mut self.counts.healthy, FileState::FileHealthy),
            Health::OverReplicated => (&mut self.counts.over_replicated, FileState::FileOverReplicated),
            Health::UnderReplicated => (&mut self.counts.under_replicated, FileState::FileUnderReplicated),
            Health::Missing => (&mut self.counts.missing, FileState::FileMissing),
        };
        *count += 1;
        self.counts.corrupt += u64::from(seen.corrupt);
        if seen.bad_blocks > 0 && self.answer.problems.len() < self.max_problems {
            let problem = FileProblem {
                path: path.to_string(),
                inode: file.inode.0,
                size: i64::try_from(file.size).unwrap_or(i64::MAX),
                expected_replicas: owned.run.replication,
                state: state.into(),
                blocks: seen.described,
                bad_blocks: seen.bad_blocks,
            };
            self.problem_bytes += problem.encoded_len();
            self.answer.problems.push(problem);
        }
        Ok(())
    }

    fn examine(&self, view: &StateView<'_>, run: &BlockRun) -> Result<Examined, StorageError> {
        let moved = view.moved_in(run.first, run.count)?;
        let mut blocks = self.census.views(run, &moved);
        let mut seen = Examined {
            worst: Health::Healthy,
            corrupt: false,
            bad_blocks: 0,
            described: Vec::new(),
        };
        while let Some(block) = blocks.next() {
            let health = block.health();
            if health == Health::Healthy && block.corrupt.is_empty() {
                continue;
            }
            seen.worst = seen.worst.max(health);
            seen.corrupt |= !block.corrupt.is_empty();
            seen.bad_blocks += 1;
            if seen.described.len() < BLOCKS_DESCRIBED {
                seen.described
                    .push(self.describe(&block, block.block.0 - run.first.0));
            }
        }
        Ok(seen)
    }

    fn describe(&self, block: &BlockView<'_>, index: u64) -> BlockProblem {
        BlockProblem {
            block_id: block.block.0,
            index,
            live: self.named(block.good.iter().copied()),
            missing: self.named(block.missing()),
            corrupt: self.named(block.corrupt.iter().copied()),
            surplus: self.named(block.surplus()),
        }
    }

    fn named(&self, servers: impl Iterator<Item = ServerId>) -> Vec<String> {
        servers
            .filter_map(|server| self.addresses.get(&server).cloned())
            .collect()
    }
}

/// What was seen of one file's blocks.
struct Examined {
    worst: Health,
    corrupt: bool,
    bad_blocks: u64,
    described: Vec<BlockProblem>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::testing::TestState;
    use crate::domain::command::Op;

    #[actix::test]
    async fn a_page_whose_time_is_over_still_goes_one_file_further() {
        let state = TestState::empty();
        for name in ["/a", "/b", "/c"] {
            let path = CleanPath::parse(name).unwrap();
            state
                .apply(Op::Create {
                    path,
                    directory: false,
                })
                .unwrap();
        }
        let mut after = None;
        for (next, files) in [("/a", 1), ("/b", 1), ("/c", 1), ("", 0)] {
            let page = Page::new(&Reports::default(), 10, Instant::now());
            let filled = state.reader().read(|view| {
                let filled = page.fill(view, &CleanPath::root(), after.as_ref());
                Ok(filled.unwrap_or_else(|_| panic!("no page")))
            });
            let filled = filled.unwrap();
            assert_eq!(
                (filled.next.as_str(), filled.counts.unwrap().files),
                (next, files)
            );
            after = CleanPath::parse(&filled.next).ok();
        }
    }
}
