use serde_json::{Value, json};

use super::*;
use crate::config::Config;
use crate::fleet::{InstanceId, ModelId, PolicyId};
use crate::openai::Api;
use crate::openai::{Prompt, RequestScan};
use crate::predictor::Predictor;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const NOW: Duration = Duration::from_secs(100);
const POOL: &str = "qwen2.5-72b";
const MODEL: &str = "Qwen2.5-72B-Instruct";

/// The reference fleet; its policy `balanced` does not batch, the others do.
fn router() -> Router {
    let mut json: Value = serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap();
    for policy in json["policies"].as_array_mut().unwrap() {
        if policy["name"] != "balanced" {
            policy["batching"] = json!({"mode": "adaptive", "max_wait_ms": 50});
        }
    }
    Router::new(Config::parse(json.to_string().as_bytes()).unwrap(), Some(Predictor::load().unwrap()))
}

fn prompt(api: Api, body: &Value) -> Prompt {
    let mut scan = RequestScan::new(api);
    scan.push(body.to_string().as_bytes());
    scan.finish().unwrap()
}

fn chat(model: &str, text: &str, max_tokens: u32) -> Prompt {
    let messages = json!([{"role": "user", "content": text}]);
    prompt(Api::ChatCompletions, &json!({"model": model, "messages": messages, "max_tokens": max_tokens}))
}

fn ask<'a>(router: &Router, prompt: &'a Prompt, policy: &str) -> Ask<'a> {
    let policy = router.config().policy_named(policy).unwrap();
    Ask::new(Api::ChatCompletions, prompt, policy)
}

fn idle(router: &Router) -> Vec<LoadNow> {
    vec![LoadNow { trust: 1.0, ..LoadNow::default() }; router.config().fleet.instances.len()]
}

fn all_models(router: &Router) -> Vec<ModelId> {
    router.config().fleet.models_by_id().map(|(id, _)| id).collect()
}

/// The order in which a batch is decided, and the instances that it goes to.
fn assigned(
    router: &Router,
    prompts: &[Prompt],
    policy: &str,
    loads: Option<Vec<LoadNow>>,
) -> Vec<(usize, InstanceId)> {
    let models = all_models(router);
    let outlooks: Vec<Outlook> = prompts.iter().map(|p| router.outlook(p, &models)).collect();
    let batch = prompts.iter().zip(&outlooks).map(|(p, o)| (ask(router, p, policy), o)).collect();
    let instance = |assigned: Assigned| match assigned.verdict {
        Verdict::Decided(decision) => (assigned.request, decision.to.instance),
        other => panic!("{other:?}"),
    };
    assign(router, batch, loads, &Learned::default(), NOW).into_iter().map(instance).collect()
}

#[test]
fn the_longest_comes_first() {
    let router = router();
    let of = |max_tokens: &[u32]| -> Vec<usize> {
        let prompts: Vec<Prompt> = max_tokens.iter().map(|n| chat(MODEL, "Why is the sky blue?", *n)).collect();
        assigned(&router, &prompts, "latency", Some(idle(&router))).iter().map(|(request, _)| *request).collect()
    };
    let rows: [(&[u32], &[usize]); 4] =
        [(&[], &[]), (&[9], &[0]), (&[5, 30, 9, 20], &[1, 3, 2, 0]), (&[7, 9, 7, 9, 7], &[1, 3, 0, 2, 4])];
    for (max_tokens, order) in rows {
        assert_eq!(of(max_tokens), order, "{max_tokens:?}");
    }
}

/// The key is the longest answer of any model that the request may use, whichever is chosen.
#[test]
fn the_key_is_the_longest_answer_of_any_model() {
    let router = router();
    let prompt = chat("auto", "What is the output of print(sum(range(10)))?", 4_000);
    let models = all_models(&router);
    let outlook = router.outlook(&prompt, &models);
    let longest = |model: &str| {
        let prompt = chat(model, "What is the output of print(sum(range(10)))?", 4_000);
        router.longest_output_tokens(&ask(&router, &prompt, "latency"), &outlook, &Learned::default())
    };
    let of_each: Vec<f64> = router.config().fleet.models.iter().take(4).map(|m| longest(&m.name)).collect();
    assert_eq!(longest("auto"), of_each.iter().copied().fold(0.0, f64::max), "{of_each:?}");
    assert!(of_each.iter().any(|tokens| *tokens < longest("auto")), "{of_each:?}");
}

#[test]
fn the_next_one_sees_what_the_batch_has_sent() {
    let router = router();
    let instances = router.config().fleet.pools.iter().find(|p| p.name == POOL).unwrap().instances.clone();
    let prompts: Vec<Prompt> = (0..6).map(|_| chat(MODEL, "Why?", 50)).collect();
    let counts = |loads: Option<Vec<LoadNow>>| -> Vec<usize> {
        let assigned = assigned(&router, &prompts, "latency", loads);
        instances.iter().map(|i| assigned.iter().filter(|(_, to)| to == i).count()).collect()
    };
    assert_eq!(counts(Some(idle(&router))), [3, 3]);
    let mut busy = idle(&router);
    busy[instances[0].index()].running = 4.0;
    assert_eq!(counts(Some(busy)), [1, 5], "four that run there count");
    assert_eq!(counts(None), [6, 0], "no load to read: the first choice of each");
}

#[test]
fn round_robin_goes_on_inside_a_batch() {
    let router = router();
    let prompts: Vec<Prompt> = (0..13).map(|_| chat("auto", "Why?", 50)).collect();
    let assigned = assigned(&router, &prompts, "round-robin", Some(idle(&router)));
    let mut instances: Vec<usize> = assigned.iter().map(|(_, to)| to.index()).collect();
    instances.sort_unstable();
    assert_eq!(instances, (0..13).collect::<Vec<_>>());
}

#[test]
fn a_batch_of_one_is_a_lone_request() {
    let router = router();
    for policy in ["quality", "latency", "cost"] {
        let prompt = chat("auto", "What is the output of print(sum(range(10)))?", 400);
        let ask = ask(&router, &prompt, policy);
        let lone = router.route(&ask, Some(&idle(&router)), &Learned::default());
        let models = all_models(&router);
        let outlook = router.outlook(&prompt, &models);
        let batch = assign(&router, vec![(ask, &outlook)], Some(idle(&router)), &Learned::default(), NOW);
        assert_eq!(batch, [Assigned { request: 0, verdict: lone }]);
    }
}

#[test]
fn who_waits() {
    let router = router();
    let (auto, unknown) = (chat("auto", "Why?", 5), chat("gpt-9", "Why?", 5));
    let embedding = prompt(Api::Embeddings, &json!({"input": "a sea"}));
    let plain = || ask(&router, &auto, "cost");
    assert_eq!(outlook(&router, &plain()), Some(router.outlook(&auto, &[0, 1, 2, 3].map(ModelId::new))));
    let rows = [
        ("it generates nothing", Ask { api: Api::CountTokens, ..plain() }),
        ("it generates nothing", Ask { api: Api::Embeddings, ..ask(&router, &embedding, "cost") }),
        ("one instance holds what it continues", Ask { holder: Some(InstanceId::new(3)), ..plain() }),
        ("there is no such policy", Ask { policy: PolicyId::new(99), ..plain() }),
        ("its policy does not batch", ask(&router, &auto, "balanced")),
        ("it is refused", ask(&router, &unknown, "cost")),
    ];
    for (name, ask) in rows {
        assert_eq!(outlook(&router, &ask), None, "{name}");
    }
}

#[test]
fn the_share_of_queueing_instances() {
    let load = |waiting: f64| LoadNow { running: 9.0, waiting, ..LoadNow::default() };
    for (waiting, expected) in
        [(&[][..], 0.0), (&[0.0, 0.4], 0.0), (&[0.0, 1.0, 30.0, 0.0], 0.5), (&[2.0], 1.0), (&[f64::NAN, 1.0], 0.5)]
    {
        let loads: Vec<LoadNow> = waiting.iter().map(|w| load(*w)).collect();
        assert_eq!(queueing_share(&loads), expected, "{waiting:?}");
    }
}
