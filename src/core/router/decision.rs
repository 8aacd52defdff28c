//! A decision: where a request goes, why, and what is expected of it there.
//!
//! The access log's line is written from it: what a group has under another name, or not at all, is said at the field. The log has the
//! fields in the order of [`Because`], [`ExpectedQuality`], [`Draw`] and [`Expected`].

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::Rung;
use crate::admission::spending;
use crate::fleet::{Budget, Constraint, InstanceId, ModelId, PoolId};
use crate::latency::Forecast;
use crate::learning::{lengths, speed};
use crate::openai::{Ending, Observed};
use crate::reckoning::Dispatch;

/// What a request must say at a pool of another model than the chosen one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Elsewhere {
    /// The pool.
    pub pool: PoolId,
    /// Its model.
    pub model: ModelId,
    /// The limit of each answer's tokens that is written there.
    pub max_tokens: Option<u32>,
    /// Tokens that the budget leaves there for each answer.
    pub budget_left: Option<u32>,
    /// Quality and its standard deviation there, before what feedback has taught.
    pub unrevised_quality: (f64, f64),
}

/// Where a request goes, why, and what is expected of it there.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Where it goes.
    pub to: Destination,
    /// Why, and within which limits.
    pub because: Because,
    /// How good its answer is expected to be.
    pub quality: ExpectedQuality,
    /// By what lot its model was chosen.
    pub draw: Draw,
    /// How much work it is expected to be.
    pub expected: Expected,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Destination {
    /// The model.
    pub model: ModelId,
    /// The pool.
    pub pool: PoolId,
    /// The instance.
    pub instance: InstanceId,
    /// Where Envoy retries, best first: other instances of the pool, then of other models.
    pub fallbacks: Vec<InstanceId>,
    /// What a request must say at the pools of other models among them.
    pub elsewhere: Vec<Elsewhere>,
    /// Whether the request probes a half-open instance: it must be claimed first, and if another worker was faster, the request
    /// is to be decided anew.
    pub probe: bool,
    /// The LoRA adapter that the client asks for by its name, which then stays as it is.
    pub adapter: Option<String>,
}

/// Why a request goes where it goes, and within which limits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Because {
    /// The step of the ladder; the log has it beside the place.
    #[serde(skip)]
    pub rung: Rung,
    /// How many candidates were scored.
    pub candidates: usize,
    /// Constraints that had to be given up.
    pub relaxed: Vec<Constraint>,
    /// Whether every candidate is saturated.
    pub saturated: bool,
    /// What the request may spend.
    #[serde(rename = "budget_usd", serialize_with = "usd_alone")]
    pub budget: Budget,
    /// Whether the prompt alone uses the budget up; once the answer has come, also whether it has.
    pub budget_exhausted: bool,
    /// The limit of each answer's tokens that is written where there is a budget, and not every server reads the client's own as low.
    pub max_tokens: Option<u32>,
    /// Tokens that the budget leaves for each answer.
    #[serde(skip)]
    pub budget_left: Option<u32>,
    /// The winner's score.
    pub score: f64,
    /// What a request to the model cost, units of quality; `None` unless the objective is `prices`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price: Option<f64>,
}

/// How good an answer is expected to be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpectedQuality {
    /// Whether what is expected of the answer was predicted; false where the predictor does not know the model.
    pub predicted: bool,
    /// Expected answer quality, 0 to 1.
    #[serde(rename = "predicted_quality")]
    pub mean: f64,
    /// Its standard deviation.
    #[serde(rename = "predicted_quality_sd")]
    pub sd: f64,
    /// Quality and its standard deviation before what feedback has taught: what a score is to be compared with.
    #[serde(skip)]
    pub unrevised: (f64, f64),
    /// How much the prompt resembles those that the predictor was trained on, 0 to 1; `None` without a prediction.
    pub familiarity: Option<f64>,
    /// The cluster of training prompts that the prompt is nearest to; `None` without a prediction.
    pub prototype: Option<usize>,
}

/// By what lot a model was chosen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Draw {
    /// Probability that this model was chosen, given the request and the load.
    pub propensity: f64,
    /// Whether exploration has drawn the model.
    pub explored: bool,
}

/// How much work a request is expected to be, and for how long.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Expected {
    /// Expected output tokens.
    #[serde(rename = "predicted_output_tokens")]
    pub output_tokens: u64,
    /// Output tokens that 4 of 5 such requests do not exceed.
    #[serde(rename = "predicted_output_tokens_p80")]
    pub output_tokens_p80: u64,
    /// Output tokens that 9 of 10 such requests do not exceed.
    #[serde(rename = "predicted_output_tokens_p90")]
    pub output_tokens_p90: u64,
    /// The learnt factor in the expected output tokens.
    pub output_tokens_correction: f64,
    /// What the answer's length is to be compared with, uncorrected; `None` where that would teach nothing.
    #[serde(skip)]
    pub expectation: Option<lengths::LengthExpectation>,
    /// Expected time, seconds: the objective's T.
    #[serde(rename = "predicted_seconds")]
    pub seconds: f64,
    /// Expected times of the response.
    #[serde(flatten, serialize_with = "in_milliseconds")]
    pub forecast: Forecast,
    /// Expected cost, USD.
    #[serde(rename = "predicted_usd")]
    pub usd: f64,
    /// Estimated prompt tokens.
    #[serde(rename = "estimated_prompt_tokens")]
    pub prompt_tokens: u64,
    /// Of those, the ones that the instance is expected to have kept from an earlier request.
    #[serde(rename = "estimated_cached_tokens")]
    pub cached_tokens: u64,
}

/// What the log says of a forecast.
#[derive(Serialize)]
struct Times {
    predicted_ttft_ms: f64,
    predicted_tpot_ms: f64,
    predicted_e2e_ms: f64,
}

fn in_milliseconds<S: Serializer>(forecast: &Forecast, serializer: S) -> Result<S::Ok, S::Error> {
    let Forecast { ttft_seconds, tpot_seconds, e2e_seconds, .. } = *forecast;
    let [predicted_ttft_ms, predicted_tpot_ms, predicted_e2e_ms] =
        [ttft_seconds, tpot_seconds, e2e_seconds].map(milliseconds);
    Times { predicted_ttft_ms, predicted_tpot_ms, predicted_e2e_ms }.serialize(serializer)
}

/// Milliseconds, to the microsecond.
pub(crate) fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e3
}

fn usd_alone<S: Serializer>(budget: &Budget, serializer: S) -> Result<S::Ok, S::Error> {
    budget.usd.serialize(serializer)
}

impl Decision {
    /// Whether the answer is text, which can be scored.
    pub fn generates(&self) -> bool {
        self.expected.output_tokens > 0
    }

    /// What the chosen instance is given to do.
    pub fn dispatch(&self) -> Dispatch {
        Dispatch {
            instance: self.to.instance,
            prompt_tokens: self.prefill_tokens(),
            output_tokens: self.expected.output_tokens,
        }
    }

    /// An instance of this pool serves the request, and not one of the chosen pool; whether that makes it another model. What was
    /// expected of the chosen one teaches nothing then.
    pub fn serve_at(&mut self, pool: PoolId) -> bool {
        let Some(elsewhere) = self.to.elsewhere.iter().find(|elsewhere| elsewhere.pool == pool).copied() else {
            return false;
        };
        self.to.pool = elsewhere.pool;
        self.to.model = elsewhere.model;
        self.because.max_tokens = elsewhere.max_tokens;
        self.because.budget_left = elsewhere.budget_left;
        self.quality.unrevised = elsewhere.unrevised_quality;
        self.expected.expectation = None;
        true
    }

    /// How long a whole answer may take where no report says whether its instance works: twice the time of as many tokens as 9 of 10 such
    /// answers have, or as the client allows if that is more, and `least` at least. `None` where there are reports, which a provider,
    /// `hosted`, never gives.
    pub fn answer_limit(&self, least: Duration, hosted: bool) -> Option<Duration> {
        if self.because.rung < Rung::Reckoned && !hosted {
            return None;
        }
        let allowed = self.expected.expectation.and_then(|expectation| expectation.max_tokens).map_or(0, u64::from);
        let more_tokens = self.expected.output_tokens_p90.max(allowed).saturating_sub(self.expected.output_tokens);
        let seconds =
            2.0 * (self.expected.forecast.e2e_seconds + self.expected.forecast.tpot_seconds * more_tokens as f64);
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).max(least))
    }

    /// Prompt tokens that the instance has to prefill.
    pub fn prefill_tokens(&self) -> u64 {
        self.expected.prompt_tokens.saturating_sub(self.expected.cached_tokens)
    }

    /// What a response teaches about the length of the model's answers, if it teaches anything.
    pub fn lesson(&self, seen: &Observed) -> Option<lengths::LengthLesson> {
        let usage = seen.usage.filter(|_| self.is_lesson(seen))?;
        self.expected.expectation?.lesson(usage.completion_tokens, seen.ending == Some(Ending::Limit))
    }

    /// Whether an answer shows what the model does: it is whole, and ended by itself or at the limit that its request carried. One that
    /// the server's context, a filter, Envoy or the client has cut says nothing.
    pub fn is_lesson(&self, seen: &Observed) -> bool {
        let limit = self.expected.expectation.and_then(|expectation| expectation.max_tokens).map(u64::from);
        let tokens = seen.usage.map(|usage| usage.completion_tokens);
        let ended = match seen.ending {
            None | Some(Ending::ByItself) => true,
            Some(Ending::Limit) => limit.zip(tokens).is_some_and(|(limit, tokens)| tokens >= limit),
            Some(Ending::Other) => false,
        };
        ended && seen.ended && !seen.error_event
    }

    /// Whether the request has used its budget up with this cost, or was cut where the budget ends.
    pub fn exhausts_budget(&self, usd: f64, seen: &Observed) -> bool {
        let is_limit = self.because.max_tokens.is_some() && self.because.max_tokens == self.because.budget_left;
        spending::is_exhausted(&self.because.budget, usd) || (is_limit && seen.ending == Some(Ending::Limit))
    }

    /// What a whole, successful response teaches about the speed of its pool, if it has one answer to one prompt.
    pub fn speed_lesson(&self, timing: &speed::AnswerTiming) -> Option<speed::SpeedLesson> {
        self.expected.expectation?;
        let prompt_tokens = self.prefill_tokens() as f64;
        let expectation =
            speed::SpeedExpectation { pool: self.to.pool, forecast: self.expected.forecast, prompt_tokens };
        Some(expectation.lesson(timing))
    }
}
