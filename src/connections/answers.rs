//! Answers until they have been taken: what they hold, and how much that may be.
//!
//! An answer is in memory until the last of its bytes is in the socket, however little of it the client
//! reads. So the bytes themselves hold what is let go then: the request's permit, their share of the
//! bounds, and a mark by which the connection's watch sees that they are still there.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::HeaderMap;

/// The unit of the bounds.
const KIB: usize = 1 << 10;

/// Bytes of answers that were made and not taken yet. An answer larger than a bound needs all of it.
#[derive(Clone, Copy, Debug)]
pub struct AnswerBounds {
    /// On one connection.
    pub each: usize,
    /// On all together.
    pub total: usize,
}

/// Among the extensions of an answer: held until the answer has been taken.
#[derive(Clone, Debug)]
pub struct UntilSent(
    #[allow(dead_code, reason = "what matters is when it is dropped")] Arc<OwnedSemaphorePermit>,
);

impl UntilSent {
    /// Holds this permit.
    pub fn new(permit: OwnedSemaphorePermit) -> Self {
        UntilSent(Arc::new(permit))
    }
}

/// A bound, in KiB.
#[derive(Clone, Debug)]
struct Bound {
    free: Arc<Semaphore>,
    all: u32,
}

impl Bound {
    fn new(bytes: usize) -> Self {
        let all = u32::try_from(bytes / KIB).unwrap_or(u32::MAX).max(1);
        Bound {
            free: Arc::new(Semaphore::new(all as usize)),
            all,
        }
    }

    fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX);
        self.free
            .clone()
            .try_acquire_many_owned(wanted.min(self.all))
            .ok()
    }
}

/// The answers of all connections.
pub(super) struct Total {
    total: Bound,
    each: usize,
}

impl Total {
    pub(super) fn new(bounds: AnswerBounds) -> Self {
        Total {
            total: Bound::new(bounds.total),
            each: bounds.each,
        }
    }

    /// For a new connection.
    pub(super) fn ledger(&self) -> Ledger {
        Ledger {
            total: self.total.clone(),
            own: Bound::new(self.each),
            marks: Arc::default(),
        }
    }
}

/// The answers of one connection.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    total: Bound,
    own: Bound,
    marks: Arc<Mutex<Marks>>,
}

/// Who was there when: every answer holds the mark of its time.
#[derive(Debug, Default)]
struct Marks {
    current: Arc<()>,
    before: Weak<()>,
}

impl Ledger {
    /// Whether an answer waits to be taken.
    pub(super) fn any_waiting(&self) -> bool {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::strong_count(&marks.current) > 1 || marks.before.strong_count() > 0
    }

    /// Begins a new time; whether an answer still waits that did so before the last one began.
    pub(super) fn turn(&self) -> bool {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let overdue = marks.before.strong_count() > 0;
        let ended = std::mem::take(&mut marks.current);
        marks.before = Arc::downgrade(&ended);
        overdue
    }

    fn mark(&self) -> Arc<()> {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.current.clone()
    }
}

/// Bytes of an answer, and what they hold.
struct Waiting {
    bytes: Bytes,
    _mark: Arc<()>,
    _shares: [OwnedSemaphorePermit; 2],
    _held: Option<UntilSent>,
}

impl AsRef<[u8]> for Waiting {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The body of an answer.
pub(super) struct Answer {
    body: Body,
    ledger: Ledger,
    held: Option<UntilSent>,
    refused: bool,
}

impl Answer {
    pub(super) fn new(body: Body, ledger: &Ledger, held: Option<UntilSent>) -> Self {
        Answer {
            body,
            ledger: ledger.clone(),
            held,
            refused: false,
        }
    }

    fn waiting(&self, bytes: Bytes) -> Option<Bytes> {
        let shares = [
            self.ledger.own.take(bytes.len())?,
            self.ledger.total.take(bytes.len())?,
        ];
        Some(Bytes::from_owner(Waiting {
            bytes,
            _mark: self.ledger.mark(),
            _shares: shares,
            _held: self.held.clone(),
        }))
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.refused {
            return Poll::Ready(None);
        }
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            ended => return Poll::Ready(ended),
        };
        let bytes = match frame.into_data() {
            Ok(bytes) if !bytes.is_empty() => bytes,
            Ok(empty) => return Poll::Ready(Some(Ok(Frame::data(empty)))),
            Err(other) => return Poll::Ready(Some(Ok(other))),
        };
        Poll::Ready(Some(Ok(match self.waiting(bytes) {
            Some(bytes) => Frame::data(bytes),
            None => {
                self.refused = true;
                let status = Status::resource_exhausted("too many answers wait to be read");
                let mut trailers = HeaderMap::new();
                // Fails for a message that no header can hold; this one can be held.
                let _ = status.add_header(&mut trailers);
                Frame::trailers(trailers)
            }
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.refused || self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_overdue_when_it_has_seen_two_turns() {
        let ledger = Total::new(AnswerBounds { each: 1, total: 1 }).ledger();
        assert!(!ledger.any_waiting());
        let first = ledger.mark();
        assert!(ledger.any_waiting());
        assert!(!ledger.turn());
        assert!(ledger.any_waiting());
        let second = ledger.mark();
        assert!(ledger.turn(), "the first is still there");
        drop(first);
        assert!(ledger.any_waiting());
        drop(second);
        assert!(!ledger.any_waiting());
        assert!(!ledger.turn());
    }

    #[test]
    fn bytes_hold_their_share_until_the_last_of_them_is_gone() {
        let total = Total::new(AnswerBounds {
            each: 2 * KIB,
            total: 3 * KIB,
        });
        let answer = |ledger: &Ledger| Answer::new(Body::empty(), ledger, None);
        let (one, other) = (total.ledger(), total.ledger());
        let mut first = answer(&one).waiting(Bytes::from(vec![7; KIB + 1])).unwrap();
        assert!(
            answer(&one).waiting(Bytes::from_static(b"x")).is_none(),
            "its own bound"
        );
        let small = answer(&other).waiting(Bytes::from_static(b"x")).unwrap();
        assert!(
            answer(&other).waiting(Bytes::from_static(b"x")).is_none(),
            "that of all"
        );
        let rest = first.split_off(KIB);
        drop(first);
        assert!(answer(&one).waiting(Bytes::from_static(b"x")).is_none());
        drop(rest);
        drop(small);
        let huge = answer(&one).waiting(Bytes::from(vec![7; 100 * KIB]));
        assert!(huge.is_some(), "more than there is takes all there is");
        assert!(answer(&other).waiting(Bytes::from_static(b"x")).is_none());
        drop(huge);
        assert!(answer(&other).waiting(Bytes::from_static(b"x")).is_some());
    }

    #[test]
    fn the_permit_is_held_as_long_as_the_bytes() {
        let ledger = Total::new(AnswerBounds {
            each: KIB,
            total: KIB,
        })
        .ledger();
        let requests = Arc::new(Semaphore::new(1));
        let permit = requests.clone().try_acquire_owned().unwrap();
        let answer = Answer::new(Body::empty(), &ledger, Some(UntilSent::new(permit)));
        let bytes = answer.waiting(Bytes::from_static(b"bytes")).unwrap();
        drop(answer);
        assert_eq!(requests.available_permits(), 0);
        drop(bytes);
        assert_eq!(requests.available_permits(), 1);
    }
}
