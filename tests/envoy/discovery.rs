//! Instances that come and go in Envoy's clusters, and what response headers say of them.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use futures::future::join_all;

use crate::harness::{Gateway, Reply, Request, eventually};
use crate::http::{self, End};
use crate::scenarios::names_its_choice;
use routebalance_core::fleet::InstanceId;

/// A discovered pool of two instances, and its model.
const POOL: &str = "qwen2.5-72b";
const MODEL: &str = "Qwen2.5-72B-Instruct";

/// Enough requests at once that each of four workers gets some, and each instance too.
const AT_ONCE: usize = 24;

fn addresses(gateway: &Gateway, pool: &str) -> Vec<SocketAddr> {
    gateway.pool(pool).instances.iter().map(|i| gateway.instance(*i).address()).collect()
}

/// Gives Envoy these instances of a pool, and waits until the filter has them too. Every worker applies them in its next tick.
async fn set(gateway: &Gateway, pool: &str, hosts: &[(SocketAddr, &str)]) {
    gateway.set_endpoints(gateway.pool(pool), hosts);
    let ill = hosts.iter().filter(|(_, health)| *health != "HEALTHY").count() as u64;
    let counts = async || {
        let stats = gateway.stats().await;
        let stat_of = |name: &str| stats.get(&format!("{name}.{pool}")).copied().unwrap_or(0);
        (stat_of("present_instances"), stat_of("unhealthy_instances"))
    };
    eventually("the discovered instances", counts, |seen| *seen == (hosts.len() as u64 - ill, ill)).await;
    tokio::time::sleep(std::time::Duration::from_millis(150)).await;
}

async fn set_healthy(gateway: &Gateway, pool: &str, addresses: &[SocketAddr]) {
    let hosts: Vec<_> = addresses.iter().map(|address| (*address, "HEALTHY")).collect();
    set(gateway, pool, &hosts).await;
}

/// Many requests at once, each served in full.
async fn at_once(gateway: &Gateway, model: &str) -> Vec<Reply> {
    let request = Request::chat(model);
    let replies = join_all((0..AT_ONCE).map(|_| gateway.send(&request))).await;
    replies.into_iter().map(Reply::ok).collect()
}

/// The instances that serve them.
async fn serving(gateway: &Gateway, model: &str) -> BTreeSet<InstanceId> {
    at_once(gateway, model).await.iter().map(|reply| reply.arrival().0).collect()
}

pub(crate) async fn scaled(gateway: &Gateway) {
    let pool = gateway.pool("qwen2.5-3b").instances.clone();
    let model = "Qwen2.5-3B-Instruct";
    let all = addresses(gateway, "qwen2.5-3b");
    let set_of = |instances: &[InstanceId]| instances.iter().copied().collect::<BTreeSet<_>>();
    assert_eq!(serving(gateway, model).await, set_of(&pool), "all that Envoy's file has at its start");
    for (hosts, expected) in [(&all[..1], &pool[..1]), (&all[1..], &pool[1..]), (&all[..], &pool[..])] {
        set_healthy(gateway, "qwen2.5-3b", hosts).await;
        assert_eq!(serving(gateway, model).await, set_of(expected));
    }
    let reply = gateway.send(&Request::chat(model)).await.ok();
    names_its_choice(gateway, &reply, "fused");
}

pub(crate) async fn goes_while_it_serves(gateway: &Gateway) {
    let all = addresses(gateway, POOL);
    let stream = Request::long_stream(MODEL);
    // Some seconds.
    let body = String::from_utf8_lossy(&stream.body).replace("6000", "2000").into_bytes();
    let (request, id) = gateway.mark(&Request { body, ..stream });
    let mut tcp = gateway.connect().await;
    request.write(&mut tcp).await;
    eventually("the stream at an instance", async || gateway.arrivals(&id).len(), |n| *n == 1).await;
    let (serving_it, _) = gateway.arrivals(&id)[0];
    let pool = gateway.pool(POOL);
    let other = usize::from(serving_it == pool.instances[0]);
    set_healthy(gateway, POOL, &[all[other]]).await;
    assert_eq!(serving(gateway, MODEL).await, BTreeSet::from([pool.instances[other]]));
    assert!(gateway.instance(serving_it).gauges().running > 0, "its stream goes on");
    let gauge = async || gateway.stat(&format!("outstanding_requests.{POOL}")).await;
    eventually("what the gone instance still serves is counted", gauge, |outstanding| *outstanding == 1).await;
    let reply = gateway.reply(http::receive(&mut tcp).await, &id).ok();
    assert!(reply.answer.text().contains("data: [DONE]"), "the stream ends by itself");
    set_healthy(gateway, POOL, &all).await;
    assert_eq!(serving(gateway, MODEL).await.len(), 2, "it is back");
}

pub(crate) async fn unhealthy(gateway: &Gateway) {
    let all = addresses(gateway, POOL);
    let second = gateway.pool(POOL).instances[1];
    for health in ["UNHEALTHY", "DRAINING", "TIMEOUT"] {
        set(gateway, POOL, &[(all[0], health), (all[1], "HEALTHY")]).await;
        assert_eq!(serving(gateway, MODEL).await, BTreeSet::from([second]), "{health}");
    }
    set_healthy(gateway, POOL, &all).await;
    assert_eq!(serving(gateway, MODEL).await.len(), 2, "both are well");
}

pub(crate) async fn emptied(gateway: &Gateway) {
    let all = addresses(gateway, POOL);
    set_healthy(gateway, POOL, &[]).await;
    let reply = gateway.send(&Request::chat(MODEL)).await;
    assert_eq!((reply.status, reply.arrivals.len()), (503, 0), "Envoy has nobody either: {reply:?}");
    for _ in 0..4 {
        let chat = Request::chat("auto");
        let reply = gateway.send(&Request { path: format!("/quality{}", chat.path), ..chat }).await.ok();
        assert_ne!(gateway.pool_of(reply.arrival().0).name, POOL);
    }
    set_healthy(gateway, POOL, &all).await;
    assert_eq!(serving(gateway, MODEL).await.len(), 2);
}

/// Requests never stop while instances come and go; each is served, whichever instances there are.
pub(crate) async fn churn(gateway: &Gateway) {
    let all = addresses(gateway, "qwen2.5-3b");
    let model = "Qwen2.5-3B-Instruct";
    let load = async {
        for _ in 0..8 {
            at_once(gateway, model).await;
        }
    };
    let scaling = async {
        for hosts in [&all[..2], &all[1..], &all[2..], &all[..1], &all[..]] {
            set_healthy(gateway, "qwen2.5-3b", hosts).await;
        }
    };
    tokio::join!(load, scaling);
    let pool = gateway.pool("qwen2.5-3b").instances.iter().copied().collect::<BTreeSet<_>>();
    assert_eq!(serving(gateway, model).await, pool, "all are back and none is starved");
}

// === headers ===

pub(crate) async fn reported_in_headers(gateway: &Gateway) {
    let reply = gateway.send(&Request::chat(MODEL)).await.ok();
    names_its_choice(gateway, &reply, "reckoned");
    // From any worker: a report that was seen by one is everybody's.
    let known = async || {
        let replies = at_once(gateway, MODEL).await;
        replies.iter().filter(|reply| reply.header("x-routebalance-rung") == Some("fused")).count()
    };
    eventually("decisions on what headers say", known, |fused| *fused == AT_ONCE).await;
    assert!(gateway.stat("header_reports").await > 0);
    assert_eq!(gateway.stat("scrapes.ok").await, 0);
}

pub(crate) async fn headers_of_the_client(gateway: &Gateway) {
    let header = "endpoint-load-metrics";
    let reply = gateway.send(&Request::chat(MODEL)).await.ok();
    assert_eq!((reply.header(header), reply.arrival().1.header("endpoint-load-metrics-format")), (None, Some("JSON")));
    let asking = Request::chat(MODEL).header("endpoint-load-metrics-format", "TEXT");
    let reply = gateway.send(&asking).await.ok();
    assert!(reply.header(header).is_some_and(|load| load.starts_with("TEXT ")), "{reply:?}");
    let stream = Request::post(
        "/v1/chat/completions",
        format!(r#"{{"model":"{MODEL}","stream":true,"max_tokens":3,"messages":[{{"role":"user","content":"Hi"}}]}}"#),
    );
    let reply = gateway.send(&stream).await.ok();
    assert_eq!((reply.header(header), reply.answer.end), (None, End::Complete));
}

// === nobody to ask ===

pub(crate) async fn nobody_tells(gateway: &Gateway) {
    let failed = async || gateway.stat("discoveries.failed").await;
    eventually("questions without an answer", failed, |failed| *failed > 1).await;
    let mut instances = BTreeSet::new();
    for _ in 0..24 {
        let reply = gateway.send(&Request::chat(MODEL)).await.ok();
        assert_eq!(reply.header("x-routebalance-rung"), Some("untouched"));
        let (instance, received) = reply.arrival();
        assert_eq!(gateway.pool_of(*instance).name, POOL);
        let served = &gateway.pool(POOL).served_model;
        assert!(String::from_utf8_lossy(&received.body).contains(served.as_str()), "{received:?}");
        instances.insert(*instance);
    }
    assert_eq!(instances.len(), 2, "Envoy balances");
    let reply = gateway.send(&Request::chat("Qwen2.5-3B-Instruct")).await.ok();
    assert_eq!(reply.header("x-routebalance-pool"), Some("qwen2.5-3b"));
}
