//! A block that is being written: aside, and in its place only when it is complete and durable.
//!
//! The invariant: whatever ends a write early (an error, a writer that is dropped, a crash), nothing of it
//! is ever at the block's place; the file aside is removed at once or at the next start.

use std::fs::{self, File};
use std::io::{self, IoSlice, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::Inner;
use super::footer::{CHUNK, Footer, MAX_BLOCK};
use super::space::space;
use crate::domain::ids::BlockId;
use crate::durable;

/// After so many bytes the room on the disk is looked at again: what was asked for at the beginning was
/// perhaps less than what comes.
const LOOK_AGAIN: u64 = 16 << 20;

/// A block that is being written. Dropping it leaves no trace.
#[derive(Debug)]
pub struct BlockWriter {
    store: Arc<Inner>,
    block: BlockId,
    file: File,
    aside: Aside,
    length: u64,
    checksums: Vec<u32>,
    /// The checksum of the bytes of the last, unfinished chunk.
    checksum: u32,
    /// When `length` reaches this, the room on the disk is looked at.
    look_again: u64,
}

/// A file that is removed unless it was moved away.
#[derive(Debug)]
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        match fs::remove_file(&self.0) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                log::warn!("{}", durable::naming(&self.0, &e));
            }
            _ => (),
        }
    }
}

impl BlockWriter {
    pub(super) fn begin(store: Arc<Inner>, block: BlockId, expected: u64) -> io::Result<BlockWriter> {
        check_room(&store, expected)?;
        let number = store.next_aside.fetch_add(1, Ordering::Relaxed);
        let aside = Aside(store.layout.aside.join(format!("{block}-{number}")));
        let file = File::create_new(&aside.0).map_err(|e| durable::naming(&aside.0, &e))?;
        Ok(BlockWriter {
            store,
            block,
            file,
            aside,
            length: 0,
            checksums: Vec::new(),
            checksum: 0,
            look_again: expected.max(LOOK_AGAIN),
        })
    }

    /// Bytes so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Appends the pieces, in as few system calls as possible.
    ///
    /// # Errors
    /// [`io::ErrorKind::FileTooLarge`] beyond [`MAX_BLOCK`], [`io::ErrorKind::StorageFull`], and any of the
    /// system's. Nothing more can be written after an error.
    pub fn append(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        let added: usize = pieces.iter().map(Bytes::len).sum();
        let length = self.length + added as u64;
        if length > MAX_BLOCK {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("block {} is larger than {MAX_BLOCK} bytes", self.block),
            ));
        }
        if length > self.look_again {
            check_room(&self.store, LOOK_AGAIN)?;
            self.look_again = length + LOOK_AGAIN;
        }
        let mut at = self.length;
        for piece in pieces {
            self.add_checksums(at, piece);
            at += piece.len() as u64;
        }
        write_all(&self.file, pieces).map_err(|e| durable::naming(&self.aside.0, &e))?;
        self.length = length;
        Ok(())
    }

    /// Takes bytes that begin at `at` into the checksums of their chunks.
    fn add_checksums(&mut self, mut at: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let filled = (at % CHUNK as u64) as usize;
            let (now, later) = data.split_at(data.len().min(CHUNK - filled));
            self.checksum = crc32c::crc32c_append(self.checksum, now);
            if filled + now.len() == CHUNK {
                self.checksums.push(std::mem::take(&mut self.checksum));
            }
            at += now.len() as u64;
            data = later;
        }
    }

    /// Completes the block, makes it durable and puts it in its place. When this returns, the block
    /// survives a power cut.
    ///
    /// # Errors
    /// Any of the system's. Nothing is in the block's place then, but what was there before, unless only the
    /// last step failed: making the block's name durable.
    pub fn finish(mut self) -> io::Result<()> {
        if !self.length.is_multiple_of(CHUNK as u64) {
            self.checksums.push(self.checksum);
        }
        let footer = Footer {
            block: self.block,
            length: self.length,
            checksums: std::mem::take(&mut self.checksums),
        };
        let written = write_all(&self.file, &[footer.encode().into()]).and_then(|()| self.file.sync_data());
        written.map_err(|e| durable::naming(&self.aside.0, &e))?;
        self.store.publish(self.block, &self.aside.0, &self.file)
    }
}

fn check_room(store: &Inner, needed: u64) -> io::Result<()> {
    let free = space(&store.dir, store.reserve)?.free;
    match free < needed {
        true => Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("the disk is nearly full: {needed} bytes are needed, {free} are free beside the reserve"),
        )),
        false => Ok(()),
    }
}

fn write_all(mut file: &File, pieces: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = pieces
        .iter()
        .filter(|piece| !piece.is_empty())
        .map(|piece| IoSlice::new(piece))
        .collect();
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        match file.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => (),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
