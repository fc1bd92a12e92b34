//! What files cost: `put` and `get` beside the same bytes to the same disk and through a socket, the
//! memory of a DataServer meanwhile, and how long three replicas take to be there again after a
//! DataServer is lost.
//!
//!     cargo bench --bench files
//!
//! `MINFS_BENCH_MIB` (1,024) is the size of the file, `MINFS_BENCH_ROUNDS` (5) how often each is done,
//! in turns; medians are printed. Three MetaServers and four DataServers with the default settings run
//! on this machine; everything is flushed before it counts.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::blocks::{DataServers, content};
use support::cluster::{Cluster, Setup};
use support::minfs::{done, ended, minfs};
use support::wait::until;

const MIB: usize = 1 << 20;
const CHUNK: usize = 4 * MIB;

fn main() {
    // `cargo test --all-targets` runs this, too, and wants no measurement.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.unwrap().block_on(measure());
}

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

async fn measure() {
    let (mib, rounds) = (setting("MINFS_BENCH_MIB", 1024), setting("MINFS_BENCH_ROUNDS", 5));
    let local = tempfile::tempdir().unwrap();
    let file = local.path().join("file");
    let bytes = content(1, mib * MIB);
    fs::write(&file, &bytes).unwrap();

    let mut cluster = Cluster::formed(Setup::default()).await;
    let mut data = DataServers::started(&cluster, 4).await;
    let servers = cluster.servers();
    let idle: Vec<u64> = (0..4).map(|n| data.peak_memory(n)).collect();

    let mut took: [Vec<Duration>; 5] = Default::default();
    for round in 0..rounds {
        took[0].push(timed(|| write_flushed(&local.path().join("copy"), &bytes, 1)));
        took[1].push(timed(|| write_flushed(&local.path().join("copy"), &bytes, 3)));
        took[2].push(timed(|| through_a_socket(&bytes)));
        let remote = format!("/file-{round}");
        let from = file.to_str().unwrap();
        took[3].push(timed(|| drop(done(&servers, &["put", from, &remote]))));
        let to = local.path().join("got");
        took[4].push(timed(|| {
            drop(done(&servers, &["get", &remote, to.to_str().unwrap()]))
        }));
        assert!(fs::read(&to).unwrap() == bytes, "{remote} came out different");
    }
    println!("{mib} MiB, {rounds} rounds, medians:");
    let names = [
        "written to this disk and flushed (as dd conv=fdatasync)",
        "the same three times over, as three replicas are",
        "through a TCP socket on loopback",
        "minfs put, three replicas, each flushed",
        "minfs get, verified, to this disk (not flushed)",
    ];
    for (name, took) in names.iter().zip(&mut took) {
        took.sort_unstable();
        let median = took[took.len() / 2];
        println!(
            "  {:>7.0} MiB/s  {:>6.2} s ({:.2} to {:.2})  {name}",
            mib as f64 / median.as_secs_f64(),
            median.as_secs_f64(),
            took[0].as_secs_f64(),
            took[took.len() - 1].as_secs_f64()
        );
    }
    for (n, idle) in idle.iter().enumerate() {
        let peak = data.peak_memory(n);
        println!(
            "  ds-{n}: {} MiB resident at most, {} MiB before",
            peak >> 20,
            idle >> 20
        );
    }
    repair(&mut cluster, &mut data, mib * rounds).await;
}

fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

fn write_flushed(path: &Path, bytes: &[u8], times: usize) {
    for n in 0..times {
        let mut file = File::create(path.with_extension(n.to_string())).unwrap();
        for chunk in bytes.chunks(CHUNK) {
            file.write_all(chunk).unwrap();
        }
        file.sync_data().unwrap();
    }
    for n in 0..times {
        fs::remove_file(path.with_extension(n.to_string())).unwrap();
    }
}

fn through_a_socket(bytes: &[u8]) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || TcpStream::connect(addr).unwrap().write_all(bytes).unwrap());
        let (mut socket, mut buffer, mut came) = (listener.accept().unwrap().0, vec![0; 1 << 16], 0);
        loop {
            match socket.read(&mut buffer).unwrap() {
                0 => break,
                n => came += n,
            }
        }
        assert_eq!(came, bytes.len());
    });
}

/// Kills a DataServer, and waits until its replicas are elsewhere. One DataServer of four holds three
/// quarters of all blocks.
async fn repair(cluster: &mut Cluster, data: &mut DataServers, mib: usize) {
    let client = cluster.any_client().await;
    data.healthy(&client, Duration::from_secs(60)).await;
    let lost = data.blocks(0).len();
    data.kill(0);
    let killed = Instant::now();
    let servers = cluster.servers();
    let cat = minfs(&servers, &["cat", "/file-0"]).stdout(Stdio::null()).spawn();
    assert!(ended(cat.unwrap(), "cat").status.success());
    println!("  a file was read whole {:?} after the kill", killed.elapsed());
    let leader = cluster.leader().await;
    until("the leader gives it up", Duration::from_secs(90), async || {
        cluster.log(leader).contains("permanently down").then_some(())
    })
    .await;
    println!("  given up after {:?}", killed.elapsed());
    let given_up = Instant::now();
    data.healthy(&client, Duration::from_secs(900)).await;
    println!(
        "  {lost} replicas ({} MiB of {mib} MiB of files) were copied in {:?}: healthy {:?} after the kill",
        lost * CHUNK / MIB,
        given_up.elapsed(),
        killed.elapsed()
    );
}
