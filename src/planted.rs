//! Bugs on purpose, so that the tests can show that they would catch them. Only with the feature
//! `planted-bugs`, and only in a process whose environment names one in `MINFS_PLANTED_BUG`.
//!
//! Each is planted where it would be made by mistake: `acknowledge-before-commit` and
//! `read-without-leadership` in `actors::raft_node`, `skip-fsync` in `raft::log_store`.

use std::sync::OnceLock;

/// Whether this process has this bug.
pub(crate) fn is_planted(bug: &str) -> bool {
    static PLANTED: OnceLock<String> = OnceLock::new();
    PLANTED.get_or_init(|| std::env::var("MINFS_PLANTED_BUG").unwrap_or_default()) == bug
}
