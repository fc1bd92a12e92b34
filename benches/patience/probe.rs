//! The requests that are timed: an open loop of clients with a timetable.
//!
//! Each request has a moment at which it is due, and the time that it takes counts from that moment: whatever keeps
//! a client from asking in time, an answer that is late above all, counts as well, and a server that stands still
//! delays everything that is due meanwhile. (A client that waits for its answer before it decides to ask again would
//! ask once and be late once.) Gil Tene calls the mistake coordinated omission.
//!
//! All clients run on one thread, with a priority above that of the servers: in the field they have a processor of
//! their own. The timetable is kept by another thread, since the runtime's clock ticks in milliseconds. `cases` starts
//! a probe, and cuts its samples into windows when all is over.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use crate::minfs::MinfsConnection;
use crate::operation::Operation;
use crate::settings::Settings;
use crate::support::cluster::{self, Cluster};
use crate::system::Connection;
use crate::workload::{Stock, Worker};

/// Connections that the clients of the mixed load share.
const CONNECTIONS: usize = 16;

/// What the threads of the clients are to the scheduler of the system.
const NICE: i32 = -10;

/// Whose request it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A client of the mixed load's, which stats.
    Stat,
    /// A client of the mixed load's, which creates.
    Create,
    /// The client that only stats, one after the other.
    Single,
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Whose it was.
    pub who: Who,
    /// When it was due.
    pub due: Instant,
    /// From then to its answer.
    pub took: Duration,
}

#[derive(Default)]
struct Book {
    samples: Vec<Sample>,
    failed: Vec<String>,
}

/// Clients that ask all the time.
pub struct Probe {
    stop: Arc<AtomicBool>,
    book: Arc<Mutex<Book>>,
    late: Arc<AtomicUsize>,
    timetable: JoinHandle<()>,
    clients: JoinHandle<()>,
}

impl Probe {
    /// Asks the leader from now on.
    pub fn start(cluster: &Cluster, leader: usize, stock: &Arc<Stock>, settings: &Settings) -> Probe {
        let address = cluster.node(leader).grpc_addr.clone();
        let (stop, book) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Book>>::default());
        let late = Arc::<AtomicUsize>::default();
        let mut seats = Vec::new();
        let mut crowd = Vec::new();
        for n in 0..settings.clients {
            let (due, seat) = unbounded_channel();
            crowd.push(due);
            seats.push((n, Operation::Mixed, seat));
        }
        let (single, seat) = unbounded_channel();
        seats.push((settings.clients, Operation::Stat, seat));
        let routes = [
            Route::new(crowd, settings.rate),
            Route::new(vec![single], settings.single_rate),
        ];
        let timetable = thread::spawn({
            let (stop, late) = (stop.clone(), late.clone());
            move || keep_time(routes, &stop, &late)
        });
        let clients = thread::spawn({
            let (stock, book, late) = (stock.clone(), book.clone(), late.clone());
            move || serve(seats, &address, &stock, &book, &late)
        });
        Probe {
            stop,
            book,
            late,
            timetable,
            clients,
        }
    }

    /// How many requests are due and not answered yet.
    pub fn late(&self) -> usize {
        self.late.load(Ordering::Relaxed)
    }

    /// Waits for the last answers; gives everything that was timed.
    pub fn stop(self) -> Result<Vec<Sample>, String> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.timetable.join().and_then(|()| self.clients.join());
        ended.map_err(|_| "a thread of the clients failed".to_owned())?;
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        match book.failed.first() {
            None => Ok(std::mem::take(&mut book.samples)),
            Some(first) => Err(format!("{} requests failed, first: {first}", book.failed.len())),
        }
    }
}

/// A load with its pace.
struct Route {
    clients: Vec<UnboundedSender<Instant>>,
    period: Duration,
    departed: u32,
    next: Instant,
}

impl Route {
    fn new(clients: Vec<UnboundedSender<Instant>>, rate: u32) -> Route {
        Route {
            clients,
            period: Duration::from_secs(1) / rate,
            departed: 0,
            next: Instant::now(),
        }
    }
}

/// Tells each client when its next request is due, in turn.
fn keep_time(mut routes: [Route; 2], stop: &AtomicBool, late: &AtomicUsize) {
    hurry();
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        for route in &mut routes {
            while route.next <= now {
                let client = route.departed as usize % route.clients.len();
                late.fetch_add(1, Ordering::Relaxed);
                // A client that is gone has failed, and said so.
                let _ = route.clients[client].send(route.next);
                route.departed = route.departed.wrapping_add(1);
                route.next += route.period;
            }
        }
        let next = routes.iter().map(|route| route.next).min();
        thread::sleep(next.map_or(Duration::ZERO, |next| {
            next.saturating_duration_since(Instant::now())
        }));
    }
}

type Seat = (usize, Operation, UnboundedReceiver<Instant>);

fn serve(
    seats: Vec<Seat>,
    address: &str,
    stock: &Arc<Stock>,
    book: &Arc<Mutex<Book>>,
    late: &Arc<AtomicUsize>,
) {
    hurry();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let connect = || Connection::Minfs(MinfsConnection::new(cluster::connect(address)));
        let connections: Vec<Connection> = (0..CONNECTIONS).map(|_| connect()).collect();
        let mut clients = JoinSet::new();
        for (n, operation, seat) in seats {
            let connection = match operation {
                Operation::Mixed => connections[n % CONNECTIONS].clone(),
                _ => connect(),
            };
            // Another sequence of choices than that of any client of a full load.
            let worker = Worker::new(connection, usize::MAX - n);
            clients.spawn(client(
                worker,
                operation,
                seat,
                stock.clone(),
                book.clone(),
                late.clone(),
            ));
        }
        clients.join_all().await;
    });
}

async fn client(
    mut worker: Worker,
    operation: Operation,
    mut seat: UnboundedReceiver<Instant>,
    stock: Arc<Stock>,
    book: Arc<Mutex<Book>>,
    late: Arc<AtomicUsize>,
) {
    while let Some(due) = seat.recv().await {
        let (who, act) = match operation {
            Operation::Mixed if worker.creates_next() => (Who::Create, Operation::Create),
            Operation::Mixed => (Who::Stat, Operation::Stat),
            single => (Who::Single, single),
        };
        let answer = worker.act(act, &stock).await;
        let took = due.elapsed();
        late.fetch_sub(1, Ordering::Relaxed);
        let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(_) => book.samples.push(Sample { who, due, took }),
            Err(wrong) => book.failed.push(wrong),
        }
    }
}

/// Gives this thread (to Linux, a priority is a thread's) the priority of a machine of its own, where that is allowed.
fn hurry() {
    if rustix::process::setpriority_process(None, NICE).is_err() {
        eprintln!("the clients share the servers' priority: a higher one needs root");
    }
}
