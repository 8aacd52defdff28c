//! Which candidates keep what a request insists on, and what is given up, or refused, when none does.

pub mod headers;
pub mod spending;

mod lengths;

use std::time::Duration;

use crate::fleet::{Constraint, Constraints, Mode, Overload, OverloadAction};
use crate::latency;
use crate::score::Candidate;

pub use lengths::probability_within;

/// Longest time that a refused client is told to wait: nothing is forecast for longer, and OpenAI's client libraries wait by
/// their own rules if they are told more.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// The header counts in seconds, and 0 would invite the same refusal.
const RETRY_MIN: Duration = Duration::from_secs(1);

/// How probable it is that a candidate keeps each constraint, 0 to 1; 1 where there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prospect {
    /// The first token comes in time.
    pub ttft: f64,
    /// The others do.
    pub tpot: f64,
    /// The predicted quality suffices: 0 or 1.
    pub quality: f64,
    /// The answer ends before the budget does.
    pub budget: f64,
    /// Cost of the longest answer that the request allows, USD.
    pub worst_usd: f64,
}

impl Default for Prospect {
    fn default() -> Self {
        Prospect { ttft: 1.0, tpot: 1.0, quality: 1.0, budget: 1.0, worst_usd: 0.0 }
    }
}

impl Prospect {
    fn of(&self, constraint: Constraint) -> f64 {
        match constraint {
            Constraint::Ttft => self.ttft,
            Constraint::Tpot => self.tpot,
            Constraint::Quality => self.quality,
            Constraint::Budget => self.budget,
        }
    }
}

/// Candidates that are left, and what had to be given up.
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted {
    /// The candidates to score; never empty unless none were given.
    pub candidates: Vec<Candidate>,
    /// Constraints that were given up, in their order.
    pub relaxed: Vec<Constraint>,
}

/// No candidate keeps the constraints, and none may be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The constraint without which, after those that give way before it, there would be a candidate.
    pub constraint: Constraint,
    /// When another attempt may succeed.
    pub retry_after: Duration,
}

/// Drops the candidates that keep a constraint with less than the wanted probability; `prospects` in the order of `candidates`.
///
/// Where none is left, [`Mode`] decides. Of a request that had to give up its budget in USD, the candidates with the smallest
/// worst-case cost are left (as published, where it is one instance).
pub fn admit(
    candidates: Vec<Candidate>,
    prospects: &[Prospect],
    constraints: &Constraints,
) -> Result<Admitted, Missed> {
    let set: Vec<Constraint> =
        constraints.order.constraints().into_iter().filter(|constraint| constraints.has(*constraint)).collect();
    if candidates.is_empty() || set.is_empty() {
        return Ok(Admitted { candidates, relaxed: Vec::new() });
    }
    let keeps = |prospect: &Prospect, active: &[Constraint]| {
        active.iter().all(|constraint| prospect.of(*constraint) >= constraints.confidence)
    };
    let active = |given_up: usize| set.get(given_up..).unwrap_or_default();
    let given_up = (0..set.len()).find(|n| prospects.iter().any(|p| keeps(p, active(*n)))).unwrap_or(set.len());
    let given_up = match (given_up, constraints.mode) {
        (0, _) | (_, Mode::Tiered) => given_up,
        (_, Mode::Relaxed) => set.len(),
        (missed, Mode::Strict) => {
            let constraint = set.get(missed.saturating_sub(1)).copied().unwrap_or(Constraint::Ttft);
            return Err(Missed { constraint, retry_after: wait_for(constraint, constraints, &candidates) });
        }
    };
    let relaxed = set.get(..given_up).unwrap_or_default().to_vec();
    let to_the_cheapest =
        constraints.mode == Mode::Tiered && relaxed.contains(&Constraint::Budget) && constraints.budget.usd.is_some();
    let mut left: Vec<(Candidate, Prospect)> = candidates.into_iter().zip(prospects.iter().copied()).collect();
    left.retain(|(_, prospect)| keeps(prospect, active(given_up)));
    if to_the_cheapest {
        let least = left.iter().map(|(_, p)| p.worst_usd).fold(f64::INFINITY, f64::min);
        left.retain(|(_, p)| p.worst_usd <= least);
    }
    Ok(Admitted { candidates: left.into_iter().map(|(candidate, _)| candidate).collect(), relaxed })
}

/// When a candidate may keep a constraint that none keeps now. A queue that is too long by a second takes a second to be short
/// enough; a batch that is too large is another one when an answer has ended; quality and price do not change by waiting.
fn wait_for(constraint: Constraint, constraints: &Constraints, candidates: &[Candidate]) -> Duration {
    let soonest = |seconds: &dyn Fn(&Candidate) -> f64| candidates.iter().map(seconds).fold(f64::INFINITY, f64::min);
    match constraint {
        Constraint::Ttft => {
            let limit = constraints.slo.ttft.unwrap_or_default().as_secs_f64();
            in_seconds(soonest(&|c| c.ttft_seconds - limit))
        }
        Constraint::Tpot => in_seconds(soonest(&|c| c.e2e_seconds)),
        Constraint::Quality | Constraint::Budget => RETRY_MAX,
    }
}

fn in_seconds(seconds: f64) -> Duration {
    latency::duration(seconds.ceil()).clamp(RETRY_MIN, RETRY_MAX)
}

/// Whether every candidate is saturated, and then when the first one may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saturation {
    /// One is not.
    None,
    /// All are; the best of them serves.
    Served,
    /// All are; the request is refused, and may come again then.
    Shed(Duration),
}

/// Judges candidates; `waiting` says how many requests wait at an instance.
pub fn saturation(overload: &Overload, candidates: &[Candidate], waiting: impl Fn(usize) -> f64) -> Saturation {
    let limit = overload.ttft.map_or(f64::INFINITY, |limit| limit.as_secs_f64());
    let queue_max = overload.waiting_per_instance.unwrap_or(f64::INFINITY);
    // Seconds until it may not be saturated any more: its queue has been served when this request's turn would have come.
    let wait = |c: &Candidate| {
        let for_queue = (waiting(c.instance) >= queue_max).then_some(c.ttft_seconds);
        let for_ttft = (c.ttft_seconds > limit).then_some(c.ttft_seconds - limit);
        [for_queue, for_ttft].into_iter().flatten().reduce(f64::max)
    };
    let soonest = candidates.iter().try_fold(f64::INFINITY, |soonest, c| wait(c).map(|wait| soonest.min(wait)));
    match (soonest.filter(|_| !candidates.is_empty()), overload.action) {
        (None, _) => Saturation::None,
        (Some(_), OverloadAction::Serve) => Saturation::Served,
        (Some(soonest), OverloadAction::Shed) => Saturation::Shed(in_seconds(soonest)),
    }
}

#[cfg(test)]
mod tests;
