//! The plugin: configuration, heartbeat, and the scraping of load reports.

use std::collections::BTreeMap;
use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{BufferType, ContextType, MapType};

use crate::config::Config;
use crate::filter::batching;
use crate::filter::health::Watches;
use crate::filter::host;
use crate::filter::stream::Stream;
use crate::filter::worker::{Shared, Worker};
use crate::names::ENDPOINT_HEADER;
use crate::predictor::Predictor;
use crate::reckoning::InstanceCounters;
use crate::router::Router;
use crate::telemetry;

/// Time between two ticks: how late a scrape may be sent, and how old the progress of streams may be for other workers.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// The root context of one VM.
#[derive(Default)]
pub(super) struct Root {
    /// The host's number of this context.
    id: u32,
    worker: Option<Shared>,
    /// Ticks until there is more to do than to look at batches.
    ticks_left: u32,
    heartbeat_at: Duration,
    watches: Watches,
    /// When each instance is scraped next.
    scrape_at: Vec<Duration>,
    /// Scrapes under way by the host's token.
    scrapes: BTreeMap<u32, Scrape>,
}

struct Scrape {
    instance: usize,
    asked_at: Duration,
    /// The counters of all workers for the instance when it was asked.
    own: InstanceCounters,
}

impl Root {
    pub(super) fn new(id: u32) -> Root {
        Root { id, ..Root::default() }
    }

    fn configure(&mut self, size: usize) -> Result<(), String> {
        let json = host::buffer(BufferType::PluginConfiguration, 0, size);
        let config = Config::parse(&json).map_err(|e| e.to_string())?;
        let predictor = match config.predictor_enabled {
            true => Some(Predictor::load().map_err(|e| format!("the predictor does not load: {e}"))?),
            false => None,
        };
        self.scrape_at = vec![Duration::ZERO; config.fleet.instances.len()];
        let mut worker = Worker::new(Router::new(config, predictor));
        let tick = if worker.batches() { batching::LOOK } else { TICK };
        worker.heartbeat(host::now());
        self.worker = Some(Shared::new(worker));
        hostcalls::set_tick_period(tick).map_err(|status| format!("the host refuses a timer: {status:?}"))
    }

    /// Sends the scrapes that are due. They are spread over the period, so that many instances do not stall a worker.
    fn scrape(&mut self, worker: &mut Worker, now: Duration) {
        let config = worker.router.config();
        let telemetry = &config.telemetry;
        if !(worker.leads && telemetry.enabled) {
            return;
        }
        let counters = worker.all_counters();
        let instances = config.fleet.instances.len().max(1) as u32;
        for (i, due) in self.scrape_at.iter_mut().enumerate() {
            if *due > now || self.scrapes.values().any(|s| s.instance == i) {
                continue;
            }
            let first = due.is_zero();
            let spread = telemetry.scrape_period / instances * (i as u32);
            *due =
                now.saturating_add(telemetry.scrape_period).saturating_add(if first { spread } else { Duration::ZERO });
            let (Some((_, pool)), Some(instance)) = (config.fleet.pool_of(i), config.fleet.instances.get(i)) else {
                continue;
            };
            let headers = vec![
                (":method", "GET"),
                (":path", telemetry.metrics_path.as_str()),
                (":authority", instance.address.as_str()),
                (ENDPOINT_HEADER, instance.address.as_str()),
            ];
            let token = hostcalls::dispatch_http_call(&pool.cluster, headers, None, vec![], telemetry.scrape_timeout);
            let own = counters.0.get(i).copied().unwrap_or_default();
            if let Ok(token) = token {
                self.scrapes.insert(token, Scrape { instance: i, asked_at: now, own });
            }
        }
    }

    fn scraped(worker: &mut Worker, scrape: &Scrape, answer: Answer) {
        let Some(report) = worker.reports.0.get_mut(scrape.instance) else { return };
        let outcome = match answer {
            Answer::Page(page) => {
                let load = telemetry::parse_metrics(&page).load;
                report.answered(scrape.asked_at, load, scrape.own);
                if load.running.is_some() { "routebalance.scrapes.ok" } else { "routebalance.scrapes.unusable" }
            }
            Answer::NobodyThere => {
                report.nobody_there();
                "routebalance.scrapes.failed"
            }
            Answer::TimedOut => "routebalance.scrapes.failed",
        };
        worker.metrics.count(outcome);
        worker.write_reports();
    }
}

/// What came of a scrape.
enum Answer {
    Page(Vec<u8>),
    NobodyThere,
    TimedOut,
}

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, headers: usize, body_size: usize, _trailers: usize) {
        let (Some(scrape), Some(worker)) = (self.scrapes.remove(&token), self.worker.clone()) else { return };
        // Envoy answers for an instance that it cannot reach: with no headers at all after a time-out, else with a 503 of its own.
        let status = if headers > 0 { host::header(MapType::HttpCallResponseHeaders, ":status") } else { None };
        let answer = match status.as_deref() {
            None => Answer::TimedOut,
            Some("502" | "503" | "504") => Answer::NobodyThere,
            Some(_) => Answer::Page(host::buffer(BufferType::HttpCallResponseBody, 0, body_size)),
        };
        worker.with(|w| Root::scraped(w, &scrape, answer));
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        match self.configure(size) {
            Ok(()) => true,
            Err(sentence) => {
                log::error!("routebalance: {sentence}");
                false
            }
        }
    }

    fn on_tick(&mut self) {
        let Some(shared) = self.worker.clone() else { return };
        batching::flush_all(&shared, self.id);
        if let Some(ticks) = self.ticks_left.checked_sub(1) {
            self.ticks_left = ticks;
            return;
        }
        if shared.with(|w| w.batches()) == Some(true) {
            self.ticks_left = batching::LOOKS_PER_TICK.saturating_sub(1);
        }
        let now = host::now();
        shared.with(|worker| {
            if now >= self.heartbeat_at {
                worker.heartbeat(now);
                // Three chances to renew the lease before it runs out.
                self.heartbeat_at = now.saturating_add(worker.router.config().telemetry.lease / 3);
            }
            worker.write_counters();
            worker.exchange_learnt();
            worker.write_gauges();
            self.watches.look(worker, now);
            self.scrape(worker, now);
        });
    }

    fn create_http_context(&self, context_id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream::new(self.worker.clone()?, context_id)))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}
