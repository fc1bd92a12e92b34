//! The proposals that wait or are under way, and the rules of their fate.
//!
//! Invariant: a proposal is answered exactly once, and its answer never claims more than is known.
//! One that was sent anywhere and not answered is *uncertain* from then on: it may have happened, so
//! it is repeated only if it carries a request id, under which a repeat gets the first answer.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::messages::{Leader, Propose, ProposeError};
use crate::domain::command::{Applied, Command, Op, RequestId};

/// The most commands that share a log entry.
pub const MAX_COMMANDS: usize = 1024;

/// The most bytes of commands that share a log entry, unless a single one is larger.
pub const MAX_BYTES: usize = 1 << 20;

/// How far a proposal has come, seen by whoever waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was sent nowhere yet, or certainly had no effect.
    Waiting,
    /// It was sent, and may take effect.
    Uncertain,
}

/// A proposal, and the one who waits for it.
pub struct Proposal {
    /// What to do; the leader's part of it is filled in by [`Proposal::date`].
    pub command: Command,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// It came from a peer, and is not forwarded again.
    pub forwarded: bool,
    fate: Rc<Cell<Fate>>,
    /// An attempt whose effect is unknown was made: no later one can change that.
    tainted: bool,
    answer: oneshot::Sender<Result<Applied, ProposeError>>,
}

/// The waiting end of a [`Proposal`].
pub struct Waiter {
    fate: Rc<Cell<Fate>>,
    answer: oneshot::Receiver<Result<Applied, ProposeError>>,
    deadline: Instant,
}

impl Proposal {
    /// A proposal and its waiter.
    pub fn new(message: Propose) -> (Self, Waiter) {
        let Propose {
            op,
            request_id,
            origin,
            deadline,
            forwarded,
        } = message;
        let (sender, receiver) = oneshot::channel();
        let fate = Rc::new(Cell::new(Fate::Waiting));
        let command = Command {
            time_ms: 0,
            request_id,
            digest: 0,
            origin,
            op,
        };
        let proposal = Proposal {
            command,
            deadline,
            forwarded,
            fate: fate.clone(),
            tainted: false,
            answer: sender,
        };
        (
            proposal,
            Waiter {
                fate,
                answer: receiver,
                deadline,
            },
        )
    }

    /// Answers it.
    pub fn answer(self, answer: Result<Applied, ProposeError>) {
        // Nobody may be waiting any more.
        let _ = self.answer.send(answer);
    }

    /// Answers it that this attempt did not happen, and what an earlier one did is unknown.
    pub fn not_done(self, error: ProposeError) {
        let answer = match self.tainted {
            true => ProposeError::Unknown(error.to_string()),
            false => error,
        };
        self.answer(Err(answer));
    }

    /// It is being sent.
    pub fn sent(&self) {
        self.fate.set(Fate::Uncertain);
    }

    /// The attempt certainly had no effect.
    pub fn had_no_effect(&self) {
        self.fate.set(if self.tainted {
            Fate::Uncertain
        } else {
            Fate::Waiting
        });
    }

    /// The attempt may have had an effect, or may yet have one.
    pub fn may_have_had_effect(&mut self) {
        self.tainted = true;
        self.fate.set(Fate::Uncertain);
    }

    /// Whether sending it again cannot make it happen twice.
    pub fn may_be_repeated(&self) -> bool {
        !self.tainted || self.command.request_id.is_some()
    }

    /// Whether nobody waits for it any more.
    pub fn is_abandoned(&self, now: Instant) -> bool {
        self.answer.is_closed() || self.deadline <= now
    }

    /// Gives it the leader's time, Unix milliseconds, and the digest of what its request id stands for.
    pub fn date(&mut self, time_ms: i64) {
        self.command.time_ms = time_ms;
        self.command.digest = match self.command.request_id {
            Some(_) => self.command.op.digest(),
            None => 0,
        };
    }

    /// Gives it a request id if it has none, so that it may be repeated.
    pub fn make_repeatable(&mut self) {
        if self.command.request_id.is_none() {
            self.command.request_id = RequestId::new(&rand::random::<u128>().to_be_bytes()).ok();
        }
    }
}

impl Waiter {
    /// Waits for the answer, or until the deadline: then the fate decides what is said.
    pub async fn wait(self) -> Result<Applied, ProposeError> {
        let why = match tokio::time::timeout_at(self.deadline.into(), self.answer).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(_)) => "the server is stopping",
            Err(_) => "no answer within the request's time",
        };
        match self.fate.get() {
            Fate::Waiting => Err(ProposeError::Unavailable(format!("nothing was changed: {why}"))),
            Fate::Uncertain => Err(ProposeError::Unknown(why.to_owned())),
        }
    }
}

/// Where proposals go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// This node leads.
    Local,
    /// This one does.
    Leader(Leader),
    /// Nobody is known to.
    Nowhere,
}

/// The proposals that wait, in the order in which they came.
#[derive(Default)]
pub struct Queue {
    waiting: VecDeque<Proposal>,
    /// How many of them came from peers: a follower asks for these with every proposal that arrives.
    forwarded: usize,
}

impl Queue {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Adds one at the end.
    pub fn push(&mut self, proposal: Proposal) {
        self.forwarded += usize::from(proposal.forwarded);
        self.waiting.push_back(proposal);
    }

    fn push_first(&mut self, proposal: Proposal) {
        self.forwarded += usize::from(proposal.forwarded);
        self.waiting.push_front(proposal);
    }

    fn pop_first(&mut self) -> Option<Proposal> {
        let proposal = self.waiting.pop_front()?;
        self.forwarded -= usize::from(proposal.forwarded);
        Some(proposal)
    }

    /// Puts those back at the front that came back and may be sent again; answers the others.
    pub fn put_back(&mut self, proposals: Vec<Proposal>, why: &str) {
        for proposal in proposals.into_iter().rev() {
            if proposal.may_be_repeated() {
                self.push_first(proposal);
            } else {
                proposal.answer(Err(ProposeError::Unknown(why.to_owned())));
            }
        }
    }

    /// Takes the next proposals that may share a log entry, dropping those that nobody waits for.
    /// With `planned` only such that need no plan any more; the others are left in `unplanned`.
    pub fn take(&mut self, now: Instant, unplanned: Option<&mut Vec<Proposal>>) -> Vec<Proposal> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        let mut aside = unplanned;
        while taken.len() < MAX_COMMANDS {
            let Some(proposal) = self.pop_first() else {
                break;
            };
            if proposal.is_abandoned(now) {
                continue;
            }
            if let (Some(aside), Op::Allocate { plan: None, .. }) = (aside.as_mut(), &proposal.command.op) {
                aside.push(proposal);
                continue;
            }
            bytes += size_hint(&proposal.command);
            if bytes > MAX_BYTES && !taken.is_empty() {
                self.push_first(proposal);
                break;
            }
            taken.push(proposal);
        }
        taken
    }

    /// Takes those that came from peers: this node does not lead, and must not forward them.
    pub fn take_forwarded(&mut self) -> Vec<Proposal> {
        match self.forwarded {
            0 => Vec::new(),
            _ => self.take_where(|proposal| proposal.forwarded),
        }
    }

    /// Takes those whose command is such a one.
    pub fn drain(&mut self, such: impl Fn(&Op) -> bool) -> Vec<Proposal> {
        self.take_where(|proposal| such(&proposal.command.op))
    }

    fn take_where(&mut self, wanted: impl Fn(&Proposal) -> bool) -> Vec<Proposal> {
        let (taken, left): (VecDeque<_>, _) = self.waiting.drain(..).partition(wanted);
        self.waiting = left;
        self.forwarded = self.waiting.iter().filter(|proposal| proposal.forwarded).count();
        taken.into()
    }
}

/// About how many bytes a command takes in the log.
fn size_hint(command: &Command) -> usize {
    let variable = match &command.op {
        Op::Create { path, .. } | Op::Delete { path, .. } => path.as_str().len(),
        Op::Allocate { path, plan, .. } => {
            path.as_str().len() + plan.as_ref().map_or(0, |plan| 5 * plan.servers.len())
        }
        Op::Finalize { path, md5, .. } => path.as_str().len() + md5.len(),
        Op::RegisterDataServer { id, addr } => id.len() + addr.len(),
        Op::ReleaseGarbage { runs } | Op::AbandonWrites { runs } => 10 * runs.len(),
        Op::Condemn { orphans } => orphans.iter().map(|orphan| 16 + 5 * orphan.holders.len()).sum(),
        Op::MoveReplica { .. } | Op::SetDataServerStatus { .. } | Op::Reclaim { .. } => 0,
    };
    variable + 64
}
