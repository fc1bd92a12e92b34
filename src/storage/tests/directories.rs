//! What is on disk, across restarts, crashes and snapshots. A crash of the process is a `Storage`
//! dropped without [`Storage::close`]; one of the machine is another boot id.

use std::fs;

use super::*;
use crate::storage::env::StateDir;
use crate::storage::snapshot::{STATE_VERSION, SnapshotFile};

const MAP: u64 = 64 << 20;

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn snapshots(dir: &Path) -> PathBuf {
    dir.join("raft/snapshots")
}

fn generations(dir: &Path) -> Vec<String> {
    let mut names = names_in(&dir.join("lmdb"));
    names.retain(|name| name.starts_with("generation-"));
    names
}

/// A snapshot as a node has it after it was sent: another file with the same content.
fn received(snapshot: &SnapshotFile, dir: &Path) -> SnapshotFile {
    let path = snapshots(dir).join("received-1.tmp");
    fs::copy(&snapshot.path, &path).unwrap();
    SnapshotFile {
        meta: snapshot.meta.clone(),
        path,
    }
}

/// A storage with some of everything in it, a membership included.
fn filled(dir: &Path) -> Storage {
    let mut storage = open(dir);
    let register = |n: u32| Op::RegisterDataServer {
        id: format!("ds-{n}"),
        addr: format!("localhost:800{n}"),
    };
    let ops = vec![
        register(1),
        register(2),
        register(3),
        mkdir("/d"),
        mkdir("/d/e"),
        allocate("/d/e/f", 10, 4, &[1, 2]),
        finalize("/d/e/f", 4, 5),
        allocate("/g", 4, 4, &[2, 1]),
        Op::MoveReplica {
            block: BlockId(1),
            from: ServerId(1),
            to: ServerId(3),
        },
        mkdir("/gone"),
        touch("/gone/x"),
        remove("/gone", true),
    ];
    let commands: Vec<_> = ops
        .into_iter()
        .zip(1..)
        .map(|(op, n)| Command {
            time_ms: 1_000 + n,
            request_id: (n % 2 == 0).then(|| id(&format!("request {n}"))),
            digest: 0,
            origin: None,
            op,
        })
        .collect();
    let answers = storage
        .apply(&[membership(1, 9090), entry(2, &commands)])
        .unwrap();
    for answer in &answers[1] {
        assert!(answer.is_ok(), "{answer:?}");
    }
    let tables = dump(&storage);
    assert!(tables.values().all(|table| !table.is_empty()), "{tables:?}");
    storage
}

// --- One directory, opened again ---

#[test]
fn a_new_directory_holds_the_root_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    assert_eq!(paths(&storage), Vec::<String>::new());
    assert_eq!(storage.progress().unwrap(), Progress::default());
    assert_eq!(storage.current_snapshot().unwrap(), None);
    let root = storage
        .reader()
        .read(|view| namespace_rules::find(view, &CleanPath::root()))
        .unwrap();
    assert!(root.unwrap().is_directory());
}

#[test]
fn opening_again_keeps_everything_whether_it_was_closed_or_killed() {
    let dir = tempfile::tempdir().unwrap();
    let storage = filled(dir.path());
    let (all, progress) = (dump(&storage), storage.progress().unwrap());
    drop(storage);

    let killed = open(dir.path());
    assert_eq!(dump(&killed), all);
    killed.close().unwrap();

    let closed = open(dir.path());
    assert_eq!(dump(&closed), all);
    assert_eq!(closed.progress().unwrap(), progress);
    assert_eq!(progress.applied, Some(log_id(2)));
    assert_eq!(progress.membership.unwrap().log_id, Some(log_id(1)));
}

#[test]
fn effects_index_and_membership_become_visible_together() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = filled(dir.path());
    let reader = storage.reader();
    let before = (dump(&storage), storage.progress().unwrap());
    reader
        .read(|view| {
            let records = [
                entry(3, &[at(1, mkdir("/n"))]),
                membership(4, 9091),
                entry(5, &[at(2, mkdir("/n/m"))]),
            ];
            storage.apply(&records)?;
            let seen: Dump = view.dump()?.into_iter().collect();
            assert_eq!((seen, view.progress()?), before, "a view does not change");
            Ok(())
        })
        .unwrap();
    reader
        .read(|view| {
            let found = paths_in(view);
            assert!(found.contains(&"/n".to_owned()) && found.contains(&"/n/m".to_owned()));
            let Progress { applied, membership } = view.progress()?;
            assert_eq!(applied, Some(log_id(5)));
            let membership = membership.unwrap();
            assert_eq!(membership.log_id, Some(log_id(4)));
            assert!(membership.membership.unwrap().nodes.contains_key(&9091));
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_batch_that_fails_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = filled(dir.path());
    let all = dump(&storage);
    let newer = pb::CommandBatch {
        version: convert::BATCH_VERSION + 1,
        commands: vec![],
    };
    for (bad, why) in [
        (b"\xff\xff".to_vec(), "malformed message"),
        (prost::Message::encode_to_vec(&newer), "upgrade it"),
    ] {
        let bad = LogRecord {
            log_id: log_id(5),
            content: RecordContent::Batch(bad.into()),
        };
        let good = || entry(3, &[at(1, mkdir("/n")), at(1, remove("/d", true))]);
        let error = storage.apply(&[good(), membership(4, 9091), bad]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("log entry 5") && text.contains(why), "{text}");
        assert_eq!(dump(&storage), all, "{why}");
    }
    drop(storage);
    let mut storage = open(dir.path());
    assert_eq!(dump(&storage), all);
    apply(&mut storage, &[at(1, mkdir("/n"))]).remove(0).unwrap();
}

// --- Which database is trusted ---

/// Opens `dir` as of a boot and answers whether what was put into it is still there; then puts
/// something in.
fn still_there(dir: &Path, boot: &str, closed: bool) -> bool {
    let (state, generation) = StateDir::open_at_boot(dir, MAP, true, boot).unwrap();
    let found = generation.view().unwrap().progress().unwrap().applied.is_some();
    let mut txn = generation.write().unwrap();
    txn.end_entry(&log_id(1)).unwrap();
    txn.commit().unwrap();
    if closed {
        state.close_cleanly(&generation).unwrap();
    }
    found
}

#[test]
fn an_unclean_state_is_trusted_only_under_the_boot_that_wrote_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(!still_there(dir, "first", false), "new");
    assert!(still_there(dir, "first", false), "same boot, unclean");
    assert!(
        !still_there(dir, "second", false),
        "other boot, unclean: thrown away"
    );
    assert!(still_there(dir, "second", true), "same boot, unclean");
    assert!(still_there(dir, "third", true), "other boot, after a clean close");
    assert!(still_there(dir, "third", false), "same boot, after a clean close");
    assert!(
        !still_there(dir, "fourth", false),
        "other boot, unclean: a clean close is forgotten once it is open again"
    );
}

#[test]
fn a_state_thrown_away_leaves_no_files() {
    let dir = tempfile::tempdir().unwrap();
    still_there(dir.path(), "first", false);
    assert_eq!(names_in(dir.path()), ["STATE", "generation-1"]);
    still_there(dir.path(), "second", false);
    assert_eq!(names_in(dir.path()), ["STATE", "generation-2"]);
}

#[test]
fn a_state_directory_of_a_newer_server_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path()));
    let path = dir.path().join("lmdb/STATE");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("minfs-state 2", "minfs-state 3")).unwrap();
    let error = Storage::open(&options(dir.path())).err().unwrap().to_string();
    assert!(error.contains("STATE: written by a newer server"), "{error}");
    assert!(error.contains("upgrade it"), "{error}");
    fs::write(&path, text).unwrap();
    assert!(
        paths(&open(dir.path())).contains(&"/d".to_owned()),
        "nothing was lost"
    );
}

#[test]
fn a_damaged_state_file_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path()));
    let path = dir.path().join("lmdb/STATE");
    for damaged in [
        "",
        "something else\n",
        "minfs-state 2\n",
        "minfs-state 2\ngeneration x\nboot b\nclean no\n",
        "minfs-state 2\ngeneration 1\nclean no\n",
    ] {
        fs::write(&path, damaged).unwrap();
        let error = Storage::open(&options(dir.path())).err().unwrap().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}

/// A node was killed after it made a database of a snapshot, before that took the state's place.
fn killed_before_the_switch(dir: &Path) -> Dump {
    let other = tempfile::tempdir().unwrap();
    let snapshot = filled(other.path()).build_snapshot().run().unwrap();
    let mut storage = open(dir);
    apply_op(&mut storage, mkdir("/own")).unwrap();
    let all = dump(&storage);
    let prepared = storage.prepare_install(received(&snapshot, dir)).run().unwrap();
    drop(prepared);
    assert_eq!(generations(dir), ["generation-1", "generation-2"]);
    all
}

#[test]
fn a_kill_before_the_switch_leaves_the_old_state_and_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let all = killed_before_the_switch(dir.path());
    let storage = open(dir.path());
    assert_eq!(dump(&storage), all);
    assert_eq!(generations(dir.path()), ["generation-1"]);
    assert!(
        storage.current_snapshot().unwrap().is_some(),
        "what was received is kept: openraft may install it now"
    );
}

#[test]
fn what_was_prepared_before_the_machine_went_down_is_not_taken_for_an_empty_state() {
    let dir = tempfile::tempdir().unwrap();
    killed_before_the_switch(dir.path());
    // Its pages may never have reached the disk.
    let (_state, generation) =
        StateDir::open_at_boot(&dir.path().join("lmdb"), MAP, true, "another boot").unwrap();
    let view = generation.view().unwrap();
    assert_eq!(view.progress().unwrap(), Progress::default());
    assert_eq!(paths_in(&view), Vec::<String>::new());
    assert_eq!(generations(dir.path()), ["generation-2"]);
}

#[test]
fn a_database_that_no_state_file_vouches_for_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path()));
    fs::remove_file(dir.path().join("lmdb/STATE")).unwrap();
    let storage = open(dir.path());
    assert_eq!(paths(&storage), Vec::<String>::new());
    assert_eq!(storage.progress().unwrap(), Progress::default());
}

// --- Snapshots: installing ---

#[test]
fn installing_a_snapshot_replaces_the_state() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = filled(source.path());
    let snapshot = source.build_snapshot().run().unwrap();
    assert_eq!(snapshot.meta.last_log_id, Some(log_id(2)));
    assert_eq!(snapshot.meta.version, STATE_VERSION);
    assert_eq!(snapshot.meta.bytes, fs::metadata(&snapshot.path).unwrap().len());

    let mut storage = open(target.path());
    apply(
        &mut storage,
        &[
            at(1, mkdir("/old")),
            at(2, touch("/old/file")),
            at(3, mkdir("/d")),
        ],
    );
    let prepared = storage
        .prepare_install(received(&snapshot, target.path()))
        .run()
        .unwrap();
    assert!(
        paths(&storage).contains(&"/old".to_owned()),
        "not before it is installed"
    );
    storage.install(prepared).unwrap();
    assert_eq!(dump(&storage), dump(&source), "nothing of the old state is left");

    // It is the node's own newest snapshot now, and outlives a restart, as the state does.
    drop(storage);
    let storage = open(target.path());
    assert_eq!(dump(&storage), dump(&source));
    let kept = storage.current_snapshot().unwrap().unwrap();
    assert_eq!(kept.meta, snapshot.meta);
    assert_eq!(fs::read(kept.path).unwrap(), fs::read(&snapshot.path).unwrap());
    assert_eq!(generations(target.path()), ["generation-2"]);
}

#[test]
fn a_node_is_refilled_from_its_own_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = filled(dir.path());
    let all = dump(&storage);
    let own = storage.build_snapshot().run().unwrap();
    apply_op(&mut storage, mkdir("/after")).unwrap();
    let prepared = storage.prepare_install(own.clone()).run().unwrap();
    storage.install(prepared).unwrap();
    assert_eq!(dump(&storage), all);
    assert_eq!(storage.current_snapshot().unwrap(), Some(own));
}

#[test]
fn readers_under_way_keep_the_old_state_and_its_files_go_with_the_last_of_them() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let snapshot = filled(source.path()).build_snapshot().run().unwrap();
    let mut storage = open(target.path());
    apply_op(&mut storage, mkdir("/old")).unwrap();
    let prepared = storage
        .prepare_install(received(&snapshot, target.path()))
        .run()
        .unwrap();
    let reader = storage.reader();
    reader
        .read(|view| {
            storage.install(prepared)?;
            assert_eq!(paths_in(view), ["/old"]);
            assert_eq!(generations(target.path()), ["generation-1", "generation-2"]);
            reader.read(|other| {
                assert_eq!(
                    paths_in(other),
                    ["/d", "/g", "/d/e", "/d/e/f"],
                    "who comes later sees the new"
                );
                Ok(())
            })
        })
        .unwrap();
    assert_eq!(generations(target.path()), ["generation-2"]);
}

#[test]
fn a_snapshot_that_is_not_what_it_says_is_refused_and_nothing_changes() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let snapshot = filled(source.path()).build_snapshot().run().unwrap();
    let mut storage = open(target.path());
    apply_op(&mut storage, mkdir("/own")).unwrap();
    let own = storage.build_snapshot().run().unwrap();
    let all = dump(&storage);

    let flip = |bytes: &mut Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    };
    type Damage<'a> = &'a dyn Fn(&mut SnapshotFile);
    let damages: [(&str, Damage<'_>); 9] = [
        ("and checksum", &|file| edit(&file.path, flip)),
        ("bytes and checksum", &|file| {
            edit(&file.path, |bytes| bytes.truncate(bytes.len() - 1))
        }),
        ("bytes and checksum", &|file| {
            edit(&file.path, |bytes| bytes.push(0))
        }),
        ("bytes and checksum", &|file| file.meta.bytes += 1),
        ("upgrade it", &|file| file.meta.version = STATE_VERSION + 1),
        ("not what it says", &|file| {
            file.meta.last_log_id = Some(log_id(77))
        }),
        ("not what it says", &|file| file.meta.last_membership = None),
        ("its state hash is", &|file| file.meta.state_hash[0] ^= 1),
        ("without its state hash", &|file| file.meta.state_hash.clear()),
    ];
    for (why, damage) in damages {
        let mut file = received(&snapshot, target.path());
        damage(&mut file);
        let error = storage.prepare_install(file).run().err().unwrap().to_string();
        assert!(error.contains(why), "{error} says {why}");
        assert_eq!(dump(&storage), all);
        assert_eq!(storage.current_snapshot().unwrap().as_ref(), Some(&own), "{why}");
    }
    drop(storage);
    let storage = open(target.path());
    assert_eq!(dump(&storage), all);
    assert_eq!(generations(target.path()), ["generation-1"]);
    assert_eq!(storage.current_snapshot().unwrap(), Some(own));
}

fn edit(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    edit(&mut bytes);
    fs::write(path, bytes).unwrap();
}

// --- Snapshots: the folder ---

#[test]
fn only_the_newest_snapshot_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = filled(dir.path());
    for round in 0..3 {
        let built = storage.build_snapshot().run().unwrap();
        assert_eq!(storage.current_snapshot().unwrap(), Some(built.clone()));
        let stem = built.path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert_eq!(
            names_in(&snapshots(dir.path())),
            [format!("{stem}.mdb"), format!("{stem}.meta")]
        );
        // The second one is of the same index as the first.
        if round > 0 {
            apply_op(&mut storage, mkdir(&format!("/n{round}"))).unwrap();
        }
    }
    let last = storage.current_snapshot().unwrap();
    drop(storage);
    assert_eq!(open(dir.path()).current_snapshot().unwrap(), last);
}

#[test]
fn a_snapshot_after_a_restart_replaces_one_of_the_same_index() {
    let dir = tempfile::tempdir().unwrap();
    let storage = filled(dir.path());
    for _ in 0..3 {
        storage.build_snapshot().run().unwrap();
    }
    let old = storage.current_snapshot().unwrap().unwrap();
    drop(storage);
    let storage = open(dir.path());
    let new = storage.build_snapshot().run().unwrap();
    assert_eq!(storage.current_snapshot().unwrap().as_ref(), Some(&new));
    // Another name: were the data replaced under the old description, a crash in between would leave
    // data and description that do not belong together.
    assert_ne!(new.path, old.path);
    assert_eq!(names_in(&snapshots(dir.path())).len(), 2);
}

#[test]
fn what_a_crash_left_in_the_folder_of_snapshots_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = filled(dir.path());
    let older = storage.build_snapshot().run().unwrap();
    let (older_data, older_meta) = (
        fs::read(&older.path).unwrap(),
        fs::read(older.path.with_extension("meta")).unwrap(),
    );
    apply_op(&mut storage, mkdir("/n")).unwrap();
    let newest = storage.build_snapshot().run().unwrap();
    drop(storage);

    let folder = snapshots(dir.path());
    // Killed before the older one was removed; while copying, receiving, reading what was copied, and
    // between the two renames.
    fs::write(&older.path, older_data).unwrap();
    fs::write(older.path.with_extension("meta"), older_meta).unwrap();
    fs::write(folder.join("building-123-0.tmp"), "half").unwrap();
    fs::write(folder.join("received-9.tmp"), "half").unwrap();
    fs::create_dir(folder.join("building-123-0.open")).unwrap();
    fs::write(folder.join("building-123-0.open/data.mdb"), "half").unwrap();
    let unnamed = "snapshot-00000000000000000099-00000000000000000003-000007";
    fs::write(folder.join(format!("{unnamed}.mdb")), "no meta").unwrap();
    fs::write(folder.join(format!("{unnamed}.new")), "half").unwrap();

    let storage = open(dir.path());
    assert_eq!(storage.current_snapshot().unwrap().as_ref(), Some(&newest));
    assert_eq!(names_in(&folder).len(), 2);
    let prepared = storage.prepare_install(newest).run().unwrap();
    drop(prepared);
}

#[test]
fn a_damaged_description_of_a_snapshot_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let storage = filled(dir.path());
    let snapshot = storage.build_snapshot().run().unwrap();
    let path = snapshot.path.with_extension("meta");
    let whole = fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for damaged in [&flipped[..], &whole[..whole.len() - 1], &whole[..4], &[]] {
        fs::write(&path, damaged).unwrap();
        let error = storage.current_snapshot().unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        assert!(error.contains("damaged"), "{error}");
    }
    fs::write(&path, whole).unwrap();
    assert_eq!(storage.current_snapshot().unwrap(), Some(snapshot));
}

#[test]
fn asking_for_the_snapshot_while_another_takes_its_place_never_fails() {
    let dir = tempfile::tempdir().unwrap();
    let storage = filled(dir.path());
    storage.build_snapshot().run().unwrap();
    std::thread::scope(|scope| {
        let builds: Vec<_> = (0..20).map(|_| storage.build_snapshot()).collect();
        let building = scope.spawn(|| {
            for build in builds {
                build.run().unwrap();
            }
        });
        while !building.is_finished() {
            assert!(storage.current_snapshot().unwrap().is_some());
        }
        building.join().unwrap();
    });
}

#[test]
fn snapshots_built_at_once_both_succeed() {
    let dir = tempfile::tempdir().unwrap();
    let storage = filled(dir.path());
    let builds = [storage.build_snapshot(), storage.build_snapshot()];
    let built: Vec<_> = std::thread::scope(|scope| {
        let threads = builds.map(|build| scope.spawn(|| build.run()));
        threads.map(|thread| thread.join().unwrap().unwrap()).into()
    });
    let current = storage.current_snapshot().unwrap().unwrap();
    assert!(built.contains(&current));
    assert_eq!(fs::metadata(&current.path).unwrap().len(), current.meta.bytes);
}

#[test]
fn a_build_holds_the_state_that_it_copies_even_when_that_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = filled(dir.path());
    let all = dump(&storage);
    let own = storage.build_snapshot().run().unwrap();
    let late = storage.build_snapshot();
    let prepared = storage.prepare_install(own).run().unwrap();
    storage.install(prepared).unwrap();
    assert_eq!(generations(dir.path()), ["generation-1", "generation-2"]);
    assert_eq!(late.run().unwrap().meta.last_log_id, Some(log_id(2)));
    assert_eq!(generations(dir.path()), ["generation-2"]);
    assert_eq!(dump(&storage), all);
}
