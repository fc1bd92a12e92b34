//! What a block file looks like: the block's bytes, and behind them a footer that vouches for them.
//!
//! ```text
//! data        length bytes
//! checksums   one CRC-32C (u32) for each 64 KiB of data; the last one may cover less
//! trailer     version u32 · chunk size u32 · block id u64 · length u64 · CRC-32C of the checksums and
//!             of the trailer up to here u32 · magic, 8 bytes
//! ```
//! All numbers are little-endian. The footer lies behind the data because it is not known before, and
//! there is one checksum a chunk so that a reader can send what it has verified without having read it
//! all. The file begins with the data themselves: an operator can look at them with any tool.
//!
//! The invariant: [`Footer::read`] gives a footer only when the file's size, its name's block id and every
//! byte of the footer fit together; then each chunk stands or falls on its own.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::domain::ids::BlockId;

/// How many bytes one checksum covers; also the size of the pieces that are sent to readers.
pub const CHUNK: usize = 64 << 10;

/// The largest block, in bytes: that of the MetaServer's largest `scheduler.block_size`.
pub const MAX_BLOCK: u64 = 1 << 30;

const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"MinFSblk";
/// Bytes of the trailer, and of the part of it that is covered by its checksum.
const TRAILER: usize = 36;
const COVERED: usize = 24;

/// The smallest size that a block file can have: that of an empty block.
pub(super) const SMALLEST_FILE: u64 = TRAILER as u64;

/// Why a block file cannot be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Not the end that a block file has: cut off, overwritten, or something else altogether.
    #[error("it does not end as a block file does ({0} bytes)")]
    NoFooter(u64),
    /// Written by another version of this program.
    #[error("its format has version {0}, this server reads {VERSION}")]
    Version(u32),
    /// The footer was changed.
    #[error("its footer's checksum is {found:#010x} instead of {expected:#010x}")]
    Footer {
        /// Of what is there.
        found: u32,
        /// As it was written.
        expected: u32,
    },
    /// The file holds another block than its name says.
    #[error("it holds block {0}")]
    OtherBlock(BlockId),
    /// The file is shorter or longer than its footer says.
    #[error("it has {found} bytes instead of {expected}")]
    Size {
        /// Of the file.
        found: u64,
        /// According to the footer.
        expected: u64,
    },
    /// The data were changed.
    #[error("the checksum of the {CHUNK} bytes at {offset} is {found:#010x} instead of {expected:#010x}")]
    Data {
        /// Where the chunk begins, in bytes.
        offset: u64,
        /// Of what is there.
        found: u32,
        /// As it was written.
        expected: u32,
    },
    /// The disk does not give the bytes back.
    #[error("the disk cannot read it: {0}")]
    Unreadable(String),
}

/// Why a file's bytes were not given.
#[derive(Debug)]
pub(super) enum Fault {
    /// They are not what was written.
    Damaged(Damage),
    /// Something else went wrong, and says nothing about them.
    Io(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        // Linux's EIO: the device itself failed.
        const DEVICE_FAILED: i32 = 5;
        match error.raw_os_error() {
            Some(DEVICE_FAILED) => Fault::Damaged(Damage::Unreadable(error.to_string())),
            _ => Fault::Io(error),
        }
    }
}

impl From<Damage> for Fault {
    fn from(damage: Damage) -> Fault {
        Fault::Damaged(damage)
    }
}

/// What a block file says of its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Footer {
    pub block: BlockId,
    /// Bytes of data.
    pub length: u64,
    /// One for each [`CHUNK`].
    pub checksums: Vec<u32>,
}

impl Footer {
    /// The bytes that follow the data.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.checksums.len() * 4 + TRAILER);
        for checksum in &self.checksums {
            bytes.extend_from_slice(&checksum.to_le_bytes());
        }
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(CHUNK as u32).to_le_bytes());
        bytes.extend_from_slice(&self.block.0.to_le_bytes());
        bytes.extend_from_slice(&self.length.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(&MAGIC);
        bytes
    }

    /// Reads the footer of the file of `block`.
    pub fn read(file: &File, block: BlockId) -> Result<Footer, Fault> {
        let size = file.metadata()?.len();
        let mut trailer = [0; TRAILER];
        let Some(trailer_at) = size.checked_sub(TRAILER as u64) else {
            return Err(Damage::NoFooter(size).into());
        };
        read_exact(file, &mut trailer, trailer_at, size)?;
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| trailer[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| trailer[at + i]));
        if trailer[COVERED + 4..] != MAGIC {
            return Err(Damage::NoFooter(size).into());
        }
        let (version, chunk, length) = (u32_at(0), u32_at(4), u64_at(16));
        if version != VERSION {
            return Err(Damage::Version(version).into());
        }
        if chunk != CHUNK as u32 || length > MAX_BLOCK {
            return Err(Damage::NoFooter(size).into());
        }
        // Before the checksums are read: their number follows from the length.
        let expected = file_size(length);
        if size != expected {
            return Err(Damage::Size {
                found: size,
                expected,
            }
            .into());
        }
        let mut covered = vec![0; chunks(length) * 4 + COVERED];
        read_exact(file, &mut covered, length, size)?;
        let (found, expected) = (crc32c::crc32c(&covered), u32_at(COVERED));
        if found != expected {
            return Err(Damage::Footer { found, expected }.into());
        }
        let named = BlockId(u64_at(8));
        if named != block {
            return Err(Damage::OtherBlock(named).into());
        }
        let checksums = covered[..chunks(length) * 4]
            .chunks_exact(4)
            .map(|bytes| u32::from_le_bytes(std::array::from_fn(|i| bytes[i])))
            .collect();
        Ok(Footer {
            block,
            length,
            checksums,
        })
    }

    /// Holds the bytes of one chunk against their checksum.
    pub fn verify(&self, chunk: usize, data: &[u8]) -> Result<(), Damage> {
        let (found, expected) = (crc32c::crc32c(data), self.checksums[chunk]);
        match found == expected {
            true => Ok(()),
            false => Err(Damage::Data {
                offset: (chunk * CHUNK) as u64,
                found,
                expected,
            }),
        }
    }
}

/// How many checksums `length` bytes have.
fn chunks(length: u64) -> usize {
    // At most 16,384: no block is larger than MAX_BLOCK.
    length.div_ceil(CHUNK as u64) as usize
}

/// The size of a file with `length` bytes of data.
pub(super) fn file_size(length: u64) -> u64 {
    length + (chunks(length) * 4 + TRAILER) as u64
}

/// Fills `into` from `at`. A file that ends before is damaged: it has had `size` bytes.
pub(super) fn read_exact(file: &File, into: &mut [u8], at: u64, size: u64) -> Result<(), Fault> {
    match file.read_exact_at(into, at) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(Damage::Size {
            found: file.metadata().map_or(0, |metadata| metadata.len()),
            expected: size,
        }
        .into()),
        done => Ok(done?),
    }
}
