//! The MetaServers that are measured: processes of this build whose data stay in a directory between calls.
//!
//! Made by `main` and by each phase. Unlike the tests' cluster, a [`Site`] may be left and found again: ten
//! million files take minutes to make. Ports and names are written into its directory, since a node's data know
//! its peers by them. Invariant: no process outlives the site, and after [`Site::stop`] every node was stopped
//! cleanly.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use minfs::proto::admin::admin_service_client::AdminServiceClient;
use minfs::proto::admin::{GetNodeStatusRequest, GetNodeStatusResponse, Role};
use tonic::transport::{Channel, Endpoint};

use crate::support::cluster::Port;

/// For what takes long because there is much of it.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(5);

/// Settings that differ from the defaults, in YAML's flow style.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// `raft.snapshot_threshold`.
    pub snapshot_threshold: u64,
    /// `server.grpc_threads`.
    pub grpc_threads: &'static str,
}

/// The product's own settings.
pub const DEFAULT: Variant = Variant {
    snapshot_threshold: 8192,
    grpc_threads: "auto",
};

/// A cluster, or one node, in a directory.
pub struct Site {
    dir: PathBuf,
    binary: PathBuf,
    nodes: Vec<Node>,
    // Held while the site is: nobody else takes the ports of a new one.
    _ports: Vec<Port>,
}

struct Node {
    name: String,
    grpc: u16,
    raft: u16,
    process: Option<Child>,
    status: Channel,
}

impl Site {
    /// The site in `dir`, or a new one of `count` nodes. Nothing runs. To be called within a runtime.
    pub fn open(dir: &Path, count: usize, binary: &Path) -> Result<Site, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
        fs::create_dir_all(dir).map_err(failed)?;
        let file = dir.join("ports");
        let mut _ports = Vec::new();
        if !file.exists() {
            _ports = (0..2 * count).map(|_| Port::free()).collect();
            let numbers: Vec<_> = _ports.iter().map(|port| port.number.to_string()).collect();
            fs::write(&file, numbers.join(" ")).map_err(failed)?;
        }
        let numbers = fs::read_to_string(&file).map_err(failed)?;
        let numbers: Vec<u16> = numbers.split(' ').filter_map(|port| port.parse().ok()).collect();
        let nodes = numbers
            .chunks_exact(2)
            .map(|ports| Node {
                name: format!("meta-{}", ports[0]),
                grpc: ports[0],
                raft: ports[1],
                process: None,
                status: channel(ports[0]),
            })
            .collect();
        Ok(Site {
            dir: dir.to_owned(),
            binary: binary.to_owned(),
            nodes,
            _ports,
        })
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// All but this one.
    pub fn others(&self, than: usize) -> Vec<usize> {
        (0..self.len()).filter(|n| *n != than).collect()
    }

    /// A new connection to a node.
    pub fn connect(&self, n: usize) -> Channel {
        channel(self.nodes[n].grpc)
    }

    /// The process that a node is.
    pub fn process(&self, n: usize) -> u32 {
        self.nodes[n].process.as_ref().map_or(0, Child::id)
    }

    /// Where a node's data are.
    pub fn data_dir(&self, n: usize) -> PathBuf {
        self.dir.join(&self.nodes[n].name)
    }

    /// Starts a node, on these processors alone if any are named.
    pub fn start(&mut self, n: usize, variant: Variant, processors: Option<&str>) -> Result<(), String> {
        let config = self.dir.join(format!("config-{n}.yaml"));
        let failed = |error: std::io::Error| format!("a node does not start: {error}");
        fs::write(&config, self.config(variant)).map_err(failed)?;
        let node = &mut self.nodes[n];
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(format!("{}.log", node.name)))
            .map_err(failed)?;
        let mut command = match processors {
            None => Command::new(&self.binary),
            Some(processors) => {
                // Becomes the command, so that the process id is the MetaServer's.
                let mut command = Command::new("taskset");
                command.args(["-c", processors]).arg(&self.binary);
                command
            }
        };
        let child = command
            .arg("--config")
            .arg(&config)
            .args([
                "--port",
                &node.grpc.to_string(),
                "--raft-port",
                &node.raft.to_string(),
            ])
            .args(["--node-id", &node.name])
            .arg("--data-dir")
            .arg(self.dir.join(&node.name))
            // Does no harm to a cluster that is formed.
            .args((n == 0).then_some("--bootstrap"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        node.process = Some(child);
        Ok(())
    }

    /// Starts all nodes, and waits until they vote and know their leader; gives it.
    pub async fn start_all(&mut self) -> Result<usize, String> {
        for n in 0..self.len() {
            self.start(n, DEFAULT, None)?;
        }
        self.complete().await
    }

    fn config(&self, variant: Variant) -> String {
        let peers: String = self
            .nodes
            .iter()
            .map(|Node { name, grpc, raft, .. }| {
                format!(
                    "    - {{ id: {name:?}, raft_addr: \"127.0.0.1:{raft}\", grpc_addr: \"127.0.0.1:{grpc}\" }}\n"
                )
            })
            .collect();
        let Variant {
            snapshot_threshold,
            grpc_threads,
        } = variant;
        format!(
            "etcd: {{ endpoints: [] }}\n\
             raft:\n  peers:\n{peers}  snapshot_threshold: {snapshot_threshold}\n\
             server: {{ grpc_threads: {grpc_threads} }}\n\
             logging: {{ file: \"\" }}\n"
        )
    }

    /// `kill -9`; the process is gone when this returns.
    pub fn kill(&mut self, n: usize) {
        if let Some(mut process) = self.nodes[n].process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// SIGTERM; how long the node took to end.
    pub async fn terminate(&mut self, n: usize) -> Result<Duration, String> {
        self.tell_to_stop(n)?;
        self.ended(n).await
    }

    fn tell_to_stop(&self, n: usize) -> Result<(), String> {
        let pid = self.process(n).to_string();
        let told = Command::new("kill").args(["-TERM", &pid]).status();
        match told {
            Ok(status) if status.success() => Ok(()),
            other => Err(format!("SIGTERM to a node: {other:?}")),
        }
    }

    async fn ended(&mut self, n: usize) -> Result<Duration, String> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let process = self.nodes[n].process.as_mut();
            let ended = process.map(Child::try_wait).transpose();
            if let Some(status) = ended.map_err(|error| error.to_string())?.flatten() {
                self.nodes[n].process = None;
                return match status.success() {
                    true => Ok(begun.elapsed()),
                    false => Err(format!("{} ended with {status}", self.nodes[n].name)),
                };
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(format!("{} does not stop", self.nodes[n].name))
    }

    /// Stops all nodes cleanly, at once.
    pub async fn stop(&mut self) -> Result<(), String> {
        let running: Vec<_> = (0..self.len()).filter(|n| self.process(*n) != 0).collect();
        for n in &running {
            self.tell_to_stop(*n)?;
        }
        for n in running {
            self.ended(n).await?;
        }
        Ok(())
    }

    /// Removes the data of a node that does not run.
    pub fn wipe(&self, n: usize) -> Result<(), String> {
        fs::remove_dir_all(self.data_dir(n)).map_err(|error| format!("wiping a node: {error}"))
    }

    /// What a node says of itself, if it answers.
    pub async fn status(&self, n: usize) -> Option<GetNodeStatusResponse> {
        let mut admin = AdminServiceClient::new(self.nodes[n].status.clone());
        let asked = admin.get_node_status(GetNodeStatusRequest {});
        let answer = tokio::time::timeout(Duration::from_secs(2), asked).await;
        Some(answer.ok()?.ok()?.into_inner())
    }

    /// Waits until all nodes vote, know the same leader and have applied what it has; gives it.
    pub async fn complete(&mut self) -> Result<usize, String> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(leader) = self.is_complete().await {
                return Ok(leader);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err("the nodes do not come together; their logs lie beside their data".to_owned())
    }

    async fn is_complete(&self) -> Option<usize> {
        let mut all = Vec::new();
        for n in 0..self.len() {
            all.push(self.status(n).await?);
        }
        let leader = all.iter().position(|status| status.role() == Role::Leader)?;
        let last = all[leader].last_log_index;
        let name = &self.nodes[leader].name;
        let follows = |status: &GetNodeStatusResponse| {
            let votes = |name: &str, incarnation| {
                let mut members = status.members.iter();
                members.any(|member| member.name == name && member.incarnation == incarnation && member.voter)
            };
            status.leader.as_ref() == Some(name)
                && status.applied_index >= last
                && all.iter().all(|other| votes(&other.name, other.incarnation))
        };
        all.iter().all(follows).then_some(leader)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for n in 0..self.len() {
            self.kill(n);
        }
    }
}

/// Bytes of what lies in a directory: lengths, and what is taken on the disk.
pub fn bytes_in(dir: &Path) -> (u64, u64) {
    let (mut length, mut taken) = (0, 0);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        // Files come and go.
        let Ok(metadata) = entry.metadata() else { continue };
        let (more, more_taken) = match metadata.is_dir() {
            true => bytes_in(&entry.path()),
            false => (metadata.len(), metadata.blocks() * 512),
        };
        (length, taken) = (length + more, taken + more_taken);
    }
    (length, taken)
}

/// Connects when it is used, and again when the server was away.
fn channel(port: u16) -> Channel {
    Endpoint::from_shared(format!("http://127.0.0.1:{port}"))
        .expect("an address")
        .connect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        .connect_lazy()
}
