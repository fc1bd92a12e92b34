//! `cluster` and `leader`, with nodes that are gone.

use super::*;
use crate::proto::admin::{StateHash, StateVerification, VerifyStateResponse};

fn meta(addr: &str) -> MetaServerMsg {
    let (host, port) = addr.rsplit_once(':').unwrap();
    MetaServerMsg {
        host: host.into(),
        port: port.parse().unwrap(),
    }
}

fn status(incarnation: u64, role: Role, members: &[Member]) -> GetNodeStatusResponse {
    GetNodeStatusResponse {
        name: format!("meta-{incarnation}"),
        incarnation,
        cluster_id: "c1".into(),
        role: role as i32,
        term: 4,
        leader: Some("meta-1".into()),
        applied_index: Some(10 + incarnation),
        members: members.to_vec(),
        ..GetNodeStatusResponse::default()
    }
}

fn member(incarnation: u64, grpc_addr: &str) -> Member {
    Member {
        name: format!("meta-{incarnation}"),
        incarnation,
        raft_addr: format!("raft:{incarnation}"),
        grpc_addr: grpc_addr.into(),
        voter: true,
        matched_index: None,
    }
}

#[tokio::test]
async fn the_table_of_nodes_has_the_dead_one_too() {
    let cluster = Cluster::default();
    let (one, two, dead) = (cluster.serve(), cluster.serve(), DeadAddress::new());
    let members = [member(1, &one.addr), member(2, &two.addr), member(3, &dead.addr)];
    one.set_status(status(1, Role::Leader, &members));
    two.set_status(status(2, Role::Follower, &members));
    cluster.state().leader = Some(meta(&one.addr));
    cluster.state().cluster = ClusterInfo {
        master_meta_server: Some(meta(&one.addr)),
        slave_meta_server: vec![meta(&two.addr), meta(&dead.addr)],
        data_server: vec![DataServerMsg {
            host: "ds1".into(),
            port: 8001,
            file_total: 5,
            capacity: 100,
            use_capacity: 20,
        }],
    };

    // Only a follower is named; the others are found through it.
    let (exit, document) = json(&two, &["cluster"]).await;
    assert_eq!(exit, Exit::Ok);
    assert_eq!(
        (&document["leader"], &document["cluster_id"]),
        (&"meta-1".into(), &"c1".into())
    );
    let nodes = document["nodes"].as_array().unwrap();
    let column = |name: &str| {
        nodes
            .iter()
            .map(|node| node[name].clone())
            .collect::<Vec<Value>>()
    };
    assert_eq!(column("name"), ["meta-1", "meta-2", "meta-3"]);
    assert_eq!(
        column("role"),
        [Value::from("leader"), "follower".into(), Value::Null]
    );
    assert_eq!(column("raft"), ["raft:1", "raft:2", "raft:3"]);
    assert_eq!(column("applied"), [Value::from(11), 12.into(), Value::Null]);
    assert_eq!(column("incarnation"), ["1", "2", "3"]);
    assert_eq!(column("reachable"), [true, true, false]);
    assert_eq!(document["data_servers"][0]["address"], "ds1:8001");

    let (_, printed) = minfs(&two, &["cluster"]).await;
    let table = lines(&printed);
    let words = |line: &str| line.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    assert_eq!(
        words(table[1])[..5],
        ["meta-1", "leader", one.addr.as_str(), "raft:1", "4"]
    );
    assert!(table[3].contains("no: "), "{printed}");
    assert_eq!(words(table[6]), ["ds1:8001", "5", "100", "20"]);

    assert_eq!(
        minfs(&two, &["leader"]).await,
        (Exit::Ok, format!("{}\n", one.addr))
    );
    let (_, document) = json(&two, &["leader"]).await;
    assert_eq!(document["followers"][1], dead.addr.as_str());
}

#[tokio::test]
async fn the_table_says_which_node_takes_no_writes() {
    let cluster = Cluster::default();
    let server = cluster.serve();
    server.set_status(GetNodeStatusResponse {
        free_space: 20,
        writes_refused: "0.0 MiB free in /data".into(),
        ..status(1, Role::Leader, &[member(1, &server.addr)])
    });
    cluster.state().leader = Some(meta(&server.addr));
    let (_, printed) = minfs(&server, &["cluster"]).await;
    assert!(printed.contains("yes: 0.0 MiB free in /data"), "{printed}");
    let (_, document) = json(&server, &["cluster"]).await;
    let node = &document["nodes"][0];
    assert_eq!(node["free_space"], 20);
    assert_eq!(node["writes_refused"], "0.0 MiB free in /data");
}

#[tokio::test]
async fn the_table_is_printed_without_a_leader() {
    let (server, dead) = (Cluster::default().serve(), DeadAddress::new());
    server.set_status(status(1, Role::Candidate, &[member(1, "elsewhere:1")]));
    server.fail_always(Fault::Unavailable { leader: None });
    let servers = format!("{},{}", server.addr, dead.addr);
    let (exit, printed) = minfs_at(&servers, &["--json", "--timeout", "300ms", "cluster"]).await;
    assert_eq!(exit, Exit::Unavailable);
    let document: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(document["error"]["kind"], "unavailable");
    assert_eq!(document["data_servers"], Value::Null);
    let mut nodes = document["nodes"].as_array().unwrap().clone();
    nodes.sort_by_key(|node| node["reachable"].as_bool());
    assert_eq!(
        (nodes[0]["grpc"].as_str(), nodes.len()),
        (Some(dead.addr.as_str()), 2)
    );
    assert_eq!(
        (&nodes[1]["role"], &nodes[1]["name"]),
        (&"candidate".into(), &"meta-1".into())
    );
    assert_eq!(
        minfs_at(&servers, &["--timeout", "300ms", "leader"]).await.0,
        Exit::Unavailable
    );
}

fn hash(value: u8) -> Vec<u8> {
    vec![value; 16]
}

/// A node whose state has `computed` for its records where its hash says `recorded`, and these hashes after
/// the log entries 5, 6 ...
fn verified(recorded: u8, computed: u8, recent: &[u8]) -> VerifyStateResponse {
    let recent = recent.iter().zip(5..).map(|(value, index)| StateHash {
        index,
        hash: hash(*value),
    });
    VerifyStateResponse {
        begun: 1,
        records_so_far: None,
        last: Some(StateVerification {
            number: 1,
            recorded: Some(StateHash {
                index: 6,
                hash: hash(recorded),
            }),
            computed: hash(computed),
            records: 3,
            ..StateVerification::default()
        }),
        recent: recent.collect(),
    }
}

#[tokio::test]
async fn verifying_compares_the_states_of_all_nodes() {
    let cluster = Cluster::default();
    let nodes = [cluster.serve(), cluster.serve(), cluster.serve()];
    let members: Vec<_> = (1..).zip(&nodes).map(|(n, node)| member(n, &node.addr)).collect();
    for (n, node) in (1..).zip(&nodes) {
        node.set_status(status(n, Role::Follower, &members));
    }
    let verdicts = async |answers: [VerifyStateResponse; 3]| {
        for (node, answer) in nodes.iter().zip(answers) {
            node.set_verification(answer);
        }
        let (exit, document) = json(&nodes[0], &["cluster", "--verify"]).await;
        let verdicts = document["nodes"].as_array().unwrap().iter();
        let verdicts: Vec<_> = verdicts
            .map(|node| node["verdict"].as_str().unwrap().to_owned())
            .collect();
        (exit, document["index"].as_u64(), verdicts.join(" "))
    };
    let sound = || verified(2, 2, &[1, 2, 3]);

    // The last that all have counts: one is a log entry behind.
    let answers = [sound(), sound(), verified(2, 2, &[1, 2])];
    assert_eq!(
        verdicts(answers).await,
        (Exit::Ok, Some(6), "agrees agrees agrees".to_owned())
    );
    let answers = [sound(), verified(9, 9, &[1, 9, 9]), sound()];
    let expected = (Exit::Differences, Some(7), "agrees differs agrees".to_owned());
    assert_eq!(verdicts(answers).await, expected);
    let answers = [verified(8, 8, &[8, 8, 8]), verified(9, 9, &[9, 9, 9]), sound()];
    let expected = (Exit::Differences, Some(7), "differs differs differs".to_owned());
    assert_eq!(verdicts(answers).await, expected);
    let answers = [sound(), sound(), verified(2, 7, &[1, 2, 3])];
    let expected = (Exit::Damaged, Some(7), "agrees agrees damaged".to_owned());
    assert_eq!(verdicts(answers).await, expected);
    let mut unreadable = sound();
    unreadable.last.as_mut().unwrap().problem = "MDB_CORRUPTED".to_owned();
    let expected = (Exit::Damaged, Some(7), "agrees damaged agrees".to_owned());
    assert_eq!(verdicts([sound(), unreadable, sound()]).await, expected);

    let [one, two, gone] = nodes;
    drop(gone);
    for node in [&one, &two] {
        node.set_verification(sound());
    }
    let (exit, lines) = minfs(&one, &["cluster", "--verify"]).await;
    assert_eq!(exit, Exit::Unavailable, "{lines}");
    let last = lines.lines().find(|line| line.starts_with("meta-3")).unwrap();
    assert!(last.contains("not known: "), "{lines}");
    assert!(
        lines.contains("02020202") || lines.contains("03030303"),
        "{lines}"
    );
}
