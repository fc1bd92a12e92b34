//! What was measured: a row for each round, system, operation and number of clients, and what is made of them.
//!
//! Filled by `main`; `report` and `plot` ask it. A median is over the rounds. A ratio to etcd is taken within a round,
//! where both had the same machine, and the median of these ratios is reported with the smallest and the
//! largest; it is not the ratio of two medians.

use std::fmt::Write;

use crate::closed_loop::Window;
use crate::cpu::Usage;
use crate::operation::Operation;
use crate::settings::Kind;

/// What was measured, of whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cell {
    /// The system.
    pub kind: Kind,
    /// The operation.
    pub operation: Operation,
    /// How many clients.
    pub clients: usize,
}

/// A cell in one round.
pub struct Row {
    /// From 1.
    pub round: usize,
    /// Which cell.
    pub cell: Cell,
    /// Connections that the clients shared.
    pub connections: usize,
    /// Length of the window.
    pub seconds: f64,
    /// Answers in the window.
    pub operations: u64,
    /// Microseconds at the percentiles 50, 99, 99.9 and 100.
    pub latencies: [f64; 4],
    /// Processor time in the window.
    pub usage: Usage,
}

/// The percentiles of [`Row::latencies`].
pub const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9), ("max", 100.0)];

/// Median, smallest and largest of the rounds' ratios.
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

/// All rows, in the order in which they were measured.
#[derive(Default)]
pub struct Results {
    /// The rows.
    pub rows: Vec<Row>,
}

impl Row {
    /// From what a window saw.
    pub fn new(round: usize, cell: Cell, connections: usize, window: &Window) -> Row {
        let microseconds = |percentile| window.latencies.value_at_percentile(percentile) as f64 / 1e3;
        Row {
            round,
            cell,
            connections,
            seconds: window.length.as_secs_f64(),
            operations: window.latencies.len(),
            latencies: PERCENTILES.map(|(_, percentile)| microseconds(percentile)),
            usage: window.usage,
        }
    }

    /// Operations a second.
    pub fn rate(&self) -> f64 {
        self.operations as f64 / self.seconds
    }

    /// Microseconds of processor time for one operation.
    pub fn cost(&self, seconds: f64) -> f64 {
        seconds * 1e6 / (self.operations as f64).max(1.0)
    }
}

impl Results {
    /// The rows of a cell, by round.
    fn of(&self, cell: Cell) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.cell == cell)
    }

    /// The median over the rounds; `None` when the cell was not measured.
    pub fn median(&self, cell: Cell, value: impl Fn(&Row) -> f64) -> Option<f64> {
        Some(middle(self.of(cell).map(value).collect())?.median)
    }

    /// The ratios to etcd; `None` when either was not measured, or the cell is etcd's own.
    pub fn ratio(&self, cell: Cell, value: impl Fn(&Row) -> f64) -> Option<Ratio> {
        if cell.kind == Kind::Etcd {
            return None;
        }
        let etcd = Cell {
            kind: Kind::Etcd,
            ..cell
        };
        let of_round = |ours: &Row| {
            let theirs = self.of(etcd).find(|row| row.round == ours.round)?;
            Some(value(ours) / value(theirs))
        };
        middle(self.of(cell).filter_map(of_round).collect())
    }

    /// Every row, for other programs.
    pub fn csv(&self) -> String {
        let mut text = String::from(
            "round,system,operation,clients,connections,seconds,operations,operations_per_second,\
             p50_us,p99_us,p99.9_us,max_us,leader_cpu_s,follower_1_cpu_s,follower_2_cpu_s,client_cpu_s,other_cpu_s\n",
        );
        for row in &self.rows {
            let Cell {
                kind,
                operation,
                clients,
            } = row.cell;
            let [p50, p99, p999, max] = row.latencies;
            let Usage {
                leader,
                followers: [first, second],
                client,
                others,
            } = row.usage;
            let _ = writeln!(
                text,
                "{},{kind},{operation},{clients},{},{:.3},{},{:.1},{p50:.1},{p99:.1},{p999:.1},{max:.1},\
                 {leader:.2},{first:.2},{second:.2},{client:.2},{others:.2}",
                row.round,
                row.connections,
                row.seconds,
                row.operations,
                row.rate()
            );
        }
        text
    }
}

fn middle(mut values: Vec<f64>) -> Option<Ratio> {
    values.sort_by(f64::total_cmp);
    let (least, most) = (*values.first()?, *values.last()?);
    let half = values.len() / 2;
    let median = match values.len() % 2 {
        1 => values[half],
        _ => (values[half - 1] + values[half]) / 2.0,
    };
    Some(Ratio { median, least, most })
}
