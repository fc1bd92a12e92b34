//! Clocks of actors: tasks outside of them, because the timers of a busy actor starve.
//!
//! Invariant: a task ends with the [`Ticks`] that it belongs to, and keeps no actor alive.

use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::prelude::SendError;
use actix::{Actor, Addr, Handler, Message};
use tokio::task::JoinHandle;

/// A running clock; it stops when this is dropped.
pub struct Ticks(JoinHandle<()>);

impl Ticks {
    /// Sends `tick` to `actor` again and again with a pause of `every` between. A tick that finds the
    /// mailbox full is left out: the next one will do.
    pub fn start<A, M>(actor: &Addr<A>, every: Duration, tick: M) -> Self
    where
        A: Actor + Handler<M>,
        A::Context: ToEnvelope<A, M>,
        M: Message<Result = ()> + Clone + Send + 'static,
    {
        let actor = actor.downgrade();
        Ticks(actix::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let Some(actor) = actor.upgrade() else { return };
                match actor.try_send(tick.clone()) {
                    Ok(()) | Err(SendError::Full(_)) => {}
                    Err(SendError::Closed(_)) => return,
                }
            }
        }))
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use actix::Context;

    use super::super::scheduler::messages::ReclaimDue;
    use super::super::testing::wait_until;
    use super::*;

    struct Sleeper;

    impl Actor for Sleeper {
        type Context = Context<Self>;
    }

    impl Handler<ReclaimDue> for Sleeper {
        type Result = ();

        fn handle(&mut self, _: ReclaimDue, _: &mut Context<Self>) {}
    }

    #[actix::test]
    async fn a_clock_stops_at_once_when_it_is_dropped() {
        let actor = Sleeper.start();
        let ticks = Ticks::start(&actor, Duration::from_secs(3600), ReclaimDue);
        let task = ticks.0.abort_handle();
        tokio::task::yield_now().await;
        assert!(!task.is_finished());
        drop(ticks);
        wait_until("the task is gone", || task.is_finished()).await;
    }
}
