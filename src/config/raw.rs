//! `routebalance.json` as written. Unknown fields are refused; nothing here is checked beyond its type.

use serde::Deserialize;

use super::affinity::RawAffinity;
use super::discovery::RawDiscovery;
use super::fleet::{RawModel, RawPool};
use super::health::RawHealth;
use super::policy::RawPolicy;
use super::telemetry::RawTelemetry;
use crate::latency::Basis;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    #[serde(default = "virtual_models")]
    pub(super) virtual_models: Vec<String>,
    #[serde(default)]
    pub(super) unknown_model: UnknownModel,
    pub(super) models: Vec<RawModel>,
    pub(super) pools: Vec<RawPool>,
    pub(super) policies: Vec<RawPolicy>,
    pub(super) default_policy: String,
    #[serde(default)]
    pub(super) routes: Vec<RawRoute>,
    #[serde(default)]
    pub(super) predictor: RawPredictor,
    #[serde(default)]
    pub(super) learning: RawLearning,
    #[serde(default)]
    pub(super) latency: RawLatency,
    #[serde(default)]
    pub(super) affinity: RawAffinity,
    #[serde(default)]
    pub(super) telemetry: RawTelemetry,
    #[serde(default)]
    pub(super) discovery: Option<RawDiscovery>,
    #[serde(default)]
    pub(super) health: RawHealth,
    #[serde(default)]
    pub(super) request: RawRequest,
    #[serde(default)]
    pub(super) response: RawResponse,
    #[serde(default)]
    pub(super) drill: Vec<Drill>,
    #[serde(default)]
    pub(super) debug: RawDebug,
    #[serde(default)]
    pub(super) envoy: RawEnvoy,
}

fn virtual_models() -> Vec<String> {
    vec!["auto".to_owned()]
}

/// What happens to a request for a model that is not configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownModel {
    /// 404 in the API's own shape.
    #[default]
    NotFound,
    /// Envoy's own route serves it, untouched.
    PassThrough,
}

/// A part that acts as if it had failed, so that an operator can see the rung below at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Drill {
    /// No prediction comes back.
    Predictor,
    /// No report is ever fresh.
    Reports,
    /// Shared data cannot be read.
    SharedData,
    /// No decision comes back.
    Router,
    /// `POST /routebalance/drill/vm` ends the VM that gets it, as a trap would.
    Vm,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoute {
    pub(super) name: String,
    pub(super) prefix: String,
    #[serde(default)]
    pub(super) prefix_rewrite: Option<String>,
    pub(super) policy: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPredictor {
    pub(super) enabled: bool,
}

impl Default for RawPredictor {
    fn default() -> Self {
        RawPredictor { enabled: true }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLatency {
    pub(super) estimate: Basis,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLearning {
    pub(super) output_tokens: bool,
    pub(super) feedback: Option<RawFeedback>,
}

impl Default for RawLearning {
    fn default() -> Self {
        RawLearning { output_tokens: true, feedback: None }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFeedback {
    pub(super) secret: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRequest {
    pub(super) max_buffered_bytes: u64,
}

impl Default for RawRequest {
    fn default() -> Self {
        RawRequest { max_buffered_bytes: 4 << 20 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawResponse {
    pub(super) expose_endpoint: bool,
    pub(super) allow_origin: String,
}

impl Default for RawResponse {
    fn default() -> Self {
        RawResponse { expose_endpoint: false, allow_origin: "*".to_owned() }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDebug {
    pub(super) predict: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawEnvoy {
    pub(super) listen: String,
    pub(super) admin: String,
    pub(super) module: String,
    pub(super) default_pool: Option<String>,
    pub(super) endpoints_dir: String,
    pub(super) failure_policy: FailurePolicy,
    pub(super) per_try_idle_timeout_ms: u64,
    pub(super) model_fallback: bool,
    pub(super) access_log: String,
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
            per_try_idle_timeout_ms: super::PER_TRY_IDLE_TIMEOUT.as_secs().saturating_mul(1_000),
            model_fallback: true,
            access_log: "/dev/stdout".to_owned(),
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
