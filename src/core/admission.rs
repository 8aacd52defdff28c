//! Which candidates keep what a request insists on, and what is given up, or refused, when none does.
//!
//! # Formula
//!
//! A policy, and a request where the policy trusts its headers, may insist on times, a budget and a quality. A candidate keeps
//!
//! - **ttft, tpot** if the probability that the time is within the limit, `P(actual / predicted <= limit / predicted)`, is at least
//!   `slo.confidence`. Its distribution is the histogram of what the responses of that pool have shown; before there are any, a logistic
//!   one with scale 0.2 in the logarithm, so that 0.7 wants the limit to be 1.18 times the prediction;
//! - **budget** if the probability that the answer ends before the budget does is at least `slo.confidence`. USD leave `(usd - prompt
//!   tokens * input tariff) / output tariff` tokens, shared by all answers asked for; the length is log-normal through the predicted
//!   median, P80 and P90;
//! - **quality** if the predicted quality is at least `quality_min`.
//!
//! Where no candidate keeps all: `tiered` gives up one constraint after the other in the order of relaxation until one keeps the rest (of a
//! request that gives up its budget in USD, the model of the smallest worst-case cost is left); `relaxed` gives up all; `strict`
//! answers 429. The log's `relaxed` lists what was given up.
//!
//! **A budget caps the answer**, whatever was admitted: `max_tokens` (or `max_completion_tokens`, `max_output_tokens`) becomes at most what
//! the budget leaves of each answer, and at least 1, by the estimated prompt tokens. It is inserted where the request names none (less
//! where so many might not fit in the model's context), and written anew where not every server reads the client's own spelling alike. A
//! request that demands more than is left (`min_tokens`, or one token of each of `n` answers) is a 400, under `strict` a 429. A request has
//! used its budget up if its cost has, or if its answer was cut at that limit (`budget_exhausted` in the log); if the prompt alone does,
//! the response says `x-routebalance-budget-exhausted: true`.
//!
//! **Saturation.** With `overload.action` `shed`, a request all of whose candidates are saturated is answered with 429. Instances of
//! another model that it may use and that are not saturated serve it instead, if they keep what it insists on.
//!
//! `Retry-After` of what is missed here is 1 to 60 s: for `ttft` how much the shortest forecast is above the limit, for `tpot` the shortest
//! forecast of a whole answer, for `saturated` when the first instance may be free of its queue. Waiting does not change quality and price,
//! so those say 60. Of several missed constraints the refusal names the last that would have to be given up.
//!
//! # Inputs and configuration
//!
//! Forecasts and their residuals, estimates, tariffs; `policies[]`: `slo`, `budget`, `quality_min`, `relaxation`, `overload`,
//! `trust_request_headers`. The headers are in [`headers`]; what a budget leaves in [`spending`].
//!
//! # Limits
//!
//! Tokens of a prompt are estimated from its bytes, so a budget in USD is kept as well as that estimate is. What an instance has stored
//! behind `previous_response_id` is prefilled again and not counted: neither its length nor its cost is known.

pub mod headers;
pub mod spending;

mod lengths;

use std::time::Duration;

use crate::fleet::{Constraint, Constraints, InstanceId, Mode, Overload, OverloadAction};
use crate::latency;
use crate::score::Candidate;

pub use lengths::probability_within;

/// Longest time that a refused client is told to wait: nothing is forecast for longer, and OpenAI's client libraries wait by
/// their own rules if they are told more.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// The header counts in seconds, and 0 would invite the same refusal.
const RETRY_MIN: Duration = Duration::from_secs(1);

/// How probable it is that a candidate keeps each constraint, 0 to 1; 1 where there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prospect {
    /// The first token comes in time.
    pub ttft_probability: f64,
    /// The others do.
    pub tpot_probability: f64,
    /// The predicted quality suffices: 0 or 1.
    pub quality: f64,
    /// The answer ends before the budget does.
    pub budget: f64,
    /// Cost of the longest answer that the request allows, USD.
    pub worst_usd: f64,
}

impl Default for Prospect {
    fn default() -> Self {
        Prospect { ttft_probability: 1.0, tpot_probability: 1.0, quality: 1.0, budget: 1.0, worst_usd: 0.0 }
    }
}

impl Prospect {
    fn probability(&self, constraint: Constraint) -> f64 {
        match constraint {
            Constraint::Ttft => self.ttft_probability,
            Constraint::Tpot => self.tpot_probability,
            Constraint::Quality => self.quality,
            Constraint::Budget => self.budget,
        }
    }
}

/// Candidates that are left, and what had to be given up.
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted {
    /// The candidates to score; never empty unless none were given.
    pub candidates: Vec<Candidate>,
    /// Constraints that were given up, in their order.
    pub relaxed: Vec<Constraint>,
}

/// No candidate keeps the constraints, and none may be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The constraint without which, after those that give way before it, there would be a candidate.
    pub constraint: Constraint,
    /// When another attempt may succeed.
    pub retry_after: Duration,
}

/// Drops the candidates that keep a constraint with less than the wanted probability; `prospects` in the order of `candidates`.
///
/// Where none is left, [`Mode`] decides. Of a request that had to give up its budget in USD, the candidates with the smallest
/// worst-case cost are left (as published, where it is one instance).
pub fn admit(
    candidates: Vec<Candidate>,
    prospects: &[Prospect],
    constraints: &Constraints,
) -> Result<Admitted, Missed> {
    let set: Vec<Constraint> =
        constraints.order.constraints().into_iter().filter(|constraint| constraints.has(*constraint)).collect();
    if candidates.is_empty() || set.is_empty() {
        return Ok(Admitted { candidates, relaxed: Vec::new() });
    }
    let keeps = |prospect: &Prospect, active: &[Constraint]| {
        active.iter().all(|constraint| prospect.probability(*constraint) >= constraints.confidence)
    };
    let active = |given_up: usize| set.get(given_up..).unwrap_or_default();
    let given_up = (0..set.len()).find(|n| prospects.iter().any(|p| keeps(p, active(*n)))).unwrap_or(set.len());
    let given_up = match (given_up, constraints.mode) {
        (0, _) | (_, Mode::Tiered) => given_up,
        (_, Mode::Relaxed) => set.len(),
        (missed, Mode::Strict) => {
            let constraint = set.get(missed.saturating_sub(1)).copied().unwrap_or(Constraint::Ttft);
            return Err(Missed { constraint, retry_after: wait_for(constraint, constraints, &candidates) });
        }
    };
    let relaxed = set.get(..given_up).unwrap_or_default().to_vec();
    let to_the_cheapest =
        constraints.mode == Mode::Tiered && relaxed.contains(&Constraint::Budget) && constraints.budget.usd.is_some();
    let mut left: Vec<(Candidate, Prospect)> = candidates.into_iter().zip(prospects.iter().copied()).collect();
    left.retain(|(_, prospect)| keeps(prospect, active(given_up)));
    if to_the_cheapest {
        let least = left.iter().map(|(_, p)| p.worst_usd).fold(f64::INFINITY, f64::min);
        left.retain(|(_, p)| p.worst_usd <= least);
    }
    Ok(Admitted { candidates: left.into_iter().map(|(candidate, _)| candidate).collect(), relaxed })
}

/// When a candidate may keep a constraint that none keeps now. A queue that is too long by a second takes a second to be short
/// enough; a batch that is too large is another one when an answer has ended; quality and price do not change by waiting.
fn wait_for(constraint: Constraint, constraints: &Constraints, candidates: &[Candidate]) -> Duration {
    let soonest = |seconds: &dyn Fn(&Candidate) -> f64| candidates.iter().map(seconds).fold(f64::INFINITY, f64::min);
    match constraint {
        Constraint::Ttft => {
            let limit = constraints.slo.ttft.unwrap_or_default().as_secs_f64();
            in_seconds(soonest(&|c| c.ttft_seconds - limit))
        }
        Constraint::Tpot => in_seconds(soonest(&|c| c.e2e_seconds)),
        Constraint::Quality | Constraint::Budget => RETRY_MAX,
    }
}

fn in_seconds(seconds: f64) -> Duration {
    latency::duration(seconds.ceil()).clamp(RETRY_MIN, RETRY_MAX)
}

/// Whether every candidate is saturated, and then when the first one may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saturation {
    /// One is not.
    None,
    /// All are; the best of them serves.
    Served,
    /// All are; the request is refused, and may come again then.
    Shed(Duration),
}

/// Judges candidates; `waiting` says how many requests wait at an instance.
pub fn saturation(overload: &Overload, candidates: &[Candidate], waiting: impl Fn(InstanceId) -> f64) -> Saturation {
    let limit = overload.ttft.map_or(f64::INFINITY, |limit| limit.as_secs_f64());
    let queue_max = overload.waiting_per_instance.unwrap_or(f64::INFINITY);
    // Seconds until it may not be saturated any more: its queue has been served when this request's turn would have come.
    let wait = |c: &Candidate| {
        let for_queue = (waiting(c.instance) >= queue_max).then_some(c.ttft_seconds);
        let for_ttft = (c.ttft_seconds > limit).then_some(c.ttft_seconds - limit);
        [for_queue, for_ttft].into_iter().flatten().reduce(f64::max)
    };
    let soonest = candidates.iter().try_fold(f64::INFINITY, |soonest, c| wait(c).map(|wait| soonest.min(wait)));
    match (soonest.filter(|_| !candidates.is_empty()), overload.action) {
        (None, _) => Saturation::None,
        (Some(_), OverloadAction::Serve) => Saturation::Served,
        (Some(soonest), OverloadAction::Shed) => Saturation::Shed(in_seconds(soonest)),
    }
}

#[cfg(test)]
mod tests;
