//! How often a request and a tick cross between the VM and its host, counted exactly: Envoy logs each crossing.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use comfy_table::Table;
use serde::Serialize;

use super::super::super::crossings::{Callback, callbacks};
use super::backend::Backend;
use super::variants::Variant;
use super::{BASE, Cell, Parts, body_of, load, start};
use std::time::Duration;

/// Crossings by callback.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Crossings {
    requests: u64,
    per_request: f64,
    per_idle_tick: f64,
    /// Of requests and ticks together, and of ticks alone.
    callbacks: BTreeMap<String, Callback>,
}

const REQUESTS_PER_SECOND: f64 = 100.0;
const BUSY: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(2);

/// The fleet whose shared data is measured, and the load: 1,000 requests in all.
pub(super) const LARGE: Cell = Cell { name: "4,096 instances, 8 workers", instances: 4_096, workers: 8, ..BASE };
const LARGE_PER_SECOND: f64 = 200.0;
const LARGE_FOR: Duration = Duration::from_secs(5);

/// What is written to shared data while a large fleet serves, bytes per request.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Written {
    requests: u64,
    /// In callbacks of requests.
    by_requests: f64,
    /// In ticks and in answers to scrapes.
    by_ticks: f64,
}

/// Counts what is written to shared data, as Envoy's log tells the sizes.
pub(super) async fn written(parts: &Parts, backend: &Backend) -> Result<Written> {
    let running = start(parts, Variant::Module, LARGE, backend).await?;
    let envoy = &running.envoy;
    load::open(envoy.address(), &body_of(LARGE), LARGE_PER_SECOND, BUSY).await?;
    let read = envoy.log_text().len();
    envoy.log_level("wasm", "trace").await?;
    let load = load::open(envoy.address(), &body_of(LARGE), LARGE_PER_SECOND, LARGE_FOR).await?;
    let found = callbacks(envoy.log_text().get(read..).unwrap_or_default());
    envoy.log_level("wasm", "warning").await?;
    ensure!(load.requests > 0 && !found.is_empty(), "Envoy has logged no crossing");
    let (of_ticks, of_requests): (Vec<_>, Vec<_>) =
        found.iter().partition(|(name, _)| OF_THE_VM.contains(&name.as_str()));
    let each = |of: Vec<(&String, &Callback)>| {
        of.iter().map(|(_, callback)| callback.shared_bytes).sum::<u64>() as f64 / load.requests as f64
    };
    Ok(Written { requests: load.requests, by_requests: each(of_requests), by_ticks: each(of_ticks) })
}

impl Written {
    /// The bytes for people.
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new();
        table.set_header([LARGE.name, "bytes to shared data per request"]);
        table.add_row(["by requests".to_owned(), format!("{:.0}", self.by_requests)]);
        table.add_row(["by ticks and scrapes".to_owned(), format!("{:.0}", self.by_ticks)]);
        table
    }
}

/// Callbacks that are not of one request.
const OF_THE_VM: [&str; 2] = ["proxy_on_tick", "proxy_on_http_call_response"];

/// Counts what crosses while requests come, and while none comes.
pub(super) async fn run(parts: &Parts, backend: &Backend) -> Result<Crossings> {
    let cell = Cell { workers: 2, ..BASE };
    let running = start(parts, Variant::Module, cell, backend).await?;
    let envoy = &running.envoy;
    // Whoever is first defines what all use.
    load::open(envoy.address(), &body_of(cell), REQUESTS_PER_SECOND, BUSY).await?;
    let mut read = envoy.log_text().len();
    envoy.log_level("wasm", "trace").await?;
    let load = load::open(envoy.address(), &body_of(cell), REQUESTS_PER_SECOND, BUSY).await?;
    let busy = callbacks(envoy.log_text().get(read..).unwrap_or_default());
    read = envoy.log_text().len();
    tokio::time::sleep(IDLE).await;
    let idle = callbacks(envoy.log_text().get(read..).unwrap_or_default());
    envoy.log_level("wasm", "warning").await?;
    ensure!(load.requests > 0 && !busy.is_empty(), "Envoy has logged no crossing");
    let of_requests = busy.iter().filter(|(name, _)| !OF_THE_VM.contains(&name.as_str()));
    let crossed: u64 = of_requests.flat_map(|(_, callback)| callback.functions.values()).sum();
    let ticks = idle.get("proxy_on_tick").cloned().unwrap_or_default();
    Ok(Crossings {
        requests: load.requests,
        per_request: crossed as f64 / load.requests as f64,
        per_idle_tick: ticks.functions.values().sum::<u64>() as f64 / ticks.calls.max(1) as f64,
        callbacks: busy.into_iter().chain([("proxy_on_tick, idle".to_owned(), ticks)]).collect(),
    })
}

impl Crossings {
    /// The counts for people.
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new();
        table.set_header(["crossings", "callbacks", "crossings", "of which"]);
        let whole = |what: &str, value: f64| [what.to_owned(), String::new(), format!("{value:.1}"), String::new()];
        table.add_row(whole("per request", self.per_request));
        table.add_row(whole("per idle tick", self.per_idle_tick));
        for (name, Callback { calls, functions, .. }) in &self.callbacks {
            let each = |count: u64| count as f64 / (*calls).max(1) as f64;
            let mut by_count: Vec<(&String, &u64)> = functions.iter().collect();
            by_count.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let most = by_count.iter().map(|(name, count)| format!("{name} {:.2}", each(**count)));
            let sum = functions.values().sum();
            table.add_row([
                name.clone(),
                calls.to_string(),
                format!("{:.2}", each(sum)),
                most.collect::<Vec<_>>().join("\n"),
            ]);
        }
        table
    }
}
