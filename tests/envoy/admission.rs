//! What requests insist on, and what becomes of those that cannot have it.

use serde_json::{Value, json};

use crate::harness::{Gateway, Reply, Request, eventually};
use crate::scenarios::{Shape, has_error_shape};
use crate::setups::SHEDDING_MODEL;
use crate::state::log_lines_of;

const CHAT: &str = "/v1/chat/completions";

fn chat(route: &str, fields: &Value) -> Request {
    let mut body =
        json!({"model": "auto", "messages": [{"role": "user", "content": "Write a long story about a dog."}]});
    for (name, value) in fields.as_object().expect("fields") {
        body[name] = value.clone();
    }
    Request::post(&format!("{route}{CHAT}"), body.to_string())
}

fn with_headers(request: Request, headers: &[(&str, &str)]) -> Request {
    headers.iter().fold(request, |request, (name, value)| request.header(name, value))
}

fn pool(gateway: &Gateway, reply: &Reply) -> String {
    gateway.pool_of(reply.arrival().0).name.clone()
}

async fn decision(gateway: &Gateway, id: &str) -> Value {
    let lines = log_lines_of(gateway, id).await;
    lines.iter().find(|line| line["request_id"] == id).expect("its line")["decision"].clone()
}

// === headers ===

/// The route /quality trusts them. 100 tokens of the dear models cost more than this budget, those of the cheap ones less.
pub(crate) async fn headers_count_where_trusted(gateway: &Gateway) {
    let dear = ["qwen2.5-32b", "qwen2.5-72b"];
    let (fields, budget) = (json!({"max_tokens": 100}), [("x-routebalance-budget-usd", "0.00001")]);
    let free = gateway.send(&chat("/quality", &fields)).await.ok();
    assert!(dear.contains(&pool(gateway, &free).as_str()), "{free:?}");
    let bound =
        gateway.send(&with_headers(chat("/quality", &fields), &budget).header("x-request-id", "bound")).await.ok();
    assert!(!dear.contains(&pool(gateway, &bound).as_str()), "{bound:?}");
    assert_eq!(decision(gateway, "bound").await["relaxed"], json!([]));
    let in_time = [("x-routebalance-ttft-slo-ms", "60000"), ("x-routebalance-mode", "strict")];
    gateway.send(&with_headers(chat("/quality", &fields), &in_time)).await.ok();
}

/// The default route does not.
pub(crate) async fn headers_are_ignored_where_untrusted(gateway: &Gateway) {
    let fields = json!({"max_tokens": 100});
    for headers in [
        [("x-routebalance-budget-tokens", "3"), ("x-routebalance-mode", "strict")],
        [("x-routebalance-ttft-slo-ms", "0.001"), ("x-routebalance-mode", "strict")],
        [("x-routebalance-quality-min", "nonsense"), ("x-llm-d-slo-ttft-ms", "nonsense")],
    ] {
        let request = with_headers(chat("", &fields), &headers);
        let reply = gateway.send(&request).await.ok();
        let arrived: Value = serde_json::from_slice(&reply.arrival().1.body).unwrap();
        assert_eq!(arrived["max_tokens"], 100, "{headers:?}");
    }
}

pub(crate) async fn headers_that_are_none(gateway: &Gateway) {
    for (name, value) in [
        ("x-routebalance-ttft-slo-ms", "soon"),
        ("x-llm-d-slo-tpot-ms", "-1"),
        ("x-routebalance-budget-tokens", "1.5"),
        ("x-routebalance-relax-order", "ttft,speed"),
    ] {
        let reply = gateway.send(&chat("/quality", &json!({})).header(name, value)).await;
        has_error_shape(&reply, 400, Shape::OpenAi, name);
        assert_eq!(reply.header("x-routebalance-refused-reason"), Some("header"));
        assert!(reply.arrivals.is_empty(), "{reply:?}");
    }
}

pub(crate) async fn own_headers_end_here(gateway: &Gateway) {
    let headers = [("x-routebalance-mode", "relaxed"), ("x-llm-d-slo-ttft-ms", "5000")];
    let reply = gateway.send(&with_headers(chat("/quality", &json!({})), &headers)).await.ok();
    let received = &reply.arrival().1;
    assert_eq!(received.header("x-routebalance-mode"), None);
    assert_eq!(received.header("x-llm-d-slo-ttft-ms"), Some("5000"), "others may read it, too");
}

// === refusals ===

pub(crate) async fn strict_is_refused(gateway: &Gateway) {
    let strict = ("x-routebalance-mode", "strict");
    let messages = |body: &str| Request::post("/quality/v1/messages", body);
    let message = r#"{"model":"auto","max_tokens":9,"messages":[{"role":"user","content":"Hi"}]}"#;
    let soon = ("x-routebalance-ttft-slo-ms", "0.01");
    let before = gateway.stat("refused_for.ttft").await;
    for (request, shape, reason, part) in [
        (with_headers(chat("/quality", &json!({})), &[strict, soon]), Shape::OpenAi, "ttft", "0.01 ms"),
        (with_headers(chat("/quality", &json!({"stream": true})), &[strict, soon]), Shape::OpenAi, "ttft", "0.01 ms"),
        (with_headers(messages(message), &[strict, soon]), Shape::Anthropic, "ttft", "first token"),
        (
            with_headers(chat("/quality", &json!({})), &[strict, ("x-llm-d-slo-tpot-ms", "0.01")]),
            Shape::OpenAi,
            "tpot",
            "every 0.01 ms",
        ),
        (
            with_headers(chat("/quality", &json!({})), &[strict, ("x-routebalance-budget-usd", "0")]),
            Shape::OpenAi,
            "budget",
            "budget",
        ),
        // By the policy alone.
        (chat("/cost", &json!({})), Shape::OpenAi, "quality", "0.999"),
    ] {
        let reply = gateway.send(&request).await;
        has_error_shape(&reply, 429, shape, part);
        assert_eq!(reply.header("x-routebalance-refused-reason"), Some(reason), "{reply:?}");
        let seconds: u64 = reply.header("retry-after").and_then(|s| s.parse().ok()).expect("seconds");
        assert!((1..=60).contains(&seconds), "{reply:?}");
        assert!(reply.arrivals.is_empty(), "{reply:?}");
    }
    assert_eq!(gateway.stat("refused_for.ttft").await, before + 3);
}

/// Constraints give way in the request's order, and the log says which.
pub(crate) async fn relaxed_in_order(gateway: &Gateway) {
    let impossible = [("x-routebalance-ttft-slo-ms", "0.01"), ("x-routebalance-quality-min", "1")];
    type Row = (&'static str, &'static [(&'static str, &'static str)], Value);
    let rows: [Row; 3] = [
        ("tiered", &[], json!(["ttft", "quality"])),
        ("tiered in another order", &[("x-routebalance-relax-order", "quality,ttft")], json!(["quality", "ttft"])),
        (
            "one is enough",
            &[("x-routebalance-relax-order", "quality"), ("x-routebalance-ttft-slo-ms", "60000")],
            json!(["quality"]),
        ),
    ];
    for (id, headers, relaxed) in rows {
        let named = |(name, _): &&(&str, &str)| !headers.iter().any(|(other, _)| other == name);
        let kept: Vec<(&str, &str)> = impossible.iter().filter(named).chain(headers).copied().collect();
        gateway.send(&with_headers(chat("/quality", &json!({})), &kept).header("x-request-id", id)).await.ok();
        assert_eq!(decision(gateway, id).await["relaxed"], relaxed, "{id}");
    }
}

// === budgets ===

/// The body that arrives is the one that was sent but for the model and the limit, which stands there once.
pub(crate) async fn budgets_cap_the_answer(gateway: &Gateway) {
    let long = "word ".repeat(30_000);
    let messages = r#""messages":[{"role":"user","content":"Write a long story."}]"#;
    let rows: Vec<(&str, String, &str, u64)> = vec![
        (CHAT, format!(r#"{{"model":"auto",{messages}}}"#), "max_tokens", 9),
        (CHAT, format!(r#"{{{messages}}}"#), "max_tokens", 9),
        (CHAT, format!(r#"{{"max_tokens":500,"model":"auto",{messages}}}"#), "max_tokens", 9),
        (CHAT, format!(r#"{{"model":"auto",{messages},"max_tokens":500}}"#), "max_tokens", 9),
        (CHAT, format!(r#"{{{messages},"max_tokens":500,"model":"auto","n":1}}"#), "max_tokens", 9),
        (CHAT, format!(r#"{{"model":"auto",{messages},"max_completion_tokens":500}}"#), "max_completion_tokens", 9),
        (CHAT, format!(r#"{{"model":"auto",{messages},"max_tokens":4}}"#), "max_tokens", 4),
        (
            "/v1/completions",
            format!(r#"{{"model":"auto","prompt":"Write.","user":"{long}","max_tokens":500}}"#),
            "max_tokens",
            9,
        ),
        ("/v1/responses", r#"{"model":"auto","input":"Write a long story."}"#.to_owned(), "max_output_tokens", 9),
        ("/v1/messages", format!(r#"{{"model":"auto","max_tokens":500,{messages}}}"#), "max_tokens", 9),
    ];
    for (path, body, field, expected) in rows {
        for chunk in [None, Some(1_000)] {
            let request = Request::post(&format!("/quality{path}"), body.clone());
            let request = Request { chunk, ..request }.header("x-routebalance-budget-tokens", "9");
            let reply = gateway.send(&request).await.ok();
            let text = String::from_utf8_lossy(&reply.arrival().1.body).into_owned();
            let mut arrived: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text}"));
            let mut sent: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(arrived[field], expected, "{text}");
            assert_eq!(text.matches(&format!("\"{field}\"")).count(), 1, "{text}");
            for json in [&mut arrived, &mut sent] {
                let fields = json.as_object_mut().unwrap();
                fields.retain(|name, _| name != "model" && name != field);
            }
            assert_eq!(arrived, sent);
            let usage = &reply.json()["usage"];
            let tokens = usage["completion_tokens"].as_u64().or_else(|| usage["output_tokens"].as_u64());
            assert!(tokens.is_some_and(|tokens| tokens <= expected), "{usage}");
        }
    }
}

pub(crate) async fn budgets_are_used_up(gateway: &Gateway) {
    const FLAG: &str = "x-routebalance-budget-exhausted";
    let fields = json!({"max_tokens": 50});
    type Row = (&'static str, (&'static str, &'static str), Option<&'static str>, bool);
    let rows: [Row; 3] = [
        ("the prompt alone", ("x-routebalance-budget-usd", "0.000000001"), Some("true"), true),
        ("the answer is cut", ("x-routebalance-budget-tokens", "5"), None, true),
        ("enough", ("x-routebalance-budget-usd", "1"), None, false),
    ];
    for (id, (name, value), flag, exhausted) in rows {
        let request = chat("/quality", &fields).header(name, value).header("x-request-id", id);
        let reply = gateway.send(&request).await.ok();
        assert_eq!(reply.header(FLAG), flag, "{id}: {reply:?}");
        let arrived: Value = serde_json::from_slice(&reply.arrival().1.body).unwrap();
        let decision = decision(gateway, id).await;
        assert_eq!(decision["budget_exhausted"], exhausted, "{id}: {decision}");
        match id {
            "the prompt alone" => {
                assert_eq!((&arrived["max_tokens"], &decision["relaxed"]), (&json!(1), &json!(["budget"])));
                assert_eq!((&decision["budget_usd"], &decision["max_tokens"]), (&json!(1e-9), &json!(1)));
            }
            "the answer is cut" => assert_eq!(arrived["max_tokens"], 5),
            _ => assert_eq!((&arrived["max_tokens"], &decision["max_tokens"]), (&json!(50), &Value::Null)),
        }
    }
}

// === saturation ===

/// Both instances of a model have a queue: the route /latency sheds, and the other models serve it.
pub(crate) async fn saturated_instances_shed(gateway: &Gateway) {
    let instances = gateway.pool(SHEDDING_MODEL.0).instances.clone();
    let shedding = || chat("/latency", &json!({"model": SHEDDING_MODEL.1, "max_tokens": 4}));
    gateway.send(&shedding()).await.ok();
    let mut streams = Vec::new();
    // Workers that decide in the same instant do not see each other's request: so many make a queue however unevenly they fall.
    for _ in 0..instances.len() * 6 {
        let mut tcp = gateway.connect().await;
        Request::long_stream(SHEDDING_MODEL.1).write(&mut tcp).await;
        streams.push(tcp);
    }
    let waiting = async || -> Vec<usize> { instances.iter().map(|i| gateway.instance(*i).gauges().waiting).collect() };
    eventually("a queue at each instance", waiting, |waiting| waiting.iter().all(|waiting| *waiting > 0)).await;
    gateway.scrapes("ok", 40).await;
    let reply = gateway.send(&shedding()).await;
    has_error_shape(&reply, 429, Shape::OpenAi, "saturated");
    assert_eq!(reply.header("x-routebalance-refused-reason"), Some("saturated"));
    assert!(
        reply.header("retry-after").is_some_and(|seconds| seconds.parse::<u64>().is_ok_and(|s| s >= 1)),
        "{reply:?}"
    );
    assert!(reply.arrivals.is_empty(), "{reply:?}");
    assert!(gateway.stat("refused_for.saturated").await >= 1);
    let elsewhere = gateway.send(&chat("/latency", &json!({"max_tokens": 4}))).await.ok();
    assert_ne!(pool(gateway, &elsewhere), SHEDDING_MODEL.0);
}

/// What the filter does not read passes on a route without limits, and not on one whose policy has some.
pub(crate) async fn no_way_round(gateway: &Gateway) {
    let chat = Request::chat("Qwen2.5-7B-Instruct");
    let request_at = |path: &str| Request { path: path.to_owned(), ..chat.clone() };
    let websocket = |path: &str| {
        Request::get(path)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
    };
    let rows = [
        (request_at("/cost/v1%2Fchat/completions"), 403),
        (request_at("/cost/v1/chat//completions"), 403),
        (request_at("/cost/V1/Chat/Completions"), 403),
        (request_at("/cost/invocations"), 403),
        (request_at("/cost/v1/audio/speech"), 403),
        (websocket("/cost/v1/realtime"), 403),
        (request_at("/cost/v1/chat/completions").header("content-encoding", "x-ours"), 415),
        (request_at("/cost/v1/chat/completions").header("content-encoding", "deflate"), 415),
        (request_at("/cost/v1/chat/completions").header("content-encoding", "br, gzip"), 415),
    ];
    for (request, status) in rows {
        let reply = gateway.send(&request).await;
        has_error_shape(&reply, status, Shape::OpenAi, "");
        assert!(reply.arrivals.is_empty(), "{}: no instance is asked: {reply:?}", request.path);
        let free = Request { path: request.path.replacen("/cost", "", 1), ..request };
        let reply = gateway.send(&free).await;
        // Several encodings are nobody's to read.
        let is_broken = free.headers.iter().any(|(_, value)| value.contains(','));
        assert_eq!(reply.header("x-routebalance-refused-reason").is_some(), is_broken, "{}: {reply:?}", free.path);
    }
    let tokenize = gateway.send(&request_at("/cost/tokenize")).await;
    assert_eq!(tokenize.header("x-routebalance-refused-reason"), None, "what does not generate passes");
    let plain = gateway.send(&chat.header("content-encoding", "Identity")).await.ok();
    assert_eq!(plain.header("x-routebalance-rung"), Some("fused"), "it is read");
}
