//! One VM: its gateway, its requests, and what must hold after each callback.

use std::collections::BTreeMap;

use routebalance_core::fleet::Presence;
use routebalance_core::gateway::memory::{Exchange, Headers, HostCall, ROOT, header_of};
use routebalance_core::gateway::{Attempt, Flow, Gateway, Holding, context_of};
use routebalance_core::names;
use routebalance_core::worker::Statistic;
use serde::de::IgnoredAny;

use super::host::Watched;
use crate::novelty::{magnitude, see, tell};

/// Calls of the host in one callback: a tick looks at every instance, slot and segment there is.
const CALLS_MAX: u64 = 4_000;
/// The same where records are from outside: they may say that all 256 slots are in use.
const CALLS_OF_FULL_BOARD_MAX: u64 = 40_000;

/// One VM.
pub(super) struct Vm {
    pub(super) gateway: Gateway,
    pub(super) host: Watched,
    pub(super) streams: BTreeMap<u32, Stream>,
    pub(super) attempts: BTreeMap<u32, Attempt>,
    /// Calls that nobody has answered.
    pub(super) calls: Vec<HostCall>,
    /// Names of decisions, as clients have got them.
    pub(super) decisions: Vec<String>,
    /// Whether rosters may be from outside: then an instance may lose its index while requests are there.
    pub(super) tampered: bool,
    /// Whether it has given its claims back: what was under way is told to nobody any more.
    has_left: bool,
    next: u32,
}

/// A request as Envoy has it.
#[derive(Default)]
pub(super) struct Stream {
    /// All of the body that has come, and what of it has gone on.
    received: Vec<u8>,
    sent: Vec<u8>,
    flow: Flow,
    /// Whether the body has come to its end.
    pub(super) is_whole: bool,
    /// Whether its last piece has gone on.
    has_gone: bool,
    /// The length that the client has said.
    length: Option<usize>,
    resumed: usize,
}

impl Vm {
    pub(super) fn new(gateway: Gateway, host: Watched) -> Vm {
        Vm {
            gateway,
            host,
            streams: BTreeMap::new(),
            attempts: BTreeMap::new(),
            calls: Vec::new(),
            decisions: Vec::new(),
            tampered: false,
            has_left: false,
            next: ROOT,
        }
    }

    /// A callback of this context.
    fn enter<R>(&mut self, context: u32, what: &str, f: impl FnOnce(&mut Gateway, &mut Watched) -> R) -> R {
        tell(|| format!("{:?} VM {}: {context} {what}", self.host.memory.time, self.host.memory.board.owner));
        self.host.memory.current = context;
        self.host.calls.set(0);
        self.host.memory.board.process.borrow_mut().calls = 0;
        let result = f(&mut self.gateway, &mut self.host);
        self.host.memory.calls.iter().for_each(|call| tell(|| format!("  calls {} {:?}", call.cluster, call.headers)));
        self.calls.append(&mut self.host.memory.calls);
        self.check_work();
        self.check_counters();
        self.show();
        result
    }

    fn check_work(&self) {
        let process = self.host.memory.board.process.borrow();
        let calls = self.host.calls.get() + process.calls;
        let most = if process.tampered { CALLS_OF_FULL_BOARD_MAX } else { CALLS_MAX };
        assert!(calls <= most, "{calls} calls of the host in one callback");
        see(("calls", magnitude(calls)));
    }

    /// What is finished was dispatched, and no more is under way than there are requests.
    fn check_counters(&self) {
        let mut open = 0;
        for counters in &self.gateway.worker.own_counters().0 {
            let pairs = [
                (counters.finished_requests, counters.dispatched_requests),
                (counters.finished_prompt_tokens, counters.dispatched_prompt_tokens),
                (counters.finished_output_tokens, counters.dispatched_output_tokens),
            ];
            if !self.tampered && !self.has_left {
                assert!(pairs.iter().all(|(finished, dispatched)| finished <= dispatched), "{counters:?}");
            }
            open += counters.outstanding_requests();
        }
        assert!(open <= self.streams.len() as u64, "{open} requests of {} are under way", self.streams.len());
        let Holding { requests, waiting, reruns, .. } = self.gateway.holding();
        assert!(requests <= self.streams.len(), "{requests} of {} requests are held", self.streams.len());
        assert!(waiting <= requests && reruns.0 <= requests, "{waiting} wait, {reruns:?} for whole answers");
    }

    fn show(&mut self) {
        let statistics = &mut self.gateway.worker.statistics;
        let (new, counts) = (statistics.take(), statistics.take_counts());
        for statistic in new.into_iter().chain(counts) {
            let name = match &statistic {
                Statistic::Count(name, _) | Statistic::Gauge(name, _) | Statistic::Observe(name, _) => name,
                Statistic::Warn(sentence) => {
                    assert!(!sentence.contains(['\n', '\r']), "{sentence:?} is no line");
                    continue;
                }
            };
            let is_plain = name.bytes().all(|b| b.is_ascii_graphic()) && name.len() < 300;
            assert!(is_plain, "the statistic {name:?}");
            assert!(self.tampered || name.starts_with("routebalance."), "the statistic {name:?}");
            see(name);
        }
    }

    // === requests ===

    /// A request begins; its number.
    pub(super) fn begin(&mut self, exchange: Exchange, is_whole: bool) -> u32 {
        self.next += 1;
        let id = self.next;
        let length = header_of(&exchange.request, "content-length").and_then(|length| length.parse().ok());
        self.host.memory.exchanges.insert(id, exchange);
        self.streams.insert(id, Stream { length, is_whole, ..Stream::default() });
        let flow = self.enter(id, "request headers", |gateway, host| gateway.on_request_headers(host, id, is_whole));
        self.went(id, flow, is_whole);
        id
    }

    /// More of a body; the last of it, if that is so.
    pub(super) fn body(&mut self, id: u32, piece: &[u8], is_whole: bool) {
        let (Some(stream), Some(exchange)) = (self.streams.get_mut(&id), self.host.memory.exchanges.get_mut(&id))
        else {
            return;
        };
        if stream.is_whole {
            return;
        }
        stream.is_whole = is_whole;
        stream.received.extend_from_slice(piece);
        exchange.body.extend_from_slice(piece);
        let size = exchange.body.len();
        let flow = self.enter(id, "request body", |gateway, host| gateway.on_request_body(host, id, size, is_whole));
        self.went(id, flow, is_whole);
    }

    pub(super) fn request_trailers(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.is_whole) else { return };
        stream.is_whole = true;
        let flow = self.enter(id, "request trailers", |gateway, host| gateway.on_request_trailers(host, id));
        self.went(id, flow, true);
    }

    /// After a callback: what is not held back goes on.
    fn went(&mut self, id: u32, flow: Flow, is_whole: bool) {
        self.resumed();
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.flow = flow;
        see(("flow", flow == Flow::Continue, is_whole));
        if flow == Flow::Continue {
            self.goes_on(id);
        }
    }

    /// Requests that were let go on do so.
    fn resumed(&mut self) {
        for id in std::mem::take(&mut self.host.memory.woken) {
            let (Some(stream), Some(exchange)) = (self.streams.get_mut(&id), self.host.memory.exchanges.get(&id))
            else {
                continue;
            };
            if exchange.resumed > stream.resumed {
                stream.resumed += 1;
                assert_eq!(exchange.resumed, stream.resumed, "{id} is resumed twice");
                assert_eq!(stream.flow, Flow::Pause, "{id} did not wait");
                assert!(exchange.answered.is_none(), "{id} is resumed and answered");
                stream.flow = Flow::Continue;
                self.goes_on(id);
            }
        }
    }

    fn goes_on(&mut self, id: u32) {
        let (Some(stream), Some(exchange)) = (self.streams.get_mut(&id), self.host.memory.exchanges.get_mut(&id))
        else {
            return;
        };
        stream.sent.append(&mut exchange.body);
        if exchange.answered.is_some() || !stream.is_whole || std::mem::replace(&mut stream.has_gone, true) {
            return;
        }
        let is_json = |body: &[u8]| serde_json::from_slice::<IgnoredAny>(body).is_ok();
        if stream.sent != stream.received && is_json(&stream.received) {
            let text = String::from_utf8_lossy(&stream.sent);
            assert!(is_json(&stream.sent), "{:?} became {text:?}", String::from_utf8_lossy(&stream.received));
            see("patched");
        }
        if stream.length == Some(stream.received.len()) {
            let length = header_of(&exchange.request, "content-length").and_then(|length| length.parse().ok());
            assert_eq!(length, Some(stream.sent.len()), "{id}: its length");
        }
        self.check_destination(id);
    }

    /// The pool and the endpoints of a decision are there.
    fn check_destination(&self, id: u32) {
        let Some(exchange) = self.host.memory.exchanges.get(&id) else { return };
        let fleet = &self.gateway.worker.router.config().fleet;
        let Some(cluster) = header_of(&exchange.request, names::POOL_HEADER) else { return };
        assert!(fleet.pools.iter().any(|pool| pool.cluster == cluster), "no pool has the cluster {cluster}");
        let endpoints = header_of(&exchange.request, names::ENDPOINT_HEADER).unwrap_or_default();
        for address in endpoints.split(',').filter(|address| !address.is_empty()) {
            let instance = fleet.instance_at(address).and_then(|instance| fleet.instance(instance));
            let is_there = instance.is_some_and(|instance| instance.presence != Presence::Gone);
            assert!(is_there || self.tampered, "the endpoint {address} is not there");
        }
        see(("endpoints", endpoints.matches(',').count()));
    }

    // === attempts ===

    /// Another attempt at this address; the one before is over.
    pub(super) fn attempt(&mut self, id: u32, address: &str, is_whole: bool, knows: bool) {
        if !self.streams.get(&id).is_some_and(|stream| stream.has_gone) {
            return;
        }
        let Some(exchange) = self.host.memory.exchanges.get_mut(&id).filter(|e| e.answered.is_none()) else { return };
        exchange.attempts += 1;
        exchange.properties.insert("upstream.address".to_owned(), address.to_owned());
        exchange.properties.remove("upstream.local_address");
        exchange.body = self.streams.get(&id).map(|stream| stream.sent.clone()).unwrap_or_default();
        let size = exchange.body.len();
        self.end_attempt(id);
        self.host.memory.current = id;
        let Some(context) = context_of(&self.host) else { return };
        let mut attempt = Attempt::default();
        let flow = self.enter(id, "attempt", |gateway, host| {
            attempt.on_request_headers(host, knows.then_some(gateway), context, is_whole || size == 0)
        });
        if flow == Flow::Continue
            && size > 0
            && self.host.memory.exchanges.get(&id).is_some_and(|e| e.answered.is_none())
        {
            self.enter(id, "attempt body", |_, host| {
                attempt.on_request_body(host, size, is_whole);
                if !is_whole {
                    attempt.on_request_trailers(host);
                }
            });
            let before = self.streams.get(&id).map(|stream| stream.sent.as_slice()).unwrap_or_default();
            let is_json = |body: &[u8]| serde_json::from_slice::<IgnoredAny>(body).is_ok();
            let after = self.host.memory.exchanges.get(&id).map(|e| e.body.as_slice()).unwrap_or_default();
            assert!(after == before || !is_json(before) || is_json(after), "{before:?} became {after:?}");
        }
        if let Some(exchange) = self.host.memory.exchanges.get_mut(&id) {
            exchange.body.clear();
        }
        self.host.memory.woken.clear();
        self.attempts.insert(id, attempt);
    }

    /// The instance of an attempt has the request, and answers with this status or breaks it off.
    pub(super) fn attempt_answers(&mut self, id: u32, status: Option<&str>) {
        let Some(mut attempt) = self.attempts.remove(&id) else { return };
        if let Some(exchange) = self.host.memory.exchanges.get_mut(&id) {
            exchange.properties.insert("upstream.local_address".to_owned(), "10.0.0.9:1".to_owned());
            if let Some(status) = status {
                exchange.response = vec![(":status".to_owned(), status.to_owned())];
            }
        }
        self.enter(id, "attempt answers", |gateway, host| {
            if status.is_some() {
                attempt.on_response_headers(host, Some(gateway), id);
            }
            attempt.on_done(host, Some(gateway), id);
        });
    }

    fn end_attempt(&mut self, id: u32) {
        if let Some(mut attempt) = self.attempts.remove(&id) {
            self.enter(id, "attempt over", |gateway, host| attempt.on_done(host, Some(gateway), id));
        }
    }

    // === responses ===

    pub(super) fn response(&mut self, id: u32, headers: Headers, properties: &[(&str, &str)], is_whole: bool) {
        let Some(exchange) = self.host.memory.exchanges.get_mut(&id) else { return };
        exchange.response = headers;
        for (name, value) in properties {
            exchange.properties.insert((*name).to_owned(), (*value).to_owned());
        }
        let flow = self.enter(id, "response headers", |gateway, host| gateway.on_response_headers(host, id, is_whole));
        see(("response", flow == Flow::Continue));
        let seen = self.host.memory.exchanges.get(&id).map(|exchange| exchange.response.as_slice()).unwrap_or_default();
        self.decisions.extend(header_of(seen, names::DECISION_ID_RESPONSE_HEADER).map(str::to_owned));
        self.host.memory.woken.clear();
    }

    pub(super) fn response_body(&mut self, id: u32, piece: &[u8], is_whole: bool) {
        if let Some(exchange) = self.host.memory.exchanges.get_mut(&id) {
            exchange.response_body = piece.to_vec();
        }
        self.enter(id, "response body", |gateway, host| gateway.on_response_body(host, id, piece.len(), is_whole));
    }

    pub(super) fn response_trailers(&mut self, id: u32) {
        self.enter(id, "response trailers", |gateway, host| gateway.on_response_trailers(host, id));
    }

    /// The stream is over; a callback for it may come all the same.
    pub(super) fn end(&mut self, id: u32, only_logs: bool) {
        self.end_attempt(id);
        self.enter(id, "log", |gateway, host| gateway.release(host, id));
        if !only_logs {
            self.enter(id, "end", |gateway, host| gateway.on_end(host, id));
            self.host.memory.exchanges.remove(&id);
            self.streams.remove(&id);
            assert!(!self.gateway.has(id), "{id} is over, and still there");
        }
    }

    // === the root context ===

    pub(super) fn tick(&mut self) {
        self.enter(ROOT, "tick", |gateway, host| gateway.on_tick(host, ROOT));
        assert_eq!(self.host.memory.current, ROOT, "what follows is about the root context");
        self.resumed();
    }

    /// A call is answered, with headers or without.
    pub(super) fn call_answered(&mut self, number: u32, answer: Option<(Headers, Vec<u8>)>) {
        let has_headers = answer.is_some();
        self.host.memory.call_response = answer.unwrap_or_default();
        let size = self.host.memory.call_response.1.len();
        self.enter(ROOT, "call answered", |gateway, host| {
            gateway.on_call_response(host, ROOT, number, has_headers, size)
        });
        assert_eq!(self.host.memory.current, ROOT, "what follows is about the root context");
        self.resumed();
    }

    pub(super) fn leave(&mut self) {
        self.has_left = true;
        self.enter(ROOT, "leave", |gateway, host| gateway.on_done(host));
    }

    /// Everything ends: nothing is left.
    pub(super) fn finish(&mut self) {
        let ids: Vec<u32> = self.streams.keys().copied().collect();
        ids.into_iter().for_each(|id| self.end(id, false));
        for call in std::mem::take(&mut self.calls) {
            self.call_answered(call.number, None);
        }
        assert_eq!(self.gateway.holding(), Holding::default(), "what is left");
        for counters in &self.gateway.worker.own_counters().0 {
            let left = (
                counters.outstanding_requests(),
                counters.outstanding_prompt_tokens(),
                counters.outstanding_output_tokens(),
            );
            assert_eq!(left, (0, 0, 0), "the load that is left");
        }
    }
}
