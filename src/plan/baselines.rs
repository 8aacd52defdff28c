//! Simple rules to choose a setup by, which the best setup is compared with (RouterWise; PUBLISHED.md, section 19.1).

use super::placement::isolated;
use super::problem::Problem;
use super::setup::{Choice, GPU_PERCENT, Setup};

#[cfg(test)]
mod tests;

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// Every model gets as much compute as the others.
    EqualSplit,
    /// Every model gets compute in proportion to its weights.
    SizeProportional,
    /// Every shard has a GPU of its own, and models get GPUs in proportion to their weights.
    Isolated,
}

impl Baseline {
    /// All rules.
    pub const ALL: [Baseline; 3] = [Baseline::EqualSplit, Baseline::SizeProportional, Baseline::Isolated];

    /// Its name for people and in results.
    pub fn name(self) -> &'static str {
        match self {
            Baseline::EqualSplit => "equal-split",
            Baseline::SizeProportional => "size-proportional",
            Baseline::Isolated => "isolated",
        }
    }

    /// The compute that each model should get, in GPUs; all GPUs together.
    pub fn targets(self, problem: &Problem) -> Vec<f64> {
        let size = |weights_gb: f64| if self == Baseline::EqualSplit { 1.0 } else { weights_gb };
        let gpus: usize = problem.kinds.iter().map(|kind| kind.count).sum();
        let all: f64 = problem.models.iter().map(|model| size(model.weights_gb)).sum();
        problem.models.iter().map(|model| gpus as f64 * size(model.weights_gb) / all).collect()
    }

    /// The setups that the rule may choose among, closest to its targets first, as indices of those given.
    ///
    /// The paper leaves the distance open: here it is Euclidean, over the compute per model in GPUs. Of setups at one distance those
    /// with fewer shards come first, then those given first. [`Baseline::Isolated`] leaves out setups that need more GPUs than there
    /// are; place the others with [`isolated`].
    pub fn ranked(self, problem: &Problem, setups: &[Setup]) -> Vec<Ranked> {
        let targets = self.targets(problem);
        let may_choose = |setup: &Setup| self != Baseline::Isolated || isolated(problem, setup).is_some();
        let rank = |(index, setup): (usize, &Setup)| Ranked { index, distance: distance(setup, &targets) };
        let mut ranked: Vec<Ranked> =
            setups.iter().enumerate().filter(|(_, setup)| may_choose(setup)).map(rank).collect();
        let shards = |ranked: &Ranked| setups.get(ranked.index).map_or(0, shards);
        ranked.sort_by(|a, b| a.distance.total_cmp(&b.distance).then_with(|| shards(a).cmp(&shards(b))));
        ranked
    }
}

/// A setup that a rule may choose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// Which of the setups given.
    pub index: usize,
    /// From the rule's targets, in GPUs, to the millionth: sums of the same numbers in another order are the same distance.
    pub distance: f64,
}

fn distance(setup: &Setup, targets: &[f64]) -> f64 {
    let away =
        |(choice, target): (&Choice, &f64)| f64::from(choice.compute_percent()) / f64::from(GPU_PERCENT) - target;
    let squares: f64 = setup.0.iter().zip(targets).map(|pair| away(pair).powi(2)).sum();
    (squares.sqrt() * 1e6).round() / 1e6
}

fn shards(setup: &Setup) -> u32 {
    setup.0.iter().fold(0, |sum, choice| sum.saturating_add(choice.tensor_parallel.saturating_mul(choice.replicas)))
}
