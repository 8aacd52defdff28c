//! What a request insists on, the candidates that keep it, and what the client is told where none does.

use std::time::Duration;

use super::{Ask, Refusal, Router};
use crate::admission::{self, Admitted, Missed, Prospect, Saturation, headers, spending};
use crate::fleet::{Constraint, Constraints, Policy};
use crate::latency::Speed;
use crate::learning::Learned;
use crate::openai::Prompt;
use crate::predictor::Estimate;
use crate::reckoning::LoadNow;
use crate::score::Candidate;

/// What comes of admission.
pub(super) struct Entrants {
    pub(super) admitted: Admitted,
    /// Whether every one of them is saturated.
    pub(super) saturated: bool,
}

impl Router {
    /// What a request insists on by its headers, where its policy trusts them; `header` looks one up.
    ///
    /// # Errors
    ///
    /// 400 where a trusted header cannot be understood.
    pub fn header_constraints(
        &self,
        policy: usize,
        header: impl FnMut(&str) -> Option<String>,
    ) -> Result<Option<Constraints>, Refusal> {
        let Some(policy) = self.config.policies.get(policy).filter(|policy| policy.trust_request_headers) else {
            return Ok(None);
        };
        headers::constraints(&policy.constraints, header)
            .map(Some)
            .map_err(|error| Refusal::new(400, "header", error.to_string()))
    }

    /// What a request insists on.
    pub(super) fn constraints(&self, ask: &Ask<'_>) -> Constraints {
        let policy = || self.config.policies.get(ask.policy).map(|policy| policy.constraints);
        ask.constraints.or_else(policy).unwrap_or_default()
    }

    /// The candidates that keep what the request insists on, or what the policy leaves instead.
    pub(super) fn admit(
        &self,
        (ask, policy): (&Ask<'_>, &Policy),
        candidates: Vec<Candidate>,
        estimates: &[Estimate],
        prompt_tokens: f64,
        loads: Option<&[LoadNow]>,
        learned: &Learned,
    ) -> Result<Entrants, Refusal> {
        let constraints = self.constraints(ask);
        let prospects = if Constraint::ALL.into_iter().any(|constraint| constraints.has(constraint)) {
            self.prospects(ask, &constraints, &candidates, estimates, prompt_tokens, learned)
        } else {
            Vec::new()
        };
        let admitted = admission::admit(candidates, &prospects, &constraints)
            .map_err(|missed| missed_refusal(&missed, &constraints))?;
        let waiting = |instance: usize| loads.and_then(|l| l.get(instance)).map_or(0.0, |load| load.waiting);
        let saturated = match admission::saturation(&policy.overload, &admitted.candidates, waiting) {
            Saturation::None => false,
            Saturation::Served => true,
            Saturation::Shed(retry_after) => return Err(saturated_refusal(retry_after)),
        };
        Ok(Entrants { admitted, saturated })
    }

    /// How probably each candidate keeps each constraint.
    fn prospects(
        &self,
        ask: &Ask<'_>,
        constraints: &Constraints,
        candidates: &[Candidate],
        estimates: &[Estimate],
        prompt_tokens: f64,
        learned: &Learned,
    ) -> Vec<Prospect> {
        let fleet = &self.config.fleet;
        let unknown = Speed::default();
        // Quality and budget are the same for all instances of a pool.
        let of_pools: Vec<Prospect> = fleet
            .pools
            .iter()
            .map(|pool| {
                let (Some(model), Some(estimate)) = (fleet.model_of(pool), estimates.get(pool.model)) else {
                    return Prospect::default();
                };
                let answer = self.answer(ask, pool, prompt_tokens);
                if !answer.generates() {
                    return Prospect::default();
                }
                let enough = constraints.quality_min.is_none_or(|least| estimate.quality >= least);
                let left = spending::tokens_left(&constraints.budget, &model.tariff, prompt_tokens, answer.count());
                let prompt_usd = prompt_tokens * model.tariff.usd_per_input_token;
                let affords = constraints.budget.usd.is_none_or(|usd| usd >= prompt_usd);
                let ends = |left: f64| {
                    if left >= answer.asked() { 1.0 } else { admission::probability_within(estimate, left) }
                };
                Prospect {
                    quality: if enough { 1.0 } else { 0.0 },
                    budget: if affords { left.map_or(1.0, |left| ends(f64::from(left))) } else { 0.0 },
                    worst_usd: prompt_usd + answer.asked() * answer.count() * model.tariff.usd_per_output_token,
                    ..Prospect::default()
                }
            })
            .collect();
        let slo = &constraints.slo;
        candidates
            .iter()
            .map(|c| {
                let pool = fleet.instances.get(c.instance).map_or(usize::MAX, |instance| instance.pool);
                let of_pool = of_pools.get(pool).copied().unwrap_or_default();
                let speed = learned.speed(pool).unwrap_or(&unknown);
                let ttft = |limit: Duration| speed.probability_ttft_within(c.ttft_seconds, limit.as_secs_f64());
                let tpot = |limit: Duration| speed.probability_tpot_within(c.tpot_seconds, limit.as_secs_f64());
                Prospect {
                    ttft: slo.ttft.map_or(1.0, ttft),
                    // A response without tokens has no time per token.
                    tpot: slo.tpot.filter(|_| c.output_tokens > 0.0).map_or(1.0, tpot),
                    ..of_pool
                }
            })
            .collect()
    }
}

/// The limit of generated tokens that a budget writes into the body: where it is below the client's own, and where the client
/// names none, as long as a prompt of twice the estimated tokens leaves so many, since servers refuse a limit beyond their context.
pub(super) fn cap(prompt: &Prompt, left: Option<u32>, prompt_tokens: f64, max_model_len: u32) -> Option<u32> {
    left.filter(|left| match prompt.max_tokens {
        Some(asked) => *left < asked,
        None => f64::from(*left) + 2.0 * prompt_tokens <= f64::from(max_model_len),
    })
}

fn missed_refusal(missed: &Missed, constraints: &Constraints) -> Refusal {
    // To the microsecond.
    let milliseconds = |limit: Option<Duration>| (limit.unwrap_or_default().as_secs_f64() * 1e6).round() / 1e3;
    let message = match missed.constraint {
        Constraint::Ttft => {
            format!("No instance is expected to send the first token within {} ms.", milliseconds(constraints.slo.ttft))
        }
        Constraint::Tpot => {
            format!("No instance is expected to send a token every {} ms.", milliseconds(constraints.slo.tpot))
        }
        Constraint::Quality => {
            let least = constraints.quality_min.unwrap_or_default();
            format!("No model is expected to answer with a quality of {least}.")
        }
        Constraint::Budget => "No model is expected to end its answer within the budget.".to_owned(),
    };
    Refusal { status: 429, reason: missed.constraint.name(), message, retry_after: Some(missed.retry_after) }
}

fn saturated_refusal(retry_after: Duration) -> Refusal {
    Refusal {
        status: 429,
        reason: "saturated",
        message: "Every instance that may serve this request is saturated.".to_owned(),
        retry_after: Some(retry_after),
    }
}

#[cfg(test)]
mod tests;
