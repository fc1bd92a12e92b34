//! The report: `results.md`, tables of medians and ratios with what one has to know of the machine.
//!
//! Called by `main` after every round, so that a run that is cut off leaves what it has. It draws no conclusions;
//! those are written by hand.

use std::fmt::Write;

use crate::flushes::Flushes;
use crate::machine::Facts;
use crate::operation::Operation;
use crate::results::{Cell, PERCENTILES, Ratio, Results};
use crate::settings::{Kind, Settings};

/// What the tables are made of.
pub struct Report<'a> {
    /// How it was measured.
    pub settings: &'a Settings,
    /// On what.
    pub facts: &'a Facts,
    /// What the nodes flushed; `None` when strace was not there to see it.
    pub flushes: Option<&'a [Flushes]>,
    /// What came of it.
    pub results: &'a Results,
}

impl Report<'_> {
    /// All of it, in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "# MinFS beside etcd: results\n\n\
             Written by `scripts/bench.sh`; [README.md](README.md) says what is measured and how to read it. \
             Every round of every cell is in `results.csv`.\n\n",
        );
        self.machine(&mut text);
        text.push_str("\n## Throughput as a multiple of etcd's\n\n");
        text.push_str(&self.summary());
        text.push_str(
            "\nMedian of the rounds' ratios, with the smallest and the largest.\n\n\
             ![Operations a second](throughput.svg)\n\n![Throughput as a multiple of etcd's](ratio.svg)\n",
        );
        for operation in &self.settings.operations {
            self.operation(&mut text, *operation);
        }
        self.flushes(&mut text);
        text
    }

    fn machine(&self, text: &mut String) {
        let settings = self.settings;
        text.push_str("| | |\n|---|---|\n");
        for (name, value) in self.facts {
            let _ = writeln!(text, "| {name} | {value} |");
        }
        let rounds = self.results.rows.last().map_or(0, |row| row.round);
        let _ = writeln!(
            text,
            "| rounds | {rounds}, systems in turns, new and empty in each |\n\
             | a cell | {} s after {} s of warm-up |\n\
             | connections | as many as clients, {} at most |\n\
             | files that a stat chooses from | {} |",
            settings.seconds, settings.warm_up, settings.connections, settings.files
        );
    }

    /// The ratios of throughput, operations by clients.
    pub fn summary(&self) -> String {
        let mut text = String::from("| operation | system |");
        for clients in &self.settings.clients {
            let _ = write!(text, " {} |", plural(*clients));
        }
        text.push_str("\n|---|---|");
        text.push_str(&"---:|".repeat(self.settings.clients.len()));
        text.push('\n');
        for operation in &self.settings.operations {
            for kind in self.systems(*operation).filter(|kind| *kind != Kind::Etcd) {
                let _ = write!(text, "| {} | {} |", operation.label(), kind.label());
                for clients in &self.settings.clients {
                    let cell = Cell {
                        kind,
                        operation: *operation,
                        clients: *clients,
                    };
                    let ratio = self.results.ratio(cell, |row| row.rate());
                    let _ = write!(text, " {} |", range(ratio));
                }
                text.push('\n');
            }
        }
        text
    }

    fn systems(&self, operation: Operation) -> impl Iterator<Item = Kind> {
        let all = self.settings.systems.iter().copied();
        all.filter(move |kind| kind.does(operation))
    }

    fn operation(&self, text: &mut String, operation: Operation) {
        let _ = write!(
            text,
            "\n## {}\n\n\
             | clients | system | a second | × etcd | p50 µs | × etcd | p99 µs | × etcd | p99.9 µs | max µs \
             | leader µs | followers µs | clients µs | others |\n\
             |---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
            operation.label()
        );
        for clients in &self.settings.clients {
            for kind in self.systems(operation) {
                let cell = Cell {
                    kind,
                    operation,
                    clients: *clients,
                };
                self.cell(text, cell);
            }
        }
    }

    fn cell(&self, text: &mut String, cell: Cell) {
        let results = self.results;
        let Some(rate) = results.median(cell, |row| row.rate()) else {
            return;
        };
        let times = results.ratio(cell, |row| row.rate());
        let _ = write!(
            text,
            "| {} | {} | {} | {} |",
            thousands(cell.clients as f64),
            cell.kind.label(),
            thousands(rate),
            range(times)
        );
        for (n, (name, _)) in PERCENTILES.iter().enumerate() {
            let latency = results.median(cell, |row| row.latencies[n]).unwrap_or_default();
            let _ = write!(text, " {} |", thousands(latency));
            if ["p50", "p99"].contains(name) {
                let times = results.ratio(cell, |row| row.latencies[n]);
                let _ = write!(text, " {} |", range(times));
            }
        }
        let leader = results.median(cell, |row| row.cost(row.usage.leader));
        let followers = results.median(cell, |row| row.cost(row.usage.followers.iter().sum()));
        let client = results.median(cell, |row| row.cost(row.usage.client));
        for cost in [leader, followers, client] {
            let _ = write!(text, " {:.1} |", cost.unwrap_or_default());
        }
        // Of one processor.
        let others = results.median(cell, |row| 100.0 * row.usage.others / row.seconds);
        let _ = writeln!(text, " {:.0} % |", others.unwrap_or_default());
    }

    /// What strace saw.
    pub fn flushes(&self, text: &mut String) {
        text.push_str("\n## Flushes\n\n");
        let Some(flushes) = self.flushes else {
            text.push_str("Not counted: strace is not installed.\n");
            return;
        };
        text.push_str(
            "Calls of `fsync` and `fdatasync` that succeeded while creates were acknowledged, counted by strace \
             (which makes all of them slow: these are no rates).\n\n\
             | system | clients | creates acknowledged | leader flushed | followers flushed |\n\
             |---|---:|---:|---:|---:|\n",
        );
        for Flushes {
            kind,
            clients,
            acknowledged,
            flushes: [leader, first, second],
        } in flushes
        {
            let _ = writeln!(
                text,
                "| {} | {clients} | {acknowledged} | {leader} | {first}, {second} |",
                kind.label()
            );
        }
    }
}

fn plural(clients: usize) -> String {
    match clients {
        1 => "1 client".to_owned(),
        more => format!("{} clients", thousands(more as f64)),
    }
}

fn range(ratio: Option<Ratio>) -> String {
    ratio.map_or_else(String::new, |Ratio { median, least, most }| {
        format!("{median:.2} ({least:.2}–{most:.2})")
    })
}

/// A whole number with commas; with one digit behind the point where it is small.
pub fn thousands(number: f64) -> String {
    if number < 100.0 && number.fract() != 0.0 {
        return format!("{number:.1}");
    }
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
