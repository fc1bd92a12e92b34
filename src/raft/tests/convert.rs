//! Messages of peers and back.

use std::collections::BTreeMap;
use std::path::PathBuf;

use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest,
    VoteResponse,
};

use super::{batch, log_id};
use crate::proto::raft as pb;
use crate::raft::convert::{AppendOutcome, DecodeError, Span, append_result, snapshot_from_meta};
use crate::raft::ports::{Snapshot, SnapshotData};
use crate::raft::types::{
    Entry, EntryPayload, LeaderId, LogId, Membership, Node, SnapshotMeta, StoredMembership, TypeConfig, Vote,
};

fn node(name: &str) -> Node {
    Node {
        name: name.into(),
        raft_addr: format!("{name}:1"),
        grpc_addr: format!("{name}:2"),
    }
}

fn joint() -> Membership {
    let nodes = BTreeMap::from([(1, node("a")), (2, node("b")), (3, node("c"))]);
    Membership::new(vec![[1, 2].into(), [2].into()], nodes).unwrap()
}

#[test]
fn append_requests_come_back_as_they_were() {
    let request = AppendEntriesRequest::<TypeConfig> {
        vote: Vote {
            leader_id: LeaderId { term: 4, node_id: 2 },
            committed: true,
        },
        prev_log_id: Some(log_id(1, 1, 6)),
        entries: vec![
            batch(7, "seven"),
            Entry {
                log_id: log_id(2, 3, 8),
                payload: EntryPayload::Blank,
            },
            Entry {
                log_id: log_id(4, 2, 9),
                payload: EntryPayload::Membership(joint()),
            },
        ],
        leader_commit: Some(log_id(1, 1, 5)),
    };
    let message = pb::AppendRequest::from(request.clone());
    let back = AppendEntriesRequest::<TypeConfig>::try_from(message).unwrap();
    assert_eq!(format!("{back:?}"), format!("{request:?}"));
    assert_eq!(
        Span::of(&back),
        Span {
            prev: Some(log_id(1, 1, 6)),
            last: Some(log_id(4, 2, 9))
        }
    );
}

#[test]
fn votes_and_transfers_come_back_as_they_were() {
    let vote = Vote {
        leader_id: LeaderId {
            term: 4,
            node_id: u64::MAX,
        },
        committed: false,
    };
    let mut request = VoteRequest::<TypeConfig>::new(vote, Some(log_id(3, 2, 1)));
    request.leadership_transfer = true;
    assert_eq!(
        VoteRequest::try_from(pb::VoteRequest::from(request.clone())),
        Ok(request)
    );

    let response = VoteResponse::<TypeConfig>::new(vote, None, true);
    assert_eq!(
        VoteResponse::try_from(pb::VoteResponse::from(response.clone())),
        Ok(response)
    );

    let transfer = TransferLeaderRequest::<TypeConfig>::new(vote, 7, Some(log_id(3, 2, 1)));
    let message = pb::TransferLeaderRequest::from(transfer.clone());
    assert_eq!(TransferLeaderRequest::try_from(message), Ok(transfer));
}

#[test]
fn answers_come_back_as_they_were_or_do_not_fit() {
    let higher = Vote {
        leader_id: LeaderId { term: 9, node_id: 1 },
        committed: false,
    };
    let span = |prev: Option<u64>, last: Option<u64>| Span {
        prev: prev.map(|index| log_id(1, 1, index)),
        last: last.map(|index| log_id(1, 1, index)),
    };
    let there_and_back =
        |result: StreamAppendResult<TypeConfig>, span| append_result(AppendOutcome::from(result).0, span);
    let at = |index| log_id(1, 1, index);

    for (result, span) in [
        (Ok(Some(at(5))), span(Some(3), Some(5))),
        (Ok(Some(at(4))), span(Some(3), Some(5))),
        (Ok(None), span(None, None)),
        (Err(StreamAppendError::Conflict(at(3))), span(Some(3), Some(5))),
        (Err(StreamAppendError::HigherVote(higher)), span(None, Some(5))),
    ] {
        assert_eq!(there_and_back(result.clone(), span), Ok(result));
    }
    for (result, span) in [
        (Ok(Some(at(6))), span(Some(3), Some(5))),
        (Ok(Some(at(2))), span(Some(3), Some(5))),
        (Err(StreamAppendError::Conflict(at(3))), span(None, Some(5))),
    ] {
        assert!(matches!(
            there_and_back(result, span),
            Err(DecodeError::Unfitting(_))
        ));
    }
}

#[test]
fn snapshots_come_back_as_they_were() {
    let path = PathBuf::from("/somewhere");
    for (log, membership) in [(None, Membership::default()), (Some(log_id(2, 1, 9)), joint())] {
        let snapshot = Snapshot {
            meta: SnapshotMeta {
                last_log_id: log,
                last_membership: StoredMembership::new(log, membership),
            },
            data: SnapshotData {
                path: path.clone(),
                bytes: 5,
                checksum: u64::MAX,
                version: 3,
                state_hash: vec![7; 16],
            },
        };
        let back = snapshot_from_meta((&snapshot).into(), path.clone()).unwrap();
        assert_eq!((back.meta, back.data), (snapshot.meta, snapshot.data));
    }
    let nothing = snapshot_from_meta(pb::SnapshotMeta::default(), path).unwrap_err();
    assert_eq!(nothing.to_string(), "SnapshotMeta lacks its last_membership");
}

#[test]
fn memberships_that_cannot_be_are_refused() {
    let config = |voters: &[u64]| pb::membership::Config {
        voters: voters.to_vec(),
    };
    for configs in [vec![config(&[])], vec![config(&[1])]] {
        let membership = pb::Membership {
            configs,
            nodes: Default::default(),
        };
        assert!(matches!(
            Membership::try_from(membership),
            Err(DecodeError::Membership(_))
        ));
    }
}

#[test]
fn numbers_that_would_overflow_are_refused() {
    let leader = Some(pb::LeaderId { term: 1, node: 1 });
    let error = LogId::try_from(pb::LogId {
        leader,
        index: u64::MAX,
    })
    .unwrap_err();
    assert_eq!(
        error,
        DecodeError::OutOfRange {
            what: "index",
            value: u64::MAX
        }
    );
    let leader = Some(pb::LeaderId {
        term: 1 << 63,
        node: 1,
    });
    let error = Vote::try_from(pb::Vote {
        leader,
        committed: true,
    })
    .unwrap_err();
    assert_eq!(
        error,
        DecodeError::OutOfRange {
            what: "term",
            value: 1 << 63
        }
    );
}
