//! How long nobody can write when the leader is killed: `kill -9` under load, again and again.
//!
//! Called by `main`. Clients of all three nodes write; those of the nodes that live are the ones that count, since
//! those of the dead one get no answer. What counts is the time from the kill to the first acknowledgement of a
//! write that was begun after it. The node is started again and has caught up before the next kill, and in the end
//! everything that was acknowledged is there on every node, or the run fails.

use std::time::{Duration, Instant};

use crate::settings::Settings;
use crate::support::cluster::Setup;
use crate::support::load::{Done, Load};

/// Clients of each node: sixteen are left when one node is dead.
const CLIENTS: usize = 8;

/// Acknowledged through each node before the leader is killed, and through each of the others after it.
const UNDER_WAY: usize = 50;

/// Kills leaders and prints what came of it.
pub async fn measure(settings: &Settings) -> Result<(), String> {
    let mut cluster = settings.cluster(Setup::default()).await;
    let (mut begun_after, mut any, mut elected) = (Vec::new(), Vec::new(), Vec::new());
    let mut loads: Vec<Done> = Vec::new();
    for round in 1..=settings.failovers {
        let leader = cluster.leader().await;
        // A directory for each, so that none becomes too long to be listed at once.
        let directory = format!("/load-{round}");
        let load = Load::start(&cluster, &directory, &cluster.all(), CLIENTS).await;
        load.goes_on_through(&cluster.all(), UNDER_WAY).await;
        let term = cluster.answers(leader).await.term;
        let rest = cluster.others(leader);

        let killed = Instant::now();
        cluster.kill(leader);
        cluster.new_leader(&rest, term).await;
        elected.push(killed.elapsed());
        begun_after.push(load.first_after(killed).await - killed);
        any.extend(load.first_answer_after(killed).map(|at| at - killed));
        load.goes_on_through(&rest, UNDER_WAY).await;
        eprintln!(
            "failover {round} of {}: the first write after {:.0?}",
            settings.failovers,
            begun_after.last().unwrap()
        );

        cluster.start(leader);
        cluster.level().await;
        loads.push(load.stop().await);
    }
    let (mut acknowledged, mut failed) = (0, 0);
    for done in &loads {
        done.is_seen_through(&cluster, &cluster.all()).await;
        acknowledged += done.book.acknowledged.len();
        failed += done.book.failed.len();
    }
    println!("| from the kill to | least ms | median ms | most ms |\n|---|---:|---:|---:|");
    for (what, times) in [
        ("the first success of a write begun after it", &begun_after),
        ("the first success of any write", &any),
        ("a status that names a new leader (asked every 20 ms)", &elected),
    ] {
        let mut sorted = times.clone();
        sorted.sort_unstable();
        let at = |n: usize| sorted[n].as_secs_f64() * 1e3;
        println!(
            "| {what} | {:.0} | {:.0} | {:.0} |",
            at(0),
            at(sorted.len() / 2),
            at(sorted.len() - 1)
        );
    }
    println!(
        "\n{} kills; {acknowledged} creates were acknowledged, {failed} failed, none of the acknowledged is missing \
         on any node.\n\nWrites begun after the kill, in the order of the kills, ms: {}",
        settings.failovers,
        listed(&begun_after)
    );
    Ok(())
}

fn listed(times: &[Duration]) -> String {
    let all: Vec<_> = times.iter().map(|time| time.as_millis().to_string()).collect();
    all.join(", ")
}
