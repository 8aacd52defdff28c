use serde_json::{Value, json};

use super::*;
use crate::openai::RequestScan;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// The reference fleet with changes, each a JSON pointer and a value.
fn config(changes: &[(&str, Value)]) -> Config {
    let mut json: Value = serde_json::from_str(include_str!("../../envoy/routebalance.json")).unwrap();
    for (pointer, value) in changes {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap()[field] = value.clone();
    }
    Config::parse(json.to_string().as_bytes()).unwrap()
}

fn router(changes: &[(&str, Value)]) -> Router {
    Router::new(config(changes), Some(Predictor::load().unwrap()))
}

fn prompt(api: Api, body: &Value) -> Prompt {
    let mut scan = RequestScan::new(api);
    scan.push(body.to_string().as_bytes());
    scan.finish().unwrap()
}

fn chat(model: &str) -> Prompt {
    let messages = json!([{"role": "user", "content": "What is the output of print(sum(range(10)))?"}]);
    prompt(Api::ChatCompletions, &json!({"model": model, "messages": messages}))
}

/// Idle, reported instances.
fn idle(router: &Router) -> Vec<LoadNow> {
    vec![LoadNow { trust: 1.0, ..LoadNow::default() }; router.config().fleet.instances.len()]
}

fn ask<'a>(prompt: &'a Prompt, router: &Router, policy: &str) -> Ask<'a> {
    let policy = router.config().policy_named(policy).unwrap();
    Ask { api: Api::ChatCompletions, prompt, policy, holder: None, sequence: 0 }
}

fn decided(verdict: Verdict) -> Decision {
    match verdict {
        Verdict::Decided(decision) => *decision,
        other => panic!("not decided: {other:?}"),
    }
}

#[test]
fn weights_choose_the_model() {
    let router = router(&[]);
    let prompt = chat("auto");
    let chosen = |policy: &str| {
        let decision = decided(router.route(&ask(&prompt, &router, policy), Some(&idle(&router))));
        router.config().fleet.models[decision.model].name.clone()
    };
    let dear = ["Qwen2.5-32B-Instruct", "Qwen2.5-72B-Instruct"];
    assert_eq!(chosen("latency"), "Qwen2.5-3B-Instruct", "the fastest");
    assert!(!dear.contains(&chosen("cost").as_str()));
    assert!(dear.contains(&chosen("quality").as_str()));
}

#[test]
fn the_models_that_a_request_may_use() {
    let router = router(&[]);
    let rows: &[(&str, Result<&str, u16>)] = &[
        ("Qwen2.5-72B-Instruct", Ok("qwen2.5-72b")),
        ("Qwen/Qwen2.5-72B-Instruct", Ok("qwen2.5-72b")),
        ("gpt-2", Err(404)),
        ("bge-small-en-v1.5", Err(404)),
    ];
    for (name, expected) in rows {
        let prompt = chat(name);
        let got = match router.route(&ask(&prompt, &router, "cost"), Some(&idle(&router))) {
            Verdict::Decided(decision) => Ok(router.config().fleet.pools[decision.pool].name.clone()),
            Verdict::Refused { status, .. } => Err(status),
            Verdict::Untouched(reason) => panic!("{reason}"),
        };
        assert_eq!(got, expected.map(str::to_owned), "{name}");
    }
    let passing = self::router(&[("/unknown_model", json!("pass_through"))]);
    let unknown = chat("gpt-2");
    assert_eq!(
        passing.route(&ask(&unknown, &passing, "cost"), Some(&idle(&passing))),
        Verdict::Untouched("unknown_model")
    );
    let embedding = prompt(Api::Embeddings, &json!({"input": "some text"}));
    let embed = Ask { api: Api::Embeddings, ..ask(&embedding, &router, "quality") };
    let decision = decided(router.route(&embed, Some(&idle(&router))));
    assert_eq!(router.config().fleet.pools[decision.pool].name, "bge-small");
    assert_eq!((decision.output_tokens, decision.rung), (0, Rung::Fused));
}

#[test]
fn the_ladder() {
    let all = router(&[]);
    let prompt = chat("auto");
    let unreported = vec![LoadNow::default(); all.config().fleet.instances.len()];
    let rung = |router: &Router, loads: Option<&[LoadNow]>| {
        decided(router.route(&ask(&prompt, router, "balanced"), loads)).rung
    };
    assert_eq!(rung(&all, Some(&idle(&all))), Rung::Fused);
    assert_eq!(rung(&all, Some(&unreported)), Rung::Reckoned);
    assert_eq!(rung(&all, None), Rung::Static);
    for changes in [("/predictor/enabled", json!(false)), ("/drill", json!(["predictor"]))] {
        let blind = router(&[changes]);
        assert_eq!(rung(&blind, Some(&idle(&blind))), Rung::Priors);
        assert_eq!(rung(&blind, None), Rung::Static);
    }
    let off = router(&[("/drill", json!(["router"]))]);
    assert_eq!(off.route(&ask(&prompt, &off, "balanced"), None), Verdict::Untouched("drill"));
}

#[test]
fn load_moves_the_choice_to_another_instance_and_then_to_another_model() {
    let router = router(&[]);
    let prompt = chat("auto");
    let mut loads = idle(&router);
    let first = decided(router.route(&ask(&prompt, &router, "latency"), Some(&loads)));
    loads[first.instance].running = 8.0;
    let second = decided(router.route(&ask(&prompt, &router, "latency"), Some(&loads)));
    assert_eq!(second.pool, first.pool);
    assert_ne!(second.instance, first.instance);
    for i in router.config().fleet.pools[first.pool].instances.clone() {
        loads[i] = LoadNow {
            running: 256.0,
            waiting: 40.0,
            pending_output_tokens: 80_000.0,
            trust: 1.0,
            ..LoadNow::default()
        };
    }
    let third = decided(router.route(&ask(&prompt, &router, "latency"), Some(&loads)));
    assert_ne!(third.pool, first.pool);
}

#[test]
fn an_instance_that_nobody_answers_at_is_chosen_only_if_there_is_no_other() {
    let router = router(&[]);
    let prompt = chat("auto");
    let mut loads = idle(&router);
    let first = decided(router.route(&ask(&prompt, &router, "cost"), Some(&loads)));
    loads[first.instance].unreachable = true;
    let second = decided(router.route(&ask(&prompt, &router, "cost"), Some(&loads)));
    assert_ne!(second.instance, first.instance);
    assert_eq!(second.fallbacks.last(), Some(&first.instance), "still the last resort");
    loads.iter_mut().for_each(|l| l.unreachable = true);
    assert_eq!(decided(router.route(&ask(&prompt, &router, "cost"), Some(&loads))).instance, first.instance);
}

#[test]
fn a_stored_response_binds_the_request_to_its_instance() {
    let router = router(&[]);
    let prompt = chat("auto");
    for holder in [0, 7, 12] {
        let ask = Ask { holder: Some(holder), ..ask(&prompt, &router, "cost") };
        let decision = decided(router.route(&ask, Some(&idle(&router))));
        assert_eq!((decision.instance, decision.fallbacks.as_slice()), (holder, [].as_slice()));
    }
    let gone = Ask { holder: Some(999), ..ask(&prompt, &router, "cost") };
    decided(router.route(&gone, Some(&idle(&router))));
}

#[test]
fn what_the_client_caps_is_what_is_expected() {
    let router = router(&[]);
    let messages = json!([{"role": "user", "content": "Tell me a very long story."}]);
    let capped = |fields: Value| {
        let mut body = json!({"model": "Qwen2.5-7B-Instruct", "messages": messages});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        decided(router.route(&ask(&prompt(Api::ChatCompletions, &body), &router, "cost"), None)).output_tokens
    };
    assert_eq!(capped(json!({"max_tokens": 5})), 5);
    assert_eq!(capped(json!({"max_completion_tokens": 5, "n": 3})), 15);
    assert!(capped(json!({})) > 5);
}

#[test]
fn a_long_prompt_goes_where_it_fits() {
    let router = router(&[("/pools/3/limits/max_model_len", json!(131_072))]);
    let long = |words: usize| {
        let messages = json!([{"role": "user", "content": "word ".repeat(words)}]);
        prompt(Api::ChatCompletions, &json!({"messages": messages}))
    };
    let pool = |prompt: &Prompt| {
        let decision = decided(router.route(&ask(prompt, &router, "latency"), Some(&idle(&router))));
        router.config().fleet.pools[decision.pool].name.clone()
    };
    assert_eq!(pool(&long(100)), "qwen2.5-3b");
    assert_eq!(pool(&long(20_000)), "qwen2.5-72b");
    pool(&long(500_000));
}

#[test]
fn slos_and_budgets_of_a_policy_hold() {
    let strict = router(&[("/policies/1/slo", json!({"tpot_ms": 15}))]);
    let prompt = chat("auto");
    let decision = decided(strict.route(&ask(&prompt, &strict, "quality"), Some(&idle(&strict))));
    assert_eq!(strict.config().fleet.pools[decision.pool].name, "qwen2.5-3b", "the only one below 15 ms a token");
    assert!(decision.relaxed.is_empty());
    let impossible = router(&[("/policies/1/slo", json!({"ttft_ms": 1}))]);
    let decision = decided(impossible.route(&ask(&prompt, &impossible, "quality"), Some(&idle(&impossible))));
    assert_eq!(decision.relaxed, [Constraint::Ttft]);
}

#[test]
fn round_robin_visits_every_instance() {
    let router = router(&[]);
    let prompt = chat("auto");
    let mut seen: Vec<usize> = (0..13)
        .map(|sequence| {
            let ask = Ask { sequence, ..ask(&prompt, &router, "round-robin") };
            decided(router.route(&ask, Some(&idle(&router)))).instance
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..13).collect::<Vec<_>>());
}

/// Whatever the loads, more load on an instance never wins it a request that it did not get with less.
#[test]
fn more_load_never_improves_a_candidate() {
    let router = router(&[]);
    let prompt = chat("auto");
    let mut seed = 11u64;
    let mut random = move |n: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((seed >> 33) % n) as f64
    };
    for policy in ["balanced", "quality", "latency", "cost"] {
        for _ in 0..100 {
            let loads: Vec<LoadNow> = (0..router.config().fleet.instances.len())
                .map(|_| LoadNow { running: random(30), trust: 1.0, ..LoadNow::default() })
                .collect();
            let chosen = decided(router.route(&ask(&prompt, &router, policy), Some(&loads))).instance;
            let other = random(13) as usize;
            let mut more = loads.clone();
            more[other].running += 5.0;
            let again = decided(router.route(&ask(&prompt, &router, policy), Some(&more))).instance;
            assert!(other == chosen || again != other, "{policy}: load won instance {other} the request");
        }
    }
}
