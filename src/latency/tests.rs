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

fn work(prompt_tokens: f64, output_tokens: f64) -> Work {
    Work { prompt_tokens, cached_tokens: 0.0, output_tokens }
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

/// More load never makes an instance look faster.
#[test]
fn time_grows_with_load() {
    for running in 0..6 {
        for waiting in 0..6 {
            let here = load(f64::from(running), f64::from(waiting), 100.0);
            let queued = load(f64::from(running), f64::from(waiting + 1), 200.0);
            assert!(paper_seconds(&PROFILE, &LIMITS, &queued, 50.0) >= paper_seconds(&PROFILE, &LIMITS, &here, 50.0));
            let forecast = |load| forecast(&PROFILE, &LIMITS, load, &work(100.0, 50.0), &Speed::default());
            let (queued, here) = (forecast(&queued), forecast(&here));
            assert!(queued.ttft >= here.ttft && queued.tpot >= here.tpot && queued.e2e >= here.e2e);
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

mod engine;
