//! One cell: a contender, a workload, and what became of its requests.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cell::{Cell, CellWeights, Intervals, Slice, TimesMs};
use super::ground::Demand;
use super::statistics::{RESAMPLES, percentile, value_at};
use routebalance_core::fleet::{Fleet, Weights};
use routebalance_core::random::Random;
use routebalance_core::router::Router;
use routebalance_sim::contender::{Contender, Deciding};
use routebalance_sim::outcome::{Answer, End, Outcome};
use routebalance_sim::simulation::{Options, Simulation};
use routebalance_sim::workload::Workload;

/// Slices of a cell's timeline.
const SLICES: usize = 30;
/// The seed whose course of time is kept: more would make the result several times larger.
pub const FIRST_SEED: u64 = 1;
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
    /// `zero`, `charged` or `measured`.
    pub overhead: String,
    /// Further variation of the experiment.
    pub variant: String,
    /// What the requests insist on.
    pub demand: Demand,
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
    let untold;
    let heard = if plan.demand.unheard {
        untold = without_constraints(workload);
        &untold
    } else {
        workload
    };
    let mut simulation = Simulation::deciding_by(plan.contender.clone(), router, heard, &[], options);
    simulation.finish(last * PATIENCE + Duration::from_secs(3_600));
    let outcomes = simulation.into_outcomes();
    summarised(plan, &router.config().fleet, workload, &outcomes)
}

fn without_constraints(workload: &Workload) -> Workload {
    let mut workload = workload.clone();
    workload.arrivals.iter_mut().for_each(|arrival| arrival.constraints = None);
    workload
}

/// What a plan came to: outcomes of a workload's requests, in their order.
pub fn summarised(plan: &Plan, fleet: &Fleet, workload: &Workload, outcomes: &[Outcome]) -> Cell {
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
    let rows: Vec<[f64; 3]> = answered
        .iter()
        .zip(quality.iter().zip(&usd))
        .map(|(o, (quality, usd))| [*quality, *usd, o.e2e.unwrap_or_default().as_secs_f64() * 1e3])
        .collect();
    let [of_quality, of_usd, of_e2e] = bootstrapped(&rows, plan.seed);
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
        ttft_ms: TimesMs::from_sorted(&ttft),
        tpot_ms: TimesMs::from_sorted(&tpot),
        e2e_ms: TimesMs::from_sorted(&e2e),
        throughput_rps: answered.len() as f64 / end.saturating_sub(first).as_secs_f64().max(1e-9),
        served: served(outcomes),
        slo_attainment: slo_attainment(&plan.demand, outcomes),
        budget_exhausted: budget_exhausted(fleet, workload, outcomes),
        shed: (refused > 0).then(|| refused as f64 / outcomes.len().max(1) as f64),
        mix: mix(fleet, outcomes.iter()),
        decision_us: decided.iter().sum::<f64>() / decided.len().max(1) as f64,
        intervals: Intervals { quality: of_quality, cost_usd: of_usd, e2e_ms: of_e2e },
        e2e_percentiles_ms: percentiles(&e2e),
        ttft_percentiles_ms: percentiles(&ttft),
        timeline: if plan.seed == FIRST_SEED { timeline(fleet, outcomes) } else { Vec::new() },
    }
}

fn quality(workload: &Workload, outcome: &Outcome) -> f64 {
    let template = workload.templates.get(outcome.template);
    outcome.model.and_then(|m| template?.quality.get(m.index())).copied().unwrap_or_default()
}

/// What the tokens of a request cost, those of answers that were turned down included.
fn usd(fleet: &Fleet, workload: &Workload, outcome: &Outcome) -> f64 {
    let Some(template) = workload.templates.get(outcome.template) else { return 0.0 };
    let answer_usd = |answer: Answer| {
        let tariff = &fleet.model(answer.model)?.tariff;
        let prompt = f64::from(template.prompt_tokens) * tariff.usd_per_input_token;
        Some(prompt + f64::from(answer.output_tokens) * tariff.usd_per_output_token)
    };
    outcome.answers().filter_map(answer_usd).sum()
}

/// 95 % intervals of the means of columns: the percentile bootstrap over rows, one draw for all columns.
fn bootstrapped(rows: &[[f64; 3]], seed: u64) -> [[f64; 2]; 3] {
    if rows.is_empty() {
        return [[0.0; 2]; 3];
    }
    let mut random = Random::for_use(seed, 6);
    let mut means: [Vec<f64>; 3] = std::array::from_fn(|_| Vec::with_capacity(RESAMPLES));
    for _ in 0..RESAMPLES {
        let mut sums = [0.0; 3];
        for _ in 0..rows.len() {
            let row = rows[random.below(rows.len())];
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        means.iter_mut().zip(sums).for_each(|(means, sum)| means.push(sum / rows.len() as f64));
    }
    means.map(|mut means| {
        means.sort_by(f64::total_cmp);
        [0.025, 0.975].map(|share| value_at(&means, share).unwrap_or_default())
    })
}

/// Answers that ended in the second half of the time of arrivals, over the requests that came in it. Over the whole time the last
/// answers, which come after the last request, would count as missing.
fn served(outcomes: &[Outcome]) -> Option<f64> {
    let last = outcomes.last()?.at;
    let half = last / 2;
    let came = outcomes.iter().filter(|o| o.at > half).count();
    let ended = outcomes.iter().filter(|o| o.is_answered()).filter_map(|o| Some(o.at + o.e2e?));
    let ended = ended.filter(|end| *end > half && *end <= last).count();
    (came > 0).then(|| ended as f64 / came as f64)
}

/// Requests that were refused or got no whole answer have not kept their limits.
fn slo_attainment(demand: &Demand, outcomes: &[Outcome]) -> Option<f64> {
    let slo = demand.slo;
    if slo.ttft.is_none() && slo.tpot.is_none() {
        return None;
    }
    let keeps = |o: &&Outcome| {
        let ttft = slo.ttft.is_none_or(|limit| o.ttft.is_some_and(|ttft| ttft <= limit));
        // An answer of one token has no time between tokens.
        let tpot = slo.tpot.is_none_or(|limit| o.tpot().is_none_or(|tpot| tpot <= limit));
        o.is_answered() && ttft && tpot
    };
    Some(outcomes.iter().filter(keeps).count() as f64 / outcomes.len().max(1) as f64)
}

/// A budget is used up if the prompt alone exceeds it, or if the answer was cut off by it: if not one token more could be paid for. (The
/// published rule, PUBLISHED.md, section 10.3, wants the cost within 1e-9 USD of the budget, which is less than any token costs.)
/// Those that were refused have used up nothing.
fn budget_exhausted(fleet: &Fleet, workload: &Workload, outcomes: &[Outcome]) -> Option<f64> {
    let token = |o: &Outcome| o.model.and_then(|m| fleet.model(m)).map_or(0.0, |m| m.tariff.usd_per_output_token);
    let is_spent = |(o, arrival): (&Outcome, &routebalance_sim::workload::Arrival)| {
        let budget = arrival.constraints?.budget.usd?;
        Some(o.is_answered() && usd(fleet, workload, o) + token(o) > budget)
    };
    let spent: Vec<bool> = outcomes.iter().zip(&workload.arrivals).filter_map(is_spent).collect();
    (!spent.is_empty()).then(|| spent.iter().filter(|spent| **spent).count() as f64 / spent.len() as f64)
}

fn percentiles(sorted: &[f64]) -> Vec<f64> {
    // A tenth of a millisecond is enough for a curve, and a quarter of the digits.
    let rounded = |p: usize| (percentile(sorted, p) * 10.0).round() / 10.0;
    if sorted.is_empty() { Vec::new() } else { (0..=100).map(rounded).collect() }
}

fn mix<'a>(fleet: &Fleet, outcomes: impl Iterator<Item = &'a Outcome>) -> BTreeMap<String, f64> {
    let mut counts: BTreeMap<String, f64> = BTreeMap::new();
    let mut all = 0.0;
    for model in outcomes.filter_map(|o| fleet.model(o.model?)) {
        *counts.entry(model.name.clone()).or_default() += 1.0;
        all += 1.0;
    }
    counts.values_mut().for_each(|share| *share = (*share / all * 1e4).round() / 1e4);
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
