#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

use serde::Deserialize;

use super::*;
use crate::features::{HEAD_CHARS, TAIL_CHARS, TextWindow, extract};
use crate::openai::{Api, RequestScan};

#[derive(Deserialize)]
struct Golden {
    models: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    parts: Vec<(String, usize)>,
    chars: u64,
    estimated_tokens: u64,
    slots: Vec<u16>,
    weight_bits: Vec<u32>,
    surface_bits: Vec<u32>,
    quality: Vec<f64>,
    quality_sd: Vec<f64>,
    output_tokens: Vec<f64>,
    output_tokens_p80: Vec<f64>,
    output_tokens_p90: Vec<f64>,
    familiarity: f64,
    prototype: usize,
}

/// What Python and onnxruntime made of the same texts when the predictor was trained.
fn golden() -> Golden {
    serde_json::from_str(include_str!(env!("ROUTEBALANCE_GOLDEN"))).unwrap()
}

fn window(parts: &[(String, usize)]) -> TextWindow {
    let mut window = TextWindow::default();
    for (piece, times) in parts {
        (0..*times).for_each(|_| window.push_str(piece));
    }
    window
}

#[test]
fn features_equal_those_of_training_bit_for_bit() {
    for case in golden().cases {
        let window = window(&case.parts);
        let features = extract(&window);
        let (slots, weights): (Vec<u16>, Vec<u32>) = features.slots.iter().map(|(s, w)| (*s, w.to_bits())).unzip();
        assert_eq!(window.chars(), case.chars, "{}", case.name);
        assert_eq!(window.estimated_tokens(), case.estimated_tokens, "{}", case.name);
        assert_eq!(slots, case.slots, "{}", case.name);
        assert_eq!(weights, case.weight_bits, "{}", case.name);
        for (i, (ours, theirs)) in features.surface.iter().zip(&case.surface_bits).enumerate() {
            assert_eq!(*ours, f32::from_bits(*theirs), "{}: surface {i}", case.name);
        }
    }
}

#[test]
fn estimates_equal_onnxruntime() {
    let predictor = Predictor::load().unwrap();
    let golden = golden();
    assert_eq!(predictor.models(), golden.models);
    for case in golden.cases {
        let prediction = predictor.predict(&extract(&window(&case.parts))).unwrap();
        let Prediction { estimates, familiarity, prototype } = prediction;
        assert_eq!(estimates.len(), golden.models.len());
        for (i, estimate) in estimates.iter().enumerate() {
            let tokens_fit = |ours: f64, theirs: f64| (ours / theirs - 1.0).abs() < 1e-4;
            let fits = (estimate.quality - case.quality[i]).abs() < 1e-4
                && (estimate.quality_sd - case.quality_sd[i]).abs() < 1e-4
                && tokens_fit(estimate.output_tokens, case.output_tokens[i])
                && tokens_fit(estimate.output_tokens_p80, case.output_tokens_p80[i])
                && tokens_fit(estimate.output_tokens_p90, case.output_tokens_p90[i]);
            assert!(fits, "{}: model {i}: {estimate:?}", case.name);
        }
        assert!((familiarity - case.familiarity).abs() < 1e-4, "{}: {familiarity}, {}", case.name, case.familiarity);
        assert_eq!(prototype, case.prototype, "{}", case.name);
        assert!(prototype < predictor.prototypes());
    }
}

#[test]
fn threads_may_share_a_predictor() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&Predictor::load().unwrap());
}

#[test]
fn features_from_elsewhere_give_no_estimate_or_a_sound_one() {
    let predictor = Predictor::load().unwrap();
    let none = [
        Features { slots: vec![(u16::MAX, 1.0)], surface: [0.0; SURFACE] },
        Features { slots: vec![(1, f32::NAN)], surface: [0.0; SURFACE] },
        Features { slots: vec![(1, f32::MAX), (2, f32::MAX)], surface: [0.0; SURFACE] },
        Features { slots: vec![(1, 1.0)], surface: [f32::INFINITY; SURFACE] },
    ];
    for features in none {
        assert_eq!(predictor.predict(&features), None, "{features:?}");
    }
    for value in [f32::MAX, f32::MIN, 1e20, -1e20] {
        let features = Features { slots: vec![(1, 1.0)], surface: [value; SURFACE] };
        assert_sound(&predictor, &predictor.predict(&features).unwrap(), &value);
    }
}

fn assert_sound(predictor: &Predictor, prediction: &Prediction, of: &impl std::fmt::Debug) {
    assert!((0.0..=1.0).contains(&prediction.familiarity), "{of:?}: {prediction:?}");
    assert!(prediction.prototype < predictor.prototypes(), "{of:?}: {prediction:?}");
    assert_eq!(prediction.estimates.len(), predictor.models().len());
    for estimate in &prediction.estimates {
        let tokens = [1.0, estimate.output_tokens, estimate.output_tokens_p80, estimate.output_tokens_p90, 131_072.0];
        let fits =
            (0.0..=1.0).contains(&estimate.quality) && (0.0..=0.5).contains(&estimate.quality_sd) && tokens.is_sorted();
        assert!(fits, "{of:?}: {estimate:?}");
    }
}

#[test]
fn any_bytes_in_a_request_give_bounded_work_and_a_sound_prediction() {
    let predictor = Predictor::load().unwrap();
    let mut state = 0x5eed_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..200 {
        let length = [0, 1, 7, 300, 5_000, 40_000][round % 6];
        // Any bytes but those that end a string or a text; every other round bytes that mean something to the features.
        const TELLING: &[u8] = b"aZ 09\t(){}[]+=?.$for if def \xc3\xa4\xf0\x9f\xa6\x80\xff\xe2\x82";
        let byte = |draw: u64| if round % 2 == 0 { draw as u8 } else { TELLING[draw as usize % TELLING.len()] };
        let text =
            (0..length).map(|_| byte(random())).map(|b| if matches!(b, b'"' | b'\\' | 0..0x20) { b'x' } else { b });
        let body = [br#"{"prompt":""#.to_vec(), text.collect(), br#""}"#.to_vec()].concat();
        let mut scan = RequestScan::new(Api::Completions);
        body.chunks(1 + random() as usize % 9_000).for_each(|piece| scan.push(piece));
        let window = scan.so_far().text;
        let features = extract(&window);
        assert!(features.slots.len() <= SLOTS.min(2 * (HEAD_CHARS + TAIL_CHARS)), "round {round}");
        assert!(features.surface.iter().all(|value| value.is_finite()), "round {round}");
        assert_sound(&predictor, &predictor.predict(&features).unwrap(), &round);
    }
}
