//! What clients may get wrong: requests of the contract that no server may fulfil, and extreme ones that it may.

use bytes::Bytes;
use minfs::proto::dfs::*;
use prost::Message;
use rand::RngExt;
use rand::rngs::StdRng;

use super::dice::{noise, one_of};
use super::grpc::Call;
use super::support::http2::framed;

/// The longest path, and the longest part of one.
const PATH: usize = 4096;
const PART: usize = 255;

/// The DataServer whose beats are imitated, as it advertises itself.
const KNOWN_SERVER: (&str, &str) = ("ds-0", "127.0.0.1:8001");

/// Numbers of blocks that no cluster in a test has given out: they are nobody's.
const FOREIGN_BLOCKS: u64 = 1 << 40;

fn of(method: &str) -> String {
    format!("/dfs_project.MetaServerService/{method}")
}

fn with_path(method: &str, path: &[u8]) -> Call {
    // In every request, the path is field 1.
    Call::new(&of(method), field(1, path))
}

/// A field with bytes.
fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 10);
    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut out);
    prost::encoding::encode_varint(bytes.len() as u64, &mut out);
    out.extend_from_slice(bytes);
    out
}

const WITH_PATHS: [&str; 7] = [
    "CreateNode",
    "GetNodeInfo",
    "ListDirectory",
    "DeleteNode",
    "GetBlockLocations",
    "FinalizeWrite",
    "GetReplicationInfo",
];

const METHODS: [&str; 12] = [
    "CreateNode",
    "GetNodeInfo",
    "ListDirectory",
    "DeleteNode",
    "GetBlockLocations",
    "FinalizeWrite",
    "GetClusterInfo",
    "GetReplicationInfo",
    "Heartbeat",
    "GetLeader",
    "SyncWAL",
    "RequestWALSync",
];

/// Some call. One in a thousand is very large.
pub fn any(rng: &mut StdRng) -> Call {
    let call = match rng.random_range(0..1000) {
        0 => huge(rng),
        1..=20 => large(rng),
        21..=300 => bad_path(rng),
        301..=550 => bad_value(rng),
        551..=700 => bad_bytes(rng),
        701..=850 => bad_frame(rng),
        851..=920 => bad_headers(rng),
        _ => extreme_but_right(rng),
    };
    match rng.random_range(0..50) {
        0 => call.with("minfs-request-id", noise(rng, 4000)),
        1 => call.with(
            "grpc-timeout",
            one_of(rng, &["0n", "1n", "-1S", "99999999H", "soon", "1x", ""]),
        ),
        2 => call.with("minfs-forwarded", noise(rng, 100)),
        3 => call.with(
            "minfs-peer",
            one_of(rng, &["0.0.0.0", "::", "nobody", "1.2.3.4.5", ""]),
        ),
        _ => call,
    }
}

fn bad_path(rng: &mut StdRng) -> Call {
    let method = one_of(rng, &WITH_PATHS);
    let path = match rng.random_range(0..9) {
        0 => format!("/{}", "x/".repeat(PATH / 2)).into_bytes(),
        1 => format!("/{}", "x".repeat(PART + 1)).into_bytes(),
        2 => format!("/a/{}/b", "ä".repeat(PART / 2 + 1)).into_bytes(),
        3 => b"/a\0b".to_vec(),
        4 => b"relative/path".to_vec(),
        // An empty path means everything to GetReplicationInfo.
        5 => match method {
            "GetReplicationInfo" => b".".to_vec(),
            _ => Vec::new(),
        },
        6 => {
            let mut path = b"/a/".to_vec();
            path.extend((0..rng.random_range(1..300)).map(|_| rng.random_range(0x80..=0xff_u8)));
            path
        }
        7 => b"/\xc0\xaf\xed\xa0\x80\xf5\x80\x80\x80".to_vec(),
        _ => {
            let mut path = noise(rng, 300);
            path.insert(0, 0xff);
            path
        }
    };
    with_path(method, &path)
}

fn bad_value(rng: &mut StdRng) -> Call {
    let size = one_of(rng, &[i64::MIN, -1, i64::MAX, (16 << 40) + 1]);
    let file = "/files/f-1".to_owned();
    match rng.random_range(0..9) {
        0 => {
            let request = CreateNodeRequest {
                path: format!("/new-{}", rng.random::<u64>()),
                r#type: one_of(rng, &[1, 4, -1, i32::MAX, i32::MIN]),
            };
            Call::new(&of("CreateNode"), request.encode_to_vec())
        }
        1 => {
            let request = CreateNodeRequest {
                path: format!("/nowhere-{}/f", rng.random::<u64>()),
                r#type: FileType::File.into(),
            };
            Call::new(&of("CreateNode"), request.encode_to_vec())
        }
        2 => {
            let path = (one_of(rng, &["/", "/files", "/missing", "/files/../.."])).to_owned();
            let request = DeleteNodeRequest {
                // Of the root even a recursive delete is refused.
                recursive: path == "/",
                path,
            };
            Call::new(&of("DeleteNode"), request.encode_to_vec())
        }
        3 => {
            let request = GetBlockLocationsRequest {
                path: (one_of(rng, &["/files/f-1", "/new", "/", "/files"])).to_owned(),
                size,
                staged: rng.random(),
            };
            Call::new(&of("GetBlockLocations"), request.encode_to_vec())
        }
        4 => {
            let request = FinalizeWriteRequest {
                path: file,
                inode: one_of(rng, &[0, u64::MAX, 1 << 63, 999_999_999]),
                size: 1,
                md5: "d41d8cd98f00b204e9800998ecf8427e".to_owned(),
                staged_block: one_of(rng, &[0, u64::MAX, 1 << 63]),
            };
            Call::new(&of("FinalizeWrite"), request.encode_to_vec())
        }
        5 => {
            let request = FinalizeWriteRequest {
                path: file,
                inode: rng.random(),
                size,
                md5: "x".repeat(rng.random_range(0..2000)),
                staged_block: 0,
            };
            Call::new(&of("FinalizeWrite"), request.encode_to_vec())
        }
        6 => beat(&"i".repeat(256), KNOWN_SERVER.1, vec![1, 2, 3]),
        7 => {
            let nonsense = [
                "",
                ":",
                "::",
                "host",
                "host:",
                ":0",
                "host:0",
                "host:65536",
                "host:-1",
                "a b:1",
                "a/b:1",
                "http://host:1",
                "h\u{0}:1",
                "user@host:1",
                "☃:1",
                "host:1,host:2",
                "host:1 ",
            ];
            beat("nobody", one_of(rng, &nonsense), vec![1; 100])
        }
        _ => beat("", KNOWN_SERVER.1, vec![]),
    }
}

fn beat(id: &str, addr: &str, blocks: Vec<u64>) -> Call {
    let request = HeartbeatRequest {
        data_server_id: id.to_owned(),
        data_server_addr: addr.to_owned(),
        block_count: u64::MAX,
        free_space: u64::MAX,
        total_capacity: 0,
        block_ids_report: blocks.into(),
        corrupt_block_ids: vec![],
    };
    Call::new(&of("Heartbeat"), request.encode_to_vec())
}

/// Of field 100, which nobody knows, and of field 101.
const GROUP_BEGINS: [u8; 2] = [0xa3, 0x06];
const OTHER_GROUP_ENDS: [u8; 2] = [0xac, 0x06];

/// Bytes that are no message of this method.
fn bad_bytes(rng: &mut StdRng) -> Call {
    // Those that say nothing take anything that is protobuf.
    let method = one_of(rng, &WITH_PATHS);
    let good = field(1, b"/files");
    let message = match rng.random_range(0..8) {
        // The path announced, and not there.
        0 => vec![0x0a, rng.random_range(1..=0x7f)],
        1 => good[..rng.random_range(1..good.len())].to_vec(),
        // A length beyond all memory, and a varint that never ends.
        2 => [&[0x0a][..], &[0xff; 9], &[0x01]].concat(),
        3 => vec![0xff; rng.random_range(10..200)],
        // Groups in groups, which nothing closes or something else does.
        4 => GROUP_BEGINS.repeat(rng.random_range(101..5000)),
        5 => [GROUP_BEGINS.repeat(50), OTHER_GROUP_ENDS.repeat(50)].concat(),
        // Field 0, and wire types that do not exist.
        6 => vec![rng.random_range(0..8)],
        _ => [good, vec![0x0e, 0x0f, 0x07]].concat(),
    };
    Call::new(&of(method), message)
}

/// Frames that are not gRPC's.
fn bad_frame(rng: &mut StdRng) -> Call {
    let method = one_of(rng, &WITH_PATHS);
    let call = Call::new(&of(method), b"");
    let good = framed(&field(1, b"/files/f-1"));
    let body = match rng.random_range(0..9) {
        0 => Vec::new(),
        1 => good[..rng.random_range(1..5)].to_vec(),
        2 => good[..rng.random_range(5..good.len())].to_vec(),
        // The compressed flag, without a word of how; and flags that do not exist.
        3 => [&[rng.random_range(1..=255)][..], &good[1..]].concat(),
        // Longer and shorter than is said.
        4 => [&[0][..], &u32::MAX.to_be_bytes(), b"short"].concat(),
        5 => [
            &[0][..],
            &rng.random_range(100..64_u32 << 20).to_be_bytes(),
            b"short",
        ]
        .concat(),
        6 => [&good[..], &good[..]].concat(),
        7 => [&good[..], &noise(rng, 100)[..], &[0xee]].concat(),
        _ => {
            let mut body = noise(rng, 2000);
            body.insert(0, 0x80);
            body
        }
    };
    call.with_body(body)
}

fn bad_headers(rng: &mut StdRng) -> Call {
    let good = with_path("GetNodeInfo", b"/files");
    match rng.random_range(0..8) {
        0 => Call {
            path: format!("/{}", "x".repeat(rng.random_range(1..8000))),
            ..good
        },
        1 => Call {
            path: (one_of(
                rng,
                &[
                    "/",
                    "//",
                    "/dfs_project.MetaServerService",
                    "/dfs_project.MetaServerService/",
                    "/grpc.health.v1.Health/Nothing",
                ],
            ))
            .to_owned(),
            ..good
        },
        2 => Call {
            path: of(&"GetNodeInfo/".repeat(rng.random_range(1..100))),
            ..good
        },
        3 => good.with("grpc-encoding", one_of(rng, &["gzip", "deflate", "snappy", "x"])),
        4 => good
            .with(
                "content-type",
                one_of(rng, &["text/html", "application/json", ""]),
            )
            .that_may_succeed(),
        5 => good.with(
            "content-length",
            one_of(rng, &["1", "18446744073709551615", "-1", "x"]),
        ),
        // More than a block of headers may hold.
        6 => good.with("x-large", "x".repeat(rng.random_range(17_000..40_000))),
        _ => {
            let mut good = good.with("minfs-request-id", "x".repeat(rng.random_range(129..15_000)));
            good.path = of("DeleteNode");
            good
        }
    }
}

/// Odd, and yet to be answered.
fn extreme_but_right(rng: &mut StdRng) -> Call {
    let mut dots = "/./files//".to_owned();
    dots.push_str(&"x/../".repeat(rng.random_range(0..800)));
    let unknown: Vec<u8> = (0..rng.random_range(1..3000))
        .flat_map(|n| field(100 + n, b"??"))
        .collect();
    let last_one_counts = field(1, b"/nothing/here").repeat(200);
    match rng.random_range(0..7) {
        0 => with_path("GetNodeInfo", dots.as_bytes()),
        1 => with_path("ListDirectory", dots.as_bytes()),
        2 => Call::new(&of("GetNodeInfo"), [field(1, b"/files"), unknown].concat()),
        3 => Call::new(
            &of("ListDirectory"),
            [last_one_counts, field(1, b"/files")].concat(),
        ),
        4 => Call::new(&of("GetLeader"), &unknown[..unknown.len().min(4000)]),
        5 => with_path("GetBlockLocations", b"/files/f-1"),
        _ => {
            let method = one_of(rng, &METHODS);
            match method {
                "GetClusterInfo" | "GetLeader" | "SyncWAL" | "RequestWALSync" => {
                    Call::new(&of(method), noise(rng, 64))
                }
                _ => Call::new("/minfs.admin.AdminService/GetNodeStatus", b""),
            }
        }
    }
    .that_may_succeed()
}

/// Some 100 KiB.
fn large(rng: &mut StdRng) -> Call {
    match rng.random_range(0..5) {
        0 => with_path(one_of(rng, &WITH_PATHS), "/a".repeat(100_000).as_bytes()),
        1 => beat(&"i".repeat(64 << 10), KNOWN_SERVER.1, vec![]),
        2 => beat("nobody", &"a".repeat(64 << 10), vec![]),
        3 => {
            let blocks = (0..20_000).map(|_| FOREIGN_BLOCKS + rng.random_range(0..1000));
            beat(KNOWN_SERVER.0, KNOWN_SERVER.1, blocks.collect()).that_may_succeed()
        }
        _ => {
            let request = FinalizeWriteRequest {
                path: "/files/f-1".to_owned(),
                inode: 1,
                md5: "5".repeat(500_000),
                ..FinalizeWriteRequest::default()
            };
            Call::new(&of("FinalizeWrite"), request.encode_to_vec())
        }
    }
}

/// Some MiB.
fn huge(rng: &mut StdRng) -> Call {
    match rng.random_range(0..4) {
        0 => {
            // Backwards, with repetitions: the worst order to sort.
            let blocks = (0..1_000_000_u64).rev().map(|n| FOREIGN_BLOCKS + n / 2);
            beat(KNOWN_SERVER.0, KNOWN_SERVER.1, blocks.collect()).that_may_succeed()
        }
        1 => {
            // The shortest numbers take the most memory for what is sent.
            let blocks = Bytes::from(vec![0; 4 << 20]);
            let id = field(1, b"");
            Call::new(&of("Heartbeat"), [id, field(5, &blocks)].concat())
        }
        2 => with_path(one_of(rng, &WITH_PATHS), "/".repeat(3 << 20).as_bytes()),
        _ => {
            let request = FinalizeWriteRequest {
                path: "/files/f-1".to_owned(),
                inode: 1,
                md5: "5".repeat(4 << 20),
                ..FinalizeWriteRequest::default()
            };
            Call::new(&of("FinalizeWrite"), request.encode_to_vec())
        }
    }
}
