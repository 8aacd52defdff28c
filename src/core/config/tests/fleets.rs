//! Fleets as they are: hosts by name, providers, shares, servers of several models; and numbers as tools write them.

use serde_json::{Value, json};

use super::{reference, refusal};
use crate::config::{Config, ConfigError};
use crate::fleet::{Metrics, MetricsPlace, PoolKind, SecretSource, Tariff};
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn config(json: &Value) -> Config {
    Config::parse(json.to_string().as_bytes()).unwrap()
}

/// The reference file with another pool of its last generating model.
fn with_pool(pool: &Value) -> Result<Config, ConfigError> {
    let mut json = reference();
    let mut whole = json!({"name": "rented", "model": "Qwen2.5-72B-Instruct", "cluster": "rented"});
    whole.as_object_mut().unwrap().extend(pool.as_object().unwrap().clone());
    json["pools"].as_array_mut().unwrap().push(whole);
    Config::parse(json.to_string().as_bytes())
}

fn hosted(more: Value) -> Value {
    let mut pool = json!({"kind": "hosted", "instances": ["API.example.com:443"], "tls": {}});
    pool.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    pool
}

#[test]
fn a_hosted_pool_needs_an_address_and_no_more() {
    let config = with_pool(&hosted(json!({}))).unwrap();
    let pool = config.fleet.pools.last().unwrap();
    assert_eq!((pool.kind, pool.discovered, pool.known), (PoolKind::Hosted, false, true));
    assert_eq!(pool.metrics, Metrics::Off, "nobody asks a provider");
    assert_eq!(pool.upstream.host.as_deref(), Some("api.example.com"));
    assert!(pool.upstream.drops_client_credentials, "the client's key is not the provider's affair");
    assert_eq!((pool.limits.max_running, pool.profile.tpot_growth_per_running), (u32::MAX, 0.0));
    let addresses: Vec<&str> =
        pool.instances.iter().map(|i| config.fleet.instances[i.index()].address.as_str()).collect();
    assert_eq!(addresses, ["api.example.com:443"], "one instance, whatever the name resolves to");
    assert_eq!(config.discovery, None, "and nothing to discover");
    let said = with_pool(&hosted(json!({
        "host": "tenant.example.com", "base_path": "/api/paas/v4/", "headers": {"X-Org": "a b"}, "client_credentials": "keep",
        "credential": {"file": "/run/key"}, "profile": {"tpot_ms": 9, "prefill_tokens_per_second": 1e4},
        "limits": {"max_running": 4e1},
    })));
    let said = said.unwrap();
    let pool = said.fleet.pools.last().unwrap();
    let upstream = &pool.upstream;
    assert_eq!(upstream.host.as_deref(), Some("tenant.example.com"));
    assert_eq!(upstream.base_path.as_deref(), Some("/api/paas/v4"));
    assert_eq!(upstream.headers, [("x-org".to_owned(), "a b".to_owned())]);
    assert!(!upstream.drops_client_credentials);
    let credential = upstream.credential.as_ref().unwrap();
    assert_eq!((credential.header.as_str(), credential.prefix.as_str()), ("authorization", "Bearer "));
    assert_eq!(credential.secret, SecretSource::File("/run/key".to_owned()));
    assert_eq!((pool.limits.max_running, pool.profile.tpot_ms), (40, 9.0));
}

#[test]
fn hosts_have_names_and_envoy_resolves_them() {
    let mut json = reference();
    json["pools"][0]["instances"] =
        json!(["GPU-1.internal:8000", "gpu-2.internal.:8001", "10.0.0.9:8000", "[::1]:8000"]);
    let config = config(&json);
    let pool = &config.fleet.pools[0];
    let names: Vec<String> = pool.upstream.names.iter().map(|(name, port)| format!("{name} {port}")).collect();
    assert_eq!(names, ["gpu-1.internal 8000", "gpu-2.internal. 8001", "10.0.0.9 8000", "::1 8000"]);
    assert!(pool.discovered && !pool.known && pool.instances.is_empty());
    assert!(config.discovery.is_some(), "Envoy is asked for the addresses");
}

#[test]
fn tariffs_of_pools_and_of_cached_tokens() {
    let tariff = |model: Value, pool: Value| {
        let mut json = reference();
        json["models"][3].as_object_mut().unwrap().extend(model.as_object().unwrap().clone());
        json["pools"][3].as_object_mut().unwrap().extend(pool.as_object().unwrap().clone());
        let config = config(&json);
        let Tariff { usd_per_input_token, usd_per_cached_input_token, usd_per_output_token } =
            config.fleet.tariff_of(&config.fleet.pools[3]).unwrap();
        [usd_per_input_token, usd_per_cached_input_token, usd_per_output_token].map(|usd| (usd * 1e8).round() / 100.0)
    };
    let cached = json!({"usd_per_million_cached_input_tokens": 0.1});
    let rows = [
        (json!({}), json!({}), [0.38, 0.38, 0.4]),
        (cached.clone(), json!({}), [0.38, 0.1, 0.4]),
        (cached.clone(), json!({"usd_per_million_output_tokens": 2}), [0.38, 0.1, 2.0]),
        (cached.clone(), json!({"usd_per_million_input_tokens": 1}), [1.0, 1.0, 0.4]),
        (json!({}), json!({"usd_per_million_cached_input_tokens": 0.05}), [0.38, 0.05, 0.4]),
    ];
    for (model, pool, expected) in rows {
        assert_eq!(tariff(model.clone(), pool.clone()), expected, "{model} {pool}");
    }
    let tariff = Tariff { usd_per_input_token: 2.0, usd_per_cached_input_token: 0.5, usd_per_output_token: 0.0 };
    for (cached, usd) in [(0.0, 20.0), (4.0, 14.0), (10.0, 5.0), (99.0, 5.0), (-1.0, 20.0)] {
        assert_eq!(tariff.prompt_usd(10.0, cached), usd);
    }
}

#[test]
fn one_server_may_have_several_models() {
    let mut json = reference();
    json["pools"][1]["instances"] = json!(["127.0.0.1:18001", "127.0.0.1:18012"]);
    let config = config(&json);
    let at: Vec<u32> =
        config.fleet.instances.iter().filter(|i| i.address == "127.0.0.1:18001").map(|i| i.key).collect();
    assert!(at.len() == 2 && at[0] != at[1], "{at:?}");
    json["pools"][1]["served_model"] = json["pools"][0]["served_model"].clone();
    let refusal = Config::parse(json.to_string().as_bytes()).unwrap_err().to_string();
    assert!(refusal.contains("pools[1].instances[0]: 127.0.0.1:18001 appears twice with the model"), "{refusal}");
}

#[test]
fn what_a_pool_cannot_be_is_said() {
    let own = json!({"profile": {"tpot_ms": 9, "prefill_tokens_per_second": 1e4}, "instances": ["10.0.0.1:1"]});
    let own = |more: Value| {
        let mut pool = own.clone();
        pool.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        pool
    };
    let rows = [
        (json!({"instances": ["10.0.0.1:1"]}), "pools[5].profile: a pool of your own needs it"),
        (hosted(json!({"instances": "discover"})), "pools[5].instances: a hosted pool has one address"),
        (hosted(json!({"instances": ["a:1", "b:1"]})), "pools[5].instances: a hosted pool has one address: give"),
        (hosted(json!({"metrics": {"path": "/m"}})), "pools[5].metrics.path: a hosted pool is not asked"),
        (
            hosted(json!({"metrics": "on"})),
            "pools[5].metrics: invalid value: string \"on\", expected \"off\", or an object",
        ),
        (hosted(json!({"kind": "rented"})), "pools[5].kind: unknown variant `rented`"),
        (hosted(json!({"credential": {}})), "pools[5].credential.file: either file or sds_file"),
        (hosted(json!({"credential": {"file": "/a", "sds_file": "/b"}})), "pools[5].credential.file: either"),
        (hosted(json!({"credential": {"sds_file": "/b"}})), "pools[5].credential.sds_name: sds_file needs it"),
        (hosted(json!({"credential": {"sds_name": "b"}})), "pools[5].credential.sds_file: sds_name needs it"),
        (hosted(json!({"credential": {"file": "/a", "header": "a b"}})), "pools[5].credential.header: \"a b\" is not"),
        (hosted(json!({"credential": {"file": "/a", "prefix": "a\nb"}})), "pools[5].credential.prefix: must be"),
        (hosted(json!({"base_path": "v1"})), "pools[5].base_path: \"v1\" must be a path"),
        (hosted(json!({"base_path": "/v1?a=b"})), "pools[5].base_path"),
        (hosted(json!({"host": "https://a"})), "pools[5].host: \"https://a\" is not a host"),
        (hosted(json!({"headers": {"host": "a"}})), "pools[5].headers: \"host\" is not this header to set"),
        (hosted(json!({"headers": {"x y": "a"}})), "pools[5].headers: \"x y\" is not a header's name"),
        (hosted(json!({"headers": {"x-a": "\u{1}"}})), "pools[5].headers.x-a: must be visible ASCII"),
        (hosted(json!({"tls": {"sni": "a b"}})), "pools[5].tls.sni: \"a b\" is not a host name"),
        (hosted(json!({"tls": {"certificate_file": "/c"}})), "pools[5].tls.key_file: certificate_file needs it"),
        (hosted(json!({"tls": {"verify": false}})), "pools[5].tls.verify: unknown field"),
        (hosted(json!({"client_credentials": "forward"})), "pools[5].client_credentials: unknown variant"),
        (own(json!({"tls": {}})), "pools[5].tls.sni: is needed where instances have no names"),
        (own(json!({"instances": ["http://a:1"]})), "pools[5].instances[0]: \"http://a:1\" is a URL"),
        (own(json!({"instances": ["a"]})), "pools[5].instances[0]: \"a\" has no port"),
        (
            own(json!({"instances": ["::1"]})),
            "pools[5].instances[0]: \"::1\" has no port: write ip:port, and [ip]:port",
        ),
        (own(json!({"instances": ["a:0"]})), "pools[5].instances[0]: \"a:0\" is neither"),
        (own(json!({"instances": ["a:+1"]})), "pools[5].instances[0]: \"a:+1\" is neither"),
        (own(json!({"instances": ["a/b:1"]})), "pools[5].instances[0]: \"a/b:1\" is neither"),
        (own(json!({"instances": ["a:1", "A:1"]})), "pools[5].instances[1]: a:1 appears twice"),
        (own(json!({"instances": ["127.0.0.1:999999"]})), "pools[5].instances[0]"),
        (own(json!({"metrics": {"port": 0}})), "pools[5].metrics.port: must not be 0"),
        (own(json!({"metrics": {"port": 65_536}})), "pools[5].metrics.port: invalid value"),
        (own(json!({"metrics": {"path": "metrics"}})), "pools[5].metrics.path: \"metrics\" must be a path"),
        (own(json!({"share": 1.1})), "pools[5].share: 1.1 is not between 0 and 1"),
        (own(json!({"share": -0.1})), "pools[5].share"),
        (own(json!({"slow_start_ms": 1e9})), "pools[5].slow_start_ms: 1000000000 is not between"),
        (own(json!({"usd_per_million_input_tokens": -1})), "pools[5].usd_per_million_input_tokens: -1"),
    ];
    for (pool, expected) in rows {
        let refusal = with_pool(&pool).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(refusal.contains(expected), "{pool}: {refusal:?} is not {expected:?}");
    }
}

#[test]
fn shares_leave_a_sense_to_what_is_left() {
    let shares = |first: Option<f64>, second: Option<f64>| {
        let mut json = reference();
        json["pools"][4] = json["pools"][3].clone();
        json["models"].as_array_mut().unwrap().pop();
        (json["pools"][4]["name"], json["pools"][4]["cluster"]) = ("canary".into(), "canary".into());
        json["pools"][4]["instances"] = json!(["10.0.0.1:1"]);
        for (pool, share) in [(3, first), (4, second)] {
            if let Some(share) = share {
                json["pools"][pool]["share"] = json!(share);
            }
        }
        Config::parse(json.to_string().as_bytes()).map(|_| ()).map_err(|e| e.to_string())
    };
    for (first, second) in
        [(None, Some(0.1)), (Some(0.9), Some(0.1)), (None, Some(0.0)), (None, Some(1.0)), (None, None)]
    {
        assert_eq!(shares(first, second), Ok(()));
    }
    for (first, second, problem) in [
        (Some(0.9), Some(0.2), "pools[4].share: the shares of \"Qwen2.5-72B-Instruct\" sum to 1.1, more than 1"),
        (Some(0.5), Some(0.1), "sum to 0.6, and no pool without a share takes the rest"),
    ] {
        assert!(shares(first, second).unwrap_err().contains(problem), "{problem}");
    }
}

#[test]
fn metrics_may_be_elsewhere_or_nowhere() {
    let metrics = |metrics: Value| {
        let mut json = reference();
        json["pools"][0]["metrics"] = metrics;
        let pool = config(&json).fleet.pools[0].clone();
        (pool.metrics.clone(), pool.metrics_cluster().into_owned())
    };
    let cluster = "pool-qwen2.5-3b".to_owned();
    let place = |change: &dyn Fn(&mut MetricsPlace)| {
        let mut place = MetricsPlace::default();
        change(&mut place);
        Metrics::Apart(place)
    };
    assert_eq!(metrics(json!("off")), (Metrics::Off, cluster.clone()));
    assert_eq!(metrics(json!({"path": "/m"})), (place(&|p| p.path = Some("/m".into())), cluster.clone()));
    let port = place(&|p| p.port = Some(9_400));
    assert_eq!(metrics(json!({"port": 9400.0})), (port, format!("{cluster}-metrics")));
    let mine = metrics(json!({"port": 9_400, "cluster": "mine"}));
    assert_eq!(mine.1, "mine");
    let token = metrics(json!({"bearer_token_file": "/run/token"}));
    assert_eq!(token.1, format!("{cluster}-metrics"));
}

#[test]
fn whole_numbers_are_written_in_many_ways() {
    let text = |number: &str| {
        let text = reference().to_string().replace("\"kv_tokens\":366000", &format!("\"kv_tokens\":{number}"));
        assert!(text.contains(number));
        Config::parse(text.as_bytes()).map(|config| config.fleet.pools[0].limits.kv_tokens).map_err(|e| e.to_string())
    };
    for (number, expected) in [
        ("1e5", 100_000),
        ("100000.0", 100_000),
        ("4.194304e+06", 4_194_304),
        ("1E5", 100_000),
        // As Helm's `quote` writes it, and Envoy a fraction of a Struct.
        ("\"1e5\"", 100_000),
        ("\"100000\"", 100_000),
    ] {
        assert_eq!(text(number), Ok(expected), "{number}");
    }
    for number in ["1.5", "-1", "-1.0", "1e300", "\"1.5\"", "\"many\"", "\"\"", "\"NaN\"", "true", "0"] {
        let refusal = text(number).unwrap_err();
        assert!(refusal.contains("pools[0].limits.kv_tokens"), "{number}: {refusal}");
    }
    let telemetry = refusal("/telemetry", json!({"scrape_period_ms": 250.5}));
    assert!(telemetry.contains("telemetry.scrape_period_ms: invalid value: floating point `250.5`"), "{telemetry}");
    let mut json = reference();
    json["telemetry"] = json!({"scrape_period_ms": 250.0, "lease_ms": 1e3});
    json["policies"][0]["budget"] = json!({"tokens": 100.0});
    json["models"][0]["quality_prior"] = json!("0.25");
    let read = config(&json);
    assert_eq!(read.policies[0].constraints.budget.tokens, Some(100));
    assert_eq!(read.fleet.models[0].quality_prior, 0.25);
}
