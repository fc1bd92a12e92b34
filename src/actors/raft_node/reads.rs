//! The reads that wait for leave, and the rounds that give it.
//!
//! Invariant: a read gets leave only from a round that began after it arrived. All that arrive while
//! a round is under way share the next one, so that one confirmation by a majority serves many reads
//! (Ongaro's dissertation, §6.4).

use std::time::Instant;

use tokio::sync::oneshot;

use super::messages::ReadError;

/// A read that waits for a log index, and the one who asks.
pub struct WaitingRead {
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// It came from a peer, and is not forwarded again.
    pub forwarded: bool,
    answer: oneshot::Sender<Result<u64, ReadError>>,
}

impl WaitingRead {
    /// A read, and where its answer arrives.
    pub fn new(deadline: Instant, forwarded: bool) -> (Self, oneshot::Receiver<Result<u64, ReadError>>) {
        let (sender, receiver) = oneshot::channel();
        (
            WaitingRead {
                deadline,
                forwarded,
                answer: sender,
            },
            receiver,
        )
    }

    /// Answers it.
    pub fn answer(self, answer: Result<u64, ReadError>) {
        // Nobody may be waiting any more.
        let _ = self.answer.send(answer);
    }
}

/// The reads that wait, and whether a round is under way.
#[derive(Default)]
pub struct Rounds {
    /// Of this node's clients.
    own: Vec<WaitingRead>,
    /// Of peers.
    forwarded: Vec<WaitingRead>,
    under_way: bool,
}

impl Rounds {
    /// How many wait for the next round.
    pub fn len(&self) -> usize {
        self.own.len() + self.forwarded.len()
    }

    /// Adds a read to the next round.
    pub fn push(&mut self, read: WaitingRead) {
        match read.forwarded {
            true => self.forwarded.push(read),
            false => self.own.push(read),
        }
    }

    /// Begins a round for all that wait, unless one is under way or nobody waits.
    pub fn begin(&mut self, now: Instant) -> Option<Vec<WaitingRead>> {
        // Asked for every read that arrives: while a round is under way they are not even looked at.
        if self.under_way {
            return None;
        }
        let mut round = std::mem::take(&mut self.own);
        round.append(&mut self.forwarded);
        round.retain(|read| !read.answer.is_closed() && read.deadline > now);
        self.under_way = !round.is_empty();
        self.under_way.then_some(round)
    }

    /// The round is over; those that it gave no leave wait for the next one.
    pub fn end(&mut self, left: Vec<WaitingRead>) {
        self.under_way = false;
        left.into_iter().for_each(|read| self.push(read));
    }

    /// Takes those that came from peers: this node does not lead, and must not forward them.
    pub fn take_forwarded(&mut self) -> Vec<WaitingRead> {
        std::mem::take(&mut self.forwarded)
    }
}
