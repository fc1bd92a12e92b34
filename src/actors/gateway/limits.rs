//! The bounds on every request: how many are under way, what each may bring, and how long it may take.
//!
//! [`Limited`] wraps a gRPC service. Invariant: every call through it is answered within the bound of
//! its [`Deadline`], and no more than the given number of calls are past it at a time; a call beyond
//! that is refused at once, before its message is read. A call counts until its answer has been taken (the
//! connection's watch sees to it that this is not for ever, see [`crate::connections`]).

use std::convert::Infallible;
use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep_until, timeout_at};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{BoxFuture, Context, Poll, Service};
use tonic::server::NamedService;

use super::forward::FORWARDED_KEY;
use super::status::{Failure, status_of};
use crate::connections::{ByteBudget, Charge, Connection, OneMessage, UntilSent};
use crate::proto::grpc_timeout;

/// Asked to find out what is wrong, so they must be answered however busy the server is; they cost
/// next to nothing. Counted apart, and only so that there are not more than memory has room for.
const QUESTIONS: [&str; 2] = [
    "/dfs_project.MetaServerService/GetLeader",
    "/minfs.admin.AdminService/GetNodeStatus",
];

/// How many of them may be under way.
const QUESTIONS_AT_ONCE: usize = 8192;

/// Counted apart, so that busy clients do not make DataServers look dead.
const HEARTBEAT: &str = "/dfs_project.MetaServerService/Heartbeat";

/// Asked by those who decide whether this node gets requests.
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// The largest request, in bytes: a beat with some millions of blocks. (tonic's own limit of 4 MiB is
/// less than a DataServer with 500,000 blocks needs.)
pub(super) const MAX_REQUEST_BYTES: usize = 64 << 20;

/// The largest request that is no beat: it names a path of 4 KiB and little else, but a path that is too
/// long is to be told so.
const MAX_OTHER_BYTES: usize = 1 << 20;

/// The largest of [`QUESTIONS`], which say nothing.
const MAX_QUESTION_BYTES: usize = 4 << 10;

/// Bytes of beats at once, and of other requests. Decoded, block ids take up to eight times as much.
const BEATS_BYTES: usize = 2 * MAX_REQUEST_BYTES;
const OTHERS_BYTES: usize = 64 << 20;

/// When a request must have been answered.
///
/// Everybody on the way gives up a little before the one that asked it, so that the one who knows
/// most gets to say what happened: first the neighbours, then the handler, then [`Limited`], and last
/// the client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    end: Instant,
    margin: Duration,
}

impl Deadline {
    /// Of a request that came now and must be answered within `bound`.
    pub(super) fn within(bound: Duration) -> Self {
        Deadline {
            end: Instant::now() + bound,
            margin: (bound / 8).min(Duration::from_millis(100)),
        }
    }

    /// Until when the gateway's neighbours may take.
    pub(super) fn for_neighbours(&self) -> Instant {
        self.end - self.margin
    }

    /// Until when the handler waits for them.
    pub(super) fn for_handler(&self) -> Instant {
        self.end - self.margin / 2
    }

    /// When [`Limited`] answers in place of a handler that did not.
    fn for_wrapper(&self) -> Instant {
        self.end - self.margin / 4
    }
}

/// What requests may take, all together.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    requests: Arc<Semaphore>,
    questions: Arc<Semaphore>,
    heartbeats: Arc<Semaphore>,
    beats_bytes: ByteBudget,
    others_bytes: ByteBudget,
    request_timeout: Duration,
    whole_answers: bool,
}

/// What one request may take.
struct Leave {
    permit: OwnedSemaphorePermit,
    /// Of its message.
    most_bytes: usize,
    budget: ByteBudget,
}

impl Limits {
    pub(super) fn new(max_in_flight: usize, request_timeout: Duration) -> Self {
        let as_many = || Arc::new(Semaphore::new(max_in_flight));
        Limits {
            requests: as_many(),
            questions: Arc::new(Semaphore::new(QUESTIONS_AT_ONCE)),
            heartbeats: as_many(),
            beats_bytes: ByteBudget::new(BEATS_BYTES),
            others_bytes: ByteBudget::new(OTHERS_BYTES),
            request_timeout,
            whole_answers: false,
        }
    }

    /// The request's time holds for its whole answer, and not only for its beginning: for streams that
    /// nobody needs for long.
    pub(super) fn of_whole_answers(self) -> Self {
        Limits {
            whole_answers: true,
            ..self
        }
    }

    /// Lets a call in.
    fn admit(&self, path: &str) -> Result<Leave, Failure> {
        let (among, most_bytes, budget) = match path {
            path if QUESTIONS.contains(&path) => (&self.questions, MAX_QUESTION_BYTES, &self.others_bytes),
            HEARTBEAT => (&self.heartbeats, MAX_REQUEST_BYTES, &self.beats_bytes),
            _ => (&self.requests, MAX_OTHER_BYTES, &self.others_bytes),
        };
        let permit = among.clone().try_acquire_owned();
        Ok(Leave {
            permit: permit.map_err(|_| Failure::TooManyRequests)?,
            most_bytes,
            budget: budget.clone(),
        })
    }
}

/// Whether a request is answered even on a connection that is one too many.
fn is_urgent(request: &Request<Body>) -> bool {
    let path = request.uri().path();
    QUESTIONS.contains(&path)
        || [HEARTBEAT, HEALTH].contains(&path)
        || request.headers().contains_key(FORWARDED_KEY)
}

/// A gRPC service within bounds.
#[derive(Clone, Debug)]
pub(super) struct Limited<S> {
    inner: S,
    limits: Limits,
}

impl<S> Limited<S> {
    pub(super) fn new(inner: S, limits: Limits) -> Self {
        Limited { inner, limits }
    }

    fn admit(&self, request: &Request<Body>) -> Result<Leave, Failure> {
        let connection = request.extensions().get::<Arc<Connection>>();
        if connection.is_some_and(|connection| connection.is_excess()) && !is_urgent(request) {
            return Err(Failure::TooManyConnections);
        }
        self.limits.admit(request.uri().path())
    }
}

impl<S: NamedService> NamedService for Limited<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Limited<S>
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
        let Leave {
            permit,
            most_bytes,
            budget,
        } = match self.admit(&request) {
            Ok(leave) => leave,
            Err(refused) => return Box::pin(ready(Ok(status_of(refused, None).into_http()))),
        };
        let asked = grpc_timeout(request.headers()).unwrap_or(Duration::MAX);
        let deadline = Deadline::within(asked.min(self.limits.request_timeout));
        request.extensions_mut().insert(deadline);
        let charge = Charge::default();
        let kept = charge.clone();
        let request = request.map(|body| Body::new(OneMessage::new(body, most_bytes, budget, charge)));
        let whole_answers = self.limits.whole_answers;
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = timeout_at(deadline.for_wrapper().into(), answer).await;
            drop(kept);
            let mut answer = match answer {
                Ok(Ok(answer)) => answer,
                Err(_) => status_of(Failure::TooSlow, None).into_http(),
            };
            if whole_answers {
                answer = answer.map(|body| Body::new(Until::new(body, deadline)));
            }
            answer.extensions_mut().insert(UntilSent::new(permit));
            Ok(answer)
        })
    }
}

/// An answer that ends in time.
struct Until {
    body: Body,
    end: Pin<Box<Sleep>>,
    over: bool,
}

impl Until {
    fn new(body: Body, deadline: Deadline) -> Self {
        Until {
            body,
            end: Box::pin(sleep_until(deadline.for_wrapper().into())),
            over: false,
        }
    }
}

impl http_body::Body for Until {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if self.end.as_mut().poll(cx).is_pending() {
            return Pin::new(&mut self.body).poll_frame(cx);
        }
        self.over = true;
        let mut trailers = HeaderMap::new();
        // Fails for a message that no header can hold; this one can be held.
        let _ = status_of(Failure::TooSlow, None).add_header(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gives_up_before_the_one_that_asked_it() {
        for bound in [Duration::from_millis(1), Duration::from_secs(5), Duration::ZERO] {
            let deadline = Deadline::within(bound);
            assert!(deadline.for_neighbours() <= deadline.for_handler());
            assert!(deadline.for_handler() <= deadline.for_wrapper());
            assert!(deadline.for_wrapper() <= deadline.end);
        }
        let deadline = Deadline::within(Duration::from_secs(5));
        assert_eq!(
            deadline.end - deadline.for_neighbours(),
            Duration::from_millis(100)
        );
    }

    #[test]
    fn admits_up_to_the_bound() {
        let limits = Limits::new(1, Duration::from_secs(5));
        let create = "/dfs_project.MetaServerService/CreateNode";
        let held = limits.admit(create);
        assert!(held.is_ok());
        assert!(matches!(limits.admit(create), Err(Failure::TooManyRequests)));
        for counted_apart in [HEARTBEAT, QUESTIONS[0], QUESTIONS[1]] {
            assert!(limits.admit(counted_apart).is_ok(), "{counted_apart}");
        }
        drop(held);
        assert!(limits.admit(create).is_ok());
    }

    /// Keeps the deadline that it was given, and never answers.
    #[derive(Clone, Default)]
    struct Silent(Arc<std::sync::Mutex<Option<Deadline>>>);

    impl Service<Request<Body>> for Silent {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Pending<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            *self.0.lock().unwrap() = request.extensions().get().copied();
            std::future::pending()
        }
    }

    #[actix::test]
    async fn a_handler_that_never_answers_is_answered_for() {
        let tenth = Duration::from_millis(100);
        let hour = Duration::from_secs(3600);
        for (timeout, asked) in [(tenth, None), (tenth, Some("1H")), (hour, Some("100m"))] {
            let silent = Silent::default();
            let limits = Limits::new(1, timeout);
            let mut limited = Limited::new(silent.clone(), limits.clone());
            let mut request = Request::new(Body::empty());
            if let Some(asked) = asked {
                request
                    .headers_mut()
                    .insert("grpc-timeout", asked.parse().unwrap());
            }
            let latest = Instant::now() + Duration::from_secs(1);
            let answer = limited.call(request);
            assert_eq!(limits.requests.available_permits(), 0);
            let answer = timeout_at((Instant::now() + Duration::from_secs(20)).into(), answer).await;
            let answer = answer.unwrap().unwrap();
            let status = Status::from_header_map(answer.headers()).unwrap();
            assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
            assert!(
                silent.0.lock().unwrap().unwrap().end < latest,
                "the shorter one counts"
            );
            assert_eq!(limits.requests.available_permits(), 0, "it is still to be sent");
            drop(answer);
            assert_eq!(limits.requests.available_permits(), 1);
        }
    }
}
