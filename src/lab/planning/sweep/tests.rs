use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::planning::file::{Overrides, PlanFile};
use crate::planning::planned::to_json;
use routebalance_core::random::Random;

/// A copy that gets slower as it nears what its compute sustains, which is less for a larger model.
fn profile_rows() -> Vec<Value> {
    let mut rows = Vec::new();
    for (model, speed) in [("small", 40.0), ("large", 12.0)] {
        for (gpu, factor) in [("A", 1.0), ("B", 2.0)] {
            for tensor_parallel in [1, 2] {
                for share in [50, 100] {
                    let most = factor * speed * f64::from(tensor_parallel * share) / 100.0;
                    for part in [0.1, 0.4, 0.6, 0.8, 0.9, 0.95] {
                        let ttft = 400.0 / speed / factor / (1.0 - part) * 2.0;
                        rows.push(json!({
                            "model": model, "gpu": gpu, "tensor_parallel": tensor_parallel, "share_percent": share,
                            "requests_per_second": part * most, "busy": part, "ttft_mean_ms": ttft, "tpot_mean_ms": 10.0,
                            "e2e_mean_ms": 1e3 + ttft,
                        }));
                    }
                }
            }
        }
    }
    rows
}

fn file(change: impl FnOnce(&mut Value)) -> Value {
    let mut plan = json!({
        "gpus": [{"kind": "A", "count": 2, "memory_gb": 80, "usd_per_hour": 1}],
        "models": [{"name": "small", "weights_gb": 14}, {"name": "large", "weights_gb": 60}],
        "tensor_parallel": [1, 2], "shares_percent": [50, 100],
        "interference": 0.1,
        "profiles": profile_rows(),
        "scores": {"file": "scores.jsonl"},
        "demand": 34,
        "slo": {"mean_ttft_ms": 200},
    });
    change(&mut plan);
    plan
}

fn problem(plan: &Value) -> Problem {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random::new(3);
    let mut row = || {
        let small = random.uniform();
        let large = small + (1.0 - small) * random.uniform();
        format!("{{\"scores\":{{\"small\":{small},\"large\":{large}}}}}\n")
    };
    let rows: String = (0..300).map(|_| row()).collect();
    std::fs::write(folder.path().join("scores.jsonl"), rows).unwrap();
    let parsed = PlanFile::parse(plan.to_string().as_bytes(), Path::new(folder.path()), &Overrides::default());
    parsed.unwrap().problem().unwrap().0
}

fn planned(plan: &Value) -> Planned {
    super::plan(&problem(plan), Vec::new()).unwrap()
}

#[test]
fn the_choice_is_the_best_of_all_setups() {
    let planned = planned(&file(|_| ()));
    let choice = planned.choice().expect("a setup keeps the limit");
    assert!(planned.placed <= planned.enumerated && planned.plans.len() <= planned.placed);
    assert!(planned.gap() <= TIE + COARSE_GAP && planned.bound + 1e-9 >= choice.score);
    for plan in &planned.plans {
        assert!(plan.score <= choice.score + TIE, "{} {}", plan.score, choice.score);
        assert!(worst_ms(plan, 0) <= 200.0 * (1.0 + 1e-6));
    }
    assert!(planned.plans[1..].is_sorted_by(|a, b| a.score >= b.score));
    // Prices are exact: argmax (score - price) sends the planned shares.
    let routing = &choice.routings[0];
    let to_large = |row: &&[f64]| row[1] - routing.prices[1] > row[0] - routing.prices[0];
    let share = planned.problem.scores.rows().filter(to_large).count() as f64 / 300.0;
    assert!((share - routing.fractions[1]).abs() < 0.01, "{share} {:?}", routing.fractions);
    let rules: Vec<Option<f64>> =
        planned.by_rule.iter().map(|r| r.found.as_ref().map(|(plan, _)| plan.score)).collect();
    assert!(rules.iter().flatten().all(|score| *score <= choice.score + TIE), "{rules:?}");
    assert!(rules[0].is_some());
    // At other demand: more is worse, and where the limit is lost is found.
    let kept: Vec<&AtDemand> = planned.at_demand.iter().filter(|at| at.keeps).collect();
    assert!(kept.is_sorted_by(|a, b| a.routing.rate < b.routing.rate && a.routing.score + 1e-4 >= b.routing.score));
    let (most, may_be_more) = planned.kept_up_to();
    assert!(!may_be_more && most >= 34.0, "{most}");
    let beyond = file(|p| p["demand"] = json!(most * 1.05));
    let beyond = super::plan(&problem(&beyond), Vec::new()).unwrap();
    assert!(beyond.plans.iter().all(|plan| plan.setup != choice.setup), "{most} is the most");
    serde_json::to_string(&to_json(&planned)).unwrap();
}

#[test]
fn money_can_be_what_counts() {
    let two_kinds = |goal: &str| {
        file(|p| {
            p["gpus"] = json!([
                {"kind": "A", "count": 2, "memory_gb": 80, "usd_per_hour": 1}, {"kind": "B", "count": 2, "memory_gb": 80, "usd_per_hour": 3}
            ]);
            p["compute_min"] = json!(0);
            p["goal"] = json!(goal);
            p["demand"] = json!(8);
            if goal == "usd" {
                p["score_min"] = json!(0.55);
            }
        })
    };
    let [score, ratio, usd] = ["score", "score_per_usd", "usd"].map(|goal| planned(&two_kinds(goal)));
    let best_of = |planned: &Planned| planned.choice().map(|plan| (plan.score, plan.usd_per_hour)).unwrap();
    assert!(best_of(&score).0 + TIE >= best_of(&ratio).0 && best_of(&score).0 + TIE >= best_of(&usd).0);
    assert!(best_of(&ratio).0 / best_of(&ratio).1 >= best_of(&score).0 / best_of(&score).1 - TIE);
    assert!(
        best_of(&usd).0 >= 0.55 - 1e-9 && best_of(&usd).1 <= best_of(&ratio).1 && best_of(&usd).1 <= best_of(&score).1
    );
    let cheapest =
        usd.plans.iter().filter(|plan| plan.score >= 0.55).map(|plan| plan.usd_per_hour).fold(f64::INFINITY, f64::min);
    assert_eq!(best_of(&usd).1, cheapest);
    let mut unreachable = two_kinds("usd");
    unreachable["score_min"] = json!(0.99);
    let problem = super::plan(&problem(&unreachable), Vec::new()).map(|_| ()).unwrap_err().to_string();
    assert!(
        problem.starts_with("infeasible: score_min is 0.99, and the best score that keeps the limits is 0."),
        "{problem}"
    );
}

#[test]
fn what_is_advised_is_rounded_to_what_is_possible() {
    for (value, up, down) in
        [(123.44, 124.0, 123.0), (1_234.0, 1_240.0, 1_230.0), (0.98039, 0.981, 0.98), (15.0, 15.0, 15.0)]
    {
        assert!((rounded(value, f64::ceil) - up).abs() < 1e-9 * value, "{value}: {}", rounded(value, f64::ceil));
        assert!((rounded(value, f64::floor) - down).abs() < 1e-9 * value, "{value}: {}", rounded(value, f64::floor));
    }
}

#[test]
fn where_nothing_keeps_the_limits_it_is_said_what_would() {
    let plan = file(|p| p["demand"] = json!(60));
    let none = planned(&plan);
    assert!(none.choice().is_none() && none.placed > 0);
    let problem = infeasible(&none).unwrap_err().to_string();
    assert!(problem.starts_with("infeasible: none of the "), "{problem}");
    let after = |words: &str| -> f64 {
        let rest = problem.split(words).nth(1).unwrap_or_else(|| panic!("{words}: {problem}"));
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    let rate = after("the limits can be kept at ");
    let gpus = after("the least number of GPUs that would do is ") as usize;
    let keeps = |rate: f64, gpus: usize| {
        let plan = file(|p| {
            p["demand"] = json!(rate);
            p["gpus"][0]["count"] = json!(gpus);
        });
        planned(&plan).choice().is_some()
    };
    assert!(keeps(rate, 2) && !keeps(rate * 1.03, 2), "{problem}");
    assert!(keeps(60.0, gpus) && !keeps(60.0, gpus - 1), "{problem}");
    let tight = file(|p| p["slo"] = json!({"mean_ttft_ms": 15}));
    let problem = infeasible(&planned(&tight)).unwrap_err().to_string();
    let best = problem.split("the best that can be kept is mean_ttft_ms of ").nth(1).unwrap();
    let best: f64 = best.split(' ').next().unwrap().parse().unwrap();
    let is_planned = |ms: f64| planned(&file(|p| p["slo"] = json!({"mean_ttft_ms": ms}))).choice().is_some();
    assert!(is_planned(best) && !is_planned(best * 0.97), "{problem}");
}

#[test]
fn what_no_setup_can_be_is_said() {
    for (change, expected) in [
        (
            (|p| p["gpus"][0]["count"] = json!(9)) as fn(&mut Value),
            "no setup uses between 9 and 9 GPUs of compute: allow more",
        ),
        (|p| p["models"][0]["weights_gb"] = json!(68), "none of the"),
    ] {
        let mut plan = file(|_| ());
        change(&mut plan);
        if expected == "none of the" {
            plan["gpus"][0]["count"] = json!(1);
            plan["compute_min"] = json!(0);
        }
        let problem = super::plan(&problem(&plan), Vec::new()).unwrap_err().to_string();
        assert!(problem.starts_with(expected), "{problem}");
    }
}

/// Where setups are so many that bounds leave some out, the best are found all the same.
#[test]
fn leaving_setups_out_does_not_change_the_best() {
    let many = file(|p| {
        p["compute_min"] = json!(0);
        p["replicas"] = json!([0, 1, 2]);
        p["demand"] = json!(20);
        p["goal"] = json!("score_per_usd");
    });
    let problem = problem(&many);
    let planner = Planner::new(&problem);
    let placed = placed(&problem, &possible(&problem), place);
    let best = |all_max: usize| {
        let solved = solve_all(&planner, &problem, &placed, all_max);
        let worth = |solved: &Solved| match solved {
            Solved::Plan(plan) => planner.worth(plan.score, plan.usd_per_hour),
            Solved::Infeasible | Solved::LeftOut => f64::NEG_INFINITY,
        };
        let left_out = solved.iter().filter(|solved| matches!(solved, Solved::LeftOut)).count();
        (solved.iter().map(worth).fold(f64::NEG_INFINITY, f64::max), left_out)
    };
    let ((all, none), (some, left_out)) = (best(usize::MAX), best(0));
    assert!(
        (all - some).abs() <= COARSE_GAP && none == 0 && left_out > 0,
        "{all} {some} {left_out} of {}",
        placed.len()
    );
}
