//! The one way to stdout, and the words that the commands share: kinds, times, tables.
//!
//! A reader that has seen enough (`minfs ls -R / | head`) is no error: what is printed after it went
//! away is dropped, and long walks look at [`Output::closed`] and stop.

use std::io::{self, BufWriter, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, SecondsFormat};
use serde::Serialize;

use crate::proto::dfs::{FileType, StatInfo};

/// Where a command prints its result.
pub struct Output {
    json: bool,
    sink: Arc<Mutex<Sink>>,
}

struct Sink {
    writer: BufWriter<Box<dyn Write + Send>>,
    closed: bool,
    failure: Option<io::Error>,
}

impl Output {
    /// Prints to `sink`, which need not be buffered.
    pub fn new(sink: Box<dyn Write + Send>) -> Self {
        let sink = Sink {
            writer: BufWriter::with_capacity(64 << 10, sink),
            closed: false,
            failure: None,
        };
        Self {
            json: false,
            sink: Arc::new(Mutex::new(sink)),
        }
    }

    pub(super) fn set_json(&mut self, json: bool) {
        self.json = json;
    }

    pub(super) fn json(&self) -> bool {
        self.json
    }

    /// Whether nobody reads any more, or nothing can be written.
    pub(super) fn closed(&self) -> bool {
        lock(&self.sink).closed
    }

    pub(super) fn line(&mut self, line: impl AsRef<str>) {
        self.write(|sink| writeln!(sink, "{}", line.as_ref()));
    }

    /// Prints a JSON document on one line.
    pub(super) fn document(&mut self, document: &impl Serialize) {
        self.write(|sink| {
            serde_json::to_writer(&mut *sink, document)?;
            writeln!(sink)
        });
    }

    /// A remark beside the result: on stderr, and not at all with `--json`, where the document says it.
    pub(super) fn remark(&self, remark: impl AsRef<str>) {
        if !self.json {
            complain(remark.as_ref());
        }
    }

    /// A way for bytes that are no lines, from whichever thread.
    pub(super) fn raw(&self) -> Raw {
        Raw(self.sink.clone())
    }

    /// Sends out what is buffered.
    ///
    /// # Errors
    /// What went wrong with any of the output, unless the reader went away.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.write(|sink| sink.flush());
        lock(&self.sink).failure.take().map_or(Ok(()), Err)
    }

    fn write(&mut self, write: impl FnOnce(&mut BufWriter<Box<dyn Write + Send>>) -> io::Result<()>) {
        // What went wrong is kept, and told in the end.
        let _ = lock(&self.sink).write(write);
    }
}

impl Sink {
    fn write<T>(
        &mut self,
        write: impl FnOnce(&mut BufWriter<Box<dyn Write + Send>>) -> io::Result<T>,
    ) -> io::Result<T> {
        if self.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        write(&mut self.writer).map_err(|error| {
            let kind = error.kind();
            self.closed = true;
            if kind != io::ErrorKind::BrokenPipe {
                self.failure = Some(error);
            }
            kind.into()
        })
    }
}

fn lock(sink: &Mutex<Sink>) -> MutexGuard<'_, Sink> {
    sink.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See [`Output::raw`]. An error ends the output, and is told by [`Output::finish`].
pub(super) struct Raw(Arc<Mutex<Sink>>);

impl Write for Raw {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).write(|sink| sink.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        lock(&self.0).write(|sink| sink.flush())
    }
}

/// A line on stderr. When even that is closed, nobody can be told.
pub(super) fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "minfs: {message}");
}

pub(super) fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "directory",
        FileType::File => "file",
        FileType::Volume => "volume",
        FileType::Unknown => "unknown",
    }
}

fn kind_letter(kind: FileType) -> char {
    match kind {
        FileType::Directory => 'd',
        FileType::File => '-',
        FileType::Volume => 'v',
        FileType::Unknown => '?',
    }
}

/// Unix milliseconds as RFC 3339 in UTC; the bare number when it is no time that can be written.
pub(super) fn time(unix_ms: i64) -> String {
    match DateTime::from_timestamp_millis(unix_ms) {
        Some(time) => time.to_rfc3339_opts(SecondsFormat::Millis, true),
        None => unix_ms.to_string(),
    }
}

/// A name or path on one line of a terminal: control characters are escaped, JSON has them as they are.
pub(super) fn printable(name: &str) -> String {
    if !name.contains(char::is_control) {
        return name.to_string();
    }
    name.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect()
            } else {
                vec![c]
            }
        })
        .collect()
}

/// The path of `name` in `directory`.
pub(super) fn join(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}

/// The path above `path`; the root is above itself.
pub(super) fn above(path: &str) -> &str {
    match path.trim_end_matches('/').rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((above, _)) => above,
    }
}

/// The last part of a path. What servers list may be named by path or by name.
pub(super) fn name_of(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// One file or directory, as `ls` and `stat` show it.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    pub(super) path: String,
    pub(super) name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip)]
    pub(super) file_type: FileType,
    /// Bytes; of a directory, those of all files below it.
    pub(super) size: i64,
    /// RFC 3339, UTC.
    pub(super) mtime: String,
    mtime_ms: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) md5: String,
}

impl Entry {
    pub(super) fn new(path: String, stat: StatInfo) -> Self {
        let file_type = stat.r#type();
        Self {
            name: name_of(&path).to_string(),
            path,
            kind: kind_name(file_type),
            file_type,
            size: stat.size,
            mtime: time(stat.mtime),
            mtime_ms: stat.mtime,
            md5: stat.md5,
        }
    }

    /// A child of `directory`, as its listing shows it.
    pub(super) fn child(directory: &str, stat: StatInfo) -> Self {
        Self::new(join(directory, name_of(&stat.path)), stat)
    }

    pub(super) fn long(&self, label: &str, size_width: usize) -> String {
        format!(
            "{} {:>size_width$} {} {label}",
            kind_letter(self.file_type),
            self.size,
            self.mtime
        )
    }
}

/// Columns as wide as their widest cell; the first row is the heading.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect()
}
