//! A gateway whose servers a test chooses one by one, each with a configuration written for them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use routebalance_cli::envoy::{Envoy, EnvoyOptions};
use routebalance_cli::ports::free_ports;
use routebalance_cli::render::render;
use routebalance_core::fleet::{LatencyProfile, Limits, ModelKind};
use routebalance_instance::{InstanceOptions, PoolProfile, RunningInstance};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{STATS, eventually, set_up};

/// An emulated server of a model: 2 ms a token, ten first tokens in a second.
pub(crate) fn server(model: &str) -> InstanceOptions {
    let profile = LatencyProfile {
        tpot_ms: 2.0,
        tpot_growth_per_running: 0.0,
        tpot_growth_per_thousand_context_tokens: 0.0,
        prefill_tokens_per_second: 100_000.0,
        overhead_ms: 5.0,
    };
    let limits = Limits { max_running: 64, kv_tokens: 1_000_000, max_model_len: 8_192 };
    let (model_name, served_model) = (model.to_owned(), model.to_owned());
    InstanceOptions::new(PoolProfile { model_name, served_model, kind: ModelKind::Generate, profile, limits })
}

pub(crate) async fn start(options: InstanceOptions) -> RunningInstance {
    routebalance_instance::start(options).await.expect("a server starts")
}

/// A model of the configuration.
pub(crate) fn model(name: &str, quality: f64, usd: f64) -> Value {
    json!({
        "name": name, "quality_prior": quality, "output_tokens_prior": 50,
        "usd_per_million_input_tokens": usd, "usd_per_million_output_tokens": usd,
    })
}

/// A pool of a model, with these further fields.
pub(crate) fn pool(name: &str, model: &str, instances: Value, more: Value) -> Value {
    let mut pool = json!({
        "name": name, "model": model, "cluster": name, "instances": instances,
        "profile": {"tpot_ms": 2, "prefill_tokens_per_second": 100_000, "overhead_ms": 5},
        "limits": {"max_running": 64, "kv_tokens": 1e6},
    });
    pool.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    pool
}

/// A configuration with these models and pools and one policy, which weighs quality, time and money alike.
pub(crate) fn configuration(models: Vec<Value>, pools: Vec<Value>) -> Value {
    json!({
        "models": models, "pools": pools,
        "policies": [{"name": "even", "weights": {"quality": 1, "latency": 1, "cost": 1}}],
        "default_policy": "even", "predictor": {"enabled": false},
        "telemetry": {"scrape_period_ms": 100, "scrape_timeout_ms": 500, "fresh_ms": 500, "max_age_ms": 1500},
        "discovery": {"period_ms": 200},
        "response": {"expose_endpoint": true},
        "envoy": {},
    })
}

/// A running Envoy with the module.
pub(crate) struct Rig {
    pub(crate) envoy: Envoy,
    pub(crate) directory: TempDir,
    http: reqwest::Client,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: String,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    pub(crate) fn ok(self) -> Got {
        assert_eq!(self.status, 200, "{self:?}");
        self
    }
}

/// Where a configuration has its files.
pub(crate) fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

/// What Envoy is to be started with for a configuration, whose listener, admin listener, module and log are filled in.
pub(crate) fn options(mut config: Value, directory: &Path, edit: impl Fn(&str) -> String) -> (EnvoyOptions, Value) {
    let (module, binary) = set_up();
    let ports = free_ports(2).expect("free ports");
    let (listen, admin) = (ports[0].address(), ports[1].address());
    drop(ports);
    let envoy = config["envoy"].as_object_mut().expect("settings");
    envoy.insert("listen".to_owned(), listen.to_string().into());
    envoy.insert("admin".to_owned(), admin.to_string().into());
    envoy.insert("module".to_owned(), module.display().to_string().into());
    envoy.insert("access_log".to_owned(), directory.join("access.log").display().to_string().into());
    envoy.insert("endpoints_dir".to_owned(), directory.display().to_string().into());
    let rendered = edit(&render(&config).expect("the configuration is accepted"));
    let options = EnvoyOptions {
        binary,
        config: rendered,
        listen,
        admin,
        workers: 2,
        log_level: "info".to_owned(),
        ready_within: Duration::from_secs(120),
    };
    (options, config)
}

impl Rig {
    pub(crate) async fn start(config: Value) -> Rig {
        Rig::start_in(directory(), config, str::to_owned).await
    }

    /// Starts it in a directory that may have files already; the rendered configuration is edited.
    pub(crate) async fn start_in(directory: TempDir, config: Value, edit: impl Fn(&str) -> String) -> Rig {
        let (options, _) = options(config, directory.path(), edit);
        let envoy = Envoy::start(&options, directory.path()).await.expect("Envoy starts");
        Rig::around(envoy, directory)
    }

    /// Around an Envoy that runs.
    pub(crate) fn around(envoy: Envoy, directory: TempDir) -> Rig {
        let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().expect("a client");
        Rig { envoy, directory, http }
    }

    pub(crate) async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Got {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = self.http.request(method, format!("http://{}{path}", self.envoy.address()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_null() {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Got { status, headers, body: response.text().await.unwrap_or_default() }
    }

    pub(crate) async fn get(&self, path: &str) -> Got {
        self.send("GET", path, &[], &Value::Null).await
    }

    /// Asks a model for an answer of so many tokens.
    pub(crate) async fn chat(&self, model: &str, headers: &[(&str, &str)], tokens: u32) -> Got {
        self.chat_at("/v1/chat/completions", model, headers, tokens).await
    }

    pub(crate) async fn chat_at(&self, path: &str, model: &str, headers: &[(&str, &str)], tokens: u32) -> Got {
        let body = json!({
            "model": model, "max_tokens": tokens, "ignore_eos": true,
            "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        });
        self.send("POST", path, headers, &body).await
    }

    /// A statistic of the module by what follows `routebalance.`.
    pub(crate) async fn stat(&self, name: &str) -> u64 {
        let stats = self.envoy.stats(STATS).await.unwrap_or_default();
        stats.get(&format!("{STATS}{name}")).copied().unwrap_or_default()
    }

    /// Waits until so many instances of a pool are there.
    pub(crate) async fn present(&self, pool: &str, instances: u64) {
        let name = format!("present_instances.{pool}");
        eventually("the pool's instances", async || self.stat(&name).await, |n| *n == instances).await;
        // Every worker applies them in its next tick.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    /// Waits until every instance was heard of.
    pub(crate) async fn reported(&self, pages: u64) {
        let before = self.stat("scrapes.ok").await;
        eventually("load reports", async || self.stat("scrapes.ok").await, |n| *n >= before + pages).await;
    }

    /// The decisions in the access log, once there are so many lines.
    pub(crate) async fn decisions(&self, lines: usize) -> Vec<Value> {
        let read = async || {
            let log = std::fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default();
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.map(|line| line["decision"].clone()).filter(|decision| !decision.is_null()).collect::<Vec<_>>()
        };
        eventually("lines of the log", read, |log| log.len() >= lines).await
    }
}

/// Writes a file as Envoy wants to find it: whole, by a rename.
pub(crate) fn replace(directory: &Path, name: &str, text: &str) -> PathBuf {
    let (new, file) = (directory.join(format!("{name}.new")), directory.join(name));
    std::fs::write(&new, text).expect("a file is written");
    std::fs::rename(&new, &file).expect("a file is renamed");
    file
}

/// The file of a discovered pool's endpoints: address, priority, weight and health of each.
pub(crate) fn endpoints(cluster: &str, hosts: &[(SocketAddr, u32, u32, &str)]) -> String {
    let endpoint = |(address, priority, weight, health): &(SocketAddr, u32, u32, &str)| {
        json!({"priority": priority, "lb_endpoints": [{
            "endpoint": {"address": {"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}}},
            "load_balancing_weight": weight, "health_status": health,
        }]})
    };
    json!({"resources": [{
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster, "endpoints": hosts.iter().map(endpoint).collect::<Vec<Value>>(),
    }]})
    .to_string()
}
