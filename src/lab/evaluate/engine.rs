//! The engine against measured servers: its parameters fitted to one half of what they did, its times compared with the other.

mod batches;
mod logs;

use anyhow::Result;
use serde_json::{Value, json};

use crate::statistics::{mean, value_at};
use routebalance_core::fleet::{LatencyProfile, Limits};

/// KV that nobody fills.
const AMPLE_KV_TOKENS: u64 = 1 << 24;
/// Longer than any request of the measurements.
const MAX_MODEL_LEN: u32 = 1 << 20;

pub(super) fn run() -> Result<(Value, bool)> {
    let (logs, passed) = logs::compare()?;
    let batches = batches::compare()?;
    Ok((json!({ "preset": "engine", "logs": logs, "batches": batches }), passed))
}

fn limits(max_running: u32, kv_tokens: u64) -> Limits {
    Limits { max_running, kv_tokens, max_model_len: MAX_MODEL_LEN }
}

/// Headers of [`profile_columns`].
const PROFILE_HEADERS: [&str; 5] =
    ["overhead ms", "prefill tokens/s", "tpot ms", "growth per running", "per 1,000 tokens"];

fn profile_columns(profile: &LatencyProfile) -> [String; 5] {
    [
        format!("{:.1}", profile.overhead_ms),
        format!("{:.0}", profile.prefill_tokens_per_second),
        format!("{:.2}", profile.tpot_ms),
        format!("{:.5}", profile.tpot_growth_per_running),
        format!("{:.5}", profile.tpot_growth_per_thousand_context_tokens),
    ]
}

fn profile_json(profile: &LatencyProfile) -> Value {
    json!({
        "overhead_ms": profile.overhead_ms,
        "prefill_tokens_per_second": profile.prefill_tokens_per_second,
        "tpot_ms": profile.tpot_ms,
        "tpot_growth_per_running": profile.tpot_growth_per_running,
        "tpot_growth_per_thousand_context_tokens": profile.tpot_growth_per_thousand_context_tokens,
    })
}

/// Mean, median and 99th percentile.
fn summary(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [mean(&values), value_at(&values, 0.5), value_at(&values, 0.99)].map(|value| value.unwrap_or(f64::NAN))
}
