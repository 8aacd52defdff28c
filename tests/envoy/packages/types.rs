//! Kinds that no published models know: types that refuse what the API does not have, as far as it is written here.
#![allow(dead_code, reason = "they are read, and looked at by nobody")]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// `inference.networking.k8s.io/v1` of the Gateway API Inference Extension 1.5, as
/// <https://gateway-api-inference-extension.sigs.k8s.io/reference/spec/> has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct InferencePool {
    api_version: InferenceVersion,
    kind: String,
    metadata: Metadata,
    spec: PoolSpec,
}

#[derive(Deserialize)]
enum InferenceVersion {
    #[serde(rename = "inference.networking.k8s.io/v1")]
    V1,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PoolSpec {
    selector: Selector,
    target_ports: Vec<Port>,
}

/// `extensions.istio.io/v1alpha1` of Istio 1.30, as
/// <https://istio.io/latest/docs/reference/config/proxy_extensions/traffic-extension/> has it, as far as it is written here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct TrafficExtension {
    api_version: ApiVersion,
    kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize)]
enum ApiVersion {
    #[serde(rename = "extensions.istio.io/v1alpha1")]
    V1Alpha1,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    namespace: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Spec {
    selector: Option<Selector>,
    priority: i32,
    #[serde(rename = "match")]
    matches: Vec<Match>,
    wasm: Wasm,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Match {
    mode: Mode,
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Mode {
    Client,
    Server,
    ClientAndServer,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Port {
    number: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Wasm {
    url: String,
    image_pull_policy: PullPolicy,
    plugin_name: String,
    plugin_config: Option<serde_json::Map<String, Value>>,
    fail_strategy: FailStrategy,
}

#[derive(Deserialize)]
enum PullPolicy {
    IfNotPresent,
    Always,
}

#[derive(Deserialize)]
enum FailStrategy {
    #[serde(rename = "FAIL_CLOSE")]
    Close,
    #[serde(rename = "FAIL_OPEN")]
    Open,
    #[serde(rename = "FAIL_RELOAD")]
    Reload,
}
