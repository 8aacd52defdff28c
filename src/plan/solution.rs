//! Plans: what is known of a setup once its best routing is.

use super::setup::{Placement, Setup};

/// The best routing of a setup at one level of demand.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// Requests per second.
    pub rate: f64,
    /// Share of the requests for each model; all have 1 together.
    pub fractions: Vec<f64>,
    /// Prices of the models: units of score, at least 0, the least is 0. Those of the bound; of a plan that is recommended, what makes
    /// `argmax (score - price)` send these shares ([`Worker::exact_prices`](super::search::Worker::exact_prices)).
    pub prices: Vec<f64>,
    /// Mean predicted score.
    pub score: f64,
    /// No routing of the setup that keeps the limits, with copies slowed down as here, has a higher one.
    pub score_bound: f64,
    /// What each limit of the problem holds, in its order: milliseconds as predicted, interference included.
    pub limits_ms: Vec<f64>,
    /// Mean time to the first token of each model's requests, milliseconds; 0 where a model gets none.
    pub ttft_ms: Vec<f64>,
    /// By how much what shares their GPUs slows each model's copies down: at least 1.
    pub slow_down: Vec<f64>,
}

/// A setup with its routing at every level of demand.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// How the models are deployed.
    pub setup: Setup,
    /// Where.
    pub placement: Placement,
    /// Its routing, level by level.
    pub routings: Vec<Routing>,
    /// Mean of the levels' scores by their weights.
    pub score: f64,
    /// No plan of the setup has a higher one.
    pub score_bound: f64,
    /// What its GPUs cost, USD per hour: those that have a shard.
    pub usd_per_hour: f64,
}
