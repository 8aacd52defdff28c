//! Sums that forget, added to by several workers and read as one.
//!
//! Forgetting goes by evidence, not by time: with every further piece, what came before weighs less, whichever worker has seen
//! it. A worker that has died therefore fades from the sum at the pace at which the others learn.

pub use super::tallies::{Tallies, Tally};

/// A worker's own tallies and those of the others as it last read them.
#[derive(Clone, Debug, PartialEq)]
pub struct Ledger<const N: usize> {
    /// Evidence after which a share of 1/e is left of what came before.
    memory: f64,
    own: Tallies<N>,
    others: Tallies<N>,
}

impl<const N: usize> Ledger<N> {
    /// An empty ledger that forgets after `memory` pieces of evidence.
    pub fn new(memory: f64) -> Ledger<N> {
        Ledger { memory, own: Tallies::new(), others: Tallies::new() }
    }

    /// What this worker writes for the others.
    pub fn own(&self) -> &Tallies<N> {
        &self.own
    }

    /// Goes on where another worker has stopped: its tallies are this one's from now on, instead of those before.
    pub fn adopt(&mut self, own: Tallies<N>) {
        self.own = own;
    }

    /// Takes what the other workers have written, one item per worker.
    pub fn read(&mut self, others: &[Tallies<N>]) {
        let mut keys: Vec<u32> = others.iter().flat_map(Tallies::keys).chain(self.others.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        self.read_some(others.iter(), keys);
    }

    /// Takes what the other workers have written of some keys; of the rest it is as it was.
    pub fn read_some<'a>(
        &mut self,
        others: impl Iterator<Item = &'a Tallies<N>> + Clone,
        keys: impl IntoIterator<Item = u32>,
    ) {
        for key in keys {
            let rows = others.clone().filter_map(|other| other.get(key));
            // The sum's clock first: all that anybody has seen.
            let own = self.own.get(key).map_or(0.0, |own| own.seen);
            let clock = rows.clone().fold(own, |clock, tally| clock + tally.seen);
            let sum = rows.fold(None, |sum: Option<Tally<N>>, tally| {
                let mut sum = sum.unwrap_or(Tally { as_of: clock, ..Tally::default() });
                sum.add_aged(tally, self.memory);
                Some(sum)
            });
            match sum {
                Some(sum) => self.others.insert(key, sum),
                None => self.others.remove(key),
            }
        }
    }

    /// Adds a piece of evidence to this worker's tally.
    pub fn add(&mut self, key: u32, weight: f64, values: [f64; N]) {
        if !(weight > 0.0 && weight.is_finite() && values.iter().all(|value| value.is_finite())) {
            return;
        }
        let elsewhere = self.others.get(key).map_or(0.0, |tally| tally.seen);
        let Some(tally) = self.own.get_or_insert(key) else { return };
        let clock = tally.seen + weight + elsewhere;
        // Where the others' evidence has shrunk (a record was lost), the clock has gone back: this piece still ages the rest.
        tally.as_of = tally.as_of.min(clock - weight);
        tally.age(clock, self.memory);
        tally.seen += weight;
        tally.weight += weight;
        tally.sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
    }

    /// All workers' evidence of a key.
    pub fn combined(&self, key: u32) -> Tally<N> {
        let rows = || [&self.own, &self.others].into_iter().filter_map(|tallies| tallies.get(key));
        let clock = rows().fold(0.0, |clock, tally| clock + tally.seen);
        let mut sum = Tally { as_of: clock, ..Tally::default() };
        rows().for_each(|tally| sum.add_aged(tally, self.memory));
        sum
    }

    /// Keys that any worker has evidence of, in order, each once.
    pub fn keys(&self) -> Vec<u32> {
        let mut keys: Vec<u32> = self.own.keys().chain(self.others.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const MEMORY: f64 = 50.0;

    fn close(a: f64, b: f64, tolerance: f64) -> bool {
        (a - b).abs() <= tolerance
    }

    #[test]
    fn old_evidence_gives_way_and_the_weight_is_bounded() {
        let mut ledger = Ledger::<1>::new(MEMORY);
        (0..1_000).for_each(|_| ledger.add(7, 1.0, [1.0]));
        let before = ledger.combined(7);
        assert!(close(before.mean(0), 1.0, 1e-9) && before.weight <= MEMORY + 1.0, "{before:?}");
        (0..200).for_each(|_| ledger.add(7, 1.0, [0.0]));
        assert!(ledger.combined(7).mean(0) < 0.02, "e^-4 is left: {:?}", ledger.combined(7));
        assert_eq!(ledger.combined(8), Tally::default());
    }

    #[test]
    fn what_is_no_evidence_changes_nothing() {
        let mut ledger = Ledger::<1>::new(MEMORY);
        ledger.add(1, 1.0, [0.5]);
        let before = ledger.clone();
        for (weight, value) in [(0.0, 1.0), (-1.0, 1.0), (f64::NAN, 1.0), (f64::INFINITY, 1.0), (1.0, f64::NAN)] {
            ledger.add(1, weight, [value]);
            assert_eq!(ledger, before, "{weight} {value}");
        }
    }

    /// Workers that read each other now and then know what one that sees everything knows.
    #[test]
    fn workers_together_know_what_one_would() {
        for workers in [2, 5] {
            for period in [1, 20] {
                let mut one = Ledger::<1>::new(MEMORY);
                let mut many = vec![Ledger::<1>::new(MEMORY); workers];
                for i in 0..600 {
                    let value = f64::from(u8::from(i > 400)) + f64::from(i % 7) / 10.0;
                    one.add(0, 1.0, [value]);
                    // Shares of the traffic differ.
                    let worker = (i as usize * i as usize) % workers;
                    many[worker].add(0, 1.0, [value]);
                    if i % period == 0 {
                        exchange(&mut many);
                    }
                }
                exchange(&mut many);
                for ledger in &many {
                    let (own, all) = (ledger.combined(0), one.combined(0));
                    assert!(close(own.mean(0), all.mean(0), 0.03), "{workers} every {period}: {own:?} {all:?}");
                    assert!(
                        close(own.weight, all.weight, 0.25 * all.weight),
                        "{workers} every {period}: {own:?} {all:?}"
                    );
                }
            }
        }
    }

    fn exchange(ledgers: &mut [Ledger<1>]) {
        let records: Vec<Tallies<1>> = ledgers.iter().map(|l| l.own().clone()).collect();
        for (i, ledger) in ledgers.iter_mut().enumerate() {
            let others: Vec<_> = records.iter().enumerate().filter(|(k, _)| *k != i).map(|(_, r)| r.clone()).collect();
            ledger.read(&others);
        }
    }

    #[test]
    fn a_dead_workers_record_fades_and_its_heir_goes_on() {
        let mut dead = Ledger::<1>::new(MEMORY);
        (0..500).for_each(|_| dead.add(0, 1.0, [1.0]));
        let mut alive = Ledger::<1>::new(MEMORY);
        alive.read(&[dead.own().clone()]);
        assert!(close(alive.combined(0).mean(0), 1.0, 1e-9), "what it knew is known");
        (0..200).for_each(|_| alive.add(0, 1.0, [0.0]));
        assert!(alive.combined(0).mean(0) < 0.03, "and forgotten as others learn: {:?}", alive.combined(0));
        let mut heir = Ledger::<1>::new(MEMORY);
        heir.adopt(dead.own().clone());
        heir.add(0, 1.0, [0.0]);
        assert_eq!(heir.combined(0).seen, 501.0);
    }

    #[test]
    fn a_clock_that_goes_back_stops_no_forgetting() {
        let mut ledger = Ledger::<1>::new(MEMORY);
        ledger.read(&[Tallies::from_iter([(0, Tally { seen: 1e9, as_of: 1e9, weight: 0.0, sums: [0.0] })])]);
        ledger.add(0, 1.0, [1.0]);
        ledger.read(&[]);
        (0..1_000).for_each(|_| ledger.add(0, 1.0, [0.0]));
        let tally = ledger.combined(0);
        assert!(tally.weight <= MEMORY + 1.0 && tally.mean(0) < 0.01, "{tally:?}");
    }

    #[test]
    fn only_possible_numbers_are_sound() {
        let good = Tally { seen: 10.0, as_of: 9.0, weight: 5.0, sums: [-10.0] };
        assert_eq!(good.sound(2.0), Some(good));
        let bad = [
            Tally { seen: f64::NAN, ..good },
            Tally { as_of: f64::INFINITY, ..good },
            Tally { weight: -1.0, ..good },
            Tally { sums: [11.0], ..good },
            Tally { sums: [f64::NAN], ..good },
        ];
        for tally in bad {
            assert_eq!(tally.sound(2.0), None, "{tally:?}");
        }
    }
}
