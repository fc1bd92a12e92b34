//! Clients that cost a server something for as long as it bears with them: silent ones, requests that never
//! end, and answers that nobody reads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use minfs::proto::dfs::{CreateNodeRequest, ListDirectoryRequest};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::grpc::{Call, End, Wire};
use super::support::http2::{PREFACE, all_windows_open, call, settings};

const LIST: &str = "/dfs_project.MetaServerService/ListDirectory";

/// Between two burdens of one client.
const PAUSE: Duration = Duration::from_millis(100);

/// How many answers wait on one connection.
const LISTINGS: u32 = 20;

/// gRPC's DEADLINE_EXCEEDED and UNIMPLEMENTED.
const TOO_SLOW: End = End::Status(4);
const DEPRECATED: End = End::Status(12);

/// What is done, and how the server gets rid of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Burden {
    /// A connection that says nothing: closed.
    Silent,
    /// One that begins to say that it speaks HTTP/2: closed.
    HalfGreeting,
    /// A request that never ends: answered.
    Endless,
    /// A stream that never ends, of a method that does not read it: answered.
    EndlessStream,
    /// Listings on streams that take nothing: closed.
    ClosedWindows,
    /// Listings on a connection that takes nothing: closed.
    ClosedSocket,
}

const ALL: [Burden; 6] = [
    Burden::Silent,
    Burden::HalfGreeting,
    Burden::Endless,
    Burden::EndlessStream,
    Burden::ClosedWindows,
    Burden::ClosedSocket,
];

impl Burden {
    /// How many of it each node bears at once.
    fn number(self) -> usize {
        match self {
            Burden::Silent | Burden::HalfGreeting | Burden::Endless => 20,
            Burden::EndlessStream => 1,
            Burden::ClosedWindows | Burden::ClosedSocket => 4,
        }
    }

    /// Bears on a node until it has got rid of it.
    async fn bear(self, addr: &str, directory: &str) {
        match self {
            Burden::Silent => say_and_wait(addr, b"").await,
            Burden::HalfGreeting => say_and_wait(addr, &PREFACE[..20]).await,
            Burden::Endless => {
                let request = CreateNodeRequest {
                    path: "/never".to_owned(),
                    r#type: 0,
                };
                let call = Call::new(
                    "/dfs_project.MetaServerService/CreateNode",
                    request.encode_to_vec(),
                );
                assert_eq!(answered(addr, &call.open_ended()).await, TOO_SLOW);
            }
            Burden::EndlessStream => {
                let call = Call::new("/dfs_project.MetaServerService/SyncWAL", b"").with_body(&b"\0\0\0"[..]);
                assert_eq!(answered(addr, &call.open_ended()).await, DEPRECATED);
            }
            Burden::ClosedWindows => closed_windows(addr, directory).await,
            Burden::ClosedSocket => closed_socket(addr, directory).await,
        }
    }
}

fn listing(directory: &str) -> Vec<u8> {
    let path = directory.to_owned();
    ListDirectoryRequest { path }.encode_to_vec()
}

async fn answered(addr: &str, call: &Call) -> End {
    match Wire::connect(addr).await {
        Some(wire) => wire.call(call).await,
        None => panic!("{addr} takes no connection"),
    }
}

async fn say_and_wait(addr: &str, bytes: &[u8]) {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let _ = socket.write_all(bytes).await;
    let mut heard = [0; 1 << 10];
    while socket.read(&mut heard).await.is_ok_and(|read| read > 0) {}
}

async fn closed_windows(addr: &str, directory: &str) {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let Some(wire) = Wire::connect_with(&builder, addr).await else {
        return;
    };
    let call = Call::new(LIST, listing(directory));
    let mut answers = Vec::new();
    for _ in 0..LISTINGS {
        let Some(answer) = wire.begin(&call).await else {
            break;
        };
        // Its head comes; what is kept here is what would be read.
        answers.push(answer.await);
    }
    while !wire.is_closed() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn closed_socket(addr: &str, directory: &str) {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let mut bytes = [PREFACE, &all_windows_open()].concat();
    for n in 0..LISTINGS {
        bytes.extend(call(2 * n + 1, LIST, &listing(directory)));
    }
    if socket.write_all(&bytes).await.is_err() {
        return;
    }
    // Nothing is read; whether it is closed shows when something is written.
    while socket.write_all(&settings()).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The burdens of some nodes.
pub struct Burdens {
    lifted: Arc<AtomicBool>,
    shed: Arc<Mutex<BTreeMap<(usize, Burden), usize>>>,
    tasks: JoinSet<()>,
}

impl Burdens {
    /// Puts all of them on each node. `directory` has a large listing.
    pub fn put_on(nodes: &[String], directory: &'static str) -> Burdens {
        let lifted = Arc::<AtomicBool>::default();
        let shed = Arc::new(Mutex::new(BTreeMap::new()));
        let mut tasks = JoinSet::new();
        for (n, addr) in nodes.iter().enumerate() {
            for burden in ALL {
                for _ in 0..burden.number() {
                    let (lifted, shed, addr) = (lifted.clone(), shed.clone(), addr.clone());
                    tasks.spawn(async move {
                        while !lifted.load(Ordering::Relaxed) {
                            burden.bear(&addr, directory).await;
                            *shed.lock().unwrap().entry((n, burden)).or_default() += 1;
                            // What is answered at once is not asked without end.
                            tokio::time::sleep(PAUSE).await;
                        }
                    });
                }
            }
        }
        Burdens { lifted, shed, tasks }
    }

    /// Waits until every node has got rid of all that it bears now. Panics when it does not.
    pub async fn lift(mut self, bound: Duration) -> BTreeMap<(usize, Burden), usize> {
        self.lifted.store(true, Ordering::Relaxed);
        let all = async {
            while let Some(task) = self.tasks.join_next().await {
                task.unwrap();
            }
        };
        let in_time = tokio::time::timeout(bound, all).await.is_ok();
        let shed = self.shed.lock().unwrap().clone();
        assert!(
            in_time,
            "not everything was got rid of within {bound:?}: {shed:?}"
        );
        shed
    }
}
