//! DataServers that are their heartbeats alone, but whose blocks are real: the namespace has a file for each.
//!
//! Most files are as large as a fleet is: a file of 400 GiB is 100,000 blocks, allocated by one request, placed by the
//! MetaServer, and finalized. A directory of small files is there to be checked. Each DataServer then reports the blocks that were placed on it, and no others,
//! so that FSCK and garbage collection find every replica where it should be and have nothing to do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use hdrhistogram::Histogram;
use minfs::proto::dfs::meta_server_service_client::MetaServerServiceClient;
use minfs::proto::dfs::{
    CreateNodeRequest, FileType, FinalizeWriteRequest, GetBlockLocationsRequest, HeartbeatRequest,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tonic::transport::Channel;

use crate::support::cluster::Cluster;
use crate::wire::{Line, encoded};

/// The default size of a block, bytes.
const BLOCK: u64 = 4 << 20;

/// Blocks of a large file: its locations are an answer of some MiB.
const BLOCKS_A_FILE: u64 = 100_000;

/// A directory of small files, and the blocks of each.
pub const SMALL: &str = "/small";
const BLOCKS_A_SMALL_FILE: u64 = 2;

/// The default.
const REPLICAS: u64 = 3;

/// Nobody listens there: nothing is ever sent to a DataServer.
const FIRST_PORT: u16 = 32_100;

/// Registrations and first reports under way at once.
const AT_ONCE: usize = 16;

/// In which order a report names the blocks.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// As the numbers go.
    Ascending,
    /// As the names of their files go (`10.dat` before `9.dat`), which is how directories are read.
    ByName,
}

/// Some DataServers, each with a connection of its own to the leader.
pub struct Fleet(Vec<DataServer>);

#[derive(Clone)]
struct DataServer {
    line: Line,
    number: u16,
    blocks: Arc<[u64]>,
    beat: Bytes,
}

impl DataServer {
    fn new(number: u16, channel: Channel) -> DataServer {
        let mut server = DataServer {
            line: Line::new(channel),
            number,
            blocks: Arc::default(),
            beat: Bytes::new(),
        };
        server.reports(Arc::default());
        server
    }

    fn reports(&mut self, blocks: Arc<[u64]>) {
        self.beat = encoded(&HeartbeatRequest {
            data_server_id: format!("data-server-{}", FIRST_PORT + self.number),
            data_server_addr: format!("0.0.0.0:{}", FIRST_PORT + self.number),
            block_count: blocks.len() as u64,
            free_space: 2 << 40,
            block_ids_report: blocks.iter().copied().collect(),
            total_capacity: 4 << 40,
            ..HeartbeatRequest::default()
        });
        self.blocks = blocks;
    }

    async fn beat(&mut self) -> usize {
        self.line.beat(self.beat.clone()).await.unwrap()
    }
}

impl Fleet {
    /// `count` DataServers that the leader has registered, and that hold nothing.
    pub async fn registered(cluster: &Cluster, leader: usize, count: u16) -> Fleet {
        let servers = (0..count).map(|n| DataServer::new(n, cluster.channel(leader)));
        let mut fleet = Fleet(servers.collect());
        fleet.beat_once().await;
        fleet
    }

    /// Every DataServer beats once.
    pub async fn beat_once(&mut self) {
        stream::iter(&mut self.0)
            .for_each_concurrent(AT_ONCE, async |server| {
                server.beat().await;
            })
            .await;
    }

    /// Makes files, `small` of them small, until every DataServer holds about `each` blocks. Nobody has reported
    /// them yet.
    pub async fn fill(&mut self, client: &mut MetaServerServiceClient<Channel>, small: u64, each: u64) {
        let directory = CreateNodeRequest {
            path: SMALL.to_owned(),
            r#type: FileType::Directory as i32,
        };
        client.create_node(directory).await.unwrap();
        let mut held = Held::default();
        for n in 0..small {
            write(client, format!("{SMALL}/{n}"), BLOCKS_A_SMALL_FILE, &mut held).await;
        }
        let mut left = self.0.len() as u64 * each / REPLICAS - small * BLOCKS_A_SMALL_FILE;
        for n in 0.. {
            let blocks = left.min(BLOCKS_A_FILE);
            if blocks == 0 {
                break;
            }
            left -= blocks;
            write(client, format!("/large-{n}"), blocks, &mut held).await;
        }
        for server in &mut self.0 {
            let place = format!("127.0.0.1:{}", FIRST_PORT + server.number);
            server.reports(held.remove(&place).unwrap_or_default().into());
        }
        assert!(held.is_empty(), "blocks were placed on others: {:?}", held.keys());
    }

    /// Reports name the blocks in this order from now on.
    pub fn put_in_order(&mut self, order: Order) {
        for server in &mut self.0 {
            let mut blocks = server.blocks.to_vec();
            match order {
                Order::Ascending => blocks.sort_unstable(),
                Order::ByName => blocks.sort_by_cached_key(|block| format!("{block}.dat")),
            }
            server.reports(blocks.into());
        }
    }

    /// How many blocks the DataServers hold: the fewest, the most, and the bytes of the longest beat.
    pub fn sizes(&self) -> (usize, usize, usize) {
        let counts = self.0.iter().map(|server| server.blocks.len());
        let bytes = self.0.iter().map(|server| server.beat.len());
        (
            counts.clone().min().unwrap_or(0),
            counts.max().unwrap_or(0),
            bytes.max().unwrap_or(0),
        )
    }

    /// One beat after the other, the DataServers in turn, for so long.
    pub async fn beat_in_turn(&mut self, length: Duration) -> Beats {
        let mut beats = Beats::new();
        let begun = Instant::now();
        while begun.elapsed() < length {
            for server in &mut self.0 {
                let sent = Instant::now();
                let commands = server.beat().await;
                beats.add(sent, commands);
            }
        }
        beats
    }

    /// Each DataServer beats every `interval`, evenly spread, until the steady beats are stopped.
    pub fn beat_steadily(&self, interval: Duration) -> Steady {
        let beats = Arc::new(Mutex::new(Beats::new()));
        let (begun, count) = (Instant::now(), self.0.len() as u32);
        let mut tasks = JoinSet::new();
        for (server, n) in self.0.iter().zip(0..) {
            let (mut server, beats) = (server.clone(), beats.clone());
            let mut due = begun + interval * n / count;
            tasks.spawn(async move {
                loop {
                    sleep_until(due).await;
                    let commands = server.beat().await;
                    beats.lock().unwrap().add(due, commands);
                    due += interval;
                }
            });
        }
        Steady { beats, _tasks: tasks }
    }
}

/// Blocks by the address of who is to hold them.
type Held = HashMap<String, Vec<u64>>;

/// Makes a file whose blocks nobody has reported yet.
async fn write(client: &mut MetaServerServiceClient<Channel>, path: String, blocks: u64, held: &mut Held) {
    let size = (blocks * BLOCK) as i64;
    let asked = GetBlockLocationsRequest {
        path: path.clone(),
        size,
        staged: false,
    };
    let given = client.get_block_locations(asked).await.unwrap().into_inner();
    for block in given.block_locations {
        for place in block.locations {
            held.entry(place).or_default().push(block.block_id);
        }
    }
    let finalized = FinalizeWriteRequest {
        path,
        inode: given.inode,
        size,
        md5: "0123456789abcdef0123456789abcdef".to_owned(),
        staged_block: 0,
    };
    client.finalize_write(finalized).await.unwrap();
}

/// A fleet that beats, until this is dropped.
pub struct Steady {
    beats: Arc<Mutex<Beats>>,
    _tasks: JoinSet<()>,
}

impl Steady {
    /// What was answered since the last call.
    pub fn take(&self) -> Beats {
        std::mem::replace(&mut self.beats.lock().unwrap(), Beats::new())
    }
}

/// Beats that were answered.
pub struct Beats {
    /// Nanoseconds from when a beat was due to its answer.
    pub latencies: Histogram<u64>,
    /// Commands in the answers.
    pub commands: usize,
}

impl Beats {
    fn new() -> Beats {
        Beats {
            latencies: Histogram::new(3).unwrap(),
            commands: 0,
        }
    }

    fn add(&mut self, due: Instant, commands: usize) {
        self.latencies.record(due.elapsed().as_nanos() as u64).unwrap();
        self.commands += commands;
    }

    pub fn count(&self) -> u64 {
        self.latencies.len()
    }
}
