//! The DataServer: `dataserver --port 8001 --data-dir DIR --metaserver HOST:PORT[,…]`.

use std::process::ExitCode;

use clap::Parser;
use minfs::dataserver::{Arguments, DataServer, Settings};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let settings = match settings(Arguments::parse()) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("dataserver: {error}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(serve(settings)),
        Err(error) => {
            log::error!("cannot start threads: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the settings and starts logging; what is wrong with either is for the terminal.
fn settings(arguments: Arguments) -> Result<Settings, Box<dyn std::error::Error>> {
    let (settings, logging) = arguments.settings()?;
    minfs::logging::init(&logging)?;
    Ok(settings)
}

async fn serve(settings: Settings) -> ExitCode {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        log::error!("cannot listen for signals");
        return ExitCode::FAILURE;
    };
    let mut server = match DataServer::start(settings).await {
        Ok(server) => server,
        Err(error) => {
            log::error!("the DataServer cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        error = server.failed() => {
            log::error!("{error}");
            return ExitCode::FAILURE;
        }
    }
    server.stop().await;
    ExitCode::SUCCESS
}
