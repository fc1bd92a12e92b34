//! The task that keeps this node's key in etcd right, and takes back stale claims of others.
//!
//! A session begins with a listing and a new lease, and then holds etcd to what [`claims::plan`]
//! says: after each change of this node's standing and each event under the prefix it plans again,
//! and commits. Whatever goes wrong (etcd is away, the lease or the key is lost, the watch cancelled)
//! ends the session, and the next one begins from a new listing; there is no other way to recover.

use std::convert::Infallible;

use actix::WeakAddr;
use chrono::{SecondsFormat, Utc};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::claims::{self, Nodes, Own, Plan};
use super::discovery_json::{NodeRecord, ROLE};
use super::link::{KeyEvent, Link, SessionError};
use super::messages::Part;
use super::supervisor::{Reports, Supervisor};
use super::{FAREWELL, LEASE_TTL, NODES_PREFIX, Registrar, RegistrarSettings, Wish};

/// How many leases of earlier sessions are remembered; older ones have run out.
const MAX_LEASES: usize = 8;

/// Runs until the registrar is gone, or wishes this node gone; then the key is taken out of etcd.
pub(super) async fn run(
    settings: RegistrarSettings,
    wish: watch::Receiver<Wish>,
    registrar: WeakAddr<Registrar>,
) {
    let mut supervisor = Supervisor::new(Part::Registration, &settings, wish.clone(), registrar);
    let reports = supervisor.reports();
    let mut registration = Registration {
        settings,
        wish,
        leases: Vec::new(),
        outranked_by: None,
    };
    if supervisor
        .run(async |link| registration.session(link, &reports).await)
        .await
    {
        registration.leave(&supervisor).await;
    }
}

struct Registration {
    settings: RegistrarSettings,
    wish: watch::Receiver<Wish>,
    /// Those under which the key may be: the current one is the last.
    leases: Vec<i64>,
    /// What was said of it in the log.
    outranked_by: Option<(Vec<u8>, u64)>,
}

impl Registration {
    async fn session(&mut self, link: &Link, reports: &Reports) -> Result<Infallible, SessionError> {
        let listing = link.list(NODES_PREFIX).await?;
        let mut watch = link.watch(NODES_PREFIX, listing.revision + 1).await?;
        let mut nodes = Nodes::new(listing.keys, listing.revision);
        let own = self.own(link.grant(LEASE_TTL).await?);
        let mut keeper = link.keep_alive(own.lease).await?;
        let mut renewal = tokio::time::interval_at(Instant::now() + LEASE_TTL / 3, LEASE_TTL / 3);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut registered = false;
        loop {
            if self.settle(link, &own, &mut nodes).await? && !registered {
                registered = true;
                self.retire_leases(link).await?;
                reports.reached().await?;
            }
            tokio::select! {
                changed = self.wish.changed() => changed.map_err(|_| SessionError::RegistrarGone)?,
                events = watch.next() => self.observe(events?, registered, &own, &mut nodes)?,
                _ = renewal.tick() => if !keeper.renew().await? {
                    return Err(SessionError::LeaseLost(self.name()));
                },
            }
        }
    }

    fn name(&self) -> String {
        self.settings.node_name.clone()
    }

    /// This node's key under a new lease.
    fn own(&mut self, lease: i64) -> Own {
        self.leases.push(lease);
        let expired = self.leases.len().saturating_sub(MAX_LEASES);
        self.leases.drain(..expired);
        let RegistrarSettings {
            node_name, grpc_addr, ..
        } = self.settings.clone();
        let record = NodeRecord {
            addr: grpc_addr,
            register_at: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
            role: ROLE.to_owned(),
            is_leader: false,
            term: 0,
            id: node_name,
        };
        Own {
            key: format!("{NODES_PREFIX}{}", record.id).into_bytes(),
            lease,
            record,
        }
    }

    /// Writes what has to be written. Gives whether etcd is as it should be now; if not, somebody
    /// else wrote at the same time, and the watch is about to tell what.
    async fn settle(&mut self, link: &Link, own: &Own, nodes: &mut Nodes) -> Result<bool, SessionError> {
        loop {
            let Wish::Present(standing) = *self.wish.borrow_and_update() else {
                return Ok(false);
            };
            let Plan {
                mut writes,
                outranked_by,
            } = claims::plan(own, standing, nodes);
            self.note(standing.term, outranked_by);
            if writes.is_empty() {
                return Ok(true);
            }
            let Some(revision) = link.commit(NODES_PREFIX, nodes.revision(), &mut writes).await? else {
                return Ok(false);
            };
            for cleared in writes.iter().filter(|write| write.key != own.key) {
                log::info!(
                    "etcd: took back the stale claim to lead of {} (term {})",
                    cleared.key.escape_ascii(),
                    standing.term
                );
            }
            nodes.wrote(writes, revision);
        }
    }

    /// Takes what the watch reported.
    fn observe(
        &self,
        events: Vec<KeyEvent>,
        registered: bool,
        own: &Own,
        nodes: &mut Nodes,
    ) -> Result<(), SessionError> {
        events.into_iter().for_each(|event| nodes.observe(event));
        match nodes.get(&own.key) {
            _ if !registered => Ok(()),
            None => Err(SessionError::LeaseLost(self.name())),
            Some(key) if !self.leases.contains(&key.lease) => Err(SessionError::KeyTaken(self.name())),
            Some(_) => Ok(()),
        }
    }

    /// Gives the leases of earlier sessions back: the key is not under them any more.
    async fn retire_leases(&mut self, link: &Link) -> Result<(), SessionError> {
        while self.leases.len() > 1 {
            link.revoke(self.leases[0]).await?;
            self.leases.remove(0);
        }
        Ok(())
    }

    /// Says once that the claim has to wait.
    fn note(&mut self, term: u64, outranked_by: Option<(Vec<u8>, u64)>) {
        if let Some((key, newer)) = &outranked_by
            && self.outranked_by != outranked_by
        {
            let key = key.escape_ascii();
            log::warn!("etcd: not claiming to lead term {term}: {key} knows a leader of term {newer}");
        }
        self.outranked_by = outranked_by;
    }

    /// Takes the key out of etcd: it goes with the lease.
    async fn leave(&mut self, supervisor: &Supervisor) {
        let leases = std::mem::take(&mut self.leases);
        let revoked = supervisor.once(async |link| {
            for lease in &leases {
                link.revoke(*lease).await?;
            }
            Ok(())
        });
        let name = &self.settings.node_name;
        match tokio::time::timeout(FAREWELL, revoked).await {
            _ if leases.is_empty() => {}
            Ok(true) => log::info!("etcd: {name} is unregistered"),
            Ok(false) | Err(_) => {
                let ttl = LEASE_TTL;
                log::warn!("etcd: {name} could not be unregistered; its key expires within {ttl:?}");
            }
        }
    }
}
