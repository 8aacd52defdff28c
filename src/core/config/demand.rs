//! Prices of a policy, as written and checked.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::numbers::Number;
use super::policy::RawPolicy;
use super::{ConfigError, check_number, error};
use crate::fleet::{DemandLevel, Fleet, ModelKind, Objective, OnlinePrices};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDemandLevel {
    pub(super) requests_per_second: Number,
    pub(super) prices: BTreeMap<String, Number>,
    pub(super) fractions: BTreeMap<String, Number>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOnlinePrices {
    pub(super) ttft_ms: Number,
    #[serde(default = "max_correction")]
    pub(super) max_correction: Number,
    #[serde(default = "seconds")]
    pub(super) seconds: Number,
}

fn max_correction() -> Number {
    Number(OnlinePrices::MAX_CORRECTION)
}

fn seconds() -> Number {
    Number(OnlinePrices::SECONDS)
}

/// By how much the sum of fractions may differ from 1: they are written with few digits.
const ROUNDING: f64 = 1e-3;

/// A price per model; models that the policy does not name are free. Beside levels of demand, whose highest one holds until the rate is
/// known, these count only where shared data cannot be used.
pub(super) fn check_prices(
    at: &impl Fn(&str) -> String,
    raw: &RawPolicy,
    fleet: &Fleet,
    levels: &[DemandLevel],
) -> Result<Vec<f64>, ConfigError> {
    let priced = raw.objective == Objective::Prices;
    if !priced && !levels.is_empty() {
        return Err(error(at("demand_levels"), "belongs to the objective prices"));
    }
    if priced == (raw.prices.is_empty() && levels.is_empty()) {
        return Err(error(at("prices"), "belongs to the objective prices, which needs at least one, or demand_levels"));
    }
    match levels.last().filter(|_| raw.prices.is_empty()) {
        Some(level) => Ok(level.prices.clone()),
        None => by_model(&at("prices"), &raw.prices, fleet),
    }
}

/// Levels of demand at growing rates.
pub(super) fn check_levels(
    at: &impl Fn(&str) -> String,
    raw: &[RawDemandLevel],
    fleet: &Fleet,
) -> Result<Vec<DemandLevel>, ConfigError> {
    let mut levels: Vec<DemandLevel> = Vec::with_capacity(raw.len());
    for (i, raw) in raw.iter().enumerate() {
        let at = |field: &str| at(&format!("demand_levels[{i}].{field}"));
        let rate = check_number(at("requests_per_second"), raw.requests_per_second, 1e-6, 1e9)?;
        if levels.last().is_some_and(|last| last.rate >= rate) {
            return Err(error(at("requests_per_second"), "must be above that of the level before"));
        }
        let prices = by_model(&at("prices"), &raw.prices, fleet)?;
        let mut fractions = by_model(&at("fractions"), &raw.fractions, fleet)?;
        let generates = |name: &String| {
            let model = fleet.model_named(name).and_then(|m| fleet.model(m));
            model.is_some_and(|m| m.kind == ModelKind::Generate)
        };
        for (field, named) in [("prices", &raw.prices), ("fractions", &raw.fractions)] {
            if let Some(name) = named.keys().find(|name| !generates(name)) {
                return Err(error(at(field), format!("{name:?} generates no text")));
            }
        }
        let sum: f64 = fractions.iter().sum();
        if (sum - 1.0).abs() > ROUNDING {
            return Err(error(at("fractions"), format!("must have a sum of 1, not {sum}")));
        }
        fractions.iter_mut().for_each(|fraction| *fraction /= sum);
        levels.push(DemandLevel { rate, prices, fractions });
    }
    Ok(levels)
}

/// One value from 0 to 1 per model; 0 for those that are not named.
fn by_model(field: &str, named: &BTreeMap<String, Number>, fleet: &Fleet) -> Result<Vec<f64>, ConfigError> {
    let field = |name: &str| format!("{field}.{name}");
    let mut values = vec![0.0; fleet.models.len()];
    for (name, value) in named {
        let value = check_number(field(name), *value, 0.0, 1.0)?;
        *fleet
            .model_named(name)
            .and_then(|model| values.get_mut(model.index()))
            .ok_or_else(|| error(field(name), format!("no model is named {name:?}")))? = value;
    }
    Ok(values)
}

impl RawOnlinePrices {
    pub(super) fn check(
        &self,
        at: &impl Fn(&str) -> String,
        levels: &[DemandLevel],
    ) -> Result<OnlinePrices, ConfigError> {
        let at = |field: &str| at(&format!("online_prices{field}"));
        if levels.is_empty() {
            return Err(error(at(""), "needs demand_levels, whose fractions it keeps to"));
        }
        Ok(OnlinePrices {
            ttft: Duration::from_secs_f64(check_number(at(".ttft_ms"), self.ttft_ms, 1.0, 1e9)? / 1e3),
            max_correction: check_number(at(".max_correction"), self.max_correction, 0.0, 1.0)?,
            time_constant: Duration::from_secs_f64(check_number(at(".seconds"), self.seconds, 1.0, 3_600.0)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::config::Config;
    use crate::fleet::Policy;
    use std::time::Duration;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const SMALL: &str = "Qwen2.5-3B-Instruct";
    const LARGE: &str = "Qwen2.5-72B-Instruct";

    fn level(rate: f64) -> Value {
        json!({"requests_per_second": rate, "prices": {LARGE: 0.2}, "fractions": {SMALL: 0.6, LARGE: 0.4}})
    }

    fn parsed(policy: Value) -> Result<Policy, String> {
        let mut json: Value = serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap();
        for (field, value) in policy.as_object().unwrap() {
            json["policies"][0][field] = value.clone();
        }
        let config = Config::parse(json.to_string().as_bytes()).map_err(|e| e.to_string())?;
        Ok(config.policies[0].clone())
    }

    #[test]
    fn levels_and_settings_are_taken_over() {
        let online = json!({"ttft_ms": 500});
        let policy =
            json!({"objective": "prices", "demand_levels": [level(10.0), level(20.0)], "online_prices": online});
        let policy = parsed(policy).unwrap();
        assert_eq!(policy.demand_levels.iter().map(|l| l.rate).collect::<Vec<_>>(), [10.0, 20.0]);
        assert_eq!(policy.demand_levels[1].fractions, [0.6, 0.0, 0.0, 0.4, 0.0]);
        assert_eq!(policy.prices, [0.0, 0.0, 0.0, 0.2, 0.0], "those of the highest level, until the rate is known");
        let online = policy.online_prices.unwrap();
        assert_eq!((online.ttft, online.time_constant), (Duration::from_millis(500), Duration::from_secs(10)));
        let with_both = json!({"objective": "prices", "prices": {LARGE: 0.3}, "demand_levels": [level(10.0)]});
        let with_both = parsed(with_both).unwrap();
        assert_eq!((with_both.prices[3], with_both.online_prices), (0.3, None));
    }

    #[test]
    fn every_wrong_value_is_refused_with_its_field() {
        let levels = |levels: Value| json!({"objective": "prices", "demand_levels": levels});
        let changed = |field: &str, value: Value| {
            let mut level = level(10.0);
            level[field] = value;
            levels(json!([level]))
        };
        let online =
            |online: Value| json!({"objective": "prices", "demand_levels": [level(10.0)], "online_prices": online});
        let rows = [
            (json!({"objective": "prices"}), "policies[0].prices: belongs to the objective prices, which needs"),
            (json!({"prices": {LARGE: 0.2}}), "policies[0].prices: belongs to the objective prices"),
            (json!({"demand_levels": [level(10.0)]}), "policies[0].demand_levels: belongs to the objective prices"),
            (levels(json!([level(10.0), level(10.0)])), "demand_levels[1].requests_per_second: must be above"),
            (changed("requests_per_second", json!(0)), "demand_levels[0].requests_per_second: 0 is not between"),
            (changed("prices", json!({"gpt-2": 0.2})), "demand_levels[0].prices.gpt-2: no model is named"),
            (changed("prices", json!({LARGE: -0.2})), "demand_levels[0].prices.Qwen2.5-72B-Instruct: -0.2 is not"),
            (changed("fractions", json!({LARGE: 0.9})), "demand_levels[0].fractions: must have a sum of 1, not 0.9"),
            (changed("fractions", json!({LARGE: 1.1})), "demand_levels[0].fractions.Qwen2.5-72B-Instruct: 1.1 is not"),
            (changed("fractions", json!({"bge-small-en-v1.5": 1})), "\"bge-small-en-v1.5\" generates no text"),
            (changed("share", json!(1)), "policies[0].demand_levels[0].share: unknown field"),
            (
                json!({"objective": "prices", "prices": {LARGE: 0.2}, "online_prices": {"ttft_ms": 500}}),
                "policies[0].online_prices: needs demand_levels",
            ),
            (json!({"online_prices": {"ttft_ms": 500}}), "policies[0].online_prices: needs demand_levels"),
            (online(json!({})), "policies[0].online_prices: missing field `ttft_ms`"),
            (online(json!({"ttft_ms": 0})), "policies[0].online_prices.ttft_ms: 0 is not between"),
            (online(json!({"ttft_ms": 500, "seconds": 0})), "online_prices.seconds: 0 is not between 1 and 3600"),
            (online(json!({"ttft_ms": 500, "max_correction": 2})), "online_prices.max_correction: 2 is not"),
            (online(json!({"ttft_ms": 500, "gain": 2})), "online_prices.gain: unknown field"),
        ];
        for (policy, expected) in rows {
            let refusal = parsed(policy.clone()).unwrap_err();
            assert!(refusal.contains(expected), "{policy}: {refusal}");
        }
    }
}
