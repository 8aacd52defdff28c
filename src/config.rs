//! `routebalance.json`: parsed once, at the edge, into types that cannot be wrong, or one sentence that names the field.
//!
//! Filter, demo, tests and emulated instances read the same file. Cross-references are indices afterwards, weights sum to 1.

mod raw;
mod secret;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

pub use raw::{Drill, FailurePolicy, UnknownModel};
use raw::{RawConfig, RawLearning, RawModel, RawModelKind, RawPolicy, RawPool, RawRoute, RawTelemetry};
pub use secret::Secret;

use crate::fleet::{
    Budget, Fleet, Instance, LatencyProfile, Limits, Model, ModelKind, Policy, Pool, Slo, Tariff, Weights,
};

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
        write!(f, "configuration field {}: {}", self.field, self.problem)
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
    /// Index into [`Config::policies`].
    pub policy: usize,
}

/// How load reports are fetched and trusted.
#[derive(Clone, Debug, PartialEq)]
pub struct Telemetry {
    /// Whether instances are scraped at all.
    pub enabled: bool,
    /// Path of the metrics page.
    pub metrics_path: String,
    /// Time between two scrapes of one instance.
    pub scrape_period: Duration,
    /// Time after which a scrape counts as failed.
    pub scrape_timeout: Duration,
    /// Up to this age a report is fully trusted.
    pub fresh: Duration,
    /// From this age on a report is not trusted at all; in between, trust falls linearly.
    pub max_age: Duration,
    /// Time after which another worker takes over the scraping of a silent one.
    pub lease: Duration,
}

/// What the gateway learns while it serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Learning {
    /// Whether expected output tokens are corrected by what answers really have.
    pub output_tokens: bool,
    /// What senders of feedback must know; `None` if no feedback is taken.
    pub feedback_secret: Option<Secret>,
}

/// What `routebalance render` needs to write `envoy.yaml`.
#[derive(Clone, Debug, PartialEq)]
pub struct EnvoySettings {
    /// Address of the listener.
    pub listen: SocketAddr,
    /// Address of the admin listener.
    pub admin: SocketAddr,
    /// Path of the module.
    pub module: String,
    /// The pool that serves when the filter does not; index into [`Fleet::pools`].
    pub default_pool: usize,
    /// What Envoy does when the module traps.
    pub failure_policy: FailurePolicy,
    /// Path of the access log.
    pub access_log: String,
}

/// The whole configuration, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Names that mean "choose among all models".
    pub virtual_models: Vec<String>,
    /// What happens to an unknown model.
    pub unknown_model: UnknownModel,
    /// Models, pools and instances.
    pub fleet: Fleet,
    /// The policies.
    pub policies: Vec<Policy>,
    /// The policy of requests whose route names none.
    pub default_policy: usize,
    /// Envoy's routes.
    pub routes: Vec<Route>,
    /// Whether the predictor runs; without it the priors of the models decide.
    pub predictor_enabled: bool,
    /// What is learnt while serving.
    pub learning: Learning,
    /// Load reports.
    pub telemetry: Telemetry,
    /// Largest request body that is held back until it is whole.
    pub max_buffered_bytes: u64,
    /// Whether responses name the instance's address.
    pub expose_endpoint: bool,
    /// Parts that act as if they had failed.
    pub drill: Vec<Drill>,
    /// Whether `POST /routebalance/debug/predict` is answered.
    pub debug_predict: bool,
    /// Settings of the rendered Envoy configuration.
    pub envoy: EnvoySettings,
}

impl Config {
    /// Parses and checks a whole file.
    ///
    /// # Errors
    /// The first thing that is wrong, with the path of its field.
    pub fn parse(json: &[u8]) -> Result<Config, ConfigError> {
        let mut reader = serde_json::Deserializer::from_slice(json);
        let raw: RawConfig = serde_path_to_error::deserialize(&mut reader).map_err(|e| {
            let path = e.path().to_string();
            let field = if path == "." { "(whole file)".to_owned() } else { path };
            ConfigError { field, problem: e.inner().to_string() }
        })?;
        reader.end().map_err(|e| error("(whole file)", e.to_string()))?;
        check(raw)
    }

    /// The policy of a route by its name.
    pub fn policy_named(&self, name: &str) -> Option<usize> {
        self.policies.iter().position(|p| p.name == name)
    }

    /// The policy that the configuration gives to a route of Envoy.
    pub fn policy_of_route(&self, route: &str) -> Option<usize> {
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
    let models = check_models(&raw.models)?;
    let fleet = check_pools(models, &raw.pools)?;
    for (i, name) in raw.virtual_models.iter().enumerate() {
        if fleet.model_named(name).is_some() {
            return Err(error(format!("virtual_models[{i}]"), format!("{name:?} is also the name of a model")));
        }
    }
    let policies = check_policies(&raw.policies)?;
    let named = |field: String, name: &str| {
        policies.iter().position(|p| p.name == name).ok_or_else(|| error(field, format!("no policy is named {name:?}")))
    };
    let default_policy = named("default_policy".to_owned(), &raw.default_policy)?;
    check_names("routes[].name", raw.routes.iter().map(|r| r.name.as_str()))?;
    let mut routes = Vec::with_capacity(raw.routes.len());
    for (i, route) in raw.routes.iter().enumerate() {
        let policy = named(format!("routes[{i}].policy"), &route.policy)?;
        routes.push(check_route(i, route, policy)?);
    }
    let telemetry = check_telemetry(&raw.telemetry)?;
    if !(65_536..=1 << 30).contains(&raw.request.max_buffered_bytes) {
        return Err(error("request.max_buffered_bytes", "must be between 65536 and 1073741824 bytes"));
    }
    let default_pool = match &raw.envoy.default_pool {
        None => fleet
            .pools
            .iter()
            .position(|p| fleet.model_of(p).is_some_and(|m| m.kind == ModelKind::Generate))
            .unwrap_or(0),
        Some(name) => fleet
            .pools
            .iter()
            .position(|p| p.name == *name)
            .ok_or_else(|| error("envoy.default_pool", format!("no pool is named {name:?}")))?,
    };
    let envoy = EnvoySettings {
        listen: check_address("envoy.listen", &raw.envoy.listen)?,
        admin: check_address("envoy.admin", &raw.envoy.admin)?,
        module: check_text("envoy.module", &raw.envoy.module)?,
        default_pool,
        failure_policy: raw.envoy.failure_policy,
        access_log: check_text("envoy.access_log", &raw.envoy.access_log)?,
    };
    Ok(Config {
        virtual_models: raw.virtual_models,
        unknown_model: raw.unknown_model,
        fleet,
        policies,
        default_policy,
        routes,
        predictor_enabled: raw.predictor.enabled,
        learning: check_learning(raw.learning)?,
        telemetry,
        max_buffered_bytes: raw.request.max_buffered_bytes,
        expose_endpoint: raw.response.expose_endpoint,
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
fn check_number(field: String, value: f64, low: f64, high: f64) -> Result<f64, ConfigError> {
    if value >= low && value <= high {
        Ok(value)
    } else {
        Err(error(field, format!("{value} is not between {low} and {high}")))
    }
}

fn check_models(raw: &[RawModel]) -> Result<Vec<Model>, ConfigError> {
    if raw.is_empty() {
        return Err(error("models", "at least one model is needed"));
    }
    check_names("models[].name", raw.iter().map(|m| m.name.as_str()))?;
    raw.iter().enumerate().map(|(i, m)| check_model(i, m)).collect()
}

fn check_model(i: usize, raw: &RawModel) -> Result<Model, ConfigError> {
    let at = |field: &str| format!("models[{i}].{field}");
    let needed =
        |value: Option<f64>, field: &str| value.ok_or_else(|| error(at(field), "a model of kind generate needs it"));
    let input = check_number(at("usd_per_million_input_tokens"), raw.usd_per_million_input_tokens, 0.0, 1e6)?;
    let (kind, output, quality, tokens) = match raw.kind {
        RawModelKind::Embed => (ModelKind::Embed, 0.0, raw.quality_prior.unwrap_or(0.0), 1.0),
        RawModelKind::Generate => (
            ModelKind::Generate,
            needed(raw.usd_per_million_output_tokens, "usd_per_million_output_tokens")?,
            needed(raw.quality_prior, "quality_prior")?,
            needed(raw.output_tokens_prior, "output_tokens_prior")?,
        ),
    };
    let output = check_number(at("usd_per_million_output_tokens"), output, 0.0, 1e6)?;
    Ok(Model {
        name: raw.name.clone(),
        kind,
        tariff: Tariff { usd_per_input_token: input / 1e6, usd_per_output_token: output / 1e6 },
        quality_prior: check_number(at("quality_prior"), quality, 0.0, 1.0)?,
        output_tokens_prior: check_number(at("output_tokens_prior"), tokens, 1.0, 1e6)?,
    })
}

fn check_pools(models: Vec<Model>, raw: &[RawPool]) -> Result<Fleet, ConfigError> {
    if raw.is_empty() {
        return Err(error("pools", "at least one pool is needed"));
    }
    check_names("pools[].name", raw.iter().map(|p| p.name.as_str()))?;
    check_names("pools[].cluster", raw.iter().map(|p| p.cluster.as_str()))?;
    let mut fleet = Fleet { models, pools: Vec::with_capacity(raw.len()), instances: Vec::new() };
    for (i, pool) in raw.iter().enumerate() {
        check_pool(&mut fleet, i, pool)?;
    }
    for (i, model) in fleet.models.iter().enumerate() {
        if !fleet.pools.iter().any(|p| p.model == i) {
            return Err(error(format!("models[{i}].name"), format!("no pool serves {:?}", model.name)));
        }
    }
    Ok(fleet)
}

fn check_pool(fleet: &mut Fleet, i: usize, raw: &RawPool) -> Result<(), ConfigError> {
    let at = |field: &str| format!("pools[{i}].{field}");
    let model = fleet
        .model_named(&raw.model)
        .ok_or_else(|| error(at("model"), format!("no model is named {:?}", raw.model)))?;
    let served_model = raw.served_model.clone().unwrap_or_else(|| raw.model.clone());
    check_names(&at("served_model"), std::iter::once(served_model.as_str()))?;
    let profile = LatencyProfile {
        tpot_ms: check_number(at("profile.tpot_ms"), raw.profile.tpot_ms, 0.01, 60_000.0)?,
        tpot_growth_per_running: check_number(
            at("profile.tpot_growth_per_running"),
            raw.profile.tpot_growth_per_running,
            0.0,
            10.0,
        )?,
        prefill_tokens_per_second: check_number(
            at("profile.prefill_tokens_per_second"),
            raw.profile.prefill_tokens_per_second,
            1.0,
            1e9,
        )?,
        overhead_ms: check_number(at("profile.overhead_ms"), raw.profile.overhead_ms, 0.0, 60_000.0)?,
    };
    let limits = Limits {
        max_running: raw.limits.max_running,
        kv_tokens: raw.limits.kv_tokens,
        max_model_len: raw.limits.max_model_len,
    };
    for (field, value) in [
        ("limits.max_running", u64::from(limits.max_running)),
        ("limits.kv_tokens", limits.kv_tokens),
        ("limits.max_model_len", u64::from(limits.max_model_len)),
    ] {
        if value == 0 {
            return Err(error(at(field), "must be at least 1"));
        }
    }
    if raw.instances.is_empty() {
        return Err(error(at("instances"), "at least one ip:port is needed"));
    }
    let start = fleet.instances.len();
    for (k, address) in raw.instances.iter().enumerate() {
        let field = format!("pools[{i}].instances[{k}]");
        let address = check_address(&field, address)?.to_string();
        if fleet.instance_at(&address).is_some() {
            return Err(error(field, format!("{address} appears twice in the fleet")));
        }
        fleet.instances.push(Instance { address, pool: i });
    }
    let instances = start..fleet.instances.len();
    let cluster = raw.cluster.clone();
    fleet.pools.push(Pool { name: raw.name.clone(), model, cluster, served_model, profile, limits, instances });
    Ok(())
}

fn check_policies(raw: &[RawPolicy]) -> Result<Vec<Policy>, ConfigError> {
    if raw.is_empty() {
        return Err(error("policies", "at least one policy is needed"));
    }
    check_names("policies[].name", raw.iter().map(|p| p.name.as_str()))?;
    raw.iter().enumerate().map(|(i, p)| check_policy(i, p)).collect()
}

fn check_policy(i: usize, raw: &RawPolicy) -> Result<Policy, ConfigError> {
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
        slo: Slo {
            ttft: milliseconds(raw.slo.ttft_ms, "slo.ttft_ms")?,
            tpot: milliseconds(raw.slo.tpot_ms, "slo.tpot_ms")?,
        },
        budget: Budget { usd, tokens: raw.budget.tokens },
        exploration: check_number(at("exploration"), raw.exploration, 0.0, 0.5)?,
    })
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

fn check_route(i: usize, raw: &RawRoute, policy: usize) -> Result<Route, ConfigError> {
    for (field, path) in [("prefix", Some(&raw.prefix)), ("prefix_rewrite", raw.prefix_rewrite.as_ref())] {
        if path.is_some_and(|p| !p.starts_with('/') || p.chars().any(|c| c.is_control() || c == ' ')) {
            return Err(error(format!("routes[{i}].{field}"), "must be a path that starts with /"));
        }
    }
    Ok(Route { name: raw.name.clone(), prefix: raw.prefix.clone(), prefix_rewrite: raw.prefix_rewrite.clone(), policy })
}

fn check_telemetry(raw: &RawTelemetry) -> Result<Telemetry, ConfigError> {
    let ms = |field: &str, value: u64, low: u64, high: u64| {
        if (low..=high).contains(&value) {
            Ok(Duration::from_millis(value))
        } else {
            Err(error(format!("telemetry.{field}"), format!("{value} is not between {low} and {high} milliseconds")))
        }
    };
    if !raw.metrics_path.starts_with('/') || raw.metrics_path.chars().any(|c| c.is_control() || c == ' ') {
        return Err(error("telemetry.metrics_path", "must be a path that starts with /"));
    }
    let telemetry = Telemetry {
        enabled: raw.enabled,
        metrics_path: raw.metrics_path.clone(),
        scrape_period: ms("scrape_period_ms", raw.scrape_period_ms, 20, 600_000)?,
        scrape_timeout: ms("scrape_timeout_ms", raw.scrape_timeout_ms, 10, 60_000)?,
        fresh: ms("fresh_ms", raw.fresh_ms, 1, 3_600_000)?,
        max_age: ms("max_age_ms", raw.max_age_ms, 2, 3_600_000)?,
        lease: ms("lease_ms", raw.lease_ms, 100, 60_000)?,
    };
    if telemetry.max_age <= telemetry.fresh {
        return Err(error("telemetry.max_age_ms", "must be above telemetry.fresh_ms"));
    }
    Ok(telemetry)
}

#[cfg(test)]
mod tests;
