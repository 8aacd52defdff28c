#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::problem::{Beyond, Goal, GpuKind, PlannedModel, ShardMemory, Space};
use crate::scores::Scores;
use routebalance_core::random::Random;

/// The problem of the paper's experiments: fp16 models of so many GB on so many GPUs of 80 GB, of which all compute is used.
pub(crate) fn problem(weights_gb: &[f64], gpus: usize) -> Problem {
    let model = |(m, weights_gb): (usize, &f64)| PlannedModel { name: format!("m{m}"), weights_gb: *weights_gb };
    Problem {
        models: weights_gb.iter().enumerate().map(model).collect(),
        kinds: vec![kind(gpus, 80.0, 2.0)],
        memory: ShardMemory { factor: 1.1, fixed_gb: 4.0 },
        space: Space {
            tensor_parallel: vec![1, 2, 4],
            shares_percent: (1..=10).map(|tenth| tenth * 10).collect(),
            replicas: vec![1],
            compute_min: 1.0,
            oversubscribe: false,
            interference: Some(0.3),
        },
        profiles: vec![],
        beyond: Beyond::Never,
        scores: Scores::new(weights_gb.len(), vec![0.5; weights_gb.len()]).unwrap(),
        levels: vec![],
        limits: vec![],
        goal: Goal::Score,
        score_min: 0.0,
    }
}

pub(crate) fn kind(count: usize, memory_gb: f64, usd_per_hour: f64) -> GpuKind {
    GpuKind { name: format!("{memory_gb} GB"), count, memory_gb, usd_per_hour }
}

/// Models of 7, 13 and 34 billion parameters in fp16.
pub(crate) const THREE: [f64; 3] = [14.0, 26.0, 68.0];

pub(crate) fn choice(kind: usize, tensor_parallel: u32, share_percent: u32, replicas: u32) -> Choice {
    Choice { kind, tensor_parallel, share_percent, replicas }
}

#[test]
fn the_papers_spaces_have_so_many_setups() {
    for (models, counts) in [
        (3, [150, 579, 743, 669, 576, 419, 177, 141]),
        (4, [434, 6_001, 13_340, 16_660, 17_328, 15_684, 11_604, 7_764]),
    ] {
        for (gpus, count) in (1..).zip(counts) {
            assert_eq!(Setups::new(&problem(&vec![14.0; models], gpus)).count(), count, "{models} models, {gpus} GPUs");
        }
    }
}

/// All setups of the product that lie in the window, by the definition.
fn brute_force(problem: &Problem) -> Vec<Setup> {
    let choices = choices(problem);
    let mut product = vec![vec![]];
    for _ in &problem.models {
        let longer = |begin: Vec<Choice>| choices.iter().map(move |c| [begin.clone(), vec![*c]].concat());
        product = product.into_iter().flat_map(longer).collect();
    }
    let compute = |setup: &[Choice], kind: usize| -> u32 {
        setup.iter().filter(|c| c.kind == kind).map(Choice::compute_percent).sum()
    };
    let gpus: usize = problem.kinds.iter().map(|kind| kind.count).sum();
    let in_window = |setup: &Vec<Choice>| {
        let total: u32 = setup.iter().map(Choice::compute_percent).sum();
        let rooms = problem.kinds.iter().enumerate().all(|(k, kind)| compute(setup, k) <= 100 * kind.count as u32);
        rooms && total > 0 && f64::from(total) + 1e-6 >= problem.space.compute_min * 100.0 * gpus as f64
    };
    product.into_iter().filter(in_window).map(Setup).collect()
}

#[test]
fn any_space_gives_its_product_within_the_window_in_order() {
    let mut random = Random::new(11);
    let mut some = |from: &[u32]| -> Vec<u32> { from.iter().copied().filter(|_| random.uniform() < 0.6).collect() };
    let mut found = 0;
    for case in 0..60_usize {
        let mut problem = problem(&[14.0, 26.0, 68.0][..1 + case % 3], 1 + case % 4);
        problem.space.tensor_parallel = some(&[1, 2, 4]);
        problem.space.shares_percent = some(&[100, 10, 30, 50]);
        problem.space.replicas = some(&[1, 0, 3]);
        problem.space.compute_min = [0.0, 0.3, 0.7, 1.0][case % 4];
        if case % 5 > 1 {
            problem.kinds.push(kind(case % 5, 40.0, 1.0));
        }
        let all: Vec<Setup> = Setups::new(&problem).collect();
        assert_eq!(all, brute_force(&problem), "case {case}");
        found += all.len();
    }
    assert!(found > 1_000, "{found}");
}

#[test]
fn rounding_of_the_least_compute_leaves_nothing_out() {
    // 0.7 * 3 * 100 is a little more than 210 in floating point.
    let mut problem = problem(&[14.0], 3);
    problem.space.compute_min = 0.7;
    problem.space.shares_percent = vec![35, 70];
    problem.space.tensor_parallel = vec![1, 3, 6];
    let setups: Vec<Setup> = Setups::new(&problem).collect();
    assert_eq!(setups, [Setup(vec![choice(0, 3, 70, 1)]), Setup(vec![choice(0, 6, 35, 1)])]);
}

#[test]
fn what_is_listed_twice_or_is_nothing_counts_once_or_not() {
    let mut problem = problem(&[14.0], 2);
    problem.space.replicas = vec![1, 0, 1];
    problem.space.tensor_parallel = vec![1, 0, 1];
    problem.space.shares_percent = vec![0, 100];
    problem.space.compute_min = 0.0;
    assert_eq!(choices(&problem), [Choice::NONE, choice(0, 1, 100, 1)]);
    assert_eq!(Setups::new(&problem).count(), 1, "a setup without any model is none");
    problem.models.clear();
    assert_eq!(Setups::new(&problem).count(), 0);
}

#[test]
fn callers_may_leave_choices_out() {
    let problem = problem(&[14.0, 14.0], 1);
    let lists = vec![vec![choice(0, 1, 50, 1), choice(0, 1, 20, 1)], vec![choice(0, 1, 80, 1), choice(0, 1, 90, 1)]];
    let setups: Vec<Setup> = Setups::among(&problem, lists).collect();
    assert_eq!(setups, [Setup(vec![choice(0, 1, 20, 1), choice(0, 1, 80, 1)])]);
}

#[test]
fn gpus_with_a_shard_cost_money() {
    let mut problem = problem(&[14.0, 14.0], 2);
    problem.kinds.push(kind(2, 40.0, 0.5));
    let placement = Placement { gpus: vec![vec![vec![0]], vec![vec![2], vec![2]]] };
    assert_eq!(placement.used(&problem), [true, false, true, false]);
    assert_eq!(placement.usd_per_hour(&problem), 2.5);
}
