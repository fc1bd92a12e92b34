//! etcd under test: three members of the installed etcd with its default settings, on loopback.
//!
//! Made by `site` for a round, and by `main` to count flushes; what its requests look like is in `etcd_records`.
//! The members' data are where temporary files are, as MinFS's are.

use std::fs::File as LogFile;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tempfile::TempDir;
use tonic::transport::Endpoint;

use crate::cpu::Processes;
use crate::etcd_records::EtcdConnection;
use crate::etcd_wire::Kv;
use crate::operation::Role;
use crate::support::cluster::{EVENTUALLY, Port};
use crate::system::{Connection, System};

/// Three members.
pub struct EtcdCluster {
    members: Vec<Member>,
    leader: usize,
    // After the members: it is removed when they have ended.
    _dir: TempDir,
}

/// A process, killed when this is dropped.
struct Member {
    process: Child,
    client: Port,
    _peer: Port,
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl EtcdCluster {
    /// A new cluster with empty directories that has a leader.
    pub async fn start() -> Result<EtcdCluster, String> {
        let dir = TempDir::new().map_err(|error| format!("no directory for etcd: {error}"))?;
        let ports: Vec<(Port, Port)> = (0..3).map(|_| (Port::free(), Port::free())).collect();
        let initial: Vec<String> = ports
            .iter()
            .enumerate()
            .map(|(n, (_, peer))| format!("etcd-{n}=http://127.0.0.1:{}", peer.number))
            .collect();
        let mut members = Vec::new();
        for (n, (client, _peer)) in ports.into_iter().enumerate() {
            let process = start_member(&dir, n, client.number, _peer.number, &initial.join(","))
                .map_err(|error| format!("etcd does not start: {error}"))?;
            members.push(Member {
                process,
                client,
                _peer,
            });
        }
        let mut cluster = EtcdCluster {
            members,
            leader: 0,
            _dir: dir,
        };
        cluster.find_leader().await?;
        Ok(cluster)
    }

    /// The member that all members call their leader.
    async fn agreed_leader(&self) -> Option<usize> {
        let mut leads = Vec::new();
        for (n, member) in self.members.iter().enumerate() {
            let options = ConnectOptions::new().with_connect_timeout(Duration::from_secs(1));
            let mut client = Client::connect([member.address()], Some(options)).await.ok()?;
            let asked = tokio::time::timeout(Duration::from_secs(2), client.status());
            let status = asked.await.ok()?.ok()?;
            leads.push((n, status.header()?.member_id(), status.leader()));
        }
        let leader = leads[0].2;
        let agreed = leads.iter().all(|(_, _, theirs)| *theirs == leader);
        let known = leads.iter().find(|(_, id, _)| *id == leader);
        known.filter(|_| agreed).map(|(n, ..)| *n)
    }

    fn check_processes(&mut self) -> Result<(), String> {
        for (n, member) in self.members.iter_mut().enumerate() {
            if let Ok(Some(status)) = member.process.try_wait() {
                let log = self._dir.path().join(format!("etcd-{n}.log"));
                let log = std::fs::read_to_string(log).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(10).collect();
                return Err(format!(
                    "etcd-{n} ended by itself ({status}); last lines first: {end:#?}"
                ));
            }
        }
        Ok(())
    }
}

fn start_member(dir: &TempDir, n: usize, client: u16, peer: u16, initial: &str) -> std::io::Result<Child> {
    let log = LogFile::create(dir.path().join(format!("etcd-{n}.log")))?;
    let (client, peer) = (
        format!("http://127.0.0.1:{client}"),
        format!("http://127.0.0.1:{peer}"),
    );
    let mut command = Command::new("etcd");
    // Settings of the environment would be no defaults.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCD_") {
            command.env_remove(name);
        }
    }
    command
        .args(["--name", &format!("etcd-{n}")])
        .arg("--data-dir")
        .arg(dir.path().join(format!("etcd-{n}")))
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", initial, "--initial-cluster-state", "new"])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

impl Member {
    fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.client.number)
    }
}

impl System for EtcdCluster {
    fn connect(&self, role: Role) -> Connection {
        let member = match role {
            Role::Leader => self.leader,
            Role::Follower => (self.leader + 1) % self.members.len(),
        };
        let endpoint = Endpoint::from_shared(self.members[member].address())
            .expect("an address of numbers is an address")
            .connect_timeout(Duration::from_secs(1))
            .tcp_nodelay(true);
        let kv = Kv::new(endpoint.connect_lazy());
        Connection::Etcd(EtcdConnection::new(kv))
    }

    fn find_leader(&mut self) -> LocalBoxFuture<'_, Result<usize, String>> {
        async {
            let begun = std::time::Instant::now();
            loop {
                self.check_processes()?;
                if let Some(leader) = self.agreed_leader().await {
                    self.leader = leader;
                    return Ok(leader);
                }
                if begun.elapsed() > EVENTUALLY {
                    return Err(format!("etcd has no leader after {EVENTUALLY:?}"));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        .boxed_local()
    }

    fn processes(&self) -> Processes {
        let process = |n: usize| self.members[n % self.members.len()].process.id();
        Processes {
            leader: process(self.leader),
            followers: [process(self.leader + 1), process(self.leader + 2)],
        }
    }
}
