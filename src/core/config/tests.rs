mod fleets;

use super::*;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const REFERENCE: &str = include_str!("../../../envoy/routebalance.json");

fn reference() -> serde_json::Value {
    serde_json::from_str(REFERENCE).unwrap()
}

#[test]
fn the_reference_fleet_has_the_papers_shape() {
    let config = Config::parse(REFERENCE.as_bytes()).unwrap();
    let generate: Vec<(usize, f64)> = config
        .fleet
        .pools
        .iter()
        .filter(|p| config.fleet.model_of(p).unwrap().kind == ModelKind::Generate)
        .map(|p| (p.instances.len(), p.profile.tpot_ms))
        .collect();
    assert_eq!(generate, [(3, 10.2), (5, 19.6), (3, 28.0), (2, 41.6)]);
    assert_eq!(config.policy_of_route("quality"), config.policy_named("quality"));
    let weights = config.policies[config.default_policy.index()].weights;
    assert!((weights.quality + weights.latency + weights.cost - 1.0).abs() < 1e-12);
}

/// Replaces the value at `pointer` of the reference file (JSON pointer; a missing last key is added) and returns the error.
fn refusal(pointer: &str, value: serde_json::Value) -> String {
    let mut json = reference();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match json.pointer_mut(parent).unwrap() {
        serde_json::Value::Object(map) => {
            map.insert(key.to_owned(), value);
        }
        serde_json::Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
        other => panic!("{other} has no members"),
    }
    Config::parse(json.to_string().as_bytes()).unwrap_err().to_string()
}

#[test]
fn every_wrong_value_is_refused_with_its_field() {
    use serde_json::json;
    let rows: &[(&str, serde_json::Value, &str)] = &[
        ("/surprise", json!(1), "unknown field `surprise`"),
        ("/$schema", json!({"$ref": "a"}), "$schema: invalid type"),
        ("/debug", json!({"$schema": "a"}), "debug.$schema: unknown field"),
        ("/debug", json!({"predictor": true}), "debug.predictor: unknown field"),
        ("/debug", json!({"predict": 1}), "debug.predict: invalid type"),
        ("/pools/1/profile/tpot", json!(1), "pools[1].profile.tpot: unknown field"),
        ("/models", json!([]), "models: at least one model"),
        ("/models/0/name", json!("Qwen2.5-7B-Instruct"), "models[].name: \"Qwen2.5-7B-Instruct\" appears twice"),
        ("/models/0/name", json!("auto"), "pools[0].model: no model is named"),
        ("/models/0/name", json!("a\"b"), "without quotes"),
        (
            "/models/0/usd_per_million_output_tokens",
            json!(null),
            "models[0].usd_per_million_output_tokens: a model of kind generate needs it",
        ),
        (
            "/models/0/usd_per_million_input_tokens",
            json!(-1),
            "models[0].usd_per_million_input_tokens: -1 is not between",
        ),
        (
            "/models/0/usd_per_million_input_tokens",
            json!("free"),
            "models[0].usd_per_million_input_tokens: invalid value: string \"free\"",
        ),
        ("/models/1/quality_prior", json!(1.5), "models[1].quality_prior: 1.5 is not between 0 and 1"),
        ("/models/1/output_tokens_prior", json!(0), "models[1].output_tokens_prior: 0 is not"),
        ("/models/4/kind", json!("chat"), "models[4].kind: unknown variant `chat`"),
        ("/pools/0/model", json!("gpt-2"), "pools[0].model: no model is named \"gpt-2\""),
        ("/pools/0/cluster", json!("pool-qwen2.5-7b"), "pools[].cluster: \"pool-qwen2.5-7b\" appears twice"),
        ("/pools/0/instances", json!([]), "pools[0].instances: at least one"),
        ("/pools/0/instances/1", json!("localhost"), "pools[0].instances[1]: \"localhost\" has no port"),
        ("/pools/0/instances/1", json!("127.0.0.1:0"), "pools[0].instances[1]: the port must not be 0"),
        ("/pools/0/instances/1", json!("127.0.0.1:18001"), "pools[0].instances[1]: 127.0.0.1:18001 appears twice"),
        ("/response", json!({"liveness_path": "health"}), "response.liveness_path: \"health\" must be a path"),
        ("/pools/2/profile/tpot_ms", json!(0), "pools[2].profile.tpot_ms: 0 is not between"),
        ("/pools/2/limits/max_running", json!(0), "pools[2].limits.max_running: must be at least 1"),
        ("/policies/0/weights/quality", json!(-0.1), "policies[0].weights.quality: -0.1 is not between"),
        (
            "/policies/0/weights",
            json!({"quality": 0, "latency": 0, "cost": 0}),
            "policies[0].weights: at least one weight",
        ),
        ("/policies/0/weights", json!({"quality": 1, "latency": 0}), "policies[0].weights: missing field `cost`"),
        ("/policies/1/name", json!("balanced"), "policies[].name: \"balanced\" appears twice"),
        ("/policies/1/slo", json!({"ttft_ms": 0}), "policies[1].slo.ttft_ms: 0 is not between"),
        ("/policies/1/slo", json!({"confidence": 1}), "policies[1].slo.confidence: 1 is not between 0.01 and 0.99"),
        ("/policies/1/quality_min", json!(1.5), "policies[1].quality_min: 1.5 is not between 0 and 1"),
        ("/policies/1/relaxation", json!({"mode": "kind"}), "policies[1].relaxation.mode: unknown variant"),
        ("/policies/1/relaxation", json!({"order": ["speed"]}), "policies[1].relaxation.order[0]: unknown variant"),
        (
            "/policies/1/relaxation",
            json!({"order": ["budget", "budget"]}),
            "policies[1].relaxation.order: must not name a constraint twice",
        ),
        ("/policies/1/trust_request_headers", json!("yes"), "policies[1].trust_request_headers: invalid type"),
        ("/policies/1/overload", json!({"action": "shed"}), "policies[1].overload: shedding needs"),
        ("/policies/1/overload", json!({"action": "drop"}), "policies[1].overload.action: unknown variant"),
        (
            "/policies/1/overload",
            json!({"waiting_per_instance": 0}),
            "policies[1].overload.waiting_per_instance: 0 is not between 1",
        ),
        ("/policies/1/overload", json!({"ttft_ms": -1}), "policies[1].overload.ttft_ms: -1 is not between"),
        ("/policies/1/budget", json!({"tokens": 0}), "policies[1].budget.tokens: must be at least 1"),
        ("/policies/1/budget", json!({"usd": -1}), "policies[1].budget.usd: -1 is not"),
        ("/policies/0/objective", json!("best"), "policies[0].objective: unknown variant"),
        ("/policies/1/exploration", json!(0.6), "policies[1].exploration: 0.6 is not between 0 and 0.5"),
        ("/policies/1/exploration", json!(-0.1), "policies[1].exploration: -0.1 is not between"),
        ("/policies/1/batching", json!({"mode": "clever"}), "policies[1].batching.mode: unknown variant"),
        ("/policies/1/batching", json!({"mode": "adaptive", "size": 4}), "policies[1].batching.size: belongs to"),
        (
            "/policies/1/batching",
            json!({"mode": "adaptive", "window_ms": 4}),
            "policies[1].batching.window_ms: belongs",
        ),
        (
            "/policies/1/batching",
            json!({"mode": "adaptive", "max_wait_ms": 0}),
            "policies[1].batching.max_wait_ms: 0 is",
        ),
        ("/policies/1/batching", json!({"mode": "fixed", "window_ms": 9}), "policies[1].batching.size: is needed"),
        ("/policies/1/batching", json!({"mode": "fixed", "size": 9}), "policies[1].batching.window_ms: is needed"),
        (
            "/policies/1/batching",
            json!({"mode": "fixed", "size": 0, "window_ms": 9}),
            "policies[1].batching.size: must be between 1 and 1024",
        ),
        ("/latency", json!({"estimate": "guess"}), "latency.estimate: unknown variant"),
        ("/latency", json!({"estimates": "prior"}), "latency.estimates: unknown field"),
        ("/affinity", json!({"prefix": 1}), "affinity.prefix: invalid type"),
        ("/affinity", json!({"sessions": true}), "affinity.sessions: unknown field"),
        ("/affinity", json!({"session_header": "X-Session"}), "affinity.session_header: must be a header's name"),
        ("/affinity", json!({"session_header": ""}), "affinity.session_header: must be a header's name"),
        ("/affinity", json!({"adapter_load_ms": -1}), "affinity.adapter_load_ms: -1 is not between"),
        ("/models/0/adapters", json!("a"), "models[0].adapters: invalid type"),
        ("/models/0/adapters", json!(["a", "a"]), "models[].adapters: \"a\" appears twice"),
        (
            "/models/0/adapters",
            json!(["Qwen2.5-7B-Instruct"]),
            "models[].adapters: \"Qwen2.5-7B-Instruct\" appears twice",
        ),
        ("/name", json!("tenant a"), "name: \"tenant a\" must have 1 to 64"),
        ("/name", json!(""), "name: \"\" must have 1 to 64"),
        ("/models/0/adapters", json!(["auto"]), "virtual_models[0]: \"auto\" is also the name of an adapter"),
        ("/models/0/adapters", json!(["Qwen/Qwen2.5-7B-Instruct"]), "is also the name of an adapter"),
        ("/learning", json!({"output_tokens": 1}), "learning.output_tokens: invalid type"),
        ("/learning", json!({"quality": true}), "learning.quality: unknown field"),
        ("/learning", json!({"feedback": {}}), "learning.feedback: missing field `secret`"),
        (
            "/learning",
            json!({"feedback": {"secret": "too short"}}),
            "learning.feedback.secret: must have at least 16 characters",
        ),
        ("/default_policy", json!("nope"), "default_policy: no policy is named \"nope\""),
        ("/routes/0/policy", json!("nope"), "routes[0].policy: no policy is named"),
        ("/routes/0/prefix", json!("quality"), "routes[0].prefix: must be a path"),
        (
            "/virtual_models/0",
            json!("Qwen2.5-7B-Instruct"),
            "virtual_models[0]: \"Qwen2.5-7B-Instruct\" is also the name",
        ),
        ("/telemetry/scrape_period_ms", json!(1), "telemetry.scrape_period_ms: 1 is not between"),
        ("/telemetry/max_age_ms", json!(1000), "telemetry.max_age_ms: must be above"),
        ("/telemetry/lease_ms", json!(50), "telemetry.lease_ms: 50 is not between 100 and 60000"),
        ("/telemetry/orca", json!("yes"), "telemetry.orca: invalid type"),
        ("/pools/0/instances", json!("discovered"), "expected a list of ip:port or name:port, or \"discover\""),
        ("/pools/0/instances", json!(3), "pools[0].instances: invalid type: integer `3`, expected a list of ip:port"),
        ("/discovery", json!({"cluster": ""}), "discovery.cluster: a name must have"),
        ("/discovery", json!({"path": "clusters"}), "discovery.path: must be a path"),
        ("/discovery", json!({"period_ms": 1}), "discovery.period_ms: 1 is not between 50 and"),
        ("/discovery", json!({"timeout_ms": 0}), "discovery.timeout_ms: 0 is not between"),
        ("/discovery", json!({"pool": "x"}), "discovery.pool: unknown field"),
        ("/envoy/endpoints_dir", json!(""), "envoy.endpoints_dir: must be a path"),
        ("/telemetry/metrics_path", json!("metrics"), "telemetry.metrics_path: must be a path"),
        ("/health", json!({"failures_to_eject": 0}), "health.failures_to_eject: 0 is not between 1 and 1000"),
        ("/health", json!({"stall_ms": 1}), "health.stall_ms: 1 is not between 100"),
        (
            "/health",
            json!({"base_ejection_ms": 2000, "max_ejection_ms": 1000}),
            "health.max_ejection_ms: must not be below health.base_ejection_ms",
        ),
        ("/health", json!({"ejection_ms": 1}), "health.ejection_ms: unknown field"),
        ("/envoy/request_timeout_ms", json!(1), "envoy.request_timeout_ms: 1 is not between"),
        ("/envoy/connection_buffer_bytes", json!(1), "envoy.connection_buffer_bytes: 1 is not between"),
        ("/envoy/max_heap_bytes", json!(1), "envoy.max_heap_bytes: 1 is not between"),
        ("/envoy/max_connections", json!(0), "envoy.max_connections: 0 is not between"),
        ("/request", json!({"encodings": ["gzip", "gzip"]}), "request.encodings: an encoding appears twice"),
        ("/request", json!({"encodings": ["deflate"]}), "request.encodings"),
        ("/models/0/tokens_per_media_part", json!(-1), "models[0].tokens_per_media_part: -1 is not between"),
        ("/envoy/per_try_idle_timeout_ms", json!(1), "envoy.per_try_idle_timeout_ms: 1 is not between"),
        ("/request/max_buffered_bytes", json!(10), "request.max_buffered_bytes: must be between"),
        ("/envoy/listen", json!("10000"), "envoy.listen: \"10000\" is not an ip:port"),
        ("/envoy/default_pool", json!("nope"), "envoy.default_pool: no pool is named"),
        ("/response/allow_origin", json!("a b"), "response.allow_origin: \"a b\" is neither"),
        ("/envoy/module", json!(""), "envoy.module: must be a path"),
        ("/drill", json!(["cpu"]), "drill[0]: unknown variant `cpu`"),
    ];
    for (pointer, value, expected) in rows {
        let refusal = refusal(pointer, value.clone());
        assert!(refusal.contains(expected), "{pointer} = {value}: {refusal}");
        assert!(!refusal.contains('\n'), "more than one sentence: {refusal}");
    }
}

#[test]
fn a_discovered_pool_is_empty_at_first_and_needs_no_other_field() {
    let config = |json: &serde_json::Value| Config::parse(json.to_string().as_bytes()).unwrap();
    let mut json = reference();
    assert_eq!(config(&json).discovery, None);
    json["pools"][2]["instances"] = "discover".into();
    let discovered = config(&json);
    let sizes: Vec<usize> = discovered.fleet.pools.iter().map(|p| p.instances.len()).collect();
    assert_eq!((sizes, discovered.fleet.pools[2].discovered), (vec![3, 5, 0, 2, 1], true));
    assert_eq!(discovered.discovery.unwrap().cluster, "routebalance-admin");
    json["discovery"] = serde_json::json!({"cluster": "prometheus_stats", "period_ms": 2_000});
    let discovery = config(&json).discovery.unwrap();
    assert_eq!((discovery.cluster.as_str(), discovery.period.as_secs()), ("prometheus_stats", 2));
}

#[test]
fn a_file_may_name_its_schema_and_means_the_same() {
    let config =
        |json: &serde_json::Value| Config { identity: 0, ..Config::parse(json.to_string().as_bytes()).unwrap() };
    let mut json = reference();
    let without = config(&json);
    json["$schema"] = "./routebalance.schema.json".into();
    assert_eq!(config(&json), without);
}

#[test]
fn a_broken_file_is_refused_with_its_place() {
    for (text, expected) in [
        ("", "(whole file): it is empty"),
        ("{} x", "(whole file): trailing characters"),
        ("[]", "(whole file): it is a list"),
    ] {
        let refusal = Config::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(refusal.contains(expected), "{text:?}: {refusal}");
    }
    let mut json = reference();
    json["unknown_model"] = "two\nlines".into();
    let refusal = Config::parse(json.to_string().as_bytes()).unwrap_err().to_string();
    assert!(refusal.contains(r"two\nlines") && !refusal.contains('\n'), "{refusal}");
}

#[test]
fn a_policy_that_limits_refuses_what_passes_by() {
    let policy = |fields: serde_json::Value| {
        let mut json = reference();
        for (name, value) in fields.as_object().unwrap() {
            json["policies"][0][name] = value.clone();
        }
        let config = Config::parse(json.to_string().as_bytes()).unwrap();
        config.policies[0].refuses_unread(&config.policies[0].constraints)
    };
    const PASS: bool = false;
    const REFUSE: bool = true;
    let rows = [
        (serde_json::json!({}), PASS),
        (serde_json::json!({"slo": {"ttft_ms": 100}}), PASS),
        (serde_json::json!({"budget": {"usd": 0.1}}), REFUSE),
        (serde_json::json!({"budget": {"tokens": 100}}), REFUSE),
        (serde_json::json!({"quality_min": 0.1}), REFUSE),
        (serde_json::json!({"relaxation": {"mode": "strict"}}), REFUSE),
        (serde_json::json!({"overload": {"action": "shed", "ttft_ms": 100}}), REFUSE),
        (serde_json::json!({"budget": {"usd": 0.1}, "other_paths": "pass"}), PASS),
        (serde_json::json!({"other_paths": "refuse"}), REFUSE),
    ];
    for (fields, expected) in rows {
        assert_eq!(policy(fields.clone()), expected, "{fields}");
    }
}

#[test]
fn every_name_that_requests_may_use_is_listed() {
    let mut json = reference();
    json["models"][1]["adapters"] = serde_json::json!(["sql"]);
    let config = Config::parse(json.to_string().as_bytes()).unwrap();
    let listed = config.models();
    let names: Vec<&str> = listed.iter().map(|listed| listed.name).collect();
    let expected = [
        "auto",
        "Qwen2.5-3B-Instruct",
        "Qwen/Qwen2.5-3B-Instruct",
        "Qwen2.5-7B-Instruct",
        "sql",
        "Qwen/Qwen2.5-7B-Instruct",
        "Qwen2.5-32B-Instruct",
        "Qwen/Qwen2.5-32B-Instruct",
        "Qwen2.5-72B-Instruct",
        "Qwen/Qwen2.5-72B-Instruct",
        "bge-small-en-v1.5",
        "BAAI/bge-small-en-v1.5",
    ];
    assert_eq!(names, expected);
    let longest = config.fleet.pools.iter().map(|pool| pool.limits.max_model_len).max();
    assert_eq!(Some(listed[0].max_model_len), longest);
}
