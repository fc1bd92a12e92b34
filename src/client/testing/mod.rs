//! Servers for tests, each on a port of its own: MetaServers that give the contract's answers over a tree in
//! memory, and DataServers.
//!
//! Several [`Server`]s may share one [`Cluster`], as the nodes of a real one share their state; each
//! can be told to misbehave, and so can a [`DataServer`]. `tests/cli.rs` includes this room too.

#![allow(dead_code)]

mod data_server;
mod state;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Notify, oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataMap;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status};

#[allow(unused_imports)]
pub use self::data_server::{DataFault, DataServer};
#[allow(unused_imports)]
pub use self::state::{Cluster, MTIME};
use self::state::{State, clean};
use crate::proto::admin::admin_service_server::{AdminService, AdminServiceServer};
use crate::proto::admin::*;
use crate::proto::dfs::meta_server_service_server::{MetaServerService, MetaServerServiceServer};
use crate::proto::dfs::*;

/// What goes wrong with one request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// UNAVAILABLE, perhaps with the leader's address in the trailer.
    Unavailable { leader: Option<String> },
    /// RESOURCE_EXHAUSTED: the queue is full.
    Overloaded,
    /// The change is made, but the answer is DEADLINE_EXCEEDED.
    DoneButUnknown,
    /// DEADLINE_EXCEEDED, and the change is not made.
    Lost,
    /// No answer, ever.
    Hang,
    /// INTERNAL.
    Broken,
}

/// What a server was asked: the RPC, the path, the request id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub rpc: &'static str,
    pub path: String,
    pub id: Option<String>,
}

#[derive(Debug, Default)]
struct Behaviour {
    /// One for each of the next requests.
    next: VecDeque<Fault>,
    /// For every request after those.
    always: Option<Fault>,
    /// For every request of one RPC.
    of_rpc: Option<(&'static str, Fault)>,
    asked: Vec<Asked>,
    status: Option<GetNodeStatusResponse>,
    verification: Option<VerifyStateResponse>,
    /// Requests below this path wait until so many of them wait together.
    gate: Option<(String, usize)>,
    waiting: usize,
}

/// A server with a port and a thread of its own. Dropping it is `kill -9`: its connections are gone, nobody is
/// told.
struct Running {
    addr: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Listens, and then serves what `services` makes of the address.
    fn start(services: impl FnOnce(&str) -> Router) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let services = services(&addr);
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
        Running {
            addr,
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
        self.thread.take().map(JoinHandle::join);
    }
}

/// One running MetaServer.
pub struct Server {
    pub addr: String,
    handler: Handler,
    _running: Running,
}

impl Server {
    fn start(cluster: Cluster) -> Self {
        let handler = Handler {
            cluster,
            behaviour: Arc::default(),
            opened: Arc::default(),
            news: Arc::default(),
        };
        let running = Running::start(|_| {
            tonic::transport::Server::builder()
                .add_service(MetaServerServiceServer::new(handler.clone()))
                .add_service(AdminServiceServer::new(handler.clone()))
        });
        Server {
            addr: running.addr.clone(),
            handler,
            _running: running,
        }
    }

    pub fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.handler.behaviour().next.extend(faults);
    }

    pub fn fail_always(&self, fault: Fault) {
        self.handler.behaviour().always = Some(fault);
    }

    pub fn fail_rpc(&self, rpc: &'static str, fault: Fault) {
        self.handler.behaviour().of_rpc = Some((rpc, fault));
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.handler.behaviour().asked.clone()
    }

    /// A view on what this server is asked, for another thread.
    pub fn watch(&self) -> Watch {
        Watch {
            handler: self.handler.clone(),
        }
    }

    /// How often `rpc` was asked.
    pub fn count(&self, rpc: &str) -> usize {
        self.asked().iter().filter(|asked| asked.rpc == rpc).count()
    }

    pub fn set_status(&self, status: GetNodeStatusResponse) {
        self.handler.behaviour().status = Some(status);
    }

    pub fn set_verification(&self, verification: VerifyStateResponse) {
        self.handler.behaviour().verification = Some(verification);
    }

    /// Requests for paths that begin with `below` are only answered once `together` of them wait.
    pub fn gate(&self, below: &str, together: usize) {
        self.handler.behaviour().gate = Some((below.to_string(), together));
    }
}

/// See [`Server::watch`].
pub struct Watch {
    handler: Handler,
}

impl Watch {
    /// Blocks until what was asked so far fulfils `condition`.
    pub fn wait_until(&self, condition: impl Fn(&[Asked]) -> bool) {
        let mut behaviour = self.handler.behaviour();
        while !condition(&behaviour.asked) {
            behaviour = self.handler.news.wait(behaviour).unwrap();
        }
    }
}

/// An address that refuses connections: bound, so that nobody else takes it, but never listening.
pub struct DeadAddress {
    pub addr: String,
    _socket: TcpSocket,
}

impl DeadAddress {
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        DeadAddress {
            addr: socket.local_addr().unwrap().to_string(),
            _socket: socket,
        }
    }
}

#[derive(Clone)]
struct Handler {
    cluster: Cluster,
    behaviour: Arc<Mutex<Behaviour>>,
    opened: Arc<Notify>,
    /// Signalled on every request.
    news: Arc<Condvar>,
}

impl Handler {
    fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().unwrap()
    }

    /// Notes the request, waits at the gate, and misbehaves as told. Returns the request's id and
    /// whether the answer is to be lost although the change is made.
    async fn enter(
        &self,
        rpc: &'static str,
        path: &str,
        metadata: &MetadataMap,
    ) -> Result<(Option<String>, bool), Status> {
        let id = metadata
            .get("minfs-request-id")
            .map(|id| id.to_str().unwrap().to_string());
        let fault = {
            let mut behaviour = self.behaviour();
            behaviour.asked.push(Asked {
                rpc,
                path: path.to_string(),
                id: id.clone(),
            });
            self.news.notify_all();
            let of_rpc = behaviour.of_rpc.clone().filter(|(failing, _)| *failing == rpc);
            let next = of_rpc.map(|(_, fault)| fault);
            next.or_else(|| behaviour.next.pop_front())
                .or_else(|| behaviour.always.clone())
        };
        self.pass_gate(path).await;
        match fault {
            None => Ok((id, false)),
            Some(Fault::DoneButUnknown) => Ok((id, true)),
            Some(Fault::Unavailable { leader }) => {
                let mut status = Status::unavailable("not the leader");
                if let Some(leader) = leader {
                    status
                        .metadata_mut()
                        .insert("minfs-leader", leader.parse().unwrap());
                }
                Err(status)
            }
            Some(Fault::Overloaded) => Err(Status::resource_exhausted("the queue is full")),
            Some(Fault::Lost) => Err(Status::deadline_exceeded("the proposal's fate is unknown")),
            Some(Fault::Broken) => Err(Status::internal("out of order")),
            Some(Fault::Hang) => std::future::pending().await,
        }
    }

    async fn pass_gate(&self, path: &str) {
        let opened = self.opened.notified();
        {
            let mut behaviour = self.behaviour();
            match behaviour.gate.clone() {
                Some((below, together)) if path.starts_with(&below) => {
                    behaviour.waiting += 1;
                    if behaviour.waiting >= together {
                        behaviour.gate = None;
                        self.opened.notify_waiters();
                        return;
                    }
                }
                _ => return,
            }
        }
        opened.await;
    }

    async fn change(
        &self,
        rpc: &'static str,
        path: &str,
        metadata: &MetadataMap,
        change: impl FnOnce(&mut State) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let (id, lost) = self.enter(rpc, path, metadata).await?;
        let mut state = self.cluster.state();
        let remembered = id.as_ref().and_then(|id| state.answers.get(id).cloned());
        let answer = match remembered {
            Some(answer) => answer,
            None => {
                let answer =
                    change(&mut state).map_err(|status| (status.code(), status.message().to_string()));
                if let Some(id) = id {
                    state.answers.insert(id, answer.clone());
                }
                answer
            }
        };
        match lost {
            true => Err(Status::deadline_exceeded("the proposal's fate is unknown")),
            false => answer.map_err(|(code, message)| Status::new(code, message)),
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn done() -> Response<SimpleResponse> {
    Response::new(SimpleResponse {
        success: true,
        message: String::new(),
    })
}

#[tonic::async_trait]
impl MetaServerService for Handler {
    async fn create_node(&self, request: Request<CreateNodeRequest>) -> Answer<SimpleResponse> {
        let CreateNodeRequest { path, r#type } = request.get_ref();
        self.change("CreateNode", path, request.metadata(), |state| {
            state.create(path, *r#type)
        })
        .await?;
        Ok(done())
    }

    async fn get_node_info(&self, request: Request<GetNodeInfoRequest>) -> Answer<GetNodeInfoResponse> {
        let path = &request.get_ref().path;
        self.enter("GetNodeInfo", path, request.metadata()).await?;
        if !path.starts_with('/') {
            return Err(Status::invalid_argument(format!("path is not absolute: {path}")));
        }
        let stat_info = self.cluster.state().stat(&clean(path))?;
        Ok(Response::new(GetNodeInfoResponse {
            stat_info: Some(stat_info),
        }))
    }

    async fn list_directory(&self, request: Request<ListDirectoryRequest>) -> Answer<ListDirectoryResponse> {
        let path = &request.get_ref().path;
        self.enter("ListDirectory", path, request.metadata()).await?;
        let nodes = self.cluster.state().list(&clean(path))?;
        Ok(Response::new(ListDirectoryResponse { nodes }))
    }

    async fn delete_node(&self, request: Request<DeleteNodeRequest>) -> Answer<SimpleResponse> {
        let DeleteNodeRequest { path, recursive } = request.get_ref();
        self.change("DeleteNode", path, request.metadata(), |state| {
            state.delete(path, *recursive)
        })
        .await?;
        Ok(done())
    }

    async fn get_block_locations(
        &self,
        request: Request<GetBlockLocationsRequest>,
    ) -> Answer<GetBlockLocationsResponse> {
        let asked = request.get_ref();
        self.enter("GetBlockLocations", &asked.path, request.metadata())
            .await?;
        self.cluster.state().locate(asked).map(Response::new)
    }

    async fn finalize_write(&self, request: Request<FinalizeWriteRequest>) -> Answer<SimpleResponse> {
        let asked = request.get_ref();
        let change = |state: &mut State| state.finalize(asked);
        self.change("FinalizeWrite", &asked.path, request.metadata(), change)
            .await?;
        Ok(done())
    }

    async fn get_cluster_info(
        &self,
        request: Request<GetClusterInfoRequest>,
    ) -> Answer<GetClusterInfoResponse> {
        self.enter("GetClusterInfo", "", request.metadata()).await?;
        let cluster_info = Some(self.cluster.state().cluster.clone());
        Ok(Response::new(GetClusterInfoResponse { cluster_info }))
    }

    async fn get_replication_info(
        &self,
        request: Request<GetReplicationInfoRequest>,
    ) -> Answer<GetReplicationInfoResponse> {
        self.enter("GetReplicationInfo", &request.get_ref().path, request.metadata())
            .await?;
        Ok(Response::new(self.cluster.state().replication_info.clone()))
    }

    async fn heartbeat(&self, _: Request<HeartbeatRequest>) -> Answer<HeartbeatResponse> {
        Ok(Response::new(HeartbeatResponse::default()))
    }

    async fn get_leader(&self, request: Request<GetLeaderRequest>) -> Answer<GetLeaderResponse> {
        self.enter("GetLeader", "", request.metadata()).await?;
        let state = self.cluster.state();
        let followers = state.cluster.slave_meta_server.clone();
        Ok(Response::new(GetLeaderResponse {
            leader: state.leader.clone(),
            followers,
        }))
    }

    async fn sync_wal(&self, _: Request<tonic::Streaming<LogEntry>>) -> Answer<SimpleResponse> {
        Err(Status::unimplemented("deprecated"))
    }

    type RequestWALSyncStream = tokio_stream::Empty<Result<LogEntry, Status>>;

    async fn request_wal_sync(
        &self,
        _: Request<RequestWalSyncRequest>,
    ) -> Answer<Self::RequestWALSyncStream> {
        Err(Status::unimplemented("deprecated"))
    }
}

#[tonic::async_trait]
impl AdminService for Handler {
    async fn get_node_status(&self, _: Request<GetNodeStatusRequest>) -> Answer<GetNodeStatusResponse> {
        match self.behaviour().status.clone() {
            Some(status) => Ok(Response::new(status)),
            None => Err(Status::unimplemented("no status")),
        }
    }

    async fn verify_state(&self, _: Request<VerifyStateRequest>) -> Answer<VerifyStateResponse> {
        let answer = self.behaviour().verification.clone();
        answer
            .map(Response::new)
            .ok_or_else(|| Status::unimplemented("no verification"))
    }

    async fn check_files(&self, request: Request<CheckFilesRequest>) -> Answer<CheckFilesResponse> {
        let asked = request.get_ref();
        self.enter("CheckFiles", &asked.path, request.metadata()).await?;
        let mut page = self.cluster.state().pages.get(&asked.after).cloned();
        if let Some(page) = &mut page {
            page.problems
                .truncate(usize::try_from(asked.max_problems).unwrap());
        }
        let missing = || Status::not_found(format!("not found: {}", asked.path));
        page.map(Response::new).ok_or_else(missing)
    }

    async fn get_upkeep(&self, request: Request<GetUpkeepRequest>) -> Answer<GetUpkeepResponse> {
        self.enter("GetUpkeep", "", request.metadata()).await?;
        Ok(Response::new(self.cluster.state().upkeep.clone()))
    }

    async fn allow_mass_delete(
        &self,
        request: Request<AllowMassDeleteRequest>,
    ) -> Answer<AllowMassDeleteResponse> {
        self.enter("AllowMassDelete", "", request.metadata()).await?;
        let blocks = std::mem::take(&mut self.cluster.state().held_back);
        Ok(Response::new(AllowMassDeleteResponse { blocks }))
    }
}
