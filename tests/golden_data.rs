//! Data directories that older servers left are opened, read and written on.
//!
//! `tests/golden/<version>/data` is what a server of that version left when it was stopped, and
//! `tree.txt` beside it what its clients saw before. A new format gets a directory of its own, made by
//! [`write_golden_data`] with the server that first wrote it; the old ones stay as they are.

#![allow(clippy::unwrap_used)]

mod support;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use minfs::proto::dfs::{
    CreateNodeRequest, DeleteNodeRequest, FileType, FinalizeWriteRequest, GetBlockLocationsRequest,
    GetBlockLocationsResponse, GetNodeInfoRequest, ListDirectoryRequest, StatInfo,
};
use support::cluster::{Cluster, EVENTUALLY, Setup, turn};
use support::data_servers::Fleet;
use support::wait::until;

/// The versions that there are, oldest first.
const VERSIONS: [&str; 3] = ["v1", "v2", "v3"];

/// The default size of a block.
const BLOCK: i64 = 4 << 20;

/// Nothing is given up or cleaned away while a test looks at it, and snapshots are taken all the time.
fn setup() -> Setup {
    Setup {
        nodes: 1,
        names: vec!["golden"],
        snapshot_interval: "100ms",
        snapshot_threshold: 40,
        cluster: "{ permanent_down_threshold: 1h }",
        ..Setup::default()
    }
}

fn golden(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(version)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

async fn create(cluster: &Cluster, path: &str, kind: FileType) {
    let request = CreateNodeRequest {
        path: path.to_owned(),
        r#type: kind.into(),
    };
    cluster.raw(0).create_node(request).await.unwrap();
}

async fn delete(cluster: &Cluster, path: &str) {
    let request = DeleteNodeRequest {
        path: path.to_owned(),
        recursive: true,
    };
    cluster.raw(0).delete_node(request).await.unwrap();
}

async fn locations(cluster: &Cluster, path: &str, size: i64) -> GetBlockLocationsResponse {
    let request = GetBlockLocationsRequest {
        path: path.to_owned(),
        size,
        ..GetBlockLocationsRequest::default()
    };
    let answer = cluster.raw(0).get_block_locations(request).await;
    answer.unwrap().into_inner()
}

async fn write(cluster: &Cluster, path: &str, size: i64, md5: &str) {
    let inode = locations(cluster, path, size).await.inode;
    let request = FinalizeWriteRequest {
        path: path.to_owned(),
        inode,
        size,
        md5: md5.to_owned(),
        ..FinalizeWriteRequest::default()
    };
    cluster.raw(0).finalize_write(request).await.unwrap();
}

/// All that clients see, one line a file or directory.
async fn tree(cluster: &Cluster) -> String {
    let mut text = String::new();
    let mut open = vec!["/".to_owned()];
    while let Some(directory) = open.pop() {
        let request = ListDirectoryRequest {
            path: directory.clone(),
        };
        let answer = cluster.raw(0).list_directory(request).await.unwrap();
        for StatInfo { path, .. } in answer.into_inner().nodes {
            let request = GetNodeInfoRequest { path: path.clone() };
            let answer = cluster.raw(0).get_node_info(request).await.unwrap();
            let info = answer.into_inner().stat_info.unwrap();
            let kind = info.r#type();
            let StatInfo { size, mtime, md5, .. } = info;
            write!(text, "{path} {kind:?} {size} {mtime} {md5:?}").unwrap();
            if kind == FileType::Directory {
                open.push(path);
            } else if !info.replica_data.is_empty() {
                for block in locations(cluster, &path, 0).await.block_locations {
                    write!(text, " {}@{}", block.block_id, block.locations.join("+")).unwrap();
                }
            }
            text.push('\n');
        }
    }
    text
}

/// Waits until the newest snapshot lacks something of the log, and the log something of the past.
async fn some_in_snapshot_some_in_log(cluster: &mut Cluster) {
    let purged = cluster.answers(0).await.purged_index.unwrap_or(0);
    let mut n = 0;
    until(
        "a snapshot, a purged log, and entries beyond both",
        EVENTUALLY,
        async || {
            create(cluster, &format!("/many/{n:04}"), FileType::File).await;
            n += 1;
            let status = cluster.status(0).await?;
            let behind = status.applied_index? - status.snapshot_index?;
            (status.purged_index? >= purged + 20 && behind >= 5).then_some(())
        },
    )
    .await;
}

#[tokio::test]
async fn what_older_servers_wrote_is_read_and_written_on() {
    let _turn = turn();
    for version in VERSIONS {
        let expected = fs::read_to_string(golden(version).join("tree.txt")).unwrap();
        assert!(expected.lines().count() > 30, "{version}: {expected}");
        for rebooted in [false, true] {
            println!("{version}, rebooted: {rebooted}");
            let mut cluster = Cluster::new(setup());
            copy(&golden(version).join("data"), cluster.data_dir(0));
            if rebooted {
                // So the state cannot be trusted, and is made again of the snapshot and the log.
                let file = cluster.data_dir(0).join("lmdb/STATE");
                let clean = fs::read_to_string(&file).unwrap();
                assert!(clean.contains("clean yes"), "{clean}");
                fs::write(file, clean.replace("clean yes", "clean no")).unwrap();
            }
            cluster.start(0);
            cluster.complete().await;
            assert_eq!(tree(&cluster).await, expected, "{version}, rebooted: {rebooted}");

            let fleet = Fleet::start(&cluster, 4).await;
            delete(&cluster, "/many").await;
            write(&cluster, "/docs/overwritten", 3 * BLOCK, "third").await;
            create(&cluster, "/many", FileType::Directory).await;
            some_in_snapshot_some_in_log(&mut cluster).await;
            fleet.stop().await;
            let expected = tree(&cluster).await;
            assert!(cluster.terminate(0).await.success());
            cluster.start(0);
            cluster.complete().await;
            assert_eq!(tree(&cluster).await, expected, "{version}, rebooted: {rebooted}");
        }
    }
}

/// Makes a golden directory with the server that `MINFS_GOLDEN_SERVER` names, in `MINFS_GOLDEN_DIR`.
#[tokio::test]
#[ignore = "makes test data, with an older server"]
async fn write_golden_data() {
    let server = PathBuf::from(std::env::var_os("MINFS_GOLDEN_SERVER").expect("MINFS_GOLDEN_SERVER"));
    let to = PathBuf::from(std::env::var_os("MINFS_GOLDEN_DIR").expect("MINFS_GOLDEN_DIR"));
    let mut cluster = Cluster::new(setup());
    cluster.binary(0, &server);
    cluster.bootstrap(0);
    cluster.complete().await;
    let fleet = Fleet::start(&cluster, 4).await;
    for path in [
        "/docs",
        "/docs/deep",
        "/docs/deep/er",
        "/gone",
        "/many",
        "/umlaut-\u{e4}\u{f6}",
    ] {
        create(&cluster, path, FileType::Directory).await;
    }
    for n in 0..30 {
        create(&cluster, &format!("/gone/{n}"), FileType::File).await;
    }
    write(&cluster, "/docs/one", 1, "one byte").await;
    write(
        &cluster,
        "/docs/deep/er/four",
        4 * BLOCK - 1,
        "0123456789abcdef0123456789abcdef",
    )
    .await;
    write(&cluster, "/docs/overwritten", 5 * BLOCK, "first").await;
    write(&cluster, "/docs/overwritten", 2 * BLOCK, "second").await;
    create(&cluster, "/docs/empty", FileType::File).await;
    locations(&cluster, "/docs/being-written", 3 * BLOCK).await;
    delete(&cluster, "/gone").await;
    some_in_snapshot_some_in_log(&mut cluster).await;
    write(&cluster, "/docs/last", 7, "last").await;
    fleet.stop().await;
    let tree = tree(&cluster).await;
    assert!(cluster.terminate(0).await.success());
    copy(cluster.data_dir(0), &to.join("data"));
    fs::write(to.join("tree.txt"), tree).unwrap();
}
