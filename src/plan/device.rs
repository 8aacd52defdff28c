//! What one copy of a model is, on a share of some GPUs: its latency profile and what it can hold, by a rule with few constants.
//!
//! Nobody has published profiles of GPU shares, so the rule is put together from what has been measured on whole GPUs
//! (`models/data/latency`, which the tests fit again) and two assumptions about shares. For `B` billion parameters in 16 bits, `L`
//! layers, `tp` shards and a share `s` of each GPU:
//!
//! - **prefill**, bound by compute: `prefill / B * tp^exponent * s` tokens per second;
//! - **decode** of a sequence that is alone, bound by memory: `stream * B / tp * max(1, knee / s) + step * L` milliseconds per token,
//!   of which the first part is reading the weights, the second what every layer costs at any size (launches, all-reduce);
//! - growth per further running sequence: a fraction of that time; growth with the context: as if reading the KV cache cost what
//!   reading as many bytes of weights does, times a factor near 1.
//!
//! Assumptions: compute follows the share; below [`DECODE_KNEE`] of the multiprocessors memory bandwidth does too.

use super::problem::ShardMemory;
use routebalance_core::fleet::{LatencyProfile, Limits};

/// Share of a GPU below which decoding slows in proportion. One multiprocessor can draw more than its part of the bandwidth, so a
/// copy that is alone needs no whole GPU. What its neighbours draw is missing, though: 0.8 is where copies that fill a GPU with caps of
/// 100 % together, and slow each other by an interference of 0.25, come to draw the whole bandwidth and no more.
pub const DECODE_KNEE: f64 = 0.8;
/// Part of what a shard needs beyond its weights ([`ShardMemory::fixed_gb`]) that is KV cache.
pub const KV_OF_FIXED: f64 = 0.5;
/// Sequences that decode at once: vLLM's default (`--max-num-seqs`).
pub const MAX_RUNNING: u32 = 256;
/// Milliseconds of a request that depend on neither prompt nor load: HTTP and tokenizer; an assumption.
pub const OVERHEAD_MS: f64 = 10.0;

/// Bytes of a parameter.
const BYTES_PER_PARAMETER: f64 = 2.0;

/// What of a model its speed depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelSize {
    /// Its weights in 16 bits, GB (1e9 bytes).
    pub weights_gb: f64,
    /// Layers.
    pub layers: f64,
    /// KV cache of a token in 16 bits, bytes: `2 * layers * KV heads * head size * 2`.
    pub kv_bytes_per_token: f64,
    /// Prompt plus output tokens of one request.
    pub max_model_len: u32,
}

impl ModelSize {
    fn billions(&self) -> f64 {
        (self.weights_gb / BYTES_PER_PARAMETER).max(1e-3)
    }
}

/// A kind of GPU, with the constants of the rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Device {
    /// Its name.
    pub name: &'static str,
    /// Its memory, GB (1e9 bytes).
    pub memory_gb: f64,
    /// What it costs, USD per hour, at one vendor that has all kinds (Seeweb; `models/data/latency/gpus.csv`).
    pub usd_per_hour: f64,
    /// Prompt tokens per second of a model of a billion parameters.
    pub prefill: f64,
    /// By which power of the shards prefill grows.
    pub prefill_exponent: f64,
    /// Milliseconds to read a billion parameters.
    pub stream_ms: f64,
    /// Milliseconds per layer of a step.
    pub step_ms: f64,
    /// Growth of a step per further running sequence, as a fraction.
    pub growth_per_running: f64,
    /// By which reading the KV cache is dearer than reading weights.
    pub context: f64,
}

/// The kinds whose constants are known.
///
/// A100 and H100: prefill fitted to Splitwise's prompt times of Llama-2-70B, decode to LLM-Inference-Bench's batches of Llama-3-8B,
/// Mistral-7B and Qwen2-7B (1, 2 and 4 GPUs, vLLM). The batches of H100 would have it read memory faster than it can: it and L40S read
/// at the part of their bandwidth that A100 reaches. Prefill of L40S is A100's by the ratio of the estimates of `aiconfigurator`, and
/// all else of L40S is A100's, which is kind to it: it has no NVLink.
pub const DEVICES: [Device; 3] = [
    Device {
        name: "A100-80GB",
        memory_gb: 80.0,
        usd_per_hour: 0.99,
        prefill: 138_300.0,
        prefill_exponent: 0.750,
        stream_ms: 1.217,
        step_ms: 0.1507,
        growth_per_running: 0.0097,
        context: 1.095,
    },
    Device {
        name: "H100-80GB",
        memory_gb: 80.0,
        usd_per_hour: 1.89,
        prefill: 378_900.0,
        prefill_exponent: 0.634,
        stream_ms: 0.741,
        step_ms: 0.124,
        growth_per_running: 0.00773,
        context: 1.045,
    },
    Device {
        name: "L40S-48GB",
        memory_gb: 48.0,
        usd_per_hour: 0.85,
        prefill: 113_100.0,
        prefill_exponent: 0.750,
        stream_ms: 2.872,
        step_ms: 0.1507,
        growth_per_running: 0.0097,
        context: 1.095,
    },
];

impl Device {
    /// The kind with this name.
    pub fn named(name: &str) -> Option<&'static Device> {
        DEVICES.iter().find(|device| device.name == name)
    }

    /// How fast a copy works that has its share of its GPUs to itself.
    pub fn profile(&self, size: &ModelSize, tensor_parallel: u32, share_percent: u32) -> LatencyProfile {
        let shards = f64::from(tensor_parallel.max(1));
        let share = f64::from(share_percent.clamp(1, 100)) / 100.0;
        let billions = size.billions();
        let stream_ms = self.stream_ms * billions / shards * (DECODE_KNEE / share).max(1.0);
        LatencyProfile {
            tpot_ms: stream_ms + self.step_ms * size.layers.max(0.0),
            tpot_growth_per_running: self.growth_per_running,
            tpot_growth_per_thousand_context_tokens: self.context * size.kv_bytes_per_token.max(0.0) * 1e3
                / (billions * BYTES_PER_PARAMETER * 1e9),
            prefill_tokens_per_second: self.prefill / billions * shards.powf(self.prefill_exponent) * share,
            overhead_ms: OVERHEAD_MS,
        }
    }
}

/// What a copy can hold, whose shards have so many GB of KV cache each: every shard keeps its part of each token's.
pub fn limits(size: &ModelSize, tensor_parallel: u32, kv_gb_per_shard: f64) -> Limits {
    let bytes = kv_gb_per_shard.max(0.0) * 1e9 * f64::from(tensor_parallel.max(1));
    let tokens = (bytes / size.kv_bytes_per_token.max(1.0)) as u64;
    Limits { max_running: MAX_RUNNING, kv_tokens: tokens, max_model_len: size.max_model_len }
}

/// KV cache of one of the shards on a GPU, GB: the KV part of what it needs at least, and of what all shards leave free its part by
/// caps. `shards` are what each needs, GB, and its cap, percent.
pub fn kv_gb(memory: &ShardMemory, gpu_gb: f64, shards: &[(f64, u32)], cap_percent: u32) -> f64 {
    let needed: f64 = shards.iter().map(|(gb, _)| gb).sum();
    let caps: f64 = shards.iter().map(|(_, cap)| f64::from(*cap)).sum();
    let part = f64::from(cap_percent) / caps.max(1.0);
    memory.fixed_gb * KV_OF_FIXED + (gpu_gb - needed).max(0.0) * part.clamp(0.0, 1.0)
}

/// KV cache of each shard of a copy when it is profiled, GB: as if neighbours had the rest of the compute and no weights.
pub fn kv_gb_alone(memory: &ShardMemory, gpu_gb: f64, shard_gb: f64, cap_percent: u32) -> f64 {
    let others = 100_u32.saturating_sub(cap_percent);
    kv_gb(memory, gpu_gb, &[(shard_gb, cap_percent), (0.0, others)], cap_percent)
}

#[cfg(test)]
mod tests;
