//! SIGTERM of the leader: leadership is handed over first, and a client that writes through another
//! node sees no error.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Instant;

use support::cluster::{Cluster, Setup, turn};
use support::load::Load;

#[tokio::test]
async fn a_leader_that_is_told_to_stop_hands_over_first() {
    let _turn = turn();
    let mut cluster = Cluster::formed(Setup::default()).await;
    for round in 0..3 {
        let leader = cluster.leader().await;
        let rest = cluster.others(leader);
        let load = Load::start(&cluster, &format!("/load-{round}"), &rest, 2).await;
        load.goes_on_through(&rest, 20).await;
        let term = cluster.answers(leader).await.term;

        let told = Instant::now();
        let ended = cluster.terminate(leader).await;
        let stopped = told.elapsed();
        load.goes_on_through(&rest, 20).await;
        let pause = load.longest_pause(told);
        let (_, new_term) = cluster.new_leader(&rest, term).await;
        let done = load.stop().await;
        println!(
            "clean stop {round}: no write for {pause:.2?}, the process ended after {stopped:.2?}, term {term} to {new_term}"
        );
        assert!(
            done.book.failed.is_empty(),
            "a client saw {:#?}",
            done.book.failed
        );
        assert_eq!(ended.code(), Some(0), "{ended}");
        assert_eq!(new_term, term + 1, "it was handed over, not fought for");
        done.is_seen_through(&cluster, &rest).await;

        cluster.start(leader);
        cluster.complete().await;
        done.is_seen_through(&cluster, &[leader]).await;
    }
    // The last ones leave too, one after the other: no majority, and still a clean end.
    for n in cluster.all() {
        let ended = cluster.terminate(n).await;
        assert_eq!(ended.code(), Some(0), "{ended}");
    }
}
