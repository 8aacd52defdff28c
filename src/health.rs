//! Passive health: what responses show of an instance, and what follows from it.
//!
//! A failure costs weight. Failures in a row eject: the instance is a candidate only where there is no other, until a back-off has
//! passed. Then it is half-open: one request at a time, over all workers, probes it. A success closes the case, a failure doubles
//! the back-off. It is the circuit breaker of M. Nygard, *Release It!*, with Envoy's exponential ejection time.
//!
//! All workers share one record, written by compare-and-swap: failures are rare, and only so is a probe the only one. What follows
//! from an event depends on the record and the time, not on the worker that saw it.

mod judge;
mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

pub use judge::{failed_attempts, of_answer, of_head, of_interruption};
pub use watch::{Sight, Watch, quiet_allowed};

use crate::config::Health;
use crate::fleet::Fleet;
use crate::reckoning::LoadNow;

/// What went wrong with a request, or with all that an instance holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// No answer: nobody there, a reset or silence before the first byte, or an answer that Envoy retried elsewhere.
    Unanswered,
    /// A status of 5xx by the instance itself.
    Status,
    /// An error event inside a stream of status 200.
    ErrorEvent,
    /// A response that ended before its end.
    Truncated,
    /// No progress for `health.stall_ms` on any request, though some are there.
    Stalled,
    /// 429 or 503: the instance has more to do than it takes. That is load, not illness: it costs weight for a moment.
    Busy,
}

impl Failure {
    /// The kind's name in statistics.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Unanswered => "unanswered",
            Failure::Status => "status",
            Failure::ErrorEvent => "error_event",
            Failure::Truncated => "truncated",
            Failure::Stalled => "stalled",
            Failure::Busy => "busy",
        }
    }

    /// All kinds.
    pub const ALL: [Failure; 6] = [
        Failure::Unanswered,
        Failure::Status,
        Failure::ErrorEvent,
        Failure::Truncated,
        Failure::Stalled,
        Failure::Busy,
    ];
}

/// What was seen of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request failed.
    Failed(Failure),
    /// The first piece of an answer came.
    Began,
    /// A whole answer came.
    Succeeded,
    /// Work that stood still goes on.
    Resumed,
    /// A request ended in a way that says nothing of the instance: its client left, or was refused.
    Unjudged,
}

/// How an instance stands at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Standing {
    /// Nothing speaks against it.
    #[default]
    Healthy,
    /// Failures have cost it weight, in (0, 1): expected times count divided by it.
    Degraded(f64),
    /// It is to be probed: the next request may be sent to it once it is claimed ([`Records::claim`]).
    HalfOpen,
    /// Only where there is no other. A half-open instance whose probe is under way stands here, too.
    Ejected,
}

impl Standing {
    /// The weight, from 1 (healthy) to 0 (ejected).
    pub fn weight(self) -> f64 {
        match self {
            Standing::Healthy | Standing::HalfOpen => 1.0,
            Standing::Degraded(weight) => weight,
            Standing::Ejected => 0.0,
        }
    }

    /// The factor on expected times: one over the weight. Among ejected ones, time decides as ever.
    pub fn slowdown(self) -> f64 {
        match self {
            Standing::Degraded(weight) if weight > 0.0 => 1.0 / weight,
            _ => 1.0,
        }
    }
}

/// What is remembered of an instance that something spoke against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Failures in a row.
    pub failures: u32,
    /// When the last of them was seen.
    pub last_failure: Duration,
    /// Whether the last of them was [`Failure::Stalled`].
    pub stalled: bool,
    /// When the instance last said that it is busy.
    pub last_busy: Duration,
    /// Ejections in a row.
    pub ejections: u32,
    /// The end of the back-off; zero while it is not ejected.
    pub ejected_until: Duration,
    /// Until when a probe counts as under way; zero if none is.
    pub probe_until: Duration,
}

/// Most instances that are remembered, some 250 KB of shared data.
const RECORDS_MAX: usize = 4_096;
/// Back-offs (the longest) after which nothing is remembered of an instance any more. An instance of low weight may get no request
/// until its weight has come back, so failures in a row may lie further apart than weight is lost.
const FORGOTTEN_AFTER: u32 = 10;

impl Record {
    fn standing(&self, now: Duration, settings: &Health) -> Standing {
        if !self.ejected_until.is_zero() {
            return if now >= self.ejected_until && now >= self.probe_until {
                Standing::HalfOpen
            } else {
                Standing::Ejected
            };
        }
        let illness = f64::from(self.failures) * fading(now, self.last_failure, settings.max_ejection)
            + fading(now, self.last_busy, settings.base_ejection);
        if illness > 0.0 { Standing::Degraded(1.0 / (1.0 + illness)) } else { Standing::Healthy }
    }

    /// Whether nothing is left that would make a difference.
    fn is_over(&self, now: Duration, settings: &Health) -> bool {
        let last = self.last_failure.max(self.last_busy).max(self.ejected_until);
        now >= last.saturating_add(settings.max_ejection.saturating_mul(FORGOTTEN_AFTER))
    }

    fn eject(&mut self, now: Duration, settings: &Health) {
        let doublings = 2_u32.saturating_pow(self.ejections);
        self.ejections = self.ejections.saturating_add(1);
        let back_off = settings.base_ejection.saturating_mul(doublings).min(settings.max_ejection);
        self.ejected_until = now.saturating_add(back_off);
        self.probe_until = Duration::ZERO;
    }

    /// An ejected instance works again: it stands one failure before the next ejection, whose back-off would be doubled.
    fn close(&mut self, settings: &Health) {
        self.failures = settings.failures_to_eject.saturating_sub(1);
        self.ejected_until = Duration::ZERO;
        self.probe_until = Duration::ZERO;
        self.stalled = false;
    }

    fn fail(&mut self, failure: Failure, sent: Duration, now: Duration, settings: &Health) -> bool {
        let is_ejected = !self.ejected_until.is_zero();
        if failure == Failure::Busy {
            self.last_busy = now;
            if is_ejected && sent >= self.ejected_until {
                // It lives, but has no room: ask again later, and not much later.
                self.ejected_until = now.saturating_add(settings.base_ejection);
                self.probe_until = Duration::ZERO;
            }
            return true;
        }
        // What stands still says so at every look; everything else speaks for the time when it was sent.
        let seen_of = if failure == Failure::Stalled { now } else { sent };
        if is_ejected {
            if seen_of < self.ejected_until {
                return false;
            }
        } else {
            if self.ejections > 0 && seen_of < self.last_failure {
                return false;
            }
            if self.is_over(now, settings) {
                *self = Record::default();
            }
        }
        self.failures =
            if failure == Failure::Stalled { settings.failures_to_eject } else { self.failures.saturating_add(1) };
        self.last_failure = now;
        self.stalled = failure == Failure::Stalled;
        if is_ejected || self.failures >= settings.failures_to_eject {
            self.eject(now, settings);
        }
        true
    }
}

/// 1 at the moment of an event, falling linearly to 0 over `span`.
fn fading(now: Duration, at: Duration, span: Duration) -> f64 {
    let age = now.saturating_sub(at);
    if at.is_zero() || age >= span { 0.0 } else { 1.0 - age.as_secs_f64() / span.as_secs_f64() }
}

/// The records of all instances that something speaks against, by [`crate::fleet::Instance::key`], so that they survive a change
/// of the fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records(pub BTreeMap<u32, Record>);

impl Records {
    /// Takes in what was seen of an instance. `sent` is when the request went out that shows it. Whether the records have changed.
    pub fn apply(&mut self, instance: u32, event: Event, sent: Duration, now: Duration, settings: &Health) -> bool {
        if let Event::Failed(failure) = event {
            if !self.0.contains_key(&instance) && self.0.len() >= RECORDS_MAX {
                self.0.retain(|_, record| !record.is_over(now, settings));
                if self.0.len() >= RECORDS_MAX {
                    return false;
                }
            }
            return self.0.entry(instance).or_default().fail(failure, sent, now, settings);
        }
        let Some(record) = self.0.get_mut(&instance) else { return false };
        let is_ejected = !record.ejected_until.is_zero();
        // A request that was sent before the last failure may end well after it, as in a server that drains.
        let is_news = sent > record.last_failure;
        match event {
            Event::Began if is_ejected && is_news => record.close(settings),
            Event::Resumed if is_ejected && record.stalled => record.close(settings),
            Event::Succeeded if is_news => {
                self.0.remove(&instance);
            }
            Event::Unjudged if is_ejected && sent >= record.ejected_until => record.probe_until = Duration::ZERO,
            _ => return false,
        }
        true
    }

    /// Claims a half-open instance for a probe; false if it is not half-open, or another worker was faster.
    pub fn claim(&mut self, instance: u32, now: Duration, settings: &Health) -> bool {
        let Some(record) = self.0.get_mut(&instance) else { return false };
        if record.standing(now, settings) != Standing::HalfOpen {
            return false;
        }
        // A probe whose worker dies is never judged.
        record.probe_until = now.saturating_add(settings.max_ejection);
        true
    }

    /// How an instance stands.
    pub fn standing(&self, instance: u32, now: Duration, settings: &Health) -> Standing {
        self.0.get(&instance).map_or(Standing::Healthy, |record| record.standing(now, settings))
    }

    /// Tells the loads how their instances stand.
    pub fn stand(&self, loads: &mut [LoadNow], fleet: &Fleet, now: Duration, settings: &Health) {
        if self.0.is_empty() || !settings.enabled {
            return;
        }
        for (load, instance) in loads.iter_mut().zip(&fleet.instances) {
            load.standing = self.standing(instance.key, now, settings);
        }
    }
}

#[cfg(test)]
mod tests;
