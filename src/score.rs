//! Objectives: from estimates of (model, instance) pairs to an order of preference.

use std::cmp::Ordering;
use std::time::Duration;

use crate::fleet::{Objective, QualityNormalisation, Weights};

/// One (model, instance) pair that may serve a request, with what is expected of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Index of the instance.
    pub instance: usize,
    /// Expected answer quality, 0 to 1.
    pub quality: f64,
    /// Expected output tokens of all answers asked for.
    pub output_tokens: f64,
    /// Output tokens that 4 of 5 such requests do not exceed.
    pub output_tokens_p80: f64,
    /// Expected time, seconds: the objective's T.
    pub seconds: f64,
    /// Expected time to the first token, seconds.
    pub ttft_seconds: f64,
    /// Expected time per output token, seconds.
    pub tpot_seconds: f64,
    /// Expected time to the last token, seconds.
    pub e2e_seconds: f64,
    /// Expected cost, USD.
    pub usd: f64,
    /// Cost that 4 of 5 such requests do not exceed, USD.
    pub usd_p80: f64,
    /// Requests that the instance holds.
    pub in_flight: f64,
    /// When the instance was last sent a request.
    pub last_dispatch: Duration,
}

/// Keeps a division by a maximum of zero defined, as the published code does.
const EPSILON: f64 = 1e-8;

/// The score of every candidate, higher is better: `w_q Q + w_c (1 - C / max C) + w_l (1 - T / max T)`, maxima over the
/// candidates of this request (RouteBalance, section 7 of its specification). Round robin does not look at estimates: the
/// `sequence`-th candidate in turn scores 1, the one after it less, and so on.
pub fn scores(
    candidates: &[Candidate],
    weights: &Weights,
    objective: Objective,
    normalisation: QualityNormalisation,
    sequence: u64,
) -> Vec<f64> {
    match objective {
        Objective::Paper => paper(candidates, weights, normalisation),
        Objective::RoundRobin => round_robin(candidates.len(), sequence),
    }
}

fn paper(candidates: &[Candidate], weights: &Weights, normalisation: QualityNormalisation) -> Vec<f64> {
    let max = |value: fn(&Candidate) -> f64| candidates.iter().map(value).fold(0.0, f64::max) + EPSILON;
    let max_usd = max(|c| c.usd);
    let max_seconds = max(|c| c.seconds);
    let best = candidates.iter().map(|c| c.quality).fold(f64::NEG_INFINITY, f64::max);
    let worst = candidates.iter().map(|c| c.quality).fold(f64::INFINITY, f64::min);
    candidates
        .iter()
        .map(|c| {
            let quality = match normalisation {
                QualityNormalisation::Raw => c.quality,
                QualityNormalisation::MinMax => (c.quality - worst) / (best - worst + EPSILON),
            };
            weights.quality * quality
                + weights.cost * (1.0 - c.usd / max_usd)
                + weights.latency * (1.0 - c.seconds / max_seconds)
        })
        .collect()
}

fn round_robin(candidates: usize, sequence: u64) -> Vec<f64> {
    let n = candidates.max(1) as u64;
    (0..candidates as u64)
        .map(|i| {
            let turns = i.saturating_add(n).saturating_sub(sequence % n) % n;
            1.0 - turns as f64 / n as f64
        })
        .collect()
}

/// Positions of `candidates`, best first: by score, then fewer requests in flight, then the one that has waited longest for a
/// request, then the order of the file (the published tie-break).
pub fn rank(candidates: &[Candidate], scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<(usize, &Candidate, f64)> =
        candidates.iter().zip(scores).enumerate().map(|(i, (c, s))| (i, c, *s)).collect();
    order.sort_by(|(_, a, score_a), (_, b, score_b)| {
        descending(*score_a, *score_b)
            .then(a.in_flight.total_cmp(&b.in_flight))
            .then(a.last_dispatch.cmp(&b.last_dispatch))
    });
    order.into_iter().map(|(i, ..)| i).collect()
}

/// Higher first; what is not a number comes last.
fn descending(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) => b.total_cmp(&a),
        (a_nan, b_nan) => a_nan.cmp(&b_nan),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn candidate(instance: usize, quality: f64, seconds: f64, usd: f64) -> Candidate {
        Candidate {
            instance,
            quality,
            output_tokens: 100.0,
            output_tokens_p80: 100.0,
            seconds,
            ttft_seconds: 0.1,
            tpot_seconds: 0.01,
            e2e_seconds: 1.1,
            usd,
            usd_p80: usd,
            in_flight: 0.0,
            last_dispatch: Duration::ZERO,
        }
    }

    fn weights(quality: f64, latency: f64, cost: f64) -> Weights {
        Weights { quality, latency, cost }
    }

    fn close(a: &[f64], b: &[f64]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6)
    }

    #[test]
    fn the_published_score() {
        let pair = [candidate(0, 0.4, 1.0, 1e-5), candidate(1, 0.8, 2.0, 4e-5)];
        let third = 1.0 / 3.0;
        let rows = [
            (
                "raw, uniform",
                weights(third, third, third),
                QualityNormalisation::Raw,
                [(0.4 + 0.75 + 0.5) / 3.0, 0.8 / 3.0],
            ),
            ("min-max, uniform", weights(third, third, third), QualityNormalisation::MinMax, [1.25 / 3.0, third]),
            ("quality alone", weights(1.0, 0.0, 0.0), QualityNormalisation::Raw, [0.4, 0.8]),
            ("cost alone", weights(0.0, 0.0, 1.0), QualityNormalisation::MinMax, [0.75, 0.0]),
            ("latency alone", weights(0.0, 1.0, 0.0), QualityNormalisation::MinMax, [0.5, 0.0]),
        ];
        for (name, weights, normalisation, expected) in rows {
            let scores = scores(&pair, &weights, Objective::Paper, normalisation, 0);
            // 1e-8 in the published denominators shifts a cost of 1e-5 USD by a tenth of a percent.
            assert!(scores.iter().zip(&expected).all(|(s, e)| (s - e).abs() < 1e-3), "{name}: {scores:?}");
        }
    }

    #[test]
    fn equal_candidates_score_alike_and_nothing_divides_by_zero() {
        let free = [candidate(0, 0.5, 0.0, 0.0), candidate(1, 0.5, 0.0, 0.0)];
        for normalisation in [QualityNormalisation::Raw, QualityNormalisation::MinMax] {
            let scores = scores(&free, &weights(0.4, 0.3, 0.3), Objective::Paper, normalisation, 0);
            assert!(scores[0].is_finite() && scores[0] == scores[1], "{scores:?}");
        }
    }

    #[test]
    fn round_robin_takes_every_instance_in_turn() {
        let three = [candidate(0, 0.1, 1.0, 1.0), candidate(1, 0.2, 1.0, 1.0), candidate(2, 0.3, 1.0, 1.0)];
        let firsts: Vec<usize> = (0..5)
            .map(|sequence| {
                let scores =
                    scores(&three, &weights(1.0, 0.0, 0.0), Objective::RoundRobin, QualityNormalisation::Raw, sequence);
                rank(&three, &scores)[0]
            })
            .collect();
        assert_eq!(firsts, [0, 1, 2, 0, 1]);
        assert!(close(&round_robin(3, 1), &[1.0 / 3.0, 1.0, 2.0 / 3.0]));
        assert!(round_robin(0, 5).is_empty());
    }

    #[test]
    fn ties_go_to_the_idler_then_to_the_longest_unused() {
        let base = candidate(0, 0.5, 1.0, 1.0);
        let busy = Candidate { in_flight: 2.0, ..base };
        let recent = Candidate { last_dispatch: Duration::from_secs(5), ..base };
        assert_eq!(rank(&[busy, recent, base], &[1.0, 1.0, 1.0]), [2, 1, 0]);
        assert_eq!(rank(&[busy, recent, base], &[1.0, f64::NAN, 0.5]), [0, 2, 1]);
        assert_eq!(rank(&[base, base], &[1.0, 1.0]), [0, 1]);
    }

    /// Scaling all weights alike never changes the order.
    #[test]
    fn only_the_ratio_of_weights_matters() {
        let mut seed = 3u64;
        let mut random = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 11) as f64 / (1u64 << 53) as f64
        };
        for _ in 0..200 {
            let candidates: Vec<Candidate> =
                (0..5).map(|i| candidate(i, random(), random() * 10.0, random() * 1e-3)).collect();
            let w = weights(random(), random(), random());
            let doubled = weights(w.quality * 2.0, w.latency * 2.0, w.cost * 2.0);
            for normalisation in [QualityNormalisation::Raw, QualityNormalisation::MinMax] {
                let order =
                    |w: &Weights| rank(&candidates, &scores(&candidates, w, Objective::Paper, normalisation, 0));
                assert_eq!(order(&w), order(&doubled));
            }
        }
    }
}
