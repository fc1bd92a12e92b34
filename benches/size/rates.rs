//! Creates and stats of a large tree beside those of a small one, in turns.
//!
//! Called by `main` with both sites running, each of three nodes; only one is asked at a time. Clients ask the
//! leader, in a closed loop, as in `benches/metadata`.

use std::sync::Arc;
use std::time::Duration;

use crate::closed_loop::{Load, Window};
use crate::cpu::{self, Processes};
use crate::nodes::Site;
use crate::operation::Operation;
use crate::settings::Settings;
use crate::system::Connection;
use crate::workload::Stock;

/// How long all processes may take to come to rest.
const REST: Duration = Duration::from_secs(10);

/// A running system, and what its clients need.
pub struct Target {
    /// As the output calls it.
    pub label: String,
    connections: Vec<Connection>,
    stock: Arc<Stock>,
    processes: Processes,
}

/// What one window gave.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// Answers a second.
    pub rate: f64,
    /// Microseconds.
    pub p50: f64,
    /// Microseconds.
    pub p99: f64,
    /// Processors that the node in question kept busy.
    pub leader: f64,
    /// Likewise, of the other nodes together.
    pub followers: f64,
    /// Likewise, of the clients.
    pub client: f64,
    /// Likewise, of everybody else.
    pub others: f64,
}

impl Target {
    /// Of a site that runs.
    pub async fn new(
        label: String,
        site: &mut Site,
        files: u64,
        settings: &Settings,
    ) -> Result<Target, String> {
        let leader = site.complete().await?;
        let connect = |_| Connection::new(site.connect(leader));
        let connections: Vec<_> = (0..settings.connections).map(connect).collect();
        let stock = Stock::new(&mut connections[0].clone(), files).await?;
        let mut others = site.others(leader).into_iter().map(|n| site.process(n));
        let mut next = || others.next().unwrap_or(cpu::NOBODY);
        Ok(Target {
            label,
            connections,
            stock: Arc::new(stock),
            processes: Processes {
                leader: site.process(leader),
                followers: [next(), next()],
            },
        })
    }

    /// One window, with everything flushed and at rest before it.
    pub async fn measure(
        &self,
        operation: Operation,
        clients: usize,
        settings: &Settings,
    ) -> Result<Cell, String> {
        let synced = tokio::task::spawn_blocking(rustix::fs::sync).await;
        synced.map_err(|error| format!("sync: {error}"))?;
        cpu::quiet(&self.processes.all(), REST).await?;
        let load = Load {
            operation,
            clients,
            connections: &self.connections,
            stock: &self.stock,
        };
        let window = load
            .measure(settings.warming(), settings.window(), &self.processes)
            .await?;
        Ok(Cell::of(&window))
    }
}

impl Cell {
    fn of(window: &Window) -> Cell {
        let seconds = window.length.as_secs_f64();
        let us = |quantile| window.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        Cell {
            rate: window.latencies.len() as f64 / seconds,
            p50: us(0.5),
            p99: us(0.99),
            leader: window.usage.leader / seconds,
            followers: window.usage.followers.iter().sum::<f64>() / seconds,
            client: window.usage.client / seconds,
            others: window.usage.others / seconds,
        }
    }

    /// Microseconds of the node's processor time for one answer.
    pub fn cost(&self) -> f64 {
        self.leader / self.rate * 1e6
    }
}

/// Walks through the cells, another target first each time; prints each, then the medians and how each target
/// compares with the first one.
pub async fn compare(targets: &[Target], settings: &Settings) -> Result<(), String> {
    for operation in &settings.operations {
        for clients in &settings.clients {
            let mut cells = vec![Vec::new(); targets.len()];
            for round in 0..settings.rounds {
                let mut order: Vec<usize> = (0..targets.len()).collect();
                order.rotate_left(round % targets.len());
                for n in order {
                    let cell = targets[n].measure(*operation, *clients, settings).await?;
                    cells[n].push(cell);
                }
            }
            tell(targets, *operation, *clients, &cells);
        }
    }
    Ok(())
}

/// Prints the medians of the rounds, one line for each target.
pub fn tell(targets: &[Target], operation: Operation, clients: usize, cells: &[Vec<Cell>]) {
    for (target, of_it) in targets.iter().zip(cells) {
        let ratio: Vec<f64> = of_it
            .iter()
            .zip(&cells[0])
            .map(|(cell, first)| cell.rate / first.rate)
            .collect();
        let middle = |value: fn(&Cell) -> f64| median(of_it.iter().map(value).collect());
        println!(
            "{}, {clients} clients, {}: {:.0} a second, ratio {:.2} ({:.2} to {:.2}), p50 {:.0} µs, p99 {:.0} µs; \
             processors: node {:.2}, other nodes {:.2}, clients {:.2}, others {:.2}; {:.1} µs of the node for one",
            operation.label(),
            target.label,
            middle(|cell| cell.rate),
            median(ratio.clone()),
            ratio.iter().copied().fold(f64::INFINITY, f64::min),
            ratio.iter().copied().fold(0.0, f64::max),
            middle(|cell| cell.p50),
            middle(|cell| cell.p99),
            middle(|cell| cell.leader),
            middle(|cell| cell.followers),
            middle(|cell| cell.client),
            middle(|cell| cell.others),
            middle(Cell::cost),
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
