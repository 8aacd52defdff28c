//! The plugin: configuration, ticks, and the calls that a worker wants made.

use std::collections::BTreeMap;
use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{BufferType, ContextType, MapType};

use crate::config::Config;
use crate::filter::attempt::Attempt;
use crate::filter::batching;
use crate::filter::host;
use crate::filter::rerun;
use crate::filter::stream::Stream;
use crate::filter::worker::{Envoy, Shared, Worker};
use crate::names;
use crate::predictor::Predictor;
use crate::router::Router;
use crate::worker::{Fetch, Purpose};

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
    /// What calls that are under way are for, by the host's token.
    fetches: BTreeMap<u32, Purpose>,
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
        let worker = Worker::new(router, host::now());
        let tick = if worker.batches() { batching::LOOK } else { TICK };
        self.worker = Some(Shared::new(worker));
        hostcalls::set_tick_period(tick).map_err(|status| format!("the host refuses a timer: {status:?}"))
    }

    fn fetch(&mut self, worker: &mut Worker, fetch: &Fetch) {
        let Fetch { cluster, path, authority, endpoint, timeout, purpose } = fetch;
        let mut headers = vec![(":method", "GET"), (":path", path.as_str()), (":authority", authority.as_str())];
        headers.extend(endpoint.as_deref().map(|endpoint| (names::ENDPOINT_HEADER, endpoint)));
        match hostcalls::dispatch_http_call(cluster, headers, None, vec![], *timeout) {
            Ok(token) => drop(self.fetches.insert(token, *purpose)),
            Err(_) => worker.not_fetched(purpose),
        }
    }
}

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, headers: usize, body_size: usize, _trailers: usize) {
        let Some(shared) = self.worker.clone() else { return };
        let Some(purpose) = self.fetches.remove(&token) else {
            rerun::answered(&shared, self.id, token, headers, body_size);
            return;
        };
        let status = if headers > 0 { host::header(MapType::HttpCallResponseHeaders, ":status") } else { None };
        let body = host::buffer(BufferType::HttpCallResponseBody, 0, body_size);
        let status = status.and_then(|status| status.parse().ok());
        shared.with(|worker| worker.fetched(&mut Envoy, &purpose, status, &body, host::now()));
    }

    fn on_done(&mut self) -> bool {
        if let Some(shared) = &self.worker {
            shared.with(|worker| worker.leave(&mut Envoy, host::now()));
        }
        true
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
            let fetches = worker.tick(&mut Envoy, now);
            fetches.iter().for_each(|fetch| self.fetch(worker, fetch));
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
