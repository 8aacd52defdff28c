//! The fetching of load reports, by the VM that leads.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::types::{BufferType, MapType};

use crate::filter::host;
use crate::filter::worker::Worker;
use crate::fleet::Presence;
use crate::names::ENDPOINT_HEADER;
use crate::reckoning::{Counters, InstanceCounters};
use crate::telemetry::{self, Adapters, IN_FLIGHT_MAX, Page, Rounds, Schedule};

/// Scrapes of one VM.
#[derive(Default)]
pub(super) struct Scraper {
    rounds: Rounds,
    schedule: Schedule,
    /// Under way, by the host's token.
    scrapes: BTreeMap<u32, Scrape>,
    /// The instances that those ask.
    asked: BTreeSet<usize>,
}

struct Scrape {
    instance: usize,
    /// Tells whether the index still means the same instance when the answer comes.
    key: u32,
    asked_at: Duration,
    /// The counters of all workers for the instance when it was asked.
    own: InstanceCounters,
}

impl Scraper {
    /// Sends the scrapes that are due.
    pub(super) fn tick(&mut self, worker: &mut Worker, counters: &Counters, now: Duration) {
        let config = worker.router.config();
        if !config.telemetry.enabled {
            return;
        }
        let there = config.fleet.instances.iter().filter(|i| i.presence != Presence::Gone).count();
        let period = self.schedule.period(&config.telemetry, there);
        let room = IN_FLIGHT_MAX.saturating_sub(self.scrapes.len());
        for i in self.rounds.turns(now, period, config.fleet.instances.len(), room) {
            let (Some((_, pool)), Some(instance)) = (config.fleet.pool_of(i), config.fleet.instances.get(i)) else {
                continue;
            };
            if instance.presence == Presence::Gone || self.asked.contains(&i) {
                continue;
            }
            let headers = vec![
                (":method", "GET"),
                (":path", config.telemetry.metrics_path.as_str()),
                (":authority", instance.address.as_str()),
                (ENDPOINT_HEADER, instance.address.as_str()),
            ];
            let timeout = config.telemetry.scrape_timeout;
            let token = hostcalls::dispatch_http_call(&pool.cluster, headers, None, vec![], timeout);
            let own = counters.0.get(i).copied().unwrap_or_default();
            if let Ok(token) = token {
                let scrape = Scrape { instance: i, key: instance.key, asked_at: now, own };
                self.scrapes.insert(token, scrape);
                self.asked.insert(i);
            }
        }
        worker.report_every(period);
    }

    /// A call was answered, or not; whether it was a scrape.
    pub(super) fn answered(&mut self, worker: &mut Worker, token: u32, headers: usize, body_size: usize) -> bool {
        let Some(scrape) = self.scrapes.remove(&token) else { return false };
        self.asked.remove(&scrape.instance);
        let instance = worker.router.config().fleet.instances.get(scrape.instance);
        if !worker.leads || instance.is_none_or(|instance| instance.key != scrape.key) {
            return true;
        }
        // Envoy answers for an instance that it cannot reach: with no headers at all after a time-out, else with a 503 of its own.
        let status = if headers > 0 { host::header(MapType::HttpCallResponseHeaders, ":status") } else { None };
        let outcome = match (status.as_deref(), worker.report_mut(scrape.instance)) {
            (None, _) | (_, None) => "routebalance.scrapes.failed",
            (Some("502" | "503" | "504"), Some(report)) => {
                report.nobody_there();
                "routebalance.scrapes.failed"
            }
            (Some(_), Some(report)) => {
                let page = host::buffer(BufferType::HttpCallResponseBody, 0, body_size);
                let Page { load, adapters } = telemetry::parse_metrics(&page);
                report.answered(scrape.asked_at, load, scrape.own);
                self.schedule.parsed(page.len());
                if let Some(adapters) = adapters {
                    loaded(worker, scrape.instance, &adapters);
                }
                if load.running.is_some() { "routebalance.scrapes.ok" } else { "routebalance.scrapes.unusable" }
            }
        };
        worker.metrics.count(outcome);
        true
    }
}

/// Of the adapters that an instance reports, running or about to, remembers those that clients may ask for.
fn loaded(worker: &mut Worker, instance: usize, adapters: &Adapters) {
    let now = host::now();
    let Worker { router, placements, .. } = worker;
    let fleet = &router.config().fleet;
    let Some(model) = fleet.pool_of(instance).and_then(|(_, pool)| fleet.model_of(pool)) else { return };
    for adapter in adapters.running.iter().chain(&adapters.waiting).filter(|adapter| model.adapters.contains(adapter)) {
        placements.loaded(adapter, instance, now);
    }
}
