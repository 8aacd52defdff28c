#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::setup::Setups;
use crate::setup::tests::{THREE, choice, problem};

fn closest(baseline: Baseline, problem: &Problem) -> (Setup, f64) {
    let setups: Vec<Setup> = Setups::new(problem).collect();
    let first = baseline.ranked(problem, &setups)[0];
    (setups[first.index].clone(), first.distance)
}

fn setup(choices: &[(u32, u32)]) -> Setup {
    Setup(choices.iter().map(|(tp, share)| choice(0, *tp, *share, 1)).collect())
}

#[test]
fn the_closest_setup_by_hand() {
    let problem = problem(&THREE, 4);
    // 4/3 each: 1.4 is 2 * 70 %, 1.2 is 2 * 60 %.
    let (equal, distance) = closest(Baseline::EqualSplit, &problem);
    assert_eq!(equal, setup(&[(2, 60), (2, 70), (2, 70)]));
    assert!((distance - (0.4 / 3.0_f64).hypot(0.2 / 3.0).hypot(0.2 / 3.0)).abs() < 1e-6, "{distance}");
    // 56/108 = .519, 104/108 = .963, 272/108 = 2.519 GPUs.
    assert_eq!(closest(Baseline::SizeProportional, &problem).0, setup(&[(1, 60), (1, 100), (4, 60)]));
    assert_eq!(closest(Baseline::Isolated, &problem).0, setup(&[(1, 100), (1, 100), (2, 100)]));
}

#[test]
fn rankings_are_whole_and_in_order() {
    let mut problem = problem(&THREE, 4);
    problem.space.compute_min = 0.8;
    let setups: Vec<Setup> = Setups::new(&problem).collect();
    for baseline in Baseline::ALL {
        let ranked = baseline.ranked(&problem, &setups);
        assert!(ranked.is_sorted_by(|a, b| a.distance <= b.distance), "{}", baseline.name());
        let total: f64 = baseline.targets(&problem).iter().sum();
        assert!((total - 4.0).abs() < 1e-12, "{}: {total}", baseline.name());
        let all = ranked.len() == setups.len();
        assert_eq!(all, baseline != Baseline::Isolated, "{}", baseline.name());
        for ranked in ranked.iter().filter(|_| baseline == Baseline::Isolated) {
            assert!(isolated(&problem, &setups[ranked.index]).is_some());
        }
    }
    let tie = [
        setup(&[(2, 50), (2, 50), (2, 100)]),
        setup(&[(1, 100), (2, 50), (2, 100)]),
        setup(&[(2, 50), (1, 100), (2, 100)]),
    ];
    let order: Vec<usize> = Baseline::EqualSplit.ranked(&problem, &tie).iter().map(|ranked| ranked.index).collect();
    assert_eq!(order, [1, 2, 0], "fewer shards, then the order given");
    problem.models.iter_mut().for_each(|model| model.weights_gb = 80.0);
    problem.space.tensor_parallel = vec![1];
    problem.space.compute_min = 0.1;
    let setups: Vec<Setup> = Setups::new(&problem).collect();
    assert!(!setups.is_empty() && Baseline::Isolated.ranked(&problem, &setups).is_empty(), "too large for a GPU");
}
