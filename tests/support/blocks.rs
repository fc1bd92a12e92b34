//! Real `dataserver` processes beside a [`Cluster`], and what lies on their disks.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use minfs::client::Client;
use minfs::proto::admin::{CheckFilesRequest, FileCounts};
use tempfile::TempDir;

use super::cluster::{Cluster, EVENTUALLY, Port, Setup};
use super::memory::{Memory, memory};
use super::wait::until;

/// What a cluster has to be like so that a test need not wait for minutes until a DataServer is given up.
pub fn impatient() -> Setup {
    Setup {
        cluster: "{ heartbeat_timeout: 3s, permanent_down_threshold: 6s }",
        scheduler: "{ fsck_interval: 1s, gc_interval: 1s }",
        ..Setup::default()
    }
}

/// One DataServer: what stays while its process comes and goes.
struct Server {
    id: String,
    port: Port,
    data: PathBuf,
    log: PathBuf,
    process: Option<Child>,
}

/// The processes and what they leave behind.
pub struct DataServers {
    _dir: TempDir,
    metaservers: String,
    servers: Vec<Server>,
}

impl DataServers {
    /// Starts `count` DataServers, and waits until the leader counts them all as alive.
    pub async fn started(cluster: &Cluster, count: usize) -> DataServers {
        let dir = TempDir::new().unwrap();
        let servers = (0..count).map(|n| Server::new(dir.path(), n)).collect();
        let mut all = DataServers {
            _dir: dir,
            metaservers: cluster.servers(),
            servers,
        };
        for n in 0..count {
            all.start(n);
        }
        all.alive(&cluster.any_client().await, count).await;
        all
    }

    /// Starts one that does not run.
    pub fn start(&mut self, n: usize) {
        let server = &mut self.servers[n];
        assert!(server.process.is_none(), "{} runs already", server.id);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&server.log)
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_dataserver"))
            .args(["--port", &server.port.number.to_string(), "--id", &server.id])
            .args(["--metaserver", &self.metaservers])
            .args(["--heartbeat-interval", "1s", "--rescan-interval", "1s"])
            .arg("--data-dir")
            .arg(&server.data)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        server.process = Some(child);
    }

    /// `kill -9`; the process is gone when this returns.
    pub fn kill(&mut self, n: usize) {
        self.servers[n].kill();
    }

    /// How many there are, running or not.
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// `host:port` of one, as it advertises itself.
    pub fn addr(&self, n: usize) -> String {
        format!("localhost:{}", self.servers[n].port.number)
    }

    /// The number of the one at this address.
    pub fn at(&self, addr: &str) -> usize {
        (0..self.len()).find(|n| self.addr(*n) == addr).unwrap()
    }

    /// Resident memory of a process at its highest, bytes.
    pub fn peak_memory(&self, n: usize) -> u64 {
        let process = self.servers[n].process.as_ref().expect("it runs");
        memory(process.id(), Memory::Peak)
    }

    /// The block files on a DataServer's disk.
    pub fn blocks(&self, n: usize) -> BTreeMap<u64, PathBuf> {
        let mut found = BTreeMap::new();
        collect(&self.servers[n].data.join("blocks"), &mut found);
        found
    }

    /// On which disks each block lies.
    pub fn replicas(&self) -> BTreeMap<u64, Vec<usize>> {
        let mut replicas: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for n in 0..self.len() {
            for block in self.blocks(n).into_keys() {
                replicas.entry(block).or_default().push(n);
            }
        }
        replicas
    }

    /// Waits until the leader counts this many as alive.
    pub async fn alive(&mut self, client: &Client, count: usize) {
        until(
            &format!("the leader counts {count} DataServers"),
            EVENTUALLY,
            async || {
                self.check_processes();
                let info = client.cluster_info().await.ok()?;
                (info.data_server.len() == count).then_some(())
            },
        )
        .await;
    }

    /// Waits until every block on every disk is a file's, and every file is as it should be.
    pub async fn healthy(&mut self, client: &Client, bound: Duration) -> FileCounts {
        let mut last = None;
        let begun = std::time::Instant::now();
        loop {
            self.check_processes();
            match checked(client).await {
                Some(counts) if counts.healthy == counts.files => return counts,
                counts => last = counts.or(last),
            }
            assert!(begun.elapsed() < bound, "not healthy within {bound:?}: {last:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn check_processes(&mut self) {
        for server in &mut self.servers {
            let Some(process) = &mut server.process else {
                continue;
            };
            if let Some(ended) = process.try_wait().unwrap() {
                server.process = None;
                panic!("{} ended by itself: {ended}", server.id);
            }
        }
    }
}

/// How FSCK finds all files now.
pub async fn checked(client: &Client) -> Option<FileCounts> {
    let mut sum = FileCounts::default();
    let mut after = String::new();
    loop {
        let request = CheckFilesRequest {
            after,
            max_problems: 5,
            ..CheckFilesRequest::default()
        };
        let page = client.check_files(request).await.ok()?;
        let counts = page.counts.unwrap_or_default();
        sum.files += counts.files;
        sum.healthy += counts.healthy;
        sum.under_replicated += counts.under_replicated;
        sum.missing += counts.missing;
        sum.over_replicated += counts.over_replicated;
        sum.being_written += counts.being_written;
        sum.corrupt += counts.corrupt;
        sum.blocks += counts.blocks;
        sum.bytes += counts.bytes;
        if page.next.is_empty() {
            return Some(sum);
        }
        after = page.next;
    }
}

fn collect(folder: &Path, found: &mut BTreeMap<u64, PathBuf>) {
    // A folder may go, or not be there yet, while a DataServer works in it.
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "dat") {
            let id = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
            found.insert(id, path);
        }
    }
}

impl Server {
    fn new(dir: &Path, n: usize) -> Server {
        let id = format!("ds-{n}");
        Server {
            data: dir.join(&id),
            log: dir.join(format!("{id}.log")),
            port: Port::free(),
            id,
            process: None,
        }
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for DataServers {
    fn drop(&mut self) {
        for server in &mut self.servers {
            server.kill();
            if std::thread::panicking() {
                let log = fs::read_to_string(&server.log).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                let tail = &lines[lines.len().saturating_sub(40)..];
                eprintln!(
                    "--- the end of the log of {}, port {}\n{}",
                    server.id,
                    server.port.number,
                    tail.join("\n")
                );
            }
        }
    }
}

/// Bytes that look like nothing else: `size` of them, the same for the same seed.
pub fn content(seed: u64, size: usize) -> Vec<u8> {
    // xorshift64 (Marsaglia 2003): any non-zero state will do.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}
