//! Finds instances that hang: their server answers, their gauges stand still, and so does all that was sent to them.

use std::time::Duration;

use super::HealthSettings;
use crate::fleet::Pool;
use crate::reckoning::{InstanceCounters, InstanceReport};
use crate::telemetry;

/// What a look at an instance shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Nothing moves though it should. Said at every look; `first` at the first one.
    Stalled {
        /// Whether it is news.
        first: bool,
    },
    /// What stood still goes on.
    Resumed,
}

/// One instance as the watching worker has seen it move.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Watch {
    /// What all workers have seen finished, and what the instance reports of its own progress.
    seen: (u64, [Option<f64>; 4]),
    /// When that last changed, or there was nothing to wait for.
    since: Duration,
    stalled: bool,
}

impl Watch {
    /// Looks at an instance. Without a fresh report there is no verdict: a long answer that is not streamed is silent, too.
    pub fn look(
        &mut self,
        counters: &InstanceCounters,
        report: &InstanceReport,
        allowed: Duration,
        telemetry: &telemetry::TelemetrySettings,
        now: Duration,
    ) -> Option<Sight> {
        let finished = counters
            .finished_requests
            .saturating_add(counters.finished_prompt_tokens)
            .saturating_add(counters.finished_output_tokens);
        let load = &report.load;
        let seen = (finished, [load.progress_tokens, load.running, load.waiting, load.kv_use]);
        if seen != self.seen || counters.outstanding_requests() == 0 || self.since.is_zero() {
            // Requests also end because Envoy or their clients give them up: only the instance itself can say that it works again.
            let works = seen.1 != self.seen.1;
            self.seen = seen;
            self.since = now;
            if !works && counters.outstanding_requests() > 0 {
                return None;
            }
            return (std::mem::take(&mut self.stalled) && works).then_some(Sight::Resumed);
        }
        let at = report.at.filter(|_| load.running.is_some())?;
        let is_fresh = now.saturating_sub(at) <= telemetry.max_age && at > self.since;
        if !is_fresh || now.saturating_sub(self.since) < allowed {
            return None;
        }
        let first = !std::mem::replace(&mut self.stalled, true);
        Some(Sight::Stalled { first })
    }
}

/// How long an instance may show no progress: `stall_ms`, and twice the time of the longest prefill that may be under way, since
/// servers count a prompt when its prefill is over.
pub fn quiet_allowed(pool: &Pool, counters: &InstanceCounters, settings: &HealthSettings) -> Duration {
    let prompt = counters.outstanding_prompt_tokens().min(u64::from(pool.limits.max_model_len));
    let prefill = 2.0 * prompt as f64 / pool.profile.prefill_tokens_per_second;
    settings.stall.saturating_add(Duration::try_from_secs_f64(prefill).unwrap_or_default())
}
