//! One request: headers held, body scanned as it comes, decision carried out, response observed, counters released once.

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, BufferType, MapType};

use crate::filter::access_log;
use crate::filter::answering::Answer;
use crate::filter::batching::Ticket;
use crate::filter::debug::Probing;
use crate::filter::deciding::{Headers, Reading};
use crate::filter::feedback;
use crate::filter::host;
use crate::filter::local;
use crate::filter::serving::Serving;
use crate::filter::worker::Shared;
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
    /// Whether the whole request is here.
    pub(super) received: bool,
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
    /// Its answer is certain, and waits until all of it is here.
    Answering(Box<Answer>),
}

impl Stream {
    pub(super) fn new(worker: Shared, id: u32) -> Stream {
        Stream { worker, id, request_id: String::new(), received: false, phase: Phase::Passing }
    }

    /// Leaves a request that asks for a decision to Envoy's own route.
    pub(super) fn leave(&mut self, api: Api, reason: &'static str) -> Action {
        let action = self.pass(reason);
        self.phase = Phase::Untouched(api);
        action
    }

    /// Lets Envoy's own route serve what is not read here, unless that would pass a policy's limits by.
    fn other_path(&mut self, method: &str, path: &str) -> Action {
        if self.may_generate(method, path) && self.refuses_unread() {
            return self.refuse_other_path();
        }
        self.pass("other_path")
    }

    fn refuse_other_path(&mut self) -> Action {
        let message = "This path has no limits here, and the policy of its route demands them.";
        self.refuse(None, &Refusal::new(403, "other_path", message))
    }

    /// Whether an instance may generate for a request that is not read.
    fn may_generate(&self, method: &str, path: &str) -> bool {
        let upgrades = || host::header(MapType::HttpRequestHeaders, "upgrade").is_some();
        (method == "POST" && openai::generates(path)) || (method != "POST" && upgrades())
    }

    /// Whether limits of the request's policy, or of its own headers, would be lost on what is not read.
    pub(super) fn refuses_unread(&self) -> bool {
        let mut headers = Headers::default();
        let loses = self.worker.with(|w| w.router.loses_limits(Stream::policy(w), |name| headers.values(name)));
        loses.unwrap_or(false)
    }

    /// Lets Envoy's own route serve.
    pub(super) fn pass(&mut self, reason: &'static str) -> Action {
        self.phase = Phase::Passing;
        access_log::publish_unrouted(&self.request_id, "passed", reason);
        self.worker.with(|w| w.statistics.count(&format!("untouched.{reason}")));
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
        self.received = end_of_stream;
        self.request_id = host::header(MapType::HttpRequestHeaders, names::REQUEST_ID_HEADER).unwrap_or_default();
        access_log::shorten(&mut self.request_id);
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
            Some(Call::Generate(Api::Named) | Call::ResponseItem { .. })
                if self.may_generate(&method, &path) && self.refuses_unread() =>
            {
                self.refuse_other_path()
            }
            Some(Call::ResponseItem { id }) => self.response_item(&id),
            Some(Call::Generate(api)) => self.begin(api, None, end_of_stream),
            Some(Call::Deployment { api, model, path }) => {
                host::set_header(MapType::HttpRequestHeaders, ":path", Some(&path));
                self.begin(api, Some(model), end_of_stream)
            }
        }
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        self.received = end_of_stream;
        let reading = match &mut self.phase {
            Phase::Reading(reading) => reading,
            Phase::Probing(probing) => {
                let probing = std::mem::take(probing);
                return self.probe(probing, size, end_of_stream);
            }
            Phase::Feedback(_) => return self.read_feedback(size, end_of_stream),
            Phase::Answering(_) => return self.discard(size),
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
        if !end_of_stream && size as u64 <= limit {
            return Action::Pause;
        }
        // The last piece may bring it beyond the limit.
        let is_whole = end_of_stream && size as u64 <= limit;
        match std::mem::replace(&mut self.phase, Phase::Passing) {
            Phase::Reading(reading) => {
                let action = self.decide(*reading, is_whole, size);
                if let Phase::Answering(_) = self.phase { self.discard(size) } else { action }
            }
            other => {
                self.phase = other;
                Action::Continue
            }
        }
    }

    fn on_http_request_trailers(&mut self, _trailers: usize) -> Action {
        // A body that ends with trailers has no last piece of its own.
        self.received = true;
        if self.give_answer() {
            return Action::Pause;
        }
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
        // Envoy has lost its patience with the rest of a request that is answered anyway.
        if self.give_answer() {
            return Action::Pause;
        }
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
            self.worker.with(|w| serving.begin(w, &details));
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
