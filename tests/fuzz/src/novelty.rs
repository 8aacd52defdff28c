//! What an execution has reached, so that inputs which reach something new are kept without a compiler's help.

use std::cell::RefCell;
use std::hash::{Hash, Hasher};

/// Things that are told apart.
const SIZE: usize = 1 << 16;

/// Which things were reached.
#[derive(Clone)]
pub struct Reached(Vec<u64>);

impl Default for Reached {
    fn default() -> Reached {
        Reached(vec![0; SIZE / 64])
    }
}

impl Reached {
    /// Adds something; whether it is new.
    fn add(&mut self, thing: usize) -> bool {
        let bit = 1 << (thing % 64);
        let word = &mut self.0[thing / 64 % (SIZE / 64)];
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Adds many; whether any is new.
    pub fn add_all(&mut self, things: &[usize]) -> bool {
        things.iter().fold(false, |is_new, thing| self.add(*thing) | is_new)
    }

    /// How many were reached.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

thread_local! {
    static SEEN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// FNV-1a, which costs less than what is noted.
struct Quick(u64);

impl Hasher for Quick {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Notes that the execution has reached something.
pub fn see(thing: impl Hash) {
    let mut hasher = Quick(0xcbf2_9ce4_8422_2325);
    thing.hash(&mut hasher);
    SEEN.with_borrow_mut(|seen| {
        if seen.len() < 4_096 {
            seen.push((hasher.finish() ^ (hasher.finish() >> 32)) as usize % SIZE);
        }
    });
}

/// What the execution has reached since this was asked last.
pub fn take() -> Vec<usize> {
    SEEN.take()
}

thread_local! {
    static TELLS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// From now on, what happens is told on standard error.
pub fn tell_all() {
    TELLS.set(true);
}

/// Tells what happens, where somebody wants to know.
pub fn tell(what: impl FnOnce() -> String) {
    if TELLS.get() {
        eprintln!("{}", what());
    }
}

/// A number as its order of magnitude: few numbers are told apart.
pub fn magnitude(number: u64) -> u32 {
    u64::BITS - number.leading_zeros()
}
