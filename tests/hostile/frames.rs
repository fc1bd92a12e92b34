//! Connections that do not speak HTTP/2, or not as it is meant: bytes on a socket.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::dice::noise;
use super::support::http2::*;

/// How long an attack waits for the server's word.
const PATIENCE: Duration = Duration::from_millis(50);

/// The begin of a call whose header block never ends.
pub fn endless_headers(stream: u32) -> Vec<u8> {
    frame(
        HEADERS,
        0,
        stream,
        &header_block("/dfs_project.MetaServerService/GetLeader"),
    )
}

const LEADER: &str = "/dfs_project.MetaServerService/GetLeader";

/// Attacks with one connection, which is over when this returns.
pub async fn attack(addr: &str, rng: &mut StdRng) {
    let bytes = some_bytes(rng);
    let Ok(mut socket) = TcpStream::connect(addr).await else {
        return; // its queue of new connections is full for a moment
    };
    // No TIME_WAIT: there are not ports enough for a million of them.
    let _ = socket.set_zero_linger();
    let _ = tokio::time::timeout(PATIENCE, socket.write_all(&bytes)).await;
    if rng.random_ratio(1, 4) {
        let mut answer = [0; 1 << 12];
        let _ = tokio::time::timeout(PATIENCE, socket.read(&mut answer)).await;
    }
}

fn some_bytes(rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = match rng.random_range(0..10) {
        0 => return noise(rng, 4000),
        1 => return b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(rng.random_range(1..50)),
        2 => return b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        3 => return PREFACE[..rng.random_range(0..PREFACE.len())].to_vec(),
        _ => [PREFACE, &settings()].concat(),
    };
    for n in 0..rng.random_range(1..20_u32) {
        let stream = 2 * n + 1;
        bytes.extend(some_frame(stream, rng));
    }
    if rng.random_ratio(1, 10) {
        // Cut short, or broken in one place.
        bytes.truncate(rng.random_range(PREFACE.len()..bytes.len()));
    }
    if rng.random_ratio(1, 10) {
        let at = rng.random_range(0..bytes.len());
        bytes[at] ^= 1 << rng.random_range(0..8);
    }
    bytes
}

fn some_frame(stream: u32, rng: &mut StdRng) -> Vec<u8> {
    match rng.random_range(0..20) {
        0 => frame(rng.random(), rng.random(), rng.random(), &noise(rng, 100)),
        1 => frame(DATA, END_STREAM, stream, b"before its headers"),
        2 => frame(HEADERS, END_HEADERS, 2 * stream, &header_block(LEADER)),
        3 => frame(HEADERS, END_HEADERS | END_STREAM, stream, &noise(rng, 300)),
        4 => endless_headers(stream),
        5 => {
            let mut out = endless_headers(stream);
            for _ in 0..rng.random_range(1..200) {
                out.extend(frame(CONTINUATION, 0, stream, b"\x00\x01a\x01b"));
            }
            out
        }
        6 => frame(CONTINUATION, END_HEADERS, stream, &[]),
        7 => frame(PUSH_PROMISE, END_HEADERS, stream, &noise(rng, 20)),
        8 => frame(PRIORITY, 0, stream, &stream.to_be_bytes()),
        9 => frame(SETTINGS, 0, 0, &noise(rng, 60)),
        10 => frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]),
        11 => settings().repeat(rng.random_range(1..200)),
        12 => frame(PING, 0, 0, &[7; 8]).repeat(rng.random_range(1..200)),
        13 => frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
        14 => frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]).repeat(2),
        15 => frame(GOAWAY, 0, 0, &noise(rng, 30)),
        // Announces 16 MiB, and sends nothing of it.
        16 => vec![0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1],
        17 => frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
        18 => call(
            stream,
            "/dfs_project.MetaServerService/CreateNode",
            &noise(rng, 50),
        ),
        _ => rapid_reset(stream, rng.random_range(1..2000)),
    }
}

/// Calls that are reset as soon as they are made (CVE-2023-44487).
fn rapid_reset(first: u32, count: u32) -> Vec<u8> {
    let block = header_block(LEADER);
    let calls = (0..count).flat_map(|n| {
        let stream = first + 2 * n;
        let mut out = frame(HEADERS, END_HEADERS, stream, &block);
        out.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
        out
    });
    calls.collect()
}
