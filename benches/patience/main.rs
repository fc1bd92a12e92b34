//! What one client notices of what others do: how long its requests take while the cluster is busy with something
//! large, beside how long they take otherwise; and how long nobody can write when a leader dies.
//!
//!     cargo bench --bench patience                        (or: -- --help)
//!     cargo bench --bench patience -- --cases failover
//!
//! `main` walks through the cases and prints a table of each; `docs/performance/patience.md` and `failover.md` say
//! what is measured. The load comes from this process: from one thread the requests that are timed, from another
//! one what disturbs them. The servers are its children and end with it.
#![allow(clippy::unwrap_used)]

mod cases;
mod disturbances;
mod failover;
mod fleet;
mod probe;
mod report;
mod settings;

// The parts of the other load generator that fit here. They are used in part.
#[allow(dead_code)]
#[path = "../metadata/closed_loop.rs"]
mod closed_loop;
#[allow(dead_code)]
#[path = "../metadata/cpu.rs"]
mod cpu;
#[allow(dead_code)]
#[path = "../metadata/etcd_records.rs"]
mod etcd_records;
#[allow(dead_code)]
#[path = "../metadata/etcd_wire.rs"]
mod etcd_wire;
#[allow(dead_code)]
#[path = "../metadata/machine.rs"]
mod machine;
#[allow(dead_code)]
#[path = "../metadata/minfs.rs"]
mod minfs;
#[allow(dead_code)]
#[path = "../metadata/operation.rs"]
mod operation;
#[path = "../../tests/support/mod.rs"]
mod support;
#[allow(dead_code)]
#[path = "../metadata/system.rs"]
mod system;
#[allow(dead_code)]
#[path = "../metadata/workload.rs"]
mod workload;

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use settings::{Case, Settings};

/// As in the server.
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
    for (what, is) in machine::facts() {
        println!("- {what}: {is}");
    }
    for case in &settings.cases {
        println!("\n## {}\n", case.label());
        match case {
            Case::Failover => failover::measure(settings).await?,
            disturbed => {
                let measured = cases::measure(*disturbed, settings).await?;
                println!("{}", report::tables(&measured));
            }
        }
    }
    Ok(())
}
