//! Providers.

use std::time::Duration;

use futures::future::join_all;
use routebalance_instance::{InstanceOptions, RateLimit, RunningInstance, Tls};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::rig::{self, Got, Rig, configuration, directory, model, pool, server};
use crate::harness::certificates::{PROVIDER, write_certificates};
use crate::harness::eventually;

/// The provider's key, which only the gateway knows.
const KEY: &str = "sk-provider-0123456789";

/// A provider with TLS, its key in a file, and the pool of it.
struct Provider {
    server: RunningInstance,
    directory: TempDir,
}

impl Provider {
    async fn start(change: impl FnOnce(&mut InstanceOptions)) -> Provider {
        let directory = directory();
        let certificates = write_certificates(directory.path(), &[PROVIDER], 2100);
        // As editors write files: with the end of the line.
        std::fs::write(directory.path().join("key"), format!("{KEY}\n")).expect("a file is written");
        let mut options = server("large");
        options.tls = Some(Tls::from_files(&certificates.certificate, &certificates.key).expect("certificates"));
        options.api_keys = vec![KEY.to_owned()];
        options.has_metrics = false;
        change(&mut options);
        Provider { server: rig::start(options).await, directory }
    }

    /// The pool, with these further fields.
    fn pool(&self, model: &str, more: Value) -> Value {
        let file = |name: &str| self.directory.path().join(name).display().to_string();
        let mut pool = json!({
            "name": "rented", "kind": "hosted", "model": model, "cluster": "rented", "served_model": "large",
            "instances": [format!("localhost:{}", self.server.address().port())], "host": PROVIDER,
            "tls": {"sni": PROVIDER, "ca_file": file("authority.pem")}, "credential": {"file": file("key")},
        });
        pool.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        pool
    }
}

fn served_by(got: &Got) -> String {
    got.header("x-routebalance-pool").to_owned()
}

pub(crate) async fn dressed() {
    let provider = Provider::start(|options| {
        options.base_path = "/api/paas/v4".parse().expect("a path");
    })
    .await;
    let own = rig::start(server("small")).await;
    let more = json!({"base_path": "/api/paas/v4", "headers": {"x-org": "50%"}});
    let mut config = configuration(
        vec![model("small", 0.4, 0.1), model("large", 0.8, 1.0)],
        vec![pool("own", "small", json!([own.address().to_string()]), json!({})), provider.pool("large", more)],
    );
    config["routes"] = json!([
        {"name": "team", "prefix": "/team/", "prefix_rewrite": "/", "policy": "even"},
        {"name": "all", "prefix": "/", "policy": "even"},
    ]);
    let rig = Rig::start(config).await;
    let theirs = [
        ("authorization", "Bearer sk-of-the-client"),
        ("x-api-key", "sk-of-the-client"),
        ("cookie", "session=of-the-client"),
        ("x-session-id", "s1"),
        ("x-gateway-destination-endpoint", "127.0.0.1:1"),
        ("x-mine", "kept"),
    ];
    for path in ["/v1/chat/completions", "/team/v1/chat/completions"] {
        let got = rig.chat_at(path, "large", &theirs, 4).await.ok();
        assert_eq!((served_by(&got).as_str(), got.header("x-routebalance-rung")), ("rented", "priors"), "{got:?}");
    }
    let requests = provider.server.requests();
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert_eq!(request.path, "/api/paas/v4/chat/completions");
        assert_eq!(request.header("authorization"), Some(&*format!("Bearer {KEY}")));
        assert_eq!((request.header("host"), request.header("x-org")), (Some(PROVIDER), Some("50%")));
        assert_eq!(request.tls.as_ref().and_then(|tls| tls.server_name.as_deref()), Some(PROVIDER));
        assert_eq!(request.header("x-mine"), Some("kept"));
        assert_eq!(request.model.as_deref(), Some("large"));
        let not_theirs = ["x-api-key", "cookie", "x-session-id", "x-forwarded-for", "endpoint-load-metrics-format"];
        let own = |name: &str| {
            name.starts_with("x-routebalance") || name.starts_with("x-gateway") || name.starts_with("x-envoy")
        };
        for (name, value) in &request.headers {
            assert!(!own(name) && !not_theirs.contains(&name.as_str()), "{name}: {value}");
            assert!(!value.contains("of-the-client"), "{name}: {value}");
        }
    }
    // An own server still gets what the client has shown, and nothing of the provider's.
    rig.chat("small", &theirs, 4).await.ok();
    let request = own.requests().into_iter().find(|request| request.method == "POST").expect("a request");
    assert_eq!(request.header("authorization"), Some("Bearer sk-of-the-client"));
    assert_eq!((request.header("x-org"), request.path.as_str()), (None, "/v1/chat/completions"));
    assert_eq!(provider.server.tally().path("/metrics"), 0, "nobody asks a provider for its load");
}

pub(crate) async fn wave() {
    let provider = Provider::start(|_| {}).await;
    let mut options = server("small");
    options.pool.limits.max_running = 2;
    let own = rig::start(options).await;
    let mut config = configuration(
        vec![model("small", 0.5, 0.1)],
        vec![
            pool(
                "own",
                "small",
                json!([own.address().to_string()]),
                json!({"limits": {"max_running": 2, "kv_tokens": 1e6}}),
            ),
            provider.pool(
                "small",
                json!({
                    "usd_per_million_input_tokens": 0.3, "usd_per_million_output_tokens": 0.3,
                    "profile": {"tpot_ms": 2, "prefill_tokens_per_second": 100_000, "overhead_ms": 5},
                }),
            ),
        ],
    );
    config["policies"][0]["weights"] = json!({"quality": 0, "latency": 1, "cost": 1});
    let rig = Rig::start(config).await;
    rig.reported(2).await;
    let calm = async || {
        for _ in 0..5 {
            let got = rig.chat("small", &[], 50).await.ok();
            assert_eq!(served_by(&got), "own", "the cheaper one serves while it has room");
        }
    };
    calm().await;
    let wave = join_all((0..24).map(|_| rig.chat("small", &[], 100))).await;
    let pools: Vec<String> = wave.into_iter().map(|got| served_by(&got.ok())).collect();
    let rented = pools.iter().filter(|pool| *pool == "rented").count();
    assert!((6..=22).contains(&rented), "a queue costs what it costs, and renting its price: {rented} of 24");
    calm().await;
    // The log has what each was: the provider's tariff, and no report that anybody would miss.
    let decisions = rig.decisions(34).await;
    for decision in decisions {
        let tokens = decision["response"]["completion_tokens"].as_f64().unwrap()
            + decision["response"]["prompt_tokens"].as_f64().unwrap();
        let usd = decision["response"]["usd"].as_f64().unwrap() / tokens * 1e6;
        let expected = if decision["pool"] == "rented" { 0.3 } else { 0.1 };
        assert!((usd - expected).abs() < 1e-6, "{decision}");
        assert_eq!(decision["rung"], "priors");
    }
}

pub(crate) async fn limited() {
    let provider =
        Provider::start(|options| options.rate_limit = Some("3/4".parse::<RateLimit>().expect("a limit"))).await;
    let own = rig::start(server("small")).await;
    let mut config = configuration(
        vec![model("small", 0.4, 1.0), model("large", 0.8, 1.0)],
        vec![pool("own", "small", json!([own.address().to_string()]), json!({})), provider.pool("large", json!({}))],
    );
    config["policies"][0]["weights"] = json!({"quality": 1, "latency": 0, "cost": 0});
    let rig = Rig::start(config).await;
    let mut pools = Vec::new();
    let mut limited = 0;
    // Two seconds of the four.
    for _ in 0..20 {
        let got = rig.chat("auto", &[], 4).await;
        match got.status {
            429 => {
                limited += 1;
                pools.push("429".to_owned());
                assert!(!got.header("retry-after").is_empty(), "{got:?}");
            }
            _ => pools.push(served_by(&got.ok())),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(limited, 1, "only the one that has met the limit: {pools:?}");
    assert_eq!(pools.iter().filter(|pool| *pool == "rented").count(), 3);
    assert!(pools[4..].iter().all(|pool| pool == "own"), "the other model serves meanwhile: {pools:?}");
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    assert_eq!(served_by(&rig.chat("auto", &[], 4).await.ok()), "rented", "it is asked again when it has said so");
}

pub(crate) async fn refused() {
    let provider = Provider::start(|options| options.api_keys = vec!["another".to_owned()]).await;
    let own = rig::start(server("small")).await;
    let mut config = configuration(
        vec![model("small", 0.4, 1.0), model("large", 0.8, 1.0)],
        vec![pool("own", "small", json!([own.address().to_string()]), json!({})), provider.pool("large", json!({}))],
    );
    config["policies"][0]["weights"] = json!({"quality": 1, "latency": 0, "cost": 0});
    let rig = Rig::start(config).await;
    let mut statuses = Vec::new();
    for _ in 0..30 {
        // Somebody shows meanwhile that such requests can be served.
        rig.chat("small", &[], 4).await.ok();
        statuses.push(rig.chat("auto", &[], 4).await.status);
    }
    let lost = statuses.iter().filter(|status| **status == 401).count();
    assert!((1..=6).contains(&lost), "a few learn it, and the others are served: {statuses:?}");
}

/// What Envoy's secret discovery service says of a key.
fn secret(key: &str) -> String {
    json!({"resources": [{
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": "provider", "generic_secret": {"secret": {"inline_string": key}},
    }]})
    .to_string()
}

pub(crate) async fn rotated() {
    const NEXT: &str = "sk-provider-the-next-one";
    let provider = Provider::start(|options| options.api_keys = vec![KEY.to_owned(), NEXT.to_owned()]).await;
    let file = rig::replace(provider.directory.path(), "secret.json", &secret(KEY));
    let credential = json!({"sds_file": file.display().to_string(), "sds_name": "provider"});
    let pool = provider.pool("large", json!({"credential": credential}));
    let rig = Rig::start(configuration(vec![model("large", 0.8, 1.0)], vec![pool])).await;
    rig.chat("large", &[], 4).await.ok();
    rig::replace(provider.directory.path(), "secret.json", &secret(NEXT));
    let shown = async || {
        rig.chat("large", &[], 4).await.ok();
        let last = provider.server.requests().pop().expect("a request");
        last.header("authorization").unwrap_or_default().to_owned()
    };
    eventually("the next key", shown, |header| *header == format!("Bearer {NEXT}")).await;
}

pub(crate) async fn unread() {
    let provider = Provider::start(|_| {}).await;
    let rig = Rig::start(configuration(vec![model("large", 0.8, 1.0)], vec![provider.pool("large", json!({}))])).await;
    for (method, path) in
        [("GET", "/v1/files"), ("POST", "/v1/files"), ("GET", "/v1/organization/users"), ("DELETE", "/v1/models/x")]
    {
        let got = rig.send(method, path, &[], &Value::Null).await;
        assert_eq!(got.status, 404, "{method} {path}: {got:?}");
    }
    assert_eq!(provider.server.requests().len(), 0, "none of it has reached the provider");
    rig.chat("large", &[], 4).await.ok();
}
