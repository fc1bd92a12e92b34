//! GetReplicationInfo: the record against the reports.

use super::*;

async fn rig() -> Rig {
    let rig = Rig::leading().await;
    rig.data_servers(4).await;
    rig.mkdir("/d").await;
    rig.mkdir("/d/e").await;
    rig.write("/d/e/two", 8).await; // blocks 1, 2 on ds-1,2,3 and ds-2,3,4
    rig.write("/d/one", 4).await; // block 3 on ds-1,2,3
    rig.create("/empty", 2).await.unwrap();
    rig
}

async fn reported(rig: &Rig, reports: Vec<ServerReport>) {
    rig.with(move |neighbour, _| neighbour.reports = reports).await;
}

#[actix::test]
async fn a_file_under_and_over_its_replication() {
    let rig = rig().await;
    let all = vec![
        report(1, &[1, 3]),
        report(2, &[1, 2, 3]),
        report(3, &[1, 2, 3]),
        report(4, &[2]),
    ];
    reported(&rig, all.clone()).await;

    let answer = rig.replication("/d//e/../e/two").await.unwrap();
    assert_eq!((answer.total_files, answer.healthy_files), (1, 1));
    let [file] = &answer.files[..] else {
        panic!("{answer:?}")
    };
    assert_eq!(
        (file.path.as_str(), file.size, file.status.as_str()),
        ("/d/e/two", 8, "healthy")
    );
    assert_eq!((file.expected_replicas, file.actual_replicas), (3, 3));
    assert_eq!(file.inode, rig.blocks("/d/e/two", 0).await.unwrap().inode);
    assert_eq!(file.blocks[1].block_id, 2);
    assert_eq!(file.blocks[1].replica_count, 3);
    assert_eq!(file.blocks[1].locations, ["ds-2:8000", "ds-3:8000", "ds-4:8000"]);
    assert_eq!(
        file.blocks[1].expected_locations,
        ["ds-2:8000", "ds-3:8000", "ds-4:8000"]
    );

    // One replica of block 2 is not where it should be, another DataServer is dead.
    let mut fewer = all.clone();
    fewer[3] = report(4, &[]);
    fewer[0].alive = false;
    reported(&rig, fewer).await;
    let answer = rig.replication("/d/e/two").await.unwrap();
    let file = &answer.files[0];
    assert_eq!(
        (file.status.as_str(), file.actual_replicas),
        ("under_replicated", 2)
    );
    assert_eq!(file.blocks[0].locations, ["ds-2:8000", "ds-3:8000"]);
    assert_eq!(file.blocks[0].expected_locations.len(), 3);
    assert_eq!(answer.under_replicated_files, 1);

    let mut more = all;
    more[3] = report(4, &[1, 2]);
    reported(&rig, more).await;
    let answer = rig.replication("/d/e/two").await.unwrap();
    let file = &answer.files[0];
    assert_eq!(
        (file.status.as_str(), file.actual_replicas),
        ("over_replicated", 3)
    );
    assert_eq!(file.blocks[0].replica_count, 4);
    assert_eq!(answer.over_replicated_files, 1);
    for location in file.blocks.iter().flat_map(|block| &block.locations) {
        assert_eq!(location.matches(':').count(), 1);
    }
}

#[actix::test]
async fn every_file_or_those_below_a_directory() {
    let rig = rig().await;
    reported(&rig, vec![report(1, &[3]), report(2, &[3]), report(3, &[3])]).await;
    let paths = |answer: &GetReplicationInfoResponse| {
        answer
            .files
            .iter()
            .map(|file| file.path.clone())
            .collect::<Vec<_>>()
    };
    for every in ["", "/"] {
        let answer = rig.replication(every).await.unwrap();
        assert_eq!(paths(&answer), ["/d/e/two", "/d/one", "/empty"]);
        assert_eq!(
            (
                answer.total_files,
                answer.healthy_files,
                answer.under_replicated_files
            ),
            (3, 2, 1)
        );
        let empty = &answer.files[2];
        assert_eq!((empty.status.as_str(), empty.blocks.len()), ("healthy", 0));
    }
    assert_eq!(paths(&rig.replication("/d/e").await.unwrap()), ["/d/e/two"]);
    assert_eq!(
        rig.replication("/d/one").await.unwrap().files[0].status,
        "healthy"
    );
}

#[actix::test]
async fn damaged_replicas_do_not_count() {
    let rig = rig().await;
    let mut third = report(3, &[]);
    third.corrupt = [3].into();
    reported(&rig, vec![report(1, &[3]), report(2, &[3]), third]).await;
    let answer = rig.replication("/d/one").await.unwrap();
    let file = &answer.files[0];
    assert_eq!(
        (file.status.as_str(), file.actual_replicas),
        ("under_replicated", 2)
    );
    assert_eq!(file.blocks[0].locations, ["ds-1:8000", "ds-2:8000"]);
    assert_eq!(
        file.blocks[0].expected_locations,
        ["ds-1:8000", "ds-2:8000", "ds-3:8000"]
    );
}

#[actix::test]
async fn of_a_file_that_is_being_written_nothing_is_due() {
    let rig = rig().await;
    let blocks = rig.blocks("/new", 8).await.unwrap();
    let first = blocks.block_locations[0].block_id;
    reported(&rig, vec![report(1, &[first])]).await;
    let answer = rig.replication("/new").await.unwrap();
    assert_eq!((answer.healthy_files, answer.under_replicated_files), (1, 0));
    let file = &answer.files[0];
    assert_eq!(
        (
            file.status.as_str(),
            file.expected_replicas,
            file.actual_replicas,
            file.size
        ),
        ("healthy", 0, 0, 0)
    );
    assert_eq!(file.blocks[0].locations, ["ds-1:8000"], "it is on its way");
    assert_eq!(file.blocks[1].expected_locations.len(), 3);
    rig.finalize("/new", blocks.inode, 8).await.unwrap();
    let file = &rig.replication("/new").await.unwrap().files[0];
    assert_eq!(
        (file.status.as_str(), file.expected_replicas),
        ("under_replicated", 3)
    );
}
