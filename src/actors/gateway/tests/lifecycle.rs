//! Health, reflection, and a stop that drops nobody.

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

use super::*;
use crate::actors::gateway::messages::{Stop, WhoLeads};

const SERVICE: &str = "dfs_project.MetaServerService";

async fn health(rig: &Rig, service: &str) -> ServingStatus {
    let request = HealthCheckRequest {
        service: service.into(),
    };
    let answer = HealthClient::new(rig.channel.clone()).check(request).await;
    answer.unwrap().into_inner().status()
}

#[actix::test]
async fn health_follows_the_news() {
    let rig = Rig::start("meta-1", |_| {}).await;
    let other = || Some(leader("meta-9", "localhost:9099"));
    for (news, expected) in [
        (news(0, Role::Learner, None), ServingStatus::NotServing),
        (news(2, Role::Follower, other()), ServingStatus::Serving),
        (news(3, Role::Candidate, None), ServingStatus::NotServing),
        (news(2, Role::Follower, other()), ServingStatus::NotServing),
        (
            news(3, Role::Leader, Some(leader("meta-1", "h:1"))),
            ServingStatus::Serving,
        ),
    ] {
        rig.tell(news.clone()).await;
        for service in ["", SERVICE] {
            assert_eq!(
                health(&rig, service).await,
                expected,
                "{service:?} after {news:?}"
            );
        }
    }
}

#[actix::test]
async fn news_of_an_older_term_is_ignored() {
    let rig = Rig::start("meta-1", |_| {}).await;
    assert_eq!(
        rig.gateway.send(WhoLeads).await.unwrap(),
        LeadershipChanged::UNKNOWN
    );
    let newer = news(5, Role::Follower, Some(leader("meta-9", "localhost:9099")));
    rig.tell(newer.clone()).await;
    rig.tell(news(4, Role::Leader, Some(leader("meta-1", "h:1"))))
        .await;
    assert_eq!(rig.gateway.send(WhoLeads).await.unwrap(), newer);
    let same_term = news(5, Role::Follower, None);
    rig.tell(same_term.clone()).await;
    assert_eq!(rig.gateway.send(WhoLeads).await.unwrap(), same_term);
}

#[actix::test]
async fn a_stop_tells_health_takes_nothing_new_and_drops_nobody() {
    let rig = Rig::leading().await;
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    rig.with(move |neighbour, _| neighbour.on_propose = Script::Hold(held))
        .await;
    let request = CreateNodeRequest {
        path: "/f".into(),
        r#type: 2,
    };
    let mut client = rig.client.clone();
    let create = actix::spawn(async move { client.create_node(request).await });
    until("the create waits", async || {
        rig.with(|neighbour, _| neighbour.proposals.len()).await == 1
    })
    .await;
    let request = HealthCheckRequest {
        service: SERVICE.into(),
    };
    let watch = HealthClient::new(rig.channel.clone()).watch(request).await;
    let mut watch = watch.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);

    let stop = actix::spawn(rig.gateway.send(Stop));
    let told = watch.message().await.unwrap().unwrap();
    assert_eq!(told.status(), ServingStatus::NotServing);
    assert!(
        watch.message().await.unwrap().is_none(),
        "those who watch do not keep the server up"
    );
    until("nobody listens", async || {
        tokio::net::TcpStream::connect(rig.addr).await.is_err()
    })
    .await;
    assert!(!stop.is_finished());

    gate.add_permits(1);
    create.await.unwrap().unwrap();
    stop.await.unwrap().unwrap();
    until("the actor is gone", async || !rig.gateway.connected()).await;
}

#[actix::test]
async fn a_stop_waits_no_longer_than_a_request_may_take() {
    let rig = Rig::start("meta-1", |settings| {
        settings.request_timeout = Duration::from_millis(200)
    })
    .await;
    // A reflection stream that its client never ends.
    let (_open, requests) = tokio::sync::mpsc::channel(1);
    let mut reflection = v1::server_reflection_client::ServerReflectionClient::new(rig.channel.clone());
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let _answers = reflection.server_reflection_info(requests).await.unwrap();
    let stopped = tokio::time::timeout(Duration::from_secs(20), rig.gateway.send(Stop)).await;
    stopped.unwrap().unwrap();
}

#[actix::test]
async fn a_second_stop_does_not_cut_the_first_one_short() {
    let rig = Rig::leading().await;
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    rig.with(move |neighbour, _| neighbour.on_read = Script::Hold(held))
        .await;
    let request = GetNodeInfoRequest { path: "/".into() };
    let mut client = rig.client.clone();
    let read = actix::spawn(async move { client.get_node_info(request).await });
    until("the read waits", async || {
        rig.with(|neighbour, _| neighbour.reads.len()).await == 1
    })
    .await;
    let first = actix::spawn(rig.gateway.send(Stop));
    until("nobody listens", async || {
        tokio::net::TcpStream::connect(rig.addr).await.is_err()
    })
    .await;
    rig.gateway.send(Stop).await.unwrap();
    rig.tell(news(9, Role::Leader, Some(leader("meta-1", "h:1"))))
        .await;
    assert!(!first.is_finished());
    gate.add_permits(1);
    read.await.unwrap().unwrap();
    first.await.unwrap().unwrap();
}

#[actix::test]
async fn news_before_the_first_request_counts() {
    let (listener, addr) = listener().await;
    let neighbour = Neighbour::new();
    let reader = neighbour.reader();
    let gateway = start(
        settings("meta-1", addr),
        neighbours(&neighbour.start()),
        reader,
        listener,
        Threads::none(),
    );
    let known = Some(leader("meta-9", "localhost:9099"));
    gateway.send(news(1, Role::Follower, known)).await.unwrap();
    let channel = Endpoint::from_shared(format!("http://{addr}"))
        .unwrap()
        .connect_lazy();
    let answer = HealthClient::new(channel)
        .check(HealthCheckRequest::default())
        .await;
    assert_eq!(answer.unwrap().into_inner().status(), ServingStatus::Serving);
}

#[actix::test]
async fn reflection_lists_every_service_in_both_versions() {
    let rig = Rig::start("meta-1", |_| {}).await;
    macro_rules! services {
        ($version:ident, $ask:expr) => {{
            use $version::server_reflection_request::MessageRequest;
            let request = $version::ServerReflectionRequest {
                host: String::new(),
                message_request: Some($ask),
            };
            let mut client =
                $version::server_reflection_client::ServerReflectionClient::new(rig.channel.clone());
            let answers = client.server_reflection_info(tokio_stream::once(request)).await;
            let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
            let _ = MessageRequest::ListServices(String::new());
            answer.message_response.unwrap()
        }};
    }
    macro_rules! lists {
        ($version:ident) => {{
            use $version::server_reflection_request::MessageRequest;
            use $version::server_reflection_response::MessageResponse;
            let MessageResponse::ListServicesResponse(list) =
                services!($version, MessageRequest::ListServices(String::new()))
            else {
                panic!("no list of services")
            };
            let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
            for name in [SERVICE, "minfs.admin.AdminService", "grpc.health.v1.Health"] {
                assert!(names.iter().any(|found| found == name), "{name} in {names:?}");
            }
            for symbol in [SERVICE, "dfs_project.StatInfo", "minfs.admin.AdminService"] {
                let ask = MessageRequest::FileContainingSymbol(symbol.into());
                let found = services!($version, ask);
                assert!(
                    matches!(found, MessageResponse::FileDescriptorResponse(_)),
                    "{symbol}: {found:?}"
                );
            }
        }};
    }
    lists!(v1);
    lists!(v1alpha);
}
