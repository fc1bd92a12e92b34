//! CheckFiles: every state of a file, and every file on exactly one page.

use std::collections::BTreeSet;

use super::*;
use crate::domain::command::AllocationPlan;
use crate::domain::ids::{BlockId, InodeId};
use crate::proto::admin::{
    BlockProblem, CheckFilesRequest, CheckFilesResponse, FileCounts, FileProblem, FileState,
};

impl Rig {
    async fn check(&self, path: &str, after: &str, max_problems: u32) -> Result<CheckFilesResponse, Status> {
        let request = CheckFilesRequest {
            path: path.into(),
            after: after.into(),
            max_problems,
        };
        Ok(self.admin().check_files(request).await?.into_inner())
    }

    /// Everything below `path`, page by page.
    async fn check_all(&self, path: &str, max_problems: u32) -> Vec<CheckFilesResponse> {
        let mut pages = vec![self.check(path, "", max_problems).await.unwrap()];
        while let Some(after) = pages
            .last()
            .map(|page| page.next.clone())
            .filter(|next| !next.is_empty())
        {
            pages.push(self.check(path, &after, max_problems).await.unwrap());
            assert!(pages.len() < 1000, "it never ends");
        }
        pages
    }
}

/// A file of one block, in one go.
fn written(file: &str, inode: u64) -> [Op; 2] {
    let plan = AllocationPlan {
        block_size: BLOCK,
        replication: 3,
        servers: (1..=3).map(ServerId).collect(),
    };
    let allocate = Op::Allocate {
        path: path(file),
        size: 4,
        plan: Some(plan),
        staged: false,
    };
    let finalize = Op::Finalize {
        path: path(file),
        inode: InodeId(inode),
        size: 4,
        md5: String::new(),
        staged: None,
    };
    [allocate, finalize]
}

#[actix::test]
async fn a_file_in_every_state() {
    let rig = Rig::leading().await;
    rig.data_servers(4).await;
    rig.mkdir("/d").await;
    for name in [
        "/d/corrupt",
        "/d/healthy",
        "/d/missing",
        "/d/moved",
        "/d/over",
        "/d/under",
    ] {
        rig.write(name, 4).await; // blocks 1 to 6, on ds-1,2,3
    }
    rig.blocks("/d/open", 8).await.unwrap();
    rig.create("/d/empty", 2).await.unwrap();
    let reports = vec![
        report(1, &[1, 2, 4, 5, 6]),
        report(2, &[1, 2, 5]),
        ServerReport {
            corrupt: [1, 3].into(),
            ..report(3, &[2, 4, 5])
        },
        report(4, &[1, 4, 5]),
        ServerReport {
            alive: false,
            ..report(5, &[3, 6])
        },
    ];
    rig.with(move |neighbour, _| {
        let moved = Op::MoveReplica {
            block: BlockId(4),
            from: ServerId(2),
            to: ServerId(4),
        };
        neighbour.apply_ops(vec![moved]);
        neighbour.reports = reports;
    })
    .await;

    let answer = rig.check("", "", 100).await.unwrap();
    assert_eq!(answer.next, "");
    let counts = FileCounts {
        files: 8,
        healthy: 4, // `corrupt`, whose fourth replica is good, and `empty` among them
        under_replicated: 1,
        missing: 1,
        over_replicated: 1,
        being_written: 1,
        corrupt: 2,
        blocks: 6,
        bytes: 24,
    };
    assert_eq!(answer.counts, Some(counts));
    let at = |servers: &[u32]| servers.iter().map(|n| format!("ds-{n}:8000")).collect();
    let problem = |name: &str, inode, state: FileState, block| FileProblem {
        path: format!("/d/{name}"),
        inode,
        size: 4,
        expected_replicas: 3,
        state: state.into(),
        blocks: vec![block],
        bad_blocks: 1,
    };
    let block = |block_id, live: &[u32], missing: &[u32], corrupt: &[u32], surplus: &[u32]| BlockProblem {
        block_id,
        index: 0,
        live: at(live),
        missing: at(missing),
        corrupt: at(corrupt),
        surplus: at(surplus),
    };
    let first = rig.blocks("/d/corrupt", 0).await.unwrap().inode;
    let expected = [
        problem(
            "corrupt",
            first,
            FileState::FileHealthy,
            block(1, &[1, 2, 4], &[3], &[3], &[4]),
        ),
        problem(
            "missing",
            first + 2,
            FileState::FileMissing,
            block(3, &[], &[1, 2, 3], &[3], &[]),
        ),
        problem(
            "over",
            first + 4,
            FileState::FileOverReplicated,
            block(5, &[1, 2, 3, 4], &[], &[], &[4]),
        ),
        problem(
            "under",
            first + 5,
            FileState::FileUnderReplicated,
            block(6, &[1], &[2, 3], &[], &[]),
        ),
    ];
    assert_eq!(answer.problems, expected);

    let fewer = rig.check("/d", "", 1).await.unwrap();
    assert_eq!(
        (fewer.counts, &fewer.problems[..]),
        (Some(counts), &expected[..1])
    );
    let one = rig.check("/d/x/../under", "", 9).await.unwrap();
    assert_eq!(
        (one.counts.unwrap().files, &one.problems[..]),
        (1, &expected[3..])
    );
    let rest = rig.check("/d", "/d/over", 9).await.unwrap();
    assert_eq!(
        (rest.counts.unwrap().files, &rest.problems[..]),
        (1, &expected[3..])
    );
    let reads = rig.with(|neighbour, _| neighbour.reads.len()).await;
    assert!(reads >= 4, "a leader makes sure that it is one");
}

#[actix::test]
async fn the_first_bad_blocks_are_described_and_all_are_counted() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    rig.write("/f", 80).await;
    rig.with(|neighbour, _| {
        neighbour.reports = vec![report(1, &[1, 2, 7]), report(2, &[1, 7]), report(3, &[1, 7])];
    })
    .await;
    let answer = rig.check("/", "", 9).await.unwrap();
    let [file] = &answer.problems[..] else {
        panic!("{answer:?}")
    };
    assert_eq!(
        (file.bad_blocks, file.blocks.len(), file.state()),
        (18, 16, FileState::FileMissing)
    );
    let described: Vec<_> = file
        .blocks
        .iter()
        .map(|block| (block.block_id, block.index))
        .collect();
    let expected = (2..=6).chain(8..=18).map(|block| (block, block - 1));
    assert_eq!(described, expected.collect::<Vec<_>>());
    assert_eq!(answer.counts.unwrap().blocks, 20);
}

#[actix::test]
async fn pages_hold_every_file_once() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    let files: BTreeSet<String> = (0..6_000)
        .map(|n: u32| {
            let deep = "/deep".repeat(n as usize % 40);
            match n % 4 {
                0 => format!("/a{deep}/{n}"),
                1 => format!("/a-b/{n}"),
                2 => format!("/a/b/{n}"),
                _ => format!("/a!{n}"),
            }
        })
        .collect();
    let mut directories = BTreeSet::new();
    for file in &files {
        let cuts = file.match_indices('/').skip(1);
        directories.extend(cuts.map(|(at, _)| file[..at].to_owned()));
    }
    let mut ops: Vec<Op> = directories
        .iter()
        .map(|directory| Op::Create {
            path: path(directory),
            directory: true,
        })
        .collect();
    for (file, inode) in files.iter().zip(2 + directories.len() as u64..) {
        ops.extend(written(file, inode));
    }
    rig.with(move |neighbour, _| {
        for answer in neighbour.apply_ops(ops) {
            answer.unwrap();
        }
    })
    .await;

    // Nobody has reported: all of them are missing, and every page names its own.
    let pages = rig.check_all("", u32::MAX).await;
    assert!(pages.len() > 1);
    let mut seen = Vec::new();
    for page in &pages {
        let named = page.problems.iter().map(|problem| problem.path.clone());
        seen.extend(named);
        assert_eq!(page.counts.unwrap().files, page.problems.len() as u64);
        assert!(page.problems.len() <= 5_000);
        assert!(prost::Message::encoded_len(page) < 2 << 20, "clients take 4 MiB");
        if !page.next.is_empty() {
            assert_eq!(Some(&page.next), seen.last());
        }
    }
    assert_eq!(seen.len(), files.len());
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), files);

    let pages = rig.check_all("/", 0).await;
    let counted: u64 = pages.iter().map(|page| page.counts.unwrap().missing).sum();
    assert_eq!(counted, files.len() as u64);
    assert_eq!(pages[0].counts.unwrap().files, 5_000);
    let below: u64 = rig
        .check_all("/a-b", 0)
        .await
        .iter()
        .map(|page| page.counts.unwrap().files)
        .sum();
    assert_eq!(below, 1_500);
}

#[actix::test]
async fn mistakes_are_told() {
    let rig = Rig::leading().await;
    rig.mkdir("/d").await;
    rig.create("/f", 2).await.unwrap();
    for (path, after, code, message) in [
        ("/no", "", Code::NotFound, "not found: /no"),
        ("d", "", Code::InvalidArgument, "path is not absolute: d"),
        ("/d", "e", Code::InvalidArgument, "path is not absolute: e"),
        ("/d", "/f", Code::InvalidArgument, "not below /d: /f"),
        ("/d", "/d-e", Code::InvalidArgument, "not below /d: /d-e"),
    ] {
        let refused = refused(rig.check(path, after, 1).await);
        assert_eq!(refused, (code, message.to_owned()));
    }
    assert_eq!(rig.check("/f", "", 1).await.unwrap().counts.unwrap().files, 1);
    assert_eq!(rig.check("/f", "/f", 1).await.unwrap().counts.unwrap().files, 0);
    assert_eq!(rig.check("/d", "/d/gone", 1).await.unwrap().next, "");
}

#[actix::test]
async fn only_the_leader_answers_and_names_itself() {
    let rig = Rig::start("meta-1", |_| {}).await;
    let unknown = (Code::Unavailable, "not the leader".to_owned(), None);
    assert_eq!(refusal(rig.check("", "", 1).await), unknown);
    let other = leader("meta-9", "localhost:9099");
    rig.tell(news(2, Role::Follower, Some(other))).await;
    let named = (
        Code::Unavailable,
        "not the leader".to_owned(),
        Some("localhost:9099".to_owned()),
    );
    assert_eq!(refusal(rig.check("", "", 1).await), named);
    assert!(rig.with(|neighbour, _| neighbour.reads.is_empty()).await);

    let rig = Rig::leading().await;
    rig.with(|neighbour, _| neighbour.on_read = Script::Answer(Err(ReadError::NoLeader(None))))
        .await;
    assert_eq!(refused(rig.check("", "", 1).await).0, Code::Unavailable);
}

#[actix::test]
async fn a_leader_that_waits_for_reports_calls_nothing_missing() {
    let rig = Rig::leading().await;
    rig.data_servers(3).await;
    rig.write("/f", 4).await;
    rig.with(|neighbour, _| neighbour.complete = false).await;
    let status = rig.check("/", "", 10).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("waits for the reports"), "{status}");

    rig.with(|neighbour, _| neighbour.complete = true).await;
    let page = rig.check("/", "", 10).await.unwrap();
    assert_eq!(page.counts.unwrap().missing, 1);
}
