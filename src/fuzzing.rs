//! What the fuzzer calls: one function a target, each of which takes any bytes and panics when something is wrong.
//!
//! `fuzz/` makes a libFuzzer program of each, which `scripts/fuzz.sh` builds and runs; the tests below run the
//! inputs that are kept in `fuzz/seeds/`, so that what was found once is never lost again. Not part of any server:
//! only there with the feature `fuzzing`, and in tests.

use prost::Message;
use prost::bytes::Bytes;

pub use crate::raft::fuzzing::peer_messages;
pub use crate::storage::fuzzing::{command, snapshot};

use crate::actors::data_servers::report::Report;
use crate::domain::command::{RefusalKind, RequestId};
use crate::domain::path::{CleanPath, MAX_NAME_BYTES, MAX_PATH_BYTES};
use crate::proto::codec::refused;
use crate::proto::dfs;

/// Takes any bytes, and panics when something is wrong.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Target); 5] = [
    ("path", path),
    ("command", command),
    ("snapshot", snapshot),
    ("peer_messages", peer_messages),
    ("client_requests", client_requests),
];

/// The longest message of a refusal: a status travels in a header.
const LONGEST_REFUSAL: usize = 4096;

/// Cleaning a path: compared with a second, slow opinion on the contract's words.
pub fn path(data: &[u8]) {
    let Ok(raw) = std::str::from_utf8(data) else {
        return;
    };
    let cleaned = CleanPath::parse(raw);
    assert_eq!(
        cleaned.as_ref().map(CleanPath::as_str).ok(),
        slowly_cleaned(raw).as_deref(),
        "{raw:?}"
    );
    let path = match cleaned {
        Ok(path) => path,
        Err(refusal) => {
            assert_eq!(refusal.kind, RefusalKind::InvalidArgument);
            assert!(
                refusal.message.len() <= LONGEST_REFUSAL,
                "{} bytes",
                refusal.message.len()
            );
            return;
        }
    };
    assert!(path.as_str().len() <= MAX_PATH_BYTES && path.as_str().starts_with('/'));
    for name in path.names() {
        assert!(
            (1..=MAX_NAME_BYTES).contains(&name.len()) && ![".", ".."].contains(&name),
            "{name:?}"
        );
    }
    assert_eq!(
        CleanPath::parse(path.as_str()).as_ref(),
        Ok(&path),
        "cleaned twice"
    );
    match path.split_last() {
        Some((parent, name)) => assert_eq!(parent.child(name), path),
        None => assert!(path.is_root()),
    }
}

/// Byte by byte, as the contract says it: absolute, no NUL, no part over 255 bytes, not over 4,096 bytes;
/// `.`, `..`, repeated and trailing slashes are cleaned, and `..` above the root is the root.
fn slowly_cleaned(raw: &str) -> Option<String> {
    let bytes = raw.as_bytes();
    if bytes.first() != Some(&b'/') || bytes.len() > 4096 || bytes.contains(&0) {
        return None;
    }
    // Where each part that is left begins in `clean`, its slash included.
    let mut begins = Vec::new();
    let mut clean = String::new();
    let mut part = String::new();
    for c in raw.chars().chain(['/']) {
        if c != '/' {
            part.push(c);
            continue;
        }
        if part == ".." {
            clean.truncate(begins.pop().unwrap_or(0));
        } else if part.len() > 255 {
            return None;
        } else if !part.is_empty() && part != "." {
            begins.push(clean.len());
            clean.push('/');
            clean.push_str(&part);
        }
        part.clear();
    }
    if clean.is_empty() {
        clean.push('/');
    }
    Some(clean)
}

/// What clients send: the first byte says what it shall be.
pub fn client_requests(data: &[u8]) {
    let Some((kind, message)) = data.split_first() else {
        return;
    };
    match kind % 9 {
        0 => with_path::<dfs::CreateNodeRequest>(message, |request| &request.path),
        1 => with_path::<dfs::GetNodeInfoRequest>(message, |request| &request.path),
        2 => with_path::<dfs::ListDirectoryRequest>(message, |request| &request.path),
        3 => with_path::<dfs::DeleteNodeRequest>(message, |request| &request.path),
        4 => with_path::<dfs::GetBlockLocationsRequest>(message, |request| &request.path),
        5 => with_path::<dfs::FinalizeWriteRequest>(message, |request| &request.path),
        6 => with_path::<dfs::GetReplicationInfoRequest>(message, |request| &request.path),
        7 => {
            if let Some(beat) = decoded::<dfs::HeartbeatRequest>(message) {
                reports(&beat);
            }
        }
        _ => {
            let _ = RequestId::new(message);
        }
    }
}

fn with_path<M: Message + Default + PartialEq>(message: &[u8], its_path: impl Fn(&M) -> &String) {
    if let Some(request) = decoded::<M>(message) {
        path(its_path(&request).as_bytes());
    }
}

/// The message, if it is one. If not, its sender is told so in few words.
fn decoded<M: Message + Default + PartialEq>(message: &[u8]) -> Option<M> {
    match M::decode(message) {
        Ok(decoded) => {
            let again = M::decode(decoded.encode_to_vec().as_slice());
            assert!(
                again.is_ok_and(|again| again == decoded),
                "encoded again, it is another"
            );
            Some(decoded)
        }
        Err(error) => {
            let status = refused(Bytes::copy_from_slice(message), &error);
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().len() <= LONGEST_REFUSAL);
            None
        }
    }
}

/// A report keeps its promises, whatever was reported before.
fn reports(beat: &dfs::HeartbeatRequest) {
    let (sent, corrupt) = (&beat.block_ids_report, &beat.corrupt_block_ids);
    let blocks = sent.numbers();
    let mut report = Report::default();
    report.replace(&corrupt.clone().into(), blocks.clone());
    report.replace(sent, corrupt.clone());
    let (good, bad) = (report.blocks(), report.corrupt());
    for list in [&good, &bad] {
        assert!(list.is_sorted_by(|a, b| a < b));
    }
    assert!(blocks.iter().all(|block| good.binary_search(block).is_ok()));
    assert!(
        bad.iter()
            .all(|block| good.binary_search(block).is_err() && corrupt.contains(block))
    );
    assert!(
        report.replace(sent, corrupt.clone()).is_none(),
        "said twice, it is no news"
    );
}

#[cfg(test)]
mod tests;
