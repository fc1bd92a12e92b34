//! Who leads, who is there, beats, and passing on to the leader.

use tonic::Request;

use super::*;
use crate::actors::gateway::{FORWARDED_KEY, PEER_KEY};
use crate::domain::command::Refusal;
use crate::domain::ids::BlockId;
use crate::proto::admin::{self, GetNodeStatusRequest};
use crate::proto::dfs::command::Action;

fn shown(servers: &[MetaServerMsg]) -> Vec<String> {
    servers
        .iter()
        .map(|server| format!("{}:{}", server.host, server.port))
        .collect()
}

/// A follower (`meta-2`) whose leader is `meta-1`.
async fn follower_of(rig: &Rig) -> Rig {
    let addr = rig.addr.to_string();
    let peer = ("meta-1".to_owned(), addr.clone());
    let follower = Rig::start("meta-2", move |settings| settings.peers.push(peer)).await;
    follower
        .tell(news(1, Role::Follower, Some(leader("meta-1", &addr))))
        .await;
    follower
}

#[actix::test]
async fn the_leader_is_told_by_every_node_or_left_out() {
    let rig = Rig::start("meta-1", |_| {}).await;
    let answer = rig.get_leader().await;
    assert_eq!(answer.leader, None);
    assert_eq!(
        shown(&answer.followers),
        [&rig.addr.to_string(), "localhost:9098", "localhost:9099"]
    );

    rig.tell(news(3, Role::Follower, Some(leader("meta-9", "localhost:9099"))))
        .await;
    let answer = rig.get_leader().await;
    assert_eq!(
        shown(&answer.leader.into_iter().collect::<Vec<_>>()),
        ["localhost:9099"]
    );
    assert_eq!(
        shown(&answer.followers),
        [&rig.addr.to_string(), "localhost:9098"]
    );

    rig.tell(news(2, Role::Leader, Some(leader("meta-1", "localhost:1"))))
        .await;
    let after_stale_news = rig.get_leader().await.leader.unwrap();
    assert_eq!(
        after_stale_news.port, 9099,
        "news of an older term changes nothing"
    );

    rig.tell(news(4, Role::Candidate, None)).await;
    assert_eq!(rig.get_leader().await.leader, None);
}

#[actix::test]
async fn a_node_that_the_configuration_leaves_out_lists_itself() {
    let rig = Rig::start("meta-1", |settings| {
        settings.peers = vec![("meta-8".into(), "h:8".into())]
    })
    .await;
    assert_eq!(
        shown(&rig.get_leader().await.followers),
        [&rig.addr.to_string(), "h:8"]
    );
}

#[actix::test]
async fn cluster_info_shows_servers_and_live_data_servers() {
    let rig = Rig::leading().await;
    rig.with(|neighbour, _| {
        let mut dead = report(2, &[1]);
        dead.alive = false;
        neighbour.reports = vec![report(1, &[1, 2]), dead];
    })
    .await;
    let info = rig.cluster_info().await.unwrap();
    assert_eq!(
        shown(&info.master_meta_server.into_iter().collect::<Vec<_>>()),
        [rig.addr.to_string()]
    );
    assert_eq!(
        shown(&info.slave_meta_server),
        ["localhost:9098", "localhost:9099"]
    );
    let expected = DataServerMsg {
        host: "ds-1".into(),
        port: 8000,
        file_total: 2,
        capacity: 3,
        use_capacity: 2,
    };
    assert_eq!(info.data_server, [expected]);
    assert_eq!(
        rig.with(|neighbour, _| neighbour.reads.len()).await,
        1,
        "a leader makes sure that it is one"
    );
}

#[actix::test]
async fn a_beat_goes_to_the_keeper_and_its_commands_come_back() {
    let rig = Rig::leading().await;
    rig.with(|neighbour, _| {
        neighbour.on_beat = Script::Answer(Ok(vec![
            DataServerCommand::Delete(BlockId(5)),
            DataServerCommand::Copy {
                block: BlockId(6),
                from: "ds-2:8000".into(),
            },
        ]));
    })
    .await;
    let commands = rig.beat("ds-1", "0.0.0.0:8001").await.unwrap();
    assert_eq!(
        (commands[0].action(), commands[0].block_id),
        (Action::DeleteBlock, 5)
    );
    assert_eq!(
        (commands[1].action(), commands[1].block_id),
        (Action::CopyBlock, 6)
    );
    assert_eq!(commands[1].targets, ["ds-2:8000"]);
    let beats = rig.with(|neighbour, _| neighbour.beats.clone()).await;
    let beat = HeartbeatReceived {
        id: "ds-1".into(),
        addr: "127.0.0.1:8001".into(),
        blocks: vec![1, 5].into(),
        corrupt: vec![],
        block_count: 2,
        free_space: 3,
        total_capacity: 4,
        deadline: beats[0].deadline,
    };
    assert_eq!(beats, [beat]);
}

#[actix::test]
async fn a_beats_answer_names_the_cluster_and_the_raft_node_is_asked_once() {
    let rig = Rig::leading().await;
    let beat = HeartbeatRequest {
        data_server_id: "ds-1".into(),
        data_server_addr: "h:1".into(),
        corrupt_block_ids: vec![9, 8],
        ..Default::default()
    };
    rig.with(|neighbour, _| neighbour.cluster_id = None).await;
    let answer = rig.client.clone().heartbeat(beat.clone()).await.unwrap();
    assert_eq!(answer.into_inner().cluster_id, "", "not known yet");
    rig.with(|neighbour, _| neighbour.cluster_id = Some("c".into()))
        .await;
    for _ in 0..3 {
        let answer = rig.client.clone().heartbeat(beat.clone()).await.unwrap();
        assert_eq!(answer.into_inner().cluster_id, "c");
    }
    let (asked, corrupt) = rig
        .with(|neighbour, _| (neighbour.statuses_asked, neighbour.beats[0].corrupt.clone()))
        .await;
    assert_eq!((asked, corrupt), (2, vec![9, 8]));
}

#[actix::test]
async fn a_keeper_that_does_not_lead_any_more_makes_nobody_look_dead() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    rig.write("/f", 4).await;
    rig.with(|neighbour, _| neighbour.generation = 0).await;
    let expected = (
        Code::Unavailable,
        "not the leader".to_owned(),
        Some(rig.addr.to_string()),
    );
    assert_eq!(refusal(rig.cluster_info().await), expected);
    assert_eq!(refusal(rig.replication("/f").await), expected);
}

#[actix::test]
async fn a_beat_that_is_not_taken() {
    let rig = Rig::leading().await;
    for (error, code) in [
        (HeartbeatError::NotLeader, Code::Unavailable),
        (HeartbeatError::Unavailable("later".into()), Code::Unavailable),
        (
            HeartbeatError::Refused(Refusal::invalid_argument("no")),
            Code::InvalidArgument,
        ),
    ] {
        rig.with(move |neighbour, _| neighbour.on_beat = Script::Answer(Err(error)))
            .await;
        assert_eq!(refused(rig.beat("ds-1", "h:1").await).0, code);
    }
}

#[actix::test]
async fn a_beat_may_be_large() {
    let rig = Rig::leading().await;
    let request = HeartbeatRequest {
        data_server_id: "ds-1".into(),
        data_server_addr: "h:1".into(),
        block_ids_report: (1 << 40..(1 << 40) + 1_000_000).collect(),
        ..Default::default()
    };
    rig.client.clone().heartbeat(request).await.unwrap();
    assert_eq!(
        rig.with(|neighbour, _| neighbour.beats[0].blocks.numbers().len())
            .await,
        1_000_000
    );
}

#[actix::test]
async fn a_follower_passes_on_to_the_leader() {
    let first = Rig::leading().await;
    let follower = follower_of(&first).await;
    first.data_servers(3).await;
    first.write("/f", 4).await;
    first
        .with(|neighbour, _| neighbour.reports = (1..=3).map(|n| report(n, &[1])).collect())
        .await;

    follower.beat("ds-1", ":8001").await.unwrap();
    let beats = first.with(|neighbour, _| neighbour.beats.clone()).await;
    assert_eq!(beats[0].addr, "127.0.0.1:8001");
    assert!(follower.with(|neighbour, _| neighbour.beats.is_empty()).await);

    assert_eq!(
        follower.cluster_info().await.unwrap(),
        first.cluster_info().await.unwrap()
    );
    let replication = follower.replication("/f").await.unwrap();
    assert_eq!(replication.files[0].status, "healthy");
    assert_eq!(
        refused(follower.replication("/no").await),
        (Code::NotFound, "not found: /no".into()),
        "what the leader says is passed back"
    );
}

#[actix::test]
async fn the_address_that_a_beat_came_from_first_is_kept() {
    let rig = Rig::leading().await;
    let mut request = Request::new(HeartbeatRequest {
        data_server_id: "ds-1".into(),
        data_server_addr: "[::]:8001".into(),
        ..Default::default()
    });
    request
        .metadata_mut()
        .insert(FORWARDED_KEY, "meta-2".parse().unwrap());
    request
        .metadata_mut()
        .insert(PEER_KEY, "10.1.2.3".parse().unwrap());
    rig.client.clone().heartbeat(request).await.unwrap();
    assert_eq!(
        rig.with(|neighbour, _| neighbour.beats[0].addr.clone()).await,
        "10.1.2.3:8001"
    );
}

#[actix::test]
async fn nothing_is_passed_on_twice() {
    let first = Rig::leading().await;
    let follower = follower_of(&first).await;
    // The leader was deposed, and thinks that a third one leads.
    first
        .tell(news(2, Role::Follower, Some(leader("meta-9", "localhost:9099"))))
        .await;
    let expected = (
        Code::Unavailable,
        "not the leader".to_owned(),
        Some("localhost:9099".to_owned()),
    );
    assert_eq!(refusal(follower.beat("ds-1", "h:1").await), expected);
    assert_eq!(refusal(follower.cluster_info().await), expected);
    assert_eq!(refusal(follower.replication("/").await), expected);
}

#[actix::test]
async fn a_leader_that_cannot_be_reached() {
    let rig = Rig::leading().await;
    // Bound and dropped: nobody listens there.
    let gone = listener().await.1.to_string();
    rig.tell(news(2, Role::Follower, Some(leader("meta-9", &gone))))
        .await;
    let (code, message, leader) = refusal(rig.beat("ds-1", "h:1").await);
    assert_eq!((code, leader), (Code::Unavailable, Some(gone)));
    assert!(
        message.starts_with("the leader meta-9 cannot be reached: "),
        "{message}"
    );
}

#[actix::test]
async fn an_operator_is_told_where_this_node_stands() {
    let rig = Rig::start("meta-1", |_| {}).await;
    rig.mkdir("/d").await;
    let answer = rig
        .admin()
        .get_node_status(GetNodeStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    let member = admin::Member {
        name: "meta-1".into(),
        incarnation: 71,
        raft_addr: "h:1".into(),
        grpc_addr: "h:2".into(),
        voter: true,
        matched_index: Some(9),
    };
    assert!(answer.state_bytes > 0);
    let expected = admin::GetNodeStatusResponse {
        name: "meta-1".into(),
        incarnation: 71,
        cluster_id: "c".into(),
        role: admin::Role::Leader.into(),
        term: 4,
        leader: Some("meta-1".into()),
        last_log_index: Some(9),
        committed_index: Some(8),
        applied_index: Some(7),
        snapshot_index: None,
        purged_index: Some(0),
        members: vec![member],
        inodes: 2,
        state_bytes: answer.state_bytes,
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_ms: answer.uptime_ms,
        free_space: 20,
        wanted_space: 30,
        writes_refused: "too little space".into(),
    };
    assert_eq!(answer, expected);
}

#[actix::test]
async fn an_operator_is_told_what_the_auditor_found() {
    use crate::actors::auditor::messages::{Found, Verification, VerifyStatus};
    use crate::domain::state_hash::StateHash;
    let found = Found {
        recorded: StateHash(2),
        computed: StateHash(3),
        records: 4,
    };
    let verification = |found| Verification {
        number: 1,
        applied: Some(7),
        found,
        took: Duration::from_millis(5),
    };
    let status = VerifyStatus {
        begun: 1,
        records_so_far: Some(4096),
        last: Some(verification(Ok(found))),
        recent: [(6, StateHash(1)), (7, StateHash(2))].into(),
    };
    let rig = Rig::start("meta-1", |_| {}).await;
    let told = status.clone();
    rig.with(|neighbour, _| neighbour.verification = told).await;
    let ask = async |rig: &Rig, begin| {
        let asked = rig
            .admin()
            .verify_state(admin::VerifyStateRequest { begin })
            .await;
        asked.unwrap().into_inner()
    };
    let hash = |index, hash: u128| admin::StateHash {
        index,
        hash: hash.to_be_bytes().to_vec(),
    };
    let expected = admin::VerifyStateResponse {
        begun: 1,
        records_so_far: Some(4096),
        last: Some(admin::StateVerification {
            number: 1,
            recorded: Some(hash(7, 2)),
            computed: 3_u128.to_be_bytes().to_vec(),
            records: 4,
            took_ms: 5,
            problem: String::new(),
        }),
        recent: vec![hash(6, 1), hash(7, 2)],
    };
    assert_eq!(ask(&rig, false).await, expected);
    assert_eq!(ask(&rig, true).await.begun, 2);

    let unreadable = VerifyStatus {
        last: Some(verification(Err("no".to_owned()))),
        ..status
    };
    rig.with(|neighbour, _| neighbour.verification = unreadable).await;
    let last = ask(&rig, false).await.last.unwrap();
    assert_eq!((last.problem.as_str(), last.recorded), ("no", None));
}
