//! What instances and Envoy answer.

use routebalance::gateway::memory::{header_of, owned};
use routebalance::names;
use serde_json::json;

use super::vm::Vm;
use crate::choices::Choices;
use crate::material::{CLUSTERS, PAGES, RESPONSES};

const STATUSES: [&str; 20] = [
    "200", "200", "200", "200", "200", "200", "200", "200", "200", "200", "500", "503", "504", "502", "429", "400",
    "404", "408", "", "99999",
];
const TYPES: [&str; 6] = [
    "application/json",
    "text/event-stream",
    "text/event-stream; charset=utf-8",
    "text/plain",
    "",
    "application/json; charset=utf-8",
];
/// Envoy's words on where an answer comes from.
const DETAILS: [&str; 12] = [
    "via_upstream",
    "via_upstream",
    "via_upstream",
    "via_upstream",
    "via_upstream",
    "",
    "no_healthy_upstream",
    "upstream_reset_before_response_started{connection_termination}",
    "upstream_reset_before_response_started{remote_connection_failure,delayed_connect_error:_111}",
    "upstream_per_try_idle_timeout",
    "response_timeout",
    "cluster_not_found",
];
const ENDS: [&str; 4] = [
    "downstream_remote_disconnect",
    "upstream_reset_after_response_started{connection_termination}",
    "upstream_per_try_idle_timeout",
    "via_upstream",
];
const LOADS: [&str; 6] = [
    "JSON {\"named_metrics\": {\"num_requests_waiting\": 3.0, \"kv_cache_usage_perc\": 0.5}}",
    "TEXT named_metrics.num_requests_waiting=0, named_metrics.kv_cache_usage_perc=0.1",
    "TEXT num_requests_running=1e6,num_requests_waiting=-1",
    "JSON {",
    "BIN AAAA",
    "\u{FFFD}",
];

/// An address: the chosen one, one of the fall-backs, or any other.
fn address(vm: &Vm, id: u32, choices: &mut Choices<'_>) -> String {
    let request = vm.host.memory.exchanges.get(&id).map(|exchange| exchange.request.as_slice()).unwrap_or_default();
    let listed: Vec<&str> = header_of(request, names::ENDPOINT_HEADER).unwrap_or_default().split(',').collect();
    match choices.byte() {
        0..=179 => listed[0].to_owned(),
        180..=230 => choices.pick(&listed).to_string(),
        _ => choices.pick(&["10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:11", "10.0.0.1:21", "10.8.8.8:8", ""]).to_string(),
    }
}

/// The headers of a response, and its answer whole or in part.
pub(super) fn answer(vm: &mut Vm, id: u32, choices: &mut Choices<'_>) {
    headers(vm, id, choices);
    let body = choices.bytes_like(RESPONSES);
    for piece in choices.pieces(&body) {
        vm.response_body(id, piece, false);
    }
    match choices.byte() {
        0..=179 => vm.response_body(id, &[], true),
        180..=199 => vm.response_trailers(id),
        200..=219 => {}
        _ => return,
    }
    vm.end(id, choices.in_256(20));
}

fn headers(vm: &mut Vm, id: u32, choices: &mut Choices<'_>) {
    let Some(exchange) = vm.host.memory.exchanges.get(&id) else { return };
    // What the gateway has answered comes by, and nothing else.
    if let Some(answer) = &exchange.answered {
        let mut headers = answer.headers.clone();
        headers.push((":status".to_owned(), answer.status.to_string()));
        let is_whole = answer.body.is_empty();
        return vm.response(id, headers, &[("response.code_details", "")], is_whole);
    }
    let mut headers = owned(&[(":status", choices.pick(&STATUSES)), ("content-type", choices.pick(&TYPES))]);
    if choices.in_256(60) {
        headers.push((names::LOAD_RESPONSE_HEADER.to_owned(), choices.pick(&LOADS).to_owned()));
    }
    if choices.in_256(40) {
        let after = choices.pick(&["1", "0", "99999999999999999999", "-1", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"]);
        headers.push((names::RETRY_AFTER_HEADER.to_owned(), (*after).to_owned()));
    }
    if choices.in_256(20) {
        headers.push(("content-encoding".to_owned(), choices.pick(&["gzip", "identity", ""]).to_owned()));
    }
    let address = address(vm, id, choices);
    let details = choices.pick(&DETAILS);
    let properties = [("upstream.address", address.as_str()), ("response.code_details", details)];
    vm.response(id, headers, &properties, choices.in_256(24));
}

pub(super) fn more_of_response(vm: &mut Vm, id: u32, choices: &mut Choices<'_>) {
    match choices.byte() {
        0..=99 => headers(vm, id, choices),
        100..=199 => {
            let bytes = choices.bytes_like(RESPONSES);
            let end = choices.below(bytes.len().min(60_000) + 1);
            vm.response_body(id, &bytes[..end], choices.in_256(60));
        }
        200..=219 => vm.response_trailers(id),
        _ => {
            let details = choices.pick(&ENDS).to_owned();
            if let Some(exchange) = vm.host.memory.exchanges.get_mut(&id) {
                exchange.properties.insert("response.code_details".to_owned(), details);
            }
            vm.end(id, choices.in_256(100));
        }
    }
}

/// An attempt begins, or ends.
pub(super) fn attempt(vm: &mut Vm, id: u32, choices: &mut Choices<'_>) {
    if choices.in_256(140) {
        let address = address(vm, id, choices);
        vm.attempt(id, &address, choices.in_256(200), !choices.in_256(10));
    }
    if choices.in_256(200) {
        vm.attempt_answers(id, choices.pick(&[None, Some("500"), Some("503"), Some("200"), Some("429"), Some("x")]));
    }
}

/// One of the calls under way is answered; or one that nobody has made.
pub(super) fn answer_call(vm: &mut Vm, choices: &mut Choices<'_>) {
    let call = (!vm.calls.is_empty()).then(|| vm.calls.remove(choices.below(vm.calls.len())));
    let number = match &call {
        Some(call) => call.number,
        None => u32::from(choices.byte()),
    };
    if choices.in_256(20) {
        return vm.call_answered(number, None);
    }
    let path = call.as_ref().and_then(|call| header_of(&call.headers, ":path")).unwrap_or_default();
    let body = match path {
        "/metrics" => choices.bytes_like(PAGES),
        "/clusters?format=json" if choices.in_256(40) => choices.bytes_like(&[CLUSTERS]),
        "/clusters?format=json" => clusters(choices),
        _ => choices.bytes_like(RESPONSES),
    };
    let status = if choices.in_256(150) { "200" } else { choices.pick(&STATUSES) };
    let mut headers = owned(&[(":status", status), ("content-type", choices.pick(&TYPES))]);
    if choices.in_256(20) {
        headers.push((names::RETRY_AFTER_HEADER.to_owned(), "2".to_owned()));
        headers.push(("x-envoy-upstream-service-time".to_owned(), "5".to_owned()));
    }
    vm.call_answered(number, Some((headers.clone(), body.clone())));
    if choices.in_256(10) {
        vm.call_answered(number, Some((headers, body)));
    }
}

/// Hosts that come and go.
fn clusters(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut clusters = Vec::new();
    for name in ["pool-small", "pool-embedder", "pool-large"] {
        let (there, ill) = (choices.byte(), choices.byte() & choices.byte());
        if there == 255 {
            continue;
        }
        let host = |bit: u8| {
            let health = if ill >> bit & 1 == 1 { "UNHEALTHY" } else { "HEALTHY" };
            json!({"address": {"socket_address": {"address": "10.0.0.1", "port_value": 1 + bit}},
                "health_status": {"eds_health_status": health}})
        };
        let hosts: Vec<_> = (0..8).filter(|bit| there >> bit & 1 == 1).map(host).collect();
        clusters.push(json!({"name": name, "host_statuses": hosts}));
    }
    json!({ "cluster_statuses": clusters }).to_string().into_bytes()
}
