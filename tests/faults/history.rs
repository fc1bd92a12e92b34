//! What the clients asked and what they were told, on one monotonic clock: the evidence that the
//! checker judges.
//!
//! A record is written before its request leaves, as unknown, and completed after the answer came; so
//! its interval always contains the moment when the operation took effect, and an operation that is
//! never completed stays open to the end. A record never claims more than the client knows.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// An operation on something in a unit; the path is the unit's directory's, so that `""` is the
/// directory itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// CreateNode.
    Create { path: String, directory: bool },
    /// DeleteNode.
    Delete { path: String, recursive: bool },
    /// GetNodeInfo.
    Stat { path: String },
    /// ListDirectory.
    List { path: String },
    /// GetBlockLocations with size 0.
    Blocks { path: String },
    /// GetBlockLocations with a size that no file ever has, so that it always allocates.
    Allocate { path: String, size: u64 },
    /// FinalizeWrite. No two have the same MD5.
    Finalize {
        path: String,
        inode: u64,
        size: u64,
        md5: String,
    },
}

impl Op {
    /// Whether it changes anything.
    pub fn mutates(&self) -> bool {
        match self {
            Op::Create { .. } | Op::Delete { .. } | Op::Allocate { .. } | Op::Finalize { .. } => true,
            Op::Stat { .. } | Op::List { .. } | Op::Blocks { .. } => false,
        }
    }
}

/// What a client can see of an entry, its times left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// A directory, or else a file.
    pub directory: bool,
    /// Bytes.
    pub size: u64,
    /// As the last finalize said.
    pub md5: String,
    /// The blocks' numbers in order; listings leave them out.
    pub blocks: Option<Vec<u64>>,
}

/// The content of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done, and there is nothing more to say.
    Done,
    /// Of a stat.
    Found(Attributes),
    /// Of a listing: names and attributes in the order in which they came.
    Entries(Vec<(String, Attributes)>),
    /// Of an allocation, or of asking for the blocks.
    Blocks { inode: u64, blocks: Vec<u64> },
}

/// The kinds of mistakes that the contract knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// `NOT_FOUND`.
    NotFound,
    /// `ALREADY_EXISTS`.
    AlreadyExists,
    /// `FAILED_PRECONDITION`.
    FailedPrecondition,
    /// `INVALID_ARGUMENT`; never right for what the clients here ask.
    InvalidArgument,
}

/// What became of an operation, as far as its client knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect, with this answer.
    Ok(Answer),
    /// The rules forbid it; the answer is as binding as the others.
    Refused(Refused),
    /// The server promised that nothing happened, or it was never asked.
    NotDone,
    /// It may have taken effect, may do so at any later time, or never.
    Unknown,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Record {
    /// The client.
    pub process: u32,
    /// The node that was asked.
    pub node: usize,
    /// The directory that the operation's path is below.
    pub base: Arc<str>,
    /// What can be judged by itself: operations on different units do not touch each other.
    pub unit: Arc<str>,
    /// What was asked.
    pub op: Op,
    /// When, since the history began.
    pub invoked: Duration,
    /// When the outcome was known; unknown ones stay open.
    pub completed: Option<Duration>,
    /// What came of it.
    pub outcome: Outcome,
    /// The server's or the transport's own words, when it was not done or is unknown.
    pub note: String,
}

impl Record {
    /// When it was acknowledged, if it is a change that was.
    pub fn acknowledged(&self) -> Option<Duration> {
        match &self.outcome {
            Outcome::Ok(_) if self.op.mutates() => self.completed,
            Outcome::Ok(_) | Outcome::Refused(_) | Outcome::NotDone | Outcome::Unknown => None,
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record {
            process, node, op, ..
        } = self;
        let end = match self.completed {
            Some(at) => format!("{:10.6}", at.as_secs_f64()),
            None => format!("{:>10}", "-"),
        };
        let begin = self.invoked.as_secs_f64();
        write!(
            f,
            "{begin:10.6} {end} p{process:02} n{node} {} {op:?} => {:?}",
            self.base, self.outcome
        )?;
        match self.note.as_str() {
            "" => Ok(()),
            note => write!(f, " [{note}]"),
        }
    }
}

/// The record of a run, shared by its clients.
#[derive(Debug)]
pub struct History {
    begun: Instant,
    records: Mutex<Vec<Record>>,
}

/// Names a record whose outcome is to be told.
#[derive(Debug)]
pub struct Pending(usize);

impl History {
    /// An empty one; its clock begins now.
    pub fn new() -> History {
        History {
            begun: Instant::now(),
            records: Mutex::default(),
        }
    }

    /// The time since it began.
    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Writes down that this is about to be asked.
    pub fn invoke(&self, process: u32, node: usize, base: &Arc<str>, unit: &Arc<str>, op: Op) -> Pending {
        let mut records = self.records.lock().unwrap();
        records.push(Record {
            process,
            node,
            base: base.clone(),
            unit: unit.clone(),
            op,
            invoked: self.now(),
            completed: None,
            outcome: Outcome::Unknown,
            note: String::new(),
        });
        Pending(records.len() - 1)
    }

    /// Writes down what came of it.
    pub fn complete(&self, pending: Pending, outcome: Outcome, note: String) {
        let mut records = self.records.lock().unwrap();
        let record = &mut records[pending.0];
        record.completed = (outcome != Outcome::Unknown).then(|| self.now());
        record.outcome = outcome;
        record.note = note;
    }

    /// Whether a change that was asked for after `moment` is acknowledged.
    pub fn written_since(&self, moment: Duration) -> bool {
        let records = self.records.lock().unwrap();
        // No request takes that long, and the records are in the order of their beginnings.
        records
            .iter()
            .rev()
            .take_while(|record| record.invoked >= moment)
            .any(|record| record.acknowledged().is_some())
    }

    /// All records, in the order in which the operations began.
    pub fn records(&self) -> Vec<Record> {
        self.records.lock().unwrap().clone()
    }

    /// Writes all of it, one operation a line.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        for record in self.records() {
            writeln!(to, "{record}")?;
        }
        to.flush()
    }
}
