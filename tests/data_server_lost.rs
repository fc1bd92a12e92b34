//! What happens to blocks when a DataServer, a disk or a byte is lost: files stay readable, and the
//! replicas come back by themselves. And what must not happen to blocks when one comes back.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use minfs::client::Client;
use minfs::proto::dfs::ReadBlockRequest;
use minfs::proto::dfs::data_server_service_client::DataServerServiceClient;
use support::blocks::{DataServers, checked, content, impatient};
use support::cluster::{Cluster, EVENTUALLY, turn};
use support::minfs::{done, got, put};
use support::wait::until;
use tempfile::TempDir;

const BLOCK: usize = 4 << 20;

/// A cluster with four DataServers and some files.
struct House {
    cluster: Cluster,
    data: DataServers,
    client: Client,
    servers: String,
    files: BTreeMap<String, Vec<u8>>,
    _local: TempDir,
}

impl House {
    async fn with(sizes: &[usize]) -> House {
        let cluster = Cluster::formed(impatient()).await;
        let data = DataServers::started(&cluster, 4).await;
        let client = cluster.any_client().await;
        let servers = cluster.servers();
        let local = tempfile::tempdir().unwrap();
        let mut files = BTreeMap::new();
        done(&servers, &["mkdir", "/d"]);
        for (n, size) in sizes.iter().enumerate() {
            let bytes = content(n as u64 + 1, *size);
            let from = local.path().join(format!("f{n}"));
            fs::write(&from, &bytes).unwrap();
            put(&servers, &from, &format!("/d/f{n}"));
            files.insert(format!("/d/f{n}"), bytes);
        }
        let mut house = House {
            cluster,
            data,
            client,
            servers,
            files,
            _local: local,
        };
        house.heals().await;
        house
    }

    /// Waits until every file is as it should be.
    async fn heals(&mut self) {
        let counts = self.data.healthy(&self.client, 4 * EVENTUALLY).await;
        assert_eq!(counts.files, self.files.len() as u64);
    }

    /// Every file can be read now, and is what it was.
    fn assert_readable(&self) {
        for (path, bytes) in &self.files {
            assert!(got(&self.servers, path) == *bytes, "{path} came out different");
        }
    }

    /// Waits until upkeep has looked at everything at least once more.
    async fn looked_at(&self) {
        for _ in 0..2 {
            let begun = Instant::now();
            until("upkeep looks once more", 3 * EVENTUALLY, async || {
                let upkeep = self.client.upkeep().await.ok()?;
                let since = u64::try_from(begun.elapsed().as_millis()).unwrap();
                (upkeep.fsck_ms_ago? < since && upkeep.gc_ms_ago? < since).then_some(())
            })
            .await;
        }
    }

    /// Waits until every block of every file lies on exactly three of these disks, and nothing else does.
    async fn three_each_on(&self, disks: &[usize]) {
        let blocks: usize = self.files.values().map(|bytes| bytes.len().div_ceil(BLOCK)).sum();
        until("each block lies on three disks", 4 * EVENTUALLY, async || {
            let replicas = self.data.replicas();
            let three = |holders: &Vec<usize>| holders.iter().filter(|n| disks.contains(n)).count() == 3;
            (replicas.len() == blocks && replicas.values().all(three)).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_killed_data_server_is_replaced_and_may_come_back() {
    let _turn = turn();
    let mut house = House::with(&[BLOCK; 12]).await;
    house.data.kill(0);
    let killed = Instant::now();
    house.assert_readable();
    println!("all files read again {:?} after the kill", killed.elapsed());
    house.three_each_on(&[1, 2, 3]).await;
    println!(
        "three replicas of each of 12 blocks {:?} after the kill",
        killed.elapsed()
    );
    house.heals().await;

    // Its replicas are too many by now: they go, and nothing else does.
    house.data.start(0);
    house.data.alive(&house.client, 4).await;
    house.three_each_on(&[0, 1, 2, 3]).await;
    house.heals().await;
    house.assert_readable();
}

#[tokio::test]
async fn a_data_server_that_was_away_loses_no_block_of_a_live_file_and_every_block_of_a_deleted_one() {
    let _turn = turn();
    let mut house = House::with(&[BLOCK, 1, 2 * BLOCK, BLOCK, 3, BLOCK]).await;
    let all = house.data.blocks(2);
    house.data.kill(2);
    for path in ["/d/f1", "/d/f2"] {
        done(&house.servers, &["rm", path]);
        house.files.remove(path);
    }
    let kept: Vec<u64> = {
        let mut kept = Vec::new();
        for path in house.files.keys() {
            let blocks = house.client.block_locations(path).await.unwrap();
            kept.extend(blocks.block_locations.iter().map(|block| block.block_id));
        }
        all.keys().copied().filter(|block| kept.contains(block)).collect()
    };
    assert!(kept.len() < all.len(), "it held a block of a deleted file");
    house.data.start(2);
    house.data.alive(&house.client, 4).await;
    until(
        "the blocks of deleted files are gone",
        4 * EVENTUALLY,
        async || {
            let held: Vec<u64> = house.data.blocks(2).into_keys().collect();
            for block in &kept {
                assert!(held.contains(block), "block {block} of a live file is lost");
            }
            (held == kept).then_some(())
        },
    )
    .await;
    house.looked_at().await;
    assert_eq!(house.data.blocks(2).into_keys().collect::<Vec<_>>(), kept);
    house.heals().await;
    house.assert_readable();
}

#[tokio::test]
async fn replicas_removed_by_hand_come_back() {
    let _turn = turn();
    let mut house = House::with(&[BLOCK, 100, 2 * BLOCK + 1]).await;
    let before = house.data.replicas();
    let lost = house.data.blocks(1);
    assert!(!lost.is_empty());
    for path in lost.values() {
        fs::remove_file(path).unwrap();
    }
    house.assert_readable();
    until("the replicas are back", 4 * EVENTUALLY, async || {
        (house.data.blocks(1).len() == lost.len()).then_some(())
    })
    .await;
    house.heals().await;
    assert_eq!(house.data.replicas(), before, "where they were");
    house.assert_readable();
}

#[tokio::test]
async fn a_flipped_byte_is_never_served_and_is_repaired() {
    let _turn = turn();
    let mut house = House::with(&[BLOCK]).await;
    let bytes = house.files["/d/f0"].clone();
    let block = house
        .client
        .block_locations("/d/f0")
        .await
        .unwrap()
        .block_locations[0]
        .clone();
    let addr = &block.locations[0];
    let damaged: PathBuf = house.data.blocks(house.data.at(addr))[&block.block_id].clone();
    let good = fs::read(&damaged).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 0x10;
    fs::write(&damaged, &bad).unwrap();

    let served = read_block(addr, block.block_id).await;
    let (Ok(served) | Err(served)) = &served;
    assert!(
        bytes.starts_with(served),
        "{} bytes were served, and not those of the file",
        served.len()
    );
    house.assert_readable();

    until("the replica is whole again", 4 * EVENTUALLY, async || {
        (read_block(addr, block.block_id).await.ok()? == bytes).then_some(())
    })
    .await;
    house.heals().await;
    assert_eq!(checked(&house.client).await.unwrap().corrupt, 0);
    assert_eq!(house.cluster.running().len(), 3);
}

/// What a DataServer serves of a block: all of it, or what came before an error.
async fn read_block(addr: &str, block_id: u64) -> Result<Vec<u8>, Vec<u8>> {
    let mut served = Vec::new();
    let Ok(mut server) = DataServerServiceClient::connect(format!("http://{addr}")).await else {
        return Err(served);
    };
    let Ok(answer) = server.read_block(ReadBlockRequest { block_id }).await else {
        return Err(served);
    };
    let mut chunks = answer.into_inner();
    loop {
        match chunks.message().await {
            Ok(Some(chunk)) => served.extend_from_slice(&chunk.chunk_data),
            Ok(None) => return Ok(served),
            Err(_) => return Err(served),
        }
    }
}
