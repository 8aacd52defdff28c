//! `routebalance check FILE`: says what Envoy would say of a configuration.

use std::path::Path;

use anyhow::Context;

use crate::config::Config;

/// Parses a configuration file.
///
/// # Errors
/// One sentence: the file cannot be read, or the field that is wrong.
pub fn check(path: &Path) -> anyhow::Result<Config> {
    let json = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Config::parse(&json)?)
}

/// One line about a valid configuration.
pub fn summary(config: &Config) -> String {
    format!(
        "valid: {} models, {} pools, {} instances, {} policies, {} routes",
        config.fleet.models.len(),
        config.fleet.pools.len(),
        config.fleet.instances.len(),
        config.policies.len(),
        config.routes.len()
    )
}
