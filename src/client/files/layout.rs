//! How a file is cut into blocks: all of one size, but for the last one.
//!
//! The contract's answers name blocks and not their size, so it is found from the file's size and the
//! number of blocks. The size that the clients in the field cut by, 4 MiB whatever the server thinks, is taken
//! when it fits; else the smallest power of two that does. (Of two or more blocks, at most one power of two
//! fits; where one block holds the file, its length is the file's either way.)

/// What the clients in the field cut files by, in bytes.
const USUAL: u64 = 4 << 20;
/// The largest block that is held in memory, in bytes.
pub(super) const LARGEST: u64 = 1 << 30;

/// The cut of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Bytes of the file; more than 0.
    pub(super) size: u64,
    /// Bytes of a block.
    pub(super) block: u64,
}

impl Layout {
    /// The cut of a file of `size` bytes into `blocks` blocks.
    ///
    /// # Errors
    /// Says why there is none: no block size gives that many, or blocks would be larger than [`LARGEST`].
    pub(super) fn of(size: u64, blocks: usize) -> Result<Self, String> {
        let fits = |block: &u64| u64::try_from(blocks).is_ok_and(|blocks| size.div_ceil(*block) == blocks);
        let powers = (0..u64::BITS).map(|shift| 1 << shift);
        let block = std::iter::once(USUAL).chain(powers).find(fits);
        match block {
            None => Err(format!(
                "{size} bytes in {blocks} blocks: no block size that is a power of two fits"
            )),
            Some(block) if block.min(size) > LARGEST => Err(format!(
                "{size} bytes in {blocks} blocks: blocks over {LARGEST} bytes are more than this client holds"
            )),
            Some(block) => Ok(Layout { size, block }),
        }
    }

    /// The number of blocks.
    pub(super) fn count(&self) -> u64 {
        self.size.div_ceil(self.block)
    }

    /// The bytes of the block at `index`, counted from 0; 0 beyond the end.
    pub(super) fn length(&self, index: u64) -> u64 {
        self.size
            .saturating_sub(index.saturating_mul(self.block))
            .min(self.block)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_usual_size_is_taken_when_it_fits() {
        for (size, blocks, block) in [
            (1, 1, 4 * MIB),
            (4 * MIB, 1, 4 * MIB),
            (4 * MIB + 1, 2, 4 * MIB),
            (10 * MIB, 3, 4 * MIB),
            (10 * MIB, 10, MIB),
            (5 * MIB, 1, 8 * MIB),
            (100 * MIB, 2, 64 * MIB),
            (10, 10, 1),
        ] {
            assert_eq!(
                Layout::of(size, blocks).map(|layout| layout.block),
                Ok(block),
                "{size}"
            );
        }
        assert!(
            Layout::of(10 * MIB, 4)
                .unwrap_err()
                .contains("10485760 bytes in 4 blocks")
        );
        assert!(Layout::of(10, 11).is_err());
        assert!(Layout::of(10, 0).is_err());
        assert!(
            Layout::of(3 << 30, 1)
                .unwrap_err()
                .contains("more than this client holds")
        );
    }

    proptest! {
        #[test]
        fn the_blocks_of_a_file_are_the_file(size in 1u64..1 << 40, shift in 0u32..30) {
            let blocks = size.div_ceil(1 << shift).min(100_000);
            if let Ok(layout) = Layout::of(size, usize::try_from(blocks).unwrap()) {
                prop_assert_eq!(layout.count(), blocks);
                let lengths = (0..blocks).map(|index| layout.length(index));
                prop_assert!(lengths.clone().all(|length| 0 < length && length <= layout.block));
                prop_assert_eq!(lengths.sum::<u64>(), size);
                prop_assert_eq!(layout.length(blocks), 0);
            } else {
                prop_assert!(size.div_ceil(1 << shift) != blocks, "a power of two was not found");
            }
        }
    }
}
