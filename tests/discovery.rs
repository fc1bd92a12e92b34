//! What a real etcd says of a real cluster: a key for each node, exactly one claim to lead, keys that
//! come back after etcd was lost, and metadata that never waits for any of it.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use etcd_client::GetOptions;
use minfs::proto::dfs::FileType;
use serde_json::Value;
use support::cluster::{Cluster, EVENTUALLY, FAILOVER, Setup, turn};
use support::etcd::Etcd;
use support::load::Load;
use support::wait::until;

const NODES: &str = "/minfs/metaServer/nodes/";

/// The keys of MetaServers: the last part of the key, and the value. `None` while etcd does not answer.
async fn keys(etcd: &Etcd) -> Option<BTreeMap<String, String>> {
    let mut client = etcd.client().await;
    let asked = client.get(NODES, Some(GetOptions::new().with_prefix()));
    let answer = tokio::time::timeout(Duration::from_secs(1), asked)
        .await
        .ok()?
        .ok()?;
    let pair = |pair: &etcd_client::KeyValue| {
        let name = pair.key_str().unwrap().strip_prefix(NODES).unwrap().to_owned();
        assert!(pair.lease() != 0, "{name} has no lease");
        (name, pair.value_str().unwrap().to_owned())
    };
    Some(answer.kvs().iter().map(pair).collect())
}

/// Those who claim to lead.
fn claims(keys: &BTreeMap<String, String>) -> Vec<String> {
    let claims = |value: &str| {
        serde_json::from_str::<Value>(value).unwrap()["is_leader"]
            .as_bool()
            .unwrap()
    };
    keys.iter()
        .filter(|(_, value)| claims(value))
        .map(|(name, _)| name.clone())
        .collect()
}

/// Waits until etcd has the keys of exactly these nodes, and this one's claim to lead.
async fn knows(etcd: &Etcd, cluster: &Cluster, nodes: &[usize], leader: usize) -> BTreeMap<String, String> {
    let mut names: Vec<_> = nodes.iter().map(|n| cluster.node(*n).name.clone()).collect();
    names.sort_unstable();
    let leader = cluster.node(leader).name.clone();
    until(
        &format!("etcd knows {names:?}, led by {leader}"),
        EVENTUALLY,
        async || {
            let keys = keys(etcd).await?;
            (keys.keys().eq(names.iter()) && claims(&keys) == [leader.as_str()]).then_some(keys)
        },
    )
    .await
}

fn setup(etcd: &Etcd) -> Setup {
    Setup {
        etcd: vec![etcd.endpoint()],
        ..Setup::default()
    }
}

#[tokio::test]
async fn keys_claims_and_leaving() {
    let _turn = turn();
    let Some(etcd) = Etcd::start().await else { return };
    let mut cluster = Cluster::formed(setup(&etcd)).await;
    let leader = cluster.leader().await;
    let known = knows(&etcd, &cluster, &cluster.all(), leader).await;
    for n in cluster.all() {
        let node = cluster.node(n);
        let value = &known[&node.name];
        // Old clients scan the text: no spaces, and these keys in this order.
        let begin = format!(
            r#"{{"id":"{}","addr":"{}","register_at":""#,
            node.name, node.grpc_addr
        );
        let rest = value
            .strip_prefix(&begin)
            .unwrap_or_else(|| panic!("{value} does not begin with {begin}"));
        let (registered, rest) = rest.split_once('"').unwrap();
        let registered = chrono::DateTime::parse_from_rfc3339(registered).unwrap();
        let age = chrono::Utc::now().signed_duration_since(registered);
        assert!((0..60).contains(&age.num_seconds()), "{value}");
        let expected = format!(r#","role":"metaServer","is_leader":{}"#, n == leader);
        let tail = rest
            .strip_prefix(&expected)
            .unwrap_or_else(|| panic!("{value} does not go on with {expected}"));
        assert!(tail == "}" || tail.starts_with(','), "{value}");
    }

    // kill -9: the claim moves although the dead leader's lease has not run out.
    let term = cluster.answers(leader).await.term;
    let killed = Instant::now();
    cluster.kill(leader);
    let rest = cluster.others(leader);
    let (new_leader, _) = cluster.new_leader(&rest, term).await;
    let keys_then = knows(&etcd, &cluster, &cluster.all(), new_leader).await;
    let took = killed.elapsed();
    println!("kill -9 of the leader: etcd names the new one, and it alone, after {took:.2?}");
    assert!(took <= FAILOVER, "etcd named the new leader only after {took:?}");
    assert!(
        keys_then.contains_key(&cluster.node(leader).name),
        "the dead leader's lease has not run out"
    );

    cluster.start(leader);
    cluster.complete().await;
    let leader = cluster.leader().await;
    knows(&etcd, &cluster, &cluster.all(), leader).await;

    // SIGTERM: the key goes with the process.
    assert!(cluster.terminate(leader).await.success());
    let gone = keys(&etcd).await.unwrap();
    assert!(!gone.contains_key(&cluster.node(leader).name), "{gone:?}");
    let rest = cluster.others(leader);
    let new_leader = cluster.leader_of(&rest).await;
    knows(&etcd, &cluster, &rest, new_leader).await;
}

#[tokio::test]
async fn etcd_comes_and_goes() {
    let _turn = turn();
    // Absent at the start.
    let Some(mut etcd) = Etcd::absent() else { return };
    let mut cluster = Cluster::formed(setup(&etcd)).await;
    let leader = cluster.leader().await;
    cluster
        .any_client()
        .await
        .create("/without", FileType::File)
        .await
        .unwrap();
    let load = Load::start(&cluster, "/load", &cluster.all(), 2).await;
    load.goes_on_through(&cluster.all(), 20).await;
    etcd.run().await;
    knows(&etcd, &cluster, &cluster.all(), leader).await;
    // Killed and restarted, with its data and then without.
    for wiped in [false, true] {
        etcd.kill();
        load.goes_on_through(&cluster.all(), 20).await;
        if wiped {
            etcd.wipe();
        }
        etcd.run().await;
        knows(&etcd, &cluster, &cluster.all(), leader).await;
        load.goes_on_through(&cluster.all(), 20).await;
    }
    assert_eq!(cluster.leader().await, leader, "nobody had a reason to elect");
    let done = load.stop().await;
    assert!(
        done.book.failed.is_empty(),
        "metadata suffered: {:#?}",
        done.book.failed
    );
    done.is_seen_through(&cluster, &cluster.all()).await;
}
