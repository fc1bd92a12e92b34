//! The leader dies in the middle of fifty puts: each put succeeds or says that it did not, every
//! success can be read, and no failure leaves a file behind.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::blocks::{DataServers, content, impatient};
use support::cluster::{Cluster, EVENTUALLY, turn};
use support::minfs::{done, ended, got, minfs};
use support::wait::until;

const PUTS: usize = 50;
const SIZE: usize = (4 << 20) + 17;

/// `minfs` says that nobody knows.
const UNKNOWN: i32 = 7;
/// `minfs` says that there is no such file.
const NOT_FOUND: i32 = 3;

#[tokio::test]
async fn each_put_succeeds_or_says_that_it_did_not() {
    let _turn = turn();
    let mut cluster = Cluster::formed(impatient()).await;
    let mut data = DataServers::started(&cluster, 4).await;
    let servers = cluster.servers();
    let local = tempfile::tempdir().unwrap();
    let client = cluster.any_client().await;
    done(&servers, &["mkdir", "/in"]);

    let mut puts = Vec::new();
    for n in 0..PUTS {
        let bytes = content(n as u64 + 1, SIZE);
        let from = local.path().join(n.to_string());
        fs::write(&from, &bytes).unwrap();
        let to = format!("/in/{n}");
        let child = minfs(&servers, &["put", from.to_str().unwrap(), &to]).spawn();
        puts.push((to, bytes, child.unwrap()));
    }
    until("the first of them are there", EVENTUALLY, async || {
        (!client.list("/in").await.ok()?.is_empty()).then_some(())
    })
    .await;
    let leader = cluster.leader().await;
    cluster.kill(leader);

    let mut ends = Vec::new();
    for (to, bytes, child) in puts {
        let output = ended(child, &to);
        ends.push((to, bytes, output));
    }
    let succeeded = ends
        .iter()
        .filter(|(_, _, output)| output.status.success())
        .count();
    println!("{succeeded} of {PUTS} puts succeeded");
    assert!(succeeded > 0);
    for (to, bytes, output) in &ends {
        match output.status.code() {
            Some(0) => assert!(got(&servers, to) == *bytes, "{to} came out different"),
            code => {
                assert!(
                    !output.stderr.is_empty(),
                    "{to} failed without a word: {output:?}"
                );
                let stat = ended(minfs(&servers, &["stat", to]).spawn().unwrap(), to);
                match stat.status.code() {
                    Some(0) if code == Some(UNKNOWN) => assert!(got(&servers, to) == *bytes, "{to}"),
                    absent => assert_eq!(absent, Some(NOT_FOUND), "{to} failed with {code:?} and is there"),
                }
            }
        }
    }
    cluster.start(leader);
    cluster.complete().await;
    data.healthy(&client, 3 * EVENTUALLY).await;
}
