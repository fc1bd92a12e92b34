//! A snapshot on its way from one node's disk to another's, in chunks.
//!
//! The network client sends with [`chunks`], the server takes in with [`receive`].
//!
//! The receiver sets the pace: it takes no more until its disk has what it took, and then rests for as long as that
//! took; the bounds of the connection pass that on to the sender.
//!
//! Invariant: what [`receive`] gives out is as long as was announced, has the announced checksum and
//! is flushed. Until then, and whenever the transfer ends otherwise, the file is removed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use xxhash_rust::xxh3::Xxh3;

use super::ports::{Snapshot, SnapshotData};
use super::types::Vote;
use crate::background::{STEP_BYTES, rest_after};
use crate::durable::naming;
use crate::proto::raft as pb;

/// Bytes in one chunk: what is encoded, sent and decoded without a pause, on a thread that answers clients.
const CHUNK_BYTES: usize = 128 << 10;

/// A sender whose next chunk takes longer has given up, or is no peer.
pub(super) const CHUNK_WITHIN: Duration = Duration::from_secs(30);

/// How the names of files begin that are being received.
const INCOMING: &str = "incoming-";

/// The message that comes before the data.
pub(super) fn header(vote: Vote, snapshot: &Snapshot) -> pb::SnapshotChunk {
    let header = pb::SnapshotHeader {
        vote: Some(vote.into()),
        meta: Some(snapshot.into()),
    };
    pb::SnapshotChunk {
        content: Some(pb::snapshot_chunk::Content::Header(header)),
    }
}

/// Opens the data of a snapshot to be sent.
///
/// # Errors
/// The system's, naming the file; `NotFound` when a newer snapshot has replaced it.
pub(super) async fn open(data: &SnapshotData) -> io::Result<File> {
    File::open(&data.path).await.map_err(|e| naming(&data.path, &e))
}

/// Reads a snapshot and sends it after its header; returns early when nobody takes it any more.
///
/// # Errors
/// The system's, naming the file.
pub(super) async fn send_chunks(
    header: pb::SnapshotChunk,
    mut file: File,
    path: &Path,
    out: mpsc::Sender<pb::SnapshotChunk>,
) -> io::Result<()> {
    if out.send(header).await.is_err() {
        return Ok(());
    }
    loop {
        let chunk = read_chunk(&mut file).await.map_err(|e| naming(path, &e))?;
        if chunk.is_empty() {
            return Ok(());
        }
        let chunk = pb::SnapshotChunk {
            content: Some(pb::snapshot_chunk::Content::Data(chunk)),
        };
        if out.send(chunk).await.is_err() {
            return Ok(());
        }
    }
}

async fn read_chunk(file: &mut File) -> io::Result<Bytes> {
    let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
    while chunk.len() < CHUNK_BYTES {
        let room = CHUNK_BYTES - chunk.len();
        if file.take(room as u64).read_buf(&mut chunk).await? == 0 {
            break;
        }
    }
    Ok(chunk.freeze())
}

/// Why a snapshot was not taken in.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    /// The sender's fault.
    #[error("{0}")]
    Malformed(String),
    /// The connection's.
    #[error("{0}")]
    Broken(tonic::Status),
    /// This node's disk.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A received file; removed when this is dropped, unless it was moved away.
#[derive(Debug)]
pub(super) struct Incoming {
    path: PathBuf,
}

impl Incoming {
    /// A new name in the snapshot folder.
    pub(super) fn new(snapshots: &Path) -> Self {
        let unique: u64 = rand::random();
        Incoming {
            path: snapshots.join(format!("{INCOMING}{unique:016x}.tmp")),
        }
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot remove {}: {e}", self.path.display());
            }
            _ => (),
        }
    }
}

/// Removes what earlier transfers left behind when the process was killed.
///
/// # Errors
/// The system's, naming the folder or file.
pub(super) fn remove_leftovers(snapshots: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(snapshots).map_err(|e| naming(snapshots, &e))? {
        let entry = entry.map_err(|e| naming(snapshots, &e))?;
        if entry.file_name().to_string_lossy().starts_with(INCOMING) {
            std::fs::remove_file(entry.path()).map_err(|e| naming(&entry.path(), &e))?;
        }
    }
    Ok(())
}

/// Takes the data that `announced` describes from `chunks`, into the file of `incoming`.
///
/// # Errors
/// Too much or too little data, another checksum, a broken connection, or a full disk.
pub(super) async fn receive<C>(
    announced: &SnapshotData,
    incoming: &Incoming,
    mut chunks: C,
) -> Result<(), ReceiveError>
where
    C: Stream<Item = Result<pb::SnapshotChunk, tonic::Status>> + Unpin,
{
    let at = |e: io::Error| naming(incoming.path(), &e);
    let mut file = File::create_new(incoming.path()).await.map_err(at)?;
    let mut left = announced.bytes;
    let mut checksum = Xxh3::new();
    let (mut unflushed, mut begun) = (0, Instant::now());
    let silent = |_| ReceiveError::Broken(tonic::Status::deadline_exceeded("the next chunk does not come"));
    while let Some(chunk) = timeout(CHUNK_WITHIN, chunks.next()).await.map_err(silent)? {
        let Some(pb::snapshot_chunk::Content::Data(data)) = chunk.map_err(ReceiveError::Broken)?.content
        else {
            return Err(ReceiveError::Malformed("a chunk without data".to_owned()));
        };
        left = left.checked_sub(data.len() as u64).ok_or_else(|| {
            ReceiveError::Malformed(format!("more than the {} bytes announced", announced.bytes))
        })?;
        checksum.update(&data);
        file.write_all(&data).await.map_err(at)?;
        unflushed += data.len();
        if unflushed >= STEP_BYTES {
            file.sync_data().await.map_err(at)?;
            sleep(rest_after(begun.elapsed())).await;
            (unflushed, begun) = (0, Instant::now());
        }
    }
    if left > 0 {
        let message = format!("{left} of the {} bytes announced are missing", announced.bytes);
        return Err(ReceiveError::Malformed(message));
    }
    if checksum.digest() != announced.checksum {
        let message = format!(
            "checksum {:016x}, announced was {:016x}",
            checksum.digest(),
            announced.checksum
        );
        return Err(ReceiveError::Malformed(message));
    }
    file.sync_all().await.map_err(at)?;
    Ok(())
}
