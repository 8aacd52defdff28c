//! The predictor inside Envoy's V8: the features of training bit for bit and the numbers of onnxruntime, as `golden.json` has
//! them; and of bytes that are no text, what the native build makes of them.

use routebalance_core::features::{Features, extract};
use routebalance_core::names::DEBUG_PREDICT_PATH;
use routebalance_core::openai::{Probe, ProbeScan};
use routebalance_core::predictor::GOLDEN_FILE;
use routebalance_core::predictor::Predictor;
use serde_json::{Value, json};

use crate::harness::{Gateway, Request};

/// The order of sums differs from onnxruntime's.
const TOLERANCE: f64 = 1e-4;

pub(crate) async fn predictions_match(gateway: &Gateway) {
    let golden = std::fs::read(GOLDEN_FILE).expect("the predictor has golden cases");
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 30, "golden.json has its texts");
    for case in cases {
        let answer = asked(gateway, json!({"text": text(case)}).to_string().into_bytes()).await;
        for field in ["chars", "estimated_tokens", "slots", "weight_bits", "surface_bits", "prototype"] {
            assert_eq!(answer[field], case[field], "{}: {field}", case["name"]);
        }
        assert_eq!(answer["models"], golden["models"]);
        near(&answer["familiarity"], &case["familiarity"], 1.0, &case["name"]);
        for (at, estimate) in answer["estimates"].as_array().unwrap().iter().enumerate() {
            for field in ["quality", "quality_sd"] {
                near(&estimate[field], &case[field][at], 1.0, &case["name"]);
            }
            for field in ["output_tokens", "output_tokens_p80", "output_tokens_p90"] {
                near(&estimate[field], &case[field][at], case[field][at].as_f64().unwrap(), &case["name"]);
            }
        }
    }
}

pub(crate) async fn broken_text_is_the_same_text_everywhere(gateway: &Gateway) {
    let predictor = Predictor::load().unwrap();
    let mut random = 0x5eed_u64;
    let mut noise = |bytes: usize| -> Vec<u8> {
        let byte = |_| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Whatever does not end the string.
            Some(random as u8).filter(|b| !matches!(b, b'"' | b'\\' | 0..0x20)).unwrap_or(b' ')
        };
        (0..bytes).map(byte).collect()
    };
    let texts = [
        b"a\xFFb\xC3 \xE2\x82 \xF0\x9F\xA6 \xED\xA0\x80 \xC0\xAF \x80 end \xC3".to_vec(),
        br"\ud83e\udd80 \ud83e \udd80 \u0000 \u00e4\n\t\\ \/".to_vec(),
        noise(5_000),
        noise(1_000_000),
        r"def f(x):\n    return x * 2  # \u00e4\ud83e\udd80 漢字 ".repeat(20_000).into_bytes(),
    ];
    for text in texts {
        let body = [br#"{"text":""#.as_slice(), &text, br#""}"#].concat();
        let mut scan = ProbeScan::default();
        scan.push(&body);
        let Probe { text, .. } = scan.finish().unwrap();
        let native = extract(&text);
        let answer = asked(gateway, body).await;
        let of = json!(format!("{} characters", text.chars()));
        assert_eq!(answer["chars"], json!(text.chars()), "{of}");
        assert_eq!(answer["estimated_tokens"], json!(text.estimated_tokens()), "{of}");
        let Features { slots, surface } = &native;
        assert_eq!(answer["slots"], json!(slots.iter().map(|s| s.0).collect::<Vec<_>>()), "{of}");
        assert_eq!(answer["weight_bits"], json!(slots.iter().map(|s| s.1.to_bits()).collect::<Vec<_>>()), "{of}");
        assert_eq!(answer["surface_bits"], json!(surface.map(f32::to_bits)), "{of}");
        let prediction = predictor.predict(&native).unwrap();
        near(&answer["familiarity"], &json!(prediction.familiarity), 1.0, &of);
        for (ours, theirs) in prediction.estimates.iter().zip(answer["estimates"].as_array().unwrap()) {
            near(&theirs["quality"], &json!(ours.quality), 1.0, &of);
            near(&theirs["output_tokens"], &json!(ours.output_tokens), ours.output_tokens, &of);
        }
    }
}

pub(crate) async fn questions_that_are_none(gateway: &Gateway) {
    for body in [r#"{"text": 1}"#, r#"{"text": "a""#, "", r#"{"text": "a", "repeat": 10001}"#] {
        let reply = gateway.send(&Request::post(DEBUG_PREDICT_PATH, body)).await;
        assert_eq!((reply.status, reply.json()["error"]["code"].as_u64()), (400, Some(400)), "{body}: {reply:?}");
        assert!(reply.arrivals.is_empty(), "{reply:?}");
    }
    let answer =
        gateway.send(&Request::post(DEBUG_PREDICT_PATH, r#"{"text": "a", "repeat": 9}"#).chunked(2)).await.ok();
    for field in ["features_ns", "predict_ns", "total_ns"] {
        assert!(answer.json()[field]["p50"].as_u64() <= answer.json()[field]["p99"].as_u64(), "{answer:?}");
    }
}

/// Not configured, or another path: Envoy's own route serves.
pub(crate) async fn nobody_is_asked(gateway: &Gateway) {
    let reply = gateway.send(&Request::post(DEBUG_PREDICT_PATH, r#"{"text": "a"}"#)).await;
    assert_eq!(reply.arrivals.len(), 1, "{reply:?}");
}

async fn asked(gateway: &Gateway, body: Vec<u8>) -> Value {
    let reply = gateway.send(&Request::post(DEBUG_PREDICT_PATH, body)).await.ok();
    assert!(reply.arrivals.is_empty(), "no instance is asked");
    reply.json()
}

fn near(ours: &Value, theirs: &Value, scale: f64, of: &Value) {
    let (ours, theirs) = (ours.as_f64().unwrap(), theirs.as_f64().unwrap());
    assert!((ours - theirs).abs() <= TOLERANCE * scale, "{of}: {ours} in Envoy, {theirs} expected");
}

fn text(case: &Value) -> String {
    let piece = |part: &Value| part[0].as_str().unwrap().repeat(part[1].as_u64().unwrap() as usize);
    case["parts"].as_array().unwrap().iter().map(piece).collect()
}
