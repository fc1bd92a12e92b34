//! `cluster` and `leader`: who is there, and who leads.
//!
//! `cluster` is for when things are broken: every node is asked for itself, quickly, and the table is
//! printed even when no leader exists and most nodes are gone.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use serde::Serialize;
use serde_json::json;

use super::output::{Output, printable, table};
use super::{Exit, Failure, exit_of};
use crate::client::{Client, Error, host_port};
use crate::proto::admin::{GetNodeStatusResponse, Member, Role};
use crate::proto::dfs::ClusterInfo;

/// A node that is there answers within this, leader or not.
pub(super) const NODE_TIMEOUT: Duration = Duration::from_secs(2);
/// What needs a leader is not waited for longer than this: an election and a bit.
const INFO_TIMEOUT: Duration = Duration::from_secs(4);

pub(super) async fn leader(client: &Client, out: &mut Output) -> Result<Exit, Failure> {
    let answer = client.leader().await?;
    let leader = answer.leader.as_ref().map(host_port).unwrap_or_default();
    if out.json() {
        let followers: Vec<String> = answer.followers.iter().map(host_port).collect();
        out.document(&json!({"leader": leader, "followers": followers}));
    } else {
        out.line(printable(&leader));
    }
    Ok(Exit::Ok)
}

/// One MetaServer, as far as it is known. What only the node itself can tell is absent when it does not
/// answer.
#[derive(Debug, Serialize)]
pub(super) struct Node {
    pub(super) name: Option<String>,
    role: Option<&'static str>,
    pub(super) grpc: String,
    raft: Option<String>,
    term: Option<u64>,
    applied: Option<u64>,
    /// In decimal; a string, because many readers of JSON round numbers of this size.
    incarnation: Option<String>,
    /// Whether the members know it as one who votes; absent when no member's view is known.
    voter: Option<bool>,
    reachable: bool,
    /// Bytes that are free on its disk.
    free_space: Option<u64>,
    /// Why it takes no writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    writes_refused: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct DataServer {
    address: String,
    blocks: i32,
    capacity_mb: i32,
    used_mb: i32,
}

/// What a node said when it was asked at an address.
type Answer = Result<GetNodeStatusResponse, Error>;

/// What all nodes said, by the address at which they were asked.
pub(super) type Answers = BTreeMap<String, Answer>;

/// Asks every node that the client, the members or the cluster's own list know; and gives that list.
pub(super) async fn ask_all(client: &Client) -> (Answers, Result<ClusterInfo, Error>) {
    let mut answers = BTreeMap::new();
    ask(client, client.addresses(), &mut answers).await;
    let info = client
        .with_timeout(client.timeout().min(INFO_TIMEOUT))
        .cluster_info()
        .await;
    // The members that the first answers named, and those that only the cluster's list names.
    let members = answers.values().flatten().flat_map(|status| &status.members);
    let mut named: Vec<String> = members.map(|member| member.grpc_addr.clone()).collect();
    if let Ok(info) = &info {
        named.extend(
            info.master_meta_server
                .iter()
                .chain(&info.slave_meta_server)
                .map(host_port),
        );
    }
    ask(client, named, &mut answers).await;
    (answers, info)
}

pub(super) async fn cluster(client: &Client, out: &mut Output) -> Result<Exit, Failure> {
    let (answers, info) = ask_all(client).await;
    let nodes = merge(&answers);
    let best = freshest(&answers);
    let data_servers = info.as_ref().ok().map(|info| {
        let server = |server: &crate::proto::dfs::DataServerMsg| DataServer {
            address: format!("{}:{}", server.host, server.port),
            blocks: server.file_total,
            capacity_mb: server.capacity,
            used_mb: server.use_capacity,
        };
        info.data_server.iter().map(server).collect::<Vec<_>>()
    });
    let exit = info.as_ref().err().map_or(Exit::Ok, exit_of);
    if out.json() {
        let mut document = json!({
            "cluster_id": best.map(|status| &status.cluster_id).filter(|id| !id.is_empty()),
            "leader": best.and_then(|status| status.leader.as_ref()),
            "nodes": nodes,
            "data_servers": data_servers,
        });
        if let Err(error) = &info {
            document["error"] = json!({"kind": error.kind(), "message": error.to_string()});
        }
        out.document(&document);
        return Ok(exit);
    }
    print_nodes(out, &nodes);
    out.line("");
    match data_servers {
        Some(servers) if servers.is_empty() => out.line("no DataServers"),
        Some(servers) => print_data_servers(out, &servers),
        None => out.line("DataServers: not known, the cluster does not answer"),
    }
    if let Err(error) = info {
        out.remark(printable(&error.to_string()));
    }
    Ok(exit)
}

/// Asks every address that was not asked yet, all at once.
async fn ask(client: &Client, mut addresses: Vec<String>, answers: &mut Answers) {
    addresses.sort_unstable();
    addresses.dedup();
    addresses.retain(|addr| !addr.is_empty() && !answers.contains_key(addr));
    let limit = NODE_TIMEOUT.min(client.timeout());
    let asked = addresses.iter().map(|addr| client.node_status(addr, limit));
    let heard = join_all(asked).await;
    answers.extend(addresses.into_iter().zip(heard));
}

/// The answer of the node that knows most: the highest term, the leader before the others.
fn freshest(answers: &Answers) -> Option<&GetNodeStatusResponse> {
    let statuses = answers.values().flatten();
    statuses.max_by_key(|status| (status.term, status.role() == Role::Leader, status.applied_index))
}

/// One row a node: the members as the freshest node knows them, then whoever else answered or was
/// named. A node that was asked under two addresses is one row, known by its incarnation.
pub(super) fn merge(answers: &Answers) -> Vec<Node> {
    let members: &[Member] = freshest(answers).map_or(&[], |status| &status.members);
    let mut nodes = Vec::new();
    let mut shown: Vec<u64> = Vec::new();
    for member in members {
        let status = answers
            .values()
            .flatten()
            .find(|status| status.incarnation == member.incarnation);
        let problem = match (status, answers.get(&member.grpc_addr)) {
            (None, Some(Err(error))) => Some(error.to_string()),
            (None, Some(Ok(other))) => Some(format!("incarnation {} answers there", other.incarnation)),
            _ => None,
        };
        shown.push(member.incarnation);
        nodes.push(Node {
            name: Some(member.name.clone()),
            raft: Some(member.raft_addr.clone()),
            incarnation: Some(member.incarnation.to_string()),
            voter: Some(member.voter),
            problem,
            ..Node::answering(&member.grpc_addr, status)
        });
    }
    for (addr, answer) in answers {
        match answer {
            Ok(status) if !shown.contains(&status.incarnation) => {
                shown.push(status.incarnation);
                nodes.push(Node::answering(addr, Some(status)));
            }
            Ok(_) => (),
            Err(_) if members.iter().any(|member| member.grpc_addr == *addr) => (),
            Err(error) => {
                let reachable = !matches!(error, Error::Unavailable(_));
                let problem = Some(error.to_string());
                nodes.push(Node {
                    reachable,
                    problem,
                    ..Node::answering(addr, None)
                });
            }
        }
    }
    nodes.sort_by(|a, b| (&a.name, &a.grpc).cmp(&(&b.name, &b.grpc)));
    nodes
}

impl Node {
    fn answering(grpc: &str, status: Option<&GetNodeStatusResponse>) -> Self {
        let own = status.and_then(|status| {
            status
                .members
                .iter()
                .find(|member| member.incarnation == status.incarnation)
        });
        Node {
            name: status.map(|status| status.name.clone()),
            role: status.map(|status| role_name(status.role())),
            grpc: grpc.to_string(),
            raft: own.map(|member| member.raft_addr.clone()),
            term: status.map(|status| status.term),
            applied: status.and_then(|status| status.applied_index),
            incarnation: status.map(|status| status.incarnation.to_string()),
            voter: own.map(|member| member.voter),
            reachable: status.is_some(),
            free_space: status.map(|status| status.free_space),
            writes_refused: status
                .map(|status| status.writes_refused.clone())
                .filter(|why| !why.is_empty()),
            problem: None,
        }
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
    }
}

fn print_nodes(out: &mut Output, nodes: &[Node]) {
    let unknown = || "-".to_string();
    let number = |number: Option<u64>| number.map_or_else(unknown, |number| number.to_string());
    let mut rows = vec![
        [
            "NODE",
            "ROLE",
            "GRPC",
            "RAFT",
            "TERM",
            "APPLIED",
            "INCARNATION",
            "REACHABLE",
        ]
        .map(str::to_string),
    ];
    for node in nodes {
        let reachable = match (
            node.problem.as_ref().or(node.writes_refused.as_ref()),
            node.reachable,
        ) {
            (Some(problem), true) => format!("yes: {problem}"),
            (None, true) => "yes".to_string(),
            (Some(problem), false) => format!("no: {problem}"),
            (None, false) => "no".to_string(),
        };
        rows.push([
            node.name.clone().map_or_else(unknown, |name| printable(&name)),
            node.role.map_or_else(unknown, str::to_string),
            printable(&node.grpc),
            node.raft.clone().map_or_else(unknown, |raft| printable(&raft)),
            number(node.term),
            number(node.applied),
            node.incarnation.clone().unwrap_or_else(unknown),
            printable(&reachable),
        ]);
    }
    for line in table(&rows) {
        out.line(line);
    }
}

fn print_data_servers(out: &mut Output, servers: &[DataServer]) {
    let mut rows = vec![["DATASERVER", "BLOCKS", "CAPACITY MB", "USED MB"].map(str::to_string)];
    for server in servers {
        rows.push([
            printable(&server.address),
            server.blocks.to_string(),
            server.capacity_mb.to_string(),
            server.used_mb.to_string(),
        ]);
    }
    for line in table(&rows) {
        out.line(line);
    }
}
