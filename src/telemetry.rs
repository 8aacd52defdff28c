//! What an instance says about its load: a Prometheus `/metrics` page or an ORCA response header to a [`Load`].
//!
//! Names of vLLM, SGLang and TensorRT-LLM (`trtllm-serve` and Triton's backend), each as its server exports them. A server with
//! several engines has one row per engine: requests add up, and the fullest KV cache is the one that counts.

use std::str;

/// A load as an instance reported it: unknown is None, zero is a measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Requests that are being computed.
    pub running: Option<f64>,
    /// Requests that wait for a place in the batch.
    pub waiting: Option<f64>,
    /// Share of the KV cache in use, from 0 to 1.
    pub kv_use: Option<f64>,
}

/// More requests than any server holds: such a value is an error.
const REQUESTS_MAX: f64 = 1e6;
/// Some engines count blocks that they are about to free, so a little over 1 is plausible.
const KV_USE_MAX: f64 = 1.5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gauge {
    Running,
    Waiting,
    KvUse,
}

/// Reads a page in Prometheus' text format. A line that is malformed or has an implausible value is skipped.
pub fn parse_metrics(page: &[u8]) -> Load {
    let mut load = Load::default();
    for line in page.split(|&byte| byte == b'\n') {
        // Most of a page's 600 lines are other families: one look at the first byte, one at the name.
        if matches!(line.first(), Some(b'v' | b's' | b't' | b'n' | b' ' | b'\t'))
            && let Ok(line) = str::from_utf8(line)
            && let Some((gauge, value)) = sample(line.trim_ascii())
        {
            load.add(gauge, value);
        }
    }
    load
}

/// Reads the header `endpoint-load-metrics`: `TEXT name=value, …`, `JSON {…}`, or either without its prefix, as vLLM's Rust
/// front end sends it.
pub fn parse_orca(header: &str) -> Load {
    let header = header.trim_ascii();
    let body = match header.split_once(|character: char| character.is_ascii_whitespace()) {
        Some((format, body)) if ["TEXT", "JSON"].iter().any(|known| known.eq_ignore_ascii_case(format)) => {
            body.trim_ascii()
        }
        _ => header,
    };
    let mut load = Load::default();
    if body.starts_with('{') {
        let report = serde_json::from_str::<serde_json::Value>(body).unwrap_or_default();
        let metrics = report.get("named_metrics").unwrap_or(&report).as_object();
        for (name, value) in metrics.into_iter().flatten() {
            if let (Some(gauge), Some(value)) = (orca_gauge(name), value.as_f64()) {
                load.add(gauge, value);
            }
        }
    } else {
        for pair in body.split(',') {
            if let Some((name, value)) = pair.split_once('=')
                && let (Some(gauge), Ok(value)) = (orca_gauge(name.trim_ascii()), value.trim_ascii().parse())
            {
                load.add(gauge, value);
            }
        }
    }
    load
}

impl Load {
    fn add(&mut self, gauge: Gauge, value: f64) {
        let max = if gauge == Gauge::KvUse { KV_USE_MAX } else { REQUESTS_MAX };
        if !(0.0..=max).contains(&value) {
            return;
        }
        match gauge {
            Gauge::Running => self.running = Some(self.running.unwrap_or(0.0) + value),
            Gauge::Waiting => self.waiting = Some(self.waiting.unwrap_or(0.0) + value),
            Gauge::KvUse => self.kv_use = Some(self.kv_use.unwrap_or(0.0).max(value)),
        }
    }
}

/// `name{label="value",…} value [timestamp]`
fn sample(line: &str) -> Option<(Gauge, f64)> {
    let name_end = line.find(|character: char| character == '{' || character.is_ascii_whitespace())?;
    let (name, rest) = line.split_at_checked(name_end)?;
    let family = family(name)?;
    let rest = rest.trim_ascii_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => rest.split_at_checked(labels_end(rest)?)?,
        None => ("", rest),
    };
    let gauge = match family {
        Family::Gauge(gauge) => gauge,
        Family::TritonRequests => match label(labels, "request_type")? {
            "scheduled" => Gauge::Running,
            "waiting" => Gauge::Waiting,
            _ => return None,
        },
        Family::TritonKvCache => (label(labels, "kv_cache_block_type")? == "fraction").then_some(Gauge::KvUse)?,
    };
    let value = rest.strip_prefix('}').unwrap_or(rest).split_ascii_whitespace().next()?;
    Some((gauge, value.parse().ok()?))
}

/// A name on the page: one gauge, or several that a label tells apart.
enum Family {
    Gauge(Gauge),
    TritonRequests,
    TritonKvCache,
}

fn family(name: &str) -> Option<Family> {
    let gauge = match name {
        "vllm:num_requests_running" | "sglang:num_running_reqs" | "trtllm_num_requests_running" => Gauge::Running,
        "vllm:num_requests_waiting" | "sglang:num_queue_reqs" | "trtllm_num_requests_waiting" => Gauge::Waiting,
        // vLLM renamed it.
        "vllm:kv_cache_usage_perc" | "vllm:gpu_cache_usage_perc" => Gauge::KvUse,
        "sglang:token_usage" | "trtllm_kv_cache_utilization" => Gauge::KvUse,
        "nv_trt_llm_request_metrics" => return Some(Family::TritonRequests),
        "nv_trt_llm_kv_cache_block_metrics" => return Some(Family::TritonKvCache),
        _ => return None,
    };
    Some(Family::Gauge(gauge))
}

/// vLLM's names, and Triton's for the KV cache.
fn orca_gauge(name: &str) -> Option<Gauge> {
    match name.strip_prefix("named_metrics.").unwrap_or(name) {
        "num_requests_running" => Some(Gauge::Running),
        "num_requests_waiting" => Some(Gauge::Waiting),
        "kv_cache_usage_perc" | "kv_cache_utilization" => Some(Gauge::KvUse),
        _ => None,
    }
}

/// Where the brace that ends the labels is: label values may contain braces, and quotes behind a backslash.
fn labels_end(labels: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    labels.bytes().position(|byte| {
        let ends = byte == b'}' && !quoted;
        quoted ^= byte == b'"' && !escaped;
        escaped = byte == b'\\' && quoted && !escaped;
        ends
    })
}

/// The value of a label, escapes left as they are: the values that are asked for have none.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = labels;
    while let Some((key, after)) = rest.split_once("=\"") {
        let mut escaped = false;
        let end = after.bytes().position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        })?;
        let (value, after) = after.split_at_checked(end)?;
        if key.trim_start_matches(['"', ',', ' ']).trim_ascii_end() == name {
            return Some(value);
        }
        rest = after;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn load(running: impl Into<Option<f64>>, waiting: impl Into<Option<f64>>, kv_use: impl Into<Option<f64>>) -> Load {
        Load { running: running.into(), waiting: waiting.into(), kv_use: kv_use.into() }
    }

    /// Excerpts of recorded pages of vLLM 0.32: the families that matter and their neighbours.
    #[test]
    fn recorded_pages() {
        let rows = [
            (
                "plain",
                include_str!("../tests/fixtures/vllm-small/metrics-plain.txt"),
                load(8.0, 32.0, 0.0019533634476864847),
            ),
            (
                "pressure",
                include_str!("../tests/fixtures/vllm-small/metrics-pressure.txt"),
                load(8.0, 16.0, 0.5797101449275363),
            ),
            (
                "dp2",
                include_str!("../tests/fixtures/vllm-small/metrics-dp2.txt"),
                load(2.0, 0.0, 0.0002441704309608106),
            ),
            (
                "lora",
                include_str!("../tests/fixtures/vllm-small/metrics-lora.txt"),
                load(4.0, 4.0, 0.0009766817238432424),
            ),
        ];
        for (name, page, expected) in rows {
            assert_eq!(parse_metrics(page.as_bytes()), expected, "{name}");
            assert_eq!(parse_metrics(page.replace('\n', "\r\n").as_bytes()), expected, "{name} with carriage returns");
        }
    }

    #[test]
    fn pages() {
        let none = Load::default();
        let rows: &[(&[u8], Load)] = &[
            (b"", none),
            (b"<html>502</html>", none),
            (b"vllm:num_requests_running 0", load(0.0, None, None)),
            (b"vllm:num_requests_running{} 3 1795319144000\n", load(3.0, None, None)),
            (b" vllm:num_requests_running {engine=\"0\"}\t3\n", load(3.0, None, None)),
            (b"vllm:num_requests_waiting_by_reason{reason=\"capacity\"} 3\n", none),
            (b"xvllm:num_requests_waiting 3\n# vllm:num_requests_waiting 3\n", none),
            (b"vllm:gpu_cache_usage_perc{engine=\"0\"} 0.25\n", load(None, None, 0.25)),
            (b"vllm:num_requests_waiting{model_name=\"a } b, \\\"c\\\" {\\\\\",engine=\"0\"} 5.0\n", load(None, 5.0, None)),
            (b"vllm:num_requests_waiting{model_name=\"Qwen\xc3\xa9\"} 5.0\n", load(None, 5.0, None)),
            // Values that are no measurement.
            (b"vllm:num_requests_running NaN\nvllm:kv_cache_usage_perc +Inf\n", none),
            (b"vllm:num_requests_running -1\nvllm:num_requests_waiting 1e7\nvllm:kv_cache_usage_perc 1.6\n", none),
            (b"vllm:num_requests_running NaN\nvllm:num_requests_running 2\n", load(2.0, None, None)),
            // Lines that are malformed, between good ones.
            (b"vllm:num_requests_running\nvllm:num_requests_running \nvllm:num_requests_running x\n", none),
            (b"vllm:num_requests_running{engine=\"0 4\nvllm:num_requests_waiting 2\n", load(None, 2.0, None)),
            (b"vllm:num_requests_running{engine=\"0\"\nvllm:num_requests_waiting{\xff} 9\nvllm:num_requests_waiting 2\n", load(None, 2.0, None)),
            // SGLang.
            (
                b"# TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs{engine_type=\"unified\",model_name=\"q\",tp_rank=\"0\"} 7.0\n\
                  sglang:num_queue_reqs{model_name=\"q\"} 2.0\nsglang:token_usage{model_name=\"q\"} 0.28\n\
                  sglang:num_used_tokens{model_name=\"q\"} 123859.0\nsglang:gen_throughput{model_name=\"q\"} 86.5\n",
                load(7.0, 2.0, 0.28),
            ),
            // TensorRT-LLM, trtllm-serve.
            (
                b"trtllm_num_requests_running{model_name=\"q\"} 6\ntrtllm_num_requests_waiting{model_name=\"q\"} 1\n\
                  trtllm_kv_cache_utilization{model_name=\"q\"} 0.125\ntrtllm_kv_cache_tokens_per_block{} 32\n",
                load(6.0, 1.0, 0.125),
            ),
            // TensorRT-LLM, Triton's backend.
            (
                b"nv_trt_llm_request_metrics{model=\"tensorrt_llm\",request_type=\"waiting\",version=\"1\"} 4\n\
                  nv_trt_llm_request_metrics{model=\"tensorrt_llm\",request_type=\"scheduled\",version=\"1\"} 9\n\
                  nv_trt_llm_request_metrics{model=\"request_type=\\\"waiting\\\"\",request_type=\"max\",version=\"1\"} 512\n\
                  nv_trt_llm_request_metrics{model=\"tensorrt_llm\"} 5\n\
                  nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\",model=\"tensorrt_llm\"} 0.4375\n\
                  nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"max\",model=\"tensorrt_llm\"} 6239\n",
                load(9.0, 4.0, 0.4375),
            ),
        ];
        for (page, expected) in rows {
            assert_eq!(parse_metrics(page), *expected, "{}", String::from_utf8_lossy(page));
        }
    }

    #[test]
    fn orca_headers() {
        let none = Load::default();
        let rows = [
            // As recorded from vLLM 0.32, one engine.
            (
                "TEXT named_metrics.num_requests_waiting=0.0, named_metrics.kv_cache_usage_perc=0.0",
                load(None, 0.0, 0.0),
            ),
            (
                r#"JSON {"named_metrics": {"num_requests_waiting": 0.0, "kv_cache_usage_perc": 0.0}}"#,
                load(None, 0.0, 0.0),
            ),
            // Two engines: every name twice.
            (
                "TEXT named_metrics.num_requests_waiting=2.0, named_metrics.kv_cache_usage_perc=0.5, \
                 named_metrics.num_requests_waiting=1.0, named_metrics.kv_cache_usage_perc=0.25",
                load(None, 3.0, 0.5),
            ),
            ("named_metrics.kv_cache_usage_perc=0.4,named_metrics.num_requests_running=2", load(2.0, None, 0.4)),
            (r#"{"named_metrics":{"kv_cache_usage_perc":0.4}}"#, load(None, None, 0.4)),
            (r#"{"num_requests_waiting":3,"cpu_utilization":0.5}"#, load(None, 3.0, None)),
            (r#"json {"named_metrics":{"kv_cache_utilization":0.4}}"#, load(None, None, 0.4)),
            ("text  num_requests_waiting = 3", load(None, 3.0, None)),
            ("TEXT cpu_utilization=0.3, named_metrics.kv_cache_usage_perc=nan", none),
            ("TEXT named_metrics.kv_cache_usage_perc=2, named_metrics.num_requests_waiting=-1", none),
            (r#"JSON {"named_metrics": {"num_requests_waiting": "3""#, none),
            (r#"JSON {"named_metrics": [1]}"#, none),
            ("BIN CZqZmZmZmbk/", none),
            ("TEXT", none),
            ("", none),
        ];
        for (header, expected) in rows {
            assert_eq!(parse_orca(header), expected, "{header}");
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        let alphabet = b"vllm:num_requests_waiting{=\"\\} 0.1,e\n\xff#nv_trt_llm_request_metrics";
        let mut seed = 1_u64;
        for _ in 0..2_000 {
            let page: Vec<u8> = (0..200)
                .map(|_| {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    alphabet[(seed >> 33) as usize % alphabet.len()]
                })
                .collect();
            let lines = [b"vllm:num_requests_waiting".as_slice(), b"nv_trt_llm_request_metrics{", b"", &page].concat();
            let Load { running, waiting, kv_use } = parse_metrics(&lines);
            assert!(
                [running, waiting, kv_use]
                    .into_iter()
                    .flatten()
                    .all(|value| (0.0..=REQUESTS_MAX * 9.0).contains(&value))
            );
            parse_orca(&String::from_utf8_lossy(&page));
        }
    }
}
