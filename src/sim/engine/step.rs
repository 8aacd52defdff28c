//! Time of steps, exact however many of them are taken at once.
//!
//! The context's part of a step grows with every token, so a run of further steps is an arithmetic series. Its parts are kept in
//! units of 2^-20 ns and only the end of a step is cut to whole nanoseconds: a run in one piece ends when its steps one by one do.

use std::time::Duration;

use routebalance_core::fleet::LatencyProfile;

/// Bits of a nanosecond's fraction.
const FRACTION_BITS: u32 = 20;
/// Tokens that the profile's growth with the context is per.
const TOKENS_PER_GROWTH: f64 = 1_000.0;

/// The profile in the units of steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Durations {
    profile: LatencyProfile,
    /// Per KV token that the batch holds, units of 2^-20 ns.
    context_token: u64,
    /// Of a request, before it joins the queue.
    pub(super) overhead_ns: u64,
}

impl Durations {
    pub(super) fn from_profile(profile: LatencyProfile) -> Durations {
        let per_token_ns = profile.tpot_ms * 1e6 * profile.tpot_growth_per_thousand_context_tokens / TOKENS_PER_GROWTH;
        Durations {
            profile,
            context_token: nanoseconds(per_token_ns * f64::from(1 << FRACTION_BITS)),
            overhead_ns: nanoseconds(profile.overhead_ms * 1e6),
        }
    }

    /// Nanoseconds of a step that gives a token to somebody among so many sequences, without their context.
    pub(super) fn decode_ns(&self, running: usize) -> u64 {
        let others = running.saturating_sub(1) as f64;
        nanoseconds(self.profile.tpot_ms * 1e6 * (1.0 + self.profile.tpot_growth_per_running * others))
    }

    /// Nanoseconds to prefill so many tokens after `done` others of a prompt: the difference of two roundings, so that the pieces
    /// of a prompt add up to exactly its time.
    pub(super) fn prefill_ns(&self, done: u32, tokens: u32) -> u64 {
        let until = |tokens: u32| match tokens {
            0 => 0,
            _ => nanoseconds(f64::from(tokens) * 1e9 / self.profile.prefill_tokens_per_second),
        };
        until(done.saturating_add(tokens)).saturating_sub(until(done))
    }
}

/// A moment: nanoseconds and a fraction in units of 2^-20 ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) ns: u64,
    fraction: u64,
}

impl Moment {
    /// A whole nanosecond.
    pub(super) fn from_ns(ns: u64) -> Moment {
        Moment { ns, fraction: 0 }
    }

    fn after(self, units: u128) -> Moment {
        let units = units.saturating_add(u128::from(self.fraction));
        Moment {
            ns: self.ns.saturating_add(u64::try_from(units >> FRACTION_BITS).unwrap_or(u64::MAX)),
            fraction: (units & ((1 << FRACTION_BITS) - 1)) as u64,
        }
    }
}

/// The step under way, and the steps like it that may follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    start: Moment,
    /// Its length, units of 2^-20 ns.
    length: u128,
    /// By which each step that follows is longer than the one before.
    growth: u128,
    /// Sequences that get a token.
    pub(super) decoding: u64,
    /// Prompt tokens.
    pub(super) prefilling: u64,
}

impl Step {
    /// A step of `fixed_ns` that gives a token to `decoding` of the sequences, which together hold so many tokens by its end.
    pub(super) fn new(
        durations: &Durations,
        start: Moment,
        fixed_ns: u64,
        decoding: u64,
        prefilling: u64,
        held: u64,
    ) -> Step {
        let context = |tokens: u64| u128::from(durations.context_token).saturating_mul(u128::from(tokens));
        let of_context = if decoding > 0 { context(held) } else { 0 };
        Step {
            start,
            length: (u128::from(fixed_ns.max(1)) << FRACTION_BITS).saturating_add(of_context),
            growth: context(decoding),
            decoding,
            prefilling,
        }
    }

    /// The same, so many times longer.
    pub(super) fn slowed(self, factor: f64) -> Step {
        let longer = |units: u128| (units as f64 * factor) as u128;
        Step { length: longer(self.length), growth: longer(self.growth), ..self }
    }

    /// From its start to a later moment, whole nanoseconds.
    pub(super) fn nanoseconds_until(&self, moment: Moment) -> u64 {
        moment.ns.saturating_sub(self.start.ns)
    }

    /// No prompt is prefilled: the next step is alike unless something arrives, ends or runs out of KV.
    pub(super) fn decode_only(&self) -> bool {
        self.prefilling == 0
    }

    /// The end of so many steps.
    pub(super) fn end(&self, steps: u64) -> Moment {
        let steps = u128::from(steps);
        let further = steps.saturating_mul(steps.saturating_sub(1)) >> 1;
        self.start.after(steps.saturating_mul(self.length).saturating_add(further.saturating_mul(self.growth)))
    }

    /// How many steps have ended by then.
    pub(super) fn ended_by(&self, at_ns: u64) -> u64 {
        let Some(passed) = at_ns.checked_sub(self.start.ns) else { return 0 };
        // Whatever ends before the next nanosecond.
        let left = (u128::from(passed).saturating_add(1) << FRACTION_BITS)
            .saturating_sub(u128::from(self.start.fraction).saturating_add(1));
        let steps = if self.growth == 0 {
            left / self.length.max(1)
        } else {
            // The greatest k with `k length + k (k - 1) / 2 growth <= left`.
            let linear = self.length.saturating_mul(2).saturating_sub(self.growth);
            let root = linear
                .saturating_mul(linear)
                .saturating_add(self.growth.saturating_mul(8).saturating_mul(left))
                .isqrt();
            root.saturating_sub(linear) / self.growth.saturating_mul(2).max(1)
        };
        u64::try_from(steps).unwrap_or(u64::MAX)
    }
}

/// Rounds; what is not a finite positive number is 0, and an hour bounds what a broken profile can do.
pub(super) fn nanoseconds(value: f64) -> u64 {
    const HOUR_NS: f64 = 3600.0 * 1e9;
    if value.is_finite() { value.clamp(0.0, HOUR_NS).round() as u64 } else { 0 }
}

pub(super) fn duration_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use routebalance_core::random::Random;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn a_run_ends_when_its_steps_do() {
        let mut random = Random::new(7);
        for _ in 0..300 {
            let growth = if random.below(3) == 0 { 0.0 } else { random.uniform() * 0.02 };
            let durations = Durations::from_profile(LatencyProfile {
                tpot_ms: 1.0 + 30.0 * random.uniform(),
                tpot_growth_per_running: 0.01,
                tpot_growth_per_thousand_context_tokens: growth,
                prefill_tokens_per_second: 10_000.0,
                overhead_ms: 0.0,
            });
            let (decoding, mut held) = (1 + random.below(200) as u64, random.below(200_000) as u64);
            let step = |start, held| Step::new(&durations, start, 20_000_000, decoding, 0, held);
            let run = step(Moment { ns: 17, fraction: random.below(1 << FRACTION_BITS) as u64 }, held);
            let mut at = run.start;
            for k in 1..400 {
                let start = at;
                at = step(start, held).end(1);
                assert_eq!(run.end(k), at);
                let inside = start.ns + random.below((at.ns - start.ns) as usize) as u64;
                assert_eq!(run.ended_by(inside), k - 1);
                assert_eq!(run.ended_by(at.ns), k);
                held += decoding;
            }
            assert_eq!(run.ended_by(0), 0);
        }
    }
}
