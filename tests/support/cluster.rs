//! A cluster of real `metaserver` processes on loopback, and the facts that a test can wait for.
//!
//! A [`Cluster`] has a temporary directory with a `config.yaml`, and of each node the data and the
//! log. Its processes are started, stopped, killed and paused one by one, by their process ids, and
//! are killed when the test ends, however it ends; when it ends in a panic, the end of each node's log
//! is printed, and with `MINFS_TEST_KEEP` set the directory is kept. The facts come from `AdminService.GetNodeStatus`, asked again and again with a bound.
//!
//! The ports are below those that the system gives to outgoing connections, so that a node finds its
//! ports free again after it was down; and each is locked for as long as the cluster lives, so that
//! tests may run side by side.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use minfs::client::{Client, Options, Source};
use minfs::proto::admin::admin_service_client::AdminServiceClient;
use minfs::proto::admin::{GetNodeStatusRequest, GetNodeStatusResponse, Role};
use minfs::proto::dfs::meta_server_service_client::MetaServerServiceClient;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use super::wait::until;

/// The bound for facts that come about by themselves: generous, since the machine may be busy.
pub const EVENTUALLY: Duration = Duration::from_secs(20);

/// A new leader is promised within this time.
pub const FAILOVER: Duration = Duration::from_secs(2);

/// How many lines of each log are printed when a test fails.
const TAIL: usize = 80;

/// Held by the one test of a process that runs.
pub struct Turn(#[allow(dead_code)] MutexGuard<'static, ()>);

/// One test of a process at a time: they measure times, and each keeps the machine busy.
pub fn turn() -> Turn {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed does not fail the next.
    Turn(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What a cluster is like; the rest of its configuration is the default.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How many nodes.
    pub nodes: usize,
    /// etcd's endpoints; none: discovery is off.
    pub etcd: Vec<String>,
    /// `reads`.
    pub reads: &'static str,
    /// `raft.snapshot_interval`.
    pub snapshot_interval: &'static str,
    /// `raft.snapshot_threshold`.
    pub snapshot_threshold: u64,
    /// `database`, in YAML's flow style.
    pub database: &'static str,
    /// `server`, in YAML's flow style.
    pub server: &'static str,
    /// `cluster`, in YAML's flow style.
    pub cluster: &'static str,
    /// `scheduler`, in YAML's flow style.
    pub scheduler: &'static str,
    /// Where the nodes are, when not on loopback.
    pub places: Vec<Place>,
    /// What the nodes are called, when not `meta-<port>`.
    pub names: Vec<&'static str>,
}

/// A network namespace, and the addresses of the node in it.
#[derive(Clone, Debug)]
pub struct Place {
    /// The namespace's name.
    pub namespace: String,
    /// Where other nodes reach it.
    pub raft_host: String,
    /// Where clients reach it.
    pub grpc_host: String,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            nodes: 3,
            etcd: vec![],
            reads: "linearizable",
            snapshot_interval: "120s",
            snapshot_threshold: 8192,
            database: "{}",
            server: "{}",
            cluster: "{}",
            scheduler: "{}",
            places: vec![],
            names: vec![],
        }
    }
}

/// One node: what stays while its process comes and goes.
pub struct Node {
    /// `meta-<port>`.
    pub name: String,
    /// `host:port` for clients.
    pub grpc_addr: String,
    /// `host:port` for peers.
    pub raft_addr: String,
    ports: [Port; 2],
    namespace: Option<String>,
    binary: PathBuf,
    data: PathBuf,
    log: PathBuf,
    environment: Vec<(&'static str, PathBuf)>,
    process: Option<Child>,
    channel: Channel,
}

/// The processes and what they leave behind.
pub struct Cluster {
    dir: TempDir,
    setup: Setup,
    nodes: Vec<Node>,
}

/// The only one of this process's tests, and of others', that has this port.
pub struct Port {
    /// The port.
    pub number: u16,
    _lock: File,
}

impl Cluster {
    /// Ports, a directory and a configuration; nothing runs. To be called within a runtime.
    pub fn new(setup: Setup) -> Cluster {
        let dir = TempDir::new().unwrap();
        let nodes = (0..setup.nodes)
            .map(|n| Node::new(dir.path(), setup.places.get(n), setup.names.get(n)))
            .collect();
        let cluster = Cluster { dir, setup, nodes };
        let all: Vec<_> = (0..cluster.nodes.len()).collect();
        cluster.write_config("config.yaml", &all);
        cluster
    }

    /// All nodes run, vote and know the leader; node 0 formed the cluster.
    pub async fn formed(setup: Setup) -> Cluster {
        let mut cluster = Cluster::new(setup);
        cluster.bootstrap(0);
        for n in 1..cluster.nodes.len() {
            cluster.start(n);
        }
        cluster.complete().await;
        cluster
    }

    /// A configuration with these peers, for [`Cluster::start_with`].
    pub fn write_config(&self, file: &str, peers: &[usize]) {
        let peers: String = peers
            .iter()
            .map(|n| &self.nodes[*n])
            .map(|node| {
                let Node {
                    name,
                    raft_addr,
                    grpc_addr,
                    ..
                } = node;
                format!("    - {{ id: {name:?}, raft_addr: {raft_addr:?}, grpc_addr: {grpc_addr:?} }}\n")
            })
            .collect();
        let Setup {
            etcd,
            reads,
            snapshot_interval,
            snapshot_threshold,
            database,
            server,
            cluster,
            scheduler,
            ..
        } = &self.setup;
        let text = format!(
            "etcd: {{ endpoints: {etcd:?}, timeout: 1s }}\n\
             raft:\n  peers:\n{peers}  \
             snapshot_interval: {snapshot_interval}\n  \
             snapshot_threshold: {snapshot_threshold}\n\
             database: {database}\n\
             server: {server}\n\
             cluster: {cluster}\n\
             scheduler: {scheduler}\n\
             logging: {{ level: info, file: \"\" }}\n\
             reads: {reads}\n"
        );
        fs::write(self.dir.path().join(file), text).unwrap();
    }

    /// How many nodes there are, running or not.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// All nodes, running or not.
    pub fn all(&self) -> Vec<usize> {
        (0..self.nodes.len()).collect()
    }

    /// All but this one.
    pub fn others(&self, than: usize) -> Vec<usize> {
        self.all().into_iter().filter(|n| *n != than).collect()
    }

    /// The nodes whose process runs.
    pub fn running(&self) -> Vec<usize> {
        self.all()
            .into_iter()
            .filter(|n| self.nodes[*n].process.is_some())
            .collect()
    }

    /// One node.
    pub fn node(&self, n: usize) -> &Node {
        &self.nodes[n]
    }

    /// The number of the node of this name.
    pub fn named(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// Where clients reach all nodes, as `--server` wants it.
    pub fn servers(&self) -> String {
        let all: Vec<_> = self.nodes.iter().map(|node| node.grpc_addr.as_str()).collect();
        all.join(",")
    }

    // --- processes ---

    /// Starts a node's process.
    pub fn start(&mut self, n: usize) {
        self.start_with(n, "config.yaml", &[]);
    }

    /// Starts a node's process with `--bootstrap`.
    pub fn bootstrap(&mut self, n: usize) {
        self.start_with(n, "config.yaml", &["--bootstrap"]);
    }

    /// Starts a node's process with another configuration, and more arguments.
    pub fn start_with(&mut self, n: usize, config: &str, arguments: &[&str]) {
        let node = &mut self.nodes[n];
        assert!(node.process.is_none(), "{} runs already", node.name);
        let log = File::options().create(true).append(true).open(&node.log).unwrap();
        let binary = &node.binary;
        let mut command = match &node.namespace {
            None => Command::new(binary),
            Some(namespace) => {
                // Becomes the command, so that the process id is the MetaServer's.
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(binary);
                command
            }
        };
        let [grpc, raft] = node.ports.each_ref().map(|port| port.number.to_string());
        let child = command
            .args(["--config", config, "--port", &grpc, "--raft-port", &raft])
            .args(["--node-id", &node.name])
            .arg("--data-dir")
            .arg(&node.data)
            .args(arguments)
            .env_remove("RUST_LOG")
            .envs(node.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        node.process = Some(child);
    }

    /// `kill -9`; the process is gone when this returns.
    pub fn kill(&mut self, n: usize) {
        self.nodes[n].kill();
    }

    /// SIGTERM, and how the process ended.
    pub async fn terminate(&mut self, n: usize) -> ExitStatus {
        self.signal(n, "-TERM");
        let node = &mut self.nodes[n];
        let ended = until(
            &format!("{} ends after SIGTERM", node.name),
            EVENTUALLY,
            async || node.process.as_mut().expect("the node runs").try_wait().unwrap(),
        )
        .await;
        node.process = None;
        ended
    }

    /// The process that a node is now.
    pub fn process(&self, n: usize) -> u32 {
        self.nodes[n].process.as_ref().expect("the node runs").id()
    }

    /// Processor time that a node has used, all its threads together.
    pub fn processor_time(&self, n: usize) -> Duration {
        let process = self.nodes[n].process.as_ref().expect("the node runs");
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
        // After the name, which is in parentheses and may hold anything: field 14 and 15, in ticks of 1/100 s.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11..13]
            .iter()
            .map(|field| field.parse::<u64>().unwrap())
            .sum();
        Duration::from_millis(ticks * 10)
    }

    /// SIGSTOP: its connections stay open, and nothing is answered.
    pub fn pause(&self, n: usize) {
        self.signal(n, "-STOP");
    }

    /// Lets a paused process go on.
    pub fn resume(&self, n: usize) {
        self.signal(n, "-CONT");
    }

    fn signal(&self, n: usize, signal: &str) {
        let pid = self.nodes[n]
            .process
            .as_ref()
            .expect("the node runs")
            .id()
            .to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Removes the data of a node that does not run: a new disk. The directory itself stays: something
    /// may be mounted there.
    pub fn wipe(&mut self, n: usize) {
        assert!(self.nodes[n].process.is_none(), "{} runs", self.nodes[n].name);
        for entry in fs::read_dir(&self.nodes[n].data).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => fs::remove_dir_all(path).unwrap(),
                false => fs::remove_file(path).unwrap(),
            }
        }
    }

    /// How a node's process ended by itself, if it did; the node does not run then.
    pub fn ended(&mut self, n: usize) -> Option<ExitStatus> {
        let ended = self.nodes[n].process.as_mut()?.try_wait().unwrap()?;
        self.nodes[n].process = None;
        Some(ended)
    }

    /// Sets a variable in the environment of a node's processes that are started from now on.
    pub fn environment(&mut self, n: usize, name: &'static str, value: &Path) {
        self.nodes[n].environment.push((name, value.to_owned()));
    }

    /// Another server than the one under test, for the processes that are started from now on.
    pub fn binary(&mut self, n: usize, binary: &Path) {
        self.nodes[n].binary = binary.to_owned();
    }

    /// Where a node's data are, or will be.
    pub fn data_dir(&self, n: usize) -> &Path {
        &self.nodes[n].data
    }

    /// A directory for what else a test needs; it is removed with the cluster.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What a node has logged since its first start.
    pub fn log(&self, n: usize) -> String {
        fs::read_to_string(&self.nodes[n].log).unwrap_or_default()
    }

    /// Waits until a node has logged this.
    pub async fn logged(&mut self, n: usize, text: &str) {
        until(
            &format!("{} logs {text:?}", self.nodes[n].name),
            EVENTUALLY,
            async || {
                self.check_processes();
                self.log(n).contains(text).then_some(())
            },
        )
        .await;
    }

    /// Panics when a process has ended by itself.
    fn check_processes(&mut self) {
        for node in &mut self.nodes {
            if let Some(ended) = node
                .process
                .as_mut()
                .and_then(|process| process.try_wait().unwrap())
            {
                node.process = None;
                let log = fs::read_to_string(&node.log).unwrap_or_default();
                let why = log.lines().rfind(|line| line.contains("cannot go on"));
                panic!(
                    "{} ended by itself: {ended}: {}",
                    node.name,
                    why.unwrap_or_default()
                );
            }
        }
    }

    // --- clients ---

    /// A client without retries, of this node alone, on a connection of its own.
    pub fn raw(&self, n: usize) -> MetaServerServiceClient<Channel> {
        MetaServerServiceClient::new(connect(&self.nodes[n].grpc_addr))
    }

    /// A client that repeats what failed, at this node alone.
    pub async fn client(&self, n: usize) -> Client {
        let source = Source::servers(&self.nodes[n].grpc_addr).unwrap();
        let options = Options {
            timeout: EVENTUALLY,
            pinned: true,
            ..Options::default()
        };
        Client::connect(source, options).await.unwrap()
    }

    /// A client that knows every node and follows the leader.
    pub async fn any_client(&self) -> Client {
        let source = Source::servers(&self.servers()).unwrap();
        let options = Options {
            timeout: EVENTUALLY,
            ..Options::default()
        };
        Client::connect(source, options).await.unwrap()
    }

    /// A new connection to a node's port for clients.
    pub fn channel(&self, n: usize) -> Channel {
        connect(&self.nodes[n].grpc_addr)
    }

    // --- facts ---

    /// What a node says of itself, if it answers.
    pub async fn status(&self, n: usize) -> Option<GetNodeStatusResponse> {
        let node = &self.nodes[n];
        node.process.as_ref()?;
        let mut admin = AdminServiceClient::new(node.channel.clone());
        let asked = admin.get_node_status(GetNodeStatusRequest {});
        let answer = tokio::time::timeout(Duration::from_secs(1), asked).await;
        Some(answer.ok()?.ok()?.into_inner())
    }

    /// Waits until a node's status satisfies `fact`; gives that status.
    pub async fn until_status(
        &mut self,
        n: usize,
        what: &str,
        fact: impl Fn(&GetNodeStatusResponse) -> bool,
    ) -> GetNodeStatusResponse {
        let begun = Instant::now();
        loop {
            self.check_processes();
            let status = self.status(n).await;
            match status {
                Some(status) if fact(&status) => return status,
                _ => {}
            }
            assert!(
                begun.elapsed() < EVENTUALLY,
                "not within {EVENTUALLY:?}: {} {what}; it says {status:?}",
                self.nodes[n].name
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a node answers at all.
    pub async fn answers(&mut self, n: usize) -> GetNodeStatusResponse {
        self.until_status(n, "answers", |_| true).await
    }

    /// Waits until all nodes that run know the same leader, which runs; gives its number.
    pub async fn leader(&mut self) -> usize {
        let running = self.running();
        self.leader_of(&running).await
    }

    /// Waits until these nodes know the same leader in the same term, which is one of them.
    pub async fn leader_of(&mut self, nodes: &[usize]) -> usize {
        let begun = Instant::now();
        loop {
            self.check_processes();
            let mut all = Vec::new();
            for n in nodes {
                all.push(self.status(*n).await);
            }
            if let Some(leader) = self.agreed(nodes, &all) {
                return leader;
            }
            assert!(
                begun.elapsed() < EVENTUALLY,
                "not within {EVENTUALLY:?}: nodes {nodes:?} know one leader; they say {all:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn agreed(&self, nodes: &[usize], all: &[Option<GetNodeStatusResponse>]) -> Option<usize> {
        let first = all.first()?.as_ref()?;
        let leader = self.named(first.leader.as_deref()?)?;
        let leads = |n: &usize, status: &GetNodeStatusResponse| {
            status.leader == first.leader
                && status.term == first.term
                && (status.role() == Role::Leader) == (*n == leader)
        };
        let same = nodes
            .iter()
            .zip(all)
            .all(|(n, status)| status.as_ref().is_some_and(|status| leads(n, status)));
        (same && nodes.contains(&leader)).then_some(leader)
    }

    /// Waits until one of these nodes says that it leads in a term beyond `term`; gives it and its term.
    pub async fn new_leader(&mut self, nodes: &[usize], term: u64) -> (usize, u64) {
        until("a new leader", EVENTUALLY, async || {
            for n in nodes {
                if let Some(status) = self.status(*n).await
                    && status.role() == Role::Leader
                    && status.term > term
                {
                    return Some((*n, status.term));
                }
            }
            None
        })
        .await
    }

    /// Waits until every node of the configuration runs, votes, and knows the leader; gives the leader.
    pub async fn complete(&mut self) -> usize {
        let all = self.all();
        self.votes(&all).await;
        self.leader().await
    }

    /// Waits until, in the eyes of every node that runs, these and no others are the members, and each
    /// votes as the incarnation that it is.
    pub async fn votes(&mut self, nodes: &[usize]) {
        let mut expected = BTreeMap::new();
        for n in nodes {
            let status = self.answers(*n).await;
            expected.insert(status.name, (status.incarnation, true));
        }
        for n in self.running() {
            self.until_status(n, &format!("knows the members {expected:?}"), |status| {
                status.members.len() == expected.len() && members(status) == expected
            })
            .await;
        }
    }

    /// Waits until a node has applied the log up to `index`.
    pub async fn applied(&mut self, n: usize, index: u64) {
        self.until_status(n, &format!("has applied {index}"), |status| {
            status.applied_index >= Some(index)
        })
        .await;
    }

    /// Waits until all nodes that run have applied what the leader has now.
    pub async fn level(&mut self) {
        let leader = self.leader().await;
        let last = self.answers(leader).await.last_log_index.unwrap();
        for n in self.running() {
            self.applied(n, last).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
        if std::thread::panicking() {
            if std::env::var_os("MINFS_TEST_KEEP").is_some() {
                self.dir.disable_cleanup(true);
                eprintln!("--- kept: {}", self.dir.path().display());
            }
            for n in self.all() {
                let log = self.log(n);
                let lines: Vec<_> = log.lines().collect();
                let tail = &lines[lines.len().saturating_sub(TAIL)..];
                eprintln!(
                    "--- the end of the log of node {n}, {}\n{}",
                    self.nodes[n].name,
                    tail.join("\n")
                );
            }
        }
    }
}

impl Node {
    fn new(dir: &Path, place: Option<&Place>, name: Option<&&str>) -> Node {
        let ports = [Port::free(), Port::free()];
        let (grpc_host, raft_host) = match place {
            None => ("127.0.0.1", "127.0.0.1"),
            Some(place) => (place.grpc_host.as_str(), place.raft_host.as_str()),
        };
        let name = match name {
            Some(name) => (*name).to_owned(),
            None => format!("meta-{}", ports[0].number),
        };
        let grpc_addr = format!("{grpc_host}:{}", ports[0].number);
        Node {
            raft_addr: format!("{raft_host}:{}", ports[1].number),
            binary: env!("CARGO_BIN_EXE_metaserver").into(),
            data: dir.join(&name),
            log: dir.join(format!("{name}.log")),
            channel: connect(&grpc_addr),
            namespace: place.map(|place| place.namespace.clone()),
            environment: Vec::new(),
            name,
            grpc_addr,
            ports,
            process: None,
        }
    }

    /// The port for clients.
    pub fn grpc_port(&self) -> u16 {
        self.ports[0].number
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // SIGKILL also ends a paused process.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Port {
    /// One that nobody listens on and no other test has.
    pub fn free() -> Port {
        let locks = std::env::temp_dir().join("minfs-test-ports");
        fs::create_dir_all(&locks).unwrap();
        for _ in 0..1000 {
            let number = rand::random_range(12_000..32_000);
            let lock = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(locks.join(number.to_string()))
                .unwrap();
            if lock.try_lock().is_ok() && TcpListener::bind(("0.0.0.0", number)).is_ok() {
                return Port { number, _lock: lock };
            }
        }
        panic!("no free port");
    }
}

/// The members that a node knows: name, incarnation, and whether it votes.
pub fn members(status: &GetNodeStatusResponse) -> BTreeMap<String, (u64, bool)> {
    status
        .members
        .iter()
        .map(|member| (member.name.clone(), (member.incarnation, member.voter)))
        .collect()
}

/// Connects when it is used, and again when the server was away.
pub fn connect(addr: &str) -> Channel {
    Endpoint::from_shared(format!("http://{addr}"))
        .unwrap()
        .connect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        .connect_lazy()
}
