//! Staged writes as a client sees them: the file at the path is what it was until the write is
//! finalized, and then it is the new one.

use tonic::Request;

use super::*;
use crate::actors::gateway::REQUEST_ID_KEY;
use crate::domain::command::Refusal;
use crate::domain::ids::BlockId;

fn request(path: &str, size: i64) -> GetBlockLocationsRequest {
    GetBlockLocationsRequest {
        path: path.into(),
        size,
        staged: true,
    }
}

fn ending(path: &str, staged: &GetBlockLocationsResponse, size: i64) -> FinalizeWriteRequest {
    FinalizeWriteRequest {
        path: path.into(),
        inode: staged.inode,
        size,
        md5: "5ca1ab1e".into(),
        staged_block: staged.block_locations[0].block_id,
    }
}

fn with_id<T>(message: T, id: &'static str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(REQUEST_ID_KEY, id.parse().unwrap());
    request
}

impl Rig {
    async fn stage(&self, path: &str, size: i64) -> Result<GetBlockLocationsResponse, Status> {
        let answer = self
            .client
            .clone()
            .get_block_locations(request(path, size))
            .await?;
        Ok(answer.into_inner())
    }

    async fn finish(&self, path: &str, staged: &GetBlockLocationsResponse, size: i64) -> Result<(), Status> {
        let ended = self
            .client
            .clone()
            .finalize_write(ending(path, staged, size))
            .await;
        ended.map(|_| ())
    }

    async fn proposals(&self) -> usize {
        self.with(|neighbour, _| neighbour.proposals.len()).await
    }
}

fn ids(blocks: &GetBlockLocationsResponse) -> Vec<u64> {
    blocks
        .block_locations
        .iter()
        .map(|block| block.block_id)
        .collect()
}

#[actix::test]
async fn a_staged_write_creates_a_file_that_nobody_saw_before() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    rig.mkdir("/d").await;
    let staged = rig.stage("/d//f", 9).await.unwrap();
    assert_eq!(ids(&staged), [1, 2, 3]);
    assert!(
        staged
            .block_locations
            .iter()
            .all(|block| block.locations.len() == 3)
    );
    assert_eq!(refused(rig.stat("/d/f").await).0, Code::NotFound);
    assert_eq!(refused(rig.blocks("/d/f", 0).await).0, Code::NotFound);
    assert!(rig.list("/d").await.unwrap().is_empty());

    rig.finish("/d/f", &staged, 9).await.unwrap();
    let stat = rig.stat("/d/f").await.unwrap();
    assert_eq!((stat.size, stat.md5.as_str()), (9, "5ca1ab1e"));
    assert_eq!(rig.blocks("/d/f", 0).await.unwrap(), staged);
    assert_eq!(rig.stat("/d").await.unwrap().size, 9);
}

#[actix::test]
async fn a_file_is_readable_until_a_staged_write_replaces_it() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    let old = rig.write("/f", 9).await;
    let staged = rig.stage("/f", 5).await.unwrap();
    assert_ne!(staged.inode, old.inode);
    assert_eq!(ids(&staged), [4, 5]);
    for size in [0, 9] {
        assert_eq!(rig.blocks("/f", size).await.unwrap(), old);
    }
    let stat = rig.stat("/f").await.unwrap();
    assert_eq!((stat.size, stat.md5.as_str()), (9, "d41d8"));

    rig.finish("/f", &staged, 5).await.unwrap();
    assert_eq!(rig.blocks("/f", 5).await.unwrap(), staged);
    assert_eq!(rig.stat("/f").await.unwrap().size, 5);
    assert_eq!(
        refused(rig.finalize("/f", old.inode, 9).await),
        (
            Code::FailedPrecondition,
            format!("/f is inode {} now, not {}", staged.inode, old.inode)
        )
    );
}

#[actix::test]
async fn a_staged_allocation_is_new_even_where_the_size_is_that_of_the_file() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    let old = rig.write("/f", 9).await;
    let first = rig.stage("/f", 9).await.unwrap();
    let second = rig.stage("/f", 9).await.unwrap();
    assert_eq!(
        [ids(&old), ids(&first), ids(&second)],
        [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    );
    assert!(old.inode < first.inode && first.inode < second.inode);
    assert_eq!(
        rig.blocks("/f", 9).await.unwrap(),
        old,
        "a plain one of that size reads"
    );
}

#[actix::test]
async fn a_staged_allocation_of_no_bytes_is_refused_before_the_log() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    rig.write("/f", 9).await;
    let before = rig.proposals().await;
    for (size, why) in [
        (0, "a staged write needs a size of more than 0 bytes: /f"),
        (-1, "size -1 is negative: /f"),
        (
            LARGEST as i64 + 1,
            "size 1048577 is beyond the largest file, 1048576 bytes: /f",
        ),
    ] {
        let (code, message) = refused(rig.stage("/f", size).await);
        assert_eq!((code, message.as_str()), (Code::InvalidArgument, why));
    }
    assert_eq!(rig.proposals().await, before);
}

#[actix::test]
async fn a_staged_allocation_where_no_file_can_be() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    rig.mkdir("/d").await;
    rig.create("/f", 2).await.unwrap();
    for (path, code, message) in [
        ("/", Code::FailedPrecondition, "is a directory: /"),
        ("/d", Code::FailedPrecondition, "is a directory: /d"),
        ("/no/f", Code::NotFound, "parent directory not found: /no"),
        ("/f/g", Code::FailedPrecondition, "not a directory: /f"),
    ] {
        assert_eq!(refused(rig.stage(path, 5).await), (code, message.to_owned()));
    }
}

#[actix::test]
async fn finalizing_what_was_not_staged_so() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    rig.mkdir("/d").await;
    let staged = rig.stage("/d/f", 5).await.unwrap();
    let plain = rig.blocks("/d/plain", 5).await.unwrap();
    let (s, p) = (staged.inode, plain.inode);
    for (path, blocks, size, code, message) in [
        (
            "/d/f",
            &staged,
            9,
            Code::FailedPrecondition,
            "size 9 is beyond the 8 bytes allocated: /d/f".to_owned(),
        ),
        (
            "/d/g",
            &staged,
            5,
            Code::FailedPrecondition,
            "block 1 was staged for f in directory 2, not for /d/g in directory 2".to_owned(),
        ),
        (
            "/d",
            &staged,
            5,
            Code::FailedPrecondition,
            "is a directory: /d".to_owned(),
        ),
        ("/no/f", &staged, 5, Code::NotFound, "not found: /no/f".to_owned()),
        (
            "/d/plain",
            &plain,
            5,
            Code::NotFound,
            format!("no staged write of inode {p} begins with block 3: /d/plain"),
        ),
    ] {
        assert_eq!(
            refused(rig.finish(path, blocks, size).await),
            (code, message),
            "{path}"
        );
    }
    assert_eq!(
        refused(rig.finalize("/d/f", s, 5).await),
        (Code::NotFound, "not found: /d/f".into()),
        "a plain end of a staged write"
    );
    rig.finish("/d/f", &staged, 5).await.unwrap();
    assert_eq!(
        refused(rig.finish("/d/f", &staged, 5).await),
        (
            Code::NotFound,
            format!("no staged write of inode {s} begins with block 1: /d/f")
        ),
        "once"
    );
}

#[actix::test]
async fn a_repeat_with_the_same_id_gets_the_first_answer() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    let mut client = rig.client.clone();
    let asked = client
        .get_block_locations(with_id(request("/f", 9), "req-1"))
        .await;
    let staged = asked.unwrap().into_inner();
    // Whether the write is still open, finalized or replaced; and it is not allocated again.
    for step in 0..3 {
        let before = rig.proposals().await;
        let asked = client
            .get_block_locations(with_id(request("/f", 9), "req-1"))
            .await;
        assert_eq!(asked.unwrap().into_inner(), staged);
        assert_eq!(
            rig.proposals().await,
            before,
            "it is remembered: nothing is proposed"
        );
        if step == 0 {
            for _ in 0..2 {
                let end = with_id(ending("/f", &staged, 9), "req-2");
                client.finalize_write(end).await.unwrap();
            }
        } else {
            rig.write("/f", 3).await;
        }
    }
    // The repeat of the end neither fails nor brings the old content back.
    let end = with_id(ending("/f", &staged, 9), "req-2");
    client.finalize_write(end).await.unwrap();
    assert_eq!(rig.stat("/f").await.unwrap().size, 3);

    // Under its id nothing else is answered, nor done.
    let unstaged = GetBlockLocationsRequest {
        staged: false,
        ..request("/f", 9)
    };
    for other in [request("/g", 9), request("/f", 8), unstaged] {
        let before = rig.proposals().await;
        let answer = refused(client.get_block_locations(with_id(other, "req-1")).await);
        assert_eq!(answer.0, Code::InvalidArgument, "{}", answer.1);
        assert_eq!(rig.proposals().await, before);
    }

    // A first answer that was a refusal stays one.
    let asked = || with_id(request("/no/f", 9), "req-3");
    let first = refused(client.get_block_locations(asked()).await);
    assert_eq!(first, (Code::NotFound, "parent directory not found: /no".into()));
    rig.mkdir("/no").await;
    assert_eq!(refused(client.get_block_locations(asked()).await), first);
}

#[actix::test]
async fn the_repeat_of_a_staged_allocation_needs_no_data_servers() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    let mut client = rig.client.clone();
    let asked = || with_id(request("/f", 3), "req-7");
    let first = client.get_block_locations(asked()).await.unwrap().into_inner();
    rig.with(|neighbour, _| {
        let refusal = Refusal::failed_precondition("need 3 healthy DataServers, have 0");
        neighbour.on_propose = Script::Answer(Err(ProposeError::Refused(refusal)));
    })
    .await;
    let repeat = client.get_block_locations(asked()).await.unwrap().into_inner();
    assert_eq!(repeat, first);
}

#[actix::test]
async fn what_is_proposed_says_that_it_is_staged() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    let staged = rig.stage("/f", 5).await.unwrap();
    rig.finish("/f", &staged, 5).await.unwrap();
    let proposals = rig.with(|neighbour, _| neighbour.proposals.clone()).await;
    let ops: Vec<_> = proposals.into_iter().map(|proposal| proposal.op).collect();
    let allocate = Op::Allocate {
        path: path("/f"),
        size: 5,
        plan: None,
        staged: true,
    };
    let [first, Op::Finalize { staged, .. }] = &ops[..] else {
        panic!("{ops:?}");
    };
    assert_eq!((first, *staged), (&allocate, Some(BlockId(1))));
}

#[actix::test]
async fn an_abandoned_staged_write_cannot_be_finalized() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    let staged = rig.stage("/f", 5).await.unwrap();
    rig.with(|neighbour, _| {
        let abandon = Op::AbandonWrites {
            runs: vec![BlockId(1)],
        };
        neighbour.apply_ops(vec![abandon]);
    })
    .await;
    assert_eq!(
        refused(rig.finish("/f", &staged, 5).await),
        (
            Code::NotFound,
            format!(
                "no staged write of inode {} begins with block 1: /f",
                staged.inode
            )
        )
    );
    assert_eq!(refused(rig.stat("/f").await).0, Code::NotFound);
}
