//! `routebalance bench simulator`: requests per second of CPU that the simulator gets through, by the number of requests and of
//! instances.

use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::Table;
use serde::Serialize;
use serde_json::Value;

use super::fleet::grow;
use routebalance_core::config::Config;
use routebalance_core::router::Router;
use routebalance_sim::contender::{Contender, Dispatcher, Published};
use routebalance_sim::simulation::{Options, Simulation};
use routebalance_sim::workload::{Arrivals, ChatMix, Workload, sustainable_rates};

/// Share of what the fleet sustains.
const UTILISATION: f64 = 0.7;
/// Instances of the reference fleet, and of a large one.
const REFERENCE: usize = 14;
const LARGE: usize = 1_000;

/// One line of the table.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    policy: &'static str,
    instances: usize,
    requests: usize,
    answered: usize,
    rate: f64,
    seconds: f64,
    requests_per_second: f64,
}

/// Runs the benchmark on one thread; estimates are computed before it begins.
pub(super) fn run(config: &Value, quick: bool) -> Result<Vec<Row>> {
    let weights = routebalance_core::fleet::Weights { quality: 1.0 / 3.0, latency: 1.0 / 3.0, cost: 1.0 / 3.0 };
    let paper = || Contender::Published(Published::new(weights));
    let queue = || Contender::dispatch(Dispatcher::ShortestQueue);
    let plain = Options { keep_decisions: false, ..Options::default() };
    let all_senses = Options { health: true, affinity: true, header_loads: true, ..plain.clone() };
    let mut rows = vec![
        row(config, "routebalance", Contender::Ours, REFERENCE, 10_000, &plain)?,
        row(config, "routebalance", Contender::Ours, REFERENCE, 100_000, &plain)?,
        row(config, "routebalance, all senses", Contender::Ours, REFERENCE, 100_000, &all_senses)?,
        row(config, "routebalance-paper", paper(), REFERENCE, 100_000, &plain)?,
        row(config, "shortest-queue", queue(), REFERENCE, 100_000, &plain)?,
    ];
    if !quick {
        rows.push(row(config, "routebalance", Contender::Ours, REFERENCE, 1_000_000, &plain)?);
        rows.push(row(config, "shortest-queue", queue(), LARGE, 1_000_000, &plain)?);
        rows.push(row(config, "routebalance", Contender::Ours, LARGE, 1_000_000, &plain)?);
    }
    Ok(rows)
}

fn row(
    config: &Value,
    policy: &'static str,
    contender: Contender,
    instances: usize,
    requests: usize,
    options: &Options,
) -> Result<Row> {
    let mut config = config.clone();
    grow(&mut config, instances)?;
    let config = Config::parse(config.to_string().as_bytes())?;
    let default_policy = config.default_policy.index();
    let router = Router::new(config, None);
    let fleet = &router.config().fleet;
    let templates = ChatMix::default().templates(fleet, 1);
    let rate = UTILISATION * sustainable_rates(fleet, &templates).iter().sum::<f64>();
    let times = Arrivals::Poisson { rate }.times_of(requests, 1);
    let workload = Workload::drawn(templates, &times, default_policy, 1);
    let last = times.last().copied().unwrap_or_default();
    let began = cpu_seconds()?;
    let mut simulation = Simulation::deciding_by(contender, &router, &workload, &[], options.clone());
    simulation.finish(last + Duration::from_secs(3_600));
    let seconds = cpu_seconds()? - began;
    let answered = simulation.outcomes().iter().filter(|o| o.is_answered()).count();
    Ok(Row { policy, instances, requests, answered, rate, seconds, requests_per_second: requests as f64 / seconds })
}

/// Seconds of CPU that this thread has used: what else the machine does must not count.
fn cpu_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").context("this needs Linux's /proc")?;
    let ns = text.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok());
    Ok(ns.context("/proc/thread-self/schedstat does not begin with a number")? / 1e9)
}

/// The rows for people.
pub(super) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.set_header([
        "policy",
        "instances",
        "requests",
        "answered",
        "offered per second",
        "CPU",
        "requests per second of CPU",
    ]);
    for row in rows {
        table.add_row([
            row.policy.to_owned(),
            row.instances.to_string(),
            row.requests.to_string(),
            row.answered.to_string(),
            format!("{:.1}", row.rate),
            format!("{:.2} s", row.seconds),
            format!("{:.0}", row.requests_per_second),
        ]);
    }
    table
}
