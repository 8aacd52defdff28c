//! Scenarios that need more than one request, or more than a row says.

use std::collections::BTreeSet;

use futures::future::join_all;
use serde_json::Value;

use crate::harness::{Gateway, Reply, Request, eventually};
use crate::http;
use crate::scenarios::{Shape, has_error_shape, names_its_choice, served_by_default_pool, spoofed};

/// Enough connections that each of the two workers gets some.
const CONNECTIONS: usize = 16;

pub(crate) async fn models(gateway: &Gateway) {
    let list = gateway.send(&Request::get("/v1/models")).await.ok();
    let ids: Vec<String> =
        list.json()["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap().into()).collect();
    let fleet = &gateway.config().fleet;
    let names = fleet.models.iter().map(|m| &m.name).chain(fleet.pools.iter().map(|p| &p.served_model));
    let expected: BTreeSet<&str> = names.map(String::as_str).chain(["auto"]).collect();
    assert_eq!(ids.iter().map(String::as_str).collect::<BTreeSet<_>>(), expected);
    assert_eq!(list.header("access-control-allow-origin"), Some("*"), "browsers may read it");
    assert!(list.json()["data"].as_array().unwrap().iter().all(|m| m["max_model_len"].as_u64().is_some_and(|n| n > 0)));
    for id in ids {
        assert_eq!(gateway.send(&Request::get(&format!("/v1/models/{id}"))).await.ok().json()["id"], id.as_str());
    }
    let unknown = gateway.send(&Request::get("/v1/models/gpt-9")).await;
    has_error_shape(&unknown, 404, Shape::OpenAi, "`gpt-9`");
    assert_eq!(unknown.header("access-control-allow-origin"), Some("*"));
    assert!(list.arrivals.is_empty() && unknown.arrivals.is_empty(), "no instance is asked");
}

pub(crate) async fn stream_is_not_held_back(gateway: &Gateway) {
    let (request, id) = gateway.mark(&Request::long_stream("Qwen2.5-3B-Instruct"));
    let mut tcp = gateway.connect().await;
    request.write(&mut tcp).await;
    let mut seen = String::new();
    while seen.matches("data: ").count() < 20 {
        seen += &read_some(&mut tcp).await;
    }
    let (instance, _) = gateway.arrivals(&id)[0];
    assert!(gateway.instance(instance).gauges().running > 0, "the instance is still at work");
    // The gauge follows with the next tick.
    let gauge = async || gateway.stat("outstanding_requests.qwen2.5-3b").await;
    eventually("the gauge of the stream", gauge, |outstanding| *outstanding > 0).await;
}

/// What comes next on a connection.
pub(crate) async fn read_some(tcp: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut buffer = [0; 4096];
    let read = tokio::time::timeout(crate::harness::SOON, tokio::io::AsyncReadExt::read(tcp, &mut buffer));
    let read = read.await.expect("an answer in time").expect("an answer");
    assert!(read > 0, "the connection has ended");
    String::from_utf8_lossy(&buffer[..read]).into_owned()
}

pub(crate) async fn two_on_one_connection(gateway: &Gateway) {
    let mut tcp = gateway.connect().await;
    for model in ["Qwen2.5-3B-Instruct", "Qwen2.5-72B-Instruct", "gpt-9", "Qwen2.5-7B-Instruct"] {
        let (request, id) = gateway.mark(&Request::chat(model));
        request.write(&mut tcp).await;
        let reply = gateway.reply(http::receive(&mut tcp).await, &id);
        if model == "gpt-9" {
            has_error_shape(&reply, 404, Shape::OpenAi, model);
        } else {
            assert_eq!(reply.ok().header("x-routebalance-model"), Some(model));
        }
    }
}

pub(crate) async fn thirty_at_once(gateway: &Gateway) {
    let requests: Vec<Request> = (0..30)
        .map(|i| match i % 3 {
            0 => Request::chat("auto"),
            1 => Request::chat("Qwen2.5-7B-Instruct"),
            _ => Request::post(
                "/v1/messages",
                r#"{"model":"auto","max_tokens":30,"stream":true,"messages":[{"role":"user","content":"Hi"}]}"#,
            ),
        })
        .collect();
    let replies = join_all(requests.iter().map(|r| gateway.send(r))).await;
    let mut instances = BTreeSet::new();
    for reply in replies {
        let reply = reply.ok();
        names_its_choice(gateway, &reply, "fused");
        instances.insert(reply.arrival().0);
    }
    let of_7b = gateway.pool("qwen2.5-7b").instances.iter().filter(|i| instances.contains(i)).count();
    assert_eq!(of_7b, 5, "ten requests for a model reach all of its instances: {instances:?}");
}

pub(crate) async fn stored_response(gateway: &Gateway) {
    for stream in [false, true] {
        let body = format!(
            r#"{{"model":"Qwen2.5-7B-Instruct","input":"Name a sea.","max_output_tokens":9,"stream":{stream}}}"#
        );
        let made = gateway.send(&Request::post("/v1/responses", body)).await.ok();
        let (holder, _) = *made.arrival();
        let id = made.answer.text().split("resp_").nth(1).unwrap().split('"').next().unwrap();
        let id = format!("resp_{id}");
        let get = Request::get(&format!("/v1/responses/{id}"));
        let next = format!(r#"{{"previous_response_id":"{id}","input":"And a lake?","max_output_tokens":9}}"#);
        let next = Request::post("/v1/responses", next);
        for _ in 0..CONNECTIONS {
            let found = gateway.send(&spoofed(get.clone(), gateway)).await.ok();
            assert_eq!((found.arrival().0, found.json()["id"].as_str()), (holder, Some(id.as_str())));
            let continued = gateway.send(&next).await.ok();
            assert_eq!(continued.arrival().0, holder);
            names_its_choice(gateway, &continued, "fused");
        }
        let other =
            format!(r#"{{"previous_response_id":"{id}","model":"Qwen2.5-72B-Instruct","input":"And a lake?"}}"#);
        let other = gateway.send(&Request::post("/v1/responses", other)).await;
        has_error_shape(&other, 404, Shape::OpenAi, "stored by the model `Qwen2.5-7B-Instruct`");
        assert!(other.arrivals.is_empty(), "no instance is asked");
    }
    let unknown = gateway.send(&Request::get("/v1/responses/resp_0")).await;
    assert_eq!((unknown.status, unknown.arrivals.len()), (404, 1), "an instance says so: {unknown:?}");
}

pub(crate) async fn routes_choose_differently(gateway: &Gateway) {
    let choice = async |route: &str| {
        let chat = Request::chat("auto");
        let request = Request { path: format!("/{route}{}", chat.path), ..chat };
        let reply = gateway.send(&request).await.ok();
        assert_eq!(reply.arrival().1.path, "/v1/chat/completions", "the prefix is gone");
        reply.header("x-routebalance-model").unwrap().to_owned()
    };
    let (quality, cost) = (choice("quality").await, choice("cost").await);
    let tariff = |name: &str| {
        let fleet = &gateway.config().fleet;
        fleet.models[fleet.model_named(name).unwrap().index()].tariff.usd_per_output_token
    };
    assert!(tariff(&quality) > tariff(&cost), "quality pays more: {quality} against {cost}");
}

pub(crate) async fn control_headers_choose_nothing(gateway: &Gateway) {
    for _ in 0..CONNECTIONS {
        let reply = gateway.send(&spoofed(Request::chat("Qwen2.5-3B-Instruct"), gateway)).await.ok();
        let (instance, received) = reply.arrival();
        assert_eq!(gateway.pool_of(*instance).name, "qwen2.5-3b");
        names_its_choice(gateway, &reply, "fused");
        let endpoints = received.headers.iter().filter(|(name, _)| name == "x-gateway-destination-endpoint");
        let own = |address: &str| {
            gateway
                .pool("qwen2.5-3b")
                .instances
                .iter()
                .any(|i| gateway.config().fleet.instances[i.index()].address == address)
        };
        assert!(endpoints.flat_map(|(_, list)| list.split(',')).all(own), "{received:?}");
    }
}

/// A chat request of so many bytes whose answer is short: the bulk stands in a field that instances ignore.
pub(crate) fn bulky(bytes: usize, model_first: bool, path: &str) -> Request {
    let (first, last) =
        if model_first { (r#""model":"Qwen2.5-3B-Instruct","#, "") } else { ("", r#","model":"Qwen2.5-3B-Instruct""#) };
    let filler: String = (0..bytes / 8).map(|i| format!("{i:07x} ")).collect();
    let body =
        format!(r#"{{{first}"messages":[{{"role":"user","content":"Why?"}}],"max_tokens":3,"user":"{filler}"{last}}}"#);
    Request::post(path, body)
}

fn renamed(body: &[u8]) -> Vec<u8> {
    String::from_utf8_lossy(body).replace("Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-3B-Instruct").into_bytes()
}

pub(crate) fn arrived_whole(request: &Request, reply: &Reply) {
    let (_, received) = reply.arrival();
    let expected = renamed(&request.body);
    assert!(received.body == expected, "{} bytes arrive instead of {}", received.body.len(), expected.len());
}

pub(crate) async fn one_megabyte(gateway: &Gateway) {
    for request in
        [bulky(1 << 20, false, "/v1/chat/completions"), bulky(1 << 20, false, "/v1/chat/completions").chunked(50_000)]
    {
        let reply = gateway.send(&request).await;
        assert_eq!(reply.status, 200, "{}", reply.answer.text());
        arrived_whole(&request, &reply);
    }
}

pub(crate) async fn model_first_streams_on(gateway: &Gateway) {
    for request in
        [bulky(3_000_000, true, "/v1/chat/completions"), bulky(3_000_000, true, "/v1/chat/completions").chunked(10_000)]
    {
        let reply = gateway.send(&request).await;
        assert_eq!(reply.status, 200, "{}", reply.answer.text());
        arrived_whole(&request, &reply);
        names_its_choice(gateway, &reply, "priors");
    }
}

pub(crate) async fn model_last_is_too_large(gateway: &Gateway) {
    for (path, shape) in [("/v1/chat/completions", Shape::OpenAi), ("/v1/messages", Shape::Anthropic)] {
        let reply = gateway.send(&bulky(3_000_000, false, path)).await;
        has_error_shape(&reply, 413, shape, "larger than 65536 bytes");
        assert!(reply.arrivals.is_empty(), "{reply:?}");
    }
}

pub(crate) async fn unknown_model_passes(gateway: &Gateway) {
    let request = Request::chat("gpt-9");
    let reply = gateway.send(&spoofed(request.clone(), gateway)).await;
    served_by_default_pool(gateway, &reply, std::str::from_utf8(&request.body).unwrap());
    assert_eq!(reply.header("x-routebalance-rung"), Some("untouched"));
    assert_eq!(gateway.stat("untouched.unknown_model").await, 1);
}

pub(crate) async fn untouched(gateway: &Gateway) {
    let body = r#"{"messages":[{"role":"user","content":"Hi"}],"max_tokens":3}"#;
    let reply = gateway.send(&spoofed(Request::post("/v1/chat/completions", body), gateway)).await.ok();
    served_by_default_pool(gateway, &reply, body);
    assert_eq!(reply.header("x-routebalance-rung"), Some("untouched"));
    assert_eq!(gateway.stat("untouched.drill").await, 1);
}

pub(crate) async fn bypassed(gateway: &Gateway) {
    let body = r#"{"messages":[{"role":"user","content":"Hi"}],"max_tokens":3}"#;
    for _ in 0..CONNECTIONS {
        let request = Request::post("/v1/chat/completions", body).header("wasm.routebalance_routed", "whole");
        let reply = gateway.send(&spoofed(request, gateway)).await.ok();
        served_by_default_pool(gateway, &reply, body);
    }
    log_lines(gateway, CONNECTIONS).await;
}

/// The lines of the access log once there are so many; Envoy writes them with a delay.
async fn log_lines(gateway: &Gateway, at_least: usize) -> Vec<Value> {
    let log = eventually("the access log", async || gateway.access_log(), |log| log.lines().count() >= at_least).await;
    let parsed = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}"));
    log.lines().map(parsed).collect()
}

/// The lines of the access log once the one of this request is among them.
pub(crate) async fn log_lines_of(gateway: &Gateway, request_id: &str) -> Vec<Value> {
    let mark = Value::from(request_id).to_string();
    let log = eventually("the access log", async || gateway.access_log(), |log| log.contains(&mark)).await;
    // Envoy may be in the middle of another line.
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

pub(crate) async fn access_log(gateway: &Gateway) {
    let before = eventually(
        "the log's end",
        async || {
            let lines = gateway.access_log().lines().count() as u64;
            let requests = gateway.envoy_stats("http.routebalance.downstream_rq_total").await;
            (lines, requests.values().sum::<u64>())
        },
        |(lines, requests)| lines == requests,
    )
    .await
    .0;
    let secret = "xyzzy-plugh";
    let body = |model: &str, stream: bool| {
        format!(
            r#"{{"model":"{model}","stream":{stream},"messages":[{{"role":"user","content":"{secret}"}}],"max_tokens":7}}"#
        )
    };
    let chat = |body: String, id: &str| Request::post("/v1/chat/completions", body).header("x-request-id", id);
    let requests = [
        chat(body("auto", false), "whole"),
        chat(body("Qwen2.5-3B-Instruct", true), "streamed"),
        chat(body("no \\\" such", false), "refused"),
        chat(body("auto", false), r#"a "quoted" \ id"#),
        Request::get("/version").header("x-request-id", "passed"),
        Request::get("/v1/models").header("x-request-id", "answered"),
        Request { method: "BREW", ..Request::get("/pot") }.header("x-request-id", "odd"),
    ];
    let mut replies = Vec::new();
    for request in &requests {
        replies.push(gateway.send(request).await);
    }
    let lines = log_lines(gateway, before as usize + requests.len()).await;
    assert_eq!(lines.len(), before as usize + requests.len(), "one line per request");
    assert!(!gateway.access_log().contains(secret), "no text of prompts");
    let line = |id: &str| lines.iter().find(|l| l["request_id"] == id).unwrap_or_else(|| panic!("no line of {id}"));
    for (reply, id) in replies.iter().zip(["whole", "streamed"]) {
        let (line, (instance, _)) = (line(id), reply.arrival());
        let decision = &line["decision"];
        let pool = gateway.pool_of(*instance);
        assert_eq!((&line["status"], &line["method"]), (&Value::from(200), &Value::from("POST")));
        assert_eq!(line["upstream"], gateway.config().fleet.instances[instance.index()].address.as_str());
        for (field, value) in [
            ("api", "chat_completions".into()),
            ("policy", "balanced".into()),
            ("model", Value::from(gateway.config().fleet.model_of(pool).unwrap().name.as_str())),
            ("pool", pool.name.as_str().into()),
            ("rung", "fused".into()),
            ("stream", (id == "streamed").into()),
            ("body_bytes", requests[usize::from(id == "streamed")].body.len().into()),
        ] {
            assert_eq!(decision[field], value, "{field} in {line}");
        }
        assert_eq!(decision["response"]["complete"], true, "{line}");
        let tokens = decision["response"]["completion_tokens"].as_u64().unwrap_or(0);
        // Without usage they are estimated from the text.
        let expected = if id == "streamed" { 5..=9 } else { 7..=7 };
        assert!(expected.contains(&tokens), "{line}");
        assert_eq!(decision["response"]["estimated"], id == "streamed", "{line}");
    }
    assert_eq!(line("refused")["decision"]["outcome"], "refused");
    assert_eq!(line("passed")["decision"]["outcome"], "passed");
    assert_eq!(line("answered")["decision"]["outcome"], "answered");
    assert!(lines.iter().filter(|l| l["decision"]["rung"].is_string()).count() > 50, "decisions are logged");
}

/// A request whose client leaves in the middle has cost something, and the log says what.
pub(crate) async fn log_of_a_client_that_left(gateway: &Gateway) {
    let mut tcp = gateway.connect().await;
    Request::long_stream("Qwen2.5-3B-Instruct").header("x-request-id", "left-early").write(&mut tcp).await;
    while !read_some(&mut tcp).await.contains("data: ") {}
    drop(tcp);
    let line = async || {
        let log = gateway.access_log();
        log.lines().find(|line| line.contains("left-early")).map(str::to_owned).unwrap_or_default()
    };
    let line = eventually("the log's line", line, |line| !line.is_empty()).await;
    let line: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let response = &line["decision"]["response"];
    assert_eq!((&response["complete"], &response["estimated"]), (&Value::from(false), &Value::from(true)), "{line}");
    assert!(response["usd"].as_f64().is_some_and(|usd| usd > 0.0), "{line}");
}
