//! Allocations of one request in the core, on a host in memory, whose own are taken off.

use std::time::Duration;

use allocation_counter::measure;
use routebalance_core::config::Config;
use routebalance_core::gateway::memory::{Exchange, MemoryHost, ROOT, owned};
use routebalance_core::gateway::{Gateway, TICK};
use routebalance_core::names;
use routebalance_core::predictor::Predictor;
use routebalance_core::router::Router;
use routebalance_core::shared::Bytes;

use super::Counts;

/// The request that is counted, and its answer: 1 KB, as in the base cell of `bench envoy`.
pub(super) const WORDS: &str =
    "count the 12 apples that quick brown foxes (and lazy dogs) bring, then explain why it works. ";
pub(super) const ANSWER: &[u8] = br#"{"id":"chatcmpl-1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Foxes bring what they find, and dogs what they are given; it works because nobody counts the apples twice, and those that are left over are eaten on the way home."},"finish_reason":"stop"}],"usage":{"prompt_tokens":250,"completion_tokens":40,"total_tokens":290}}"#;
pub(super) const PAGE: &[u8] =
    b"vllm:num_requests_running{engine=\"0\"} 1\nvllm:num_requests_waiting{engine=\"0\"} 0\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.1\n";
/// The configuration that is counted.
pub(super) const CONFIGURATION: &[u8] = include_bytes!("../../envoy/routebalance.json");

/// Requests before the one that is counted: what grows has grown.
pub(super) const BEFORE: u32 = 50;

pub(super) fn body() -> Vec<u8> {
    let content = WORDS.repeat(10);
    let body =
        serde_json::json!({ "model": "auto", "max_tokens": 64, "messages": [{ "role": "user", "content": content }] });
    body.to_string().into_bytes()
}

pub(super) fn request_headers(id: u32, length: usize) -> Vec<(String, String)> {
    let (length, request_id) = (length.to_string(), format!("e860ba93-edc2-457a-9b66-{id:012}"));
    owned(&[
        (":authority", "127.0.0.1:10000"),
        (":path", "/v1/chat/completions"),
        (":method", "POST"),
        (":scheme", "http"),
        ("content-type", "application/json"),
        ("content-length", &length),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-request-id", &request_id),
        ("x-envoy-expected-rq-timeout-ms", "0"),
    ])
}

pub(super) fn response_headers() -> Vec<(String, String)> {
    owned(&[(":status", "200"), ("content-type", "application/json"), ("x-envoy-upstream-service-time", "1")])
}

/// The instance that a request was sent to.
pub(super) fn endpoint(exchange: &Exchange) -> String {
    let endpoints = exchange.request.iter().find(|(name, _)| name == names::ENDPOINT_HEADER);
    let endpoints = endpoints.expect("the request was sent to an instance");
    endpoints.1.split(',').next().unwrap_or_default().to_owned()
}

/// Allocations of one request by what they are for.
pub(super) fn allocations() -> Counts {
    let mut host = MemoryHost::new(Bytes::default());
    host.time = Duration::from_secs(1_000);
    let config = Config::parse(CONFIGURATION).expect("the reference configuration");
    let predictor = Predictor::load().expect("the shipped predictor");
    let mut gateway = Gateway::new(Router::new(config, Some(predictor)), 7, &mut host);
    for id in 2..2 + BEFORE {
        if id % 10 == 2 {
            tick(&mut gateway, &mut host);
        }
        request(&mut gateway, &mut host, id);
    }
    request(&mut gateway, &mut host, 2 + BEFORE).into_iter().collect()
}

fn tick(gateway: &mut Gateway, host: &mut MemoryHost) {
    host.time += TICK;
    host.current = ROOT;
    gateway.on_tick(host, ROOT);
    for call in std::mem::take(&mut host.calls) {
        host.call_response = (owned(&[(":status", "200")]), PAGE.to_vec());
        gateway.on_call_response(host, ROOT, call.number, true, PAGE.len());
    }
}

/// One request, and what it has allocated until it was sent, and until it was over.
fn request(gateway: &mut Gateway, host: &mut MemoryHost, id: u32) -> [(String, u64); 2] {
    let body = body();
    let headers = request_headers(id, body.len());
    let size = body.len();
    host.time += Duration::from_micros(270);
    host.exchanges.insert(id, Exchange { request: headers, body, connection: Some(7), ..Exchange::default() });
    host.current = id;
    let sent = measure(|| {
        gateway.on_request_headers(host, id, false);
        gateway.on_request_body(host, id, size, true);
    });
    let exchange = host.exchanges.get_mut(&id).expect("the request is there");
    let address = endpoint(exchange);
    exchange.properties.insert("upstream.address".to_owned(), address);
    exchange.attempts = 1;
    exchange.response = response_headers();
    exchange.response_body = ANSWER.to_vec();
    let answered = measure(|| {
        gateway.on_response_headers(host, id, false);
        gateway.on_response_body(host, id, ANSWER.len(), true);
        gateway.release(host, id);
        gateway.on_end(host, id);
    });
    host.exchanges.remove(&id);
    let count =
        |what: &str, info: allocation_counter::AllocationInfo| (format!("allocations, {what}"), info.count_total);
    [count("until a request is sent", sent), count("from its response to its end", answered)]
}
