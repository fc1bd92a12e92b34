//! The operations that are measured: their names, and whom they are asked of.
//!
//! Pure; `workload` does them, `report` and `plot` print them. The order here is the order in a round: what
//! reads comes first, and what leaves blocks that no DataServer ever reports comes last, so that the
//! MetaServer's looks at missing replicas disturb nothing else.

use clap::ValueEnum;

/// One kind of request, or a mix of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub enum Operation {
    /// What is known of a file, asked of the leader.
    Stat,
    /// The same, asked of a follower.
    StatFollower,
    /// A directory of 1,000 files, asked of the leader.
    List,
    /// Four stats for each create.
    Mixed,
    /// A new, empty file.
    Create,
    /// An empty file is removed.
    Delete,
    /// Two blocks with three replicas each for an empty file.
    Allocate,
    /// Size and MD5 of a file that has its blocks.
    Finalize,
}

/// Which node is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The leader.
    Leader,
    /// One that is not; the same one for all clients.
    Follower,
}

impl Operation {
    /// All, in the order of a round.
    pub const ALL: [Operation; 8] = [
        Operation::Stat,
        Operation::StatFollower,
        Operation::List,
        Operation::Mixed,
        Operation::Create,
        Operation::Delete,
        Operation::Allocate,
        Operation::Finalize,
    ];

    /// As the report calls it.
    pub fn label(self) -> &'static str {
        match self {
            Operation::Stat => "stat, leader",
            Operation::StatFollower => "stat, follower",
            Operation::List => "list of 1,000",
            Operation::Mixed => "80 % stat, 20 % create",
            Operation::Create => "create",
            Operation::Delete => "delete",
            Operation::Allocate => "allocate two blocks",
            Operation::Finalize => "finalize",
        }
    }

    /// Who is asked.
    pub fn role(self) -> Role {
        match self {
            Operation::StatFollower => Role::Follower,
            Operation::Stat
            | Operation::List
            | Operation::Mixed
            | Operation::Create
            | Operation::Delete
            | Operation::Allocate
            | Operation::Finalize => Role::Leader,
        }
    }

    /// Whether some of it is a read.
    pub fn reads(self) -> bool {
        match self {
            Operation::Stat | Operation::StatFollower | Operation::List | Operation::Mixed => true,
            Operation::Create | Operation::Delete | Operation::Allocate | Operation::Finalize => false,
        }
    }

    /// What it uses up, if anything, and has to be made before it is measured.
    pub fn consumes(self) -> Option<Supply> {
        match self {
            Operation::Delete | Operation::Allocate => Some(Supply::Empty),
            Operation::Finalize => Some(Supply::Allocated),
            Operation::Stat
            | Operation::StatFollower
            | Operation::List
            | Operation::Mixed
            | Operation::Create => None,
        }
    }
}

/// Files that an operation needs, each for once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supply {
    /// Just created.
    Empty,
    /// With blocks that are not finalized.
    Allocated,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Operation::Stat => "stat",
            Operation::StatFollower => "stat-follower",
            Operation::List => "list",
            Operation::Mixed => "mixed",
            Operation::Create => "create",
            Operation::Delete => "delete",
            Operation::Allocate => "allocate",
            Operation::Finalize => "finalize",
        })
    }
}
