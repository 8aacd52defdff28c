//! The plugin: its configuration and its ticks.

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{BufferType, ContextType};

use crate::attempt::AttemptContext;
use crate::envoy::Envoy;
use crate::host;
use crate::shared::Shared;
use crate::stream::StreamContext;
use routebalance_core::config::Config;
use routebalance_core::names;
use routebalance_core::predictor::Predictor;
use routebalance_core::router::Router;

/// The root context of one VM.
pub(super) struct Root {
    /// The host's number of this context.
    id: u32,
    /// Whether it makes contexts of attempts, and keeps no gateway.
    sees_attempts: bool,
    gateway: Option<Shared>,
}

impl Root {
    pub(super) fn new(id: u32) -> Root {
        Root { id, sees_attempts: false, gateway: None }
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
        let gateway = Shared::new(router);
        let tick = gateway.run(|gateway| gateway.tick_period()).unwrap_or(routebalance_core::gateway::TICK);
        self.gateway = Some(gateway);
        hostcalls::set_tick_period(tick).map_err(|status| format!("the host refuses a timer: {status:?}"))
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
        if let Some(gateway) = &self.gateway {
            gateway.run(|gateway| gateway.on_tick(&mut Envoy::at_tick(), self.id));
            gateway.show_counts();
        }
    }

    fn create_http_context(&self, context_id: u32) -> Option<Box<dyn HttpContext>> {
        if self.sees_attempts {
            return Some(Box::new(AttemptContext::default()));
        }
        Some(Box::new(StreamContext::new(self.gateway.clone()?, context_id)))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}
