//! What the Raft node does about disk space: its own, as it is measured, and as leader its peers', as they
//! say it when the membership is looked at.
//!
//! Rules, decided by [`SpaceBook::standing`]:
//! - A leader that is low hands leadership to a voter that has space and is up to date, when a majority has
//!   space without the leader. Writes wait meanwhile. One attempt at a time, and not more than one in
//!   `HAND_OVER_EVERY`.
//! - Otherwise it refuses writes. So does a leader with space when no majority of the voters has any: they
//!   could not be committed. A voter that says nothing for `SILENCE` counts as one without, if another is
//!   low; mere silence is no matter of space, and is answered as ever.
//! - A state that has reached its limit takes no more files; what makes it smaller is welcome.
//!
//! Invariant: a refused proposal never was in the log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::sync::watch;

use super::RaftNodeActor;
use super::messages::{PeerSpace, PeersSpace, ProposeError, RaftStatus, SpaceMeasured};
use crate::domain::command::Op;
use crate::raft::types::NodeId;
use crate::space::{Gauge, Level, Space};

/// How often a node looks at its disk. What may be written in between must fit into half of
/// `database.min_free_space`, whoever writes it.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A leader without space does not try to hand over more often than this.
const HAND_OVER_EVERY: Duration = Duration::from_secs(5);

/// How long one attempt may take.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(2);

/// After so long without a word a voter counts for nothing.
const SILENCE: Duration = Duration::from_secs(5);

/// Why the leader takes no writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For the caller.
    pub why: String,
    /// Only what makes the state larger is refused.
    only_growth: bool,
}

impl Refusal {
    /// Whether it is meant for this command.
    pub fn concerns(&self, op: &Op) -> bool {
        !self.only_growth || makes_the_state_larger(op)
    }
}

fn makes_the_state_larger(op: &Op) -> bool {
    match op {
        Op::Create { .. } | Op::Allocate { .. } => true,
        // A few bytes at most, to finish what was begun, to make less of it, or to keep what there is.
        Op::Delete { .. }
        | Op::Finalize { .. }
        | Op::MoveReplica { .. }
        | Op::RegisterDataServer { .. }
        | Op::SetDataServerStatus { .. }
        | Op::ReleaseGarbage { .. }
        | Op::Reclaim { .. }
        | Op::AbandonWrites { .. }
        | Op::Condemn { .. } => false,
    }
}

/// What a leader does about space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing.
    Fine,
    /// It refuses.
    Refuse(Refusal),
    /// It hands over, to none of these.
    HandOver {
        /// Voters without space, or behind.
        unfit: BTreeSet<NodeId>,
    },
    /// It has no space, and knows in a moment who has it, and everything that is committed.
    Wait,
}

/// What is known of disk space.
pub struct SpaceBook {
    own: Space,
    peers: BTreeMap<NodeId, (PeerSpace, Instant)>,
    /// When this node became the leader.
    leads_since: Option<Instant>,
    handing_over: bool,
    tried: Option<Instant>,
}

impl SpaceBook {
    /// Knows this node's own space.
    pub fn new(own: Space) -> Self {
        SpaceBook {
            own,
            peers: BTreeMap::new(),
            leads_since: None,
            handing_over: false,
            tried: None,
        }
    }

    /// This node's own.
    pub fn own(&self) -> &Space {
        &self.own
    }

    /// This node leads from now on, or does not; what peers said to an earlier leader is old.
    pub fn leads(&mut self, leads: bool, now: Instant) {
        self.peers.clear();
        self.leads_since = leads.then_some(now);
    }

    fn heard(&mut self, news: PeersSpace, now: Instant) {
        for (id, space) in news.0 {
            self.peers.insert(id, (space, now));
        }
    }

    /// What the leader of this cluster does now.
    pub fn standing(&self, raft: &RaftStatus, now: Instant) -> Standing {
        let shortage = self.own.shortage();
        let voters: Vec<_> = raft.members.iter().filter(|member| member.voter).collect();
        let majority = voters.len() / 2 + 1;
        let (mut with_space, mut unknown, mut unfit) = (0, 0, BTreeSet::new());
        let mut successors = 0;
        let (mut lacking, mut somebody_is_low) = (Vec::new(), false);
        for voter in voters
            .iter()
            .filter(|voter| voter.incarnation != raft.incarnation)
        {
            let heard = self.peers.get(&voter.incarnation);
            let last = heard.map(|(_, at)| *at).or(self.leads_since).unwrap_or(now);
            let silent = now.saturating_duration_since(last) >= SILENCE;
            match heard.map(|(space, _)| space) {
                Some(PeerSpace { low: Some(shortage) }) => {
                    somebody_is_low = true;
                    lacking.push(format!("{}: {shortage}", voter.name));
                }
                _ if silent => lacking.push(format!("{} says nothing", voter.name)),
                Some(PeerSpace { low: None }) => with_space += 1,
                None => unknown += 1,
            }
            let may_lead = heard.is_some_and(|(space, _)| space.low.is_none()) && !silent;
            if may_lead && voter.matched >= raft.committed {
                successors += 1;
            } else {
                unfit.insert(voter.incarnation);
            }
        }
        let refuse = |why: String| {
            Standing::Refuse(Refusal {
                why: format!("nothing was changed: {why}"),
                only_growth: false,
            })
        };
        match shortage {
            Some(_) if with_space >= majority && successors > 0 => Standing::HandOver { unfit },
            Some(_) if with_space + unknown >= majority => Standing::Wait,
            Some(own) => refuse(format!(
                "the leader's disk is nearly full and no other node can take over: {}",
                std::iter::once(own).chain(lacking).collect::<Vec<_>>().join("; ")
            )),
            None if 1 + with_space + unknown < majority && somebody_is_low => refuse(format!(
                "{} of {} nodes have disk space, {majority} are needed: {}",
                1 + with_space,
                voters.len(),
                lacking.join("; ")
            )),
            None => match self.own.state_shortage() {
                Some(why) => Standing::Refuse(Refusal {
                    why: format!("nothing was changed: {why}"),
                    only_growth: true,
                }),
                None => Standing::Fine,
            },
        }
    }
}

impl RaftNodeActor {
    /// As leader: refuses what there is no space for, or hands over. Answers whether the rest may be
    /// written now.
    pub(super) fn mind_space(&mut self, ctx: &mut Context<Self>) -> bool {
        let now = Instant::now();
        let refusal = match self.standing(now) {
            Standing::Fine => return true,
            Standing::Wait => return false,
            Standing::HandOver { .. } if self.space.handing_over => return false,
            Standing::HandOver { unfit } => {
                let waits = self
                    .space
                    .tried
                    .is_some_and(|tried| now.duration_since(tried) < HAND_OVER_EVERY);
                if !waits {
                    // What is under way comes to its end first, and its callers hear of it.
                    if self.in_flight == 0 {
                        self.hand_over_for_space(unfit, now, ctx);
                    }
                    return false;
                }
                Refusal {
                    why: format!(
                        "nothing was changed: the leader's disk is nearly full and the others did not take over \
                         yet: {}",
                        self.space.own.shortage().unwrap_or_default()
                    ),
                    only_growth: false,
                }
            }
            Standing::Refuse(refusal) => refusal,
        };
        for proposal in self.queue.drain(|op| refusal.concerns(op)) {
            proposal.not_done(ProposeError::NoSpace(refusal.why.clone()));
        }
        true
    }

    fn standing(&self, now: Instant) -> Standing {
        // The members are looked up only when there is something to decide.
        let nobody_low = self.space.peers.values().all(|(space, _)| space.low.is_none());
        if self.space.own.level == Level::Enough && !self.space.own.state_is_full && nobody_low {
            return Standing::Fine;
        }
        self.space.standing(&self.consensus.status(), now)
    }

    fn hand_over_for_space(&mut self, unfit: BTreeSet<NodeId>, now: Instant, ctx: &mut Context<Self>) {
        log::warn!(
            "handing leadership over: the disk is nearly full, {}",
            self.space.own.shortage().unwrap_or_default()
        );
        self.space.handing_over = true;
        self.space.tried = Some(now);
        let done = self.consensus.hand_over(HAND_OVER_WITHIN, unfit);
        ctx.spawn(done.into_actor(self).map(|_, actor, ctx| {
            actor.space.handing_over = false;
            actor.pump(ctx);
        }));
    }

    /// Why this node takes no writes, for operators.
    pub(super) fn writes_refused(&self) -> Option<String> {
        if !self.leadership.is_leader() {
            return self.space.own.shortage();
        }
        match self.standing(Instant::now()) {
            Standing::Fine => None,
            Standing::Refuse(refusal) => Some(refusal.why),
            Standing::HandOver { .. } | Standing::Wait => self.space.own.shortage(),
        }
    }
}

impl Handler<SpaceMeasured> for RaftNodeActor {
    type Result = ();

    fn handle(&mut self, SpaceMeasured(space): SpaceMeasured, ctx: &mut Self::Context) {
        self.space.own = space;
        self.pump(ctx);
    }
}

impl Handler<PeersSpace> for RaftNodeActor {
    type Result = ();

    fn handle(&mut self, news: PeersSpace, ctx: &mut Self::Context) {
        self.space.heard(news, Instant::now());
        self.pump(ctx);
    }
}

/// Looks at the disk for as long as the node runs; tells the Raft node, and `space` for those who must
/// decide at once.
pub async fn watch_space(gauge: Gauge, space: watch::Sender<Space>, node: Recipient<SpaceMeasured>) {
    let mut complained = false;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let before = space.borrow().clone();
        let (gauge, last) = (gauge.clone(), before.clone());
        let looked = match tokio::task::spawn_blocking(move || gauge.look(Some(&last))).await {
            Ok(looked) => looked,
            Err(error) => Err(std::io::Error::other(error)),
        };
        match looked {
            Ok(now) => {
                complained = false;
                say(&before, &now);
                space.send_replace(now.clone());
                // Past the mailbox's bound: a full mailbox is no reason to fill the disk, too.
                node.do_send(SpaceMeasured(now));
            }
            Err(error) if !complained => {
                log::error!("cannot see how much disk space is left: {error}");
                complained = true;
            }
            Err(_) => {}
        }
    }
}

fn say(before: &Space, now: &Space) {
    if now.level != before.level {
        let shortage = now.shortage().unwrap_or_default();
        match now.level {
            Level::Enough => log::info!("there is disk space again: this node takes writes as ever"),
            Level::Low => log::warn!("disk space is low, this node takes no writes as leader: {shortage}"),
            Level::Full => log::error!("the disk is nearly full, this node takes no writes: {shortage}"),
        }
    }
    match (before.state_shortage(), now.state_shortage()) {
        (None, Some(shortage)) => log::error!("no more files can be made: {shortage}"),
        (Some(_), None) => log::info!("the state is small enough again for new files"),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
