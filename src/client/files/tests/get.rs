//! Reading in spite of everything.

use super::*;

#[tokio::test]
async fn another_replica_is_read_when_one_fails() {
    for fault in [
        DataFault::Refuse(Code::NotFound),
        DataFault::Refuse(Code::Internal),
        DataFault::Short,
        DataFault::Long,
        DataFault::Hang,
    ] {
        let scene = Scene::hasty().await;
        let content = bytes(64 * KIB * 4 - 1);
        scene.put(&content, "/f").await.unwrap();
        scene.data[0].fail_reads([fault.clone(), fault.clone(), fault.clone()]);
        assert!(scene.get("/f").await.unwrap() == content, "{fault:?}");
    }
}

#[tokio::test]
async fn a_dead_replica_is_asked_once_and_the_others_read() {
    let scene = Scene::hasty().await;
    let content = bytes(64 * KIB * 12);
    scene.put(&content, "/f").await.unwrap();
    let dead = DeadAddress::new();
    let mut blocks = scene.cluster.blocks("/f");
    for block in &mut blocks {
        block.locations.retain(|addr| *addr != scene.data[0].addr);
        block.locations.insert(0, dead.addr.clone());
    }
    scene.cluster.set_blocks("/f", blocks);
    assert!(scene.get("/f").await.unwrap() == content);
    assert!(scene.data[0].read().is_empty());
}

#[tokio::test]
async fn a_block_that_nobody_has_is_named() {
    let scene = Scene::hasty().await;
    scene.put(&bytes(64 * KIB * 3), "/f").await.unwrap();
    let block = scene.cluster.blocks("/f")[1].block_id;
    scene.data[0].forget(block);
    scene.data[1].fail_always(DataFault::Short);
    scene.data[2].fail_always(DataFault::Refuse(Code::Unavailable));
    let error = scene.get("/f").await.unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, TransferError::DataServers(_)), "{message}");
    for part in [
        format!("/f: block {block} cannot be read"),
        format!("{}: it does not have it", scene.data[0].addr),
        format!(
            "{}: block {block} has 65535 bytes instead of 65536",
            scene.data[1].addr
        ),
        format!("{}: told to refuse", scene.data[2].addr),
    ] {
        assert!(message.contains(&part), "{part}: {message}");
    }
}

#[tokio::test]
async fn bytes_that_are_not_those_written_are_not_kept() {
    let scene = Scene::hasty().await;
    let content = bytes(64 * KIB);
    scene.put(&content, "/f").await.unwrap();
    let local = scene.local("mine");
    fs::write(&local, b"before").unwrap();
    for server in &scene.data {
        server.fail_reads([DataFault::Altered]);
    }
    let error = scene.files.get("/f", &local, &|_| ()).await.unwrap_err();
    let altered = [&[content[0] ^ 1], &content[1..]].concat();
    let expected = format!("/f: damaged: MD5 {} instead of {}", md5(&altered), md5(&content));
    assert_eq!(error.to_string(), expected);
    assert_eq!(
        (fs::read(&local).unwrap(), scene.names()),
        (b"before".to_vec(), vec!["mine".into()])
    );
}

#[tokio::test]
async fn a_file_without_a_digest_is_read_and_said_to_be_unverified() {
    let scene = Scene::hasty().await;
    let content = bytes(10);
    scene.put(&content, "/f").await.unwrap();
    scene.cluster.set_size("/f", 10, "");
    let fetched = scene.files.get("/f", &scene.local("f"), &|_| ()).await.unwrap();
    assert!(!fetched.verified);
    assert_eq!(fetched.md5, md5(&content));
    scene.cluster.set_size("/f", 10, &md5(&content).to_uppercase());
    assert!(
        scene
            .files
            .get("/f", &scene.local("f"), &|_| ())
            .await
            .unwrap()
            .verified
    );
}

#[tokio::test]
async fn a_file_that_is_not_finalized_is_empty_and_a_directory_is_none() {
    let scene = Scene::hasty().await;
    scene.files.client.allocate("/f", 100).await.unwrap();
    assert_eq!(scene.cluster.blocks("/f").len(), 1);
    assert_eq!(scene.get("/f").await.unwrap(), [0; 0]);
    scene.cluster.put("/d", FileType::Directory);
    let error = scene.get("/d").await.unwrap_err();
    assert_eq!(error.to_string(), "not a file: /d");
    assert!(matches!(
        scene.get("/x").await,
        Err(TransferError::Meta(Error::NotFound(_)))
    ));
}

#[tokio::test]
async fn a_file_that_is_overwritten_meanwhile_is_fetched_again_once() {
    let scene = Scene::hasty().await;
    let (old, new) = (bytes(64 * KIB * 3), bytes(64 * KIB * 4));
    scene.put(&new, "/g").await.unwrap();
    scene.put(&old, "/f").await.unwrap();
    let gone: Vec<u64> = scene
        .cluster
        .blocks("/f")
        .iter()
        .map(|block| block.block_id)
        .collect();
    let digest = md5(&new);
    let overwritten = Mutex::new(false);
    let overwrite = |bytes: i64| {
        let mut overwritten = overwritten.lock().unwrap();
        if bytes > 0 && !std::mem::replace(&mut *overwritten, true) {
            // The blocks that were to be read next are freed.
            for block in &gone {
                scene.data.iter().for_each(|server| server.forget(*block));
            }
            scene.cluster.set_blocks("/f", scene.cluster.blocks("/g"));
            scene.cluster.set_size("/f", new.len() as i64, &digest);
        }
    };
    let options = TransferOptions {
        jobs: 1,
        ..scene.files.options.clone()
    };
    let files = Files::new(scene.files.client.clone(), options);
    files.get("/f", &scene.local("f"), &overwrite).await.unwrap();
    assert!(fs::read(scene.local("f")).unwrap() == new);
    assert_eq!(scene.names(), ["f"]);
}

#[tokio::test]
async fn a_file_that_is_overwritten_all_the_time_is_said_to_be() {
    let scene = Scene::hasty().await;
    let change = |bytes: i64| {
        if bytes > 0 {
            let blocks = scene.cluster.blocks("/f");
            for server in &scene.data {
                server.forget(blocks[1].block_id);
            }
            scene.cluster.set_blocks("/f", blocks);
        }
    };
    let options = TransferOptions {
        jobs: 1,
        ..scene.files.options.clone()
    };
    let files = Files::new(scene.files.client.clone(), options);
    scene.put(&bytes(64 * KIB * 3), "/f").await.unwrap();
    let error = files.get("/f", &scene.local("f"), &change).await.unwrap_err();
    assert!(matches!(error, TransferError::Changed(_)), "{error}");
    scene.put(&bytes(64 * KIB * 3), "/f").await.unwrap();
    let error = files
        .read_to("/f", io::sink(), Path::new("sink"), &change)
        .await
        .unwrap_err();
    assert!(matches!(error, TransferError::Changed(_)), "{error}");
    assert_eq!(scene.names(), [""; 0]);
}

#[tokio::test]
async fn where_nothing_can_be_written_nothing_is_left() {
    let scene = Scene::hasty().await;
    scene.put(&bytes(64 * KIB * 9), "/f").await.unwrap();
    let kind = |error| match error {
        TransferError::Local { source, .. } => source.kind(),
        other => panic!("{other}"),
    };
    let nowhere = scene.local("no/f");
    let error = scene.files.get("/f", &nowhere, &|_| ()).await.unwrap_err();
    assert_eq!(kind(error), io::ErrorKind::NotFound);
    // A device that is always full.
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let error = scene
        .files
        .read_to("/f", full, Path::new("full"), &|_| ())
        .await
        .unwrap_err();
    assert_eq!(kind(error), io::ErrorKind::StorageFull);
    assert_eq!(scene.names(), [""; 0]);
}
