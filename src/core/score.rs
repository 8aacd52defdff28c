//! Objectives: from estimates of (model, instance) pairs to an order of preference.
//!
//! # Formula
//!
//! Q is the expected quality, L the expected output tokens of that model (capped by the request), `C = prompt tokens * input tariff + L *
//! output tariff`. A policy's `objective` says how candidates are compared.
//!
//! - **`absolute`** (ours, the default): `S = w_q Q / Q_ref - w_l (T + D) / (g T_ref) - w_c C / C_ref`. T is the whole time that the
//!   request is expected to take (queue, prefill, decode), D the time by which it slows down the others on that instance. `T_ref` and
//!   `C_ref` are the mean time and cost of a typical answer over the idle pools, `Q_ref` is the root mean square of the differences between
//!   two models' `quality_prior` (at least 0.1). g >= 1 says how many times longer than on the idle fleet such a request takes now, over
//!   the models, on the best instance of each (at most 8 times on any). Equal scores go to the instance that is expected to answer first.
//! - **`paper`**, as published: `S = w_q Q + w_l (1 - T / max T) + w_c (1 - C / max C)`, maxima over this request's candidates; Q raw or
//!   rescaled over them. `T = tau L` where a slot is free, `tau (D / b + L)` where requests queue: `tau = tpot_ms (1 +
//!   tpot_growth_per_running * running)`, D = output tokens the instance still owes, b = running requests. Ties go to the instance with
//!   fewer requests, then to the one that has waited longest for one.
//! - **`prices`**: `S = Q - price` of the model (dual prices); among its instances the one that is expected to answer first.
//! - `round_robin` and `least_load` are there to compare with.
//!
//! # Intent
//!
//! Units of `absolute` are the fleet's, so a queue costs what it costs: a saturated model spills over to the next one before its queue
//! explodes. Where everything is slower, small models would not help, and g makes time count as much less.
//!
//! # Inputs and configuration
//!
//! Candidates with their forecasts ([`latency`]) and estimates; the policy's `weights`, `objective`,
//! `quality_normalisation`, and the prices that hold now ([`prices`](crate::prices)).
//!
//! # Limits
//!
//! Nothing is expected of the future: at high load and high quality, prices that know the rate beforehand beat `absolute`, which does not
//! (src/lab/README.md has the numbers).

use std::cmp::Ordering;
use std::time::Duration;

use crate::fleet::{Fleet, InstanceId, ModelId, ModelKind, Objective, Policy, QualityNormalisation, Weights};
use crate::latency::{self, Forecast, Work};

/// One (model, instance) pair that may serve a request, with what is expected of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Candidate {
    /// The instance.
    pub instance: InstanceId,
    /// Its model.
    pub model: ModelId,
    /// Expected answer quality, 0 to 1.
    pub quality: f64,
    /// Expected output tokens of all answers asked for.
    pub output_tokens: f64,
    /// Output tokens that 4 of 5 such requests do not exceed.
    pub output_tokens_p80: f64,
    /// The objective's time, seconds: the published T, or under [`Objective::LeastLoad`] the work that the instance owes already.
    pub seconds: f64,
    /// Expected times on the instance if it is as well as ever: what its response is compared with.
    pub forecast: Forecast,
    /// Expected time to the first token, seconds.
    pub ttft_seconds: f64,
    /// Expected time per output token, seconds.
    pub tpot_seconds: f64,
    /// Expected time to the last token, seconds.
    pub e2e_seconds: f64,
    /// Seconds by which this request is expected to slow down those that the instance holds, all together.
    pub delay_seconds: f64,
    /// Expected time to the last token if the instance were idle, seconds.
    pub idle_seconds: f64,
    /// Expected cost, USD.
    pub usd: f64,
    /// Requests that the instance holds.
    pub in_flight: f64,
    /// When the instance was last sent a request.
    pub last_dispatch: Duration,
}

impl Candidate {
    /// Seconds that the request takes from itself and from the others on the instance.
    fn burden_seconds(&self) -> f64 {
        self.e2e_seconds + self.delay_seconds
    }
}

/// Keeps a division by a maximum of zero defined, as the published code does.
const EPSILON: f64 = 1e-8;

/// What a difference in quality, time and money is measured against: what they typically are on this fleet when it is idle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct References {
    /// Root mean square of the differences between two models' mean quality, 0 to 1.
    pub quality: f64,
    /// Mean time of an answer of typical length over the pools, seconds.
    pub seconds: f64,
    /// Mean cost of such an answer over the pools, USD.
    pub usd: f64,
}

/// Where models hardly differ, a difference in quality of a tenth is worth the whole of time or money.
const LEAST_QUALITY_REFERENCE: f64 = 0.1;

impl References {
    /// The references of a fleet, from its priors, profiles and tariffs alone, so that weights mean the same on every fleet.
    pub fn from_fleet(fleet: &Fleet) -> References {
        let (mut seconds, mut usd, mut pools) = (0.0, 0.0, 0.0);
        let mut qualities: Vec<f64> = Vec::new();
        for pool in &fleet.pools {
            let Some(model) = fleet.model_of(pool).filter(|m| m.kind == ModelKind::Generate) else { continue };
            let work = Work::typical(model.output_tokens_prior);
            seconds += latency::idle_seconds(&pool.profile, &work);
            let tariff = pool.tariff.unwrap_or(model.tariff);
            usd += tariff.prompt_usd(work.prompt_tokens, 0.0) + work.output_tokens * tariff.usd_per_output_token;
            pools += 1.0;
            qualities.push(model.quality_prior);
        }
        let mean = |sum: f64| if sum > 0.0 { sum / pools } else { 1.0 };
        let quality = root_mean_square_difference(&qualities).max(LEAST_QUALITY_REFERENCE);
        References { quality, seconds: mean(seconds), usd: mean(usd) }
    }
}

/// Over all pairs; 0 for fewer than two values.
fn root_mean_square_difference(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    (2.0 * squares / (n - 1.0).max(1.0)).sqrt()
}

/// A model on which a request takes more than so many times as long as on an idle instance does not make time cheaper any more.
const CROWDING_MAX: f64 = 8.0;

/// How many times as long as on the idle fleet a request takes now, at least 1: over the models, on the instance of each where it
/// takes least.
fn crowding(candidates: &[Candidate]) -> f64 {
    // The least burden of each model, and the idle time where it is.
    let mut soonest: Vec<(ModelId, f64, f64)> = Vec::new();
    for candidate in candidates {
        let burden = candidate.burden_seconds();
        match soonest.iter_mut().find(|(model, ..)| *model == candidate.model) {
            Some((_, least, idle)) if burden < *least => (*least, *idle) = (burden, candidate.idle_seconds),
            Some(_) => {}
            None => soonest.push((candidate.model, burden, candidate.idle_seconds)),
        }
    }
    let now: f64 = soonest.iter().map(|(_, least, idle)| least.min(CROWDING_MAX * idle)).sum();
    let idle: f64 = soonest.iter().map(|(.., idle)| idle).sum();
    if idle > 0.0 { (now / idle).max(1.0) } else { 1.0 }
}

/// The score of every candidate, higher is better, by the policy's objective. Round robin does not look at estimates: the
/// `sequence`-th candidate in turn scores 1, the one after it less, and so on. `prices` are those of the models now.
pub fn scores(
    candidates: &[Candidate],
    policy: &Policy,
    prices: &[f64],
    references: &References,
    sequence: u64,
) -> Vec<f64> {
    match policy.objective {
        Objective::Absolute => absolute(candidates, &policy.weights, references),
        Objective::Paper => paper(candidates, &policy.weights, policy.quality_normalisation),
        Objective::Prices => priced(candidates, prices),
        Objective::RoundRobin => round_robin(candidates.len(), sequence),
        Objective::LeastLoad => candidates.iter().map(|c| -c.seconds).collect(),
    }
}

/// `Q - price`, with these prices by model; models beyond their end are free.
fn priced(candidates: &[Candidate], prices: &[f64]) -> Vec<f64> {
    let price = |model: ModelId| prices.get(model.index()).copied().unwrap_or(0.0);
    candidates.iter().map(|c| c.quality - price(c.model)).collect()
}

/// `w_q Q/Q_ref - w_l (T + D)/(crowding T_ref) - w_c C/C_ref`. T is the whole time that the request is expected to take, queue and
/// prefill included, and D what it costs the others on the instance: without it each request serves itself best and all together
/// worse. Where the whole fleet is slower, time costs as much less: sending everything to small models would not help. Where one
/// model queues, it costs what it costs.
fn absolute(candidates: &[Candidate], weights: &Weights, references: &References) -> Vec<f64> {
    let typical_seconds = references.seconds * crowding(candidates);
    let score = |c: &Candidate| {
        weights.quality * c.quality / references.quality
            - weights.latency * c.burden_seconds() / typical_seconds
            - weights.cost * c.usd / references.usd
    };
    candidates.iter().map(score).collect()
}

/// `w_q Q + w_c (1 - C / max C) + w_l (1 - T / max T)`, maxima over the candidates of this request (RouteBalance's section 4;
/// PUBLISHED.md, section 7).
pub fn paper(candidates: &[Candidate], weights: &Weights, normalisation: QualityNormalisation) -> Vec<f64> {
    let max = |value: fn(&Candidate) -> f64| candidates.iter().map(value).fold(0.0, f64::max) + EPSILON;
    let max_usd = max(|c| c.usd);
    let max_seconds = max(|c| c.seconds);
    let best = candidates.iter().map(|c| c.quality).fold(f64::NEG_INFINITY, f64::max);
    let worst = candidates.iter().map(|c| c.quality).fold(f64::INFINITY, f64::min);
    candidates
        .iter()
        .map(|c| {
            let quality = match normalisation {
                QualityNormalisation::Raw => c.quality,
                QualityNormalisation::MinMax => (c.quality - worst) / (best - worst + EPSILON),
            };
            weights.quality * quality
                + weights.cost * (1.0 - c.usd / max_usd)
                + weights.latency * (1.0 - c.seconds / max_seconds)
        })
        .collect()
}

fn round_robin(candidates: usize, sequence: u64) -> Vec<f64> {
    let n = candidates.max(1) as u64;
    (0..candidates as u64)
        .map(|i| {
            let turns = i.saturating_add(n).saturating_sub(sequence % n) % n;
            1.0 - turns as f64 / n as f64
        })
        .collect()
}

/// Candidates in an order of preference: by score, then fewer requests in flight, then the one that has waited longest for a
/// request, then the order of the file (the published tie-break). With prices, which know models only, and the absolute score,
/// which may have a weight of zero for time, the expected time comes before these.
///
/// Of a large fleet nobody asks for the whole order.
#[derive(Clone, Copy, Debug)]
pub struct Ranking<'a> {
    candidates: &'a [Candidate],
    scores: &'a [f64],
    objective: Objective,
}

impl<'a> Ranking<'a> {
    /// The order of candidates with these scores under an objective.
    pub fn new(candidates: &'a [Candidate], scores: &'a [f64], objective: Objective) -> Ranking<'a> {
        Ranking { candidates, scores, objective }
    }

    /// The position of the best candidate.
    pub fn first(&self) -> Option<usize> {
        (0..self.candidates.len()).min_by(|a, b| self.compare(*a, *b))
    }

    /// Positions of the best candidate of each model, best first.
    pub fn of_models(&self) -> Vec<usize> {
        let mut firsts: Vec<(ModelId, usize)> = Vec::new();
        // Instances of a model mostly follow each other.
        let mut last = 0;
        for (i, candidate) in self.candidates.iter().enumerate() {
            if firsts.get(last).is_none_or(|(model, _)| *model != candidate.model) {
                last = firsts.iter().position(|(model, _)| *model == candidate.model).unwrap_or(firsts.len());
            }
            match firsts.get_mut(last) {
                Some((_, first)) if self.compare(i, *first).is_lt() => *first = i,
                Some(_) => {}
                None => firsts.push((candidate.model, i)),
            }
        }
        self.best(firsts.into_iter().map(|(_, i)| i), usize::MAX)
    }

    /// The best of some positions, so many at most, best first.
    pub fn best(&self, among: impl IntoIterator<Item = usize>, count: usize) -> Vec<usize> {
        let mut best: Vec<usize> = Vec::new();
        for i in among {
            let worse = best.last().is_some_and(|last| self.compare(*last, i).is_lt());
            if worse && best.len() >= count {
                continue;
            }
            let at = best.partition_point(|other| self.compare(*other, i).is_lt());
            best.insert(at, i);
            best.truncate(count);
        }
        best
    }

    #[inline]
    fn compare(&self, a: usize, b: usize) -> Ordering {
        let of = |i: usize| self.scores.get(i).zip(self.candidates.get(i));
        let (Some((first_score, first)), Some((second_score, second))) = (of(a), of(b)) else { return a.cmp(&b) };
        match first_score.partial_cmp(second_score) {
            Some(Ordering::Greater) => Ordering::Less,
            Some(Ordering::Less) => Ordering::Greater,
            Some(Ordering::Equal) | None => descending(*first_score, *second_score)
                .then_with(|| self.sooner(first, second))
                .then_with(|| first.in_flight.total_cmp(&second.in_flight))
                .then_with(|| first.last_dispatch.cmp(&second.last_dispatch))
                .then(a.cmp(&b)),
        }
    }

    fn sooner(&self, a: &Candidate, b: &Candidate) -> Ordering {
        match self.objective {
            Objective::Prices | Objective::Absolute => a.e2e_seconds.total_cmp(&b.e2e_seconds),
            Objective::Paper | Objective::RoundRobin | Objective::LeastLoad => Ordering::Equal,
        }
    }
}

/// Higher first; what is not a number comes last.
fn descending(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) => b.total_cmp(&a),
        (a_nan, b_nan) => a_nan.cmp(&b_nan),
    }
}

#[cfg(test)]
mod tests;
