//! The registrar with probes for neighbours, and without etcd: its tasks' place is taken by the test.

use std::sync::{Arc, Mutex};

use actix::{ActorContext, Addr};

use super::data_server_keys::DataServerKey;
use super::*;
use crate::actors::raft_node::messages::{Leader, Role};
use crate::raft::types::Node;

/// Stands in for the DataServers' actor.
#[derive(Clone, Default)]
struct Probe(Arc<Mutex<Vec<News>>>);

impl Probe {
    fn take(&self) -> Vec<News> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Actor for Probe {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(1);
    }
}

impl Handler<DataServerAnnounced> for Probe {
    type Result = ();
    fn handle(&mut self, news: DataServerAnnounced, _: &mut Context<Self>) {
        self.0.lock().unwrap().push(News::Announced(news));
    }
}

impl Handler<DataServerWithdrawn> for Probe {
    type Result = ();
    fn handle(&mut self, news: DataServerWithdrawn, _: &mut Context<Self>) {
        self.0.lock().unwrap().push(News::Withdrawn(news));
    }
}

#[derive(actix::Message)]
#[rtype(result = "()")]
struct Stop;

impl Handler<Stop> for Probe {
    type Result = ();
    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.terminate();
    }
}

/// A registrar that discovery is off for, what its tasks would read, and its neighbours' probe.
fn registrar() -> (Addr<Registrar>, watch::Receiver<Wish>, Probe) {
    let probe = Probe::default();
    let neighbour = probe.clone().start();
    let registrar = Registrar::new(settings(), neighbour.clone().recipient(), neighbour.recipient());
    let wish = registrar.wish.subscribe();
    (registrar.start(), wish, probe)
}

fn settings() -> RegistrarSettings {
    RegistrarSettings {
        node_name: "meta-9090".into(),
        grpc_addr: "localhost:9090".into(),
        endpoints: Vec::new(),
        timeout: Duration::from_secs(1),
        data_server_key_prefix: "/dfs/dataServers/".into(),
    }
}

fn news(term: u64, role: Role) -> LeadershipChanged {
    LeadershipChanged {
        term,
        role,
        leader: Some(Leader {
            id: 1,
            node: Node::default(),
        }),
    }
}

fn key(id: &str, value: &str) -> DataServerKey {
    DataServerKey {
        id: id.into(),
        value: value.into(),
    }
}

fn announced(id: &str, addr: &str) -> News {
    News::Announced(DataServerAnnounced {
        id: id.into(),
        addr: addr.into(),
    })
}

fn withdrawn(id: &str) -> News {
    News::Withdrawn(DataServerWithdrawn { id: id.into() })
}

#[actix::test]
async fn leadership_is_wished_for_in_order_and_once() {
    let (registrar, mut wish, _) = registrar();
    let leads = |term, leads| Wish::Present(Standing { term, leads });
    assert_eq!(*wish.borrow_and_update(), leads(0, false));
    for (told, wished) in [
        (news(7, Role::Leader), Some(leads(7, true))),
        (news(7, Role::Leader), None),
        (news(6, Role::Follower), None),
        (news(7, Role::Follower), Some(leads(7, false))),
        (news(6, Role::Leader), None),
        (news(8, Role::Follower), Some(leads(8, false))),
        (
            LeadershipChanged {
                term: 9,
                role: Role::Candidate,
                leader: None,
            },
            None,
        ),
        (news(9, Role::Leader), Some(leads(9, true))),
        (news(8, Role::Follower), None),
    ] {
        registrar.send(told.clone()).await.unwrap();
        assert_eq!(wish.has_changed().unwrap(), wished.is_some(), "{told:?}");
        if let Some(wished) = wished {
            assert_eq!(*wish.borrow_and_update(), wished);
        }
    }
}

#[actix::test]
async fn unregistering_is_answered_when_the_tasks_have_ended_and_is_final() {
    let (registrar, mut wish, _) = registrar();
    let answer = actix::spawn(registrar.send(Unregister));
    wish.wait_for(|wish| *wish == Wish::Gone).await.unwrap();
    registrar.send(news(7, Role::Leader)).await.unwrap();
    assert_eq!(*wish.borrow(), Wish::Gone);
    assert!(!answer.is_finished(), "a task is not done yet");
    drop(wish);
    answer.await.unwrap().unwrap();
    registrar.send(Unregister).await.unwrap();
}

#[actix::test]
async fn the_tasks_end_with_the_actor() {
    let (registrar, mut wish, _) = registrar();
    drop(registrar);
    assert!(
        wish.wait_for(|wish| *wish == Wish::Gone).await.is_err(),
        "and take nothing out of etcd"
    );
}

#[actix::test]
async fn data_servers_are_announced_in_order_through_a_small_mailbox() {
    let (registrar, _wish, probe) = registrar();
    let many = Vec::from_iter((1..100).map(|i| key(&format!("ds-{i:02}"), &format!("h:{i}"))));
    registrar.send(DataServersListed(many)).await.unwrap();
    let heard = probe.take();
    assert!(heard.iter().eq(&Vec::from_iter(
        (1..100).map(|i| announced(&format!("ds-{i:02}"), &format!("h:{i}")))
    )));
    registrar
        .send(DataServerKeyPut(key("ds-01", "h:100")))
        .await
        .unwrap();
    registrar
        .send(DataServerKeyGone { id: "ds-01".into() })
        .await
        .unwrap();
    registrar
        .send(DataServerKeyGone { id: "ds-01".into() })
        .await
        .unwrap();
    assert_eq!(probe.take(), [announced("ds-01", "h:100"), withdrawn("ds-01")]);
}

#[actix::test]
async fn a_neighbour_that_is_gone_hurts_nobody() {
    let neighbour = Probe::default().start();
    neighbour.send(Stop).await.unwrap();
    assert!(!neighbour.connected());
    let registrar = Registrar::new(settings(), neighbour.clone().recipient(), neighbour.recipient()).start();
    registrar
        .send(DataServersListed(vec![key("ds-1", "h:1")]))
        .await
        .unwrap();
    registrar
        .send(DataServerKeyGone { id: "ds-1".into() })
        .await
        .unwrap();
    registrar.send(news(7, Role::Leader)).await.unwrap();
}

#[test]
fn a_new_listing_withdraws_what_vanished_and_announces_the_rest_again() {
    let mut directory = Directory::default();
    let first = directory.listed(vec![key("a", "h:1"), key("b", "h:2"), key("c", "h:3")]);
    assert_eq!(
        first,
        [
            announced("a", "h:1"),
            announced("b", "h:2"),
            announced("c", "h:3")
        ]
    );
    let second = directory.listed(vec![key("b", "h:2"), key("c", "h:4"), key("d", "h:5")]);
    assert_eq!(
        second,
        [
            withdrawn("a"),
            announced("b", "h:2"),
            announced("c", "h:4"),
            announced("d", "h:5")
        ]
    );
    assert_eq!(
        directory.listed(vec![]),
        [withdrawn("b"), withdrawn("c"), withdrawn("d")]
    );
}

#[test]
fn a_malformed_value_is_skipped_and_leaves_the_last_good_one() {
    let mut directory = Directory::default();
    assert_eq!(directory.put(key("a", "h:1")), Some(announced("a", "h:1")));
    assert_eq!(directory.put(key("a", "nonsense")), None);
    assert_eq!(directory.listed(vec![key("a", "nonsense"), key("b", "{}")]), []);
    assert_eq!(directory.gone("b".into()), None);
    assert_eq!(directory.put(key("a", "h:2")), Some(announced("a", "h:2")));
    assert_eq!(directory.gone("a".into()), Some(withdrawn("a")));
}

#[test]
fn one_line_when_etcd_goes_and_one_when_it_is_back() {
    let mut reach = Reach::default();
    assert!(!reach.reached(Part::DataServers));
    assert!(reach.reached(Part::Registration), "the first registration");
    assert!(reach.lost(Part::Registration), "it goes away");
    assert!(!reach.lost(Part::DataServers));
    assert!(!reach.lost(Part::Registration));
    assert!(
        !reach.reached(Part::Registration),
        "the other part is still missing"
    );
    assert!(!reach.lost(Part::DataServers));
    assert!(reach.reached(Part::DataServers), "it is back");
    assert!(!reach.reached(Part::DataServers));

    let mut absent = Reach::default();
    assert!(
        absent.lost(Part::Registration),
        "absent from the start is worth a line, too"
    );
    assert!(!absent.lost(Part::DataServers));
}

#[test]
fn pauses_grow_to_a_bound() {
    let mut backoff = supervisor::Backoff::new();
    let pauses = Vec::from_iter((0..20).map(|_| backoff.pause()));
    assert!(pauses[0] >= Duration::from_millis(50) && pauses[0] <= Duration::from_millis(100));
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(2)));
    assert!(pauses[10..].iter().all(|pause| *pause >= Duration::from_secs(1)));
}
