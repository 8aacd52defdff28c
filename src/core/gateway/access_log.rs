//! The decision as a JSON object for Envoy's access log: filter state, so that the log line needs no file of ours.
//!
//! It never holds text of a prompt or an answer.

use std::time::Duration;

use serde::Serialize;

use super::{Host, Outcome};
use crate::config::Config;
use crate::learning::feedback::Feedback;
use crate::names::{self, DECISION_STATE};
use crate::openai::{Api, Observed, Prompt};
use crate::router::{Decision, Rung};

/// What the log says of a routed request. Fields of the response are absent until they are known.
#[derive(Serialize)]
pub(super) struct Entry {
    /// Absent where feedback is not taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) decision_id: Option<String>,
    api: &'static str,
    policy: String,
    requested_model: Option<String>,
    model: String,
    pool: String,
    endpoint: String,
    rung: &'static str,
    candidates: usize,
    relaxed: Vec<&'static str>,
    saturated: bool,
    budget_usd: Option<f64>,
    budget_exhausted: bool,
    max_tokens: Option<u32>,
    score: f64,
    /// Absent unless the policy has prices.
    #[serde(skip_serializing_if = "Option::is_none")]
    price: Option<f64>,
    stream: bool,
    body_bytes: u64,
    scan_us: u64,
    decision_us: u64,
    patch_us: u64,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    batch: Option<Batched>,
    predicted: bool,
    predicted_quality: f64,
    predicted_quality_sd: f64,
    familiarity: Option<f64>,
    prototype: Option<usize>,
    propensity: f64,
    explored: bool,
    predicted_output_tokens: u64,
    predicted_output_tokens_p80: u64,
    predicted_output_tokens_p90: u64,
    output_tokens_correction: f64,
    predicted_seconds: f64,
    predicted_ttft_ms: f64,
    predicted_tpot_ms: f64,
    predicted_e2e_ms: f64,
    predicted_usd: f64,
    estimated_prompt_tokens: u64,
    estimated_cached_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<Response>,
}

#[derive(Serialize)]
struct Response {
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
pub(super) struct Timing {
    pub(super) scan: Duration,
    pub(super) decision: Duration,
    pub(super) patch: Duration,
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

impl Entry {
    pub(super) fn new(
        api: Api,
        config: &Config,
        policy: usize,
        prompt: &Prompt,
        decision: &Decision,
        timing: Timing,
    ) -> Entry {
        let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        Entry {
            decision_id: None,
            api: name_of(api),
            policy: config.policies.get(policy).map(|p| p.name.clone()).unwrap_or_default(),
            requested_model: prompt.model.clone(),
            model: config.fleet.models.get(decision.model).map(|m| m.name.clone()).unwrap_or_default(),
            pool: config.fleet.pools.get(decision.pool).map(|p| p.name.clone()).unwrap_or_default(),
            endpoint: config.fleet.instances.get(decision.instance).map(|i| i.address.clone()).unwrap_or_default(),
            rung: decision.rung.name(),
            candidates: decision.candidates,
            relaxed: decision.relaxed.iter().map(|c| c.name()).collect(),
            saturated: decision.saturated,
            budget_usd: decision.budget.usd,
            budget_exhausted: decision.prompt_exhausts_budget,
            max_tokens: decision.max_tokens,
            score: decision.score,
            price: decision.price,
            stream: prompt.stream,
            body_bytes: prompt.bytes,
            scan_us: us(timing.scan),
            decision_us: us(timing.decision),
            patch_us: us(timing.patch),
            batch: timing.batch,
            predicted: decision.predicted,
            predicted_quality: decision.quality,
            predicted_quality_sd: decision.quality_sd,
            familiarity: decision.familiarity,
            prototype: decision.prototype,
            propensity: decision.propensity,
            explored: decision.explored,
            predicted_output_tokens: decision.output_tokens,
            predicted_output_tokens_p80: decision.output_tokens_p80,
            predicted_output_tokens_p90: decision.output_tokens_p90,
            output_tokens_correction: decision.output_tokens_correction,
            predicted_seconds: decision.seconds,
            predicted_ttft_ms: ms(decision.forecast.ttft),
            predicted_tpot_ms: ms(decision.forecast.tpot),
            predicted_e2e_ms: ms(decision.forecast.e2e),
            predicted_usd: decision.usd,
            estimated_prompt_tokens: decision.prompt_tokens,
            estimated_cached_tokens: decision.cached_tokens,
            response: None,
        }
    }

    /// The instance that really serves the request, of this pool and model.
    pub(super) fn moved(&mut self, config: &Config, decision: &Decision, endpoint: &str) {
        endpoint.clone_into(&mut self.endpoint);
        self.model = config.fleet.models.get(decision.model).map(|m| m.name.clone()).unwrap_or_default();
        self.pool = config.fleet.pools.get(decision.pool).map(|p| p.name.clone()).unwrap_or_default();
        self.max_tokens = decision.max_tokens;
    }

    /// Envoy has chosen the endpoint, and not the filter.
    pub(super) fn unhonoured(&mut self) {
        self.rung = names::RUNG_UNHONOURED;
    }

    /// Adds what the response showed.
    pub(super) fn answered(
        &mut self,
        config: &Config,
        decision: &Decision,
        seen: &Observed,
        ttft: Option<Duration>,
        e2e: Duration,
    ) {
        let prompt_tokens = seen.usage.as_ref().map(|u| u.prompt_tokens);
        let completion_tokens = seen.usage.as_ref().map_or(seen.completion_tokens_estimate, |u| u.completion_tokens);
        let usd = config.fleet.models.get(decision.model).map_or(0.0, |m| {
            prompt_tokens.unwrap_or(decision.prompt_tokens) as f64 * m.tariff.usd_per_input_token
                + completion_tokens as f64 * m.tariff.usd_per_output_token
        });
        self.budget_exhausted |= decision.exhausts_budget(usd, seen);
        self.response = Some(Response {
            ttft_ms: ttft.map(|ttft| ms(ttft.as_secs_f64())),
            e2e_ms: ms(e2e.as_secs_f64()),
            prompt_tokens,
            cached_tokens: seen.usage.as_ref().and_then(|u| u.cached_tokens),
            completion_tokens,
            estimated: seen.usage.is_none(),
            error_event: seen.error_event,
            complete: seen.ended,
            usd,
        });
    }

    /// Hands the entry to Envoy.
    pub(super) fn publish(&self, host: &mut impl Host, request_id: &str) {
        publish(host, request_id, self);
    }
}

/// Milliseconds, to the microsecond.
pub(super) fn ms(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e3
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
    let json = serde_json::to_string(&Fields { request_id, decision });
    if let Some(fields) = json.ok().as_deref().and_then(|j| j.strip_prefix('{')?.strip_suffix('}')) {
        host.set_state(DECISION_STATE, &format!(",{fields}"));
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
