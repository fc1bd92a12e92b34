//! Reads and writes: what goes to the neighbours, and what comes back to the client.

use tonic::Request;

use super::*;
use crate::actors::gateway::REQUEST_ID_KEY;
use crate::domain::command::{AllocationPlan, Outcome, Refusal, RequestId};
use crate::domain::ids::{BlockId, InodeId};
use crate::domain::state::BlockRun;

fn with_id<T>(message: T, id: &'static str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(REQUEST_ID_KEY, id.parse().unwrap());
    request
}

fn create(path: &str) -> CreateNodeRequest {
    CreateNodeRequest {
        path: path.into(),
        r#type: FileType::File.into(),
    }
}

#[actix::test]
async fn a_write_is_one_proposal_with_the_callers_id_and_a_deadline() {
    let rig = Rig::leading().await;
    let before = Instant::now();
    rig.client
        .clone()
        .create_node(with_id(create("/f/../g"), "req-1"))
        .await
        .unwrap();
    let proposals = rig.with(|neighbour, _| neighbour.proposals.clone()).await;
    let [proposal] = &proposals[..] else {
        panic!("{proposals:?}")
    };
    let op = Op::Create {
        path: path("/g"),
        directory: false,
    };
    assert_eq!(proposal.op, op);
    assert_eq!(proposal.request_id, Some(RequestId::new(b"req-1").unwrap()));
    assert!(!proposal.forwarded);
    assert!(proposal.deadline > before && proposal.deadline < Instant::now() + Duration::from_secs(30));
    assert!(
        rig.with(|neighbour, _| neighbour.reads.is_empty()).await,
        "no read first"
    );
}

#[actix::test]
async fn a_repeat_is_told_by_its_id() {
    let rig = Rig::leading().await;
    let mut client = rig.client.clone();
    for _ in 0..2 {
        client.create_node(with_id(create("/f"), "req-1")).await.unwrap();
    }
    assert_eq!(
        refused(client.create_node(create("/f")).await).0,
        Code::AlreadyExists
    );
    let delete = DeleteNodeRequest {
        path: "/f".into(),
        recursive: false,
    };
    let (code, _) = refused(client.delete_node(with_id(delete, "req-1")).await);
    assert_eq!(code, Code::InvalidArgument, "the id of another request");
    rig.stat("/f").await.unwrap();
}

#[actix::test]
async fn an_id_of_no_use_is_refused() {
    let rig = Rig::leading().await;
    let long: &'static str = "0123456789012345678901234567890123456789012345678901234567890123x";
    let (code, _) = refused(rig.client.clone().create_node(with_id(create("/f"), long)).await);
    assert_eq!(code, Code::InvalidArgument);
    assert_eq!(rig.with(|neighbour, _| neighbour.proposals.len()).await, 0);
}

#[actix::test]
async fn a_read_asks_leave_first() {
    let rig = Rig::leading().await;
    // What this node learns while it waits for leave is seen.
    rig.with(|neighbour, _| {
        let op = Op::Create {
            path: path("/late"),
            directory: true,
        };
        neighbour.catch_up = Some((1, vec![op]));
    })
    .await;
    assert_eq!(rig.stat("/late").await.unwrap().r#type(), FileType::Directory);
    assert_eq!(rig.with(|neighbour, _| neighbour.reads.len()).await, 1);
}

#[actix::test]
async fn a_file_is_written_read_and_overwritten() {
    let rig = Rig::leading().await;
    rig.data_servers(4).await;
    rig.mkdir("/d").await;
    rig.create("/d/f", 2).await.unwrap();
    let empty = rig.stat("/d/f").await.unwrap();
    assert_eq!(
        (empty.size, empty.replica_data.len(), empty.md5.as_str()),
        (0, 0, "")
    );
    assert!(rig.blocks("/d/f", 0).await.unwrap().block_locations.is_empty());

    // ceil(9 / 4) blocks, three replicas each, on different DataServers, spread over all of them.
    let written = rig.write("/d/f", 9).await;
    let blocks = &written.block_locations;
    assert_eq!(
        blocks.iter().map(|block| block.block_id).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    assert_eq!(blocks[0].locations, ["ds-1:8000", "ds-2:8000", "ds-3:8000"]);
    assert_eq!(blocks[1].locations, ["ds-2:8000", "ds-3:8000", "ds-4:8000"]);

    // Reading: size 0 or the stored one, and nothing is proposed.
    let proposals = rig.with(|neighbour, _| neighbour.proposals.len()).await;
    assert_eq!(rig.blocks("/d/f", 0).await.unwrap(), written);
    assert_eq!(rig.blocks("/d/f", 9).await.unwrap(), written);
    assert_eq!(
        rig.with(|neighbour, _| neighbour.proposals.len()).await,
        proposals
    );

    let stat = rig.stat("/d/f").await.unwrap();
    assert_eq!(
        (stat.path.as_str(), stat.size, stat.md5.as_str()),
        ("/d/f", 9, "d41d8")
    );
    assert_eq!(stat.r#type(), FileType::File);
    assert_eq!(stat.replica_data.len(), 9);
    let second = &stat.replica_data[1];
    assert_eq!(
        (second.id.as_str(), second.ds_node.as_str(), second.path.as_str()),
        ("1", "ds-2:8000", "1.dat")
    );
    assert!(stat.mtime > 0);
    assert_eq!(rig.stat("/d").await.unwrap().size, 9);
    assert_eq!(rig.stat("/").await.unwrap().size, 9);

    // Any other size replaces the blocks.
    let again = rig.blocks("/d/f", 2).await.unwrap();
    assert_eq!(again.inode, written.inode);
    assert_eq!(again.block_locations.len(), 1);
    assert_eq!(again.block_locations[0].block_id, 4);
    assert_eq!(rig.stat("/d").await.unwrap().size, 0);
}

#[actix::test]
async fn a_live_replica_comes_first() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    rig.write("/f", 4).await;
    for (down, expected) in [
        (1, ["ds-2:8000", "ds-3:8000", "ds-1:8000"]),
        (2, ["ds-3:8000", "ds-1:8000", "ds-2:8000"]),
    ] {
        rig.with(move |neighbour, _| {
            let op = Op::SetDataServerStatus {
                server: ServerId(down),
                status: ServerStatus::Unhealthy,
            };
            neighbour.apply_ops(vec![op]);
        })
        .await;
        assert_eq!(
            rig.blocks("/f", 0).await.unwrap().block_locations[0].locations,
            expected
        );
        assert_eq!(rig.stat("/f").await.unwrap().replica_data[0].ds_node, expected[0]);
    }
}

#[actix::test]
async fn a_moved_replica_is_found_where_it_is() {
    let rig = Rig::leading().await;
    rig.data_servers(4).await;
    rig.write("/f", 4).await;
    rig.with(|neighbour, _| {
        let op = Op::MoveReplica {
            block: BlockId(1),
            from: ServerId(2),
            to: ServerId(4),
        };
        neighbour.apply_ops(vec![op]);
    })
    .await;
    let locations = &rig.blocks("/f", 0).await.unwrap().block_locations[0].locations;
    assert_eq!(locations, &["ds-1:8000", "ds-4:8000", "ds-3:8000"]);
}

#[actix::test]
async fn the_leader_fills_in_the_plan_and_a_lagging_follower_waits_to_name_the_servers() {
    let rig = Rig::leading().await;
    // This node has not heard yet of the DataServers that the leader chose.
    rig.with(|neighbour, _| {
        let blocks = BlockRun {
            first: BlockId(7),
            count: 1,
            block_size: BLOCK,
            replication: 2,
            servers: vec![ServerId(2), ServerId(1)],
        };
        let inode = InodeId(5);
        neighbour.on_propose = Script::Answer(Ok(Ok(Outcome::Allocated { inode, blocks })));
        neighbour.catch_up = Some((2, registrations(1..=2)));
    })
    .await;
    let answer = rig.blocks("/f", 3).await.unwrap();
    assert_eq!(answer.inode, 5);
    assert_eq!(answer.block_locations[0].block_id, 7);
    assert_eq!(answer.block_locations[0].locations, ["ds-2:8000", "ds-1:8000"]);
    let (proposals, reads) = rig
        .with(|neighbour, _| (neighbour.proposals.clone(), neighbour.reads.len()))
        .await;
    let plan: Option<AllocationPlan> = None;
    let op = Op::Allocate {
        path: path("/f"),
        size: 3,
        plan,
        staged: false,
    };
    assert_eq!(proposals[0].op, op);
    assert_eq!(reads, 2);
}

#[actix::test]
async fn the_repeat_of_an_allocation_gets_its_blocks_even_if_none_could_be_made_now() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    let ask = || {
        let request = GetBlockLocationsRequest {
            path: "/f".into(),
            size: 3,
            ..Default::default()
        };
        with_id(request, "req-7")
    };
    let mut client = rig.client.clone();
    let first = client.get_block_locations(ask()).await.unwrap().into_inner();
    // The answer was lost, and meanwhile too few DataServers are left for another allocation.
    rig.with(|neighbour, _| {
        let refusal = Refusal::failed_precondition("need 3 healthy DataServers, have 0");
        neighbour.on_propose = Script::Answer(Err(ProposeError::Refused(refusal)));
    })
    .await;
    let repeat = client.get_block_locations(ask()).await.unwrap().into_inner();
    assert_eq!(repeat, first);
}

#[actix::test]
async fn a_large_read_is_made_aside_and_whole() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    rig.with(|neighbour, _| {
        let create = |name: u32| Op::Create {
            path: path(&format!("/{name:05}")),
            directory: false,
        };
        neighbour.apply_ops((0..5000).map(create).collect());
    })
    .await;
    let listed = rig.list("/").await.unwrap();
    assert_eq!(listed.len(), 5000);
    assert!(listed.windows(2).all(|pair| pair[0].path < pair[1].path));

    let written = rig.write("/00000", 5000 * BLOCK as i64).await;
    assert_eq!(written.block_locations.len(), 5000);
    assert_eq!(rig.blocks("/00000", 0).await.unwrap(), written);
    assert_eq!(rig.stat("/00000").await.unwrap().replica_data.len(), 15_000);
}
