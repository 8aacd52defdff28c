//! Passive health: what responses show of an instance, and what follows from it.
//!
//! **Whose fault is it?** Every way in which an answer can go wrong has one owner ([`of_answer`], [`of_silence`]):
//!
//! - *The instance's own* ([`Event::Failed`]): nobody listens there, nothing moves there by its reports, or a peer has served the very
//!   request that failed here. It costs weight, and failures in a row eject.
//! - *The request's, or the instance's* ([`Event::Suspected`]): a 5xx that no peer was asked about or that a second instance gave as
//!   well, an error event, a truncated or empty answer. It costs nothing while the instance gives good answers to other requests. It
//!   ejects where peers give good answers and do not fail in this way, or where not one good answer came for a long time ([`Case`]).
//! - *The client's, or the instance's* ([`Event::Refused`]): a 4xx. An instance that refuses what its peers answer, and that has itself
//!   answered nothing well since, is a black hole and is ejected. The pool is one if it refuses what other pools answer.
//! - *Load* ([`Event::Busy`]): 429, 503 and their names in any API. The instance is avoided while most of its answers of the last second
//!   say so, for as long as it asks; it is not ill.
//! - *Nobody's* ([`Event::Unjudged`]): the client left, Envoy's own limits, a request that is wrong by its error's own words.
//!
//! Failures in a row eject: the instance is a candidate only where there is no other, until a back-off has passed. Then it is
//! half-open: one request at a time, over all workers, probes it. A success closes the case, a failure doubles the back-off. It is
//! the circuit breaker of M. Nygard, *Release It!*, with Envoy's exponential ejection time.
//!
//! All workers share one record, written by compare-and-swap: failures are rare, and only so is a probe the only one. What follows
//! from an event depends on the record and the time, not on the worker that saw it.

mod asking;
mod case;
mod judge;
mod record;
mod settings;
mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

pub use asking::{Asked, Asking, of_call};
pub use case::Case;
pub use judge::{AnswerOutcome, Attempts, Suspect, of_answer, of_interruption, of_silence, retry_after};
pub use record::Record;
pub use settings::HealthSettings;
pub use watch::{Sight, Watch, quiet_allowed};

use crate::fleet::Fleet;
use crate::names::named;
use crate::reckoning::{InstanceReport, LoadNow, Standing};

named! {
    /// What went wrong with a request, or with all that an instance holds.
    pub enum Failure {
        /// No answer: nobody there, a reset or silence before the first byte, or an answer that Envoy retried elsewhere.
        Unanswered = "unanswered",
        /// A status of 5xx by the instance itself.
        Status = "status",
        /// An error event inside a stream of status 200.
        ErrorEvent = "error_event",
        /// A response that ended before its end.
        Truncated = "truncated",
        /// No progress for `health.stall_ms` on any request, though some are there.
        Stalled = "stalled",
        /// The instance has more to do than it takes. That is load, not illness.
        Busy = "busy",
        /// A status of 4xx that no peer gives.
        Refused = "refused",
    }
}

/// What was seen of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request failed, and not by its own fault.
    Failed(Failure),
    /// A request failed, maybe by its own fault.
    Suspected(Failure),
    /// A request was refused, maybe rightly. `common` says whether other pools serve such requests, too.
    Refused {
        /// Whether the request could have been answered by another pool.
        common: bool,
    },
    /// The instance has no room, and may have said after which time to come again.
    Busy(Option<Duration>),
    /// The same of a provider that speaks of the gateway's own account: no client is the reason.
    Limited(Option<Duration>),
    /// The first piece of an answer came.
    Began,
    /// A whole answer came.
    Succeeded,
    /// Work that stood still goes on.
    Resumed,
    /// A request ended in a way that says nothing of the instance: its client left, or was refused.
    Unjudged,
}

impl Event {
    /// What went wrong, if anything that may be the instance's.
    pub fn failure(self) -> Option<Failure> {
        match self {
            Event::Failed(failure) | Event::Suspected(failure) => Some(failure),
            Event::Refused { .. } => Some(Failure::Refused),
            Event::Busy(_) | Event::Limited(_) => Some(Failure::Busy),
            Event::Began | Event::Succeeded | Event::Resumed | Event::Unjudged => None,
        }
    }
}

/// Lost scrapes in a row after which an instance is dead: fewer may be a server that is too busy to answer them.
const LOST_SCRAPES_OF_THE_DEAD: u32 = 8;

/// Most instances that are remembered, some 600 KB of shared data.
const RECORDS_MAX: usize = 4_096;

/// The records of all instances that something speaks against, by [`crate::fleet::Instance::key`], so that they survive a change
/// of the fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records(pub BTreeMap<u32, Record>);

impl Records {
    /// Takes in what was seen of an instance. `sent` is when the request went out that shows it, `is_peer` tells the instances of the
    /// same pool. Whether the records have changed.
    pub fn apply(
        &mut self,
        instance: u32,
        event: Event,
        (sent, now): (Duration, Duration),
        is_peer: impl Fn(u32) -> bool,
        settings: &HealthSettings,
    ) -> bool {
        let speaks_against = match event {
            Event::Failed(_) | Event::Suspected(_) | Event::Refused { .. } | Event::Busy(_) | Event::Limited(_) => true,
            Event::Began | Event::Succeeded | Event::Resumed | Event::Unjudged => false,
        };
        if speaks_against && !self.has_room(instance, now, settings) {
            return false;
        }
        let at_others = self.tell_others(instance, event, is_peer);
        if speaks_against {
            let record = self.0.entry(instance).or_default();
            return match event {
                Event::Failed(failure) => record.fail(failure, sent, now, settings),
                Event::Suspected(_) => record.suspect(sent, now, settings),
                Event::Refused { common } => record.refuse(common, sent, now, settings),
                Event::Busy(retry_after) => record.busy(retry_after, sent, now, settings),
                Event::Limited(retry_after) => record.limited(retry_after, sent, now, settings),
                Event::Began | Event::Succeeded | Event::Resumed | Event::Unjudged => false,
            } || at_others;
        }
        let Some(record) = self.0.get_mut(&instance) else { return at_others };
        let is_news = sent > record.last_failure;
        match event {
            // An instance that breaks answers off begins them well: only a probe's counts.
            Event::Began
                if record.is_ejected() && is_news && (sent >= record.ejected_until || !record.was_doubted()) =>
            {
                record.close(settings);
            }
            Event::Began => return record.begin(sent) || at_others,
            Event::Resumed if record.is_ejected() && record.stalled => record.close(settings),
            Event::Succeeded => {
                let (has_changed, is_over) = record.succeed(sent, now);
                if is_over {
                    self.0.remove(&instance);
                }
                return has_changed || is_over || at_others;
            }
            Event::Unjudged if record.is_ejected() && sent >= record.ejected_until => {
                record.probe_until = Duration::ZERO;
            }
            _ => return at_others,
        }
        true
    }

    /// Whether something may be remembered of an instance; what is over makes room.
    fn has_room(&mut self, instance: u32, now: Duration, settings: &HealthSettings) -> bool {
        if !self.0.contains_key(&instance) && self.0.len() >= RECORDS_MAX {
            self.0.retain(|_, record| !record.is_over(now, settings));
        }
        self.0.contains_key(&instance) || self.0.len() < RECORDS_MAX
    }

    /// What an instance's event says of the others; whether that is news.
    fn tell_others(&mut self, instance: u32, event: Event, is_peer: impl Fn(u32) -> bool) -> bool {
        let mut is_news = false;
        for (other, record) in self.0.iter_mut().filter(|(other, _)| **other != instance) {
            is_news |= match event {
                Event::Succeeded => record.good(is_peer(*other)),
                Event::Suspected(_) => record.suspicions.same(is_peer(*other)),
                Event::Refused { .. } => record.refusals.same(is_peer(*other)),
                _ => false,
            };
        }
        is_news
    }

    /// Claims a half-open instance for a probe; false if it is not half-open, or another worker was faster.
    pub fn claim(&mut self, instance: u32, now: Duration, settings: &HealthSettings) -> bool {
        let Some(record) = self.0.get_mut(&instance) else { return false };
        if record.standing(now, settings) != Standing::HalfOpen {
            return false;
        }
        // A probe whose worker dies is never judged.
        record.probe_until = now.saturating_add(settings.max_ejection);
        true
    }

    /// How an instance stands.
    pub fn standing(&self, instance: u32, now: Duration, settings: &HealthSettings) -> Standing {
        self.0.get(&instance).map_or(Standing::Healthy, |record| record.standing(now, settings))
    }

    /// Whether an instance answers nobody at the moment: it has failed by its own fault and not served since, or a scrape was lost.
    pub fn is_silent(
        &self,
        instance: u32,
        report: Option<&InstanceReport>,
        now: Duration,
        settings: &HealthSettings,
    ) -> bool {
        self.0.get(&instance).is_some_and(|record| record.is_silent(now, settings))
            || report.is_some_and(|report| report.unreachable > 0)
    }

    /// Whether nothing is to be expected of what an instance was sent at this time: its work stood still afterwards, or nobody is there.
    /// What is sent later, as its probe, may show otherwise.
    pub fn is_stuck(&self, instance: u32, report: Option<&InstanceReport>, sent: Duration) -> bool {
        let is_stalled = |record: &Record| record.stalled && record.is_ejected() && record.last_failure > sent;
        self.0.get(&instance).is_some_and(is_stalled)
            || report.is_some_and(|report| report.unreachable >= LOST_SCRAPES_OF_THE_DEAD)
    }

    /// Tells the loads how their instances stand.
    pub fn stand(&self, loads: &mut [LoadNow], fleet: &Fleet, now: Duration, settings: &HealthSettings) {
        if self.0.is_empty() || !settings.enabled {
            return;
        }
        for (load, instance) in loads.iter_mut().zip(&fleet.instances) {
            let standing = self.standing(instance.key, now, settings);
            // One that has just come, and that nothing speaks against, stays what it is.
            if standing != Standing::Healthy {
                load.standing = standing;
            }
        }
    }
}

#[cfg(test)]
mod tests;
