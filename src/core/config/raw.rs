//! `routebalance.json` as written. Unknown fields are refused; nothing here is checked beyond its type.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::affinity::RawAffinity;
use super::discovery::RawDiscovery;
use super::envoy::RawEnvoy;
use super::health::RawHealth;
use super::models::RawModel;
use super::numbers::Integer;
use super::policy::{RawPolicy, RawWeights};
use super::pools::RawPool;
use super::telemetry::RawTelemetry;
use crate::latency::Basis;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    /// Where editors find the schema of the file.
    #[serde(default, rename = "$schema")]
    pub(super) _schema: Option<String>,
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default = "virtual_models")]
    pub(super) virtual_models: Vec<String>,
    #[serde(default)]
    pub(super) unknown_model: UnknownModel,
    #[serde(default)]
    pub(super) only_marked_routes: bool,
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
    #[serde(default)]
    pub(super) weights: Option<RawWeights>,
    #[serde(default)]
    pub(super) hosts: Vec<String>,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
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
    pub(super) max_buffered_bytes: Integer<u64>,
    pub(super) encodings: Vec<Encoding>,
}

impl Default for RawRequest {
    fn default() -> Self {
        RawRequest {
            max_buffered_bytes: Integer(32 << 20),
            encodings: vec![Encoding::Gzip, Encoding::Brotli, Encoding::Zstd],
        }
    }
}

/// How a request's body may be packed: Envoy unpacks it before the filter reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Encoding {
    /// `gzip`
    #[serde(rename = "gzip")]
    Gzip,
    /// `br`
    #[serde(rename = "br")]
    Brotli,
    /// `zstd`
    #[serde(rename = "zstd")]
    Zstd,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawResponse {
    pub(super) expose_endpoint: bool,
    pub(super) allow_origin: String,
    pub(super) liveness_path: Option<String>,
}

impl Default for RawResponse {
    fn default() -> Self {
        RawResponse { expose_endpoint: false, allow_origin: "*".to_owned(), liveness_path: Some("/health".to_owned()) }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDebug {
    pub(super) predict: bool,
}
