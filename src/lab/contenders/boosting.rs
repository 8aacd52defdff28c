//! Grows gradient-boosted trees as XGBoost does with squared errors and histograms (Chen and Guestrin 2016, *XGBoost: A Scalable Tree
//! Boosting System*): the published predictor of times is made of such trees, and no crate at hand has its settings.

use routebalance_core::random::Random;
use routebalance_sim::contender::{DEPTH, Forest, INPUTS_MAX, Inputs, Tree};

/// Bins of an input's histogram (XGBoost's `max_bin`).
const BINS: usize = 256;
/// XGBoost's `lambda`.
const L2: f64 = 1.0;
/// The published seed.
const SEED: u64 = 42;

/// How trees are grown.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Splits from root to leaf, at most [`DEPTH`].
    pub depth: usize,
    /// Part of a tree that is added (`eta`).
    pub rate: f64,
    /// Share of rows and of inputs that a tree sees.
    pub sample: f64,
    /// Rows of a leaf, at least (`min_child_weight` of a squared error).
    pub leaf_rows: f64,
    /// XGBoost's `alpha`.
    pub l1: f64,
    /// Trees, at most.
    pub rounds: usize,
    /// Trees without a better validation error after which no more are grown.
    pub patience: usize,
}

/// Published settings for the time per output token (RouteBalance; PUBLISHED.md, section 4.2).
pub const TPOT: Settings =
    Settings { depth: 6, rate: 0.1, sample: 0.8, leaf_rows: 5.0, l1: 0.0, rounds: 500, patience: 30 };
/// Published settings for the time to the first token.
pub const TTFT: Settings = Settings { depth: 5, rate: 0.08, leaf_rows: 10.0, l1: 0.1, ..TPOT };

/// Inputs and what is to be said of them.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Inputs.
    pub inputs: Vec<Inputs>,
    /// The truth.
    pub targets: Vec<f64>,
}

/// Inputs as numbers of bins.
struct Binned {
    /// Per input, the upper boundaries of all bins but the last; empty for an input that is always the same.
    cuts: Vec<Vec<f32>>,
    /// Per input, the bin of every row.
    bins: Vec<Vec<u8>>,
}

impl Binned {
    fn from_rows(rows: &[Inputs]) -> Binned {
        let column = |i: usize| -> Vec<f32> { rows.iter().map(|row| row[i]).collect() };
        let cuts: Vec<Vec<f32>> = (0..INPUTS_MAX).map(|i| cuts(column(i))).collect();
        let bin = |i: usize, value: f32| cuts[i].partition_point(|cut| *cut < value) as u8;
        let bins = (0..INPUTS_MAX).map(|i| column(i).into_iter().map(|v| bin(i, v)).collect()).collect();
        Binned { cuts, bins }
    }
}

/// Boundaries that leave about equally many values between them.
fn cuts(mut values: Vec<f32>) -> Vec<f32> {
    values.sort_by(f32::total_cmp);
    let mut cuts: Vec<f32> = (1..BINS).map(|k| values[k * (values.len() - 1) / BINS]).collect();
    cuts.dedup();
    // What is at most the greatest value divides nothing off.
    cuts.retain(|cut| values.last().is_some_and(|last| cut < last));
    cuts
}

/// Sum of errors and number of rows.
#[derive(Clone, Copy, Default)]
struct Sum {
    error: f64,
    rows: f64,
}

impl Sum {
    fn without(self, other: Sum) -> Sum {
        Sum { error: self.error - other.error, rows: self.rows - other.rows }
    }

    fn shrunk(self, l1: f64) -> f64 {
        self.error.signum() * (self.error.abs() - l1).max(0.0)
    }

    fn value(self, l1: f64) -> f64 {
        self.shrunk(l1) / (self.rows + L2)
    }

    fn gain(self, l1: f64) -> f64 {
        self.shrunk(l1).powi(2) / (self.rows + L2)
    }
}

/// Trees for the rows, as many as are best for the validation rows.
pub fn grow(rows: &Rows, validation: &Rows, settings: &Settings) -> Forest {
    let mut random = Random::new(SEED);
    let n = rows.targets.len();
    if n == 0 {
        return Forest::default();
    }
    let binned = Binned::from_rows(&rows.inputs);
    let base = (rows.targets.iter().sum::<f64>() / n as f64) as f32;
    let mut forest = Forest { base, trees: Vec::new() };
    let mut said = vec![f64::from(base); n];
    let mut said_of_validation = vec![f64::from(base); validation.targets.len()];
    let mut best = (f64::INFINITY, 0);
    while forest.trees.len() < settings.rounds && forest.trees.len() < best.1 + settings.patience {
        let errors: Vec<f64> = rows.targets.iter().zip(&said).map(|(target, said)| target - said).collect();
        let tree = tree(&binned, &errors, settings, &mut random);
        let alone = Forest { base: 0.0, trees: vec![tree] };
        let add = |said: &mut Vec<f64>, inputs: &[Inputs]| {
            said.iter_mut().zip(inputs).for_each(|(said, inputs)| *said += alone.prediction(inputs));
        };
        add(&mut said, &rows.inputs);
        add(&mut said_of_validation, &validation.inputs);
        forest.trees.extend(alone.trees);
        let squares = validation.targets.iter().zip(&said_of_validation).map(|(t, s)| (t - s).powi(2));
        let loss: f64 = squares.sum();
        if loss < best.0 {
            best = (loss, forest.trees.len());
        }
    }
    forest.trees.truncate(best.1);
    forest
}

fn tree(binned: &Binned, errors: &[f64], settings: &Settings, random: &mut Random) -> Tree {
    let sampled: Vec<usize> = (0..errors.len()).filter(|_| random.uniform() < settings.sample).collect();
    let mut inputs: Vec<usize> = (0..binned.cuts.len()).collect();
    let kept = (settings.sample * inputs.len() as f64).round() as usize;
    while inputs.len() > kept {
        inputs.remove(random.below(inputs.len()));
    }
    inputs.retain(|i| !binned.cuts[*i].is_empty());

    // Without a split, everything goes left.
    let mut tree = Tree::default();
    let mut members: Vec<Vec<usize>> = vec![sampled];
    for level in 0..DEPTH {
        let mut next = Vec::with_capacity(members.len() * 2);
        for (place, rows) in members.into_iter().enumerate() {
            let split =
                if level < settings.depth { best_split(binned, errors, &rows, &inputs, settings) } else { None };
            let Some((input, bin)) = split else {
                next.extend([rows, Vec::new()]);
                continue;
            };
            let split = (1 << level) - 1 + place;
            (tree.inputs[split], tree.thresholds[split]) = (input as u8, binned.cuts[input][bin]);
            let column = &binned.bins[input];
            let (left, right) = rows.into_iter().partition(|row| usize::from(column[*row]) <= bin);
            next.extend([left, right]);
        }
        members = next;
    }
    for (leaf, rows) in tree.leaves.iter_mut().zip(members) {
        let error = rows.iter().map(|row| errors[*row]).sum();
        *leaf = (settings.rate * Sum { error, rows: rows.len() as f64 }.value(settings.l1)) as f32;
    }
    tree
}

/// The input and the last bin that goes left, where that gains something.
fn best_split(
    binned: &Binned,
    errors: &[f64],
    rows: &[usize],
    inputs: &[usize],
    settings: &Settings,
) -> Option<(usize, usize)> {
    let all = Sum { error: rows.iter().map(|row| errors[*row]).sum(), rows: rows.len() as f64 };
    if all.rows < 2.0 * settings.leaf_rows {
        return None;
    }
    let mut best = (all.gain(settings.l1) + 1e-9, None);
    for input in inputs {
        let (cuts, column) = (&binned.cuts[*input], &binned.bins[*input]);
        let mut bins = [Sum::default(); BINS];
        for row in rows {
            let bin = &mut bins[usize::from(column[*row])];
            bin.error += errors[*row];
            bin.rows += 1.0;
        }
        let mut left = Sum::default();
        for (i, bin) in bins.iter().enumerate().take(cuts.len()) {
            left.error += bin.error;
            left.rows += bin.rows;
            let right = all.without(left);
            if left.rows < settings.leaf_rows || right.rows < settings.leaf_rows {
                continue;
            }
            let gain = left.gain(settings.l1) + right.gain(settings.l1);
            if gain > best.0 {
                best = (gain, Some((*input, i)));
            }
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(n: usize, seed: u64, noise: f64) -> Rows {
        let mut random = Random::new(seed);
        let mut row = || {
            let mut inputs = Inputs::default();
            (inputs[0], inputs[1], inputs[2]) = (random.uniform() as f32 * 10.0, random.uniform() as f32, 7.0);
            let truth = f64::from(inputs[0]) * 2.0 + if inputs[1] > 0.5 { 5.0 } else { 0.0 };
            (inputs, truth + noise * random.normal())
        };
        let (inputs, targets) = (0..n).map(|_| row()).unzip();
        Rows { inputs, targets }
    }

    #[test]
    fn trees_learn_a_slope_and_a_step() {
        let (train, validation, test) = (rows(4_000, 1, 0.5), rows(1_000, 2, 0.5), rows(1_000, 3, 0.0));
        for (name, settings) in [("tpot", TPOT), ("ttft", TTFT)] {
            let forest = grow(&train, &validation, &settings);
            let errors = test.inputs.iter().zip(&test.targets).map(|(x, y)| (forest.prediction(x) - y).abs());
            let mae = errors.sum::<f64>() / 1_000.0;
            assert!(mae < 0.25, "{name}: {mae}");
            assert!(forest.trees.len() < settings.rounds, "{name}: stops early, at {}", forest.trees.len());
            assert_eq!(forest, grow(&train, &validation, &settings), "{name}: repeats itself");
        }
    }

    #[test]
    fn the_smallest_cases() {
        let none = Rows::default();
        assert_eq!(grow(&none, &none, &TPOT).prediction(&Inputs::default()), 0.0);
        let few = rows(8, 1, 0.0);
        let mean = few.targets.iter().sum::<f64>() / 8.0;
        let forest = grow(&few, &rows(8, 2, 0.0), &TPOT);
        assert!((forest.prediction(&few.inputs[0]) - mean).abs() < 1.0, "too few rows for a split");
    }
}
