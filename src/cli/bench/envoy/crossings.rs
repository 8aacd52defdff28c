//! How often a request and a tick cross between the VM and its host, counted exactly: Envoy logs each crossing.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use comfy_table::Table;
use serde::Serialize;

use super::backend::Backend;
use super::variants::Variant;
use super::{BASE, Cell, Parts, body_of, load, start};
use std::time::Duration;

/// Crossings of one kind of callback.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Callback {
    /// How often it came.
    calls: u64,
    /// What crossed meanwhile, by the function's name; the call itself is one.
    functions: BTreeMap<String, u64>,
}

/// Crossings by callback.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Crossings {
    requests: u64,
    per_request: f64,
    per_idle_tick: f64,
    /// Of requests and ticks together.
    callbacks: BTreeMap<String, Callback>,
}

const REQUESTS_PER_SECOND: f64 = 100.0;
const BUSY: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(2);

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
        callbacks: busy,
    })
}

/// The crossings of a log, by the callback in which they were. Each of Envoy's threads has its own.
fn callbacks(log: &str) -> BTreeMap<String, Callback> {
    let mut current: BTreeMap<&str, String> = BTreeMap::new();
    let mut found: BTreeMap<String, Callback> = BTreeMap::new();
    for line in log.lines() {
        let Some((thread, name, is_call)) = crossing(line) else { continue };
        // The host takes memory in the VM for what it returns: that is no callback.
        let is_callback = is_call && name.starts_with("proxy_on_") && name != "proxy_on_memory_allocate";
        if is_callback {
            current.insert(thread, name.to_owned());
        }
        let callback = current.get(thread).cloned().unwrap_or_else(|| name.to_owned());
        let entry = found.entry(callback).or_default();
        entry.calls += u64::from(is_callback);
        *entry.functions.entry(name.to_owned()).or_default() += 1;
    }
    found
}

/// The thread and the function of a line that tells of a crossing, and whether the host calls. Returns are not counted.
fn crossing(line: &str) -> Option<(&str, &str, bool)> {
    let thread = line.strip_prefix('[')?.split("][").nth(1)?;
    let (call, is_call) = match line.split_once("[host->vm] ") {
        Some((_, call)) => (call, true),
        None => (line.split_once("[vm->host] ")?.1, false),
    };
    let name = call.split(['(', ' ']).next()?;
    Some((thread, name.rsplit('.').next()?, is_call))
}

impl Crossings {
    /// The counts for people.
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new();
        table.set_header(["crossings", "callbacks", "crossings", "of which"]);
        let whole = |what: &str, value: f64| [what.to_owned(), String::new(), format!("{value:.1}"), String::new()];
        table.add_row(whole("per request", self.per_request));
        table.add_row(whole("per idle tick", self.per_idle_tick));
        for (name, Callback { calls, functions }) in &self.callbacks {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crossings_belong_to_the_callback_of_their_thread() {
        let log = "\
            [2026-11-30 05:00:00.000][7][trace][wasm] [a.cc:1] [host->vm] proxy_on_tick(1)\n\
            [2026-11-30 05:00:00.000][8][trace][wasm] [a.cc:1] [host->vm] proxy_on_request_headers(2, 9, 0)\n\
            [2026-11-30 05:00:00.000][7][trace][wasm] [a.cc:1] [vm->host] env.proxy_get_shared_data(1, 2)\n\
            [2026-11-30 05:00:00.000][7][trace][wasm] [a.cc:1] [vm<-host] env.proxy_get_shared_data return: 0\n\
            [2026-11-30 05:00:00.000][8][trace][wasm] [a.cc:1] [vm->host] wasi_snapshot_preview1.clock_time_get(1)\n\
            [2026-11-30 05:00:00.000][8][trace][wasm] [a.cc:1] [host->vm] malloc(9)\n\
            [2026-11-30 05:00:00.000][8][info][main] nothing\n";
        let found = callbacks(log);
        let functions = |name: &str| found[name].functions.iter().map(|(k, v)| (k.as_str(), *v)).collect::<Vec<_>>();
        assert_eq!(functions("proxy_on_tick"), [("proxy_get_shared_data", 1), ("proxy_on_tick", 1)]);
        let expected = [("clock_time_get", 1), ("malloc", 1), ("proxy_on_request_headers", 1)];
        assert_eq!(functions("proxy_on_request_headers"), expected);
    }
}
