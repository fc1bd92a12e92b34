//! What a run measures, and for how long: the arguments of `scripts/bench.sh`.
//!
//! Read once by `main`; nothing else looks at the command line or at the environment. What is here is
//! written into the report, so that a result says how it came about.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::operation::Operation;

/// Measures MinFS beside a three-node etcd, in turns.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench.sh")]
pub struct Settings {
    /// How often everything is measured; medians are reported
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Seconds that a cell (one operation, one system, so many clients) is measured
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Seconds of the same load before that, which do not count
    #[arg(long, default_value_t = 0.7)]
    pub warm_up: f64,
    /// How many clients, each of which waits for its answer before it asks again
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 256, 1024])]
    pub clients: Vec<usize>,
    /// Connections that the clients share at most; one client has one
    #[arg(long, default_value_t = 16)]
    pub connections: usize,
    /// What is measured
    #[arg(long, value_delimiter = ',', default_values_t = Operation::ALL)]
    pub operations: Vec<Operation>,
    /// Who is measured
    #[arg(long, value_delimiter = ',', default_values_t = Kind::ALL)]
    pub systems: Vec<Kind>,
    /// Files that a stat chooses from
    #[arg(long, default_value_t = 10_000)]
    pub files: usize,
    /// A run of seconds that shows that everything works, and measures nothing well
    #[arg(long)]
    pub quick: bool,
    /// Only count the flushes of every node while creates are acknowledged
    #[arg(long)]
    pub verify_flush: bool,
    /// Directory for the results
    #[arg(long, default_value = "target/bench")]
    pub out: PathBuf,
    /// Write the results to docs/performance
    #[arg(long, conflicts_with = "out")]
    pub save: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// A system under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// MinFS with its default configuration: reads are linearizable, a majority is asked.
    Minfs,
    /// MinFS with `reads: lease`.
    MinfsLease,
    /// etcd.
    Etcd,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Minfs, Kind::MinfsLease, Kind::Etcd];

    /// As the report calls it.
    pub fn label(self) -> &'static str {
        match self {
            Kind::Minfs => "MinFS",
            Kind::MinfsLease => "MinFS (lease reads)",
            Kind::Etcd => "etcd",
        }
    }

    /// Lease reads differ from the default only where something is read.
    pub fn does(self, operation: Operation) -> bool {
        match self {
            Kind::Minfs | Kind::Etcd => true,
            Kind::MinfsLease => operation.reads(),
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Minfs => "minfs",
            Kind::MinfsLease => "minfs-lease",
            Kind::Etcd => "etcd",
        })
    }
}

impl Settings {
    /// From the command line; a wrong one ends the process with clap's explanation.
    pub fn from_arguments() -> Result<Settings, String> {
        let mut settings = Settings::parse();
        if settings.quick {
            settings.rounds = 1;
            settings.seconds = 0.25;
            settings.warm_up = 0.1;
            settings.clients = vec![1, 64];
            settings.files = 1000;
        }
        if settings.save {
            settings.out = PathBuf::from("docs/performance");
        }
        let positive = [settings.rounds, settings.connections, settings.files];
        if positive.contains(&0) || settings.clients.contains(&0) || settings.seconds <= 0.0 {
            return Err("rounds, clients, connections, files and seconds must be more than 0".to_owned());
        }
        if settings.clients.is_empty() || settings.operations.is_empty() || settings.systems.is_empty() {
            return Err("clients, operations and systems must not be empty".to_owned());
        }
        Ok(settings)
    }

    /// How long a cell is measured.
    pub fn window(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// How long the load runs before that.
    pub fn warming(&self) -> Duration {
        Duration::from_secs_f64(self.warm_up.max(0.0))
    }

    /// How many connections so many clients share.
    pub fn connections_of(&self, clients: usize) -> usize {
        clients.min(self.connections)
    }
}
