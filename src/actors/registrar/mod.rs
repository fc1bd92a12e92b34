//! The registrar: this node's place in etcd, where clients and DataServers look for it, and the
//! DataServers' keys there.
//!
//! It owns what etcd is to say of this node and which DataServers have been announced. `raft_node`
//! tells it who leads; it tells `data_servers` who is named in etcd. Two tasks do the talking, each
//! with a connection of its own, and report by message: `registration` and `data_server_watch`.
//! Nothing in the server waits for etcd, and nothing of it is needed to serve metadata.
//!
//! Invariant: etcd holds no two claims to lead that registrars wrote (`claims`).
//!
//! In reading order: `messages`, this file, `discovery_json`, `claims`, `registration`,
//! `data_server_keys`, `data_server_watch`, `supervisor`, `link`.

mod claims;
mod data_server_keys;
mod data_server_watch;
pub mod discovery_json;
mod link;
pub mod messages;
mod registration;
mod supervisor;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler, MailboxError, Recipient, ResponseFuture};
use tokio::sync::watch;

use self::claims::Standing;
use self::data_server_keys::{Directory, News};
use self::messages::{
    DataServerKeyGone, DataServerKeyPut, DataServersListed, EtcdLost, EtcdReached, Part, Unregister,
};
use crate::actors::data_servers::messages::{DataServerAnnounced, DataServerWithdrawn};
use crate::actors::raft_node::messages::LeadershipChanged;

/// Where the MetaServers' keys are; the rest of the key is the node's name.
pub const NODES_PREFIX: &str = "/minfs/metaServer/nodes/";

/// How long etcd keeps the key of a node that has died.
pub const LEASE_TTL: Duration = Duration::from_secs(10);

/// The longest time that [`Unregister`] takes.
pub const FAREWELL: Duration = Duration::from_secs(2);

/// What the registrar has to know.
#[derive(Clone, Debug)]
pub struct RegistrarSettings {
    /// This node's name: the last part of its key.
    pub node_name: String,
    /// Where clients reach this node, `host:port`.
    pub grpc_addr: String,
    /// etcd's endpoints, `host:port` or `http://host:port`. None: discovery is off.
    pub endpoints: Vec<String>,
    /// The bound for each connection attempt and each request.
    pub timeout: Duration,
    /// Under which the DataServers' keys are.
    pub data_server_key_prefix: String,
}

/// What etcd is to say of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// It is there.
    Present(Standing),
    /// Nothing: it is leaving.
    Gone,
}

/// The actor.
pub struct Registrar {
    settings: RegistrarSettings,
    leadership: LeadershipChanged,
    /// Read by the tasks; they end when it is dropped.
    wish: Rc<watch::Sender<Wish>>,
    directory: Directory,
    neighbours: Rc<Neighbours>,
    reach: Reach,
}

impl Registrar {
    /// A registrar that connects when it is started, and tells the two recipients what it finds.
    pub fn new(
        settings: RegistrarSettings,
        announced: Recipient<DataServerAnnounced>,
        withdrawn: Recipient<DataServerWithdrawn>,
    ) -> Registrar {
        Registrar {
            settings,
            leadership: LeadershipChanged::UNKNOWN,
            wish: Rc::new(watch::Sender::new(Wish::Present(Standing::default()))),
            directory: Directory::default(),
            neighbours: Rc::new(Neighbours {
                announced,
                withdrawn,
                gone: Cell::new(false),
            }),
            reach: Reach::default(),
        }
    }
}

impl Actor for Registrar {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        if self.settings.endpoints.is_empty() {
            log::info!("etcd.endpoints is empty: discovery is off");
            return;
        }
        let this = ctx.address().downgrade();
        let (settings, wish) = (&self.settings, &self.wish);
        actix::spawn(registration::run(
            settings.clone(),
            wish.subscribe(),
            this.clone(),
        ));
        actix::spawn(data_server_watch::run(settings.clone(), wish.subscribe(), this));
    }
}

impl Handler<LeadershipChanged> for Registrar {
    type Result = ();

    fn handle(&mut self, news: LeadershipChanged, _: &mut Context<Self>) {
        if !self.leadership.accept(news) {
            return;
        }
        let leadership = &self.leadership;
        self.wish.send_if_modified(|wish| match wish {
            Wish::Present(standing) => {
                let before = std::mem::replace(standing, standing.after(leadership));
                *standing != before
            }
            Wish::Gone => false,
        });
    }
}

impl Handler<Unregister> for Registrar {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Unregister, _: &mut Context<Self>) -> ResponseFuture<()> {
        self.wish.send_replace(Wish::Gone);
        let wish = self.wish.clone();
        Box::pin(async move {
            // The tasks are done when nobody reads the wish any more. They keep the bound, too, log
            // what came of it, and are given a moment to do so.
            let _ = tokio::time::timeout(FAREWELL + FAREWELL / 8, wish.closed()).await;
        })
    }
}

impl Handler<DataServersListed> for Registrar {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, listed: DataServersListed, _: &mut Context<Self>) -> ResponseFuture<()> {
        let news = self.directory.listed(listed.0);
        Box::pin(self.neighbours.clone().tell(news))
    }
}

impl Handler<DataServerKeyPut> for Registrar {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, put: DataServerKeyPut, _: &mut Context<Self>) -> ResponseFuture<()> {
        let news = self.directory.put(put.0);
        Box::pin(self.neighbours.clone().tell(news))
    }
}

impl Handler<DataServerKeyGone> for Registrar {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, gone: DataServerKeyGone, _: &mut Context<Self>) -> ResponseFuture<()> {
        let news = self.directory.gone(gone.id);
        Box::pin(self.neighbours.clone().tell(news))
    }
}

impl Handler<EtcdReached> for Registrar {
    type Result = ();

    fn handle(&mut self, reached: EtcdReached, _: &mut Context<Self>) {
        if self.reach.reached(reached.part) {
            let RegistrarSettings {
                node_name, grpc_addr, ..
            } = &self.settings;
            log::info!("etcd answers: {node_name} is registered as {grpc_addr}");
        }
    }
}

impl Handler<EtcdLost> for Registrar {
    type Result = ();

    fn handle(&mut self, lost: EtcdLost, _: &mut Context<Self>) {
        let EtcdLost { part, reason } = lost;
        if self.reach.lost(part) {
            log::warn!("etcd is away ({part:?}: {reason}); trying again, metadata is served meanwhile");
        } else {
            log::debug!("etcd is still away ({part:?}: {reason})");
        }
    }
}

/// Who is told about DataServers.
struct Neighbours {
    announced: Recipient<DataServerAnnounced>,
    withdrawn: Recipient<DataServerWithdrawn>,
    /// Whether it was said that they are gone.
    gone: Cell<bool>,
}

impl Neighbours {
    /// Delivers `news` in order, waiting for room in the mailbox.
    async fn tell(self: Rc<Self>, news: impl IntoIterator<Item = News>) {
        for news in news {
            let delivered: Result<(), MailboxError> = match news {
                News::Announced(news) => self.announced.send(news).await,
                News::Withdrawn(news) => self.withdrawn.send(news).await,
            };
            if delivered.is_err() && !self.gone.replace(true) {
                log::warn!("nobody takes the news of DataServers in etcd any more");
            }
        }
    }
}

/// Whether etcd answers, and what was last said of that: one line when it goes away, one when it is
/// back.
#[derive(Debug, Default)]
struct Reach {
    reached: BTreeSet<Part>,
    said: Option<bool>,
}

impl Reach {
    /// One part is done now; whether to say that etcd is there.
    fn reached(&mut self, part: Part) -> bool {
        self.reached.insert(part);
        let all = self.reached.len() == Part::ALL.len();
        all && self.said.replace(true) != Some(true)
    }

    /// One part cannot be done; whether to say that etcd is away.
    fn lost(&mut self, part: Part) -> bool {
        self.reached.remove(&part);
        self.said.replace(false) != Some(false)
    }
}
