//! Envoy's callbacks of one request.

use std::cell::Cell;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, MapType};

use crate::envoy::{Envoy, Headers, action};
use crate::shared::Shared;
use crate::{ahead, host};
use routebalance_core::gateway::{Flow, Gateway, Host};

/// The HTTP context of one request.
pub(super) struct StreamContext {
    gateway: Shared,
    /// The host's number of this context.
    id: u32,
    /// The request's headers, while it is held.
    request: Cell<Option<Headers>>,
}

impl StreamContext {
    pub(super) fn new(gateway: Shared, id: u32) -> StreamContext {
        StreamContext { gateway, id, request: Cell::default() }
    }

    fn run(&self, f: impl FnOnce(&mut Gateway, &mut Envoy, u32) -> Flow) -> Action {
        action(
            self.gateway
                .run(|gateway| f(gateway, &mut Envoy::in_callback_of(self.id), self.id))
                .unwrap_or(Flow::Continue),
        )
    }

    /// The same for a callback of the request, whose headers stay as they are while it is held.
    fn run_held(&self, f: impl FnOnce(&mut Gateway, &mut Envoy, u32) -> Flow) -> Flow {
        let mut envoy = Envoy::with_request(self.id, &self.request);
        let flow = self.gateway.run(|gateway| f(gateway, &mut envoy, self.id)).unwrap_or(Flow::Continue);
        self.request.set(envoy.into_request().filter(|_| flow == Flow::Pause));
        flow
    }

    /// The same for a callback after that of the headers, which may have gone on.
    fn run_behind(&self, f: impl FnOnce(&mut Gateway, &mut Envoy, u32) -> Flow) -> Action {
        let flow = self.run_held(|gateway, envoy, id| {
            gateway.passage.body_comes(id, || envoy.now());
            if ahead::is_too_late(id) && gateway.on_headers_gone(envoy, id) == Flow::Continue {
                gateway.passage.nobody_holds(envoy.now());
                return Flow::Continue;
            }
            f(gateway, envoy, id)
        });
        if flow == Flow::Continue {
            ahead::end(self.id);
        }
        action(flow)
    }
}

impl Context for StreamContext {}

impl HttpContext for StreamContext {
    fn on_http_request_headers(&mut self, _headers: usize, end_of_stream: bool) -> Action {
        let header = |name| host::header(MapType::HttpRequestHeaders, name);
        if self.gateway.is_fatal(|| header(":method"), || header(":path")) {
            std::process::abort();
        }
        let mut goes_on = false;
        let flow = self.run_held(|gateway, envoy, id| {
            let flow = gateway.on_request_headers(envoy, id, end_of_stream);
            goes_on = gateway.awaits_body(id) && gateway.passage.waits(id, envoy.now());
            flow
        });
        if goes_on {
            ahead::begin(self.id, self.request.take().unwrap_or_default());
            return Action::Continue;
        }
        action(flow)
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        self.run_behind(|gateway, envoy, id| gateway.on_request_body(envoy, id, size, end_of_stream))
    }

    fn on_http_request_trailers(&mut self, _trailers: usize) -> Action {
        self.run_behind(|gateway, envoy, id| gateway.on_request_trailers(envoy, id))
    }

    fn on_http_response_headers(&mut self, _headers: usize, end_of_stream: bool) -> Action {
        self.run(|gateway, envoy, id| gateway.on_response_headers(envoy, id, end_of_stream))
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        self.run(|gateway, envoy, id| gateway.on_response_body(envoy, id, size, end_of_stream))
    }

    fn on_http_response_trailers(&mut self, _trailers: usize) -> Action {
        self.run(|gateway, envoy, id| gateway.on_response_trailers(envoy, id))
    }

    fn on_log(&mut self) {
        self.gateway.run(|gateway| gateway.release(&mut Envoy::default(), self.id));
    }
}

impl Drop for StreamContext {
    fn drop(&mut self) {
        ahead::forget(self.id);
        self.gateway.run(|gateway| gateway.on_end(&mut Envoy::default(), self.id));
    }
}
