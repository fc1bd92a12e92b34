//! Generates the gRPC code from `src/proto/*.proto`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    tonic_prost_build::configure()
        .file_descriptor_set_path(descriptors)
        // Log entries and snapshot chunks are large: share their bytes, do not copy them.
        .bytes(".minfs.raft.Entry")
        .bytes(".minfs.raft.SnapshotChunk")
        .compile_protos(
            &[
                "src/proto/metaserver.proto",
                "src/proto/dataserver.proto",
                "src/proto/admin.proto",
                "src/proto/raft.proto",
            ],
            &["src/proto"],
        )?;
    Ok(())
}
