//! What may arrive at a node's port for its peers: calls of strangers, and peers that have lost their senses.
//!
//! With the right metadata a caller counts as a peer, and peers are trusted: what a leader of a new term may
//! well say is not among these, since it would rightly be believed.

use minfs::proto::raft::peer_service_client::PeerServiceClient;
use minfs::proto::raft::snapshot_chunk::Content;
use minfs::proto::raft::{
    AppendRequest, ClaimRequest, Command, Entry, IdentifyRequest, LeaderId, LogId, Membership,
    ProposeRequest, SnapshotChunk, SnapshotHeader, SnapshotMeta, StoredMembership, TransferLeaderRequest,
    Vote, VoteRequest, entry, membership,
};
use prost::Message;
use rand::RngExt;
use rand::rngs::StdRng;

use super::dice::{noise, one_of};
use super::grpc::Call;
use super::support::http2::framed;

/// What a node says of itself to everybody.
#[derive(Clone, Debug)]
pub struct Target {
    cluster: String,
    incarnation: u64,
}

impl Target {
    pub async fn of(raft_addr: &str) -> Target {
        let mut client = PeerServiceClient::connect(format!("http://{raft_addr}"))
            .await
            .unwrap();
        let identity = client.identify(IdentifyRequest {}).await.unwrap().into_inner();
        Target {
            cluster: identity.cluster_id,
            incarnation: identity.incarnation,
        }
    }

    fn stamp(&self, call: Call) -> Call {
        call.with("minfs-cluster", &self.cluster)
            .with("minfs-from", "17")
            .with("minfs-target", self.incarnation.to_string())
    }
}

const RAFT: [&str; 5] = [
    "/minfs.raft.RaftService/AppendStream",
    "/minfs.raft.RaftService/Vote",
    "/minfs.raft.RaftService/PreVote",
    "/minfs.raft.RaftService/InstallSnapshot",
    "/minfs.raft.RaftService/TransferLeader",
];

const PEER: [&str; 4] = [
    "/minfs.raft.PeerService/Identify",
    "/minfs.raft.PeerService/Claim",
    "/minfs.raft.PeerService/Propose",
    "/minfs.raft.PeerService/ReadIndex",
];

/// Some call. None of them changes anything.
pub fn any(target: &Target, rng: &mut StdRng) -> Call {
    match rng.random_range(0..10) {
        0..=2 => stranger(target, rng),
        3..=5 => damaged(target, rng),
        _ => senseless(target, rng),
    }
    .that_may_succeed()
}

/// Without the right metadata.
fn stranger(target: &Target, rng: &mut StdRng) -> Call {
    let (path, message) = good(rng);
    let call = Call::new(path, message);
    let number = target.incarnation.to_string();
    match rng.random_range(0..5) {
        0 => call,
        1 => call
            .with("minfs-cluster", "0".repeat(32))
            .with("minfs-from", "1")
            .with("minfs-target", number),
        2 => call
            .with("minfs-cluster", &target.cluster)
            .with("minfs-from", "1")
            .with("minfs-target", "1"),
        3 => call
            .with("minfs-cluster", noise(rng, 5000))
            .with("minfs-from", "x")
            .with("minfs-target", "-1"),
        _ => {
            let mut call = call.with("minfs-cluster", &target.cluster);
            call.body = framed(&vec![7; rng.random_range(5000..500_000)]).into();
            call
        }
    }
}

/// With the right metadata, and bytes that are not right any more.
fn damaged(target: &Target, rng: &mut StdRng) -> Call {
    let path = match rng.random() {
        true => one_of(rng, &RAFT),
        false => one_of(rng, &PEER),
    };
    let (_, mut message) = good(rng);
    let call = match rng.random_range(0..4) {
        0 => Call::new(path, noise(rng, 2000)),
        1 => {
            message.truncate(rng.random_range(0..=message.len()));
            // Cut at a seam, it may still be a message: of another kind, then.
            Call::new(
                "/minfs.raft.RaftService/TransferLeader",
                [&[0xff][..], &message[..]].concat(),
            )
        }
        2 => Call::new(path, [0xa3, 0x06].repeat(rng.random_range(1..5000))),
        _ => {
            let length: u32 = rng.random();
            Call::new(path, b"").with_body([&[0][..], &length.to_be_bytes(), &message[..]].concat())
        }
    };
    target.stamp(call)
}

/// With the right metadata, well-formed, and such as no peer would say.
fn senseless(target: &Target, rng: &mut StdRng) -> Call {
    let (path, message) = good(rng);
    target.stamp(Call::new(path, message))
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId {
        leader: Some(LeaderId { term, node: 17 }),
        index,
    }
}

/// One that nobody can have given: of the past, or of a future that never comes.
fn vote(rng: &mut StdRng) -> Vote {
    let term = one_of(rng, &[0, 1 << 33, 1 << 62, (1 << 63) - 1, 1 << 63, u64::MAX]);
    Vote {
        leader: (!rng.random_ratio(1, 10)).then_some(LeaderId {
            term,
            node: rng.random(),
        }),
        committed: rng.random(),
    }
}

fn any_log_id(rng: &mut StdRng) -> Option<LogId> {
    let numbers = [0, 1, 2, 7, 1 << 40, (1 << 63) - 1, u64::MAX];
    let id = log_id(one_of(rng, &numbers), one_of(rng, &numbers));
    (!rng.random_ratio(1, 5)).then_some(id)
}

fn any_membership(rng: &mut StdRng) -> Membership {
    let configs = (0..rng.random_range(0..4)).map(|_| membership::Config {
        voters: (0..rng.random_range(0..5))
            .map(|_| rng.random_range(0..9))
            .collect(),
    });
    Membership {
        configs: configs.collect(),
        ..Membership::default()
    }
}

fn any_entry(rng: &mut StdRng) -> Entry {
    let payload = match rng.random_range(0..3) {
        0 => None,
        1 => Some(entry::Payload::Batch(noise(rng, 200).into())),
        _ => Some(entry::Payload::Membership(any_membership(rng))),
    };
    Entry {
        log_id: any_log_id(rng),
        payload,
    }
}

/// A method, and a message that decodes as its request.
fn good(rng: &mut StdRng) -> (&'static str, Vec<u8>) {
    match rng.random_range(0..10) {
        0 | 1 => {
            let request = AppendRequest {
                vote: Some(vote(rng)),
                prev_log_id: any_log_id(rng),
                entries: (0..rng.random_range(0..5)).map(|_| any_entry(rng)).collect(),
                leader_commit: any_log_id(rng),
            };
            (RAFT[0], request.encode_to_vec())
        }
        n @ (2 | 3) => {
            let request = VoteRequest {
                vote: Some(vote(rng)),
                last_log_id: any_log_id(rng),
                leadership_transfer: rng.random(),
            };
            (RAFT[n - 1], request.encode_to_vec())
        }
        4 | 5 => {
            let meta = SnapshotMeta {
                state_hash: vec![],
                last_log_id: any_log_id(rng),
                last_membership: Some(StoredMembership {
                    log_id: any_log_id(rng),
                    membership: Some(any_membership(rng)),
                }),
                bytes: one_of(rng, &[0, 1, 100, 1 << 62, u64::MAX]),
                checksum: rng.random(),
                version: rng.random_range(0..5),
            };
            let header = SnapshotHeader {
                vote: Some(vote(rng)),
                meta: Some(meta),
            };
            let content = match rng.random_ratio(3, 4) {
                true => Content::Header(header),
                false => Content::Data(noise(rng, 1000).into()),
            };
            let chunk = SnapshotChunk {
                content: Some(content),
            };
            (RAFT[3], chunk.encode_to_vec())
        }
        6 => {
            let request = TransferLeaderRequest {
                from_leader: Some(vote(rng)),
                to: rng.random(),
                last_log_id: any_log_id(rng),
            };
            (RAFT[4], request.encode_to_vec())
        }
        7 => {
            let request = ClaimRequest {
                cluster_id: (one_of(rng, &["", "x", "00000000000000000000000000000000"])).to_owned(),
                incarnation: rng.random_range(1..10),
            };
            (PEER[1], request.encode_to_vec())
        }
        8 => {
            // Commands without an operation: none can be carried out.
            let request = ProposeRequest {
                commands: vec![Command::default(); rng.random_range(1..5000)],
            };
            (PEER[2], request.encode_to_vec())
        }
        _ => (PEER[3], noise(rng, 20)),
    }
}
