//! The facade: a request and the load of every instance in, a decision out. It cannot fail, always answers, and says why.
//!
//! Deciding is a value; doing is the shell's. The simulator and the filter call the same [`Router::route`], which keeps nothing:
//! load, what was learnt and the random draw are arguments.

mod admitting;
mod candidates;
mod fallbacks;
mod holding;
mod naming;
mod reason;
mod unread;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

pub use reason::{RefusalReason, UntouchedReason};
pub use unread::{Packed, packed};

use admitting::Entrants;
use candidates::PromptTokens;

use crate::admission::spending;
use crate::affinity::Held;
use crate::config::{Config, Drill};
use crate::discovery::{self, Roster};
use crate::features;
use crate::fleet::{Budget, Constraint, Constraints, Model, ModelKind, Objective};
use crate::latency::Forecast;
use crate::learning::{Learned, exploration, lengths, speed};
use crate::names::named;
use crate::openai::{Api, Ending, Observed, Prompt};
use crate::predictor::{Estimate, Prediction, Predictor};
use crate::reckoning::{Dispatch, LoadNow, Standing};
use crate::score::{self, References};

named! {
    /// The step of the ladder on which a decision was made, best first. A lower step is a worse decision, never an error.
    pub enum Rung {
        /// Prediction and fresh reports.
        Fused = "fused",
        /// No prediction: the priors of the models.
        Priors = "priors",
        /// No fresh report of the chosen instance: this gateway's own counters.
        Reckoned = "reckoned",
        /// No load at all: weights and profiles alone.
        Static = "static",
        /// Not decided here: Envoy's own route and balancing.
        Untouched = "untouched",
    }
}

/// What is asked of the router.
pub struct Ask<'a> {
    /// The API that was called.
    pub api: Api,
    /// What the body said.
    pub prompt: &'a Prompt,
    /// Index of the route's policy.
    pub policy: usize,
    /// The instance that holds what the request refers to, if any.
    pub holder: Option<usize>,
    /// What the instances have kept of what the request needs.
    pub held: Held<'a>,
    /// How many requests were decided before, for round robin.
    pub sequence: u64,
    /// Uniform in 0 to 1, for exploration.
    pub draw: f64,
    /// What the request insists on; `None` for what its policy says.
    pub constraints: Option<Constraints>,
    /// What a request to each model costs now under the objective `prices`; `None` for what its policy says.
    pub prices: Option<&'a [f64]>,
}

impl<'a> Ask<'a> {
    /// A question about a request of which nothing is known but what its body says, and that explores nothing.
    pub fn new(api: Api, prompt: &'a Prompt, policy: usize) -> Ask<'a> {
        let held = Held::default();
        Ask { api, prompt, policy, holder: None, held, sequence: 0, draw: 1.0, constraints: None, prices: None }
    }
}

/// What is expected of the answers to a prompt, before anything learnt while serving.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outlook {
    /// For every model of the fleet, the estimate and whether it is a prediction for this prompt (else a prior).
    pub estimates: Vec<(Estimate, bool)>,
    /// How much the prompt resembles those that the predictor was trained on; `None` without a prediction.
    pub familiarity: Option<f64>,
    /// The cluster of training prompts that the prompt is nearest to; `None` without a prediction.
    pub prototype: Option<usize>,
}

/// What is to be done with a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Send it there.
    Decided(Box<Decision>),
    /// Answer it with an error.
    Refused(Refusal),
    /// Send it to this pool and let Envoy choose the instance: none of them is known yet.
    Pooled {
        /// Index of the pool.
        pool: usize,
        /// The limit of each answer's tokens that the budget demands there.
        max_tokens: Option<u32>,
    },
    /// Leave it to Envoy's own route, for this reason.
    Untouched(UntouchedReason),
}

/// An error that a request is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Why, in one word for machines.
    pub reason: RefusalReason,
    /// One sentence for the client.
    pub message: String,
    /// When another attempt may succeed.
    pub retry_after: Option<Duration>,
    /// The parameter of the request that is wrong, if it is one.
    pub param: Option<&'static str>,
}

impl Refusal {
    /// A request that is wrong, whenever it comes.
    pub fn new(status: u16, reason: RefusalReason, message: impl Into<String>) -> Refusal {
        Refusal { status, reason, message: message.into(), retry_after: None, param: None }
    }
}

/// What a request must say at a pool of another model than the chosen one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Elsewhere {
    /// Index of the pool.
    pub pool: usize,
    /// Index of its model.
    pub model: usize,
    /// The limit of each answer's tokens that is written there.
    pub max_tokens: Option<u32>,
    /// Tokens that the budget leaves there for each answer.
    pub budget_left: Option<u32>,
    /// Quality and its standard deviation there, before what feedback has taught.
    pub unrevised_quality: (f64, f64),
}

/// Where a request goes, what is expected of it there, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Index of the model.
    pub model: usize,
    /// Index of the pool.
    pub pool: usize,
    /// Index of the instance.
    pub instance: usize,
    /// Where Envoy retries, best first: other instances of the pool, then of other models.
    pub fallbacks: Vec<usize>,
    /// What a request must say at the pools of other models among them.
    pub elsewhere: Vec<Elsewhere>,
    /// Whether the request probes a half-open instance: it must be claimed first, and if another worker was faster, the request
    /// is to be decided anew.
    pub probe: bool,
    /// The step of the ladder.
    pub rung: Rung,
    /// Whether what is expected of the answer was predicted; false where the predictor does not know the model.
    pub predicted: bool,
    /// Estimated prompt tokens.
    pub prompt_tokens: u64,
    /// Of those, the ones that the instance is expected to have kept from an earlier request.
    pub cached_tokens: u64,
    /// The LoRA adapter that the client asks for by its name, which then stays as it is.
    pub adapter: Option<String>,
    /// Expected output tokens.
    pub output_tokens: u64,
    /// Output tokens that 4 of 5 such requests do not exceed.
    pub output_tokens_p80: u64,
    /// Output tokens that 9 of 10 such requests do not exceed.
    pub output_tokens_p90: u64,
    /// The learnt factor in the expected output tokens.
    pub output_tokens_correction: f64,
    /// What the answer's length is to be compared with, uncorrected; `None` where that would teach nothing.
    pub expectation: Option<lengths::Expectation>,
    /// Expected answer quality, 0 to 1.
    pub quality: f64,
    /// Standard deviation of `quality`.
    pub quality_sd: f64,
    /// Quality and its standard deviation before what feedback has taught: what a score is to be compared with.
    pub unrevised_quality: (f64, f64),
    /// Probability that this model was chosen, given the request and the load.
    pub propensity: f64,
    /// Whether exploration has drawn the model.
    pub explored: bool,
    /// How much the prompt resembles those that the predictor was trained on, 0 to 1; `None` without a prediction.
    pub familiarity: Option<f64>,
    /// The cluster of training prompts that the prompt is nearest to; `None` without a prediction.
    pub prototype: Option<usize>,
    /// Expected time, seconds: the objective's T.
    pub seconds: f64,
    /// Expected times of the response.
    pub forecast: Forecast,
    /// Expected cost, USD.
    pub usd: f64,
    /// The winner's score.
    pub score: f64,
    /// What a request to the model cost, units of quality; `None` unless the objective is `prices`.
    pub price: Option<f64>,
    /// How many candidates were scored.
    pub candidates: usize,
    /// Constraints that had to be given up.
    pub relaxed: Vec<Constraint>,
    /// Whether every candidate is saturated.
    pub saturated: bool,
    /// What the request may spend.
    pub budget: Budget,
    /// The limit of each answer's tokens that is written where there is a budget, and not every server reads the client's own as low.
    pub max_tokens: Option<u32>,
    /// Tokens that the budget leaves for each answer.
    pub budget_left: Option<u32>,
    /// Whether the prompt alone uses the budget up.
    pub prompt_exhausts_budget: bool,
}

impl Decision {
    /// Whether the answer is text, which can be scored.
    pub fn generates(&self) -> bool {
        self.output_tokens > 0
    }

    /// What the chosen instance is given to do.
    pub fn dispatch(&self) -> Dispatch {
        Dispatch { instance: self.instance, prompt_tokens: self.prefill_tokens(), output_tokens: self.output_tokens }
    }

    /// An instance of this pool serves the request, and not one of the chosen pool; whether that makes it another model. What was
    /// expected of the chosen one teaches nothing then.
    pub fn serve_at(&mut self, pool: usize) -> bool {
        let Some(elsewhere) = self.elsewhere.iter().find(|elsewhere| elsewhere.pool == pool).copied() else {
            return false;
        };
        self.pool = elsewhere.pool;
        self.model = elsewhere.model;
        self.max_tokens = elsewhere.max_tokens;
        self.budget_left = elsewhere.budget_left;
        self.unrevised_quality = elsewhere.unrevised_quality;
        self.expectation = None;
        true
    }

    /// How long a whole answer may take where no report says whether its instance works: twice the time of as many tokens as 9 of 10 such
    /// answers have, or as the client allows if that is more, and `least` at least. `None` where there are reports.
    pub fn answer_limit(&self, least: Duration) -> Option<Duration> {
        if self.rung < Rung::Reckoned {
            return None;
        }
        let allowed = self.expectation.and_then(|expectation| expectation.max_tokens).map_or(0, u64::from);
        let more_tokens = self.output_tokens_p90.max(allowed).saturating_sub(self.output_tokens);
        let seconds = 2.0 * (self.forecast.e2e + self.forecast.tpot * more_tokens as f64);
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).max(least))
    }

    /// Prompt tokens that the instance has to prefill.
    pub fn prefill_tokens(&self) -> u64 {
        self.prompt_tokens.saturating_sub(self.cached_tokens)
    }

    /// What a response teaches about the length of the model's answers, if it teaches anything.
    pub fn lesson(&self, seen: &Observed) -> Option<lengths::Lesson> {
        let usage = seen.usage.filter(|_| self.is_lesson(seen))?;
        self.expectation?.lesson(usage.completion_tokens, seen.ending == Some(Ending::Limit))
    }

    /// Whether an answer shows what the model does: it is whole, and ended by itself or at the limit that its request carried. One that
    /// the server's context, a filter, Envoy or the client has cut says nothing.
    pub fn is_lesson(&self, seen: &Observed) -> bool {
        let limit = self.expectation.and_then(|expectation| expectation.max_tokens).map(u64::from);
        let tokens = seen.usage.map(|usage| usage.completion_tokens);
        let ended = match seen.ending {
            None | Some(Ending::ByItself) => true,
            Some(Ending::Limit) => limit.zip(tokens).is_some_and(|(limit, tokens)| tokens >= limit),
            Some(Ending::Other) => false,
        };
        ended && seen.ended && !seen.error_event
    }

    /// Whether the request has used its budget up with this cost, or was cut where the budget ends.
    pub fn exhausts_budget(&self, usd: f64, seen: &Observed) -> bool {
        let is_limit = self.max_tokens.is_some() && self.max_tokens == self.budget_left;
        spending::is_exhausted(&self.budget, usd) || (is_limit && seen.ending == Some(Ending::Limit))
    }

    /// What a whole, successful response teaches about the speed of its pool, if it has one answer to one prompt.
    pub fn speed_lesson(&self, timing: &speed::Timing) -> Option<speed::Lesson> {
        self.expectation?;
        let prompt_tokens = self.prefill_tokens() as f64;
        let expectation = speed::Expectation { pool: self.pool, forecast: self.forecast, prompt_tokens };
        Some(expectation.lesson(timing))
    }
}

/// The router of one configuration. Copies share its predictor, which is most of it.
#[derive(Clone)]
pub struct Router {
    config: Config,
    predictor: Option<Arc<Predictor>>,
    /// For every model of the fleet, its position in the predictor's output.
    predicted: Vec<Option<usize>>,
    /// For every model of the fleet, what is expected of its answer to any prompt.
    priors: Vec<Estimate>,
    references: References,
}

impl Router {
    /// A router; without a predictor, priors decide.
    pub fn new(config: Config, predictor: Option<Predictor>) -> Router {
        Router::sharing(config, predictor.map(Arc::new))
    }

    /// A router for another configuration with the same predictor.
    pub fn with_config(&self, config: Config) -> Router {
        Router::sharing(config, self.predictor.clone())
    }

    fn sharing(config: Config, predictor: Option<Arc<Predictor>>) -> Router {
        let predictor = predictor.filter(|_| config.predictor_enabled);
        let position =
            |model: &Model| predictor.as_ref().and_then(|p| p.models().iter().position(|name| *name == model.name));
        let predicted: Vec<Option<usize>> = config.fleet.models.iter().map(position).collect();
        let spread = |position: &Option<usize>| {
            predictor.as_ref().and_then(|p| p.prior_spreads().get((*position)?)).copied().unwrap_or_default()
        };
        let models = config.fleet.models.iter().zip(&predicted);
        let priors = models.map(|(model, position)| Estimate::prior(model, &spread(position))).collect();
        let references = References::of(&config.fleet);
        Router { config, predictor, predicted, priors, references }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Makes the fleet have the instances of a roster; returns the indices that mean another instance than before.
    pub fn follow(&mut self, roster: &Roster) -> Vec<usize> {
        discovery::apply(&mut self.config.fleet, roster)
    }

    /// The predictor, if it runs.
    pub fn predictor(&self) -> Option<&Predictor> {
        self.predictor.as_deref()
    }

    /// Names of the models that a predictor is there for and does not know: what is expected of them is their priors.
    pub fn unpredicted(&self) -> Vec<&str> {
        let models = self.config.fleet.models.iter().zip(&self.predicted);
        let unknown = models.filter(|(model, position)| position.is_none() && model.kind == ModelKind::Generate);
        unknown.filter(|_| self.predictor.is_some()).map(|(model, _)| model.name.as_str()).collect()
    }

    /// Clusters of training prompts that a decision may name.
    pub fn prototypes(&self) -> usize {
        self.predictor().map_or(0, Predictor::prototypes)
    }

    /// Decides. `loads` is in the order of the fleet's instances; `None` if there is none to read.
    pub fn route(&self, ask: &Ask<'_>, loads: Option<&[LoadNow]>, learned: &Learned) -> Verdict {
        self.verdict(ask, loads, learned, |models| Cow::Owned(self.outlook(ask.prompt, models)))
    }

    /// Decides as [`Router::route`] does, with an outlook made elsewhere: by a simulation, or once for many decisions.
    pub fn decide(&self, ask: &Ask<'_>, outlook: &Outlook, loads: Option<&[LoadNow]>, learned: &Learned) -> Verdict {
        self.verdict(ask, loads, learned, |_| Cow::Borrowed(outlook))
    }

    fn verdict<'o>(
        &self,
        ask: &Ask<'_>,
        loads: Option<&[LoadNow]>,
        learned: &Learned,
        outlook: impl FnOnce(&[usize]) -> Cow<'o, Outlook>,
    ) -> Verdict {
        if self.config.drills(Drill::Router) {
            return Verdict::Untouched(UntouchedReason::Drill);
        }
        let models = match self.allowed_models(ask) {
            Ok(models) => models,
            Err(verdict) => return verdict,
        };
        if let Some(refusal) = self.held_by_another(ask, &models) {
            return Verdict::Refused(refusal);
        }
        let Some(policy) = self.config.policies.get(ask.policy) else {
            return Verdict::Untouched(UntouchedReason::NoPolicy);
        };
        let outlook = outlook(&models);
        let Outlook { estimates: unlearned_all, familiarity, prototype } = outlook.as_ref();
        let (familiarity, prototype) = (*familiarity, *prototype);
        let estimates: Vec<Estimate> = unlearned_all
            .iter()
            .enumerate()
            .map(|(model, (estimate, _))| learned.applied(model, prototype, estimate))
            .collect();
        let prompt = PromptTokens::of(ask.prompt);
        let candidates = self.candidates(ask, &models, &estimates, prompt, loads, learned);
        let entrants = self.admit((ask, policy), candidates, &estimates, prompt, loads, learned);
        let Entrants { admitted, saturated } = match entrants {
            Ok(entrants) => entrants,
            Err(refusal) => return Verdict::Refused(refusal),
        };
        let prices = ask.prices.unwrap_or(&policy.prices);
        let scores = score::scores(&admitted.candidates, policy, prices, &self.references, ask.sequence);
        let ranking = score::Ranking::new(&admitted.candidates, &scores, policy.objective);
        let firsts = ranking.of_models();
        let models_ranked: Vec<usize> =
            firsts.iter().filter_map(|i| Some(admitted.candidates.get(*i)?.model)).collect();
        let choice = exploration::choose(&models_ranked, policy.exploration, ask.draw);
        let chosen = choice.and_then(|choice| {
            let i = *firsts.get(choice.position)?;
            let candidate = admitted.candidates.get(i)?;
            let (pool_index, pool) = self.config.fleet.pool_of(candidate.instance)?;
            Some((choice, candidate, *scores.get(i)?, pool_index, pool))
        });
        let Some((choice, chosen, score, pool_index, pool)) = chosen else {
            return self.without_candidate(ask, &models);
        };
        let model = pool.model;
        let (Some(estimate), Some((unlearned, predicted))) = (estimates.get(model), unlearned_all.get(model)) else {
            return Verdict::Untouched(UntouchedReason::NoCandidate);
        };
        let prompt_tokens = self.config.fleet.model_of(pool).map_or(prompt.text, |model| prompt.at(model));
        let answer = self.answer(ask, pool, prompt_tokens);
        let (max_tokens, budget_left) = self.cap(ask, pool, prompt);
        let budget = self.constraints(ask).budget;
        let prompt_usd = self.config.fleet.model_of(pool).map_or(0.0, |m| prompt_tokens * m.tariff.usd_per_input_token);
        let cached_tokens = ask.held.cached_tokens(chosen.instance, prompt_tokens);
        let fallbacks = self.fallbacks(ask, chosen, pool_index, (&admitted.candidates, &ranking, &firsts), loads);
        Verdict::Decided(Box::new(Decision {
            model,
            pool: pool_index,
            instance: chosen.instance,
            elsewhere: self.elsewhere(ask, pool_index, &fallbacks, prompt, unlearned_all),
            fallbacks,
            probe: loads.and_then(|l| l.get(chosen.instance)).is_some_and(|l| l.standing == Standing::HalfOpen),
            rung: rung(
                *predicted || familiarity.is_some(),
                loads.map(|l| l.get(chosen.instance).copied().unwrap_or_default()),
            ),
            predicted: *predicted,
            prompt_tokens: prompt_tokens as u64,
            cached_tokens: cached_tokens as u64,
            adapter: self.adapter(ask.prompt).map(str::to_owned),
            output_tokens: chosen.output_tokens as u64,
            output_tokens_p80: chosen.output_tokens_p80 as u64,
            output_tokens_p90: answer.tokens(estimate.output_tokens_p90) as u64,
            output_tokens_correction: learned.correction(model),
            expectation: answer.is_one().then_some(lengths::Expectation {
                model,
                output_tokens: unlearned.output_tokens,
                max_tokens: max_tokens.or(ask.prompt.max_tokens),
            }),
            quality: chosen.quality,
            quality_sd: estimate.quality_sd,
            unrevised_quality: (unlearned.quality, unlearned.quality_sd),
            propensity: choice.propensity,
            explored: choice.explored,
            familiarity: familiarity.filter(|_| *predicted),
            prototype: prototype.filter(|_| *predicted),
            seconds: chosen.seconds,
            forecast: chosen.forecast,
            usd: chosen.usd,
            score,
            price: (policy.objective == Objective::Prices).then(|| prices.get(model).copied().unwrap_or(0.0)),
            candidates: admitted.candidates.len(),
            relaxed: admitted.relaxed,
            saturated,
            budget,
            max_tokens,
            budget_left,
            prompt_exhausts_budget: spending::is_exhausted(&budget, prompt_usd),
        }))
    }

    /// Where nobody is known who could serve: Envoy may know hosts of a discovered pool, and the default one comes first.
    fn without_candidate(&self, ask: &Ask<'_>, models: &[usize]) -> Verdict {
        let pools = &self.config.fleet.pools;
        let may = |i: &usize| pools.get(*i).is_some_and(|pool| pool.discovered && models.contains(&pool.model));
        let first = std::iter::once(self.config.envoy.default_pool).chain(0..pools.len()).find(may);
        let Some((index, pool)) = first.and_then(|index| Some((index, pools.get(index)?))) else {
            return Verdict::Untouched(UntouchedReason::NoCandidate);
        };
        Verdict::Pooled { pool: index, max_tokens: self.cap(ask, pool, PromptTokens::of(ask.prompt)).0 }
    }

    /// What is expected of each model's answer to a prompt, if these models may answer it.
    pub fn outlook(&self, prompt: &Prompt, allowed: &[usize]) -> Outlook {
        let prediction = self.prediction(prompt, allowed);
        Outlook {
            estimates: self.estimates(prediction.as_ref()),
            familiarity: prediction.as_ref().map(|p| p.familiarity),
            prototype: prediction.as_ref().map(|p| p.prototype),
        }
    }

    /// What the predictor makes of the prompt, if it has anything to say.
    fn prediction(&self, prompt: &Prompt, allowed: &[usize]) -> Option<Prediction> {
        let generates =
            allowed.iter().any(|m| self.config.fleet.models.get(*m).is_some_and(|m| m.kind == ModelKind::Generate));
        let predictor = self.predictor.as_ref().filter(|_| generates && !self.config.drills(Drill::Predictor))?;
        predictor.predict(&features::extract(&prompt.text))
    }

    /// For every model of the fleet, what is expected of its answer and whether that is a prediction for this prompt.
    fn estimates(&self, prediction: Option<&Prediction>) -> Vec<(Estimate, bool)> {
        let models = self.config.fleet.models.iter().zip(&self.predicted).zip(&self.priors);
        models
            .map(|((model, position), prior)| {
                let predicted = position.and_then(|i| Some((prediction?.estimates.get(i)?, prediction?.familiarity)));
                // An embedding has nothing to predict: its prior is exact.
                let exact = model.kind == ModelKind::Embed;
                (
                    predicted.map_or(*prior, |(estimate, familiarity)| estimate.shrunk_to(prior, familiarity)),
                    exact || predicted.is_some(),
                )
            })
            .collect()
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

#[cfg(test)]
mod tests;
