//! The README's first session, with the real scripts: start, put a file and get it back, start again, kill
//! a node, start again, stop and wipe. On ports and in a directory of the test's own, with the binaries of this build.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// How far the DataServers' ports are above those of the MetaServers.
const DATA: u16 = 2000;

/// A cluster that is stopped and wiped when the test ends, however it ends.
struct Scripts {
    dir: TempDir,
    base: u16,
}

impl Scripts {
    fn new() -> Self {
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        let base = (21_000..28_000)
            .step_by(7)
            .map(|port| port + (std::process::id() % 7) as u16)
            .find(|base| {
                let metas = (0..3).all(|i| free(base + i) && free(base + 1000 + i));
                metas && (0..4).all(|i| free(base + DATA + i))
            })
            .unwrap();
        Scripts {
            dir: TempDir::new().unwrap(),
            base,
        }
    }

    fn run(&self, script: &str, arguments: &[&str]) -> Output {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        Command::new(root.join("scripts").join(script))
            .args(arguments)
            .env("MINFS_CLUSTER_DIR", self.dir.path().join("cluster"))
            .env("MINFS_BASE_PORT", self.base.to_string())
            .env("MINFS_DATA_BASE_PORT", (self.base + DATA).to_string())
            .env(
                "MINFS_BIN_DIR",
                Path::new(env!("CARGO_BIN_EXE_metaserver")).parent().unwrap(),
            )
            .output()
            .unwrap()
    }

    /// What a script said that succeeded.
    fn said(&self, script: &str, arguments: &[&str]) -> String {
        let output = self.run(script, arguments);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {said}{complaints}");
        said
    }

    fn minfs(&self, node: u16, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_minfs"))
            .args(["--server", &format!("localhost:{}", self.base + node)])
            .args(arguments)
            .output()
            .unwrap()
    }
}

impl Drop for Scripts {
    fn drop(&mut self) {
        self.run("stop-cluster.sh", &["--wipe"]);
    }
}

/// The pid in the table's row of a node.
fn pid(table: &str, node: &str) -> String {
    let row = table
        .lines()
        .find(|line| line.starts_with(node) && line.contains("localhost:"));
    let row = row.unwrap_or_else(|| panic!("no row for {node} in:\n{table}"));
    row.split_whitespace().nth(4).unwrap().to_owned()
}

#[test]
fn a_cluster_is_started_used_mended_and_stopped() {
    let scripts = Scripts::new();
    let table = scripts.said("start-cluster.sh", &[]);
    let (first, last) = (
        format!("meta-{}", scripts.base),
        format!("meta-{}", scripts.base + 2),
    );
    let leaders = table
        .lines()
        .filter(|line| line.starts_with("meta-") && line.contains(" leader "));
    assert_eq!(leaders.count(), 1, "{table}");
    assert!(table.contains("What to type next"), "{table}");

    assert!(scripts.minfs(0, &["mkdir", "/hello"]).status.success());
    let listed = scripts.minfs(2, &["ls", "/"]);
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "hello\n");

    let data = table.lines().filter(|line| line.starts_with("ds-"));
    assert_eq!(data.count(), 4, "{table}");
    let back = scripts.dir.path().join("back");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(file!());
    let put = scripts.minfs(1, &["put", script.to_str().unwrap(), "/hello/script"]);
    assert!(put.status.success(), "{put:?}");
    let get = scripts.minfs(2, &["get", "/hello/script", back.to_str().unwrap()]);
    assert!(get.status.success(), "{get:?}");
    assert!(std::fs::read(back).unwrap() == std::fs::read(script).unwrap());

    let again = scripts.said("start-cluster.sh", &[]);
    assert!(again.contains(&format!("{first} already runs")), "{again}");
    assert_eq!(
        pid(&again, &first),
        pid(&table, &first),
        "what runs is left alone"
    );

    let killed = Command::new("kill").args(["-9", &pid(&table, &last)]).status();
    assert!(killed.unwrap().success());
    let mended = scripts.said("start-cluster.sh", &[]);
    assert_ne!(pid(&mended, &last), pid(&table, &last));
    assert!(scripts.minfs(2, &["stat", "/hello"]).status.success());

    scripts.said("stop-cluster.sh", &["--wipe"]);
    assert!(!scripts.dir.path().join("cluster").exists(), "wiped");
    assert_eq!(
        scripts.minfs(0, &["--timeout", "1s", "leader"]).status.code(),
        Some(6)
    );
}
