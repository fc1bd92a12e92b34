//! The walk over files: its order, and going on where another walk stopped.

use proptest::prelude::*;

use super::*;
use crate::domain::ids::InodeId;

/// Up to `limit` files below the root after the one at `after`.
fn page(storage: &Storage, after: &[&str], limit: usize) -> Vec<String> {
    let reader = storage.reader();
    let walk = reader.read(|view| {
        let mut files = Vec::new();
        view.for_each_file_after(InodeId::ROOT, &CleanPath::root(), after, &mut |path, _| {
            files.push(path.to_string());
            Ok(files.len() < limit)
        })?;
        Ok(files)
    });
    walk.unwrap()
}

fn parts(path: &str) -> Vec<&str> {
    path.split('/').skip(1).collect()
}

/// All files, found in pages of `limit`.
fn paged(storage: &Storage, limit: usize) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    loop {
        let last = all.last().cloned().unwrap_or_default();
        let next = page(storage, &parts(&last), limit);
        if next.is_empty() {
            return all;
        }
        all.extend(next);
    }
}

fn with(ops: Vec<Op>) -> (tempfile::TempDir, Storage) {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path());
    let commands: Vec<_> = ops.into_iter().map(|op| at(1, op)).collect();
    for answer in apply(&mut storage, &commands) {
        answer.unwrap();
    }
    (dir, storage)
}

#[test]
fn files_come_in_the_order_of_the_parts_of_their_paths() {
    let (_dir, storage) = with(vec![
        touch("/a-b"),
        mkdir("/a"),
        touch("/a/z"),
        mkdir("/a/b"),
        touch("/a/b/c"),
        touch("/a/b-c"),
        touch("/a!"),
        touch("/ab"),
        mkdir("/empty"),
        touch("/ä"),
        touch("/\u{1}"),
    ]);
    let all = ["/\u{1}", "/a/b/c", "/a/b-c", "/a/z", "/a!", "/a-b", "/ab", "/ä"];
    for limit in 1..=all.len() + 1 {
        assert_eq!(paged(&storage, limit), all, "{limit} a page");
    }
}

#[test]
fn the_walk_goes_on_wherever_it_stopped_whatever_is_there_now() {
    let (_dir, storage) = with(vec![
        touch("/a"),
        mkdir("/c"),
        touch("/c/d"),
        touch("/c/f"),
        touch("/e"),
    ]);
    for (after, rest) in [
        (vec![], &["/a", "/c/d", "/c/f", "/e"][..]),
        (vec!["a"], &["/c/d", "/c/f", "/e"]),
        (vec!["a", "gone", "below"], &["/c/d", "/c/f", "/e"]),
        (vec!["b"], &["/c/d", "/c/f", "/e"]),
        (vec!["c"], &["/c/d", "/c/f", "/e"]),
        (vec!["c", "d"], &["/c/f", "/e"]),
        (vec!["c", "e", "x"], &["/c/f", "/e"]),
        (vec!["c", "f"], &["/e"]),
        (vec!["c", "g"], &["/e"]),
        (vec!["e"], &[]),
        (vec!["z"], &[]),
    ] {
        assert_eq!(page(&storage, &after, 100), rest, "after {after:?}");
    }
}

#[test]
fn a_deep_tree_is_walked_to_its_bottom() {
    let deepest = "/d".repeat(1000);
    let mut ops: Vec<_> = (1..=1000).map(|depth| mkdir(&"/d".repeat(depth))).collect();
    let file = format!("{deepest}/f");
    ops.push(touch(&file));
    ops.push(touch("/e"));
    let (_dir, storage) = with(ops);
    assert_eq!(paged(&storage, 1), [file, "/e".to_owned()]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn pages_of_any_size_find_every_file_once(
        names in prop::collection::btree_set("(/[ab!-]{1,2}){1,4}", 0..40),
        limit in 1..7usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut storage = open(dir.path());
        for name in &names {
            let above: Vec<_> = name.match_indices('/').skip(1).map(|(at, _)| &name[..at]).collect();
            // Some are refused: there is a file where a directory should be, or the other way round.
            for directory in above {
                let _ = apply_op(&mut storage, mkdir(directory));
            }
            let _ = apply_op(&mut storage, touch(name));
        }
        let found = paged(&storage, limit);
        let all = page(&storage, &[], usize::MAX);
        prop_assert_eq!(&found, &all);
        prop_assert!(found.is_sorted_by(|a, b| parts(a) < parts(b)));
    }
}
