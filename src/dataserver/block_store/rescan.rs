//! What hands other than ours did to the files: a block removed, cut off, overwritten or put back.
//!
//! Without this, a block whose file an operator removed would be reported until somebody wanted to read
//! it, and never be copied anew. A rescan lists the folders and looks at each file from outside; the
//! footer is read only where that does not look as it did the last time, and once after a start. What the
//! data say is for the scrubber.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use super::index::{Stamp, State};
use super::layout::Kind;
use super::read::{BlockReader, ReadError};
use super::{Inner, strange};
use crate::domain::ids::BlockId;

/// What a rescan found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rescanned {
    /// Blocks whose files are gone.
    pub vanished: usize,
    /// Blocks that nobody knew of: put there by hand.
    pub appeared: usize,
    /// Blocks that turned out to be damaged.
    pub damaged: usize,
}

impl Inner {
    pub(super) fn rescan(self: &Arc<Self>) -> io::Result<Rescanned> {
        let mut result = Rescanned::default();
        // What is known now and not found below has vanished; what comes meanwhile is not in this list.
        let before = self.index().inventory();
        let mut missing: BTreeSet<u64> = before.good.into_iter().chain(before.corrupt).collect();
        let mut doubtful = Vec::new();
        self.layout.walk(
            |block, kind, entry| {
                let known = self.index().get(block);
                let looks_as_before = match (kind, known) {
                    (Kind::Corrupt, Some(State::Corrupt)) => true,
                    // Either kind of file is there when a block has just been written anew.
                    (Kind::Corrupt, Some(State::Good(_))) => return Ok(()),
                    (Kind::Good, Some(State::Good(stamp))) => match entry.metadata() {
                        Ok(now) => stamp == Some(Stamp::of(&now)),
                        // Gone in this moment.
                        Err(_) => return Ok(()),
                    },
                    (Kind::Good, Some(State::Corrupt) | None) | (Kind::Corrupt, None) => false,
                };
                missing.remove(&block.0);
                if !looks_as_before {
                    doubtful.push((block, kind));
                }
                Ok(())
            },
            strange,
        )?;
        for (block, kind) in doubtful {
            match kind {
                Kind::Good => self.look_at(block, &mut result),
                Kind::Corrupt => self.vanished(block),
            }
        }
        for block in missing.into_iter().map(BlockId) {
            let known = self.index().get(block).is_some();
            self.vanished(block);
            result.vanished += usize::from(known && self.index().get(block).is_none());
        }
        Ok(result)
    }

    fn look_at(self: &Arc<Self>, block: BlockId, result: &mut Rescanned) {
        if self.is_closed() {
            return;
        }
        let known = self.index().get(block).is_some();
        match self.examine(block) {
            Ok(()) => result.appeared += usize::from(!known),
            Err(ReadError::Damaged { .. }) => result.damaged += 1,
            // Deleted meanwhile.
            Err(ReadError::Missing(_) | ReadError::Corrupt(_)) => (),
            Err(e @ ReadError::Io { .. }) => log::warn!("{e}"),
        }
    }

    /// Reads the footer of a block's file, and notes what comes of it.
    pub(super) fn examine(self: &Arc<Self>, block: BlockId) -> Result<(), ReadError> {
        let reader = BlockReader::open_file(self.clone(), block)?;
        reader.approve().map_err(|source| ReadError::Io { block, source })
    }
}
