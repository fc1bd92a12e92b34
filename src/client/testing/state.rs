//! The state that the MetaServers of a test share: a tree in memory, its blocks, and canned answers.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use tonic::{Code, Status};

use super::Server;
use crate::proto::admin::*;
use crate::proto::dfs::*;

/// The state that servers share.
#[derive(Debug, Default)]
pub struct State {
    nodes: BTreeMap<String, Node>,
    /// First answers by request id.
    pub(super) answers: HashMap<String, Result<(), (Code, String)>>,
    next_inode: u64,
    next_block: u64,
    /// Staged writes by their first block.
    staged: HashMap<u64, Staged>,
    /// The DataServers that get blocks, each the first one in turn; none: allocations have no blocks.
    pub data_servers: Vec<String>,
    pub replication: usize,
    pub block_size: i64,
    /// What `GetReplicationInfo`, `CheckFiles` (by `after`), `GetUpkeep` and `AllowMassDelete` answer.
    pub replication_info: GetReplicationInfoResponse,
    pub pages: HashMap<String, CheckFilesResponse>,
    pub upkeep: GetUpkeepResponse,
    pub held_back: u64,
    pub cluster: ClusterInfo,
    pub leader: Option<MetaServerMsg>,
}

#[derive(Debug, Clone, Default)]
struct Node {
    inode: u64,
    directory: bool,
    size: i64,
    md5: String,
    /// Counts the changes: two contents of one path have different times.
    changes: i64,
    blocks: Vec<BlockLocations>,
}

#[derive(Debug)]
struct Staged {
    path: String,
    inode: u64,
    blocks: Vec<BlockLocations>,
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
            ..Node::default()
        };
        let nodes = BTreeMap::from([("/".to_string(), root)]);
        Cluster(Arc::new(Mutex::new(State {
            nodes,
            next_inode: 2,
            next_block: 1,
            replication: 3,
            block_size: 4 << 20,
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

    /// The blocks of a file.
    pub fn blocks(&self, path: &str) -> Vec<BlockLocations> {
        self.state().nodes[path].blocks.clone()
    }

    /// Gives a file other blocks, as an overwrite by somebody else does.
    pub fn set_blocks(&self, path: &str, blocks: Vec<BlockLocations>) {
        let mut state = self.state();
        let node = state.nodes.get_mut(path).unwrap();
        node.changes += 1;
        node.blocks = blocks;
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
    pub(super) fn create(&mut self, path: &str, kind: i32) -> Result<(), Status> {
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
                ..Node::default()
            },
        );
        self.next_inode += 1;
        Ok(())
    }

    pub(super) fn delete(&mut self, path: &str, recursive: bool) -> Result<(), Status> {
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

    /// The blocks of the file at `path` (`size` 0), or new ones.
    pub(super) fn locate(
        &mut self,
        request: &GetBlockLocationsRequest,
    ) -> Result<GetBlockLocationsResponse, Status> {
        let path = clean(&request.path);
        let there = self.nodes.get(&path).cloned();
        match &there {
            Some(node) if node.directory => {
                return Err(Status::failed_precondition(format!("not a file: {path}")));
            }
            Some(node) if request.size == 0 || (request.size == node.size && !request.staged) => {
                return Ok(GetBlockLocationsResponse {
                    inode: node.inode,
                    block_locations: node.blocks.clone(),
                });
            }
            None if request.size == 0 => return Err(Status::not_found(format!("not found: {path}"))),
            _ => (),
        }
        self.node(&above(&path))?;
        let blocks = self.allocate(request.size)?;
        if !request.staged {
            if there.is_none() {
                self.create(&path, FileType::File as i32)?;
            }
            let node = self.nodes.get_mut(&path).unwrap();
            node.blocks = blocks.clone();
            return Ok(GetBlockLocationsResponse {
                inode: node.inode,
                block_locations: blocks,
            });
        }
        let inode = self.next_inode;
        self.next_inode += 1;
        let block_locations = blocks.clone();
        if let Some(first) = blocks.first() {
            let staged = Staged {
                path,
                inode,
                blocks: blocks.clone(),
            };
            self.staged.insert(first.block_id, staged);
        }
        Ok(GetBlockLocationsResponse {
            inode,
            block_locations,
        })
    }

    fn allocate(&mut self, size: i64) -> Result<Vec<BlockLocations>, Status> {
        let (count, have) = (self.replication, self.data_servers.len());
        if have == 0 {
            return Ok(Vec::new());
        }
        if have < count {
            return Err(Status::failed_precondition(format!(
                "need {count} healthy DataServers, have {have}"
            )));
        }
        let blocks =
            (0..size.div_euclid(self.block_size) + i64::from(size % self.block_size > 0)).map(|index| {
                let mut locations = self.data_servers.clone();
                locations.rotate_left(usize::try_from(index).unwrap() % have);
                locations.truncate(count);
                self.next_block += 1;
                BlockLocations {
                    block_id: self.next_block,
                    locations,
                }
            });
        Ok(blocks.collect())
    }

    pub(super) fn finalize(&mut self, request: &FinalizeWriteRequest) -> Result<(), Status> {
        let path = clean(&request.path);
        let inode = request.inode;
        let mut finished = match self.staged.remove(&request.staged_block) {
            Some(staged) if staged.path == path && staged.inode == inode => Node {
                inode,
                blocks: staged.blocks,
                ..Node::default()
            },
            _ if request.staged_block > 0 => {
                return Err(Status::not_found(format!("no such write: {path}")));
            }
            _ => {
                let there = self.nodes.get(&path).filter(|node| node.inode == inode);
                there.cloned().ok_or_else(|| {
                    Status::failed_precondition(format!("{path} is not inode {inode} any more"))
                })?
            }
        };
        if self.nodes.get(&path).is_some_and(|node| node.directory) {
            return Err(Status::failed_precondition(format!("not a file: {path}")));
        }
        self.node(&above(&path))?;
        if request.size == 0 {
            finished.blocks.clear();
        }
        (finished.size, finished.md5) = (request.size, request.md5.clone());
        finished.changes = self.nodes.get(&path).map_or(0, |node| node.changes + 1);
        self.nodes.insert(path, finished);
        Ok(())
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

    pub(super) fn stat(&self, path: &str) -> Result<StatInfo, Status> {
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
            mtime: MTIME + node.changes,
            r#type: kind as i32,
            replica_data: if size > 0 && !node.directory {
                vec![replica]
            } else {
                Vec::new()
            },
            md5: node.md5.clone(),
        })
    }

    pub(super) fn list(&self, path: &str) -> Result<Vec<StatInfo>, Status> {
        if !self.node(path)?.directory {
            return Err(Status::failed_precondition(format!("not a directory: {path}")));
        }
        let children = self.below(path).into_iter().filter(|child| above(child) == path);
        // The order of paths is not that of names ('/' sorts after '-'): children are siblings here.
        children.map(|child| self.stat(&child)).collect()
    }
}

pub(super) fn clean(path: &str) -> String {
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
