//! How shards on one GPU slow each other down.
//!
//! A stated model, for want of measurements (RouterWise has none: its curves are of models on their own). Caps bound what a shard
//! may use, they reserve nothing; so while shards are at work together
//! - each slows the others' use of memory and caches by `interference` times its cap, and
//! - where the caps of those at work come to more than the GPU, all get their share of it and no more.
//!
//! A copy is as slow as its slowest shard: `(1 + interference * sum_j cap_j busy_j) * E[max(1, cap + sum_j cap_j at work)]`, over the
//! shards `j` of other copies on the GPU, which are at work with probability `busy_j`, independently of each other.

use std::collections::BTreeSet;

use super::problem::Problem;
use super::setup::{GPU_PERCENT, Placement, Setup};

#[cfg(test)]
mod tests;

/// A placement's companies: what shares GPUs with what. Made once, asked for many loads.
#[derive(Clone, Debug, PartialEq)]
pub struct Interference {
    /// `None` if nothing slows anything down.
    strength: Option<f64>,
    /// Cap of each model's shards, percent.
    caps: Vec<u32>,
    /// By model: every company that one of its shards has, as the models of the others, in order.
    companies: Vec<BTreeSet<Vec<usize>>>,
}

impl Interference {
    /// Of a placement of the setup.
    pub fn new(problem: &Problem, setup: &Setup, placement: &Placement) -> Interference {
        let gpus: usize = problem.kinds.iter().map(|kind| kind.count).sum();
        let mut on_gpu: Vec<Vec<usize>> = vec![vec![]; gpus];
        for (model, copies) in placement.gpus.iter().enumerate() {
            for gpu in copies.iter().flatten() {
                if let Some(models) = on_gpu.get_mut(*gpu) {
                    models.push(model);
                }
            }
        }
        let mut companies = vec![BTreeSet::new(); setup.0.len()];
        for models in &on_gpu {
            for (at, model) in models.iter().enumerate() {
                let others = models.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, model)| *model);
                if let Some(companies) = companies.get_mut(*model) {
                    companies.insert(others.collect());
                }
            }
        }
        let caps = setup.0.iter().map(|choice| choice.share_percent).collect();
        Interference { strength: problem.space.interference, caps, companies }
    }

    /// By how much each model's slowest copy takes longer than on its own, 1 or more, where each model's copies have work for this
    /// share of the time (one of 0 to 1 per model). 1 for a model that is not deployed.
    pub fn slow_downs(&self, busy: &[f64]) -> Vec<f64> {
        let slowest = |(model, companies): (usize, &BTreeSet<Vec<usize>>)| {
            companies.iter().map(|company| self.slow_down(model, company, busy)).fold(1.0, f64::max)
        };
        self.companies.iter().enumerate().map(slowest).collect()
    }

    fn slow_down(&self, model: usize, company: &[usize], busy: &[f64]) -> f64 {
        let Some(strength) = self.strength else { return 1.0 };
        let cap = |model: usize| self.caps.get(model).copied().unwrap_or(0);
        // Nothing known of a load is taken for a full one.
        let load =
            |model: usize| busy.get(model).filter(|load| !load.is_nan()).map_or(1.0, |load| load.clamp(0.0, 1.0));
        let company: Vec<(u32, f64)> = company.iter().map(|model| (cap(*model), load(*model))).collect();
        let at_work: f64 =
            company.iter().map(|(cap, load)| f64::from(*cap) * load).sum::<f64>() / f64::from(GPU_PERCENT);
        (1.0 + strength * at_work) * oversubscription(cap(model), &company)
    }
}

/// `E[max(1, caps at work)]`, the cap itself and those of the company that are at work with these probabilities. Exact: sums of caps
/// are whole percents, and of those beyond the GPU only the mean matters.
fn oversubscription(cap: u32, company: &[(u32, f64)]) -> f64 {
    let all = company.iter().fold(cap, |sum, (cap, _)| sum.saturating_add(*cap));
    if all <= GPU_PERCENT {
        return 1.0;
    }
    let room = GPU_PERCENT.saturating_sub(cap) as usize;
    // By sum of the company's caps at work, up to the room: its probability.
    let mut sums = vec![0.0; room.saturating_add(1)];
    if let Some(none) = sums.first_mut() {
        *none = 1.0;
    }
    for (cap, load) in company {
        let before = sums.clone();
        let moved = std::iter::repeat_n(&0.0, *cap as usize).chain(&before);
        for ((sum, stays), comes) in sums.iter_mut().zip(&before).zip(moved) {
            *sum = stays * (1.0 - load) + comes * load;
        }
    }
    let mean: f64 = company.iter().map(|(cap, load)| f64::from(*cap) * load).sum();
    let free: f64 = sums.iter().enumerate().map(|(sum, p)| room.saturating_sub(sum) as f64 * p).sum();
    ((f64::from(cap) + mean + free) / f64::from(GPU_PERCENT)).max(1.0)
}
