//! What was measured on real servers: logs of vLLM under load, and a table of latencies by batch and length. Sources and licences
//! are in `tests/fixtures/latency/README.md`.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use serde::Deserialize;

use crate::fit::Times;

/// One request of a log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logged {
    /// When it came, since the first one.
    pub at: Duration,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// Seconds from its arrival to its first token.
    pub ttft_seconds: f64,
    /// Seconds from its arrival to its last token.
    pub e2e_seconds: f64,
}

impl Logged {
    /// What was measured.
    pub fn times(&self) -> Times {
        Times { ttft_seconds: self.ttft_seconds, e2e_seconds: self.e2e_seconds }
    }
}

/// A run of one server.
#[derive(Clone, Debug)]
pub struct Log {
    /// GPU and model.
    pub name: &'static str,
    /// Engines behind its address (`--data-parallel-size`).
    pub engines: usize,
    /// Sequences that one of them runs at once (`--max-num-seqs`).
    pub max_running: u32,
    /// Whether its KV cache was the limit; how large it was is not on record.
    pub kv_bound: bool,
    /// Its requests, in the order of arrival.
    pub requests: Vec<Logged>,
}

#[derive(Deserialize)]
struct Line {
    input_toks: u32,
    output_toks: u32,
    /// By the client's clock.
    arrival_time: f64,
    /// By the engine's clock, like what follows.
    queued_ts: f64,
    first_token_ts: f64,
    last_token_ts: f64,
}

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../../tests/fixtures/latency/", $name))
    };
}

/// The logs; what the servers were started with is from the `meta.json` beside each of them in the source.
///
/// # Errors
/// A log cannot be read.
pub fn logs() -> Result<Vec<Log>> {
    let log = |name, engines, kv_bound, bytes: &[u8]| {
        let requests = requests(bytes).with_context(|| format!("the log of {name}"))?;
        anyhow::Ok(Log { name, engines, max_running: 128, kv_bound, requests })
    };
    Ok(vec![
        log("RTX 4090, Llama-3.1-8B", 1, true, fixture!("rtx4090-llama-3.1-8b.jsonl.gz"))?,
        log("RTX PRO 6000, Llama-3.1-8B", 1, false, fixture!("rtxpro6000-llama-3.1-8b.jsonl.gz"))?,
        log("2 RTX PRO 6000, Qwen3-30B-A3B", 2, false, fixture!("rtxpro6000-qwen3-30b-a3b-instruct-2507.jsonl.gz"))?,
        log("2 RTX PRO 6000, Qwen3-32B", 1, false, fixture!("rtxpro6000-qwen3-32b.jsonl.gz"))?,
    ])
}

/// The two clocks are set by the first request, which an idle engine takes at once: so much for the wait until a busy engine reads
/// its socket, which belongs to a request's time.
fn requests(gzipped: &[u8]) -> Result<Vec<Logged>> {
    let mut text = String::new();
    GzDecoder::new(gzipped).read_to_string(&mut text)?;
    let lines: Vec<Line> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let first = lines.first().context("holds no request")?;
    let (arrival_zero, queued_zero) = (first.arrival_time, first.queued_ts);
    let logged = |line: &Line| {
        let at = line.arrival_time - arrival_zero;
        let (ttft_seconds, e2e_seconds) =
            (line.first_token_ts - queued_zero - at, line.last_token_ts - queued_zero - at);
        ensure!(ttft_seconds > 0.0 && e2e_seconds >= ttft_seconds, "a request ends before it begins");
        Ok(Logged {
            at: Duration::try_from_secs_f64(at)?,
            prompt_tokens: line.input_toks,
            output_tokens: line.output_toks,
            ttft_seconds,
            e2e_seconds,
        })
    };
    lines.iter().map(logged).collect()
}

/// A batch of equal requests sent at once to an idle server.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Batch {
    /// Type of the GPU.
    pub gpu: String,
    /// How many the model was spread over.
    pub gpus: u32,
    /// The model.
    pub model: String,
    /// Tokens of each prompt and of each answer.
    pub tokens: u32,
    /// Requests.
    pub batch: u32,
    /// Seconds until all have ended.
    pub latency_s: f64,
}

impl Batch {
    fn server(&self) -> (&str, u32, &str) {
        (&self.gpu, self.gpus, &self.model)
    }

    /// Whether both were measured on the same server.
    pub fn is_of_same_server(&self, other: &Batch) -> bool {
        self.server() == other.server()
    }
}

/// The batches, those of one server after each other.
///
/// # Errors
/// The table cannot be read.
pub fn batches() -> Result<Vec<Batch>> {
    let mut reader = csv::Reader::from_reader(&fixture!("llm-inference-bench.csv")[..]);
    let mut batches = reader.deserialize().collect::<Result<Vec<Batch>, _>>()?;
    batches.sort_by(|a, b| a.server().cmp(&b.server()));
    Ok(batches)
}
