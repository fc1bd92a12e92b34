//! What is in one file of a disk that may lose its power: what was flushed, and what was only written.
//!
//! Of what was only written, any part may be left: of each sector there is the old content or a newer one, and
//! the length is the old one or a newer one, independently of that.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::rngs::StdRng;

const SECTOR: usize = 512;

/// What is left of the writes and names that were not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unflushed {
    /// Nothing.
    Lost,
    /// Any part.
    Random,
}

/// What is in a file.
#[derive(Default)]
pub struct Bytes {
    durable: Vec<u8>,
    pending: Vec<Change>,
}

/// Something that was done to it.
pub enum Change {
    /// Bytes from an offset on.
    Write { at: usize, bytes: Vec<u8> },
    /// Another length.
    Resize { to: usize },
}

impl Bytes {
    /// Something is written, and not flushed.
    pub fn change(&mut self, change: Change) {
        self.pending.push(change);
    }

    /// All of it is durable from now on.
    pub fn flush(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            change.apply(&mut self.durable);
        }
    }

    /// What a process reads.
    pub fn now(&self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        self.pending.iter().for_each(|change| change.apply(&mut bytes));
        bytes
    }

    /// What may be read after a loss of power.
    pub fn left(&self, unflushed: Unflushed, random: &mut StdRng) -> Vec<u8> {
        match unflushed {
            Unflushed::Lost => self.durable.clone(),
            Unflushed::Random if random.random_bool(0.5) => self.left_in_order(random),
            Unflushed::Random => self.left_anyhow(random),
        }
    }

    /// The changes up to one of them, and the first sectors of that one.
    fn left_in_order(&self, random: &mut StdRng) -> Vec<u8> {
        let reached = random.random_range(0..=self.pending.len());
        let mut bytes = self.durable.clone();
        for change in &self.pending[..reached] {
            change.apply(&mut bytes);
        }
        if let Some(Change::Write { at, bytes: written }) = self.pending.get(reached) {
            let sectors = random.random_range(at / SECTOR..=(at + written.len()) / SECTOR);
            let length = (sectors * SECTOR).saturating_sub(*at).min(written.len());
            if length > 0 {
                let torn = Change::Write {
                    at: *at,
                    bytes: written[..length].to_vec(),
                };
                torn.apply(&mut bytes);
            }
        }
        bytes
    }

    /// Of each sector some version, and some version of the length.
    fn left_anyhow(&self, random: &mut StdRng) -> Vec<u8> {
        let mut length = self.durable.len();
        let reached = random.random_range(0..=self.pending.len());
        let mut touched: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut longest = length;
        for (n, change) in self.pending.iter().enumerate() {
            let (from, to) = match change {
                Change::Write { at, bytes } => (*at, at + bytes.len()),
                Change::Resize { to } => (*to, longest.max(*to)),
            };
            longest = longest.max(to);
            if n < reached {
                length = match change {
                    Change::Write { .. } => length.max(to),
                    Change::Resize { to } => *to,
                };
            }
            for sector in from / SECTOR..to.div_ceil(SECTOR) {
                touched.entry(sector).or_default().push(n);
            }
        }
        let mut bytes = self.durable.clone();
        bytes.resize(longest, 0);
        let written = [0.3, 0.7, 0.95][random.random_range(0..3)];
        for (sector, changes) in touched {
            let version = match random.random_bool(written) {
                true => changes.len(),
                false => random.random_range(0..=changes.len()),
            };
            let (from, to) = (sector * SECTOR, longest.min((sector + 1) * SECTOR));
            for n in &changes[..version] {
                self.pending[*n].apply_within(&mut bytes, from, to);
            }
        }
        bytes.resize(length, 0);
        bytes
    }
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Change::Write { at, bytes } => {
                if to.len() < at + bytes.len() {
                    to.resize(at + bytes.len(), 0);
                }
                to[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Change::Resize { to: length } => to.resize(*length, 0),
        }
    }

    /// To this range only, without changing the length.
    fn apply_within(&self, to: &mut [u8], from: usize, until: usize) {
        match self {
            Change::Write { at, bytes } => {
                let (begin, end) = (from.max(*at), until.min(at + bytes.len()));
                if begin < end {
                    to[begin..end].copy_from_slice(&bytes[begin - at..end - at]);
                }
            }
            Change::Resize { to: length } => to[from.max(*length).min(until)..until].fill(0),
        }
    }
}

#[test]
fn what_is_flushed_stays_and_of_the_rest_any_part() {
    use std::collections::BTreeSet;

    use rand::SeedableRng;

    let write = |at, byte: u8, length| Change::Write {
        at,
        bytes: vec![byte; length],
    };
    let file = Bytes {
        durable: vec![1; 700],
        pending: vec![write(700, 2, 100), write(800, 3, 1000)],
    };
    let mut random = StdRng::seed_from_u64(1);
    assert_eq!(file.left(Unflushed::Lost, &mut random), [1; 700]);
    let left: BTreeSet<Vec<u8>> = (0..2000)
        .map(|_| file.left(Unflushed::Random, &mut random))
        .collect();
    for bytes in &left {
        assert_eq!(&bytes[..700], [1; 700]);
        for (at, byte) in bytes.iter().enumerate().skip(700) {
            let written = if at < 800 { 2 } else { 3 };
            // In the sector of a byte that is there, everything before it is there.
            assert!(*byte == written || *byte == 0, "{byte} at {at}");
            assert!(*byte == 0 || bytes[at / SECTOR * SECTOR..at].iter().all(|byte| *byte != 0));
        }
    }
    let lengths: BTreeSet<usize> = left.iter().map(Vec::len).collect();
    assert_eq!(lengths, [700, 800, 1024, 1536, 1800].into());
    // Some have a hole, and something after it.
    let torn = |bytes: &Vec<u8>| bytes.last() == Some(&3) && bytes.contains(&0);
    assert!(left.iter().any(torn));
    let mut shrunk = Bytes {
        durable: vec![1; 2000],
        pending: vec![Change::Resize { to: 600 }],
    };
    shrunk.pending.push(write(600, 2, 900));
    assert_eq!(shrunk.now().len(), 1500);
    for _ in 0..500 {
        let bytes = shrunk.left(Unflushed::Random, &mut random);
        assert_eq!(&bytes[..600], [1; 600]);
        assert!([600, 1024, 1500, 2000].contains(&bytes.len()), "{}", bytes.len());
    }
}
