//! Waiting for facts: a test asks again and again, with a bound, and never takes a length of time
//! for a fact.

use std::time::{Duration, Instant};

/// Asks `fact` until it gives something. Panics with `what` when `bound` has passed.
pub async fn until<T>(what: &str, bound: Duration, mut fact: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = fact().await {
            return found;
        }
        assert!(begun.elapsed() < bound, "not within {bound:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
