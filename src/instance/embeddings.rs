//! `/v1/embeddings`, as vLLM serves it for a pooling model: prefill only, filler vectors.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::{Map, Value};

use super::Fault;
use super::driver::Sequence;
use super::request::{ApiError, integer, quote, validate};
use super::serve::{Server, completion_prompts, json, unix_seconds};
use super::stream::{Answer, InFlight};

/// Length of an embedding when the client asks for none.
const DIMENSIONS: usize = 384;

impl Server {
    pub(super) async fn embeddings(&self, body: &Map<String, Value>, fault: Fault) -> Result<Response<Body>, ApiError> {
        let max_model_len = self.options.pool.limits.max_model_len;
        validate(body, &["input"])?;
        self.check_model(body)?;
        let prompts = completion_prompts(body.get("input").unwrap_or(&Value::Null));
        if prompts.iter().any(|prompt| prompt.tokens > max_model_len) {
            return Err(ApiError::prompt_too_long(max_model_len));
        }
        self.check_engine(fault, false)?;
        let sequences: Vec<_> =
            prompts.iter().map(|prompt| Sequence { prompt_tokens: prompt.tokens, ..Sequence::default() }).collect();
        let generation = self.driver.submit(sequences).map_err(|_| ApiError::prompt_too_long(max_model_len))?;
        let seeds: Vec<u64> = prompts.iter().map(|prompt| prompt.seed(0)).collect();
        let answer = Answer { generation, seeds: seeds.clone(), _in_flight: InFlight::new(&self.in_flight) };
        answer.collect().await;
        let dimensions = integer(body, "dimensions").map_or(DIMENSIONS, |n| n.clamp(1, 4096) as usize);
        let data: Vec<String> = seeds
            .iter()
            .enumerate()
            .map(|(index, seed)| {
                format!(r#"{{"index":{index},"object":"embedding","embedding":{}}}"#, unit_vector(*seed, dimensions))
            })
            .collect();
        let tokens: u32 = prompts.iter().map(|prompt| prompt.tokens).sum();
        Ok(json(
            StatusCode::OK,
            format!(
                r#"{{"id":"embd-{:016x}","object":"list","created":{},"model":{},"data":[{}],"usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens},"completion_tokens":0,"prompt_tokens_details":null}}}}"#,
                rand::random::<u64>(),
                unix_seconds(),
                quote(&self.options.pool.served_model),
                data.join(",")
            ),
        ))
    }
}

/// A vector of length 1 that depends on the seed, as JSON.
fn unit_vector(seed: u64, dimensions: usize) -> String {
    let mut state = seed;
    let values: Vec<f64> = (0..dimensions)
        .map(|_| {
            // Knuth's MMIX generator; the high half is good enough for filler.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as f64 / 2_147_483_648.0 - 1.0
        })
        .collect();
    let length = values.iter().map(|value| value * value).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    format!("[{}]", values.iter().map(|value| format!("{:.6}", value / length)).collect::<Vec<_>>().join(","))
}
