//! The fault suite: real processes, clients that contend, a nemesis, and a judge.
//!
//! `scripts/faults.sh --seconds N --seed S` runs it for as long as one likes; `cargo test` tries the
//! checker and the tools only. In reading order: `history` (what is written down), `model` (what is
//! right), `checker` (whether it was, tried on planted histories in `planted`), `clients`, `nemesis`
//! with `machine`, `disk`, `bytes` and `preload.c`, `aftermath` (what is there in the end) and `report`.
#![allow(clippy::unwrap_used)]

mod aftermath;
mod bytes;
mod checker;
mod clients;
mod disk;
mod history;
mod machine;
mod model;
mod nemesis;
mod planted;
mod report;

#[path = "../support/mod.rs"]
mod support;

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use minfs::proto::dfs::{CreateNodeRequest, FileType, GetNodeInfoRequest};
use rand::SeedableRng;
use rand::rngs::StdRng;

use clients::{Clients, Ground};
use history::History;
use machine::Preload;
use nemesis::{Nemesis, Schedule};
use support::cluster::{Cluster, Setup, turn};
use support::data_servers::Fleet;
use support::network::Network;
use support::small_disk::SmallDisk;

/// A number from the environment.
fn setting<T: FromStr>(name: &str, otherwise: T) -> T {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}: not a number: {text:?}")),
        Err(_) => otherwise,
    }
}

/// What a run is to be like.
struct Run {
    length: Duration,
    seed: u64,
    /// Words in the names of the faults; all of them, without.
    only: String,
    /// What the nodes are to do wrong; only with the feature `planted-bugs`.
    bug: Option<&'static str>,
    /// The node that has the bug, and loses its power; all of them, without.
    bugged: Option<usize>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_nothing_acknowledged_is_lost_and_nobody_sees_anything_impossible() {
    let _turn = turn();
    let seconds = setting("MINFS_FAULT_SECONDS", 0);
    if seconds == 0 {
        println!("skipped: scripts/faults.sh runs it, for as long as one likes");
        return;
    }
    let run = Run {
        length: Duration::from_secs(seconds),
        seed: setting("MINFS_FAULT_SEED", 1),
        only: std::env::var("MINFS_FAULT_ONLY").unwrap_or_default(),
        bug: None,
        bugged: None,
    };
    let findings = run.findings().await;
    assert!(findings.is_empty(), "seed {}: {}", run.seed, findings.join("\n"));
}

/// Shows that the suite can fail.
#[cfg(feature = "planted-bugs")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_bugs_are_caught() {
    use std::panic::AssertUnwindSafe;

    use futures::FutureExt;

    let _turn = turn();
    for (bug, bugged, only) in [
        (
            "acknowledge-before-commit",
            None,
            "leader alone,leader is not heard",
        ),
        (
            "read-without-leadership",
            None,
            "pause: leader,leader alone,leader hears nothing",
        ),
        ("skip-fsync", Some(1), "power loss: in turn"),
    ] {
        let run = Run {
            length: Duration::from_secs(setting("MINFS_FAULT_SECONDS", 25)),
            seed: setting("MINFS_FAULT_SEED", 1),
            only: only.to_owned(),
            bug: Some(bug),
            bugged,
        };
        // A node that finds out for itself that it has lost something stops before there is anything to judge.
        let findings = match AssertUnwindSafe(run.findings()).catch_unwind().await {
            Ok(findings) => findings,
            Err(panic) => vec![panic.downcast_ref::<String>().cloned().unwrap_or_default()],
        };
        println!("{bug}: {}", findings.join("\n"));
        let caught = findings.iter().any(|finding| {
            finding.contains("is not linearizable")
                || finding.contains("is lost")
                || finding.contains("is undone")
                || finding.contains("differs from that of a majority")
        });
        assert!(caught, "not caught: {bug}");
    }
}

impl Run {
    /// Does it, prints the report, and gives what was found to be wrong.
    async fn findings(&self) -> Vec<String> {
        let Run {
            length,
            seed,
            only,
            bug,
            bugged,
        } = self;
        let (length, seed) = (*length, *seed);
        println!("seed {seed}, {length:?}");

        let network = Network::new(3);
        let mut cluster = Cluster::new(Setup {
            places: network.as_ref().map(Network::places).unwrap_or_default(),
            // Often enough that nodes that were away come back through snapshots, too.
            snapshot_interval: "5s",
            snapshot_threshold: 500,
            database: nemesis::DATABASE,
            // One thread for everything, or clients served on others.
            server: ["{ grpc_threads: 0 }", "{ grpc_threads: 2 }"][(seed % 2) as usize],
            ..Setup::default()
        });
        for n in cluster.all() {
            let bug = bug.filter(|_| bugged.is_none_or(|bugged| bugged == n));
            cluster.environment(n, "MINFS_PLANTED_BUG", Path::new(bug.unwrap_or_default()));
        }
        let small = (seed % 3) as usize;
        let disk = SmallDisk::mount(cluster.data_dir(small), nemesis::DISK_SIZE);
        let mut preload = Preload::install(&mut cluster);
        cluster.bootstrap(0);
        for n in 1..cluster.len() {
            cluster.start(n);
        }
        cluster.complete().await;
        let fleet = Fleet::start(&cluster, 4).await;
        let ground = Arc::new(Ground::prepare(&cluster, length).await);

        let history = Arc::new(History::new());
        let clients = Clients::start(&cluster, &ground, &history, seed);
        let mut schedule = Schedule::new(seed, network.is_some(), disk.is_some(), only);
        let mut nemesis = Nemesis {
            cluster: &mut cluster,
            network: network.as_ref(),
            preload: &mut preload,
            disk: disk.as_ref().map(|disk| (small, disk)),
            left: 0,
            history: &history,
            random: StdRng::seed_from_u64(!seed),
            loses: *bugged,
            away: 0,
            strikes: Vec::new(),
            findings: Vec::new(),
        };
        nemesis.rage(&mut schedule, length).await;
        let (strikes, mut findings) = (nemesis.strikes, nemesis.findings);
        clients.stop().await;
        let end = history.now();
        for strike in &strikes {
            let (struck, healed) = (strike.struck.as_secs_f64(), strike.healed.as_secs_f64());
            let node = strike.node.map_or("all".to_owned(), |n| format!("node {n}"));
            let stopped = if strike.stopped {
                ", which stopped by itself"
            } else {
                ""
            };
            println!("{struck:8.3}-{healed:8.3} {}, {node}{stopped}", strike.fault);
        }

        let mut records = history.records();
        if findings.is_empty() {
            cluster.complete().await;
            cluster.level().await;
            let mut trees = Vec::new();
            for n in cluster.all() {
                trees.push(aftermath::survey(&cluster, n, &ground, &history).await);
            }
            records = history.records();
            let lost = aftermath::lost(&records, &trees);
            println!(
                "entries seen through each node: {}; lost: {}",
                trees[0].len(),
                lost.len()
            );
            findings.extend(lost.into_iter().take(20));
            findings.extend(aftermath::differences(&trees));
            findings.extend(aftermath::verification(&cluster).await);
            records.extend(aftermath::looks_at_ledgers(&records, &trees, history.now()));
        }
        fleet.stop().await;
        findings.extend(aftermath::repeated_numbers(&records));
        let judged = Instant::now();
        let verdicts = checker::check(&records);
        println!(
            "linearizable: {}; {} units, {} operations, at most {} states for one, {:.1?}",
            if verdicts.linearizable() { "yes" } else { "NO" },
            verdicts.units,
            verdicts.operations,
            verdicts.most_visited,
            judged.elapsed()
        );
        println!(
            "{}\n\n{}",
            report::totals(&records),
            report::table(&records, &strikes, end)
        );
        for (unit, violation) in verdicts.violations.iter().take(5) {
            let lines = |records: &[history::Record]| {
                let lines: Vec<_> = records.iter().map(|record| format!("    {record}")).collect();
                lines.join("\n")
            };
            findings.push(format!(
            "{unit} is not linearizable: {} of {} operations can be put in order; the state then: {:?}\n  \
             before:\n{}\n  none of these fits next:\n{}",
            violation.ordered,
            violation.of,
            violation.state,
            lines(&violation.before),
            lines(&violation.stuck)
        ));
        }
        for unit in &verdicts.undecided {
            findings.push(format!("{unit}: the checker gave up"));
        }
        if !findings.is_empty() {
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("faults-{seed}.history"));
            history
                .write(BufWriter::new(File::create(&file).unwrap()))
                .unwrap();
            println!("the history is in {}", file.display());
        }
        assert!(!strikes.is_empty(), "nothing was done to the cluster");
        findings
    }
}

#[tokio::test]
async fn the_clock_and_the_flushes_of_a_node_are_in_the_hand_of_the_test() {
    let _turn = turn();
    let mut cluster = Cluster::new(Setup {
        nodes: 1,
        ..Setup::default()
    });
    let preload = Preload::install(&mut cluster);
    cluster.bootstrap(0);
    cluster.complete().await;
    let mut node = cluster.raw(0);
    let mut create = async |path: &str| {
        let begun = Instant::now();
        let request = CreateNodeRequest {
            path: path.to_owned(),
            r#type: FileType::File.into(),
        };
        node.create_node(request).await.unwrap();
        let took = begun.elapsed();
        let request = GetNodeInfoRequest {
            path: path.to_owned(),
        };
        let info = node.get_node_info(request).await.unwrap().into_inner().stat_info;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        (took, info.unwrap().mtime - now.as_millis() as i64)
    };
    let hour = 3_600_000;
    let (_, ahead) = create("/now").await;
    assert!(ahead.abs() < hour / 10, "{ahead}");
    for shift in [hour, -hour] {
        preload.shift_clock(0, shift);
        let (_, ahead) = create(&format!("/at{shift}")).await;
        assert!((ahead - shift).abs() < hour / 10, "{ahead}");
    }
    preload.shift_clock(0, 0);
    preload.slow_flushes(0, Duration::from_millis(700));
    let (took, _) = create("/slow").await;
    assert!(took >= Duration::from_millis(700), "{took:?}");
}
