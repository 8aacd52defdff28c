//! RouteBalance as published (sections 5 to 9 of its specification), and its arms.

use std::time::Duration;

use super::{Choice, instances, is_free};
use crate::fleet::{Fleet, Objective, Pool, QualityNormalisation, Weights};
use crate::latency;
use crate::predictor::Estimate;
use crate::reckoning::LoadNow;
use crate::score::{self, Candidate};
use crate::sim::workload::Template;

/// Where the published T has its time per output token from.
#[derive(Clone, Debug, PartialEq)]
pub enum Tpot {
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
}

impl Published {
    /// As in its published runs.
    pub fn new(weights: Weights) -> Published {
        Published {
            weights,
            quality: QualityNormalisation::MinMax,
            tpot: Tpot::True,
            tie: Tie::Queue,
            longest_first: true,
        }
    }

    /// Decides a batch, given in the order of arrival: positions in the batch, in the order in which they are decided, and choices.
    /// `loads` is read once for all of it; what the batch itself sends is reckoned as published: a request more in the queue.
    pub(in crate::sim) fn assign(
        &self,
        fleet: &Fleet,
        batch: &[&Template],
        loads: &mut [LoadNow],
        now: Duration,
    ) -> Vec<(usize, Option<Choice>)> {
        let mut order: Vec<(usize, f64)> = batch.iter().map(|t| longest(t)).enumerate().collect();
        if self.longest_first {
            order.sort_by(|a, b| b.1.total_cmp(&a.1));
        }
        order
            .into_iter()
            .filter_map(|(request, longest)| {
                let template = batch.get(request)?;
                let choice = self.choose(fleet, template, loads).map(|instance| {
                    if let Some(load) = loads.get_mut(instance) {
                        load.waiting += 1.0;
                        load.pending_prompt_tokens += f64::from(template.prompt_tokens);
                        load.pending_output_tokens += longest.floor();
                        load.last_dispatch = now;
                    }
                    Choice::of(instance, template.prompt_tokens, longest)
                });
                Some((request, choice))
            })
            .collect()
    }

    fn choose(&self, fleet: &Fleet, template: &Template, loads: &[LoadNow]) -> Option<usize> {
        let candidates: Vec<Candidate> =
            instances(fleet, None).filter_map(|i| self.candidate(fleet, template, i, loads.get(i)?)).collect();
        let scores = score::paper(&candidates, &self.weights, self.quality);
        let objective = match self.tie {
            Tie::Queue => Objective::Paper,
            // The order of prices has the time between score and queue.
            Tie::Time => Objective::Prices,
        };
        let order = score::rank(&candidates, &scores, objective);
        candidates.get(*order.first()?).map(|c| c.instance)
    }

    fn candidate(&self, fleet: &Fleet, template: &Template, instance: usize, load: &LoadNow) -> Option<Candidate> {
        let (_, pool) = fleet.pool_of(instance)?;
        let tariff = fleet.model_of(pool)?.tariff;
        let estimate = estimate(template, pool.model)?;
        let output_tokens = length(template, estimate).floor().max(1.0);
        let seconds = self.seconds(pool, load, output_tokens);
        let usd = f64::from(template.prompt_tokens) * tariff.usd_per_input_token
            + output_tokens * tariff.usd_per_output_token;
        Some(Candidate {
            instance,
            model: pool.model,
            quality: estimate.quality,
            output_tokens,
            seconds,
            e2e_seconds: seconds,
            usd,
            in_flight: load.in_flight(),
            last_dispatch: load.last_dispatch,
            ..Candidate::default()
        })
    }

    /// The published T.
    fn seconds(&self, pool: &Pool, load: &LoadNow, output_tokens: f64) -> f64 {
        match self.tpot {
            Tpot::Static => latency::tpot_seconds(&pool.profile, 0.0) * output_tokens,
            Tpot::True if is_free(load, pool.limits.max_running) => {
                latency::tpot_seconds(&pool.profile, load.running) * output_tokens
            }
            Tpot::True => {
                let steps = load.pending_output_tokens / load.running.max(1.0) + output_tokens;
                latency::tpot_seconds(&pool.profile, load.running) * steps
            }
        }
    }
}

fn estimate(template: &Template, model: usize) -> Option<&Estimate> {
    template.outlook.as_ref()?.estimates.get(model).map(|(estimate, _)| estimate)
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
