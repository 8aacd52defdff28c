//! Times of measured requests to a pool's profile.
//!
//! Alone on a server, a request has its first token after `overhead + prompt / prefill rate + one step`, and a token per step from then
//! on. So the step is the time per token, prompts of two lengths tell the prefill rate from the rest, and a batch of
//! [`TOGETHER`] tells how steps grow with each further request. Every number is a median: one late request changes none.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Requests that are sent at once.
pub(super) const TOGETHER: usize = 8;
/// Events of an answer that a time per token rests on, at least.
const PIECES_MIN: usize = 4;
/// Tokens by which the two lengths of prompts must differ to tell a rate.
const SPREAD_MIN: f64 = 64.0;
/// The range of a profile's `tpot_ms`, and the most by which a step may grow per request.
const TPOT_MS: RangeInclusive<f64> = 0.01..=60_000.0;
const GROWTH_MAX: f64 = 10.0;
/// The range of a profile's `prefill_tokens_per_second`.
const PREFILL: RangeInclusive<f64> = 1.0..=1e9;

/// One answer as it came.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Timing {
    /// When the request was sent, on the clock of its round.
    pub(super) sent: Duration,
    /// When each event with text came, on the same clock; never none.
    pub(super) pieces: Vec<Duration>,
    /// Tokens, as the server counts them.
    pub(super) prompt_tokens: u64,
    /// Tokens, as the server counts them.
    pub(super) output_tokens: u64,
}

/// Everything that was measured of a pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Timings {
    /// Short prompts, one request after the other.
    pub(super) short: Vec<Timing>,
    /// Long prompts, one request after the other.
    pub(super) long: Vec<Timing>,
    /// Rounds of requests with short prompts that were sent at once.
    pub(super) together: Vec<Vec<Timing>>,
}

/// What the times say; `None` where they do not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measured {
    /// Milliseconds of a step with one request.
    pub(super) tpot_ms: f64,
    /// By which each further request makes a step longer.
    pub(super) tpot_growth_per_running: Option<f64>,
    /// Prompt tokens in a second, and milliseconds of a request before its prompt is read.
    pub(super) prefill: Option<(f64, f64)>,
}

/// Fits a profile.
///
/// # Errors
/// The end of a sentence that begins with the server: there is no time per token.
pub(super) fn fit(timings: &Timings) -> Result<Measured, String> {
    let alone = median(timings.short.iter().filter_map(|timing| tpot_ms(timing, Duration::ZERO..=Duration::MAX)));
    let tpot = alone
        .filter(|ms| TPOT_MS.contains(ms))
        .ok_or("sends its answers in one piece or nearly so: there is no time per token")?;
    let together =
        timings.together.iter().flat_map(|round| round.iter().filter_map(|timing| tpot_ms(timing, shared(round)?)));
    let growth = median(together).map(|ms| ((ms / tpot - 1.0) / (TOGETHER - 1) as f64).clamp(0.0, GROWTH_MAX));
    Ok(Measured { tpot_ms: tpot, tpot_growth_per_running: growth, prefill: prefill(timings, tpot) })
}

/// The time during which all of a round's answers come.
fn shared(round: &[Timing]) -> Option<RangeInclusive<Duration>> {
    let first = round.iter().filter_map(|timing| timing.pieces.first()).max()?;
    let last = round.iter().filter_map(|timing| timing.pieces.last()).min()?;
    (round.len() == TOGETHER && first < last).then_some(*first..=*last)
}

/// Milliseconds per token of the part of an answer that came in this time.
fn tpot_ms(timing: &Timing, during: RangeInclusive<Duration>) -> Option<f64> {
    let inside: Vec<&Duration> = timing.pieces.iter().filter(|at| during.contains(at)).collect();
    let (first, last) = (inside.first()?, inside.last()?);
    if inside.len() < PIECES_MIN {
        return None;
    }
    let piece_ms = last.saturating_sub(**first).as_secs_f64() * 1e3 / (inside.len() - 1) as f64;
    // Servers join tokens: those that share a character, or those that were guessed together.
    let tokens_per_piece = (timing.output_tokens as f64 / timing.pieces.len() as f64).max(1.0);
    Some(piece_ms / tokens_per_piece)
}

/// Rate and overhead by the times to the first token of both lengths.
fn prefill(timings: &Timings, tpot_ms: f64) -> Option<(f64, f64)> {
    let ttft_ms = |timings: &[Timing]| {
        median(timings.iter().filter_map(|t| Some(t.pieces.first()?.saturating_sub(t.sent).as_secs_f64() * 1e3)))
    };
    let tokens = |timings: &[Timing]| median(timings.iter().map(|timing| timing.prompt_tokens as f64));
    let (short, long) = (tokens(&timings.short)?, tokens(&timings.long)?);
    let (short_ms, long_ms) = (ttft_ms(&timings.short)?, ttft_ms(&timings.long)?);
    let rate = (long - short) / ((long_ms - short_ms) / 1e3);
    let is_told = long - short >= SPREAD_MIN && long_ms > short_ms && PREFILL.contains(&rate);
    is_told.then(|| (rate, (short_ms - short / rate * 1e3 - tpot_ms).max(0.0)))
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get((values.len() - 1) / 2)?;
    Some((lower + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TPOT_MS: f64 = 20.0;
    const RATE: f64 = 4_000.0;
    const OVERHEAD_MS: f64 = 30.0;

    /// An answer of a server that does as it should: `first_ms` is its first token, further ones follow every `step_ms`.
    fn answer(first_ms: f64, step_ms: f64, prompt_tokens: u64, pieces: u32) -> Timing {
        let at = |n: u32| Duration::from_secs_f64((first_ms + step_ms * f64::from(n)) / 1e3);
        Timing {
            sent: Duration::ZERO,
            pieces: (0..pieces).map(at).collect(),
            prompt_tokens,
            output_tokens: u64::from(pieces),
        }
    }

    fn alone(prompt_tokens: u64) -> Timing {
        answer(OVERHEAD_MS + prompt_tokens as f64 / RATE * 1e3 + TPOT_MS, TPOT_MS, prompt_tokens, 30)
    }

    /// Eight answers, each begun a bit after the one before; alone at its ends, the first is faster there.
    fn round(growth: f64) -> Vec<Timing> {
        let step_ms = TPOT_MS * (1.0 + 7.0 * growth);
        (0..TOGETHER).map(|n| answer(60.0 + 10.0 * n as f64, step_ms, 40, 30)).collect()
    }

    fn timings() -> Timings {
        Timings { short: vec![alone(40); 5], long: vec![alone(1_640); 5], together: vec![round(0.05); 2] }
    }

    fn near(one: f64, other: f64) -> bool {
        (one - other).abs() < 1e-6 * other.abs().max(1.0)
    }

    #[test]
    fn the_profile_comes_back() {
        let late = |timing: &mut Timing| timing.pieces.iter_mut().for_each(|at| *at = *at * 3 + Duration::from_secs(1));
        let mut with_outliers = timings();
        late(&mut with_outliers.short[0]);
        late(&mut with_outliers.long[4]);
        with_outliers.together[0].truncate(7);
        let mut joined = timings();
        for timing in joined.short.iter_mut().chain(joined.together.iter_mut().flatten()) {
            timing.pieces = timing.pieces.iter().step_by(3).copied().collect();
        }
        // Joined pieces lose the time after the last one, not their rate.
        for (name, timings) in [("clean", timings()), ("outliers", with_outliers), ("joined", joined)] {
            let measured = fit(&timings).unwrap();
            let (rate, overhead_ms) = measured.prefill.unwrap();
            assert!(near(measured.tpot_ms, TPOT_MS), "{name}: {measured:?}");
            assert!(near(measured.tpot_growth_per_running.unwrap(), 0.05), "{name}: {measured:?}");
            assert!(near(rate, RATE) && near(overhead_ms, OVERHEAD_MS), "{name}: {measured:?}");
        }
    }

    /// A change of what was measured.
    type Change = fn(&mut Timings);

    #[test]
    fn what_the_times_do_not_say_is_none() {
        let rows: [(&str, Change, Option<f64>, bool); 6] = [
            ("cached prompts", |t| t.long = vec![alone(40); 5], Some(0.05), false),
            (
                "long as fast as short",
                |t| t.long.iter_mut().for_each(|l| l.pieces = alone(40).pieces),
                Some(0.05),
                false,
            ),
            ("no long prompts", |t| t.long.clear(), Some(0.05), false),
            ("faster together", |t| t.together = vec![round(-0.01)], Some(0.0), true),
            (
                "one after the other",
                |t| {
                    t.together = vec![(0..TOGETHER).map(|n| answer(700.0 * n as f64, TPOT_MS, 40, 30)).collect()];
                },
                None,
                true,
            ),
            ("not all answered", |t| t.together.iter_mut().for_each(|round| round.truncate(5)), None, true),
        ];
        for (name, change, growth, has_prefill) in rows {
            let mut timings = timings();
            change(&mut timings);
            let measured = fit(&timings).unwrap();
            let found = measured.tpot_growth_per_running;
            assert!(
                found.is_some() == growth.is_some() && near(found.unwrap_or(0.0), growth.unwrap_or(0.0)),
                "{name}: {found:?}"
            );
            assert_eq!(measured.prefill.is_some(), has_prefill, "{name}");
        }
    }

    #[test]
    fn an_answer_in_one_piece_has_no_time_per_token() {
        for pieces in [vec![Duration::from_secs(1); 30], vec![Duration::from_secs(1)], vec![]] {
            let timing = Timing { pieces, ..alone(40) };
            let timings = Timings { short: vec![timing; 5], ..timings() };
            assert!(fit(&timings).unwrap_err().contains("in one piece"));
        }
        assert!(fit(&Timings::default()).is_err());
    }

    #[test]
    fn medians() {
        for (values, expected) in
            [(vec![], None), (vec![3.0], Some(3.0)), (vec![4.0, 1.0], Some(2.5)), (vec![9e9, 1.0, 2.0], Some(2.0))]
        {
            assert_eq!(median(values.into_iter()), expected);
        }
    }
}
