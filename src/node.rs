//! The only wiring: builds the actors of one MetaServer, starts them and stops them.
//!
//! Order of starting: the identity first, since it locks the data directory; then what Raft needs to
//! restore itself (store, log), Raft, the actors around it, and last the servers, so that nobody is
//! let in before somebody is there. Stopping goes the other way, and begins by handing leadership
//! over while clients are still served.

use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::thread::available_parallelism;
use std::time::Duration;

use actix::prelude::*;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tonic::service::Routes;

use crate::actors::auditor::AuditorActor;
use crate::actors::data_servers::{DataServersActor, DataServersSettings};
use crate::actors::gateway::{self, GatewayActor, GatewayNeighbours, GatewaySettings};
use crate::actors::raft_node::consensus::Openraft;
use crate::actors::raft_node::membership::Membership;
use crate::actors::raft_node::messages::{HandOver, Subscribe};
use crate::actors::raft_node::peer_service::PeerServer;
use crate::actors::raft_node::peers::GrpcPeers;
use crate::actors::raft_node::repeats::Memory;
use crate::actors::raft_node::snapshots::{SnapshotPolicy, take_snapshots};
use crate::actors::raft_node::space::watch_space;
use crate::actors::raft_node::{RaftNodeActor, RaftNodeSettings, watch_raft};
use crate::actors::registrar::messages::Unregister;
use crate::actors::registrar::{Registrar, RegistrarSettings};
use crate::actors::scheduler::{SchedulerActor, SchedulerNeighbours, SchedulerSettings};
use crate::actors::store::{AppliedIndex, CloseStore, StoreActor};
use crate::background;
use crate::config::{Config, NodeSettings};
use crate::connections::{self, Threads};
use crate::raft::channels::{Channels, server_bounds};
use crate::raft::config::{RaftSettings, openraft_config};
use crate::raft::guard::Guard;
use crate::raft::identity::Identity;
use crate::raft::log_store::{LogLimits, LogStore};
use crate::raft::network::Network;
use crate::raft::recovery::cover_what_the_log_lacks;
use crate::raft::server::{Raft, RaftServer};
use crate::raft::state_machine::{StateMachine, StateMachinePort};
use crate::raft::{log_dir, snapshot_dir};
use crate::space::{self, Gauge, Space, mebibytes};
use crate::storage::{StateReader, Storage, StorageOptions, Unread};

/// How long a clean stop may take to hand leadership over.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(3);

/// How often the leader's upkeep looks for what should not wait for its next pass.
const UPKEEP_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Why a MetaServer did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory cannot be used.
    #[error("data directory {dir}: {source}")]
    Data {
        /// Which one.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// Which one.
        addr: String,
        /// Why.
        source: io::Error,
    },
    /// The threads that serve connections cannot be started.
    #[error("cannot start server.grpc_threads: {0}")]
    Threads(io::Error),
    /// Raft did not start.
    #[error("cannot start Raft: {0}")]
    Raft(String),
    /// The node stopped by itself rather than answer from a state it cannot trust.
    #[error("the node cannot go on: {0}")]
    Fatal(String),
    /// Likewise, and its disk is full: started again, it waits until there is space.
    #[error("the node cannot go on, its disk is full ({free}): {why}")]
    DiskFull {
        /// What failed.
        why: String,
        /// How little space there is, and where.
        free: String,
    },
}

/// A running MetaServer.
pub struct Node {
    raft: Raft,
    raft_node: Addr<RaftNodeActor>,
    store: Addr<StoreActor>,
    gateway: Addr<GatewayActor>,
    registrar: Addr<Registrar>,
    raft_server: JoinHandle<()>,
    watch: JoinHandle<()>,
    watch_space: JoinHandle<()>,
    gauge: Gauge,
    fatal: mpsc::Receiver<String>,
    /// Keeps the data directory locked.
    _identity: Identity,
}

impl Node {
    /// Starts a MetaServer; with `bootstrap` it forms a cluster of `raft.peers` unless there is one.
    /// To be called within an actix system. On a full disk it waits, and writes nothing, until there is
    /// enough space to start.
    ///
    /// # Errors
    /// When the data directory or an address cannot be used, or what lies there cannot be read.
    pub async fn start(settings: NodeSettings, bootstrap: bool) -> Result<Node, NodeError> {
        let config = &settings.config;
        let data = |source| NodeError::Data {
            dir: settings.data_dir.clone(),
            source,
        };
        space::until_enough_to_start(&settings.data_dir).await;
        let identity = Identity::open(&settings.data_dir, &settings.name).map_err(data)?;
        let grpc_listener = listen(&settings.grpc_listen).await?;
        let raft_listener = listen(&settings.raft_listen).await?;
        let threads = grpc_threads(config.server.grpc_threads).map_err(NodeError::Threads)?;

        let options = StorageOptions {
            dir: settings.data_dir.clone(),
            map_size: config.database.map_size,
            verify: config.database.verify_at_start,
        };
        let (storage, unread) = Storage::open_soon(&options, config.database.verify_first_up_to)
            .map_err(|error| data(error.into()))?;
        let reader = storage.reader();
        let (store, applied) = StoreActor::new(storage).map_err(data)?;
        let store = store.start();

        let channels = Channels::default();
        let raft = start_raft(&settings, &identity, &channels, &store).await?;

        let snapshots = snapshot_dir(&settings.data_dir);
        let gauge = Gauge::new(
            // An operator may have mounted a file system of its own at each.
            vec![options.dir.join("lmdb"), log_dir(&options.dir), snapshots.clone()],
            config.database.min_free_space,
            reader.clone(),
        );
        let space_now = gauge.look(None).map_err(data)?;
        let (space_sender, space) = watch::channel(space_now.clone());

        let peers = GrpcPeers::new(identity.clone(), channels);
        let (raft_node, data_servers) =
            start_raft_node(&settings, &raft, &peers, &store, (applied, space_now), &reader);
        let watch_space = actix::spawn(watch_space(
            gauge.clone(),
            space_sender,
            raft_node.clone().recipient(),
        ));
        let scheduler = SchedulerActor::new(
            SchedulerSettings {
                heartbeat_timeout: config.cluster.heartbeat_timeout,
                look_interval: UPKEEP_LOOK_INTERVAL,
                fsck_interval: config.scheduler.fsck_interval,
                gc_interval: config.scheduler.gc_interval,
                write_lease: config.scheduler.write_lease,
                orphan_grace: config.scheduler.orphan_grace,
                mass_delete_share: config.scheduler.mass_delete_share,
            },
            reader.clone(),
            SchedulerNeighbours {
                propose: raft_node.clone().recipient(),
                read_index: raft_node.clone().recipient(),
                check_health: data_servers.clone().recipient(),
                reports: data_servers.clone().recipient(),
                repair: data_servers.clone().recipient(),
                remove: data_servers.clone().recipient(),
            },
        )
        .start();
        let registrar = Registrar::new(
            RegistrarSettings {
                node_name: settings.name.clone(),
                grpc_addr: settings.peer.grpc_addr.clone(),
                endpoints: config.etcd.endpoints.clone(),
                timeout: config.etcd.timeout,
                data_server_key_prefix: config.etcd.data_server_key_prefix.clone(),
            },
            data_servers.clone().recipient(),
            data_servers.clone().recipient(),
        )
        .start();
        let (failed, fatal) = mpsc::channel(1);
        let auditor = AuditorActor::new(
            config.database.compare_interval,
            reader.clone(),
            raft_node.clone().recipient(),
            Rc::new(peers.clone()),
            failed.clone(),
        )
        .start();
        let gateway = gateway::start(
            gateway_settings(&settings, identity.incarnation()),
            GatewayNeighbours {
                propose: raft_node.clone().recipient(),
                await_read: raft_node.clone().recipient(),
                get_status: raft_node.clone().recipient(),
                heartbeat: data_servers.clone().recipient(),
                get_reports: data_servers.clone().recipient(),
                get_orders: data_servers.clone().recipient(),
                get_upkeep: scheduler.clone().recipient(),
                allow_mass_delete: scheduler.clone().recipient(),
                verify_state: auditor.recipient(),
            },
            reader.clone(),
            grpc_listener,
            threads,
        );
        for subscriber in [
            data_servers.recipient(),
            registrar.clone().recipient(),
            gateway.clone().recipient(),
        ] {
            raft_node.do_send(Subscribe(subscriber));
        }
        // Who does not know that this node leads plans nothing: nobody is told to delete a block because of a
        // record that is damaged.
        let upkeep = Subscribe(scheduler.recipient());
        match unread {
            None => raft_node.do_send(upkeep),
            Some(unread) => {
                let read = read_through(unread, raft_node.clone(), upkeep, failed.clone());
                actix::spawn(read);
            }
        }

        let raft_server =
            RaftServer::new(raft.clone(), identity.clone(), &snapshots, space.clone()).map_err(data)?;
        let peer_server = PeerServer::service(
            identity.clone(),
            bootstrap,
            raft_node.clone().recipient(),
            raft_node.clone().recipient(),
            gateway.clone().recipient(),
            space.clone(),
            reader.clone(),
        );
        let calls = max_waiting(config);
        let guard = Guard::new(identity.clone(), calls);
        let raft_server = tokio::spawn(connections::serve(
            raft_listener,
            Routes::new(guard.guard(raft_server.into_service())).add_service(guard.guard(peer_server)),
            server_bounds(calls),
            Threads::none(),
            std::future::pending(),
        ));

        let membership = Membership::new(
            raft.clone(),
            identity.clone(),
            peers,
            raft_node.clone().recipient(),
            config.raft.peers.clone(),
        );
        actix::spawn(membership.run(bootstrap));
        let policy = SnapshotPolicy {
            interval: config.raft.snapshot_interval,
            threshold: config.raft.snapshot_threshold,
        };
        actix::spawn(take_snapshots(raft.clone(), policy, space.clone()));
        let silence = config.raft.timing().election_timeout_max * 2;
        let watched = watch_raft(raft.clone(), raft_node.clone(), silence);
        let watch = actix::spawn(async move {
            // Nobody is told once the node is being stopped.
            let _ = failed.send(watched.await).await;
        });

        log::info!(
            "{} serves clients on {} and peers on {}, data in {}, incarnation {}",
            settings.name,
            settings.grpc_listen,
            settings.raft_listen,
            settings.data_dir.display(),
            identity.incarnation()
        );
        Ok(Node {
            raft,
            raft_node,
            store,
            gateway,
            registrar,
            raft_server,
            watch,
            watch_space,
            gauge,
            fatal,
            _identity: identity,
        })
    }

    /// Waits until the node cannot go on, and says why: an I/O error in the log or the state.
    pub async fn failed(&mut self) -> NodeError {
        let why = self.fatal.recv().await;
        let why = why.unwrap_or_else(|| "Raft has stopped".to_owned());
        // It may have filled up since the last look.
        match self.gauge.look(None) {
            Ok(space) if space.is_used_up() => {
                let (free, dir) = (mebibytes(space.measured.free), space.measured.dir.display());
                let free = format!("{free} free in {dir}");
                NodeError::DiskFull { why, free }
            }
            Ok(_) | Err(_) => NodeError::Fatal(why),
        }
    }

    /// Stops cleanly: hands leadership over while clients are still served, lets requests finish,
    /// takes the node out of discovery, and flushes the state.
    pub async fn stop(self) {
        log::info!("stopping");
        match self
            .raft_node
            .send(HandOver {
                within: HAND_OVER_WITHIN,
            })
            .await
        {
            Ok(true) => {}
            Ok(false) => log::warn!("no other node took leadership over; the others will elect a leader"),
            Err(error) => log::warn!("leadership was not handed over: {error}"),
        }
        if let Err(error) = self.gateway.send(gateway::messages::Stop).await {
            log::warn!("requests under way were cut off: {error}");
        }
        if let Err(error) = self.registrar.send(Unregister).await {
            log::warn!("not taken out of discovery: {error}");
        }
        // Whoever uses Raft goes first. Peers' streams never end by themselves: nobody waits for them.
        self.watch.abort();
        self.watch_space.abort();
        self.raft_server.abort();
        if let Err(error) = self.raft.shutdown().await {
            log::warn!("Raft did not stop cleanly: {error}");
        }
        match self.store.send(CloseStore).await {
            Ok(Ok(())) => log::info!("stopped"),
            Ok(Err(error)) => log::warn!("the state was not flushed: {error}"),
            Err(error) => log::warn!("the store did not close: {error}"),
        }
    }
}

/// Reads a large state through while it is served, then lets the upkeep begin; says why the node must stop, if
/// it must.
async fn read_through(
    unread: Unread,
    raft_node: Addr<RaftNodeActor>,
    upkeep: Subscribe,
    failed: mpsc::Sender<String>,
) {
    let why = match background::run("verify", move || unread.read_through()).await {
        Ok(Ok(())) => return raft_node.do_send(upkeep),
        Ok(Err(error)) => format!("{error}; it was verified while it was served already"),
        Err(error) => format!("the state cannot be verified: {error}"),
    };
    let _ = failed.send(why).await;
}

async fn listen(addr: &str) -> Result<TcpListener, NodeError> {
    TcpListener::bind(addr).await.map_err(|source| NodeError::Listen {
        addr: addr.to_owned(),
        source,
    })
}

async fn start_raft(
    settings: &NodeSettings,
    identity: &Identity,
    channels: &Channels,
    store: &Addr<StoreActor>,
) -> Result<Raft, NodeError> {
    let timing = settings.config.raft.timing();
    let raft_config = openraft_config(&RaftSettings {
        heartbeat: timing.heartbeat_interval,
        election_min: timing.election_timeout_min,
        election_max: timing.election_timeout_max,
        entries_kept: settings.config.raft.snapshot_threshold,
        ..RaftSettings::default()
    })
    .map_err(|error| NodeError::Raft(error.to_string()))?;
    let log_dir = log_dir(&settings.data_dir);
    let limits = LogLimits::keeping(settings.config.raft.snapshot_threshold);
    let data = |source| NodeError::Data {
        dir: settings.data_dir.clone(),
        source,
    };
    let mut log = LogStore::open(&log_dir, limits).map_err(data)?;
    let state = StateMachinePort {
        applied: store.clone().recipient(),
        apply: store.clone().recipient(),
        build_snapshot: store.clone().recipient(),
        install_snapshot: store.clone().recipient(),
        current_snapshot: store.clone().recipient(),
    };
    cover_what_the_log_lacks(&mut log, &state).await.map_err(data)?;
    let state_machine = StateMachine::new(state, log.clone());
    let network = Network::new(identity.clone(), channels.clone());
    Raft::new(identity.incarnation(), raft_config, network, log, state_machine)
        .await
        .map_err(|error| NodeError::Raft(error.to_string()))
}

/// The two know each other: proposals need plans, and registrations are proposals.
fn start_raft_node(
    settings: &NodeSettings,
    raft: &Raft,
    peers: &GrpcPeers,
    store: &Addr<StoreActor>,
    (applied, space): (AppliedIndex, Space),
    reader: &StateReader,
) -> (Addr<RaftNodeActor>, Addr<DataServersActor>) {
    let config = &settings.config;
    let (sender, mut data_servers) = oneshot::channel();
    let raft_node = RaftNodeActor::create(|ctx| {
        let actor = DataServersActor::new(
            DataServersSettings {
                heartbeat_timeout: config.cluster.heartbeat_timeout,
                permanent_down_threshold: config.cluster.permanent_down_threshold,
                block_size: config.scheduler.block_size,
                replication: config.cluster.default_replication,
                max_concurrent_repairs: config.scheduler.max_concurrent_repairs,
            },
            reader.clone(),
            ctx.address().recipient(),
        )
        .start();
        let plan = actor.clone().recipient();
        let _ = sender.send(actor);
        RaftNodeActor::new(
            RaftNodeSettings {
                name: settings.name.clone(),
                reads: config.reads,
                max_waiting: max_waiting(config),
            },
            Openraft::new(raft.clone()),
            peers.clone().port(),
            plan,
            Memory {
                find: store.clone().recipient(),
                give: store.clone().recipient(),
            },
            applied,
            space,
        )
    });
    match data_servers.try_recv() {
        Ok(data_servers) => (raft_node, data_servers),
        Err(_) => unreachable!("`create` has run its closure, which sends the address"),
    }
}

/// What this node may have to answer for when it leads: its own clients' requests, and those of the others'.
fn max_waiting(config: &Config) -> usize {
    config.server.max_in_flight * config.raft.peers.len().max(1)
}

/// The threads that serve clients; `wanted`: so many, instead of what fits the processors that this process
/// may use.
fn grpc_threads(wanted: Option<usize>) -> io::Result<Threads> {
    let count = match (wanted, available_parallelism()) {
        (Some(count), _) => count,
        (None, Ok(processors)) => Threads::fitting(processors.get()),
        (None, Err(error)) => {
            log::warn!("server.grpc_threads: 0, because the processors cannot be counted: {error}");
            0
        }
    };
    Threads::start(count, "grpc")
}

fn gateway_settings(settings: &NodeSettings, incarnation: u64) -> GatewaySettings {
    let config = &settings.config;
    GatewaySettings {
        node_name: settings.name.clone(),
        incarnation,
        grpc_addr: settings.peer.grpc_addr.clone(),
        peers: config
            .raft
            .peers
            .iter()
            .map(|peer| (peer.id.clone(), peer.grpc_addr.clone()))
            .collect(),
        request_timeout: config.server.request_timeout,
        max_in_flight: config.server.max_in_flight,
        connections: connections::fit(config.server.max_connections),
        max_file_size: config.cluster.max_file_size,
    }
}
