//! How far actual times were from predicted ones, and with it the probability that a time stays within a limit.

use std::sync::LazyLock;

/// Boundaries of the histogram, in `ln` of actual over predicted time: fine about 0, from an eighth to eight times.
pub const EDGES: [f64; BINS + 1] = [
    -2.08, -1.2, -0.8, -0.6, -0.4, -0.3, -0.2, -0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2,
    2.08,
];
/// Intervals of the histogram.
pub const BINS: usize = 20;

/// Residuals that the distribution before any evidence counts for.
const PRIOR_RESIDUALS: f64 = 10.0;
/// Scale of that distribution, a logistic one about 0: 70 % of times are within 1.18 times the predicted one. As uncertain as
/// the time to the first token in the emulator at nine tenths of capacity.
const PRIOR_SCALE: f64 = 0.2;

/// The distribution before any evidence, at [`EDGES`]: computed once, since every decision needs it.
static PRIOR: LazyLock<[f64; BINS + 1]> = LazyLock::new(|| EDGES.map(|edge| 1.0 / (1.0 + (-edge / PRIOR_SCALE).exp())));

/// The distribution of actual over predicted time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Residuals {
    /// Probability of a ratio of at most each of [`EDGES`].
    below: [f64; BINS + 1],
}

impl Default for Residuals {
    fn default() -> Self {
        Residuals::from_shares(0.0, &[0.0; BINS])
    }
}

impl Residuals {
    /// The interval of a ratio; nothing if it is not a positive number.
    pub fn bin(ratio: f64) -> Option<usize> {
        let ln = ratio.ln();
        ln.is_finite().then(|| EDGES.partition_point(|edge| *edge <= ln).saturating_sub(1).min(BINS - 1))
    }

    /// From so many residuals and their shares of each interval.
    pub fn from_shares(evidence: f64, shares: &[f64; BINS]) -> Residuals {
        let trust = evidence / (evidence + PRIOR_RESIDUALS);
        let trust = if trust.is_finite() { trust.clamp(0.0, 1.0) } else { 0.0 };
        let mut seen = 0.0;
        let mut below = [0.0; BINS + 1];
        let seen_by_edge = std::iter::once(0.0).chain(shares.iter().map(|share| {
            seen += share.max(0.0);
            seen
        }));
        for ((below, prior), seen) in below.iter_mut().zip(*PRIOR).zip(seen_by_edge) {
            *below = (trust * seen + (1.0 - trust) * prior).clamp(0.0, 1.0);
        }
        Residuals { below }
    }

    /// Probability that a time predicted as `predicted` is at most `limit`, both in seconds. It grows with the limit and falls
    /// with the prediction; 0 where either is no positive number.
    pub fn probability_within(&self, predicted: f64, limit: f64) -> f64 {
        let ln = (limit / predicted).ln();
        if ln.is_nan() || limit <= 0.0 || predicted <= 0.0 {
            return 0.0;
        }
        let upper = EDGES.partition_point(|edge| *edge <= ln);
        let at = |i: usize| Some((*EDGES.get(i)?, *self.below.get(i)?));
        match (upper.checked_sub(1).and_then(at), at(upper)) {
            (Some((left, from)), Some((right, to))) => from + (to - from) * (ln - left) / (right - left),
            (None, _) => 0.0,
            (_, None) => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn a_ratio_has_one_interval() {
        for (ratio, expected) in [
            (1e-9, Some(0)),
            (0.5, Some(2)),
            (0.99, Some(9)),
            (1.0, Some(10)),
            (1.04, Some(10)),
            (2.0, Some(17)),
            (1e9, Some(BINS - 1)),
            (0.0, None),
            (-1.0, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ] {
            assert_eq!(Residuals::bin(ratio), expected, "{ratio}");
        }
    }

    #[test]
    fn without_evidence_the_prediction_is_the_median() {
        let none = Residuals::default();
        assert!((none.probability_within(0.2, 0.2) - 0.5).abs() < 1e-12);
        assert!((0.68..0.72).contains(&none.probability_within(0.2, 0.2 * 1.184)));
        assert!(none.probability_within(0.2, 0.1) < 0.05 && none.probability_within(0.2, 0.4) > 0.95);
    }

    /// Ratios of 1.0 to 1.5, evenly: the probability of each limit is what it was among them.
    #[test]
    fn with_evidence_the_shares_decide() {
        let mut shares = [0.0; BINS];
        for i in 0..1_000 {
            shares[Residuals::bin(1.0 + f64::from(i) / 2_000.0).unwrap()] += 1e-3;
        }
        let residuals = Residuals::from_shares(1_000.0, &shares);
        for (limit, expected) in [(0.9, 0.0), (1.0, 0.0), (1.1, 0.2), (1.25, 0.5), (1.4, 0.8), (1.6, 1.0)] {
            let p = residuals.probability_within(0.1, 0.1 * limit);
            assert!((p - expected).abs() < 0.05, "{limit}: {p}");
        }
    }

    #[test]
    fn probability_grows_with_the_limit_whatever_was_seen() {
        let mut shares = [0.0; BINS];
        (shares[3], shares[17]) = (0.6, 0.4);
        for evidence in [0.0, 1.0, 1e9, f64::NAN, f64::INFINITY] {
            let residuals = Residuals::from_shares(evidence, &shares);
            let mut last = 0.0;
            for limit in 0..2_000 {
                let p = residuals.probability_within(1.0, f64::from(limit) / 100.0);
                assert!((last..=1.0).contains(&p), "{evidence} {limit}: {p} after {last}");
                last = p;
            }
            assert_eq!(last, 1.0);
        }
    }

    #[test]
    fn what_is_no_time_is_never_kept() {
        let residuals = Residuals::default();
        for (predicted, limit) in [(f64::NAN, 1.0), (1.0, f64::NAN), (0.0, 1.0), (1.0, 0.0), (-1.0, -1.0)] {
            assert_eq!(residuals.probability_within(predicted, limit), 0.0, "{predicted} {limit}");
        }
        assert_eq!(residuals.probability_within(f64::INFINITY, 1.0), 0.0);
        assert_eq!(residuals.probability_within(1.0, f64::INFINITY), 1.0);
    }
}
