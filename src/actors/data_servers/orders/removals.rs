//! One plan's replicas to remove, by DataServer.
//!
//! Invariant: a removal goes out only to a DataServer whose newest report shows the block, and not
//! twice within [`PAUSE`] unless a newer plan asks for it again. What a report does not show any more
//! is forgotten.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Live;
use crate::actors::data_servers::messages::Removal;
use crate::domain::ids::{BlockId, ServerId};

/// Removals in one answer at most.
pub const MAX_PER_ANSWER: usize = 1_000;

/// Removals that wait at most, of one plan. Those beyond are found again by a later one.
pub const MAX_WAITING: usize = 50_000;

/// How long a DataServer may take to show that it has removed a block.
pub const PAUSE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, Default)]
struct Order {
    /// It was handed out once.
    told: bool,
    /// It is not handed out again before.
    not_before: Option<Instant>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Removals(BTreeMap<ServerId, BTreeMap<BlockId, Order>>);

impl Removals {
    /// Takes a new plan in place of the last one.
    pub fn replace(&mut self, plan: Vec<Removal>) {
        let last = std::mem::take(self);
        for Removal { server, block } in plan.into_iter().take(MAX_WAITING) {
            let order = Order {
                told: last.handed_out(server, block),
                not_before: None,
            };
            self.0.entry(server).or_default().insert(block, order);
        }
    }

    /// Forgets one.
    pub fn drop_one(&mut self, server: ServerId, block: BlockId) {
        if let Some(orders) = self.0.get_mut(&server) {
            orders.remove(&block);
        }
    }

    /// Whether it was handed out and is still of interest.
    pub fn handed_out(&self, server: ServerId, block: BlockId) -> bool {
        let order = self.0.get(&server).and_then(|orders| orders.get(&block));
        order.is_some_and(|order| order.told)
    }

    /// Whether a DataServer has anything to remove.
    pub fn any_for(&self, server: ServerId) -> bool {
        self.0.get(&server).is_some_and(|orders| !orders.is_empty())
    }

    /// What a DataServer is to remove now, at most `limit`.
    pub fn hand_out(&mut self, server: ServerId, live: &Live, limit: usize, now: Instant) -> Vec<BlockId> {
        let mut handed_out = Vec::new();
        let Some(orders) = self.0.get_mut(&server) else {
            return handed_out;
        };
        orders.retain(|&block, order| {
            if handed_out.len() == limit {
                return true;
            }
            if !live.shows(block) {
                return false;
            }
            if order.not_before.is_none_or(|due| due <= now) {
                handed_out.push(block);
                *order = Order {
                    told: true,
                    not_before: Some(now + PAUSE),
                };
            }
            true
        });
        handed_out
    }

    /// How many were not handed out yet.
    pub fn waiting(&self) -> usize {
        let orders = self.0.values().flat_map(BTreeMap::values);
        orders.filter(|order| !order.told).count()
    }
}
