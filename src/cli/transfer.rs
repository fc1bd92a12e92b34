//! `put`, `get`, `cat`: single files.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::output::{Output, above, join, name_of, printable};
use super::progress::Progress;
use super::{Exit, Failure};
use crate::client::files::{Content, Files, Stored, TransferError, TransferOptions};
use crate::client::{Client, Error};
use crate::domain::path::CleanPath;
use crate::proto::dfs::{FileType, StatInfo};

/// What a digest-less file is remarked on with.
pub(super) const UNVERIFIED: &str = "the cluster knows no MD5 of it, so that only its length was verified";

pub(super) fn files(client: &Client, jobs: usize) -> Files {
    let options = TransferOptions {
        jobs,
        ..TransferOptions::default()
    };
    Files::new(client.clone(), options)
}

/// What is at `path`, if anything.
pub(super) async fn look(client: &Client, path: &str) -> Result<Option<StatInfo>, Error> {
    match client.stat(path).await {
        Ok(stat) => Ok(Some(stat)),
        Err(Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) async fn put(
    client: &Client,
    out: &mut Output,
    local: &Path,
    remote: &str,
    (parents, no_clobber): (bool, bool),
    jobs: usize,
) -> Result<Exit, Failure> {
    let content = Content::open(local).await?;
    let path = place_for(client, local, remote, parents).await?;
    if let Some(there) = look(client, &path).await? {
        if there.r#type() == FileType::Directory {
            return Err(Error::FailedPrecondition(format!("a directory is there: {path}")).into());
        }
        refuse_if(no_clobber, &path)?;
    }
    let progress = Progress::new(out);
    progress.expect(content.size, &printable(&path));
    let stored = files(client, jobs)
        .put(content, &path, &|bytes| progress.moved(bytes))
        .await;
    let size = stored.as_ref().map_or(0, |stored| stored.size);
    let rate = progress.finish(size);
    let Stored {
        size,
        md5,
        under_replicated_blocks,
    } = stored?;
    if out.json() {
        out.document(&json!({
            "path": path,
            "size": size,
            "md5": md5,
            "seconds": rate.seconds,
            "bytes_per_second": rate.bytes_per_second,
            "under_replicated_blocks": under_replicated_blocks,
        }));
        return Ok(Exit::Ok);
    }
    remark_on_replicas(out, under_replicated_blocks);
    out.line(printable(&format!("{path}: {size} bytes {rate}")));
    Ok(Exit::Ok)
}

pub(super) fn remark_on_replicas(out: &Output, under_replicated_blocks: u64) {
    if under_replicated_blocks > 0 {
        out.remark(format!(
            "{under_replicated_blocks} blocks have fewer replicas than wanted, and will be repaired"
        ));
    }
}

pub(super) fn refuse_if(no_clobber: bool, path: &str) -> Result<(), Error> {
    match no_clobber {
        true => Err(Error::AlreadyExists(format!("already exists: {path}"))),
        false => Ok(()),
    }
}

/// The path that the content of `local` gets: `remote`, or below it when it is a directory.
async fn place_for(client: &Client, local: &Path, remote: &str, parents: bool) -> Result<String, Failure> {
    let there = look(client, remote).await?;
    let is_directory = there.map(|there| there.r#type() == FileType::Directory);
    let directory_meant = remote.ends_with('/');
    match is_directory {
        Some(false) if directory_meant => {
            return Err(Error::FailedPrecondition(format!("not a directory: {remote}")).into());
        }
        Some(false) => return Ok(remote.to_string()),
        Some(true) => (),
        None if parents && directory_meant => drop(client.create_with_parents(remote).await?),
        None if directory_meant => {
            return Err(Error::NotFound(format!("no such directory: {remote}")).into());
        }
        None => {
            if parents {
                client.create_with_parents(above(remote)).await?;
            }
            return Ok(remote.to_string());
        }
    }
    let name = local.file_name().and_then(OsStr::to_str);
    let name = name.ok_or_else(|| {
        let message = "its name is not UTF-8: name the remote file";
        local_failure(local, io::Error::new(io::ErrorKind::InvalidInput, message))
    })?;
    Ok(join(remote, name))
}

pub(super) fn local_failure(path: &Path, source: io::Error) -> Failure {
    Failure::Local {
        path: path.to_path_buf(),
        source,
    }
}

pub(super) async fn get(
    client: &Client,
    out: &mut Output,
    remote: &str,
    local: &Path,
    no_clobber: bool,
    jobs: usize,
) -> Result<Exit, Failure> {
    let files = files(client, jobs);
    let stat = files.stat_file(remote).await?;
    let local: PathBuf = match tokio::fs::metadata(local).await {
        Ok(there) if there.is_dir() => {
            // Without dots: what is fetched goes into the directory, not above it.
            let clean =
                CleanPath::parse(remote).map_err(|refusal| Error::InvalidArgument(refusal.to_string()))?;
            local.join(name_of(clean.as_str()))
        }
        _ => local.to_path_buf(),
    };
    if no_clobber && tokio::fs::symlink_metadata(&local).await.is_ok() {
        refuse_if(true, &local.to_string_lossy())?;
    }
    let progress = Progress::new(out);
    progress.expect(u64::try_from(stat.size).unwrap_or(0), &printable(remote));
    let fetched = files.get(remote, &local, &|bytes| progress.moved(bytes)).await;
    let rate = progress.finish(fetched.as_ref().map_or(0, |fetched| fetched.size));
    let fetched = fetched?;
    let (shown, size) = (local.to_string_lossy(), fetched.size);
    if out.json() {
        out.document(&json!({
            "path": remote,
            "local": shown,
            "size": size,
            "md5": fetched.md5,
            "verified": fetched.verified,
            "seconds": rate.seconds,
            "bytes_per_second": rate.bytes_per_second,
        }));
        return Ok(Exit::Ok);
    }
    if !fetched.verified {
        out.remark(printable(&format!("{remote}: {UNVERIFIED}")));
    }
    out.line(printable(&format!("{shown}: {size} bytes {rate}")));
    Ok(Exit::Ok)
}

pub(super) async fn cat(
    client: &Client,
    out: &mut Output,
    paths: &[String],
    jobs: usize,
) -> Result<Exit, Failure> {
    if out.json() {
        return Err(Failure::Usage("cat prints bytes: it has no --json".to_string()));
    }
    let files = files(client, jobs);
    for path in paths {
        let read = files
            .read_to(path, out.raw(), Path::new("the output"), &|_| ())
            .await;
        if out.closed() {
            // The reader has seen enough; any other reason is told when the output is finished.
            return Ok(Exit::Ok);
        }
        match read {
            Err(error @ TransferError::Damaged(_)) => {
                out.remark("what was printed is not what was stored");
                return Err(error.into());
            }
            read => drop(read?),
        }
    }
    Ok(Exit::Ok)
}
