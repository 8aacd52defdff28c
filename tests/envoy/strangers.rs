//! Instances that are servers of somebody else: they refuse everybody, are limited, say nothing, or break off in ways that an emulated
//! vLLM does not; and what becomes of requests whose favourite model is gone.

#[path = "strangers/gone.rs"]
pub(crate) mod gone;
#[path = "strangers/server.rs"]
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use routebalance_instance::Fault;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{Gateway, Reply, Request, eventually, status};
use crate::http::{self, Answer, End};
use crate::scenarios::{Shape, has_error_shape};
use crate::setups::{ANSWER_LIMIT, IDLE_TIMEOUT};
use routebalance_core::fleet::InstanceId;
use server::{Act, Page, Strangers, completion, error};

/// A pool of five instances, which is also the default one, and its model.
const POOL: &str = "qwen2.5-7b";
const MODEL: &str = "Qwen2.5-7B-Instruct";
/// A pool of two instances, and its model.
const SMALL_POOL: &str = "qwen2.5-72b";
const SMALL_MODEL: &str = "Qwen2.5-72B-Instruct";
/// The pools among which `auto` chooses.
const POOLS: [&str; 4] = ["qwen2.5-3b", POOL, "qwen2.5-32b", SMALL_POOL];

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";

/// After this time the gauges show what has happened.
const GAUGES_FOLLOW: Duration = Duration::from_millis(500);
/// Longer than an instance of a stream may be silent, and than a whole answer may take where nobody reports.
const LONG: Duration = Duration::from_secs(4);

// === what rows share ===

fn messages(model: &str) -> Request {
    let body = format!(
        r#"{{"model":"{model}","max_tokens":8,"messages":[{{"role":"user","content":"Why is the sky blue?"}}]}}"#
    );
    Request::post(MESSAGES, body)
}

/// The same request on the route that prefers quality.
fn for_quality(request: Request) -> Request {
    Request { path: format!("/quality{}", request.path), ..request }
}

fn limited() -> Act {
    Act::json(429, &error("rate_limit_error", "Rate limit reached."))
}

fn instances(gateway: &Gateway, pool: &str) -> Vec<InstanceId> {
    gateway.pool(pool).instances.clone()
}

/// The name of the model of a pool.
fn model_of(gateway: &Gateway, pool: &str) -> String {
    gateway.config().fleet.model_of(gateway.pool(pool)).expect("a model").name.clone()
}

/// Waits until every instance of some pools has served a request, so that nothing is left of what speaks against one. All are heard of
/// first and asked at once: else the first that has served would get everything.
async fn are_well(gateway: &Gateway, pools: &[&str]) {
    gateway.scrapes("ok", 2 * gateway.config().fleet.instances.len() as u64).await;
    for pool in pools {
        let chat = Request::chat(&model_of(gateway, pool));
        // Long enough that none has served before all are asked.
        let body = String::from_utf8_lossy(&chat.body).replace(r#""max_tokens":8"#, r#""max_tokens":40"#).into_bytes();
        let request = Request { body, ..chat };
        let mut left: BTreeSet<InstanceId> = instances(gateway, pool).into_iter().collect();
        let look = async || {
            let at_once = 2 * instances(gateway, pool).len();
            for reply in join_all((0..at_once).map(|_| gateway.send(&request))).await {
                if let (200, Some((instance, _))) = (reply.status, reply.arrivals.last()) {
                    left.remove(instance);
                }
            }
            left.clone()
        };
        eventually("instances that serve nothing", look, BTreeSet::is_empty).await;
    }
}

/// The pool to which the route /quality sends a request that leaves the model to the gateway.
async fn favourite(gateway: &Gateway) -> String {
    let reply = gateway.send(&for_quality(Request::chat("auto"))).await.ok();
    gateway.pool_of(reply.arrival().0).name.clone()
}

async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

/// The answer to a request, without a look at what the instances have received.
async fn answer(gateway: &Gateway, request: &Request) -> Answer {
    let mut tcp = gateway.connect().await;
    request.write(&mut tcp).await;
    http::receive(&mut tcp).await
}

/// The answers to so many requests, one after the other with a pause between them.
async fn one_by_one(gateway: &Gateway, request: &Request, count: usize, between: Duration) -> Vec<Answer> {
    let mut answers = Vec::new();
    for _ in 0..count {
        answers.push(answer(gateway, request).await);
        pause(between).await;
    }
    answers
}

/// The statuses that so many clients see that send one request after the other.
async fn under_load(gateway: &Gateway, request: &Request, clients: usize, span: Duration) -> Vec<u16> {
    let end = Instant::now() + span;
    let client = async || {
        let mut statuses = Vec::new();
        while Instant::now() < end {
            statuses.push(status(&answer(gateway, request).await));
            pause(Duration::from_millis(20)).await;
        }
        statuses
    };
    join_all((0..clients).map(|_| client())).await.concat()
}

/// What some work gives, and how many instances of a pool were ejected at once meanwhile, at most. An ejection lasts much longer than
/// the time from one look to the next.
async fn watched<T>(gateway: &Gateway, pool: &str, work: impl Future<Output = T>) -> (T, u64) {
    let gauge = format!("ejected_instances.{pool}");
    let mut most = 0;
    let mut work = std::pin::pin!(async {
        let done = work.await;
        pause(GAUGES_FOLLOW).await;
        done
    });
    loop {
        let look = async {
            pause(Duration::from_millis(50)).await;
            gateway.stat(&gauge).await
        };
        tokio::select! {
            done = &mut work => return (done, most),
            ejected = look => most = most.max(ejected),
        }
    }
}

/// What counts as a failure of an instance, by its kind.
async fn failures(gateway: &Gateway) -> BTreeMap<String, u64> {
    let stats = gateway.stats().await.into_iter();
    stats.filter_map(|(name, count)| Some((name.strip_prefix("failures.")?.to_owned(), count))).collect()
}

/// The access log's line of a request. Envoy writes every ten seconds, or when it has 64 KB: the lines of other requests make it hurry.
pub(crate) async fn log_line(gateway: &Gateway, request_id: &str) -> Value {
    let mark = Value::from(request_id).to_string();
    let models = Request::get("/v1/models");
    let look = async || {
        let log = gateway.access_log();
        let line = log.lines().find(|line| line.contains(&mark)).and_then(|line| serde_json::from_str(line).ok());
        if line.is_none() {
            join_all((0..32).map(|_| answer(gateway, &models))).await;
        }
        line
    };
    eventually("the log's line", look, Option::is_some).await.expect("a line")
}

// === instances that refuse ===

/// One that answers an error at once is never busy, and would attract what its peers could serve.
pub(crate) async fn black_hole(gateway: &Gateway, status_of_hole: u16) {
    are_well(gateway, &[POOL]).await;
    let refusal = Act::json(status_of_hole, &error("invalid_request_error", "Not here."));
    let hole = instances(gateway, POOL)[2];
    let strangers = Strangers::saying(gateway, &[hole], Page::Absent, refusal).await;
    let request = Request::chat(MODEL);
    let requests = one_by_one(gateway, &request, 60, Duration::from_millis(20));
    let (answers, ejected) = watched(gateway, POOL, requests).await;
    let refused = answers.iter().filter(|seen| status(seen) == status_of_hole).count();
    let served = answers.iter().filter(|seen| status(seen) == 200).count();
    assert!((1..=8).contains(&refused) && served == 60 - refused, "{refused} refused, {served} served");
    assert_eq!(refused, strangers.count(), "a refusal is the client's to see, and not sent again");
    assert_eq!(ejected, 1);
    strangers.leave(gateway).await;
}

/// All instances of the favourite model say that they have no room: other models do.
pub(crate) async fn limited_everywhere(gateway: &Gateway) {
    const RETRY_AFTER: Duration = Duration::from_secs(2);
    are_well(gateway, &POOLS).await;
    let favourite = favourite(gateway).await;
    let all = instances(gateway, &favourite);
    let refusal = limited().header("retry-after", &RETRY_AFTER.as_secs().to_string());
    let strangers = Strangers::saying(gateway, &all, Page::Vllm, refusal).await;
    let began = Instant::now();
    let requests = async {
        let mut replies = Vec::new();
        for _ in 0..40 {
            replies.push(gateway.send(&for_quality(Request::chat("auto"))).await);
        }
        (replies, began.elapsed())
    };
    let ((replies, took), ejected) = watched(gateway, &favourite, requests).await;
    let (refused, served): (Vec<Reply>, Vec<Reply>) = replies.into_iter().partition(|reply| reply.status == 429);
    for reply in served {
        assert_ne!(gateway.pool_of(reply.ok().arrival().0).name, favourite);
    }
    // Two such answers close an instance for as long as it asks. After that time one more is enough.
    let rounds = 2 + took.as_secs() / RETRY_AFTER.as_secs();
    let most = all.len() * usize::try_from(rounds).expect("few rounds");
    assert!((1..=most).contains(&refused.len()), "{} of {most} at most, in {took:?}", refused.len());
    assert_eq!(refused.len(), strangers.count(), "who is busy is not asked again for the same request");
    assert_eq!(ejected, 0, "who is busy is not ill");
    strangers.leave(gateway).await;
}

/// Every third request meets the limit of a key: that is no reason to leave the other two out.
pub(crate) async fn one_key_is_limited(gateway: &Gateway) {
    const HALF: Duration = Duration::from_millis(2_500);
    are_well(gateway, &[POOL]).await;
    let place = instances(gateway, POOL)[1];
    let strangers = Strangers::in_place_of(gateway, &[place], Page::Vllm, |_, before| match before % 3 {
        2 => limited(),
        _ => Act::json(200, &completion(true)),
    })
    .await;
    let request = Request::chat(MODEL);
    let load = async {
        let mut statuses = under_load(gateway, &request, 4, HALF).await;
        let before = strangers.count();
        statuses.extend(under_load(gateway, &request, 4, HALF).await);
        (statuses, before)
    };
    let ((statuses, before), ejected) = watched(gateway, POOL, load).await;
    assert!(statuses.iter().all(|seen| [200, 429].contains(seen)), "{statuses:?}");
    assert_eq!(ejected, 0, "most of its answers are good");
    let later = strangers.count() - before;
    assert!(before >= 3 && later >= 3, "{before} requests in the first half, {later} in the second");
    strangers.leave(gateway).await;
}

/// A pool at its capacity gets no more than its clients send.
pub(crate) async fn at_capacity(gateway: &Gateway) {
    are_well(gateway, &[POOL]).await;
    let all = instances(gateway, POOL);
    let strangers = Strangers::in_place_of(gateway, &all, Page::Vllm, |_, before| match before % 2 {
        0 => Act::json(503, &error("overloaded_error", "No capacity.")),
        _ => Act::json(200, &completion(true)),
    })
    .await;
    let request = Request::chat(MODEL);
    let load = under_load(gateway, &request, 10, Duration::from_secs(5));
    let (statuses, ejected) = watched(gateway, POOL, load).await;
    assert!(statuses.iter().all(|seen| [200, 503].contains(seen)), "{statuses:?}");
    let (sent, served) = (statuses.len(), statuses.iter().filter(|seen| **seen == 200).count());
    assert!(sent > 100 && served * 3 > sent, "{served} of {sent} were served");
    let received = strangers.count();
    assert!(received >= sent && received * 5 <= sent * 6, "{sent} requests of clients became {received}");
    assert_eq!(ejected, 0, "who is busy is not ill");
    strangers.leave(gateway).await;
}

// === requests that fail ===

/// Two instances that fail alike make the request the suspect: no third one is asked, of this model or of another.
pub(crate) async fn fails_everywhere(gateway: &Gateway, status: u16) {
    are_well(gateway, &POOLS).await;
    let favourite = favourite(gateway).await;
    let ill = |instance: InstanceId| error("InternalServerError", &format!("Instance {} is ill.", instance.index()));
    let instances_of = |pools: &[&str]| pools.iter().flat_map(|pool| instances(gateway, pool)).collect::<Vec<_>>();
    let rows = [
        (POOL, instances_of(&[POOL]), Request::chat(MODEL)),
        (favourite.as_str(), instances_of(&POOLS), for_quality(Request::chat("auto"))),
    ];
    for (pool, all, request) in rows {
        let answer = move |post: &server::Post, _| Act::json(status, &ill(post.instance));
        let strangers = Strangers::in_place_of(gateway, &all, Page::Vllm, answer).await;
        let requests = async {
            for sent in 1..=5 {
                let reply = gateway.send(&request).await;
                assert_eq!((reply.status, reply.arrivals.len()), (status, 0), "{pool}: {reply:?}");
                let posts = strangers.posts();
                assert_eq!(posts.len(), 2 * sent, "{pool}: two instances are asked: {reply:?}");
                let (first, second) = (posts[2 * sent - 2].instance, posts[2 * sent - 1].instance);
                assert_ne!(first, second, "{pool}");
                assert_eq!(reply.json(), ill(second), "{pool}: the error is the instance's own");
                assert_eq!(reply.header("x-envoy-ratelimited"), None, "{pool}");
                for post in [&posts[2 * sent - 2], &posts[2 * sent - 1]] {
                    let served = &gateway.pool_of(post.instance).served_model;
                    assert!(post.says(&format!(r#""model":"{served}""#)), "{pool}: each is asked for its own model");
                }
            }
        };
        let ((), ejected) = watched(gateway, pool, requests).await;
        assert_eq!(ejected, 0, "{pool}: by requests that may be the reason");
        strangers.leave(gateway).await;
        are_well(gateway, &[pool]).await;
    }
}

/// Streams that say inside of status 200 whose fault it is: path, the word of the request that provokes it, the event, and whether that
/// is load.
const EVENTS: &[(&str, &str, &str, bool)] = &[
    (
        MESSAGES,
        "Overload.",
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"x\"}}\n\n",
        true,
    ),
    (
        RESPONSES,
        "Limit.",
        "event: response.failed\ndata: {\"type\":\"response.failed\",\"sequence_number\":1,\"response\":{\"id\":\"resp_1\",\"object\":\"response\",\"status\":\"failed\",\"error\":{\"code\":\"rate_limit_exceeded\",\"message\":\"x\"},\"output\":[]}}\n\n",
        true,
    ),
    (
        MESSAGES,
        "Invalid.",
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\",\"message\":\"x\"}}\n\n",
        false,
    ),
];

/// Six for each instance: more than eject it, if they were its own fault.
pub(crate) async fn error_events(gateway: &Gateway) {
    are_well(gateway, &[POOL]).await;
    let all = instances(gateway, POOL);
    let strangers = Strangers::in_place_of(gateway, &all, Page::Vllm, |post, _| {
        let (.., event, _) = EVENTS.iter().find(|(_, word, ..)| post.says(word)).expect("a row's request");
        Act::events([*event])
    })
    .await;
    let rows = async {
        for (path, word, event, is_load) in EVENTS {
            let fields = match *path {
                RESPONSES => format!(r#""max_output_tokens":8,"input":"{word}""#),
                _ => format!(r#""max_tokens":8,"messages":[{{"role":"user","content":"{word}"}}]"#),
            };
            let request = Request::post(path, format!(r#"{{"model":"{MODEL}","stream":true,{fields}}}"#));
            let sent = 6 * all.len() as u64;
            let mut expected = failures(gateway).await;
            for _ in 0..sent {
                let answer = answer(gateway, &request).await;
                assert_eq!((status(&answer), answer.end, answer.text()), (200, End::Complete, *event), "{word}");
            }
            if *is_load {
                *expected.entry("busy".to_owned()).or_default() += sent;
            }
            assert_eq!(failures(gateway).await, expected, "{word}");
        }
    };
    let ((), ejected) = watched(gateway, POOL, rows).await;
    assert_eq!(ejected, 0);
    strangers.leave(gateway).await;
}

// === answers that are none ===

/// One instance gives broken answers while its peers serve. After a time of doubt it is avoided.
async fn is_ejected(gateway: &Gateway, answer: Act, is_broken: fn(&Answer) -> bool) {
    are_well(gateway, &[POOL]).await;
    let place = instances(gateway, POOL)[3];
    let strangers = Strangers::saying(gateway, &[place], Page::Absent, answer).await;
    let request = Request::chat(MODEL);
    let requests = one_by_one(gateway, &request, 60, Duration::from_millis(30));
    let (answers, ejected) = watched(gateway, POOL, requests).await;
    let statuses: Vec<u16> = answers.iter().map(status).collect();
    assert!(statuses.iter().all(|seen| *seen == 200), "{statuses:?}");
    let broken = answers.iter().filter(|seen| is_broken(seen)).count();
    assert_eq!(broken, strangers.count(), "its answers, and no others, are broken");
    assert_eq!(ejected, 1, "after {broken} broken answers");
    strangers.leave(gateway).await;
}

pub(crate) async fn empty_answers(gateway: &Gateway) {
    is_ejected(gateway, Act::empty(), |answer| answer.body.is_empty()).await;
}

pub(crate) async fn truncated_answers(gateway: &Gateway) {
    is_ejected(gateway, Act::json(200, &completion(true)).cut(20), |answer| answer.end != End::Complete).await;
}

pub(crate) async fn trailers(gateway: &Gateway) {
    are_well(gateway, &[SMALL_POOL]).await;
    let all = instances(gateway, SMALL_POOL);
    let strangers = Strangers::saying(gateway, &all, Page::Vllm, Act::with_trailer(&completion(true))).await;
    let before = failures(gateway).await;
    for i in 0..4 {
        let id = format!("trailer-{i}");
        let reply = gateway.send(&Request::chat(SMALL_MODEL).header("x-request-id", &id)).await.ok();
        assert_eq!(reply.json(), completion(true));
        let response = &log_line(gateway, &id).await["decision"]["response"];
        assert_eq!((&response["complete"], &response["completion_tokens"]), (&json!(true), &json!(8)), "{response}");
    }
    assert_eq!(failures(gateway).await, before);
    assert_eq!(strangers.count(), 4);
    strangers.leave(gateway).await;
}

/// What a stream has said before its connection was cut is in the log.
pub(crate) async fn cut_stream(gateway: &Gateway) {
    are_well(gateway, &[SMALL_POOL]).await;
    let event = |delta: &Value| {
        let choices = json!([{"index": 0, "delta": delta, "finish_reason": null}]);
        let body =
            json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices});
        format!("data: {body}\n\n")
    };
    let mut events = vec![event(&json!({"role": "assistant", "content": ""}))];
    events.extend((0..6).map(|_| event(&json!({"content": " and rivers"}))));
    // Without the last chunk, of 5 bytes.
    let stream = Act::events(events.iter().map(String::as_str)).cut(5);
    let all = instances(gateway, SMALL_POOL);
    let strangers = Strangers::saying(gateway, &all, Page::Vllm, stream).await;
    let body = format!(
        r#"{{"model":"{SMALL_MODEL}","stream":true,"max_tokens":40,"messages":[{{"role":"user","content":"Name some."}}]}}"#
    );
    let reply = gateway.send(&Request::post(CHAT, body).header("x-request-id", "cut-stream")).await;
    assert_eq!(reply.status, 200);
    assert_ne!(reply.answer.end, End::Complete, "the client sees that the stream was cut");
    assert_eq!(strangers.count(), 1, "what has begun is not sent again");
    let response = &log_line(gateway, "cut-stream").await["decision"]["response"];
    assert_eq!((&response["complete"], &response["estimated"]), (&json!(false), &json!(true)), "{response}");
    assert!(response["completion_tokens"].as_u64().is_some_and(|tokens| tokens > 0), "{response}");
    strangers.leave(gateway).await;
}

// === silence ===

/// Where nobody says whether the instance works, a whole answer has a limit. Who may be at work is not asked to do it twice.
pub(crate) async fn never_answers(gateway: &Gateway) {
    are_well(gateway, &[SMALL_POOL]).await;
    let all = instances(gateway, SMALL_POOL);
    let strangers = Strangers::saying(gateway, &all, Page::Absent, Act::silence()).await;
    let rows = [(Request::chat(SMALL_MODEL), Shape::OpenAi), (messages(SMALL_MODEL), Shape::Anthropic)];
    for (i, (request, shape)) in rows.iter().enumerate() {
        let sent = Instant::now();
        let reply = gateway.send(request).await;
        let took = sent.elapsed();
        has_error_shape(&reply, 504, *shape, "");
        // Two clocks: that of Envoy may be a little ahead.
        assert!((ANSWER_LIMIT.mul_f64(0.99)..4 * ANSWER_LIMIT).contains(&took), "{took:?}: {reply:?}");
        assert_eq!(strangers.count(), i + 1, "it is sent once: {reply:?}");
        if matches!(shape, Shape::Anthropic) {
            assert_eq!(reply.json()["error"]["type"], "timeout_error");
        }
    }
    strangers.leave(gateway).await;
}

/// An instance that reports that it works may take as long as it likes for a whole answer.
pub(crate) async fn long_answer(gateway: &Gateway) {
    are_well(gateway, &[SMALL_POOL]).await;
    let all = instances(gateway, SMALL_POOL);
    // Without usage, so that nobody learns that the model is slow.
    let strangers = Strangers::saying(gateway, &all, Page::Vllm, Act::json(200, &completion(false)).after(LONG)).await;
    let request = async {
        let sent = Instant::now();
        (gateway.send(&Request::chat(SMALL_MODEL)).await.ok(), sent.elapsed())
    };
    let ((reply, took), ejected) = watched(gateway, SMALL_POOL, request).await;
    assert!(took >= LONG && LONG > IDLE_TIMEOUT.max(ANSWER_LIMIT), "{took:?}: {reply:?}");
    assert_eq!((reply.json(), reply.header("x-routebalance-rung")), (completion(false), Some("fused")));
    assert_eq!((strangers.count(), ejected), (1, 0), "received once, by an instance that is well");
    strangers.leave(gateway).await;
}

/// What the filter does not read goes to whoever is there, once.
pub(crate) async fn passed_around_the_dead(gateway: &Gateway) {
    const TRANSCRIPTIONS: &str = "/v1/audio/transcriptions";
    are_well(gateway, &[POOL]).await;
    let all = instances(gateway, POOL);
    let default = &gateway.config().fleet.pools[gateway.config().envoy.default_pool.index()];
    assert_eq!(default.instances, all, "the default pool");
    gateway.fault(all[0], Fault::Refuse).await;
    let strangers = Strangers::in_place_of(gateway, &all[1..], Page::Absent, |post, _| {
        assert_eq!(post.path, TRANSCRIPTIONS);
        let answer = Act::json(200, &json!({"text": "Hello."}));
        if post.says("slow") { answer.after(LONG) } else { answer }
    })
    .await;
    for i in 1..=20 {
        let reply = gateway.send(&Request::post(TRANSCRIPTIONS, "quick")).await.ok();
        assert_eq!((&reply.json()["text"], strangers.count()), (&json!("Hello."), i));
    }
    let sent = Instant::now();
    gateway.send(&Request::post(TRANSCRIPTIONS, "slow")).await.ok();
    assert!(sent.elapsed() >= LONG && LONG > IDLE_TIMEOUT, "{:?}", sent.elapsed());
    assert_eq!(strangers.count(), 21, "it is sent once, however long it takes");
    strangers.leave(gateway).await;
}
