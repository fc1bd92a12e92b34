//! Keeps this DataServer's key in etcd, where MetaServers look for it.
//!
//! A session takes a lease, puts the key under it and renews it; whatever goes wrong (etcd is away, was
//! restarted or wiped, the lease or the key is lost) ends the session, and the next one begins anew, on the
//! next endpoint. etcd being away never stops anything else.

use std::convert::Infallible;
use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use etcd_client::{Client, ConnectOptions, PutOptions};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// The lease of the contract.
const TTL: Duration = Duration::from_secs(5);
/// How long etcd may take to answer. Less than what is left of a lease when it is renewed.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long leaving may take at a stop.
const FAREWELL: Duration = Duration::from_secs(2);
/// Between two sessions: doubled from the first to the second.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The key's value.
#[derive(Serialize)]
struct Record<'a> {
    id: &'a str,
    addr: &'a str,
    register_at: String,
}

/// What is kept in etcd.
pub(super) struct Registration {
    pub endpoints: Vec<String>,
    pub prefix: String,
    pub id: String,
    pub addr: String,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("no answer within {ANSWER_TIMEOUT:?}")]
    Timeout,
    #[error("{}", reason(.0))]
    Etcd(#[from] etcd_client::Error),
    #[error("the lease was lost")]
    LeaseLost,
    #[error("the key was removed")]
    KeyLost,
}

/// The short form of an error; the long one carries headers.
fn reason(error: &etcd_client::Error) -> String {
    match error {
        etcd_client::Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    }
}

impl Registration {
    /// Keeps the key until `stop` says so (or is gone), and removes it then.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut lease = None;
        tokio::select! {
            never = self.keep(&mut lease) => match never {},
            _ = stop.wait_for(|stop| *stop) => (),
        }
        if let Some(lease) = lease
            && timeout(FAREWELL, self.leave(lease)).await.is_err()
        {
            log::debug!("etcd did not take the farewell; the key goes with its lease");
        }
    }

    async fn keep(&mut self, lease: &mut Option<i64>) -> Infallible {
        let mut pause = SHORTEST_PAUSE;
        // Said once an outage.
        let mut lost = false;
        loop {
            let began = Instant::now();
            let Err(error) = self.session(lease, &mut lost).await;
            if !lost {
                lost = true;
                log::warn!("not registered in etcd at {}: {error}", self.endpoints[0]);
            }
            self.endpoints.rotate_left(1);
            if began.elapsed() > 2 * TTL {
                pause = SHORTEST_PAUSE;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn connect(&self) -> Result<Client, SessionError> {
        let options = ConnectOptions::new()
            .with_connect_timeout(ANSWER_TIMEOUT)
            .with_require_leader(true);
        bounded(Client::connect([&self.endpoints[0]], Some(options))).await
    }

    async fn session(&self, lease: &mut Option<i64>, lost: &mut bool) -> Result<Infallible, SessionError> {
        let mut client = self.connect().await?;
        let granted = bounded(client.lease_grant(TTL.as_secs() as i64, None)).await?;
        let id = granted.id();
        let (mut keeper, mut answers) = bounded(client.lease_keep_alive(id)).await?;
        let key = format!("{}{}", self.prefix, self.id);
        let value = self.value();
        *lease = Some(id);
        let put = client.put(
            key.as_str(),
            value.as_str(),
            Some(PutOptions::new().with_lease(id)),
        );
        bounded(put).await?;
        if std::mem::take(lost) {
            log::info!("registered in etcd at {} again", self.endpoints[0]);
        }
        let mut warned = false;
        loop {
            tokio::time::sleep(TTL / 3).await;
            let renewed = bounded(async {
                keeper.keep_alive().await?;
                answers.message().await
            });
            if renewed.await?.is_none_or(|answer| answer.ttl() <= 0) {
                return Err(SessionError::LeaseLost);
            }
            let got = bounded(client.get(key.as_str(), None)).await?;
            let now = got.kvs().first().ok_or(SessionError::KeyLost)?;
            if now.lease() != id && !std::mem::replace(&mut warned, true) {
                log::error!("{key} was written by somebody else: is the id of this DataServer used twice?");
            }
        }
    }

    fn value(&self) -> String {
        let record = Record {
            id: &self.id,
            addr: &self.addr,
            register_at: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
        };
        // Three strings always make JSON.
        serde_json::to_string(&record).unwrap_or_else(|_| self.addr.clone())
    }

    async fn leave(&self, lease: i64) {
        let left = async {
            let mut client = self.connect().await?;
            bounded(client.lease_revoke(lease)).await
        };
        if let Err(error) = left.await {
            log::debug!("etcd did not take the farewell: {error}");
        }
    }
}

async fn bounded<T>(answer: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, SessionError> {
    let answer = timeout(ANSWER_TIMEOUT, answer).await;
    Ok(answer.map_err(|_| SessionError::Timeout)??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_is_what_metaservers_read() {
        let registration = Registration {
            endpoints: Vec::new(),
            prefix: "/p/".into(),
            id: "ds-1".into(),
            addr: "h:1".into(),
        };
        let value = registration.value();
        assert!(
            value.starts_with(r#"{"id":"ds-1","addr":"h:1","register_at":""#),
            "{value}"
        );
        let json: serde_json::Value = serde_json::from_str(&value).unwrap();
        let at = json["register_at"].as_str().unwrap();
        chrono::DateTime::parse_from_rfc3339(at).unwrap();
    }
}
