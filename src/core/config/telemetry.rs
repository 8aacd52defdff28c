//! Load reports: how they are fetched and trusted.

use std::time::Duration;

use serde::Deserialize;

use super::numbers::Integer;
use super::{ConfigError, error};
use crate::telemetry::TelemetrySettings;

/// Shortest lease that is derived: heartbeats come with ticks, and a tick may be late.
const LEASE_MIN: Duration = Duration::from_millis(200);

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTelemetry {
    pub(super) enabled: bool,
    pub(super) metrics_path: String,
    pub(super) scrape_period_ms: Integer<u64>,
    pub(super) scrape_timeout_ms: Integer<u64>,
    pub(super) fresh_ms: Integer<u64>,
    pub(super) max_age_ms: Integer<u64>,
    #[serde(default)]
    pub(super) lease_ms: Option<Integer<u64>>,
    pub(super) orca: bool,
}

impl Default for RawTelemetry {
    fn default() -> Self {
        RawTelemetry {
            enabled: true,
            metrics_path: "/metrics".to_owned(),
            scrape_period_ms: Integer(250),
            scrape_timeout_ms: Integer(1_000),
            fresh_ms: Integer(1_000),
            max_age_ms: Integer(5_000),
            lease_ms: None,
            orca: true,
        }
    }
}

pub(super) fn check(raw: &RawTelemetry) -> Result<TelemetrySettings, ConfigError> {
    let ms = |field: &str, Integer(value): Integer<u64>, low: u64, high: u64| {
        if (low..=high).contains(&value) {
            Ok(Duration::from_millis(value))
        } else {
            Err(error(format!("telemetry.{field}"), format!("{value} is not between {low} and {high} milliseconds")))
        }
    };
    if !raw.metrics_path.starts_with('/') || raw.metrics_path.chars().any(|c| c.is_control() || c == ' ') {
        return Err(error("telemetry.metrics_path", "must be a path that starts with /"));
    }
    let scrape_period = ms("scrape_period_ms", raw.scrape_period_ms, 20, 600_000)?;
    let lease = match raw.lease_ms {
        Some(lease) => ms("lease_ms", lease, 100, 60_000)?,
        // A dead leader is replaced within two periods: a lease and a third, and a tick of 50 ms.
        None => (scrape_period * 5 / 4).clamp(LEASE_MIN, Duration::from_secs(60)),
    };
    let telemetry = TelemetrySettings {
        enabled: raw.enabled,
        metrics_path: raw.metrics_path.clone(),
        scrape_period,
        scrape_timeout: ms("scrape_timeout_ms", raw.scrape_timeout_ms, 10, 60_000)?,
        fresh: ms("fresh_ms", raw.fresh_ms, 1, 3_600_000)?,
        max_age: ms("max_age_ms", raw.max_age_ms, 2, 3_600_000)?,
        lease,
        orca: raw.orca,
    };
    if telemetry.max_age <= telemetry.fresh {
        return Err(error("telemetry.max_age_ms", "must be above telemetry.fresh_ms"));
    }
    Ok(telemetry)
}
