//! What takes many steps to come about: a score of an earlier answer, a question to the predictor, an instance that answers nobody.

use std::time::Duration;

use routebalance_core::gateway::memory::{Exchange, header_of, owned};
use routebalance_core::names;
use serde_json::json;

use super::upstream;
use super::vm::Vm;
use super::world::World;
use crate::choices::Choices;

const WHOLE: &[u8] = br#"{"model":"auto","messages":[{"role":"user","content":"What is 2 + 2?"}],"max_tokens":5}"#;

impl World {
    /// A client scores an answer, at whichever VM; or asks what the predictor makes of a text.
    pub(super) fn score(&mut self, choices: &mut Choices<'_>) {
        let ids: Vec<String> = self.vms.iter().flat_map(|vm| vm.decisions.iter().cloned()).collect();
        let id = ids.get(choices.below(ids.len())).cloned().unwrap_or_else(|| "0".repeat(16));
        let Some(vm) = self.vm(choices) else { return };
        let score = [json!(0.5), json!(1), json!(0), json!(-1), json!("x")][choices.below(5)].clone();
        let (path, body) = if choices.in_256(200) {
            (names::FEEDBACK_PATH, json!({"id": id, "score": score}).to_string())
        } else {
            (names::DEBUG_PREDICT_PATH, json!({"text": "What is 2 + 2?", "repeat": 1 + choices.below(3)}).to_string())
        };
        let method = choices.pick(&["POST", "POST", "POST", "POST", "GET"]);
        let secret = choices.pick(&["Bearer sixteen-letters-x", "Bearer sixteen-letters-x", "bearer x"]);
        let headers = [(":method", method), (":path", path), (":authority", "gateway"), ("authorization", secret)];
        let mut request = owned(&headers);
        if choices.in_256(100) {
            request.push(("content-length".to_owned(), body.len().to_string()));
        }
        let id = vm.begin(Exchange { request, attempts: 1, ..Exchange::default() }, false);
        let body = if choices.in_256(10) { "x".repeat(5_000) } else { body };
        let pieces = choices.pieces(body.as_bytes());
        let last = pieces.len() - 1;
        let ends_with_trailers = choices.in_256(30);
        for (at, piece) in pieces.into_iter().enumerate() {
            vm.body(id, piece, at == last && !ends_with_trailers);
        }
        if ends_with_trailers {
            vm.request_trailers(id);
        }
        if choices.in_256(200) {
            upstream::answer(vm, id, choices);
        }
    }

    /// A request for a whole answer is sent, and its instance says nothing any more: others are asked.
    pub(super) fn stall(&mut self, choices: &mut Choices<'_>) {
        let at = choices.below(self.vms.len());
        let Some(vm) = self.vms.get_mut(at) else { return };
        let headers = [(":method", "POST"), (":path", "/v1/chat/completions"), (":authority", "gateway")];
        let id = vm.begin(Exchange { request: owned(&headers), attempts: 1, ..Exchange::default() }, false);
        vm.body(id, WHOLE, true);
        let request = vm.host.memory.exchanges.get(&id).map(|exchange| exchange.request.clone()).unwrap_or_default();
        let listed = header_of(&request, names::ENDPOINT_HEADER).unwrap_or_default().to_owned();
        // How many of the listed instances are silent.
        let silent: Vec<&str> = listed.split(',').take(1 + choices.below(3)).collect();
        let is_dead = choices.in_256(100);
        let step = choices.pick(&[Duration::from_millis(60), Duration::from_millis(300), Duration::from_secs(2)]);
        for _ in 0..4 + choices.below(6) {
            self.pass(choices, step);
            self.tick_all();
            for vm in &mut self.vms {
                answer_calls(vm, &silent, is_dead, choices);
            }
        }
        if let Some(vm) = self.vms.get_mut(at).filter(|_| choices.in_256(200)) {
            upstream::answer(vm, id, choices);
        }
    }
}

/// Instances that are silent show no progress or are not there; others are idle. What was asked of them is answered now and then.
fn answer_calls(vm: &mut Vm, silent: &[&str], is_dead: bool, choices: &mut Choices<'_>) {
    for _ in 0..vm.calls.len() {
        let Some(call) = vm.calls.first() else { return };
        let authority = header_of(&call.headers, ":authority").unwrap_or_default();
        if header_of(&call.headers, ":path") != Some("/metrics") {
            if choices.in_256(120) {
                upstream::answer_call(vm, choices);
                continue;
            }
            return;
        }
        let is_silent = silent.contains(&authority);
        let number = vm.calls.remove(0).number;
        let page = if is_silent {
            "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:generation_tokens_total 7\n"
        } else {
            "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:generation_tokens_total 9\n"
        };
        match is_silent && is_dead {
            true if choices.in_256(128) => vm.call_answered(number, None),
            true => vm.call_answered(number, Some((owned(&[(":status", "503")]), Vec::new()))),
            false => vm.call_answered(number, Some((owned(&[(":status", "200")]), page.as_bytes().to_vec()))),
        }
    }
}
