//! The forecast against the engine: one instance, Poisson arrivals, load as it is.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::engine::{Detail, Engine, EventKind, Job};
use crate::statistics::percentile;
use routebalance_core::config::Config;
use routebalance_core::fleet::{LatencyProfile, Limits, PoolId};
use routebalance_core::latency::*;
use routebalance_core::learning::speed::{AnswerTiming, SpeedExpectation, Speeds};
use routebalance_core::reckoning::{Counters, Dispatch, Reports, load_now};
use routebalance_core::telemetry::Load;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// Qwen2.5-7B as in `envoy/routebalance.json`.
const PROFILE_7B: LatencyProfile = LatencyProfile {
    tpot_ms: 19.6,
    tpot_growth_per_running: 0.015,
    tpot_growth_per_thousand_context_tokens: 0.0,
    prefill_tokens_per_second: 7_650.0,
    overhead_ms: 20.0,
};
const LIMITS_7B: Limits = Limits { max_running: 256, kv_tokens: 77_000, max_model_len: 8_192 };

fn work(prompt_tokens: f64, output_tokens: f64) -> Work {
    Work { prompt_tokens, cached_tokens: 0.0, output_tokens }
}

fn random(seed: &mut u64) -> f64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    ((*seed >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

fn lognormal(seed: &mut u64, median: f64, sd: f64) -> f64 {
    let normal = (0..12).map(|_| random(seed)).sum::<f64>() - 6.0;
    (median.ln() + sd * normal).exp()
}

struct Request {
    at: f64,
    output: u32,
    prompt: u32,
    first: Option<f64>,
    dispatch: Dispatch,
    forecast: Forecast,
}

struct Errors {
    ttft: Vec<f64>,
    e2e: Vec<f64>,
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    percentile(values, 50)
}

/// Seconds between two reports.
const PERIOD: f64 = 0.25;

/// Runs `requests` at `rate` per second; the first fifth is not counted.
fn run(
    truth: &LatencyProfile,
    told: &LatencyProfile,
    limits: &Limits,
    rate: f64,
    requests: usize,
    basis: Basis,
) -> Errors {
    let mut engine = Engine::new(*truth, *limits, Detail::Milestones);
    let mut seed = 11;
    let mut open: BTreeMap<u64, Request> = BTreeMap::new();
    let mut speeds = Speeds::default();
    let mut errors = Errors { ttft: vec![], e2e: vec![] };
    let config = Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap();
    let (telemetry, mut fleet) = (config.telemetry, config.fleet);
    let instance = fleet.pools[1].instances[0];
    fleet.pools[1].limits = *limits;
    let mut counters = Counters::new(fleet.instances.len());
    let mut reports = Reports(vec![Default::default(); fleet.instances.len()]);
    let (mut next, mut report) = (0.0, 0.0);
    let mut id = 0;
    while id < requests as u64 {
        let now = f64::min(next, report);
        for event in engine.advance(Duration::from_secs_f64(now)) {
            let at = event.at.as_secs_f64();
            match event.kind {
                EventKind::FirstToken => {
                    let r = open.get_mut(&event.id).unwrap();
                    r.first = Some(at);
                    counters.prefilled(&mut r.dispatch);
                }
                EventKind::Finished(_) => {
                    let r = open.remove(&event.id).unwrap();
                    counters.finish(r.dispatch);
                    let (ttft, e2e) = (r.first.unwrap() - r.at, at - r.at);
                    if event.id > requests as u64 / 5 {
                        errors.ttft.push(r.forecast.ttft_seconds / ttft - 1.0);
                        errors.e2e.push(r.forecast.e2e_of(f64::from(r.output)) / e2e - 1.0);
                    }
                    let expectation = SpeedExpectation {
                        pool: PoolId::new(0),
                        forecast: r.forecast,
                        prompt_tokens: f64::from(r.prompt),
                    };
                    let timing =
                        AnswerTiming { ttft_seconds: Some(ttft), e2e_seconds: e2e, output_tokens: u64::from(r.output) };
                    speeds.learn(&expectation.lesson(&timing));
                }
                _ => {}
            }
        }
        if report < next {
            let load = Load {
                running: Some(engine.running() as f64),
                waiting: Some(engine.waiting() as f64),
                kv_use: Some(engine.kv_usage()),
                ..Load::default()
            };
            reports.0[instance.index()].answered(Duration::from_secs_f64(now), load, counters.0[instance.index()]);
            report += PERIOD;
            continue;
        }
        next -= random(&mut seed).ln() / rate;
        let prompt = lognormal(&mut seed, 300.0, 0.8).clamp(10.0, 6_000.0) as u32;
        let output = lognormal(&mut seed, 250.0, 0.6).clamp(2.0, 2_000.0) as u32;
        let at = Duration::from_secs_f64(now);
        let load = load_now(&fleet, &counters, Some(&reports), at, &telemetry, 0.5)[instance.index()];
        let speed = &speeds.speeds(1, basis)[0];
        let forecast = forecast(told, limits, &load, &work(f64::from(prompt), 280.0), speed);
        let dispatch = Dispatch { instance, prompt_tokens: u64::from(prompt), output_tokens: 280 };
        counters.dispatch(&dispatch, at);
        open.insert(id, Request { at: now, output, prompt, first: None, dispatch, forecast });
        let job = Job { id, prompt_tokens: prompt, output_tokens: output, max_tokens: 4_096 };
        engine.submit(at, job).unwrap();
        id += 1;
    }
    errors.ttft.iter_mut().chain(&mut errors.e2e).for_each(|e| *e = e.abs());
    errors
}

/// About nine tenths of what this instance can do.
const RATES: [f64; 3] = [0.5, 3.0, 4.5];

fn median_errors(told: &LatencyProfile, rate: f64, basis: Basis) -> (f64, f64) {
    let mut errors = run(&PROFILE_7B, told, &LIMITS_7B, rate, 2_000, basis);
    (median(&mut errors.ttft), median(&mut errors.e2e))
}

#[test]
fn the_forecast_is_what_happens() {
    for basis in [Basis::Prior, Basis::Both, Basis::Learned] {
        for rate in RATES {
            let (ttft, e2e) = median_errors(&PROFILE_7B, rate, basis);
            assert!(ttft < 0.15 && e2e < 0.15, "{basis:?} at {rate}/s: TTFT {ttft}, E2E {e2e}");
        }
    }
}

#[test]
fn the_forecast_knows_what_the_context_costs() {
    let truth = LatencyProfile { tpot_growth_per_thousand_context_tokens: 0.01, ..PROFILE_7B };
    for (told, knows) in [(truth, true), (PROFILE_7B, false)] {
        let mut errors = run(&truth, &told, &LIMITS_7B, 4.0, 2_000, Basis::Prior);
        let (ttft, e2e) = (median(&mut errors.ttft), median(&mut errors.e2e));
        assert_eq!(ttft < 0.15 && e2e < 0.1, knows, "TTFT {ttft}, E2E {e2e}");
    }
}

#[test]
fn responses_set_a_wrong_profile_right() {
    let told = LatencyProfile { tpot_ms: 40.0, prefill_tokens_per_second: 4_000.0, ..PROFILE_7B };
    for rate in RATES {
        let (prior_ttft, prior_e2e) = median_errors(&told, rate, Basis::Prior);
        assert!(prior_ttft > 0.3 && prior_e2e > 0.3, "at {rate}/s: {prior_ttft} {prior_e2e}");
        for basis in [Basis::Both, Basis::Learned] {
            let (ttft, e2e) = median_errors(&told, rate, basis);
            assert!(ttft < 0.2 && e2e < 0.15, "{basis:?} at {rate}/s: TTFT {ttft}, E2E {e2e}");
        }
    }
}
