//! The `minfs` command as a process: exit codes, stdout and stderr as a script meets them, against
//! servers in memory.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use minfs::proto;
use serde_json::Value;

#[path = "../src/client/testing/mod.rs"]
mod testing;

use proto::dfs::FileType;
use testing::{Cluster, DataFault, DataServer, DeadAddress, Fault, Server};

/// The command, with nothing of the environment of whoever runs the tests.
fn command(server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_minfs"));
    command
        .args(arguments)
        .env("MINFS_SERVER", &server.addr)
        .env_remove("MINFS_ETCD")
        .env_remove("RUST_LOG");
    command
}

fn minfs(server: &Server, arguments: &[&str]) -> Output {
    command(server, arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn exit_codes_are_what_help_says() {
    let server = Cluster::default().serve();
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("f"), b"").unwrap();
    let tree = tree.path().to_str().unwrap();
    for (arguments, expected) in [
        (&["mkdir", "/a"][..], 0),
        (&["diff", tree, "/a"], 1),
        (&["mirror", tree, "/a"], 0),
        (&["diff", tree, "/a"], 0),
        (&["frobnicate"], 2),
        (&["--server", "nonsense", "ls"], 2),
        (&["stat", "/nothing"], 3),
        (&["mkdir", "/a"], 4),
        (&["rm", "/a"], 5),
        (&["mkdir", "relative"], 5),
        (&["mirror", "/no/such/directory", "/a"], 8),
        (&["--help"], 0),
        (&["--version"], 0),
    ] {
        let output = minfs(&server, arguments);
        assert_eq!(code(&output), expected, "{arguments:?}: {output:?}");
        let told = !stderr(&output).is_empty();
        assert_eq!(
            told,
            expected > 1,
            "errors, and only they, are on stderr: {arguments:?}: {output:?}"
        );
    }
    let help = minfs(&server, &["--help"]);
    for line in ["0  done", "6  unavailable", "9  any other"] {
        assert!(stdout(&help).contains(line), "{}", stdout(&help));
    }
}

#[test]
fn nothing_happened_and_it_may_have_happened_exit_differently() {
    let server = Cluster::default().serve();
    let create = ["--timeout", "2s", "touch", "/f"];
    server.fail_always(Fault::Unavailable { leader: None });
    assert_eq!(code(&minfs(&server, &create)), 6);
    server.fail_always(Fault::Lost);
    assert_eq!(code(&minfs(&server, &create)), 7);
    server.fail_always(Fault::Broken);
    assert_eq!(code(&minfs(&server, &create)), 9);
    let dead = DeadAddress::new();
    let output = minfs(&server, &[&["--server", &dead.addr], &create[..]].concat());
    assert_eq!(code(&output), 6);
    assert!(stderr(&output).contains(&dead.addr), "{}", stderr(&output));
}

#[test]
fn every_document_is_json_errors_and_usage_too() {
    let cluster = Cluster::default();
    let server = cluster.serve();
    cluster.state().leader = Some(proto::dfs::MetaServerMsg {
        host: "meta".into(),
        port: 1,
    });
    let tree = tempfile::tempdir().unwrap();
    let tree = tree.path().to_str().unwrap();
    for arguments in [
        &["mkdir", "/a", "--json"][..],
        &["--json", "touch", "/a/f"],
        &["--json", "ls", "-lR", "/"],
        &["--json", "stat", "/a"],
        &["--json", "mirror", tree, "/m"],
        &["--json", "diff", tree, "/a"],
        &["--json", "rm", "-r", "/a"],
        &["--json", "cluster"],
        &["--json", "leader"],
        &["--json", "stat", "/nothing"],
        &["--json", "frobnicate"],
        &["--json", "--timeout", "soon", "ls"],
    ] {
        let output = minfs(&server, arguments);
        let document: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}"));
        assert_eq!(
            document["error"].is_object(),
            code(&output) > 1,
            "{arguments:?}: {document}"
        );
        assert_eq!(stderr(&output), "", "{arguments:?}");
    }
}

#[test]
fn a_closed_pipe_ends_the_command_quietly() {
    let cluster = Cluster::default();
    let server = cluster.serve();
    for i in 0..3000 {
        cluster.put(&format!("/{i:0100}"), FileType::File);
    }
    let mut child = command(&server, &["ls"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((code(&output), stderr(&output)), (0, ""));
}

#[test]
fn files_are_stored_and_fetched_and_nothing_but_the_result_is_on_stdout() {
    let cluster = Cluster::default();
    let (server, _data) = (cluster.serve(), DataServer::start_for(&cluster, 3));
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    let content: Vec<u8> = (0..9_000_000u32)
        .map(|i| (i.wrapping_mul(i) >> 7) as u8)
        .collect();
    std::fs::write(path("f"), &content).unwrap();
    let output = minfs(&server, &["put", &path("f"), "/f"]);
    assert_eq!((code(&output), stderr(&output)), (0, ""));
    assert_eq!(stdout(&output).lines().count(), 1);
    let output = minfs(&server, &["get", "/f", &path("g")]);
    assert_eq!((code(&output), stderr(&output)), (0, ""));
    assert!(std::fs::read(path("g")).unwrap() == content);
    let output = minfs(&server, &["cat", "/f"]);
    assert!(output.stdout == content, "every byte as it is");
    assert_eq!((code(&output), stderr(&output)), (0, ""));
    let output = minfs(&server, &["put", "-n", &path("g"), "/f"]);
    assert_eq!(code(&output), 4);
    let output = minfs(&server, &["get", "/f", &path("no/f")]);
    assert_eq!(code(&output), 8);
    cluster.set_size("/f", 9_000_000, "00000000000000000000000000000000");
    let output = minfs(&server, &["get", "/f", &path("g")]);
    assert_eq!(code(&output), 10);
    assert!(
        stderr(&output).contains("/f: damaged: MD5 "),
        "{}",
        stderr(&output)
    );
}

#[test]
fn an_interrupted_get_leaves_nothing_behind() {
    let cluster = Cluster::default();
    let (server, data) = (cluster.serve(), DataServer::start_for(&cluster, 3));
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("f");
    std::fs::write(&source, vec![7; 100_000]).unwrap();
    assert_eq!(code(&minfs(&server, &["put", source.to_str().unwrap(), "/f"])), 0);
    std::fs::remove_file(&source).unwrap();
    let names = || std::fs::read_dir(directory.path()).unwrap().count();
    for (signal, expected) in [("-INT", 130), ("-TERM", 143)] {
        for server in &data {
            server.fail_always(DataFault::Hang);
        }
        let child = command(&server, &["get", "/f", directory.path().to_str().unwrap()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while names() == 0 {
            assert!(Instant::now() < deadline, "no temporary file");
            std::thread::sleep(Duration::from_millis(5));
        }
        let id = child.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &id])
                .status()
                .unwrap()
                .success()
        );
        let output = child.wait_with_output().unwrap();
        assert_eq!((code(&output), stdout(&output)), (expected, ""));
        assert_eq!(names(), 0);
    }
}

#[test]
fn a_shell_reads_commands_from_a_pipe() {
    let cluster = Cluster::default();
    let server = cluster.serve();
    let shell = |lines: &str| {
        let mut child = command(&server, &["shell"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let output = shell("mkdir a\ncd a\ntouch 'b c'\nls\n");
    assert_eq!(
        (code(&output), stdout(&output), stderr(&output)),
        (0, "b c\n", "")
    );
    let output = shell("ls a\nstat nothing\nmkdir never\n");
    assert_eq!((code(&output), stdout(&output)), (3, "b c\n"));
    assert_eq!(stderr(&output), "minfs: not found: /nothing\n");
    assert_eq!(cluster.paths(), ["/a", "/a/b c"]);
}
