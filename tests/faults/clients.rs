//! The clients: each does one thing at a time through a random node, never repeats anything, and writes
//! down what it was told, so that every outcome is known for what it is.
//!
//! Some contend for a few names in small directories, each used for a few seconds by all of them (a
//! *unit* of the history). Others, one for each node, keep a *ledger*: files that are created once and
//! deleted at most once, by their one client, so that what must be there in the end is beyond doubt.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use minfs::actors::gateway::REQUEST_ID_KEY;
use minfs::proto::dfs::meta_server_service_client::MetaServerServiceClient;
use minfs::proto::dfs::{
    CreateNodeRequest, DeleteNodeRequest, FileType, FinalizeWriteRequest, GetBlockLocationsRequest,
    GetBlockLocationsResponse, GetNodeInfoRequest, ListDirectoryRequest, StatInfo,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::Channel;
use tonic::{Code, ConnectError, Request, Status};

use crate::history::{Answer, Attributes, History, Op, Outcome, Refused};
use crate::model::BLOCK;
use crate::support::cluster::Cluster;

/// How long a request may take; the server is told, and answers before.
const DEADLINE: Duration = Duration::from_secs(2);

/// How long a directory is contended for.
const SLICE: Duration = Duration::from_secs(4);

/// Clients that contend.
const CONTENDERS: u32 = 5;

/// The number of the first client that keeps a ledger.
const FIRST_LEDGER: u32 = 10;

/// The names that are contended for.
const PATHS: [&str; 7] = ["a", "b", "c", "a/x", "a/y", "b/x", "c/x"];

/// A connection to a node.
pub type Node = MetaServerServiceClient<Channel>;

/// A directory that is contended for.
pub struct Unit {
    /// Its path.
    pub base: Arc<str>,
    /// The inode numbers that somebody was told last.
    inodes: Mutex<HashMap<String, u64>>,
}

/// What there is to contend for, and to keep.
pub struct Ground {
    /// Used one after the other, two at any time.
    pub units: Vec<Unit>,
    /// One for each node.
    pub ledgers: Vec<Arc<str>>,
}

impl Ground {
    /// Makes the directories for a run of this length.
    pub async fn prepare(cluster: &Cluster, length: Duration) -> Ground {
        let client = cluster.any_client().await;
        let slices = length.as_secs() / SLICE.as_secs() + 8;
        let bases = (0..2 * slices).map(|n| format!("/units/{n:04}"));
        let ledgers = cluster.all().into_iter().map(|n| format!("/ledger/n{n}"));
        let (bases, ledgers): (Vec<_>, Vec<_>) = (bases.collect(), ledgers.collect());
        let above = ["/units".to_owned(), "/ledger".to_owned()];
        for path in &above {
            client.create(path, FileType::Directory).await.unwrap();
        }
        let creates = bases.iter().chain(&ledgers).map(|path| {
            let client = &client;
            async move { client.create(path, FileType::Directory).await.unwrap() }
        });
        stream::iter(creates)
            .buffer_unordered(32)
            .collect::<Vec<_>>()
            .await;
        let unit = |base: String| Unit {
            base: base.into(),
            inodes: Mutex::default(),
        };
        Ground {
            units: bases.into_iter().map(unit).collect(),
            ledgers: ledgers.into_iter().map(Arc::from).collect(),
        }
    }

    /// One of the two that are used at this time; they change at different times.
    fn unit(&self, now: Duration, family: usize) -> &Unit {
        let shifted = now + SLICE / 2 * family as u32;
        let slice = (shifted.as_millis() / SLICE.as_millis()) as usize;
        &self.units[(2 * slice + family).min(self.units.len() - 2 + family)]
    }
}

/// The clients at work.
pub struct Clients {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Begins.
    pub fn start(cluster: &Cluster, ground: &Arc<Ground>, history: &Arc<History>, seed: u64) -> Clients {
        let stop = Arc::<AtomicBool>::default();
        let client = |process: u32| Client {
            process,
            nodes: cluster.all().into_iter().map(|n| cluster.raw(n)).collect(),
            history: history.clone(),
            ground: ground.clone(),
            random: StdRng::seed_from_u64(seed ^ (u64::from(process) << 32)),
            stop: stop.clone(),
        };
        let contenders = (0..CONTENDERS).map(|process| tokio::spawn(client(process).contend()));
        let ledgers = cluster
            .all()
            .into_iter()
            .map(|node| tokio::spawn(client(FIRST_LEDGER + node as u32).keep_ledger(node)));
        Clients {
            tasks: contenders.chain(ledgers).collect(),
            stop,
        }
    }

    /// Lets each end what it is doing.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

struct Client {
    process: u32,
    nodes: Vec<Node>,
    history: Arc<History>,
    ground: Arc<Ground>,
    random: StdRng,
    stop: Arc<AtomicBool>,
}

impl Client {
    async fn contend(mut self) {
        let ground = self.ground.clone();
        while !self.stop.load(Ordering::Relaxed) {
            let unit = ground.unit(self.history.now(), self.random.random_range(0..2));
            let node = self.random.random_range(0..self.nodes.len());
            let op = self.any_op(unit);
            let outcome = self.ask(node, &unit.base, &unit.base, op.clone()).await;
            if let (
                Op::Allocate { path, .. } | Op::Blocks { path },
                Outcome::Ok(Answer::Blocks { inode, .. }),
            ) = (op, &outcome)
            {
                unit.inodes.lock().unwrap().insert(path, *inode);
            }
            self.think(&outcome).await;
        }
    }

    fn any_op(&mut self, unit: &Unit) -> Op {
        let random = &mut self.random;
        let path = PATHS[random.random_range(0..PATHS.len())].to_owned();
        match random.random_range(0..100) {
            0..13 => Op::Create {
                directory: !path.contains('/') && random.random_bool(0.6),
                path,
            },
            13..26 => Op::Delete {
                path,
                recursive: random.random_bool(0.3),
            },
            26..44 => Op::Stat { path },
            44..56 => Op::List {
                path: ["", "", "a", "b"][random.random_range(0..4)].to_owned(),
            },
            56..64 => Op::Blocks { path },
            // Not a multiple of 4, which every finalized size is: it never means "give me what is there".
            64..82 => Op::Allocate {
                path,
                size: random.random_range(1..3 * BLOCK / 4) * 4 + 1,
            },
            _ => {
                let inodes = unit.inodes.lock().unwrap();
                let known = PATHS.iter().filter_map(|path| Some((path, inodes.get(*path)?)));
                let known: Vec<_> = known.collect();
                if known.is_empty() {
                    return Op::Stat { path };
                }
                let (path, inode) = known[random.random_range(0..known.len())];
                Op::Finalize {
                    path: (*path).to_owned(),
                    inode: *inode,
                    size: random.random_range(0..2 * BLOCK / 4) * 4,
                    md5: format!("{:032x}", random.random::<u128>()),
                }
            }
        }
    }

    async fn keep_ledger(mut self, node: usize) {
        let base = self.ground.ledgers[node].clone();
        let mut mine: Vec<String> = Vec::new();
        let mut looks = JoinSet::new();
        for number in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let name = format!("f{number:06}");
            let (path, directory) = (name.clone(), false);
            let outcome = self
                .entry(node, &base, Op::Create { path, directory }, &name)
                .await;
            self.think(&outcome).await;
            if matches!(outcome, Outcome::Ok(_)) {
                if self.random.random_bool(0.3) {
                    let other = self.random.random_range(0..self.nodes.len());
                    let mut looker = Client {
                        nodes: self.nodes.clone(),
                        history: self.history.clone(),
                        ground: self.ground.clone(),
                        random: StdRng::seed_from_u64(0),
                        stop: self.stop.clone(),
                        ..self
                    };
                    let (path, base, name) = (name.clone(), base.clone(), name.clone());
                    // Aside: one at a node that does not answer must not keep this client from writing.
                    looks.spawn(async move { looker.entry(other, &base, Op::Stat { path }, &name).await });
                }
                mine.push(name);
            }
            if !mine.is_empty() && self.random.random_bool(0.4) {
                let name = mine.swap_remove(self.random.random_range(0..mine.len()));
                let (path, recursive) = (name.clone(), false);
                let outcome = self
                    .entry(node, &base, Op::Delete { path, recursive }, &name)
                    .await;
                self.think(&outcome).await;
            }
        }
        looks.join_all().await;
    }

    /// Each file of a ledger is a unit by itself.
    async fn entry(&mut self, node: usize, base: &Arc<str>, op: Op, name: &str) -> Outcome {
        let unit = Arc::from(format!("{base}/{name}"));
        self.ask(node, base, &unit, op).await
    }

    /// A little time between two requests, and more where the answer was no answer.
    async fn think(&mut self, outcome: &Outcome) {
        let most = match outcome {
            Outcome::Ok(_) | Outcome::Refused(_) => 12,
            Outcome::NotDone | Outcome::Unknown => 40,
        };
        tokio::time::sleep(Duration::from_millis(self.random.random_range(0..=most))).await;
    }

    async fn ask(&mut self, node: usize, base: &Arc<str>, unit: &Arc<str>, op: Op) -> Outcome {
        let pending = self.history.invoke(self.process, node, base, unit, op.clone());
        let asked = tokio::time::timeout(DEADLINE * 5 / 4, send(&mut self.nodes[node], base, &op)).await;
        let (outcome, note) = match asked {
            Ok(Ok(answer)) => (Outcome::Ok(answer), String::new()),
            Ok(Err(status)) => {
                let outcome = judge(&status);
                let note = match outcome {
                    Outcome::Refused(_) | Outcome::Ok(_) => String::new(),
                    Outcome::NotDone | Outcome::Unknown => {
                        format!("{:?}: {}", status.code(), status.message())
                    }
                };
                (outcome, note)
            }
            Err(_) => (Outcome::Unknown, "no answer".to_owned()),
        };
        self.history.complete(pending, outcome.clone(), note);
        outcome
    }
}

/// One request, once.
pub async fn send(node: &mut Node, base: &str, op: &Op) -> Result<Answer, Status> {
    fn timed<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(DEADLINE);
        // Without one, a client's request may be taken for the repeat of another's at the same address.
        let id = format!("{:032x}", rand::random::<u128>());
        request.metadata_mut().insert(REQUEST_ID_KEY, id.parse().unwrap());
        request
    }
    let full = |path: &str| match path {
        "" => base.to_owned(),
        path => format!("{base}/{path}"),
    };
    Ok(match op {
        Op::Create { path, directory } => {
            let kind = if *directory {
                FileType::Directory
            } else {
                FileType::File
            };
            let (path, r#type) = (full(path), kind.into());
            node.create_node(timed(CreateNodeRequest { path, r#type }))
                .await?;
            Answer::Done
        }
        Op::Delete { path, recursive } => {
            let (path, recursive) = (full(path), *recursive);
            node.delete_node(timed(DeleteNodeRequest { path, recursive }))
                .await?;
            Answer::Done
        }
        Op::Stat { path } => {
            let path = full(path);
            let answer = node.get_node_info(timed(GetNodeInfoRequest { path })).await?;
            Answer::Found(attributes(
                &answer.into_inner().stat_info.unwrap_or_default(),
                true,
            ))
        }
        Op::List { path } => {
            let path = full(path);
            let answer = node.list_directory(timed(ListDirectoryRequest { path })).await?;
            let entries = answer.into_inner().nodes;
            let named = |info: &StatInfo| (name(&info.path).to_owned(), attributes(info, false));
            Answer::Entries(entries.iter().map(named).collect())
        }
        Op::Blocks { path } => {
            let (path, size) = (full(path), 0);
            let request = timed(GetBlockLocationsRequest {
                path,
                size,
                staged: false,
            });
            blocks(node.get_block_locations(request).await?.into_inner())
        }
        Op::Allocate { path, size } => {
            let (path, size) = (full(path), *size as i64);
            let request = timed(GetBlockLocationsRequest {
                path,
                size,
                staged: false,
            });
            blocks(node.get_block_locations(request).await?.into_inner())
        }
        Op::Finalize {
            path,
            inode,
            size,
            md5,
        } => {
            let request = FinalizeWriteRequest {
                path: full(path),
                inode: *inode,
                size: *size as i64,
                md5: md5.clone(),
                staged_block: 0,
            };
            node.finalize_write(timed(request)).await?;
            Answer::Done
        }
    })
}

/// What a status says of the operation, by the contract.
pub fn judge(status: &Status) -> Outcome {
    // One with a source was made on this side, out of a broken connection.
    let mut cause = status.source();
    if cause.is_some() {
        while let Some(error) = cause {
            if error.is::<ConnectError>() {
                return Outcome::NotDone;
            }
            cause = error.source();
        }
        return Outcome::Unknown;
    }
    match status.code() {
        Code::NotFound => Outcome::Refused(Refused::NotFound),
        Code::AlreadyExists => Outcome::Refused(Refused::AlreadyExists),
        Code::InvalidArgument => Outcome::Refused(Refused::InvalidArgument),
        // Says nothing of the file: "nothing is changed".
        Code::FailedPrecondition if status.message().contains("healthy DataServers") => Outcome::NotDone,
        Code::FailedPrecondition => Outcome::Refused(Refused::FailedPrecondition),
        // Promised to be said only where nothing happened; the history shows it when it is not so.
        Code::Unavailable | Code::ResourceExhausted => Outcome::NotDone,
        _ => Outcome::Unknown,
    }
}

/// The last part of a path.
pub fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// What the history keeps of an entry; listings leave out the blocks.
pub fn attributes(info: &StatInfo, with_blocks: bool) -> Attributes {
    let mut blocks: Vec<u64> = info
        .replica_data
        .iter()
        .map(|data| data.id.parse().unwrap())
        .collect();
    blocks.dedup();
    Attributes {
        directory: info.r#type() == FileType::Directory,
        size: info.size as u64,
        md5: info.md5.clone(),
        blocks: with_blocks.then_some(blocks),
    }
}

fn blocks(answer: GetBlockLocationsResponse) -> Answer {
    Answer::Blocks {
        inode: answer.inode,
        blocks: answer
            .block_locations
            .iter()
            .map(|block| block.block_id)
            .collect(),
    }
}
