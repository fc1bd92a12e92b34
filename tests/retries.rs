//! Requests that come again after an answer was lost: with a request id, and, as from the clients in the
//! field, without one.

#![allow(clippy::unwrap_used)]

#[path = "faults/bytes.rs"]
#[allow(dead_code)]
mod bytes;
#[path = "faults/disk.rs"]
#[allow(dead_code)]
mod disk;
#[path = "faults/machine.rs"]
#[allow(dead_code)]
mod machine;
mod support;

use std::net::IpAddr;
use std::time::Duration;

use machine::Preload;
use minfs::proto::dfs::meta_server_service_client::MetaServerServiceClient;
use minfs::proto::dfs::{
    CreateNodeRequest, DeleteNodeRequest, FileType, FinalizeWriteRequest, GetBlockLocationsRequest,
    GetNodeInfoRequest,
};
use support::cluster::{Cluster, EVENTUALLY, Setup, turn};
use support::data_servers::Fleet;
use support::wait::until;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// How slow flushes are while an answer is to get lost: nothing commits faster.
const SLOW: Duration = Duration::from_millis(400);

type Meta = MetaServerServiceClient<Channel>;

fn create(path: &str) -> CreateNodeRequest {
    CreateNodeRequest {
        path: path.to_owned(),
        r#type: FileType::File.into(),
    }
}

fn delete(path: &str) -> DeleteNodeRequest {
    DeleteNodeRequest {
        path: path.to_owned(),
        recursive: false,
    }
}

async fn exists(meta: &mut Meta, path: &str) -> bool {
    let path = path.to_owned();
    meta.get_node_info(GetNodeInfoRequest { path }).await.is_ok()
}

fn code<T>(answer: Result<T, Status>) -> Code {
    answer.err().map_or(Code::Ok, |status| status.code())
}

/// A client of this node whose address is `from`.
fn client_from(cluster: &Cluster, n: usize, from: [u8; 4]) -> Meta {
    let endpoint = Endpoint::from_shared(format!("http://{}", cluster.node(n).grpc_addr)).unwrap();
    let from: IpAddr = from.into();
    Meta::new(endpoint.local_address(Some(from)).connect_lazy())
}

/// Waits until the leader has an entry in its log that it had not, with slow flushes: it is under way, and
/// not yet committed.
async fn under_way(cluster: &mut Cluster, leader: usize, before: Option<u64>) {
    cluster
        .until_status(leader, "has the request in its log", |status| {
            status.last_log_index > before
        })
        .await;
}

struct Lost {
    cluster: Cluster,
    preload: Preload,
    leader: usize,
    gateway: usize,
}

impl Lost {
    async fn begin() -> Lost {
        let mut cluster = Cluster::new(Setup::default());
        let preload = Preload::install(&mut cluster);
        cluster.bootstrap(0);
        for n in 1..cluster.len() {
            cluster.start(n);
        }
        let leader = cluster.complete().await;
        let gateway = cluster.others(leader)[0];
        Lost {
            cluster,
            preload,
            leader,
            gateway,
        }
    }

    fn flushes(&self, by: Option<Duration>) {
        for n in self.cluster.all() {
            match by {
                Some(by) => self.preload.slow_flushes(n, by),
                None => self.preload.flushes_as_usual(n),
            }
        }
    }

    /// Sends a request to `n`; once it is under way, `strike` sees to it that the answer gets lost. Returns
    /// when it has committed all the same.
    async fn lose(
        &mut self,
        request: impl Future<Output = ()> + Send + 'static,
        strike: impl FnOnce(&mut Cluster),
        committed: impl AsyncFn(&mut Meta) -> bool,
    ) {
        let before = self.cluster.answers(self.leader).await.last_log_index;
        self.flushes(Some(SLOW));
        let request = tokio::spawn(request);
        under_way(&mut self.cluster, self.leader, before).await;
        assert!(!request.is_finished(), "not before it is flushed");
        strike(&mut self.cluster);
        // The client goes away.
        request.abort();
        let _ = request.await;
        self.flushes(None);
        let mut meta = self.cluster.raw(self.leader);
        until("it has committed all the same", EVENTUALLY, async || {
            committed(&mut meta).await.then_some(())
        })
        .await;
    }
}

async fn send_create(mut meta: Meta, path: &'static str) {
    let _ = meta.create_node(create(path)).await;
}

async fn send_delete(mut meta: Meta, path: &'static str) {
    let _ = meta.delete_node(delete(path)).await;
}

#[tokio::test]
async fn a_repeat_without_an_id_gets_the_answer_that_was_lost_and_a_second_request_its_refusal() {
    let _turn = turn();
    let mut lost = Lost::begin().await;
    let (leader, gateway) = (lost.leader, lost.gateway);
    let third = lost.cluster.others(leader)[1];

    // Delivered answers: a second request is what it is, wherever it comes in.
    let mut at_leader = lost.cluster.raw(leader);
    let mut at_gateway = lost.cluster.raw(gateway);
    at_gateway.create_node(create("/delivered")).await.unwrap();
    at_leader.create_node(create("/gone")).await.unwrap();
    at_gateway.delete_node(delete("/gone")).await.unwrap();
    for meta in [&mut at_leader, &mut at_gateway] {
        assert_eq!(
            code(meta.create_node(create("/delivered")).await),
            Code::AlreadyExists
        );
        assert_eq!(code(meta.delete_node(delete("/gone")).await), Code::NotFound);
    }

    // The client of a follower goes away before the answer.
    let request = send_create(lost.cluster.raw(gateway), "/left");
    lost.lose(request, |_| {}, async |meta| exists(meta, "/left").await)
        .await;
    let mut stranger = client_from(&lost.cluster, leader, [127, 0, 0, 2]);
    assert_eq!(
        code(stranger.create_node(create("/left")).await),
        Code::AlreadyExists
    );
    assert_eq!(code(at_leader.create_node(create("/left")).await), Code::Ok);
    assert_eq!(
        code(at_leader.create_node(create("/left")).await),
        Code::AlreadyExists,
        "once"
    );

    // The same with a delete, at the leader itself, and repeated at a follower.
    at_leader.create_node(create("/doomed")).await.unwrap();
    let request = send_delete(lost.cluster.raw(leader), "/doomed");
    lost.lose(request, |_| {}, async |meta| !exists(meta, "/doomed").await)
        .await;
    assert_eq!(code(at_gateway.delete_node(delete("/doomed")).await), Code::Ok);
    assert_eq!(
        code(at_gateway.delete_node(delete("/doomed")).await),
        Code::NotFound,
        "once"
    );

    // The follower that took the request dies with its answer; the SDK goes to the leader then.
    let request = send_create(lost.cluster.raw(gateway), "/orphaned");
    lost.lose(
        request,
        |cluster| cluster.kill(gateway),
        async |meta| exists(meta, "/orphaned").await,
    )
    .await;
    assert_eq!(code(at_leader.create_node(create("/orphaned")).await), Code::Ok);
    assert_eq!(
        code(at_leader.create_node(create("/orphaned")).await),
        Code::AlreadyExists
    );
    lost.cluster.start(gateway);
    lost.cluster.complete().await;
    lost.cluster.level().await;

    // The leader itself dies; whoever leads next remembers what it has applied.
    let before = lost.cluster.answers(third).await.last_log_index;
    lost.flushes(Some(SLOW));
    let request = tokio::spawn(send_create(lost.cluster.raw(leader), "/inherited"));
    for n in [third, gateway] {
        under_way(&mut lost.cluster, n, before).await;
    }
    lost.cluster.kill(leader);
    let _ = request.await;
    lost.flushes(None);
    let heir = lost.cluster.leader().await;
    let mut meta = lost.cluster.raw(heir);
    until(
        "the entry is committed by the next leader",
        EVENTUALLY,
        async || exists(&mut meta, "/inherited").await.then_some(()),
    )
    .await;
    assert_eq!(code(meta.create_node(create("/inherited")).await), Code::Ok);
    assert_eq!(
        code(meta.create_node(create("/inherited")).await),
        Code::AlreadyExists
    );
}

fn named<T>(id: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("minfs-request-id", id.parse().unwrap());
    request
}

/// What the four changes of a file's life answer, each under an id of its own.
async fn life(meta: &mut Meta, ids: &str, inode: Option<u64>) -> (Code, u64, Vec<u64>, Code, Code) {
    let path = "/named".to_owned();
    let created = meta
        .create_node(named(&format!("{ids}-create"), create(&path)))
        .await;
    let allocate = GetBlockLocationsRequest {
        path: path.clone(),
        size: 3 * (4 << 20),
        ..GetBlockLocationsRequest::default()
    };
    let allocated = meta
        .get_block_locations(named(&format!("{ids}-allocate"), allocate))
        .await;
    let allocated = allocated.unwrap().into_inner();
    let finalize = FinalizeWriteRequest {
        path: path.clone(),
        inode: inode.unwrap_or(allocated.inode),
        size: 100,
        md5: "md5".to_owned(),
        ..FinalizeWriteRequest::default()
    };
    let finalized = meta
        .finalize_write(named(&format!("{ids}-finalize"), finalize))
        .await;
    let deleted = meta
        .delete_node(named(&format!("{ids}-delete"), delete(&path)))
        .await;
    let blocks = allocated
        .block_locations
        .iter()
        .map(|block| block.block_id)
        .collect();
    (
        code(created),
        allocated.inode,
        blocks,
        code(finalized),
        code(deleted),
    )
}

#[tokio::test]
async fn a_repeat_with_an_id_gets_the_first_answer_across_failovers_and_snapshots() {
    let _turn = turn();
    let setup = Setup {
        snapshot_interval: "200ms",
        snapshot_threshold: 40,
        ..Setup::default()
    };
    let mut cluster = Cluster::formed(setup).await;
    let leader = cluster.leader().await;
    let follower = cluster.others(leader)[0];
    let fleet = Fleet::start(&cluster, 4).await;
    let first = life(&mut cluster.raw(follower), "one", None).await;
    assert_eq!((first.0, first.3, first.4), (Code::Ok, Code::Ok, Code::Ok));
    assert_eq!(first.2.len(), 3);
    let refused = delete("/never");
    let answer = cluster
        .raw(leader)
        .delete_node(named("refused", refused.clone()))
        .await;
    assert_eq!(code(answer), Code::NotFound);
    cluster.raw(leader).create_node(create("/never")).await.unwrap();

    // Nothing of it would succeed, or give the same numbers, if it were done again.
    assert_eq!(life(&mut cluster.raw(leader), "one", Some(first.1)).await, first);

    // Across a failover.
    cluster.kill(leader);
    let heir = cluster.leader().await;
    assert_eq!(life(&mut cluster.raw(heir), "one", Some(first.1)).await, first);

    // On a node that was filled from a snapshot and leads: the one that was killed, on a new disk.
    cluster.wipe(leader);
    let mut meta = cluster.raw(heir);
    let mut n = 0;
    until(
        "a snapshot has replaced the log of that time",
        EVENTUALLY,
        async || {
            meta.create_node(create(&format!("/{n:04}"))).await.unwrap();
            n += 1;
            let purged = cluster.status(heir).await?.purged_index?;
            (purged > 60).then_some(())
        },
    )
    .await;
    cluster.start(leader);
    cluster.complete().await;
    for _ in 0..10 {
        let leads = cluster.leader().await;
        if leads == leader {
            break;
        }
        assert!(cluster.terminate(leads).await.success());
        cluster.start(leads);
        cluster.complete().await;
    }
    assert_eq!(cluster.leader().await, leader, "it never came to lead");
    let answers = life(&mut cluster.raw(leader), "one", Some(first.1)).await;
    assert_eq!(answers, first);
    let answer = cluster.raw(leader).delete_node(named("refused", refused)).await;
    assert_eq!(code(answer), Code::NotFound, "a refusal is an answer, too");

    // One id, two requests, of another kind and of the same one: it is said, and nothing is done.
    let mut meta = cluster.raw(leader);
    let answer = meta.delete_node(named("one-create", delete("/never"))).await;
    assert_eq!(code(answer), Code::InvalidArgument);
    let answer = meta.create_node(named("one-create", create("/another"))).await;
    assert_eq!(code(answer), Code::InvalidArgument);
    assert!(!exists(&mut meta, "/another").await);
    let long = named(&"x".repeat(65), delete("/never"));
    let answer = cluster.raw(leader).delete_node(long).await;
    assert_eq!(code(answer), Code::InvalidArgument);
    assert!(exists(&mut cluster.raw(leader), "/never").await);
    fleet.stop().await;
}

#[tokio::test]
async fn allocations_and_finalizations_succeed_again_by_themselves() {
    let _turn = turn();
    let mut cluster = Cluster::formed(Setup::default()).await;
    let leader = cluster.leader().await;
    let fleet = Fleet::start(&cluster, 4).await;
    let mut meta = cluster.raw(leader);
    let allocate = GetBlockLocationsRequest {
        path: "/file".to_owned(),
        size: 100,
        ..GetBlockLocationsRequest::default()
    };
    let first = meta
        .get_block_locations(allocate.clone())
        .await
        .unwrap()
        .into_inner();
    let again = meta.get_block_locations(allocate).await.unwrap().into_inner();
    assert_eq!(again.inode, first.inode);
    assert_ne!(
        again.block_locations, first.block_locations,
        "nobody else can write to these"
    );
    let finalize = FinalizeWriteRequest {
        path: "/file".to_owned(),
        inode: again.inode,
        size: 100,
        md5: "md5".to_owned(),
        ..FinalizeWriteRequest::default()
    };
    for _ in 0..2 {
        meta.finalize_write(finalize.clone()).await.unwrap();
    }
    fleet.stop().await;
}
