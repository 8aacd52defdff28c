//! The plugin: configuration, heartbeat, and what a VM does in every tick.

use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{BufferType, ContextType};

use crate::config::Config;
use crate::filter::attempt::Attempt;
use crate::filter::batching;
use crate::filter::discovery::Asker;
use crate::filter::health::Watches;
use crate::filter::host;
use crate::filter::rerun;
use crate::filter::scrape::Scraper;
use crate::filter::stream::Stream;
use crate::filter::worker::{Shared, Worker};
use crate::names;
use crate::predictor::Predictor;
use crate::router::Router;
use crate::shared;

/// Time between two ticks: how late a scrape may be sent, and how old the progress of streams may be for other workers.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// The root context of one VM.
#[derive(Default)]
pub(super) struct Root {
    /// The host's number of this context.
    id: u32,
    /// Whether it makes contexts of attempts, and keeps no worker.
    sees_attempts: bool,
    worker: Option<Shared>,
    /// Ticks until there is more to do than to look at batches.
    ticks_left: u32,
    heartbeat_at: Duration,
    watches: Watches,
    scraper: Scraper,
    asker: Asker,
}

impl Root {
    pub(super) fn new(id: u32) -> Root {
        Root { id, ..Root::default() }
    }

    fn configure(&mut self, size: usize) -> Result<(), String> {
        if host::property(&["plugin_root_id"]).as_deref() == Some(names::ATTEMPTS_ROOT_ID) {
            self.sees_attempts = true;
            return Ok(());
        }
        let json = host::buffer(BufferType::PluginConfiguration, 0, size);
        let config = Config::parse(&json).map_err(|e| e.to_string())?;
        let predictor = match config.predictor_enabled {
            true => Some(Predictor::load().map_err(|e| format!("the predictor does not load: {e}"))?),
            false => None,
        };
        let router = Router::new(config, predictor);
        let unknown = router.unpredicted();
        if !unknown.is_empty() {
            log::info!("routebalance: the predictor does not know {}: their priors decide", unknown.join(", "));
        }
        let mut worker = Worker::new(router);
        worker.follow();
        let tick = if worker.batches() { batching::LOOK } else { TICK };
        worker.heartbeat(host::now());
        worker.follow_prices(host::now());
        self.worker = Some(Shared::new(worker));
        hostcalls::set_tick_period(tick).map_err(|status| format!("the host refuses a timer: {status:?}"))
    }

    /// What the VM that leads does for all.
    fn lead(&mut self, worker: &mut Worker, now: Duration) {
        if !worker.leads {
            return;
        }
        self.asker.tick(worker, now);
        let counters = worker.all_counters();
        self.watches.look(worker, &counters, now);
        worker.write_gauges(&counters);
        self.scraper.tick(worker, &counters, now);
        worker.write_reports();
    }
}

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, headers: usize, body_size: usize, _trailers: usize) {
        let Some(shared) = self.worker.clone() else { return };
        if rerun::answered(&shared, self.id, token, headers, body_size) {
            return;
        }
        shared.with(|worker| {
            let _ = self.asker.answered(worker, token, headers, body_size)
                || self.scraper.answered(worker, token, headers, body_size);
        });
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
        rerun::look(&shared, self.id, now);
        shared.with(|worker| {
            worker.follow();
            if now >= self.heartbeat_at {
                worker.heartbeat(now);
                self.heartbeat_at = now.saturating_add(shared::heartbeat(worker.router.config().telemetry.lease));
            }
            worker.write_counters();
            worker.write_glimpses(now);
            worker.exchange_learnt();
            worker.follow_prices(now);
            self.lead(worker, now);
        });
    }

    fn create_http_context(&self, context_id: u32) -> Option<Box<dyn HttpContext>> {
        if self.sees_attempts {
            return Some(Box::new(Attempt::default()));
        }
        Some(Box::new(Stream::new(self.worker.clone()?, context_id)))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}
