//! The client: what the `minfs` command, and any Rust program, uses to talk to MetaServers.
//!
//! A [`Client`] follows the leader through a failover without bothering its user. Any MetaServer may
//! be asked anything, so it begins with the one that answered last and moves on when that one does
//! not answer, until the overall deadline. The invariant is in [`Error`]: a mistake, "nothing
//! happened" and "nobody knows" are never confused.
//!
//! - `endpoints`: where the servers are (given, or found in etcd)
//! - `servers`: one connection per server, and which one to begin with
//! - `retry`: which server next, and when to give up
//! - `error`: the outcomes
//! - [`files`]: the bytes of files, to and from DataServers

mod endpoints;
mod error;
pub mod files;
mod retry;
mod servers;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

pub use self::endpoints::{NODES, Source};
pub use self::error::Error;
use self::retry::Effect;
use self::servers::{Server, Servers};
use crate::proto::admin::admin_service_client::AdminServiceClient;
use crate::proto::admin::{
    AllowMassDeleteRequest, CheckFilesRequest, CheckFilesResponse, GetNodeStatusRequest,
    GetNodeStatusResponse, GetUpkeepRequest, GetUpkeepResponse, VerifyStateRequest, VerifyStateResponse,
};
use crate::proto::dfs::meta_server_service_client::MetaServerServiceClient;
use crate::proto::dfs::{
    ClusterInfo, CreateNodeRequest, DeleteNodeRequest, FileType, FinalizeWriteRequest,
    GetBlockLocationsRequest, GetBlockLocationsResponse, GetClusterInfoRequest, GetLeaderRequest,
    GetLeaderResponse, GetNodeInfoRequest, GetReplicationInfoRequest, GetReplicationInfoResponse,
    HeartbeatRequest, HeartbeatResponse, ListDirectoryRequest, MetaServerMsg, StatInfo,
};

/// The result of every operation of the client.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The gRPC metadata that lets a server recognise a repeat.
const REQUEST_ID: &str = "minfs-request-id";

/// How often etcd is asked again while no server answers.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How a client treats time and servers.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long one operation may take, all its attempts together. Default: 30 s.
    pub timeout: Duration,
    /// How long one attempt may take; doubled after each attempt that took longer. Default: 6 s, a
    /// little more than the servers' own bound, so that what they know about the fate of a request
    /// is heard.
    pub attempt_timeout: Duration,
    /// Ask only the servers of the [`Source`], even when they name another one as the leader.
    pub pinned: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(6),
            pinned: false,
        }
    }
}

/// A handle on the cluster. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    options: Options,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    source: Source,
    servers: Servers,
    /// When etcd was last asked; held while asking, so that many requests in trouble ask once.
    last_look: tokio::sync::Mutex<Instant>,
}

impl Client {
    /// Makes a client. With a list of servers nothing is sent yet; with etcd, the servers are looked
    /// up, again and again until `options.timeout` has passed.
    ///
    /// # Errors
    /// [`Error::Address`], or [`Error::Unavailable`] when etcd names no MetaServer.
    pub async fn connect(source: Source, options: Options) -> Result<Self> {
        let servers = match &source {
            Source::Servers(addresses) => Servers::new(addresses)?,
            Source::Etcd(etcd) => Servers::new(&discover(etcd, options.timeout).await?)?,
        };
        let last_look = tokio::sync::Mutex::new(Instant::now());
        Ok(Self {
            options,
            inner: Arc::new(Inner {
                source,
                servers,
                last_look,
            }),
        })
    }

    /// How long one operation may take, all its attempts together.
    pub fn timeout(&self) -> Duration {
        self.options.timeout
    }

    /// The addresses of the servers known so far.
    pub fn addresses(&self) -> Vec<String> {
        self.inner.servers.addresses()
    }

    /// Creates an empty file or a directory below an existing directory.
    ///
    /// # Errors
    /// Besides the common ones: [`Error::NotFound`] (the parent), [`Error::AlreadyExists`],
    /// [`Error::FailedPrecondition`] (the parent is a file).
    pub async fn create(&self, path: &str, kind: FileType) -> Result<()> {
        let request = CreateNodeRequest {
            path: path.to_string(),
            r#type: kind as i32,
        };
        self.call(Effect::Mutates, request, |mut server, request| {
            Box::pin(async move { server.create_node(request).await })
        })
        .await
        .map(|_| ())
    }

    /// Makes `path` a directory, and its parents too, as far as they are missing. Returns the
    /// directories that were created, parents first; those that were there are fine.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] when `path` is there and not a directory, and those of [`Self::create`].
    pub async fn create_with_parents(&self, path: &str) -> Result<Vec<String>> {
        // Up to the first directory that is there or can be made, then down again.
        let mut missing = Vec::new();
        let mut created = Vec::new();
        let mut at = path;
        loop {
            match (self.create_directory(at).await, parent(at)) {
                (Err(Error::NotFound(_)), Some(above)) => {
                    missing.push(at);
                    at = above;
                }
                (done, _) => {
                    created.extend(done?);
                    break;
                }
            }
        }
        while let Some(directory) = missing.pop() {
            created.extend(self.create_directory(directory).await?);
        }
        Ok(created)
    }

    /// Returns the path when it was created, nothing when it already was a directory.
    async fn create_directory(&self, path: &str) -> Result<Option<String>> {
        match self.create(path, FileType::Directory).await {
            Ok(()) => Ok(Some(path.to_string())),
            Err(taken @ Error::AlreadyExists(_)) => match self.stat(path).await?.r#type() {
                FileType::Directory => Ok(None),
                FileType::File | FileType::Volume | FileType::Unknown => Err(taken),
            },
            Err(error) => Err(error),
        }
    }

    /// What is known about one path. The size of a directory is the sum of the files below it.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn stat(&self, path: &str) -> Result<StatInfo> {
        let request = GetNodeInfoRequest {
            path: path.to_string(),
        };
        let answer = self
            .call(Effect::Reads, request, |mut server, request| {
                Box::pin(async move { server.get_node_info(request).await })
            })
            .await?;
        answer.stat_info.ok_or_else(|| incomplete("GetNodeInfo"))
    }

    /// The children of a directory, in byte order of their names.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::FailedPrecondition`] (it is a file).
    pub async fn list(&self, path: &str) -> Result<Vec<StatInfo>> {
        let request = ListDirectoryRequest {
            path: path.to_string(),
        };
        let answer = self
            .call(Effect::Reads, request, |mut server, request| {
                Box::pin(async move { server.list_directory(request).await })
            })
            .await?;
        Ok(answer.nodes)
    }

    /// Deletes a file, an empty directory or, when `recursive`, a whole tree.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::FailedPrecondition`] (not empty), [`Error::InvalidArgument`] (the
    /// root).
    pub async fn delete(&self, path: &str, recursive: bool) -> Result<()> {
        let request = DeleteNodeRequest {
            path: path.to_string(),
            recursive,
        };
        self.call(Effect::Mutates, request, |mut server, request| {
            Box::pin(async move { server.delete_node(request).await })
        })
        .await
        .map(|_| ())
    }

    /// The blocks of a file, in order, and where they are.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::FailedPrecondition`] (it is a directory).
    pub async fn block_locations(&self, path: &str) -> Result<GetBlockLocationsResponse> {
        self.blocks(Effect::Reads, path, 0, false).await
    }

    /// Allocates new blocks for a file of `size` bytes (more than 0), which replace those it had. The
    /// file is created when its parent exists. A file whose stored size is `size` keeps its blocks.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] (too few DataServers, a directory), [`Error::InvalidArgument`].
    pub async fn allocate(&self, path: &str, size: i64) -> Result<GetBlockLocationsResponse> {
        self.blocks(Effect::Mutates, path, size, false).await
    }

    /// Allocates blocks for a new content of `size` bytes (more than 0) of the file at `path`, there or
    /// not. Nobody sees them, and what is at `path` stays, until [`Self::finalize_staged`]; if that never
    /// comes, the servers free them.
    ///
    /// # Errors
    /// As [`Self::allocate`], and [`Error::NotFound`] (the parent).
    pub async fn stage(&self, path: &str, size: i64) -> Result<GetBlockLocationsResponse> {
        self.blocks(Effect::Mutates, path, size, true).await
    }

    async fn blocks(
        &self,
        effect: Effect,
        path: &str,
        size: i64,
        staged: bool,
    ) -> Result<GetBlockLocationsResponse> {
        let request = GetBlockLocationsRequest {
            path: path.to_string(),
            size,
            staged,
        };
        self.call(effect, request, |mut server, request| {
            Box::pin(async move { server.get_block_locations(request).await })
        })
        .await
    }

    /// Declares the file `inode` at `path` written: `size` bytes with the digest `md5`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::FailedPrecondition`] (another file is there now, or `size` exceeds
    /// the allocated blocks).
    pub async fn finalize(&self, path: &str, inode: u64, size: i64, md5: &str) -> Result<()> {
        self.end_write(path, inode, size, md5, 0).await
    }

    /// Puts the blocks of a staged write (see [`Self::stage`]) at `path`, in one step: a file that was
    /// there is replaced. `staged_block` is the first block that was allocated.
    ///
    /// # Errors
    /// [`Error::NotFound`] (the parent is gone, or the write was given up and freed),
    /// [`Error::FailedPrecondition`] (a directory is there, or `size` exceeds the allocated blocks).
    pub async fn finalize_staged(
        &self,
        path: &str,
        inode: u64,
        staged_block: u64,
        size: i64,
        md5: &str,
    ) -> Result<()> {
        self.end_write(path, inode, size, md5, staged_block).await
    }

    async fn end_write(&self, path: &str, inode: u64, size: i64, md5: &str, staged_block: u64) -> Result<()> {
        let request = FinalizeWriteRequest {
            path: path.to_string(),
            inode,
            size,
            md5: md5.to_string(),
            staged_block,
        };
        self.call(Effect::Mutates, request, |mut server, request| {
            Box::pin(async move { server.finalize_write(request).await })
        })
        .await
        .map(|_| ())
    }

    /// The MetaServers and DataServers of the cluster.
    ///
    /// # Errors
    /// The common ones.
    pub async fn cluster_info(&self) -> Result<ClusterInfo> {
        let answer = self
            .call(Effect::Reads, GetClusterInfoRequest {}, |mut server, request| {
                Box::pin(async move { server.get_cluster_info(request).await })
            })
            .await?;
        answer.cluster_info.ok_or_else(|| incomplete("GetClusterInfo"))
    }

    /// How well the file at `path` is replicated; every file's state when `path` is empty.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn replication_info(&self, path: &str) -> Result<GetReplicationInfoResponse> {
        let request = GetReplicationInfoRequest {
            path: path.to_string(),
        };
        self.call(Effect::Reads, request, |mut server, request| {
            Box::pin(async move { server.get_replication_info(request).await })
        })
        .await
    }

    /// Tells the leader that a DataServer is alive and what it holds; the answer is what it must do. For
    /// DataServers.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the beat makes no sense.
    pub async fn heartbeat(&self, beat: HeartbeatRequest) -> Result<HeartbeatResponse> {
        self.call(Effect::Reads, beat, |mut server, request| {
            Box::pin(async move { server.heartbeat(request).await })
        })
        .await
    }

    /// One page of an examination of files, by the leader.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InvalidArgument`].
    pub async fn check_files(&self, request: CheckFilesRequest) -> Result<CheckFilesResponse> {
        self.administer(request, |mut server, request| {
            Box::pin(async move { server.check_files(request).await })
        })
        .await
    }

    /// What the leader's upkeep knows, does and waits for.
    ///
    /// # Errors
    /// The common ones.
    pub async fn upkeep(&self) -> Result<GetUpkeepResponse> {
        self.administer(GetUpkeepRequest {}, |mut server, request| {
            Box::pin(async move { server.get_upkeep(request).await })
        })
        .await
    }

    /// The operator's word that the deletes which upkeep holds back now may go on. Returns how many.
    ///
    /// # Errors
    /// The common ones.
    pub async fn allow_mass_delete(&self) -> Result<u64> {
        let answer = self.administer(AllowMassDeleteRequest {}, |mut server, request| {
            Box::pin(async move { server.allow_mass_delete(request).await })
        });
        Ok(answer.await?.blocks)
    }

    /// Who leads. Asks one server after the other until one of them knows a leader.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when none does before the deadline.
    pub async fn leader(&self) -> Result<GetLeaderResponse> {
        self.call(Effect::Reads, GetLeaderRequest {}, |mut server, request| {
            Box::pin(async move {
                let answer = server.get_leader(request).await?;
                match answer.get_ref().leader {
                    Some(_) => Ok(answer),
                    None => Err(Status::unavailable("no leader is known")),
                }
            })
        })
        .await
    }

    /// Begins with the leader from now on, if it is among the known servers: saves the hop from a
    /// follower to it. Knowing none does no harm.
    pub async fn prefer_leader(&self) {
        let server = self.servers().get(self.servers().preferred());
        let asked = tokio::time::timeout(LOOK_AGAIN, server.meta().get_leader(GetLeaderRequest {})).await;
        if let Ok(Ok(answer)) = asked
            && let Some(leader) = answer.into_inner().leader
            && let Some(index) = self.servers().find(&host_port(&leader))
        {
            self.servers().prefer(index);
        }
    }

    /// What the server at `addr`, and no other, says of itself. One attempt, within `limit`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it does not answer.
    pub async fn node_status(&self, addr: &str, limit: Duration) -> Result<GetNodeStatusResponse> {
        let mut admin = self.node(addr)?.admin();
        of_one_node(limit, admin.get_node_status(GetNodeStatusRequest {})).await
    }

    /// How the verification of one node's state stands; with `begin`, one is begun unless it is under way. The
    /// node may be one of the client's or not.
    ///
    /// # Errors
    /// `Unavailable` when it does not answer within `limit`, and what it answers.
    pub async fn verify_state(
        &self,
        addr: &str,
        begin: bool,
        limit: Duration,
    ) -> Result<VerifyStateResponse> {
        let mut admin = self.node(addr)?.admin();
        of_one_node(limit, admin.verify_state(VerifyStateRequest { begin })).await
    }

    fn node(&self, addr: &str) -> Result<Server> {
        match self.servers().find(addr) {
            Some(index) => Ok(self.servers().get(index)),
            None => Server::new(addr),
        }
    }

    /// The same connections with another overall time limit.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            options: Options {
                timeout,
                ..self.options.clone()
            },
            inner: self.inner.clone(),
        }
    }

    /// One operation of the service, with a request id when it changes anything.
    async fn call<Q, A, F>(&self, effect: Effect, message: Q, send: F) -> Result<A>
    where
        Q: Clone,
        F: Fn(
            MetaServerServiceClient<Channel>,
            Request<Q>,
        ) -> BoxFuture<'static, std::result::Result<Response<A>, Status>>,
    {
        let id = match effect {
            Effect::Mutates => Some(request_id()?),
            Effect::Reads => None,
        };
        retry::run(self, effect, |server| {
            let mut request = Request::new(message.clone());
            if let Some(id) = &id {
                request.metadata_mut().insert(REQUEST_ID, id.clone());
            }
            send(server.meta(), request)
        })
        .await
    }

    /// One operation of the operators' service, which may be repeated, at the leader.
    async fn administer<Q, A, F>(&self, message: Q, send: F) -> Result<A>
    where
        Q: Clone,
        F: Fn(
            AdminServiceClient<Channel>,
            Request<Q>,
        ) -> BoxFuture<'static, std::result::Result<Response<A>, Status>>,
    {
        retry::run(self, Effect::Reads, |server| {
            send(server.admin(), Request::new(message.clone()))
        })
        .await
    }

    fn options(&self) -> &Options {
        &self.options
    }

    fn servers(&self) -> &Servers {
        &self.inner.servers
    }

    /// The server that another one called the leader, unless this client is pinned.
    fn follow(&self, leader: &str) -> Option<usize> {
        if self.options.pinned {
            return self.servers().find(leader);
        }
        self.servers().learn(leader)
    }

    /// Nobody answers: asks etcd, at most once in [`LOOK_AGAIN`], who is there now.
    async fn look_again(&self, deadline: Instant) {
        let Source::Etcd(etcd) = &self.inner.source else {
            return;
        };
        let Ok(mut last_look) = self.inner.last_look.try_lock() else {
            return;
        };
        if last_look.elapsed() < LOOK_AGAIN {
            return;
        }
        if let Ok(Ok(found)) = tokio::time::timeout_at(deadline, endpoints::discover(etcd)).await {
            for addr in &found {
                self.servers().learn(addr);
            }
        }
        *last_look = Instant::now();
    }
}

/// Asks etcd until it names a MetaServer.
async fn discover(etcd: &[String], limit: Duration) -> Result<Vec<String>> {
    let deadline = Instant::now() + limit;
    let mut rounds = 0;
    loop {
        let error = match endpoints::discover(etcd).await {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        rounds += 1;
        let pause = retry::pause(rounds, true, rand::random());
        if Instant::now() + pause >= deadline {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
    }
}

/// `host:port` of a server as the contract's messages name it.
pub fn host_port(server: &MetaServerMsg) -> String {
    format!("{}:{}", server.host, server.port)
}

/// What one node answers for itself: it is not repeated elsewhere.
async fn of_one_node<A>(
    limit: Duration,
    asked: impl Future<Output = std::result::Result<Response<A>, Status>>,
) -> Result<A> {
    match tokio::time::timeout(limit, asked).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => match retry::judge(&status) {
            retry::Verdict::Final(answer) => Err(answer),
            retry::Verdict::Retry { .. } => Err(Error::Unavailable(retry::describe(&status))),
        },
        Err(_) => Err(Error::Unavailable(format!("no answer within {limit:?}"))),
    }
}

/// 128 random bits in 32 hex digits: one logical operation.
fn request_id() -> Result<MetadataValue<Ascii>> {
    let id = format!("{:032x}", rand::random::<u128>());
    MetadataValue::try_from(id.as_str()).map_err(|_| Error::InvalidArgument(format!("request id {id}")))
}

/// The path above `path`; none above the root.
fn parent(path: &str) -> Option<&str> {
    let (above, _) = path.trim_end_matches('/').rsplit_once('/')?;
    Some(if above.is_empty() { "/" } else { above })
}

fn incomplete(rpc: &str) -> Error {
    Error::Server {
        code: tonic::Code::Internal,
        message: format!("{rpc} answered without its content"),
    }
}
