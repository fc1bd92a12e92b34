//! `DataServerService`: what clients and other DataServers ask of this one.
//!
//! Built by `DataServer::start` and served by tonic. The invariants: a request makes progress or ends; what
//! its sender got wrong is `INVALID_ARGUMENT` or `NOT_FOUND`, a damaged block `DATA_LOSS`, a full disk or too
//! many requests `RESOURCE_EXHAUSTED`, and this server's own trouble `INTERNAL` or `UNAVAILABLE`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status, Streaming};

use super::block_store::{BlockReader, BlockStore, MAX_BLOCK, ReadError};
use super::fetch::{self, CopyError, USUAL_BLOCK};
use super::peers::Peers;
use super::pipeline::{BATCH, Failure, Outcome, Pipeline, disk_failure};
use crate::domain::ids::{BlockId, ID_LIMIT};
use crate::proto::dfs::data_server_service_server::DataServerService;
use crate::proto::dfs::write_block_request::Content;
use crate::proto::dfs::{
    CopyBlockRequest, CopyBlockResponse, DeleteBlockRequest, DeleteBlockResponse, ReadBlockRequest,
    ReadBlockResponse, WriteBlockMetadata, WriteBlockRequest, WriteBlockResponse,
};

/// Blocks that are read at once; one more is refused.
const MAX_READS: usize = 1024;
/// Replicas of one block.
const MAX_REPLICAS: usize = 32;
/// Blocks that are deleted by request at once; one more is refused.
const MAX_DELETES: usize = 256;
/// For how many stall timeouts a client may send or take nothing in the middle of a block: longer than a
/// replica that holds it up, so that it is not blamed for that.
const PATIENCE_WITH_CLIENTS: u32 = 3;

/// The service.
pub(super) struct Service {
    store: BlockStore,
    peers: Peers,
    writes: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    deletes: Arc<Semaphore>,
    /// Shared with the leader's orders.
    copies: Arc<Semaphore>,
    stall_timeout: Duration,
}

impl Service {
    pub fn new(
        store: BlockStore,
        peers: Peers,
        max_writes: usize,
        copies: Arc<Semaphore>,
        stall_timeout: Duration,
    ) -> Service {
        Service {
            store,
            peers,
            writes: Arc::new(Semaphore::new(max_writes)),
            reads: Arc::new(Semaphore::new(MAX_READS)),
            deletes: Arc::new(Semaphore::new(MAX_DELETES)),
            copies,
            stall_timeout,
        }
    }

    /// Sets up everything that a block goes to.
    async fn pipeline(&self, block: BlockId, metadata: &WriteBlockMetadata) -> Result<Pipeline, Status> {
        let others = self.peers.others(&metadata.replica_locations);
        let others = others.map_err(|what| Status::invalid_argument(format!("replica_locations: {what}")))?;
        if others.len() > MAX_REPLICAS {
            return Err(Status::invalid_argument(format!(
                "block {block} has {} replicas, {MAX_REPLICAS} are possible",
                others.len()
            )));
        }
        let store = self.store.clone();
        let expected = metadata.length.unwrap_or(USUAL_BLOCK);
        let writer = blocking(move || store.write(block, expected)).await?;
        let me = &self.peers.me().advertised;
        let mut pipeline = Pipeline::new(self.stall_timeout);
        match writer {
            Ok(writer) => pipeline.add_local(me, writer),
            Err(e) => match disk_failure(&e) {
                // Before anything was sent: the client finds another place for it.
                Failure::DiskFull(what) => {
                    return Err(Status::resource_exhausted(format!("block {block}: {what}")));
                }
                failure => pipeline.add_failed(me, failure),
            },
        }
        for addr in &others {
            let peer = self.peers.get(addr).map_err(Status::invalid_argument)?;
            pipeline.add_replica(addr, peer, metadata);
        }
        Ok(pipeline)
    }

    /// The next message of a sender.
    async fn next(
        &self,
        stream: &mut Streaming<WriteBlockRequest>,
    ) -> Result<Option<WriteBlockRequest>, Status> {
        let patience = self.stall_timeout * PATIENCE_WITH_CLIENTS;
        match timeout(patience, stream.message()).await {
            Ok(message) => message,
            Err(_) => Err(Status::cancelled(format!("nothing was sent for {patience:?}"))),
        }
    }
}

#[tonic::async_trait]
impl DataServerService for Service {
    async fn write_block(
        &self,
        request: Request<Streaming<WriteBlockRequest>>,
    ) -> Result<Response<WriteBlockResponse>, Status> {
        let _permit = permit(&self.writes, "blocks are being written")?;
        let mut stream = request.into_inner();
        let first = self.next(&mut stream).await?.and_then(|first| first.content);
        let Some(Content::Metadata(metadata)) = first else {
            return Err(Status::invalid_argument("the first message must be the metadata"));
        };
        let block = block_id(metadata.block_id)?;
        let mut check = Check::new(block, &metadata)?;
        let mut pipeline = self.pipeline(block, &metadata).await?;
        let mut taken = true;
        // Dropping the pipeline, on any way out of this, leaves nothing anywhere.
        while let Some(message) = self.next(&mut stream).await? {
            let Some(Content::ChunkData(data)) = message.content else {
                return Err(Status::invalid_argument(format!(
                    "block {block}: a message without data"
                )));
            };
            check.add(&data)?;
            if !data.is_empty() && !pipeline.feed(&data).await {
                taken = false;
                break;
            }
        }
        let outcomes = match taken {
            true => {
                check.finish()?;
                pipeline.finish().await
            }
            false => pipeline.give_up().await,
        };
        answer(block, outcomes)
    }

    type ReadBlockStream = BoxStream<'static, Result<ReadBlockResponse, Status>>;

    async fn read_block(
        &self,
        request: Request<ReadBlockRequest>,
    ) -> Result<Response<Self::ReadBlockStream>, Status> {
        let permit = permit(&self.reads, "blocks are being read")?;
        let block = block_id(request.into_inner().block_id)?;
        let store = self.store.clone();
        let reader = blocking(move || store.read(block)).await?;
        let reader = reader.map_err(|e| read_status(&e))?;
        let patience = self.stall_timeout * PATIENCE_WITH_CLIENTS;
        Ok(Response::new(pieces(reader, permit, patience)))
    }

    async fn delete_block(
        &self,
        request: Request<DeleteBlockRequest>,
    ) -> Result<Response<DeleteBlockResponse>, Status> {
        let _permit = permit(&self.deletes, "blocks are being deleted")?;
        let block = block_id(request.into_inner().block_id)?;
        let store = self.store.clone();
        // One that is not here is as deleted as it can be.
        let deleted = blocking(move || store.delete(block)).await?;
        deleted.map_err(|e| Status::internal(format!("block {block} cannot be deleted: {e}")))?;
        Ok(Response::new(DeleteBlockResponse { success: true }))
    }

    async fn copy_block(
        &self,
        request: Request<CopyBlockRequest>,
    ) -> Result<Response<CopyBlockResponse>, Status> {
        let _permit = permit(&self.copies, "blocks are being copied")?;
        let CopyBlockRequest {
            block_id: id,
            source_address,
        } = request.into_inner();
        let block = block_id(id)?;
        let copied = fetch::copy(
            &self.store,
            &self.peers,
            block,
            &source_address,
            self.stall_timeout,
        );
        copied.await.map_err(|e| copy_status(&e))?;
        Ok(Response::new(CopyBlockResponse { success: true }))
    }
}

/// What the sender of a block declared, against what comes. It is checked here, before any place is told
/// that the block is complete, because those in the field cannot check it themselves.
struct Check {
    block: BlockId,
    declared_length: Option<u64>,
    declared_crc: Option<u32>,
    length: u64,
    crc: u32,
}

impl Check {
    fn new(block: BlockId, metadata: &WriteBlockMetadata) -> Result<Check, Status> {
        match metadata.length {
            Some(length) if length > MAX_BLOCK => Err(too_large(block, length)),
            declared_length => Ok(Check {
                block,
                declared_length,
                declared_crc: metadata.crc32c,
                length: 0,
                crc: 0,
            }),
        }
    }

    fn add(&mut self, data: &Bytes) -> Result<(), Status> {
        self.length += data.len() as u64;
        if self.declared_crc.is_some() {
            self.crc = crc32c::crc32c_append(self.crc, data);
        }
        match self.declared_length {
            Some(declared) if self.length > declared => Err(self.wrong_length(declared, "at least ")),
            _ if self.length > MAX_BLOCK => Err(too_large(self.block, self.length)),
            _ => Ok(()),
        }
    }

    fn finish(&self) -> Result<(), Status> {
        match (self.declared_length, self.declared_crc) {
            (Some(declared), _) if self.length != declared => Err(self.wrong_length(declared, "")),
            // No client writes an empty block; one that ends before it began does.
            (None, _) if self.length == 0 => Err(Status::invalid_argument(format!(
                "block {} has no data",
                self.block
            ))),
            (_, Some(declared)) if self.crc != declared => Err(Status::data_loss(format!(
                "block {} was declared with checksum {declared:#010x}, what came has {:#010x}",
                self.block, self.crc
            ))),
            _ => Ok(()),
        }
    }

    fn wrong_length(&self, declared: u64, qualifier: &str) -> Status {
        Status::invalid_argument(format!(
            "block {} was declared with {declared} bytes, {qualifier}{} came",
            self.block, self.length
        ))
    }
}

fn too_large(block: BlockId, length: u64) -> Status {
    Status::invalid_argument(format!(
        "block {block} has {length} bytes, at most {MAX_BLOCK} are possible"
    ))
}

/// What a client is told of a block that went to several places.
fn answer(block: BlockId, outcomes: Vec<Outcome>) -> Result<Response<WriteBlockResponse>, Status> {
    let places = outcomes.len();
    let mut failed_replicas = Vec::new();
    let mut full = false;
    let mut reasons = Vec::new();
    for Outcome { addr, result } in outcomes {
        if let Err(failure) = result {
            log::debug!("block {block} was not stored at {addr}: {failure}");
            full |= matches!(failure, Failure::DiskFull(_));
            reasons.push(format!("{addr}: {failure}"));
            failed_replicas.push(addr);
        }
    }
    if failed_replicas.len() < places {
        return Ok(Response::new(WriteBlockResponse {
            success: failed_replicas.is_empty(),
            failed_replicas,
        }));
    }
    let message = format!("block {block} was stored nowhere: {}", reasons.join("; "));
    Err(match full {
        true => Status::resource_exhausted(message),
        false => Status::internal(message),
    })
}

/// What is on its way to a reader.
enum Ahead {
    Pieces(Vec<Bytes>),
    Failed(Status),
    /// That was all.
    End,
}

/// A block's data as messages, one batch read ahead. A reader that takes nothing for `patience` is given up,
/// and must not take that for the end of the block.
fn pieces(
    reader: BlockReader,
    permit: OwnedSemaphorePermit,
    patience: Duration,
) -> BoxStream<'static, Result<ReadBlockResponse, Status>> {
    let (ahead, taken) = mpsc::channel(1);
    tokio::spawn(read_ahead(reader, permit, ahead, patience));
    let batches = futures::stream::unfold(Some(taken), move |taken| async move {
        let mut taken = taken?;
        match taken.recv().await {
            Some(Ahead::Pieces(pieces)) => Some((Ok(pieces), Some(taken))),
            Some(Ahead::Failed(status)) => Some((Err(status), None)),
            Some(Ahead::End) => None,
            None => {
                let given_up = Status::cancelled(format!("nothing was taken for {patience:?}"));
                Some((Err(given_up), None))
            }
        }
    });
    let messages = batches.flat_map(|batch| match batch {
        Ok(pieces) => futures::stream::iter(pieces)
            .map(|chunk_data| Ok(ReadBlockResponse { chunk_data }))
            .left_stream(),
        Err(status) => futures::stream::iter([Err(status)]).right_stream(),
    });
    messages.boxed()
}

/// Reads and verifies one batch after the other, each on a blocking thread, and none is held while the
/// reader takes its time.
async fn read_ahead(
    mut reader: BlockReader,
    _permit: OwnedSemaphorePermit,
    ahead: mpsc::Sender<Ahead>,
    patience: Duration,
) {
    loop {
        let next = blocking(move || (reader.next(BATCH), reader)).await;
        let (next, same) = match next {
            Ok((Ok(pieces), _)) if pieces.is_empty() => (Ahead::End, None),
            Ok((Ok(pieces), same)) => (Ahead::Pieces(pieces), Some(same)),
            Ok((Err(e), _)) => (Ahead::Failed(read_status(&e)), None),
            Err(status) => (Ahead::Failed(status), None),
        };
        let taken = timeout(patience, ahead.send(next)).await;
        match (taken, same) {
            (Ok(Ok(())), Some(same)) => reader = same,
            _ => return,
        }
    }
}

fn block_id(id: u64) -> Result<BlockId, Status> {
    match (1..ID_LIMIT).contains(&id) {
        true => Ok(BlockId(id)),
        false => Err(Status::invalid_argument(format!("not a block id: {id}"))),
    }
}

fn permit(semaphore: &Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Status> {
    semaphore
        .clone()
        .try_acquire_owned()
        .map_err(|_| Status::resource_exhausted(format!("too many {what}")))
}

/// Runs a job that blocks.
async fn blocking<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(job).await;
    done.map_err(|ended| Status::internal(ended.to_string()))
}

fn read_status(error: &ReadError) -> Status {
    let message = error.to_string();
    match error {
        ReadError::Missing(_) => Status::not_found(message),
        ReadError::Corrupt(_) | ReadError::Damaged { .. } => Status::data_loss(message),
        ReadError::Io { .. } => Status::internal(message),
    }
}

fn copy_status(error: &CopyError) -> Status {
    let message = error.to_string();
    match error {
        CopyError::Address(_) | CopyError::Myself { .. } => Status::invalid_argument(message),
        CopyError::Source { code, .. } => match code {
            Code::NotFound => Status::not_found(message),
            Code::DataLoss => Status::data_loss(message),
            _ => Status::unavailable(message),
        },
        CopyError::Disk { source, .. } => match disk_failure(source) {
            Failure::DiskFull(_) => Status::resource_exhausted(message),
            _ => Status::internal(message),
        },
    }
}
