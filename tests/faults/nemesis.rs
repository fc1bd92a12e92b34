//! The nemesis: does one thing after the other to the cluster, and undoes each.
//!
//! The seed decides which faults come in which order, how long each lasts, and which role it hits; who
//! plays the role is found out at the moment of the strike. Every fault is healed before the next
//! begins, writes must succeed again within a bound, and a process that ended for no reason is a
//! finding. No second disk is taken away before the first node has been refilled: that is not promised.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use minfs::proto::admin::Role;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::bytes::Unflushed;
use crate::history::History;
use crate::machine::Preload;
use crate::support::cluster::{Cluster, members};
use crate::support::network::Network;
use crate::support::small_disk::SmallDisk;

/// After a fault is healed, a change is acknowledged within this time; far beyond what is promised,
/// since the machine may be busy.
const RECOVERY: Duration = Duration::from_secs(20);

/// Within this time a node that was away has what the others have.
const CATCH_UP: Duration = Duration::from_secs(40);

/// How many MiB the one small disk has: enough for the state and the log of a long run.
pub const DISK_SIZE: u64 = 256;

/// What nodes want to be left of their disks, so that it can be taken from them.
pub const DATABASE: &str = "{ min_free_space: 24MiB }";

/// How a node's process ends whose disk was full before it saw it.
const DISK_FULL: i32 = 75;

/// What is left of a disk that is filled, in MiB: the node takes no writes of its own clients; no writes at
/// all; not a byte, which it may be too late to notice.
const LEFT: [u64; 4] = [20, 4, 4, 0];

/// What can be done to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    KillLeader,
    KillFollower,
    KillAll,
    PauseLeader,
    PauseFollower,
    LeaderAlone,
    FollowerAlone,
    LeaderMute,
    LeaderDeaf,
    FollowerMute,
    FollowerDeaf,
    OneLinkOneWay,
    DelayAndLoss,
    ClientsCutOff,
    WipeLeader,
    WipeFollower,
    ClockSkew,
    SlowFlushLeader,
    SlowFlushFollower,
    DiskFull,
    PowerLossLeader,
    PowerLossFollower,
    PowerLossAll,
    PowerLossInTurn,
}

/// Every fault, and how often it comes in one round of all.
const WEIGHTS: [(Fault, usize); 24] = [
    (Fault::KillLeader, 2),
    (Fault::KillFollower, 1),
    (Fault::KillAll, 1),
    (Fault::PauseLeader, 2),
    (Fault::PauseFollower, 1),
    (Fault::LeaderAlone, 2),
    (Fault::FollowerAlone, 1),
    (Fault::LeaderMute, 1),
    (Fault::LeaderDeaf, 1),
    (Fault::FollowerMute, 1),
    (Fault::FollowerDeaf, 1),
    (Fault::OneLinkOneWay, 1),
    (Fault::DelayAndLoss, 1),
    (Fault::ClientsCutOff, 1),
    (Fault::WipeLeader, 1),
    (Fault::WipeFollower, 1),
    (Fault::ClockSkew, 1),
    (Fault::SlowFlushLeader, 1),
    (Fault::SlowFlushFollower, 1),
    (Fault::DiskFull, 1),
    (Fault::PowerLossLeader, 1),
    (Fault::PowerLossFollower, 1),
    (Fault::PowerLossAll, 1),
    (Fault::PowerLossInTurn, 1),
];

impl Fault {
    fn needs_network(self) -> bool {
        match self {
            Fault::LeaderAlone
            | Fault::FollowerAlone
            | Fault::LeaderMute
            | Fault::LeaderDeaf
            | Fault::FollowerMute
            | Fault::FollowerDeaf
            | Fault::OneLinkOneWay
            | Fault::DelayAndLoss
            | Fault::ClientsCutOff => true,
            Fault::KillLeader
            | Fault::KillFollower
            | Fault::KillAll
            | Fault::PauseLeader
            | Fault::PauseFollower
            | Fault::WipeLeader
            | Fault::WipeFollower
            | Fault::ClockSkew
            | Fault::SlowFlushLeader
            | Fault::SlowFlushFollower
            | Fault::DiskFull
            | Fault::PowerLossLeader
            | Fault::PowerLossFollower
            | Fault::PowerLossAll
            | Fault::PowerLossInTurn => false,
        }
    }

    /// How long it lasts, in milliseconds.
    fn lasts(self, random: &mut StdRng) -> Duration {
        let range = match self {
            Fault::KillLeader
            | Fault::KillFollower
            | Fault::KillAll
            | Fault::PowerLossLeader
            | Fault::PowerLossFollower
            | Fault::PowerLossAll => 200..2500,
            Fault::PauseLeader | Fault::PauseFollower => 2000..6000,
            Fault::WipeLeader | Fault::WipeFollower => 200..1500,
            Fault::LeaderAlone
            | Fault::FollowerAlone
            | Fault::LeaderMute
            | Fault::LeaderDeaf
            | Fault::FollowerMute
            | Fault::FollowerDeaf
            | Fault::OneLinkOneWay
            | Fault::ClientsCutOff
            | Fault::PowerLossInTurn => 1500..5000,
            Fault::DelayAndLoss
            | Fault::ClockSkew
            | Fault::SlowFlushLeader
            | Fault::SlowFlushFollower
            | Fault::DiskFull => 1500..4000,
        };
        Duration::from_millis(random.random_range(range))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fault::KillLeader => "kill -9: leader",
            Fault::KillFollower => "kill -9: follower",
            Fault::KillAll => "kill -9: all",
            Fault::PauseLeader => "pause: leader",
            Fault::PauseFollower => "pause: follower",
            Fault::LeaderAlone => "partition: leader alone",
            Fault::FollowerAlone => "partition: follower alone",
            Fault::LeaderMute => "one way: leader is not heard",
            Fault::LeaderDeaf => "one way: leader hears nothing",
            Fault::FollowerMute => "one way: follower is not heard",
            Fault::FollowerDeaf => "one way: follower hears nothing",
            Fault::OneLinkOneWay => "one way: one link",
            Fault::DelayAndLoss => "delay and loss everywhere",
            Fault::ClientsCutOff => "a node cut off from clients",
            Fault::WipeLeader => "wiped disk: leader",
            Fault::WipeFollower => "wiped disk: follower",
            Fault::ClockSkew => "clock skew: one node",
            Fault::SlowFlushLeader => "slow fsync: leader",
            Fault::SlowFlushFollower => "slow fsync: follower",
            Fault::DiskFull => "disk full: one node",
            Fault::PowerLossLeader => "power loss: leader",
            Fault::PowerLossFollower => "power loss: follower",
            Fault::PowerLossAll => "power loss: all",
            Fault::PowerLossInTurn => "power loss: in turn",
        })
    }
}

/// A fault that was done.
#[derive(Clone, Copy, Debug)]
pub struct Strike {
    /// Which.
    pub fault: Fault,
    /// To which node; `None`: to several.
    pub node: Option<usize>,
    /// When it began.
    pub struck: Duration,
    /// When it was undone.
    pub healed: Duration,
    /// Whether the node stopped by itself, as it should when its disk fails.
    pub stopped: bool,
}

/// The order of faults that a seed gives: every one in each round, in an order of the round's own.
pub struct Schedule {
    random: StdRng,
    left: Vec<Fault>,
    possible: Vec<Fault>,
}

impl Schedule {
    /// Of the faults that are possible here, and whose names contain one of these words; without
    /// words, of all.
    pub fn new(seed: u64, network: bool, disk: bool, only: &str) -> Schedule {
        let wanted = |fault: Fault| {
            let name = fault.to_string();
            only.is_empty() || only.split(',').any(|word| name.contains(word))
        };
        let possible: Vec<_> = WEIGHTS
            .iter()
            .filter(|(fault, _)| wanted(*fault))
            .filter(|(fault, _)| (network || !fault.needs_network()) && (disk || *fault != Fault::DiskFull))
            .flat_map(|(fault, weight)| vec![*fault; *weight])
            .collect();
        assert!(
            !possible.is_empty(),
            "no fault is possible here that is called {only:?}"
        );
        Schedule {
            random: StdRng::seed_from_u64(seed),
            left: Vec::new(),
            possible,
        }
    }

    /// The next one, how long it lasts, and how long it is quiet then.
    pub fn next(&mut self) -> (Fault, Duration, Duration) {
        if self.left.is_empty() {
            self.left.clone_from(&self.possible);
            self.left.shuffle(&mut self.random);
        }
        let fault = self.left.pop().expect("some fault is possible");
        let lasts = fault.lasts(&mut self.random);
        let quiet = Duration::from_millis(self.random.random_range(300..1500));
        (fault, lasts, quiet)
    }
}

/// The one who does it.
pub struct Nemesis<'c> {
    pub cluster: &'c mut Cluster,
    pub network: Option<&'c Network>,
    pub preload: &'c mut Preload,
    /// The node that has one, and its disk.
    pub disk: Option<(usize, &'c SmallDisk)>,
    /// What was left of it, the last time that it was filled.
    pub left: u64,
    pub history: &'c Arc<History>,
    /// Decides where the schedule leaves a choice.
    pub random: StdRng,
    /// Who loses its power in turn; whoever the seed says, without.
    pub loses: Option<usize>,
    /// Who was away meanwhile, the last time.
    pub away: usize,
    /// What was done.
    pub strikes: Vec<Strike>,
    /// What should not have happened.
    pub findings: Vec<String>,
}

impl Nemesis<'_> {
    /// Goes on until the time is over, or the cluster does not recover.
    pub async fn rage(&mut self, schedule: &mut Schedule, length: Duration) {
        let begun = Instant::now();
        tokio::time::sleep(Duration::from_millis(500)).await;
        while begun.elapsed() < length && self.findings.is_empty() {
            let (fault, lasts, quiet) = schedule.next();
            let (leader, followers) = self.roles().await;
            let follower = followers[self.random.random_range(0..followers.len())];
            self.preload.follow();
            let struck = self.history.now();
            let node = self.strike(fault, leader, follower).await;
            // A node whose disk has filled up faster than it could see stops.
            let may_end = fault == Fault::DiskFull && self.left == 0;
            self.watch(lasts, may_end.then_some(node).flatten()).await;
            let stopped = self.heal(fault, node).await;
            let healed = self.history.now();
            self.strikes.push(Strike {
                fault,
                node,
                struck,
                healed,
                stopped,
            });
            self.recovers(fault, node, healed).await;
            self.watch(quiet, None).await;
        }
    }

    async fn strike(&mut self, fault: Fault, leader: usize, follower: usize) -> Option<usize> {
        let hits_leader = match fault {
            Fault::KillAll => {
                self.kill_all();
                return None;
            }
            Fault::PowerLossAll => {
                self.kill_all();
                for n in self.cluster.all() {
                    self.lose_power(n, Unflushed::Random);
                }
                return None;
            }
            Fault::PowerLossInTurn => {
                let all = self.cluster.all();
                let loses = self.loses.unwrap_or(all[self.random.random_range(0..all.len())]);
                let others = self.cluster.others(loses);
                self.away = others[self.random.random_range(0..others.len())];
                self.kill(self.away);
                return Some(loses);
            }
            Fault::DelayAndLoss => {
                self.network().impair();
                return None;
            }
            Fault::DiskFull => {
                let (node, disk) = self.disk.expect("scheduled only with a small disk");
                self.left = LEFT[self.random.random_range(0..LEFT.len())];
                disk.fill(self.left);
                return Some(node);
            }
            Fault::KillLeader
            | Fault::PauseLeader
            | Fault::LeaderAlone
            | Fault::LeaderMute
            | Fault::LeaderDeaf
            | Fault::WipeLeader
            | Fault::SlowFlushLeader
            | Fault::PowerLossLeader => true,
            Fault::OneLinkOneWay | Fault::ClientsCutOff | Fault::ClockSkew => self.random.random_bool(0.5),
            Fault::KillFollower
            | Fault::PauseFollower
            | Fault::FollowerAlone
            | Fault::FollowerMute
            | Fault::FollowerDeaf
            | Fault::WipeFollower
            | Fault::SlowFlushFollower
            | Fault::PowerLossFollower => false,
        };
        let n = if hits_leader { leader } else { follower };
        match fault {
            Fault::KillLeader | Fault::KillFollower => self.kill(n),
            Fault::WipeLeader | Fault::WipeFollower => {
                self.kill(n);
                self.cluster.wipe(n);
                self.preload.wiped(n);
            }
            Fault::PowerLossLeader | Fault::PowerLossFollower => {
                self.kill(n);
                self.lose_power(n, Unflushed::Random);
            }
            Fault::PauseLeader | Fault::PauseFollower => self.cluster.pause(n),
            Fault::LeaderAlone | Fault::FollowerAlone => self.network().cut(n),
            Fault::LeaderMute | Fault::FollowerMute => self.network().mute(n),
            Fault::LeaderDeaf | Fault::FollowerDeaf => self.network().deafen(n),
            Fault::OneLinkOneWay => {
                let others = self.cluster.others(n);
                let to = others[self.random.random_range(0..others.len())];
                self.network().lose(n, to);
            }
            Fault::ClientsCutOff => self.network().cut_clients(n),
            Fault::ClockSkew => {
                let minutes = [-24 * 60, -60, -5, 5, 60, 24 * 60][self.random.random_range(0..6)];
                self.preload.shift_clock(n, minutes * 60_000);
            }
            Fault::SlowFlushLeader | Fault::SlowFlushFollower => {
                let by = Duration::from_millis(self.random.random_range(50..400));
                self.preload.slow_flushes(n, by);
            }
            Fault::KillAll
            | Fault::DelayAndLoss
            | Fault::DiskFull
            | Fault::PowerLossAll
            | Fault::PowerLossInTurn => {}
        }
        Some(n)
    }

    fn kill(&mut self, n: usize) {
        self.cluster.kill(n);
        self.preload.process_ended(n);
    }

    fn kill_all(&mut self) {
        // At one moment, or nearly so.
        self.cluster.all().into_iter().for_each(|n| self.cluster.kill(n));
        self.cluster.all().into_iter().for_each(|n| self.kill(n));
    }

    fn lose_power(&mut self, n: usize, unflushed: Unflushed) {
        self.preload.lose_power(n, unflushed, &mut self.random);
    }

    /// Undoes a fault; whether the node that it hit had stopped by itself.
    async fn heal(&mut self, fault: Fault, node: Option<usize>) -> bool {
        let mut stopped = false;
        match (fault, node) {
            (Fault::KillAll | Fault::PowerLossAll, _) => {
                for n in self.cluster.all() {
                    self.cluster.start(n);
                }
            }
            (
                Fault::KillLeader
                | Fault::KillFollower
                | Fault::WipeLeader
                | Fault::WipeFollower
                | Fault::PowerLossLeader
                | Fault::PowerLossFollower,
                Some(n),
            ) => self.cluster.start(n),
            // What was acknowledged meanwhile is on this one's disk, and on that of the third.
            (Fault::PowerLossInTurn, Some(n)) => {
                let third = self
                    .cluster
                    .others(n)
                    .into_iter()
                    .find(|third| *third != self.away);
                let third = third.expect("there are three");
                self.kill(third);
                self.kill(n);
                self.lose_power(n, Unflushed::Lost);
                self.cluster.start(n);
                self.cluster.start(self.away);
                let alone = Duration::from_millis(self.random.random_range(2000..4000));
                self.watch(alone, None).await;
                self.cluster.start(third);
            }
            (Fault::PauseLeader | Fault::PauseFollower, Some(n)) => self.cluster.resume(n),
            (Fault::ClockSkew, Some(n)) => self.preload.shift_clock(n, 0),
            (Fault::SlowFlushLeader | Fault::SlowFlushFollower, Some(n)) => {
                self.preload.flushes_as_usual(n);
            }
            (Fault::DiskFull, Some(n)) => {
                if let Some((_, disk)) = self.disk {
                    disk.free();
                }
                // Whoever looks after the processes starts it again.
                let ended = self.cluster.ended(n);
                stopped = ended.is_some();
                if let Some(how) = ended {
                    self.preload.process_ended(n);
                    if self.left > 0 || how.code() != Some(DISK_FULL) {
                        let (left, log) = (self.left, self.last_words(n));
                        self.findings.push(format!(
                            "node {n}, with {left} MiB left, ended by itself: {how}\n{log}"
                        ));
                    }
                    self.cluster.start(n);
                }
            }
            _ => self.network().heal_all(),
        }
        stopped
    }

    /// The last lines of a node's log, and what its last panic said, which much may follow.
    fn last_words(&self, n: usize) -> String {
        let log = self.cluster.log(n);
        let lines: Vec<_> = log.lines().collect();
        let panic = lines.iter().rposition(|line| line.contains("panicked at"));
        let panic = panic.map_or(&[][..], |at| &lines[at..lines.len().min(at + 30)]);
        let last = &lines[lines.len().saturating_sub(20)..];
        [panic, last].concat().join("\n")
    }

    /// Time passes; whoever ends by itself meanwhile is a finding, unless it may.
    async fn watch(&mut self, time: Duration, may_end: Option<usize>) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            for n in self.cluster.running() {
                if Some(n) == may_end {
                    continue;
                }
                if let Some(how) = self.cluster.ended(n) {
                    let at = self.history.now().as_secs_f64();
                    let log = self.last_words(n);
                    self.findings.push(format!(
                        "at {at:.3} s node {n} ended by itself: {how}; it was started again\n{log}"
                    ));
                    self.preload.process_ended(n);
                    self.cluster.start(n);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until changes succeed again, and the node that was hit is one of the cluster again.
    async fn recovers(&mut self, fault: Fault, node: Option<usize>, healed: Duration) {
        let begun = Instant::now();
        while !self.history.written_since(healed) {
            if begun.elapsed() > RECOVERY {
                let says = self.all_say().await;
                self.findings.push(format!(
                    "no change was acknowledged within {RECOVERY:?} after {fault} (node {node:?}) was healed: {says}"
                ));
                return;
            }
            self.watch(Duration::from_millis(50), None).await;
        }
        // Otherwise the next fault may well meet a node that is behind.
        let must_be_back = match fault {
            Fault::WipeLeader | Fault::WipeFollower | Fault::DiskFull => node,
            _ if self.random.random_bool(0.5) => node,
            _ => None,
        };
        let Some(n) = must_be_back else { return };
        let begun = Instant::now();
        while !self.is_back(n).await {
            if begun.elapsed() > CATCH_UP {
                let says = self.all_say().await;
                self.findings.push(format!(
                    "node {n} did not come back within {CATCH_UP:?} after {fault} was healed: {says}"
                ));
                return;
            }
            self.watch(Duration::from_millis(50), None).await;
        }
    }

    /// Whether a node has applied what the leader had a moment ago, and votes.
    async fn is_back(&self, n: usize) -> bool {
        let (leader, _) = self.roles().await;
        let Some(leads) = self.cluster.status(leader).await else {
            return false;
        };
        let Some(status) = self.cluster.status(n).await else {
            return false;
        };
        let is_member = members(&leads).get(&status.name) == Some(&(status.incarnation, true));
        is_member && status.leader.is_some() && status.applied_index >= leads.committed_index
    }

    /// Who leads, as far as the nodes say at this moment, and who follows; if nobody says that it
    /// leads, anybody.
    async fn roles(&self) -> (usize, Vec<usize>) {
        let begun = Instant::now();
        loop {
            let asked = self.cluster.running().into_iter().map(|n| async move {
                let answer = tokio::time::timeout(Duration::from_millis(400), self.cluster.status(n)).await;
                Some((n, answer.ok()??))
            });
            let leads = join_all(asked)
                .await
                .into_iter()
                .flatten()
                .filter(|(_, status)| status.role() == Role::Leader)
                .max_by_key(|(_, status)| status.term);
            if let Some((leader, _)) = leads {
                return (leader, self.cluster.others(leader));
            }
            if begun.elapsed() > Duration::from_secs(5) {
                return (0, self.cluster.others(0));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn all_say(&self) -> String {
        let asked = self.cluster.all().into_iter().map(|n| self.cluster.status(n));
        format!("{:#?}", join_all(asked).await)
    }

    fn network(&self) -> &Network {
        self.network.expect("scheduled only with a network")
    }
}

#[test]
fn a_seed_gives_one_schedule_and_each_round_has_every_fault() {
    let take = |seed, count| {
        let mut schedule = Schedule::new(seed, true, true, "");
        (0..count).map(|_| schedule.next()).collect::<Vec<_>>()
    };
    assert_eq!(take(7, 50), take(7, 50));
    assert_ne!(take(7, 50), take(8, 50));
    let round = WEIGHTS.iter().map(|(_, weight)| weight).sum();
    let first: std::collections::BTreeSet<_> = take(7, round).into_iter().map(|(fault, ..)| fault).collect();
    assert_eq!(first.len(), WEIGHTS.len());
    let mut little = Schedule::new(7, false, false, "");
    for _ in 0..100 {
        let fault = little.next().0;
        assert!(!fault.needs_network() && fault != Fault::DiskFull);
    }
    let mut some = Schedule::new(7, true, true, "kill -9,disk full");
    let chosen: std::collections::BTreeSet<_> = (0..100).map(|_| some.next().0).collect();
    let expected = [
        Fault::KillLeader,
        Fault::KillFollower,
        Fault::KillAll,
        Fault::DiskFull,
    ];
    assert_eq!(chosen, expected.into());
}
