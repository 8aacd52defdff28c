//! The filters of RouteBalance and those that it was compared with, as published (PUBLISHED.md, section 10), for the lab's
//! contenders. The gateway's own is [`admission`](routebalance_core::admission).
//!
//! Two things differ by necessity. The probability of a length comes from this predictor's percentiles instead of the paper's
//! histogram, and quality is this predictor's.

use routebalance_core::admission::probability_within;
use routebalance_core::fleet::{Constraint, Mode, Tariff};
use routebalance_core::latency::Residuals;
use routebalance_core::predictor::Estimate;

/// Standard normal quantile of 95 %, as QLM's filter has it.
const QLM_Z: f64 = 1.645;
/// Probability with which the inline filter wants an answer to be within its budget.
const INLINE_LENGTH: f64 = 0.5;
/// Share of residuals that must keep an objective.
const THETA: f64 = 0.7;
/// How much less is wanted after a round.
const THETA_STEP: f64 = 0.1;
const ROUNDS: u32 = 3;

/// What a filter knows of an instance.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Predicted time to the first token.
    pub ttft_seconds: f64,
    /// Predicted time per output token.
    pub tpot_seconds: f64,
    /// Standard deviations of the two predictions, seconds.
    pub sd: (f64, f64),
    /// Residuals of the two predictions; `None` is what the published code has loaded.
    pub residuals: Option<(Residuals, Residuals)>,
    /// Quality and length.
    pub estimate: Estimate,
    /// Price of its tokens.
    pub tariff: Tariff,
    /// Price of its time, USD per second.
    pub usd_per_second: f64,
    /// Requests that run or wait.
    pub queue: f64,
}

/// What a request insists on.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Its prompt.
    pub prompt_tokens: f64,
    /// Its limit of output tokens.
    pub max_tokens: f64,
    /// Limit of the time to the first token.
    pub ttft_seconds: f64,
    /// Limit of the time per output token.
    pub tpot_seconds: f64,
    /// Output tokens that it may have.
    pub budget_tokens: Option<f64>,
    /// USD that it may cost.
    pub budget_usd: Option<f64>,
    /// Least quality.
    pub quality_min: f64,
}

/// The published defaults: 10 s, 200 ms, 256 tokens, no least quality.
impl Default for Demand {
    fn default() -> Self {
        Demand {
            prompt_tokens: 0.0,
            max_tokens: 1024.0,
            ttft_seconds: 10.0,
            tpot_seconds: 0.2,
            budget_tokens: Some(256.0),
            budget_usd: None,
            quality_min: 0.0,
        }
    }
}

/// A published filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// All pass: every headline run.
    Off,
    /// The one built in (PUBLISHED.md, section 10.1).
    Inline(Mode),
    /// "route_balance_tiered" (PUBLISHED.md, section 10.2), which relaxes probabilities.
    Tiered,
    /// Both times within their limits.
    SlosServe,
    /// The whole time within the whole limit.
    PolyServe,
    /// Both times within their limits with 95 % by a normal distribution.
    Qlm,
    /// The price of the time that it takes within the budget.
    TimeBill,
}

impl Filter {
    /// Positions of the offers among which the score decides.
    pub fn pass(self, offers: &[Offer], demand: &Demand) -> Vec<usize> {
        let chosen = |accepts: &dyn Fn(&Offer) -> bool| -> Vec<usize> {
            offers.iter().enumerate().filter(|(_, offer)| accepts(offer)).map(|(i, _)| i).collect()
        };
        let passed = match self {
            Filter::Off => chosen(&|_| true),
            Filter::Inline(mode) => return inline(mode, offers, demand),
            Filter::Tiered => tiered(offers, demand),
            Filter::SlosServe => {
                chosen(&|o| o.ttft_seconds <= demand.ttft_seconds && o.tpot_seconds <= demand.tpot_seconds)
            }
            Filter::PolyServe => chosen(&|o| o.seconds() <= demand.ttft_seconds + o.tokens() * demand.tpot_seconds),
            Filter::Qlm => chosen(&|o| {
                o.ttft_seconds + QLM_Z * o.sd.0 <= demand.ttft_seconds
                    && o.tpot_seconds + QLM_Z * o.sd.1 <= demand.tpot_seconds
            }),
            Filter::TimeBill => {
                chosen(&|o| demand.budget_usd.is_none_or(|budget| o.seconds() * o.usd_per_second <= budget))
            }
        };
        if passed.is_empty() { fallback(offers, demand) } else { passed }
    }
}

impl Offer {
    fn tokens(&self) -> f64 {
        self.estimate.output_tokens
    }

    /// `TTFT + N TPOT`.
    fn seconds(&self) -> f64 {
        self.ttft_seconds + self.tokens() * self.tpot_seconds
    }

    /// USD of so many output tokens after the prompt.
    fn usd(&self, demand: &Demand, output_tokens: f64) -> f64 {
        demand.prompt_tokens * self.tariff.usd_per_input_token + output_tokens * self.tariff.usd_per_output_token
    }
}

/// What the caller does where a filter leaves nobody: with a budget the instance of the smallest worst-case cost, else all.
fn fallback(offers: &[Offer], demand: &Demand) -> Vec<usize> {
    if demand.budget_usd.is_none() {
        return (0..offers.len()).collect();
    }
    let worst = |offer: &Offer| offer.usd(demand, demand.max_tokens);
    least(offers, worst)
}

/// The first of those with the least of something.
fn least(offers: &[Offer], of: impl Fn(&Offer) -> f64) -> Vec<usize> {
    let best = offers.iter().enumerate().min_by(|(_, a), (_, b)| of(a).total_cmp(&of(b)));
    best.map(|(i, _)| i).into_iter().collect()
}

fn inline(mode: Mode, offers: &[Offer], demand: &Demand) -> Vec<usize> {
    let keeps = |offer: &Offer, constraint: Constraint| match constraint {
        Constraint::Ttft => offer.ttft_seconds <= demand.ttft_seconds,
        Constraint::Tpot => offer.tpot_seconds <= demand.tpot_seconds,
        Constraint::Quality => offer.estimate.quality >= demand.quality_min,
        Constraint::Budget => {
            // A budget in USD gives one in tokens by the price of a token.
            let for_usd = demand.budget_usd.map(|usd| usd / offer.tariff.usd_per_output_token);
            let tokens = [for_usd, demand.budget_tokens].into_iter().flatten().reduce(f64::min);
            tokens.is_none_or(|tokens| probability_within(&offer.estimate, tokens) >= INLINE_LENGTH)
        }
    };
    let passing = |active: &[Constraint]| -> Vec<usize> {
        let kept = offers.iter().enumerate().filter(|(_, offer)| active.iter().all(|c| keeps(offer, *c)));
        kept.map(|(i, _)| i).collect()
    };
    let passed = passing(&Constraint::ALL);
    match mode {
        _ if !passed.is_empty() => passed,
        Mode::Relaxed => (0..offers.len()).collect(),
        // No scoring: the shortest queue of the whole cluster.
        Mode::Strict => least(offers, |offer| offer.queue),
        // One at a time, each by itself: dropping the second brings the first back.
        Mode::Tiered => {
            let without = |dropped: Constraint| Constraint::ALL.into_iter().filter(move |c| *c != dropped).collect();
            let sets = Constraint::ALL.into_iter().map(|dropped| -> Vec<Constraint> { without(dropped) });
            let first = sets.map(|active| passing(&active)).find(|passed| !passed.is_empty());
            first.unwrap_or_else(|| (0..offers.len()).collect())
        }
    }
}

/// Up to three rounds, each of which wants less of one constraint after the other. Published quirks: quality is always accepted,
/// and the length in the budget's check is that of the last instance, for all.
fn tiered(offers: &[Offer], demand: &Demand) -> Vec<usize> {
    let length = offers.last().map_or(0.0, Offer::tokens).min(demand.max_tokens);
    let certain = |holds: bool| if holds { 1.0 } else { 0.0 };
    let probability = |offer: &Offer, constraint: Constraint| match (constraint, &offer.residuals) {
        (Constraint::Ttft, Some((ttft, _))) => ttft.probability_within(offer.ttft_seconds, demand.ttft_seconds),
        (Constraint::Tpot, Some((_, tpot))) => tpot.probability_within(offer.tpot_seconds, demand.tpot_seconds),
        (Constraint::Ttft, None) => certain(offer.ttft_seconds <= demand.ttft_seconds),
        (Constraint::Tpot, None) => certain(offer.tpot_seconds <= demand.tpot_seconds),
        (Constraint::Budget, _) => certain(demand.budget_usd.is_none_or(|usd| offer.usd(demand, length) <= usd)),
        (Constraint::Quality, _) => 1.0,
    };
    const ORDER: [Constraint; 4] = [Constraint::Ttft, Constraint::Tpot, Constraint::Budget, Constraint::Quality];
    let mut thetas = ORDER.map(|constraint| (constraint, THETA));
    let passing = |thetas: &[(Constraint, f64)]| -> Vec<usize> {
        let kept = offers.iter().enumerate();
        // Thrice .1 less than .7 is .4 but for rounding.
        let kept = kept.filter(|(_, offer)| thetas.iter().all(|(c, theta)| probability(offer, *c) >= theta - 1e-9));
        kept.map(|(i, _)| i).collect()
    };
    let mut passed = passing(&thetas);
    for _ in 0..ROUNDS {
        for turn in 0..thetas.len() {
            if !passed.is_empty() {
                return passed;
            }
            if let Some((_, theta)) = thetas.get_mut(turn) {
                *theta -= THETA_STEP;
            }
            passed = passing(&thetas);
        }
    }
    passed
}

#[cfg(test)]
mod tests {
    use super::*;
    use routebalance_core::latency::BINS;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn offer(ttft_seconds: f64, tpot_seconds: f64, tokens: f64, quality: f64, usd_per_token: f64, queue: f64) -> Offer {
        let estimate = Estimate {
            quality,
            quality_sd: 0.1,
            output_tokens: tokens,
            output_tokens_p80: tokens * 2.0,
            output_tokens_p90: tokens * 3.0,
        };
        let tariff = Tariff::new(usd_per_token, usd_per_token);
        Offer {
            ttft_seconds,
            tpot_seconds,
            sd: (0.1, 0.005),
            residuals: None,
            estimate,
            tariff,
            usd_per_second: 1e-3,
            queue,
        }
    }

    /// Small, middle, large.
    fn three() -> [Offer; 3] {
        [
            offer(0.10, 0.010, 100.0, 0.3, 1e-7, 5.0),
            offer(0.20, 0.020, 200.0, 0.5, 2e-7, 2.0),
            offer(0.40, 0.040, 300.0, 0.7, 4e-7, 9.0),
        ]
    }

    fn demand(ttft_seconds: f64, tpot_seconds: f64, budget_usd: Option<f64>) -> Demand {
        Demand {
            prompt_tokens: 100.0,
            ttft_seconds,
            tpot_seconds,
            budget_tokens: None,
            budget_usd,
            ..Demand::default()
        }
    }

    #[test]
    fn formulas() {
        use Filter::*;
        for (name, filter, demand, expected) in [
            ("off", Off, demand(0.0, 0.0, None), vec![0, 1, 2]),
            ("slos_serve", SlosServe, demand(0.2, 0.03, None), vec![0, 1]),
            ("slos_serve wants both", SlosServe, demand(0.5, 0.01, None), vec![0]),
            // .4 + 300 * .04 = 12.4, against .1 + 300 * .041 = 12.4; the first time alone would fail.
            ("polyserve trades one time for the other", PolyServe, demand(0.1, 0.041, None), vec![0, 1, 2]),
            ("polyserve", PolyServe, demand(0.1, 0.0205, None), vec![0, 1]),
            // .2 + 1.645 * .1 = .3645 and .02 + 1.645 * .005 = .0282.
            ("qlm", Qlm, demand(0.365, 0.0283, None), vec![0, 1]),
            ("qlm, ttft just missed", Qlm, demand(0.364, 0.0283, None), vec![0]),
            ("qlm, tpot just missed", Qlm, demand(0.365, 0.0282, None), vec![0]),
            // (.2 + 200 * .02) * .001 = .0042; the third takes .0124.
            ("timebill", TimeBill, demand(0.0, 0.0, Some(0.00421)), vec![0, 1]),
            ("timebill without a budget", TimeBill, demand(0.0, 0.0, None), vec![0, 1, 2]),
            ("nobody, no budget: all", SlosServe, demand(0.0, 0.0, None), vec![0, 1, 2]),
            ("nobody, a budget: smallest worst case", SlosServe, demand(0.0, 0.0, Some(1e-9)), vec![0]),
        ] {
            assert_eq!(filter.pass(&three(), &demand), expected, "{name}");
            assert!(filter.pass(&[], &demand).is_empty(), "{name}");
        }
    }

    #[test]
    fn the_inline_filter_and_its_modes() {
        let rows = [
            ("all within", Mode::Tiered, demand(1.0, 0.1, None), vec![0, 1, 2]),
            ("both times", Mode::Tiered, demand(0.2, 0.015, None), vec![0]),
            // Median lengths: a budget of 4.1e-5 USD is 410, 205 and 102 tokens; the last one's median is 300.
            ("budget by the price of a token", Mode::Strict, demand(1.0, 0.1, Some(4.1e-5)), vec![0, 1]),
            ("quality", Mode::Strict, Demand { quality_min: 0.5, ..demand(1.0, 0.1, None) }, vec![1, 2]),
            ("tokens", Mode::Strict, Demand { budget_tokens: Some(201.0), ..demand(1.0, 0.1, None) }, vec![0, 1]),
            ("tiered: without ttft", Mode::Tiered, demand(0.0, 0.03, None), vec![0, 1]),
            ("tiered: without tpot", Mode::Tiered, demand(0.2, 0.0, None), vec![0, 1]),
            (
                "tiered: without quality",
                Mode::Tiered,
                Demand { quality_min: 0.9, ..demand(0.2, 0.1, None) },
                vec![0, 1],
            ),
            ("tiered: without the budget", Mode::Tiered, demand(0.2, 0.1, Some(0.0)), vec![0, 1]),
            ("tiered: two missed is all", Mode::Tiered, demand(0.0, 0.0, None), vec![0, 1, 2]),
            ("relaxed", Mode::Relaxed, demand(0.0, 0.03, None), vec![0, 1, 2]),
            ("strict: the shortest queue", Mode::Strict, demand(0.0, 0.03, None), vec![1]),
        ];
        for (name, mode, demand, expected) in rows {
            assert_eq!(Filter::Inline(mode).pass(&three(), &demand), expected, "{name}");
        }
    }

    #[test]
    fn the_tiered_filter_relaxes_probabilities() {
        // Ratios of 1.0 to 1.5, evenly: a limit of so many times the prediction is kept with .2 (1.1), .5 (1.25), .6 (1.3).
        let mut shares = [0.0; BINS];
        for i in 0..1_000 {
            shares[Residuals::bin(1.0 + f64::from(i) / 2_000.0).unwrap()] += 1e-3;
        }
        let seen = Residuals::from_shares(1e9, &shares);
        let loaded = three().map(|offer| Offer { residuals: Some((seen, seen)), ..offer });
        for (name, offers, demand, expected) in [
            ("theta .7", &loaded, demand(0.4 * 1.5, 1.0, None), vec![0, 1, 2]),
            ("the third keeps it with .5", &loaded, demand(0.4 * 1.25, 1.0, None), vec![0, 1]),
            ("first round", &loaded, demand(0.1 * 1.32, 1.0, None), vec![0]),
            ("second round", &loaded, demand(0.1 * 1.27, 1.0, None), vec![0]),
            ("third round, tpot", &loaded, demand(1.0, 0.01 * 1.22, None), vec![0]),
            ("not even then: all", &loaded, demand(0.1 * 1.1, 1.0, None), vec![0, 1, 2]),
            ("not even then: the cheapest", &loaded, demand(0.1 * 1.1, 1.0, Some(1.0)), vec![0]),
            ("as published, nothing loaded: a point test", &three(), demand(0.2, 1.0, None), vec![0, 1]),
            ("which relaxing does not change", &three(), demand(0.099, 1.0, None), vec![0, 1, 2]),
            // 100 prompt tokens and the last one's 300: 4e-5, 8e-5, 16e-5 USD; by its own 100 the first would cost 2e-5.
            ("the last one's length for all", &three(), demand(1.0, 1.0, Some(8e-5)), vec![0, 1]),
            ("which costs the first one its place", &three(), demand(1.0, 1.0, Some(3.9e-5)), vec![0]),
        ] {
            assert_eq!(Filter::Tiered.pass(offers, &demand), expected, "{name}");
        }
        let short = Demand { max_tokens: 50.0, ..demand(1.0, 1.0, Some(3.1e-5)) };
        assert_eq!(Filter::Tiered.pass(&three(), &short), [0, 1], "at most the request's own limit");
        let strict_quality = Demand { quality_min: 1.0, ..demand(1.0, 1.0, None) };
        assert_eq!(Filter::Tiered.pass(&three(), &strict_quality), [0, 1, 2], "quality is always accepted");
    }
}
