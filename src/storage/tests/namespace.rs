//! Random histories of commands ([`drafts`](super::drafts)): answered as the [`model`](super::model)
//! answers them, ending in its tree, and leaving tables that hold together
//! ([`soundness`](super::soundness)). However the log is cut into batches, and across a snapshot, the
//! same records come out as the same bytes.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::drafts::{Item, a_history, a_split, resolve};
use super::hashes::kept_hashes;
use super::model::{Answer, Model};
use super::soundness::{answer_of, assert_same, decoded};
use super::*;

/// What a history came to in the model.
struct Played {
    records: Vec<LogRecord>,
    /// For each record, for each command: whether it was a repeat, and the answer.
    answers: Vec<Vec<(bool, Answer)>>,
    /// For each of these, what was asked.
    ops: Vec<Vec<Op>>,
    model: Model,
}

fn play(history: &[Item]) -> Played {
    let mut model = Model::new();
    let (mut records, mut answers, mut ops) = (Vec::new(), Vec::new(), Vec::new());
    let mut now = 1_700_000_000_000;
    for (item, index) in history.iter().zip(1..) {
        let mut asked = Vec::new();
        let (record, answered) = match item {
            Item::Blank => {
                let blank = LogRecord {
                    log_id: log_id(index),
                    content: RecordContent::Blank,
                };
                (blank, Vec::new())
            }
            Item::Membership(voter) => (membership(index, *voter), Vec::new()),
            Item::Commands(steps) => {
                let (mut commands, mut answered) = (Vec::new(), Vec::new());
                for step in steps {
                    now += step.after;
                    let request_id = step.request.map(|number| id(&format!("request {number}")));
                    let first = request_id.as_ref().filter(|_| step.again);
                    let op = first
                        .and_then(|id| model.asked_under(id))
                        .unwrap_or_else(|| resolve(&step.draft, &mut model));
                    let command = Command {
                        time_ms: now,
                        request_id,
                        digest: op.digest(),
                        origin: None,
                        op,
                    };
                    answered.push(model.apply(&command));
                    asked.push(command.op.clone());
                    commands.push(command);
                }
                (entry(index, &commands), answered)
            }
        };
        records.push(record);
        answers.push(answered);
        ops.push(asked);
    }
    Played {
        records,
        answers,
        ops,
        model,
    }
}

/// Applies records, `split` of them at a time.
fn apply_split(storage: &mut Storage, records: &[LogRecord], split: &[usize]) -> Vec<Vec<Applied>> {
    let (mut answers, mut rest) = (Vec::new(), records);
    for wanted in split.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (batch, after) = rest.split_at((*wanted).min(rest.len()));
        answers.extend(storage.apply(batch).unwrap());
        rest = after;
    }
    answers
}

/// Numbers only rise: none is ever given twice.
fn assert_numbers_are_new(answers: &[Vec<(bool, Answer)>]) {
    let (mut last_inode, mut last_block) = (1, 0);
    for (repeat, answer) in answers.iter().flatten() {
        match answer {
            Ok(Outcome::Created { inode }) if !repeat => {
                assert!(inode.0 > last_inode);
                last_inode = inode.0;
            }
            Ok(Outcome::Allocated { inode, blocks }) if !repeat => {
                assert!(blocks.first.0 > last_block);
                last_block = blocks.first.0 + blocks.count - 1;
                last_inode = last_inode.max(inode.0);
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_history_is_answered_and_ends_as_the_model_says(history in a_history(), split in a_split()) {
        let Played { records, answers: expected, model, .. } = play(&history);
        let dir = tempfile::tempdir().unwrap();
        let mut storage = open(dir.path());
        let answers = apply_split(&mut storage, &records, &split);
        assert_eq!(answers.len(), expected.len());
        for (record, (answers, expected)) in answers.iter().zip(&expected).enumerate() {
            assert_eq!(answers.len(), expected.len());
            for (command, (answer, (_, expected))) in answers.iter().zip(expected).enumerate() {
                assert_eq!(&answer_of(answer), expected, "record {}, command {command}", record + 1);
            }
        }
        assert_numbers_are_new(&expected);
        let tables = decoded(&dump(&storage));
        tables.assert_sound();
        assert_same(&tables, &model);
        assert_hashed(&storage);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_same_records_give_the_same_bytes_however_batched_and_across_a_snapshot(
        history in a_history(),
        other in a_history(),
        splits in (a_split(), a_split(), a_split()),
        cut in any::<Index>(),
    ) {
        let records = play(&history).records;
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let [mut one, mut two, mut three] = [0, 1, 2].map(|i| open(dirs[i].path()));

        let (before, after) = records.split_at(cut.index(records.len() + 1));
        let answers = apply_split(&mut one, &records, &splits.0);
        let mut again = apply_split(&mut two, before, &splits.1);
        // The third has another past, of which nothing may be left.
        apply_split(&mut three, &play(&other).records, &splits.2);
        let snapshot = two.build_snapshot().run().unwrap();
        prop_assert_eq!(snapshot.meta.last_log_id, before.last().map(|record| record.log_id));
        let prepared = three.prepare_install(snapshot).run().unwrap();
        three.install(prepared).unwrap();
        prop_assert_eq!(dump(&three), dump(&two));

        let on_third = apply_split(&mut three, after, &splits.2);
        prop_assert_eq!(&on_third, &apply_split(&mut two, after, &splits.1));
        again.extend(on_third);
        prop_assert_eq!(again, answers);
        prop_assert_eq!(dump(&two), dump(&one));
        prop_assert_eq!(dump(&three), dump(&one));
        // And the same hash after every entry, those before the snapshot included.
        let kept = kept_hashes(&one);
        prop_assert_eq!(kept.len(), records.len());
        prop_assert_eq!(&kept_hashes(&two), &kept);
        prop_assert_eq!(&kept_hashes(&three), &kept);
        prop_assert_eq!(assert_hashed(&three), assert_hashed(&one));
    }
}

/// The histories above are worth something only if they reach what they are about.
#[test]
fn histories_reach_every_outcome_and_refusal_and_repeat() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..100 {
        let history = a_history().new_tree(&mut runner).unwrap().current();
        let played = play(&history);
        let asked = played.ops.iter().flatten();
        for ((repeat, answer), op) in played.answers.iter().flatten().zip(asked) {
            let what = match answer {
                Ok(outcome) => format!("{outcome:?}"),
                Err(kind) => format!("{kind:?}"),
            };
            let name = what.split([' ', '{']).next().unwrap_or_default().to_owned();
            let mut count = |what: &str| *seen.entry(what.to_owned()).or_default() += 1;
            count(&name);
            match (repeat, op) {
                (true, _) if name == "InvalidArgument" => count("repeat of another request"),
                (true, _) => count("repeat"),
                (false, Op::Allocate { staged: true, .. }) => count(&format!("staged {name}")),
                (false, Op::Finalize { staged: Some(_), .. }) => count(&format!("from staged: {name}")),
                (false, _) => {}
            }
            match answer {
                Ok(Outcome::Reclaimed { more: true, records }) if *records > 0 => count("reclaimed in part"),
                Ok(Outcome::WritesAbandoned { writes: 1.. }) => count("some abandoned"),
                Ok(Outcome::Condemned { blocks: 1.. }) => count("some condemned"),
                _ => {}
            }
        }
        for waste in played.model.garbage.values() {
            *seen.entry(format!("garbage: {:?}", waste.reason)).or_default() += 1;
        }
        *seen.entry("left staged".to_owned()).or_default() += played.model.staged.len() as u32;
    }
    for (what, least) in [
        ("Created", 150),
        ("Deleted", 60),
        ("Allocated", 150),
        ("Finalized", 100),
        ("WritesAbandoned", 50),
        ("ReplicaMoved", 30),
        ("DataServerRegistered", 50),
        ("StatusSet", 30),
        ("GarbageReleased", 50),
        ("Condemned", 50),
        ("Reclaimed", 50),
        ("reclaimed in part", 4),
        ("some abandoned", 20),
        ("some condemned", 10),
        ("staged Allocated", 50),
        ("staged NotFound", 20),
        ("staged FailedPrecondition", 10),
        ("from staged: Finalized", 30),
        ("from staged: NotFound", 30),
        ("from staged: FailedPrecondition", 10),
        ("left staged", 20),
        ("InvalidArgument", 50),
        ("NotFound", 50),
        ("AlreadyExists", 50),
        ("FailedPrecondition", 50),
        ("repeat", 100),
        ("repeat of another request", 50),
        ("garbage: Deleted", 20),
        ("garbage: Overwritten", 20),
        ("garbage: Truncated", 20),
        ("garbage: Abandoned", 10),
        ("garbage: Orphaned", 5),
    ] {
        let times = seen.get(what).copied().unwrap_or(0);
        assert!(times >= least, "{what}: {times} times in {seen:?}");
    }
}
