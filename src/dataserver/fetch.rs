//! Copies a block from another DataServer into the store: `CopyBlock`, and the leader's COPY_BLOCK.
//!
//! The invariant: what is kept is what the source sent up to a regular end of its stream, under checksums
//! of this server's own; anything else leaves nothing.

use std::io;
use std::time::Duration;

use tokio::time::timeout;
use tonic::{Code, Status};

use super::block_store::{BlockStore, BlockWriter};
use super::peers::Peers;
use super::pipeline::{BATCH, describe};
use crate::domain::ids::BlockId;
use crate::proto::dfs::ReadBlockRequest;

/// What a block of unknown size is taken to need: the size of the blocks that the clients in the field make.
pub(super) const USUAL_BLOCK: u64 = 4 << 20;

/// Why a block was not copied.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    #[error("{0}")]
    Address(String),
    #[error("block {block} cannot be copied from {source_addr}, which is this server")]
    Myself { block: BlockId, source_addr: String },
    #[error("block {block} cannot be copied from {source_addr}: {what}")]
    Source {
        block: BlockId,
        source_addr: String,
        code: Code,
        what: String,
    },
    #[error("block {block} cannot be stored: {source}")]
    Disk { block: BlockId, source: io::Error },
}

/// Copies `block` from the DataServer at `source_addr`. A block that is here already is left as it is.
pub(super) async fn copy(
    store: &BlockStore,
    peers: &Peers,
    block: BlockId,
    source_addr: &str,
    stall_timeout: Duration,
) -> Result<(), CopyError> {
    if store.has(block) {
        return Ok(());
    }
    if peers.me().is_at(source_addr) {
        let source_addr = source_addr.to_owned();
        return Err(CopyError::Myself { block, source_addr });
    }
    let mut peer = peers.get(source_addr).map_err(CopyError::Address)?;
    let failed = |code, what| CopyError::Source {
        block,
        source_addr: source_addr.to_owned(),
        code,
        what,
    };
    let refused = |status: Status| failed(status.code(), describe(&status));
    let stalled = |_| failed(Code::Unavailable, format!("no data for {stall_timeout:?}"));
    let request = ReadBlockRequest { block_id: block.0 };

    let mut writer = {
        let store = store.clone();
        on_disk(block, move || store.write(block, USUAL_BLOCK)).await?
    };
    let answer = timeout(stall_timeout, peer.read_block(request)).await;
    let mut data = answer.map_err(stalled)?.map_err(refused)?.into_inner();
    loop {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut ended = false;
        while !ended && bytes < BATCH {
            let message = timeout(stall_timeout, data.message()).await;
            match message.map_err(stalled)?.map_err(refused)? {
                Some(message) => {
                    bytes += message.chunk_data.len();
                    batch.push(message.chunk_data);
                }
                None => ended = true,
            }
        }
        writer = on_disk(block, move || {
            writer.append(&batch)?;
            Ok(writer)
        })
        .await?;
        if ended {
            break;
        }
    }
    if writer.length() == 0 {
        return Err(failed(Code::DataLoss, "it has no data".to_owned()));
    }
    on_disk(block, move || BlockWriter::finish(writer)).await
}

/// Runs a job that blocks.
async fn on_disk<T: Send + 'static>(
    block: BlockId,
    job: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, CopyError> {
    let done = tokio::task::spawn_blocking(job).await;
    done.unwrap_or_else(|ended| Err(io::Error::other(ended)))
        .map_err(|source| CopyError::Disk { block, source })
}
