//! Files and directories that are still there after a power cut.
//!
//! Used by whoever makes something new in a data directory (`storage`, `raft`, `dataserver`): a file's name
//! is durable only once its directory has been flushed too. And by whoever wants one for himself.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::Path;

/// Makes a directory and its parents, and flushes the names of the new ones.
///
/// # Errors
/// Any of the system's, naming the directory.
pub(crate) fn create_dir_all(dir: &Path) -> io::Result<()> {
    let parent = parent(dir);
    if dir.is_dir() {
        // Whoever made it may have been killed before its name was flushed. A parent that this process may
        // not open is not of its making.
        return match sync_dir(parent) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            synced => synced,
        };
    }
    create_dir_all(parent)?;
    match fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(naming(dir, &e)),
        _ => (),
    }
    sync_dir(parent)
}

/// Flushes the names in a directory.
///
/// # Errors
/// Any of the system's, naming the directory.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| naming(dir, &e))
}

/// Replaces a file's content at once: after a crash it is the old or the new, and never half of it.
///
/// # Errors
/// Any of the system's, naming the file.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("tmp");
    let write = || {
        let mut file = File::create(&aside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    write().map_err(|e| naming(path, &e))?;
    sync_dir(parent(path))
}

/// Takes a data directory for this process: no other one has it until the file that is given back is
/// closed.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when another process has it, naming that one, and any of the system's.
pub(crate) fn lock_directory(dir: &Path) -> io::Result<File> {
    let path = dir.join("lock");
    let naming = |e| naming(&path, &e);
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(naming)?;
    match file.try_lock() {
        Ok(()) => (),
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                format!(
                    "data directory {} is in use by process {}",
                    dir.display(),
                    holder.trim()
                ),
            ));
        }
        Err(TryLockError::Error(e)) => return Err(naming(e)),
    }
    // For the operator only; what counts is the lock.
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(naming)?;
    Ok(file)
}

/// An error that says what to do about a file of a node which is damaged: to go on without what was in it could
/// take back a vote, or a change that was acknowledged.
pub(crate) fn damaged(e: &io::Error) -> io::Error {
    let message = format!(
        "{e}; to refill this node from its peers, move its data directory away and start it again with an empty one"
    );
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// The same error with the path in front.
pub(crate) fn naming(path: &Path, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
