//! What the fuzzer calls of the Raft glue: see [`crate::fuzzing`].

use std::fmt::Debug;
use std::path::Path;

use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest, VoteResponse};
use prost::Message;
use raft_log::codeq::{Decode, Encode};

use super::convert::{Span, append_result, snapshot_from_meta};
use super::log_codec::{DiskLogId, DiskPayload, DiskVote};
use super::types::{LogId, StoredMembership, TypeConfig, Vote};
use crate::proto::raft as pb;

/// What peers send and the log holds: the first byte says what it shall be.
pub fn peer_messages(data: &[u8]) {
    let Some((kind, message)) = data.split_first() else {
        return;
    };
    match kind % 11 {
        0 => converted::<pb::AppendRequest, AppendEntriesRequest<TypeConfig>>(message),
        1 => converted::<pb::VoteRequest, VoteRequest<TypeConfig>>(message),
        2 => converted::<pb::VoteResponse, VoteResponse<TypeConfig>>(message),
        3 => converted::<pb::TransferLeaderRequest, TransferLeaderRequest<TypeConfig>>(message),
        4 => converted::<pb::Vote, Vote>(message),
        5 => {
            // Converted from a reference, unlike the others.
            if let Some(stored) = pb::StoredMembership::decode(message)
                .ok()
                .and_then(|message| StoredMembership::try_from(message).ok())
            {
                let again = StoredMembership::try_from(pb::StoredMembership::from(&stored));
                assert_eq!(again.as_ref(), Ok(&stored));
            }
        }
        6 => {
            if let Ok(meta) = pb::SnapshotMeta::decode(message)
                && let Ok(snapshot) = snapshot_from_meta(meta, Path::new("/").to_owned())
            {
                let said = pb::SnapshotMeta::from(&snapshot);
                let again = snapshot_from_meta(said.clone(), Path::new("/").to_owned());
                let again = again.expect("what was accepted once is accepted again");
                assert!(pb::SnapshotMeta::from(&again) == said);
            }
        }
        7 => answer_to_append(message),
        8 => read_again::<DiskLogId>(message),
        9 => read_again::<DiskVote>(message),
        _ => payload(message),
    }
}

/// What is converted to openraft's types and back stays what it is.
fn converted<M, T>(message: &[u8])
where
    M: Message + Default + PartialEq + Clone + From<T>,
    T: TryFrom<M>,
    T::Error: Debug,
{
    let Ok(Ok(accepted)) = M::decode(message).map(T::try_from) else {
        return;
    };
    let message = M::from(accepted);
    let again = T::try_from(message.clone()).expect("what was accepted once is accepted again");
    assert!(M::from(again) == message);
}

/// Never more than was sent.
fn answer_to_append(message: &[u8]) {
    let id = |index| LogId {
        leader_id: super::types::LeaderId { term: 3, node_id: 1 },
        index,
    };
    let span = Span {
        prev: Some(id(5)),
        last: Some(id(9)),
    };
    if let Ok(response) = pb::AppendResponse::decode(message)
        && let Ok(Ok(matching)) = append_result(response, span)
    {
        assert!(matching >= span.prev && matching <= span.last);
    }
}

fn read_again<T: Decode + Encode + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(record) = T::decode(bytes) {
        let mut written = Vec::new();
        record.encode(&mut written).expect("a vector takes everything");
        assert!(
            bytes.starts_with(&written),
            "{record:?} is written in another way"
        );
    }
}

fn payload(bytes: &[u8]) {
    if let Ok(payload) = DiskPayload::decode(bytes) {
        let mut written = Vec::new();
        payload.encode(&mut written).expect("a vector takes everything");
        assert!(
            bytes.starts_with(&written),
            "{payload:?} is written in another way"
        );
        let _ = payload.into_openraft();
    }
}
