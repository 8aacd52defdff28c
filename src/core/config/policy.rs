//! Policies, as written and checked.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::batching::RawBatching;
use super::demand::{self, RawDemandLevel, RawOnlinePrices};
use super::numbers::{Integer, Number};
use super::{ConfigError, check_names, check_number, error};
use crate::fleet::{
    Budget, Constraint, Constraints, Fleet, Mode, Objective, Order, OtherPaths, Overload, OverloadAction, Policy,
    QualityNormalisation, Slo, Weights,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPolicy {
    pub(super) name: String,
    pub(super) weights: RawWeights,
    #[serde(default = "absolute")]
    pub(super) objective: Objective,
    #[serde(default = "min_max")]
    pub(super) quality_normalisation: QualityNormalisation,
    #[serde(default)]
    pub(super) prices: BTreeMap<String, Number>,
    #[serde(default)]
    pub(super) demand_levels: Vec<RawDemandLevel>,
    #[serde(default)]
    pub(super) online_prices: Option<RawOnlinePrices>,
    #[serde(default)]
    pub(super) slo: RawSlo,
    #[serde(default)]
    pub(super) budget: RawBudget,
    #[serde(default)]
    pub(super) quality_min: Option<Number>,
    #[serde(default)]
    pub(super) relaxation: RawRelaxation,
    #[serde(default)]
    pub(super) trust_request_headers: bool,
    #[serde(default)]
    pub(super) overload: RawOverload,
    #[serde(default)]
    pub(super) exploration: Number,
    #[serde(default)]
    pub(super) batching: Option<RawBatching>,
    #[serde(default)]
    pub(super) other_paths: Option<OtherPaths>,
}

fn absolute() -> Objective {
    Objective::Absolute
}

fn min_max() -> QualityNormalisation {
    QualityNormalisation::MinMax
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWeights {
    pub(super) quality: Number,
    pub(super) latency: Number,
    pub(super) cost: Number,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawSlo {
    pub(super) ttft_ms: Option<Number>,
    pub(super) tpot_ms: Option<Number>,
    pub(super) confidence: Option<Number>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBudget {
    pub(super) usd: Option<Number>,
    #[serde(default)]
    pub(super) tokens: Option<Integer<u32>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRelaxation {
    pub(super) mode: Mode,
    pub(super) order: Vec<Constraint>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawOverload {
    pub(super) action: OverloadAction,
    pub(super) waiting_per_instance: Option<Number>,
    pub(super) ttft_ms: Option<Number>,
}

impl RawWeights {
    /// `at` makes a field's path.
    pub(super) fn check(&self, at: &impl Fn(&str) -> String) -> Result<Weights, ConfigError> {
        let quality = check_number(at("weights.quality"), self.quality, 0.0, 1e9)?;
        let latency = check_number(at("weights.latency"), self.latency, 0.0, 1e9)?;
        let cost = check_number(at("weights.cost"), self.cost, 0.0, 1e9)?;
        let weights = Weights::normalised([quality, latency, cost]);
        weights.ok_or_else(|| error(at("weights"), "at least one weight must be above 0"))
    }
}

pub(super) fn check_all(raw: &[RawPolicy], fleet: &Fleet) -> Result<Vec<Policy>, ConfigError> {
    if raw.is_empty() {
        return Err(error("policies", "at least one policy is needed"));
    }
    check_names("policies[].name", raw.iter().map(|p| p.name.as_str()))?;
    raw.iter().enumerate().map(|(i, p)| check_policy(i, p, fleet)).collect()
}

fn check_policy(i: usize, raw: &RawPolicy, fleet: &Fleet) -> Result<Policy, ConfigError> {
    let at = |field: &str| format!("policies[{i}].{field}");
    let weights = raw.weights.check(&at)?;
    let demand_levels = demand::check_levels(&at, &raw.demand_levels, fleet)?;
    let constraints = check_constraints(&at, raw)?;
    let overload = check_overload(&at, &raw.overload)?;
    Ok(Policy {
        name: raw.name.clone(),
        weights,
        objective: raw.objective,
        quality_normalisation: raw.quality_normalisation,
        prices: demand::check_prices(&at, raw, fleet, &demand_levels)?,
        online_prices: raw.online_prices.as_ref().map(|o| o.check(&at, &demand_levels)).transpose()?,
        demand_levels,
        other_paths: raw.other_paths,
        constraints,
        trust_request_headers: raw.trust_request_headers,
        overload,
        exploration: check_number(at("exploration"), raw.exploration, 0.0, 0.5)?,
        batching: raw.batching.as_ref().map(|b| b.check(&at)).transpose()?,
    })
}

fn check_constraints(at: &impl Fn(&str) -> String, raw: &RawPolicy) -> Result<Constraints, ConfigError> {
    let usd = raw.budget.usd.map(|v| check_number(at("budget.usd"), v, 0.0, 1e9)).transpose()?;
    if raw.budget.tokens == Some(Integer(0)) {
        return Err(error(at("budget.tokens"), "must be at least 1"));
    }
    let unset = Constraints::default();
    let confidence = raw.slo.confidence.map(|v| check_number(at("slo.confidence"), v, 0.01, 0.99)).transpose()?;
    let order = Order::starting_with(&raw.relaxation.order)
        .ok_or_else(|| error(at("relaxation.order"), "must not name a constraint twice"))?;
    Ok(Constraints {
        slo: Slo {
            ttft: check_milliseconds(at("slo.ttft_ms"), raw.slo.ttft_ms)?,
            tpot: check_milliseconds(at("slo.tpot_ms"), raw.slo.tpot_ms)?,
        },
        budget: Budget { usd, tokens: raw.budget.tokens.map(|tokens| tokens.0) },
        quality_min: raw.quality_min.map(|v| check_number(at("quality_min"), v, 0.0, 1.0)).transpose()?,
        confidence: confidence.unwrap_or(unset.confidence),
        mode: raw.relaxation.mode,
        order,
    })
}

fn check_overload(at: &impl Fn(&str) -> String, raw: &RawOverload) -> Result<Overload, ConfigError> {
    let waiting = raw.waiting_per_instance;
    let waiting_per_instance =
        waiting.map(|v| check_number(at("overload.waiting_per_instance"), v, 1.0, 1e6)).transpose()?;
    let ttft = check_milliseconds(at("overload.ttft_ms"), raw.ttft_ms)?;
    if raw.action == OverloadAction::Shed && waiting_per_instance.is_none() && ttft.is_none() {
        return Err(error(at("overload"), "shedding needs waiting_per_instance or ttft_ms"));
    }
    Ok(Overload { action: raw.action, waiting_per_instance, ttft })
}

fn check_milliseconds(field: String, value: Option<Number>) -> Result<Option<Duration>, ConfigError> {
    value.map(|v| Ok(Duration::from_secs_f64(check_number(field, v, 0.001, 1e9)? / 1e3))).transpose()
}
