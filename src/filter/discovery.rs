//! Questions to Envoy's admin listener for the hosts of its clusters, by the VM that leads.

use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::types::{BufferType, MapType};

use crate::discovery::{self, ANSWER_BYTES_MAX};
use crate::filter::host;
use crate::filter::worker::Worker;

/// Questions of one VM, one at a time.
#[derive(Default)]
pub(super) struct Asker {
    /// The host's token of the question under way.
    token: Option<u32>,
    next_at: Duration,
}

impl Asker {
    /// Asks if it is time to.
    pub(super) fn tick(&mut self, worker: &Worker, now: Duration) {
        let Some(discovery) = worker.router.config().discovery.as_ref() else { return };
        if self.token.is_some() || now < self.next_at {
            return;
        }
        let headers =
            vec![(":method", "GET"), (":path", discovery.path.as_str()), (":authority", discovery.cluster.as_str())];
        let token = hostcalls::dispatch_http_call(&discovery.cluster, headers, None, vec![], discovery.timeout);
        self.token = token.ok();
        self.next_at = now.saturating_add(discovery.period);
    }

    /// A call was answered, or not; whether it was a question of this kind.
    pub(super) fn answered(&mut self, worker: &mut Worker, token: u32, headers: usize, body_size: usize) -> bool {
        if self.token != Some(token) {
            return false;
        }
        self.token = None;
        let now = host::now();
        let status = if headers > 0 { host::header(MapType::HttpCallResponseHeaders, ":status") } else { None };
        let readable = status.is_some_and(|status| status == "200") && body_size <= ANSWER_BYTES_MAX;
        let answer = if readable { host::buffer(BufferType::HttpCallResponseBody, 0, body_size) } else { Vec::new() };
        match discovery::parse(&answer) {
            Some(clusters) => {
                worker.metrics.count("routebalance.discoveries.ok");
                if worker.leads {
                    worker.discovered(&clusters, now);
                }
            }
            None => worker.metrics.count("routebalance.discoveries.failed"),
        }
        if let Some(discovery) = worker.router.config().discovery.as_ref() {
            self.next_at = now.saturating_add(discovery::period(discovery.period, answer.len()));
        }
        true
    }
}
