//! The DataServers that one operation meets: a connection each, which of them failed, and one attempt to
//! write or read one block.
//!
//! The invariant: an attempt ends. A DataServer that moves nothing for a while has failed, and so has one
//! that moves its block by drops.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::client::endpoints;
use crate::client::retry::describe;
use crate::proto::dfs::data_server_service_client::DataServerServiceClient;
use crate::proto::dfs::write_block_request::Content;
use crate::proto::dfs::{ReadBlockRequest, WriteBlockMetadata, WriteBlockRequest, WriteBlockResponse};

/// The contract's size of a chunk, in bytes.
const CHUNK: usize = 64 << 10;
/// A DataServer that is there accepts a connection within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// What may be on its way to us: a usual block on one stream, and several of them on a connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Whoever moves less than this, in bytes a second, over a whole block has failed.
const SLOWEST: u64 = 64 << 10;

/// Why a block was not read from one DataServer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadFailure {
    /// It says that it does not have the block.
    NotThere,
    /// It has something else than the block.
    Damaged(String),
    /// It cannot be reached, or does not go on.
    Broken(String),
}

#[derive(Debug)]
struct Known {
    channel: Channel,
    failed: bool,
}

/// Every DataServer met so far, by its address.
#[derive(Debug)]
pub(super) struct DataServers {
    known: Mutex<HashMap<String, Known>>,
    stall: Duration,
}

impl DataServers {
    pub(super) fn new(stall: Duration) -> Self {
        Self {
            known: Mutex::default(),
            stall,
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connected(&self, addr: &str) -> Result<DataServerServiceClient<Channel>, String> {
        if let Some(known) = self.known().get(addr) {
            return Ok(DataServerServiceClient::new(known.channel.clone()));
        }
        let addr = endpoints::address(addr).map_err(|error| error.to_string())?;
        // No keep-alive probes: DataServers in the field hang up on those who probe often, and a stall
        // is noticed without them.
        let channel = Endpoint::from_shared(format!("http://{addr}"))
            .map_err(|error| error.to_string())?
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_lazy();
        let known = Known {
            channel: channel.clone(),
            failed: false,
        };
        self.known().entry(addr).or_insert(known);
        Ok(DataServerServiceClient::new(channel))
    }

    /// Notes that `addr` failed: it is asked last from now on.
    pub(super) fn failed(&self, addr: &str) {
        if let Some(known) = self.known().get_mut(addr) {
            known.failed = true;
        }
    }

    /// Moves those that failed to the end; the order is kept otherwise.
    pub(super) fn good_first(&self, addresses: &mut [String]) {
        let known = self.known();
        addresses.sort_by_key(|addr| known.get(addr).is_some_and(|known| known.failed));
    }

    /// Sends a block to `addr`, which is to pass it on to the others among `replicas`.
    ///
    /// # Errors
    /// What went wrong, in words. The block may be there all the same.
    pub(super) async fn write(
        &self,
        addr: &str,
        block_id: u64,
        replicas: &[String],
        data: &Bytes,
        crc32c: u32,
    ) -> Result<WriteBlockResponse, String> {
        let length = data.len() as u64;
        let metadata = WriteBlockMetadata {
            block_id,
            replica_locations: replicas.to_vec(),
            length: Some(length),
            crc32c: Some(crc32c),
        };
        let data = data.clone();
        let chunks = (0..data.len())
            .step_by(CHUNK)
            .map(move |at| Content::ChunkData(data.slice(at..data.len().min(at + CHUNK))));
        let (moved, movement) = watch::channel(());
        let messages = std::iter::once(Content::Metadata(metadata))
            .chain(chunks)
            .map(move |content| {
                let _ = moved.send(());
                WriteBlockRequest {
                    content: Some(content),
                }
            });
        let mut server = self.connected(addr)?;
        let sent = self.moving(movement, async move {
            server.write_block(stream::iter(messages)).await
        });
        match self.in_time(length, sent).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(describe(&status)),
            Err(late) => Err(late),
        }
    }

    /// Reads a block of `length` bytes, in the pieces in which it came.
    pub(super) async fn read(
        &self,
        addr: &str,
        block_id: u64,
        length: u64,
    ) -> Result<Vec<Bytes>, ReadFailure> {
        let mut server = self.connected(addr).map_err(ReadFailure::Broken)?;
        let reading = async {
            let still = |_| ReadFailure::Broken(self.stalled());
            let request = ReadBlockRequest { block_id };
            let answer = timeout(self.stall, server.read_block(request))
                .await
                .map_err(still)?;
            let mut stream = answer.map_err(|status| read_failure(&status))?.into_inner();
            let (mut chunks, mut got) = (Vec::new(), 0);
            while let Some(chunk) = timeout(self.stall, stream.next()).await.map_err(still)? {
                let chunk = chunk.map_err(|status| read_failure(&status))?.chunk_data;
                got += chunk.len() as u64;
                if got > length {
                    return Err(wrong_length(block_id, "more than ", length));
                }
                chunks.push(chunk);
            }
            if got < length {
                return Err(wrong_length(
                    block_id,
                    &format!("{got} bytes instead of "),
                    length,
                ));
            }
            Ok(chunks)
        };
        self.in_time(length, reading)
            .await
            .unwrap_or_else(|late| Err(ReadFailure::Broken(late)))
    }

    fn stalled(&self) -> String {
        format!("nothing moved for {:?}", self.stall)
    }

    /// Bounds the whole of an attempt to move `length` bytes.
    async fn in_time<T>(&self, length: u64, attempt: impl Future<Output = T>) -> Result<T, String> {
        let limit = self.stall * 2 + Duration::from_secs(length / SLOWEST);
        timeout(limit, attempt)
            .await
            .map_err(|_| format!("not done within {limit:?}"))
    }

    /// Waits for `call` while there is movement; after the last one, no longer than two stalls: the
    /// receiver may first have to give up a replica that it passed the block on to.
    async fn moving<T>(
        &self,
        mut movement: watch::Receiver<()>,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        tokio::pin!(call);
        loop {
            let news = tokio::select! {
                answer = &mut call => return answer,
                news = timeout(self.stall, movement.changed()) => news,
            };
            match news {
                Ok(Ok(())) => (),
                // Everything was handed over; what remains is the answer.
                Ok(Err(_)) => {
                    let patience = self.stall * 2;
                    return timeout(patience, call).await.unwrap_or_else(|_| {
                        Err(Status::deadline_exceeded(format!("no answer for {patience:?}")))
                    });
                }
                Err(_) => return Err(Status::deadline_exceeded(self.stalled())),
            }
        }
    }
}

fn wrong_length(block_id: u64, got: &str, length: u64) -> ReadFailure {
    ReadFailure::Damaged(format!("block {block_id} has {got}{length} bytes"))
}

fn read_failure(status: &Status) -> ReadFailure {
    match status.code() {
        Code::NotFound => ReadFailure::NotThere,
        Code::DataLoss => ReadFailure::Damaged(describe(status)),
        _ => ReadFailure::Broken(describe(status)),
    }
}
