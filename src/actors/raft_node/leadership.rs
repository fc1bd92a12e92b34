//! The task that follows openraft's metrics and tells the Raft node who leads.

use std::time::Duration;

use actix::prelude::*;
use openraft::async_runtime::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;

#[cfg(feature = "planted-bugs")]
use super::planted;
use super::{RaftNodeActor, consensus};
use crate::raft::server::Raft;

/// Tells `node` who leads whenever that changes, until Raft stops; then returns why.
///
/// openraft keeps the name of a leader until there is another one. But a leader that a follower has not
/// heard for `silence` is no leader that a client should be sent to, and one that no majority has
/// answered for so long cannot answer anything: neither counts as known here.
pub async fn watch_raft(raft: Raft, node: Addr<RaftNodeActor>, silence: Duration) -> String {
    let mut metrics = raft.metrics();
    let mut told = None;
    let mut looked: Option<(_, tokio::time::Instant)> = None;
    // openraft counts the vote that it finds on the disk as one that was just given.
    let mut found = None;
    loop {
        let key = {
            let now = metrics.borrow_watched();
            if let Err(fatal) = &now.running_state {
                return fatal.to_string();
            }
            (
                now.current_term,
                now.state,
                now.current_leader,
                *now.membership_config.log_id(),
            )
        };
        // The metrics change with every entry, and even with the question below: so only what matters here
        // is looked at, and the question is asked now and then.
        let look = looked.is_none_or(|(last, at)| last != key || at.elapsed() >= silence / 4);
        if look {
            let now = metrics.borrow_watched().clone();
            let answered = match now.state {
                openraft::ServerState::Leader => now.last_quorum_acked.map(|at| *at),
                _ => None,
            };
            let heard = match answered {
                Some(at) => Some(at),
                // A follower's vote is renewed by every word of the leader; a new leader's is of its election.
                None => match raft.with_raft_state(|state| state.vote_last_modified()).await {
                    Ok(heard) => heard.filter(|heard| heard != found.get_or_insert(*heard)),
                    Err(fatal) => return fatal.to_string(),
                },
            };
            looked = Some((key, tokio::time::Instant::now()));
            let heard = heard.is_some_and(|heard| heard.elapsed() < silence);
            #[cfg(feature = "planted-bugs")]
            let heard = heard || planted::believes_in_itself(&now);
            let news = consensus::leadership(&now, heard);
            if told.as_ref() != Some(&news) {
                // Past the mailbox's bound: a full mailbox must not make the node follow a leader that is
                // gone.
                node.do_send(news.clone());
                told = Some(news);
            }
        }
        // Silence is no change of the metrics: look again in any case.
        if let Ok(Err(_)) = tokio::time::timeout(silence / 4, metrics.changed()).await {
            return "Raft has stopped".to_owned();
        }
    }
}
