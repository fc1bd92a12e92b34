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
    waiting: Vec<WaitingRead>,
    under_way: bool,
}

impl Rounds {
    /// How many wait for the next round.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Adds a read to the next round.
    pub fn push(&mut self, read: WaitingRead) {
        self.waiting.push(read);
    }

    /// Begins a round for all that wait, unless one is under way or nobody waits.
    pub fn begin(&mut self, now: Instant) -> Option<Vec<WaitingRead>> {
        self.waiting
            .retain(|read| !read.answer.is_closed() && read.deadline > now);
        if self.under_way || self.waiting.is_empty() {
            return None;
        }
        self.under_way = true;
        Some(std::mem::take(&mut self.waiting))
    }

    /// The round is over; those that it gave no leave wait for the next one.
    pub fn end(&mut self, left: Vec<WaitingRead>) {
        self.under_way = false;
        self.waiting.extend(left);
    }

    /// Takes those that came from peers: this node does not lead, and must not forward them.
    pub fn take_forwarded(&mut self) -> Vec<WaitingRead> {
        let (forwarded, own) = self.waiting.drain(..).partition(|read| read.forwarded);
        self.waiting = own;
        forwarded
    }
}
