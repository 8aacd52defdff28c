//! `routebalance check FILE --envoy ENVOY_YAML`: what an Envoy configuration lacks into which somebody has merged the filter.
//!
//! What is not in the file, or is of a type that is not known here, is not held against it: a note says what was not checked.

mod clusters;
mod fields;
mod listeners;
mod managers;
mod plugin;
mod reading;
mod routes;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use routebalance_core::config::Config;
use serde_json::Value;

use reading::Resources;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something would not work.
    Error,
    /// Something would be worse than it could be.
    Warning,
    /// Something was not checked.
    Note,
}

/// A sentence on what was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// It names the place, and says what to write.
    pub sentence: String,
}

impl Finding {
    fn error(sentence: impl Into<String>) -> Finding {
        Finding { severity: Severity::Error, sentence: sentence.into() }
    }

    fn warning(sentence: impl Into<String>) -> Finding {
        Finding { severity: Severity::Warning, sentence: sentence.into() }
    }

    fn note(sentence: impl Into<String>) -> Finding {
        Finding { severity: Severity::Note, sentence: sentence.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        write!(f, "{severity}: {}", self.sentence)
    }
}

/// The configuration of a filter, as JSON and checked.
struct Known {
    json: Value,
    config: Config,
}

impl Known {
    fn parse(text: &[u8]) -> Result<Known> {
        Ok(Known { config: Config::parse(text)?, json: serde_json::from_slice(text)? })
    }
}

/// Checks files of Envoy's against a configuration, or against the one that the plugin in them has.
///
/// # Errors
/// A file cannot be read, or is not what it should be.
pub fn check_merged(file: Option<&Path>, envoy: &[PathBuf]) -> Result<Vec<Finding>> {
    let given = file.map(|file| {
        let text = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
        Known::parse(&text).with_context(|| format!("{} is wrong", file.display()))
    });
    let given = given.transpose()?;
    let name = file.map(|file| file.display().to_string()).unwrap_or_default();
    let resources = Resources::read(envoy)?;
    let mut findings = resources.findings.clone();
    findings.extend(check_all(&resources, given, &name));
    let mut unique: Vec<Finding> = Vec::new();
    for finding in findings {
        if !unique.contains(&finding) {
            unique.push(finding);
        }
    }
    unique.sort_by_key(|finding| finding.severity);
    Ok(unique)
}

fn check_all(resources: &Resources, given: Option<Known>, name: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let module = given.as_ref().map(|known| known.config.envoy.module.clone());
    let (own, others): (Vec<_>, Vec<_>) =
        managers::all(resources, module.as_deref()).into_iter().partition(|manager| manager.main().is_some());
    if own.is_empty() {
        findings.push(listeners::without_filter(resources, &others));
    }
    let mut known: Vec<Known> = Vec::new();
    for manager in &own {
        let (inline, more) = listeners::configuration(manager, given.as_ref(), name);
        findings.extend(more);
        if let Some(Known { config, .. }) = given.as_ref().or(inline.as_ref()) {
            findings.extend(listeners::check(manager, config));
            findings.extend(routes::check(manager, resources, config));
        }
        known.extend(inline.filter(|_| given.is_none()));
    }
    known.extend(given);
    findings.extend(listeners::virtual_machines(&own, resources));
    if known.is_empty() && findings.iter().all(|finding| finding.severity != Severity::Error) {
        findings.push(Finding::error(
            "no plugin in the file has a configuration to check against: name routebalance.json, too",
        ));
    }
    findings.extend(clusters::check(resources, known.iter().map(|known| &known.config)));
    findings
}

#[cfg(test)]
mod tests;
