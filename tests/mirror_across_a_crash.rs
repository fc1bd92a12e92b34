//! `minfs mirror` of a tree of some thousand entries while the leader dies, and `minfs diff` through
//! each node afterwards: no difference.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::process::{Command, Output, Stdio};

use support::cluster::{Cluster, EVENTUALLY, Setup, turn};
use support::wait::until;

const DIRECTORIES: usize = 100;
const FILES: usize = 20;

fn minfs(server: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_minfs"));
    command.args(["--server", server]).args(arguments);
    command
        .env_remove("MINFS_SERVER")
        .env_remove("MINFS_ETCD")
        .env_remove("RUST_LOG");
    command
}

#[tokio::test]
async fn a_mirror_is_complete_although_the_leader_died() {
    let _turn = turn();
    let tree = tempfile::tempdir().unwrap();
    for n in 0..DIRECTORIES {
        let directory = tree.path().join(format!("{}/{n}", n % 7));
        fs::create_dir_all(&directory).unwrap();
        for file in 0..FILES {
            fs::write(directory.join(format!("file {file}")), b"").unwrap();
        }
    }
    let local = tree.path().to_str().unwrap();
    let entries = u64::try_from(DIRECTORIES * (FILES + 1)).unwrap();

    let mut cluster = Cluster::formed(Setup::default()).await;
    let leader = cluster.leader().await;
    let mut mirror = minfs(&cluster.servers(), &["mirror", local, "/copy"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    cluster
        .until_status(leader, "has a third of the tree", |status| {
            status.inodes > entries / 3
        })
        .await;
    cluster.kill(leader);
    let rest = cluster.others(leader);
    let status = cluster.status(rest[0]).await.unwrap();
    assert!(
        status.inodes < entries,
        "the mirror was over before the leader died: {status:?}"
    );
    until("the mirror ends", 3 * EVENTUALLY, async || {
        mirror.try_wait().unwrap()
    })
    .await;
    let output = mirror.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    println!("{}", String::from_utf8_lossy(&output.stdout).trim());

    cluster.start(leader);
    cluster.complete().await;
    for n in cluster.all() {
        let mut diff = minfs(&cluster.node(n).grpc_addr, &["diff", local, "/copy"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        until(&format!("diff through node {n} ends"), EVENTUALLY, async || {
            diff.try_wait().unwrap()
        })
        .await;
        let output: Output = diff.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "through node {n}: {output:?}");
    }
    // Once more it finds everything there.
    let again = minfs(&cluster.servers(), &["mirror", local, "/copy"])
        .output()
        .unwrap();
    assert!(again.status.success(), "{again:?}");
}
