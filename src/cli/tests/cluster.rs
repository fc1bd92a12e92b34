//! `cluster` and `leader`, with nodes that are gone.

use super::*;

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
