//! From the chosen candidate to the decision on its request.

use super::admitting::Entrants;
use super::candidates::PromptTokens;
use super::{Ask, Because, Decision, Destination, Draw, Expected, ExpectedQuality, Outlook, Router, Rung};
use crate::admission::spending;
use crate::fleet::{InstanceId, Objective, Policy, Pool, PoolId};
use crate::learning::exploration::Choice;
use crate::learning::{Learned, lengths};
use crate::predictor::Estimate;
use crate::reckoning::{LoadNow, Standing};
use crate::score::Candidate;

/// A request, and what is known where its decision is made.
pub(super) struct RoutedAsk<'a> {
    pub(super) ask: &'a Ask<'a>,
    pub(super) policy: &'a Policy,
    pub(super) outlook: &'a Outlook,
    /// What is expected of each model's answer, with what was learnt.
    pub(super) estimates: &'a [Estimate],
    pub(super) prompt: PromptTokens,
    pub(super) loads: Option<&'a [LoadNow]>,
    pub(super) learned: &'a Learned,
}

/// The candidate that was chosen.
pub(super) struct Chosen<'a> {
    pub(super) candidate: &'a Candidate,
    pub(super) score: f64,
    pub(super) choice: Choice,
    pub(super) pool_id: PoolId,
    pub(super) pool: &'a Pool,
}

impl Router {
    /// The decision for a candidate; `None` if nothing is expected of its model.
    pub(super) fn decision(
        &self,
        question: &RoutedAsk<'_>,
        chosen: &Chosen<'_>,
        entrants: &Entrants,
        fallbacks: Vec<InstanceId>,
    ) -> Option<Decision> {
        let RoutedAsk { ask, outlook, loads, .. } = *question;
        let Chosen { candidate, pool_id, pool, .. } = *chosen;
        let (unlearned, predicted) = outlook.estimates.get(pool.model.index())?;
        let estimate = question.estimates.get(pool.model.index())?;
        let load = loads.map(|loads| loads.get(candidate.instance.index()).copied().unwrap_or_default());
        let because = self.because(question, chosen, entrants, rung(*predicted || outlook.familiarity.is_some(), load));
        Some(Decision {
            to: Destination {
                model: pool.model,
                pool: pool_id,
                instance: candidate.instance,
                elsewhere: self.elsewhere(ask, pool_id, &fallbacks, question.prompt, &outlook.estimates),
                fallbacks,
                probe: load.is_some_and(|load| load.standing == Standing::HalfOpen),
                adapter: self.adapter(ask.prompt).map(str::to_owned),
            },
            quality: ExpectedQuality {
                predicted: *predicted,
                mean: candidate.quality,
                sd: estimate.quality_sd,
                unrevised: (unlearned.quality, unlearned.quality_sd),
                familiarity: outlook.familiarity.filter(|_| *predicted),
                prototype: outlook.prototype.filter(|_| *predicted),
            },
            draw: Draw { propensity: chosen.choice.propensity, explored: chosen.choice.explored },
            expected: self.expected(question, chosen, (unlearned, estimate), because.max_tokens),
            because,
        })
    }

    fn prompt_tokens(&self, prompt: PromptTokens, pool: &Pool) -> f64 {
        self.config.fleet.model_of(pool).map_or(prompt.text, |model| prompt.for_model(model))
    }

    fn because(&self, question: &RoutedAsk<'_>, chosen: &Chosen<'_>, entrants: &Entrants, rung: Rung) -> Because {
        let RoutedAsk { ask, policy, prompt, .. } = *question;
        let pool = chosen.pool;
        let (max_tokens, budget_left) = self.cap(ask, pool, prompt);
        let budget = self.constraints(ask).budget;
        let usd_per_token = self.config.fleet.tariff_of(pool).map_or(0.0, |tariff| tariff.usd_per_input_token);
        let prompt_usd = self.prompt_tokens(prompt, pool) * usd_per_token;
        let price = || ask.prices.unwrap_or(&policy.prices).get(pool.model.index()).copied().unwrap_or(0.0);
        Because {
            rung,
            candidates: entrants.admitted.candidates.len(),
            relaxed: entrants.admitted.relaxed.clone(),
            saturated: entrants.saturated,
            budget,
            budget_exhausted: spending::is_exhausted(&budget, prompt_usd),
            max_tokens,
            budget_left,
            score: chosen.score,
            price: (policy.objective == Objective::Prices).then(price),
        }
    }

    fn expected(
        &self,
        question: &RoutedAsk<'_>,
        chosen: &Chosen<'_>,
        (unlearned, estimate): (&Estimate, &Estimate),
        max_tokens: Option<u32>,
    ) -> Expected {
        let RoutedAsk { ask, prompt, learned, .. } = *question;
        let Chosen { candidate, pool, .. } = *chosen;
        let prompt_tokens = self.prompt_tokens(prompt, pool);
        let answer = self.answer(ask, pool, prompt_tokens);
        Expected {
            output_tokens: candidate.output_tokens as u64,
            output_tokens_p80: candidate.output_tokens_p80 as u64,
            output_tokens_p90: answer.tokens(estimate.output_tokens_p90) as u64,
            output_tokens_correction: learned.correction(pool.model),
            expectation: answer.is_one().then_some(lengths::LengthExpectation {
                model: pool.model,
                output_tokens: unlearned.output_tokens,
                max_tokens: max_tokens.or(ask.prompt.max_tokens),
            }),
            seconds: candidate.seconds,
            forecast: candidate.forecast,
            usd: candidate.usd,
            prompt_tokens: prompt_tokens as u64,
            cached_tokens: ask.held.cached_tokens(candidate.instance, prompt_tokens) as u64,
        }
    }
}

/// The step on which a decision stands: the worst of what it had to do without. A predictor that has said what it knows has not failed,
/// even where it does not know the model.
fn rung(predicted: bool, load: Option<LoadNow>) -> Rung {
    match (load, predicted) {
        (None, _) => Rung::Static,
        (Some(load), _) if load.trust <= 0.0 => Rung::Reckoned,
        (Some(_), false) => Rung::Priors,
        (Some(_), true) => Rung::Fused,
    }
}
