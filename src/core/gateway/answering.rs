//! Answers of the gateway's own. A client may still be sending: HTTP/1.1 clients read an answer when their body is out, and a connection
//! that is closed before loses it.

use super::{Flow, Gateway, Host, Map, Outcome, Phase, access_log};
use crate::names;
use crate::openai::{self, Api};
use crate::router::Refusal;
use crate::worker::Counter;

/// Bytes of a request that are thrown away before its answer; of one that has more, the rest is not read.
const DISCARDED_BYTES_MAX: u64 = 1 << 30;

/// An answer that waits until its request has come.
pub(super) struct OwnAnswer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
    discarded: u64,
}

impl OwnAnswer {
    fn send(&self, host: &mut impl Host) {
        let headers: Vec<(&str, &str)> = self.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        host.respond(self.status, &headers, self.body.as_bytes());
    }
}

impl Gateway {
    /// Answers the client and ends the request here.
    pub(super) fn answer(&mut self, host: &mut impl Host, id: u32, status: u16, body: String) -> Flow {
        self.answer_with(host, id, status, Vec::new(), body)
    }

    fn answer_with(
        &mut self,
        host: &mut impl Host,
        id: u32,
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    ) -> Flow {
        let answer = self.own_answer(status, headers, body);
        // What follows an upgrade has no end to wait for.
        if self.is_received(id) || host.header(Map::Request, "upgrade").is_some() {
            self.set_phase(id, Phase::Passing);
            answer.send(host);
        } else {
            self.set_phase(id, Phase::Answering(Box::new(answer)));
        }
        Flow::Pause
    }

    fn own_answer(&self, status: u16, headers: Vec<(&'static str, String)>, body: String) -> OwnAnswer {
        let origin = self.worker.router.config().allow_origin.clone();
        let origin = origin.map(|origin| (names::ALLOW_ORIGIN_RESPONSE_HEADER, origin));
        let own = [("content-type", "application/json".to_owned())].into_iter().chain(origin);
        OwnAnswer { status, headers: own.chain(headers).collect(), body, discarded: 0 }
    }

    pub(super) fn refuse(&mut self, host: &mut impl Host, id: u32, api: Option<Api>, refusal: &Refusal) -> Flow {
        let Refusal { status, reason, message, retry_after, param, pool } = refusal;
        if let Some(pool) = pool {
            let now = host.now();
            self.worker.lacks_instances(*pool, now);
        }
        access_log::publish_unrouted(host, self.request_id(id), Outcome::Refused, message);
        self.worker.statistics.count(Counter::Refused { status: *status });
        self.worker.statistics.count(Counter::RefusedFor { reason: *reason });
        let seconds = retry_after.map(|after| (names::RETRY_AFTER_HEADER, after.as_secs().to_string()));
        let reason = (names::REFUSED_REASON_RESPONSE_HEADER, reason.name().to_owned());
        let headers = std::iter::once(reason).chain(seconds).collect();
        self.answer_with(host, id, *status, headers, openai::error_body_about(api, *status, message, *param))
    }

    /// More of a request whose answer is certain: it is thrown away.
    pub(super) fn discard(&mut self, host: &mut impl Host, id: u32, size: usize) -> Flow {
        let is_received = self.is_received(id);
        let Some(Phase::Answering(answer)) = self.streams.get_mut(&id).map(|stream| &mut stream.phase) else {
            return Flow::Continue;
        };
        host.replace_body(size, &[]);
        answer.discarded = answer.discarded.saturating_add(size as u64);
        if is_received || answer.discarded > DISCARDED_BYTES_MAX {
            self.give_answer(host, id);
        }
        Flow::Pause
    }

    /// Sends the answer that waits, if one does.
    pub(super) fn give_answer(&mut self, host: &mut impl Host, id: u32) -> bool {
        match self.take_phase(id) {
            Phase::Answering(answer) => {
                answer.send(host);
                true
            }
            other => {
                self.set_phase(id, other);
                false
            }
        }
    }

    /// Says in the API's shape what Envoy has said in its own words.
    pub(super) fn translate(&mut self, host: &mut impl Host, id: u32, api: Api, words: &str) -> Flow {
        let status = host.header(Map::Response, ":status").and_then(|s| s.parse().ok()).unwrap_or(503);
        self.worker.statistics.count(Counter::Unserved { status });
        let kept = [names::MODEL_RESPONSE_HEADER, names::POOL_RESPONSE_HEADER, names::RUNG_RESPONSE_HEADER];
        let mut headers: Vec<(&str, String)> =
            kept.into_iter().filter_map(|name| host.header(Map::Response, name).map(|value| (name, value))).collect();
        if status == 503 {
            headers.push((names::RETRY_AFTER_HEADER, "1".to_owned()));
        }
        let answer = self.own_answer(status, headers, openai::error_body(Some(api), status, words));
        self.set_phase(id, Phase::Passing);
        answer.send(host);
        Flow::Pause
    }
}
