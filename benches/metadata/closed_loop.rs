//! The load: clients that each wait for the answer before they ask again.
//!
//! Called by `main` for every cell, and by `flushes`. The clients run until they are told to stop, all on the
//! one thread of the runtime; what is answered between the first and the last moment of the window counts,
//! with the time that it took. The first wrong answer stops everybody, and is the result.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::cpu::{Processes, Usage};
use crate::operation::Operation;
use crate::system::Connection;
use crate::workload::{Stock, Worker};

/// An answer that takes longer is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// Slower than this goes no system, even where strace makes it slow.
const SLOWEST: Duration = Duration::from_millis(50);

/// Who asks for what.
pub struct Load<'a> {
    /// For what.
    pub operation: Operation,
    /// How many ask.
    pub clients: usize,
    /// What they share.
    pub connections: &'a [Connection],
    /// What they use up.
    pub stock: &'a Arc<Stock>,
}

/// What came of a window.
pub struct Window {
    /// Its length: shorter than asked for when the stock was used up.
    pub length: Duration,
    /// Nanoseconds that each answer within it took.
    pub latencies: Histogram<u64>,
    /// Processor time meanwhile.
    pub usage: Usage,
}

const WARMING: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

struct Shared {
    phase: AtomicU8,
    /// How many requests may be begun.
    tickets: AtomicUsize,
    latencies: Mutex<Histogram<u64>>,
    wrong: Mutex<Option<String>>,
    stopped: Notify,
}

impl Load<'_> {
    /// Runs it for `warm_up`, then counts for `window`.
    pub async fn measure(
        &self,
        warm_up: Duration,
        window: Duration,
        processes: &Processes,
    ) -> Result<Window, String> {
        let (shared, clients) = self.begin(self.clients, usize::MAX);
        shared.pause(warm_up).await;
        let before = Usage::now(processes)?;
        let begun = Instant::now();
        let in_time = shared.goes_on(COUNTING);
        shared.pause(window).await;
        shared.goes_on(OVER);
        let length = begun.elapsed();
        let usage = Usage::now(processes)?.since(&before);
        end(clients, PATIENCE).await?;
        shared.judge()?;
        if !in_time {
            return Err("the files were used up before the window began".to_owned());
        }
        let latencies = shared.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Window {
            length,
            latencies: latencies.clone(),
            usage,
        })
    }

    /// Does it exactly `count` times, as fast as it goes. Not measured.
    pub async fn repeat(&self, count: usize) -> Result<(), String> {
        let (shared, clients) = self.begin(self.clients.min(count), count);
        end(clients, PATIENCE + SLOWEST * count as u32).await?;
        shared.judge()
    }

    fn begin(&self, clients: usize, tickets: usize) -> (Arc<Shared>, JoinSet<()>) {
        let shared = Arc::new(Shared {
            phase: AtomicU8::new(WARMING),
            tickets: AtomicUsize::new(tickets),
            // Up to a minute, to three digits.
            latencies: Mutex::new(
                Histogram::new_with_max(60_000_000_000, 3).expect("these bounds are valid"),
            ),
            wrong: Mutex::new(None),
            stopped: Notify::new(),
        });
        let mut tasks = JoinSet::new();
        for n in 0..clients {
            let connection = self.connections[n % self.connections.len()].clone();
            let worker = Worker::new(connection, n);
            tasks.spawn(client(worker, self.operation, self.stock.clone(), shared.clone()));
        }
        (shared, tasks)
    }
}

async fn client(mut worker: Worker, operation: Operation, stock: Arc<Stock>, shared: Arc<Shared>) {
    let mut begun = Instant::now();
    while shared.phase.load(Ordering::Relaxed) != OVER && shared.ticket() {
        match worker.act(operation, &stock).await {
            Ok(true) => {}
            Ok(false) => return shared.stop(None),
            Err(wrong) => return shared.stop(Some(wrong)),
        }
        let now = Instant::now();
        shared.answered(now - begun);
        begun = now;
    }
}

async fn end(mut clients: JoinSet<()>, patience: Duration) -> Result<(), String> {
    let all = async {
        while let Some(ended) = clients.join_next().await {
            ended.map_err(|error| format!("a client failed: {error}"))?;
        }
        Ok(())
    };
    tokio::time::timeout(patience, all)
        .await
        .map_err(|_| format!("requests without an answer for {patience:?}"))?
}

impl Shared {
    /// False when the clients have stopped by themselves.
    fn goes_on(&self, phase: u8) -> bool {
        self.phase.fetch_max(phase, Ordering::Relaxed) != OVER
    }

    /// Waits so long, or until a client has stopped all.
    async fn pause(&self, length: Duration) {
        // The time that the load is on, not a wait for something.
        let _ = tokio::time::timeout(length, self.stopped.notified()).await;
    }

    fn stop(&self, wrong: Option<String>) {
        if let Some(wrong) = wrong {
            let mut first = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(wrong);
        }
        self.phase.store(OVER, Ordering::Relaxed);
        self.stopped.notify_one();
    }

    fn ticket(&self) -> bool {
        let take = |left: usize| match left {
            usize::MAX => Some(left),
            left => left.checked_sub(1),
        };
        let taken = self
            .tickets
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.is_ok()
    }

    fn answered(&self, took: Duration) {
        if self.phase.load(Ordering::Relaxed) == COUNTING {
            let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
            latencies.saturating_record(took.as_nanos() as u64);
        }
    }

    fn judge(&self) -> Result<(), String> {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.take().map_or(Ok(()), Err)
    }
}
