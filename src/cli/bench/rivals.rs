//! `routebalance bench rivals`: other gateways before the same instances, with the same client. None of them reads a prompt to choose a
//! model: they choose an instance of the model that is asked for.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use comfy_table::Table;
use serde::Serialize;

use super::super::envoy::cpu_time_of;
use super::super::ports::free_ports;
use super::super::setup::target_dir;
use super::envoy::backend::Backend;
use super::envoy::variants::Variant;
use super::envoy::{BASE, CONNECTIONS, Effort, Parts, RATES, body_of, load, median, start};
use routebalance_lab::statistics::Quantiles;

/// What installs them, from the root of the repository.
pub(super) const INSTALL: &str =
    "python3 -m venv target/rivals && target/rivals/bin/pip install smg==1.13.0 vllm-router==0.1.17";
/// How long a gateway may take until it answers its first request.
const READY_WITHIN: Duration = Duration::from_secs(60);
const EVENTS: usize = 200;

/// A gateway that is not ours.
struct Rival {
    name: &'static str,
    /// Its command below `target/rivals/bin`.
    command: &'static str,
    /// Its arguments, before those for addresses.
    arguments: &'static [&'static str],
    /// What it does, and does not.
    does: &'static str,
}

const RIVALS: [Rival; 2] = [
    Rival {
        name: "SMG 1.13.0",
        command: "smg",
        arguments: &["launch", "--disable-tokenizer-autoload", "--log-level", "error"],
        does: "chooses an instance by cached prefixes and load; no choice of a model",
    },
    Rival {
        name: "vllm-router 0.1.17",
        command: "vllm-router",
        arguments: &["--log-level", "error"],
        does: "chooses an instance by cached prefixes and load; no choice of a model",
    },
];

/// What one gateway has shown.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    gateway: String,
    does: String,
    cpu_us_per_request: f64,
    requests_per_second: f64,
    /// At [`RATES`], microseconds.
    p50_us: Vec<u64>,
    p99_us: Vec<u64>,
}

/// A gateway that runs, ours or another.
struct Gateway {
    name: String,
    does: &'static str,
    address: std::net::SocketAddr,
    process: u32,
    /// Ends it when dropped.
    _kept: Box<dyn std::any::Any>,
}

/// Runs the benchmark: whoever is installed, and ours.
pub(super) async fn run(parts: &Parts, effort: &Effort) -> Result<Vec<Row>> {
    let backend = Backend::start(EVENTS).await?;
    let mut gateways = Vec::new();
    for rival in RIVALS {
        let command = binary(&rival);
        if command.is_file() {
            gateways.push(rival.start(&backend).await?);
        } else {
            eprintln!("{} is left out: it is not installed. `{INSTALL}` does that.", rival.name);
        }
    }
    for variant in [Variant::Route, Variant::Module] {
        let running = start(parts, variant, BASE, &backend).await?;
        let does = match variant {
            Variant::Module => "reads the prompt and chooses model and instance in one decision",
            _ => "sends requests to instances in turn",
        };
        let (address, process) = (running.envoy.address(), running.envoy.process());
        let name = format!("Envoy 1.40.0, {}", variant.name());
        gateways.push(Gateway { name, does, address, process, _kept: Box::new(running) });
    }
    measure(&gateways, effort).await
}

fn binary(rival: &Rival) -> PathBuf {
    target_dir().join("rivals/bin").join(rival.command)
}

impl Rival {
    /// Starts it before the instances of the base cell.
    async fn start(&self, backend: &Backend) -> Result<Gateway> {
        let ports = free_ports(2)?;
        let [address, metrics] = [ports.first(), ports.get(1)].map(|port| port.map(|port| port.address()));
        let (address, metrics) = address.zip(metrics).context("no ports")?;
        drop(ports);
        let workers = (0..BASE.instances).map(|i| format!("http://{}", backend.address(i)));
        let mut command = Command::new(binary(self));
        command.args(self.arguments).args(["--policy", "cache_aware", "--host", "127.0.0.1"]);
        command.args(["--port", &address.port().to_string(), "--prometheus-port", &metrics.port().to_string()]);
        command.arg("--worker-urls").args(workers);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = Killed(child.with_context(|| format!("{} does not start", self.name))?);
        ready(self, &mut child.0, address).await?;
        let process = child.0.id();
        Ok(Gateway { name: self.name.to_owned(), does: self.does, address, process, _kept: Box::new(child) })
    }
}

/// A process that ends with this value.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until it answers requests.
async fn ready(rival: &Rival, child: &mut Child, address: std::net::SocketAddr) -> Result<()> {
    let (started, body) = (Instant::now(), body_of(BASE));
    while started.elapsed() < READY_WITHIN {
        if let Some(status) = child.try_wait()? {
            bail!("{} has ended: {status}", rival.name);
        }
        let tried = load::closed(address, &body, 1, Duration::from_millis(20)).await;
        if tried.is_ok_and(|load| load.requests > 0) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    bail!("{} answers no request within {} s", rival.name, READY_WITHIN.as_secs())
}

async fn measure(gateways: &[Gateway], effort: &Effort) -> Result<Vec<Row>> {
    let body = body_of(BASE);
    let mut turns: Vec<Vec<(f64, f64)>> = vec![Vec::new(); gateways.len()];
    // The first round warms up.
    for round in 0..=effort.rounds {
        for (gateway, turns) in gateways.iter().zip(&mut turns) {
            let before = cpu_time_of(gateway.process).unwrap_or_default();
            let load = load::closed(gateway.address, &body, CONNECTIONS, effort.turn).await?;
            let spent = cpu_time_of(gateway.process).unwrap_or_default().saturating_sub(before);
            if round > 0 {
                turns.push((spent.as_secs_f64() * 1e6 / load.requests.max(1) as f64, load.per_second()));
            }
        }
    }
    let mut rows = Vec::new();
    for (gateway, turns) in gateways.iter().zip(turns) {
        let (mut p50_us, mut p99_us) = (Vec::new(), Vec::new());
        for rate in RATES {
            let latencies = load::open(gateway.address, &body, rate, effort.turn).await?.latencies_us;
            let quantiles = Quantiles::from_sorted(&latencies);
            p50_us.push(quantiles.p50);
            p99_us.push(quantiles.p99);
        }
        rows.push(Row {
            gateway: gateway.name.clone(),
            does: gateway.does.to_owned(),
            cpu_us_per_request: median(turns.iter().map(|turn| turn.0)),
            requests_per_second: median(turns.iter().map(|turn| turn.1)),
            p50_us,
            p99_us,
        });
    }
    Ok(rows)
}

/// The rows for people.
pub(super) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    let rates = RATES.map(|rate| format!("p50 / p99 at {rate:.0} per second, µs"));
    let header = ["gateway", "what it does", "CPU per request, µs", "requests per second"].map(str::to_owned);
    table.set_header(header.into_iter().chain(rates));
    for row in rows {
        let quantiles = row.p50_us.iter().zip(&row.p99_us).map(|(p50, p99)| format!("{p50} / {p99}"));
        let cells = [
            row.gateway.clone(),
            row.does.clone(),
            format!("{:.0}", row.cpu_us_per_request),
            format!("{:.0}", row.requests_per_second),
        ];
        table.add_row(cells.into_iter().chain(quantiles));
    }
    table
}
