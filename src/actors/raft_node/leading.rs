//! What the Raft node does while it leads: it makes log entries of the proposals that wait, has openraft
//! confirm that reads may be answered, and answers both.
//!
//! A few entries may be under way at once; the next one fills meanwhile. An allocation is planned before it
//! enters the log.

use std::time::Instant;

use actix::prelude::*;

use super::consensus::{ReadIndexError, WriteError};
use super::messages::ProposeError;
use super::proposals::Proposal;
use super::{READ_ROUND, RaftNodeActor, repeats};
use crate::actors::data_servers::messages::PlanAllocation;
use crate::actors::unix_ms;
use crate::config::ReadMode;
use crate::domain::command::{AllocationPlan, Op, Refusal};
use crate::proto::convert::encode_batch;
use crate::raft::types::{Batch, BatchOutcome};

/// Log entries of commands that may be under way at once: the next one fills while these are written.
const ENTRIES_IN_FLIGHT: usize = 4;

impl RaftNodeActor {
    pub(super) fn write(&mut self, ctx: &mut Context<Self>) {
        while self.in_flight < ENTRIES_IN_FLIGHT {
            let mut unplanned = Vec::new();
            let mut batch = self.queue.take(Instant::now(), Some(&mut unplanned));
            for proposal in unplanned {
                self.ask_for_plan(proposal, ctx);
            }
            if batch.is_empty() {
                break;
            }
            let time_ms = unix_ms();
            for proposal in &mut batch {
                proposal.date(time_ms);
                proposal.sent();
            }
            let entry = Batch(encode_batch(batch.iter().map(|proposal| &proposal.command)));
            let written = self.consensus.write(entry);
            self.in_flight += 1;
            ctx.spawn(written.into_actor(self).map(move |result, actor, ctx| {
                actor.in_flight -= 1;
                actor.written(batch, result, ctx);
                actor.pump(ctx);
            }));
        }
    }

    fn written(
        &mut self,
        mut batch: Vec<Proposal>,
        result: Result<BatchOutcome, WriteError>,
        ctx: &mut Context<Self>,
    ) {
        match result {
            Ok(outcomes) => {
                debug_assert_eq!(outcomes.0.len(), batch.len());
                for (proposal, applied) in batch.into_iter().zip(outcomes.0) {
                    match applied {
                        Err(refusal) if repeats::may_be_one(&proposal.command, &refusal) => {
                            self.look_for_a_first(proposal, refusal, ctx);
                        }
                        applied => proposal.answer(Ok(applied)),
                    }
                }
            }
            Err(WriteError::NotLeader) => {
                batch.iter().for_each(Proposal::had_no_effect);
                self.queue.put_back(batch, "leadership was lost");
                self.hold(ctx);
            }
            Err(WriteError::Unknown(why)) => {
                batch.iter_mut().for_each(Proposal::may_have_had_effect);
                self.queue.put_back(batch, &why);
                self.hold(ctx);
            }
        }
    }

    /// A refused command may be the repeat of one that succeeded and whose answer was lost.
    fn look_for_a_first(&self, proposal: Proposal, refusal: Refusal, ctx: &mut Context<Self>) {
        let members = self.consensus.status().members;
        let found = repeats::first_answer(
            self.memory.clone(),
            self.peers.clone(),
            members,
            &proposal.command,
            proposal.deadline,
        );
        ctx.spawn(
            found
                .into_actor(self)
                .map(move |first, _, _| proposal.answer(Ok(first.ok_or(refusal)))),
        );
    }

    fn ask_for_plan(&mut self, proposal: Proposal, ctx: &mut Context<Self>) {
        let Op::Allocate { size, .. } = proposal.command.op else {
            return self.queue.push(proposal);
        };
        let planned = self.plan.send(PlanAllocation { size });
        ctx.spawn(
            planned
                .into_actor(self)
                .map(move |planned, actor, ctx| actor.planned(proposal, planned, ctx)),
        );
    }

    fn planned(
        &mut self,
        mut proposal: Proposal,
        planned: Result<Result<AllocationPlan, Refusal>, MailboxError>,
        ctx: &mut Context<Self>,
    ) {
        match planned {
            Ok(Ok(made)) => {
                if let Op::Allocate { plan, .. } = &mut proposal.command.op {
                    *plan = Some(made);
                }
                self.queue.push(proposal);
                self.pump(ctx);
            }
            Ok(Err(refusal)) => proposal.answer(Err(ProposeError::Refused(refusal))),
            Err(error) => proposal.answer(Err(ProposeError::Unavailable(format!(
                "no plan for the blocks: {error}"
            )))),
        }
    }

    pub(super) fn confirm_reads(&mut self, ctx: &mut Context<Self>) {
        if let Some(round) = self.rounds.begin(Instant::now()) {
            let lease = self.settings.reads == ReadMode::Lease;
            let confirmed = self.consensus.read_index(lease, READ_ROUND);
            ctx.spawn(confirmed.into_actor(self).map(move |confirmed, actor, ctx| {
                let confirmed = confirmed.map_err(|error| match error {
                    ReadIndexError::NotLeader => "leadership was lost".to_owned(),
                    ReadIndexError::NoQuorum(why) => why,
                });
                actor.confirmed(round, confirmed, ctx);
            }));
        }
    }
}
