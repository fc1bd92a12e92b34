//! Files of a node that are damaged while it is down. It does not go on with what is left: it says which
//! file it is and what to do, changes nothing, and when the operator does that, it is refilled and votes. Only
//! the end of a write that was never finished is not damage.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use minfs::proto::dfs::FileType;
use support::cluster::{Cluster, EVENTUALLY, Setup, members, turn};
use support::load::list;
use support::wait::until;

/// A log of several files; all of it is there.
fn setup() -> Setup {
    Setup {
        snapshot_threshold: 16,
        ..Setup::default()
    }
}

/// Three nodes with so many files, and a follower that is down; its log has files between the oldest and the newest,
/// which is not a short one.
async fn a_follower_is_down() -> (Cluster, usize, usize) {
    let mut cluster = Cluster::formed(setup()).await;
    let leader = cluster.leader().await;
    let follower = cluster.others(leader)[0];
    let client = cluster.any_client().await;
    let mut count = 0;
    loop {
        let path = format!("/{count:03}");
        client.create(&path, FileType::File).await.unwrap();
        count += 1;
        if count >= 60 {
            cluster.level().await;
            let files = log_files(cluster.data_dir(follower));
            if files.len() > 2 && fs::metadata(files.last().unwrap()).unwrap().len() > 2000 {
                break;
            }
        }
    }
    cluster.kill(follower);
    (cluster, follower, count)
}

fn log_files(data: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join("raft/log")).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "wal"));
    files.sort();
    files
}

/// Starts a node, which ends by itself; gives what it said.
async fn refuses(cluster: &mut Cluster, n: usize) -> String {
    let before = cluster.log(n).len();
    cluster.start(n);
    let ended = until("the node ends by itself", EVENTUALLY, async || cluster.ended(n)).await;
    assert_eq!(ended.code(), Some(1));
    cluster.log(n)[before..].to_owned()
}

/// The node does not start with this file damaged, and leaves it as it is; `good` is put back.
async fn is_refused(cluster: &mut Cluster, n: usize, file: &Path, damage: impl FnOnce(&mut Vec<u8>)) {
    let good = fs::read(file).unwrap();
    let mut bad = good.clone();
    damage(&mut bad);
    assert_ne!(bad, good);
    fs::write(file, &bad).unwrap();
    let said = refuses(cluster, n).await;
    assert!(said.contains(file.to_str().unwrap()), "{said}");
    assert!(said.contains("move its data directory away"), "{said}");
    assert_eq!(fs::read(file).unwrap(), bad, "it was changed");
    fs::write(file, good).unwrap();
}

#[tokio::test]
async fn a_node_with_a_damaged_log_does_not_start_and_is_refilled_when_it_is_taken_away() {
    let _turn = turn();
    let (mut cluster, n, count) = a_follower_is_down().await;
    let before = cluster.data_dir(n).to_owned();
    let files = log_files(&before);
    let [older, .., newest] = files.as_slice() else {
        panic!("the log has too few files: {files:?}");
    };
    for file in [older, newest] {
        let middle = fs::metadata(file).unwrap().len() as usize / 2;
        is_refused(&mut cluster, n, file, |bytes| bytes[middle] ^= 1).await;
        is_refused(&mut cluster, n, file, |bytes| bytes[middle..middle + 300].fill(0)).await;
    }
    is_refused(&mut cluster, n, older, |bytes| bytes.truncate(bytes.len() - 3)).await;
    // What a reader that trusts it would take for a record beyond the end of the file.
    let append = [0, 0, 0, 1];
    is_refused(&mut cluster, n, newest, |bytes| {
        let entries = bytes
            .windows(4)
            .enumerate()
            .filter(|(_, window)| *window == append);
        let at = entries.map(|(at, _)| at).nth(3).unwrap();
        // Type, term, node, index, kind; then the length.
        bytes[at + 4 + 24 + 1] = 0x7f;
    })
    .await;
    let aside = before.join("aside");
    for file in [older, &files[1]] {
        fs::rename(file, &aside).unwrap();
        let said = refuses(&mut cluster, n).await;
        assert!(said.contains("move its data directory away"), "{said}");
        fs::rename(&aside, file).unwrap();
    }

    // It was good all the time, but for the damage; now it is damaged for good.
    let mut bytes = fs::read(newest).unwrap();
    bytes[300] ^= 0x40;
    fs::write(newest, bytes).unwrap();
    refuses(&mut cluster, n).await;
    fs::rename(&before, before.with_extension("away")).unwrap();
    cluster.start(n);
    let name = cluster.node(n).name.clone();
    cluster
        .until_status(n, "votes as a new incarnation", |status| {
            members(status).get(&name) == Some(&(status.incarnation, true))
        })
        .await;
    cluster.complete().await;
    let leader = cluster.leader().await;
    let other = cluster.others(leader).into_iter().find(|other| *other != n);
    cluster.kill(other.unwrap_or(leader));
    let running = cluster.running();
    cluster.leader_of(&running).await;
    // With one node down, nothing is written without it.
    let client = cluster.any_client().await;
    client.create("/with-it", FileType::File).await.unwrap();
    assert_eq!(list(&cluster, n, "/").await.len(), count + 1);
}

#[tokio::test]
async fn a_write_that_was_not_finished_is_cut_off() {
    let _turn = turn();
    let (mut cluster, n, count) = a_follower_is_down().await;
    let data = cluster.data_dir(n).to_owned();
    let damages: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes.truncate(bytes.len() - 5),
        |bytes| bytes.extend([0; 5000]),
        // The beginning of an entry, and then nothing.
        |bytes| bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
        |bytes| {
            bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 7]);
            bytes.resize(bytes.len() + 2000, 0);
        },
    ];
    for (at, damage) in damages.into_iter().enumerate() {
        let newest = log_files(&data).pop().unwrap();
        let mut bytes = fs::read(&newest).unwrap();
        damage(&mut bytes);
        fs::write(&newest, &bytes).unwrap();
        let cuts = cluster.log(n).matches("are cut off").count();
        cluster.start(n);
        cluster.level().await;
        assert_eq!(cluster.log(n).matches("are cut off").count(), cuts + 1);
        let client = cluster.client(n).await;
        client
            .create(&format!("/more-{at}"), FileType::File)
            .await
            .unwrap();
        assert_eq!(list(&cluster, n, "/").await.len(), count + 1 + at);
        cluster.kill(n);
    }
}

#[tokio::test]
async fn a_node_that_does_not_know_who_it_is_does_not_start() {
    let _turn = turn();
    let (mut cluster, n, count) = a_follower_is_down().await;
    let data = cluster.data_dir(n).to_owned();
    let identity = data.join("raft/identity");
    let damages: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes.clear(),
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| bytes.fill(0),
        // Another digit of the incarnation.
        |bytes| {
            let at = bytes.windows(12).position(|window| window == b"incarnation=");
            let digit = &mut bytes[at.unwrap() + 12];
            *digit = if *digit == b'1' { b'2' } else { b'1' };
        },
    ];
    for damage in damages {
        is_refused(&mut cluster, n, &identity, damage).await;
    }
    // Without one of the two it would be somebody who has forgotten something.
    for lost in [identity, data.join("raft/log")] {
        let aside = data.join("aside");
        fs::rename(&lost, &aside).unwrap();
        let said = refuses(&mut cluster, n).await;
        assert!(
            said.contains(lost.to_str().unwrap()) && said.contains("missing"),
            "{said}"
        );
        fs::rename(&aside, &lost).unwrap();
    }
    cluster.start(n);
    cluster.complete().await;
    assert_eq!(list(&cluster, n, "/").await.len(), count);
}
