//! Sums of evidence by key: what one worker writes and the others read.

/// One worker's sums of what it has seen of one thing, such as the answers of one model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tally<const N: usize> {
    /// Evidence that this worker has ever added. It only grows; its sum over all workers is the clock of forgetting.
    pub seen: f64,
    /// The clock when `weight` and `sums` were last aged.
    pub as_of: f64,
    /// Evidence that still counts.
    pub weight: f64,
    /// Weighted sums of the values.
    pub sums: [f64; N],
}

impl<const N: usize> Default for Tally<N> {
    fn default() -> Self {
        Tally { seen: 0.0, as_of: 0.0, weight: 0.0, sums: [0.0; N] }
    }
}

impl<const N: usize> Tally<N> {
    /// The tally if its numbers can be those of an honest worker: finite, and no mean beyond `limit`.
    pub fn sound(self, limit: f64) -> Option<Tally<N>> {
        let counts = [self.seen, self.as_of, self.weight];
        let honest = counts.iter().all(|count| count.is_finite() && *count >= 0.0)
            && self.sums.iter().all(|sum| sum.is_finite() && sum.abs() <= limit * self.weight + 1e-3);
        honest.then_some(self)
    }

    /// Weighted mean of a value; 0 without evidence.
    pub fn mean(&self, value: usize) -> f64 {
        let mean = self.sums.get(value).copied().unwrap_or(0.0) / self.weight;
        if mean.is_finite() { mean } else { 0.0 }
    }

    /// Weighted means of all values; 0 without evidence.
    pub fn means(&self) -> [f64; N] {
        self.sums.map(|sum| {
            let mean = sum / self.weight;
            if mean.is_finite() { mean } else { 0.0 }
        })
    }

    /// What is left of its evidence at a later time of the clock. Most tallies are as old as the clock, and cost no exponential.
    fn left_at(&self, clock: f64, memory: f64) -> f64 {
        let age = clock - self.as_of;
        if age > 0.0 { (-age / memory).exp() } else { 1.0 }
    }

    /// Forgets until then.
    pub(super) fn age(&mut self, clock: f64, memory: f64) {
        let left = self.left_at(clock, memory);
        self.weight *= left;
        self.sums.iter_mut().for_each(|sum| *sum *= left);
        self.as_of = clock;
    }

    /// Adds what is left of another worker's evidence at this one's clock.
    pub(super) fn add_aged(&mut self, other: &Tally<N>, memory: f64) {
        let left = other.left_at(self.as_of, memory);
        self.seen += other.seen;
        self.weight += other.weight * left;
        self.sums.iter_mut().zip(other.sums).for_each(|(sum, more)| *sum += more * left);
    }
}

/// Tallies by key. They are few, and every tick goes through all of them: they stand in one row, by their keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tallies<const N: usize>(Vec<(u32, Tally<N>)>);

impl<const N: usize> Tallies<N> {
    /// No tallies.
    pub fn new() -> Tallies<N> {
        Tallies(Vec::new())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn place(&self, key: u32) -> Result<usize, usize> {
        self.0.binary_search_by_key(&key, |(key, _)| *key)
    }

    /// The tally of a key.
    pub fn get(&self, key: u32) -> Option<&Tally<N>> {
        self.0.get(self.place(key).ok()?).map(|(_, tally)| tally)
    }

    /// The tally of a key; one without evidence if there was none.
    pub(super) fn get_or_insert(&mut self, key: u32) -> Option<&mut Tally<N>> {
        let at = self.place(key).unwrap_or_else(|at| {
            self.0.insert(at, (key, Tally::default()));
            at
        });
        self.0.get_mut(at).map(|(_, tally)| tally)
    }

    /// Has this tally of a key from now on.
    pub fn insert(&mut self, key: u32, tally: Tally<N>) {
        if let Some(place) = self.get_or_insert(key) {
            *place = tally;
        }
    }

    /// Has no tally of a key any more.
    pub(super) fn remove(&mut self, key: u32) {
        if let Ok(at) = self.place(key) {
            self.0.remove(at);
        }
    }

    /// Keys and their tallies, by key.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Tally<N>)> {
        self.0.iter().map(|(key, tally)| (*key, tally))
    }

    /// Keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|(key, _)| *key)
    }

    /// Says what others do from now on; visits the keys of which it did not. Where little changes, little is done.
    pub(super) fn follow(&mut self, others: &Tallies<N>, mut changed: impl FnMut(u32)) {
        if !self.keys().eq(others.keys()) {
            self.keys().filter(|key| others.get(*key).is_none()).for_each(&mut changed);
            others.iter().filter(|(key, tally)| self.get(*key) != Some(*tally)).for_each(|(key, _)| changed(key));
            self.0.clone_from(&others.0);
            return;
        }
        for ((key, tally), (_, other)) in self.0.iter_mut().zip(&others.0) {
            if tally != other {
                *tally = *other;
                changed(*key);
            }
        }
    }
}

impl<const N: usize> FromIterator<(u32, Tally<N>)> for Tallies<N> {
    fn from_iter<I: IntoIterator<Item = (u32, Tally<N>)>>(rows: I) -> Tallies<N> {
        let mut tallies = Tallies::new();
        rows.into_iter().for_each(|(key, tally)| tallies.insert(key, tally));
        tallies
    }
}
