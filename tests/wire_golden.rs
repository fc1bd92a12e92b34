//! The contract with the clients and DataServers in the field, held twice: as the bytes of every
//! message, written out by hand (a field's tag is its number shifted left by three, plus its wire
//! type: 0 a varint, 2 a length and that many bytes), and as a table of every name, number and type,
//! compared with the descriptors that the server reflects.
//!
//! Nothing here may change. New RPCs and new fields with new numbers may be added, to both.

#![allow(clippy::unwrap_used)] // Everything here is a test.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Write};

use minfs::proto::dfs::*;
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// The golden messages that were checked, by name in lower case.
#[derive(Default)]
struct Goldens(BTreeSet<String>);

impl Goldens {
    /// `value`, in which every field differs from its default, encodes to `fields` and back.
    fn check<M: Message + Default + PartialEq + Debug>(&mut self, value: M, fields: &[&[u8]]) {
        let name = std::any::type_name::<M>().rsplit("::").next().unwrap();
        let golden = fields.concat();
        let encoded = value.encode_to_vec();
        assert_eq!(
            encoded.escape_ascii().to_string(),
            golden.escape_ascii().to_string(),
            "{name} encodes to other bytes than clients expect"
        );
        let decoded = M::decode(golden.as_slice()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(decoded, value, "{name} decodes to something else");
        assert_eq!(M::default().encode_to_vec(), b"", "{name}: a default is not sent");
        self.0.insert(name.to_ascii_lowercase());
    }
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn replica() -> ReplicaData {
    ReplicaData {
        id: text("7"),
        ds_node: text("h:1"),
        path: text("7.dat"),
    }
}

/// The fields of [`replica`]: 15 bytes.
const REPLICA: &[u8] = b"\x0a\x017\x12\x03h:1\x1a\x057.dat";

fn stat() -> StatInfo {
    StatInfo {
        path: text("/a"),
        size: 300,
        mtime: 150,
        r#type: FileType::Directory.into(),
        replica_data: vec![replica()],
        md5: text("d4"),
    }
}

/// The fields of [`stat`]: 33 bytes.
const STAT: &[u8] =
    b"\x0a\x02/a\x10\xac\x02\x18\x96\x01\x20\x03\x2a\x0f\x0a\x017\x12\x03h:1\x1a\x057.dat\x32\x02d4";

fn server(host: &str, port: i32) -> MetaServerMsg {
    MetaServerMsg {
        host: text(host),
        port,
    }
}

fn blocks() -> BlockLocations {
    BlockLocations {
        block_id: 300,
        locations: vec![text("a:1"), text("b:2")],
    }
}

/// The fields of [`blocks`]: 13 bytes.
const BLOCKS: &[u8] = b"\x08\xac\x02\x12\x03a:1\x12\x03b:2";

fn check_what_clients_exchange_with_metaservers(goldens: &mut Goldens) {
    goldens.check(
        replica(),
        &[
            b"\x0a\x017",     // 1 id
            b"\x12\x03h:1",   // 2 dsNode
            b"\x1a\x057.dat", // 3 path
        ],
    );
    goldens.check(
        stat(),
        &[
            b"\x0a\x02/a",   // 1 path
            b"\x10\xac\x02", // 2 size: 300
            b"\x18\x96\x01", // 3 mtime: 150
            b"\x20\x03",     // 4 type: Directory
            b"\x2a\x0f",
            REPLICA,       // 5 replicaData
            b"\x32\x02d4", // 6 md5
        ],
    );
    goldens.check(
        server("h", 9090),
        &[
            b"\x0a\x01h",    // 1 host
            b"\x10\x82\x47", // 2 port: 9090
        ],
    );
    goldens.check(
        DataServerMsg {
            host: text("h"),
            port: 9090,
            file_total: 3,
            capacity: 300,
            use_capacity: 150,
        },
        &[
            b"\x0a\x01h",    // 1 host
            b"\x10\x82\x47", // 2 port: 9090
            b"\x18\x03",     // 3 fileTotal
            b"\x20\xac\x02", // 4 capacity: 300
            b"\x28\x96\x01", // 5 useCapacity: 150
        ],
    );
    goldens.check(
        ClusterInfo {
            master_meta_server: Some(server("a", 1)),
            slave_meta_server: vec![server("b", 2), server("c", 3)],
            data_server: vec![DataServerMsg {
                host: text("d"),
                ..Default::default()
            }],
        },
        &[
            b"\x0a\x05\x0a\x01a\x10\x01", // 1 masterMetaServer
            b"\x12\x05\x0a\x01b\x10\x02", // 2 slaveMetaServer
            b"\x12\x05\x0a\x01c\x10\x03",
            b"\x1a\x03\x0a\x01d", // 3 dataServer
        ],
    );
    goldens.check(
        NodeInfo {
            inode: 9,
            path: text("/a"),
            r#type: FileType::File.into(),
            size: 300,
            mtime: 150,
            replication: 3,
            md5: text("d4"),
            replica_data: vec![replica()],
        },
        &[
            b"\x08\x09",     // 1 inode
            b"\x12\x02/a",   // 2 path
            b"\x18\x02",     // 3 type: File
            b"\x20\xac\x02", // 4 size: 300
            b"\x28\x96\x01", // 5 mtime: 150
            b"\x30\x03",     // 6 replication
            b"\x3a\x02d4",   // 7 md5
            b"\x42\x0f",
            REPLICA, // 8 replicaData
        ],
    );
    goldens.check(
        blocks(),
        &[
            b"\x08\xac\x02", // 1 block_id: 300
            b"\x12\x03a:1",  // 2 locations
            b"\x12\x03b:2",
        ],
    );
    goldens.check(
        SimpleResponse {
            success: true,
            message: text("ok"),
        },
        &[
            b"\x08\x01",   // 1 success
            b"\x12\x02ok", // 2 message
        ],
    );
    goldens.check(
        CreateNodeRequest {
            path: text("/a"),
            r#type: FileType::Volume.into(),
        },
        &[
            b"\x0a\x02/a", // 1 path
            b"\x10\x01",   // 2 type: Volume
        ],
    );
    goldens.check(GetNodeInfoRequest { path: text("/a") }, &[b"\x0a\x02/a"]);
    goldens.check(
        GetNodeInfoResponse {
            stat_info: Some(stat()),
        },
        &[b"\x0a\x21", STAT], // 1 statInfo
    );
    goldens.check(ListDirectoryRequest { path: text("/a") }, &[b"\x0a\x02/a"]);
    goldens.check(
        ListDirectoryResponse {
            nodes: vec![stat(), stat()],
        },
        &[b"\x0a\x21", STAT, b"\x0a\x21", STAT], // 1 nodes
    );
    goldens.check(
        DeleteNodeRequest {
            path: text("/a"),
            recursive: true,
        },
        &[
            b"\x0a\x02/a", // 1 path
            b"\x10\x01",   // 2 recursive
        ],
    );
    goldens.check(
        GetBlockLocationsRequest {
            path: text("/a"),
            size: 300,
            staged: true,
        },
        &[
            b"\x0a\x02/a",   // 1 path
            b"\x10\xac\x02", // 2 size: 300
            b"\x18\x01",     // 3 staged
        ],
    );
    goldens.check(
        GetBlockLocationsRequest {
            path: text("/a"),
            size: -1,
            staged: false,
        },
        // A negative size, which is answered as a mistake, must arrive as one.
        &[b"\x0a\x02/a", b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"],
    );
    goldens.check(
        GetBlockLocationsResponse {
            inode: 9,
            block_locations: vec![blocks(), blocks()],
        },
        &[
            b"\x08\x09", // 1 inode
            b"\x12\x0d",
            BLOCKS, // 2 block_locations
            b"\x12\x0d",
            BLOCKS,
        ],
    );
    goldens.check(
        FinalizeWriteRequest {
            path: text("/a"),
            inode: 9,
            size: 300,
            md5: text("d4"),
            staged_block: 300,
        },
        &[
            b"\x0a\x02/a",   // 1 path
            b"\x10\x09",     // 2 inode
            b"\x18\xac\x02", // 3 size: 300
            b"\x22\x02d4",   // 4 md5
            b"\x28\xac\x02", // 5 staged_block: 300
        ],
    );
    goldens.check(GetClusterInfoRequest {}, &[]);
    goldens.check(
        GetClusterInfoResponse {
            cluster_info: Some(ClusterInfo {
                master_meta_server: Some(server("a", 1)),
                ..Default::default()
            }),
        },
        &[b"\x0a\x07\x0a\x05\x0a\x01a\x10\x01"], // 1 clusterInfo
    );
    goldens.check(
        GetReplicationInfoRequest { path: text("/a") },
        &[b"\x0a\x02/a"], // 1 path
    );
    let block = BlockReplicationInfo {
        block_id: 300,
        locations: vec![text("a:1")],
        expected_locations: vec![text("b:2"), text("c:3")],
        replica_count: 4,
    };
    goldens.check(
        block.clone(),
        &[
            b"\x08\xac\x02", // 1 block_id: 300
            b"\x12\x03a:1",  // 2 locations
            b"\x1a\x03b:2",  // 3 expected_locations
            b"\x1a\x03c:3",
            b"\x20\x04", // 4 replica_count
        ],
    );
    let status = ReplicationStatus {
        path: text("/a"),
        inode: 9,
        size: 300,
        expected_replicas: 3,
        actual_replicas: 2,
        blocks: vec![block],
        status: text("healthy"),
    };
    let status_fields: &[&[u8]] = &[
        b"\x0a\x02/a",                                                    // 1 path
        b"\x10\x09",                                                      // 2 inode
        b"\x18\xac\x02",                                                  // 3 size: 300
        b"\x20\x03",                                                      // 4 expected_replicas
        b"\x28\x02",                                                      // 5 actual_replicas
        b"\x32\x14\x08\xac\x02\x12\x03a:1\x1a\x03b:2\x1a\x03c:3\x20\x04", // 6 blocks
        b"\x3a\x07healthy",                                               // 7 status
    ];
    goldens.check(status.clone(), status_fields);
    goldens.check(
        GetReplicationInfoResponse {
            files: vec![status],
            total_files: 300,
            healthy_files: 2,
            under_replicated_files: 3,
            over_replicated_files: 4,
        },
        &[
            b"\x0a\x2c",
            &status_fields.concat(), // 1 files
            b"\x10\xac\x02",         // 2 total_files: 300
            b"\x18\x02",             // 3 healthy_files
            b"\x20\x03",             // 4 under_replicated_files
            b"\x28\x04",             // 5 over_replicated_files
        ],
    );
    goldens.check(GetLeaderRequest {}, &[]);
    goldens.check(
        GetLeaderResponse {
            leader: Some(server("a", 1)),
            followers: vec![server("b", 2), server("c", 3)],
        },
        &[
            b"\x0a\x05\x0a\x01a\x10\x01", // 1 leader
            b"\x12\x05\x0a\x01b\x10\x02", // 2 followers
            b"\x12\x05\x0a\x01c\x10\x03",
        ],
    );
}

fn check_what_dataservers_exchange_with_metaservers(goldens: &mut Goldens) {
    goldens.check(
        HeartbeatRequest {
            data_server_id: text("ds"),
            data_server_addr: text("h:1"),
            block_count: 3,
            free_space: 1 << 35,
            block_ids_report: vec![1, 300, 1 << 62].into(),
            total_capacity: 1 << 42,
            corrupt_block_ids: vec![7, 300],
        },
        &[
            b"\x0a\x02ds",                           // 1 dataServer_id
            b"\x12\x03h:1",                          // 2 dataServer_addr
            b"\x18\x03",                             // 3 block_count
            b"\x20\x80\x80\x80\x80\x80\x01",         // 4 free_space: 2^35
            b"\x2a\x0c\x01\xac\x02",                 // 5 block_ids_report, packed: 1, 300,
            b"\x80\x80\x80\x80\x80\x80\x80\x80\x40", // 2^62
            b"\x30\x80\x80\x80\x80\x80\x80\x01",     // 6 total_capacity: 2^42
            b"\x3a\x03\x07\xac\x02",                 // 7 corrupt_block_ids, packed
        ],
    );
    let unpacked = HeartbeatRequest::decode(&b"\x28\x01\x28\xac\x02"[..]).unwrap();
    assert_eq!(
        unpacked.block_ids_report.numbers(),
        [1, 300],
        "lists need not be packed"
    );

    goldens.check(
        Command {
            action: command::Action::CopyBlock.into(),
            block_id: 300,
            targets: vec![text("a:1"), text("b:2")],
        },
        &[
            b"\x08\x01",     // 1 action: COPY_BLOCK
            b"\x10\xac\x02", // 2 block_id: 300
            b"\x1a\x03a:1",  // 3 targets
            b"\x1a\x03b:2",
        ],
    );
    goldens.check(
        HeartbeatResponse {
            commands: vec![
                Command {
                    action: command::Action::DeleteBlock.into(),
                    block_id: 5,
                    targets: vec![],
                },
                Command {
                    action: command::Action::CopyBlock.into(),
                    block_id: 6,
                    targets: vec![],
                },
            ],
            cluster_id: text("c"),
        },
        &[
            b"\x0a\x02\x10\x05", // 1 commands; DELETE_BLOCK is 0 and so is not sent
            b"\x0a\x04\x08\x01\x10\x06",
            b"\x12\x01c", // 2 cluster_id
        ],
    );
}

fn check_what_the_write_ahead_log_left(goldens: &mut Goldens) {
    goldens.check(
        LogEntry {
            log_index: 9,
            timestamp: 150,
            operation: WalOperationType::SetBlockMapping.into(),
            data: b"\x00\xff".to_vec(),
            checksum: text("c"),
        },
        &[
            b"\x08\x09",         // 1 log_index
            b"\x10\x96\x01",     // 2 timestamp: 150
            b"\x18\x05",         // 3 operation: SET_BLOCK_MAPPING
            b"\x22\x02\x00\xff", // 4 data
            b"\x2a\x01c",        // 5 checksum
        ],
    );
    goldens.check(
        CreateNodeOperation {
            path: text("/a"),
            r#type: FileType::File.into(),
            inode_id: 9,
        },
        &[
            b"\x0a\x02/a", // 1 path
            b"\x10\x02",   // 2 type: File
            b"\x18\x09",   // 3 inode_id
        ],
    );
    goldens.check(
        DeleteNodeOperation {
            path: text("/a"),
            recursive: true,
        },
        &[
            b"\x0a\x02/a", // 1 path
            b"\x10\x01",   // 2 recursive
        ],
    );
    goldens.check(
        UpdateNodeOperation {
            path: text("/a"),
            size: 300,
            mtime: 150,
        },
        &[
            b"\x0a\x02/a",   // 1 path
            b"\x10\xac\x02", // 2 size: 300
            b"\x18\x96\x01", // 3 mtime: 150
        ],
    );
    goldens.check(
        FinalizeWriteOperation {
            path: text("/a"),
            block_locations: vec![blocks()],
            inode: 9,
            size: 300,
            md5: text("d4"),
        },
        &[
            b"\x0a\x02/a", // 1 path
            b"\x12\x0d",
            BLOCKS,          // 2 block_locations
            b"\x18\x09",     // 3 inode
            b"\x20\xac\x02", // 4 size: 300
            b"\x2a\x02d4",   // 5 md5
        ],
    );
    goldens.check(
        UpdateBlockLocationOperation {
            block_id: 300,
            old_addr: text("a:1"),
            new_addr: text("b:2"),
        },
        &[
            b"\x08\xac\x02", // 1 block_id: 300
            b"\x12\x03a:1",  // 2 old_addr
            b"\x1a\x03b:2",  // 3 new_addr
        ],
    );
    goldens.check(
        SetBlockMappingOperation {
            inode_id: 9,
            block_index: 4,
            block_locs: Some(blocks()),
        },
        &[
            b"\x08\x09", // 1 inode_id
            b"\x10\x04", // 2 block_index
            b"\x1a\x0d",
            BLOCKS, // 3 block_locs
        ],
    );
    goldens.check(
        RequestWalSyncRequest {
            node_id: text("n"),
            last_log_index: 300,
            reason: text("r"),
        },
        &[
            b"\x0a\x01n",    // 1 node_id
            b"\x10\xac\x02", // 2 last_log_index: 300
            b"\x1a\x01r",    // 3 reason
        ],
    );
}

fn check_what_clients_exchange_with_dataservers(goldens: &mut Goldens) {
    let metadata = WriteBlockMetadata {
        block_id: 300,
        replica_locations: vec![text("a:1"), text("b:2")],
        length: Some(1),
        crc32c: Some(300),
    };
    let metadata_fields: &[&[u8]] = &[
        b"\x08\xac\x02", // 1 block_id: 300
        b"\x12\x03a:1",  // 2 replica_locations
        b"\x12\x03b:2",
        b"\x18\x01",     // 3 length
        b"\x20\xac\x02", // 4 crc32c: 300
    ];
    goldens.check(metadata.clone(), metadata_fields);
    goldens.check(
        WriteBlockRequest {
            content: Some(write_block_request::Content::Metadata(metadata)),
        },
        &[b"\x0a\x12", &metadata_fields.concat()], // 1 metadata
    );
    goldens.check(
        WriteBlockRequest {
            content: Some(write_block_request::Content::ChunkData((&b"\x00\xff"[..]).into())),
        },
        &[b"\x12\x02\x00\xff"], // 2 chunk_data
    );
    goldens.check(
        WriteBlockResponse {
            success: true,
            failed_replicas: vec![text("a:1")],
        },
        &[
            b"\x08\x01",    // 1 success
            b"\x12\x03a:1", // 2 failed_replicas
        ],
    );
    goldens.check(ReadBlockRequest { block_id: 300 }, &[b"\x08\xac\x02"]);
    goldens.check(
        ReadBlockResponse {
            chunk_data: (&b"\x00\xff"[..]).into(),
        },
        &[b"\x0a\x02\x00\xff"], // 1 chunk_data
    );
    goldens.check(DeleteBlockRequest { block_id: 300 }, &[b"\x08\xac\x02"]);
    goldens.check(DeleteBlockResponse { success: true }, &[b"\x08\x01"]);
    goldens.check(
        CopyBlockRequest {
            block_id: 300,
            source_address: text("a:1"),
        },
        &[
            b"\x08\xac\x02", // 1 block_id: 300
            b"\x12\x03a:1",  // 2 source_address
        ],
    );
    goldens.check(CopyBlockResponse { success: true }, &[b"\x08\x01"]);
}

#[test]
fn messages_between_clients_and_metaservers_keep_their_bytes() {
    check_what_clients_exchange_with_metaservers(&mut Goldens::default());
}

#[test]
fn messages_between_dataservers_and_metaservers_keep_their_bytes() {
    check_what_dataservers_exchange_with_metaservers(&mut Goldens::default());
}

#[test]
fn deprecated_messages_keep_their_bytes() {
    check_what_the_write_ahead_log_left(&mut Goldens::default());
}

#[test]
fn messages_between_clients_and_dataservers_keep_their_bytes() {
    check_what_clients_exchange_with_dataservers(&mut Goldens::default());
}

#[test]
fn every_message_of_the_package_has_golden_bytes() {
    let mut goldens = Goldens::default();
    check_what_clients_exchange_with_metaservers(&mut goldens);
    check_what_dataservers_exchange_with_metaservers(&mut goldens);
    check_what_the_write_ahead_log_left(&mut goldens);
    check_what_clients_exchange_with_dataservers(&mut goldens);
    let all: BTreeSet<_> = Package::of_the_contract()
        .messages
        .keys()
        .map(|name| name.to_ascii_lowercase())
        .collect();
    assert_eq!(goldens.0, all);
}

#[test]
fn unknown_fields_of_newer_clients_are_passed_over() {
    let newer = b"\x0a\x02/a\x9a\x06\x03new"; // 99: a string
    let request = ListDirectoryRequest::decode(&newer[..]).unwrap();
    assert_eq!(request.path, "/a");
}

// --- The descriptors ---

/// The descriptor sets that the server reflects: the one place to adapt when they are divided.
fn descriptor_sets() -> Vec<&'static [u8]> {
    minfs::proto::DESCRIPTORS.to_vec()
}

/// What a package declares, in the words of the contract's tables.
#[derive(Default)]
struct Package {
    services: BTreeMap<String, String>,
    messages: BTreeMap<String, String>,
    enums: BTreeMap<String, String>,
}

impl Package {
    fn of_the_contract() -> Self {
        let mut package = Package::default();
        for set in descriptor_sets() {
            let set = FileDescriptorSet::decode(set).unwrap();
            for file in set.file.iter().filter(|file| file.package() == "dfs_project") {
                assert_eq!(file.syntax(), "proto3", "{}", file.name());
                for service in &file.service {
                    let mut text = String::new();
                    for method in &service.method {
                        let stream = |streaming| if streaming { "stream " } else { "" };
                        let deprecated = method
                            .options
                            .as_ref()
                            .is_some_and(|options| options.deprecated());
                        writeln!(
                            text,
                            "{}({}{}) -> {}{}{}",
                            method.name(),
                            stream(method.client_streaming()),
                            short(method.input_type()),
                            stream(method.server_streaming()),
                            short(method.output_type()),
                            if deprecated { " (deprecated)" } else { "" },
                        )
                        .unwrap();
                    }
                    package.services.insert(service.name().to_owned(), text);
                }
                for message in &file.message_type {
                    package.add_message("", message);
                }
                for declared in &file.enum_type {
                    package.add_enum("", declared);
                }
            }
        }
        package
    }

    fn add_message(&mut self, outer: &str, message: &DescriptorProto) {
        let name = format!("{outer}{}", message.name());
        let fields: Vec<_> = message
            .field
            .iter()
            .map(|field| field_text(message, field))
            .collect();
        self.messages.insert(name.clone(), fields.join(", "));
        for declared in &message.enum_type {
            self.add_enum(&format!("{name}."), declared);
        }
        for nested in &message.nested_type {
            self.add_message(&format!("{name}."), nested);
        }
    }

    fn add_enum(&mut self, outer: &str, declared: &EnumDescriptorProto) {
        let values: Vec<_> = declared
            .value
            .iter()
            .map(|value| format!("{}={}", value.name(), value.number()))
            .collect();
        self.enums
            .insert(format!("{outer}{}", declared.name()), values.join(" "));
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix(".dfs_project.").unwrap_or(name)
}

fn field_text(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let what = match field.r#type() {
        Type::Message | Type::Enum => short(field.type_name()).to_owned(),
        Type::String => text("string"),
        Type::Bytes => text("bytes"),
        Type::Bool => text("bool"),
        Type::Int32 => text("int32"),
        Type::Int64 => text("int64"),
        Type::Uint32 => text("uint32"),
        Type::Uint64 => text("uint64"),
        other => format!("{other:?}"),
    };
    let how = match (field.label(), field.oneof_index) {
        (Label::Repeated, _) => text("repeated "),
        (Label::Required, _) => text("required "),
        (Label::Optional, _) if field.proto3_optional() => text("optional "),
        (Label::Optional, Some(index)) => {
            format!("oneof {} ", message.oneof_decl[index as usize].name())
        }
        (Label::Optional, None) => String::new(),
    };
    assert_eq!(
        field.json_name(),
        lower_camel(field.name()),
        "JSON's name for {} is the usual one",
        field.name()
    );
    format!("{}: {how}{what} {}", field.number(), field.name())
}

/// Protobuf's rule for JSON names.
fn lower_camel(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |mut camel, part| {
        let mut letters = part.chars();
        camel.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        camel.push_str(letters.as_str());
        camel
    })
}

fn table(rows: &[(&str, &str)]) -> BTreeMap<String, String> {
    let table: BTreeMap<_, _> = rows.iter().map(|(name, row)| (text(name), text(row))).collect();
    assert_eq!(table.len(), rows.len(), "no name twice");
    table
}

/// Compared row by row, so that a failure shows the row.
fn assert_table(found: &BTreeMap<String, String>, expected: &BTreeMap<String, String>) {
    for (name, row) in expected {
        assert_eq!(found.get(name), Some(row), "{name}");
    }
    for name in found.keys() {
        assert!(
            expected.contains_key(name),
            "{name} is new: add it to the tables here"
        );
    }
}

#[test]
fn services_have_the_contracts_names_types_and_streams() {
    let expected = table(&[
        (
            "MetaServerService",
            "CreateNode(CreateNodeRequest) -> SimpleResponse\n\
             GetNodeInfo(GetNodeInfoRequest) -> GetNodeInfoResponse\n\
             ListDirectory(ListDirectoryRequest) -> ListDirectoryResponse\n\
             DeleteNode(DeleteNodeRequest) -> SimpleResponse\n\
             GetBlockLocations(GetBlockLocationsRequest) -> GetBlockLocationsResponse\n\
             FinalizeWrite(FinalizeWriteRequest) -> SimpleResponse\n\
             GetClusterInfo(GetClusterInfoRequest) -> GetClusterInfoResponse\n\
             GetReplicationInfo(GetReplicationInfoRequest) -> GetReplicationInfoResponse\n\
             Heartbeat(HeartbeatRequest) -> HeartbeatResponse\n\
             GetLeader(GetLeaderRequest) -> GetLeaderResponse\n\
             SyncWAL(stream LogEntry) -> SimpleResponse (deprecated)\n\
             RequestWALSync(RequestWALSyncRequest) -> stream LogEntry (deprecated)\n",
        ),
        (
            "DataServerService",
            "WriteBlock(stream WriteBlockRequest) -> WriteBlockResponse\n\
             ReadBlock(ReadBlockRequest) -> stream ReadBlockResponse\n\
             DeleteBlock(DeleteBlockRequest) -> DeleteBlockResponse\n\
             CopyBlock(CopyBlockRequest) -> CopyBlockResponse\n",
        ),
    ]);
    assert_table(&Package::of_the_contract().services, &expected);
}

#[test]
fn messages_have_the_contracts_fields_numbers_and_types() {
    let expected = table(&[
        ("ReplicaData", "1: string id, 2: string dsNode, 3: string path"),
        (
            "StatInfo",
            "1: string path, 2: int64 size, 3: int64 mtime, 4: FileType type, \
             5: repeated ReplicaData replicaData, 6: string md5",
        ),
        ("MetaServerMsg", "1: string host, 2: int32 port"),
        (
            "DataServerMsg",
            "1: string host, 2: int32 port, 3: int32 fileTotal, 4: int32 capacity, 5: int32 useCapacity",
        ),
        (
            "ClusterInfo",
            "1: MetaServerMsg masterMetaServer, 2: repeated MetaServerMsg slaveMetaServer, \
             3: repeated DataServerMsg dataServer",
        ),
        (
            "NodeInfo",
            "1: uint64 inode, 2: string path, 3: FileType type, 4: int64 size, 5: int64 mtime, \
             6: uint32 replication, 7: string md5, 8: repeated ReplicaData replicaData",
        ),
        (
            "BlockLocations",
            "1: uint64 block_id, 2: repeated string locations",
        ),
        ("SimpleResponse", "1: bool success, 2: string message"),
        ("CreateNodeRequest", "1: string path, 2: FileType type"),
        ("GetNodeInfoRequest", "1: string path"),
        ("GetNodeInfoResponse", "1: StatInfo statInfo"),
        ("ListDirectoryRequest", "1: string path"),
        ("ListDirectoryResponse", "1: repeated StatInfo nodes"),
        ("DeleteNodeRequest", "1: string path, 2: bool recursive"),
        (
            "GetBlockLocationsRequest",
            "1: string path, 2: int64 size, 3: bool staged",
        ),
        (
            "GetBlockLocationsResponse",
            "1: uint64 inode, 2: repeated BlockLocations block_locations",
        ),
        (
            "FinalizeWriteRequest",
            "1: string path, 2: uint64 inode, 3: int64 size, 4: string md5, 5: uint64 staged_block",
        ),
        ("GetClusterInfoRequest", ""),
        ("GetClusterInfoResponse", "1: ClusterInfo clusterInfo"),
        (
            "HeartbeatRequest",
            "1: string dataServer_id, 2: string dataServer_addr, 3: uint64 block_count, \
             4: uint64 free_space, 5: repeated uint64 block_ids_report, 6: uint64 total_capacity, \
             7: repeated uint64 corrupt_block_ids",
        ),
        (
            "Command",
            "1: Command.Action action, 2: uint64 block_id, 3: repeated string targets",
        ),
        (
            "HeartbeatResponse",
            "1: repeated Command commands, 2: string cluster_id",
        ),
        ("GetReplicationInfoRequest", "1: string path"),
        (
            "BlockReplicationInfo",
            "1: uint64 block_id, 2: repeated string locations, \
             3: repeated string expected_locations, 4: uint32 replica_count",
        ),
        (
            "ReplicationStatus",
            "1: string path, 2: uint64 inode, 3: int64 size, 4: uint32 expected_replicas, \
             5: uint32 actual_replicas, 6: repeated BlockReplicationInfo blocks, 7: string status",
        ),
        (
            "GetReplicationInfoResponse",
            "1: repeated ReplicationStatus files, 2: uint32 total_files, 3: uint32 healthy_files, \
             4: uint32 under_replicated_files, 5: uint32 over_replicated_files",
        ),
        ("GetLeaderRequest", ""),
        (
            "GetLeaderResponse",
            "1: MetaServerMsg leader, 2: repeated MetaServerMsg followers",
        ),
        (
            "LogEntry",
            "1: uint64 log_index, 2: int64 timestamp, 3: WALOperationType operation, \
             4: bytes data, 5: string checksum",
        ),
        (
            "CreateNodeOperation",
            "1: string path, 2: FileType type, 3: uint64 inode_id",
        ),
        ("DeleteNodeOperation", "1: string path, 2: bool recursive"),
        (
            "UpdateNodeOperation",
            "1: string path, 2: int64 size, 3: int64 mtime",
        ),
        (
            "FinalizeWriteOperation",
            "1: string path, 2: repeated BlockLocations block_locations, 3: uint64 inode, \
             4: int64 size, 5: string md5",
        ),
        (
            "UpdateBlockLocationOperation",
            "1: uint64 block_id, 2: string old_addr, 3: string new_addr",
        ),
        (
            "SetBlockMappingOperation",
            "1: uint64 inode_id, 2: uint64 block_index, 3: BlockLocations block_locs",
        ),
        (
            "RequestWALSyncRequest",
            "1: string node_id, 2: uint64 last_log_index, 3: string reason",
        ),
        (
            "WriteBlockMetadata",
            "1: uint64 block_id, 2: repeated string replica_locations, 3: optional uint64 length, \
             4: optional uint32 crc32c",
        ),
        (
            "WriteBlockRequest",
            "1: oneof content WriteBlockMetadata metadata, 2: oneof content bytes chunk_data",
        ),
        (
            "WriteBlockResponse",
            "1: bool success, 2: repeated string failed_replicas",
        ),
        ("ReadBlockRequest", "1: uint64 block_id"),
        ("ReadBlockResponse", "1: bytes chunk_data"),
        ("DeleteBlockRequest", "1: uint64 block_id"),
        ("DeleteBlockResponse", "1: bool success"),
        ("CopyBlockRequest", "1: uint64 block_id, 2: string source_address"),
        ("CopyBlockResponse", "1: bool success"),
    ]);
    assert_table(&Package::of_the_contract().messages, &expected);
}

#[test]
fn enums_have_the_contracts_values() {
    let expected = table(&[
        ("FileType", "Unknown=0 Volume=1 File=2 Directory=3"),
        ("Command.Action", "DELETE_BLOCK=0 COPY_BLOCK=1"),
        (
            "WALOperationType",
            "CREATE_NODE=0 DELETE_NODE=1 UPDATE_NODE=2 FINALIZE_WRITE=3 UPDATE_BLOCK_LOCATION=4 \
             SET_BLOCK_MAPPING=5",
        ),
    ]);
    assert_table(&Package::of_the_contract().enums, &expected);
}
