//! DataServers that exist only as their heartbeats: they advertise `0.0.0.0:PORT`, as those in the
//! field do, and beat at whichever node the cluster calls its leader.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use minfs::client::host_port;
use minfs::proto::dfs::meta_server_service_client::MetaServerServiceClient;
use minfs::proto::dfs::{GetLeaderRequest, HeartbeatRequest};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use super::cluster::{Cluster, EVENTUALLY};
use super::wait::until;

/// How often they beat.
const BEAT: Duration = Duration::from_millis(300);

/// Nobody listens there: nothing is ever sent to a DataServer.
const FIRST_PORT: u16 = 8001;

/// Some DataServers.
pub struct Fleet {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Fleet {
    /// `count` DataServers that all MetaServers' leader knows.
    pub async fn start(cluster: &Cluster, count: u16) -> Fleet {
        let metas = cluster
            .all()
            .into_iter()
            .map(|n| (cluster.node(n).grpc_addr.clone(), cluster.raw(n)))
            .collect();
        let stop = Arc::<AtomicBool>::default();
        let task = tokio::spawn(beat(metas, count, stop.clone()));
        let client = cluster.any_client().await;
        until(
            &format!("{count} DataServers are known"),
            EVENTUALLY,
            async || {
                let info = client.cluster_info().await.unwrap();
                (info.data_server.len() == usize::from(count)).then_some(())
            },
        )
        .await;
        Fleet { stop, task }
    }

    /// No beat leaves after this.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

/// Where a block on the DataServer `n` of a fleet on this machine is said to be.
pub fn addresses(count: u16) -> Vec<String> {
    (0..count)
        .map(|n| format!("127.0.0.1:{}", FIRST_PORT + n))
        .collect()
}

type Meta = (String, MetaServerServiceClient<Channel>);

async fn beat(mut metas: Vec<Meta>, count: u16, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        if let Some(leader) = find_leader(&mut metas).await {
            for n in 0..count {
                let request = HeartbeatRequest {
                    data_server_id: format!("ds-{n}"),
                    data_server_addr: format!("0.0.0.0:{}", FIRST_PORT + n),
                    free_space: 90 << 30,
                    total_capacity: 100 << 30,
                    ..HeartbeatRequest::default()
                };
                let _ = tokio::time::timeout(BEAT, metas[leader].1.heartbeat(request)).await;
            }
        }
        tokio::time::sleep(BEAT).await;
    }
}

async fn find_leader(metas: &mut [Meta]) -> Option<usize> {
    for n in 0..metas.len() {
        let asked = metas[n].1.get_leader(GetLeaderRequest {});
        if let Ok(Ok(answer)) = tokio::time::timeout(BEAT, asked).await
            && let Some(leader) = answer.into_inner().leader
        {
            return metas.iter().position(|(addr, _)| *addr == host_port(&leader));
        }
    }
    None
}
