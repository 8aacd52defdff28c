//! What the gateway learns from answers and from feedback, and what its log is good for.

use futures::future::join_all;
use serde_json::{Value, json};

use crate::harness::{Gateway, Reply, Request, eventually, prompts};
use crate::scenarios::{Shape, has_error_shape};
use crate::setups::{EXPLORATION, SECRET};
use crate::state::log_lines_of;

const MODEL: &str = "Qwen2.5-3B-Instruct";
/// Enough connections that each of the two workers gets some.
const CONNECTIONS: usize = 16;

/// The text of one of the demo's prompts.
fn text(at: usize) -> String {
    let rows = prompts(1.0);
    let row: Value = serde_json::from_str(&rows[at % rows.len()]).unwrap();
    row["prompt"].as_str().unwrap().to_owned()
}

fn chat(path: &str, model: &str, text: &str, id: &str) -> Request {
    let body = json!({"model": model, "messages": [{"role": "user", "content": text}]});
    Request::post(path, body.to_string()).header("x-request-id", id)
}

/// Decides and generates nothing.
fn count(route: &str, model: &str, text: &str, id: &str) -> Request {
    chat(&format!("{route}/v1/messages/count_tokens"), model, text, id)
}

/// What the log says of requests, the last one sent last. Envoy writes the log every few seconds, so ask for all at once.
async fn decisions(gateway: &Gateway, ids: &[String]) -> Vec<Value> {
    let lines = log_lines_of(gateway, ids.last().expect("an id")).await;
    let line = |id: &String| lines.iter().find(|line| line["request_id"] == id.as_str()).expect("its line");
    ids.iter().map(|id| line(id)["decision"].clone()).collect()
}

// === lengths ===

pub(crate) async fn lengths(gateway: &Gateway) {
    const CHAT: &str = "/v1/chat/completions";
    let gauge = format!("output_tokens_correction_milli.{MODEL}");
    gateway.send(&chat(CHAT, MODEL, &text(0), "length before")).await.ok();
    let expected = |decision: &Value| decision["predicted_output_tokens"].as_f64().unwrap();
    let correction = |decision: &Value| decision["output_tokens_correction"].as_f64().unwrap();
    for round in 0..8 {
        let requests: Vec<Request> = (0..CONNECTIONS)
            .map(|i| chat(CHAT, MODEL, &text(round * CONNECTIONS + i), &format!("length {round} {i}")))
            .collect();
        join_all(requests.iter().map(|request| gateway.send(request))).await.into_iter().for_each(|r| drop(r.ok()));
    }
    eventually("the gauge of the correction", || gateway.stat(&gauge), |milli| *milli > 1_500).await;
    // Whichever worker decides, it has learnt what both have seen.
    let ids: Vec<String> = (0..CONNECTIONS).map(|i| format!("length after {i}")).collect();
    for id in &ids {
        gateway.send(&chat(CHAT, MODEL, &text(0), id)).await.ok();
    }
    let after = decisions(gateway, &ids).await;
    let before = &decisions(gateway, &["length before".to_owned()]).await[0];
    assert!((correction(before) - 1.0).abs() < 0.1, "{before}");
    for after in &after {
        let factor = expected(after) / expected(before) * correction(before);
        assert!((factor / correction(after) - 1.0).abs() < 0.05, "{before} becomes {after}");
        assert!((1.5..2.6).contains(&correction(after)), "answers are twice as long: {after}");
    }
    let other = gateway.stat("output_tokens_correction_milli.Qwen2.5-72B-Instruct").await;
    assert_eq!(other, 1_000, "nobody has asked the 72B model");
}

// === feedback ===

fn feedback(body: &str) -> Request {
    Request::post("/routebalance/feedback", body).header("authorization", &format!("Bearer {SECRET}"))
}

fn score(id: &str, score: f64) -> Request {
    feedback(&json!({"id": id, "score": score}).to_string())
}

/// The filter's own name of a decision.
fn decision_id(reply: &Reply) -> String {
    reply.header("x-routebalance-decision-id").expect("feedback is taken").to_owned()
}

fn is_accepted(reply: &Reply, id: &str, model: &str, score: f64) {
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")), "{reply:?}");
    let expected = json!({"object": "routebalance.feedback", "id": id, "model": model, "score": score});
    assert_eq!(reply.json(), expected);
    assert!(reply.arrivals.is_empty(), "no instance hears of it: {reply:?}");
}

pub(crate) async fn feedback_statuses(gateway: &Gateway) {
    let anonymous = |request: Request| Request { headers: Vec::new(), ..request };
    let wrong = |secret: &str| anonymous(score("scored", 1.0)).header("authorization", secret);
    let large = format!(r#"{{"id":"{}","score":1}}"#, "x".repeat(5_000));
    let embed = Request::post("/v1/embeddings", r#"{"input":"a sea","dimensions":2}"#);
    gateway.send(&embed.header("x-request-id", "embedded")).await.ok();
    gateway.send(&count("", "auto", "Why?", "counted")).await.ok();
    let rows = [
        ("no secret", anonymous(score("scored", 1.0)), 401, "secret"),
        ("a wrong secret", wrong("Bearer the-secret-of-those-tests"), 401, "secret"),
        ("a part of the secret", wrong("Bearer the-secret"), 401, "secret"),
        ("another scheme", wrong(&format!("Basic {SECRET}")), 401, "secret"),
        ("another method", Request { method: "GET", ..score("scored", 1.0) }, 405, "POST"),
        ("an unknown id", score("never seen", 1.0), 404, "id"),
        ("an embedding", score("embedded", 1.0), 404, "id"),
        ("a count of tokens", score("counted", 1.0), 404, "id"),
        ("no JSON", feedback("good"), 400, "JSON"),
        ("no body", feedback(""), 400, "JSON"),
        ("no score", feedback(r#"{"id":"scored"}"#), 400, "score"),
        ("a score above 1", score("scored", 1.5), 400, "score"),
        ("a score that is text", feedback(r#"{"id":"scored","score":"1"}"#), 400, "score"),
        ("no id", feedback(r#"{"score":1}"#), 400, "id"),
        ("a large body", feedback(&large), 413, "4096"),
        ("a large body of unsaid length", feedback(&large).chunked(1_000), 413, "4096"),
    ];
    for (name, request, status, part) in &rows {
        let reply = gateway.send(request).await;
        assert!(reply.arrivals.is_empty(), "{name}: {reply:?}");
        has_error_shape(&reply, *status, Shape::OpenAi, part);
    }
    assert!(gateway.stat("feedback.refused").await >= rows.len() as u64);
}

pub(crate) async fn feedback_counts_once(gateway: &Gateway) {
    let accepted = gateway.stat("feedback.accepted").await;
    for i in 0..CONNECTIONS {
        let id = decision_id(&gateway.send(&Request::chat(MODEL)).await.ok());
        assert_eq!(id.len(), 16, "{id}");
        // In pieces, or whole; each on a connection of its own, so that it may meet the other worker.
        let first = if i % 2 == 0 { score(&id, 0.5) } else { score(&id, 0.5).chunked(9) };
        is_accepted(&gateway.send(&first).await, &id, MODEL, 0.5);
        has_error_shape(&gateway.send(&score(&id, 0.5)).await, 409, Shape::OpenAi, "scored");
    }
    assert_eq!(gateway.stat("feedback.accepted").await, accepted + CONNECTIONS as u64);
    let again = gateway.send(&Request::chat(MODEL).header("x-request-id", "scored again")).await.ok();
    let id = decision_id(&again);
    gateway.send(&score(&id, 0.25).header("x-request-id", "the event")).await;
    let logged = decisions(gateway, &["scored again".to_owned(), "the event".to_owned()]).await;
    assert_eq!(logged[0]["decision_id"], id.as_str(), "the log has it, too");
    let logged = &logged[1];
    for (field, value) in [
        ("outcome", json!("feedback")),
        ("id", json!(id)),
        ("model", json!(MODEL)),
        ("score", json!(0.25)),
        ("propensity", json!(1.0)),
    ] {
        assert_eq!(logged[field], value, "{field} in {logged}");
    }
    assert!(!gateway.access_log().contains(SECRET) && !gateway.log_text().contains(SECRET));
}

pub(crate) async fn request_ids(gateway: &Gateway) {
    let reply = gateway.send(&Request::chat(MODEL)).await.ok();
    let id = reply.header("x-request-id").expect("the response names the request").to_owned();
    assert_eq!(reply.arrival().1.header("x-request-id"), Some(id.as_str()));
    let own = gateway.send(&Request::chat(MODEL).header("x-request-id", "my own")).await.ok();
    assert_eq!(own.header("x-request-id"), Some("my own"));
    let long = "x".repeat(5_000);
    gateway.send(&Request::chat(MODEL).header("x-request-id", &long)).await.ok();
    let cut = async || gateway.access_log().contains(&"x".repeat(256));
    eventually("the log", cut, |written| *written).await;
    assert!(!gateway.access_log().contains(&"x".repeat(257)), "an id is not logged at any length");
}

/// Two clients give the same id to their requests, at different models: each one's score is that of its own answer.
pub(crate) async fn reused_ids(gateway: &Gateway) {
    let models = [MODEL, "Qwen2.5-72B-Instruct"];
    for turn in 0..CONNECTIONS {
        let mut ids = Vec::new();
        for model in models {
            let reply = gateway.send(&Request::chat(model).header("x-request-id", "shared-1")).await.ok();
            ids.push(decision_id(&reply));
        }
        // What clients choose names nothing.
        has_error_shape(&gateway.send(&score("shared-1", 0.0)).await, 404, Shape::OpenAi, "id");
        let order = if turn % 2 == 0 { [0, 1] } else { [1, 0] };
        for i in order {
            is_accepted(&gateway.send(&score(&ids[i], 0.5)).await, &ids[i], models[i], 0.5);
        }
    }
}

pub(crate) async fn scores_move_the_choice(gateway: &Gateway) {
    // Two kinds of prompts.
    let kinds = [text(0), "Write a poem about the sea and the wind, and then explain every line of it.".to_owned()];
    let ask = async |kind: usize, id: &str| {
        let body = json!({"model": "auto", "messages": [{"role": "user", "content": kinds[kind]}], "max_tokens": 2});
        let request = Request::post("/quality/v1/chat/completions", body.to_string()).header("x-request-id", id);
        let reply = gateway.send(&request).await.ok();
        (reply.header("x-routebalance-model").unwrap().to_owned(), decision_id(&reply))
    };
    let first = [ask(0, "choice 0").await.0, ask(1, "choice 1").await.0];
    let before = decisions(gateway, &["choice 0".to_owned(), "choice 1".to_owned()]).await;
    assert_ne!(before[0]["prototype"], before[1]["prototype"], "the predictor tells the kinds apart");
    let mut scored = 0;
    for i in 0..120 {
        let (model, id) = ask(0, &format!("bad {i}")).await;
        if model == first[0] {
            is_accepted(&gateway.send(&score(&id, 0.0)).await, &id, &first[0], 0.0);
            scored += 1;
        }
        let (model, id) = ask(1, &format!("good {i}")).await;
        is_accepted(&gateway.send(&score(&id, 1.0)).await, &id, &model, 1.0);
    }
    assert!(scored > 0, "the first choice was scored");
    // Whichever worker decides, and a tick later both know.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    for i in 0..CONNECTIONS {
        assert_ne!(ask(0, &format!("moved {i}")).await.0, first[0], "after {scored} scores of 0");
        assert_eq!(ask(1, &format!("stayed {i}")).await.0, first[1], "the other kind stays");
    }
}

// === exploration ===

pub(crate) async fn exploration(gateway: &Gateway) {
    const REQUESTS: usize = 300;
    let id = |i: usize| format!("explored {i}");
    for some in (0..REQUESTS).collect::<Vec<_>>().chunks(CONNECTIONS) {
        let requests: Vec<Request> =
            some.iter().map(|i| count("/cost", "auto", "Why is the sky blue?", &id(*i))).collect();
        join_all(requests.iter().map(|request| gateway.send(request))).await.into_iter().for_each(|r| drop(r.ok()));
    }
    let written = async || {
        let log = gateway.access_log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let ours = |line: &Value| line["request_id"].as_str().is_some_and(|id| id.starts_with("explored "));
        lines.filter(ours).map(|mut line| line["decision"].take()).collect::<Vec<Value>>()
    };
    let decisions = eventually("the log", written, |lines| lines.len() == REQUESTS).await;
    let models = gateway.config().fleet.models.len() - 1;
    let rare = EXPLORATION / models as f64;
    let mut explored = 0;
    let mut rest = 0.0;
    for decision in &decisions {
        let propensity = decision["propensity"].as_f64().unwrap();
        let is_propensity = |value: f64| (propensity - value).abs() < 1e-9;
        assert!(is_propensity(rare) || is_propensity(rare + 1.0 - EXPLORATION), "{decision}");
        let drawn = decision["explored"].as_bool().unwrap();
        assert!(drawn || !is_propensity(rare), "only a lot chooses a model that is not the best: {decision}");
        explored += usize::from(drawn);
        rest += f64::from(u8::from(is_propensity(rare)));
    }
    // Four standard deviations of a binomial count about its mean.
    let bounds = |share: f64| 4.0 * (share * (1.0 - share) / REQUESTS as f64).sqrt();
    let share = explored as f64 / REQUESTS as f64;
    assert!((share - EXPLORATION).abs() < bounds(EXPLORATION), "{share} were drawn");
    let (others, expected) = (rest / REQUESTS as f64, EXPLORATION - rare);
    assert!((others - expected).abs() < bounds(expected), "{others} went to other models than the best");
}
