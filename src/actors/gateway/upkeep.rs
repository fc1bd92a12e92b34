//! GetUpkeep and AllowMassDelete: what the leader's upkeep does, for operators.
//!
//! Nothing is counted here: the DataServers' keeper knows the reports and the orders under way, the
//! scheduler what its last passes found, the state how much garbage there is.

use std::time::Instant;

use actix::{Message, Recipient};

use super::cluster::KEEPER;
use super::service::{Call, Shared, ask};
use super::status::Failure;
use crate::actors::data_servers::messages::{GetOrders, ServerReport};
use crate::actors::scheduler::messages::{AllowMassDelete, GcSummary, GetUpkeepStatus};
use crate::actors::unix_ms;
use crate::domain::gc::Strangers;
use crate::domain::state::ServerStatus;
use crate::proto::admin::{AllowMassDeleteResponse, DataServerUpkeep, GetUpkeepResponse};

/// Who has no answer when it is not the Raft node or the DataServers' keeper.
const SCHEDULER: &str = "the scheduler";

impl Shared {
    pub(super) async fn get_upkeep(&self, call: &Call) -> Result<GetUpkeepResponse, Failure> {
        self.lead_for_sure(call).await?;
        let neighbours = &self.neighbours;
        let reports = self.reports(call).await?;
        let orders = answer_of(&neighbours.get_orders, GetOrders, call, KEEPER).await?;
        let status = answer_of(&neighbours.get_upkeep, GetUpkeepStatus, call, SCHEDULER).await?;
        let garbage_runs = self.state.read(|view| view.garbage_len())?;

        let (now, now_ms) = (Instant::now(), unix_ms());
        let ms_since = |then: Instant| now.saturating_duration_since(then).as_millis() as u64;
        let strangers = |report: &ServerReport| {
            let seen = status.gc.as_ref().and_then(|gc| gc.strangers.get(&report.server));
            seen.copied().unwrap_or_default()
        };
        let servers = reports.servers.iter();
        let fsck = status.fsck.map(|fsck| fsck.counts).unwrap_or_default();
        let gc = status.gc.as_ref().map(|gc| gc.counts).unwrap_or_default();
        Ok(GetUpkeepResponse {
            waiting_for_reports: !reports.complete,
            data_servers: servers
                .map(|report| data_server(report, strangers(report), now_ms))
                .collect(),
            garbage_runs,
            garbage_blocks: gc.garbage_blocks,
            garbage_replicas: gc.garbage_replicas,
            repairs_running: orders.repairs_running as u64,
            repairs_waiting: orders.repairs_waiting as u64,
            unrepairable: fsck.unrepairable,
            open_writes: fsck.open_writes,
            reclaiming: status.reclaiming,
            fsck_ms_ago: status.fsck.map(|fsck| ms_since(fsck.finished)),
            gc_ms_ago: status.gc.as_ref().map(|gc: &GcSummary| ms_since(gc.finished)),
        })
    }

    pub(super) async fn allow_mass_delete(&self, call: &Call) -> Result<AllowMassDeleteResponse, Failure> {
        self.lead_for_sure(call).await?;
        // Unanswered, the word may have been taken; given twice it allows no more than given once.
        let allow = &self.neighbours.allow_mass_delete;
        let blocks = answer_of(allow, AllowMassDelete, call, SCHEDULER).await?;
        Ok(AllowMassDeleteResponse { blocks })
    }
}

async fn answer_of<M>(
    of: &Recipient<M>,
    question: M,
    call: &Call,
    who: &'static str,
) -> Result<M::Result, Failure>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    let answer = ask(of, question, call.deadline.for_handler()).await;
    answer.map_err(|_| Failure::NoAnswer(who))
}

fn data_server(report: &ServerReport, strangers: Strangers, now_ms: i64) -> DataServerUpkeep {
    let status = match report.status {
        ServerStatus::Healthy => "healthy",
        ServerStatus::Unhealthy => "unhealthy",
        ServerStatus::Down => "down",
    };
    DataServerUpkeep {
        id: report.id.clone(),
        addr: report.addr.clone(),
        status: status.to_owned(),
        alive: report.alive,
        // A clock that was set back makes no silence negative.
        silent_ms: report
            .reported_ms
            .map(|then| u64::try_from(now_ms.saturating_sub(then)).unwrap_or(0)),
        blocks: report.blocks.len() as u64,
        corrupt_blocks: report.corrupt.len() as u64,
        free_space: report.free_space,
        total_capacity: report.total_capacity,
        unknown_blocks: strangers.unknown + strangers.foreign,
        held_back: strangers.held_back,
        foreign_blocks: strangers.foreign,
    }
}
