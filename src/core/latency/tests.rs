use super::*;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const PROFILE: LatencyProfile = LatencyProfile {
    tpot_ms: 10.0,
    tpot_growth_per_running: 0.1,
    tpot_growth_per_thousand_context_tokens: 0.0,
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

/// Four sequences beside each other make a token each in 13 ms: 308 a second.
#[test]
fn what_an_instance_owes() {
    let owing = |prompt, output, kv_use| LoadNow {
        pending_prompt_tokens: prompt,
        pending_output_tokens: output,
        kv_use,
        ..LoadNow::default()
    };
    let rows = [
        ("nothing", owing(0.0, 0.0, None), 0.0),
        ("prompts and answers", owing(100.0, 300.0, None), 400.0 * 0.013 / 4.0),
        ("half a cache", owing(0.0, 0.0, Some(0.5)), 0.15),
        ("a full cache", owing(0.0, 0.0, Some(1.0)), 0.15 * 999.0),
    ];
    for (name, load, expected) in rows {
        let seconds = owed_seconds(&PROFILE, &LIMITS, &load);
        assert!((seconds - expected).abs() < 1e-9, "{name}: {seconds} s");
    }
}

/// Profile: a step of 10 ms and 1 ms more per other sequence, 1 ms per prompt token, 20 ms overhead; four slots.
#[test]
fn the_forecast_counts_steps() {
    let speed = Speed { traffic: Some(Traffic { prompt_tokens: 50.0, output_tokens: 100.0 }), ..Speed::default() };
    let with = |change: fn(&mut LoadNow)| {
        let mut load = load(2.0, 0.0, 100.0);
        change(&mut load);
        load
    };
    let cached = Work { cached_tokens: 60.0, ..work(100.0, 11.0) };
    // The step with two others is 12 ms; in a steady batch each sequence brings half a prompt token per step.
    let two = 1.5 * 0.012 + 0.0005;
    let rows = [
        ("alone", LoadNow::default(), work(100.0, 11.0), 0.02 + 0.1 + 0.01, 0.01 + 0.0005),
        ("two beside it", with(|_| ()), work(100.0, 11.0), 0.12 + two, 0.012 + 0.0015),
        ("a cached prefix", with(|_| ()), cached, 0.06 + two, 0.012 + 0.0015),
        ("prompts ahead", with(|l| l.pending_prompt_tokens = 300.0), work(100.0, 11.0), 0.32 + two, 0.0135),
        ("more than a step prefills", with(|_| ()), work(3_000.0, 11.0), 3.02 + two + 0.012, 0.0135),
        ("waiting, but a slot is free", with(|l| l.waiting = 1.0), work(100.0, 11.0), 0.12 + two, 0.013 + 0.002),
        // Places come free every 25 steps of 14 ms; three are behind, two of them with prompts ahead.
        ("full", load(4.0, 2.0, 0.0), work(100.0, 11.0), 0.221 + (1.5 + 75.0) * 0.014, 0.013 + 0.002),
        ("no room for KV", with(|l| l.kv_use = Some(1.0)), work(98.0, 11.0), 0.118 + two + 100.0 * 0.012, 0.0135),
        ("some room for KV", with(|l| l.kv_use = Some(0.9)), work(100.0, 11.0), 0.12 + two, 0.0135),
        (
            "room for KV that others want",
            with(|l| (l.kv_use, l.kv_wanted) = (Some(0.9), Some(0.1))),
            work(98.0, 11.0),
            0.118 + two + 100.0 * 0.012,
            0.0135,
        ),
    ];
    for (name, load, work, ttft, tpot) in rows {
        let f = forecast(&PROFILE, &LIMITS, &load, &work, &speed);
        assert!((f.ttft_seconds - ttft).abs() < 1e-9 && (f.tpot_seconds - tpot).abs() < 1e-9, "{name}: {f:?}");
        assert!((f.e2e_seconds - ttft - 10.0 * tpot).abs() < 1e-9, "{name}: {f:?}");
        let slow = Speed { ttft_factor: 2.0, tpot_factor: 3.0, ..speed };
        let slow = forecast(&PROFILE, &LIMITS, &load, &work, &slow);
        assert!(
            (slow.ttft_seconds - 2.0 * ttft).abs() < 1e-9 && (slow.tpot_seconds - 3.0 * tpot).abs() < 1e-9,
            "{name}: {slow:?}"
        );
        assert_eq!(
            (slow.uncorrected_ttft_seconds, slow.uncorrected_tpot_seconds),
            (f.ttft_seconds, f.tpot_seconds),
            "{name}"
        );
    }
    let learnt = Pace {
        overhead_seconds: 0.0,
        prompt_token_seconds: 0.0,
        step_seconds: 1.0,
        step_seconds_per_running: 0.0,
        step_seconds_per_context_token: 0.0,
    };
    let f = forecast(&PROFILE, &LIMITS, &load(2.0, 0.0, 0.0), &cached, &Speed { pace: Some(learnt), ..speed });
    assert_eq!((f.ttft_seconds, f.tpot_seconds), (1.5, 1.0), "the profile has no say");
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
            assert!(
                queued.ttft_seconds >= here.ttft_seconds
                    && queued.tpot_seconds >= here.tpot_seconds
                    && queued.e2e_seconds >= here.e2e_seconds
            );
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
