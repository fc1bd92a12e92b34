//! What becomes of blocks that nobody finalizes or owns, case by case: abandoned writes, and orphans
//! that are condemned.

use RefusalKind::{FailedPrecondition, NotFound};

use super::*;
use crate::domain::command::{Orphan, RefusalKind};
use crate::domain::ids::ID_LIMIT;
use crate::domain::state::{Entry, EntryKind, GarbageReason, WriteState};

fn is_open(storage: &Storage, first: u64) -> bool {
    run_at(storage, first).is_some_and(|owned| matches!(owned.write, WriteState::Open(_)))
}

fn condemn(orphans: &[(u64, &[u32])]) -> Op {
    let orphan = |(block, holders): &(u64, &[u32])| Orphan {
        block: BlockId(*block),
        holders: holders.iter().copied().map(ServerId).collect(),
    };
    Op::Condemn {
        orphans: orphans.iter().map(orphan).collect(),
    }
}

// --- Abandoned writes ---

#[test]
fn an_abandoned_plain_write_leaves_an_empty_file_without_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    apply(&mut storage, &[at(10, allocate("/f", 12, 4, &[1, 2]))]);
    let before = dump(&storage);
    let answer = apply(&mut storage, &[at(30, abandon(&[1]))]);
    assert_eq!(answer, [Ok(Outcome::WritesAbandoned { writes: 1 })]);
    assert_eq!(
        differences(&before, &dump(&storage)),
        [("entries", 1), ("runs", 1), ("garbage", 1), ("meta", 1)].into()
    );
    let entry = Entry {
        inode: InodeId(2),
        mtime_ms: 10,
        size: 0,
        kind: EntryKind::File {
            md5: String::new(),
            blocks: None,
        },
    };
    assert_eq!(find(&storage, "/f"), Some(entry));
    assert_eq!(garbage(&storage), [(1, 3, GarbageReason::Abandoned, 30)]);
    assert_eq!(counters(&storage).inodes, 2);
    assert_refused(
        &mut storage,
        vec![(
            finalize("/f", 2, 1),
            FailedPrecondition,
            "size 1 is beyond the 0 bytes allocated: /f",
        )],
    );
    apply_op(&mut storage, finalize("/f", 2, 0)).unwrap();
    apply_op(&mut storage, allocate("/f", 4, 4, &[1, 2])).unwrap();
    apply_op(&mut storage, finalize("/f", 2, 4)).unwrap();
    assert_eq!(garbage(&storage).len(), 1, "nothing was freed twice");
}

#[test]
fn an_abandoned_staged_write_leaves_nothing_but_garbage() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    for op in [
        allocate("/f", 4, 4, &[1, 2]),
        finalize("/f", 2, 4),
        stage("/f", 8, 4, &[1, 2]),
        stage("/g", 8, 4, &[1, 2]),
    ] {
        apply_op(&mut storage, op).unwrap();
    }
    let before = dump(&storage);
    let answer = apply(&mut storage, &[at(30, abandon(&[4, 2]))]);
    assert_eq!(answer, [Ok(Outcome::WritesAbandoned { writes: 2 })]);
    assert_eq!(
        differences(&before, &dump(&storage)),
        [("runs", 2), ("garbage", 2), ("meta", 1)].into()
    );
    assert_eq!(paths(&storage), ["/f"]);
    assert_refused(
        &mut storage,
        vec![(
            finalize_staged("/f", 3, 8, 2),
            NotFound,
            "no staged write of inode 3 begins with block 2: /f",
        )],
    );
}

#[test]
fn only_writes_that_are_still_open_are_abandoned() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    for op in [
        allocate("/full", 8, 4, &[1, 2]), // inode 2, blocks 1 and 2
        finalize("/full", 2, 8),
        stage("/staged", 4, 4, &[1, 2]), // inode 3, block 3
        finalize_staged("/staged", 3, 4, 3),
        allocate("/gone", 4, 4, &[1, 2]), // inode 4, block 4
        remove("/gone", false),
        allocate("/again", 4, 4, &[1, 2]), // inode 5, block 5
        allocate("/again", 8, 4, &[1, 2]), // inode 5, blocks 6 and 7
    ] {
        apply_op(&mut storage, op).unwrap();
    }
    let before = dump(&storage);
    // Finalized, gone, overwritten, no first block, never given out.
    for runs in [&[][..], &[1, 3, 4, 5, 7, 0, 99, u64::MAX]] {
        let answer = apply_op(&mut storage, abandon(runs));
        assert_eq!(answer, Ok(Outcome::WritesAbandoned { writes: 0 }));
        assert_eq!(differences(&before, &dump(&storage)), [("meta", 1)].into());
    }
    let answer = apply_op(&mut storage, abandon(&[6, 1, 6]));
    assert_eq!(answer, Ok(Outcome::WritesAbandoned { writes: 1 }), "once");
}

#[test]
fn a_write_below_a_deleted_directory_is_abandoned_or_reclaimed_whichever_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    for op in [
        mkdir("/d"),                     // inode 2
        allocate("/d/a", 4, 4, &[1, 2]), // block 1
        allocate("/d/b", 4, 4, &[1, 2]), // block 2
        remove("/d", true),
        mkdir("/d"),
        allocate("/d/a", 4, 4, &[1, 2]), // block 3: of the same path, and not meant
    ] {
        apply_op(&mut storage, op).unwrap();
    }
    assert_eq!(
        apply(&mut storage, &[at(50, abandon(&[1]))]),
        [Ok(Outcome::WritesAbandoned { writes: 1 })]
    );
    assert!(is_open(&storage, 3));
    apply(&mut storage, &[at(60, Op::Reclaim { limit: 100 })]);
    assert_eq!(
        apply_op(&mut storage, abandon(&[2])),
        Ok(Outcome::WritesAbandoned { writes: 0 })
    );
    assert_eq!(
        garbage(&storage),
        [
            (1, 1, GarbageReason::Abandoned, 50),
            (2, 1, GarbageReason::Deleted, 60)
        ]
    );
    assert!(is_open(&storage, 3));
    assert_eq!(counters(&storage).inodes, 3);
}

#[test]
fn replicas_of_open_writes_move_and_are_known_until_their_garbage_is_released() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    apply_op(&mut storage, stage("/f", 8, 4, &[1, 2])).unwrap();
    apply_op(&mut storage, move_replica(2, 1, 3)).unwrap();
    apply_op(&mut storage, abandon(&[1])).unwrap();
    let moved = |storage: &Storage| {
        let moved = storage.reader().read(|view| view.moved(BlockId(2)));
        moved.unwrap()
    };
    assert_eq!(moved(&storage), Some(vec![ServerId(2), ServerId(3)]));
    assert_refused(
        &mut storage,
        vec![(move_replica(2, 2, 1), NotFound, "no file owns block 2")],
    );
    apply_op(&mut storage, release(&[1])).unwrap();
    assert_eq!(moved(&storage), None);
    assert_eq!(garbage(&storage), []);
}

// --- Orphans ---

#[test]
fn only_blocks_that_were_given_out_and_that_no_record_names_are_condemned() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    for op in [
        allocate("/f", 12, 4, &[1, 2]), // blocks 1 to 3
        finalize("/f", 2, 12),
        stage("/g", 8, 4, &[1, 2]),     // blocks 4 and 5
        allocate("/h", 12, 4, &[1, 2]), // blocks 6 to 8
        move_replica(7, 1, 3),
        remove("/h", false),
        allocate("/i", 8, 4, &[1, 2]), // blocks 9 and 10, still open
    ] {
        apply_op(&mut storage, op).unwrap();
    }
    let before = dump(&storage);
    let none = Ok(Outcome::Condemned { blocks: 0 });
    for known in 1..=10 {
        let answer = apply_op(&mut storage, condemn(&[(known, &[1])]));
        assert_eq!(answer, none, "block {known}: a run or garbage contains it");
    }
    for never in [0, 11, 12, ID_LIMIT, u64::MAX] {
        let answer = apply_op(&mut storage, condemn(&[(never, &[1])]));
        assert_eq!(answer, none, "block {never} was never given out");
    }
    assert_eq!(apply_op(&mut storage, condemn(&[])), none);
    assert_eq!(differences(&before, &dump(&storage)), [("meta", 1)].into());

    apply_op(&mut storage, release(&[6])).unwrap();
    let before = dump(&storage);
    assert_eq!(
        apply_op(&mut storage, condemn(&[(7, &[])])),
        none,
        "nobody holds it"
    );
    assert_eq!(differences(&before, &dump(&storage)), [("meta", 1)].into());

    // Named twice, in no order, and with a holder named twice.
    let orphans = condemn(&[(8, &[2]), (1, &[1]), (7, &[3, 1, 3]), (8, &[1])]);
    assert_eq!(
        apply(&mut storage, &[at(90, orphans)]),
        [Ok(Outcome::Condemned { blocks: 2 })]
    );
    let orphaned = GarbageReason::Orphaned;
    assert_eq!(garbage(&storage), [(7, 1, orphaned, 90), (8, 1, orphaned, 90)]);
    let condemned = storage
        .reader()
        .read(|view| view.garbage(BlockId(7)))
        .unwrap()
        .unwrap();
    let holders: Vec<_> = condemned.run.placed(BlockId(7)).collect();
    assert_eq!(holders, [ServerId(1), ServerId(3)]);
    assert_eq!(
        apply_op(&mut storage, condemn(&[(7, &[2])])),
        none,
        "it is garbage now"
    );
    // Released, and seen again: condemned again.
    apply_op(&mut storage, release(&[7])).unwrap();
    assert_eq!(
        apply_op(&mut storage, condemn(&[(7, &[2])])),
        Ok(Outcome::Condemned { blocks: 1 })
    );
}

#[test]
fn the_next_allocation_never_gets_a_condemned_block() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    // A DataServer of another cluster reports numbers that this one has not reached.
    let foreign = condemn(&[(1, &[1]), (2, &[1])]);
    assert_eq!(
        apply_op(&mut storage, foreign.clone()),
        Ok(Outcome::Condemned { blocks: 0 })
    );
    let answer = apply_op(&mut storage, allocate("/f", 4, 4, &[1, 2]));
    assert_eq!(allocated(answer), (2, 1));
    assert_eq!(
        apply_op(&mut storage, foreign),
        Ok(Outcome::Condemned { blocks: 0 })
    );
    let answer = apply_op(&mut storage, allocate("/g", 4, 4, &[1, 2]));
    assert_eq!(allocated(answer), (3, 2));
    assert_eq!(garbage(&storage), []);
}
