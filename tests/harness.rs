//! The stage of the scenarios: one gateway at a time, taken from scenario to scenario, healed and checked after each.
//!
//! There are two kinds of stage: on one the gateway is a real Envoy with the module and time is real, on the other it is acted out in
//! memory and time is virtual.

pub(crate) mod certificates;
mod messages;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use libtest_mimic::{Failed, Trial};
use routebalance_cli::envoy_binary::{envoy_binary, older_envoy};
use routebalance_cli::gateway::{self, GatewayOptions};
use routebalance_cli::schema::SCHEMA;
use routebalance_cli::setup::build_filter;
use routebalance_core::config::Config;
use routebalance_core::fleet::{InstanceId, Pool};
use routebalance_instance::network::{Connection, Network};
use routebalance_instance::prompts::PromptSet;
use routebalance_instance::{Fault, Received, RunningInstance};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

pub(crate) use self::messages::{Reply, Request, header, status};
use crate::http::{self, Answer};
use crate::virtual_time::{self, World};

/// How much faster than real ones the instances work.
const TIME_SCALE: f64 = 20.0;
/// How long anything may take that must happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// What Envoy puts before the names of the filter's statistics.
pub(crate) const STATS: &str = "wasmcustom.routebalance.";
/// The header by which a request is found again at the instances.
const TEST_ID: &str = "x-test-id";

/// The module and Envoy: built and fetched by whichever scenario comes first.
static SET_UP: LazyLock<Result<(PathBuf, PathBuf), String>> = LazyLock::new(|| {
    let say = |problem: anyhow::Error| format!("{problem:#}");
    Ok((build_filter().map_err(say)?, envoy_binary().map_err(say)?))
});

/// The module and Envoy, for a test that brings its own parts.
pub(crate) fn set_up() -> (PathBuf, PathBuf) {
    SET_UP.clone().expect("the module is built and Envoy is there")
}

/// A gateway that scenarios share.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) name: &'static str,
    /// Changes the reference configuration.
    pub(crate) change: fn(&mut Value),
    /// Changes what is rendered from it.
    pub(crate) edit: Option<fn(&str) -> String>,
    /// Whether scenarios count on load reports.
    pub(crate) reports: bool,
    /// How many times as long as recorded the answers to the demo's prompts are.
    pub(crate) length: f64,
    /// Envoy's worker threads.
    pub(crate) workers: u32,
    /// Another version of Envoy than the pinned one.
    pub(crate) version: Option<&'static str>,
    /// Pools whose instances the filter reads from Envoy.
    pub(crate) discovered: &'static [&'static str],
}

impl Setup {
    /// The reference configuration as it is.
    pub(crate) const PLAIN: Setup = Setup {
        name: "plain",
        change: |_| {},
        edit: None,
        reports: true,
        length: 1.0,
        workers: 2,
        version: None,
        discovered: &[],
    };

    fn config(&self, has_flag: bool) -> anyhow::Result<Value> {
        let mut config: Value = serde_json::from_str(include_str!("../envoy/routebalance.json"))?;
        // Tests wait for reports to come and to grow old.
        config["telemetry"] =
            serde_json::json!({"scrape_period_ms": 100, "scrape_timeout_ms": 500, "fresh_ms": 500, "max_age_ms": 1500});
        // Nor do they wait long until failures are forgotten.
        config["health"] = serde_json::json!({"base_ejection_ms": 500, "max_ejection_ms": 1000});
        if !has_flag {
            config["envoy"]["allow_on_headers_stop_iteration"] = false.into();
        }
        (self.change)(&mut config);
        // Nor has an editor anything against it.
        let schema: Value = serde_json::from_str(SCHEMA)?;
        jsonschema::validate(&schema, &config).map_err(|problem| anyhow!("{}: {problem}", problem.instance_path()))?;
        Ok(config)
    }

    /// Starts it in memory.
    async fn start_in_memory(&self) -> anyhow::Result<World> {
        let options = virtual_time::Options {
            config: self.config(true)?,
            edit: self.edit,
            workers: self.workers,
            discovered: self.discovered,
            time_scale: TIME_SCALE,
            answers: Arc::new(PromptSet::from_jsonl(&prompts(self.length).join("\n"))?),
        };
        World::start(options).await
    }

    /// Starts it with a real Envoy, whose plugin has `allow_on_headers_stop_iteration` or not.
    pub(crate) async fn start(&self, has_flag: bool) -> anyhow::Result<gateway::Gateway> {
        let config = self.config(has_flag)?;
        let (module, pinned) = SET_UP.clone().map_err(anyhow::Error::msg)?;
        let envoy = self.version.map_or(Ok(pinned), older_envoy)?;
        let answers = PromptSet::from_jsonl(&prompts(self.length).join("\n"))?;
        let options = GatewayOptions {
            config,
            module,
            envoy,
            workers: self.workers,
            discovered: self.discovered.iter().map(|pool| (*pool).to_owned()).collect(),
            log_level: "info".to_owned(),
            time_scale: TIME_SCALE,
            answers: Some(Arc::new(answers)),
            edit: self.edit,
        };
        gateway::Gateway::start(options).await
    }
}

/// The demo's prompts, one JSON object each, with answers so many times as long as recorded.
pub(crate) fn prompts(length: f64) -> Vec<String> {
    let longer = |line: &str| {
        let mut row: Value = serde_json::from_str(line).expect("a row");
        for tokens in row["len"].as_object_mut().expect("lengths").values_mut() {
            *tokens = (tokens.as_f64().expect("a number") * length).into();
        }
        row.to_string()
    };
    include_str!("../models/data/demo_prompts.jsonl").lines().map(longer).collect()
}

/// What a gateway is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Acted out in memory, in virtual time.
    Virtual,
    /// A real Envoy.
    Envoy,
    /// A real Envoy whose plugin has no `allow_on_headers_stop_iteration`.
    EnvoyWithoutFlag,
}

impl Kind {
    /// What names of its scenarios begin with.
    fn prefix(self) -> &'static str {
        match self {
            Kind::Virtual => "virtual time, ",
            Kind::Envoy => "",
            Kind::EnvoyWithoutFlag => "without the flag, ",
        }
    }
}

/// Runs scenarios; holds the gateway that the last one has left.
pub(crate) struct Stage {
    runtime: Runtime,
    kind: Kind,
    gateway: Mutex<Option<Gateway>>,
}

impl Stage {
    pub(crate) fn new(kind: Kind) -> Arc<Self> {
        let runtime = match kind {
            Kind::Virtual => Builder::new_current_thread().enable_all().start_paused(true).build(),
            Kind::Envoy | Kind::EnvoyWithoutFlag => Runtime::new(),
        };
        Arc::new(Self { runtime: runtime.expect("a runtime"), kind, gateway: Mutex::default() })
    }

    /// Whether its plugins have `allow_on_headers_stop_iteration` as far as set-ups do not say anything else.
    pub(crate) fn has_flag(&self) -> bool {
        self.kind == Kind::Envoy
    }

    fn name(&self, setup: &Setup, name: &str) -> String {
        format!("{}{}: {name}", self.kind.prefix(), setup.name)
    }

    /// A scenario about Envoy's own work, which only Envoy shows.
    pub(crate) fn envoy(
        self: &Arc<Self>,
        name: &str,
        setup: &'static Setup,
        scenario: impl AsyncFnOnce(&Gateway) + Send + 'static,
    ) -> Option<Trial> {
        (self.kind != Kind::Virtual).then(|| self.trial(name, setup, scenario))?
    }

    /// A scenario on a gateway of this set-up. Whatever it does to instances is undone afterwards, and nothing may be left
    /// outstanding.
    pub(crate) fn trial(
        self: &Arc<Self>,
        name: &str,
        setup: &'static Setup,
        scenario: impl AsyncFnOnce(&Gateway) + Send + 'static,
    ) -> Option<Trial> {
        let stage = Arc::clone(self);
        Some(Trial::test(self.name(setup, name), move || {
            let gateway = stage.gateway(setup).map_err(|problem| format!("{problem:#}"))?;
            stage.runtime.block_on(async {
                scenario(&gateway).await;
                gateway.calm().await;
            });
            *stage.slot() = Some(gateway);
            Ok(())
        }))
    }

    /// A scenario on a gateway of its own.
    pub(crate) fn alone(
        self: &Arc<Self>,
        name: &str,
        setup: &'static Setup,
        scenario: impl AsyncFnOnce(Gateway) + Send + 'static,
    ) -> Option<Trial> {
        let stage = Arc::clone(self);
        Some(Trial::test(self.name(setup, name), move || {
            let gateway = stage.gateway(setup).map_err(|problem| format!("{problem:#}"))?;
            stage.runtime.block_on(scenario(gateway));
            Ok(())
        }))
    }

    /// The same, about Envoy's own work.
    pub(crate) fn envoy_alone(
        self: &Arc<Self>,
        name: &str,
        setup: &'static Setup,
        scenario: impl AsyncFnOnce(Gateway) + Send + 'static,
    ) -> Option<Trial> {
        (self.kind != Kind::Virtual).then(|| self.alone(name, setup, scenario))?
    }

    /// A test that brings its own parts.
    pub(crate) fn plain(self: &Arc<Self>, name: &str, test: impl AsyncFnOnce() + Send + 'static) -> Option<Trial> {
        let stage = Arc::clone(self);
        let trial = Trial::test(name, move || -> Result<(), Failed> {
            stage.runtime.block_on(test());
            Ok(())
        });
        (self.kind == Kind::Envoy).then_some(trial)
    }

    fn gateway(&self, setup: &'static Setup) -> anyhow::Result<Gateway> {
        match self.slot().take() {
            Some(gateway) if gateway.setup.name == setup.name => Ok(gateway),
            // One Envoy at a time: the old one ends first.
            other => {
                drop(other);
                self.runtime.block_on(async {
                    let running = match self.kind {
                        Kind::Virtual => Running::InMemory(Box::new(setup.start_in_memory().await?)),
                        kind => Running::Envoy(Box::new(setup.start(kind == Kind::Envoy).await?)),
                    };
                    let gateway = Gateway::new(setup, running);
                    gateway.reported().await;
                    Ok(gateway)
                })
            }
        }
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Gateway>> {
        self.gateway.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fleet and what is in front of it.
enum Running {
    Envoy(Box<gateway::Gateway>),
    InMemory(Box<World>),
}

/// A fleet and a gateway in front of it.
pub(crate) struct Gateway {
    setup: &'static Setup,
    running: Running,
    faulty: Mutex<BTreeSet<InstanceId>>,
    requests: AtomicU64,
}

impl Gateway {
    fn new(setup: &'static Setup, running: Running) -> Self {
        Self { setup, running, faulty: Mutex::default(), requests: AtomicU64::default() }
    }

    /// Kills Envoy and starts it again.
    pub(crate) async fn restart_envoy(&mut self) {
        match &mut self.running {
            Running::Envoy(running) => running.restart_envoy().await.expect("Envoy starts again"),
            Running::InMemory(world) => world.restart().await.expect("it starts again"),
        }
        self.reported().await;
    }

    pub(crate) fn config(&self) -> &Config {
        match &self.running {
            Running::Envoy(running) => running.config(),
            Running::InMemory(world) => world.config(),
        }
    }

    /// Envoy, for scenarios about its own work.
    pub(crate) fn envoy(&self) -> &routebalance_cli::envoy::Envoy {
        self.running().envoy()
    }

    pub(crate) fn access_log(&self) -> String {
        match &self.running {
            Running::Envoy(running) => running.access_log(),
            Running::InMemory(world) => world.access_log(),
        }
    }

    /// What Envoy's log says.
    pub(crate) fn log_text(&self) -> String {
        match &self.running {
            Running::Envoy(running) => running.envoy().log_text(),
            Running::InMemory(world) => world.log_text(),
        }
    }

    pub(crate) fn network(&self) -> &Network {
        match &self.running {
            Running::Envoy(_) => &Network::Sockets,
            Running::InMemory(world) => world.network(),
        }
    }

    fn instances(&self) -> &[RunningInstance] {
        match &self.running {
            Running::Envoy(running) => running.instances(),
            Running::InMemory(world) => world.instances(),
        }
    }

    pub(crate) fn instance(&self, id: InstanceId) -> &RunningInstance {
        &self.instances()[id.index()]
    }

    /// Tells which endpoints a discovered pool's cluster has from now on, each with Envoy's name of its health.
    pub(crate) fn set_endpoints(&self, pool: &Pool, hosts: &[(SocketAddr, &str)]) {
        match &self.running {
            Running::Envoy(running) => running.set_endpoints(pool, hosts).expect("the endpoints are written"),
            Running::InMemory(world) => world.set_endpoints(pool, hosts),
        }
    }

    pub(crate) fn pool(&self, name: &str) -> &Pool {
        self.config().fleet.pools.iter().find(|p| p.name == name).expect("a pool of the configuration")
    }

    pub(crate) fn running(&self) -> &gateway::Gateway {
        match &self.running {
            Running::Envoy(running) => running,
            Running::InMemory(_) => panic!("a scenario about Envoy's own work is marked as one"),
        }
    }

    pub(crate) fn pool_of(&self, instance: InstanceId) -> &Pool {
        self.config().fleet.pool_of(instance).expect("an instance of the fleet").1
    }

    pub(crate) async fn connect(&self) -> Connection {
        let address = match &self.running {
            Running::Envoy(running) => running.envoy().address(),
            Running::InMemory(world) => world.address(),
        };
        self.network().connect(address).await.expect("a connection")
    }

    /// A connection to an instance itself.
    pub(crate) async fn connect_to(&self, instance: InstanceId) -> Connection {
        self.network().connect(self.instance(instance).address()).await.expect("a connection")
    }

    /// Gives a request the mark by which it is found at the instances.
    pub(crate) fn mark(&self, request: &Request) -> (Request, String) {
        let id = format!("test-{}", self.requests.fetch_add(1, Ordering::Relaxed));
        (request.clone().header(TEST_ID, &id), id)
    }

    /// What the instances have received of a marked request.
    pub(crate) fn arrivals(&self, id: &str) -> Vec<(InstanceId, Received)> {
        let logs = self.instances().iter().map(|i| i.requests_that(|r| r.header(TEST_ID) == Some(id))).enumerate();
        logs.flat_map(|(instance, log)| log.into_iter().map(move |request| (InstanceId::new(instance), request)))
            .collect()
    }

    /// Sends a request on a connection of its own, so that either worker may get it.
    pub(crate) async fn send(&self, request: &Request) -> Reply {
        let (request, id) = self.mark(request);
        let mut tcp = self.connect().await;
        request.write(&mut tcp).await;
        self.reply(http::receive(&mut tcp).await, &id)
    }

    pub(crate) fn reply(&self, answer: Answer, id: &str) -> Reply {
        Reply { status: status(&answer), arrivals: self.arrivals(id), answer }
    }

    /// Makes something go wrong at an instance until the scenario ends.
    pub(crate) async fn fault(&self, instance: InstanceId, fault: Fault) {
        self.faulty.lock().unwrap_or_else(PoisonError::into_inner).insert(instance);
        self.instance(instance).set_fault(fault).await.expect("the fault is set");
    }

    /// Makes something go wrong at every instance of a pool until the scenario ends.
    pub(crate) async fn fault_pool(&self, pool: &str, fault: Fault) {
        for instance in self.pool(pool).instances.clone() {
            self.fault(instance, fault).await;
        }
    }

    /// The filter's statistics, names without their common prefix.
    pub(crate) async fn stats(&self) -> BTreeMap<String, u64> {
        match &self.running {
            Running::InMemory(world) => world.stats(),
            Running::Envoy(running) => {
                // Every worker shows what it has counted at its next tick.
                tokio::time::sleep(2 * routebalance_core::gateway::TICK).await;
                let stats = running.envoy().stats("").await.expect("Envoy lives and answers");
                // Envoys before 1.39 put the name of a cluster before it.
                let own =
                    stats.into_iter().filter_map(|(name, value)| Some((name.split_once(STATS)?.1.to_owned(), value)));
                own.collect()
            }
        }
    }

    /// Envoy's own statistics.
    pub(crate) async fn envoy_stats(&self, prefix: &str) -> BTreeMap<String, u64> {
        match &self.running {
            Running::InMemory(world) => world.envoy_stats(prefix),
            Running::Envoy(running) => running.envoy().stats(prefix).await.expect("Envoy lives and answers"),
        }
    }

    pub(crate) async fn stat(&self, name: &str) -> u64 {
        self.stats().await.get(name).copied().unwrap_or(0)
    }

    /// Waits until so many more scrapes have had this outcome (`ok`, `failed`, `unusable`).
    pub(crate) async fn scrapes(&self, outcome: &str, more: u64) {
        let name = format!("scrapes.{outcome}");
        let before = self.stat(&name).await;
        eventually("scrapes", || self.stat(&name), |seen| *seen >= before + more).await;
    }

    /// Undoes the faults and waits until nothing is outstanding, on either side.
    pub(crate) async fn calm(&self) {
        let faulty = std::mem::take(&mut *self.faulty.lock().unwrap_or_else(PoisonError::into_inner));
        for instance in &faulty {
            self.instance(*instance).set_fault(Fault::None).await.expect("the instance is well again");
        }
        eventually("the reckoned load", || self.stats(), |stats| outstanding(stats).is_none()).await;
        let working = async || {
            let gauges = self.instances().iter().map(RunningInstance::gauges);
            gauges.map(|g| g.running + g.waiting).sum::<usize>()
        };
        eventually("the instances' load", working, |working| *working == 0).await;
        self.instances().iter().for_each(RunningInstance::forget_requests);
        if faulty.is_empty() {
            return;
        }
        let ejected = async || {
            let stats = self.envoy_stats("cluster.").await;
            stats.iter().filter(|(name, _)| name.ends_with(".ejections_active")).map(|(_, n)| n).sum::<u64>()
        };
        let probed = async || {
            let stats = self.stats().await;
            stats.iter().filter(|(name, _)| name.starts_with("ejected_instances.")).map(|(_, n)| n).sum::<u64>()
        };
        eventually("instances that the filter has ejected", probed, |ejected| *ejected == 0).await;
        eventually("instances that Envoy has ejected", ejected, |ejected| *ejected == 0).await;
        self.reported().await;
    }

    /// Waits until every instance has reported its load.
    async fn reported(&self) {
        if self.setup.reports {
            // After twice as many scrapes as there are instances, each was reached.
            self.scrapes("ok", 2 * self.instances().len() as u64).await;
        }
    }
}

/// What the gauges show as outstanding, if anything; none where there is no filter.
fn outstanding(stats: &BTreeMap<String, u64>) -> Option<String> {
    let sum = |prefix: &str| stats.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, n)| n).sum::<u64>();
    // The gauges follow in the next tick: they count when they have seen every dispatch.
    let (decided, dispatched) = (sum("decisions.") + sum("moves"), sum("dispatched_requests."));
    let left = sum("outstanding_");
    (dispatched != decided || left != 0).then(|| format!("{left} of {dispatched} (decided: {decided})"))
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log_text();
            let tail = |text: &str| text.lines().rev().take(8).map(|l| format!("  {l}\n")).collect::<String>();
            eprintln!("Envoy's log, last lines first:\n{}The access log:\n{}", tail(&log), tail(&self.access_log()));
        }
    }
}

/// Looks until `done`, or fails with what was seen last.
pub(crate) async fn eventually<T: Debug>(what: &str, mut look: impl AsyncFnMut() -> T, done: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        let seen = look().await;
        if done(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "{what}: after {SOON:?} still {seen:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
