//! GetUpkeep and AllowMassDelete: whose answers they are made of, and who may ask.

use std::time::{SystemTime, UNIX_EPOCH};

use super::*;
use crate::actors::scheduler::messages::{FsckSummary, GcSummary};
use crate::domain::fsck::FsckCounts;
use crate::domain::gc::{GcCounts, Strangers};
use crate::proto::admin::{AllowMassDeleteRequest, DataServerUpkeep, GetUpkeepRequest, GetUpkeepResponse};

impl Rig {
    async fn upkeep(&self) -> Result<GetUpkeepResponse, Status> {
        Ok(self.admin().get_upkeep(GetUpkeepRequest {}).await?.into_inner())
    }

    async fn allow(&self) -> Result<u64, Status> {
        let answer = self.admin().allow_mass_delete(AllowMassDeleteRequest {}).await?;
        Ok(answer.into_inner().blocks)
    }
}

fn ago(time: Duration) -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    (since - time).as_millis() as i64
}

#[actix::test]
async fn a_leader_tells_what_its_upkeep_knows() {
    let rig = Rig::leading().await;
    rig.data_servers(2).await;
    rig.with(|neighbour, _| {
        let minute = Duration::from_secs(60);
        neighbour.complete = false;
        let silent = ServerReport {
            status: ServerStatus::Down,
            alive: false,
            reported_ms: None,
            free_space: 0,
            total_capacity: 0,
            ..report(2, &[])
        };
        let beating = ServerReport {
            corrupt: [9].into(),
            reported_ms: Some(ago(minute)),
            ..report(1, &[1, 2])
        };
        neighbour.reports = vec![beating, silent];
        neighbour.orders = OrderCounts {
            repairs_running: 3,
            repairs_waiting: 4,
            removals_waiting: 5,
        };
        neighbour.upkeep = UpkeepStatus {
            fsck: Some(FsckSummary {
                finished: Instant::now() - minute,
                took: Duration::ZERO,
                counts: FsckCounts {
                    unrepairable: 6,
                    open_writes: 7,
                    ..FsckCounts::default()
                },
            }),
            gc: Some(GcSummary {
                finished: Instant::now(),
                took: Duration::ZERO,
                counts: GcCounts {
                    garbage_runs: 100,
                    garbage_blocks: 8,
                    garbage_replicas: 9,
                    held_back: 2,
                },
                strangers: [(
                    ServerId(1),
                    Strangers {
                        unknown: 10,
                        held_back: 2,
                        foreign: 1,
                    },
                )]
                .into(),
            }),
            reclaiming: true,
        };
    })
    .await;
    // Two entries of garbage.
    for name in ["/a", "/b"] {
        rig.with(move |neighbour, _| neighbour.apply_ops(registrations(3..=3)))
            .await;
        rig.write(name, 4).await;
        rig.delete(name, false).await.unwrap();
    }

    let answer = rig.upkeep().await.unwrap();
    let shown = |server: &DataServerUpkeep| server.silent_ms.unwrap();
    let silent_ms = shown(&answer.data_servers[0]);
    assert!((60_000..600_000).contains(&silent_ms), "{silent_ms}");
    let (fsck, gc) = (answer.fsck_ms_ago.unwrap(), answer.gc_ms_ago.unwrap());
    assert!((60_000..600_000).contains(&fsck) && gc < fsck, "{fsck} {gc}");
    let beating = DataServerUpkeep {
        id: "ds-1".into(),
        addr: "ds-1:8000".into(),
        status: "healthy".into(),
        alive: true,
        silent_ms: Some(silent_ms),
        blocks: 2,
        corrupt_blocks: 1,
        free_space: 1 << 20,
        total_capacity: 3 << 20,
        unknown_blocks: 11,
        held_back: 2,
        foreign_blocks: 1,
    };
    let silent = DataServerUpkeep {
        id: "ds-2".into(),
        addr: "ds-2:8000".into(),
        status: "down".into(),
        ..DataServerUpkeep::default()
    };
    let expected = GetUpkeepResponse {
        waiting_for_reports: true,
        data_servers: vec![beating, silent],
        garbage_runs: 2,
        garbage_blocks: 8,
        garbage_replicas: 9,
        repairs_running: 3,
        repairs_waiting: 4,
        unrepairable: 6,
        open_writes: 7,
        reclaiming: true,
        fsck_ms_ago: Some(fsck),
        gc_ms_ago: Some(gc),
    };
    assert_eq!(answer, expected);
}

#[actix::test]
async fn a_new_leader_knows_nothing_yet() {
    let rig = Rig::leading().await;
    let answer = rig.upkeep().await.unwrap();
    assert_eq!(answer, GetUpkeepResponse::default());
}

#[actix::test]
async fn the_operators_word_goes_to_the_scheduler() {
    let rig = Rig::leading().await;
    rig.with(|neighbour, _| neighbour.held_back = 5).await;
    assert_eq!(rig.allow().await.unwrap(), 5);
    assert_eq!(rig.allow().await.unwrap(), 0, "none are held back");
}

#[actix::test]
async fn only_a_leader_that_is_sure_of_it_answers() {
    let rig = Rig::start("meta-1", |_| {}).await;
    rig.with(|neighbour, _| neighbour.held_back = 5).await;
    let other = leader("meta-9", "localhost:9099");
    rig.tell(news(2, Role::Follower, Some(other))).await;
    let named = (
        Code::Unavailable,
        "not the leader".to_owned(),
        Some("localhost:9099".to_owned()),
    );
    assert_eq!(refusal(rig.upkeep().await), named);
    assert_eq!(refusal(rig.allow().await), named);

    let myself = leader("meta-1", &rig.addr.to_string());
    rig.tell(news(3, Role::Leader, Some(myself))).await;
    rig.with(|neighbour, _| {
        neighbour.on_read = Script::Answer(Err(ReadError::Unavailable("cut off".into())))
    })
    .await;
    let cut_off = (Code::Unavailable, "cut off".to_owned());
    assert_eq!(refused(rig.upkeep().await), cut_off);
    assert_eq!(refused(rig.allow().await), cut_off);
    assert_eq!(
        rig.with(|neighbour, _| neighbour.held_back).await,
        5,
        "nobody was asked"
    );
}

#[actix::test]
async fn neighbours_that_never_answer_hold_nobody() {
    let rig = Rig::start("meta-1", |settings| {
        settings.request_timeout = Duration::from_secs(1)
    })
    .await;
    let myself = leader("meta-1", &rig.addr.to_string());
    rig.tell(news(1, Role::Leader, Some(myself))).await;
    rig.with(|neighbour, _| neighbour.on_read = Script::Hold(Arc::new(Semaphore::new(0))))
        .await;
    let both = async {
        assert_eq!(refused(rig.upkeep().await).0, Code::Unavailable);
        assert_eq!(refused(rig.allow().await).0, Code::Unavailable);
    };
    tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
}
