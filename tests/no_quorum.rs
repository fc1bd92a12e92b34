//! While no leader exists every request is answered within its bound, by an error that says so, and a
//! node does not pretend to be well.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt, join_all};
use minfs::proto::dfs::{
    CreateNodeRequest, DeleteNodeRequest, FileType, FinalizeWriteRequest, GetBlockLocationsRequest,
    GetClusterInfoRequest, GetLeaderRequest, GetNodeInfoRequest, GetReplicationInfoRequest, HeartbeatRequest,
    ListDirectoryRequest,
};
use support::cluster::{Cluster, EVENTUALLY, Setup, turn};
use support::data_servers::Fleet;
use support::load::list;
use support::wait::until;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// The server's bound of 5 s, and a little for a busy machine.
const BOUND: Duration = Duration::from_millis(5500);

async fn health(cluster: &Cluster, n: usize) -> ServingStatus {
    let mut client = HealthClient::new(cluster.channel(n));
    let request = HealthCheckRequest {
        service: String::new(),
    };
    client.check(request).await.unwrap().into_inner().status()
}

async fn becomes(cluster: &Cluster, n: usize, wanted: ServingStatus) {
    until(&format!("node {n} is {wanted:?}"), EVENTUALLY, async || {
        (health(cluster, n).await == wanted).then_some(())
    })
    .await;
}

/// What the node answers to each kind of request, and after which time; all asked at once.
async fn answers(cluster: &Cluster, n: usize) -> Vec<(&'static str, Duration, Result<(), Status>)> {
    let path = || "/file".to_owned();
    type Asked = BoxFuture<'static, Result<(), Status>>;
    macro_rules! ask {
        ($rpc:ident, $request:expr) => {{
            let mut client = cluster.raw(n);
            (
                stringify!($rpc),
                async move { client.$rpc($request).await.map(drop) }.boxed() as Asked,
            )
        }};
    }
    let asked = [
        ask!(
            create_node,
            CreateNodeRequest {
                path: "/new".to_owned(),
                r#type: FileType::File as i32
            }
        ),
        ask!(
            delete_node,
            DeleteNodeRequest {
                path: path(),
                recursive: false
            }
        ),
        ask!(
            get_block_locations,
            GetBlockLocationsRequest {
                path: path(),
                size: 0,
                ..GetBlockLocationsRequest::default()
            }
        ),
        ask!(
            get_block_locations,
            GetBlockLocationsRequest {
                path: path(),
                size: 1 << 20,
                ..GetBlockLocationsRequest::default()
            }
        ),
        ask!(
            finalize_write,
            FinalizeWriteRequest {
                path: path(),
                inode: 2,
                ..FinalizeWriteRequest::default()
            }
        ),
        ask!(get_node_info, GetNodeInfoRequest { path: path() }),
        ask!(list_directory, ListDirectoryRequest { path: "/".to_owned() }),
        ask!(get_replication_info, GetReplicationInfoRequest { path: path() }),
        ask!(get_cluster_info, GetClusterInfoRequest {}),
        ask!(
            heartbeat,
            HeartbeatRequest {
                data_server_id: "ds-new".to_owned(),
                data_server_addr: "0.0.0.0:8099".to_owned(),
                ..HeartbeatRequest::default()
            }
        ),
    ];
    join_all(asked.into_iter().map(|(rpc, answer)| async move {
        let begun = Instant::now();
        // Twice the bound: one that hangs shall not hang the test.
        let answer = tokio::time::timeout(2 * BOUND, answer).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::unknown("the test gave up")));
        (rpc, begun.elapsed(), answer)
    }))
    .await
}

async fn says_no_in_time(cluster: &Cluster, n: usize) {
    for (rpc, took, answer) in answers(cluster, n).await {
        assert!(
            took <= BOUND,
            "{rpc} was answered only after {took:?}: {answer:?}"
        );
        match (rpc, answer) {
            // They may be answered from what the node knows.
            ("get_cluster_info" | "heartbeat", Ok(())) => {}
            (_, Ok(())) => panic!("{rpc} was done without a majority"),
            (_, Err(status)) => {
                let said = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
                assert!(said, "{rpc}: {status:?}");
            }
        }
    }
}

/// `GetLeader` answers at once, and names nobody as soon as the lease is over.
async fn knows_no_leader(cluster: &Cluster, n: usize) {
    until(&format!("node {n} knows no leader"), EVENTUALLY, async || {
        let begun = Instant::now();
        let answer = cluster
            .raw(n)
            .get_leader(GetLeaderRequest {})
            .await
            .unwrap()
            .into_inner();
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(500), "GetLeader took {took:?}");
        answer.leader.is_none().then_some(())
    })
    .await;
}

/// Kills all but one node and asks that one; then the others return.
async fn left_alone(leader_is_left: bool) {
    let mut cluster = Cluster::formed(Setup::default()).await;
    let fleet = Fleet::start(&cluster, 3).await;
    let client = cluster.any_client().await;
    client.create("/file", FileType::File).await.unwrap();
    let leader = cluster.leader().await;
    let left = if leader_is_left {
        leader
    } else {
        cluster.others(leader)[0]
    };
    for n in cluster.all() {
        becomes(&cluster, n, ServingStatus::Serving).await;
    }
    fleet.stop().await;
    let rest = cluster.others(left);
    for n in &rest {
        cluster.kill(*n);
    }
    let killed = Instant::now();
    // While the node still believes in its leader, and when it does not any more.
    let early = says_no_in_time(&cluster, left);
    let finds_out = async {
        knows_no_leader(&cluster, left).await;
        let no_leader = killed.elapsed();
        becomes(&cluster, left, ServingStatus::NotServing).await;
        (no_leader, killed.elapsed())
    };
    let ((), (no_leader, not_serving)) = tokio::join!(early, finds_out);
    println!(
        "left alone (it led: {leader_is_left}): no leader after {no_leader:.1?}, not serving after {not_serving:.1?}"
    );
    says_no_in_time(&cluster, left).await;

    for n in rest {
        cluster.start(n);
    }
    cluster.complete().await;
    becomes(&cluster, left, ServingStatus::Serving).await;
    let client = cluster.client(left).await;
    client.create("/again", FileType::File).await.unwrap();
    // What was never acknowledged may have happened, but not by halves.
    cluster.level().await;
    for n in cluster.all() {
        assert_eq!(
            list(&cluster, n, "/").await,
            list(&cluster, left, "/").await,
            "node {n} differs"
        );
    }
}

#[tokio::test]
async fn a_follower_left_alone_answers_in_time() {
    let _turn = turn();
    left_alone(false).await;
}

#[tokio::test]
async fn a_leader_left_alone_answers_in_time() {
    let _turn = turn();
    left_alone(true).await;
}
