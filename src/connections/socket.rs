//! A TCP connection that can be asked how far it is.
//!
//! Invariant: while the other side takes nothing, nothing is read from it, so that answers which cost no
//! permit (refusals, acknowledgements) cannot pile up behind a socket that is full.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Connection;

/// The first bytes of an HTTP/2 connection, whose number alone matters here: h2 looks at them.
const PREFACE_BYTES: u64 = 24;

/// How far a connection is, written by its socket and read by its watch.
#[derive(Debug)]
pub(super) struct Progress {
    opened: Instant,
    received: AtomicU64,
    /// Milliseconds after `opened`, plus 1; 0: what was to be sent could be.
    full_since: AtomicU64,
}

impl Progress {
    pub(super) fn new() -> Self {
        Progress {
            opened: Instant::now(),
            received: AtomicU64::new(0),
            full_since: AtomicU64::new(0),
        }
    }

    /// Whether as much has come as an HTTP/2 client says first.
    pub(super) fn greeted(&self) -> bool {
        self.received.load(Ordering::Relaxed) >= PREFACE_BYTES
    }

    /// Since when the other side has taken nothing of what waits to be sent.
    pub(super) fn full_since(&self) -> Option<Instant> {
        let after = self.full_since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.opened + Duration::from_millis(after))
    }

    fn is_full(&self) -> bool {
        self.full_since.load(Ordering::Relaxed) != 0
    }

    fn wrote(&self, taken: bool) {
        match (taken, self.is_full()) {
            (true, true) => self.full_since.store(0, Ordering::Relaxed),
            (false, false) => {
                let after = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
                self.full_since.store(after + 1, Ordering::Relaxed);
            }
            (true, false) | (false, true) => {}
        }
    }
}

/// The socket of a connection.
pub(super) struct Socket {
    stream: TcpStream,
    connection: Arc<Connection>,
    /// Wanted to read while the socket was full.
    reader: Option<Waker>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, connection: Arc<Connection>) -> Self {
        Socket {
            stream,
            connection,
            reader: None,
        }
    }

    fn wrote(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.connection.progress.wrote(written.is_ready());
        if written.is_ready()
            && let Some(reader) = self.reader.take()
        {
            reader.wake();
        }
        written
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.connection.progress.is_full() {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = (buf.filled().len() - before) as u64;
        self.connection
            .progress
            .received
            .fetch_add(read, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
