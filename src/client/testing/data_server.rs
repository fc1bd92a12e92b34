//! A DataServer for tests: blocks in memory, passed on to the others as the contract says, and told to
//! misbehave.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use tokio::sync::Notify;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Answer, Cluster, Running};
use crate::proto::dfs::data_server_service_client::DataServerServiceClient;
use crate::proto::dfs::data_server_service_server::{DataServerService, DataServerServiceServer};
use crate::proto::dfs::write_block_request::Content;
use crate::proto::dfs::*;

const CHUNK: usize = 64 << 10;

/// What goes wrong with one block.
#[derive(Debug, Clone)]
pub enum DataFault {
    /// The answer is this status; nothing is kept.
    Refuse(Code),
    /// No answer, ever; of a read, none after the first chunk.
    Hang,
    /// Write: it is kept and not passed on, and the answer names these.
    Failed(Vec<String>),
    /// Write: it is kept and not passed on, and the answer names nobody, as old DataServers do.
    Unclear,
    /// Read: the last byte is missing.
    Short,
    /// Read: there is a byte too many.
    Long,
    /// Read: the first byte is another one.
    Altered,
}

#[derive(Debug, Default)]
struct Held {
    blocks: BTreeMap<u64, Bytes>,
    writes: VecDeque<DataFault>,
    reads: VecDeque<DataFault>,
    always: Option<DataFault>,
    /// The ids of the blocks that clients wrote here (with how many addresses) and read here.
    written: Vec<(u64, usize)>,
    read: Vec<u64>,
    /// Requests wait until so many of them wait together.
    gate: usize,
    waiting: usize,
    running: usize,
    most: usize,
}

/// One running DataServer.
pub struct DataServer {
    pub addr: String,
    handler: DataHandler,
    _running: Running,
}

impl DataServer {
    pub fn start() -> Self {
        let mut handler = None;
        let running = Running::start(|addr| {
            let handler = handler.insert(DataHandler {
                addr: addr.to_string(),
                held: Arc::default(),
                opened: Arc::default(),
            });
            tonic::transport::Server::builder().add_service(DataServerServiceServer::new(handler.clone()))
        });
        DataServer {
            addr: running.addr.clone(),
            handler: handler.unwrap(),
            _running: running,
        }
    }

    /// So many of them, which hold the cluster's blocks from now on.
    pub fn start_for(cluster: &Cluster, count: usize) -> Vec<Self> {
        let servers: Vec<_> = (0..count).map(|_| Self::start()).collect();
        cluster.state().data_servers = servers.iter().map(|server| server.addr.clone()).collect();
        servers
    }

    pub fn fail_writes(&self, faults: impl IntoIterator<Item = DataFault>) {
        self.handler.held().writes.extend(faults);
    }

    pub fn fail_reads(&self, faults: impl IntoIterator<Item = DataFault>) {
        self.handler.held().reads.extend(faults);
    }

    pub fn fail_always(&self, fault: DataFault) {
        self.handler.held().always = Some(fault);
    }

    pub fn blocks(&self) -> BTreeMap<u64, Bytes> {
        self.handler.held().blocks.clone()
    }

    pub fn forget(&self, block: u64) {
        self.handler.held().blocks.remove(&block);
    }

    /// What clients (not other DataServers) wrote here: block, and how many addresses came with it.
    pub fn written(&self) -> Vec<(u64, usize)> {
        self.handler.held().written.clone()
    }

    pub fn read(&self) -> Vec<u64> {
        self.handler.held().read.clone()
    }

    /// Requests are only answered once so many of them wait together.
    pub fn gate(&self, together: usize) {
        self.handler.held().gate = together;
    }

    /// The most requests of clients that were under way at one time.
    pub fn most_at_once(&self) -> usize {
        self.handler.held().most
    }
}

#[derive(Clone)]
struct DataHandler {
    addr: String,
    held: Arc<Mutex<Held>>,
    opened: Arc<Notify>,
}

/// Counts a request while it is under way.
struct UnderWay(DataHandler);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.held().running -= 1;
    }
}

impl DataHandler {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap()
    }

    async fn enter(&self) -> UnderWay {
        let opened = self.opened.notified();
        let waits = {
            let mut held = self.held();
            held.running += 1;
            held.most = held.most.max(held.running);
            held.waiting += 1;
            let waits = held.waiting < held.gate;
            if !waits {
                held.gate = 0;
                self.opened.notify_waiters();
            }
            waits
        };
        if waits {
            opened.await;
        }
        UnderWay(self.clone())
    }

    fn fault(&self, faults: impl Fn(&mut Held) -> &mut VecDeque<DataFault>) -> Option<DataFault> {
        let mut held = self.held();
        let next = faults(&mut held).pop_front();
        next.or_else(|| held.always.clone())
    }

    /// Passes a block on. Returns those that did not take it.
    async fn pass_on(&self, metadata: &WriteBlockMetadata, data: &Bytes) -> Vec<String> {
        let mut failed = Vec::new();
        for addr in metadata
            .replica_locations
            .iter()
            .filter(|addr| **addr != self.addr)
        {
            let metadata = WriteBlockMetadata {
                replica_locations: Vec::new(),
                ..metadata.clone()
            };
            let chunks: Vec<_> = data.chunks(CHUNK).map(|chunk| data.slice_ref(chunk)).collect();
            let messages = std::iter::once(Content::Metadata(metadata))
                .chain(chunks.into_iter().map(Content::ChunkData))
                .map(|content| WriteBlockRequest {
                    content: Some(content),
                });
            let taken = async {
                let mut other = DataServerServiceClient::connect(format!("http://{addr}"))
                    .await
                    .ok()?;
                let answer = other.write_block(stream::iter(messages)).await.ok()?;
                Some(answer.into_inner().success)
            };
            if taken.await != Some(true) {
                failed.push(addr.clone());
            }
        }
        failed
    }
}

#[tonic::async_trait]
impl DataServerService for DataHandler {
    async fn write_block(
        &self,
        request: Request<Streaming<WriteBlockRequest>>,
    ) -> Answer<WriteBlockResponse> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|message| message.content);
        let Some(Content::Metadata(metadata)) = first else {
            return Err(Status::invalid_argument("the metadata come first"));
        };
        let (from_client, id) = (!metadata.replica_locations.is_empty(), metadata.block_id);
        let fault = self.fault(|held| &mut held.writes);
        match &fault {
            Some(DataFault::Refuse(code)) => return Err(Status::new(*code, "told to refuse")),
            Some(DataFault::Hang) => std::future::pending().await,
            _ => (),
        }
        let mut data = BytesMut::new();
        while let Some(message) = messages.message().await? {
            match message.content {
                Some(Content::ChunkData(chunk)) if chunk.len() <= CHUNK => {
                    data.extend_from_slice(&chunk);
                }
                _ => return Err(Status::invalid_argument("not a chunk of 64 KiB")),
            }
        }
        let data = data.freeze();
        let told = (metadata.length, metadata.crc32c);
        if told != (Some(data.len() as u64), Some(crc32c::crc32c(&data))) {
            return Err(Status::data_loss("not what was announced"));
        }
        let addresses = metadata.replica_locations.len();
        self.held().blocks.insert(id, data.clone());
        let (success, failed_replicas) = match fault {
            Some(DataFault::Failed(failed)) => (false, failed),
            Some(DataFault::Unclear) => (false, Vec::new()),
            _ => {
                let failed = self.pass_on(&metadata, &data).await;
                (failed.is_empty(), failed)
            }
        };
        if from_client {
            let _under_way = self.enter().await;
            self.held().written.push((id, addresses));
        }
        Ok(Response::new(WriteBlockResponse {
            success,
            failed_replicas,
        }))
    }

    type ReadBlockStream = BoxStream<'static, Result<ReadBlockResponse, Status>>;

    async fn read_block(&self, request: Request<ReadBlockRequest>) -> Answer<Self::ReadBlockStream> {
        let id = request.into_inner().block_id;
        let under_way = self.enter().await;
        self.held().read.push(id);
        let fault = self.fault(|held| &mut held.reads);
        if let Some(DataFault::Refuse(code)) = fault {
            return Err(Status::new(code, "told to refuse"));
        }
        let data = self.held().blocks.get(&id).cloned();
        let data = data.ok_or_else(|| Status::not_found(format!("block {id} is not here")))?;
        let data = match fault {
            Some(DataFault::Short) => data.slice(..data.len() - 1),
            Some(DataFault::Long) => Bytes::from([&data[..], b"!"].concat()),
            Some(DataFault::Altered) => Bytes::from([&[data[0] ^ 1], &data[1..]].concat()),
            _ => data,
        };
        let chunks: Vec<_> = data.chunks(CHUNK).map(|chunk| data.slice_ref(chunk)).collect();
        let sent = chunks
            .into_iter()
            .map(|chunk_data| Ok(ReadBlockResponse { chunk_data }));
        let sent = match fault {
            Some(DataFault::Hang) => stream::iter(sent.take(1)).chain(stream::pending()).boxed(),
            _ => stream::iter(sent).boxed(),
        };
        let sent = sent.inspect(move |_| {
            let _ = &under_way;
        });
        Ok(Response::new(sent.boxed()))
    }

    async fn delete_block(&self, request: Request<DeleteBlockRequest>) -> Answer<DeleteBlockResponse> {
        let gone = self.held().blocks.remove(&request.into_inner().block_id);
        Ok(Response::new(DeleteBlockResponse {
            success: gone.is_some(),
        }))
    }

    async fn copy_block(&self, _: Request<CopyBlockRequest>) -> Answer<CopyBlockResponse> {
        Err(Status::unimplemented("copies are for upkeep"))
    }
}
