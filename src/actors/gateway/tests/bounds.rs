//! Deadlines, the bound on requests under way, and neighbours that are gone.

use super::*;
use crate::domain::command::Outcome;
use crate::domain::ids::{BlockId, InodeId};
use crate::domain::state::BlockRun;

fn closed() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(0))
}

/// A leader of which every request is answered within a second.
async fn hurried() -> Rig {
    let rig = Rig::start("meta-1", |settings| {
        settings.request_timeout = Duration::from_secs(1)
    })
    .await;
    let myself = leader("meta-1", &rig.addr.to_string());
    rig.tell(news(1, Role::Leader, Some(myself))).await;
    rig
}

#[actix::test]
async fn a_neighbour_that_never_answers_holds_nobody() {
    let rig = hurried().await;
    rig.with(|neighbour, _| {
        neighbour.on_propose = Script::Hold(closed());
        neighbour.on_read = Script::Hold(closed());
        neighbour.on_beat = Script::Hold(closed());
    })
    .await;
    let silent = (Code::Unavailable, "no answer from the Raft node".to_owned());
    let all = async {
        let (create, stat, blocks) = tokio::join!(rig.create("/f", 2), rig.stat("/"), rig.blocks("/f", 3));
        assert_eq!(
            refused(create),
            (
                Code::DeadlineExceeded,
                "outcome unknown: no answer from the Raft node".into()
            )
        );
        assert_eq!(refused(stat), silent);
        assert_eq!(refused(blocks), silent, "nothing was proposed yet");
        let (info, replication, beat) =
            tokio::join!(rig.cluster_info(), rig.replication(""), rig.beat("ds-1", "h:1"));
        assert_eq!(refused(info), silent);
        assert_eq!(refused(replication), silent);
        assert_eq!(
            refused(beat),
            (Code::Unavailable, "no answer from the DataServers' keeper".into())
        );
        assert!(rig.get_leader().await.leader.is_some());
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.unwrap();
    let deadlines = rig.with(|neighbour, _| neighbour.reads[0].deadline).await;
    assert!(deadlines < Instant::now(), "the neighbour was told until when");
}

#[actix::test]
async fn a_committed_allocation_whose_servers_cannot_be_named_did_not_not_happen() {
    let rig = hurried().await;
    rig.with(|neighbour, _| {
        let blocks = BlockRun {
            first: BlockId(9),
            count: 1,
            block_size: BLOCK,
            replication: 1,
            servers: vec![ServerId(77)],
        };
        let inode = InodeId(5);
        neighbour.on_propose = Script::Answer(Ok(Ok(Outcome::Allocated { inode, blocks })));
        // The first read is allowed, the one that would learn of DataServer 77 is not.
        neighbour.on_read = Script::Hold(Arc::new(Semaphore::new(1)));
    })
    .await;
    assert_eq!(refused(rig.blocks("/f", 3).await).0, Code::DeadlineExceeded);
}

#[actix::test]
async fn an_unanswered_leader_holds_nobody() {
    let first = Rig::leading().await;
    first
        .with(|neighbour, _| neighbour.on_beat = Script::Hold(closed()))
        .await;
    let follower = hurried().await;
    let addr = first.addr.to_string();
    follower
        .tell(news(2, Role::Follower, Some(leader("meta-9", &addr))))
        .await;
    let (code, _, named) = refusal(follower.beat("ds-1", "h:1").await);
    assert_eq!((code, named), (Code::Unavailable, Some(addr)));
}

#[actix::test]
async fn past_the_bound_a_request_is_refused_at_once_but_not_the_question_who_leads() {
    let rig = Rig::start("meta-1", |settings| settings.max_in_flight = 2).await;
    let myself = leader("meta-1", &rig.addr.to_string());
    rig.tell(news(1, Role::Leader, Some(myself))).await;
    let gate = closed();
    let held = gate.clone();
    rig.with(move |neighbour, _| neighbour.on_read = Script::Hold(held))
        .await;

    let under_way: Vec<_> = (0..2)
        .map(|_| {
            let mut client = rig.client.clone();
            actix::spawn(async move {
                client
                    .get_node_info(GetNodeInfoRequest { path: "/".into() })
                    .await
            })
        })
        .collect();
    until("both reads wait", async || {
        rig.with(|neighbour, _| neighbour.reads.len()).await == 2
    })
    .await;

    let full = (Code::ResourceExhausted, "too many requests in flight".to_owned());
    assert_eq!(refused(rig.create("/f", 2).await), full);
    assert_eq!(refused(rig.stat("/").await), full);
    assert!(rig.get_leader().await.leader.is_some());
    rig.beat("ds-1", "h:1").await.unwrap();
    assert!(rig.with(|neighbour, _| neighbour.proposals.is_empty()).await);

    gate.add_permits(2);
    for request in under_way {
        request.await.unwrap().unwrap();
    }
    rig.create("/f", 2).await.unwrap();
}

#[actix::test]
async fn past_the_bound_of_connections_requests_are_refused_at_once_but_for_the_urgent_ones() {
    let rig = Rig::start("meta-1", |settings| {
        settings.connections = Fit { served: 1, excess: 1 }
    })
    .await;
    let myself = leader("meta-1", &rig.addr.to_string());
    rig.tell(news(1, Role::Leader, Some(myself))).await;
    rig.stat("/").await.unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{}", rig.addr)).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let excess = Rig {
        addr: rig.addr,
        gateway: rig.gateway.clone(),
        neighbour: rig.neighbour.clone(),
        client: MetaServerServiceClient::new(channel.clone()),
        channel,
    };
    let full = (Code::ResourceExhausted, "too many connections".to_owned());
    assert_eq!(refused(excess.stat("/").await), full);
    assert_eq!(refused(excess.create("/f", 2).await), full);
    assert!(excess.get_leader().await.leader.is_some());
    excess.beat("ds-1", "h:1").await.unwrap();
    rig.create("/f", 2).await.unwrap();
}

/// Sends bytes as the body of a call and, unless `ended`, leaves it open. Gives the answer's status.
async fn send_body(rig: &Rig, path: &str, bytes: &[u8], ended: bool) -> Status {
    let socket = tokio::net::TcpStream::connect(rig.addr).await.unwrap();
    let (mut send, connection) = h2::client::handshake(socket).await.unwrap();
    actix::spawn(connection);
    let request = tonic::codegen::http::Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let (answer, mut body) = send.send_request(request, false).unwrap();
    body.send_data(bytes::Bytes::copy_from_slice(bytes), ended)
        .unwrap();
    let (head, mut rest) = answer.await.unwrap().into_parts();
    if let Some(status) = Status::from_header_map(&head.headers) {
        return status;
    }
    while rest.data().await.transpose().unwrap().is_some() {}
    Status::from_header_map(&rest.trailers().await.unwrap().unwrap()).unwrap()
}

#[actix::test]
async fn a_request_that_never_ends_is_answered_in_time() {
    let rig = hurried().await;
    let create = "/dfs_project.MetaServerService/CreateNode";
    let bodies: [&[u8]; 5] = [
        b"",
        b"\0",
        b"\0\0\0\0\x04",
        b"\0\0\0\0\x04\x0a\x02/",
        b"\0\0\0\0\x04\x0a\x02/f",
    ];
    let answers = bodies.map(|body| send_body(&rig, create, body, false));
    let answers = tokio::time::timeout(Duration::from_secs(20), futures::future::join_all(answers));
    for status in answers.await.unwrap() {
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    }
    assert!(rig.with(|neighbour, _| neighbour.proposals.is_empty()).await);
}

#[actix::test]
async fn a_stream_that_never_ends_does_not_matter_where_it_is_not_read() {
    let rig = Rig::leading().await;
    let status = send_body(
        &rig,
        "/dfs_project.MetaServerService/SyncWAL",
        b"\0\0\0\x7f",
        false,
    )
    .await;
    assert_eq!(status.code(), Code::Unimplemented);
}

#[actix::test]
async fn a_request_says_no_more_than_it_may() {
    let rig = Rig::leading().await;
    let mut two = b"\0\0\0\0\x04\x0a\x02/f".to_vec();
    two.extend_from_within(..);
    let announced = |bytes: u32| [&[0][..], &bytes.to_be_bytes()].concat();
    for (rpc, body) in [
        ("CreateNode", announced(u32::MAX)),
        ("CreateNode", announced((1 << 20) + 1)),
        ("Heartbeat", announced((64 << 20) + 1)),
        ("GetLeader", announced(5000)),
        ("CreateNode", two),
    ] {
        let path = format!("/dfs_project.MetaServerService/{rpc}");
        let status = send_body(&rig, &path, &body, false).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{rpc}: {status:?}");
    }
    assert!(rig.with(|neighbour, _| neighbour.proposals.is_empty()).await);
}

#[actix::test]
async fn a_full_mailbox_holds_nobody() {
    let rig = hurried().await;
    rig.with(|_, ctx| ctx.set_mailbox_capacity(1)).await;
    let gate = closed();
    let held = gate.clone();
    rig.with(move |neighbour, _| neighbour.on_read = Script::Hold(held))
        .await;
    let reads = (0..20).map(|_| rig.stat("/"));
    for outcome in futures::future::join_all(reads).await {
        assert_eq!(refused(outcome).0, Code::Unavailable);
    }
    gate.add_permits(100);
    rig.stat("/").await.unwrap();
}

#[actix::test]
async fn neighbours_that_are_gone() {
    let rig = Rig::leading().await;
    rig.with(|_, ctx| ctx.stop()).await;
    until("the neighbour is gone", async || !rig.neighbour.connected()).await;
    let named = Some(rig.addr.to_string());
    let gone = (
        Code::Unavailable,
        "no answer from the Raft node".to_owned(),
        named.clone(),
    );
    assert_eq!(
        refusal(rig.create("/f", 2).await),
        gone,
        "it was not asked: nothing happened"
    );
    assert_eq!(refusal(rig.stat("/").await), gone);
    let gone = (
        Code::Unavailable,
        "no answer from the DataServers' keeper".to_owned(),
        named,
    );
    assert_eq!(refusal(rig.beat("ds-1", "h:1").await), gone);
    assert!(rig.get_leader().await.leader.is_some());
}

#[actix::test]
async fn a_neighbour_that_goes_while_it_is_asked_leaves_a_proposals_fate_open() {
    let rig = Rig::leading().await;
    rig.with(|neighbour, _| neighbour.on_propose = Script::Hold(closed()))
        .await;
    let mut client = rig.client.clone();
    let request = CreateNodeRequest {
        path: "/f".into(),
        r#type: 2,
    };
    let create = actix::spawn(async move { client.create_node(request).await });
    until("it is asked", async || {
        rig.with(|neighbour, _| neighbour.proposals.len()).await == 1
    })
    .await;
    rig.with(|_, ctx| ctx.terminate()).await;
    assert_eq!(refused(create.await.unwrap()).0, Code::DeadlineExceeded);
}
