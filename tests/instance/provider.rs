//! What a guarded server has before its API, and what a hosted provider does: keys, another path, limits, no metrics.

use std::sync::Arc;
use std::time::Duration;

use routebalance_core::fleet::{LatencyProfile, Limits};
use routebalance_instance::network::Network;
use routebalance_instance::{InstanceOptions, RunningInstance, Switches, start};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::http::{Answer, End, exchange, receive, send};
use crate::{CHAT, COMPLETIONS, MESSAGES, RESPONSES, recorded_server};

/// A chat of so many tokens, which is good at all generating APIs.
fn body(tokens: u32) -> Vec<u8> {
    let message = json!([{"role": "user", "content": "Why?"}]);
    let body = json!({"model": "tiny-a", "messages": message, "input": "Why?", "prompt": "Why?", "max_tokens": tokens,
        "max_output_tokens": tokens, "ignore_eos": true});
    body.to_string().into_bytes()
}

/// In memory, where time is the test's.
fn in_memory(options: InstanceOptions) -> InstanceOptions {
    InstanceOptions { network: Network::Memory(Arc::default()), ..options }
}

async fn ask(options: &InstanceOptions, instance: &RunningInstance, path: &str) -> Answer {
    let mut connection = options.network.connect(instance.address()).await.unwrap();
    send(&mut connection, "POST", path, &[], &body(1)).await;
    receive(&mut connection).await
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

#[tokio::test]
async fn a_key_opens_the_api_and_nothing_else_needs_one() {
    let options = InstanceOptions { api_keys: vec!["first".into(), "second".into()], ..recorded_server("plain") };
    let instance = start(options).await.unwrap();
    let good = Some("Bearer first");
    for (method, path, authorization, status) in [
        ("POST", CHAT, good, "200 OK"),
        ("POST", CHAT, Some("Bearer second"), "200 OK"),
        ("POST", CHAT, Some("bEARER first"), "200 OK"),
        ("POST", COMPLETIONS, good, "200 OK"),
        ("POST", RESPONSES, good, "200 OK"),
        ("POST", MESSAGES, good, "200 OK"),
        ("GET", "/v1/models", good, "200 OK"),
        ("GET", "/v1/nope", good, "404 Not Found"),
        ("POST", CHAT, None, "401 Unauthorized"),
        ("POST", CHAT, Some(""), "401 Unauthorized"),
        ("POST", CHAT, Some("first"), "401 Unauthorized"),
        ("POST", CHAT, Some("Bearer"), "401 Unauthorized"),
        ("POST", CHAT, Some("Bearer third"), "401 Unauthorized"),
        ("POST", CHAT, Some("Bearer First"), "401 Unauthorized"),
        ("POST", CHAT, Some("Bearer first second"), "401 Unauthorized"),
        ("POST", CHAT, Some("Bearer  first"), "401 Unauthorized"),
        ("POST", CHAT, Some("Bearer\tfirst"), "401 Unauthorized"),
        ("POST", CHAT, Some("Basic first"), "401 Unauthorized"),
        ("POST", CHAT, Some("Bearer f\u{fc}rst"), "401 Unauthorized"),
        ("POST", COMPLETIONS, None, "401 Unauthorized"),
        ("POST", RESPONSES, None, "401 Unauthorized"),
        ("POST", MESSAGES, None, "401 Unauthorized"),
        ("GET", "/v1/models", None, "401 Unauthorized"),
        ("GET", "/v1/nope", None, "401 Unauthorized"),
        ("GET", "/v1", None, "401 Unauthorized"),
        ("GET", "/v2/nope", None, "401 Unauthorized"),
        ("OPTIONS", CHAT, None, "405 Method Not Allowed"),
        ("GET", "/health", None, "200 OK"),
        ("GET", "/ping", None, "200 OK"),
        ("GET", "/load", None, "200 OK"),
        ("GET", "/version", None, "200 OK"),
        ("GET", "/metrics", None, "200 OK"),
        ("POST", "/tokenize", None, "200 OK"),
        ("GET", "/nope", None, "404 Not Found"),
    ] {
        let headers: Vec<_> = authorization.iter().map(|value| ("authorization", *value)).collect();
        let answer = exchange(instance.address(), method, path, &headers, &body(1)).await;
        let row = format!("{method} {path} {authorization:?}");
        assert_eq!(answer.status, format!("HTTP/1.1 {status}"), "{row}");
        let is_refused = answer.text() == r#"{"error":"Unauthorized"}"#;
        assert_eq!(is_refused, status.starts_with("401"), "{row}: {}", answer.text());
        // vLLM's keys are asked for before its handling of origins.
        assert_eq!(header(&answer, "vary"), (!is_refused).then_some("Origin"), "{row}");
    }
    let (first, second) = (["authorization", "Bearer second"], ["authorization", "Bearer first"]);
    let both = [(first[0], "Bearer third"), (second[0], second[1])];
    let answer = exchange(instance.address(), "POST", CHAT, &both, &body(1)).await;
    assert!(answer.status.contains("401"), "the first one counts: {}", answer.status);
    let tally = instance.tally();
    assert_eq!(tally.authorization(good), 6, "{tally:?}");
    assert_eq!(tally.authorization(Some("Bearer second")), 1, "{tally:?}");
    assert_eq!(tally.authorization(Some("Bearer third")), 2, "{tally:?}");
    assert_eq!((tally.path(CHAT), tally.path("/metrics"), tally.path("/gone")), (16, 1, 0), "{tally:?}");
    let page = exchange(instance.address(), "GET", "/metrics", &[], b"").await;
    let served = r#"http_requests_total{handler="/v1/chat/completions",method="POST",status="#;
    let lines: Vec<&str> = page.text().lines().filter(|line| line.starts_with(served)).collect();
    assert!(lines.len() == 1 && lines[0].ends_with(r#""2xx"} 3.0"#), "who is refused is not counted: {lines:?}");
    instance.stop().await;
}

#[tokio::test]
async fn a_refusal_has_the_id_of_its_request() {
    let switches = Switches { request_id_headers: true, ..Switches::default() };
    let options = InstanceOptions { api_keys: vec!["key".into()], switches, ..recorded_server("plain") };
    let instance = start(options).await.unwrap();
    let answer = exchange(instance.address(), "POST", CHAT, &[("x-request-id", "mine")], &body(1)).await;
    assert!(answer.status.contains("401"), "{}", answer.status);
    assert_eq!(header(&answer, "x-request-id"), Some("mine"));
    instance.stop().await;
}

#[tokio::test]
async fn a_key_that_no_client_can_send_is_refused() {
    for (key, sentence) in [
        ("", "an API key is empty: give one, or none to let everybody in"),
        ("a b", "an API key has a character that is not visible ASCII"),
        ("a\n", "an API key has a character that is not visible ASCII"),
        ("f\u{fc}r", "an API key has a character that is not visible ASCII"),
    ] {
        let options = InstanceOptions { api_keys: vec!["good".into(), key.into()], ..recorded_server("plain") };
        assert_eq!(start(options).await.unwrap_err().to_string(), sentence, "{key:?}");
    }
}

#[tokio::test]
async fn the_api_answers_below_its_base_path() {
    for (base_path, keys, rows) in [
        (
            "/api/paas/v4",
            vec![],
            vec![
                ("POST", "/api/paas/v4/chat/completions", "200"),
                ("POST", "/api/paas/v4/chat/completions?beta=true", "200"),
                ("GET", "/api/paas/v4/models", "200"),
                ("GET", "/api/paas/v4/chat/completions", "405"),
                ("GET", "/api/paas/v4/nope", "404"),
                ("GET", "/api/paas/v4", "404"),
                ("POST", "/api/paas/v4x/chat/completions", "404"),
                ("POST", CHAT, "404"),
                ("GET", "/v1/models", "404"),
                ("GET", "/health", "200"),
                ("GET", "/metrics", "200"),
            ],
        ),
        (
            "/api/paas/v4/",
            vec!["key".to_owned()],
            vec![
                ("POST", "/api/paas/v4/chat/completions", "401"),
                ("GET", "/api/paas/v4/nope", "401"),
                ("POST", CHAT, "404"),
                ("GET", "/health", "200"),
            ],
        ),
        ("/", vec![], vec![("POST", "/chat/completions", "200"), ("POST", CHAT, "404"), ("GET", "/health", "200")]),
    ] {
        let base_path = base_path.parse().unwrap();
        let instance = start(InstanceOptions { base_path, api_keys: keys, ..recorded_server("plain") }).await.unwrap();
        for (method, path, status) in rows {
            let answer = exchange(instance.address(), method, path, &[], &body(1)).await;
            assert!(answer.status.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path}: {}", answer.status);
        }
        instance.stop().await;
    }
}

#[tokio::test]
async fn beyond_the_limit_a_client_is_told_when_to_come_again() {
    let options =
        InstanceOptions { api_keys: vec!["key".into()], rate_limit: "3/3600".parse().ok(), ..recorded_server("plain") };
    let instance = start(options).await.unwrap();
    let key = [("authorization", "Bearer key")];
    for (method, path, headers, status) in [
        // Neither is work.
        ("POST", CHAT, &[][..], "401"),
        ("GET", "/v1/models", &key[..], "200"),
        ("POST", CHAT, &key[..], "200"),
        ("POST", RESPONSES, &key[..], "200"),
        ("POST", "/v1/messages/count_tokens", &key[..], "200"),
        ("POST", CHAT, &key[..], "429"),
        ("POST", MESSAGES, &key[..], "429"),
        ("POST", CHAT, &[][..], "401"),
        ("GET", "/v1/models", &key[..], "200"),
        ("GET", "/health", &[][..], "200"),
        ("POST", "/tokenize", &[][..], "200"),
    ] {
        let answer = exchange(instance.address(), method, path, headers, &body(1)).await;
        assert!(answer.status.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path}: {}", answer.status);
        assert_eq!(header(&answer, "retry-after").is_some(), status == "429", "{method} {path}");
        if status != "429" {
            continue;
        }
        let seconds: u64 = header(&answer, "retry-after").unwrap().parse().unwrap();
        assert!((3500..=3600).contains(&seconds), "{seconds}");
        let body: Value = serde_json::from_str(answer.text()).unwrap();
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.starts_with("Rate limit reached for tiny-a on requests per 3600s: Limit 3, Used 3,"), "{body}");
        let expected = if path == MESSAGES {
            json!({"type": "error", "error": {"type": "rate_limit_error", "message": message}})
        } else {
            let error = json!({"message": message, "type": "requests", "param": null, "code": "rate_limit_exceeded"});
            json!({ "error": error })
        };
        assert_eq!(body, expected);
    }
    assert_eq!(instance.gauges().waiting, 0);
    instance.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_as_long_as_it_was_told_is_served() {
    // A limit; after how many milliseconds each request comes, and what it is told: nothing, or to wait.
    for (limit, rows) in [
        ("2/1", vec![(0, None), (0, None), (0, Some(1)), (400, Some(1)), (1000, None), (0, None), (0, Some(1))]),
        // The window begins with the first request, whenever that comes.
        ("1/20.5", vec![(7000, None), (0, Some(21)), (500, Some(20)), (19_000, Some(1)), (1000, None)]),
        ("1/0.25", vec![(0, None), (100, Some(1)), (150, None)]),
        ("0/60", vec![(0, Some(60)), (30_500, Some(30)), (30_000, Some(60))]),
    ] {
        // An engine that takes no time, so that all there is are the test's waits.
        let mut options = in_memory(recorded_server("plain"));
        options.pool.kind = routebalance_core::fleet::ModelKind::Embed;
        options.rate_limit = limit.parse().ok();
        options.time_scale = 1e6;
        let instance = start(options.clone()).await.unwrap();
        for (number, (after_ms, told)) in rows.into_iter().enumerate() {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            let answer = ask(&options, &instance, "/v1/embeddings").await;
            let retry_after = header(&answer, "retry-after").map(|seconds| seconds.parse().unwrap());
            assert_eq!(retry_after, told, "{limit}, request {number}: {}", answer.text());
            let status = if told.is_some() { "429 Too Many Requests" } else { "200 OK" };
            assert_eq!(answer.status, format!("HTTP/1.1 {status}"), "{limit}, request {number}");
        }
        instance.stop().await;
    }
}

#[tokio::test]
async fn who_asks_a_provider_for_its_metrics_is_seen() {
    let instance = start(InstanceOptions { has_metrics: false, ..recorded_server("plain") }).await.unwrap();
    assert!(exchange(instance.address(), "POST", CHAT, &[], &body(1)).await.status.contains("200"));
    assert_eq!(instance.tally().path("/metrics"), 0);
    for (asked, method) in [(1, "GET"), (2, "POST"), (3, "GET")] {
        let answer = exchange(instance.address(), method, "/metrics", &[], b"").await;
        assert_eq!((answer.status.as_str(), answer.text()), ("HTTP/1.1 404 Not Found", r#"{"detail":"Not Found"}"#));
        assert_eq!(instance.tally().path("/metrics"), asked);
    }
    assert!(exchange(instance.address(), "GET", "/health", &[], b"").await.status.contains("200"));
    instance.stop().await;
}

#[tokio::test]
async fn what_a_client_sent_is_kept_as_it_came() {
    let instance = start(recorded_server("plain")).await.unwrap();
    let sent = [("Authorization", "Bearer key"), ("X-One", "1"), ("x-one", "2"), ("content-type", "application/json")];
    exchange(instance.address(), "POST", &format!("{CHAT}?a=b"), &sent, &body(1)).await;
    let requests = instance.requests();
    let request = &requests[0];
    let mut names: Vec<&str> = request.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["authorization", "content-length", "content-type", "host", "x-one", "x-one"]);
    assert_eq!((request.header("host"), request.header("authorization")), (Some("instance"), Some("Bearer key")));
    assert_eq!((request.path.as_str(), &request.tls, request.header("x-one")), (CHAT, &None, Some("1")));
    instance.forget_requests();
    assert!(instance.requests().is_empty());
    assert_eq!((instance.tally().path(CHAT), instance.tally().others), (1, 0), "the tally is from the start");
    instance.stop().await;
}

/// A provider has no queue that a client could see: what one request costs, hundreds at once cost each.
#[tokio::test(start_paused = true)]
async fn a_profile_without_growth_is_as_fast_for_many_as_for_one() {
    let mut options = in_memory(recorded_server("plain"));
    options.pool.profile = LatencyProfile {
        tpot_ms: 10.0,
        tpot_growth_per_running: 0.0,
        tpot_growth_per_thousand_context_tokens: 0.0,
        prefill_tokens_per_second: 1e9,
        overhead_ms: 200.0,
    };
    options.pool.limits = Limits { max_running: 2000, kv_tokens: 1 << 40, max_model_len: 131_072 };
    let instance = start(options.clone()).await.unwrap();
    for at_once in [1, 500] {
        let began = Instant::now();
        let mut connections = Vec::new();
        for _ in 0..at_once {
            let mut connection = options.network.connect(instance.address()).await.unwrap();
            send(&mut connection, "POST", CHAT, &[], &body(50)).await;
            connections.push(connection);
        }
        for connection in &mut connections {
            assert_eq!(receive(connection).await.end, End::Complete);
        }
        let took = began.elapsed();
        // 200 ms and 50 tokens of 10 ms; who arrives during a step waits for its end.
        assert!((700..=715).contains(&took.as_millis()), "{at_once} at once: {took:?}");
    }
    instance.stop().await;
}
