//! Writing, case by case: what staged and plain writes do to the tables, and what they refuse.

use RefusalKind::{FailedPrecondition, InvalidArgument, NotFound};

use super::*;
use crate::domain::command::RefusalKind;
use crate::domain::ids::ID_LIMIT;
use crate::domain::state::{Entry, EntryKind, GarbageReason, OpenWrite, Tables, WriteState};

// --- Staged allocations ---

#[test]
fn a_staged_allocation_touches_nothing_but_its_run_and_the_counters() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    for op in [
        mkdir("/d"),
        touch("/d/empty"),
        allocate("/d/open", 8, 4, &[1, 2]),
        allocate("/d/full", 8, 4, &[1, 2]),
        finalize("/d/full", 5, 8),
    ] {
        apply_op(&mut storage, op).unwrap();
    }
    for (name, inode, first) in [
        ("missing", 6, 5),
        ("empty", 7, 8),
        ("open", 8, 11),
        ("full", 9, 14),
        ("full", 10, 17),
    ] {
        let (before, old) = (dump(&storage), counters(&storage));
        let answer = apply(
            &mut storage,
            &[at(5_000, stage(&format!("/d/{name}"), 9, 4, &[3, 1]))],
        );
        assert_eq!(allocated(answer[0].clone()), (inode, first), "{name}");
        assert_eq!(
            differences(&before, &dump(&storage)),
            [("runs", 1), ("meta", 2)].into(), // counters and applied index
            "{name}"
        );
        let expected = Counters {
            next_inode: inode + 1,
            next_block: first + 3,
            ..old
        };
        assert_eq!(counters(&storage), expected, "not counted among the inodes");
        let owned = run_at(&storage, first).unwrap();
        assert_eq!((owned.inode, owned.run.count), (InodeId(inode), 3));
        let open = OpenWrite {
            since_ms: 5_000,
            parent: InodeId(2),
            name: name.to_owned(),
            staged: true,
        };
        assert_eq!(owned.write, WriteState::Open(open));
    }
}

#[test]
fn a_staged_allocation_is_refused_where_no_file_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    apply_op(&mut storage, mkdir("/d")).unwrap();
    apply_op(&mut storage, touch("/f")).unwrap();
    let unplanned = Op::Allocate {
        path: path("/g"),
        size: 1,
        plan: None,
        staged: true,
    };
    assert_refused(
        &mut storage,
        vec![
            (stage("/", 1, 4, &[1, 2]), FailedPrecondition, "is a directory: /"),
            (
                stage("/d", 1, 4, &[1, 2]),
                FailedPrecondition,
                "is a directory: /d",
            ),
            (
                stage("/x/y", 1, 4, &[1, 2]),
                NotFound,
                "parent directory not found: /x",
            ),
            (
                stage("/f/y", 1, 4, &[1, 2]),
                FailedPrecondition,
                "not a directory: /f",
            ),
            (
                stage("/g", 0, 4, &[1, 2]),
                InvalidArgument,
                "allocation of 0 bytes without a sound plan: /g",
            ),
            (
                stage("/g", 1, 4, &[1, 1]),
                InvalidArgument,
                "allocation of 1 bytes without a sound plan: /g",
            ),
            (
                unplanned,
                InvalidArgument,
                "allocation of 1 bytes without a sound plan: /g",
            ),
        ],
    );
    let set = |storage: &Storage, next_inode, next_block| {
        meddle(storage, |txn| {
            let counters = txn.counters()?;
            txn.put_counters(Counters {
                next_inode,
                next_block,
                ..counters
            })
        });
    };
    set(&storage, ID_LIMIT, 1);
    let used_up = (stage("/f", 1, 4, &[1, 2]), "inode numbers are used up");
    assert_refused(&mut storage, vec![(used_up.0, FailedPrecondition, used_up.1)]);
    set(&storage, ID_LIMIT - 1, ID_LIMIT - 3);
    let used_up = (stage("/f", 12, 4, &[1, 2]), "block numbers are used up");
    assert_refused(&mut storage, vec![(used_up.0, FailedPrecondition, used_up.1)]);
    let last = apply_op(&mut storage, stage("/f", 8, 4, &[1, 2]));
    assert_eq!(allocated(last), (ID_LIMIT - 1, ID_LIMIT - 3));
}

// --- Finalizing staged writes ---

#[test]
fn finalizing_a_staged_write_creates_the_file_in_one_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    apply_op(&mut storage, mkdir("/d")).unwrap();
    apply_op(&mut storage, stage("/d/f", 9, 4, &[1, 2])).unwrap();
    assert_eq!(paths(&storage), ["/d"]);
    assert_eq!(counters(&storage).inodes, 2);
    let before = dump(&storage);
    let answer = apply(&mut storage, &[at(7_000, finalize_staged("/d/f", 3, 9, 1))]);
    assert_eq!(answer, [Ok(Outcome::Finalized)]);
    assert_eq!(
        differences(&before, &dump(&storage)),
        [("entries", 3), ("runs", 1), ("meta", 2)].into()
    );
    let entry = Entry {
        inode: InodeId(3),
        mtime_ms: 7_000,
        size: 9,
        kind: EntryKind::File {
            md5: "5ca1ab1e".to_owned(),
            blocks: Some(BlockId(1)),
        },
    };
    assert_eq!(find(&storage, "/d/f"), Some(entry));
    let written = run_at(&storage, 1).unwrap();
    assert_eq!(written.write, WriteState::Written { at_ms: 7_000 });
    assert_eq!((written.inode, written.run.count), (InodeId(3), 3));
    let above = find(&storage, "/d").unwrap();
    assert_eq!((above.size, above.mtime_ms), (9, 7_000));
    assert_eq!(find(&storage, "/").unwrap().size, 9);
    assert_eq!(counters(&storage).inodes, 3);
}

#[test]
fn finalizing_a_staged_write_replaces_the_file_in_one_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    for op in [
        mkdir("/d"),
        allocate("/d/f", 12, 4, &[1, 2]),
        finalize("/d/f", 3, 12),
        stage("/d/f", 5, 4, &[2, 3]),
    ] {
        apply_op(&mut storage, op).unwrap();
    }
    let old = find(&storage, "/d/f").unwrap();
    assert_eq!((old.inode, old.size), (InodeId(3), 12), "readable until then");
    let answer = apply(&mut storage, &[at(7_000, finalize_staged("/d/f", 4, 5, 4))]);
    assert_eq!(answer, [Ok(Outcome::Finalized)]);
    let new = find(&storage, "/d/f").unwrap();
    assert_eq!((new.inode, new.size, new.mtime_ms), (InodeId(4), 5, 7_000));
    assert_eq!(garbage(&storage), [(1, 3, GarbageReason::Overwritten, 7_000)]);
    assert_eq!(run_at(&storage, 1), None);
    assert_eq!(find(&storage, "/").unwrap().size, 5);
    assert_eq!(counters(&storage).inodes, 3);
    assert_refused(
        &mut storage,
        vec![(
            finalize("/d/f", 3, 1),
            FailedPrecondition,
            "/d/f is inode 4 now, not 3",
        )],
    );
    // From now on it is a file like any other.
    apply_op(&mut storage, finalize("/d/f", 4, 4)).unwrap();
    assert_eq!(find(&storage, "/d").unwrap().size, 4);
    apply_op(&mut storage, remove("/d/f", false)).unwrap();
    assert_eq!(counters(&storage).inodes, 2);
    assert_eq!(garbage(&storage).len(), 3);
}

#[test]
fn a_staged_write_is_finalized_shorter_than_it_was_allocated() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    apply_op(&mut storage, stage("/f", 12, 4, &[1, 2, 3])).unwrap();
    apply_op(&mut storage, stage("/g", 12, 4, &[1, 2, 3])).unwrap();
    apply(&mut storage, &[at(7_000, finalize_staged("/f", 2, 4, 1))]);
    assert_eq!(run_at(&storage, 1).unwrap().run.count, 1);
    apply(&mut storage, &[at(8_000, finalize_staged("/g", 3, 0, 4))]);
    assert_eq!(run_at(&storage, 4), None);
    let empty = find(&storage, "/g").unwrap();
    let kind = EntryKind::File {
        md5: "5ca1ab1e".to_owned(),
        blocks: None,
    };
    assert_eq!((empty.inode, empty.size, empty.kind), (InodeId(3), 0, kind));
    let truncated = GarbageReason::Truncated;
    assert_eq!(
        garbage(&storage),
        [(2, 2, truncated, 7_000), (4, 3, truncated, 8_000)]
    );
}

#[test]
fn finalizing_a_staged_write_is_refused_unless_everything_fits() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    for op in [
        mkdir("/d"),                         // inode 2
        stage("/d/f", 8, 4, &[1, 2]),        // inode 3, blocks 1 and 2
        stage("/d/g", 8, 4, &[1, 2]),        // inode 4, blocks 3 and 4
        allocate("/d/plain", 8, 4, &[1, 2]), // inode 5, blocks 5 and 6
        allocate("/d/full", 4, 4, &[1, 2]),  // inode 6, block 7
        finalize("/d/full", 6, 4),
        mkdir("/d/dir"),      // inode 7
        mkdir("/other"),      // inode 8
        touch("/d/existing"), // inode 9
    ] {
        apply_op(&mut storage, op).unwrap();
    }
    assert_refused(
        &mut storage,
        vec![
            (
                finalize_staged("/d/f", 0, 8, 1),
                InvalidArgument,
                "inode must not be 0: /d/f",
            ),
            (
                finalize_staged("/", 3, 8, 1),
                FailedPrecondition,
                "is a directory: /",
            ),
            (
                finalize_staged("/d/dir", 3, 8, 1),
                FailedPrecondition,
                "is a directory: /d/dir",
            ),
            (finalize_staged("/x/f", 3, 8, 1), NotFound, "not found: /x/f"),
            (
                finalize_staged("/d/full/f", 3, 8, 1),
                NotFound,
                "not found: /d/full/f",
            ),
            // Another inode's, no first block, none at all.
            (
                finalize_staged("/d/f", 4, 8, 1),
                NotFound,
                "no staged write of inode 4 begins with block 1: /d/f",
            ),
            (
                finalize_staged("/d/f", 3, 8, 2),
                NotFound,
                "no staged write of inode 3 begins with block 2: /d/f",
            ),
            (
                finalize_staged("/d/f", 3, 8, 99),
                NotFound,
                "no staged write of inode 3 begins with block 99: /d/f",
            ),
            // Not staged: a plain write, and one that is finalized.
            (
                finalize_staged("/d/plain", 5, 8, 5),
                NotFound,
                "no staged write of inode 5 begins with block 5: /d/plain",
            ),
            (
                finalize_staged("/d/full", 6, 4, 7),
                NotFound,
                "no staged write of inode 6 begins with block 7: /d/full",
            ),
            // For another name, whether there is a file or not; for another directory.
            (
                finalize_staged("/d/new", 3, 8, 1),
                FailedPrecondition,
                "block 1 was staged for f in directory 2, not for /d/new in directory 2",
            ),
            (
                finalize_staged("/d/existing", 3, 8, 1),
                FailedPrecondition,
                "block 1 was staged for f in directory 2, not for /d/existing in directory 2",
            ),
            (
                finalize_staged("/d/g", 3, 8, 1),
                FailedPrecondition,
                "block 1 was staged for f in directory 2, not for /d/g in directory 2",
            ),
            (
                finalize_staged("/other/f", 3, 8, 1),
                FailedPrecondition,
                "block 1 was staged for f in directory 2, not for /other/f in directory 8",
            ),
            (
                finalize_staged("/d/f", 3, 9, 1),
                FailedPrecondition,
                "size 9 is beyond the 8 bytes allocated: /d/f",
            ),
            // A plain finalize of a staged inode, where there is no file and where there is one.
            (finalize("/d/f", 3, 8), NotFound, "not found: /d/f"),
            (
                finalize("/d/existing", 3, 8),
                FailedPrecondition,
                "/d/existing is inode 9 now, not 3",
            ),
        ],
    );
    apply_op(&mut storage, finalize_staged("/d/f", 3, 8, 1)).unwrap();
    apply_op(&mut storage, finalize_staged("/d/g", 4, 8, 3)).unwrap();
}

#[test]
fn all_files_together_stay_below_2_to_63_bytes_with_staged_writes_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    let huge = i64::MAX as u64;
    for op in [
        allocate("/a", huge, huge, &[1, 2]),
        finalize("/a", 2, huge - 5),
        stage("/b", huge, huge, &[1, 2]),
        stage("/a", huge, huge, &[1, 2]),
    ] {
        apply_op(&mut storage, op).unwrap();
    }
    assert_refused(
        &mut storage,
        vec![(
            finalize_staged("/b", 3, 6, 2),
            FailedPrecondition,
            "all files together would pass 2^63 bytes: /b",
        )],
    );
    // What it replaces does not count.
    apply_op(&mut storage, finalize_staged("/a", 4, huge, 3)).unwrap();
    assert_eq!(find(&storage, "/").unwrap().size, huge);
}

#[test]
fn a_staged_write_is_finalized_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    apply_op(&mut storage, stage("/f", 8, 4, &[1, 2])).unwrap();
    apply_op(&mut storage, stage("/g", 8, 4, &[1, 2])).unwrap();
    apply_op(&mut storage, finalize_staged("/f", 2, 8, 1)).unwrap();
    apply_op(&mut storage, finalize_staged("/g", 3, 0, 3)).unwrap();
    assert_refused(
        &mut storage,
        vec![
            (
                finalize_staged("/f", 2, 8, 1),
                NotFound,
                "no staged write of inode 2 begins with block 1: /f",
            ),
            (
                finalize_staged("/g", 3, 0, 3),
                NotFound,
                "no staged write of inode 3 begins with block 3: /g",
            ),
        ],
    );
}

#[test]
fn the_repeat_of_a_staged_finalize_is_told_by_its_id_and_undoes_no_later_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    let ask = with_id("stage", 1, stage("/f", 8, 4, &[1, 2]));
    let end = with_id("end", 2, finalize_staged("/f", 2, 8, 1));
    let first = apply(&mut storage, &[ask.clone(), end.clone()]);
    apply_op(&mut storage, stage("/f", 4, 4, &[1, 2])).unwrap();
    apply_op(&mut storage, finalize_staged("/f", 3, 4, 3)).unwrap();
    let before = dump(&storage);
    assert_eq!(
        apply(&mut storage, &[end, ask]),
        [first[1].clone(), first[0].clone()]
    );
    assert_eq!(differences(&before, &dump(&storage)), [("meta", 1)].into());
    assert_eq!(find(&storage, "/f").unwrap().inode, InodeId(3));
}

#[test]
fn a_staged_write_does_not_outlive_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    for op in [
        mkdir("/d"),
        stage("/d/f", 8, 4, &[1, 2]), // inode 3
        remove("/d", false),          // empty: what is staged is not in it
    ] {
        apply_op(&mut storage, op).unwrap();
    }
    let finish = || finalize_staged("/d/f", 3, 8, 1);
    assert_refused(&mut storage, vec![(finish(), NotFound, "not found: /d/f")]);
    apply_op(&mut storage, touch("/d")).unwrap();
    assert_refused(&mut storage, vec![(finish(), NotFound, "not found: /d/f")]);
    apply_op(&mut storage, remove("/d", false)).unwrap();
    apply_op(&mut storage, mkdir("/d")).unwrap();
    let another = "block 1 was staged for f in directory 2, not for /d/f in directory 5";
    assert_refused(&mut storage, vec![(finish(), FailedPrecondition, another)]);

    // The same with a whole subtree, before and after it is reclaimed.
    for op in [
        mkdir("/d/e"),                  // inode 6
        touch("/d/e/x"),                // inode 7
        stage("/d/e/f", 8, 4, &[1, 2]), // inode 8
        remove("/d", true),
    ] {
        apply_op(&mut storage, op).unwrap();
    }
    let finish = || finalize_staged("/d/e/f", 8, 8, 3);
    assert_refused(&mut storage, vec![(finish(), NotFound, "not found: /d/e/f")]);
    apply_op(&mut storage, Op::Reclaim { limit: 100 }).unwrap();
    assert_refused(&mut storage, vec![(finish(), NotFound, "not found: /d/e/f")]);
    assert_eq!(counters(&storage).inodes, 1, "staged inodes were never counted");
    assert_eq!(garbage(&storage), []);
    assert_eq!(
        apply(&mut storage, &[at(9_000, abandon(&[1, 3]))]),
        [Ok(Outcome::WritesAbandoned { writes: 2 })]
    );
    let abandoned = GarbageReason::Abandoned;
    assert_eq!(
        garbage(&storage),
        [(1, 2, abandoned, 9_000), (3, 2, abandoned, 9_000)]
    );
}

#[test]
fn of_two_staged_writes_the_one_that_is_finalized_last_wins() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    for op in [
        stage("/f", 4, 4, &[1, 2]),     // inode 2, block 1
        stage("/f", 8, 4, &[1, 2]),     // inode 3, blocks 2 and 3
        finalize_staged("/f", 3, 8, 2), //
        finalize_staged("/f", 2, 4, 1), //
    ] {
        apply_op(&mut storage, op).unwrap();
    }
    let found = find(&storage, "/f").unwrap();
    assert_eq!((found.inode, found.size), (InodeId(2), 4));
    assert_eq!(garbage(&storage).len(), 1);
    assert_eq!(garbage(&storage)[0].0, 2);
    assert_eq!(counters(&storage).inodes, 2);
}

#[test]
fn staged_and_plain_writes_of_one_file_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    for op in [
        stage("/f", 4, 4, &[1, 2]),    // inode 2, block 1
        allocate("/f", 8, 4, &[1, 2]), // inode 3, blocks 2 and 3
        finalize_staged("/f", 2, 4, 1),
    ] {
        apply_op(&mut storage, op).unwrap();
    }
    assert_eq!(
        run_at(&storage, 2),
        None,
        "the open plain write was overwritten with its file"
    );
    assert_refused(
        &mut storage,
        vec![(
            finalize("/f", 3, 8),
            FailedPrecondition,
            "/f is inode 2 now, not 3",
        )],
    );
    // A staged write does not mind that its file was deleted meanwhile, nor a file made since.
    for op in [
        stage("/f", 4, 4, &[1, 2]), // inode 4, block 4
        stage("/f", 4, 4, &[1, 2]), // inode 5, block 5
        remove("/f", false),
        finalize_staged("/f", 4, 4, 4),
        remove("/f", false),
        touch("/f"), // inode 6
        finalize_staged("/f", 5, 4, 5),
    ] {
        apply_op(&mut storage, op).unwrap();
    }
    assert_eq!(find(&storage, "/f").unwrap().inode, InodeId(5));
    assert_eq!(counters(&storage).inodes, 2);
    assert_eq!(dump(&storage)["runs"].len(), 1);
}

// --- How far a write has come ---

#[test]
fn a_plain_write_is_open_until_it_is_finalized_and_dated_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    let state = |storage: &Storage, first| run_at(storage, first).unwrap().write;
    let open = |since_ms| {
        WriteState::Open(OpenWrite {
            since_ms,
            parent: InodeId::ROOT,
            name: "f".to_owned(),
            staged: false,
        })
    };
    apply(&mut storage, &[at(5, allocate("/f", 8, 4, &[1, 2]))]);
    assert_eq!(state(&storage, 1), open(5));
    apply(&mut storage, &[at(6, finalize("/f", 2, 8))]);
    assert_eq!(state(&storage, 1), WriteState::Written { at_ms: 6 });
    apply(&mut storage, &[at(7, finalize("/f", 2, 8))]);
    assert_eq!(state(&storage, 1), WriteState::Written { at_ms: 7 });
    apply(&mut storage, &[at(8, allocate("/f", 4, 4, &[1, 2]))]);
    assert_eq!((run_at(&storage, 1), state(&storage, 3)), (None, open(8)));
}
