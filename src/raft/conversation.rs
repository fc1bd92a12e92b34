//! Questions to one peer and its answers, one after the other, on a gRPC stream that stays open.
//!
//! For what is asked over and over by way of linearizable reads: the network client that openraft makes for
//! heartbeats has one, and so has a follower's Raft node that asks the leader for read indexes. A message on an
//! open stream costs both nodes about half of what a call of its own does (decision 0011).
//!
//! Invariant: one question is under way at a time, and an answer is taken for that of no other one: a
//! conversation whose question was not answered, also because the caller gave up waiting, is never gone on with.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

/// Questions are asked one by one.
const UNDER_WAY: usize = 1;

/// A stream of questions and answers with nothing under way.
pub struct Conversation<Q, A> {
    questions: mpsc::Sender<Q>,
    answers: Streaming<A>,
}

impl<Q, A> Conversation<Q, A> {
    /// Begins one by a call, which is given the stream of questions.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn begin(
        call: impl AsyncFnOnce(ReceiverStream<Q>) -> Result<Response<Streaming<A>>, Status>,
    ) -> Result<Self, Status> {
        let (questions, outgoing) = mpsc::channel(UNDER_WAY);
        let answers = call(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Conversation { questions, answers })
    }

    /// Asks, and waits for the answer: then it may be gone on with. It is taken, so that one which is given
    /// up half way is gone.
    ///
    /// # Errors
    /// What the peer says instead of an answer; `UNAVAILABLE` when it has closed the stream.
    pub async fn ask(mut self, question: Q) -> Result<(A, Self), Status> {
        let closed = || Status::unavailable("the peer has closed the stream");
        self.questions.send(question).await.map_err(|_| closed())?;
        let answer = self.answers.message().await?.ok_or_else(closed)?;
        Ok((answer, self))
    }
}

/// Asks in the conversation of the last question, if there is one and the peer goes on with it, else in one that
/// `begin` begins: the peer may have been started anew since. So the question may be asked twice.
///
/// # Errors
/// Those of a new conversation.
pub async fn ask_again<Q: Clone, A>(
    last: Option<Conversation<Q, A>>,
    begin: impl Future<Output = Result<Conversation<Q, A>, Status>>,
    question: Q,
) -> Result<(A, Conversation<Q, A>), Status> {
    if let Some(last) = last
        && let Ok(answered) = last.ask(question.clone()).await
    {
        return Ok(answered);
    }
    begin.await?.ask(question).await
}
