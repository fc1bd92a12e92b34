//! The log store: openraft's suite, what survives a restart, and what a broken disk does.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use futures::{FutureExt, StreamExt, TryStreamExt};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use openraft::type_config::TypeConfigExt;
use raft_log::codeq::{Decode, Encode};
use tempfile::TempDir;

use super::{batch, log_id};
use crate::raft::log_codec::{DiskLogId, DiskPayload, DiskVote};
use crate::raft::log_store::{LogLimits, LogStore};
use crate::raft::testing::{MemStore, storage_suite};
use crate::raft::types::{Entry, EntryPayload, LeaderId, Membership, Node, TypeConfig, Vote};

fn open(dir: &Path) -> LogStore {
    LogStore::open(dir, LogLimits::default()).unwrap()
}

fn small_chunks(dir: &Path) -> LogStore {
    let limits = LogLimits {
        chunk_records: 10,
        ..LogLimits::default()
    };
    LogStore::open(dir, limits).unwrap()
}

fn vote(term: u64, node: u64, committed: bool) -> Vote {
    Vote {
        leader_id: LeaderId { term, node_id: node },
        committed,
    }
}

/// The chunk files, oldest first.
fn chunks(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|file| file.extension().is_some_and(|ext| ext == "wal"));
    files.sort();
    files
}

#[actix_rt::test]
async fn openrafts_storage_suite_passes() {
    storage_suite(|dir| MemStore::port(&MemStore::start_in(dir))).await;
}

#[actix_rt::test]
async fn everything_is_there_after_reopening() {
    let dir = TempDir::new().unwrap();
    let membership = Membership::new(
        vec![[1, 2].into()],
        BTreeMap::from([(1, Node::default()), (2, Node::default()), (3, Node::default())]),
    )
    .unwrap();
    let entries = [
        batch(0, "zero"),
        Entry {
            log_id: log_id(1, 1, 1),
            payload: EntryPayload::Blank,
        },
        Entry {
            log_id: log_id(1, 1, 2),
            payload: EntryPayload::Membership(membership),
        },
        batch(3, ""),
        batch(4, "four"),
    ];
    {
        let mut log = open(dir.path());
        log.save_vote(&vote(7, 2, true)).await.unwrap();
        log.blocking_append(entries[..4].to_vec()).await.unwrap();
        log.save_committed(Some(log_id(1, 1, 3))).await.unwrap();
        log.blocking_append(entries[4..].to_vec()).await.unwrap();
        log.purge(log_id(1, 1, 0)).await.unwrap();
    }
    let mut log = open(dir.path());
    assert_eq!(log.read_vote().await.unwrap(), Some(vote(7, 2, true)));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 1, 3)));
    assert_eq!(
        log.get_log_state().await.unwrap(),
        LogState {
            last_purged_log_id: Some(log_id(1, 1, 0)),
            last_log_id: Some(log_id(1, 1, 4))
        }
    );
    assert_eq!(log.try_get_log_entries(0..10).await.unwrap(), entries[1..]);
}

#[actix_rt::test]
async fn truncation_survives_reopening() {
    let dir = TempDir::new().unwrap();
    {
        let mut log = open(dir.path());
        log.blocking_append((0..5).map(|i| batch(i, "old")))
            .await
            .unwrap();
        log.truncate_after(Some(log_id(1, 1, 2))).await.unwrap();
        log.blocking_append([batch(3, "new")]).await.unwrap();
        log.truncate_after(Some(log_id(1, 1, 3))).await.unwrap();
    }
    let mut log = open(dir.path());
    let entries = log.try_get_log_entries(2..).await.unwrap();
    assert_eq!(entries, [batch(2, "old"), batch(3, "new")]);
    log.truncate_after(None).await.unwrap();
    assert_eq!(log.get_log_state().await.unwrap(), LogState::default());
}

#[actix_rt::test]
async fn a_record_cut_short_by_a_crash_is_dropped() {
    let dir = TempDir::new().unwrap();
    {
        let mut log = open(dir.path());
        log.blocking_append([batch(0, "whole"), batch(1, "cut short")])
            .await
            .unwrap();
    }
    let file = chunks(dir.path()).pop().unwrap();
    let length = fs::metadata(&file).unwrap().len();
    fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(length - 3)
        .unwrap();
    {
        let mut log = open(dir.path());
        assert_eq!(log.try_get_log_entries(..).await.unwrap(), [batch(0, "whole")]);
        log.blocking_append([batch(1, "again")]).await.unwrap();
    }
    let mut log = open(dir.path());
    assert_eq!(
        log.try_get_log_entries(..).await.unwrap(),
        [batch(0, "whole"), batch(1, "again")]
    );
}

#[actix_rt::test]
async fn a_damaged_record_is_refused_naming_the_log() {
    let dir = TempDir::new().unwrap();
    {
        let mut log = open(dir.path());
        log.blocking_append([batch(0, "damaged"), batch(1, "behind it")])
            .await
            .unwrap();
    }
    let file = chunks(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(7).position(|window| window == b"damaged").unwrap();
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();
    let error = LogStore::open(dir.path(), LogLimits::default())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
}

#[actix_rt::test]
async fn purging_deletes_whole_chunks_and_closed_ones_are_read_from_the_disk() {
    let dir = TempDir::new().unwrap();
    let limits = LogLimits {
        chunk_records: 10,
        cache_bytes: 1,
        ..LogLimits::default()
    };
    {
        let mut log = LogStore::open(dir.path(), limits.clone()).unwrap();
        for i in 0..100 {
            log.blocking_append([batch(i, format!("entry {i}"))])
                .await
                .unwrap();
        }
        let expected: Vec<_> = (0..100).map(|i| batch(i, format!("entry {i}"))).collect();
        assert_eq!(log.try_get_log_entries(..).await.unwrap(), expected);
        let streamed: Vec<_> = log.entries_stream(5..=98).await.try_collect().await.unwrap();
        assert_eq!(streamed, expected[5..=98]);
        assert!(chunks(dir.path()).len() > 10);
        log.purge(log_id(1, 1, 95)).await.unwrap();
    } // closing waits for the deletion
    assert!(chunks(dir.path()).len() <= 2, "{:?}", chunks(dir.path()));
    let mut log = LogStore::open(dir.path(), limits).unwrap();
    assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 4);
}

#[actix_rt::test]
async fn a_limited_read_stays_small_but_makes_progress() {
    let dir = TempDir::new().unwrap();
    let mut log = open(dir.path());
    let third = vec![7_u8; (1 << 20) / 3];
    let huge = vec![8_u8; 5 << 20];
    let mut entries: Vec<_> = (0..5).map(|i| batch(i, third.clone())).collect();
    entries.push(batch(5, huge));
    log.blocking_append(entries.clone()).await.unwrap();
    assert_eq!(log.limited_get_log_entries(0, 6).await.unwrap(), entries[0..3]);
    assert_eq!(log.limited_get_log_entries(4, 6).await.unwrap(), entries[4..5]);
    assert_eq!(log.limited_get_log_entries(5, 6).await.unwrap(), entries[5..6]);
    let all: Vec<_> = log.entries_stream(0..6).await.try_collect().await.unwrap();
    assert_eq!(all, entries);
    let none = log.entries_stream(6..9).await.collect::<Vec<_>>().await;
    assert!(none.is_empty());
}

#[actix_rt::test]
async fn the_commit_index_never_goes_back_nor_beyond_the_log() {
    let dir = TempDir::new().unwrap();
    let mut log = open(dir.path());
    log.blocking_append((0..3).map(|i| batch(i, "x"))).await.unwrap();
    for (saved, next, expected) in [(1, 3, 1), (0, 4, 1), (9, 5, 1), (4, 6, 4)] {
        log.save_committed(Some(log_id(1, 1, saved))).await.unwrap();
        log.blocking_append([batch(next, "x")]).await.unwrap();
        assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 1, expected)));
    }
}

#[actix_rt::test]
async fn after_an_io_error_nothing_is_reported_as_stored() {
    let dir = TempDir::new().unwrap();
    let mut log = small_chunks(dir.path());
    for i in 0..30 {
        log.blocking_append([batch(i, "x")]).await.unwrap();
    }
    // raft-log's thread fails when it cannot delete the chunk, whatever the reason.
    fs::remove_file(&chunks(dir.path())[0]).unwrap();
    log.purge(log_id(1, 1, 25)).await.unwrap();

    let (callback, flushed) = TypeConfig::oneshot();
    let appended = log.append([batch(30, "lost")], IOFlushed::signal(callback)).await;
    let flushed = flushed.await.unwrap();
    let error = flushed.expect_err("an entry that was never flushed counts as stored");
    assert!(error.to_string().contains("flush thread has stopped"), "{error}");
    if let Err(error) = appended {
        assert!(
            error.to_string().contains(dir.path().to_str().unwrap()),
            "{error}"
        );
    }
    // It has come to its end, though not to a good one.
    log.no_flush_under_way().await;
    let error = log.save_vote(&vote(9, 9, false)).await.unwrap_err();
    assert!(
        error.to_string().contains(dir.path().to_str().unwrap()),
        "{error}"
    );
}

#[actix_rt::test]
async fn who_waits_for_the_flush_under_way_comes_behind_its_end() {
    let dir = TempDir::new().unwrap();
    let mut log = open(dir.path());
    log.no_flush_under_way().await;
    for i in 0..20 {
        let (callback, flushed) = TypeConfig::oneshot();
        log.append([batch(i, "x")], IOFlushed::signal(callback))
            .await
            .unwrap();
        log.no_flush_under_way().await;
        assert!(matches!(flushed.now_or_never(), Some(Ok(Ok(())))), "entry {i}");
    }
}

#[actix_rt::test]
async fn a_directory_is_used_once() {
    let dir = TempDir::new().unwrap();
    let _log = open(dir.path());
    assert!(LogStore::open(dir.path(), LogLimits::default()).is_err());
}

// --- golden bytes: what these pin down lies on the disks of running clusters ---

#[track_caller]
fn golden<T: Encode + Decode + std::fmt::Debug>(value: T, bytes: &[u8]) {
    let mut encoded = Vec::new();
    assert_eq!(value.encode(&mut encoded).unwrap(), bytes.len());
    assert_eq!(encoded, bytes);
    let decoded = T::decode(bytes).unwrap();
    assert_eq!(format!("{decoded:?}"), format!("{value:?}"));
    for length in 0..bytes.len() {
        let error = T::decode(&bytes[..length]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "cut at {length}");
    }
}

#[test]
fn log_ids_on_the_disk() {
    golden(
        DiskLogId::from(log_id(1, 0x0203, 0x0405_0607)),
        b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x02\x03\0\0\0\0\x04\x05\x06\x07",
    );
}

#[test]
fn votes_on_the_disk() {
    golden(
        DiskVote::from(vote(258, 3, true)),
        b"\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x03\x01",
    );
    golden(
        DiskVote::from(vote(1, 2, false)),
        b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0",
    );
}

#[test]
fn payloads_on_the_disk() {
    golden(DiskPayload::from(EntryPayload::Blank), b"\0\0\0\0\0");
    golden(DiskPayload::from(batch(0, "abc").payload), b"\x01\0\0\0\x03abc");
    let node = Node {
        name: "n".into(),
        raft_addr: "r:1".into(),
        grpc_addr: "g:2".into(),
    };
    let membership = Membership::new(vec![[5].into()], BTreeMap::from([(5, node)])).unwrap();
    golden(
        DiskPayload::from(EntryPayload::Membership(membership)),
        b"\x02\0\0\0\x18\x0a\x03\x0a\x01\x05\x12\x11\x08\x05\x12\x0d\x0a\x01n\x12\x03r:1\x1a\x03g:2",
    );
    let unknown = DiskPayload::decode(&b"\x09\0\0\0\0"[..]).unwrap_err();
    assert_eq!(unknown.kind(), std::io::ErrorKind::InvalidData);
}

#[actix_rt::test]
async fn whole_records_on_the_disk() {
    let dir = TempDir::new().unwrap();
    {
        let mut log = open(dir.path());
        log.save_vote(&vote(1, 2, true)).await.unwrap();
        log.blocking_append([batch(0, "abc")]).await.unwrap();
    }
    let bytes = fs::read(&chunks(dir.path())[0]).unwrap();
    let vote_record = b"\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\x01";
    let append_record = b"\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\x01\0\0\0\x03abc";
    for record in [&vote_record[..], append_record] {
        assert!(
            bytes.windows(record.len()).any(|window| window == record),
            "{bytes:02x?}"
        );
    }
}
