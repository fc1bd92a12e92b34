//! kill -9 of the leader under load, again and again: a new leader within two seconds, nothing that
//! was acknowledged is missing, and writes go on through the remaining nodes.
//!
//! `MINFS_FAILOVERS=10` kills ten leaders; three is for everyday.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::cluster::{Cluster, FAILOVER, Setup, turn};
use support::load::Load;

/// Clients of each node.
const CLIENTS: usize = 4;

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_leaders_die_under_load() {
    let _turn = turn();
    let failovers = std::env::var("MINFS_FAILOVERS").map_or(3, |count| count.parse().unwrap());
    let mut cluster = Cluster::formed(Setup::default()).await;
    let load = Load::start(&cluster, "/load", &cluster.all(), CLIENTS).await;
    let mut elections = Vec::new();
    let mut pauses = Vec::new();
    for round in 1..=failovers {
        let leader = cluster.leader().await;
        load.goes_on_through(&cluster.all(), 20).await;
        let term = cluster.answers(leader).await.term;
        let rest = cluster.others(leader);

        let killed = Instant::now();
        cluster.kill(leader);
        cluster.new_leader(&rest, term).await;
        let elected = killed.elapsed();
        let writes = load.first_after(killed).await - killed;
        load.goes_on_through(&rest, 10).await;
        println!("failover {round}: a new leader after {elected:.2?}, the first write after {writes:.2?}");
        elections.push(elected);
        pauses.push(writes);

        cluster.start(leader);
        cluster.level().await;
    }
    let done = load.stop().await;
    println!(
        "{} creates acknowledged, {} failed; leader: {}; first write: {}",
        done.book.acknowledged.len(),
        done.book.failed.len(),
        summary(&mut elections),
        summary(&mut pauses),
    );
    done.is_seen_through(&cluster, &cluster.all()).await;
    let slow: Vec<_> = elections.iter().filter(|elected| **elected > FAILOVER).collect();
    assert!(
        slow.is_empty(),
        "elections took longer than {FAILOVER:?}: {slow:?}"
    );
}

fn summary(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let (least, median, most) = (times[0], times[times.len() / 2], times[times.len() - 1]);
    format!("least {least:.2?}, median {median:.2?}, most {most:.2?}")
}
