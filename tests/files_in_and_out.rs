//! Files go in and come out the same: of every size that matters, one by one and fifty at once, with
//! their blocks evenly on three of four DataServers; and overwriting leaves nothing behind.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;

use support::blocks::{DataServers, content, impatient};
use support::cluster::{Cluster, EVENTUALLY, turn};
use support::minfs::{done, ended, got, minfs, put};
use support::wait::until;
use tempfile::TempDir;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const BLOCK: usize = 4 * MIB;

/// Files with their content, on a local disk.
struct Local {
    dir: TempDir,
    files: Vec<(String, Vec<u8>)>,
}

impl Local {
    fn of(sizes: impl IntoIterator<Item = usize>) -> Local {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        for (n, size) in sizes.into_iter().enumerate() {
            let (name, bytes) = (format!("file-{n}-{size}"), content(n as u64 + 1, size));
            std::fs::write(dir.path().join(&name), &bytes).unwrap();
            files.push((name, bytes));
        }
        Local { dir, files }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[tokio::test]
async fn every_size_comes_out_as_it_went_in() {
    let _turn = turn();
    let cluster = Cluster::formed(impatient()).await;
    let _data = DataServers::started(&cluster, 4).await;
    let servers = cluster.servers();
    let local = Local::of([100 * MIB, 10 * MIB, 512 * KIB, 1, 0, BLOCK, 2 * BLOCK]);
    for (name, bytes) in &local.files {
        let remote = format!("/{name}");
        put(&servers, &local.path(name), &remote);
        assert!(got(&servers, &remote) == *bytes, "{name} came out different");
        let stat = cluster.any_client().await.stat(&remote).await.unwrap();
        assert_eq!(stat.size as usize, bytes.len(), "{name}");
        assert_eq!(stat.replica_data.len(), 3 * bytes.len().div_ceil(BLOCK), "{name}");
    }
}

#[tokio::test]
async fn fifty_at_once_lie_evenly_on_three_of_four_and_overwriting_leaves_nothing() {
    let _turn = turn();
    let cluster = Cluster::formed(impatient()).await;
    let mut data = DataServers::started(&cluster, 4).await;
    let servers = cluster.servers();
    let sizes = [512 * KIB, 1, 0, BLOCK, 2 * BLOCK, BLOCK + 1, 64 * KIB, 10 * MIB];
    let local = Local::of(sizes.into_iter().cycle().take(50));

    let puts: Vec<_> = local
        .files
        .iter()
        .map(|(name, _)| {
            let (from, to) = (local.path(name), format!("/{name}"));
            let child = minfs(&servers, &["put", from.to_str().unwrap(), &to]).spawn();
            (name, child.unwrap())
        })
        .collect();
    for (name, child) in puts {
        let output = ended(child, name);
        assert!(output.status.success(), "put {name}: {output:?}");
    }
    let out = tempfile::tempdir().unwrap();
    let gets: Vec<_> = local
        .files
        .iter()
        .map(|(name, _)| {
            let (from, to) = (format!("/{name}"), out.path().join(name));
            let child = minfs(&servers, &["get", &from, to.to_str().unwrap()]).spawn();
            (name, child.unwrap())
        })
        .collect();
    for (name, child) in gets {
        let output = ended(child, name);
        assert!(output.status.success(), "get {name}: {output:?}");
    }
    for (name, bytes) in &local.files {
        assert!(
            std::fs::read(out.path().join(name)).unwrap() == *bytes,
            "{name} came out different"
        );
    }

    let client = cluster.any_client().await;
    let counts = data.healthy(&client, EVENTUALLY).await;
    assert_eq!(counts.files, 50);
    let replicas = data.replicas();
    let blocks: usize = local
        .files
        .iter()
        .map(|(_, bytes)| bytes.len().div_ceil(BLOCK))
        .sum();
    assert_eq!(replicas.len(), blocks, "every block, and no other");
    for (block, holders) in &replicas {
        assert_eq!(holders.len(), 3, "block {block} lies on {holders:?}");
    }
    let held: Vec<usize> = (0..data.len()).map(|n| data.blocks(n).len()).collect();
    let (least, most) = (held.iter().min().unwrap(), held.iter().max().unwrap());
    assert!(
        most - least <= blocks / 5,
        "{blocks} blocks lie unevenly: {held:?}"
    );

    // Each is overwritten with a byte: what was longer leaves nothing.
    let short = Local::of([1]);
    let (name, _) = &short.files[0];
    for (long, _) in &local.files {
        put(&servers, &short.path(name), &format!("/{long}"));
    }
    until("one block a file is left", 3 * EVENTUALLY, async || {
        let replicas = data.replicas();
        let three = replicas.values().all(|holders| holders.len() == 3);
        (replicas.len() == 50 && three).then_some(())
    })
    .await;
    assert_eq!(got(&servers, &format!("/{}", local.files[0].0)), short.files[0].1);

    done(&servers, &["rm", "-r", &format!("/{}", local.files[0].0)]);
    until("the deleted file's block is gone", 3 * EVENTUALLY, async || {
        (data.replicas().len() == 49).then_some(())
    })
    .await;
}
