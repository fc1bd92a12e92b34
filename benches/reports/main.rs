//! What block reports cost: the heartbeats of DataServers that hold many blocks and report, as nearly always,
//! the same blocks as the last time.
//!
//!     cargo bench --bench reports
//!
//! First three DataServers with 100,000 blocks each, one beat after the other; then a thousand with 10,000 each, every
//! five seconds. `MINFS_BENCH_SERVERS`, `MINFS_BENCH_BLOCKS` and `MINFS_BENCH_SECONDS` change the thousand, the 10,000 and
//! the length of the window (60 s: a pass of garbage collection and two of FSCK fall into it). With `few` or `many` as
//! an argument only that part runs. `docs/performance/reports.md` says what is measured and what came of it.
#![allow(clippy::unwrap_used)]

#[path = "../metadata/cpu.rs"]
mod cpu;
mod fleet;
#[path = "../metadata/machine.rs"]
mod machine;
#[path = "../../tests/support/mod.rs"]
mod support;
mod wire;
mod written;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use minfs::proto::admin::CheckFilesRequest;
use minfs::proto::admin::admin_service_client::AdminServiceClient;
use minfs::proto::dfs::meta_server_service_client::MetaServerServiceClient;
use minfs::proto::dfs::{CreateNodeRequest, FileType, GetNodeInfoRequest};
use rustix::process::{Resource, getrlimit, setrlimit};
use tonic::transport::Channel;

use cpu::{Processes, Usage};
use fleet::{Fleet, Order, SMALL};
use support::cluster::{Cluster, Setup};
use support::memory::{Memory, memory};
use written::Written;

/// As in the server: the client shares the machine with what is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As often as the DataServers in the field beat at most.
const INTERVAL: Duration = Duration::from_secs(5);

/// How long an ordinary client asks, with the beats and without. The DataServers stay alive for so long without beats.
const ASKING: Duration = Duration::from_secs(8);

/// Files to be checked.
const SMALL_FILES: u64 = 1_000;

/// The file that the ordinary client asks about.
const ASKED: &str = "/ordinary";

fn main() -> ExitCode {
    // `cargo test --all-targets` runs this, too, and wants no measurement.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    if let Err(error) = machine::check_disk() {
        eprintln!("bench: {error}");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.unwrap().block_on(measure());
    ExitCode::SUCCESS
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

async fn measure() {
    let wanted = |part: &str| {
        let named = |argument: &String| ["few", "many"].contains(&argument.as_str());
        let mut named = std::env::args().filter(named).peekable();
        named.peek().is_none() || named.any(|name| name == part)
    };
    for (label, value) in machine::facts() {
        println!("{label}: {value}");
    }
    if wanted("few") {
        few_large_ones().await;
    }
    if wanted("many") {
        many().await;
    }
}

/// A cluster, and who is who in it.
struct Site {
    cluster: Cluster,
    leader: usize,
    processes: Processes,
    client: MetaServerServiceClient<Channel>,
}

impl Site {
    async fn new() -> Site {
        let mut cluster = Cluster::formed(Setup::default()).await;
        let leader = cluster.leader().await;
        let others = cluster.others(leader);
        let processes = Processes {
            leader: cluster.process(leader),
            followers: [cluster.process(others[0]), cluster.process(others[1])],
        };
        eprintln!("the leader is process {}", processes.leader);
        let client =
            MetaServerServiceClient::new(cluster.channel(leader)).max_decoding_message_size(64 << 20);
        Site {
            cluster,
            leader,
            processes,
            client,
        }
    }

    async fn at_rest(&self) {
        cpu::quiet(&self.processes.all(), Duration::from_secs(20))
            .await
            .unwrap();
    }

    fn used(&self) -> Usage {
        Usage::now(&self.processes).unwrap()
    }

    async fn written(&mut self) -> Written {
        Written::so_far(&mut self.cluster, self.leader).await
    }

    fn resident(&self) -> u64 {
        memory(self.processes.leader, Memory::Now) >> 20
    }

    /// Asks about an empty file, one question after the other; nanoseconds that each answer took.
    async fn ask(&self, length: Duration) -> Histogram<u64> {
        let mut client = self.client.clone();
        let mut latencies = Histogram::new(3).unwrap();
        let begun = Instant::now();
        while begun.elapsed() < length {
            let sent = Instant::now();
            let path = ASKED.to_owned();
            client.get_node_info(GetNodeInfoRequest { path }).await.unwrap();
            latencies.record(sent.elapsed().as_nanos() as u64).unwrap();
        }
        latencies
    }

    /// Compares the small files with the reports, as `minfs fsck` does: milliseconds of the leader's processor,
    /// and until the answer.
    async fn check(&self) -> (f64, f64) {
        const ROUNDS: u32 = 5;
        let mut admin = AdminServiceClient::new(self.cluster.channel(self.leader));
        let (used, begun) = (self.used(), Instant::now());
        for _ in 0..ROUNDS {
            let asked = CheckFilesRequest {
                path: SMALL.to_owned(),
                ..CheckFilesRequest::default()
            };
            let answer = admin.check_files(asked).await.unwrap().into_inner();
            assert_eq!(answer.counts.unwrap().healthy, SMALL_FILES);
        }
        let (used, took) = (self.used().since(&used), begun.elapsed());
        let each = |seconds: f64| seconds * 1e3 / f64::from(ROUNDS);
        (each(used.leader), each(took.as_secs_f64()))
    }
}

/// Milliseconds at a quantile.
fn ms(latencies: &Histogram<u64>, quantile: f64) -> f64 {
    latencies.value_at_quantile(quantile) as f64 / 1e6
}

/// Three, since each block has three replicas.
async fn few_large_ones() {
    const SERVERS: u16 = 3;
    const BLOCKS: u64 = 100_000;
    const WINDOW: Duration = Duration::from_secs(10);
    let mut site = Site::new().await;
    let mut fleet = Fleet::registered(&site.cluster, site.leader, SERVERS).await;
    fleet.fill(&mut site.client, 0, BLOCKS).await;
    println!(
        "\n| {BLOCKS} unchanged blocks | beats | bytes each | leader, ms of processor each | p50, ms | p99, ms | log entries | bytes written |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|");
    for (name, order) in [
        ("in ascending order", Order::Ascending),
        ("in the order of file names", Order::ByName),
    ] {
        fleet.put_in_order(order);
        fleet.beat_once().await;
        site.at_rest().await;
        let (written, used) = (site.written().await, site.used());
        let beats = fleet.beat_in_turn(WINDOW).await;
        let (used, now) = (site.used().since(&used), site.written().await);
        if (now.files, now.changed) != (written.files, written.changed) {
            println!("files changed: {written:?} {now:?}");
        }
        assert_eq!(beats.commands, 0, "something was found wrong with the blocks");
        println!(
            "| {name} | {} | {} | {:.3} | {:.2} | {:.2} | {} | {} |",
            beats.count(),
            fleet.sizes().2,
            used.leader * 1e3 / beats.count() as f64,
            ms(&beats.latencies, 0.5),
            ms(&beats.latencies, 0.99),
            now.index - written.index,
            now.bytes - written.bytes
        );
    }
}

async fn many() {
    let servers = u16::try_from(setting("MINFS_BENCH_SERVERS", 1000)).unwrap();
    let blocks = setting("MINFS_BENCH_BLOCKS", 10_000);
    let window = Duration::from_secs(setting("MINFS_BENCH_SECONDS", 60));
    // A connection each.
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).unwrap();

    let mut site = Site::new().await;
    let file = CreateNodeRequest {
        path: ASKED.to_owned(),
        r#type: FileType::File as i32,
    };
    site.client.create_node(file).await.unwrap();
    site.at_rest().await;
    let resident = site.resident();
    let mut fleet = Fleet::registered(&site.cluster, site.leader, servers).await;
    // Who is silent for long gets no blocks.
    let alive = fleet.beat_steadily(INTERVAL);
    fleet.fill(&mut site.client, SMALL_FILES, blocks).await;
    fleet.put_in_order(Order::Ascending);
    drop(alive);
    let (fewest, most, bytes) = fleet.sizes();
    println!(
        "\n{servers} DataServers, {fewest} to {most} blocks each, {bytes} bytes a beat at most, every {INTERVAL:?}\n"
    );
    fleet.beat_once().await;

    // Without beats, then with them; once in each order, so that what the machine does meanwhile shows.
    let mut asked = vec![("without beats", site.ask(ASKING).await)];
    let steady = fleet.beat_steadily(INTERVAL);
    tokio::time::sleep(2 * INTERVAL).await;
    drop(steady.take());
    let (written, used) = (site.written().await, site.used());
    let begun = Instant::now();
    tokio::time::sleep(window).await;
    let (used, length) = (site.used().since(&used), begun.elapsed().as_secs_f64());
    let (beats, now) = (steady.take(), site.written().await);
    let peak = memory(site.processes.leader, Memory::Peak) >> 20;
    asked.push(("with beats", site.ask(ASKING).await));
    drop(steady);
    fleet.beat_once().await;
    let checked = site.check().await;
    fleet.beat_once().await;
    asked.push(("without beats", site.ask(ASKING).await));

    let share = |seconds: f64| 100.0 * seconds / length;
    println!("| in {length:.0} s | |\n|---|--:|");
    println!("| beats answered | {} |", beats.count());
    println!("| leader, % of one core | {:.1} |", share(used.leader));
    println!(
        "| leader, ms of processor a beat | {:.3} |",
        used.leader * 1e3 / beats.count() as f64
    );
    let followers = used.followers.map(share);
    println!(
        "| followers, % of one core | {:.1}, {:.1} |",
        followers[0], followers[1]
    );
    println!(
        "| who beats and asks, % of one core | {:.1} |",
        share(used.client)
    );
    println!(
        "| everything else on the machine, % of one core | {:.1} |",
        share(used.others)
    );
    println!(
        "| leader, resident, MiB: with empty files, now, at most | {resident}, {}, {peak} |",
        site.resident()
    );
    println!(
        "| from when a beat is due to its answer, ms: p50, p99, most | {:.2}, {:.2}, {:.2} |",
        ms(&beats.latencies, 0.5),
        ms(&beats.latencies, 0.99),
        ms(&beats.latencies, 1.0)
    );
    println!("| commands in the answers | {} |", beats.commands);
    println!("| log entries | {} |", now.index - written.index);
    println!("| bytes written by the leader | {} |", now.bytes - written.bytes);
    let untouched = (now.files, now.changed) == (written.files, written.changed);
    println!("| its files of log and state are as they were | {untouched} |");
    println!(
        "| a check of {SMALL_FILES} small files: ms of the leader's processor, ms until the answer | {:.0}, {:.0} |",
        checked.0, checked.1
    );
    println!(
        "\n| one client that asks again and again | stats a second | p50, ms | p99, ms |\n|---|--:|--:|--:|"
    );
    for (when, latencies) in asked {
        println!(
            "| {when} | {:.0} | {:.3} | {:.3} |",
            latencies.len() as f64 / ASKING.as_secs_f64(),
            ms(&latencies, 0.5),
            ms(&latencies, 0.99)
        );
    }
}
