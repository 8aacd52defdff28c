//! Instances that die, hang, drain or lie under load, clients that leave in bulk, and an Envoy that is killed; and what must hold
//! after each.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use routebalance_instance::Fault;
use tokio::time::Instant;

use super::state::read_some;
use crate::harness::{Gateway, Reply, Request, eventually};
use crate::http::End;
use crate::setups::IDLE_TIMEOUT;
use routebalance_core::fleet::InstanceId;

/// A pool of five instances, and its model.
const POOL: &str = "qwen2.5-7b";
const MODEL: &str = "Qwen2.5-7B-Instruct";
/// Clients that send one request after the other.
const CLIENTS: usize = 10;
/// What a busy machine may add to any time.
const SLACK: Duration = Duration::from_secs(6);

/// One request under load: when it was sent, how long it took, what became of it.
struct Served {
    sent: Instant,
    took: Duration,
    reply: Reply,
}

/// Keeps clients sending `request` while `meanwhile` runs.
async fn under_load(gateway: &Gateway, request: &Request, meanwhile: impl Future<Output = ()>) -> Vec<Served> {
    let over = AtomicBool::new(false);
    let client = async || {
        let mut served = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let sent = Instant::now();
            let reply = gateway.send(request).await;
            served.push(Served { sent, took: sent.elapsed(), reply });
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        served
    };
    let conduct = async {
        meanwhile.await;
        over.store(true, Ordering::Relaxed);
    };
    let (served, ()) = tokio::join!(join_all((0..CLIENTS).map(|_| client())), conduct);
    served.into_iter().flatten().collect()
}

/// The invariants. That no load is left is checked after every scenario.
async fn nobody_was_hurt(gateway: &Gateway, served: &[Served], longest: Duration) {
    assert!(served.len() > 2 * CLIENTS, "{} requests are no load", served.len());
    for Served { took, reply, .. } in served {
        assert_eq!((reply.status, reply.answer.end), (200, End::Complete), "a healthy instance was there: {reply:?}");
        assert!(*took < longest + SLACK, "{took:?}: {reply:?}");
    }
    nobody_starves(gateway).await;
}

/// How many requests of clients an instance has received; scrapes are none.
fn received(gateway: &Gateway, instance: InstanceId) -> usize {
    gateway.instance(instance).requests_that(|r| r.method == "POST").len()
}

/// Every instance of the pool gets requests (again).
async fn nobody_starves(gateway: &Gateway) {
    let instances = gateway.pool(POOL).instances.clone();
    let counts = || instances.iter().map(|i| (*i, received(gateway, *i))).collect::<BTreeMap<_, _>>();
    let before = counts();
    let request = Request::chat(MODEL);
    let look = async || {
        join_all((0..10).map(|_| gateway.send(&request))).await.into_iter().for_each(|reply| {
            reply.ok();
        });
        counts().into_iter().filter(|(i, n)| before[i] >= *n).collect::<BTreeMap<_, _>>()
    };
    eventually("instances that get nothing", look, BTreeMap::is_empty).await;
}

async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

async fn failures(gateway: &Gateway, kind: &str) -> u64 {
    gateway.stat(&format!("failures.{kind}")).await
}

async fn ejected(gateway: &Gateway) -> u64 {
    gateway.stat(&format!("ejected_instances.{POOL}")).await
}

pub(crate) async fn killed_and_restarted(gateway: &Gateway) {
    let [first, second, third, ..] = gateway.pool(POOL).instances[..] else { panic!("three instances") };
    let served = under_load(gateway, &Request::chat(MODEL), async {
        pause(300).await;
        gateway.fault(first, Fault::Refuse).await;
        pause(500).await;
        // Together: a request that meets one after the other as they die has been broken off twice, and is the suspect.
        tokio::join!(gateway.fault(second, Fault::Refuse), gateway.fault(third, Fault::Refuse));
        pause(1_000).await;
        for instance in [first, second, third] {
            gateway.fault(instance, Fault::None).await;
        }
        pause(300).await;
    })
    .await;
    nobody_was_hurt(gateway, &served, Duration::ZERO).await;
}

/// `/health` and gauges answer, work stands still.
pub(crate) async fn hung(gateway: &Gateway, streams: bool) {
    let instance = gateway.pool(POOL).instances[0];
    let before = failures(gateway, "stalled").await;
    let reruns = gateway.stat("reruns").await;
    let chat = Request::chat(MODEL);
    let body = String::from_utf8(chat.body).expect("text").replacen('{', &format!(r#"{{"stream":{streams},"#), 1);
    let request = Request { body: body.into_bytes(), ..Request::chat(MODEL) };
    let served = under_load(gateway, &request, async {
        pause(300).await;
        gateway.fault(instance, Fault::Hang).await;
        eventually("the stall is seen", async || failures(gateway, "stalled").await, |n| *n > before).await;
        eventually("it is ejected", async || ejected(gateway).await, |n| *n == 1).await;
        pause(500).await;
        gateway.fault(instance, Fault::None).await;
        pause(300).await;
    })
    .await;
    nobody_was_hurt(gateway, &served, IDLE_TIMEOUT).await;
    // Only what was sent to it before it was ejected, and a probe at a time, have met it.
    let slow = served.iter().filter(|s| s.took >= IDLE_TIMEOUT).count();
    assert!(slow <= 2 * CLIENTS, "{slow} of {} requests waited", served.len());
    // A whole answer is silent until its end, so Envoy cannot tell that it hangs: the filter asks another instance.
    assert_eq!(gateway.stat("reruns").await > reruns, !streams);
}

/// A server that drains answers new requests with 500, a dead engine, too; a busy one with 503.
pub(crate) async fn refuses(gateway: &Gateway, fault: Fault) {
    let instance = gateway.pool(POOL).instances[1];
    let before = failures(gateway, "unanswered").await;
    let served = under_load(gateway, &Request::chat(MODEL), async {
        pause(300).await;
        gateway.fault(instance, fault).await;
        eventually("it is ejected", async || ejected(gateway).await, |n| *n == 1).await;
        pause(500).await;
        gateway.fault(instance, Fault::None).await;
        pause(300).await;
    })
    .await;
    assert!(failures(gateway, "unanswered").await >= before + 3);
    nobody_was_hurt(gateway, &served, Duration::ZERO).await;
}

/// Streams break or carry an error: what has begun fails, but not for long.
pub(crate) async fn breaks_streams(gateway: &Gateway, fault: Fault, kind: &str) {
    let instance = gateway.pool(POOL).instances[2];
    let before = failures(gateway, kind).await;
    let stream = Request::post(
        "/v1/chat/completions",
        format!(
            r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"Count."}}],"max_tokens":20,"ignore_eos":true,"stream":true}}"#
        ),
    );
    let served = under_load(gateway, &stream, async {
        pause(300).await;
        gateway.fault(instance, fault).await;
        eventually("it is ejected", async || ejected(gateway).await, |n| *n == 1).await;
        pause(2_000).await;
        gateway.fault(instance, Fault::None).await;
    })
    .await;
    let broken: Vec<&Served> = served
        .iter()
        .filter(|s| s.reply.answer.end != End::Complete || s.reply.answer.text().contains(r#""error""#))
        .collect();
    assert!(!broken.is_empty() && broken.len() <= 4 * CLIENTS, "{} of {} broke", broken.len(), served.len());
    for served in &broken {
        assert!(served.reply.arrivals.iter().all(|(i, _)| *i == instance), "only there: {:?}", served.reply);
    }
    assert!(failures(gateway, kind).await >= before + 3, "{kind}");
    nobody_starves(gateway).await;
}

/// Whoever leaves the model to the gateway does not notice that a pool is gone.
pub(crate) async fn pool_dies(gateway: &Gateway) {
    let chat = Request::chat("auto");
    let request = Request { path: format!("/quality{}", chat.path), ..chat };
    let favourite = gateway.pool_of(gateway.send(&request).await.ok().arrival().0).name.clone();
    let died = std::sync::Mutex::new(None);
    let served = under_load(gateway, &request, async {
        pause(300).await;
        gateway.fault_pool(&favourite, Fault::Refuse).await;
        *died.lock().unwrap() = Some(Instant::now());
        pause(2_500).await;
    })
    .await;
    let died = died.into_inner().unwrap().expect("it died");
    for Served { sent, reply, .. } in &served {
        // Failures in a row must be seen, or two scrapes be missed.
        assert!(reply.status == 200 || *sent < died + Duration::from_secs(1), "{:?} later: {reply:?}", *sent - died);
    }
}

/// One instance lies: it must neither attract all requests nor get none.
pub(crate) async fn lies(gateway: &Gateway, fault: Fault) {
    let instances = gateway.pool(POOL).instances.clone();
    let liar = instances[3];
    gateway.fault(liar, fault).await;
    pause(400).await;
    let before: Vec<usize> = instances.iter().map(|i| received(gateway, *i)).collect();
    let all = async || instances.iter().map(|i| received(gateway, *i)).sum::<usize>();
    let enough = before.iter().sum::<usize>() + 8 * CLIENTS;
    let served = under_load(gateway, &Request::chat(MODEL), async {
        eventually("requests enough for shares", all, |n| *n >= enough).await;
    })
    .await;
    let shares: Vec<f64> = instances
        .iter()
        .zip(&before)
        .map(|(i, before)| (received(gateway, *i) - before) as f64 / served.len() as f64)
        .collect();
    assert!(shares.iter().all(|share| (0.02..0.6).contains(share)), "{fault:?}: {shares:?}");
    nobody_was_hurt(gateway, &served, Duration::ZERO).await;
}

pub(crate) async fn clients_leave_in_bulk(gateway: &Gateway) {
    let before = gateway.stats().await;
    let open = async || {
        let mut tcp = gateway.connect().await;
        gateway.mark(&Request::long_stream(MODEL)).0.write(&mut tcp).await;
        while !read_some(&mut tcp).await.contains("data: ") {}
        tcp
    };
    let streams = join_all((0..40).map(|_| open())).await;
    drop(streams);
    let name = format!("outstanding_requests.{POOL}");
    eventually("their load", async || gateway.stat(&name).await, |n| *n == 0).await;
    let kinds = |stats: &BTreeMap<String, u64>| {
        stats.iter().filter(|(name, _)| name.starts_with("failures.")).map(|(_, n)| n).sum::<u64>()
    };
    assert_eq!(kinds(&gateway.stats().await), kinds(&before), "a client that leaves is no failure");
    nobody_starves(gateway).await;
}

/// Envoy is killed in the middle of its work: the next one knows nothing of it, and nothing is left.
pub(crate) async fn envoy_is_killed(mut gateway: Gateway) {
    let mut tcp = gateway.connect().await;
    Request::long_stream(MODEL).write(&mut tcp).await;
    while !read_some(&mut tcp).await.contains("data: ") {}
    gateway.restart_envoy().await;
    let (request, _) = gateway.mark(&Request::chat(MODEL));
    gateway.send(&request).await.ok();
    gateway.calm().await;
    nobody_starves(&gateway).await;
    gateway.calm().await;
}

/// The VM of one worker traps under long streams. Its requests end, the others' go on, a new VM serves after the back-off, and what
/// the dead one had outstanding is forgotten with its slot.
pub(crate) async fn vm_dies(gateway: Gateway) {
    let mut streams = Vec::new();
    for _ in 0..6 {
        let mut tcp = gateway.connect().await;
        Request::long_stream(MODEL).write(&mut tcp).await;
        while !read_some(&mut tcp).await.contains("data: ") {}
        streams.push(tcp);
    }
    let open = async || outstanding_requests(&gateway).await;
    eventually("the streams", open, |open| *open == streams.len() as u64).await;
    gateway.send(&Request::post("/routebalance/drill/vm", "{}")).await;
    let served = async || gateway.send(&gateway.mark(&Request::chat(MODEL)).0).await.status;
    let in_a_row = Cell::new(0);
    eventually("requests that are served in a row", served, |status| {
        in_a_row.set(if *status == 200 { in_a_row.get() + 1 } else { 0 });
        in_a_row.get() == 20
    })
    .await;
    drop(streams);
    eventually("what the dead VM left", open, |open| *open == 0).await;
    // It may have been the one that scrapes: another one takes over.
    let rung = async || gateway.send(&Request::chat(MODEL)).await.ok().header("x-routebalance-rung").map(str::to_owned);
    eventually("fresh reports", rung, |rung| rung.as_deref() == Some("fused")).await;
    nobody_starves(&gateway).await;
}

/// What all workers have sent and not seen finished.
async fn outstanding_requests(gateway: &Gateway) -> u64 {
    let stats = gateway.stats().await;
    stats.iter().filter(|(name, _)| name.starts_with("outstanding_requests.")).map(|(_, n)| n).sum()
}

/// A client's requests fail wherever they are sent: nobody is ejected.
pub(crate) async fn poison(gateway: &Gateway) {
    gateway.fault_pool(POOL, Fault::Error500).await;
    for _ in 0..6 {
        let reply = gateway.send(&Request::chat(MODEL)).await;
        assert_eq!(reply.status, 500, "{reply:?}");
    }
    pause(300).await;
    assert_eq!(ejected(gateway).await, 0, "by requests that may be the reason");
}
