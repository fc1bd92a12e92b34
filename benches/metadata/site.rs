//! A system in a round: its processes, its files, and the way in which a cell of it is measured.
//!
//! `main` opens one for each system and round. Before a cell there are files enough for it, everything that was
//! written is on the disk, and all processes are at rest; after it, the node that led leads still, or the cell is
//! measured anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::closed_loop::Load;
use crate::cpu;
use crate::etcd::EtcdCluster;
use crate::minfs::Minfs;
use crate::operation::{Operation, Role, Supply};
use crate::results::{Cell, Row};
use crate::settings::{Kind, Settings};
use crate::system::{Connection, System};
use crate::workload::Stock;

/// How often a cell is tried when leadership moves meanwhile.
const TRIES: usize = 3;

/// For how much longer than a cell files are made for it, at the rate that is known.
const SPARE: f64 = 1.5;

/// How many clients make them.
const FILLERS: usize = 256;

/// How long all processes may take to come to rest.
const REST: Duration = Duration::from_secs(10);

/// Operations a second, as far as they are known: how many files an operation will use up.
pub type Rates = HashMap<Cell, f64>;

/// A new cluster of this kind.
pub async fn start(kind: Kind) -> Result<Box<dyn System>, String> {
    Ok(match kind {
        Kind::Minfs => Box::new(Minfs::start("linearizable").await),
        Kind::MinfsLease => Box::new(Minfs::start("lease").await),
        Kind::Etcd => Box::new(EtcdCluster::start().await?),
    })
}

/// Waits until nobody has anything to do, with everything on the disk that was written.
pub async fn quiet(sites: &[Site]) -> Result<(), String> {
    let processes: Vec<u32> = sites
        .iter()
        .flat_map(|site| site.system.processes().all())
        .collect();
    // What one system has not flushed is written back by the kernel sooner or later, into another's window.
    let synced = tokio::task::spawn_blocking(rustix::fs::sync).await;
    synced.map_err(|error| format!("sync: {error}"))?;
    if !cpu::quiet(&processes, REST).await? {
        eprintln!("the servers did not come to rest within {REST:?}");
    }
    Ok(())
}

/// A running system with its files.
pub struct Site {
    kind: Kind,
    system: Box<dyn System>,
    stock: Arc<Stock>,
}

impl Site {
    /// Starts it, and makes what is read.
    pub async fn open(kind: Kind, settings: &Settings) -> Result<Site, String> {
        let system = start(kind).await?;
        let connections = connections(system.as_ref(), Role::Leader, settings.connections);
        let stock = Arc::new(Stock::prepare(&connections, settings.files).await?);
        Ok(Site { kind, system, stock })
    }

    /// Which system it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Measures one cell.
    pub async fn measure(
        &mut self,
        round: usize,
        operation: Operation,
        clients: usize,
        settings: &Settings,
        rates: &mut Rates,
    ) -> Result<Row, String> {
        let cell = Cell {
            kind: self.kind,
            operation,
            clients,
        };
        for _ in 0..TRIES {
            let leader = self.system.find_leader().await?;
            if let Some(supply) = operation.consumes() {
                let rate = self.expected_rate(cell, settings, rates).await?;
                let cell_time = settings.warm_up + settings.seconds;
                let count = (SPARE * rate * cell_time) as usize + 2 * clients;
                self.supply(supply, count, settings).await?;
                quiet(std::slice::from_ref(self)).await?;
            }
            let count = settings.connections_of(clients);
            let connections = connections(self.system.as_ref(), operation.role(), count);
            let load = self.load(operation, clients, &connections);
            let processes = self.system.processes();
            let window = load
                .measure(settings.warming(), settings.window(), &processes)
                .await?;
            if self.system.find_leader().await? == leader {
                let row = Row::new(round, cell, count, &window);
                rates.insert(cell, row.rate());
                return Ok(row);
            }
            eprintln!("{cell:?}: another node leads now; once more");
        }
        Err(format!("{cell:?}: leadership moved in each of {TRIES} tries"))
    }

    fn load<'a>(&'a self, operation: Operation, clients: usize, connections: &'a [Connection]) -> Load<'a> {
        Load {
            operation,
            clients,
            connections,
            stock: &self.stock,
        }
    }

    /// What was measured before, or about what creates take.
    async fn expected_rate(&self, cell: Cell, settings: &Settings, rates: &mut Rates) -> Result<f64, String> {
        if let Some(rate) = rates.get(&cell) {
            return Ok(*rate);
        }
        let create = Cell {
            operation: Operation::Create,
            ..cell
        };
        if let Some(rate) = rates.get(&create) {
            return Ok(*rate);
        }
        let count = settings.connections_of(cell.clients);
        let connections = connections(self.system.as_ref(), Role::Leader, count);
        let load = self.load(Operation::Create, cell.clients, &connections);
        let (warm_up, window) = (Duration::from_millis(100), Duration::from_millis(500));
        let window = load.measure(warm_up, window, &self.system.processes()).await?;
        let rate = window.latencies.len() as f64 / window.length.as_secs_f64();
        rates.insert(create, rate);
        Ok(rate)
    }

    /// Makes files until there are so many.
    async fn supply(&self, supply: Supply, count: usize, settings: &Settings) -> Result<(), String> {
        let connections = connections(self.system.as_ref(), Role::Leader, settings.connections);
        let missing = |supply, count: usize| count.saturating_sub(self.stock.count(supply));
        match supply {
            Supply::Empty => {
                let load = self.load(Operation::Create, FILLERS, &connections);
                load.repeat(missing(Supply::Empty, count)).await
            }
            Supply::Allocated => {
                let missing_blocks = missing(Supply::Allocated, count);
                let load = self.load(Operation::Create, FILLERS, &connections);
                load.repeat(missing(Supply::Empty, missing_blocks)).await?;
                let load = self.load(Operation::Allocate, FILLERS, &connections);
                load.repeat(missing_blocks).await
            }
        }
    }
}

fn connections(system: &dyn System, role: Role, count: usize) -> Vec<Connection> {
    (0..count).map(|_| system.connect(role)).collect()
}
