//! A MetaServer for tests: the contract's answers over a tree in memory, on a port of its own.
//!
//! Several [`Server`]s may share one [`Cluster`], as the nodes of a real one share their state; each
//! can be told to misbehave. `tests/cli.rs` includes this file too.

#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Notify, oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

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

/// The state that servers share.
#[derive(Debug, Default)]
pub struct State {
    nodes: BTreeMap<String, Node>,
    /// First answers by request id.
    answers: HashMap<String, Result<(), (Code, String)>>,
    next_inode: u64,
    pub cluster: ClusterInfo,
    pub leader: Option<MetaServerMsg>,
}

#[derive(Debug, Clone)]
struct Node {
    inode: u64,
    directory: bool,
    size: i64,
    md5: String,
}

/// 2001-09-09T01:46:40.123Z: every node's time of change.
pub const MTIME: i64 = 1_000_000_000_123;

#[derive(Debug, Clone)]
pub struct Cluster(Arc<Mutex<State>>);

impl Default for Cluster {
    fn default() -> Self {
        let root = Node {
            inode: 1,
            directory: true,
            size: 0,
            md5: String::new(),
        };
        let nodes = BTreeMap::from([("/".to_string(), root)]);
        Cluster(Arc::new(Mutex::new(State {
            nodes,
            next_inode: 2,
            ..State::default()
        })))
    }
}

impl Cluster {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Every path but the root, in byte order.
    pub fn paths(&self) -> Vec<String> {
        self.state()
            .nodes
            .keys()
            .filter(|path| *path != "/")
            .cloned()
            .collect()
    }

    /// Adds a node behind the servers' backs.
    pub fn put(&self, path: &str, kind: FileType) {
        self.state().create(path, kind as i32).unwrap();
    }

    pub fn set_size(&self, path: &str, size: i64, md5: &str) {
        let mut state = self.state();
        let node = state.nodes.get_mut(path).unwrap();
        (node.size, node.md5) = (size, md5.to_string());
    }

    pub fn remove(&self, path: &str) {
        self.state().delete(path, true).unwrap();
    }

    /// Starts a server over this state.
    pub fn serve(&self) -> Server {
        Server::start(self.clone())
    }
}

impl State {
    fn create(&mut self, path: &str, kind: i32) -> Result<(), Status> {
        if !path.starts_with('/') {
            return Err(Status::invalid_argument(format!("path is not absolute: {path}")));
        }
        let path = clean(path);
        if self.nodes.contains_key(&path) {
            return Err(Status::already_exists(format!("already exists: {path}")));
        }
        let above = above(&path);
        match self.nodes.get(&above) {
            None => return Err(Status::not_found(format!("no such directory: {above}"))),
            Some(node) if !node.directory => {
                return Err(Status::failed_precondition(format!("not a directory: {above}")));
            }
            Some(_) => (),
        }
        let directory = kind == FileType::Directory as i32;
        self.nodes.insert(
            path,
            Node {
                inode: self.next_inode,
                directory,
                size: 0,
                md5: String::new(),
            },
        );
        self.next_inode += 1;
        Ok(())
    }

    fn delete(&mut self, path: &str, recursive: bool) -> Result<(), Status> {
        let path = clean(path);
        if path == "/" {
            return Err(Status::invalid_argument("the root cannot be deleted"));
        }
        self.node(&path)?;
        let below = self.below(&path);
        if !below.is_empty() && !recursive {
            return Err(Status::failed_precondition(format!(
                "directory not empty: {path}"
            )));
        }
        self.nodes.remove(&path);
        for gone in below {
            self.nodes.remove(&gone);
        }
        Ok(())
    }

    fn node(&self, path: &str) -> Result<&Node, Status> {
        self.nodes
            .get(path)
            .ok_or_else(|| Status::not_found(format!("not found: {path}")))
    }

    fn below(&self, path: &str) -> Vec<String> {
        let prefix = format!("{}/", path.trim_end_matches('/'));
        self.nodes
            .range(prefix.clone()..)
            .take_while(|(path, _)| path.starts_with(&prefix))
            .filter(|(path, _)| *path != "/")
            .map(|(path, _)| path.clone())
            .collect()
    }

    fn stat(&self, path: &str) -> Result<StatInfo, Status> {
        let node = self.node(path)?;
        let kind = if node.directory {
            FileType::Directory
        } else {
            FileType::File
        };
        let size = match node.directory {
            true => self.below(path).iter().map(|below| self.nodes[below].size).sum(),
            false => node.size,
        };
        let replica = ReplicaData {
            id: "7".into(),
            ds_node: "ds1:8001".into(),
            path: "7.dat".into(),
        };
        Ok(StatInfo {
            path: path.to_string(),
            size,
            mtime: MTIME,
            r#type: kind as i32,
            replica_data: if size > 0 && !node.directory {
                vec![replica]
            } else {
                Vec::new()
            },
            md5: node.md5.clone(),
        })
    }

    fn list(&self, path: &str) -> Result<Vec<StatInfo>, Status> {
        if !self.node(path)?.directory {
            return Err(Status::failed_precondition(format!("not a directory: {path}")));
        }
        let children = self.below(path).into_iter().filter(|child| above(child) == path);
        // The order of paths is not that of names ('/' sorts after '-'): children are siblings here.
        children.map(|child| self.stat(&child)).collect()
    }
}

fn clean(path: &str) -> String {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    format!("/{}", parts.join("/"))
}

fn above(path: &str) -> String {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/".to_string(),
        Some((above, _)) => above.to_string(),
    }
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
    asked: Vec<Asked>,
    status: Option<GetNodeStatusResponse>,
    /// Requests below this path wait until so many of them wait together.
    gate: Option<(String, usize)>,
    waiting: usize,
}

/// One running server. Dropping it is `kill -9`: its connections are gone, nobody is told.
pub struct Server {
    pub addr: String,
    handler: Handler,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(cluster: Cluster) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let handler = Handler {
            cluster,
            behaviour: Arc::default(),
            opened: Arc::default(),
            news: Arc::default(),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let services = tonic::transport::Server::builder()
            .add_service(MetaServerServiceServer::new(handler.clone()))
            .add_service(AdminServiceServer::new(handler.clone()));
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
        Server {
            addr,
            handler,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.handler.behaviour().next.extend(faults);
    }

    pub fn fail_always(&self, fault: Fault) {
        self.handler.behaviour().always = Some(fault);
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

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
        self.thread.take().map(JoinHandle::join);
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
            behaviour.next.pop_front().or_else(|| behaviour.always.clone())
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
        let GetBlockLocationsRequest { path, .. } = request.get_ref();
        self.enter("GetBlockLocations", path, request.metadata()).await?;
        let inode = self.cluster.state().node(&clean(path))?.inode;
        Ok(Response::new(GetBlockLocationsResponse {
            inode,
            block_locations: Vec::new(),
        }))
    }

    async fn finalize_write(&self, request: Request<FinalizeWriteRequest>) -> Answer<SimpleResponse> {
        let FinalizeWriteRequest {
            path,
            inode,
            size,
            md5,
            ..
        } = request.get_ref();
        let change = |state: &mut State| {
            let node = state
                .nodes
                .get_mut(&clean(path))
                .filter(|node| node.inode == *inode)
                .ok_or_else(|| {
                    Status::failed_precondition(format!("{path} is not inode {inode} any more"))
                })?;
            (node.size, node.md5) = (*size, md5.clone());
            Ok(())
        };
        self.change("FinalizeWrite", path, request.metadata(), change)
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
        Ok(Response::new(GetReplicationInfoResponse::default()))
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

    async fn check_files(&self, _: Request<CheckFilesRequest>) -> Answer<CheckFilesResponse> {
        Err(Status::unimplemented("not faked yet"))
    }

    async fn get_upkeep(&self, _: Request<GetUpkeepRequest>) -> Answer<GetUpkeepResponse> {
        Err(Status::unimplemented("not faked yet"))
    }

    async fn allow_mass_delete(&self, _: Request<AllowMassDeleteRequest>) -> Answer<AllowMassDeleteResponse> {
        Err(Status::unimplemented("not faked yet"))
    }
}
