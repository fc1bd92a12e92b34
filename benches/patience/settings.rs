//! What a run measures: the arguments of the command line, read once by `main`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::support::cluster::{Cluster, Setup};

/// Measures what one client notices of what others do.
#[derive(Clone, Debug, Parser)]
#[command(name = "patience")]
pub struct Settings {
    /// How often each disturbance is made, with an undisturbed window before it each time
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Seconds of an undisturbed window, and of a disturbance that has no end of its own
    #[arg(long, default_value_t = 4.0)]
    pub seconds: f64,
    /// What disturbs
    #[arg(long, value_delimiter = ',', default_values_t = Case::ALL)]
    pub cases: Vec<Case>,
    /// Requests a second of the mixed load, four stats for each create
    #[arg(long, default_value_t = 1000)]
    pub rate: u32,
    /// Clients that share the mixed load
    #[arg(long, default_value_t = 32)]
    pub clients: usize,
    /// Stats a second of the single client
    #[arg(long, default_value_t = 100)]
    pub single_rate: u32,
    /// Clients of the full load
    #[arg(long, default_value_t = 256)]
    pub writers: usize,
    /// Files in the state that a snapshot is made of
    #[arg(long, default_value_t = 1_000_000)]
    pub state: usize,
    /// Files in the tree that is deleted
    #[arg(long, default_value_t = 100_000)]
    pub tree: usize,
    /// DataServers that report
    #[arg(long, default_value_t = 100)]
    pub data_servers: u16,
    /// Blocks that each of them reports
    #[arg(long, default_value_t = 100_000)]
    pub blocks: usize,
    /// Leaders that are killed
    #[arg(long, default_value_t = 30)]
    pub failovers: usize,
    /// Another server than that of this build, to compare with
    #[arg(long)]
    pub metaserver: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a run consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// A full load of creates.
    Writes,
    /// Every node makes a snapshot.
    Snapshot,
    /// A tree is deleted and reclaimed.
    Reclaim,
    /// A follower with an empty disk is refilled.
    Refill,
    /// DataServers report their blocks.
    Reports,
    /// Leaders are killed.
    Failover,
}

impl Case {
    const ALL: [Case; 6] = [
        Case::Writes,
        Case::Snapshot,
        Case::Reclaim,
        Case::Refill,
        Case::Reports,
        Case::Failover,
    ];

    /// As the report calls it.
    pub fn label(self) -> &'static str {
        match self {
            Case::Writes => "A full write load",
            Case::Snapshot => "Every node makes a snapshot",
            Case::Reclaim => "A large tree is deleted and reclaimed",
            Case::Refill => "A wiped follower is refilled",
            Case::Reports => "DataServers report their blocks",
            Case::Failover => "The leader is killed",
        }
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Case::Writes => "writes",
            Case::Snapshot => "snapshot",
            Case::Reclaim => "reclaim",
            Case::Refill => "refill",
            Case::Reports => "reports",
            Case::Failover => "failover",
        })
    }
}

impl Settings {
    /// From the command line; a wrong one ends the process with clap's explanation.
    pub fn from_arguments() -> Result<Settings, String> {
        let settings = Settings::parse();
        let positive = [
            settings.rounds,
            settings.clients,
            settings.writers,
            settings.failovers,
        ];
        if positive.contains(&0)
            || settings.seconds <= 0.0
            || settings.rate == 0
            || settings.single_rate == 0
            || settings.data_servers < 3
        {
            return Err(
                "rounds, clients, writers, failovers, seconds and rates must be more than 0, and there \
                        must be 3 DataServers"
                    .to_owned(),
            );
        }
        Ok(settings)
    }

    /// A new cluster of the servers that are to be measured.
    pub async fn cluster(&self, setup: Setup) -> Cluster {
        let mut cluster = Cluster::new(setup);
        for n in cluster.all() {
            if let Some(binary) = &self.metaserver {
                cluster.binary(n, binary);
            }
            match n {
                0 => cluster.bootstrap(n),
                _ => cluster.start(n),
            }
        }
        cluster.complete().await;
        cluster
    }

    /// How long a window without an end of its own is.
    pub fn window(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}
