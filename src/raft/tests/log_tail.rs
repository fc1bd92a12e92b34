//! Where a log that a crash left behind is cut off, and where it is refused.

use std::fs;
use std::path::{Path, PathBuf};

use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use super::{batch, log_id};
use crate::raft::log_store::{LogLimits, LogStore};
use crate::raft::log_tail::{chunks, cut_unfinished_write};
use crate::raft::types::{Entry, LeaderId, Vote};

fn open(dir: &Path) -> LogStore {
    LogStore::open(dir, limits()).unwrap()
}

fn limits() -> LogLimits {
    LogLimits {
        chunk_records: 40,
        ..LogLimits::default()
    }
}

fn refusal(dir: &Path) -> String {
    match LogStore::open(dir, limits()) {
        Ok(_) => panic!("the log was opened"),
        Err(error) => error.to_string(),
    }
}

fn newest(dir: &Path) -> PathBuf {
    chunks(dir).unwrap().pop().unwrap()
}

fn vote(term: u64) -> Vote {
    Vote {
        leader_id: LeaderId { term, node_id: 1 },
        committed: false,
    }
}

fn entry(index: u64) -> Entry {
    batch(index, format!("entry {index} ").repeat(12))
}

/// One request after the other, each followed by its commit.
async fn write(log: &mut LogStore, indexes: std::ops::Range<u64>) {
    for index in indexes {
        log.blocking_append([entry(index)]).await.unwrap();
        log.save_committed(Some(log_id(1, 1, index))).await.unwrap();
    }
}

async fn entries(dir: &Path) -> Vec<Entry> {
    open(dir).try_get_log_entries(..).await.unwrap()
}

#[actix_rt::test]
async fn no_damaged_byte_makes_a_log_shorter() {
    let dir = TempDir::new().unwrap();
    {
        let mut log = open(dir.path());
        log.save_vote(&vote(1)).await.unwrap();
        write(&mut log, 0..4).await;
        log.blocking_append([entry(4), entry(5), entry(6)]).await.unwrap();
        log.save_vote(&vote(2)).await.unwrap();
        log.blocking_append([entry(7)]).await.unwrap();
    }
    let file = newest(dir.path());
    let flushed = fs::metadata(&file).unwrap().len();
    {
        let mut log = open(dir.path());
        log.save_committed(Some(log_id(1, 1, 7))).await.unwrap();
        log.blocking_append([entry(8)]).await.unwrap();
    }
    let good = fs::read(&file).unwrap();
    assert!(good.len() as u64 > flushed);
    let mut refused = 0;
    for at in 0..good.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            fs::write(&file, &bad).unwrap();
            match cut_unfinished_write(dir.path()) {
                Ok(()) => {
                    let left = fs::metadata(&file).unwrap().len();
                    assert!(
                        (flushed..good.len() as u64).contains(&left),
                        "byte {at} ^ {flip}: {left} bytes are left"
                    );
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
                }
            }
        }
    }
    assert!(refused >= 3 * flushed as usize);
}

#[actix_rt::test]
async fn a_log_is_cut_behind_the_last_whole_record() {
    let dir = TempDir::new().unwrap();
    write(&mut open(dir.path()), 0..3).await;
    let file = newest(dir.path());
    let before = fs::metadata(&file).unwrap().len() as usize;
    open(dir.path()).blocking_append([entry(3)]).await.unwrap();
    let good = fs::read(&file).unwrap();
    for left in before..good.len() {
        // The rest was never written, or it reads as zeros.
        for length in [left, good.len(), good.len() + 70_000] {
            let mut bytes = good[..left].to_vec();
            bytes.resize(length, 0);
            fs::write(&file, &bytes).unwrap();
            // A checksum may end in zeros that were not written.
            let whole = length >= good.len() && bytes[..good.len()] == good;
            let expected = if whole { good.len() } else { before };
            match length < good.len() || left % 512 == 0 || length > good.len() || whole {
                true => cut_unfinished_write(dir.path()).unwrap(),
                // Zeros in the middle of a sector: no disk leaves that behind.
                false => {
                    let _ = cut_unfinished_write(dir.path());
                    continue;
                }
            }
            assert_eq!(
                fs::metadata(&file).unwrap().len() as usize,
                expected,
                "{left}, {length}"
            );
        }
    }
    assert_eq!(entries(dir.path()).await, (0..3).map(entry).collect::<Vec<_>>());
}

#[actix_rt::test]
async fn a_write_of_which_some_sectors_are_missing_is_cut_off() {
    for seed in 0..150 {
        let dir = TempDir::new().unwrap();
        let mut random = StdRng::seed_from_u64(seed);
        let flushed = random.random_range(1..45);
        {
            let mut log = open(dir.path());
            write(&mut log, 0..flushed).await;
        }
        let file = newest(dir.path());
        let before = fs::metadata(&file).unwrap().len() as usize;
        {
            let mut log = open(dir.path());
            log.save_committed(Some(log_id(1, 1, flushed - 1))).await.unwrap();
            let many = flushed..flushed + random.random_range(1..12);
            log.blocking_append(many.map(entry)).await.unwrap();
        }
        if newest(dir.path()) != file {
            continue;
        }
        let mut bytes = fs::read(&file).unwrap();
        let length = bytes.len();
        let mut missing = false;
        for sector in before / 512..length.div_ceil(512) {
            if random.random_bool(0.4) {
                let (from, to) = (before.max(sector * 512), length.min((sector + 1) * 512));
                bytes[from..to].fill(0);
                missing = true;
            }
        }
        fs::write(&file, &bytes).unwrap();
        let left = entries(dir.path()).await;
        assert_eq!(
            left,
            (0..left.len() as u64).map(entry).collect::<Vec<_>>(),
            "seed {seed}"
        );
        assert!(left.len() as u64 >= flushed, "seed {seed}");
        assert!(
            !missing || fs::metadata(&file).unwrap().len() < length as u64,
            "seed {seed}"
        );
        // And it goes on.
        let next = left.len() as u64;
        write(&mut open(dir.path()), next..next + 3).await;
        assert_eq!(entries(dir.path()).await.len() as u64, next + 3, "seed {seed}");
    }
}

#[actix_rt::test]
async fn zeros_before_what_was_flushed_later_are_refused() {
    let dir = TempDir::new().unwrap();
    write(&mut open(dir.path()), 0..15).await;
    let file = newest(dir.path());
    let good = fs::read(&file).unwrap();
    let sectors = good.len() / 512;
    assert!(sectors > 4);
    for sector in 0..sectors - 1 {
        let mut bad = good.clone();
        bad[sector * 512..(sector + 1) * 512].fill(0);
        fs::write(&file, &bad).unwrap();
        let message = refusal(dir.path());
        assert!(message.contains(file.to_str().unwrap()), "{message}");
        assert!(message.contains("move its data directory away"), "{message}");
        assert_eq!(fs::read(&file).unwrap(), bad, "it was changed");
    }
}

#[actix_rt::test]
async fn damage_in_an_older_file_is_refused_wherever_it_is() {
    let dir = TempDir::new().unwrap();
    write(&mut open(dir.path()), 0..60).await;
    let file = chunks(dir.path()).unwrap().remove(1);
    let good = fs::read(&file).unwrap();
    for change in [
        good[..good.len() - 3].to_vec(),
        Vec::new(),
        [good.as_slice(), &[0; 100]].concat(),
        [&good[..100], &[7], &good[101..]].concat(),
    ] {
        fs::write(&file, &change).unwrap();
        let message = refusal(dir.path());
        assert!(message.contains(dir.path().to_str().unwrap()), "{message}");
        assert!(message.contains("move its data directory away"), "{message}");
        assert_eq!(fs::read(&file).unwrap(), change, "it was changed");
    }
    fs::write(&file, &good).unwrap();
    drop(open(dir.path()));
}

#[actix_rt::test]
async fn a_missing_file_is_noticed() {
    let dir = TempDir::new().unwrap();
    {
        let mut log = open(dir.path());
        write(&mut log, 0..90).await;
        log.purge(log_id(1, 1, 30)).await.unwrap();
    }
    drop(open(dir.path()));
    let files = chunks(dir.path()).unwrap();
    for missing in [0, 1] {
        let aside = dir.path().join("aside");
        fs::rename(&files[missing], &aside).unwrap();
        let message = refusal(dir.path());
        assert!(message.contains("move its data directory away"), "{message}");
        fs::rename(&aside, &files[missing]).unwrap();
    }
    assert_eq!(entries(dir.path()).await.len(), 59);
}

#[actix_rt::test]
async fn a_file_that_was_just_begun_may_have_nothing_in_it() {
    let dir = TempDir::new().unwrap();
    let mut index = 0;
    while chunks(dir.path()).unwrap().len() < 2 {
        write(&mut open(dir.path()), index..index + 1).await;
        index += 1;
    }
    let file = newest(dir.path());
    let begun = fs::read(&file).unwrap();
    for left in [
        Vec::new(),
        vec![0; begun.len()],
        begun[..begun.len() / 2].to_vec(),
        begun[..1].to_vec(),
    ] {
        fs::write(&file, &left).unwrap();
        assert_eq!(entries(dir.path()).await.len() as u64, index);
    }
    write(&mut open(dir.path()), index..index + 2).await;
    assert_eq!(entries(dir.path()).await.len() as u64, index + 2);
}
