//! The contract's table "Answers to mistakes and edges", line by line.

use super::*;

/// Sends a path as raw bytes in field 1.
#[derive(Clone, PartialEq, prost::Message)]
struct RawPath {
    #[prost(bytes = "vec", tag = "1")]
    path: Vec<u8>,
}

async fn send_raw(rig: &Rig, rpc: &str, bytes: &[u8]) -> Status {
    let mut grpc = tonic::client::Grpc::new(rig.channel.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<RawPath, SimpleResponse>::default();
    let path = format!("/dfs_project.MetaServerService/{rpc}").parse().unwrap();
    let message = RawPath { path: bytes.to_vec() };
    grpc.unary(tonic::Request::new(message), path, codec)
        .await
        .unwrap_err()
}

const WITH_A_PATH: [&str; 7] = [
    "CreateNode",
    "GetNodeInfo",
    "ListDirectory",
    "DeleteNode",
    "GetBlockLocations",
    "FinalizeWrite",
    "GetReplicationInfo",
];

#[actix::test]
async fn a_path_that_is_none_is_named() {
    let rig = Rig::leading().await;
    let long_part = format!("/a/{}", "x".repeat(256));
    let long_path = format!("/{}", "ab/".repeat(1366));
    for (bytes, named) in [
        (&b""[..], "\"\""),
        (b"a/b", "a/b"),
        (b"/a\0b", "/a\\0b"),
        (long_part.as_bytes(), "/a/xxx"),
        (long_path.as_bytes(), "/ab/ab/"),
        (b"/a/\xff\xfeb", "/a/\u{fffd}\u{fffd}b"),
    ] {
        for rpc in WITH_A_PATH {
            if rpc == "GetReplicationInfo" && bytes.is_empty() {
                continue; // every file
            }
            let status = send_raw(&rig, rpc, bytes).await;
            assert_eq!(status.code(), Code::InvalidArgument, "{rpc} {named}: {status:?}");
            assert!(status.message().contains(named), "{rpc}: {}", status.message());
        }
    }
    assert_eq!(rig.with(|neighbour, _| neighbour.proposals.len()).await, 0);
}

#[actix::test]
async fn a_path_is_cleaned_first() {
    let rig = Rig::leading().await;
    rig.mkdir("/a/").await;
    rig.mkdir("//a/./b").await;
    for raw in ["/a/b", "/a//b/", "/a/./b", "/x/../a/b", "/../a/b/."] {
        assert_eq!(rig.stat(raw).await.unwrap().path, "/a/b");
    }
    assert_eq!(rig.stat("/..").await.unwrap().path, "/");
    assert_eq!(rig.list("/a//").await.unwrap()[0].path, "/a/b");
    rig.delete("/a/../a/b/", false).await.unwrap();
    assert_eq!(
        refused(rig.stat("/a/b").await),
        (Code::NotFound, "not found: /a/b".into())
    );
}

#[actix::test]
async fn create_with_a_bad_parent_or_a_taken_name() {
    let rig = Rig::leading().await;
    rig.create("/f", FileType::File as i32).await.unwrap();
    let create = |path| rig.create(path, FileType::File as i32);
    assert_eq!(
        refused(create("/no/f").await),
        (Code::NotFound, "parent directory not found: /no".into())
    );
    assert_eq!(
        refused(create("/f/g").await),
        (Code::FailedPrecondition, "not a directory: /f".into())
    );
    assert_eq!(
        refused(create("/f").await),
        (Code::AlreadyExists, "already exists: /f".into())
    );
    assert_eq!(refused(create("/").await).0, Code::AlreadyExists);
}

#[actix::test]
async fn create_with_every_type() {
    let rig = Rig::leading().await;
    for (kind, path, made) in [
        (0, "/u", FileType::File),
        (2, "/f", FileType::File),
        (3, "/d", FileType::Directory),
    ] {
        let answer = rig.create(path, kind).await.unwrap().into_inner();
        assert!(answer.success);
        assert_eq!(rig.stat(path).await.unwrap().r#type(), made);
    }
    for kind in [1, 4, -1] {
        let (code, message) = refused(rig.create("/v", kind).await);
        assert_eq!(code, Code::InvalidArgument);
        assert!(message.ends_with(": /v"), "{message}");
    }
}

#[actix::test]
async fn what_is_missing_is_not_found() {
    let rig = Rig::leading().await;
    let missing = (Code::NotFound, "not found: /no".to_owned());
    assert_eq!(refused(rig.stat("/no").await), missing);
    assert_eq!(refused(rig.list("/no").await), missing);
    assert_eq!(refused(rig.delete("/no", true).await), missing);
    assert_eq!(refused(rig.replication("/no").await), missing);
}

#[actix::test]
async fn listing_a_file() {
    let rig = Rig::leading().await;
    rig.create("/f", 2).await.unwrap();
    assert_eq!(
        refused(rig.list("/f").await),
        (Code::FailedPrecondition, "not a directory: /f".into())
    );
}

#[actix::test]
async fn a_listing_is_in_byte_order_and_without_replicas() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    rig.mkdir("/d").await;
    for name in ["b", "ä", "B", "a b", "a", "a-"] {
        rig.write(&format!("/d/{name}"), 5).await;
    }
    let listed = rig.list("/d").await.unwrap();
    let paths: Vec<_> = listed.iter().map(|info| info.path.as_str()).collect();
    assert_eq!(paths, ["/d/B", "/d/a", "/d/a b", "/d/a-", "/d/b", "/d/ä"]);
    assert!(
        listed
            .iter()
            .all(|info| info.replica_data.is_empty() && info.size == 5)
    );
    assert_eq!(rig.list("/").await.unwrap()[0].path, "/d");
}

#[actix::test]
async fn deleting_a_full_directory_or_the_root() {
    let rig = Rig::leading().await;
    rig.mkdir("/d").await;
    rig.mkdir("/d/e").await;
    assert_eq!(
        refused(rig.delete("/d", false).await),
        (Code::FailedPrecondition, "directory not empty: /d".into())
    );
    for recursive in [false, true] {
        assert_eq!(refused(rig.delete("/", recursive).await).0, Code::InvalidArgument);
    }
    rig.delete("/d", true).await.unwrap();
    assert!(rig.list("/").await.unwrap().is_empty());
}

#[actix::test]
async fn blocks_of_what_can_have_none() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    rig.mkdir("/d").await;
    for size in [0, 5] {
        assert_eq!(
            refused(rig.blocks("/d", size).await),
            (Code::FailedPrecondition, "is a directory: /d".into())
        );
    }
    assert_eq!(refused(rig.blocks("/", 1).await).0, Code::FailedPrecondition);
    for size in [-1, i64::MIN, LARGEST as i64 + 1, i64::MAX] {
        let (code, message) = refused(rig.blocks("/f", size).await);
        assert_eq!(code, Code::InvalidArgument);
        assert!(
            message.contains(&size.to_string()) && message.ends_with(": /f"),
            "{message}"
        );
    }
    assert_eq!(
        refused(rig.blocks("/f", 0).await),
        (Code::NotFound, "not found: /f".into())
    );
    assert_eq!(
        refused(rig.blocks("/no/f", 5).await),
        (Code::NotFound, "parent directory not found: /no".into())
    );
    rig.write("/f", 1).await;
    assert_eq!(
        refused(rig.blocks("/f/g", 5).await),
        (Code::FailedPrecondition, "not a directory: /f".into())
    );
    rig.blocks("/large", LARGEST as i64).await.unwrap();
}

#[actix::test]
async fn too_few_data_servers_change_nothing() {
    let rig = Rig::leading().await;
    rig.data_servers(2).await;
    let words = (
        Code::FailedPrecondition,
        "need 3 healthy DataServers, have 2".to_owned(),
    );
    assert_eq!(refused(rig.blocks("/f", 5).await), words);
    assert_eq!(refused(rig.stat("/f").await).0, Code::NotFound);
}

#[actix::test]
async fn finalizing_what_was_not_written() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    let inode = rig.blocks("/f", 5).await.unwrap().inode;
    for (inode, size) in [(0, 5), (inode, -1)] {
        let (code, message) = refused(rig.finalize("/f", inode, size).await);
        assert_eq!(code, Code::InvalidArgument);
        assert!(message.ends_with(": /f"), "{message}");
    }
    assert_eq!(
        refused(rig.finalize("/gone", inode, 5).await),
        (Code::NotFound, "not found: /gone".into())
    );
    assert_eq!(
        refused(rig.finalize("/f", inode + 1, 5).await),
        (
            Code::FailedPrecondition,
            format!("/f is inode {inode} now, not {}", inode + 1)
        )
    );
    assert_eq!(
        refused(rig.finalize("/f", inode, 9).await),
        (
            Code::FailedPrecondition,
            "size 9 is beyond the 8 bytes allocated: /f".into()
        )
    );
    rig.finalize("/f", inode, 5).await.unwrap();
    assert_eq!(rig.stat("/f").await.unwrap().size, 5);

    let endless = FinalizeWriteRequest {
        path: "/f".into(),
        inode,
        size: 5,
        md5: "x".repeat(257),
        ..Default::default()
    };
    assert_eq!(
        refused(rig.client.clone().finalize_write(endless).await).0,
        Code::InvalidArgument
    );
}

#[actix::test]
async fn a_beat_without_id_or_address() {
    let rig = Rig::leading().await;
    for (id, addr) in [("", "h:1"), ("ds", ""), ("ds", "h"), ("ds", "h:0")] {
        assert_eq!(refused(rig.beat(id, addr).await).0, Code::InvalidArgument);
    }
    assert_eq!(rig.with(|neighbour, _| neighbour.beats.len()).await, 0);
}

#[actix::test]
async fn no_leader_is_unavailable_and_the_known_one_is_named() {
    let rig = Rig::leading().await;
    let other = || Some(leader("meta-9", "localhost:9099"));
    let named = Some("localhost:9099".to_owned());

    rig.with(move |neighbour, _| {
        neighbour.on_propose = Script::Answer(Err(ProposeError::NotLeader(other())));
        neighbour.on_read = Script::Answer(Err(ReadError::NoLeader(other())));
    })
    .await;
    let create = refusal(rig.create("/f", 2).await);
    assert_eq!(
        create,
        (Code::Unavailable, "not the leader".into(), named.clone())
    );
    let stat = refusal(rig.stat("/").await);
    assert_eq!(
        stat,
        (Code::Unavailable, "no leader can be reached".into(), named)
    );

    rig.with(|neighbour, _| {
        neighbour.on_propose = Script::Answer(Err(ProposeError::Unavailable("quorum lost".into())));
        neighbour.on_read = Script::Answer(Err(ReadError::NoLeader(None)));
    })
    .await;
    let myself = Some(rig.addr.to_string());
    assert_eq!(
        refusal(rig.create("/f", 2).await),
        (Code::Unavailable, "quorum lost".into(), myself.clone())
    );
    assert_eq!(
        refusal(rig.stat("/").await).2,
        myself,
        "the gateway's own news fills in"
    );

    rig.tell(news(2, Role::Candidate, None)).await;
    assert_eq!(refusal(rig.create("/f", 2).await).2, None);
    for outcome in [
        refusal(rig.list("/").await),
        refusal(rig.delete("/f", false).await),
        refusal(rig.blocks("/f", 0).await),
        refusal(rig.finalize("/f", 2, 0).await),
        refusal(rig.cluster_info().await),
        refusal(rig.replication("").await),
        refusal(rig.beat("ds", "h:1").await),
    ] {
        assert_eq!((outcome.0, outcome.2), (Code::Unavailable, None), "{}", outcome.1);
    }
}

#[actix::test]
async fn an_unknown_fate_is_a_deadline_exceeded() {
    let rig = Rig::leading().await;
    rig.with(|neighbour, _| {
        neighbour.on_propose = Script::Answer(Err(ProposeError::Unknown("leader lost".into())));
    })
    .await;
    let unknown = (Code::DeadlineExceeded, "outcome unknown: leader lost".to_owned());
    assert_eq!(refused(rig.create("/f", 2).await), unknown);
    assert_eq!(refused(rig.delete("/f", false).await), unknown);
    assert_eq!(refused(rig.blocks("/f", 1).await), unknown);
    assert_eq!(refused(rig.finalize("/f", 2, 1).await), unknown);
}

#[actix::test]
async fn a_full_queue_is_resource_exhausted() {
    let rig = Rig::leading().await;
    rig.with(|neighbour, _| {
        neighbour.on_propose = Script::Answer(Err(ProposeError::Overloaded));
        neighbour.on_read = Script::Answer(Err(ReadError::Overloaded));
    })
    .await;
    assert_eq!(
        refusal(rig.create("/f", 2).await),
        (
            Code::ResourceExhausted,
            "too many proposals in flight".into(),
            None
        )
    );
    assert_eq!(refused(rig.stat("/").await).0, Code::ResourceExhausted);
}

#[actix::test]
#[allow(deprecated)]
async fn the_deprecated_fail_in_the_contracts_words() {
    let rig = Rig::leading().await;
    let words = "deprecated, Raft handles log replication automatically";
    // The stream never ends and its first message is no LogEntry of today: it is not read.
    let mut client = rig.client.clone();
    let entries =
        tokio_stream::StreamExt::chain(tokio_stream::iter([LogEntry::default()]), tokio_stream::pending());
    let answer = tokio::time::timeout(Duration::from_secs(20), client.sync_wal(entries)).await;
    assert_eq!(refused(answer.unwrap()), (Code::Unimplemented, words.to_owned()));
    let asked = client.request_wal_sync(RequestWalSyncRequest::default()).await;
    assert_eq!(asked.unwrap_err().message(), words);
    let old = send_raw(&rig, "SyncWAL", b"bytes where a number is today").await;
    assert_eq!(old.message(), words);
}
