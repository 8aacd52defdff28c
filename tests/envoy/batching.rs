//! Requests that wait for each other.

use std::time::Duration;

use futures::future::join_all;
use routebalance_instance::Fault;
use serde_json::{Value, json};

use super::state::{arrived_whole, bulky, log_lines_of};
use crate::harness::{Gateway, Reply, Request, eventually};
use crate::http;
use crate::scenarios::{APIS, Shape, bodies, has_error_shape, names_its_choice};
use crate::setups::MAX_WAIT_MS;
use routebalance_core::fleet::InstanceId;

/// A pool of two instances, and its model.
const POOL: &str = "qwen2.5-72b";
const MODEL: &str = "Qwen2.5-72B-Instruct";

/// The same request on another route.
fn on_route(route: &str, request: Request) -> Request {
    Request { path: format!("/{route}{}", request.path), ..request }
}

/// Sends requests at once; each with what the access log says of its decision.
async fn together(gateway: &Gateway, what: &str, requests: &[Request]) -> Vec<(Reply, Value)> {
    let id = |i: usize| format!("{what}-{i}");
    let requests: Vec<Request> =
        requests.iter().enumerate().map(|(i, r)| r.clone().header("x-request-id", &id(i))).collect();
    let replies = join_all(requests.iter().map(|r| gateway.send(r))).await;
    let mut seen = Vec::new();
    for (i, reply) in replies.into_iter().enumerate() {
        let lines = log_lines_of(gateway, &id(i)).await;
        let line = lines.iter().find(|line| line["request_id"] == id(i)).expect("its line");
        seen.push((reply, line["decision"].clone()));
    }
    seen
}

async fn one(gateway: &Gateway, what: &str, request: Request) -> (Reply, Value) {
    together(gateway, what, &[request]).await.remove(0)
}

pub(crate) async fn at_once(gateway: &Gateway) {
    let before = gateway.stat("batches").await;
    let rows: Vec<_> = APIS.iter().filter(|row| row.3.is_none() && !row.1.ends_with("count_tokens")).collect();
    let rows: Vec<_> = rows.iter().cycle().take(3 * rows.len()).collect();
    let requests: Vec<Request> = rows
        .iter()
        .enumerate()
        .map(|(i, row)| Request { chunk: (i % 2 == 1).then_some(11), ..Request::post(row.1, bodies(row.2, "").0) })
        .collect();
    let seen = together(gateway, "at-once", &requests).await;
    let count = seen.len();
    let mut largest = 0;
    for ((reply, decision), row) in seen.into_iter().zip(rows) {
        let reply = reply.ok();
        let (instance, received) = reply.arrival();
        let (_, expected) = bodies(row.2, &gateway.pool_of(*instance).served_model);
        assert_eq!(String::from_utf8_lossy(&received.body), expected, "{}: the body that arrives", row.0);
        names_its_choice(gateway, &reply, "fused");
        let size = decision["batch_size"].as_u64().unwrap_or_else(|| panic!("no batch in {decision}"));
        assert!(decision["batch_position"].as_u64().unwrap() < size, "{decision}");
        largest = largest.max(size);
    }
    let batches = gateway.stat("batches").await - before;
    assert!(largest >= 4 && (batches as usize) < count, "{count} requests in {batches} batches of up to {largest}");
}

pub(crate) async fn longest_first(gateway: &Gateway) {
    let request = |max_tokens: usize| {
        let messages = json!([{"role": "user", "content": "Count."}]);
        let body = json!({"model": MODEL, "messages": messages, "max_tokens": max_tokens, "ignore_eos": true});
        on_route("latency", Request::post("/v1/chat/completions", body.to_string()))
    };
    // The shortest comes first: in the order of arrival it would be decided first, too.
    let requests: Vec<Request> = (1..=24).map(|i| request(2 * i)).collect();
    let seen = together(gateway, "longest", &requests).await;
    let mut largest = 0;
    for (i, (reply, decision)) in seen.iter().enumerate() {
        assert_eq!(reply.status, 200, "{reply:?}");
        let (size, position) = (&decision["batch_size"], &decision["batch_position"]);
        let (size, position) = (size.as_u64().expect("a batch"), position.as_u64().expect("a position"));
        assert!(size <= 8, "{decision}");
        // Whoever is decided before it is longer, whoever is decided after it is shorter.
        let (longer, shorter) = (seen.len() - 1 - i, i);
        assert!(position as usize <= longer && (size - 1 - position) as usize <= shorter, "{i}: {decision}");
        largest = largest.max(size);
    }
    assert!(largest >= 3, "batches of up to {largest}");
    let sent_to = |instance: &InstanceId| seen.iter().filter(|(reply, _)| reply.arrival().0 == *instance).count();
    let spread: Vec<usize> = gateway.pool(POOL).instances.iter().map(sent_to).collect();
    assert!(
        spread.iter().sum::<usize>() == seen.len() && spread.iter().all(|n| *n >= 6),
        "a batch is spread: {spread:?}"
    );
}

pub(crate) async fn lone(gateway: &Gateway) {
    let (reply, decision) = one(gateway, "lone-capped", on_route("quality", Request::chat("auto"))).await;
    names_its_choice(gateway, &reply.ok(), "fused");
    let waited = decision["batch_wait_ms"].as_f64().unwrap();
    assert_eq!(decision["batch_size"], 1);
    // The window is ten times as long.
    assert!(waited > 0.9 * MAX_WAIT_MS as f64 && waited < 5.0 * MAX_WAIT_MS as f64, "{decision}");
    let (reply, decision) = one(gateway, "lone-adaptive", on_route("cost", Request::long_stream("auto"))).await;
    names_its_choice(gateway, &reply.ok(), "fused");
    assert_eq!(decision["batch_size"], 1);
    assert!(decision["batch_wait_ms"].as_f64().unwrap() < 50.0, "within the window: {decision}");
}

pub(crate) async fn at_once_alone(gateway: &Gateway) {
    let made = Request::post("/v1/responses", r#"{"model":"auto","input":"Name a sea.","max_output_tokens":9}"#);
    let made = gateway.send(&made).await.ok();
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let requests = [
        ("/v1/responses", json!({"previous_response_id": id, "input": "And a lake?", "max_output_tokens": 9})),
        ("/v1/messages/count_tokens", json!({"messages": [{"role": "user", "content": "How many are these?"}]})),
        ("/v1/embeddings", json!({"input": "a sea", "dimensions": 2})),
    ];
    let requests: Vec<Request> =
        requests.iter().map(|(path, body)| on_route("quality", Request::post(path, body.to_string()))).collect();
    for (reply, decision) in together(gateway, "alone", &requests).await {
        names_its_choice(gateway, &reply.ok(), "fused");
        assert!(decision["model"].is_string() && decision.get("batch_size").is_none(), "{decision}");
    }
    let before = gateway.stat("batches").await;
    let refused = gateway.send(&on_route("quality", Request::chat("gpt-9"))).await;
    has_error_shape(&refused, 404, Shape::OpenAi, "`gpt-9`");
    assert_eq!(gateway.stat("batches").await, before);
}

pub(crate) async fn beyond_the_limit(gateway: &Gateway) {
    let request = bulky(3_000_000, true, "/v1/chat/completions");
    let (reply, decision) = one(gateway, "beyond", on_route("quality", request.clone())).await;
    assert_eq!(reply.status, 200, "{}", reply.answer.text());
    arrived_whole(&request, &reply);
    assert!(decision["model"].is_string() && decision.get("batch_size").is_none(), "{decision}");
    // Just within the limit: it waits, and what waited arrives whole.
    let request = bulky(60_000, false, "/v1/chat/completions");
    for request in [request.clone(), request.chunked(5_000)] {
        let (reply, decision) = one(gateway, "within", request.clone()).await;
        assert_eq!(reply.status, 200, "{}", reply.answer.text());
        arrived_whole(&request, &reply);
        assert_eq!(decision["batch_size"], 1, "{decision}");
    }
}

pub(crate) async fn neighbours_serve(gateway: &Gateway) {
    let pool = gateway.pool(POOL);
    gateway.fault(pool.instances[0], Fault::Refuse).await;
    let requests: Vec<Request> = (0..8).map(|_| Request::chat(MODEL)).collect();
    for (reply, decision) in together(gateway, "neighbour", &requests).await {
        assert_eq!(reply.ok().arrival().0, pool.instances[1]);
        assert!(decision["batch_size"].is_u64(), "{decision}");
    }
}

pub(crate) async fn refused(gateway: &Gateway) {
    let before = gateway.stat("batches").await;
    let requests: Vec<Request> = (0..6).map(|_| on_route("round-robin", Request::chat("auto"))).collect();
    for (reply, decision) in together(gateway, "refused", &requests).await {
        has_error_shape(&reply, 429, Shape::OpenAi, "quality");
        assert!(reply.arrivals.is_empty() && reply.header("retry-after").is_some(), "{reply:?}");
        assert_eq!(decision["outcome"], "refused");
    }
    assert!(gateway.stat("batches").await > before, "they were in batches");
    assert_eq!(gateway.stat("refused.429").await, 6);
}

/// How many requests Envoy holds.
async fn active(gateway: &Gateway) -> u64 {
    let stats = gateway.envoy_stats("http.routebalance.downstream_rq_active").await;
    stats.values().sum()
}

pub(crate) async fn client_leaves(gateway: &Gateway) {
    let decided = async || {
        let stats = gateway.stats().await;
        let decisions = stats.iter().filter(|(name, _)| name.starts_with("decisions.") || *name == "batches");
        decisions.map(|(_, n)| n).sum::<u64>()
    };
    let (before, idle) = (decided().await, active(gateway).await);
    let mut leaving = Vec::new();
    let mut ids = Vec::new();
    for request in [Request::chat("auto"), Request::long_stream("auto"), Request::chat("auto").chunked(9)] {
        let (request, id) = gateway.mark(&on_route("quality", request));
        let mut tcp = gateway.connect().await;
        request.write(&mut tcp).await;
        leaving.push(tcp);
        ids.push(id);
    }
    eventually("requests that wait", async || active(gateway).await, |n| *n >= idle + 3).await;
    drop(leaving);
    eventually("clients that have left", async || active(gateway).await, |n| *n <= idle).await;
    // Time in which they would have been sent.
    tokio::time::sleep(Duration::from_millis(2 * MAX_WAIT_MS)).await;
    assert!(ids.iter().all(|id| gateway.arrivals(id).is_empty()), "no instance hears of them");
    assert_eq!(decided().await, before, "nothing is decided for them");
    // One of several that wait leaves; with two workers some of the others share its batch.
    let (request, id) = gateway.mark(&on_route("quality", Request::chat("auto")));
    let mut leaving = gateway.connect().await;
    request.write(&mut leaving).await;
    eventually("a request that waits", async || active(gateway).await, |n| *n > idle).await;
    let staying: Vec<Request> = (0..6).map(|_| on_route("quality", Request::chat("auto"))).collect();
    let leave = async {
        eventually("the others", async || active(gateway).await, |n| *n >= idle + 7).await;
        drop(leaving);
    };
    let (seen, ()) = tokio::join!(together(gateway, "staying", &staying), leave);
    for (reply, _) in seen {
        names_its_choice(gateway, &reply.ok(), "fused");
    }
    assert!(gateway.arrivals(&id).is_empty(), "no instance hears of it");
}

/// The last scenario of its gateway: nobody is let in afterwards.
pub(crate) async fn drained(gateway: &Gateway) {
    let (request, id) = gateway.mark(&on_route("quality", Request::chat("auto")));
    let mut tcp = gateway.connect().await;
    request.write(&mut tcp).await;
    eventually("a request that waits", async || active(gateway).await, |n| *n > 0).await;
    let drain = http::exchange(gateway.envoy().admin_address(), "POST", "/drain_listeners", &[], b"").await;
    assert!(drain.status.contains("200"), "{drain:?}");
    let reply = gateway.reply(http::receive(&mut tcp).await, &id).ok();
    names_its_choice(gateway, &reply, "fused");
}
