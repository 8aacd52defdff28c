//! ORCA's load report in a response header.

use super::{Load, LoadGauge};

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
            if let (Some(gauge), Some(value)) = (gauge(name), value.as_f64()) {
                load.add(gauge, value);
            }
        }
    } else {
        for pair in body.split(',') {
            if let Some((name, value)) = pair.split_once('=')
                && let (Some(gauge), Ok(value)) = (gauge(name.trim_ascii()), value.trim_ascii().parse())
            {
                load.add(gauge, value);
            }
        }
    }
    load
}

/// vLLM's names, and Triton's for the KV cache.
fn gauge(name: &str) -> Option<LoadGauge> {
    match name.strip_prefix("named_metrics.").unwrap_or(name) {
        "num_requests_running" => Some(LoadGauge::Running),
        "num_requests_waiting" => Some(LoadGauge::Waiting),
        "kv_cache_usage_perc" | "kv_cache_utilization" => Some(LoadGauge::KvUse),
        _ => None,
    }
}
