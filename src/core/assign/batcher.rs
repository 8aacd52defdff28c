//! Requests that wait for each other.

use std::collections::VecDeque;
use std::time::Duration;

use crate::fleet::{BatchSizing, Batching};

/// How long an arrival counts in the recent rate: twice the longest published window.
const MEMORY: Duration = Duration::from_millis(400);

/// Size and window before anything is known of the load, as published.
const INITIAL: (usize, Duration) = (8, Duration::from_millis(100));

/// Published sizes and windows: below which share of queueing instances they hold.
const PUBLISHED: [(f64, usize, Duration); 3] = [
    (0.3, 4, Duration::from_millis(50)),
    (0.7, 16, Duration::from_millis(100)),
    (f64::INFINITY, 32, Duration::from_millis(200)),
];

/// A request that waits.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting<T> {
    /// By which it is found again.
    pub id: u32,
    /// Since when it waits.
    pub arrived: Duration,
    /// What is needed to decide it.
    pub request: T,
}

/// The requests of one policy that wait in one worker, in the order of arrival.
///
/// A worker sees only its share of the gateway's requests, so the size of a batch is divided by the number of workers. With
/// adaptive batches nobody waits in vain: if at the worker's own recent rate fewer than one more request would join within the
/// window, the batch is complete. Fixed ones wait, as published.
#[derive(Clone, Debug)]
pub struct Batcher<T> {
    batching: Batching,
    size: usize,
    window: Duration,
    waiting: VecDeque<Waiting<T>>,
    /// The last arrival, and how many there were before it, each counting less the longer ago it was.
    last_arrival: Option<(Duration, f64)>,
}

impl<T> Batcher<T> {
    /// A batcher where nobody waits.
    pub fn new(batching: Batching) -> Batcher<T> {
        let (size, window) = first_batch(&batching);
        Batcher { batching, size, window, waiting: VecDeque::new(), last_arrival: None }
    }

    /// A request begins to wait.
    pub fn push(&mut self, id: u32, now: Duration, request: T) {
        self.last_arrival = Some(match self.last_arrival {
            None => (now, 0.0),
            Some((at, before)) => (now, (before + 1.0) * fading(now.saturating_sub(at))),
        });
        self.waiting.push_back(Waiting { id, arrived: now, request });
    }

    /// A request does not wait any more: its client has gone.
    pub fn remove(&mut self, id: u32) -> Option<T> {
        let at = self.waiting.iter().position(|w| w.id == id)?;
        Some(self.waiting.remove(at)?.request)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// All that wait, oldest first.
    pub fn into_waiting(self) -> VecDeque<Waiting<T>> {
        self.waiting
    }

    /// Whether a batch is complete in a gateway of so many workers, given that the next look will be at `next_look`.
    pub fn due(&self, now: Duration, next_look: Duration, workers: usize) -> bool {
        let Some(first) = self.waiting.front() else { return false };
        let Some(waited) = now.checked_sub(first.arrived) else {
            // The clock was set back: how long it has waited is unknown.
            return true;
        };
        self.waiting.len() >= self.share(workers)
            || waited >= self.window
            || next_look.saturating_sub(first.arrived) > self.batching.max_wait
            || (self.batching.sizing == BatchSizing::Adaptive && self.expected_arrivals(now) < 1.0)
    }

    /// The next batch, oldest first.
    pub fn take(&mut self, workers: usize) -> Vec<Waiting<T>> {
        let size = self.share(workers).min(self.waiting.len());
        self.waiting.drain(..size).collect()
    }

    /// Chooses the size and the window of the next batches by the share of instances where requests queue, if they are adaptive.
    pub fn adapt(&mut self, queueing_share: f64) {
        (self.size, self.window) = next_batch(&self.batching, queueing_share, (self.size, self.window));
    }

    /// A worker's share of a batch.
    fn share(&self, workers: usize) -> usize {
        self.size.div_ceil(workers.max(1)).max(1)
    }

    /// How many requests would join within a window.
    fn expected_arrivals(&self, now: Duration) -> f64 {
        self.last_arrival.map_or(0.0, |(at, before)| {
            before * fading(now.saturating_sub(at)) * self.window.as_secs_f64() / MEMORY.as_secs_f64()
        })
    }
}

/// Size and window of the first batch.
pub fn first_batch(batching: &Batching) -> (usize, Duration) {
    match batching.sizing {
        BatchSizing::Adaptive => INITIAL,
        BatchSizing::Fixed { size, window } => (size, window),
    }
}

/// Size and window of the next batch, after one of these.
pub fn next_batch(batching: &Batching, queueing_share: f64, last: (usize, Duration)) -> (usize, Duration) {
    let row = PUBLISHED.iter().find(|(below, ..)| queueing_share < *below);
    match (batching.sizing, row) {
        (BatchSizing::Adaptive, Some((_, size, window))) => (*size, *window),
        _ => last,
    }
}

/// What is left of an arrival's weight.
fn fading(age: Duration) -> f64 {
    (-age.as_secs_f64() / MEMORY.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn fixed(size: usize, window: u64, max_wait: u64) -> Batcher<()> {
        let sizing = BatchSizing::Fixed { size, window: ms(window) };
        Batcher::new(Batching { sizing, max_wait: ms(max_wait) })
    }

    fn adaptive(max_wait: u64) -> Batcher<()> {
        Batcher::new(Batching { sizing: BatchSizing::Adaptive, max_wait: ms(max_wait) })
    }

    #[test]
    fn a_batch_is_complete_when_it_is_full_or_old() {
        type Row = (&'static str, Batcher<()>, usize, &'static [u64], u64, bool);
        // Times in ms; the next look is 5 ms later.
        let rows: [Row; 10] = [
            ("nobody waits", fixed(1, 1, 1), 1, &[], 500, false),
            ("full", fixed(2, 100, 200), 1, &[0, 1], 1, true),
            ("not full", fixed(3, 100, 200), 1, &[0, 1], 1, false),
            ("a worker's share is full", fixed(3, 100, 200), 2, &[0, 1], 1, true),
            ("more workers than places", fixed(3, 100, 200), 9, &[0], 0, true),
            ("within the window", fixed(3, 100, 200), 1, &[7], 106, false),
            ("the window is over", fixed(3, 100, 200), 1, &[7, 100], 107, true),
            ("the next look is in time", fixed(3, 900, 200), 1, &[7], 202, false),
            ("the next look would be too late", fixed(3, 900, 200), 1, &[7], 203, true),
            ("the clock was set back", fixed(3, 900, 200), 1, &[7], 6, true),
        ];
        for (name, mut batcher, workers, arrivals, now, expected) in rows {
            for (id, at) in arrivals.iter().enumerate() {
                batcher.push(id as u32, ms(*at), ());
            }
            assert_eq!(batcher.due(ms(now), ms(now + 5), workers), expected, "{name}");
        }
    }

    #[test]
    fn sizes_and_windows_are_the_published_ones() {
        let mut batcher = adaptive(1_000);
        assert_eq!((batcher.size, batcher.window), (8, ms(100)));
        for (share, size, window) in
            [(0.0, 4, 50), (0.29, 4, 50), (0.3, 16, 100), (0.69, 16, 100), (0.7, 32, 200), (1.0, 32, 200)]
        {
            batcher.adapt(share);
            assert_eq!((batcher.size, batcher.window), (size, ms(window)), "{share}");
            batcher.adapt(f64::NAN);
            assert_eq!((batcher.size, batcher.window), (size, ms(window)), "NaN changes nothing");
        }
        let mut unchanged = fixed(5, 10, 100);
        unchanged.adapt(1.0);
        assert_eq!((unchanged.size, unchanged.window), (5, ms(10)));
    }

    /// One request every so many milliseconds; how many of the last hundred did not leave at once.
    fn held(every: u64) -> usize {
        let mut batcher = adaptive(1_000);
        batcher.adapt(0.0);
        let mut held = 0;
        for i in 0..200 {
            let now = ms(every * i);
            batcher.push(i as u32, now, ());
            if batcher.due(now, now + ms(5), 1) {
                batcher.take(1);
            } else if i >= 100 {
                held += 1;
            }
        }
        held
    }

    #[test]
    fn nobody_waits_for_those_who_do_not_come() {
        // The window is 50 ms and the batch 4. Where others come often enough, a third one ends the window or a fourth the batch.
        for (every, expected) in [(1_000, 0), (100, 0), (60, 0), (40, 67), (10, 75)] {
            assert_eq!(held(every), expected, "one request every {every} ms");
        }
        let mut batcher = adaptive(1_000);
        for i in 0..20 {
            batcher.push(i, ms(u64::from(i)), ());
        }
        while batcher.take(1).len() == 8 {}
        batcher.push(20, ms(20), ());
        assert!(!batcher.due(ms(20), ms(25), 1), "after a burst");
        batcher.remove(20);
        batcher.push(21, ms(2_000), ());
        assert!(batcher.due(ms(2_000), ms(2_005), 1), "long after a burst");
    }

    /// Whatever comes and goes: everybody leaves once, in order, in batches of the right size, and nobody waits beyond the cap.
    #[test]
    fn everybody_leaves_once_and_in_time() {
        let mut seed = 11u64;
        let mut random = move |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        for round in 0..400 {
            let (size, window, cap) = (1 + random(40) as usize, 1 + random(300), 5 + random(200));
            let workers = 1 + random(4) as usize;
            let mut batcher = if round % 2 == 0 { fixed(size, window, cap) } else { adaptive(cap) };
            let mut inside = BTreeSet::new();
            let (mut pushed, mut left, mut removed) = (0u32, 0, 0);
            for tick in 0..200u64 {
                let now = ms(1_000 + 5 * tick);
                for _ in 0..random(4) * random(2) {
                    batcher.push(pushed, now, ());
                    inside.insert(pushed);
                    pushed += 1;
                }
                if random(4) == 0 {
                    let id = random(u64::from(pushed) + 2) as u32;
                    let was_inside = inside.remove(&id);
                    assert_eq!(batcher.remove(id).is_some(), was_inside, "who has left cannot leave again");
                    removed += usize::from(was_inside);
                }
                while batcher.due(now, now + ms(5), workers) {
                    let batch = batcher.take(workers);
                    assert!(!batch.is_empty() && batch.len() <= batcher.share(workers));
                    for waiting in batch {
                        assert_eq!(inside.pop_first(), Some(waiting.id), "in the order of arrival");
                        assert!(now - waiting.arrived <= ms(cap), "{:?} of {cap} ms", now - waiting.arrived);
                        left += 1;
                    }
                }
                batcher.adapt(random(100) as f64 / 100.0);
            }
            assert_eq!(pushed as usize, left + removed + inside.len());
            assert_eq!(batcher.waiting.len(), inside.len());
        }
    }
}
