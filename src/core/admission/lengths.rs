//! How probable it is that an answer has at most so many tokens.

use crate::predictor::Estimate;

/// Standard normal quantiles of .8 and .9.
const Z80: f64 = 0.841_621_233_572_914_3;
const Z90: f64 = 1.281_551_565_544_600_4;

/// Probability that an answer has at most so many tokens: a log-normal distribution on either side of the 80th percentile, so that
/// median, P80 and P90 are as predicted. What is not known (a number that is none) is 0.
pub fn probability_within(estimate: &Estimate, tokens: f64) -> f64 {
    let (x, x80, x90) = (
        (tokens / estimate.output_tokens).ln(),
        (estimate.output_tokens_p80 / estimate.output_tokens).ln(),
        (estimate.output_tokens_p90 / estimate.output_tokens).ln(),
    );
    if tokens.is_nan() || tokens <= 0.0 || x80.is_nan() || x90.is_nan() || x.is_nan() {
        return 0.0;
    }
    // Percentiles that coincide leave a step, which the smallest spread stands for.
    let slope = |run: f64, rise: f64| run.max(1e-9) / rise;
    let z = if x <= x80 { x / slope(x80, Z80) } else { Z80 + (x - x80) / slope(x90 - x80, Z90 - Z80) };
    normal(z)
}

/// The standard normal distribution function, to 1e-7 (Abramowitz and Stegun, 26.2.17).
fn normal(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z.abs());
    let series =
        t * (0.319_381_530 + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    let upper = (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt() * series;
    (if z >= 0.0 { 1.0 - upper } else { upper }).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn estimate(p50: f64, p80: f64, p90: f64) -> Estimate {
        Estimate { quality: 0.5, quality_sd: 0.1, output_tokens: p50, output_tokens_p80: p80, output_tokens_p90: p90 }
    }

    #[test]
    fn the_normal_distribution() {
        for (z, p) in [
            (0.0, 0.5),
            (1.0, 0.841_344_746),
            (-1.0, 0.158_655_254),
            (1.644_853_627, 0.95),
            (-3.0, 0.001_349_898),
            (40.0, 1.0),
            (f64::NEG_INFINITY, 0.0),
        ] {
            assert!((normal(z) - p).abs() < 1e-7, "{z}: {}", normal(z));
        }
    }

    #[test]
    fn the_predicted_percentiles_come_back() {
        let skewed = estimate(200.0, 390.0, 900.0);
        let certain = estimate(200.0, 200.0, 200.0);
        for (estimate, tokens, p) in [
            (skewed, 200.0, 0.5),
            (skewed, 390.0, 0.8),
            (skewed, 900.0, 0.9),
            // A log-normal is symmetric in the logarithm: as far below the median as P80 is above.
            (skewed, 200.0 * 200.0 / 390.0, 0.2),
            (skewed, 1e9, 1.0),
            (skewed, 0.0, 0.0),
            (skewed, -5.0, 0.0),
            (skewed, f64::INFINITY, 1.0),
            (skewed, f64::NAN, 0.0),
            (estimate(f64::NAN, 1.0, 1.0), 5.0, 0.0),
            (certain, 199.0, 0.0),
            (certain, 201.0, 1.0),
        ] {
            let got = probability_within(&estimate, tokens);
            assert!((got - p).abs() < 1e-6, "{estimate:?} {tokens}: {got}");
        }
    }

    #[test]
    fn more_tokens_are_never_less_probable() {
        for estimate in [estimate(200.0, 390.0, 900.0), estimate(10.0, 10.0, 30.0), estimate(50.0, 60.0, 60.0)] {
            let mut last = 0.0;
            for tokens in 0..4_000 {
                let p = probability_within(&estimate, f64::from(tokens));
                assert!(p >= last - 1e-7 && p <= 1.0, "{estimate:?} {tokens}: {p} after {last}");
                last = p;
            }
        }
    }
}
