//! `routebalance.json`: parsed once, at the edge, into types that cannot be wrong, or one sentence that names the field.
//!
//! Filter, demo, tests and emulated instances read the same file. Cross-references are ids afterwards, weights sum to 1.

mod affinity;
mod batching;
mod demand;
mod discovery;
mod envoy;
mod health;
mod models;
mod numbers;
mod policy;
mod pools;
mod raw;
mod secret;
mod telemetry;
mod tree;
mod upstream;
mod wrapping;

use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

pub use envoy::{EnvoySettings, FailurePolicy};
pub use raw::{Drill, Encoding, UnknownModel};
use raw::{RawConfig, RawLearning, RawRoute};
pub use secret::Secret;
use serde::Deserialize;
use tree::Tree;

use crate::affinity::Affinity;
use crate::fleet::{Fleet, InstanceId, ModelId, ModelKind, Policy, PolicyId, Pool, Presence, Weights};
use crate::hash::fnv1a;
use crate::latency::Basis;
use crate::openai::Listed;

/// Why a configuration is refused: the field, as a path, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Path of the field, such as `pools[1].profile.tpot_ms`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names and values of the file are cited as they are, and the log has a line for it.
        let sentence = format!("configuration field {}: {}", self.field, self.problem);
        sentence
            .chars()
            .try_for_each(|c| if c.is_control() { write!(f, "{}", c.escape_default()) } else { f.write_char(c) })
    }
}

impl std::error::Error for ConfigError {}

/// A route of Envoy and the policy of its requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The route's name in Envoy.
    pub name: String,
    /// The path prefix that it matches.
    pub prefix: String,
    /// What replaces the prefix on the way to the instance.
    pub prefix_rewrite: Option<String>,
    /// The policy of its requests.
    pub policy: PolicyId,
    /// Weights in the place of the policy's.
    pub weights: Option<Weights>,
    /// The hosts whose requests it takes; none for all.
    pub hosts: Vec<String>,
    /// The headers that its requests must have, with their values.
    pub headers: Vec<(String, String)>,
}

impl Route {
    /// The route of all requests.
    pub fn everything(policy: PolicyId) -> Route {
        Route {
            name: "default".to_owned(),
            prefix: "/".to_owned(),
            prefix_rewrite: None,
            policy,
            weights: None,
            hosts: Vec::new(),
            headers: Vec::new(),
        }
    }
}

/// What the gateway learns while it serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Learning {
    /// Whether expected output tokens are corrected by what answers really have.
    pub output_tokens: bool,
    /// What senders of feedback must know; `None` if no feedback is taken.
    pub feedback_secret: Option<Secret>,
}

/// How often Envoy tries again (`num_retries`), by the size of the fleet: to reach other instances and models, but not so often that a
/// request that kills instances empties a pool.
pub const RETRIES: RangeInclusive<usize> = 2..=4;

/// What `per_try_idle_timeout_ms` is where nothing else is said.
pub const PER_TRY_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A header's value, or none where it is empty.
fn check_origin(origin: String) -> Result<Option<String>, ConfigError> {
    if !origin.chars().all(|c| c.is_ascii_graphic()) {
        return Err(error("response.allow_origin", format!("{origin:?} is neither `*` nor an origin")));
    }
    Ok(Some(origin).filter(|origin| !origin.is_empty()))
}

fn check_liveness_path(path: String) -> Result<String, ConfigError> {
    let is_path = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && !b"?#\"\\".contains(&b));
    if is_path {
        Ok(path)
    } else {
        Err(error("response.liveness_path", format!("{path:?} must be a path that starts with /")))
    }
}

fn check_encodings(encodings: Vec<Encoding>) -> Result<Vec<Encoding>, ConfigError> {
    let twice = encodings.iter().enumerate().any(|(i, encoding)| encodings.iter().take(i).any(|e| e == encoding));
    if twice { Err(error("request.encodings", "an encoding appears twice")) } else { Ok(encodings) }
}

/// The whole configuration, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Tells configurations apart: two files that differ anywhere have different ones.
    pub identity: u64,
    /// What stands in its statistics, so that those of several configurations in one Envoy do not mix; `None` for nothing.
    pub name: Option<String>,
    /// Names that mean "choose among all models".
    pub virtual_models: Vec<String>,
    /// What happens to an unknown model.
    pub unknown_model: UnknownModel,
    /// Whether requests whose route does not name a policy in its metadata are somebody else's.
    pub only_marked_routes: bool,
    /// Models, pools and instances.
    pub fleet: Fleet,
    /// The policies.
    pub policies: Vec<Policy>,
    /// The policy of requests whose route names none.
    pub default_policy: PolicyId,
    /// Envoy's routes.
    pub routes: Vec<Route>,
    /// Whether the predictor runs; without it the priors of the models decide.
    pub predictor_enabled: bool,
    /// What is learnt while serving.
    pub learning: Learning,
    /// What forecasts of a response's times rest on.
    pub latency_estimate: Basis,
    /// What instances have kept of earlier requests.
    pub affinity: Affinity,
    /// Load reports.
    pub telemetry: crate::telemetry::TelemetrySettings,
    /// How Envoy is asked for the hosts of its clusters; `None` if it is not.
    pub discovery: Option<crate::discovery::DiscoverySettings>,
    /// Passive health.
    pub health: crate::health::HealthSettings,
    /// Largest request body that is held back until it is whole.
    pub max_buffered_bytes: u64,
    /// How a request's body may be packed.
    pub encodings: Vec<Encoding>,
    /// Whether responses name the instance's address.
    pub expose_endpoint: bool,
    /// The origin whose browsers may read what the filter answers itself, or `*` for all; `None` for nobody.
    pub allow_origin: Option<String>,
    /// The path at which the gateway says that it is alive; `None` for none.
    pub liveness_path: Option<String>,
    /// Parts that act as if they had failed.
    pub drill: Vec<Drill>,
    /// Whether `POST /routebalance/debug/predict` is answered.
    pub debug_predict: bool,
    /// Settings of the rendered Envoy configuration.
    pub envoy: EnvoySettings,
}

impl Config {
    /// How often Envoy tries again: as [`RETRIES`] has it for the fleet.
    pub fn retries(&self) -> usize {
        self.fleet.instances.len().saturating_sub(1).clamp(*RETRIES.start(), *RETRIES.end())
    }

    /// Parses and checks a whole file.
    ///
    /// # Errors
    /// The first thing that is wrong, with the path of its field.
    pub fn parse(bytes: &[u8]) -> Result<Config, ConfigError> {
        let json = wrapping::unwrapped(bytes);
        let whole_file = |problem: String| error("(whole file)", problem);
        let wrapped = |problem: &dyn fmt::Display| {
            let sentence = wrapping::wrapping(&json).or_else(|| wrapping::enclosing(&json));
            whole_file(sentence.map_or_else(|| problem.to_string(), str::to_owned))
        };
        let tree: Tree = serde_json::from_slice(&json).map_err(|problem| wrapped(&problem))?;
        let raw = RawConfig::deserialize(&tree).map_err(|error| match wrapping::enclosing(&json) {
            Some(sentence) => whole_file(sentence.to_owned()),
            None => match &tree {
                Tree::Object(_) => ConfigError::from(error),
                _ => wrapped(&error),
            },
        })?;
        Ok(Config { identity: fnv1a(&json), ..check(raw)? })
    }

    /// Whether a request that names this model leaves the choice to the filter.
    pub fn names_no_model(&self, model: Option<&str>) -> bool {
        model.is_none_or(|name| self.virtual_models.iter().any(|v| v == name))
    }

    /// Every name that requests may use, with the longest context that it may have: virtual models, models, their adapters, and the names
    /// that servers have for them; and whether anybody is there to serve it.
    pub fn models(&self) -> Vec<Listed<'_>> {
        let of = move |model: ModelId| self.fleet.pools.iter().filter(move |pool| pool.model == model);
        let context = |model: ModelId| of(model).map(|pool| pool.limits.max_model_len).max();
        let has_instance = |pool: &Pool| {
            let there = |i: &InstanceId| self.fleet.instance(*i).is_some_and(|i| i.presence != Presence::Gone);
            !pool.known || pool.instances.iter().any(there)
        };
        let is_available = |model: ModelId| of(model).any(has_instance);
        let of_models = self.fleet.models_by_id().filter_map(|(i, model)| Some((i, model, context(i)?)));
        let named = of_models.clone().flat_map(|(i, model, max_model_len)| {
            let names = std::iter::once(&model.name).chain(&model.adapters).chain(of(i).map(|pool| &pool.served_model));
            let available = is_available(i);
            names.map(move |name| Listed { name, max_model_len, available })
        });
        let generating = of_models.filter(|(_, model, _)| model.kind == ModelKind::Generate);
        let longest = generating.clone().map(|(_, _, context)| context).max();
        let available = generating.map(|(i, ..)| i).any(is_available);
        let virtual_models =
            self.virtual_models.iter().filter_map(|name| Some(Listed { name, max_model_len: longest?, available }));
        let mut all: Vec<Listed<'_>> = Vec::new();
        for listed in virtual_models.chain(named) {
            if !all.iter().any(|other| other.name == listed.name) {
                all.push(listed);
            }
        }
        all
    }

    /// A policy.
    pub fn policy(&self, id: PolicyId) -> Option<&Policy> {
        self.policies.get(id.index())
    }

    /// The policy of a route by its name.
    pub fn policy_named(&self, name: &str) -> Option<PolicyId> {
        self.policies.iter().position(|p| p.name == name).map(PolicyId::new)
    }

    /// The policy that the configuration gives to a route of Envoy.
    pub fn policy_of_route(&self, route: &str) -> Option<PolicyId> {
        self.routes.iter().find(|r| r.name == route).map(|r| r.policy)
    }

    /// Whether a part acts as if it had failed.
    pub fn drills(&self, part: Drill) -> bool {
        self.drill.contains(&part)
    }
}

fn error(field: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError { field: field.into(), problem: problem.into() }
}

fn check(raw: RawConfig) -> Result<Config, ConfigError> {
    check_names("virtual_models", raw.virtual_models.iter().map(String::as_str))?;
    let models = models::check_models(&raw.models)?;
    let fleet = pools::check_pools(models, &raw.pools)?;
    for (i, name) in raw.virtual_models.iter().enumerate() {
        if fleet.model_named(name).is_some() {
            return Err(error(format!("virtual_models[{i}]"), format!("{name:?} is also the name of a model")));
        }
        if fleet.model_with_adapter(name).is_some() {
            return Err(error(format!("virtual_models[{i}]"), format!("{name:?} is also the name of an adapter")));
        }
    }
    let policies = policy::check_all(&raw.policies, &fleet)?;
    let named = |field: String, name: &str| {
        let position = policies.iter().position(|p| p.name == name).map(PolicyId::new);
        position.ok_or_else(|| error(field, format!("no policy is named {name:?}")))
    };
    let default_policy = named("default_policy".to_owned(), &raw.default_policy)?;
    check_names("routes[].name", raw.routes.iter().map(|r| r.name.as_str()))?;
    let mut routes = Vec::with_capacity(raw.routes.len());
    for (i, route) in raw.routes.iter().enumerate() {
        let policy = named(format!("routes[{i}].policy"), &route.policy)?;
        routes.push(check_route(i, route, policy)?);
    }
    let telemetry = telemetry::check(&raw.telemetry)?;
    // A pool that is discovered needs it, whether the file says how or not.
    let discovers = fleet.pools.iter().any(|p| p.discovered);
    let raw_discovery = raw.discovery.or_else(|| discovers.then(Default::default));
    let discovery = raw_discovery.as_ref().map(discovery::check).transpose()?;
    if !(65_536..=1 << 30).contains(&raw.request.max_buffered_bytes.0) {
        return Err(error("request.max_buffered_bytes", "must be between 65536 and 1073741824 bytes"));
    }
    let envoy = envoy::check(raw.envoy, &fleet)?;
    Ok(Config {
        identity: 0,
        name: raw.name.map(check_name).transpose()?,
        virtual_models: raw.virtual_models,
        unknown_model: raw.unknown_model,
        only_marked_routes: raw.only_marked_routes,
        fleet,
        policies,
        default_policy,
        routes,
        predictor_enabled: raw.predictor.enabled,
        learning: check_learning(raw.learning)?,
        latency_estimate: raw.latency.estimate,
        affinity: affinity::check(raw.affinity)?,
        telemetry,
        discovery,
        health: health::check(&raw.health)?,
        max_buffered_bytes: raw.request.max_buffered_bytes.0,
        encodings: check_encodings(raw.request.encodings)?,
        expose_endpoint: raw.response.expose_endpoint,
        allow_origin: check_origin(raw.response.allow_origin)?,
        liveness_path: raw.response.liveness_path.map(check_liveness_path).transpose()?,
        drill: raw.drill,
        debug_predict: raw.debug.predict,
        envoy,
    })
}

/// Names that appear in headers, metrics and Envoy's own configuration: visible ASCII without quotes, unique in their list.
fn check_names<'a>(field: &str, names: impl Iterator<Item = &'a str>) -> Result<(), ConfigError> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if name.is_empty() || name.len() > 128 {
            return Err(error(field, "a name must have 1 to 128 characters"));
        }
        if !name.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\') {
            return Err(error(field, format!("{name:?} may hold visible ASCII characters only, without quotes")));
        }
        if !seen.insert(name) {
            return Err(error(field, format!("{name:?} appears twice")));
        }
    }
    Ok(())
}

/// A name that becomes a part of names of statistics.
fn check_name(name: String) -> Result<String, ConfigError> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(is_plain) {
        return Err(error("name", format!("{name:?} must have 1 to 64 letters, digits, `-` or `_`")));
    }
    Ok(name)
}

fn check_text(field: &str, value: &str) -> Result<String, ConfigError> {
    if value.is_empty() || value.chars().any(char::is_control) {
        return Err(error(field, "must be a path"));
    }
    Ok(value.to_owned())
}

fn check_address(field: &str, value: &str) -> Result<SocketAddr, ConfigError> {
    let address: SocketAddr =
        value.parse().map_err(|_| error(field, format!("{value:?} is not an ip:port address")))?;
    if address.port() == 0 {
        return Err(error(field, "the port must not be 0"));
    }
    Ok(address)
}

/// A finite number in `low..=high`; an error names the unit through the field's own name.
fn check_number(field: String, value: impl Into<f64>, low: f64, high: f64) -> Result<f64, ConfigError> {
    let value: f64 = value.into();
    if value >= low && value <= high {
        Ok(value)
    } else {
        Err(error(field, format!("{value} is not between {low} and {high}")))
    }
}

fn check_learning(raw: RawLearning) -> Result<Learning, ConfigError> {
    let feedback_secret = raw
        .feedback
        .map(|feedback| {
            Secret::new(feedback.secret).ok_or_else(|| {
                error("learning.feedback.secret", "must have at least 16 characters, visible ASCII without spaces")
            })
        })
        .transpose()?;
    Ok(Learning { output_tokens: raw.output_tokens, feedback_secret })
}

fn check_route(i: usize, raw: &RawRoute, policy: PolicyId) -> Result<Route, ConfigError> {
    for (field, path) in [("prefix", Some(&raw.prefix)), ("prefix_rewrite", raw.prefix_rewrite.as_ref())] {
        if path.is_some_and(|p| !p.starts_with('/') || p.chars().any(|c| c.is_control() || c == ' ')) {
            return Err(error(format!("routes[{i}].{field}"), "must be a path that starts with /"));
        }
    }
    let weights =
        raw.weights.as_ref().map(|weights| weights.check(&|field| format!("routes[{i}].{field}"))).transpose()?;
    let is_host = |host: &str| !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'/');
    if let Some(host) = raw.hosts.iter().find(|host| !is_host(host) || host.as_str() == "*") {
        return Err(error(
            format!("routes[{i}].hosts"),
            format!("{host:?} is not a host, nor one that begins with `*.`"),
        ));
    }
    let headers = raw.headers.iter().map(|(name, value)| upstream::check_matched(i, name, value));
    Ok(Route {
        name: raw.name.clone(),
        prefix: raw.prefix.clone(),
        prefix_rewrite: raw.prefix_rewrite.clone(),
        policy,
        weights,
        hosts: raw.hosts.clone(),
        headers: headers.collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests;
