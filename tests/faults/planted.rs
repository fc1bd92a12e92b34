//! Planted histories: the checker rejects the bad ones and accepts the good ones, and on small random
//! ones it says the same as trying every order.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::checker::{Verdict, check, check_unit};
use crate::history::{Answer, Attributes, Op, Outcome, Record, Refused};
use crate::model::{BLOCK, State, Step, step};

const DONE: Outcome = Outcome::Ok(Answer::Done);
const MISSING: Outcome = Outcome::Refused(Refused::NotFound);
const TAKEN: Outcome = Outcome::Refused(Refused::AlreadyExists);
const UNFIT: Outcome = Outcome::Refused(Refused::FailedPrecondition);

/// An operation from one moment to another; an unknown one has no end.
fn record(op: Op, outcome: Outcome, from: u64, to: u64) -> Record {
    Record {
        process: 0,
        node: 0,
        base: Arc::from("/unit"),
        unit: Arc::from("/unit"),
        op,
        invoked: Duration::from_millis(from),
        completed: (outcome != Outcome::Unknown).then(|| Duration::from_millis(to)),
        outcome,
        note: String::new(),
    }
}

/// Operations one after the other.
fn sequence(operations: Vec<(Op, Outcome)>) -> Vec<Record> {
    let numbered = operations.into_iter().zip(0..);
    numbered
        .map(|((op, outcome), n)| record(op, outcome, 10 * n, 10 * n + 5))
        .collect()
}

fn accepted(records: &[Record]) -> bool {
    match check_unit(records) {
        Verdict::Linearizable { .. } => true,
        Verdict::NotLinearizable(_) => false,
        Verdict::Undecided => panic!("undecided"),
    }
}

fn create(path: &str) -> Op {
    let (path, directory) = (path.to_owned(), false);
    Op::Create { path, directory }
}

fn mkdir(path: &str) -> Op {
    let (path, directory) = (path.to_owned(), true);
    Op::Create { path, directory }
}

fn delete(path: &str) -> Op {
    let (path, recursive) = (path.to_owned(), false);
    Op::Delete { path, recursive }
}

fn rm_r(path: &str) -> Op {
    let (path, recursive) = (path.to_owned(), true);
    Op::Delete { path, recursive }
}

fn stat(path: &str) -> Op {
    Op::Stat {
        path: path.to_owned(),
    }
}

fn list(path: &str) -> Op {
    Op::List {
        path: path.to_owned(),
    }
}

fn blocks(path: &str) -> Op {
    Op::Blocks {
        path: path.to_owned(),
    }
}

fn allocate(path: &str, blocks: u64) -> Op {
    Op::Allocate {
        path: path.to_owned(),
        size: blocks * BLOCK,
    }
}

fn finalize(path: &str, inode: u64, size: u64, md5: &str) -> Op {
    Op::Finalize {
        path: path.to_owned(),
        inode,
        size,
        md5: md5.to_owned(),
    }
}

fn file(size: u64, md5: &str, blocks: Option<&[u64]>) -> Attributes {
    Attributes {
        directory: false,
        size,
        md5: md5.to_owned(),
        blocks: blocks.map(<[u64]>::to_vec),
    }
}

fn directory(size: u64, blocks: Option<&[u64]>) -> Attributes {
    Attributes {
        directory: true,
        ..file(size, "", blocks)
    }
}

fn found(attributes: Attributes) -> Outcome {
    Outcome::Ok(Answer::Found(attributes))
}

fn empty() -> Outcome {
    found(file(0, "", Some(&[])))
}

fn entries(entries: Vec<(&str, Attributes)>) -> Outcome {
    let owned = entries.into_iter().map(|(name, entry)| (name.to_owned(), entry));
    Outcome::Ok(Answer::Entries(owned.collect()))
}

fn at(inode: u64, blocks: &[u64]) -> Outcome {
    let blocks = blocks.to_vec();
    Outcome::Ok(Answer::Blocks { inode, blocks })
}

#[test]
fn good_histories_are_accepted() {
    let a_day = vec![
        (list(""), entries(vec![])),
        (stat("a"), MISSING),
        (create("a"), DONE),
        (create("a"), TAKEN),
        (create("a/x"), UNFIT),
        (create("b/x"), MISSING),
        (delete("a/x"), MISSING),
        (list("a"), UNFIT),
        (stat("a"), empty()),
        (mkdir("d"), DONE),
        (allocate("d", 2), UNFIT),
        (allocate("d/x", 2), at(7, &[1, 2])),
        (finalize("d/x", 6, 5, "m0"), UNFIT),
        (finalize("d/x", 7, 3 * BLOCK, "m1"), UNFIT),
        (finalize("d/x", 7, 5, "m2"), DONE),
        (stat("d/x"), found(file(5, "m2", Some(&[1])))),
        (blocks("d/x"), at(7, &[1])),
        (blocks("d"), UNFIT),
        (blocks("e"), MISSING),
        (
            list(""),
            entries(vec![("a", file(0, "", None)), ("d", directory(5, None))]),
        ),
        (stat("d"), found(directory(5, Some(&[])))),
        (delete("d"), UNFIT),
        (rm_r("d"), DONE),
        (finalize("d/x", 7, 5, "m3"), MISSING),
        (stat("d/x"), MISSING),
        (delete("d"), MISSING),
        (create("d"), DONE),
        (delete("d"), DONE),
        (list(""), entries(vec![("a", file(0, "", None))])),
    ];
    assert!(accepted(&sequence(a_day)));
    assert!(accepted(&[]));
}

#[test]
fn bad_histories_are_rejected() {
    let a = || file(0, "", None);
    let written = |rest: Vec<(Op, Outcome)>| {
        let mut all = vec![
            (allocate("f", 2), at(7, &[1, 2])),
            (finalize("f", 7, 5, "old"), DONE),
            (finalize("f", 7, 6, "new"), DONE),
        ];
        all.extend(rest);
        all
    };
    let bad = [
        (
            "an acknowledged create is lost",
            vec![(create("a"), DONE), (stat("a"), MISSING)],
        ),
        (
            "an acknowledged create is missing in a listing",
            vec![
                (create("a"), DONE),
                (create("b"), DONE),
                (list(""), entries(vec![("a", a())])),
            ],
        ),
        (
            "an acknowledged delete comes back",
            vec![
                (create("a"), DONE),
                (delete("a"), DONE),
                (stat("a"), MISSING),
                (list(""), entries(vec![("a", a())])),
            ],
        ),
        ("created twice", vec![(create("a"), DONE), (create("a"), DONE)]),
        (
            "deleted twice",
            vec![(create("a"), DONE), (delete("a"), DONE), (delete("a"), DONE)],
        ),
        (
            "a stale stat",
            written(vec![(stat("f"), found(file(5, "old", Some(&[1]))))]),
        ),
        (
            "blocks kept beyond the size",
            written(vec![(blocks("f"), at(7, &[1, 2]))]),
        ),
        ("another inode", written(vec![(blocks("f"), at(8, &[1]))])),
        (
            "a directory's size left behind",
            written(vec![(stat(""), found(directory(5, Some(&[]))))]),
        ),
        (
            "a new allocation shows the old content",
            written(vec![
                (allocate("f", 1), at(7, &[3])),
                (stat("f"), found(file(6, "new", Some(&[3])))),
            ]),
        ),
        (
            "an old writer ends its write on a new file",
            written(vec![
                (delete("f"), DONE),
                (create("f"), DONE),
                (finalize("f", 7, 0, "x"), DONE),
            ]),
        ),
        (
            "an old inode number comes back",
            written(vec![(delete("f"), DONE), (allocate("f", 1), at(7, &[3]))]),
        ),
        ("a refusal without a reason", vec![(create("a"), TAKEN)]),
        (
            "not empty, but empty",
            vec![(mkdir("d"), DONE), (delete("d"), UNFIT)],
        ),
        (
            "a child outlives its directory",
            vec![
                (mkdir("d"), DONE),
                (create("d/x"), DONE),
                (rm_r("d"), DONE),
                (mkdir("d"), DONE),
                (create("d/x"), TAKEN),
            ],
        ),
        ("made up", vec![(stat("a"), empty())]),
        (
            "never right",
            vec![(create("a"), Outcome::Refused(Refused::InvalidArgument))],
        ),
        (
            "said to have not been done, and seen",
            vec![(create("a"), Outcome::NotDone), (stat("a"), empty())],
        ),
    ];
    for (name, operations) in bad {
        assert!(!accepted(&sequence(operations)), "accepted: {name}");
    }
}

#[test]
fn concurrent_operations_may_come_in_any_order_and_others_may_not() {
    // The delete and the create overlap, or they do not.
    let overlapping = |delete_began| {
        vec![
            record(create("a"), DONE, 0, 10),
            record(delete("a"), DONE, delete_began, 40),
            record(create("a"), DONE, 20, 30),
        ]
    };
    assert!(accepted(&overlapping(15)));
    assert!(!accepted(&overlapping(35)));
    // Two readers see two changes in different orders.
    let crossed = |first: u64| {
        vec![
            record(create("a"), DONE, 0, 100),
            record(create("b"), DONE, 0, 100),
            record(list(""), entries(vec![("a", file(0, "", None))]), 10, 20),
            record(list(""), entries(vec![("b", file(0, "", None))]), first, 40),
        ]
    };
    assert!(!accepted(&crossed(15)));
    assert!(!accepted(&crossed(30)));
}

#[test]
fn what_is_unknown_may_happen_late_or_never_but_not_be_undone() {
    let unknown = |op| (op, Outcome::Unknown);
    let see = (stat("a"), empty());
    let miss = (stat("a"), MISSING);
    let good = [
        ("never", vec![unknown(create("a")), miss.clone()]),
        ("at once", vec![unknown(create("a")), see.clone()]),
        (
            "late",
            vec![unknown(create("a")), miss.clone(), miss.clone(), see.clone()],
        ),
        (
            "a late delete",
            vec![
                (create("a"), DONE),
                unknown(delete("a")),
                see.clone(),
                miss.clone(),
            ],
        ),
        (
            "twice",
            vec![
                unknown(create("a")),
                unknown(create("a")),
                see.clone(),
                (delete("a"), DONE),
                see.clone(),
            ],
        ),
        (
            "numbers that nobody was told",
            vec![
                unknown(allocate("a", 2)),
                (stat("a"), found(file(0, "", Some(&[5, 6])))),
                (blocks("a"), at(9, &[5, 6])),
            ],
        ),
        (
            "a finalize of the new file, which nobody knows",
            vec![
                unknown(allocate("a", 2)),
                unknown(finalize("a", 9, 3, "m")),
                (stat("a"), found(file(3, "m", Some(&[5])))),
            ],
        ),
    ];
    for (name, operations) in good {
        assert!(accepted(&sequence(operations)), "rejected: {name}");
    }
    let bad = [
        ("undone", vec![unknown(create("a")), see.clone(), miss.clone()]),
        (
            "once, and seen twice",
            vec![
                unknown(create("a")),
                see.clone(),
                (delete("a"), DONE),
                see.clone(),
            ],
        ),
        ("before it was asked for", vec![see.clone(), unknown(create("a"))]),
        (
            "blocks that change",
            vec![
                unknown(allocate("a", 1)),
                (stat("a"), found(file(0, "", Some(&[5])))),
                (blocks("a"), at(9, &[6])),
            ],
        ),
        (
            "a number of blocks that was not asked for",
            vec![unknown(allocate("a", 1)), (blocks("a"), at(9, &[5, 6]))],
        ),
    ];
    for (name, operations) in bad {
        assert!(!accepted(&sequence(operations)), "accepted: {name}");
    }
}

#[test]
fn each_unit_is_judged_by_itself_and_the_first_misfit_is_named() {
    let mut records = sequence(vec![
        (create("a"), DONE),
        (stat("a"), empty()),
        (stat("a"), MISSING),
    ]);
    let mut other = sequence(vec![(stat("a"), MISSING)]);
    other[0].unit = Arc::from("/other");
    records.extend(other);
    let verdicts = check(&records);
    assert!(!verdicts.linearizable());
    assert_eq!((verdicts.units, verdicts.operations), (2, 4));
    let [(unit, violation)] = verdicts.violations.as_slice() else {
        panic!("{verdicts:?}");
    };
    assert_eq!((&**unit, violation.ordered, violation.of), ("/unit", 2, 3));
    assert_eq!(violation.stuck.len(), 1);
    assert_eq!(violation.stuck[0].outcome, MISSING);
}

/// What clients would see of a server that does one thing at a time: every operation takes its place
/// somewhere between its beginning and its end, some are never answered, and some of these never done.
fn simulate(random: &mut StdRng, clients: usize, operations: usize, unknown: f64) -> Vec<Record> {
    struct Running {
        op: Op,
        began: u64,
        outcome: Option<Outcome>,
    }
    let mut state = State::default();
    let mut running: Vec<Option<Running>> = (0..clients).map(|_| None).collect();
    let mut numbers = 0;
    let mut records = Vec::new();
    let mut late: Vec<Op> = Vec::new();
    for now in 1.. {
        if records.len() >= operations && running.iter().all(Option::is_none) {
            break;
        }
        // What was given up may still happen.
        if !late.is_empty() && random.random_bool(0.05) {
            let op = late.swap_remove(random.random_range(0..late.len()));
            take_effect(&mut state, &op, &mut numbers);
        }
        let client = random.random_range(0..clients);
        running[client] = match running[client].take() {
            None if records.len() >= operations => None,
            None => Some(Running {
                op: any_op(random, &mut numbers),
                began: now,
                outcome: None,
            }),
            Some(Running { op, began, outcome }) if op.mutates() && random.random_bool(unknown) => {
                records.push(record(op.clone(), Outcome::Unknown, began, now));
                // Its effect may be there already, and only the answer be lost.
                late.extend(outcome.is_none().then_some(op));
                None
            }
            Some(Running {
                op,
                began,
                outcome: None,
            }) => {
                let outcome = Some(take_effect(&mut state, &op, &mut numbers));
                Some(Running { op, began, outcome })
            }
            Some(Running {
                op,
                began,
                outcome: Some(outcome),
            }) => {
                records.push(record(op, outcome, began, now));
                None
            }
        };
    }
    records
}

fn any_op(random: &mut StdRng, numbers: &mut u64) -> Op {
    const PATHS: [&str; 5] = ["a", "b", "a/x", "a/y", "b/x"];
    let path = PATHS[random.random_range(0..PATHS.len())];
    *numbers += 1;
    match random.random_range(0..10) {
        0 => create(path),
        1 => mkdir(path),
        2 => delete(path),
        3 => rm_r(path),
        4 => stat(path),
        5 => list(["", "a"][random.random_range(0..2)]),
        6 => blocks(path),
        7 | 8 => allocate(path, random.random_range(1..3)),
        _ => finalize(path, random.random_range(1..=*numbers), 5, &format!("m{numbers}")),
    }
}

/// The answer of a server in this state: the one that the model takes.
fn take_effect(state: &mut State, op: &Op, numbers: &mut u64) -> Outcome {
    *numbers += 2;
    let one = Outcome::Ok(Answer::Done);
    let refusals = [
        Refused::NotFound,
        Refused::AlreadyExists,
        Refused::FailedPrecondition,
    ];
    let mut possible = vec![one];
    possible.extend(state.answers(op, *numbers));
    possible.extend(refusals.map(Outcome::Refused));
    for outcome in possible {
        match step(state, op, &outcome) {
            Step::Impossible => {}
            Step::Same => return outcome,
            Step::To(next) => {
                *state = next;
                return outcome;
            }
        }
    }
    panic!("no answer to {op:?} in {state:?}");
}

/// Tries every order of the operations, and every choice of the unknown ones.
fn some_order_fits(state: &State, left: &[Record]) -> bool {
    let ends = |record: &Record| record.outcome != Outcome::Unknown;
    if !left.iter().any(ends) {
        return true;
    }
    (0..left.len()).any(|next| {
        let mut rest = left.to_vec();
        let record = rest.remove(next);
        let too_late = rest
            .iter()
            .any(|other| other.completed.is_some_and(|end| end < record.invoked));
        !too_late
            && match step(state, &record.op, &record.outcome) {
                Step::Impossible => false,
                Step::Same => some_order_fits(state, &rest),
                Step::To(state) => some_order_fits(&state, &rest),
            }
    })
}

#[test]
fn thousands_of_operations_are_judged() {
    for seed in 0..4 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut records = simulate(&mut random, 6, 2000, 0.01);
        assert!(accepted(&records), "seed {seed}");
        // One that was refused is said to have been done.
        let refused = records
            .iter()
            .position(|record| record.outcome == MISSING && matches!(record.op, Op::Delete { .. }));
        records[refused.unwrap()].outcome = DONE;
        let unknown = |record: &Record| record.outcome == Outcome::Unknown;
        records.retain(|record| !unknown(record));
        assert!(!accepted(&records), "seed {seed}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Good ones, and the same with one answer changed: the checker agrees with trying everything.
    #[test]
    fn small_histories_are_judged_as_by_trying_every_order(seed: u64, spoil: bool) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut records = simulate(&mut random, 3, 7, 0.1);
        if spoil {
            let at = random.random_range(0..records.len());
            let others = [DONE, MISSING, TAKEN, UNFIT, empty(), at_most(&records)];
            records[at].outcome = others[random.random_range(0..others.len())].clone();
            let end = records[at].invoked + Duration::from_millis(3);
            records[at].completed.get_or_insert(end);
        } else {
            prop_assert!(accepted(&records));
        }
        prop_assert_eq!(accepted(&records), some_order_fits(&State::default(), &records));
    }
}

/// The answer to another operation of the history.
fn at_most(records: &[Record]) -> Outcome {
    let known = records
        .iter()
        .rev()
        .find(|record| record.outcome != Outcome::Unknown);
    known.map_or(DONE, |record| record.outcome.clone())
}
