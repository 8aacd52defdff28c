//! The `/metrics` page, with the names, labels, buckets and help of vLLM 0.32.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, HttpBody};
use axum::http::{Method, Response};

use super::driver::Snapshot;
use super::observe::{Histogram, Observations};
use routebalance_core::fleet::Limits;
use routebalance_sim::engine::STEP_TOKEN_BUCKETS;

/// Tokens of a KV block (vLLM's default on GPUs).
const BLOCK_TOKENS: u64 = 16;
/// Paths that the real server's instrumentation leaves out.
const NOT_COUNTED: [&str; 5] = ["/metrics", "/health", "/load", "/ping", "/version"];
/// `http_request_duration_seconds`.
const HANDLER_SECONDS: [f64; 3] = [0.1, 0.5, 1.0];
/// `http_request_duration_highr_seconds`.
const ALL_SECONDS: [f64; 21] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0, 30.0, 60.0,
];

type Labels<'a> = Vec<(&'a str, &'a str)>;

/// What is known of the HTTP side.
#[derive(Debug, Default)]
pub(super) struct HttpStats {
    /// By handler, method and class of status: requests, and when the first one came (Unix time).
    requests: BTreeMap<(&'static str, String, &'static str), (u64, Duration)>,
    sizes: BTreeMap<&'static str, Sizes>,
    durations: BTreeMap<(&'static str, String), (Histogram, Duration)>,
    all_durations: Option<Histogram>,
    /// Requests refused because of `--max-num-queued-reqs`.
    pub(super) rejected: u64,
}

#[derive(Debug)]
struct Sizes {
    count: u64,
    request_bytes: u64,
    response_bytes: u64,
    created: Duration,
}

impl HttpStats {
    pub(super) fn count(
        &mut self,
        handler: &'static str,
        method: &Method,
        response: &Response<Body>,
        request_bytes: usize,
        took: Duration,
    ) {
        if NOT_COUNTED.contains(&handler) {
            return;
        }
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let class = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"][usize::from(response.status().as_u16() / 100).min(5)];
        self.requests.entry((handler, method.to_string(), class)).or_insert((0, created)).0 += 1;
        let sizes =
            self.sizes.entry(handler).or_insert(Sizes { count: 0, request_bytes: 0, response_bytes: 0, created });
        sizes.count += 1;
        sizes.request_bytes += request_bytes as u64;
        // A stream has no content-length and counts as 0, as in the real server.
        sizes.response_bytes += response.body().size_hint().exact().unwrap_or(0);
        let of_handler = (handler, method.to_string());
        let durations = self.durations.entry(of_handler).or_insert_with(|| (Histogram::new(&HANDLER_SECONDS), created));
        durations.0.observe(took.as_secs_f64());
        self.all_durations.get_or_insert_with(|| Histogram::new(&ALL_SECONDS)).observe(took.as_secs_f64());
    }
}

/// The whole page. `created` is the Unix time at which the instance started.
pub(super) fn page(model: &str, limits: &Limits, engine: &Snapshot, http: &HttpStats, created: Duration) -> String {
    let mut page = Page { out: String::with_capacity(60_000), model, created: created.as_secs_f64() };
    page.process();
    page.engine(engine);
    page.requests(engine, http.rejected);
    page.histograms(engine);
    page.cache_config(limits);
    page.http(http);
    page.out
}

struct Page<'a> {
    out: String,
    model: &'a str,
    /// Unix seconds.
    created: f64,
}

impl<'a> Page<'a> {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One line; labels are sorted by name, as the Python client prints them.
    fn sample(&mut self, name: &str, labels: &Labels<'_>, value: f64) {
        let mut labels = labels.clone();
        labels.sort_unstable();
        self.out.push_str(name);
        for (position, (key, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let _ = write!(self.out, "{}{key}=\"{value}\"", if position == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.out, "{} {}", if labels.is_empty() { "" } else { "}" }, number(value));
    }

    /// `engine`, `model_name`, and what tells the series of a family apart.
    fn labels(&self, more: &[(&'a str, &'a str)]) -> Labels<'a> {
        [("engine", "0"), ("model_name", self.model)].into_iter().chain(more.iter().copied()).collect()
    }

    fn gauge(&mut self, name: &str, help: &str, series: &[(Labels<'_>, f64)]) {
        self.family(name, "gauge", help);
        series.iter().for_each(|(labels, value)| self.sample(name, labels, *value));
    }

    /// A counter `{name}_total` and the time of its birth.
    fn counter(&mut self, name: &str, help: &str, series: &[(Labels<'_>, f64)]) {
        let total = format!("{name}_total");
        self.family(&total, "counter", help);
        series.iter().for_each(|(labels, value)| self.sample(&total, labels, *value));
        let created: Vec<_> = series.iter().map(|(labels, _)| (labels.clone(), self.created)).collect();
        self.gauge(&format!("{name}_created"), help, &created);
    }

    /// The lines of a histogram, without its family.
    fn buckets(&mut self, name: &str, labels: &Labels<'_>, histogram: &Histogram) {
        let mut cumulative = 0;
        let bounds = histogram.bounds.iter().map(|bound| number(*bound)).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&histogram.counts) {
            cumulative += count;
            let mut labels = labels.clone();
            labels.push(("le", &bound));
            self.sample(&format!("{name}_bucket"), &labels, cumulative as f64);
        }
        self.sample(&format!("{name}_count"), labels, cumulative as f64);
        self.sample(&format!("{name}_sum"), labels, histogram.sum);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        let labels = self.labels(&[]);
        self.family(name, "histogram", help);
        self.buckets(name, &labels, histogram);
        self.gauge(&format!("{name}_created"), help, &[(labels, self.created)]);
    }

    /// What the Python client says of its process: constants of a recorded server, for size and for scrapers' habits.
    fn process(&mut self) {
        for (name, help, values) in [
            ("python_gc_objects_collected_total", "Objects collected during gc", [14682.0, 2324.0, 1405.0]),
            ("python_gc_objects_uncollectable_total", "Uncollectable objects found during GC", [0.0; 3]),
            ("python_gc_collections_total", "Number of times this generation was collected", [1601.0, 146.0, 10.0]),
        ] {
            self.family(name, "counter", help);
            for (generation, value) in ["0", "1", "2"].into_iter().zip(values) {
                self.sample(name, &vec![("generation", generation)], value);
            }
        }
        let python = vec![
            ("implementation", "CPython"),
            ("major", "3"),
            ("minor", "11"),
            ("patchlevel", "7"),
            ("version", "3.11.7"),
        ];
        self.gauge("python_info", "Python platform information", &[(python, 1.0)]);
        for (name, kind, help, value) in [
            ("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", 4_506_300_416.0),
            ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", 1_205_956_608.0),
            (
                "process_start_time_seconds",
                "gauge",
                "Start time of the process since unix epoch in seconds.",
                self.created,
            ),
            ("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", 7.47),
            ("process_open_fds", "gauge", "Number of open file descriptors.", 34.0),
            ("process_max_fds", "gauge", "Maximum number of open file descriptors.", 20000.0),
        ] {
            self.family(name, kind, help);
            self.sample(name, &vec![], value);
        }
    }

    fn engine(&mut self, engine: &Snapshot) {
        for (name, help) in [
            (
                "vllm:estimated_flops_per_gpu",
                "Estimated number of floating point operations per GPU (for Model Flops Utilization calculations).",
            ),
            (
                "vllm:estimated_read_bytes_per_gpu",
                "Estimated number of bytes read from memory per GPU (for Model Flops Utilization calculations).",
            ),
            (
                "vllm:estimated_write_bytes_per_gpu",
                "Estimated number of bytes written to memory per GPU (for Model Flops Utilization calculations).",
            ),
        ] {
            self.counter(name, help, &[(self.labels(&[]), 0.0)]);
        }
        let waiting = engine.gauges.waiting as f64;
        self.gauge(
            "vllm:num_requests_running",
            "Number of requests in model execution batches.",
            &[(self.labels(&[]), engine.gauges.running as f64)],
        );
        self.gauge(
            "vllm:num_requests_waiting",
            "Number of requests waiting to be processed.",
            &[(self.labels(&[]), waiting)],
        );
        self.gauge(
            "vllm:num_requests_waiting_by_reason",
            "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals vllm:num_requests_waiting.",
            &[(self.labels(&[("reason", "capacity")]), waiting), (self.labels(&[("reason", "deferred")]), 0.0)],
        );
        let sleep_states = [("awake", 1.0), ("weights_offloaded", 0.0), ("discard_all", 0.0)];
        self.gauge(
            "vllm:engine_sleep_state",
            "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.",
            &sleep_states.map(|(state, value)| (self.labels(&[("sleep_state", state)]), value)),
        );
        self.gauge(
            "vllm:kv_cache_usage_perc",
            "KV-cache usage. 1 means 100 percent usage.",
            &[(self.labels(&[]), engine.gauges.kv_usage)],
        );
    }

    fn requests(&mut self, engine: &Snapshot, rejected: u64) {
        let counters = &engine.counters;
        let (computed, cached) = (counters.prompt_tokens as f64, counters.prefix_hits as f64);
        let prompt_tokens = computed + cached;
        for (name, help, value) in [
            (
                "vllm:prefix_cache_queries",
                "Prefix cache queries, in terms of number of queried tokens.",
                counters.prefix_queries as f64,
            ),
            ("vllm:prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", cached),
            (
                "vllm:external_prefix_cache_queries",
                "External prefix cache queries from KV connector cross-instance cache sharing, in terms of number of queried tokens.",
                0.0,
            ),
            (
                "vllm:external_prefix_cache_hits",
                "External prefix cache hits from KV connector cross-instance cache sharing, in terms of number of cached tokens.",
                0.0,
            ),
            ("vllm:mm_cache_queries", "Multi-modal cache queries, in terms of number of queried items.", 0.0),
            ("vllm:mm_cache_hits", "Multi-modal cache hits, in terms of number of cached items.", 0.0),
            ("vllm:num_preemptions", "Cumulative number of preemption from the engine.", counters.preemptions as f64),
            ("vllm:prompt_tokens", "Number of prefill tokens processed.", prompt_tokens),
        ] {
            self.counter(name, help, &[(self.labels(&[]), value)]);
        }
        let sources = [("local_compute", computed), ("local_cache_hit", cached), ("external_kv_transfer", 0.0)];
        self.counter(
            "vllm:prompt_tokens_by_source",
            "Number of prompt tokens by source.",
            &sources.map(|(source, value)| (self.labels(&[("source", source)]), value)),
        );
        self.counter(
            "vllm:prompt_tokens_cached",
            "Number of cached prompt tokens (local + external).",
            &[(self.labels(&[]), cached)],
        );
        let tiers = ["device", "host", "p2p", "disk", "external_unspecified"];
        self.counter(
            "vllm:prompt_tokens_cached_by_source",
            "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to DRAM), disk, p2p (transferred from another vLLM instance) or external_unspecified. Counted at admission; sums to vllm:prefix_cache_hits + vllm:external_prefix_cache_hits.",
            &tiers.map(|tier| (self.labels(&[("source", tier)]), if tier == "device" { cached } else { 0.0 })),
        );
        self.counter(
            "vllm:generation_tokens",
            "Number of generation tokens processed.",
            &[(self.labels(&[]), counters.generated_tokens as f64)],
        );
        // A client that leaves is not counted as "abort" by the real server either.
        let reasons = [
            ("stop", counters.finished_stop as f64),
            ("length", counters.finished_length as f64),
            ("abort", 0.0),
            ("error", 0.0),
            ("repetition", 0.0),
        ];
        self.counter(
            "vllm:request_success",
            "Count of successfully processed requests.",
            &reasons.map(|(reason, value)| (self.labels(&[("finished_reason", reason)]), value)),
        );
        let rejections = [("max_num_queued_reqs", rejected as f64), ("max_num_queued_tokens", 0.0)];
        self.counter(
            "vllm:admission_rejections",
            "Number of admission attempts rejected by a queue limit, by reason.",
            &rejections.map(|(reason, value)| (vec![("model_name", self.model), ("reason", reason)], value)),
        );
    }

    fn histograms(&mut self, engine: &Snapshot) {
        let seen = &engine.observations;
        let bounds: Vec<f64> =
            STEP_TOKEN_BUCKETS.iter().filter(|bound| **bound < u64::MAX).map(|bound| *bound as f64).collect();
        let steps = Histogram {
            bounds,
            counts: engine.counters.step_tokens.to_vec(),
            sum: (engine.counters.prompt_tokens + engine.counters.generated_tokens) as f64,
        };
        for (name, help, histogram) in token_histograms(seen, &steps).into_iter().chain(request_histograms(seen)) {
            self.histogram(name, help, histogram);
        }
    }

    fn cache_config(&mut self, limits: &Limits) {
        let block = BLOCK_TOKENS.to_string();
        let blocks = (limits.kv_tokens / BLOCK_TOKENS).to_string();
        let tokens = limits.kv_tokens.to_string();
        let concurrency = number(limits.kv_tokens as f64 / f64::from(limits.max_model_len.max(1)));
        let mut labels = vec![
            ("_block_size_resolved", "True"),
            ("block_size", &block),
            ("cache_dtype", "auto"),
            ("effective_attention_block_size", &block),
            ("enable_mamba_shared_prefix_checkpoint", "False"),
            ("enable_prefix_caching", "True"),
            ("engine", "0"),
            ("gpu_memory_utilization", "0.92"),
            ("is_attention_free", "False"),
            ("kv_cache_max_concurrency", &concurrency),
            ("kv_cache_size_tokens", &tokens),
            ("kv_offloading_backend", "native"),
            ("kv_cache_dtype_skip_layers", "[]"),
            ("kv_sharing_fast_prefill", "False"),
            ("mamba_cache_dtype", "auto"),
            ("mamba_cache_mode", "none"),
            ("mamba_ssm_cache_dtype", "float32"),
            ("num_gpu_blocks", &blocks),
            ("prefix_cache_retention_interval", "0"),
            ("prefix_caching_hash_algo", "sha256"),
            ("replayssm_buffer_len", "16"),
            ("swa_bounded_replay", "True"),
            ("use_kda_recoverssm", "False"),
            ("use_replayssm", "False"),
            ("user_specified_block_size", "False"),
        ];
        labels.extend(
            [
                "cache_hit_alignment_tokens",
                "hash_block_size",
                "kv_cache_layout",
                "kv_cache_memory_bytes",
                "kv_offloading_size",
                "mamba_block_size",
                "mamba_page_size_padded",
                "num_cpu_blocks",
                "num_gpu_blocks_override",
                "prefix_match_unit",
                "skip_page_size_padded",
                "sliding_window",
            ]
            .map(|name| (name, "None")),
        );
        self.gauge("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", &[(labels, 1.0)]);
    }

    fn http(&mut self, http: &HttpStats) {
        let requests: Vec<(Labels<'_>, f64, f64)> = http
            .requests
            .iter()
            .map(|((handler, method, status), (count, created))| {
                (
                    vec![("handler", *handler), ("method", method), ("status", *status)],
                    *count as f64,
                    created.as_secs_f64(),
                )
            })
            .collect();
        let help = "Total number of requests by method, status and handler.";
        self.family("http_requests_total", "counter", help);
        requests.iter().for_each(|(labels, count, _)| self.sample("http_requests_total", labels, *count));
        self.family("http_requests_created", "gauge", help);
        requests.iter().for_each(|(labels, _, created)| self.sample("http_requests_created", labels, *created));

        for (name, help, response) in [
            (
                "http_request_size_bytes",
                "Content length of incoming requests by handler. Only value of header is respected. Otherwise ignored. No percentile calculated. ",
                false,
            ),
            (
                "http_response_size_bytes",
                "Content length of outgoing responses by handler. Only value of header is respected. Otherwise ignored. No percentile calculated. ",
                true,
            ),
        ] {
            self.family(name, "summary", help);
            for (handler, sizes) in &http.sizes {
                let labels = vec![("handler", *handler)];
                let bytes = if response { sizes.response_bytes } else { sizes.request_bytes };
                self.sample(&format!("{name}_count"), &labels, sizes.count as f64);
                self.sample(&format!("{name}_sum"), &labels, bytes as f64);
            }
            let created = format!("{name}_created");
            self.family(&created, "gauge", help);
            for (handler, sizes) in &http.sizes {
                self.sample(&created, &vec![("handler", *handler)], sizes.created.as_secs_f64());
            }
        }

        let help =
            "Latency with many buckets but no API specific labels. Made for more accurate percentile calculations. ";
        let none = Histogram::new(&ALL_SECONDS);
        self.family("http_request_duration_highr_seconds", "histogram", help);
        self.buckets("http_request_duration_highr_seconds", &vec![], http.all_durations.as_ref().unwrap_or(&none));
        self.gauge("http_request_duration_highr_seconds_created", help, &[(vec![], self.created)]);

        let help =
            "Latency with only few buckets by handler. Made to be only used if aggregation by handler is important. ";
        self.family("http_request_duration_seconds", "histogram", help);
        for ((handler, method), (histogram, _)) in &http.durations {
            self.buckets("http_request_duration_seconds", &vec![("handler", *handler), ("method", method)], histogram);
        }
        self.family("http_request_duration_seconds_created", "gauge", help);
        for ((handler, method), (_, created)) in &http.durations {
            let labels = vec![("handler", *handler), ("method", method.as_str())];
            self.sample("http_request_duration_seconds_created", &labels, created.as_secs_f64());
        }
    }
}

/// A histogram with its name and what the page says of it.
type Described<'a> = (&'static str, &'static str, &'a Histogram);

fn token_histograms<'a>(seen: &'a Observations, steps: &'a Histogram) -> [Described<'a>; 6] {
    [
        ("vllm:request_prompt_tokens", "Number of prefill tokens processed.", &seen.request_prompt_tokens),
        ("vllm:request_generation_tokens", "Number of generation tokens processed.", &seen.request_generation_tokens),
        ("vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.", steps),
        (
            "vllm:request_max_num_generation_tokens",
            "Histogram of maximum number of requested generation tokens.",
            &seen.request_max_num_generation_tokens,
        ),
        ("vllm:request_params_n", "Histogram of the n request parameter.", &seen.request_params_n),
        (
            "vllm:request_params_max_tokens",
            "Histogram of the max_tokens request parameter.",
            &seen.request_params_max_tokens,
        ),
    ]
}

fn request_histograms(seen: &Observations) -> [Described<'_>; 10] {
    [
        (
            "vllm:time_to_first_token_seconds",
            "Histogram of time to first token in seconds.",
            &seen.time_to_first_token_seconds,
        ),
        (
            "vllm:inter_token_latency_seconds",
            "Histogram of inter-token latency in seconds.",
            &seen.inter_token_latency_seconds,
        ),
        (
            "vllm:request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            &seen.request_time_per_output_token_seconds,
        ),
        (
            "vllm:e2e_request_latency_seconds",
            "Histogram of e2e request latency in seconds.",
            &seen.e2e_request_latency_seconds,
        ),
        (
            "vllm:request_queue_time_seconds",
            "Histogram of time spent in WAITING phase for request.",
            &seen.request_queue_time_seconds,
        ),
        (
            "vllm:request_inference_time_seconds",
            "Histogram of time spent in RUNNING phase for request.",
            &seen.request_inference_time_seconds,
        ),
        (
            "vllm:request_prefill_time_seconds",
            "Histogram of time spent in PREFILL phase for request.",
            &seen.request_prefill_time_seconds,
        ),
        (
            "vllm:request_decode_time_seconds",
            "Histogram of time spent in DECODE phase for request.",
            &seen.request_decode_time_seconds,
        ),
        (
            "vllm:request_num_preemptions",
            "Histogram of the number of times a request was preempted.",
            &seen.request_num_preemptions,
        ),
        (
            "vllm:request_prefill_kv_computed_tokens",
            "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
            &seen.request_prefill_kv_computed_tokens,
        ),
    ]
}

/// A number as the Python client prints it: `1.0`, from a million on `1.5e+06`.
fn number(value: f64) -> String {
    if value.abs() < 1e6 {
        return format!("{value:?}");
    }
    let text = format!("{value:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{mantissa}e+{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_as_in_the_recordings() {
        for (value, text) in [
            (0.0, "0.0"),
            (0.58, "0.58"),
            (14682.0, "14682.0"),
            (999_999.0, "999999.0"),
            (4_506_300_416.0, "4.506300416e+09"),
            (1_795_319_372.744_383_6, "1.7953193727443836e+09"),
            (2e6, "2e+06"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
