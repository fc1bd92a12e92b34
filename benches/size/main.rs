//! What ten million files cost a MetaServer, and what a second core gives it.
//!
//!     cargo bench --bench size -- --help
//!
//! `main` walks through the phases that were asked for; each prints its result at once. With `--dir` the data
//! stay, so that the phases may be run one by one; `docs/performance/size.md` and `cores.md` say what is measured.
//! The servers are this process's children and end with it: when it ends well, with an error, or is interrupted.
#![allow(clippy::unwrap_used)]

mod blocks;
mod bulk;
#[path = "../metadata/closed_loop.rs"]
#[allow(dead_code)]
mod closed_loop;
mod cores;
#[path = "../metadata/cpu.rs"]
#[allow(dead_code)]
mod cpu;
mod footprint;
mod loader;
#[path = "../metadata/machine.rs"]
#[allow(dead_code)]
mod machine;
mod nodes;
#[path = "../metadata/operation.rs"]
#[allow(dead_code)]
mod operation;
mod rates;
mod restarts;
mod settings;
#[path = "../../tests/support/mod.rs"]
mod support;
mod system;
mod workload;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use nodes::Site;
use rates::Target;
use settings::{Phase, Settings};
use system::Connection;

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
            eprintln!("size: {error}");
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
    let temporary = tempfile::TempDir::new().map_err(|error| error.to_string())?;
    let dir = settings
        .dir
        .clone()
        .unwrap_or_else(|| temporary.path().to_owned());
    let binary = binary(settings);
    for phase in &settings.phases {
        phase_of(*phase, &dir, &binary, settings).await?;
    }
    Ok(())
}

async fn phase_of(phase: Phase, dir: &Path, binary: &Path, settings: &Settings) -> Result<(), String> {
    match phase {
        Phase::OneNode => cores::one_node(dir, binary, settings).await,
        Phase::ThreeNodes => cores::three_nodes(dir, binary, settings).await,
        Phase::Blocks => blocks::blocks().await,
        Phase::Load => large(dir, binary, settings).await.map(drop),
        Phase::Disk => footprint::disk(&large(dir, binary, settings).await?, settings.files),
        Phase::Snapshot | Phase::Memory | Phase::Rates | Phase::Restart | Phase::Refill => {
            let mut site = large(dir, binary, settings).await?;
            site.start_all().await?;
            running(phase, &mut site, dir, binary, settings).await?;
            site.stop().await
        }
    }
}

/// What is done with the large tree while its nodes run.
async fn running(
    phase: Phase,
    site: &mut Site,
    dir: &Path,
    binary: &Path,
    settings: &Settings,
) -> Result<(), String> {
    match phase {
        Phase::Snapshot => {
            for round in 0..settings.rounds {
                footprint::snapshot(site, round).await?;
            }
        }
        Phase::Memory => {
            footprint::resident(site, "just started")?;
            let target = Target::new(String::new(), site, settings.files, settings).await?;
            for operation in &settings.operations {
                for clients in &settings.clients {
                    target.measure(*operation, *clients, settings).await?;
                }
            }
            footprint::resident(site, "after some seconds of load")?;
        }
        Phase::Rates => {
            let mut small = tree(&dir.join("small"), settings.small, binary, true).await?;
            small.start_all().await?;
            let targets = [
                Target::new("few files".to_owned(), &mut small, settings.small, settings).await?,
                Target::new("many files".to_owned(), site, settings.files, settings).await?,
            ];
            rates::compare(&targets, settings).await?;
            small.stop().await?;
        }
        Phase::Restart => {
            for _ in 0..settings.rounds {
                restarts::restarts(site).await?;
            }
        }
        Phase::Refill => restarts::refill(site).await?,
        Phase::Load | Phase::Disk | Phase::Blocks | Phase::OneNode | Phase::ThreeNodes => {}
    }
    Ok(())
}

async fn large(dir: &Path, binary: &Path, settings: &Settings) -> Result<Site, String> {
    tree(&dir.join("large"), settings.files, binary, settings.through_api).await
}

fn binary(settings: &Settings) -> PathBuf {
    let built = || env!("CARGO_BIN_EXE_metaserver").into();
    settings.binary.clone().unwrap_or_else(built)
}

/// A stopped site with so many files, which are made unless they are there.
async fn tree(dir: &Path, files: u64, binary: &Path, through_api: bool) -> Result<Site, String> {
    let mut site = Site::open(dir, 3, binary)?;
    match (loader::loaded(dir), through_api) {
        (Some(there), _) if there == files => {}
        (Some(there), _) => return Err(format!("{}: {there} files instead of {files}", dir.display())),
        (None, false) => bulk::load(&mut site, dir, files).await?,
        (None, true) => {
            let leader = site.start_all().await?;
            let connections: Vec<_> = (0..16).map(|_| Connection::new(site.connect(leader))).collect();
            loader::load(dir, &connections, files).await?;
            site.stop().await?;
        }
    }
    Ok(site)
}
