//! Which blocks are on the disk, in memory: what the reports are made of.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use crate::domain::ids::BlockId;

/// What a file looked like from outside: changes when somebody else writes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    size: u64,
    mtime: (i64, i64),
}

impl Stamp {
    pub fn of(file: &Metadata) -> Stamp {
        Stamp {
            size: file.len(),
            mtime: (file.mtime(), file.mtime_nsec()),
        }
    }
}

/// One block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Can be served. The stamp is that of the file when its footer was last found right; none: not yet.
    Good(Option<Stamp>),
    /// Found damaged.
    Corrupt,
}

/// The blocks on the disk.
#[derive(Debug, Default)]
pub(super) struct Index {
    blocks: BTreeMap<u64, State>,
    corrupt: usize,
}

/// Every block that a DataServer has: both lists ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Those that can be served.
    pub good: Vec<u64>,
    /// Those that were found damaged and are still on the disk.
    pub corrupt: Vec<u64>,
}

impl Index {
    /// Gives whether a report changes by it.
    pub fn set(&mut self, block: BlockId, state: State) -> bool {
        let before = self.blocks.insert(block.0, state);
        self.corrupt -= usize::from(before == Some(State::Corrupt));
        self.corrupt += usize::from(state == State::Corrupt);
        match (before, state) {
            (Some(State::Good(_)), State::Good(_)) | (Some(State::Corrupt), State::Corrupt) => false,
            (None | Some(_), State::Good(_) | State::Corrupt) => true,
        }
    }

    /// Gives whether it was there.
    pub fn remove(&mut self, block: BlockId) -> bool {
        let before = self.blocks.remove(&block.0);
        self.corrupt -= usize::from(before == Some(State::Corrupt));
        before.is_some()
    }

    pub fn get(&self, block: BlockId) -> Option<State> {
        self.blocks.get(&block.0).copied()
    }

    /// The first good block after this one.
    pub fn next_good(&self, after: BlockId) -> Option<BlockId> {
        let mut later = self.blocks.range(after.0.checked_add(1)?..);
        later.find_map(|(id, state)| match state {
            State::Good(_) => Some(BlockId(*id)),
            State::Corrupt => None,
        })
    }

    /// How many blocks are good, and how many corrupt.
    pub fn counts(&self) -> (usize, usize) {
        (self.blocks.len() - self.corrupt, self.corrupt)
    }

    pub fn inventory(&self) -> Inventory {
        let (good, corrupt) = self.counts();
        let mut inventory = Inventory {
            good: Vec::with_capacity(good),
            corrupt: Vec::with_capacity(corrupt),
        };
        for (id, state) in &self.blocks {
            match state {
                State::Good(_) => inventory.good.push(*id),
                State::Corrupt => inventory.corrupt.push(*id),
            }
        }
        inventory
    }
}
