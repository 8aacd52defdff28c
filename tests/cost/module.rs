//! What one request costs in the module: fuel by callback, as the interpreter that runs it charges it, and crossings. An interpreter charges
//! for entering a function as well, so fuel tells whether a change costs more, and not how long it takes.

use std::path::Path;
use std::time::Duration;

use routebalance_core::gateway::TICK;
use routebalance_core::gateway::memory::{Exchange, ROOT, owned};

use super::Counts;
use super::core::{ANSWER, BEFORE, CONFIGURATION, PAGE, body, endpoint, request_headers, response_headers};
use super::vm::Vm;

/// Fuel and crossings of one request and of a second of ticks.
pub(super) fn counts(module: &Path) -> Counts {
    let mut vm = Vm::start(module, CONFIGURATION);
    let mut counts = Counts::from([("fuel, start".to_owned(), vm.fuel())]);
    for id in 2..2 + BEFORE {
        if id % 10 == 2 {
            tick(&mut vm);
        }
        request(&mut vm, id, &mut Counts::new());
    }
    let before = vm.store.data().crossings;
    request(&mut vm, 2 + BEFORE, &mut counts);
    counts.insert("crossings, request".to_owned(), vm.store.data().crossings - before);
    // Ticks differ: some begin scrapes. A second of them does not.
    let (fuel, crossings) = (vm.fuel(), vm.store.data().crossings);
    (0..20).for_each(|_| tick(&mut vm));
    counts.insert("fuel, a second of ticks".to_owned(), vm.fuel() - fuel);
    counts.insert("crossings, a second of ticks".to_owned(), vm.store.data().crossings - crossings);
    counts
}

fn tick(vm: &mut Vm) {
    let host = &mut vm.store.data_mut().host;
    host.time += TICK;
    host.current = ROOT;
    vm.call::<i32, ()>("proxy_on_tick", ROOT as i32);
    for call in std::mem::take(&mut vm.store.data_mut().host.calls) {
        let host = &mut vm.store.data_mut().host;
        host.call_response = (owned(&[(":status", "200")]), PAGE.to_vec());
        host.current = ROOT;
        let answered = (ROOT as i32, call.number as i32, 1, PAGE.len() as i32, 0);
        vm.call::<(i32, i32, i32, i32, i32), ()>("proxy_on_http_call_response", answered);
    }
}

/// One request; what each of its callbacks was charged is put into `counts`.
fn request(vm: &mut Vm, id: u32, counts: &mut Counts) {
    let body = body();
    let headers = request_headers(id, body.len());
    let (context, size) = (id as i32, body.len() as i32);
    let host = &mut vm.store.data_mut().host;
    host.time += Duration::from_micros(270);
    host.exchanges.insert(id, Exchange { request: headers, body, connection: Some(7), ..Exchange::default() });
    host.current = id;
    let mut count = |vm: &Vm, what: &str, before: u64| {
        counts.insert(format!("fuel, {what}"), vm.fuel() - before);
    };
    let before = vm.fuel();
    vm.call::<(i32, i32), ()>("proxy_on_context_create", (context, ROOT as i32));
    let flow = vm.call::<(i32, i32, i32), i32>("proxy_on_request_headers", (context, 10, 0));
    count(vm, "request headers", before);
    assert_eq!(flow, 1, "headers are held");
    let before = vm.fuel();
    let flow = vm.call::<(i32, i32, i32), i32>("proxy_on_request_body", (context, size, 1));
    count(vm, "request body", before);
    assert_eq!(flow, 0, "the request goes on");
    let exchange = vm.store.data_mut().host.exchanges.get_mut(&id).expect("the request is there");
    let address = endpoint(exchange);
    exchange.properties.insert("upstream.address".to_owned(), address);
    exchange.attempts = 1;
    exchange.response = response_headers();
    exchange.response_body = ANSWER.to_vec();
    let before = vm.fuel();
    vm.call::<(i32, i32, i32), i32>("proxy_on_response_headers", (context, 3, 0));
    count(vm, "response headers", before);
    let before = vm.fuel();
    vm.call::<(i32, i32, i32), i32>("proxy_on_response_body", (context, ANSWER.len() as i32, 1));
    count(vm, "response body", before);
    let before = vm.fuel();
    vm.call::<i32, i32>("proxy_on_done", context);
    vm.call::<i32, ()>("proxy_on_log", context);
    vm.call::<i32, ()>("proxy_on_delete", context);
    count(vm, "end", before);
    let exchange = vm.store.data_mut().host.exchanges.remove(&id).expect("the request is there");
    let entry = exchange.states.get("routebalance_decision").expect("the decision was logged");
    assert!(entry.contains("\"predicted\":true"), "{entry}");
}
