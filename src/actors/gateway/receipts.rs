//! Which answers reached their clients: of requests that name no request id and may come again.
//!
//! [`Receipted`] wraps the contract's service and watches each answer to its end; the gateway's actor is
//! asked by leaders that have to tell a repeat from a second request (`raft_node::repeats`).
//!
//! Invariant: an answer counts as lost only if it was not handed to the connection whole, or did not say
//! that the request had succeeded; whatever is forgotten counts as delivered.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::ready;
use std::time::{Duration, Instant};

use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Bytes, Context, Poll, Service};
use tonic::server::NamedService;

use crate::actors::raft_node::messages::ClaimAnswer;
use crate::domain::command::Origin;

/// The requests that may be told from their repeats.
const RECEIPTED: [&str; 2] = [
    "/dfs_project.MetaServerService/CreateNode",
    "/dfs_project.MetaServerService/DeleteNode",
];

/// For how long it is remembered what became of an answer: longer than a request takes, and then longer
/// than its effect is remembered.
const KEPT: Duration = Duration::from_secs(20);

/// Of how many answers it is remembered.
const MOST: usize = 1 << 18;

/// What became of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is on its way.
    Pending,
    Delivered,
    Lost,
    /// It was lost, and a repeat has got it.
    Given(Origin),
}

/// The answers of one gateway.
pub(super) struct Receipts {
    gateway: u64,
    /// The first number that this process has drawn; smaller and much larger ones are those of others.
    first: u64,
    recent: Mutex<Recent>,
}

struct Recent {
    /// The number of the oldest one.
    oldest: u64,
    fates: VecDeque<(Instant, Fate)>,
}

impl Receipts {
    /// For the gateway of the node with this Raft node id.
    pub(super) fn new(gateway: u64) -> Arc<Self> {
        // Not those of this node's last process, whose answers died with it.
        let first = u64::from(rand::random::<u32>()) << 31;
        Arc::new(Receipts {
            gateway,
            first,
            recent: Mutex::new(Recent {
                oldest: first,
                fates: VecDeque::new(),
            }),
        })
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self, now: Instant) -> u64 {
        let mut recent = self.recent();
        while let Some((at, _)) = recent.fates.front()
            && (recent.fates.len() >= MOST || now.saturating_duration_since(*at) > KEPT)
        {
            recent.fates.pop_front();
            recent.oldest += 1;
        }
        recent.fates.push_back((now, Fate::Pending));
        recent.oldest + recent.fates.len() as u64 - 1
    }

    fn settle(&self, number: u64, fate: Fate) {
        if let Some(pending) = self.recent().fate(number) {
            *pending = fate;
        }
    }

    /// See [`ClaimAnswer`].
    pub(super) fn claim(&self, ClaimAnswer { number, by }: ClaimAnswer) -> bool {
        let mut recent = self.recent();
        let drawn = recent.oldest + recent.fates.len() as u64;
        if !(self.first..drawn).contains(&number) {
            return true; // by an earlier process
        }
        let Some(fate) = recent.fate(number) else {
            return false;
        };
        if *fate == Fate::Lost {
            *fate = Fate::Given(by);
        }
        *fate == Fate::Given(by)
    }
}

impl Recent {
    fn fate(&mut self, number: u64) -> Option<&mut Fate> {
        let at = usize::try_from(number.checked_sub(self.oldest)?).ok()?;
        Some(&mut self.fates.get_mut(at)?.1)
    }
}

/// The receipt of one request, for its handler: an extension of the request.
#[derive(Clone)]
pub(super) struct Receipt {
    receipts: Arc<Receipts>,
    number: Arc<OnceLock<u64>>,
    succeeded: Arc<AtomicBool>,
}

impl Receipt {
    /// Where the request, which came from `peer`, is said to come from.
    pub(super) fn draw(&self, peer: IpAddr) -> Origin {
        let number = self.number.get_or_init(|| self.receipts.draw(Instant::now()));
        Origin {
            peer,
            gateway: self.receipts.gateway,
            number: *number,
        }
    }

    /// The answer says that the request succeeded.
    pub(super) fn succeeded(&self) {
        self.succeeded.store(true, Ordering::Relaxed);
    }
}

/// Belongs to the answer: dropped before the answer's end, it counts as lost.
struct Watch(Option<Receipt>);

impl Watch {
    fn ended(&mut self) {
        self.settle(|succeeded| if succeeded { Fate::Delivered } else { Fate::Lost });
    }

    fn settle(&mut self, fate: impl FnOnce(bool) -> Fate) {
        if let Some(receipt) = self.0.take()
            && let Some(number) = receipt.number.get()
        {
            let succeeded = receipt.succeeded.load(Ordering::Relaxed);
            receipt.receipts.settle(*number, fate(succeeded));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.settle(|_| Fate::Lost);
    }
}

/// A gRPC service whose answers are watched.
#[derive(Clone)]
pub(super) struct Receipted<S> {
    inner: S,
    receipts: Arc<Receipts>,
}

impl<S> Receipted<S> {
    pub(super) fn new(inner: S, receipts: Arc<Receipts>) -> Self {
        Receipted { inner, receipts }
    }
}

impl<S: NamedService> NamedService for Receipted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Receipted<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if !RECEIPTED.contains(&request.uri().path()) {
            return Box::pin(self.inner.call(request));
        }
        let receipt = Receipt {
            receipts: self.receipts.clone(),
            number: Arc::default(),
            succeeded: Arc::default(),
        };
        request.extensions_mut().insert(receipt.clone());
        let watch = Watch(Some(receipt));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let watch = watch;
            Ok(answer.await?.map(|body| Body::new(Watched { body, watch })))
        })
    }
}

/// An answer on its way to the connection.
struct Watched {
    body: Body,
    watch: Watch,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        // The trailers are the last that is asked for.
        let last = match &frame {
            None => true,
            Some(Ok(frame)) => frame.is_trailers(),
            Some(Err(_)) => false,
        };
        if last {
            self.watch.ended();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn by(number: u64) -> Origin {
        Origin {
            peer: Ipv4Addr::LOCALHOST.into(),
            gateway: 2,
            number,
        }
    }

    fn claim(receipts: &Receipts, number: u64, repeat: u64) -> bool {
        receipts.claim(ClaimAnswer {
            number,
            by: by(repeat),
        })
    }

    #[test]
    fn only_what_was_lost_is_given_and_only_to_one() {
        let receipts = Receipts::new(1);
        let now = Instant::now();
        let [pending, delivered, lost] = [(); 3].map(|()| receipts.draw(now));
        receipts.settle(delivered, Fate::Delivered);
        receipts.settle(lost, Fate::Lost);
        assert!(!claim(&receipts, pending, 1));
        assert!(!claim(&receipts, delivered, 1));
        assert!(claim(&receipts, lost, 1));
        assert!(claim(&receipts, lost, 1), "the same repeat, asked for again");
        assert!(!claim(&receipts, lost, 2));
    }

    #[test]
    fn what_is_forgotten_counts_as_delivered_and_what_another_process_took_as_lost() {
        let receipts = Receipts::new(1);
        let now = Instant::now();
        let old = receipts.draw(now);
        receipts.settle(old, Fate::Lost);
        let new = receipts.draw(now + KEPT + Duration::from_secs(1));
        receipts.settle(new, Fate::Lost);
        assert!(!claim(&receipts, old, 1), "forgotten");
        assert!(claim(&receipts, new, 1));
        assert!(claim(&receipts, receipts.first.wrapping_sub(1), 1));
        assert!(claim(&receipts, new + 1, 1));
        let oldest = receipts.recent().oldest;
        for _ in 0..MOST {
            receipts.draw(now);
        }
        assert_eq!(receipts.recent().fates.len(), MOST);
        assert!(receipts.recent().oldest > oldest);
    }

    /// Answers OK, and marks its request as `marks` says.
    #[derive(Clone)]
    struct Answering {
        succeeds: bool,
    }

    impl Service<Request<Body>> for Answering {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            let receipt = request.extensions().get::<Receipt>().unwrap();
            receipt.draw(Ipv4Addr::LOCALHOST.into());
            if self.succeeds {
                receipt.succeeded();
            }
            std::future::ready(Ok(Response::new(Body::new(String::from("answer")))))
        }
    }

    #[actix::test]
    async fn an_answer_is_delivered_when_it_was_handed_over_whole() {
        let delivered = async |succeeds, read| {
            let receipts = Receipts::new(1);
            let mut service = Receipted::new(Answering { succeeds }, receipts.clone());
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = RECEIPTED[0].parse().unwrap();
            let answer = service.call(request).await.unwrap();
            let mut body = answer.into_body();
            if read {
                while std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx))
                    .await
                    .is_some()
                {}
            }
            drop(body);
            let number = receipts.first;
            !claim(&receipts, number, 1)
        };
        assert!(delivered(true, true).await);
        assert!(!delivered(true, false).await, "dropped on the way");
        assert!(
            !delivered(false, true).await,
            "it said that the outcome is unknown"
        );
    }
}
