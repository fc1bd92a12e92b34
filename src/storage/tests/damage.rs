//! What flipped and missing bytes do to a node's files: they are found, said and never served. A state is
//! rebuilt (here: opened empty, for openraft to fill), a snapshot is refused.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command as Process;

use super::*;

/// A state in which a name is found in its file, closed or left as a kill leaves it.
fn filled(dir: &Path) -> Storage {
    let mut storage = with_servers(dir);
    let many: Vec<_> = (0..500)
        .map(|n| at(n, touch(&format!("/a-file-whose-name-is-long-{n:05}"))))
        .collect();
    apply(&mut storage, &many);
    storage
}

fn data_of(storage: &Storage) -> PathBuf {
    storage.reader().file()
}

fn edit(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    edit(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// The state is thrown away: empty, and in a generation of its own, which is sound.
#[track_caller]
fn assert_rebuilt(dir: &Path, what: &str) {
    let storage = open(dir);
    assert_eq!(storage.progress().unwrap(), Progress::default(), "{what}");
    assert_eq!(paths(&storage), Vec::<String>::new(), "{what}");
    assert_hashed(&storage);
    let mut names: Vec<_> = fs::read_dir(dir.join("lmdb"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["STATE", "generation-2"], "{what}");
}

type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);

#[test]
fn a_damaged_state_is_found_at_the_next_start_and_not_served() {
    let last_record = |bytes: &Vec<u8>| {
        let name = b"a-file-whose-name-is-long-00321";
        bytes
            .windows(name.len())
            .rposition(|window| window == name)
            .unwrap()
    };
    let damages: [(&str, Damage<'_>); 6] = [
        ("a flipped bit in a name", &|bytes| {
            let at = last_record(bytes);
            bytes[at + 20] ^= 1;
        }),
        ("a flipped bit in a value", &|bytes| {
            let at = last_record(bytes);
            bytes[at + 31 + 4] ^= 0x10;
        }),
        ("a meta page that is none", &|bytes| bytes[16] ^= 0xff),
        ("the second meta page, too", &|bytes| bytes[4096 + 16] ^= 0xff),
        ("half of the file", &|bytes| bytes.truncate(bytes.len() / 2)),
        ("nothing but the meta pages", &|bytes| bytes.truncate(8192)),
    ];
    for (what, damage) in damages {
        for clean in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let storage = filled(dir.path());
            let data = data_of(&storage);
            match clean {
                true => storage.close().unwrap(),
                false => drop(storage),
            }
            edit(&data, damage);
            assert_rebuilt(dir.path(), what);
        }
    }
}

#[test]
fn a_state_is_taken_at_its_word_where_nobody_wants_it_verified() {
    let dir = tempfile::tempdir().unwrap();
    let storage = filled(dir.path());
    let data = data_of(&storage);
    storage.close().unwrap();
    edit(&data, |bytes| {
        let name = b"a-file-whose-name-is-long-00321";
        let at = bytes.windows(name.len()).rposition(|window| window == name);
        bytes[at.unwrap()] = b'A';
    });
    let unverified = StorageOptions {
        verify: false,
        ..options(dir.path())
    };
    let storage = Storage::open(&unverified).unwrap();
    assert!(storage.progress().unwrap().applied.is_some());
    let (_, scan) = storage.reader().scan(|_| ()).unwrap();
    assert_ne!(scan.recorded, Some(scan.computed));
    // It makes no snapshot, behind which the log would be purged, and is not used again.
    let error = storage.build_snapshot().run().unwrap_err().to_string();
    assert!(
        error.contains(data.to_str().unwrap()) && error.contains("is damaged: its records have the hash"),
        "{error}"
    );
    assert_eq!(storage.current_snapshot().unwrap(), None);
    drop(storage);
    let storage = Storage::open(&unverified).unwrap();
    assert_eq!(storage.progress().unwrap(), Progress::default());
}

/// Opens it as a node does, with every state being a large one.
fn open_soon(dir: &Path) -> Result<(Storage, Option<Unread>), StorageError> {
    Storage::open_soon(&options(dir), 0)
}

#[test]
fn a_large_state_is_used_before_it_is_verified_if_it_was_closed() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).close().unwrap();
    let size = fs::metadata(data_of(&open(dir.path()))).unwrap().len();
    // It was not closed.
    let (storage, unread) = open_soon(dir.path()).unwrap();
    assert!(unread.is_none());
    storage.close().unwrap();
    // It is no larger than that.
    let (storage, unread) = Storage::open_soon(&options(dir.path()), size).unwrap();
    assert!(unread.is_none());
    storage.close().unwrap();
    let (mut storage, unread) = open_soon(dir.path()).unwrap();
    let unread = unread.unwrap();
    apply(&mut storage, &[at(1000, touch("/meanwhile"))]);
    unread.read_through().unwrap();
    // Also when another state has taken its place.
    let snapshot = storage.build_snapshot().run().unwrap();
    let prepared = storage.prepare_install(snapshot).run().unwrap();
    storage.install(prepared).unwrap();
    unread.read_through().unwrap();
    assert_hashed(&storage);
}

#[test]
fn a_large_state_that_is_damaged_is_found_while_it_is_used_and_then_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let storage = filled(dir.path());
    let data = data_of(&storage);
    storage.close().unwrap();
    let flip = |bytes: &mut Vec<u8>| {
        let name = b"a-file-whose-name-is-long-00321";
        let at = bytes.windows(name.len()).rposition(|window| window == name);
        bytes[at.unwrap()] ^= 1;
    };
    edit(&data, flip);
    let (storage, unread) = open_soon(dir.path()).unwrap();
    let error = unread.unwrap().read_through().unwrap_err().to_string();
    assert!(
        error.contains(data.to_str().unwrap()) && error.contains("is damaged: its records have the hash"),
        "{error}"
    );
    // However it is stopped.
    storage.close().unwrap();
    let (storage, unread) = open_soon(dir.path()).unwrap();
    assert!(unread.is_none());
    assert_eq!(storage.progress().unwrap(), Progress::default());
}

#[test]
fn no_state_is_thrown_away_while_its_snapshot_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let storage = filled(dir.path());
    let data = data_of(&storage);
    let snapshot = storage.build_snapshot().run().unwrap().path;
    storage.close().unwrap();
    let whole = fs::read(&snapshot).unwrap();
    edit(&snapshot, |bytes| bytes.truncate(4096));
    // The state is sound: it is used, and the snapshot is found when both are read through.
    let (storage, unread) = open_soon(dir.path()).unwrap();
    let error = unread.unwrap().read_through().unwrap_err().to_string();
    assert!(
        error.contains(snapshot.to_str().unwrap()) && error.contains("move its data directory away"),
        "{error}"
    );
    storage.close().unwrap();
    // It cannot even be opened: the start is refused, and the files stay.
    for page in [16, 4096 + 16] {
        edit(&data, |bytes| bytes[page] ^= 0xff);
    }
    let error = open_soon(dir.path()).err().unwrap().to_string();
    assert!(error.contains(snapshot.to_str().unwrap()), "{error}");
    assert!(data.exists());
    fs::write(&snapshot, whole).unwrap();
    let (storage, _) = open_soon(dir.path()).unwrap();
    assert_eq!(storage.progress().unwrap(), Progress::default());
    assert!(!data.exists());
}

#[test]
fn a_state_is_the_sum_of_its_parts() {
    let dir = tempfile::tempdir().unwrap();
    let storage = filled(dir.path());
    let whole = storage.reader().scan(|_| ()).unwrap().1;
    for parts in [1, 2, 3, 8, 1000] {
        let sum = storage.reader().read(|view| {
            let first = view.scan_part(0, parts, |_| ())?;
            (1..parts).try_fold(first, |sum, n| Ok(sum.plus(view.scan_part(n, parts, |_| ())?)))
        });
        assert_eq!(sum.unwrap(), whole, "{parts} parts");
    }
}

#[test]
fn a_verification_that_never_ended_counts_as_damage() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path()));
    // As a crash in the middle of it leaves the directory.
    fs::write(dir.path().join("lmdb/VERIFYING"), "generation-1\n").unwrap();
    assert_rebuilt(dir.path(), "marked");
}

#[test]
fn a_mark_of_a_generation_that_is_gone_means_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let storage = filled(dir.path());
    let all = dump(&storage);
    drop(storage);
    let mark = dir.path().join("lmdb/VERIFYING");
    fs::write(&mark, "generation-7\n").unwrap();
    assert_eq!(dump(&open(dir.path())), all);
    assert!(!mark.exists());
}

#[test]
fn a_state_that_differs_from_its_peers_is_not_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let storage = filled(dir.path());
    storage.reader().refuse("it differs since index 7").unwrap();
    storage.close().unwrap();
    for _ in 0..2 {
        let error = Storage::open(&options(dir.path())).err().unwrap().to_string();
        assert!(
            error.contains("lmdb/REFUSED: it differs since index 7"),
            "{error}"
        );
    }
    fs::remove_file(dir.path().join("lmdb/REFUSED")).unwrap();
    assert!(open(dir.path()).progress().unwrap().applied.is_some());
}

#[test]
fn a_damaged_snapshot_stops_the_start_and_is_named_and_the_state_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let storage = filled(dir.path());
    let all = dump(&storage);
    let snapshot = storage.build_snapshot().run().unwrap();
    storage.close().unwrap();
    let whole = fs::read(&snapshot.path).unwrap();
    let damages: [Damage<'_>; 3] = [
        &|bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        },
        &|bytes| bytes.truncate(4096),
        &|bytes| bytes.clear(),
    ];
    // Also when the state would have to be rebuilt from it.
    fs::write(dir.path().join("lmdb/VERIFYING"), "generation-1\n").unwrap();
    for damage in damages {
        edit(&snapshot.path, damage);
        let error = Storage::open(&options(dir.path())).err().unwrap().to_string();
        assert!(error.contains(snapshot.path.to_str().unwrap()), "{error}");
        assert!(
            error.contains("is damaged") && error.contains("move its data directory away"),
            "{error}"
        );
        fs::write(&snapshot.path, &whole).unwrap();
    }
    fs::remove_file(dir.path().join("lmdb/VERIFYING")).unwrap();
    assert_eq!(dump(&open(dir.path())), all);
}

/// A snapshot whose checksum is right and whose records are not: built by a server without this check.
#[test]
fn a_snapshot_of_a_damaged_state_is_refused() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let snapshot = filled(dirs[0].path()).build_snapshot().run().unwrap();
    let path = dirs[1].path().join("received");
    fs::copy(&snapshot.path, &path).unwrap();
    edit(&path, |bytes| {
        let name = b"a-file-whose-name-is-long-00321";
        let at = bytes.windows(name.len()).position(|window| window == name);
        bytes[at.unwrap()] = b'A';
    });
    let mut meta = snapshot.meta;
    meta.checksum = xxhash_rust::xxh3::xxh3_64(&fs::read(&path).unwrap());
    let storage = open(dirs[1].path());
    let received = snapshot::SnapshotFile {
        meta,
        path: path.clone(),
    };
    let error = storage.prepare_install(received).run().err().unwrap().to_string();
    assert!(
        error.contains(path.to_str().unwrap()) && error.contains("is damaged: its records have the hash"),
        "{error}"
    );
    assert!(path.exists() && !dirs[1].path().join("lmdb/generation-2").exists());
    assert_eq!(storage.current_snapshot().unwrap(), None);
}

/// In the process that [`any_flipped_byte_is_survived`] starts: opens the directory, and says what it found.
#[test]
fn opens_what_it_is_given() {
    let Some(dir) = std::env::var_os("MINFS_TEST_DAMAGED") else {
        return;
    };
    let storage = open(Path::new(&dir));
    let applied = storage.progress().unwrap().applied.map_or(0, |last| last.index);
    assert_hashed(&storage);
    // What can be read is what was written: the test's own names, or nothing.
    let names = paths(&storage);
    assert_eq!(names.len(), if applied == 0 { 0 } else { 500 });
    // And it goes on.
    let mut storage = storage;
    apply_op(&mut storage, mkdir("/more")).unwrap();
    assert_hashed(&storage);
    storage.build_snapshot().run().unwrap();
}

/// Flips bytes all over the file, each in a copy of its own. LMDB may crash over them; then the next start
/// rebuilds. In a process of its own, for the sake of this one.
#[test]
fn any_flipped_byte_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let storage = filled(dir.path());
    let data = data_of(&storage);
    storage.close().unwrap();
    let whole = fs::read(&data).unwrap();
    let relative = data.strip_prefix(dir.path()).unwrap();
    let start = |dir: &Path| {
        Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "storage::tests::damage::opens_what_it_is_given"])
            .env("MINFS_TEST_DAMAGED", dir)
            .env_remove("RUST_LOG")
            .output()
            .unwrap()
    };
    let (mut crashed, mut refused, pages) = (0, 0, whole.len() / 4096);
    assert!(pages > 10, "{pages} pages");
    // In each page: its header, its list of records, and somewhere among them.
    let places =
        (0..pages).flat_map(|page| [10, 12, 18, 2_300 + 97 * page % 1_700].map(|at| page * 4096 + at));
    for at in places {
        let copy = tempfile::tempdir().unwrap();
        fs::create_dir_all(copy.path().join(relative).parent().unwrap()).unwrap();
        fs::copy(dir.path().join("lmdb/STATE"), copy.path().join("lmdb/STATE")).unwrap();
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        fs::write(copy.path().join(relative), bytes).unwrap();
        let first = start(copy.path());
        if first.status.success() {
            continue;
        }
        match first.status.signal() {
            Some(_) => crashed += 1,
            None => refused += 1,
        }
        // A crash over the damage, or a snapshot that could not be made of it: now it is rebuilt.
        let second = start(copy.path());
        assert!(
            second.status.success(),
            "byte {at}: first {first:?}, then {second:?}"
        );
    }
    println!(
        "{crashed} crashes over {} flipped bytes, {refused} snapshots refused",
        pages * 4
    );
}
