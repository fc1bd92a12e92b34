//! One operation, tried on one server after the other until somebody answers or time is up.
//!
//! The invariant: [`Error::Unavailable`] is only reported when it is certain that nothing happened,
//! and a mutating operation carries the same request id on every attempt, so that a repeat of one
//! that did happen gets the first answer instead of happening twice.
//!
//! The parts that decide ([`judge`], [`Course`], [`pause`]) are pure; [`run`] only waits and calls.

use std::collections::HashSet;
use std::error::Error as _;
use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, ConnectError, Response, Status};

use super::Client;
use super::error::Error;
use super::servers::Server;

/// The trailer in which a server that cannot answer names the one that leads.
pub(super) const LEADER_HINT: &str = "minfs-leader";

/// Whether an operation changes anything, and so whether "did it happen?" is a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Reads,
    Mutates,
}

/// What is known of an attempt that got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The server never saw it, or said that it did not do it.
    NotDone,
    /// It may have happened, or may still happen.
    Unknown,
}

/// What a status means for the operation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The cluster's answer; asking elsewhere would get the same.
    Final(Error),
    /// Ask another server.
    Retry { fate: Fate, leader: Option<String> },
}

/// Reads a status. A status with a source was made on this side, out of a broken connection; one
/// without came from the server.
pub(super) fn judge(status: &Status) -> Verdict {
    if status.source().is_some() {
        let fate = if never_connected(status) {
            Fate::NotDone
        } else {
            Fate::Unknown
        };
        return Verdict::Retry { fate, leader: None };
    }
    match status.code() {
        // The contract: UNAVAILABLE and RESOURCE_EXHAUSTED are said of what has not happened,
        // DEADLINE_EXCEEDED of a proposal whose fate is unknown.
        Code::Unavailable | Code::ResourceExhausted => {
            let hint = status
                .metadata()
                .get(LEADER_HINT)
                .and_then(|value| value.to_str().ok());
            Verdict::Retry {
                fate: Fate::NotDone,
                leader: hint.map(str::to_string),
            }
        }
        // CANCELLED and UNKNOWN are what a server that is torn down in the middle leaves behind.
        Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => Verdict::Retry {
            fate: Fate::Unknown,
            leader: None,
        },
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => Verdict::Final(Error::answer(status)),
    }
}

/// Whether no connection could be made, so that the request never left.
fn never_connected(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What a status says, with what lies at the bottom of it ("connection refused").
pub(super) fn describe(status: &Status) -> String {
    let mut root = status.source();
    while let Some(deeper) = root.and_then(|error| error.source()) {
        root = Some(deeper);
    }
    match root.map(ToString::to_string) {
        Some(root) if !status.message().contains(&root) => format!("{}: {root}", status.message()),
        _ => status.message().to_string(),
    }
}

/// The way through the servers: the hinted one, else the next that was not asked in this round.
#[derive(Debug)]
pub(super) struct Course {
    pub(super) current: usize,
    asked: HashSet<usize>,
    /// Completed rounds, in which every server was asked.
    pub(super) rounds: u32,
}

impl Course {
    pub(super) fn from(current: usize) -> Self {
        Self {
            current,
            asked: HashSet::from([current]),
            rounds: 0,
        }
    }

    /// Moves on to the next of `count` servers. Returns true when a new round begins.
    pub(super) fn advance(&mut self, count: usize, leader: Option<usize>) -> bool {
        let fresh = |index: &usize| !self.asked.contains(index);
        let ahead = (1..count).map(|step| (self.current + step) % count);
        let next = leader.filter(fresh).or_else(|| ahead.into_iter().find(fresh));
        let new_round = next.is_none();
        if new_round {
            self.rounds += 1;
            self.asked.clear();
        }
        // A new round begins with the leader that the last answer named, if any.
        self.current = next.or(leader).unwrap_or((self.current + 1) % count);
        self.asked.insert(self.current);
        new_round
    }
}

/// How long to wait before the next attempt, for `jitter` in 0..1: next to nothing before another
/// server is asked, longer and longer (up to 0.4 s, an election takes about 1 s) after all were.
/// The jitter keeps the many requests of one client from coming back as one wave.
pub(super) fn pause(rounds: u32, new_round: bool, jitter: f64) -> Duration {
    let longest = match new_round {
        false => 20,
        true => 50 << rounds.saturating_sub(1).min(3),
    };
    Duration::from_millis(longest).mul_f64(0.5 + jitter / 2.0)
}

/// Runs `attempt` against one server after the other until one of them answers, for as long as the
/// client's options say.
pub(super) async fn run<A, F, Fut>(client: &Client, effect: Effect, attempt: F) -> Result<A, Error>
where
    F: Fn(Server) -> Fut,
    Fut: Future<Output = Result<Response<A>, Status>>,
{
    let options = client.options();
    let servers = client.servers();
    let deadline = Instant::now() + options.timeout;
    let mut course = Course::from(servers.preferred());
    let mut patience = options.attempt_timeout;
    let mut in_doubt = false;
    loop {
        let server = servers.get(course.current);
        let limit = patience.min(deadline.saturating_duration_since(Instant::now()));
        let (fate, leader, message) = match tokio::time::timeout(limit, attempt(server.clone())).await {
            Ok(Ok(answer)) => {
                servers.prefer(course.current);
                return Ok(answer.into_inner());
            }
            Ok(Err(status)) => match judge(&status) {
                Verdict::Final(Error::Server { code, message }) if in_doubt => {
                    return Err(Error::OutcomeUnknown(format!(
                        "it may have happened: an earlier attempt got no answer, the last one {code:?}: {message}"
                    )));
                }
                Verdict::Final(answer) => {
                    servers.prefer(course.current);
                    return Err(answer);
                }
                Verdict::Retry { fate, leader } => (fate, leader, describe(&status)),
            },
            Err(_) => {
                // Perhaps the answer is just long in coming (a very large listing).
                patience *= 2;
                (Fate::Unknown, None, format!("no answer within {limit:?}"))
            }
        };
        log::debug!("{}: {message} ({fate:?}, leader: {leader:?})", server.addr);
        in_doubt |= effect == Effect::Mutates && fate == Fate::Unknown;

        let leader = leader.and_then(|addr| client.follow(&addr));
        let new_round = course.advance(servers.count(), leader);
        if new_round {
            client.look_again(deadline).await;
        }
        let pause = pause(course.rounds, new_round, rand::random());
        let left = deadline.saturating_duration_since(Instant::now());
        // An attempt that is cut short puts into doubt what is certain now: that nothing happened.
        let worth_it = match effect {
            Effect::Mutates if !in_doubt => options.attempt_timeout.min(options.timeout / 4),
            Effect::Mutates | Effect::Reads => Duration::ZERO,
        };
        if left <= pause + worth_it {
            let doubt = if in_doubt { "it may have happened: " } else { "" };
            let message = format!(
                "{doubt}no answer within {:?} from {}; last, {}: {message}",
                options.timeout,
                servers.addresses().join(", "),
                server.addr
            );
            return Err(if in_doubt {
                Error::OutcomeUnknown(message)
            } else {
                Error::Unavailable(message)
            });
        }
        tokio::time::sleep(pause).await;
    }
}
