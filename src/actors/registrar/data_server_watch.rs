//! The task that watches the DataServers' keys and reports them to the registrar.
//!
//! A session begins with a listing, and the watch goes on from its revision, so nothing is missed in
//! between; what changed while there was no session shows in the next listing. The registrar answers
//! each report when its neighbours have taken it, so a slow neighbour slows the watch, and nothing
//! piles up.

use std::convert::Infallible;

use actix::WeakAddr;
use tokio::sync::watch;

use super::data_server_keys::DataServerKey;
use super::link::{Key, KeyEvent, Link, SessionError};
use super::messages::{DataServerKeyGone, DataServerKeyPut, DataServersListed, Part};
use super::supervisor::{Reports, Supervisor};
use super::{Registrar, RegistrarSettings, Wish};

/// Runs until the registrar is gone, or wishes this node gone.
pub(super) async fn run(
    settings: RegistrarSettings,
    wish: watch::Receiver<Wish>,
    registrar: WeakAddr<Registrar>,
) {
    let mut supervisor = Supervisor::new(Part::DataServers, &settings, wish, registrar);
    let reports = supervisor.reports();
    let prefix = settings.data_server_key_prefix;
    supervisor
        .run(async |link| session(link, &prefix, &reports).await)
        .await;
}

async fn session(link: &Link, prefix: &str, reports: &Reports) -> Result<Infallible, SessionError> {
    let listing = link.list(prefix).await?;
    let mut watch = link.watch(prefix, listing.revision + 1).await?;
    let keys = listing
        .keys
        .into_iter()
        .filter_map(|key| data_server_key(prefix, key));
    reports.tell(DataServersListed(keys.collect())).await?;
    reports.reached().await?;
    loop {
        for event in watch.next().await? {
            report(event, prefix, reports).await?;
        }
    }
}

async fn report(event: KeyEvent, prefix: &str, reports: &Reports) -> Result<(), SessionError> {
    match event {
        KeyEvent::Put(key) => match data_server_key(prefix, key) {
            Some(key) => reports.tell(DataServerKeyPut(key)).await,
            None => Ok(()),
        },
        KeyEvent::Deleted { name, .. } => match id_of(prefix, &name) {
            Some(id) => reports.tell(DataServerKeyGone { id: id.to_owned() }).await,
            None => Ok(()),
        },
    }
}

fn data_server_key(prefix: &str, key: Key) -> Option<DataServerKey> {
    let id = id_of(prefix, &key.name)?.to_owned();
    Some(DataServerKey { id, value: key.value })
}

/// The DataServer that a key belongs to: the last part of its name. `None` when that is empty
/// or no text.
fn id_of<'a>(prefix: &str, name: &'a [u8]) -> Option<&'a str> {
    let id = std::str::from_utf8(name)
        .ok()?
        .strip_prefix(prefix)?
        .rsplit('/')
        .next()?;
    (!id.is_empty()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_the_last_part_of_the_key() {
        for (prefix, name, id) in [
            ("/dfs/dataServers/", &b"/dfs/dataServers/ds-1"[..], Some("ds-1")),
            ("/dfs/dataServers", b"/dfs/dataServers/ds-1", Some("ds-1")),
            ("/dfs/dataServers/", b"/dfs/dataServers/rack-2/ds-1", Some("ds-1")),
            ("/dfs/dataServers/", b"/dfs/dataServers/", None),
            ("/dfs/dataServers/", b"/dfs/dataServers/\xff", None),
        ] {
            assert_eq!(id_of(prefix, name), id);
        }
    }
}
