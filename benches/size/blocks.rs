//! What a file with blocks takes beside one without: in the records, with the values that clients in the field give.
//!
//! Called by `main`; a new cluster for each number of blocks, with DataServers that are only heartbeats. They never
//! report the blocks, which changes no record.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minfs::proto::dfs::meta_server_service_client::MetaServerServiceClient;
use minfs::proto::dfs::{CreateNodeRequest, FileType, FinalizeWriteRequest, GetBlockLocationsRequest};
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::Channel;

use crate::footprint::used;
use crate::support::cluster::{Cluster, Setup};
use crate::support::data_servers::Fleet;

/// The block size of clients in the field.
const BLOCK: i64 = 4 << 20;

const FILES: u64 = 50_000;
const CLIENTS: usize = 128;
const CONNECTIONS: usize = 8;
const MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";

/// Prints bytes a file, without blocks, with one and with sixteen.
pub async fn blocks() -> Result<(), String> {
    for blocks in [0, 1, 16] {
        let mut cluster = Cluster::formed(Setup::default()).await;
        let leader = cluster.leader().await;
        let fleet = Fleet::start(&cluster, 4).await;
        let next = Arc::<AtomicU64>::default();
        let mut clients = JoinSet::new();
        let channels: Vec<_> = (0..CONNECTIONS).map(|_| cluster.channel(leader)).collect();
        for n in 0..CLIENTS {
            let client = MetaServerServiceClient::new(channels[n % CONNECTIONS].clone());
            clients.spawn(fill(client, next.clone(), blocks));
        }
        while let Some(ended) = clients.join_next().await {
            let answered = ended.map_err(|error| error.to_string())?;
            answered.map_err(|status| format!("a file with {blocks} blocks: {status}"))?;
        }
        fleet.stop().await;
        cluster.terminate(leader).await;
        let used = used(cluster.data_dir(leader))?;
        println!(
            "blocks: {blocks} a file: {:.0} bytes a file",
            used as f64 / FILES as f64
        );
    }
    Ok(())
}

async fn fill(
    mut client: MetaServerServiceClient<Channel>,
    next: Arc<AtomicU64>,
    blocks: i64,
) -> Result<(), Status> {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= FILES {
            return Ok(());
        }
        let path = format!("/file-{number:010}");
        let request = CreateNodeRequest {
            path: path.clone(),
            r#type: FileType::File as i32,
        };
        client.create_node(request).await?;
        if blocks == 0 {
            continue;
        }
        let request = GetBlockLocationsRequest {
            path: path.clone(),
            size: blocks * BLOCK,
            staged: false,
        };
        let inode = client.get_block_locations(request).await?.into_inner().inode;
        let request = FinalizeWriteRequest {
            path,
            inode,
            size: blocks * BLOCK,
            md5: MD5.to_owned(),
            staged_block: 0,
        };
        client.finalize_write(request).await?;
    }
}
