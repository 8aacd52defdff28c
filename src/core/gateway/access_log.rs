//! The decision as a JSON object for Envoy's access log: filter state, so that the log line needs no file of ours.
//!
//! It never holds text of a prompt or an answer.

use std::time::Duration;

use serde::Serialize;

use super::{Host, Outcome};
use crate::config::Config;
use crate::fleet::{PolicyId, Weights};
use crate::learning::feedback::Feedback;
use crate::names::{self, DECISION_STATE};
use crate::openai::{Api, Observed, Prompt};
use crate::router::{Because, Decision, Draw, Expected, ExpectedQuality, Rung, milliseconds};

/// What the log says of a routed request beside its decision.
pub(super) struct LogEntry {
    /// `None` where feedback is not taken.
    pub(super) decision_id: Option<String>,
    api: Api,
    policy: PolicyId,
    /// Weights in the place of the policy's.
    weights: Option<Weights>,
    requested_model: Option<String>,
    /// The instance that serves.
    endpoint: String,
    /// Whether Envoy has chosen it, and not the filter.
    is_unhonoured: bool,
    stream: bool,
    body_bytes: u64,
    timing: DecisionTiming,
}

/// The log's record of a routed request: its fields, in their order. Those of the decision are told by the decision's own groups.
#[derive(Serialize)]
struct Routed<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    decision_id: Option<&'a str>,
    api: &'static str,
    policy: &'a str,
    /// Where they are not the policy's.
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<Weights>,
    requested_model: Option<&'a str>,
    model: &'a str,
    pool: &'a str,
    endpoint: &'a str,
    rung: &'static str,
    #[serde(flatten)]
    because: &'a Because,
    stream: bool,
    body_bytes: u64,
    scan_us: u64,
    decision_us: u64,
    patch_us: u64,
    #[serde(flatten)]
    batch: Option<Batched>,
    #[serde(flatten)]
    quality: &'a ExpectedQuality,
    #[serde(flatten)]
    draw: &'a Draw,
    #[serde(flatten)]
    expected: &'a Expected,
    response: &'a Response,
}

/// What a response has shown.
#[derive(Serialize)]
pub(super) struct Response {
    ttft_ms: Option<f64>,
    e2e_ms: f64,
    prompt_tokens: Option<u64>,
    /// Absent where the server does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    cached_tokens: Option<u64>,
    completion_tokens: u64,
    /// True when the response had no usage and its tokens were estimated from its text instead.
    estimated: bool,
    error_event: bool,
    complete: bool,
    usd: f64,
}

/// How long the parts of a decision took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DecisionTiming {
    pub(super) scan: Duration,
    pub(super) decision: Duration,
    pub(super) patch: Duration,
    /// When it was decided; `None` if others of its batch came between.
    pub(super) decided_at: Option<Duration>,
    /// The batch that the request was in, if it waited for one.
    pub(super) batch: Option<Batched>,
}

/// What the log says of a request that was in a batch.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Batched {
    pub(super) batch_size: usize,
    /// 0 is decided first.
    pub(super) batch_position: usize,
    pub(super) batch_wait_ms: f64,
}

impl Response {
    /// What a response has shown; the decision learns from it whether its budget is spent.
    pub(super) fn new(
        config: &Config,
        decision: &mut Decision,
        seen: &Observed,
        ttft: Option<Duration>,
        e2e: Duration,
    ) -> Response {
        let prompt_tokens = seen.usage.as_ref().map(|u| u.prompt_tokens);
        let completion_tokens = seen.usage.as_ref().map_or(seen.completion_tokens_estimate, |u| u.completion_tokens);
        let cached_tokens = seen.usage.as_ref().and_then(|u| u.cached_tokens).unwrap_or(0);
        let tariff = config.fleet.pool(decision.to.pool).and_then(|pool| config.fleet.tariff_of(pool));
        let usd = tariff.map_or(0.0, |tariff| {
            let prompt_tokens = prompt_tokens.unwrap_or(decision.expected.prompt_tokens) as f64;
            tariff.prompt_usd(prompt_tokens, cached_tokens as f64)
                + completion_tokens as f64 * tariff.usd_per_output_token
        });
        decision.because.budget_exhausted |= decision.exhausts_budget(usd, seen);
        Response {
            ttft_ms: ttft.map(|ttft| milliseconds(ttft.as_secs_f64())),
            e2e_ms: milliseconds(e2e.as_secs_f64()),
            prompt_tokens,
            cached_tokens: seen.usage.as_ref().and_then(|u| u.cached_tokens),
            completion_tokens,
            estimated: seen.usage.is_none(),
            error_event: seen.error_event,
            complete: seen.ended,
            usd,
        }
    }
}

impl LogEntry {
    pub(super) fn new(
        api: Api,
        config: &Config,
        (policy, weights): (PolicyId, Option<Weights>),
        prompt: &Prompt,
        decision: &Decision,
        timing: DecisionTiming,
    ) -> LogEntry {
        let endpoint = config.fleet.instance(decision.to.instance).map(|i| i.address.clone()).unwrap_or_default();
        LogEntry {
            decision_id: None,
            api,
            policy,
            weights,
            requested_model: prompt.model.clone(),
            endpoint,
            is_unhonoured: false,
            stream: prompt.stream,
            body_bytes: prompt.bytes,
            timing,
        }
    }

    /// The instance that really serves the request.
    pub(super) fn moved(&mut self, endpoint: &str) {
        endpoint.clone_into(&mut self.endpoint);
    }

    /// Envoy has chosen the endpoint, and not the filter.
    pub(super) fn unhonoured(&mut self) {
        self.is_unhonoured = true;
    }

    /// Hands the entry of a decision to Envoy, once: when its response has shown what it shows.
    pub(super) fn publish(
        &self,
        host: &mut impl Host,
        request_id: &str,
        config: &Config,
        decision: &Decision,
        response: &Response,
    ) {
        let Decision { to, because, quality, draw, expected } = decision;
        let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let routed = Routed {
            decision_id: self.decision_id.as_deref(),
            api: name_of(self.api),
            policy: config.policy(self.policy).map_or("", |policy| &policy.name),
            weights: self.weights,
            requested_model: self.requested_model.as_deref(),
            model: config.fleet.model(to.model).map_or("", |model| &model.name),
            pool: config.fleet.pool(to.pool).map_or("", |pool| &pool.name),
            endpoint: &self.endpoint,
            rung: if self.is_unhonoured { names::RUNG_UNHONOURED } else { because.rung.name() },
            because,
            stream: self.stream,
            body_bytes: self.body_bytes,
            scan_us: us(self.timing.scan),
            decision_us: us(self.timing.decision),
            patch_us: us(self.timing.patch),
            batch: self.timing.batch,
            quality,
            draw,
            expected,
            response,
        };
        publish(host, request_id, &routed);
    }
}

/// Hands Envoy the reason why a request was not routed.
pub(super) fn publish_unrouted(host: &mut impl Host, request_id: &str, outcome: Outcome, reason: &str) {
    let reason = beginning(reason, REASON_BYTES_MAX);
    let (rung, outcome) = (Rung::Untouched.name(), outcome.name());
    publish(host, request_id, &serde_json::json!({ "rung": rung, "outcome": outcome, "reason": reason }));
}

/// Hands Envoy an accepted feedback: which model's answer to which request was scored, how, and how probable that model was.
pub(super) fn publish_feedback(
    host: &mut impl Host,
    request_id: &str,
    feedback: &Feedback,
    model: &str,
    propensity: f64,
) {
    let Feedback { id, score } = feedback;
    let (rung, outcome) = (Rung::Untouched.name(), Outcome::Feedback.name());
    let event = serde_json::json!({
        "rung": rung, "outcome": outcome, "id": id, "model": model, "score": score, "propensity": propensity
    });
    publish(host, request_id, &event);
}

/// Longest id of a request in the log, bytes: clients choose it.
const REQUEST_ID_BYTES_MAX: usize = 256;

/// Room for an entry of the usual length, bytes.
const ENTRY_BYTES: usize = 2_048;

/// Longest reason in the log, bytes: it may cite a name or a header of the client's.
const REASON_BYTES_MAX: usize = 512;

/// The beginning of a text, of at most so many bytes.
fn beginning(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes).rev().find(|at| text.is_char_boundary(*at));
    if text.len() > bytes { text.get(..end.unwrap_or_default()).unwrap_or_default() } else { text }
}

/// Cuts an id that is longer than the log has it.
pub(super) fn shorten(request_id: &mut String) {
    request_id.truncate(beginning(request_id, REQUEST_ID_BYTES_MAX).len());
}

/// The end of a JSON object rather than a whole one: where nothing was published, the log's line is valid without it. The id is in
/// it because the client may have chosen it, and Envoy's text format escapes nothing.
fn publish(host: &mut impl Host, request_id: &str, decision: &impl Serialize) {
    #[derive(Serialize)]
    struct Fields<'a, T> {
        request_id: &'a str,
        decision: &'a T,
    }
    let mut json = Vec::with_capacity(ENTRY_BYTES);
    let is_written = serde_json::to_writer(&mut json, &Fields { request_id, decision }).is_ok();
    if let (true, [first @ b'{', .., b'}']) = (is_written, json.as_mut_slice()) {
        *first = b',';
        let entry = json.split_last().and_then(|(_, entry)| str::from_utf8(entry).ok());
        host.set_state(DECISION_STATE, entry.unwrap_or_default());
    }
}

fn name_of(api: Api) -> &'static str {
    match api {
        Api::ChatCompletions => "chat_completions",
        Api::Completions => "completions",
        Api::Responses => "responses",
        Api::Messages => "messages",
        Api::CountTokens => "count_tokens",
        Api::Embeddings => "embeddings",
        Api::Tokenize => "tokenize",
        Api::Pooling => "pooling",
        Api::Named => "named",
    }
}
