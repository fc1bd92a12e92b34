//! Clients that create files one after the other, without retries, and write down what was
//! acknowledged and what failed. Each looks at once, through another node, for what was acknowledged:
//! to be told that it is not there is an error of the cluster, whatever happens to it meanwhile.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use minfs::proto::dfs::meta_server_service_client::MetaServerServiceClient;
use minfs::proto::dfs::{CreateNodeRequest, FileType, GetNodeInfoRequest};
use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::cluster::{Cluster, EVENTUALLY};
use super::wait::until;

/// A request that was answered with OK.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    /// What was created.
    pub path: String,
    /// Through which node.
    pub node: usize,
    /// When it was asked for.
    pub asked: Instant,
    /// When the answer came.
    pub answered: Instant,
}

/// A request that was not.
#[derive(Clone, Debug)]
pub struct Failed {
    /// Through which node.
    pub node: usize,
    /// When it was asked for.
    pub asked: Instant,
    /// How long it took.
    pub took: Duration,
    /// What came instead.
    pub status: Status,
}

/// What became of the requests.
#[derive(Default)]
pub struct Book {
    /// In the order of their answers.
    pub acknowledged: Vec<Acknowledged>,
    /// Likewise.
    pub failed: Vec<Failed>,
}

/// The clients.
pub struct Load {
    directory: String,
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    book: Mutex<Book>,
    stop: AtomicBool,
}

impl Load {
    /// Makes `directory`, and begins with `clients` clients of each of `nodes`; each looks for its files
    /// through the next of them.
    pub async fn start(cluster: &Cluster, directory: &str, nodes: &[usize], clients: usize) -> Load {
        cluster
            .any_client()
            .await
            .create(directory, FileType::Directory)
            .await
            .unwrap();
        let shared = Arc::<Shared>::default();
        let clients = nodes
            .iter()
            .enumerate()
            .flat_map(|(at, node)| {
                (0..clients).map(move |client| (*node, nodes[(at + 1) % nodes.len()], client))
            })
            .map(|(node, other, client)| {
                let prefix = format!("{directory}/n{node}-c{client}");
                let (writer, reader) = ((node, cluster.raw(node)), (other, cluster.raw(other)));
                tokio::spawn(create_files(writer, reader, prefix, shared.clone()))
            })
            .collect();
        Load {
            directory: directory.to_owned(),
            shared,
            clients,
        }
    }

    /// How many were acknowledged so far.
    pub fn count(&self) -> usize {
        self.shared.book.lock().unwrap().acknowledged.len()
    }

    /// How many were acknowledged so far through this node.
    pub fn count_of(&self, node: usize) -> usize {
        self.shared
            .book
            .lock()
            .unwrap()
            .acknowledged
            .iter()
            .filter(|done| done.node == node)
            .count()
    }

    /// Waits until this many more are acknowledged.
    pub async fn goes_on(&self, more: usize) {
        let goal = self.count() + more;
        until(&format!("{more} more creates"), EVENTUALLY, async || {
            (self.count() >= goal).then_some(())
        })
        .await;
    }

    /// Waits until this many more are acknowledged through each of these nodes.
    pub async fn goes_on_through(&self, nodes: &[usize], more: usize) {
        for node in nodes {
            let goal = self.count_of(*node) + more;
            until(
                &format!("{more} more creates through node {node}"),
                EVENTUALLY,
                async || (self.count_of(*node) >= goal).then_some(()),
            )
            .await;
        }
    }

    /// When the first one was acknowledged that was asked for after this moment.
    pub async fn first_after(&self, moment: Instant) -> Instant {
        until(
            "a create that began after it is acknowledged",
            EVENTUALLY,
            async || {
                let book = self.shared.book.lock().unwrap();
                book.acknowledged
                    .iter()
                    .rev()
                    .filter(|done| done.asked > moment)
                    .map(|done| done.answered)
                    .min()
            },
        )
        .await
    }

    /// When the first one was acknowledged after this moment, whenever it was asked for.
    pub fn first_answer_after(&self, moment: Instant) -> Option<Instant> {
        let book = self.shared.book.lock().unwrap();
        let answered = book.acknowledged.iter().map(|done| done.answered);
        answered.filter(|at| *at > moment).min()
    }

    /// The longest time without an acknowledgement, from `since` on.
    pub fn longest_pause(&self, since: Instant) -> Duration {
        let book = self.shared.book.lock().unwrap();
        let mut moments: Vec<_> = book
            .acknowledged
            .iter()
            .map(|done| done.answered)
            .filter(|at| *at >= since)
            .collect();
        moments.insert(0, since);
        moments
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap_or_default()
    }

    /// Lets every client finish its request, and gives what was written down.
    pub async fn stop(self) -> Done {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        let book = std::mem::take(&mut *self.shared.book.lock().unwrap());
        Done {
            directory: self.directory,
            book,
        }
    }
}

/// What a [`Load`] did.
pub struct Done {
    /// Where.
    pub directory: String,
    /// What came of it.
    pub book: Book,
}

impl Done {
    /// Asserts that everything acknowledged is seen through each of these nodes.
    pub async fn is_seen_through(&self, cluster: &Cluster, nodes: &[usize]) {
        for n in nodes {
            let seen: BTreeSet<_> = list(cluster, *n, &self.directory).await.into_iter().collect();
            let missing: Vec<_> = self
                .book
                .acknowledged
                .iter()
                .filter(|done| !seen.contains(&done.path))
                .take(10)
                .collect();
            assert!(
                missing.is_empty(),
                "acknowledged, but not seen through node {n}: {missing:#?}"
            );
        }
    }
}

/// The paths in a directory, through one node.
pub async fn list(cluster: &Cluster, n: usize, directory: &str) -> Vec<String> {
    let client = cluster.client(n).await;
    client
        .list(directory)
        .await
        .unwrap()
        .into_iter()
        .map(|entry| entry.path)
        .collect()
}

/// A node, and a client of it alone.
type At = (usize, MetaServerServiceClient<Channel>);

/// Looks that a client may have under way: one at a node that does not answer must not keep it from
/// writing.
const LOOKS: usize = 4;

async fn create_files(mut writer: At, reader: At, prefix: String, shared: Arc<Shared>) {
    let mut looks = JoinSet::new();
    let mut number = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        number += 1;
        let path = format!("{prefix}-{number:06}");
        let request = CreateNodeRequest {
            path: path.clone(),
            r#type: FileType::File as i32,
        };
        let asked = Instant::now();
        if let Err(status) = writer.1.create_node(request).await {
            shared.fails(writer.0, &path, asked, status).await;
            continue;
        }
        let done = Acknowledged {
            path: path.clone(),
            node: writer.0,
            asked,
            answered: Instant::now(),
        };
        shared.book.lock().unwrap().acknowledged.push(done);
        while let Some(look) = looks.try_join_next() {
            look.unwrap();
        }
        if looks.len() < LOOKS {
            looks.spawn(look(reader.clone(), path, shared.clone()));
        }
    }
    while let Some(look) = looks.join_next().await {
        look.unwrap();
    }
}

async fn look(mut reader: At, path: String, shared: Arc<Shared>) {
    let asked = Instant::now();
    if let Err(status) = reader
        .1
        .get_node_info(GetNodeInfoRequest { path: path.clone() })
        .await
    {
        shared.fails(reader.0, &path, asked, status).await;
    }
}

impl Shared {
    async fn fails(&self, node: usize, path: &str, asked: Instant, status: Status) {
        let failed = Failed {
            node,
            asked,
            took: asked.elapsed(),
            status,
        };
        // "No such file" would be a lie.
        let honest = [
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::Unknown,
            Code::Cancelled,
            Code::Internal,
            Code::ResourceExhausted,
        ];
        assert!(honest.contains(&failed.status.code()), "{path}: {failed:?}");
        self.book.lock().unwrap().failed.push(failed);
        // A server that is gone refuses at once: no hot loop.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
