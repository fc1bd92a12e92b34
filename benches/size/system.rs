//! What the closed loop of `benches/metadata` knows of a system: a connection to a MetaServer.
//!
//! Used by `workload`. Every answer is checked; a wrong one is an error with the path in it, and ends the run.

use minfs::proto::dfs::meta_server_service_client::MetaServerServiceClient;
use minfs::proto::dfs::{CreateNodeRequest, FileType, GetNodeInfoRequest, ListDirectoryRequest};
use tonic::Code;
use tonic::transport::Channel;

/// One TCP connection, which clients may share.
#[derive(Clone)]
pub struct Connection {
    client: MetaServerServiceClient<Channel>,
}

impl Connection {
    /// On this channel.
    pub fn new(channel: Channel) -> Connection {
        Connection {
            // A listing of a thousand files is larger than a careful client's limit only with longer names.
            client: MetaServerServiceClient::new(channel),
        }
    }

    /// A new directory or file.
    pub async fn create(&mut self, path: &str, r#type: FileType) -> Result<(), tonic::Status> {
        let request = CreateNodeRequest {
            path: path.to_owned(),
            r#type: r#type as i32,
        };
        match self.client.create_node(request).await?.into_inner().success {
            true => Ok(()),
            false => Err(tonic::Status::new(Code::Unknown, "no success")),
        }
    }

    /// What is known of a file.
    pub async fn stat(&mut self, path: &str) -> Result<(), String> {
        let request = GetNodeInfoRequest {
            path: path.to_owned(),
        };
        let answer = self.client.get_node_info(request).await;
        let answer = answer.map_err(|status| format!("GetNodeInfo of {path}: {status}"))?;
        let stat = answer.into_inner().stat_info;
        match stat.is_some_and(|stat| stat.path == path && stat.r#type() == FileType::File) {
            true => Ok(()),
            false => Err(format!("GetNodeInfo of {path}: a wrong answer")),
        }
    }

    /// How many files are in a directory; all of them are sent.
    pub async fn list(&mut self, path: &str) -> Result<usize, String> {
        let request = ListDirectoryRequest {
            path: path.to_owned(),
        };
        let answer = self.client.list_directory(request).await;
        let answer = answer.map_err(|status| format!("ListDirectory of {path}: {status}"))?;
        Ok(answer.into_inner().nodes.len())
    }
}
