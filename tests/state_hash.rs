//! The state hash in a whole cluster: a node whose state differs stops and says where, a damaged state is
//! rebuilt and a damaged snapshot refused, and `minfs cluster --verify` tells them apart.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use minfs::client::Client;
use minfs::domain::command::{Command, Op};
use minfs::domain::path::CleanPath;
use minfs::proto::convert::encode_batch;
use minfs::proto::dfs::FileType;
use minfs::storage::{LogRecord, RecordContent, Storage, StorageOptions};
use serde_json::Value;
use support::cluster::{Cluster, EVENTUALLY, Setup, members, turn};
use support::load::list;
use support::minfs::{ended, minfs};
use support::wait::until;

/// All nodes run and compare often. With `never.yaml` a node started later does not compare.
async fn comparing(setup: Setup) -> Cluster {
    let often = "compare_interval: 300ms";
    let mut cluster = Cluster::new(Setup {
        database: "{ compare_interval: 300ms }",
        ..setup
    });
    let config = fs::read_to_string(cluster.dir().join("config.yaml")).unwrap();
    assert!(config.contains(often), "{config}");
    let never = config.replace(often, "compare_interval: 1h");
    fs::write(cluster.dir().join("never.yaml"), never).unwrap();
    cluster.bootstrap(0);
    for n in 1..cluster.len() {
        cluster.start(n);
    }
    cluster.complete().await;
    cluster
}

async fn create(client: &Client, names: impl IntoIterator<Item = String>) {
    for name in names {
        client.create(&name, FileType::File).await.unwrap();
    }
}

/// `minfs --json cluster --verify`: its exit code, the nodes' verdicts by their names, and all that it said.
fn verify(cluster: &Cluster) -> (i32, Vec<(String, String)>, String) {
    let command = minfs(&cluster.servers(), &["--json", "cluster", "--verify"]).spawn();
    let output = ended(command.unwrap(), "cluster --verify");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{output:?}"));
    let verdict = |node: &Value| {
        let [name, verdict] = ["name", "verdict"].map(|key| node[key].as_str().unwrap().to_owned());
        (name, verdict)
    };
    let nodes = document["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(verdict)
        .collect();
    (output.status.code().unwrap(), nodes, text)
}

#[track_caller]
fn assert_verdicts(cluster: &Cluster, exit: i32, special: Option<(usize, &str)>) {
    let (code, found, text) = verify(cluster);
    let mut expected: Vec<_> = cluster
        .all()
        .into_iter()
        .map(|n| {
            let verdict = special
                .filter(|(special, _)| *special == n)
                .map_or("agrees", |(_, verdict)| verdict);
            (cluster.node(n).name.clone(), verdict.to_owned())
        })
        .collect();
    expected.sort();
    assert_eq!((code, found), (exit, expected), "{text}");
}

/// Waits until a node ends by itself, with the exit code of a node that cannot go on.
async fn ends(cluster: &mut Cluster, n: usize) {
    let what = format!("{} ends by itself", cluster.node(n).name);
    let ended = until(&what, EVENTUALLY, async || cluster.ended(n)).await;
    assert_eq!(ended.code(), Some(1), "{ended}");
}

/// Applies one more command to the state of a node that does not run, as if it were part of the last log entry.
fn go_astray(data: &Path) -> u64 {
    let mut storage = Storage::open(&StorageOptions {
        dir: data.to_owned(),
        map_size: 1 << 30,
        verify: true,
    })
    .unwrap();
    let last = storage.progress().unwrap().applied.unwrap();
    let command = Command {
        time_ms: 1,
        request_id: None,
        digest: 0,
        origin: None,
        op: Op::Create {
            path: CleanPath::parse("/only-here").unwrap(),
            directory: false,
        },
    };
    let record = LogRecord {
        log_id: last,
        content: RecordContent::Batch(encode_batch([&command])),
    };
    storage.apply(&[record]).unwrap()[0][0].as_ref().unwrap();
    storage.close().unwrap();
    last.index
}

#[tokio::test]
async fn a_node_whose_state_differs_stops_and_names_the_index_and_the_others_go_on() {
    let _turn = turn();
    let mut cluster = comparing(Setup::default()).await;
    let client = cluster.any_client().await;
    create(&client, (0..20).map(|n| format!("/before-{n}"))).await;
    cluster.level().await;
    assert_verdicts(&cluster, 0, None);

    let leader = cluster.leader().await;
    let odd = cluster.others(leader)[0];
    cluster.terminate(odd).await;
    let index = go_astray(cluster.data_dir(odd));
    // While it does not compare by itself, it is found by who asks. The others wait for it to stop.
    cluster.start_with(odd, "never.yaml", &[]);
    create(&client, (0..20).map(|n| format!("/meanwhile-{n}"))).await;
    cluster.level().await;
    assert!(list(&cluster, odd, "/").await.contains(&"/only-here".to_owned()));
    assert_verdicts(&cluster, 1, Some((odd, "differs")));
    // They had agreed there, so for them it is "at or before".
    let differs = format!("index {index}: the hash of this node is ");
    cluster.logged(leader, &differs).await;
    cluster.terminate(odd).await;

    cluster.start(odd);
    ends(&mut cluster, odd).await;
    let said =
        format!("the state of this node differs from that of a majority at index {index}: its hash is ");
    let log = cluster.log(odd);
    let why = log.lines().last().unwrap();
    assert!(
        why.contains("the node cannot go on") && why.contains(&said),
        "{why}"
    );
    for n in cluster.others(odd) {
        assert!(why.contains(&format!("{} is ", cluster.node(n).name)), "{why}");
    }
    assert!(why.contains("move its data directory away"), "{why}");
    create(&client, (0..20).map(|n| format!("/after-{n}"))).await;
    assert_verdicts(&cluster, 6, Some((odd, "unknown")));

    // It does not come back with that state, but as a new node.
    cluster.start(odd);
    ends(&mut cluster, odd).await;
    let log = cluster.log(odd);
    let again = log.lines().last().unwrap();
    assert!(again.contains("REFUSED") && again.contains(&said), "{again}");
    cluster.wipe(odd);
    cluster.start(odd);
    cluster.complete().await;
    cluster.level().await;
    assert_verdicts(&cluster, 0, None);
    let seen = list(&cluster, odd, "/").await;
    assert!(
        seen.len() == 60 && !seen.contains(&"/only-here".to_owned()),
        "{seen:?}"
    );
    // Nobody else stopped.
    assert_eq!(cluster.running().len(), 3);
}

/// The file of a node's state.
fn state_file(data: &Path) -> PathBuf {
    let generations = fs::read_dir(data.join("lmdb")).unwrap();
    let mut generations: Vec<_> = generations.map(|entry| entry.unwrap().path()).collect();
    generations.retain(|path| path.is_dir());
    assert_eq!(generations.len(), 1, "{generations:?}");
    generations[0].join("data.mdb")
}

fn snapshot_file(data: &Path) -> PathBuf {
    let files = fs::read_dir(data.join("raft/snapshots")).unwrap();
    let mut files = files.map(|entry| entry.unwrap().path());
    files
        .find(|path| path.extension().is_some_and(|kind| kind == "mdb"))
        .unwrap()
}

/// Changes every record and leftover in which `name` stands, in place: also where a running node maps the file.
fn damage(file: &Path, name: &[u8]) {
    let bytes = fs::read(file).unwrap();
    let handle = File::options().write(true).open(file).unwrap();
    let places = bytes
        .windows(name.len())
        .enumerate()
        .filter(|(_, window)| *window == name);
    assert!(places.clone().count() > 0);
    for (at, _) in places {
        handle.write_all_at(b"A", at as u64).unwrap();
    }
}

#[tokio::test]
async fn damaged_files_are_found_and_named_and_never_served() {
    let _turn = turn();
    let mut cluster = comparing(Setup {
        snapshot_interval: "100ms",
        snapshot_threshold: 20,
        ..Setup::default()
    })
    .await;
    let client = cluster.any_client().await;
    create(&client, (0..60).map(|n| format!("/a-name-{n:04}"))).await;
    cluster.level().await;
    for n in cluster.all() {
        let covered = |status: &minfs::proto::admin::GetNodeStatusResponse| status.snapshot_index >= Some(20);
        cluster.until_status(n, "has a snapshot", covered).await;
    }
    let leader = cluster.leader().await;
    let damaged = cluster.others(leader)[0];

    // The state, of a node that was killed and of one that was stopped.
    for clean in [false, true] {
        match clean {
            true => drop(cluster.terminate(damaged).await),
            false => cluster.kill(damaged),
        }
        let file = state_file(cluster.data_dir(damaged));
        damage(&file, b"a-name-0017");
        create(&client, [format!("/meanwhile-{clean}")]).await;
        cluster.start(damaged);
        let said = format!("the state in {} is damaged", file.display());
        cluster.logged(damaged, &said).await;
        cluster.complete().await;
        cluster.level().await;
        assert_verdicts(&cluster, 0, None);
        assert_eq!(list(&cluster, damaged, "/").await.len(), 61 + usize::from(clean));
    }

    // While the node runs: whoever asks is told, the node stops, and mends itself at its next start.
    let file = state_file(cluster.data_dir(damaged));
    damage(&file, b"a-name-0023");
    assert_verdicts(&cluster, 10, Some((damaged, "damaged")));
    ends(&mut cluster, damaged).await;
    let said = format!("{} is damaged: its records have the hash ", file.display());
    assert!(cluster.log(damaged).contains(&said));
    cluster.start(damaged);
    cluster.complete().await;
    cluster.level().await;
    assert_verdicts(&cluster, 0, None);

    // The snapshot: there is nothing to rebuild from but the peers.
    cluster.terminate(damaged).await;
    let file = snapshot_file(cluster.data_dir(damaged));
    damage(&file, b"a-name-0017");
    cluster.start(damaged);
    ends(&mut cluster, damaged).await;
    let log = cluster.log(damaged);
    let why = log.lines().last().unwrap();
    let said = format!("{} is damaged: ", file.display());
    assert!(
        why.contains(&said) && why.contains("move its data directory away"),
        "{why}"
    );
    cluster.wipe(damaged);
    cluster.start(damaged);
    let name = cluster.node(damaged).name.clone();
    cluster
        .until_status(damaged, "votes as a new incarnation", |status| {
            members(status).get(&name) == Some(&(status.incarnation, true))
        })
        .await;
    cluster.level().await;
    assert_verdicts(&cluster, 0, None);
}

/// Says what a node said since it had said `before`.
fn said_since(cluster: &Cluster, n: usize, before: usize) -> String {
    cluster.log(n)[before..].to_owned()
}

#[tokio::test]
async fn a_large_state_is_verified_while_it_is_served_unless_its_node_was_killed() {
    let _turn = turn();
    // Every state is large.
    let mut cluster = Cluster::formed(Setup {
        snapshot_interval: "100ms",
        snapshot_threshold: 20,
        database: "{ verify_first_up_to: 0 }",
        ..Setup::default()
    })
    .await;
    let client = cluster.any_client().await;
    create(&client, (0..60).map(|n| format!("/a-name-{n:04}"))).await;
    cluster.level().await;
    for n in cluster.all() {
        let covered = |status: &minfs::proto::admin::GetNodeStatusResponse| status.snapshot_index >= Some(20);
        cluster.until_status(n, "has a snapshot", covered).await;
    }
    let leader = cluster.leader().await;
    let n = cluster.others(leader)[0];

    // A sound one is found sound, and upkeep is told who leads.
    cluster.terminate(n).await;
    let before = cluster.log(n).len();
    cluster.start(n);
    cluster.complete().await;
    let verified = "verified the state: ";
    until("the state is verified", EVENTUALLY, async || {
        said_since(&cluster, n, before).contains(verified).then_some(())
    })
    .await;
    let log = said_since(&cluster, n, before);
    assert!(log.find("serves clients on") < log.find(verified), "{log}");

    // A damaged one stops the node that serves it, and is made anew at the next start.
    cluster.terminate(n).await;
    let file = state_file(cluster.data_dir(n));
    damage(&file, b"a-name-0017");
    let before = cluster.log(n).len();
    cluster.start(n);
    ends(&mut cluster, n).await;
    let log = said_since(&cluster, n, before);
    let why = log.lines().last().unwrap();
    let found = format!(
        "the node cannot go on: {} is damaged: its records have",
        file.display()
    );
    assert!(log.contains("serves clients on"), "{log}");
    assert!(
        why.contains(&found) && why.contains("the next start makes it anew"),
        "{why}"
    );
    let before = cluster.log(n).len();
    cluster.start(n);
    cluster.complete().await;
    cluster.level().await;
    assert!(said_since(&cluster, n, before).contains("rebuilding the state"));
    assert_verdicts(&cluster, 0, None);

    // Of a node that was killed it is found first.
    cluster.kill(n);
    let file = state_file(cluster.data_dir(n));
    damage(&file, b"a-name-0017");
    let before = cluster.log(n).len();
    cluster.start(n);
    cluster.complete().await;
    cluster.level().await;
    let log = said_since(&cluster, n, before);
    let said = format!("the state in {} is damaged", file.display());
    assert!(
        log.find(&said)
            .is_some_and(|at| Some(at) < log.find("serves clients on")),
        "{log}"
    );
    assert_verdicts(&cluster, 0, None);

    // A damaged snapshot stops the node, too, and no start serves beside it.
    cluster.terminate(n).await;
    let snapshot = snapshot_file(cluster.data_dir(n));
    damage(&snapshot, b"a-name-0017");
    for serves in [true, false] {
        let before = cluster.log(n).len();
        cluster.start(n);
        ends(&mut cluster, n).await;
        let log = said_since(&cluster, n, before);
        let said = format!("{} is damaged: ", snapshot.display());
        assert_eq!(log.contains("serves clients on"), serves, "{log}");
        assert!(
            log.contains(&said) && log.contains("move its data directory away"),
            "{log}"
        );
    }
}
