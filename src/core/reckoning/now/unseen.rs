//! What other gateways have done since the last reports.
//!
//! All gateways see the same reports and would all send to the instance that looked idle in the last one, until the next shows
//! the herd. So the requests that others have sent since are reckoned, too: as many as have ended, since a pool's load changes
//! little between two reports, and to the instances with the least load, filled up to a common level, since the others look for
//! the least load as well. This is how Dahlin reads old loads (2000, *Interpreting Stale Load Information*). Which of them each
//! instance has got is drawn from a Poisson distribution, so that gateways differ where they cannot know better.

use super::Seen;
use crate::fleet::InstanceId;
use crate::random;

/// Turns over the requests of others on the instances of a pool. `share_left` says which share of them has not ended since the
/// report.
pub(super) fn turn_over(
    instances: &[InstanceId],
    seen: &[Seen],
    foreign: &mut [f64],
    share_left: impl Fn(&Seen) -> f64,
    draw: f64,
) {
    let mut arrived = 0.0;
    let mut levels: Vec<(usize, f64)> = Vec::with_capacity(instances.len());
    for i in instances.iter().map(|instance| instance.index()) {
        let (Some(seen), Some(foreign)) = (seen.get(i), foreign.get_mut(i)) else { continue };
        if seen.unreachable {
            continue;
        }
        let left = *foreign * share_left(seen);
        arrived += *foreign - left;
        *foreign = left;
        levels.push((i, seen.own + left));
    }
    let level = water_level(&levels, arrived);
    for (i, load) in levels {
        let expected = level - load;
        if expected > 0.0
            && let Some(foreign) = foreign.get_mut(i)
        {
            *foreign += poisson(expected, random::split(draw, i));
        }
    }
}

/// The level that this much on top of the lowest loads fills them up to.
fn water_level(loads: &[(usize, f64)], amount: f64) -> f64 {
    let mut level = f64::INFINITY;
    let mut below = usize::MAX;
    loop {
        let (sum, count) =
            loads.iter().filter(|(_, load)| *load < level).fold((0.0, 0), |(sum, n), (_, load)| (sum + load, n + 1));
        // The lowest load stays below every level, unless nothing arrives.
        if count == 0 || count >= below {
            return level;
        }
        below = count;
        level = (sum + amount) / count as f64;
    }
}

/// A number drawn from the Poisson distribution by inversion of a uniform one.
fn poisson(mean: f64, uniform: f64) -> f64 {
    // Beyond, a draw differs little from the mean.
    const MEAN_MAX: f64 = 50.0;
    if mean > MEAN_MAX {
        return mean;
    }
    let mut term = (-mean).exp();
    let mut sum = term;
    let mut n = 0.0;
    while uniform > sum && n < 4.0 * MEAN_MAX {
        n += 1.0;
        term *= mean / n;
        sum += term;
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn the_lowest_are_filled_first() {
        let rows: [(&[f64], f64, f64); 6] = [
            (&[2.0, 5.0], 1.0, 3.0),
            (&[2.0, 5.0], 3.0, 5.0),
            (&[2.0, 5.0], 5.0, 6.0),
            (&[1.0, 2.0, 9.0], 3.0, 3.0),
            (&[4.0, 4.0], 0.0, 4.0),
            (&[], 3.0, f64::INFINITY),
        ];
        for (loads, amount, expected) in rows {
            let loads: Vec<(usize, f64)> = loads.iter().copied().enumerate().collect();
            assert_eq!(water_level(&loads, amount), expected, "{loads:?} and {amount}");
        }
    }

    #[test]
    fn draws_have_their_mean_and_differ_between_instances() {
        for mean in [0.1, 1.0, 7.0] {
            let draws: Vec<f64> = (0..10_000).map(|i| poisson(mean, random::split(0.3, i))).collect();
            let m = draws.iter().sum::<f64>() / 1e4;
            let variance = draws.iter().map(|d| (d - m).powi(2)).sum::<f64>() / 1e4;
            assert!((m / mean - 1.0).abs() < 0.1 && (variance / mean - 1.0).abs() < 0.1, "{mean}: {m}, {variance}");
        }
        assert_eq!(poisson(80.0, 0.999), 80.0);
    }

    /// What others hold in all stays what it was on average; only who holds it is less and less known.
    #[test]
    fn requests_of_others_move_to_where_there_is_room() {
        let seen = [2.0, 2.0, 2.0].map(|own| Seen { own, ..Seen::default() });
        let mut mean = [0.0; 3];
        const DRAWS: usize = 2_000;
        for i in 0..DRAWS {
            let mut foreign = [9.0, 3.0, 0.0];
            let instances = [0, 1, 2].map(InstanceId::new);
            turn_over(&instances, &seen, &mut foreign, |_| 0.5, (i as f64 + 0.5) / DRAWS as f64);
            mean.iter_mut().zip(foreign).for_each(|(m, f)| *m += f / DRAWS as f64);
        }
        // 6 of 12 have ended; what is left of 4.5, 1.5 and 0 is filled up to 4.
        for (mean, expected) in mean.iter().zip([4.5, 3.75, 3.75]) {
            assert!((mean - expected).abs() < 0.15, "{mean:?} is not about {expected}");
        }
    }
}
