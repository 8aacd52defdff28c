//! Admission through the router: what a decision says of constraints, budgets and saturation.

use serde_json::{Value, json};

use super::*;
use crate::config::Config;
use crate::fleet::{Budget, Mode, Slo};
use crate::latency::Residuals;
use crate::openai::{Api, RequestScan};
use crate::router::{Decision, Verdict};
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// The reference fleet without a predictor, so that lengths are the priors; the policy "quality" wants nothing else, and is changed.
fn router(change: impl FnOnce(&mut Value)) -> Router {
    let mut json: Value = serde_json::from_str(include_str!("../../../../envoy/routebalance.json")).unwrap();
    let policies = json["policies"].as_array_mut().unwrap();
    let policy = policies.iter_mut().find(|policy| policy["name"] == "quality").unwrap();
    policy["weights"] = json!({"quality": 1, "latency": 0, "cost": 0});
    change(policy);
    Router::new(Config::parse(json.to_string().as_bytes()).unwrap(), None)
}

fn prompt(fields: Value) -> Prompt {
    let mut body = json!({"model": "auto", "messages": [{"role": "user", "content": "x".repeat(400)}]});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    let mut scan = RequestScan::new(Api::ChatCompletions);
    scan.push(body.to_string().as_bytes());
    scan.finish().unwrap()
}

fn route(router: &Router, prompt: &Prompt, constraints: Option<Constraints>, load: LoadNow) -> Verdict {
    let policy = router.config().policy_named("quality").unwrap();
    let ask = Ask { constraints, ..Ask::new(Api::ChatCompletions, prompt, policy) };
    let loads = vec![LoadNow { trust: 1.0, ..load }; router.config().fleet.instances.len()];
    router.route(&ask, Some(&loads), &Learned::default())
}

fn decided(verdict: Verdict) -> Decision {
    match verdict {
        Verdict::Decided(decision) => *decision,
        other => panic!("not decided: {other:?}"),
    }
}

fn refused(verdict: Verdict) -> Refusal {
    match verdict {
        Verdict::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn pool(router: &Router, decision: &Decision) -> String {
    router.config().fleet.pools[decision.to.pool.index()].name.clone()
}

const IDLE: LoadNow = LoadNow {
    running: 0.0,
    waiting: 0.0,
    pending_output_tokens: 0.0,
    pending_prompt_tokens: 0.0,
    kv_use: None,
    kv_wanted: None,
    trust: 1.0,
    unreachable: false,
    last_dispatch: Duration::ZERO,
    standing: crate::reckoning::Standing::Healthy,
};

/// Per candidate the share of times that keep the limit decides, so a limit just above the prediction is not enough.
#[test]
fn times_are_kept_with_confidence() {
    let router = router(|_| {});
    let plain = decided(route(&router, &prompt(json!({})), None, IDLE));
    assert_eq!(pool(&router, &plain), "qwen2.5-72b");
    let insist = |tpot: f64, confidence: f64| Constraints {
        slo: Slo { ttft: None, tpot: Some(Duration::from_secs_f64(tpot)) },
        confidence,
        ..Constraints::default()
    };
    let predicted = plain.expected.forecast.tpot_seconds;
    let ratio = |confidence: f64| {
        let none = Residuals::default();
        (1..500).map(|i| f64::from(i) / 100.0).find(|r| none.probability_within(1.0, *r) >= confidence).unwrap()
    };
    for confidence in [0.5, 0.7, 0.9] {
        let enough = predicted * (ratio(confidence) + 0.01);
        for (tpot, expected) in [(enough, true), (enough * 0.97, false)] {
            let decision = decided(route(&router, &prompt(json!({})), Some(insist(tpot, confidence)), IDLE));
            assert_eq!(pool(&router, &decision) == "qwen2.5-72b", expected, "{confidence} {tpot}");
            assert!(decision.because.relaxed.is_empty());
        }
    }
}

#[test]
fn the_policy_and_the_request_insist() {
    let quality = router(|policy| {
        policy["slo"] = json!({"ttft_ms": 0.01});
        policy["quality_min"] = json!(0.999);
        policy["relaxation"] = json!({"mode": "tiered", "order": ["quality", "ttft"]});
    });
    let decision = decided(route(&quality, &prompt(json!({})), None, IDLE));
    assert_eq!(decision.because.relaxed, [Constraint::Quality, Constraint::Ttft]);
    let free = decided(route(&quality, &prompt(json!({})), Some(Constraints::default()), IDLE));
    assert!(free.because.relaxed.is_empty());
    let strict = Constraints { quality_min: Some(0.999), mode: Mode::Strict, ..Constraints::default() };
    let refusal = refused(route(&quality, &prompt(json!({})), Some(strict), IDLE));
    assert_eq!((refusal.status, refusal.reason.name()), (429, "quality"));
    // What generates nothing has neither quality nor length.
    let mut scan = RequestScan::new(Api::Embeddings);
    scan.push(br#"{"input":"text"}"#);
    let embedding = scan.finish().unwrap();
    let policy = quality.config().policy_named("quality").unwrap();
    let constraints = Some(Constraints { budget: Budget { usd: None, tokens: Some(1) }, ..strict });
    let ask = Ask { constraints, ..Ask::new(Api::Embeddings, &embedding, policy) };
    let decision = decided(quality.route(&ask, None, &Learned::default()));
    assert_eq!((decision.because.max_tokens, decision.expected.output_tokens), (None, 0));
}

#[test]
fn headers_count_where_they_are_trusted() {
    let header = |name: &str| if name == "x-routebalance-mode" { vec!["sideways".to_owned()] } else { Vec::new() };
    let trusting = router(|policy| policy["trust_request_headers"] = json!(true));
    let quality = trusting.config().policy_named("quality").unwrap();
    let refusal = trusting.header_constraints(quality, header).unwrap_err();
    assert!(refusal.status == 400 && refusal.message.contains("x-routebalance-mode"), "{refusal:?}");
    let other = trusting.config().policy_named("cost").unwrap();
    assert_eq!(trusting.header_constraints(other, header), Ok(None));
    assert_eq!(trusting.header_constraints(quality, |_| Vec::new()), Ok(Some(Constraints::default())));
    assert_eq!(trusting.header_constraints(PolicyId::new(999), header), Ok(None));
}

#[test]
fn budgets() {
    let router = router(|_| {});
    let budget = |usd: Option<f64>, tokens: Option<u32>| {
        Some(Constraints { budget: Budget { usd, tokens }, ..Constraints::default() })
    };
    let dear = decided(route(&router, &prompt(json!({"max_tokens": 50})), budget(Some(1.0), None), IDLE));
    assert_eq!(
        (pool(&router, &dear).as_str(), dear.because.max_tokens),
        ("qwen2.5-72b", None),
        "it never comes to the cap"
    );
    assert!(!dear.because.budget_exhausted && dear.because.relaxed.is_empty());
    // A cap is written where it is below the client's own, and where the client has none.
    for (fields, tokens, expected) in [
        (json!({"max_tokens": 50}), 51, None),
        (json!({"max_tokens": 50}), 49, Some(49)),
        (json!({"max_completion_tokens": 50, "max_tokens": 9}), 49, Some(49)),
        (json!({"n": 4}), 40, Some(10)),
        (json!({}), 7_000, Some(7_000)),
        // The estimate of the prompt may be wrong, and a limit beyond the context is refused.
        (json!({}), 8_190, Some(8_129)),
        (json!({"messages": [{"content": "word ".repeat(7_000)}]}), 100, Some(100)),
        (json!({"messages": [{"content": "word ".repeat(7_000)}]}), 5_000, Some(267)),
        (json!({"messages": [{"content": "word ".repeat(9_000)}]}), 100, Some(1)),
        // What not every server reads alike is written anew.
        (json!({"max_tokens": "50"}), 51, Some(50)),
        (json!({"max_tokens": 50.0}), 51, Some(50)),
        (json!({"max_tokens": "5_000"}), 51, Some(51)),
        (json!({"max_completion_tokens": null, "max_tokens": 9}), 49, Some(9)),
        (json!({"max_completion_tokens": 0, "max_tokens": 5_000}), 49, Some(49)),
        (json!({"max_completion_tokens": 5, "max_tokens": 5_000}), 49, Some(5)),
        (json!({"max_completion_tokens": 5, "max_tokens": 5}), 49, None),
        (json!({"max_tokens": 0}), 49, Some(49)),
        (json!({"max_tokens": -5}), 49, Some(49)),
        // What must be generated fits.
        (json!({"min_tokens": 49}), 49, Some(49)),
        (json!({"n": 2, "min_tokens": 24}), 49, Some(24)),
        (json!({"n": 49}), 49, Some(1)),
    ] {
        let decision = decided(route(&router, &prompt(fields.clone()), budget(None, Some(tokens)), IDLE));
        assert_eq!(decision.because.max_tokens, expected, "{tokens} {:.80}", fields.to_string());
        assert!(decision.expected.output_tokens <= u64::from(tokens), "the rest will not be written: {decision:?}");
    }
    // Nobody keeps it: the cheapest model, one token, and a flag.
    let poor = decided(route(&router, &prompt(json!({})), budget(Some(1e-9), None), IDLE));
    let fleet = &router.config().fleet;
    let least = fleet.models.iter().map(|m| m.tariff.usd_per_output_token).filter(|p| *p > 0.0).fold(1.0, f64::min);
    assert_eq!(fleet.models[poor.to.model.index()].tariff.usd_per_output_token, least);
    assert_eq!((poor.because.relaxed.as_slice(), poor.because.max_tokens), ([Constraint::Budget].as_slice(), Some(1)));
    assert!(poor.because.budget_exhausted);
    let lesson = poor.expected.expectation.unwrap();
    assert_eq!(lesson.max_tokens, Some(1), "an answer cut by us teaches as one cut by the client does");
}

/// A request that demands more tokens than it may have: no server gets it.
#[test]
fn more_demanded_than_left() {
    let router = router(|_| {});
    let tokens = |tokens: u32, mode: Mode| {
        let budget = Budget { usd: None, tokens: Some(tokens) };
        Some(Constraints { budget, mode, ..Constraints::default() })
    };
    for (fields, constraints, expected) in [
        (json!({"min_tokens": 50}), tokens(49, Mode::Tiered), (400, "min_tokens")),
        (json!({"min_tokens": 50}), tokens(49, Mode::Relaxed), (400, "min_tokens")),
        (json!({"min_tokens": 50}), tokens(49, Mode::Strict), (429, "budget")),
        (json!({"min_tokens": "5_0", "max_tokens": 900}), tokens(49, Mode::Tiered), (400, "min_tokens")),
        (json!({"n": 2, "min_tokens": 25}), tokens(49, Mode::Tiered), (400, "min_tokens")),
        (json!({"n": 50}), tokens(49, Mode::Tiered), (400, "min_tokens")),
        (json!({"best_of": 50}), tokens(49, Mode::Strict), (429, "budget")),
        (json!({"min_tokens": 10, "max_tokens": 9}), None, (400, "min_tokens")),
        (json!({"min_tokens": 10, "max_tokens": 9}), tokens(49, Mode::Strict), (400, "min_tokens")),
    ] {
        let refusal = refused(route(&router, &prompt(fields.clone()), constraints, IDLE));
        assert_eq!((refusal.status, refusal.reason.name()), expected, "{fields}");
    }
    // The dear models leave too little of the budget, a cheap one enough.
    let usd = Some(Constraints { budget: Budget { usd: Some(1e-4), tokens: None }, ..Constraints::default() });
    let decision = decided(route(&router, &prompt(json!({"min_tokens": 1_000})), usd, IDLE));
    assert!(decision.because.max_tokens.is_none_or(|most| most >= 1_000), "{decision:?}");
    for elsewhere in &decision.to.elsewhere {
        assert!(elsewhere.max_tokens.is_none_or(|most| most >= 1_000), "{elsewhere:?}");
    }
}

#[test]
fn saturation_sheds_or_serves() {
    let queued = LoadNow { waiting: 3.0, running: 64.0, pending_output_tokens: 9_000.0, ..IDLE };
    for (overload, load, expected) in [
        (json!({}), queued, Ok(false)),
        (json!({"waiting_per_instance": 3}), queued, Ok(true)),
        (json!({"action": "shed", "waiting_per_instance": 4}), queued, Ok(false)),
        (json!({"action": "shed", "waiting_per_instance": 3}), queued, Err("saturated")),
        (json!({"action": "shed", "waiting_per_instance": 3}), IDLE, Ok(false)),
        (json!({"action": "shed", "ttft_ms": 0.01}), IDLE, Err("saturated")),
    ] {
        let router = router(|policy| policy["overload"] = overload.clone());
        match (route(&router, &prompt(json!({})), None, load), expected) {
            (Verdict::Decided(decision), Ok(saturated)) => {
                assert_eq!(decision.because.saturated, saturated, "{overload}")
            }
            (Verdict::Refused(refusal), Err(reason)) => {
                assert_eq!((refusal.status, refusal.reason.name()), (429, reason), "{overload}");
                assert!(refusal.retry_after >= Some(Duration::from_secs(1)));
            }
            (verdict, _) => panic!("{overload}: {verdict:?}"),
        }
    }
}
