//! A storm of malformed and extreme requests on a cluster of real processes: it goes on serving, its memory is
//! bounded, and its state is untouched.
//!
//! `MINFS_HOSTILE_REQUESTS=1000000 cargo test --release --test hostile -- --nocapture` throws a million;
//! `MINFS_HOSTILE_SEED` decides which. In reading order: `grpc` (a client that sends whatever it is told to),
//! `requests` (what clients may get wrong), `frames` (connections that are none), `peers` (the port for the
//! other nodes), `burdens` (what is slow or never ends).
#![allow(clippy::unwrap_used)]

mod burdens;
mod dice;
mod frames;
mod grpc;
mod peers;
mod requests;

#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use minfs::client::Client;
use minfs::proto::dfs::{FileType, GetBlockLocationsResponse, StatInfo};
use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::JoinSet;

use burdens::Burdens;
use grpc::{Call, End, OK, Tally, Wire};
use peers::Target;
use support::cluster::{Cluster, Setup, turn};
use support::data_servers::Fleet;
use support::memory::{Memory, memory};

/// The most that a node may ever have in memory.
const MOST_MEMORY: u64 = 1 << 30;

/// Those who attack one node, and how many calls each has under way.
const ATTACKERS: usize = 2;
const AT_ONCE: usize = 32;

/// How long an ordinary operation may take in the storm, its repetitions included: a request's own bound and a
/// second try; without optimization, and beside other tests, more.
const ORDINARY: Duration = Duration::from_secs(if cfg!(debug_assertions) { 60 } else { 10 });

/// The burdens are got rid of within this time: 20 s is the longest that an answer may wait.
const RID_WITHIN: Duration = Duration::from_secs(60);

/// What the log of a node may grow by, bytes: nobody can fill its disk with lines.
const MOST_LOG: usize = 256 << 10;

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_nonsense_changes_nothing_and_stops_nobody() {
    let _turn = turn();
    let requests = setting("MINFS_HOSTILE_REQUESTS", 10_000);
    let seed = setting("MINFS_HOSTILE_SEED", 1);
    let mut cluster = Cluster::formed(Setup::default()).await;
    let fleet = Fleet::start(&cluster, 3).await;
    furnish(&cluster.any_client().await).await;
    cluster.level().await;
    let before = portraits(&cluster).await;
    let processes: Vec<_> = cluster.all().into_iter().map(|n| cluster.process(n)).collect();
    let logs: Vec<_> = cluster.all().into_iter().map(|n| cluster.log(n).len()).collect();
    print_memory("before", &processes);

    let addrs: Vec<_> = cluster
        .all()
        .into_iter()
        .map(|n| cluster.node(n).grpc_addr.clone())
        .collect();
    let burdens = Burdens::put_on(&addrs, "/big");
    let ordinary = Ordinary::start(&cluster).await;
    let begun = Instant::now();
    let tally = storm(&cluster, requests, seed).await;
    let took = begun.elapsed();
    println!(
        "{requests} hostile requests in {took:.1?}, {:.0} a second: {tally:?}",
        requests as f64 / took.as_secs_f64()
    );
    print_memory("after the storm", &processes);
    let shed = burdens.lift(RID_WITHIN).await;
    println!("got rid of, node by node: {shed:?}");
    ordinary.stop().await;
    print_memory("at rest", &processes);

    for n in cluster.all() {
        assert!(cluster.ended(n).is_none(), "node {n} has ended");
        assert_eq!(cluster.process(n), processes[n]);
        let peak = memory(processes[n], Memory::Peak);
        assert!(peak < MOST_MEMORY, "node {n} had {} MiB in memory", peak >> 20);
        let logged = cluster.log(n).len() - logs[n];
        assert!(logged < MOST_LOG, "node {n} has logged {logged} bytes");
    }
    cluster.complete().await;
    cluster.level().await;
    assert_eq!(portraits(&cluster).await, before);
    fleet.stop().await;
}

fn print_memory(when: &str, processes: &[u32]) {
    let mib = |which| -> Vec<_> {
        processes
            .iter()
            .map(|process| memory(*process, which) >> 20)
            .collect()
    };
    println!(
        "memory {when}: {:?} MiB, at most {:?}",
        mib(Memory::Now),
        mib(Memory::Peak)
    );
}

/// Some files with blocks, and a directory whose listing has some 300 KiB.
async fn furnish(client: &Client) {
    for directory in ["/files", "/big", "/ordinary"] {
        client.create(directory, FileType::Directory).await.unwrap();
    }
    for (n, blocks) in [(1, 1), (2, 3), (3, 200)] {
        let path = format!("/files/f-{n}");
        let size = blocks * 4_194_304 - 7;
        client.create(&path, FileType::File).await.unwrap();
        let allocated = client.allocate(&path, size).await.unwrap();
        client
            .finalize(&path, allocated.inode, size, "d41d8cd98f00b204e9800998ecf8427e")
            .await
            .unwrap();
    }
    let create = |n| async move {
        let path = format!("/big/{n:04}-{}", "x".repeat(240));
        client.create(&path, FileType::File).await.unwrap();
    };
    for hundred in 0..10 {
        join_all((0..100).map(|n| create(100 * hundred + n))).await;
    }
}

/// All that a node says of the state.
#[derive(Debug, PartialEq)]
struct Portrait {
    entries: Vec<StatInfo>,
    blocks: BTreeMap<String, GetBlockLocationsResponse>,
    data_servers: Vec<(String, i32)>,
    inodes: u64,
}

async fn portraits(cluster: &Cluster) -> Vec<Portrait> {
    let mut all = Vec::new();
    for n in cluster.all() {
        let client = cluster.client(n).await;
        let mut entries = Vec::new();
        let mut blocks = BTreeMap::new();
        let mut rest = vec!["/".to_owned()];
        while let Some(directory) = rest.pop() {
            for mut entry in client.list(&directory).await.unwrap() {
                match entry.r#type() {
                    FileType::Directory => rest.push(entry.path.clone()),
                    _ if directory == "/files" => {
                        let of_file = client.block_locations(&entry.path).await.unwrap();
                        blocks.insert(entry.path.clone(), of_file);
                    }
                    _ => {}
                }
                if entry.path == "/ordinary" {
                    entry.mtime = 0; // files come and go there
                }
                entries.push(entry);
            }
        }
        let servers = client.cluster_info().await.unwrap().data_server;
        all.push(Portrait {
            entries,
            blocks,
            data_servers: servers
                .into_iter()
                .map(|server| (server.host, server.port))
                .collect(),
            inodes: cluster.status(n).await.unwrap().inodes,
        });
    }
    all
}

/// Throws so many requests at all nodes; gives how they ended.
async fn storm(cluster: &Cluster, requests: u64, seed: u64) -> Tally {
    let left = Arc::new(AtomicU64::new(requests));
    let mut attackers = JoinSet::new();
    for n in cluster.all() {
        let node = cluster.node(n);
        let target = Target::of(&node.raft_addr).await;
        for number in 0..ATTACKERS {
            let attacker = Attacker {
                grpc: Line::to(&node.grpc_addr),
                raft: Line::to(&node.raft_addr),
                target: target.clone(),
                rng: StdRng::seed_from_u64(seed.wrapping_mul(1000) + (n * ATTACKERS + number) as u64),
                left: left.clone(),
                tally: Tally::new(),
            };
            attackers.spawn(attacker.run());
        }
    }
    let mut total = Tally::new();
    while let Some(tally) = attackers.join_next().await {
        for (end, count) in tally.unwrap() {
            *total.entry(end).or_default() += count;
        }
    }
    total
}

/// Who attacks one node, on both its ports.
struct Attacker {
    grpc: Line,
    raft: Line,
    target: Target,
    rng: StdRng,
    left: Arc<AtomicU64>,
    tally: Tally,
}

impl Attacker {
    async fn run(mut self) -> Tally {
        while self.take(AT_ONCE) {
            let rng = &mut self.rng;
            match rng.random_range(0..10) {
                0..=7 => {
                    let calls: Vec<_> = (0..AT_ONCE).map(|_| requests::any(rng)).collect();
                    self.grpc.send(&calls, &mut self.tally).await;
                }
                8 => {
                    let calls: Vec<_> = (0..AT_ONCE).map(|_| peers::any(&self.target, rng)).collect();
                    self.raft.send(&calls, &mut self.tally).await;
                }
                _ => {
                    for n in 0..AT_ONCE {
                        let line = if n % 4 == 0 { &self.raft } else { &self.grpc };
                        frames::attack(&line.addr, rng).await;
                    }
                    *self.tally.entry(End::Closed).or_default() += AT_ONCE as u64;
                }
            }
        }
        self.tally
    }

    /// Whether there are any requests left to be made; takes so many.
    fn take(&self, count: usize) -> bool {
        let less = |left: u64| left.checked_sub(count as u64);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }
}

/// A connection that is made again when the server has had enough of it.
struct Line {
    addr: String,
    wire: Option<Wire>,
}

impl Line {
    fn to(addr: &str) -> Line {
        Line {
            addr: addr.to_owned(),
            wire: None,
        }
    }

    async fn send(&mut self, calls: &[Call], tally: &mut Tally) {
        if self.wire.as_ref().is_none_or(Wire::is_closed) {
            self.wire = Wire::connect(&self.addr).await;
        }
        let Some(wire) = &self.wire else {
            *tally.entry(End::Closed).or_default() += calls.len() as u64;
            return;
        };
        let ends = join_all(calls.iter().map(|call| wire.call(call))).await;
        for (call, end) in calls.iter().zip(ends) {
            assert!(
                !call.wrong || end != End::Status(OK),
                "this was done: {} {:?}…",
                call.path,
                &call.body[..call.body.len().min(200)]
            );
            *tally.entry(end).or_default() += 1;
        }
    }
}

/// Clients that do what clients do, at every node.
struct Ordinary {
    over: Arc<AtomicBool>,
    clients: JoinSet<Vec<Duration>>,
}

impl Ordinary {
    async fn start(cluster: &Cluster) -> Ordinary {
        let over = Arc::<AtomicBool>::default();
        let mut clients = JoinSet::new();
        for n in cluster.all() {
            let client = cluster.client(n).await.with_timeout(ORDINARY);
            let over = over.clone();
            clients.spawn(async move {
                let mut times = Vec::new();
                for number in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let path = format!("/ordinary/{n}-{number}");
                    let mut timed = Instant::now();
                    let mut took = || times.push(std::mem::replace(&mut timed, Instant::now()).elapsed());
                    client.create(&path, FileType::File).await.unwrap();
                    took();
                    assert_eq!(client.stat(&path).await.unwrap().path, path);
                    took();
                    assert_eq!(client.list("/files").await.unwrap().len(), 3);
                    took();
                    client.delete(&path, false).await.unwrap();
                    took();
                }
                times
            });
        }
        Ordinary { over, clients }
    }

    async fn stop(mut self) {
        self.over.store(true, Ordering::Relaxed);
        let mut times = Vec::new();
        while let Some(of_client) = self.clients.join_next().await {
            times.extend(of_client.unwrap());
        }
        times.sort();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        println!(
            "{} ordinary operations in the storm: half within {:.1?}, 99 of 100 within {:.1?}, all within {:.1?}",
            times.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
        assert!(at(1.0) < ORDINARY, "{:?}", at(1.0));
    }
}
