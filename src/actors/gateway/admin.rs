//! The operators' service: each RPC is taken apart and answered by a method of [`Shared`]. What this node
//! knows of itself is told here; the rest, which only the leader knows, in `check_files` and `upkeep`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::service::{Call, Shared, ask};
use super::status::Failure;
use crate::actors::auditor::messages::{Verification, VerifyState};
use crate::actors::raft_node::messages::{GetStatus, MemberStatus, Role};
use crate::domain::state::ReadTables;
use crate::domain::state_hash::StateHash;
use crate::proto::admin::admin_service_server::AdminService;
use crate::proto::admin::{
    self, AllowMassDeleteRequest, AllowMassDeleteResponse, CheckFilesRequest, CheckFilesResponse,
    GetNodeStatusRequest, GetNodeStatusResponse, GetUpkeepRequest, GetUpkeepResponse, StateVerification,
    VerifyStateRequest, VerifyStateResponse,
};

/// The operators' service.
#[derive(Clone)]
pub(super) struct AdminDesk(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl AdminService for AdminDesk {
    async fn get_node_status(
        &self,
        request: Request<GetNodeStatusRequest>,
    ) -> Result<Response<GetNodeStatusResponse>, Status> {
        let (call, _) = self.0.open(request);
        self.0.answer(&call, self.0.get_node_status(&call)).await
    }

    async fn verify_state(
        &self,
        request: Request<VerifyStateRequest>,
    ) -> Result<Response<VerifyStateResponse>, Status> {
        let (call, VerifyStateRequest { begin }) = self.0.open(request);
        self.0.answer(&call, self.0.verify_state(&call, begin)).await
    }

    async fn check_files(
        &self,
        request: Request<CheckFilesRequest>,
    ) -> Result<Response<CheckFilesResponse>, Status> {
        let (call, message) = self.0.open(request);
        self.0.answer(&call, self.0.check_files(&call, message)).await
    }

    async fn get_upkeep(
        &self,
        request: Request<GetUpkeepRequest>,
    ) -> Result<Response<GetUpkeepResponse>, Status> {
        let (call, _) = self.0.open(request);
        self.0.answer(&call, self.0.get_upkeep(&call)).await
    }

    async fn allow_mass_delete(
        &self,
        request: Request<AllowMassDeleteRequest>,
    ) -> Result<Response<AllowMassDeleteResponse>, Status> {
        let (call, _) = self.0.open(request);
        self.0.answer(&call, self.0.allow_mass_delete(&call)).await
    }
}

impl Shared {
    async fn verify_state(&self, call: &Call, begin: bool) -> Result<VerifyStateResponse, Failure> {
        let answer = ask(
            &self.neighbours.verify_state,
            VerifyState { begin },
            call.deadline.for_handler(),
        );
        let status = answer.await.map_err(|_| Failure::NoAnswer("the auditor"))?;
        Ok(VerifyStateResponse {
            begun: status.begun,
            records_so_far: status.records_so_far,
            last: status.last.map(verification),
            recent: status.recent.into_iter().map(state_hash).collect(),
        })
    }

    async fn get_node_status(&self, call: &Call) -> Result<GetNodeStatusResponse, Failure> {
        let answer = ask(
            &self.neighbours.get_status,
            GetStatus,
            call.deadline.for_handler(),
        )
        .await;
        let status = answer.map_err(|_| Failure::NoAnswer("the Raft node"))?;
        let raft = status.raft;
        let counters = self.state.read(|view| view.counters())?;
        Ok(GetNodeStatusResponse {
            name: status.name,
            incarnation: raft.incarnation,
            cluster_id: status.cluster_id.unwrap_or_default(),
            role: role(raft.role).into(),
            term: raft.term,
            leader: raft.leader,
            last_log_index: raft.last_log,
            committed_index: raft.committed,
            applied_index: raft.applied,
            snapshot_index: raft.snapshot,
            purged_index: raft.purged,
            members: raft.members.into_iter().map(member).collect(),
            inodes: counters.inodes,
            state_bytes: self.state.bytes_on_disk(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            free_space: status.space.measured.free,
            wanted_space: status.space.wanted,
            writes_refused: status.writes_refused.unwrap_or_default(),
        })
    }
}

fn role(role: Role) -> admin::Role {
    match role {
        Role::Learner => admin::Role::Learner,
        Role::Follower => admin::Role::Follower,
        Role::Candidate => admin::Role::Candidate,
        Role::Leader => admin::Role::Leader,
    }
}

fn member(member: MemberStatus) -> admin::Member {
    admin::Member {
        name: member.name,
        incarnation: member.incarnation,
        raft_addr: member.raft_addr,
        grpc_addr: member.grpc_addr,
        voter: member.voter,
        matched_index: member.matched,
    }
}

fn state_hash((index, hash): (u64, StateHash)) -> admin::StateHash {
    admin::StateHash {
        index,
        hash: hash.to_bytes().to_vec(),
    }
}

fn verification(verification: Verification) -> StateVerification {
    let Verification {
        number,
        applied,
        found,
        took,
    } = verification;
    let index = applied.unwrap_or_default();
    let common = StateVerification {
        number,
        took_ms: took.as_millis() as u64,
        ..StateVerification::default()
    };
    match found {
        Ok(found) => StateVerification {
            recorded: Some(state_hash((index, found.recorded))),
            computed: found.computed.to_bytes().to_vec(),
            records: found.records,
            ..common
        },
        Err(problem) => StateVerification { problem, ..common },
    }
}
