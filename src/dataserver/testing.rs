//! What tests of DataServers need: a MetaServer that takes their beats and gives orders, and clients that
//! write and read blocks. `tests/dataserver.rs` includes this file too.

#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::proto::admin::admin_service_server::{AdminService, AdminServiceServer};
use crate::proto::admin::*;
use crate::proto::dfs::data_server_service_client::DataServerServiceClient;
use crate::proto::dfs::meta_server_service_server::{MetaServerService, MetaServerServiceServer};
use crate::proto::dfs::write_block_request::Content;
use crate::proto::dfs::*;

/// How long a test waits for a fact. Only a test that fails waits that long.
pub const EVENTUALLY: Duration = Duration::from_secs(60);

/// Asks `fact` until it gives something.
pub async fn until<T>(what: &str, mut fact: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = fact().await {
            return found;
        }
        assert!(begun.elapsed() < EVENTUALLY, "not within {EVENTUALLY:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a MetaServer saw and will say.
#[derive(Debug, Default)]
pub struct Desk {
    /// Every beat that was taken.
    pub beats: Vec<(Instant, HeartbeatRequest)>,
    /// For the next beat of the DataServer with this id.
    pub orders: Vec<(String, Command)>,
    pub cluster_id: String,
    /// Not the leader: it is there, if anywhere.
    pub refers_to: Option<Option<String>>,
}

/// A MetaServer on a port of its own. Dropping it is `kill -9`.
pub struct MetaServer {
    pub addr: String,
    desk: Arc<Mutex<Desk>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MetaServer {
    pub fn start() -> MetaServer {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let desk = Arc::<Mutex<Desk>>::default();
        let services = tonic::transport::Server::builder()
            .add_service(
                MetaServerServiceServer::new(Clerk(desk.clone())).max_decoding_message_size(64 << 20),
            )
            .add_service(AdminServiceServer::new(Clerk(desk.clone())));
        let (stop, stopped) = oneshot::channel::<()>();
        // A runtime of its own: with it go the tasks of all its connections.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    result = services.serve_with_incoming(TcpListenerStream::new(listener)) => result.unwrap(),
                    _ = stopped => (),
                }
            });
        });
        MetaServer {
            addr,
            desk,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap()
    }

    /// The last beat of `id`.
    pub fn last_beat(&self, id: &str) -> Option<HeartbeatRequest> {
        let desk = self.desk();
        let mut beats = desk.beats.iter().rev();
        beats
            .find(|(_, beat)| beat.data_server_id == id)
            .map(|(_, beat)| beat.clone())
    }

    /// Waits until `id` reports exactly these blocks.
    pub async fn reported(&self, id: &str, good: &[u64], corrupt: &[u64]) -> HeartbeatRequest {
        until(&format!("{id} reports {good:?} and {corrupt:?}"), async || {
            let beat = self.last_beat(id)?;
            (beat.block_ids_report.numbers() == good && beat.corrupt_block_ids == corrupt).then_some(beat)
        })
        .await
    }

    pub fn order(&self, id: &str, action: command::Action, block_id: u64, targets: &[&str]) {
        let targets = targets.iter().map(|&target| target.to_owned()).collect();
        let action = action as i32;
        let command = Command {
            action,
            block_id,
            targets,
        };
        self.desk().orders.push((id.to_owned(), command));
    }
}

impl Drop for MetaServer {
    fn drop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
        self.thread.take().map(JoinHandle::join);
    }
}

#[derive(Clone)]
struct Clerk(Arc<Mutex<Desk>>);

type Answer<T> = Result<Response<T>, Status>;

fn not_faked<T>() -> Answer<T> {
    Err(Status::unimplemented("not faked"))
}

#[tonic::async_trait]
impl MetaServerService for Clerk {
    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Answer<HeartbeatResponse> {
        let mut desk = self.0.lock().unwrap();
        if let Some(leader) = &desk.refers_to {
            let mut status = Status::unavailable("not the leader");
            if let Some(leader) = leader {
                status
                    .metadata_mut()
                    .insert("minfs-leader", leader.parse().unwrap());
            }
            return Err(status);
        }
        let beat = request.into_inner();
        let (given, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut desk.orders)
            .into_iter()
            .partition(|(id, _)| *id == beat.data_server_id);
        desk.orders = kept;
        desk.beats.push((Instant::now(), beat));
        Ok(Response::new(HeartbeatResponse {
            commands: given.into_iter().map(|(_, command)| command).collect(),
            cluster_id: desk.cluster_id.clone(),
        }))
    }

    async fn get_leader(&self, _: Request<GetLeaderRequest>) -> Answer<GetLeaderResponse> {
        Ok(Response::new(GetLeaderResponse::default()))
    }

    async fn create_node(&self, _: Request<CreateNodeRequest>) -> Answer<SimpleResponse> {
        not_faked()
    }

    async fn get_node_info(&self, _: Request<GetNodeInfoRequest>) -> Answer<GetNodeInfoResponse> {
        not_faked()
    }

    async fn list_directory(&self, _: Request<ListDirectoryRequest>) -> Answer<ListDirectoryResponse> {
        not_faked()
    }

    async fn delete_node(&self, _: Request<DeleteNodeRequest>) -> Answer<SimpleResponse> {
        not_faked()
    }

    async fn get_block_locations(
        &self,
        _: Request<GetBlockLocationsRequest>,
    ) -> Answer<GetBlockLocationsResponse> {
        not_faked()
    }

    async fn finalize_write(&self, _: Request<FinalizeWriteRequest>) -> Answer<SimpleResponse> {
        not_faked()
    }

    async fn get_cluster_info(&self, _: Request<GetClusterInfoRequest>) -> Answer<GetClusterInfoResponse> {
        not_faked()
    }

    async fn get_replication_info(
        &self,
        _: Request<GetReplicationInfoRequest>,
    ) -> Answer<GetReplicationInfoResponse> {
        not_faked()
    }

    async fn sync_wal(&self, _: Request<tonic::Streaming<LogEntry>>) -> Answer<SimpleResponse> {
        not_faked()
    }

    type RequestWALSyncStream = tokio_stream::Empty<Result<LogEntry, Status>>;

    async fn request_wal_sync(
        &self,
        _: Request<RequestWalSyncRequest>,
    ) -> Answer<Self::RequestWALSyncStream> {
        not_faked()
    }
}

#[tonic::async_trait]
impl AdminService for Clerk {
    async fn get_node_status(&self, _: Request<GetNodeStatusRequest>) -> Answer<GetNodeStatusResponse> {
        let cluster_id = self.0.lock().unwrap().cluster_id.clone();
        Ok(Response::new(GetNodeStatusResponse {
            cluster_id,
            ..Default::default()
        }))
    }

    async fn verify_state(&self, _: Request<VerifyStateRequest>) -> Answer<VerifyStateResponse> {
        not_faked()
    }

    async fn check_files(&self, _: Request<CheckFilesRequest>) -> Answer<CheckFilesResponse> {
        not_faked()
    }

    async fn get_upkeep(&self, _: Request<GetUpkeepRequest>) -> Answer<GetUpkeepResponse> {
        not_faked()
    }

    async fn allow_mass_delete(&self, _: Request<AllowMassDeleteRequest>) -> Answer<AllowMassDeleteResponse> {
        not_faked()
    }
}

/// A client of one DataServer.
pub type Peer = DataServerServiceClient<Channel>;

pub fn peer(addr: &str) -> Peer {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{addr}")).unwrap();
    Peer::new(endpoint.connect_lazy())
}

/// The first message of a write, as a client in the field sends it.
pub fn metadata(block_id: u64, replicas: &[&str]) -> WriteBlockMetadata {
    WriteBlockMetadata {
        block_id,
        replica_locations: replicas.iter().map(|&addr| addr.to_owned()).collect(),
        ..Default::default()
    }
}

/// The same, with the length and the checksum of the data.
pub fn declared(block_id: u64, replicas: &[&str], data: &[u8]) -> WriteBlockMetadata {
    WriteBlockMetadata {
        length: Some(data.len() as u64),
        crc32c: Some(crc32c::crc32c(data)),
        ..metadata(block_id, replicas)
    }
}

pub fn first(metadata: WriteBlockMetadata) -> WriteBlockRequest {
    WriteBlockRequest {
        content: Some(Content::Metadata(metadata)),
    }
}

pub fn chunk(data: impl Into<Bytes>) -> WriteBlockRequest {
    WriteBlockRequest {
        content: Some(Content::ChunkData(data.into())),
    }
}

/// Writes a block in messages of 64 KiB.
pub async fn write(
    peer: &Peer,
    metadata: WriteBlockMetadata,
    data: &[u8],
) -> Result<WriteBlockResponse, Status> {
    let chunks: Vec<_> = data.chunks(64 << 10).map(|data| chunk(data.to_vec())).collect();
    let messages = futures::stream::iter([first(metadata)]).chain(futures::stream::iter(chunks));
    Ok(peer.clone().write_block(messages).await?.into_inner())
}

/// A write that never ends after the data. Aborting the task breaks it off.
pub fn write_and_wait(
    peer: &Peer,
    metadata: WriteBlockMetadata,
    data: Vec<u8>,
) -> tokio::task::JoinHandle<Result<WriteBlockResponse, Status>> {
    let chunks: Vec<_> = data.chunks(64 << 10).map(|data| chunk(data.to_vec())).collect();
    let messages = futures::stream::iter([first(metadata)])
        .chain(futures::stream::iter(chunks))
        .chain(futures::stream::pending());
    let mut peer = peer.clone();
    tokio::spawn(async move { Ok(peer.write_block(messages).await?.into_inner()) })
}

pub async fn read(peer: &Peer, block_id: u64) -> Result<Vec<u8>, Status> {
    let mut stream = peer
        .clone()
        .read_block(ReadBlockRequest { block_id })
        .await?
        .into_inner();
    let mut data = Vec::new();
    while let Some(message) = stream.message().await? {
        assert!(message.chunk_data.len() <= 64 << 10);
        data.extend_from_slice(&message.chunk_data);
    }
    Ok(data)
}

/// Bytes that differ from place to place.
pub fn some_bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed)
        .collect()
}

/// Where a small block lies in a data directory.
pub fn block_file(dir: &Path, block: u64) -> PathBuf {
    assert!(block < 256);
    dir.join("blocks/00/00").join(format!("{block}.dat"))
}

/// How many blocks are half written in a data directory.
pub fn unfinished(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("tmp")).unwrap().count()
}
