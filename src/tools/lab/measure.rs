//! One cell: a contender, a workload, and what became of its requests.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cell::{Cell, CellWeights, Intervals, Slice, TimesMs};
use crate::fleet::{Fleet, Weights};
use crate::router::Router;
use crate::sim::contender::{Contender, Deciding};
use crate::sim::outcome::{End, Outcome};
use crate::sim::simulation::{Options, Simulation};
use crate::sim::workload::Workload;

/// Slices of a cell's timeline.
const SLICES: usize = 30;
/// Time for the last answers after the last arrival, in multiples of the time of all arrivals, at least an hour.
const PATIENCE: u32 = 20;

/// What a cell is about.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the contender in the result.
    pub policy: String,
    /// Its knobs besides the weights.
    pub setting: String,
    /// Its weights, if it has any.
    pub weights: Option<Weights>,
    /// What decides.
    pub contender: Contender,
    /// What deciding takes.
    pub deciding: Deciding,
    /// Name of the workload in the result.
    pub workload: String,
    /// Requests per second.
    pub rate: f64,
    /// Seed of the simulation.
    pub seed: u64,
    /// Gateways.
    pub gateways: usize,
    /// `zero` or `charged`.
    pub overhead: String,
    /// Further variation of the experiment.
    pub variant: String,
}

/// Simulates a plan. Fleet, telemetry and, for ours, the policies are the router's.
pub fn measure(plan: &Plan, router: &Router, workload: &Workload) -> Cell {
    let options = Options {
        seed: plan.seed,
        gateways: plan.gateways,
        deciding: plan.deciding,
        keep_decisions: false,
        ..Options::default()
    };
    let last = workload.arrivals.last().map_or(Duration::ZERO, |a| a.at);
    let mut simulation = Simulation::of(plan.contender.clone(), router, workload, &[], options);
    simulation.finish(last * PATIENCE + Duration::from_secs(3_600));
    let outcomes = simulation.into_outcomes();
    summarised(plan, &router.config().fleet, workload, &outcomes)
}

fn summarised(plan: &Plan, fleet: &Fleet, workload: &Workload, outcomes: &[Outcome]) -> Cell {
    let answered: Vec<&Outcome> = outcomes.iter().filter(|o| o.is_answered()).collect();
    let n = answered.len().max(1) as f64;
    let quality: Vec<f64> = answered.iter().map(|o| quality(workload, o)).collect();
    let usd: Vec<f64> = answered.iter().map(|o| usd(fleet, workload, o)).collect();
    let ms = |of: fn(&Outcome) -> Option<Duration>| -> Vec<f64> {
        let mut values: Vec<f64> = answered.iter().filter_map(|o| of(o)).map(|d| d.as_secs_f64() * 1e3).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let (ttft, tpot, e2e) = (ms(|o| o.ttft), ms(Outcome::tpot), ms(|o| o.e2e));
    let first = outcomes.first().map_or(Duration::ZERO, |o| o.at);
    let end = answered.iter().filter_map(|o| Some(o.at + o.e2e?)).max().unwrap_or(first);
    let refused = outcomes.iter().filter(|o| o.end == End::Refused).count();
    let decided: Vec<f64> = outcomes.iter().filter_map(|o| o.decided).map(|d| d.as_secs_f64() * 1e6).collect();
    Cell {
        policy: plan.policy.clone(),
        setting: plan.setting.clone(),
        weights: plan.weights.map(|w| CellWeights { quality: w.quality, latency: w.latency, cost: w.cost }),
        workload: plan.workload.clone(),
        rate: plan.rate,
        seed: plan.seed,
        gateways: plan.gateways,
        overhead: plan.overhead.clone(),
        variant: plan.variant.clone(),
        requests: outcomes.len(),
        failed: outcomes.len() - answered.len(),
        quality: quality.iter().sum::<f64>() / n,
        cost_usd: usd.iter().sum::<f64>() / n,
        ttft_ms: times(&ttft),
        tpot_ms: times(&tpot),
        e2e_ms: times(&e2e),
        throughput_rps: answered.len() as f64 / end.saturating_sub(first).as_secs_f64().max(1e-9),
        served: None,
        slo_attainment: None,
        budget_exhausted: None,
        shed: (refused > 0).then(|| refused as f64 / outcomes.len().max(1) as f64),
        mix: mix(fleet, outcomes.iter()),
        decision_us: decided.iter().sum::<f64>() / decided.len().max(1) as f64,
        intervals: Intervals::default(),
        e2e_percentiles_ms: percentiles(&e2e),
        ttft_percentiles_ms: percentiles(&ttft),
        timeline: timeline(fleet, outcomes),
    }
}

fn quality(workload: &Workload, outcome: &Outcome) -> f64 {
    let template = workload.templates.get(outcome.template);
    outcome.model.and_then(|m| template?.quality.get(m)).copied().unwrap_or_default()
}

/// What the tokens of a request cost.
fn usd(fleet: &Fleet, workload: &Workload, outcome: &Outcome) -> f64 {
    let template = workload.templates.get(outcome.template);
    let Some((model, template)) = outcome.model.and_then(|m| fleet.models.get(m)).zip(template) else { return 0.0 };
    f64::from(template.prompt_tokens) * model.tariff.usd_per_input_token
        + f64::from(outcome.output_tokens) * model.tariff.usd_per_output_token
}

/// Of sorted values.
fn times(sorted: &[f64]) -> TimesMs {
    let mean = sorted.iter().sum::<f64>() / sorted.len().max(1) as f64;
    TimesMs { mean, p50: percentile(sorted, 50), p99: percentile(sorted, 99) }
}

/// Nearest rank; the least for 0.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

fn percentiles(sorted: &[f64]) -> Vec<f64> {
    if sorted.is_empty() { Vec::new() } else { (0..=100).map(|p| percentile(sorted, p)).collect() }
}

fn mix<'a>(fleet: &Fleet, outcomes: impl Iterator<Item = &'a Outcome>) -> BTreeMap<String, f64> {
    let mut counts: BTreeMap<String, f64> = BTreeMap::new();
    let mut all = 0.0;
    for model in outcomes.filter_map(|o| fleet.models.get(o.model?)) {
        *counts.entry(model.name.clone()).or_default() += 1.0;
        all += 1.0;
    }
    counts.values_mut().for_each(|share| *share /= all);
    counts
}

fn timeline(fleet: &Fleet, outcomes: &[Outcome]) -> Vec<Slice> {
    let last = outcomes.last().map_or(0.0, |o| o.at.as_secs_f64());
    let length = last / SLICES as f64;
    if length <= 0.0 {
        return Vec::new();
    }
    let slice_of = |o: &Outcome| ((o.at.as_secs_f64() / length) as usize).min(SLICES - 1);
    let slices = outcomes.chunk_by(|a, b| slice_of(a) == slice_of(b));
    slices
        .map(|slice| {
            let e2e: Vec<f64> =
                slice.iter().filter(|o| o.is_answered()).filter_map(|o| Some(o.e2e?.as_secs_f64() * 1e3)).collect();
            Slice {
                at_s: slice.first().map_or(0.0, |o| slice_of(o) as f64 * length),
                requests: slice.len(),
                mix: mix(fleet, slice.iter()),
                e2e_ms: e2e.iter().sum::<f64>() / e2e.len().max(1) as f64,
            }
        })
        .collect()
}
