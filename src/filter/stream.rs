//! One request: headers held, body scanned as it comes, decision carried out, response observed, counters released once.

use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, BufferType, MapType};

use crate::filter::access_log::{self, Entry, Timing};
use crate::filter::debug::Probing;
use crate::filter::feedback;
use crate::filter::host;
use crate::filter::worker::{Shared, Worker};
use crate::names;
use crate::openai::{self, Api, Call, Prompt, RequestScan, ResponseScan};
use crate::reckoning::Dispatch;
use crate::router::{Ask, Decision, Rung, Verdict};

/// Bytes of a body that are read at once: bounds the VM's memory whatever the body's size.
const PIECE: usize = 64 << 10;

/// The HTTP context of one request.
pub(super) struct Stream {
    worker: Shared,
    /// For the access log.
    request_id: String,
    phase: Phase,
}

enum Phase {
    /// Not ours, already answered, or over.
    Passing,
    /// Asked for a decision, and left to Envoy's own route.
    Untouched,
    /// Headers are held while the body comes.
    Reading(Box<Reading>),
    /// A question to the predictor: headers are held while the body comes.
    Probing(Box<Probing>),
    /// Sent to an instance.
    Serving(Box<Serving>),
    /// A feedback whose body comes.
    Feedback(feedback::Incoming),
}

struct Reading {
    api: Api,
    policy: usize,
    scan: RequestScan,
    scanned: usize,
    started: Duration,
    scan_time: Duration,
    content_length: Option<u64>,
}

struct Serving {
    api: Api,
    started: Duration,
    decision: Decision,
    /// Taken when the request ends, so that its counters are released exactly once.
    dispatch: Option<Dispatch>,
    entry: Entry,
    decision_us: u64,
    response: Option<ResponseScan>,
    content_events: u64,
    response_known: bool,
    first_byte: Option<Duration>,
    /// Whether an instance has answered, and not with an error.
    succeeded: bool,
}

impl Stream {
    pub(super) fn new(worker: Shared) -> Stream {
        Stream { worker, request_id: String::new(), phase: Phase::Passing }
    }

    /// Answers the client and ends the request here.
    fn answer(&mut self, status: u16, body: &str) -> Action {
        self.phase = Phase::Passing;
        let headers = vec![("content-type", "application/json")];
        let _ = hostcalls::send_http_response(u32::from(status), headers, Some(body.as_bytes()));
        Action::Pause
    }

    fn refuse(&mut self, api: Option<Api>, status: u16, message: &str) -> Action {
        access_log::publish_unrouted(&self.request_id, "refused", message);
        self.worker.with(|w| w.metrics.count(&format!("routebalance.refused.{status}")));
        self.answer(status, &openai::error_body(api, status, message))
    }

    /// Leaves a request that asks for a decision to Envoy's own route.
    fn leave(&mut self, reason: &'static str) -> Action {
        let action = self.pass(reason);
        self.phase = Phase::Untouched;
        action
    }

    /// Lets Envoy's own route serve.
    fn pass(&mut self, reason: &'static str) -> Action {
        self.phase = Phase::Passing;
        access_log::publish_unrouted(&self.request_id, "passed", reason);
        self.worker.with(|w| w.metrics.count(&format!("routebalance.untouched.{reason}")));
        Action::Continue
    }

    fn models(&mut self, wanted: Option<&str>) -> Action {
        let created = host::now().as_secs();
        let body = self.worker.with(|w| {
            let config = w.router.config();
            let mut names =
                config.virtual_models.iter().chain(config.fleet.models.iter().map(|m| &m.name)).map(String::as_str);
            match wanted {
                None => Some(openai::models_body(names, created)),
                Some(name) => names.find(|n| *n == name).map(|n| openai::model_body(n, created)),
            }
        });
        match body.flatten() {
            Some(body) => {
                access_log::publish_unrouted(&self.request_id, "answered", "models");
                self.answer(200, &body)
            }
            None => {
                let message = format!("The model `{}` does not exist.", wanted.unwrap_or_default());
                self.refuse(None, 404, &message)
            }
        }
    }

    /// A question to the predictor, read up to here.
    fn probe(&mut self, mut probing: Box<Probing>, size: usize, end_of_stream: bool) -> Action {
        probing.read(size);
        let limit = self.worker.with(|w| w.router.config().max_buffered_bytes).unwrap_or(u64::MAX);
        if size as u64 >= limit {
            return self.refuse(None, 413, "The request body is too large.");
        }
        if !end_of_stream {
            self.phase = Phase::Probing(probing);
            return Action::Pause;
        }
        match self.worker.with(|w| probing.answer(&w.router)) {
            Some(Ok(body)) => {
                access_log::publish_unrouted(&self.request_id, "answered", "debug_predict");
                self.answer(200, &body)
            }
            Some(Err((status, message))) => self.refuse(None, status, &message),
            None => self.leave("busy"),
        }
    }

    /// Whether a request is a question to the predictor, and may be.
    fn is_probe(&self, method: &str, path: &str) -> bool {
        let asks = method == "POST" && path == names::DEBUG_PREDICT_PATH;
        asks && self.worker.with(|w| w.router.config().debug_predict) == Some(true)
    }

    /// A stored response belongs to the instance that made it.
    fn response_item(&mut self, id: &str) -> Action {
        let found = self.worker.with(|w| {
            let fleet = &w.router.config().fleet;
            let instance = fleet.instances.get(w.holder(id)?)?;
            Some((fleet.pools.get(instance.pool)?.cluster.clone(), instance.address.clone()))
        });
        match found.flatten() {
            Some((cluster, address)) => {
                direct(&cluster, &address);
                access_log::publish_unrouted(&self.request_id, "returned", "response_item");
                Action::Continue
            }
            None => self.pass("unknown_response"),
        }
    }

    /// Whether a request is a feedback, and feedback is taken.
    fn is_feedback(&self, path: &str) -> bool {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        path == names::FEEDBACK_PATH
            && self.worker.with(|w| w.router.config().learning.feedback_secret.is_some()).unwrap_or(false)
    }

    fn begin_feedback(&mut self, method: &str, end_of_stream: bool) -> Action {
        let authorization = host::header(MapType::HttpRequestHeaders, "authorization");
        let length = host::header(MapType::HttpRequestHeaders, "content-length").and_then(|v| v.trim().parse().ok());
        let admitted = self.worker.with(|w| feedback::admit(w, method, authorization.as_deref(), length));
        match admitted {
            None => self.refuse_feedback(503, "The gateway is busy."),
            Some(Err((status, message))) => self.refuse_feedback(status, message),
            Some(Ok(())) if end_of_stream => self.finish_feedback(&feedback::Incoming::default()),
            Some(Ok(())) => {
                self.phase = Phase::Feedback(feedback::Incoming::default());
                Action::Pause
            }
        }
    }

    fn refuse_feedback(&mut self, status: u16, message: &str) -> Action {
        access_log::publish_unrouted(&self.request_id, "refused", message);
        self.worker.with(|w| w.metrics.count("routebalance.feedback.refused"));
        self.answer(status, &openai::error_body(None, status, message))
    }

    fn finish_feedback(&mut self, incoming: &feedback::Incoming) -> Action {
        match self.worker.with(|w| incoming.finish(w)) {
            None => self.refuse_feedback(503, "The gateway is busy."),
            Some(Err((status, message))) => self.refuse_feedback(status, &message),
            Some(Ok(feedback::Accepted { feedback, model, propensity })) => {
                access_log::publish_feedback(&self.request_id, &feedback, &model, propensity);
                self.worker.with(|w| w.metrics.count("routebalance.feedback.accepted"));
                self.answer(200, &feedback.accepted(&model))
            }
        }
    }

    fn read_feedback(&mut self, size: usize, end_of_stream: bool) -> Action {
        let Phase::Feedback(incoming) = &mut self.phase else { return Action::Continue };
        let piece = host::buffer(BufferType::HttpRequestBody, incoming.len(), size.saturating_sub(incoming.len()));
        if let Err((status, message)) = incoming.push(&piece) {
            return self.refuse_feedback(status, message);
        }
        if !end_of_stream {
            return Action::Pause;
        }
        let incoming = std::mem::take(incoming);
        self.finish_feedback(&incoming)
    }

    /// The policy of the request's route: its metadata, its name, or the default.
    fn policy(worker: &Worker) -> usize {
        let config = worker.router.config();
        let metadata = ["xds", "route_metadata", "filter_metadata", names::METADATA_NAMESPACE, names::METADATA_POLICY];
        host::property(&metadata)
            .and_then(|name| config.policy_named(&name))
            .or_else(|| host::property(&["xds", "route_name"]).and_then(|name| config.policy_of_route(&name)))
            .unwrap_or(config.default_policy)
    }

    fn begin(&mut self, api: Api, end_of_stream: bool) -> Action {
        if host::header(MapType::HttpRequestHeaders, "content-encoding").is_some_and(|e| e != "identity") {
            return self.leave("encoded_body");
        }
        let policy = self.worker.with(|w| Stream::policy(w)).unwrap_or_default();
        let content_length =
            host::header(MapType::HttpRequestHeaders, "content-length").and_then(|v| v.trim().parse().ok());
        let reading = Reading {
            api,
            policy,
            scan: RequestScan::new(api),
            scanned: 0,
            started: host::now(),
            scan_time: Duration::ZERO,
            content_length,
        };
        if end_of_stream {
            return self.decide(reading, true, 0);
        }
        self.phase = Phase::Reading(Box::new(reading));
        Action::Pause
    }

    fn decide(&mut self, mut reading: Reading, whole: bool, buffered: usize) -> Action {
        let api = reading.api;
        let prompt = if whole {
            match reading.scan.finish() {
                Ok(prompt) => prompt,
                Err(error) => return self.refuse(Some(api), 400, &error.to_string()),
            }
        } else {
            let prompt = reading.scan.so_far();
            if prompt.model.is_none() {
                let message = "The request body is too large to be read whole, and `model` is not near its start.";
                return self.refuse(Some(api), 413, message);
            }
            prompt
        };
        let worker = self.worker.clone();
        match worker.with(|w| route(w, &reading, &prompt)) {
            None => self.leave("busy"),
            Some((Verdict::Untouched(reason), _)) => self.leave(reason),
            Some((Verdict::Refused { status, message }, _)) => self.refuse(Some(api), status, &message),
            Some((Verdict::Decided(decision), timing)) => {
                worker.with(|w| self.dispatch(w, reading, &prompt, *decision, timing, buffered));
                Action::Continue
            }
        }
    }

    /// Carries a decision out.
    fn dispatch(
        &mut self,
        worker: &mut Worker,
        reading: Reading,
        prompt: &Prompt,
        decision: Decision,
        mut timing: Timing,
        buffered: usize,
    ) {
        let now = host::now();
        let config = worker.router.config();
        let address = |i: &usize| config.fleet.instances.get(*i).map(|i| i.address.as_str());
        let Some(pool) = config.fleet.pools.get(decision.pool) else { return };
        let endpoints: Vec<&str> =
            std::iter::once(&decision.instance).chain(&decision.fallbacks).filter_map(address).collect();
        patch_body(prompt, &pool.served_model, buffered, reading.content_length);
        direct(&pool.cluster, &endpoints.join(","));
        timing.patch = host::now().saturating_sub(now);
        let entry = Entry::new(reading.api, config, reading.policy, prompt, &decision, timing);
        entry.publish(&self.request_id);
        if decision.generates() {
            worker.remember_decision(&self.request_id, &decision);
        }
        let counter = format!("routebalance.decisions.{}.{}", pool.name, decision.rung.name());
        worker.metrics.count(&counter);
        let decision_us = u64::try_from(timing.decision.as_micros()).unwrap_or(u64::MAX);
        worker.metrics.observe("routebalance.decision_us", decision_us);
        let dispatch = Dispatch {
            instance: decision.instance,
            prompt_tokens: decision.prompt_tokens,
            output_tokens: decision.output_tokens,
        };
        worker.dispatch(&dispatch, now);
        self.phase = Phase::Serving(Box::new(Serving {
            api: reading.api,
            started: reading.started,
            decision,
            dispatch: Some(dispatch),
            entry,
            decision_us,
            response: None,
            content_events: 0,
            response_known: false,
            first_byte: None,
            succeeded: false,
        }));
    }

    /// The stream is over, however: releases what the request still holds, once.
    fn release(&mut self) {
        if let Phase::Serving(serving) = &mut self.phase
            && let Some(dispatch) = serving.dispatch.take()
        {
            self.worker.with(|w| w.finish(dispatch));
        }
    }
}

/// Asks the router, and says how long it took.
fn route(worker: &mut Worker, reading: &Reading, prompt: &Prompt) -> (Verdict, Timing) {
    let asked_at = host::now();
    let (loads, sequence) = worker.loads(asked_at);
    let holder = prompt.previous_response_id.as_deref().and_then(|id| worker.holder(id));
    let draw = worker.learner.draw();
    let ask = Ask { api: reading.api, prompt, policy: reading.policy, holder, sequence, draw };
    let verdict = worker.router.route(&ask, loads.as_deref(), worker.learner.learned());
    let timing =
        Timing { scan: reading.scan_time, decision: host::now().saturating_sub(asked_at), patch: Duration::ZERO };
    (verdict, timing)
}

/// Makes Envoy send the request to an endpoint of a cluster.
fn direct(cluster: &str, endpoints: &str) {
    host::set_header(MapType::HttpRequestHeaders, names::POOL_HEADER, Some(cluster));
    host::set_header(MapType::HttpRequestHeaders, names::ENDPOINT_HEADER, Some(endpoints));
    host::set_filter_state(names::ROUTED_STATE, "yes");
    host::clear_route_cache();
}

/// Rewrites `model`. The host replaces a buffer's beginning only, so what stands before the name is written again with it.
fn patch_body(prompt: &Prompt, served_model: &str, buffered: usize, content_length: Option<u64>) {
    let Some(patch) = prompt.patch_model(served_model) else { return };
    let (Ok(start), Ok(end)) = (usize::try_from(patch.replace.start), usize::try_from(patch.replace.end)) else {
        return;
    };
    if end > buffered || start > end {
        return;
    }
    let mut beginning = host::buffer(BufferType::HttpRequestBody, 0, start);
    if beginning.len() != start {
        return;
    }
    beginning.extend_from_slice(patch.with.as_bytes());
    if hostcalls::set_buffer(BufferType::HttpRequestBody, 0, end, &beginning).is_err() {
        return;
    }
    if let Some(length) = content_length {
        let length = length.saturating_add(patch.with.len() as u64).saturating_sub((end - start) as u64);
        host::set_header(MapType::HttpRequestHeaders, "content-length", Some(&length.to_string()));
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
        if self.is_probe(&method, &path) {
            return self.probe(Box::default(), 0, end_of_stream);
        }
        match openai::call_of(&method, &path) {
            None if self.is_feedback(&path) => self.begin_feedback(&method, end_of_stream),
            None => self.pass("other_path"),
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
        if let Phase::Untouched = self.phase {
            host::set_header(MapType::HttpResponseHeaders, names::RUNG_RESPONSE_HEADER, Some(Rung::Untouched.name()));
        }
        let Phase::Serving(serving) = &mut self.phase else { return Action::Continue };
        let content_type = host::header(MapType::HttpResponseHeaders, "content-type").unwrap_or_default();
        let is_sse = content_type.starts_with("text/event-stream");
        serving.response = Some(ResponseScan::new(serving.api, is_sse));
        serving.succeeded = host::header(MapType::HttpResponseHeaders, ":status").is_some_and(|status| status == "200");
        let upstream = host::property(&["upstream", "address"]);
        self.worker.with(|w| {
            let config = w.router.config();
            let set = |name, value: &str| host::set_header(MapType::HttpResponseHeaders, name, Some(value));
            if let Some(model) = config.fleet.models.get(serving.decision.model) {
                set(names::MODEL_RESPONSE_HEADER, &model.name);
            }
            if let Some(pool) = config.fleet.pools.get(serving.decision.pool) {
                set(names::POOL_RESPONSE_HEADER, &pool.name);
            }
            set(names::RUNG_RESPONSE_HEADER, serving.decision.rung.name());
            set(names::DECISION_US_RESPONSE_HEADER, &serving.decision_us.to_string());
            let Some(upstream) = upstream else { return };
            if config.expose_endpoint {
                set(names::ENDPOINT_RESPONSE_HEADER, &upstream);
            }
            let instance = config.fleet.instance_at(&upstream);
            if let (Some(instance), Some(dispatch)) = (instance, serving.dispatch.as_mut())
                && instance != dispatch.instance
            {
                serving.entry.moved(&upstream);
                w.metrics.count("routebalance.served_by_fallback");
                w.move_to(dispatch, instance, host::now());
            }
        });
        if end_of_stream {
            self.release();
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        let Phase::Serving(serving) = &mut self.phase else { return Action::Continue };
        let Some(scan) = serving.response.as_mut() else { return Action::Continue };
        let mut read = 0;
        while read < size {
            let piece = host::buffer(BufferType::HttpResponseBody, read, PIECE.min(size - read));
            if piece.is_empty() {
                break;
            }
            read = read.saturating_add(piece.len());
            scan.push(&piece);
        }
        let seen = scan.observed();
        let new_events = seen.content_events.saturating_sub(serving.content_events);
        serving.content_events = seen.content_events;
        self.worker.with(|w| {
            if let Some(dispatch) = serving.dispatch.as_mut() {
                let began = new_events > 0 || seen.ended;
                if began && serving.first_byte.is_none() {
                    serving.first_byte = Some(host::now());
                    w.prefilled(dispatch);
                }
                if new_events > 0 {
                    w.streamed(dispatch, new_events);
                }
            }
            if let (Some(id), Some(dispatch), false) =
                (seen.response_id.as_deref(), serving.dispatch.as_ref(), serving.response_known)
            {
                serving.response_known = true;
                w.remember_response(id, dispatch.instance);
            }
            if end_of_stream {
                let now = host::now();
                let ttft = serving.first_byte.map(|at| at.saturating_sub(serving.started));
                let e2e = now.saturating_sub(serving.started);
                serving.entry.answered(w.router.config(), &serving.decision, seen, ttft, e2e);
                serving.entry.publish(&self.request_id);
                if let Some(lesson) = serving.decision.lesson(seen).filter(|_| serving.succeeded) {
                    w.learner.learn_length(&lesson);
                }
            }
        });
        if end_of_stream {
            self.release();
        }
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
