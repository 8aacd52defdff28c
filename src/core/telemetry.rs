//! What an instance says about its load: a Prometheus `/metrics` page to a [`Page`], or an ORCA response header to a [`Load`]; and how
//! often it is asked.
//!
//! | server | read on its metrics page |
//! |---|---|
//! | vLLM | running, waiting, KV use (old and new name), sleep state, LoRA adapters, tokens so far, TTFT and time per token so far |
//! | SGLang | running, queue, token use, tokens so far, TTFT and time between tokens so far |
//! | TensorRT-LLM (`trtllm-serve`, Triton) | running, waiting (scheduled), KV use, TTFT and TPOT so far |
//!
//! A page with several engines counts as one instance: requests add up, and the fullest KV cache is the one that counts. TTFT and times per
//! token are part of the report, but nothing is decided by them: forecasts are corrected by this gateway's own responses.
//!
//! Configuration: `telemetry`. How reports become a load is said in [`reckoning`](crate::reckoning) and in src/README.md.

mod metrics;
mod orca;
mod schedule;
mod settings;

pub use metrics::parse_metrics;
pub use orca::parse_orca;
pub use schedule::{IN_FLIGHT_MAX, Rounds, Schedule, stretched};
pub use settings::TelemetrySettings;

/// A load as an instance reported it: unknown is None, zero is a measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Requests that are being computed.
    pub running: Option<f64>,
    /// Requests that wait for a place in the batch.
    pub waiting: Option<f64>,
    /// Share of the KV cache in use, from 0 to 1.
    pub kv_use: Option<f64>,
    /// Whether all engines are awake; one that sleeps has given its memory away and serves nothing.
    pub awake: Option<bool>,
    /// Prompt and output tokens that the server has worked off since its start. It grows with every step of the engine, so an
    /// instance that holds requests and shows the same number twice hangs. vLLM has it; SGLang counts steps under
    /// `realtime_tokens_total` only (its other counters wait for the end of a request).
    pub progress_tokens: Option<f64>,
    /// Time to the first token, over all requests since the server's start.
    pub ttft: Option<Sum>,
    /// Time between output tokens, over all since the server's start; over requests where the server has no finer count.
    pub tpot: Option<Sum>,
}

/// A histogram's sum and count. The mean of what came between two reports is the ratio of their differences.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// Seconds of all observations together.
    pub seconds: f64,
    /// How many observations.
    pub count: f64,
}

/// Everything that a metrics page says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The load.
    pub load: Load,
    /// LoRA adapters; `None` where the server runs without.
    pub adapters: Option<Adapters>,
}

/// The LoRA adapters of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adapters {
    /// Names of adapters that are loaded because requests run on them.
    pub running: Vec<String>,
    /// Names of adapters that requests wait for.
    pub waiting: Vec<String>,
}

/// More requests than any server holds: such a value is an error.
const REQUESTS_MAX: f64 = 1e6;
/// Some engines count blocks that they are about to free, so a little over 1 is plausible.
const KV_USE_MAX: f64 = 1.5;
/// More tokens, seconds or observations than a server sees in its life.
const TOTAL_MAX: f64 = 1e15;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LoadGauge {
    Running,
    Waiting,
    KvUse,
}

impl Load {
    fn add(&mut self, gauge: LoadGauge, value: f64) {
        let max = if gauge == LoadGauge::KvUse { KV_USE_MAX } else { REQUESTS_MAX };
        if !(0.0..=max).contains(&value) {
            return;
        }
        match gauge {
            LoadGauge::Running => self.running = Some(self.running.unwrap_or(0.0) + value),
            LoadGauge::Waiting => self.waiting = Some(self.waiting.unwrap_or(0.0) + value),
            LoadGauge::KvUse => self.kv_use = Some(self.kv_use.unwrap_or(0.0).max(value)),
        }
    }

    /// Whether it says anything about requests or memory.
    pub fn is_empty(&self) -> bool {
        self.running.is_none() && self.waiting.is_none() && self.kv_use.is_none()
    }
}

#[cfg(test)]
mod tests;
