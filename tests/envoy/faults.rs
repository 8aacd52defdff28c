//! What goes wrong at instances, between them and the gateway, or at clients.

use routebalance_instance::Fault;
use tokio::io::AsyncWriteExt;

use super::state::read_some;
use crate::harness::{Gateway, Request, eventually};
use crate::http::{self, End};
use crate::scenarios::names_its_choice;
use routebalance_core::fleet::InstanceId;

/// A pool of two instances, and its model.
const POOL: &str = "qwen2.5-72b";
const MODEL: &str = "Qwen2.5-72B-Instruct";

// === instances that are gone ===

/// With no load to read, the first instance is the first choice.
pub(crate) async fn neighbour_serves(gateway: &Gateway) {
    let (first, second) = (gateway.pool(POOL).instances[0], gateway.pool(POOL).instances[1]);
    gateway.fault(first, Fault::Refuse).await;
    for request in [Request::chat(MODEL), Request::long_stream(MODEL)] {
        let request =
            Request { body: String::from_utf8_lossy(&request.body).replace("6000", "60").into_bytes(), ..request };
        let before = gateway.stat("served_by_fallback").await;
        let reply = gateway.send(&request).await.ok();
        assert_eq!(reply.arrival().0, second);
        names_its_choice(gateway, &reply, "static");
        assert_eq!(gateway.stat("served_by_fallback").await, before + 1);
    }
}

pub(crate) async fn neighbour_serves_after_reset(gateway: &Gateway) {
    let (first, second) = (gateway.pool(POOL).instances[0], gateway.pool(POOL).instances[1]);
    gateway.fault(first, Fault::Stall).await;
    let (request, id) = gateway.mark(&Request::chat(MODEL));
    let mut tcp = gateway.connect().await;
    request.write(&mut tcp).await;
    eventually("the request at the stalled instance", async || gateway.arrivals(&id).len(), |n| *n == 1).await;
    gateway.fault(first, Fault::Refuse).await;
    let reply = gateway.reply(http::receive(&mut tcp).await, &id).ok();
    assert_eq!(reply.arrivals.iter().map(|(instance, _)| *instance).collect::<Vec<_>>(), [first, second]);
}

pub(crate) async fn model_is_gone(gateway: &Gateway) {
    gateway.fault_pool(POOL, Fault::Refuse).await;
    for _ in 0..4 {
        let reply = gateway.send(&Request::chat(MODEL)).await;
        assert_eq!((reply.status, reply.arrivals.len()), (503, 0), "{reply:?}");
        gateway.send(&Request::chat("Qwen2.5-7B-Instruct")).await.ok();
    }
}

pub(crate) async fn gone_is_avoided(gateway: &Gateway) {
    let pool = gateway.pool(POOL);
    gateway.fault(pool.instances[0], Fault::Refuse).await;
    gateway.scrapes("failed", 4).await;
    let before = gateway.stat("served_by_fallback").await;
    for _ in 0..6 {
        let reply = gateway.send(&Request::chat(MODEL)).await.ok();
        assert_eq!(reply.arrival().0, pool.instances[1]);
    }
    assert_eq!(gateway.stat("served_by_fallback").await, before, "nobody was sent there");
}

pub(crate) async fn pool_is_gone(gateway: &Gateway) {
    let chat = Request::chat("auto");
    let request = Request { path: format!("/quality{}", chat.path), ..chat };
    let favourite = gateway.pool_of(gateway.send(&request).await.ok().arrival().0).name.clone();
    let instances = gateway.pool(&favourite).instances.len() as u64;
    gateway.fault_pool(&favourite, Fault::Refuse).await;
    gateway.scrapes("failed", 4 * instances).await;
    for _ in 0..10 {
        let reply = gateway.send(&request).await.ok();
        assert_ne!(gateway.pool_of(reply.arrival().0).name, favourite);
    }
    let model = gateway.config().fleet.model_of(gateway.pool(&favourite)).unwrap().name.clone();
    let reply = gateway.send(&Request::chat(&model)).await;
    assert_eq!((reply.status, reply.arrivals.len()), (503, 0), "{reply:?}");
    for instance in gateway.pool(&favourite).instances.clone() {
        gateway.fault(instance, Fault::None).await;
    }
    let again = async || gateway.pool_of(gateway.send(&request).await.ok().arrival().0).name.clone();
    eventually("the pool that has come back", again, |pool| *pool == favourite).await;
}

// === answers that go wrong ===

pub(crate) async fn reset_in_the_middle(gateway: &Gateway) {
    gateway.fault_pool(POOL, Fault::Reset { after_events: 5 }).await;
    let reply = gateway.send(&Request::long_stream(MODEL)).await;
    assert_eq!(reply.status, 200);
    assert_ne!(reply.answer.end, End::Complete, "the client sees that the stream was cut");
    assert!(reply.answer.text().contains("data: {") && !reply.answer.text().contains("[DONE]"), "{reply:?}");
    assert_eq!(reply.arrivals.len(), 1, "what has begun is not sent again");
}

pub(crate) async fn instance_errors(gateway: &Gateway) {
    gateway.fault_pool(POOL, Fault::Error500).await;
    let reply = gateway.send(&Request::chat(MODEL)).await;
    assert_eq!((reply.status, reply.arrivals.len() > 1), (500, true), "the others are tried first: {reply:?}");
    assert_eq!(reply.json()["error"]["type"], "InternalServerError");
    // A request that the instance itself refuses.
    let too_long = Request::post(
        "/v1/chat/completions",
        format!(
            r#"{{"model":"Qwen2.5-3B-Instruct","max_tokens":3,"messages":[{{"role":"user","content":"{}"}}]}}"#,
            "word ".repeat(20_000)
        ),
    );
    let reply = gateway.send(&too_long).await;
    assert_eq!((reply.status, reply.json()["error"]["code"].as_u64()), (400, Some(400)));
    names_its_choice(gateway, &reply, "fused");
}

pub(crate) async fn error_inside_a_stream(gateway: &Gateway) {
    gateway.fault_pool(POOL, Fault::StreamError { after_events: 3 }).await;
    let reply = gateway.send(&Request::long_stream(MODEL)).await.ok();
    assert!(reply.answer.text().contains(r#"data: {"error":"#), "{reply:?}");
}

// === clients that leave ===

pub(crate) async fn client_leaves_a_stream(gateway: &Gateway) {
    let (request, id) = gateway.mark(&Request::long_stream(MODEL));
    let mut tcp = gateway.connect().await;
    request.write(&mut tcp).await;
    while !read_some(&mut tcp).await.contains("data: ") {}
    let (instance, _) = gateway.arrivals(&id)[0];
    drop(tcp);
    // Much sooner than the answer would have ended.
    eventually("the work", async || gateway.instance(instance).gauges().running, |running| *running == 0).await;
}

pub(crate) async fn client_leaves_before_the_answer(gateway: &Gateway) {
    gateway.fault_pool(POOL, Fault::Stall).await;
    let (request, id) = gateway.mark(&Request::chat(MODEL));
    let mut tcp = gateway.connect().await;
    request.write(&mut tcp).await;
    eventually("the request at an instance", async || gateway.arrivals(&id).len(), |n| *n == 1).await;
    eventually("its load", async || gateway.stat(&format!("outstanding_requests.{POOL}")).await, |n| *n == 1).await;
    drop(tcp);
    eventually("its load", async || gateway.stat(&format!("outstanding_requests.{POOL}")).await, |n| *n == 0).await;
}

pub(crate) async fn client_leaves_its_body(gateway: &Gateway) {
    let (_, id) = gateway.mark(&Request::chat(MODEL));
    for _ in 0..4 {
        let mut tcp = gateway.connect().await;
        let half = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nx-test-id: {id}\r\ncontent-length: 900\r\n\r\n{{\"model\":\"auto\",\"mess"
        );
        tcp.write_all(half.as_bytes()).await.unwrap();
        drop(tcp);
        gateway.send(&Request::chat(MODEL)).await.ok();
    }
    assert!(gateway.arrivals(&id).is_empty());
}

// === metrics ===

/// A request for the pool whose metrics have failed, and one for another.
async fn serves_on(gateway: &Gateway, rung: &str) {
    let reckoned = format!("decisions.{POOL}.{rung}");
    // The headers of a stream say nothing of the load.
    let body = String::from_utf8_lossy(&Request::chat(MODEL).body).replacen('{', r#"{"stream":true,"#, 1);
    let stream = Request::post("/v1/chat/completions", body);
    let served = async || {
        let reply = gateway.send(&stream).await.ok();
        reply.header("x-routebalance-rung").unwrap().to_owned()
    };
    let before = gateway.stat(&reckoned).await;
    eventually("the rung", served, |seen| seen == rung).await;
    assert!(gateway.stat(&reckoned).await > before, "{reckoned}");
    let other = gateway.send(&Request::chat("Qwen2.5-3B-Instruct")).await.ok();
    names_its_choice(gateway, &other, "fused");
}

pub(crate) async fn no_metrics(gateway: &Gateway) {
    gateway.fault_pool(POOL, Fault::MetricsAbsent).await;
    serves_on(gateway, "reckoned").await;
    let all: Vec<InstanceId> = gateway.config().fleet.instances_by_id().map(|(id, _)| id).collect();
    for instance in &all {
        gateway.fault(*instance, Fault::MetricsAbsent).await;
    }
    gateway.scrapes("unusable", 2 * all.len() as u64).await;
    let reply = gateway.send(&Request::chat("auto")).await.ok();
    names_its_choice(gateway, &reply, "reckoned");
}

pub(crate) async fn broken_metrics(gateway: &Gateway) {
    gateway.fault_pool(POOL, Fault::MetricsBroken).await;
    serves_on(gateway, "reckoned").await;
}

pub(crate) async fn slow_metrics(gateway: &Gateway) {
    let delay = std::time::Duration::from_secs(60);
    gateway.fault_pool(POOL, Fault::MetricsSlow { delay }).await;
    serves_on(gateway, "reckoned").await;
}

pub(crate) async fn stale_metrics(gateway: &Gateway) {
    gateway.fault_pool(POOL, Fault::MetricsStale).await;
    gateway.scrapes("ok", 28).await;
    for _ in 0..4 {
        let reply = gateway.send(&Request::chat(MODEL)).await.ok();
        names_its_choice(gateway, &reply, "fused");
    }
}
