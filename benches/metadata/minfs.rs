//! MinFS under test: three `metaserver` processes of this build, and what its requests look like.
//!
//! Made by `site` for a round, and by `main` to count flushes. The configuration is the product's default, but for `reads` of the lease variant,
//! and discovery, which is off: nobody looks for the nodes. Four DataServers that are only heartbeats make
//! allocation possible; they send some fifteen small requests a second.

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use minfs::proto::dfs::meta_server_service_client::MetaServerServiceClient;
use minfs::proto::dfs::{
    CreateNodeRequest, DeleteNodeRequest, FileType, FinalizeWriteRequest, GetBlockLocationsRequest,
    GetNodeInfoRequest, ListDirectoryRequest,
};
use tonic::transport::Channel;

use crate::cpu::Processes;
use crate::operation::Role;
use crate::support::cluster::{Cluster, Setup};
use crate::support::data_servers::Fleet;
use crate::system::{Connection, System};
use crate::workload::{File, MD5, SIZE};

/// Three replicas each need four DataServers for a choice.
const DATA_SERVERS: u16 = 4;

/// Three MetaServers.
pub struct Minfs {
    // Before the cluster: its beats end first.
    _fleet: Fleet,
    cluster: Cluster,
    leader: usize,
}

impl Minfs {
    /// A new cluster with empty directories that has a leader and knows its DataServers.
    pub async fn start(reads: &'static str) -> Minfs {
        let setup = Setup {
            reads,
            ..Setup::default()
        };
        let mut cluster = Cluster::formed(setup).await;
        let leader = cluster.leader().await;
        let _fleet = Fleet::start(&cluster, DATA_SERVERS).await;
        Minfs {
            cluster,
            leader,
            _fleet,
        }
    }
}

impl System for Minfs {
    fn connect(&self, role: Role) -> Connection {
        let node = match role {
            Role::Leader => self.leader,
            Role::Follower => self.cluster.others(self.leader)[0],
        };
        Connection::Minfs(MinfsConnection::new(self.cluster.channel(node)))
    }

    fn find_leader(&mut self) -> LocalBoxFuture<'_, Result<usize, String>> {
        async {
            self.leader = self.cluster.leader().await;
            Ok(self.leader)
        }
        .boxed_local()
    }

    fn processes(&self) -> Processes {
        let others = self.cluster.others(self.leader);
        Processes {
            leader: self.cluster.process(self.leader),
            followers: [self.cluster.process(others[0]), self.cluster.process(others[1])],
        }
    }
}

/// A connection to one MetaServer.
#[derive(Clone)]
pub struct MinfsConnection {
    client: MetaServerServiceClient<Channel>,
}

impl MinfsConnection {
    /// On this channel.
    pub fn new(channel: Channel) -> MinfsConnection {
        MinfsConnection {
            client: MetaServerServiceClient::new(channel),
        }
    }

    pub async fn make_directory(&mut self, path: &str) -> Result<(), String> {
        self.create_node(path, FileType::Directory).await
    }

    pub async fn create(&mut self, file: &File) -> Result<(), String> {
        self.create_node(&file.path, FileType::File).await
    }

    async fn create_node(&mut self, path: &str, r#type: FileType) -> Result<(), String> {
        let request = CreateNodeRequest {
            path: path.to_owned(),
            r#type: r#type as i32,
        };
        let answer = self.client.create_node(request).await;
        succeeded(
            answer.map(|answer| answer.into_inner().success),
            "CreateNode",
            path,
        )
    }

    pub async fn stat(&mut self, file: &File) -> Result<(), String> {
        let request = GetNodeInfoRequest {
            path: file.path.clone(),
        };
        let answer = self.client.get_node_info(request).await;
        let right = answer.map(|answer| {
            let stat = answer.into_inner().stat_info;
            stat.is_some_and(|stat| stat.path == file.path && stat.r#type() == FileType::File)
        });
        succeeded(right, "GetNodeInfo", &file.path)
    }

    pub async fn list(&mut self, directory: &str) -> Result<usize, String> {
        let request = ListDirectoryRequest {
            path: directory.to_owned(),
        };
        match self.client.list_directory(request).await {
            Ok(answer) => Ok(answer.into_inner().nodes.len()),
            Err(status) => Err(format!("MinFS: ListDirectory of {directory}: {status}")),
        }
    }

    pub async fn allocate(&mut self, file: &mut File) -> Result<(), String> {
        let request = GetBlockLocationsRequest {
            path: file.path.clone(),
            size: SIZE,
            staged: false,
        };
        let answer = self.client.get_block_locations(request).await;
        let right = answer.map(|answer| {
            let answer = answer.into_inner();
            file.inode = answer.inode;
            let blocks = &answer.block_locations;
            blocks.len() == 2 && blocks.iter().all(|block| block.locations.len() == 3)
        });
        succeeded(right, "GetBlockLocations", &file.path)
    }

    pub async fn finalize(&mut self, file: &File) -> Result<(), String> {
        let request = FinalizeWriteRequest {
            path: file.path.clone(),
            inode: file.inode,
            size: SIZE,
            md5: MD5.to_owned(),
            staged_block: 0,
        };
        let answer = self.client.finalize_write(request).await;
        succeeded(
            answer.map(|answer| answer.into_inner().success),
            "FinalizeWrite",
            &file.path,
        )
    }

    pub async fn delete(&mut self, file: &File) -> Result<(), String> {
        let request = DeleteNodeRequest {
            path: file.path.clone(),
            recursive: false,
        };
        let answer = self.client.delete_node(request).await;
        succeeded(
            answer.map(|answer| answer.into_inner().success),
            "DeleteNode",
            &file.path,
        )
    }
}

fn succeeded(answer: Result<bool, tonic::Status>, request: &str, path: &str) -> Result<(), String> {
    match answer {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("MinFS: {request} of {path}: a wrong answer")),
        Err(status) => Err(format!("MinFS: {request} of {path}: {status}")),
    }
}
