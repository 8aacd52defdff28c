//! RouteBalance as published (PUBLISHED.md, sections 5 to 9), and its arms.

use std::sync::Arc;
use std::time::Duration;

use super::fitted::{Fitted, inputs};
use super::forest::{Forest, Inputs};
use super::{Choice, instances};
use crate::filters::{Demand, Filter, Offer};
use crate::workload::Template;
use routebalance_core::fleet::{
    Constraints, Fleet, InstanceId, ModelId, Objective, Pool, QualityNormalisation, Tariff, Weights,
};
use routebalance_core::latency;
use routebalance_core::predictor::Estimate;
use routebalance_core::reckoning::LoadNow;
use routebalance_core::score::{self, Candidate};

/// Where the published T has its time per output token from.
#[derive(Clone, Debug, PartialEq)]
pub enum Tpot {
    /// What trees make of the instance's state and of the longest answer that any model is expected to give: the published one.
    Fitted(Arc<Fitted>),
    /// What the engine really takes with the sequences that run.
    True,
    /// The same whatever the load, and no queue in T: arm 4.
    Static,
}

/// What decides between equal scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tie {
    /// Fewer requests: the published one.
    Queue,
    /// The shorter T: arm 3.
    Time,
}

/// RouteBalance as published.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// Its weights.
    pub weights: Weights,
    /// How quality enters its score.
    pub quality: QualityNormalisation,
    /// Its predictor of the time per output token.
    pub tpot: Tpot,
    /// Between equal scores.
    pub tie: Tie,
    /// Whether the longest requests of a batch come first.
    pub longest_first: bool,
    /// Which instances its score chooses among.
    pub filter: Filter,
    /// Whether its filter predicts the time to the first token and knows how far predictions are off. As published it takes a constant
    /// and knows nothing. Only with [`Tpot::Fitted`].
    pub calibrated: bool,
}

/// What the published code takes for the time to the first token, seconds (PUBLISHED.md, section 4.3).
const TTFT_SECONDS: f64 = 0.05;
/// Limit of output tokens of a request without one (the benchmark's; PUBLISHED.md, section 12).
const MAX_TOKENS: f64 = 1024.0;

impl Published {
    /// As in its published runs.
    pub fn new(weights: Weights) -> Published {
        Published {
            weights,
            quality: QualityNormalisation::MinMax,
            tpot: Tpot::True,
            tie: Tie::Queue,
            longest_first: true,
            filter: Filter::Off,
            calibrated: false,
        }
    }

    /// Decides a batch, given in the order of arrival: positions in the batch, in the order in which they are decided, and choices.
    /// `loads` is read once for all of it; what the batch itself sends is reckoned as published: a request more in the queue.
    pub(crate) fn assign(
        &self,
        fleet: &Fleet,
        batch: &[(&Template, Option<Constraints>)],
        loads: &mut [LoadNow],
        now: Duration,
    ) -> Vec<(usize, Option<Choice>)> {
        let mut order: Vec<(usize, f64)> = batch.iter().map(|(t, _)| longest(t)).enumerate().collect();
        if self.longest_first {
            order.sort_by(|a, b| b.1.total_cmp(&a.1));
        }
        order
            .into_iter()
            .filter_map(|(request, longest)| {
                let (template, constraints) = batch.get(request)?;
                let choice = self.choose(fleet, template, longest, constraints.as_ref(), loads).map(|instance| {
                    if let Some(load) = loads.get_mut(instance.index()) {
                        load.waiting += 1.0;
                        load.pending_prompt_tokens += f64::from(template.prompt_tokens);
                        load.pending_output_tokens += longest.floor();
                        load.last_dispatch = now;
                    }
                    let max_tokens = constraints.and_then(|c| affordable(fleet, template, instance, c.budget.usd));
                    Choice { max_tokens, ..Choice::alone(instance, template.prompt_tokens, longest) }
                });
                Some((request, choice))
            })
            .collect()
    }

    fn choose(
        &self,
        fleet: &Fleet,
        template: &Template,
        longest: f64,
        constraints: Option<&Constraints>,
        loads: &[LoadNow],
    ) -> Option<InstanceId> {
        let times = self.times(fleet, template, longest, loads);
        let candidates: Vec<Candidate> = instances(fleet, None)
            .filter_map(|i| self.candidate(fleet, template, i, loads.get(i.index())?, *times.get(i.index())?))
            .collect();
        let candidates = self.filtered(fleet, template, constraints, candidates);
        let scores = score::paper(&candidates, &self.weights, self.quality);
        let objective = match self.tie {
            Tie::Queue => Objective::Paper,
            // The order of prices has the time between score and queue.
            Tie::Time => Objective::Prices,
        };
        let first = score::Ranking::new(&candidates, &scores, objective).first()?;
        candidates.get(first).map(|c| c.instance)
    }

    /// Predicted seconds to the first and per further token on every instance.
    fn times(&self, fleet: &Fleet, template: &Template, longest: f64, loads: &[LoadNow]) -> Vec<(f64, f64)> {
        let mut times = vec![(TTFT_SECONDS, f64::INFINITY); fleet.instances.len()];
        for (p, pool) in fleet.pools.iter().enumerate() {
            let loads: Vec<(InstanceId, &LoadNow)> =
                pool.instances.iter().filter_map(|i| Some((*i, loads.get(i.index())?))).collect();
            let tpots_by =
                |tpot: &dyn Fn(&LoadNow) -> f64| loads.iter().map(|(_, load)| tpot(load)).collect::<Vec<f64>>();
            let (ttfts, tpots) = match &self.tpot {
                Tpot::True => (None, tpots_by(&|load| step_seconds(pool, load))),
                Tpot::Static => (None, tpots_by(&|_| latency::tpot_seconds(&pool.profile, 0.0))),
                Tpot::Fitted(fitted) => {
                    let Some(learnt) = fitted.pool(p) else { continue };
                    let prompt_tokens = f64::from(template.prompt_tokens);
                    let states: Vec<Inputs> =
                        loads.iter().map(|(_, load)| inputs(pool, load, prompt_tokens, longest)).collect();
                    (self.calibrated.then(|| seconds(&learnt.ttft_ms, &states)), seconds(&learnt.tpot_ms, &states))
                }
            };
            let ttfts = ttfts.unwrap_or_else(|| vec![TTFT_SECONDS; loads.len()]);
            for (((i, _), ttft), tpot) in loads.iter().zip(ttfts).zip(tpots) {
                if let Some(time) = times.get_mut(i.index()) {
                    *time = (ttft, tpot);
                }
            }
        }
        times
    }

    fn candidate(
        &self,
        fleet: &Fleet,
        template: &Template,
        instance: InstanceId,
        load: &LoadNow,
        (ttft_seconds, tpot_seconds): (f64, f64),
    ) -> Option<Candidate> {
        // A pool that nobody has fitted is no candidate.
        if !tpot_seconds.is_finite() {
            return None;
        }
        let (_, pool) = fleet.pool_of(instance)?;
        let tariff = fleet.model_of(pool)?.tariff;
        let estimate = estimate(template, pool.model)?;
        let output_tokens = length(template, estimate).floor().max(1.0);
        let seconds = self.seconds(pool, load, tpot_seconds, output_tokens);
        let usd = f64::from(template.prompt_tokens) * tariff.usd_per_input_token
            + output_tokens * tariff.usd_per_output_token;
        Some(Candidate {
            instance,
            model: pool.model,
            quality: estimate.quality,
            output_tokens,
            seconds,
            ttft_seconds,
            tpot_seconds,
            e2e_seconds: seconds,
            usd,
            in_flight: load.in_flight(),
            last_dispatch: load.last_dispatch,
            ..Candidate::default()
        })
    }

    /// The published T; without a queue where the time per token knows no load.
    fn seconds(&self, pool: &Pool, load: &LoadNow, tpot_seconds: f64, output_tokens: f64) -> f64 {
        match self.tpot {
            Tpot::Static => tpot_seconds * output_tokens,
            Tpot::Fitted(_) | Tpot::True => latency::paper_seconds_at(tpot_seconds, &pool.limits, load, output_tokens),
        }
    }

    fn filtered(
        &self,
        fleet: &Fleet,
        template: &Template,
        constraints: Option<&Constraints>,
        candidates: Vec<Candidate>,
    ) -> Vec<Candidate> {
        if self.filter == Filter::Off {
            return candidates;
        }
        let demand = demand(template, constraints);
        let offers: Vec<Offer> = candidates.iter().filter_map(|c| self.offer(fleet, template, c)).collect();
        let passed = self.filter.pass(&offers, &demand);
        passed.into_iter().filter_map(|i| candidates.get(i).copied()).collect()
    }

    fn offer(&self, fleet: &Fleet, template: &Template, candidate: &Candidate) -> Option<Offer> {
        let (index, pool) = fleet.pool_of(candidate.instance)?;
        let tariff = fleet.model_of(pool)?.tariff;
        let times = match &self.tpot {
            Tpot::Fitted(fitted) => fitted.pool(index.index()),
            Tpot::True | Tpot::Static => None,
        };
        Some(Offer {
            ttft_seconds: candidate.ttft_seconds,
            tpot_seconds: candidate.tpot_seconds,
            sd: times.map_or((0.0, 0.0), |t| t.sd),
            residuals: times.filter(|_| self.calibrated).map(|t| t.residuals),
            estimate: *estimate(template, candidate.model)?,
            tariff,
            // Nobody rents by the second here: the price of time is that of the tokens which fill it.
            usd_per_second: tariff.usd_per_output_token / candidate.tpot_seconds.max(1e-9),
            queue: candidate.in_flight,
        })
    }
}

/// What a step takes on an instance with what runs there and what its cache holds.
fn step_seconds(pool: &Pool, load: &LoadNow) -> f64 {
    let held = load.kv_use.unwrap_or(0.0) * pool.limits.kv_tokens as f64;
    let context = pool.profile.tpot_growth_per_thousand_context_tokens * held / 1e3;
    latency::tpot_seconds(&pool.profile, load.running) + pool.profile.tpot_ms / 1e3 * context
}

/// The published clamp: no predicted time is less than 1 ms.
fn seconds(forest: &Forest, states: &[Inputs]) -> Vec<f64> {
    forest.predictions(states).into_iter().map(|ms| ms.max(1.0) / 1e3).collect()
}

/// What a request insists on, in the published terms; its own limits, or the published defaults where those are tighter.
fn demand(template: &Template, constraints: Option<&Constraints>) -> Demand {
    let defaults = Demand::default();
    let limit = |own: Option<Duration>, default: f64| own.map_or(default, |d| d.as_secs_f64().min(default));
    let slo = constraints.map(|c| c.slo).unwrap_or_default();
    let budget = constraints.map(|c| c.budget).unwrap_or_default();
    // The inline filter makes tokens of a budget in USD; only who has none of either gets the default.
    let budget_tokens = budget.tokens.map(f64::from).or(defaults.budget_tokens.filter(|_| budget.usd.is_none()));
    Demand {
        prompt_tokens: f64::from(template.prompt_tokens),
        max_tokens: template.prompt.max_tokens.map_or(MAX_TOKENS, f64::from),
        ttft_seconds: limit(slo.ttft, defaults.ttft_seconds),
        tpot_seconds: limit(slo.tpot, defaults.tpot_seconds),
        budget_tokens,
        budget_usd: budget.usd,
        quality_min: constraints.and_then(|c| c.quality_min).unwrap_or(defaults.quality_min),
    }
}

/// The limit of output tokens that is sent along with a budget (PUBLISHED.md, section 10.3): what the budget buys after the prompt, at
/// least 1.
fn affordable(fleet: &Fleet, template: &Template, instance: InstanceId, usd: Option<f64>) -> Option<u32> {
    let (_, pool) = fleet.pool_of(instance)?;
    let Tariff { usd_per_input_token, usd_per_output_token, .. } = fleet.model_of(pool)?.tariff;
    let left = usd? - f64::from(template.prompt_tokens) * usd_per_input_token;
    Some((left / usd_per_output_token).floor().max(1.0) as u32)
}

fn estimate(template: &Template, model: ModelId) -> Option<&Estimate> {
    template.outlook.as_ref()?.estimates.get(model.index()).map(|(estimate, _)| estimate)
}

/// Expected output tokens, of those that the client wants.
fn length(template: &Template, estimate: &Estimate) -> f64 {
    estimate.output_tokens.min(template.prompt.max_tokens.map_or(f64::INFINITY, f64::from))
}

/// The longest answer that any model is expected to give.
pub(super) fn longest(template: &Template) -> f64 {
    let estimates = template.outlook.iter().flat_map(|outlook| &outlook.estimates);
    estimates.map(|(estimate, _)| length(template, estimate)).fold(1.0, f64::max)
}

#[cfg(test)]
mod tests;
