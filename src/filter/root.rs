//! The plugin: its configuration and its ticks.

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{BufferType, ContextType, MapType};

use crate::ahead::{self, HeadersContext};
use crate::attempt::AttemptContext;
use crate::envoy::Envoy;
use crate::host;
use crate::shared::Shared;
use crate::stream::StreamContext;
use routebalance_core::config::Config;
use routebalance_core::gateway::Host;
use routebalance_core::names;
use routebalance_core::predictor::Predictor;
use routebalance_core::router::Router;

/// The root context of one VM.
pub(super) struct Root {
    /// The host's number of this context.
    id: u32,
    role: Role,
    /// The gateway of requests' contexts.
    gateway: Option<Shared>,
    /// Whether headers go on before requests are decided.
    go_on: bool,
    /// Ticks until it must be known that somebody writes a decision's headers then.
    ticks_left: u32,
}

/// What contexts it makes.
enum Role {
    /// Of requests.
    Requests,
    /// Of attempts.
    Attempts,
    /// Of requests, where a decision's headers are written.
    Headers,
}

/// By then all filters of a configuration are there.
const TICKS_FOR_WRITER: u32 = 20;

impl Root {
    pub(super) fn new(id: u32) -> Root {
        Root { id, role: Role::Requests, gateway: None, go_on: false, ticks_left: 0 }
    }

    fn configure(&mut self, size: usize) -> Result<(), String> {
        match host::property(&["plugin_root_id"]).as_deref() {
            Some(names::ATTEMPTS_ROOT_ID) => {
                self.role = Role::Attempts;
                return Ok(());
            }
            Some(names::HEADERS_ROOT_ID) => {
                self.role = Role::Headers;
                ahead::announce_writer();
                return Ok(());
            }
            _ => {}
        }
        let json = host::buffer(BufferType::PluginConfiguration, 0, size);
        let config = Config::parse(&json).map_err(|e| e.to_string())?;
        let predictor = match config.predictor_enabled {
            true => Some(Predictor::load().map_err(|e| format!("the predictor does not load: {e}"))?),
            false => None,
        };
        // What the configuration says needs no warning.
        self.go_on = config.envoy.headers_go_on;
        self.ticks_left = TICKS_FOR_WRITER;
        let router = Router::new(config, predictor);
        let unknown = router.unpredicted();
        if !unknown.is_empty() {
            log::info!("routebalance: the predictor does not know {}: their priors decide", unknown.join(", "));
        }
        let gateway = Shared::new(router);
        let tick = gateway.run(|gateway| gateway.tick_period()).unwrap_or(routebalance_core::gateway::TICK);
        self.gateway = Some(gateway);
        hostcalls::set_tick_period(tick).map_err(|status| format!("the host refuses a timer: {status:?}"))
    }
}

/// What a first request has shown.
const GO_ON: &str =
    "this plugin has no `allow_on_headers_stop_iteration`: requests' headers go on before they are decided";

/// What is wrong where headers go on and nobody writes a decision's headers.
const NO_WRITER: &str = "this plugin has no `allow_on_headers_stop_iteration`, and no second instance of the module with the root id \
     `headers` stands behind a buffer filter: no request is decided";

impl Root {
    /// Lets requests go on that wait for bodies which Envoy keeps back.
    fn let_go(&self, overdue: &[u32]) {
        for id in overdue {
            let mut envoy = Envoy::default();
            if envoy.enter(*id) {
                ahead::begin(*id, host::headers(MapType::HttpRequestHeaders));
                let _ = hostcalls::resume_http_request();
            }
        }
        if !overdue.is_empty() {
            Envoy::default().enter(self.id);
        }
    }
}

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, headers: usize, body_size: usize, _trailers: usize) {
        if let Some(gateway) = &self.gateway {
            gateway
                .run(|gateway| gateway.on_call_response(&mut Envoy::default(), self.id, token, headers > 0, body_size));
        }
    }

    fn on_done(&mut self) -> bool {
        if let Some(gateway) = &self.gateway {
            gateway.run(|gateway| gateway.on_done(&mut Envoy::default()));
            gateway.show_counts();
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
        let Some(gateway) = &self.gateway else { return };
        let overdue = gateway.run(|gateway| {
            let mut envoy = Envoy::at_tick();
            gateway.on_tick(&mut envoy, self.id);
            gateway.passage.overdue(envoy.now())
        });
        gateway.show_counts();
        self.let_go(&overdue.unwrap_or_default());
        let go_on = gateway.run(|gateway| gateway.passage.headers_go_on()) == Some(true);
        if go_on && !self.go_on {
            log::warn!("routebalance: {GO_ON}");
            self.ticks_left = TICKS_FOR_WRITER;
        }
        self.go_on = go_on;
        self.ticks_left = self.ticks_left.saturating_sub(1);
        if self.ticks_left == 1 && go_on && !ahead::has_writer() {
            log::error!("routebalance: {NO_WRITER}");
        }
    }

    fn create_http_context(&self, context_id: u32) -> Option<Box<dyn HttpContext>> {
        Some(match self.role {
            Role::Requests => Box::new(StreamContext::new(self.gateway.clone()?, context_id)),
            Role::Attempts => Box::new(AttemptContext::default()),
            Role::Headers => Box::new(HeadersContext),
        })
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}
