//! Commands and their outcomes to and from `raft.proto`: what the log holds and peers forward.
//!
//! Encoding cannot fail. Decoding takes nothing on trust: every error names what is wrong, and a
//! path is cleaned again.

use std::net::IpAddr;

use bytes::Bytes;
use prost::Message;

use super::raft as pb;
use crate::domain::command::{
    AllocationPlan, Applied, Command, Op, Origin, Orphan, Outcome, Refusal, RefusalKind, RequestId,
};
use crate::domain::ids::{BlockId, InodeId, ServerId};
use crate::domain::path::CleanPath;
use crate::domain::state::{BlockRun, ServerStatus};

/// The version of [`encode_batch`]'s encoding. A server refuses to apply a newer one, and reads older
/// ones: 2 added staged writes, [`Op::AbandonWrites`] and [`Op::Condemn`]; 3 added [`Origin`] and
/// [`Command::digest`].
pub const BATCH_VERSION: u32 = 3;

/// A message from the log or a peer that does not make sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not protobuf.
    #[error("malformed message: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// Written by a newer server.
    #[error("encoding version {found} is newer than {known}, the newest that this server knows: upgrade it")]
    NewerVersion {
        /// The version found.
        found: u32,
        /// The newest one known.
        known: u32,
    },
    /// A part is missing or impossible.
    #[error("{0}")]
    Invalid(String),
}

fn invalid(what: impl Into<String>) -> DecodeError {
    DecodeError::Invalid(what.into())
}

/// The bytes of one log entry.
pub fn encode_batch<'c>(commands: impl IntoIterator<Item = &'c Command>) -> Bytes {
    let commands = commands.into_iter().map(command_to_proto).collect();
    pb::CommandBatch {
        version: BATCH_VERSION,
        commands,
    }
    .encode_to_vec()
    .into()
}

/// The commands of one log entry.
///
/// # Errors
/// When the bytes are not a batch, or one of a newer server.
pub fn decode_batch(bytes: &[u8]) -> Result<Vec<Command>, DecodeError> {
    let batch = pb::CommandBatch::decode(bytes)?;
    if batch.version > BATCH_VERSION {
        return Err(DecodeError::NewerVersion {
            found: batch.version,
            known: BATCH_VERSION,
        });
    }
    batch.commands.into_iter().map(command_from_proto).collect()
}

/// A command for the wire.
pub fn command_to_proto(command: &Command) -> pb::Command {
    use pb::command::Op as P;
    let op = match &command.op {
        Op::Create { path, directory } => P::Create(pb::Create {
            path: path.to_string(),
            directory: *directory,
        }),
        Op::Delete { path, recursive } => P::Delete(pb::Delete {
            path: path.to_string(),
            recursive: *recursive,
        }),
        Op::Allocate {
            path,
            size,
            plan,
            staged,
        } => {
            let plan = plan.as_ref().map(|plan| pb::AllocationPlan {
                block_size: plan.block_size,
                replication: plan.replication,
                servers: plan.servers.iter().map(|server| server.0).collect(),
            });
            P::Allocate(pb::Allocate {
                path: path.to_string(),
                size: *size,
                plan,
                staged: *staged,
            })
        }
        Op::Finalize {
            path,
            inode,
            size,
            md5,
            staged,
        } => P::Finalize(pb::Finalize {
            path: path.to_string(),
            inode: inode.0,
            size: *size,
            md5: md5.clone(),
            staged_block: staged.map_or(0, |block| block.0),
        }),
        Op::AbandonWrites { runs } => P::AbandonWrites(pb::AbandonWrites {
            blocks: runs.iter().map(|block| block.0).collect(),
        }),
        Op::MoveReplica { block, from, to } => P::MoveReplica(pb::MoveReplica {
            block: block.0,
            from: from.0,
            to: to.0,
        }),
        Op::RegisterDataServer { id, addr } => P::RegisterDataServer(pb::RegisterDataServer {
            id: id.clone(),
            addr: addr.clone(),
        }),
        Op::SetDataServerStatus { server, status } => P::SetDataServerStatus(pb::SetDataServerStatus {
            server: server.0,
            status: status_to_proto(*status).into(),
        }),
        Op::ReleaseGarbage { runs } => P::ReleaseGarbage(pb::ReleaseGarbage {
            blocks: runs.iter().map(|block| block.0).collect(),
        }),
        Op::Condemn { orphans } => P::Condemn(pb::Condemn {
            orphans: orphans.iter().map(orphan_to_proto).collect(),
        }),
        Op::Reclaim { limit } => P::Reclaim(pb::Reclaim { limit: *limit }),
    };
    let request_id = command
        .request_id
        .as_ref()
        .map_or_else(Vec::new, |id| id.as_bytes().to_vec());
    pb::Command {
        time_ms: command.time_ms,
        request_id,
        digest: command.digest,
        op: Some(op),
        origin: command.origin.as_ref().map(origin_to_proto),
    }
}

/// The wire's form of an origin.
pub fn origin_to_proto(origin: &Origin) -> pb::Origin {
    pb::Origin {
        peer: match origin.peer {
            IpAddr::V4(peer) => peer.octets().to_vec(),
            IpAddr::V6(peer) => peer.octets().to_vec(),
        },
        gateway: origin.gateway,
        number: origin.number,
    }
}

/// Reads an origin.
///
/// # Errors
/// When the address has another length than addresses have.
pub fn origin_from_proto(origin: &pb::Origin) -> Result<Origin, DecodeError> {
    let bytes = origin.peer.as_slice();
    let peer = if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        IpAddr::from(four)
    } else if let Ok(sixteen) = <[u8; 16]>::try_from(bytes) {
        IpAddr::from(sixteen)
    } else {
        return Err(invalid(format!("an address of {} bytes", bytes.len())));
    };
    Ok(Origin {
        peer,
        gateway: origin.gateway,
        number: origin.number,
    })
}

/// A command from the wire.
///
/// # Errors
/// When a part is missing or impossible.
pub fn command_from_proto(command: pb::Command) -> Result<Command, DecodeError> {
    use pb::command::Op as P;
    let op = match command
        .op
        .ok_or_else(|| invalid("command without an operation"))?
    {
        P::Create(c) => Op::Create {
            path: path(&c.path)?,
            directory: c.directory,
        },
        P::Delete(c) => Op::Delete {
            path: path(&c.path)?,
            recursive: c.recursive,
        },
        P::Allocate(c) => {
            let plan = c.plan.map(|plan| AllocationPlan {
                block_size: plan.block_size,
                replication: plan.replication,
                servers: plan.servers.into_iter().map(ServerId).collect(),
            });
            Op::Allocate {
                path: path(&c.path)?,
                size: c.size,
                plan,
                staged: c.staged,
            }
        }
        P::Finalize(c) => {
            if c.size > i64::MAX as u64 {
                return Err(invalid("finalize: size out of range"));
            }
            Op::Finalize {
                path: path(&c.path)?,
                inode: InodeId(c.inode),
                size: c.size,
                md5: c.md5,
                staged: (c.staged_block != 0).then_some(BlockId(c.staged_block)),
            }
        }
        P::AbandonWrites(c) => Op::AbandonWrites {
            runs: c.blocks.into_iter().map(BlockId).collect(),
        },
        P::MoveReplica(c) => Op::MoveReplica {
            block: BlockId(c.block),
            from: ServerId(c.from),
            to: ServerId(c.to),
        },
        P::RegisterDataServer(c) => Op::RegisterDataServer {
            id: c.id,
            addr: c.addr,
        },
        P::SetDataServerStatus(c) => Op::SetDataServerStatus {
            server: ServerId(c.server),
            status: status_from_proto(c.status)?,
        },
        P::ReleaseGarbage(c) => Op::ReleaseGarbage {
            runs: c.blocks.into_iter().map(BlockId).collect(),
        },
        P::Condemn(c) => Op::Condemn {
            orphans: c.orphans.into_iter().map(orphan_from_proto).collect(),
        },
        P::Reclaim(c) => Op::Reclaim { limit: c.limit },
    };
    let request_id = match command.request_id.as_slice() {
        [] => None,
        bytes => Some(RequestId::new(bytes).map_err(|refusal| invalid(refusal.message))?),
    };
    Ok(Command {
        time_ms: command.time_ms,
        request_id,
        digest: command.digest,
        origin: command.origin.as_ref().map(origin_from_proto).transpose()?,
        op,
    })
}

/// An answer for the wire.
pub fn applied_to_proto(applied: &Applied) -> pb::Outcome {
    use pb::outcome::Result as P;
    let done = pb::Done {};
    let result = match applied {
        Err(refusal) => P::Refusal(refusal_to_proto(refusal)),
        Ok(Outcome::Created { inode }) => P::Created(pb::Created { inode: inode.0 }),
        Ok(Outcome::Deleted) => P::Deleted(done),
        Ok(Outcome::Allocated { inode, blocks }) => P::Allocated(pb::Allocated {
            inode: inode.0,
            blocks: Some(run_to_proto(blocks)),
        }),
        Ok(Outcome::Finalized) => P::Finalized(done),
        Ok(Outcome::WritesAbandoned { writes }) => P::WritesAbandoned(*writes),
        Ok(Outcome::Condemned { blocks }) => P::Condemned(*blocks),
        Ok(Outcome::ReplicaMoved) => P::ReplicaMoved(done),
        Ok(Outcome::DataServerRegistered { server }) => {
            P::DataServerRegistered(pb::DataServerRegistered { server: server.0 })
        }
        Ok(Outcome::StatusSet) => P::StatusSet(done),
        Ok(Outcome::GarbageReleased) => P::GarbageReleased(done),
        Ok(Outcome::Reclaimed { records, more }) => P::Reclaimed(pb::Reclaimed {
            records: *records,
            more: *more,
        }),
    };
    pb::Outcome { result: Some(result) }
}

/// An answer from the wire.
///
/// # Errors
/// When a part is missing or impossible.
pub fn applied_from_proto(outcome: pb::Outcome) -> Result<Applied, DecodeError> {
    use pb::outcome::Result as P;
    Ok(
        match outcome
            .result
            .ok_or_else(|| invalid("outcome without a result"))?
        {
            P::Refusal(refusal) => Err(refusal_from_proto(refusal)?),
            P::Created(o) => Ok(Outcome::Created {
                inode: InodeId(o.inode),
            }),
            P::Deleted(_) => Ok(Outcome::Deleted),
            P::Allocated(o) => {
                let blocks = o.blocks.ok_or_else(|| invalid("allocation without blocks"))?;
                Ok(Outcome::Allocated {
                    inode: InodeId(o.inode),
                    blocks: run_from_proto(blocks)?,
                })
            }
            P::Finalized(_) => Ok(Outcome::Finalized),
            P::WritesAbandoned(writes) => Ok(Outcome::WritesAbandoned { writes }),
            P::Condemned(blocks) => Ok(Outcome::Condemned { blocks }),
            P::ReplicaMoved(_) => Ok(Outcome::ReplicaMoved),
            P::DataServerRegistered(o) => Ok(Outcome::DataServerRegistered {
                server: ServerId(o.server),
            }),
            P::StatusSet(_) => Ok(Outcome::StatusSet),
            P::GarbageReleased(_) => Ok(Outcome::GarbageReleased),
            P::Reclaimed(o) => Ok(Outcome::Reclaimed {
                records: o.records,
                more: o.more,
            }),
        },
    )
}

/// A refusal for the wire.
pub fn refusal_to_proto(refusal: &Refusal) -> pb::Refusal {
    let kind = match refusal.kind {
        RefusalKind::InvalidArgument => 1,
        RefusalKind::NotFound => 2,
        RefusalKind::AlreadyExists => 3,
        RefusalKind::FailedPrecondition => 4,
    };
    pb::Refusal {
        kind,
        message: refusal.message.clone(),
    }
}

/// A refusal from the wire.
///
/// # Errors
/// When its kind is unknown.
pub fn refusal_from_proto(refusal: pb::Refusal) -> Result<Refusal, DecodeError> {
    let kind = match refusal.kind {
        1 => RefusalKind::InvalidArgument,
        2 => RefusalKind::NotFound,
        3 => RefusalKind::AlreadyExists,
        4 => RefusalKind::FailedPrecondition,
        other => return Err(invalid(format!("unknown kind of refusal: {other}"))),
    };
    Ok(Refusal {
        kind,
        message: refusal.message,
    })
}

/// A run of blocks for the wire and the disk.
pub fn run_to_proto(run: &BlockRun) -> pb::BlockRun {
    pb::BlockRun {
        first: run.first.0,
        count: run.count,
        block_size: run.block_size,
        replication: run.replication,
        servers: run.servers.iter().map(|server| server.0).collect(),
    }
}

/// A run of blocks from the wire or the disk.
///
/// # Errors
/// When it has no blocks, no servers, or ids out of range.
pub fn run_from_proto(run: pb::BlockRun) -> Result<BlockRun, DecodeError> {
    let end = run.first.checked_add(run.count);
    if run.count == 0 || run.servers.is_empty() || end.is_none_or(|end| end > crate::domain::ids::ID_LIMIT) {
        return Err(invalid(format!(
            "impossible run of {} blocks from {}",
            run.count, run.first
        )));
    }
    Ok(BlockRun {
        first: BlockId(run.first),
        count: run.count,
        block_size: run.block_size,
        replication: run.replication,
        servers: run.servers.into_iter().map(ServerId).collect(),
    })
}

fn orphan_to_proto(orphan: &Orphan) -> pb::condemn::Orphan {
    pb::condemn::Orphan {
        block: orphan.block.0,
        holders: orphan.holders.iter().map(|server| server.0).collect(),
    }
}

fn orphan_from_proto(orphan: pb::condemn::Orphan) -> Orphan {
    Orphan {
        block: BlockId(orphan.block),
        holders: orphan.holders.into_iter().map(ServerId).collect(),
    }
}

/// A status for the wire and the disk.
pub fn status_to_proto(status: ServerStatus) -> pb::DataServerStatus {
    match status {
        ServerStatus::Healthy => pb::DataServerStatus::Healthy,
        ServerStatus::Unhealthy => pb::DataServerStatus::Unhealthy,
        ServerStatus::Down => pb::DataServerStatus::Down,
    }
}

/// A status from the wire or the disk.
///
/// # Errors
/// When it is unknown.
pub fn status_from_proto(status: i32) -> Result<ServerStatus, DecodeError> {
    match pb::DataServerStatus::try_from(status) {
        Ok(pb::DataServerStatus::Healthy) => Ok(ServerStatus::Healthy),
        Ok(pb::DataServerStatus::Unhealthy) => Ok(ServerStatus::Unhealthy),
        Ok(pb::DataServerStatus::Down) => Ok(ServerStatus::Down),
        Err(_) => Err(invalid(format!("unknown DataServer status: {status}"))),
    }
}

fn path(raw: &str) -> Result<CleanPath, DecodeError> {
    CleanPath::parse(raw).map_err(|refusal| invalid(refusal.message))
}

#[cfg(test)]
mod tests;
