//! Speed: what responses show of a pool's time to the first token (TTFT) and per output token (TPOT), shared by all workers.
//!
//! Four things are learnt per pool, each with the means of [`Ledger`]:
//!
//! - a factor on the profile's TTFT and TPOT, as the factor on lengths is (see [`lengths`](super::lengths)): the location of
//!   `ln` actual over uncorrected prediction, moved by `tanh` of the distance, so that no single response moves it far;
//! - the pace without the profile, two straight lines fitted by least squares (normal equations that forget): a step's time
//!   over the batch, and what is left of TTFT without its steps over the prompt tokens. A sample weighs by the inverse square of
//!   its prediction, since errors are relative, and less where it lies far off the line (Huber 1964);
//! - the residuals of the predictions as they were made, a histogram;
//! - the mean prompt and answer.

use std::time::Duration;

use crate::fleet::PoolId;
use crate::latency::{BINS, Basis, Forecast, Pace, Residuals, Speed, Traffic};
use crate::learning::ledger::{Ledger, Tallies, Tally};
use crate::openai::Observed;

/// Responses of a pool after which a share of 1/e is left of what came before, for factors.
const FACTOR_MEMORY: f64 = 100.0;
/// The same for lines, residuals and traffic.
const MEMORY: f64 = 300.0;
/// Responses that a factor of 1 counts for until it is forgotten, too.
const PRIOR_RESPONSES: f64 = 10.0;
/// Scale of `ln` actual over predicted time.
const SCALE: f64 = 0.1;
/// What a response can pull a factor by at most, as for lengths: `3 scale`.
const STEP: f64 = 3.0 * SCALE;
/// No time is corrected by more than this factor, nor by less than its inverse.
pub const FACTOR_MAX: f64 = 8.0;
const LN_FACTOR_MAX: f64 = 3.0 * std::f64::consts::LN_2;
/// Responses before a line is believed.
const LINE_RESPONSES: f64 = 30.0;
/// Responses before the mean of the traffic is believed.
const TRAFFIC_RESPONSES: f64 = 5.0;
/// Relative distance from the line beyond which a sample's weight falls.
const HUBER: f64 = 1.0;
/// Output tokens below which a response says nothing of TPOT: its time is that of few steps.
const TPOT_TOKENS_MIN: u64 = 8;

/// What a decision expected of a request's times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpeedExpectation {
    /// Index of the pool.
    pub pool: PoolId,
    /// The forecast that was decided with.
    pub forecast: Forecast,
    /// Estimated prompt tokens.
    pub prompt_tokens: f64,
}

/// What a whole response has shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AnswerTiming {
    /// Seconds from dispatch to the first token; `None` if the response came in one piece.
    pub ttft_seconds: Option<f64>,
    /// Seconds from dispatch to the end.
    pub e2e_seconds: f64,
    /// Output tokens; 0 if they are not known.
    pub output_tokens: u64,
}

impl AnswerTiming {
    /// Of a response that came to its end, `ttft` and `e2e` after the request was sent; nothing if it holds an error. A response
    /// that is no stream has no first token of its own, and without usage nobody knows how many tokens there were.
    pub fn from_response(seen: &Observed, stream: bool, ttft: Option<Duration>, e2e: Duration) -> Option<AnswerTiming> {
        (seen.ended && !seen.error_event).then(|| AnswerTiming {
            ttft_seconds: ttft.filter(|_| stream).map(|ttft| ttft.as_secs_f64()),
            e2e_seconds: e2e.as_secs_f64(),
            output_tokens: seen.usage.map_or(0, |usage| usage.completion_tokens),
        })
    }
}

/// What a response teaches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpeedLesson {
    expectation: SpeedExpectation,
    ttft_seconds: Option<f64>,
    tpot_seconds: Option<f64>,
    output_tokens: f64,
}

impl SpeedLesson {
    /// The pool that it is about.
    pub fn pool(&self) -> PoolId {
        self.expectation.pool
    }
}

impl SpeedExpectation {
    /// What a whole response to one question with one answer teaches. From one that came in one piece, the time per token is
    /// what is left without the expected time to the first.
    pub fn lesson(&self, timing: &AnswerTiming) -> SpeedLesson {
        let positive = |seconds: f64| (seconds.is_finite() && seconds > 0.0).then_some(seconds);
        let decode = timing.e2e_seconds - timing.ttft_seconds.unwrap_or(self.forecast.ttft_seconds);
        let steps = timing.output_tokens.saturating_sub(1) as f64;
        let tpot_seconds = if timing.output_tokens >= TPOT_TOKENS_MIN { positive(decode / steps) } else { None };
        SpeedLesson {
            expectation: *self,
            ttft_seconds: timing.ttft_seconds.and_then(positive),
            tpot_seconds,
            output_tokens: timing.output_tokens as f64,
        }
    }
}

/// The two times of a pool in one key space.
#[derive(Clone, Copy)]
enum Time {
    Ttft,
    Tpot,
}

impl Time {
    fn pool(key: u32) -> PoolId {
        PoolId::new((key / 2) as usize)
    }

    fn key(self, pool: PoolId) -> Option<u32> {
        u32::try_from(pool.index()).ok()?.checked_mul(2)?.checked_add(match self {
            Time::Ttft => 0,
            Time::Tpot => 1,
        })
    }
}

/// What one worker has written of all it has learnt of speed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpeedTallies {
    /// Factors, two keys per pool.
    pub factors: Tallies<1>,
    /// Lines, two keys per pool: weighted sums of 1, x, x^2, y, x y.
    pub lines: Tallies<5>,
    /// Histograms, two keys per pool.
    pub residuals: Tallies<BINS>,
    /// Prompt and output tokens, one key per pool.
    pub traffic: Tallies<2>,
}

/// The speed of all pools as one worker knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Speeds {
    factors: Ledger<1>,
    lines: Ledger<5>,
    residuals: Ledger<BINS>,
    traffic: Ledger<2>,
}

impl Default for Speeds {
    fn default() -> Self {
        Speeds {
            factors: Ledger::new(FACTOR_MEMORY),
            lines: Ledger::new(MEMORY),
            residuals: Ledger::new(MEMORY),
            traffic: Ledger::new(MEMORY),
        }
    }
}

impl Speeds {
    /// Learns from a response.
    pub fn learn(&mut self, lesson: &SpeedLesson) {
        let SpeedExpectation { pool, forecast, prompt_tokens } = &lesson.expectation;
        let (Some(ttft_key), Some(tpot_key)) = (Time::Ttft.key(*pool), Time::Tpot.key(*pool)) else { return };
        if let Ok(key) = u32::try_from(pool.index())
            && lesson.output_tokens > 0.0
        {
            self.traffic.add(key, 1.0, [*prompt_tokens, lesson.output_tokens]);
        }
        if let Some(tpot) = lesson.tpot_seconds {
            self.learn_factor(tpot_key, tpot / forecast.uncorrected_tpot_seconds);
            self.learn_residual(tpot_key, tpot / forecast.tpot_seconds);
            self.learn_line(tpot_key, forecast.batch, tpot, forecast.tpot_seconds);
        }
        if let Some(ttft) = lesson.ttft_seconds {
            self.learn_factor(ttft_key, ttft / forecast.uncorrected_ttft_seconds);
            self.learn_residual(ttft_key, ttft / forecast.ttft_seconds);
            if let Some(step) = self.step(*pool) {
                let rest = ttft - forecast.steps * step.value_at(forecast.running);
                self.learn_line(ttft_key, forecast.prefill_tokens, rest, forecast.ttft_seconds);
            }
        }
    }

    fn learn_factor(&mut self, key: u32, ratio: f64) {
        let location = self.location(key);
        let distance = (ratio.ln() - location) / SCALE;
        self.factors.add(key, 1.0, [location + STEP * (distance / 2.0).tanh()]);
    }

    fn learn_residual(&mut self, key: u32, ratio: f64) {
        let Some(bin) = Residuals::bin(ratio) else { return };
        let mut one = [0.0; BINS];
        if let Some(share) = one.get_mut(bin) {
            *share = 1.0;
        }
        self.residuals.add(key, 1.0, one);
    }

    /// A sample of a line; `about` is the size of what is predicted, which the error is relative to.
    fn learn_line(&mut self, key: u32, x: f64, y: f64, about: f64) {
        let off = self.line(key).map_or(0.0, |line| (y - line.value_at(x)).abs() / about);
        let weight = (HUBER / off).min(1.0) / about.powi(2);
        self.lines.add(key, 1.0, [weight, weight * x, weight * x * x, weight * y, weight * x * y]);
    }

    fn location(&self, key: u32) -> f64 {
        let tally = self.factors.combined(key);
        let prior = PRIOR_RESPONSES * (-tally.seen / FACTOR_MEMORY).exp();
        let location = tally.sums.first().copied().unwrap_or_default() / (tally.weight + prior);
        if location.is_finite() { location.clamp(-LN_FACTOR_MAX, LN_FACTOR_MAX) } else { 0.0 }
    }

    fn line(&self, key: u32) -> Option<FittedLine> {
        FittedLine::fitted(&self.lines.combined(key))
    }

    /// What decisions read: the speed of so many pools.
    pub fn speeds(&self, pools: usize, basis: Basis) -> Vec<Speed> {
        (0..pools).map(|pool| self.speed(PoolId::new(pool), basis)).collect()
    }

    /// What decisions read of one pool.
    pub fn speed(&self, pool: PoolId, basis: Basis) -> Speed {
        let (Some(ttft_key), Some(tpot_key)) = (Time::Ttft.key(pool), Time::Tpot.key(pool)) else {
            return Speed::default();
        };
        let factor = |key| if basis == Basis::Both { self.location(key).exp() } else { 1.0 };
        let residuals = |key| {
            let tally = self.residuals.combined(key);
            Residuals::from_shares(tally.weight, &tally.means())
        };
        let traffic = self.traffic(pool);
        let pace = || {
            let (first, step) = (self.line(ttft_key)?, self.step(pool)?);
            Some(Pace {
                overhead_seconds: first.at_zero,
                prompt_token_seconds: first.slope,
                step_seconds: step.at_zero,
                step_seconds_per_running: step.slope,
                step_seconds_per_context_token: 0.0,
            })
        };
        Speed {
            pace: if basis == Basis::Learned { pace() } else { None },
            ttft_factor: factor(ttft_key),
            tpot_factor: factor(tpot_key),
            traffic,
            ttft_residuals: residuals(ttft_key),
            tpot_residuals: residuals(tpot_key),
        }
    }

    fn traffic(&self, pool: PoolId) -> Option<Traffic> {
        let mean = self.traffic.combined(u32::try_from(pool.index()).ok()?);
        (mean.weight >= TRAFFIC_RESPONSES)
            .then(|| Traffic { prompt_tokens: mean.mean(0), output_tokens: mean.mean(1).max(1.0) })
    }

    /// A step's time over the other sequences in it. The time per token of a response holds the prefills of others, too; they
    /// are taken out as the forecast puts them in.
    fn step(&self, pool: PoolId) -> Option<FittedLine> {
        let tpot = self.line(Time::Tpot.key(pool)?)?;
        let first = self.line(Time::Ttft.key(pool)?);
        let prefills = first.zip(self.traffic(pool)).map_or(0.0, |(f, t)| t.prompt_tokens / t.output_tokens * f.slope);
        Some(FittedLine { at_zero: (tpot.at_zero - prefills).max(0.0), slope: (tpot.slope - prefills).max(0.0) })
    }

    /// What this worker writes for the others.
    pub fn own(&self) -> SpeedTallies {
        let mut own = SpeedTallies::default();
        self.write(&mut own);
        own
    }

    /// The same into what was written before.
    pub fn write(&self, written: &mut SpeedTallies) {
        written.factors.follow(self.factors.own(), |_| {});
        written.lines.follow(self.lines.own(), |_| {});
        written.residuals.follow(self.residuals.own(), |_| {});
        written.traffic.follow(self.traffic.own(), |_| {});
    }

    /// Goes on where another worker has stopped.
    pub fn adopt(&mut self, own: SpeedTallies) {
        self.factors.adopt(own.factors);
        self.lines.adopt(own.lines);
        self.residuals.adopt(own.residuals);
        self.traffic.adopt(own.traffic);
    }

    /// Takes what the other workers have written of these pools; of the rest it is as it was.
    pub fn read<'a>(&mut self, others: impl Iterator<Item = &'a SpeedTallies> + Clone, pools: &[PoolId]) {
        let both = |pool: &PoolId| [Time::Ttft.key(*pool), Time::Tpot.key(*pool)];
        let of_time = || pools.iter().flat_map(both).flatten();
        self.factors.read_some(others.clone().map(|other| &other.factors), of_time());
        self.lines.read_some(others.clone().map(|other| &other.lines), of_time());
        self.residuals.read_some(others.clone().map(|other| &other.residuals), of_time());
        let of_pool = pools.iter().filter_map(|pool| u32::try_from(pool.index()).ok());
        self.traffic.read_some(others.map(|other| &other.traffic), of_pool);
    }
}

impl SpeedTallies {
    /// Says the same as others from now on; the pools of which it did not. Where little changes, little is done.
    pub fn follow(&mut self, others: &SpeedTallies) -> Vec<PoolId> {
        let SpeedTallies { factors, lines, residuals, traffic } = self;
        let mut pools = Vec::new();
        factors.follow(&others.factors, |key| pools.push(Time::pool(key)));
        lines.follow(&others.lines, |key| pools.push(Time::pool(key)));
        residuals.follow(&others.residuals, |key| pools.push(Time::pool(key)));
        traffic.follow(&others.traffic, |key| pools.push(PoolId::new(key as usize)));
        pools.sort_unstable();
        pools.dedup();
        pools
    }

    /// A factor's tally of another worker, if its numbers are possible.
    pub fn sound_factor(tally: Tally<1>) -> Option<Tally<1>> {
        tally.sound(LN_FACTOR_MAX + STEP)
    }

    /// A line's.
    pub fn sound_line(tally: Tally<5>) -> Option<Tally<5>> {
        tally.sound(f64::from(f32::MAX))
    }

    /// A histogram's.
    pub fn sound_residuals(tally: Tally<BINS>) -> Option<Tally<BINS>> {
        tally.sound(1.0)
    }

    /// A mean request's.
    pub fn sound_traffic(tally: Tally<2>) -> Option<Tally<2>> {
        tally.sound(f64::from(u32::MAX))
    }
}

/// `at_zero + slope x`, neither below 0.
#[derive(Clone, Copy, Debug, PartialEq)]
struct FittedLine {
    at_zero: f64,
    slope: f64,
}

/// Share of the variance of x about 0 that samples must show before their slope is believed.
const SPREAD_MIN: f64 = 1e-3;

impl FittedLine {
    fn value_at(self, x: f64) -> f64 {
        self.at_zero + self.slope * x
    }

    /// Least squares; a line that would fall, or start below 0, is the best one that does not.
    fn fitted(tally: &Tally<5>) -> Option<FittedLine> {
        let [one, x, xx, y, xy] = tally.sums;
        if tally.weight < LINE_RESPONSES || one <= 0.0 {
            return None;
        }
        let determinant = one * xx - x * x;
        let spread = determinant > SPREAD_MIN * one * xx;
        let slope = if spread { (one * xy - x * y) / determinant } else { 0.0 };
        let line = if slope <= 0.0 {
            FittedLine { at_zero: y / one, slope: 0.0 }
        } else {
            FittedLine { at_zero: (y - slope * x) / one, slope }
        };
        let line = if line.at_zero < 0.0 { FittedLine { at_zero: 0.0, slope: (xy / xx).max(0.0) } } else { line };
        (line.at_zero.is_finite() && line.slope.is_finite()).then_some(line)
    }
}

#[cfg(test)]
mod tests;
