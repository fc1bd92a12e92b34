//! The reclaiming of deleted directories: their records are freed a few at a time, and nobody waits
//! for it.
//!
//! Invariant: at most one `Reclaim` is on its way, and between two of them the log is free for clients at
//! least as long as the first took.

use std::time::{Duration, Instant};

use actix::fut::{ActorFutureExt, WrapFuture};
use actix::{AsyncContext, Context, Handler};

use super::SchedulerActor;
use super::messages::ReclaimDue;
use crate::actors::raft_node::messages::ProposeError;
use crate::domain::command::{Applied, Op, Outcome};
use crate::domain::state::ReadTables;

/// Records that one command frees at most: about as much work as the clients' commands that share a
/// log entry. With a quarter of it nobody was shown to wait less, and a tree took three times as long.
pub(super) const RECLAIM_LIMIT: u32 = 512;

/// The bounds of the pause between two `Reclaim`s.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(250));

impl SchedulerActor {
    /// Begins to reclaim, if this node leads, there is something to reclaim and it has not begun.
    pub(super) fn begin_reclaiming(&mut self, ctx: &mut Context<Self>) {
        if !self.leadership.is_leader() || self.reclaiming.is_some() {
            return;
        }
        match self.state.read(|view| view.first_detached()) {
            Ok(None) => {}
            Ok(Some(_)) => {
                self.reclaiming = Some(0);
                self.reclaim(ctx);
            }
            Err(error) => log::error!("cannot look for deleted directories: {error}"),
        }
    }

    /// Proposes one `Reclaim`; what becomes of it goes to [`SchedulerActor::reclaimed`].
    fn reclaim(&mut self, ctx: &mut Context<Self>) {
        let op = Op::Reclaim { limit: RECLAIM_LIMIT };
        let proposal = self.proposer.propose(op);
        let proposal_and_pause = async move {
            let begun = Instant::now();
            let answer = proposal.await;
            // Commands of clients are applied behind this one. Waiting as long as it took leaves them
            // at least half of the time, however slow the disk is.
            tokio::time::sleep(begun.elapsed().clamp(PAUSE.0, PAUSE.1)).await;
            answer
        };
        ctx.spawn(
            proposal_and_pause
                .into_actor(self)
                .map(|answer, actor, ctx| actor.reclaimed(answer, ctx)),
        );
    }

    /// One `Reclaim` has come to its end: goes on, or stops until the next tick.
    fn reclaimed(&mut self, answer: Result<Applied, ProposeError>, ctx: &mut Context<Self>) {
        let freed_before = self.reclaiming.take().unwrap_or_default();
        match answer {
            Ok(Ok(Outcome::Reclaimed { records, more })) => {
                let freed = freed_before + u64::from(records);
                if more && self.leadership.is_leader() {
                    self.reclaiming = Some(freed);
                    self.reclaim(ctx);
                } else {
                    let rest = if more {
                        "the rest is the next leader's"
                    } else {
                        "nothing is left"
                    };
                    log::info!("{freed} records of deleted directories are freed; {rest}");
                }
            }
            Ok(Ok(other)) => log::error!("reclaiming was answered with {other:?}"),
            Ok(Err(refusal)) => log::warn!("reclaiming was refused: {refusal}"),
            Err(error) => log::warn!("reclaiming stops after {freed_before} records for now: {error}"),
        }
    }
}

impl Handler<ReclaimDue> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, _: ReclaimDue, ctx: &mut Context<Self>) {
        self.begin_reclaiming(ctx);
    }
}
