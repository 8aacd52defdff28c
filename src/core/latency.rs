//! How long a request takes on an instance under a load, for SLOs, the objectives and the access log.
//!
//! Two estimates. The published T of RouteBalance (decode only), which its objective needs as it is, comes from the pool's profile. The
//! [`forecast`] of the time to the first token, per token and to the end follows what a continuous-batching server does, and takes what was
//! learnt of the pool's [`Speed`].
//!
//! # Formula
//!
//! A server works in steps: each decodes all `b` running sequences and prefills up to 2,048 tokens of waiting prompts, and a first token
//! comes at the end of the step that ends its prompt.
//!
//! - `step(b) = tpot_ms (1 + tpot_growth_per_running * b + tpot_growth_per_thousand_context_tokens * KV tokens / 1,000)`, with `b` others
//!   running, from the pool's profile. The KV tokens are the request's own and what is reported of the others, or for each of them a mean
//!   prompt and half a mean answer.
//! - `TTFT = overhead_ms + (prompt tokens ahead + own - cached) / prefill rate + steps * step(b)`. Ahead are two thirds of the prompts sent
//!   that have no first token yet, and those that come before the step under way ends. `steps` are half of the step under way, the steps
//!   that the prompts need, and on an instance without a free slot or free KV those until its queue has drained: a place comes free every
//!   `L / b` steps, `L` being the mean answer's tokens.
//! - `TPOT = step(b) + (b + 1) * P / L / prefill rate`: in a steady batch every sequence is followed by another one, whose prompt (`P`
//!   tokens on average) the others wait for.
//! - `E2E = TTFT + (output tokens - 1) * TPOT`.
//!
//! # Inputs and configuration
//!
//! The load now ([`reckoning`](crate::reckoning)), lengths, cached tokens, `pools[].profile` and `pools[].limits`. `P`, `L` and what
//! follows are learnt per pool from responses and shared by all workers. `latency.estimate` chooses: `prior` is the profile as written;
//! `both` (default) multiplies TTFT and TPOT by factors between 1/8 and 8, which about 100 responses make and no single one moves far;
//! `learned` fits overhead, prefill rate and both numbers of `step` to responses alone (two straight lines, least squares that forget), and
//! is `prior` until 30 streams of the pool have ended. In all three the ratios of actual to predicted TTFT and TPOT of about 300 responses
//! are kept as histograms: the probability that an SLO is met.
//!
//! # Limits
//!
//! TTFT is learnt from streams, TPOT from responses with usage. TTFT and times per token that instances report are kept and decide nothing.

mod residuals;
mod speed;

use std::time::Duration;

use crate::fleet::{LatencyProfile, Limits};
use crate::reckoning::LoadNow;

pub use residuals::{BINS, EDGES, Residuals};
pub use speed::{Basis, Pace, Speed, Tempo, Traffic};

/// Seconds per output token when `running` sequences decode beside this one: `tpot (1 + growth running)`.
pub fn tpot_seconds(profile: &LatencyProfile, running: f64) -> f64 {
    profile.tpot_ms / 1e3 * (1.0 + profile.tpot_growth_per_running * running.max(0.0))
}

/// The published T in seconds: `tau L` on an instance with a free slot, `tau (D / b + L)` otherwise, where D are the output
/// tokens it still owes and b = max(running, 1). Prefill is not priced.
#[inline]
pub fn paper_seconds(profile: &LatencyProfile, limits: &Limits, load: &LoadNow, output_tokens: f64) -> f64 {
    paper_seconds_at(tpot_seconds(profile, load.running), limits, load, output_tokens)
}

/// The same with another prediction of the seconds per output token.
#[inline]
pub fn paper_seconds_at(tpot_seconds: f64, limits: &Limits, load: &LoadNow, output_tokens: f64) -> f64 {
    // Load is a mixture where a report is trusted in part: half a request is nobody.
    let free_slot = load.running < f64::from(limits.max_running) && load.waiting < 0.5;
    if free_slot {
        tpot_seconds * output_tokens
    } else {
        tpot_seconds * (load.pending_output_tokens / load.running.max(1.0) + output_tokens)
    }
}

/// Tokens of one step, prompts and decodes together (vLLM's `--max-num-batched-tokens` default for online serving).
const STEP_TOKENS: f64 = 2048.0;

/// Part of the prompts without a first token that is still ahead of a request: most of the time such a prompt is in the step under
/// way, of which half is left.
const AHEAD: f64 = 2.0 / 3.0;

/// What a request makes an instance do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Tokens of the prompt.
    pub prompt_tokens: f64,
    /// Of those, the ones whose prefill the instance has kept.
    pub cached_tokens: f64,
    /// Expected tokens of an answer; of the longest one if there are several.
    pub output_tokens: f64,
}

/// Prompt tokens of a typical request: the mean of the demo's prompts and of the paper's (361 characters) lies near it.
const TYPICAL_PROMPT_TOKENS: f64 = 200.0;

impl Work {
    /// A request of which nothing is known but how long an answer usually is.
    pub fn typical(output_tokens: f64) -> Work {
        Work { prompt_tokens: TYPICAL_PROMPT_TOKENS, cached_tokens: 0.0, output_tokens }
    }
}

/// What is expected of a request's times, in seconds, and what it follows from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forecast {
    /// To the first token.
    pub ttft_seconds: f64,
    /// Per output token after the first.
    pub tpot_seconds: f64,
    /// To the last token.
    pub e2e_seconds: f64,
    /// `ttft_seconds` before its correction.
    pub uncorrected_ttft_seconds: f64,
    /// `tpot_seconds` before its correction.
    pub uncorrected_tpot_seconds: f64,
    /// Prompt tokens that are prefilled before the first token comes, this request's own and those before it.
    pub prefill_tokens: f64,
    /// Steps that pass before the first token comes, its own included.
    pub steps: f64,
    /// Other sequences in those steps.
    pub running: f64,
    /// Other sequences while this one decodes.
    pub batch: f64,
}

impl Forecast {
    /// The same, if the instance has something else to do first.
    #[inline]
    pub fn after(self, seconds: f64) -> Forecast {
        Forecast {
            ttft_seconds: self.ttft_seconds + seconds,
            e2e_seconds: self.e2e_seconds + seconds,
            uncorrected_ttft_seconds: self.uncorrected_ttft_seconds + seconds,
            ..self
        }
    }

    /// Seconds to the last of so many tokens.
    pub fn e2e_of(&self, output_tokens: f64) -> f64 {
        self.ttft_seconds + self.tpot_seconds * (output_tokens - 1.0).max(0.0)
    }
}

/// What is expected of a request's times on an instance.
///
/// A step decodes every running sequence, `step(b) = step + step_per_running b + step_per_context_token held` with `b` others, and
/// prefills waiting prompts; the first token comes at the end of the step that ends its prompt. `held` are the tokens in the KV of
/// all: this request's own, and of each other one what is reported, or a prompt and half an answer. So
///
/// - `TTFT = overhead + prefill of the prompts ahead and of this one + steps step(b)`, where `steps` are half a step (what is left
///   of the one under way, if there is one), those that the prompts need at `STEP_TOKENS` a step, and on an instance without a slot
///   or KV those until the queue has drained: a place comes free every `L / b` steps, `L` the mean answer's tokens. Ahead are
///   two thirds of the prompts without a first token, and those that come before the step under way ends;
/// - `TPOT = step(b) + (b + 1) P / L prefill per token`: in a steady batch each sequence is followed by another one after `L` steps,
///   whose prompt of `P` tokens the rest has to wait for;
/// - `E2E = TTFT + (tokens - 1) TPOT`.
pub fn forecast(profile: &LatencyProfile, limits: &Limits, load: &LoadNow, work: &Work, speed: &Speed) -> Forecast {
    forecast_at(&speed.tempo_on(profile), limits, load, work)
}

/// The same, at the tempo that all instances of a pool have.
#[inline]
pub fn forecast_at(tempo: &Tempo, limits: &Limits, load: &LoadNow, work: &Work) -> Forecast {
    let pace = &tempo.pace;
    let traffic = tempo
        .traffic
        .unwrap_or(Traffic { prompt_tokens: work.prompt_tokens, output_tokens: work.output_tokens.max(1.0) });
    let own = (work.prompt_tokens - work.cached_tokens).max(0.0);
    let running = load.running.max(0.0);

    let waiting = load.waiting.max(0.0);
    let behind = behind(limits, load, work, &traffic);
    let drain_steps = behind * traffic.output_tokens / running.max(1.0);
    let rest = 0.5 * running.min(1.0);
    let arriving = rest * running * traffic.prompt_tokens / traffic.output_tokens;
    let ahead = (AHEAD * load.pending_prompt_tokens).max(behind.min(waiting) * traffic.prompt_tokens) + arriving;
    let prefill_tokens = ahead + own;
    let prefill_share = prefill_tokens / (STEP_TOKENS - running).max(1.0);
    let prefill_steps = if prefill_share <= 1.0 { 1.0 } else { prefill_share.ceil().max(1.0) };
    let steps = rest + prefill_steps + drain_steps;
    let held_each = match load.kv_use {
        Some(used) if running >= 1.0 => used * limits.kv_tokens as f64 / running,
        _ => traffic.prompt_tokens + 0.5 * traffic.output_tokens,
    };
    let step = |others: f64, own_held: f64| {
        let held = others * held_each + own_held;
        pace.step_seconds + pace.step_seconds_per_running * others + pace.step_seconds_per_context_token * held
    };
    let uncorrected_ttft_seconds =
        pace.overhead_seconds + prefill_tokens * pace.prompt_token_seconds + steps * step(running, work.prompt_tokens);

    // Behind a queue, the batch stays as large as it is.
    let joining = (waiting - behind).max(0.0);
    let batch = (running + joining).min(f64::from(limits.max_running) - 1.0).max(0.0);
    let prefill_per_step = (batch + 1.0) * traffic.prompt_tokens / traffic.output_tokens;
    let uncorrected_tpot_seconds = step(batch, mean_held(work)) + prefill_per_step * pace.prompt_token_seconds;

    let ttft_seconds = uncorrected_ttft_seconds * tempo.ttft_factor;
    let tpot_seconds = uncorrected_tpot_seconds * tempo.tpot_factor;
    let forecast = Forecast {
        ttft_seconds,
        tpot_seconds,
        e2e_seconds: 0.0,
        uncorrected_ttft_seconds,
        uncorrected_tpot_seconds,
        prefill_tokens,
        steps,
        running,
        batch,
    };
    Forecast { e2e_seconds: forecast.e2e_of(work.output_tokens), ..forecast }
}

/// Seconds that a request takes on an idle instance that has nothing of it in its cache, by the profile.
pub fn idle_seconds(profile: &LatencyProfile, work: &Work) -> f64 {
    let prefill = work.prompt_tokens / profile.prefill_tokens_per_second;
    profile.overhead_ms / 1e3 + prefill + work.output_tokens * profile.tpot_ms / 1e3
}

/// Seconds by which a request slows down the others of an instance, all together: every step with it and its context lasts longer
/// for each of them, and each waits for its prefill.
#[inline]
pub fn delay_seconds(tempo: &Tempo, load: &LoadNow, work: &Work) -> f64 {
    let pace = &tempo.pace;
    let prefill = (work.prompt_tokens - work.cached_tokens).max(0.0) * pace.prompt_token_seconds;
    let longer_step = pace.step_seconds_per_running + pace.step_seconds_per_context_token * mean_held(work);
    load.running.max(0.0) * (longer_step * work.output_tokens + prefill)
}

/// What a KV cache in use `k` adds to the seconds of work: `.15 k / (1 - k)`, small until the cache is nearly full.
const KV_PENALTY_SECONDS: f64 = 0.15;
/// A full cache is still comparable with another full one.
const KV_USE_MAX: f64 = 0.999;

/// Tokens that the instance owes, prompts and answers, over the tokens it makes in a second when its batch is full, plus the
/// penalty for its cache: the time-based load of token-aware balancers such as the KV router of NVIDIA Dynamo, which adds up the
/// prefill and decode work that an instance holds.
pub fn owed_seconds(profile: &LatencyProfile, limits: &Limits, load: &LoadNow) -> f64 {
    let batch = f64::from(limits.max_running);
    let tokens_per_second = batch / tpot_seconds(profile, batch - 1.0).max(1e-9);
    let tokens = load.pending_prompt_tokens + load.pending_output_tokens;
    let used = load.kv_use.unwrap_or(0.0).clamp(0.0, KV_USE_MAX);
    tokens / tokens_per_second + KV_PENALTY_SECONDS * used / (1.0 - used)
}

/// Tokens in a request's KV, mean over its steps.
fn mean_held(work: &Work) -> f64 {
    work.prompt_tokens + 0.5 * work.output_tokens
}

/// Requests that must end before this one has a slot and KV, as many as would end in a steady batch meanwhile.
#[inline]
fn behind(limits: &Limits, load: &LoadNow, work: &Work, traffic: &Traffic) -> f64 {
    let without_slot = load.waiting.max(0.0) + 1.0 - (f64::from(limits.max_running) - load.running).max(0.0);
    let without_kv = load.kv_use.map_or(0.0, |used| {
        // The others' next tokens come first.
        let wanted = (used + load.kv_wanted.unwrap_or(0.0)) * limits.kv_tokens as f64 + load.running;
        (wanted + work.prompt_tokens - limits.kv_tokens as f64) / traffic.prompt_tokens.max(1.0)
    });
    without_slot.max(without_kv).max(0.0)
}

/// Seconds as a `Duration`, whatever the number.
pub fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(if seconds > 0.0 { Duration::MAX } else { Duration::ZERO })
}

#[cfg(test)]
mod tests;
