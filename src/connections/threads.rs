//! Threads that serve connections beside the one that accepts them.
//!
//! What a request costs is mostly HTTP/2: where a node has processors to spare, that is done on threads of
//! its own, and the thread of the actors has more time for them. Every connection stays on one thread.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The most threads that are worth while: one thread of actors cannot keep more of them busy.
const MOST: usize = 8;

/// Processors below which a thread more only changes places with the others.
const FEW: usize = 4;

/// Threads with a runtime each. They end when this is dropped, and whatever they still do with them.
pub struct Threads {
    handles: Vec<Handle>,
    next: AtomicUsize,
    _ends: Vec<oneshot::Sender<()>>,
}

impl Threads {
    /// None: connections are served where they are accepted.
    pub fn none() -> Self {
        Threads {
            handles: Vec::new(),
            next: AtomicUsize::new(0),
            _ends: Vec::new(),
        }
    }

    /// So many; their names begin with `name`.
    ///
    /// # Errors
    /// When the system has no thread or no file descriptor left.
    pub fn start(count: usize, name: &str) -> io::Result<Self> {
        let mut threads = Threads::none();
        for n in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (end, ended) = oneshot::channel::<()>();
            threads.handles.push(runtime.handle().clone());
            threads._ends.push(end);
            thread::Builder::new()
                .name(format!("{name}-{n}"))
                .spawn(move || {
                    // Nothing is ever sent: the other end is dropped.
                    let _ = runtime.block_on(ended);
                })?;
        }
        Ok(threads)
    }

    /// How many serve a node well that may run on so many processors: half of them, and none where there
    /// are few. See `docs/performance/`.
    pub fn fitting(processors: usize) -> usize {
        match processors {
            0..FEW => 0,
            more => (more / 2).min(MOST),
        }
    }

    /// Runs what `serve` makes of the socket, on the next thread in turn. A socket that cannot move there is
    /// closed.
    pub(super) fn spawn<F>(&self, socket: TcpStream, serve: impl FnOnce(TcpStream) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let Some(thread) = self.handles.get(turn % self.handles.len().max(1)) else {
            tokio::spawn(serve(socket));
            return;
        };
        // It belongs to the reactor of the thread that reads it.
        let Ok(socket) = socket.into_std() else {
            return;
        };
        thread.spawn(async move {
            if let Ok(socket) = TcpStream::from_std(socket) {
                serve(socket).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_processors_are_left_to_one_thread() {
        let fitting = [1, 2, 3, 4, 6, 8, 16, 128].map(Threads::fitting);
        assert_eq!(fitting, [0, 0, 0, 2, 3, 4, 8, 8]);
    }
}
