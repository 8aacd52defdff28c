//! What is remembered of one instance, and what follows from it.

use std::time::Duration;

use super::{Case, Failure, HealthSettings};
use crate::reckoning::Standing;

/// What is remembered of an instance that something spoke against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Failures in a row that are its own.
    pub failures: u32,
    /// When the last of them was seen.
    pub last_failure: Duration,
    /// Whether the last of them was [`Failure::Stalled`].
    pub stalled: bool,
    /// When the instance last said that it is busy.
    pub last_busy: Duration,
    /// Answers that say so since [`Record::busy_since`].
    pub busy_answers: u32,
    /// Good answers since then.
    pub good_answers: u32,
    /// When the second began in which both are counted.
    pub busy_since: Duration,
    /// Until when it is avoided as busy; zero if it is not.
    pub busy_until: Duration,
    /// Ejections in a row.
    pub ejections: u32,
    /// The end of the back-off; zero while it is not ejected.
    pub ejected_until: Duration,
    /// Until when a probe counts as under way; zero if none is.
    pub probe_until: Duration,
    /// Failures that may be their requests'.
    pub suspicions: Case,
    /// Refusals that may be their clients' fault.
    pub refusals: Case,
}

/// Back-offs (the longest) after which nothing is remembered of an instance any more. An instance of low weight may get no request
/// until its weight has come back, so failures in a row may lie further apart than weight is lost.
const FORGOTTEN_AFTER: u32 = 10;
/// What counts as a moment where answers are compared.
const MOMENT: Duration = Duration::from_secs(1);
/// Busy answers that close an instance, where they are the most.
const BUSY_TO_CLOSE: u32 = 2;
/// The longest that `Retry-After` is believed: whoever says more is asked again after it.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

impl Record {
    pub(super) fn standing(&self, now: Duration, settings: &HealthSettings) -> Standing {
        if !self.ejected_until.is_zero() {
            return if now >= self.ejected_until && now >= self.probe_until {
                Standing::HalfOpen
            } else {
                Standing::Ejected
            };
        }
        if now < self.busy_until {
            return Standing::Busy;
        }
        if [self.refusals, self.suspicions].iter().any(|case| case.is_open(now, settings)) {
            return Standing::Doubted;
        }
        let illness = f64::from(self.failures) * fading(now, self.last_failure, settings.max_ejection)
            + fading(now, self.last_busy, settings.base_ejection);
        if illness > 0.0 { Standing::Degraded(1.0 / (1.0 + illness)) } else { Standing::Healthy }
    }

    /// Whether nothing is left that would make a difference.
    pub(super) fn is_over(&self, now: Duration, settings: &HealthSettings) -> bool {
        let seen = [self.last_failure, self.last_busy, self.ejected_until, self.suspicions.last, self.refusals.last];
        let last = seen.into_iter().max().unwrap_or_default().max(self.busy_until);
        now >= last.saturating_add(settings.max_ejection.saturating_mul(FORGOTTEN_AFTER))
    }

    /// Whether failures of its own were the last that it has shown.
    pub(super) fn is_silent(&self, now: Duration, settings: &HealthSettings) -> bool {
        let age = now.saturating_sub(self.last_failure);
        self.is_ejected() || (self.failures > 0 && age < settings.max_ejection)
    }

    pub(super) fn is_ejected(&self) -> bool {
        !self.ejected_until.is_zero()
    }

    fn eject(&mut self, now: Duration, settings: &HealthSettings) {
        let doublings = 2_u32.saturating_pow(self.ejections);
        self.ejections = self.ejections.saturating_add(1);
        let back_off = settings.base_ejection.saturating_mul(doublings).min(settings.max_ejection);
        self.ejected_until = now.saturating_add(back_off);
        self.probe_until = Duration::ZERO;
    }

    /// An ejected instance works again: it stands one failure before the next ejection, whose back-off would be doubled.
    pub(super) fn close(&mut self, settings: &HealthSettings) {
        self.failures = settings.failures_to_eject.saturating_sub(1);
        self.ejected_until = Duration::ZERO;
        self.probe_until = Duration::ZERO;
        self.stalled = false;
    }

    /// A failure of the instance's own.
    pub(super) fn fail(&mut self, failure: Failure, sent: Duration, now: Duration, settings: &HealthSettings) -> bool {
        // What stands still says so at every look; everything else speaks for the time when it was sent.
        let seen_of = if failure == Failure::Stalled { now } else { sent };
        if self.is_ejected() {
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
        if self.is_ejected() || self.failures >= settings.failures_to_eject {
            self.eject(now, settings);
        }
        true
    }

    /// The instance has said that it has no room; `retry_after` is when it wants to be asked again.
    pub(super) fn busy(
        &mut self,
        retry_after: Option<Duration>,
        sent: Duration,
        now: Duration,
        settings: &HealthSettings,
    ) -> bool {
        // A second without one good answer goes on.
        if self.busy_answers == 0
            || (now.saturating_sub(self.busy_since) > MOMENT
                && (self.good_answers > 0 || now.saturating_sub(self.last_busy) > settings.max_ejection))
        {
            (self.busy_answers, self.good_answers, self.busy_since) = (0, 0, now);
        }
        self.busy_answers = self.busy_answers.saturating_add(1);
        self.last_busy = now;
        if self.busy_answers >= BUSY_TO_CLOSE && self.busy_answers > self.good_answers {
            self.avoid_for(retry_after, now, settings);
        }
        if self.is_ejected() && sent >= self.ejected_until {
            // It lives, but has no room: ask again later, and not much later.
            self.ejected_until = now.saturating_add(settings.base_ejection);
            self.probe_until = Duration::ZERO;
        }
        true
    }

    /// A provider has said that the gateway's own account is used up for now: nobody needs to say it twice.
    pub(super) fn limited(
        &mut self,
        retry_after: Option<Duration>,
        sent: Duration,
        now: Duration,
        settings: &HealthSettings,
    ) -> bool {
        self.busy(retry_after, sent, now, settings);
        self.busy_answers = self.busy_answers.max(self.good_answers.saturating_add(BUSY_TO_CLOSE));
        self.avoid_for(retry_after, now, settings);
        true
    }

    fn avoid_for(&mut self, retry_after: Option<Duration>, now: Duration, settings: &HealthSettings) {
        let pause = retry_after.map_or(settings.base_ejection, |after| after.min(RETRY_AFTER_MAX));
        self.busy_until = self.busy_until.max(now.saturating_add(pause));
    }

    /// A request has failed that may itself be the reason.
    pub(super) fn suspect(&mut self, sent: Duration, now: Duration, settings: &HealthSettings) -> bool {
        self.suspicions.add(false, now, settings);
        let convicts = self.suspicions.convicts(now, settings);
        self.doubt(convicts, sent, now, settings)
    }

    /// A request was refused, maybe rightly.
    pub(super) fn refuse(&mut self, is_common: bool, sent: Duration, now: Duration, settings: &HealthSettings) -> bool {
        self.refusals.add(is_common, now, settings);
        let convicts = self.refusals.is_black_hole(settings);
        self.doubt(convicts, sent, now, settings)
    }

    fn doubt(&mut self, convicts: bool, sent: Duration, now: Duration, settings: &HealthSettings) -> bool {
        match (self.is_ejected(), convicts) {
            (false, true) => self.eject(now, settings),
            (true, true) if sent >= self.ejected_until => self.eject(now, settings),
            // A probe that shows nothing: another one may be sent.
            (true, false) if sent >= self.ejected_until => self.probe_until = Duration::ZERO,
            _ => {}
        }
        true
    }

    /// An answer has begun; whether that is news: an instance that takes a request after it has refused one for its load had room, however long
    /// the answer takes. It counts once, since the whole answer counts as well.
    pub(super) fn begin(&mut self, sent: Duration) -> bool {
        let is_news = self.busy_answers > 0 && self.good_answers == 0 && sent > self.last_busy;
        self.good_answers = self.good_answers.saturating_add(u32::from(is_news));
        is_news
    }

    /// A good answer came; whether the record has changed, and whether nothing is left of it.
    pub(super) fn succeed(&mut self, sent: Duration, now: Duration) -> (bool, bool) {
        let before = *self;
        (self.suspicions, self.refusals) = (Case::default(), Case::default());
        if self.busy_answers > 0 {
            self.good_answers = self.good_answers.saturating_add(1);
        }
        if sent > self.last_busy {
            self.busy_until = Duration::ZERO;
        }
        // A request that was sent before the last failure may end well after it, as in a server that drains.
        if sent > self.last_failure || before.was_doubted() {
            (self.failures, self.stalled, self.ejections) = (0, false, 0);
            (self.ejected_until, self.probe_until) = (Duration::ZERO, Duration::ZERO);
        }
        let is_over = self.failures == 0
            && !self.is_ejected()
            && self.busy_until.is_zero()
            && now.saturating_sub(self.last_busy) > MOMENT;
        (*self != before, is_over)
    }

    /// Whether it was ejected by requests that may have been the reason themselves, and not by a failure of its own.
    pub(super) fn was_doubted(&self) -> bool {
        self.failures == 0 && (!self.suspicions.is_empty() || !self.refusals.is_empty())
    }

    /// A good answer of another instance, of the same pool or not; whether that is news.
    pub(super) fn good(&mut self, is_peer: bool) -> bool {
        let suspicions = self.suspicions.good(is_peer);
        self.refusals.good(is_peer) || suspicions
    }
}

/// 1 at the moment of an event, falling linearly to 0 over `span`.
fn fading(now: Duration, at: Duration, span: Duration) -> f64 {
    let age = now.saturating_sub(at);
    if at.is_zero() || age >= span { 0.0 } else { 1.0 - age.as_secs_f64() / span.as_secs_f64() }
}
