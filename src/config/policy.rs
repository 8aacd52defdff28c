//! Policies, as written and checked.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, check_names, check_number, error};
use crate::fleet::{BatchSizing, Batching, Budget, Fleet, Objective, Policy, QualityNormalisation, Slo, Weights};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPolicy {
    pub(super) name: String,
    pub(super) weights: RawWeights,
    #[serde(default = "paper")]
    pub(super) objective: Objective,
    #[serde(default = "min_max")]
    pub(super) quality_normalisation: QualityNormalisation,
    #[serde(default)]
    pub(super) prices: BTreeMap<String, f64>,
    #[serde(default)]
    pub(super) slo: RawSlo,
    #[serde(default)]
    pub(super) budget: RawBudget,
    #[serde(default)]
    pub(super) exploration: f64,
    #[serde(default)]
    pub(super) batching: Option<RawBatching>,
}

fn paper() -> Objective {
    Objective::Paper
}

fn min_max() -> QualityNormalisation {
    QualityNormalisation::MinMax
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWeights {
    pub(super) quality: f64,
    pub(super) latency: f64,
    pub(super) cost: f64,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawSlo {
    pub(super) ttft_ms: Option<f64>,
    pub(super) tpot_ms: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBudget {
    pub(super) usd: Option<f64>,
    pub(super) tokens: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBatching {
    pub(super) mode: BatchingMode,
    pub(super) size: Option<u32>,
    pub(super) window_ms: Option<f64>,
    #[serde(default = "max_wait_ms")]
    pub(super) max_wait_ms: f64,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(super) enum BatchingMode {
    Adaptive,
    Fixed,
}

/// The longest of the published windows.
fn max_wait_ms() -> f64 {
    200.0
}

pub(super) fn check_all(raw: &[RawPolicy], fleet: &Fleet) -> Result<Vec<Policy>, ConfigError> {
    if raw.is_empty() {
        return Err(error("policies", "at least one policy is needed"));
    }
    check_names("policies[].name", raw.iter().map(|p| p.name.as_str()))?;
    raw.iter().enumerate().map(|(i, p)| check_policy(i, p, fleet)).collect()
}

/// A price per model; models that the policy does not name are free.
fn check_prices(i: usize, raw: &RawPolicy, fleet: &Fleet) -> Result<Vec<f64>, ConfigError> {
    let field = |name: &str| format!("policies[{i}].prices.{name}");
    if (raw.objective == Objective::Prices) == raw.prices.is_empty() {
        return Err(error(
            format!("policies[{i}].prices"),
            "belongs to the objective prices, which needs at least one",
        ));
    }
    let mut prices = vec![0.0; fleet.models.len()];
    for (name, price) in &raw.prices {
        let price = check_number(field(name), *price, 0.0, 1.0)?;
        *fleet
            .model_named(name)
            .and_then(|model| prices.get_mut(model))
            .ok_or_else(|| error(field(name), format!("no model is named {name:?}")))? = price;
    }
    Ok(prices)
}

fn check_policy(i: usize, raw: &RawPolicy, fleet: &Fleet) -> Result<Policy, ConfigError> {
    let at = |field: &str| format!("policies[{i}].{field}");
    let quality = check_number(at("weights.quality"), raw.weights.quality, 0.0, 1e9)?;
    let latency = check_number(at("weights.latency"), raw.weights.latency, 0.0, 1e9)?;
    let cost = check_number(at("weights.cost"), raw.weights.cost, 0.0, 1e9)?;
    let sum = quality + latency + cost;
    if sum <= 0.0 {
        return Err(error(at("weights"), "at least one weight must be above 0"));
    }
    let milliseconds = |value: Option<f64>, field: &str| {
        value.map(|v| Ok(Duration::from_secs_f64(check_number(at(field), v, 0.001, 1e9)? / 1e3))).transpose()
    };
    let usd = raw.budget.usd.map(|v| check_number(at("budget.usd"), v, 0.0, 1e9)).transpose()?;
    if raw.budget.tokens == Some(0) {
        return Err(error(at("budget.tokens"), "must be at least 1"));
    }
    Ok(Policy {
        name: raw.name.clone(),
        weights: Weights { quality: quality / sum, latency: latency / sum, cost: cost / sum },
        objective: raw.objective,
        quality_normalisation: raw.quality_normalisation,
        prices: check_prices(i, raw, fleet)?,
        slo: Slo {
            ttft: milliseconds(raw.slo.ttft_ms, "slo.ttft_ms")?,
            tpot: milliseconds(raw.slo.tpot_ms, "slo.tpot_ms")?,
        },
        budget: Budget { usd, tokens: raw.budget.tokens },
        exploration: check_number(at("exploration"), raw.exploration, 0.0, 0.5)?,
        batching: raw.batching.as_ref().map(|b| check_batching(i, b)).transpose()?,
    })
}

fn check_batching(i: usize, raw: &RawBatching) -> Result<Batching, ConfigError> {
    let at = |field: &str| format!("policies[{i}].batching.{field}");
    let milliseconds = |field: &str, value: f64| {
        Ok::<_, ConfigError>(Duration::from_secs_f64(check_number(at(field), value, 1.0, 10_000.0)? / 1e3))
    };
    let sizing = match (raw.mode, raw.size, raw.window_ms) {
        (BatchingMode::Adaptive, None, None) => BatchSizing::Adaptive,
        (BatchingMode::Adaptive, size, _) => {
            let field = if size.is_some() { "size" } else { "window_ms" };
            return Err(error(at(field), "belongs to the mode fixed"));
        }
        (BatchingMode::Fixed, None, _) => return Err(error(at("size"), "is needed in the mode fixed")),
        (BatchingMode::Fixed, _, None) => return Err(error(at("window_ms"), "is needed in the mode fixed")),
        (BatchingMode::Fixed, Some(size), Some(window_ms)) => {
            if !(1..=1_024).contains(&size) {
                return Err(error(at("size"), "must be between 1 and 1024"));
            }
            BatchSizing::Fixed { size: size as usize, window: milliseconds("window_ms", window_ms)? }
        }
    };
    Ok(Batching { sizing, max_wait: milliseconds("max_wait_ms", raw.max_wait_ms)? })
}
