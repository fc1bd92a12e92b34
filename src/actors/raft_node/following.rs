//! What the Raft node does while another one leads: it sends the proposals and reads that wait to the leader,
//! and gives the answers to those who wait.
//!
//! Proposals go under request ids, so that they can be repeated at the next leader. What is under way is given
//! up as soon as there is news of leadership.

use std::time::Instant;

use actix::prelude::*;

use super::messages::{Leader, ProposeError};
use super::peers::{PeerError, ProposalResult};
use super::proposals::Proposal;
use super::{READ_ROUND, RaftNodeActor};
use crate::domain::command::Op;

/// Portions that may be under way to the leader at once.
const FORWARDS_IN_FLIGHT: usize = 8;

impl RaftNodeActor {
    pub(super) fn forward(&mut self, leader: &Leader, ctx: &mut Context<Self>) {
        while self.in_flight < FORWARDS_IN_FLIGHT {
            let mut batch = self.queue.take(Instant::now(), None);
            let Some(deadline) = batch.iter().map(|proposal| proposal.deadline).max() else {
                break;
            };
            for proposal in &mut batch {
                // The plan is the leader's; one made while this node led is out of date.
                if let Op::Allocate { plan, .. } = &mut proposal.command.op {
                    *plan = None;
                }
                proposal.make_repeatable();
                proposal.sent();
            }
            let commands = batch.iter().map(|proposal| proposal.command.clone()).collect();
            let answered = self.peers.propose(leader, commands, deadline);
            let mut epoch = self.epoch.subscribe();
            let sent = async move {
                tokio::select! {
                    answered = answered => answered,
                    _ = epoch.changed() => Err(PeerError("another node leads now".to_owned())),
                }
            };
            self.in_flight += 1;
            ctx.spawn(sent.into_actor(self).map(move |answered, actor, ctx| {
                actor.in_flight -= 1;
                actor.forwarded(batch, answered, ctx);
                actor.pump(ctx);
            }));
        }
    }

    fn forwarded(
        &mut self,
        mut batch: Vec<Proposal>,
        answered: Result<Vec<ProposalResult>, PeerError>,
        ctx: &mut Context<Self>,
    ) {
        let results = match answered {
            Ok(results) if results.len() == batch.len() => results,
            Ok(results) => {
                log::error!(
                    "the leader gave {} answers to {} proposals",
                    results.len(),
                    batch.len()
                );
                vec![
                    Err(ProposeError::Unknown(
                        "the leader's answer makes no sense".to_owned()
                    ));
                    batch.len()
                ]
            }
            Err(PeerError(why)) => vec![Err(ProposeError::Unknown(why)); batch.len()],
        };
        let mut again = Vec::new();
        for (mut proposal, result) in batch.drain(..).zip(results) {
            match result {
                Ok(applied) => proposal.answer(Ok(applied)),
                Err(ProposeError::Refused(refusal)) => proposal.answer(Err(ProposeError::Refused(refusal))),
                Err(error @ (ProposeError::Overloaded | ProposeError::NoSpace(_))) => {
                    proposal.had_no_effect();
                    proposal.not_done(error);
                }
                Err(ProposeError::NotLeader(_) | ProposeError::Unavailable(_)) => {
                    proposal.had_no_effect();
                    again.push(proposal);
                }
                Err(ProposeError::Unknown(_)) => {
                    proposal.may_have_had_effect();
                    again.push(proposal);
                }
            }
        }
        if !again.is_empty() {
            self.queue.put_back(again, "the leader was lost");
            self.hold(ctx);
        }
    }

    pub(super) fn forward_reads(&mut self, leader: &Leader, ctx: &mut Context<Self>) {
        if let Some(round) = self.rounds.begin(Instant::now()) {
            let answered = self.peers.read_index(leader, Instant::now() + READ_ROUND);
            let mut epoch = self.epoch.subscribe();
            let asked = async move {
                tokio::select! {
                    answered = answered => answered.map_err(|PeerError(why)| why),
                    _ = epoch.changed() => Err("another node leads now".to_owned()),
                }
            };
            ctx.spawn(
                asked
                    .into_actor(self)
                    .map(move |answered, actor, ctx| actor.confirmed(round, answered, ctx)),
            );
        }
    }
}
