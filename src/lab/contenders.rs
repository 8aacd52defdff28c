//! The contenders by name, with their published knobs.
//!
//! | name | rule | source of the rule |
//! |---|---|---|
//! | `routebalance` | ours: the filter's router | [`routebalance_core::score`] |
//! | `routebalance-constant` | ours, without a prediction for the prompt | the same |
//! | `oracle` | ours, with the true quality and length of every answer | the same |
//! | `prices` | ours with `argmax (Q - price)`, prices solved for the rate | PUBLISHED.md, section 17; [`routebalance_plan::prices`] |
//! | `routebalance-paper` | RouteBalance as published, with our estimates | PUBLISHED.md, sections 5 to 9 |
//! | `routebalance-paper-knn` | the same with its own: the 10 nearest prompts by MiniLM | PUBLISHED.md, section 4.1 |
//! | `routebalance-paper-arm2` | quality and cost only, of equals the shortest queue | PUBLISHED.md, section 13.4 |
//! | `routebalance-paper-arm3` | quality and cost only, of equals the shortest time | PUBLISHED.md, section 13.4 |
//! | `routebalance-paper-arm4` | a static time per token | PUBLISHED.md, section 13.4 |
//! | `best-route` | the most probably best model, or a fall-back where that is unsure | PUBLISHED.md, section 12; BEST-Route |
//! | `avengers-pro` | clusters of prompts rank the models by performance and efficiency | PUBLISHED.md, section 12; Avengers-Pro |
//! | `routellm` | the largest model where its win rate reaches a threshold, else the smallest | PUBLISHED.md, section 12; RouteLLM |
//! | `omnirouter` | the cheapest model that is good enough, else the best | PUBLISHED.md, section 12; OmniRouter |
//! | `vllm-sr` | the best model of the prompt's category | PUBLISHED.md, section 12; vLLM Semantic Router |
//! | `quality-only`, `cost-only` | the model expected to be best, or cheapest | the motivation of PUBLISHED.md, section 1 |
//! | `cheapest-adequate` | one model for all, the cheapest that is good enough on average; least load | none: what people do |
//! | `round-robin`, `random`, `shortest-queue`, `power-of-two`, `least-load`, `weighted-scorers` | any instance | [`Dispatcher`] |
//!
//! PUBLISHED.md, in `src/sim/contender`, is our digest of RouteBalance (arXiv 2606.17949) and RouterWise (arXiv 2604.10907).

pub mod boosting;
mod pipelines;
mod routers;
pub mod sweep;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Result, bail};

pub use routers::{ablations, filtered, ours};

use super::entrant::{Entrant, Estimates};
use super::opinions::Opinions;
use super::prompts::generating;
use routebalance_core::config::Config;
use routebalance_core::fleet::{ModelId, Weights};
use routebalance_sim::contender::{Contender, Deciding, Dispatcher, Fitted};
use routebalance_sim::workload::Template;

/// Names of all contenders.
pub const NAMES: [&str; 23] = [
    "routebalance",
    "routebalance-paper",
    "routebalance-paper-knn",
    "routebalance-paper-arm2",
    "routebalance-paper-arm3",
    "routebalance-paper-arm4",
    "best-route",
    "avengers-pro",
    "routellm",
    "omnirouter",
    "vllm-sr",
    "quality-only",
    "cost-only",
    "round-robin",
    "random",
    "shortest-queue",
    "power-of-two",
    "least-load",
    "weighted-scorers",
    "prices",
    "oracle",
    "routebalance-constant",
    "cheapest-adequate",
];

/// Which knobs a contender is tried with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knobs {
    /// All published settings.
    All,
    /// Those that its authors, or the paper that compares it, put forward.
    Headline,
}

/// What contenders are made from.
#[derive(Clone, Copy, Debug)]
pub struct LabInputs<'a> {
    /// The fleet.
    pub config: &'a Config,
    /// The workload's kinds of requests, with our estimates.
    pub templates: &'a Arc<[Template]>,
    /// What the learned contenders say of each; `None` if nobody asked them.
    pub opinions: Option<&'a [Arc<Opinions>]>,
    /// Requests per second.
    pub rate: f64,
    /// What was fitted on the fleet.
    pub fits: &'a Fits,
}

/// What takes seconds to fit and depends on the fleet alone.
#[derive(Debug, Default)]
pub struct Fits(OnceLock<(Arc<Fitted>, Vec<sweep::Accuracy>)>);

impl Fits {
    /// The published predictor of times for a fleet, and how far it is off: fitted at the first call, on these kinds of requests.
    pub fn times(&self, config: &Config, templates: &Arc<[Template]>) -> (Arc<Fitted>, &[sweep::Accuracy]) {
        let (fitted, accuracies) = self.0.get_or_init(|| {
            let (fitted, accuracies) = sweep::published(config, templates);
            (Arc::new(fitted), accuracies)
        });
        (fitted.clone(), accuracies)
    }
}

/// A contender with its knobs set in all the ways that are asked for; once for each of the weights if it has any.
///
/// # Errors
/// There is no contender of this name, or it needs to know prompts that nobody asked it about.
pub fn entrants(name: &str, knobs: Knobs, weights: &[Weights], lab: &LabInputs<'_>) -> Result<Vec<Entrant>> {
    let Some(name) = NAMES.into_iter().find(|known| *known == name) else {
        bail!("there is no contender {name}: there are {}", NAMES.join(", "));
    };
    let dispatch = |dispatcher| vec![Entrant::new(name, String::new(), Contender::dispatch(dispatcher))];
    Ok(match name {
        "round-robin" => dispatch(Dispatcher::RoundRobin),
        "random" => dispatch(Dispatcher::Random),
        "shortest-queue" => dispatch(Dispatcher::ShortestQueue),
        "power-of-two" => dispatch(Dispatcher::PowerOfTwo),
        "least-load" => dispatch(Dispatcher::LeastLoad),
        "weighted-scorers" => dispatch(Dispatcher::WeightedScorers),
        "best-route" => pipelines::best_route(name, knobs, lab)?,
        "avengers-pro" => pipelines::avengers_pro(name, knobs, lab)?,
        "routellm" => pipelines::routellm(name, knobs, lab)?,
        "vllm-sr" => pipelines::semantic_router(name, knobs, lab)?,
        "omnirouter" => pipelines::omnirouter(name, knobs, lab),
        "quality-only" => pipelines::quality_only(name, lab),
        "cost-only" => pipelines::cost_only(name, lab),
        "cheapest-adequate" => pipelines::cheapest_adequate(name, knobs, lab),
        "prices" => routers::prices(name, knobs, lab),
        _ => routers::weighted(name, knobs, weights, lab)?,
    })
}

impl Entrant {
    /// A contender without weights that reads our estimates and decides in no time.
    fn new(policy: &'static str, setting: String, contender: Contender) -> Entrant {
        Entrant {
            policy,
            setting,
            weights: None,
            estimates: Estimates::Ours,
            contender,
            route_policy: None,
            charged: Deciding::default(),
            uncharged: Deciding::default(),
        }
    }
}

/// What a decision of ours takes inside Envoy for a body of 1 KB: the slowest that `bench body` measured (src/lab/README.md).
pub const OUR_DECISION: Duration = Duration::from_micros(55);

impl LabInputs<'_> {
    /// The models that write text and have an instance.
    fn models(&self) -> Vec<ModelId> {
        let fleet = &self.config.fleet;
        let serves = |m: &ModelId| fleet.pools.iter().any(|pool| pool.model == *m && !pool.instances.is_empty());
        generating(fleet).into_iter().filter(serves).collect()
    }

    /// The learned contenders' opinions of every template.
    fn opinions(&self, name: &str) -> Result<&[Arc<Opinions>]> {
        match self.opinions {
            Some(opinions) if opinions.len() == self.templates.len() => Ok(opinions),
            _ => bail!("{name} is learned from the lab's own prompts and knows nothing of others: leave it out"),
        }
    }
}

#[cfg(test)]
mod tests;
