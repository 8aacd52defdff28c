//! One request: headers held, body scanned as it comes, decision carried out, response observed, counters released once.

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, BufferType, MapType};

use crate::filter::access_log;
use crate::filter::batching::Ticket;
use crate::filter::debug::Probing;
use crate::filter::deciding::Reading;
use crate::filter::feedback;
use crate::filter::host;
use crate::filter::local;
use crate::filter::serving::Serving;
use crate::filter::worker::Shared;
use crate::fleet::OtherPaths;
use crate::names;
use crate::openai::{self, Api, Call};
use crate::router::{Refusal, Rung};

/// Bytes of a body that are read at once: bounds the VM's memory whatever the body's size.
pub(super) const PIECE: usize = 64 << 10;

/// The HTTP context of one request.
pub(super) struct Stream {
    pub(super) worker: Shared,
    /// The host's number of this context.
    pub(super) id: u32,
    /// For the access log.
    pub(super) request_id: String,
    pub(super) phase: Phase,
}

pub(super) enum Phase {
    /// Not ours, already answered, or over.
    Passing,
    /// Asked for a decision, and left to Envoy's own route.
    Untouched(Api),
    /// Headers are held while the body comes.
    Reading(Box<Reading>),
    /// The whole request is held until its batch is decided.
    Waiting(Ticket),
    /// A question to the predictor: headers are held while the body comes.
    Probing(Box<Probing>),
    /// Sent to an instance.
    Serving(Box<Serving>),
    /// A feedback whose body comes.
    Feedback(feedback::Incoming),
}

impl Stream {
    pub(super) fn new(worker: Shared, id: u32) -> Stream {
        Stream { worker, id, request_id: String::new(), phase: Phase::Passing }
    }

    /// Answers the client and ends the request here.
    pub(super) fn answer(&mut self, status: u16, body: &str) -> Action {
        self.answer_with(status, &[], body)
    }

    fn answer_with(&mut self, status: u16, headers: &[(&str, &str)], body: &str) -> Action {
        self.phase = Phase::Passing;
        let origin = self.worker.with(|w| w.router.config().allow_origin.clone()).flatten();
        let origin = origin.as_deref().map(|origin| (names::ALLOW_ORIGIN_RESPONSE_HEADER, origin));
        let own = [("content-type", "application/json")].into_iter().chain(origin);
        let headers = own.chain(headers.iter().copied()).collect();
        let _ = hostcalls::send_http_response(u32::from(status), headers, Some(body.as_bytes()));
        Action::Pause
    }

    pub(super) fn refuse(&mut self, api: Option<Api>, refusal: &Refusal) -> Action {
        let Refusal { status, reason, message, retry_after } = refusal;
        access_log::publish_unrouted(&self.request_id, "refused", message);
        self.worker.with(|w| {
            w.metrics.count(&format!("routebalance.refused.{status}"));
            w.metrics.count(&format!("routebalance.refused_for.{reason}"));
        });
        let seconds = retry_after.map(|after| after.as_secs().to_string());
        let headers: Vec<(&str, &str)> = std::iter::once((names::REFUSED_REASON_RESPONSE_HEADER, *reason))
            .chain(seconds.as_deref().map(|seconds| ("retry-after", seconds)))
            .collect();
        self.answer_with(*status, &headers, &openai::error_body(api, *status, message))
    }

    /// Says in the API's shape what Envoy has said in its own words.
    fn translate(&mut self, api: Api, words: &str) -> Action {
        let status = host::header(MapType::HttpResponseHeaders, ":status").and_then(|s| s.parse().ok()).unwrap_or(503);
        self.worker.with(|w| w.metrics.count(&format!("routebalance.unserved.{status}")));
        let own = |name| host::header(MapType::HttpResponseHeaders, name).map(|value| (name, value));
        let mut kept: Vec<(&str, String)> =
            [names::MODEL_RESPONSE_HEADER, names::POOL_RESPONSE_HEADER, names::RUNG_RESPONSE_HEADER]
                .into_iter()
                .filter_map(own)
                .collect();
        if status == 503 {
            kept.push((names::RETRY_AFTER_HEADER, "1".to_owned()));
        }
        let headers: Vec<(&str, &str)> = kept.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.answer_with(status, &headers, &openai::error_body(Some(api), status, words))
    }

    /// Leaves a request that asks for a decision to Envoy's own route.
    pub(super) fn leave(&mut self, api: Api, reason: &'static str) -> Action {
        let action = self.pass(reason);
        self.phase = Phase::Untouched(api);
        action
    }

    /// Lets Envoy's own route serve what is not read here, unless that would pass a policy's limits by.
    fn other_path(&mut self, method: &str, path: &str) -> Action {
        let upgrades = || host::header(MapType::HttpRequestHeaders, "upgrade").is_some();
        let counts = (method == "POST" && openai::generates(path)) || (method != "POST" && upgrades());
        if counts && self.refuses_unread() {
            let message = "This path has no limits here, and the policy of its route demands them.";
            return self.refuse(None, &Refusal::new(403, "other_path", message));
        }
        self.pass("other_path")
    }

    /// Whether the policy of the request's route refuses what would pass its limits by.
    pub(super) fn refuses_unread(&self) -> bool {
        let refuses = self.worker.with(|w| {
            let policy = Stream::policy(w);
            w.router.config().policies.get(policy).is_some_and(|policy| policy.other_paths == OtherPaths::Refuse)
        });
        refuses.unwrap_or(false)
    }

    /// Lets Envoy's own route serve.
    pub(super) fn pass(&mut self, reason: &'static str) -> Action {
        self.phase = Phase::Passing;
        access_log::publish_unrouted(&self.request_id, "passed", reason);
        self.worker.with(|w| w.metrics.count(&format!("routebalance.untouched.{reason}")));
        Action::Continue
    }

    /// The response has ended by itself.
    fn end(&mut self) {
        if let Phase::Serving(serving) = &mut self.phase {
            self.worker.with(|w| serving.end(w, &self.request_id));
        }
        self.release();
    }

    /// The stream is over, however: releases what the request still holds, once.
    fn release(&mut self) {
        self.settle();
        if let Phase::Serving(serving) = &mut self.phase {
            self.worker.with(|w| serving.release(w, &self.request_id));
        }
    }
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _headers: usize, end_of_stream: bool) -> Action {
        // What only the filter may say is removed, whoever wrote it.
        host::set_header(MapType::HttpRequestHeaders, names::POOL_HEADER, None);
        host::set_header(MapType::HttpRequestHeaders, names::ENDPOINT_HEADER, None);
        self.request_id = host::header(MapType::HttpRequestHeaders, names::REQUEST_ID_HEADER).unwrap_or_default();
        let method = host::header(MapType::HttpRequestHeaders, ":method").unwrap_or_default();
        let path = host::header(MapType::HttpRequestHeaders, ":path").unwrap_or_default();
        if local::is_fatal(&self.worker, &method, &path) {
            std::process::abort();
        }
        if self.is_probe(&method, &path) {
            return self.probe(Box::default(), 0, end_of_stream);
        }
        match openai::call_of(&method, &path) {
            None if self.is_feedback(&path) => self.begin_feedback(&method, end_of_stream),
            None => self.other_path(&method, &path),
            Some(Call::Models) => self.models(None),
            Some(Call::Model { name }) => self.models(Some(&name)),
            Some(Call::ResponseItem { id }) => self.response_item(&id),
            Some(Call::Generate(api)) => self.begin(api, end_of_stream),
        }
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        let reading = match &mut self.phase {
            Phase::Reading(reading) => reading,
            Phase::Probing(probing) => {
                let probing = std::mem::take(probing);
                return self.probe(probing, size, end_of_stream);
            }
            Phase::Feedback(_) => return self.read_feedback(size, end_of_stream),
            _ => return Action::Continue,
        };
        let before = host::now();
        while reading.scanned < size {
            let piece = host::buffer(BufferType::HttpRequestBody, reading.scanned, PIECE.min(size - reading.scanned));
            if piece.is_empty() {
                break;
            }
            reading.scanned = reading.scanned.saturating_add(piece.len());
            reading.scan.push(&piece);
        }
        reading.scan_time = reading.scan_time.saturating_add(host::now().saturating_sub(before));
        let limit = self.worker.with(|w| w.router.config().max_buffered_bytes).unwrap_or(u64::MAX);
        if !end_of_stream && (size as u64) < limit {
            return Action::Pause;
        }
        match std::mem::replace(&mut self.phase, Phase::Passing) {
            Phase::Reading(reading) => self.decide(*reading, end_of_stream, size),
            other => {
                self.phase = other;
                Action::Continue
            }
        }
    }

    fn on_http_request_trailers(&mut self, _trailers: usize) -> Action {
        // A body that ends with trailers has no last piece of its own.
        if let Phase::Feedback(incoming) = &mut self.phase {
            let incoming = std::mem::take(incoming);
            return self.finish_feedback(&incoming);
        }
        match std::mem::replace(&mut self.phase, Phase::Passing) {
            Phase::Reading(reading) => {
                let scanned = reading.scanned;
                self.decide(*reading, true, scanned)
            }
            Phase::Probing(probing) => self.probe(probing, 0, true),
            other => {
                self.phase = other;
                Action::Continue
            }
        }
    }

    fn on_http_response_headers(&mut self, _headers: usize, end_of_stream: bool) -> Action {
        self.settle();
        let api = match &self.phase {
            Phase::Untouched(api) => *api,
            Phase::Reading(reading) => reading.api,
            Phase::Serving(serving) => serving.api(),
            _ => return Action::Continue,
        };
        let details = host::property(&["response", "code_details"]).unwrap_or_default();
        let words = openai::words_of_envoy(&details);
        if let Phase::Untouched(_) = self.phase {
            let rung = Rung::Untouched.name();
            host::set_header(MapType::HttpResponseHeaders, names::RUNG_RESPONSE_HEADER, Some(rung));
        }
        if let Phase::Serving(serving) = &mut self.phase {
            self.worker.with(|w| serving.begin(w, &self.request_id, &details));
            if end_of_stream || words.is_some() {
                self.end();
            }
        }
        words.map_or(Action::Continue, |words| self.translate(api, words))
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        let Phase::Serving(serving) = &mut self.phase else { return Action::Continue };
        self.worker.with(|w| serving.read(w, size));
        if end_of_stream {
            self.end();
        }
        Action::Continue
    }

    fn on_http_response_trailers(&mut self, _trailers: usize) -> Action {
        // An answer that ends with trailers has no last piece of its own.
        self.end();
        Action::Continue
    }

    fn on_log(&mut self) {
        self.release();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.release();
    }
}
