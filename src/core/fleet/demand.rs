//! What a plan says of prices: at which demand, and how far live load may change them.

use std::time::Duration;

/// What the objective `prices` should do at one level of demand.
#[derive(Clone, Debug, PartialEq)]
pub struct DemandLevel {
    /// Requests per second for all models that generate text, over all gateways.
    pub rate: f64,
    /// What a request to a model costs, in units of quality, in the order of [`Fleet::models`](super::Fleet::models).
    pub prices: Vec<f64>,
    /// Share of the requests that each model should get, in the same order; all have 1 together.
    pub fractions: Vec<f64>,
}

/// How prices follow live load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OnlinePrices {
    /// The mean time to the first token, over all requests, that is to be kept.
    pub ttft: Duration,
    /// By how much a price may differ from the plan's, units of quality.
    pub max_correction: f64,
    /// In which time a price moves, roughly.
    pub time_constant: Duration,
}

impl OnlinePrices {
    /// The correction that is allowed where nobody says otherwise.
    pub const MAX_CORRECTION: f64 = 0.3;
    /// The time constant where nobody says otherwise, seconds.
    pub const SECONDS: f64 = 10.0;
}
