//! Reads every block now and then, slowly, so that silent damage is found while there still are good
//! replicas, and not when somebody needs the block.
//!
//! Started by `DataServer`. A damaged block is set aside by the reader itself.

use std::time::Duration;

use tokio::time::Instant;

use super::block_store::{BlockStore, ReadError};
use super::pipeline::BATCH;
use crate::domain::ids::BlockId;

/// When reading may go on, so that `rate` bytes a second are read.
#[derive(Debug)]
pub(super) struct Pace {
    rate: u64,
}

impl Pace {
    /// `rate`: bytes a second, more than 0.
    pub fn new(rate: u64) -> Pace {
        Pace { rate: rate.max(1) }
    }

    /// How long to wait after `bytes` were read in `took`.
    pub fn pause(&self, bytes: usize, took: Duration) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.rate as f64).saturating_sub(took)
    }
}

/// Reads all blocks in the order of their ids, and begins again, but not before `interval` after it began
/// the last time. Runs until it is dropped.
pub(super) async fn run(store: BlockStore, rate: u64, interval: Duration) {
    let pace = Pace::new(rate);
    loop {
        let began = Instant::now();
        let mut last = BlockId(0);
        let (mut read, mut damaged) = (0_u64, 0_u64);
        while let Some(block) = store.next_after(last) {
            read += 1;
            damaged += u64::from(!scrub(&store, block, &pace).await);
            last = block;
        }
        log::debug!(
            "{read} blocks were scrubbed in {:?}, {damaged} are damaged",
            began.elapsed()
        );
        tokio::time::sleep_until(began + interval).await;
    }
}

/// Reads one block. Gives whether it is undamaged, as far as that can be said.
async fn scrub(store: &BlockStore, block: BlockId, pace: &Pace) -> bool {
    let opening = {
        let store = store.clone();
        tokio::task::spawn_blocking(move || store.read(block))
    };
    let mut result = match opening.await {
        Ok(opened) => opened.map(Some),
        Err(_) => return true,
    };
    loop {
        let mut reader = match result {
            Ok(Some(reader)) => reader,
            Ok(None) | Err(ReadError::Missing(_)) => return true,
            Err(ReadError::Corrupt(_) | ReadError::Damaged { .. }) => return false,
            Err(e @ ReadError::Io { .. }) => {
                log::warn!("{e}");
                return true;
            }
        };
        let began = Instant::now();
        let reading = tokio::task::spawn_blocking(move || {
            let pieces = reader.next(BATCH)?;
            let bytes: usize = pieces.iter().map(bytes::Bytes::len).sum();
            Ok((bytes, (bytes > 0).then_some(reader)))
        });
        result = match reading.await {
            Ok(Ok((bytes, reader))) => {
                tokio::time::sleep(pace.pause(bytes, began.elapsed())).await;
                Ok(reader)
            }
            Ok(Err(e)) => Err(e),
            Err(_) => return true,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_the_rate_however_long_reading_takes() {
        let pace = Pace::new(1 << 20);
        assert_eq!(pace.pause(1 << 20, Duration::ZERO), Duration::from_secs(1));
        assert_eq!(
            pace.pause(1 << 19, Duration::from_millis(200)),
            Duration::from_millis(300)
        );
        assert_eq!(pace.pause(1 << 10, Duration::from_secs(1)), Duration::ZERO);
        assert_eq!(pace.pause(0, Duration::ZERO), Duration::ZERO);
    }
}
