//! Vocabulary: what the fleet is made of. No behaviour beyond look-ups; everything here is checked by `config`.

mod batching;
mod constraints;
mod demand;
mod ids;
mod upstream;

pub use batching::{BatchSizing, Batching};
pub use constraints::{Budget, Constraint, Constraints, Mode, Order, Overload, OverloadAction, Slo};
pub use demand::{DemandLevel, OnlinePrices};
pub use ids::{InstanceId, ModelId, PolicyId, PoolId};
pub use upstream::{Credential, Metrics, MetricsPlace, PoolKind, SecretSource, Upstream, UpstreamTls};

use std::borrow::Cow;
use std::time::Duration;

use crate::hash::address_key;

/// What a model is for; a request's API decides which kind may answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// Writes text: chat, completions, responses, messages.
    Generate,
    /// Returns vectors: embeddings.
    Embed,
}

/// What a provider charges, USD per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tariff {
    /// USD per prompt token.
    pub usd_per_input_token: f64,
    /// USD per prompt token that need not be read again, because the server has kept it.
    pub usd_per_cached_input_token: f64,
    /// USD per generated token.
    pub usd_per_output_token: f64,
}

impl Tariff {
    /// A tariff that charges cached prompt tokens as all others.
    pub const fn new(usd_per_input_token: f64, usd_per_output_token: f64) -> Tariff {
        Tariff { usd_per_input_token, usd_per_cached_input_token: usd_per_input_token, usd_per_output_token }
    }

    /// What a prompt costs, in USD, of which so many tokens are cached.
    #[inline]
    pub fn prompt_usd(&self, prompt_tokens: f64, cached_tokens: f64) -> f64 {
        let saved = self.usd_per_input_token - self.usd_per_cached_input_token;
        prompt_tokens * self.usd_per_input_token - cached_tokens.clamp(0.0, prompt_tokens) * saved
    }
}

/// An LLM that may answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The name that clients and the predictor use.
    pub name: String,
    /// What it is for.
    pub kind: ModelKind,
    /// What its tokens cost.
    pub tariff: Tariff,
    /// Mean answer quality in [0, 1], used when there is no prediction.
    pub quality_prior: f64,
    /// Median output tokens, used when there is no prediction.
    pub output_tokens_prior: f64,
    /// LoRA adapters that its instances serve, as clients call them.
    pub adapters: Vec<String>,
    /// Tokens that an image, or another part that is not text, has in its prompts.
    pub tokens_per_media_part: f64,
}

/// How fast one instance of a pool works, measured without queueing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatencyProfile {
    /// Milliseconds per output token of a sequence that runs alone.
    pub tpot_ms: f64,
    /// Growth of the time per output token per further running sequence, as a fraction of `tpot_ms`.
    pub tpot_growth_per_running: f64,
    /// Growth of the time per output token per 1,000 tokens in the KV of all running sequences, as a fraction of `tpot_ms`.
    pub tpot_growth_per_thousand_context_tokens: f64,
    /// Prompt tokens prefilled per second.
    pub prefill_tokens_per_second: f64,
    /// Milliseconds of a request that depend on neither prompt nor load: HTTP, tokenizer, first schedule.
    pub overhead_ms: f64,
}

/// What one instance of a pool can hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Sequences that decode at once (vLLM `--max-num-seqs`).
    pub max_running: u32,
    /// Tokens that fit in the KV cache.
    pub kv_tokens: u64,
    /// Prompt plus output tokens of one request (vLLM `--max-model-len`).
    pub max_model_len: u32,
}

/// The instances of one model on one GPU type; maps to one Envoy cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// The pool's name in headers, metrics and logs.
    pub name: String,
    /// The model that its instances serve.
    pub model: ModelId,
    /// Envoy's cluster.
    pub cluster: String,
    /// The model name that its instances serve (vLLM `--served-model-name`).
    pub served_model: String,
    /// Who runs its instances.
    pub kind: PoolKind,
    /// How fast its instances are.
    pub profile: LatencyProfile,
    /// What its instances can hold.
    pub limits: Limits,
    /// What its tokens cost, where that is not what its model's do.
    pub tariff: Option<Tariff>,
    /// Its instances; also those that are gone.
    pub instances: Vec<InstanceId>,
    /// Whether its instances are those of its cluster, and not a list of the configuration.
    pub discovered: bool,
    /// Whether its instances are known: those of a discovered pool are once Envoy has told them.
    pub known: bool,
    /// Where its load is asked for.
    pub metrics: Metrics,
    /// What is done with requests on their way there.
    pub upstream: Upstream,
    /// Which share of its model's requests it gets, 0 to 1; `None` for what others leave.
    pub share: Option<f64>,
    /// For how long an instance that has just come gets less than its peers.
    pub slow_start: Duration,
}

impl Pool {
    /// Whether only Envoy knows its hosts, and not by their names.
    pub fn reads_endpoints(&self) -> bool {
        self.discovered && self.upstream.names.is_empty()
    }

    /// The cluster of Envoy by which its load is asked for.
    pub fn metrics_cluster(&self) -> Cow<'_, str> {
        match &self.metrics {
            Metrics::Apart(place) => place.cluster_beside(&self.cluster),
            Metrics::Shared | Metrics::Off => Cow::Borrowed(&self.cluster),
        }
    }
}

/// Whether Envoy would send requests to an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// As far as anybody knows.
    #[default]
    Present,
    /// Envoy sends requests there where those that are present do not suffice.
    Degraded,
    /// Envoy knows it and holds it for ill: it is the last resort.
    Unhealthy,
    /// Its cluster does not have it (any more): it gets no new request, and what it still serves counts until it has ended.
    Gone,
}

/// Where a host stands among those of its cluster, as Envoy has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placing {
    /// Hosts of a higher number serve where those of the lower ones do not suffice.
    pub priority: u32,
    /// Its share of the requests, relative to its peers'.
    pub weight: u32,
}

impl Default for Placing {
    fn default() -> Self {
        Placing { priority: 0, weight: 1 }
    }
}

/// One running vLLM-like server.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// `ip:port`, as Envoy writes it.
    pub address: String,
    /// Tells addresses apart in shared records: [`address_key`].
    pub key: u32,
    /// Its pool.
    pub pool: PoolId,
    /// Whether Envoy would send requests there.
    pub presence: Presence,
    /// Where it stands among its peers.
    pub placing: Placing,
    /// Since when it is there; zero where it was there from the beginning.
    pub since: Duration,
}

impl Instance {
    /// An instance that is present.
    pub fn new(address: String, pool: PoolId) -> Instance {
        Instance::sharing(address, pool, None)
    }

    /// The same; where its server is an instance of other pools as well, `beside` is the model that it serves as this one.
    pub fn sharing(address: String, pool: PoolId, beside: Option<&str>) -> Instance {
        let key = beside.map_or_else(|| address_key(&address), |model| address_key(&format!("{address} {model}")));
        Instance { key, address, pool, presence: Presence::Present, placing: Placing::default(), since: Duration::ZERO }
    }
}

/// All pools. An id means the same instance for as long as anything may refer to it.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Fleet {
    /// The models, in the order of the file.
    pub models: Vec<Model>,
    /// The pools, in the order of the file.
    pub pools: Vec<Pool>,
    /// The instances: those of the configuration, pool after pool, then those that were discovered.
    pub instances: Vec<Instance>,
}

impl Fleet {
    /// The pool of an instance.
    pub fn pool_of(&self, instance: InstanceId) -> Option<(PoolId, &Pool)> {
        let id = self.instance(instance)?.pool;
        Some((id, self.pool(id)?))
    }

    /// An instance.
    pub fn instance(&self, id: InstanceId) -> Option<&Instance> {
        self.instances.get(id.index())
    }

    /// The instances, each with its id.
    pub fn instances_by_id(&self) -> impl DoubleEndedIterator<Item = (InstanceId, &Instance)> {
        self.instances.iter().enumerate().map(|(index, instance)| (InstanceId::new(index), instance))
    }

    /// A pool.
    pub fn pool(&self, id: PoolId) -> Option<&Pool> {
        self.pools.get(id.index())
    }

    /// The pools, each with its id.
    pub fn pools_by_id(&self) -> impl Iterator<Item = (PoolId, &Pool)> {
        self.pools.iter().enumerate().map(|(index, pool)| (PoolId::new(index), pool))
    }

    /// A model.
    pub fn model(&self, id: ModelId) -> Option<&Model> {
        self.models.get(id.index())
    }

    /// The models, each with its id.
    pub fn models_by_id(&self) -> impl Iterator<Item = (ModelId, &Model)> + Clone {
        self.models.iter().enumerate().map(|(index, model)| (ModelId::new(index), model))
    }

    /// The model of a pool.
    pub fn model_of(&self, pool: &Pool) -> Option<&Model> {
        self.model(pool.model)
    }

    /// What tokens of a pool cost.
    pub fn tariff_of(&self, pool: &Pool) -> Option<Tariff> {
        pool.tariff.or_else(|| Some(self.model_of(pool)?.tariff))
    }

    /// A model by the name that clients use.
    pub fn model_named(&self, name: &str) -> Option<ModelId> {
        self.models.iter().position(|m| m.name == name).map(ModelId::new)
    }

    /// The model that an adapter belongs to, by the adapter's name.
    pub fn model_with_adapter(&self, name: &str) -> Option<ModelId> {
        self.models.iter().position(|m| m.adapters.iter().any(|a| a == name)).map(ModelId::new)
    }

    /// An instance by its address; one that is there comes before one that has gone.
    pub fn instance_at(&self, address: &str) -> Option<InstanceId> {
        self.instance_where(|instance| instance.address == address)
    }

    /// The instance that an address is, where a request has gone that was decided for a pool: one of that pool before all others, and a
    /// provider is one instance at all of its addresses.
    pub fn serving(&self, address: &str, pool: PoolId) -> Option<InstanceId> {
        let instances = || self.pool(pool).map(|pool| pool.instances.as_slice()).unwrap_or_default().iter().copied();
        if self.pool(pool).is_some_and(|pool| pool.kind == PoolKind::Hosted) {
            return instances().next();
        }
        let first = self.instance_at(address)?;
        // Addresses that several pools have are rare.
        if self.instance(first).is_some_and(|instance| instance.pool == pool) {
            return Some(first);
        }
        let of_pool = instances().find(|i| self.instance(*i).is_some_and(|instance| instance.address == address));
        of_pool.or(Some(first))
    }

    /// An instance by the key of its address, likewise.
    pub fn instance_with_key(&self, key: u32) -> Option<InstanceId> {
        self.instance_where(|instance| instance.key == key)
    }

    fn instance_where(&self, is_meant: impl Fn(&Instance) -> bool) -> Option<InstanceId> {
        let first =
            |gone: bool| self.instances.iter().position(|i| is_meant(i) && (i.presence == Presence::Gone) == gone);
        first(false).or_else(|| first(true)).map(InstanceId::new)
    }
}

/// What a route wants, normalised to a sum of 1.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Weights {
    /// Answer quality.
    pub quality: f64,
    /// Time to the last token.
    pub latency: f64,
    /// USD.
    pub cost: f64,
}

impl Weights {
    /// The weights of quality, latency and cost, normalised; `None` where one is not from 0 to 1,000,000,000, or all are 0.
    pub fn normalised([quality, latency, cost]: [f64; 3]) -> Option<Weights> {
        let sum = quality + latency + cost;
        let fit = [quality, latency, cost].iter().all(|weight| (0.0..=1e9).contains(weight));
        (fit && sum > 0.0).then(|| Weights { quality: quality / sum, latency: latency / sum, cost: cost / sum })
    }

    /// The same from a text of three numbers, `0.8/0.1/0.1`.
    pub fn from_text(text: &str) -> Option<Weights> {
        let numbers: Option<Vec<f64>> = text.split('/').map(|number| number.trim().parse().ok()).collect();
        Weights::normalised(<[f64; 3]>::try_from(numbers?).ok()?)
    }
}

/// How quality enters the score (`specs` of the paper: raw in its text, min-max in its published runs).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QualityNormalisation {
    /// The predicted quality as it is.
    Raw,
    /// Rescaled over this request's candidates: worst 0, best 1.
    MinMax,
}

/// How candidates are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Quality, time and money in units of the fleet: `w_q Q/Q_ref - w_l T/T_ref - w_c C/C_ref`, where time counts less while all
    /// models are slow. A queue costs what it costs, so a saturated model spills over.
    Absolute,
    /// RouteBalance as published: `w_q Q + w_c (1 - C/max C) + w_l (1 - T/max T)`.
    Paper,
    /// `Q - price` of the model; among its instances the one that is expected to answer first.
    Prices,
    /// Every instance in turn, whatever its model: the baseline of the demo.
    RoundRobin,
    /// The instance that owes the least work, whatever its model: what load balancers for LLMs do.
    LeastLoad,
}

/// Named weights, constraints and objective that a route uses.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its name in routes, metrics and logs.
    pub name: String,
    /// What it wants.
    pub weights: Weights,
    /// How candidates are scored.
    pub objective: Objective,
    /// How quality enters the published score.
    pub quality_normalisation: QualityNormalisation,
    /// What a request to a model costs under the objective `prices`, in units of quality, in the order of [`Fleet::models`].
    pub prices: Vec<f64>,
    /// A plan's prices and fractions by demand, at growing rates. If there are any, [`Policy::prices`] count only where
    /// shared data cannot be used.
    pub demand_levels: Vec<DemandLevel>,
    /// How prices follow live load; `None` if they follow the rate alone.
    pub online_prices: Option<OnlinePrices>,
    /// What every request insists on.
    pub constraints: Constraints,
    /// Whether a request may insist on more, by its headers.
    pub trust_request_headers: bool,
    /// What happens where every candidate is saturated.
    pub overload: Overload,
    /// Probability, 0 to 0.5, that a request goes to a model drawn by lot.
    pub exploration: f64,
    /// How requests are batched; `None` if each is decided at once.
    pub batching: Option<Batching>,
    /// What happens to requests that generate and that the filter does not read; `None`: those that have limits are refused.
    pub other_paths: Option<OtherPaths>,
}

impl Policy {
    /// Whether a request that is not read, or not whole, is refused, because what limits it would be lost.
    pub fn refuses_unread(&self, constraints: &Constraints) -> bool {
        let Constraints { budget, quality_min, mode, .. } = constraints;
        let limits = *budget != Budget::default()
            || quality_min.is_some()
            || *mode == Mode::Strict
            || self.overload.action == OverloadAction::Shed;
        self.other_paths.map_or(limits, |paths| paths == OtherPaths::Refuse)
    }
}

/// What happens to requests that generate and that the filter does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OtherPaths {
    /// Envoy's own route serves them.
    Pass,
    /// They are refused.
    Refuse,
}
