//! Who refuses, who hands over to whom, and when it is over.

use std::rc::Rc;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::super::RaftNodeSettings;
use super::super::consensus::{Consensus, ReadIndexError, WriteError};
use super::super::messages::*;
use super::super::peers::{PeerError, Peers, ProposalResult};
use super::*;
use crate::actors::data_servers::messages::PlanAllocation;
use crate::actors::testing::Probe;
use crate::config::ReadMode;
use crate::domain::command::{Applied, Command, Origin, Outcome, Refusal as DomainRefusal};
use crate::domain::path::CleanPath;
use crate::raft::types::{Batch, BatchOutcome, Node};

const ME: NodeId = 1;

/// The leader's view of a cluster whose members have these log positions; everything up to 10 is
/// committed, and the first is this node.
fn view(matched: &[u64]) -> RaftStatus {
    let member = |(at, matched): (usize, &u64)| MemberStatus {
        name: format!("meta-{}", at + 1),
        incarnation: at as NodeId + 1,
        raft_addr: String::new(),
        grpc_addr: String::new(),
        voter: true,
        matched: Some(*matched),
    };
    RaftStatus {
        incarnation: ME,
        role: Role::Leader,
        term: 1,
        leader: Some("meta-1".into()),
        last_log: Some(10),
        committed: Some(10),
        applied: Some(10),
        snapshot: None,
        purged: None,
        members: matched.iter().enumerate().map(member).collect(),
    }
}

fn enough() -> Space {
    Space::with(1000, 100)
}

fn low() -> Space {
    Space::with(99, 100)
}

/// What peers say: `true` of those that have space.
fn say(spaces: &[(NodeId, bool)]) -> PeersSpace {
    let say = |(id, enough): &(NodeId, bool)| {
        let low = (!enough).then(|| "1.0 MiB free".to_owned());
        (*id, PeerSpace { low })
    };
    PeersSpace(spaces.iter().map(say).collect())
}

/// What a leader does whose peers said this a moment ago.
fn standing(own: Space, matched: &[u64], peers: &[(NodeId, bool)]) -> Standing {
    let now = Instant::now();
    let mut book = SpaceBook::new(own);
    book.leads(true, now);
    book.heard(say(peers), now);
    book.standing(&view(matched), now)
}

fn hand_over(unfit: &[NodeId]) -> Standing {
    Standing::HandOver {
        unfit: unfit.iter().copied().collect(),
    }
}

fn why(standing: Standing) -> String {
    match standing {
        Standing::Refuse(refusal) => refusal.why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_low_leader_hands_over_to_one_that_has_space_and_everything_committed() {
    let all = [10, 10, 10];
    assert_eq!(standing(low(), &all, &[(2, true), (3, true)]), hand_over(&[]));
    assert_eq!(
        standing(low(), &[10, 9, 10], &[(2, true), (3, true)]),
        hand_over(&[2])
    );
    // One of a majority has all that is committed; that it does is not known for a moment.
    assert_eq!(
        standing(low(), &[10, 9, 9], &[(2, true), (3, true)]),
        Standing::Wait
    );
    let five = [10, 10, 10, 10, 10];
    let one_is_low = [(2, true), (3, false), (4, true), (5, true)];
    assert_eq!(standing(low(), &five, &one_is_low), hand_over(&[3]));
}

#[test]
fn a_low_leader_stays_and_refuses_where_handing_over_would_not_help() {
    let all = [10, 10, 10];
    let said = why(standing(low(), &all, &[(2, true), (3, false)]));
    assert!(said.starts_with("nothing was changed: "), "{said}");
    assert!(
        said.contains("in /data") && said.contains("meta-3: 1.0 MiB free"),
        "{said}"
    );
    why(standing(low(), &all, &[(2, false), (3, false)]));
    why(standing(low(), &[10], &[]));
}

#[test]
fn a_leader_with_space_goes_on_until_no_majority_has_any() {
    let all = [10, 10, 10];
    assert_eq!(standing(enough(), &all, &[(2, true), (3, true)]), Standing::Fine);
    assert_eq!(standing(enough(), &all, &[(2, true), (3, false)]), Standing::Fine);
    let said = why(standing(enough(), &all, &[(2, false), (3, false)]));
    assert!(
        said.contains(
            "1 of 3 nodes have disk space, 2 are needed: meta-2: 1.0 MiB free; meta-3: 1.0 MiB free"
        ),
        "{said}"
    );
}

#[test]
fn silence_counts_only_where_space_is_short() {
    let begun = Instant::now();
    let later = begun + SILENCE;
    let all = view(&[10, 10, 10]);
    let mut book = SpaceBook::new(enough());
    book.leads(true, begun);
    assert_eq!(
        book.standing(&all, later),
        Standing::Fine,
        "a lost majority is another matter"
    );
    book.heard(say(&[(2, false)]), later);
    let said = why(book.standing(&all, later));
    assert!(
        said.contains("meta-2: 1.0 MiB free; meta-3 says nothing"),
        "{said}"
    );

    // A new leader does not take for lost whom it has had no time to ask.
    let mut book = SpaceBook::new(enough());
    book.leads(true, begun);
    book.heard(say(&[(2, false)]), begun);
    assert_eq!(book.standing(&all, begun), Standing::Fine);

    let mut book = SpaceBook::new(low());
    book.leads(true, begun);
    assert_eq!(book.standing(&all, begun), Standing::Wait);
    why(book.standing(&all, later));
    // What was said to an earlier leader is old.
    book.heard(say(&[(2, true), (3, true)]), begun);
    book.leads(true, begun);
    assert_eq!(book.standing(&all, begun), Standing::Wait);
}

#[test]
fn a_state_at_its_limit_takes_no_files_and_may_shrink() {
    let mut full = enough();
    full.state_is_full = true;
    let Standing::Refuse(refusal) = standing(full, &[10, 10, 10], &[(2, true), (3, true)]) else {
        panic!("nothing is refused");
    };
    assert!(refusal.why.contains("database.map_size"), "{}", refusal.why);
    assert!(refusal.concerns(&create("/a").op));
    let path = CleanPath::parse("/a").unwrap();
    assert!(!refusal.concerns(&Op::Delete {
        path,
        recursive: true
    }));
    assert!(!refusal.concerns(&Op::Reclaim { limit: 1 }));
}

// --- the actor ---

/// Answers writes at once; says whom it was to hand over to, and does it when it is told to.
struct FakeConsensus {
    written: mpsc::UnboundedSender<()>,
    hand_overs: mpsc::UnboundedSender<(BTreeSet<NodeId>, oneshot::Sender<bool>)>,
}

impl Consensus for FakeConsensus {
    fn write(&self, _: Batch) -> LocalBoxFuture<'static, Result<BatchOutcome, WriteError>> {
        self.written.send(()).ok();
        std::future::ready(Ok(BatchOutcome(vec![Ok(Outcome::Deleted)]))).boxed_local()
    }

    fn read_index(&self, _: bool, _: Duration) -> LocalBoxFuture<'static, Result<u64, ReadIndexError>> {
        std::future::ready(Ok(10)).boxed_local()
    }

    fn hand_over(&self, _: Duration, unfit: BTreeSet<NodeId>) -> LocalBoxFuture<'static, bool> {
        let (done, answer) = oneshot::channel();
        self.hand_overs.send((unfit, done)).ok();
        async move { answer.await.unwrap_or(false) }.boxed_local()
    }

    fn status(&self) -> RaftStatus {
        view(&[10, 10, 10])
    }
}

/// The leader that a follower knows: it answers every proposal so.
struct FakePeers(ProposeError);

impl Peers for FakePeers {
    fn propose(
        &self,
        _: &Leader,
        commands: Vec<Command>,
        _: Instant,
    ) -> LocalBoxFuture<'static, Result<Vec<ProposalResult>, PeerError>> {
        std::future::ready(Ok(vec![Err(self.0.clone()); commands.len()])).boxed_local()
    }

    fn read_index(&self, _: &Leader, _: Instant) -> LocalBoxFuture<'static, Result<u64, PeerError>> {
        std::future::ready(Ok(10)).boxed_local()
    }

    fn claim_answer(
        &self,
        _: Origin,
        _: &str,
        _: Origin,
        _: Duration,
    ) -> LocalBoxFuture<'static, Result<bool, PeerError>> {
        unreachable!("nothing is repeated here")
    }

    fn cluster_id(&self) -> Option<String> {
        None
    }
}

struct Bench {
    node: Addr<RaftNodeActor>,
    written: mpsc::UnboundedReceiver<()>,
    hand_overs: mpsc::UnboundedReceiver<(BTreeSet<NodeId>, oneshot::Sender<bool>)>,
    _applied: watch::Sender<Option<u64>>,
}

fn create(path: &str) -> Propose {
    Propose {
        op: Op::Create {
            path: CleanPath::parse(path).unwrap(),
            directory: false,
        },
        request_id: None,
        origin: None,
        deadline: Instant::now() + Duration::from_secs(30),
        forwarded: false,
    }
}

impl Bench {
    /// A node that leads, or follows one that answers proposals so.
    async fn start(leader_says: Option<ProposeError>) -> Bench {
        let (written_tx, written) = mpsc::unbounded_channel();
        let (hand_overs_tx, hand_overs) = mpsc::unbounded_channel();
        let (applied, applied_rx) = watch::channel(Some(10));
        let plan = Probe::new(|_: &PlanAllocation| Err(DomainRefusal::failed_precondition("no plan")));
        let settings = RaftNodeSettings {
            name: "meta-1".into(),
            reads: ReadMode::Linearizable,
            max_waiting: 100,
        };
        let role = match leader_says {
            None => Role::Leader,
            Some(_) => Role::Follower,
        };
        let node = RaftNodeActor::new(
            settings,
            Rc::new(FakeConsensus {
                written: written_tx,
                hand_overs: hand_overs_tx,
            }),
            Rc::new(FakePeers(leader_says.unwrap_or(ProposeError::Overloaded))),
            plan.recipient(),
            crate::actors::raft_node::tests::memory_of(None),
            applied_rx,
            enough(),
        )
        .start();
        let leader = Leader {
            id: ME,
            node: Node::default(),
        };
        let news = LeadershipChanged {
            term: 1,
            role,
            leader: Some(leader),
        };
        node.send(news).await.unwrap();
        Bench {
            node,
            written,
            hand_overs,
            _applied: applied,
        }
    }

    async fn measured(&self, space: Space) {
        self.node.send(SpaceMeasured(space)).await.unwrap();
    }

    async fn peers(&self, spaces: &[(NodeId, bool)]) {
        self.node.send(say(spaces)).await.unwrap();
    }

    async fn propose(&self, path: &str) -> Result<Applied, ProposeError> {
        self.node.send(create(path)).await.unwrap()
    }

    async fn refused(&self) -> String {
        match self.propose("/refused").await {
            Err(ProposeError::NoSpace(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    async fn status(&self) -> NodeStatus {
        self.node.send(GetStatus).await.unwrap()
    }

    async fn read(&self) -> Result<(), ReadError> {
        let deadline = Instant::now() + Duration::from_secs(30);
        self.node.send(AwaitRead { deadline }).await.unwrap()
    }
}

#[actix::test]
async fn where_nobody_has_space_writes_are_refused_before_the_log_and_reads_go_on() {
    let mut bench = Bench::start(None).await;
    bench.propose("/a").await.unwrap().unwrap();
    bench.written.recv().await.unwrap();

    bench.peers(&[(2, false), (3, false)]).await;
    bench.measured(low()).await;
    let why = bench.refused().await;
    assert!(bench.written.try_recv().is_err(), "it is not in the log");
    assert_eq!(bench.read().await, Ok(()));
    let status = bench.status().await;
    assert_eq!(status.writes_refused, Some(why));
    assert_eq!(status.space, low());
    assert!(
        bench.hand_overs.try_recv().is_err(),
        "there is nobody to hand over to"
    );

    bench.measured(enough()).await;
    assert!(
        bench.refused().await.contains("1 of 3"),
        "its own space is not enough"
    );
    bench.peers(&[(2, true)]).await;
    bench.propose("/b").await.unwrap().unwrap();
    assert_eq!(bench.status().await.writes_refused, None);
}

#[actix::test]
async fn writes_wait_while_leadership_is_handed_over_and_go_with_it() {
    let mut bench = Bench::start(None).await;
    bench.peers(&[(2, true), (3, false)]).await;
    bench.measured(low()).await;
    bench.refused().await;
    bench.peers(&[(3, true)]).await;
    let (unfit, done) = bench.hand_overs.recv().await.unwrap();
    assert_eq!(unfit, BTreeSet::new());

    let waits = bench.node.send(create("/waits"));
    let waits = actix::spawn(waits);
    bench.measured(low()).await;
    assert!(!waits.is_finished());
    assert!(bench.hand_overs.try_recv().is_err(), "one attempt at a time");
    let news = LeadershipChanged {
        term: 2,
        role: Role::Follower,
        leader: Some(Leader {
            id: 2,
            node: Node::default(),
        }),
    };
    bench.node.send(news).await.unwrap();
    done.send(true).unwrap();
    // The new leader was asked, and had too much to do.
    assert_eq!(waits.await.unwrap().unwrap(), Err(ProposeError::Overloaded));
    assert!(bench.written.try_recv().is_err());
}

#[actix::test]
async fn when_nobody_takes_over_it_refuses_and_does_not_try_at_once_again() {
    let mut bench = Bench::start(None).await;
    bench.measured(low()).await;
    bench.peers(&[(2, true), (3, true)]).await;
    let (_, done) = bench.hand_overs.recv().await.unwrap();
    done.send(false).unwrap();
    assert!(bench.refused().await.contains("did not take over"));
    bench.measured(low()).await;
    assert!(bench.hand_overs.try_recv().is_err());
    bench.measured(enough()).await;
    bench.propose("/a").await.unwrap().unwrap();
}

#[actix::test]
async fn through_a_follower_the_answer_is_the_same() {
    let says = ProposeError::NoSpace("nothing was changed: x".into());
    let bench = Bench::start(Some(says.clone())).await;
    assert_eq!(bench.propose("/a").await, Err(says.clone()));
    // A follower that is low itself says so to operators, and forwards as ever.
    bench.measured(low()).await;
    assert_eq!(bench.status().await.writes_refused, low().shortage());
    assert_eq!(bench.propose("/a").await, Err(says));
}
