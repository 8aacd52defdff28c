use std::path::Path;

use serde_json::json;

use super::checked::AtDemand;
use super::panels::{LIGHT, PUBLISHED, Panel, SETTINGS, Setting, Spread, TIGHT, problem};
use super::*;
use crate::planning::check::Checked;
use crate::planning::planned::Planned;
use crate::planning::planned::tests::sample;
use routebalance_plan::baselines::Baseline;
use routebalance_plan::problem::{Metric, Problem, Statistic};
use routebalance_plan::solution::Plan;

#[test]
fn panels_are_those_of_the_paper_and_settings_change_all_alike() {
    let numbers = |setting: &Setting| PANELS.map(|panel| setting.panel(&panel)).map(|p| (p.gpus, p.rate, p.slo_ms));
    let four = |setting: &Setting| numbers(setting)[..4].to_vec();
    assert_eq!(four(&PUBLISHED), [(4, 50.0, 800.0), (4, 60.0, 500.0), (4, 70.0, 500.0), (4, 80.0, 500.0)]);
    assert_eq!(numbers(&PUBLISHED)[4..], [(8, 50.0, 400.0), (8, 60.0, 500.0), (8, 70.0, 400.0), (8, 80.0, 500.0)]);
    assert_eq!(four(&TIGHT), [(4, 50.0, 160.0), (4, 60.0, 100.0), (4, 70.0, 100.0), (4, 80.0, 100.0)]);
    assert_eq!(four(&LIGHT), [(4, 42.5, 800.0), (4, 51.0, 500.0), (4, 59.5, 500.0), (4, 68.0, 500.0)]);
}

#[test]
fn a_panel_changes_what_it_says_and_a_reading_what_it_means() {
    let base = Problem { score_min: 0.4, ..sample().problem };
    let panel = Panel { gpus: 8, rate: 70.0, slo_ms: 400.0 };
    for (reading, oversubscribe, interference) in [(Reading::Paper, true, None), (Reading::Ours, false, Some(0.2))] {
        let of_panel = problem(&base, &panel, reading);
        assert_eq!((of_panel.space.oversubscribe, of_panel.space.interference), (oversubscribe, interference));
        assert_eq!((of_panel.kinds[0].count, of_panel.levels.len(), of_panel.levels[0].rate), (8, 1, 70.0));
        let [limit] = of_panel.limits[..] else { panic!("{:?}", of_panel.limits) };
        assert_eq!((limit.metric, limit.statistic, limit.milliseconds), (Metric::Ttft, Statistic::Mean, 400.0));
        assert_eq!((of_panel.score_min, &of_panel.scores), (0.0, &base.scores));
    }
}

#[test]
fn the_spread_is_from_worst_to_best() {
    let spread = |scores: &[f64]| Spread::from_scores(scores.iter().copied());
    assert_eq!(spread(&[]), None);
    let paper = spread(&[0.4, 0.3, 0.56, 0.5]).unwrap();
    assert_eq!((paper.worst, paper.best), (0.3, 0.56));
    assert_eq!(format!("{:.2}", paper.relative()), "0.87", "up to 87 %");
    assert_eq!(spread(&[0.5]).unwrap().relative(), 0.0);
    assert_eq!(spread(&[0.0, 0.5]).unwrap().relative(), 0.0, "no part of nothing");
}

fn solved(planned: Planned) -> Solved {
    Solved { setting: PUBLISHED, panel: PANELS[0], reading: Reading::Ours, planned }
}

#[test]
fn a_panel_says_what_rules_lose_and_whether_its_limit_matters() {
    let some = solved(sample());
    let (score, gain) = some.rule(Baseline::EqualSplit).unwrap();
    assert!(score == 0.55 && (gain - 0.05).abs() < 1e-12, "{score} {gain}");
    assert_eq!(some.rule(Baseline::Isolated), None, "no setup of it keeps the limit");
    assert_eq!(some.remark(), None, "5 of 8 setups do not, and .75 would be the best without a limit");
    let remark = |placed: usize, best: f64| {
        let mut planned = Planned { placed, ..sample() };
        planned.plans[0].score = best;
        solved(planned).remark()
    };
    assert_eq!(remark(3, 0.6), Some("all setups keep the limit"));
    assert_eq!(remark(8, 0.75), Some("the best loses nothing by the limit"));
    assert_eq!(remark(3, 0.75), Some("all setups keep the limit, and the best loses nothing by it"));
    let none = solved(Planned { plans: Vec::new(), ..sample() });
    assert_eq!((none.remark(), none.spread()), (Some("no setup keeps the limit"), None));
    let json = some.to_json();
    assert_eq!((&json["worst"], &json["best"], &json["feasible"]), (&json!(0.4), &json!(0.6), &json!(3)));
    assert_eq!(json["points_ms_score"][0], json!([480.0, 0.6]));
    assert!((json["spread"].as_f64().unwrap() - 0.5).abs() < 1e-12);
}

fn check(keeps: [(bool, f64, f64); 4]) -> Check {
    let ran = |ttft_mean_ms: f64| Checked { ttft_mean_ms, requests: 10, score: 0.5, ..Checked::default() };
    let demand = |(part, (can_keep, fixed, online)): (f64, (bool, f64, f64))| AtDemand {
        part,
        can_keep,
        predicted_ms: Some(98.0),
        predicted_score: Some(0.6),
        static_prices: ran(fixed),
        online_prices: ran(online),
    };
    let demands = [0.5, 0.75, 1.0, 1.2].into_iter().zip(keeps).map(demand).collect();
    Check { setting: "tight", gpus: 4, requests_per_second: 60.0, slo_ms: 100.0, keeps_when_refined: true, demands }
}

#[test]
fn checks_count_what_is_kept_of_what_can_be() {
    let checks = [
        check([(true, 60.0, 60.0), (true, 80.0, 70.0), (true, 100.0, 90.0), (false, 150.0, 120.0)]),
        check([(true, 60.0, 60.0), (true, 80.0, 70.0), (true, 109.0, 90.0), (true, 130.0, 101.0)]),
    ];
    assert!((checks[0].off().unwrap() + 0.02).abs() < 1e-9, "98 predicted, 100 happened");
    let lost = Checked { failed: 1, ttft_mean_ms: 10.0, ..Checked::default() };
    assert!(checks[0].keeps(&checks[0].demands[0].static_prices) && !checks[0].keeps(&lost));
    let studies = Studies {
        models: vec!["small".to_owned(), "large".to_owned()],
        solved: SETTINGS.map(|setting| Solved { setting, ..solved(sample()) }).into(),
        published: Published { gpus: 4, requests_per_second: 60.0, slo_ms: 40.0, setups: Vec::new() },
        checks: checks.into(),
        comparison: Vec::new(),
        seconds: 1.0,
    };
    let text = studies.text();
    for words in [
        "with static prices, which never change, for 1 of 2 plans, and off by 10.1 % at most",
        "for 0 of 0 plans",
        "Of the 7 cases",
        "kept in 5 with static prices, and in 6 with online",
        "In the 1 others, where no routing of the setup is known to keep it, the mean is lower with online prices in 1.",
        "setups differ by up to 50.0 % (0.4000 to 0.6000",
        "0.0500 over equal-split",
        "over isolated (without a setup at 1 of 1)",
        "1.300 late",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let html: String = studies.parts().into_iter().map(|part| part.content.into_string()).collect();
    assert_eq!(
        html.matches("<svg").count(),
        2 + 2 + 1,
        "two settings with all setups, two kinds of prices, and the rivals"
    );
    assert!(html.contains("its limits times 0.2") && html.contains("1.300 late"));
    let json = studies.to_json();
    assert_eq!(json["checks"][1]["demands"][3]["online_prices"]["ttft_mean_ms"], 101.0);
    assert_eq!(json["panels"].as_array().unwrap().len(), 3);
}

/// Two models on two kinds of profiles, so that panels differ; the smaller cannot be as good.
fn tiny() -> Problem {
    use routebalance_plan::profile::{Point, Profile, Times};
    let mut problem = sample().problem;
    for (model, most) in [(0, 60.0), (1, 25.0)] {
        for tensor_parallel in [1, 2] {
            for share_percent in [50, 100] {
                let most = most * f64::from(tensor_parallel * share_percent) / 100.0;
                let point = |part: f64| {
                    let time = |ms: f64| Times { mean_ms: ms, quantiles_ms: None };
                    let (ttft, tpot, e2e) = (time(60.0 + 20.0 / (1.0 - part)), time(10.0), time(900.0));
                    Point { rate: part * most, busy: part, ttft, tpot, e2e }
                };
                let points = [0.1, 0.5, 0.8, 0.95].map(point).to_vec();
                problem.profiles.push(Profile {
                    model,
                    kind: 0,
                    tensor_parallel,
                    share_percent,
                    fixed_ms: 1.0,
                    points,
                });
            }
        }
    }
    problem.space.compute_min = 0.4;
    problem
}

#[test]
fn a_tiny_plan_is_studied_at_all_panels() {
    let solved = panels::solve(&tiny()).unwrap();
    assert_eq!(solved.len(), SETTINGS.len() * PANELS.len() * 2);
    for pair in solved.chunks(2) {
        let [paper, ours] = pair else { panic!() };
        assert_eq!((paper.reading, ours.reading, paper.panel), (Reading::Paper, Reading::Ours, ours.panel));
        let best = |s: &Solved| s.planned.choice().map_or(0.0, |plan: &Plan| plan.score_bound);
        assert!(best(paper) + 1e-9 >= best(ours) - 1e-4, "the paper's reading allows all that ours does");
        assert!(paper.planned.placed >= ours.planned.placed && paper.planned.enumerated == ours.planned.enumerated);
    }
    let feasible = |setting: &Setting| -> usize {
        solved.iter().filter(|s| s.setting == *setting).map(|s| s.planned.plans.len()).sum()
    };
    assert!(feasible(&PUBLISHED) < feasible(&LIGHT) && feasible(&PUBLISHED) > feasible(&TIGHT));
    let published = published::compare(&solved).unwrap();
    assert!(!published.setups.is_empty());
    for compared in &published.setups {
        assert!(compared.score <= compared.score_bound + 1e-9, "{compared:?}");
        assert!(compared.published_score.is_none_or(|score| score <= compared.score_bound + 1e-5), "{compared:?}");
    }
}

#[test]
fn what_is_missing_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let plan = json!({
        "gpus": [{"kind": "A", "count": 1, "memory_gb": 80, "usd_per_hour": 1}, {"kind": "B", "count": 1, "memory_gb": 80, "usd_per_hour": 1}],
        "models": [{"name": "small", "weights_gb": 14}],
        "profiles": [], "scores": {"file": "scores.jsonl"}, "demand": 34, "slo": {"mean_ttft_ms": 200},
    });
    let file = folder.path().join("plan.json");
    std::fs::write(&file, plan.to_string()).unwrap();
    let said = format!("{:#}", run(&file, 1).unwrap_err());
    assert!(said.starts_with("the studies are of one GPU kind: "), "{said}");
    assert!(format!("{:#}", run(Path::new("/nowhere.json"), 1).unwrap_err()).contains("/nowhere.json cannot be read"));
}
