//! `fsck`: what is wrong with files and DataServers, and what there is to do about it.

use serde_json::json;

use super::output::{Output, printable, table};
use super::{Exit, Failure};
use crate::client::{Client, Error};
use crate::proto::admin::{
    BlockProblem, CheckFilesRequest, DataServerUpkeep, FileCounts, FileProblem, FileState, GetUpkeepResponse,
};

/// All pages of an examination together.
#[derive(Debug, Default)]
struct Examination {
    counts: FileCounts,
    problems: Vec<FileProblem>,
}

pub(super) async fn allow_mass_delete(client: &Client, out: &mut Output) -> Result<Exit, Failure> {
    let allowed = client.allow_mass_delete().await?;
    if out.json() {
        out.document(&json!({"allowed_deletes": allowed}));
    } else if allowed == 0 {
        out.line("no deletes are held back");
    } else {
        out.line(format!("{allowed} deletes that were held back may go on"));
    }
    Ok(Exit::Ok)
}

pub(super) async fn fsck(
    client: &Client,
    out: &mut Output,
    path: Option<&str>,
    max_problems: u32,
) -> Result<Exit, Failure> {
    let examined = examine(client, path.unwrap_or_default(), max_problems).await?;
    let upkeep = client.upkeep().await?;
    if out.json() {
        out.document(&document(path, &examined, &upkeep));
    } else {
        print_files(out, &examined);
        print_data_servers(out, &upkeep.data_servers);
        print_upkeep(out, &upkeep);
    }
    Ok(match examined.counts.is_healthy() {
        true => Exit::Ok,
        false => Exit::Differences,
    })
}

async fn examine(client: &Client, path: &str, max_problems: u32) -> Result<Examination, Error> {
    let mut examined = Examination::default();
    let mut after = String::new();
    loop {
        let described = u32::try_from(examined.problems.len()).unwrap_or(u32::MAX);
        let request = CheckFilesRequest {
            path: path.to_string(),
            after: after.clone(),
            max_problems: max_problems.saturating_sub(described),
        };
        let page = client.check_files(request).await?;
        examined.counts.add(&page.counts.unwrap_or_default());
        examined.problems.extend(page.problems);
        if page.next.is_empty() {
            return Ok(examined);
        }
        if page.next == after {
            return Err(Error::Server {
                code: tonic::Code::Internal,
                message: format!("the examination does not go on after {after}"),
            });
        }
        after = page.next;
    }
}

impl Examination {
    /// Files that are not healthy and not described.
    fn left_out(&self) -> u64 {
        self.counts.unhealthy().saturating_sub(self.problems.len() as u64)
    }
}

impl FileCounts {
    fn add(&mut self, page: &FileCounts) {
        let FileCounts {
            files,
            healthy,
            under_replicated,
            missing,
            over_replicated,
            being_written,
            corrupt,
            blocks,
            bytes,
        } = page;
        for (sum, more) in [
            (&mut self.files, files),
            (&mut self.healthy, healthy),
            (&mut self.under_replicated, under_replicated),
            (&mut self.missing, missing),
            (&mut self.over_replicated, over_replicated),
            (&mut self.being_written, being_written),
            (&mut self.corrupt, corrupt),
            (&mut self.blocks, blocks),
            (&mut self.bytes, bytes),
        ] {
            *sum = sum.saturating_add(*more);
        }
    }

    fn is_healthy(&self) -> bool {
        self.under_replicated == 0 && self.missing == 0 && self.over_replicated == 0 && self.corrupt == 0
    }

    /// Files that are neither healthy nor being written, as far as they can be told apart.
    fn unhealthy(&self) -> u64 {
        let with_a_state = self.under_replicated + self.missing + self.over_replicated;
        with_a_state.max(self.corrupt)
    }
}

fn state_name(state: FileState) -> &'static str {
    match state {
        FileState::FileHealthy => "healthy",
        FileState::FileUnderReplicated => "under-replicated",
        FileState::FileMissing => "missing",
        FileState::FileOverReplicated => "over-replicated",
    }
}

// --- Text ---

fn print_files(out: &mut Output, examined: &Examination) {
    let counts = &examined.counts;
    out.line(match (counts.missing, counts.is_healthy()) {
        (_, true) => "HEALTHY: every file has all its replicas".to_string(),
        (0, false) => "NOT HEALTHY: every file can be read, but not all is as it should be".to_string(),
        (missing, false) => format!("DATA MISSING: {missing} files cannot be read completely"),
    });
    out.line("");
    let (files, blocks, bytes) = (counts.files, counts.blocks, counts.bytes);
    out.line(format!("{files} files, {blocks} blocks, {bytes} bytes"));
    for (count, what) in [
        (counts.healthy, "healthy"),
        (
            counts.under_replicated,
            "under-replicated: can be read; replicas are made by themselves",
        ),
        (
            counts.missing,
            "missing: a block has no good replica on a DataServer that is alive; start those that are down",
        ),
        (
            counts.over_replicated,
            "over-replicated: surplus replicas are deleted by themselves",
        ),
        (
            counts.corrupt,
            "of these with a damaged replica: it is replaced from a good one, where there is one",
        ),
        (counts.being_written, "being written, not examined"),
    ] {
        out.line(format!("  {count:>8} {what}"));
    }
    if !examined.problems.is_empty() {
        out.line("");
    }
    for problem in &examined.problems {
        print_problem(out, problem);
    }
    let left_out = examined.left_out();
    if left_out > 0 {
        out.line(format!("... and {left_out} files more (see --max-problems)"));
    }
    out.line("");
}

fn print_problem(out: &mut Output, problem: &FileProblem) {
    out.line(printable(&format!(
        "{}: {} ({} bytes, {} replicas wanted, {} blocks affected)",
        problem.path,
        state_name(problem.state()),
        problem.size,
        problem.expected_replicas,
        problem.bad_blocks
    )));
    for block in &problem.blocks {
        out.line(printable(&block_line(block)));
    }
    let left_out = problem.bad_blocks.saturating_sub(problem.blocks.len() as u64);
    if left_out > 0 {
        out.line(format!("    ... and {left_out} blocks more"));
    }
}

fn block_line(block: &BlockProblem) -> String {
    let mut line = format!("    block {} (number {})", block.block_id, block.index);
    match block.live.as_slice() {
        [] => line += ": no good replica",
        live => line += &format!(": good on {}", live.join(" ")),
    }
    for (what, addresses) in [
        ("missing on", &block.missing),
        ("damaged on", &block.corrupt),
        ("surplus on", &block.surplus),
    ] {
        if !addresses.is_empty() {
            line += &format!("; {what} {}", addresses.join(" "));
        }
    }
    line
}

fn print_data_servers(out: &mut Output, servers: &[DataServerUpkeep]) {
    if servers.is_empty() {
        out.line("no DataServers");
        return;
    }
    let heading = [
        "DATASERVER",
        "ADDRESS",
        "STATUS",
        "BEAT",
        "BLOCKS",
        "CORRUPT",
        "UNKNOWN",
        "HELD BACK",
        "FREE MB",
        "TOTAL MB",
    ];
    let mut rows = vec![heading.map(str::to_string)];
    for server in servers {
        let beat = match (server.silent_ms, server.alive) {
            (None, _) => "none yet".to_string(),
            (Some(ms), true) => format!("{:.1} s ago", ms as f64 / 1e3),
            (Some(ms), false) => format!("SILENT for {:.0} s", ms as f64 / 1e3),
        };
        rows.push([
            printable(&server.id),
            printable(&server.addr),
            printable(&server.status),
            beat,
            server.blocks.to_string(),
            server.corrupt_blocks.to_string(),
            server.unknown_blocks.to_string(),
            server.held_back.to_string(),
            (server.free_space >> 20).to_string(),
            (server.total_capacity >> 20).to_string(),
        ]);
    }
    table(&rows).into_iter().for_each(|line| out.line(line));
}

fn print_upkeep(out: &mut Output, upkeep: &GetUpkeepResponse) {
    let ago = |ms: Option<u64>| match ms {
        Some(ms) => format!("{:.0} s ago", ms as f64 / 1e3),
        None => "not yet".to_string(),
    };
    out.line("");
    out.line(format!(
        "garbage waiting: {} blocks, {} replicas of them still on DataServers",
        upkeep.garbage_blocks, upkeep.garbage_replicas
    ));
    out.line(format!(
        "repairs: {} running, {} waiting; {} blocks cannot be repaired, for want of a good replica",
        upkeep.repairs_running, upkeep.repairs_waiting, upkeep.unrepairable
    ));
    out.line(format!("open writes: {}", upkeep.open_writes));
    out.line(format!(
        "last complete pass: repair {}, garbage {}",
        ago(upkeep.fsck_ms_ago),
        ago(upkeep.gc_ms_ago)
    ));
    if upkeep.reclaiming {
        out.line("the records of deleted directories are still being freed");
    }
    if upkeep.waiting_for_reports {
        out.line(
            "NOTE: the leader is new and waits until all DataServers have reported: what is missing above may \
             only be unreported, and nothing is copied or deleted before",
        );
    }
    let foreign: u64 = upkeep
        .data_servers
        .iter()
        .map(|server| server.foreign_blocks)
        .sum();
    if foreign > 0 {
        out.line(format!(
            "NOTE: {foreign} blocks on DataServers have numbers that this cluster never gave out; they are never deleted"
        ));
    }
    let held_back: u64 = upkeep.data_servers.iter().map(|server| server.held_back).sum();
    if held_back > 0 {
        let servers = upkeep.data_servers.iter().filter(|server| server.held_back > 0);
        out.line(format!(
            "HELD BACK: {held_back} deletes on {} DataServers wait for your word: so many blocks at once that are in \
             nobody's records may be a mistake. `minfs fsck --allow-mass-delete` lets these {held_back} deletes go on, \
             and the DataServers then erase the replicas for good.",
            servers.count()
        ));
    }
}

// --- JSON ---

fn document(path: Option<&str>, examined: &Examination, upkeep: &GetUpkeepResponse) -> serde_json::Value {
    let counts = &examined.counts;
    let block = |block: &BlockProblem| {
        json!({
            "block": block.block_id,
            "index": block.index,
            "live": block.live,
            "missing": block.missing,
            "corrupt": block.corrupt,
            "surplus": block.surplus,
        })
    };
    let problem = |problem: &FileProblem| {
        json!({
            "path": problem.path,
            "inode": problem.inode,
            "size": problem.size,
            "expected_replicas": problem.expected_replicas,
            "state": state_name(problem.state()),
            "bad_blocks": problem.bad_blocks,
            "blocks": problem.blocks.iter().map(block).collect::<Vec<_>>(),
        })
    };
    let server = |server: &DataServerUpkeep| {
        json!({
            "id": server.id,
            "addr": server.addr,
            "status": server.status,
            "alive": server.alive,
            "silent_ms": server.silent_ms,
            "blocks": server.blocks,
            "corrupt_blocks": server.corrupt_blocks,
            "unknown_blocks": server.unknown_blocks,
            "foreign_blocks": server.foreign_blocks,
            "held_back": server.held_back,
            "free_space": server.free_space,
            "total_capacity": server.total_capacity,
        })
    };
    json!({
        "path": path.unwrap_or("/"),
        "healthy": counts.is_healthy(),
        "counts": {
            "files": counts.files,
            "healthy": counts.healthy,
            "under_replicated": counts.under_replicated,
            "missing": counts.missing,
            "over_replicated": counts.over_replicated,
            "being_written": counts.being_written,
            "corrupt": counts.corrupt,
            "blocks": counts.blocks,
            "bytes": counts.bytes,
        },
        "problems": examined.problems.iter().map(problem).collect::<Vec<_>>(),
        "problems_left_out": examined.left_out(),
        "data_servers": upkeep.data_servers.iter().map(server).collect::<Vec<_>>(),
        "upkeep": {
            "waiting_for_reports": upkeep.waiting_for_reports,
            "garbage_runs": upkeep.garbage_runs,
            "garbage_blocks": upkeep.garbage_blocks,
            "garbage_replicas": upkeep.garbage_replicas,
            "repairs_running": upkeep.repairs_running,
            "repairs_waiting": upkeep.repairs_waiting,
            "unrepairable": upkeep.unrepairable,
            "open_writes": upkeep.open_writes,
            "reclaiming": upkeep.reclaiming,
            "fsck_ms_ago": upkeep.fsck_ms_ago,
            "gc_ms_ago": upkeep.gc_ms_ago,
            "held_back": upkeep.data_servers.iter().map(|server| server.held_back).sum::<u64>(),
        },
    })
}
