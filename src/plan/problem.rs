//! What is to be planned.

use super::profile::Profile;
use super::scores::Scores;

/// A model that may be deployed.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedModel {
    /// Its name, as clients and the predictor know it.
    pub name: String,
    /// Its weights, GB (1e9 bytes).
    pub weights_gb: f64,
}

/// GPUs of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuKind {
    /// Its name.
    pub name: String,
    /// How many there are.
    pub count: usize,
    /// Memory of each, GB (1e9 bytes).
    pub memory_gb: f64,
    /// What one costs, USD per hour.
    pub usd_per_hour: f64,
}

/// Memory that a shard needs on its GPU: `weights / shards * factor + fixed`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShardMemory {
    /// By which a shard's weights are multiplied.
    pub factor: f64,
    /// GB on top: activations, CUDA graphs, the least KV cache.
    pub fixed_gb: f64,
}

impl ShardMemory {
    /// GB of one shard of a model.
    pub fn shard_gb(&self, model: &PlannedModel, tensor_parallel: u32) -> f64 {
        model.weights_gb / f64::from(tensor_parallel.max(1)) * self.factor + self.fixed_gb
    }
}

/// Which setups are looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Space {
    /// Shards of a copy.
    pub tensor_parallel: Vec<u32>,
    /// Compute of a shard, percent.
    pub shares_percent: Vec<u32>,
    /// Copies of a model; 0 for a model that may be left out.
    pub replicas: Vec<u32>,
    /// Least part of all GPUs that a setup's shards use together, 0 to 1 (`rho_min` of the paper, whose experiments have 1).
    pub compute_min: f64,
    /// Whether the shards on one GPU may have caps of more than 100 % together, as in the paper, which does not look.
    pub oversubscribe: bool,
    /// How much shards on one GPU slow each other down ([`super::interference`]); `None` for not at all, as in the paper.
    pub interference: Option<f64>,
}

/// A time that limits hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// To the first token.
    Ttft,
    /// Per output token.
    Tpot,
    /// To the last token.
    E2e,
}

/// Of which statistic over all requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statistic {
    /// The mean.
    Mean,
    /// The quantile, 0 to 1.
    Quantile(f64),
}

/// Part of the SLO: a statistic of a time over all requests, whichever model served them, is at most so long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// The time.
    pub metric: Metric,
    /// Its statistic.
    pub statistic: Statistic,
    /// At most, milliseconds.
    pub milliseconds: f64,
}

/// A level of demand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Requests per second.
    pub rate: f64,
    /// Share of the time that demand is at this level, 0 to 1; all levels have 1 together.
    pub weight: f64,
}

/// What is wanted most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The best score.
    Score,
    /// The best score per USD.
    ScorePerUsd,
    /// The fewest USD at a score of at least [`Problem::score_min`].
    Usd,
}

/// What a profile says of rates beyond its last point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Beyond {
    /// Nothing: no plan asks for them.
    #[default]
    Never,
    /// Times grow on as they did between the last two points.
    LastSlope,
}

/// Everything that a plan depends on; checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The models.
    pub models: Vec<PlannedModel>,
    /// The GPUs.
    pub kinds: Vec<GpuKind>,
    /// What shards need.
    pub memory: ShardMemory,
    /// The setups to look at.
    pub space: Space,
    /// Latency by model, kind, shards and share.
    pub profiles: Vec<Profile>,
    /// What profiles say beyond their last points.
    pub beyond: Beyond,
    /// Predicted score of every model for every prompt of a sample.
    pub scores: Scores,
    /// Demand.
    pub levels: Vec<Level>,
    /// Limits that hold at every level.
    pub limits: Vec<Limit>,
    /// What is wanted most.
    pub goal: Goal,
    /// Least score, 0 to 1, under [`Goal::Usd`].
    pub score_min: f64,
}
