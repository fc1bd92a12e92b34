//! Decision 0001: what async-raft 0.6.1 does when the network or a crash does what they do.
//!
//! `cargo run --locked -- 2` runs experiment 2, and so on; without an argument all of them run. Each says what it does,
//! shows the logs, and ends in a line `async-raft experiment N: held …` or `… VIOLATED …`. The twin of this
//! program, `../openraft`, puts openraft through the same.

mod cluster;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use async_raft::raft::{
    AppendEntriesRequest, Entry, EntryConfigChange, EntryPayload, MembershipConfig, VoteRequest,
};
use async_raft::storage::HardState;
use async_raft::{NodeId, RaftStorage};
use cluster::{Append, Cluster, copy, entry, log_of, pause, request};
use memstore::{ClientRequest, MemStore};
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
            Held(what) => println!("async-raft experiment {n}: held: {what}\n"),
            Violated(what) => println!("async-raft experiment {n}: VIOLATED: {what}\n"),
        }
    }
    Ok(())
}

/// A message of the leader of term 1, node 1, whose log is of term 1 throughout.
fn append(previous: u64, entries: Vec<Entry<ClientRequest>>, commit: u64) -> Append {
    AppendEntriesRequest {
        term: 1,
        leader_id: 1,
        prev_log_index: previous,
        prev_log_term: previous.min(1),
        entries,
        leader_commit: commit,
    }
}

/// Raft (Ongaro and Ousterhout, section 5.3): a follower deletes entries only on a conflict, so that a message which
/// arrives twice, or late, does no harm. Networks and retries make such messages.
async fn late_duplicate_at_a_follower() -> Result<Verdict> {
    println!("experiment 1: a late duplicate of an AppendEntries reaches a follower (driven by hand)");
    let cluster = Cluster::new(&[2])?;
    let (follower, store) = (cluster.node(2)?, &cluster.stores[&2]);
    let second = append(1, vec![entry(1, 2)], 1);
    let messages = [
        ("entry 1", append(0, vec![entry(1, 1)], 0)),
        ("entry 2", copy(&second)),
        (
            "entries 3 to 5",
            append(2, vec![entry(1, 3), entry(1, 4), entry(1, 5)], 2),
        ),
        ("heartbeat, commit 5", append(5, vec![], 5)),
        ("heartbeat, commit 5", append(5, vec![], 5)),
    ];
    for (name, message) in messages {
        let success = follower.append_entries(message).await?.success;
        println!("  {name:20} success={success} log={:?}", log_of(store).await);
    }
    pause(200).await;
    let applied = store.get_state_machine().await.last_applied_log;
    println!("  committed 5, applied {applied}; now the message with entry 2 arrives once more");
    let success = follower.append_entries(second).await?.success;
    pause(50).await;
    println!(
        "  {:20} success={success} log={:?}",
        "entry 2, late",
        log_of(store).await
    );
    let heartbeat = follower.append_entries(append(5, vec![], 5)).await?;
    println!(
        "  heartbeat after 5    success={}: the leader does not learn of the hole",
        heartbeat.success
    );
    pause(500).await; // until an election timeout has passed, so that a vote may be given
    let candidate = VoteRequest {
        term: 9,
        candidate_id: 3,
        last_log_index: 2,
        last_log_term: 1,
    };
    let granted = follower.vote(candidate).await?.vote_granted;
    println!("  a candidate whose log ends at 2 asks for a vote: granted={granted}");
    let left = log_of(store).await.len();
    cluster.stop().await;
    Ok(match left {
        5 => Held("nothing lost".into()),
        left => Violated(format!("{} committed entries deleted", 5 - left)),
    })
}

/// The same in a cluster: the follower with the hole is the majority's memory.
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
        log_of(&cluster.stores[&leader]).await
    );
    println!(
        "  log of follower {follower} {:?}",
        log_of(&cluster.stores[&follower]).await
    );
    let late = cluster.duplicate(before, follower)?;
    let carried: Vec<u64> = late.entries.iter().map(|entry| entry.index).collect();
    println!("  the AppendEntries with entries {carried:?} reaches node {follower} once more");
    cluster.node(follower)?.append_entries(late).await?;
    pause(400).await;
    println!(
        "  log of follower {follower} {:?}, 400 ms of heartbeats later",
        log_of(&cluster.stores[&follower]).await
    );
    cluster.cut(leader);
    cluster.heal(absent);
    println!("  leader {leader} crashes, node {absent} is back");
    let successor = cluster.leader(&others).await?;
    pause(800).await;
    println!(
        "  new leader {successor}, log {:?}",
        log_of(&cluster.stores[&successor]).await
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
            let log = cluster.stores[node].get_log().await;
            found |= log.values().any(|entry| match &entry.payload {
                EntryPayload::Normal(normal) => normal.data.client == key,
                _ => false,
            });
        }
        if !found {
            lost.push(key);
        }
    }
    for node in &others {
        let machine = cluster.stores[node].get_state_machine().await;
        let mut keys: Vec<_> = machine.client_status.keys().cloned().collect();
        keys.sort();
        println!("  node {node} has applied {keys:?}");
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
    let answer = timeout(Duration::from_secs(3), cluster.node(old)?.client_read()).await;
    let value = cluster.stores[&old]
        .get_state_machine()
        .await
        .client_status
        .get("x")
        .cloned();
    println!("  client_read() on node {old}: {answer:?}, and x there is {value:?}");
    cluster.stop().await;
    Ok(match answer {
        Ok(Ok(())) => Violated("a stale read was declared linearizable".into()),
        Ok(Err(_)) | Err(_) => Held("the read was refused".into()),
    })
}

/// Raft, section 6: a change of membership must be agreed to by a majority of the new members, too.
async fn write_without_a_majority() -> Result<Verdict> {
    println!("experiment 4: two members are added while they are cut off, then a write");
    let cluster = Cluster::new(&[1, 2, 3])?;
    let first = cluster.node(1)?;
    first.initialize(HashSet::from([1])).await?;
    cluster.leader(&[1]).await?;
    first.add_non_voter(2).await?;
    first.add_non_voter(3).await?;
    pause(300).await;
    cluster.cut(2);
    cluster.cut(3);
    let changed = timeout(
        Duration::from_secs(2),
        first.change_membership(HashSet::from([1, 2, 3])),
    )
    .await;
    println!("  nodes 2 and 3 are cut off; change_membership({{1, 2, 3}}): {changed:?}");
    println!("  members: {:?}", cluster.metrics(1)?.membership_config.members);
    let written = timeout(Duration::from_secs(2), cluster.write(1, request(7))).await;
    match &written {
        Ok(Ok(index)) => println!("  client_write: acknowledged at index {index}"),
        Ok(Err(error)) => println!("  client_write: refused: {error}"),
        Err(_) => println!("  client_write: no answer in 2 s"),
    }
    for id in 1..=3 {
        println!("  log of node {id} {:?}", log_of(&cluster.stores[&id]).await);
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
    let store = Arc::new(MemStore::new(2));
    let members = MembershipConfig {
        members: HashSet::from([1, 2, 3]),
        members_after_consensus: None,
    };
    let formed = EntryPayload::ConfigChange(EntryConfigChange { membership: members });
    {
        let mut log = store.get_log().await;
        log.insert(
            1,
            Entry {
                term: 1,
                index: 1,
                payload: formed,
            },
        );
        for index in 2..=5 {
            log.insert(index, entry(1, index));
        }
    }
    store.get_state_machine().await.last_applied_log = 3;
    store
        .save_hard_state(&HardState {
            current_term: 1,
            voted_for: Some(2),
        })
        .await?;
    let cluster = Cluster::on([(2, store.clone())].into())?;
    pause(100).await;
    let heartbeat = AppendEntriesRequest {
        term: 3,
        leader_id: 3,
        prev_log_index: 5,
        prev_log_term: 2,
        entries: vec![],
        leader_commit: 5,
    };
    let success = cluster.node(2)?.append_entries(heartbeat).await?.success;
    pause(200).await;
    let (applied, stale) = {
        let machine = store.get_state_machine().await;
        (machine.last_applied_log, machine.client_status.get("k4").cloned())
    };
    println!("  heartbeat after (index 5, term 2), commit 5: success={success}");
    println!("  log={:?} applied={applied} k4={stale:?}", log_of(&store).await);
    cluster.stop().await;
    Ok(match stale {
        Some(_) => Violated("entries that were never committed were applied".into()),
        None => Held("the heartbeat was refused".into()),
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
    cluster.start()?;
    let leader = cluster.leader(&[1, 2, 3]).await?;
    let elapsed = started.elapsed().as_secs_f32();
    cluster.stop().await;
    Ok(Held(format!("node {leader} leads after {elapsed:.1} s")))
}
