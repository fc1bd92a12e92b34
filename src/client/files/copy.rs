//! Copying a file inside the cluster: it is read and written at once, through this process.

use std::path::{Path, PathBuf};

use super::{Content, Files, Progress, Stored, TransferError};

impl Files {
    /// Makes the file at `to` a copy of the one at `from`. Twice as many blocks as usual may be in memory.
    ///
    /// # Errors
    /// Those of [`Self::read_to`] and [`Self::put`]; nothing has changed then, but for an unknown outcome.
    pub async fn copy(&self, from: &str, to: &str, progress: Progress<'_>) -> Result<Stored, TransferError> {
        let name = PathBuf::from(from);
        let stat = self.stat_file(from).await?;
        let (reader, writer) = std::io::pipe().map_err(TransferError::local(&name))?;
        let content = Content {
            reader: Box::new(reader),
            size: u64::try_from(stat.size).unwrap_or(0),
            name: name.clone(),
            md5: Some(stat.md5.clone()).filter(|md5| !md5.is_empty()),
        };
        // Places of its own: were they shared, blocks that wait to be written could keep out those which they
        // wait for.
        let source = self.with_own_places();
        let reading = source.read(from, &stat, writer, Path::new("pipe"), &|_| ());
        let (read, stored) = futures::join!(reading, self.put(content, to, progress));
        match (read, stored) {
            (Err(error), Err(_)) if !error.is_broken_pipe() => Err(error),
            (_, stored) => stored,
        }
    }
}
