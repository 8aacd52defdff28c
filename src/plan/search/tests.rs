use super::*;
use crate::placement::place;
use crate::problem::{Beyond, Level};
use crate::profile::{Point, Times};
use crate::scores::Scores;
use crate::setup::Setups;
use crate::setup::tests::{THREE, problem};
use routebalance_core::random::Random;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

pub(crate) const TTFT: Limit = Limit { metric: Metric::Ttft, statistic: Statistic::Mean, milliseconds: 300.0 };
const P95: Limit = Limit { metric: Metric::Ttft, statistic: Statistic::Quantile(0.95), milliseconds: 700.0 };

/// Three models on two GPUs whose times follow a queue's.
pub(crate) fn small(limits: &[Limit], rate: f64, interference: Option<f64>) -> Problem {
    let mut problem = problem(&THREE, 2);
    problem.space.tensor_parallel = vec![1, 2];
    problem.space.shares_percent = vec![20, 40, 60, 80, 100];
    problem.space.compute_min = 0.8;
    problem.space.interference = interference;
    problem.limits = limits.to_vec();
    problem.levels = vec![Level { rate, weight: 1.0 }];
    for (model, size) in [7.0, 13.0, 34.0].into_iter().enumerate() {
        for tensor_parallel in [1, 2] {
            for share_percent in [20, 40, 60, 80, 100] {
                let power = f64::from(tensor_parallel).powf(0.8) * f64::from(share_percent) / 100.0;
                let point = |u: f64| {
                    let ms = 4.0 * size / power * (1.0 + 0.5 * u / (1.1 - u));
                    let times = Times { mean_ms: ms, quantiles_ms: Some([0.8, 1.2, 2.0, 2.6, 4.0].map(|q| q * ms)) };
                    Point { rate: u * 200.0 / size * power, busy: u, ttft: times, tpot: times, e2e: times }
                };
                let points = [0.05, 0.2, 0.4, 0.6, 0.75, 0.85, 0.95].map(point).to_vec();
                problem.profiles.push(Profile {
                    model,
                    kind: 0,
                    tensor_parallel,
                    share_percent,
                    fixed_ms: 0.0,
                    points,
                });
            }
        }
    }
    let mut random = Random::new(9);
    let mut row = || {
        let base = random.uniform();
        (0..3).map(|m| 0.5 * base + 0.1 * m as f64 + 0.2 * random.uniform()).collect::<Vec<f64>>()
    };
    let rows: Vec<Vec<f64>> = (0..600).map(|_| row()).collect();
    problem.scores = Scores::new(3, rows.concat()).unwrap();
    problem
}

fn placed(problem: &Problem) -> Vec<(Setup, Placement)> {
    Setups::new(problem).filter_map(|setup| Some((setup.clone(), place(problem, &setup)?))).collect()
}

#[test]
fn plans_keep_their_limits_and_bounds_hold() {
    for (limits, interference) in
        [(&[TTFT][..], None), (&[TTFT][..], Some(0.3)), (&[P95][..], None), (&[TTFT, P95][..], Some(0.3))]
    {
        let problem = small(limits, 22.0, interference);
        let planner = Planner::new(&problem);
        let mut worker = planner.worker();
        let (mut plans, mut without) = (0, 0);
        for (setup, placement) in placed(&problem) {
            let bound = worker.bound(&setup);
            let Some(plan) = worker.solve(&setup, &placement, 1e-5) else {
                without += 1;
                continue;
            };
            plans += 1;
            assert!(plan.score <= bound + 1e-9, "{setup:?}: {} {bound}", plan.score);
            assert!(plan.score_bound - plan.score <= 1e-5 + 1e-12, "{plan:?}");
            let routing = &plan.routings[0];
            for (ms, limit) in routing.limits_ms.iter().zip(limits) {
                assert!(*ms <= limit.milliseconds * 1.002, "{setup:?}: {ms} of {limit:?}");
            }
            // The prices send what the plan says, up to prompts that are as well off elsewhere.
            let sent = problem.scores.assign(&worker.exact_prices(routing));
            for (sent, fraction) in sent.shares.iter().zip(&routing.fractions) {
                assert!((sent - fraction).abs() < 5e-3, "{setup:?}: {sent} {fraction}");
            }
            if interference.is_none() {
                assert_eq!(routing.slow_down, [1.0; 3]);
            }
        }
        assert!(plans > 10 && without > 0, "{limits:?}: {plans} {without}");
    }
}

#[test]
fn interference_costs_score() {
    let best = |interference| {
        let problem = small(&[TTFT], 30.0, interference);
        let planner = Planner::new(&problem);
        let mut worker = planner.worker();
        let placed = placed(&problem);
        let plans = placed.iter().filter_map(|(s, p)| worker.solve(s, p, 1e-5));
        plans.map(|p| p.score).fold(f64::NEG_INFINITY, f64::max)
    };
    let (without, little, much) = (best(None), best(Some(0.1)), best(Some(1.0)));
    assert!(without > little && little > much, "{without} {little} {much}");
}

/// A bound that is at most what a plan must beat saves solving it, and nothing that would beat it is lost.
#[test]
fn what_cannot_win_is_left_out() {
    let problem = small(&[TTFT], 30.0, None);
    let planner = Planner::new(&problem);
    let placed = placed(&problem);
    let all: Vec<f64> = {
        let mut worker = planner.worker();
        placed.iter().filter_map(|(s, p)| Some(worker.solve(s, p, 1e-6)?.score)).collect()
    };
    let best = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut worker = planner.worker();
    let (mut found, mut skipped) = (f64::NEG_INFINITY, 0);
    for (setup, placement) in &placed {
        if worker.bound(setup) <= found {
            skipped += 1;
        } else if let Some(plan) = worker.solve(setup, placement, 1e-6) {
            found = found.max(plan.score);
        }
    }
    assert!((found - best).abs() < 2e-6 && skipped > 0, "{found} {best} {skipped}");
}

#[test]
fn levels_share_a_setup_and_have_prices_of_their_own() {
    let mut problem = small(&[TTFT], 8.0, None);
    problem.levels = vec![Level { rate: 4.0, weight: 0.5 }, Level { rate: 16.0, weight: 0.5 }];
    let planner = Planner::new(&problem);
    let mut worker = planner.worker();
    let plans = placed(&problem).iter().filter_map(|(s, p)| worker.solve(s, p, 1e-5)).collect::<Vec<_>>();
    let best = plans.iter().max_by(|a, b| a.score.total_cmp(&b.score)).unwrap();
    let [low, high] = &best.routings[..] else { panic!() };
    assert!(low.score >= high.score && (best.score - 0.5 * (low.score + high.score)).abs() < 1e-12);
    assert!(low.prices[2] < high.prices[2], "{:?} {:?}", low.prices, high.prices);
    assert!(low.fractions[2] > high.fractions[2]);
}

#[test]
fn goals_order_plans() {
    let mut problem = small(&[TTFT], 14.0, None);
    let best = |problem: &Problem, plans: &[(f64, f64)]| {
        let planner = Planner::new(problem);
        let worth = |i: &usize| planner.worth(plans[*i].0, plans[*i].1);
        (0..plans.len()).max_by(|a, b| worth(a).total_cmp(&worth(b))).unwrap()
    };
    let plans = [(0.70, 10.0), (0.60, 4.0), (0.50, 3.5), (0.62, 4.0)];
    problem.beyond = Beyond::Never;
    for (goal, expected) in [(Goal::Score, 0), (Goal::ScorePerUsd, 3), (Goal::Usd, 3)] {
        problem.goal = goal;
        problem.score_min = 0.55;
        assert_eq!(best(&problem, &plans), expected, "{goal:?}");
    }
}
