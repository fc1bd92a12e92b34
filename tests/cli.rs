//! The `minfs` command as a process: exit codes, stdout and stderr as a script meets them, against
//! servers in memory.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output, Stdio};

use minfs::proto;
use serde_json::Value;

#[path = "../src/client/testing.rs"]
mod testing;

use proto::dfs::FileType;
use testing::{Cluster, DeadAddress, Fault, Server};

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
