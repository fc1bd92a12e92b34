//! Heartbeats to one peer, on an append stream that stays open.
//!
//! The network client that openraft makes for heartbeats owns a [`HeartbeatStream`]. Every round of
//! linearizable reads waits for a heartbeat to be answered, and a message on an open stream costs both nodes a
//! third of what a call of its own does.
//!
//! Invariant: one request is under way at a time, and an answer is taken for that of no other one: a stream
//! whose request was not answered, also because the caller gave up waiting, is never used again.

use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::proto::raft as pb;

/// Requests are sent one by one.
const UNDER_WAY: usize = 1;

/// An append stream with nothing under way.
pub(super) struct HeartbeatStream {
    requests: mpsc::Sender<pb::AppendRequest>,
    answers: Streaming<pb::AppendResponse>,
}

impl HeartbeatStream {
    /// Where its requests are put in, and where the call takes them out.
    pub(super) fn requests() -> (mpsc::Sender<pb::AppendRequest>, mpsc::Receiver<pb::AppendRequest>) {
        mpsc::channel(UNDER_WAY)
    }

    /// Of a call that takes its requests from the other end of `requests`.
    pub(super) fn new(
        requests: mpsc::Sender<pb::AppendRequest>,
        answers: Streaming<pb::AppendResponse>,
    ) -> Self {
        HeartbeatStream { requests, answers }
    }

    /// Sends a request, and waits for its answer: then the stream may be used again. It takes the stream, so
    /// that one which is given up half way is gone.
    pub(super) async fn ask(
        mut self,
        request: pb::AppendRequest,
    ) -> Result<(pb::AppendResponse, Self), Status> {
        let closed = || Status::unavailable("the peer closed the stream of heartbeats");
        self.requests.send(request).await.map_err(|_| closed())?;
        let answer = self.answers.message().await?.ok_or_else(closed)?;
        Ok((answer, self))
    }
}
