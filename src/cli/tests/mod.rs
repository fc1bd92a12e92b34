//! The commands against servers in memory: what they print, what they do, how they exit.

mod cluster;
mod copy;
mod fsck;
mod mirror;
mod shell;
mod transfer;

use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::client::testing::{Cluster, DeadAddress, Fault, Server};
use crate::proto::admin::{GetNodeStatusResponse, Member, Role};
use crate::proto::dfs::{ClusterInfo, DataServerMsg, FileType, MetaServerMsg};

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
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
        ..Environment::default()
    };
    let exit = run(arguments, &environment, &mut out).await;
    out.finish().unwrap();
    let printed = String::from_utf8(std::mem::take(&mut *sink.0.lock().unwrap())).unwrap();
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
            history: None,
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
        parse(&["--timeout", "2m", "ls"]).connection.timeout,
        Some(Duration::from_secs(120))
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
        ..Environment::default()
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
