//! An emulated instance: vLLM 0.32's HTTP API in front of the continuous-batching engine, driven by the runtime's clock.
//!
//! | module | is |
//! |---|---|
//! | `serve` | routes, and what all answers share |
//! | `request` | validation and error bodies |
//! | `chat`, `messages`, `responses`, `embeddings` | bodies and events of one API each |
//! | `stream` | an answer as events or as a whole |
//! | `driver` | the engine on the runtime's clock |
//! | `observe`, `metrics` | the `/metrics` page, and what tests see |
//! | `guard`, `tls` | what a guarded server or a provider has before its API |
//! | `connections` | how connections are served |
//! | `command` | `routebalance instance` |
//! | `text` | tokens in, words out |
//! | `wire` | a connection that can be cut |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unreachable,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "emulated instances run on the host, where a panic ends one instance and clocks are real"
)]

mod chat;
mod command;
mod connections;
mod driver;
mod embeddings;
mod guard;
mod messages;
mod metrics;
pub mod network;
mod observe;
pub mod prompts;
mod request;
mod responses;
mod serve;
mod stream;
mod text;
mod tls;
mod wire;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::task::JoinHandle;

pub use self::command::{InstanceArgs, run};
use self::connections::accept;
pub use self::driver::Gauges;
pub use self::guard::{BasePath, RateLimit};
pub use self::observe::Tally;
pub use self::serve::Received;
use self::serve::Server;
pub use self::tls::{Handshake, Tls};
use crate::network::Network;
use crate::prompts::PromptSet;
use routebalance_core::fleet::{Fleet, LatencyProfile, Limits, ModelKind};

/// How many tokens an instance reads in a chat of one user's message, and the hashes of their blocks in its prefix cache.
pub fn tokens_read(message: &str) -> (u32, Vec<u64>) {
    let message = serde_json::json!({ "role": "user", "content": message });
    let prompt = text::Prompt::chat(&[], std::slice::from_ref(&message));
    (prompt.tokens, prompt.blocks(None))
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// The process is gone: the port is closed, open connections break off.
    Refuse,
    /// The process is stopped: connections are accepted and nothing is ever answered; streams stand still.
    Stall,
    /// The worker is stopped (recorded with SIGSTOP): `/health` and frozen `/metrics` answer, work stands still.
    Hang,
    /// The engine is dead: every request gets 500.
    Error500,
    /// The server drains (recorded with SIGTERM and `--shutdown-timeout`): what runs is finished, new requests get 500, and
    /// `/health` is well.
    Drain,
    /// A stream of status 200 carries an error event after so many events; what is not streamed gets 500.
    StreamError {
        /// Events before the error.
        after_events: u32,
    },
    /// The connection is reset inside the chunk that follows so many events.
    Reset {
        /// Events before the reset.
        after_events: u32,
    },
    /// `/metrics` shows for ever what it showed when the fault began.
    MetricsStale,
    /// `/metrics` answers 200 with a page that is none.
    MetricsBroken,
    /// `/metrics` says that there is no load, whatever there is.
    MetricsZero,
    /// Every gauge of `/metrics` is `NaN`.
    MetricsNan,
    /// Every gauge of `/metrics` is far beyond what can be.
    MetricsAbsurd,
    /// `/metrics` answers 404.
    MetricsAbsent,
    /// `/metrics` answers after a delay.
    MetricsSlow {
        /// The delay.
        delay: Duration,
    },
}

impl std::str::FromStr for Fault {
    type Err = anyhow::Error;

    /// `none`, `refuse`, `stall`, `hang`, `5xx`, `stream-error[:EVENTS]`, `drain`, `reset[:EVENTS]`, `metrics-stale`, `metrics-zero`,
    /// `metrics-nan`, `metrics-absurd`, `metrics-broken`, `metrics-absent`, `metrics-slow[:MS]`.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, number) = text.split_once(':').map_or((text, None), |(name, number)| (name, Some(number)));
        let number =
            number.map(str::parse::<u32>).transpose().with_context(|| format!("fault `{text}`: not a number"))?;
        let after_events = number.unwrap_or(3);
        let fault = match name {
            "none" => Self::None,
            "refuse" => Self::Refuse,
            "stall" => Self::Stall,
            "hang" => Self::Hang,
            "5xx" => Self::Error500,
            "drain" => Self::Drain,
            "metrics-zero" => Self::MetricsZero,
            "metrics-nan" => Self::MetricsNan,
            "metrics-absurd" => Self::MetricsAbsurd,
            "stream-error" => Self::StreamError { after_events },
            "reset" => Self::Reset { after_events },
            "metrics-stale" => Self::MetricsStale,
            "metrics-broken" => Self::MetricsBroken,
            "metrics-absent" => Self::MetricsAbsent,
            "metrics-slow" => Self::MetricsSlow { delay: Duration::from_millis(number.unwrap_or(3000).into()) },
            _ => bail!(
                "unknown fault `{text}`: use none, refuse, stall, hang, 5xx, drain, stream-error[:EVENTS], reset[:EVENTS], \
                 metrics-stale, metrics-zero, metrics-nan, metrics-absurd, metrics-broken, metrics-absent or metrics-slow[:MS]"
            ),
        };
        Ok(fault)
    }
}

/// vLLM's switches that change what clients see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switches {
    /// `--enable-request-id-headers`: responses carry `x-request-id`.
    pub request_id_headers: bool,
    /// `--enable-prompt-tokens-details`: usage says how much of the prompt was cached.
    pub prompt_tokens_details: bool,
    /// `--tool-call-parser`: without it, `tools` are refused.
    pub tool_call_parser: bool,
}

impl Default for Switches {
    fn default() -> Self {
        Self { request_id_headers: true, prompt_tokens_details: true, tool_call_parser: true }
    }
}

/// What the instances of a pool are.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolProfile {
    /// The model's name in the fleet, by which a [`PromptSet`] knows its answers.
    pub model_name: String,
    /// The name that the instance serves.
    pub served_model: String,
    /// What the model is for.
    pub kind: ModelKind,
    /// How fast it is.
    pub profile: LatencyProfile,
    /// What it can hold.
    pub limits: Limits,
}

/// The profile of a pool by its name, or by its model's name.
pub fn profile_from_config(fleet: &Fleet, name: &str) -> Option<PoolProfile> {
    let named = |pool: &&routebalance_core::fleet::Pool| pool.name == name;
    let of_model =
        |pool: &&routebalance_core::fleet::Pool| fleet.model_of(pool).is_some_and(|model| model.name == name);
    let pool = fleet.pools.iter().find(named).or_else(|| fleet.pools.iter().find(of_model))?;
    let model = fleet.model_of(pool)?;
    Some(PoolProfile {
        model_name: model.name.clone(),
        served_model: pool.served_model.clone(),
        kind: model.kind,
        profile: pool.profile,
        limits: pool.limits,
    })
}

/// What to start.
#[derive(Clone, Debug)]
pub struct InstanceOptions {
    /// Whose addresses count.
    pub network: Network,
    /// Where; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// What it is.
    pub pool: PoolProfile,
    /// Further names that are served; answers carry `pool.served_model`.
    pub aliases: Vec<String>,
    /// LoRA adapters that are served; answers of one carry its name.
    pub adapters: Vec<String>,
    /// 2.0 is twice as fast.
    pub time_scale: f64,
    /// Recorded answer lengths.
    pub answers: Option<Arc<PromptSet>>,
    /// vLLM's `--max-num-queued-reqs`: with so many requests running or waiting, further ones get 503.
    pub max_queued: Option<u32>,
    /// vLLM's switches.
    pub switches: Switches,
    /// vLLM's `--api-key`: whoever has none of them gets 401 from the API; without any, everybody is let in.
    pub api_keys: Vec<String>,
    /// vLLM's `--ssl-certfile` and `--ssl-keyfile`: TLS with HTTP/1.1.
    pub tls: Option<Tls>,
    /// Where the API answers, as providers have it; nothing does at `/v1` then.
    pub base_path: BasePath,
    /// Beyond it, POSTs to the API get 429, as from a provider.
    pub rate_limit: Option<RateLimit>,
    /// Without them, `/metrics` answers 404, as a provider does.
    pub has_metrics: bool,
    /// What goes wrong from the start.
    pub fault: Fault,
}

impl InstanceOptions {
    /// A healthy instance in real time, on a port that the system chooses.
    pub fn new(pool: PoolProfile) -> Self {
        Self {
            network: Network::Sockets,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            pool,
            aliases: Vec::new(),
            adapters: Vec::new(),
            time_scale: 1.0,
            answers: None,
            max_queued: None,
            switches: Switches::default(),
            api_keys: Vec::new(),
            tls: None,
            base_path: BasePath::default(),
            rate_limit: None,
            has_metrics: true,
            fault: Fault::None,
        }
    }
}

/// An instance that serves until it is stopped or dropped.
#[derive(Debug)]
pub struct RunningInstance {
    network: Network,
    address: SocketAddr,
    server: Arc<Server>,
    engine: JoinHandle<()>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

/// Starts an instance inside this process; needs a Tokio runtime with time and I/O.
///
/// # Errors
/// The address is taken, the time scale is not a positive number, or an API key cannot be sent.
pub async fn start(options: InstanceOptions) -> anyhow::Result<RunningInstance> {
    if !(options.time_scale.is_finite() && options.time_scale > 0.0) {
        bail!("time scale {} is not a positive number", options.time_scale);
    }
    let network = options.network.clone();
    let (listen, fault) = (options.listen, options.fault);
    let server = Arc::new(Server::new(options)?);
    let listener =
        network.listen(listen).await.with_context(|| format!("an emulated instance cannot listen on {listen}"))?;
    let address = listener.local_addr()?;
    let driver = Arc::clone(&server.driver);
    let engine = tokio::spawn(async move { driver.run().await });
    let acceptor = tokio::spawn(accept(listener, Arc::clone(&server)));
    let instance = RunningInstance { network, address, server, engine, acceptor: Mutex::new(Some(acceptor)) };
    if fault != Fault::None {
        instance.set_fault(fault).await?;
    }
    Ok(instance)
}

impl RunningInstance {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes something go wrong, or right again with [`Fault::None`]. Requests see the fault that is set when they arrive.
    ///
    /// # Errors
    /// After [`Fault::Refuse`]: somebody else has taken the port.
    pub async fn set_fault(&self, fault: Fault) -> anyhow::Result<()> {
        if fault == Fault::Refuse {
            self.server.set_fault(fault);
            self.close().await;
            return Ok(());
        }
        let closed = self.lock_acceptor().is_none();
        if closed {
            let listener = self
                .network
                .listen(self.address)
                .await
                .with_context(|| format!("the emulated instance cannot listen on {} again", self.address))?;
            *self.lock_acceptor() = Some(tokio::spawn(accept(listener, Arc::clone(&self.server))));
        }
        self.server.set_fault(fault);
        Ok(())
    }

    /// The load now.
    pub fn gauges(&self) -> Gauges {
        self.server.driver.gauges()
    }

    /// The last 20,000 requests that arrived on any path, oldest first, refused ones too.
    pub fn requests(&self) -> Vec<Received> {
        self.requests_that(|_| true)
    }

    /// Those of them that are wanted.
    pub fn requests_that(&self, is_wanted: impl Fn(&Received) -> bool) -> Vec<Received> {
        self.server.requests_that(is_wanted)
    }

    /// How many requests have arrived since the start; nothing of it is forgotten.
    pub fn tally(&self) -> Tally {
        self.server.tally()
    }

    /// Forgets the requests so far.
    pub fn forget_requests(&self) {
        self.server.forget_requests();
    }

    /// Closes the port and every connection, and ends the engine.
    pub async fn stop(self) {
        self.close().await;
        self.engine.abort();
    }

    async fn close(&self) {
        let acceptor = self.lock_acceptor().take();
        if let Some(acceptor) = acceptor {
            acceptor.abort();
            // The listener and the connections close when the task is gone.
            let _ = acceptor.await;
        }
    }

    fn lock_acceptor(&self) -> std::sync::MutexGuard<'_, Option<JoinHandle<()>>> {
        self.acceptor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RunningInstance {
    fn drop(&mut self) {
        if let Some(acceptor) = self.lock_acceptor().take() {
            acceptor.abort();
        }
        self.engine.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use routebalance_core::fleet::ModelId;

    #[test]
    fn faults_are_read() {
        for (text, fault) in [
            ("none", Some(Fault::None)),
            ("5xx", Some(Fault::Error500)),
            ("reset", Some(Fault::Reset { after_events: 3 })),
            ("stream-error:7", Some(Fault::StreamError { after_events: 7 })),
            ("metrics-slow:50", Some(Fault::MetricsSlow { delay: Duration::from_millis(50) })),
            ("reset:x", None),
            ("tired", None),
        ] {
            assert_eq!(text.parse::<Fault>().ok(), fault, "{text}");
        }
    }

    #[test]
    fn profiles_are_found_by_pool_or_model() {
        let profile = LatencyProfile {
            tpot_ms: 1.0,
            tpot_growth_per_running: 0.0,
            tpot_growth_per_thousand_context_tokens: 0.0,
            prefill_tokens_per_second: 1.0,
            overhead_ms: 0.0,
        };
        let limits = Limits { max_running: 1, kv_tokens: 1, max_model_len: 1 };
        let model = |name: &str| routebalance_core::fleet::Model {
            name: name.into(),
            kind: ModelKind::Generate,
            tariff: routebalance_core::fleet::Tariff::new(0.0, 0.0),
            quality_prior: 0.0,
            output_tokens_prior: 1.0,
            adapters: Vec::new(),
            tokens_per_media_part: 0.0,
        };
        let pool = |name: &str, model: usize| routebalance_core::fleet::Pool {
            name: name.into(),
            model: ModelId::new(model),
            cluster: name.into(),
            served_model: format!("served-{name}"),
            profile,
            limits,
            instances: Vec::new(),
            discovered: false,
            kind: Default::default(),
            tariff: None,
            known: true,
            metrics: routebalance_core::fleet::Metrics::Shared,
            upstream: Default::default(),
            share: None,
            slow_start: Default::default(),
        };
        let fleet = Fleet {
            models: vec![model("small"), model("large")],
            pools: vec![pool("a", 0), pool("b", 1), pool("c", 1)],
            instances: vec![],
        };
        for (name, found) in [
            ("a", Some(("small", "served-a"))),
            ("c", Some(("large", "served-c"))),
            ("large", Some(("large", "served-b"))),
            ("d", None),
        ] {
            let profile = profile_from_config(&fleet, name);
            assert_eq!(profile.as_ref().map(|p| (p.model_name.as_str(), p.served_model.as_str())), found, "{name}");
        }
    }
}
