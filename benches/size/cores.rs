//! What a second core gives one node, and what `server.grpc_threads` does on few of them.
//!
//! Called by `main`. One node alone, so that no follower takes a core, pinned to one core or to two, and the
//! clients' process to all or to the other one; and the product's usual three nodes, unpinned. All variants run
//! at once, are asked in turns, and have trees of one size.

use std::path::Path;

use crate::loader;
use crate::nodes::{DEFAULT, Site, Variant};
use crate::operation::Operation;
use crate::rates::{Cell, Target, tell};
use crate::settings::Settings;
use crate::system::Connection;

/// Values of `server.grpc_threads`; 0 is what `auto` comes to here.
const THREADS: [&str; 3] = ["0", "1", "2"];

/// Where a single node may run, and where its clients.
const PLACES: [(&str, &str); 4] = [("0", "0,1"), ("0", "1"), ("0,1", "0,1"), ("0,1", "1")];

/// One node alone, in all places; prints each result at once.
pub async fn one_node(dir: &Path, binary: &Path, settings: &Settings) -> Result<(), String> {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    if processors < 2 {
        return Err("there is one processor only".to_owned());
    }
    let mut sites = all(&dir.join("one-node"), 1, binary, settings).await?;
    let targets = targets(&mut sites, settings).await?;
    for operation in &settings.operations {
        for clients in &settings.clients {
            let mut cells = vec![vec![Vec::new(); targets.len()]; PLACES.len()];
            for round in 0..settings.rounds {
                for place in 0..PLACES.len() {
                    let place = (place + round) % PLACES.len();
                    let (node, client) = PLACES[place];
                    for site in &sites {
                        pin(site.process(0), node)?;
                    }
                    pin(std::process::id(), client)?;
                    round_of(round, &targets, *operation, *clients, settings, &mut cells[place]).await?;
                }
            }
            for ((node, client), cells) in PLACES.iter().zip(&cells) {
                println!("one node on {node}, clients on {client}:");
                tell(&targets, *operation, *clients, cells);
            }
        }
    }
    // Whom this process starts next begins where it is itself.
    pin(std::process::id(), "0,1")?;
    stop(sites).await
}

/// Three nodes, where the system puts them.
pub async fn three_nodes(dir: &Path, binary: &Path, settings: &Settings) -> Result<(), String> {
    let mut sites = all(&dir.join("three-nodes"), 3, binary, settings).await?;
    let targets = targets(&mut sites, settings).await?;
    for operation in &settings.operations {
        for clients in &settings.clients {
            let mut cells = vec![Vec::new(); targets.len()];
            for round in 0..settings.rounds {
                round_of(round, &targets, *operation, *clients, settings, &mut cells).await?;
            }
            println!("three nodes:");
            tell(&targets, *operation, *clients, &cells);
        }
    }
    stop(sites).await
}

/// A running site for each number of threads.
async fn all(dir: &Path, nodes: usize, binary: &Path, settings: &Settings) -> Result<Vec<Site>, String> {
    let mut sites = Vec::new();
    for threads in THREADS {
        let dir = dir.join(format!("grpc-threads-{threads}"));
        sites.push(started(&dir, nodes, threads, binary, settings).await?);
    }
    Ok(sites)
}

async fn stop(sites: Vec<Site>) -> Result<(), String> {
    for mut site in sites {
        site.stop().await?;
    }
    Ok(())
}

async fn started(
    dir: &Path,
    nodes: usize,
    threads: &'static str,
    binary: &Path,
    settings: &Settings,
) -> Result<Site, String> {
    let mut site = Site::open(dir, nodes, binary)?;
    let variant = Variant {
        grpc_threads: threads,
        ..DEFAULT
    };
    for n in 0..nodes {
        site.start(n, variant, None)?;
    }
    let leader = site.complete().await?;
    if loader::loaded(dir).is_none() {
        let connections = [Connection::new(site.connect(leader))];
        loader::load(dir, &connections, settings.small).await?;
    }
    Ok(site)
}

async fn targets(sites: &mut [Site], settings: &Settings) -> Result<Vec<Target>, String> {
    let mut targets = Vec::new();
    for (site, threads) in sites.iter_mut().zip(THREADS) {
        let label = format!("grpc_threads {threads}");
        targets.push(Target::new(label, site, settings.small, settings).await?);
    }
    Ok(targets)
}

/// Asks each target once, another one first each time.
async fn round_of(
    round: usize,
    targets: &[Target],
    operation: Operation,
    clients: usize,
    settings: &Settings,
    cells: &mut [Vec<Cell>],
) -> Result<(), String> {
    for n in 0..targets.len() {
        let n = (n + round) % targets.len();
        cells[n].push(targets[n].measure(operation, clients, settings).await?);
    }
    Ok(())
}

/// All threads of a process, on these processors from now on.
fn pin(process: u32, processors: &str) -> Result<(), String> {
    let process = process.to_string();
    let pinned = std::process::Command::new("taskset")
        .args(["-a", "-p", "-c", processors, &process])
        .output()
        .map_err(|error| format!("taskset (Debian's util-linux): {error}"))?;
    match pinned.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&pinned.stderr).into_owned()),
    }
}
