//! The histograms of vLLM's `/metrics`, and a count of requests for tests.

use std::collections::BTreeMap;
use std::time::Duration;

/// Paths, and values of `authorization`, that are counted apart. Clients choose both.
const COUNTED_APART_MAX: usize = 10_000;

/// How many requests have arrived, whatever they were answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// By path, without the query.
    pub paths: BTreeMap<String, u64>,
    /// By the first `authorization`, `None` for none.
    pub authorizations: BTreeMap<Option<String>, u64>,
    /// Those whose path or `authorization` was one too many to be counted apart.
    pub others: u64,
}

impl Tally {
    /// How many requests asked for this path.
    pub fn path(&self, path: &str) -> u64 {
        self.paths.get(path).copied().unwrap_or(0)
    }

    /// How many requests had this `authorization`, or none.
    pub fn authorization(&self, value: Option<&str>) -> u64 {
        self.authorizations.get(&value.map(str::to_owned)).copied().unwrap_or(0)
    }

    pub(super) fn count(&mut self, path: &str, authorization: Option<&str>) {
        let path_counted = count_apart(&mut self.paths, path.to_owned());
        let authorization_counted = count_apart(&mut self.authorizations, authorization.map(str::to_owned));
        self.others += u64::from(!(path_counted && authorization_counted));
    }
}

fn count_apart<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K) -> bool {
    let is_counted = counts.len() < COUNTED_APART_MAX || counts.contains_key(&key);
    if is_counted {
        *counts.entry(key).or_default() += 1;
    }
    is_counted
}

/// `time_to_first_token_seconds`.
const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// `inter_token_latency_seconds`, `request_time_per_output_token_seconds`.
const PER_TOKEN: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
/// `e2e_request_latency_seconds` and the phases of a request.
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];

/// A histogram with fixed bounds.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    /// Upper bounds without `+Inf`.
    pub(super) bounds: Vec<f64>,
    /// One count per bound and one for what is above; not cumulative.
    pub(super) counts: Vec<u64>,
    /// Sum of what was observed.
    pub(super) sum: f64,
}

impl Histogram {
    pub(super) fn new(bounds: &[f64]) -> Self {
        Self { bounds: bounds.to_vec(), counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// 1, 2, 5, 10 ... up to `max`, as vLLM's `build_1_2_5_buckets`.
    fn of_tokens(max: u32) -> Self {
        let steps = (0..10).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(power)));
        Self::new(&steps.take_while(|bound| *bound <= f64::from(max)).collect::<Vec<_>>())
    }

    pub(super) fn observe(&mut self, value: f64) {
        let bucket = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        self.counts[bucket] += 1;
        self.sum += value;
    }

    fn time(&mut self, value: Duration) {
        self.observe(value.as_secs_f64());
    }
}

/// What is known of a request when it ends; times count from its arrival.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Finished {
    pub(super) prompt_tokens: u32,
    pub(super) max_tokens: u32,
    pub(super) tokens: u32,
    pub(super) preemptions: u32,
    pub(super) queued: Option<Duration>,
    pub(super) first_token: Option<Duration>,
    pub(super) e2e: Duration,
}

/// All histograms that requests feed, named as vLLM names them.
#[derive(Clone, Debug)]
pub(super) struct Observations {
    pub(super) request_prompt_tokens: Histogram,
    pub(super) request_generation_tokens: Histogram,
    pub(super) request_max_num_generation_tokens: Histogram,
    pub(super) request_params_n: Histogram,
    pub(super) request_params_max_tokens: Histogram,
    pub(super) time_to_first_token_seconds: Histogram,
    pub(super) inter_token_latency_seconds: Histogram,
    pub(super) request_time_per_output_token_seconds: Histogram,
    pub(super) e2e_request_latency_seconds: Histogram,
    pub(super) request_queue_time_seconds: Histogram,
    pub(super) request_inference_time_seconds: Histogram,
    pub(super) request_prefill_time_seconds: Histogram,
    pub(super) request_decode_time_seconds: Histogram,
    pub(super) request_num_preemptions: Histogram,
    pub(super) request_prefill_kv_computed_tokens: Histogram,
}

impl Observations {
    pub(super) fn new(max_model_len: u32) -> Self {
        let tokens = || Histogram::of_tokens(max_model_len);
        Self {
            request_prompt_tokens: tokens(),
            request_generation_tokens: tokens(),
            request_max_num_generation_tokens: tokens(),
            request_params_n: Histogram::new(&[1.0, 2.0, 5.0, 10.0, 20.0]),
            request_params_max_tokens: tokens(),
            time_to_first_token_seconds: Histogram::new(TTFT),
            inter_token_latency_seconds: Histogram::new(PER_TOKEN),
            request_time_per_output_token_seconds: Histogram::new(PER_TOKEN),
            e2e_request_latency_seconds: Histogram::new(REQUEST),
            request_queue_time_seconds: Histogram::new(REQUEST),
            request_inference_time_seconds: Histogram::new(REQUEST),
            request_prefill_time_seconds: Histogram::new(REQUEST),
            request_decode_time_seconds: Histogram::new(REQUEST),
            request_num_preemptions: Histogram::new(&[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0]),
            request_prefill_kv_computed_tokens: tokens(),
        }
    }

    pub(super) fn request(&mut self, n: usize, max_tokens: u32) {
        self.request_params_n.observe(n as f64);
        self.request_max_num_generation_tokens.observe(f64::from(max_tokens));
    }

    pub(super) fn first_token(&mut self, ttft: Duration) {
        self.time_to_first_token_seconds.time(ttft);
    }

    pub(super) fn further_token(&mut self, gap: Duration) {
        self.inter_token_latency_seconds.time(gap);
    }

    pub(super) fn finished(&mut self, request: &Finished) {
        let queued = request.queued.unwrap_or_default();
        let first_token = request.first_token.unwrap_or(request.e2e);
        let decode = request.e2e.saturating_sub(first_token);
        self.request_prompt_tokens.observe(f64::from(request.prompt_tokens));
        self.request_prefill_kv_computed_tokens.observe(f64::from(request.prompt_tokens));
        self.request_generation_tokens.observe(f64::from(request.tokens));
        self.request_params_max_tokens.observe(f64::from(request.max_tokens));
        self.request_num_preemptions.observe(f64::from(request.preemptions));
        self.request_queue_time_seconds.time(queued);
        self.request_prefill_time_seconds.time(first_token.saturating_sub(queued));
        self.request_inference_time_seconds.time(request.e2e.saturating_sub(queued));
        self.request_decode_time_seconds.time(decode);
        self.e2e_request_latency_seconds.time(request.e2e);
        if request.tokens > 1 {
            self.request_time_per_output_token_seconds.observe(decode.as_secs_f64() / f64::from(request.tokens - 1));
        }
    }
}

/// The page with this value for every gauge of load, as a server that lies shows it.
pub(super) fn with_gauges(page: &str, value: &str) -> String {
    const GAUGES: [&str; 3] = ["vllm:num_requests_running{", "vllm:num_requests_waiting{", "vllm:kv_cache_usage_perc{"];
    let line = |line: &str| match line.rsplit_once(' ') {
        Some((name, _)) if GAUGES.iter().any(|gauge| line.starts_with(gauge)) => format!("{name} {value}\n"),
        _ => format!("{line}\n"),
    };
    page.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_stays_small_and_loses_no_request() {
        let mut tally = Tally::default();
        for number in 0..COUNTED_APART_MAX + 5 {
            tally.count(&format!("/{number}"), None);
        }
        tally.count("/0", Some("Bearer key"));
        assert_eq!(tally.paths.len(), COUNTED_APART_MAX);
        assert_eq!((tally.path("/0"), tally.path("/10004"), tally.others), (2, 0, 5));
        assert_eq!((tally.authorization(None), tally.authorization(Some("Bearer key"))), (10_005, 1));
    }
}
