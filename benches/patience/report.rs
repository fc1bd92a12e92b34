//! The tables of a case, in Markdown.
//!
//! Called by `main`. A percentile is taken within a window, then the median over the rounds; a ratio is that of the
//! percentiles of one round, then the median, the smallest and the largest.

use std::fmt::Write;
use std::time::Duration;

use crate::cases::{Measured, Window};
use crate::probe::{Sample, Who};

/// Whose requests a row is about.
const ROWS: [(&str, &[Who]); 4] = [
    ("everybody (mixed load)", &[Who::Stat, Who::Create]),
    ("its stats", &[Who::Stat]),
    ("its creates", &[Who::Create]),
    ("the single stat client", &[Who::Single]),
];

/// Milliseconds.
#[derive(Clone, Copy)]
struct Figures {
    p50: f64,
    p99: f64,
    most: f64,
    count: usize,
}

/// Latencies of each phase, then what the processors did.
pub fn tables(measured: &Measured) -> String {
    let mut text = String::new();
    latencies(&mut text, measured);
    processors(&mut text, measured);
    for window in &measured.windows {
        if let Some(remark) = &window.remark {
            let (phase, round) = (measured.phases[window.phase], window.round + 1);
            let _ = writeln!(text, "- {phase}, round {round}: {remark}");
        }
    }
    text
}

fn latencies(text: &mut String, measured: &Measured) {
    let _ = writeln!(
        text,
        "| whose requests | phase | p50 ms | p99 ms | max ms | p99 as a multiple (least to most) | requests a round |\n\
         |---|---|---:|---:|---:|---|---:|"
    );
    for (label, who) in ROWS {
        let of_phase = |phase: usize| -> Vec<Figures> {
            let windows = measured.windows.iter().filter(|window| window.phase == phase);
            windows
                .filter_map(|window| figures(window, who, &measured.samples))
                .collect()
        };
        let base = of_phase(0);
        for (phase, name) in measured.phases.iter().enumerate() {
            let all = of_phase(phase);
            if all.is_empty() {
                continue;
            }
            let middle = |of: fn(&Figures) -> f64| median(all.iter().map(of).collect());
            let ratio = match phase {
                0 => String::new(),
                _ => ratios(&all, &base, measured.phases[0]),
            };
            let last = match phase {
                2.. => format!(
                    "; {}",
                    ratios(&all, &of_phase(phase - 1), measured.phases[phase - 1])
                ),
                _ => String::new(),
            };
            let _ = writeln!(
                text,
                "| {label} | {name} | {:.2} | {:.2} | {:.1} | {ratio}{last} | {:.0} |",
                middle(|f| f.p50),
                middle(|f| f.p99),
                middle(|f| f.most),
                middle(|f| f.count as f64)
            );
        }
    }
}

fn ratios(all: &[Figures], base: &[Figures], name: &str) -> String {
    let mut each: Vec<f64> = all.iter().zip(base).map(|(f, base)| f.p99 / base.p99).collect();
    each.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (each.first(), each.last()) else {
        return String::new();
    };
    format!("{:.2} ({least:.2} to {most:.2}) of {name}", median(each.clone()))
}

fn figures(window: &Window, who: &[Who], samples: &[Sample]) -> Option<Figures> {
    let within = |sample: &&Sample| {
        let due = sample.due;
        who.contains(&sample.who)
            && window
                .spans
                .iter()
                .any(|(begin, end)| (*begin..*end).contains(&due))
    };
    let mut took: Vec<Duration> = samples.iter().filter(within).map(|sample| sample.took).collect();
    took.sort_unstable();
    let at = |share: f64| {
        let rank = (took.len() as f64 * share).ceil() as usize;
        took[rank.clamp(1, took.len()) - 1].as_secs_f64() * 1e3
    };
    (!took.is_empty()).then(|| Figures {
        p50: at(0.5),
        p99: at(0.99),
        most: at(1.0),
        count: took.len(),
    })
}

fn processors(text: &mut String, measured: &Measured) {
    let _ = writeln!(
        text,
        "\n| phase | leader % | followers % | clients % | others % | window s |\n|---|---:|---:|---:|---:|---:|"
    );
    for (phase, name) in measured.phases.iter().enumerate() {
        let windows: Vec<&Window> = measured
            .windows
            .iter()
            .filter(|window| window.phase == phase)
            .collect();
        let share = |of: fn(&crate::cpu::Usage) -> f64| {
            let each = windows.iter().map(|window| {
                let (usage, length) = &window.usage;
                of(usage) / length.as_secs_f64() * 100.0
            });
            median(each.collect())
        };
        let _ = writeln!(
            text,
            "| {name} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} |",
            share(|usage| usage.leader),
            share(|usage| usage.followers[0] + usage.followers[1]),
            share(|usage| usage.client),
            share(|usage| usage.others),
            median(
                windows
                    .iter()
                    .map(|window| window.usage.1.as_secs_f64())
                    .collect()
            )
        );
    }
    text.push('\n');
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
