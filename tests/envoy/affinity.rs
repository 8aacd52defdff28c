//! Requests go where what they need was kept, while that is worth it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Gateway, Reply, Request, eventually};
use crate::state::log_lines_of;
use routebalance_core::fleet::InstanceId;

const MODEL: &str = "Qwen2.5-7B-Instruct";
const POOL: &str = "qwen2.5-7b";
/// Enough connections that each of the two workers gets some.
const CONNECTIONS: usize = 10;

/// Text of about 3,000 tokens that no other seed shares.
fn long(seed: usize) -> String {
    (0..1_500).map(|i| format!("word{} ", (i * 31 + seed * 977) % 9_973)).collect()
}

fn chat(model: &str, text: &str) -> Request {
    let body = json!({"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8});
    Request::post("/v1/chat/completions", body.to_string())
}

/// Sends a request on a connection of its own, and waits until all workers know where it went.
async fn sent(gateway: &Gateway, request: &Request) -> (InstanceId, Reply) {
    let reply = gateway.send(request).await.ok();
    tokio::time::sleep(Duration::from_millis(150)).await;
    (reply.arrival().0, reply)
}

pub(crate) async fn prefix(gateway: &Gateway) {
    let ask = async |text: String| sent(gateway, &chat(MODEL, &text)).await.0;
    let home = ask(format!("{} What is it?", long(1))).await;
    for i in 0..CONNECTIONS {
        assert_eq!(ask(format!("{} And question {i}?", long(1))).await, home, "{i}");
    }
    let mut others = Vec::new();
    for i in 0..CONNECTIONS {
        others.push(ask(format!("{} And question {i}?", long(100 + i))).await);
    }
    let elsewhere = others.iter().filter(|instance| **instance != home).count();
    assert!(elsewhere >= CONNECTIONS / 2, "others have no reason to go to {home:?}: {others:?}");
}

pub(crate) async fn cached_tokens(gateway: &Gateway) {
    let request =
        |question: &str, id: &str| chat(MODEL, &format!("{} {question}?", long(2))).header("x-request-id", id);
    sent(gateway, &request("Why", "uncached")).await;
    let (_, reply) = sent(gateway, &request("How", "cached")).await;
    let cached = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached > 2_000, "{reply:?}");
    let lines = log_lines_of(gateway, "cached").await;
    let decision = |id: &str| &lines.iter().find(|line| line["request_id"] == id).expect("its line")["decision"];
    let (before, after) = (decision("uncached"), decision("cached"));
    assert_eq!((&before["estimated_cached_tokens"], &before["response"]["cached_tokens"]), (&json!(0), &json!(0)));
    assert_eq!(after["response"]["cached_tokens"], cached, "{after}");
    let estimated =
        after["estimated_cached_tokens"].as_f64().unwrap() / after["estimated_prompt_tokens"].as_f64().unwrap();
    assert!((0.8..=1.0).contains(&estimated), "{after}");
    let ttft = |decision: &Value| decision["predicted_ttft_ms"].as_f64().unwrap();
    assert!(ttft(after) < 0.6 * ttft(before), "{before} {after}");
}

/// A request as its own API writes it: path and body, the fields in this order.
type Written = (&'static str, String);

/// Sends both, the one after the other, under these ids. Returns where they went, and the share of the second prompt that is
/// expected to be cached there.
async fn expected_share(gateway: &Gateway, requests: [(&str, Written); 2]) -> ([InstanceId; 2], f64) {
    let mut instances = [InstanceId::default(); 2];
    for (instance, (id, (path, body))) in instances.iter_mut().zip(&requests) {
        *instance = sent(gateway, &Request::post(path, body.clone()).header("x-request-id", id)).await.0;
    }
    let id = requests[1].0;
    let lines = log_lines_of(gateway, id).await;
    let decision = &lines.iter().find(|line| line["request_id"] == id).expect("its line")["decision"];
    let tokens = |field: &str| decision[field].as_f64().unwrap();
    (instances, tokens("estimated_cached_tokens") / tokens("estimated_prompt_tokens"))
}

/// As anthropic-python sends it: the system prompt after the messages.
fn written_messages(system: &str, user: &str) -> Written {
    let [system, user] = [system, user].map(Value::from);
    let messages = format!(r#"[{{"role":"user","content":{user}}}]"#);
    ("/v1/messages", format!(r#"{{"max_tokens":8,"messages":{messages},"model":"{MODEL}","system":{system}}}"#))
}

/// As openai-python sends it: the instructions after the input.
fn written_responses(system: &str, user: &str) -> Written {
    let [system, user] = [system, user].map(Value::from);
    let body = format!(r#"{{"input":{user},"instructions":{system},"model":"{MODEL}","max_output_tokens":8}}"#);
    ("/v1/responses", body)
}

fn written_chat(system: &str, user: &str, salt: Option<&str>) -> Written {
    let messages = json!([{"role": "system", "content": system}, {"role": "user", "content": user}]);
    let body = json!({"model": MODEL, "messages": messages, "max_tokens": 8, "cache_salt": salt});
    ("/v1/chat/completions", body.to_string())
}

pub(crate) async fn system_after_messages(gateway: &Gateway) {
    let [first, second] = ["What is it?", "And where did it come from?"].map(|user| written_messages(&long(11), user));
    let (instances, share) = expected_share(gateway, [("messages-1", first), ("messages-2", second)]).await;
    assert!(instances[0] == instances[1] && share > 0.8, "{instances:?} {share}");
}

pub(crate) async fn instructions_after_input(gateway: &Gateway) {
    let [first, second] = ["What is it?", "And where did it come from?"].map(|user| written_responses(&long(12), user));
    let (instances, share) = expected_share(gateway, [("responses-1", first), ("responses-2", second)]).await;
    assert!(instances[0] == instances[1] && share > 0.8, "{instances:?} {share}");
}

pub(crate) async fn other_api(gateway: &Gateway) {
    for (seed, id, other) in
        [(13, "to-messages", written_messages as fn(&str, &str) -> Written), (14, "to-responses", written_responses)]
    {
        let (system, user) = (long(seed), "What is it?");
        let requests = [("of-chat", written_chat(&system, user, None)), (id, other(&system, user))];
        let (instances, share) = expected_share(gateway, requests).await;
        assert!(instances[0] == instances[1] && share > 0.8, "{id}: {instances:?} {share}");
    }
}

pub(crate) async fn cache_salt(gateway: &Gateway) {
    let ask = |salt| written_chat(&long(15), "What is it?", Some(salt));
    let (_, share) = expected_share(gateway, [("salt-1", ask("anna")), ("salt-2", ask("bert"))]).await;
    assert!(share < 1e-9, "another salt: {share}");
    let (instances, share) = expected_share(gateway, [("salt-3", ask("cora")), ("salt-4", ask("cora"))]).await;
    assert!(instances[0] == instances[1] && share > 0.8, "the same salt: {instances:?} {share}");
}

pub(crate) async fn loaded_holder(gateway: &Gateway) {
    let text = |i: usize| format!("{} And question {i}?", long(3));
    let home = sent(gateway, &chat(MODEL, &text(0))).await.0;
    assert_eq!(sent(gateway, &chat(MODEL, &text(1))).await.0, home);
    // Somebody else loads it: its reports tell.
    let mut clients = Vec::new();
    for _ in 0..100 {
        let mut tcp = gateway.connect_to(home).await;
        let mut request = Request::long_stream("Qwen/Qwen2.5-7B-Instruct");
        request.headers.clear();
        request.write(&mut tcp).await;
        clients.push(tcp);
    }
    eventually("the load", async || gateway.instance(home).gauges().running, |running| *running > 80).await;
    gateway.scrapes("ok", 2 * gateway.config().fleet.instances.len() as u64).await;
    for i in 2..5 {
        let instance = sent(gateway, &chat(MODEL, &text(i))).await.0;
        assert_ne!(instance, home, "its queue costs more than the prefill that it saves");
    }
    drop(clients);
}

pub(crate) async fn session(gateway: &Gateway) {
    for name in ["anna", "bert", "cora", "dora"] {
        let turn = |seed: usize| chat(MODEL, &long(seed + 1_000 * name.len() + usize::from(name.as_bytes()[0])));
        let home = sent(gateway, &turn(1).header("x-session-id", name)).await.0;
        for seed in 2..5 {
            let instance = sent(gateway, &turn(seed).header("x-session-id", name)).await.0;
            assert_eq!(instance, home, "{name}, turn {seed}");
        }
    }
}

pub(crate) async fn adapter(gateway: &Gateway) {
    let ask = |i: usize| chat("sql-adapter", &format!("{i}: select?"));
    let (home, reply) = sent(gateway, &ask(0)).await;
    assert_eq!(gateway.pool_of(home).name, POOL);
    assert_eq!(reply.arrival().1.model.as_deref(), Some("sql-adapter"), "an adapter's name stays as it is");
    assert_eq!((&reply.json()["model"], reply.header("x-routebalance-model")), (&json!("sql-adapter"), Some(MODEL)));
    for i in 1..CONNECTIONS {
        assert_eq!(sent(gateway, &ask(i)).await.0, home, "{i}: it has loaded the adapter");
    }
    let models = gateway.send(&Request::get("/v1/models")).await.ok().json();
    assert!(models["data"].as_array().unwrap().iter().any(|m| m["id"] == "sql-adapter"), "{models}");
}
