//! The configurations. Each boots an Envoy, so they are few.

use std::time::Duration;

use routebalance_cli::envoy_binary::OLDER_VERSIONS;
use serde_json::{Value, json};

use crate::harness::Setup;
use crate::packages;

/// The reference configuration, with addresses shown and the predictor open to questions.
pub(crate) static REFERENCE: Setup = Setup {
    name: "reference",
    change: |config| {
        config["response"]["expose_endpoint"] = json!(true);
        config["debug"] = json!({"predict": true});
    },
    edit: None,
    ..Setup::PLAIN
};

/// Little is left: bodies of 64 KiB, no predictor, routes without metadata, no judgement on unknown models.
pub(crate) static LEAN: Setup = Setup { name: "lean", change: lean, edit: Some(without_metadata), ..Setup::PLAIN };

fn lean(config: &mut Value) {
    config["request"]["max_buffered_bytes"] = json!(65_536);
    config["unknown_model"] = json!("pass_through");
    config["drill"] = json!(["predictor"]);
}

/// Models answer at twice the length that the predictor knows, feedback is taken, and one policy explores.
pub(crate) static LEARNING: Setup =
    Setup { name: "learning", change: learning, edit: None, reports: true, length: 2.0, ..Setup::PLAIN };

/// What senders of feedback know.
pub(crate) const SECRET: &str = "the-secret-of-these-tests";

/// How often the policy of the route `/cost` explores.
pub(crate) const EXPLORATION: f64 = 0.3;

fn learning(config: &mut Value) {
    config["learning"] = json!({"feedback": {"secret": SECRET}});
    let policies = config["policies"].as_array_mut().expect("policies");
    let cost = policies.iter_mut().find(|policy| policy["name"] == "cost").expect("a policy for the route /cost");
    cost["exploration"] = json!(EXPLORATION);
}

/// Requests wait for each other: on the route `/` for a moment, on `/latency` until there are eight, on `/quality` until the cap,
/// on `/cost` as published; `/round-robin` insists on what no model has.
pub(crate) static BATCHING: Setup = Setup { name: "batching", change: batching, edit: None, ..Setup::PLAIN };

/// The longest that a request waits on the route `/quality`.
pub(crate) const MAX_WAIT_MS: u64 = 1_000;

fn batching(config: &mut Value) {
    config["request"]["max_buffered_bytes"] = json!(65_536);
    for policy in config["policies"].as_array_mut().expect("policies") {
        policy["batching"] = match policy["name"].as_str() {
            Some("balanced") => json!({"mode": "fixed", "size": 64, "window_ms": 40}),
            Some("latency") => json!({"mode": "fixed", "size": 8, "window_ms": 2_000, "max_wait_ms": 5_000}),
            Some("quality") => {
                json!({"mode": "fixed", "size": 1_024, "window_ms": 10_000, "max_wait_ms": MAX_WAIT_MS})
            }
            Some("cost") => json!({"mode": "adaptive"}),
            _ => json!({"mode": "fixed", "size": 64, "window_ms": 40}),
        };
        if policy["name"] == "round-robin" {
            policy["quality_min"] = json!(0.999);
            policy["relaxation"] = json!({"mode": "strict"});
        }
    }
}

/// The route /quality trusts headers, /cost insists on what no model has, and /latency sheds where there is a queue.
pub(crate) static ADMISSION: Setup = Setup { name: "admission", change: admission, edit: None, ..Setup::PLAIN };

/// The pool whose instances are easily saturated, and its model.
pub(crate) const SHEDDING_MODEL: (&str, &str) = ("qwen2.5-72b", "Qwen2.5-72B-Instruct");

fn admission(config: &mut Value) {
    for policy in config["policies"].as_array_mut().expect("policies") {
        match policy["name"].as_str() {
            Some("quality") => policy["trust_request_headers"] = json!(true),
            Some("cost") => {
                policy["quality_min"] = json!(0.999);
                policy["relaxation"] = json!({"mode": "strict"});
            }
            Some("latency") => policy["overload"] = json!({"action": "shed", "waiting_per_instance": 1}),
            _ => {}
        }
    }
    let pools = config["pools"].as_array_mut().expect("pools");
    let pool = pools.iter_mut().find(|pool| pool["name"] == SHEDDING_MODEL.0).expect("the pool");
    pool["limits"]["max_running"] = json!(2);
}

/// The route /quality has prices that follow demand, and the largest model is scarce: the plan wants 80 % of 5 requests per second
/// there.
pub(crate) static PRICES: Setup = Setup { name: "prices", change: priced, edit: None, ..Setup::PLAIN };

/// The model that is scarce.
pub(crate) const SCARCE: &str = "Qwen2.5-72B-Instruct";

/// Its price by the plan.
pub(crate) const PLANNED: f64 = 0.05;

/// The mean time to the first token that is to be kept.
pub(crate) const PRICED_TTFT_MS: f64 = 500.0;

fn priced(config: &mut Value) {
    let policies = config["policies"].as_array_mut().expect("policies");
    let quality = policies.iter_mut().find(|policy| policy["name"] == "quality").expect("a policy for /quality");
    quality["objective"] = json!("prices");
    // Nothing else than the smallest model and the scarce one.
    quality["demand_levels"] = json!([{
        "requests_per_second": 5,
        "prices": {SCARCE: PLANNED, "Qwen2.5-7B-Instruct": 1, "Qwen2.5-32B-Instruct": 1},
        "fractions": {SCARCE: 0.8, "Qwen2.5-3B-Instruct": 0.2},
    }]);
    quality["online_prices"] = json!({"ttft_ms": PRICED_TTFT_MS, "max_correction": 0.8, "seconds": 1});
    let pools = config["pools"].as_array_mut().expect("pools");
    let pool = pools.iter_mut().find(|pool| pool["model"] == SCARCE).expect("the pool");
    pool["limits"]["max_running"] = json!(2);
}

/// A model has an adapter.
pub(crate) static AFFINITY: Setup = Setup { name: "affinity", change: affinity, edit: None, ..Setup::PLAIN };

fn affinity(config: &mut Value) {
    config["models"][1]["adapters"] = json!(["sql-adapter"]);
}

/// No load can be read: the first instance of a pool is always the first choice.
pub(crate) static STATIC: Setup = Setup {
    name: "static",
    change: |config| config["drill"] = json!(["shared_data"]),
    edit: None,
    reports: false,
    ..Setup::PLAIN
};

/// No decision comes back.
pub(crate) static UNTOUCHED: Setup = Setup {
    name: "untouched",
    change: |config| config["drill"] = json!(["router"]),
    edit: None,
    reports: false,
    ..Setup::PLAIN
};

/// The filter is not there.
pub(crate) static BYPASSED: Setup =
    Setup { name: "bypassed", edit: Some(without_filter), reports: false, ..Setup::PLAIN };

/// Two pools are discovered, by four workers.
pub(crate) static DISCOVERED: Setup = Setup {
    name: "discovered",
    change: discovered_soon,
    edit: None,
    workers: 4,
    discovered: &["qwen2.5-3b", "qwen2.5-72b"],
    ..Setup::PLAIN
};

fn discovered_soon(config: &mut Value) {
    config["response"]["expose_endpoint"] = json!(true);
    config["discovery"] = json!({"period_ms": 100});
}

/// Nobody is scraped: response headers alone say what instances do.
pub(crate) static HEADERS: Setup = Setup {
    name: "headers",
    change: |config| config["telemetry"]["enabled"] = json!(false),
    edit: None,
    reports: false,
    ..Setup::PLAIN
};

/// A pool is discovered, and Envoy cannot be asked.
pub(crate) static BLIND: Setup = Setup {
    name: "blind",
    change: |config| config["discovery"] = json!({"period_ms": 100, "path": "/ready"}),
    edit: None,
    reports: false,
    discovered: &["qwen2.5-72b"],
    ..Setup::PLAIN
};
/// Faults are found and forgiven within a test's patience.
pub(crate) static HEALTH: Setup = Setup { name: "health", change: health, edit: None, ..Setup::PLAIN };

/// The same with four workers.
pub(crate) static HEALTH_OF_FOUR: Setup =
    Setup { name: "health, four workers", change: health, edit: None, workers: 4, ..Setup::PLAIN };

/// How long an instance may be silent.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(3);

/// Instances are servers of others: doubts about them take their time, and silence is given up soon.
pub(crate) static STRANGERS: Setup = Setup { name: "strangers", change: strangers, edit: None, ..Setup::PLAIN };

/// How long a whole answer may take at least where no report says whether its instance works.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(2);

fn strangers(config: &mut Value) {
    config["health"] = json!({
        "base_ejection_ms": 1_000,
        "max_ejection_ms": 10_000,
        "answer_limit_ms": ANSWER_LIMIT.as_millis() as u64,
    });
    config["envoy"]["per_try_idle_timeout_ms"] = json!(IDLE_TIMEOUT.as_millis() as u64);
    config["response"]["expose_endpoint"] = json!(true);
}

/// A fleet of somebody else: one model has a name that the predictor does not know, and its cluster balances by itself.
pub(crate) static OWN: Setup = Setup { name: "own", change: own, edit: Some(by_itself), ..Setup::PLAIN };

/// The name, and the pool, of that model.
pub(crate) const OWN_MODEL: (&str, &str) = ("our-own-model", "qwen2.5-32b");

/// The pool whose cluster does not honour the chosen endpoint.
pub(crate) const BALANCED_BY_ITSELF: &str = "qwen2.5-72b";

fn own(config: &mut Value) {
    let pools = config["pools"].as_array_mut().expect("pools");
    let pool = pools.iter_mut().find(|pool| pool["name"] == OWN_MODEL.1).expect("the pool");
    let model = std::mem::replace(&mut pool["model"], json!(OWN_MODEL.0));
    let models = config["models"].as_array_mut().expect("models");
    models.iter_mut().find(|other| other["name"] == model).expect("its model")["name"] = json!(OWN_MODEL.0);
}

/// Takes the policy that honours the chosen endpoint out of one cluster.
fn by_itself(yaml: &str) -> String {
    let (before, cluster) = yaml.split_once("  - name: \"pool-qwen2.5-72b\"\n").expect("the cluster");
    let (start, rest) = cluster.split_once("    load_balancing_policy:\n").expect("its policy");
    let (_, end) = rest.split_once("    load_assignment:\n").expect("its endpoints");
    format!("{before}  - name: \"pool-qwen2.5-72b\"\n{start}    lb_policy: ROUND_ROBIN\n    load_assignment:\n{end}")
}

/// Limits of all kinds: the route /cost has a budget, /quality trusts headers, bodies are small, and requests must hurry.
pub(crate) static MANNERS: Setup = Setup { name: "manners", change: manners, edit: None, ..Setup::PLAIN };

/// How long a request may take to arrive.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Largest body that is read whole, bytes.
pub(crate) const BODY_LIMIT: usize = 1 << 20;

fn manners(config: &mut Value) {
    config["request"] = json!({"max_buffered_bytes": BODY_LIMIT});
    config["envoy"]["request_timeout_ms"] = json!(REQUEST_TIMEOUT.as_millis() as u64);
    for policy in config["policies"].as_array_mut().expect("policies") {
        match policy["name"].as_str() {
            Some("cost") => policy["budget"] = json!({"tokens": 500}),
            Some("quality") => policy["trust_request_headers"] = json!(true),
            _ => {}
        }
    }
}

/// Two models are recordings of a real vLLM, each at one address, with its context.
pub(crate) static CLIENTS: Setup = Setup { name: "clients", change: clients, edit: None, ..Setup::PLAIN };

fn clients(config: &mut Value) {
    config["request"]["max_buffered_bytes"] = json!(4 << 20);
    for pool in config["pools"].as_array_mut().expect("pools") {
        if pool["name"] == "qwen2.5-7b" || pool["name"] == "bge-small" {
            let instances = pool["instances"].as_array_mut().expect("instances");
            instances.truncate(1);
            pool["limits"]["max_model_len"] = json!(2_048);
        }
    }
}

/// A worker's VM may be made to trap.
pub(crate) static VM: Setup = Setup {
    name: "drill",
    change: |config| {
        health(config);
        config["drill"] = json!(["vm"]);
    },
    edit: None,
    ..Setup::PLAIN
};

fn health(config: &mut Value) {
    config["health"]["stall_ms"] = json!(1_000);
    config["envoy"]["per_try_idle_timeout_ms"] = json!(IDLE_TIMEOUT.as_millis() as u64);
}

/// A gateway says to its endpoint picker which endpoints may serve, in metadata: as the clients' header `test-epp-endpoint-selection` has it.
pub(crate) static PICKER: Setup = Setup {
    name: "picker",
    change: |config| config["response"]["expose_endpoint"] = json!(true),
    edit: Some(with_hints),
    ..Setup::PLAIN
};

fn with_hints(yaml: &str) -> String {
    let filter = r#"          - name: hints
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
              default_source_code:
                inline_string: |
                  function envoy_on_request(handle)
                    local selection = handle:headers():get("test-epp-endpoint-selection")
                    if selection == nil then return end
                    local list = {}
                    for endpoint in string.gmatch(selection, "[^,]+") do table.insert(list, endpoint) end
                    local key = "x-gateway-destination-endpoint-subset"
                    handle:streamInfo():dynamicMetadata():set("envoy.lb.subset_hint", key, list)
                  end
"#;
    let start = "          - name: routebalance\n            typed_config:\n";
    replaced(yaml, start, &format!("{filter}{start}"))
}

/// The plugin has no flag, and its configuration does not say so.
pub(crate) static FOUND_OUT: Setup =
    Setup { name: "found out", change: without_flag, edit: Some(unsaid), ..Setup::PLAIN };

/// The plugin has no flag, which its configuration says, and nothing stands behind it.
pub(crate) static WITHOUT_WRITER: Setup =
    Setup { name: "without a writer", change: without_flag, edit: Some(without_writer), ..Setup::PLAIN };

/// The same where only the buffer is missing.
pub(crate) static WITHOUT_BUFFER: Setup =
    Setup { name: "without a buffer", change: without_flag, edit: Some(without_buffer), ..Setup::PLAIN };

/// What the buffer holds at least.
pub(crate) const BUFFERED_BYTES_MAX: usize = 16 << 20;

fn without_flag(config: &mut Value) {
    config["envoy"]["allow_on_headers_stop_iteration"] = json!(false);
    config["request"]["max_buffered_bytes"] = json!(1 << 20);
    let policies = config["policies"].as_array_mut().expect("policies");
    let cost = policies.iter_mut().find(|policy| policy["name"] == "cost").expect("a policy for the route /cost");
    cost["budget"] = json!({"tokens": 500});
}

fn unsaid(yaml: &str) -> String {
    replaced(yaml, "\"allow_on_headers_stop_iteration\": false,", "")
}

fn without_writer(yaml: &str) -> String {
    let yaml = without_buffer(yaml);
    let (before, rest) = yaml.split_once("          - name: routebalance-headers\n").expect("the second instance");
    let (_, after) = rest.split_once("          - name: envoy.filters.http.router\n").expect("the router");
    format!("{before}          - name: envoy.filters.http.router\n{after}")
}

fn without_buffer(yaml: &str) -> String {
    let (before, rest) = yaml.split_once("          - name: routebalance-buffer\n").expect("the buffer");
    let (_, after) = rest.split_once("          - name: routebalance-headers\n").expect("the second instance");
    format!("{before}          - name: routebalance-headers\n{after}")
}

/// Older Envoys, with all that the scenarios of one row of each kind need.
pub(crate) static OLDER: [&Setup; 4] = [&ENVOY_1_36, &ENVOY_1_37, &ENVOY_1_38, &ENVOY_1_39];
static ENVOY_1_36: Setup = older("Envoy 1.36", 0);
static ENVOY_1_37: Setup = older("Envoy 1.37", 1);
static ENVOY_1_38: Setup = older("Envoy 1.38", 2);
static ENVOY_1_39: Setup = older("Envoy 1.39", 3);

const fn older(name: &'static str, version: usize) -> Setup {
    let change = |config: &mut Value| {
        health(config);
        config["response"]["expose_endpoint"] = json!(true);
        // On 1.36 it is the largest body that the filter can hold.
        config["envoy"]["connection_buffer_bytes"] = json!(4 << 20);
    };
    Setup { name, change, version: Some(OLDER_VERSIONS[version].0), ..Setup::PLAIN }
}

/// The example as each platform runs it.
pub(crate) static PACKAGES: [&Setup; 6] =
    [&ISTIO_GATEWAY, &ISTIO_SIDECAR, &ISTIO_TRAFFIC_EXTENSION, &ENVOY_GATEWAY, &ENVOY_GATEWAY_OF_TWO, &KUBERNETES];
static ISTIO_GATEWAY: Setup = packaged("Istio, gateway", packages::istio_gateway);
static ISTIO_SIDECAR: Setup = packaged("Istio, sidecar", packages::istio_sidecar);
static ISTIO_TRAFFIC_EXTENSION: Setup =
    packaged("Istio, gateway with TrafficExtension", packages::istio_gateway_by_traffic_extension);
static ENVOY_GATEWAY: Setup = packaged("Envoy Gateway", packages::envoy_gateway);
static ENVOY_GATEWAY_OF_TWO: Setup = packaged("Envoy Gateway, names of version 2", packages::envoy_gateway_of_two);
pub(crate) static KUBERNETES: Setup = packaged("Kubernetes", packages::kubernetes);

/// Pools whose hosts the platform knows, in clusters that it has made.
pub(crate) static PACKAGES_DISCOVERED: [&Setup; 2] = [&ISTIO_DISCOVERED, &ENVOY_GATEWAY_DISCOVERED];
static ISTIO_DISCOVERED: Setup = joined("Istio, gateway, discovered", packages::istio_gateway);
static ENVOY_GATEWAY_DISCOVERED: Setup = joined("Envoy Gateway, discovered", packages::envoy_gateway);

const fn joined(name: &'static str, edit: fn(&str) -> String) -> Setup {
    let discovered = &["qwen2.5-3b", "qwen2.5-72b"];
    Setup { name, change: discovered_soon, edit: Some(edit), discovered, ..Setup::PLAIN }
}

const fn packaged(name: &'static str, edit: fn(&str) -> String) -> Setup {
    Setup {
        name,
        change: |config| config["response"]["expose_endpoint"] = json!(true),
        edit: Some(edit),
        ..Setup::PLAIN
    }
}

fn without_metadata(yaml: &str) -> String {
    let is_metadata =
        |line: &&str| ["metadata:", "filter_metadata:", "routebalance: {"].iter().any(|m| line.trim().starts_with(m));
    let lines: Vec<&str> = yaml.lines().filter(|l| !is_metadata(l)).collect();
    assert!(lines.len() < yaml.lines().count(), "metadata in {yaml}");
    lines.join("\n") + "\n"
}

/// Two listeners with two configurations of the same fleet: the second has a name and another default policy. It is the newer one, and so
/// asks the instances.
pub(crate) static TENANTS: Setup =
    Setup { name: "tenants", change: |_| {}, edit: Some(second_listener), reports: false, ..Setup::PLAIN };

/// The name of the second configuration, and of its listener.
pub(crate) const SECOND: &str = "second";

fn second_listener(yaml: &str) -> String {
    let (head, rest) = yaml.split_once("  listeners:\n").expect("listeners");
    let (listener, clusters) = rest.split_once("  clusters:\n").expect("clusters");
    let port = listener.split_once("port_value: ").and_then(|(_, rest)| rest.split_once(' ')).expect("a port").0;
    let second = listener
        .replacen("- name: routebalance\n", &format!("- name: {SECOND}\n"), 1)
        .replacen(&format!("port_value: {port}"), "port_value: 0", 1)
        .replacen(
            "\"default_policy\": \"balanced\"",
            &format!("\"name\": \"{SECOND}\", \"default_policy\": \"cost\""),
            1,
        );
    assert!(second.contains("\"cost\", ") || second.contains("\"default_policy\": \"cost\""), "{second}");
    format!("{head}  listeners:\n{listener}{second}  clusters:\n{clusters}")
}

fn without_filter(yaml: &str) -> String {
    let (start, end) = (
        "          - name: routebalance\n            typed_config:\n",
        "          - name: envoy.filters.http.router\n",
    );
    let (before, rest) = yaml.split_once(start).expect("the filter");
    let (_, after) = rest.split_once(end).expect("the router");
    format!("{before}{end}{after}")
}

/// The text with every `from` replaced; there must be one.
pub(crate) fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} in {text}");
    text.replace(from, to)
}
