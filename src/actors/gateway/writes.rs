//! Create, delete, allocate, finalize: each is one proposal, and its outcome is the answer.
//!
//! What no state could make right is refused here, before it costs a log entry; everything else is
//! decided when the command is applied.

use super::reads::Locator;
use super::service::{Call, NoAnswer, Shared, ask};
use super::status::Failure;
use crate::actors::raft_node::messages::{Propose, ProposeError};
use crate::domain::command::{Op, Outcome, Refusal};
use crate::domain::ids::{BlockId, InodeId};
use crate::domain::path::CleanPath;
use crate::domain::state::BlockRun;
use crate::proto::dfs::{
    CreateNodeRequest, DeleteNodeRequest, FileType, FinalizeWriteRequest, GetBlockLocationsResponse,
    SimpleResponse,
};

/// An MD5 in hexadecimal has 32 bytes; whatever a client sends instead is kept for it, but not a
/// whole file.
const MAX_MD5_BYTES: usize = 256;

impl Shared {
    /// Proposes a command and waits for what applying it says.
    async fn propose(&self, call: &Call, op: Op) -> Result<Outcome, Failure> {
        let request_id = call.request_id()?;
        let receipt = call.receipt.as_ref().filter(|_| request_id.is_none());
        let origin = receipt.and_then(|receipt| Some(receipt.draw(call.came_from()?)));
        let proposal = Propose {
            op,
            request_id,
            origin,
            deadline: call.deadline.for_neighbours(),
            forwarded: false,
        };
        match ask(&self.neighbours.propose, proposal, call.deadline.for_handler()).await {
            Ok(Ok(applied)) => {
                let outcome = applied?;
                if let Some(receipt) = receipt {
                    receipt.succeeded();
                }
                Ok(outcome)
            }
            Ok(Err(error)) => Err(Failure::Propose(error)),
            Err(NoAnswer::NotAsked) => Err(Failure::NoAnswer("the Raft node")),
            Err(NoAnswer::Asked) => Err(unknown("no answer from the Raft node")),
        }
    }

    pub(super) async fn create_node(
        &self,
        call: &Call,
        request: CreateNodeRequest,
    ) -> Result<SimpleResponse, Failure> {
        let path = CleanPath::parse(&request.path)?;
        let directory = is_directory(request.r#type, &path)?;
        match self.propose(call, Op::Create { path, directory }).await? {
            Outcome::Created { .. } => Ok(done()),
            other => Err(of_another_request(&other)),
        }
    }

    pub(super) async fn delete_node(
        &self,
        call: &Call,
        request: DeleteNodeRequest,
    ) -> Result<SimpleResponse, Failure> {
        let path = CleanPath::parse(&request.path)?;
        if path.is_root() {
            return Err(Refusal::invalid_argument("the root cannot be deleted: /").into());
        }
        let recursive = request.recursive;
        match self.propose(call, Op::Delete { path, recursive }).await? {
            Outcome::Deleted => Ok(done()),
            other => Err(of_another_request(&other)),
        }
    }

    pub(super) async fn finalize_write(
        &self,
        call: &Call,
        request: FinalizeWriteRequest,
    ) -> Result<SimpleResponse, Failure> {
        match self.propose(call, finalize(request)?).await? {
            Outcome::Finalized => Ok(done()),
            other => Err(of_another_request(&other)),
        }
    }

    /// Gives a file new blocks; the leader says where.
    pub(super) async fn allocate(&self, call: &Call, op: Op) -> Result<GetBlockLocationsResponse, Failure> {
        let outcome = self.propose(call, op).await?;
        self.allocated(call, outcome).await
    }

    /// What an allocation, now or the first time that this request was made, has given.
    pub(super) async fn allocated(
        &self,
        call: &Call,
        outcome: Outcome,
    ) -> Result<GetBlockLocationsResponse, Failure> {
        match outcome {
            Outcome::Allocated { inode, blocks } => self.locate(call, inode, blocks).await,
            other => Err(of_another_request(&other)),
        }
    }

    /// Names the DataServers of blocks that were just allocated. This node may be a follower that has
    /// not heard yet of the newest ones; then it waits until it has.
    async fn locate(
        &self,
        call: &Call,
        inode: InodeId,
        run: BlockRun,
    ) -> Result<GetBlockLocationsResponse, Failure> {
        let servers = run.servers.clone();
        let all_known = self.state.read(|view| {
            let mut locator = Locator::new(view);
            servers
                .iter()
                .try_fold(true, |all, &server| Ok(all && locator.server(server)?.is_some()))
        });
        // The allocation is done: a failure from here on must not say that nothing happened.
        let lost = |failure: Failure| unknown(&format!("allocated, but cannot say where: {failure}"));
        if !all_known.map_err(|error| lost(error.into()))? {
            self.await_read(call).await.map_err(lost)?;
        }
        let block_locations = self
            .look(call, move |view, limit| Locator::new(view).blocks(&run, limit))
            .await
            .map_err(lost)?;
        Ok(GetBlockLocationsResponse {
            inode: inode.0,
            block_locations,
        })
    }
}

/// What asks for new blocks; the leader will say where they go.
pub(super) fn allocation(path: CleanPath, size: u64, staged: bool) -> Op {
    Op::Allocate {
        path,
        size,
        plan: None,
        staged,
    }
}

/// What a CreateNode asks for. `Unknown` means a file, as with the first server.
fn is_directory(kind: i32, path: &CleanPath) -> Result<bool, Refusal> {
    match FileType::try_from(kind) {
        Ok(FileType::Directory) => Ok(true),
        Ok(FileType::File | FileType::Unknown) => Ok(false),
        Ok(FileType::Volume) => Err(Refusal::invalid_argument(format!(
            "a volume cannot be created: {path}"
        ))),
        Err(_) => Err(Refusal::invalid_argument(format!(
            "no file type has number {kind}: {path}"
        ))),
    }
}

fn finalize(request: FinalizeWriteRequest) -> Result<Op, Refusal> {
    let path = CleanPath::parse(&request.path)?;
    let invalid = |why: String| Err(Refusal::invalid_argument(format!("{why}: {path}")));
    let Ok(size) = u64::try_from(request.size) else {
        return invalid(format!("size {} is negative", request.size));
    };
    if request.inode == 0 {
        return invalid("inode must not be 0".to_owned());
    }
    if request.md5.len() > MAX_MD5_BYTES {
        return invalid(format!("md5 has {} bytes", request.md5.len()));
    }
    Ok(Op::Finalize {
        inode: InodeId(request.inode),
        size,
        md5: request.md5,
        path,
        staged: (request.staged_block != 0).then_some(BlockId(request.staged_block)),
    })
}

fn done() -> SimpleResponse {
    SimpleResponse {
        success: true,
        message: String::new(),
    }
}

fn unknown(why: &str) -> Failure {
    Failure::Propose(ProposeError::Unknown(why.to_owned()))
}

/// A request id that an older server remembers brings back its first answer, whatever was asked then.
fn of_another_request(outcome: &Outcome) -> Failure {
    let message = format!("the request id was used for another request, whose outcome was {outcome:?}");
    Refusal::invalid_argument(message).into()
}
