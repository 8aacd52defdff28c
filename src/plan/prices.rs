//! What a request to each model should cost, in units of quality, so that models get no more requests than they can serve.
//!
//! RouterWise (PUBLISHED.md, section 17): send prompt `j` to `argmax_m (Q_jm - alpha_m)`, where the prices `alpha` minimise the
//! dual of "the best total quality with at most a share `c_m` of the prompts for model `m`",
//! `g(alpha) = mean_j max_m (Q_jm - alpha_m) + sum_m alpha_m c_m`, over prices of at least 0.

use super::scores::Scores;

/// Prices are exact to this much quality.
const FINEST: f64 = 1e-6;
/// The first step; qualities lie between 0 and 1, so prices do too.
const COARSEST: f64 = 0.25;
/// A step must gain more than rounding.
const LEAST_GAIN: f64 = 1e-13;

/// Prices for prompts of these scores and these shares of the prompts per model, 0 or
/// more. The least price is 0. Shares that leave prompts over are scaled up alike until they do not; without
/// any share everything is free.
///
/// `g` is L-natural-convex (Murota 2003, *Discrete Convex Analysis*, chapter 10): a point is a minimum once no set of prices can be
/// raised or lowered together at a gain, and a minimum on a grid is near one on a grid half as wide. So steps of all sets, on ever
/// finer grids, end at the minimum. The work grows with 2 to the number of models; beyond [`SETS_MAX`] models only single prices and
/// all together are moved, which may end short of it.
pub fn prices(scores: &Scores, shares: &[f64]) -> Vec<f64> {
    let models = shares.len();
    let sum: f64 = shares.iter().map(|share| share.max(0.0)).sum();
    if sum <= 0.0 {
        return vec![0.0; models];
    }
    let scale = if sum < 1.0 { 1.0 / sum } else { 1.0 };
    let shares: Vec<f64> = shares.iter().map(|share| share.max(0.0) * scale).collect();
    let mut prices = vec![0.0; models];
    let mut least = dual(scores, &shares, &prices);
    let mut step = COARSEST;
    while step >= FINEST {
        while let Some((better, value)) = best_move(scores, &shares, &prices, step).filter(|b| b.1 < least - LEAST_GAIN)
        {
            (prices, least) = (better, value);
        }
        step /= 2.0;
    }
    let lowest = prices.iter().copied().fold(f64::INFINITY, f64::min);
    prices.iter().map(|price| price - lowest).collect()
}

/// Models up to which all sets of prices are moved.
pub const SETS_MAX: usize = 10;

fn best_move(scores: &Scores, shares: &[f64], prices: &[f64], step: f64) -> Option<(Vec<f64>, f64)> {
    let models = prices.len();
    let singles_and_all = (0..models.min(63)).map(|m| 1_u64 << m).chain(std::iter::once(u64::MAX));
    let sets: Vec<u64> = if models <= SETS_MAX { (1..1_u64 << models).collect() } else { singles_and_all.collect() };
    let moved = |set: u64, by: f64| -> Vec<f64> {
        let moved_price =
            |(m, price): (usize, &f64)| if set >> m.min(63) & 1 == 1 { (price + by).max(0.0) } else { *price };
        prices.iter().enumerate().map(moved_price).collect()
    };
    let moves = sets.iter().flat_map(|set| [moved(*set, step), moved(*set, -step)]);
    moves.map(|p| (dual(scores, shares, &p), p)).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(value, p)| (p, value))
}

/// `g`.
fn dual(scores: &Scores, shares: &[f64], prices: &[f64]) -> f64 {
    scores.gain(prices) + shares.iter().zip(prices).map(|(share, price)| share * price).sum::<f64>()
}

/// The best mean score with at most these shares of the prompts per model, one prompt in several parts if need be: the least `g`.
pub fn best_score(scores: &Scores, shares: &[f64]) -> f64 {
    dual(scores, shares, &prices(scores, shares))
}

#[cfg(test)]
mod tests {
    use super::*;
    use routebalance_core::random::Random;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// The best total quality over all ways to give every prompt a model with at most so many prompts each.
    fn brute_force(quality: &[Vec<f64>], counts: &[usize]) -> f64 {
        let Some((row, rest)) = quality.split_first() else { return 0.0 };
        let mut best = f64::NEG_INFINITY;
        for m in 0..counts.len() {
            if counts[m] > 0 {
                let mut left = counts.to_vec();
                left[m] -= 1;
                best = best.max(row[m] + brute_force(rest, &left));
            }
        }
        best
    }

    #[test]
    fn the_dual_of_small_problems_is_their_best_total() {
        let mut random = Random::new(5);
        for case in 0..40 {
            let models = 2 + random.below(3);
            let prompts = 3 + random.below(5);
            // Coarse qualities make ties, and models that are alike make sets of prices move together.
            let row = |random: &mut Random| (0..models).map(|_| (random.uniform() * 5.0).round() / 5.0).collect();
            let quality: Vec<Vec<f64>> = (0..prompts).map(|_| row(&mut random)).collect();
            let mut counts: Vec<usize> = (0..models).map(|_| random.below(3)).collect();
            counts[0] += prompts.saturating_sub(counts.iter().sum());
            let shares: Vec<f64> = counts.iter().map(|c| *c as f64 / prompts as f64).collect();
            let scores = Scores::new(models, quality.concat()).unwrap();
            let prices = prices(&scores, &shares);
            let best = brute_force(&quality, &counts) / prompts as f64;
            let value = dual(&scores, &shares, &prices);
            assert!((value - best).abs() < 1e-5, "case {case}: {value} {best}, {quality:?} {counts:?} {prices:?}");
            let least = prices.iter().copied().fold(f64::INFINITY, f64::min);
            assert_eq!(least, 0.0, "case {case}");
        }
    }

    #[test]
    fn a_price_is_paid_only_for_what_is_scarce() {
        let mut random = Random::new(6);
        let mut row = || {
            let base = random.uniform();
            vec![base * 0.5, base * 0.7 + 0.1 * random.uniform(), base * 0.8 + 0.2 * random.uniform()]
        };
        let quality: Vec<Vec<f64>> = (0..2_000).map(|_| row()).collect();
        let scores = Scores::new(3, quality.concat()).unwrap();
        assert_eq!(prices(&scores, &[0.0, 0.0, 0.0]), [0.0; 3], "no share at all");
        let choices = |prices: &[f64]| -> Vec<f64> {
            let mut counts = vec![0.0; 3];
            for row in &quality {
                let gain = |m: usize| row[m] - prices[m];
                let best = (0..3).max_by(|a, b| gain(*a).total_cmp(&gain(*b))).unwrap();
                counts[best] += 1.0 / 2_000.0;
            }
            counts
        };
        for (name, shares) in [
            ("the best is scarce", [1.0, 1.0, 0.3]),
            ("two are scarce", [1.0, 0.3, 0.3]),
            ("nothing is left over", [0.4, 0.3, 0.3]),
            ("too little for all: scaled up", [0.2, 0.15, 0.15]),
            ("plenty", [1.0, 1.0, 1.0]),
            ("nothing of the best", [1.0, 1.0, 0.0]),
        ] {
            let prices = prices(&scores, &shares);
            let scale = (1.0 / shares.iter().sum::<f64>()).max(1.0);
            for (m, used) in choices(&prices).iter().enumerate() {
                let room = shares[m] * scale - used;
                assert!(room > -2e-3, "{name}: model {m} is used {used}, {prices:?}");
                assert!(prices[m] == 0.0 || room < 2e-3, "{name}: model {m} costs {} with room {room}", prices[m]);
            }
        }
    }
}
