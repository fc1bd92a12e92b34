//! A real etcd process of a test's own: on free loopback ports, with its data in a temporary
//! directory, and killed by its process id when the test ends, however it ends.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use tempfile::TempDir;

use super::wait::until;

/// An etcd with one member. Its ports and its data outlive its process.
pub struct Etcd {
    dir: TempDir,
    client_port: u16,
    peer_port: u16,
    process: Option<Child>,
}

impl Etcd {
    /// One that answers. `None` when etcd is not installed and `MINFS_SKIP_ETCD` allows to do
    /// without; the test is skipped then, and says so.
    pub async fn start() -> Option<Etcd> {
        // Another process may take a port between the choice and its use: then choose again.
        for _ in 0..5 {
            let mut etcd = Etcd::absent()?;
            if etcd.try_run().await {
                return Some(etcd);
            }
        }
        panic!("etcd did not start on five pairs of free ports");
    }

    /// One that does not run yet: [`run`](Etcd::run) starts it.
    pub fn absent() -> Option<Etcd> {
        if !installed() {
            assert!(
                std::env::var_os("MINFS_SKIP_ETCD").is_some(),
                "etcd is not on the PATH: install etcd-server, or set MINFS_SKIP_ETCD to skip"
            );
            let test = std::thread::current().name().unwrap_or("?").to_owned();
            // Not eprintln, which the test harness keeps to itself.
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: etcd is not installed");
            return None;
        }
        let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [client_port, peer_port] = ports.map(|listener| listener.local_addr().unwrap().port());
        Some(Etcd {
            dir: TempDir::new().unwrap(),
            client_port,
            peer_port,
            process: None,
        })
    }

    /// `host:port` for clients.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    /// Starts the process and waits until it answers.
    pub async fn run(&mut self) {
        assert!(self.try_run().await, "etcd ended at once: {}", self.log());
    }

    /// Whether it came up; if not, its process has ended.
    async fn try_run(&mut self) -> bool {
        assert!(self.process.is_none(), "etcd runs already");
        let client_url = format!("http://{}", self.endpoint());
        let peer_url = format!("http://127.0.0.1:{}", self.peer_port);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        // The short election timeout makes for a fast start and for leases of 1 s.
        let child = Command::new("etcd")
            .args([
                "--name",
                "test",
                "--heartbeat-interval",
                "20",
                "--election-timeout",
                "200",
            ])
            .args([
                "--listen-client-urls",
                &client_url,
                "--advertise-client-urls",
                &client_url,
            ])
            .args([
                "--listen-peer-urls",
                &peer_url,
                "--initial-advertise-peer-urls",
                &peer_url,
            ])
            .args(["--initial-cluster", &format!("test={peer_url}")])
            .arg("--data-dir")
            .arg(self.data_dir())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(child);
        until("etcd answers", Duration::from_secs(30), async || {
            if self.process.as_mut().unwrap().try_wait().unwrap().is_some() {
                self.process = None;
                return Some(false);
            }
            let mut client = self.client().await;
            let status = tokio::time::timeout(Duration::from_secs(1), client.status()).await;
            matches!(status, Ok(Ok(status)) if status.leader() != 0).then_some(true)
        })
        .await
    }

    /// Kills the process with SIGKILL. The data stay.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // SIGKILL also ends a stopped process.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Removes the data of an etcd that does not run.
    pub fn wipe(&mut self) {
        assert!(self.process.is_none(), "etcd runs");
        std::fs::remove_dir_all(self.data_dir()).unwrap();
    }

    /// Stops the process with SIGSTOP: its connections stay open, and nothing is answered.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// Lets a paused process go on.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.as_ref().expect("etcd runs").id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// A client of its own.
    pub async fn client(&self) -> Client {
        let options = ConnectOptions::new().with_connect_timeout(Duration::from_secs(1));
        Client::connect([self.endpoint()], Some(options)).await.unwrap()
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn installed() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join("etcd").is_file())
}
