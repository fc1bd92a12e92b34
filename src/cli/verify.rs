//! `cluster --verify`: every MetaServer reads its whole state, and all of them are compared.
//!
//! Each node is asked for itself, and answers whether its records are what its state's hash says. Then the
//! hashes after one log entry that all have applied are compared. It needs no leader.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde::Serialize;
use serde_json::json;

use super::cluster::{NODE_TIMEOUT, ask_all, merge};
use super::output::{Output, printable, table};
use super::{Exit, Failure};
use crate::client::Client;
use crate::domain::state_hash::{Hashes, StateHash};
use crate::proto::admin::{StateVerification, VerifyStateResponse};

/// How often a node that is reading is asked how far it is.
const POLL: Duration = Duration::from_millis(200);

/// How often nodes that have no log entry in common are asked again: one of them lags.
const TRIES: usize = 25;

/// What came of one node.
#[derive(Debug, Serialize)]
struct Report {
    name: String,
    grpc: String,
    applied: Option<u64>,
    records: Option<u64>,
    took_ms: Option<u64>,
    /// After the common log entry.
    hash: Option<String>,
    verdict: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// Its records are sound, and its hash is that of the majority of those asked.
    Agrees,
    /// Its records are sound, and its hash is another one.
    Differs,
    /// Its records are not what its hash says.
    Damaged,
    /// It could not be asked, or had no log entry in common with the others.
    Unknown,
}

/// What a node said of itself, in the end.
struct Said {
    verification: StateVerification,
    hashes: Hashes,
}

pub(super) async fn verify(client: &Client, out: &mut Output) -> Result<Exit, Failure> {
    let (answers, _) = ask_all(client).await;
    let nodes = merge(&answers);
    let asked = nodes.iter().map(|node| verify_node(client, &node.grpc));
    let mut said: Vec<_> = join_all(asked).await;
    let common = common_index(client, &nodes_of(&nodes), &mut said).await;
    let hashes: Vec<_> = said
        .iter()
        .map(|said| said.as_ref().ok()?.hashes.get(&common?).copied())
        .collect();
    let majority = majority(&hashes);
    let reports: Vec<_> = nodes
        .iter()
        .zip(said)
        .zip(hashes)
        .map(|((node, said), hash)| report(node.name.as_deref(), &node.grpc, said, hash, majority))
        .collect();
    let exit = exit(&reports);
    if out.json() {
        out.document(&json!({"index": common, "nodes": reports}));
    } else {
        print(out, &reports, common);
    }
    Ok(exit)
}

fn nodes_of(nodes: &[super::cluster::Node]) -> Vec<&str> {
    nodes.iter().map(|node| node.grpc.as_str()).collect()
}

/// Has a node verify its state, and waits for as long as it goes on reading.
async fn verify_node(client: &Client, addr: &str) -> Result<Said, String> {
    let limit = NODE_TIMEOUT.min(client.timeout());
    let ask = async |begin| {
        let answer = client.verify_state(addr, begin, limit).await;
        answer.map_err(|error| error.to_string())
    };
    let mut answer = ask(true).await?;
    let wanted = answer.begun;
    let (mut read, mut since) = (None, Instant::now());
    loop {
        if let Some(verification) = answer.last.take_if(|last| last.number >= wanted) {
            let hashes = hashes(&answer, Some(&verification));
            return Ok(Said { verification, hashes });
        }
        // It reads some thousand records between two looks; one that does not get on does not end.
        if answer.records_so_far != read {
            (read, since) = (answer.records_so_far, Instant::now());
        } else if since.elapsed() > client.timeout() {
            return Err(format!(
                "its verification has not got on for {:?}",
                client.timeout()
            ));
        }
        tokio::time::sleep(POLL).await;
        answer = ask(false)
            .await
            .map_err(|error| format!("lost while it verified: {error}"))?;
    }
}

fn hashes(answer: &VerifyStateResponse, verification: Option<&StateVerification>) -> Hashes {
    let verified = verification.and_then(|verification| verification.recorded.as_ref());
    let all = answer.recent.iter().chain(verified);
    all.filter_map(|told| Some((told.index, StateHash::from_bytes(&told.hash)?)))
        .collect()
}

/// The last log entry after which the hashes of all that answered are known.
async fn common_index(client: &Client, addrs: &[&str], said: &mut [Result<Said, String>]) -> Option<u64> {
    for n in 0..TRIES {
        let known = said
            .iter()
            .flatten()
            .map(|said| said.hashes.keys().copied().collect());
        let common = known.reduce(|a: BTreeSet<u64>, b| &a & &b)?;
        if let Some(last) = common.last() {
            return Some(*last);
        }
        if n > 0 {
            tokio::time::sleep(POLL).await;
        }
        for (addr, said) in addrs.iter().zip(said.iter_mut()) {
            let Ok(said) = said else { continue };
            if let Ok(answer) = client.verify_state(addr, false, NODE_TIMEOUT).await {
                said.hashes.extend(hashes(&answer, None));
            }
        }
    }
    None
}

/// The hash that most have, if more than half of all have it.
fn majority(hashes: &[Option<StateHash>]) -> Option<StateHash> {
    let mut count: BTreeMap<StateHash, usize> = BTreeMap::new();
    for hash in hashes.iter().flatten() {
        *count.entry(*hash).or_default() += 1;
    }
    let (hash, most) = count.into_iter().max_by_key(|(_, count)| *count)?;
    (2 * most > hashes.len()).then_some(hash)
}

fn report(
    name: Option<&str>,
    grpc: &str,
    said: Result<Said, String>,
    hash: Option<StateHash>,
    majority: Option<StateHash>,
) -> Report {
    let unknown = |problem| Report {
        name: name.unwrap_or("-").to_owned(),
        grpc: grpc.to_owned(),
        applied: None,
        records: None,
        took_ms: None,
        hash: None,
        verdict: Verdict::Unknown,
        problem: Some(problem),
    };
    let Said { verification, .. } = match said {
        Ok(said) => said,
        Err(problem) => return unknown(problem),
    };
    let recorded = verification.recorded.clone().unwrap_or_default();
    let (verdict, problem) = if !verification.problem.is_empty() {
        (Verdict::Damaged, Some(verification.problem))
    } else if verification.computed != recorded.hash {
        let [found, expected] = [&verification.computed, &recorded.hash]
            .map(|hash| StateHash::from_bytes(hash).map_or("nothing".to_owned(), |hash| hash.to_string()));
        let problem = format!("its records have the hash {found} instead of {expected}");
        (Verdict::Damaged, Some(problem))
    } else {
        match (hash, majority) {
            (None, _) => (
                Verdict::Unknown,
                Some("it has no log entry in common with the others".to_owned()),
            ),
            (hash, majority) if hash == majority => (Verdict::Agrees, None),
            (_, Some(_)) => (Verdict::Differs, Some("a majority has another state".to_owned())),
            (_, None) => (Verdict::Differs, Some("no majority has one state".to_owned())),
        }
    };
    Report {
        applied: Some(recorded.index),
        records: Some(verification.records),
        took_ms: Some(verification.took_ms),
        hash: hash.map(|hash| hash.to_string()),
        verdict,
        problem,
        ..unknown(String::new())
    }
}

fn exit(reports: &[Report]) -> Exit {
    let any = |verdict| reports.iter().any(|report| report.verdict == verdict);
    if any(Verdict::Damaged) {
        Exit::Damaged
    } else if any(Verdict::Differs) {
        Exit::Differences
    } else if any(Verdict::Unknown) || reports.is_empty() {
        Exit::Unavailable
    } else {
        Exit::Ok
    }
}

fn print(out: &mut Output, reports: &[Report], common: Option<u64>) {
    let number = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
    let header = ["NODE", "GRPC", "APPLIED", "RECORDS", "HASH", "VERDICT"];
    let mut rows = vec![header.map(str::to_string)];
    for report in reports {
        let verdict = match report.verdict {
            Verdict::Agrees => "agrees",
            Verdict::Differs => "DIFFERS",
            Verdict::Damaged => "DAMAGED",
            Verdict::Unknown => "not known",
        };
        let verdict = match &report.problem {
            None => verdict.to_owned(),
            Some(problem) => format!("{verdict}: {problem}"),
        };
        rows.push([
            printable(&report.name),
            printable(&report.grpc),
            number(report.applied),
            number(report.records),
            report.hash.clone().unwrap_or_else(|| "-".to_owned()),
            printable(&verdict),
        ]);
    }
    for line in table(&rows) {
        out.line(line);
    }
    if let Some(common) = common {
        out.line(format!("hashes after log entry {common}"));
    }
}
