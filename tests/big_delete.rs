//! A large tree is deleted in one answer, and others hardly notice that its records are freed.
//!
//! `MINFS_TREE_FILES` (20,000) says how many files the tree has.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use futures::StreamExt;
use minfs::proto::dfs::FileType;
use support::cluster::{Cluster, EVENTUALLY, Setup, turn};

/// Files a directory.
const WIDTH: usize = 1000;

#[tokio::test]
async fn deleting_a_large_tree_answers_at_once_and_disturbs_nobody() {
    let _turn = turn();
    let files: usize = std::env::var("MINFS_TREE_FILES").map_or(20_000, |files| files.parse().unwrap());
    let mut cluster = Cluster::formed(Setup::default()).await;
    let leader = cluster.leader().await;
    let client = cluster.client(leader).await;
    client.create("/beside", FileType::File).await.unwrap();
    client.create("/tree", FileType::Directory).await.unwrap();
    for d in 0..files.div_ceil(WIDTH) {
        client
            .create(&format!("/tree/{d}"), FileType::Directory)
            .await
            .unwrap();
    }
    let made = futures::stream::iter(0..files).map(|n| {
        let client = client.clone();
        async move {
            let path = format!("/tree/{}/{n}", n / WIDTH);
            client.create(&path, FileType::File).await
        }
    });
    made.buffer_unordered(256)
        .for_each(async |made| made.unwrap())
        .await;

    let undisturbed = stats(&client, 200, async || true).await;
    let begun = Instant::now();
    client.delete("/tree", true).await.unwrap();
    let deleting = begun.elapsed();

    let cluster_status = async || {
        cluster
            .status(leader)
            .await
            .map_or(u64::MAX, |status| status.inodes)
    };
    // The root and the file beside it are left in the end.
    let meanwhile = stats(&client, usize::MAX, async || cluster_status().await > 2).await;
    let reclaiming = begun.elapsed();
    println!(
        "{files} files: deleted in {deleting:?}, reclaimed in {reclaiming:?}; stat before {}, meanwhile {}",
        told(&undisturbed),
        told(&meanwhile)
    );
    assert!(deleting < Duration::from_secs(1), "deleting took {deleting:?}");
    let slowest = meanwhile.last().unwrap();
    assert!(*slowest < Duration::from_secs(1), "a stat took {slowest:?}");
    assert!(meanwhile.len() > 10, "it was reclaimed before anybody could look");
}

/// Stats one after the other as long as `go_on`; how long each took, sorted.
async fn stats(
    client: &minfs::client::Client,
    most: usize,
    mut go_on: impl AsyncFnMut() -> bool,
) -> Vec<Duration> {
    let (begun, mut took) = (Instant::now(), Vec::new());
    while took.len() < most && go_on().await {
        let asked = Instant::now();
        client.stat("/beside").await.unwrap();
        took.push(asked.elapsed());
        assert!(begun.elapsed() < 10 * EVENTUALLY, "reclaiming does not end");
    }
    took.sort_unstable();
    took
}

fn told(sorted: &[Duration]) -> String {
    let at = |share: usize| sorted[(sorted.len() - 1) * share / 100];
    format!(
        "{:?} median, {:?} p99, {:?} at most ({} of them)",
        at(50),
        at(99),
        at(100),
        sorted.len()
    )
}
