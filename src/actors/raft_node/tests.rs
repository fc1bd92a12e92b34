//! What leaves the Raft node for what comes in: no cluster, fakes on every side.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

use super::consensus::{Consensus, ReadIndexError, WriteError};
use super::messages::*;
use super::peers::{PeerError, Peers, ProposalResult};
use super::{RaftNodeActor, RaftNodeSettings};
use crate::actors::data_servers::messages::PlanAllocation;
use crate::actors::store::effects::{Effect, FindEffect, GiveEffect};
use crate::config::ReadMode;
use crate::domain::command::{AllocationPlan, Applied, Command, Op, Origin, Outcome, Refusal, RequestId};
use crate::domain::ids::{InodeId, ServerId};
use crate::domain::path::CleanPath;
use crate::proto::convert::decode_batch;
use crate::raft::types::{Batch, BatchOutcome, Node, NodeId};
use crate::space::Space;

mod repeats;

/// A log entry on its way, and where its result goes.
struct Write {
    commands: Vec<Command>,
    result: oneshot::Sender<Result<BatchOutcome, WriteError>>,
}

/// Commands on their way to a leader, and where the answers go.
struct Forward {
    leader: String,
    commands: Vec<Command>,
    result: oneshot::Sender<Result<Vec<ProposalResult>, PeerError>>,
}

/// A memory of this effect, or of none.
pub(super) fn memory_of(effect: Option<(Op, Effect)>) -> super::repeats::Memory {
    let memory = Memory { effect, given: None }.start();
    super::repeats::Memory {
        find: memory.clone().recipient(),
        give: memory.recipient(),
    }
}

/// A question about an answer that may be lost.
struct Claim {
    first: Origin,
    raft_addr: String,
    by: Origin,
    result: oneshot::Sender<Result<bool, PeerError>>,
}

type ReadRound = oneshot::Sender<Result<u64, ReadIndexError>>;
type RemoteRound = oneshot::Sender<Result<u64, PeerError>>;

struct FakeConsensus {
    writes: mpsc::UnboundedSender<Write>,
    rounds: mpsc::UnboundedSender<ReadRound>,
}

impl Consensus for FakeConsensus {
    fn write(&self, batch: Batch) -> LocalBoxFuture<'static, Result<BatchOutcome, WriteError>> {
        let (result, answer) = oneshot::channel();
        let commands = decode_batch(&batch.0).unwrap();
        self.writes.send(Write { commands, result }).ok();
        async move {
            answer
                .await
                .unwrap_or_else(|_| Err(WriteError::Unknown("dropped".into())))
        }
        .boxed_local()
    }

    fn read_index(&self, _: bool, _: Duration) -> LocalBoxFuture<'static, Result<u64, ReadIndexError>> {
        let (result, answer) = oneshot::channel();
        self.rounds.send(result).ok();
        async move { answer.await.unwrap_or(Err(ReadIndexError::NotLeader)) }.boxed_local()
    }

    fn hand_over(&self, _: Duration, _: BTreeSet<NodeId>) -> LocalBoxFuture<'static, bool> {
        std::future::ready(true).boxed_local()
    }

    fn status(&self) -> RaftStatus {
        RaftStatus {
            incarnation: 1,
            role: Role::Learner,
            term: 0,
            leader: None,
            last_log: None,
            committed: None,
            applied: None,
            snapshot: None,
            purged: None,
            members: vec![MemberStatus {
                name: "meta-2".into(),
                incarnation: 2,
                raft_addr: "two:1".into(),
                grpc_addr: "two:2".into(),
                voter: true,
                matched: None,
            }],
        }
    }
}

struct FakePeers {
    forwards: mpsc::UnboundedSender<Forward>,
    rounds: mpsc::UnboundedSender<RemoteRound>,
    claims: mpsc::UnboundedSender<Claim>,
}

impl Peers for FakePeers {
    fn propose(
        &self,
        leader: &Leader,
        commands: Vec<Command>,
        _: Instant,
    ) -> LocalBoxFuture<'static, Result<Vec<ProposalResult>, PeerError>> {
        let (result, answer) = oneshot::channel();
        self.forwards
            .send(Forward {
                leader: leader.node.name.clone(),
                commands,
                result,
            })
            .ok();
        async move {
            answer
                .await
                .unwrap_or_else(|_| Err(PeerError("connection lost".into())))
        }
        .boxed_local()
    }

    fn read_index(&self, _: &Leader, _: Instant) -> LocalBoxFuture<'static, Result<u64, PeerError>> {
        let (result, answer) = oneshot::channel();
        self.rounds.send(result).ok();
        async move {
            answer
                .await
                .unwrap_or_else(|_| Err(PeerError("connection lost".into())))
        }
        .boxed_local()
    }

    fn claim_answer(
        &self,
        first: Origin,
        raft_addr: &str,
        by: Origin,
        _: Duration,
    ) -> LocalBoxFuture<'static, Result<bool, PeerError>> {
        let (result, answer) = oneshot::channel();
        let raft_addr = raft_addr.to_owned();
        self.claims
            .send(Claim {
                first,
                raft_addr,
                by,
                result,
            })
            .ok();
        async move { answer.await.unwrap_or_else(|_| Err(PeerError("dead".into()))) }.boxed_local()
    }

    fn cluster_id(&self) -> Option<String> {
        None
    }
}

/// Remembers one effect, and whom its answer was given to.
struct Memory {
    effect: Option<(Op, Effect)>,
    given: Option<Origin>,
}

impl Actor for Memory {
    type Context = Context<Self>;
}

impl Handler<FindEffect> for Memory {
    type Result = Option<Effect>;

    fn handle(&mut self, find: FindEffect, _: &mut Self::Context) -> Self::Result {
        let (op, effect) = self.effect.as_ref()?;
        (*op == find.op && effect.origin.peer == find.peer).then(|| effect.clone())
    }
}

impl Handler<GiveEffect> for Memory {
    type Result = bool;

    fn handle(&mut self, give: GiveEffect, _: &mut Self::Context) -> Self::Result {
        assert_eq!(give.first, self.effect.as_ref().unwrap().1.origin);
        *self.given.get_or_insert(give.by) == give.by
    }
}

/// Plans as it is told to.
struct Planner(VecDeque<Result<AllocationPlan, Refusal>>);

impl Actor for Planner {
    type Context = Context<Self>;
}

impl Handler<PlanAllocation> for Planner {
    type Result = Result<AllocationPlan, Refusal>;

    fn handle(&mut self, _: PlanAllocation, _: &mut Self::Context) -> Self::Result {
        self.0
            .pop_front()
            .expect("a plan is asked for only when one is needed")
    }
}

/// The node under test and everything around it.
struct Bench {
    node: Addr<RaftNodeActor>,
    writes: mpsc::UnboundedReceiver<Write>,
    rounds: mpsc::UnboundedReceiver<ReadRound>,
    forwards: mpsc::UnboundedReceiver<Forward>,
    remote_rounds: mpsc::UnboundedReceiver<RemoteRound>,
    claims: mpsc::UnboundedReceiver<Claim>,
    applied: watch::Sender<Option<u64>>,
}

fn bench(reads: ReadMode, plans: Vec<Result<AllocationPlan, Refusal>>) -> Bench {
    bench_that_remembers(reads, plans, None)
}

fn bench_that_remembers(
    reads: ReadMode,
    plans: Vec<Result<AllocationPlan, Refusal>>,
    effect: Option<(Op, Effect)>,
) -> Bench {
    let (claims_tx, claims) = mpsc::unbounded_channel();

    let (writes_tx, writes) = mpsc::unbounded_channel();
    let (rounds_tx, rounds) = mpsc::unbounded_channel();
    let (forwards_tx, forwards) = mpsc::unbounded_channel();
    let (remote_tx, remote_rounds) = mpsc::unbounded_channel();
    let (applied, applied_rx) = watch::channel(None);
    let settings = RaftNodeSettings {
        name: "meta-1".into(),
        reads,
        max_waiting: 4,
    };
    let node = RaftNodeActor::new(
        settings,
        Rc::new(FakeConsensus {
            writes: writes_tx,
            rounds: rounds_tx,
        }),
        Rc::new(FakePeers {
            forwards: forwards_tx,
            rounds: remote_tx,
            claims: claims_tx,
        }),
        Planner(plans.into()).start().recipient(),
        memory_of(effect),
        applied_rx,
        Space::with(u64::MAX, 0),
    )
    .start();
    Bench {
        node,
        writes,
        rounds,
        forwards,
        remote_rounds,
        claims,
        applied,
    }
}

fn news(term: u64, role: Role, leader: Option<&str>) -> LeadershipChanged {
    let leader = leader.map(|name| Leader {
        id: 7,
        node: Node {
            name: name.into(),
            ..Node::default()
        },
    });
    LeadershipChanged { term, role, leader }
}

impl Bench {
    async fn lead(&self, term: u64) {
        self.node
            .send(news(term, Role::Leader, Some("meta-1")))
            .await
            .unwrap();
    }

    async fn follow(&self, term: u64, leader: Option<&str>) {
        self.node.send(news(term, Role::Follower, leader)).await.unwrap();
    }

    /// Sends a proposal; the answer arrives where it says.
    fn propose(&self, propose: Propose) -> LocalBoxFuture<'static, Result<Applied, ProposeError>> {
        let answer = self.node.send(propose);
        let (tx, rx) = oneshot::channel();
        actix::spawn(async move { tx.send(answer.await.unwrap()).ok() });
        async move { rx.await.unwrap() }.boxed_local()
    }

    fn read(&self, within: Duration) -> LocalBoxFuture<'static, Result<(), ReadError>> {
        let answer = self.node.send(AwaitRead {
            deadline: Instant::now() + within,
        });
        let (tx, rx) = oneshot::channel();
        actix::spawn(async move { tx.send(answer.await.unwrap()).ok() });
        async move { rx.await.unwrap() }.boxed_local()
    }
}

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(60);

fn create(path: &str) -> Propose {
    let op = Op::Create {
        path: CleanPath::parse(path).unwrap(),
        directory: false,
    };
    Propose {
        op,
        request_id: None,
        origin: None,
        deadline: Instant::now() + LONG,
        forwarded: false,
    }
}

fn allocate(path: &str) -> Propose {
    Propose {
        op: Op::Allocate {
            path: CleanPath::parse(path).unwrap(),
            size: 1,
            plan: None,
            staged: false,
        },
        ..create(path)
    }
}

fn created(inode: u64) -> Applied {
    Ok(Outcome::Created {
        inode: InodeId(inode),
    })
}

fn plan() -> AllocationPlan {
    AllocationPlan {
        block_size: 4,
        replication: 1,
        servers: vec![ServerId(1)],
    }
}

fn paths(commands: &[Command]) -> Vec<String> {
    commands
        .iter()
        .map(|command| match &command.op {
            Op::Create { path, .. } | Op::Allocate { path, .. } => path.to_string(),
            other => panic!("unexpected {other:?}"),
        })
        .collect()
}

/// Several writes are taken as they are, until one has the wanted number of commands.
async fn next_write(bench: &mut Bench) -> Write {
    tokio::time::timeout(LONG, bench.writes.recv())
        .await
        .unwrap()
        .unwrap()
}

async fn next_forward(bench: &mut Bench) -> Forward {
    tokio::time::timeout(LONG, bench.forwards.recv())
        .await
        .unwrap()
        .unwrap()
}

#[actix::test]
async fn a_leader_stamps_the_command_and_answers_what_applying_it_said() {
    let mut bench = bench(ReadMode::Linearizable, vec![]);
    bench.lead(1).await;
    let answer = bench.propose(create("/a"));
    let write = next_write(&mut bench).await;
    assert_eq!(paths(&write.commands), ["/a"]);
    assert!(
        write.commands[0].time_ms > 1_600_000_000_000,
        "the leader's clock"
    );
    assert_eq!(
        (&write.commands[0].request_id, write.commands[0].digest),
        (&None, 0),
        "a local proposal needs no id of ours"
    );
    write.result.send(Ok(BatchOutcome(vec![created(2)]))).unwrap();
    assert_eq!(answer.await, Ok(created(2)));
}

#[actix::test]
async fn commands_that_wait_together_share_a_log_entry() {
    let mut bench = bench(ReadMode::Linearizable, vec![]);
    let answers: Vec<_> = ["/a", "/b", "/c"].map(|path| bench.propose(create(path))).into();
    // They wait: nobody leads. Then this node does.
    bench.node.send(GetStatus).await.unwrap();
    bench.lead(1).await;
    let write = next_write(&mut bench).await;
    assert_eq!(
        paths(&write.commands),
        ["/a", "/b", "/c"],
        "in the order in which they came"
    );
    write
        .result
        .send(Ok(BatchOutcome(vec![created(2), created(3), created(4)])))
        .unwrap();
    for (answer, inode) in answers.into_iter().zip([2, 3, 4]) {
        assert_eq!(answer.await, Ok(created(inode)), "each gets its own answer");
    }
}

#[actix::test]
async fn without_a_leader_nothing_happened_and_the_caller_is_told_in_time() {
    let mut bench = bench(ReadMode::Linearizable, vec![]);
    let proposal = Propose {
        deadline: Instant::now() + SHORT,
        ..create("/a")
    };
    assert!(matches!(
        bench.propose(proposal).await,
        Err(ProposeError::Unavailable(_))
    ));
    assert!(matches!(bench.read(SHORT).await, Err(ReadError::NoLeader(None))));
    bench.lead(1).await;
    bench.propose(create("/b")).now_or_never();
    let write = next_write(&mut bench).await;
    assert_eq!(
        paths(&write.commands),
        ["/b"],
        "what was given up is not written later"
    );
}

#[actix::test]
async fn an_entry_without_an_answer_in_time_may_have_happened() {
    let mut bench = bench(ReadMode::Linearizable, vec![]);
    bench.lead(1).await;
    let answer = bench.propose(Propose {
        deadline: Instant::now() + SHORT,
        ..create("/a")
    });
    let _write = next_write(&mut bench).await;
    assert!(matches!(answer.await, Err(ProposeError::Unknown(_))));
}

#[actix::test]
async fn a_discarded_entry_is_repeated_only_under_a_request_id() {
    let mut bench = bench(ReadMode::Linearizable, vec![]);
    bench.lead(1).await;
    let id = RequestId::new(b"again").unwrap();
    let with_id = bench.propose(Propose {
        request_id: Some(id.clone()),
        ..create("/a")
    });
    let write = next_write(&mut bench).await;
    let without = bench.propose(create("/b"));
    let other = next_write(&mut bench).await;
    write
        .result
        .send(Err(WriteError::Unknown("discarded".into())))
        .unwrap();
    other
        .result
        .send(Err(WriteError::Unknown("discarded".into())))
        .unwrap();
    assert_eq!(without.await, Err(ProposeError::Unknown("discarded".into())));
    let repeat = next_write(&mut bench).await;
    assert_eq!(paths(&repeat.commands), ["/a"]);
    assert_eq!(repeat.commands[0].request_id, Some(id));
    assert_eq!(repeat.commands[0].digest, create("/a").op.digest());
    repeat.result.send(Ok(BatchOutcome(vec![created(2)]))).unwrap();
    assert_eq!(with_id.await, Ok(created(2)));
}

#[actix::test]
async fn an_entry_refused_for_lack_of_leadership_goes_to_the_new_leader() {
    let mut bench = bench(ReadMode::Linearizable, vec![]);
    bench.lead(1).await;
    let answer = bench.propose(create("/a"));
    let write = next_write(&mut bench).await;
    write.result.send(Err(WriteError::NotLeader)).unwrap();
    bench.follow(2, Some("meta-2")).await;
    let forward = next_forward(&mut bench).await;
    assert_eq!(
        (forward.leader.as_str(), paths(&forward.commands)),
        ("meta-2", vec!["/a".to_owned()])
    );
    forward.result.send(Ok(vec![Ok(created(2))])).unwrap();
    assert_eq!(answer.await, Ok(created(2)));
}

#[actix::test]
async fn a_follower_repeats_at_the_next_leader_under_one_request_id() {
    let mut bench = bench(ReadMode::Linearizable, vec![]);
    bench.follow(1, Some("meta-2")).await;
    let answer = bench.propose(create("/a"));
    let first = next_forward(&mut bench).await;
    let id = first.commands[0].request_id.clone();
    assert!(id.is_some(), "what is forwarded can be repeated");
    // The leader dies with the request under way; another one takes over.
    bench.follow(2, Some("meta-3")).await;
    let second = next_forward(&mut bench).await;
    assert_eq!(second.leader, "meta-3");
    assert_eq!(
        second.commands[0].request_id, id,
        "so that the repeat gets the first answer"
    );
    second.result.send(Ok(vec![Ok(created(2))])).unwrap();
    assert_eq!(answer.await, Ok(created(2)));
}

#[actix::test]
async fn a_lost_connection_to_the_leader_is_tried_again_and_then_is_unknown() {
    let mut bench = bench(ReadMode::Linearizable, vec![]);
    bench.follow(1, Some("meta-2")).await;
    let answer = bench.propose(Propose {
        deadline: Instant::now() + Duration::from_millis(300),
        ..create("/a")
    });
    for _ in 0..2 {
        drop(next_forward(&mut bench).await.result);
    }
    let _under_way = next_forward(&mut bench).await;
    assert!(matches!(answer.await, Err(ProposeError::Unknown(_))));
}

#[actix::test]
async fn the_leaders_refusal_before_the_log_is_final() {
    let mut bench = bench(ReadMode::Linearizable, vec![]);
    bench.follow(1, Some("meta-2")).await;
    let answer = bench.propose(allocate("/a"));
    let refusal = Refusal::failed_precondition("need 3 healthy DataServers, have 2");
    let forward = next_forward(&mut bench).await;
    forward
        .result
        .send(Ok(vec![Err(ProposeError::Refused(refusal.clone()))]))
        .unwrap();
    assert_eq!(answer.await, Err(ProposeError::Refused(refusal)));
}

#[actix::test]
async fn what_came_from_a_peer_is_never_forwarded_again() {
    let mut bench = bench(ReadMode::Linearizable, vec![]);
    bench.follow(3, Some("meta-2")).await;
    let answer = bench
        .propose(Propose {
            forwarded: true,
            ..create("/a")
        })
        .await;
    let Err(ProposeError::NotLeader(Some(leader))) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(leader.node.name, "meta-2");
    let answer = bench
        .node
        .send(GetReadIndex {
            deadline: Instant::now() + LONG,
        })
        .await
        .unwrap();
    assert!(matches!(answer, Err(ReadError::NoLeader(Some(_)))), "{answer:?}");
    assert!(bench.forwards.try_recv().is_err() && bench.remote_rounds.try_recv().is_err());
}

#[actix::test]
async fn an_allocation_gets_its_plan_from_the_leader() {
    let refusal = Refusal::failed_precondition("need 3 healthy DataServers, have 2");
    let mut bench = bench(ReadMode::Linearizable, vec![Ok(plan()), Err(refusal.clone())]);
    bench.lead(1).await;
    let _answer = bench.propose(allocate("/a"));
    let write = next_write(&mut bench).await;
    let Op::Allocate { plan: made, .. } = &write.commands[0].op else {
        panic!("{:?}", write.commands)
    };
    assert_eq!(made.as_ref(), Some(&plan()));
    assert_eq!(
        bench.propose(allocate("/b")).await,
        Err(ProposeError::Refused(refusal))
    );
    assert!(bench.writes.try_recv().is_err(), "nothing is changed");
}

#[actix::test]
async fn a_plan_made_while_leading_is_not_forwarded() {
    let mut bench = bench(ReadMode::Linearizable, vec![Ok(plan())]);
    bench.lead(1).await;
    let _answer = bench.propose(allocate("/a"));
    next_write(&mut bench)
        .await
        .result
        .send(Err(WriteError::NotLeader))
        .unwrap();
    bench.follow(2, Some("meta-2")).await;
    let forward = next_forward(&mut bench).await;
    assert!(
        matches!(forward.commands[0].op, Op::Allocate { plan: None, .. }),
        "{:?}",
        forward.commands
    );
}

#[actix::test]
async fn past_the_bound_callers_are_turned_away_at_once() {
    let bench = bench(ReadMode::Linearizable, vec![]);
    let _waiting: Vec<_> = (0..4).map(|i| bench.propose(create(&format!("/{i}")))).collect();
    let _reading: Vec<_> = (0..4).map(|_| bench.read(LONG)).collect();
    bench.node.send(GetStatus).await.unwrap();
    assert_eq!(
        bench.propose(create("/more")).await,
        Err(ProposeError::Overloaded)
    );
    assert_eq!(bench.read(LONG).await, Err(ReadError::Overloaded));
}

#[actix::test]
async fn reads_share_a_round_that_began_after_they_arrived() {
    let mut bench = bench(ReadMode::Linearizable, vec![]);
    bench.lead(1).await;
    let first = bench.read(LONG);
    let round = bench.rounds.recv().await.unwrap();
    let (second, third) = (bench.read(LONG), bench.read(LONG));
    bench.node.send(GetStatus).await.unwrap();
    assert!(
        bench.rounds.try_recv().is_err(),
        "the next round waits for this one"
    );
    bench.applied.send(Some(9)).unwrap();
    round.send(Ok(5)).unwrap();
    assert_eq!(first.await, Ok(()));
    let round = bench.rounds.recv().await.unwrap();
    round.send(Ok(9)).unwrap();
    assert_eq!((second.await, third.await), (Ok(()), Ok(())));
    assert!(bench.rounds.try_recv().is_err(), "one round for both");
}

#[actix::test]
async fn a_read_waits_until_its_index_is_applied_here() {
    let mut bench = bench(ReadMode::Linearizable, vec![]);
    bench.follow(1, Some("meta-2")).await;
    let mut read = bench.read(LONG);
    bench.remote_rounds.recv().await.unwrap().send(Ok(12)).unwrap();
    bench.applied.send(Some(11)).unwrap();
    bench.node.send(GetStatus).await.unwrap();
    assert!(
        (&mut read).now_or_never().is_none(),
        "entry 12 is not applied yet"
    );
    bench.applied.send(Some(12)).unwrap();
    assert_eq!(read.await, Ok(()));
}

#[actix::test]
async fn a_read_that_nobody_confirms_ends_in_time() {
    let mut bench = bench(ReadMode::Linearizable, vec![]);
    bench.lead(1).await;
    let read = bench.read(Duration::from_millis(150));
    let round = bench.rounds.recv().await.unwrap();
    round
        .send(Err(ReadIndexError::NoQuorum("1 of 3".into())))
        .unwrap();
    bench.rounds.recv().await.expect("it is tried again");
    assert!(matches!(read.await, Err(ReadError::NoLeader(_))));
}

#[actix::test]
async fn local_reads_ask_nobody() {
    let mut bench = bench(ReadMode::Local, vec![]);
    assert_eq!(bench.read(LONG).await, Ok(()));
    assert!(bench.rounds.try_recv().is_err());
}

/// Records the news it gets.
struct Listener(Rc<RefCell<Vec<LeadershipChanged>>>);

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<LeadershipChanged> for Listener {
    type Result = ();

    fn handle(&mut self, news: LeadershipChanged, _: &mut Self::Context) {
        self.0.borrow_mut().push(news);
    }
}

#[actix::test]
async fn subscribers_are_told_at_once_and_on_every_change() {
    let bench = bench(ReadMode::Linearizable, vec![]);
    let heard = Rc::new(RefCell::new(Vec::new()));
    let listener = Listener(heard.clone()).start();
    bench.follow(1, None).await;
    bench
        .node
        .send(Subscribe(listener.clone().recipient()))
        .await
        .unwrap();
    let gone = Listener(Rc::default()).start();
    bench
        .node
        .send(Subscribe(gone.clone().recipient()))
        .await
        .unwrap();
    drop(gone);
    bench.lead(2).await;
    bench.lead(2).await;
    listener.send(news(99, Role::Learner, None)).await.unwrap();
    let heard: Vec<_> = heard.borrow().iter().map(|news| (news.term, news.role)).collect();
    assert_eq!(
        heard,
        [(1, Role::Follower), (2, Role::Leader), (99, Role::Learner)],
        "and no news is no news"
    );
}

#[test]
fn news_of_an_older_term_is_ignored() {
    let mut view = news(5, Role::Leader, Some("meta-1"));
    assert!(!view.accept(news(4, Role::Follower, Some("meta-2"))));
    assert_eq!(view.term, 5);
    assert!(view.is_leader());
    assert!(view.accept(news(5, Role::Follower, None)));
    assert!(view.accept(news(6, Role::Follower, Some("meta-2"))));
    assert_eq!(view.leader.unwrap().node.name, "meta-2");
}
