//! The DataServers that etcd names, and what is new when it names others. Pure but for one log line
//! a malformed key.

use std::collections::BTreeSet;

use super::discovery_json::data_server_addr;
use crate::actors::data_servers::messages::{DataServerAnnounced, DataServerWithdrawn};

/// What the DataServers' actor is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    Announced(DataServerAnnounced),
    Withdrawn(DataServerWithdrawn),
}

/// A DataServer's key: its id, which is the last part of the key's name, and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DataServerKey {
    pub id: String,
    pub value: Vec<u8>,
}

/// The DataServers that have been announced and not been withdrawn.
#[derive(Debug, Default)]
pub(super) struct Directory {
    announced: BTreeSet<String>,
    /// Those whose value was found malformed, and logged, since it was last good.
    malformed: BTreeSet<String>,
}

impl Directory {
    /// Takes a complete listing: each key in it is announced (again), and who is not in it any more
    /// is withdrawn.
    pub fn listed(&mut self, keys: Vec<DataServerKey>) -> Vec<News> {
        let listed: BTreeSet<&String> = keys.iter().map(|key| &key.id).collect();
        let known = self.announced.union(&self.malformed);
        let vanished: BTreeSet<String> = known.filter(|id| !listed.contains(id)).cloned().collect();
        let mut news: Vec<News> = vanished.into_iter().filter_map(|id| self.gone(id)).collect();
        news.extend(keys.into_iter().filter_map(|key| self.put(key)));
        news
    }

    /// Takes one key that was written. A malformed value changes nothing: the last good one stands.
    pub fn put(&mut self, key: DataServerKey) -> Option<News> {
        let DataServerKey { id, value } = key;
        match data_server_addr(&value) {
            Ok(addr) => {
                self.malformed.remove(&id);
                self.announced.insert(id.clone());
                Some(News::Announced(DataServerAnnounced { id, addr }))
            }
            Err(e) => {
                if self.malformed.insert(id.clone()) {
                    log::warn!("etcd: the key of DataServer {id} is skipped: {e}");
                }
                None
            }
        }
    }

    /// Takes one key that was deleted or has expired.
    pub fn gone(&mut self, id: String) -> Option<News> {
        self.malformed.remove(&id);
        self.announced
            .remove(&id)
            .then_some(News::Withdrawn(DataServerWithdrawn { id }))
    }
}
