//! Stand-ins for an actor's surroundings in tests: probes for its neighbours, and a state on disk.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::Duration;

use actix::{Actor, ActorContext, Addr, Context, Handler, Message, Recipient, ResponseFuture};
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::raft_node::messages::{LeadershipChanged, Role};
use crate::domain::command::{Applied, Command, Op};
use crate::domain::state::DataServer;
use crate::proto::convert;
use crate::proto::raft as pb;
use crate::storage::{LogRecord, RecordContent, StateReader, Storage, StorageOptions};

type Answer<M> = Box<dyn FnMut(&M) -> ResponseFuture<<M as Message>::Result>>;

/// The actor behind a [`Probe`].
struct ProbeActor<M: Message> {
    received: mpsc::UnboundedSender<M>,
    answer: Answer<M>,
}

/// A mock neighbour that understands `M`: it notes what it is sent and answers from a closure.
pub struct Probe<M: Message + Send + 'static>
where
    M::Result: Send,
{
    actor: Addr<ProbeActor<M>>,
    received: mpsc::UnboundedReceiver<M>,
}

impl<M> Probe<M>
where
    M: Message + Clone + Send + 'static,
    M::Result: Send + 'static,
{
    /// A neighbour that answers at once.
    pub fn new(mut answer: impl FnMut(&M) -> M::Result + 'static) -> Self {
        Probe::slow(move |message| std::future::ready(answer(message)))
    }

    /// A neighbour whose answers take their time.
    pub fn slow<F>(mut answer: impl FnMut(&M) -> F + 'static) -> Self
    where
        F: Future<Output = M::Result> + 'static,
    {
        let (sender, received) = mpsc::unbounded_channel();
        let actor = ProbeActor {
            received: sender,
            answer: Box::new(move |message| Box::pin(answer(message))),
        };
        Probe {
            actor: actor.start(),
            received,
        }
    }

    /// To be handed to the actor under test.
    pub fn recipient(&self) -> Recipient<M> {
        self.actor.clone().recipient()
    }

    /// The next message, once it comes.
    pub async fn next(&mut self) -> M {
        let next = tokio::time::timeout(Duration::from_secs(10), self.received.recv()).await;
        next.expect("a message within 10 s").expect("the probe runs")
    }

    /// Everything that is in its mailbox by now and has not been taken yet.
    pub async fn so_far(&mut self) -> Vec<M> {
        self.actor.send(Fence::default()).await.expect("the probe runs");
        std::iter::from_fn(|| self.received.try_recv().ok()).collect()
    }

    /// The neighbour is gone: its mailbox is closed when this returns.
    pub async fn stop(&self) {
        let fence = Fence {
            stop: true,
            probe: PhantomData,
        };
        // Whether the answer still comes is the runtime's choice.
        let _ = self.actor.send(fence).await;
        wait_until("the probe is gone", || !self.actor.connected()).await;
    }
}

impl<M: Message> Unpin for ProbeActor<M> {}

impl<M: Message + 'static> Actor for ProbeActor<M> {
    type Context = Context<Self>;
}

impl<M> Handler<M> for ProbeActor<M>
where
    M: Message + Clone + Send + 'static,
    M::Result: Send,
{
    type Result = ResponseFuture<M::Result>;

    fn handle(&mut self, message: M, _: &mut Context<Self>) -> Self::Result {
        let answer = (self.answer)(&message);
        // A test that is over reads no more.
        let _ = self.received.send(message);
        answer
    }
}

/// Comes behind whatever is in the mailbox. Generic, so that it cannot be the probe's own message.
struct Fence<M> {
    stop: bool,
    probe: PhantomData<fn() -> M>,
}

impl<M> Default for Fence<M> {
    fn default() -> Self {
        Fence {
            stop: false,
            probe: PhantomData,
        }
    }
}

impl<M> Message for Fence<M> {
    type Result = ();
}

impl<M> Handler<Fence<M>> for ProbeActor<M>
where
    M: Message + 'static,
{
    type Result = ();

    fn handle(&mut self, fence: Fence<M>, ctx: &mut Context<Self>) {
        if fence.stop {
            ctx.stop();
        }
    }
}

/// Waits until `fact` holds.
pub async fn wait_until(what: &str, mut fact: impl FnMut() -> bool) {
    let wait = async {
        while !fact() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let held = tokio::time::timeout(Duration::from_secs(10), wait).await;
    held.unwrap_or_else(|_| panic!("10 s without: {what}"));
}

/// A node's state in a temporary directory, changed as its log would change it.
#[derive(Clone)]
pub struct TestState(Rc<RefCell<Disk>>);

struct Disk {
    _dir: TempDir,
    storage: Storage,
    index: u64,
}

impl TestState {
    /// Holds nothing but the root.
    pub fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(&StorageOptions {
            dir: dir.path().to_owned(),
            map_size: 1 << 30,
            verify: true,
        });
        TestState(Rc::new(RefCell::new(Disk {
            _dir: dir,
            storage: storage.unwrap(),
            index: 0,
        })))
    }

    /// For the actor under test.
    pub fn reader(&self) -> StateReader {
        self.0.borrow().storage.reader()
    }

    /// Applies one command, as if it were committed.
    pub fn apply(&self, op: Op) -> Applied {
        let disk = &mut *self.0.borrow_mut();
        disk.index += 1;
        let command = Command {
            time_ms: 1_700_000_000_000 + disk.index as i64,
            request_id: None,
            digest: 0,
            origin: None,
            op,
        };
        let record = LogRecord {
            log_id: pb::LogId {
                leader: Some(pb::LeaderId::default()),
                index: disk.index,
            },
            content: RecordContent::Batch(convert::encode_batch(&[command])),
        };
        let mut answers = disk.storage.apply(&[record]).unwrap();
        answers.remove(0).remove(0)
    }

    /// The registered DataServers, in the order of their numbers.
    pub fn servers(&self) -> Vec<DataServer> {
        use crate::domain::state::ReadTables;
        self.reader().read(|view| view.servers()).unwrap()
    }
}

/// The news that this node is `role` in `term`.
pub fn role(term: u64, role: Role) -> LeadershipChanged {
    LeadershipChanged {
        term,
        role,
        leader: None,
    }
}
