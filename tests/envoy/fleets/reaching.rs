//! How servers are reached, and asked.

use std::time::Duration;

use routebalance_instance::Tls;
use serde_json::json;

use super::rig::{self, Rig, configuration, directory, model, pool, server};
use crate::harness::certificates::write_certificates;

pub(crate) async fn named() {
    let files = directory();
    let certificates = write_certificates(files.path(), &["localhost"], 2100);
    let tls = || Some(Tls::from_files(&certificates.certificate, &certificates.key).expect("certificates"));
    let (mut secured, mut other) = (server("small"), server("small"));
    (secured.tls, other.tls) = (tls(), tls());
    let (secured, other) = (rig::start(secured).await, rig::start(other).await);
    let plain = rig::start(server("large")).await;
    let names = |port: u16| format!("localhost:{port}");
    let authority = certificates.authority.display().to_string();
    let config = configuration(
        vec![model("small", 0.4, 0.1), model("large", 0.8, 1.0)],
        vec![
            pool(
                "secured",
                "small",
                json!([names(secured.address().port()), names(other.address().port())]),
                json!({"tls": {"ca_file": authority}}),
            ),
            pool("plain", "large", json!([names(plain.address().port())]), json!({})),
        ],
    );
    let rig = Rig::start(config).await;
    rig.present("secured", 2).await;
    rig.reported(6).await;
    let mut endpoints = std::collections::BTreeSet::new();
    for _ in 0..6 {
        let got = rig.chat("small", &[], 4).await.ok();
        assert_eq!(got.header("x-routebalance-rung"), "priors", "by reports: {got:?}");
        endpoints.insert(got.header("x-routebalance-endpoint").to_owned());
    }
    assert_eq!(endpoints.len(), 2, "the filter chooses among the addresses: {endpoints:?}");
    let request = secured.requests().into_iter().find(|request| request.method == "POST").expect("a request");
    assert_eq!(request.tls.expect("TLS").server_name.as_deref(), Some("localhost"));
    rig.chat("large", &[], 4).await.ok();
    assert_eq!(rig.stat("endpoint_unhonoured").await, 0);
}

pub(crate) async fn two_models() {
    let mut options = server("llama3");
    options.aliases = vec!["qwen3".to_owned()];
    let ollama = rig::start(options).await;
    let at = json!([ollama.address().to_string()]);
    let config = configuration(
        vec![model("llama", 0.4, 0.1), model("qwen", 0.8, 0.1)],
        vec![
            pool("llama", "llama", at.clone(), json!({"served_model": "llama3"})),
            pool("qwen", "qwen", at, json!({"served_model": "qwen3"})),
        ],
    );
    let rig = Rig::start(config).await;
    rig.reported(4).await;
    for (name, served) in [("llama", "llama3"), ("qwen", "qwen3")] {
        for _ in 0..3 {
            let got = rig.chat(name, &[], 4).await.ok();
            assert_eq!((got.header("x-routebalance-pool"), got.header("x-routebalance-rung")), (name, "priors"));
        }
        let asked = |served: &str| ollama.requests_that(|r| r.model.as_deref() == Some(served)).len();
        assert_eq!(asked(served), 3, "{name} is asked for by its own name");
    }
    // What one of them does is load of the other: both are one GPU.
    let long = rig.chat("llama", &[], 4_000);
    let meanwhile = async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        let (llama, qwen) = (rig.stat("outstanding_requests.llama").await, rig.stat("outstanding_requests.qwen").await);
        (llama, qwen, rig.chat("auto", &[], 4).await.ok())
    };
    let (got, (llama, qwen, auto)) = tokio::join!(long, meanwhile);
    got.ok();
    assert_eq!((llama, qwen), (1, 0), "each pool counts its own");
    assert_eq!(auto.status, 200);
    assert_eq!((rig.stat("moves").await, rig.stat("served_by_fallback").await), (0, 0), "nobody is taken for another");
}

pub(crate) async fn metrics() {
    const TOKEN: &str = "token-of-the-metrics";
    let files = directory();
    std::fs::write(files.path().join("token"), TOKEN).expect("a file is written");
    // The exporter is another server, on another port, which knows the load.
    let mut silent = server("small");
    silent.has_metrics = false;
    let (api, exporter) = (rig::start(silent.clone()).await, rig::start(server("small")).await);
    let quiet = rig::start(silent).await;
    let token = files.path().join("token").display().to_string();
    let config = configuration(
        vec![model("small", 0.4, 0.1), model("large", 0.8, 1.0)],
        vec![
            pool(
                "apart",
                "small",
                json!([api.address().to_string()]),
                json!({"metrics": {"port": exporter.address().port(), "bearer_token_file": token}}),
            ),
            pool(
                "off",
                "large",
                json!([quiet.address().to_string()]),
                json!({"metrics": "off", "served_model": "small"}),
            ),
        ],
    );
    let rig = Rig::start(config).await;
    rig.reported(4).await;
    let rung = async |model: &str| rig.chat(model, &[], 4).await.ok().header("x-routebalance-rung").to_owned();
    assert_eq!((rung("small").await, rung("large").await), ("priors".to_owned(), "reckoned".to_owned()));
    assert_eq!((api.tally().path("/metrics"), quiet.tally().path("/metrics")), (0, 0));
    let asked = exporter.requests_that(|request| request.path == "/metrics");
    assert!(!asked.is_empty());
    for request in asked {
        assert_eq!(request.header("authorization"), Some(&*format!("Bearer {TOKEN}")));
    }
    assert_eq!(api.requests_that(|request| request.method == "POST").len(), 1, "requests go where they went");
}

pub(crate) async fn cached() {
    let own = rig::start(server("small")).await;
    let mut small = model("small", 0.4, 1.0);
    small["usd_per_million_cached_input_tokens"] = json!(0.25);
    let rig = Rig::start(configuration(
        vec![small],
        vec![pool("own", "small", json!([own.address().to_string()]), json!({}))],
    ))
    .await;
    rig.reported(2).await;
    let words = "All of this is what everybody is told first. ".repeat(120);
    let body = json!({
        "model": "small", "max_tokens": 4, "ignore_eos": true,
        "messages": [{"role": "system", "content": words}, {"role": "user", "content": "Why?"}],
    });
    for _ in 0..2 {
        rig.send("POST", "/v1/chat/completions", &[], &body).await.ok();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let decisions = rig.decisions(2).await;
    let number = |decision: &serde_json::Value, at: &str| {
        decision.pointer(at).and_then(serde_json::Value::as_f64).unwrap_or_default()
    };
    let (first, second) = (&decisions[0], &decisions[1]);
    let cached = number(second, "/response/cached_tokens");
    let prompt = number(second, "/response/prompt_tokens");
    assert!(number(second, "/estimated_cached_tokens") > 400.0 && cached > 400.0, "{second}");
    let expected = (prompt - cached) + 0.25 * cached + number(second, "/response/completion_tokens");
    assert!((number(second, "/response/usd") * 1e6 - expected).abs() < 1e-6, "{second}");
    assert!(number(second, "/predicted_usd") < 0.6 * number(first, "/predicted_usd"), "and forecast: {first} {second}");
}
