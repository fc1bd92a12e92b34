//! A node is killed while its log lags behind its state: it has applied what the others have on their disks and its
//! own disk was too busy to take. It comes back, and nothing of it hangs on the state alone.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;

use minfs::proto::dfs::FileType;
use support::cluster::{Cluster, EVENTUALLY, Setup, turn};
use support::load::list;
use support::wait::until;

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test]
async fn entries_that_only_the_state_has_are_in_a_snapshot_before_the_log_goes_on_behind_them() {
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
    client.create("/d", FileType::Directory).await.unwrap();
    let mut created = 0;
    until("the follower has a snapshot", EVENTUALLY, async || {
        client
            .create(&format!("/d/{created:05}"), FileType::File)
            .await
            .unwrap();
        created += 1;
        cluster.status(follower).await?.snapshot_index
    })
    .await;
    cluster.level().await;

    // Its log as the disk has it now; what comes next it only applies.
    cluster.kill(follower);
    let log = cluster.data_dir(follower).join("raft/log");
    let aside = cluster.dir().join("log-aside");
    copy_dir(&log, &aside);
    cluster.start(follower);
    cluster.level().await;
    for n in 0..5 {
        client
            .create(&format!("/d/late-{n}"), FileType::File)
            .await
            .unwrap();
    }
    cluster.level().await;
    cluster.kill(follower);
    fs::remove_dir_all(&log).unwrap();
    copy_dir(&aside, &log);

    cluster.start(follower);
    cluster.logged(follower, "taking a snapshot of the state").await;
    cluster.complete().await;
    cluster.level().await;
    assert_eq!(list(&cluster, follower, "/d").await.len(), created + 5);
    let status = cluster.answers(follower).await;
    assert!(status.snapshot_index >= status.purged_index, "{status:?}");

    // It counts again, and comes back as often as one likes.
    let other = cluster
        .others(leader)
        .into_iter()
        .find(|n| *n != follower)
        .unwrap();
    cluster.kill(other);
    client.create("/d/with-it", FileType::File).await.unwrap();
    cluster.kill(follower);
    cluster.start(follower);
    cluster.start(other);
    cluster.level().await;
    assert_eq!(list(&cluster, follower, "/d").await.len(), created + 6);
}
