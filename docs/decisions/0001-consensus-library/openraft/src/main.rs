//! Decision 0001: what openraft 0.10.0-alpha.37 does when the network or a crash does what they do.
//!
//! `cargo run --locked -- 2` runs experiment 2, and so on; without an argument all of them run. Each says what
//! it does, shows the logs, and ends in a line `openraft experiment N: held …` or `… VIOLATED …`. The twin of
//! this program, `../async-raft`, puts async-raft through the same.

mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Result;
use cluster::{Append, Cluster, LogEntry, NodeId, Store, at, entry, pause, request};
use futures::stream;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::{Entry, EntryPayload, Membership, ReadPolicy, Vote};
use openraft_memstore::ClientRequest;
use tokio::time::timeout;

/// Whether what Raft promises was kept, and what was seen.
enum Verdict {
    Held(String),
    Violated(String),
}

use Verdict::{Held, Violated};

const EXPERIMENTS: [u32; 6] = [1, 2, 3, 4, 5, 8];

#[tokio::main]
async fn main() -> Result<()> {
    let chosen = std::env::args()
        .skip(1)
        .map(|n| n.parse())
        .collect::<Result<Vec<u32>, _>>()?;
    for n in if chosen.is_empty() {
        EXPERIMENTS.to_vec()
    } else {
        chosen
    } {
        let verdict = match n {
            1 => late_duplicate_at_a_follower().await?,
            2 => late_duplicate_then_crash().await?,
            3 => read_on_an_isolated_leader().await?,
            4 => write_without_a_majority().await?,
            5 => heartbeat_over_a_stale_tail().await?,
            8 => restart_of_the_whole_cluster().await?,
            _ => anyhow::bail!("no experiment {n}; there are {EXPERIMENTS:?}"),
        };
        match verdict {
            Held(what) => println!("openraft experiment {n}: held: {what}\n"),
            Violated(what) => println!("openraft experiment {n}: VIOLATED: {what}\n"),
        }
    }
    Ok(())
}

/// A message of the leader of term 1, node 1, whose log is of term 1 throughout.
fn append(previous: Option<u64>, entries: Vec<LogEntry>, commit: Option<u64>) -> Append {
    let at = |index| at(1, 1, index);
    AppendEntriesRequest {
        vote: Vote::new_committed(1, 1),
        prev_log_id: previous.map(at),
        entries,
        leader_commit: commit.map(at),
    }
}

/// openraft's log begins at index 0, with what formed the cluster; an empty entry stands for it.
fn blank() -> LogEntry {
    Entry {
        log_id: at(1, 1, 0),
        payload: EntryPayload::Blank,
    }
}

/// Raft (Ongaro and Ousterhout, section 5.3): a follower deletes entries only on a conflict, so that a message
/// which arrives twice, or late, does no harm. Networks and retries make such messages.
async fn late_duplicate_at_a_follower() -> Result<Verdict> {
    println!("experiment 1: a late duplicate of an AppendEntries reaches a follower (driven by hand)");
    let cluster = Cluster::new(&[2]).await?;
    let (follower, store) = (cluster.node(2)?, &cluster.stores[&2]);
    let second = append(Some(1), vec![entry(1, 1, 2)], Some(1));
    let rest = vec![entry(1, 1, 3), entry(1, 1, 4), entry(1, 1, 5)];
    let messages = [
        (
            "entries 0 and 1",
            append(None, vec![blank(), entry(1, 1, 1)], None),
        ),
        ("entry 2", second.clone()),
        ("entries 3 to 5", append(Some(2), rest, Some(2))),
        ("heartbeat, commit 5", append(Some(5), vec![], Some(5))),
        ("heartbeat, commit 5", append(Some(5), vec![], Some(5))),
    ];
    for (name, message) in messages {
        let answer = follower.append_entries(message).await?;
        println!("  {name:20} {answer:?} log={:?}", store.log().await?);
    }
    pause(200).await;
    println!(
        "  committed 5, applied {:?}; now the message with entry 2 arrives once more",
        store.applied().await
    );
    let answer = follower.append_entries(second).await?;
    pause(50).await;
    println!("  {:20} {answer:?} log={:?}", "entry 2, late", store.log().await?);
    let heartbeat = follower.append_entries(append(Some(5), vec![], Some(5))).await?;
    println!("  heartbeat after 5    {heartbeat:?}");
    pause(1500).await; // until the leader's lease is over, so that a vote may be given
    let candidate = VoteRequest {
        vote: Vote::new(9, 3),
        last_log_id: Some(at(1, 1, 2)),
        leadership_transfer: false,
    };
    let granted = follower.vote(candidate).await?.vote_granted;
    println!("  a candidate whose log ends at 2 asks for a vote: granted={granted}");
    let left = store.log().await?.len();
    cluster.stop().await;
    Ok(match left {
        6 => Held("nothing lost".into()),
        left => Violated(format!("{} committed entries deleted", 6 - left)),
    })
}

/// The same in a cluster: the follower with the hole would be the majority's memory.
async fn late_duplicate_then_crash() -> Result<Verdict> {
    println!("experiment 2: the same among three nodes, then the leader crashes");
    let (cluster, leader) = Cluster::formed().await?;
    let others: Vec<NodeId> = (1..=3).filter(|id| *id != leader).collect();
    let (follower, absent) = (others[0], others[1]);
    cluster.write(leader, request(100)).await?;
    pause(200).await;
    cluster.cut(absent);
    println!("  node {leader} leads; node {absent} is cut off");
    let before = cluster.delivered();
    for i in 101..=105 {
        let index = cluster.write(leader, request(i)).await?;
        println!("  write k{i} acknowledged at index {index}");
        pause(30).await;
    }
    pause(200).await;
    println!(
        "  log of leader {leader}   {:?}",
        cluster.stores[&leader].log().await?
    );
    println!(
        "  log of follower {follower} {:?}",
        cluster.stores[&follower].log().await?
    );
    let late = cluster.duplicate(before, follower)?;
    let carried: Vec<u64> = late.entries.iter().map(|entry| entry.log_id.index).collect();
    println!("  the AppendEntries with entries {carried:?} reaches node {follower} once more");
    cluster.node(follower)?.append_entries(late).await?;
    pause(400).await;
    let log = cluster.stores[&follower].log().await?;
    println!("  log of follower {follower} {log:?}, 400 ms of heartbeats later");
    cluster.cut(leader);
    cluster.heal(absent);
    println!("  leader {leader} crashes, node {absent} is back");
    let successor = cluster.leader(&others).await?;
    pause(800).await;
    println!(
        "  new leader {successor}, log {:?}",
        cluster.stores[&successor].log().await?
    );
    match timeout(Duration::from_secs(3), cluster.write(successor, request(200))).await {
        Ok(Ok(index)) => println!("  a new write there: acknowledged at index {index}"),
        Ok(Err(error)) => println!("  a new write there: refused: {error}"),
        Err(_) => println!("  a new write there: no answer in 3 s"),
    }
    pause(300).await;
    let mut lost = vec![];
    for i in 101..=105 {
        let key = request(i).client;
        let mut found = false;
        for node in &others {
            found |= cluster.stores[node]
                .entries()
                .await?
                .iter()
                .any(|entry| match &entry.payload {
                    EntryPayload::Normal(normal) => normal.client == key,
                    _ => false,
                });
        }
        if !found {
            lost.push(key);
        }
    }
    for node in &others {
        println!(
            "  node {node} has applied {:?}",
            cluster.stores[node].keys().await
        );
    }
    cluster.stop().await;
    Ok(match lost.len() {
        0 => Held("nothing lost".into()),
        n => Violated(format!("{n} acknowledged writes lost: {}", lost.join(", "))),
    })
}

/// Ongaro's thesis, section 6.4: before a leader answers a linearizable read, a majority must say that it leads.
async fn read_on_an_isolated_leader() -> Result<Verdict> {
    println!("experiment 3: a linearizable read on an old leader that is cut off");
    let (cluster, old) = Cluster::formed().await?;
    let others: Vec<NodeId> = (1..=3).filter(|id| *id != old).collect();
    let write = |status: &str, serial| ClientRequest {
        client: "x".into(),
        serial,
        status: status.into(),
    };
    cluster.write(old, write("old", 1)).await?;
    cluster.cut(old);
    let new = cluster.leader(&others).await?;
    cluster.write(new, write("new", 2)).await?;
    println!("  leader {old} is cut off; new leader {new} acknowledged x=new");
    let node = cluster.node(old)?;
    let read = node.ensure_linearizable(ReadPolicy::ReadIndex);
    let answer = timeout(Duration::from_secs(3), read)
        .await
        .map(|read| read.map_err(|error| error.to_string()));
    println!("  ensure_linearizable() on node {old}: {answer:?}");
    println!("  x there is {:?}", cluster.stores[&old].value("x").await);
    cluster.stop().await;
    Ok(match answer {
        Ok(Ok(_)) => Violated("a stale read was declared linearizable".into()),
        Ok(Err(_)) | Err(_) => Held("the read was refused".into()),
    })
}

/// Raft, section 6: a change of membership must be agreed to by a majority of the new members, too.
async fn write_without_a_majority() -> Result<Verdict> {
    println!("experiment 4: two members are added while they are cut off, then a write");
    let cluster = Cluster::new(&[1, 2, 3]).await?;
    let first = cluster.node(1)?;
    first.initialize(BTreeMap::from([(1, ())])).await?;
    cluster.leader(&[1]).await?;
    cluster.write(1, request(1)).await?; // the membership of one is committed once this is
    first.add_learner(2, (), true).await?;
    first.add_learner(3, (), true).await?;
    pause(300).await;
    cluster.cut(2);
    cluster.cut(3);
    let members = BTreeSet::from([1, 2, 3]);
    let changed = timeout(
        Duration::from_millis(200),
        first.change_membership(members, false),
    )
    .await;
    match changed {
        Ok(changed) => println!("  nodes 2 and 3 are cut off; change_membership({{1, 2, 3}}): {changed:?}"),
        Err(_) => {
            println!("  nodes 2 and 3 are cut off; change_membership({{1, 2, 3}}): no answer in 200 ms")
        }
    }
    let joint = cluster
        .metrics(1)?
        .membership_config
        .membership()
        .get_joint_config()
        .clone();
    println!("  members, both of which must agree: {joint:?}");
    let written = timeout(Duration::from_secs(2), cluster.write(1, request(7))).await;
    match &written {
        Ok(Ok(index)) => println!("  client_write: acknowledged at index {index}"),
        Ok(Err(error)) => println!("  client_write: refused: {error}"),
        Err(_) => println!("  client_write: no answer in 2 s"),
    }
    for id in 1..=3 {
        println!("  log of node {id} {:?}", cluster.stores[&id].log().await?);
    }
    cluster.stop().await;
    Ok(match written {
        Ok(Ok(_)) => Violated("a write was acknowledged by 1 of 3 voters".into()),
        Ok(Err(_)) | Err(_) => Held("the write was not acknowledged".into()),
    })
}

/// Raft, section 5.3: a follower whose log does not match at `prev_log_index` refuses, whatever the message carries.
async fn heartbeat_over_a_stale_tail() -> Result<Verdict> {
    println!(
        "experiment 5: a restarted follower, whose entries 4 and 5 of term 1 were never committed, gets"
    );
    println!("              a heartbeat of the leader of term 3, whose committed 4 and 5 are of term 2");
    let store = Store::default();
    let members = BTreeMap::from([(1, ()), (2, ()), (3, ())]);
    let formed = EntryPayload::Membership(Membership::new(vec![members.keys().copied().collect()], members)?);
    let mut entries = vec![
        blank(),
        Entry {
            log_id: at(1, 1, 1),
            payload: formed,
        },
    ];
    entries.extend((2..=5).map(|index| entry(1, 1, index)));
    let committed: Vec<_> = entries[..4]
        .iter()
        .map(|entry| Ok((entry.clone(), None)))
        .collect();
    let (mut log, mut machine) = (store.log.clone(), store.machine.clone());
    log.blocking_append(entries).await?;
    machine.apply(stream::iter(committed)).await?;
    log.save_vote(&Vote::new_committed(1, 2)).await?;
    let cluster = Cluster::on([(2, store.clone())].into()).await?;
    pause(100).await;
    let heartbeat = AppendEntriesRequest {
        vote: Vote::new_committed(3, 3),
        prev_log_id: Some(at(2, 3, 5)),
        entries: vec![],
        leader_commit: Some(at(2, 3, 5)),
    };
    let answer = cluster.node(2)?.append_entries(heartbeat).await?;
    pause(200).await;
    println!("  heartbeat after (index 5, term 2), commit 5: {answer:?}");
    let stale = store.value("k4").await;
    println!(
        "  log={:?} applied={:?} k4={stale:?}",
        store.log().await?,
        store.applied().await
    );
    cluster.stop().await;
    Ok(match (stale, answer) {
        (Some(_), _) => Violated("entries that were never committed were applied".into()),
        (None, AppendEntriesResponse::Conflict) => Held("the heartbeat was refused".into()),
        (None, answer) => Held(format!("nothing was applied: {answer:?}")),
    })
}

/// Not a matter of safety: how long the service is away after everything was restarted.
async fn restart_of_the_whole_cluster() -> Result<Verdict> {
    println!("experiment 8: all three nodes are restarted");
    let (cluster, leader) = Cluster::formed().await?;
    cluster.write(leader, request(1)).await?;
    pause(300).await;
    cluster.stop().await;
    let started = Instant::now();
    cluster.start().await?;
    let leader = cluster.leader(&[1, 2, 3]).await?;
    let elapsed = started.elapsed().as_secs_f32();
    cluster.stop().await;
    Ok(Held(format!("node {leader} leads after {elapsed:.1} s")))
}
