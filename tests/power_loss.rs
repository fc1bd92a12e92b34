//! The power goes out, again and again: what was acknowledged is there, whatever was not flushed is gone.
//!
//! All nodes lose power at once, when one of them is about to do something to its files that the seed
//! chooses: while clients write, while a snapshot is built, sent or installed, while the log begins a new
//! file or drops old ones, while the cluster is formed, and while the nodes start after the last time.
//! `tests/faults/preload.c` makes the cut, `tests/faults/disk.rs` knows what a disk may have after it.
//! Sometimes just the processes die, and what they had not flushed is lost later, or never.
//!
//! `MINFS_POWER_CUTS` says how often (default: as often as is quick), `MINFS_POWER_SEED` is the seed.

#![allow(clippy::unwrap_used)]

#[path = "faults/bytes.rs"]
mod bytes;
#[path = "faults/disk.rs"]
mod disk;
#[path = "faults/machine.rs"]
#[allow(dead_code)]
mod machine;
mod support;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use minfs::proto::dfs::meta_server_service_client::MetaServerServiceClient;
use minfs::proto::dfs::{CreateNodeRequest, DeleteNodeRequest, FileType, ListDirectoryRequest};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::Channel;

use bytes::Unflushed;
use machine::Preload;
use support::cluster::{Cluster, EVENTUALLY, Setup, turn};
use support::wait::until;

/// Where the clients write.
const DIRECTORY: &str = "/files";

/// How many clients write.
const CLIENTS: u64 = 4;

type Node = MetaServerServiceClient<Channel>;

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name}={text}"))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_alone_keeps_everything() {
    let _turn = turn();
    let mut trial = Trial::new(1, None);
    let cuts = setting("MINFS_POWER_CUTS", 12);
    trial
        .run(cuts)
        .await
        .unwrap_or_else(|finding| panic!("{finding}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_keep_everything() {
    let _turn = turn();
    let mut trial = Trial::new(3, None);
    let cuts = setting("MINFS_POWER_CUTS", 4);
    trial
        .run(cuts)
        .await
        .unwrap_or_else(|finding| panic!("{finding}"));
}

/// Shows that the test can fail.
#[cfg(feature = "planted-bugs")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_flush_its_log_is_caught() {
    let _turn = turn();
    let mut trial = Trial::new(1, Some("skip-fsync"));
    let finding = trial.run(12).await.expect_err("nothing was lost");
    println!("skip-fsync: {finding}");
    assert!(
        finding.contains("is lost") || finding.contains("is back"),
        "{finding}"
    );
}

/// What is known of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Acknowledged, or seen.
    There,
    Gone,
    /// Asked for, and never answered.
    Unclear,
}

type Files = Arc<Mutex<BTreeMap<String, Known>>>;

struct Trial {
    cluster: Cluster,
    preload: Preload,
    random: StdRng,
    files: Files,
    /// Numbers for new files.
    next: Arc<AtomicU64>,
    acknowledged: Arc<AtomicU64>,
}

impl Trial {
    fn new(nodes: usize, bug: Option<&str>) -> Trial {
        let seed = setting("MINFS_POWER_SEED", 1);
        println!("MINFS_POWER_SEED={seed}");
        let mut cluster = Cluster::new(Setup {
            nodes,
            // Snapshots, and new files of the log, all the time.
            snapshot_interval: "100ms",
            snapshot_threshold: 40,
            ..Setup::default()
        });
        for n in cluster.all() {
            cluster.environment(n, "MINFS_PLANTED_BUG", bug.unwrap_or_default().as_ref());
        }
        Trial {
            preload: Preload::install(&mut cluster),
            cluster,
            random: StdRng::seed_from_u64(seed),
            files: Files::default(),
            next: Arc::default(),
            acknowledged: Arc::default(),
        }
    }

    /// Lets the power go out so many times; an error is what was found to be wrong.
    async fn run(&mut self, cuts: u64) -> Result<(), String> {
        let mut away = None;
        for cut in 0..cuts {
            let clean = self.cluster.len() == 1 && cut % 8 == 6;
            let in_the_start = self.random.random_bool(0.35) && !clean;
            let victim = self.start(away, in_the_start);
            let moment = self.live(victim, in_the_start, clean).await?;
            let power = clean || self.random.random_bool(0.8);
            self.all_end(victim, power)?;
            println!(
                "{cut}: {moment}, {}; {} acknowledged",
                if power { "power lost" } else { "processes killed" },
                self.acknowledged.load(Ordering::Relaxed)
            );
            if clean {
                self.comes_back_as_it_was().await?;
            }
            // Whoever was away comes back to a log that begins after its own ends.
            let odds = if self.cluster.len() == 1 { 0.0 } else { 0.3 };
            let all = self.cluster.all();
            away = self
                .random
                .random_bool(odds)
                .then(|| all[self.random.random_range(0..all.len())]);
        }
        self.start(None, false);
        self.check(None).await?;
        Ok(())
    }

    /// Starts the nodes; gives the one that is to be cut off.
    fn start(&mut self, away: Option<usize>, in_the_start: bool) -> usize {
        let here: Vec<_> = self
            .cluster
            .all()
            .into_iter()
            .filter(|n| Some(*n) != away)
            .collect();
        let victim = here[self.random.random_range(0..here.len())];
        if in_the_start {
            self.preload
                .kill_before_call(victim, self.random.random_range(1..70));
        }
        for n in here {
            // Does no harm to a cluster that there is already.
            match n {
                0 => self.cluster.bootstrap(0),
                n => self.cluster.start(n),
            }
        }
        victim
    }

    /// From the start to the cut; says when it came.
    async fn live(&mut self, victim: usize, in_the_start: bool, clean: bool) -> Result<String, String> {
        if !self.check(in_the_start.then_some(victim)).await? {
            return Ok(format!("node {victim} was starting"));
        }
        let stop = Arc::<AtomicBool>::default();
        let clients: Vec<_> = (0..CLIENTS).map(|_| self.write(&stop)).collect();
        let moment = if clean {
            let goal = self.acknowledged.load(Ordering::Relaxed) + 100;
            until("100 more changes", EVENTUALLY, async || {
                (self.acknowledged.load(Ordering::Relaxed) >= goal).then_some(())
            })
            .await;
            self.cluster.terminate(victim).await;
            "stopped cleanly".to_owned()
        } else {
            // Mostly soon, sometimes late.
            let most = 1 << self.random.random_range(3..11);
            let calls = self.random.random_range(1..most);
            let slow = self.random.random_range(0..4);
            self.preload.slow_flushes(victim, Duration::from_millis(slow));
            self.preload.kill_before_call(victim, calls);
            let begun = Instant::now();
            while !self.is_cut(victim)? {
                assert!(
                    begun.elapsed() < EVENTUALLY,
                    "node {victim} did not make {calls} calls"
                );
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            format!("node {victim} was at call {calls}")
        };
        self.cluster
            .running()
            .into_iter()
            .for_each(|n| self.cluster.kill(n));
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.unwrap();
        }
        Ok(moment)
    }

    /// Whether the order to kill this node was carried out; an error when any ended in another way.
    fn is_cut(&mut self, victim: usize) -> Result<bool, String> {
        let mut cut = false;
        for n in self.cluster.running() {
            match self.cluster.ended(n) {
                None => {}
                Some(how) if how.signal() == Some(9) && n == victim => cut = true,
                Some(how) => return Err(format!("node {n} ended by itself: {how}")),
            }
        }
        Ok(cut)
    }

    /// Whatever still runs is killed, and with the power goes what was not flushed.
    fn all_end(&mut self, victim: usize, power: bool) -> Result<(), String> {
        for n in self.cluster.all() {
            self.cluster.kill(n);
            let untold = self.preload.process_ended(n);
            if n == victim && !untold.is_empty() {
                // Otherwise there would be calls that the library does not know.
                return Err(format!("node {n} did not write down: {untold:#?}"));
            }
            if power {
                let unflushed = match self.random.random_bool(0.4) {
                    true => Unflushed::Lost,
                    false => Unflushed::Random,
                };
                self.preload.lose_power(n, unflushed, &mut self.random);
            }
        }
        Ok(())
    }

    /// After a clean stop the state was flushed, and is used.
    async fn comes_back_as_it_was(&mut self) -> Result<(), String> {
        let entries = fs::read_dir(self.cluster.data_dir(0).join("lmdb")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let generations: Vec<_> = paths.filter(|path| path.is_dir()).collect();
        assert_eq!(generations.len(), 1, "{generations:?}");
        let size = fs::metadata(generations[0].join("data.mdb")).map_or(0, |data| data.len());
        assert!(size > 0, "the state was lost after a clean stop");
        let before = self.cluster.log(0).matches("rebuilding the state").count();
        self.start(None, false);
        self.check(None).await?;
        let after = self.cluster.log(0).matches("rebuilding the state").count();
        assert_eq!(before, after, "the state was not used after a clean stop");
        self.cluster.kill(0);
        self.preload.process_ended(0);
        Ok(())
    }

    /// Waits until the directory can be listed, and compares with what is known; what is seen is known from
    /// then on. Gives `false` when the victim was cut off meanwhile.
    async fn check(&mut self, victim: Option<usize>) -> Result<bool, String> {
        let running = self.cluster.running();
        let mut nodes: Vec<_> = running.iter().map(|n| self.node(*n)).collect();
        let begun = Instant::now();
        let seen = loop {
            if self.is_cut(victim.unwrap_or(usize::MAX))? {
                return Ok(false);
            }
            let at = self.random.random_range(0..nodes.len());
            if let Some(seen) = list(&mut nodes[at]).await {
                break seen;
            }
            if begun.elapsed() > 2 * EVENTUALLY {
                return Err(format!(
                    "not within {:?}: {DIRECTORY} can be listed",
                    2 * EVENTUALLY
                ));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let mut files = self.files.lock().unwrap();
        for (path, known) in files.iter_mut() {
            match (*known, seen.contains(path)) {
                (Known::There, false) => return Err(format!("{path} was acknowledged and is lost")),
                (Known::Gone, true) => return Err(format!("{path} was deleted and is back")),
                (_, true) => *known = Known::There,
                (_, false) => *known = Known::Gone,
            }
        }
        match seen.iter().find(|path| !files.contains_key(*path)) {
            Some(path) => Err(format!("{path} was never asked for")),
            None => Ok(true),
        }
    }

    fn node(&self, n: usize) -> Node {
        self.cluster.raw(n).max_decoding_message_size(usize::MAX)
    }

    /// A client that creates files, and deletes some of them.
    fn write(&mut self, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
        let mut nodes: Vec<_> = self.cluster.running().into_iter().map(|n| self.node(n)).collect();
        let mut random = StdRng::seed_from_u64(self.random.random());
        let (files, stop, next) = (self.files.clone(), stop.clone(), self.next.clone());
        let acknowledged = self.acknowledged.clone();
        tokio::spawn(async move {
            let mut ours: Vec<String> = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let at = random.random_range(0..nodes.len());
                let node = &mut nodes[at];
                let delete = ours.len() > 3 && random.random_bool(0.4);
                let (path, answer) = if delete {
                    let path = ours.swap_remove(random.random_range(0..ours.len()));
                    files.lock().unwrap().insert(path.clone(), Known::Unclear);
                    let request = DeleteNodeRequest {
                        path: path.clone(),
                        recursive: false,
                    };
                    (path, bounded(node.delete_node(request)).await)
                } else {
                    let path = format!("{DIRECTORY}/{:07}", next.fetch_add(1, Ordering::Relaxed));
                    files.lock().unwrap().insert(path.clone(), Known::Unclear);
                    let request = CreateNodeRequest {
                        path: path.clone(),
                        r#type: FileType::File.into(),
                    };
                    (path, bounded(node.create_node(request)).await)
                };
                if answer.is_none() {
                    // A server that is gone refuses at once: no hot loop.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                }
                acknowledged.fetch_add(1, Ordering::Relaxed);
                let known = if delete { Known::Gone } else { Known::There };
                files.lock().unwrap().insert(path.clone(), known);
                if !delete {
                    ours.push(path);
                }
            }
        })
    }
}

/// An answer that came, and came soon.
async fn bounded<T>(asked: impl Future<Output = Result<T, tonic::Status>>) -> Option<T> {
    tokio::time::timeout(Duration::from_secs(1), asked)
        .await
        .ok()?
        .ok()
}

/// What is in the clients' directory, which is made if it is missing.
async fn list(node: &mut Node) -> Option<BTreeSet<String>> {
    let list = ListDirectoryRequest {
        path: DIRECTORY.to_owned(),
    };
    let listed = match node.list_directory(list).await {
        Ok(listed) => listed.into_inner().nodes,
        Err(status) if status.code() == Code::NotFound => {
            let create = CreateNodeRequest {
                path: DIRECTORY.to_owned(),
                r#type: FileType::Directory.into(),
            };
            bounded(node.create_node(create)).await?;
            return None;
        }
        Err(_) => return None,
    };
    Some(listed.into_iter().map(|info| info.path).collect())
}
