//! The state hash: that it follows the records through every kind of change, and what it costs.

use std::time::{Duration, Instant};

use super::*;
use crate::domain::state::{DataServer, Remembered, ServerStatus, Tables, WriteState};
use crate::storage::tables::{HASHES_KEPT, HASHING_IS_OFF};

/// All that are kept, by index.
pub fn kept_hashes(storage: &Storage) -> Hashes {
    let last = storage.progress().unwrap().applied.map_or(0, |last| last.index);
    let first = (last + 1).saturating_sub(HASHES_KEPT);
    storage
        .reader()
        .read(|view| view.hashes(first, HASHES_KEPT))
        .unwrap()
}

fn hash_of(storage: &Storage) -> StateHash {
    storage.reader().read(|view| view.state_hash()).unwrap().unwrap()
}

/// The definition must stay: nodes of different builds compare theirs. Changing it takes a new
/// `STATE_VERSION`.
#[test]
fn the_hash_of_a_state_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path());
    let fresh = assert_hashed(&storage);
    let record = |table: u8, key: &[u8], value: &[u8]| {
        let length = (key.len() as u32).to_be_bytes();
        xxhash_rust::xxh3::xxh3_128(&golden_commands::joined(&[&[table], &length, key, value]))
    };
    let root = record(1, &[0; 8], b"\x02\x08\x01\x20\x01");
    // Inodes from 2, blocks and DataServers from 1, 1 inode.
    let counters = record(9, b"counters", b"\x02\x08\x02\x10\x01\x18\x01\x20\x01");
    assert_eq!(fresh, StateHash(root.wrapping_add(counters)));

    storage
        .apply(&[LogRecord {
            log_id: log_id(2),
            content: RecordContent::Blank,
        }])
        .unwrap();
    let applied = record(9, b"applied", b"\x02\x0a\x04\x08\x03\x10\x07\x10\x02");
    assert_eq!(assert_hashed(&storage), StateHash(fresh.0.wrapping_add(applied)));
    assert_eq!(
        assert_hashed(&storage).to_string(),
        "11205dc5d8cbfd9eb9264f1c75b0e71f"
    );
}

/// Every way in which the tables can be changed, each undone again: the hash follows, and returns.
#[test]
fn every_change_of_a_table_is_seen_and_its_undoing_too() {
    let dir = tempfile::tempdir().unwrap();
    let storage = with_servers(dir.path());
    let before = assert_adds_up(&storage);
    let file = Entry {
        inode: InodeId(70),
        mtime_ms: 1,
        size: 2,
        kind: crate::domain::state::EntryKind::Directory,
    };
    let run = golden_commands::run();
    let owned = OwnedRun {
        inode: InodeId(70),
        run: run.clone(),
        write: WriteState::Written { at_ms: 1 },
    };
    let waste = Garbage {
        run: run.clone(),
        reason: GarbageReason::Deleted,
        since_ms: 1,
    };
    let request = Remembered {
        sequence: 7,
        time_ms: 1,
        digest: 0,
        applied: Ok(Outcome::Deleted),
    };
    let server = storage
        .reader()
        .read(|view| view.server(ServerId(1)))
        .unwrap()
        .unwrap();
    let counters = counters(&storage);
    let down = DataServer {
        status: ServerStatus::Down,
        ..server.clone()
    };
    type Change<'a> = Box<dyn Fn(&mut tables::StateTxn<'_>) -> Result<(), StorageError> + 'a>;
    let changes: Vec<(Change<'_>, Change<'_>)> = vec![
        (
            Box::new(|txn| txn.put_entry(InodeId(1), "n", &file)),
            Box::new(|txn| txn.remove_entry(InodeId(1), "n")),
        ),
        (
            Box::new(|txn| txn.put_run(&owned)),
            Box::new(|txn| txn.remove_run(run.first)),
        ),
        (
            Box::new(|txn| {
                txn.put_moved(BlockId(5), &[ServerId(1)])?;
                txn.put_moved(BlockId(6), &[ServerId(1)])
            }),
            Box::new(|txn| txn.remove_moved(BlockId(5), 2)),
        ),
        (
            Box::new(|txn| txn.put_garbage(&waste)),
            Box::new(|txn| txn.remove_garbage(run.first)),
        ),
        (
            Box::new(|txn| txn.put_detached(InodeId(9))),
            Box::new(|txn| txn.remove_detached(InodeId(9))),
        ),
        (
            Box::new(|txn| txn.put_remembered(&id("r"), &request)),
            Box::new(|txn| txn.remove_remembered(&id("r"), 7)),
        ),
        (
            Box::new(|txn| txn.put_server(&down)),
            Box::new(|txn| txn.put_server(&server)),
        ),
        (
            Box::new(|txn| {
                txn.put_counters(Counters {
                    next_inode: 1_000,
                    ..counters
                })
            }),
            Box::new(|txn| txn.put_counters(counters)),
        ),
    ];
    let mut seen = vec![before];
    for (change, undo) in &changes {
        meddle(&storage, change);
        seen.push(assert_adds_up(&storage));
        // Again, and it is the same.
        meddle(&storage, change);
        assert_eq!(Some(&hash_of(&storage)), seen.last());
        meddle(&storage, undo);
        assert_eq!(assert_adds_up(&storage), before);
        meddle(&storage, undo);
        assert_eq!(assert_adds_up(&storage), before);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), changes.len() + 1, "each is another state");
}

#[test]
fn hashes_of_old_entries_make_room_and_none_is_made_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path());
    let blank = |index| LogRecord {
        log_id: log_id(index),
        content: RecordContent::Blank,
    };
    storage.apply(&[blank(1)]).unwrap();
    let first = hash_of(&storage);
    storage.apply(&[blank(2), blank(3)]).unwrap();
    assert_eq!(
        kept_hashes(&storage).keys().copied().collect::<Vec<_>>(),
        [1, 2, 3]
    );
    assert_eq!(kept_hashes(&storage)[&1], first);
    let asked = |from, limit| storage.reader().read(|view| view.hashes(from, limit)).unwrap();
    assert_eq!(asked(2, 1).len(), 1);
    assert_eq!(asked(4, 100).len(), 0, "not applied yet");
    assert_eq!(asked(u64::MAX, u64::MAX).len(), 0);
    // One that has the slot of 2.
    storage.apply(&[blank(2 + HASHES_KEPT)]).unwrap();
    let asked = |from, limit| storage.reader().read(|view| view.hashes(from, limit)).unwrap();
    assert_eq!(asked(1, 3).into_keys().collect::<Vec<_>>(), [1, 3]);
    assert_eq!(asked(2 + HASHES_KEPT, 1)[&(2 + HASHES_KEPT)], hash_of(&storage));
}

#[test]
fn a_failed_batch_leaves_the_hash_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    let before = (assert_hashed(&storage), kept_hashes(&storage));
    let bad = LogRecord {
        log_id: log_id(6),
        content: RecordContent::Batch(b"\xff\xff".to_vec().into()),
    };
    storage
        .apply(&[entry(5, &[at(1, mkdir("/n"))]), bad])
        .unwrap_err();
    assert_eq!((assert_hashed(&storage), kept_hashes(&storage)), before);
}

#[test]
fn a_scan_says_how_far_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path());
    let many: Vec<_> = (0..5_000).map(|n| at(n, touch(&format!("/f{n}")))).collect();
    apply(&mut storage, &many);
    let mut told = Vec::new();
    let (_, scan) = storage.reader().scan(|records| told.push(records)).unwrap();
    assert_eq!(
        (told, scan.records),
        (vec![4096], 5_003),
        "files, root, counters, applied index"
    );
}

/// How long it takes to apply `count` creates, `batch` to a log entry and each entry in a transaction of its
/// own, as on a leader.
fn creates(count: usize, batch: usize, hashing: bool) -> Duration {
    HASHING_IS_OFF.set(!hashing);
    let dir = tempfile::tempdir().unwrap();
    let mut storage = Storage::open(&StorageOptions {
        map_size: 1 << 30,
        ..options(dir.path())
    })
    .unwrap();
    let directories: Vec<_> = (0..100).map(|n| at(n, mkdir(&format!("/d{n}")))).collect();
    apply(&mut storage, &directories);
    let entries: Vec<_> = (0..count)
        .step_by(batch)
        .zip(2..)
        .map(|(from, index)| {
            let create = |n| at(1_000 + n as i64, touch(&format!("/d{}/file-{n:07}", n % 100)));
            let commands: Vec<_> = (from..count.min(from + batch)).map(create).collect();
            entry(index, &commands)
        })
        .collect();
    let begun = Instant::now();
    for entry in &entries {
        let answers = storage.apply(std::slice::from_ref(entry)).unwrap();
        assert!(answers[0].iter().all(Result::is_ok));
    }
    let took = begun.elapsed();
    HASHING_IS_OFF.set(false);
    if hashing {
        let begun = Instant::now();
        assert_hashed(&storage);
        let scan = begun.elapsed();
        storage.close().unwrap();
        let begun = Instant::now();
        let large = StorageOptions {
            map_size: 1 << 30,
            ..options(dir.path())
        };
        Storage::open(&large).unwrap();
        let opened = begun.elapsed();
        println!("  {count} files: a scan takes {scan:.0?}, to open and verify {opened:.0?}");
    }
    took
}

/// `cargo test --release --lib what_the_hash_costs -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn what_the_hash_costs() {
    const ROUNDS: usize = 5;
    for (count, batch) in [(200_000, 64), (200_000, 1024), (40_000, 1)] {
        let mut took = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (hashing, took) in [false, true].into_iter().zip(&mut took) {
                took.push(creates(count, batch, hashing).as_secs_f64() * 1e6 / count as f64);
            }
        }
        let median = took.map(|mut took| {
            took.sort_by(f64::total_cmp);
            took[ROUNDS / 2]
        });
        println!(
            "{count} creates, {batch} to an entry: {:.2} µs each without the hash, {:.2} µs with it",
            median[0], median[1]
        );
    }
}
