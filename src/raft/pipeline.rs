//! Replication to one follower: append requests on one stream, many under way, answers in order.
//!
//! The network client runs it for openraft, which polls the stream of results.
//!
//! openraft makes a request of its own of every commit index that no entries came along with; here it waits a
//! moment for entries to travel with. A follower that is asked for a read meanwhile hears of the commit by the
//! heartbeat that confirms the read.
//!
//! Invariant: openraft's requests are taken by the stream of results itself and never by the
//! transport, so that dropping the results lets go of the log at once, whatever the connection does.
//! What is under way is bounded in requests and in bytes, and each request has its result, in order.

use std::collections::VecDeque;
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::convert::{DecodeError, Span, append_result};
use super::types::{EntryPayload, TypeConfig};
use crate::proto::raft as pb;

/// Requests that may be under way.
pub(super) const MAX_REQUESTS: usize = 64;

/// Bytes of entries that may be under way, if in more than one request: what keeps a follower's disk
/// busy, and no more, since an answer must not get older than the leader's lease.
const MAX_BYTES: usize = 8 << 20;

/// How long news of a commit alone may wait for entries to travel with. One client that waits for each answer
/// asks again within half of it; a follower that nobody asks is so much behind.
const COMPANY: Duration = Duration::from_millis(2);

/// Why replication on this stream ended before its requests did.
#[derive(Debug, thiserror::Error)]
pub(super) enum PipelineError {
    #[error("{0}")]
    Refused(Status),
    #[error("no answer for {0:?}")]
    Silent(Duration),
    #[error("the peer closed the stream")]
    Closed,
    #[error("answer without a request")]
    Unasked,
    #[error("{0}")]
    Malformed(#[from] DecodeError),
}

/// One stream of append requests and its answers.
pub(super) struct Pipeline<S> {
    /// What openraft wants sent; none when it has ended.
    input: Option<S>,
    /// Into the transport; none when the input has ended.
    requests: Option<mpsc::Sender<pb::AppendRequest>>,
    answers: Streaming<pb::AppendResponse>,
    /// News of commits alone, and until when they may wait.
    held: Option<Held>,
    /// Sent and not answered, oldest first.
    under_way: VecDeque<UnderWay>,
    /// Results of requests that travelled in the one that was answered last.
    results: VecDeque<StreamAppendResult<TypeConfig>>,
    bytes_under_way: usize,
    /// How long the follower may take for the next answer.
    patience: Duration,
    /// When the oldest request under way began to be the oldest.
    waiting_since: Instant,
}

struct UnderWay {
    span: Span,
    bytes: usize,
    /// Requests without entries that travel in this one.
    company: usize,
}

/// Requests without entries that were not sent yet: the newest says what the others said.
struct Held {
    newest: AppendEntriesRequest<TypeConfig>,
    older: usize,
    until: Instant,
}

impl<S> Pipeline<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    /// Sends what comes from `input` into `requests`, which has room for [`MAX_REQUESTS`], and takes
    /// the answers to it from `answers`.
    pub(super) fn new(
        input: S,
        requests: mpsc::Sender<pb::AppendRequest>,
        answers: Streaming<pb::AppendResponse>,
        patience: Duration,
    ) -> Self {
        Pipeline {
            input: Some(input),
            requests: Some(requests),
            answers,
            held: None,
            under_way: VecDeque::new(),
            results: VecDeque::new(),
            bytes_under_way: 0,
            patience,
            waiting_since: Instant::now(),
        }
    }

    /// The results, in the order of the requests. Ends with the input, or after an error.
    pub(super) fn results(self) -> impl Stream<Item = Result<StreamAppendResult<TypeConfig>, PipelineError>> {
        futures::stream::unfold(Some(self), |pipeline| async move {
            let mut pipeline = pipeline?;
            match pipeline.next().await? {
                Ok(result) => Some((Ok(result), Some(pipeline))),
                Err(e) => Some((Err(e), None)),
            }
        })
    }

    async fn next(&mut self) -> Option<Result<StreamAppendResult<TypeConfig>, PipelineError>> {
        enum Event {
            Answer(Result<Option<pb::AppendResponse>, Status>),
            Request(Option<AppendEntriesRequest<TypeConfig>>),
            Alone,
            Silence,
        }
        loop {
            if let Some(result) = self.results.pop_front() {
                return Some(Ok(result));
            }
            let room = self.under_way.len() < MAX_REQUESTS && self.bytes_under_way < MAX_BYTES;
            let alone = self.held.as_ref().map_or(self.waiting_since, |held| held.until);
            let event = tokio::select! {
                biased;
                answer = self.answers.message() => Event::Answer(answer),
                request = next_of(&mut self.input), if room && self.input.is_some() => Event::Request(request),
                () = tokio::time::sleep_until(alone), if room && self.held.is_some() => Event::Alone,
                () = tokio::time::sleep_until(self.waiting_since + self.patience),
                    if self.input.is_none() || !self.under_way.is_empty() => Event::Silence,
            };
            match event {
                Event::Answer(Ok(Some(answer))) => {
                    if let Err(e) = self.answered(answer) {
                        return Some(Err(e));
                    }
                }
                Event::Answer(Ok(None)) if self.input.is_none() && self.under_way.is_empty() => return None,
                Event::Answer(Ok(None)) => return Some(Err(PipelineError::Closed)),
                Event::Answer(Err(status)) => return Some(Err(PipelineError::Refused(status))),
                Event::Request(Some(request)) => {
                    if self.take(request).is_err() {
                        return Some(Err(PipelineError::Closed));
                    }
                }
                Event::Alone => {
                    if self.send_held().is_err() {
                        return Some(Err(PipelineError::Closed));
                    }
                }
                Event::Request(None) => {
                    if self.send_held().is_err() {
                        return Some(Err(PipelineError::Closed));
                    }
                    self.input = None;
                    self.requests = None; // tells the follower, which then closes its side
                    if self.under_way.is_empty() {
                        self.waiting_since = Instant::now();
                    }
                }
                // Everything was answered: that the follower does not close its side is no harm.
                Event::Silence if self.under_way.is_empty() => return None,
                Event::Silence => return Some(Err(PipelineError::Silent(self.patience))),
            }
        }
    }

    /// Sends a request, or holds it back for a moment.
    fn take(&mut self, request: AppendEntriesRequest<TypeConfig>) -> Result<(), PipelineError> {
        let fits = |held: &Held| held.newest.prev_log_id == request.prev_log_id;
        if self.held.as_ref().is_some_and(|held| !fits(held)) {
            self.send_held()?;
        }
        let held = self.held.take();
        let before = held.as_ref().map_or(0, |held| held.older + 1);
        if !request.entries.is_empty() {
            return self.send(request, before);
        }
        self.held = Some(Held {
            newest: request,
            older: before,
            until: held.map_or_else(|| Instant::now() + COMPANY, |held| held.until),
        });
        Ok(())
    }

    fn send_held(&mut self) -> Result<(), PipelineError> {
        match self.held.take() {
            Some(Held { newest, older, .. }) => self.send(newest, older),
            None => Ok(()),
        }
    }

    /// Sends a request, which says what `company` others said that have the same predecessor and no entries.
    fn send(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        company: usize,
    ) -> Result<(), PipelineError> {
        let bytes = request
            .entries
            .iter()
            .map(|entry| payload_bytes(&entry.payload))
            .sum();
        if self.under_way.is_empty() {
            self.waiting_since = Instant::now();
        }
        self.under_way.push_back(UnderWay {
            span: Span::of(&request),
            bytes,
            company,
        });
        self.bytes_under_way += bytes;
        // There is room for every request under way, so this fails only when the call is over.
        let requests = self.requests.as_ref().ok_or(PipelineError::Closed)?;
        requests
            .try_send(request.into())
            .map_err(|_| PipelineError::Closed)
    }

    /// Takes the results from an answer: what was appended behind a predecessor says that this one is there.
    fn answered(&mut self, answer: pb::AppendResponse) -> Result<(), PipelineError> {
        let UnderWay { span, bytes, company } = self.under_way.pop_front().ok_or(PipelineError::Unasked)?;
        self.bytes_under_way -= bytes;
        self.waiting_since = Instant::now();
        let result = append_result(answer, span)?;
        if result.is_ok() {
            let matching = Ok(span.prev);
            self.results.extend(std::iter::repeat_n(matching, company));
        }
        self.results.push_back(result);
        Ok(())
    }
}

async fn next_of<S: Stream + Unpin>(input: &mut Option<S>) -> Option<S::Item> {
    match input {
        Some(input) => input.next().await,
        None => None,
    }
}

fn payload_bytes(payload: &EntryPayload) -> usize {
    match payload {
        EntryPayload::Normal(batch) => batch.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}
