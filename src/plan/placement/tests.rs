#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::problem::Goal;
use crate::setup::Choice;
use crate::setup::tests::{THREE, choice, kind, problem};
use routebalance_core::random::Random;

fn setup(choices: &[(u32, u32)]) -> Setup {
    Setup(choices.iter().map(|(tp, share)| choice(0, *tp, *share, 1)).collect())
}

#[test]
fn few_of_the_papers_setups_have_caps_that_fit() {
    for (gpus, counts) in
        [(4, Counts { enumerated: 669, memory: 529, caps: 93 }), (8, Counts { enumerated: 141, memory: 141, caps: 30 })]
    {
        assert_eq!(count(&problem(&THREE, gpus)), counts, "{gpus} GPUs");
    }
}

#[test]
fn first_fit_decreasing_by_hand() {
    let problem = problem(&[68.0, 26.0, 14.0], 4);
    let placement = first_fit_decreasing(&problem, &setup(&[(1, 100), (2, 100), (4, 100)]));
    assert_eq!(placement, None, "78.8 GB on the first GPU leave no room for 7.85");
    let placement = first_fit_decreasing(&problem, &setup(&[(1, 100), (2, 100), (2, 100)])).unwrap();
    assert_eq!(placement.gpus, [vec![vec![0]], vec![vec![1, 2]], vec![vec![1, 2]]]);
    let placement = first_fit_decreasing(&problem, &setup(&[(2, 10), (1, 10), (2, 10)])).unwrap();
    assert_eq!(placement.gpus, [vec![vec![0, 1]], vec![vec![0]], vec![vec![1, 2]]]);
}

/// Panics unless the placement is one of the setup, within memory, kinds and, where asked, caps.
fn assert_valid(problem: &Problem, setup: &Setup, placement: &Placement, caps: bool, name: &str) {
    let kinds: Vec<usize> = problem.kinds.iter().enumerate().flat_map(|(k, kind)| vec![k; kind.count]).collect();
    let (mut gb, mut cap) = (vec![0.0; kinds.len()], vec![0; kinds.len()]);
    assert_eq!(placement.gpus.len(), setup.0.len(), "{name}");
    for (m, choice) in setup.0.iter().enumerate() {
        assert_eq!(placement.gpus[m].len(), choice.replicas as usize, "{name}");
        for gpus in &placement.gpus[m] {
            assert_eq!(gpus.len(), choice.tensor_parallel as usize, "{name}");
            for (at, gpu) in gpus.iter().enumerate() {
                assert_eq!(kinds[*gpu], choice.kind, "{name}");
                assert!(!gpus[..at].contains(gpu), "{name}: two shards of a copy on GPU {gpu}");
                gb[*gpu] += problem.memory.shard_gb(&problem.models[m], choice.tensor_parallel);
                cap[*gpu] += choice.share_percent;
            }
        }
    }
    for (gpu, kind) in kinds.iter().enumerate() {
        assert!(gb[gpu] <= problem.kinds[*kind].memory_gb + 1e-6, "{name}: {gb:?}");
        assert!(!caps || cap[gpu] <= 100, "{name}: {cap:?}");
    }
}

/// GPUs in use, and the largest sum of caps of one shard's company.
fn gpus_and_company(problem: &Problem, setup: &Setup, placement: &Placement) -> (usize, u32) {
    let used = placement.used(problem);
    let caps_on = |gpu: usize| {
        let shards = placement
            .gpus
            .iter()
            .zip(&setup.0)
            .flat_map(|(copies, choice)| copies.iter().flatten().map(move |g| (*g, choice)));
        shards.filter(|(g, _)| *g == gpu).map(|(_, choice)| choice.share_percent).collect::<Vec<u32>>()
    };
    let company = |caps: Vec<u32>| caps.iter().sum::<u32>() - caps.iter().min().unwrap();
    let companies = (0..used.len()).filter(|gpu| used[*gpu]).map(|gpu| company(caps_on(gpu)));
    (used.iter().filter(|used| **used).count(), companies.max().unwrap_or(0))
}

/// Every placement that there is on GPUs of one kind, found without any shortcut.
fn all_placements(problem: &Problem, setup: &Setup) -> Vec<Placement> {
    let mut all = vec![empty(setup)];
    for (m, choice) in setup.0.iter().enumerate() {
        let sets = (0..1_u32 << problem.kinds[0].count).filter(|set| set.count_ones() == choice.tensor_parallel);
        let sets: Vec<Vec<usize>> = sets.map(|set| (0..32).filter(|gpu| set >> gpu & 1 == 1).collect()).collect();
        for copy in 0..choice.replicas as usize {
            let put = |placement: Placement| {
                sets.iter().map(move |set| {
                    let mut placement = placement.clone();
                    placement.gpus[m][copy] = set.clone();
                    placement
                })
            };
            all = all.into_iter().flat_map(put).collect();
        }
    }
    all
}

#[test]
fn the_best_placement_is_found_if_there_is_one() {
    let mut random = Random::new(7);
    let mut found = 0;
    for case in 0..400 {
        let weights: Vec<f64> = (0..2 + random.below(2)).map(|_| 10.0 + 60.0 * random.uniform()).collect();
        let mut problem = problem(&weights, 1 + random.below(4));
        problem.goal = [Goal::Score, Goal::Usd][case % 2];
        problem.space.oversubscribe = case % 3 == 0;
        let mut any =
            || choice(0, [1, 1, 2, 4][random.below(4)], 10 * (1 + random.below(10) as u32), 1 + random.below(2) as u32);
        let setup = Setup(weights.iter().map(|_| any()).collect());
        let fits = |placement: &Placement| {
            let gpus = 0..problem.kinds[0].count;
            gpus.into_iter().all(|gpu| {
                let mut shards = vec![];
                for (m, copies) in placement.gpus.iter().enumerate() {
                    let here = copies.iter().flatten().filter(|g| **g == gpu).count();
                    shards.extend(vec![m; here]);
                }
                let gb: f64 = shards
                    .iter()
                    .map(|m| problem.memory.shard_gb(&problem.models[*m], setup.0[*m].tensor_parallel))
                    .sum();
                let caps: u32 = shards.iter().map(|m| setup.0[*m].share_percent).sum();
                gb <= 80.0 && (problem.space.oversubscribe || caps <= 100)
            })
        };
        let cost = |placement: &Placement| {
            let (gpus, company) = gpus_and_company(&problem, &setup, placement);
            if problem.goal == Goal::Score { (company as usize, gpus) } else { (gpus, company as usize) }
        };
        let best = all_placements(&problem, &setup).iter().filter(|placement| fits(placement)).map(cost).min();
        let placement = place(&problem, &setup);
        assert_eq!(
            placement.as_ref().map(cost),
            best,
            "case {case}: {setup:?} on {} GPUs: {placement:?}",
            problem.kinds[0].count
        );
        if let Some(placement) = placement {
            assert_valid(&problem, &setup, &placement, !problem.space.oversubscribe, &format!("case {case}"));
            found += 1;
        }
    }
    assert!((60..200).contains(&found), "{found}");
}

#[test]
fn large_setups_have_valid_placements() {
    let mut random = Random::new(9);
    let mut found = 0;
    for case in 0..40 {
        let mut problem = problem(&[14.0, 26.0, 68.0, 30.0], 10);
        problem.kinds.push(kind(6, 40.0, 1.0));
        problem.space.oversubscribe = case % 4 == 0;
        let mut any = || {
            choice(
                random.below(2),
                [1, 2, 4][random.below(3)],
                10 * (1 + random.below(4) as u32),
                random.below(5) as u32,
            )
        };
        let setup = Setup((0..4).map(|_| any()).map(|c| if c.replicas == 0 { Choice::NONE } else { c }).collect());
        if let Some(placement) = first_fit_decreasing(&problem, &setup) {
            assert_valid(&problem, &setup, &placement, false, &format!("case {case}, first fit"));
        }
        if let Some(placement) = place(&problem, &setup) {
            assert_valid(&problem, &setup, &placement, !problem.space.oversubscribe, &format!("case {case}"));
            found += 1;
        }
        if let Some(placement) = isolated(&problem, &setup) {
            assert_valid(&problem, &setup, &placement, true, &format!("case {case}, isolated"));
            assert_eq!(gpus_and_company(&problem, &setup, &placement).1, 0, "case {case}");
        }
    }
    assert!(found > 10, "{found}");
}

#[test]
fn what_does_not_fit_has_no_placement() {
    let two_kinds = || {
        let mut problem = problem(&[68.0, 14.0], 1);
        problem.kinds.push(kind(1, 24.0, 1.0));
        problem
    };
    let choices = |a: Choice, b: Choice| Setup(vec![a, b]);
    for (name, setup, first_fit, caps) in [
        ("a GPU each", choices(choice(0, 1, 100, 1), choice(1, 1, 100, 1)), true, true),
        ("the small one has no room", choices(choice(1, 1, 100, 1), choice(0, 1, 100, 1)), false, false),
        ("both on one", choices(choice(0, 1, 50, 1), choice(0, 1, 50, 1)), false, false),
        ("two shards on one GPU", choices(Choice::NONE, choice(0, 2, 10, 1)), false, false),
        ("two copies on one GPU", choices(Choice::NONE, choice(0, 1, 50, 2)), true, true),
        ("whose caps are too much", choices(Choice::NONE, choice(0, 1, 60, 2)), true, false),
        ("one cap is too much", choices(Choice::NONE, choice(0, 1, 101, 1)), true, false),
        ("no such kind", choices(Choice::NONE, choice(2, 1, 100, 1)), false, false),
        ("nothing", choices(Choice::NONE, Choice::NONE), true, true),
    ] {
        let problem = two_kinds();
        assert_eq!(first_fit_decreasing(&problem, &setup).is_some(), first_fit, "{name}");
        assert_eq!(place(&problem, &setup).is_some(), caps, "{name}");
    }
}
