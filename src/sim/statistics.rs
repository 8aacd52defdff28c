//! What many numbers have in common.

use std::borrow::Borrow;

/// The arithmetic mean; `None` of nothing.
pub fn mean(values: impl IntoIterator<Item = impl Borrow<f64>>) -> Option<f64> {
    let add = |(sum, count): (f64, usize), value: f64| (sum + value, count.saturating_add(1));
    let (sum, count) = values.into_iter().fold((0.0, 0), |so_far, value| add(so_far, *value.borrow()));
    (count > 0).then(|| sum / count as f64)
}

/// The arithmetic mean; 0 of nothing, so that a run in which nothing happened is still JSON.
pub fn mean_or_zero(values: impl IntoIterator<Item = impl Borrow<f64>>) -> f64 {
    mean(values).unwrap_or_default()
}

/// The nearest-rank percentile of sorted values: the smallest value that at least `percent` % of them do not exceed; 0 of none.
pub fn percentile<T: Copy + Default>(sorted: &[T], percent: usize) -> T {
    let rank = sorted.len().saturating_mul(percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn means_are_arithmetic() {
        assert_eq!(mean([1.0, 2.0, 6.0]), Some(3.0));
        assert_eq!(mean(vec![1.0, 2.0]), Some(1.5));
        assert_eq!((mean(&[] as &[f64]), mean_or_zero(std::iter::empty::<f64>())), (None, 0.0));
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        let rows: [(&[f64], usize, f64); 7] = [
            (&hundred, 0, 1.0),
            (&hundred, 7, 7.0),
            (&hundred, 50, 50.0),
            (&hundred, 99, 99.0),
            (&[7.0], 99, 7.0),
            (&[1.0, 9.0], 50, 1.0),
            (&[], 50, 0.0),
        ];
        for (values, percent, expected) in rows {
            assert_eq!(percentile(values, percent), expected, "p{percent} of {} values", values.len());
        }
    }
}
