//! What went wrong, and the gRPC status that says so: [`status_of`] is the only place that decides.
//!
//! The rule is the clients': they repeat a request (once, after looking for the leader) on
//! `UNAVAILABLE`, `DEADLINE_EXCEEDED`, `ABORTED` and `INTERNAL`. So a caller's own mistake is never one
//! of these; what surely did not happen and may work elsewhere or later is `UNAVAILABLE`, with the
//! leader's address in the trailer [`LEADER_KEY`] when one is known; what may have happened is
//! `DEADLINE_EXCEEDED`.

use std::fmt;

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::actors::data_servers::messages::HeartbeatError;
use crate::actors::raft_node::messages::{Leader, ProposeError, ReadError};
use crate::domain::command::{Refusal, RefusalKind};
use crate::storage::StorageError;

/// The trailer that holds the leader's gRPC address, `host:port`.
pub const LEADER_KEY: &str = "minfs-leader";

/// A message's length at most, as it travels: a status is a header, and clients limit those to 8 KiB.
const MAX_MESSAGE: usize = 2048;

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The rules forbid it.
    Refused(Refusal),
    /// A proposal has no answer.
    Propose(ProposeError),
    /// Reading is not allowed now.
    Read(ReadError),
    /// A DataServer's beat was not taken.
    Heartbeat(HeartbeatError),
    /// The state cannot be read.
    Storage(StorageError),
    /// Only the leader can answer, and this node is not it and may not ask it.
    NotLeader(Option<Leader>),
    /// The leader was asked and did not answer.
    LeaderUnreachable {
        /// Who was asked.
        leader: Leader,
        /// What went wrong.
        why: String,
    },
    /// The leader was asked and refused.
    LeaderSays(Status),
    /// An actor of this node did not answer; nothing was changed.
    NoAnswer(&'static str),
    /// This node leads, but does not know yet what it would have to say; it soon will.
    NotReady(&'static str),
    /// Too many requests are under way.
    TooManyRequests,
    /// Too many connections are open.
    TooManyConnections,
    /// The request or its answer took too long, nobody knows where.
    TooSlow,
    /// The RPC does nothing any more.
    Deprecated,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Failure::Refused(refusal)
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Failure::Storage(error)
    }
}

impl Failure {
    /// Whether a client may try again at the leader, and it is not said yet who that is.
    pub(super) fn wants_leader(&self) -> bool {
        self.leader().is_none()
            && match self {
                Failure::LeaderSays(status) => {
                    status.code() == Code::Unavailable && !status.metadata().contains_key(LEADER_KEY)
                }
                // This node is the leader: asking it again at once does not help.
                Failure::NotReady(_) => false,
                other => describe(other).0 == Code::Unavailable,
            }
    }

    fn leader(&self) -> Option<&Leader> {
        match self {
            Failure::Propose(ProposeError::NotLeader(leader))
            | Failure::Read(ReadError::NoLeader(leader))
            | Failure::NotLeader(leader) => leader.as_ref(),
            Failure::LeaderUnreachable { leader, .. } => Some(leader),
            _ => None,
        }
    }
}

/// The status that tells a client of a failure. `leader` is the leader's gRPC address, for when the
/// failure itself does not name it.
pub(super) fn status_of(failure: Failure, leader: Option<&str>) -> Status {
    let (code, message) = describe(&failure);
    let mut status = Status::new(code, legal(&message));
    if code == Code::Unavailable {
        let named = failure.leader().map(|leader| leader.node.grpc_addr.as_str());
        let passed_on = match &failure {
            Failure::LeaderSays(status) => status
                .metadata()
                .get(LEADER_KEY)
                .and_then(|value| value.to_str().ok()),
            _ => None,
        };
        let address = named
            .or(passed_on)
            .or(leader)
            .filter(|address| !address.is_empty());
        if let Some(value) = address.and_then(|address| MetadataValue::try_from(address).ok()) {
            status.metadata_mut().insert(LEADER_KEY, value);
        }
    }
    status
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(self).1.fmt(f)
    }
}

fn describe(failure: &Failure) -> (Code, String) {
    match failure {
        Failure::Refused(refusal)
        | Failure::Propose(ProposeError::Refused(refusal))
        | Failure::Heartbeat(HeartbeatError::Refused(refusal)) => (
            match refusal.kind {
                RefusalKind::InvalidArgument => Code::InvalidArgument,
                RefusalKind::NotFound => Code::NotFound,
                RefusalKind::AlreadyExists => Code::AlreadyExists,
                RefusalKind::FailedPrecondition => Code::FailedPrecondition,
            },
            refusal.message.clone(),
        ),
        Failure::Propose(error @ (ProposeError::NotLeader(_) | ProposeError::Unavailable(_))) => {
            (Code::Unavailable, error.to_string())
        }
        Failure::Propose(error @ ProposeError::Unknown(_)) => (Code::DeadlineExceeded, error.to_string()),
        Failure::Propose(error @ (ProposeError::Overloaded | ProposeError::NoSpace(_))) => {
            (Code::ResourceExhausted, error.to_string())
        }
        Failure::Read(error @ (ReadError::NoLeader(_) | ReadError::Unavailable(_))) => {
            (Code::Unavailable, error.to_string())
        }
        Failure::Read(error @ ReadError::Overloaded) => (Code::ResourceExhausted, error.to_string()),
        Failure::Heartbeat(error @ (HeartbeatError::NotLeader | HeartbeatError::Unavailable(_))) => {
            (Code::Unavailable, error.to_string())
        }
        // Only reads come here: nothing was changed, and it is this node's disk that failed, not the
        // request. The other nodes hold the same state whole, so the client should ask one of them.
        Failure::Storage(error) => (
            Code::Unavailable,
            format!("the state of this node cannot be read: {error}"),
        ),
        Failure::NotLeader(_) => (Code::Unavailable, "not the leader".to_owned()),
        Failure::LeaderUnreachable { leader, why } => (
            Code::Unavailable,
            format!("the leader {} cannot be reached: {why}", leader.node.name),
        ),
        Failure::LeaderSays(status) => (status.code(), status.message().to_owned()),
        Failure::NoAnswer(who) => (Code::Unavailable, format!("no answer from {who}")),
        Failure::NotReady(why) => (Code::Unavailable, (*why).to_owned()),
        Failure::TooManyRequests => (Code::ResourceExhausted, "too many requests in flight".to_owned()),
        Failure::TooManyConnections => (Code::ResourceExhausted, "too many connections".to_owned()),
        Failure::TooSlow => (Code::DeadlineExceeded, "the request took too long".to_owned()),
        // Not FAILED_PRECONDITION: nothing that the caller could change would make it work. Neither
        // is retried.
        Failure::Deprecated => (
            Code::Unimplemented,
            "deprecated, Raft handles log replication automatically".to_owned(),
        ),
    }
}

/// A message short enough for a header, whatever it quotes. (tonic escapes what a header may not
/// hold: up to three bytes for one.)
fn legal(message: &str) -> String {
    let travels = |c: char| {
        if c.is_ascii_alphanumeric() {
            1
        } else {
            3 * c.len_utf8()
        }
    };
    if message.chars().map(travels).sum::<usize>() <= MAX_MESSAGE {
        return message.to_owned();
    }
    let mut taken = 0;
    let shown: String = message
        .chars()
        .take_while(|&c| {
            taken += travels(c);
            taken <= MAX_MESSAGE - 64
        })
        .collect();
    format!("{shown}… ({} bytes)", message.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::Node;

    fn leader() -> Leader {
        Leader {
            id: 7,
            node: Node {
                name: "meta-9091".into(),
                raft_addr: "localhost:10091".into(),
                grpc_addr: "localhost:9091".into(),
            },
        }
    }

    fn hint(status: &Status) -> Option<&str> {
        status
            .metadata()
            .get(LEADER_KEY)
            .map(|value| value.to_str().unwrap())
    }

    #[test]
    fn every_failure_has_its_status() {
        use Code::*;
        let refusal = |kind| Refusal {
            kind,
            message: "m".into(),
        };
        let refused = |kind| Failure::Refused(refusal(kind));
        let storage = || StorageError::Corrupt("entry: no".into());
        for (failure, code, message) in [
            (refused(RefusalKind::InvalidArgument), InvalidArgument, "m"),
            (refused(RefusalKind::NotFound), NotFound, "m"),
            (refused(RefusalKind::AlreadyExists), AlreadyExists, "m"),
            (refused(RefusalKind::FailedPrecondition), FailedPrecondition, "m"),
            (
                Failure::Propose(ProposeError::Refused(refusal(RefusalKind::FailedPrecondition))),
                FailedPrecondition,
                "m",
            ),
            (
                Failure::Propose(ProposeError::NotLeader(None)),
                Unavailable,
                "not the leader",
            ),
            (
                Failure::Propose(ProposeError::Unavailable("x".into())),
                Unavailable,
                "x",
            ),
            (
                Failure::Propose(ProposeError::Unknown("x".into())),
                DeadlineExceeded,
                "outcome unknown: x",
            ),
            (
                Failure::Propose(ProposeError::Overloaded),
                ResourceExhausted,
                "too many proposals in flight",
            ),
            (
                Failure::Propose(ProposeError::NoSpace("x".into())),
                ResourceExhausted,
                "x",
            ),
            (
                Failure::Read(ReadError::NoLeader(None)),
                Unavailable,
                "no leader can be reached",
            ),
            (
                Failure::Read(ReadError::Unavailable("x".into())),
                Unavailable,
                "x",
            ),
            (
                Failure::Read(ReadError::Overloaded),
                ResourceExhausted,
                "too many reads in flight",
            ),
            (
                Failure::Heartbeat(HeartbeatError::NotLeader),
                Unavailable,
                "not the leader",
            ),
            (
                Failure::Heartbeat(HeartbeatError::Unavailable("x".into())),
                Unavailable,
                "x",
            ),
            (
                Failure::Heartbeat(HeartbeatError::Refused(refusal(RefusalKind::InvalidArgument))),
                InvalidArgument,
                "m",
            ),
            (
                Failure::Storage(storage()),
                Unavailable,
                "the state of this node cannot be read: entry: no",
            ),
            (Failure::NotLeader(None), Unavailable, "not the leader"),
            (
                Failure::LeaderUnreachable {
                    leader: leader(),
                    why: "x".into(),
                },
                Unavailable,
                "the leader meta-9091 cannot be reached: x",
            ),
            (Failure::LeaderSays(Status::not_found("/a")), NotFound, "/a"),
            (Failure::NoAnswer("x"), Unavailable, "no answer from x"),
            (Failure::NotReady("not yet"), Unavailable, "not yet"),
            (
                Failure::TooManyRequests,
                ResourceExhausted,
                "too many requests in flight",
            ),
            (Failure::TooSlow, DeadlineExceeded, "the request took too long"),
            (
                Failure::Deprecated,
                Unimplemented,
                "deprecated, Raft handles log replication automatically",
            ),
        ] {
            let status = status_of(failure, None);
            assert_eq!((status.code(), status.message()), (code, message));
        }
    }

    #[test]
    fn names_the_leader_where_it_helps() {
        let wants = Failure::NoAnswer("x");
        assert!(wants.wants_leader());
        assert_eq!(hint(&status_of(wants, Some("h:1"))), Some("h:1"));

        let knows = Failure::Propose(ProposeError::NotLeader(Some(leader())));
        assert!(!knows.wants_leader());
        assert_eq!(hint(&status_of(knows, Some("h:1"))), Some("localhost:9091"));

        let mistake = Failure::Refused(Refusal::not_found("m"));
        assert!(!mistake.wants_leader());
        assert_eq!(hint(&status_of(mistake, Some("h:1"))), None);

        let mut passed_on = Status::unavailable("m");
        passed_on
            .metadata_mut()
            .insert(LEADER_KEY, "h:2".parse().unwrap());
        let passed_on = Failure::LeaderSays(passed_on);
        assert!(!passed_on.wants_leader());
        assert_eq!(hint(&status_of(passed_on, None)), Some("h:2"));

        assert_eq!(hint(&status_of(Failure::NoAnswer("x"), Some("bad\nvalue"))), None);
    }

    #[test]
    fn a_long_message_is_cut_to_what_a_header_holds() {
        for c in ["a", "%", "ä", "😀"] {
            let long = format!("not found: /{}", c.repeat(5000));
            let status = status_of(Failure::Refused(Refusal::not_found(&long)), None);
            assert!(status.message().starts_with("not found: /"));
            assert!(status.message().ends_with(&format!("… ({} bytes)", long.len())));
            let headers = status.into_http::<()>().into_parts().0.headers;
            assert!(headers["grpc-message"].len() <= MAX_MESSAGE);
        }
        assert_eq!(legal("directory not empty: /a/b"), "directory not empty: /a/b");
    }
}
