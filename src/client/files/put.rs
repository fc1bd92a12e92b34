//! Writing a file: its blocks go to DataServers, several at once, and then it appears in one step.
//!
//! The blocks belong to a staged write, which nobody sees until its end is declared. A put that fails before
//! that has changed nothing, and servers free what it left. A block counts as written when two DataServers
//! have it (one, when only one is asked for): with fewer, the loss of a single machine could lose what
//! was just acknowledged. The servers' upkeep makes the replicas that are wanting then.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream;
use md5::{Digest, Md5};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;

use super::layout::Layout;
use super::{Files, Progress, TransferError, hex, joined};
use crate::client::Error;
use crate::proto::dfs::{BlockLocations, FileType, GetBlockLocationsResponse};

/// How many DataServers must have a block, where so many are asked for.
const QUORUM: usize = 2;
/// How often every DataServer of a block is tried.
const ROUNDS: u32 = 3;

/// What is to be written.
pub struct Content {
    /// Gives exactly `size` bytes.
    pub reader: Box<dyn Read + Send>,
    /// In bytes.
    pub size: u64,
    /// What errors call it.
    pub name: PathBuf,
    /// The digest that the bytes must have, in hex, when it is known.
    pub md5: Option<String>,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Content {
    /// The content of the local file at `path`.
    ///
    /// # Errors
    /// [`TransferError::Local`], also when it is no ordinary file.
    pub async fn open(path: &Path) -> Result<Self, TransferError> {
        let name = path.to_path_buf();
        let opened = spawn_blocking(move || {
            // Looked at before it is opened: to open a pipe is to wait for its other end.
            let there = std::fs::metadata(&name)?;
            if there.is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            if !there.is_file() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "not an ordinary file",
                ));
            }
            let file = File::open(&name)?;
            let size = file.metadata()?.len();
            Ok(Self {
                reader: Box::new(file),
                size,
                name,
                md5: None,
            })
        });
        joined(opened.await).map_err(TransferError::local(path))
    }
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// In bytes.
    pub size: u64,
    /// In hex.
    pub md5: String,
    /// Blocks that fewer DataServers have than were asked for; they will be repaired.
    pub under_replicated_blocks: u64,
}

/// A content on its way into blocks, read and digested in order.
struct Cutter {
    content: Content,
    layout: Layout,
    next: u64,
    md5: Md5,
}

struct Cut {
    index: usize,
    data: Bytes,
    crc32c: u32,
}

enum Step {
    Block(Cut, OwnedSemaphorePermit),
    End { md5: String },
}

impl Files {
    /// Makes `content` the content of the file at `path`: a new one, or in place of the file that is there.
    ///
    /// # Errors
    /// But for [`Error::OutcomeUnknown`], nothing has changed. [`TransferError::Local`] when the content cannot
    /// be read or is not as long as it said, [`TransferError::DataServers`] when a block could not be written,
    /// [`TransferError::Damaged`] when the content has another digest than it said, and those of
    /// [`Client::stage`](crate::client::Client::stage) and
    /// [`Client::finalize_staged`](crate::client::Client::finalize_staged).
    pub async fn put(
        &self,
        content: Content,
        path: &str,
        progress: Progress<'_>,
    ) -> Result<Stored, TransferError> {
        let Ok(size) = i64::try_from(content.size) else {
            let message = format!("{} bytes are more than a file can have", content.size);
            return Err(Error::InvalidArgument(message).into());
        };
        if size == 0 {
            return self.put_nothing(content, path).await;
        }
        let staged = self.client.stage(path, size).await?;
        let layout =
            Layout::of(content.size, staged.block_locations.len()).map_err(|message| Error::Server {
                code: tonic::Code::Internal,
                message: format!("{path}: {message}"),
            })?;
        let stored = self.write_blocks(content, layout, &staged, progress).await?;
        let (inode, first) = (staged.inode, staged.block_locations[0].block_id);
        self.client
            .finalize_staged(path, inode, first, size, &stored.md5)
            .await?;
        Ok(stored)
    }

    /// A file without blocks needs no staging: it is empty from the moment when it is there.
    async fn put_nothing(&self, content: Content, path: &str) -> Result<Stored, TransferError> {
        let name = content.name.clone();
        let cut = spawn_blocking(move || Cutter::new(content, Layout { size: 0, block: 1 }).end());
        let md5 = joined(cut.await).map_err(TransferError::local(&name))?;
        // What is there is replaced, unless it is gone by the time it is looked at.
        let created = match self.client.create(path, FileType::File).await {
            Ok(()) => true,
            Err(Error::AlreadyExists(_)) => false,
            Err(error) => return Err(error.into()),
        };
        let finalized = async {
            let inode = self.client.block_locations(path).await?.inode;
            self.client.finalize(path, inode, 0, &md5).await
        };
        match finalized.await {
            Ok(()) => Ok(Stored {
                size: 0,
                md5,
                under_replicated_blocks: 0,
            }),
            // Nothing less would be true: the file is there.
            Err(Error::Unavailable(message)) if created => Err(Error::OutcomeUnknown(format!(
                "the empty file was made, but not completed: {message}"
            ))
            .into()),
            Err(error) => Err(error.into()),
        }
    }

    async fn write_blocks(
        &self,
        content: Content,
        layout: Layout,
        staged: &GetBlockLocationsResponse,
        progress: Progress<'_>,
    ) -> Result<Stored, TransferError> {
        let (name, expected) = (content.name.clone(), content.md5.clone());
        let steps = stream::try_unfold(Some(Cutter::new(content, layout)), async |cutter| {
            let Some(mut cutter) = cutter else {
                return Ok::<_, TransferError>(None);
            };
            if cutter.next == layout.count() {
                let md5 = joined(spawn_blocking(move || cutter.end()).await);
                let md5 = md5.map_err(TransferError::local(&name))?;
                return Ok(Some((Step::End { md5 }, None)));
            }
            let place = self.place(&layout).await?;
            let cut = spawn_blocking(move || Ok((cutter.cut()?, cutter)));
            let (cut, cutter) = joined(cut.await).map_err(TransferError::local(&name))?;
            Ok(Some((Step::Block(cut, place), Some(cutter))))
        });
        let written = steps.map_ok(async |step| match step {
            Step::End { md5 } => Ok((Some(md5), 0)),
            Step::Block(cut, place) => {
                let block = &staged.block_locations[cut.index];
                let missing = self.write_block(block, &cut).await?;
                progress(i64::try_from(cut.data.len()).unwrap_or(i64::MAX));
                drop(place);
                Ok((None, u64::from(missing > 0)))
            }
        });
        let (md5, under_replicated_blocks) = written
            .try_buffer_unordered(self.options.jobs)
            .try_fold((String::new(), 0), async |(digest, wanting), (md5, missing)| {
                Ok((md5.unwrap_or(digest), wanting + missing))
            })
            .await?;
        if let Some(expected) = expected.filter(|expected| !expected.eq_ignore_ascii_case(&md5)) {
            return Err(TransferError::Damaged(format!(
                "{}: damaged: MD5 {md5} instead of {expected}",
                name.display()
            )));
        }
        Ok(Stored {
            size: layout.size,
            md5,
            under_replicated_blocks,
        })
    }

    /// Writes one block. Returns how many of its DataServers do not have it.
    async fn write_block(&self, block: &BlockLocations, cut: &Cut) -> Result<usize, TransferError> {
        let mut writing = Writing {
            files: self,
            block,
            cut,
            have: BTreeSet::new(),
            troubles: Vec::new(),
        };
        let replicas = block.locations.len();
        let quorum = replicas.clamp(1, QUORUM);
        for round in 0..ROUNDS {
            if round > 0 {
                tokio::time::sleep(self.options.pause * round).await;
            }
            writing.round(quorum).await;
            if writing.have.len() >= quorum {
                return Ok(replicas - writing.have.len());
            }
        }
        Err(TransferError::DataServers(format!(
            "block {} is on {} of {replicas} DataServers, {quorum} must have it: {}",
            block.block_id,
            writing.have.len(),
            writing.troubles.join("; ")
        )))
    }
}

/// One block's way to its DataServers.
struct Writing<'a> {
    files: &'a Files,
    block: &'a BlockLocations,
    cut: &'a Cut,
    /// Those that are known to have it.
    have: BTreeSet<String>,
    /// What went wrong in the last round.
    troubles: Vec<String>,
}

impl Writing<'_> {
    /// Tries every DataServer as the first receiver, until enough have the block.
    async fn round(&mut self, quorum: usize) {
        self.troubles.clear();
        let mut waiting = self.block.locations.clone();
        waiting.retain(|addr| !self.have.contains(addr));
        self.files.data_servers.good_first(&mut waiting);
        // To the first with the list of all that lack it; it leaves the list whatever comes of it.
        let mut unclear = false;
        while self.have.len() < quorum && !unclear && !waiting.is_empty() {
            let answer = self.send(&waiting[0], &waiting).await;
            match answer {
                Some((true, _)) => self.have.extend(waiting.drain(..)),
                // Nobody is named, or somebody else.
                Some((false, failed))
                    if failed.is_empty() || failed.iter().any(|addr| !waiting.contains(addr)) =>
                {
                    unclear = true;
                }
                Some((false, failed)) => {
                    let (lack, have): (Vec<_>, Vec<_>) =
                        waiting.drain(..).partition(|addr| failed.contains(addr));
                    self.have.extend(have);
                    for addr in &lack {
                        self.trouble(addr, "the block did not reach it");
                    }
                    waiting = lack;
                    // Those that the first could not reach may be reached from here; once.
                    unclear = true;
                }
                None => drop(waiting.remove(0)),
            }
        }
        // Some DataServers in the field say that it did not reach all, and not whom. Each is asked for itself
        // then, as they do when they pass a block on.
        for addr in waiting {
            if self.have.len() >= quorum {
                break;
            }
            match self.send(&addr, &[]).await {
                Some((true, _)) => drop(self.have.insert(addr)),
                Some((false, _)) => self.trouble(&addr, "it did not keep the block"),
                None => (),
            }
        }
    }

    /// Returns the receiver's word and whom it names; nothing when there is none.
    async fn send(&mut self, addr: &str, replicas: &[String]) -> Option<(bool, Vec<String>)> {
        let (data_servers, Cut { data, crc32c, .. }) = (&self.files.data_servers, self.cut);
        let block_id = self.block.block_id;
        match data_servers.write(addr, block_id, replicas, data, *crc32c).await {
            Ok(answer) => Some((answer.success, answer.failed_replicas)),
            Err(message) => {
                self.trouble(addr, &message);
                None
            }
        }
    }

    fn trouble(&mut self, addr: &str, message: &str) {
        log::debug!("block {} to {addr}: {message}", self.block.block_id);
        self.files.data_servers.failed(addr);
        self.troubles.push(format!("{addr}: {message}"));
    }
}

impl Cutter {
    fn new(content: Content, layout: Layout) -> Self {
        Self {
            content,
            layout,
            next: 0,
            md5: Md5::new(),
        }
    }

    /// Reads the next block.
    fn cut(&mut self) -> io::Result<Cut> {
        let length = self.layout.length(self.next);
        let size = usize::try_from(length).map_err(io::Error::other)?;
        let mut data = Vec::with_capacity(size);
        self.content.reader.by_ref().take(length).read_to_end(&mut data)?;
        if data.len() < size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it became shorter while it was read",
            ));
        }
        self.md5.update(&data);
        let cut = Cut {
            index: usize::try_from(self.next).map_err(io::Error::other)?,
            crc32c: crc32c::crc32c(&data),
            data: Bytes::from(data),
        };
        self.next += 1;
        Ok(cut)
    }

    /// Checks that nothing follows, and returns the digest of everything.
    fn end(mut self) -> io::Result<String> {
        let mut more = Vec::new();
        self.content.reader.by_ref().take(1).read_to_end(&mut more)?;
        if !more.is_empty() {
            return Err(io::Error::other("it became longer while it was read"));
        }
        Ok(hex(&self.md5.finalize()))
    }
}
