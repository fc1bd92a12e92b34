//! Writing in spite of everything.

use super::*;

#[tokio::test]
async fn a_dead_first_receiver_is_passed_over() {
    let scene = Scene::hasty().await;
    let dead = DeadAddress::new();
    scene.cluster.state().data_servers[0] = dead.addr.clone();
    let content = bytes(64 * KIB * 6);
    let stored = scene.put(&content, "/f").await.unwrap();
    assert_eq!(stored.under_replicated_blocks, 6);
    for block in scene.cluster.blocks("/f") {
        assert_eq!(scene.replicas(block.block_id), 2);
    }
    assert!(scene.get("/f").await.unwrap() == content);
}

#[tokio::test]
async fn a_server_that_refuses_or_hangs_is_left_and_asked_last_from_then_on() {
    for fault in [DataFault::Refuse(Code::Internal), DataFault::Hang] {
        let scene = Scene::hasty().await;
        scene.data[0].fail_writes([fault]);
        scene.put(&bytes(1), "/a").await.unwrap();
        assert_eq!(scene.data[0].written(), []);
        assert_eq!(scene.data[1].written()[0].1, 2, "without the one that failed");
        scene.put(&bytes(1), "/b").await.unwrap();
        assert_eq!(scene.data[0].written(), [], "it is not the first again");
        assert_eq!(scene.data[0].blocks().len(), 1, "but it gets its replica");
        assert_eq!(scene.data[1].written()[1].1, 3);
    }
}

#[tokio::test]
async fn two_replicas_are_enough_and_one_is_not() {
    let scene = Scene::hasty().await;
    let [a, b, c] = [0, 1, 2].map(|i| scene.data[i].addr.clone());
    // The first has it and names one that has not: two of three.
    scene.data[0].fail_writes([DataFault::Failed(vec![c.clone()])]);
    assert_eq!(
        scene.put(&bytes(1), "/a").await.unwrap().under_replicated_blocks,
        1
    );
    assert_eq!(scene.data[1].written(), []);
    // It names both others: they are asked from here, and one of them is enough.
    scene.data[0].fail_writes([DataFault::Failed(vec![b.clone(), c.clone()])]);
    scene.data[1].fail_writes([DataFault::Refuse(Code::Unavailable)]);
    assert_eq!(
        scene.put(&bytes(1), "/b").await.unwrap().under_replicated_blocks,
        1
    );
    assert_eq!(scene.replicas(scene.cluster.blocks("/b")[0].block_id), 2);
    // Neither takes it, however often it is asked.
    for server in &scene.data[1..] {
        server.fail_always(DataFault::Refuse(Code::Unavailable));
    }
    let error = scene.put(&bytes(1), "/c").await.unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, TransferError::DataServers(_)), "{message}");
    for part in [
        "is on 1 of 3 DataServers",
        "2 must have it",
        &b,
        &c,
        "told to refuse",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!message.contains(&a), "{message}");
    assert_eq!(scene.cluster.paths(), ["/a", "/b"]);
}

#[tokio::test]
async fn one_replica_is_enough_where_one_is_asked_for() {
    let scene = Scene::hasty().await;
    scene.cluster.state().replication = 1;
    let content = bytes(64 * KIB * 3);
    assert_eq!(
        scene.put(&content, "/f").await.unwrap().under_replicated_blocks,
        0
    );
    assert!(scene.get("/f").await.unwrap() == content);
    scene.data[2].fail_always(DataFault::Refuse(Code::Internal));
    assert!(scene.put(&content, "/g").await.is_err());
}

#[tokio::test]
async fn an_old_servers_unclear_answer_is_cleared_up_by_asking_each() {
    let scene = Scene::hasty().await;
    scene.data[0].fail_writes([DataFault::Unclear]);
    let stored = scene.put(&bytes(1), "/f").await.unwrap();
    let block = scene.cluster.blocks("/f")[0].block_id;
    assert_eq!((stored.under_replicated_blocks, scene.replicas(block)), (1, 2));
    // A name that is none of the block's is no answer either.
    scene.data[0].fail_writes([DataFault::Failed(vec!["elsewhere:1".into()])]);
    scene.put(&bytes(1), "/g").await.unwrap();
    assert_eq!(scene.replicas(scene.cluster.blocks("/g")[0].block_id), 2);
}

#[tokio::test]
async fn servers_that_come_back_in_time_are_waited_for() {
    let scene = Scene::hasty().await;
    for server in &scene.data {
        server.fail_writes([
            DataFault::Refuse(Code::Unavailable),
            DataFault::Refuse(Code::Unavailable),
        ]);
    }
    scene.put(&bytes(1), "/f").await.unwrap();
}

#[tokio::test]
async fn a_put_that_fails_has_changed_nothing() {
    let scene = Scene::hasty().await;
    let old = bytes(1000);
    scene.put(&old, "/f").await.unwrap();
    let finalized = scene.meta.count("FinalizeWrite");
    for server in &scene.data {
        server.fail_always(DataFault::Refuse(Code::ResourceExhausted));
    }
    for path in ["/f", "/g"] {
        let error = scene.put(&bytes(64 * KIB * 5), path).await.unwrap_err();
        assert!(matches!(error, TransferError::DataServers(_)), "{error}");
    }
    assert_eq!(scene.meta.count("FinalizeWrite"), finalized);
    assert_eq!(scene.cluster.paths(), ["/f"]);
    let error = scene.put(&bytes(1), "/no/such/f").await.unwrap_err();
    assert!(
        matches!(error, TransferError::Meta(Error::NotFound(_))),
        "{error}"
    );
    scene.cluster.state().data_servers.clear();
    scene.cluster.state().data_servers.push("ds:1".into());
    let error = scene.put(&bytes(1), "/g").await.unwrap_err();
    assert!(
        matches!(error, TransferError::Meta(Error::FailedPrecondition(_))),
        "{error}"
    );
    assert_eq!(scene.files.stat_file("/f").await.unwrap().md5, md5(&old));
}

#[tokio::test]
async fn an_unknown_end_is_said_to_be_unknown() {
    let mut scene = Scene::hasty().await;
    scene.files.client = scene.files.client.with_timeout(Duration::from_secs(3));
    scene.meta.fail_rpc("FinalizeWrite", Fault::Lost);
    for content in [bytes(1), bytes(0)] {
        let error = scene.put(&content, "/f").await.unwrap_err();
        assert!(
            matches!(error, TransferError::Meta(Error::OutcomeUnknown(_))),
            "{error}"
        );
    }
    // An empty file is there from the moment when it was created.
    scene
        .meta
        .fail_rpc("FinalizeWrite", Fault::Unavailable { leader: None });
    let error = scene.put(&[], "/g").await.unwrap_err();
    assert!(
        matches!(error, TransferError::Meta(Error::OutcomeUnknown(_))),
        "{error}"
    );
    let error = scene.put(&[], "/g").await.unwrap_err();
    assert!(
        matches!(error, TransferError::Meta(Error::Unavailable(_))),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_not_as_long_as_it_said_is_not_put() {
    let scene = Scene::hasty().await;
    for (size, words) in [(200 * KIB, "shorter"), (64 * KIB, "longer"), (0, "longer")] {
        let content = Content {
            reader: Box::new(io::Cursor::new(bytes(100 * KIB))),
            size: size as u64,
            name: "log".into(),
            md5: None,
        };
        let error = scene.files.put(content, "/f", &|_| ()).await.unwrap_err();
        assert!(
            error.to_string().contains(&format!("log: it became {words}")),
            "{error}"
        );
    }
    assert_eq!(scene.cluster.paths(), [""; 0]);
    let kind = async |path: &Path| match Content::open(path).await {
        Err(TransferError::Local { source, .. }) => source.kind(),
        other => panic!("{other:?}"),
    };
    assert_eq!(kind(&scene.local("no")).await, io::ErrorKind::NotFound);
    assert_eq!(kind(scene.directory.path()).await, io::ErrorKind::IsADirectory);
    assert_eq!(kind(Path::new("/dev/null")).await, io::ErrorKind::InvalidInput);
}
