//! Whether a history is linearizable: whether the operations can be put into one order that keeps
//! every "this one ended before that one began" and that the model answers as the servers did.
//!
//! The search is that of Wing and Gong ("Testing and verifying concurrent objects", 1993) with Lowe's
//! memoisation ("Testing for linearizability", 2016): a pair of (operations already in order, state)
//! is never visited twice. Each unit of the history is judged by itself, which is as good as the whole
//! (Herlihy and Wing's locality). Two things keep it small:
//!
//! - An operation that may come next, fits and changes nothing is taken at once. If any order exists,
//!   so does one with it in this place: moved to the front, it changes the state for nobody, and
//!   nothing unordered ended before it began.
//! - One whose outcome is unknown need not be taken at all, and never has to be in time for anything. So
//!   it is taken only right before what it makes a difference to: wherever an order has it earlier, it
//!   can be moved past what is on other paths. And of two ways to the same state with the same answers
//!   given, the one that used up fewer of them is good enough.
//!
//! Stateright's `LinearizabilityTester` was tried and is not fit: without memoisation it took 25 s to
//! reject 20 operations of five clients on a register. The checker of `todc-utils` memoises, but every
//! operation must have a response, and it does not say which one does not fit.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use crate::history::{Op, Outcome, Record};
use crate::model::{State, Step, step};

/// States that are visited before a unit is given up.
const PATIENCE: usize = 2_000_000;

/// What is to be said of one unit.
#[derive(Debug)]
pub enum Verdict {
    /// There is an order; it was found after so many states.
    Linearizable {
        /// States.
        visited: usize,
    },
    /// There is none.
    NotLinearizable(Violation),
    /// It was too much.
    Undecided,
}

/// Where the longest order ends.
#[derive(Debug)]
pub struct Violation {
    /// How many of the operations with an outcome can be put in order.
    pub ordered: usize,
    /// Of how many.
    pub of: usize,
    /// The state after them.
    pub state: State,
    /// The next ones, none of which fits.
    pub stuck: Vec<Record>,
    /// What came shortly before, in the order in which it began.
    pub before: Vec<Record>,
}

/// All units of a history.
#[derive(Debug, Default)]
pub struct Verdicts {
    /// How many were judged.
    pub units: usize,
    /// Operations in them that were judged.
    pub operations: usize,
    /// The most states that were visited for one.
    pub most_visited: usize,
    /// Those that are not linearizable.
    pub violations: Vec<(Arc<str>, Violation)>,
    /// Those that were given up.
    pub undecided: Vec<Arc<str>>,
}

impl Verdicts {
    /// Whether every unit is.
    pub fn linearizable(&self) -> bool {
        self.violations.is_empty() && self.undecided.is_empty()
    }
}

/// Judges each unit of a history.
pub fn check(records: &[Record]) -> Verdicts {
    let mut units: BTreeMap<Arc<str>, Vec<Record>> = BTreeMap::new();
    for record in records {
        units.entry(record.unit.clone()).or_default().push(record.clone());
    }
    let mut verdicts = Verdicts::default();
    for (unit, records) in units {
        verdicts.units += 1;
        verdicts.operations += records.len();
        match check_unit(&records) {
            Verdict::Linearizable { visited } => {
                verdicts.most_visited = verdicts.most_visited.max(visited);
            }
            Verdict::NotLinearizable(violation) => verdicts.violations.push((unit, violation)),
            Verdict::Undecided => verdicts.undecided.push(unit),
        }
    }
    verdicts
}

/// Judges one unit, which is empty in the beginning.
pub fn check_unit(records: &[Record]) -> Verdict {
    let told = |record: &&Record| match record.outcome {
        Outcome::Ok(_) | Outcome::Refused(_) => true,
        Outcome::Unknown => record.op.mutates(),
        Outcome::NotDone => false,
    };
    let mut records: Vec<_> = records.iter().filter(told).cloned().collect();
    records.sort_by_key(|record| record.invoked);
    Search::new(records).run()
}

/// Some of the operations, by their number.
type Set = Box<[u64]>;

/// A point of the search: which operations with an outcome are in order, and what is owed (see
/// [`Frame`]).
type Point = (Set, Rc<State>, Vec<usize>);

struct Search {
    /// In the order in which they began.
    records: Vec<Record>,
    /// Those in order, that have an outcome.
    done: Set,
    /// Those in order, whose outcome is unknown.
    used: Set,
    state: Rc<State>,
    /// Operations with an outcome.
    of: usize,
    /// Those of them that are not in order yet.
    left: usize,
    /// For each point, with which unknown ones used up it was visited.
    seen: HashMap<Point, Vec<Set>>,
    visited: usize,
    frames: Vec<Frame>,
    best: Option<Best>,
}

/// The longest order so far.
#[derive(Default)]
struct Best {
    ordered: usize,
    state: Rc<State>,
    stuck: Vec<usize>,
    done: Set,
    used: Set,
}

/// One point of the search at which something may change.
struct Frame {
    /// The operation that led here, and the state before it.
    by: Option<(usize, Rc<State>)>,
    /// Unknown ones that were taken, and nothing since that they make a difference to: such must come
    /// before or with the next one that has an outcome.
    owed: Vec<usize>,
    /// What was taken at once.
    absorbed: Vec<usize>,
    /// What may change something next, the last one first.
    choices: Vec<(usize, Rc<State>)>,
}

impl Search {
    fn new(records: Vec<Record>) -> Search {
        let none: Set = vec![0; records.len().div_ceil(64)].into();
        let of = records.iter().filter(|record| ends(record)).count();
        Search {
            done: none.clone(),
            used: none,
            state: Rc::default(),
            of,
            left: of,
            records,
            seen: HashMap::new(),
            visited: 0,
            frames: Vec::new(),
            best: None,
        }
    }

    fn run(mut self) -> Verdict {
        self.enter(None, Vec::new());
        loop {
            if self.left == 0 {
                return Verdict::Linearizable {
                    visited: self.visited,
                };
            }
            if self.visited > PATIENCE {
                return Verdict::Undecided;
            }
            let Some(frame) = self.frames.last_mut() else {
                return Verdict::NotLinearizable(self.violation());
            };
            match frame.choices.pop() {
                Some((next, state)) => {
                    let owed = frame.owed.clone();
                    let before = std::mem::replace(&mut self.state, state);
                    self.enter(Some((next, before)), owed);
                }
                None => self.leave(),
            }
        }
    }

    /// Puts `by` in order, and everything after it that fits and changes nothing.
    fn enter(&mut self, by: Option<(usize, Rc<State>)>, mut owed: Vec<usize>) {
        if let Some((record, _)) = by {
            self.mark(record);
            owed.retain(|one| !self.concerns(*one, record));
            if !ends(&self.records[record]) {
                owed.push(record);
                owed.sort_unstable();
            }
        }
        let mut absorbed = Vec::new();
        let mut choices = Vec::new();
        let mut stuck;
        loop {
            stuck = Vec::new();
            choices.clear();
            let before = absorbed.len();
            for next in self.candidates() {
                let record = &self.records[next];
                // What is owed must be paid by whatever comes next with an outcome.
                if ends(record) && !owed.iter().all(|one| self.concerns(*one, next)) {
                    continue;
                }
                match step(&self.state, &record.op, &record.outcome) {
                    Step::Same if ends(record) => {
                        owed.clear();
                        self.mark(next);
                        absorbed.push(next);
                    }
                    Step::Same => {}
                    Step::To(state) => choices.push((next, Rc::new(state))),
                    Step::Impossible => stuck.push(next),
                }
            }
            // Taking one may let others begin.
            if absorbed.len() == before {
                break;
            }
        }
        let ordered = self.of - self.left;
        if self.best.as_ref().is_none_or(|best| ordered > best.ordered) {
            self.best = Some(Best {
                ordered,
                state: self.state.clone(),
                stuck,
                done: self.done.clone(),
                used: self.used.clone(),
            });
        }
        let point = (self.done.clone(), self.state.clone(), owed.clone());
        let ways = self.seen.entry(point).or_default();
        let used = &self.used;
        if ways.iter().any(|way| is_part(way, used)) {
            choices.clear();
        } else {
            ways.retain(|way| !is_part(used, way));
            ways.push(used.clone());
            self.visited += 1;
            // Taken from the end: first those that ended, the earliest first; then the unknown ones.
            let records = &self.records;
            choices.sort_by_key(|(next, _)| {
                let record = &records[*next];
                std::cmp::Reverse((!ends(record), record.completed, record.invoked))
            });
        }
        self.frames.push(Frame {
            by,
            owed,
            absorbed,
            choices,
        });
    }

    fn leave(&mut self) {
        let Some(frame) = self.frames.pop() else { return };
        for record in frame.absorbed {
            self.unmark(record);
        }
        if let Some((record, before)) = frame.by {
            self.unmark(record);
            self.state = before;
        }
    }

    /// Whether the order of two operations may make a difference: one's path is the other's or above it.
    fn concerns(&self, one: usize, other: usize) -> bool {
        let (one, other) = (path(&self.records[one].op), path(&self.records[other].op));
        let (above, below) = if one.len() < other.len() {
            (one, other)
        } else {
            (other, one)
        };
        let rest = below.strip_prefix(above);
        rest.is_some_and(|rest| above.is_empty() || rest.is_empty() || rest.starts_with('/'))
    }

    /// What may come next: nothing that is left ended before it began.
    fn candidates(&self) -> Vec<usize> {
        let mut candidates = Vec::new();
        let mut first_end = None;
        let words = self.done.iter().zip(&self.used);
        let first = words.take_while(|(done, used)| *done | *used == u64::MAX).count() * 64;
        for (number, record) in self.records.iter().enumerate().skip(first) {
            if first_end.is_some_and(|end| record.invoked > end) {
                break;
            }
            if has(&self.done, number) || has(&self.used, number) {
                continue;
            }
            candidates.push(number);
            if let Some(end) = record.completed.filter(|_| ends(record)) {
                first_end = Some(first_end.map_or(end, |first: std::time::Duration| first.min(end)));
            }
        }
        candidates
    }

    fn mark(&mut self, record: usize) {
        let ends = ends(&self.records[record]);
        let set = if ends { &mut self.done } else { &mut self.used };
        set[record / 64] |= 1 << (record % 64);
        self.left -= usize::from(ends);
    }

    fn unmark(&mut self, record: usize) {
        let ends = ends(&self.records[record]);
        let set = if ends { &mut self.done } else { &mut self.used };
        set[record / 64] &= !(1 << (record % 64));
        self.left += usize::from(ends);
    }

    fn violation(self) -> Violation {
        const SHOWN: usize = 25;
        let best = self.best.unwrap_or_default();
        let mut before: Vec<_> = (0..self.records.len())
            .rev()
            .filter(|at| has(&best.done, *at) || has(&best.used, *at))
            .take(SHOWN)
            .map(|at| self.records[at].clone())
            .collect();
        before.reverse();
        Violation {
            ordered: best.ordered,
            of: self.of,
            state: Rc::unwrap_or_clone(best.state),
            stuck: best
                .stuck
                .into_iter()
                .map(|at| self.records[at].clone())
                .collect(),
            before,
        }
    }
}

fn has(set: &Set, record: usize) -> bool {
    set[record / 64] & (1 << (record % 64)) != 0
}

fn is_part(part: &Set, of: &Set) -> bool {
    part.iter().zip(of).all(|(part, of)| part & !of == 0)
}

fn path(op: &Op) -> &str {
    match op {
        Op::Create { path, .. }
        | Op::Delete { path, .. }
        | Op::Stat { path }
        | Op::List { path }
        | Op::Blocks { path }
        | Op::Allocate { path, .. }
        | Op::Finalize { path, .. } => path,
    }
}

/// Whether its outcome is known, and it must have its place in the order.
fn ends(record: &Record) -> bool {
    match record.outcome {
        Outcome::Ok(_) | Outcome::Refused(_) => true,
        Outcome::NotDone | Outcome::Unknown => false,
    }
}
