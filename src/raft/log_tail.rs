//! The end of the log after a crash: a write that was cut short is cut off, damage is refused.
//!
//! The log store calls this before raft-log opens the files. raft-log alone draws the line elsewhere: it
//! takes a damaged length, which points beyond the end of the file, for a record cut short and drops
//! everything behind it; and it refuses a write of which some sectors are missing and later ones are there.
//! With nothing but whole records in the newest file, it finds nothing to cut.
//!
//! What can be missing after a loss of power is known, since the log is written by one thread that waits for
//! each flush: a record of the commit index, which travels with the entries behind it (older servers wrote some
//! by themselves, without a flush), and what was stored at once: entries, or one other record. A record that
//! cannot have been part of such a write and is whole shows that everything before it was flushed. What was not
//! written reads as zeros, from some byte to the end of its sector or of the file.
//!
//! Invariant: a record that was flushed is never cut off, but for one case in which nobody could tell: one of
//! the last request to the log (the entries, or the other record, that were stored at once) and with nothing
//! whole behind it, damaged so that it seems longer than the file, or with a sector of zeros.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use raft_log::codeq::Decode;
use raft_log::{RaftLogAction, RaftLogRecord};

use super::log_store::DiskTypes;
use crate::durable;

/// What a disk writes as a whole, bytes.
const SECTOR: usize = 512;

/// The zeros at the beginning of a record that is whole may be as many; fewer do not tell anything.
const TELLING_ZEROS: usize = 4;

type Record = RaftLogRecord<DiskTypes>;

/// Cuts off what the last write left, if it was not finished.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when a record is damaged that was flushed, and any of the system's.
pub(super) fn cut_unfinished_write(dir: &Path) -> io::Result<()> {
    let mut chunks = chunks(dir)?;
    while let Some(path) = &chunks.pop() {
        let bytes = fs::read(path).map_err(|e| durable::naming(path, &e))?;
        let whole = match whole_records(&bytes) {
            Ok(()) => bytes.len(),
            Err((at, error)) if !is_unfinished(&bytes, at, &error) => return Err(damaged(path, at, &error)),
            Err((at, _)) => {
                log::warn!(
                    "{}: its last {} bytes are of a write that was not finished, and are cut off",
                    path.display(),
                    bytes.len() - at
                );
                cut(path, at).map_err(|e| durable::naming(path, &e))?;
                at
            }
        };
        // A file is begun when the one before it is full: there may be nothing in it yet.
        if whole > 0 {
            break;
        }
    }
    // raft-log takes for granted that there is something in the others.
    for path in chunks {
        if fs::metadata(&path).map_err(|e| durable::naming(&path, &e))?.len() == 0 {
            return Err(damaged(&path, 0, &io::ErrorKind::UnexpectedEof.into()));
        }
    }
    Ok(())
}

/// Names the first damaged record, if there is one.
pub(super) fn first_damage(dir: &Path) -> io::Result<Option<io::Error>> {
    for path in chunks(dir)? {
        let bytes = fs::read(&path).map_err(|e| durable::naming(&path, &e))?;
        if let Err((at, error)) = whole_records(&bytes) {
            return Ok(Some(damaged(&path, at, &error)));
        }
    }
    Ok(None)
}

/// The files of the log, oldest first.
pub(super) fn chunks(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let is_chunk = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "wal");
    let entries = fs::read_dir(dir).map_err(|e| durable::naming(dir, &e))?;
    let paths: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(|e| durable::naming(dir, &e))?;
    paths.retain(is_chunk);
    // Their names are numbers, filled up with zeros.
    paths.sort();
    Ok(paths)
}

fn damaged(path: &Path, at: usize, error: &io::Error) -> io::Error {
    let message = format!("{}: the record at byte {at} is damaged: {error}", path.display());
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn cut(path: &Path, length: usize) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    file.set_len(length as u64)?;
    file.sync_all()
}

/// Reads one record from the beginning of `bytes`; also gives its length.
fn record(bytes: &[u8]) -> io::Result<(Record, usize)> {
    let mut rest = bytes;
    let record = Record::decode(&mut rest)?;
    Ok((record, bytes.len() - rest.len()))
}

/// Reads all of it; or says where that came to an end, and why.
fn whole_records(bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut at = 0;
    while at < bytes.len() {
        let (_, length) = record(&bytes[at..]).map_err(|e| (at, e))?;
        at += length;
    }
    Ok(())
}

/// What was written from `at` on, where `error` is, and was not flushed, as far as it has been seen.
enum Seen {
    /// Nothing, or commit indexes.
    Commits,
    /// Entries.
    Entries,
    /// One record of another kind.
    Other,
}

/// Whether everything from `at` on may be what is left of a write that was not finished.
fn is_unfinished(bytes: &[u8], at: usize, error: &io::Error) -> bool {
    // Its first four bytes say what a record is; they may be among what is missing.
    let mut seen = match bytes.get(at..at + 4) {
        None | Some([0, 0, 0, 0 | 2 | 5]) => Seen::Commits,
        Some([0, 0, 0, 1]) => Seen::Entries,
        Some(_) => Seen::Other,
    };
    let mut next = None;
    let mut place = at + 1;
    while place < bytes.len() {
        let Some((record, length)) = record_at(bytes, place) else {
            place += 1;
            continue;
        };
        next = next.or(Some(place));
        place += length;
        seen = match (seen, record) {
            (Seen::Commits, Record::Action(RaftLogAction::Commit(_))) => Seen::Commits,
            (Seen::Commits | Seen::Entries, Record::Action(RaftLogAction::Append(..))) => Seen::Entries,
            (Seen::Commits, _) => Seen::Other,
            (Seen::Entries | Seen::Other, _) => return false,
        };
    }
    match next {
        None if error.kind() == io::ErrorKind::UnexpectedEof => true,
        next => lacks_a_sector(bytes, at..next.unwrap_or(bytes.len())),
    }
}

/// A whole record at this place, if there is one.
fn record_at(bytes: &[u8], place: usize) -> Option<(Record, usize)> {
    // Most places are ruled out by this.
    let head = bytes.get(place..place + 4)?;
    let may_be = head[..3] == [0; 3] && head[3] <= 5;
    let is_zero = bytes[place..bytes.len().min(place + 32)]
        .iter()
        .all(|byte| *byte == 0);
    if !may_be || is_zero {
        return None;
    }
    record(&bytes[place..]).ok()
}

/// Whether there is nothing but zeros in the part of some sector that lies in `range`.
fn lacks_a_sector(bytes: &[u8], range: Range<usize>) -> bool {
    (range.start / SECTOR..range.end.div_ceil(SECTOR)).any(|sector| {
        let from = range.start.max(sector * SECTOR);
        let to = range.end.min((sector + 1) * SECTOR);
        let tells = to - from >= TELLING_ZEROS || to == bytes.len();
        tells && bytes[from..to].iter().all(|byte| *byte == 0)
    })
}
