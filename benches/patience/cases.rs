//! A case: a cluster, clients whose requests are timed, and rounds of undisturbed and disturbed windows in turns.
//!
//! `main` calls [`measure`] for each case and gives what came of it to `report`. The timed clients ask all the time;
//! a [`Window`] only says from when to when its samples are. Before an undisturbed window everything that was written
//! is on the disk, and whatever the last disturbance left to do is done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::closed_loop::Load;
use crate::cpu::{Processes, Usage};
use crate::disturbances::{self, Disturbance};
use crate::minfs::MinfsConnection;
use crate::operation::Operation;
use crate::probe::{Probe, Sample};
use crate::settings::{Case, Settings};
use crate::support::cluster::{Cluster, Setup};
use crate::system::Connection;
use crate::workload::Stock;

/// Files that a stat chooses from.
const SEEN: usize = 10_000;

/// Connections for everything that is not timed.
const CONNECTIONS: usize = 16;

/// Clients that make files which are not timed.
const FILLERS: usize = 256;

/// Not counted, after a sync and before an undisturbed window.
const BREATH: Duration = Duration::from_millis(500);

/// How long the timed clients may take to catch up after what was made for a round, and how often to look.
const CATCH_UP: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// A running cluster, and what is there for its clients.
pub struct World {
    /// Its processes.
    pub cluster: Cluster,
    /// Who leads.
    pub leader: usize,
    /// What clients ask for.
    pub stock: Arc<Stock>,
    /// Connections to the leader that no timed client uses.
    pub connections: Vec<Connection>,
}

/// From when to when samples belong together.
#[derive(Clone, Debug)]
pub struct Window {
    /// Which of the case's phases it belongs to; 0 is undisturbed.
    pub phase: usize,
    /// Counted from 0.
    pub round: usize,
    /// What is within any of these is within the window.
    pub spans: Vec<(Instant, Instant)>,
    /// Processor time from the beginning of the first to the end of the last, and how long that is.
    pub usage: (Usage, Duration),
    /// Whatever else is worth a line.
    pub remark: Option<String>,
}

/// What came of a case.
pub struct Measured {
    /// The names of its phases.
    pub phases: Vec<&'static str>,
    /// In the order of time.
    pub windows: Vec<Window>,
    /// In the order of their answers.
    pub samples: Vec<Sample>,
}

impl World {
    /// A new cluster with empty directories but for what stats choose from.
    pub async fn new(setup: Setup, settings: &Settings) -> Result<World, String> {
        let mut cluster = settings.cluster(setup).await;
        let leader = cluster.leader().await;
        let connections = connections(&cluster, leader);
        let stock = Arc::new(Stock::prepare(&connections, SEEN).await?);
        Ok(World {
            cluster,
            leader,
            stock,
            connections,
        })
    }

    /// The leader is another one now, or runs anew.
    pub async fn find_leader(&mut self) {
        self.leader = self.cluster.complete().await;
        self.connections = connections(&self.cluster, self.leader);
    }

    /// The processes as they are now.
    pub fn processes(&self) -> Processes {
        let others = self.cluster.others(self.leader);
        Processes {
            leader: self.cluster.process(self.leader),
            followers: [self.cluster.process(others[0]), self.cluster.process(others[1])],
        }
    }

    /// A load of as many clients as are wanted, on the thread of whoever runs it.
    pub fn load(&self, operation: Operation, clients: usize) -> Load<'_> {
        Load {
            operation,
            clients,
            connections: &self.connections,
            stock: &self.stock,
        }
    }

    /// Makes so many files as fast as it goes.
    pub async fn fill(&self, files: usize) -> Result<(), String> {
        self.load(Operation::Create, FILLERS).repeat(files).await
    }
}

fn connections(cluster: &Cluster, leader: usize) -> Vec<Connection> {
    (0..CONNECTIONS)
        .map(|_| Connection::Minfs(MinfsConnection::new(cluster.channel(leader))))
        .collect()
}

/// Measures a case.
pub async fn measure(case: Case, settings: &Settings) -> Result<Measured, String> {
    let mut disturbance = disturbances::of(case, settings);
    let mut world = World::new(disturbance.setup(), settings).await?;
    disturbance.prepare(&mut world).await?;
    let probe = Probe::start(&world.cluster, world.leader, &world.stock, settings);
    let windows = rounds(disturbance.as_mut(), &mut world, &probe, settings).await;
    // Whatever happened, the clients come to their end before their servers do.
    let samples = probe.stop();
    let windows = windows?;
    if world.cluster.leader().await != world.leader {
        return Err("leadership moved meanwhile".to_owned());
    }
    Ok(Measured {
        phases: disturbance.phases(),
        windows,
        samples: samples?,
    })
}

async fn rounds(
    disturbance: &mut dyn Disturbance,
    world: &mut World,
    probe: &Probe,
    settings: &Settings,
) -> Result<Vec<Window>, String> {
    let mut windows = Vec::new();
    for round in 0..settings.rounds {
        disturbance.make_ready(world, round).await?;
        settle(probe, settings.clients).await?;
        windows.push(undisturbed(world, round, settings.window()).await?);
        for phase in 1..disturbance.phases().len() {
            let (before, begun) = (Usage::now(&world.processes())?, Instant::now());
            let disturbed = disturbance.disturb(world, phase, settings.window()).await?;
            let usage = match disturbed.usage {
                Some(usage) => usage,
                None => (Usage::now(&world.processes())?.since(&before), begun.elapsed()),
            };
            windows.push(Window {
                phase,
                round,
                spans: disturbed.spans,
                usage,
                remark: disturbed.remark,
            });
        }
        eprintln!("round {} of {}", round + 1, settings.rounds);
    }
    Ok(windows)
}

/// What was written goes to the disk now, and not during a window, and clients that fell behind catch up.
async fn settle(probe: &Probe, clients: usize) -> Result<(), String> {
    let synced = tokio::task::spawn_blocking(rustix::fs::sync).await;
    synced.map_err(|error| format!("sync: {error}"))?;
    sleep(BREATH).await;
    let begun = Instant::now();
    while probe.late() > clients {
        if begun.elapsed() > CATCH_UP {
            return Err(format!(
                "{} requests are late: the pace is too fast",
                probe.late()
            ));
        }
        sleep(LOOK).await;
    }
    Ok(())
}

async fn undisturbed(world: &World, round: usize, length: Duration) -> Result<Window, String> {
    let processes = world.processes();
    let (before, begun) = (Usage::now(&processes)?, Instant::now());
    // The length of a window, not a wait for something.
    sleep(length).await;
    Ok(Window {
        phase: 0,
        round,
        spans: vec![(begun, Instant::now())],
        usage: (Usage::now(&processes)?.since(&before), begun.elapsed()),
        remark: None,
    })
}
