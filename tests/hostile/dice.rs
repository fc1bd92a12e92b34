//! What is drawn at random.

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

/// One of these.
pub fn one_of<T: Copy>(rng: &mut StdRng, list: &[T]) -> T {
    list[rng.random_range(0..list.len())]
}

/// Up to so many bytes.
pub fn noise(rng: &mut StdRng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..=most)];
    rng.fill_bytes(&mut bytes);
    bytes
}
