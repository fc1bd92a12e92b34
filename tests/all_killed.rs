//! kill -9 of all nodes at once, and a restart: everything that was acknowledged is there, sizes of
//! directories and blocks of files included.

#![allow(clippy::unwrap_used)]

mod support;

use minfs::proto::dfs::FileType;
use support::cluster::{Cluster, Setup, turn};
use support::data_servers::Fleet;
use support::load::Load;

const BLOCK: i64 = 4 << 20;

#[tokio::test]
async fn everything_acknowledged_survives_the_death_of_all() {
    let _turn = turn();
    let mut cluster = Cluster::formed(Setup::default()).await;
    let fleet = Fleet::start(&cluster, 4).await;
    let client = cluster.any_client().await;
    client.create("/data", FileType::Directory).await.unwrap();
    client.create("/data/deep", FileType::Directory).await.unwrap();
    let mut written = Vec::new();
    for n in 0..20_i64 {
        let path = format!("/data/deep/{n:02}");
        let size = n * BLOCK / 2 + 1;
        client.create(&path, FileType::File).await.unwrap();
        let blocks = client.allocate(&path, size).await.unwrap();
        client
            .finalize(&path, blocks.inode, size, &format!("{n:032x}"))
            .await
            .unwrap();
        written.push((path, size, blocks));
    }
    let total: i64 = written.iter().map(|(_, size, _)| size).sum();
    fleet.stop().await;

    for round in 0..2 {
        let load = Load::start(&cluster, &format!("/load-{round}"), &cluster.all(), 4).await;
        load.goes_on_through(&cluster.all(), 30).await;
        for n in cluster.all() {
            cluster.kill(n);
        }
        let done = load.stop().await;
        for n in cluster.all() {
            cluster.start(n);
        }
        cluster.complete().await;

        done.is_seen_through(&cluster, &cluster.all()).await;
        for n in cluster.all() {
            let client = cluster.client(n).await;
            for directory in ["/data", "/data/deep"] {
                assert_eq!(
                    client.stat(directory).await.unwrap().size,
                    total,
                    "{directory} through node {n}"
                );
            }
            for (path, size, blocks) in &written {
                let stat = client.stat(path).await.unwrap();
                assert_eq!(stat.size, *size, "{path} through node {n}");
                let now = client.block_locations(path).await.unwrap();
                assert_eq!(now.inode, blocks.inode, "{path} through node {n}");
                let ids = |blocks: &[minfs::proto::dfs::BlockLocations]| -> Vec<_> {
                    blocks
                        .iter()
                        .map(|block| {
                            let mut locations = block.locations.clone();
                            locations.sort_unstable();
                            (block.block_id, locations)
                        })
                        .collect()
                };
                let (now, then) = (ids(&now.block_locations), ids(&blocks.block_locations));
                assert_eq!(now, then, "{path} through node {n}");
            }
        }
    }
}
