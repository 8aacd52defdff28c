//! Envoy's callbacks of one attempt, in the upstream filter of a pool's cluster.

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

use crate::envoy::{Envoy, action};
use crate::shared::Shared;
use routebalance_core::gateway::{Attempt, Gateway, context_of};

/// The HTTP context of one attempt.
#[derive(Default)]
pub(super) struct AttemptContext {
    attempt: Attempt,
    /// The context of the request whose attempt this is; `None` for one that nobody has decided.
    request: Option<u32>,
}

impl AttemptContext {
    /// Runs `f` with the gateway that has the request, if any has; `None` if there is no request, or the gateway is in use.
    fn run<R>(&mut self, f: impl FnOnce(&mut Attempt, Option<&mut Gateway>, u32) -> R) -> Option<R> {
        let id = self.request?;
        let attempt = &mut self.attempt;
        match Shared::that_has(id) {
            Some(shared) => shared.run(|gateway| f(attempt, Some(gateway), id)),
            None => Some(f(attempt, None, id)),
        }
    }
}

impl Context for AttemptContext {
    fn on_done(&mut self) -> bool {
        self.run(|attempt, gateway, id| attempt.on_done(&Envoy::default(), gateway, id));
        true
    }
}

impl HttpContext for AttemptContext {
    fn on_http_request_headers(&mut self, _headers: usize, end_of_stream: bool) -> Action {
        self.request = context_of(&Envoy::default());
        let Some(id) = self.request else { return Action::Continue };
        let flow = self
            .run(|attempt, gateway, id| attempt.on_request_headers(&mut Envoy::default(), gateway, id, end_of_stream));
        // A body goes to no other model as it is: without its gateway, nobody knows what to change.
        let ended = |attempt: &mut Attempt| attempt.on_request_headers(&mut Envoy::default(), None, id, end_of_stream);
        action(flow.unwrap_or_else(|| ended(&mut self.attempt)))
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        action(self.attempt.on_request_body(&mut Envoy::default(), size, end_of_stream))
    }

    fn on_http_request_trailers(&mut self, _trailers: usize) -> Action {
        action(self.attempt.on_request_trailers(&mut Envoy::default()))
    }

    fn on_http_response_headers(&mut self, _headers: usize, _end_of_stream: bool) -> Action {
        self.run(|attempt, gateway, id| attempt.on_response_headers(&mut Envoy::default(), gateway, id));
        Action::Continue
    }
}
