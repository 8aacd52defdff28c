//! When requests come.

use std::time::Duration;

use routebalance_core::random::Random;

/// How requests come.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// In even gaps.
    Constant {
        /// Requests per second.
        rate: f64,
    },
    /// Independent of each other.
    Poisson {
        /// Requests per second.
        rate: f64,
    },
    /// Gaps are gamma distributed: in bursts for a shape below 1, more even than Poisson above.
    Gamma {
        /// Requests per second.
        rate: f64,
        /// Shape of the gaps; their squared coefficient of variation is its inverse.
        shape: f64,
    },
    /// Poisson at a rate that changes linearly from the beginning to the end.
    Ramp {
        /// Requests per second at the beginning.
        from: f64,
        /// Requests per second at the end.
        to: f64,
    },
    /// Poisson at two rates in turn, beginning with the high one. A phase is over when as many requests have come as its rate
    /// times `hold` says (RouteBalance: 30 requests times the rate; PUBLISHED.md, section 12).
    Square {
        /// Requests per second in the first phase.
        high: f64,
        /// Requests per second in the second phase.
        low: f64,
        /// How long a phase lasts on average.
        hold: Duration,
    },
    /// At these times, in order.
    Given(Vec<Duration>),
}

impl Arrivals {
    /// How long the published square waves hold a rate.
    pub const PUBLISHED_HOLD: Duration = Duration::from_secs(30);

    /// Times of the requests until `end`, in order.
    pub fn times(&self, end: Duration, seed: u64) -> Vec<Duration> {
        Course::new(self, end.as_secs_f64(), seed).take_while(|at| *at < end).collect()
    }

    /// Times of exactly `n` requests, in order; fewer only if that many never come. A ramp reaches its end with them.
    pub fn times_of(&self, n: usize, seed: u64) -> Vec<Duration> {
        if let Arrivals::Ramp { .. } = self {
            return self.ramp_of(n, seed);
        }
        Course::new(self, 0.0, seed).take(n).collect()
    }

    /// Of a Poisson process of which the number of events is known, events are spread as that many independent draws would be.
    fn ramp_of(&self, n: usize, seed: u64) -> Vec<Duration> {
        let span = n as f64 / self.mean_rate();
        let mut random = Random::for_use(seed, 2);
        let mut sum = 0.0;
        let mut work = Vec::with_capacity(n);
        for _ in 0..n {
            sum += random.exponential(1.0);
            work.push(sum);
        }
        let all = sum + random.exponential(1.0);
        let due_at = |work: &f64| Duration::try_from_secs_f64(self.ramp_at(work / all * n as f64, span)).ok();
        work.iter().filter_map(due_at).collect()
    }

    /// When so many requests are due, of a ramp that takes `span` seconds.
    fn ramp_at(&self, due: f64, span: f64) -> f64 {
        let Arrivals::Ramp { from, to } = self else { return f64::INFINITY };
        let all = (from + to) / 2.0 * span;
        if due >= all {
            return span + (due - all) / to;
        }
        // due = from t + (to - from) / (2 span) t^2
        2.0 * due / (from + (from * from + 2.0 * (to - from) * due / span).max(0.0).sqrt())
    }

    /// Requests per second, mean over a long time; 0 for fewer than two given times.
    pub fn mean_rate(&self) -> f64 {
        match self {
            Arrivals::Constant { rate } | Arrivals::Poisson { rate } | Arrivals::Gamma { rate, .. } => *rate,
            Arrivals::Ramp { from, to } => (from + to) / 2.0,
            Arrivals::Square { high, low, .. } => (high + low) / 2.0,
            Arrivals::Given(times) => match (times.first(), times.last()) {
                (Some(first), Some(last)) if first < last => {
                    (times.len() - 1) as f64 / last.saturating_sub(*first).as_secs_f64()
                }
                _ => 0.0,
            },
        }
    }

    /// The same course at another mean rate; given times are moved together or apart. Nothing changes where there is no rate.
    #[must_use]
    pub fn at_mean_rate(&self, rate: f64) -> Arrivals {
        let factor = rate / self.mean_rate();
        if !(factor.is_finite() && factor > 0.0) {
            return self.clone();
        }
        match self {
            Arrivals::Constant { .. } => Arrivals::Constant { rate },
            Arrivals::Poisson { .. } => Arrivals::Poisson { rate },
            Arrivals::Gamma { shape, .. } => Arrivals::Gamma { rate, shape: *shape },
            Arrivals::Ramp { from, to } => Arrivals::Ramp { from: from * factor, to: to * factor },
            Arrivals::Square { high, low, hold } => {
                Arrivals::Square { high: high * factor, low: low * factor, hold: *hold }
            }
            Arrivals::Given(times) => {
                let moved =
                    |at: &Duration| Duration::try_from_secs_f64(at.as_secs_f64() / factor).unwrap_or(Duration::MAX);
                Arrivals::Given(times.iter().map(moved).collect())
            }
        }
    }
}

/// The times of requests, one after the other.
struct Course<'a> {
    arrivals: &'a Arrivals,
    /// Seconds that a ramp takes.
    span: f64,
    random: Random,
    /// Seconds of the last request.
    at: f64,
    /// Requests before.
    requests: usize,
    /// Work that a ramp has done: the sum of exponential gaps at rate 1.
    work: f64,
    /// Whether the high phase of a wave goes on, and how many of its requests are to come.
    phase: (bool, u64),
}

impl Course<'_> {
    fn new(arrivals: &Arrivals, span: f64, seed: u64) -> Course<'_> {
        let random = Random::for_use(seed, 2);
        Course { arrivals, span, random, at: 0.0, requests: 0, work: 0.0, phase: (false, 0) }
    }

    /// Time to the next request of a square wave. A phase without any request takes its time.
    fn square_gap(&mut self, high: f64, low: f64, hold: f64) -> f64 {
        let mut pause = 0.0;
        // Two phases without a request in a row have none for ever.
        for _ in 0..3 {
            let (is_high, left) = self.phase;
            if let Some(left) = left.checked_sub(1) {
                self.phase = (is_high, left);
                return pause + self.random.exponential(1.0 / if is_high { high } else { low });
            }
            let next = if is_high { low } else { high };
            let requests = (next * hold).round().max(0.0) as u64;
            pause += if requests == 0 { hold } else { 0.0 };
            self.phase = (!is_high, requests);
        }
        f64::INFINITY
    }
}

impl Iterator for Course<'_> {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        match self.arrivals {
            Arrivals::Given(times) => {
                let at = times.get(self.requests).copied();
                self.requests += 1;
                return at;
            }
            Arrivals::Constant { rate } => self.at += 1.0 / rate,
            Arrivals::Poisson { rate } => self.at += self.random.exponential(1.0 / rate),
            Arrivals::Gamma { rate, shape } => self.at += self.random.gamma(*shape) / rate,
            Arrivals::Ramp { .. } => {
                self.work += self.random.exponential(1.0);
                self.at = self.arrivals.ramp_at(self.work, self.span);
            }
            Arrivals::Square { high, low, hold } => self.at += self.square_gap(*high, *low, hold.as_secs_f64()),
        }
        Duration::try_from_secs_f64(self.at).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const HOLD: Duration = Duration::from_secs(10);

    fn kinds() -> [(Arrivals, f64, f64); 8] {
        [
            (Arrivals::Constant { rate: 5.0 }, 5.0, 0.0),
            (Arrivals::Poisson { rate: 5.0 }, 5.0, 1.0),
            (Arrivals::Gamma { rate: 5.0, shape: 0.25 }, 5.0, 4.0),
            (Arrivals::Gamma { rate: 5.0, shape: 0.3 }, 5.0, 1.0 / 0.3),
            (Arrivals::Ramp { from: 2.0, to: 8.0 }, 5.0, f64::NAN),
            (Arrivals::Ramp { from: 10.0, to: 0.0 }, 5.0, f64::NAN),
            (Arrivals::Square { high: 8.0, low: 2.0, hold: HOLD }, 5.0, f64::NAN),
            (Arrivals::Square { high: 10.0, low: 0.0, hold: HOLD }, 5.0, f64::NAN),
        ]
    }

    #[test]
    fn requests_come_at_their_rate() {
        let end = Duration::from_secs(2_000);
        for (arrivals, rate, variation) in kinds() {
            assert_eq!(arrivals.mean_rate(), rate, "{arrivals:?}");
            for times in [arrivals.times(end, 1), arrivals.times_of(10_000, 1)] {
                assert!(times.is_sorted(), "{arrivals:?}");
                let n = times.len() as f64;
                let span = times.last().unwrap().as_secs_f64();
                assert!((n / span / rate - 1.0).abs() < 0.05, "{arrivals:?}: {n} in {span} s");
                let gaps: Vec<f64> = times.windows(2).map(|w| (w[1] - w[0]).as_secs_f64()).collect();
                let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
                let squared = gaps.iter().map(|g| (g / mean - 1.0).powi(2)).sum::<f64>() / gaps.len() as f64;
                let off = (squared - variation).abs();
                assert!(variation.is_nan() || off <= 0.15 * variation + 1e-9, "{arrivals:?}: {squared}");
            }
        }
        assert_eq!(Arrivals::Poisson { rate: 0.0 }.times(end, 1), []);
        assert_eq!(Arrivals::Square { high: 0.0, low: 0.0, hold: HOLD }.times_of(5, 1), []);
    }

    #[test]
    fn exactly_so_many_come_and_a_seed_says_when() {
        for (arrivals, _, _) in kinds() {
            for n in [0, 1, 2, 3_534] {
                let times = arrivals.times_of(n, 7);
                assert_eq!(times.len(), n, "{arrivals:?}");
                assert_eq!(times, arrivals.times_of(n, 7), "{arrivals:?}");
                let even = matches!(arrivals, Arrivals::Constant { .. });
                assert_eq!(times == arrivals.times_of(n, 8), n == 0 || even, "{arrivals:?}");
            }
        }
        let given = Arrivals::Given([1, 2, 3].map(Duration::from_secs).to_vec());
        assert_eq!(given.times_of(2, 1), [1, 2].map(Duration::from_secs));
        assert_eq!(given.times(Duration::from_secs(3), 1), [1, 2].map(Duration::from_secs));
    }

    /// In each quarter of a ramp as many as its mean rate there says.
    #[test]
    fn a_ramp_is_linear() {
        for (from, to) in [(6.0, 30.0), (30.0, 6.0), (0.0, 20.0)] {
            let ramp = Arrivals::Ramp { from, to };
            let n = 40_000;
            let span = n as f64 / ramp.mean_rate();
            for times in [ramp.times_of(n, 3), ramp.times(Duration::from_secs_f64(span), 4)] {
                for quarter in 0..4 {
                    let (begin, middle) = (span * quarter as f64 / 4.0, (quarter as f64 + 0.5) / 4.0);
                    let is_in = |at: &&Duration| (begin..begin + span / 4.0).contains(&at.as_secs_f64());
                    let expected = (from + (to - from) * middle) * span / 4.0;
                    let come = times.iter().filter(is_in).count() as f64;
                    assert!(
                        (come / expected - 1.0).abs() < 0.05,
                        "{ramp:?}, quarter {quarter}: {come}, not {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_wave_counts_its_requests() {
        for (high, low) in [(30.0, 6.0), (40.0, 6.0)] {
            let wave = Arrivals::Square { high, low, hold: Arrivals::PUBLISHED_HOLD };
            let times = wave.times_of(6 * 30 * (high + low) as usize, 2);
            let mut begin = Duration::ZERO;
            let mut rest = times.as_slice();
            for phase in 0..12 {
                let rate = if phase % 2 == 0 { high } else { low };
                let (of_phase, later) = rest.split_at(30 * rate as usize);
                let end = *of_phase.last().unwrap();
                let measured = of_phase.len() as f64 / (end - begin).as_secs_f64();
                // Three standard deviations of so many exponential gaps.
                let bound = 3.0 / (of_phase.len() as f64).sqrt();
                assert!((measured / rate - 1.0).abs() < bound, "{wave:?}, phase {phase}: {measured} per second");
                (begin, rest) = (end, later);
            }
            assert_eq!(rest, []);
        }
        let busy = Arrivals::Square { high: 10.0, low: 0.0, hold: HOLD }.times_of(200, 1);
        assert!(busy[100] - busy[99] > HOLD, "nothing comes in the low phase");
    }

    #[test]
    fn a_course_keeps_its_shape_at_another_rate() {
        for (arrivals, _, _) in kinds() {
            let faster = arrivals.at_mean_rate(20.0);
            assert!((faster.mean_rate() - 20.0).abs() < 1e-9, "{faster:?}");
            if !matches!(arrivals, Arrivals::Square { .. }) {
                let (slow, fast) = (arrivals.times_of(500, 1), faster.times_of(500, 1));
                let off = |(slow, fast): (&Duration, &Duration)| (slow.as_secs_f64() - 4.0 * fast.as_secs_f64()).abs();
                assert!(slow.iter().zip(&fast).map(off).all(|seconds| seconds < 1e-6), "{arrivals:?}");
            }
        }
        let given = Arrivals::Given([0, 2, 4].map(Duration::from_secs).to_vec());
        let halved = given.at_mean_rate(1.0);
        assert_eq!(halved, Arrivals::Given([0, 1, 2].map(Duration::from_secs).to_vec()));
        let alone = Arrivals::Given(vec![Duration::from_secs(3)]);
        assert_eq!(alone.at_mean_rate(5.0), alone);
    }
}
