use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;
use crate::features::{TextWindow, extract};
use crate::fleet::ModelId;
use crate::predictor::Predictor;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// Uniform in 0 to 1.
fn random(seed: &mut u64) -> f64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 11) as f64 / (1u64 << 53) as f64
}

/// Roughly normal: the sum of twelve uniforms.
fn normal(seed: &mut u64) -> f64 {
    (0..12).map(|_| random(seed)).sum::<f64>() - 6.0
}

fn lesson(residual: f64) -> LengthLesson {
    LengthLesson { model: ModelId::new(0), residual, censored: false }
}

#[derive(Deserialize)]
struct Row {
    prompt: String,
    len: BTreeMap<String, f64>,
}

/// Recorded answers to prompts that the predictor was not trained on: for each model, `(ln tokens, ln estimate)`.
fn recorded() -> Vec<(String, Vec<(f64, f64)>)> {
    let predictor = Predictor::load().unwrap();
    let text = include_str!("../../../../models/data/demo_prompts.jsonl");
    let rows: Vec<Row> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let predictions: Vec<_> = rows
        .iter()
        .map(|row| {
            let mut window = TextWindow::default();
            window.push_str(&row.prompt);
            predictor.predict(&extract(&window)).unwrap()
        })
        .collect();
    let of_model = |at: usize, name: &String| {
        let pairs = rows.iter().zip(&predictions);
        let pairs = pairs.map(|(row, p)| (row.len[name].max(1.0).ln(), p.estimates[at].output_tokens.ln()));
        (name.clone(), pairs.collect())
    };
    predictor.models().iter().enumerate().map(|(at, name)| of_model(at, name)).collect()
}

/// Mean absolute error of ln length with the correction as it stands.
fn error(lengths: &Lengths, answers: &[(f64, f64)], shift: f64) -> f64 {
    let ln = lengths.factor(ModelId::new(0)).ln();
    answers.iter().map(|(actual, estimate)| (actual + shift - estimate - ln).abs()).sum::<f64>() / answers.len() as f64
}

/// Answers in random order, each a residual.
fn teach(lengths: &mut Lengths, answers: &[(f64, f64)], shift: f64, responses: usize, seed: &mut u64) {
    for _ in 0..responses {
        let (actual, estimate) = answers[(random(seed) * answers.len() as f64) as usize];
        lengths.learn(&lesson(actual + shift - estimate));
    }
}

#[test]
fn two_hundred_answers_after_a_shift_the_error_is_what_it_was() {
    let recorded = recorded();
    assert!(recorded.iter().all(|(_, answers)| answers.len() > 100), "the demo's prompts");
    for (model, answers) in &recorded {
        for shift in [2f64.ln(), 0.5f64.ln()] {
            for seed in 1..6 {
                let mut lengths = Lengths::default();
                teach(&mut lengths, answers, 0.0, 400, &mut { seed });
                let before = error(&lengths, answers, 0.0);
                let shifted = error(&lengths, answers, shift);
                teach(&mut lengths, answers, shift, 200, &mut { seed + 100 });
                let after = error(&lengths, answers, shift);
                assert!(shifted > 1.3 * before, "{model}: the shift is seen: {before} {shifted}");
                assert!(after <= 1.1 * before, "{model}, shift {shift}, seed {seed}: {before} before, {after} after");
            }
        }
    }
}

#[test]
fn little_evidence_moves_little_and_a_wild_one_no_more() {
    let factor = |residuals: &[f64]| {
        let mut lengths = Lengths::default();
        residuals.iter().for_each(|r| lengths.learn(&lesson(*r)));
        lengths.factor(ModelId::new(0))
    };
    assert_eq!(factor(&[]), 1.0);
    let (double, wild) = (factor(&[2f64.ln()]), factor(&[40.0]));
    assert!(double > 1.0 && double < 1.06, "{double}");
    assert!(wild >= double && wild < 1.06, "{wild}");
    let mut settled = vec![2f64.ln(); 400];
    let before = factor(&settled);
    assert!((before - 2.0).abs() < 0.01, "{before}");
    for absurd in [40.0, -40.0] {
        settled.push(absurd);
        let after = factor(&settled);
        settled.pop();
        assert!((after / before).ln().abs() < 0.02, "{absurd}: {before} {after}");
    }
}

#[test]
fn what_an_answer_teaches() {
    let expectation = |max_tokens| LengthExpectation { model: ModelId::new(3), output_tokens: 100.0, max_tokens };
    let lesson = |tokens: f64, censored| {
        Some(LengthLesson { model: ModelId::new(3), residual: (tokens / 100.0).ln(), censored })
    };
    let rows = [
        ("longer", None, 200, false, lesson(200.0, false)),
        ("shorter than allowed", Some(60), 50, false, lesson(50.0, false)),
        ("at the limit", Some(50), 50, false, lesson(50.0, true)),
        ("beyond the limit", Some(50), 51, false, lesson(51.0, true)),
        ("cut by the server", None, 80, true, lesson(80.0, true)),
        ("empty", None, 0, false, None),
    ];
    for (name, max_tokens, tokens, cut_short, expected) in rows {
        let got = expectation(max_tokens).lesson(tokens, cut_short);
        match (got, expected) {
            (Some(a), Some(b)) => {
                assert!(a.model == b.model && a.censored == b.censored, "{name}: {a:?}");
                assert!((a.residual - b.residual).abs() < 1e-12, "{name}: {a:?}");
            }
            (a, b) => assert_eq!(a, b, "{name}"),
        }
    }
}

/// Answers that are cut show what they would have been together with those that are not.
#[test]
fn cut_answers_bias_nothing() {
    for (name, cut_at) in [("at the expected length", 0.0), ("early", -0.7), ("late", 0.7)] {
        for shift in [0.0, 0.7, -0.7] {
            let (mut lengths, mut seed) = (Lengths::default(), 7);
            let mut locations = Vec::new();
            for i in 0..4_000 {
                let residual = shift + 0.45 * normal(&mut seed);
                lengths.learn(&LengthLesson {
                    model: ModelId::new(0),
                    residual: residual.min(cut_at),
                    censored: residual >= cut_at,
                });
                if i >= 1_000 {
                    locations.push(lengths.factor(ModelId::new(0)).ln());
                }
            }
            let mean = locations.iter().sum::<f64>() / locations.len() as f64;
            assert!((mean - shift).abs() < 0.15, "cut {name}, shift {shift}: {mean}");
        }
    }
    let mut lengths = Lengths::default();
    (0..1_000).for_each(|_| lengths.learn(&LengthLesson { model: ModelId::new(0), residual: -4.0, censored: true }));
    assert!((lengths.factor(ModelId::new(0)) - 1.0).abs() < 0.01, "cut long before its end, an answer says nothing");
}

/// Whatever workers see in whatever order, and however they share it, the factor stays a factor.
#[test]
fn the_correction_is_bounded() {
    let wild = [f64::MAX, f64::MIN, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 44.0, -44.0, 0.0, 1e-300];
    for run in 0..50 {
        let mut seed = 1_000 + run;
        let mut workers = vec![Lengths::default(); 3];
        for _ in 0..500 {
            let at = (random(&mut seed) * 3.0) as usize;
            let residual = match (random(&mut seed) * 4.0) as usize {
                0 => wild[(random(&mut seed) * wild.len() as f64) as usize],
                1 => 44.0,
                2 => -44.0,
                _ => normal(&mut seed),
            };
            let censored = random(&mut seed) < 0.3;
            workers[at].learn(&LengthLesson {
                model: ModelId::new((random(&mut seed) * 2.0) as usize),
                residual,
                censored,
            });
            if random(&mut seed) < 0.2 {
                let others: Vec<_> = (0..3).filter(|k| *k != at).map(|k| workers[k].own().clone()).collect();
                workers[at].read(&others);
            }
            if random(&mut seed) < 0.01 {
                workers[at] = Lengths::default();
            }
            for factor in workers.iter().flat_map(|w| w.factors(3)) {
                assert!((1.0 / FACTOR_MAX - 1e-9..=FACTOR_MAX + 1e-9).contains(&factor), "{factor}");
            }
        }
    }
    let mut always = Lengths::default();
    (0..10_000).for_each(|_| always.learn(&lesson(44.0)));
    assert!((always.factor(ModelId::new(0)) - FACTOR_MAX).abs() < 1e-9);
    assert!(always.own().iter().all(|(_, tally)| Lengths::sound(*tally).is_some()), "{:?}", always.own());
}

#[test]
fn two_workers_learn_what_one_would() {
    let (mut one, mut two, mut seed) = (Lengths::default(), [Lengths::default(), Lengths::default()], 3);
    for i in 0..600 {
        let shift = if i < 300 { 0.0 } else { 0.7 };
        let lesson = lesson(shift + 0.45 * normal(&mut seed));
        one.learn(&lesson);
        two[usize::from(random(&mut seed) < 0.3)].learn(&lesson);
        if i % 5 == 0 {
            let records = [two[0].own().clone(), two[1].own().clone()];
            two[0].read(&records[1..]);
            two[1].read(&records[..1]);
        }
        for worker in &two {
            let apart = (worker.factor(ModelId::new(0)) / one.factor(ModelId::new(0))).ln().abs();
            assert!(
                apart < 0.1,
                "after {i}: {} against {}",
                worker.factor(ModelId::new(0)),
                one.factor(ModelId::new(0))
            );
        }
    }
}
