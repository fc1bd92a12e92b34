//! openraft's settings, from ours. Called once, by the wiring.

use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, ConfigError, SnapshotPolicy};

/// What an operator may set about Raft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftSettings {
    /// Between two heartbeats of the leader.
    pub heartbeat: Duration,
    /// The shortest wait before a follower that hears no leader stands for election.
    pub election_min: Duration,
    /// The longest, and the time for which followers refuse votes against a leader they heard from:
    /// a dead leader is replaced about `election_max` plus `election_min..election_max` after its
    /// last heartbeat.
    pub election_max: Duration,
    /// Entries that a snapshot covers and that are kept all the same, so that a node which was away
    /// for a short while need not be sent a snapshot.
    pub entries_kept: u64,
    /// How long one attempt to send and install a snapshot may take. It is sent and installed in steps with rests
    /// between them (see `background`): a peer that is gone is found out by its connection, long before.
    pub snapshot_timeout: Duration,
}

impl Default for RaftSettings {
    fn default() -> Self {
        RaftSettings {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(600),
            entries_kept: 1000,
            snapshot_timeout: Duration::from_secs(1800),
        }
    }
}

/// openraft's settings for ours.
///
/// # Errors
/// The times contradict each other: the election must be longer than the heartbeat, and
/// `election_min` shorter than `election_max`.
pub fn openraft_config(settings: &RaftSettings) -> Result<Arc<Config>, ConfigError> {
    let config = Config {
        cluster_name: "minfs".to_owned(),
        heartbeat_interval: millis(settings.heartbeat),
        election_timeout_min: millis(settings.election_min),
        election_timeout_max: millis(settings.election_max),
        install_snapshot_timeout: millis(settings.snapshot_timeout),
        // `raft_node` triggers snapshots, by time and by number of entries.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: settings.entries_kept,
        // A node that lags gets a snapshot only once the entries that it needs are gone.
        replication_lag_threshold: u64::MAX,
        // An entry holds up to 1,024 commands; the log store bounds a request by its bytes.
        max_payload_entries: 256,
        // A leader that restarts would go on leading with a state that it has not rebuilt yet.
        enable_leader_restore: Some(false),
        // A node that was cut off must not depose the leader when it comes back.
        enable_pre_vote: Some(true),
        // A log that is shorter than what was acknowledged is a lost disk, and a lost disk is a new
        // node; nothing else may revert a log.
        allow_log_reversion: None,
        backoff: "100ms".to_owned(),
        ..Config::default()
    };
    config.validate().map(Arc::new)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
