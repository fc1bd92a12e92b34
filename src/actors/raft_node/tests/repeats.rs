//! Requests without an id that come again: what the leader asks whom, and what it answers.

use std::net::Ipv4Addr;

use super::*;

fn origin(gateway: u64, number: u64) -> Origin {
    Origin {
        peer: Ipv4Addr::new(10, 0, 0, 1).into(),
        gateway,
        number,
    }
}

fn repeat(number: u64) -> Propose {
    Propose {
        origin: Some(origin(1, number)),
        ..create("/a")
    }
}

const CREATED: Outcome = Outcome::Created { inode: InodeId(5) };

fn refused() -> Refusal {
    Refusal::already_exists("already exists: /a")
}

/// A leader whose memory has the creation of `/a`, taken by the gateway of `first`.
async fn leader(first: Option<Origin>) -> Bench {
    let effect = first.map(|origin| {
        let outcome = CREATED;
        (create("/a").op, Effect { origin, outcome })
    });
    let bench = bench_that_remembers(ReadMode::Linearizable, Vec::new(), effect);
    bench.lead(1).await;
    bench
}

impl Bench {
    /// Proposes it; the log has it refused.
    async fn propose_in_vain(
        &mut self,
        propose: Propose,
    ) -> LocalBoxFuture<'static, Result<Applied, ProposeError>> {
        let answer = self.propose(propose);
        let write = self.writes.recv().await.unwrap();
        write.result.send(Ok(BatchOutcome(vec![Err(refused())]))).unwrap();
        answer
    }
}

#[actix::test]
async fn a_repeat_gets_the_first_answer_if_that_was_lost() {
    let mut bench = leader(Some(origin(2, 70))).await;
    let answer = bench.propose_in_vain(repeat(1)).await;
    let claim = bench.claims.recv().await.unwrap();
    assert_eq!((claim.first, claim.by), (origin(2, 70), origin(1, 1)));
    assert_eq!(claim.raft_addr, "two:1");
    claim.result.send(Ok(true)).unwrap();
    assert_eq!(answer.await, Ok(Ok(CREATED)));
}

#[actix::test]
async fn a_second_request_is_refused_if_the_first_answer_was_delivered() {
    let mut bench = leader(Some(origin(2, 70))).await;
    let answer = bench.propose_in_vain(repeat(1)).await;
    bench.claims.recv().await.unwrap().result.send(Ok(false)).unwrap();
    assert_eq!(answer.await, Ok(Err(refused())));
}

#[actix::test]
async fn an_answer_dies_with_its_gateway_and_goes_to_one_repeat() {
    for gateway in [2, 99] {
        // One does not answer, the other is no member any more.
        let mut bench = leader(Some(origin(gateway, 70))).await;
        for (number, expected) in [(1, Ok(CREATED)), (1, Ok(CREATED)), (2, Err(refused()))] {
            let answer = bench.propose_in_vain(repeat(number)).await;
            if gateway == 2 {
                drop(bench.claims.recv().await.unwrap());
            }
            assert_eq!(answer.await, Ok(expected), "gateway {gateway}, repeat {number}");
            assert!(bench.claims.try_recv().is_err());
        }
    }
}

#[actix::test]
async fn a_request_that_repeats_nothing_is_refused_without_a_question() {
    let mut bench = leader(None).await;
    assert_eq!(bench.propose_in_vain(repeat(1)).await.await, Ok(Err(refused())));
    let mut bench = leader(Some(origin(2, 70))).await;
    let elsewhere = Propose {
        op: create("/b").op,
        ..repeat(1)
    };
    let another = Origin {
        peer: Ipv4Addr::new(10, 0, 0, 2).into(),
        ..origin(1, 1)
    };
    let of_another = Propose {
        origin: Some(another),
        ..create("/a")
    };
    for propose in [elsewhere, of_another, create("/a")] {
        assert_eq!(bench.propose_in_vain(propose).await.await, Ok(Err(refused())));
        assert!(bench.claims.try_recv().is_err());
    }
}
