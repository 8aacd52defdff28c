//! A Prometheus page, line by line.

use std::str;

use super::{Adapters, LoadGauge, Page, Sum, TOTAL_MAX};

/// Names of adapters that are kept of one page; vLLM's `--max-loras` is far below.
const ADAPTERS_MAX: usize = 64;

/// Reads a page in Prometheus' text format. A line that is malformed or has an implausible value is skipped.
pub fn parse_metrics(page: &[u8]) -> Page {
    let mut reading = PageReading::default();
    for line in page.split(|&byte| byte == b'\n') {
        let line = line.trim_ascii_start();
        // Most of a page's 600 lines are other families: one look at the first byte, one at the name.
        if !matches!(line.first(), Some(b'v' | b's' | b't' | b'n')) {
            continue;
        }
        let name = line.split(|byte| *byte == b'{' || byte.is_ascii_whitespace()).next().unwrap_or_default();
        if let Some(family) = family(name)
            && let Some(rest) = line.get(name.len()..).and_then(|rest| str::from_utf8(rest).ok())
        {
            // A line that cannot be read changes nothing.
            let _ = reading.sample(family, rest.trim_ascii());
        }
    }
    reading.page()
}

/// What the lines so far have said.
#[derive(Default)]
struct PageReading {
    page: Page,
    ttft: TimeHistogram,
    inter_token: TimeHistogram,
    per_request: TimeHistogram,
    adapters_at: f64,
}

/// Sum and count come on lines of their own.
#[derive(Clone, Copy, Default)]
struct TimeHistogram {
    seconds: Option<f64>,
    count: Option<f64>,
}

impl TimeHistogram {
    fn sum(self) -> Option<Sum> {
        Some(Sum { seconds: self.seconds?, count: self.count? })
    }
}

/// A name on the page.
#[derive(Clone, Copy)]
enum Family {
    Gauge(LoadGauge),
    /// One name for several gauges that a label tells apart.
    TritonRequests,
    TritonKvCache,
    Progress,
    Histogram(TimingFamily, Part),
    SleepState,
    Adapters,
}

#[derive(Clone, Copy)]
enum TimingFamily {
    Ttft,
    InterToken,
    PerRequest,
}

#[derive(Clone, Copy)]
enum Part {
    Seconds,
    Count,
}

fn family(name: &[u8]) -> Option<Family> {
    let gauge = match name {
        b"vllm:num_requests_running" | b"sglang:num_running_reqs" | b"trtllm_num_requests_running" => {
            LoadGauge::Running
        }
        b"vllm:num_requests_waiting" | b"sglang:num_queue_reqs" | b"trtllm_num_requests_waiting" => LoadGauge::Waiting,
        // vLLM renamed it.
        b"vllm:kv_cache_usage_perc" | b"vllm:gpu_cache_usage_perc" => LoadGauge::KvUse,
        b"sglang:token_usage" | b"trtllm_kv_cache_utilization" => LoadGauge::KvUse,
        b"nv_trt_llm_request_metrics" => return Some(Family::TritonRequests),
        b"nv_trt_llm_kv_cache_block_metrics" => return Some(Family::TritonKvCache),
        b"vllm:generation_tokens_total" | b"vllm:prompt_tokens_total" | b"sglang:realtime_tokens_total" => {
            return Some(Family::Progress);
        }
        b"vllm:engine_sleep_state" => return Some(Family::SleepState),
        b"vllm:lora_requests_info" => return Some(Family::Adapters),
        _ => return histogram(name),
    };
    Some(Family::Gauge(gauge))
}

fn histogram(name: &[u8]) -> Option<Family> {
    let (name, part) = match name.strip_suffix(b"_sum") {
        Some(name) => (name, Part::Seconds),
        None => (name.strip_suffix(b"_count")?, Part::Count),
    };
    let timing = match name {
        b"vllm:time_to_first_token_seconds"
        | b"sglang:time_to_first_token_seconds"
        | b"trtllm_time_to_first_token_seconds" => TimingFamily::Ttft,
        b"vllm:inter_token_latency_seconds" | b"sglang:inter_token_latency_seconds" => TimingFamily::InterToken,
        // vLLM's former name of the inter-token latency, and what TensorRT-LLM has.
        b"vllm:time_per_output_token_seconds"
        | b"vllm:request_time_per_output_token_seconds"
        | b"trtllm_time_per_output_token_seconds" => TimingFamily::PerRequest,
        _ => return None,
    };
    Some(Family::Histogram(timing, part))
}

impl PageReading {
    /// `{label="value",…} value [timestamp]`
    fn sample(&mut self, family: Family, rest: &str) -> Option<()> {
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_at_checked(labels_end(rest)?)?,
            None => ("", rest),
        };
        let value = rest.strip_prefix('}').unwrap_or(rest).split_ascii_whitespace().next()?;
        let value: f64 = value.parse().ok()?;
        let load = &mut self.page.load;
        match family {
            Family::Gauge(gauge) => load.add(gauge, value),
            Family::TritonRequests => match label(labels, "request_type")? {
                "scheduled" => load.add(LoadGauge::Running, value),
                "waiting" => load.add(LoadGauge::Waiting, value),
                _ => {}
            },
            Family::TritonKvCache => {
                if label(labels, "kv_cache_block_type")? == "fraction" {
                    load.add(LoadGauge::KvUse, value);
                }
            }
            Family::Progress => add(&mut load.progress_tokens, value),
            Family::Histogram(timing, part) => {
                let histogram = match timing {
                    TimingFamily::Ttft => &mut self.ttft,
                    TimingFamily::InterToken => &mut self.inter_token,
                    TimingFamily::PerRequest => &mut self.per_request,
                };
                match part {
                    Part::Seconds => add(&mut histogram.seconds, value),
                    Part::Count => add(&mut histogram.count, value),
                }
            }
            Family::SleepState => {
                if label(labels, "sleep_state")? == "awake" {
                    load.awake = Some(load.awake.unwrap_or(true) && value != 0.0);
                }
            }
            // Old rows stay on the page; the value is the time of the change.
            Family::Adapters => {
                if value > self.adapters_at {
                    self.adapters_at = value;
                    self.page.adapters = Some(adapters(labels)?);
                }
            }
        }
        Some(())
    }

    fn page(self) -> Page {
        let PageReading { mut page, ttft, inter_token, per_request, .. } = self;
        page.load.ttft = ttft.sum();
        page.load.tpot = inter_token.sum().or(per_request.sum());
        page
    }
}

fn add(sum: &mut Option<f64>, value: f64) {
    if (0.0..=TOTAL_MAX).contains(&value) {
        *sum = Some(sum.unwrap_or(0.0) + value);
    }
}

fn adapters(labels: &str) -> Option<Adapters> {
    let names = |name: &str| -> Option<Vec<String>> {
        let names = label(labels, name)?.split(',').map(str::trim).filter(|name| !name.is_empty());
        Some(names.take(ADAPTERS_MAX).map(str::to_owned).collect())
    };
    Some(Adapters { running: names("running_lora_adapters")?, waiting: names("waiting_lora_adapters")? })
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
