//! A plan against a threshold router and a cascade of equal quality (RouterWise's second study; PUBLISHED.md, section 19.2).
//!
//! The paper compares them on GPUs of their own, one model each, and its own rule on its own setup, so that one cannot tell what the
//! placement does from what the routing does. Here each rival runs on both.
//!
//! **Quality** is what answers are really worth, not what was predicted: a judge that sees answers makes use of more than
//! predictions. A rival's knob is tuned on the planning half of the prompts, and everything runs on the other half.

mod show;
mod simulated;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

pub use show::{part, picture, table};
pub use simulated::{isolated, simulated, study};

use super::rivals::judge::{Answers, Judge};
use super::rivals::{Frugal, Threshold, Tuned, tune};
use crate::evaluate::cells;
use crate::statistics::percentile;
use routebalance_core::fleet::ModelId;
use routebalance_plan::setup::{Placement, Setup};
use routebalance_sim::contender::Contender;
use routebalance_sim::outcome::Outcome;

/// The planner's own rule: the best score less its price.
pub const PRICES: &str = "prices";
/// A threshold on estimates.
pub const THRESHOLD: &str = "threshold";
/// Models one after the other.
pub const CASCADE: &str = "cascade";
/// The plan's own setup.
pub const PLANNED: &str = "planned";
/// Every model on GPUs of its own.
pub const ISOLATED: &str = "isolated";

/// Requests per second and limit of the mean TTFT, milliseconds, of the study's runs on four GPUs.
pub const PANELS: [(f64, f64); 4] = [(50.0, 800.0), (60.0, 500.0), (70.0, 500.0), (80.0, 500.0)];

/// Mean TTFT, milliseconds, at a rate on four A100, as read by others in the paper's second version; its run at 60 per second is
/// not known.
const PUBLISHED: [(f64, &str, &str, f64); 9] = [
    (50.0, PRICES, PLANNED, 860.0),
    (50.0, CASCADE, ISOLATED, 1_500.0),
    (50.0, THRESHOLD, ISOLATED, 820.0),
    (70.0, PRICES, PLANNED, 565.0),
    (70.0, CASCADE, ISOLATED, 12_300.0),
    (70.0, THRESHOLD, ISOLATED, 2_500.0),
    (80.0, PRICES, PLANNED, 600.0),
    (80.0, CASCADE, ISOLATED, 24_200.0),
    (80.0, THRESHOLD, ISOLATED, 7_800.0),
];

/// A setup to run on.
#[derive(Clone, Copy, Debug)]
pub struct Deployment<'a> {
    /// How the models are deployed.
    pub setup: &'a Setup,
    /// Where.
    pub placement: &'a Placement,
}

impl Deployment<'_> {
    fn has(&self, model: usize) -> bool {
        self.setup.0.get(model).is_some_and(|choice| choice.replicas > 0)
    }
}

/// One rate with its plan.
#[derive(Clone, Copy, Debug)]
pub struct Panel<'a> {
    /// Requests per second.
    pub rate: f64,
    /// Limit of the mean time to the first token, milliseconds.
    pub slo_ms: f64,
    /// The plan's setup.
    pub planned: Deployment<'a>,
    /// The plan's prices at this rate, by model.
    pub prices: &'a [f64],
    /// Every model on GPUs of its own; `None` where they do not fit.
    pub isolated: Option<Deployment<'a>>,
}

/// What decides.
#[derive(Clone, Debug)]
pub enum Rule<'a> {
    /// Our router with these prices by model.
    Prices(&'a [f64]),
    /// A rival.
    Contender(Contender),
}

/// What rivals are tuned with.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    /// The models by size, the smallest first.
    pub sizes: &'a [usize],
    /// Answers to the prompts that plans are made of.
    pub planning: Answers<'a>,
    /// Answers to the prompts that are simulated, in the order of the simulation's templates.
    pub checking: Answers<'a>,
    /// How reliable the cascade's judge is: its AUC.
    pub reliability: f64,
    /// What happens to requests that come before this is not counted.
    pub warm_up: Duration,
    /// Seed of the judge.
    pub seed: u64,
}

/// What a rule came to on a setup at a rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Requests per second.
    pub requests_per_second: f64,
    /// Limit of the mean time to the first token, milliseconds.
    pub slo_ms: f64,
    /// The rule: [`PRICES`], [`THRESHOLD`] or [`CASCADE`].
    pub policy: String,
    /// The setup: [`PLANNED`] or [`ISOLATED`].
    pub placement: String,
    /// The quality of the plan on the planning half, which rivals were tuned to.
    pub target_quality: f64,
    /// The quality on the planning half.
    pub tuned_quality: f64,
    /// Whether that counts as equal.
    pub is_equal: bool,
    /// The rival's knob, 0 to 1; `None` of prices.
    pub knob: Option<f64>,
    /// Requests that came after the warm-up.
    pub requests: usize,
    /// Those with a whole answer; quality and times are theirs.
    pub answered: usize,
    /// Mean quality.
    pub quality: f64,
    /// Mean time to the first token, milliseconds.
    pub ttft_mean_ms: f64,
    /// Its 95th percentile.
    pub ttft_p95_ms: f64,
    /// Its mean over the limit.
    pub margin: f64,
    /// Share of the requests whose first token came later than the limit, or never.
    pub late: f64,
    /// Answers that were asked for per request.
    pub answers: f64,
    /// Output tokens of all of them per request.
    pub output_tokens: f64,
    /// Share of the requests that each model answered, by model.
    pub fractions: Vec<f64>,
    /// Mean time to the first token that the paper measured, milliseconds, where it is known.
    pub published_ttft_ms: Option<f64>,
}

struct Job<'a> {
    panel: &'a Panel<'a>,
    policy: &'static str,
    placement: &'static str,
    deployment: Deployment<'a>,
    rule: Rule<'a>,
    target: f64,
    tuned: Tuned,
}

/// Runs the plan with its prices, and both rivals on the plan's setup and on the isolated one, at every panel. `simulate` gives what
/// became of all requests of a run on a setup at a rate, in the order of their arrivals, all of them ended.
///
/// # Errors
/// A judge cannot be made, prices and models do not match, or a simulation fails.
pub fn compare<'a>(
    panels: &'a [Panel<'a>],
    ground: &Ground<'_>,
    simulate: impl Fn(&Deployment<'_>, &Rule<'_>, f64) -> Result<Vec<Outcome>> + Sync,
) -> Result<Vec<Row>> {
    let judge = Judge::with_reliability(ground.reliability, &ground.planning, ground.seed)?;
    let planning_scores = judge.scores(&ground.planning);
    let checking_scores = judge.elsewhere(ground.seed.wrapping_add(1)).scores(&ground.checking);
    let mut jobs = Vec::new();
    for panel in panels {
        ensure!(
            panel.prices.len() == ground.sizes.len(),
            "a plan at {} requests per second has {} prices for {} models",
            panel.rate,
            panel.prices.len(),
            ground.sizes.len()
        );
        let target = planned_quality(panel, ground);
        let tuned = Tuned { knob: 0.0, score: target };
        let rule = Rule::Prices(panel.prices);
        let deployment = panel.planned;
        jobs.push(Job { panel, policy: PRICES, placement: PLANNED, deployment, rule, target, tuned });
        for (placement, deployment) in
            [(PLANNED, Some(panel.planned)), (ISOLATED, panel.isolated)].into_iter().filter_map(|(p, d)| Some((p, d?)))
        {
            let sizes: Vec<usize> = ground.sizes.iter().copied().filter(|m| deployment.has(*m)).collect();
            let threshold = Threshold::new(&sizes, ground.planning.expected);
            let tuned = tune(target, |knob| threshold.quality(knob, &ground.planning));
            let rule = Rule::Contender(threshold.contender(tuned.knob, ground.checking.expected));
            jobs.push(Job { panel, policy: THRESHOLD, placement, deployment, rule, target, tuned });
            let cascade = Frugal::new(&sizes, &planning_scores);
            let tuned = tune(target, |knob| cascade.quality(knob, ground.planning.quality, &planning_scores));
            let rule = Rule::Contender(cascade.contender(tuned.knob, &checking_scores));
            jobs.push(Job { panel, policy: CASCADE, placement, deployment, rule, target, tuned });
        }
    }
    let run = |job: &Job<'_>| {
        let outcomes = simulate(&job.deployment, &job.rule, job.panel.rate).with_context(|| {
            format!("{} on the {} setup at {} requests per second", job.policy, job.placement, job.panel.rate)
        })?;
        Ok(row(job, ground, &outcomes))
    };
    cells::measured(&jobs, run).into_iter().collect()
}

/// Quality of the answers that prices choose among the deployed models, of equals the first.
fn planned_quality(panel: &Panel<'_>, ground: &Ground<'_>) -> f64 {
    let deployed: Vec<usize> = (0..panel.prices.len()).filter(|m| panel.planned.has(*m)).collect();
    let chosen = |expected: &[f64]| {
        let gain = |m: usize| expected[m] - panel.prices[m];
        deployed.iter().rev().copied().max_by(|a, b| gain(*a).total_cmp(&gain(*b))).unwrap_or_default()
    };
    let rows = ground.planning.quality.iter().zip(ground.planning.expected);
    let sum: f64 = rows.map(|(quality, expected)| quality[chosen(expected)]).sum();
    sum / ground.planning.quality.len().max(1) as f64
}

fn row(job: &Job<'_>, ground: &Ground<'_>, outcomes: &[Outcome]) -> Row {
    let counted: Vec<&Outcome> = outcomes.iter().filter(|o| o.at >= ground.warm_up).collect();
    let answered: Vec<&Outcome> = counted.iter().copied().filter(|o| o.is_answered()).collect();
    let (requests, n) = (counted.len().max(1) as f64, answered.len().max(1) as f64);
    let ms = |o: &&Outcome| o.ttft.map(|ttft| ttft.as_secs_f64() * 1e3);
    let mut ttft: Vec<f64> = answered.iter().filter_map(ms).collect();
    ttft.sort_by(f64::total_cmp);
    let ttft_mean_ms = ttft.iter().sum::<f64>() / n;
    let Panel { rate, slo_ms, .. } = *job.panel;
    let in_time = ttft.iter().filter(|ttft| **ttft <= slo_ms).count() as f64;
    let quality = |o: &&Outcome| o.model.map_or(0.0, |m| ground.checking.quality[o.template][m.index()]);
    let fraction = |model: usize| answered.iter().filter(|o| o.model == Some(ModelId::new(model))).count() as f64 / n;
    let is_published = |(at, policy, placement, _): &&(f64, &str, &str, f64)| {
        let is_panel = PANELS.contains(&(rate, slo_ms)) && (*at - rate).abs() < 1e-9;
        is_panel && *policy == job.policy && *placement == job.placement
    };
    Row {
        requests_per_second: rate,
        slo_ms,
        policy: job.policy.to_owned(),
        placement: job.placement.to_owned(),
        target_quality: job.target,
        tuned_quality: job.tuned.score,
        is_equal: job.tuned.is_equal(job.target),
        knob: (job.policy != PRICES).then_some(job.tuned.knob),
        requests: counted.len(),
        answered: answered.len(),
        quality: answered.iter().map(quality).sum::<f64>() / n,
        ttft_mean_ms,
        ttft_p95_ms: percentile(&ttft, 95),
        margin: ttft_mean_ms / slo_ms,
        late: 1.0 - in_time / requests,
        answers: counted.iter().map(|o| o.answers().count()).sum::<usize>() as f64 / requests,
        output_tokens: counted.iter().flat_map(|o| o.answers()).map(|a| f64::from(a.output_tokens)).sum::<f64>()
            / requests,
        fractions: (0..ground.sizes.len()).map(fraction).collect(),
        published_ttft_ms: PUBLISHED.iter().find(is_published).map(|row| row.3),
    }
}

#[cfg(test)]
mod tests;
