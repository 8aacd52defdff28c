use super::*;
use routebalance_plan::problem::{Beyond, GpuKind, Level, Limit, Metric, PlannedModel, ShardMemory, Space, Statistic};
use routebalance_plan::scores::Scores;
use routebalance_plan::setup::Placement;

/// Two models on two GPUs; three setups keep the limit of 500 ms at 10 requests per second.
pub(crate) fn sample() -> Planned {
    let model = |name: &str, weights_gb: f64| PlannedModel { name: name.to_owned(), weights_gb };
    let problem = Problem {
        models: vec![model("small", 14.0), model("large", 30.0)],
        kinds: vec![GpuKind { name: "A100-80GB".to_owned(), count: 2, memory_gb: 80.0, usd_per_hour: 1.5 }],
        memory: ShardMemory { factor: 1.1, fixed_gb: 4.0 },
        space: Space {
            tensor_parallel: vec![1, 2],
            shares_percent: vec![50, 100],
            replicas: vec![1],
            compute_min: 1.0,
            oversubscribe: false,
            interference: Some(0.2),
        },
        profiles: Vec::new(),
        beyond: Beyond::Never,
        scores: Scores::new(2, vec![0.3, 0.6, 0.5, 0.9]).unwrap(),
        levels: vec![Level { rate: 10.0, weight: 1.0 }],
        limits: vec![Limit { metric: Metric::Ttft, statistic: Statistic::Mean, milliseconds: 500.0 }],
        goal: Goal::Score,
        score_min: 0.0,
    };
    let plans = vec![plan(0.6, 480.0, 2, 50), plan(0.55, 300.0, 1, 100), plan(0.4, 450.0, 2, 50)];
    let by_rule = vec![
        ByRule { rule: Baseline::EqualSplit, found: Some((plans[1].clone(), 0.5)) },
        ByRule { rule: Baseline::Isolated, found: None },
    ];
    let at_demand = vec![
        AtDemand { routing: routing(5.0, 0.7, 200.0), keeps: true },
        AtDemand { routing: routing(10.0, 0.6, 480.0), keeps: true },
        AtDemand { routing: routing(15.0, 0.5, 700.0), keeps: false },
    ];
    let notes = vec!["scores.jsonl: 2 of 9 rows, drawn with seed 0".to_owned()];
    Planned {
        problem,
        enumerated: 12,
        placed: 8,
        left_out: 0,
        plans,
        bound: 0.6002,
        by_rule,
        at_demand,
        notes,
        seconds: 0.3,
    }
}

fn plan(score: f64, ms: f64, tensor_parallel: u32, share_percent: u32) -> Plan {
    let choice = Choice { kind: 0, tensor_parallel, share_percent, replicas: 1 };
    let gpus: Vec<usize> = (0..tensor_parallel as usize).collect();
    let other = vec![gpus.len() % 2];
    let shards = if tensor_parallel == 1 { other } else { gpus.clone() };
    Plan {
        setup: Setup(vec![choice; 2]),
        placement: Placement { gpus: vec![vec![gpus], vec![shards]] },
        routings: vec![routing(10.0, score, ms)],
        score,
        score_bound: score + 1e-4,
        usd_per_hour: 3.0,
    }
}

fn routing(rate: f64, score: f64, ms: f64) -> Routing {
    Routing {
        rate,
        fractions: vec![0.25, 0.75],
        prices: vec![0.0, 0.123],
        score,
        score_bound: score + 1e-4,
        limits_ms: vec![ms],
        ttft_ms: vec![100.0, ms],
        slow_down: vec![1.0, 1.1],
    }
}

#[test]
fn the_frontier_is_what_no_other_beats() {
    let planned = sample();
    let scores: Vec<f64> = planned.frontier().iter().map(|plan| plan.score).collect();
    assert_eq!(scores, [0.55, 0.6], "450 ms for 0.4 is beaten by 300 ms for 0.55");
    assert!((planned.gap() - 0.0002).abs() < 1e-12);
}

#[test]
fn everything_is_in_the_json() {
    let json = to_json(&sample());
    for (pointer, expected) in [
        ("/setups/enumerated", json!(12)),
        ("/setups/feasible", json!(3)),
        ("/slo/mean_ttft_ms", json!(500.0)),
        ("/choice/score", json!(0.6)),
        ("/choice/score_per_usd", json!(0.6 / 3.0)),
        ("/choice/models/1/placement", json!([[0, 1]])),
        ("/choice/levels/0/fractions/large", json!(0.75)),
        ("/choice/levels/0/prices/large", json!(0.123)),
        ("/choice/levels/0/limits/0/margin", json!(0.96)),
        ("/runners_up/0/score", json!(0.55)),
        ("/baselines/0/distance_gpus", json!(0.5)),
        ("/baselines/1/plan", json!(null)),
        ("/at_demand/2/keeps_slo", json!(false)),
        ("/kept_up_to", json!({"requests_per_second": 10.0, "at_least": false})),
        ("/points/2/setup", json!([[0, 2, 50, 1], [0, 2, 50, 1]])),
        ("/frontier/0/limits_ms", json!([300.0])),
    ] {
        assert_eq!(json.pointer(pointer), Some(&expected), "{pointer}");
    }
    let none = Planned { plans: Vec::new(), by_rule: Vec::new(), ..sample() };
    assert_eq!(to_json(&none).pointer("/choice"), Some(&json!(null)));
}

#[test]
fn the_table_tells_what_matters() {
    let text = crate::planning::table::text(&sample());
    for words in [
        "12 setups, 8 of them fit",
        "score 0.6000",
        "0.6002",
        "480 of 500 (0.960)",
        "keeps the limits up to 10.0 requests",
        "75.0 %",
        "0.1230",
        "equal-split",
        "keeps the limits with no setup",
    ] {
        assert!(text.contains(words), "{words}:\n{text}");
    }
}
