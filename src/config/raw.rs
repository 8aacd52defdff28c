//! `routebalance.json` as written. Unknown fields are refused; nothing here is checked beyond its type.

use serde::Deserialize;

use crate::fleet::{Objective, QualityNormalisation};

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
    pub(super) telemetry: RawTelemetry,
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawModel {
    pub(super) name: String,
    #[serde(default)]
    pub(super) kind: RawModelKind,
    pub(super) usd_per_million_input_tokens: f64,
    #[serde(default)]
    pub(super) usd_per_million_output_tokens: Option<f64>,
    #[serde(default)]
    pub(super) quality_prior: Option<f64>,
    #[serde(default)]
    pub(super) output_tokens_prior: Option<f64>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawModelKind {
    #[default]
    Generate,
    Embed,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPool {
    pub(super) name: String,
    pub(super) model: String,
    pub(super) cluster: String,
    #[serde(default)]
    pub(super) served_model: Option<String>,
    pub(super) profile: RawProfile,
    #[serde(default)]
    pub(super) limits: RawLimits,
    pub(super) instances: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProfile {
    pub(super) tpot_ms: f64,
    #[serde(default)]
    pub(super) tpot_growth_per_running: f64,
    pub(super) prefill_tokens_per_second: f64,
    #[serde(default)]
    pub(super) overhead_ms: f64,
    /// Where the numbers come from; for people.
    #[serde(default, rename = "source")]
    pub(super) _source: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLimits {
    pub(super) max_running: u32,
    pub(super) kv_tokens: u64,
    pub(super) max_model_len: u32,
}

impl Default for RawLimits {
    fn default() -> Self {
        // vLLM 0.32's default --max-num-seqs; KV and context as a 7B model on a 24 GB GPU has them.
        RawLimits { max_running: 256, kv_tokens: 76_000, max_model_len: 8_192 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPolicy {
    pub(super) name: String,
    pub(super) weights: RawWeights,
    #[serde(default = "paper")]
    pub(super) objective: Objective,
    #[serde(default = "min_max")]
    pub(super) quality_normalisation: QualityNormalisation,
    #[serde(default)]
    pub(super) slo: RawSlo,
    #[serde(default)]
    pub(super) budget: RawBudget,
    #[serde(default)]
    pub(super) exploration: f64,
}

fn paper() -> Objective {
    Objective::Paper
}

fn min_max() -> QualityNormalisation {
    QualityNormalisation::MinMax
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWeights {
    pub(super) quality: f64,
    pub(super) latency: f64,
    pub(super) cost: f64,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawSlo {
    pub(super) ttft_ms: Option<f64>,
    pub(super) tpot_ms: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBudget {
    pub(super) usd: Option<f64>,
    pub(super) tokens: Option<u32>,
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
pub(super) struct RawTelemetry {
    pub(super) enabled: bool,
    pub(super) metrics_path: String,
    pub(super) scrape_period_ms: u64,
    pub(super) scrape_timeout_ms: u64,
    pub(super) fresh_ms: u64,
    pub(super) max_age_ms: u64,
    pub(super) lease_ms: u64,
}

impl Default for RawTelemetry {
    fn default() -> Self {
        RawTelemetry {
            enabled: true,
            metrics_path: "/metrics".to_owned(),
            scrape_period_ms: 250,
            scrape_timeout_ms: 1_000,
            fresh_ms: 1_000,
            max_age_ms: 5_000,
            lease_ms: 1_000,
        }
    }
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

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawResponse {
    pub(super) expose_endpoint: bool,
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
    pub(super) failure_policy: FailurePolicy,
    pub(super) access_log: String,
}

impl Default for RawEnvoy {
    fn default() -> Self {
        RawEnvoy {
            listen: "127.0.0.1:10000".to_owned(),
            admin: "127.0.0.1:9901".to_owned(),
            module: "target/wasm32-wasip1/filter/routebalance.wasm".to_owned(),
            default_pool: None,
            failure_policy: FailurePolicy::default(),
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
