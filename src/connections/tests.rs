//! Connections as they should not be, over real sockets. What must be closed is waited for; what must stay is
//! looked at after something later was closed.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::task::Context;

use bytes::Bytes;
use h2::client::SendRequest;
use http_body::Frame;
use std::pin::Pin;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tonic::Status;
use tonic::codegen::http::Request as HttpRequest;
use tonic::codegen::{BoxFuture, http};
use tonic::server::NamedService;

use super::*;

/// For what comes about by itself.
const EVENTUALLY: Duration = Duration::from_secs(20);

/// Answers with as many bytes as the path says: `/test/BYTES`. `/test/never` is never answered, `/test/trust`
/// vouches for its connection.
#[derive(Clone)]
struct Answering {
    permits: Arc<Semaphore>,
}

impl NamedService for Answering {
    const NAME: &'static str = "test";
}

impl Service<Request<Body>> for Answering {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let connection = request.extensions().get::<Arc<Connection>>().unwrap().clone();
        let permit = self.permits.clone().try_acquire_owned().unwrap();
        Box::pin(async move {
            let bytes = match request.uri().path().rsplit('/').next().unwrap() {
                "never" => std::future::pending().await,
                "trust" => {
                    connection.trust();
                    0
                }
                bytes => bytes.parse().unwrap(),
            };
            let once = Once((bytes > 0).then(|| Bytes::from(vec![7; bytes])));
            let mut answer = Response::new(Body::new(once));
            answer
                .headers_mut()
                .insert("excess", connection.is_excess().to_string().parse().unwrap());
            if let Some(thread) = std::thread::current().name() {
                answer.headers_mut().insert("thread", thread.parse().unwrap());
            }
            answer.extensions_mut().insert(UntilSent::new(permit));
            Ok(answer)
        })
    }
}

struct Once(Option<Bytes>);

impl http_body::Body for Once {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Bounds that no test meets unless it sets others.
fn wide() -> Bounds {
    let long = Duration::from_secs(600);
    Bounds {
        connections: 100,
        excess: 0,
        streams: 10_000,
        stream_window: 64 << 10,
        connection_window: 64 << 10,
        keepalive: (long, long),
        greeting: long,
        strangers: None,
        excess_time: long,
        answer_time: long,
        answers: AnswerBounds {
            each: 64 << 20,
            total: 64 << 20,
        },
    }
}

const SHORT: Duration = Duration::from_millis(200);

struct Rig {
    address: SocketAddr,
    permits: Arc<Semaphore>,
    stop: Option<oneshot::Sender<()>>,
    done: tokio::task::JoinHandle<()>,
}

const PERMITS: usize = 100_000;

impl Rig {
    async fn start(bounds: Bounds) -> Rig {
        Rig::start_on(Threads::none(), bounds).await
    }

    async fn start_on(threads: Threads, bounds: Bounds) -> Rig {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let permits = Arc::new(Semaphore::new(PERMITS));
        let routes = Routes::new(Answering {
            permits: permits.clone(),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async {
            let _ = stopped.await;
        };
        Rig {
            address,
            permits,
            stop: Some(stop),
            done: tokio::spawn(serve(listener, routes, bounds, threads, stopped)),
        }
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn h2(&self) -> Client {
        self.h2_with(&h2::client::Builder::new()).await
    }

    async fn h2_with(&self, builder: &h2::client::Builder) -> Client {
        let (send, connection) = builder.handshake(self.tcp().await).await.unwrap();
        Client {
            send,
            ended: tokio::spawn(connection),
        }
    }

    async fn until_permits(&self, free: usize) {
        let begun = Instant::now();
        while self.permits.available_permits() != free {
            assert!(begun.elapsed() < EVENTUALLY, "{:?}", self.permits);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

struct Client {
    send: SendRequest<Bytes>,
    ended: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

fn request(what: &str) -> HttpRequest<()> {
    HttpRequest::builder()
        .method("POST")
        .uri(format!("http://localhost/test/{what}"))
        .body(())
        .unwrap()
}

impl Client {
    /// Asks, and reads the whole answer.
    async fn ask(
        &mut self,
        what: &str,
    ) -> Result<(http::HeaderMap, usize, Option<http::HeaderMap>), h2::Error> {
        poll_fn(|cx| self.send.poll_ready(cx)).await?;
        let (answer, _) = self.send.send_request(request(what), true)?;
        let (head, mut body) = answer.await?.into_parts();
        let mut bytes = 0;
        while let Some(piece) = body.data().await {
            let piece = piece?;
            bytes += piece.len();
            body.flow_control().release_capacity(piece.len())?;
        }
        Ok((head.headers, bytes, body.trailers().await?))
    }

    /// Waits until the server has closed the connection.
    async fn closed(self) {
        let ended = tokio::time::timeout(EVENTUALLY, self.ended).await;
        // Cut off in the middle or at a frame's end: both are an end.
        let _ = ended.expect("the connection stays open");
    }
}

/// Waits until the other side closes a connection.
async fn closed(socket: &mut TcpStream) {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(EVENTUALLY, socket.read_to_end(&mut rest)).await;
    // A reset is an end, too.
    let _ = read.expect("the connection stays open");
}

#[actix::test]
async fn who_does_not_speak_http2_is_sent_away() {
    let rig = Rig::start(Bounds {
        greeting: SHORT,
        ..wide()
    })
    .await;
    let mut idle = rig.h2().await;
    let begins: [&[u8]; 3] = [b"", b"PRI * HTTP/2.0\r\n", b"P"];
    for begin in begins {
        let mut silent = rig.tcp().await;
        silent.write_all(begin).await.unwrap();
        closed(&mut silent).await;
    }
    let noise: [&[u8]; 3] = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &[
            0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
        &[0; 100],
    ];
    for noise in noise {
        let mut noisy = rig.tcp().await;
        noisy.write_all(noise).await.unwrap();
        closed(&mut noisy).await;
    }
    assert_eq!(idle.ask("10").await.unwrap().1, 10, "who greeted may be silent");
}

#[actix::test]
async fn who_greets_and_answers_nothing_is_sent_away() {
    let rig = Rig::start(Bounds {
        keepalive: (SHORT, SHORT),
        ..wide()
    })
    .await;
    let mut idle = rig.h2().await;
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // HEADERS of stream 1, without END_HEADERS, that announce 100 bytes.
    let headers = [0, 0, 100, 1, 1, 0, 0, 0, 1, 0x82];
    let parts: [&[&[u8]]; 3] = [&[], &[&settings], &[&settings, &headers]];
    for parts in parts {
        let mut half = rig.tcp().await;
        half.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        for part in parts {
            half.write_all(part).await.unwrap();
        }
        closed(&mut half).await;
    }
    assert_eq!(
        idle.ask("10").await.unwrap().1,
        10,
        "who answers pings may be silent"
    );
}

#[actix::test]
async fn past_the_bound_connections_are_told_and_past_that_closed() {
    let rig = Rig::start(Bounds {
        connections: 2,
        excess: 1,
        ..wide()
    })
    .await;
    let excess = |answer: (http::HeaderMap, usize, _)| answer.0["excess"] == "true";
    let (mut first, mut second, mut third) = (rig.h2().await, rig.h2().await, rig.h2().await);
    assert!(!excess(first.ask("1").await.unwrap()));
    assert!(!excess(second.ask("1").await.unwrap()));
    assert!(excess(third.ask("1").await.unwrap()));
    closed(&mut rig.tcp().await).await;
    drop(first.send);
    first.ended.await.unwrap().unwrap();
    let begun = Instant::now();
    loop {
        // The place is free a moment after the connection has ended.
        let mut next = rig.h2().await;
        if next.ask("1").await.is_ok_and(|answer| !excess(answer)) {
            break;
        }
        assert!(begun.elapsed() < EVENTUALLY);
    }
}

#[actix::test]
async fn an_excess_connection_has_to_go() {
    let rig = Rig::start(Bounds {
        connections: 1,
        excess: 1,
        excess_time: SHORT,
        ..wide()
    })
    .await;
    let mut served = rig.h2().await;
    assert_eq!(served.ask("1").await.unwrap().1, 1);
    let mut excess = rig.h2().await;
    assert_eq!(excess.ask("1").await.unwrap().1, 1);
    let ended = tokio::time::timeout(EVENTUALLY, excess.ended).await.unwrap();
    assert!(ended.unwrap().is_ok(), "with a word of farewell");
    assert_eq!(served.ask("1").await.unwrap().1, 1);
}

#[actix::test]
async fn strangers_have_to_go() {
    let rig = Rig::start(Bounds {
        strangers: Some(SHORT),
        ..wide()
    })
    .await;
    let mut peer = rig.h2().await;
    peer.ask("trust").await.unwrap();
    let mut stranger = rig.h2().await;
    stranger.ask("1").await.unwrap();
    let ended = tokio::time::timeout(EVENTUALLY, stranger.ended).await.unwrap();
    assert!(ended.unwrap().is_ok());
    assert_eq!(peer.ask("1").await.unwrap().1, 1);
}

/// A client that lets the server send nothing.
fn unwilling() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    builder
}

#[actix::test]
async fn an_answer_that_is_not_read_holds_its_permit_and_then_costs_its_connection() {
    let rig = Rig::start(Bounds {
        answer_time: SHORT,
        ..wide()
    })
    .await;
    let mut good = rig.h2().await;
    let mut client = rig.h2_with(&unwilling()).await;
    let mut answers = Vec::new();
    for _ in 0..3 {
        let (answer, _) = client.send.send_request(request("1000"), true).unwrap();
        answers.push(answer.await.unwrap());
    }
    assert_eq!(rig.permits.available_permits(), PERMITS - 3);
    assert_eq!(good.ask("100000").await.unwrap().1, 100_000);
    assert_eq!(
        rig.permits.available_permits(),
        PERMITS - 3,
        "answered, but not read"
    );
    client.closed().await;
    rig.until_permits(PERMITS).await;
    assert_eq!(good.ask("100000").await.unwrap().1, 100_000);
}

#[actix::test]
async fn a_client_that_reads_slowly_but_reads_is_served() {
    let rig = Rig::start(Bounds {
        answer_time: SHORT,
        ..wide()
    })
    .await;
    let mut client = rig.h2().await;
    let begun = Instant::now();
    while begun.elapsed() < 4 * SHORT {
        assert_eq!(client.ask("300000").await.unwrap().1, 300_000);
    }
}

#[actix::test]
async fn answers_that_wait_are_bounded() {
    let rig = Rig::start(Bounds {
        answers: AnswerBounds {
            each: 1 << 20,
            total: 2 << 20,
        },
        ..wide()
    })
    .await;
    let mut waiting = Vec::new();
    for (n, fits) in [(0, true), (1, true), (2, false)] {
        let mut client = rig.h2_with(&unwilling()).await;
        let (answer, _) = client.send.send_request(request("1000000"), true).unwrap();
        let (_, mut body) = answer.await.unwrap().into_parts();
        if fits {
            // The second on the same connection is beyond the connection's own bound.
            let (answer, _) = client.send.send_request(request("1000000"), true).unwrap();
            let (_, mut second) = answer.await.unwrap().into_parts();
            assert_exhausted(&mut second).await;
        } else {
            assert_exhausted(&mut body).await;
        }
        waiting.push((n, client, body));
    }
    drop(waiting);
    rig.until_permits(PERMITS).await;
    assert_eq!(rig.h2().await.ask("1000000").await.unwrap().1, 1_000_000);
}

async fn assert_exhausted(body: &mut h2::RecvStream) {
    assert!(body.data().await.is_none());
    let trailers = body.trailers().await.unwrap().unwrap();
    let status = Status::from_header_map(&trailers).unwrap();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
}

#[actix::test]
async fn who_takes_nothing_is_not_read_from_and_then_closed() {
    let rig = Rig::start(Bounds {
        answer_time: 4 * SHORT,
        ..wide()
    })
    .await;
    let mut greedy = rig.tcp().await;
    greedy
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    greedy.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    // Pings, each of which is to be answered, and no answer is read.
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let pings = ping.repeat(1000);
    let begun = Instant::now();
    let mut sent = 0;
    while greedy.write_all(&pings).await.is_ok() {
        sent += pings.len();
        assert!(
            begun.elapsed() < EVENTUALLY,
            "it is let go on, after {sent} bytes"
        );
    }
}

#[actix::test]
async fn resets_without_end_close_the_connection() {
    let rig = Rig::start(wide()).await;
    let mut client = rig.tcp().await;
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    for stream in (1..20_000_u32).step_by(2) {
        // HEADERS with END_HEADERS: POST, http, `/`; then RST_STREAM, CANCEL.
        bytes.extend([0, 0, 3, 1, 4]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend([0x83, 0x86, 0x84]);
        bytes.extend([0, 0, 4, 3, 0]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend([0, 0, 0, 8]);
    }
    // It may be closed before all of it is sent.
    let _ = client.write_all(&bytes).await;
    closed(&mut client).await;
    rig.until_permits(PERMITS).await;
}

#[actix::test]
async fn a_stop_takes_nobody_new_and_waits_for_what_is_under_way() {
    let mut rig = Rig::start(wide()).await;
    let mut client = rig.h2().await;
    let (answer, _) = client.send.send_request(request("never"), true).unwrap();
    rig.until_permits(PERMITS - 1).await;
    rig.stop.take().unwrap().send(()).unwrap();
    let begun = Instant::now();
    while TcpStream::connect(rig.address).await.is_ok() {
        assert!(begun.elapsed() < EVENTUALLY);
    }
    assert!(!rig.done.is_finished());
    drop(answer);
    tokio::time::timeout(EVENTUALLY, rig.done).await.unwrap().unwrap();
}

/// The threads of this process whose names begin so.
fn threads_called(name: &str) -> usize {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    names.filter(|found| found.starts_with(name)).count()
}

#[actix::test]
async fn connections_are_served_on_the_threads_in_turn_and_these_end_after_the_last_answer() {
    let threads = Threads::start(2, "in-turn").unwrap();
    let mut rig = Rig::start_on(threads, wide()).await;
    let mut served = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = rig.h2().await;
        for _ in 0..2 {
            let (head, bytes, _) = client.ask("70000").await.unwrap();
            assert_eq!(bytes, 70_000);
            served.push(head["thread"].to_str().unwrap().to_owned());
        }
        clients.push(client);
    }
    let turns = [0, 0, 1, 1, 0, 0, 1, 1].map(|n| format!("in-turn-{n}"));
    assert_eq!(served, turns);

    // Answers that are not read yet are finished before the threads end.
    let window = 64 << 10;
    let mut slow = Vec::new();
    for client in &mut clients {
        poll_fn(|cx| client.send.poll_ready(cx)).await.unwrap();
        let (answer, _) = client.send.send_request(request("100000"), true).unwrap();
        slow.push(answer.await.unwrap().into_body());
    }
    drop(rig.stop.take());
    assert_eq!(threads_called("in-turn"), 2);
    for mut body in slow {
        let mut bytes = 0;
        while let Some(piece) = body.data().await {
            bytes += piece.as_ref().unwrap().len();
            body.flow_control()
                .release_capacity(piece.unwrap().len())
                .unwrap();
        }
        assert!(bytes > window, "{bytes}");
    }
    tokio::time::timeout(EVENTUALLY, rig.done).await.unwrap().unwrap();
    let begun = Instant::now();
    while threads_called("in-turn") > 0 {
        assert!(begun.elapsed() < EVENTUALLY, "the threads stay");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
