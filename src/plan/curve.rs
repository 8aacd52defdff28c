//! What a share of the requests at one model adds to each limit.
//!
//! A mean over all requests is `sum_i x_i * l_i(rate * x_i)` with the shares `x` and each model's latency `l` by its own rate
//! (RouterWise; PUBLISHED.md, section 15). The share of requests that are later than a limit has the same form, with the fraction of late
//! ones for `l`; so a limit of a quantile is a limit of that. `l` is piecewise linear between the points of a profile; below the first
//! point it is that point's, since nothing tells how much less it is.
//!
//! A copy that is slowed down by a factor `f` behaves at a rate `r` as one that is not does at `f * r`, with all times longer by `f`
//! but for their fixed part.

use super::problem::{Beyond, Limit, Metric, Statistic};
use super::profile::{Point, Profile, QUANTILES, Times};

/// `h(x) = linear * x + square * x^2` on a piece of shares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Quadratic {
    linear: f64,
    square: f64,
}

/// What a share at one model adds to each limit, in units of the limit: 1 is all that there is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Term {
    limits: usize,
    /// Ends of the pieces; the first one begins at 0.
    ends: Vec<f64>,
    /// By piece, then by limit.
    pieces: Vec<Quadratic>,
}

/// What a model's copies are and get.
#[derive(Clone, Copy, Debug)]
pub(super) struct Served<'a> {
    pub(super) profile: &'a Profile,
    pub(super) replicas: u32,
    /// At least 1.
    pub(super) slow_down: f64,
    /// Requests per second, of all models together.
    pub(super) rate: f64,
}

impl Served<'_> {
    /// The share of the requests at which the copies are at a rate of the profile.
    fn share_at(&self, rate: f64) -> f64 {
        rate * f64::from(self.replicas) / (self.rate * self.slow_down)
    }

    /// The rate of the profile at which the copies are with a share.
    fn profile_rate(&self, share: f64) -> f64 {
        share * self.rate * self.slow_down / f64::from(self.replicas.max(1))
    }

    /// Share of the time for which a copy has work: none without requests, on a line up to the first point.
    pub(super) fn busy(&self, share: f64) -> f64 {
        let rate = self.profile_rate(share);
        let busy = interpolate(&self.profile.points, rate, |p| p.busy).clamp(0.0, 1.0);
        match self.profile.points.first() {
            Some(first) if rate < first.rate => busy * rate / first.rate,
            _ => busy,
        }
    }

    /// The mean of a time, milliseconds.
    pub(super) fn mean_ms(&self, share: f64, metric: Metric) -> f64 {
        let ms = interpolate(&self.profile.points, self.profile_rate(share), |p| times(p, metric).mean_ms);
        self.slowed(ms, metric)
    }

    /// A time of the profile for copies that are slowed down.
    fn slowed(&self, milliseconds: f64, metric: Metric) -> f64 {
        let fixed_ms = self.fixed_ms(metric);
        fixed_ms + (milliseconds - fixed_ms) * self.slow_down
    }

    /// The time of the profile that comes to so many milliseconds for copies that are slowed down.
    fn unslowed(&self, milliseconds: f64, metric: Metric) -> f64 {
        let fixed_ms = self.fixed_ms(metric);
        fixed_ms + (milliseconds - fixed_ms) / self.slow_down
    }

    fn fixed_ms(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Ttft | Metric::E2e => self.profile.fixed_ms,
            Metric::Tpot => 0.0,
        }
    }

    /// The fraction of requests that are later than so many milliseconds.
    pub(super) fn late(&self, share: f64, metric: Metric, milliseconds: f64) -> f64 {
        let late_fraction = |p: &Point| later_than(times(p, metric), self.unslowed(milliseconds, metric));
        interpolate(&self.profile.points, self.profile_rate(share), late_fraction).min(1.0)
    }
}

fn times(point: &Point, metric: Metric) -> &Times {
    match metric {
        Metric::Ttft => &point.ttft,
        Metric::Tpot => &point.tpot,
        Metric::E2e => &point.e2e,
    }
}

/// A value between the points; that of the first below it, and the last two's line beyond.
fn interpolate(points: &[Point], rate: f64, value: impl Fn(&Point) -> f64) -> f64 {
    let Some(first) = points.first() else { return 0.0 };
    if rate <= first.rate {
        return value(first);
    }
    let next = points.partition_point(|p| p.rate < rate).clamp(1, points.len().saturating_sub(1).max(1));
    let (Some(from), Some(to)) = (points.get(next.saturating_sub(1)), points.get(next)) else { return value(first) };
    let width = to.rate - from.rate;
    if width <= 0.0 {
        return value(to);
    }
    value(from) + (value(to) - value(from)) * (rate - from.rate) / width
}

/// The fraction of requests with a longer time, by its quantiles: linear from 1 at 0 to the median, then the logarithm of the
/// fraction is linear between quantiles, and goes on so beyond the last. 1 or 0 by the mean where there are none.
fn later_than(times: &Times, milliseconds: f64) -> f64 {
    let Some(quantiles) = times.quantiles_ms else { return if times.mean_ms > milliseconds { 1.0 } else { 0.0 } };
    let mut points = QUANTILES.iter().map(|q| 1.0 - q).zip(quantiles);
    let Some(mut before) = points.next() else { return 0.0 };
    if milliseconds < before.1 {
        return 1.0 - (1.0 - before.0) * milliseconds.max(0.0) / before.1;
    }
    // The fraction falls by a factor of e in so many milliseconds.
    let mut scale = 0.0;
    for (fraction, at) in points {
        scale = (at - before.1) / (before.0 / fraction).ln();
        if milliseconds < at {
            break;
        }
        before = (fraction, at);
    }
    if scale > 0.0 { before.0 * (-(milliseconds - before.1) / scale).exp() } else { 0.0 }
}

/// What a limit bounds: the mean in its units, or the fraction of late requests.
fn bounded(point: &Point, limit: &Limit, served: &Served<'_>) -> f64 {
    let times = times(point, limit.metric);
    match limit.statistic {
        Statistic::Mean => served.slowed(times.mean_ms, limit.metric) / limit.milliseconds,
        Statistic::Quantile(q) => later_than(times, served.unslowed(limit.milliseconds, limit.metric)) / (1.0 - q),
    }
}

impl Term {
    /// A model that serves nothing.
    pub(super) fn none(limits: usize) -> Term {
        Term { limits, ends: Vec::new(), pieces: Vec::new() }
    }

    /// What copies add to the limits.
    pub(super) fn new(served: &Served<'_>, limits: &[Limit], beyond: Beyond) -> Term {
        let mut term = Term::none(limits.len());
        // Shares and values at the points, values never falling: interpolated tails may cross.
        let mut before: Option<(f64, Vec<f64>)> = None;
        for point in &served.profile.points {
            let share = served.share_at(point.rate);
            let value = |limit: &Limit| bounded(point, limit, served);
            let mut values: Vec<f64> = limits.iter().map(value).collect();
            match &before {
                None => term.add(share, values.iter().map(|v| Quadratic { linear: *v, square: 0.0 })),
                Some((from, lower)) => {
                    values.iter_mut().zip(lower).for_each(|(v, low)| *v = v.max(*low));
                    let line = |(v, low): (&f64, &f64)| Quadratic::on_a_line((*from, *low), (share, *v));
                    term.add(share, values.iter().zip(lower).map(line));
                }
            }
            before = Some((share, values));
        }
        if beyond == Beyond::LastSlope {
            let last = term.pieces.len().saturating_sub(limits.len());
            let further = term.pieces.get(last..).map(<[Quadratic]>::to_vec).unwrap_or_default();
            term.add(1.0, further.into_iter());
        }
        term
    }

    /// Adds a piece, cut at a share of 1.
    fn add(&mut self, end: f64, piece: impl Iterator<Item = Quadratic>) {
        let from = self.share_max();
        if from < 1.0 && end > from {
            self.ends.push(end.min(1.0));
            self.pieces.extend(piece);
        }
    }

    /// The largest share that the profile tells of.
    pub(super) fn share_max(&self) -> f64 {
        self.ends.last().copied().unwrap_or(0.0)
    }

    fn pieces(&self) -> impl Iterator<Item = (f64, f64, &[Quadratic])> {
        let starts = std::iter::once(0.0).chain(self.ends.iter().copied());
        // Without limits there is nothing to add up, but shares have an end.
        let pieces = (0..self.ends.len()).map(|p| {
            let from = p.saturating_mul(self.limits);
            self.pieces.get(from..from.saturating_add(self.limits)).unwrap_or_default()
        });
        starts.zip(self.ends.iter().copied()).zip(pieces).map(|((from, to), piece)| (from, to, piece))
    }

    /// What a share adds to each limit; the last piece goes on beyond its end.
    pub(super) fn additions(&self, share: f64, into: &mut Vec<f64>) {
        into.clear();
        let piece = self.ends.partition_point(|end| *end < share).min(self.ends.len().saturating_sub(1));
        let from = piece.saturating_mul(self.limits);
        let piece = self.pieces.get(from..from.saturating_add(self.limits)).unwrap_or_default();
        into.extend(piece.iter().map(|h| share * (h.linear + h.square * share)));
        into.resize(self.limits, 0.0);
    }

    /// The share within bounds at which `price * x - sum_k multipliers_k * h_k(x)` is highest, and that value.
    pub(super) fn best_share(&self, price: f64, multipliers: &[f64], (least, most): (f64, f64)) -> (f64, f64) {
        let mut best = (least, f64::NEG_INFINITY);
        for (from, to, piece) in self.pieces() {
            let (from, to) = (from.max(least), to.min(most));
            if from > to {
                continue;
            }
            let (mut linear, mut square) = (price, 0.0);
            for (h, multiplier) in piece.iter().zip(multipliers) {
                linear -= multiplier * h.linear;
                square -= multiplier * h.square;
            }
            let value = |x: f64| x * (linear + square * x);
            let top = if square < 0.0 { (-0.5 * linear / square).clamp(from, to) } else { to };
            for x in [from, top] {
                if value(x) > best.1 {
                    best = (x, value(x));
                }
            }
        }
        if best.1 == f64::NEG_INFINITY { (least, 0.0) } else { best }
    }
}

impl Quadratic {
    /// `x * l(x)` for a line `l` through two points.
    fn on_a_line((from, low): (f64, f64), (to, high): (f64, f64)) -> Quadratic {
        let slope = if to > from { (high - low) / (to - from) } else { 0.0 };
        Quadratic { linear: low - slope * from, square: slope }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// 110 ms at 10 per second and 210 ms at 20, of which 10 ms are no GPU's.
    fn profile() -> Profile {
        let point = |rate: f64, busy: f64, ms: f64| {
            let times = Times { mean_ms: ms, quantiles_ms: Some([0.5, 1.0, 2.0, 3.0, 4.0].map(|q| q * ms)) };
            Point { rate, busy, ttft: times, tpot: times, e2e: times }
        };
        let points = vec![point(10.0, 0.4, 110.0), point(20.0, 0.8, 210.0)];
        Profile { model: 0, kind: 0, tensor_parallel: 1, share_percent: 100, fixed_ms: 10.0, points }
    }

    /// Of 40 requests per second.
    #[test]
    fn a_share_is_a_rate_of_the_profile() {
        let profile = profile();
        let limits = [
            Limit { metric: Metric::Ttft, statistic: Statistic::Mean, milliseconds: 1_000.0 },
            Limit { metric: Metric::Ttft, statistic: Statistic::Quantile(0.95), milliseconds: 330.0 },
        ];
        // Replicas, slow-down, share; the profile's rate there; busy, mean ms.
        for (replicas, slow_down, share, busy, ms) in [
            (1, 1.0, 0.0, 0.0, 110.0),
            (1, 1.0, 0.125, 0.2, 110.0),
            (1, 1.0, 0.25, 0.4, 110.0),
            (1, 1.0, 0.375, 0.6, 160.0),
            (2, 1.0, 0.75, 0.6, 160.0),
            // Half as slow again: at 10 per second it is as busy as it would be at 15, and 10 ms stay what they are.
            (1, 1.5, 0.25, 0.6, 10.0 + 1.5 * 150.0),
            (1, 1.0, 0.5, 0.8, 210.0),
        ] {
            let served = Served { profile: &profile, replicas, slow_down, rate: 40.0 };
            let term = Term::new(&served, &limits, Beyond::Never);
            let mut of = Vec::new();
            term.additions(share, &mut of);
            let case = format!("{replicas} {slow_down} {share}");
            assert!((served.busy(share) - busy).abs() < 1e-12, "{case}: {}", served.busy(share));
            assert!((served.mean_ms(share, Metric::Ttft) - ms).abs() < 1e-9, "{case}");
            assert!((of[0] - share * ms / 1_000.0).abs() < 1e-12, "{case}: {of:?}");
        }
        let served = Served { profile: &profile, replicas: 1, slow_down: 1.0, rate: 40.0 };
        // 3 * 110 ms is the P95 at 10 per second; at 20 per second 330 ms lie between the P75 and the P90, on a logarithmic line.
        let late = served.late(0.25, Metric::Ttft, 330.0);
        assert!((late - 0.05).abs() < 1e-12, "{late}");
        let part = (330.0 - 210.0) / 210.0;
        let later = 0.25_f64.powf(1.0 - part) * 0.1_f64.powf(part);
        assert!((served.late(0.5, Metric::Ttft, 330.0) - later).abs() < 1e-12);
        let mut of = Vec::new();
        Term::new(&served, &limits, Beyond::Never).additions(0.5, &mut of);
        assert!((of[1] - 0.5 * later / 0.05).abs() < 1e-9, "{of:?}");
    }

    #[test]
    fn shares_end_where_the_profile_does_or_go_on() {
        let profile = profile();
        let limit = [Limit { metric: Metric::Ttft, statistic: Statistic::Mean, milliseconds: 1_000.0 }];
        let served = Served { profile: &profile, replicas: 1, slow_down: 1.0, rate: 40.0 };
        assert_eq!(Term::new(&served, &limit, Beyond::Never).share_max(), 0.5);
        let term = Term::new(&served, &limit, Beyond::LastSlope);
        assert_eq!(term.share_max(), 1.0);
        let mut of = Vec::new();
        term.additions(0.75, &mut of);
        assert!((of[0] - 0.75 * 0.31).abs() < 1e-12, "{of:?}");
        assert_eq!(Term::none(1).share_max(), 0.0);
        // At a price of 1 and a multiplier of 4, 1 - 4 (h)' = 0 where 4 (2 * 0.4 x + 0.01) = 1.
        let (share, worth) = term.best_share(1.0, &[4.0], (0.0, 1.0));
        assert!((share - 0.3).abs() < 1e-9 && (worth - 0.144).abs() < 1e-9, "{share} {worth}");
        assert_eq!(term.best_share(1.0, &[4.0], (0.0, 0.2)).0, 0.2);
    }
}
