//! The facade: a request and the load of every instance in, a decision out. It cannot fail, always answers, and says why.
//!
//! Deciding is a value; doing is the shell's. The simulator and the filter call the same [`Router::route`], which keeps nothing:
//! load, what was learnt and the random draw are arguments.

mod admitting;
mod candidates;
mod decision;
mod fallbacks;
mod holding;
mod naming;
mod reason;
mod record;
mod sharing;
mod unread;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use decision::milliseconds;
pub use decision::{Because, Decision, Destination, Draw, Elsewhere, Expected, ExpectedQuality};
pub use reason::{RefusalReason, UntouchedReason};
pub use unread::{Packed, packed};

use candidates::PromptTokens;
use record::{Chosen, RoutedAsk};
use sharing::Sharing;

use crate::affinity::Held;
use crate::config::{Config, Drill};
use crate::discovery::{self, Roster};
use crate::features;
use crate::fleet::{Constraints, InstanceId, Model, ModelId, ModelKind, Policy, PolicyId, PoolId, Weights};
use crate::hash::fnv1a;
use crate::learning::{Learned, exploration};
use crate::names::named;
use crate::openai::{Api, Prompt};
use crate::predictor::{Estimate, Prediction, Predictor};
use crate::reckoning::LoadNow;
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
    /// The route's policy.
    pub policy: PolicyId,
    /// Weights in the place of the policy's; `None` for those.
    pub weights: Option<Weights>,
    /// The instance that holds what the request refers to, if any.
    pub holder: Option<InstanceId>,
    /// The only instances that may serve, in their order; `None` for all.
    pub subset: Option<&'a [InstanceId]>,
    /// What the instances have kept of what the request needs.
    pub held: Held<'a>,
    /// How many requests were decided before, for round robin.
    pub sequence: u64,
    /// Uniform in 0 to 1, for exploration.
    pub draw: f64,
    /// Where the request falls among shares of traffic, the same for all of a session; `None` for nowhere.
    pub lot: Option<u64>,
    /// What the request insists on; `None` for what its policy says.
    pub constraints: Option<Constraints>,
    /// What a request to each model costs now under the objective `prices`; `None` for what its policy says.
    pub prices: Option<&'a [f64]>,
}

impl<'a> Ask<'a> {
    /// A question about a request of which nothing is known but what its body says, and that explores nothing.
    pub fn new(api: Api, prompt: &'a Prompt, policy: PolicyId) -> Ask<'a> {
        let held = Held::default();
        Ask {
            api,
            prompt,
            policy,
            weights: None,
            holder: None,
            subset: None,
            held,
            sequence: 0,
            draw: 1.0,
            lot: None,
            constraints: None,
            prices: None,
        }
    }

    /// Whether an instance may serve, as far as the gateway says.
    fn allows(&self, instance: InstanceId) -> bool {
        self.subset.is_none_or(|subset| subset.binary_search(&instance).is_ok())
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
        /// The pool.
        pool: PoolId,
        /// The limit of each answer's tokens that the budget demands there.
        max_tokens: Option<u32>,
    },
    /// Leave it to Envoy's own route, for this reason.
    Untouched(UntouchedReason),
}

/// When to ask again for a pool without instances: whatever starts them needs some time to see that they are wanted.
const START_AFTER: Duration = Duration::from_secs(5);

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
    /// The pool whose instances are missing, if that is why.
    pub pool: Option<PoolId>,
}

impl Refusal {
    /// None of the endpoints that the gateway allows can serve: no other one may.
    pub fn subset() -> Refusal {
        let message = "None of the endpoints that the gateway allows can serve this request.";
        let refusal = Refusal::new(503, RefusalReason::Subset, message);
        Refusal { retry_after: Some(Duration::from_secs(1)), ..refusal }
    }

    /// No instance is there that could serve; the client has named this model, or none.
    pub fn no_instance(model: Option<&str>, pool: PoolId) -> Refusal {
        let message = match model {
            Some(model) => format!("No instance of the model `{model}` is running."),
            None => "No instance of any model is running.".to_owned(),
        };
        let refusal = Refusal::new(503, RefusalReason::NoInstance, message);
        Refusal { retry_after: Some(START_AFTER), pool: Some(pool), ..refusal }
    }

    /// A request that is wrong, whenever it comes.
    pub fn new(status: u16, reason: RefusalReason, message: impl Into<String>) -> Refusal {
        Refusal { status, reason, message: message.into(), retry_after: None, param: None, pool: None }
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
    sharing: Sharing,
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
        let references = References::from_fleet(&config.fleet);
        let sharing = Sharing::from_fleet(&config.fleet);
        Router { config, predictor, predicted, priors, references, sharing }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Makes the fleet have the instances of a roster; returns the ids that mean another instance than before.
    pub fn follow(&mut self, roster: &Roster) -> Vec<InstanceId> {
        let replaced = discovery::apply(&mut self.config.fleet, roster);
        self.sharing = Sharing::from_fleet(&self.config.fleet);
        replaced
    }

    /// The lot of a request: its session's, or the one that `draw` draws where traffic is shared by rule.
    pub fn lot(&self, session: Option<&str>, draw: impl FnOnce() -> f64) -> Option<u64> {
        let session = session.filter(|session| !session.is_empty());
        (!self.sharing.is_empty())
            .then(|| session.map_or_else(|| draw().to_bits(), |session| fnv1a(session.as_bytes())))
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
        outlook: impl FnOnce(&[ModelId]) -> Cow<'o, Outlook>,
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
        let Some(policy) = self.config.policy(ask.policy) else {
            return Verdict::Untouched(UntouchedReason::NoPolicy);
        };
        let weighted = ask.weights.map(|weights| Policy { weights, ..policy.clone() });
        let policy = weighted.as_ref().unwrap_or(policy);
        let outlook = outlook(&models);
        let unlearned = outlook.estimates.iter().enumerate();
        let estimates: Vec<Estimate> = unlearned
            .map(|(model, (estimate, _))| learned.applied(ModelId::new(model), outlook.prototype, estimate))
            .collect();
        let prompt = PromptTokens::from_prompt(ask.prompt);
        let candidates = self.candidates(ask, &models, &estimates, prompt, loads, learned);
        let entrants = self.admit((ask, policy), candidates, &estimates, prompt, loads, learned);
        let entrants = match entrants {
            Ok(entrants) => entrants,
            Err(refusal) => return Verdict::Refused(refusal),
        };
        let admitted = &entrants.admitted;
        let prices = ask.prices.unwrap_or(&policy.prices);
        let scores = score::scores(&admitted.candidates, policy, prices, &self.references, ask.sequence);
        let ranking = score::Ranking::new(&admitted.candidates, &scores, policy.objective);
        let firsts = ranking.of_models();
        let models_ranked: Vec<ModelId> =
            firsts.iter().filter_map(|i| Some(admitted.candidates.get(*i)?.model)).collect();
        let choice = exploration::choose(&models_ranked, policy.exploration, ask.draw);
        let chosen = choice.and_then(|choice| {
            let i = *firsts.get(choice.position)?;
            let candidate = admitted.candidates.get(i)?;
            let (pool_id, pool) = self.config.fleet.pool_of(candidate.instance)?;
            Some(Chosen { candidate, score: *scores.get(i)?, choice, pool_id, pool })
        });
        let Some(chosen) = chosen else {
            return self.without_candidate(ask, &models);
        };
        let Chosen { candidate, pool_id, .. } = chosen;
        let fallbacks = self.fallbacks(ask, candidate, pool_id, (&admitted.candidates, &ranking, &firsts), loads);
        let question =
            RoutedAsk { ask, policy, outlook: outlook.as_ref(), estimates: &estimates, prompt, loads, learned };
        let decision = self.decision(&question, &chosen, &entrants, fallbacks);
        decision
            .map_or(Verdict::Untouched(UntouchedReason::NoCandidate), |decision| Verdict::Decided(Box::new(decision)))
    }

    /// Where nobody is known who could serve: Envoy may know hosts of a discovered pool that it has not told, and the default one comes
    /// first. Where it has told that there are none, nobody serves.
    fn without_candidate(&self, ask: &Ask<'_>, models: &[ModelId]) -> Verdict {
        if ask.subset.is_some() {
            return Verdict::Refused(Refusal::subset());
        }
        let fleet = &self.config.fleet;
        let default = self.config.envoy.default_pool;
        let all = fleet.pool(default).map(|pool| (default, pool)).into_iter().chain(fleet.pools_by_id());
        let may: Vec<_> = all.filter(|(_, pool)| models.contains(&pool.model)).collect();
        let Some((id, pool)) = may.iter().find(|(_, pool)| pool.discovered && !pool.known) else {
            let Some((id, pool)) = may.first() else { return Verdict::Untouched(UntouchedReason::NoCandidate) };
            let named = self.config.names_no_model(ask.prompt.model.as_deref());
            let model = fleet.model_of(pool).map(|model| model.name.as_str()).filter(|_| !named);
            return Verdict::Refused(Refusal::no_instance(model, *id));
        };
        Verdict::Pooled { pool: *id, max_tokens: self.cap(ask, pool, PromptTokens::from_prompt(ask.prompt)).0 }
    }

    /// What is expected of each model's answer to a prompt, if these models may answer it.
    pub fn outlook(&self, prompt: &Prompt, allowed: &[ModelId]) -> Outlook {
        let prediction = self.prediction(prompt, allowed);
        Outlook {
            estimates: self.estimates(prediction.as_ref()),
            familiarity: prediction.as_ref().map(|p| p.familiarity),
            prototype: prediction.as_ref().map(|p| p.prototype),
        }
    }

    /// What the predictor makes of the prompt, if it has anything to say.
    fn prediction(&self, prompt: &Prompt, allowed: &[ModelId]) -> Option<Prediction> {
        let generates =
            allowed.iter().any(|m| self.config.fleet.model(*m).is_some_and(|m| m.kind == ModelKind::Generate));
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

#[cfg(test)]
mod tests;
