//! The MetaServer: `metaserver --config config.yaml --port 9090 --raft-port 10090 [--bootstrap]`.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use minfs::config::{Config, NodeSettings, Overrides};
use minfs::node::{Node, NodeError};
use tokio::signal::unix::{SignalKind, signal};

/// Measured to be worth a fifth of the throughput of reads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Its disk was full. Whoever starts it again finds it waiting until there is space: `EX_TEMPFAIL` of
/// sysexits.h.
const DISK_FULL: u8 = 75;

/// The metadata server of MinFS.
#[derive(Debug, Parser)]
#[command(
    name = "metaserver",
    version,
    about = "MinFS's metadata server, replicated through Raft"
)]
struct Arguments {
    /// Configuration file
    #[arg(long, default_value = "config.yaml")]
    config: PathBuf,
    /// Port for clients and DataServers [default: server.grpc_port]
    #[arg(long)]
    port: Option<u16>,
    /// Port for the other MetaServers [default: that of this node's raft_addr]
    #[arg(long)]
    raft_port: Option<u16>,
    /// This node's id in raft.peers [default: meta-PORT]
    #[arg(long)]
    node_id: Option<String>,
    /// Where this node's data lie [default: database.dir]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Form the cluster of raft.peers, unless it exists
    #[arg(long)]
    bootstrap: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let bootstrap = arguments.bootstrap;
    let settings = match settings(arguments) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("metaserver: {error}");
            return ExitCode::from(2);
        }
    };
    actix_rt::System::new().block_on(serve(settings, bootstrap))
}

/// Reads the settings and starts logging; what is wrong with either is for the terminal.
fn settings(arguments: Arguments) -> Result<NodeSettings, Box<dyn std::error::Error>> {
    let Arguments {
        config,
        port,
        raft_port,
        node_id,
        data_dir,
        bootstrap: _,
    } = arguments;
    let loaded = Config::load(&config)?;
    let settings = loaded.config.for_node(Overrides {
        port,
        raft_port,
        node_id,
        data_dir,
    })?;
    minfs::logging::init(&settings.config.logging)?;
    for warning in loaded.warnings.into_iter().chain(settings.warnings()) {
        log::warn!("{warning}");
    }
    Ok(settings)
}

fn failure(error: &NodeError) -> ExitCode {
    log::error!("{error}");
    match error {
        NodeError::DiskFull { .. } => ExitCode::from(DISK_FULL),
        NodeError::Data { source, .. } if source.kind() == ErrorKind::StorageFull => {
            ExitCode::from(DISK_FULL)
        }
        NodeError::Data { .. }
        | NodeError::Listen { .. }
        | NodeError::Threads(_)
        | NodeError::Raft(_)
        | NodeError::Fatal(_) => ExitCode::FAILURE,
    }
}

async fn serve(settings: NodeSettings, bootstrap: bool) -> ExitCode {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        log::error!("cannot listen for signals");
        return ExitCode::FAILURE;
    };
    let told_to_stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let mut told_to_stop = std::pin::pin!(told_to_stop);
    // A start may wait long, for space on the disk.
    let started = tokio::select! {
        started = Node::start(settings, bootstrap) => started,
        () = &mut told_to_stop => return ExitCode::SUCCESS,
    };
    let mut node = match started {
        Ok(node) => node,
        Err(error) => return failure(&error),
    };
    tokio::select! {
        () = told_to_stop => {}
        error = node.failed() => return failure(&error),
    }
    node.stop().await;
    ExitCode::SUCCESS
}
