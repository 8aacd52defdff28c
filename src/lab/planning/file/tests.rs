use serde_json::{Value, json};

use super::*;

fn row(model: &str, tensor_parallel: u32, share: u32, rate: f64, ttft: f64) -> Value {
    json!({
        "model": model, "gpu": "A", "tensor_parallel": tensor_parallel, "share_percent": share,
        "requests_per_second": rate, "busy": 0.5, "ttft_mean_ms": ttft, "tpot_mean_ms": 10, "e2e_mean_ms": 100.0,
    })
}

fn profile_rows() -> Vec<Value> {
    let mut rows = Vec::new();
    for model in ["small", "large"] {
        for tensor_parallel in [1, 2] {
            for share in [50, 100] {
                rows.push(row(model, tensor_parallel, share, 1.0, 50.0));
                rows.push(row(model, tensor_parallel, share, 20.0, 500.0));
            }
        }
    }
    rows
}

fn good() -> Value {
    json!({
        "gpus": [{"kind": "A", "count": 2, "memory_gb": 80, "usd_per_hour": 1.5}],
        "models": [{"name": "small", "parameters_billion": 7}, {"name": "large", "weights_gb": 30.0, "quality_prior": 0.5}],
        "tensor_parallel": [2, 1], "shares_percent": [50, 100],
        "profiles": profile_rows(),
        "scores": {"file": "scores.jsonl"},
        "demand": 12,
        "slo": {"mean_ttft_ms": 400},
    })
}

const SCORES: &str = r#"{"scores": {"small": 0.4, "large": 0.9}}
{"q": {"large": 1, "small": 0}, "ours": [[0.7, 0, 1, 1, 1], [0.6, 0, 1, 1, 1]], "familiarity": 0.5}
"#;

fn read(plan: &Value, scores: &str, overrides: &Overrides) -> Result<(Problem, Vec<String>)> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("scores.jsonl"), scores)?;
    PlanFile::parse(plan.to_string().as_bytes(), folder.path(), overrides)?.problem()
}

#[test]
fn a_file_becomes_a_problem() {
    let (problem, notes) = read(&good(), SCORES, &Overrides::default()).unwrap();
    assert!(notes.is_empty());
    assert_eq!(problem.models[0], PlannedModel { name: "small".to_owned(), weights_gb: 14.0 });
    assert_eq!(problem.kinds[0].count, 2);
    assert_eq!(problem.memory, ShardMemory { factor: 1.1, fixed_gb: 4.0 });
    assert_eq!(problem.space.tensor_parallel, [1, 2]);
    assert_eq!((problem.space.replicas.as_slice(), problem.space.compute_min), ([1].as_slice(), 1.0));
    assert_eq!(problem.profiles.len(), 8);
    assert_eq!(problem.levels, [Level { rate: 12.0, weight: 1.0 }]);
    let limit = Limit { metric: Metric::Ttft, statistic: Statistic::Mean, milliseconds: 400.0 };
    assert_eq!(problem.limits, [limit]);
    // The large model's estimate of a half familiar prompt is halfway to its prior.
    let rows: Vec<&[f64]> = problem.scores.rows().collect();
    assert_eq!(rows, [[0.4, 0.9].as_slice(), [0.6, 0.6].as_slice()]);
}

#[test]
fn the_command_line_comes_first() {
    let overrides = Overrides { slo_ms: Some(250.0), rate: Some(3.0), gpus: Some(3) };
    let mut plan = good();
    plan["demand"] = json!([{"requests_per_second": 5, "weight": 3}, {"requests_per_second": 10}]);
    plan["slo"]["mean_e2e_ms"] = json!(900);
    let (problem, _) = read(&plan, SCORES, &Overrides::default()).unwrap();
    assert_eq!(problem.levels, [Level { rate: 5.0, weight: 0.75 }, Level { rate: 10.0, weight: 0.25 }]);
    let (problem, _) = read(&plan, SCORES, &overrides).unwrap();
    assert_eq!(problem.levels, [Level { rate: 3.0, weight: 1.0 }]);
    assert_eq!(problem.kinds[0].count, 3);
    let limits: Vec<(String, f64)> = problem.limits.iter().map(|l| (limit_name(l), l.milliseconds)).collect();
    assert_eq!(limits, [("mean_e2e_ms".to_owned(), 900.0), ("mean_ttft_ms".to_owned(), 250.0)]);
}

#[test]
fn a_sample_is_drawn_by_the_seed() {
    let scores: String =
        (0..50).map(|i| format!("{{\"scores\":{{\"small\":{},\"large\":1}}}}\n", f64::from(i) / 50.0)).collect();
    let drawn = |seed: u64| {
        let mut plan = good();
        plan["scores"] = json!({"file": "scores.jsonl", "prompts_max": 10, "seed": seed});
        let (problem, notes) = read(&plan, &scores, &Overrides::default()).unwrap();
        assert!(notes[0].ends_with(&format!("10 of 50 rows, drawn with seed {seed}")), "{notes:?}");
        problem.scores.rows().map(|row| row[0]).collect::<Vec<f64>>()
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
    let mut sorted = drawn(3);
    sorted.dedup();
    assert!(sorted.len() == 10 && sorted.is_sorted(), "each once, in the order of the file: {sorted:?}");
}

#[test]
fn prompts_go_through_the_predictor() {
    let folder = tempfile::tempdir().unwrap();
    let text = "{\"prompt\":\"Why is the sky blue?\",\"id\":\"a\"}\n{\"prompt\":\"def f(x):\\n  return x\"}\n";
    std::fs::write(folder.path().join("prompts.jsonl"), text).unwrap();
    let names = Predictor::load().unwrap().models().to_vec();
    let models: Vec<PlannedModel> =
        names.iter().map(|name| PlannedModel { name: name.clone(), weights_gb: 1.0 }).collect();
    let scores = |models: &[PlannedModel]| {
        let raw: RawScores = serde_json::from_value(json!({"prompts": "prompts.jsonl"})).unwrap();
        raw.read(folder.path(), models, &vec![None; models.len()])
    };
    let (all, _) = scores(&models).unwrap();
    assert_eq!((all.prompts(), all.models()), (2, names.len()));
    let rows: Vec<&[f64]> = all.rows().collect();
    assert_ne!(rows[0], rows[1]);
    let other = [PlannedModel { name: "other".to_owned(), weights_gb: 1.0 }];
    let problem = format!("{:#}", scores(&other).unwrap_err());
    assert!(problem.contains("unknown model: the predictor does not know other, but "), "{problem}");
}

use routebalance_core::predictor::Predictor;

#[test]
fn what_is_wrong_is_said() {
    type Change = fn(&mut Value);
    let rows: [(Change, &str); 43] = [
        (|p| p["colour"] = json!(1), "plan field colour: unknown field `colour`"),
        (|p| p["gpus"][0]["count"] = json!("x"), "plan field gpus[0].count: invalid type: string \"x\""),
        (|p| p["gpus"][0]["count"] = json!(0), "plan field gpus[0].count: 0 is not between 1 and 64"),
        (|p| p["gpus"][0]["memory_gb"] = json!(-1), "plan field gpus[0].memory_gb: -1 is not between 0.1 and"),
        (|p| p["gpus"] = json!([]), "plan field gpus: at least one kind is needed"),
        (|p| p["models"] = json!([]), "plan field models: at least one model is needed"),
        (|p| p["models"][1]["name"] = json!("small"), "plan field models[1].name: \"small\" appears twice"),
        (
            |p| p["models"][0]["weights_gb"] = json!(1),
            "plan field models[0]: \"small\" needs parameters_billion or weights_gb, one",
        ),
        (
            |p| p["models"][1]["quality_prior"] = json!(2),
            "plan field models[1].quality_prior: 2 is not between 0 and 1",
        ),
        (
            |p| p["models"][1]["weights_gb"] = json!(200),
            "large fits nowhere: even over 2 GPUs it needs, on each, 114.0 GB, and the largest GPU, A, has 80 GB",
        ),
        (
            |p| {
                p["models"][1]["weights_gb"] = json!(70);
                p["tensor_parallel"] = json!([1]);
            },
            "large fits nowhere: it needs 81.0 GB, and the largest GPU, A, has 80 GB",
        ),
        (
            |p| p["tensor_parallel"] = json!([4]),
            "plan field tensor_parallel: small needs more shards than any kind has GPUs (2)",
        ),
        (|p| p["tensor_parallel"] = json!([]), "plan field tensor_parallel: at least one number is needed"),
        (|p| p["tensor_parallel"] = json!([0]), "plan field tensor_parallel[0]: 0 is not between 1 and 64"),
        (|p| p["shares_percent"] = json!([50, 110]), "plan field shares_percent[1]: 110 is not between 1 and 100"),
        (|p| p["shares_percent"] = json!([50, 50]), "plan field shares_percent: 50 appears twice"),
        (|p| p["replicas"] = json!([0]), "plan field replicas: with 0 alone no model is deployed"),
        (|p| p["compute_min"] = json!(1.5), "plan field compute_min: 1.5 is not between 0 and 1"),
        (|p| p["interference"] = json!(-0.1), "plan field interference: -0.1 is not between 0 and 100"),
        (|p| p["memory"] = json!({"factor": -1}), "plan field memory.factor: -1 is not between 0 and 100"),
        (|p| p["demand"] = json!(0), "plan field demand[0].requests_per_second: 0 is not demand: it must be above 0"),
        (|p| p["demand"] = json!([]), "plan field demand: at least one level is needed"),
        (
            |p| p["demand"] = json!("many"),
            "plan field demand: invalid type: string \"many\", expected requests per second, or a list",
        ),
        (
            |p| p["demand"] = json!([{"requests_per_second": 1, "weight": 0}]),
            "plan field demand: at least one weight must be above 0",
        ),
        (
            |p| p["demand"] = json!([{"requests_per_second": 1, "share": 0}]),
            "plan field demand[0].share: unknown field `share`",
        ),
        (
            |p| p["demand"] = json!(200),
            "plan field demand[0].requests_per_second: 200 is beyond all profiles, which end at 40.0 for all models together",
        ),
        (|p| p["slo"] = json!({}), "plan field slo: at least one limit is needed, such as mean_ttft_ms"),
        (|p| p["slo"] = json!({"p42_ttft_ms": 1}), "plan field slo.p42_ttft_ms: is no limit; limits are"),
        (|p| p["slo"] = json!({"mean_ttft_ms": 0}), "plan field slo.mean_ttft_ms: 0 is not between 0.001 and"),
        (
            |p| p["slo"] = json!({"p95_ttft_ms": 9}),
            "profiles: small on A, tensor_parallel 1, share 50 %: has no percentiles of the time that the limit p95_ttft_ms is about",
        ),
        (|p| p["goal"] = json!("speed"), "plan field goal: unknown variant `speed`"),
        (|p| p["goal"] = json!("usd"), "plan field score_min: the goal usd needs it"),
        (|p| p["score_min"] = json!(0.5), "plan field score_min: belongs to the goal usd"),
        (
            |p| {
                p["goal"] = json!("score_per_usd");
                p["gpus"][0]["usd_per_hour"] = json!(0);
            },
            "plan field gpus[0].usd_per_hour: the goal needs what a GPU costs",
        ),
        (
            |p| drop(p["gpus"][0].as_object_mut().unwrap().remove("usd_per_hour")),
            "plan field gpus[0].usd_per_hour: is missing",
        ),
        (
            |p| p["profiles"] = json!(1),
            "plan field profiles: invalid type: integer `1`, expected the path of a CSV file",
        ),
        (|p| p["profiles"] = json!("none.csv"), "profiles: "),
        (|p| p["profiles"][0]["busy"] = json!("x"), "plan field profiles[0].busy: invalid type: string \"x\""),
        (
            |p| {
                p["profiles"].as_array_mut().unwrap().remove(1);
            },
            "plan field profiles: small on A, tensor_parallel 1, share 50 %: has one point",
        ),
        (
            |p| p["profiles"][1] = row("small", 1, 50, 20.0, 40.0),
            "plan field profiles: small on A, tensor_parallel 1, share 50 %: ttft_mean_ms falls from 50 at 1 requests per second to 40 at 20: latency must not fall",
        ),
        (
            |p| p["shares_percent"] = json!([40, 50]),
            "profiles: none for small on A, tensor_parallel 1, share 40 %: measure it, or take the number out",
        ),
        (|p| p["scores"] = json!({}), "plan field scores: needs file or prompts, one of the two"),
        (|p| p["scores"]["prompts_max"] = json!(0), "plan field scores.prompts_max: at least one prompt is needed"),
    ];
    for (change, expected) in rows {
        let mut plan = good();
        change(&mut plan);
        let problem = format!("{:#}", read(&plan, SCORES, &Overrides::default()).expect_err(expected));
        assert!(problem.starts_with(expected), "{problem}\nexpected: {expected}");
    }
    for (scores, expected) in [
        ("\n", "has no row: without scores there is nothing to choose by"),
        ("{\"scores\": {\"small\": 1}}", "scores.jsonl:1: unknown model: there is no score of large, but of small"),
        (
            "{\"scores\": {\"small\": 2, \"large\": 1}}",
            "scores.jsonl:1: plan field scores.small: 2 is not between 0 and 1",
        ),
        ("{\"q\": {\"small\": 1}}", "scores.jsonl:1: has no scores: a row needs scores by model, or q and ours"),
        ("{\"q\": {\"small\": 1}, \"ours\": []}", "scores.jsonl:1: ours has 0 models, q 1"),
        ("nonsense", "scores.jsonl:1: expected ident"),
    ] {
        let problem = format!("{:#}", read(&good(), scores, &Overrides::default()).expect_err(expected));
        assert!(problem.starts_with("plan field scores.file: "), "{problem}");
        assert!(problem.contains(expected), "{problem}\nexpected: {expected}");
    }
    let mut two_kinds = good();
    two_kinds["gpus"]
        .as_array_mut()
        .unwrap()
        .push(json!({"kind": "B", "count": 1, "memory_gb": 80, "usd_per_hour": 1}));
    let overrides = Overrides { gpus: Some(1), ..Overrides::default() };
    let problem = read(&two_kinds, SCORES, &overrides).unwrap_err().to_string();
    assert!(problem.starts_with("--gpus is for plans of one GPU kind; this one has 2"), "{problem}");
}
