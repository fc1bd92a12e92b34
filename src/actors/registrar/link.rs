//! One connection to one etcd endpoint: the only file that knows `etcd-client`.
//!
//! Every request is answered or fails within `etcd.timeout`. A link goes to a single endpoint on
//! purpose: over several, the client's balancer sends requests to dead ones too, and a session would
//! not outlive the death of one of three etcd servers. [`super::supervisor`] takes the next endpoint
//! instead.

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, KeyValue, LeaseKeepAliveStream,
    LeaseKeeper, PutOptions, Txn, TxnOp, WatchOptions, WatchStream,
};

use super::claims::Write;

/// After how much silence a connection is probed. etcd closes those that probe more often than
/// every 5 s.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// The most operations in one commit; etcd's own default limit is 128.
const MAX_WRITES: usize = 100;

/// Why a session with etcd ended. None of them stops the server: the next session begins with a new
/// listing and a new lease.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("{asked}: no answer within {timeout:?}")]
    Timeout { asked: &'static str, timeout: Duration },
    #[error("{asked}: {}", reason(.source))]
    Etcd {
        asked: &'static str,
        source: etcd_client::Error,
    },
    #[error("the watch of {prefix} ended: {reason}")]
    WatchEnded { prefix: String, reason: String },
    #[error("the lease of {0} was lost")]
    LeaseLost(String),
    #[error("{0} was written by somebody else: is its node id used twice?")]
    KeyTaken(String),
    #[error("the registrar has stopped")]
    RegistrarGone,
}

/// The short form of an error; the long one carries headers.
fn reason(error: &etcd_client::Error) -> String {
    match error {
        etcd_client::Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    }
}

/// A key of etcd. Names are bytes: a foreign key with a name that is no text must not be overlooked,
/// since it counts in the condition of [`Link::commit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub name: Vec<u8>,
    pub value: Vec<u8>,
    /// The revision that wrote it last.
    pub mod_revision: i64,
    /// 0: none.
    pub lease: i64,
}

impl Key {
    fn new(kv: &KeyValue) -> Key {
        let (name, value) = (kv.key().to_vec(), kv.value().to_vec());
        Key {
            name,
            value,
            mod_revision: kv.mod_revision(),
            lease: kv.lease(),
        }
    }
}

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyEvent {
    Put(Key),
    Deleted { name: Vec<u8>, mod_revision: i64 },
}

/// The keys under a prefix, as of one revision.
#[derive(Debug)]
pub(super) struct Listing {
    pub keys: Vec<Key>,
    pub revision: i64,
}

/// A connection.
pub(super) struct Link {
    client: Client,
    timeout: Duration,
}

impl Link {
    /// Prepares a connection; the first request makes it.
    pub async fn connect(endpoint: &str, timeout: Duration) -> Result<Link, SessionError> {
        let options = ConnectOptions::new()
            .with_connect_timeout(timeout)
            .with_keep_alive(PROBE_INTERVAL, timeout)
            .with_keep_alive_while_idle(false)
            .with_require_leader(true);
        let client = bounded(timeout, "connecting", Client::connect([endpoint], Some(options))).await?;
        Ok(Link { client, timeout })
    }

    /// All keys under `prefix`.
    pub async fn list(&self, prefix: &str) -> Result<Listing, SessionError> {
        let mut kv = self.client.kv_client();
        let got = self
            .bounded("listing", kv.get(prefix, Some(GetOptions::new().with_prefix())))
            .await?;
        let revision = got.header().map_or(0, |header| header.revision());
        Ok(Listing {
            keys: got.kvs().iter().map(Key::new).collect(),
            revision,
        })
    }

    /// What happens under `prefix`, from `revision` on.
    pub async fn watch(&self, prefix: &str, revision: i64) -> Result<Watch, SessionError> {
        let mut client = self.client.watch_client();
        let options = WatchOptions::new().with_prefix().with_start_revision(revision);
        let stream = self
            .bounded("watching", client.watch(prefix, Some(options)))
            .await?;
        Ok(Watch {
            prefix: prefix.to_owned(),
            stream,
        })
    }

    /// A new lease.
    pub async fn grant(&self, ttl: Duration) -> Result<i64, SessionError> {
        let mut leases = self.client.lease_client();
        let granted = self
            .bounded("granting a lease", leases.grant(ttl.as_secs() as i64, None))
            .await?;
        Ok(granted.id())
    }

    /// Gives a lease back, with the keys under it. One that is gone already is no error.
    pub async fn revoke(&self, lease: i64) -> Result<(), SessionError> {
        let mut leases = self.client.lease_client();
        match self.bounded("revoking a lease", leases.revoke(lease)).await {
            Err(SessionError::Etcd {
                source: etcd_client::Error::GRpcStatus(status),
                ..
            }) if status.code() == tonic::Code::NotFound => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// What keeps `lease` alive. Fails when it is gone.
    pub async fn keep_alive(&self, lease: i64) -> Result<Keeper, SessionError> {
        let mut leases = self.client.lease_client();
        let (keeper, answers) = self
            .bounded("keeping the lease", leases.keep_alive(lease))
            .await?;
        Ok(Keeper {
            keeper,
            answers,
            timeout: self.timeout,
        })
    }

    /// Writes `writes` (the first [`MAX_WRITES`] of them, which are cut to that) together, provided
    /// that each key is as it was seen and that nothing under `prefix` was written after `revision`.
    /// Gives the revision of the writes, or `None` when the condition did not hold.
    pub async fn commit(
        &self,
        prefix: &str,
        revision: i64,
        writes: &mut Vec<Write>,
    ) -> Result<Option<i64>, SessionError> {
        writes.truncate(MAX_WRITES);
        let unchanged = Compare::mod_revision(prefix, CompareOp::Less, revision + 1).with_prefix();
        let as_seen = writes
            .iter()
            .map(|w| Compare::mod_revision(w.key.as_slice(), CompareOp::Equal, w.seen));
        let when: Vec<Compare> = std::iter::once(unchanged).chain(as_seen).collect();
        let puts: Vec<TxnOp> = writes.iter().map(put).collect();
        let mut kv = self.client.kv_client();
        let done = self
            .bounded("writing", kv.txn(Txn::new().when(when).and_then(puts)))
            .await?;
        let revision = done.header().map_or(0, |header| header.revision());
        Ok(done.succeeded().then_some(revision))
    }

    async fn bounded<T>(
        &self,
        asked: &'static str,
        answer: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, SessionError> {
        bounded(self.timeout, asked, answer).await
    }
}

fn put(write: &Write) -> TxnOp {
    let options = match write.lease {
        Some(lease) => PutOptions::new().with_lease(lease),
        None => PutOptions::new().with_ignore_lease(),
    };
    TxnOp::put(write.key.as_slice(), write.value.as_str(), Some(options))
}

async fn bounded<T>(
    timeout: Duration,
    asked: &'static str,
    answer: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, SessionError> {
    let answer = tokio::time::timeout(timeout, answer).await;
    answer
        .map_err(|_| SessionError::Timeout { asked, timeout })?
        .map_err(|source| SessionError::Etcd { asked, source })
}

/// The events under a prefix.
pub(super) struct Watch {
    prefix: String,
    stream: WatchStream,
}

impl Watch {
    /// The next events, in order; none for a mere sign of life. Loses nothing when it is dropped
    /// while it waits.
    ///
    /// # Errors
    /// The watch is over: etcd is away, or compacted what it would have sent, or cancelled it.
    pub async fn next(&mut self) -> Result<Vec<KeyEvent>, SessionError> {
        let ended = |prefix: &str, reason: String| SessionError::WatchEnded {
            prefix: prefix.to_owned(),
            reason,
        };
        let message = match self.stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return Err(ended(&self.prefix, "closed by etcd".to_owned())),
            Err(e) => return Err(ended(&self.prefix, reason(&e))),
        };
        if message.canceled() {
            let reason = format!(
                "cancelled by etcd (compacted up to {}) {}",
                message.compact_revision(),
                message.cancel_reason()
            );
            return Err(ended(&self.prefix, reason));
        }
        Ok(message.events().iter().filter_map(key_event).collect())
    }
}

fn key_event(event: &etcd_client::Event) -> Option<KeyEvent> {
    let key = Key::new(event.kv()?);
    Some(match event.event_type() {
        EventType::Put => KeyEvent::Put(key),
        EventType::Delete => KeyEvent::Deleted {
            name: key.name,
            mod_revision: key.mod_revision,
        },
    })
}

/// Keeps one lease alive.
pub(super) struct Keeper {
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
    timeout: Duration,
}

impl Keeper {
    /// Renews the lease. Gives whether it was still there.
    pub async fn renew(&mut self) -> Result<bool, SessionError> {
        let answer = async {
            self.keeper.keep_alive().await?;
            self.answers.message().await
        };
        let answer = bounded(self.timeout, "keeping the lease", answer).await?;
        Ok(answer.is_some_and(|answer| answer.ttl() > 0))
    }
}
