//! The contract's service: each RPC is taken apart, answered by a method of [`Shared`] (in `reads`,
//! `writes`, `cluster` and `replication_info`), and its failure made a status.
//!
//! It runs as tasks beside the actors, and knows them only as recipients. Invariant: whatever a
//! neighbour does or does not, every method here ends within its [`Deadline`].

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use actix::{MailboxError, Message, Recipient};
use tokio::sync::Semaphore;
use tokio::time::timeout_at;
use tonic::codegen::BoxStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::forward::{self, PeerChannels};
use super::limits::Deadline;
use super::messages::WhoLeads;
use super::receipts::Receipt;
use super::status::{Failure, status_of};
use super::{GatewayNeighbours, GatewaySettings};
use crate::actors::raft_node::messages::LeadershipChanged;
use crate::domain::command::{Refusal, RequestId};
use crate::proto::dfs::meta_server_service_server::MetaServerService;
use crate::proto::dfs::*;
use crate::storage::StateReader;

/// The metadata key under which a caller names its request.
pub const REQUEST_ID_KEY: &str = "minfs-request-id";

/// What every request needs.
pub(super) struct Shared {
    pub(super) settings: GatewaySettings,
    pub(super) neighbours: GatewayNeighbours,
    pub(super) who_leads: Recipient<WhoLeads>,
    pub(super) state: StateReader,
    pub(super) peers: PeerChannels,
    pub(super) started: Instant,
    /// Whose turn it is to look at some of the state, where everything else runs.
    pub(super) looks: Semaphore,
    /// Whose turn it is to look at much of it, on a thread of its own.
    pub(super) large_looks: Arc<Semaphore>,
    /// Never changes once it is known, so that beats need not ask for it.
    pub(super) cluster_id: OnceLock<String>,
}

/// A request without its message.
pub(super) struct Call {
    pub(super) deadline: Deadline,
    metadata: MetadataMap,
    connected_from: Option<IpAddr>,
    /// Of a request that may come again without a name.
    pub(super) receipt: Option<Receipt>,
}

impl Call {
    /// The caller's name for the request, if it gave one.
    pub(super) fn request_id(&self) -> Result<Option<RequestId>, Refusal> {
        let id = self.metadata.get(REQUEST_ID_KEY);
        id.map(|id| RequestId::new(id.as_bytes())).transpose()
    }

    /// Whether another gateway passed it on.
    pub(super) fn is_forwarded(&self) -> bool {
        self.metadata.contains_key(forward::FORWARDED_KEY)
    }

    /// Where it came from first.
    pub(super) fn came_from(&self) -> Option<IpAddr> {
        if !self.is_forwarded() {
            return self.connected_from;
        }
        self.metadata.get(forward::PEER_KEY)?.to_str().ok()?.parse().ok()
    }
}

/// Why a neighbour has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// It is gone, and was not asked.
    NotAsked,
    /// It was asked.
    Asked,
}

/// Asks a neighbour, and waits for it no longer than `until`.
///
/// actix's own `send(..).timeout(..)` is not used: it does not look at the clock while the mailbox is
/// full.
pub(super) async fn ask<M>(of: &Recipient<M>, message: M, until: Instant) -> Result<M::Result, NoAnswer>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    if !of.connected() {
        return Err(NoAnswer::NotAsked);
    }
    // A clone a message: actix wakes a sender only once that met a full mailbox.
    match timeout_at(until.into(), of.clone().send(message)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(MailboxError::Closed | MailboxError::Timeout)) | Err(_) => Err(NoAnswer::Asked),
    }
}

impl Shared {
    /// Parts a request from its message.
    pub(super) fn open<T>(&self, request: Request<T>) -> (Call, T) {
        let connected_from = request.remote_addr().map(|address| address.ip().to_canonical());
        let (metadata, extensions, message) = request.into_parts();
        let deadline = extensions.get::<Deadline>().copied();
        let call = Call {
            deadline: deadline.unwrap_or_else(|| Deadline::within(self.settings.request_timeout)),
            metadata,
            connected_from,
            receipt: extensions.get().cloned(),
        };
        (call, message)
    }

    /// Makes the outcome of a request its answer.
    pub(super) async fn answer<T>(
        &self,
        call: &Call,
        outcome: impl Future<Output = Result<T, Failure>>,
    ) -> Result<Response<T>, Status> {
        let failure = match outcome.await {
            Ok(answer) => return Ok(Response::new(answer)),
            Err(failure) => failure,
        };
        if let Failure::Storage(error) = &failure {
            log::error!("a read failed: {error}");
        }
        if !failure.wants_leader() {
            return Err(status_of(failure, None));
        }
        let leader = self.who_leads(call).await.leader;
        Err(status_of(
            failure,
            leader.as_ref().map(|leader| leader.node.grpc_addr.as_str()),
        ))
    }

    /// Who leads, as far as this node knows.
    pub(super) async fn who_leads(&self, call: &Call) -> LeadershipChanged {
        // Without its actor the gateway is stopping, and knows nothing any more.
        let answer = ask(&self.who_leads, WhoLeads, call.deadline.for_handler()).await;
        answer.unwrap_or(LeadershipChanged::UNKNOWN)
    }
}

/// The contract's service.
#[derive(Clone)]
pub(super) struct MetaService(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl MetaServerService for MetaService {
    async fn create_node(
        &self,
        request: Request<CreateNodeRequest>,
    ) -> Result<Response<SimpleResponse>, Status> {
        let (call, message) = self.0.open(request);
        self.0.answer(&call, self.0.create_node(&call, message)).await
    }

    async fn get_node_info(
        &self,
        request: Request<GetNodeInfoRequest>,
    ) -> Result<Response<GetNodeInfoResponse>, Status> {
        let (call, message) = self.0.open(request);
        self.0.answer(&call, self.0.get_node_info(&call, message)).await
    }

    async fn list_directory(
        &self,
        request: Request<ListDirectoryRequest>,
    ) -> Result<Response<ListDirectoryResponse>, Status> {
        let (call, message) = self.0.open(request);
        self.0.answer(&call, self.0.list_directory(&call, message)).await
    }

    async fn delete_node(
        &self,
        request: Request<DeleteNodeRequest>,
    ) -> Result<Response<SimpleResponse>, Status> {
        let (call, message) = self.0.open(request);
        self.0.answer(&call, self.0.delete_node(&call, message)).await
    }

    async fn get_block_locations(
        &self,
        request: Request<GetBlockLocationsRequest>,
    ) -> Result<Response<GetBlockLocationsResponse>, Status> {
        let (call, message) = self.0.open(request);
        self.0
            .answer(&call, self.0.get_block_locations(&call, message))
            .await
    }

    async fn finalize_write(
        &self,
        request: Request<FinalizeWriteRequest>,
    ) -> Result<Response<SimpleResponse>, Status> {
        let (call, message) = self.0.open(request);
        self.0.answer(&call, self.0.finalize_write(&call, message)).await
    }

    async fn get_cluster_info(
        &self,
        request: Request<GetClusterInfoRequest>,
    ) -> Result<Response<GetClusterInfoResponse>, Status> {
        let (call, message) = self.0.open(request);
        self.0
            .answer(&call, self.0.get_cluster_info(&call, message))
            .await
    }

    async fn get_replication_info(
        &self,
        request: Request<GetReplicationInfoRequest>,
    ) -> Result<Response<GetReplicationInfoResponse>, Status> {
        let (call, message) = self.0.open(request);
        self.0
            .answer(&call, self.0.get_replication_info(&call, message))
            .await
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let (call, message) = self.0.open(request);
        self.0.answer(&call, self.0.heartbeat(&call, message)).await
    }

    async fn get_leader(
        &self,
        request: Request<GetLeaderRequest>,
    ) -> Result<Response<GetLeaderResponse>, Status> {
        let (call, _) = self.0.open(request);
        Ok(Response::new(self.0.get_leader(&call).await))
    }

    /// Fails without reading the stream: some old clients send entries of another shape.
    async fn sync_wal(&self, _: Request<Streaming<LogEntry>>) -> Result<Response<SimpleResponse>, Status> {
        Err(status_of(Failure::Deprecated, None))
    }

    type RequestWALSyncStream = BoxStream<LogEntry>;

    async fn request_wal_sync(
        &self,
        _: Request<RequestWalSyncRequest>,
    ) -> Result<Response<Self::RequestWALSyncStream>, Status> {
        Err(status_of(Failure::Deprecated, None))
    }
}
