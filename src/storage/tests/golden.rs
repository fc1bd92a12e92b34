//! The bytes of our own formats, written out by hand: records, keys and small files here, log entries and
//! answers in [`golden_commands`](super::golden_commands). A
//! data directory of today must be readable tomorrow. A change that fails here needs a new version
//! (`BATCH_VERSION`, `RECORD_VERSION` and with it `STATE_VERSION`, or the first line of `STATE`), and
//! a reader that still knows the old one (see [`upgrades`](super::upgrades)).

use std::fs;

use prost::Message;

use super::golden_commands::{joined, nested, run, run_bytes};
use super::*;
use crate::domain::command::Refusal;
use crate::domain::state::{
    Counters, DataServer, Entry, EntryKind, Garbage, GarbageReason, OpenWrite, OwnedRun, ServerStatus,
    WriteState,
};
use crate::storage::codec;
use crate::storage::env::StateDir;

pub const BUMP: &str = "the encoding changed: bump the version, and go on reading the old one";

#[test]
fn status_and_reason_and_refusal_numbers_stay() {
    for (status, number) in [
        (ServerStatus::Healthy, 0),
        (ServerStatus::Unhealthy, 1),
        (ServerStatus::Down, 2),
    ] {
        assert_eq!(convert::status_to_proto(status) as i32, number);
    }
    for (reason, number) in [
        (GarbageReason::Deleted, 1),
        (GarbageReason::Overwritten, 2),
        (GarbageReason::Truncated, 3),
        (GarbageReason::Abandoned, 4),
        (GarbageReason::Orphaned, 5),
    ] {
        let garbage = Garbage {
            run: run(),
            reason,
            since_ms: 0,
        };
        assert_eq!(
            codec::encode_garbage(&garbage).last(),
            Some(&number),
            "{reason:?}"
        );
    }
    for (refusal, number) in [
        (Refusal::invalid_argument(""), 1),
        (Refusal::not_found(""), 2),
        (Refusal::already_exists(""), 3),
        (Refusal::failed_precondition(""), 4),
    ] {
        assert_eq!(convert::refusal_to_proto(&refusal).kind, number);
    }
}

#[test]
fn records_keep_their_bytes_or_bump_the_version() {
    let file = Entry {
        inode: InodeId(7),
        mtime_ms: 150,
        size: 300,
        kind: EntryKind::File {
            md5: "d4".to_owned(),
            blocks: Some(BlockId(5)),
        },
    };
    let golden = joined(&[
        b"\x02",         // version
        b"\x08\x07",     // 1 inode
        b"\x10\x96\x01", // 2 mtime_ms
        b"\x18\xac\x02", // 3 size
        b"\x2a\x02d4",   // 5 md5
        b"\x30\x05",     // 6 first block
    ]);
    assert_eq!(codec::encode_entry(&file), golden, "{BUMP}");
    assert_eq!(codec::decode_entry(&golden).unwrap(), file);

    let directory = Entry {
        kind: EntryKind::Directory,
        ..file
    };
    let golden = joined(&[
        b"\x02\x08\x07\x10\x96\x01\x18\xac\x02",
        b"\x20\x01", // 4 directory
    ]);
    assert_eq!(codec::encode_entry(&directory), golden, "{BUMP}");
    assert_eq!(codec::decode_entry(&golden).unwrap(), directory);

    let written = OwnedRun {
        inode: InodeId(7),
        run: run(),
        write: WriteState::Written { at_ms: 150 },
    };
    // 1 inode, 2 run, 4 written_ms
    let golden = joined(&[b"\x02", b"\x08\x07", &run_bytes(0x12), b"\x20\x96\x01"]);
    assert_eq!(codec::encode_run(&written), golden, "{BUMP}");
    assert_eq!(codec::decode_run(&golden).unwrap(), written);

    let open = OwnedRun {
        write: WriteState::Open(OpenWrite {
            since_ms: 150,
            parent: InodeId(300),
            name: "f".to_owned(),
            staged: true,
        }),
        ..written
    };
    // 1 inode, 2 run, 3 open { 1 since_ms, 2 parent, 3 name, 4 staged }
    let golden = joined(&[
        b"\x02",
        b"\x08\x07",
        &run_bytes(0x12),
        &nested(
            0x1a,
            &[b"\x08\x96\x01", b"\x10\xac\x02", b"\x1a\x01f", b"\x20\x01"],
        ),
    ]);
    assert_eq!(codec::encode_run(&open), golden, "{BUMP}");
    assert_eq!(codec::decode_run(&golden).unwrap(), open);

    let garbage = Garbage {
        run: run(),
        reason: GarbageReason::Truncated,
        since_ms: 150,
    };
    // 1 run, 2 reason, 3 since_ms
    let golden = joined(&[b"\x02", &run_bytes(0x0a), b"\x10\x03", b"\x18\x96\x01"]);
    assert_eq!(codec::encode_garbage(&garbage), golden, "{BUMP}");
    assert_eq!(codec::decode_garbage(&golden).unwrap(), garbage);

    let servers = [ServerId(9), ServerId(200)];
    let golden = b"\x02\x0a\x03\x09\xc8\x01"; // 1 servers, packed
    assert_eq!(codec::encode_servers(&servers), golden, "{BUMP}");
    assert_eq!(codec::decode_servers(golden).unwrap(), servers);

    let server = DataServer {
        server: ServerId(9),
        id: "ds".to_owned(),
        addr: "h:1".to_owned(),
        status: ServerStatus::Unhealthy,
    };
    // 1 id, 2 addr, 3 status
    let golden = joined(&[b"\x02", b"\x0a\x02ds", b"\x12\x03h:1", b"\x18\x01"]);
    assert_eq!(codec::encode_data_server(&server), golden, "{BUMP}");
    assert_eq!(codec::decode_data_server(ServerId(9), &golden).unwrap(), server);

    let counters = Counters {
        next_inode: 2,
        next_block: 300,
        next_server: 4,
        inodes: 5,
        first_request: 6,
        next_request: 7,
    };
    // The fields in their order, 1 to 6.
    let golden = b"\x02\x08\x02\x10\xac\x02\x18\x04\x20\x05\x28\x06\x30\x07";
    assert_eq!(codec::encode_counters(counters), golden, "{BUMP}");
    assert_eq!(codec::decode_counters(golden).unwrap(), counters);

    assert_eq!(codec::RECORD_VERSION, 2);
}

#[test]
fn a_record_of_another_version_is_refused_by_name() {
    for (record, what) in [
        (&b"\x03\x08\x07"[..], "encoding version 3 is newer than 2"),
        (b"\x00\x08\x07", "encoding version 0"),
        (b"", "empty record"),
    ] {
        let error = codec::decode_entry(record).unwrap_err().to_string();
        assert!(
            error.contains("directory entry") && error.contains(what),
            "{error}"
        );
    }
}

#[test]
fn keys_are_big_endian_and_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path());
    let register = |n: u32| Op::RegisterDataServer {
        id: format!("ds-{n}"),
        addr: format!("h:{n}"),
    };
    let mut commands: Vec<_> = [
        register(1),
        register(2),
        register(3),
        mkdir("/d"),
        allocate("/d/f", 300, 1, &[1, 2]),
        allocate("/g", 1, 1, &[1, 2]),
        allocate("/g", 1, 1, &[1, 2]),
        Op::MoveReplica {
            block: BlockId(302),
            from: ServerId(1),
            to: ServerId(3),
        },
        mkdir("/e"),
        touch("/e/x"),
        remove("/e", true),
    ]
    .into_iter()
    .map(|op| at(1, op))
    .collect();
    commands.push(Command {
        time_ms: 150,
        request_id: Some(id("r1")),
        digest: 0,
        origin: None,
        op: mkdir("/d"),
    });
    storage
        .apply(&[membership(1, 9090), entry(2, &commands)])
        .unwrap();

    let tables = dump(&storage);
    let keys = |name: &str| -> Vec<&[u8]> { tables[name].iter().map(|(key, _)| key.as_slice()).collect() };
    let golden: [(&str, &[&[u8]]); 9] = [
        (
            "entries",
            &[
                b"\0\0\0\0\0\0\0\0", // the root: below no inode, with no name
                b"\0\0\0\0\0\0\0\x01d",
                b"\0\0\0\0\0\0\0\x01g",
                b"\0\0\0\0\0\0\0\x02f",
                b"\0\0\0\0\0\0\0\x05x",
            ],
        ),
        ("runs", &[b"\0\0\0\0\0\0\0\x01", b"\0\0\0\0\0\0\x01\x2e"]),
        ("moved", &[b"\0\0\0\0\0\0\x01\x2e"]),
        ("servers", &[b"\0\0\0\x01", b"\0\0\0\x02", b"\0\0\0\x03"]),
        ("garbage", &[b"\0\0\0\0\0\0\x01\x2d"]),
        ("detached", &[b"\0\0\0\0\0\0\0\x05"]),
        ("requests", &[b"r1"]),
        ("request_order", &[b"\0\0\0\0\0\0\0\0"]),
        ("meta", &[b"applied", b"counters", b"membership"]),
    ];
    for (name, golden) in golden {
        assert_eq!(keys(name), golden, "{name}: {BUMP}");
    }
    // Time, then id.
    assert_eq!(tables["request_order"][0].1, b"\0\0\0\0\0\0\0\x96r1", "{BUMP}");
    // Version, then log id { 1 leader { 1 term, 2 node }, 2 index }
    assert_eq!(
        tables["meta"][0].1, b"\x02\x0a\x04\x08\x03\x10\x07\x10\x02",
        "{BUMP}"
    );
    let golden = joined(&[
        b"\x02",
        // 1 log_id
        b"\x0a\x08\x0a\x04\x08\x03\x10\x07\x10\x01",
        // 2 membership
        &nested(
            0x12,
            &[
                // 1 config { 1 voters, packed: 9090 }
                &nested(0x0a, &[b"\x0a\x02\x82\x47"]),
                // 2 node { 1 its id, 2 the node { 1 name, 2 raft_addr, 3 grpc_addr } }
                &nested(
                    0x12,
                    &[
                        b"\x08\x82\x47",
                        &nested(
                            0x12,
                            &[
                                b"\x0a\x09meta-9090",
                                b"\x12\x0flocalhost:19090",
                                b"\x1a\x0elocalhost:9090",
                            ],
                        ),
                    ],
                ),
            ],
        ),
    ]);
    assert_eq!(tables["meta"][2].1, golden, "{BUMP}");
}

#[test]
fn the_small_files_keep_their_bytes_or_bump_the_version() {
    let dir = tempfile::tempdir().unwrap();
    let lmdb = dir.path().join("lmdb");
    let (state, generation) = StateDir::open_at_boot(&lmdb, 1 << 20, true, "0b00").unwrap();
    let text = || fs::read_to_string(lmdb.join("STATE")).unwrap();
    assert_eq!(
        text(),
        "minfs-state 2\ngeneration 1\nboot 0b00\nclean no\n",
        "{BUMP}"
    );
    state.close_cleanly(&generation).unwrap();
    assert_eq!(
        text(),
        "minfs-state 2\ngeneration 1\nboot 0b00\nclean yes\n",
        "{BUMP}"
    );
    drop(generation);

    let mut storage = open(dir.path());
    storage.apply(&[membership(1, 9090)]).unwrap();
    let snapshot = storage.build_snapshot().run().unwrap();
    assert_eq!(
        snapshot.path.file_name().unwrap(),
        "snapshot-00000000000000000001-00000000000000000003-00000000000000000001.mdb",
        "{BUMP}"
    );
    let meta = fs::read(snapshot.path.with_extension("meta")).unwrap();
    let (checksum, body) = meta.split_at(8);
    assert_eq!(checksum, xxhash_rust::xxh3::xxh3_64(body).to_be_bytes(), "{BUMP}");
    assert_eq!(pb::SnapshotMeta::decode(body).unwrap(), snapshot.meta);
    let data = fs::read(&snapshot.path).unwrap();
    assert_eq!(
        snapshot.meta.checksum,
        xxhash_rust::xxh3::xxh3_64(&data),
        "{BUMP}"
    );

    let meta = pb::SnapshotMeta {
        last_log_id: Some(log_id(300)),
        last_membership: Some(pb::StoredMembership {
            log_id: Some(log_id(1)),
            membership: None,
        }),
        bytes: 301,
        checksum: 150,
        version: 3,
        state_hash: vec![7; 16],
    };
    let golden = joined(&[
        b"\x0a\x09\x0a\x04\x08\x03\x10\x07\x10\xac\x02", // 1 last_log_id
        &nested(0x12, &[b"\x0a\x08\x0a\x04\x08\x03\x10\x07\x10\x01"]), // 2 last_membership
        b"\x18\xad\x02",                                 // 3 bytes
        b"\x20\x96\x01",                                 // 4 checksum
        b"\x28\x03",                                     // 5 version
        &nested(0x32, &[&[7; 16]]),                      // 6 state_hash
    ]);
    assert_eq!(meta.encode_to_vec(), golden, "{BUMP}");
    assert_eq!(pb::SnapshotMeta::decode(&golden[..]).unwrap(), meta);
    assert_eq!(snapshot::STATE_VERSION, 3);
}
