//! The emulated instance against recordings of a real vLLM 0.32.0, field by field; and what no recording shows: timing,
//! aborts, faults.
#![cfg(not(target_family = "wasm"))]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]
#![allow(clippy::disallowed_methods, reason = "real time is what these tests measure")]

#[path = "harness/certificates.rs"]
mod certificates;
#[path = "instance/faults.rs"]
mod faults;
#[path = "instance/http.rs"]
mod http;
#[path = "instance/provider.rs"]
mod provider;
#[path = "instance/tls.rs"]
mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use http::{Answer, End, exchange, parse_chunks, parse_head};
use routebalance_core::fleet::{LatencyProfile, Limits, ModelKind};
use routebalance_instance::{InstanceOptions, PoolProfile, Switches, start};
use serde_json::Value;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

/// How much of the wording is the model's and not the server's.
#[derive(Clone, Copy, PartialEq)]
enum Compare {
    /// Byte for byte: errors, constants.
    Bytes,
    /// JSON with masks.
    Json,
    /// Events with masks, one for one.
    Events,
    /// Events with masks in any order: choices interleave as they please.
    Unordered,
    /// Events with masks, equal ones in a row counted once: the real server joins tokens that split a character.
    Runs,
}

type Row = (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)], Compare);

/// A recording, what was sent, and how the answer compares.
const ROWS: &[Row] = &[
    ("chat", "POST", CHAT, &[], Compare::Json),
    ("chat-n2", "POST", CHAT, &[], Compare::Json),
    ("chat-orca-text", "POST", CHAT, &[("endpoint-load-metrics-format", "TEXT")], Compare::Json),
    ("chat-orca-json", "POST", CHAT, &[("Endpoint-Load-Metrics-Format", "json")], Compare::Json),
    ("chat-orca-bad", "POST", CHAT, &[("endpoint-load-metrics-format", "XML")], Compare::Json),
    ("chat-request-id", "POST", CHAT, &[("x-request-id", "my-req-42")], Compare::Json),
    ("chat-tools-auto", "POST", CHAT, &[], Compare::Json),
    ("chat-tools-named", "POST", CHAT, &[], Compare::Bytes),
    ("chat-tools-named-stream", "POST", CHAT, &[], Compare::Bytes),
    ("chat-tools-required", "POST", CHAT, &[], Compare::Bytes),
    ("chat-stream", "POST", CHAT, &[], Compare::Events),
    ("chat-stream-usage", "POST", CHAT, &[], Compare::Events),
    ("chat-stream-continuous-usage", "POST", CHAT, &[], Compare::Events),
    ("chat-stream-orca-text", "POST", CHAT, &[("endpoint-load-metrics-format", "TEXT")], Compare::Events),
    ("chat-stream-n2", "POST", CHAT, &[], Compare::Unordered),
    ("completions", "POST", COMPLETIONS, &[("endpoint-load-metrics-format", "TEXT")], Compare::Json),
    ("completions-batch2", "POST", COMPLETIONS, &[], Compare::Json),
    ("completions-stream", "POST", COMPLETIONS, &[], Compare::Events),
    ("responses", "POST", RESPONSES, &[], Compare::Json),
    ("responses-previous", "POST", RESPONSES, &[], Compare::Bytes),
    ("responses-stream", "POST", RESPONSES, &[], Compare::Runs),
    ("messages", "POST", MESSAGES, &[], Compare::Json),
    ("messages-count", "POST", "/v1/messages/count_tokens", &[], Compare::Json),
    ("messages-stream", "POST", MESSAGES, &[], Compare::Runs),
    ("tokenize", "POST", "/tokenize", &[], Compare::Json),
    ("tokenize-chat", "POST", "/tokenize", &[], Compare::Json),
    ("models", "GET", "/v1/models", &[], Compare::Json),
    ("health", "GET", "/health", &[], Compare::Bytes),
    ("ping", "GET", "/ping", &[], Compare::Bytes),
    ("load", "GET", "/load", &[], Compare::Bytes),
    ("version", "GET", "/version", &[], Compare::Bytes),
    ("err-no-model", "POST", CHAT, &[], Compare::Json),
    ("err-unknown-field", "POST", CHAT, &[], Compare::Json),
    ("err-bad-temperature", "POST", CHAT, &[], Compare::Bytes),
    ("err-bad-type", "POST", CHAT, &[], Compare::Bytes),
    ("err-content-type", "POST", CHAT, &[("content-type", "text/plain")], Compare::Bytes),
    ("err-context", "POST", CHAT, &[], Compare::Bytes),
    ("err-context-stream", "POST", CHAT, &[], Compare::Bytes),
    ("err-context-completions", "POST", COMPLETIONS, &[], Compare::Bytes),
    ("err-context-messages", "POST", MESSAGES, &[], Compare::Bytes),
    ("err-context-responses", "POST", RESPONSES, &[], Compare::Bytes),
    ("err-embeddings", "POST", "/v1/embeddings", &[], Compare::Bytes),
    ("err-invalid-json", "POST", CHAT, &[], Compare::Bytes),
    ("err-max-tokens", "POST", CHAT, &[], Compare::Bytes),
    ("err-method", "GET", CHAT, &[], Compare::Bytes),
    ("err-missing-messages", "POST", CHAT, &[], Compare::Bytes),
    ("err-not-found", "GET", "/v1/nope", &[], Compare::Bytes),
    ("err-unknown-model", "POST", CHAT, &[], Compare::Bytes),
    ("err-unknown-model-stream", "POST", CHAT, &[], Compare::Bytes),
    ("err-unknown-model-messages", "POST", MESSAGES, &[], Compare::Bytes),
    ("err-unknown-model-responses", "POST", RESPONSES, &[], Compare::Bytes),
    ("overload-chat", "POST", CHAT, &[], Compare::Bytes),
    ("overload-chat-stream", "POST", CHAT, &[], Compare::Bytes),
    ("overload-completions-stream", "POST", COMPLETIONS, &[], Compare::Bytes),
    ("overload-messages", "POST", MESSAGES, &[], Compare::Bytes),
    ("overload-messages-stream", "POST", MESSAGES, &[], Compare::Bytes),
    ("overload-responses", "POST", RESPONSES, &[], Compare::Bytes),
    ("overload-responses-stream", "POST", RESPONSES, &[], Compare::Bytes),
];

/// An instance like the recorded server, but fast.
fn recorded_server(setting: &str) -> InstanceOptions {
    let pool = PoolProfile {
        model_name: "tiny".into(),
        served_model: if setting == "plain" { "tiny-a" } else { "tiny-b" }.into(),
        kind: ModelKind::Generate,
        profile: LatencyProfile {
            tpot_ms: 2.0,
            tpot_growth_per_running: 0.015,
            tpot_growth_per_thousand_context_tokens: 0.0,
            prefill_tokens_per_second: 50_000.0,
            overhead_ms: 1.0,
        },
        limits: Limits { max_running: 8, kv_tokens: 1 << 20, max_model_len: 2048 },
    };
    let on = setting == "tools";
    InstanceOptions {
        switches: Switches { request_id_headers: on, prompt_tokens_details: on, tool_call_parser: on },
        max_queued: (setting == "pressure").then_some(0),
        ..InstanceOptions::new(pool)
    }
}

fn fixtures(setting: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vllm").join(setting)
}

/// Values that the model, the clock or chance decides.
const MASKED: [&str; 18] = [
    "id",
    "item_id",
    "created",
    "created_at",
    "content",
    "text",
    "delta",
    "prompt_tokens",
    "total_tokens",
    "input_tokens",
    "original_input_tokens",
    "cached_tokens",
    "created_cache_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "sequence_number",
    "count",
    "tokens",
];

/// Replaces masked values by their types. Strings that a mask hides keep whether they are empty only where asked.
fn mask(value: &Value, masked: bool) -> Value {
    match value {
        // With a tool parser, the real server leaves out the text of a last token that is half a character.
        Value::Object(fields) if masked && fields.is_empty() => serde_json::json!({"content": "<string>"}),
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(key, value)| (key.clone(), mask(value, MASKED.contains(&key.as_str()) || key == "token_strs")))
                .collect(),
        ),
        // A list of scalars under a mask is a list of the model's making: its first item tells its type.
        Value::Array(items) if masked && items.first().is_some_and(|item| !item.is_object()) => {
            Value::Array(items.first().map(|item| mask(item, true)).into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| mask(item, false)).collect()),
        Value::String(_) if masked => "<string>".into(),
        Value::Number(number) if masked => if number.is_f64() { "<float>" } else { "<integer>" }.into(),
        other => other.clone(),
    }
}

fn masked_json(text: &str) -> String {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    mask(&value, false).to_string()
}

/// The events of a stream, their data masked.
fn masked_events(body: &str) -> Vec<String> {
    assert!(body.ends_with("\n\n"), "an event ends with an empty line: {body:?}");
    let events = body.trim_end_matches('\n').split("\n\n");
    events
        .map(|event| {
            let lines = event.lines().map(|line| match line.split_once(": ") {
                Some(("data", data)) if data != "[DONE]" => format!("data: {}", masked_json(data)),
                _ => line.to_owned(),
            });
            lines.collect::<Vec<_>>().join("\n")
        })
        .collect()
}

fn masked_headers(headers: &[(String, String)], request: &[(&str, &str)]) -> BTreeMap<String, String> {
    let own_id = request.iter().any(|(name, _)| *name == "x-request-id");
    headers
        .iter()
        .map(|(name, value)| {
            let hidden = match name.as_str() {
                // The recorded server's body has other words in it.
                "date" | "content-length" => true,
                "x-request-id" => !own_id,
                _ => false,
            };
            (name.clone(), if hidden { "<masked>".into() } else { value.clone() })
        })
        .collect()
}

fn compare_bodies(name: &str, compare: Compare, expected: &str, found: &str) {
    match compare {
        Compare::Bytes => assert_eq!(expected, found, "{name}"),
        Compare::Json => assert_eq!(masked_json(expected), masked_json(found), "{name}"),
        Compare::Events | Compare::Unordered | Compare::Runs => {
            let [expected, found] = [expected, found].map(|body| {
                let mut events = masked_events(body);
                match compare {
                    Compare::Unordered => events.sort(),
                    Compare::Runs => events.dedup(),
                    _ => {}
                }
                events
            });
            for (number, (expected, found)) in expected.iter().zip(&found).enumerate() {
                assert_eq!(expected, found, "{name}, event {number}");
            }
            assert_eq!(expected.len(), found.len(), "{name}, events");
        }
    }
}

/// One event per chunk, and the zero chunk at the end.
fn check_framing(name: &str, chunks: &[Vec<u8>]) {
    for chunk in chunks {
        let event = std::str::from_utf8(chunk).unwrap();
        assert!(
            event.ends_with("\n\n") && event.matches("\n\n").count() == 1,
            "{name}: one event per chunk: {event:?}"
        );
    }
}

async fn replay(setting: &str, row: &Row, found: Answer) {
    let (name, _, _, request_headers, compare) = row;
    let name = format!("{setting}/{name}");
    let file = |extension: &str| fs::read(fixtures("").join(format!("{name}.{extension}"))).ok();
    let (status, headers) = parse_head(std::str::from_utf8(&file("head").unwrap()).unwrap());
    assert_eq!(status, found.status, "{name}");
    assert_eq!(masked_headers(&headers, request_headers), masked_headers(&found.headers, request_headers), "{name}");
    assert_eq!(found.end, End::Complete, "{name}");
    let expected = String::from_utf8(file("body").unwrap()).unwrap();
    let compare = match *compare {
        // `chat-tools-auto` is an error on one server and an answer on the other.
        _ if status.starts_with("HTTP/1.1 4") => Compare::Bytes,
        // With a tool parser, the real server joins tokens that split a character in chat, too.
        Compare::Events if setting == "tools" => Compare::Runs,
        compare => compare,
    };
    compare_bodies(&name, compare, &expected, found.text());
    check_framing(&name, &found.chunks);
    if let Some(raw) = file("raw") {
        let (chunks, complete) = parse_chunks(&raw);
        assert!(complete);
        check_framing(&format!("the recording of {name}"), &chunks);
        let text = |chunks: &[Vec<u8>]| String::from_utf8(chunks.concat()).unwrap();
        compare_bodies(&name, compare, &text(&chunks), &text(&found.chunks));
        if compare == Compare::Events {
            assert_eq!(chunks.len(), found.chunks.len(), "{name}");
        }
    }
}

#[tokio::test]
async fn recordings_replay() {
    let mut replayed = BTreeSet::new();
    for setting in ["plain", "tools", "pressure"] {
        let instance = start(recorded_server(setting)).await.unwrap();
        for row in ROWS {
            let (name, method, path, headers, _) = row;
            if !fixtures(setting).join(format!("{name}.head")).exists() {
                continue;
            }
            let body = fs::read(fixtures(setting).join(format!("{name}.req"))).unwrap_or_default();
            replay(setting, row, exchange(instance.address(), method, path, headers, &body).await).await;
            replayed.insert(format!("{setting}/{name}"));
        }
        instance.stop().await;
    }
    for setting in ["plain", "tools", "pressure"] {
        for entry in fs::read_dir(fixtures(setting)).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{setting}/{}", path.file_stem().unwrap().to_str().unwrap());
            assert!(name == "plain/metrics-idle" || replayed.contains(&name), "no row replays {name}");
        }
    }
}

/// Lines of a page without values; labels of `cache_config_info` without theirs.
fn series(page: &str) -> BTreeSet<String> {
    page.lines()
        .map(|line| {
            if line.starts_with('#') {
                return line.to_owned();
            }
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            if !name.starts_with("vllm:cache_config_info") {
                return name.to_owned();
            }
            name.split(',').map(|label| label.split_once('=').unwrap().0).collect::<Vec<_>>().join(",")
        })
        .collect()
}

#[tokio::test]
async fn the_metrics_page_has_every_name_label_and_bucket() {
    let instance = start(recorded_server("plain")).await.unwrap();
    // The recorded server had been asked for its models once.
    exchange(instance.address(), "GET", "/v1/models", &[], b"").await;
    let found = exchange(instance.address(), "GET", "/metrics", &[], b"").await;
    let read =
        |extension: &str| fs::read_to_string(fixtures("plain").join(format!("metrics-idle.{extension}"))).unwrap();
    let (status, headers) = parse_head(&read("head"));
    assert_eq!(status, found.status);
    assert_eq!(masked_headers(&headers, &[]), masked_headers(&found.headers, &[]));
    let (expected, page) = (series(&read("body")), series(found.text()));
    assert_eq!(expected.difference(&page).collect::<Vec<_>>(), Vec::<&String>::new(), "missing");
    assert_eq!(page.difference(&expected).collect::<Vec<_>>(), Vec::<&String>::new(), "too many");
    assert_eq!(read("body").lines().count(), found.text().lines().count());
    instance.stop().await;
}
