//! A request on its way: what its response shows, and the release of what it holds.

use std::time::Duration;

use super::access_log::{LogEntry, Response};
use super::attempt::AttemptPlan;
use super::checkup::Checkup;
use super::deciding::RequestReading;
use super::rerun::{Served, Whole};
use super::{Body, Host, Map, PIECE};
use crate::affinity::{Keys, Placement};
use crate::fleet::InstanceId;
use crate::health::Suspect;
use crate::learning::speed::AnswerTiming;
use crate::names;
use crate::openai::{Api, Observed, ResponseScan};
use crate::reckoning::Dispatch;
use crate::router::Decision;
use crate::shared::Board;
use crate::telemetry;
use crate::worker::{Counter, Worker};

/// What was made of a request when it was sent.
pub(super) struct Sent {
    pub(super) checkup: Checkup,
    /// What further attempts need to know.
    pub(super) plan: AttemptPlan,
    /// What another instance needs to be asked for the answer.
    pub(super) whole: Option<Whole>,
    pub(super) entry: LogEntry,
    /// The name by which a client may score the answer.
    pub(super) decision_id: Option<String>,
    pub(super) decision_us: u64,
    /// Whether the instance's load was asked for here, and not by the client.
    pub(super) asks_load: bool,
}

/// A request that was sent to an instance.
pub(super) struct Serving {
    api: Api,
    started: Duration,
    sent_at: Duration,
    pub(super) decision: Decision,
    /// Taken when the request ends, so that its counters are released exactly once.
    dispatch: Option<Dispatch>,
    /// Under which names what it leaves behind is remembered.
    keys: Keys,
    pub(super) sent: Sent,
    /// Whether the gateway has said which endpoints may serve.
    has_subset: bool,
    /// Whose answer it is, where Envoy has not brought it.
    pub(super) served: Option<Served>,
    response: Option<ResponseScan>,
    content_events: u64,
    response_known: bool,
    first_byte: Option<Duration>,
    is_sse: bool,
    /// Whether an instance has answered, and not with an error.
    succeeded: bool,
    /// Whether another instance than the chosen one serves.
    moved: bool,
    /// Whether the log has the response.
    logged: bool,
}

impl Serving {
    /// A request that was sent just now.
    pub(super) fn new(reading: RequestReading, decision: Decision, sent: Sent, now: Duration) -> Serving {
        let RequestReading { api, started, keys, subset, .. } = reading;
        Serving {
            api,
            has_subset: subset.is_some(),
            started,
            sent_at: now,
            dispatch: Some(decision.dispatch()),
            decision,
            keys,
            sent,
            served: None,
            response: None,
            content_events: 0,
            response_known: false,
            first_byte: None,
            is_sse: false,
            succeeded: false,
            moved: false,
            logged: false,
        }
    }

    /// The response's headers are here; `details` are Envoy's words on where they come from.
    pub(super) fn begin(&mut self, host: &mut impl Host, worker: &mut Worker, details: &str) {
        self.identify(host, worker, details);
        if !worker.router.config().telemetry.orca {
            return;
        }
        let load = host.header(Map::Response, names::LOAD_RESPONSE_HEADER);
        if let (Some(load), Some(dispatch)) = (load, self.dispatch) {
            let now = host.now();
            worker.glimpse(host, &dispatch, &telemetry::parse_orca(&load), now);
            if self.sent.asks_load {
                host.set_header(Map::Response, names::LOAD_RESPONSE_HEADER, None);
            }
        }
    }

    /// Finds out who really answers, and tells the client.
    fn identify(&mut self, host: &mut impl Host, worker: &mut Worker, details: &str) {
        let content_type = host.header(Map::Response, "content-type").unwrap_or_default();
        self.is_sse = content_type.starts_with("text/event-stream");
        self.response = Some(ResponseScan::new(self.api, self.is_sse));
        let status = host.header(Map::Response, ":status").and_then(|s| s.parse().ok()).unwrap_or_default();
        self.succeeded = status == 200;
        let (upstream, instance) = self.upstream(host, worker);
        let Sent { checkup, plan, .. } = &mut self.sent;
        checkup.head(host, worker, &self.decision, instance, (status, &content_type, details), plan);
        let is_unhonoured = checkup.is_unhonoured(&self.decision);
        let given_up = plan.given_up_after();
        if is_unhonoured {
            self.sent.entry.unhonoured();
        }
        if let (Some(upstream), Some(instance), None) = (upstream.as_deref(), instance, given_up) {
            self.follow(host, worker, instance, upstream);
        }
        let config = worker.router.config();
        let mut set = |name, value: &str| host.set_header(Map::Response, name, Some(value));
        if let Some(model) = config.fleet.model(self.decision.to.model) {
            set(names::MODEL_RESPONSE_HEADER, &model.name);
        }
        if let Some(pool) = config.fleet.pool(self.decision.to.pool) {
            set(names::POOL_RESPONSE_HEADER, &pool.name);
        }
        let rung = if is_unhonoured { names::RUNG_UNHONOURED } else { self.decision.because.rung.name() };
        set(names::RUNG_RESPONSE_HEADER, rung);
        set(names::DECISION_US_RESPONSE_HEADER, &self.sent.decision_us.to_string());
        if let Some(id) = &self.sent.decision_id {
            set(names::DECISION_ID_RESPONSE_HEADER, id);
        }
        if self.decision.because.budget_exhausted {
            set(names::BUDGET_EXHAUSTED_RESPONSE_HEADER, "true");
        }
        if let Some(upstream) = upstream.as_deref().filter(|_| self.has_subset) {
            set(names::SERVED_RESPONSE_HEADER, upstream);
        }
        if let Some(upstream) = upstream.filter(|_| config.expose_endpoint) {
            set(names::ENDPOINT_RESPONSE_HEADER, &upstream);
        }
        if Suspect::STATUSES.contains(&status) {
            host.set_header(Map::Response, names::NO_RETRY_RESPONSE_HEADER, None);
        }
    }

    /// The address and the id of the instance that answers, if one does.
    fn upstream(&mut self, host: &impl Host, worker: &Worker) -> (Option<String>, Option<InstanceId>) {
        let fleet = &worker.router.config().fleet;
        match self.served.take() {
            Some(Served::By(instance, sent)) => {
                self.sent.checkup.rerun(instance, sent);
                return (fleet.instance(instance).map(|instance| instance.address.clone()), Some(instance));
            }
            Some(Served::ByNobody) => {
                self.sent.checkup.ended_here();
                return (None, None);
            }
            None => {}
        }
        let upstream = host.property(&["upstream", "address"]);
        let pool = self.decision.to.pool;
        let instance = upstream.as_deref().and_then(|address| fleet.serving(address, pool));
        (upstream, instance)
    }

    /// An instance serves: where it is not the chosen one, everything that was said of that one is now said of it.
    fn follow(&mut self, host: &mut impl Host, worker: &mut Worker, instance: InstanceId, address: &str) {
        if instance == self.decision.to.instance {
            return;
        }
        self.moved = true;
        worker.statistics.count(Counter::ServedByFallback);
        let now = host.now();
        self.carry(host, worker, instance, now);
        if let Some(placement) = self.decision.placement(&self.keys, now) {
            worker.place(Placement { instance, ..placement });
        }
        let pool = worker.router.config().fleet.pool_of(instance).map(|(pool, _)| pool);
        if pool.is_some_and(|pool| self.decision.serve_at(pool)) {
            worker.statistics.count(Counter::ServedByOtherModel);
            if let Some(id) = &self.sent.decision_id {
                worker.remember_decision(host, id, &self.decision);
            }
        }
        self.sent.entry.moved(address);
    }

    /// The load of the request goes with it to another instance.
    pub(super) fn carry(&mut self, board: &mut impl Board, worker: &mut Worker, instance: InstanceId, now: Duration) {
        if let Some(dispatch) = self.dispatch.as_mut().filter(|dispatch| dispatch.instance != instance) {
            worker.move_to(board, dispatch, instance, now);
            worker.statistics.count(Counter::Moves);
        }
    }

    /// `size` more bytes of the response are in the buffer.
    pub(super) fn read(&mut self, host: &mut impl Host, worker: &mut Worker, size: usize) {
        let Some(scan) = self.response.as_mut() else { return };
        let mut read = 0;
        while read < size {
            let piece = host.body(Body::Response, read, PIECE.min(size - read));
            if piece.is_empty() {
                break;
            }
            read = read.saturating_add(piece.len());
            scan.push(&piece);
        }
        self.sent.checkup.read(read);
        let seen = scan.observed();
        let new_events = seen.content_events.saturating_sub(self.content_events);
        self.content_events = seen.content_events;
        let Some(dispatch) = self.dispatch.as_mut() else { return };
        if (new_events > 0 || seen.ended) && self.first_byte.is_none() {
            self.first_byte = Some(host.now());
            worker.prefilled(dispatch);
            self.sent.checkup.began(host, worker);
        }
        if new_events > 0 {
            worker.streamed(dispatch, new_events);
        }
        if let (Some(id), false) = (seen.response_id.as_deref(), self.response_known) {
            self.response_known = true;
            let now = host.now();
            worker.remember_response(host, id, dispatch.instance, now);
        }
    }

    /// The response has ended by itself.
    pub(super) fn end(&mut self, host: &mut impl Host, worker: &mut Worker, request_id: &str) {
        self.log(host, worker, request_id);
        let Some(scan) = self.response.as_ref() else { return };
        let seen = scan.observed();
        let now = host.now();
        self.sent.checkup.ended(host, worker, seen);
        if !self.succeeded || !self.decision.is_lesson(seen) {
            return;
        }
        if let (Some(usage), Some(dispatch)) = (seen.usage, self.dispatch) {
            let held_tokens = usage.prompt_tokens.saturating_add(usage.completion_tokens);
            worker.answered(&self.keys, dispatch.instance, held_tokens, now);
        }
        if let Some(lesson) = self.decision.lesson(seen) {
            worker.learner.learn_length(&lesson);
        }
        // A request that was tried twice took the time of both.
        let first_token = self.first_byte.map(|at| at.saturating_sub(self.sent_at));
        let timing = AnswerTiming::from_response(seen, self.is_sse, first_token, now.saturating_sub(self.sent_at));
        if let Some(lesson) = timing.filter(|_| !self.moved).and_then(|timing| self.decision.speed_lesson(&timing)) {
            worker.learner.learn_speed(&lesson);
        }
    }

    /// Tells the log what has come of the answer, whole or not.
    fn log(&mut self, host: &mut impl Host, worker: &Worker, request_id: &str) {
        if std::mem::replace(&mut self.logged, true) {
            return;
        }
        let nothing = Observed::default();
        let seen = self.response.as_ref().map_or(&nothing, ResponseScan::observed);
        let ttft = self.first_byte.map(|at| at.saturating_sub(self.started));
        let e2e = host.now().saturating_sub(self.started);
        let config = worker.router.config();
        let response = Response::new(config, &mut self.decision, seen, ttft, e2e);
        self.sent.entry.publish(host, request_id, config, &self.decision, &response);
    }

    /// The API that was called.
    pub(super) fn api(&self) -> Api {
        self.api
    }

    /// Releases what the request still holds, once.
    pub(super) fn release(&mut self, host: &mut impl Host, worker: &mut Worker, request_id: &str) {
        self.log(host, worker, request_id);
        self.sent.checkup.over(host, worker);
        if let Some(dispatch) = self.dispatch.take() {
            let now = host.now();
            worker.finish(host, dispatch, now);
        }
    }
}
