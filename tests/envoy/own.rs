//! A fleet of somebody else: a model that the predictor does not know, and a cluster that balances by itself.

use std::collections::BTreeMap;

use routebalance_cli::crossings::callbacks;

use crate::harness::{Gateway, Request, eventually};
use crate::scenarios::names_its_choice;
use crate::setups::{BALANCED_BY_ITSELF, OWN_MODEL};
use crate::strangers::log_line;

pub(crate) async fn unpredicted(gateway: &Gateway) {
    let reply = gateway.send(&Request::chat(OWN_MODEL.0).header("x-request-id", "own-model")).await.ok();
    names_its_choice(gateway, &reply, "fused");
    let known = gateway.send(&Request::chat("Qwen2.5-3B-Instruct").header("x-request-id", "known-model")).await.ok();
    names_its_choice(gateway, &known, "fused");
    for (id, predicted) in [("own-model", false), ("known-model", true)] {
        let decision = log_line(gateway, id).await["decision"].clone();
        assert_eq!(decision["predicted"], predicted, "{decision}");
        assert_eq!(decision["familiarity"].is_null(), !predicted, "{decision}");
        assert_eq!(decision["prototype"].is_null(), !predicted, "{decision}");
    }
    let said = format!("the predictor does not know {}", OWN_MODEL.0);
    assert!(gateway.log_text().contains(&said), "once at start");
}

pub(crate) async fn unhonoured(gateway: &Gateway) {
    let model = &gateway.config().fleet.model_of(gateway.pool(BALANCED_BY_ITSELF)).expect("its model").name;
    let before = gateway.stat("endpoint_unhonoured").await;
    let rungs = async || {
        let reply = gateway.send(&Request::chat(model)).await.ok();
        reply.header("x-routebalance-rung").map(str::to_owned)
    };
    // Half of the requests reach the chosen one of two by luck.
    for _ in 0..12 {
        eventually("a request that goes elsewhere", rungs, |rung| rung.as_deref() == Some("unhonoured")).await;
    }
    assert!(gateway.stat("endpoint_unhonoured").await >= before + 12);
    let said = "Envoy does not send requests to the endpoints that are chosen";
    let log = gateway.log_text();
    assert!((1..=2).contains(&log.matches(said).count()), "once per worker: {log}");
    let other = gateway.send(&Request::chat("Qwen2.5-3B-Instruct")).await.ok();
    names_its_choice(gateway, &other, "fused");
}

/// Crossings of one request at most, by callback. Reads of shared data are not among them: how many there are depends on when the last
/// tick was.
const CROSSINGS_MAX: [(&str, f64); 8] = [
    ("proxy_on_context_create", 1.0),
    ("proxy_on_request_headers", 5.0),
    ("proxy_on_request_body", 18.0),
    ("proxy_on_response_headers", 9.0),
    ("proxy_on_response_body", 7.0),
    ("proxy_on_done", 1.0),
    ("proxy_on_log", 1.0),
    ("proxy_on_delete", 1.0),
];
/// How many more there are where headers go on: a second instance of the module writes them.
const MORE_WITHOUT_FLAG: [(&str, f64); 7] = [
    ("proxy_on_context_create", 1.0),
    ("proxy_on_request_headers", 9.0),
    ("proxy_on_response_headers", 1.0),
    ("proxy_on_response_body", 2.0),
    ("proxy_on_done", 1.0),
    ("proxy_on_log", 1.0),
    ("proxy_on_delete", 1.0),
];
/// What a read of shared data is, and the memory that the host takes for what it returns.
const NOT_COUNTED: [&str; 2] = ["proxy_get_shared_data", "proxy_on_memory_allocate"];

pub(crate) async fn crossings(gateway: &Gateway) {
    let request = Request::chat("auto");
    // Whoever is first defines what all use.
    for _ in 0..8 {
        gateway.send(&request).await.ok();
    }
    let envoy = gateway.envoy();
    let seen = envoy.log_text().len();
    envoy.log_level("wasm", "trace").await.expect("Envoy takes a level");
    const REQUESTS: usize = 20;
    for _ in 0..REQUESTS {
        gateway.send(&request).await.ok();
    }
    envoy.log_level("wasm", "warning").await.expect("Envoy takes a level");
    let found = callbacks(envoy.log_text().get(seen..).expect("a log only grows"));
    let per_request: BTreeMap<&str, f64> = CROSSINGS_MAX
        .iter()
        .map(|(name, _)| {
            let functions = found.get(*name).map(|callback| callback.functions.iter());
            let counted = functions.into_iter().flatten().filter(|(name, _)| !NOT_COUNTED.contains(&name.as_str()));
            (*name, counted.map(|(_, count)| *count).sum::<u64>() as f64 / REQUESTS as f64)
        })
        .collect();
    for (name, most) in CROSSINGS_MAX {
        let more = MORE_WITHOUT_FLAG.iter().filter(|(other, _)| gateway.config().envoy.headers_go_on && *other == name);
        let most = most + more.map(|(_, more)| more).sum::<f64>();
        assert!((1.0..=most).contains(&per_request[name]), "{name}: {per_request:#?}, at most {most}");
    }
}
