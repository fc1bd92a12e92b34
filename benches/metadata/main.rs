//! How fast the MetaServer is beside a three-node etcd that does the same work, in the same run and in turns.
//!
//!     scripts/bench.sh            (or: cargo bench --bench metadata -- --help)
//!
//! `main` starts the systems, new for each round, walks through the cells, and writes the results after each
//! round; `docs/performance/README.md` says what is measured. The load comes from this process alone, on one
//! thread. The servers are its children and end with it: when it ends well, with an error, or is interrupted.
#![allow(clippy::unwrap_used)]

mod closed_loop;
mod cpu;
mod etcd;
mod etcd_records;
mod etcd_wire;
mod flushes;
mod machine;
mod minfs;
mod operation;
mod plot;
mod report;
mod results;
mod settings;
mod site;
#[path = "../../tests/support/mod.rs"]
mod support;
mod system;
mod workload;

use std::fs;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use flushes::Flushes;
use machine::Facts;
use report::{Report, thousands};
use results::{Cell, Results, Row};
use settings::{Kind, Settings};
use site::{Rates, Site};

/// As in the server: the client is half of what is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // `cargo test --all-targets` runs this, too, and wants no measurement.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    match runtime.block_on(until_interrupted()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Dropping the run ends its processes.
async fn until_interrupted() -> Result<(), String> {
    let settings = Settings::from_arguments()?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    tokio::select! {
        ended = run(&settings) => ended,
        _ = interrupt.recv() => Err("interrupted".to_owned()),
        _ = terminate.recv() => Err("terminated".to_owned()),
    }
}

async fn run(settings: &Settings) -> Result<(), String> {
    machine::check_disk()?;
    let facts = machine::facts();
    // First, so that a system that does not flush is not measured at all.
    let flushes = count_flushes(settings).await?;
    let (mut results, mut rates) = (Results::default(), Rates::default());
    if settings.verify_flush {
        return show_flushes(settings, &facts, flushes.as_deref(), &results);
    }
    for round in 1..=settings.rounds {
        measure_round(round, settings, &mut results, &mut rates).await?;
        save(settings, &facts, flushes.as_deref(), &results)?;
    }
    Ok(())
}

async fn count_flushes(settings: &Settings) -> Result<Option<Vec<Flushes>>, String> {
    if !flushes::possible() {
        return match settings.verify_flush {
            true => Err("strace is missing: install Debian's strace".to_owned()),
            false => Ok(None),
        };
    }
    let mut all = Vec::new();
    // Lease reads change nothing of a create.
    for kind in settings.systems.iter().filter(|kind| **kind != Kind::MinfsLease) {
        eprintln!("counting the flushes of {}", kind.label());
        let system = site::start(*kind).await?;
        all.extend(flushes::count(*kind, system.as_ref()).await?);
    }
    Ok(Some(all))
}

async fn measure_round(
    round: usize,
    settings: &Settings,
    results: &mut Results,
    rates: &mut Rates,
) -> Result<(), String> {
    let mut sites = Vec::new();
    for kind in &settings.systems {
        sites.push(Site::open(*kind, settings).await?);
    }
    for operation in &settings.operations {
        for (turn, clients) in settings.clients.iter().enumerate() {
            // Another one begins each time: what a system leaves behind for the next is evened out.
            let mut order: Vec<usize> = (0..sites.len())
                .filter(|n| sites[*n].kind().does(*operation))
                .collect();
            let first = (round + turn) % order.len().max(1);
            order.rotate_left(first);
            for n in order {
                site::quiet(&sites).await?;
                let row = sites[n]
                    .measure(round, *operation, *clients, settings, rates)
                    .await?;
                tell(&row, settings);
                results.rows.push(row);
            }
        }
    }
    Ok(())
}

fn tell(row: &Row, settings: &Settings) {
    let Cell {
        kind,
        operation,
        clients,
    } = row.cell;
    let [p50, p99, ..] = row.latencies;
    eprintln!(
        "round {} of {}: {:<22} {clients:>5} clients  {:<20} {:>9} a second, p50 {} µs, p99 {} µs",
        row.round,
        settings.rounds,
        operation.label(),
        kind.label(),
        thousands(row.rate()),
        thousands(p50),
        thousands(p99)
    );
}

fn save(
    settings: &Settings,
    facts: &Facts,
    flushes: Option<&[Flushes]>,
    results: &Results,
) -> Result<(), String> {
    let report = Report {
        settings,
        facts,
        flushes,
        results,
    };
    let out = &settings.out;
    let failed = |error| format!("{}: {error}", out.display());
    fs::create_dir_all(out).map_err(failed)?;
    fs::write(out.join("results.md"), report.markdown()).map_err(failed)?;
    fs::write(out.join("results.csv"), results.csv()).map_err(failed)?;
    plot::throughput(&out.join("throughput.svg"), settings, results)?;
    plot::ratio(&out.join("ratio.svg"), settings, results)?;
    println!("\n{}\nwritten to {}\n", report.summary(), out.display());
    Ok(())
}

fn show_flushes(
    settings: &Settings,
    facts: &Facts,
    flushes: Option<&[Flushes]>,
    results: &Results,
) -> Result<(), String> {
    let report = Report {
        settings,
        facts,
        flushes,
        results,
    };
    let mut text = String::new();
    report.flushes(&mut text);
    println!("{text}");
    Ok(())
}
