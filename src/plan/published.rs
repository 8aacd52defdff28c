//! The routing of a setup by RouterWise's own algorithm (arXiv 2604.10907, algorithms 1 and 2; PUBLISHED.md, sections 18.1
//! and 18.2), to compare ours with: prices by subgradient steps, shares by projected gradient steps, and the multiplier of the one
//! limit by bisection.
//!
//! The paper gives neither steps, rounds, bounds nor tolerances; [`Knobs::default`] has those with which the tests' problems come
//! within a hundredth of the optimum. Latencies are measured in units of the limit, so that one step fits all limits. Copies do not
//! slow each other down.

use super::curve::Served;
use super::problem::{Limit, Statistic};
use super::scores::Scores;
use super::search::Planner;
use super::setup::Setup;

/// What the paper leaves open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Knobs {
    /// Steps of the prices, for each step of the shares (PUBLISHED.md, section 17).
    pub price_rounds: usize,
    /// Their size at first; it falls with the square root of the step's number.
    pub price_step: f64,
    /// Steps of the shares for one multiplier (T of algorithm 1).
    pub share_rounds: usize,
    /// Their size at first (eta), likewise.
    pub share_step: f64,
    /// The highest multiplier, score per unit of the limit (beta_max of algorithm 2).
    pub multiplier_max: f64,
    /// Width at which the bisection ends (epsilon).
    pub multiplier_width: f64,
}

impl Default for Knobs {
    fn default() -> Knobs {
        Knobs {
            price_rounds: 30,
            price_step: 0.5,
            share_rounds: 60,
            share_step: 0.2,
            multiplier_max: 2.0,
            multiplier_width: 1e-3,
        }
    }
}

/// What the algorithm ends with.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Share of the requests per model.
    pub fractions: Vec<f64>,
    /// The limit's statistic over the limit.
    pub latency: f64,
}

/// The routing of a setup at a rate under one limit of a mean; `None` if the algorithm finds none that keeps it, or the limit is not
/// one of a mean. Profiles go on with their last slope, whatever the problem says.
pub fn route(planner: &Planner<'_>, setup: &Setup, rate: f64, limit: &Limit, knobs: &Knobs) -> Option<Found> {
    if limit.statistic != Statistic::Mean {
        return None;
    }
    let served = planner.all_served(setup, &vec![1.0; setup.0.len()], rate);
    let (mut low, mut high) = (0.0, knobs.multiplier_max);
    let mut found = None;
    while high - low > knobs.multiplier_width {
        let multiplier = 0.5 * (low + high);
        let fractions = stage_one(&planner.problem().scores, &served, limit, multiplier, knobs);
        let latency = latency(&served, limit, &fractions);
        if latency > 1.0 {
            low = multiplier;
        } else {
            high = multiplier;
            found = Some(Found { fractions, latency });
        }
    }
    found
}

/// `L(w) / limit`.
fn latency(served: &[Option<Served<'_>>], limit: &Limit, fractions: &[f64]) -> f64 {
    let of =
        |(s, share): (&Option<Served<'_>>, &f64)| s.as_ref().map_or(0.0, |s| share * s.mean_ms(*share, limit.metric));
    served.iter().zip(fractions).map(of).sum::<f64>() / limit.milliseconds
}

/// Algorithm 1 (PUBLISHED.md, section 18.1): shares for a multiplier.
fn stage_one(
    scores: &Scores,
    served: &[Option<Served<'_>>],
    limit: &Limit,
    multiplier: f64,
    knobs: &Knobs,
) -> Vec<f64> {
    let deployed: Vec<bool> = served.iter().map(Option::is_some).collect();
    let equal = 1.0 / deployed.iter().filter(|d| **d).count().max(1) as f64;
    let mut shares: Vec<f64> = deployed.iter().map(|d| if *d { equal } else { 0.0 }).collect();
    // No prompt goes to a model that is not deployed.
    let mut prices: Vec<f64> = deployed.iter().map(|d| if *d { 0.0 } else { f64::INFINITY }).collect();
    for round in 1..=knobs.share_rounds {
        for round in 1..=knobs.price_rounds {
            let sent = scores.assign(&prices).shares;
            let step = knobs.price_step / (round as f64).sqrt();
            let gaps = sent.iter().zip(&shares);
            prices.iter_mut().zip(gaps).for_each(|(price, (sent, wanted))| *price += step * (sent - wanted));
        }
        let step = knobs.share_step / (round as f64).sqrt();
        let mut moved = Vec::with_capacity(shares.len());
        for ((served, share), price) in served.iter().zip(&shares).zip(&prices) {
            let Some(served) = served else { continue };
            moved.push(share + step * (price - multiplier * marginal(served, *share, limit)));
        }
        let mut projected = onto_simplex(&moved).into_iter();
        for (share, deployed) in shares.iter_mut().zip(&deployed) {
            *share = if *deployed { projected.next().unwrap_or(0.0) } else { 0.0 };
        }
    }
    shares
}

/// `dL/dw_i = l_i + lambda w_i l_i'`, with the slope of the piece where the share is, over the limit.
fn marginal(served: &Served<'_>, share: f64, limit: &Limit) -> f64 {
    /// Width of the difference that stands for the slope: far less than a piece.
    const WIDTH: f64 = 1e-6;
    let mean_ms_at = |share: f64| served.mean_ms(share, limit.metric);
    let slope = (mean_ms_at(share + WIDTH) - mean_ms_at(share)) / WIDTH;
    (mean_ms_at(share) + share * slope) / limit.milliseconds
}

/// The nearest point of the simplex (Duchi et al. 2008, *Efficient projections onto the l1-ball*).
fn onto_simplex(point: &[f64]) -> Vec<f64> {
    let mut falling = point.to_vec();
    falling.sort_by(|a, b| b.total_cmp(a));
    let (mut sum, mut shift) = (0.0, 0.0);
    for (count, value) in falling.iter().enumerate() {
        sum += value;
        let of_these = (sum - 1.0) / (count as f64 + 1.0);
        if value - of_these > 0.0 {
            shift = of_these;
        }
    }
    point.iter().map(|value| (value - shift).max(0.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::place;
    use crate::problem::{Beyond, Problem};
    use crate::search::tests::{TTFT, small};
    use crate::setup::Setups;
    use routebalance_core::random::Random;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn projections_are_nearest() {
        let mut random = Random::new(6);
        for case in 0..50 {
            let n = 2 + random.below(3);
            let point: Vec<f64> = (0..n).map(|_| 2.0 * random.uniform() - 0.5).collect();
            let projected = onto_simplex(&point);
            assert!((projected.iter().sum::<f64>() - 1.0).abs() < 1e-12 && projected.iter().all(|x| *x >= 0.0));
            let distance = |to: &[f64]| point.iter().zip(to).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            for _ in 0..200 {
                let other: Vec<f64> = (0..n).map(|_| random.exponential(1.0)).collect();
                let sum: f64 = other.iter().sum();
                let other: Vec<f64> = other.iter().map(|x| x / sum).collect();
                assert!(distance(&projected) <= distance(&other) + 1e-12, "case {case}: {point:?} {other:?}");
            }
        }
    }

    /// The published algorithm never beats the bound of ours, and comes near it.
    #[test]
    fn it_ends_near_the_optimum_and_never_above() {
        let problem = Problem { beyond: Beyond::LastSlope, ..small(&[TTFT], 22.0, None) };
        let planner = Planner::new(&problem);
        let mut worker = planner.worker();
        let (mut compared, mut missed) = (0, 0);
        // Each takes a second without optimisation.
        let placed = Setups::new(&problem).filter_map(|setup| Some((setup.clone(), place(&problem, &setup)?)));
        for (setup, placement) in placed.step_by(6) {
            let ours = worker.solve(&setup, &placement, 1e-5);
            let theirs = route(&planner, &setup, 22.0, &TTFT, &Knobs::default());
            match (ours, theirs) {
                (Some(ours), Some(theirs)) => {
                    compared += 1;
                    assert!(theirs.latency <= 1.0 && (theirs.fractions.iter().sum::<f64>() - 1.0).abs() < 1e-9);
                    let score = crate::prices::best_score(&problem.scores, &theirs.fractions);
                    assert!(score <= ours.score_bound + 1e-5, "{setup:?}: {score} {ours:?}");
                    assert!(score > ours.score - 0.01, "{setup:?}: {score} {}", ours.score);
                }
                (None, Some(theirs)) => panic!("{setup:?}: {theirs:?} keeps what nothing keeps"),
                (Some(_), None) => missed += 1,
                (None, None) => {}
            }
        }
        assert!(compared >= 3 && missed <= compared, "{compared} {missed}");
    }
}
