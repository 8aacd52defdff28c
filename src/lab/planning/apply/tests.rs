use super::super::planned::tests::sample;
use super::*;

const SIZE: ModelSize =
    ModelSize { weights_gb: 14.0, layers: 28.0, kv_bytes_per_token: 57_344.0, max_model_len: 4_096 };

fn config(models: &[&str]) -> String {
    let list = |of: &dyn Fn(usize, &str) -> String| -> String {
        models.iter().enumerate().map(|(i, name)| of(i, name)).collect::<Vec<_>>().join(",\n    ")
    };
    let model = |_: usize, name: &str| {
        format!(
            "{{ \"name\": \"{name}\", \"usd_per_million_input_tokens\": 1, \"usd_per_million_output_tokens\": 1, \
             \"quality_prior\": 0.5, \"output_tokens_prior\": 100 }}"
        )
    };
    let pool = |i: usize, name: &str| {
        format!(
            "{{ \"name\": \"p-{name}\", \"model\": \"{name}\", \"cluster\": \"c-{name}\", \"profile\": {{ \"tpot_ms\": 9, \
             \"prefill_tokens_per_second\": 100 }}, \"instances\": [\"127.0.0.1:{}\"] }}",
            9_000 + i
        )
    };
    format!(
        "{{\n  \"models\": [\n    {}\n  ],\n  \"pools\": [\n    {}\n  ],\n  \"policies\": [\n    {{ \"name\": \"own\",  \"weights\": {{ \
         \"quality\": 1, \"latency\": 1, \"cost\": 1 }} }}\n  ],\n  \"default_policy\": \"own\",\n  \"envoy\": {{ \"access_log\": \
         \"/dev/null\" }}\n}}\n",
        list(&model),
        list(&pool)
    )
}

fn apply_to(before: &str, policy: &str) -> Result<(String, Vec<String>)> {
    applied(before, policy, &sample(), &[Some(SIZE), None])
}

#[test]
fn a_plan_becomes_a_policy_and_limits() {
    let before = config(&["small", "large", "other"]);
    let (after, changes) = apply_to(&before, "planned").unwrap();
    let config = Config::parse(after.as_bytes()).unwrap();
    let policy = &config.policies[config.policy_named("planned").unwrap().index()];
    assert_eq!(policy.objective, routebalance_core::fleet::Objective::Prices);
    assert_eq!(policy.prices, [0.0, 0.123, 1.0], "nobody is sent to a model that the plan does not have");
    let levels: Vec<(f64, &[f64])> = policy.demand_levels.iter().map(|l| (l.rate, l.fractions.as_slice())).collect();
    assert_eq!(levels, [5.0, 10.0, 15.0, 45.0].map(|rate| (rate, [0.25, 0.75, 0.0].as_slice())));
    assert_eq!(policy.online_prices.map(|online| online.ttft.as_millis()), Some(500));
    // The small model's limits and profile are the rule's, the others' are left alone.
    let device = Device::named("A100-80GB").unwrap();
    let small = &config.fleet.pools[0];
    assert!((small.profile.tpot_ms / device.profile(&SIZE, 2, 50).tpot_ms - 1.0).abs() < 1e-4);
    // 80 GB less 11.7 and 20.5 for the two models' shards, shared alike, beside half of the 4 GB that every shard has anyway.
    let gb = 2.0 + (80.0 - 11.7 - 20.5) / 2.0;
    assert!((small.limits.kv_tokens as f64 / (2.0 * gb * 1e9 / 57_344.0) - 1.0).abs() < 1e-3, "{:?}", small.limits);
    assert_eq!(small.limits.max_model_len, 4_096);
    assert_eq!(config.fleet.pools[1].profile.tpot_ms, 9.0);
    for line in [
        "policy planned: new",
        "pool p-small: limits: max_model_len = 4096",
        "pool p-small: profile: tpot_ms = ",
        "pool p-large: profile and limits are left alone: the plan file does not say layers",
        "policy planned: demand_levels = 4 entries",
        "no route uses the policy \"planned\" yet",
    ] {
        assert!(changes.iter().any(|change| change.contains(line)), "{line}: {changes:#?}");
    }
    // What is not planned for stands where and as it stood.
    for kept in [
        "{ \"name\": \"own\",  \"weights\": {",
        "\"envoy\": { \"access_log\": \"/dev/null\" }",
        "\"name\": \"p-other\"",
    ] {
        assert!(after.contains(kept), "{after}");
    }
    let (again, changes) = apply_to(&after, "planned").unwrap();
    assert_eq!(again.split_whitespace().collect::<String>(), after.split_whitespace().collect::<String>());
    assert!(
        !changes.iter().any(|change| change.contains("prices =") || change.contains("levels")),
        "nothing has changed: {changes:#?}"
    );
}

#[test]
fn a_policy_that_is_there_keeps_what_is_its_own() {
    let (after, _) = apply_to(&config(&["small", "large"]), "own").unwrap();
    let config = Config::parse(after.as_bytes()).unwrap();
    assert_eq!(config.policies.len(), 1);
    assert_eq!(config.policies[0].prices, [0.0, 0.123]);
    assert!((config.policies[0].weights.cost - 1.0 / 3.0).abs() < 1e-12);
}

#[test]
fn the_shipped_configuration_is_kept_to_the_letter() {
    let before = include_str!("../../../../envoy/routebalance.json");
    let mut planned = sample();
    planned.problem.models[0].name = "Qwen2.5-3B-Instruct".to_owned();
    planned.problem.models[1].name = "Qwen2.5-7B-Instruct".to_owned();
    let (after, changes) = applied(before, "planned", &planned, &[None, None]).unwrap();
    let kept = before.lines().filter(|line| after.contains(line)).count();
    assert_eq!(kept, before.lines().count(), "only additions: {changes:#?}");
    assert!(
        changes.iter().any(|line| line.starts_with("pool qwen2.5-3b: has 3 instances where the plan has 1 copies"))
    );
}

#[test]
fn what_cannot_be_applied_is_said() {
    let none = Planned { plans: Vec::new(), ..sample() };
    let problem = applied(&config(&["small", "large"]), "planned", &none, &[]).unwrap_err();
    assert_eq!(problem.to_string(), "there is no plan to apply");
    let two_pools = config(&["small", "large"])
        .replace("\"name\": \"p-large\", \"model\": \"large\"", "\"name\": \"p-large\", \"model\": \"small\"");
    for (before, policy, expected) in [
        (
            config(&["small", "other"]),
            "planned",
            "models: none is named \"large\", which the plan is for; it has small, other",
        ),
        (
            two_pools.replace("\"name\": \"large\"", "\"name\": \"x\""),
            "planned",
            "configuration field models[1].name: no pool serves",
        ),
        (config(&["small", "large"]).replace("own", "\u{fc}"), "planned", "configuration field policies[].name"),
        (
            config(&["small", "large"]),
            "a policy",
            "would not pass check with this plan: configuration field policies[].name: \"a policy\" may hold",
        ),
        ("{".to_owned(), "planned", "configuration field (whole file): EOF while parsing"),
    ] {
        let problem = format!("{:#}", apply_to(&before, policy).unwrap_err());
        assert!(problem.starts_with(expected), "{problem}\nexpected: {expected}");
    }
    let mut several = config(&["small", "large"]);
    let extra = "\"pools\": [\n    { \"name\": \"second\", \"model\": \"large\", \"cluster\": \"second\", \"profile\": { \"tpot_ms\": 9, \
                 \"prefill_tokens_per_second\": 100 }, \"instances\": [\"127.0.0.1:9100\"] },";
    several = several.replace("\"pools\": [", extra);
    let problem = apply_to(&several, "planned").unwrap_err().to_string();
    assert_eq!(problem, "pools: second and p-large serve \"large\", but a plan gives a model one way to be deployed");
}

/// The example's gateway has the example's plan: up to the last digits, which depend on the order in which setups were solved.
#[test]
fn the_example_s_gateway_is_as_planned() {
    use crate::planning::file::{Overrides, PlanFile};
    let envoy = crate::package_root().join("envoy");
    let file = PlanFile::read(&envoy.join("plan.json"), &Overrides::default()).unwrap();
    let (problem, notes) = file.problem().unwrap();
    let planned = crate::planning::sweep::plan(&problem, notes).unwrap();
    let before = std::fs::read_to_string(envoy.join("plan_gateway.json")).unwrap();
    let (after, _) = applied(&before, "planned", &planned, &file.sizes().unwrap()).unwrap();
    let [before, after] = [before, after].map(|text| Config::parse(text.as_bytes()).unwrap());
    assert_eq!(before.fleet, after.fleet);
    let [before, after] = [before, after].map(|config| {
        assert_eq!(config.default_policy, config.policy_named("planned").unwrap());
        config.policies[config.default_policy.index()].clone()
    });
    assert_eq!(before.demand_levels.len(), after.demand_levels.len());
    for (before, after) in before.demand_levels.iter().zip(&after.demand_levels) {
        assert_eq!(before.rate, after.rate);
        for (b, a) in before.prices.iter().chain(&before.fractions).zip(after.prices.iter().chain(&after.fractions)) {
            assert!((b - a).abs() < 0.01, "{before:?} {after:?}");
        }
    }
}
