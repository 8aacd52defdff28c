//! A second runner: the same gateway, with the same instances, in virtual time.
//!
//! What Envoy does for the filter is acted out here in memory: requests are received and held, routes matched, endpoints chosen, attempts
//! made and followed by others, calls answered, all as the rendered configuration says. No socket and no clock is asked, so a scenario of
//! minutes takes moments, and what fails once fails always. Envoy itself is not shown by it: rows about Envoy's own work do not run here.

mod host;
mod rendered;
mod request;
mod upstream;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use routebalance_cli::fleet;
use routebalance_cli::render::render;
use routebalance_core::config::Config;
use routebalance_core::fleet::Pool;
use routebalance_core::gateway::Gateway;
use routebalance_core::predictor::Predictor;
use routebalance_core::router::Router;
use routebalance_core::worker::Statistic;
use routebalance_instance::RunningInstance;
use routebalance_instance::network::{Listener, Network};
use routebalance_instance::prompts::PromptSet;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};

use host::{Headers, HostCall, Memory, Process, ROOT, Wakes, value};
use rendered::{Cluster, Host, Rendered};

/// What the names of the filter's statistics begin with.
const STATS: &str = "routebalance.";

/// What to start.
pub(crate) struct Options {
    pub(crate) config: Value,
    /// Changes the rendered configuration, as its operator may.
    pub(crate) edit: Option<fn(&str) -> String>,
    pub(crate) workers: u32,
    /// Pools whose instances the filter reads from Envoy.
    pub(crate) discovered: &'static [&'static str],
    pub(crate) time_scale: f64,
    pub(crate) answers: Arc<PromptSet>,
}

/// A fleet and a gateway in front of it, in memory.
pub(crate) struct World {
    network: Network,
    instances: Vec<RunningInstance>,
    config: Config,
    router: Router,
    yaml: String,
    proxy: Arc<Proxy>,
    /// Accepts connections, and ticks.
    tasks: Vec<Task>,
}

/// A task that ends when nobody has it any more.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What stands for Envoy.
struct Proxy {
    rendered: Rendered,
    /// Its clusters, as they are now.
    clusters: Mutex<BTreeMap<String, Cluster>>,
    network: Network,
    workers: Vec<Mutex<Worker>>,
    stats: Mutex<BTreeMap<String, u64>>,
    log: Mutex<String>,
    access_log: Mutex<String>,
    /// Requests so far, and those under way.
    requests: AtomicU64,
    active: AtomicU64,
    /// Turns of those that balance by themselves.
    turns: AtomicUsize,
}

/// One worker thread: its VM and what that sees.
struct Worker {
    gateway: Gateway,
    host: Memory,
    wakes: Wakes,
    /// The number of the last context.
    context: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(crate) async fn start(options: Options) -> anyhow::Result<World> {
        let mut json = options.config;
        let listed = Config::parse(json.to_string().as_bytes())?;
        for pool in json["pools"].as_array_mut().expect("pools") {
            if options.discovered.iter().any(|name| pool["name"] == *name) {
                pool["instances"] = json!("discover");
            }
        }
        let rendered = render(&json)?;
        let yaml = options.edit.map_or_else(|| rendered.clone(), |edit| edit(&rendered));
        let network = Network::Memory(Arc::default());
        let instances = fleet::start(&listed, &network, &[], options.time_scale, Some(&options.answers)).await?;
        let predictor =
            if listed.predictor_enabled { Some(Predictor::load().map_err(anyhow::Error::msg)?) } else { None };
        let router = Router::new(Config::parse(json.to_string().as_bytes())?, predictor);
        let workers = options.workers;
        let proxy = Proxy::start(&router, &yaml, network.clone(), workers);
        for name in options.discovered {
            let pool = listed.fleet.pools.iter().find(|pool| pool.name == *name).expect("a pool to discover");
            let hosts =
                pool.instances.iter().map(|i| Host::new(listed.fleet.instances[i.index()].address.clone(), "HEALTHY"));
            lock(&proxy.clusters).get_mut(&pool.cluster).expect("its cluster").hosts = hosts.collect();
        }
        let mut world = World { network, instances, config: listed, router, yaml, proxy, tasks: Vec::new() };
        world.serve().await?;
        Ok(world)
    }

    /// Begins to accept connections, and to tick.
    async fn serve(&mut self) -> anyhow::Result<()> {
        let listener = self.network.listen(self.address()).await?;
        self.tasks.push(Task(tokio::spawn(accept(listener, Arc::clone(&self.proxy)))));
        for worker in 0..self.proxy.workers.len() {
            self.tasks.push(Task(tokio::spawn(tick(Arc::downgrade(&self.proxy), worker))));
        }
        Ok(())
    }

    /// Everything that the gateway knows is gone, and its connections are.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<()> {
        self.tasks.clear();
        // Who listens is gone once its task is.
        tokio::task::yield_now().await;
        let clusters = lock(&self.proxy.clusters).clone();
        self.proxy = Proxy::start(&self.router, &self.yaml, self.network.clone(), self.proxy.workers.len() as u32);
        *lock(&self.proxy.clusters) = clusters;
        self.serve().await
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.config.envoy.listen
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    pub(crate) fn instances(&self) -> &[RunningInstance] {
        &self.instances
    }

    pub(crate) fn access_log(&self) -> String {
        lock(&self.proxy.access_log).clone()
    }

    pub(crate) fn log_text(&self) -> String {
        lock(&self.proxy.log).clone()
    }

    /// The filter's statistics, names without their common prefix.
    pub(crate) fn stats(&self) -> BTreeMap<String, u64> {
        let stats = lock(&self.proxy.stats);
        stats.iter().filter_map(|(name, count)| Some((name.strip_prefix(STATS)?.to_owned(), *count))).collect()
    }

    /// Statistics that are Envoy's own, as far as scenarios ask for them.
    pub(crate) fn envoy_stats(&self, prefix: &str) -> BTreeMap<String, u64> {
        let total = self.proxy.requests.load(Ordering::Relaxed);
        let active = self.proxy.active.load(Ordering::Relaxed);
        let all =
            [("http.routebalance.downstream_rq_total", total), ("http.routebalance.downstream_rq_active", active)];
        all.into_iter().filter(|(name, _)| name.starts_with(prefix)).map(|(name, n)| (name.to_owned(), n)).collect()
    }

    /// Tells which endpoints a discovered pool's cluster has from now on, each with Envoy's name of its health.
    pub(crate) fn set_endpoints(&self, pool: &Pool, hosts: &[(SocketAddr, &str)]) {
        let hosts = hosts.iter().map(|(address, health)| Host::new(address.to_string(), health)).collect();
        lock(&self.proxy.clusters).get_mut(&pool.cluster).expect("its cluster").hosts = hosts;
    }
}

async fn accept(mut listener: Listener, proxy: Arc<Proxy>) {
    let mut connections = JoinSet::new();
    let mut count = 0;
    while let Ok(connection) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        count += 1;
        let (proxy, number) = (Arc::clone(&proxy), count);
        connections.spawn(async move {
            let service = service_fn(|request| {
                let proxy = Arc::clone(&proxy);
                async move { Ok::<_, std::convert::Infallible>(request::serve(proxy, number, request).await) }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(connection), service).await;
        });
    }
}

/// The ticks of one worker.
async fn tick(proxy: Weak<Proxy>, worker: usize) {
    // Workers do not tick in step.
    tokio::time::sleep(std::time::Duration::from_millis(3 * worker as u64)).await;
    loop {
        let Some(proxy) = proxy.upgrade() else { return };
        let period = proxy.enter(worker, ROOT, |gateway, host| {
            gateway.on_tick(host, ROOT);
            gateway.tick_period()
        });
        drop(proxy);
        tokio::time::sleep(period).await;
    }
}

impl Proxy {
    fn start(router: &Router, yaml: &str, network: Network, workers: u32) -> Arc<Proxy> {
        let process = Process::new();
        let worker = |owner| {
            let mut host = Memory::new(process.clone());
            process.tell_time(&mut host);
            let gateway = Gateway::new(router.clone(), owner, &mut host);
            Mutex::new(Worker { gateway, host, wakes: Wakes::default(), context: ROOT })
        };
        let unknown = router.unpredicted();
        let said = format!("the predictor does not know {}: their priors decide\n", unknown.join(", "));
        let rendered = Rendered::parse(yaml);
        Arc::new(Proxy {
            clusters: Mutex::new(rendered.clusters.clone()),
            rendered,
            network,
            workers: (1..=u64::from(workers)).map(worker).collect(),
            stats: Mutex::default(),
            log: Mutex::new(if unknown.is_empty() { String::new() } else { said }),
            access_log: Mutex::default(),
            requests: AtomicU64::new(0),
            active: AtomicU64::new(0),
            turns: AtomicUsize::new(0),
        })
    }

    /// Calls a worker's gateway in this context, and does what it asks for.
    fn enter<R>(self: &Arc<Self>, worker: usize, context: u32, f: impl FnOnce(&mut Gateway, &mut Memory) -> R) -> R {
        let mut locked = lock(&self.workers[worker]);
        let Worker { gateway, host, wakes, .. } = &mut *locked;
        host.board.clone().tell_time(host);
        host.current = context;
        let result = f(gateway, host);
        wakes.tell(host);
        let calls = std::mem::take(&mut host.calls);
        let statistics = [gateway.worker.statistics.take(), gateway.worker.statistics.take_counts()].concat();
        drop(locked);
        self.show(statistics);
        for call in calls {
            tokio::spawn(answer(Arc::downgrade(self), self.network.clone(), worker, call));
        }
        result
    }

    fn show(&self, statistics: Vec<Statistic>) {
        let mut stats = lock(&self.stats);
        for statistic in statistics {
            match statistic {
                Statistic::Count(name, more) => *stats.entry(name).or_default() += more,
                Statistic::Gauge(name, value) => drop(stats.insert(name, value)),
                Statistic::Observe(..) => {}
                Statistic::Warn(sentence) => *lock(&self.log) += &format!("{sentence}\n"),
            }
        }
    }

    /// A host of a cluster: the first of the named ones that it has, or the next one in turn, one of those that were tried only where
    /// there is no other. `named` loses what was looked at.
    fn choose(&self, cluster: &str, named: &mut std::vec::IntoIter<String>, tried: &[String]) -> Option<String> {
        let clusters = lock(&self.clusters);
        let cluster = clusters.get(cluster)?;
        if cluster.is_overridden
            && let Some(host) = named.find_map(|address| cluster.named(&address).cloned())
        {
            return Some(host.address);
        }
        let all: Vec<&Host> = cluster.balanced().collect();
        let untried: Vec<&Host> = all.iter().copied().filter(|host| !tried.contains(&host.address)).collect();
        let among = if untried.is_empty() { all } else { untried };
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        among.get(turn % among.len().max(1)).map(|host| host.address.clone())
    }

    /// The admin listener's answer to `/clusters?format=json`.
    fn clusters(&self) -> Value {
        let host = |host: &Host| {
            let (address, port) = host.address.rsplit_once(':').expect("a port");
            json!({
                "address": {"socket_address": {"address": address, "port_value": port.parse::<u16>().expect("a number")}},
                "health_status": {"eds_health_status": host.health},
            })
        };
        let clusters = lock(&self.clusters);
        let status = clusters.iter().map(|(name, cluster)| {
            json!({"name": name, "host_statuses": cluster.hosts.iter().map(host).collect::<Vec<_>>()})
        });
        json!({"cluster_statuses": status.collect::<Vec<_>>()})
    }
}

/// Answers a call of a gateway. What nobody answers in time, Envoy answers itself.
async fn answer(proxy: Weak<Proxy>, network: Network, worker: usize, call: HostCall) {
    let (headers, body) = if call.cluster == "routebalance-admin" {
        let is_known = value(&call.headers, ":path") == Some("/clusters?format=json");
        match proxy.upgrade() {
            Some(proxy) if is_known => (status(200), proxy.clusters().to_string().into_bytes()),
            _ => (status(404), Vec::new()),
        }
    } else {
        ask_instance(&proxy, &network, &call).await
    };
    let Some(proxy) = proxy.upgrade() else { return };
    proxy.enter(worker, ROOT, |gateway, host| {
        let size = body.len();
        host.call_response = (headers, body);
        gateway.on_call_response(host, ROOT, call.number, true, size);
    });
}

fn status(status: u16) -> Headers {
    vec![(":status".to_owned(), status.to_string())]
}

async fn ask_instance(proxy: &Weak<Proxy>, network: &Network, call: &HostCall) -> (Headers, Vec<u8>) {
    let named = value(&call.headers, routebalance_core::names::ENDPOINT_HEADER).map(str::to_owned);
    let mut named: std::vec::IntoIter<String> = Vec::from_iter(named).into_iter();
    let host = proxy.upgrade().and_then(|proxy| proxy.choose(&call.cluster, &mut named, &[]));
    let Some(host) = host else { return (status(503), Vec::new()) };
    let exchange = upstream::exchange(network, &host, &call.headers, call.body.clone());
    match tokio::time::timeout(call.timeout, exchange).await {
        Ok(Some(answer)) => answer,
        Ok(None) => (status(503), Vec::new()),
        Err(_) => (status(504), Vec::new()),
    }
}
