//! Configurations that change while requests come.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use routebalance_cli::envoy::Envoy;
use routebalance_cli::render::render;
use serde_json::{Value, json};

use super::rig::{self, Rig, configuration, directory, model, options, pool, replace, server};
use crate::harness::eventually;

/// What of the rendered file Envoy gets by a discovery service, as the file of that service, and what is left.
type Cut = fn(&str, &Path) -> (String, String);

/// The listener, for LDS.
fn listener(yaml: &str, directory: &Path) -> (String, String) {
    let (head, rest) = yaml.split_once("  listeners:\n  - ").expect("a listener");
    let (listener, clusters) = rest.split_once("  clusters:\n").expect("clusters");
    let listener: String =
        listener.lines().map(|line| format!("{}\n", line.strip_prefix("  ").unwrap_or(line))).collect();
    let listener =
        format!("resources:\n- \"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\n  {listener}");
    let file = directory.join("listener.yaml").display().to_string();
    let dynamic = format!("dynamic_resources:\n  lds_config: {{ path_config_source: {{ path: {file:?} }} }}\n");
    (listener, format!("node: {{ id: a, cluster: a }}\n{dynamic}{head}  clusters:\n{clusters}"))
}

/// The filter alone, for ECDS.
fn filter(yaml: &str, directory: &Path) -> (String, String) {
    let begin = "          - name: routebalance\n            typed_config:\n";
    let (head, rest) = yaml.split_once(begin).expect("the filter");
    let (config, rest) = rest.split_once("          - name: envoy.filters.http.router\n").expect("the router");
    let config: String =
        config.lines().map(|line| format!("{}\n", line.strip_prefix("          ").unwrap_or(line))).collect();
    let resource = format!(
        "resources:\n- \"@type\": type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig\n  name: routebalance\n  typed_config:\n{config}"
    );
    let file = directory.join("filter.yaml").display().to_string();
    let discovery = format!(
        r#"          - name: routebalance
            config_discovery:
              config_source: {{ path_config_source: {{ path: {file:?} }} }}
              type_urls: [ type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm ]
"#
    );
    let rest = format!("{head}{discovery}          - name: envoy.filters.http.router\n{rest}");
    (resource, format!("node: {{ id: a, cluster: a }}\n{rest}"))
}

/// Weights that want the good model, or the cheap one.
fn weighted(config: &Value, quality: bool) -> Value {
    let mut config = config.clone();
    let (quality, cost) = if quality { (1.0, 0.0) } else { (0.01, 0.99) };
    config["policies"][0]["weights"] = json!({"quality": quality, "latency": 0, "cost": cost});
    config
}

async fn change(file: &str, cut: Cut) {
    let (cheap, good) = (rig::start(server("cheap")).await, rig::start(server("good")).await);
    let config = configuration(
        vec![model("cheap", 0.4, 0.1), model("good", 0.8, 5.0)],
        vec![
            pool("cheap", "cheap", json!([cheap.address().to_string()]), json!({})),
            pool("good", "good", json!([good.address().to_string()]), json!({})),
        ],
    );
    let directory = directory();
    let (mut envoy, config) = options(weighted(&config, false), directory.path(), str::to_owned);
    let write = |config: &Value| {
        let (resource, rest) = cut(&render(config).expect("it is accepted"), directory.path());
        replace(directory.path(), file, &resource);
        rest
    };
    envoy.config = write(&config);
    let started = Envoy::start(&envoy, directory.path()).await.expect("Envoy starts");
    let rig = Rig::around(started, rig::directory());
    rig.reported(4).await;
    // Answers are five times as long as their prior says.
    for _ in 0..12 {
        for got in join_all((0..10).map(|_| rig.chat("cheap", &[], 250))).await {
            got.ok();
        }
    }
    let correction = async || rig.stat("output_tokens_correction_milli.cheap").await;
    let learnt = eventually("lengths are learnt", correction, |milli| *milli > 1_500).await;
    let is_over = AtomicBool::new(false);
    let client = async || {
        let mut answers = Vec::new();
        while !is_over.load(Ordering::Relaxed) {
            let got = rig.chat("auto", &[], 5).await;
            answers.push((got.status, got.header("x-routebalance-model").to_owned()));
        }
        answers
    };
    let long = async || {
        let body = json!({"model": "cheap", "max_tokens": 1_500, "ignore_eos": true, "stream": true, "messages": [{"role": "user", "content": "Count."}]});
        rig.send("POST", "/v1/chat/completions", &[], &body).await.ok()
    };
    let operator = async {
        for quality in [true, false, true] {
            write(&weighted(&config, quality));
            let expected = if quality { "good" } else { "cheap" };
            let chosen = async || rig.chat("auto", &[], 5).await.ok().header("x-routebalance-model").to_owned();
            eventually("decisions by the new weights", chosen, |model| model == expected).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let after = rig.stat("output_tokens_correction_milli.cheap").await;
        // More is learnt meanwhile; a factor that was forgotten is 1,000.
        assert!(after > learnt / 2, "what was learnt stays: {learnt}, then {after}");
        is_over.store(true, Ordering::Relaxed);
    };
    let (answers, stream, ()) = tokio::join!(join_all((0..4).map(|_| client())), long(), operator);
    let answers = answers.concat();
    assert!(answers.iter().all(|(status, _)| *status == 200), "nothing is lost: {answers:?}");
    assert!(["cheap", "good"].iter().all(|model| answers.iter().any(|(_, served)| served == model)));
    assert!(stream.body.contains("data: [DONE]"), "a stream outlives the change");
    let gauges = async || rig.stat("outstanding_requests.cheap").await + rig.stat("outstanding_requests.good").await;
    eventually("nothing is left outstanding", gauges, |n| *n == 0).await;
}

pub(crate) async fn by_lds() {
    change("listener.yaml", listener).await;
}

pub(crate) async fn by_ecds() {
    change("filter.yaml", filter).await;
}

pub(crate) async fn as_struct() {
    let own = rig::start(server("small")).await;
    let mut small = pool("own", "small", json!([own.address().to_string()]), json!({}));
    small["limits"] = json!({"max_running": 64, "kv_tokens": 12_345_678});
    let config = configuration(vec![model("small", 0.4, 0.1)], vec![small]);
    // JSON is YAML: the inline text becomes the value of a Struct.
    let edit = |yaml: &str| {
        let begin = "\"@type\": type.googleapis.com/google.protobuf.StringValue\n                  value: |\n";
        let (head, rest) = yaml.split_once(begin).expect("the configuration");
        let (json, rest) = rest.split_once("          - name: envoy.filters.http.router\n").expect("the router");
        let begin = "\"@type\": type.googleapis.com/google.protobuf.Struct\n                  value:\n";
        format!("{head}{begin}{json}          - name: envoy.filters.http.router\n{rest}")
    };
    let rig = Rig::start_in(directory(), config, edit).await;
    rig.reported(2).await;
    let got = rig.chat("small", &[], 4).await.ok();
    assert_eq!(got.header("x-routebalance-pool"), "own");
}
