//! The bounds on every request: how many are under way, and how long each may take.
//!
//! [`Limited`] wraps a gRPC service. Invariant: every call through it is answered within the bound of
//! its [`Deadline`], and no more than the given number of calls are past it at a time; a call beyond
//! that is refused at once, before its message is read.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout_at;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Context, Poll, Service};
use tonic::server::NamedService;

use super::status::{Failure, status_of};
use crate::proto::grpc_timeout;

/// Asked to find out what is wrong, so they must be answered however busy the server is; they cost
/// next to nothing.
const ALWAYS_ANSWERED: [&str; 2] = [
    "/dfs_project.MetaServerService/GetLeader",
    "/minfs.admin.AdminService/GetNodeStatus",
];

/// Counted apart, so that busy clients do not make DataServers look dead.
const HEARTBEAT: &str = "/dfs_project.MetaServerService/Heartbeat";

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

/// How many requests may be under way.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    requests: Arc<Semaphore>,
    heartbeats: Arc<Semaphore>,
    request_timeout: Duration,
}

impl Limits {
    pub(super) fn new(max_in_flight: usize, request_timeout: Duration) -> Self {
        Limits {
            requests: Arc::new(Semaphore::new(max_in_flight)),
            heartbeats: Arc::new(Semaphore::new(max_in_flight)),
            request_timeout,
        }
    }

    /// Lets a call in; `Ok(None)` for those that are always answered.
    fn admit(&self, path: &str) -> Result<Option<OwnedSemaphorePermit>, Failure> {
        let among = match path {
            path if ALWAYS_ANSWERED.contains(&path) => return Ok(None),
            HEARTBEAT => &self.heartbeats,
            _ => &self.requests,
        };
        let permit = among.clone().try_acquire_owned();
        permit.map(Some).map_err(|_| Failure::TooManyRequests)
    }
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
        let permit = match self.limits.admit(request.uri().path()) {
            Ok(permit) => permit,
            Err(refused) => return Box::pin(ready(Ok(status_of(refused, None).into_http()))),
        };
        let asked = grpc_timeout(request.headers()).unwrap_or(Duration::MAX);
        let deadline = Deadline::within(asked.min(self.limits.request_timeout));
        request.extensions_mut().insert(deadline);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let _permit = permit;
            match timeout_at(deadline.for_wrapper().into(), answer).await {
                Ok(answer) => answer,
                Err(_) => Ok(status_of(Failure::TooSlow, None).into_http()),
            }
        })
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
        let held = limits.admit(create).unwrap();
        assert!(held.is_some());
        assert!(matches!(limits.admit(create), Err(Failure::TooManyRequests)));
        assert!(limits.admit(HEARTBEAT).unwrap().is_some(), "counted apart");
        for path in ALWAYS_ANSWERED {
            assert!(limits.admit(path).unwrap().is_none());
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
            let status = tonic::Status::from_header_map(answer.unwrap().unwrap().headers()).unwrap();
            assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
            assert!(
                silent.0.lock().unwrap().unwrap().end < latest,
                "the shorter one counts"
            );
            assert_eq!(limits.requests.available_permits(), 1);
        }
    }
}
