use std::fs;

use base64::Engine;
use serde_json::json;

use super::*;
use crate::render::render;

mod files;

/// The example, whose routes are the default ones, changed.
fn config(change: &Value) -> Value {
    let mut config: Value = serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap();
    config.as_object_mut().unwrap().remove("routes");
    let patch: json_patch::Patch = serde_json::from_value(change.clone()).unwrap();
    json_patch::patch(&mut config, &patch).unwrap();
    config
}

fn rendered(config: &Value) -> Value {
    serde_saphyr::from_str(&render(config).unwrap()).unwrap()
}

const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";

/// A patch in which `@` is the connection manager, `%` the virtual host and `#` the first cluster.
fn edited(mut envoy: Value, edits: Value) -> Value {
    let mut edits = edits;
    for edit in edits.as_array_mut().unwrap() {
        for name in ["path", "from"] {
            let Some(path) = edit.get(name).and_then(Value::as_str) else { continue };
            let path = path.replace('%', "@/route_config/virtual_hosts/0").replace('#', "/static_resources/clusters/0");
            // Types have an @ in their names, too.
            edit[name] = path.strip_prefix('@').map_or(path.clone(), |below| format!("{MANAGER}{below}")).into();
        }
    }
    let patch: json_patch::Patch = serde_json::from_value(edits).unwrap();
    json_patch::patch(&mut envoy, &patch).unwrap();
    envoy
}

/// What is said of these files, with and without the configuration beside them.
fn said(config: Option<&Value>, files: &[&str]) -> Result<Vec<String>> {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: String, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let envoy: Vec<PathBuf> = files.iter().enumerate().map(|(i, text)| write(format!("envoy{i}.yaml"), text)).collect();
    let file = config.map(|config| write("my.json".to_owned(), &config.to_string()));
    let findings = check_merged(file.as_deref(), &envoy)?;
    let place = format!("{}/", directory.path().display());
    Ok(findings.iter().map(|finding| finding.to_string().replace(&place, "")).collect())
}

const FLAG: &str = "@/http_filters/3/typed_config/config/allow_on_headers_stop_iteration";
const PLUGIN: &str = "@/http_filters/3/typed_config/config/configuration";
const OPTIONS: &str = "#/typed_extension_protocol_options/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const OVERRIDE: &str = "#/load_balancing_policy/policies/0/typed_extension_config/typed_config";

fn remove(path: &str) -> Value {
    json!([{"op": "remove", "path": path}])
}

fn replace(path: &str, value: impl Into<Value>) -> Value {
    json!([{"op": "replace", "path": path, "value": value.into()}])
}

fn add(path: &str, value: Value) -> Value {
    json!([{"op": "add", "path": path, "value": value}])
}

fn moved(from: &str, path: &str) -> Value {
    json!([{"op": "move", "from": from, "path": path}])
}

/// Edits, what the one sentence about them begins with, and what it says to write.
type Rows = Vec<(Value, &'static str, &'static str)>;

fn assert_one_sentence_each(config: &Value, rows: Rows) {
    let envoy = rendered(config);
    assert_eq!(said(Some(config), &[&envoy.to_string()]).unwrap(), [""; 0], "what is rendered lacks nothing");
    assert_eq!(said(None, &[&envoy.to_string()]).unwrap(), [""; 0], "what is rendered lacks nothing");
    for (edits, start, advice) in rows {
        let broken = edited(envoy.clone(), edits.clone()).to_string();
        for config in [Some(config), None] {
            let all = said(config, &[&broken]).unwrap();
            let [one] = all.as_slice() else { panic!("{edits}: {all:#?}") };
            assert!(one.starts_with(start) && one.contains(advice), "{edits}: {one}");
        }
    }
}

#[test]
fn a_listener_that_lacks_something_is_told_what() {
    let second = json!([{"op": "copy", "from": "@/http_filters/3", "path": "@/http_filters/4"}]);
    assert_one_sentence_each(
        &config(&json!([])),
        vec![
            (
                moved("@/http_filters/3", "@/http_filters/4"),
                "error: listener routebalance: the filter stands behind the router",
                "before `envoy",
            ),
            (second, "error: listener routebalance: the filter stands 2 times", "leave one"),
            (remove(FLAG), "error: listener routebalance: the plugin lacks `allow_on_headers", "iteration: true`"),
            (
                replace(FLAG, false),
                "error: listener routebalance: the plugin lacks `allow_on_headers",
                "iteration: true`",
            ),
            (
                replace("@/http_filters/3/typed_config/config/vm_config/vm_id", "other"),
                "error: clusters pool-qwen2.5-3b, pool-qwen2.5-7b, pool-qwen2.5-32b, pool-qwen2.5-72b, pool-bge-small: the `vm_id` of the filter for attempts is `routebalance`",
                "write `vm_id: other`",
            ),
            (
                remove("@/early_header_mutation_extensions/0/typed_config/mutations/1"),
                "warning: listener routebalance: while the filter is bypassed, clients",
                "write `remove: x-gateway-destination-endpoint` into",
            ),
            (
                remove("@/early_header_mutation_extensions"),
                "warning: listener routebalance: while the filter is bypassed, clients",
                "write `remove: x-routebalance-cluster` and `remove: x-gateway-destination-endpoint` into",
            ),
            (
                remove("@/access_log"),
                "warning: listener routebalance: no access log tells decisions",
                "FILTER_STATE(wasm.routebalance_decision:PLAIN)",
            ),
            (
                replace("@/access_log/0/typed_config/log_format/text_format_source/inline_string", "%START_TIME%"),
                "warning: listener routebalance: no access log tells decisions",
                "write `%",
            ),
        ],
    );
}

/// Without FILE nobody knows what the plugin is to be configured with.
#[test]
fn a_plugin_must_be_configured_in_a_way_that_the_module_reads() {
    let config = config(&json!([]));
    let envoy = rendered(&config);
    let wrong_json = replace(&format!("{PLUGIN}/value"), "{\"models\": [}");
    let other = replace(&format!("{PLUGIN}/value"), config.to_string().replace("0.26", "0.27"));
    let unknown = "type.googleapis.com/google.protobuf.Duration";
    for (edits, start, advice) in [
        (
            replace(&format!("{PLUGIN}/@type"), unknown),
            "error: listener routebalance: the plugin's `configuration` is of the type google.protobuf.Duration",
            "google.protobuf.StringValue",
        ),
        (
            remove(PLUGIN),
            "error: listener routebalance: the plugin has no `configuration`",
            "google.protobuf.StringValue",
        ),
        (
            remove(&format!("{PLUGIN}/value")),
            "error: listener routebalance: the `value` of",
            "google.protobuf.StringValue",
        ),
        (
            replace(&format!("{PLUGIN}/@type"), "type.googleapis.com/google.protobuf.BytesValue"),
            "error: listener routebalance: the plugin's `configuration` is no text in base64",
            "StringValue",
        ),
        (
            wrong_json,
            "error: listener routebalance: the module refuses the plugin's configuration: ",
            "line 1 column 13",
        ),
        (
            other,
            "warning: listener routebalance: the plugin's configuration is not that of my.json, first at `policies[0].weights.quality`",
            "write the other there",
        ),
    ] {
        let all = said(Some(&config), &[&edited(envoy.clone(), edits.clone()).to_string()]).unwrap();
        let [one] = all.as_slice() else { panic!("{edits}: {all:#?}") };
        assert!(one.starts_with(start) && one.contains(advice), "{edits}: {one}");
    }
    let nothing = edited(envoy, remove(PLUGIN)).to_string();
    assert!(said(None, &[&nothing]).unwrap()[0].starts_with("error: listener routebalance: the plugin has no"));
}

#[test]
fn a_listener_without_the_flag_needs_what_stands_behind() {
    let headers = "@/http_filters/5/typed_config/config/vm_config/vm_id";
    let limit = "@/http_filters/4/typed_config/extension_config/typed_config/max_request_bytes";
    let key = "@/http_filters/4/typed_config/xds_matcher/matcher_list/matchers/0/predicate/not_matcher/single_predicate/input/typed_config/key";
    let order = "error: listener routebalance: the filter, its buffer and its second instance";
    assert_one_sentence_each(
        &config(&add("/envoy/allow_on_headers_stop_iteration", json!(false))),
        vec![
            (
                remove("@/http_filters/4"),
                "error: listener routebalance: the buffer for requests that wait is missing",
                "`routebalance-buffer` behind",
            ),
            (
                replace(key, "wasm.other"),
                "error: listener routebalance: the buffer for requests that wait is missing",
                "`routebalance-buffer` behind",
            ),
            (
                remove("@/http_filters/5"),
                "error: listener routebalance: the second instance (root id `headers`) is missing",
                "`routebalance-headers` behind",
            ),
            (moved("@/http_filters/4", "@/http_filters/5"), order, "in this one"),
            (moved("@/http_filters/5", "@/http_filters/6"), order, "before `envoy.filters.http.router`"),
            (moved("@/http_filters/3", "@/http_filters/4"), order, "in this one"),
            (
                add(FLAG, json!(true)),
                "warning: listener routebalance: the plugin has `allow_on_headers",
                "take `allow_on",
            ),
            (
                replace(headers, "other"),
                "error: listener routebalance: the filter's `vm_id` is `routebalance`, but that of `routebalance-headers` is `other`",
                "write `vm_id: routebalance`",
            ),
            (
                replace(limit, 1_000),
                "error: listener routebalance: the buffer's `max_request_bytes` is 1000",
                "write 16777216",
            ),
            (
                json!([{"op": "copy", "from": "@/http_filters/5", "path": "@/http_filters/6"}]),
                "error: listener routebalance: the second instance of the filter (root id `headers`) stands 2 times",
                "leave one",
            ),
        ],
    );
}

#[test]
fn routes_that_lack_something_are_told_what() {
    let all = json!([{"op": "remove", "path": "%/routes/0"}, {"op": "remove", "path": "%/routes/0"}]);
    let elsewhere = json!([{"op": "remove", "path": "%/routes/0/route/cluster_header"}, {"op": "add", "path": "%/routes/0/route/cluster", "value": "other"}]);
    assert_one_sentence_each(
        &config(&json!([])),
        vec![
            (
                all,
                "error: listener routebalance: no route matches the filter state `wasm.routebalance_routed`, so nobody",
                "first into the virtual host",
            ),
            (
                remove("%/routes/0"),
                "error: listener routebalance, virtual host llm: no route matches the filter state `wasm.routebalance_routed` with the prefix `stream`",
                "write the route",
            ),
            (
                remove("%/routes/1"),
                "error: listener routebalance, virtual host llm: no route matches the filter state `wasm.routebalance_routed` with the prefix `whole`",
                "write the route",
            ),
            (
                replace("%/routes/1/match/filter_state/0/string_match", json!({"exact": "whole"})),
                "error: listener routebalance, virtual host llm: no route matches the filter state `wasm.routebalance_routed` with the prefix `whole`",
                "write the route",
            ),
            (
                moved("%/routes/2", "%/routes/0"),
                "error: listener routebalance, virtual host llm: route 1 (`default`) takes",
                "with the filter state first",
            ),
            (
                elsewhere,
                "error: listener routebalance, virtual host llm: route 1 (`default`) does not go to the pool",
                "`cluster_header: x-routebalance-cluster`",
            ),
            (
                replace("%/routes/0/route/cluster_header", "x-other"),
                "error: listener routebalance, virtual host llm: route 1 (`default`) does not go to the pool",
                "`cluster_header: x-routebalance-cluster`",
            ),
            (
                remove("%/routes/0/route/timeout"),
                "error: listener routebalance, virtual host llm: the `timeout` of route 1 (`default`) is the default of 15 s",
                "`timeout: 0s`",
            ),
            (
                replace("%/routes/1/route/timeout", "30s"),
                "warning: listener routebalance, virtual host llm: the `timeout` of route 2 (`default`) is 30s",
                "`timeout: 0s`",
            ),
            (
                remove("%/routes/2/route/timeout"),
                "warning: listener routebalance, virtual host llm: the `timeout` of route 3 (`default`) is the default",
                "`timeout: 0s`",
            ),
            (
                remove("%/routes/0/route/retry_policy/retry_host_predicate"),
                "warning: listener routebalance, virtual host llm: route 1 (`default`) may try the same host",
                "`envoy.retry_host_predicates.previous_hosts`",
            ),
            (
                remove("%/routes/1/route/retry_policy"),
                "warning: listener routebalance, virtual host llm: route 2 (`default`) has no `retry_policy`",
                "write that",
            ),
            (
                remove("%/include_request_attempt_count"),
                "warning: listener routebalance, virtual host llm: attempts after the first cannot be told",
                "`include_request_attempt_count: true`",
            ),
            (
                remove("%/request_body_buffer_limit"),
                "error: listener routebalance, virtual host llm: it has no `request_body_buffer_limit`, and the listener's `per_connection_buffer_limit_bytes` is 65536",
                "`request_body_buffer_limit: 4325376`",
            ),
            (
                replace("%/request_body_buffer_limit", "1000"),
                "error: listener routebalance, virtual host llm: its `request_body_buffer_limit` is 1000",
                "`request_body_buffer_limit: 4325376`",
            ),
        ],
    );
}

/// Where the filter leaves other routes alone, one of its own must say that it is.
#[test]
fn a_route_must_be_marked_where_only_marked_ones_are_the_filters() {
    assert_one_sentence_each(
        &config(&add("/only_marked_routes", json!(true))),
        vec![(
            remove("%/routes/2/metadata"),
            "error: listener routebalance, virtual host llm: no route without the filter state names a policy",
            "write the `metadata` of `render`",
        )],
    );
}

#[test]
fn clusters_that_lack_something_are_told_what() {
    let discovered = replace("/pools/1/instances", "discover");
    let renamed = "error: there is no cluster pool-qwen2.5-3b, which pool qwen2.5-3b needs";
    let idle = format!("{OPTIONS}/common_http_protocol_options/idle_timeout");
    let bounds = "warning: cluster pool-qwen2.5-3b: Envoy's own bounds hold";
    assert_one_sentence_each(
        &config(&discovered),
        vec![
            (remove("#"), renamed, "write that of `render`"),
            (replace("#/name", "other"), renamed, "write that of `render`"),
            (
                remove("#/load_balancing_policy"),
                "error: cluster pool-qwen2.5-3b: it has no `load_balancing_policy` of the type OverrideHost",
                "`header: x-gateway-destination-endpoint`",
            ),
            (
                replace(&format!("{OVERRIDE}/override_host_sources/0/header"), "x-other"),
                "error: cluster pool-qwen2.5-3b: its OverrideHost reads the header `x-other`",
                "`header: x-gateway-destination-endpoint`",
            ),
            (
                replace(&format!("{OVERRIDE}/override_host_sources/0"), json!({"metadata": {"key": "a"}})),
                "error: cluster pool-qwen2.5-3b: its OverrideHost reads no header",
                "`header: x-gateway-destination-endpoint`",
            ),
            (
                remove("#/circuit_breakers"),
                bounds,
                "(`max_connections` 1024, `max_pending_requests` 1024, `max_requests` 1024, `max_retries` 3)",
            ),
            (replace("#/circuit_breakers/thresholds/0/max_requests", 1_024), bounds, "(`max_requests` 1024)"),
            (
                replace("#/circuit_breakers/thresholds/0", json!({"priority": "HIGH", "max_requests": 9})),
                bounds,
                "`circuit_breakers` of `render`",
            ),
            (
                add("#/outlier_detection", json!({})),
                "warning: cluster pool-qwen2.5-3b: its `outlier_detection`",
                "take it out",
            ),
            (remove(&idle), "warning: cluster pool-qwen2.5-3b: now and then a request", "`idle_timeout: 4s`"),
            (replace(&idle, "5s"), "warning: cluster pool-qwen2.5-3b: now and then a request", "`idle_timeout: 4s`"),
            (replace(&idle, "0s"), "warning: cluster pool-qwen2.5-3b: now and then a request", "`idle_timeout: 4s`"),
            (
                remove(&format!("{OPTIONS}/http_filters")),
                "warning: cluster pool-qwen2.5-3b: no filter sees attempts",
                "`\"model_fallback\": false`",
            ),
            (
                remove("/static_resources/clusters/5"),
                "error: there is no cluster routebalance-admin",
                "write it with the admin listener's address",
            ),
        ],
    );
}

/// Other ways to write what is right.
#[test]
fn what_is_written_in_another_way_is_right_as_well() {
    let config = config(&json!([]));
    let envoy = rendered(&config);
    let plugin = |kind: &str, value: Value| {
        replace(PLUGIN, json!({"@type": format!("type.googleapis.com/google.protobuf.{kind}"), "value": value}))
    };
    let base64 = base64::engine::general_purpose::STANDARD.encode(config.to_string());
    let filter = envoy.pointer(&format!("{MANAGER}/http_filters/3/typed_config")).unwrap().clone();
    let mut inner = filter.clone();
    let kind = inner.as_object_mut().unwrap().remove("@type").unwrap();
    let wrapped = json!({"@type": "type.googleapis.com/xds.type.v3.TypedStruct", "type_url": kind, "value": inner});
    let matched = json!({
        "@type": "type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher",
        "extension_config": {"name": "x", "typed_config": filter},
        "xds_matcher": {},
    });
    let unknown = json!({"@type": "type.googleapis.com/acme.Unknown", "a": [1]});
    let names = json!([
        {"op": "replace", "path": "@/http_filters/3/name", "value": "llm"},
        {"op": "replace", "path": "@/http_filters/3/typed_config/config/name", "value": "llm"},
        {"op": "replace", "path": "@/http_filters/3/typed_config/config/vm_config/code/local/filename", "value": "p.wasm"},
    ]);
    let common = json!([
        {"op": "move", "from": format!("{OPTIONS}/common_http_protocol_options"), "path": "#/common_http_protocol_options"},
    ]);
    let policy = json!([
        {"op": "copy", "from": "%/routes/0/route/retry_policy", "path": "%/retry_policy"},
        {"op": "remove", "path": "%/routes/0/route/retry_policy"},
    ]);
    let listener = "/static_resources/listeners/0";
    let second = json!([
        {"op": "copy", "from": listener, "path": "/static_resources/listeners/1"},
        {"op": "replace", "path": "/static_resources/listeners/1/name", "value": "others"},
        {"op": "remove", "path": "/static_resources/listeners/1/filter_chains/0/filters/0/typed_config/http_filters/3"},
        {"op": "remove", "path": "/static_resources/listeners/1/filter_chains/0/filters/0/typed_config/route_config/virtual_hosts/0/routes/0"},
    ]);
    let own_host =
        json!({"name": "web", "domains": ["web"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "web"}}]});
    for edits in [
        plugin("Struct", config.clone()),
        plugin("BytesValue", base64.into()),
        replace("@/http_filters/3/typed_config", wrapped),
        replace("@/http_filters/3/typed_config", matched),
        replace(FLAG, "yes"),
        replace("%/request_body_buffer_limit", "4325376"),
        names,
        common,
        policy,
        second,
        moved("@/http_filters", "@/httpFilters"),
        moved("%/routes/0/route/retry_policy", "%/routes/0/route/retryPolicy"),
        add("@/http_filters/0", json!({"name": "acme", "typed_config": unknown})),
        add("@/http_filters/0", json!({"name": "acme", "config_discovery": {}})),
        json!([
            {"op": "add", "path": "%/routes/0/request_body_buffer_limit", "value": 5_000_000},
            {"op": "add", "path": "%/routes/1/request_body_buffer_limit", "value": 5_000_000},
            {"op": "remove", "path": "%/request_body_buffer_limit"},
        ]),
        add("/static_resources/clusters/0", json!({"name": "web", "outlier_detection": {}})),
        add("@/route_config/virtual_hosts/0", own_host),
        add("%/routes/0", json!({"match": {"path": "/health"}, "direct_response": {"status": 200}})),
        add("%/routes/0", json!({"match": {"prefix": "/", "headers": [{"name": "a"}]}, "route": {"cluster": "web"}})),
        add(&format!("{OVERRIDE}/override_host_sources/0"), json!({"metadata": {"key": "a"}})),
        moved("@/access_log", &format!("{listener}/access_log")),
        replace("/static_resources/listeners/0/filter_chains/0/filters/0/name", "any"),
    ] {
        let text = edited(envoy.clone(), edits.clone()).to_string();
        assert_eq!(said(Some(&config), &[&text]).unwrap(), [""; 0], "{edits}");
        assert_eq!(said(None, &[&text]).unwrap(), [""; 0], "{edits}");
    }
}

#[test]
fn no_listener_with_the_filter_is_an_error_that_names_those_without() {
    let config = config(&json!([]));
    let without = edited(rendered(&config), remove("@/http_filters/3")).to_string();
    let sentence = "error: no HTTP connection manager runs the filter (listener routebalance): write the Wasm filter `routebalance` \
                    before `envoy.filters.http.router` into its `http_filters`";
    assert_eq!(said(Some(&config), &[&without]).unwrap(), [sentence]);
    assert_eq!(said(None, &[&without]).unwrap(), [sentence]);
}

#[test]
fn places_are_named_by_listener_and_filter_chain() {
    let config = config(&json!([]));
    let listener = "/static_resources/listeners/0";
    let edits = json!([
        {"op": "add", "path": format!("{listener}/default_filter_chain"), "value": {"name": "tls", "filters": []}},
        {"op": "copy", "from": format!("{listener}/filter_chains/0/filters/0"), "path": format!("{listener}/default_filter_chain/filters/0")},
        {"op": "remove", "path": FLAG},
        {"op": "remove", "path": format!("{listener}/default_filter_chain/filters/0/typed_config/access_log")},
        {"op": "remove", "path": format!("{listener}/name")},
    ]);
    let all = said(None, &[&edited(rendered(&config), edits).to_string()]).unwrap();
    assert_eq!(all.len(), 2, "{all:#?}");
    assert!(all[0].starts_with("error: listener at port 10000, filter chain 1: the plugin lacks"), "{all:#?}");
    assert!(all[1].starts_with("warning: listener at port 10000, filter chain tls: no access log"), "{all:#?}");
}
