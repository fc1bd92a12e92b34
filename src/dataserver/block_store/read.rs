//! A block that is being read: every byte is held against its checksum before it is handed on.

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::Inner;
use super::footer::{CHUNK, Damage, Fault, Footer, file_size, read_exact};
use super::index::{Stamp, State};
use super::layout::Kind;
use crate::domain::ids::BlockId;
use crate::durable;

/// Why a block's bytes are not given.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such block here.
    #[error("block {0} is not here")]
    Missing(BlockId),
    /// It was found damaged before.
    #[error("block {0} is damaged")]
    Corrupt(BlockId),
    /// It was found damaged now.
    #[error("block {block} is damaged: {damage}")]
    Damaged {
        /// The block.
        block: BlockId,
        /// What is wrong with it.
        damage: Damage,
    },
    /// It could not be read for a reason that says nothing about it.
    #[error("block {block} cannot be read: {source}")]
    Io {
        /// The block.
        block: BlockId,
        /// What the system said.
        source: io::Error,
    },
}

/// A block that is being read. It stays readable when the block is deleted or replaced meanwhile.
#[derive(Debug)]
pub struct BlockReader {
    store: Arc<Inner>,
    file: File,
    footer: Footer,
    /// The chunk that comes next.
    next: usize,
}

impl BlockReader {
    pub(super) fn open(store: Arc<Inner>, block: BlockId) -> Result<BlockReader, ReadError> {
        if store.is_closed() {
            let source = io::Error::other("the DataServer is stopping");
            return Err(ReadError::Io { block, source });
        }
        let known = store.index().get(block);
        match known {
            Some(State::Good(_)) => Self::open_file(store, block),
            Some(State::Corrupt) => Err(ReadError::Corrupt(block)),
            None => Err(ReadError::Missing(block)),
        }
    }

    /// Opens a block's file, whatever the index says of it.
    pub(super) fn open_file(store: Arc<Inner>, block: BlockId) -> Result<BlockReader, ReadError> {
        let path = store.layout.file(block, Kind::Good);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Damaged and set aside in this moment, or removed by hand.
                store.vanished(block);
                let state = store.index().get(block);
                return Err(match state {
                    Some(State::Corrupt) => ReadError::Corrupt(block),
                    Some(State::Good(_)) | None => ReadError::Missing(block),
                });
            }
            Err(e) => {
                let source = durable::naming(&path, &e);
                return Err(ReadError::Io { block, source });
            }
        };
        match Footer::read(&file, block) {
            Ok(footer) => Ok(BlockReader {
                store,
                file,
                footer,
                next: 0,
            }),
            Err(fault) => Err(judge(&store, block, &file, fault)),
        }
    }

    /// The size of the whole block, in bytes.
    pub fn length(&self) -> u64 {
        self.footer.length
    }

    /// The next pieces of the block, of [`CHUNK`] bytes each but for the last, `limit` bytes together at
    /// most (but one piece at least). None: there are no more.
    ///
    /// # Errors
    /// [`ReadError::Damaged`]: none of these pieces is given, and the block is set aside; [`ReadError::Io`].
    pub fn next(&mut self, limit: usize) -> Result<Vec<Bytes>, ReadError> {
        let begin = (self.next * CHUNK) as u64;
        // Behind a last chunk that is not full, `begin` lies behind the end.
        let left = self.footer.length.saturating_sub(begin);
        let wanted = left.min((limit.max(CHUNK) / CHUNK * CHUNK) as u64);
        let pieces = self.verified(begin, wanted as usize);
        let pieces = pieces.map_err(|fault| judge(&self.store, self.footer.block, &self.file, fault))?;
        self.next += pieces.len();
        Ok(pieces)
    }

    fn verified(&self, begin: u64, wanted: usize) -> Result<Vec<Bytes>, Fault> {
        let mut buffer = vec![0; wanted];
        read_exact(&self.file, &mut buffer, begin, file_size(self.footer.length))?;
        let mut rest = Bytes::from(buffer);
        let mut pieces = Vec::with_capacity(wanted.div_ceil(CHUNK));
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(CHUNK));
            self.footer.verify(self.next + pieces.len(), &piece)?;
            pieces.push(piece);
        }
        Ok(pieces)
    }

    /// Notes that the file is as it should be, from outside and by its footer.
    pub(super) fn approve(&self) -> io::Result<()> {
        let stamp = Stamp::of(&self.file.metadata()?);
        self.store.approve(self.footer.block, &self.file, stamp);
        Ok(())
    }
}

/// What a reader is told of a fault; a damaged block is set aside.
fn judge(store: &Inner, block: BlockId, file: &File, fault: Fault) -> ReadError {
    match fault {
        Fault::Damaged(damage) => {
            store.set_aside(block, file, &damage);
            ReadError::Damaged { block, damage }
        }
        Fault::Io(source) => ReadError::Io { block, source },
    }
}
