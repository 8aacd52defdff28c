//! Settings of the rendered Envoy configuration.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use super::numbers::Integer;
use super::{ConfigError, check_address, check_text, error};
use crate::fleet::{Fleet, ModelKind, Pool, PoolId, PoolKind};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawEnvoy {
    pub(super) listen: String,
    pub(super) admin: String,
    pub(super) module: String,
    pub(super) default_pool: Option<String>,
    pub(super) endpoints_dir: String,
    pub(super) failure_policy: FailurePolicy,
    pub(super) allow_on_headers_stop_iteration: bool,
    pub(super) per_try_idle_timeout_ms: Integer<u64>,
    pub(super) model_fallback: bool,
    pub(super) access_log: String,
    pub(super) request_timeout_ms: Integer<u64>,
    pub(super) connection_buffer_bytes: Integer<u64>,
    pub(super) max_heap_bytes: Integer<u64>,
    pub(super) max_connections: Integer<u64>,
}

impl Default for RawEnvoy {
    fn default() -> Self {
        RawEnvoy {
            listen: "127.0.0.1:10000".to_owned(),
            admin: "127.0.0.1:9901".to_owned(),
            module: "target/wasm32-wasip1/filter/routebalance.wasm".to_owned(),
            default_pool: None,
            endpoints_dir: "envoy/endpoints".to_owned(),
            failure_policy: FailurePolicy::default(),
            allow_on_headers_stop_iteration: true,
            per_try_idle_timeout_ms: Integer(super::PER_TRY_IDLE_TIMEOUT.as_secs().saturating_mul(1_000)),
            model_fallback: true,
            access_log: "/dev/stdout".to_owned(),
            request_timeout_ms: Integer(60_000),
            connection_buffer_bytes: Integer(64 << 10),
            max_heap_bytes: Integer(2 << 30),
            max_connections: Integer(50_000),
        }
    }
}

/// What Envoy does when the module traps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailurePolicy {
    /// The VM is loaded again after a back-off of one second; requests meet 503 until then.
    #[default]
    Reload,
    /// Requests pass without the filter for good.
    Open,
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
    /// The pool that serves when the filter does not.
    pub default_pool: PoolId,
    /// Directory of the files that tell Envoy the endpoints of discovered pools, `<cluster>.yaml` each.
    pub endpoints_dir: String,
    /// What Envoy does when the module traps.
    pub failure_policy: FailurePolicy,
    /// Whether the plugin has no `allow_on_headers_stop_iteration`: a request's headers go on before it is decided.
    pub headers_go_on: bool,
    /// How long an attempt may bring nothing at all before Envoy gives it up.
    pub per_try_idle_timeout: Duration,
    /// Whether a request that leaves the model to the filter is retried at other models, too.
    pub model_fallback: bool,
    /// Path of the access log.
    pub access_log: String,
    /// How long a request may take to arrive.
    pub request_timeout: Duration,
    /// Largest piece of a body that Envoy reads from a connection at once.
    pub connection_buffer_bytes: u64,
    /// Memory from which on Envoy refuses requests.
    pub max_heap_bytes: u64,
    /// Connections of clients, most.
    pub max_connections: u64,
}

pub(super) fn check(raw: RawEnvoy, fleet: &Fleet) -> Result<EnvoySettings, ConfigError> {
    for (field, value, range) in [
        ("envoy.per_try_idle_timeout_ms", raw.per_try_idle_timeout_ms.0, 100..=3_600_000),
        ("envoy.request_timeout_ms", raw.request_timeout_ms.0, 1_000..=3_600_000),
        ("envoy.connection_buffer_bytes", raw.connection_buffer_bytes.0, 16_384..=1 << 30),
        ("envoy.max_heap_bytes", raw.max_heap_bytes.0, 256 << 20..=1 << 40),
        ("envoy.max_connections", raw.max_connections.0, 1..=10_000_000),
    ] {
        if !range.contains(&value) {
            return Err(error(field, format!("{value} is not between {} and {}", range.start(), range.end())));
        }
    }
    Ok(EnvoySettings {
        listen: check_address("envoy.listen", &raw.listen)?,
        admin: check_address("envoy.admin", &raw.admin)?,
        module: check_text("envoy.module", &raw.module)?,
        default_pool: default_pool(raw.default_pool.as_deref(), fleet)?,
        endpoints_dir: check_text("envoy.endpoints_dir", &raw.endpoints_dir)?,
        failure_policy: raw.failure_policy,
        headers_go_on: !raw.allow_on_headers_stop_iteration,
        per_try_idle_timeout: Duration::from_millis(raw.per_try_idle_timeout_ms.0),
        model_fallback: raw.model_fallback,
        access_log: check_text("envoy.access_log", &raw.access_log)?,
        request_timeout: Duration::from_millis(raw.request_timeout_ms.0),
        connection_buffer_bytes: raw.connection_buffer_bytes.0,
        max_heap_bytes: raw.max_heap_bytes.0,
        max_connections: raw.max_connections.0,
    })
}

/// The pool of this name, or the first one that generates: one of our own before all others.
fn default_pool(name: Option<&str>, fleet: &Fleet) -> Result<PoolId, ConfigError> {
    let generates = |pool: &Pool| fleet.model_of(pool).is_some_and(|model| model.kind == ModelKind::Generate);
    let index = match name {
        None => {
            let own = |pool: &Pool| generates(pool) && pool.kind == PoolKind::Own;
            let first = fleet.pools.iter().position(own).or_else(|| fleet.pools.iter().position(generates));
            first.unwrap_or(0)
        }
        Some(name) => {
            let named = fleet.pools.iter().position(|pool| pool.name == name);
            named.ok_or_else(|| error("envoy.default_pool", format!("no pool is named {name:?}")))?
        }
    };
    Ok(PoolId::new(index))
}
