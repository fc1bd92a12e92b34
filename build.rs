//! Generates the gRPC code from `src/proto/*.proto`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    // The contract's services answer a request that does not decode in the contract's words.
    tonic_prost_build::configure()
        .codec_path("crate::proto::codec::ContractCodec")
        .file_descriptor_set_path(out.join("contract.bin"))
        // Its list of blocks stays as it came.
        .extern_path(
            ".dfs_project.HeartbeatRequest",
            "crate::proto::heartbeat::HeartbeatRequest",
        )
        // Blocks pass through in pieces of their own: share their bytes, do not copy them.
        .bytes(".dfs_project.WriteBlockRequest")
        .bytes(".dfs_project.ReadBlockResponse")
        .compile_protos(
            &["src/proto/metaserver.proto", "src/proto/dataserver.proto"],
            &["src/proto"],
        )?;
    tonic_prost_build::configure()
        .file_descriptor_set_path(out.join("ours.bin"))
        // What is written must be the same bytes on every node: maps in the order of their keys.
        .btree_map(".minfs.raft.Membership")
        // Log entries and snapshot chunks are large: share their bytes, do not copy them.
        .bytes(".minfs.raft.Entry")
        .bytes(".minfs.raft.SnapshotChunk")
        .compile_protos(&["src/proto/admin.proto", "src/proto/raft.proto"], &["src/proto"])?;
    Ok(())
}
