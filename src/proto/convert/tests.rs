//! What goes out comes back the same, and what makes no sense is refused.

use std::net::IpAddr;

use super::*;

fn every_op() -> Vec<Op> {
    let path = CleanPath::parse("/a/b").unwrap();
    let plan = AllocationPlan {
        block_size: 4,
        replication: 2,
        servers: vec![ServerId(1), ServerId(9)],
    };
    vec![
        Op::Create {
            path: path.clone(),
            directory: true,
        },
        Op::Delete {
            path: path.clone(),
            recursive: true,
        },
        Op::Allocate {
            path: path.clone(),
            size: 9,
            plan: None,
            staged: true,
        },
        Op::Allocate {
            path: path.clone(),
            size: 9,
            plan: Some(plan),
            staged: false,
        },
        Op::Finalize {
            path: path.clone(),
            inode: InodeId(3),
            size: 8,
            md5: "d41d8".into(),
            staged: None,
        },
        Op::Finalize {
            path,
            inode: InodeId(3),
            size: 8,
            md5: "d41d8".into(),
            staged: Some(BlockId(7)),
        },
        Op::AbandonWrites {
            runs: vec![BlockId(5), BlockId(77)],
        },
        Op::Condemn {
            orphans: vec![Orphan {
                block: BlockId(9),
                holders: vec![ServerId(1), ServerId(4)],
            }],
        },
        Op::MoveReplica {
            block: BlockId(5),
            from: ServerId(1),
            to: ServerId(2),
        },
        Op::RegisterDataServer {
            id: "ds-1".into(),
            addr: "localhost:8001".into(),
        },
        Op::SetDataServerStatus {
            server: ServerId(1),
            status: ServerStatus::Down,
        },
        Op::ReleaseGarbage {
            runs: vec![BlockId(5), BlockId(77)],
        },
        Op::Reclaim { limit: 100 },
    ]
}

fn origin(peer: IpAddr) -> Origin {
    Origin {
        peer,
        gateway: 1 << 62,
        number: 300,
    }
}

#[test]
fn an_origin_keeps_its_bytes_and_needs_an_address() {
    let golden = pb::Origin {
        peer: vec![127, 0, 0, 1],
        gateway: 1 << 62,
        number: 300,
    };
    let bytes = b"\x0a\x04\x7f\x00\x00\x01\x11\x00\x00\x00\x00\x00\x00\x00\x40\x18\xac\x02";
    assert_eq!(pb::Origin::decode(&bytes[..]).unwrap(), golden);
    let read = origin([127, 0, 0, 1].into());
    assert_eq!(origin_to_proto(&read).encode_to_vec(), bytes);
    assert_eq!(origin_from_proto(&golden).unwrap(), read);
    for peer in [vec![], vec![1; 5], vec![1; 17]] {
        let error = origin_from_proto(&pb::Origin {
            peer,
            ..golden.clone()
        })
        .unwrap_err();
        assert!(error.to_string().contains("an address of"), "{error}");
    }
}

#[test]
fn commands_survive_the_trip() {
    let commands: Vec<_> = every_op()
        .into_iter()
        .enumerate()
        .map(|(i, op)| Command {
            time_ms: 1_700_000_000_000 + i as i64,
            request_id: (i % 2 == 0).then(|| RequestId::new(&[i as u8 + 1]).unwrap()),
            digest: (i % 2) as u64 * i as u64,
            origin: match i % 3 {
                0 => None,
                1 => Some(origin([10, 0, 0, i as u8].into())),
                _ => Some(origin([i as u8; 16].into())),
            },
            op,
        })
        .collect();
    assert_eq!(decode_batch(&encode_batch(&commands)).unwrap(), commands);
}

#[test]
fn outcomes_survive_the_trip() {
    let blocks = BlockRun {
        first: BlockId(5),
        count: 3,
        block_size: 4,
        replication: 2,
        servers: vec![ServerId(1), ServerId(2)],
    };
    for applied in [
        Ok(Outcome::Created { inode: InodeId(2) }),
        Ok(Outcome::Deleted),
        Ok(Outcome::Allocated {
            inode: InodeId(2),
            blocks,
        }),
        Ok(Outcome::Finalized),
        Ok(Outcome::ReplicaMoved),
        Ok(Outcome::WritesAbandoned { writes: 0 }),
        Ok(Outcome::WritesAbandoned { writes: 3 }),
        Ok(Outcome::Condemned { blocks: 4 }),
        Ok(Outcome::DataServerRegistered { server: ServerId(4) }),
        Ok(Outcome::StatusSet),
        Ok(Outcome::GarbageReleased),
        Ok(Outcome::Reclaimed {
            records: 3,
            more: true,
        }),
        Err(Refusal::invalid_argument("a")),
        Err(Refusal::not_found("b")),
        Err(Refusal::already_exists("c")),
        Err(Refusal::failed_precondition("d")),
    ] {
        assert_eq!(applied_from_proto(applied_to_proto(&applied)).unwrap(), applied);
    }
}

#[test]
fn a_newer_batch_is_refused_by_name() {
    let bytes = pb::CommandBatch {
        version: BATCH_VERSION + 1,
        commands: vec![],
    }
    .encode_to_vec();
    let error = decode_batch(&bytes).unwrap_err();
    assert_eq!(
        error,
        DecodeError::NewerVersion {
            found: BATCH_VERSION + 1,
            known: BATCH_VERSION
        }
    );
}

#[test]
fn nonsense_is_refused_not_believed() {
    for op in [
        pb::command::Op::Create(pb::Create {
            path: "relative".into(),
            directory: false,
        }),
        pb::command::Op::Allocate(pb::Allocate {
            path: "".into(),
            size: 1,
            plan: None,
            staged: true,
        }),
        pb::command::Op::Finalize(pb::Finalize {
            path: "/a".into(),
            inode: 1,
            size: 1 << 63,
            md5: String::new(),
            staged_block: 1,
        }),
        pb::command::Op::SetDataServerStatus(pb::SetDataServerStatus {
            server: 1,
            status: 99,
        }),
    ] {
        let command = pb::Command {
            op: Some(op),
            ..Default::default()
        };
        assert!(command_from_proto(command).is_err());
    }
    assert!(command_from_proto(pb::Command::default()).is_err());
    assert!(applied_from_proto(pb::Outcome::default()).is_err());
    let unplaced = pb::BlockRun {
        first: 1,
        count: 1,
        ..Default::default()
    };
    assert!(run_from_proto(unplaced).is_err());
    assert!(decode_batch(&[0xff, 0xff]).is_err());
}

/// A newer server may send what this one has no name for: then it is not taken for something else.
#[test]
fn an_operation_or_outcome_without_a_name_here_is_refused() {
    // 1 time_ms: 1, 99: an empty message
    let command = pb::Command::decode(&b"\x08\x01\x9a\x06\x00"[..]).unwrap();
    assert_eq!(
        command_from_proto(command).unwrap_err().to_string(),
        "command without an operation"
    );
    let outcome = pb::Outcome::decode(&b"\x9a\x06\x00"[..]).unwrap();
    assert_eq!(
        applied_from_proto(outcome).unwrap_err().to_string(),
        "outcome without a result"
    );
    let refusal = pb::Refusal {
        kind: 9,
        message: "no".into(),
    };
    assert_eq!(
        refusal_from_proto(refusal).unwrap_err().to_string(),
        "unknown kind of refusal: 9"
    );
}

/// What an older server forwards or has logged means what it meant.
#[test]
fn fields_that_are_not_there_mean_a_plain_write() {
    let plan = pb::AllocationPlan::default();
    let op = pb::command::Op::Allocate(pb::Allocate {
        path: "/a".into(),
        size: 1,
        plan: Some(plan),
        ..Default::default()
    });
    let finalize = pb::command::Op::Finalize(pb::Finalize {
        path: "/a".into(),
        inode: 3,
        ..Default::default()
    });
    for op in [op, finalize] {
        let command = pb::Command {
            op: Some(op),
            ..Default::default()
        };
        match command_from_proto(command).unwrap().op {
            Op::Allocate { staged, .. } => assert!(!staged),
            Op::Finalize { staged, .. } => assert_eq!(staged, None),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_batch_of_any_version_up_to_this_one_is_read() {
    for version in 1..=BATCH_VERSION {
        let command = Command {
            time_ms: 1,
            request_id: None,
            digest: 0,
            origin: None,
            op: Op::Reclaim { limit: 1 },
        };
        let bytes = pb::CommandBatch {
            version,
            commands: vec![command_to_proto(&command)],
        }
        .encode_to_vec();
        assert_eq!(decode_batch(&bytes).unwrap(), [command]);
    }
}
