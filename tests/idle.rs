//! A cluster that nobody uses rests: its nodes beat and listen, and leave the processor to others.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::cluster::{Cluster, Setup, turn};

/// For how long the cluster is watched.
const WATCHED: Duration = Duration::from_secs(3);

#[tokio::test]
async fn an_idle_node_uses_little_of_the_processor() {
    let _turn = turn();
    let mut cluster = Cluster::formed(Setup::default()).await;
    cluster.complete().await;
    let before: Vec<_> = cluster
        .all()
        .into_iter()
        .map(|n| cluster.processor_time(n))
        .collect();
    // A window of observation: what is looked for is that nothing goes on.
    tokio::time::sleep(WATCHED).await;
    for (n, before) in before.into_iter().enumerate() {
        let used = cluster.processor_time(n) - before;
        println!("node {n} used {used:?} of {WATCHED:?}");
        assert!(
            used < WATCHED / 4,
            "node {n} used {used:?} of {WATCHED:?} doing nothing"
        );
    }
}
