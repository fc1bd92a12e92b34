//! The auditor: compares this node's state with that of its peers, and with its own hash.
//!
//! At intervals it asks the members for the hashes of their states (`domain::state_hash`) and lets
//! [`judge`] decide; when an operator wants it, it reads the whole state on a thread of its own. Nobody
//! asks it for leave: it tells the node to stop, by the channel that it was given.
//!
//! Invariant: a state that differs from that of a majority, or that is not what its hash says, is marked
//! on the disk before the node is told to stop, so that no later start serves it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actix::prelude::*;
use futures::future::{LocalBoxFuture, join_all};
use tokio::sync::mpsc;

use crate::actors::raft_node::messages::{GetStatus, MemberStatus, NodeStatus};
use crate::actors::ticks::Ticks;
use crate::background;
use crate::domain::state_hash::{Court, Difference, Hashes, Verdict, judge};
use crate::storage::{REFILL, StateReader};

pub mod messages;
#[cfg(test)]
mod tests;

use messages::{CompareDue, Found, Verification, VerifyState, VerifyStatus};

/// How many hashes are asked for at once. The threads that answer clients read, encode and decode them, here
/// and at the peers, and all nodes compare at about the same time: more would be noticed.
const PAGE: u32 = 512;

/// How many pages one comparison turns at most; the rest is for the next.
const PAGES: usize = 128;

/// How long a peer may take for a page.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many recent hashes an operator is told.
const RECENT: u64 = 1024;

/// How long a node goes on after an operator's verification found it damaged, so that the operator hears of it.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the auditor asks of other nodes.
pub trait PeerHashes {
    /// The hashes of a member's state after the log entries from `from` on, `limit` at most.
    fn state_hashes(
        &self,
        member: &MemberStatus,
        from: u64,
        limit: u32,
        within: Duration,
    ) -> LocalBoxFuture<'static, Result<Hashes, String>>;
}

/// The auditor. See the module's documentation.
pub struct AuditorActor {
    interval: Duration,
    state: StateReader,
    status: Recipient<GetStatus>,
    peers: Rc<dyn PeerHashes>,
    /// Told once why the node must stop.
    stop: mpsc::Sender<String>,
    ticks: Option<Ticks>,
    comparing: bool,
    /// This comparison has met a difference.
    disputed: bool,
    /// Up to where this node was found to agree with whom it could ask.
    agreed: u64,
    /// The difference that was logged last: it is said once.
    said: Option<Difference>,
    begun: u64,
    scanned: Option<Arc<AtomicU64>>,
    last: Option<Verification>,
}

impl AuditorActor {
    /// An auditor that compares every `interval`.
    pub fn new(
        interval: Duration,
        state: StateReader,
        status: Recipient<GetStatus>,
        peers: Rc<dyn PeerHashes>,
        stop: mpsc::Sender<String>,
    ) -> Self {
        AuditorActor {
            interval,
            state,
            status,
            peers,
            stop,
            ticks: None,
            comparing: false,
            disputed: false,
            agreed: 0,
            said: None,
            begun: 0,
            scanned: None,
            last: None,
        }
    }

    fn stop(&self, why: String) {
        // Somebody has told already, or the node is stopping.
        let _ = self.stop.try_send(why);
    }

    /// Obeys what a page of hashes from `from` on says; gives where to go on, if anywhere.
    fn obey(&mut self, compared: Compared) -> Option<u64> {
        let Compared {
            from,
            applied,
            members,
            verdict,
        } = compared;
        let after = from + u64::from(PAGE);
        let after = (after <= applied).then_some(after);
        match verdict {
            Verdict::Agreed { up_to } => {
                let further = up_to.filter(|up_to| *up_to > from);
                // Not past a difference that nobody could decide.
                if !self.disputed {
                    self.agreed = self.agreed.max(up_to.unwrap_or_default());
                }
                // What the page lacks is not known here or to the peers: they have forgotten it, or never knew.
                further.or(after)
            }
            Verdict::Odd(difference) => {
                let why = format!(
                    "the state of this node differs from that of a majority {difference}: its hash is {}, that \
                     of {}; {REFILL}",
                    difference.ours,
                    others(&difference, &members)
                );
                if let Err(error) = self.state.refuse(&why) {
                    log::error!("the state of this node could not be marked as refused: {error}");
                }
                self.stop(why);
                None
            }
            Verdict::OthersOdd(difference) => {
                let what = "a majority agrees with this node, the others must stop";
                self.say_once(difference, &members, what);
                after
            }
            Verdict::Undecided(difference) => {
                let what = "no majority can be asked who is right";
                self.say_once(difference, &members, what);
                // Whoever has forgotten these may know later ones.
                after
            }
        }
    }

    fn say_once(&mut self, difference: Difference, members: &[MemberStatus], what: &str) {
        if std::mem::replace(&mut self.disputed, true) {
            return; // only the first one of each comparison
        }
        if self.said.as_ref() != Some(&difference) {
            log::error!(
                "states differ {difference}: the hash of this node is {}, that of {}; {what}",
                difference.ours,
                others(&difference, members)
            );
            self.said = Some(difference);
        }
    }

    fn verified(&mut self, verification: Verification, ctx: &mut Context<Self>) {
        self.scanned = None;
        let damage = match &verification.found {
            Ok(found) if found.recorded == found.computed => {
                log::info!(
                    "verified the state: {} records in {:.1?}, hash {}",
                    found.records,
                    verification.took,
                    found.computed
                );
                None
            }
            Ok(found) => Some(format!(
                "its records have the hash {} instead of {}",
                found.computed, found.recorded
            )),
            Err(why) => Some(why.clone()),
        };
        self.last = Some(verification);
        if let Some(damage) = damage {
            if let Err(error) = self.state.distrust() {
                log::error!("the damaged state could not be marked: {error}");
            }
            let file = self.state.file();
            let why = format!(
                "{} is damaged: {damage}; the next start makes it anew from the newest snapshot and the log",
                file.display()
            );
            log::error!("{why}");
            ctx.run_later(LAST_WORDS, |auditor, _| auditor.stop(why));
        }
    }
}

/// `meta-2 is 00ff…, that of meta-3 …`
fn others(difference: &Difference, members: &[MemberStatus]) -> String {
    let name = |id: &u64| {
        let member = members.iter().find(|member| member.incarnation == *id);
        member.map_or_else(|| id.to_string(), |member| member.name.clone())
    };
    let theirs = difference.theirs.iter();
    let each: Vec<_> = theirs
        .map(|(id, hash)| format!("{} is {hash}", name(id)))
        .collect();
    each.join(", that of ")
}

/// What a comparison found.
struct Compared {
    /// The first index that was asked for.
    from: u64,
    /// How far this node had come.
    applied: u64,
    members: Vec<MemberStatus>,
    verdict: Verdict,
}

/// Compares a page of hashes, from `from` on.
async fn compare(
    status: Recipient<GetStatus>,
    state: StateReader,
    peers: Rc<dyn PeerHashes>,
    from: u64,
) -> Option<Compared> {
    let NodeStatus { raft, .. } = status.send(GetStatus).await.ok()?;
    let read = state.read(|view| {
        // What was agreed on may be forgotten by now.
        let applied = view.progress()?.applied.map_or(0, |applied| applied.index);
        let oldest = applied.saturating_sub(u64::from(PAGE) * PAGES as u64);
        let from = from.max(oldest);
        Ok((from, applied, view.hashes(from, PAGE.into())?))
    });
    let (from, applied, ours) = match read {
        Ok(read) => read,
        Err(error) => {
            log::error!("the hashes of this node's state cannot be read: {error}");
            return None;
        }
    };
    let others = raft
        .members
        .iter()
        .filter(|member| member.incarnation != raft.incarnation);
    let asked = others.map(|member| {
        let asked = peers.state_hashes(member, from, PAGE, PATIENCE);
        async move { (member.incarnation, member.name.clone(), asked.await) }
    });
    let mut theirs = BTreeMap::new();
    for (id, name, answer) in join_all(asked).await {
        match answer {
            Ok(hashes) => drop(theirs.insert(id, hashes)),
            // It is down, or knows no such question: whoever watches the cluster hears of that elsewhere.
            Err(why) => log::debug!("{name} tells no state hashes: {why}"),
        }
    }
    if theirs.is_empty() {
        return None;
    }
    let court = Court {
        own: raft.incarnation,
        voters: voters(&raft.members),
    };
    Some(Compared {
        from,
        applied,
        verdict: judge(&court, &ours, &theirs),
        members: raft.members,
    })
}

fn voters(members: &[MemberStatus]) -> BTreeSet<u64> {
    let voters = members.iter().filter(|member| member.voter);
    voters.map(|member| member.incarnation).collect()
}

impl Actor for AuditorActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.ticks = Some(Ticks::start(&ctx.address(), self.interval, CompareDue));
    }
}

impl Handler<CompareDue> for AuditorActor {
    type Result = ();

    fn handle(&mut self, _: CompareDue, ctx: &mut Self::Context) {
        if !self.comparing {
            (self.comparing, self.disputed) = (true, false);
            // From the last common one on: if the next differs, that was the first.
            self.compare_from(self.agreed, PAGES, ctx);
        }
    }
}

impl AuditorActor {
    /// Compares a page, and those after it.
    fn compare_from(&mut self, from: u64, pages_left: usize, ctx: &mut Context<Self>) {
        let compared = compare(self.status.clone(), self.state.clone(), self.peers.clone(), from);
        ctx.spawn(compared.into_actor(self).map(move |compared, actor, ctx| {
            let asked = compared.is_some();
            match compared.and_then(|compared| actor.obey(compared)) {
                Some(next) if pages_left > 1 => actor.compare_from(next, pages_left - 1, ctx),
                _ => {
                    actor.comparing = false;
                    if asked && !actor.disputed {
                        // What differs from now on is news.
                        actor.said = None;
                    }
                }
            }
        }));
    }
}

impl Handler<VerifyState> for AuditorActor {
    type Result = MessageResult<VerifyState>;

    fn handle(&mut self, VerifyState { begin }: VerifyState, ctx: &mut Self::Context) -> Self::Result {
        if begin && self.scanned.is_none() {
            self.begun += 1;
            let (number, counter) = (self.begun, Arc::<AtomicU64>::default());
            self.scanned = Some(counter.clone());
            let state = self.state.clone();
            let scan = background::run("verification", move || scan(&state, number, &counter));
            ctx.spawn(scan.into_actor(self).map(move |scanned, actor, ctx| {
                let verification = scanned.unwrap_or_else(|error| Verification {
                    number,
                    applied: None,
                    found: Err(error.to_string()),
                    took: Duration::ZERO,
                });
                actor.verified(verification, ctx);
            }));
        }
        let recent = self.state.read(|view| {
            let applied = view.progress()?.applied.map_or(0, |applied| applied.index);
            view.hashes((applied + 1).saturating_sub(RECENT), RECENT)
        });
        let scanned = self.scanned.as_ref();
        MessageResult(VerifyStatus {
            begun: self.begun,
            records_so_far: scanned.map(|counter| counter.load(Ordering::Relaxed)),
            last: self.last.clone(),
            recent: recent.unwrap_or_else(|error| {
                log::error!("the hashes of this node's state cannot be read: {error}");
                Hashes::new()
            }),
        })
    }
}

fn scan(state: &StateReader, number: u64, counter: &AtomicU64) -> Verification {
    let begun = Instant::now();
    let scanned = state.scan(|records| counter.store(records, Ordering::Relaxed));
    let (applied, found) = match scanned {
        Ok((progress, scan)) => {
            let found = Found {
                recorded: scan.recorded.unwrap_or_default(),
                computed: scan.computed,
                records: scan.records,
            };
            (progress.applied.map(|applied| applied.index), Ok(found))
        }
        Err(error) => (None, Err(error.to_string())),
    };
    Verification {
        number,
        applied,
        found,
        took: begun.elapsed(),
    }
}
