//! What the fuzzer calls of the storage: see [`crate::fuzzing`].

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use prost::Message;
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

use super::snapshot::{SnapshotFile, decode_meta, encode_meta};
use super::{LogRecord, RecordContent, Storage, StorageOptions};
use crate::domain::command::{AllocationPlan, Command, Op};
use crate::domain::ids::{InodeId, ServerId};
use crate::domain::path::CleanPath;
use crate::domain::state::ServerStatus;
use crate::proto::convert::{decode_batch, encode_batch};
use crate::proto::raft as pb;

/// A batch of the log: what decodes means the same when it is encoded again, and is applied without stopping
/// the node, twice.
pub fn command(data: &[u8]) {
    let Ok(commands) = decode_batch(data) else { return };
    let again = decode_batch(&encode_batch(&commands));
    assert_eq!(again.as_ref(), Ok(&commands));
    let (_dir, mut storage) = furnished();
    for index in 2..4 {
        let answers = storage.apply(&[record(index, RecordContent::Batch(data.to_vec().into()))]);
        let answers = answers.unwrap_or_else(|error| panic!("a committed entry stops the node: {error}"));
        assert_eq!(answers[0].len(), commands.len());
    }
}

/// A received snapshot and what is said of it. The first byte says whether it is what it is said to be (0), or
/// how it is not: the description is the rest of the bytes (1), or the data are cut, lengthened or changed
/// there. It is refused, and leaves nothing behind, or it is installed.
pub fn snapshot(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else {
        return;
    };
    meta_file(rest);
    if how % 5 == 1 && pb::SnapshotMeta::decode(rest).is_err() {
        return;
    }
    let (built, mut content) = good_snapshot().clone();
    let mut meta = built.clone();
    let (dir, mut storage) = empty();
    let path = dir.path().join("raft/snapshots/incoming-1.tmp");
    let at = rest
        .iter()
        .take(8)
        .fold(0, |at, byte| at * 256 + usize::from(*byte))
        % content.len();
    match how % 5 {
        0 => {}
        1 => meta = pb::SnapshotMeta::decode(rest).expect("it did before"),
        2 => content.truncate(at),
        3 => content.extend_from_slice(&rest[..rest.len().min(1)]),
        _ => content[at] ^= rest.last().copied().unwrap_or_default(),
    }
    let as_said = (content.len() as u64, xxh3_64(&content)) == (meta.bytes, meta.checksum);
    fs::write(&path, &content).expect("there is room");
    let received = SnapshotFile { meta, path };
    let before = names(&dir.path().join("raft/snapshots"));
    match storage.prepare_install(received.clone()).run() {
        Ok(prepared) => {
            assert!(as_said);
            storage
                .install(prepared)
                .expect("what is verified can be installed");
            assert!(!received.path.exists(), "it has another name now");
        }
        Err(_) => {
            assert!(received.meta != built || !as_said, "a good snapshot is refused");
            assert_eq!(names(&dir.path().join("raft/snapshots")), before);
        }
    }
    // Whatever happened, the node goes on: with the state that it had or was given.
    let answers = storage.apply(&[record(2, RecordContent::Batch(encode_batch(&furniture())))]);
    assert!(answers.is_ok(), "{answers:?}");
}

/// What is said of a good snapshot, and its bytes.
fn good_snapshot() -> &'static (pb::SnapshotMeta, Vec<u8>) {
    static GOOD: OnceLock<(pb::SnapshotMeta, Vec<u8>)> = OnceLock::new();
    GOOD.get_or_init(|| {
        let (_dir, storage) = furnished();
        let built = storage.build_snapshot().run().expect("a snapshot can be built");
        let content = fs::read(built.path).expect("it was just built");
        (built.meta, content)
    })
}

/// The file beside a snapshot: what is damaged is refused, what is not is read as it was written.
fn meta_file(bytes: &[u8]) {
    let path = Path::new("snapshot.meta");
    let _ = decode_meta(path, bytes);
    if let Ok(meta) = pb::SnapshotMeta::decode(bytes) {
        let mut file = encode_meta(&meta);
        assert!(decode_meta(path, &file).is_ok_and(|again| again == meta));
        let middle = file.len() / 2;
        file[middle] ^= 1;
        assert!(decode_meta(path, &file).is_err());
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("the folder is there");
    let mut names: Vec<_> = entries
        .map(|entry| {
            entry
                .expect("it can be read")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

fn record(index: u64, content: RecordContent) -> LogRecord {
    LogRecord {
        log_id: pb::LogId {
            leader: Some(pb::LeaderId { term: 1, node: 1 }),
            index,
        },
        content,
    }
}

/// A new state, in memory where the system has a place for that.
fn empty() -> (TempDir, Storage) {
    let memory = Path::new("/dev/shm");
    let dir = match memory.is_dir() {
        true => TempDir::new_in(memory),
        false => TempDir::new(),
    };
    let dir = dir.expect("a directory can be made");
    let options = StorageOptions {
        dir: dir.path().to_owned(),
        map_size: 16 << 20,
        verify: true,
    };
    let storage = Storage::open(&options).expect("an empty directory can be used");
    (dir, storage)
}

/// A small state.
fn furnished() -> (TempDir, Storage) {
    let (dir, mut storage) = empty();
    let applied = storage.apply(&[record(1, RecordContent::Batch(encode_batch(&furniture())))]);
    applied.expect("good commands are applied");
    (dir, storage)
}

/// Some of everything.
pub(crate) fn furniture() -> Vec<Command> {
    let path = |raw: &str| CleanPath::parse(raw).expect("a good path");
    let create = |raw: &str, directory| Op::Create {
        path: path(raw),
        directory,
    };
    let server = |n: u32| Op::RegisterDataServer {
        id: format!("ds-{n}"),
        addr: format!("ds-{n}:8000"),
    };
    let allocate = |raw: &str, size, staged| Op::Allocate {
        path: path(raw),
        size,
        plan: Some(AllocationPlan {
            block_size: 4,
            replication: 2,
            servers: [1, 2, 3].map(ServerId).to_vec(),
        }),
        staged,
    };
    let ops = vec![
        server(1),
        server(2),
        server(3),
        Op::SetDataServerStatus {
            server: ServerId(3),
            status: ServerStatus::Unhealthy,
        },
        create("/d", true),
        create("/d/e", true),
        create("/d/f", false),
        allocate("/d/f", 10, false),
        Op::Finalize {
            path: path("/d/f"),
            inode: InodeId(4),
            size: 9,
            md5: "5".repeat(32),
            staged: None,
        },
        allocate("/d/f", 20, true),
        allocate("/open", 5, false),
        create("/gone", true),
        create("/gone/x", false),
        Op::Delete {
            path: path("/gone"),
            recursive: true,
        },
    ];
    ops.into_iter()
        .map(|op| Command {
            time_ms: 1_700_000_000_000,
            request_id: None,
            digest: 0,
            origin: None,
            op,
        })
        .collect()
}
