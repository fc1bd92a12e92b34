//! The first start: nodes come up in any order, `--bootstrap` is given once, twice or again, one node
//! is enough for a cluster of one, and a cluster never takes a node of another one in.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use minfs::proto::admin::Role;
use minfs::proto::dfs::{CreateNodeRequest, FileType};
use support::cluster::{Cluster, Setup, turn};
use support::load::list;
use tonic::Code;

async fn touch(cluster: &Cluster, n: usize, path: &str) {
    cluster
        .client(n)
        .await
        .create(path, FileType::File)
        .await
        .unwrap();
}

/// Every node takes a write, and every node then sees all of them.
async fn works(cluster: &Cluster, prefix: &str) {
    for n in cluster.running() {
        touch(cluster, n, &format!("/{prefix}-{n}")).await;
    }
    for n in cluster.running() {
        let seen = list(cluster, n, "/").await;
        for written in cluster.running() {
            let path = format!("/{prefix}-{written}");
            assert!(
                seen.contains(&path),
                "{path} is not seen through node {n}: {seen:?}"
            );
        }
    }
}

#[tokio::test]
async fn the_bootstrap_node_comes_last() {
    let _turn = turn();
    let mut cluster = Cluster::new(Setup::default());
    cluster.start(1);
    cluster.start(2);
    for n in [1, 2] {
        let status = cluster.answers(n).await;
        assert_eq!(
            (status.role(), status.cluster_id.as_str()),
            (Role::Learner, ""),
            "{status:?}"
        );
    }
    let request = CreateNodeRequest {
        path: "/early".to_owned(),
        r#type: FileType::File as i32,
    };
    let refused = cluster.raw(1).create_node(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    cluster.bootstrap(0);
    cluster.complete().await;
    works(&cluster, "file").await;
}

#[tokio::test]
async fn the_bootstrap_node_comes_first_and_the_last_node_much_later() {
    let _turn = turn();
    let mut cluster = Cluster::new(Setup::default());
    cluster.bootstrap(0);
    let alone = cluster.answers(0).await;
    assert_eq!(
        (alone.role(), alone.leader),
        (Role::Learner, None),
        "one of three is no cluster"
    );
    cluster.start(1);
    // Two of three are a majority, and do not wait for ever.
    cluster.leader().await;
    works(&cluster, "two").await;
    cluster.start(2);
    cluster.complete().await;
    works(&cluster, "three").await;
}

#[tokio::test]
async fn bootstrap_on_two_nodes_and_bootstrap_again() {
    let _turn = turn();
    let mut cluster = Cluster::new(Setup::default());
    cluster.bootstrap(2);
    cluster.bootstrap(1);
    cluster.start(0);
    cluster.complete().await;
    works(&cluster, "first").await;
    let mut before = Vec::new();
    for n in cluster.all() {
        let status = cluster.answers(n).await;
        before.push((status.cluster_id, status.incarnation));
    }
    assert!(
        before.iter().all(|(id, _)| *id == before[0].0 && !id.is_empty()),
        "{before:?}"
    );

    // On a restart of one node of a running cluster, and of all.
    cluster.kill(1);
    cluster.bootstrap(1);
    cluster.complete().await;
    works(&cluster, "second").await;
    for n in cluster.all() {
        cluster.terminate(n).await;
    }
    for n in cluster.all() {
        cluster.bootstrap(n);
    }
    cluster.complete().await;
    works(&cluster, "third").await;
    for (n, before) in before.into_iter().enumerate() {
        let status = cluster.answers(n).await;
        assert_eq!((status.cluster_id, status.incarnation), before);
        assert_eq!(list(&cluster, n, "/").await.len(), 9);
    }
}

#[tokio::test]
async fn one_node_alone() {
    let _turn = turn();
    let mut cluster = Cluster::formed(Setup {
        nodes: 1,
        ..Setup::default()
    })
    .await;
    works(&cluster, "before").await;
    cluster.kill(0);
    cluster.start(0);
    cluster.leader().await;
    works(&cluster, "after").await;
    assert_eq!(list(&cluster, 0, "/").await, ["/after-0", "/before-0"]);
}

#[tokio::test]
async fn a_node_of_another_cluster_is_not_taken_in() {
    let _turn = turn();
    // Node 2 is bootstrapped alone, and is away while 0 and 1 form a cluster. They believe it to be their
    // third; it knows nothing of them.
    let mut cluster = Cluster::new(Setup::default());
    cluster.write_config("alone.yaml", &[2]);
    cluster.start_with(2, "alone.yaml", &["--bootstrap"]);
    cluster
        .until_status(2, "leads itself", |status| status.role() == Role::Leader)
        .await;
    touch(&cluster, 2, "/mine").await;
    let other = cluster.answers(2).await.cluster_id;
    cluster.terminate(2).await;
    cluster.bootstrap(0);
    cluster.start(1);
    let leader = cluster.leader().await;

    cluster.start_with(2, "alone.yaml", &["--bootstrap"]);
    cluster
        .logged(leader, &format!("belongs to cluster {other}"))
        .await;
    // With the shared configuration it finds them in turn.
    cluster.terminate(2).await;
    cluster.start(2);
    let ours = cluster.answers(leader).await.cluster_id;
    cluster
        .logged(
            2,
            &format!("belongs to cluster {ours}, this node to cluster {other}"),
        )
        .await;

    // Both go on for themselves.
    cluster
        .until_status(2, "leads itself", |status| status.role() == Role::Leader)
        .await;
    cluster.leader_of(&[0, 1]).await;
    touch(&cluster, 0, "/theirs").await;
    // Nothing may happen here: several looks of each leader at its membership.
    tokio::time::sleep(Duration::from_secs(2)).await;
    touch(&cluster, 1, "/theirs-too").await;
    touch(&cluster, 2, "/mine-too").await;
    assert_eq!(list(&cluster, 0, "/").await, ["/theirs", "/theirs-too"]);
    assert_eq!(list(&cluster, 1, "/").await, ["/theirs", "/theirs-too"]);
    assert_eq!(list(&cluster, 2, "/").await, ["/mine", "/mine-too"]);
    let (ours, foreign) = (cluster.answers(0).await, cluster.answers(2).await);
    assert_eq!(foreign.cluster_id, other);
    assert_ne!(ours.cluster_id, other);
    assert_eq!(ours.members.len(), 2, "{ours:?}");
    assert_eq!(foreign.members.len(), 1, "{foreign:?}");
}
