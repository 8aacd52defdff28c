//! `routebalance bench envoy`: what a request costs in a real Envoy: processor time, throughput and latency, beside the same Envoy without
//! the module, with another filter in its place, and with the least that a filter of this technology can do.

pub(super) mod backend;
mod crossings;
pub(super) mod load;
pub(super) mod variants;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::Table;
use hyper::body::Bytes;
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::envoy::{Envoy, EnvoyOptions};
use super::super::gateway::{READY_WITHIN, set};
use super::super::ports::free_ports;
use super::super::render::render;
use super::body::request_body;
use backend::{Backend, STREAM};
use crossings::{Crossings, Written};
use routebalance_core::config::Config;
use variants::Variant;

pub(super) const CONNECTIONS: usize = 16;
const EVENTS: usize = 200;
/// Requests per second at which latency is compared: a tenth and a half of what the module manages on 2 shared cores.
pub(super) const RATES: [f64; 2] = [200.0, 1_000.0];

/// What is measured, and how thoroughly.
pub(super) struct Effort {
    /// Rounds of each cell: in each, every variant has its turn.
    pub(super) rounds: usize,
    /// How long a turn lasts.
    pub(super) turn: Duration,
}

/// What differs between cells.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Cell {
    name: &'static str,
    body_bytes: usize,
    streams: bool,
    pub(super) instances: usize,
    workers: u32,
}

pub(super) const BASE: Cell = Cell { name: "base", body_bytes: 1_000, streams: false, instances: 14, workers: 1 };

/// The base cell, and one axis at a time from it.
const CELLS: [Cell; 8] = [
    BASE,
    Cell { name: "10 KB", body_bytes: 10_000, ..BASE },
    Cell { name: "100 KB", body_bytes: 100_000, ..BASE },
    Cell { name: "1 MB", body_bytes: 1_000_000, ..BASE },
    Cell { name: "200 events", streams: true, ..BASE },
    Cell { name: "100 instances", instances: 100, ..BASE },
    Cell { name: "1,000 instances", instances: 1_000, ..BASE },
    Cell { name: "2 workers", workers: 2, ..BASE },
];

/// What a variant has shown in one cell: medians of its turns.
#[derive(Debug, Serialize)]
struct Measured {
    variant: Variant,
    cpu_us_per_request: f64,
    requests_per_second: f64,
    /// Processor time per request of each turn.
    turns_cpu_us: Vec<f64>,
    /// From the start of the process until it is ready.
    ready_cpu_s: f64,
    resident_mb: f64,
}

#[derive(Debug, Serialize)]
struct CellReport {
    cell: Cell,
    variants: Vec<Measured>,
}

/// Latency at a fixed rate in the base cell, microseconds.
#[derive(Debug, Serialize)]
struct Paced {
    variant: Variant,
    requests_per_second: f64,
    p50_us: u64,
    p99_us: u64,
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    module_bytes: u64,
    cells: Vec<CellReport>,
    paced: Vec<Paced>,
    crossings: Crossings,
    written: Option<Written>,
}

/// What is needed to start Envoys.
pub(super) struct Parts {
    pub(super) config: Value,
    pub(super) module: PathBuf,
    /// Whether the module is measured without some of its parts as well.
    pub(super) drills: bool,
    /// A module to compare with.
    pub(super) other: Option<PathBuf>,
    pub(super) floor: PathBuf,
    pub(super) envoy: PathBuf,
}

/// One variant's Envoy.
pub(super) struct Running {
    pub(super) envoy: Envoy,
    ready_cpu: Duration,
    _run_dir: TempDir,
}

/// Runs the benchmark.
pub(super) async fn run(parts: &Parts, effort: &Effort, only: Option<&str>) -> Result<Report> {
    let mut report = Report {
        module_bytes: std::fs::metadata(&parts.module)?.len(),
        cells: Vec::new(),
        paced: Vec::new(),
        crossings: Crossings::default(),
        written: None,
    };
    let backend = Backend::start(EVENTS).await?;
    for cell in CELLS.into_iter().filter(|cell| only.is_none_or(|only| cell.name == only)) {
        eprintln!("Measuring {} ...", cell.name);
        let mut running = Vec::new();
        let is_base = cell.name == BASE.name;
        for variant in Variant::all(is_base, parts.other.is_some(), parts.drills) {
            running.push((variant, start(parts, variant, cell, &backend).await?));
        }
        report.cells.push(measure(cell, &running, effort).await?);
        if is_base {
            report.paced = paced(&running, effort).await?;
        }
    }
    report.crossings = crossings::run(parts, &backend).await?;
    if only.is_none_or(|only| only == crossings::LARGE.name) {
        report.written = Some(crossings::written(parts, &backend).await?);
    }
    Ok(report)
}

/// The reference configuration with so many instances, on ports of its own.
fn located(parts: &Parts, instances: usize, backend: &Backend, run_dir: &TempDir) -> Result<(Value, Config)> {
    let mut json = parts.config.clone();
    super::fleet::grow(&mut json, instances)?;
    let pools = json["pools"].as_array_mut().context("the configuration has no pools")?;
    let addresses = pools.iter_mut().filter_map(|pool| pool.get_mut("instances")?.as_array_mut()).flatten();
    addresses.enumerate().for_each(|(i, address)| *address = json!(backend.address(i).to_string()));
    let ports = free_ports(2)?;
    for (field, port) in ["listen", "admin"].into_iter().zip(&ports) {
        set(&mut json, field, port.address().to_string())?;
    }
    set(&mut json, "module", parts.module.display().to_string())?;
    set(&mut json, "access_log", run_dir.path().join("access.log").display().to_string())?;
    let config = Config::parse(json.to_string().as_bytes())?;
    Ok((json, config))
}

pub(super) async fn start(parts: &Parts, variant: Variant, cell: Cell, backend: &Backend) -> Result<Running> {
    let run_dir = tempfile::Builder::new().prefix("routebalance-").tempdir()?;
    let (mut json, config) = located(parts, cell.instances, backend, &run_dir)?;
    if let (Variant::Other, Some(other)) = (variant, &parts.other) {
        set(&mut json, "module", other.display().to_string())?;
    }
    if variant == Variant::ModuleWithoutFlag {
        json["envoy"]["allow_on_headers_stop_iteration"] = false.into();
    }
    if let Variant::Without(part) = variant {
        json["drill"] = json!([part]);
    }
    let pool = config.fleet.pool(config.envoy.default_pool).context("the default pool is not there")?;
    let endpoints = pool.instances.iter().filter_map(|i| config.fleet.instance(*i)).map(|i| i.address.as_str());
    let targets = std::iter::once(pool.cluster.as_str()).chain(endpoints).collect::<Vec<_>>().join(" ");
    let options = EnvoyOptions {
        binary: parts.envoy.clone(),
        config: variant.configuration(&render(&json)?, &parts.floor, &targets)?,
        listen: config.envoy.listen,
        admin: config.envoy.admin,
        workers: cell.workers,
        log_level: "warning".to_owned(),
        ready_within: READY_WITHIN,
    };
    let envoy = Envoy::start(&options, run_dir.path()).await?;
    let ready_cpu = envoy.cpu_time().context("the system does not tell processor time: this benchmark needs Linux")?;
    Ok(Running { envoy, ready_cpu, _run_dir: run_dir })
}

/// What the client sends in a cell.
pub(super) fn body_of(cell: Cell) -> Bytes {
    let body = request_body(cell.body_bytes, true);
    if cell.streams { body.replacen('{', STREAM, 1).into() } else { body.into() }
}

async fn measure(cell: Cell, running: &[(Variant, Running)], effort: &Effort) -> Result<CellReport> {
    let body = body_of(cell);
    let mut turns: Vec<Vec<(f64, f64)>> = vec![Vec::new(); running.len()];
    // The first round warms connections and compilers up.
    for round in 0..=effort.rounds {
        for ((_, Running { envoy, .. }), turns) in running.iter().zip(&mut turns) {
            let before = envoy.cpu_time().unwrap_or_default();
            let load = load::closed(envoy.address(), &body, CONNECTIONS, effort.turn).await?;
            let spent = envoy.cpu_time().unwrap_or_default().saturating_sub(before);
            if round > 0 {
                turns.push((spent.as_secs_f64() * 1e6 / load.requests.max(1) as f64, load.per_second()));
            }
        }
    }
    let variants = running.iter().zip(turns).map(|((variant, running), turns)| Measured {
        variant: *variant,
        cpu_us_per_request: median(turns.iter().map(|turn| turn.0)),
        requests_per_second: median(turns.iter().map(|turn| turn.1)),
        turns_cpu_us: turns.iter().map(|turn| turn.0).collect(),
        ready_cpu_s: running.ready_cpu.as_secs_f64(),
        resident_mb: running.envoy.resident_bytes().unwrap_or_default() as f64 / 1e6,
    });
    Ok(CellReport { cell, variants: variants.collect() })
}

async fn paced(running: &[(Variant, Running)], effort: &Effort) -> Result<Vec<Paced>> {
    let body = body_of(BASE);
    let mut rows = Vec::new();
    for rate in RATES {
        for (variant, Running { envoy, .. }) in running {
            let mut latencies_us = Vec::new();
            for _ in 0..effort.rounds {
                latencies_us.extend(load::open(envoy.address(), &body, rate, effort.turn).await?.latencies_us);
            }
            latencies_us.sort_unstable();
            let quantiles = routebalance_lab::statistics::Quantiles::from_sorted(&latencies_us);
            rows.push(Paced {
                variant: *variant,
                requests_per_second: rate,
                p50_us: quantiles.p50,
                p99_us: quantiles.p99,
            });
        }
    }
    Ok(rows)
}

pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

impl Report {
    /// The measurements for people.
    pub(super) fn tables(&self) -> Vec<Table> {
        let mut tables = vec![self.costs(), self.latencies(), self.crossings.table()];
        tables.extend(self.written.as_ref().map(Written::table));
        tables
    }

    fn costs(&self) -> Table {
        let mut table = Table::new();
        let measured = self.cells.first().map_or(&[][..], |report| &report.variants);
        let header = ["CPU per request, µs"].into_iter().chain(measured.iter().map(|m| m.variant.name()));
        let above = ["above route", "above minimal", "throughput of route", "of minimal"];
        table.set_header(header.chain(above));
        for CellReport { cell, variants } in &self.cells {
            let cpu: Vec<f64> = variants.iter().map(|measured| measured.cpu_us_per_request).collect();
            let rate: Vec<f64> = variants.iter().map(|measured| measured.requests_per_second).collect();
            let (&[route, _, floor, module, ..], &[route_rate, _, floor_rate, module_rate, ..]) = (&cpu[..], &rate[..])
            else {
                continue;
            };
            let of = |column: &Measured| {
                let found = variants.iter().find(|measured| measured.variant == column.variant);
                found.map_or_else(String::new, |measured| format!("{:.0}", measured.cpu_us_per_request))
            };
            let cells = [cell.name.to_owned()].into_iter().chain(measured.iter().map(of));
            let above = [format!("{:.0}", module - route), format!("{:.0}", module - floor)];
            let shares = [route_rate, floor_rate].map(|rate| format!("{:.2}", module_rate / rate));
            table.add_row(cells.chain(above).chain(shares));
        }
        table
    }

    fn latencies(&self) -> Table {
        let mut table = Table::new();
        table.set_header(["at a fixed rate", "requests per second", "p50", "p99"]);
        for Paced { variant, requests_per_second, p50_us, p99_us } in &self.paced {
            let rate = format!("{requests_per_second:.0}");
            table.add_row([variant.name().to_owned(), rate, format!("{p50_us} µs"), format!("{p99_us} µs")]);
        }
        table
    }
}
