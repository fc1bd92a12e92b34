//! What a run does: the arguments of `cargo bench --bench size`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::operation::Operation;

/// Measures MetaServers that hold many files, or that have one core or two.
#[derive(Clone, Debug, Parser)]
#[command(name = "size")]
pub struct Settings {
    /// What is done, in this order [default: all but the last two]
    #[arg(value_enum)]
    pub phases: Vec<Phase>,
    /// Files of the large tree
    #[arg(long, default_value_t = 10_000_000)]
    pub files: u64,
    /// Files of the small tree that rates are measured beside
    #[arg(long, default_value_t = 10_000)]
    pub small: u64,
    /// Where the data are, and stay; a load that is there is used again [default: a temporary directory]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// The MetaServer [default: that of this build]
    #[arg(long)]
    pub binary: Option<PathBuf>,
    /// Make the files by requests of clients, which takes some ten times as long and yields the same
    #[arg(long)]
    pub through_api: bool,
    /// How often everything is measured that is measured more than once
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Seconds that a rate is measured
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Seconds of the same load before that, which do not count
    #[arg(long, default_value_t = 0.7)]
    pub warm_up: f64,
    /// What is measured where rates are
    #[arg(long, value_delimiter = ',', default_values_t = [Operation::Stat, Operation::Create])]
    pub operations: Vec<Operation>,
    /// How many clients, each of which waits for its answer before it asks again
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256])]
    pub clients: Vec<usize>,
    /// Connections that the clients share
    #[arg(long, default_value_t = 16)]
    pub connections: usize,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Phase {
    /// Makes the files; done by itself where they are missing
    Load,
    /// How long a snapshot takes, its size, and what it does to the memory
    Snapshot,
    /// Bytes on the disk
    Disk,
    /// Resident memory
    Memory,
    /// Creates and stats, beside the small tree
    Rates,
    /// From the start of a stopped, of a killed node, and of all three, until it serves
    Restart,
    /// From the start of a wiped node until it votes again
    Refill,
    /// Bytes of a file with blocks, beside those of one without
    Blocks,
    /// One node on one core or two, with different server.grpc_threads
    OneNode,
    /// Three nodes with different server.grpc_threads
    ThreeNodes,
}

impl Phase {
    /// Whether it is about cores and not about many files.
    pub fn is_about_cores(self) -> bool {
        match self {
            Phase::OneNode | Phase::ThreeNodes => true,
            Phase::Load
            | Phase::Snapshot
            | Phase::Disk
            | Phase::Memory
            | Phase::Rates
            | Phase::Restart
            | Phase::Refill
            | Phase::Blocks => false,
        }
    }
}

impl Settings {
    /// From the command line; a wrong one ends the process with clap's explanation.
    pub fn from_arguments() -> Result<Settings, String> {
        let mut settings = Settings::parse();
        if settings.phases.is_empty() {
            settings.phases = Phase::value_variants()
                .iter()
                .copied()
                .filter(|phase| !phase.is_about_cores())
                .collect();
        }
        let positive = [settings.rounds, settings.connections];
        if positive.contains(&0) || settings.clients.contains(&0) || settings.seconds <= 0.0 {
            return Err("rounds, clients, connections and seconds must be more than 0".to_owned());
        }
        if settings.files < 1000 || settings.small < 1000 {
            return Err("a tree has a thousand files at least".to_owned());
        }
        Ok(settings)
    }

    /// How long a rate is measured.
    pub fn window(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// How long the load runs before that.
    pub fn warming(&self) -> Duration {
        Duration::from_secs_f64(self.warm_up.max(0.0))
    }
}
