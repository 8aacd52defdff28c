//! What one contender made of one workload: a cell of the lab's result, and its JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::statistics::{Quantiles, mean_or_zero};

/// The lab's result: `{"cells": [...]}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cells {
    /// The preset, or `custom`.
    pub preset: String,
    /// One per contender, setting, weights, workload, rate, overhead and seed.
    pub cells: Vec<Cell>,
    /// Published numbers beside ours, for the page; empty for none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reproduction: Vec<Reproduced>,
    /// What was aimed at; empty where the cells cannot tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Target>,
}

/// What was aimed at, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// What was aimed at.
    pub what: String,
    /// What was measured, in words.
    pub measured: String,
    /// Whether it was met.
    pub met: bool,
}

/// A published number and ours, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reproduced {
    /// What is compared.
    pub what: String,
    /// As published, with its unit.
    pub published: String,
    /// As measured here, with its unit.
    pub ours: String,
    /// Why it differs; empty if it does not.
    pub why: String,
}

/// The weights of a policy, a sum of 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellWeights {
    /// Answer quality.
    pub quality: f64,
    /// Time.
    pub latency: f64,
    /// Money.
    pub cost: f64,
}

/// Times of the requests that were answered, milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TimesMs {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl TimesMs {
    /// Of sorted values; zeros of none.
    pub fn from_sorted(sorted: &[f64]) -> TimesMs {
        let Quantiles { p50, p99 } = Quantiles::from_sorted(sorted);
        TimesMs { mean: mean_or_zero(sorted), p50, p99 }
    }
}

/// 95 % intervals by the bootstrap over requests, lowest and highest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Intervals {
    /// Of the mean quality.
    pub quality: [f64; 2],
    /// Of the mean cost of a request, USD.
    pub cost_usd: [f64; 2],
    /// Of the mean time to the last token, milliseconds.
    pub e2e_ms: [f64; 2],
}

/// The requests that came in one slice of time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// When it begins, seconds.
    pub at_s: f64,
    /// Requests that came in it.
    pub requests: usize,
    /// Share of each model, by its name.
    pub mix: BTreeMap<String, f64>,
    /// Mean time to the last token of those that were answered, milliseconds.
    pub e2e_ms: f64,
}

/// What one contender made of one workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The contender: `routebalance`, `least-load`, ...
    pub policy: String,
    /// Its knobs besides the weights, as `threshold .5, shortest-queue`; empty if it has none.
    pub setting: String,
    /// Its weights; `null` for a contender without.
    pub weights: Option<CellWeights>,
    /// `constant`, `poisson`, `gamma-0.3`, `square-40-6`, `ramp`, `trace`, ...; of `--real`, `real` or `simulated`.
    pub workload: String,
    /// Requests per second, mean over the workload.
    pub rate: f64,
    /// Seed of arrivals and of every draw; the same seed is the same requests for every contender.
    pub seed: u64,
    /// Gateways.
    pub gateways: usize,
    /// What deciding takes: `zero`, or `charged` (the published time for published contenders, ours as measured); `measured` where
    /// a real Envoy decides.
    pub overhead: String,
    /// Further variation of the experiment (`prices 3`, `no 72B`, `budgets 45 %`); empty for none.
    pub variant: String,
    /// Requests that came.
    pub requests: usize,
    /// Those without a whole answer.
    pub failed: usize,
    /// Mean quality of the chosen models' answers, 0 to 1; of answered requests.
    pub quality: f64,
    /// Mean cost of a request, USD; of answered requests.
    pub cost_usd: f64,
    /// Time to the first token.
    pub ttft_ms: TimesMs,
    /// Time per output token after the first.
    pub tpot_ms: TimesMs,
    /// Time to the last token.
    pub e2e_ms: TimesMs,
    /// Answered requests over the time from the first arrival to the last answer, per second.
    pub throughput_rps: f64,
    /// Answers that ended in the second half of the time of arrivals, over the requests that came in it: below 1 a queue grows.
    #[serde(default)]
    pub served: Option<f64>,
    /// Share of requests that kept both time limits; `null` without limits.
    pub slo_attainment: Option<f64>,
    /// Share of requests with a budget that used it up; `null` without budgets.
    pub budget_exhausted: Option<f64>,
    /// Share of requests that were refused; `null` where nobody refuses.
    pub shed: Option<f64>,
    /// Share of requests by model, by its name.
    pub mix: BTreeMap<String, f64>,
    /// Mean time from a request's arrival to its decision, batch included, microseconds.
    pub decision_us: f64,
    /// 95 % intervals.
    pub intervals: Intervals,
    /// Percentiles 0 to 100 of the time to the last token, milliseconds: 101 numbers.
    pub e2e_percentiles_ms: Vec<f64>,
    /// Percentiles 0 to 100 of the time to the first token, milliseconds: 101 numbers.
    pub ttft_percentiles_ms: Vec<f64>,
    /// The course of time, in slices of equal length.
    pub timeline: Vec<Slice>,
}
