mod pools;

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::fleet::{Budget, Constraint, InstanceId, ModelId, PoolId, Presence};
use crate::openai::RequestScan;
use crate::reckoning::Standing;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// The reference fleet with changes, each a JSON pointer and a value.
fn config(changes: &[(&str, Value)]) -> Config {
    let mut json: Value = serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap();
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
    Ask::new(Api::ChatCompletions, prompt, policy)
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
        let decision = decided(router.route(&ask(&prompt, &router, policy), Some(&idle(&router)), &Learned::default()));
        router.config().fleet.models[decision.to.model.index()].name.clone()
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
        let got = match router.route(&ask(&prompt, &router, "cost"), Some(&idle(&router)), &Learned::default()) {
            Verdict::Decided(decision) => Ok(router.config().fleet.pools[decision.to.pool.index()].name.clone()),
            Verdict::Refused(refusal) => Err(refusal.status),
            other => panic!("{other:?}"),
        };
        assert_eq!(got, expected.map(str::to_owned), "{name}");
    }
    let passing = self::router(&[("/unknown_model", json!("pass_through"))]);
    let unknown = chat("gpt-2");
    assert_eq!(
        passing.route(&ask(&unknown, &passing, "cost"), Some(&idle(&passing)), &Learned::default()),
        Verdict::Untouched(UntouchedReason::UnknownModel)
    );
    // A server may know the name all the same, and would generate without the budget.
    let budget = Budget { usd: None, tokens: Some(9) };
    let constraints = Some(Constraints { budget, ..Constraints::default() });
    let limited = Ask { constraints, ..ask(&unknown, &passing, "cost") };
    let verdict = passing.route(&limited, Some(&idle(&passing)), &Learned::default());
    assert!(matches!(&verdict, Verdict::Refused(refusal) if refusal.status == 404), "{verdict:?}");
    let embedding = prompt(Api::Embeddings, &json!({"input": "some text"}));
    let embed = Ask { api: Api::Embeddings, ..ask(&embedding, &router, "quality") };
    let decision = decided(router.route(&embed, Some(&idle(&router)), &Learned::default()));
    assert_eq!(router.config().fleet.pools[decision.to.pool.index()].name, "bge-small");
    assert_eq!((decision.expected.output_tokens, decision.because.rung), (0, Rung::Fused));
}

#[test]
fn the_ladder() {
    let all = router(&[]);
    let prompt = chat("auto");
    let unreported = vec![LoadNow::default(); all.config().fleet.instances.len()];
    let rung = |router: &Router, loads: Option<&[LoadNow]>| {
        decided(router.route(&ask(&prompt, router, "balanced"), loads, &Learned::default())).because.rung
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
    assert_eq!(
        off.route(&ask(&prompt, &off, "balanced"), None, &Learned::default()),
        Verdict::Untouched(UntouchedReason::Drill)
    );
}

#[test]
fn load_moves_the_choice_to_another_instance_and_then_to_another_model() {
    let router = router(&[]);
    let prompt = chat("auto");
    let mut loads = idle(&router);
    let first = decided(router.route(&ask(&prompt, &router, "latency"), Some(&loads), &Learned::default()));
    loads[first.to.instance.index()].running = 8.0;
    let second = decided(router.route(&ask(&prompt, &router, "latency"), Some(&loads), &Learned::default()));
    assert_eq!(second.to.pool, first.to.pool);
    assert_ne!(second.to.instance, first.to.instance);
    for i in router.config().fleet.pools[first.to.pool.index()].instances.clone() {
        loads[i.index()] = LoadNow {
            running: 256.0,
            waiting: 40.0,
            pending_output_tokens: 80_000.0,
            trust: 1.0,
            ..LoadNow::default()
        };
    }
    let third = decided(router.route(&ask(&prompt, &router, "latency"), Some(&loads), &Learned::default()));
    assert_ne!(third.to.pool, first.to.pool);
}

#[test]
fn an_instance_that_nobody_answers_at_is_chosen_only_if_there_is_no_other() {
    let router = router(&[]);
    let prompt = chat("auto");
    let mut loads = idle(&router);
    let first = decided(router.route(&ask(&prompt, &router, "cost"), Some(&loads), &Learned::default()));
    loads[first.to.instance.index()].unreachable = true;
    let second = decided(router.route(&ask(&prompt, &router, "cost"), Some(&loads), &Learned::default()));
    assert_ne!(second.to.instance, first.to.instance);
    assert_eq!(second.to.fallbacks.last(), Some(&first.to.instance), "still the last resort");
    loads.iter_mut().for_each(|l| l.unreachable = true);
    assert_eq!(
        decided(router.route(&ask(&prompt, &router, "cost"), Some(&loads), &Learned::default())).to.instance,
        first.to.instance
    );
}

#[test]
fn hosts_of_envoys_clusters_are_followed() {
    let mut router = router(&[("/pools/3/instances", json!("discover"))]);
    let model = chat("Qwen2.5-72B-Instruct");
    let route = |router: &Router, prompt: &Prompt| {
        router.route(&ask(prompt, router, "quality"), Some(&idle(router)), &Learned::default())
    };
    assert_eq!(
        route(&router, &model),
        Verdict::Pooled { pool: PoolId::new(3), max_tokens: None },
        "nobody is known yet: Envoy chooses the instance"
    );
    let budget = Budget { usd: None, tokens: Some(9) };
    let constraints = Some(Constraints { budget, ..Constraints::default() });
    let limited = Ask { constraints, ..ask(&model, &router, "quality") };
    let verdict = router.route(&limited, Some(&idle(&router)), &Learned::default());
    assert_eq!(verdict, Verdict::Pooled { pool: PoolId::new(3), max_tokens: Some(9) }, "the budget holds there, too");
    assert_ne!(decided(route(&router, &chat("auto"))).to.pool, PoolId::new(3), "or another model answers");
    let mut roster = Roster::from_fleet(&router.config().fleet);
    let first = roster.members.len();
    let host = |n: usize, presence| crate::discovery::ClusterHost {
        address: format!("10.0.0.{n}:1"),
        presence,
        placing: Default::default(),
    };
    let mut follow = |router: &mut Router, hosts: Vec<crate::discovery::ClusterHost>| {
        let cluster = router.config().fleet.pools[3].cluster.clone();
        let answer = [crate::discovery::ClusterHosts { cluster, hosts }];
        roster.update(&router.config().fleet.pools, &answer, |_| 0, Duration::ZERO);
        router.follow(&roster);
        let decision = decided(router.route(&ask(&model, router, "quality"), Some(&idle(router)), &Learned::default()));
        let fallbacks: Vec<usize> = decision.to.fallbacks.iter().map(|i| i.index() - first).collect();
        (decision.to.instance.index() - first, fallbacks)
    };
    let (there, ill) = (Presence::Present, Presence::Unhealthy);
    assert_eq!(follow(&mut router, vec![host(0, there), host(1, there)]), (0, vec![1]));
    assert_eq!(follow(&mut router, vec![host(0, ill), host(1, there), host(2, there)]), (1, vec![2, 0]));
    assert_eq!(follow(&mut router, vec![host(2, there)]), (2, vec![]));
    assert_eq!(follow(&mut router, vec![host(0, ill), host(2, ill)]), (0, vec![2]), "all are ill: one of them");
    let many = (0..100).map(|n| host(n, there)).collect();
    assert_eq!(follow(&mut router, many).1.len(), 8, "Envoy does not retry more often");
    let holder = Ask { holder: Some(InstanceId::new(first + 1)), ..ask(&model, &router, "quality") };
    let holds = |router: &Router| decided(router.route(&holder, Some(&idle(router)), &Learned::default())).to.instance;
    assert_eq!(holds(&router), InstanceId::new(first + 1));
    follow(&mut router, vec![host(2, there)]);
    assert_eq!(holds(&router), InstanceId::new(first + 2), "who held the stored response has gone");
}

#[test]
fn a_stored_response_binds_the_request_to_its_instance() {
    let router = router(&[]);
    let prompt = chat("auto");
    for holder in [0, 7, 12].map(InstanceId::new) {
        let ask = Ask { holder: Some(holder), ..ask(&prompt, &router, "cost") };
        let decision = decided(router.route(&ask, Some(&idle(&router)), &Learned::default()));
        assert_eq!((decision.to.instance, decision.to.fallbacks.as_slice()), (holder, [].as_slice()));
    }
    let gone = Ask { holder: Some(InstanceId::new(999)), ..ask(&prompt, &router, "cost") };
    decided(router.route(&gone, Some(&idle(&router)), &Learned::default()));
}

#[test]
fn what_the_client_caps_is_what_is_expected() {
    let router = router(&[]);
    let messages = json!([{"role": "user", "content": "Tell me a very long story."}]);
    let capped = |fields: Value| {
        let mut body = json!({"model": "Qwen2.5-7B-Instruct", "messages": messages});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        decided(router.route(&ask(&prompt(Api::ChatCompletions, &body), &router, "cost"), None, &Learned::default()))
            .expected
            .output_tokens
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
        let decision =
            decided(router.route(&ask(prompt, &router, "latency"), Some(&idle(&router)), &Learned::default()));
        router.config().fleet.pools[decision.to.pool.index()].name.clone()
    };
    assert_eq!(pool(&long(100)), "qwen2.5-3b");
    assert_eq!(pool(&long(20_000)), "qwen2.5-72b");
    pool(&long(500_000));
}

#[test]
fn slos_and_budgets_of_a_policy_hold() {
    let strict = router(&[("/policies/1/slo", json!({"tpot_ms": 15}))]);
    let prompt = chat("auto");
    let decision = decided(strict.route(&ask(&prompt, &strict, "quality"), Some(&idle(&strict)), &Learned::default()));
    assert_eq!(
        strict.config().fleet.pools[decision.to.pool.index()].name,
        "qwen2.5-3b",
        "the only one below 15 ms a token"
    );
    assert!(decision.because.relaxed.is_empty());
    let impossible = router(&[("/policies/1/slo", json!({"ttft_ms": 1}))]);
    let decision =
        decided(impossible.route(&ask(&prompt, &impossible, "quality"), Some(&idle(&impossible)), &Learned::default()));
    assert_eq!(decision.because.relaxed, [Constraint::Ttft]);
}

#[test]
fn round_robin_visits_every_instance() {
    let router = router(&[]);
    let prompt = chat("auto");
    let mut seen: Vec<InstanceId> = (0..13)
        .map(|sequence| {
            let ask = Ask { sequence, ..ask(&prompt, &router, "round-robin") };
            decided(router.route(&ask, Some(&idle(&router)), &Learned::default())).to.instance
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..13).map(InstanceId::new).collect::<Vec<_>>());
}

/// Prices that follow load count instead of the policy's, where the objective is prices.
#[test]
fn live_prices_come_before_those_of_the_policy() {
    let price = json!({"Qwen2.5-72B-Instruct": 1, "Qwen2.5-32B-Instruct": 1});
    let router = router(&[("/policies/1/objective", json!("prices")), ("/policies/1/prices", price)]);
    let prompt = chat("auto");
    let chosen = |policy: &str, prices: Option<&[f64]>| {
        let ask = Ask { prices, ..ask(&prompt, &router, policy) };
        let decision = decided(router.route(&ask, Some(&idle(&router)), &Learned::default()));
        (decision.to.model.index(), decision.because.price)
    };
    assert_eq!(chosen("quality", None), (1, Some(0.0)));
    assert_eq!(chosen("quality", Some(&[0.5, 0.5, 0.5, 0.125])), (3, Some(0.125)));
    assert_eq!(chosen("quality", Some(&[0.0, 1.0, 1.0, 1.0])), (0, Some(0.0)));
    assert_eq!(chosen("quality", Some(&[])).1, Some(0.0), "who has no price is free");
    assert_eq!(chosen("balanced", Some(&[9.0; 4])), chosen("balanced", None));
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
            let chosen =
                decided(router.route(&ask(&prompt, &router, policy), Some(&loads), &Learned::default())).to.instance;
            let other = InstanceId::new(random(13) as usize);
            let mut more = loads.clone();
            more[other.index()].running += 5.0;
            let again =
                decided(router.route(&ask(&prompt, &router, policy), Some(&more), &Learned::default())).to.instance;
            assert!(other == chosen || again != other, "{policy}: load won {other:?} the request");
        }
    }
}

#[test]
fn what_was_learnt_of_lengths_changes_what_is_expected() {
    let router = router(&[]);
    let prompt = chat("Qwen2.5-7B-Instruct");
    let route =
        |learned: &Learned| decided(router.route(&ask(&prompt, &router, "cost"), Some(&idle(&router)), learned));
    let plain = route(&Learned::default());
    let doubled = route(&Learned { corrections: vec![1.0, 2.0, 1.0, 1.0, 1.0], ..Learned::default() });
    assert_eq!((plain.expected.output_tokens_correction, doubled.expected.output_tokens_correction), (1.0, 2.0));
    for (before, after) in [
        (plain.expected.output_tokens, doubled.expected.output_tokens),
        (plain.expected.output_tokens_p80, doubled.expected.output_tokens_p80),
        (plain.expected.output_tokens_p90, doubled.expected.output_tokens_p90),
    ] {
        assert!(after.abs_diff(2 * before) <= 1, "{before} becomes {after}");
    }
    assert!(
        doubled.expected.usd > 1.3 * plain.expected.usd && doubled.expected.seconds > 1.9 * plain.expected.seconds,
        "{doubled:?}"
    );
    assert_eq!(
        doubled.expected.expectation, plain.expected.expectation,
        "the next answer is compared with the uncorrected estimate"
    );
    assert!(
        plain.expected.output_tokens <= plain.expected.output_tokens_p80
            && plain.expected.output_tokens_p80 <= plain.expected.output_tokens_p90
    );
    // Priors are corrected as predictions are.
    let blind = self::router(&[("/predictor/enabled", json!(false))]);
    let learned = Learned { corrections: vec![0.5; 5], ..Learned::default() };
    let decision = decided(blind.route(&ask(&prompt, &blind, "cost"), Some(&idle(&blind)), &learned));
    assert_eq!(
        (decision.expected.output_tokens, decision.expected.expectation.map(|e| e.output_tokens)),
        (145, Some(290.0))
    );
}

#[test]
fn only_single_answers_teach_lengths() {
    let router = router(&[]);
    let expects = |api: Api, body: Value| {
        let prompt = prompt(api, &body);
        let ask = Ask { api, ..ask(&prompt, &router, "cost") };
        decided(router.route(&ask, Some(&idle(&router)), &Learned::default())).expected.expectation
    };
    let messages = json!([{"role": "user", "content": "Why?"}]);
    let one = expects(Api::ChatCompletions, json!({"messages": messages, "max_tokens": 7})).unwrap();
    assert!(one.max_tokens == Some(7) && one.output_tokens > 7.0, "expected as if there were no limit: {one:?}");
    assert_eq!(expects(Api::ChatCompletions, json!({"messages": messages, "n": 2})), None);
    assert_eq!(expects(Api::Completions, json!({"prompt": ["a", "b"]})), None);
    assert_eq!(expects(Api::CountTokens, json!({"messages": messages})), None);
    assert_eq!(expects(Api::Embeddings, json!({"input": "a"})), None);
}

#[test]
fn feedback_on_a_model_moves_the_choice_and_back() {
    use crate::learning::beliefs::{Beliefs, QualityLesson};
    let router = router(&[]);
    let prompt = chat("auto");
    let mut beliefs = Beliefs::default();
    let route = |beliefs: &Beliefs| {
        let learned = Learned { offsets: beliefs.offsets(), ..Learned::default() };
        decided(router.route(&ask(&prompt, &router, "quality"), Some(&idle(&router)), &learned))
    };
    let score = |decision: &Decision, score: f64| {
        let (quality, quality_sd) = decision.quality.unrevised;
        QualityLesson { model: decision.to.model, prototype: decision.quality.prototype, score, quality, quality_sd }
    };
    let first = route(&beliefs);
    (0..30).for_each(|_| beliefs.learn(&score(&first, 0.0)));
    assert_ne!(route(&beliefs).to.model, first.to.model, "a model that always fails is left");
    assert_eq!(first.quality.unrevised, (first.quality.mean, first.quality.sd));
    (0..400).for_each(|_| beliefs.learn(&score(&first, 1.0)));
    let again = route(&beliefs);
    assert_eq!(again.to.model, first.to.model);
    assert!(again.quality.mean > first.quality.mean && again.quality.sd < first.quality.sd, "{again:?}");
    assert_eq!(again.quality.unrevised, first.quality.unrevised);
}

/// Uniform in 0 to 1.
fn random(seed: &mut u64) -> f64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 11) as f64 / (1u64 << 53) as f64
}

/// From a log of the balanced policy with exploration, the mean score that the policy `quality` would have had: the inverse
/// propensity estimate is within its standard error of the truth as often as a normal estimate is, and right on average.
#[test]
fn the_log_of_one_policy_values_another() {
    let changes = [
        ("/predictor/enabled", json!(false)),
        ("/policies/0/exploration", json!(0.3)),
        // The estimate is normal only where the two policies agree often enough.
        ("/policies/0/objective", json!("paper")),
        ("/policies/1/objective", json!("paper")),
        ("/policies/0/weights", json!({"quality": 0.575, "latency": 0.415, "cost": 0.01})),
    ];
    let router = router(&changes);
    assert_eq!(router.config().policies[0].name, "balanced");
    let prompt = chat("auto");
    let score = |model: usize, busy: f64, noise: f64| (0.2 * model as f64 + 0.2 * busy + 0.2 * noise).min(1.0);
    const LOGS: usize = 40;
    const REQUESTS: usize = 300;
    let (mut within, mut errors) = (0, 0.0);
    for log in 0..LOGS {
        let mut seed = 77 + log as u64;
        let (mut terms, mut truth) = (Vec::new(), 0.0);
        for _ in 0..REQUESTS {
            // What is best depends on the load, so that the policies agree now and then.
            let busy = random(&mut seed);
            let mut loads = idle(&router);
            loads.iter_mut().for_each(|l| l.running = (60.0 * busy * random(&mut seed)).round());
            let route = |policy: &str, draw: f64| {
                decided(router.route(&Ask { draw, ..ask(&prompt, &router, policy) }, Some(&loads), &Learned::default()))
            };
            let logged = route("balanced", random(&mut seed));
            let target = route("quality", 0.5);
            let noise = random(&mut seed);
            let agrees = if logged.to.model == target.to.model { 1.0 } else { 0.0 };
            terms.push(agrees * score(logged.to.model.index(), busy, noise) / logged.draw.propensity);
            truth += score(target.to.model.index(), busy, noise) / REQUESTS as f64;
            assert!(logged.draw.propensity >= 0.3 / 4.0 && target.draw.propensity == 1.0 && !target.draw.explored);
        }
        let mean = terms.iter().sum::<f64>() / REQUESTS as f64;
        let variance = terms.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / (REQUESTS - 1) as f64;
        let standard_error = (variance / REQUESTS as f64).sqrt();
        within += usize::from((mean - truth).abs() <= standard_error);
        errors += (mean - truth) / standard_error / LOGS as f64;
    }
    // A normal estimate is within its standard error in 68 % of cases: 27 of 40, give or take 3.
    assert!(within >= LOGS / 2, "{within} of {LOGS} within one standard error");
    assert!(errors.abs() < 3.0 / (LOGS as f64).sqrt(), "biased by {errors} standard errors");
}

#[test]
fn what_an_instance_has_kept_is_worth_the_time_that_it_saves() {
    let router = router(&[("/policies/0/objective", json!("absolute")), ("/models/1/adapters", json!(["sql"]))]);
    let policy = router.config().policies[0].name.clone();
    let messages = json!([{"role": "user", "content": "word ".repeat(3_000)}]);
    let prompt = |model| prompt(Api::ChatCompletions, &json!({"model": model, "messages": messages}));
    let pool = router.config().fleet.pools.iter().find(|p| p.name == "qwen2.5-7b").unwrap();
    let holder = pool.instances.clone()[3];
    let mut cached_tokens = vec![0.0; holder.index() + 1];
    cached_tokens[holder.index()] = 2_900.0;
    let mut adapter = vec![false; holder.index() + 1];
    adapter[holder.index()] = true;
    let rows = [
        ("a prefix", "Qwen2.5-7B-Instruct", Held { cached_tokens: &cached_tokens, adapter: &[] }, 2_900, None),
        ("an adapter", "sql", Held { cached_tokens: &[], adapter: &adapter }, 0, Some("sql")),
    ];
    for (name, model, held, cached, adapter) in rows {
        let prompt = prompt(model);
        let decide = |held, loads: &[LoadNow]| {
            let ask = Ask { held, ..ask(&prompt, &router, &policy) };
            decided(router.route(&ask, Some(loads), &Learned::default()))
        };
        let mut loads = idle(&router);
        let without = decide(Held::default(), &loads);
        let with = decide(held, &loads);
        assert_eq!(
            (with.to.instance, with.expected.cached_tokens, with.to.adapter.as_deref()),
            (holder, cached, adapter),
            "{name}"
        );
        assert_ne!(without.to.instance, holder, "{name}");
        assert!(with.expected.forecast.ttft_seconds < without.expected.forecast.ttft_seconds, "{name}");
        assert!(with.expected.forecast.e2e_seconds < without.expected.forecast.e2e_seconds, "{name}");
        loads[holder.index()].running = 60.0;
        let elsewhere = decide(held, &loads);
        assert_ne!(elsewhere.to.instance, holder, "{name}: its load costs more");
        assert_eq!((elsewhere.to.pool, elsewhere.expected.cached_tokens), (with.to.pool, 0), "{name}");
    }
}

#[test]
fn an_ejected_instance_is_a_candidate_only_where_there_is_no_other() {
    let router = router(&[]);
    let fleet = &router.config().fleet;
    let pool = fleet.pools.iter().find(|p| p.name == "qwen2.5-72b").unwrap();
    let (first, second) = (pool.instances[0], pool.instances[1]);
    let decide = |model: &str, policy: &str, standings: &[(InstanceId, Standing)]| {
        let mut loads = idle(&router);
        standings.iter().for_each(|(i, standing)| loads[i.index()].standing = *standing);
        decided(router.route(&ask(&chat(model), &router, policy), Some(&loads), &Learned::default()))
    };
    let named = |standings: &[(InstanceId, Standing)]| decide("Qwen2.5-72B-Instruct", "balanced", standings);
    assert_eq!(named(&[(first, Standing::Ejected)]).to.instance, second);
    assert_eq!(named(&[(second, Standing::Ejected)]).to.instance, first);
    assert_eq!(named(&[(first, Standing::Ejected)]).to.fallbacks, [first], "the last resort of a retry");
    assert_eq!(named(&[(first, Standing::Degraded(0.5))]).to.instance, second, "a lower weight, a worse score");
    let all = named(&[(first, Standing::Ejected), (second, Standing::Ejected)]);
    assert!(pool.instances.contains(&all.to.instance) && !all.to.probe, "a pool is never emptied");
    assert_eq!(named(&[(first, Standing::Doubted)]).to.instance, second);
    let both = named(&[(first, Standing::Doubted), (second, Standing::Doubted)]);
    assert_eq!(both.because.candidates, 2, "doubts about all are doubts about nobody");
    assert_eq!(named(&[(first, Standing::Doubted), (second, Standing::Ejected)]).to.instance, first);
    let probe = named(&[(first, Standing::Ejected), (second, Standing::HalfOpen)]);
    assert_eq!((probe.to.instance, probe.to.probe), (second, true));
    // Whoever leaves the choice to the gateway does not notice that a whole pool is gone, not even at first: retries reach other models.
    let choice = decide("auto", "quality", &[]);
    let models: Vec<ModelId> = choice
        .to
        .fallbacks
        .iter()
        .map(|i| fleet.pool_of(*i).unwrap().1.model)
        .filter(|m| *m != choice.to.model)
        .collect();
    assert_eq!(models.len(), 3, "the best of each other model: {choice:?}");
    let other = |e: &&Elsewhere| {
        e.pool != choice.to.pool && fleet.pools[e.pool.index()].model == e.model && e.max_tokens.is_none()
    };
    assert_eq!(choice.to.elsewhere.iter().filter(other).count(), 3);
    let attempts = choice.to.fallbacks.iter().take(*crate::config::RETRIES.end());
    assert!(attempts.filter(|i| fleet.pool_of(**i).unwrap().0 != choice.to.pool).count() >= 2, "{choice:?}");
    assert!(named(&[]).to.elsewhere.is_empty() && named(&[]).to.fallbacks == [second], "who names a model gets it");
    let mut moved = choice.clone();
    assert!(!moved.serve_at(choice.to.pool) && moved == choice);
    assert!(moved.serve_at(choice.to.elsewhere[0].pool) && moved.to.model == choice.to.elsewhere[0].model);
    let favourite = decide("auto", "quality", &[]).to.pool;
    let gone: Vec<_> = fleet.pools[favourite.index()].instances.iter().map(|i| (*i, Standing::Ejected)).collect();
    assert_ne!(decide("auto", "quality", &gone).to.pool, favourite);
}

#[test]
fn a_model_that_the_predictor_does_not_know_is_no_failure() {
    let router = router(&[("/models/1/name", json!("our-own")), ("/pools/1/model", json!("our-own"))]);
    assert_eq!(router.unpredicted(), ["our-own"]);
    let decide = |model: &str| {
        let loads = idle(&router);
        decided(router.route(&ask(&chat(model), &router, "balanced"), Some(&loads), &Learned::default()))
    };
    let known = decide("Qwen2.5-72B-Instruct");
    assert_eq!(
        (known.because.rung, known.quality.predicted, known.quality.familiarity.is_some()),
        (Rung::Fused, true, true)
    );
    let unknown = decide("our-own");
    assert_eq!((unknown.because.rung, unknown.quality.predicted), (Rung::Fused, false));
    assert_eq!((unknown.quality.familiarity, unknown.quality.prototype), (None, None));
}
