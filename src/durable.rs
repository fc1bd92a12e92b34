//! Files and directories that are still there after a power cut.
//!
//! Used by whoever makes something new in the data directory (`storage`, `raft`): a file's name is durable
//! only once its directory has been flushed too.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Makes a directory and its parents, and flushes the names of the new ones.
///
/// # Errors
/// Any of the system's, naming the directory.
pub(crate) fn create_dir_all(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = parent(dir);
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
