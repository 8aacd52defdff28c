//! The predictor inside Envoy's V8 gives the numbers of onnxruntime, as `models/golden.json` has them.

use serde_json::{Value, json};

use crate::harness::{Gateway, Request};
use crate::state::log_lines_of;

/// Features are equal bit for bit; the order of sums inside tract differs from onnxruntime's.
const TOLERANCE: f64 = 1e-4;

pub(crate) async fn predictions_match(gateway: &Gateway) {
    let golden: Value = serde_json::from_str(include_str!("../../models/golden.json")).unwrap();
    let models: Vec<&str> = golden["models"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    let cases = golden["cases"].as_array().unwrap();
    let mut expected = Vec::new();
    for case in cases {
        for (at, model) in models.iter().enumerate() {
            let id = format!("golden {} {model}", case["name"]);
            let body = json!({"model": model, "messages": [{"role": "user", "content": text(case)}]});
            // Nothing is generated, so that long texts cost nothing.
            let request = Request::post("/v1/messages/count_tokens", body.to_string()).header("x-request-id", &id);
            gateway.send(&request).await;
            expected.push((id, case["quality"][at].as_f64().unwrap().clamp(0.0, 1.0)));
        }
    }
    assert!(expected.len() > 100, "golden.json has its texts");
    let lines = log_lines_of(gateway, &expected.last().unwrap().0).await;
    for (id, quality) in expected {
        let line = lines.iter().find(|l| l["request_id"] == id.as_str()).unwrap_or_else(|| panic!("no line of {id}"));
        let predicted = line["decision"]["predicted_quality"].as_f64().unwrap_or_else(|| panic!("{line}"));
        assert!((predicted - quality).abs() <= TOLERANCE, "{id}: {predicted} in Envoy, {quality} in onnxruntime");
    }
}

fn text(case: &Value) -> String {
    let piece = |part: &Value| part[0].as_str().unwrap().repeat(part[1].as_u64().unwrap() as usize);
    case["parts"].as_array().unwrap().iter().map(piece).collect()
}
