//! What can become of a transfer. As everywhere in the client, a mistake, "nothing happened" and "it may
//! have happened" are different things.

use std::io;
use std::path::{Path, PathBuf};

use crate::client::Error;

/// Why a file was not moved.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The MetaServers' answer, or that there was none.
    #[error(transparent)]
    Meta(#[from] Error),
    /// A local file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Local {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A block could not be written to, or read from, enough DataServers. No file changed.
    #[error("{0}")]
    DataServers(String),
    /// The remote file was changed while it was read.
    #[error("{0}")]
    Changed(String),
    /// All blocks were read, and they are not what was once written.
    #[error("{0}")]
    Damaged(String),
}

impl TransferError {
    pub(super) fn local(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| TransferError::Local {
            path: path.to_path_buf(),
            source,
        }
    }

    /// Whether what was tried to be written to is not read any more.
    pub(super) fn is_broken_pipe(&self) -> bool {
        match self {
            TransferError::Local { source, .. } => source.kind() == io::ErrorKind::BrokenPipe,
            TransferError::Meta(_)
            | TransferError::DataServers(_)
            | TransferError::Changed(_)
            | TransferError::Damaged(_) => false,
        }
    }
}
