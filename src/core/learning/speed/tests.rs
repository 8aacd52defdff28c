use super::*;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn expectation(ttft: f64, tpot: f64) -> SpeedExpectation {
    let forecast = Forecast {
        ttft_seconds: ttft,
        tpot_seconds: tpot,
        uncorrected_ttft_seconds: ttft,
        uncorrected_tpot_seconds: tpot,
        prefill_tokens: 300.0,
        steps: 1.5,
        running: 8.0,
        batch: 8.0,
        ..Forecast::default()
    };
    SpeedExpectation { pool: PoolId::new(0), forecast, prompt_tokens: 300.0 }
}

fn timing(ttft: f64, tpot: f64) -> AnswerTiming {
    AnswerTiming { ttft_seconds: Some(ttft), e2e_seconds: ttft + 99.0 * tpot, output_tokens: 100 }
}

#[test]
fn factors_follow_what_responses_show() {
    for factor in [0.25, 0.9, 1.0, 1.5, 4.0] {
        let mut speeds = Speeds::default();
        (0..300).for_each(|_| speeds.learn(&expectation(0.2, 0.02).lesson(&timing(0.2 * factor, 0.02 / factor))));
        let speed = speeds.speeds(1, Basis::Both)[0];
        assert!((speed.ttft_factor / factor - 1.0).abs() < 0.08, "{factor}: {}", speed.ttft_factor);
        assert!((speed.tpot_factor * factor - 1.0).abs() < 0.08, "{factor}: {}", speed.tpot_factor);
        let prior = speeds.speeds(1, Basis::Prior)[0];
        assert_eq!((prior.ttft_factor, prior.tpot_factor, prior.pace), (1.0, 1.0, None));
    }
}

#[test]
fn a_single_response_moves_no_factor_far_and_no_factor_leaves_its_bounds() {
    let mut speeds = Speeds::default();
    (0..40).for_each(|_| speeds.learn(&expectation(0.2, 0.02).lesson(&timing(0.2, 0.02))));
    speeds.learn(&expectation(0.2, 0.02).lesson(&timing(1e6, 1e6)));
    let speed = speeds.speeds(1, Basis::Both)[0];
    assert!(speed.ttft_factor < 1.02 && speed.tpot_factor < 1.02, "{speed:?}");
    (0..2_000).for_each(|_| speeds.learn(&expectation(0.2, 0.02).lesson(&timing(1e6, 1e-9))));
    let speed = speeds.speeds(1, Basis::Both)[0];
    assert!((1.0..=FACTOR_MAX + 1e-9).contains(&speed.ttft_factor) && speed.tpot_factor >= 1.0 / FACTOR_MAX - 1e-9);
}

#[test]
fn a_response_in_one_piece_teaches_the_time_per_token_only() {
    let lesson = expectation(0.2, 0.02).lesson(&AnswerTiming {
        ttft_seconds: None,
        e2e_seconds: 0.2 + 99.0 * 0.03,
        output_tokens: 100,
    });
    assert_eq!(lesson.ttft_seconds, None);
    assert!((lesson.tpot_seconds.unwrap() - 0.03).abs() < 1e-12);
    let short =
        expectation(0.2, 0.02).lesson(&AnswerTiming { ttft_seconds: Some(0.2), e2e_seconds: 0.21, output_tokens: 2 });
    assert_eq!(short.tpot_seconds, None);
}

/// The residuals of the predictions as made: half of the first tokens came after twice the predicted time.
#[test]
fn residuals_are_those_that_were_seen() {
    let mut speeds = Speeds::default();
    for i in 0..600 {
        let ratio = if i % 2 == 0 { 1.02 } else { 2.0 };
        speeds.learn(&expectation(0.2, 0.02).lesson(&timing(0.2 * ratio, 0.02 * 1.02)));
    }
    let speed = speeds.speeds(1, Basis::Both)[0];
    let within = |limit| speed.probability_ttft_within(0.2, limit);
    assert!((within(0.3) - 0.5).abs() < 0.05, "{}", within(0.3));
    assert!(within(0.19) < 0.05 && within(0.45) > 0.95);
    assert!(speed.probability_tpot_within(0.02, 0.022) > 0.9);
    assert_eq!(speeds.speeds(2, Basis::Both)[1], Speed::default(), "another pool");
}

/// A pace nobody told of, from responses at various loads.
#[test]
fn the_pace_is_learnt_from_responses_alone() {
    let truth = Pace {
        overhead_seconds: 0.03,
        prompt_token_seconds: 2e-4,
        step_seconds: 0.02,
        step_seconds_per_running: 3e-4,
        step_seconds_per_context_token: 0.0,
    };
    let mut speeds = Speeds::default();
    for i in 0..800_u32 {
        let (batch, prompt) = (f64::from(i * 7 % 40), f64::from(50 + i * 13 % 900));
        let step = truth.step_seconds + truth.step_seconds_per_running * batch;
        let noise = 1.0 + 0.2 * (f64::from(i * 31 % 100) / 100.0 - 0.5);
        let mut expected = expectation(0.2, 0.02);
        expected.prompt_tokens = 1e-9;
        expected.forecast.prefill_tokens = prompt;
        (expected.forecast.running, expected.forecast.batch) = (batch, batch);
        let ttft = (truth.overhead_seconds + prompt * truth.prompt_token_seconds + 1.5 * step) * noise;
        // Every twentieth response took very long.
        let ttft = if i % 20 == 0 { ttft * 20.0 } else { ttft };
        speeds.learn(&expected.lesson(&timing(ttft, step * noise)));
        if i < 20 {
            assert_eq!(speeds.speeds(1, Basis::Learned)[0].pace, None, "too little was seen");
        }
    }
    let pace = speeds.speeds(1, Basis::Learned)[0].pace.unwrap();
    let close = |a: f64, b: f64, tolerance: f64| (a / b - 1.0).abs() < tolerance;
    assert!(
        close(pace.step_seconds, truth.step_seconds, 0.05)
            && close(pace.step_seconds_per_running, truth.step_seconds_per_running, 0.1),
        "{pace:?}"
    );
    assert!(
        close(pace.prompt_token_seconds, truth.prompt_token_seconds, 0.15)
            && close(pace.overhead_seconds, truth.overhead_seconds, 0.5),
        "{pace:?}"
    );
}

#[test]
fn workers_share_what_they_have_seen_and_heirs_go_on() {
    let mut one = Speeds::default();
    (0..150).for_each(|_| one.learn(&expectation(0.2, 0.02).lesson(&timing(0.4, 0.04))));
    let mut other = Speeds::default();
    other.read([one.own()].iter(), &[PoolId::new(0)]);
    let mut heir = Speeds::default();
    heir.adopt(one.own());
    for (name, speeds) in [("reader", &other), ("heir", &heir)] {
        assert_eq!(speeds.speeds(1, Basis::Both), one.speeds(1, Basis::Both), "{name}");
    }
}

#[test]
fn what_is_no_time_teaches_nothing() {
    let mut speeds = Speeds::default();
    for (ttft, e2e) in [(f64::NAN, f64::NAN), (-1.0, -2.0), (0.0, 0.0), (f64::INFINITY, f64::INFINITY)] {
        speeds.learn(&expectation(0.2, 0.02).lesson(&AnswerTiming {
            ttft_seconds: Some(ttft),
            e2e_seconds: e2e,
            output_tokens: 100,
        }));
        speeds.learn(&expectation(f64::NAN, 0.0).lesson(&timing(0.2, 0.02)));
    }
    let speed = speeds.speeds(1, Basis::Both)[0];
    let default = Speed { traffic: speed.traffic, ..Speed::default() };
    assert!(speed.ttft_factor.is_finite() && speed.tpot_factor.is_finite(), "{speed:?}");
    assert_eq!(speed.pace, default.pace);
}
