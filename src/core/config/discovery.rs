//! Where Envoy tells which hosts its clusters have.

use std::time::Duration;

use serde::Deserialize;

use super::numbers::Integer;
use super::{ConfigError, check_names, error};
use crate::discovery::DiscoverySettings;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDiscovery {
    pub(super) cluster: String,
    pub(super) path: String,
    pub(super) period_ms: Integer<u64>,
    pub(super) timeout_ms: Integer<u64>,
}

impl Default for RawDiscovery {
    fn default() -> Self {
        RawDiscovery {
            cluster: "routebalance-admin".to_owned(),
            path: "/clusters?format=json".to_owned(),
            period_ms: Integer(1_000),
            timeout_ms: Integer(1_000),
        }
    }
}

pub(super) fn check(raw: &RawDiscovery) -> Result<DiscoverySettings, ConfigError> {
    let ms = |field: &str, Integer(value): Integer<u64>, low: u64, high: u64| {
        if (low..=high).contains(&value) {
            Ok(Duration::from_millis(value))
        } else {
            Err(error(format!("discovery.{field}"), format!("{value} is not between {low} and {high} milliseconds")))
        }
    };
    check_names("discovery.cluster", std::iter::once(raw.cluster.as_str()))?;
    if !raw.path.starts_with('/') || raw.path.chars().any(|c| c.is_control() || c == ' ') {
        return Err(error("discovery.path", "must be a path that starts with /"));
    }
    Ok(DiscoverySettings {
        cluster: raw.cluster.clone(),
        path: raw.path.clone(),
        period: ms("period_ms", raw.period_ms, 50, 600_000)?,
        timeout: ms("timeout_ms", raw.timeout_ms, 10, 60_000)?,
    })
}
