//! Pools of every kind: providers, versions of a model, pools without instances.

use std::collections::BTreeSet;

use super::*;
use crate::fleet::PoolId;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// The largest model has another pool, with these fields.
fn with_pool(fields: Value) -> Router {
    let mut json: Value = serde_json::from_str(include_str!("../../../../envoy/routebalance.json")).unwrap();
    let mut pool = json["pools"][3].clone();
    (pool["name"], pool["cluster"]) = ("other".into(), "other".into());
    pool.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json["pools"].as_array_mut().unwrap().push(pool);
    Router::new(Config::parse(json.to_string().as_bytes()).unwrap(), None)
}

const MODEL: &str = "Qwen2.5-72B-Instruct";
const OTHER: PoolId = PoolId::new(5);

fn rented() -> Router {
    with_pool(json!({
        "kind": "hosted", "instances": ["api.example.com:443"], "tls": {}, "credential": {"file": "/k"}, "limits": {},
        "usd_per_million_input_tokens": 1, "usd_per_million_output_tokens": 1, "usd_per_million_cached_input_tokens": 0.1,
    }))
}

#[test]
fn a_provider_is_rented_where_a_queue_costs_more() {
    let router = rented();
    let fleet = &router.config().fleet;
    let own = fleet.pools[3].instances.clone();
    for (waiting, expected) in [(0.0, PoolId::new(3)), (200.0, OTHER)] {
        let mut loads = idle(&router);
        for i in &own {
            let load = &mut loads[i.index()];
            (load.trust, load.running, load.waiting) = (1.0, 256.0_f64.min(waiting * 2.0), waiting);
            load.pending_output_tokens = waiting * 300.0;
        }
        let decision =
            decided(router.route(&ask(&chat(MODEL), &router, "balanced"), Some(&loads), &Learned::default()));
        assert_eq!(decision.to.pool, expected, "{waiting} wait");
        let fallbacks: Vec<PoolId> = decision.to.fallbacks.iter().map(|i| fleet.instances[i.index()].pool).collect();
        // What is sent to a provider goes to nobody else, and the other way round.
        assert!(fallbacks.iter().all(|pool| *pool == expected), "{fallbacks:?}");
    }
}

#[test]
fn cached_tokens_are_cheaper_where_the_tariff_says_so() {
    let router = rented();
    let loads = idle(&router);
    let prompt = chat(MODEL);
    let usd = |cached: f64| {
        let cached_tokens = vec![cached; router.config().fleet.instances.len()];
        let held = Held { cached_tokens: &cached_tokens, adapter: &[] };
        let holder = router.config().fleet.pools[OTHER.index()].instances[0];
        let ask = Ask { held, holder: Some(holder), ..ask(&prompt, &router, "balanced") };
        decided(router.route(&ask, Some(&loads), &Learned::default())).expected.usd
    };
    let saved = usd(0.0) - usd(3.0);
    assert!((saved - 3.0 * 0.9e-6).abs() < 1e-15, "{saved}");
}

#[test]
fn another_version_of_a_model_serves_where_one_fails() {
    let router = with_pool(json!({"instances": ["10.0.0.1:1", "10.0.0.2:1"], "share": 0.5, "served_model": "v2"}));
    let fleet = &router.config().fleet;
    let pool = |i: InstanceId| fleet.instances[i.index()].pool;
    let mut loads = idle(&router);
    loads[fleet.pools[OTHER.index()].instances[0].index()].running = 3.0;
    let mut pools = BTreeSet::new();
    for draw in 0..20 {
        let lot = router.lot(Some(&format!("session-{draw}")), || 0.0);
        assert!(lot.is_some());
        let prompt = chat(MODEL);
        let ask = Ask { lot, ..ask(&prompt, &router, "balanced") };
        let decision = decided(router.route(&ask, Some(&loads), &Learned::default()));
        pools.insert(decision.to.pool);
        let first = decision.to.fallbacks[0];
        assert_ne!(pool(first), decision.to.pool, "a version that fails as a whole costs no request");
        if pool(first) == OTHER {
            assert_eq!(first, fleet.pools[OTHER.index()].instances[1], "the less busy one");
        }
        assert!(decision.to.elsewhere.iter().any(|elsewhere| elsewhere.pool == pool(first)), "it is asked by its name");
    }
    assert_eq!(pools.len(), 2, "both get sessions");
    // Whoever is out is nobody's resort, and its share goes to the other.
    for i in &fleet.pools[OTHER.index()].instances {
        loads[i.index()].standing = Standing::Ejected;
    }
    for draw in 0..20 {
        let prompt = chat(MODEL);
        let ask = Ask { lot: router.lot(Some(&draw.to_string()), || 0.0), ..ask(&prompt, &router, "balanced") };
        let decision = decided(router.route(&ask, Some(&loads), &Learned::default()));
        assert!(decision.to.pool == PoolId::new(3) && decision.to.fallbacks.iter().all(|i| pool(*i) == PoolId::new(3)));
    }
}

#[test]
fn a_pool_at_zero_is_known_from_one_that_nobody_has_told_of() {
    let mut router = router(&[("/pools/3/instances", json!("discover"))]);
    let prompt = chat(MODEL);
    let verdict =
        |router: &Router| router.route(&ask(&prompt, router, "balanced"), Some(&idle(router)), &Learned::default());
    assert!(matches!(verdict(&router), Verdict::Pooled { pool, .. } if pool == PoolId::new(3)), "Envoy may know hosts");
    let mut roster = Roster::from_fleet(&router.config().fleet);
    roster.known.insert(PoolId::new(3));
    router.follow(&roster);
    let Verdict::Refused(refusal) = verdict(&router) else { panic!("there is none") };
    assert_eq!((refusal.status, refusal.reason, refusal.pool), (503, RefusalReason::NoInstance, Some(PoolId::new(3))));
    assert!(refusal.retry_after.is_some() && refusal.message.contains(MODEL), "{refusal:?}");
    let listed =
        |name: &str| router.config().models().into_iter().find(|listed| listed.name == name).map(|l| l.available);
    assert_eq!((listed(MODEL), listed("auto"), listed("Qwen2.5-3B-Instruct")), (Some(false), Some(true), Some(true)));
}

/// Without reports a whole answer is given twice the time of its upper quantile, or of what its client allows.
#[test]
fn whole_answers_have_a_limit_where_nobody_reports() {
    let router = router(&[]);
    let prompt = |max_tokens: u32| {
        prompt(
            Api::ChatCompletions,
            &json!({"model": "Qwen2.5-72B-Instruct", "max_tokens": max_tokens, "messages": [{"role": "user", "content": "hi"}]}),
        )
    };
    let decide = |max_tokens: u32, loads: Option<&[LoadNow]>| {
        decided(router.route(&ask(&prompt(max_tokens), &router, "balanced"), loads, &Learned::default()))
    };
    let least = Duration::from_secs(20);
    let mut reported = idle(&router);
    reported.iter_mut().for_each(|load| load.trust = 1.0);
    let watched = decide(10_000, Some(&reported));
    assert_eq!(watched.answer_limit(least, false), None, "reports tell whether it works");
    assert!(watched.answer_limit(least, true).is_some(), "a provider never gives one");
    let short = decide(10, None).answer_limit(least, false);
    assert_eq!(short, Some(least));
    let long = decide(10_000, None);
    let limit = long.answer_limit(least, false).unwrap().as_secs_f64();
    let bound = 2.0 * 10_000.0 * long.expected.forecast.tpot_seconds;
    assert!((bound..1.5 * bound).contains(&limit), "{limit} {bound}");
}
