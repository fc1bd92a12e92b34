//! What a run did and what came of it, as a table.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use crate::history::{Outcome, Record};
use crate::nemesis::{Fault, Strike};

/// One line of the table.
#[derive(Default)]
struct Line {
    times: usize,
    acknowledged: usize,
    unknown: usize,
    pauses: Vec<Duration>,
}

/// The table: each fault's window goes from its strike to the next one's.
pub fn table(records: &[Record], strikes: &[Strike], end: Duration) -> String {
    let mut writes: Vec<_> = records.iter().filter_map(Record::acknowledged).collect();
    writes.sort();
    let mut lines: BTreeMap<Fault, Line> = BTreeMap::new();
    for (at, strike) in strikes.iter().enumerate() {
        let until = strikes.get(at + 1).map_or(end, |next| next.struck);
        let window = strike.struck..until;
        let line = lines.entry(strike.fault).or_default();
        line.times += 1;
        line.pauses.push(longest_pause(&writes, strike.struck, until));
        let inside = records.iter().filter(|record| window.contains(&record.invoked));
        for record in inside {
            match record.outcome {
                Outcome::Ok(_) => line.acknowledged += 1,
                Outcome::Unknown if record.op.mutates() => line.unknown += 1,
                Outcome::Unknown | Outcome::Refused(_) | Outcome::NotDone => {}
            }
        }
    }
    let mut table = format!(
        "| {:32} | {:>5} | {:>8} | {:>7} | {:>12} | {:>13} |\n|{}|\n",
        "fault",
        "times",
        "answered",
        "unknown",
        "median pause",
        "longest pause",
        [34, 7, 10, 9, 14, 15].map(|width| "-".repeat(width)).join("|")
    );
    for (fault, mut line) in lines {
        line.pauses.sort();
        let median = line.pauses[(line.pauses.len() - 1) / 2];
        let longest = line.pauses[line.pauses.len() - 1];
        let Line {
            times,
            acknowledged,
            unknown,
            ..
        } = line;
        let (median, longest) = (seconds(median), seconds(longest));
        let _ = writeln!(
            table,
            "| {fault:32} | {times:>5} | {acknowledged:>8} | {unknown:>7} | {median:>12} | {longest:>13} |"
        );
    }
    table
}

/// The longest time within the window without an acknowledged change. `writes` is sorted.
fn longest_pause(writes: &[Duration], from: Duration, to: Duration) -> Duration {
    let first = writes.partition_point(|at| *at <= from);
    let last = writes.partition_point(|at| *at < to);
    let mut longest = Duration::ZERO;
    let mut before = from;
    for at in writes[first..last.max(first)].iter().chain([&to]) {
        longest = longest.max(*at - before);
        before = *at;
    }
    longest
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// How many operations had which outcome.
pub fn totals(records: &[Record]) -> String {
    let (mut acknowledged, mut answered, mut refused, mut not_done, mut unknown) = (0, 0, 0, 0, 0);
    for record in records {
        match record.outcome {
            Outcome::Ok(_) if record.op.mutates() => acknowledged += 1,
            Outcome::Ok(_) => answered += 1,
            Outcome::Refused(_) => refused += 1,
            Outcome::NotDone => not_done += 1,
            Outcome::Unknown if record.op.mutates() => unknown += 1,
            Outcome::Unknown => {}
        }
    }
    format!(
        "changes acknowledged {acknowledged}, reads answered {answered}, refused by the rules {refused}, \
         not done {not_done}, changes unknown {unknown}"
    )
}

#[test]
fn a_pause_is_measured_between_the_ends_of_a_window() {
    let seconds = |all: &[u64]| all.iter().map(|at| Duration::from_secs(*at)).collect::<Vec<_>>();
    let pause = |writes: &[u64], from, to| {
        longest_pause(
            &seconds(writes),
            Duration::from_secs(from),
            Duration::from_secs(to),
        )
        .as_secs()
    };
    assert_eq!(pause(&[1, 2, 9, 10, 11], 3, 10), 6, "from the strike on");
    assert_eq!(pause(&[1, 2, 3, 10, 11, 30], 10, 14), 3, "up to the next strike");
    assert_eq!(pause(&[0, 20, 22, 25, 26, 40], 21, 27), 3);
    assert_eq!(pause(&[], 5, 9), 4);
}
