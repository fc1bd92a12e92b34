//! The door of `raft_addr`: what is looked at before a call's message is.
//!
//! Both peer services stand behind a [`Guarded`]. Peers are trusted; whoever else finds the port must not
//! be able to exhaust the node. So a call that does not say the right things about itself (see
//! [`call_metadata`]) is refused before its message is read, and one that need not (who are you?, you are
//! ours) may be small, and there are few of them at once. Invariant: every unary call through it is answered
//! within [`LONGEST_CALL`], and connections that nobody vouches for do not stay.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{BoxFuture, Context, Poll, Service};
use tonic::server::NamedService;

use super::call_metadata;
use super::channels::MAX_MESSAGE_BYTES;
use super::identity::Identity;
use crate::connections::{ByteBudget, Charge, Connection, OneMessage, UntilSent};
use crate::proto::grpc_timeout;

/// Need no metadata: they are how nodes get to know each other.
const OF_STRANGERS: [&str; 2] = [
    "/minfs.raft.PeerService/Identify",
    "/minfs.raft.PeerService/Claim",
];

/// Of any length; each stays open as long as a peer wants it.
const STREAMS: [&str; 3] = [
    "/minfs.raft.PeerService/ReadIndex",
    "/minfs.raft.RaftService/AppendStream",
    "/minfs.raft.RaftService/InstallSnapshot",
];

/// How long a unary call may take whatever it says.
pub const LONGEST_CALL: Duration = Duration::from_secs(60);

/// What strangers send at most, in bytes; how many of their calls are under way, and for how long.
const STRANGERS_MESSAGE: usize = 4 << 10;
const STRANGERS_CALLS: usize = 64;
const STRANGERS_CALL: Duration = Duration::from_secs(5);

/// Streams at once. A peer has one for its log, one for heartbeats, one for a snapshot and one for its reads.
const STREAMS_AT_ONCE: usize = 64;

/// Bytes of large messages at once.
const LARGE_MESSAGES: usize = 4 * MAX_MESSAGE_BYTES;

/// What calls on `raft_addr` may take, all together.
#[derive(Clone, Debug)]
pub struct Guard {
    identity: Identity,
    strangers: Arc<Semaphore>,
    calls: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    large: ByteBudget,
}

/// What a call may take.
struct Leave {
    among: Arc<Semaphore>,
    /// Of its message; none: it is a stream of messages.
    bytes: Option<usize>,
    time: Option<Duration>,
}

impl Guard {
    /// For the node of this identity, which lets in so many calls of its peers at once.
    pub fn new(identity: Identity, calls: usize) -> Self {
        Guard {
            identity,
            strangers: Arc::new(Semaphore::new(STRANGERS_CALLS)),
            calls: Arc::new(Semaphore::new(calls)),
            streams: Arc::new(Semaphore::new(STREAMS_AT_ONCE)),
            large: ByteBudget::new(LARGE_MESSAGES),
        }
    }

    /// Puts a service behind this guard.
    pub fn guard<S>(&self, inner: S) -> Guarded<S> {
        Guarded {
            inner,
            guard: self.clone(),
        }
    }

    fn leave(
        &self,
        path: &str,
        headers: &HeaderMap,
        connection: Option<&Connection>,
    ) -> Result<Leave, Status> {
        if OF_STRANGERS.contains(&path) {
            return Ok(Leave {
                among: self.strangers.clone(),
                bytes: Some(STRANGERS_MESSAGE),
                time: Some(STRANGERS_CALL),
            });
        }
        call_metadata::check(&self.identity, headers)?;
        if let Some(connection) = connection {
            connection.trust();
        }
        Ok(match STREAMS.contains(&path) {
            true => Leave {
                among: self.streams.clone(),
                bytes: None,
                time: None,
            },
            false => Leave {
                among: self.calls.clone(),
                bytes: Some(MAX_MESSAGE_BYTES),
                time: Some(grpc_timeout(headers).unwrap_or(LONGEST_CALL).min(LONGEST_CALL)),
            },
        })
    }
}

/// A service behind a [`Guard`].
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    inner: S,
    guard: Guard,
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Guarded<S>
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

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let refused = |status: Status| Box::pin(ready(Ok(status.into_http())));
        let connection = request.extensions().get::<Arc<Connection>>().map(Arc::as_ref);
        let leave = match self
            .guard
            .leave(request.uri().path(), request.headers(), connection)
        {
            Ok(leave) => leave,
            Err(status) => return refused(status),
        };
        let Ok(permit) = leave.among.try_acquire_owned() else {
            return refused(Status::resource_exhausted("too many calls of peers in flight"));
        };
        let charge = Charge::default();
        let answer = self.inner.call(request.map(|body| match leave.bytes {
            Some(limit) => Body::new(OneMessage::new(
                body,
                limit,
                self.guard.large.clone(),
                charge.clone(),
            )),
            None => body,
        }));
        Box::pin(async move {
            let answer = match leave.time {
                Some(time) => timeout(time, answer).await,
                None => Ok(answer.await),
            };
            drop(charge);
            let mut answer = match answer {
                Ok(Ok(answer)) => answer,
                Err(_) => Status::deadline_exceeded("the call took too long").into_http(),
            };
            answer.extensions_mut().insert(UntilSent::new(permit));
            Ok(answer)
        })
    }
}
