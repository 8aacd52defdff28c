//! The callbacks of one request: headers held, body scanned as it comes, decision carried out, response observed, counters released once.

use super::deciding::RequestHeaders;
use super::{Flow, Gateway, Host, Map, Outcome, Phase, Stream, access_log};
use crate::names;
use crate::openai::{self, Api, Call};
use crate::router::{Refusal, RefusalReason, Rung, UntouchedReason};
use crate::worker::Counter;

impl Gateway {
    /// A request's headers are here.
    pub fn on_request_headers(&mut self, host: &mut impl Host, id: u32, end_of_stream: bool) -> Flow {
        if self.worker.router.config().only_marked_routes && !self.is_marked(host) {
            return Flow::Continue;
        }
        // What only the filter may say is removed, whoever wrote it.
        host.set_header(Map::Request, names::POOL_HEADER, None);
        host.set_header(Map::Request, names::ENDPOINT_HEADER, None);
        let mut request_id = host.header(Map::Request, names::REQUEST_ID_HEADER).unwrap_or_default();
        access_log::shorten(&mut request_id);
        self.streams.insert(id, Stream { request_id, received: end_of_stream, phase: Phase::Passing });
        if self.worker.has_neighbours()
            && let Some(connection) = host.number(&["connection", "id"])
        {
            let now = host.now();
            self.worker.served_connection(connection, now);
        }
        let method = host.header(Map::Request, ":method").unwrap_or_default();
        let path = host.header(Map::Request, ":path").unwrap_or_default();
        if self.is_probe(&method, &path) {
            return self.probe(host, id, Box::default(), 0, end_of_stream);
        }
        if self.asks_liveness(&method, &path) {
            return self.live(host, id);
        }
        match openai::call_of(&method, &path) {
            None if self.is_feedback(&path) => self.begin_feedback(host, id, &method, end_of_stream),
            None => self.other_path(host, id, &method, &path),
            Some(Call::Models) => self.models(host, id, None),
            Some(Call::Model { name }) => self.models(host, id, Some(&name)),
            Some(Call::Generate(Api::Named) | Call::ResponseItem { .. })
                if may_generate(host, &method, &path) && self.refuses_unread(host) =>
            {
                self.refuse_other_path(host, id)
            }
            Some(Call::ResponseItem { id: response }) => self.response_item(host, id, &response),
            Some(Call::Generate(api)) => self.begin(host, id, api, None, end_of_stream),
            Some(Call::Deployment { api, model, path }) => {
                host.set_header(Map::Request, ":path", Some(&path));
                self.begin(host, id, api, Some(model), end_of_stream)
            }
        }
    }

    /// More of a request's body is here: so many bytes are in the buffer.
    pub fn on_request_body(&mut self, host: &mut impl Host, id: u32, size: usize, end_of_stream: bool) -> Flow {
        self.receive(id, end_of_stream);
        match self.take_phase(id) {
            Phase::Reading(mut reading) => {
                reading.read(host, size);
                let fits = size as u64 <= self.worker.router.config().max_buffered_bytes;
                if !end_of_stream && fits {
                    self.set_phase(id, Phase::Reading(reading));
                    return Flow::Pause;
                }
                // The last piece may bring it beyond the limit.
                let flow = self.decide(host, id, *reading, end_of_stream && fits, size);
                if let Phase::Answering(_) = self.phase(id) { self.discard(host, id, size) } else { flow }
            }
            Phase::Probing(probing) => self.probe(host, id, probing, size, end_of_stream),
            Phase::Feedback(incoming) => self.read_feedback(host, id, incoming, size, end_of_stream),
            phase @ Phase::Answering(_) => {
                self.set_phase(id, phase);
                self.discard(host, id, size)
            }
            other => {
                self.set_phase(id, other);
                Flow::Continue
            }
        }
    }

    /// A request's trailers are here: a body that ends with trailers has no last piece of its own.
    pub fn on_request_trailers(&mut self, host: &mut impl Host, id: u32) -> Flow {
        self.receive(id, true);
        if self.give_answer(host, id) {
            return Flow::Pause;
        }
        match self.take_phase(id) {
            Phase::Feedback(incoming) => self.finish_feedback(host, id, &incoming),
            Phase::Reading(reading) => {
                let scanned = reading.scanned;
                self.decide(host, id, *reading, true, scanned)
            }
            Phase::Probing(probing) => self.probe(host, id, probing, 0, true),
            other => {
                self.set_phase(id, other);
                Flow::Continue
            }
        }
    }

    /// The headers of a response are here.
    pub fn on_response_headers(&mut self, host: &mut impl Host, id: u32, end_of_stream: bool) -> Flow {
        self.give_up_waiting(id);
        self.passage.ends(id);
        // Envoy has lost its patience with the rest of a request that is answered anyway.
        if self.give_answer(host, id) {
            return Flow::Pause;
        }
        let api = match self.phase(id) {
            Phase::Untouched(api) => *api,
            Phase::Reading(reading) => reading.api,
            Phase::Serving(serving) => serving.api(),
            _ => return Flow::Continue,
        };
        let details = self.code_details(host, id);
        let words = openai::words_of_envoy(&details);
        if let Phase::Untouched(_) = self.phase(id) {
            host.set_header(Map::Response, names::RUNG_RESPONSE_HEADER, Some(Rung::Untouched.name()));
        }
        if let Phase::Serving(_) = self.phase(id) {
            self.forget_rerun(id);
            if let Phase::Serving(mut serving) = self.take_phase(id) {
                serving.begin(host, &mut self.worker, &details);
                self.set_phase(id, Phase::Serving(serving));
            }
            if end_of_stream || words.is_some() {
                self.end(host, id);
            }
        }
        words.map_or(Flow::Continue, |words| self.translate(host, id, api, words))
    }

    /// Envoy's words on where a response comes from. Envoy says how long the instance took where one has answered; answers of its own
    /// to later attempts say so, too.
    fn code_details(&mut self, host: &impl Host, id: u32) -> String {
        let is_first = self.serving(id).is_some_and(|serving| serving.sent.plan.is_first());
        if is_first && host.header(Map::Response, names::SERVICE_TIME_RESPONSE_HEADER).is_some() {
            return names::VIA_UPSTREAM.to_owned();
        }
        host.property(&["response", "code_details"]).unwrap_or_default()
    }

    /// More of a response's body is here.
    pub fn on_response_body(&mut self, host: &mut impl Host, id: u32, size: usize, end_of_stream: bool) -> Flow {
        let Some(Phase::Serving(serving)) = self.streams.get_mut(&id).map(|stream| &mut stream.phase) else {
            return Flow::Continue;
        };
        serving.read(host, &mut self.worker, size);
        if end_of_stream {
            self.end(host, id);
        }
        Flow::Continue
    }

    /// A response's trailers are here: an answer that ends with trailers has no last piece of its own.
    pub fn on_response_trailers(&mut self, host: &mut impl Host, id: u32) -> Flow {
        self.end(host, id);
        Flow::Continue
    }

    /// The stream is over, however: releases what the request still holds, once.
    pub fn on_end(&mut self, host: &mut impl Host, id: u32) {
        self.release(host, id);
        self.streams.remove(&id);
    }

    /// The response has ended by itself.
    fn end(&mut self, host: &mut impl Host, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if let Phase::Serving(serving) = &mut stream.phase {
            serving.end(host, &mut self.worker, &stream.request_id);
        }
        self.release(host, id);
    }

    /// Releases what a request still holds.
    pub fn release(&mut self, host: &mut impl Host, id: u32) {
        self.give_up_waiting(id);
        self.forget_rerun(id);
        self.passage.ends(id);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if let Phase::Serving(serving) = &mut stream.phase {
            serving.release(host, &mut self.worker, &stream.request_id);
        }
    }

    /// Leaves a request that asks for a decision to Envoy's own route.
    pub(super) fn leave(&mut self, host: &mut impl Host, id: u32, api: Api, reason: UntouchedReason) -> Flow {
        let flow = self.pass(host, id, reason);
        self.set_phase(id, Phase::Untouched(api));
        flow
    }

    /// Lets Envoy's own route serve.
    pub(super) fn pass(&mut self, host: &mut impl Host, id: u32, reason: UntouchedReason) -> Flow {
        self.set_phase(id, Phase::Passing);
        access_log::publish_unrouted(host, self.request_id(id), Outcome::Passed, reason.name());
        self.worker.statistics.count(Counter::Untouched { reason });
        Flow::Continue
    }

    /// Lets Envoy's own route serve what is not read here, unless that would pass a policy's limits by.
    fn other_path(&mut self, host: &mut impl Host, id: u32, method: &str, path: &str) -> Flow {
        if may_generate(host, method, path) && self.refuses_unread(host) {
            return self.refuse_other_path(host, id);
        }
        // It means something to whoever trusts it.
        host.set_header(Map::Request, names::SUBSET_HEADER, None);
        self.pass(host, id, UntouchedReason::OtherPath)
    }

    fn refuse_other_path(&mut self, host: &mut impl Host, id: u32) -> Flow {
        let message = "This path has no limits here, and the policy of its route demands them.";
        self.refuse(host, id, None, &Refusal::new(403, RefusalReason::OtherPath, message))
    }

    /// Whether limits of the request's policy, or of its own headers, would be lost on what is not read.
    pub(super) fn refuses_unread(&self, host: &mut impl Host) -> bool {
        let mut headers = RequestHeaders::default();
        let policy = self.policy(host);
        self.worker.router.loses_limits(policy, |name| headers.values(host, name))
            || !matches!(self.subset(host, policy), Ok(None))
    }
}

/// Whether an instance may generate for a request that is not read.
fn may_generate(host: &impl Host, method: &str, path: &str) -> bool {
    let upgrades = || host.header(Map::Request, "upgrade").is_some();
    (method == "POST" && openai::generates(path)) || (method != "POST" && upgrades())
}
