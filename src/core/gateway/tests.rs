use std::time::Duration;

use memory::ROOT;
use scene::Scene;
use serde_json::{Value, json};

use super::*;
use crate::config::Config;
use crate::names;
use crate::random::Random;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

mod scene;

const CHAT: &str = "/v1/chat/completions";
const AUTO: &[u8] = br#"{"model": "auto", "messages": [{"role": "user", "content": "What is 2 + 2?"}]}"#;
const STREAM: &[u8] =
    br#"{"model": "auto", "stream": true, "messages": [{"role": "user", "content": "What is 2 + 2?"}]}"#;
const ANSWER: &[u8] = br#"{"id":"chatcmpl-1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"4"},"finish_reason":"stop"}],"usage":{"prompt_tokens":12,"completion_tokens":1,"total_tokens":13}}"#;
const EVENTS: &[u8] = b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"4\"}}]}\n\ndata: [DONE]\n\n";

/// The shipped configuration with what is given, and priors instead of the predictor.
fn gateway(host: &mut Scene, more: &Value) -> Gateway {
    let mut json: Value = serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap();
    json["predictor"] = json!({"enabled": false});
    for (field, value) in more.as_object().unwrap() {
        json[field] = value.clone();
    }
    let config = Config::parse(json.to_string().as_bytes()).unwrap();
    host.time = Duration::from_secs(1_000);
    Gateway::new(Router::new(config, None), 7, host)
}

/// A whole request comes at once.
fn send(gateway: &mut Gateway, host: &mut Scene, id: u32, body: &[u8]) -> Flow {
    host.request(id, CHAT, &[], body);
    assert_eq!(gateway.on_request_headers(host, id, false), Flow::Pause);
    gateway.on_request_body(host, id, body.len(), true)
}

fn answer(gateway: &mut Gateway, host: &mut Scene, id: u32) {
    let address = host.request_header(id, names::ENDPOINT_HEADER).unwrap().split(',').next().unwrap().to_owned();
    host.respond_from(id, &address, "200", "application/json", ANSWER);
    gateway.on_response_headers(host, id, false);
    gateway.on_response_body(host, id, ANSWER.len(), true);
    gateway.on_end(host, id);
}

fn open(gateway: &Gateway, host: &Scene) -> u64 {
    gateway.worker.all_counters(host).0.iter().map(|c| c.outstanding_requests()).sum()
}

/// Lets ticks pass, in which every scrape is answered by a page that says so many requests run.
fn tick(gateway: &mut Gateway, host: &mut Scene, ticks: u32, page: impl Fn(&str) -> Option<String>) {
    for _ in 0..ticks {
        host.time += gateway.tick_period();
        host.current = ROOT;
        gateway.on_tick(host, ROOT);
        assert_eq!(host.current, ROOT, "what follows is about the root context");
        let scrapes =
            |call: &memory::HostCall| call.headers.iter().any(|(name, value)| name == ":path" && value == "/metrics");
        let (scrapes, others): (Vec<_>, Vec<_>) = std::mem::take(&mut host.calls).into_iter().partition(scrapes);
        host.calls = others;
        for call in scrapes {
            let authority = &call.headers.iter().find(|(name, _)| name == ":authority").unwrap().1;
            let page = page(authority);
            let status = if page.is_some() { "200" } else { "503" };
            host.call_response = (vec![(":status".to_owned(), status.to_owned())], page.unwrap_or_default().into());
            let size = host.call_response.1.len();
            gateway.on_call_response(host, ROOT, call.number, true, size);
        }
    }
}

fn idle(_: &str) -> Option<String> {
    Some("vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n".to_owned())
}

#[test]
fn a_request_goes_where_the_decision_says_and_its_load_ends_with_it() {
    let mut host = Scene::default();
    let mut gateway = gateway(&mut host, &json!({}));
    tick(&mut gateway, &mut host, 10, idle);
    assert_eq!(send(&mut gateway, &mut host, 5, AUTO), Flow::Continue);
    assert_eq!(open(&gateway, &host), 1);
    let pool = host.request_header(5, names::POOL_HEADER).unwrap().to_owned();
    let fleet = &gateway.worker.router.config().fleet;
    let served = fleet.pools.iter().find(|p| p.cluster == pool).unwrap().served_model.clone();
    let exchange = host.exchange(5);
    let body: Value = serde_json::from_slice(&exchange.body).unwrap();
    assert_eq!(body["model"], json!(served));
    assert_eq!(host.request_header(5, "content-length"), Some(exchange.body.len().to_string().as_str()));
    assert_eq!(exchange.states[names::ROUTED_STATE], "whole 5");
    assert_eq!(exchange.routes_cleared, 1);
    answer(&mut gateway, &mut host, 5);
    let exchange = host.exchange(5);
    let header = |name| exchange.response.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
    assert_eq!(header(names::RUNG_RESPONSE_HEADER), Some("priors"));
    assert!(exchange.states[names::DECISION_STATE].contains(r#""completion_tokens":1"#));
    assert_eq!(open(&gateway, &host), 0);
    assert_eq!(gateway.holding(), Holding::default());
}

#[test]
fn what_is_not_decided_is_refused_passed_or_answered() {
    let rows: [(&str, &[u8], Option<u16>, &str); 6] = [
        ("/v1/files", b"{}", None, "other_path"),
        (CHAT, b"no json", Some(400), "body"),
        (CHAT, br#"{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}"#, Some(404), "unknown_model"),
        ("/v1/models", b"", Some(200), "models"),
        ("/v1/models/nobody", b"", Some(404), "unknown_model"),
        ("/v1/rerank", br#"{"model": "auto"}"#, None, "other_path"),
    ];
    for (path, body, status, why) in rows {
        let mut host = Scene::default();
        let mut gateway = gateway(&mut host, &json!({}));
        host.request(9, path, &[], body);
        if path.starts_with("/v1/models") {
            host.exchanges.get_mut(&9).unwrap().request[0].1 = "GET".to_owned();
        }
        let flow = gateway.on_request_headers(&mut host, 9, body.is_empty());
        let flow = if body.is_empty() { flow } else { gateway.on_request_body(&mut host, 9, body.len(), true) };
        let answered = host.exchange(9).answered.as_ref().map(|answer| answer.status);
        assert_eq!((answered, flow == Flow::Pause), (status, status.is_some()), "{path} {why}");
        gateway.on_end(&mut host, 9);
        assert!(gateway.streams.is_empty() && open(&gateway, &host) == 0, "{path}");
    }
}

/// A header may have 60 KB, and a log has a line for each request.
#[test]
fn what_a_client_says_does_not_fill_the_log() {
    let mut host = Scene::default();
    let policy =
        json!([{"name": "balanced", "weights": {"quality": 1, "latency": 1, "cost": 1}, "budget": {"usd": 1}}]);
    let mut gateway = gateway(&mut host, &json!({"policies": policy, "routes": [], "default_policy": "balanced"}));
    let encoding = "\u{e9}".repeat(30_000);
    host.request(9, CHAT, &[("content-encoding", &encoding)], AUTO);
    gateway.on_request_headers(&mut host, 9, false);
    let path = format!("/v1/models/{encoding}");
    host.request(10, &path, &[], b"");
    host.exchanges.get_mut(&10).unwrap().request[0].1 = "GET".to_owned();
    gateway.on_request_headers(&mut host, 10, true);
    for id in [9, 10] {
        let line = &host.exchange(id).states[names::DECISION_STATE];
        assert!(line.len() < 1_000, "{} bytes", line.len());
    }
}

#[test]
fn requests_of_a_batch_wait_and_are_resumed_in_the_tick() {
    let mut host = Scene::default();
    let policies = json!([{"name": "balanced", "weights": {"quality": 1, "latency": 1, "cost": 1},
        "batching": {"mode": "fixed", "size": 4, "window_ms": 20, "max_wait_ms": 50}}]);
    let mut gateway = gateway(&mut host, &json!({"policies": policies, "routes": [], "default_policy": "balanced"}));
    for id in 10..13 {
        assert_eq!(send(&mut gateway, &mut host, id, AUTO), Flow::Pause);
    }
    assert_eq!(open(&gateway, &host), 0);
    // One leaves while it waits.
    host.current = 11;
    gateway.on_end(&mut host, 11);
    tick(&mut gateway, &mut host, 20, idle);
    assert_eq!((host.exchange(10).resumed, host.exchange(11).resumed, host.exchange(12).resumed), (1, 0, 1));
    assert_eq!(open(&gateway, &host), 2);
    for id in [10, 12] {
        answer(&mut gateway, &mut host, id);
        assert!(host.exchange(id).states[names::DECISION_STATE].contains(r#""batch_size":2"#), "{id}");
    }
    // The one that fills a batch is told at once.
    let flows: Vec<Flow> = (20..24).map(|id| send(&mut gateway, &mut host, id, AUTO)).collect();
    assert_eq!(flows, [Flow::Pause, Flow::Pause, Flow::Pause, Flow::Continue]);
    assert_eq!((host.current, host.exchange(20).resumed), (23, 1));
}

/// Others read the log: its fields, their order and their values stay.
#[test]
fn the_line_of_the_log_is_what_it_was() {
    const ANSWERED: &str = r#","request_id":"r-1","decision":{"decision_id":"73d33b666a1e21da","api":"chat_completions","policy":"priced","requested_model":"auto","model":"Qwen2.5-32B-Instruct","pool":"qwen2.5-32b","endpoint":"127.0.0.1:18021","rung":"unhonoured","candidates":13,"relaxed":["ttft"],"saturated":false,"budget_usd":0.001,"budget_exhausted":false,"max_tokens":4993,"score":0.67,"price":0.0,"stream":false,"body_bytes":78,"scan_us":0,"decision_us":0,"patch_us":0,"batch_size":1,"batch_position":0,"batch_wait_ms":20.0,"predicted":false,"predicted_quality":0.67,"predicted_quality_sd":0.2,"familiarity":null,"prototype":null,"propensity":1.0,"explored":false,"predicted_output_tokens":250,"predicted_output_tokens_p80":475,"predicted_output_tokens_p90":675,"output_tokens_correction":1.0,"predicted_seconds":10.4,"predicted_ttft_ms":63.043,"predicted_tpot_ms":41.606,"predicted_e2e_ms":10422.881,"predicted_usd":0.00010266000000000001,"estimated_prompt_tokens":7,"estimated_cached_tokens":0,"response":{"ttft_ms":50.0,"e2e_ms":50.0,"prompt_tokens":12,"cached_tokens":4,"completion_tokens":1,"estimated":false,"error_event":false,"complete":true,"usd":2.6000000000000005e-6}}"#;
    let mut host = Scene::default();
    let policy = json!({"name": "priced", "weights": {"quality": 1, "latency": 0, "cost": 0}, "objective": "prices",
        "budget": {"usd": 0.001}, "prices": {"Qwen2.5-7B-Instruct": 0.01}, "trust_request_headers": true,
        "batching": {"mode": "fixed", "size": 4, "window_ms": 20, "max_wait_ms": 50}});
    let more = json!({"policies": [policy], "routes": [], "default_policy": "priced",
        "learning": {"feedback": {"secret": "sixteen-letters-x"}}});
    let mut gateway = gateway(&mut host, &more);
    tick(&mut gateway, &mut host, 10, idle);
    host.request(5, CHAT, &[(names::TTFT_SLO_HEADER, "0.001")], AUTO);
    gateway.on_request_headers(&mut host, 5, false);
    gateway.on_request_body(&mut host, 5, AUTO.len(), true);
    tick(&mut gateway, &mut host, 10, idle);
    assert_eq!(host.exchange(5).states.get(names::DECISION_STATE), None, "it is written once");
    let address = host.request_header(5, names::ENDPOINT_HEADER).unwrap().split(',').nth(1).unwrap().to_owned();
    let cached = String::from_utf8_lossy(ANSWER).replace("13}", r#"13,"prompt_tokens_details":{"cached_tokens":4}}"#);
    host.respond_from(5, &address, "200", "application/json", cached.as_bytes());
    gateway.on_response_headers(&mut host, 5, false);
    gateway.on_response_body(&mut host, 5, cached.len(), true);
    assert_eq!(host.exchange(5).states[names::DECISION_STATE], ANSWERED);
}

/// An instance that works on nothing any more, by its reports: another one is asked for its whole answers.
#[test]
fn a_whole_answer_whose_instance_is_gone_is_asked_for_elsewhere() {
    let mut host = Scene::default();
    let mut gateway = gateway(&mut host, &json!({}));
    tick(&mut gateway, &mut host, 10, idle);
    send(&mut gateway, &mut host, 5, AUTO);
    let listed = host.request_header(5, names::ENDPOINT_HEADER).unwrap().to_owned();
    let first = listed.split(',').next().unwrap().to_owned();
    tick(&mut gateway, &mut host, 60, |address| if address == first { None } else { idle(address) });
    let call = host.calls.pop().unwrap();
    let asked = call.headers.iter().find(|(name, _)| name == names::ENDPOINT_HEADER).unwrap().1.clone();
    assert!(listed.contains(&asked) && asked != first, "{asked} of {listed}");
    let cluster = |address: &str| {
        let fleet = &gateway.worker.router.config().fleet;
        fleet.pools[fleet.instances[fleet.instance_at(address).unwrap().index()].pool.index()].cluster.clone()
    };
    assert_eq!(call.cluster, cluster(&asked));
    assert!(serde_json::from_slice::<Value>(&call.body).unwrap()["model"].is_string());
    let counters = gateway.worker.all_counters(&host);
    let at = gateway.worker.router.config().fleet.instance_at(&asked).unwrap();
    assert_eq!(counters.0[at.index()].outstanding_requests(), 1, "its load has gone with it");
    host.call_response = (vec![(":status".to_owned(), "200".to_owned())], ANSWER.to_vec());
    host.current = ROOT;
    gateway.on_call_response(&mut host, ROOT, call.number, true, ANSWER.len());
    assert_eq!(
        host.exchange(5).answered.as_ref().map(|answer| (answer.status, answer.body.len())),
        Some((200, ANSWER.len()))
    );
    // Envoy shows the answer as it would any other.
    host.respond_from(5, "", "200", "application/json", ANSWER);
    gateway.on_response_headers(&mut host, 5, false);
    gateway.on_response_body(&mut host, 5, ANSWER.len(), true);
    gateway.on_end(&mut host, 5);
    assert!(open(&gateway, &host) == 0 && gateway.holding().reruns == (0, 0));
}

#[test]
fn a_request_that_breaks_two_instances_is_given_to_no_third() {
    let mut host = Scene::default();
    let mut gateway = gateway(&mut host, &json!({}));
    tick(&mut gateway, &mut host, 10, idle);
    send(&mut gateway, &mut host, 5, STREAM);
    assert_eq!(context_of(&host), Some(5));
    let listed: Vec<String> =
        host.request_header(5, names::ENDPOINT_HEADER).unwrap().split(',').map(str::to_owned).collect();
    let mut attempts = Vec::new();
    for address in listed.iter().skip(1).take(2) {
        let mut attempt = Attempt::default();
        let exchange = host.exchanges.get_mut(&5).unwrap();
        exchange.properties.insert("upstream.address".to_owned(), address.clone());
        exchange.properties.insert("upstream.local_address".to_owned(), "127.0.0.1:1".to_owned());
        attempts.push(attempt.on_request_headers(&mut host, Some(&mut gateway), 5, false));
        let at = gateway.worker.router.config().fleet.instance_at(address).unwrap();
        if attempts.len() == 1 {
            assert_eq!(gateway.worker.all_counters(&host).0[at.index()].outstanding_requests(), 1);
        }
        attempt.on_done(&host, Some(&mut gateway), 5);
    }
    let answered = host.exchange(5).answered.as_ref().map(|answer| answer.status);
    assert_eq!((attempts, answered), (vec![Flow::Continue, Flow::Pause], Some(502)));
    // A VM that does not know the request gives no body to the wrong model.
    let mut host = Scene::default();
    host.request(6, CHAT, &[], STREAM);
    Attempt::default().on_request_headers(&mut host, None, 6, false);
    assert_eq!(host.exchange(6).answered.as_ref().map(|answer| answer.status), Some(503));
}

/// An attempt says its body's length before the body comes, whatever an attempt before it has said.
#[test]
fn an_attempt_at_another_model_says_the_length_of_its_own_body() {
    let mut host = Scene::default();
    let mut gateway = gateway(&mut host, &json!({}));
    tick(&mut gateway, &mut host, 10, idle);
    host.request(5, CHAT, &[("content-length", &STREAM.len().to_string())], STREAM);
    gateway.on_request_headers(&mut host, 5, false);
    gateway.on_request_body(&mut host, 5, STREAM.len(), true);
    let sent = host.exchange(5).body.clone();
    let listed: Vec<String> =
        host.request_header(5, names::ENDPOINT_HEADER).unwrap().split(',').skip(1).map(str::to_owned).collect();
    let mut lengths = std::collections::BTreeSet::new();
    for address in &listed {
        let exchange = host.exchanges.get_mut(&5).unwrap();
        exchange.properties.insert("upstream.address".to_owned(), address.clone());
        exchange.body.clone_from(&sent);
        let mut attempt = Attempt::default();
        assert_eq!(attempt.on_request_headers(&mut host, Some(&mut gateway), 5, false), Flow::Continue);
        let said: usize = host.request_header(5, "content-length").unwrap().parse().unwrap();
        assert_eq!(attempt.on_request_body(&mut host, sent.len(), true), Flow::Continue);
        assert_eq!(host.exchange(5).body.len(), said, "{address}");
        lengths.insert(said);
    }
    assert!(lengths.len() > 1, "models have names of several lengths");
    // A body that is none of the request's goes nowhere.
    let mut attempt = Attempt::default();
    host.exchanges.get_mut(&5).unwrap().properties.insert("upstream.address".to_owned(), listed[0].clone());
    attempt.on_request_headers(&mut host, Some(&mut gateway), 5, false);
    host.exchanges.get_mut(&5).unwrap().body = b"{}".to_vec();
    assert_eq!(attempt.on_request_body(&mut host, 2, true), Flow::Pause);
    assert_eq!(host.exchange(5).answered.as_ref().map(|answer| answer.status), Some(503));
}

/// Other hosts of a shared listener: their calls look like ours, and their routes are not marked.
#[test]
fn routes_that_are_not_marked_may_be_somebody_elses() {
    for (only_marked, policy, is_ours) in [(false, None, true), (true, Some("cost"), true), (true, None, false)] {
        let mut host = Scene::default();
        let mut gateway = gateway(&mut host, &json!({"only_marked_routes": only_marked}));
        for path in [CHAT, "/v1/models", names::FEEDBACK_PATH, "/x"] {
            host.request(5, path, &[(names::ENDPOINT_HEADER, "theirs")], AUTO);
            let properties = &mut host.exchanges.get_mut(&5).unwrap().properties;
            let at = "xds.route_metadata.filter_metadata.routebalance.policy".to_owned();
            properties.extend(policy.map(|policy| (at, policy.to_owned())));
            let flow = gateway.on_request_headers(&mut host, 5, false);
            assert_eq!(host.request_header(5, names::ENDPOINT_HEADER).is_none(), is_ours, "{path}");
            assert_eq!(gateway.has(5), is_ours, "{path}");
            assert!(is_ours || flow == Flow::Continue, "{path}");
            gateway.on_end(&mut host, 5);
        }
    }
}

/// Where headers have gone on undecided, Envoy's own route serves, unless limits would be lost.
#[test]
fn headers_that_have_gone_on_cost_the_decision_and_no_limit() {
    for (budget, status) in [(Value::Null, None), (json!({"tokens": 9}), Some(503))] {
        let mut host = Scene::default();
        let mut policy = json!({"name": "balanced", "weights": {"quality": 1, "latency": 1, "cost": 1}});
        if budget.is_object() {
            policy["budget"] = budget;
        }
        let more = json!({"policies": [policy], "routes": [], "default_policy": "balanced"});
        let mut gateway = gateway(&mut host, &more);
        host.request(5, CHAT, &[], AUTO);
        assert_eq!(gateway.on_request_headers(&mut host, 5, false), Flow::Pause);
        assert!(gateway.awaits_body(5));
        let flow = gateway.on_headers_gone(&mut host, 5);
        assert_eq!(flow == Flow::Continue, status.is_none());
        gateway.on_request_body(&mut host, 5, AUTO.len(), true);
        assert_eq!(host.exchange(5).answered.as_ref().map(|answer| answer.status), status);
        assert!(!gateway.awaits_body(5) && host.request_header(5, names::ENDPOINT_HEADER).is_none());
    }
}

/// Whatever callbacks come, in whatever order: nothing fails, and what has ended holds nothing.
#[test]
fn no_order_of_callbacks_leaves_anything_behind() {
    for seed in 0..60 {
        let mut random = Random::for_use(seed, 3);
        let mut host = Scene::default();
        let batching = json!({"mode": "fixed", "size": 2, "window_ms": 20, "max_wait_ms": 50});
        let mut policy = json!({"name": "balanced", "weights": {"quality": 1, "latency": 1, "cost": 1}});
        if seed % 2 == 0 {
            policy["batching"] = batching;
        }
        let more = json!({"policies": [policy], "routes": [], "default_policy": "balanced",
            "learning": {"feedback": {"secret": "sixteen-letters-x"}}, "debug": {"predict": true}});
        let mut gateway = gateway(&mut host, &more);
        tick(&mut gateway, &mut host, 6, idle);
        let paths = [CHAT, "/v1/models", "/v1/completions", names::FEEDBACK_PATH, names::DEBUG_PREDICT_PATH, "/x"];
        let bodies: [&[u8]; 4] = [AUTO, STREAM, b"{", b""];
        for _ in 0..120 {
            let id = 10 + u32::try_from(random.below(6)).unwrap();
            if !gateway.has(id) {
                let body = bodies[random.below(bodies.len())];
                host.request(
                    id,
                    paths[random.below(paths.len())],
                    &[("authorization", "Bearer sixteen-letters-x")],
                    body,
                );
                gateway.on_request_headers(&mut host, id, body.is_empty());
                continue;
            }
            host.current = id;
            let (size, last) = (host.exchange(id).body.len(), random.below(3) > 0);
            match random.below(8) {
                0 | 1 => drop(gateway.on_request_body(&mut host, id, size, last)),
                2 => drop(gateway.on_request_trailers(&mut host, id)),
                3 => {
                    let (kind, body) = if last { ("application/json", ANSWER) } else { ("text/event-stream", EVENTS) };
                    host.respond_from(id, "127.0.0.1:1", ["200", "500", "429"][random.below(3)], kind, body);
                    gateway.on_response_headers(&mut host, id, random.below(4) == 0);
                }
                4 => {
                    let size = host.exchange(id).response_body.len();
                    gateway.on_response_body(&mut host, id, size, last);
                }
                5 => drop(gateway.on_response_trailers(&mut host, id)),
                6 => gateway.on_end(&mut host, id),
                _ => tick(&mut gateway, &mut host, 3, |address| if last { idle(address) } else { None }),
            }
        }
        for id in 10..16 {
            host.current = id;
            gateway.release(&mut host, id);
            gateway.on_end(&mut host, id);
        }
        assert_eq!(open(&gateway, &host), 0, "seed {seed}");
        let Holding { requests, waiting, reruns, .. } = gateway.holding();
        assert_eq!((requests, waiting, reruns), (0, 0, (0, 0)), "seed {seed}");
    }
}
