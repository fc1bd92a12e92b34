//! The DataServer: keeps blocks on a disk, serves them, and does what the leader says.
//!
//! It shares nothing with the MetaServer but the wire. In reading order:
//!
//! 1. [`settings`]: the command line
//! 2. [`block_store`]: blocks as files, verified; the only part that touches the disk
//! 3. `peers`, `pipeline`, `fetch`: other DataServers; a block on its way to several disks, or from one
//! 4. `service`: the gRPC service
//! 5. `allegiance`, `heartbeat`, `orders`: the leader, and what it wants done
//! 6. `registration`: the key in etcd
//! 7. `scrubber`: finds silent damage
//!
//! [`DataServer`] puts them together. `src/bin/dataserver.rs` runs one; tests run several in one process.

mod allegiance;
pub mod block_store;
mod fetch;
mod heartbeat;
mod orders;
mod peers;
mod pipeline;
mod registration;
mod scrubber;
mod service;
pub mod settings;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_reflection::server::Builder as Reflection;

use self::allegiance::Allegiance;
use self::block_store::BlockStore;
use self::heartbeat::{Heart, Rhythm};
use self::orders::Orders;
use self::peers::{CONNECTION_WINDOW, Myself, Peers, STREAM_WINDOW};
use self::registration::Registration;
use self::service::Service;
pub use self::settings::{Arguments, Settings};
use crate::client::Source;
use crate::proto::DESCRIPTORS;
use crate::proto::dfs::data_server_service_server::DataServerServiceServer;

/// A client that is silent for so long is asked whether it is there, and has as long to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// With many blocks, looking at all their files takes time: this part of it at most (one in so many).
const RESCAN_SHARE: u32 = 20;

/// Why a DataServer did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nobody to report to.
    #[error("neither a MetaServer nor etcd is given: nobody would know of this DataServer")]
    NobodyToReportTo,
    /// The data directory cannot be used.
    #[error("{0}")]
    Store(io::Error),
    /// The port cannot be used.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// Where it was to listen.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The gRPC server cannot be put together.
    #[error("gRPC server: {0}")]
    Grpc(String),
}

/// A DataServer that runs. Dropping it ends it at once, as a crash would; [`stop`](Self::stop) is the
/// friendly way.
#[derive(Debug)]
pub struct DataServer {
    id: String,
    addr: String,
    local_addr: SocketAddr,
    store: BlockStore,
    stop_timeout: Duration,
    stop_serving: Option<oneshot::Sender<()>>,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    leave_etcd: watch::Sender<bool>,
    registration: Option<JoinHandle<()>>,
    /// Heartbeats, orders, scrubber, rescans.
    tasks: JoinSet<()>,
}

impl DataServer {
    /// Takes the data directory, listens, and starts to report. That nobody answers is no error.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(settings: Settings) -> Result<DataServer, StartError> {
        let source = match (settings.metaservers.is_empty(), settings.etcd.is_empty()) {
            (false, _) => Source::Servers(settings.metaservers.clone()),
            (true, false) => Source::Etcd(settings.etcd.clone()),
            (true, true) => return Err(StartError::NobodyToReportTo),
        };
        let (store, allegiance) = open(&settings).await?;
        let addr = settings.listen;
        let listen_error = |source| StartError::Listen { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(listen_error)?;
        let local_addr = listener.local_addr().map_err(listen_error)?;
        let port = local_addr.port();
        let id = settings.id.clone().unwrap_or_else(|| format!("ds-{port}"));
        let addr = settings
            .advertise
            .clone()
            .unwrap_or_else(|| format!("localhost:{port}"));
        announce(&id, &addr, &store, &allegiance);

        let me = Myself {
            advertised: addr.clone(),
            listening: local_addr,
        };
        let peers = Peers::new(me);
        let copies = Arc::new(Semaphore::new(settings.max_copies));
        let mut tasks = JoinSet::new();
        let orders = Orders::start(
            store.clone(),
            peers.clone(),
            copies.clone(),
            settings.max_copies,
            settings.stall_timeout,
            &mut tasks,
        );
        let service = Service::new(
            store.clone(),
            peers,
            settings.max_writes,
            copies,
            settings.stall_timeout,
        );
        let (stop_serving, stopped) = oneshot::channel();
        let serving = serve(service, listener, stopped)?;
        let heart = Heart {
            id: id.clone(),
            addr: addr.clone(),
            source,
            store: store.clone(),
            orders,
            allegiance,
            rhythm: Rhythm::new(settings.heartbeat_interval),
        };
        tasks.spawn(heart.run());
        tasks.spawn(rescan(store.clone(), settings.rescan_interval));
        if settings.scrub_rate > 0 {
            tasks.spawn(scrubber::run(
                store.clone(),
                settings.scrub_rate,
                settings.scrub_interval,
            ));
        }
        let (leave_etcd, leaving) = watch::channel(false);
        let registration = (!settings.etcd.is_empty()).then(|| {
            let registration = Registration {
                endpoints: settings.etcd,
                prefix: settings.etcd_prefix,
                id: id.clone(),
                addr: addr.clone(),
            };
            tokio::spawn(registration.run(leaving))
        });
        Ok(DataServer {
            id,
            addr,
            local_addr,
            store,
            stop_timeout: settings.stop_timeout,
            stop_serving: Some(stop_serving),
            serving,
            leave_etcd,
            registration,
            tasks,
        })
    }

    /// Its name in the cluster.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// `host:port`, as others know it.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where its blocks lie.
    pub fn data_dir(&self) -> &Path {
        self.store.dir()
    }

    /// Its blocks.
    pub fn store(&self) -> &BlockStore {
        &self.store
    }

    /// Resolves if the server ends without being told to, with the reason.
    pub async fn failed(&mut self) -> String {
        match (&mut self.serving).await {
            Ok(Ok(())) => "the gRPC server ended".to_owned(),
            Ok(Err(e)) => format!("the gRPC server ended: {e}"),
            Err(e) => format!("the gRPC server ended: {e}"),
        }
    }

    /// Leaves etcd, takes no more requests, waits for those under way (within a bound), and gives the data
    /// directory back.
    pub async fn stop(mut self) {
        log::info!("stopping");
        let _ = self.leave_etcd.send(true);
        if let Some(registration) = &mut self.registration {
            let _ = registration.await;
        }
        // No more beats: after the last one, nobody is to be sent here again.
        self.tasks.shutdown().await;
        if let Some(stop) = self.stop_serving.take() {
            let _ = stop.send(());
        }
        if timeout(self.stop_timeout, &mut self.serving).await.is_err() {
            log::warn!("requests were still under way after {:?}", self.stop_timeout);
        }
        let store = self.store.clone();
        let _ = tokio::task::spawn_blocking(move || store.close()).await;
        log::info!("stopped");
    }
}

impl Drop for DataServer {
    fn drop(&mut self) {
        self.serving.abort();
        if let Some(registration) = &self.registration {
            registration.abort();
        }
        // What was under way finds the store closed.
        self.store.close();
    }
}

async fn open(settings: &Settings) -> Result<(BlockStore, Allegiance), StartError> {
    let (dir, reserve) = (settings.data_dir.clone(), settings.reserved_space);
    let opened = tokio::task::spawn_blocking(move || {
        let store = BlockStore::open(&dir, reserve)?;
        let allegiance = Allegiance::open(&dir)?;
        Ok((store, allegiance))
    });
    let opened = opened.await.unwrap_or_else(|ended| Err(io::Error::other(ended)));
    opened.map_err(StartError::Store)
}

fn announce(id: &str, addr: &str, store: &BlockStore, allegiance: &Allegiance) {
    let (good, corrupt) = store.counts();
    let space = match store.space() {
        Ok(space) => format!("{} of {} MiB free", space.free >> 20, space.total >> 20),
        Err(e) => e.to_string(),
    };
    log::info!(
        "DataServer {id} at {addr}: {good} blocks, {corrupt} damaged, in {} ({space}), cluster {}",
        store.dir().display(),
        allegiance.cluster().unwrap_or("unknown")
    );
}

fn serve(
    service: Service,
    listener: TcpListener,
    stop: oneshot::Receiver<()>,
) -> Result<JoinHandle<Result<(), tonic::transport::Error>>, StartError> {
    let wrong = |e: tonic_reflection::server::Error| StartError::Grpc(e.to_string());
    let (_, health) = tonic_health::server::health_reporter();
    let router = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(u32::MAX)
        // Finds clients that vanished without a word.
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_service(DataServerServiceServer::new(service))
        .add_service(health)
        .add_service(reflection().build_v1().map_err(wrong)?)
        .add_service(reflection().build_v1alpha().map_err(wrong)?);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Ok(tokio::spawn(router.serve_with_incoming_shutdown(
        incoming,
        async {
            // Dropped without a word: the task is about to be aborted.
            if stop.await.is_err() {
                std::future::pending::<()>().await;
            }
        },
    )))
}

fn reflection() -> Reflection<'static> {
    let ours =
        Reflection::configure().register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    DESCRIPTORS
        .into_iter()
        .fold(ours, Reflection::register_encoded_file_descriptor_set)
}

/// Looks now and then at what others did to the files; the first time at once.
async fn rescan(store: BlockStore, interval: Duration) {
    // The first one reads every footer, and says nothing about how long the next will take.
    let mut share = 0;
    loop {
        let began = tokio::time::Instant::now();
        let scanning = {
            let store = store.clone();
            tokio::task::spawn_blocking(move || store.rescan())
        };
        match scanning.await {
            Ok(Ok(found)) if found == Default::default() => (),
            Ok(Ok(found)) => log::warn!(
                "somebody else changed the blocks: {} vanished, {} appeared, {} are damaged",
                found.vanished,
                found.appeared,
                found.damaged
            ),
            Ok(Err(e)) => log::warn!("the blocks cannot be listed: {e}"),
            Err(_) => return,
        }
        let took = began.elapsed();
        tokio::time::sleep_until(began + took + interval.max(took * share)).await;
        share = RESCAN_SHARE;
    }
}
