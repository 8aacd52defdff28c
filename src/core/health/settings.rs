//! When failures have consequences, and which.

use std::time::Duration;

/// When failures make an instance no candidate, and for how long.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthSettings {
    /// Whether failures have consequences at all.
    pub enabled: bool,
    /// Failures in a row that eject an instance.
    pub failures_to_eject: u32,
    /// How long the first ejection lasts; each further one in a row lasts twice as long as the one before.
    pub base_ejection: Duration,
    /// How long an ejection lasts at most, and how long weight takes to come back.
    pub max_ejection: Duration,
    /// How long an instance may show no progress at all while it has work.
    pub stall: Duration,
    /// How long an answer that is not streamed may take at least, where no report says whether its instance works.
    pub answer_limit: Duration,
}
