//! What a killed process may leave: a state that is ahead of the log.
//!
//! An entry is applied as soon as a majority has it on disk, which may be before this node's own log has even
//! written it, when its disk is busy. Whoever kills the process then finds the entry in the state, which the system
//! keeps, and not in the log. openraft mends that at the start by purging the log up to where the state is.
//!
//! Called by the wiring, before openraft is built. Invariant (decision 0002): the log is never purged beyond a
//! flushed snapshot; the state alone would not survive the loss of power that comes next.

use std::io;

use openraft::storage::{LogState, RaftLogStorage};

use super::log_store::LogStore;
use super::ports::{BuildSnapshot, GetAppliedState, GetCurrentSnapshot};
use super::state_machine::{StateMachinePort, ask, once_it_fits};
use super::types::LogId;

/// Takes a snapshot of the state, if the log lacks entries that only the state has. Waits while there is no disk
/// space for it. Answers whether it took one.
///
/// # Errors
/// The log or the state cannot be read, or the snapshot not be made.
pub async fn cover_what_the_log_lacks(log: &mut LogStore, state: &StateMachinePort) -> io::Result<bool> {
    let LogState {
        last_purged_log_id: purged,
        last_log_id: last,
    } = log.get_log_state().await?;
    let applied = ask(&state.applied, GetAppliedState).await?.last_applied;
    let snapshot = ask(&state.current_snapshot, GetCurrentSnapshot).await?;
    let covered = snapshot.and_then(|snapshot| snapshot.meta.last_log_id);
    // The second: a start of a server that did not know of this has purged already.
    let lacks = applied > last || purged > covered;
    if !lacks || applied <= covered {
        return Ok(false);
    }
    let shown = |id: Option<LogId>| id.map_or_else(|| "nothing".to_owned(), |id| id.to_string());
    log::warn!(
        "the state has log entry {}, the log ends at {}, begins behind {}, and the newest snapshot covers {}: the \
         process was killed before it had written the log; taking a snapshot of the state",
        shown(applied),
        shown(last),
        shown(purged),
        shown(covered)
    );
    once_it_fits(&state.build_snapshot, BuildSnapshot).await?;
    Ok(true)
}
