//! Several DataServers in one process, over real connections. `leader`: what they tell it, and do for it.

mod leader;

use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::Code;

use super::testing::*;
use super::*;
use crate::proto::dfs::command::Action;
use crate::proto::dfs::{
    CopyBlockRequest, DeleteBlockRequest, ReadBlockRequest, WriteBlockMetadata, WriteBlockRequest,
};

/// One DataServer with its own disk.
struct Node {
    dir: TempDir,
    server: DataServer,
    peer: Peer,
}

impl Node {
    async fn start(meta: &MetaServer) -> Node {
        Node::with(meta, |_| ()).await
    }

    async fn with(meta: &MetaServer, change: impl FnOnce(&mut Settings)) -> Node {
        let dir = TempDir::new().unwrap();
        let mut settings = settings(dir.path(), meta);
        change(&mut settings);
        let server = DataServer::start(settings).await.unwrap();
        let peer = peer(&server.local_addr().to_string());
        Node { dir, server, peer }
    }

    fn addr(&self) -> &str {
        self.server.addr()
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The good and the corrupt blocks.
    fn blocks(&self) -> (Vec<u64>, Vec<u64>) {
        let inventory = self.server.store().inventory();
        (inventory.good, inventory.corrupt)
    }

    async fn read(&self, block: u64) -> Result<Vec<u8>, Code> {
        read(&self.peer, block).await.map_err(|status| status.code())
    }
}

fn settings(dir: &Path, meta: &MetaServer) -> Settings {
    Settings {
        reserved_space: Some(0),
        // Only changes make them beat, unless a test wants it otherwise.
        heartbeat_interval: Duration::from_secs(600),
        scrub_rate: 0,
        ..Settings::new(dir, vec![meta.addr.clone()])
    }
}

async fn three(meta: &MetaServer) -> [Node; 3] {
    [
        Node::start(meta).await,
        Node::start(meta).await,
        Node::start(meta).await,
    ]
}

/// An address where nobody is; nobody else gets it as long as the socket lives.
fn nobody() -> (String, tokio::net::TcpSocket) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (socket.local_addr().unwrap().to_string(), socket)
}

#[tokio::test]
async fn a_block_reaches_every_replica_once() {
    let meta = MetaServer::start();
    let [a, b, c] = three(&meta).await;
    let all = [a.addr(), b.addr(), c.addr()];
    for (id, size) in [(1, 1), (2, 64 << 10), (3, (64 << 10) + 1), (4, 4 << 20)] {
        let data = some_bytes(size, id as u8);
        let answer = write(&a.peer, metadata(id, &all), &data).await.unwrap();
        assert!(answer.success && answer.failed_replicas.is_empty(), "{answer:?}");
        for node in [&a, &b, &c] {
            assert_eq!(node.read(id).await.unwrap(), data);
        }
    }
    // Nothing is passed on by those that were only passed something, and nothing goes elsewhere.
    let answer = write(&b.peer, metadata(5, &[]), b"alone").await.unwrap();
    assert!(answer.success);
    assert_eq!(a.blocks().0, [1, 2, 3, 4]);
    assert_eq!(b.blocks().0, [1, 2, 3, 4, 5]);
    for node in [&a, &b, &c] {
        assert_eq!(unfinished(node.path()), 0);
    }
}

/// The receiver's own address, in every form, is the local disk: a second write to it would be seen as
/// a second write, of which there may be only one at a time here.
#[tokio::test]
async fn the_own_address_is_not_written_twice() {
    let meta = MetaServer::start();
    let a = Node::with(&meta, |settings| settings.max_writes = 1).await;
    let b = Node::start(&meta).await;
    let port = a.server.local_addr().port();
    let forms = [
        format!("localhost:{port}"),
        format!("127.0.0.1:{port}"),
        format!("0.0.0.0:{port}"),
        b.addr().to_owned(),
        b.addr().to_owned(),
    ];
    let forms: Vec<&str> = forms.iter().map(String::as_str).collect();
    let answer = write(&a.peer, metadata(1, &forms), b"data").await.unwrap();
    assert!(answer.success, "{answer:?}");
    assert_eq!((a.blocks().0, b.blocks().0), (vec![1], vec![1]));
}

#[tokio::test]
async fn a_replica_that_is_down_is_named() {
    let meta = MetaServer::start();
    let [a, b, c] = three(&meta).await;
    let (gone, _socket) = nobody();
    let data = some_bytes(1 << 20, 0);
    let all = [a.addr(), &gone, b.addr()];
    let answer = write(&a.peer, declared(1, &all, &data), &data).await.unwrap();
    assert!(!answer.success);
    assert_eq!(answer.failed_replicas, [gone.as_str()]);
    assert_eq!(a.read(1).await.unwrap(), data);
    assert_eq!(b.read(1).await.unwrap(), data);
    assert_eq!(c.read(1).await, Err(Code::NotFound));
}

/// Somebody who takes the connection and then nothing.
#[tokio::test]
async fn a_replica_that_stalls_is_given_up() {
    let meta = MetaServer::start();
    let short = |settings: &mut Settings| settings.stall_timeout = Duration::from_secs(1);
    let (a, b) = (Node::with(&meta, short).await, Node::start(&meta).await);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_addr = silent.local_addr().unwrap().to_string();
    for (id, size) in [(1, 4 << 20), (2, 10)] {
        let data = some_bytes(size, 0);
        let all = [a.addr(), silent_addr.as_str(), b.addr()];
        let writing = write(&a.peer, metadata(id, &all), &data);
        let answer = timeout(EVENTUALLY, writing).await.unwrap().unwrap();
        assert!(!answer.success);
        assert_eq!(answer.failed_replicas, [silent_addr.as_str()]);
        assert_eq!(a.read(id).await.unwrap(), data);
        assert_eq!(b.read(id).await.unwrap(), data);
    }
}

#[tokio::test]
async fn a_client_that_breaks_off_leaves_nothing_anywhere() {
    let meta = MetaServer::start();
    let [a, b, c] = three(&meta).await;
    let all = [a.addr(), b.addr(), c.addr()];
    // Nothing is declared: only the broken stream says that something is missing.
    let writing = write_and_wait(&a.peer, metadata(1, &all), some_bytes(1 << 20, 0));
    until("everybody writes", async || {
        [&a, &b, &c]
            .iter()
            .all(|node| unfinished(node.path()) == 1)
            .then_some(())
    })
    .await;
    writing.abort();
    until("nobody has anything", async || {
        [&a, &b, &c]
            .iter()
            .all(|node| unfinished(node.path()) == 0)
            .then_some(())
    })
    .await;
    for node in [&a, &b, &c] {
        assert_eq!(node.blocks(), (vec![], vec![]));
    }
}

#[tokio::test]
async fn what_is_not_as_declared_is_kept_nowhere() {
    let meta = MetaServer::start();
    let [a, b, _] = three(&meta).await;
    let all = [a.addr(), b.addr()];
    let data = some_bytes(200_000, 0);
    let right = declared(1, &all, &data);
    for (metadata, code, named) in [
        (
            WriteBlockMetadata {
                length: Some(200_001),
                ..right.clone()
            },
            Code::InvalidArgument,
            "declared with 200001 bytes, 200000 came",
        ),
        (
            WriteBlockMetadata {
                length: Some(100_000),
                ..right.clone()
            },
            Code::InvalidArgument,
            "declared with 100000 bytes, at least 131072 came",
        ),
        (
            WriteBlockMetadata {
                crc32c: Some(1),
                ..right.clone()
            },
            Code::DataLoss,
            "declared with checksum 0x00000001, what came has 0x",
        ),
        (
            WriteBlockMetadata {
                length: Some(u64::MAX),
                ..right.clone()
            },
            Code::InvalidArgument,
            "at most 1073741824",
        ),
    ] {
        let status = write(&a.peer, metadata, &data).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(named), "{status}");
        until("nothing is kept", async || {
            let nothing = |node: &Node| unfinished(node.path()) == 0 && node.blocks().0.is_empty();
            (nothing(&a) && nothing(&b)).then_some(())
        })
        .await;
    }
    assert!(write(&a.peer, right, &data).await.unwrap().success);
}

#[tokio::test]
async fn mistakes_are_named() {
    let meta = MetaServer::start();
    let a = Node::start(&meta).await;
    let send = async |messages: Vec<WriteBlockRequest>| {
        let answer = a.peer.clone().write_block(futures::stream::iter(messages)).await;
        answer.unwrap_err()
    };
    for (messages, named) in [
        (vec![], "first message"),
        (vec![chunk("data")], "first message"),
        (vec![WriteBlockRequest { content: None }], "first message"),
        (vec![first(metadata(0, &[]))], "block id: 0"),
        (vec![first(metadata(1 << 63, &[]))], "block id"),
        (vec![first(metadata(7, &["nonsense"]))], "replica_locations"),
        (
            vec![first(metadata(7, &[])), first(metadata(7, &[]))],
            "without data",
        ),
        (vec![first(metadata(7, &[]))], "block 7 has no data"),
        (vec![first(metadata(7, &[])), chunk("")], "block 7 has no data"),
    ] {
        let status = send(messages).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(named), "{status}");
    }
    // An empty block is one only when that is said.
    assert!(write(&a.peer, declared(8, &[], b""), b"").await.unwrap().success);
    assert_eq!(a.read(8).await.unwrap(), b"");
    assert_eq!(a.read(9).await, Err(Code::NotFound));
    assert_eq!(a.read(0).await, Err(Code::InvalidArgument));
    let request = CopyBlockRequest {
        block_id: 9,
        source_address: a.addr().to_owned(),
    };
    let status = a.peer.clone().copy_block(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert_eq!(a.blocks().0, [8]);
}

#[tokio::test]
async fn a_damaged_block_is_not_served_but_reported_and_mended() {
    let meta = MetaServer::start();
    let [a, b, _] = three(&meta).await;
    let data = some_bytes(1 << 20, 0);
    let all = [a.addr(), b.addr()];
    assert!(write(&a.peer, metadata(7, &all), &data).await.unwrap().success);
    meta.reported(a.server.id(), &[7], &[]).await;
    let mut content = std::fs::read(block_file(a.path(), 7)).unwrap();
    content[700_000] ^= 1;
    std::fs::write(block_file(a.path(), 7), content).unwrap();

    let mut stream = a
        .peer
        .clone()
        .read_block(ReadBlockRequest { block_id: 7 })
        .await
        .unwrap()
        .into_inner();
    let mut got = Vec::new();
    let status = loop {
        match stream.message().await {
            Ok(message) => got.extend_from_slice(&message.unwrap().chunk_data),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DataLoss);
    assert!(status.message().starts_with("block 7 is damaged: "), "{status}");
    assert!(got.len() < 700_000 && data.starts_with(&got));
    assert_eq!(a.read(7).await, Err(Code::DataLoss));
    // Soon, and not only with the next regular beat.
    let beat = meta.reported(a.server.id(), &[], &[7]).await;
    assert_eq!(beat.block_count, 0);

    meta.order(a.server.id(), Action::CopyBlock, 7, &[b.addr()]);
    // Any change brings the next beat, and with it the order.
    assert!(write(&a.peer, metadata(8, &[]), b"x").await.unwrap().success);
    meta.reported(a.server.id(), &[7, 8], &[]).await;
    assert_eq!(a.read(7).await.unwrap(), data);
}

#[tokio::test]
async fn copy_and_delete_by_request() {
    let meta = MetaServer::start();
    let [a, b, c] = three(&meta).await;
    let data = some_bytes(1 << 20, 0);
    assert!(write(&a.peer, metadata(7, &[]), &data).await.unwrap().success);
    let copy = async |to: &Node, block_id: u64, from: &str| {
        let request = CopyBlockRequest {
            block_id,
            source_address: from.to_owned(),
        };
        let answer = to.peer.clone().copy_block(request).await;
        answer.map(|answer| assert!(answer.into_inner().success))
    };
    copy(&b, 7, a.addr()).await.unwrap();
    assert_eq!(b.read(7).await.unwrap(), data);
    // It is there: whether the source is does not matter.
    let (gone, _socket) = nobody();
    copy(&b, 7, &gone).await.unwrap();
    assert_eq!(copy(&c, 7, &gone).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(copy(&c, 8, a.addr()).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(
        copy(&c, 7, "nonsense").await.unwrap_err().code(),
        Code::InvalidArgument
    );

    // Whatever a damaged source sends before it notices is not kept.
    let mut content = std::fs::read(block_file(a.path(), 7)).unwrap();
    content[1_000_000] ^= 1;
    std::fs::write(block_file(a.path(), 7), content).unwrap();
    assert_eq!(copy(&c, 7, a.addr()).await.unwrap_err().code(), Code::DataLoss);
    until("nothing is kept", async || {
        (unfinished(c.path()) == 0).then_some(())
    })
    .await;
    assert_eq!(c.blocks().0, [0; 0]);

    for _ in 0..2 {
        let request = DeleteBlockRequest { block_id: 7 };
        assert!(
            b.peer
                .clone()
                .delete_block(request)
                .await
                .unwrap()
                .into_inner()
                .success
        );
        assert_eq!(b.read(7).await, Err(Code::NotFound));
    }
}

#[tokio::test]
async fn a_full_disk_refuses_at_once_and_says_so() {
    let meta = MetaServer::start();
    let full = Node::with(&meta, |settings| settings.reserved_space = Some(u64::MAX)).await;
    let a = Node::start(&meta).await;
    let data = some_bytes(1000, 0);
    let status = write(&full.peer, metadata(1, &[a.addr()]), &data)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("nearly full"), "{status}");
    assert_eq!(a.blocks().0, [0; 0]);
    // As a replica it is named, and the others have it.
    let answer = write(&a.peer, metadata(1, &[a.addr(), full.addr()]), &data)
        .await
        .unwrap();
    assert_eq!(
        (answer.success, answer.failed_replicas),
        (false, vec![full.addr().to_owned()])
    );
    assert_eq!(a.read(1).await.unwrap(), data);
    let beat = meta.reported(full.server.id(), &[], &[]).await;
    assert_eq!(beat.free_space, 0);
    assert!(beat.total_capacity > 0);
    let request = CopyBlockRequest {
        block_id: 1,
        source_address: a.addr().to_owned(),
    };
    let status = full.peer.clone().copy_block(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn too_many_writes_at_once_are_refused() {
    let meta = MetaServer::start();
    let a = Node::with(&meta, |settings| settings.max_writes = 2).await;
    let writing = [1, 2].map(|block| write_and_wait(&a.peer, metadata(block, &[]), vec![0; 300_000]));
    until("both write", async || (unfinished(a.path()) == 2).then_some(())).await;
    let status = write(&a.peer, metadata(3, &[]), b"x").await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    for write in writing {
        write.abort();
    }
    until("there is room again", async || {
        write(&a.peer, metadata(3, &[]), b"x").await.is_ok().then_some(())
    })
    .await;
}

/// A sender that neither goes on nor breaks off does not hold anything for ever.
#[tokio::test]
async fn a_client_that_falls_silent_is_given_up() {
    let meta = MetaServer::start();
    let short = |settings: &mut Settings| settings.stall_timeout = Duration::from_millis(200);
    let (a, b) = (Node::with(&meta, short).await, Node::start(&meta).await);
    let writing = write_and_wait(&a.peer, metadata(1, &[b.addr()]), vec![0; 300_000]);
    let status = writing.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Cancelled, "{status}");
    until("nothing is left", async || {
        (unfinished(a.path()) + unfinished(b.path()) == 0).then_some(())
    })
    .await;
    assert_eq!((a.blocks().0, b.blocks().0), (vec![], vec![]));
}

/// A reader that takes nothing is given up, and does not take that for the end of the block.
#[tokio::test]
async fn a_reader_that_stalls_is_given_up() {
    let meta = MetaServer::start();
    let short = |settings: &mut Settings| settings.stall_timeout = Duration::from_millis(200);
    let a = Node::with(&meta, short).await;
    // More than fits into the windows of a connection.
    let data = some_bytes(24 << 20, 0);
    assert!(write(&a.peer, metadata(1, &[]), &data).await.unwrap().success);
    let mut stream = a
        .peer
        .clone()
        .read_block(ReadBlockRequest { block_id: 1 })
        .await
        .unwrap()
        .into_inner();
    stream.message().await.unwrap().unwrap();
    // The file is open as long as somebody is reading it.
    let file = std::fs::canonicalize(block_file(a.path(), 1)).unwrap();
    let is_open = || {
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
            .any(|path| path == file)
    };
    until("it is given up", async || (!is_open()).then_some(())).await;
    let status = loop {
        match stream.message().await {
            Ok(message) => assert!(message.is_some(), "a regular end"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Cancelled, "{status}");
}

#[tokio::test]
async fn a_clean_stop_lets_writes_end_and_gives_the_directory_back() {
    let meta = MetaServer::start();
    let a = Node::start(&meta).await;
    let (more, rest) = tokio::sync::mpsc::channel::<WriteBlockRequest>(1);
    more.send(first(metadata(1, &[]))).await.unwrap();
    let mut peer = a.peer.clone();
    let writing = tokio::spawn(async move {
        let stream = tokio_stream::wrappers::ReceiverStream::new(rest);
        peer.write_block(stream).await
    });
    more.send(chunk(vec![1; 300_000])).await.unwrap();
    until("it is being written", async || {
        (unfinished(a.path()) == 1).then_some(())
    })
    .await;
    let Node { dir, server, .. } = a;
    let addr = server.local_addr();
    let stopping = tokio::spawn(server.stop());
    until("nobody new is let in", async || {
        tokio::net::TcpStream::connect(addr).await.is_err().then_some(())
    })
    .await;
    more.send(chunk("the end")).await.unwrap();
    drop(more);
    assert!(writing.await.unwrap().unwrap().into_inner().success);
    stopping.await.unwrap();
    let again = DataServer::start(settings(dir.path(), &meta)).await.unwrap();
    assert_eq!(again.store().counts(), (1, 0));
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let meta = MetaServer::start();
    let a = Node::start(&meta).await;
    let error = DataServer::start(settings(a.path(), &meta)).await.unwrap_err();
    assert!(error.to_string().contains("is in use by process"), "{error}");
    let dir = TempDir::new().unwrap();
    let taken = Settings {
        listen: a.server.local_addr(),
        ..settings(dir.path(), &meta)
    };
    let error = DataServer::start(taken).await.unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("cannot listen on {}", a.server.local_addr())),
        "{error}"
    );
    let lonely = Settings::new(dir.path(), Vec::new());
    let error = DataServer::start(lonely).await.unwrap_err();
    assert!(matches!(error, StartError::NobodyToReportTo));
}
