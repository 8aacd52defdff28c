//! What every test through a real Envoy needs: the set-up once per process, and a gateway of a changed configuration.
//! A module of `tests/envoy.rs`, not a test by itself.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use routebalance::tools::envoy_binary::envoy_binary;
use routebalance::tools::gateway::{self, GatewayOptions};
use routebalance::tools::prompts::PromptSet;
use routebalance::tools::setup::build_filter;
use serde_json::Value;

/// The module and Envoy: built and fetched by whichever test comes first.
static SET_UP: LazyLock<(PathBuf, PathBuf)> = LazyLock::new(|| {
    let say = |problem: anyhow::Error| panic!("{problem:#}");
    (build_filter().unwrap_or_else(say), envoy_binary().unwrap_or_else(say))
});

/// A fleet and an Envoy with two workers in front of it; ends when dropped.
pub struct Gateway {
    running: gateway::Gateway,
    http: reqwest::Client,
}

impl Gateway {
    /// Starts the reference configuration after `change`; the instances work `time_scale` times faster than real ones.
    pub async fn start(time_scale: f64, change: impl FnOnce(&mut Value)) -> anyhow::Result<Self> {
        let mut config = serde_json::from_str(include_str!("../envoy/routebalance.json"))?;
        change(&mut config);
        let (module, envoy) = SET_UP.clone();
        let answers = PromptSet::from_jsonl(include_str!("../models/data/demo_prompts.jsonl"))?;
        let options = GatewayOptions {
            config,
            module,
            envoy,
            workers: 2,
            log_level: "info".to_owned(),
            time_scale,
            answers: Some(Arc::new(answers)),
        };
        let running = gateway::Gateway::start(options).await?;
        // A request that hangs is a failure, not a test that never ends.
        let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).no_proxy().build()?;
        Ok(Self { running, http })
    }

    /// Sends a request; whatever comes back is the test's to judge.
    pub async fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> reqwest::Result<reqwest::Response> {
        let request = self.http.post(self.running.url(path)).header("content-type", "application/json").body(body);
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send().await
    }

    /// Fleet, Envoy, configuration and access log.
    pub fn running(&self) -> &gateway::Gateway {
        &self.running
    }

    /// Polls until `done`, or fails with what it saw last.
    pub async fn eventually<T: std::fmt::Debug>(
        &self,
        within: Duration,
        mut look: impl AsyncFnMut() -> T,
        done: impl Fn(&T) -> bool,
    ) -> T {
        let deadline = Instant::now() + within;
        loop {
            let seen = look().await;
            if done(&seen) {
                return seen;
            }
            assert!(Instant::now() < deadline, "still {seen:?} after {within:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
