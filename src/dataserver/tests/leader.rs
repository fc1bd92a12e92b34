//! What DataServers tell the leader, and do for it.

use super::*;
use crate::proto::dfs::Command;

#[tokio::test]
async fn the_leaders_orders_are_carried_out() {
    let meta = MetaServer::start();
    let quick = |settings: &mut Settings| settings.heartbeat_interval = Duration::from_millis(100);
    let (a, b) = (Node::with(&meta, quick).await, Node::with(&meta, quick).await);
    let data = some_bytes(300_000, 0);
    for block in 1..=20 {
        assert!(write(&a.peer, metadata(block, &[]), &data).await.unwrap().success);
        meta.order(b.server.id(), Action::CopyBlock, block, &[a.addr()]);
        // Again, as leaders do; and some nonsense.
        meta.order(b.server.id(), Action::CopyBlock, block, &[a.addr()]);
        meta.order(b.server.id(), Action::CopyBlock, block + 100, &[]);
        meta.order(b.server.id(), Action::CopyBlock, block + 200, &[a.addr()]);
    }
    let all: Vec<u64> = (1..=20).collect();
    meta.reported(b.server.id(), &all, &[]).await;
    assert_eq!(b.read(20).await.unwrap(), data);
    for block in 1..=19 {
        meta.order(a.server.id(), Action::DeleteBlock, block, &[]);
    }
    meta.order(a.server.id(), Action::DeleteBlock, 99, &[]);
    meta.reported(a.server.id(), &[20], &[]).await;
    assert_eq!(a.read(1).await, Err(Code::NotFound));
}

#[tokio::test]
async fn changes_are_reported_together_and_soon() {
    let meta = MetaServer::start();
    let began = std::time::Instant::now();
    let a = Node::start(&meta).await;
    meta.reported(a.server.id(), &[], &[]).await;
    for block in 1..=20 {
        assert!(write(&a.peer, metadata(block, &[]), b"x").await.unwrap().success);
    }
    let all: Vec<u64> = (1..=20).collect();
    let beat = meta.reported(a.server.id(), &all, &[]).await;
    assert_eq!((beat.data_server_addr.as_str(), beat.block_count), (a.addr(), 20));
    // The regular beat is minutes away: all of them came from changes, and kept their distance.
    let beats = meta.desk().beats.len() as u32;
    let longest = began.elapsed().as_millis() / 500 + 1;
    assert!(
        beats >= 2 && u128::from(beats) <= longest,
        "{beats} beats, {longest} at most"
    );
}

#[tokio::test]
async fn the_next_leader_is_found() {
    let (first, second) = (MetaServer::start(), MetaServer::start());
    second.desk().refers_to = Some(Some(first.addr.clone()));
    // It knows the follower alone.
    let a = Node::with(&second, |settings| {
        settings.heartbeat_interval = Duration::from_millis(200);
    })
    .await;
    first.reported(a.server.id(), &[], &[]).await;
    assert!(second.desk().beats.is_empty());
    // Without a leader, it goes on trying.
    second.desk().refers_to = Some(None);
    drop(first);
    assert!(write(&a.peer, metadata(1, &[]), b"x").await.unwrap().success);
    second.desk().refers_to = None;
    second.reported(a.server.id(), &[1], &[]).await;
}

#[tokio::test]
async fn strangers_are_told_nothing_and_not_obeyed() {
    let meta = MetaServer::start();
    meta.desk().cluster_id = "ours".to_owned();
    let a = Node::with(&meta, |settings| {
        settings.heartbeat_interval = Duration::from_millis(50);
    })
    .await;
    assert!(write(&a.peer, metadata(1, &[]), b"x").await.unwrap().success);
    meta.reported(a.server.id(), &[1], &[]).await;
    let pinned = std::fs::read_to_string(a.path().join("cluster")).unwrap();
    assert_eq!(pinned, "ours\n");

    {
        // Together: the first beat that they take is the last one.
        let mut desk = meta.desk();
        desk.cluster_id = "theirs".to_owned();
        desk.beats.clear();
        let delete = Command {
            block_id: 1,
            ..Command::default()
        };
        desk.orders.push((a.server.id().to_owned(), delete));
    }
    until("the order was given", async || {
        meta.desk().orders.is_empty().then_some(())
    })
    .await;
    let before = meta.desk().beats.len();
    // A change that would be reported at once.
    assert!(write(&a.peer, metadata(2, &[]), b"x").await.unwrap().success);
    // Twenty beats of one of ours, in the time of which the stranger gets none.
    let other = Node::with(&MetaServer::start(), |settings| {
        settings.metaservers = vec![meta.addr.clone()];
        settings.heartbeat_interval = Duration::from_millis(50);
    })
    .await;
    until("the other one beats", async || {
        let desk = meta.desk();
        let beats = desk.beats.iter();
        (beats
            .filter(|(_, beat)| beat.data_server_id == other.server.id())
            .count()
            > 20)
            .then_some(())
    })
    .await;
    let id = a.server.id();
    let beats = meta
        .desk()
        .beats
        .iter()
        .filter(|(_, beat)| beat.data_server_id == id)
        .count();
    assert!(beats <= before, "{beats} beats, {before} before");
    assert_eq!(a.read(1).await.unwrap(), b"x");
    // When they are ours again, all is well.
    drop(other);
    meta.desk().cluster_id = "ours".to_owned();
    meta.reported(id, &[1, 2], &[]).await;
}

#[tokio::test]
async fn what_others_did_to_the_files_is_reported() {
    let meta = MetaServer::start();
    let a = Node::with(&meta, |settings| {
        settings.rescan_interval = Duration::from_millis(50)
    })
    .await;
    for block in 1..=3 {
        assert!(
            write(&a.peer, metadata(block, &[]), b"data")
                .await
                .unwrap()
                .success
        );
    }
    meta.reported(a.server.id(), &[1, 2, 3], &[]).await;
    std::fs::remove_file(block_file(a.path(), 1)).unwrap();
    std::fs::write(block_file(a.path(), 2), b"cut").unwrap();
    meta.reported(a.server.id(), &[3], &[2]).await;
}

#[tokio::test]
async fn silent_damage_is_found_without_a_reader() {
    let meta = MetaServer::start();
    let a = Node::with(&meta, |settings| {
        settings.scrub_rate = 1 << 30;
        settings.scrub_interval = Duration::from_millis(50);
    })
    .await;
    for block in 1..=3 {
        let data = some_bytes(300_000, 0);
        assert!(write(&a.peer, metadata(block, &[]), &data).await.unwrap().success);
    }
    let mut content = std::fs::read(block_file(a.path(), 2)).unwrap();
    content[299_999] ^= 1;
    std::fs::write(block_file(a.path(), 2), content).unwrap();
    meta.reported(a.server.id(), &[1, 3], &[2]).await;
}
