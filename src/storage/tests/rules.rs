//! Corners of the rules that random histories do not reach: the bounds of the memory of requests,
//! numbers that are used up, sizes at the end of their range; and what a command may cost.

use super::*;
use crate::domain::command::RefusalKind;
use crate::domain::ids::ID_LIMIT;
use crate::domain::namespace::{REMEMBER_MAX, REMEMBER_MS};
use crate::domain::state::{Counters, ReadTables, Remembered, Tables};

fn remembers(storage: &Storage, name: &str) -> bool {
    let found = storage.reader().read(|view| view.remembered(&id(name)));
    found.unwrap().is_some()
}

// --- Repeats ---

#[test]
fn a_repeat_gets_the_first_answer_word_for_word_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path());
    let create = with_id("one", 1, mkdir("/a"));
    let refused = with_id("two", 2, touch("/missing/b"));
    let first = apply(&mut storage, &[create.clone(), refused.clone()]);
    assert_eq!(first[0], Ok(Outcome::Created { inode: InodeId(2) }));
    assert_eq!(
        first[1].as_ref().unwrap_err().to_string(),
        "parent directory not found: /missing"
    );
    apply(
        &mut storage,
        &[at(3, mkdir("/missing")), at(4, remove("/a", false))],
    );

    let before = dump(&storage);
    let again = apply(&mut storage, &[create, refused]);
    assert_eq!(again, first);
    assert_eq!(
        differences(&before, &dump(&storage)),
        [("meta", 1)].into(),
        "only the applied index"
    );
}

/// One command of each kind that clients ask for, and the same with one parameter changed at a time.
fn requests_that_differ() -> Vec<Vec<Op>> {
    vec![
        vec![touch("/f"), touch("/g"), mkdir("/f")],
        vec![remove("/f", false), remove("/g", false), remove("/f", true)],
        vec![
            allocate("/f", 8, 4, &[1, 2]),
            allocate("/g", 8, 4, &[1, 2]),
            allocate("/f", 9, 4, &[1, 2]),
            stage("/f", 8, 4, &[1, 2]),
        ],
        vec![
            finalize("/f", 3, 8),
            finalize("/g", 3, 8),
            finalize("/f", 4, 8),
            finalize("/f", 3, 7),
            finalize_staged("/f", 3, 8, 1),
            finalize_staged("/f", 3, 8, 2),
            with_md5(finalize("/f", 3, 8), "other"),
            // The text moves from the MD5 to the path.
            with_md5(finalize("/f/a", 3, 8), ""),
            with_md5(finalize("/a", 3, 8), "/f"),
        ],
    ]
}

#[test]
fn the_digest_tells_requests_apart_and_not_the_leaders_plans() {
    let all: Vec<_> = requests_that_differ().concat();
    for (number, op) in all.iter().enumerate() {
        assert_ne!(op.digest(), 0, "{op:?}");
        for other in &all[number + 1..] {
            assert_ne!(op.digest(), other.digest(), "{op:?} {other:?}");
        }
    }
    let elsewhere = allocate("/f", 8, 2, &[7]);
    assert_eq!(elsewhere.digest(), all[6].digest());
    let mut unplanned = elsewhere;
    if let Op::Allocate { plan, .. } = &mut unplanned {
        *plan = None;
    }
    assert_eq!(unplanned.digest(), all[6].digest());
    assert_eq!(Op::Reclaim { limit: 1 }.digest(), 0);
}

#[test]
fn another_request_under_a_used_id_is_refused_and_does_nothing() {
    for requests in requests_that_differ() {
        let dir = tempfile::tempdir().unwrap();
        let mut storage = with_servers(dir.path());
        let first = with_id("one", 1, requests[0].clone());
        let answer = apply(&mut storage, std::slice::from_ref(&first)).remove(0);
        let before = dump(&storage);
        for other in &requests[1..] {
            let said = apply(&mut storage, &[with_id("one", 2, other.clone())]).remove(0);
            let refusal = said.unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::InvalidArgument, "{other:?}");
            assert!(refusal.message.contains("used for another request"), "{refusal}");
        }
        assert_eq!(apply(&mut storage, &[first]), [answer]);
        assert_eq!(differences(&before, &dump(&storage)), [("meta", 1)].into());
    }
}

/// Entries of servers before digests, and what those servers remembered: the id alone decides.
#[test]
fn without_a_digest_on_both_sides_the_id_alone_decides() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path());
    let undigested = |mut command: Command| {
        command.digest = 0;
        command
    };
    let created = Ok(Outcome::Created { inode: InodeId(2) });
    let old = undigested(with_id("old", 1, mkdir("/a")));
    assert_eq!(apply(&mut storage, &[old]), std::slice::from_ref(&created));
    let asked = with_id("old", 2, remove("/a", true));
    assert_eq!(apply(&mut storage, &[asked]), [created]);

    let created = Ok(Outcome::Created { inode: InodeId(3) });
    assert_eq!(
        apply(&mut storage, &[with_id("new", 3, mkdir("/b"))]),
        std::slice::from_ref(&created)
    );
    let asked = undigested(with_id("new", 4, remove("/b", true)));
    assert_eq!(apply(&mut storage, &[asked]), [created]);
}

#[test]
fn a_repeat_within_one_batch_is_a_repeat() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path());
    let create = with_id("one", 1, mkdir("/a"));
    let answers = apply(&mut storage, &[create.clone(), create]);
    assert_eq!(answers[0], Ok(Outcome::Created { inode: InodeId(2) }));
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn a_request_is_remembered_for_its_time_and_forgotten_by_the_next_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path());
    apply(&mut storage, &[with_id("old", 1_000, mkdir("/a"))]);
    apply(
        &mut storage,
        &[with_id("a", 1_000 + REMEMBER_MS - 1, mkdir("/b"))],
    );
    assert!(remembers(&storage, "old"), "not yet");
    apply(&mut storage, &[at(1_000 + 2 * REMEMBER_MS, mkdir("/c"))]);
    assert!(
        remembers(&storage, "old"),
        "a command without an id forgets nothing"
    );
    apply(&mut storage, &[with_id("b", 1_000 + REMEMBER_MS, mkdir("/d"))]);
    assert!(!remembers(&storage, "old"));
    assert!(remembers(&storage, "a") && remembers(&storage, "b"));
}

#[test]
fn at_most_two_are_forgotten_at_a_time_and_never_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path());
    let five: Vec<_> = (0..5).map(|n| with_id(&format!("{n}"), 0, mkdir("/a"))).collect();
    apply(&mut storage, &five);
    let known = |storage: &Storage| (0..5).filter(|n| remembers(storage, &n.to_string())).count();
    let late = REMEMBER_MS + 1;
    apply(&mut storage, &[with_id("x", late, mkdir("/a"))]);
    assert_eq!(known(&storage), 3);
    apply(&mut storage, &[with_id("y", late, mkdir("/a"))]);
    assert_eq!(known(&storage), 1);
    apply(&mut storage, &[with_id("z", late * 3, mkdir("/a"))]);
    assert_eq!(known(&storage), 0);
    assert!(!remembers(&storage, "x") && remembers(&storage, "z"));
}

#[test]
fn a_leader_whose_clock_is_behind_forgets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path());
    apply(&mut storage, &[with_id("ahead", 10 * REMEMBER_MS, mkdir("/a"))]);
    apply(&mut storage, &[with_id("behind", 0, mkdir("/b"))]);
    apply(&mut storage, &[with_id("extreme", i64::MIN, mkdir("/c"))]);
    for name in ["ahead", "behind", "extreme"] {
        assert!(remembers(&storage, name), "{name}");
    }
}

#[test]
fn no_more_requests_are_remembered_than_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path());
    // As if all but the first three of REMEMBER_MAX had come; those in between do not matter here.
    meddle(&storage, |txn| {
        for sequence in 0..3 {
            let request = Remembered {
                sequence,
                time_ms: 1_000,
                digest: 0,
                applied: Ok(Outcome::Deleted),
            };
            txn.put_remembered(&id(&format!("old {sequence}")), &request)?;
        }
        let counters = txn.counters()?;
        txn.put_counters(Counters {
            next_request: REMEMBER_MAX - 1,
            ..counters
        })
    });
    let known = |storage: &Storage| (0..3).filter(|n| remembers(storage, &format!("old {n}"))).count();
    for (name, left) in [("last that fits", 3), ("one more", 2), ("two more", 1)] {
        apply(&mut storage, &[with_id(name, 1_000, mkdir("/a"))]);
        assert_eq!(known(&storage), left, "{name}");
        let Counters {
            first_request,
            next_request,
            ..
        } = counters(&storage);
        assert_eq!(next_request - first_request, REMEMBER_MAX, "{name}");
    }
}

// --- Refusals ---

#[test]
fn a_refusal_changes_nothing_but_the_applied_index() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    for op in [
        mkdir("/d"),
        touch("/d/f"),
        allocate("/a", 10, 4, &[1, 2, 3]),
        finalize("/a", 4, 10),
    ] {
        apply_op(&mut storage, op).unwrap();
    }
    let unplanned = Op::Allocate {
        path: path("/a"),
        size: 1,
        plan: None,
        staged: false,
    };
    let unnamed = Op::RegisterDataServer {
        id: String::new(),
        addr: "localhost:1".to_owned(),
    };
    let status = Op::SetDataServerStatus {
        server: ServerId(9),
        status: crate::domain::state::ServerStatus::Down,
    };
    use RefusalKind::{AlreadyExists, FailedPrecondition, InvalidArgument, NotFound};
    for (op, kind, message) in [
        (mkdir("/"), AlreadyExists, "already exists: /"),
        (touch("/d/f"), AlreadyExists, "already exists: /d/f"),
        (touch("/x/y/z"), NotFound, "parent directory not found: /x"),
        (touch("/d/f/g"), FailedPrecondition, "not a directory: /d/f"),
        (
            remove("/", true),
            InvalidArgument,
            "the root cannot be deleted: /",
        ),
        (remove("/d", false), FailedPrecondition, "directory not empty: /d"),
        (remove("/x", true), NotFound, "not found: /x"),
        (remove("/d/f/g", true), NotFound, "not found: /d/f/g"),
        (
            allocate("/", 1, 4, &[1, 2]),
            FailedPrecondition,
            "is a directory: /",
        ),
        (
            allocate("/d", 1, 4, &[1, 2]),
            FailedPrecondition,
            "is a directory: /d",
        ),
        (
            allocate("/x/y", 1, 4, &[1, 2]),
            NotFound,
            "parent directory not found: /x",
        ),
        (
            unplanned,
            InvalidArgument,
            "allocation of 1 bytes without a sound plan: /a",
        ),
        (finalize("/a", 0, 1), InvalidArgument, "inode must not be 0: /a"),
        (finalize("/x", 4, 1), NotFound, "not found: /x"),
        (
            finalize("/a", 3, 1),
            FailedPrecondition,
            "/a is inode 4 now, not 3",
        ),
        (
            finalize("/a", 4, 13),
            FailedPrecondition,
            "size 13 is beyond the 12 bytes allocated: /a",
        ),
        (finalize("/d", 2, 0), FailedPrecondition, "is a directory: /d"),
        (move_replica(9, 1, 3), NotFound, "no file owns block 9"),
        (move_replica(1, 1, 9), NotFound, "no DataServer has number 9"),
        (
            move_replica(1, 1, 2),
            AlreadyExists,
            "block 1 has a replica on DataServer 2",
        ),
        (
            move_replica(2, 1, 1),
            FailedPrecondition,
            "block 2 has no replica on DataServer 1",
        ),
        (
            unnamed,
            InvalidArgument,
            "a DataServer needs an id and an address",
        ),
        (status, NotFound, "no DataServer has number 9"),
    ] {
        let before = dump(&storage);
        let refusal = apply_op(&mut storage, op).unwrap_err();
        assert_eq!((refusal.kind, refusal.message.as_str()), (kind, message));
        assert_eq!(
            differences(&before, &dump(&storage)),
            [("meta", 1)].into(),
            "{message}"
        );
    }
}

#[test]
fn numbers_that_are_used_up_are_refused_not_wrapped_and_nothing_changes() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
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
    set(&storage, ID_LIMIT - 1, ID_LIMIT - 3);
    let last = apply_op(&mut storage, touch("/last")).unwrap();
    assert_eq!(
        last,
        Outcome::Created {
            inode: InodeId(ID_LIMIT - 1)
        }
    );
    for (op, message) in [
        (touch("/more"), "inode numbers are used up"),
        (mkdir("/more"), "inode numbers are used up"),
        (allocate("/more", 4, 4, &[1, 2]), "inode numbers are used up"),
        (allocate("/last", 12, 4, &[1, 2]), "block numbers are used up"),
        (
            allocate("/last", u64::MAX, 1, &[1, 2]),
            "block numbers are used up",
        ),
    ] {
        let before = dump(&storage);
        let refusal = apply_op(&mut storage, op).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::FailedPrecondition);
        assert_eq!(refusal.message, message);
        assert_eq!(
            differences(&before, &dump(&storage)),
            [("meta", 1)].into(),
            "{message}"
        );
    }
    let blocks = apply_op(&mut storage, allocate("/last", 8, 4, &[1, 2])).unwrap();
    let Outcome::Allocated { blocks, .. } = blocks else {
        panic!("{blocks:?}");
    };
    assert_eq!((blocks.first.0, blocks.count), (ID_LIMIT - 3, 2));
    drop(storage);
    let entry = open(dir.path())
        .reader()
        .read(|view| namespace_rules::find(view, &path("/last")));
    assert!(entry.unwrap().is_some(), "the largest numbers survive the disk");
}

#[test]
fn directory_sizes_stay_within_what_clients_can_hold() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    let huge = i64::MAX as u64;
    apply_op(&mut storage, mkdir("/d")).unwrap();
    for name in ["/d/a", "/d/b"] {
        apply_op(&mut storage, allocate(name, huge, huge, &[1, 2])).unwrap();
    }
    let size = |storage: &Storage, raw: &str| {
        let entry = storage
            .reader()
            .read(|view| namespace_rules::find(view, &path(raw)));
        entry.unwrap().unwrap().size
    };
    apply_op(&mut storage, finalize("/d/a", 3, huge - 5)).unwrap();
    let refusal = apply_op(&mut storage, finalize("/d/b", 4, 6)).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::FailedPrecondition);
    assert_eq!(refusal.message, "all files together would pass 2^63 bytes: /d/b");
    apply_op(&mut storage, finalize("/d/b", 4, 5)).unwrap();
    assert_eq!(
        (size(&storage, "/d"), size(&storage, "/"), size(&storage, "/d/b")),
        (huge, huge, 5)
    );
    apply_op(&mut storage, finalize("/d/b", 4, 3)).unwrap();
    assert_eq!(size(&storage, "/d"), huge - 2);
    apply_op(&mut storage, remove("/d", true)).unwrap();
    assert_eq!(size(&storage, "/"), 0);
}

// --- What a command costs ---

#[test]
fn an_allocation_is_one_small_record_however_large_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    apply_op(&mut storage, touch("/f")).unwrap();
    let before = dump(&storage);
    let answer = apply_op(&mut storage, allocate("/f", 1 << 44, 4 << 20, &[1, 2, 3]));
    let Ok(Outcome::Allocated { blocks, .. }) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(blocks.count, 1 << 22);
    let after = dump(&storage);
    assert_eq!(
        differences(&before, &after),
        // The file and its directory; counters and applied index.
        [("entries", 2), ("runs", 1), ("meta", 2)].into()
    );
    assert!(after["runs"][0].1.len() < 40);
}

#[test]
fn moving_a_replica_touches_one_record() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    apply_op(&mut storage, allocate("/f", 100, 1, &[1, 2])).unwrap();
    apply_op(&mut storage, allocate("/g", 100, 1, &[1, 2])).unwrap();
    let before = dump(&storage);
    let moved = Op::MoveReplica {
        block: BlockId(100),
        from: ServerId(1),
        to: ServerId(3),
    };
    apply_op(&mut storage, moved).unwrap();
    assert_eq!(
        differences(&before, &dump(&storage)),
        [("moved", 1), ("meta", 1)].into()
    );
    let replicas = |block: u64| {
        storage
            .reader()
            .read(|view| {
                let owned = view.run_of(BlockId(block))?.unwrap();
                crate::domain::replicas::replicas_of(view, &owned.run, BlockId(block))
            })
            .unwrap()
    };
    assert_eq!(
        replicas(100),
        [ServerId(2), ServerId(3)],
        "in the place of the one that it replaces"
    );
    assert_eq!(replicas(99), [ServerId(1), ServerId(2)]);
    assert_eq!(replicas(101), [ServerId(1), ServerId(2)], "the next file's first");
}

#[test]
fn moves_outlive_deletion_and_truncation_and_go_when_the_garbage_is_released() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    apply_op(&mut storage, allocate("/f", 4, 1, &[1, 2])).unwrap();
    for block in 1..=4 {
        let from = ServerId(1);
        let to = ServerId(3);
        let block = BlockId(block);
        apply_op(&mut storage, Op::MoveReplica { block, from, to }).unwrap();
    }
    let moved = |storage: &Storage| dump(storage)["moved"].len();
    apply_op(&mut storage, finalize("/f", 2, 2)).unwrap();
    assert_eq!(
        moved(&storage),
        4,
        "where truncated blocks are must be known to delete them"
    );
    apply_op(&mut storage, release(&[4])).unwrap();
    assert_eq!(moved(&storage), 4, "no garbage begins at block 4");
    apply_op(&mut storage, release(&[3])).unwrap();
    assert_eq!(moved(&storage), 2);
    apply_op(&mut storage, release(&[1])).unwrap();
    assert_eq!(moved(&storage), 2, "the file's own");
    apply_op(&mut storage, remove("/f", false)).unwrap();
    assert_eq!(moved(&storage), 2);
    apply_op(&mut storage, release(&[1])).unwrap();
    assert_eq!(moved(&storage), 0);
}

#[test]
fn a_subtree_is_detached_at_once_and_reclaimed_in_small_batches() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = with_servers(dir.path());
    apply_op(&mut storage, mkdir("/d")).unwrap();
    for n in 0..10 {
        apply_op(&mut storage, mkdir(&format!("/d/{n}"))).unwrap();
        for m in 0..5 {
            apply_op(&mut storage, allocate(&format!("/d/{n}/{m}"), 1, 1, &[1, 2])).unwrap();
        }
    }
    assert_eq!(counters(&storage).inodes, 62);
    let before = dump(&storage);
    apply_op(&mut storage, remove("/d", true)).unwrap();
    assert_eq!(
        differences(&before, &dump(&storage)),
        // The entry and the root's time; the mark; the applied index.
        [("entries", 2), ("detached", 1), ("meta", 1)].into()
    );
    assert_eq!(paths(&storage), Vec::<String>::new());
    apply_op(&mut storage, mkdir("/d")).unwrap();
    assert_eq!(paths(&storage), ["/d"], "the name is free at once, and empty");

    let mut batches = 0;
    loop {
        let before = dump(&storage);
        let answer = apply_op(&mut storage, Op::Reclaim { limit: 7 }).unwrap();
        let after = dump(&storage);
        let Outcome::Reclaimed { records, more } = answer else {
            panic!("{answer:?}");
        };
        assert!(records <= 7);
        assert!(before["entries"].len() - after["entries"].len() <= 7);
        batches += 1;
        if !more {
            break;
        }
        assert_eq!(records, 7);
    }
    // 60 entries and 11 directories.
    assert_eq!(batches, 71_usize.div_ceil(7));
    let after = dump(&storage);
    assert_eq!(after["detached"].len(), 0);
    assert_eq!(after["runs"].len(), 0);
    assert_eq!(after["garbage"].len(), 50);
    assert_eq!(after["entries"].len(), 2, "the root and the new /d");
    assert_eq!(counters(&storage).inodes, 2);
}

// --- Reading ---

#[test]
fn children_come_in_byte_order_and_only_ones_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path());
    for op in [
        mkdir("/b"),
        touch("/b/ü"),
        touch("/b/z"),
        touch("/b/Z"),
        touch("/b/a.b"),
        mkdir("/b/a"),
        touch("/b/a/inner"),
        mkdir("/c"),
        touch("/c/other"),
    ] {
        apply_op(&mut storage, op).unwrap();
    }
    let names: Vec<_> = storage
        .reader()
        .read(|view| namespace_rules::list(view, InodeId(2)))
        .unwrap()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["Z", "a", "a.b", "z", "ü"]);
    let mut files = Vec::new();
    let all = storage.reader().read(|view| {
        view.for_each_file(InodeId::ROOT, &CleanPath::root(), &mut |path, _| {
            files.push(path.to_string());
            Ok(files.len() < 4)
        })
    });
    assert!(!all.unwrap(), "stopped by the visitor");
    assert_eq!(files, ["/b/Z", "/b/a/inner", "/b/a.b", "/b/z"]);
}

#[test]
fn names_and_paths_of_the_greatest_length_fit_the_tables() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path());
    let name = "x".repeat(255);
    let mut deep = String::new();
    for _ in 0..16 {
        deep = format!("{deep}/{name}");
        assert!(apply_op(&mut storage, mkdir(&deep)).is_ok());
    }
    assert_eq!(deep.len(), 4096);
    let command = Command {
        time_ms: 1,
        request_id: Some(RequestId::new(&[0xff; RequestId::MAX_BYTES]).unwrap()),
        digest: 0,
        origin: None,
        op: remove(&deep, false),
    };
    let answers = apply(&mut storage, &[command.clone(), command]);
    assert_eq!(answers, [Ok(Outcome::Deleted), Ok(Outcome::Deleted)]);
}
