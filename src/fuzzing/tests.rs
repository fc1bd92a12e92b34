//! The inputs that are kept, and where they come from.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::domain::command::{Command, Op, Orphan};
use crate::domain::ids::{BlockId, InodeId, ServerId};
use crate::proto::convert::encode_batch;
use crate::proto::raft as pb;
use crate::storage::fuzzing::furniture;

fn kept(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target)
}

/// `MINFS_WRITE_SEEDS=1 cargo test --lib fuzzing` writes them, beside those that the fuzzer has found.
#[test]
fn every_kept_input_passes() {
    let write = std::env::var_os("MINFS_WRITE_SEEDS").is_some();
    for (name, target) in TARGETS {
        for (n, seed) in seeds(name).into_iter().enumerate() {
            target(&seed);
            if write {
                fs::create_dir_all(kept(name)).unwrap();
                fs::write(kept(name).join(format!("seed-{n:02}")), seed).unwrap();
            }
        }
        let files: Vec<_> = fs::read_dir(kept(name)).unwrap().collect();
        assert!(files.len() >= 5, "{name} has {} inputs", files.len());
        for file in files {
            let path = file.unwrap().path();
            println!("{}", path.display());
            target(&fs::read(path).unwrap());
        }
    }
}

#[test]
fn a_target_can_fail() {
    let differs =
        std::panic::catch_unwind(|| assert_eq!(slowly_cleaned("/a/../b").as_deref(), Some("/a/../b")));
    assert!(differs.is_err());
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "path" => paths(),
        "command" => commands(),
        "snapshot" => snapshots(),
        "peer_messages" => messages_of_peers(),
        "client_requests" => requests(),
        other => panic!("no seeds for {other}"),
    }
}

fn paths() -> Vec<Vec<u8>> {
    let long = format!("/{}", "x/".repeat(2047)) + "y";
    let texts = [
        "/",
        "/a/b",
        "//a/./b/../c/",
        "/../..",
        "/ä/ö",
        "a",
        "/a\0",
        &long,
        &"/x".repeat(300),
    ];
    let part = format!("/{}/..", "p".repeat(255));
    texts
        .into_iter()
        .chain([part.as_str()])
        .map(|text| text.as_bytes().to_vec())
        .collect()
}

/// Each operation by itself, and some that a state makes difficult.
fn commands() -> Vec<Vec<u8>> {
    let furniture = furniture();
    let alone = furniture.iter().map(|command| encode_batch([command]).to_vec());
    let more = [
        Op::MoveReplica {
            block: BlockId(1),
            from: ServerId(1),
            to: ServerId(3),
        },
        Op::AbandonWrites {
            runs: vec![BlockId(4), BlockId(9), BlockId(u64::MAX)],
        },
        Op::ReleaseGarbage {
            runs: vec![BlockId(1), BlockId(4)],
        },
        Op::Condemn {
            orphans: vec![Orphan {
                block: BlockId(77),
                holders: vec![ServerId(1), ServerId(99)],
            }],
        },
        Op::Reclaim { limit: 1000 },
        Op::Finalize {
            path: CleanPath::parse("/d/f").unwrap(),
            inode: InodeId(6),
            size: 20,
            md5: String::new(),
            staged: Some(BlockId(4)),
        },
    ];
    let more = more.map(|op| Command {
        time_ms: i64::MAX,
        request_id: Some(RequestId::new(b"request").unwrap()),
        digest: 0,
        origin: None,
        op,
    });
    let extreme = pb::CommandBatch {
        version: 2,
        commands: vec![pb::Command {
            time_ms: i64::MIN,
            op: Some(pb::command::Op::Allocate(pb::Allocate {
                path: "/d/f".to_owned(),
                size: u64::MAX,
                plan: Some(pb::AllocationPlan {
                    block_size: 0,
                    replication: u32::MAX,
                    servers: vec![0, 1, 1, u32::MAX],
                }),
                staged: true,
            })),
            ..Default::default()
        }],
    };
    alone
        .chain(more.iter().map(|command| encode_batch([command]).to_vec()))
        .chain([
            encode_batch(&furniture).to_vec(),
            encode_batch(&more).to_vec(),
            extreme.encode_to_vec(),
        ])
        .collect()
}

fn id(term: u64, index: u64) -> pb::LogId {
    pb::LogId {
        leader: Some(pb::LeaderId { term, node: 1 }),
        index,
    }
}

fn membership() -> pb::Membership {
    let node = |n: u64| pb::Node {
        name: format!("meta-{n}"),
        raft_addr: format!("meta-{n}:10090"),
        grpc_addr: format!("meta-{n}:9090"),
    };
    pb::Membership {
        configs: vec![pb::membership::Config { voters: vec![1, 2] }],
        nodes: (1..=3).map(|n| (n, node(n))).collect(),
    }
}

fn meta() -> pb::SnapshotMeta {
    pb::SnapshotMeta {
        last_log_id: Some(id(1, 1)),
        last_membership: Some(pb::StoredMembership {
            log_id: Some(id(1, 0)),
            membership: Some(membership()),
        }),
        bytes: 77,
        checksum: 78,
        version: 2,
        state_hash: Vec::new(),
    }
}

fn snapshots() -> Vec<Vec<u8>> {
    let described = |how: u8, rest: &[u8]| [&[how][..], rest].concat();
    vec![
        described(0, &[]),
        described(1, &meta().encode_to_vec()),
        described(1, &[]),
        described(2, &[0]),
        described(2, &[0x10, 0]),
        described(3, b"x"),
        described(4, &[0x01, 0x23, 0xff]),
    ]
}

fn messages_of_peers() -> Vec<Vec<u8>> {
    let vote = pb::Vote {
        leader: Some(pb::LeaderId { term: 3, node: 1 }),
        committed: true,
    };
    let entry = |index, payload| pb::Entry {
        log_id: Some(id(2, index)),
        payload,
    };
    let append = pb::AppendRequest {
        vote: Some(vote),
        prev_log_id: Some(id(1, 6)),
        entries: vec![
            entry(7, None),
            entry(
                8,
                Some(pb::entry::Payload::Batch(encode_batch(&furniture()[..2]))),
            ),
            entry(9, Some(pb::entry::Payload::Membership(membership()))),
        ],
        leader_commit: Some(id(1, 6)),
    };
    let request = pb::VoteRequest {
        vote: Some(vote),
        last_log_id: Some(id(2, 9)),
        leadership_transfer: true,
    };
    let response = pb::VoteResponse {
        vote: Some(vote),
        granted: true,
        last_log_id: None,
    };
    let transfer = pb::TransferLeaderRequest {
        from_leader: Some(vote),
        to: 2,
        last_log_id: Some(id(2, 9)),
    };
    let answer = pb::AppendResponse {
        outcome: Some(pb::append_response::Outcome::PartialSuccess(id(3, 7))),
    };
    let messages = [
        append.encode_to_vec(),
        request.encode_to_vec(),
        response.encode_to_vec(),
        transfer.encode_to_vec(),
        vote.encode_to_vec(),
        meta().last_membership.unwrap().encode_to_vec(),
        meta().encode_to_vec(),
        answer.encode_to_vec(),
        vec![0; 24],
        [&[0; 16][..], &[1]].concat(),
        [
            &[2, 0, 0, 0][..],
            &[u8::try_from(membership().encoded_len()).unwrap()],
            &membership().encode_to_vec(),
        ]
        .concat(),
        b"\x01\x00\x00\x00\x02\x08\x02".to_vec(),
    ];
    let kinds = (0..11).chain([10]);
    kinds
        .zip(messages)
        .map(|(kind, message)| [&[kind][..], &message].concat())
        .collect()
}

fn requests() -> Vec<Vec<u8>> {
    let path = || "/a/b".to_owned();
    let beat = dfs::HeartbeatRequest {
        data_server_id: "ds-1".to_owned(),
        data_server_addr: "0.0.0.0:8001".to_owned(),
        block_count: 3,
        free_space: 1 << 40,
        block_ids_report: vec![3, 1, 2, 3].into(),
        total_capacity: 1 << 41,
        corrupt_block_ids: vec![9, 1],
    };
    let finalize = dfs::FinalizeWriteRequest {
        path: path(),
        inode: 5,
        size: 9,
        md5: "5".repeat(32),
        staged_block: 4,
    };
    let messages = [
        dfs::CreateNodeRequest {
            path: path(),
            r#type: 3,
        }
        .encode_to_vec(),
        dfs::GetNodeInfoRequest { path: path() }.encode_to_vec(),
        b"\x0a\x05/a/\xffb".to_vec(),
        dfs::DeleteNodeRequest {
            path: path(),
            recursive: true,
        }
        .encode_to_vec(),
        dfs::GetBlockLocationsRequest {
            path: path(),
            size: -1,
            staged: true,
        }
        .encode_to_vec(),
        finalize.encode_to_vec(),
        dfs::GetReplicationInfoRequest { path: path() }.encode_to_vec(),
        beat.encode_to_vec(),
        b"request-1".to_vec(),
        [0xa3, 0x06].repeat(200),
    ];
    (0..)
        .zip(messages)
        .map(|(kind, message)| [&[kind][..], &message].concat())
        .collect()
}
