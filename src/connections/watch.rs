//! What a connection is closed for, besides being broken: pure, but for what it asks the connection.

use std::time::{Duration, Instant};

use std::sync::atomic::Ordering;

use super::{Bounds, Connection};

/// How long a connection that was asked to go may take.
const PARTING: Duration = Duration::from_secs(5);

/// What is to be done with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing; to be looked at again then, if not before.
    Fine(Option<Instant>),
    /// Tell it to go, once what is under way is answered. Not said twice.
    Part,
    /// Close it.
    Close,
}

/// Looks after one connection.
pub(super) struct Watch {
    /// When it must have spoken HTTP/2; none: it has.
    greeting: Option<Instant>,
    /// When it must be trusted; none: it is, or need not.
    strangers: Option<Instant>,
    /// When it must go.
    part: Option<Instant>,
    /// When it must be gone.
    gone: Option<Instant>,
    /// When answers are looked at next; none: none waits.
    turn: Option<Instant>,
    answer_time: Duration,
}

impl Watch {
    pub(super) fn new(bounds: &Bounds, excess: bool, now: Instant) -> Self {
        Watch {
            greeting: Some(now + bounds.greeting),
            strangers: bounds.strangers.map(|time| now + time),
            part: excess.then(|| now + bounds.excess_time),
            gone: None,
            turn: None,
            answer_time: bounds.answer_time,
        }
    }

    pub(super) fn look(&mut self, connection: &Connection, now: Instant) -> Verdict {
        let over = |end: Option<Instant>| end.is_some_and(|end| end <= now);
        if self.greeting.is_some() && connection.progress.greeted() {
            self.greeting = None;
        }
        if self.strangers.is_some() && connection.trusted.load(Ordering::Relaxed) {
            self.strangers = None;
        }
        let full_until = connection
            .progress
            .full_since()
            .map(|since| since + self.answer_time);
        if over(self.greeting) || over(self.gone) || over(full_until) {
            return Verdict::Close;
        }
        if over(self.strangers) || over(self.part) {
            (self.strangers, self.part) = (None, None);
            self.gone = Some(now + PARTING);
            return Verdict::Part;
        }
        match self.turn {
            None if connection.answers.any_waiting() => {
                // Whatever waits now began to wait in a time that ends now.
                connection.answers.turn();
                self.turn = Some(now + self.answer_time);
            }
            Some(turn) if turn <= now => {
                if connection.answers.turn() {
                    return Verdict::Close;
                }
                self.turn = connection.answers.any_waiting().then(|| now + self.answer_time);
            }
            None | Some(_) => {}
        }
        let ends = [
            self.greeting,
            self.strangers,
            self.part,
            self.gone,
            self.turn,
            full_until,
        ];
        Verdict::Fine(ends.into_iter().flatten().min())
    }
}
