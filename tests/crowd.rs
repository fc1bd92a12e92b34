//! Many clients: 10,000 connections that are open and silent, 2,000 that work, and more requests and connections
//! than a server takes.
//!
//! `cargo test --release --test crowd -- --nocapture` prints times that mean something.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use minfs::proto::dfs::meta_server_service_client::MetaServerServiceClient;
use minfs::proto::dfs::{CreateNodeRequest, FileType, GetLeaderRequest, GetNodeInfoRequest};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, Semaphore, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::Channel;
use tonic::{Code, Status};

use support::cluster::{Cluster, EVENTUALLY, Setup, turn};
use support::http2::{self, HEADERS, PING, PREFACE, SETTINGS, frame};
use support::memory::{Memory, memory};
use support::wait::until;

/// All connections but the busy ones are silent.
const CONNECTIONS: usize = 12_000;

/// Clients that work: without optimization a server has not the time for 2,000.
const BUSY: usize = if cfg!(debug_assertions) { 200 } else { 2_000 };

/// Clients that are too many; each of them tries again after this time.
const GREEDY: usize = if cfg!(debug_assertions) { 400 } else { 2_000 };
const PAUSE: Duration = Duration::from_millis(if cfg!(debug_assertions) { 4000 } else { 100 });

/// How long the busy ones work.
const WORK: Duration = Duration::from_secs(if cfg!(debug_assertions) { 3 } else { 15 });

/// Connections that are being made at once: a listener's queue holds 1,024.
const CONNECTING: usize = 200;

/// What a client may cost a node on average, bytes: the buffers of its connection and of a request.
const COST: u64 = 64 << 10;

/// How soon a request too many is refused. Without optimization, and beside other tests, later.
const AT_ONCE: Duration = Duration::from_millis(if cfg!(debug_assertions) { 4000 } else { 1000 });

/// What the servers promise.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Raises this process's number of open files to what so many connections need.
fn allow_open_files(needed: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < needed) {
        let most = limit.maximum.unwrap_or(needed).max(needed);
        let raised = Rlimit {
            current: Some(needed),
            maximum: Some(most),
        };
        setrlimit(Resource::Nofile, raised).expect("the system allows as many open files");
    }
}

/// A connection of which nothing is heard but what HTTP/2 asks for.
struct Silent {
    socket: Arc<Mutex<OwnedWriteHalf>>,
    answered: oneshot::Receiver<()>,
    reader: JoinHandle<std::io::Result<()>>,
}

impl Silent {
    async fn connect(addr: &str) -> Silent {
        let socket = TcpStream::connect(addr).await.unwrap();
        let (read, mut write) = socket.into_split();
        write
            .write_all(&[PREFACE, &http2::settings()].concat())
            .await
            .unwrap();
        let socket = Arc::new(Mutex::new(write));
        let (tell, answered) = oneshot::channel();
        Silent {
            reader: tokio::spawn(listen(read, socket.clone(), tell)),
            socket,
            answered,
        }
    }

    /// Speaks at last. Panics unless it is answered.
    async fn ask(self) {
        let call = http2::call(1, "/dfs_project.MetaServerService/GetLeader", b"");
        self.socket.lock().await.write_all(&call).await.unwrap();
        let answered = tokio::time::timeout(EVENTUALLY, self.answered).await;
        answered
            .expect("an answer in time")
            .expect("the connection is still open");
        self.reader.abort();
    }
}

/// Says what HTTP/2 asks for, and tells when the head of an answer comes.
async fn listen(
    mut read: OwnedReadHalf,
    write: Arc<Mutex<OwnedWriteHalf>>,
    tell: oneshot::Sender<()>,
) -> std::io::Result<()> {
    const ACK: u8 = 1;
    let mut tell = Some(tell);
    let mut rest = [0; 1 << 10];
    loop {
        let mut head = [0; 9];
        read.read_exact(&mut head).await?;
        let [high, middle, low, kind, flags, ..] = head;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        read.read_exact(&mut rest[..length]).await?;
        match kind {
            SETTINGS | PING if flags & ACK == 0 => {
                let echo = if kind == PING { &rest[..length] } else { &[] };
                write.lock().await.write_all(&frame(kind, ACK, 0, echo)).await?;
            }
            HEADERS => {
                if let Some(tell) = tell.take() {
                    let _ = tell.send(());
                }
            }
            _ => {}
        }
    }
}

/// Does something for each number, not too many at once.
async fn for_each<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    count: usize,
    mut begin: impl FnMut(usize) -> F,
) -> Vec<T> {
    let turns = Arc::new(Semaphore::new(CONNECTING));
    let begun = (0..count).map(|n| {
        let (turns, work) = (turns.clone(), begin(n));
        tokio::spawn(async move {
            let _turn = turns.acquire().await.unwrap();
            work.await
        })
    });
    join_all(begun.collect::<Vec<_>>())
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect()
}

/// A client with a connection of its own, which exists: a busy listener may miss a first attempt.
async fn connected(client: MetaServerServiceClient<Channel>) -> MetaServerServiceClient<Channel> {
    let begun = Instant::now();
    while let Err(status) = client.clone().get_leader(GetLeaderRequest {}).await {
        assert!(begun.elapsed() < EVENTUALLY, "no connection: {status}");
    }
    client
}

async fn clients(cluster: &Cluster, n: usize, count: usize) -> Vec<MetaServerServiceClient<Channel>> {
    for_each(count, |_| connected(cluster.raw(n))).await
}

/// What clients saw.
#[derive(Debug, Default)]
struct Seen {
    done: Vec<Duration>,
    refused: Vec<Duration>,
    failed: Vec<Status>,
    /// Clients of which no request was done.
    starved: usize,
}

impl Seen {
    fn add(&mut self, other: Seen) {
        self.starved += other.starved + usize::from(other.done.is_empty());
        self.done.extend(other.done);
        self.refused.extend(other.refused);
        self.failed.extend(other.failed);
    }

    fn print(&mut self, who: &str, took: Duration) {
        self.done.sort();
        self.refused.sort();
        let times = |list: &[Duration]| match list {
            [] => "none".to_owned(),
            list => format!(
                "{} ({:.0}/s; {:.1?} p50, {:.1?} p99, {:.1?} at most)",
                list.len(),
                list.len() as f64 / took.as_secs_f64(),
                at(list, 0.5),
                at(list, 0.99),
                at(list, 1.0)
            ),
        };
        println!(
            "{who}: done {}; refused {}",
            times(&self.done),
            times(&self.refused)
        );
    }
}

fn at(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

/// Lets each of these clients create a file and stat it, again and again, for a while. One that is refused
/// waits for `pause` before it tries again.
async fn work(
    clients: Vec<MetaServerServiceClient<Channel>>,
    directory: &'static str,
    pause: Duration,
) -> Seen {
    let mut all = JoinSet::new();
    let end = Instant::now() + WORK;
    for (n, mut client) in clients.into_iter().enumerate() {
        all.spawn(async move {
            let mut seen = Seen::default();
            // Not all in the same moment.
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.0..1.0))).await;
            for number in 0.. {
                let path = format!("{directory}/{n}-{number}");
                let asked = Instant::now();
                if asked >= end {
                    break;
                }
                let created = client
                    .create_node(CreateNodeRequest {
                        path: path.clone(),
                        r#type: FileType::File.into(),
                    })
                    .await;
                let created = seen.note(asked, created.map(|_| ()), pause).await;
                let asked = Instant::now();
                let path = if created { path } else { directory.to_owned() };
                let stat = client.get_node_info(GetNodeInfoRequest { path }).await;
                seen.note(asked, stat.map(|_| ()), pause).await;
            }
            seen
        });
    }
    let mut total = Seen::default();
    while let Some(seen) = all.join_next().await {
        total.add(seen.unwrap());
    }
    total
}

impl Seen {
    /// Whether it was done.
    async fn note(&mut self, asked: Instant, answer: Result<(), Status>, pause: Duration) -> bool {
        match answer {
            Ok(()) => {
                self.done.push(asked.elapsed());
                return true;
            }
            Err(status) if status.code() == Code::ResourceExhausted => {
                self.refused.push(asked.elapsed());
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
            }
            Err(status) => self.failed.push(status),
        }
        false
    }
}

async fn directory(cluster: &Cluster, path: &str) {
    cluster
        .any_client()
        .await
        .create(path, FileType::Directory)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_silent_and_two_thousand_busy_clients_are_served() {
    let _turn = turn();
    allow_open_files((CONNECTIONS + 1000) as u64);
    let mut cluster = Cluster::formed(Setup::default()).await;
    directory(&cluster, "/crowd").await;
    let leader = cluster.leader().await;
    let addr = cluster.node(leader).grpc_addr.clone();
    let resident = || memory(cluster.process(leader), Memory::Now);
    let at_first = resident();

    let begun = Instant::now();
    let silent = for_each(CONNECTIONS - BUSY, |_| {
        let addr = addr.clone();
        async move { Silent::connect(&addr).await }
    });
    let silent = silent.await;
    let busy = clients(&cluster, leader, BUSY).await;
    let with_all = resident();
    println!(
        "{} connections in {:.1?}; memory {} MiB, before {} MiB: {} KiB for each",
        CONNECTIONS,
        begun.elapsed(),
        with_all >> 20,
        at_first >> 20,
        (with_all.saturating_sub(at_first) >> 10) / CONNECTIONS as u64
    );

    let begun = Instant::now();
    let mut seen = work(busy, "/crowd", Duration::ZERO).await;
    seen.print(&format!("{BUSY} busy clients"), begun.elapsed());
    let at_work = memory(cluster.process(leader), Memory::Peak);
    println!("memory at most {} MiB", at_work >> 20);
    assert_eq!(
        (seen.starved, seen.refused.len()),
        (0, 0),
        "{:?}",
        seen.failed.first()
    );
    assert!(
        seen.failed.is_empty(),
        "{} failed: {:?}",
        seen.failed.len(),
        seen.failed.first()
    );

    for_each(silent.len(), {
        let mut silent = silent.into_iter();
        move |_| silent.next().unwrap().ask()
    })
    .await;
    let each = at_work.saturating_sub(at_first) / CONNECTIONS as u64;
    assert!(each < COST, "{each} bytes for each client");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_too_many_are_refused_at_once_and_hardly_slow_the_others_down() {
    let _turn = turn();
    allow_open_files(4000);
    const FIT: usize = 100;
    let mut cluster = Cluster::formed(Setup {
        server: "{ max_in_flight: 120 }",
        ..Setup::default()
    })
    .await;
    directory(&cluster, "/alone").await;
    directory(&cluster, "/among").await;
    directory(&cluster, "/greedy").await;
    let leader = cluster.leader().await;
    let few = clients(&cluster, leader, FIT).await;
    let begun = Instant::now();
    let mut alone = work(few.clone(), "/alone", Duration::ZERO).await;
    alone.print(&format!("{FIT} clients, as many as fit"), begun.elapsed());
    assert_eq!(
        (alone.starved, alone.refused.len(), alone.failed.len()),
        (0, 0, 0)
    );

    let greedy = clients(&cluster, leader, GREEDY).await;
    let begun = Instant::now();
    let questions = ask_who_leads(connected(cluster.raw(leader)).await);
    let (mut among, mut greedy, asked) = tokio::join!(
        work(few, "/among", Duration::from_millis(5)),
        work(greedy, "/greedy", PAUSE),
        questions
    );
    among.print(&format!("{FIT} clients among {GREEDY} more"), begun.elapsed());
    greedy.print(&format!("{GREEDY} more"), begun.elapsed());
    println!(
        "who leads was answered {} times, at most after {:.1?}",
        asked.len(),
        asked.last().unwrap()
    );
    for seen in [&among, &greedy] {
        assert!(seen.failed.is_empty(), "{:?}", seen.failed.first());
        assert!(at(&seen.refused, 0.99) < AT_ONCE);
        assert!(at(&seen.done, 1.0) < REQUEST_TIMEOUT + AT_ONCE);
    }
    assert!(!greedy.refused.is_empty());
}

/// Asks who leads while the others work, and gives how long that took. Panics when it is refused.
async fn ask_who_leads(mut client: MetaServerServiceClient<Channel>) -> Vec<Duration> {
    let end = Instant::now() + WORK;
    let mut times = Vec::new();
    while Instant::now() < end {
        let asked = Instant::now();
        client.get_leader(GetLeaderRequest {}).await.unwrap();
        times.push(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    times.sort();
    times
}

#[tokio::test]
async fn connections_too_many_are_refused_at_once_and_peers_are_not() {
    let _turn = turn();
    let mut cluster = Cluster::formed(Setup {
        server: "{ max_connections: 16 }",
        ..Setup::default()
    })
    .await;
    directory(&cluster, "/d").await;
    let leader = cluster.leader().await;
    let follower = cluster.others(leader)[0];
    let mut through_follower = connected(cluster.raw(follower)).await;
    let stat = || GetNodeInfoRequest {
        path: "/d".to_owned(),
    };

    // The test's own connections to the leader are among those that fit.
    let mut open = Vec::new();
    let refused = loop {
        let mut next = connected(cluster.raw(leader)).await;
        let asked = Instant::now();
        match next.get_node_info(stat()).await {
            Ok(_) => open.push(next),
            Err(status) => break (status, asked.elapsed(), next),
        }
        assert!(open.len() <= 16);
    };
    let (status, after, mut one_too_many) = refused;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    println!(
        "{} connections served, the next one refused after {after:.1?}: {status}",
        open.len()
    );
    one_too_many.get_leader(GetLeaderRequest {}).await.unwrap();
    // Who is in stays in, and the other nodes reach the leader as before.
    for client in &mut open {
        client.get_node_info(stat()).await.unwrap();
    }
    for n in 0..20 {
        let request = CreateNodeRequest {
            path: format!("/d/{n}"),
            r#type: FileType::File.into(),
        };
        through_follower.create_node(request).await.unwrap();
    }
    // A place that is given up is given away.
    drop(open);
    until("a new connection is served", EVENTUALLY, async || {
        cluster.raw(leader).get_node_info(stat()).await.ok()
    })
    .await;
}
