//! A day in the life of a client in the field: no library of ours, no retries, a follower to talk to,
//! DataServers that advertise `0.0.0.0`, and a leader that dies in the middle.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use minfs::proto::dfs::{
    CreateNodeRequest, DeleteNodeRequest, FileType, FinalizeWriteRequest, GetBlockLocationsRequest,
    GetBlockLocationsResponse, GetNodeInfoRequest, ListDirectoryRequest, StatInfo,
};
use support::cluster::{Cluster, Setup, turn};
use support::data_servers::{Fleet, addresses};
use tonic::Code;

const BLOCK: i64 = 4 << 20;

/// The blocks are spread: three different DataServers each, and all DataServers about alike.
fn spread(blocks: &GetBlockLocationsResponse) {
    let known: BTreeSet<_> = addresses(4).into_iter().collect();
    let mut load = BTreeMap::<&str, usize>::new();
    for block in &blocks.block_locations {
        let different: BTreeSet<_> = block.locations.iter().cloned().collect();
        assert_eq!((block.locations.len(), different.len()), (3, 3), "{block:?}");
        assert!(different.is_subset(&known), "{block:?}");
        for location in &block.locations {
            *load.entry(location).or_default() += 1;
        }
    }
    let fair = 3 * blocks.block_locations.len() / 4;
    assert!(load.values().all(|count| count.abs_diff(fair) <= 1), "{load:?}");
}

#[tokio::test]
async fn an_old_client_at_a_follower() {
    let _turn = turn();
    let mut cluster = Cluster::formed(Setup::default()).await;
    let leader = cluster.leader().await;
    let rest = cluster.others(leader);
    let fleet = Fleet::start(&cluster, 4).await;
    let mut meta = cluster.raw(rest[0]);

    // The morning: a directory, and a file of eight and a half blocks.
    let directory = CreateNodeRequest {
        path: "/photos".to_owned(),
        r#type: FileType::Directory as i32,
    };
    assert!(meta.create_node(directory).await.unwrap().into_inner().success);
    let path = "/photos/cat.raw".to_owned();
    let file = CreateNodeRequest {
        path: path.clone(),
        r#type: FileType::File as i32,
    };
    assert!(meta.create_node(file).await.unwrap().into_inner().success);
    let size = 8 * BLOCK + BLOCK / 2;
    let allocate = GetBlockLocationsRequest {
        path: path.clone(),
        size,
        ..Default::default()
    };
    let blocks = meta.get_block_locations(allocate).await.unwrap().into_inner();
    assert_eq!(blocks.block_locations.len(), 9);
    assert!(blocks.inode > 0);
    spread(&blocks);
    let md5 = "0123456789abcdef0123456789abcdef".to_owned();
    let finalize = FinalizeWriteRequest {
        path: path.clone(),
        inode: blocks.inode,
        size,
        md5: md5.clone(),
        ..Default::default()
    };
    assert!(meta.finalize_write(finalize).await.unwrap().into_inner().success);

    // Noon: it looks at what it has.
    let stat = |path: &str| GetNodeInfoRequest {
        path: path.to_owned(),
    };
    let info = meta
        .get_node_info(stat(&path))
        .await
        .unwrap()
        .into_inner()
        .stat_info
        .unwrap();
    assert_eq!(
        (info.path.as_str(), info.size, info.r#type(), &info.md5),
        (path.as_str(), size, FileType::File, &md5)
    );
    let replicas: BTreeSet<_> = info
        .replica_data
        .iter()
        .map(|replica| (replica.id.clone(), replica.ds_node.clone(), replica.path.clone()))
        .collect();
    let expected: BTreeSet<_> = blocks
        .block_locations
        .iter()
        .flat_map(|block| {
            let id = block.block_id;
            block
                .locations
                .iter()
                .map(move |at| (id.to_string(), at.clone(), format!("{id}.dat")))
        })
        .collect();
    assert_eq!(replicas, expected);
    let read = GetBlockLocationsRequest {
        path: path.clone(),
        size: 0,
        ..Default::default()
    };
    let again = meta.get_block_locations(read).await.unwrap().into_inner();
    let ids = |blocks: &GetBlockLocationsResponse| -> Vec<_> {
        blocks
            .block_locations
            .iter()
            .map(|block| block.block_id)
            .collect()
    };
    assert_eq!((again.inode, ids(&again)), (blocks.inode, ids(&blocks)));
    let list = ListDirectoryRequest {
        path: "/photos".to_owned(),
    };
    let listed = meta.list_directory(list).await.unwrap().into_inner().nodes;
    let [entry] = listed
        .try_into()
        .unwrap_or_else(|listed: Vec<StatInfo>| panic!("one file, not {listed:?}"));
    assert_eq!(
        (entry.path.as_str(), entry.size, entry.replica_data.len()),
        (path.as_str(), size, 0)
    );
    let directory = meta
        .get_node_info(stat("/photos"))
        .await
        .unwrap()
        .into_inner()
        .stat_info
        .unwrap();
    assert_eq!((directory.size, directory.r#type()), (size, FileType::Directory));

    // The afternoon: no DataServer says a word, and the leader dies. The new one knows them all the same.
    fleet.stop().await;
    cluster.level().await;
    let term = cluster.answers(leader).await.term;
    cluster.kill(leader);
    let (leader, _) = cluster.new_leader(&rest, term).await;
    let mut meta = cluster.raw(leader);
    let second = "/photos/dog.raw".to_owned();
    let allocate = GetBlockLocationsRequest {
        path: second.clone(),
        size: 4 * BLOCK,
        ..Default::default()
    };
    let blocks = meta.get_block_locations(allocate).await.unwrap().into_inner();
    assert_eq!(blocks.block_locations.len(), 4);
    spread(&blocks);
    assert!(
        ids(&blocks).iter().all(|id| !ids(&again).contains(id)),
        "block numbers never repeat"
    );

    // The evening: it tidies up.
    for path in [path, second] {
        let delete = DeleteNodeRequest {
            path: path.clone(),
            recursive: false,
        };
        assert!(meta.delete_node(delete).await.unwrap().into_inner().success);
        assert_eq!(
            meta.get_node_info(stat(&path)).await.unwrap_err().code(),
            Code::NotFound
        );
    }
    let directory = meta
        .get_node_info(stat("/photos"))
        .await
        .unwrap()
        .into_inner()
        .stat_info
        .unwrap();
    assert_eq!(directory.size, 0);
}
