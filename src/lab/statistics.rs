//! How sure a mean is: the bootstrap over requests, Student's t over seeds, differences paired by seed.

use serde::Serialize;

use routebalance_core::random::Random;
pub use routebalance_sim::statistics::{mean, mean_or_zero, percentile};

/// Resamples of the bootstrap (the paper's number; PUBLISHED.md, section 12).
pub const RESAMPLES: usize = 1000;

/// Quantiles .975 of Student's t for 1 to 30 degrees of freedom.
const T_975: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// A mean and its 95 % interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// The interval's lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Estimate {
    /// Whether the interval holds this value.
    pub fn holds(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// In another unit.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Estimate {
        Estimate { mean: self.mean * factor, low: self.low * factor, high: self.high * factor }
    }
}

/// Median and 99th percentile, nearest-rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles<T> {
    /// Median.
    pub p50: T,
    /// 99th percentile.
    pub p99: T,
}

impl<T: Copy + Default> Quantiles<T> {
    /// Of sorted values; zeros of none.
    pub fn from_sorted(sorted: &[T]) -> Quantiles<T> {
        Quantiles { p50: percentile(sorted, 50), p99: percentile(sorted, 99) }
    }
}

/// The value at a share of the way through sorted ones, the nearest of them; `None` of none.
pub(crate) fn value_at(sorted: &[f64], share: f64) -> Option<f64> {
    sorted.get((share * sorted.len().saturating_sub(1) as f64).round() as usize).copied()
}

/// The mean of `values` with the percentile bootstrap's interval (Efron 1979): requests are drawn again with replacement
/// `resamples` times. `None` of none.
pub fn bootstrap(values: &[f64], resamples: usize, seed: u64) -> Option<Estimate> {
    let centre = mean(values)?;
    let mut random = Random::new(seed);
    let mut means: Vec<f64> = (0..resamples)
        .map(|_| (0..values.len()).map(|_| values[random.below(values.len())]).sum::<f64>() / values.len() as f64)
        .collect();
    means.sort_by(f64::total_cmp);
    let quantile = |share: f64| value_at(&means, share).unwrap_or(centre);
    Some(Estimate { mean: centre, low: quantile(0.025), high: quantile(0.975) })
}

/// The mean of one number per seed with Student's t interval. `None` of fewer than two numbers, which show no spread.
pub fn over_seeds(values: &[f64]) -> Option<Estimate> {
    let freedom = values.len().checked_sub(1).filter(|freedom| *freedom > 0)?;
    let centre = mean(values)?;
    let variance = values.iter().map(|value| (value - centre).powi(2)).sum::<f64>() / freedom as f64;
    // Beyond the table the quantile falls to the normal distribution's about as 2.4 over the degrees of freedom.
    let t = T_975.get(freedom - 1).copied().unwrap_or(1.96 + 2.4 / freedom as f64);
    let half = t * (variance / values.len() as f64).sqrt();
    Some(Estimate { mean: centre, low: centre - half, high: centre + half })
}

/// The mean of `a - b` over the seeds that both have, each given as `(seed, value)`, with Student's t interval. The same seed
/// is the same requests, so that what they share cancels. `None` of fewer than two common seeds.
pub fn paired(a: &[(u64, f64)], b: &[(u64, f64)]) -> Option<Estimate> {
    let differences: Vec<f64> = a
        .iter()
        .filter_map(|(seed, value)| b.iter().find(|(other, _)| other == seed).map(|(_, theirs)| value - theirs))
        .collect();
    over_seeds(&differences)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-3
    }

    #[test]
    fn intervals_over_seeds_are_the_textbook_ones() {
        // Means and half-widths t * s / sqrt(n), by hand.
        let rows: [(&[f64], f64, f64); 4] = [
            (&[1.0, 3.0], 2.0, 12.706),
            (&[1.0, 2.0, 3.0, 4.0, 5.0], 3.0, 1.963),
            (&[7.0, 7.0, 7.0], 7.0, 0.0),
            (&[0.4, 0.5, 0.6], 0.5, 0.248),
        ];
        for (values, centre, half) in rows {
            let estimate = over_seeds(values).unwrap();
            assert!(near(estimate.mean, centre) && near(estimate.high - centre, half), "{values:?}: {estimate:?}");
            assert!(near(centre - estimate.low, half), "{values:?}: {estimate:?}");
        }
        assert_eq!(over_seeds(&[1.0]), None);
        assert_eq!(over_seeds(&[]), None);
    }

    #[test]
    fn many_seeds_come_to_the_normal_distribution() {
        let values: Vec<f64> = (0..1000).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let estimate = over_seeds(&values).unwrap();
        assert!(near(estimate.high, 1.96 / 1000f64.sqrt()), "{estimate:?}");
    }

    #[test]
    fn pairing_cancels_what_seeds_share() {
        let a = [(1, 10.0), (2, 20.0), (3, 33.0), (9, 99.0)];
        let b = [(3, 32.0), (1, 9.0), (2, 19.0), (8, 0.0)];
        let difference = paired(&a, &b).unwrap();
        assert_eq!(difference, Estimate { mean: 1.0, low: 1.0, high: 1.0 });
        assert_eq!(paired(&a, &b[3..]), None);
    }

    #[test]
    fn the_bootstrap_agrees_with_the_normal_interval() {
        let mut random = Random::new(5);
        let values: Vec<f64> = (0..2000).map(|_| random.normal() * 3.0 + 10.0).collect();
        let estimate = bootstrap(&values, RESAMPLES, 1).unwrap();
        let half = 1.96 * 3.0 / 2000f64.sqrt();
        assert!(estimate.holds(10.0) && estimate.holds(estimate.mean), "{estimate:?}");
        assert!(((estimate.high - estimate.low) / (2.0 * half) - 1.0).abs() < 0.1, "{estimate:?}");
        assert_eq!(Some(estimate), bootstrap(&values, RESAMPLES, 1));
        assert_eq!(bootstrap(&[4.0; 9], RESAMPLES, 1), Some(Estimate { mean: 4.0, low: 4.0, high: 4.0 }));
        assert_eq!(bootstrap(&[], RESAMPLES, 1), None);
    }
}
