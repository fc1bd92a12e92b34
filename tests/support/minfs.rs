//! The command `minfs` as a process, as a user types it.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long one command may take before a test gives it up.
const PATIENCE: Duration = Duration::from_secs(120);

/// `minfs` with these servers and arguments, and nothing of the environment of the tests.
pub fn minfs<A: AsRef<std::ffi::OsStr>>(servers: &str, arguments: &[A]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_minfs"));
    command.args(["--server", servers]).args(arguments);
    command
        .env_remove("MINFS_SERVER")
        .env_remove("MINFS_ETCD")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Waits for a command that was started; its end, or a panic when it hangs. Not for one that prints more
/// than a pipe holds (64 KiB): nobody reads before it ends.
pub fn ended(mut child: Child, what: &str) -> Output {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("minfs hangs: {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// Runs a command, and asserts that it succeeded; gives what it printed.
#[track_caller]
pub fn done<A: AsRef<std::ffi::OsStr> + std::fmt::Debug>(servers: &str, arguments: &[A]) -> String {
    let what = format!("{arguments:?}");
    let output = ended(minfs(servers, arguments).spawn().unwrap(), &what);
    assert!(output.status.success(), "minfs {what}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// `put LOCAL REMOTE`.
#[track_caller]
pub fn put(servers: &str, local: &Path, remote: &str) {
    done(servers, &["put", local.to_str().unwrap(), remote]);
}

/// `get REMOTE LOCAL`, and the bytes that came.
#[track_caller]
pub fn got(servers: &str, remote: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let local = dir.path().join("got");
    done(servers, &["get", remote, local.to_str().unwrap()]);
    std::fs::read(local).unwrap()
}
