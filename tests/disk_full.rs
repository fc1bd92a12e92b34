//! Full disks: a node with little space takes no writes and says so, the others go on where they can,
//! reads go on, nobody stops, and with space everything comes back by itself.
//!
//! The disks are small file systems of their own, which takes root; without it these stories are skipped,
//! but never in CI.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io;
use std::path::Path;
use std::process::{self, Child, Stdio};
use std::time::{Duration, Instant};

use minfs::domain::command::{Command, Op};
use minfs::domain::path::CleanPath;
use minfs::domain::state::ReadTables;
use minfs::proto::convert::encode_batch;
use minfs::proto::dfs::{CreateNodeRequest, DeleteNodeRequest, FileType, GetNodeInfoRequest};
use minfs::proto::raft as pb;
use minfs::storage::{LogRecord, RecordContent, Storage, StorageOptions};
use support::cluster::{Cluster, EVENTUALLY, Setup, turn};
use support::load::{Load, list};
use support::small_disk::SmallDisk;
use support::wait::until;
use tonic::{Code, Status};

/// What is left of a disk, in MiB: less than the nodes want, and less than half of it.
const LOW: u64 = 18;
const FULL: u64 = 6;

/// A refusal for want of space comes at once: far sooner than a request's time is over.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Three nodes, each on a disk of 64 MiB of its own.
async fn on_small_disks(database: &'static str) -> Option<(Cluster, Vec<SmallDisk>)> {
    let mut cluster = Cluster::new(Setup {
        database,
        ..Setup::default()
    });
    let mut disks = Vec::new();
    for n in cluster.all() {
        disks.push(SmallDisk::mount(cluster.data_dir(n), 64)?);
    }
    cluster.bootstrap(0);
    for n in 1..cluster.len() {
        cluster.start(n);
    }
    cluster.complete().await;
    Some((cluster, disks))
}

async fn create(cluster: &Cluster, n: usize, path: &str) -> Result<(), Status> {
    let request = CreateNodeRequest {
        path: path.to_owned(),
        r#type: FileType::File as i32,
    };
    cluster.raw(n).create_node(request).await.map(drop)
}

async fn stat(cluster: &Cluster, n: usize, path: &str) -> Result<(), Status> {
    let path = path.to_owned();
    cluster
        .raw(n)
        .get_node_info(GetNodeInfoRequest { path })
        .await
        .map(drop)
}

/// Waits until a node says that it takes no writes, or that it does.
async fn takes_writes(cluster: &mut Cluster, n: usize, yes: bool) {
    let what = if yes { "takes writes" } else { "takes no writes" };
    cluster
        .until_status(n, what, |status| status.writes_refused.is_empty() == yes)
        .await;
}

#[tokio::test]
async fn a_leader_without_space_hands_over_and_counts_again_when_it_has_some() {
    let _turn = turn();
    let Some((mut cluster, disks)) = on_small_disks("{ min_free_space: 24MiB }").await else {
        return;
    };
    let leader = cluster.leader().await;
    let (all, others) = (cluster.all(), cluster.others(leader));
    let load = Load::start(&cluster, "/load", &all, 1).await;
    load.goes_on_through(&all, 20).await;
    let term = cluster.answers(leader).await.term;

    let filled = Instant::now();
    disks[leader].fill(LOW);
    let (next, _) = cluster.new_leader(&others, term).await;
    takes_writes(&mut cluster, leader, false).await;
    // Through the low node, too; and each client reads through another node than it writes.
    load.goes_on_through(&all, 20).await;
    let pause = load.longest_pause(filled);
    let status = cluster.answers(leader).await;
    assert!(status.free_space <= LOW << 20, "{status:?}");
    assert!(status.wanted_space > 24 << 20, "{status:?}");
    assert!(
        status.writes_refused.contains("database.min_free_space"),
        "{status:?}"
    );
    let done = load.stop().await;
    // None on a quiet machine: writes wait for the new leader. But each for its time only.
    let failed: Vec<_> = done.book.failed.iter().map(|failed| &failed.status).collect();
    println!("no write for {pause:.2?} while leadership went from {leader} to {next}; failed: {failed:#?}");

    // It leads no more, whoever else goes; until it has space.
    disks[leader].free();
    takes_writes(&mut cluster, leader, true).await;
    cluster.level().await;
    let third = others.into_iter().find(|n| *n != next).unwrap();
    cluster.kill(third);
    create(&cluster, next, "/with-it").await.unwrap();
    done.is_seen_through(&cluster, &[leader, next]).await;
}

#[tokio::test]
async fn a_follower_with_a_full_disk_stays_and_catches_up() {
    let _turn = turn();
    let Some((mut cluster, disks)) = on_small_disks("{ min_free_space: 24MiB }").await else {
        return;
    };
    let leader = cluster.leader().await;
    let others = cluster.others(leader);
    let (full, healthy) = (others[0], [leader, others[1]]);
    let load = Load::start(&cluster, "/load", &healthy, 2).await;
    load.goes_on(20).await;

    disks[full].fill(FULL);
    // What it has seen by now is all that it gets; the others go on.
    let had = cluster
        .until_status(full, "lags behind", |status| !status.writes_refused.is_empty())
        .await
        .last_log_index
        .unwrap();
    load.goes_on_through(&healthy, 20).await;
    let stands = until("it takes nothing more", EVENTUALLY, async || {
        let first = cluster.status(full).await?.last_log_index?;
        load.goes_on(10).await;
        (cluster.status(full).await?.last_log_index? == first).then_some(first)
    })
    .await;
    assert!(stands >= had);
    // Not a byte is left; it lives, and says who leads.
    disks[full].fill(0);
    load.goes_on_through(&healthy, 20).await;
    let status = cluster.answers(full).await;
    assert_eq!(
        (status.free_space >> 10, status.last_log_index),
        (0, Some(stands)),
        "{status:?}"
    );

    disks[full].free();
    let done = load.stop().await;
    cluster.level().await;
    assert!(
        done.book.failed.is_empty(),
        "a client saw {:#?}",
        done.book.failed
    );
    done.is_seen_through(&cluster, &[full]).await;
    cluster.kill(others[1]);
    create(&cluster, leader, "/with-it").await.unwrap();
}

#[tokio::test]
async fn without_space_anywhere_writes_are_refused_reads_go_on_and_it_ends_by_itself() {
    let _turn = turn();
    let Some((mut cluster, disks)) = on_small_disks("{ min_free_space: 24MiB }").await else {
        return;
    };
    create(&cluster, 0, "/before").await.unwrap();
    cluster.level().await;
    for disk in &disks {
        disk.fill(FULL - 3);
    }
    for n in cluster.all() {
        takes_writes(&mut cluster, n, false).await;
    }
    let leader = cluster.leader().await;
    for n in cluster.all() {
        // Leadership may still be on its way; then the answer may be one for that.
        until("a write is refused for want of space", EVENTUALLY, async || {
            let asked = Instant::now();
            let refused = create(&cluster, n, "/refused").await.unwrap_err();
            let says = refused.code() == Code::ResourceExhausted && refused.message().contains("MiB free in");
            (says && asked.elapsed() < AT_ONCE).then_some(())
        })
        .await;
        stat(&cluster, n, "/before").await.unwrap();
        assert_eq!(
            stat(&cluster, n, "/refused").await.unwrap_err().code(),
            Code::NotFound
        );
    }

    // Even now there can be another leader, and what was there can be read.
    let term = cluster.answers(leader).await.term;
    cluster.kill(leader);
    let rest = cluster.others(leader);
    cluster.new_leader(&rest, term).await;
    for n in &rest {
        until("reads go on", EVENTUALLY, async || {
            stat(&cluster, *n, "/before").await.ok()
        })
        .await;
    }
    // A node does not start without space, and it waits for it.
    cluster.start(leader);
    cluster.logged(leader, "waiting until there is space").await;
    assert_eq!(cluster.status(leader).await, None);

    disks.iter().for_each(SmallDisk::free);
    for n in cluster.all() {
        takes_writes(&mut cluster, n, true).await;
        cluster
            .client(n)
            .await
            .create(&format!("/after-{n}"), FileType::File)
            .await
            .unwrap();
    }
    cluster.level().await;
    for n in cluster.all() {
        let seen = list(&cluster, n, "/").await;
        assert_eq!(seen, ["/after-0", "/after-1", "/after-2", "/before"]);
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_unseen_stops_the_node_which_comes_back_whole() {
    let _turn = turn();
    // Nobody looks: as if another process had been faster.
    let Some((mut cluster, disks)) = on_small_disks("{ min_free_space: 0 }").await else {
        return;
    };
    let leader = cluster.leader().await;
    let others = cluster.others(leader);
    let load = Load::start(&cluster, "/load", &[leader, others[1]], 2).await;
    load.goes_on(20).await;
    let full = others[0];
    disks[full].fill(0);
    let ended = until("its log cannot be written", EVENTUALLY, async || {
        cluster.ended(full)
    })
    .await;
    assert_eq!(ended.code(), Some(75), "{ended}");
    assert!(cluster.log(full).contains("its disk is full"));
    load.goes_on(20).await;

    cluster.start(full);
    cluster.logged(full, "waiting until there is space").await;
    let ended = cluster.terminate(full).await;
    assert_eq!(
        ended.code(),
        Some(0),
        "it can be told to stop while it waits: {ended}"
    );
    cluster.start(full);
    disks[full].free();
    let done = load.stop().await;
    cluster.complete().await;
    cluster.level().await;
    done.is_seen_through(&cluster, &[full]).await;
}

#[tokio::test]
async fn a_state_at_its_limit_takes_no_files_until_some_are_deleted() {
    let _turn = turn();
    let mut cluster = Cluster::formed(Setup {
        nodes: 1,
        database: "{ map_size: 1MiB, min_free_space: 1MiB }",
        ..Setup::default()
    })
    .await;
    let leader = cluster.leader().await;
    let client = cluster.client(leader).await;
    client.create("/d", FileType::Directory).await.unwrap();
    // Long names: few of them are enough.
    let path = |writer: usize, number: usize| format!("/d/{writer}-{number}-{}", "x".repeat(240));
    let writers = (0..32).map(|writer| {
        let cluster = &cluster;
        async move {
            for number in 0.. {
                if let Err(refused) = create(cluster, leader, &path(writer, number)).await {
                    return refused;
                }
            }
            unreachable!("a state of a mebibyte takes all names")
        }
    });
    for refused in futures::future::join_all(writers).await {
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert!(refused.message().contains("database.map_size"), "{refused}");
    }
    takes_writes(&mut cluster, leader, false).await;
    stat(&cluster, leader, &path(0, 0)).await.unwrap();
    let delete = DeleteNodeRequest {
        path: "/d".to_owned(),
        recursive: true,
    };
    cluster.raw(leader).delete_node(delete).await.unwrap();
    // Its records are freed behind the answer.
    until("there is room again", EVENTUALLY, async || {
        create(&cluster, leader, "/again").await.ok()
    })
    .await;
}

/// One log entry: many files, whose names are long.
fn files(index: u64) -> LogRecord {
    let commands = (0..200).map(|number| Command {
        time_ms: 1,
        request_id: None,
        digest: 0,
        origin: None,
        op: Op::Create {
            path: CleanPath::parse(&format!("/{index}-{number}-{}", "x".repeat(200))).unwrap(),
            directory: false,
        },
    });
    let commands: Vec<_> = commands.collect();
    LogRecord {
        log_id: pb::LogId {
            leader: Some(pb::LeaderId { term: 1, node: 1 }),
            index,
        },
        content: RecordContent::Batch(encode_batch(&commands)),
    }
}

#[test]
fn a_transaction_and_a_snapshot_that_find_no_space_leave_everything_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path(), 16) else {
        return;
    };
    let mut storage = Storage::open(&StorageOptions {
        dir: dir.path().to_owned(),
        map_size: 1 << 30,
        verify: true,
    })
    .unwrap();
    for index in 1..=20 {
        storage.apply(&[files(index)]).unwrap();
    }
    let snapshot = storage.build_snapshot().run().unwrap();
    disk.fill(0);
    // At first it finds pages that are free in its own file.
    let refused = (21..200).find_map(|index| Some((index, storage.apply(&[files(index)]).err()?)));
    let (index, error) = refused.unwrap();
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::StorageFull);
    let error = io::Error::from(storage.build_snapshot().run().unwrap_err());
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    assert_eq!(storage.current_snapshot().unwrap(), Some(snapshot.clone()));
    let mut left: Vec<_> = fs::read_dir(snapshot.path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    left.sort();
    assert_eq!(
        left,
        [
            snapshot.path.with_extension("mdb"),
            snapshot.path.with_extension("meta")
        ]
    );
    let applied = storage.progress().unwrap().applied.unwrap().index;
    assert_eq!(applied, index - 1);

    disk.free();
    let answers = storage.apply(&[files(index)]).unwrap();
    assert!(answers[0].iter().all(Result::is_ok), "each file is new");
    assert_eq!(
        storage
            .build_snapshot()
            .run()
            .unwrap()
            .meta
            .last_log_id
            .unwrap()
            .index,
        index
    );
    let inodes = storage.reader().read(|view| view.counters()).unwrap().inodes;
    assert_eq!(inodes, 1 + 200 * index);
}

/// Kills its process in the end.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn where_address_space_is_limited_the_state_makes_do_with_less() {
    let _turn = turn();
    let cluster = Cluster::new(Setup {
        nodes: 1,
        ..Setup::default()
    });
    let node = cluster.node(0);
    let port = |addr: &str| addr.rsplit_once(':').unwrap().1.to_owned();
    let log = cluster.dir().join("limited.log");
    // 16 GiB, in KiB.
    let limited = "ulimit -v 16777216 && exec \"$0\" \"$@\"";
    let child = process::Command::new("sh")
        .args(["-c", limited, env!("CARGO_BIN_EXE_metaserver")])
        .args(["--config", "config.yaml", "--bootstrap"])
        .args([
            "--port",
            &port(&node.grpc_addr),
            "--raft-port",
            &port(&node.raft_addr),
        ])
        .arg("--data-dir")
        .arg(cluster.data_dir(0))
        .env_remove("RUST_LOG")
        .current_dir(cluster.dir())
        .stdin(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let _killed = Killed(child);
    let said = |log: &Path| fs::read_to_string(log).unwrap();
    until("it takes a file", EVENTUALLY, async || {
        create(&cluster, 0, "/a").await.ok()
    })
    .await;
    stat(&cluster, 0, "/a").await.unwrap();
    assert!(
        said(&log).contains("the state has 2048 MiB of it"),
        "{}",
        said(&log)
    );
}
