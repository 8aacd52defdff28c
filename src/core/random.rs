//! Seeded random numbers: the same seed gives the same numbers on every machine.

/// What the state of the generator grows by; an odd number near the golden ratio of 2^64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bits that tell nothing of those they were made of: the generator's finaliser.
fn mixed(bits: u64) -> u64 {
    let z = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Uniform in [0, 1).
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// One of many numbers made of a single draw, uniform in [0, 1) like the draw and independent of the others.
pub fn split(draw: f64, which: usize) -> f64 {
    unit(mixed(draw.to_bits() ^ (which as u64).wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// A generator of random numbers: SplitMix64 (Steele, Lea and Flood 2014, *Fast Splittable Pseudorandom Number Generators*).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Random(u64);

impl Random {
    /// A generator for a seed; any seed is as good as another.
    pub fn new(seed: u64) -> Random {
        let mut random = Random(seed);
        random.bits();
        random
    }

    /// A generator for one use of a seed, independent of the other uses.
    pub fn for_use(seed: u64, which: u64) -> Random {
        let mut base = Random::new(seed);
        Random::new(base.bits() ^ which.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mixed(self.0)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        unit(self.bits())
    }

    /// Uniform in 0 to `n - 1`; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.uniform() * n as f64) as usize).min(n.saturating_sub(1))
    }

    /// Exponential with this mean.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.uniform()).ln()
    }

    /// Standard normal (Box and Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Gamma with this shape and mean 1 (Marsaglia and Tsang 2000, *A Simple Method for Generating Gamma Variables*).
    pub fn gamma(&mut self, shape: f64) -> f64 {
        let shape = if shape.is_finite() && shape > 1e-3 { shape } else { 1.0 };
        // Below 1 a gamma of shape + 1 is scaled down by a power of a uniform number.
        let boost = if shape < 1.0 { (1.0 - self.uniform()).powf(1.0 / shape) } else { 1.0 };
        let d = if shape < 1.0 { shape + 1.0 } else { shape } - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.uniform()).ln() < 0.5 * x * x + d * (1.0 - v + v.ln()) {
                return d * v * boost / shape;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// Mean and variance over many draws are those of the distribution.
    #[test]
    fn moments() {
        type Draw = fn(&mut Random) -> f64;
        let rows: [(&str, Draw, f64, f64); 6] = [
            ("uniform", Random::uniform, 0.5, 1.0 / 12.0),
            ("below", |r| r.below(3) as f64, 1.0, 2.0 / 3.0),
            ("exponential", |r| r.exponential(2.0), 2.0, 4.0),
            ("normal", Random::normal, 0.0, 1.0),
            ("gamma", |r| r.gamma(4.0), 1.0, 0.25),
            ("bursty gamma", |r| r.gamma(0.25), 1.0, 4.0),
        ];
        for (name, draw, mean, variance) in rows {
            let mut random = Random::new(3);
            let draws: Vec<f64> = (0..100_000).map(|_| draw(&mut random)).collect();
            let n = draws.len() as f64;
            let m = draws.iter().sum::<f64>() / n;
            let v = draws.iter().map(|d| (d - m).powi(2)).sum::<f64>() / n;
            assert!((m - mean).abs() < 0.03, "{name}: mean {m}");
            assert!((v / variance - 1.0).abs() < 0.06, "{name}: variance {v}");
        }
    }

    #[test]
    fn uses_of_a_seed_differ() {
        let draws = |seed, which| Random::for_use(seed, which).bits();
        assert_eq!(draws(1, 2), draws(1, 2));
        assert!(draws(1, 2) != draws(1, 3) && draws(1, 2) != draws(2, 2));
    }
}
