//! A leader that is cut off from both followers, and not from its clients, stops acknowledging writes
//! and answering linearizable reads; the others elect and go on; and when the cable is back it
//! follows, and what it never acknowledged is not seen. Likewise for one that sleeps and wakes up.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt, join_all};
use minfs::proto::admin::Role;
use minfs::proto::dfs::{CreateNodeRequest, FileType, GetLeaderRequest, GetNodeInfoRequest};
use support::cluster::{Cluster, EVENTUALLY, FAILOVER, Setup, turn};
use support::load::{Load, list};
use support::network::Network;
use support::wait::until;
use tonic::{Code, Status};

/// The server's bound of 5 s, and a little for a busy machine.
const BOUND: Duration = Duration::from_millis(5500);

/// What one request came to, and after which time.
type Answer = BoxFuture<'static, (String, Duration, Result<(), Status>)>;

/// Ten writes, and as many reads, at one node.
fn asks(cluster: &Cluster, n: usize, name: &str) -> Vec<Answer> {
    let one = |number| {
        let mut client = cluster.raw(n);
        let path = format!("/{name}-{number}");
        async move {
            let begun = Instant::now();
            if number % 2 == 0 {
                let request = CreateNodeRequest {
                    path: path.clone(),
                    r#type: FileType::File as i32,
                };
                let answer = client.create_node(request).await.map(drop);
                (format!("the write of {path}"), begun.elapsed(), answer)
            } else {
                let request = GetNodeInfoRequest {
                    path: "/load".to_owned(),
                };
                let answer = client.get_node_info(request).await.map(drop);
                ("a read".to_owned(), begun.elapsed(), answer)
            }
        }
        .boxed()
    };
    (0..20).map(one).collect()
}

async fn all_refused(asked: Vec<Answer>) {
    for (what, took, answer) in join_all(asked).await {
        match answer {
            Ok(()) => panic!("{what} was answered by a leader that is cut off"),
            Err(status) => {
                let honest = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
                assert!(honest, "{what}: {status:?}");
            }
        }
        assert!(took <= BOUND, "{what} was answered only after {took:?}");
    }
}

#[tokio::test]
async fn a_leader_that_is_cut_off_acknowledges_nothing() {
    let _turn = turn();
    let Some(network) = Network::new(3) else { return };
    let mut cluster = Cluster::formed(Setup {
        places: network.places(),
        ..Setup::default()
    })
    .await;
    let leader = cluster.leader().await;
    let rest = cluster.others(leader);
    let term = cluster.answers(leader).await.term;
    let load = Load::start(&cluster, "/load", &cluster.all(), 2).await;
    load.goes_on_through(&cluster.all(), 20).await;

    // Writes that the leader still takes into its log, where they stay alone.
    network.cut(leader);
    let cut = Instant::now();
    let early = tokio::spawn(all_refused(asks(&cluster, leader, "early")));
    let (_, new_term) = cluster.new_leader(&rest, term).await;
    let elected = cut.elapsed();
    // From here on another leads: whatever the old one answers now comes too late to be true.
    let moment = Instant::now();
    let late = all_refused(asks(&cluster, leader, "late"));
    let on = load.goes_on_through(&rest, 20);
    tokio::join!(late, on);
    early.await.unwrap();
    // It knows that it is nobody's leader any more.
    until(
        "the node that is cut off names no leader",
        EVENTUALLY,
        async || {
            let answer = cluster
                .raw(leader)
                .get_leader(GetLeaderRequest {})
                .await
                .unwrap()
                .into_inner();
            answer.leader.is_none().then_some(())
        },
    )
    .await;
    println!("cut off: the others had a leader after {elected:.2?}");
    assert!(elected <= FAILOVER, "{elected:?}");

    network.heal(leader);
    let healed = Instant::now();
    let status = cluster
        .until_status(leader, "follows", |status| {
            status.role() == Role::Follower && status.term >= new_term
        })
        .await;
    println!(
        "healed: it follows in term {} after {:.2?}",
        status.term,
        healed.elapsed()
    );
    cluster.level().await;
    load.goes_on_through(&cluster.all(), 20).await;
    let done = load.stop().await;
    let too_late: Vec<_> = done
        .book
        .acknowledged
        .iter()
        .filter(|ack| ack.node == leader && ack.asked >= moment && ack.answered < healed)
        .collect();
    assert!(
        too_late.is_empty(),
        "acknowledged by a leader that was cut off: {too_late:#?}"
    );
    done.is_seen_through(&cluster, &cluster.all()).await;
    let trees = [
        list(&cluster, 0, "/load").await,
        list(&cluster, 1, "/load").await,
        list(&cluster, 2, "/load").await,
    ];
    assert!(trees[0] == trees[1] && trees[1] == trees[2], "the nodes differ");
    for n in cluster.all() {
        assert_eq!(
            list(&cluster, n, "/").await,
            ["/load"],
            "unacknowledged writes are seen through node {n}"
        );
    }
}

/// A leader that is stopped for a while wakes up with requests on its desk, and believes for a moment
/// that nothing has happened.
async fn sleeper(mode: &'static str) {
    let mut cluster = Cluster::formed(Setup {
        reads: mode,
        ..Setup::default()
    })
    .await;
    let mut leader = cluster.leader().await;
    for round in 0..3 {
        let rest = cluster.others(leader);
        let term = cluster.answers(leader).await.term;
        // The connection stands before the leader falls asleep.
        let mut at_sleeper = cluster.raw(leader);
        let path = format!("/while-asleep-{round}");
        let request = GetNodeInfoRequest { path: path.clone() };
        assert_eq!(
            at_sleeper
                .get_node_info(request.clone())
                .await
                .unwrap_err()
                .code(),
            Code::NotFound
        );
        cluster.pause(leader);
        let (next, _) = cluster.new_leader(&rest, term).await;
        cluster
            .client(next)
            .await
            .create(&path, FileType::File)
            .await
            .unwrap();
        let reads = (0..8).map(|_| {
            let (mut client, request) = (at_sleeper.clone(), request.clone());
            tokio::spawn(async move { client.get_node_info(request).await })
        });
        let reads: Vec<_> = reads.collect();
        // Lets the requests leave; when some have not, the test is only less sharp.
        tokio::time::sleep(Duration::from_millis(50)).await;
        cluster.resume(leader);
        for read in reads {
            match read.await.unwrap() {
                Ok(_) => {}
                Err(status) => {
                    let honest = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
                    assert!(honest, "with {mode} reads a stale one: {status:?}");
                }
            }
        }
        leader = cluster.leader().await;
    }
}

#[tokio::test]
async fn a_leader_that_slept_reads_nothing_stale() {
    let _turn = turn();
    sleeper("linearizable").await;
}

#[tokio::test]
async fn a_leader_whose_lease_ran_out_in_its_sleep_reads_nothing_stale() {
    let _turn = turn();
    sleeper("lease").await;
}
