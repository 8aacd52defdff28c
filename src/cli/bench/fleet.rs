//! `routebalance bench fleet`: what a decision costs inside a real Envoy, and how often reports come, by the number of instances.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use comfy_table::Table;
use serde::Serialize;
use serde_json::{Value, json};

use super::super::gateway::{Gateway, GatewayOptions};
use super::body::{decisions, logged_us, request_body};
use routebalance_lab::statistics::Quantiles;

/// Instances of the whole fleet; the first pool that generates gets what is missing.
const INSTANCES: [usize; 3] = [14, 100, 1_000];
const BODY_BYTES: usize = 1_000;
/// How long scrapes are counted: several of their periods.
const COUNTED: Duration = Duration::from_secs(12);

/// One line of the table.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    instances: usize,
    decision_us: Quantiles<u64>,
    scrapes_per_second: f64,
    seconds_between_reports: f64,
}

/// Runs the benchmark.
pub(super) async fn run(options: &GatewayOptions, requests: u32) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for instances in INSTANCES {
        let mut options = options.clone();
        grow(&mut options.config, instances)?;
        let gateway = Gateway::start(options).await?;
        let scrapes = async || -> Result<u64> {
            let stats = gateway.envoy().stats("wasmcustom.routebalance.scrapes.ok").await?;
            Ok(stats.values().sum())
        };
        let (before, started) = (scrapes().await?, Instant::now());
        tokio::time::sleep(COUNTED).await;
        let per_second = (scrapes().await? - before) as f64 / started.elapsed().as_secs_f64();
        let body = request_body(BODY_BYTES, true);
        let name = format!("bench-{instances}");
        let lines = decisions(&gateway, &reqwest::Client::new(), &body, requests, &name).await?;
        rows.push(Row {
            instances: gateway.instances().len(),
            decision_us: logged_us(&lines, "decision_us")?,
            scrapes_per_second: per_second,
            seconds_between_reports: gateway.instances().len() as f64 / per_second,
        });
    }
    Ok(rows)
}

/// Gives the first pool as many instances more as the fleet lacks.
pub(super) fn grow(config: &mut Value, instances: usize) -> Result<()> {
    let pools = config["pools"].as_array_mut().context("the configuration has no pools")?;
    let now: usize = pools.iter().filter_map(|pool| pool["instances"].as_array()).map(Vec::len).sum();
    let first =
        pools.first_mut().and_then(|pool| pool["instances"].as_array_mut()).context("a pool has no instances")?;
    first.extend((now..instances).map(|i| json!(format!("127.1.{}.{}:1", i / 250, i % 250 + 1))));
    Ok(())
}

/// The rows for people.
pub(super) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.set_header(["instances", "decision p50", "p99", "scrapes per second", "seconds between reports of one"]);
    for row in rows {
        table.add_row([
            row.instances.to_string(),
            format!("{} µs", row.decision_us.p50),
            format!("{} µs", row.decision_us.p99),
            format!("{:.0}", row.scrapes_per_second),
            format!("{:.2}", row.seconds_between_reports),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use routebalance_core::config::Config;

    #[test]
    fn a_fleet_grows_to_its_size() {
        let mut config: Value = serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap();
        for instances in INSTANCES {
            grow(&mut config, instances).unwrap();
            let fleet = Config::parse(config.to_string().as_bytes()).unwrap().fleet;
            assert_eq!(fleet.instances.len(), instances);
        }
    }
}
