//! Passive health: when an instance is no candidate, and for how long.

use std::time::Duration;

use serde::Deserialize;

use super::numbers::Integer;
use super::{ConfigError, error};
use crate::health::HealthSettings;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHealth {
    pub(super) enabled: bool,
    pub(super) failures_to_eject: Integer<u32>,
    pub(super) base_ejection_ms: Integer<u64>,
    pub(super) max_ejection_ms: Integer<u64>,
    pub(super) stall_ms: Integer<u64>,
    pub(super) answer_limit_ms: Integer<u64>,
}

impl Default for RawHealth {
    fn default() -> Self {
        RawHealth {
            enabled: true,
            failures_to_eject: Integer(3),
            base_ejection_ms: Integer(1_000),
            max_ejection_ms: Integer(30_000),
            stall_ms: Integer(3_000),
            answer_limit_ms: Integer(300_000),
        }
    }
}

pub(super) fn check(raw: &RawHealth) -> Result<HealthSettings, ConfigError> {
    let ms = |field: &str, Integer(value): Integer<u64>, low: u64| {
        if (low..=3_600_000).contains(&value) {
            Ok(Duration::from_millis(value))
        } else {
            Err(error(format!("health.{field}"), format!("{value} is not between {low} and 3600000 milliseconds")))
        }
    };
    if !(1..=1_000).contains(&raw.failures_to_eject.0) {
        return Err(error(
            "health.failures_to_eject",
            format!("{} is not between 1 and 1000", raw.failures_to_eject.0),
        ));
    }
    let health = HealthSettings {
        enabled: raw.enabled,
        failures_to_eject: raw.failures_to_eject.0,
        base_ejection: ms("base_ejection_ms", raw.base_ejection_ms, 10)?,
        max_ejection: ms("max_ejection_ms", raw.max_ejection_ms, 10)?,
        stall: ms("stall_ms", raw.stall_ms, 100)?,
        answer_limit: ms("answer_limit_ms", raw.answer_limit_ms, 100)?,
    };
    if health.max_ejection < health.base_ejection {
        return Err(error("health.max_ejection_ms", "must not be below health.base_ejection_ms"));
    }
    Ok(health)
}
