use std::path::PathBuf;

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// The files aside, which nobody has finished.
fn unfinished(dir: &Path) -> usize {
    fs::read_dir(dir.join("tmp")).unwrap().count()
}

fn open(dir: &TempDir) -> BlockStore {
    BlockStore::open(dir.path(), Some(0)).unwrap()
}

fn put(store: &BlockStore, id: u64, data: &[u8]) {
    let mut writer = store.write(BlockId(id), data.len() as u64).unwrap();
    writer.append(&[Bytes::copy_from_slice(data)]).unwrap();
    writer.finish().unwrap();
}

fn get(store: &BlockStore, id: u64) -> Result<Vec<u8>, ReadError> {
    let mut reader = store.read(BlockId(id))?;
    let mut data = Vec::new();
    loop {
        let pieces = reader.next(100_000)?;
        if pieces.is_empty() {
            assert_eq!(data.len() as u64, reader.length());
            return Ok(data);
        }
        assert!(pieces.iter().all(|piece| piece.len() <= CHUNK));
        data.extend(pieces.concat());
    }
}

/// Where a good block lies.
fn file(dir: &TempDir, id: u64) -> PathBuf {
    Layout::new(dir.path()).file(BlockId(id), Kind::Good)
}

fn inventory(good: &[u64], corrupt: &[u64]) -> Inventory {
    Inventory {
        good: good.to_vec(),
        corrupt: corrupt.to_vec(),
    }
}

/// Bytes that differ from place to place.
fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed)
        .collect()
}

#[test]
fn what_is_written_is_read() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let sizes = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 4 << 20];
    for (id, size) in (1..).zip(sizes) {
        put(&store, id, &bytes(size, 0));
    }
    let check = |store: &BlockStore| {
        for (id, size) in (1..).zip(sizes) {
            assert_eq!(get(store, id).unwrap(), bytes(size, 0), "{size} bytes");
        }
        assert_eq!(store.inventory(), inventory(&[1, 2, 3, 4, 5, 6], &[]));
        assert_eq!(store.counts(), (6, 0));
    };
    check(&store);
    store.close();
    assert!(matches!(get(&store, 2), Err(ReadError::Io { .. })));
    check(&open(&dir));
    assert_eq!(unfinished(dir.path()), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However the data are cut, and however they are read.
    #[test]
    fn any_size_in_any_pieces(
        pieces in prop::collection::vec(prop::collection::vec(0_usize..90_000, 0..4), 0..5),
        limit in 1_usize..300_000,
    ) {
        let dir = TempDir::new().unwrap();
        let store = open(&dir);
        let mut writer = store.write(BlockId(9), 0).unwrap();
        let mut expected = Vec::new();
        for batch in pieces {
            let batch: Vec<Bytes> = batch.into_iter().map(|size| bytes(size, expected.len() as u8).into()).collect();
            expected.extend(batch.concat());
            writer.append(&batch).unwrap();
        }
        prop_assert_eq!(writer.length(), expected.len() as u64);
        writer.finish().unwrap();
        let mut reader = store.read(BlockId(9)).unwrap();
        let mut found = Vec::new();
        loop {
            let pieces = reader.next(limit).unwrap();
            if pieces.is_empty() {
                break;
            }
            found.extend(pieces.concat());
        }
        prop_assert!(found == expected);
    }

    /// One wrong byte anywhere in the file: the data of a damaged chunk never come out.
    #[test]
    fn a_wrong_byte_is_never_served(size in 1_usize..200_000, at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let dir = TempDir::new().unwrap();
        let store = open(&dir);
        put(&store, 5, &bytes(size, 1));
        let path = file(&dir, 5);
        let mut content = fs::read(&path).unwrap();
        let at = at.index(content.len());
        content[at] ^= 1_u8 << bit;
        fs::write(&path, content).unwrap();
        prop_assert!(matches!(get(&store, 5), Err(ReadError::Damaged { .. })), "byte {}", at);
        prop_assert_eq!(store.counts(), (0, 1));
    }
}

#[test]
fn every_byte_of_a_footer_counts() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let data = bytes(CHUNK + 10, 3);
    put(&store, 5, &data);
    let whole = fs::read(file(&dir, 5)).unwrap();
    assert_eq!(whole.len() as u64, footer::file_size(data.len() as u64));
    for at in data.len()..whole.len() {
        let mut content = whole.clone();
        content[at] ^= 0x10;
        fs::write(file(&dir, 5), content).unwrap();
        assert!(
            matches!(get(&store, 5), Err(ReadError::Damaged { .. })),
            "byte {at}"
        );
        assert_eq!(store.inventory(), inventory(&[], &[5]));
        assert!(matches!(get(&store, 5), Err(ReadError::Corrupt(BlockId(5)))));
        put(&store, 5, &data);
        assert_eq!(store.inventory(), inventory(&[5], &[]));
    }
}

#[test]
fn a_file_of_another_size_is_damaged() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let data = bytes(100_000, 0);
    put(&store, 5, &data);
    let whole = fs::read(file(&dir, 5)).unwrap();
    let mut sizes = vec![0, 1, 35, 36, 50_000, 99_999, 100_000, whole.len() - 1];
    sizes.extend([whole.len() + 1, whole.len() + CHUNK]);
    for size in sizes {
        let mut content = whole.clone();
        content.resize(size, 0);
        fs::write(file(&dir, 5), content).unwrap();
        assert!(
            matches!(get(&store, 5), Err(ReadError::Damaged { .. })),
            "{size} bytes"
        );
        put(&store, 5, &data);
    }
    // The footer is whole, but something is missing or too much before it.
    for content in [&whole[1..], &[&[0], &whole[..]].concat()] {
        fs::write(file(&dir, 5), content).unwrap();
        let error = get(&store, 5).unwrap_err().to_string();
        assert!(error.contains("bytes instead of"), "{error}");
        put(&store, 5, &data);
    }
}

#[test]
fn a_block_under_another_name_is_damaged() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    put(&store, 5, b"five");
    put(&store, 6, b"six");
    fs::copy(file(&dir, 5), file(&dir, 6)).unwrap();
    let error = get(&store, 6).unwrap_err();
    assert_eq!(error.to_string(), "block 6 is damaged: it holds block 5");
    assert_eq!(get(&store, 5).unwrap(), b"five");
}

#[test]
fn a_restart_remembers_what_is_damaged() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    for id in 1..=4 {
        put(&store, id, &bytes(10, id as u8));
    }
    for id in 2..=4 {
        let mut content = fs::read(file(&dir, id)).unwrap();
        content[0] ^= 1;
        fs::write(file(&dir, id), content).unwrap();
        get(&store, id).unwrap_err();
    }
    store.close();
    let store = open(&dir);
    assert_eq!(store.inventory(), inventory(&[1], &[2, 3, 4]));
    assert!(matches!(get(&store, 2), Err(ReadError::Corrupt(_))));
    assert!(!store.has(BlockId(2)) && store.has(BlockId(1)));
    // A good copy takes the damaged one's place; a delete removes it.
    put(&store, 3, b"new");
    assert!(store.delete(BlockId(4)).unwrap());
    store.close();
    let store = open(&dir);
    assert_eq!(store.inventory(), inventory(&[1, 3], &[2]));
    assert_eq!(get(&store, 3).unwrap(), b"new");
}

#[test]
fn a_crash_between_a_good_block_and_the_removal_of_the_damaged_one() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    put(&store, 5, b"good");
    store.close();
    let damaged = file(&dir, 5).with_extension("corrupt");
    fs::write(&damaged, b"bad").unwrap();
    let store = open(&dir);
    assert_eq!(store.inventory(), inventory(&[5], &[]));
    assert_eq!(get(&store, 5).unwrap(), b"good");
    assert!(!damaged.exists());
}

#[test]
fn what_is_not_finished_leaves_no_trace() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    put(&store, 5, b"old");
    for append in [false, true] {
        let mut writer = store.write(BlockId(5), 10).unwrap();
        if append {
            writer.append(&[Bytes::from_static(b"new")]).unwrap();
        }
        assert_eq!(unfinished(dir.path()), 1);
        drop(writer);
        assert_eq!(unfinished(dir.path()), 0);
    }
    assert_eq!(get(&store, 5).unwrap(), b"old");
    // A crash runs no destructors; the next start does their work.
    let mut writer = store.write(BlockId(6), 10).unwrap();
    writer.append(&[Bytes::from_static(b"new")]).unwrap();
    std::mem::forget(writer);
    store.close();
    let store = open(&dir);
    assert_eq!(unfinished(dir.path()), 0);
    assert_eq!(store.inventory(), inventory(&[5], &[]));
}

#[test]
fn a_block_is_replaced_at_once_or_not_at_all() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let (old, new) = (bytes(300_000, 1), bytes(200_000, 2));
    put(&store, 5, &old);
    let mut early = store.read(BlockId(5)).unwrap();
    let first = early.next(CHUNK).unwrap().concat();
    put(&store, 5, &new);
    assert_eq!(get(&store, 5).unwrap(), new);
    // Whoever was reading goes on with what it began, also when the block is deleted.
    assert!(store.delete(BlockId(5)).unwrap());
    let rest = early.next(usize::MAX).unwrap().concat();
    assert_eq!([first, rest].concat(), old);
    assert!(matches!(get(&store, 5), Err(ReadError::Missing(BlockId(5)))));
    assert!(!store.delete(BlockId(5)).unwrap());
}

#[test]
fn writes_of_one_block_do_not_mix() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for _ in 0..5 {
                    let mut writer = store.write(BlockId(5), 0).unwrap();
                    for _ in 0..10 {
                        writer
                            .append(&[vec![seed; 10_000 + usize::from(seed)].into()])
                            .unwrap();
                    }
                    writer.finish().unwrap();
                    let found = get(store, 5).unwrap();
                    assert!(found.iter().all(|byte| *byte == found[0]));
                    assert_eq!(found.len(), 100_000 + 10 * usize::from(found[0]));
                }
            });
        }
    });
    assert_eq!(store.inventory(), inventory(&[5], &[]));
    assert_eq!(unfinished(dir.path()), 0);
}

#[test]
fn a_damaged_block_that_was_replaced_meanwhile_stays() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    put(&store, 5, &bytes(300_000, 1));
    let mut content = fs::read(file(&dir, 5)).unwrap();
    content[200_000] ^= 1;
    fs::write(file(&dir, 5), content).unwrap();
    let mut reader = store.read(BlockId(5)).unwrap();
    put(&store, 5, b"good");
    assert!(matches!(reader.next(usize::MAX), Err(ReadError::Damaged { .. })));
    assert_eq!(store.inventory(), inventory(&[5], &[]));
    assert_eq!(get(&store, 5).unwrap(), b"good");
}

#[test]
fn a_rescan_sees_what_others_did() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    for id in 1..=6 {
        put(&store, id << 8, &bytes(1000, id as u8));
    }
    assert_eq!(store.rescan().unwrap(), Rescanned::default());
    let mut changes = store.changes();
    changes.borrow_and_update();

    fs::remove_file(file(&dir, 1 << 8)).unwrap();
    fs::remove_dir_all(file(&dir, 2 << 8).parent().unwrap()).unwrap();
    fs::write(file(&dir, 3 << 8), b"short").unwrap();
    // The data of a block that has another name, and one that nobody knew of.
    fs::write(file(&dir, (4 << 8) + 1), fs::read(file(&dir, 4 << 8)).unwrap()).unwrap();
    let elsewhere = TempDir::new().unwrap();
    put(&open(&elsewhere), (5 << 8) + 1, b"put here by hand");
    fs::copy(file(&elsewhere, (5 << 8) + 1), file(&dir, (5 << 8) + 1)).unwrap();
    fs::write(dir.path().join("blocks/readme.txt"), b"no block").unwrap();
    fs::write(dir.path().join("blocks/00/04/06.dat"), b"no block").unwrap();

    let found = Rescanned {
        vanished: 2,
        appeared: 1,
        damaged: 2,
    };
    assert_eq!(store.rescan().unwrap(), found);
    assert!(changes.has_changed().unwrap());
    let expected = inventory(&[4 << 8, 5 << 8, (5 << 8) + 1, 6 << 8], &[3 << 8, (4 << 8) + 1]);
    assert_eq!(store.inventory(), expected);
    assert_eq!(get(&store, (5 << 8) + 1).unwrap(), b"put here by hand");
    assert_eq!(store.rescan().unwrap(), Rescanned::default());

    // What was set aside is removed by hand, and a good file put in a damaged block's place.
    fs::remove_file(file(&dir, (4 << 8) + 1).with_extension("corrupt")).unwrap();
    let again = TempDir::new().unwrap();
    put(&open(&again), 3 << 8, b"good again");
    fs::copy(file(&again, 3 << 8), file(&dir, 3 << 8)).unwrap();
    store.rescan().unwrap();
    let expected = inventory(&[3 << 8, 4 << 8, 5 << 8, (5 << 8) + 1, 6 << 8], &[]);
    assert_eq!(store.inventory(), expected);
    store.close();
    assert_eq!(open(&dir).inventory(), expected);
}

#[test]
fn the_first_rescan_after_a_start_reads_the_footers() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    for id in 1..=3 {
        put(&store, id, &bytes(100_000, 0));
    }
    store.close();
    let path = file(&dir, 2);
    let content = fs::read(&path).unwrap();
    fs::write(&path, &content[..50_000]).unwrap();
    fs::write(file(&dir, 3), b"not even a footer").unwrap();
    let store = open(&dir);
    // A start looks at sizes alone.
    assert_eq!(store.inventory(), inventory(&[1, 2], &[3]));
    assert_eq!(store.rescan().unwrap().damaged, 1);
    assert_eq!(store.inventory(), inventory(&[1], &[2, 3]));
}

#[test]
fn a_reader_notices_that_a_file_is_gone() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    put(&store, 5, b"five");
    let mut changes = store.changes();
    changes.borrow_and_update();
    fs::remove_file(file(&dir, 5)).unwrap();
    assert!(matches!(get(&store, 5), Err(ReadError::Missing(_))));
    assert_eq!(store.counts(), (0, 0));
    assert!(changes.has_changed().unwrap());
}

#[test]
fn only_news_are_told() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let mut changes = store.changes();
    let mut changed = || {
        let changed = changes.has_changed().unwrap();
        changes.borrow_and_update();
        changed
    };
    put(&store, 5, b"five");
    assert!(changed());
    put(&store, 5, b"five, again");
    assert!(!changed());
    store.delete(BlockId(5)).unwrap();
    assert!(changed());
    store.delete(BlockId(5)).unwrap();
    assert!(!changed());
}

#[test]
fn a_disk_that_is_nearly_full_takes_nothing() {
    let dir = TempDir::new().unwrap();
    let store = BlockStore::open(dir.path(), Some(u64::MAX)).unwrap();
    assert_eq!(store.space().unwrap().free, 0);
    let error = store.write(BlockId(5), 1).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(error.to_string().contains("nearly full"), "{error}");
    // One whose size nobody told, and that goes on and on.
    store.close();
    let store = open(&dir);
    let room = store.space().unwrap().free;
    store.close();
    let store = BlockStore::open(dir.path(), Some(room.saturating_sub(8 << 20))).unwrap();
    let mut writer = store.write(BlockId(5), 0).unwrap();
    let piece = [Bytes::from(vec![0; 1 << 20])];
    let error = (0..64).find_map(|_| writer.append(&piece).err()).unwrap();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    drop(writer);
    assert_eq!((unfinished(dir.path()), store.counts()), (0, (0, 0)));
}

#[test]
fn one_process_has_the_directory() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let error = BlockStore::open(dir.path(), None).unwrap_err().to_string();
    let expected = format!(
        "data directory {} is in use by process {}",
        dir.path().display(),
        std::process::id()
    );
    assert_eq!(error, expected);
    let mut late = store.write(BlockId(5), 4).unwrap();
    late.append(&[Bytes::from_static(b"late")]).unwrap();
    store.close();
    let next = open(&dir);
    assert!(late.finish().unwrap_err().to_string().contains("stopping"));
    assert_eq!(next.counts(), (0, 0));
}

#[test]
fn the_scrubbers_way_leads_through_all_good_blocks() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    for id in [3, 7, 70_000] {
        put(&store, id, b"x");
    }
    fs::write(file(&dir, 7), b"short").unwrap();
    get(&store, 7).unwrap_err();
    let way: Vec<_> =
        std::iter::successors(store.next_after(BlockId(0)), |last| store.next_after(*last)).collect();
    assert_eq!(way, [BlockId(3), BlockId(70_000)]);
    assert_eq!(store.next_after(BlockId(u64::MAX)), None);
}
