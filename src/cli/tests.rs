//! The commands against servers in memory: what they print, what they do, how they exit.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::rc::Rc;

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::client::testing::{Cluster, DeadAddress, Fault, Server};
use crate::proto::admin::{GetNodeStatusResponse, Member, Role};
use crate::proto::dfs::{ClusterInfo, DataServerMsg, FileType, MetaServerMsg};

#[derive(Clone, Default)]
struct Sink(Rc<RefCell<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader that has gone away.
struct Gone;

impl Write for Gone {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn minfs_at(servers: &str, arguments: &[&str]) -> (Exit, String) {
    let sink = Sink::default();
    let mut out = Output::new(Box::new(sink.clone()));
    let arguments = Arguments::try_parse_from([&["minfs"], arguments].concat()).unwrap();
    let environment = Environment {
        server: Some(servers.to_string()),
        etcd: None,
    };
    let exit = run(arguments, &environment, &mut out).await;
    out.finish().unwrap();
    let printed = String::from_utf8(sink.0.take()).unwrap();
    (exit, printed)
}

async fn minfs(server: &Server, arguments: &[&str]) -> (Exit, String) {
    minfs_at(&server.addr, arguments).await
}

async fn json(server: &Server, arguments: &[&str]) -> (Exit, Value) {
    let (exit, printed) = minfs(server, &[&["--json"], arguments].concat()).await;
    (exit, serde_json::from_str(&printed).expect("one JSON document"))
}

fn lines(printed: &str) -> Vec<&str> {
    printed.lines().collect()
}

fn write(root: &Path, file: &str) {
    let path = root.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, b"content is not copied").unwrap();
}

/// a/ a/b/ a/b/f1 a/f2 a-b c/ : the order of names is not that of paths.
fn small_tree() -> TempDir {
    let root = TempDir::new().unwrap();
    write(root.path(), "a/b/f1");
    write(root.path(), "a/f2");
    write(root.path(), "a-b");
    fs::create_dir(root.path().join("c")).unwrap();
    root
}

const SMALL: [&str; 6] = ["a", "a-b", "a/b", "a/b/f1", "a/f2", "c"];

fn local(root: &TempDir) -> &str {
    root.path().to_str().unwrap()
}

/// The paths below `root`, relative to it, in byte order.
fn image(cluster: &Cluster, root: &str) -> Vec<String> {
    let prefix = format!("{root}/");
    cluster
        .paths()
        .iter()
        .filter_map(|path| path.strip_prefix(&prefix))
        .map(str::to_string)
        .collect()
}

// --- Single paths ---

#[tokio::test]
async fn directories_and_files_are_made_listed_and_removed() {
    let server = Cluster::default().serve();
    assert_eq!(
        minfs(&server, &["mkdir", "/a", "/b"]).await,
        (Exit::Ok, String::new())
    );
    assert_eq!(minfs(&server, &["mkdir", "-p", "/a/x/y"]).await.0, Exit::Ok);
    assert_eq!(minfs(&server, &["touch", "/a/f"]).await.0, Exit::Ok);
    assert_eq!(minfs(&server, &["ls"]).await.1, "a\nb\n");
    assert_eq!(minfs(&server, &["ls", "/a/"]).await.1, "f\nx\n");
    assert_eq!(
        minfs(&server, &["ls", "/a/f"]).await.1,
        "f\n",
        "a file is listed as itself"
    );
    assert_eq!(minfs(&server, &["rm", "/a/f", "/b"]).await.0, Exit::Ok);
    assert_eq!(minfs(&server, &["rm", "/a"]).await.0, Exit::Mistake);
    assert_eq!(minfs(&server, &["rm", "-r", "/a"]).await.0, Exit::Ok);
    assert_eq!(minfs(&server, &["ls"]).await.1, "");
}

#[tokio::test]
async fn long_listings_show_kind_bytes_and_utc() {
    let cluster = Cluster::default();
    let server = cluster.serve();
    cluster.put("/d", FileType::Directory);
    cluster.put("/d/f", FileType::File);
    cluster.put("/g", FileType::File);
    cluster.set_size("/d/f", 12345, "abc");
    let (_, printed) = minfs(&server, &["ls", "-l"]).await;
    assert_eq!(
        lines(&printed),
        [
            "d 12345 2001-09-09T01:46:40.123Z d",
            "-     0 2001-09-09T01:46:40.123Z g"
        ]
    );
    let (_, printed) = minfs(&server, &["ls", "-lR", "/"]).await;
    assert_eq!(lines(&printed)[2], "- 12345 2001-09-09T01:46:40.123Z /d/f");

    let (_, printed) = minfs(&server, &["stat", "/d/f"]).await;
    assert_eq!(
        lines(&printed),
        [
            "path:     /d/f",
            "type:     file",
            "size:     12345",
            "modified: 2001-09-09T01:46:40.123Z",
            "md5:      abc",
            "replica:  block 7 on ds1:8001",
        ]
    );
}

#[tokio::test]
async fn json_says_the_same() {
    let cluster = Cluster::default();
    let server = cluster.serve();
    let (_, document) = json(&server, &["mkdir", "-p", "/a/b"]).await;
    assert_eq!(document, serde_json::json!({"created": ["/a", "/a/b"]}));
    json(&server, &["touch", "/a/f"]).await;
    cluster.set_size("/a/f", 3, "abc");

    let (_, document) = json(&server, &["ls", "/a"]).await;
    assert_eq!(document["path"], "/a");
    assert_eq!(document["entries"][0]["type"], "directory");
    let (_, tree) = json(&server, &["ls", "-R", "/"]).await;
    let paths: Vec<&str> = tree["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["/a", "/a/b", "/a/f"]);
    let (_, stat) = json(&server, &["stat", "/a/f"]).await;
    assert_eq!((&stat["size"], &stat["md5"]), (&3.into(), &"abc".into()));
    assert_eq!(stat["mtime"], "2001-09-09T01:46:40.123Z");
    assert_eq!(stat["mtime_ms"], client::testing::MTIME);
    assert_eq!(stat["replicas"][0]["server"], "ds1:8001");
    let (_, removed) = json(&server, &["rm", "-r", "/a"]).await;
    assert_eq!(removed, serde_json::json!({"removed": ["/a"]}));
}

#[tokio::test]
async fn a_name_with_control_characters_stays_on_its_line() {
    let cluster = Cluster::default();
    let server = cluster.serve();
    cluster.put("/two\nlines\u{1b}[2J", FileType::File);
    assert_eq!(minfs(&server, &["ls"]).await.1, "two\\nlines\\u{1b}[2J\n");
    assert_eq!(
        json(&server, &["ls"]).await.1["entries"][0]["name"],
        "two\nlines\u{1b}[2J"
    );
}

// --- Exits ---

#[tokio::test]
async fn every_outcome_has_its_exit_and_its_kind() {
    let cluster = Cluster::default();
    let server = cluster.serve();
    cluster.put("/f", FileType::File);
    for (arguments, exit, kind) in [
        (&["stat", "/x"][..], Exit::NotFound, "not_found"),
        (&["mkdir", "/x/y"], Exit::NotFound, "not_found"),
        (&["touch", "/f"], Exit::AlreadyExists, "already_exists"),
        (&["mkdir", "-p", "/f"], Exit::AlreadyExists, "already_exists"),
        (&["touch", "f"], Exit::Mistake, "invalid_argument"),
        (&["rm", "/"], Exit::Mistake, "invalid_argument"),
        (&["mkdir", "/f/g"], Exit::Mistake, "failed_precondition"),
        (&["mirror", "/no/such/directory", "/m"], Exit::LocalIo, "local_io"),
        (&["diff", "/dev/null", "/"], Exit::LocalIo, "local_io"),
        (&["--server", "nonsense", "ls"], Exit::Usage, "usage"),
        (&["--server", "a:1", "--etcd", "b:2", "ls"], Exit::Usage, "usage"),
    ] {
        let (code, document) = json(&server, arguments).await;
        assert_eq!(
            (code, document["error"]["kind"].as_str()),
            (exit, Some(kind)),
            "{arguments:?}"
        );
        assert!(document["error"]["message"].is_string());
        let (code, printed) = minfs(&server, arguments).await;
        assert_eq!(
            (code, printed.as_str()),
            (exit, ""),
            "errors are not for stdout: {arguments:?}"
        );
    }
}

#[tokio::test]
async fn unavailable_unknown_and_broken_are_three_things() {
    let server = Cluster::default().serve();
    let brief = ["--timeout", "300ms", "mkdir", "/a"];
    server.fail_always(Fault::Unavailable { leader: None });
    let (exit, document) = json(&server, &["--timeout", "2s", "mkdir", "/a"]).await;
    assert_eq!(
        (exit, &document["error"]["kind"]),
        (Exit::Unavailable, &"unavailable".into())
    );
    server.fail_always(Fault::DoneButUnknown);
    let (exit, document) = json(&server, &brief).await;
    assert_eq!(
        (exit, &document["error"]["kind"]),
        (Exit::OutcomeUnknown, &"outcome_unknown".into())
    );
    server.fail_always(Fault::Hang);
    assert_eq!(json(&server, &brief).await.0, Exit::OutcomeUnknown);
    assert_eq!(
        json(&server, &["--timeout", "300ms", "stat", "/a"]).await.0,
        Exit::Unavailable
    );
    server.fail_always(Fault::Broken);
    let (exit, document) = json(&server, &brief).await;
    assert_eq!(
        (exit, &document["error"]["kind"]),
        (Exit::Server, &"server".into())
    );
}

#[tokio::test]
async fn a_failover_is_not_the_users_business() {
    let cluster = Cluster::default();
    let (dead, server) = (DeadAddress::new(), cluster.serve());
    let servers = format!("{},{}", dead.addr, server.addr);
    server.fail_next([Fault::DoneButUnknown]);
    assert_eq!(
        minfs_at(&servers, &["mkdir", "/a"]).await,
        (Exit::Ok, String::new())
    );
    assert_eq!(cluster.paths(), ["/a"]);
}

#[test]
fn the_command_line_goes_before_the_environment() {
    let parse = |arguments: &[&str]| Arguments::try_parse_from([&["minfs"], arguments].concat()).unwrap();
    let source = |arguments: &[&str], server: Option<&str>, etcd: Option<&str>| {
        let environment = Environment {
            server: server.map(Into::into),
            etcd: etcd.map(Into::into),
        };
        parse(arguments).connection.source(&environment).unwrap()
    };
    let servers = |list: &str| Source::servers(list).unwrap();
    let etcd = |list: &str| Source::etcd(list).unwrap();
    assert_eq!(source(&["ls"], None, None), servers("localhost:9090"));
    assert_eq!(source(&["ls"], None, Some("e:1")), etcd("e:1"));
    assert_eq!(source(&["ls"], Some("s:1"), Some("e:1")), servers("s:1"));
    assert_eq!(source(&["ls", "--etcd", "e:2"], Some("s:1"), None), etcd("e:2"));
    assert_eq!(
        source(&["--server", "s:2,s:3", "ls"], Some("s:1"), Some("e:1")),
        servers("s:2,s:3")
    );
    assert!(Arguments::try_parse_from(["minfs", "--timeout", "0s", "ls"]).is_err());
    assert_eq!(
        parse(&["--timeout", "2m", "ls"]).connection.timeout.as_secs(),
        120
    );
}

#[test]
fn the_arguments_are_sound_and_help_has_the_exit_codes() {
    use clap::CommandFactory;
    let mut command = Arguments::command();
    command.clone().debug_assert();
    let help = command.render_long_help().to_string();
    assert!(help.contains("7  outcome unknown"), "{help}");
}

#[tokio::test]
async fn a_reader_that_went_away_is_no_error() {
    let cluster = Cluster::default();
    let server = cluster.serve();
    for directory in 0..50 {
        cluster.put(&format!("/{directory:02}"), FileType::Directory);
        for file in 0..50 {
            cluster.put(&format!("/{directory:02}/{file:0100}"), FileType::File);
        }
    }
    let arguments = Arguments::try_parse_from(["minfs", "ls", "-R", "/", "--jobs", "1"]).unwrap();
    let mut out = Output::new(Box::new(Gone));
    let environment = Environment {
        server: Some(server.addr.clone()),
        etcd: None,
    };
    assert_eq!(run(arguments, &environment, &mut out).await, Exit::Ok);
    out.finish().unwrap();
    assert!(server.count("ListDirectory") < 51, "the walk stops");
}

// --- Walks ---

#[tokio::test]
async fn a_tree_is_listed_in_order() {
    let cluster = Cluster::default();
    let server = cluster.serve();
    for path in ["/a", "/a/b", "/a/b/c", "/d", "/d/e", "/f", "/f/g"] {
        cluster.put(path, FileType::Directory);
    }
    let (_, printed) = minfs(&server, &["ls", "-R", "/"]).await;
    assert_eq!(
        lines(&printed),
        ["/a", "/d", "/f", "/a/b", "/a/b/c", "/d/e", "/f/g"]
    );
}

#[tokio::test]
async fn listings_are_under_way_together() {
    let cluster = Cluster::default();
    let server = cluster.serve();
    cluster.put("/t", FileType::Directory);
    for i in 0..8 {
        cluster.put(&format!("/t/{i}"), FileType::Directory);
        cluster.put(&format!("/t/{i}/f"), FileType::File);
    }
    server.gate("/t/", 8);
    let (exit, printed) = minfs(&server, &["ls", "-R", "/t", "--jobs", "8"]).await;
    assert_eq!((exit, lines(&printed).len()), (Exit::Ok, 16));
}

#[tokio::test]
async fn a_walk_keeps_to_its_jobs_and_stops_at_an_error() {
    let (running, most) = (Cell::new(0), Cell::new(0));
    let visit = async |depth: u32| {
        running.set(running.get() + 1);
        most.set(most.get().max(running.get()));
        tokio::task::yield_now().await;
        running.set(running.get() - 1);
        match depth {
            0..5 => Ok((depth, vec![depth + 1; 4])),
            5 => Ok((depth, Vec::new())),
            _ => Err("too deep"),
        }
    };
    let mut seen = Vec::new();
    let emit = |depth| {
        seen.push(depth);
        std::ops::ControlFlow::Continue(())
    };
    walk::in_order(0, 7, visit, emit).await.unwrap();
    assert_eq!(seen.len(), 1 + 4 + 16 + 64 + 256 + 1024);
    assert_eq!(seen[..8], [0, 1, 2, 3, 4, 5, 5, 5]);
    assert!(most.get() <= 8, "{}", most.get());

    let visit = async |directory: u32| match directory {
        0 => Ok((0, vec![1, 2, 3])),
        2 => Err("no"),
        other => Ok((other, Vec::new())),
    };
    let mut seen = Vec::new();
    let result = walk::in_order(0, 4, visit, |directory| {
        seen.push(directory);
        std::ops::ControlFlow::Continue(())
    });
    assert_eq!(result.await, Err("no"));
    assert_eq!(seen, [0, 1], "what comes before the error was emitted");
}

// --- Mirror and diff ---

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

// --- The cluster ---

fn meta(addr: &str) -> MetaServerMsg {
    let (host, port) = addr.rsplit_once(':').unwrap();
    MetaServerMsg {
        host: host.into(),
        port: port.parse().unwrap(),
    }
}

fn status(incarnation: u64, role: Role, members: &[Member]) -> GetNodeStatusResponse {
    GetNodeStatusResponse {
        name: format!("meta-{incarnation}"),
        incarnation,
        cluster_id: "c1".into(),
        role: role as i32,
        term: 4,
        leader: Some("meta-1".into()),
        applied_index: Some(10 + incarnation),
        members: members.to_vec(),
        ..GetNodeStatusResponse::default()
    }
}

fn member(incarnation: u64, grpc_addr: &str) -> Member {
    Member {
        name: format!("meta-{incarnation}"),
        incarnation,
        raft_addr: format!("raft:{incarnation}"),
        grpc_addr: grpc_addr.into(),
        voter: true,
        matched_index: None,
    }
}

#[tokio::test]
async fn the_table_of_nodes_has_the_dead_one_too() {
    let cluster = Cluster::default();
    let (one, two, dead) = (cluster.serve(), cluster.serve(), DeadAddress::new());
    let members = [member(1, &one.addr), member(2, &two.addr), member(3, &dead.addr)];
    one.set_status(status(1, Role::Leader, &members));
    two.set_status(status(2, Role::Follower, &members));
    cluster.state().leader = Some(meta(&one.addr));
    cluster.state().cluster = ClusterInfo {
        master_meta_server: Some(meta(&one.addr)),
        slave_meta_server: vec![meta(&two.addr), meta(&dead.addr)],
        data_server: vec![DataServerMsg {
            host: "ds1".into(),
            port: 8001,
            file_total: 5,
            capacity: 100,
            use_capacity: 20,
        }],
    };

    // Only a follower is named; the others are found through it.
    let (exit, document) = json(&two, &["cluster"]).await;
    assert_eq!(exit, Exit::Ok);
    assert_eq!(
        (&document["leader"], &document["cluster_id"]),
        (&"meta-1".into(), &"c1".into())
    );
    let nodes = document["nodes"].as_array().unwrap();
    let column = |name: &str| {
        nodes
            .iter()
            .map(|node| node[name].clone())
            .collect::<Vec<Value>>()
    };
    assert_eq!(column("name"), ["meta-1", "meta-2", "meta-3"]);
    assert_eq!(
        column("role"),
        [Value::from("leader"), "follower".into(), Value::Null]
    );
    assert_eq!(column("raft"), ["raft:1", "raft:2", "raft:3"]);
    assert_eq!(column("applied"), [Value::from(11), 12.into(), Value::Null]);
    assert_eq!(column("incarnation"), ["1", "2", "3"]);
    assert_eq!(column("reachable"), [true, true, false]);
    assert_eq!(document["data_servers"][0]["address"], "ds1:8001");

    let (_, printed) = minfs(&two, &["cluster"]).await;
    let table = lines(&printed);
    let words = |line: &str| line.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    assert_eq!(
        words(table[1])[..5],
        ["meta-1", "leader", one.addr.as_str(), "raft:1", "4"]
    );
    assert!(table[3].contains("no: "), "{printed}");
    assert_eq!(words(table[6]), ["ds1:8001", "5", "100", "20"]);

    assert_eq!(
        minfs(&two, &["leader"]).await,
        (Exit::Ok, format!("{}\n", one.addr))
    );
    let (_, document) = json(&two, &["leader"]).await;
    assert_eq!(document["followers"][1], dead.addr.as_str());
}

#[tokio::test]
async fn the_table_is_printed_without_a_leader() {
    let (server, dead) = (Cluster::default().serve(), DeadAddress::new());
    server.set_status(status(1, Role::Candidate, &[member(1, "elsewhere:1")]));
    server.fail_always(Fault::Unavailable { leader: None });
    let servers = format!("{},{}", server.addr, dead.addr);
    let (exit, printed) = minfs_at(&servers, &["--json", "--timeout", "300ms", "cluster"]).await;
    assert_eq!(exit, Exit::Unavailable);
    let document: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(document["error"]["kind"], "unavailable");
    assert_eq!(document["data_servers"], Value::Null);
    let mut nodes = document["nodes"].as_array().unwrap().clone();
    nodes.sort_by_key(|node| node["reachable"].as_bool());
    assert_eq!(
        (nodes[0]["grpc"].as_str(), nodes.len()),
        (Some(dead.addr.as_str()), 2)
    );
    assert_eq!(
        (&nodes[1]["role"], &nodes[1]["name"]),
        (&"candidate".into(), &"meta-1".into())
    );
    assert_eq!(
        minfs_at(&servers, &["--timeout", "300ms", "leader"]).await.0,
        Exit::Unavailable
    );
}
