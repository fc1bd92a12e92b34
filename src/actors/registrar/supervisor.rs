//! Keeps a session with etcd going: one endpoint after the other, again and again, with a pause that
//! grows, until the registrar says goodbye or is gone.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use actix::WeakAddr;
use tokio::sync::watch;

use super::link::{Link, SessionError};
use super::messages::{EtcdLost, EtcdReached, Part};
use super::{Registrar, RegistrarSettings, Wish};

/// The first pause between two rounds of attempts.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// The longest one. Short, because a few nodes do not burden an etcd, and clients find nobody while
/// it lasts.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A session that lasted for this long was a good one: the pauses begin anew.
const GOOD_SESSION: Duration = Duration::from_secs(10);

/// Pauses that double up to a bound. Each is shortened by chance, by up to half, so that nodes which
/// lost etcd together do not come back together.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub fn new() -> Backoff {
        Backoff { next: SHORTEST_PAUSE }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(LONGEST_PAUSE);
        rand::random_range(full / 2..=full)
    }
}

/// What one of the registrar's tasks runs in.
pub(super) struct Supervisor {
    part: Part,
    endpoints: Vec<String>,
    timeout: Duration,
    wish: watch::Receiver<Wish>,
    registrar: WeakAddr<Registrar>,
}

impl Supervisor {
    /// For `part`, which is done with the endpoints of `settings` (one at least).
    pub fn new(
        part: Part,
        settings: &RegistrarSettings,
        wish: watch::Receiver<Wish>,
        registrar: WeakAddr<Registrar>,
    ) -> Supervisor {
        let RegistrarSettings {
            endpoints, timeout, ..
        } = settings.clone();
        Supervisor {
            part,
            endpoints,
            timeout,
            wish,
            registrar,
        }
    }

    /// A handle for the session's own reports.
    pub fn reports(&self) -> Reports {
        Reports {
            part: self.part,
            registrar: self.registrar.clone(),
        }
    }

    /// Runs one session after the other; a session only ever ends with an error. Gives whether this
    /// ended because the registrar wishes this node gone, and not because it is gone itself.
    pub async fn run(&mut self, session: impl AsyncFnMut(&Link) -> Result<Infallible, SessionError>) -> bool {
        let mut wish = self.wish.clone();
        tokio::select! {
            asked = wish.wait_for(|wish| *wish == Wish::Gone) => asked.is_ok(),
            never = self.run_for_ever(session) => match never {},
        }
    }

    async fn run_for_ever(
        &mut self,
        mut session: impl AsyncFnMut(&Link) -> Result<Infallible, SessionError>,
    ) -> Infallible {
        let mut backoff = Backoff::new();
        let mut attempts = 0;
        loop {
            let begun = Instant::now();
            let Err(reason) = self.attempt(&mut session).await;
            self.reports().lost(&reason).await;
            self.endpoints.rotate_left(1);
            attempts += 1;
            if begun.elapsed() >= GOOD_SESSION {
                (backoff, attempts) = (Backoff::new(), 0);
            }
            if attempts % self.endpoints.len() == 0 {
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }

    async fn attempt(
        &self,
        session: &mut impl AsyncFnMut(&Link) -> Result<Infallible, SessionError>,
    ) -> Result<Infallible, SessionError> {
        let link = Link::connect(&self.endpoints[0], self.timeout).await?;
        session(&link).await
    }

    /// Does something once, on the first endpoint that lets it, beginning with the last one in use.
    pub async fn once(&self, mut job: impl AsyncFnMut(&Link) -> Result<(), SessionError>) -> bool {
        for endpoint in &self.endpoints {
            let Ok(link) = Link::connect(endpoint, self.timeout).await else {
                continue;
            };
            match job(&link).await {
                Ok(()) => return true,
                Err(e) => log::debug!("etcd {endpoint}: {e}"),
            }
        }
        false
    }
}

/// How a task reports to the registrar, without keeping it alive.
pub(super) struct Reports {
    part: Part,
    registrar: WeakAddr<Registrar>,
}

impl Reports {
    /// Tells the registrar something and waits until it has dealt with it.
    pub async fn tell<M>(&self, news: M) -> Result<(), SessionError>
    where
        M: actix::Message<Result = ()> + Send + 'static,
        Registrar: actix::Handler<M>,
    {
        let registrar = self.registrar.upgrade().ok_or(SessionError::RegistrarGone)?;
        registrar
            .send(news)
            .await
            .map_err(|_| SessionError::RegistrarGone)
    }

    /// The session does its part.
    pub async fn reached(&self) -> Result<(), SessionError> {
        self.tell(EtcdReached { part: self.part }).await
    }

    /// The session ended. A registrar that is gone needs no news; the supervisor notices by itself.
    async fn lost(&self, reason: &SessionError) {
        let _ = self
            .tell(EtcdLost {
                part: self.part,
                reason: reason.to_string(),
            })
            .await;
    }
}
