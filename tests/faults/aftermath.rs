//! After the last fault: what is there now, through each node, and whether it is what was acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use minfs::proto::dfs::{GetBlockLocationsRequest, GetNodeInfoRequest, ListDirectoryRequest, StatInfo};

use crate::clients::{Ground, Node, attributes, name};
use crate::history::{Answer, History, Op, Outcome, Record, Refused};
use crate::support::cluster::Cluster;
use crate::support::minfs::{ended, minfs};

/// The number under which what is seen in the end is written into the history, before the node's.
const OBSERVER: u32 = 90;

/// All that one node shows: attributes, times, inode and block numbers and places, by path.
pub type Tree = BTreeMap<String, Seen>;

/// One entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    listed: StatInfo,
    /// Of a file that was contended for.
    more: Option<Details>,
}

/// A stat, the inode's number, and where the blocks are.
type Details = (StatInfo, u64, Vec<(u64, Vec<String>)>);

/// Reads everything through one node, and writes it into the history.
pub async fn survey(cluster: &Cluster, n: usize, ground: &Ground, history: &History) -> Tree {
    let mut tree = Tree::new();
    let mut node = cluster.raw(n).max_decoding_message_size(usize::MAX);
    let process = OBSERVER + n as u32;
    for unit in &ground.units {
        let mut directories = vec![String::new()];
        while let Some(below) = directories.pop() {
            let op = Op::List { path: below.clone() };
            let pending = history.invoke(process, n, &unit.base, &unit.base, op);
            let listed = list(&mut node, &join(&unit.base, &below)).await;
            let seen = listed
                .iter()
                .map(|info| (name(&info.path).to_owned(), attributes(info, false)));
            let answer = Answer::Entries(seen.collect());
            history.complete(pending, Outcome::Ok(answer), String::new());
            for info in listed {
                let inside = info.path[unit.base.len() + 1..].to_owned();
                let mut seen = Seen {
                    listed: info,
                    more: None,
                };
                if attributes(&seen.listed, false).directory {
                    directories.push(inside);
                } else {
                    seen.more = Some(look_closely(&mut node, n, &unit.base, &inside, history).await);
                }
                tree.insert(seen.listed.path.clone(), seen);
            }
        }
    }
    for base in &ground.ledgers {
        for listed in list(&mut node, base).await {
            tree.insert(listed.path.clone(), Seen { listed, more: None });
        }
    }
    tree
}

async fn look_closely(node: &mut Node, n: usize, base: &Arc<str>, path: &str, history: &History) -> Details {
    let process = OBSERVER + n as u32;
    let full = join(base, path);
    let path = path.to_owned();
    let pending = history.invoke(process, n, base, base, Op::Stat { path: path.clone() });
    let request = GetNodeInfoRequest { path: full.clone() };
    let answer = node.get_node_info(request).await;
    let info = answer.unwrap().into_inner().stat_info.unwrap();
    let found = Answer::Found(attributes(&info, true));
    history.complete(pending, Outcome::Ok(found), String::new());

    let pending = history.invoke(process, n, base, base, Op::Blocks { path });
    let request = GetBlockLocationsRequest {
        path: full,
        ..GetBlockLocationsRequest::default()
    };
    let answer = node.get_block_locations(request).await;
    let located = answer.unwrap().into_inner();
    let numbers = located.block_locations.iter().map(|block| block.block_id);
    let blocks = Answer::Blocks {
        inode: located.inode,
        blocks: numbers.collect(),
    };
    history.complete(pending, Outcome::Ok(blocks), String::new());
    let places = located
        .block_locations
        .into_iter()
        .map(|block| (block.block_id, block.locations));
    (info, located.inode, places.collect())
}

async fn list(node: &mut Node, path: &str) -> Vec<StatInfo> {
    let request = ListDirectoryRequest {
        path: path.to_owned(),
    };
    node.list_directory(request).await.unwrap().into_inner().nodes
}

fn join(base: &str, path: &str) -> String {
    match path {
        "" => base.to_owned(),
        path => format!("{base}/{path}"),
    }
}

/// What was seen of the ledgers' files in the end, for the checker: one look at each through each node.
pub fn looks_at_ledgers(records: &[Record], trees: &[Tree], now: Duration) -> Vec<Record> {
    let is_create = |record: &&Record| is_of_ledger(record) && matches!(record.op, Op::Create { .. });
    let looks = records.iter().filter(is_create).flat_map(|create| {
        trees.iter().enumerate().map(|(n, tree)| {
            let outcome = match tree.get(&*create.unit) {
                Some(seen) => Outcome::Ok(Answer::Found(attributes(&seen.listed, true))),
                None => Outcome::Refused(Refused::NotFound),
            };
            Record {
                process: OBSERVER + n as u32,
                node: n,
                op: Op::Stat {
                    path: name(&create.unit).to_owned(),
                },
                invoked: now,
                completed: Some(now),
                outcome,
                note: "seen in the end".to_owned(),
                ..create.clone()
            }
        })
    });
    looks.collect()
}

fn is_of_ledger(record: &Record) -> bool {
    record.base.starts_with("/ledger/")
}

/// Acknowledged changes of the ledgers that are not there: creates without a delete whose file is
/// missing, deletes whose file is there. One line for each, and each node.
pub fn lost(records: &[Record], trees: &[Tree]) -> Vec<String> {
    #[derive(Default)]
    struct Entry {
        created: bool,
        delete_asked: bool,
        deleted: bool,
    }
    let mut entries: BTreeMap<&str, Entry> = BTreeMap::new();
    for record in records.iter().filter(|record| is_of_ledger(record)) {
        let entry = entries.entry(&record.unit).or_default();
        match (&record.op, &record.outcome) {
            (Op::Create { .. }, Outcome::Ok(_)) => entry.created = true,
            (Op::Delete { .. }, Outcome::Ok(_)) => entry.deleted = true,
            (Op::Delete { .. }, Outcome::Unknown) => entry.delete_asked = true,
            _ => {}
        }
    }
    let mut lost = Vec::new();
    for (n, tree) in trees.iter().enumerate() {
        for (path, entry) in &entries {
            let there = tree.contains_key(*path);
            if entry.deleted && there {
                lost.push(format!("the acknowledged delete of {path} is undone on node {n}"));
            } else if entry.created && !entry.deleted && !entry.delete_asked && !there {
                lost.push(format!("the acknowledged create of {path} is lost on node {n}"));
            }
        }
    }
    lost
}

/// How the nodes' trees differ: a few lines for each.
pub fn differences(trees: &[Tree]) -> Vec<String> {
    let mut differences = Vec::new();
    for (n, tree) in trees.iter().enumerate().skip(1) {
        let paths = trees[0].keys().chain(tree.keys());
        let differing = paths.filter(|path| trees[0].get(*path) != tree.get(*path));
        let line = |path: &String| {
            let (first, other) = (trees[0].get(path), tree.get(path));
            format!("{path}: node 0 has {first:?}, node {n} has {other:?}")
        };
        differences.extend(differing.take(10).map(line));
    }
    differences
}

/// Whether the nodes' states are the same, byte for byte, and what their hashes say: `minfs cluster
/// --verify`, which has every node read all its records. Nothing, or what it said.
pub async fn verification(cluster: &Cluster) -> Option<String> {
    let command = minfs(&cluster.servers(), &["cluster", "--verify"])
        .spawn()
        .unwrap();
    // The DataServers of the test go on meanwhile.
    let output = tokio::task::spawn_blocking(move || ended(command, "cluster --verify"));
    let output = output.await.unwrap();
    let [said, complaint] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).trim_end().to_owned());
    println!("{said}");
    (!output.status.success()).then(|| format!("the states differ: {said}\n{complaint}"))
}

/// Numbers that were given out twice: a block by two allocations, an inode to two paths.
pub fn repeated_numbers(records: &[Record]) -> Vec<String> {
    let mut repeated = Vec::new();
    let mut blocks_of: BTreeMap<u64, &Record> = BTreeMap::new();
    let mut path_of: BTreeMap<u64, String> = BTreeMap::new();
    for record in records {
        let (path, allocates) = match &record.op {
            Op::Allocate { path, .. } => (path, true),
            Op::Blocks { path } => (path, false),
            _ => continue,
        };
        let Outcome::Ok(Answer::Blocks { inode, blocks }) = &record.outcome else {
            continue;
        };
        let path = join(&record.base, path);
        let known = path_of.entry(*inode).or_insert_with(|| path.clone());
        if *known != path {
            repeated.push(format!("inode {inode} is both {known} and {path}"));
        }
        for block in blocks.iter().filter(|_| allocates) {
            if let Some(first) = blocks_of.insert(*block, record) {
                repeated.push(format!("block {block} was allocated twice:\n{first}\n{record}"));
            }
        }
    }
    repeated
}

#[test]
fn what_is_lost_differs_or_is_repeated_is_found() {
    let base: Arc<str> = Arc::from("/ledger/n0");
    let history = History::new();
    let create = |name: &str, outcome| {
        let (path, directory) = (name.to_owned(), false);
        let unit = Arc::from(format!("/ledger/n0/{name}"));
        let pending = history.invoke(0, 0, &base, &unit, Op::Create { path, directory });
        history.complete(pending, outcome, String::new());
    };
    let delete = |name: &str, outcome| {
        let (path, recursive) = (name.to_owned(), false);
        let unit = Arc::from(format!("/ledger/n0/{name}"));
        let pending = history.invoke(0, 0, &base, &unit, Op::Delete { path, recursive });
        history.complete(pending, outcome, String::new());
    };
    let done = || Outcome::Ok(Answer::Done);
    for name in ["kept", "gone", "maybe"] {
        create(name, done());
    }
    create("never", Outcome::NotDone);
    create("perhaps", Outcome::Unknown);
    delete("gone", done());
    delete("maybe", Outcome::Unknown);
    let tree = |names: &[&str]| -> Tree {
        let entries = names.iter().map(|name| {
            let path = format!("/ledger/n0/{name}");
            let listed = StatInfo {
                path: path.clone(),
                ..StatInfo::default()
            };
            (path, Seen { listed, more: None })
        });
        entries.collect()
    };
    let records = history.records();
    let good = [tree(&["kept"]), tree(&["kept"])];
    assert_eq!(lost(&records, &good), [""; 0]);
    assert_eq!(lost(&records, &[tree(&["kept", "maybe", "perhaps"])]), [""; 0]);
    assert_eq!(lost(&records, &[tree(&["kept"]), tree(&[])]).len(), 1);
    assert_eq!(lost(&records, &[tree(&["kept", "gone"])]).len(), 1);
    assert_eq!(differences(&good), [""; 0]);
    assert_eq!(differences(&[tree(&["a"]), tree(&["b"])]).len(), 2);
    let looks = looks_at_ledgers(&records, &good, history.now());
    assert_eq!(looks.len(), 5 * 2);

    let allocate = |path: &str, inode, block| {
        let path = path.to_owned();
        let pending = history.invoke(0, 0, &base, &base, Op::Allocate { path, size: 1 });
        let blocks = vec![block];
        history.complete(
            pending,
            Outcome::Ok(Answer::Blocks { inode, blocks }),
            String::new(),
        );
    };
    allocate("a", 1, 1);
    allocate("a", 1, 2);
    assert_eq!(repeated_numbers(&history.records()), [""; 0]);
    allocate("b", 1, 2);
    assert_eq!(repeated_numbers(&history.records()).len(), 2);
}
