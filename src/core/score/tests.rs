use super::*;
use crate::config::Config;
use crate::fleet::{InstanceId, ModelId};
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn candidate(instance: usize, quality: f64, seconds: f64, usd: f64) -> Candidate {
    Candidate {
        instance: InstanceId::new(instance),
        model: ModelId::new(instance),
        quality,
        output_tokens: 100.0,
        output_tokens_p80: 100.0,
        seconds,
        forecast: Forecast::default(),
        ttft_seconds: 0.1,
        tpot_seconds: 0.01,
        e2e_seconds: seconds,
        delay_seconds: 0.0,
        idle_seconds: seconds,
        usd,
        in_flight: 0.0,
        last_dispatch: Duration::ZERO,
    }
}

fn weights(quality: f64, latency: f64, cost: f64) -> Weights {
    Weights { quality, latency, cost }
}

const UNIT: References = References { quality: 1.0, seconds: 1.0, usd: 1.0 };

fn config() -> Config {
    Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap()
}

fn policy(weights: Weights, objective: Objective) -> Policy {
    Policy { weights, objective, ..config().policies[0].clone() }
}

fn paper_policy(weights: Weights, quality_normalisation: QualityNormalisation) -> Policy {
    Policy { quality_normalisation, ..policy(weights, Objective::Paper) }
}

fn close(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6)
}

/// The whole order.
fn rank(candidates: &[Candidate], scores: &[f64], objective: Objective) -> Vec<usize> {
    Ranking::new(candidates, scores, objective).best(0..candidates.len(), usize::MAX)
}

#[test]
fn the_published_score() {
    let pair = [candidate(0, 0.4, 1.0, 1e-5), candidate(1, 0.8, 2.0, 4e-5)];
    let third = 1.0 / 3.0;
    let rows = [
        (
            "raw, uniform",
            weights(third, third, third),
            QualityNormalisation::Raw,
            [(0.4 + 0.75 + 0.5) / 3.0, 0.8 / 3.0],
        ),
        ("min-max, uniform", weights(third, third, third), QualityNormalisation::MinMax, [1.25 / 3.0, third]),
        ("quality alone", weights(1.0, 0.0, 0.0), QualityNormalisation::Raw, [0.4, 0.8]),
        ("cost alone", weights(0.0, 0.0, 1.0), QualityNormalisation::MinMax, [0.75, 0.0]),
        ("latency alone", weights(0.0, 1.0, 0.0), QualityNormalisation::MinMax, [0.5, 0.0]),
    ];
    for (name, weights, normalisation, expected) in rows {
        let scores = scores(&pair, &paper_policy(weights, normalisation), &[], &UNIT, 0);
        // 1e-8 in the published denominators shifts a cost of 1e-5 USD by a tenth of a percent.
        assert!(scores.iter().zip(&expected).all(|(s, e)| (s - e).abs() < 1e-3), "{name}: {scores:?}");
    }
}

#[test]
fn equal_candidates_score_alike_and_nothing_divides_by_zero() {
    let free = [candidate(0, 0.5, 0.0, 0.0), candidate(1, 0.5, 0.0, 0.0)];
    for normalisation in [QualityNormalisation::Raw, QualityNormalisation::MinMax] {
        let scores = scores(&free, &paper_policy(weights(0.4, 0.3, 0.3), normalisation), &[], &UNIT, 0);
        assert!(scores[0].is_finite() && scores[0] == scores[1], "{scores:?}");
    }
}

#[test]
fn round_robin_takes_every_instance_in_turn() {
    let three = [candidate(0, 0.1, 1.0, 1.0), candidate(1, 0.2, 1.0, 1.0), candidate(2, 0.3, 1.0, 1.0)];
    let firsts: Vec<usize> = (0..5)
        .map(|sequence| {
            let scores = scores(&three, &policy(weights(1.0, 0.0, 0.0), Objective::RoundRobin), &[], &UNIT, sequence);
            rank(&three, &scores, Objective::RoundRobin)[0]
        })
        .collect();
    assert_eq!(firsts, [0, 1, 2, 0, 1]);
    assert!(close(&round_robin(3, 1), &[1.0 / 3.0, 1.0, 2.0 / 3.0]));
    assert!(round_robin(0, 5).is_empty());
}

#[test]
fn ties_go_to_the_idler_then_to_the_longest_unused() {
    let base = candidate(0, 0.5, 1.0, 1.0);
    let busy = Candidate { in_flight: 2.0, ..base };
    let recent = Candidate { last_dispatch: Duration::from_secs(5), ..base };
    assert_eq!(rank(&[busy, recent, base], &[1.0, 1.0, 1.0], Objective::Paper), [2, 1, 0]);
    assert_eq!(rank(&[busy, recent, base], &[1.0, f64::NAN, 0.5], Objective::Paper), [0, 2, 1]);
    assert_eq!(rank(&[base, base], &[1.0, 1.0], Objective::Paper), [0, 1]);
}

/// Scaling all weights alike never changes the order.
#[test]
fn only_the_ratio_of_weights_matters() {
    let mut seed = 3u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 11) as f64 / (1u64 << 53) as f64
    };
    for _ in 0..200 {
        let candidates: Vec<Candidate> =
            (0..5).map(|i| candidate(i, random(), random() * 10.0, random() * 1e-3)).collect();
        let w = weights(random(), random(), random());
        let doubled = weights(w.quality * 2.0, w.latency * 2.0, w.cost * 2.0);
        for normalisation in [QualityNormalisation::Raw, QualityNormalisation::MinMax] {
            let order = |w: &Weights| {
                rank(
                    &candidates,
                    &scores(&candidates, &paper_policy(*w, normalisation), &[], &UNIT, 0),
                    Objective::Paper,
                )
            };
            assert_eq!(order(&w), order(&doubled));
        }
    }
}

#[test]
fn the_absolute_score() {
    let references = References { quality: 0.5, seconds: 10.0, usd: 1e-4 };
    let delaying = Candidate { delay_seconds: 5.0, idle_seconds: 10.0, ..candidate(0, 0.5, 5.0, 2e-5) };
    let rows = [
        ("quality alone", weights(1.0, 0.0, 0.0), 1.0),
        ("time and what others lose", weights(0.0, 1.0, 0.0), -1.0),
        ("money", weights(0.0, 0.0, 1.0), -0.2),
        ("all", weights(0.5, 0.25, 0.25), 0.5 - 0.25 - 0.05),
    ];
    for (name, weights, expected) in rows {
        let scores = scores(&[delaying], &policy(weights, Objective::Absolute), &[], &references, 0);
        assert!(close(&scores, &[expected]), "{name}: {scores:?}");
    }
}

#[test]
fn crowding_is_how_much_longer_requests_take_than_on_the_idle_fleet() {
    let on = |model: usize, idle: f64, now: f64, delay: f64| Candidate {
        model: ModelId::new(model),
        idle_seconds: idle,
        delay_seconds: delay,
        ..candidate(model, 0.5, now, 1e-5)
    };
    for (name, candidates, expected) in [
        ("nobody", vec![], 1.0),
        ("idle", vec![on(0, 2.0, 2.0, 0.0), on(1, 4.0, 4.0, 0.0)], 1.0),
        ("faster than its profile", vec![on(0, 2.0, 1.0, 0.0)], 1.0),
        ("time and what others lose", vec![on(0, 2.0, 3.0, 1.0), on(1, 4.0, 8.0, 0.0)], 2.0),
        ("the soonest instance of a model", vec![on(0, 2.0, 90.0, 0.0), on(0, 2.0, 3.0, 0.0)], 1.5),
        ("one model that queues forever", vec![on(0, 2.0, 2.0, 0.0), on(1, 2.0, 1e9, 0.0)], 4.5),
        ("no time at all", vec![on(0, 0.0, 0.0, 0.0)], 1.0),
    ] {
        assert_eq!(crowding(&candidates), expected, "{name}");
    }
}

/// The published score forgets how long the longest is.
#[test]
fn a_queue_costs_what_it_costs() {
    let big = |seconds| Candidate { idle_seconds: 5.0, ..candidate(0, 0.8, seconds, 1e-4) };
    let small = candidate(1, 0.6, 5.0, 2e-5);
    let references = References::from_fleet(&config().fleet);
    let chosen = |objective, seconds| {
        let policy =
            Policy { quality_normalisation: QualityNormalisation::Raw, ..policy(weights(0.6, 0.2, 0.2), objective) };
        rank(&[big(seconds), small], &scores(&[big(seconds), small], &policy, &[], &references, 0), objective)[0]
    };
    let changes = |objective| -> Vec<usize> { [5.0, 8.0, 20.0, 60.0, 600.0].map(|s| chosen(objective, s)).to_vec() };
    assert_eq!(changes(Objective::Absolute), [0, 0, 0, 1, 1], "idle it is worth its time, queueing it is not");
    let paper = Policy {
        quality_normalisation: QualityNormalisation::MinMax,
        ..policy(weights(0.8, 0.1, 0.1), Objective::Paper)
    };
    let [minute, hour] = [60.0, 3_600.0]
        .map(|s| rank(&[big(s), small], &scores(&[big(s), small], &paper, &[], &UNIT, 0), Objective::Paper)[0]);
    assert_eq!((minute, hour), (0, 0), "relative to itself a queue is never too long");
}

#[test]
fn least_load_takes_who_owes_least_whatever_its_model() {
    let owing = |instance, owed_seconds| candidate(instance, 0.5, owed_seconds, 1.0);
    let used = |instance| Candidate { last_dispatch: Duration::from_secs(5), ..owing(instance, 0.0) };
    let rows = [
        ("least first", [owing(0, 3.0), owing(1, 1.0), owing(2, 2.0)], [1, 2, 0]),
        ("of idle ones who waited longest", [used(0), owing(1, 0.0), owing(2, 0.5)], [1, 0, 2]),
    ];
    for (name, fleet, expected) in rows {
        let scores = scores(&fleet, &policy(weights(1.0, 0.0, 0.0), Objective::LeastLoad), &[], &UNIT, 0);
        assert_eq!(rank(&fleet, &scores, Objective::LeastLoad), expected, "{name}");
    }
}

#[test]
fn prices_choose_the_model_and_time_the_instance() {
    let fleet = [
        candidate(0, 0.8, 9.0, 1.0),
        candidate(1, 0.6, 3.0, 1.0),
        Candidate { instance: InstanceId::new(2), ..candidate(1, 0.6, 2.0, 1.0) },
    ];
    for (prices, expected) in
        [([0.0, 0.0], [0, 2, 1]), ([0.1, 0.0], [0, 2, 1]), ([0.3, 0.0], [2, 1, 0]), ([0.3, 0.2], [0, 2, 1])]
    {
        let policy = Policy { prices: prices.to_vec(), ..policy(weights(1.0, 0.0, 0.0), Objective::Prices) };
        assert_eq!(
            rank(&fleet, &scores(&fleet, &policy, &policy.prices, &UNIT, 0), Objective::Prices),
            expected,
            "{prices:?}"
        );
    }
}

#[test]
fn references_come_from_the_fleet() {
    let fleet = config().fleet;
    let references = References::from_fleet(&fleet);
    // 3B, 7B, 32B, 72B alone: 330, 290, 250, 250 tokens of 10.2, 19.6, 28.0, 41.6 ms; 200 prompt tokens.
    assert!((references.seconds - 6.65).abs() < 0.2, "{references:?}");
    assert!((references.usd - 8.3e-5).abs() < 1e-6, "{references:?}");
    // Differences of .30, .52, .66, .67: .22 .36 .37 .14 .15 .01.
    assert!((references.quality - (0.3571_f64 / 6.0).sqrt()).abs() < 1e-9, "{references:?}");
    let mut alike = fleet.clone();
    alike
        .models
        .iter_mut()
        .for_each(|m| (m.quality_prior, m.tariff.usd_per_input_token, m.tariff.usd_per_output_token) = (0.5, 0.0, 0.0));
    let free = References::from_fleet(&alike);
    assert_eq!((free.quality, free.usd), (0.1, 1.0), "nothing divides by zero");
}
