//! What the auditor does about hashes, with peers that say what a test wants.

use std::cell::RefCell;

use futures::FutureExt;
use tempfile::TempDir;

use super::*;
use crate::actors::raft_node::messages::{RaftStatus, Role};
use crate::actors::testing::wait_until;
use crate::domain::command::{Command, Op};
use crate::domain::path::CleanPath;
use crate::domain::state_hash::StateHash;
use crate::proto::convert::encode_batch;
use crate::proto::raft as pb;
use crate::space::Space;
use crate::storage::{LogRecord, RecordContent, Storage, StorageOptions};

/// Says who is a member.
struct Status(Vec<MemberStatus>);

impl Actor for Status {
    type Context = Context<Self>;
}

impl Handler<GetStatus> for Status {
    type Result = MessageResult<GetStatus>;

    fn handle(&mut self, _: GetStatus, _: &mut Self::Context) -> Self::Result {
        MessageResult(NodeStatus {
            name: "meta-1".to_owned(),
            cluster_id: None,
            space: Space::with(20, 30),
            writes_refused: None,
            raft: RaftStatus {
                incarnation: 1,
                role: Role::Follower,
                term: 1,
                leader: None,
                last_log: None,
                committed: None,
                applied: None,
                snapshot: None,
                purged: None,
                members: self.0.clone(),
            },
        })
    }
}

fn member(id: u64) -> MemberStatus {
    MemberStatus {
        name: format!("meta-{id}"),
        incarnation: id,
        raft_addr: String::new(),
        grpc_addr: String::new(),
        voter: true,
        matched: None,
    }
}

/// What peers tell, by their ids; those that are not here do not answer.
#[derive(Default)]
struct FakePeers {
    hashes: RefCell<BTreeMap<u64, Hashes>>,
    asked: RefCell<Vec<(u64, u64)>>,
}

impl PeerHashes for FakePeers {
    fn state_hashes(
        &self,
        member: &MemberStatus,
        from: u64,
        limit: u32,
        _: Duration,
    ) -> LocalBoxFuture<'static, Result<Hashes, String>> {
        self.asked.borrow_mut().push((member.incarnation, from));
        let hashes = self.hashes.borrow();
        let answer = match hashes.get(&member.incarnation) {
            Some(hashes) => Ok(hashes
                .range(from..from + u64::from(limit))
                .map(|(i, h)| (*i, *h))
                .collect()),
            None => Err("no answer".to_owned()),
        };
        std::future::ready(answer).boxed_local()
    }
}

struct Bench {
    dir: TempDir,
    storage: Storage,
    auditor: Addr<AuditorActor>,
    peers: Rc<FakePeers>,
    stopped: mpsc::Receiver<String>,
}

fn open(dir: &TempDir) -> Result<Storage, crate::storage::StorageError> {
    Storage::open(&StorageOptions {
        dir: dir.path().to_owned(),
        map_size: 1 << 26,
        verify: true,
    })
}

/// A node that has applied the log up to `last`, one of three.
fn bench(last: u64) -> Bench {
    let dir = TempDir::new().unwrap();
    let mut storage = open(&dir).unwrap();
    for index in 1..=last {
        let command = Command {
            time_ms: 1,
            request_id: None,
            digest: 0,
            origin: None,
            op: Op::Create {
                path: CleanPath::parse(&format!("/{index}")).unwrap(),
                directory: false,
            },
        };
        let record = LogRecord {
            log_id: pb::LogId {
                leader: Some(pb::LeaderId { term: 1, node: 1 }),
                index,
            },
            content: RecordContent::Batch(encode_batch([&command])),
        };
        storage.apply(&[record]).unwrap();
    }
    let peers = Rc::<FakePeers>::default();
    let (stop, stopped) = mpsc::channel(1);
    let auditor = AuditorActor::new(
        Duration::from_secs(3600),
        storage.reader(),
        Status((1..=3).map(member).collect()).start().recipient(),
        peers.clone(),
        stop,
    );
    Bench {
        dir,
        storage,
        auditor: auditor.start(),
        peers,
        stopped,
    }
}

impl Bench {
    fn own(&self) -> Hashes {
        self.storage
            .reader()
            .read(|view| view.hashes(0, 100_000))
            .unwrap()
    }

    fn tell(&self, peer: u64, hashes: Hashes) {
        self.peers.hashes.borrow_mut().insert(peer, hashes);
    }

    /// Compares, until every peer was asked `times` times.
    async fn compare(&self, times: usize) {
        self.peers.asked.borrow_mut().clear();
        self.auditor.send(CompareDue).await.unwrap();
        wait_until("all peers were asked", || {
            self.peers.asked.borrow().len() >= 2 * times
        })
        .await;
        // Whatever the comparison led to has happened when the next message is answered.
        for _ in 0..4 {
            self.auditor.send(VerifyState { begin: false }).await.unwrap();
        }
    }

    fn asked_from(&self) -> Vec<u64> {
        self.peers.asked.borrow().iter().map(|(_, from)| *from).collect()
    }
}

fn from(hashes: &Hashes, first: u64, value: u128) -> Hashes {
    let changed = hashes.iter().map(|(index, hash)| match *index >= first {
        true => (*index, StateHash(value + u128::from(*index))),
        false => (*index, *hash),
    });
    changed.collect()
}

#[actix::test]
async fn agreement_is_remembered_and_the_next_comparison_begins_there() {
    let mut bench = bench(20);
    let own = bench.own();
    bench.tell(2, own.clone());
    bench.tell(3, own.clone());
    // Once with something new, and once more to see that there is nothing else.
    bench.compare(2).await;
    assert_eq!(bench.asked_from(), [0, 0, 20, 20]);
    bench.compare(1).await;
    assert_eq!(bench.asked_from(), [20, 20]);
    assert!(bench.stopped.try_recv().is_err());
}

#[actix::test]
async fn the_odd_one_out_stops_names_the_index_and_does_not_start_again() {
    let mut bench = bench(20);
    let others = from(&bench.own(), 7, 1);
    bench.tell(2, others.clone());
    bench.tell(3, others);
    bench.compare(1).await;
    let why = bench.stopped.recv().await.unwrap();
    for part in [
        "differs from that of a majority at index 7",
        "meta-2 is",
        "meta-3 is",
        "move its data",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
    drop(bench.storage);
    let error = open(&bench.dir).err().unwrap().to_string();
    assert!(
        error.contains("REFUSED") && error.contains("at index 7"),
        "{error}"
    );
}

#[actix::test]
async fn without_a_majority_against_it_a_node_goes_on() {
    let mut bench = bench(20);
    let own = bench.own();
    // One differs, the other cannot be asked: who is right?
    bench.tell(2, from(&own, 7, 1));
    bench.compare(1).await;
    assert!(bench.stopped.try_recv().is_err());
    // The other is of this node's opinion.
    bench.tell(3, own.clone());
    bench.compare(1).await;
    assert!(bench.stopped.try_recv().is_err());
    // Or of the first one's.
    bench.tell(3, from(&own, 7, 1));
    bench.compare(1).await;
    assert!(bench.stopped.recv().await.unwrap().contains("at index 7"));
}

#[actix::test]
async fn a_long_way_is_compared_page_by_page() {
    let bench = bench(2 * u64::from(PAGE) + 100);
    let own = bench.own();
    bench.tell(2, own.clone());
    bench.tell(3, own.clone());
    bench.compare(4).await;
    let page = u64::from(PAGE) - 1;
    let last = *own.keys().last().unwrap();
    let pages = bench.asked_from();
    assert_eq!(
        pages.iter().step_by(2).copied().collect::<Vec<_>>(),
        [0, page, 2 * page, last]
    );
}

/// Peers that were filled by a snapshot of an older server, or that have gone on for long, know only the newest.
#[actix::test]
async fn what_both_have_forgotten_is_passed_over() {
    let mut bench = bench(u64::from(PAGE) + 100);
    let last = u64::from(PAGE) + 50;
    let newest: Hashes = bench.own().split_off(&last);
    bench.tell(2, newest.clone());
    bench.tell(3, newest.clone());
    bench.compare(3).await;
    let page = u64::from(PAGE);
    assert_eq!(
        bench.asked_from().iter().step_by(2).copied().collect::<Vec<_>>(),
        [0, page, page + 100]
    );
    assert!(bench.stopped.try_recv().is_err());
    bench.compare(1).await;
    assert_eq!(bench.asked_from(), [page + 100; 2], "it agreed up to there");
}

/// The one that could decide has forgotten the index where it began.
#[actix::test]
async fn a_difference_is_decided_by_later_indexes_too() {
    let mut bench = bench(u64::from(PAGE) + 100);
    let others = from(&bench.own(), 7, 1);
    bench.tell(3, others.clone().split_off(&(u64::from(PAGE) + 50)));
    bench.tell(2, others);
    bench.compare(2).await;
    let why = bench.stopped.recv().await.unwrap();
    let first = format!("differs from that of a majority at or before index {PAGE}: ");
    assert!(why.contains(&first), "{why}");
}

#[actix::test]
async fn a_difference_that_is_gone_is_forgotten() {
    let mut bench = bench(20);
    let own = bench.own();
    bench.tell(2, from(&own, 7, 1));
    bench.tell(3, own.clone());
    bench.compare(1).await;
    // It stopped, and was refilled.
    bench.tell(2, own);
    bench.compare(2).await;
    assert_eq!(
        bench.asked_from()[0],
        0,
        "agreement was not believed beyond the difference"
    );
    bench.compare(1).await;
    assert_eq!(bench.asked_from(), [20, 20]);
    assert!(bench.stopped.try_recv().is_err());
}

#[actix::test]
async fn a_sound_state_is_verified_and_a_damaged_one_stops_the_node() {
    let mut sound = bench(20);
    let begun = sound.auditor.send(VerifyState { begin: true }).await.unwrap();
    assert_eq!(begun.begun, 1);
    let last = verified(&sound).await;
    let found = last.found.unwrap();
    assert_eq!(
        (last.number, last.applied, found.recorded),
        (1, Some(20), found.computed)
    );
    assert_eq!(begun.recent.get(&20), Some(&found.computed));
    assert!(sound.stopped.try_recv().is_err());

    let mut damaged = bench(20);
    let file = damaged.storage.reader().file();
    let bytes = std::fs::read(&file).unwrap();
    // The state's newest version of the name of the last file: a change below LMDB's feet.
    let at = bytes.windows(3).rposition(|window| window == b"20\x02").unwrap();
    use std::os::unix::fs::FileExt;
    let handle = std::fs::File::options().write(true).open(&file).unwrap();
    handle.write_all_at(b"2X", at as u64).unwrap();
    damaged.auditor.send(VerifyState { begin: true }).await.unwrap();
    let why = damaged.stopped.recv().await.unwrap();
    assert!(
        why.contains(file.to_str().unwrap()) && why.contains("is damaged"),
        "{why}"
    );
    assert_ne!(
        verified(&damaged)
            .await
            .found
            .map(|found| found.recorded == found.computed),
        Ok(true)
    );
    drop(damaged.storage);
    assert_eq!(
        open(&damaged.dir).unwrap().progress().unwrap().applied,
        None,
        "to be made anew"
    );
}

async fn verified(bench: &Bench) -> Verification {
    for _ in 0..1000 {
        let status = bench.auditor.send(VerifyState { begin: false }).await.unwrap();
        if let Some(last) = status.last {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the verification does not end");
}
