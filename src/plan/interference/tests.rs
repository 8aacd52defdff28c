#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::setup::Choice;
use crate::setup::tests::{choice, problem};
use routebalance_core::random::Random;

fn interference(caps: &[u32], gpus: &[&[usize]], strength: f64) -> Interference {
    let mut problem = problem(&vec![14.0; caps.len()], 8);
    problem.space.interference = Some(strength);
    let setup = Setup(caps.iter().zip(gpus).map(|(cap, gpus)| choice(0, gpus.len() as u32, *cap, 1)).collect());
    let placement = Placement { gpus: gpus.iter().map(|gpus| vec![gpus.to_vec()]).collect() };
    Interference::new(&problem, &setup, &placement)
}

/// What it shows, caps, GPUs of each model's shards, strength, loads, slow-downs.
type Row<'a> = (&'a str, &'a [u32], &'a [&'a [usize]], f64, &'a [f64], &'a [f64]);

fn assert_close(slow_downs: &[f64], expected: &[f64], name: &str) {
    let close = slow_downs.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12);
    assert!(close && slow_downs.len() == expected.len(), "{name}: {slow_downs:?}, not {expected:?}");
}

#[test]
fn slow_downs_by_hand() {
    #[rustfmt::skip]
    let rows: [Row; 8] = [
        ("each on its own", &[100, 50], &[&[0], &[1]], 0.5, &[1.0, 1.0], &[1.0, 1.0]),
        ("the other's cap counts", &[40, 60], &[&[0], &[0]], 0.5, &[1.0, 1.0], &[1.3, 1.2]),
        ("while it is at work", &[40, 60], &[&[0], &[0]], 0.5, &[0.5, 0.1], &[1.03, 1.1]),
        ("the slowest shard counts", &[30, 60, 20], &[&[0, 1], &[0], &[1]], 1.0, &[1.0; 3], &[1.6, 1.3, 1.3]),
        ("caps beyond the GPU", &[100, 50], &[&[0], &[0]], 0.0, &[1.0, 0.5], &[1.25, 1.5]),
        ("only what is beyond", &[50, 70, 40], &[&[0], &[0], &[0]], 0.0, &[1.0, 0.5, 0.5],
            // With 50: nobody 1, 70 alone 1.2, 40 alone 1, both 1.6. With 70 and 40, 50 is always at work.
            &[(1.0 + 1.2 + 1.0 + 1.6) / 4.0, (1.2 + 1.6) / 2.0, (1.0 + 1.6) / 2.0]),
        ("both", &[100, 50], &[&[0], &[0]], 0.4, &[1.0, 1.0], &[1.2 * 1.5, 1.4 * 1.5]),
        ("nothing is known of the load", &[40, 60], &[&[0], &[0]], 0.5, &[f64::NAN], &[1.3, 1.2]),
    ];
    for (name, caps, gpus, strength, busy, expected) in rows {
        assert_close(&interference(caps, gpus, strength).slow_downs(busy), expected, name);
    }
}

#[test]
fn copies_of_one_model_are_company_too() {
    let mut problem = problem(&[14.0, 14.0], 2);
    problem.space.interference = Some(0.5);
    let setup = Setup(vec![choice(0, 1, 30, 3), Choice::NONE]);
    let placement = Placement { gpus: vec![vec![vec![0], vec![0], vec![1]], vec![]] };
    let slow_downs = Interference::new(&problem, &setup, &placement).slow_downs(&[1.0, 1.0]);
    assert_close(&slow_downs, &[1.15, 1.0], "the worst copy, and a model that is not deployed");
}

/// `E[max(1, caps at work)]` over all subsets.
fn over_subsets(cap: u32, company: &[(u32, f64)]) -> f64 {
    let Some(((other, load), rest)) = company.split_first() else { return f64::from(cap.max(100)) / 100.0 };
    load * over_subsets(cap + other, rest) + (1.0 - load) * over_subsets(cap, rest)
}

#[test]
fn properties() {
    let mut random = Random::new(3);
    for case in 0..300 {
        let models = 2 + random.below(4);
        let caps: Vec<u32> = (0..models).map(|_| 5 + 5 * random.below(20) as u32).collect();
        let gpus: Vec<Vec<usize>> = (0..models).map(|_| (0..3).filter(|_| random.uniform() < 0.6).collect()).collect();
        let busy: Vec<f64> = (0..models).map(|_| random.uniform()).collect();
        let strength = random.uniform();
        let slow_downs = |caps: &[u32], gpus: &[Vec<usize>]| {
            interference(caps, &gpus.iter().map(Vec::as_slice).collect::<Vec<_>>(), strength)
        };
        let all = slow_downs(&caps, &gpus);
        let slow = all.slow_downs(&busy);

        let worst = all.slow_downs(&vec![1.0; models]);
        assert!(slow.iter().zip(&worst).all(|(s, w)| (1.0..=w + 1e-12).contains(s)), "case {case}: {slow:?} {worst:?}");
        let mut busier = busy.clone();
        let which = random.below(models);
        busier[which] += (1.0 - busy[which]) * random.uniform();
        let slower = all.slow_downs(&busier);
        assert!(slow.iter().zip(&slower).all(|(s, w)| *s <= w + 1e-12), "case {case}: {slow:?} {slower:?}");
        assert_eq!(slow[which], slower[which], "case {case}: its own load slows no model down");

        for m in 0..models {
            let alone = gpus[m].iter().all(|gpu| (0..models).all(|n| n == m || !gpus[n].contains(gpu)));
            assert_eq!(alone, slow[m] == 1.0, "case {case}: {caps:?} {gpus:?} {slow:?}");
        }
        let reversed = |v: &[Vec<usize>]| v.iter().rev().cloned().collect::<Vec<_>>();
        let backwards = slow_downs(&caps.iter().rev().copied().collect::<Vec<_>>(), &reversed(&gpus));
        let mut again = backwards.slow_downs(&busy.iter().rev().copied().collect::<Vec<_>>());
        again.reverse();
        assert_close(&again, &slow, &format!("case {case}, backwards"));

        let company: Vec<(u32, f64)> = caps.iter().copied().zip(busy.iter().copied()).skip(1).collect();
        let (exact, expected) = (oversubscription(caps[0], &company), over_subsets(caps[0], &company));
        assert!((exact - expected).abs() < 1e-12, "case {case}: {exact} {expected}");
    }
}
