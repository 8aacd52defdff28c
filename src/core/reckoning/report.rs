//! What instances report, and how far it is believed.

use std::time::Duration;

use crate::fleet::InstanceId;
use crate::reckoning::InstanceCounters;
use crate::telemetry::{self, Load};

/// What is known of one instance from its last scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct InstanceReport {
    /// When the report was asked for, since the epoch; `None` if there never was one.
    pub at: Option<Duration>,
    /// What it said.
    pub load: Load,
    /// The counters of all workers for the instance when the report was asked for.
    pub own: InstanceCounters,
    /// Reports that found the instance with work of this gateway and said the same as the one before, since they last changed.
    pub repeats: u32,
    /// Scrapes in a row that found nobody there. An answer without metrics is an answer, and a scrape that times out shows that the
    /// metrics are slow, not that requests are not served: the report gets older, no more.
    pub unreachable: u32,
}

/// The last report of every instance, in the order of [`crate::fleet::Fleet::instances`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reports(pub Vec<InstanceReport>);

impl Reports {
    /// The report of an instance.
    #[inline]
    pub fn get(&self, instance: InstanceId) -> Option<&InstanceReport> {
        self.0.get(instance.index())
    }

    /// The report of an instance, to be changed.
    #[inline]
    pub fn get_mut(&mut self, instance: InstanceId) -> Option<&mut InstanceReport> {
        self.0.get_mut(instance.index())
    }
}

/// Reports in a row that say exactly the same, KV use included, before they count as frozen: with sequences decoding, the KV
/// cache fills from one report to the next.
const FROZEN_REPEATS: u32 = 8;
/// More running sequences than this many times the configured batch are no measurement. A server with several engines may well
/// run more than one batch.
const RUNNING_MAX_BATCHES: f64 = 4.0;
/// Nor is a queue of more than this many batches.
const WAITING_MAX_BATCHES: f64 = 64.0;
/// Requests that a report may lack because they were on their way to the queue.
const UNSEEN_REQUESTS: f64 = 2.0;

/// Lost scrapes in a row after which nobody is thought to be there.
const UNREACHABLE_SCRAPES: u32 = 2;

impl InstanceReport {
    /// Whether nobody answers there.
    pub fn is_unreachable(&self) -> bool {
        self.unreachable >= UNREACHABLE_SCRAPES
    }

    /// A scrape was answered, by a page with or without metrics. `own` are the counters of the moment when it was asked for: a
    /// later count would miss what is on its way.
    pub fn answered(&mut self, asked_at: Duration, load: Load, own: InstanceCounters) {
        let same = self.at.is_some() && self.load == load && load.kv_use.is_some();
        let repeats = match (same, own.outstanding_requests() > 0) {
            (false, _) => 0,
            // An idle instance has nothing new to say.
            (true, false) => self.repeats,
            (true, true) => self.repeats.saturating_add(1),
        };
        *self = InstanceReport { at: Some(asked_at), load, own, repeats, unreachable: 0 };
    }

    /// A scrape found nobody there.
    pub fn nobody_there(&mut self) {
        self.unreachable = self.unreachable.saturating_add(1);
    }

    /// What two configurations that ask the same instance know together: the later report of those that say something. Nobody is there only
    /// where all who have asked have found nobody.
    pub fn or(&self, other: &InstanceReport) -> InstanceReport {
        let says = |report: &InstanceReport| (report.load.running.is_some(), report.at);
        let has_asked = |report: &InstanceReport| report.at.is_some() || report.unreachable > 0;
        let later = if says(other) > says(self) { other } else { self };
        let unreachable = [self, other].into_iter().filter(|report| has_asked(report)).map(|report| report.unreachable);
        InstanceReport { unreachable: unreachable.min().unwrap_or(0), ..*later }
    }

    /// Requests that it says the instance held, running and waiting; `None` if it says nothing that can be true of an instance
    /// with such a batch, at least half of which this gateway knows itself.
    #[inline]
    pub(super) fn requests(&self, max_running: f64) -> Option<(f64, f64)> {
        let running = self.load.running?;
        let waiting = self.load.waiting.unwrap_or(0.0);
        let possible = (0.0..=RUNNING_MAX_BATCHES * max_running).contains(&running)
            && (0.0..=WAITING_MAX_BATCHES * max_running).contains(&waiting);
        let known = self.own.outstanding_requests() as f64;
        let covers = running + waiting + UNSEEN_REQUESTS >= 0.5 * known;
        (possible && covers && self.repeats < FROZEN_REPEATS).then_some((running, waiting))
    }

    /// How far it is believed at `now`, 0 to 1, whatever it says.
    #[inline]
    pub(super) fn trust_at(&self, now: Duration, telemetry: &telemetry::TelemetrySettings) -> f64 {
        self.at.map_or(0.0, |at| trust(now.saturating_sub(at), telemetry))
    }
}

/// How far a report of this age is trusted: fully while fresh, then falling linearly, not at all from the maximal age on.
#[inline]
pub fn trust(age: Duration, telemetry: &telemetry::TelemetrySettings) -> f64 {
    if age <= telemetry.fresh {
        return 1.0;
    }
    if age >= telemetry.max_age {
        return 0.0;
    }
    let span = telemetry.max_age.saturating_sub(telemetry.fresh).as_secs_f64();
    let left = telemetry.max_age.saturating_sub(age).as_secs_f64();
    if span > 0.0 { (left / span).clamp(0.0, 1.0) } else { 0.0 }
}
