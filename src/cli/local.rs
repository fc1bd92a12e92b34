//! The local side of `mirror`, `diff` and `cp`: what a directory holds, and what of it MinFS can hold.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Failure;

/// What stands under a local name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Symlink,
    /// A socket, a pipe, a device.
    Special,
}

impl Kind {
    pub(super) fn of(kind: fs::FileType) -> Self {
        if kind.is_dir() {
            Kind::Directory
        } else if kind.is_file() {
            Kind::File
        } else if kind.is_symlink() {
            Kind::Symlink
        } else {
            Kind::Special
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Directory => "directory",
            Kind::File => "file",
            Kind::Symlink => "symlink",
            Kind::Special => "special file",
        }
    }
}

/// One local directory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// In byte order of the names, as servers list.
    pub(super) entries: Vec<(String, Kind)>,
    /// The paths whose names are not UTF-8, made readable.
    pub(super) non_utf8: Vec<String>,
}

/// What a walk left out.
#[derive(Debug, Default, Serialize)]
pub(super) struct Skipped {
    pub(super) symlinks: u64,
    pub(super) special_files: u64,
    pub(super) non_utf8_names: Vec<String>,
}

impl Skipped {
    pub(super) fn count(&mut self, kind: Kind) {
        match kind {
            Kind::Symlink => self.symlinks += 1,
            Kind::Special => self.special_files += 1,
            Kind::Directory | Kind::File => (),
        }
    }

    pub(super) fn add(&mut self, more: Skipped) {
        self.symlinks += more.symlinks;
        self.special_files += more.special_files;
        self.non_utf8_names.extend(more.non_utf8_names);
    }

    /// In one sentence; none when nothing was left out.
    pub(super) fn sentence(&self) -> Option<String> {
        let Skipped {
            symlinks,
            special_files,
            non_utf8_names,
        } = self;
        if *symlinks == 0 && *special_files == 0 && non_utf8_names.is_empty() {
            return None;
        }
        let names = non_utf8_names.len();
        Some(format!(
            "skipped {symlinks} symlinks, {special_files} special files, {names} names not UTF-8"
        ))
    }
}

/// Reads one directory, off the runtime's thread.
pub(super) async fn read_directory(path: PathBuf) -> io::Result<Listing> {
    tokio::task::spawn_blocking(move || read(&path))
        .await
        .map_err(io::Error::other)?
}

fn read(path: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        match entry.file_name().into_string() {
            Ok(name) => listing.entries.push((name, Kind::of(entry.file_type()?))),
            Err(_) => listing.non_utf8.push(entry.path().to_string_lossy().into_owned()),
        }
    }
    listing.entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    listing.non_utf8.sort_unstable();
    Ok(listing)
}

/// Checks that `path` is a directory, or a link to one, before anything is made of it.
pub(super) async fn require_directory(path: &Path) -> Result<(), Failure> {
    let failed = |source| Failure::Local {
        path: path.to_path_buf(),
        source,
    };
    if tokio::fs::metadata(path).await.map_err(failed)?.is_dir() {
        return Ok(());
    }
    Err(failed(io::Error::from(io::ErrorKind::NotADirectory)))
}
