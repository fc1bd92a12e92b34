//! What is ordered, when, and what never is.

use proptest::prelude::*;

use super::removals::{MAX_PER_ANSWER, PAUSE};
use super::*;

const MS: Duration = Duration::from_millis(1);

fn server(number: u32) -> ServerId {
    ServerId(number)
}

fn repair(block: u64, to: u32, from: &[u32]) -> Repair {
    Repair {
        block: BlockId(block),
        to: server(to),
        from: from.iter().copied().map(ServerId).collect(),
    }
}

fn removal(number: u32, block: u64) -> Removal {
    Removal {
        server: server(number),
        block: BlockId(block),
    }
}

fn copy(block: u64, from: u32) -> DataServerCommand {
    DataServerCommand::Copy {
        block: BlockId(block),
        from: format!("host-{from}:8000"),
    }
}

fn delete(block: u64) -> DataServerCommand {
    DataServerCommand::Delete(BlockId(block))
}

fn live(number: u32, blocks: &[u64], corrupt: &[u64]) -> (ServerId, Live) {
    let live = Live {
        addr: format!("host-{number}:8000"),
        blocks: blocks.into(),
        corrupt: corrupt.into(),
    };
    (server(number), live)
}

/// A house of orders, who is alive in it, and its clock.
struct Rig {
    orders: Orders,
    alive: Alive,
    now: Instant,
}

impl Rig {
    fn new(max_running: usize, alive: impl IntoIterator<Item = (ServerId, Live)>) -> Self {
        Rig {
            orders: Orders::new(max_running),
            alive: alive.into_iter().collect(),
            now: Instant::now(),
        }
    }

    fn repair(&mut self, repairs: Vec<Repair>, surplus: Vec<Removal>) {
        self.orders.repair(repairs, surplus, &self.alive, self.now);
    }

    /// A DataServer beats without news.
    fn beat(&mut self, number: u32) -> Vec<DataServerCommand> {
        self.orders.hand_out(server(number), &self.alive, self.now)
    }

    /// A DataServer beats with another report. Returns how many copies ended by it, too.
    fn report(&mut self, number: u32, blocks: &[u64]) -> (usize, Vec<DataServerCommand>) {
        self.alive.extend([live(number, blocks, &[])]);
        let arrived = self.orders.reported(server(number), blocks);
        (arrived, self.beat(number))
    }

    /// Copies running and waiting, removals waiting.
    fn counts(&self) -> (usize, usize, usize) {
        let counts = self.orders.counts(self.now);
        (
            counts.repairs_running,
            counts.repairs_waiting,
            counts.removals_waiting,
        )
    }
}

#[test]
fn a_copy_goes_to_its_target_once_and_ends_with_its_report() {
    let mut rig = Rig::new(100, [live(1, &[7], &[]), live(2, &[], &[])]);
    rig.repair(vec![repair(7, 2, &[1])], vec![]);
    assert_eq!(rig.counts(), (0, 1, 0));
    assert_eq!(rig.beat(1), [], "it is not for the source");
    assert_eq!(rig.beat(2), [copy(7, 1)]);
    assert_eq!(rig.beat(2), []);
    assert_eq!(rig.counts(), (1, 0, 0));
    rig.repair(vec![repair(7, 2, &[1])], vec![]);
    assert_eq!(rig.beat(2), [], "the plan still wants it, and it is under way");
    assert_eq!(rig.report(2, &[7]), (1, vec![]));
    assert_eq!(rig.counts(), (0, 0, 0));
    assert_eq!(rig.report(2, &[7, 8]), (0, vec![]), "what nobody ordered");
}

#[test]
fn an_expired_copy_is_given_again_by_the_next_plan_only() {
    let mut rig = Rig::new(1, [live(1, &[7], &[]), live(2, &[], &[])]);
    rig.repair(vec![repair(7, 2, &[1])], vec![]);
    rig.beat(2);
    rig.now += COPY_PATIENCE - MS;
    assert_eq!(rig.counts().0, 1);
    rig.repair(vec![repair(7, 2, &[1])], vec![]);
    assert_eq!(rig.beat(2), []);
    rig.now += MS;
    assert_eq!(rig.counts().0, 0);
    assert_eq!(rig.beat(2), []);
    rig.repair(vec![repair(7, 2, &[1])], vec![]);
    assert_eq!(rig.beat(2), [copy(7, 1)]);
}

#[test]
fn copies_in_all_are_bounded_and_the_urgent_ones_keep_their_places() {
    let mut rig = Rig::new(
        2,
        [live(1, &[1, 2, 3, 4], &[]), live(2, &[], &[]), live(3, &[], &[])],
    );
    let plan = || {
        vec![
            repair(1, 2, &[1]),
            repair(2, 3, &[1]),
            repair(3, 3, &[1]),
            repair(4, 2, &[1]),
        ]
    };
    rig.repair(plan(), vec![]);
    assert_eq!(rig.beat(3), [copy(2, 1)], "block 1 is more urgent than block 3");
    assert_eq!(rig.beat(2), [copy(1, 1)]);
    assert_eq!((rig.beat(3), rig.beat(2)), (vec![], vec![]), "two at once");
    assert_eq!(rig.report(2, &[1]), (1, vec![]), "the free place is block 3's");
    assert_eq!(rig.beat(3), [copy(3, 1)]);

    // The dead keep no places.
    let mut rig = Rig::new(1, [live(1, &[1, 2], &[]), live(3, &[], &[])]);
    rig.repair(plan(), vec![]);
    assert_eq!(rig.beat(3), [copy(2, 1)]);
}

#[test]
fn copies_to_one_server_and_from_one_are_bounded() {
    let many = COPIES_PER_SERVER as u64 + 1;
    let blocks: Vec<u64> = (1..=many).collect();
    let mut rig = Rig::new(
        1000,
        [
            live(1, &blocks, &[]),
            live(2, &blocks, &[]),
            live(3, &[], &[]),
            live(4, &[], &[]),
        ],
    );
    let to_3 = |from: &[u32]| blocks.iter().map(|&block| repair(block, 3, from)).collect();
    rig.repair(to_3(&[1, 2]), vec![]);
    let first: Vec<_> = blocks[..COPIES_PER_SERVER]
        .iter()
        .map(|&block| copy(block, 1))
        .collect();
    assert_eq!(rig.beat(3), first, "the best source as long as it has room");
    assert_eq!(rig.counts(), (COPIES_PER_SERVER, 1, 0));

    rig.repair(vec![repair(many, 4, &[1])], vec![]);
    assert_eq!(rig.beat(4), [], "the only source is busy");
    rig.repair(vec![repair(many, 4, &[1, 2])], vec![]);
    assert_eq!(rig.beat(4), [copy(many, 2)]);
}

#[test]
fn a_source_is_alive_and_still_has_the_block() {
    let mut rig = Rig::new(100, [live(2, &[8], &[7]), live(3, &[7], &[]), live(4, &[], &[])]);
    rig.repair(vec![repair(7, 4, &[1, 2, 3]), repair(8, 4, &[1])], vec![]);
    assert_eq!(
        rig.beat(4),
        [copy(7, 3)],
        "1 is dead, 2 has it damaged; nobody has 8"
    );
    assert_eq!(rig.counts(), (1, 1, 0));
    rig.alive.extend([live(1, &[8], &[])]);
    assert_eq!(rig.beat(4), [copy(8, 1)]);
    rig.repair(vec![repair(9, 4, &[])], vec![]);
    assert_eq!(rig.beat(4), []);
}

#[test]
fn what_the_target_has_by_now_is_not_copied_but_what_it_has_damaged_is() {
    let mut rig = Rig::new(100, [live(1, &[7, 8], &[]), live(2, &[7], &[8])]);
    rig.repair(vec![repair(7, 2, &[1]), repair(8, 2, &[1])], vec![]);
    assert_eq!(rig.beat(2), [copy(8, 1)]);
    assert_eq!(rig.counts(), (1, 0, 0));
}

#[test]
fn a_server_that_is_not_alive_gets_nothing() {
    let mut rig = Rig::new(100, [live(1, &[7], &[])]);
    rig.repair(vec![repair(7, 2, &[1])], vec![removal(2, 9)]);
    rig.orders.remove_garbage(vec![removal(2, 10)]);
    assert_eq!(rig.beat(2), []);
    assert_eq!(rig.counts(), (0, 1, 2), "it all waits");
}

#[test]
fn a_plan_that_changes_its_mind_waits_for_what_is_under_way() {
    let mut rig = Rig::new(100, [live(1, &[7], &[]), live(2, &[], &[]), live(3, &[], &[])]);
    rig.repair(vec![repair(7, 2, &[1])], vec![]);
    rig.beat(2);
    rig.repair(vec![repair(7, 3, &[1])], vec![]);
    assert_eq!(rig.beat(3), [], "server 2 gets it already");
    rig.repair(vec![repair(7, 3, &[1]), repair(7, 4, &[1])], vec![]);
    assert_eq!(rig.counts(), (1, 1, 0), "a second one is missing, too");
    rig.alive.remove(&server(2));
    rig.repair(vec![repair(7, 3, &[1])], vec![]);
    assert_eq!(rig.beat(3), [copy(7, 1)], "server 2 is dead");
}

#[test]
fn a_new_plan_takes_the_place_of_the_last_one_and_not_of_the_other_kind() {
    let mut rig = Rig::new(100, [live(1, &[1, 2, 3, 4, 5], &[]), live(2, &[], &[])]);
    rig.repair(vec![repair(1, 2, &[1])], vec![removal(1, 3)]);
    rig.orders.remove_garbage(vec![removal(1, 4)]);
    rig.repair(vec![repair(2, 2, &[1])], vec![removal(1, 5)]);
    assert_eq!(rig.beat(1), [delete(4), delete(5)]);
    assert_eq!(rig.beat(2), [copy(2, 1)]);
    rig.orders.remove_garbage(vec![]);
    rig.repair(vec![], vec![]);
    assert_eq!((rig.beat(1), rig.counts()), (vec![], (1, 0, 0)));
}

#[test]
fn what_is_both_surplus_and_garbage_is_removed_once() {
    let mut rig = Rig::new(100, [live(1, &[3], &[])]);
    rig.repair(vec![], vec![removal(1, 3)]);
    rig.orders.remove_garbage(vec![removal(1, 3)]);
    assert_eq!(rig.beat(1), [delete(3)]);
}

#[test]
fn a_removal_goes_out_while_the_report_shows_the_block() {
    let mut rig = Rig::new(100, [live(1, &[3], &[4])]);
    rig.orders
        .remove_garbage(vec![removal(1, 3), removal(1, 4), removal(1, 5), removal(2, 3)]);
    assert_eq!(rig.counts(), (0, 0, 4));
    assert_eq!(rig.beat(1), [delete(3), delete(4)], "damaged ones, too");
    assert_eq!(rig.counts(), (0, 0, 1), "server 1 does not have block 5");
    assert!(rig.orders.told_to_remove(server(1), BlockId(3)));
    assert!(!rig.orders.told_to_remove(server(2), BlockId(3)));

    rig.now += PAUSE - MS;
    assert_eq!(rig.beat(1), [], "it may be about to remove them");
    rig.now += MS;
    assert_eq!(rig.report(1, &[3]), (0, vec![delete(3)]), "block 4 is gone");
    rig.orders.remove_garbage(vec![removal(1, 3)]);
    assert!(
        rig.orders.told_to_remove(server(1), BlockId(3)),
        "the new plan knows it"
    );
    assert_eq!(rig.beat(1), [delete(3)], "a plan that still finds it asks again");
    assert_eq!(rig.report(1, &[]), (0, vec![]));
    assert_eq!(rig.report(1, &[3]), (0, vec![]), "forgotten when it was gone");
}

#[test]
fn removals_go_out_in_portions_of_both_kinds_together() {
    let portion = MAX_PER_ANSWER as u64;
    let blocks: Vec<u64> = (1..=portion * 2 + 5).collect();
    let mut rig = Rig::new(100, [live(1, &blocks, &[])]);
    let all: Vec<_> = blocks.iter().map(|&block| removal(1, block)).collect();
    let (surplus, garbage) = all.split_at(10);
    rig.repair(vec![], surplus.to_vec());
    rig.orders.remove_garbage(garbage.to_vec());
    let mut seen = Vec::new();
    for expected in [MAX_PER_ANSWER, MAX_PER_ANSWER, 5, 0] {
        let commands = rig.beat(1);
        assert_eq!(commands.len(), expected);
        seen.extend(commands);
    }
    let each_once: Vec<_> = blocks.iter().map(|&block| delete(block)).collect();
    assert_eq!(seen, each_once);
}

#[test]
fn the_later_plan_decides_between_a_copy_and_a_removal() {
    let mut rig = Rig::new(100, [live(1, &[7, 8], &[]), live(2, &[], &[7])]);
    rig.orders.remove_garbage(vec![removal(2, 7)]);
    rig.repair(vec![repair(7, 2, &[1])], vec![removal(2, 7)]);
    assert_eq!(rig.beat(2), [copy(7, 1)], "within a plan, the copy");

    rig.orders.remove_garbage(vec![removal(2, 7), removal(2, 8)]);
    assert_eq!(rig.counts(), (0, 0, 2), "the running copy is called off");
    assert_eq!(rig.beat(2), [delete(7)]);
    rig.repair(vec![repair(8, 2, &[1])], vec![]);
    rig.repair(vec![], vec![removal(2, 8)]);
    assert_eq!(rig.report(2, &[8]), (0, vec![delete(8)]));
}

#[test]
fn surplus_is_kept_once_something_got_worse() {
    let mut rig = Rig::new(100, [live(1, &[3, 4], &[])]);
    rig.repair(vec![], vec![removal(1, 3)]);
    rig.orders.remove_garbage(vec![removal(1, 4)]);
    rig.orders.doubt_surplus();
    assert_eq!(rig.beat(1), [delete(4)], "garbage stays garbage");
}

#[test]
fn what_waits_is_bounded() {
    let mut rig = Rig::new(100, [live(1, &[], &[])]);
    let beyond = MAX_WAITING as u64 + 5;
    let repairs = (1..=beyond).map(|block| repair(block, 1, &[2])).collect();
    let removals = |from: u64| {
        let blocks = from..=from + removals::MAX_WAITING as u64 + 5;
        blocks.map(|block| removal(1, block)).collect::<Vec<_>>()
    };
    rig.repair(repairs, removals(beyond + 1));
    rig.orders.remove_garbage(removals(1_000_000));
    assert_eq!(
        rig.counts(),
        (0, MAX_WAITING, 2 * removals::MAX_WAITING),
        "the most urgent ones"
    );
}

#[derive(Clone, Debug)]
enum Step {
    Repair(Vec<(u64, u32)>, Vec<(u32, u64)>),
    Garbage(Vec<(u32, u64)>),
    Beat(u32, Vec<u64>),
    Wait(u64),
    Die(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (block, server) = (0..12u64, 1..6u32);
    let removals = prop::collection::vec((server.clone(), block.clone()), 0..12);
    let repairs = prop::collection::vec((block.clone(), server.clone()), 0..30);
    let step = prop_oneof![
        2 => (repairs, removals.clone()).prop_map(|(repairs, surplus)| Step::Repair(repairs, surplus)),
        1 => removals.prop_map(Step::Garbage),
        5 => (server.clone(), prop::collection::btree_set(block, 0..12))
            .prop_map(|(server, blocks)| Step::Beat(server, blocks.into_iter().collect())),
        1 => (0..90_000u64).prop_map(Step::Wait),
        1 => server.prop_map(Step::Die),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    /// Whatever the plans say: bounds hold, nothing is copied to where it is or removed where it is
    /// not, and no answer says both of one block.
    #[test]
    fn no_plan_breaks_the_rules(steps in steps()) {
        let most = 4;
        let mut rig = Rig::new(most, []);
        for step in steps {
            match step {
                Step::Repair(repairs, surplus) => rig.repair(
                    repairs.into_iter().map(|(block, to)| repair(block, to, &[1, 2, 3, 4, 5])).collect(),
                    surplus.into_iter().map(|(server, block)| removal(server, block)).collect(),
                ),
                Step::Garbage(replicas) => {
                    let replicas = replicas.into_iter().map(|(server, block)| removal(server, block));
                    rig.orders.remove_garbage(replicas.collect());
                }
                Step::Wait(ms) => rig.now += Duration::from_millis(ms),
                Step::Die(number) => drop(rig.alive.remove(&server(number))),
                Step::Beat(number, blocks) => {
                    let (_, commands) = rig.report(number, &blocks);
                    let mut named = BTreeSet::new();
                    for command in commands {
                        match command {
                            DataServerCommand::Delete(block) => {
                                prop_assert!(blocks.contains(&block.0));
                                prop_assert!(named.insert(block), "{} twice", block);
                            }
                            DataServerCommand::Copy { block, from } => {
                                prop_assert!(!blocks.contains(&block.0));
                                prop_assert!(named.insert(block), "{} twice", block);
                                let mut holders = rig.alive.values();
                                prop_assert!(holders.any(|holder| holder.addr == from && holder.has(block)));
                            }
                        }
                    }
                }
            }
            prop_assert!(rig.orders.running.len() <= most);
            let running = &rig.orders.running;
            prop_assert!(rig.orders.waiting.iter().all(|next| !running.contains_key(&(next.to, next.block))));
        }
    }
}
