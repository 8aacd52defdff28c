//! Timing, aborts, load and faults of the emulated instance.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use routebalance_core::fleet::ModelKind;
use routebalance_instance::prompts::PromptSet;
use routebalance_instance::{Fault, InstanceOptions, RunningInstance, start};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::http::{Answer, End, connect, exchange, receive, send};
use crate::{CHAT, COMPLETIONS, MESSAGES, RESPONSES, recorded_server};

/// 10 ms per token, 20 ms until the prompt is read.
fn slow() -> InstanceOptions {
    let mut options = recorded_server("plain");
    options.pool.profile.tpot_ms = 10.0;
    options.pool.profile.overhead_ms = 20.0;
    options
}

fn chat(tokens: u32, stream: bool) -> Vec<u8> {
    let body = json!({"model": "tiny-a", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": tokens,
        "ignore_eos": true, "stream": stream});
    body.to_string().into_bytes()
}

async fn ask(instance: &RunningInstance, body: &[u8]) -> Answer {
    exchange(instance.address(), "POST", CHAT, &[], body).await
}

async fn metric(address: SocketAddr, series: &str) -> f64 {
    let page = exchange(address, "GET", "/metrics", &[], b"").await;
    let line = page.text().lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("no {series}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "within 5 s: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_lone_stream_is_on_time() {
    for (time_scale, expected_ttft, expected_e2e) in [(1.0, 30.0, 520.0), (2.0, 15.0, 260.0)] {
        let instance = start(InstanceOptions { time_scale, ..slow() }).await.unwrap();
        // The smallest of three: the machine may be busy with other tests.
        let mut best = (f64::MAX, f64::MAX);
        for _ in 0..3 {
            let mut tcp = connect(instance.address()).await;
            let sent = Instant::now();
            send(&mut tcp, "POST", CHAT, &[], &chat(50, true)).await;
            let mut seen = Vec::new();
            let (mut ttft, mut buffer) = (None, [0; 65536]);
            while !seen.ends_with(b"0\r\n\r\n") {
                let n = tcp.read(&mut buffer).await.unwrap();
                seen.extend_from_slice(&buffer[..n]);
                if ttft.is_none() && seen.windows(4).any(|four| four == b"data") {
                    ttft = Some(sent.elapsed());
                }
            }
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            best = (best.0.min(ms(ttft.unwrap())), best.1.min(ms(sent.elapsed())));
        }
        for (what, found, expected) in [("ttft", best.0, expected_ttft), ("e2e", best.1, expected_e2e)] {
            println!("time scale {time_scale}: {what} {found:.1} ms, the engine's {expected} ms");
            assert!((expected - 1.0..expected + 8.0).contains(&found), "{what} {found} ms instead of {expected} ms");
        }
        instance.stop().await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_aborts_its_work() {
    let instance = start(slow()).await.unwrap();
    for stream in [true, false] {
        let mut tcp = connect(instance.address()).await;
        send(&mut tcp, "POST", CHAT, &[], &chat(1500, stream)).await;
        until("one request runs", || instance.gauges().running == 1).await;
        assert!(metric(instance.address(), "vllm:kv_cache_usage_perc{").await > 0.0);
        assert_eq!(metric(instance.address(), "vllm:num_requests_running{").await, 1.0);
        drop(tcp);
        until("it is gone", || instance.gauges().running == 0).await;
    }
    instance.stop().await;
}

#[tokio::test]
async fn load_and_counters_tell_what_happened() {
    let mut options = slow();
    options.pool.limits.max_running = 2;
    options.max_queued = Some(3);
    let instance = start(options).await.unwrap();
    let address = instance.address();
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut tcp = connect(address).await;
        send(&mut tcp, "POST", CHAT, &[], &chat(40, true)).await;
        streams.push(tcp);
    }
    until("two run, one waits", || (instance.gauges().running, instance.gauges().waiting) == (2, 1)).await;
    assert_eq!(metric(address, "vllm:num_requests_waiting{").await, 1.0);
    assert_eq!(exchange(address, "GET", "/load", &[], b"").await.text(), r#"{"server_load":3}"#);
    assert!(ask(&instance, &chat(1, false)).await.status.contains("503"));
    for tcp in &mut streams {
        assert_eq!(receive(tcp).await.end, End::Complete);
    }
    assert_eq!((instance.gauges().running, instance.gauges().waiting), (0, 0));
    for (series, value) in [
        ("vllm:generation_tokens_total{", 120.0),
        ("vllm:request_success_total{engine=\"0\",finished_reason=\"length\"", 3.0),
        ("vllm:admission_rejections_total{model_name=\"tiny-a\",reason=\"max_num_queued_reqs\"}", 1.0),
        ("vllm:time_to_first_token_seconds_count{", 3.0),
        ("vllm:inter_token_latency_seconds_count{", 117.0),
        ("vllm:e2e_request_latency_seconds_bucket{engine=\"0\",le=\"+Inf\"", 3.0),
        ("http_requests_total{handler=\"/v1/chat/completions\",method=\"POST\",status=\"5xx\"}", 1.0),
    ] {
        assert_eq!(metric(address, series).await, value, "{series}");
    }
    instance.stop().await;
}

#[tokio::test]
async fn answers_have_recorded_lengths_and_aliases_are_served() {
    let row = r#"{"id":"a","dataset":"d","prompt":"Why?","q":{"tiny":0.5},"len":{"tiny":7}}"#;
    let answers = Some(Arc::new(PromptSet::from_jsonl(row).unwrap()));
    let options = InstanceOptions { answers, aliases: vec!["other".into()], ..recorded_server("plain") };
    let instance = start(options).await.unwrap();
    for (tokens, finish, expected) in [(100, "stop", 7), (5, "length", 5)] {
        let body = json!({"model": "other", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": tokens});
        let answer: Value = serde_json::from_slice(&ask(&instance, body.to_string().as_bytes()).await.body).unwrap();
        assert_eq!(answer["model"], "tiny-a");
        assert_eq!(answer["choices"][0]["finish_reason"], finish);
        assert_eq!(answer["usage"]["completion_tokens"], expected);
    }
    let log = instance.requests();
    assert_eq!(log.len(), 2);
    assert_eq!((log[0].path.as_str(), log[0].model.as_deref()), (CHAT, Some("other")));
    assert_eq!(log[0].header("content-type"), Some("application/json"));
    instance.stop().await;
}

#[tokio::test]
async fn responses_are_kept_and_continued() {
    let instance = start(recorded_server("plain")).await.unwrap();
    let create = |body: Value| {
        let address = instance.address();
        async move {
            let answer = exchange(address, "POST", RESPONSES, &[], body.to_string().as_bytes()).await;
            serde_json::from_slice::<Value>(&answer.body).unwrap()
        }
    };
    let first = create(json!({"input": "Why?", "max_output_tokens": 5})).await;
    let path = format!("{RESPONSES}/{}", first["id"].as_str().unwrap());
    let kept = exchange(instance.address(), "GET", &path, &[], b"").await;
    assert_eq!(serde_json::from_slice::<Value>(&kept.body).unwrap(), first);
    let second = create(json!({"input": "Why?", "max_output_tokens": 5, "previous_response_id": first["id"]})).await;
    assert_eq!(second["previous_response_id"], first["id"]);
    assert!(second["usage"]["input_tokens"].as_u64() > first["usage"]["input_tokens"].as_u64());
    let gone = exchange(instance.address(), "GET", &format!("{RESPONSES}/resp_0"), &[], b"").await;
    assert!(gone.status.contains("404"));
    instance.stop().await;
}

#[tokio::test]
async fn prompts_of_completions_come_in_all_forms() {
    let instance = start(recorded_server("plain")).await.unwrap();
    for (prompt, prompt_tokens, choices) in [
        (json!("12345678"), 2, 1),
        (json!([1, 2, 3]), 3, 1),
        (json!(["1234", "1234"]), 2, 2),
        (json!([[1, 2], [3]]), 3, 2),
    ] {
        let body = json!({"prompt": prompt, "max_tokens": 2}).to_string();
        let answer = exchange(instance.address(), "POST", COMPLETIONS, &[], body.as_bytes()).await;
        let answer: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(answer["usage"]["prompt_tokens"], prompt_tokens, "{prompt}");
        assert_eq!(answer["choices"].as_array().unwrap().len(), choices, "{prompt}");
    }
    instance.stop().await;
}

#[tokio::test]
async fn an_embedding_instance_embeds_and_nothing_else() {
    let mut options = recorded_server("plain");
    options.pool.kind = ModelKind::Embed;
    let instance = start(options).await.unwrap();
    let body = json!({"model": "tiny-a", "input": ["a", "b"], "dimensions": 8}).to_string();
    let answer = exchange(instance.address(), "POST", "/v1/embeddings", &[], body.as_bytes()).await;
    let answer: Value = serde_json::from_slice(&answer.body).unwrap();
    let vectors: Vec<Vec<f64>> = answer["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| serde_json::from_value(d["embedding"].clone()).unwrap())
        .collect();
    assert_ne!(vectors[0], vectors[1]);
    for vector in vectors {
        assert_eq!(vector.len(), 8);
        assert!((vector.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-3);
    }
    assert_eq!(ask(&instance, &chat(1, false)).await.text(), r#"{"detail":"Not Found"}"#);
    instance.stop().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_five_seconds() {
    let instance = start(recorded_server("plain")).await.unwrap();
    let mut tcp = connect(instance.address()).await;
    send(&mut tcp, "GET", "/health", &[], b"").await;
    assert_eq!(receive(&mut tcp).await.end, End::Complete);
    let idle = Instant::now();
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(7), tcp.read_to_end(&mut rest)).await.expect("closed").unwrap();
    assert_eq!(String::from_utf8_lossy(&rest), "");
    assert!(idle.elapsed() > Duration::from_millis(4900), "{:?}", idle.elapsed());
    instance.stop().await;
}

#[tokio::test]
async fn a_refusing_instance_breaks_off_and_comes_back() {
    let instance = start(slow()).await.unwrap();
    let mut tcp = connect(instance.address()).await;
    send(&mut tcp, "POST", CHAT, &[], &chat(1500, true)).await;
    until("it runs", || instance.gauges().running == 1).await;
    instance.set_fault(Fault::Refuse).await.unwrap();
    assert_ne!(receive(&mut tcp).await.end, End::Complete);
    assert!(TcpStream::connect(instance.address()).await.is_err());
    until("its work is gone", || instance.gauges().running == 0).await;
    instance.set_fault(Fault::None).await.unwrap();
    assert!(ask(&instance, &chat(1, false)).await.status.contains("200"));
    let address = instance.address();
    instance.stop().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_stalled_instance_is_silent_and_a_hung_one_only_idle() {
    let instance = start(slow()).await.unwrap();
    for (fault, health) in [(Fault::Stall, false), (Fault::Hang, true)] {
        let mut running = connect(instance.address()).await;
        send(&mut running, "POST", CHAT, &[], &chat(20, true)).await;
        until("it runs", || instance.gauges().running == 1).await;
        instance.set_fault(fault).await.unwrap();
        let mut asked = connect(instance.address()).await;
        send(&mut asked, "POST", CHAT, &[], &chat(1, false)).await;
        let answered = |path: &'static str| {
            let get = exchange(instance.address(), "GET", path, &[], b"");
            async move { tokio::time::timeout(Duration::from_millis(400), get).await.is_ok() }
        };
        assert_eq!(answered("/health").await, health, "{fault:?}");
        assert_eq!(answered("/metrics").await, health, "{fault:?}");
        assert_eq!(instance.gauges().running, 1, "nothing moves");
        let mut byte = [0];
        assert!(tokio::time::timeout(Duration::from_millis(100), asked.read(&mut byte)).await.is_err());
        instance.set_fault(Fault::None).await.unwrap();
        assert_eq!(receive(&mut running).await.end, End::Complete, "it goes on where it stood");
    }
    instance.stop().await;
}

#[tokio::test]
async fn a_dead_engine_is_500_or_an_error_event() {
    let instance = start(recorded_server("plain")).await.unwrap();
    let dead = r#"{"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the root cause.","type":"InternalServerError","param":null,"code":500}}"#;
    instance.set_fault(Fault::Error500).await.unwrap();
    for stream in [true, false] {
        let answer = ask(&instance, &chat(9, stream)).await;
        assert_eq!((answer.status.as_str(), answer.text()), ("HTTP/1.1 500 Internal Server Error", dead));
    }
    instance.set_fault(Fault::StreamError { after_events: 4 }).await.unwrap();
    assert_eq!(ask(&instance, &chat(9, false)).await.text(), dead);
    let answer = ask(&instance, &chat(9, true)).await;
    assert_eq!((answer.status.as_str(), answer.end, answer.chunks.len()), ("HTTP/1.1 200 OK", End::Complete, 6));
    // As recorded when the engine was killed: Python's spacing.
    assert!(answer.text().ends_with(concat!(
        r#"data: {"error": {"message": "EngineCore encountered an issue. See stack trace (above) for the root cause.", "#,
        r#""type": "InternalServerError", "param": null, "code": 500}}"#,
        "\n\ndata: [DONE]\n\n"
    )));
    let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 9, "stream": true}).to_string();
    let answer = exchange(instance.address(), "POST", MESSAGES, &[], body.as_bytes()).await;
    assert!(answer.text().contains("event: error\ndata: {\"type\":\"error\""));
    let body = json!({"input": "x", "max_output_tokens": 9, "stream": true}).to_string();
    let answer = exchange(instance.address(), "POST", RESPONSES, &[], body.as_bytes()).await;
    assert_ne!(answer.end, End::Complete);
    until("the work is gone", || instance.gauges().running == 0).await;
    instance.stop().await;
}

#[tokio::test]
async fn a_reset_cuts_a_stream_inside_a_chunk() {
    let instance = start(slow()).await.unwrap();
    instance.set_fault(Fault::Reset { after_events: 4 }).await.unwrap();
    let answer = ask(&instance, &chat(40, true)).await;
    assert_eq!((answer.status.as_str(), answer.end, answer.chunks.len()), ("HTTP/1.1 200 OK", End::Reset, 4));
    let answer = ask(&instance, &chat(2, false)).await;
    assert_eq!(answer.end, End::Reset);
    until("the work is gone", || instance.gauges().running == 0).await;
    instance.stop().await;
}

#[tokio::test]
async fn metrics_fail_in_their_ways() {
    let instance = start(slow()).await.unwrap();
    let page = || exchange(instance.address(), "GET", "/metrics", &[], b"");
    instance.set_fault(Fault::MetricsStale).await.unwrap();
    let before = page().await.body;
    assert!(ask(&instance, &chat(1, false)).await.status.contains("200"));
    assert_eq!(page().await.body, before);
    instance.set_fault(Fault::MetricsBroken).await.unwrap();
    assert!(page().await.status.contains("200"));
    assert!(!page().await.text().contains("vllm:num_requests_running{engine"));
    instance.set_fault(Fault::MetricsAbsent).await.unwrap();
    assert!(page().await.status.contains("404"));
    instance.set_fault(Fault::MetricsSlow { delay: Duration::from_millis(300) }).await.unwrap();
    let asked = Instant::now();
    assert!(page().await.status.contains("200"));
    assert!(asked.elapsed() >= Duration::from_millis(300));
    instance.stop().await;
}
