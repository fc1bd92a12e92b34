//! `fsck` and `replicas`: what they make of the servers' answers.

use super::*;
use crate::proto::admin::{
    BlockProblem, CheckFilesResponse, DataServerUpkeep, FileCounts, FileProblem, FileState, GetUpkeepResponse,
};
use crate::proto::dfs::{BlockReplicationInfo, GetReplicationInfoResponse, ReplicationStatus};

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

/// Two pages: a file of which a block is gone, and one with a damaged replica.
fn ill() -> (Cluster, Server) {
    let cluster = Cluster::default();
    let server = cluster.serve();
    let problem = |path: &str, state: FileState, block: BlockProblem| FileProblem {
        path: path.into(),
        inode: 7,
        size: 5_000_000,
        expected_replicas: 3,
        state: state as i32,
        blocks: vec![block],
        bad_blocks: 2,
    };
    let gone = BlockProblem {
        block_id: 11,
        index: 1,
        missing: texts(&["ds1:8001", "ds2:8001"]),
        ..BlockProblem::default()
    };
    let damaged = BlockProblem {
        block_id: 12,
        index: 0,
        live: texts(&["ds1:8001"]),
        corrupt: texts(&["ds2:8001"]),
        surplus: texts(&["ds3:8001"]),
        ..BlockProblem::default()
    };
    let first = CheckFilesResponse {
        counts: Some(FileCounts {
            files: 10,
            healthy: 9,
            missing: 1,
            blocks: 20,
            bytes: 1000,
            ..FileCounts::default()
        }),
        problems: vec![problem("/gone\n", FileState::FileMissing, gone)],
        next: "/gone".into(),
    };
    let last = CheckFilesResponse {
        counts: Some(FileCounts {
            files: 3,
            under_replicated: 2,
            being_written: 1,
            corrupt: 1,
            blocks: 4,
            bytes: 24,
            ..FileCounts::default()
        }),
        problems: vec![problem("/damaged", FileState::FileUnderReplicated, damaged)],
        next: String::new(),
    };
    let data_server = |id: &str, alive, held_back| DataServerUpkeep {
        id: id.into(),
        addr: format!("{id}:8001"),
        status: if alive { "healthy" } else { "down" }.into(),
        alive,
        silent_ms: Some(if alive { 1500 } else { 61_000 }),
        blocks: 24,
        corrupt_blocks: 1,
        free_space: 5 << 30,
        total_capacity: 10 << 30,
        unknown_blocks: held_back,
        held_back,
        foreign_blocks: 0,
    };
    let upkeep = GetUpkeepResponse {
        waiting_for_reports: true,
        data_servers: vec![data_server("ds1", true, 40), data_server("ds2", false, 0)],
        garbage_blocks: 5,
        garbage_replicas: 15,
        repairs_running: 2,
        repairs_waiting: 3,
        unrepairable: 1,
        open_writes: 4,
        fsck_ms_ago: Some(12_000),
        ..GetUpkeepResponse::default()
    };
    {
        let mut state = cluster.state();
        state.pages = [(String::new(), first), ("/gone".to_string(), last)].into();
        state.upkeep = upkeep;
        state.held_back = 40;
    }
    (cluster, server)
}

#[tokio::test]
async fn a_report_that_a_person_can_act_on() {
    let (_cluster, server) = ill();
    let (exit, printed) = minfs(&server, &["fsck"]).await;
    assert_eq!(exit, Exit::Differences);
    let expected = "\
DATA MISSING: 1 files cannot be read completely

13 files, 24 blocks, 1024 bytes
         9 healthy
         2 under-replicated: can be read; replicas are made by themselves
         1 missing: a block has no good replica on a DataServer that is alive; start those that are down
         0 over-replicated: surplus replicas are deleted by themselves
         1 of these with a damaged replica: it is replaced from a good one, where there is one
         1 being written, not examined

/gone\\n: missing (5000000 bytes, 3 replicas wanted, 2 blocks affected)
    block 11 (number 1): no good replica; missing on ds1:8001 ds2:8001
    ... and 1 blocks more
/damaged: under-replicated (5000000 bytes, 3 replicas wanted, 2 blocks affected)
    block 12 (number 0): good on ds1:8001; damaged on ds2:8001; surplus on ds3:8001
    ... and 1 blocks more
... and 1 files more (see --max-problems)

DATASERVER  ADDRESS   STATUS   BEAT             BLOCKS  CORRUPT  UNKNOWN  HELD BACK  FREE MB  TOTAL MB
ds1         ds1:8001  healthy  1.5 s ago        24      1        40       40         5120     10240
ds2         ds2:8001  down     SILENT for 61 s  24      1        0        0          5120     10240

garbage waiting: 5 blocks, 15 replicas of them still on DataServers
repairs: 2 running, 3 waiting; 1 blocks cannot be repaired, for want of a good replica
open writes: 4
last complete pass: repair 12 s ago, garbage not yet
NOTE: the leader is new and waits until all DataServers have reported: what is missing above may only be \
unreported, and nothing is copied or deleted before
HELD BACK: 40 deletes on 1 DataServers wait for your word: so many blocks at once that are in nobody's records \
may be a mistake. `minfs fsck --allow-mass-delete` lets these 40 deletes go on, and the DataServers then erase the \
replicas for good.
";
    assert_eq!(printed, expected);
}

#[tokio::test]
async fn the_same_for_scripts() {
    let (_cluster, server) = ill();
    let (exit, document) = json(&server, &["fsck", "/"]).await;
    assert_eq!(exit, Exit::Differences);
    assert_eq!(document["healthy"], false);
    assert_eq!(
        (&document["counts"]["files"], &document["counts"]["missing"]),
        (&13.into(), &1.into())
    );
    assert_eq!(document["problems"][0]["path"], "/gone\n");
    assert_eq!(document["problems"][1]["blocks"][0]["corrupt"][0], "ds2:8001");
    assert_eq!(document["problems_left_out"], 1);
    assert_eq!(document["data_servers"][1]["alive"], false);
    assert_eq!(
        (&document["upkeep"]["held_back"], &document["upkeep"]["gc_ms_ago"]),
        (&40.into(), &Value::Null)
    );
    let (_, document) = json(&server, &["fsck", "--max-problems", "1"]).await;
    assert_eq!(
        document["problems"].as_array().unwrap().len(),
        1,
        "over all pages"
    );
    assert_eq!(document["problems_left_out"], 2);
}

#[tokio::test]
async fn a_healthy_tree_exits_with_0_and_a_missing_one_with_3() {
    let cluster = Cluster::default();
    let server = cluster.serve();
    assert_eq!(minfs(&server, &["fsck", "/x"]).await.0, Exit::NotFound);
    let counts = FileCounts {
        files: 1,
        healthy: 1,
        ..FileCounts::default()
    };
    let page = |next: &str| CheckFilesResponse {
        counts: Some(counts),
        problems: Vec::new(),
        next: next.into(),
    };
    cluster.state().pages.insert(String::new(), page(""));
    let (exit, printed) = minfs(&server, &["fsck"]).await;
    assert_eq!(exit, Exit::Ok);
    assert!(printed.starts_with("HEALTHY: "), "{printed}");
    for word in ["NOTE", "HELD BACK"] {
        assert!(!printed.contains(word), "{printed}");
    }
    // A server whose pages have no end.
    cluster.state().pages.insert(String::new(), page("/a"));
    cluster.state().pages.insert("/a".into(), page("/a"));
    assert_eq!(minfs(&server, &["fsck"]).await.0, Exit::Server);
}

#[tokio::test]
async fn the_operators_word_is_given() {
    let (cluster, server) = ill();
    let (exit, printed) = minfs(&server, &["fsck", "--allow-mass-delete"]).await;
    assert_eq!(
        (exit, printed.as_str()),
        (Exit::Ok, "40 deletes that were held back may go on\n")
    );
    assert_eq!(cluster.state().held_back, 0);
    assert_eq!(
        minfs(&server, &["fsck", "--allow-mass-delete"]).await.1,
        "no deletes are held back\n"
    );
    let (_, document) = json(&server, &["fsck", "--allow-mass-delete"]).await;
    assert_eq!(document, serde_json::json!({"allowed_deletes": 0}));
    assert!(Arguments::try_parse_from(["minfs", "fsck", "--allow-mass-delete", "/x"]).is_err());
}

#[tokio::test]
async fn replicas_are_a_table_with_blocks_where_they_are_asked_for() {
    let cluster = Cluster::default();
    let server = cluster.serve();
    let file = |path: &str, locations: &[&str], status: &str| ReplicationStatus {
        path: path.into(),
        inode: 2,
        size: 4096,
        expected_replicas: 2,
        actual_replicas: locations.len() as u32,
        blocks: vec![BlockReplicationInfo {
            block_id: 9,
            locations: texts(locations),
            expected_locations: texts(&["ds1:1", "ds2:1"]),
            replica_count: locations.len() as u32,
        }],
        status: status.into(),
    };
    let files = vec![
        file("/a", &["ds1:1", "ds2:1"], "healthy"),
        file("/b", &[], "under_replicated"),
    ];
    cluster.state().replication_info = GetReplicationInfoResponse {
        files: files.clone(),
        total_files: 2,
        healthy_files: 1,
        under_replicated_files: 1,
        over_replicated_files: 0,
    };
    let (exit, printed) = minfs(&server, &["replicas"]).await;
    assert_eq!(exit, Exit::Ok);
    let expected = [
        "SIZE  WANTED  ACTUAL  STATUS            PATH",
        "4096  2       2       healthy           /a",
        "4096  2       0       under_replicated  /b",
        "2 files: 1 healthy, 1 under-replicated, 0 over-replicated",
    ];
    assert_eq!(lines(&printed), expected);
    let (_, printed) = minfs(&server, &["replicas", "--blocks"]).await;
    assert_eq!(
        lines(&printed)[2],
        "  block 9: on ds1:1 ds2:1; wanted on ds1:1 ds2:1"
    );
    assert_eq!(lines(&printed)[4], "  block 9: on none; wanted on ds1:1 ds2:1");
    let (_, document) = json(&server, &["replicas"]).await;
    assert_eq!(
        (&document["total_files"], &document["files"][1]["status"]),
        (&2.into(), &"under_replicated".into())
    );
    assert_eq!(document["files"][0]["blocks"], Value::Null);

    cluster.state().replication_info.files.truncate(1);
    let (_, printed) = minfs(&server, &["replicas", "/a"]).await;
    assert_eq!(
        lines(&printed).len(),
        4,
        "one file has its blocks shown: {printed}"
    );
    let (_, document) = json(&server, &["replicas", "/a"]).await;
    assert_eq!(document["files"][0]["blocks"][0]["locations"][1], "ds2:1");
}
