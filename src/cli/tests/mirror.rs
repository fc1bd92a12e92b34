//! `mirror` and `diff`: whole trees, conflicts, failovers.

use super::*;

#[tokio::test]
async fn a_mirror_is_complete_repeatable_and_diffs_clean() {
    let (root, cluster) = (small_tree(), Cluster::default());
    let server = cluster.serve();
    let (exit, report) = json(&server, &["mirror", local(&root), "/x/image"]).await;
    assert_eq!(exit, Exit::Ok);
    assert_eq!(image(&cluster, "/x/image"), SMALL);
    let counts = |report: &Value| {
        ["entries", "directories", "files", "created", "existing"].map(|name| report[name].as_u64().unwrap())
    };
    assert_eq!(counts(&report), [6, 3, 3, 6, 0]);
    assert!(report["seconds"].as_f64().unwrap() > 0.0);
    assert!(report["entries_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(
        minfs(&server, &["diff", local(&root), "/x/image"]).await,
        (Exit::Ok, String::new())
    );

    let (exit, report) = json(&server, &["mirror", local(&root), "/x/image/"]).await;
    assert_eq!((exit, counts(&report)), (Exit::Ok, [6, 3, 3, 0, 6]));
    let (_, printed) = minfs(&server, &["mirror", local(&root), "/x/image"]).await;
    assert!(
        printed.starts_with("6 entries (3 directories, 3 files; 0 created, 6 existed) in "),
        "{printed}"
    );
    assert!(printed.trim_end().ends_with("entries/s"), "{printed}");
}

#[tokio::test]
async fn a_tree_can_be_mirrored_into_the_root() {
    let (root, cluster) = (small_tree(), Cluster::default());
    let server = cluster.serve();
    assert_eq!(minfs(&server, &["mirror", local(&root), "/"]).await.0, Exit::Ok);
    assert_eq!(image(&cluster, ""), SMALL);
    assert_eq!(
        minfs(&server, &["diff", local(&root), "/"]).await,
        (Exit::Ok, String::new())
    );
}

#[tokio::test]
async fn differences_are_named_with_everything_below_them() {
    let (root, cluster) = (small_tree(), Cluster::default());
    let server = cluster.serve();
    minfs(&server, &["mirror", local(&root), "/m"]).await;
    cluster.remove("/m/a/b");
    cluster.put("/m/c/new", FileType::Directory);
    cluster.put("/m/c/new/file", FileType::File);
    cluster.remove("/m/a-b");
    cluster.put("/m/a-b", FileType::Directory);
    cluster.put("/m/a-b/below", FileType::File);

    let (exit, printed) = minfs(&server, &["diff", local(&root), "/m"]).await;
    assert_eq!(exit, Exit::Differences);
    assert_eq!(
        lines(&printed),
        [
            "! a-b",
            "< a/b",
            "< a/b/f1",
            "> a-b/below",
            "> c/new",
            "> c/new/file"
        ],
        "a directory's own differences come before those below it"
    );
    let (exit, document) = json(&server, &["diff", local(&root), "/m"]).await;
    assert_eq!(exit, Exit::Differences);
    let expected = serde_json::json!(
        {"path": "a-b", "kind": "kind_differs", "local": "file", "remote": "directory"}
    );
    assert_eq!(document["differences"][0], expected);
    assert_eq!(document["differences"][1]["kind"], "only_local");
    assert_eq!(document["differences"][4]["kind"], "only_remote");
    assert_eq!(document["compared"], 9);

    let (exit, document) = json(&server, &["diff", local(&root), "/nothing"]).await;
    assert_eq!(
        (exit, &document["error"]["kind"]),
        (Exit::NotFound, &"not_found".into())
    );
}

#[tokio::test]
async fn an_entry_of_another_kind_is_a_conflict_and_the_rest_is_made() {
    let (root, cluster) = (small_tree(), Cluster::default());
    let server = cluster.serve();
    cluster.put("/m", FileType::Directory);
    cluster.put("/m/a", FileType::File);
    cluster.put("/m/a-b", FileType::Directory);
    let (exit, report) = json(&server, &["mirror", local(&root), "/m"]).await;
    assert_eq!(exit, Exit::AlreadyExists);
    let mut conflicts = report["conflicts"].as_array().unwrap().clone();
    conflicts.sort_by_key(|conflict| conflict["path"].to_string());
    let expected = serde_json::json!([
        {"path": "/m/a", "local": "directory", "remote": "file"},
        {"path": "/m/a-b", "local": "file", "remote": "directory"},
    ]);
    assert_eq!(Value::Array(conflicts), expected);
    assert_eq!(image(&cluster, "/m"), ["a", "a-b", "c"]);
}

#[cfg(unix)]
#[tokio::test]
async fn what_cannot_be_held_is_skipped_and_said_so() {
    use std::os::unix::ffi::OsStrExt;
    let (root, cluster) = (small_tree(), Cluster::default());
    let server = cluster.serve();
    std::os::unix::fs::symlink("a", root.path().join("link")).unwrap();
    fs::write(root.path().join(std::ffi::OsStr::from_bytes(b"bad\xff")), b"").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).unwrap();

    let (exit, report) = json(&server, &["mirror", local(&root), "/m"]).await;
    assert_eq!(exit, Exit::Ok);
    assert_eq!(image(&cluster, "/m"), SMALL);
    assert_eq!(
        (
            &report["skipped"]["symlinks"],
            &report["skipped"]["special_files"]
        ),
        (&1.into(), &1.into())
    );
    let bad = report["skipped"]["non_utf8_names"][0].as_str().unwrap();
    assert!(bad.ends_with("bad\u{fffd}"), "{bad}");
    let (_, printed) = minfs(&server, &["mirror", local(&root), "/m"]).await;
    assert_eq!(
        lines(&printed)[1],
        "skipped 1 symlinks, 1 special files, 1 names not UTF-8"
    );

    assert_eq!(
        minfs(&server, &["diff", local(&root), "/m"]).await,
        (Exit::Ok, String::new())
    );
    cluster.put("/m/link", FileType::File);
    assert_eq!(
        minfs(&server, &["diff", local(&root), "/m"]).await,
        (Exit::Differences, "! link\n".into())
    );
}

#[tokio::test]
async fn deep_and_wide_trees_are_mirrored() {
    let root = TempDir::new().unwrap();
    let deep: Vec<String> = (0..60).map(|depth| format!("d{depth}")).collect();
    write(root.path(), &format!("{}/bottom", deep.join("/")));
    fs::create_dir(root.path().join("wide")).unwrap();
    for i in 0..3000 {
        fs::write(root.path().join(format!("wide/{i:04}")), b"").unwrap();
    }
    let cluster = Cluster::default();
    let (first, second) = (cluster.serve(), cluster.serve());
    let servers = format!("{},{}", first.addr, second.addr);
    let (exit, printed) = minfs_at(&servers, &["mirror", local(&root), "/m"]).await;
    assert_eq!(exit, Exit::Ok, "{printed}");
    assert_eq!(image(&cluster, "/m").len(), 60 + 1 + 1 + 3000);
    for server in [&first, &second] {
        assert_eq!(
            minfs(server, &["diff", local(&root), "/m"]).await,
            (Exit::Ok, String::new())
        );
    }
    let (_, printed) = minfs(&first, &["ls", "-R", "/m"]).await;
    assert_eq!(lines(&printed).len(), 3062);
}

#[tokio::test]
async fn a_mirror_has_many_requests_under_way() {
    let root = TempDir::new().unwrap();
    for i in 0..32 {
        write(root.path(), &format!("f{i}"));
    }
    let cluster = Cluster::default();
    let server = cluster.serve();
    server.gate("/m/f", 16);
    let (exit, _) = minfs(&server, &["mirror", "-j", "16", local(&root), "/m"]).await;
    assert_eq!((exit, image(&cluster, "/m").len()), (Exit::Ok, 32));
}

#[tokio::test]
async fn a_mirror_survives_the_death_of_its_server_and_lost_answers() {
    let root = TempDir::new().unwrap();
    for i in 0..400 {
        write(root.path(), &format!("d{}/f{i}", i % 7));
    }
    let cluster = Cluster::default();
    let (first, second) = (cluster.serve(), cluster.serve());
    second.fail_next([
        Fault::DoneButUnknown,
        Fault::Overloaded,
        Fault::Lost,
        Fault::DoneButUnknown,
    ]);
    // Requests for d3 wait at the first server, so that it dies with some of them unanswered.
    first.gate("/m/d3/", usize::MAX);
    let servers = format!("{},{}", first.addr, second.addr);
    let seen = first.watch();
    let killer = std::thread::spawn(move || {
        seen.wait_until(|asked| asked.iter().any(|asked| asked.path.starts_with("/m/d3/")));
        drop(first);
    });
    let (exit, printed) = minfs_at(&servers, &["--json", "mirror", local(&root), "/m"]).await;
    killer.join().unwrap();
    assert_eq!(exit, Exit::Ok, "{printed}");
    let report: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(
        (&report["created"], &report["existing"]),
        (&407.into(), &0.into()),
        "repeats are recognised"
    );
    assert_eq!(
        minfs(&second, &["diff", local(&root), "/m"]).await,
        (Exit::Ok, String::new())
    );
}

#[tokio::test]
async fn a_mirror_that_cannot_go_on_says_whether_something_may_have_happened() {
    let root = small_tree();
    let server = Cluster::default().serve();
    let mirror = |limit| ["--timeout", limit, "mirror", local(&root), "/m"];
    server.fail_always(Fault::Unavailable { leader: None });
    assert_eq!(json(&server, &mirror("2s")).await.0, Exit::Unavailable);
    server.fail_always(Fault::DoneButUnknown);
    assert_eq!(json(&server, &mirror("300ms")).await.0, Exit::OutcomeUnknown);
}

#[tokio::test]
async fn a_diff_through_one_server_asks_no_other() {
    let (root, cluster) = (small_tree(), Cluster::default());
    let (follower, leader) = (cluster.serve(), cluster.serve());
    minfs(&leader, &["mirror", local(&root), "/m"]).await;
    let before = leader.asked().len();
    let hint = Fault::Unavailable {
        leader: Some(leader.addr.clone()),
    };
    follower.fail_next([hint.clone(), hint]);
    assert_eq!(
        minfs(&follower, &["diff", local(&root), "/m"]).await,
        (Exit::Ok, String::new())
    );
    assert_eq!(leader.asked().len(), before);
    assert_eq!(follower.count("ListDirectory"), 4 + 2);
}
