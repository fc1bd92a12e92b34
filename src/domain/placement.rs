//! Where the replicas of a file's blocks go.
//!
//! A file's placement is a list of DataServers, walked round robin: replica `j` of block `i` lies on
//! `servers[(i + j) % servers.len()]`. Consecutive servers are distinct, so the replicas of a block
//! are on different DataServers; every server of the list is first replica, second replica and so on
//! for equally many blocks (give or take one). Successive files start at successive servers, so that
//! many small files spread as evenly as one large one.

use super::command::{AllocationPlan, Refusal};
use super::ids::{BlockId, ServerId};
use super::state::BlockRun;

/// Plans an allocation of `size` bytes (more than 0).
///
/// `healthy` are the DataServers that may take blocks, distinct, in a stable order; `start` is where
/// the walk begins, and should differ from one allocation to the next (see [`blocks_in`]).
///
/// # Errors
/// `FailedPrecondition` when there are fewer healthy DataServers than `replication`.
pub fn plan(
    healthy: &[ServerId],
    size: u64,
    block_size: u64,
    replication: u32,
    start: u64,
) -> Result<AllocationPlan, Refusal> {
    if healthy.len() < replication as usize {
        return Err(Refusal::failed_precondition(format!(
            "need {replication} healthy DataServers, have {}",
            healthy.len()
        )));
    }
    // A short file needs only the servers that its blocks reach: a larger cluster does not make its
    // record larger.
    let reached = blocks_in(size, block_size).saturating_add(u64::from(replication) - 1);
    let taken = usize::try_from(reached).map_or(healthy.len(), |reached| reached.min(healthy.len()));
    let first = (start % healthy.len() as u64) as usize;
    let servers = (0..taken).map(|i| healthy[(first + i) % healthy.len()]).collect();
    Ok(AllocationPlan {
        block_size,
        replication,
        servers,
    })
}

/// How many blocks hold `size` bytes.
pub fn blocks_in(size: u64, block_size: u64) -> u64 {
    size.div_ceil(block_size)
}

impl AllocationPlan {
    /// Whether the plan can be carried out: a leader never makes another one, but the log is checked
    /// rather than believed.
    pub fn is_sound(&self) -> bool {
        let distinct: std::collections::BTreeSet<_> = self.servers.iter().collect();
        self.block_size > 0
            && self.replication > 0
            && self.replication as usize <= self.servers.len()
            && distinct.len() == self.servers.len()
    }
}

impl BlockRun {
    /// The block ids, in the order of the file.
    pub fn blocks(&self) -> impl Iterator<Item = BlockId> + use<> {
        (self.first.0..self.first.0 + self.count).map(BlockId)
    }

    /// Whether `block` is one of them.
    pub fn contains(&self, block: BlockId) -> bool {
        block >= self.first && block.0 - self.first.0 < self.count
    }

    /// Where `block`, which must be one of the run's, was placed: `replication` DataServers.
    pub fn placed(&self, block: BlockId) -> impl Iterator<Item = ServerId> + '_ {
        let len = self.servers.len() as u64;
        let index = block.0 - self.first.0;
        (0..u64::from(self.replication)).map(move |j| self.servers[((index + j) % len) as usize])
    }

    /// Cuts the run after `kept` blocks (fewer than `count`) and returns the rest as a run of its own,
    /// placed as before.
    pub fn split_off(&mut self, kept: u64) -> BlockRun {
        let mut rest = self.clone();
        rest.first = BlockId(self.first.0 + kept);
        rest.count = self.count - kept;
        rest.servers
            .rotate_left((kept % self.servers.len() as u64) as usize);
        self.count = kept;
        rest
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::command::RefusalKind;
    use super::*;

    fn servers(n: u32) -> Vec<ServerId> {
        (1..=n).map(ServerId).collect()
    }

    fn run(plan: &AllocationPlan, first: u64, count: u64) -> BlockRun {
        BlockRun {
            first: BlockId(first),
            count,
            block_size: plan.block_size,
            replication: plan.replication,
            servers: plan.servers.clone(),
        }
    }

    #[test]
    fn too_few_servers_are_refused_with_the_contracts_words() {
        let refusal = plan(&servers(2), 1, 4, 3, 0).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::FailedPrecondition);
        assert_eq!(refusal.message, "need 3 healthy DataServers, have 2");
    }

    #[test]
    fn replicas_are_distinct_and_a_large_file_is_even() {
        for n in 3..12 {
            let plan = plan(&servers(n), 1000, 1, 3, 7).unwrap();
            assert!(plan.is_sound());
            let run = run(&plan, 10, 1000);
            let mut held: BTreeMap<ServerId, u64> = BTreeMap::new();
            let mut first: BTreeMap<ServerId, u64> = BTreeMap::new();
            for block in run.blocks() {
                let replicas: Vec<_> = run.placed(block).collect();
                assert_eq!(replicas.len(), 3);
                assert!(
                    replicas[0] != replicas[1] && replicas[1] != replicas[2] && replicas[0] != replicas[2]
                );
                *first.entry(replicas[0]).or_default() += 1;
                for replica in replicas {
                    *held.entry(replica).or_default() += 1;
                }
            }
            for counts in [held, first] {
                assert_eq!(counts.len(), n as usize, "every server takes part");
                let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
                assert!(most - least <= 3, "{n} servers: {counts:?}");
            }
        }
    }

    #[test]
    fn many_small_files_are_even_and_their_records_small() {
        let mut held: BTreeMap<ServerId, u64> = BTreeMap::new();
        for start in 0..1000 {
            let plan = plan(&servers(100), 1, 4096, 3, start).unwrap();
            assert_eq!(plan.servers.len(), 3, "one block reaches three servers");
            for replica in run(&plan, 1, 1).placed(BlockId(1)) {
                *held.entry(replica).or_default() += 1;
            }
        }
        assert!(held.values().all(|&count| count == 30), "{held:?}");
    }

    #[test]
    fn splitting_moves_no_replica() {
        let plan = plan(&servers(7), 100, 1, 3, 2).unwrap();
        let whole = run(&plan, 50, 100);
        for kept in [1, 6, 7, 50, 99] {
            let mut head = whole.clone();
            let rest = head.split_off(kept);
            assert_eq!(head.count + rest.count, 100);
            for block in whole.blocks() {
                let part = if head.contains(block) { &head } else { &rest };
                assert!(part.contains(block));
                assert!(part.placed(block).eq(whole.placed(block)), "{block} after {kept}");
            }
        }
    }

    #[test]
    fn sizes_round_up_to_blocks() {
        assert_eq!([0, 1, 4, 5, 8].map(|size| blocks_in(size, 4)), [0, 1, 1, 2, 2]);
        assert_eq!(blocks_in(1 << 44, 4 << 20), 1 << 22, "16 TiB of 4 MiB blocks");
    }

    #[test]
    fn unsound_plans() {
        let sound = AllocationPlan {
            block_size: 1,
            replication: 2,
            servers: servers(2),
        };
        assert!(sound.is_sound());
        for unsound in [
            AllocationPlan {
                block_size: 0,
                ..sound.clone()
            },
            AllocationPlan {
                replication: 0,
                ..sound.clone()
            },
            AllocationPlan {
                replication: 3,
                ..sound.clone()
            },
            AllocationPlan {
                servers: vec![ServerId(1), ServerId(1)],
                ..sound.clone()
            },
        ] {
            assert!(!unsound.is_sound(), "{unsound:?}");
        }
    }
}
