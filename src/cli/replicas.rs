//! `replicas`: how many DataServers have the blocks of files, and which.

use serde_json::{Value, json};

use super::output::{Output, printable, table};
use super::{Exit, Failure};
use crate::client::Client;
use crate::proto::dfs::{BlockReplicationInfo, ReplicationStatus};

pub(super) async fn replicas(
    client: &Client,
    out: &mut Output,
    path: Option<&str>,
    blocks: bool,
) -> Result<Exit, Failure> {
    let info = client.replication_info(path.unwrap_or_default()).await?;
    let blocks = blocks || path.is_some() && info.files.len() == 1;
    if out.json() {
        out.document(&json!({
            "total_files": info.total_files,
            "healthy_files": info.healthy_files,
            "under_replicated_files": info.under_replicated_files,
            "over_replicated_files": info.over_replicated_files,
            "files": info.files.iter().map(|file| file_document(file, blocks)).collect::<Vec<_>>(),
        }));
        return Ok(Exit::Ok);
    }
    let mut rows = vec![["SIZE", "WANTED", "ACTUAL", "STATUS", "PATH"].map(str::to_string)];
    rows.extend(info.files.iter().map(|file| {
        [
            file.size.to_string(),
            file.expected_replicas.to_string(),
            file.actual_replicas.to_string(),
            printable(&file.status),
            printable(&file.path),
        ]
    }));
    let mut lines = table(&rows).into_iter();
    lines.by_ref().take(1).for_each(|heading| out.line(heading));
    for (file, line) in info.files.iter().zip(lines) {
        out.line(line);
        if blocks {
            file.blocks.iter().for_each(|block| out.line(block_line(block)));
        }
    }
    out.line(format!(
        "{} files: {} healthy, {} under-replicated, {} over-replicated",
        info.total_files, info.healthy_files, info.under_replicated_files, info.over_replicated_files
    ));
    Ok(Exit::Ok)
}

fn block_line(block: &BlockReplicationInfo) -> String {
    let list = |addresses: &[String]| match addresses {
        [] => "none".to_string(),
        addresses => addresses.join(" "),
    };
    printable(&format!(
        "  block {}: on {}; wanted on {}",
        block.block_id,
        list(&block.locations),
        list(&block.expected_locations)
    ))
}

fn file_document(file: &ReplicationStatus, blocks: bool) -> Value {
    let mut document = json!({
        "path": file.path,
        "inode": file.inode,
        "size": file.size,
        "expected_replicas": file.expected_replicas,
        "actual_replicas": file.actual_replicas,
        "status": file.status,
    });
    if blocks {
        let block = |block: &BlockReplicationInfo| {
            json!({
                "block": block.block_id,
                "locations": block.locations,
                "expected_locations": block.expected_locations,
                "replica_count": block.replica_count,
            })
        };
        document["blocks"] = file.blocks.iter().map(block).collect();
    }
    document
}
