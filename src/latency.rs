//! How long a request takes on an instance under a load.
//!
//! Two estimates, both from the pool's profile: the published T of RouteBalance (decode only, section 6 of its specification),
//! which its objective needs as it is, and the time to the first token, which SLOs need.

use std::time::Duration;

use crate::fleet::{LatencyProfile, Limits};
use crate::reckoning::LoadNow;

/// Seconds per output token when `running` sequences decode beside this one: `tpot (1 + growth running)`.
pub fn tpot_seconds(profile: &LatencyProfile, running: f64) -> f64 {
    profile.tpot_ms / 1e3 * (1.0 + profile.tpot_growth_per_running * running.max(0.0))
}

/// The published T in seconds: `tau L` on an instance with a free slot, `tau (D / b + L)` otherwise, where D are the output
/// tokens it still owes and b = max(running, 1). Prefill is not priced.
pub fn paper_seconds(profile: &LatencyProfile, limits: &Limits, load: &LoadNow, output_tokens: f64) -> f64 {
    let tau = tpot_seconds(profile, load.running);
    // Load is a mixture where a report is trusted in part: half a request is nobody.
    let free_slot = load.running < f64::from(limits.max_running) && load.waiting < 0.5;
    if free_slot {
        tau * output_tokens
    } else {
        tau * (load.pending_output_tokens / load.running.max(1.0) + output_tokens)
    }
}

/// Seconds to the first token: fixed overhead, prefill of what was sent before and of this prompt, and for a full instance the
/// time until its queue has drained into the batch.
pub fn ttft_seconds(profile: &LatencyProfile, limits: &Limits, load: &LoadNow, prompt_tokens: f64) -> f64 {
    let prefill = (load.pending_prompt_tokens + prompt_tokens) / profile.prefill_tokens_per_second;
    let full = load.running >= f64::from(limits.max_running) || load.waiting >= 0.5;
    let queue = if full {
        let in_flight = load.in_flight().max(1.0);
        let tokens_each = load.pending_output_tokens / in_flight;
        // A running sequence is half done on average; a batch drains one sequence every `tokens_each / running` steps.
        tpot_seconds(profile, load.running) * tokens_each * (load.waiting + 1.0) / load.running.max(1.0)
    } else {
        0.0
    };
    profile.overhead_ms / 1e3 + prefill + queue
}

/// Seconds as a `Duration`, whatever the number.
pub fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(if seconds > 0.0 { Duration::MAX } else { Duration::ZERO })
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const PROFILE: LatencyProfile = LatencyProfile {
        tpot_ms: 10.0,
        tpot_growth_per_running: 0.1,
        prefill_tokens_per_second: 1_000.0,
        overhead_ms: 20.0,
    };
    const LIMITS: Limits = Limits { max_running: 4, kv_tokens: 10_000, max_model_len: 8_192 };

    fn load(running: f64, waiting: f64, pending_output_tokens: f64) -> LoadNow {
        LoadNow { running, waiting, pending_output_tokens, ..LoadNow::default() }
    }

    #[test]
    fn the_published_time() {
        let rows = [
            ("alone", load(0.0, 0.0, 0.0), 1.0),
            ("two beside it", load(2.0, 0.0, 150.0), 1.2),
            ("batch full", load(4.0, 0.0, 200.0), 1.4 * (50.0 + 100.0) / 100.0),
            ("somebody waits", load(2.0, 1.0, 200.0), 1.2 * (100.0 + 100.0) / 100.0),
        ];
        for (name, load, expected) in rows {
            let t = paper_seconds(&PROFILE, &LIMITS, &load, 100.0);
            assert!((t - expected).abs() < 1e-12, "{name}: {t} s");
        }
    }

    #[test]
    fn the_time_to_the_first_token() {
        let mut busy = load(1.0, 0.0, 50.0);
        busy.pending_prompt_tokens = 300.0;
        let rows = [
            ("alone", load(0.0, 0.0, 0.0), 0.02 + 0.1),
            ("another prompt first", busy, 0.02 + 0.4),
            ("full, nobody waits", load(4.0, 0.0, 400.0), 0.12 + 0.014 * 100.0 / 4.0),
            ("full, three wait", load(4.0, 3.0, 700.0), 0.12 + 0.014 * 100.0 * 4.0 / 4.0),
        ];
        for (name, load, expected) in rows {
            let t = ttft_seconds(&PROFILE, &LIMITS, &load, 100.0);
            assert!((t - expected).abs() < 1e-12, "{name}: {t} s");
        }
    }

    /// More load never makes an instance look faster.
    #[test]
    fn time_grows_with_load() {
        for running in 0..6 {
            for waiting in 0..6 {
                let here = load(f64::from(running), f64::from(waiting), 100.0);
                let queued = load(f64::from(running), f64::from(waiting + 1), 200.0);
                assert!(
                    paper_seconds(&PROFILE, &LIMITS, &queued, 50.0) >= paper_seconds(&PROFILE, &LIMITS, &here, 50.0)
                );
                assert!(ttft_seconds(&PROFILE, &LIMITS, &queued, 50.0) >= ttft_seconds(&PROFILE, &LIMITS, &here, 50.0));
            }
        }
    }

    #[test]
    fn any_number_is_a_duration() {
        for (seconds, expected) in [
            (1.5, Duration::from_millis(1_500)),
            (-1.0, Duration::ZERO),
            (f64::NAN, Duration::ZERO),
            (1e300, Duration::MAX),
        ] {
            assert_eq!(duration(seconds), expected);
        }
    }
}
