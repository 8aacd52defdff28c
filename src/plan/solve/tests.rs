use super::*;
use crate::curve::Served;
use crate::problem::{Beyond, Limit, Metric, Statistic};
use crate::profile::{Point, Profile, Times};
use routebalance_core::random::Random;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const TTFT: Limit = Limit { metric: Metric::Ttft, statistic: Statistic::Mean, milliseconds: 100.0 };
const P95: Limit = Limit { metric: Metric::Ttft, statistic: Statistic::Quantile(0.95), milliseconds: 300.0 };

fn scores(random: &mut Random, prompts: usize, models: usize) -> Scores {
    // Coarse scores make ties.
    let row = |random: &mut Random| {
        let base = random.uniform();
        (0..models).map(|m| (10.0 * (0.6 * base + 0.1 * m as f64 + 0.2 * random.uniform())).round() / 10.0).collect()
    };
    let rows: Vec<Vec<f64>> = (0..prompts).map(|_| row(random)).collect();
    Scores::new(models, rows.concat()).unwrap()
}

/// Latency that rises with the rate, by jumps of any size: neither convex nor concave.
fn profile(random: &mut Random, model: usize) -> Profile {
    let (mut rate, mut ms) = (0.0, 20.0 + 60.0 * random.uniform());
    let mut points = Vec::new();
    for _ in 0..5 {
        rate += 1.0 + 5.0 * random.uniform();
        ms *= 1.0 + random.uniform().powi(3) * 2.0;
        let quantiles = [0.7, 1.3, 2.2, 3.0, 4.5].map(|q| q * ms);
        let times = Times { mean_ms: ms, quantiles_ms: Some(quantiles) };
        points.push(Point { rate, busy: 0.5, ttft: times, tpot: times, e2e: times });
    }
    Profile { model, kind: 0, tensor_parallel: 1, share_percent: 100, fixed_ms: 0.0, points }
}

fn terms(random: &mut Random, models: usize, limits: &[Limit], beyond: Beyond) -> Vec<Term> {
    let term = |model: usize| {
        let served = Served { profile: &profile(random, model), replicas: 1, slow_down: 1.0, rate: 12.0 };
        Term::new(&served, limits, beyond)
    };
    (0..models).map(term).collect()
}

/// The best score over all ways to give every prompt a model whose shares keep the limits.
fn brute_force(scores: &Scores, terms: &[Term], limits: usize) -> Option<f64> {
    let models = scores.models();
    let rows: Vec<&[f64]> = scores.rows().collect();
    let mut best: Option<f64> = None;
    for code in 0..models.pow(rows.len() as u32) {
        let (mut rest, mut total, mut counts) = (code, 0.0, vec![0.0; models]);
        for row in &rows {
            let model = rest % models;
            rest /= models;
            total += row[model];
            counts[model] += 1.0;
        }
        let prompts = rows.len() as f64;
        let shares: Vec<f64> = counts.iter().map(|c| c / prompts).collect();
        if holds(terms, limits, &shares) {
            best = Some(best.map_or(total / prompts, |b| b.max(total / prompts)));
        }
    }
    best
}

#[test]
fn a_routing_keeps_the_limits_has_its_score_and_no_other_is_better() {
    let mut random = Random::new(3);
    let (mut feasible, mut infeasible) = (0, 0);
    for case in 0..120 {
        let models = 2 + random.below(2);
        let prompts = if models == 2 { 8 } else { 6 };
        let scores = scores(&mut random, prompts, models);
        let limits: &[Limit] = [&[TTFT][..], &[P95][..], &[TTFT, P95][..], &[]][case % 4];
        let beyond = if case % 3 == 0 { Beyond::LastSlope } else { Beyond::Never };
        let terms = terms(&mut random, models, limits, beyond);
        let truth = brute_force(&scores, &terms, limits.len());
        let Some(solved) = Solver::new(&scores).solve(&terms, limits.len(), 1e-6) else {
            assert_eq!(truth, None, "case {case}");
            infeasible += 1;
            continue;
        };
        feasible += 1;
        let sum: f64 = solved.fractions.iter().sum();
        assert!((sum - 1.0).abs() < 1e-9 && solved.fractions.iter().all(|f| *f >= -1e-12), "case {case}: {solved:?}");
        assert!(holds(&terms, limits.len(), &solved.fractions), "case {case}: {solved:?}");
        let reached = crate::prices::best_score(&scores, &solved.fractions);
        assert!((solved.score - reached).abs() < 2e-5, "case {case}: {} is really {reached}", solved.score);
        assert!(solved.bound - solved.score <= 2e-6, "case {case}: {solved:?}");
        assert!(truth.is_none_or(|truth| truth <= solved.bound + 1e-9), "case {case}: {truth:?} {solved:?}");
    }
    assert!(feasible > 60 && infeasible > 5, "{feasible} {infeasible}");
}

/// At the optimum, what is not used up costs nothing, and the prices' own choice is within rounding of the shares.
#[test]
fn prices_and_shares_fit_each_other() {
    let mut random = Random::new(4);
    let mut compared = 0;
    for case in 0..20 {
        let models = 3 + case % 2;
        let row = |random: &mut Random| {
            let base = random.uniform();
            (0..models).map(|m| 0.6 * base + 0.1 * m as f64 + 0.2 * random.uniform()).collect::<Vec<f64>>()
        };
        let rows: Vec<Vec<f64>> = (0..1_000).map(|_| row(&mut random)).collect();
        let scores = Scores::new(models, rows.concat()).unwrap();
        let terms = terms(&mut random, models, &[TTFT], Beyond::LastSlope);
        let Some(solved) = Solver::new(&scores).solve(&terms, 1, 1e-6) else { continue };
        compared += 1;
        assert!(solved.bound - solved.score < 1e-6, "case {case}: {solved:?}");
        let mut used = 0.0;
        let mut of = Vec::new();
        for (term, share) in terms.iter().zip(&solved.fractions) {
            term.additions(*share, &mut of);
            used += of[0];
        }
        assert!(solved.multipliers[0] >= 0.0 && solved.prices.iter().all(|p| *p >= 0.0), "case {case}: {solved:?}");
        assert!(solved.multipliers[0] * (1.0 - used) < 1e-3, "case {case}: {used} {solved:?}");
        let chosen = scores.assign(&solved.prices);
        for (chosen, share) in chosen.shares.iter().zip(&solved.fractions) {
            assert!((chosen - share).abs() < 0.05, "case {case}: {chosen} {share}");
        }
    }
    assert!(compared >= 10, "{compared}");
}

/// What one setup has taught does not change what the next one's best routing is.
#[test]
fn setups_do_not_depend_on_those_before() {
    let mut random = Random::new(5);
    let scores = scores(&mut random, 400, 3);
    let mut used = Solver::new(&scores);
    for case in 0..60 {
        let limits: &[Limit] = if case % 2 == 0 { &[TTFT] } else { &[P95] };
        let terms = terms(&mut random, 3, limits, Beyond::Never);
        let solution = |solver: &mut Solver<'_>| solver.solve(&terms, 1, 1e-5).map(|s| (s.score, s.bound));
        let (again, alone) = (solution(&mut used), solution(&mut Solver::new(&scores)));
        match (again, alone) {
            (Some(a), Some(b)) => assert!(a.0 <= b.1 + 1e-9 && b.0 <= a.1 + 1e-9, "case {case}: {a:?} {b:?}"),
            (a, b) => assert_eq!(a, b, "case {case}"),
        }
    }
}

/// A routing that exceeds the limit by a hair gains much; the one that keeps it is found all the same.
#[test]
fn limits_hold_however_much_there_is_to_gain() {
    let flat = |model: usize, ms: f64| {
        let times = Times { mean_ms: ms, quantiles_ms: None };
        let point = |rate: f64| Point { rate, busy: 0.5, ttft: times, tpot: times, e2e: times };
        let profile = Profile {
            model,
            kind: 0,
            tensor_parallel: 1,
            share_percent: 100,
            fixed_ms: 0.0,
            points: vec![point(1.0), point(20.0)],
        };
        Term::new(&Served { profile: &profile, replicas: 1, slow_down: 1.0, rate: 10.0 }, &[TTFT], Beyond::Never)
    };
    let scores = Scores::new(2, [1.0, 0.0].repeat(60)).unwrap();
    let solved = Solver::new(&scores).solve(&[flat(0, 100.05), flat(1, 99.99)], 1, 1e-6).unwrap();
    assert!((solved.score - 1.0 / 6.0).abs() < 1e-3 && solved.bound - solved.score < 1e-3, "{solved:?}");
    assert_eq!(Solver::new(&scores).solve(&[flat(0, 100.05), flat(1, 100.01)], 1, 1e-6), None);
}
