//! The registrar against a real etcd: what it writes there, what it takes back, and how it comes
//! through the loss of a lease and of etcd itself.

#![allow(clippy::unwrap_used)]

mod support;

use std::cell::RefCell;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::{Actor, Addr, Context, Handler};
use etcd_client::{Client, GetOptions, PutOptions};
use log::{Level, Metadata, Record};
use minfs::actors::data_servers::messages::{DataServerAnnounced, DataServerWithdrawn};
use minfs::actors::raft_node::messages::{Leader, LeadershipChanged, Role};
use minfs::actors::registrar::discovery_json::NodeRecord;
use minfs::actors::registrar::messages::Unregister;
use minfs::actors::registrar::{LEASE_TTL, NODES_PREFIX, Registrar, RegistrarSettings};
use minfs::raft::types::Node;

use support::etcd::Etcd;
use support::wait::until;

const SERVERS: &str = "/dfs/dataServers/";

/// For what must happen at once: generous, since the machine may be busy, and far below a lease.
const SOON: Duration = Duration::from_secs(4);

/// Stands in for the DataServers' actor: writes down what it is told.
#[derive(Clone, Default)]
struct Probe(Arc<Mutex<Vec<String>>>);

impl Probe {
    /// What it was told since the last question.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// Waits until it was told all of `expected`, in any order. Gives everything that it was told
    /// up to then, since the last question.
    async fn hears(&self, expected: &[&str]) -> Vec<String> {
        let mut heard = Vec::new();
        until(&format!("the probe hears {expected:?}"), SOON, async || {
            heard.extend(self.take());
            expected
                .iter()
                .all(|e| heard.iter().any(|h| h == e))
                .then_some(())
        })
        .await;
        heard
    }
}

impl Actor for Probe {
    type Context = Context<Self>;
}

impl Handler<DataServerAnnounced> for Probe {
    type Result = ();
    fn handle(&mut self, news: DataServerAnnounced, _: &mut Context<Self>) {
        self.0.lock().unwrap().push(format!("+{} {}", news.id, news.addr));
    }
}

impl Handler<DataServerWithdrawn> for Probe {
    type Result = ();
    fn handle(&mut self, news: DataServerWithdrawn, _: &mut Context<Self>) {
        self.0.lock().unwrap().push(format!("-{}", news.id));
    }
}

fn key(name: &str) -> String {
    format!("{NODES_PREFIX}{name}")
}

fn settings(name: &str, endpoints: &[String]) -> RegistrarSettings {
    RegistrarSettings {
        node_name: name.to_owned(),
        grpc_addr: name.replace("meta-", "localhost:"),
        endpoints: endpoints.to_vec(),
        timeout: Duration::from_secs(1),
        data_server_key_prefix: SERVERS.to_owned(),
    }
}

fn start(name: &str, etcd: &Etcd) -> (Addr<Registrar>, Probe) {
    let probe = Probe::default();
    let told = probe.clone().start();
    let settings = settings(name, &[etcd.endpoint()]);
    (
        Registrar::new(settings, told.clone().recipient(), told.recipient()).start(),
        probe,
    )
}

fn leads(term: u64) -> LeadershipChanged {
    LeadershipChanged {
        term,
        role: Role::Leader,
        leader: Some(leader()),
    }
}

fn follows(term: u64) -> LeadershipChanged {
    LeadershipChanged {
        term,
        role: Role::Follower,
        leader: Some(leader()),
    }
}

/// The registrar asks whether there is a leader, not who it is.
fn leader() -> Leader {
    Leader {
        id: 1,
        node: Node::default(),
    }
}

fn record(name: &str, is_leader: bool, term: Option<u64>) -> String {
    let addr = name.replace("meta-", "localhost:");
    let term = term.map_or(String::new(), |term| format!(r#","term":{term}"#));
    format!(
        r#"{{"id":"{name}","addr":"{addr}","register_at":"2026-01-02T03:04:05Z","role":"metaServer","is_leader":{is_leader}{term}}}"#
    )
}

/// The value and the lease of a key.
async fn get(client: &mut Client, key: &str) -> Option<(String, i64)> {
    let got = client.get(key, None).await.ok()?;
    got.kvs()
        .first()
        .map(|kv| (kv.value_str().unwrap().to_owned(), kv.lease()))
}

/// Waits until the node's record says this; gives the record's text and its lease.
async fn says(client: &mut Client, name: &str, is_leader: bool, term: u64) -> (String, i64) {
    until(
        &format!("{name} says is_leader {is_leader} in term {term}"),
        SOON,
        async || {
            let (text, lease) = get(client, &key(name)).await?;
            let record = NodeRecord::decode(text.as_bytes()).unwrap();
            ((record.is_leader, record.term) == (is_leader, term)).then_some((text, lease))
        },
    )
    .await
}

async fn put_leased(client: &mut Client, key: &str, value: &str, ttl: i64) -> i64 {
    let lease = client.lease_grant(ttl, None).await.unwrap().id();
    client
        .put(key, value, Some(PutOptions::new().with_lease(lease)))
        .await
        .unwrap();
    lease
}

#[actix::test]
async fn a_node_registers_as_the_clients_expect_it() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut client = etcd.client().await;
    let (registrar, _probe) = start("meta-9090", &etcd);
    registrar.send(leads(7)).await.unwrap();

    let (text, lease) = says(&mut client, "meta-9090", true, 7).await;
    let register_at = NodeRecord::decode(text.as_bytes()).unwrap().register_at;
    assert!(
        chrono::DateTime::parse_from_rfc3339(&register_at).is_ok(),
        "{register_at}"
    );
    assert_eq!(
        text,
        format!(
            r#"{{"id":"meta-9090","addr":"localhost:9090","register_at":"{register_at}","role":"metaServer","is_leader":true,"term":7}}"#
        )
    );
    let lease = client.lease_time_to_live(lease, None).await.unwrap();
    assert_eq!(lease.granted_ttl(), LEASE_TTL.as_secs() as i64);
}

#[actix::test]
async fn each_change_of_leadership_reaches_etcd_in_order() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut client = etcd.client().await;
    let (registrar, _probe) = start("meta-9090", &etcd);
    says(&mut client, "meta-9090", false, 0).await;
    let mut watch = client.watch(key("meta-9090"), None).await.unwrap();

    let slack = Instant::now();
    for (news, is_leader, term) in [
        (leads(7), true, 7),
        (follows(8), false, 8),
        (leads(9), true, 9),
        // Candidates do not know whether there will be a leader of their term.
        (
            LeadershipChanged {
                term: 10,
                role: Role::Candidate,
                leader: None,
            },
            false,
            9,
        ),
        (leads(11), true, 11),
    ] {
        registrar.send(news).await.unwrap();
        let written = loop {
            let message = watch.message().await.unwrap().unwrap();
            if let Some(event) = message.events().first() {
                break NodeRecord::decode(event.kv().unwrap().value()).unwrap();
            }
        };
        assert_eq!((written.is_leader, written.term), (is_leader, term));
    }
    assert!(
        slack.elapsed() < SOON,
        "five changes, and none of them waited for a renewal"
    );

    registrar.send(follows(10)).await.unwrap();
    registrar.send(follows(12)).await.unwrap();
    says(&mut client, "meta-9090", false, 12).await;
}

#[actix::test]
async fn a_node_registers_again_when_its_lease_is_lost() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut client = etcd.client().await;
    let (registrar, _probe) = start("meta-9090", &etcd);
    registrar.send(leads(7)).await.unwrap();
    let (_, first) = says(&mut client, "meta-9090", true, 7).await;

    client.lease_revoke(first).await.unwrap();
    let (_, second) = says(&mut client, "meta-9090", true, 7).await;
    assert_ne!(first, second);

    // The same when only the key is lost; the lease that it was under is given back.
    client.delete(key("meta-9090"), None).await.unwrap();
    says(&mut client, "meta-9090", true, 7).await;
    until("one lease is left", SOON, async || {
        let leases = client.lease_client().leases().await.unwrap();
        (leases.leases().len() == 1 && leases.leases()[0].id() != second).then_some(())
    })
    .await;
}

#[actix::test]
async fn a_node_that_restarts_takes_its_key_over_from_the_lease_it_had() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut client = etcd.client().await;
    let (before, _probe) = start("meta-9090", &etcd);
    before.send(leads(7)).await.unwrap();
    let (_, old) = says(&mut client, "meta-9090", true, 7).await;
    drop(before); // It crashes.

    let (_after, _probe) = start("meta-9090", &etcd);
    let (text, new) = says(&mut client, "meta-9090", false, 0).await;
    assert_ne!(old, new);
    client.lease_revoke(old).await.unwrap(); // As if it had run out.
    assert_eq!(get(&mut client, &key("meta-9090")).await, Some((text, new)));
}

#[actix::test]
async fn a_lease_is_kept_alive() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut client = etcd.client().await;
    let (_registrar, _probe) = start("meta-9090", &etcd);
    let (_, lease) = says(&mut client, "meta-9090", false, 0).await;
    let left = async |client: &mut Client| client.lease_time_to_live(lease, None).await.unwrap().ttl();
    let full = LEASE_TTL.as_secs() as i64;
    until("the lease has aged", LEASE_TTL, async || {
        (left(&mut client).await < full - 2).then_some(())
    })
    .await;
    until("it is renewed", LEASE_TTL, async || {
        (left(&mut client).await >= full - 1).then_some(())
    })
    .await;
}

async fn comes_back_after_a_restart(wiped: bool) {
    let Some(mut etcd) = Etcd::start().await else {
        return;
    };
    let mut client = etcd.client().await;
    let (registrar, _probe) = start("meta-9090", &etcd);
    let (_other, _) = start("meta-9091", &etcd);
    registrar.send(leads(7)).await.unwrap();
    says(&mut client, "meta-9090", true, 7).await;
    says(&mut client, "meta-9091", false, 0).await;

    etcd.kill();
    // The actor goes on, and what it learns meanwhile is written later.
    registrar.send(follows(8)).await.unwrap();
    registrar.send(leads(9)).await.unwrap();
    if wiped {
        etcd.wipe();
    }
    etcd.run().await;
    let mut client = etcd.client().await;
    says(&mut client, "meta-9090", true, 9).await;
    let (_, lease) = says(&mut client, "meta-9091", false, 0).await;
    assert_ne!(lease, 0);
}

#[actix::test]
async fn nodes_come_back_after_etcd_was_killed() {
    comes_back_after_a_restart(false).await;
}

#[actix::test]
async fn nodes_come_back_after_etcd_lost_its_data() {
    comes_back_after_a_restart(true).await;
}

#[actix::test]
async fn etcd_may_come_later_than_the_node() {
    let Some(mut etcd) = Etcd::absent() else { return };
    let (registrar, probe) = start("meta-9090", &etcd);
    registrar.send(leads(3)).await.unwrap();
    etcd.run().await;
    let mut client = etcd.client().await;
    says(&mut client, "meta-9090", true, 3).await;
    client
        .put(format!("{SERVERS}ds-1"), "10.0.0.1:8001", None)
        .await
        .unwrap();
    probe.hears(&["+ds-1 10.0.0.1:8001"]).await;
}

#[actix::test]
async fn a_dead_endpoint_is_passed_over() {
    let Some(etcd) = Etcd::start().await else { return };
    let Some(dead) = Etcd::absent() else { return };
    let told = Probe::default().start();
    let settings = settings("meta-9090", &[dead.endpoint(), etcd.endpoint()]);
    let _registrar = Registrar::new(settings, told.clone().recipient(), told.recipient()).start();
    says(&mut etcd.client().await, "meta-9090", false, 0).await;
}

#[actix::test]
async fn an_etcd_that_hangs_is_left_and_found_again() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut client = etcd.client().await;
    let (registrar, probe) = start("meta-9090", &etcd);
    registrar.send(leads(7)).await.unwrap();
    says(&mut client, "meta-9090", true, 7).await;

    etcd.pause();
    let asked = Instant::now();
    registrar.send(follows(8)).await.unwrap();
    assert!(
        asked.elapsed() < Duration::from_secs(1),
        "the mailbox does not wait for etcd"
    );
    registrar.send(leads(9)).await.unwrap();
    etcd.resume();
    says(&mut client, "meta-9090", true, 9).await;
    client
        .put(format!("{SERVERS}ds-1"), "10.0.0.1:8001", None)
        .await
        .unwrap();
    probe.hears(&["+ds-1 10.0.0.1:8001"]).await;
}

#[actix::test]
async fn a_new_leader_takes_the_claim_of_a_dead_one_back() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut client = etcd.client().await;
    let (old, _probe) = start("meta-9090", &etcd);
    let (new, _probe) = start("meta-9091", &etcd);
    old.send(leads(7)).await.unwrap();
    new.send(follows(7)).await.unwrap();
    let (text, lease) = says(&mut client, "meta-9090", true, 7).await;
    says(&mut client, "meta-9091", false, 7).await;

    drop(old); // It dies: nothing is unregistered, and the lease has not run out.
    new.send(leads(8)).await.unwrap();
    says(&mut client, "meta-9091", true, 8).await;
    let (cleared, same_lease) = get(&mut client, &key("meta-9090")).await.unwrap();
    assert_eq!(
        cleared,
        text.replace(r#""is_leader":true"#, r#""is_leader":false"#)
    );
    assert_eq!(
        same_lease, lease,
        "and so the key of the dead node expires when it would have"
    );
    let old = client.get(key("meta-9090"), None).await.unwrap();
    let new = client.get(key("meta-9091"), None).await.unwrap();
    assert_eq!(
        old.kvs()[0].mod_revision(),
        new.kvs()[0].mod_revision(),
        "at no moment were there two claims, or none"
    );
}

#[actix::test]
async fn a_stale_claim_that_comes_late_is_taken_back_too() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut client = etcd.client().await;
    let (leader, _probe) = start("meta-9091", &etcd);
    leader.send(leads(8)).await.unwrap();
    says(&mut client, "meta-9091", true, 8).await;

    for term in [Some(7), None] {
        let lease = put_leased(
            &mut client,
            &key("meta-9090"),
            &record("meta-9090", true, term),
            60,
        )
        .await;
        let cleared = until("the stale claim is taken back", SOON, async || {
            let (text, now) = get(&mut client, &key("meta-9090")).await?;
            assert_eq!(now, lease);
            text.contains(r#""is_leader":false"#).then_some(text)
        })
        .await;
        assert_eq!(cleared, record("meta-9090", false, term));
    }
    says(&mut client, "meta-9091", true, 8).await;
}

#[actix::test]
async fn a_leader_of_an_older_term_yields_and_touches_nothing() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut client = etcd.client().await;
    let (leader, _probe) = start("meta-9091", &etcd);
    leader.send(leads(8)).await.unwrap();
    let (text, _) = says(&mut client, "meta-9091", true, 8).await;

    // One that was asleep still believes that it leads term 7.
    let (asleep, _probe) = start("meta-9090", &etcd);
    asleep.send(leads(7)).await.unwrap();
    says(&mut client, "meta-9090", false, 7).await;
    assert_eq!(get(&mut client, &key("meta-9091")).await.unwrap().0, text);

    // The leader of term 8 dies, its key goes, and a node that knew it is still there.
    put_leased(
        &mut client,
        &key("meta-9092"),
        &record("meta-9092", false, Some(8)),
        60,
    )
    .await;
    leader.send(Unregister).await.unwrap();
    assert_eq!(get(&mut client, &key("meta-9091")).await, None);
    client
        .put(key("meta-9093"), "something else", None)
        .await
        .unwrap();
    let (still, _) = says(&mut client, "meta-9090", false, 7).await;
    assert_eq!(NodeRecord::decode(still.as_bytes()).unwrap().id, "meta-9090");

    // It wakes up and wins the next election.
    asleep.send(leads(9)).await.unwrap();
    says(&mut client, "meta-9090", true, 9).await;
    // And withdraws as soon as etcd knows better than its own Raft node.
    let newer = record("meta-9092", true, Some(10));
    client.put(key("meta-9092"), newer.as_str(), None).await.unwrap();
    says(&mut client, "meta-9090", false, 9).await;
    assert_eq!(get(&mut client, &key("meta-9092")).await.unwrap().0, newer);
    assert_eq!(
        get(&mut client, &key("meta-9093")).await.unwrap().0,
        "something else"
    );
}

#[actix::test]
async fn unregistering_leaves_nothing_behind() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut client = etcd.client().await;
    let (registrar, _probe) = start("meta-9090", &etcd);
    says(&mut client, "meta-9090", false, 0).await;

    registrar.send(Unregister).await.unwrap();
    assert_eq!(get(&mut client, &key("meta-9090")).await, None);
    assert_eq!(client.leases().await.unwrap().leases().len(), 0);

    // And it stays away.
    registrar.send(leads(9)).await.unwrap();
    registrar.send(Unregister).await.unwrap();
    let left = client
        .get(NODES_PREFIX, Some(GetOptions::new().with_prefix()))
        .await
        .unwrap();
    assert_eq!(left.kvs().len(), 0);
}

#[actix::test]
async fn unregistering_is_answered_without_etcd() {
    let Some(mut etcd) = Etcd::start().await else {
        return;
    };
    let mut client = etcd.client().await;
    let (hung, _probe) = start("meta-9090", &etcd);
    let (alone, _probe) = start("meta-9091", &etcd);
    says(&mut client, "meta-9090", false, 0).await;
    says(&mut client, "meta-9091", false, 0).await;

    etcd.pause();
    let asked = Instant::now();
    hung.send(Unregister).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(3));
    etcd.kill();
    let asked = Instant::now();
    alone.send(Unregister).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(3));
}

#[actix::test]
async fn the_log_says_once_that_etcd_is_away_and_once_that_it_is_back() {
    let Some(mut etcd) = Etcd::start().await else {
        return;
    };
    log_lines::record();
    let (_registrar, _probe) = start("meta-9090", &etcd);
    let said = |level| async move {
        until("a line about etcd", SOON, async || {
            log_lines::take(level).first().cloned()
        })
        .await
    };
    assert!(said(Level::Info).await.contains("meta-9090 is registered"));
    etcd.kill();
    assert!(said(Level::Warn).await.contains("etcd is away"));
    let mut failures = 0;
    until("it was tried often", 3 * SOON, async || {
        failures += log_lines::take(Level::Debug)
            .iter()
            .filter(|line| line.contains("still away"))
            .count();
        (failures >= 8).then_some(())
    })
    .await;
    etcd.run().await;
    assert!(said(Level::Info).await.contains("meta-9090 is registered"));
    assert_eq!(log_lines::take(Level::Warn), [""; 0], "nothing but the two lines");
    assert_eq!(log_lines::take(Level::Info), [""; 0]);
}

/// The registrar's log lines. Each test has a thread of its own, and everything in it runs there.
mod log_lines {
    use super::*;

    thread_local! {
        static LINES: RefCell<Vec<(Level, String)>> = const { RefCell::new(Vec::new()) };
    }

    struct Recorder;

    impl log::Log for Recorder {
        fn enabled(&self, of: &Metadata) -> bool {
            of.target().starts_with("minfs::actors::registrar")
        }

        fn log(&self, record: &Record) {
            if self.enabled(record.metadata()) {
                LINES.with_borrow_mut(|lines| lines.push((record.level(), record.args().to_string())));
            }
        }

        fn flush(&self) {}
    }

    pub fn record() {
        log::set_logger(&Recorder).unwrap();
        log::set_max_level(log::LevelFilter::Debug);
    }

    /// The lines of `level` since the last question.
    pub fn take(level: Level) -> Vec<String> {
        LINES.with_borrow_mut(|lines| {
            lines
                .extract_if(.., |(of, _)| *of == level)
                .map(|(_, line)| line)
                .collect()
        })
    }
}

#[actix::test]
async fn data_servers_are_announced_and_withdrawn() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut client = etcd.client().await;
    client
        .put(format!("{SERVERS}ds-1"), "10.0.0.1:8001", None)
        .await
        .unwrap();
    let json = r#"{"id":"ds-2","addr":"10.0.0.2:8001","register_at":"2026-01-02T03:04:05Z"}"#;
    client.put(format!("{SERVERS}ds-2"), json, None).await.unwrap();
    client
        .put(format!("{SERVERS}ds-3"), "no address", None)
        .await
        .unwrap();

    let (_registrar, probe) = start("meta-9090", &etcd);
    probe.hears(&["+ds-1 10.0.0.1:8001", "+ds-2 10.0.0.2:8001"]).await;
    client
        .put(format!("{SERVERS}ds-3"), "10.0.0.3:8001", None)
        .await
        .unwrap();
    assert_eq!(probe.hears(&["+ds-3 10.0.0.3:8001"]).await.len(), 1);
    client
        .put(format!("{SERVERS}ds-1"), "10.0.0.1:8002", None)
        .await
        .unwrap();
    probe.hears(&["+ds-1 10.0.0.1:8002"]).await;
    client.delete(format!("{SERVERS}ds-1"), None).await.unwrap();
    probe.hears(&["-ds-1"]).await;

    put_leased(&mut client, &format!("{SERVERS}ds-4"), "10.0.0.4:8001", 1).await;
    probe.hears(&["+ds-4 10.0.0.4:8001"]).await;
    probe.hears(&["-ds-4"]).await;
}

#[actix::test]
async fn what_changed_while_etcd_was_away_is_told_afterwards() {
    let Some(mut etcd) = Etcd::start().await else {
        return;
    };
    let mut client = etcd.client().await;
    client
        .put(format!("{SERVERS}ds-1"), "10.0.0.1:8001", None)
        .await
        .unwrap();
    client
        .put(format!("{SERVERS}ds-2"), "10.0.0.2:8001", None)
        .await
        .unwrap();
    let (_registrar, probe) = start("meta-9090", &etcd);
    probe.hears(&["+ds-1 10.0.0.1:8001", "+ds-2 10.0.0.2:8001"]).await;

    etcd.kill();
    etcd.run().await;
    probe.hears(&["+ds-1 10.0.0.1:8001", "+ds-2 10.0.0.2:8001"]).await;

    etcd.kill();
    etcd.wipe();
    etcd.run().await;
    probe.hears(&["-ds-1", "-ds-2"]).await;
    let mut client = etcd.client().await;
    client
        .put(format!("{SERVERS}ds-2"), "10.0.0.2:8001", None)
        .await
        .unwrap();
    probe.hears(&["+ds-2 10.0.0.2:8001"]).await;
}
