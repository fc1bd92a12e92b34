//! What older servers wrote is read, and never written again: log entries, records, whole directories
//! and snapshots of version 1, which knew no staged writes and not how far a write had come, and of
//! version 2, which knew no state hash and no digest of requests.

use prost::Message;

use super::golden_commands::{
    self as golden, answers_since_1, joined, nested, ops_since_1, ops_since_2, run, run_bytes,
};
use super::soundness::decoded;
use super::*;
use crate::domain::state::{DataServer, EntryKind, Remembered, ServerStatus, WriteState};
use crate::storage::codec;
use crate::storage::snapshot::SnapshotFile;

#[test]
fn log_entries_of_older_versions_are_read() {
    let both = ops_since_1().into_iter().map(|of_1| (vec![1, 2], of_1));
    for (versions, (op, bytes)) in both.chain(ops_since_2().into_iter().map(|of_2| (vec![2], of_2))) {
        for version in versions {
            let read = convert::decode_batch(&golden::batch(version, &bytes)).unwrap();
            assert_eq!(read, [golden::batched(version, op.clone())]);
        }
    }
}

#[test]
fn records_of_version_1_are_read() {
    let file = Entry {
        inode: InodeId(7),
        mtime_ms: 150,
        size: 300,
        kind: EntryKind::File {
            md5: "d4".to_owned(),
            blocks: Some(BlockId(5)),
        },
    };
    let bytes = b"\x01\x08\x07\x10\x96\x01\x18\xac\x02\x2a\x02d4\x30\x05";
    assert_eq!(codec::decode_entry(bytes).unwrap(), file);
    let directory = Entry {
        kind: EntryKind::Directory,
        ..file
    };
    let bytes = b"\x01\x08\x07\x10\x96\x01\x18\xac\x02\x20\x01";
    assert_eq!(codec::decode_entry(bytes).unwrap(), directory);

    let owned = OwnedRun {
        inode: InodeId(7),
        run: run(),
        write: WriteState::Written { at_ms: 0 },
    };
    let bytes = joined(&[b"\x01", b"\x08\x07", &run_bytes(0x12)]);
    assert_eq!(codec::decode_run(&bytes).unwrap(), owned, "written long ago");

    for (number, reason) in [
        (1, GarbageReason::Deleted),
        (2, GarbageReason::Overwritten),
        (3, GarbageReason::Truncated),
    ] {
        let garbage = Garbage {
            run: run(),
            reason,
            since_ms: 150,
        };
        let bytes = joined(&[b"\x01", &run_bytes(0x0a), &[0x10, number], b"\x18\x96\x01"]);
        assert_eq!(codec::decode_garbage(&bytes).unwrap(), garbage);
    }

    let servers = codec::decode_servers(b"\x01\x0a\x03\x09\xc8\x01").unwrap();
    assert_eq!(servers, [ServerId(9), ServerId(200)]);

    let server = DataServer {
        server: ServerId(9),
        id: "ds".to_owned(),
        addr: "h:1".to_owned(),
        status: ServerStatus::Unhealthy,
    };
    let bytes = b"\x01\x0a\x02ds\x12\x03h:1\x18\x01";
    assert_eq!(codec::decode_data_server(ServerId(9), bytes).unwrap(), server);

    let counters = Counters {
        next_inode: 2,
        next_block: 300,
        next_server: 4,
        inodes: 5,
        first_request: 6,
        next_request: 7,
    };
    let bytes = b"\x01\x08\x02\x10\xac\x02\x18\x04\x20\x05\x28\x06\x30\x07";
    assert_eq!(codec::decode_counters(bytes).unwrap(), counters);

    for (applied, bytes) in answers_since_1() {
        let read = codec::decode_remembered(&golden::remembered(1, &bytes)).unwrap();
        assert_eq!(read, golden::to_remember(applied));
    }

    let applied: pb::LogId = codec::decode("applied index", b"\x01\x0a\x04\x08\x03\x10\x07\x10\x02").unwrap();
    assert_eq!(applied, log_id(2));
    let bytes = joined(&[b"\x01", &nested(0x0a, &[b"\x0a\x04\x08\x03\x10\x07\x10\x01"])]);
    let membership: pb::StoredMembership = codec::decode("membership", &bytes).unwrap();
    assert_eq!(membership.log_id, Some(log_id(1)));
}

/// A run, as version 1 had it.
#[derive(Clone, PartialEq, Message)]
struct RunRecord1 {
    #[prost(uint64, tag = "1")]
    inode: u64,
    #[prost(message, optional, tag = "2")]
    run: Option<pb::BlockRun>,
}

/// What version 1 would have written in place of a record.
fn as_version_1(table: &str, value: &[u8]) -> Vec<u8> {
    match table {
        // These have no version.
        "detached" | "request_order" => value.to_vec(),
        "runs" => {
            let owned = codec::decode_run(value).unwrap();
            let record = RunRecord1 {
                inode: owned.inode.0,
                run: Some(convert::run_to_proto(&owned.run)),
            };
            joined(&[&[1], &record.encode_to_vec()])
        }
        _ => {
            let value = without_digest(table, value);
            assert_eq!(value[0], codec::RECORD_VERSION, "{table}");
            joined(&[&[1], &value[1..]])
        }
    }
}

/// What version 2 would have written in place of a record.
fn without_digest(table: &str, value: &[u8]) -> Vec<u8> {
    if table != "requests" {
        return value.to_vec();
    }
    let request = codec::decode_remembered(value).unwrap();
    assert_ne!(request.digest, 0);
    codec::encode_remembered(&Remembered { digest: 0, ..request })
}

/// Makes a state one that version 1 wrote.
fn downgrade(storage: &Storage) -> Dump {
    without_hash(storage, as_version_1);
    dump(storage)
}

/// Replaces the values, and leaves the state without a hash, as servers did before version 3.
fn without_hash(storage: &Storage, change: impl Fn(&str, &[u8]) -> Vec<u8>) {
    let generation = storage.current.load();
    let mut raw = Vec::new();
    for (table, records) in dump(storage) {
        raw.extend(records.into_iter().map(|(key, value)| {
            let value = change(table, &value);
            (table, key, value)
        }));
    }
    generation.write().unwrap().commit_raw(&raw).unwrap();
}

/// A directory's `STATE`, as servers left it before version 3.
fn state_of_layout_1(dir: &Path) {
    let path = dir.join("lmdb/STATE");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("minfs-state 2", "minfs-state 1")).unwrap();
}

/// With a record in every table, and nothing that version 1 did not know.
fn filled(dir: &Path) -> Storage {
    let mut storage = with_servers(dir);
    storage.apply(&[membership(4, 9090)]).unwrap();
    for op in [
        mkdir("/d"),                        // inode 2
        allocate("/d/full", 8, 4, &[1, 2]), // inode 3, blocks 1 and 2
        finalize("/d/full", 3, 8),
        allocate("/d/open", 8, 4, &[1, 2]), // inode 4, blocks 3 and 4
        allocate("/d/late", 8, 4, &[1, 2]), // inode 5, blocks 5 and 6
        move_replica(3, 1, 3),
        allocate("/gone", 4, 4, &[1, 2]), // inode 6, block 7
        remove("/gone", false),
        mkdir("/deleted"),     // inode 7
        touch("/deleted/old"), // inode 8
        remove("/deleted", true),
    ] {
        apply_op(&mut storage, op).unwrap();
    }
    let remembered = with_id("first", 5_000, touch("/remembered")); // inode 9
    apply(&mut storage, &[remembered]).remove(0).unwrap();
    for (table, records) in dump(&storage) {
        assert!(!records.is_empty(), "{table}");
    }
    storage
}

/// Goes on with a state that version 1 left.
fn assert_goes_on(storage: &mut Storage) {
    decoded(&dump(storage)).assert_sound();
    for first in [1, 3, 5] {
        let write = run_at(storage, first).unwrap().write;
        assert_eq!(write, WriteState::Written { at_ms: 0 }, "block {first}");
    }
    // Nothing of then is abandoned, and what was being written can be finished.
    assert_eq!(
        apply_op(storage, abandon(&[1, 3, 5])),
        Ok(Outcome::WritesAbandoned { writes: 0 })
    );
    let again = with_id("first", 6_000, touch("/another"));
    let first = Ok(Outcome::Created { inode: InodeId(9) });
    assert_eq!(apply(storage, &[again]), [first]);
    for op in [
        finalize("/d/open", 4, 5),
        allocate("/d/full", 4, 4, &[2, 3]), // block 8
        stage("/d/late", 4, 4, &[2, 3]),    // inode 10, block 9
        finalize_staged("/d/late", 10, 4, 9),
        Op::Reclaim { limit: 10 },
        release(&[7]),
        move_replica(4, 1, 3),
    ] {
        apply_op(storage, op).unwrap();
    }
    assert_eq!(find(storage, "/d").unwrap().size, 9);
    let firsts: Vec<_> = garbage(storage)
        .into_iter()
        .map(|(first, count, reason, _)| (first, count, reason))
        .collect();
    let overwritten = GarbageReason::Overwritten;
    assert_eq!(firsts, [(1, 2, overwritten), (5, 2, overwritten)]);
    let tables = dump(storage);
    decoded(&tables).assert_sound();
    assert_eq!(tables["meta"][1].1[0], codec::RECORD_VERSION, "written anew");
}

#[test]
fn a_directory_of_version_1_is_opened_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let storage = filled(dir.path());
    let old = downgrade(&storage);
    for (table, records) in &old {
        if !["detached", "request_order"].contains(table) {
            assert!(records.iter().all(|(_, value)| value[0] == 1), "{table}");
        }
    }
    storage.close().unwrap();
    state_of_layout_1(dir.path());
    let mut storage = open(dir.path());
    assert_eq!(dump(&storage), old, "opening it changes nothing");
    assert_hashed(&storage);
    assert_goes_on(&mut storage);
    assert_hashed(&storage);
}

/// Version 2 had the records of version 3, and no state hash.
#[test]
fn a_directory_of_version_2_gets_the_hash_that_it_would_have_had() {
    for (verify, rewritten) in [(true, true), (false, true), (true, false)] {
        let dir = tempfile::tempdir().unwrap();
        let mut storage = filled(dir.path());
        let (all, hash) = (dump(&storage), assert_hashed(&storage));
        without_hash(&storage, |_, value| value.to_vec());
        assert_eq!(dump(&storage), all);
        storage.close().unwrap();
        let old = StorageOptions {
            verify,
            ..options(dir.path())
        };
        if !rewritten {
            // A server of this version never leaves a state without its hash: that is damage.
            storage = Storage::open(&old).unwrap();
            assert_eq!(storage.progress().unwrap(), Progress::default());
            continue;
        }
        state_of_layout_1(dir.path());
        storage = Storage::open(&old).unwrap();
        assert_eq!(dump(&storage), all);
        assert_eq!(assert_hashed(&storage), hash);
        let applied = storage.progress().unwrap().applied.unwrap().index;
        let hashes = storage.reader().read(|view| view.hashes(0, u64::MAX)).unwrap();
        assert_eq!(hashes, [(applied, hash)].into(), "from here on they are kept");
        // From here on an older server must not have it.
        let text = std::fs::read_to_string(dir.path().join("lmdb/STATE")).unwrap();
        assert!(text.starts_with("minfs-state 2\n"), "{text}");
    }
}

#[test]
fn a_snapshot_of_version_2_is_installed_and_gets_its_hash() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let old_node = filled(dirs[0].path());
    let hash = assert_hashed(&old_node);
    let built = old_node.build_snapshot().run().unwrap();
    // Of another state, that the one below is not taken for it.
    without_hash(&old_node, |_, value| value.to_vec());
    let path = dirs[1].path().join("received");
    let generation = old_node.current.load();
    generation.copy_to(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let mut meta = pb::SnapshotMeta {
        version: 2,
        bytes: bytes.len() as u64,
        checksum: xxhash_rust::xxh3::xxh3_64(&bytes),
        state_hash: Vec::new(),
        ..built.meta
    };
    let mut node = open(dirs[1].path());
    let install = |meta: &pb::SnapshotMeta| {
        let (meta, path) = (meta.clone(), path.clone());
        node.prepare_install(SnapshotFile { meta, path }).run()
    };
    // The same data are no snapshot of version 3.
    meta.version = 3;
    meta.state_hash = hash.to_bytes().to_vec();
    let error = install(&meta).err().unwrap().to_string();
    assert!(
        error.contains("received is damaged: it has no state hash"),
        "{error}"
    );
    meta.version = 2;
    meta.state_hash.clear();
    let prepared = install(&meta).unwrap();
    node.install(prepared).unwrap();
    assert_eq!(dump(&node), dump(&old_node));
    assert_eq!(assert_hashed(&node), hash);
}

#[test]
fn a_snapshot_of_version_1_is_installed_kept_and_goes_on() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let old_node = filled(dirs[0].path());
    let built = old_node.build_snapshot().run().unwrap();
    let old = downgrade(&old_node);
    let mut node = open(dirs[1].path());
    let path = dirs[1].path().join("raft/snapshots/received-1.tmp");
    old_node.current.load().copy_to(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let meta = pb::SnapshotMeta {
        version: 1,
        bytes: bytes.len() as u64,
        checksum: xxhash_rust::xxh3::xxh3_64(&bytes),
        state_hash: Vec::new(),
        ..built.meta
    };
    let prepared = node
        .prepare_install(SnapshotFile {
            meta: meta.clone(),
            path,
        })
        .run()
        .unwrap();
    node.install(prepared).unwrap();
    assert_eq!(dump(&node), old);
    drop(node);

    // It is this node's own now, and fills it again after a restart.
    let mut node = open(dirs[1].path());
    let kept = node.current_snapshot().unwrap().unwrap();
    assert_eq!(kept.meta, meta);
    let prepared = node.prepare_install(kept).run().unwrap();
    node.install(prepared).unwrap();
    assert_eq!(dump(&node), old);
    assert_goes_on(&mut node);
    assert_hashed(&node);
    let snapshot = node.build_snapshot().run().unwrap();
    assert_eq!(snapshot.meta.version, snapshot::STATE_VERSION);
}

/// A log that version 1 wrote in part: the same commands give the same state whatever the version of
/// the batch that they came in.
#[test]
fn a_log_of_both_versions_is_applied_alike() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [mut old, mut new] = [0, 1].map(|i| open(dirs[i].path()));
    for (index, (_, op)) in (1..).zip(ops_since_1()) {
        let [was, is] = [1, 2].map(|version| LogRecord {
            log_id: log_id(index),
            content: RecordContent::Batch(golden::batch(version, &op).into()),
        });
        assert_eq!(old.apply(&[was]).unwrap(), new.apply(&[is]).unwrap());
    }
    assert_eq!(dump(&old), dump(&new));
}
