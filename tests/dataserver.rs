//! The DataServer as a process: what survives `kill -9`, what a second process is told, and what etcd
//! knows of it.

#![allow(clippy::unwrap_used)]

mod support;
#[path = "../src/dataserver/testing.rs"]
mod testing;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use minfs::proto;
use serde_json::Value;
use support::etcd::Etcd;
use tempfile::TempDir;
use testing::{
    MetaServer, Peer, block_file, declared, metadata, peer, read, some_bytes, unfinished, until, write,
    write_and_wait,
};
use tonic::Code;

fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dataserver"));
    command
        .args(["--port", "0", "--reserved-space", "0", "--data-dir"])
        .arg(dir)
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// A process; dropping it is `kill -9`.
struct Process {
    child: Child,
    peer: Peer,
    addr: String,
}

impl Process {
    /// One that has reported itself to `meta` as `id`.
    async fn start(meta: &MetaServer, id: &str, dir: &Path, arguments: &[&str]) -> Process {
        meta.desk().beats.clear();
        let mut command = command(dir, arguments);
        let child = command.args(["--id", id]).stderr(Stdio::null()).spawn().unwrap();
        let addr = until(&format!("{id} beats"), async || {
            meta.last_beat(id).map(|beat| beat.data_server_addr)
        })
        .await;
        let peer = peer(&addr);
        Process { child, peer, addr }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM, and gives the exit code.
    async fn stop(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        until("it ends", async || self.child.try_wait().unwrap())
            .await
            .code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_kill_in_the_middle_of_a_write() {
    let meta = MetaServer::start();
    let (dir_a, dir_b) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let to = ["--metaserver", &meta.addr];
    let mut a = Process::start(&meta, "a", dir_a.path(), &to).await;
    let b = Process::start(&meta, "b", dir_b.path(), &to).await;
    let all = [a.addr.as_str(), b.addr.as_str()];
    for block in 1..=3 {
        let data = some_bytes(1_000_000 * block as usize, block as u8);
        let answer = write(&a.peer, declared(block, &all, &data), &data).await.unwrap();
        assert!(answer.success, "{answer:?}");
    }
    // Nothing is declared, as with the clients in the field: only the broken connection tells the replica.
    let writing = write_and_wait(&a.peer, metadata(9, &all), some_bytes(1 << 20, 0));
    until("both write", async || {
        (unfinished(dir_a.path()) == 1 && unfinished(dir_b.path()) == 1).then_some(())
    })
    .await;
    a.kill();
    assert!(writing.await.unwrap().is_err());
    until("the replica gave up", async || {
        (unfinished(dir_b.path()) == 0).then_some(())
    })
    .await;
    assert_eq!(read(&b.peer, 9).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(unfinished(dir_a.path()), 1);

    let a = Process::start(&meta, "a", dir_a.path(), &to).await;
    assert_eq!(unfinished(dir_a.path()), 0);
    let beat = meta.reported("a", &[1, 2, 3], &[]).await;
    assert!(beat.free_space > 0 && beat.free_space <= beat.total_capacity);
    for block in 1..=3 {
        let data = some_bytes(1_000_000 * block as usize, block as u8);
        assert_eq!(read(&a.peer, block).await.unwrap(), data);
    }
    assert_eq!(read(&a.peer, 9).await.unwrap_err().code(), Code::NotFound);

    // What was found damaged is known as damaged after the next kill.
    let mut content = std::fs::read(block_file(dir_a.path(), 2)).unwrap();
    content[5] ^= 1;
    std::fs::write(block_file(dir_a.path(), 2), content).unwrap();
    assert_eq!(read(&a.peer, 2).await.unwrap_err().code(), Code::DataLoss);
    drop(a);
    let mut a = Process::start(&meta, "a", dir_a.path(), &to).await;
    meta.reported("a", &[1, 3], &[2]).await;
    assert_eq!(read(&a.peer, 2).await.unwrap_err().code(), Code::DataLoss);
    assert_eq!(a.stop().await, Some(0));
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[tokio::test]
async fn what_cannot_start_ends_with_a_reason() {
    let meta = MetaServer::start();
    let dir = TempDir::new().unwrap();
    let to = ["--metaserver", meta.addr.as_str()];
    let a = Process::start(&meta, "a", dir.path(), &to).await;
    let second = command(dir.path(), &to).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let named = format!(
        "data directory {} is in use by process {}",
        dir.path().display(),
        a.child.id()
    );
    assert!(stderr(&second).contains(&named), "{}", stderr(&second));

    let fresh = TempDir::new().unwrap();
    let port = a.addr.rsplit_once(':').unwrap().1;
    let taken = Command::new(env!("CARGO_BIN_EXE_dataserver"))
        .args(["--port", port, "--data-dir"])
        .arg(fresh.path())
        .args(to)
        .output()
        .unwrap();
    assert_eq!(taken.status.code(), Some(1));
    assert!(
        stderr(&taken).contains(&format!("cannot listen on 127.0.0.1:{port}")),
        "{}",
        stderr(&taken)
    );

    let lonely = command(fresh.path(), &[]).output().unwrap();
    assert_eq!(lonely.status.code(), Some(2));
    assert!(stderr(&lonely).contains("--metaserver"), "{}", stderr(&lonely));
    let wrong = command(fresh.path(), &["--metaserver", "nonsense"])
        .output()
        .unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    assert!(
        stderr(&wrong).starts_with("dataserver: --metaserver: not an address"),
        "{}",
        stderr(&wrong)
    );
}

const KEY: &str = "/dfs/dataServers/ds-7";

/// The value of the DataServer's key, which must have a lease. `None`: no key, or no etcd.
async fn registered(etcd: &Etcd) -> Option<Value> {
    let mut client = etcd.client().await;
    let asked = tokio::time::timeout(Duration::from_secs(1), client.get(KEY, None)).await;
    let answer = asked.ok()?.ok()?;
    let pair = answer.kvs().first()?;
    assert!(pair.lease() != 0);
    Some(serde_json::from_slice(pair.value()).unwrap())
}

#[tokio::test]
async fn etcd_knows_it_as_long_as_it_lives() {
    let Some(mut etcd) = Etcd::start().await else {
        return;
    };
    let meta = MetaServer::start();
    // It finds the leader in etcd, too.
    let node = format!(
        r#"{{"id":"meta-1","addr":"{}","register_at":"2026-01-02T03:04:05Z","role":"metaServer","is_leader":true}}"#,
        meta.addr
    );
    let mut client = etcd.client().await;
    client
        .put("/minfs/metaServer/nodes/meta-1", node, None)
        .await
        .unwrap();
    let dir = TempDir::new().unwrap();
    let endpoint = etcd.endpoint();
    let to = ["--etcd", endpoint.as_str()];
    let mut a = Process::start(&meta, "ds-7", dir.path(), &to).await;
    let value = until("it is registered", async || registered(&etcd).await).await;
    assert_eq!(
        (&value["id"], &value["addr"]),
        (&"ds-7".into(), &a.addr.as_str().into())
    );
    let at = value["register_at"].as_str().unwrap();
    chrono::DateTime::parse_from_rfc3339(at).unwrap();

    // A key that somebody removed, and an etcd that lost everything.
    client.delete(KEY, None).await.unwrap();
    until("it is registered again", async || registered(&etcd).await).await;
    etcd.kill();
    etcd.wipe();
    assert!(write(&a.peer, metadata(1, &[]), b"x").await.unwrap().success);
    meta.reported("ds-7", &[1], &[]).await;
    etcd.run().await;
    until("it is registered in the new etcd", async || {
        registered(&etcd).await
    })
    .await;

    // A crash leaves the key to its lease; a stop takes it along.
    a.kill();
    until("the lease runs out", async || {
        registered(&etcd).await.is_none().then_some(())
    })
    .await;
    let to = ["--etcd", endpoint.as_str(), "--metaserver", meta.addr.as_str()];
    let mut a = Process::start(&meta, "ds-7", dir.path(), &to).await;
    until("it is registered", async || registered(&etcd).await).await;
    assert_eq!(a.stop().await, Some(0));
    assert_eq!(registered(&etcd).await, None);
}

/// Neither etcd nor a MetaServer answers: the DataServer serves all the same, and is there when they are.
#[tokio::test]
async fn it_does_not_need_anybody_to_start() {
    let Some(mut etcd) = Etcd::absent() else { return };
    let dir = TempDir::new().unwrap();
    let endpoint = etcd.endpoint();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let child = Command::new(env!("CARGO_BIN_EXE_dataserver"))
        .args([
            "--port",
            &port.to_string(),
            "--id",
            "ds-7",
            "--etcd",
            &endpoint,
            "--data-dir",
        ])
        .arg(dir.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let addr = format!("localhost:{port}");
    let a = Process {
        child,
        peer: peer(&addr),
        addr,
    };
    until("it takes blocks", async || {
        let answer = write(&a.peer, metadata(1, &[&a.addr]), b"x").await;
        answer.ok()?.success.then_some(())
    })
    .await;
    etcd.run().await;
    until("it is registered", async || registered(&etcd).await).await;
    let meta = MetaServer::start();
    let node = format!(r#"{{"id":"m","addr":"{}","is_leader":true}}"#, meta.addr);
    etcd.client()
        .await
        .put("/minfs/metaServer/nodes/m", node, None)
        .await
        .unwrap();
    meta.reported("ds-7", &[1], &[]).await;
}
