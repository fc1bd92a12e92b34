//! The leader's orders: copy this block from there, delete that one. Carried out in the background.
//!
//! The heartbeat hands them in ([`Orders::take`]); some tasks carry them out. The leader gives an order again
//! until a report shows that it was carried out, so what is dropped or fails here is not lost.
//!
//! The invariants: an order waits or runs once, however often it comes; at most one order a block runs, and
//! the last that came is the last that is carried out; at most [`MAX_WAITING`] blocks wait.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use super::block_store::BlockStore;
use super::fetch;
use super::peers::Peers;
use crate::domain::ids::{BlockId, ID_LIMIT};
use crate::proto::dfs::Command;
use crate::proto::dfs::command::Action;

/// Blocks with orders; beyond it, orders are dropped.
const MAX_WAITING: usize = 10_000;

/// Deletes at once.
const DELETERS: usize = 2;

/// What is to be done with a block.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Order {
    CopyFrom(String),
    Delete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Copy,
    Delete,
}

impl Order {
    fn kind(&self) -> Kind {
        match self {
            Order::CopyFrom(_) => Kind::Copy,
            Order::Delete => Kind::Delete,
        }
    }
}

/// The orders for one block.
#[derive(Debug, Default)]
struct Pending {
    running: Option<Kind>,
    /// Waits, perhaps for the running one.
    next: Option<Order>,
}

/// All orders that wait or run.
#[derive(Debug, Default)]
struct Book {
    pending: HashMap<u64, Pending>,
    /// Blocks in the order in which they came; some are out of date and passed over.
    copies: VecDeque<u64>,
    deletes: VecDeque<u64>,
}

impl Book {
    /// Notes an order. Gives whether there was room.
    fn add(&mut self, block: BlockId, order: Order) -> bool {
        let kind = order.kind();
        let full = self.pending.len() >= MAX_WAITING || self.queue(kind).len() >= 2 * MAX_WAITING;
        if full && !self.pending.contains_key(&block.0) {
            return false;
        }
        let pending = self.pending.entry(block.0).or_default();
        let waiting = pending.next.as_ref().map(Order::kind);
        if waiting == Some(kind) || (waiting.is_none() && pending.running == Some(kind)) {
            return true;
        }
        if pending.running == Some(kind) {
            // What waits was to undo what runs, and is no longer wanted.
            pending.next = None;
            return true;
        }
        pending.next = Some(order);
        if pending.running.is_none() {
            self.queue(kind).push_back(block.0);
        }
        true
    }

    /// The next order to carry out.
    fn start(&mut self, kind: Kind) -> Option<(BlockId, Order)> {
        while let Some(block) = self.queue(kind).pop_front() {
            let Some(pending) = self.pending.get_mut(&block) else {
                continue;
            };
            if pending.running.is_none()
                && let Some(order) = pending.next.take_if(|order| order.kind() == kind)
            {
                pending.running = Some(kind);
                return Some((BlockId(block), order));
            }
        }
        None
    }

    /// The order that ran has ended.
    fn end(&mut self, block: BlockId) {
        let Some(pending) = self.pending.get_mut(&block.0) else {
            return;
        };
        pending.running = None;
        match pending.next.as_ref().map(Order::kind) {
            Some(kind) => self.queue(kind).push_back(block.0),
            None => {
                self.pending.remove(&block.0);
            }
        }
    }

    fn queue(&mut self, kind: Kind) -> &mut VecDeque<u64> {
        match kind {
            Kind::Copy => &mut self.copies,
            Kind::Delete => &mut self.deletes,
        }
    }
}

/// Where orders are handed in. Clones share them.
#[derive(Clone)]
pub(super) struct Orders {
    desk: Arc<Desk>,
}

struct Desk {
    store: BlockStore,
    peers: Peers,
    /// Shared with `CopyBlock`.
    copies: Arc<Semaphore>,
    stall_timeout: Duration,
    book: Mutex<Book>,
    news: [Notify; 2],
}

impl Orders {
    /// Starts to carry out orders with tasks of `tasks`, and as many copies at once as `max_copies`.
    pub fn start(
        store: BlockStore,
        peers: Peers,
        copies: Arc<Semaphore>,
        max_copies: usize,
        stall_timeout: Duration,
        tasks: &mut JoinSet<()>,
    ) -> Orders {
        let desk = Arc::new(Desk {
            store,
            peers,
            copies,
            stall_timeout,
            book: Mutex::default(),
            news: Default::default(),
        });
        for _ in 0..max_copies {
            tasks.spawn(desk.clone().work(Kind::Copy));
        }
        for _ in 0..DELETERS {
            tasks.spawn(desk.clone().work(Kind::Delete));
        }
        Orders { desk }
    }

    /// Takes the orders of a heartbeat's answer.
    pub fn take(&self, commands: Vec<Command>) {
        let mut dropped = 0;
        for command in commands {
            match read(&command) {
                Ok((block, order)) => {
                    let kind = order.kind();
                    match self.desk.book().add(block, order) {
                        true => self.desk.news(kind).notify_one(),
                        false => dropped += 1,
                    }
                }
                Err(what) => log::warn!("an order of the leader makes no sense: {what}"),
            }
        }
        if dropped > 0 {
            log::debug!("{dropped} orders were dropped: {MAX_WAITING} blocks have orders already");
        }
    }
}

fn read(command: &Command) -> Result<(BlockId, Order), String> {
    let block = command.block_id;
    if !(1..ID_LIMIT).contains(&block) {
        return Err(format!("not a block id: {block}"));
    }
    let order = match Action::try_from(command.action) {
        Ok(Action::DeleteBlock) => Order::Delete,
        Ok(Action::CopyBlock) => match command.targets.first() {
            Some(source) => Order::CopyFrom(source.clone()),
            None => return Err(format!("block {block} is to be copied from nowhere")),
        },
        Err(_) => return Err(format!("action {} is unknown", command.action)),
    };
    Ok((BlockId(block), order))
}

impl Desk {
    fn book(&self) -> MutexGuard<'_, Book> {
        // No change of the book can end half way.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn news(&self, kind: Kind) -> &Notify {
        match kind {
            Kind::Copy => &self.news[0],
            Kind::Delete => &self.news[1],
        }
    }

    /// Carries out one order of a kind after the other.
    async fn work(self: Arc<Self>, kind: Kind) {
        loop {
            let started = self.book().start(kind);
            let Some((block, order)) = started else {
                self.news(kind).notified().await;
                continue;
            };
            // There may be more for the others: one notice wakes one worker.
            self.news(kind).notify_one();
            if let Err(what) = self.carry_out(block, order).await {
                log::debug!("an order of the leader failed, it will come again: {what}");
            }
            self.book().end(block);
            // Whatever waited for this one can run now.
            self.news(Kind::Copy).notify_one();
            self.news(Kind::Delete).notify_one();
        }
    }

    async fn carry_out(&self, block: BlockId, order: Order) -> Result<(), String> {
        match order {
            Order::CopyFrom(source) => {
                let permit = self.copies.acquire().await;
                let _permit = permit.map_err(|closed| closed.to_string())?;
                let copied = fetch::copy(&self.store, &self.peers, block, &source, self.stall_timeout);
                copied.await.map_err(|e| e.to_string())
            }
            Order::Delete => {
                let store = self.store.clone();
                let deleted = tokio::task::spawn_blocking(move || store.delete(block)).await;
                match deleted {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(e)) => Err(e.to_string()),
                    Err(ended) => Err(ended.to_string()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy() -> Order {
        Order::CopyFrom("a:1".to_owned())
    }

    #[test]
    fn an_order_waits_or_runs_once() {
        let mut book = Book::default();
        let block = BlockId(7);
        assert!(book.add(block, copy()) && book.add(block, copy()));
        assert_eq!(book.start(Kind::Copy), Some((block, copy())));
        assert!(book.add(block, copy()));
        assert_eq!(book.start(Kind::Copy), None);
        book.end(block);
        assert_eq!(book.start(Kind::Copy), None);
        assert!(book.pending.is_empty());
    }

    #[test]
    fn a_later_order_replaces_one_that_waits() {
        let mut book = Book::default();
        let block = BlockId(7);
        book.add(block, copy());
        book.add(block, Order::Delete);
        assert_eq!(book.start(Kind::Copy), None);
        assert_eq!(book.start(Kind::Delete), Some((block, Order::Delete)));
    }

    #[test]
    fn a_delete_waits_for_the_copy_that_runs() {
        let mut book = Book::default();
        let block = BlockId(7);
        book.add(block, copy());
        book.start(Kind::Copy).unwrap();
        book.add(block, Order::Delete);
        assert_eq!(book.start(Kind::Delete), None);
        book.end(block);
        assert_eq!(book.start(Kind::Delete), Some((block, Order::Delete)));
        // Wanted after all, and then not: the last word counts.
        book.add(block, copy());
        book.add(block, Order::Delete);
        book.end(block);
        assert_eq!((book.start(Kind::Copy), book.start(Kind::Delete)), (None, None));
        assert!(book.pending.is_empty());
    }

    #[test]
    fn orders_come_in_turn_and_are_bounded() {
        let mut book = Book::default();
        for block in 1..=MAX_WAITING as u64 {
            assert!(book.add(BlockId(block), copy()));
        }
        assert!(!book.add(BlockId(u64::MAX), copy()) && !book.add(BlockId(u64::MAX), Order::Delete));
        assert!(book.add(BlockId(1), copy()));
        for block in 1..=MAX_WAITING as u64 {
            assert_eq!(book.start(Kind::Copy), Some((BlockId(block), copy())));
            book.end(BlockId(block));
        }
        assert!(book.add(BlockId(u64::MAX), copy()));
    }

    #[test]
    fn nonsense_is_named() {
        let command = |action, block_id, targets: &[&str]| Command {
            action,
            block_id,
            targets: targets.iter().map(|&target| target.to_owned()).collect(),
        };
        assert_eq!(read(&command(0, 7, &[])), Ok((BlockId(7), Order::Delete)));
        assert_eq!(read(&command(1, 7, &["a:1", "b:1"])), Ok((BlockId(7), copy())));
        for (command, named) in [
            (command(0, 0, &[]), "block id: 0"),
            (command(1, 7, &[]), "from nowhere"),
            (command(2, 7, &[]), "action 2"),
        ] {
            assert!(read(&command).unwrap_err().contains(named));
        }
    }
}
