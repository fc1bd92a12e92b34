//! What a request may bring: one message, of so many bytes, while there is room for it.
//!
//! tonic makes room for as many bytes as a message says that it will have, before they have come, and reads
//! what comes after the one message of a unary call until its end. So the five bytes before the message (gRPC
//! over HTTP/2, "Length-Prefixed-Message") are looked at here first.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;

/// A flag, and the length in four bytes, big-endian.
const PREFIX: usize = 5;

/// Messages up to this size need no share: the bound on the number of requests bounds them.
const FREE: usize = 16 << 10;

/// The unit of the budget.
const KIB: usize = 1 << 10;

/// Bytes of large requests at once: those that do not fit wait, in the order in which they came.
#[derive(Clone, Debug)]
pub struct ByteBudget {
    free: Arc<Semaphore>,
    all: u32,
}

impl ByteBudget {
    /// So many bytes; a message that is larger takes all of them.
    pub fn new(bytes: usize) -> Self {
        let all = u32::try_from(bytes / KIB).unwrap_or(u32::MAX).max(1);
        ByteBudget {
            free: Arc::new(Semaphore::new(all as usize)),
            all,
        }
    }

    async fn take(self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX);
        // Fails when the semaphore is closed; nobody closes it.
        self.free.acquire_many_owned(wanted.min(self.all)).await.ok()
    }
}

/// A request's share of the budget, to be kept as long as its message.
pub type Charge = Arc<OnceLock<OwnedSemaphorePermit>>;

type Share = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

/// The body of a unary call: ends in `INVALID_ARGUMENT` when it is more than one message, or one of more than
/// `limit` bytes; and a large message waits for its share of the budget before it is read.
pub struct OneMessage {
    body: Body,
    limit: usize,
    budget: ByteBudget,
    charge: Charge,
    prefix: [u8; PREFIX],
    received: usize,
    waiting: Option<(Share, Bytes)>,
}

impl OneMessage {
    /// Bounds `body`; the share of its message ends up in `charge`.
    pub fn new(body: Body, limit: usize, budget: ByteBudget, charge: Charge) -> Self {
        OneMessage {
            body,
            limit,
            budget,
            charge,
            prefix: [0; PREFIX],
            received: 0,
            waiting: None,
        }
    }

    /// Takes note of what has come; whether a share is needed before it may be passed on.
    fn receive(&mut self, bytes: &[u8]) -> Result<Option<usize>, Status> {
        let known = self.received >= PREFIX;
        if !known {
            let taken = bytes.len().min(PREFIX - self.received);
            self.prefix[self.received..][..taken].copy_from_slice(&bytes[..taken]);
        }
        self.received = self.received.saturating_add(bytes.len());
        if self.received < PREFIX {
            return Ok(None);
        }
        let [_, length @ ..] = self.prefix;
        // Lossless: a platform with pointers of 16 bits has no sockets.
        let length = u32::from_be_bytes(length) as usize;
        if length > self.limit {
            return Err(Status::invalid_argument(format!(
                "request of {length} bytes, at most {} are taken",
                self.limit
            )));
        }
        if self.received > PREFIX + length {
            return Err(Status::invalid_argument("request of more than one message"));
        }
        Ok((!known && length > FREE).then_some(length))
    }
}

impl http_body::Body for OneMessage {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.waiting.is_none() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                ended => return Poll::Ready(ended),
            };
            let bytes = match frame.into_data() {
                Ok(bytes) => bytes,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            };
            match self.receive(&bytes) {
                Ok(None) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Ok(Some(length)) => {
                    let share = Box::pin(self.budget.clone().take(length));
                    self.waiting = Some((share, bytes));
                }
                Err(refused) => return Poll::Ready(Some(Err(refused))),
            }
        }
        let Some((share, bytes)) = &mut self.waiting else {
            return Poll::Ready(None);
        };
        let share = ready!(share.as_mut().poll(cx));
        let bytes = std::mem::take(bytes);
        self.waiting = None;
        if let Some(share) = share {
            // Empty till now: a body has one first message.
            let _ = self.charge.set(share);
        }
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::FutureExt;
    use futures::stream;
    use http_body::Body as _;
    use tonic::Code;

    use super::*;

    /// A body that comes in these pieces.
    struct Pieces(stream::Iter<std::vec::IntoIter<Bytes>>);

    impl http_body::Body for Pieces {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            let piece = futures::Stream::poll_next(Pin::new(&mut self.0), cx);
            piece.map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
        }
    }

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
        bytes.resize(PREFIX + length, 7);
        bytes
    }

    fn body(bytes: &[u8], piece: usize, limit: usize, budget: &ByteBudget, charge: &Charge) -> OneMessage {
        let pieces: Vec<_> = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
        let pieces = Body::new(Pieces(stream::iter(pieces)));
        OneMessage::new(pieces, limit, budget.clone(), charge.clone())
    }

    async fn read(body: &mut OneMessage) -> Result<Vec<u8>, Status> {
        let mut all = Vec::new();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            all.extend_from_slice(&frame?.into_data().unwrap());
        }
        Ok(all)
    }

    #[test]
    fn a_message_within_its_limit_passes_in_whatever_pieces_it_comes() {
        let budget = ByteBudget::new(1 << 20);
        for length in [0, 1, 100, FREE, FREE + 1, 100_000] {
            for piece in [1, 2, 5, 6, 4096, usize::MAX] {
                let charge = Charge::default();
                let bytes = message(length);
                let mut body = body(&bytes, piece, 100_000, &budget, &charge);
                let read = read(&mut body).now_or_never().unwrap().unwrap();
                assert!(read == bytes, "{length} bytes in pieces of {piece}");
                assert_eq!(charge.get().is_some(), length > FREE);
            }
        }
        assert_eq!(budget.free.available_permits(), 1024, "given back");
    }

    #[test]
    fn a_message_beyond_its_limit_is_refused_before_it_is_there() {
        let budget = ByteBudget::new(1 << 20);
        for piece in [1, 5, 100] {
            let announced = [0, 0, 0, 0, 101];
            let mut body = body(&announced, piece, 100, &budget, &Charge::default());
            let status = read(&mut body).now_or_never().unwrap().unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
            assert_eq!(status.message(), "request of 101 bytes, at most 100 are taken");
        }
    }

    #[test]
    fn a_second_message_is_refused() {
        let budget = ByteBudget::new(1 << 20);
        for piece in [1, 5, 100] {
            let mut bytes = message(10);
            bytes.extend(message(0));
            let mut body = body(&bytes, piece, 100, &budget, &Charge::default());
            let status = read(&mut body).now_or_never().unwrap().unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
        }
    }

    #[test]
    fn a_large_message_waits_until_there_is_room() {
        let budget = ByteBudget::new(100 << 10);
        let bytes = message(60 << 10);
        let [first, second] = [Charge::default(), Charge::default()];
        let mut one = body(&bytes, 4096, 1 << 20, &budget, &first);
        let mut other = body(&bytes, 4096, 1 << 20, &budget, &second);
        let mut huge = body(&message(600 << 10), 4096, 1 << 20, &budget, &Charge::default());
        assert!(read(&mut one).now_or_never().is_some());
        assert!(read(&mut other).now_or_never().is_none());
        drop(one);
        assert!(
            read(&mut other).now_or_never().is_none(),
            "its message is still there"
        );
        drop(first);
        assert!(read(&mut other).now_or_never().is_some());
        assert!(read(&mut huge).now_or_never().is_none());
        drop((other, second));
        assert!(read(&mut huge).now_or_never().is_some(), "takes all there is");
    }
}
