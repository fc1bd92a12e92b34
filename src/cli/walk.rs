//! Walking a tree in order, with many directories being read at once.
//!
//! What is emitted is what a plain depth-first walk would emit (a directory, then its subdirectories,
//! each with all that is below it), but the next directories in that order are read ahead. Memory is
//! bounded by the directories between the root and the current one and by what is read ahead.

use std::collections::HashMap;
use std::future::Future;
use std::ops::ControlFlow;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

/// A directory on the stack; its place is given away when its visit starts.
struct Slot<D> {
    id: u64,
    directory: Option<D>,
}

/// Visits `root` and every directory that a visit names, at most `jobs` at a time. A visit returns
/// what to emit and the directories below, in order. `emit` sees the visits in depth-first order and
/// may break the walk off.
///
/// # Errors
/// The first error, in that order, of a visit.
pub(super) async fn in_order<D, T, E, F, Fut>(
    root: D,
    jobs: usize,
    visit: F,
    mut emit: impl FnMut(T) -> ControlFlow<()>,
) -> Result<(), E>
where
    F: Fn(D) -> Fut,
    Fut: Future<Output = Result<(T, Vec<D>), E>>,
{
    let mut stack = vec![Slot {
        id: 0,
        directory: Some(root),
    }];
    let mut ids = 1..;
    let mut running = FuturesUnordered::new();
    let mut finished = HashMap::new();
    let started = |id: u64, directory: D| {
        let visit = visit(directory);
        async move { (id, visit.await) }
    };
    while let Some(next) = stack.last_mut() {
        let id = next.id;
        // The next in order always runs, whatever is being read ahead.
        if let Some(directory) = next.directory.take() {
            running.push(started(id, directory));
        }
        let seen = loop {
            for slot in stack.iter_mut().rev().take(jobs) {
                if running.len() >= jobs {
                    break;
                }
                if let Some(directory) = slot.directory.take() {
                    running.push(started(slot.id, directory));
                }
            }
            if let Some(seen) = finished.remove(&id) {
                break seen;
            }
            if let Some((id, seen)) = running.next().await {
                finished.insert(id, seen);
            }
        };
        stack.pop();
        let (seen, below) = seen?;
        if emit(seen).is_break() {
            return Ok(());
        }
        let below = below.into_iter().zip(&mut ids);
        let below: Vec<_> = below
            .map(|(directory, id)| Slot {
                id,
                directory: Some(directory),
            })
            .collect();
        stack.extend(below.into_iter().rev());
    }
    Ok(())
}
