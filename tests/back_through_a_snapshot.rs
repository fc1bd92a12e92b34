//! A follower that was down for longer than the log is kept comes back through a snapshot, and its
//! old state is replaced, not merged.

#![allow(clippy::unwrap_used)]

mod support;

use minfs::proto::dfs::FileType;
use support::cluster::{Cluster, EVENTUALLY, Setup, turn};
use support::load::list;
use support::wait::until;

#[tokio::test]
async fn a_follower_comes_back_through_a_snapshot() {
    let _turn = turn();
    // Local reads: what a node answers is what it has.
    let setup = Setup {
        reads: "local",
        snapshot_interval: "200ms",
        snapshot_threshold: 50,
        ..Setup::default()
    };
    let mut cluster = Cluster::formed(setup).await;
    let leader = cluster.leader().await;
    let follower = cluster.others(leader)[0];
    let client = cluster.client(leader).await;
    for directory in ["/kept", "/gone", "/new"] {
        client.create(directory, FileType::Directory).await.unwrap();
    }
    for n in 0..20 {
        client
            .create(&format!("/kept/{n}"), FileType::File)
            .await
            .unwrap();
        client
            .create(&format!("/gone/{n}"), FileType::File)
            .await
            .unwrap();
    }
    cluster.level().await;
    assert_eq!(list(&cluster, follower, "/gone").await.len(), 20);

    let had = cluster.answers(follower).await.last_log_index.unwrap();
    cluster.kill(follower);
    client.delete("/gone", true).await.unwrap();
    client.delete("/kept/7", false).await.unwrap();
    let mut created = 0;
    until(
        "the leader's log begins after the follower's ends",
        EVENTUALLY,
        async || {
            for _ in 0..20 {
                client
                    .create(&format!("/new/{created:05}"), FileType::File)
                    .await
                    .unwrap();
                created += 1;
            }
            let purged = cluster.status(leader).await?.purged_index?;
            (purged > had + 1).then_some(())
        },
    )
    .await;

    cluster.start(follower);
    cluster.level().await;
    let status = cluster.answers(follower).await;
    assert!(
        status.purged_index > Some(had),
        "it came back, but not through a snapshot: {status:?}"
    );
    let trees = [leader, follower].map(|n| tree(&cluster, n));
    let [ours, theirs] = futures::future::join_all(trees).await.try_into().unwrap();
    assert_eq!(ours, theirs);
    assert!(
        !theirs
            .iter()
            .any(|path| path.starts_with("/gone") || path == "/kept/7"),
        "{theirs:?}"
    );
    assert_eq!(theirs.len(), 2 + 19 + created);
    let [ours, theirs] = [cluster.answers(leader).await, cluster.answers(follower).await];
    assert_eq!(ours.inodes, theirs.inodes);

    // It counts again: with the other follower gone, nothing is written without it.
    let other = cluster
        .all()
        .into_iter()
        .find(|n| *n != leader && *n != follower)
        .unwrap();
    cluster.kill(other);
    client.create("/with-it", FileType::File).await.unwrap();
    cluster.level().await;
    // And what it was given outlives its process.
    cluster.kill(follower);
    cluster.start(follower);
    cluster.level().await;
    assert_eq!(tree(&cluster, follower).await, tree(&cluster, leader).await);
}

/// All paths, as one node has them.
async fn tree(cluster: &Cluster, n: usize) -> Vec<String> {
    let client = cluster.client(n).await;
    let mut all = Vec::new();
    let mut left = vec!["/".to_owned()];
    while let Some(directory) = left.pop() {
        for entry in client.list(&directory).await.unwrap() {
            if entry.r#type() == FileType::Directory {
                left.push(entry.path.clone());
            }
            all.push(entry.path);
        }
    }
    all.sort_unstable();
    all
}
