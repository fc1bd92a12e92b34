//! A node that lost its disk is a new node (design rule 9): it is recognised, does not vote, is
//! refilled, and then counts again without an operator.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use minfs::proto::admin::Role;
use minfs::proto::dfs::{CreateNodeRequest, FileType, GetNodeInfoRequest};
use support::cluster::{Cluster, Setup, members, turn};
use support::load::{Load, list};
use tonic::Code;

#[tokio::test]
async fn a_wiped_node_takes_its_own_place_again() {
    let _turn = turn();
    let mut cluster = Cluster::formed(Setup::default()).await;
    let load = Load::start(&cluster, "/load", &cluster.all(), 2).await;
    load.goes_on(60).await;
    let leader = cluster.leader().await;
    // First a follower, then the leader itself.
    for wiped in [cluster.others(leader)[0], leader] {
        let before = cluster.answers(wiped).await;
        cluster.kill(wiped);
        cluster.wipe(wiped);
        load.goes_on(30).await;
        let rest = cluster.others(wiped);
        let leader = cluster.leader_of(&rest).await;
        cluster.start(wiped);

        let name = cluster.node(wiped).name.clone();
        let after = cluster
            .until_status(wiped, "votes as a new incarnation", |status| {
                members(status).get(&name) == Some(&(status.incarnation, true))
            })
            .await;
        assert_ne!(after.incarnation, before.incarnation);
        assert_eq!(after.cluster_id, before.cluster_id);
        let filled = format!("(incarnation {}) as a learner", after.incarnation);
        let promoted = format!("(incarnation {}) has caught up and votes", after.incarnation);
        let log = cluster.log(leader);
        let at = |text: &str| {
            log.find(text)
                .unwrap_or_else(|| panic!("the leader did not log {text:?}"))
        };
        assert!(at(&filled) < at(&promoted), "a learner first, and then a voter");
        // The old incarnation is forgotten.
        cluster.complete().await;
        load.goes_on_through(&cluster.all(), 20).await;

        // Its vote counts: with another node gone, nothing is written without it.
        let other = cluster
            .all()
            .into_iter()
            .find(|n| *n != leader && *n != wiped)
            .unwrap();
        cluster.kill(other);
        load.goes_on_through(&[wiped], 5).await;
        cluster.start(other);
        cluster.level().await;
    }
    let done = load.stop().await;
    done.is_seen_through(&cluster, &cluster.all()).await;
}

#[tokio::test]
async fn an_empty_voter_does_not_help_to_elect_a_stale_leader() {
    let _turn = turn();
    let mut cluster = Cluster::formed(Setup::default()).await;
    // A leads, and C lags.
    let a = cluster.leader().await;
    let [b, c] = cluster.others(a).try_into().unwrap();
    let client = cluster.client(a).await;
    client.create("/before", FileType::File).await.unwrap();
    cluster.level().await;
    let c_has = cluster.answers(c).await.last_log_index.unwrap();
    cluster.kill(c);
    for n in 0..20 {
        client
            .create(&format!("/acknowledged-{n:02}"), FileType::File)
            .await
            .unwrap();
    }
    let term = cluster.answers(a).await.term;
    // B is wiped, and A dies.
    cluster.kill(b);
    cluster.wipe(b);
    cluster.kill(a);

    // C and the empty B are up.
    cluster.start(c);
    cluster.start(b);
    let fresh = cluster.answers(b).await;
    assert_eq!(
        (fresh.role(), fresh.last_log_index.unwrap_or(0)),
        (Role::Learner, 0),
        "{fresh:?}"
    );
    // C has its old log, finds that A is silent, and stands for election...
    cluster
        .until_status(c, "knows no leader", |status| {
            status.leader.is_none() && status.last_log_index == Some(c_has)
        })
        .await;
    // ...and must not win: several times as long as an election takes.
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        for n in [b, c] {
            let status = cluster.answers(n).await;
            assert_ne!(status.role(), Role::Leader, "{status:?}");
            assert_eq!(status.leader, None, "{status:?}");
            assert_eq!(
                status.last_log_index.unwrap_or(0),
                if n == c { c_has } else { 0 },
                "{status:?}"
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (mut at_b, mut at_c) = (cluster.raw(b), cluster.raw(c));
    let create = CreateNodeRequest {
        path: "/lost".to_owned(),
        r#type: FileType::File as i32,
    };
    let stat = GetNodeInfoRequest {
        path: "/acknowledged-00".to_owned(),
    };
    let (written, read) = tokio::join!(at_b.create_node(create), at_c.get_node_info(stat));
    for refused in [written.unwrap_err(), read.unwrap_err()] {
        assert!(
            matches!(refused.code(), Code::Unavailable | Code::DeadlineExceeded),
            "{refused:?}"
        );
    }

    // A returns.
    cluster.start(a);
    cluster.complete().await;
    assert!(cluster.answers(a).await.term > term);
    for n in cluster.all() {
        let seen = list(&cluster, n, "/").await;
        assert_eq!(seen.len(), 21, "through node {n}: {seen:?}");
    }
    // All three vote: any two of them will do.
    for n in cluster.all() {
        cluster.kill(n);
        let rest = cluster.others(n);
        cluster.leader_of(&rest).await;
        cluster
            .client(rest[0])
            .await
            .create(&format!("/without-{n}"), FileType::File)
            .await
            .unwrap();
        cluster.start(n);
        cluster.level().await;
    }
}
