//! Stat, list, and the blocks of a file: linearizable reads, answered from this node's own state.
//!
//! The Raft node gives leave, then one read transaction is opened where the request stands and closed
//! before anything is awaited. A read that turns out large is done over on a thread of its own, so
//! that it does not hold up the requests, beats and heartbeats of the one that everything shares.

use std::collections::HashMap;

use tokio::time::timeout_at;

use super::service::{Call, Shared, ask};
use super::status::Failure;
use super::writes::allocation;
use crate::actors::raft_node::messages::AwaitRead;
use crate::domain::command::Refusal;
use crate::domain::ids::{BlockId, ServerId};
use crate::domain::namespace::find;
use crate::domain::path::CleanPath;
use crate::domain::replicas::{replicas_of, run_of_file};
use crate::domain::state::{BlockRun, DataServer, Entry, EntryKind, ReadTables, ServerStatus};
use crate::proto::dfs::{
    BlockLocations, FileType, GetBlockLocationsRequest, GetBlockLocationsResponse, GetNodeInfoRequest,
    GetNodeInfoResponse, ListDirectoryRequest, ListDirectoryResponse, ReplicaData, StatInfo,
};
use crate::storage::StorageError;
use crate::storage::tables::StateView;

/// How many records are read at once, without a thought: microseconds' worth.
const AT_ONCE: usize = 64;

/// How many records are read in place: a few milliseconds' worth.
const IN_PLACE: usize = 4096;

/// Why a look at the state has no answer.
pub(super) enum LookError {
    /// What was asked for does not make sense.
    Refused(Refusal),
    /// There are more records than the look may take.
    TooMany,
    /// The state cannot be read.
    Storage(StorageError),
}

impl From<Refusal> for LookError {
    fn from(refusal: Refusal) -> Self {
        LookError::Refused(refusal)
    }
}

impl From<StorageError> for LookError {
    fn from(error: StorageError) -> Self {
        LookError::Storage(error)
    }
}

impl Shared {
    /// Waits until a read transaction sees everything that was acknowledged before.
    pub(super) async fn await_read(&self, call: &Call) -> Result<(), Failure> {
        let question = AwaitRead {
            deadline: call.deadline.for_neighbours(),
        };
        match ask(&self.neighbours.await_read, question, call.deadline.for_handler()).await {
            Ok(leave) => leave.map_err(Failure::Read),
            Err(_) => Err(Failure::NoAnswer("the Raft node")),
        }
    }

    /// Looks at the state: at once when it is a matter of few records, in turn when it is one of more, and
    /// on another thread when it is one of many. `look` is told how many records it may take.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        call: &Call,
        look: impl Fn(&StateView<'_>, usize) -> Result<T, LookError> + Send + 'static,
    ) -> Result<T, Failure> {
        match self.state.read(|view| Ok(look(view, AT_ONCE)))? {
            Err(LookError::TooMany) => {}
            seen => return answer(seen),
        }
        match self.look_in_turn(call, &look).await? {
            Err(LookError::TooMany) => self.look_aside(call, move |view| look(view, usize::MAX)).await,
            seen => answer(seen),
        }
    }

    /// Looks in place, with few others: the rest of the server gets its turn after each few of them, however
    /// many there are.
    async fn look_in_turn<T>(
        &self,
        call: &Call,
        look: impl Fn(&StateView<'_>, usize) -> Result<T, LookError>,
    ) -> Result<Result<T, LookError>, Failure> {
        let turn = timeout_at(call.deadline.for_handler().into(), self.looks.acquire()).await;
        let turn = turn.map_err(|_| Failure::NoAnswer("the state in the given time"))?;
        let seen = self.state.read(|view| Ok(look(view, IN_PLACE)))?;
        tokio::task::yield_now().await;
        drop(turn);
        Ok(seen)
    }

    /// Looks at the state on another thread, in turn: what it sees may be large, and it goes on when nobody
    /// waits for it any more.
    pub(super) async fn look_aside<T: Send + 'static>(
        &self,
        call: &Call,
        look: impl FnOnce(&StateView<'_>) -> Result<T, LookError> + Send + 'static,
    ) -> Result<T, Failure> {
        let state = self.state.clone();
        let turn = self.large_looks.clone();
        let work = async {
            // Fails when the semaphore is closed; nobody closes it.
            let turn = turn.acquire_owned().await;
            let look = move || {
                let _turn = turn;
                state.read(|view| Ok(look(view)))
            };
            tokio::task::spawn_blocking(look).await
        };
        match timeout_at(call.deadline.for_handler().into(), work).await {
            Ok(Ok(seen)) => answer(seen?),
            Ok(Err(_)) => Err(Failure::NoAnswer("the reader")),
            Err(_) => Err(Failure::NoAnswer("the state in the given time")),
        }
    }

    pub(super) async fn get_node_info(
        &self,
        call: &Call,
        request: GetNodeInfoRequest,
    ) -> Result<GetNodeInfoResponse, Failure> {
        let path = CleanPath::parse(&request.path)?;
        self.await_read(call).await?;
        let stat_info = self
            .look(call, move |view, limit| stat(view, &path, limit))
            .await?;
        Ok(GetNodeInfoResponse {
            stat_info: Some(stat_info),
        })
    }

    pub(super) async fn list_directory(
        &self,
        call: &Call,
        request: ListDirectoryRequest,
    ) -> Result<ListDirectoryResponse, Failure> {
        let path = CleanPath::parse(&request.path)?;
        self.await_read(call).await?;
        let nodes = self
            .look(call, move |view, limit| list(view, &path, limit))
            .await?;
        Ok(ListDirectoryResponse { nodes })
    }

    pub(super) async fn get_block_locations(
        &self,
        call: &Call,
        request: GetBlockLocationsRequest,
    ) -> Result<GetBlockLocationsResponse, Failure> {
        let path = CleanPath::parse(&request.path)?;
        let size = self.allowed_size(request.size, &path)?;
        if request.staged && size == 0 {
            let why = format!("a staged write needs a size of more than 0 bytes: {path}");
            return Err(Refusal::invalid_argument(why).into());
        }
        self.await_read(call).await?;
        if let Some(id) = call.request_id()? {
            // The repeat of an allocation that was made gets its answer even if none could be made now.
            if let Some(first) = self.state.read(|view| view.remembered(&id))? {
                let asked = allocation(path, size, request.staged);
                return self.allocated(call, first.answer(asked.digest())?).await;
            }
        }
        if request.staged {
            return self.allocate(call, allocation(path, size, true)).await;
        }
        let wanted = path.clone();
        let there = self.look(call, move |view, limit| {
            existing_blocks(view, &wanted, size, limit)
        });
        match there.await? {
            Some(blocks) => Ok(blocks),
            None => self.allocate(call, allocation(path, size, false)).await,
        }
    }

    fn allowed_size(&self, size: i64, path: &CleanPath) -> Result<u64, Refusal> {
        let most = self.settings.max_file_size;
        match u64::try_from(size) {
            Ok(size) if size <= most => Ok(size),
            Ok(size) => Err(Refusal::invalid_argument(format!(
                "size {size} is beyond the largest file, {most} bytes: {path}"
            ))),
            Err(_) => Err(Refusal::invalid_argument(format!(
                "size {size} is negative: {path}"
            ))),
        }
    }
}

/// What a look has seen, as an answer.
fn answer<T>(seen: Result<T, LookError>) -> Result<T, Failure> {
    seen.map_err(|error| match error {
        LookError::Refused(refusal) => refusal.into(),
        LookError::Storage(error) => error.into(),
        LookError::TooMany => Failure::NoAnswer("the state in the given time"),
    })
}

/// What is at `path`.
pub(super) fn look_up(view: &StateView<'_>, path: &CleanPath) -> Result<Entry, LookError> {
    let found = find(view, path)?;
    found.ok_or_else(|| Refusal::not_found(format!("not found: {path}")).into())
}

fn stat(view: &StateView<'_>, path: &CleanPath, limit: usize) -> Result<StatInfo, LookError> {
    let entry = look_up(view, path)?;
    let mut info = stat_info(path, &entry);
    if let Some(run) = run_of_file(view, &entry)? {
        for block in Locator::new(view).blocks(&run, limit)? {
            let id = block.block_id;
            info.replica_data
                .extend(block.locations.into_iter().map(|ds_node| ReplicaData {
                    id: id.to_string(),
                    ds_node,
                    path: format!("{id}.dat"),
                }));
        }
    }
    Ok(info)
}

/// An entry's attributes, without its replicas.
fn stat_info(path: &CleanPath, entry: &Entry) -> StatInfo {
    let (kind, md5) = match &entry.kind {
        EntryKind::Directory => (FileType::Directory, String::new()),
        EntryKind::File { md5, .. } => (FileType::File, md5.clone()),
    };
    StatInfo {
        path: path.to_string(),
        size: i64::try_from(entry.size).unwrap_or(i64::MAX),
        mtime: entry.mtime_ms,
        r#type: kind.into(),
        replica_data: Vec::new(),
        md5,
    }
}

fn list(view: &StateView<'_>, path: &CleanPath, limit: usize) -> Result<Vec<StatInfo>, LookError> {
    let directory = look_up(view, path)?;
    if !directory.is_directory() {
        return Err(Refusal::failed_precondition(format!("not a directory: {path}")).into());
    }
    let children = view.children(directory.inode, limit.saturating_add(1))?;
    if children.len() > limit {
        return Err(LookError::TooMany);
    }
    let child = |(name, entry): &(String, Entry)| stat_info(&path.child(name), entry);
    Ok(children.iter().map(child).collect())
}

/// The blocks that a file has, if it is these that a request for `size` bytes means.
fn existing_blocks(
    view: &StateView<'_>,
    path: &CleanPath,
    size: u64,
    limit: usize,
) -> Result<Option<GetBlockLocationsResponse>, LookError> {
    let entry = match find(view, path)? {
        None if size == 0 => return Err(Refusal::not_found(format!("not found: {path}")).into()),
        None => return Ok(None),
        Some(entry) if entry.is_directory() => {
            return Err(Refusal::failed_precondition(format!("is a directory: {path}")).into());
        }
        Some(entry) if size == 0 || size == entry.size => entry,
        Some(_) => return Ok(None),
    };
    let block_locations = match run_of_file(view, &entry)? {
        Some(run) => Locator::new(view).blocks(&run, limit)?,
        None => Vec::new(),
    };
    Ok(Some(GetBlockLocationsResponse {
        inode: entry.inode.0,
        block_locations,
    }))
}

/// Finds the addresses of replicas; looks every DataServer up once.
pub(super) struct Locator<'v, 'e> {
    view: &'v StateView<'e>,
    servers: HashMap<ServerId, Option<DataServer>>,
}

impl<'v, 'e> Locator<'v, 'e> {
    pub(super) fn new(view: &'v StateView<'e>) -> Self {
        Locator {
            view,
            servers: HashMap::new(),
        }
    }

    /// The blocks of a run in order, each with its replicas.
    pub(super) fn blocks(&mut self, run: &BlockRun, limit: usize) -> Result<Vec<BlockLocations>, LookError> {
        if run.count > limit as u64 {
            return Err(LookError::TooMany);
        }
        let blocks = run.blocks().map(|block| {
            Ok(BlockLocations {
                block_id: block.0,
                locations: self.locations(run, block)?,
            })
        });
        blocks.collect()
    }

    /// Where the replicas of a block of `run` are: those on healthy DataServers first, because
    /// readers take the first one; otherwise in the order of their placement.
    fn locations(&mut self, run: &BlockRun, block: BlockId) -> Result<Vec<String>, StorageError> {
        let (mut healthy, mut others) = (Vec::new(), Vec::new());
        for replica in replicas_of(self.view, run, block)? {
            let Some(server) = self.server(replica)? else {
                continue;
            };
            match server.status {
                ServerStatus::Healthy => healthy.push(server.addr.clone()),
                ServerStatus::Unhealthy | ServerStatus::Down => others.push(server.addr.clone()),
            }
        }
        healthy.append(&mut others);
        Ok(healthy)
    }

    /// The addresses of these DataServers, in their order.
    pub(super) fn addresses(&mut self, servers: &[ServerId]) -> Result<Vec<String>, StorageError> {
        let mut addresses = Vec::with_capacity(servers.len());
        for &number in servers {
            addresses.extend(self.server(number)?.map(|server| server.addr.clone()));
        }
        Ok(addresses)
    }

    /// The DataServer with this number.
    pub(super) fn server(&mut self, number: ServerId) -> Result<Option<&DataServer>, StorageError> {
        if !self.servers.contains_key(&number) {
            self.servers.insert(number, self.view.server(number)?);
        }
        Ok(self.servers.get(&number).and_then(Option::as_ref))
    }
}
