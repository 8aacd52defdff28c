//! What contenders stand on: a fleet, its prompts, and what each of them expects of a prompt.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};

use super::contenders::{Fits, LabInputs};
use super::entrant::{Entrant, Estimates};
use super::opinions::Opinions;
use super::source::{ArrivalKind, Feed, Source};
use routebalance_core::config::Config;
use routebalance_core::fleet::{Budget, Constraints, Mode, ModelKind, PolicyId, Slo};
use routebalance_core::random::Random;
use routebalance_core::router::Router;
use routebalance_sim::contender::{Cascade, Contender};
use routebalance_sim::workload::{Template, Workload, sustainable_rates};

/// The published budgets' seed (RouteBalance; PUBLISHED.md, section 10.5), and the output tokens that they are made for.
const BUDGET_SEED: u64 = 42;
const BUDGET_OUTPUT_TOKENS: f64 = 128.0;
/// Sets of templates that are kept with others' estimates.
const SEEN_MAX: usize = 16;

/// What all requests of a cell insist on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    /// Limits of both times.
    pub slo: Slo,
    /// Share of prompts that have a budget, 0 to 1: uniform between what the cheapest and what the dearest model costs for the prompt
    /// and 128 tokens.
    pub budgets: f64,
    /// What happens where nothing keeps it.
    pub mode: Mode,
    /// Whether nobody is told of it: it is only measured who keeps it.
    pub unheard: bool,
}

impl Demand {
    /// Whether anything is demanded.
    pub fn is_any(&self) -> bool {
        self.slo != Slo::default() || self.budgets > 0.0
    }
}

/// Which requests come.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// How they come; `None` for the source's own way.
    pub arrivals: Option<ArrivalKind>,
    /// Requests per second; `None` for what the arrivals themselves say.
    pub rate: Option<f64>,
    /// How many; `None` for all that are recorded, or each prompt once.
    pub requests: Option<usize>,
    /// Of times and of their order.
    pub seed: u64,
    /// What they insist on.
    pub demand: Demand,
}

/// A fleet and its prompts.
#[derive(Debug)]
pub struct Ground {
    /// The configuration; policies are replaced by those of entrants.
    pub config: Config,
    /// The requests.
    pub source: Source,
    /// The source's prompts as kinds of requests.
    templates: Arc<[Template]>,
    /// What learned contenders say of the prompts, if anybody asked them.
    opinions: Option<Vec<Arc<Opinions>>>,
    fits: Fits,
    seen: Mutex<Vec<Seen>>,
}

/// What some templates are with others' estimates.
#[derive(Debug)]
struct Seen {
    estimates: Estimates,
    of: Arc<[Template]>,
    are: Arc<[Template]>,
}

impl Ground {
    /// This fleet with these prompts.
    pub fn new(config: Config, source: Source) -> Ground {
        let prompts = source.prompts();
        let templates = source.templates().clone();
        let opinions = prompts.iter().map(|p| p.opinions.clone()).collect();
        Ground { config, templates, opinions, source, fits: Fits::default(), seen: Mutex::default() }
    }

    /// Requests per second that all pools together sustain.
    pub fn sustainable_rate(&self) -> f64 {
        sustainable_rates(&self.config.fleet, &self.templates).iter().sum()
    }

    /// What contenders are made from, for this rate.
    pub fn inputs(&self, rate: f64) -> LabInputs<'_> {
        LabInputs {
            config: &self.config,
            templates: &self.templates,
            opinions: self.opinions.as_deref(),
            rate,
            fits: &self.fits,
        }
    }

    /// The requests as a contender sees them, with the policy of index 0.
    ///
    /// # Errors
    /// They cannot be had, or nobody has these estimates of them.
    pub fn workload(&self, asked: &Asked, estimates: Estimates) -> Result<(Feed, Workload)> {
        let source = match asked.arrivals {
            Some(kind) => &self.source.with_arrivals(kind),
            None => &self.source,
        };
        let feed = source.feed(asked.rate, asked.requests, 0, asked.seed)?;
        let mut workload = self.as_seen(source, &feed, estimates)?;
        if asked.demand.is_any() {
            self.insist(&mut workload, &asked.demand);
        }
        Ok((feed, workload))
    }

    /// What decides, for the templates of a feed: a pipeline's models and a cascade's judgements are those of prompts.
    pub fn contender(&self, entrant: &Entrant, feed: &Feed) -> Contender {
        match &entrant.contender {
            Contender::Pipeline { models: Some(models), dispatcher } => Contender::Pipeline {
                models: Some(feed.prompts.iter().filter_map(|p| models.get(*p).copied()).collect()),
                dispatcher: *dispatcher,
            },
            Contender::Cascade(cascade) => Contender::Cascade(Cascade {
                turned_down: feed.prompts.iter().filter_map(|p| cascade.turned_down.get(*p).copied()).collect(),
                ..cascade.clone()
            }),
            other => other.clone(),
        }
    }

    /// A router whose only policy is the entrant's.
    pub fn router(&self, entrant: &Entrant) -> Router {
        let mut config = self.config.clone();
        if let Some(policy) = &entrant.route_policy {
            config.policies = vec![policy.clone()];
            config.default_policy = PolicyId::new(0);
        }
        Router::new(config, None)
    }

    fn as_seen(&self, source: &Source, feed: &Feed, estimates: Estimates) -> Result<Workload> {
        if estimates == Estimates::Ours {
            return Ok(feed.workload.clone());
        }
        let of = &feed.workload.templates;
        let is_it = |seen: &&Seen| seen.estimates == estimates && Arc::ptr_eq(&seen.of, of);
        let mut all = self.seen.lock().map_err(|_| anyhow::anyhow!("another thread has panicked"))?;
        if let Some(seen) = all.iter().find(is_it) {
            return Ok(Workload { templates: seen.are.clone(), arrivals: feed.workload.arrivals.clone() });
        }
        let workload = source.seen_by(feed, estimates).context(
            "the published predictor's estimates are known of the lab's own prompts only: leave routebalance-paper-knn out",
        )?;
        // The kinds of requests of a trace are others for every seed: keeping them would keep all.
        if all.len() >= SEEN_MAX {
            all.clear();
        }
        all.push(Seen { estimates, of: of.clone(), are: workload.templates.clone() });
        Ok(workload)
    }

    fn insist(&self, workload: &mut Workload, demand: &Demand) {
        let budgets: Vec<Option<f64>> =
            workload.templates.iter().enumerate().map(|(i, t)| self.budget(i, t, demand.budgets)).collect();
        for arrival in &mut workload.arrivals {
            let usd = budgets.get(arrival.template).copied().flatten();
            arrival.constraints = Some(Constraints {
                slo: demand.slo,
                budget: Budget { usd, tokens: None },
                mode: demand.mode,
                ..Constraints::default()
            });
        }
    }

    /// The budget of a prompt, USD, as the published data set has it.
    fn budget(&self, index: usize, template: &Template, share: f64) -> Option<f64> {
        let mut random = Random::for_use(BUDGET_SEED, index as u64);
        let has_one = random.uniform() < share;
        let generates = |m: &&routebalance_core::fleet::Model| m.kind == ModelKind::Generate;
        let usd = self.config.fleet.models.iter().filter(generates).map(|m| {
            f64::from(template.prompt_tokens) * m.tariff.usd_per_input_token
                + BUDGET_OUTPUT_TOKENS * m.tariff.usd_per_output_token
        });
        let (least, most) = usd.fold((f64::INFINITY, 0.0_f64), |(low, high), usd| (low.min(usd), high.max(usd)));
        has_one.then(|| least + (most - least) * random.uniform())
    }
}
