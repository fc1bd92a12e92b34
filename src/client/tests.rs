//! The client against servers that die, refuse, forget and hang.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tonic::{Code, ConnectError, Status};

use super::endpoints::{address, leader_first};
use super::retry::{Course, Fate, Verdict, judge, pause};
use super::testing::{Cluster, DeadAddress, Fault, Server};
use super::*;

/// Attempts that a test expects to be cut short are cut soon.
fn brief() -> Options {
    Options {
        timeout: Duration::from_millis(600),
        attempt_timeout: Duration::from_millis(100),
        pinned: false,
    }
}

/// Long enough that no attempt is cut short on a slow machine, so that nothing comes into doubt.
fn unhurried() -> Options {
    Options {
        timeout: Duration::from_secs(2),
        ..Options::default()
    }
}

/// For operations that are expected to succeed: no limit that a slow machine could meet.
fn patient() -> Options {
    Options::default()
}

async fn client(addresses: &[&str], options: Options) -> Client {
    Client::connect(Source::servers(&addresses.join(",")).unwrap(), options)
        .await
        .unwrap()
}

fn refuse(leader: &Server) -> Fault {
    Fault::Unavailable {
        leader: Some(leader.addr.clone()),
    }
}

fn ids(server: &Server, rpc: &str) -> Vec<Option<String>> {
    server
        .asked()
        .into_iter()
        .filter(|asked| asked.rpc == rpc)
        .map(|asked| asked.id)
        .collect()
}

// --- The ordinary way ---

#[tokio::test]
async fn every_operation_reaches_the_server() {
    let cluster = Cluster::default();
    let server = cluster.serve();
    let client = client(&[&server.addr], patient()).await;

    client.create("/a", FileType::Directory).await.unwrap();
    client.create("/a/f", FileType::File).await.unwrap();
    let inode = client.block_locations("/a/f").await.unwrap().inode;
    client.allocate("/a/f", 10).await.unwrap();
    client.finalize("/a/f", inode, 10, "d41d8").await.unwrap();
    let stat = client.stat("/a/f").await.unwrap();
    assert_eq!(
        (stat.size, stat.md5.as_str(), stat.r#type()),
        (10, "d41d8", FileType::File)
    );
    assert_eq!(client.list("/a").await.unwrap().len(), 1);
    client.replication_info("").await.unwrap();
    client.cluster_info().await.unwrap();
    client.delete("/a", true).await.unwrap();
    assert_eq!(cluster.paths(), Vec::<String>::new());
}

#[tokio::test]
async fn only_what_changes_something_carries_a_request_id_and_each_its_own() {
    let server = Cluster::default().serve();
    let client = client(&[&server.addr], patient()).await;
    client.create("/f", FileType::File).await.unwrap();
    client.allocate("/f", 5).await.unwrap();
    client.block_locations("/f").await.unwrap();
    client.stat("/f").await.unwrap();
    client.delete("/f", false).await.unwrap();

    let asked = server.asked();
    let with_id: Vec<bool> = asked.iter().map(|asked| asked.id.is_some()).collect();
    assert_eq!(with_id, [true, true, false, false, true]);
    let ids: std::collections::HashSet<String> = asked.into_iter().filter_map(|asked| asked.id).collect();
    assert_eq!(ids.len(), 3);
    assert!(
        ids.iter()
            .all(|id| id.len() == 32 && id.chars().all(|c| c.is_ascii_hexdigit())),
        "{ids:?}"
    );
}

#[tokio::test]
async fn mistakes_are_told_at_once_and_told_apart() {
    let server = Cluster::default().serve();
    let client = client(&[&server.addr], patient()).await;
    client.create("/f", FileType::File).await.unwrap();
    let before = server.asked().len();

    assert!(matches!(client.stat("/x").await, Err(Error::NotFound(_))));
    assert!(matches!(
        client.create("/f", FileType::File).await,
        Err(Error::AlreadyExists(_))
    ));
    assert!(matches!(
        client.create("f", FileType::File).await,
        Err(Error::InvalidArgument(_))
    ));
    assert!(matches!(
        client.create("/f/g", FileType::File).await,
        Err(Error::FailedPrecondition(_))
    ));
    assert_eq!(server.asked().len(), before + 4, "nothing was asked twice");
}

#[tokio::test]
async fn parents_are_made_as_far_as_they_are_missing() {
    let cluster = Cluster::default();
    let server = cluster.serve();
    let client = client(&[&server.addr], patient()).await;
    assert_eq!(
        client.create_with_parents("/a/b/c/").await.unwrap(),
        ["/a", "/a/b", "/a/b/c/"]
    );
    assert_eq!(client.create_with_parents("/a/b/d").await.unwrap(), ["/a/b/d"]);
    assert_eq!(client.create_with_parents("/a/b/d").await.unwrap(), [""; 0]);
    assert_eq!(client.create_with_parents("/").await.unwrap(), [""; 0]);
    cluster.put("/a/f", FileType::File);
    assert!(matches!(
        client.create_with_parents("/a/f").await,
        Err(Error::AlreadyExists(_))
    ));
    assert!(matches!(
        client.create_with_parents("/a/f/g").await,
        Err(Error::FailedPrecondition(_))
    ));
    assert!(matches!(
        client.create_with_parents("a/b").await,
        Err(Error::InvalidArgument(_))
    ));
}

#[tokio::test]
async fn a_listing_beyond_the_usual_four_megabytes_is_read() {
    let cluster = Cluster::default();
    let long = "n".repeat(200);
    cluster.put("/d", FileType::Directory);
    for i in 0..30_000 {
        cluster.put(&format!("/d/{i:05}{long}"), FileType::File);
    }
    let server = cluster.serve();
    let client = client(&[&server.addr], patient()).await;
    assert_eq!(client.list("/d").await.unwrap().len(), 30_000);
}

// --- Following the leader ---

#[tokio::test]
async fn a_dead_server_is_passed_over_and_then_avoided() {
    let (dead, server) = (DeadAddress::new(), Cluster::default().serve());
    let client = client(&[&dead.addr, &server.addr], patient()).await;
    client.create("/a", FileType::Directory).await.unwrap();
    client.stat("/a").await.unwrap();
    assert_eq!(client.servers().preferred(), 1);
}

#[tokio::test]
async fn a_server_that_dies_between_two_requests_is_replaced_by_another() {
    let cluster = Cluster::default();
    let (first, second) = (cluster.serve(), cluster.serve());
    let client = client(&[&first.addr, &second.addr], patient()).await;
    client.create("/a", FileType::Directory).await.unwrap();
    assert_eq!(second.asked(), []);
    drop(first);
    client.create("/b", FileType::Directory).await.unwrap();
    assert_eq!(second.count("CreateNode"), 1);
    assert_eq!(cluster.paths(), ["/a", "/b"]);
}

#[tokio::test]
async fn a_hung_server_is_left_after_the_attempts_time() {
    let cluster = Cluster::default();
    let (hung, live) = (cluster.serve(), cluster.serve());
    hung.fail_always(Fault::Hang);
    let options = Options {
        attempt_timeout: Duration::from_millis(50),
        ..patient()
    };
    let client = client(&[&hung.addr, &live.addr], options).await;
    client.create("/a", FileType::Directory).await.unwrap();
    assert_eq!(ids(&hung, "CreateNode"), ids(&live, "CreateNode"));
}

#[tokio::test]
async fn the_leader_in_the_trailer_is_followed_even_when_it_was_unknown() {
    let cluster = Cluster::default();
    let (follower, leader) = (cluster.serve(), cluster.serve());
    follower.fail_always(refuse(&leader));
    let client = client(&[&follower.addr], patient()).await;
    client.create("/a", FileType::Directory).await.unwrap();
    client.create("/b", FileType::Directory).await.unwrap();
    assert_eq!(
        (follower.asked().len(), leader.asked().len()),
        (1, 2),
        "the leader is kept"
    );
    assert_eq!(client.addresses(), [follower.addr.clone(), leader.addr.clone()]);
}

#[tokio::test]
async fn the_hinted_leader_goes_before_the_next_in_the_list() {
    let cluster = Cluster::default();
    let (first, second, third) = (cluster.serve(), cluster.serve(), cluster.serve());
    first.fail_next([refuse(&third)]);
    let client = client(&[&first.addr, &second.addr, &third.addr], patient()).await;
    client.create("/a", FileType::Directory).await.unwrap();
    assert_eq!((second.asked().len(), third.asked().len()), (0, 1));
}

#[tokio::test]
async fn a_pinned_client_follows_no_hint() {
    let cluster = Cluster::default();
    let (follower, leader) = (cluster.serve(), cluster.serve());
    follower.fail_always(refuse(&leader));
    let client = client(
        &[&follower.addr],
        Options {
            pinned: true,
            ..brief()
        },
    )
    .await;
    assert!(matches!(client.stat("/").await, Err(Error::Unavailable(_))));
    assert_eq!(leader.asked(), []);
}

#[tokio::test]
async fn a_full_queue_and_an_election_are_waited_out() {
    let server = Cluster::default().serve();
    let none = Fault::Unavailable { leader: None };
    server.fail_next([Fault::Overloaded, none.clone(), none, Fault::Overloaded]);
    let client = client(&[&server.addr], patient()).await;
    client.create("/a", FileType::Directory).await.unwrap();
    assert_eq!(server.count("CreateNode"), 5);
}

#[tokio::test]
async fn the_leader_is_asked_for_until_somebody_knows_it() {
    let cluster = Cluster::default();
    let (first, second) = (cluster.serve(), Cluster::default().serve());
    let leader = MetaServerMsg {
        host: "meta1".into(),
        port: 9090,
    };
    cluster.state().leader = Some(leader.clone());
    let client = client(&[&second.addr, &first.addr], patient()).await;
    assert_eq!(client.leader().await.unwrap().leader, Some(leader));
    assert_eq!(second.asked().len(), 1);
}

#[tokio::test]
async fn the_leader_is_preferred_when_it_is_known() {
    let cluster = Cluster::default();
    let (first, second) = (cluster.serve(), cluster.serve());
    let client = client(&[&first.addr, &second.addr], patient()).await;
    client.prefer_leader().await;
    assert_eq!(client.servers().preferred(), 0);
    let (host, port) = second.addr.rsplit_once(':').unwrap();
    cluster.state().leader = Some(MetaServerMsg {
        host: host.into(),
        port: port.parse().unwrap(),
    });
    client.prefer_leader().await;
    assert_eq!(client.servers().preferred(), 1);
}

// --- What is known in the end ---

#[tokio::test]
async fn a_repeat_carries_the_same_id_and_gets_the_first_answer() {
    let cluster = Cluster::default();
    let server = cluster.serve();
    server.fail_next([Fault::DoneButUnknown, Fault::Unavailable { leader: None }]);
    let client = client(&[&server.addr], patient()).await;
    client
        .create("/a", FileType::Directory)
        .await
        .expect("it did happen, and only once");
    let ids = ids(&server, "CreateNode");
    assert_eq!(ids.len(), 3);
    assert!(ids[0].is_some() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test]
async fn nothing_happened_when_nobody_is_there() {
    let dead = DeadAddress::new();
    let client = client(&[&dead.addr], unhurried()).await;
    let error = client.create("/a", FileType::Directory).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unavailable(message) if message.contains(&dead.addr)),
        "{error}"
    );
}

#[tokio::test]
async fn nothing_happened_when_everybody_refused() {
    let server = Cluster::default().serve();
    server.fail_always(Fault::Unavailable { leader: None });
    let client = client(&[&server.addr], unhurried()).await;
    let error = client.delete("/a", true).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn it_may_have_happened_when_an_attempt_was_never_answered() {
    let server = Cluster::default().serve();
    server.fail_next([Fault::Lost]);
    server.fail_always(Fault::Unavailable { leader: None });
    let client = client(&[&server.addr], brief()).await;
    let error = client.create("/a", FileType::Directory).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
    let error = client.stat("/a").await.unwrap_err();
    assert!(
        matches!(error, Error::Unavailable(_)),
        "a read changes nothing: {error}"
    );
}

#[tokio::test]
async fn it_may_have_happened_when_the_server_hangs() {
    let server = Cluster::default().serve();
    server.fail_always(Fault::Hang);
    let client = client(&[&server.addr], brief()).await;
    let error = client.create("/a", FileType::Directory).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
}

#[tokio::test]
async fn it_may_have_happened_when_the_connection_broke_under_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            // Takes the request in, and is gone.
            let mut taken = [0; 256];
            while stream.read(&mut taken).await.is_ok_and(|n| n == taken.len()) {}
        }
    });
    let client = client(&[&addr], brief()).await;
    let error = client.create("/a", FileType::Directory).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
}

#[tokio::test]
async fn a_broken_server_is_reported_as_such_unless_there_is_doubt() {
    let server = Cluster::default().serve();
    server.fail_next([Fault::Broken, Fault::Lost, Fault::Broken]);
    let client = client(&[&server.addr], patient()).await;
    let error = client.create("/a", FileType::Directory).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Server {
                code: Code::Internal,
                ..
            }
        ),
        "{error}"
    );
    let error = client.create("/a", FileType::Directory).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
}

// --- The parts that decide ---

#[test]
fn statuses_are_judged_by_what_they_prove() {
    let retry = |fate| Verdict::Retry { fate, leader: None };
    assert_eq!(judge(&Status::unavailable("")), retry(Fate::NotDone));
    assert_eq!(judge(&Status::resource_exhausted("")), retry(Fate::NotDone));
    assert_eq!(judge(&Status::deadline_exceeded("")), retry(Fate::Unknown));
    assert_eq!(
        judge(&Status::not_found("x")),
        Verdict::Final(Error::NotFound("x".into()))
    );

    let mut hinted = Status::unavailable("");
    hinted
        .metadata_mut()
        .insert("minfs-leader", "meta2:9091".parse().unwrap());
    let leader = Some("meta2:9091".to_string());
    assert_eq!(
        judge(&hinted),
        Verdict::Retry {
            fate: Fate::NotDone,
            leader
        }
    );

    let mut refused = Status::unavailable("");
    refused.set_source(Arc::new(ConnectError("connection refused".into())));
    assert_eq!(judge(&refused), retry(Fate::NotDone));
    let mut torn = Status::unavailable("");
    torn.set_source(Arc::new(std::io::Error::from(
        std::io::ErrorKind::ConnectionReset,
    )));
    assert_eq!(
        judge(&torn),
        retry(Fate::Unknown),
        "whatever the code, it was made on this side"
    );
}

#[test]
fn a_course_visits_everybody_before_anybody_twice() {
    let mut course = Course::from(1);
    let mut visited = vec![course.current];
    for _ in 0..5 {
        course.advance(3, None);
        visited.push(course.current);
    }
    assert_eq!(visited, [1, 2, 0, 1, 2, 0]);
    assert_eq!(course.rounds, 1);
}

#[test]
fn a_course_goes_to_the_leader_once_a_round() {
    let mut course = Course::from(0);
    assert!(!course.advance(3, Some(2)));
    assert_eq!(course.current, 2);
    assert!(!course.advance(3, Some(0)), "0 was asked in this round");
    assert_eq!(course.current, 1);
    assert!(course.advance(3, Some(0)));
    assert_eq!(course.current, 0);
}

#[test]
fn pauses_grow_to_a_bound() {
    assert_eq!(pause(0, false, 1.0), Duration::from_millis(20));
    assert_eq!(pause(1, true, 0.0), Duration::from_millis(25));
    assert_eq!(pause(2, true, 1.0), Duration::from_millis(100));
    assert_eq!(pause(9_000, true, 1.0), Duration::from_millis(400));
}

#[test]
fn addresses_are_checked() {
    for good in [
        "localhost:9090",
        "10.0.0.1:1",
        "[::1]:9090",
        "meta_1.example-x.org:65535",
    ] {
        assert_eq!(address(good).unwrap(), good);
    }
    for bad in [
        "",
        "localhost",
        "localhost:",
        ":9090",
        "host:0",
        "host:65536",
        "::1:9090",
        "http://h:1",
        "a b:1",
    ] {
        assert_eq!(address(bad), Err(Error::Address(bad.to_string())));
    }
    assert_eq!(
        Source::servers("a:1, b:2,,a:1").unwrap(),
        Source::Servers(vec!["a:1".into(), "b:2".into()])
    );
    assert!(Source::servers(",").is_err());
    assert!(Source::etcd("a:1,b").is_err());
}

#[test]
fn nodes_in_etcd_are_read_leader_first_and_broken_ones_are_left_out() {
    let values: Vec<Vec<u8>> = [
        r#"{"id":"meta-9090","addr":"h:9090","register_at":"2025-01-01T00:00:00Z","is_leader":false}"#,
        "not json",
        r#"{"id":"meta-9091","addr":"h:9091","is_leader":true,"role":"metaServer"}"#,
        r#"{"id":"meta-9092","addr":"h:9092"}"#,
        r#"{"id":"meta-9093","addr":"nowhere"}"#,
    ]
    .iter()
    .map(|value| value.as_bytes().to_vec())
    .collect();
    assert_eq!(leader_first(&values), ["h:9091", "h:9090", "h:9092"]);
}

#[tokio::test]
async fn an_etcd_that_does_not_answer_is_named() {
    let dead = DeadAddress::new();
    let source = Source::etcd(&dead.addr).unwrap();
    let error = Client::connect(source, brief()).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unavailable(message) if message.contains(&dead.addr)),
        "{error}"
    );
}
