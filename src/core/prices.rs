//! Prices that follow live load, so that a forecast that is wrong does not break the SLO.
//!
//! # Rule
//!
//! A plan says prices `alpha` and fractions `c` of the models at a few rates ([`DemandLevel`]). A [`Steering`] looks at the load every
//! [`PERIOD`] and moves prices in steps:
//!
//! - the rate of requests is counted, and `alpha` and `c` are interpolated at it: what the plan would do;
//! - a **surcharge** makes demand look higher than it is while the mean time to the first token (TTFT) is above its limit, and goes back to
//!   0 below. It moves along the demand axis, on which the plan shifts load to models with room, whatever makes requests heavier than
//!   forecast; where that way leads to the slower models, it is not taken;
//! - a model's fraction is scaled by the share of its instances that is left, and is **relieved** while the mean TTFT is above the limit
//!   and its own far above both: its GPUs may be slower than the plan thinks;
//! - prices are corrected by the dual ascent of RouterWise (arXiv 2604.10907), `delta_m += step (n_m - c_m)`, with what models really got,
//!   within bounds: so that other prompts than the plan's sample still give its fractions. Bounds are `max_correction` for each model
//!   against the plan, and twice that for two models against each other.
//!
//! TTFT is what the latency model expects at the load of the moment, with its corrections by what responses have shown. Observed TTFT would
//! come late, when a queue has been built, and not at all from a model that gets no requests.
//!
//! One worker does this for all, in shared data. Until something is counted, the prices of the highest level hold.
//!
//! # Configuration
//!
//! `policies[].demand_levels` (without more, prices follow the rate alone) and `policies[].online_prices`; `routebalance plan --apply`
//! writes both.
//!
//! # Limits
//!
//! The mean time to the first token alone is held. All generating requests count, also those that name their model and those of other
//! policies: a plan's policy should have nearly all of the traffic. Demand beyond what a setup can serve is spread, and the limit is lost.
//! What is aimed at is .85 of the limit, so that a plan at its limit is followed at a little less quality.

use std::time::Duration;

use crate::fleet::{DemandLevel, Fleet, Model, ModelKind, OnlinePrices, Policy, PolicyId, Presence};
use crate::latency::{self, Speed, Work};
use crate::reckoning::{Counters, LoadNow, Standing};

/// Time between two steps.
pub const PERIOD: Duration = Duration::from_millis(250);
/// Requests over which rates are counted: their noise is a tenth then.
const RATE_REQUESTS: f64 = 100.0;
/// Rates are counted over so many seconds at least and at most.
const RATE_SECONDS: (f64, f64) = (2.0, 30.0);
/// What is aimed at, as a share of the limit: load is noisy, and time lost above the limit is more than what is won below it.
pub const AIM: f64 = 0.85;
/// Demand is taken to be at most this share higher than it is.
const SURCHARGE_MAX: f64 = 2.0;
/// A model's own TTFT is far above the limit from so many times the limit on.
const FAR: f64 = 2.0;
/// Largest share of its fraction that a model is relieved of.
const RELIEF_MAX: f64 = 0.8;
/// What a price moves in a time constant if a model gets all requests more than it should, units of quality.
const ASCENT: f64 = 0.3;
/// Longest time that one step may act on.
const STEP_SECONDS_MAX: f64 = 1.0;
/// Foreign requests for each own one, most.
const FOREIGN_MAX: f64 = 1e3;
/// The next piece of the demand axis that is looked at, as a share of the rate.
const AHEAD: f64 = 0.05;

/// One model now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ModelNow {
    /// Whether it generates text; of others nothing else counts.
    pub generates: bool,
    /// Requests sent to it so far, by all workers.
    pub sent: u64,
    /// What a usual request's TTFT would be, seconds; `None` if no instance is there.
    pub ttft_seconds: Option<f64>,
    /// Share of its instances that is there and healthy, 0 to 1.
    pub there: f64,
}

/// What a step goes by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// The models, in the fleet's order.
    pub models: Vec<ModelNow>,
    /// Requests that instances hold, those of other gateways included.
    pub in_flight: f64,
    /// Of those, this gateway's.
    pub own_in_flight: f64,
}

impl Observation {
    /// Of a fleet, from all workers' counters, the loads now and the pools' speeds. Loads and speeds may be missing.
    pub fn from_fleet(fleet: &Fleet, counters: &Counters, loads: &[LoadNow], speeds: &[Speed]) -> Observation {
        let of = |m: &Model| ModelNow { generates: m.kind == ModelKind::Generate, ..ModelNow::default() };
        let mut seen = Observation { models: fleet.models.iter().map(of).collect(), ..Observation::default() };
        let (unknown, by_profile) = (LoadNow::default(), Speed::default());
        // By model, instances, those that are there, and the soonest end with its TTFT.
        let mut places = vec![(0_u32, 0_u32, f64::INFINITY); fleet.models.len()];
        for (i, instance) in fleet.instances_by_id() {
            let Some(pool) = fleet.pool(instance.pool) else { continue };
            let model = fleet.model_of(pool).filter(|m| m.kind == ModelKind::Generate);
            let (Some(model), Some(now), Some((all, there, soonest))) =
                (model, seen.models.get_mut(pool.model.index()), places.get_mut(pool.model.index()))
            else {
                continue;
            };
            let own = counters.get(i).copied().unwrap_or_default();
            now.sent = now.sent.saturating_add(own.dispatched_requests);
            if instance.presence == Presence::Gone {
                continue;
            }
            let load = loads.get(i.index()).unwrap_or(&unknown);
            seen.in_flight += load.in_flight();
            seen.own_in_flight += own.outstanding_requests() as f64;
            *all = all.saturating_add(1);
            if load.unreachable || load.standing == Standing::Ejected || instance.presence == Presence::Unhealthy {
                continue;
            }
            *there = there.saturating_add(1);
            let speed = speeds.get(instance.pool.index()).unwrap_or(&by_profile);
            let usual = Work::typical(model.output_tokens_prior);
            let usual = speed.traffic.map_or(usual, |t| Work {
                prompt_tokens: t.prompt_tokens,
                output_tokens: t.output_tokens,
                ..usual
            });
            let forecast = latency::forecast(&pool.profile, &pool.limits, load, &usual, speed);
            let slowdown = load.standing.slowdown();
            // As the router does, the instance that is expected to end first.
            if slowdown * forecast.e2e_seconds < *soonest {
                *soonest = slowdown * forecast.e2e_seconds;
                now.ttft_seconds = Some(slowdown * forecast.ttft_seconds);
            }
        }
        for (now, (all, there, _)) in seen.models.iter_mut().zip(places) {
            now.there = f64::from(there) / f64::from(all.max(1));
        }
        seen
    }
}

/// What one policy's prices have come to: it outlives the worker that keeps it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Steering {
    /// Requests sent so far, by model, at the last step; empty before the first.
    pub sent: Vec<u64>,
    /// Requests of this gateway per second, by model.
    pub rates: Vec<f64>,
    /// Requests in flight, all and own, smoothed.
    pub in_flight: [f64; 2],
    /// By which share demand is taken to be higher than it is.
    pub surcharge: f64,
    /// Share of its fraction that each model is relieved of.
    pub relief: Vec<f64>,
    /// What is added to the plan's price of each model.
    pub corrections: Vec<f64>,
    /// The prices, at least 0; the least is 0.
    pub prices: Vec<f64>,
}

impl Steering {
    /// At the highest level of demand, until something is counted: the careful guess.
    pub fn new(levels: &[DemandLevel]) -> Steering {
        let Some(last) = levels.last() else { return Steering::default() };
        let zeros = vec![0.0; last.prices.len()];
        Steering {
            sent: Vec::new(),
            rates: last.fractions.iter().map(|fraction| fraction * last.rate).collect(),
            in_flight: [0.0; 2],
            surcharge: 0.0,
            relief: zeros.clone(),
            corrections: zeros,
            prices: last.prices.clone(),
        }
    }

    /// The same with every number within its bounds; `None` if one is none, or if it is of another number of models.
    pub fn sound(mut self, models: usize, settings: Option<&OnlinePrices>) -> Option<Steering> {
        let finite = |values: &[f64]| values.iter().all(|v| v.is_finite());
        let whole = |values: &[f64]| values.len() == models && finite(values);
        let models_fit = [&self.rates, &self.relief, &self.corrections, &self.prices].iter().all(|v| whole(v));
        let counted = self.sent.is_empty() || self.sent.len() == models;
        if !models_fit || !counted || !finite(&self.in_flight) || !self.surcharge.is_finite() {
            return None;
        }
        let bound = settings.map_or(0.0, |s| s.max_correction);
        let within =
            |values: &mut [f64], low: f64, high: f64| values.iter_mut().for_each(|v| *v = bounded(*v, low, high));
        within(&mut self.rates, 0.0, f64::MAX);
        within(&mut self.in_flight, 0.0, f64::MAX);
        within(std::slice::from_mut(&mut self.surcharge), 0.0, SURCHARGE_MAX);
        within(&mut self.relief, 0.0, RELIEF_MAX);
        within(&mut self.corrections, -bound, bound);
        // Two corrections may move two prices apart.
        within(&mut self.prices, 0.0, 1.0 + 2.0 * bound);
        Some(self)
    }

    /// Requests per second over all gateways, as far as reports tell of the others'.
    pub fn rate(&self) -> f64 {
        let [all, own] = self.in_flight;
        let foreign = if own > 0.0 { bounded(all / own, 1.0, FOREIGN_MAX) } else { 1.0 };
        self.rates.iter().sum::<f64>() * foreign
    }

    /// Moves the prices by what was seen `elapsed` after the last step. Bounded, whatever was seen.
    pub fn step(
        &mut self,
        levels: &[DemandLevel],
        settings: Option<&OnlinePrices>,
        seen: &Observation,
        elapsed: Duration,
    ) {
        let (Some(last), seconds) = (levels.last(), elapsed.as_secs_f64()) else { return };
        if self.prices.len() != last.prices.len() {
            *self = Steering::new(levels);
        }
        if seen.models.len() != last.prices.len() {
            return;
        }
        let counts = self.count(seen, seconds);
        let Some(settings) = settings else {
            self.prices = from_least(&Aim::for_rate(levels, self.rate()).prices, seen);
            return;
        };
        let share = seconds.min(STEP_SECONDS_MAX) / settings.time_constant.as_secs_f64().max(1e-3);
        self.look(levels, settings.ttft.as_secs_f64() * AIM, seen, share);
        let aim = Aim::for_rate(levels, self.demand(levels));
        let fractions = self.fractions(&aim.fractions, seen);
        self.correct(&counts, &fractions, settings.max_correction, seconds, share);
        let corrected: Vec<f64> =
            aim.prices.iter().zip(&self.corrections).map(|(price, delta)| price + delta).collect();
        self.prices = from_least(&corrected, seen);
    }

    /// Counts what was sent since the last step.
    fn count(&mut self, seen: &Observation, seconds: f64) -> Vec<f64> {
        let totals: Vec<u64> = seen.models.iter().map(|m| m.sent).collect();
        let before = if self.sent.len() == totals.len() { &self.sent } else { &totals };
        let counts: Vec<f64> =
            totals.iter().zip(before).map(|(now, before)| now.saturating_sub(*before) as f64).collect();
        if seconds > 0.0 && !self.sent.is_empty() {
            let (least, most) = RATE_SECONDS;
            let counted_over = bounded(RATE_REQUESTS / self.rates.iter().sum::<f64>(), least, most);
            let gain = 1.0 - (-seconds / counted_over).exp();
            let smooth = |value: &mut f64, new: f64| *value = bounded(*value + gain * (new - *value), 0.0, f64::MAX);
            self.rates.iter_mut().zip(&counts).for_each(|(rate, count)| smooth(rate, count / seconds));
            let own = bounded(seen.own_in_flight, 0.0, f64::MAX);
            self.in_flight
                .iter_mut()
                .zip([bounded(seen.in_flight, own, f64::MAX), own])
                .for_each(|(v, new)| smooth(v, new));
        }
        self.sent = totals;
        counts
    }

    /// The rate that prices are made for. Below the lowest level nothing is known, so the surcharge counts from there.
    fn demand(&self, levels: &[DemandLevel]) -> f64 {
        let lowest = levels.first().map_or(0.0, |level| level.rate);
        self.rate().max(lowest) * (1.0 + self.surcharge)
    }

    /// Moves surcharge and relief by the TTFT of the models against its limit.
    fn look(&mut self, levels: &[DemandLevel], limit: f64, seen: &Observation, share: f64) {
        let ttft = |m: &ModelNow| m.ttft_seconds.filter(|t| m.generates && t.is_finite() && *t >= 0.0);
        let known = || self.rates.iter().zip(&seen.models).filter_map(|(rate, m)| Some((*rate, ttft(m)?)));
        let sent: f64 = known().map(|(rate, _)| rate).sum();
        if sent <= 0.0 {
            return;
        }
        let mean = known().map(|(rate, ttft)| rate * ttft).sum::<f64>() / sent;
        let excess = bounded(mean / limit - 1.0, -1.0, 1.0);
        let demand = self.demand(levels);
        let [here, ahead] = [demand, demand * (1.0 + AHEAD)].map(|rate| Aim::for_rate(levels, rate).fractions);
        let slope: f64 = here
            .iter()
            .zip(&ahead)
            .zip(&seen.models)
            .filter_map(|((here, ahead), m)| Some((ahead - here) * ttft(m)?))
            .sum();
        let drive = if slope > 0.0 { -excess.abs() } else { excess };
        self.surcharge = bounded(self.surcharge + share * drive, 0.0, SURCHARGE_MAX);
        let far = mean.max(FAR * limit);
        for (relief, model) in self.relief.iter_mut().zip(&seen.models) {
            let drive = ttft(model).map_or(-1.0, |ttft| bounded(ttft / far - 1.0, -1.0, 1.0));
            let drive = if excess > 0.0 { drive } else { drive.min(0.0) };
            *relief = bounded(*relief + share * drive, 0.0, RELIEF_MAX);
        }
    }

    /// The fractions that are aimed at: the plan's, with what is left of the models and what they are relieved of.
    fn fractions(&self, planned: &[f64], seen: &Observation) -> Vec<f64> {
        let left = planned.iter().zip(&seen.models).zip(&self.relief);
        let scaled: Vec<f64> =
            left.map(|((fraction, m), relief)| fraction * bounded(m.there, 0.0, 1.0) * (1.0 - relief)).collect();
        let sum: f64 = scaled.iter().sum();
        if sum > 0.0 { scaled.iter().map(|fraction| fraction / sum).collect() } else { planned.to_vec() }
    }

    /// The step of the dual ascent: what got more than its fraction becomes dearer.
    fn correct(&mut self, counts: &[f64], fractions: &[f64], max: f64, seconds: f64, share: f64) {
        let total: f64 = counts.iter().sum();
        let usual = (self.rates.iter().sum::<f64>() * seconds).max(total);
        if usual <= 0.0 {
            return;
        }
        for ((correction, count), fraction) in self.corrections.iter_mut().zip(counts).zip(fractions) {
            let surplus = (count - fraction * total) / usual;
            *correction = bounded(*correction + ASCENT * share * surplus, -max, max);
        }
    }
}

/// What the plan does at a rate.
#[derive(Clone, Debug, PartialEq)]
struct Aim {
    prices: Vec<f64>,
    fractions: Vec<f64>,
}

impl Aim {
    /// Between levels on straight lines; below the lowest as there. Beyond the highest with its prices, and the further requests go
    /// where it sends its last ones: as between the highest two levels, or to the cheapest models if there is but one.
    fn for_rate(levels: &[DemandLevel], rate: f64) -> Aim {
        let above = levels.iter().position(|level| level.rate >= rate);
        let before = above.and_then(|i| levels.get(i.checked_sub(1)?));
        match (before, above.and_then(|i| levels.get(i)), levels.last()) {
            (Some(low), Some(high), _) => {
                let part = bounded((rate - low.rate) / (high.rate - low.rate), 0.0, 1.0);
                let mix = |low: &[f64], high: &[f64]| low.iter().zip(high).map(|(l, h)| l + part * (h - l)).collect();
                Aim { prices: mix(&low.prices, &high.prices), fractions: mix(&low.fractions, &high.fractions) }
            }
            (None, Some(only), _) => Aim { prices: only.prices.clone(), fractions: only.fractions.clone() },
            (_, None, Some(last)) => Aim { prices: last.prices.clone(), fractions: beyond(levels, last, rate) },
            (_, None, None) => Aim { prices: Vec::new(), fractions: Vec::new() },
        }
    }
}

fn beyond(levels: &[DemandLevel], last: &DemandLevel, rate: f64) -> Vec<f64> {
    let before = levels.len().checked_sub(2).and_then(|i| levels.get(i));
    let growth: Vec<f64> = match before {
        Some(before) => {
            let grown = last.fractions.iter().zip(&before.fractions);
            grown.map(|(last_, before_)| (last.rate * last_ - before.rate * before_).max(0.0)).collect()
        }
        None => {
            let least = least(&last.prices, &last.fractions);
            let cheap = |price: f64| f64::from(u8::from(price <= least));
            last.fractions.iter().zip(&last.prices).map(|(fraction, price)| fraction * cheap(*price)).collect()
        }
    };
    let sum: f64 = growth.iter().sum();
    if sum <= 0.0 || !rate.is_finite() {
        return last.fractions.clone();
    }
    let share = last.rate / rate;
    last.fractions
        .iter()
        .zip(&growth)
        .map(|(fraction, growth)| fraction * share + growth / sum * (1.0 - share))
        .collect()
}

/// The least price of the models that get anything.
fn least(prices: &[f64], fractions: &[f64]) -> f64 {
    let used = prices.iter().zip(fractions).filter(|(_, fraction)| **fraction > 0.0);
    used.map(|(price, _)| *price).fold(f64::INFINITY, f64::min)
}

/// Prices over the least one; models that do not generate have none.
fn from_least(prices: &[f64], seen: &Observation) -> Vec<f64> {
    let generates = |m: usize| seen.models.get(m).is_some_and(|m| m.generates);
    let of = || prices.iter().enumerate().filter(|(m, _)| generates(*m));
    let least = of().map(|(_, price)| *price).fold(f64::INFINITY, f64::min);
    let over = |(m, price): (usize, &f64)| if generates(m) { (price - least).max(0.0) } else { 0.0 };
    prices.iter().enumerate().map(over).collect()
}

/// A number within bounds; what is none is the lower one.
fn bounded(value: f64, low: f64, high: f64) -> f64 {
    if value.is_nan() { low } else { value.clamp(low, high.max(low)) }
}

/// The prices of all policies that follow demand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LivePrices {
    /// When they were last moved.
    pub at: Duration,
    /// By policy; `None` where prices are fixed.
    pub policies: Vec<Option<Steering>>,
}

impl LivePrices {
    /// Whether any policy's prices follow demand.
    pub fn are_wanted(policies: &[Policy]) -> bool {
        policies.iter().any(|policy| !policy.demand_levels.is_empty())
    }

    /// A policy's prices now; `None` where they are fixed.
    pub fn of_policy(&self, policy: PolicyId) -> Option<&[f64]> {
        Some(&self.policies.get(policy.index())?.as_ref()?.prices)
    }

    /// Moves all of them.
    pub fn step(&mut self, policies: &[Policy], seen: &Observation, now: Duration) {
        let elapsed = now.saturating_sub(self.at);
        self.policies.resize(policies.len(), None);
        for (steering, policy) in self.policies.iter_mut().zip(policies) {
            let levels = &policy.demand_levels;
            if !levels.is_empty() {
                let steering = steering.get_or_insert_with(|| Steering::new(levels));
                steering.step(levels, policy.online_prices.as_ref(), seen, elapsed);
            }
        }
        self.at = now;
    }
}

#[cfg(test)]
mod tests;
