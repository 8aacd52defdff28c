//! Answers of the filter's own. A client may still be sending: HTTP/1.1 clients read an answer when their body is out, and a connection
//! that is closed before loses it.

use proxy_wasm::hostcalls;
use proxy_wasm::types::{Action, BufferType, MapType};

use crate::filter::access_log;
use crate::filter::host;
use crate::filter::stream::{Phase, Stream};
use crate::names;
use crate::openai::{self, Api};
use crate::router::Refusal;

/// Bytes of a request that are thrown away before its answer; of one that has more, the rest is not read.
const DISCARDED_BYTES_MAX: u64 = 1 << 30;

/// An answer that waits until its request has come.
pub(super) struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
    discarded: u64,
}

impl Answer {
    fn send(&self) {
        let headers = self.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let _ = hostcalls::send_http_response(u32::from(self.status), headers, Some(self.body.as_bytes()));
    }
}

impl Stream {
    /// Answers the client and ends the request here.
    pub(super) fn answer(&mut self, status: u16, body: String) -> Action {
        self.answer_with(status, Vec::new(), body)
    }

    fn answer_with(&mut self, status: u16, headers: Vec<(&'static str, String)>, body: String) -> Action {
        let answer = self.own_answer(status, headers, body);
        // What follows an upgrade has no end to wait for.
        let upgrades = || host::header(MapType::HttpRequestHeaders, "upgrade").is_some();
        if self.received || upgrades() {
            self.phase = Phase::Passing;
            answer.send();
        } else {
            self.phase = Phase::Answering(Box::new(answer));
        }
        Action::Pause
    }

    fn own_answer(&self, status: u16, headers: Vec<(&'static str, String)>, body: String) -> Answer {
        let origin = self.worker.with(|w| w.router.config().allow_origin.clone()).flatten();
        let origin = origin.map(|origin| (names::ALLOW_ORIGIN_RESPONSE_HEADER, origin));
        let own = [("content-type", "application/json".to_owned())].into_iter().chain(origin);
        Answer { status, headers: own.chain(headers).collect(), body, discarded: 0 }
    }

    pub(super) fn refuse(&mut self, api: Option<Api>, refusal: &Refusal) -> Action {
        let Refusal { status, reason, message, retry_after, param } = refusal;
        access_log::publish_unrouted(&self.request_id, "refused", message);
        self.worker.with(|w| {
            w.statistics.count(&format!("refused.{status}"));
            w.statistics.count(&format!("refused_for.{reason}"));
        });
        let seconds = retry_after.map(|after| (names::RETRY_AFTER_HEADER, after.as_secs().to_string()));
        let reason = (names::REFUSED_REASON_RESPONSE_HEADER, (*reason).to_owned());
        let headers = std::iter::once(reason).chain(seconds).collect();
        self.answer_with(*status, headers, openai::error_body_about(api, *status, message, *param))
    }

    /// More of a request whose answer is certain: it is thrown away.
    pub(super) fn discard(&mut self, size: usize) -> Action {
        let Phase::Answering(answer) = &mut self.phase else { return Action::Continue };
        let _ = hostcalls::set_buffer(BufferType::HttpRequestBody, 0, size, &[]);
        answer.discarded = answer.discarded.saturating_add(size as u64);
        if self.received || answer.discarded > DISCARDED_BYTES_MAX {
            self.give_answer();
        }
        Action::Pause
    }

    /// Sends the answer that waits, if one does.
    pub(super) fn give_answer(&mut self) -> bool {
        match std::mem::replace(&mut self.phase, Phase::Passing) {
            Phase::Answering(answer) => {
                answer.send();
                true
            }
            other => {
                self.phase = other;
                false
            }
        }
    }

    /// Says in the API's shape what Envoy has said in its own words.
    pub(super) fn translate(&mut self, api: Api, words: &str) -> Action {
        let status = host::header(MapType::HttpResponseHeaders, ":status").and_then(|s| s.parse().ok()).unwrap_or(503);
        self.worker.with(|w| w.statistics.count(&format!("unserved.{status}")));
        let kept = [names::MODEL_RESPONSE_HEADER, names::POOL_RESPONSE_HEADER, names::RUNG_RESPONSE_HEADER];
        let mut headers: Vec<(&str, String)> = kept
            .into_iter()
            .filter_map(|name| host::header(MapType::HttpResponseHeaders, name).map(|value| (name, value)))
            .collect();
        if status == 503 {
            headers.push((names::RETRY_AFTER_HEADER, "1".to_owned()));
        }
        let answer = self.own_answer(status, headers, openai::error_body(Some(api), status, words));
        self.phase = Phase::Passing;
        answer.send();
        Action::Pause
    }
}
