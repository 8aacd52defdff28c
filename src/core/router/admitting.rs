//! What a request insists on, the candidates that keep it, and what the client is told where none does.

use std::time::Duration;

use super::candidates::PromptTokens;
use super::{Ask, Refusal, RefusalReason, Router, milliseconds};
use crate::admission::{self, Admitted, Missed, Prospect, Saturation, headers, spending};
use crate::fleet::{Budget, Constraint, Constraints, InstanceId, Mode, Policy, PolicyId, Pool};
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
    /// What a request insists on by its headers, where its policy trusts them; `values` looks one up.
    ///
    /// # Errors
    ///
    /// 400 where a trusted header cannot be understood, or comes twice.
    pub fn header_constraints(
        &self,
        policy: PolicyId,
        values: impl FnMut(&str) -> Vec<String>,
    ) -> Result<Option<Constraints>, Refusal> {
        let Some(policy) = self.config.policy(policy).filter(|policy| policy.trust_request_headers) else {
            return Ok(None);
        };
        self.constraints_of(&policy.constraints, values)
    }

    /// The constraints of the request's headers, on top of others.
    ///
    /// # Errors
    ///
    /// As [`Router::header_constraints`].
    pub fn constraints_of(
        &self,
        others: &Constraints,
        values: impl FnMut(&str) -> Vec<String>,
    ) -> Result<Option<Constraints>, Refusal> {
        headers::constraints(others, values)
            .map(Some)
            .map_err(|error| Refusal::new(400, RefusalReason::Header, error.to_string()))
    }

    /// What a request insists on.
    pub(super) fn constraints(&self, ask: &Ask<'_>) -> Constraints {
        let policy = || self.config.policy(ask.policy).map(|policy| policy.constraints);
        ask.constraints.or_else(policy).unwrap_or_default()
    }

    /// The candidates that keep what the request insists on, or what the policy leaves instead.
    pub(super) fn admit(
        &self,
        (ask, policy): (&Ask<'_>, &Policy),
        candidates: Vec<Candidate>,
        estimates: &[Estimate],
        prompt: PromptTokens,
        loads: Option<&[LoadNow]>,
        learned: &Learned,
    ) -> Result<Entrants, Refusal> {
        let constraints = self.constraints(ask);
        let candidates = self.sufficient(ask, &constraints, candidates, prompt)?;
        let prospects = if Constraint::ALL.into_iter().any(|constraint| constraints.has(constraint)) {
            self.prospects(ask, &constraints, &candidates, estimates, prompt, learned)
        } else {
            Vec::new()
        };
        let admitted = admission::admit(candidates, &prospects, &constraints)
            .map_err(|missed| missed_refusal(&missed, &constraints))?;
        let waiting =
            |instance: InstanceId| loads.and_then(|l| l.get(instance.index())).map_or(0.0, |load| load.waiting);
        let saturated = match admission::saturation(&policy.overload, &admitted.candidates, waiting) {
            Saturation::None => false,
            Saturation::Served => true,
            Saturation::Shed(retry_after) => return Err(saturated_refusal(retry_after)),
        };
        Ok(Entrants { admitted, saturated })
    }

    /// The limit of each answer's tokens that is written at a pool, see [`cap`], and what the budget leaves there.
    pub(super) fn cap(&self, ask: &Ask<'_>, pool: &Pool, prompt: PromptTokens) -> (Option<u32>, Option<u32>) {
        let prompt_tokens = self.config.fleet.model_of(pool).map_or(prompt.text, |model| prompt.for_model(model));
        let left = self.answer(ask, pool, prompt_tokens).left();
        (cap(ask.prompt, left, prompt_tokens, pool.limits.max_model_len), left)
    }

    /// The candidates where the limits leave as many tokens as the client demands: `min_tokens` of each answer, and one of each where there
    /// are several. No server accepts a request that demands more than it may have.
    fn sufficient(
        &self,
        ask: &Ask<'_>,
        constraints: &Constraints,
        candidates: Vec<Candidate>,
        prompt: PromptTokens,
    ) -> Result<Vec<Candidate>, Refusal> {
        let asked = ask.prompt;
        if let Some(most) = asked.max_tokens.filter(|most| *most < asked.min_tokens) {
            let message =
                format!("`min_tokens` is {}, and the answer may have {most} tokens at most.", asked.min_tokens);
            return Err(Refusal::new(400, RefusalReason::MinTokens, message));
        }
        let fleet = &self.config.fleet;
        let suffices = |candidate: &Candidate| {
            let Some((_, pool)) = fleet.pool_of(candidate.instance) else { return true };
            let Some(model) = fleet.model_of(pool) else { return true };
            let answers = self.answer(ask, pool, prompt.for_model(model)).count();
            let least = asked.min_tokens.max(if answers > 1.0 { 1 } else { 0 });
            let tariff = pool.tariff.unwrap_or(model.tariff);
            let left = spending::tokens_for_each(&constraints.budget, &tariff, prompt.for_model(model), answers);
            answers == 0.0 || left.is_none_or(|left| left >= least)
        };
        if constraints.budget == Budget::default() || candidates.is_empty() {
            return Ok(candidates);
        }
        let sufficient: Vec<Candidate> = candidates.into_iter().filter(suffices).collect();
        if !sufficient.is_empty() {
            return Ok(sufficient);
        }
        let message = "The budget leaves fewer tokens than the request demands.";
        Err(match constraints.mode {
            Mode::Strict => Refusal::new(429, RefusalReason::Budget, message),
            Mode::Tiered | Mode::Relaxed => Refusal::new(400, RefusalReason::MinTokens, message),
        })
    }

    /// How probably each candidate keeps each constraint.
    fn prospects(
        &self,
        ask: &Ask<'_>,
        constraints: &Constraints,
        candidates: &[Candidate],
        estimates: &[Estimate],
        prompt: PromptTokens,
        learned: &Learned,
    ) -> Vec<Prospect> {
        let fleet = &self.config.fleet;
        let unknown = Speed::default();
        // Quality and budget are the same for all instances of a pool.
        let of_pools: Vec<Prospect> = fleet
            .pools
            .iter()
            .map(|pool| {
                let (Some(model), Some(estimate)) = (fleet.model_of(pool), estimates.get(pool.model.index())) else {
                    return Prospect::default();
                };
                let prompt_tokens = prompt.for_model(model);
                let answer = self.answer(ask, pool, prompt_tokens);
                if !answer.generates() {
                    return Prospect::default();
                }
                let enough = constraints.quality_min.is_none_or(|least| estimate.quality >= least);
                let tariff = pool.tariff.unwrap_or(model.tariff);
                let left = spending::tokens_left(&constraints.budget, &tariff, prompt_tokens, answer.count());
                let prompt_usd = tariff.prompt_usd(prompt_tokens, 0.0);
                let affords = constraints.budget.usd.is_none_or(|usd| usd >= prompt_usd);
                let ends = |left: f64| {
                    if left >= answer.asked() { 1.0 } else { admission::probability_within(estimate, left) }
                };
                Prospect {
                    quality: if enough { 1.0 } else { 0.0 },
                    budget: if affords { left.map_or(1.0, |left| ends(f64::from(left))) } else { 0.0 },
                    worst_usd: prompt_usd + answer.asked() * answer.count() * tariff.usd_per_output_token,
                    ..Prospect::default()
                }
            })
            .collect();
        let slo = &constraints.slo;
        candidates
            .iter()
            .map(|c| {
                let pool = fleet.instance(c.instance).map(|instance| instance.pool);
                let of_pool = pool.and_then(|pool| of_pools.get(pool.index())).copied().unwrap_or_default();
                let speed = pool.and_then(|pool| learned.speed(pool)).unwrap_or(&unknown);
                let ttft = |limit: Duration| speed.probability_ttft_within(c.ttft_seconds, limit.as_secs_f64());
                let tpot = |limit: Duration| speed.probability_tpot_within(c.tpot_seconds, limit.as_secs_f64());
                Prospect {
                    ttft_probability: slo.ttft.map_or(1.0, ttft),
                    // A response without tokens has no time per token.
                    tpot_probability: slo.tpot.filter(|_| c.output_tokens > 0.0).map_or(1.0, tpot),
                    ..of_pool
                }
            })
            .collect()
    }
}

/// How much longer than estimated a prompt may be: 9 of 10 estimates are wrong by less than half of that.
const PROMPT_MARGIN: f64 = 0.25;

/// The limit of generated tokens that a budget writes into the body: where it is below the client's own, where the client names none,
/// and where not every server reads the client's own alike. Servers refuse a limit beyond their context, so a limit that the client
/// does not name leaves room for the prompt: a quarter more than estimated, or else half of what is left of the context.
fn cap(prompt: &Prompt, left: Option<u32>, prompt_tokens: f64, max_model_len: u32) -> Option<u32> {
    let left = left?;
    let context = f64::from(max_model_len);
    let estimated = (prompt_tokens - prompt.token_ids as f64).max(0.0);
    let room = (context - prompt_tokens - PROMPT_MARGIN * estimated).max((context - prompt_tokens) / 2.0);
    match prompt.max_tokens {
        Some(asked) if prompt.max_tokens_is_plain && asked <= left => None,
        Some(asked) => Some(asked.min(left)),
        // A cast takes what is below 0 for 0.
        None => Some(left.min(room as u32).max(1)),
    }
}

fn missed_refusal(missed: &Missed, constraints: &Constraints) -> Refusal {
    let milliseconds = |limit: Option<Duration>| milliseconds(limit.unwrap_or_default().as_secs_f64());
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
    Refusal {
        status: 429,
        reason: missed.constraint.into(),
        message,
        retry_after: Some(missed.retry_after),
        param: None,
        pool: None,
    }
}

fn saturated_refusal(retry_after: Duration) -> Refusal {
    Refusal {
        status: 429,
        reason: RefusalReason::Saturated,
        message: "Every instance that may serve this request is saturated.".to_owned(),
        retry_after: Some(retry_after),
        param: None,
        pool: None,
    }
}

#[cfg(test)]
mod tests;
