//! gRPC connections within bounds: how both servers, the clients' and the peers', accept and serve them.
//!
//! Whoever connects may be slow, silent, broken or hostile. [`serve`] keeps what each connection may take:
//! so many connections at once ([`Bounds`]), so much time to begin and to take its answers
//! (`watch`), so many bytes of answers that nobody has read yet (`answers`). `requests` bounds what a
//! request may bring. The services on top bound how many requests are under way.
//!
//! tonic's own server accepts without a bound, waits for ever for a connection's first byte, keeps
//! answers that are not read, and lets hyper count no reset streams; so its services are put on hyper's
//! HTTP/2 here. Invariant: nothing that a connection does or leaves undone makes this process hold more
//! than its bounds say, and a connection that does not keep them is closed, without a word in the log
//! for each.

mod answers;
mod descriptors;
mod requests;
mod socket;
#[cfg(test)]
mod tests;
mod threads;
mod watch;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch as news};
use tokio::time::sleep_until;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::service::Routes;
use tonic::transport::server::TcpConnectInfo;

use answers::Answer;
pub use answers::{AnswerBounds, UntilSent};
pub use descriptors::{Fit, fit};
pub use requests::{ByteBudget, Charge, OneMessage};
use socket::{Progress, Socket};
pub use threads::Threads;
use watch::{Verdict, Watch};

use crate::logging::Seldom;

/// The longest header block of a request, in bytes, as HTTP/2 counts them.
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// Streams of one connection that were reset before anyone looked at them, or because of their sender's
/// mistakes; more close it (CVE-2023-44487, RUSTSEC-2024-0003).
const MAX_RESET_STREAMS: usize = 100;
const MAX_MISTAKEN_STREAMS: usize = 1024;

/// How long to wait when nothing can be accepted; the usual reason, no file descriptors, takes time.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// What one server's connections may take.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Connections that are served.
    pub connections: usize,
    /// Connections beyond these that are served for a short time, marked [`Connection::is_excess`], so that
    /// their requests can be refused with a status. Others are closed at once.
    pub excess: usize,
    /// Requests at once on one connection.
    pub streams: u32,
    /// Bytes that may be under way to this server on one stream.
    pub stream_window: u32,
    /// Bytes that may be under way to this server on one connection.
    pub connection_window: u32,
    /// How long without a sign of life until the other side is asked for one, and how long it may take.
    pub keepalive: (Duration, Duration),
    /// How long a connection may take until it has said that it speaks HTTP/2.
    pub greeting: Duration,
    /// How long a connection is served that no service has called [`Connection::trust`] for; `None`: for
    /// ever.
    pub strangers: Option<Duration>,
    /// How long an excess connection is served.
    pub excess_time: Duration,
    /// How long an answer may wait until its receiver has taken it, at least; after twice the time at most
    /// its connection is closed.
    pub answer_time: Duration,
    /// Bytes of answers that have not been taken.
    pub answers: AnswerBounds,
}

/// A connection, as its services see it: among the extensions of every request.
#[derive(Debug)]
pub struct Connection {
    excess: bool,
    trusted: AtomicBool,
    progress: Progress,
    answers: answers::Ledger,
}

impl Connection {
    fn new(excess: bool, answers: answers::Ledger) -> Self {
        Connection {
            excess,
            trusted: AtomicBool::new(false),
            progress: Progress::new(),
            answers,
        }
    }

    /// Whether it is beyond [`Bounds::connections`], and only there to be refused politely.
    pub fn is_excess(&self) -> bool {
        self.excess
    }

    /// It is no stranger: it may stay.
    pub fn trust(&self) {
        self.trusted.store(true, Ordering::Relaxed);
    }
}

/// Serves `routes` on `listener` until `stop` is there, then until every request is answered. Connections
/// are served on `threads`.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    bounds: Bounds,
    threads: Threads,
    stop: impl Future<Output = ()>,
) {
    let server = Arc::new(Server::new(routes.prepare(), bounds));
    let (stopping, stopped) = news::channel(());
    {
        // Closed before the last requests are waited for: whoever connects then is told at once.
        let listener = listener;
        let mut stop = pin!(stop);
        let failures = Seldom::default();
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, address)) => server.accept(socket, address, &threads, stopped.clone()),
                Err(error) => {
                    if failures.may_speak() {
                        log::warn!("cannot accept connections: {error}");
                    }
                    tokio::select! {
                        () = &mut stop => break,
                        () = tokio::time::sleep(ACCEPT_AGAIN) => {}
                    }
                }
            }
        }
    }
    drop(stopped);
    // Nobody listens: every connection has ended already.
    let _ = stopping.send(());
    stopping.closed().await;
}

/// What all connections of a listener share.
struct Server {
    routes: Routes,
    bounds: Arc<Bounds>,
    builder: Builder<TokioExecutor>,
    served: Arc<Semaphore>,
    excess: Arc<Semaphore>,
    answers: answers::Total,
    full: Seldom,
}

impl Server {
    fn new(routes: Routes, bounds: Bounds) -> Self {
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(bounds.streams)
            .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
            .max_local_error_reset_streams(MAX_MISTAKEN_STREAMS)
            .max_header_list_size(MAX_HEADER_BYTES)
            .initial_stream_window_size(bounds.stream_window)
            .initial_connection_window_size(bounds.connection_window)
            .keep_alive_interval(bounds.keepalive.0)
            .keep_alive_timeout(bounds.keepalive.1);
        Server {
            routes,
            builder,
            served: Arc::new(Semaphore::new(bounds.connections)),
            excess: Arc::new(Semaphore::new(bounds.excess)),
            answers: answers::Total::new(bounds.answers),
            full: Seldom::default(),
            bounds: Arc::new(bounds),
        }
    }

    /// Takes a connection in, or drops it.
    fn accept(
        self: &Arc<Self>,
        socket: TcpStream,
        address: SocketAddr,
        threads: &Threads,
        stop: news::Receiver<()>,
    ) {
        let (place, excess) = match self.served.clone().try_acquire_owned() {
            Ok(place) => (place, false),
            Err(_) => {
                if self.full.may_speak() {
                    log::warn!(
                        "{} connections are open, as many as may be: more are refused",
                        self.bounds.connections
                    );
                }
                match self.excess.clone().try_acquire_owned() {
                    Ok(place) => (place, true),
                    Err(_) => return,
                }
            }
        };
        // A small answer must not wait for the other side's acknowledgement of the one before.
        if socket.set_nodelay(true).is_err() {
            return; // it is gone already
        }
        let connection = Arc::new(Connection::new(excess, self.answers.ledger()));
        let info = TcpConnectInfo {
            local_addr: socket.local_addr().ok(),
            remote_addr: Some(address),
        };
        let server = self.clone();
        threads.spawn(socket, async move |socket| {
            server.run(socket, connection, info, place, stop).await;
        });
    }

    /// The life of one connection.
    fn run(
        &self,
        socket: TcpStream,
        connection: Arc<Connection>,
        info: TcpConnectInfo,
        place: OwnedSemaphorePermit,
        mut stop: news::Receiver<()>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let routes = self.routes.clone();
        let seen = connection.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(info.clone());
            request.extensions_mut().insert(seen.clone());
            let answer = routes.clone().call(request);
            let connection = seen.clone();
            async move { Ok::<_, std::convert::Infallible>(sent(answer.await, &connection)) }
        });
        let socket = TokioIo::new(Socket::new(socket, connection.clone()));
        let served = self.builder.serve_connection(socket, service);
        let mut watch = Watch::new(&self.bounds, connection.excess, Instant::now());
        async move {
            let _place = place;
            let mut served = pin!(served);
            let mut clock = pin!(sleep_until(Instant::now().into()));
            let mut set_to = None;
            let mut stop = pin!(stop.changed());
            let mut stopping = false;
            poll_fn(|cx| {
                if !stopping && stop.as_mut().poll(cx).is_ready() {
                    stopping = true;
                    served.as_mut().graceful_shutdown();
                }
                loop {
                    if served.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(());
                    }
                    let next = match watch.look(&connection, Instant::now()) {
                        Verdict::Close => return Poll::Ready(()),
                        Verdict::Part => {
                            served.as_mut().graceful_shutdown();
                            continue;
                        }
                        Verdict::Fine(next) => next,
                    };
                    let Some(next) = next else {
                        return Poll::Pending;
                    };
                    if set_to != Some(next) {
                        clock.as_mut().reset(next.into());
                        set_to = Some(next);
                    }
                    if clock.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    set_to = None;
                }
            })
            .await;
        }
    }
}

/// The answer as it goes out: what it holds is let go when it has been taken.
fn sent(
    answer: Result<Response<Body>, std::convert::Infallible>,
    connection: &Arc<Connection>,
) -> Response<Answer> {
    let Ok(answer) = answer;
    let (mut parts, body) = answer.into_parts();
    let held = parts.extensions.remove::<UntilSent>();
    Response::from_parts(parts, Answer::new(body, &connection.answers, held))
}
