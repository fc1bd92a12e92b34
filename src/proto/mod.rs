//! The wire: code generated from the `.proto` files beside this one.
//!
//! [`dfs`] is the contract with the clients and DataServers in the field, [`raft`] is what
//! MetaServers say to each other and what the log holds, [`admin`] is for operators.

pub mod codec;
pub mod convert;
pub mod heartbeat;
mod timeout;

pub use timeout::grpc_timeout;

#[allow(missing_docs, clippy::unwrap_used, unused_qualifications)]
pub mod dfs {
    //! `metaserver.proto` and `dataserver.proto`, package `dfs_project`.
    tonic::include_proto!("dfs_project");

    pub use super::heartbeat::HeartbeatRequest;
}

#[allow(missing_docs, clippy::unwrap_used, unused_qualifications)]
pub mod raft {
    //! `raft.proto`, package `minfs.raft`.
    tonic::include_proto!("minfs.raft");
}

#[allow(missing_docs, clippy::unwrap_used, unused_qualifications)]
pub mod admin {
    //! `admin.proto`, package `minfs.admin`.
    tonic::include_proto!("minfs.admin");
}

/// The descriptors of every service, for gRPC server reflection: encoded `FileDescriptorSet`s.
pub const DESCRIPTORS: [&[u8]; 2] = [
    tonic::include_file_descriptor_set!("contract"),
    tonic::include_file_descriptor_set!("ours"),
];
