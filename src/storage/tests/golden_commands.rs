//! The bytes of commands, in log entries, and of their answers, in the memory of requests: written out
//! by hand, each with the version that it came with. See [`golden`](super::golden).

use super::golden::BUMP;
use super::*;
use crate::domain::command::{Origin, Orphan, Refusal};
use crate::domain::state::{BlockRun, Remembered, ServerStatus};
use crate::storage::codec;

pub fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// A field that holds a message: its tag, its length, its fields.
pub fn nested(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = joined(parts);
    assert!(body.len() < 128, "one byte of length");
    [&[tag, body.len() as u8][..], &body].concat()
}

pub fn run() -> BlockRun {
    BlockRun {
        first: BlockId(300),
        count: 5,
        block_size: 4,
        replication: 2,
        servers: vec![ServerId(9), ServerId(200)],
    }
}

/// `BlockRun` behind a tag.
pub fn run_bytes(tag: u8) -> Vec<u8> {
    nested(
        tag,
        &[
            b"\x08\xac\x02",         // 1 first: 300
            b"\x10\x05",             // 2 count: 5
            b"\x18\x04",             // 3 block_size: 4
            b"\x20\x02",             // 4 replication: 2
            b"\x2a\x03\x09\xc8\x01", // 5 servers, packed: 9, 200
        ],
    )
}

/// Operations and their bytes, as all versions of batches have them.
pub fn ops_since_1() -> Vec<(Op, Vec<u8>)> {
    let a = || path("/a");
    vec![
        (
            Op::Create {
                path: a(),
                directory: true,
            },
            // 3 create { 1 path, 2 directory }
            nested(0x1a, &[b"\x0a\x02/a", b"\x10\x01"]),
        ),
        (
            Op::Delete {
                path: a(),
                recursive: true,
            },
            // 4 delete { 1 path, 2 recursive }
            nested(0x22, &[b"\x0a\x02/a", b"\x10\x01"]),
        ),
        (
            Op::Allocate {
                path: a(),
                size: 300,
                plan: Some(AllocationPlan {
                    block_size: 4,
                    replication: 2,
                    servers: vec![ServerId(9), ServerId(200)],
                }),
                staged: false,
            },
            // 5 allocate { 1 path, 2 size, 3 plan { 1 block_size, 2 replication, 3 servers } }
            nested(
                0x2a,
                &[
                    b"\x0a\x02/a",
                    b"\x10\xac\x02",
                    &nested(0x1a, &[b"\x08\x04", b"\x10\x02", b"\x1a\x03\x09\xc8\x01"]),
                ],
            ),
        ),
        (
            Op::Finalize {
                path: a(),
                inode: InodeId(7),
                size: 300,
                md5: "d4".to_owned(),
                staged: None,
            },
            // 6 finalize { 1 path, 2 inode, 3 size, 4 md5 }
            nested(
                0x32,
                &[b"\x0a\x02/a", b"\x10\x07", b"\x18\xac\x02", b"\x22\x02d4"],
            ),
        ),
        (
            Op::MoveReplica {
                block: BlockId(300),
                from: ServerId(9),
                to: ServerId(8),
            },
            // 7 move_replica { 1 block, 2 from, 3 to }
            nested(0x3a, &[b"\x08\xac\x02", b"\x10\x09", b"\x18\x08"]),
        ),
        (
            Op::RegisterDataServer {
                id: "ds".to_owned(),
                addr: "h:1".to_owned(),
            },
            // 8 register_data_server { 1 id, 2 addr }
            nested(0x42, &[b"\x0a\x02ds", b"\x12\x03h:1"]),
        ),
        (
            Op::SetDataServerStatus {
                server: ServerId(9),
                status: ServerStatus::Down,
            },
            // 9 set_data_server_status { 1 server, 2 status: DOWN }
            nested(0x4a, &[b"\x08\x09", b"\x10\x02"]),
        ),
        (
            Op::ReleaseGarbage {
                runs: vec![BlockId(5), BlockId(300)],
            },
            // 10 release_garbage { 1 blocks, packed }
            nested(0x52, &[b"\x0a\x03\x05\xac\x02"]),
        ),
        // 11 reclaim { 1 limit }
        (Op::Reclaim { limit: 100 }, nested(0x5a, &[b"\x08\x64"])),
    ]
}

/// Operations that version 2 added, or added to.
pub fn ops_since_2() -> Vec<(Op, Vec<u8>)> {
    let plan = AllocationPlan {
        block_size: 4,
        replication: 2,
        servers: vec![ServerId(9), ServerId(200)],
    };
    vec![
        (
            Op::Allocate {
                path: path("/a"),
                size: 300,
                plan: Some(plan),
                staged: true,
            },
            // 5 allocate { 1 path, 2 size, 3 plan { 1 block_size, 2 replication, 3 servers }, 4 staged }
            nested(
                0x2a,
                &[
                    b"\x0a\x02/a",
                    b"\x10\xac\x02",
                    &nested(0x1a, &[b"\x08\x04", b"\x10\x02", b"\x1a\x03\x09\xc8\x01"]),
                    b"\x20\x01",
                ],
            ),
        ),
        (
            Op::Finalize {
                path: path("/a"),
                inode: InodeId(7),
                size: 300,
                md5: "d4".to_owned(),
                staged: Some(BlockId(300)),
            },
            // 6 finalize { 1 path, 2 inode, 3 size, 4 md5, 5 staged_block }
            nested(
                0x32,
                &[
                    b"\x0a\x02/a",
                    b"\x10\x07",
                    b"\x18\xac\x02",
                    b"\x22\x02d4",
                    b"\x28\xac\x02",
                ],
            ),
        ),
        (
            Op::AbandonWrites {
                runs: vec![BlockId(5), BlockId(300)],
            },
            // 12 abandon_writes { 1 blocks, packed }
            nested(0x62, &[b"\x0a\x03\x05\xac\x02"]),
        ),
        (
            Op::Condemn {
                orphans: vec![
                    Orphan {
                        block: BlockId(300),
                        holders: vec![ServerId(9), ServerId(200)],
                    },
                    Orphan {
                        block: BlockId(5),
                        holders: vec![],
                    },
                ],
            },
            // 13 condemn { 1 orphan { 1 block, 2 holders, packed } }
            nested(
                0x6a,
                &[
                    &nested(0x0a, &[b"\x08\xac\x02", b"\x12\x03\x09\xc8\x01"]),
                    &nested(0x0a, &[b"\x08\x05"]),
                ],
            ),
        ),
    ]
}

/// A batch of one command with the operation.
pub fn batch(version: u8, op: &[u8]) -> Vec<u8> {
    let since_3: &[u8] = match version {
        1 | 2 => b"",
        // 14 origin { 1 peer, 2 gateway, 3 number }, 15 digest
        _ => b"\x72\x11\x0a\x04\x7f\x00\x00\x01\x11\x05\x00\x00\x00\x00\x00\x00\x40\x18\x09\x79\x08\x07\x06\x05\x04\x03\x02\x01",
    };
    joined(&[
        &[0x08, version], // 1 version
        // 2 command { 1 time_ms: 150, 2 request_id, op }
        &nested(0x12, &[b"\x08\x96\x01", b"\x12\x02r1", op, since_3]),
    ])
}

/// What [`batch`] holds.
pub fn batched(version: u8, op: Op) -> Command {
    let origin = Origin {
        peer: [127, 0, 0, 1].into(),
        gateway: (1 << 62) + 5,
        number: 9,
    };
    let (digest, origin) = match version {
        1 | 2 => (0, None),
        _ => (0x0102_0304_0506_0708, Some(origin)),
    };
    Command {
        time_ms: 150,
        request_id: Some(id("r1")),
        digest,
        origin,
        op,
    }
}

#[test]
fn log_entries_keep_their_bytes_or_bump_the_version() {
    for (op, golden) in ops_since_1().into_iter().chain(ops_since_2()) {
        let command = batched(3, op);
        let golden = batch(3, &golden);
        assert_eq!(
            convert::encode_batch(std::slice::from_ref(&command)),
            golden,
            "{BUMP}"
        );
        assert_eq!(convert::decode_batch(&golden).unwrap(), [command]);
    }
    assert_eq!(convert::BATCH_VERSION, 3);
}

/// Answers and their bytes, as all versions of records have them.
pub fn answers_since_1() -> Vec<(Applied, Vec<u8>)> {
    vec![
        // 1 refusal { 1 kind, 2 message }
        (
            Err(Refusal::not_found("no")),
            nested(0x0a, &[b"\x08\x02", b"\x12\x02no"]),
        ),
        // 2 created { 1 inode }
        (
            Ok(Outcome::Created { inode: InodeId(7) }),
            nested(0x12, &[b"\x08\x07"]),
        ),
        // 3 deleted {}
        (Ok(Outcome::Deleted), nested(0x1a, &[])),
        // 4 allocated { 1 inode, 2 blocks }
        (
            Ok(Outcome::Allocated {
                inode: InodeId(7),
                blocks: run(),
            }),
            nested(0x22, &[b"\x08\x07", &run_bytes(0x12)]),
        ),
        // 5 finalized {}, 6 replica_moved {}
        (Ok(Outcome::Finalized), nested(0x2a, &[])),
        (Ok(Outcome::ReplicaMoved), nested(0x32, &[])),
        // 7 data_server_registered { 1 server }
        (
            Ok(Outcome::DataServerRegistered { server: ServerId(9) }),
            nested(0x3a, &[b"\x08\x09"]),
        ),
        // 8 status_set {}, 9 garbage_released {}
        (Ok(Outcome::StatusSet), nested(0x42, &[])),
        (Ok(Outcome::GarbageReleased), nested(0x4a, &[])),
        // 10 reclaimed { 1 records, 2 more }
        (
            Ok(Outcome::Reclaimed {
                records: 100,
                more: true,
            }),
            nested(0x52, &[b"\x08\x64", b"\x10\x01"]),
        ),
    ]
}

/// Answers that version 2 added.
fn answers_since_2() -> Vec<(Applied, Vec<u8>)> {
    vec![
        // 11 writes_abandoned, 12 condemned
        (
            Ok(Outcome::WritesAbandoned { writes: 300 }),
            b"\x58\xac\x02".to_vec(),
        ),
        (Ok(Outcome::WritesAbandoned { writes: 0 }), b"\x58\x00".to_vec()),
        (Ok(Outcome::Condemned { blocks: 300 }), b"\x60\xac\x02".to_vec()),
        (Ok(Outcome::Condemned { blocks: 0 }), b"\x60\x00".to_vec()),
    ]
}

/// The record of an answer.
pub fn remembered(version: u8, answer: &[u8]) -> Vec<u8> {
    // 1 sequence, 2 time_ms, 3 outcome
    joined(&[
        &[version],
        b"\x08\xac\x02",
        b"\x10\x96\x01",
        &nested(0x1a, &[answer]),
    ])
}

/// What [`remembered`] holds.
pub fn to_remember(applied: Applied) -> Remembered {
    Remembered {
        sequence: 300,
        time_ms: 150,
        digest: 0,
        applied,
    }
}

#[test]
fn remembered_answers_keep_their_bytes_or_bump_the_version() {
    for (applied, golden) in answers_since_1().into_iter().chain(answers_since_2()) {
        let request = to_remember(applied);
        let golden = remembered(2, &golden);
        assert_eq!(codec::encode_remembered(&request), golden, "{BUMP}");
        assert_eq!(codec::decode_remembered(&golden).unwrap(), request);

        // 4 digest
        let golden = joined(&[&golden, b"\x21\x08\x07\x06\x05\x04\x03\x02\x01"]);
        let request = Remembered {
            digest: 0x0102_0304_0506_0708,
            ..request
        };
        assert_eq!(codec::encode_remembered(&request), golden, "{BUMP}");
        assert_eq!(codec::decode_remembered(&golden).unwrap(), request);
    }
}
