//! Files against DataServers that die, stall, lie and lose.

mod get;
mod put;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use tempfile::TempDir;
use tonic::Code;

use super::*;
use crate::client::testing::{Cluster, DataFault, DataServer, DeadAddress, Fault, Server};
use crate::client::{Error, Options, Source};
use crate::proto::dfs::FileType;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// A cluster with three DataServers, a directory, and the files of both.
struct Scene {
    cluster: Cluster,
    meta: Server,
    data: Vec<DataServer>,
    directory: TempDir,
    files: Files,
}

impl Scene {
    async fn new(block_size: usize) -> Self {
        Self::with(block_size, TransferOptions::default()).await
    }

    /// Waits that a test meets are short; a stall is only met where a server was told to hang.
    async fn hasty() -> Self {
        let options = TransferOptions {
            stall: Duration::from_millis(700),
            pause: Duration::from_millis(1),
            ..TransferOptions::default()
        };
        Self::with(64 * KIB, options).await
    }

    async fn with(block_size: usize, options: TransferOptions) -> Self {
        let cluster = Cluster::default();
        cluster.state().block_size = i64::try_from(block_size).unwrap();
        let (meta, data) = (cluster.serve(), DataServer::start_for(&cluster, 3));
        let source = Source::servers(&meta.addr).unwrap();
        let client = Client::connect(source, Options::default()).await.unwrap();
        Scene {
            cluster,
            meta,
            data,
            directory: TempDir::new().unwrap(),
            files: Files::new(client, options),
        }
    }

    fn local(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn put(&self, bytes: &[u8], remote: &str) -> Result<Stored, TransferError> {
        let content = Content {
            reader: Box::new(io::Cursor::new(bytes.to_vec())),
            size: bytes.len() as u64,
            name: "content".into(),
            md5: None,
        };
        self.files.put(content, remote, &|_| ()).await
    }

    async fn get(&self, remote: &str) -> Result<Vec<u8>, TransferError> {
        let local = self.local("fetched");
        let _ = fs::remove_file(&local);
        let fetched = self.files.get(remote, &local, &|_| ()).await;
        match &fetched {
            Ok(fetched) => assert_eq!(fetched.size, fs::metadata(&local).unwrap().len()),
            Err(_) => assert_eq!(self.names(), [""; 0], "nothing is left"),
        }
        fetched.map(|_| fs::read(&local).unwrap())
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// How many DataServers have the block.
    fn replicas(&self, block: u64) -> usize {
        let holds = |server: &&DataServer| server.blocks().contains_key(&block);
        self.data.iter().filter(holds).count()
    }
}

/// Bytes that differ from block to block.
fn bytes(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn md5(bytes: &[u8]) -> String {
    use md5::Digest;
    hex(&md5::Md5::digest(bytes))
}

// --- The ordinary way ---

#[tokio::test]
async fn files_of_all_sizes_come_back_as_they_went() {
    let scene = Scene::new(4 * MIB).await;
    for size in [0, 1, 512 * KIB, 4 * MIB, 8 * MIB, 10 * MIB + 1] {
        let content = bytes(size);
        let stored = scene.put(&content, "/f").await.unwrap();
        let expected = Stored {
            size: size as u64,
            md5: md5(&content),
            under_replicated_blocks: 0,
        };
        assert_eq!(stored, expected);
        let stat = scene.files.stat_file("/f").await.unwrap();
        assert_eq!((stat.size, stat.md5), (size as i64, md5(&content)));
        let blocks = scene.cluster.blocks("/f");
        assert_eq!(blocks.len(), size.div_ceil(4 * MIB));
        assert!(blocks.iter().all(|block| scene.replicas(block.block_id) == 3));
        assert!(scene.get("/f").await.unwrap() == content, "{size} bytes");
    }
}

#[tokio::test]
async fn the_size_of_a_block_is_the_servers() {
    for block_size in [1, MIB, 8 * MIB] {
        let scene = Scene::new(block_size).await;
        let content = bytes(if block_size == 1 { 3 } else { 9 * MIB });
        scene.put(&content, "/f").await.unwrap();
        assert_eq!(
            scene.cluster.blocks("/f").len(),
            content.len().div_ceil(block_size)
        );
        assert!(scene.get("/f").await.unwrap() == content);
    }
    let scene = Scene::new(3 * MIB).await;
    let error = scene.put(&bytes(10 * MIB), "/f").await.unwrap_err();
    assert!(error.to_string().contains("no block size"), "{error}");
    assert_eq!(scene.meta.count("FinalizeWrite"), 0);
}

#[tokio::test]
async fn blocks_are_under_way_together_and_no_more_than_that() {
    let scene = Scene::new(64 * KIB).await;
    let content = bytes(64 * KIB * 24);
    // Of four blocks under way, every third goes to each server first: two wait together at the first.
    scene.data[0].gate(2);
    let (moved, steps) = (AtomicI64::new(0), Mutex::new(0));
    let progress = |bytes| {
        moved.fetch_add(bytes, Ordering::Relaxed);
        *steps.lock().unwrap() += 1;
    };
    let source = scene.local("source");
    fs::write(&source, &content).unwrap();
    let local = Content::open(&source).await.unwrap();
    scene.files.put(local, "/f", &progress).await.unwrap();
    assert_eq!(
        (moved.load(Ordering::Relaxed), *steps.lock().unwrap()),
        (content.len() as i64, 24)
    );
    fs::remove_file(&source).unwrap();
    scene.data[0].gate(2);
    assert!(scene.get("/f").await.unwrap() == content);
    for server in &scene.data {
        assert!(server.most_at_once() <= 4, "{}", server.most_at_once());
        assert_eq!(server.read().len(), 8, "reads are spread over the replicas");
    }
    assert_eq!(scene.files.places.available_permits(), 4);
}

#[tokio::test]
async fn an_overwrite_is_seen_at_its_end_only() {
    let scene = Scene::new(64 * KIB).await;
    let (old, new) = (bytes(100 * KIB), bytes(200 * KIB));
    scene.put(&old, "/f").await.unwrap();
    let before = scene.cluster.blocks("/f");
    let source = scene.local("source");
    fs::write(&source, &new).unwrap();
    let still_the_old_one = |_| assert_eq!(scene.cluster.blocks("/f"), before);
    let content = Content::open(&source).await.unwrap();
    scene.files.put(content, "/f", &still_the_old_one).await.unwrap();
    fs::remove_file(&source).unwrap();
    assert_ne!(scene.cluster.blocks("/f"), before);
    assert!(scene.get("/f").await.unwrap() == new);
    scene.put(&[], "/f").await.unwrap();
    assert_eq!(scene.get("/f").await.unwrap(), [0; 0]);
    assert_eq!(scene.cluster.paths(), ["/f"]);
}

#[tokio::test]
async fn many_files_share_the_places() {
    let scene = Scene::new(64 * KIB).await;
    let contents: Vec<_> = (1..20).map(|i| bytes(i * 30 * KIB)).collect();
    let paths: Vec<_> = (1..20).map(|i| format!("/f{i}")).collect();
    let put = contents
        .iter()
        .zip(&paths)
        .map(|(content, path)| scene.put(content, path));
    futures::future::try_join_all(put).await.unwrap();
    let locals: Vec<_> = (1..20).map(|i| scene.local(&i.to_string())).collect();
    let get = paths
        .iter()
        .zip(&locals)
        .map(|(path, local)| scene.files.get(path, local, &|_| ()));
    futures::future::try_join_all(get).await.unwrap();
    for (content, local) in contents.iter().zip(&locals) {
        assert!(fs::read(local).unwrap() == *content);
    }
    assert!(scene.data.iter().all(|server| server.most_at_once() <= 4));
}

#[tokio::test]
async fn a_copy_is_the_same_and_a_damaged_source_is_not_copied() {
    let scene = Scene::hasty().await;
    let content = bytes(64 * KIB * 9 + 5);
    scene.put(&content, "/f").await.unwrap();
    scene.put(&[], "/empty").await.unwrap();
    let stored = scene.files.copy("/f", "/g", &|_| ()).await.unwrap();
    assert_eq!(stored.md5, md5(&content));
    scene.files.copy("/empty", "/e", &|_| ()).await.unwrap();
    assert!(scene.get("/g").await.unwrap() == content);
    scene.cluster.set_size("/f", content.len() as i64, "0123");
    let error = scene.files.copy("/f", "/h", &|_| ()).await.unwrap_err();
    assert!(matches!(error, TransferError::Damaged(_)), "{error}");
    scene.cluster.set_blocks("/f", Vec::new());
    let error = scene.files.copy("/f", "/h", &|_| ()).await.unwrap_err();
    assert!(
        error.to_string().starts_with("/f: "),
        "the reader's error, not the writer's: {error}"
    );
    assert_eq!(scene.cluster.paths(), ["/e", "/empty", "/f", "/g"]);
}
