//! The walks over the tables: the same from a reader's view and inside a batch, which sees what it has
//! changed itself.

use super::*;
use crate::domain::state::Tables;

/// What the walks find, as numbers.
fn runs_from<T: ReadTables<Error = StorageError>>(tables: &T, from: u64, limit: usize) -> Vec<u64> {
    let found = tables.runs_from(BlockId(from), limit).unwrap();
    found.iter().map(|owned| owned.run.first.0).collect()
}

fn garbage_from<T: ReadTables<Error = StorageError>>(tables: &T, from: u64, limit: usize) -> Vec<u64> {
    let found = tables.garbage_from(BlockId(from), limit).unwrap();
    found.iter().map(|garbage| garbage.run.first.0).collect()
}

fn garbage_of<T: ReadTables<Error = StorageError>>(tables: &T, block: u64) -> Option<u64> {
    let found = tables.garbage_of(BlockId(block)).unwrap();
    found.map(|garbage| garbage.run.first.0)
}

fn moved_in<T: ReadTables<Error = StorageError>>(tables: &T, first: u64, count: u64) -> Vec<(u64, Vec<u32>)> {
    let found = tables.moved_in(BlockId(first), count).unwrap();
    found
        .into_iter()
        .map(|(block, servers)| (block.0, servers.into_iter().map(|server| server.0).collect()))
        .collect()
}

/// Runs at 1 (3 blocks), 256 (2) and 258 (1), garbage at 4 (252) and 259 (2); 2, 255, 256 and 260
/// moved. The numbers pass a byte's end, where keys that were not big-endian would be out of order.
fn filled(dir: &Path) -> Storage {
    let mut storage = with_servers(dir);
    for op in [
        allocate("/a", 3, 1, &[1, 2]),
        allocate("/b", 252, 1, &[1, 2]),
        stage("/c", 2, 1, &[1, 2]),
        allocate("/d", 1, 1, &[1, 2]),
        finalize("/d", 5, 1),
        allocate("/e", 2, 1, &[1, 2]),
        move_replica(2, 1, 3),
        move_replica(255, 2, 3),
        move_replica(256, 1, 3),
        move_replica(260, 1, 3),
        remove("/b", false),
        remove("/e", false),
    ] {
        apply_op(&mut storage, op).unwrap();
    }
    storage
}

fn assert_scans<T: ReadTables<Error = StorageError>>(tables: &T) {
    let all = usize::MAX;
    for (from, limit, expected) in [
        (0, all, &[1, 256, 258][..]),
        (1, all, &[1, 256, 258]),
        (2, all, &[256, 258]), // from the first that starts there, not the one that it lies in
        (256, all, &[256, 258]),
        (257, all, &[258]),
        (259, all, &[]),
        (u64::MAX, all, &[]),
        (0, 0, &[]),
        (0, 1, &[1]),
        (2, 1, &[256]),
        (0, 2, &[1, 256]),
        (0, 3, &[1, 256, 258]),
    ] {
        assert_eq!(
            runs_from(tables, from, limit),
            expected,
            "runs from {from}, {limit}"
        );
    }
    for (from, limit, expected) in [
        (0, all, &[4, 259][..]),
        (4, all, &[4, 259]),
        (5, all, &[259]),
        (259, all, &[259]),
        (260, all, &[]),
        (u64::MAX, all, &[]),
        (0, 0, &[]),
        (0, 1, &[4]),
        (5, 1, &[259]),
    ] {
        assert_eq!(
            garbage_from(tables, from, limit),
            expected,
            "garbage from {from}, {limit}"
        );
    }
    for (block, expected) in [
        (0, None),
        (1, None),
        (3, None),
        (4, Some(4)),
        (5, Some(4)),
        (255, Some(4)),
        (256, None),
        (258, None),
        (259, Some(259)),
        (260, Some(259)),
        (261, None),
        (u64::MAX, None),
    ] {
        assert_eq!(garbage_of(tables, block), expected, "garbage of {block}");
        let run = tables.run_of(BlockId(block)).unwrap();
        let expected = match block {
            1..=3 => Some(1),
            256 | 257 => Some(256),
            258 => Some(258),
            _ => None,
        };
        assert_eq!(run.map(|owned| owned.run.first.0), expected, "run of {block}");
    }
    let two = || (2, vec![2, 3]);
    let (garbage, staged, last) = ((255, vec![3, 1]), (256, vec![3, 2]), (260, vec![2, 3]));
    let every = vec![two(), garbage.clone(), staged.clone(), last.clone()];
    for (first, count, expected) in [
        (0, u64::MAX, every.clone()),
        (0, 261, every),
        (1, 3, vec![two()]),
        (2, 1, vec![two()]),
        (2, 0, vec![]),
        (1, 1, vec![]),
        (3, 252, vec![]),
        (3, 253, vec![garbage.clone()]),
        (255, 2, vec![garbage, staged]),
        (257, 3, vec![]),
        // Beyond the last number that there is.
        (260, u64::MAX, vec![last]),
        (261, u64::MAX, vec![]),
        (u64::MAX, u64::MAX, vec![]),
    ] {
        assert_eq!(
            moved_in(tables, first, count),
            expected,
            "moved in {count} from {first}"
        );
    }
}

#[test]
fn readers_and_batches_walk_the_same_way() {
    let dir = tempfile::tempdir().unwrap();
    let storage = filled(dir.path());
    storage
        .reader()
        .read(|view| {
            assert_scans(view);
            Ok(())
        })
        .unwrap();
    meddle(&storage, |txn| {
        assert_scans(txn);
        Ok(())
    });
}

#[test]
fn walks_over_a_new_state_find_nothing() {
    fn assert_nothing<T: ReadTables<Error = StorageError>>(tables: &T) {
        assert_eq!(runs_from(tables, 0, usize::MAX), [0; 0]);
        assert_eq!(garbage_from(tables, 0, usize::MAX), [0; 0]);
        assert_eq!(garbage_of(tables, 1), None);
        assert_eq!(moved_in(tables, 0, u64::MAX), []);
    }
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    storage
        .reader()
        .read(|view| {
            assert_nothing(view);
            Ok(())
        })
        .unwrap();
    meddle(&storage, |txn| {
        assert_nothing(txn);
        Ok(())
    });
}

#[test]
fn a_batch_walks_over_its_own_changes_and_readers_do_not_before_it_commits() {
    let dir = tempfile::tempdir().unwrap();
    let storage = filled(dir.path());
    let reader = storage.reader();
    meddle(&storage, |txn| {
        txn.remove_run(BlockId(1))?;
        let mut run = txn.run(BlockId(258))?.unwrap();
        run.run.first = BlockId(300);
        txn.put_run(&run)?;
        let mut garbage = txn.garbage(BlockId(259))?.unwrap();
        txn.remove_garbage(BlockId(259))?;
        garbage.run.first = BlockId(400);
        txn.put_garbage(&garbage)?;
        txn.remove_moved(BlockId(3), 254)?;
        txn.put_moved(BlockId(400), &[ServerId(1)])?;
        assert_eq!(runs_from(txn, 0, usize::MAX), [256, 258, 300]);
        assert_eq!(garbage_from(txn, 0, usize::MAX), [4, 400]);
        assert_eq!((garbage_of(txn, 260), garbage_of(txn, 401)), (None, Some(400)));
        let moved = [(2, vec![2, 3]), (260, vec![2, 3]), (400, vec![1])];
        assert_eq!(moved_in(txn, 0, u64::MAX), moved);
        reader.read(|view| {
            assert_scans(view);
            Ok(())
        })
    });
    let runs = reader.read(|view| Ok(runs_from(view, 0, usize::MAX)));
    assert_eq!(runs.unwrap(), [256, 258, 300]);
}
