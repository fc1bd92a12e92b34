//! Tells the leader what is here, and takes its orders.
//!
//! One task, started by `DataServer`. A beat leaves every `heartbeat_interval`, and soon after the list of
//! blocks has changed ([`Rhythm`]); each is a full report, made when it leaves. The client finds the leader,
//! also after a failover; while nobody answers, the beats go on.
//!
//! The invariant: orders are carried out only when they come from the cluster that the blocks belong to.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::allegiance::{Allegiance, Standing};
use super::block_store::BlockStore;
use super::orders::Orders;
use crate::client::{self, Client, Options, Source};
use crate::proto::dfs::{HeartbeatRequest, HeartbeatResponse};

/// How long one beat may take, all its attempts together, and one attempt.
const BEAT_TIMEOUT: Duration = Duration::from_secs(6);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a stranger is looked at again.
const STRANGER_PAUSE: Duration = Duration::from_secs(10);

/// When beats leave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rhythm {
    interval: Duration,
}

impl Rhythm {
    /// A change is reported so much later: others often follow at once.
    const SETTLE: Duration = Duration::from_millis(200);
    /// The shortest time between two beats, and with more than [`Self::MANY`] blocks.
    const GAP: Duration = Duration::from_millis(500);
    const LONG_GAP: Duration = Duration::from_secs(2);
    const MANY: usize = 100_000;

    pub fn new(interval: Duration) -> Rhythm {
        Rhythm { interval }
    }

    /// When the next beat leaves after one at `last`, when `blocks` are reported and the first change since
    /// then was at `changed`.
    pub fn next(&self, last: Instant, changed: Option<Instant>, blocks: usize) -> Instant {
        let regular = last + self.interval;
        let gap = match blocks > Self::MANY {
            true => Self::LONG_GAP,
            false => Self::GAP,
        };
        match changed {
            Some(changed) => regular.min((changed + Self::SETTLE).max(last + gap)),
            None => regular,
        }
    }
}

/// The heart.
pub(super) struct Heart {
    pub id: String,
    /// `host:port`, as others know it.
    pub addr: String,
    pub source: Source,
    pub store: BlockStore,
    pub orders: Orders,
    pub allegiance: Allegiance,
    pub rhythm: Rhythm,
}

impl Heart {
    /// Beats until it is dropped.
    pub async fn run(mut self) {
        let mut changes = self.store.changes();
        let mut outage = Outage::default();
        let client = self.connect(&mut outage).await;
        loop {
            let began = Instant::now();
            // What changes from here on may be missing in the report, and asks for another one.
            changes.borrow_and_update();
            let mut blocks = 0;
            match self.beat(&client, &mut blocks).await {
                Ok(answer) => {
                    outage.over();
                    self.obey(&client, answer).await;
                }
                Err(error) => outage.goes_on(&error),
            }
            self.pause(began, blocks, &mut changes).await;
        }
    }

    /// Waits until the next beat is due.
    async fn pause(&self, last: Instant, blocks: usize, changes: &mut watch::Receiver<u64>) {
        let mut changed = None;
        loop {
            let due = self.rhythm.next(last, changed, blocks);
            tokio::select! {
                () = tokio::time::sleep_until(due) => return,
                news = changes.changed(), if changed.is_none() => match news {
                    Ok(()) => changed = Some(Instant::now()),
                    // The store is gone, and this task about to be.
                    Err(_) => return tokio::time::sleep_until(due).await,
                },
            }
        }
    }

    /// Finds the MetaServers, however long that takes.
    async fn connect(&self, outage: &mut Outage) -> Client {
        let options = Options {
            timeout: BEAT_TIMEOUT,
            attempt_timeout: ATTEMPT_TIMEOUT,
            pinned: false,
        };
        loop {
            match Client::connect(self.source.clone(), options.clone()).await {
                Ok(client) => return client,
                Err(error) => outage.goes_on(&error),
            }
            tokio::time::sleep(Rhythm::GAP).await;
        }
    }

    async fn beat(&self, client: &Client, blocks: &mut usize) -> client::Result<HeartbeatResponse> {
        let store = self.store.clone();
        let state = tokio::task::spawn_blocking(move || (store.inventory(), store.space())).await;
        let (inventory, space) = state.map_err(|e| client::Error::Unavailable(e.to_string()))?;
        let space = space.map_err(|e| client::Error::Unavailable(e.to_string()))?;
        *blocks = inventory.good.len();
        let beat = HeartbeatRequest {
            data_server_id: self.id.clone(),
            data_server_addr: self.addr.clone(),
            block_count: inventory.good.len() as u64,
            free_space: space.free,
            block_ids_report: inventory.good.into(),
            total_capacity: space.total,
            corrupt_block_ids: inventory.corrupt,
        };
        // The client keeps its own time; this is for what it may not see.
        match timeout(BEAT_TIMEOUT * 2, client.heartbeat(beat)).await {
            Ok(answer) => answer,
            Err(_) => Err(client::Error::Unavailable("no answer".to_owned())),
        }
    }

    /// Carries out the orders of our leader. Comes back only when the MetaServers are ours.
    async fn obey(&mut self, client: &Client, answer: HeartbeatResponse) {
        match self.allegiance.judge(&answer.cluster_id) {
            Ok(Standing::Ours) => self.orders.take(answer.commands),
            Ok(Standing::Stranger { ours }) => {
                log::error!(
                    "the MetaServers belong to cluster {}, the blocks in {} to cluster {ours}: nothing is \
                     reported to them, and their orders are not carried out. Check --metaserver and --etcd, or \
                     give this DataServer an empty --data-dir",
                    answer.cluster_id,
                    self.store.dir().display(),
                );
                while !self.is_ours(client, &ours).await {
                    tokio::time::sleep(STRANGER_PAUSE).await;
                }
                log::info!("the MetaServers belong to cluster {ours} again");
            }
            Err(e) => log::error!("orders are not carried out: {e}"),
        }
    }

    /// Whether a MetaServer of our cluster answers where the strangers did. Tells nobody anything.
    async fn is_ours(&self, client: &Client, ours: &str) -> bool {
        for addr in client.addresses() {
            if let Ok(status) = client.node_status(&addr, ATTEMPT_TIMEOUT).await
                && !status.cluster_id.is_empty()
            {
                return status.cluster_id == ours;
            }
        }
        false
    }
}

/// One line in the log when nobody answers any more, and one when somebody does again.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
}

impl Outage {
    fn goes_on(&mut self, error: &client::Error) {
        if self.since.is_none() {
            self.since = Some(Instant::now());
            log::warn!("no MetaServer takes this DataServer's heartbeats; going on trying: {error}");
        }
    }

    fn over(&mut self) {
        if let Some(since) = self.since.take() {
            log::info!("heartbeats are taken again, after {:.1?}", since.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_reported_soon_but_not_too_often() {
        let rhythm = Rhythm::new(Duration::from_secs(5));
        let last = Instant::now();
        let at = |millis| last + Duration::from_millis(millis);
        assert_eq!(rhythm.next(last, None, 0), at(5000));
        assert_eq!(rhythm.next(last, Some(at(0)), 0), at(500));
        assert_eq!(rhythm.next(last, Some(at(1000)), 0), at(1200));
        assert_eq!(rhythm.next(last, Some(at(4900)), 0), at(5000));
        assert_eq!(rhythm.next(last, Some(at(1000)), 100_001), at(2000));
        assert_eq!(rhythm.next(last, Some(at(3000)), 100_001), at(3200));
        let quick = Rhythm::new(Duration::from_millis(100));
        assert_eq!(quick.next(last, Some(at(0)), 100_001), at(100));
    }
}
