//! A fleet of somebody else: a model that the predictor does not know, and a cluster that balances by itself.

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
